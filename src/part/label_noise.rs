use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::InvalidHyperparameter;
use crate::hyperparameter::{Choice, noise_rate};
use crate::math::logistic_loss;

/// Assumption about flipped preference labels, in a logistic loss of the reward margin h.
///
/// All three use ln σ(−h) = ln σ(h) − h, so that only one logarithm is taken.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum LabelNoise {
    /// Labels are right: −ln σ(h).
    #[default]
    Clean,
    /// Label smoothing at rate ε ∈ [0, 0.5), cDPO (E. Mitchell's note):
    /// −(1−ε)·ln σ(h) − ε·ln σ(−h) = −ln σ(h) + ε·h.
    Conservative(f64),
    /// Unbiased under flips at rate ε ∈ [0, 0.5), robust DPO (2403.00409):
    /// \[−(1−ε)·ln σ(h) + ε·ln σ(−h)\]/(1−2ε) = −ln σ(h) − ε/(1−2ε)·h. May be negative.
    Robust(f64),
}

impl LabelNoise {
    /// The losses of the margins, elementwise.
    pub fn losses<const D: usize>(&self, margin: Tensor<D>) -> Tensor<D> {
        let clean = logistic_loss(margin.clone());
        match *self {
            Self::Clean => clean,
            Self::Conservative(rate) => clean + margin * rate,
            Self::Robust(rate) => clean - margin * (rate / (1.0 - 2.0 * rate)),
        }
    }

    /// The losses of margins whose labels are right with probability p, elementwise:
    /// p·loss(h) + (1 − p)·loss(−h).
    pub fn graded_losses<const D: usize>(
        &self,
        margin: Tensor<D>,
        win_probability: Tensor<D>,
    ) -> Tensor<D> {
        let (win, loss) = (self.losses(margin.clone()), self.losses(-margin));
        // 0·∞ is nothing: a certain label at an infinite margin is the plain loss.
        let win = win.mask_fill(win_probability.clone().equal_elem(0.0), 0.0);
        let loss = loss.mask_fill(win_probability.clone().equal_elem(1.0), 0.0);
        win * win_probability.clone() + loss * (-win_probability + 1)
    }
}

impl Choice for LabelNoise {
    fn check(&self) -> Result<(), InvalidHyperparameter> {
        match *self {
            Self::Clean => Ok(()),
            Self::Conservative(rate) => noise_rate("label_noise.conservative", rate),
            Self::Robust(rate) => noise_rate("label_noise.robust", rate),
        }
    }
}
