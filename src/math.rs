//! Elementwise numerics that keep both tails, for values and for gradients.
//!
//! Burn's own `log_sigmoid` rounds to 0 past z ≈ 17 in f32, its `sigmoid` goes through f32 on
//! some backends, and it has neither `expm1` nor `logsumexp`. A NaN that goes in comes out.
//!
//! On wgpu, `ln(1 + u)` is right to 1e-7 absolutely, not relatively: a loss of 1e-9 (or the
//! `ln(1 − eˣ)` of x = −20) may read 0 there. Its gradient keeps its digits.
//!
//! A trap for every objective: Burn 0.22.1 rounds the gradient of `tensor / scalar` to f32.
//! Multiply by the reciprocal instead.

use std::f64::consts::LN_2;

use burn::tensor::{Bool, DType, FloatDType, Tensor, activation};

/// Past this the exponential of a divergence would overflow f32 once it is multiplied by β and
/// squared in a gradient norm; it is also TRL's clamp.
const MAX_EXPONENT: f64 = 80.0;

/// Log-probabilities are clamped to at most −1e-30 where their complement is needed: the largest
/// value whose `1 − eˣ` is still a normal number in f32.
const MAX_LOG_PROB: f64 = -1e-30;

/// `value`, a function of each element of `x` whose derivative is `slope`: four steps for the
/// backward, however many the function takes. Where x is ±∞ and the slope is not 0, the value must
/// be x itself times a positive slope.
fn with_slope<const D: usize>(x: Tensor<D>, value: Tensor<D>, slope: Tensor<D>) -> Tensor<D> {
    if !x.is_tracked() {
        return value;
    }
    let here = x.clone().without_autodiff();
    let infinite = here.clone().is_inf();
    let level = infinite.clone().bool_and(slope.clone().equal_elem(0.0));
    // 0, or ±∞ where x is.
    let step = (x - here.mask_fill(infinite, 0.0)).mask_fill(level, 0.0);
    value + step * slope
}

/// `ln(1 + eˣ)`, exact to the last digit on both tails; its gradient at 0 is ½.
pub fn softplus<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    // Past 40, ln(1 + eˣ) = x in f64 already. Burn's default of 20 would cost f64 eight digits.
    activation::softplus_with_threshold(x, 1.0, 40.0)
}

/// `ln σ(x) = −softplus(−x)`.
pub fn log_sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    -softplus(-x)
}

/// `σ(x)`, with full relative precision where it is tiny.
pub fn sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    log_sigmoid(x).exp()
}

/// `eˣ`, constant (with gradient 0) for x > 80; ∞ for ∞.
pub fn bounded_exp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    exp_up_to(x, MAX_EXPONENT)
}

/// `eˣ`, constant (with gradient 0) for x > `max`; ∞ for ∞.
pub fn exp_up_to<const D: usize>(x: Tensor<D>, max: f64) -> Tensor<D> {
    let infinite = x.clone().equal_elem(f64::INFINITY);
    x.clamp_max(max).exp().mask_fill(infinite, f64::INFINITY)
}

/// `x²`, constant (with gradient 0) where it would overflow: past |x| = 1e18 in f32, 1e150 in f64.
/// ∞ for ±∞.
pub fn bounded_square<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let largest = if x.dtype() == DType::F64 { 1e150 } else { 1e18 };
    let infinite = x.clone().is_inf();
    let squared = x.clamp(-largest, largest).square();
    squared.mask_fill(infinite, f64::INFINITY)
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
    let here = x.clone().without_autodiff();
    let large = here.clone().abs().greater_elem(LN_2);
    let constant = here.clone().greater_elem(MAX_EXPONENT);
    let power = bounded_exp(here.clone());
    let near_zero = small_expm1(here.clamp(-LN_2, LN_2));
    let value = near_zero.mask_where(large, power.clone() - 1);
    with_slope(x, value, power.mask_fill(constant, 0.0))
}

/// `ln(1 − eˣ)` for x < 0, with its digits at both ends: −eˣ far from 0, ln(−x) near it. The input
/// is clamped to at most −1e-30 (there the gradient is 0); NaN for ∞.
pub fn log1mexp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let (below, constant) = below_zero(x.clone().without_autodiff());
    let value = complement(below.clone());
    // −eˣ/(1 − eˣ)
    let slope = -(below - value.clone()).exp();
    with_slope(x, value, slope.mask_fill(constant, 0.0))
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
    let (below, constant) = below_zero(x.clone().without_autodiff());
    let complement = complement(below.clone());
    // 1/(1 − eˣ)
    let slope = (-complement.clone()).exp();
    with_slope(x, below - complement, slope.mask_fill(constant, 0.0))
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
