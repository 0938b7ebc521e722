use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::batch::{GroupedReward, Samples};
use crate::error::InvalidHyperparameter;
use crate::hyperparameter::{Choice, positive};

/// Advantage of a sample over the others of its group: r is its reward, r̄ the mean of the group's n
/// rewards, and ε a number > 0 that keeps the quotient finite.
///
/// All rewards of a group equal: the advantages are 0, and the group teaches nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum Advantage {
    /// (r − r̄)/(s + ε), s the standard deviation of the group, with n − 1: GRPO (Shao et al.,
    /// 2402.03300). The paper has no ε, and does not say which deviation; TRL takes this one, and
    /// ε = 1e-4.
    Normalized(f64),
    /// (r − r̄)/(s + ε), s the standard deviation of all rewards of the step, with n − 1: TRL's
    /// `scale_rewards="batch"` (Liu et al., 2508.08221).
    NormalizedByAll(f64),
    /// r − r̄: Dr. GRPO (Liu et al., 2503.20783). A group that is nearly always right, or wrong, does
    /// not weigh more than others.
    Centered,
    /// r minus the mean of the other samples, (r − r̄)·n/(n − 1): RLOO (Ahmadian et al., 2402.14740).
    LeaveOneOut,
}

impl Advantage {
    /// The advantage of a sample.
    pub fn of(&self, reward: &GroupedReward) -> f64 {
        let deviation = reward.deviation();
        match *self {
            Self::Normalized(epsilon) => deviation / (reward.std() + epsilon),
            Self::NormalizedByAll(epsilon) => deviation / (reward.std_of_all() + epsilon),
            Self::Centered => deviation,
            Self::LeaveOneOut => deviation * reward.size() as f64 / (reward.size() - 1) as f64,
        }
    }

    /// The advantages of a batch, `[batch, 1]`.
    pub fn column<L>(&self, samples: &Samples<L>) -> Tensor<2> {
        samples.column(|reward| self.of(reward))
    }
}

impl Choice for Advantage {
    fn check(&self) -> Result<(), InvalidHyperparameter> {
        match *self {
            Self::Normalized(epsilon) => positive("advantage.normalized", epsilon),
            Self::NormalizedByAll(epsilon) => positive("advantage.normalized_by_all", epsilon),
            Self::Centered | Self::LeaveOneOut => Ok(()),
        }
    }
}
