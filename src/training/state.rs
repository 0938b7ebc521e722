//! Statistics of many batches that an objective depends on: values that you hold.
//!
//! They are plain numbers on the host, so they can be saved with a checkpoint, merged over workers
//! and fed from the metrics of a step; what a file says is checked where it is read. Update them
//! once per optimiser step, not per micro-batch:
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
use crate::training::metrics::Metrics;

fn scalar(value: f64, device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::from([value]), device)
}

/// The mean of everything seen: BCO's δ, the mean of all rewards so far.
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

    /// Adds what another worker has seen.
    pub fn merge(&mut self, other: &Self) {
        self.update(other.sum, other.count);
    }

    /// The mean; 0 before the first value.
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
    /// Starts at 0; `momentum` ∈ \[0, 1\] is the share that stays at each update (0.9 in β-DPO).
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

    /// value ← momentum·value + (1 − momentum)·`batch_mean`. Over several workers, give the mean
    /// of all of them.
    pub fn update(&mut self, batch_mean: f64) {
        self.value = self.momentum * self.value + (1.0 - self.momentum) * batch_mean;
    }

    /// The average.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// The average as a `[1]` column.
    pub fn tensor(&self, device: &Device) -> Tensor<1> {
        scalar(self.value, device)
    }
}
