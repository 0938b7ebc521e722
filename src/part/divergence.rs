use std::f64::consts::LN_2;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::batch::{Pair, ReferencedPair};
use crate::error::InvalidHyperparameter;
use crate::hyperparameter::{Choice, positive};
use crate::math::{bounded_expm1, log_sigmoid};
use crate::part::Normalization;

/// Divergence that keeps the policy near the reference: a function g of the log-ratio ρ.
///
/// f-DPO (2309.16240) compares g(ρ) = f′(e^ρ) of the two completions instead of ρ. The constant
/// of f′ cancels in the difference; here it is chosen so that g(0) = 0, and rewards start at 0.
/// A g is for differences only: pointwise objectives must not take it. Exponents are clamped to 80,
/// so that f32 gradients stay finite; beyond that g is constant. (TRL clamps those of α-divergences
/// alone.)
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// Reverse KL: g = ρ, which is DPO.
    #[default]
    ReverseKl,
    /// Forward KL: g = 1 − e^(−ρ).
    ForwardKl,
    /// Jensen–Shannon: g = ln(2σ(ρ)).
    JensenShannon,
    /// α-divergence: g = (1 − e^(−αρ))/α. α → 0 is reverse KL, α = 1 forward KL.
    ///
    /// α > 0; the paper names (0, 1). TRL's `f_alpha_divergence_coef` is 1 − α.
    Alpha(f64),
    /// χ² mixed with KL, as in χPO (2407.13399): g = e^ρ − 1 + ρ.
    ChiSquared,
}

impl Divergence {
    /// The values g(ρ), elementwise.
    pub fn apply<const D: usize>(&self, log_ratio: Tensor<D>) -> Tensor<D> {
        match *self {
            Self::ReverseKl => log_ratio,
            Self::ForwardKl => -bounded_expm1(-log_ratio),
            Self::JensenShannon => log_sigmoid(log_ratio) + LN_2,
            // Its limit, to the last digit of f64, where the reciprocal could overflow f32.
            Self::Alpha(alpha) if alpha.abs() < 1e-20 => log_ratio,
            Self::Alpha(alpha) => bounded_expm1(log_ratio * -alpha) * -alpha.recip(),
            Self::ChiSquared => bounded_expm1(log_ratio.clone()) + log_ratio,
        }
    }

    /// The values g(ρ) of both sides of a pair, per sequence or divided by the length.
    pub fn compared(
        &self,
        batch: &ReferencedPair,
        normalization: Normalization,
    ) -> Pair<Tensor<1>> {
        batch.map_ref(|y| normalization.apply(self.apply(y.log_ratio()), y.policy()))
    }

    /// The margin of the rewards β·g(ρ) of a pair, and these rewards without autodiff.
    pub(crate) fn rewarded(
        &self,
        batch: &ReferencedPair,
        beta: f64,
    ) -> (Tensor<1>, Pair<Tensor<1>>) {
        let compared = batch.log_ratios().map(|rho| self.apply(rho));
        compared.rewarded(beta)
    }
}

impl Choice for Divergence {
    fn check(&self) -> Result<(), InvalidHyperparameter> {
        match *self {
            Self::Alpha(alpha) => positive("divergence.alpha", alpha),
            _ => Ok(()),
        }
    }
}
