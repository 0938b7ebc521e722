//! The learning rate of a step.

use serde::{Deserialize, Serialize};

/// The course of the learning rate behind the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine, to 0 behind the last step.
    Cosine,
    /// A straight line, to 0 behind the last step.
    Linear,
    /// The same rate to the end.
    Constant,
}

impl Schedule {
    /// Returns the factor of the rate in `step`, from 1 to `steps`, of which the first `warm_up`
    /// rise to 1 in equal parts. A function of the step alone: a run that goes on needs no state.
    pub fn factor(self, step: usize, steps: usize, warm_up: usize) -> f64 {
        // The first step with the whole rate.
        let peak = warm_up.max(1);
        if step < peak {
            return step as f64 / peak as f64;
        }
        let done = (step - peak) as f64 / (steps - peak + 1) as f64;
        match self {
            Self::Cosine => f64::midpoint(1.0, (std::f64::consts::PI * done).cos()),
            Self::Linear => 1.0 - done,
            Self::Constant => 1.0,
        }
    }
}
