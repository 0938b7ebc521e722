use burn::tensor::{Bool, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::InvalidHyperparameter;
use crate::hyperparameter::{Choice, above_one, positive};
use crate::math::{logistic_loss, logsumexp, softplus};

/// Probability of a tie at a reward margin h: two generalisations of Bradley and Terry's model
/// (Chen et al., 2409.17431).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum TieModel {
    /// Rao and Kupper's, ν > 1, with a = ln ν: P(win) = σ(h − a),
    /// P(tie) = (ν² − 1)·σ(h − a)·σ(−h − a).
    RaoKupper(f64),
    /// Davidson's, ν > 0: P(win) = 1/(1 + e^(−h) + 2ν·e^(−h/2)), P(tie) = 2ν·e^(−h/2)·P(win).
    Davidson(f64),
}

impl TieModel {
    /// The losses −ln P(outcome) of the margins: the outcome is a tie where `tied` is true, otherwise
    /// a win.
    pub fn losses(&self, margin: Tensor<1>, tied: Tensor<1, Bool>) -> Tensor<1> {
        match *self {
            Self::RaoKupper(factor) => {
                let threshold = factor.ln();
                let win = logistic_loss(margin.clone() - threshold);
                let ties = (factor.powi(2) - 1.0).ln();
                let tie = win.clone() + softplus(margin + threshold) - ties;
                win.mask_where(tied, tie)
            }
            Self::Davidson(factor) => {
                // With e^(h/2) taken out of the denominator it is symmetric:
                // e^(h/2) + e^(−h/2) + 2ν.
                let half = margin * 0.5;
                let tie_weight = (2.0 * factor).ln();
                let constant = half.full_like(tie_weight);
                let terms = Tensor::stack::<2>(vec![half.clone(), -half.clone(), constant], 1);
                let normalizer = logsumexp(terms).squeeze_dim::<1>(1);
                let win = normalizer.clone() - half;
                win.mask_where(tied, normalizer - tie_weight)
            }
        }
    }
}

impl Choice for TieModel {
    fn check(&self) -> Result<(), InvalidHyperparameter> {
        match *self {
            Self::RaoKupper(factor) => above_one("tie_model.rao_kupper", factor),
            Self::Davidson(factor) => positive("tie_model.davidson", factor),
        }
    }
}
