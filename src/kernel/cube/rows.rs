//! Two kernels over a block of logits. The first reads the logits once and computes all results of
//! a row. The second reads the logits once and writes their gradient once.
//!
//! The kernels need no subgroup operation, so every device can run them.

// The code that the `cube` macro generates refers to the name `cubecl`.
use burn_cubecl::cubecl;
use cubecl::prelude::*;

/// Number of vectors that one unit of the gradient kernel turns into gradients.
pub(super) const TURNS: usize = 4;

/// The tanh of x. Near 0 the result is the Padé approximant of degree 7 over 6, because WGSL's tanh
/// has no correct digits there.
#[cube]
pub(super) fn tanh<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let half = Vector::<f32, N>::new(0.5_f32);
    let small = clamp(x, -half, half);
    let square = small * small;
    let above = ((square + Vector::new(378.0_f32)) * square + Vector::new(17_325.0_f32)) * square
        + Vector::new(135_135.0_f32);
    let below = ((square * Vector::new(28.0_f32) + Vector::new(3150.0_f32)) * square
        + Vector::new(62_370.0_f32))
        * square
        + Vector::new(135_135.0_f32);
    let near = small * above / below;
    let mut value = x.tanh();
    #[unroll]
    for lane in 0..N::value() {
        if x.extract(lane).abs() <= 0.5_f32 {
            value.insert(lane, near.extract(lane));
        }
    }
    value
}

/// Turns x = W h + b into logits: `outside·tanh(inside·x)`, `inside·x` or x.
#[cube]
pub(super) fn shaped<N: Size>(
    x: Vector<f32, N>,
    inside: f32,
    outside: f32,
    #[comptime] scaled: bool,
    #[comptime] capped: bool,
) -> Vector<f32, N> {
    let mut logits = x;
    if comptime!(scaled || capped) {
        logits *= Vector::new(inside);
    }
    if comptime!(capped) {
        logits = tanh::<N>(logits) * Vector::new(outside);
    }
    logits
}

/// The running sums of a row. All powers are relative to `max`, the largest logit so far.
#[derive(CubeType)]
struct Row {
    /// The largest logit so far. The start value is finite, so that ∞ − ∞ and 0 · ∞ do not occur.
    max: f32,
    /// The first word whose logit is `max`.
    first: u32,
    /// Σ e^(x − max)
    sum: f32,
    /// Σ e^(x − max)·(x − max)
    moment: f32,
    /// Σ e^2(x − max)
    squares: f32,
    /// Σ x
    total: f32,
}

#[cube]
impl Row {
    fn empty() -> Row {
        Row {
            max: f32::min_value(),
            first: 4294967295_u32,
            sum: 0.0_f32,
            moment: 0.0_f32,
            squares: 0.0_f32,
            total: 0.0_f32,
        }
    }

    /// Raises the largest logit to `top` and rescales the sums.
    fn raise(&mut self, top: f32, #[comptime] statistics: bool) {
        let down = self.max - top;
        let factor = down.exp();
        if comptime!(statistics) {
            // The bound avoids −∞ · 0, as in `add`. If the first logits of a row are huge, `down`
            // overflows to −∞ while `sum` is still 0.
            self.moment = factor * (self.moment + max(down, -1.0e4_f32) * self.sum);
            self.squares = factor * factor * self.squares;
        }
        self.sum *= factor;
        self.max = top;
    }

    /// Adds one logit, which must not be larger than `max`.
    fn add(&mut self, x: f32, #[comptime] statistics: bool) {
        let down = x - self.max;
        let power = down.exp();
        self.sum += power;
        if comptime!(statistics) {
            // exp(−1e4) is 0 already, so the bound changes no sum. Without the bound, 0 · (−∞)
            // would be NaN.
            self.moment += power * max(down, -1.0e4_f32);
            self.squares += power * power;
            self.total += x;
        }
    }
}

