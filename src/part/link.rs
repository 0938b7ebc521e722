use burn::tensor::{Tensor, activation::relu};
use serde::{Deserialize, Serialize};

use crate::math::{bounded_exp, sigmoid};

/// Function of the reward margin h that a [`GpoLoss`](crate::loss::GpoLoss) takes as its loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// e^(−h), its exponent clamped to 80.
    Exponential,
    /// ((1 − h)⁺)².
    SquaredHinge,
    /// σ(−h)², after Savage; not convex.
    Savage,
}

impl Link {
    /// The losses f(h), elementwise.
    pub fn losses<const D: usize>(&self, margin: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Exponential => bounded_exp(-margin),
            Self::SquaredHinge => relu(-margin + 1).square(),
            Self::Savage => sigmoid(-margin).square(),
        }
    }
}
