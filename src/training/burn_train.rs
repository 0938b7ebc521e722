//! burn-train around an objective: the item that a step returns, and metrics of it.
//!
//! ```text
//! TrainStep::step ─→ PreferenceItem: one small tensor on the device ─→ StatMetric, LossMetric
//! ```
//!
//! A step returns a [`PreferenceItem`]; burn-train's metric thread reads it back, once, however
//! many metrics look at it. Register Burn's own `LossMetric` for the loss (its name is the one that
//! the default checkpoint strategy looks for) and a [`StatMetric`] per key of
//! [`metrics`](crate::training::metrics):
//!
//! ```text
//! SupervisedTraining::new(directory, train, valid)
//!     .metrics((
//!         LossMetric::new(),
//!         StatMetric::new("rewards/accuracies"),
//!         StatMetric::new("rewards/margins"),
//!     ))
//! ```
//!
//! The examples `supervised` and `supervised_kto` are whole programs. Means are weighted by what
//! they count: an epoch's accuracy is that of all its pairs, whatever the batches.
//!
//! Three habits of burn-train 0.22 that a run must know:
//!
//! - **`launch` returns a model also when the run failed**: that of the last step before. The reason
//!   is in [`LearningResult::error`](burn::train::LearningResult::error) alone: a row that cannot be
//!   read, a metric that is not there, a worker under `multi` that panics. Look at it before you use
//!   the model. On one device a panic of the step goes through.
//! - **`grads_accumulation(n)` sums** the gradients of `n` batches, as `multi` sums those of its
//!   workers. Of means it makes a step n times as large; clipping and AdamW's moments see it so. Give
//!   each batch its share by [`LossOutput::normalized_by`] the number of examples of all of them.
//! - **`ddp` reduces as its config says**: with `ReduceOperation::Sum` such shares add up to the mean
//!   over all workers; `Mean` divides by the number of workers once more.

use std::sync::{Arc, OnceLock};

use burn::tensor::{ExecutionError, Tensor, TensorReadError};
use burn::train::ItemLazy;
use burn::train::metric::{
    Adaptor, LossInput, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric,
    NumericAttributes, NumericEntry, SerializedEntry,
};

use crate::objective::LossOutput;
use crate::training::metrics::{BatchMetrics, Metrics, Observe};

/// The result of a training or validation step: the losses, and metrics to log.
#[derive(Debug)]
pub struct PreferenceItem {
    losses: Tensor<1>,
    stats: Stats,
}

impl PreferenceItem {
    /// The losses of `output` and the metrics of [`BatchMetrics::observe`].
    pub fn new<B: Observe>(batch: &B, output: &LossOutput<B::Rewards>) -> Self {
        Self::with_metrics(output.losses(), BatchMetrics::observe(batch, output))
    }

    /// Losses, `[batch]`, with metrics of your own.
    pub fn with_metrics(losses: Tensor<1>, metrics: BatchMetrics) -> Self {
        Self {
            losses: losses.without_autodiff(),
            stats: Stats(Arc::new(Shared {
                packed: metrics,
                read: OnceLock::new(),
            })),
        }
    }
}

impl ItemLazy for PreferenceItem {
    fn sync(self) -> Result<Self, ExecutionError> {
        // Nothing is read here: the metric thread does, while the next step runs.
        self.losses.device().flush()?;
        Ok(self)
    }
}

/// The input of a [`StatMetric`]; all metrics of an item share it.
#[derive(Debug, Clone)]
pub struct Stats(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    packed: BatchMetrics,
    read: OnceLock<Metrics>,
}

impl Stats {
    fn metrics(&self) -> Result<&Metrics, TensorReadError> {
        if let Some(metrics) = self.0.read.get() {
            return Ok(metrics);
        }
        let metrics = self.0.packed.clone().read()?;
        Ok(self.0.read.get_or_init(|| metrics))
    }
}

impl Adaptor<Stats> for PreferenceItem {
    fn adapt(&self) -> Stats {
        self.stats.clone()
    }
}

impl Adaptor<LossInput> for PreferenceItem {
    fn adapt(&self) -> LossInput {
        LossInput::new(self.losses.clone())
    }
}

/// A key of [`Metrics`] as a metric of burn-train.
///
/// An item without this key ends the run with an error that names the keys that there are: a metric
/// that was never there would look like one that was not counted yet.
#[derive(Debug, Clone)]
pub struct StatMetric {
    key: String,
    name: MetricName,
    higher_is_better: bool,
    batch: Metrics,
    epoch: Metrics,
}

impl StatMetric {
    /// The metric of `key`, with a dot for a slash in its name: burn-train's logs are files of that
    /// name. Higher is better, but for losses, KL, displacement and the rewards of what was
    /// rejected.
    pub fn new(key: &str) -> Self {
        let lower = matches!(key, "loss" | "kl" | "displacement" | "rewards/rejected");
        Self {
            key: key.to_owned(),
            name: Arc::new(key.replace('/', ".")),
            higher_is_better: !lower,
            batch: Metrics::default(),
            epoch: Metrics::default(),
        }
    }

    /// Sets whether a checkpoint strategy takes a higher value for a better one.
    pub fn with_higher_is_better(self, higher_is_better: bool) -> Self {
        Self {
            higher_is_better,
            ..self
        }
    }

    /// The mean, NaN of nothing, as burn-train's metrics have it; and the number of its values.
    fn mean_and_count(&self, of: &Metrics) -> (f64, usize) {
        // A margin of unpaired completions is one of all of them.
        let count = match of.count(&self.key) {
            0.0 if of.get(&self.key).is_some() => {
                of.count("rewards/chosen") + of.count("rewards/rejected")
            }
            count => count,
        };
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        let count = count as usize;
        (of.get(&self.key).unwrap_or(f64::NAN), count)
    }

    fn serialized(&self, numeric: &NumericEntry) -> SerializedEntry {
        let [epoch, batch] = [&self.epoch, &self.batch].map(|of| self.mean_and_count(of).0);
        let formatted = format!("epoch {epoch:.4} - batch {batch:.4}");
        SerializedEntry::new(formatted, numeric.serialize())
    }

    fn aggregated(&self, of: &Metrics) -> NumericEntry {
        let (aggregated_value, count) = self.mean_and_count(of);
        NumericEntry::Aggregated {
            aggregated_value,
            count,
        }
    }
}

impl Metric for StatMetric {
    type Input = Stats;

    fn name(&self) -> MetricName {
        Arc::clone(&self.name)
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: None,
            higher_is_better: self.higher_is_better,
        }
        .into()
    }

    fn update(
        &mut self,
        item: &Stats,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        let metrics = item.metrics()?;
        if !metrics.contains(&self.key) {
            let keys: Vec<&str> = metrics.iter().map(|(key, _)| key).collect();
            let missing = format!("no metric `{}`; there is {keys:?}", self.key);
            return Err(ExecutionError::with_context(missing).into());
        }
        self.epoch.merge(metrics);
        self.batch.clone_from(metrics);
        Ok(self.serialized(&self.aggregated(&self.batch)))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.serialized(&self.final_value()))
    }

    fn clear(&mut self) {
        self.batch = Metrics::default();
        self.epoch = Metrics::default();
    }
}

impl Numeric for StatMetric {
    fn value(&self) -> Option<NumericEntry> {
        Some(self.aggregated(&self.batch))
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(self.aggregated(&self.epoch))
    }

    /// The mean over the whole epoch.
    fn final_value(&self) -> NumericEntry {
        NumericEntry::Final(self.mean_and_count(&self.epoch).0)
    }
}
