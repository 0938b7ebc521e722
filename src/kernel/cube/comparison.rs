//! Two kernels over a block of words under two models. The first reads the logits of both once more
//! than `reduce_rows` and sums the terms of their divergence. The second turns the policy's logits
//! into the gradient.

// The code that the `cube` macro generates refers to the name `cubecl`.
use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::rows::{shaped, tanh};

/// Which divergence, at compile time; β of the last one is an argument.
pub(super) const FORWARD: u32 = 0;
pub(super) const REVERSE: u32 = 1;
pub(super) const MIXED: u32 = 2;

/// Stands for ln(p/p°) where one of the two probabilities is 0, and is multiplied by this 0.
const RULED_OUT: f32 = 1.0e30;

/// `ln(1 + u)` for −1 < u ≤ 0. Near 0 it is the series of 2·artanh(u/(2 + u)), because a sum with 1
/// has no digits there.
#[cube]
fn log1p<N: Size>(u: Vector<f32, N>) -> Vector<f32, N> {
    let two = Vector::<f32, N>::new(2.0_f32);
    let small = clamp(u, Vector::new(-0.5_f32), Vector::new(0.0_f32));
    let ratio = small / (small + two);
    let square = ratio * ratio;
    let mut sum = square * Vector::new(1.0_f32 / 13.0_f32) + Vector::new(1.0_f32 / 11.0_f32);
    sum = sum * square + Vector::new(1.0_f32 / 9.0_f32);
    sum = sum * square + Vector::new(1.0_f32 / 7.0_f32);
    sum = sum * square + Vector::new(0.2_f32);
    sum = sum * square + Vector::new(1.0_f32 / 3.0_f32);
    let near = (sum * square * ratio + ratio) * two;
    let mut value = (u + Vector::new(1.0_f32)).ln();
    #[unroll]
    for lane in 0..N::value() {
        if u.extract(lane) >= -0.5_f32 {
            value.insert(lane, near.extract(lane));
        }
    }
    value
}

/// Terms `a·(eᵈ − 1 − d)` of KL(a ‖ b), where b = a·eᵈ. See `excess` in `generic.rs`.
#[cube]
fn excess<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>, d: Vector<f32, N>) -> Vector<f32, N> {
    (a + b) * tanh::<N>(d * Vector::new(0.5_f32)) - a * d
}

/// ln(p/p°), where `ours` and `theirs` are the logarithms. See `Words::new` in `generic.rs`.
#[cube]
fn log_ratio<N: Size>(
    ours: Vector<f32, N>,
    theirs: Vector<f32, N>,
    #[comptime] kind: u32,
) -> Vector<f32, N> {
    let (p, q) = (ours.exp(), theirs.exp());
    let mut ratio = ours - theirs;
    #[unroll]
    for lane in 0..N::value() {
        if comptime!(kind != FORWARD) {
            if p.extract(lane) == 0.0_f32 {
                ratio.insert(lane, -RULED_OUT);
            }
        }
        if comptime!(kind != REVERSE) {
            if q.extract(lane) == 0.0_f32 {
                ratio.insert(lane, RULED_OUT);
            }
        }
    }
    ratio
}

/// The smaller of ln(m/p) and ln(m/p°). The larger is |d| more. See `Words::mixed` in `generic.rs`.
#[cube]
fn below_larger<N: Size>(d: Vector<f32, N>, beta: f32) -> Vector<f32, N> {
    let tanh = tanh::<N>(d.abs() * Vector::new(0.5_f32));
    let less = Vector::new(-2.0_f32) * tanh / (tanh + Vector::new(1.0_f32));
    let mut weight = Vector::<f32, N>::new(beta);
    #[unroll]
    for lane in 0..N::value() {
        if d.extract(lane) < 0.0_f32 {
            weight.insert(lane, 1.0_f32 - beta);
        }
    }
    log1p::<N>(weight * less)
}

/// One vector of logits of a model, less the normaliser of their row.
#[cube]
fn log_softmax<N: Size>(
    x: Vector<f32, N>,
    normalizer: &Tensor<f32>,
    place: usize,
    inside: f32,
    outside: f32,
    #[comptime] scaled: bool,
    #[comptime] capped: bool,
) -> Vector<f32, N> {
    let x = shaped::<N>(x, inside, outside, scaled, capped);
    (x - Vector::new(normalizer[place])) - Vector::new(normalizer[place + 1])
}

