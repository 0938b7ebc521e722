//! Elementwise numerics that keep both tails, for values and for gradients.
//!
//! Burn's own `log_sigmoid` rounds to 0 past z ≈ 17 in f32, its `sigmoid` goes through f32 on
//! some backends, and it has neither `expm1` nor `logsumexp`. A NaN that goes in comes out.
//!
//! A trap for every objective: Burn 0.22.1 rounds the gradient of `tensor / scalar` to f32.
//! Multiply by the reciprocal instead.

use burn::tensor::{Bool, DType, Tensor, activation};

/// Past this the exponential of a divergence would overflow f32 once it is multiplied by β and
/// squared in a gradient norm; it is also TRL's clamp.
const MAX_EXPONENT: f64 = 80.0;

/// Log-probabilities are clamped to at most −1e-30 where their complement is needed: the largest
/// value whose `1 − eˣ` is still a normal number in f32.
const MAX_LOG_PROB: f64 = -1e-30;

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

/// `eˣ`, constant (with gradient 0) for x > 80.
pub fn bounded_exp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clamp_max(MAX_EXPONENT).exp()
}

/// `x²`, constant (with gradient 0) where it would overflow: past |x| = 1e18 in f32, 1e150 in f64.
pub fn bounded_square<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let largest = if x.dtype() == DType::F64 { 1e150 } else { 1e18 };
    x.clamp(-largest, largest).square()
}

/// `eˣ − 1 = tanh(x/2)·(eˣ + 1)`, without cancellation near 0; constant for x > 80.
pub fn bounded_expm1<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let x = x.clamp_max(MAX_EXPONENT);
    (x.clone() * 0.5).tanh() * (x.exp() + 1)
}

/// `ln(1 − eˣ)` for x < 0, as `ln(−2t/(1 − t))` with `t = tanh(x/2)`: no cancellation at either
/// end and no branch. The input is clamped to at most −1e-30 (there the gradient is 0).
pub fn log1mexp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let t = (x.clamp_max(MAX_LOG_PROB) * 0.5).tanh();
    (t.clone() * -2 / (-t + 1)).log()
}

/// The log-odds `ln(p / (1 − p))` of a log-probability x = ln p.
pub fn log_odds<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let x = x.clamp_max(MAX_LOG_PROB);
    x.clone() - log1mexp(x)
}

/// `ln Σ eˣ` over the last dimension, which is kept with size 1.
pub fn logsumexp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let max = x.clone().without_autodiff().max_dim(D - 1);
    (x - max.clone()).exp().sum_dim(D - 1).log() + max
}

/// [`logsumexp`] over those elements that `mask` marks; a row without any gives 0.
pub fn logsumexp_where<const D: usize>(x: Tensor<D>, mask: Tensor<D, Bool>) -> Tensor<D> {
    let none = mask.clone().any_dim(D - 1).bool_not();
    // −∞ everywhere would be NaN: such a row becomes ln Σ over nothing but zeros, and then 0.
    let masked = x
        .mask_fill(mask.clone().bool_not(), f64::NEG_INFINITY)
        .mask_fill(none.clone().expand(mask.shape()), 0.0);
    logsumexp(masked).mask_fill(none, 0.0)
}

/// `ln softmax(x)` over those elements of the last dimension that `mask` marks; 0 elsewhere.
pub fn log_softmax_where<const D: usize>(x: Tensor<D>, mask: Tensor<D, Bool>) -> Tensor<D> {
    let x = x.mask_fill(mask.clone().bool_not(), 0.0);
    let normalizer = logsumexp_where(x.clone(), mask.clone());
    (x - normalizer).mask_fill(mask.bool_not(), 0.0)
}
