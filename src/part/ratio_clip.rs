use burn::tensor::{Bool, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::InvalidHyperparameter;
use crate::hyperparameter::{Choice, above_one};

/// Clip of a policy that has moved away from its sampler: w is the ratio π/μ, A the advantage, and
/// clip(w) = clamp(w, 1 − ε_low, 1 + ε_high).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum RatioClip {
    /// The smaller one of two objectives, min(w·A, clip(w)·A): PPO, GRPO. A token that has gone far
    /// enough in its direction has no gradient; one that went in the wrong direction has.
    #[default]
    Objective,
    /// The same with at most δ > 1 for the first w, min(min(w, δ)·A, clip(w)·A): TRL's `delta`
    /// (INTELLECT-2, 2505.07291). A bad token whose ratio exploded has no gradient, either. Take δ
    /// above 1 + ε_high: below, good tokens are clipped at δ.
    TwoSided(f64),
    /// The weight of the token's likelihood, clip(w)·A·ln π(y_t), through which no gradient flows:
    /// CISPO (MiniMax-M1, 2506.13585). Every token keeps a gradient. TRL clips from above alone:
    /// ε_low = 1, and its `epsilon_high`, 5 by advice, is 1 + ε_high.
    Weight,
}

impl RatioClip {
    /// Objective of each token, which the policy is to make large: `[batch, time − 1]`, or
    /// `[batch, 1]` where the ratio is one of a completion and its weight is not what is clipped.
    pub fn objective(
        &self,
        ratios: Tensor<2>,
        [low, high]: [f64; 2],
        advantages: Tensor<2>,
        log_probs: Tensor<2>,
    ) -> Tensor<2> {
        let clipped = ratios.clone().clamp(1.0 - low, 1.0 + high);
        match *self {
            Self::Objective => (ratios * advantages.clone()).min_pair(clipped * advantages),
            Self::TwoSided(delta) => {
                (ratios.clamp_max(delta) * advantages.clone()).min_pair(clipped * advantages)
            }
            Self::Weight => clipped.without_autodiff() * advantages * log_probs,
        }
    }

    /// Marks of the ratios that are clipped from below and from above. Of the first two, those are
    /// ratios without a gradient: below for a negative advantage, above for a positive one.
    pub fn clipped(
        &self,
        ratios: &Tensor<2>,
        [low, high]: [f64; 2],
        advantages: &Tensor<2>,
    ) -> [Tensor<2, Bool>; 2] {
        let below = ratios.clone().lower_elem(1.0 - low);
        let above = ratios.clone().greater_elem(1.0 + high);
        match self {
            Self::Weight => [below, above],
            Self::Objective | Self::TwoSided(_) => {
                let advantages = advantages.clone().expand(ratios.shape());
                let worse = advantages.clone().lower_elem(0.0);
                let better = advantages.greater_elem(0.0);
                [below.bool_and(worse), above.bool_and(better)]
            }
        }
    }
}

impl Choice for RatioClip {
    fn check(&self) -> Result<(), InvalidHyperparameter> {
        match *self {
            Self::Objective | Self::Weight => Ok(()),
            Self::TwoSided(delta) => above_one("clip.two_sided", delta),
        }
    }
}