/// Sums the terms of the divergence of each row, and of its mean E. `kept` is `[rows, 4 or more]`,
/// and `out` gets two columns. Each cube reduces
/// one row. A row with a negative target is not read and gets zeros.
#[cube(launch, address_type = "dynamic")]
pub(super) fn compare_rows<L: Float, M: Float, B: Float, C: Float, I: Int, N: Size>(
    ours: &Tensor<Vector<L, N>>,
    our_bias: ComptimeOption<&Tensor<Vector<B, N>>>,
    theirs: &Tensor<Vector<M, N>>,
    their_bias: ComptimeOption<&Tensor<Vector<C, N>>>,
    targets: &Tensor<I>,
    kept: &Tensor<f32>,
    out: &mut Tensor<f32>,
    beta: f32,
    our_inside: f32,
    our_outside: f32,
    their_inside: f32,
    their_outside: f32,
    #[comptime] kind: u32,
    #[comptime] our_scaled: bool,
    #[comptime] our_capped: bool,
    #[comptime] their_scaled: bool,
    #[comptime] their_capped: bool,
    #[comptime] units: u32,
    #[comptime] exact: bool,
    #[define(L, M, B, C, I)] _dtypes: [ElemType; 5],
) {
    let row = CUBE_POS;
    if row >= ours.shape(0) {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let into = row * out.stride(0);
    if targets[row] < I::new(0) {
        if unit == 0 {
            out[into] = 0.0_f32;
            out[into + 1] = 0.0_f32;
        }
        terminate!();
    }
    let width = ours.vector_size();
    let vocab = ours.shape(1);
    let vectors = (vocab + width - 1) / width;
    let from = row * (ours.stride(0) / width);
    let their_from = row * (theirs.stride(0) / width);
    let place = row * kept.stride(0);

    let mut sum = 0.0_f32;
    let mut mean = 0.0_f32;
    let mut vector = unit;
    while vector < vectors {
        let mut x = Vector::<f32, N>::cast_from(ours[from + vector]);
        #[comptime]
        if let ComptimeOption::Some(bias) = &our_bias {
            x += Vector::<f32, N>::cast_from(bias[vector]);
        }
        let mut y = Vector::<f32, N>::cast_from(theirs[their_from + vector]);
        #[comptime]
        if let ComptimeOption::Some(bias) = &their_bias {
            y += Vector::<f32, N>::cast_from(bias[vector]);
        }
        let x = log_softmax::<N>(
            x,
            kept,
            place,
            our_inside,
            our_outside,
            our_scaled,
            our_capped,
        );
        let y = log_softmax::<N>(
            y,
            kept,
            place + 2,
            their_inside,
            their_outside,
            their_scaled,
            their_capped,
        );
        let (p, q) = (x.exp(), y.exp());
        let d = log_ratio::<N>(x, y, kind);
        let mut terms = Vector::<f32, N>::new(0.0_f32);
        let mut means = Vector::<f32, N>::new(0.0_f32);
        if comptime!(kind == FORWARD) {
            terms = excess::<N>(q, p, d);
        } else if comptime!(kind == REVERSE) {
            terms = excess::<N>(p, q, -d);
            means = p * d;
        } else {
            let below = below_larger::<N>(d, beta);
            let zero = Vector::<f32, N>::new(0.0_f32);
            let (above_ours, above_theirs) = (below + max(-d, zero), below + max(d, zero));
            let (of_theirs, of_ours) = (Vector::<f32, N>::new(beta), Vector::new(1.0_f32 - beta));
            let mixture = q * of_theirs + p * of_ours;
            terms = excess::<N>(q, mixture, above_theirs) * of_theirs
                + excess::<N>(p, mixture, above_ours) * of_ours;
            means = -(p * above_ours);
        }
        #[unroll]
        for lane in 0..width {
            if comptime!(exact) || vector * width + lane < vocab {
                sum += terms.extract(lane);
                mean += means.extract(lane);
            }
        }
        vector += units as usize;
    }

    let mut sums = Shared::<[f32]>::new_slice(units as usize);
    let mut means = Shared::<[f32]>::new_slice(units as usize);
    sums[unit] = sum;
    means[unit] = mean;
    sync_cube();
    let steps = comptime!(units.ilog2());
    #[unroll]
    for step in 0..steps {
        let half = comptime!(units >> (step + 1)) as usize;
        if unit < half {
            sums[unit] = sums[unit] + sums[unit + half];
            means[unit] = means[unit] + means[unit + half];
        }
        sync_cube();
    }
    if unit == 0 {
        out[into] = sums[0];
        out[into + 1] = means[0];
    }
}

/// Writes the gradient of the divergence times grad·∂logit/∂x. `output` may be the buffer of
/// `ours`. `kept` is `[rows, 5]`. Each cube handles one stretch of a row. A row with a negative target
/// gets zeros.
#[cube(launch, address_type = "dynamic")]
pub(super) fn turn_compared<L: Float, M: Float, B: Float, C: Float, O: Float, I: Int, N: Size>(
    ours: &Tensor<Vector<L, N>>,
    our_bias: ComptimeOption<&Tensor<Vector<B, N>>>,
    theirs: &Tensor<Vector<M, N>>,
    their_bias: ComptimeOption<&Tensor<Vector<C, N>>>,
    targets: &Tensor<I>,
    kept: &Tensor<f32>,
    grad: &Tensor<f32>,
    output: &mut Tensor<Vector<O, N>>,
    beta: f32,
    our_inside: f32,
    our_outside: f32,
    their_inside: f32,
    their_outside: f32,
    factor: f32,
    bend: f32,
    first_row: u32,
    #[comptime] kind: u32,
    #[comptime] our_scaled: bool,
    #[comptime] our_capped: bool,
    #[comptime] their_scaled: bool,
    #[comptime] their_capped: bool,
    #[comptime] units: u32,
    #[comptime] turns: usize,
    #[define(L, M, B, C, O, I)] _dtypes: [ElemType; 6],
) {
    let row = CUBE_POS_Z as usize * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize;
    if row >= ours.shape(0) {
        terminate!();
    }
    let width = ours.vector_size();
    let vectors = (ours.shape(1) + width - 1) / width;
    let from = row * (ours.stride(0) / width);
    let their_from = row * (theirs.stride(0) / width);
    let into = row * (output.stride(0) / width);
    let place = (first_row as usize + row) * kept.stride(0);
    let counts = targets[first_row as usize + row] >= I::new(0);
    let mean = Vector::<f32, N>::new(kept[place + 4]);
    let grad = grad[first_row as usize + row] * factor;
    let start = CUBE_POS_X as usize * (units as usize * turns) + UNIT_POS as usize;
    #[unroll]
    for turn in 0..turns {
        let vector = start + turn * units as usize;
        if vector < vectors {
            if counts {
                let mut x = Vector::<f32, N>::cast_from(ours[from + vector]);
                #[comptime]
                if let ComptimeOption::Some(bias) = &our_bias {
                    x += Vector::<f32, N>::cast_from(bias[vector]);
                }
                let mut y = Vector::<f32, N>::cast_from(theirs[their_from + vector]);
                #[comptime]
                if let ComptimeOption::Some(bias) = &their_bias {
                    y += Vector::<f32, N>::cast_from(bias[vector]);
                }
                let logits = shaped::<N>(x, our_inside, our_outside, our_scaled, our_capped);
                let x = (logits - Vector::new(kept[place])) - Vector::new(kept[place + 1]);
                let y = log_softmax::<N>(
                    y,
                    kept,
                    place + 2,
                    their_inside,
                    their_outside,
                    their_scaled,
                    their_capped,
                );
                let p = x.exp();
                let mut delta = p;
                if comptime!(kind == FORWARD) {
                    delta = p - y.exp();
                } else if comptime!(kind == REVERSE) {
                    delta = p * (log_ratio::<N>(x, y, kind) - mean);
                } else {
                    let d = log_ratio::<N>(x, y, kind);
                    let zero = Vector::<f32, N>::new(0.0_f32);
                    let above = below_larger::<N>(d, beta) + max(-d, zero);
                    delta = p * (above + mean) * Vector::new(beta - 1.0_f32);
                }
                delta *= Vector::new(grad);
                if comptime!(our_capped) {
                    let bent = logits * Vector::new(bend);
                    delta = delta - delta * (bent * bent);
                }
                output[into + vector] = Vector::cast_from(delta);
            } else {
                output[into + vector] = Vector::cast_from(Vector::<f32, N>::new(0.0_f32));
            }
        }
    }
}
