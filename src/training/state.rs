//! Statistics of more than one batch that an objective depends on: values that you hold.
//!
//! [`KlEstimate`] is of one step: its micro-batches and its workers. [`RunningMean`] and
//! [`MovingAverage`] are of all steps so far: plain numbers on the host, so they can be saved with
//! a checkpoint, merged over workers and fed from the metrics of a step. A file with wrong numbers
//! is an error where it is read. Update them once per optimiser step, not per micro-batch:
//!
//! ```
//! use burn::tensor::Device;
//! use burn_preference::Metrics;
//! use burn_preference::training::state::RunningMean;
//!
//! let mut delta = RunningMean::default();
//! let mut step = Metrics::default(); // of all micro-batches and workers of one step
//! step.add("rewards/chosen", 0.6, 2.0);
//! step.add("rewards/rejected", -0.2, 2.0);
//! delta.observe_rewards(&step);
//! assert!((delta.mean() - 0.1).abs() < 1e-12);
//! let shift = delta.tensor(&Device::default()); // for `WithShift::new`
//! # assert_eq!(shift.dims(), [1]);
//! ```

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::InvalidHyperparameter;
use crate::hyperparameter::{fraction, non_negative};
use crate::log_probs::RelativeLogProbs;
use crate::training::metrics::Metrics;
use crate::training::reducer::{ReduceError, Reducer};

/// KTO's z₀, estimated on *mismatched* completions: each prompt with another prompt's completion.
///
/// ```text
/// z₀ = max(0, mean ρ)
/// ```
///
/// Sum and count stay apart until [`baseline`](Self::baseline), because over several devices or
/// micro-batches the global mean comes first and the maximum after it. Both are without autodiff.
#[derive(Debug, Clone)]
pub struct KlEstimate {
    sum: Tensor<1>,
    count: Tensor<1>,
}

impl KlEstimate {
    /// The estimate from mismatched completions; an empty one counts with ρ = 0.
    pub fn from_mismatched(log_probs: &RelativeLogProbs) -> Self {
        let log_ratio = log_probs.log_ratio().without_autodiff();
        let count = log_ratio.ones_like().sum_dim(0);
        Self {
            sum: log_ratio.sum_dim(0),
            count,
        }
    }

    /// The estimate of no completions, on `device`: of a worker that has none in this step.
    pub fn of_nothing(device: &Device) -> Self {
        let zero = Tensor::zeros([1], device);
        Self {
            sum: zero.clone(),
            count: zero,
        }
    }

    /// The estimate over both parts.
    pub fn merge(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            count: self.count + other.count,
        }
    }

    /// The estimate over all workers.
    ///
    /// # Errors
    ///
    /// The workers do not come together.
    pub fn reduced(self, reducer: &dyn Reducer) -> Result<Self, ReduceError> {
        let both = reducer.sum(Tensor::cat(vec![self.sum, self.count], 0))?;
        Ok(Self {
            sum: both.clone().narrow(0, 0, 1),
            count: both.narrow(0, 1, 1),
        })
    }

    /// The reference point z₀, `[1]`, nats; 0 where nothing was counted.
    pub fn baseline(&self) -> Tensor<1> {
        (self.sum.clone() / self.count.clone().clamp_min(1.0)).clamp_min(0.0)
    }
}

fn scalar(value: f64, device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::from([value]), device)
}

/// The mean of all values so far: BCO's δ, which is the mean of all rewards.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "RunningMeanFields")]
pub struct RunningMean {
    sum: f64,
    count: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RunningMeanFields {
    sum: f64,
    count: f64,
}

impl TryFrom<RunningMeanFields> for RunningMean {
    type Error = InvalidHyperparameter;

    fn try_from(RunningMeanFields { sum, count }: RunningMeanFields) -> Result<Self, Self::Error> {
        non_negative("count", count)?;
        Ok(Self { sum, count })
    }
}

impl RunningMean {
    /// Adds `count` values with the given sum.
    pub fn update(&mut self, sum: f64, count: f64) {
        self.sum += sum;
        self.count += count;
    }

    /// Adds the rewards of both sides of a step's metrics.
    pub fn observe_rewards(&mut self, metrics: &Metrics) {
        for key in ["rewards/chosen", "rewards/rejected"] {
            let count = metrics.count(key);
            self.update(metrics.get(key).unwrap_or(0.0) * count, count);
        }
    }

    /// Adds the values of another worker.
    pub fn merge(&mut self, other: &Self) {
        self.update(other.sum, other.count);
    }

    /// The mean so far; 0 before the first value.
    pub fn mean(&self) -> f64 {
        if self.count > 0.0 {
            self.sum / self.count
        } else {
            0.0
        }
    }

    /// The mean as a `[1]` column.
    pub fn tensor(&self, device: &Device) -> Tensor<1> {
        scalar(self.mean(), device)
    }
}

/// An exponential moving average: β-DPO's M₀ of the mean Δ in nats, which is the metric
/// `rewards/margins` divided by β.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "MovingAverageFields")]
pub struct MovingAverage {
    value: f64,
    momentum: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MovingAverageFields {
    value: f64,
    momentum: f64,
}

impl TryFrom<MovingAverageFields> for MovingAverage {
    type Error = InvalidHyperparameter;

    fn try_from(fields: MovingAverageFields) -> Result<Self, Self::Error> {
        let value = fields.value;
        Ok(Self {
            value,
            ..Self::new(fields.momentum)?
        })
    }
}

impl MovingAverage {
    /// The average at its start, 0; `momentum` ∈ \[0, 1\] is the share that stays at each update (0.9 in β-DPO).
    ///
    /// # Errors
    ///
    /// `momentum` is outside \[0, 1\].
    pub fn new(momentum: f64) -> Result<Self, InvalidHyperparameter> {
        fraction("momentum", momentum)?;
        Ok(Self {
            value: 0.0,
            momentum,
        })
    }

    /// Takes the mean of a batch in: value ← momentum·value + (1 − momentum)·`batch_mean`. Over
    /// several workers, give the mean of all of them.
    pub fn update(&mut self, batch_mean: f64) {
        self.value = self.momentum * self.value + (1.0 - self.momentum) * batch_mean;
    }

    /// The average so far.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// The average as a `[1]` column.
    pub fn tensor(&self, device: &Device) -> Tensor<1> {
        scalar(self.value, device)
    }
}