/// Computes all results of a row in one read. `out[row]` is log-prob, largest logit and ln Σ e^(x −
/// max). With `statistics`, entropy, ln Σ p², top-1 and mean follow. Each cube reduces one row. A
/// row with a negative target is not read and gets zeros.
#[cube(launch, address_type = "dynamic")]
pub(super) fn reduce_rows<L: Float, B: Float, I: Int, N: Size>(
    logits: &Tensor<Vector<L, N>>,
    bias: ComptimeOption<&Tensor<Vector<B, N>>>,
    targets: &Tensor<I>,
    out: &mut Tensor<f32>,
    inside: f32,
    outside: f32,
    first_row: u32,
    #[comptime] scaled: bool,
    #[comptime] capped: bool,
    #[comptime] units: u32,
    #[comptime] exact: bool,
    #[comptime] statistics: bool,
    #[define(L, B, I)] _dtypes: [ElemType; 3],
) {
    let row = CUBE_POS;
    if row >= logits.shape(0) {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let place = first_row as usize + row;
    let into = place * out.stride(0);
    if targets[place] < I::new(0) {
        if unit == 0 {
            #[unroll]
            for column in 0..comptime!(if statistics { 7_usize } else { 3_usize }) {
                out[into + column] = 0.0_f32;
            }
        }
        terminate!();
    }
    let width = logits.vector_size();
    let vocab = logits.shape(1);
    let vectors = (vocab + width - 1) / width;
    let from = row * (logits.stride(0) / width);

    let mut found = Row::empty();
    let mut vector = unit;
    while vector < vectors {
        let mut x = Vector::<f32, N>::cast_from(logits[from + vector]);
        #[comptime]
        if let ComptimeOption::Some(bias) = &bias {
            x += Vector::<f32, N>::cast_from(bias[vector]);
        }
        let x = shaped::<N>(x, inside, outside, scaled, capped);
        let mut largest = found.max;
        #[unroll]
        for lane in 0..width {
            if comptime!(exact) || vector * width + lane < vocab {
                largest = max(largest, x.extract(lane));
            }
        }
        if largest > found.max {
            found.raise(largest, statistics);
            if comptime!(statistics) {
                found.first = 4294967295_u32;
                #[unroll]
                for lane in 0..width {
                    let word = (vector * width + lane) as u32;
                    if x.extract(lane) == largest {
                        found.first = min(found.first, word);
                    }
                }
            }
        }
        #[unroll]
        for lane in 0..width {
            if comptime!(exact) || vector * width + lane < vocab {
                found.add(x.extract(lane), statistics);
            }
        }
        vector += units as usize;
    }

    let mut maxima = Shared::<[f32]>::new_slice(units as usize);
    let mut sums = Shared::<[f32]>::new_slice(units as usize);
    let mut firsts = Shared::<[u32]>::new_slice(units as usize);
    let mut moments = Shared::<[f32]>::new_slice(units as usize);
    let mut squares = Shared::<[f32]>::new_slice(units as usize);
    let mut totals = Shared::<[f32]>::new_slice(units as usize);
    maxima[unit] = found.max;
    sums[unit] = found.sum;
    if comptime!(statistics) {
        firsts[unit] = found.first;
        moments[unit] = found.moment;
        squares[unit] = found.squares;
        totals[unit] = found.total;
    }
    sync_cube();

    let steps = comptime!(units.ilog2());
    #[unroll]
    for step in 0..steps {
        let half = comptime!(units >> (step + 1)) as usize;
        if unit < half {
            let other = unit + half;
            let (mine, its) = (maxima[unit], maxima[other]);
            let top = max(mine, its);
            let left = (mine - top).exp();
            let right = (its - top).exp();
            if comptime!(statistics) {
                let floor = -1.0e4_f32;
                moments[unit] = left * (moments[unit] + max(mine - top, floor) * sums[unit])
                    + right * (moments[other] + max(its - top, floor) * sums[other]);
                squares[unit] = left * left * squares[unit] + right * right * squares[other];
                totals[unit] = totals[unit] + totals[other];
                if its > mine {
                    firsts[unit] = firsts[other];
                } else if its == mine {
                    firsts[unit] = min(firsts[unit], firsts[other]);
                }
            }
            sums[unit] = left * sums[unit] + right * sums[other];
            maxima[unit] = top;
        }
        sync_cube();
    }

    if unit == 0 {
        let target = usize::cast_from(targets[place]);
        let mut x = Vector::<f32, N>::cast_from(logits[from + target / width]);
        #[comptime]
        if let ComptimeOption::Some(bias) = &bias {
            x += Vector::<f32, N>::cast_from(bias[target / width]);
        }
        let x = shaped::<N>(x, inside, outside, scaled, capped);
        let at_target = x.extract_dynamic(target % width);
        let top = maxima[0];
        let log_sum = sums[0].ln();
        out[into] = (at_target - top) - log_sum;
        out[into + 1] = top;
        out[into + 2] = log_sum;
        if comptime!(statistics) {
            out[into + 3] = log_sum - moments[0] / sums[0];
            out[into + 4] = squares[0].ln() - log_sum - log_sum;
            let hit = firsts[0] == target as u32;
            // If a logit is NaN, the sum is NaN, and so is `log_sum`.
            let nan_or_0 = log_sum - log_sum;
            out[into + 5] = select(hit, 1.0_f32, 0.0_f32) + nan_or_0;
            out[into + 6] = totals[0] / f32::cast_from(vocab as u32);
        }
    }
}

/// Writes `(onehot − softmax)·grad·∂logit/∂x`. `output` may be the buffer of `logits`. Each cube
/// handles one stretch of a row. A row with a negative target gets zeros.
#[cube(launch, address_type = "dynamic")]
pub(super) fn turn_rows<L: Float, B: Float, O: Float, I: Int, N: Size>(
    logits: &Tensor<Vector<L, N>>,
    bias: ComptimeOption<&Tensor<Vector<B, N>>>,
    targets: &Tensor<I>,
    reduced: &Tensor<f32>,
    grad: &Tensor<f32>,
    output: &mut Tensor<Vector<O, N>>,
    inside: f32,
    outside: f32,
    factor: f32,
    bend: f32,
    first_row: u32,
    first_word: u32,
    #[comptime] scaled: bool,
    #[comptime] capped: bool,
    #[comptime] units: u32,
    #[comptime] turns: usize,
    #[define(L, B, O, I)] _dtypes: [ElemType; 4],
) {
    let row = CUBE_POS_Z as usize * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize;
    if row >= logits.shape(0) {
        terminate!();
    }
    let width = logits.vector_size();
    let vocab = logits.shape(1);
    let vectors = (vocab + width - 1) / width;
    let from = row * (logits.stride(0) / width);
    let into = row * (output.stride(0) / width);
    let place = first_row as usize + row;
    let counts = targets[place] >= I::new(0);
    let top = reduced[place * reduced.stride(0)];
    let log_sum = reduced[place * reduced.stride(0) + 1];
    let grad = grad[place] * factor;
    let target = usize::cast_from(targets[place]);
    let start = CUBE_POS_X as usize * (units as usize * turns) + UNIT_POS as usize;
    #[unroll]
    for turn in 0..turns {
        let vector = start + turn * units as usize;
        if vector < vectors {
            if counts {
                let mut x = Vector::<f32, N>::cast_from(logits[from + vector]);
                #[comptime]
                if let ComptimeOption::Some(bias) = &bias {
                    x += Vector::<f32, N>::cast_from(bias[vector]);
                }
                let x = shaped::<N>(x, inside, outside, scaled, capped);
                let softmax = ((x - Vector::new(top)) - Vector::new(log_sum)).exp();
                let mut delta = -(softmax * Vector::new(grad));
                #[unroll]
                for lane in 0..width {
                    if first_word as usize + vector * width + lane == target {
                        // Subtract in f32, before the result is rounded to the output type. If
                        // softmax is near 1, two rounded terms would lose the small difference.
                        delta.insert(lane, (1.0_f32 - softmax.extract(lane)) * grad);
                    }
                }
                if comptime!(capped) {
                    let bent = x * Vector::new(bend);
                    delta = delta - delta * (bent * bent);
                }
                output[into + vector] = Vector::cast_from(delta);
            } else {
                output[into + vector] = Vector::cast_from(Vector::<f32, N>::new(0.0_f32));
            }
        }
    }
}
