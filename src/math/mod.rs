//! Elementwise numerics that keep both tails, for values and for gradients.
//!
//! Burn's own `log_sigmoid` rounds to 0 past z ≈ 17 in f32, its `sigmoid` goes through f32 on
//! some backends, and it has neither `expm1` nor `logsumexp`. A NaN that goes in comes out.
//!
//! A function of one number is one operation on Burn's tape, whatever it takes. On Flex those that
//! most losses are made of are one pass over memory in f32.
//!
//! On wgpu, `ln(1 + u)` is right to 1e-7 absolutely, not relatively: a loss of 1e-9 (or the
//! `ln(1 − eˣ)` of x = −20) may read 0 there. Its gradient keeps its digits.
//!
//! A trap for every objective: Burn 0.22.1 rounds the gradient of `tensor / scalar` to f32.
//! Multiply by the reciprocal instead.

#[cfg(feature = "flex")]
mod flex;
mod function;

use std::f64::consts::LN_2;
#[cfg(feature = "flex")]
use std::ops::ControlFlow;

use burn::tensor::{Bool, DType, FloatDType, Tensor};

use crate::kernel::with_slope;
use function::{Function, MAX_LOG_PROB, MAX_SQUARED};

/// Past this the exponential of a divergence would overflow f32 once it is multiplied by β and
/// squared in a gradient norm; it is also TRL's clamp.
const MAX_EXPONENT: f64 = 80.0;

/// A function of each element of `x`: one node on the tape, whatever it takes. `steps` computes its
/// value, and its slope if there is a gradient, from x without autodiff. Flex may know a faster way.
fn one_node<const D: usize, S: FnOnce() -> Tensor<D>>(
    x: Tensor<D>,
    function: Option<Function>,
    steps: impl FnOnce(Tensor<D>) -> (Tensor<D>, S),
) -> Tensor<D> {
    #[cfg(feature = "flex")]
    let x = match function {
        None => x,
        Some(function) => match flex::apply(function, x) {
            ControlFlow::Break(value) => return value,
            ControlFlow::Continue(x) => x,
        },
    };
    #[cfg(not(feature = "flex"))]
    let _ = function;
    let (value, slope) = steps(x.clone().without_autodiff());
    if x.is_tracked() {
        with_slope(x, value, slope())
    } else if x.is_autodiff() {
        value.autodiff()
    } else {
        value
    }
}

/// `ln(1 + eˣ)`, and eˣ up to where the two are the same.
fn softplus_and_power<const D: usize>(x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
    // Past 40, ln(1 + eˣ) = x in f64 already. In half precision it is so past 11, where eˣ overflows.
    let bound = match x.dtype() {
        DType::F16 | DType::Flex32 => 11.0,
        _ => 40.0,
    };
    let above = x.clone().greater_elem(bound);
    let power = x.clone().clamp_max(bound).exp();
    (power.clone().log1p().mask_where(above, x), power)
}

/// e/(1 + e)
fn share<const D: usize>(e: Tensor<D>) -> Tensor<D> {
    (e.clone() + 1).recip() * e
}

/// `ln(1 + eˣ)`, exact to the last digit on both tails; its gradient at 0 is ½.
pub fn softplus<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    one_node(x, Some(Function::Softplus), |x| {
        let (value, power) = softplus_and_power(x);
        (value, || share(power))
    })
}

/// `−ln σ(h) = ln(1 + e^(−h))`, the loss of a margin h, exact to the last digit on both tails.
pub fn logistic_loss<const D: usize>(margin: Tensor<D>) -> Tensor<D> {
    one_node(margin, Some(Function::LogisticLoss), |h| {
        let (value, power) = softplus_and_power(-h);
        (value, || -share(power))
    })
}

/// `ln σ(x)`, exact to the last digit on both tails.
pub fn log_sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    -logistic_loss(x)
}

/// `σ(x)`, with full relative precision where it is tiny.
pub fn sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    one_node(x, Some(Function::Sigmoid), |x| {
        let (value, power) = softplus_and_power(-x);
        let value = (-value).exp();
        (value.clone(), || value * share(power))
    })
}

/// `eˣ`, constant (with gradient 0) for x > 80; ∞ for ∞.
pub fn bounded_exp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    exp_up_to(x, MAX_EXPONENT)
}

/// `eˣ`, constant (with gradient 0) for x > `max`; ∞ for ∞.
pub fn exp_up_to<const D: usize>(x: Tensor<D>, max: f64) -> Tensor<D> {
    one_node(x, None, |x| {
        let infinite = x.clone().equal_elem(f64::INFINITY);
        let power = x.clone().clamp_max(max).exp();
        let value = power.clone().mask_fill(infinite, f64::INFINITY);
        (value, move || power.mask_fill(x.greater_elem(max), 0.0))
    })
}

