use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::math::{log_sigmoid, sigmoid};

/// Distance of a reward margin h from the gap d that the scores ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum GapDistance {
    /// KL(Ber σ(d) ‖ Ber σ(h)).
    BackwardKl,
    /// KL(Ber σ(h) ‖ Ber σ(d)).
    ForwardKl,
    /// (h − d)².
    Squared,
}

impl GapDistance {
    /// The distances D(d, h), elementwise.
    pub fn losses<const D: usize>(&self, gap: Tensor<D>, margin: Tensor<D>) -> Tensor<D> {
        match self {
            Self::BackwardKl => bernoulli_kl(gap, margin),
            Self::ForwardKl => bernoulli_kl(margin, gap),
            Self::Squared => (margin - gap).square(),
        }
    }
}

/// KL(Ber σ(a) ‖ Ber σ(b)).
fn bernoulli_kl<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let side = |a: Tensor<D>, b: Tensor<D>| sigmoid(a.clone()) * (log_sigmoid(a) - log_sigmoid(b));
    side(a.clone(), b.clone()) + side(-a, -b)
}