/// `x²`, constant (with gradient 0) where it would overflow: past |x| = 1e18 in f32, 1e150 in f64.
/// ∞ for ±∞.
pub fn bounded_square<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    one_node(x, Some(Function::BoundedSquare), |x| {
        let double = x.dtype() == DType::F64;
        let largest = if double { 1e150 } else { MAX_SQUARED };
        let infinite = x.clone().is_inf();
        let squared = x.clone().clamp(-largest, largest).square();
        let value = squared.mask_fill(infinite, f64::INFINITY);
        let slope = move || {
            let held = x.clone().abs().greater_elem(largest);
            (x * 2).mask_fill(held, 0.0)
        };
        (value, slope)
    })
}

/// `eˣ − 1 = tanh(x/2)·(eˣ + 1)` for |x| ≤ ln 2, without cancellation.
///
/// The tangent is the Padé approximant of degree 7 over 6, which is right to 1e-16 there. Shading
/// languages have no digits of it near 0: WGSL's is −3e-8 at 1e-30.
fn small_expm1<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    const NUMERATOR: [f64; 4] = [1.0, 378.0, 17_325.0, 135_135.0];
    const DENOMINATOR: [f64; 4] = [28.0, 3150.0, 62_370.0, 135_135.0];
    let half = x.clone() * 0.5;
    let square = half.clone().square();
    let horner = |[a, b, c, d]: [f64; 4]| {
        ((square.clone() * a + b) * square.clone() + c) * square.clone() + d
    };
    let tanh = half * horner(NUMERATOR) / horner(DENOMINATOR);
    tanh * (x.exp() + 1)
}

/// `eˣ − 1`, without cancellation near 0; constant for x > 80, ∞ for ∞. Its gradient is `eˣ` to the
/// last digit on both tails.
pub fn bounded_expm1<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    one_node(x, None, |x| {
        let large = x.clone().abs().greater_elem(LN_2);
        let constant = x.clone().greater_elem(MAX_EXPONENT);
        let power = bounded_exp(x.clone());
        let near_zero = small_expm1(x.clamp(-LN_2, LN_2));
        let value = near_zero.mask_where(large, power.clone() - 1);
        (value, || power.mask_fill(constant, 0.0))
    })
}

/// `eˣ − 1 − x`, without cancellation near 0; constant for x > `max`, ∞ for ∞. Its gradient is
/// `eˣ − 1`.
pub(crate) fn exp_excess<const D: usize>(x: Tensor<D>, max: f64) -> Tensor<D> {
    /// Terms of Σ xⁿ/n!, n ≥ 2, that f64 sees for |x| ≤ ln 2.
    const TERMS: i32 = 17;
    one_node(x, None, |x| {
        let infinite = x.clone().equal_elem(f64::INFINITY);
        let held = x.clone().greater_elem(max);
        let x = x.clamp_max(max).mask_fill(infinite, f64::INFINITY);
        let large = x.clone().abs().greater_elem(LN_2);
        let slope = bounded_expm1(x.clone());
        let small = x.clone().clamp(-LN_2, LN_2);
        // 1/2! + x/3!·(1 + x/4·(1 + …)), from the inside.
        let mut series = small.ones_like();
        for n in (3..=TERMS).rev() {
            series = series * small.clone() * f64::from(n).recip() + 1;
        }
        let near_zero = series * small.square() * 0.5;
        let value = near_zero.mask_where(large, slope.clone() - x.clone());
        let value = value.mask_fill(x.equal_elem(f64::INFINITY), f64::INFINITY);
        (value, || slope.mask_fill(held, 0.0))
    })
}

/// `ln(1 − eˣ)` for x < 0, with its digits at both ends: −eˣ far from 0, ln(−x) near it. The input
/// is clamped to at most −1e-30 (there the gradient is 0); NaN for ∞.
pub fn log1mexp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    one_node(x, None, |x| {
        let (below, constant) = below_zero(x);
        let value = complement(below.clone());
        let slope = {
            let value = value.clone();
            // −eˣ/(1 − eˣ)
            move || (-(below - value).exp()).mask_fill(constant, 0.0)
        };
        (value, slope)
    })
}

/// `ln(1 − eˣ)` for x ≤ −1e-30.
fn complement<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    // Where eˣ = ½: on either side the other form would cancel.
    let far = x.clone().lower_elem(-LN_2);
    let near_zero = (-small_expm1(x.clone().clamp_min(-LN_2))).log();
    near_zero.mask_where(far, (-x.clamp_max(-LN_2).exp()).log1p())
}

/// The log-odds `ln(p / (1 − p))` of a log-probability x = ln p; NaN for x = ∞.
pub fn log_odds<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    one_node(x, Some(Function::LogOdds), |x| {
        let (below, constant) = below_zero(x);
        let complement = complement(below.clone());
        let value = below - complement.clone();
        // 1/(1 − eˣ)
        let slope = || (-complement).exp().mask_fill(constant, 0.0);
        (value, slope)
    })
}

/// At most −1e-30, and where it was more. Rounding may put a certain completion a little above 0,
/// but never at ∞.
fn below_zero<const D: usize>(x: Tensor<D>) -> (Tensor<D>, Tensor<D, Bool>) {
    let infinite = x.clone().equal_elem(f64::INFINITY);
    let constant = x.clone().greater_elem(MAX_LOG_PROB);
    let below = x.clamp_max(MAX_LOG_PROB).mask_fill(infinite, f64::NAN);
    (below, constant)
}

/// Half-precision values to f32; f32 and f64 as they are.
pub(crate) fn upcast<const D: usize>(values: Tensor<D>) -> Tensor<D> {
    match values.dtype() {
        DType::F64 | DType::F32 => values,
        _ => values.cast(FloatDType::F32),
    }
}

/// Σ of each row. Long rows in blocks of about √columns: in f32, a million numbers added one by
/// one lose four digits.
pub(crate) fn sum_columns(x: Tensor<2>) -> Tensor<1> {
    const SHORT: usize = 256;
    let [rows, columns] = x.dims();
    if columns <= SHORT {
        return x.sum_dim(1).squeeze_dim(1);
    }
    let blocks = columns.isqrt();
    let block = columns.div_ceil(blocks);
    let padding = Tensor::zeros([rows, blocks * block - columns], (&x.device(), x.dtype()));
    let blocks = Tensor::cat(vec![x, padding], 1).reshape([rows, blocks, block]);
    blocks.sum_dim(2).sum_dim(1).reshape([rows])
}

/// Whether any element of the last dimension is true; it is kept with size 1.
pub(crate) fn any_of_row<const D: usize>(mask: Tensor<D, Bool>) -> Tensor<D, Bool> {
    // Not `any_dim`, which panics on Flex where there is no row.
    mask.int().sum_dim(D - 1).greater_elem(0)
}

/// `ln Σ eˣ` over the last dimension, which is kept with size 1.
pub fn logsumexp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let max = x.clone().without_autodiff().max_dim(D - 1);
    (x - max.clone()).exp().sum_dim(D - 1).log() + max
}

/// [`logsumexp`] over those elements that `mask` marks; a row without any gives 0.
pub(crate) fn logsumexp_where<const D: usize>(x: Tensor<D>, mask: Tensor<D, Bool>) -> Tensor<D> {
    let none = any_of_row(mask.clone()).bool_not();
    // −∞ everywhere would be NaN: such a row becomes ln Σ over nothing but zeros, and then 0.
    let masked = x
        .mask_fill(mask.clone().bool_not(), f64::NEG_INFINITY)
        .mask_fill(none.clone().expand(mask.shape()), 0.0);
    logsumexp(masked).mask_fill(none, 0.0)
}

/// `ln(1 + Σ eˣ)` over those elements of the last dimension that `mask` marks, with its digits and
/// those of its gradient where all are far below 0; the dimension is kept with size 1.
pub(crate) fn log1p_sum_exp_where<const D: usize>(
    x: Tensor<D>,
    mask: Tensor<D, Bool>,
) -> Tensor<D> {
    let x = x.mask_fill(mask.bool_not(), f64::NEG_INFINITY);
    let max = x.clone().without_autodiff().max_dim(D - 1).clamp_min(0.0);
    let sum = (x - max.clone()).exp().sum_dim(D - 1);
    // 0 where `max` is.
    let one = (-max.clone()).exp() - 1;
    (sum + one).log1p() + max
}

/// `ln softmax(x)` over those elements of the last dimension that `mask` marks; 0 elsewhere.
pub(crate) fn log_softmax_where<const D: usize>(x: Tensor<D>, mask: Tensor<D, Bool>) -> Tensor<D> {
    let x = x.mask_fill(mask.clone().bool_not(), 0.0);
    let normalizer = logsumexp_where(x.clone(), mask.clone());
    (x - normalizer).mask_fill(mask.bool_not(), 0.0)
}
