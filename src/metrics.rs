//! What to log: sums and counts on the device, means on the host.
//!
//! ```text
//! (batch, output)  →  BatchMetrics: one small tensor, nothing read  →  read()  →  Metrics: merge
//! ```
//!
//! Keys are TRL's where TRL has the quantity. Means are over what was counted, so merging batches
//! of unequal size gives the metrics of one large batch.
//!
//! | key | over | meaning |
//! |---|---|---|
//! | `loss` | examples | mean loss |
//! | `rewards/chosen`, `rewards/rejected` | pairs; labelled completions | implicit rewards |
//! | `rewards/margins` | pairs | chosen − rejected; unpaired: difference of the two means |
//! | `rewards/accuracies` | pairs; ordered pairs of a list | share with the better one ahead |
//! | `rewards/ties` | the same | share with equal rewards, not counted as accurate |
//! | `rewards/top1` | lists | share whose best-scored candidate has the highest reward |
//! | `logps/chosen`, `logps/rejected` | pairs; labelled completions | ℓ, nats |
//! | `displacement` | pairs against a reference | share whose chosen log-prob fell: ρ_w < 0 |
//! | `kl` | examples | KTO's z₀ |
//! | `log_odds_chosen`, `log_odds_ratio` | pairs | ORPO's od_w − od_l, and ln σ of it |
//! | `entropy`, `mean_token_accuracy` | counted tokens | of the policy, nats; share that is the likeliest word |
//! | `mean_logits` | counted tokens | mean of the logits over the vocabulary |

use std::collections::BTreeMap;

use burn::tensor::{Bool, Shape, Tensor, TensorReadError};

use crate::batch::{Batch, Pair, Ranked, Unpaired, WithBaseline, for_each_column};
use crate::log_probs::{LogProbs, RelativeLogProbs, SequenceLogProbs, TokenStatistics};
use crate::math::{any_of_row, log_odds, log_sigmoid};
use crate::objective::LossOutput;

/// The metrics of one batch, still on the device.
#[derive(Debug, Clone, Default)]
pub struct BatchMetrics {
    keys: Vec<&'static str>,
    /// Sum and count of each key, `[1]` each.
    packed: Vec<Tensor<1>>,
}

impl BatchMetrics {
    /// What `batch` and the `output` of an objective say.
    pub fn observe<B: Observe>(batch: &B, output: &LossOutput<B::Rewards>) -> Self {
        let metrics = Self::default().with("loss", output.losses());
        batch.observe(output.rewards(), metrics)
    }

    /// Adds the mean of a value per example: your own, or one of an objective.
    pub fn with(self, key: &'static str, values: Tensor<1>) -> Self {
        let all = values.zeros_like().equal_elem(0.0);
        self.with_counted(key, values, all)
    }

    /// Adds the mean of a value over those examples that `counted` marks.
    ///
    /// # Panics
    ///
    /// Panics if the shapes differ.
    pub fn with_counted(
        mut self,
        key: &'static str,
        values: Tensor<1>,
        counted: Tensor<1, Bool>,
    ) -> Self {
        assert_eq!(values.dims(), counted.dims(), "counted: one per value");
        let values = values.without_autodiff();
        let ones = values.ones_like();
        let not_counted = counted.without_autodiff().bool_not();
        self.keys.push(key);
        self.packed
            .push(values.mask_fill(not_counted.clone(), 0.0).sum_dim(0));
        self.packed
            .push(ones.mask_fill(not_counted, 0.0).sum_dim(0));
        self
    }

    /// Adds ORPO's `log_odds_chosen` and `log_odds_ratio`.
    pub fn with_log_odds<L: LogProbs<1>>(self, batch: &Pair<L>) -> Self {
        let log_odds = batch
            .map_ref(|y| log_odds(y.policy().mean().without_autodiff()))
            .margin();
        self.with("log_odds_chosen", log_odds.clone())
            .with("log_odds_ratio", log_sigmoid(log_odds))
    }

    /// Adds `entropy`, `mean_token_accuracy` and `mean_logits`.
    pub fn with_statistics(self, statistics: &TokenStatistics) -> Self {
        let [batch, columns] = statistics.mask().dims();
        let counted = statistics.mask().reshape([batch * columns]);
        let flat = |values: Tensor<2>| values.reshape([batch * columns]);
        self.with_counted("entropy", flat(statistics.entropy()), counted.clone())
            .with_counted(
                "mean_token_accuracy",
                flat(statistics.top1()),
                counted.clone(),
            )
            .with_counted("mean_logits", flat(statistics.mean_logits()), counted)
    }

    /// Reads everything back at once.
    ///
    /// # Panics
    ///
    /// Panics if the device fails; see [`try_read`](Self::try_read).
    pub fn read(self) -> Metrics {
        self.try_read().unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`read`](Self::read), for a loop that outlives its device.
    ///
    /// # Errors
    ///
    /// The device fails to execute what is still queued.
    pub fn try_read(self) -> Result<Metrics, TensorReadError> {
        let mut metrics = Metrics::default();
        if self.keys.is_empty() {
            return Ok(metrics);
        }
        let packed = Tensor::cat(self.packed, 0);
        let values: Vec<f64> = packed.try_into_data()?.iter::<f64>().collect();
        for (key, value) in self.keys.into_iter().zip(values.chunks_exact(2)) {
            metrics.add(key, value[0], value[1]);
        }
        Ok(metrics)
    }
}

/// A batch that knows what to log.
pub trait Observe: Batch {
    /// Adds this batch's metrics to `metrics`.
    fn observe(&self, rewards: &Self::Rewards, metrics: BatchMetrics) -> BatchMetrics;
}

/// The reference's share of a pair's metrics: nothing without a reference.
trait ObservePair {
    fn displaced(&self) -> Option<Tensor<1>>;
}

impl ObservePair for SequenceLogProbs {
    fn displaced(&self) -> Option<Tensor<1>> {
        None
    }
}

impl ObservePair for RelativeLogProbs {
    fn displaced(&self) -> Option<Tensor<1>> {
        let log_ratio = self.log_ratio().without_autodiff();
        Some(indicator(log_ratio.clone().lower_elem(0.0), &log_ratio))
    }
}

impl<L: LogProbs<1> + ObservePair> Observe for Pair<L> {
    fn observe(&self, rewards: &Pair<Tensor<1>>, metrics: BatchMetrics) -> BatchMetrics {
        let Pair { chosen, rejected } = rewards.clone();
        let ahead = indicator(chosen.clone().greater(rejected.clone()), &chosen);
        let tied = indicator(chosen.clone().equal(rejected.clone()), &chosen);
        let metrics = metrics
            .with("rewards/chosen", chosen)
            .with("rewards/rejected", rejected)
            .with("rewards/margins", rewards.margin())
            .with("rewards/accuracies", ahead)
            .with("rewards/ties", tied)
            .with("logps/chosen", self.chosen.policy().sum())
            .with("logps/rejected", self.rejected.policy().sum());
        match self.chosen.displaced() {
            Some(displaced) => metrics.with("displacement", displaced),
            None => metrics,
        }
    }
}

impl<L: LogProbs<1>> Observe for Unpaired<L> {
    fn observe(&self, rewards: &Tensor<1>, metrics: BatchMetrics) -> BatchMetrics {
        let desirable = self.desirable();
        let undesirable = desirable.clone().bool_not();
        let log_probs = self.log_probs().policy().sum();
        metrics
            .with_counted("rewards/chosen", rewards.clone(), desirable.clone())
            .with_counted("rewards/rejected", rewards.clone(), undesirable.clone())
            .with_counted("logps/chosen", log_probs.clone(), desirable)
            .with_counted("logps/rejected", log_probs, undesirable)
    }
}

impl<L: LogProbs<2>> Observe for Ranked<L> {
    fn observe(&self, rewards: &Tensor<2>, metrics: BatchMetrics) -> BatchMetrics {
        let [batch, candidates] = rewards.dims();
        let pairs = |x: Tensor<3, Bool>| x.reshape([batch * candidates * candidates]);
        let (worse, better) = self.compare(rewards);
        let ordered = pairs(self.worse_than());
        let ahead = pairs(worse.clone().lower(better.clone()));
        let tied = pairs(worse.equal(better));

        let best = self.best();
        let some = any_of_row(best.clone()).squeeze_dim::<1>(1);
        let of_best = |x: Tensor<2>| {
            x.mask_fill(best.clone().bool_not(), 0.0)
                .sum_dim(1)
                .squeeze_dim::<1>(1)
        };
        let top = rewards
            .clone()
            .mask_fill(self.present().bool_not(), f64::NEG_INFINITY)
            .max_dim(1)
            .squeeze_dim::<1>(1);
        let like = rewards.clone().reshape([batch * candidates]);
        let best_reward = of_best(rewards.clone());
        metrics
            .with_counted(
                "rewards/accuracies",
                indicator(ahead, &like),
                ordered.clone(),
            )
            .with_counted("rewards/ties", indicator(tied, &like), ordered)
            .with_counted(
                "rewards/top1",
                indicator(best_reward.clone().equal(top), &like),
                some.clone(),
            )
            .with_counted("rewards/chosen", best_reward, some.clone())
            .with_counted(
                "logps/chosen",
                of_best(self.candidates().policy().sum().without_autodiff()),
                some,
            )
    }
}

impl<B: Observe> Observe for WithBaseline<B> {
    fn observe(&self, rewards: &B::Rewards, metrics: BatchMetrics) -> BatchMetrics {
        let kl = self.baseline().expand(Shape::new([self.len()]));
        self.batch().observe(rewards, metrics).with("kl", kl)
    }
}

macro_rules! observe_inner {
    ($column:ident) => {
        impl<B: Observe> Observe for crate::batch::$column<B> {
            fn observe(&self, rewards: &B::Rewards, metrics: BatchMetrics) -> BatchMetrics {
                self.batch().observe(rewards, metrics)
            }
        }
    };
}

for_each_column!(observe_inner);

macro_rules! observe_alone {
    ($log_probs:ty) => {
        impl Observe for $log_probs {
            fn observe(&self, rewards: &Tensor<1>, metrics: BatchMetrics) -> BatchMetrics {
                metrics
                    .with("rewards/rejected", rewards.clone())
                    .with("logps/rejected", self.policy().sum())
            }
        }
    };
}

observe_alone!(SequenceLogProbs);
observe_alone!(RelativeLogProbs);

/// 1 where true, in the number type of `like`.
fn indicator(mask: Tensor<1, Bool>, like: &Tensor<1>) -> Tensor<1> {
    mask.float().cast(like.dtype())
}

/// Means by key, on the host, in f64.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    sums: BTreeMap<String, (f64, f64)>,
}

impl Metrics {
    /// Adds `count` values with the given sum.
    pub fn add(&mut self, key: impl Into<String>, sum: f64, count: f64) {
        let entry = self.sums.entry(key.into()).or_default();
        entry.0 += sum;
        entry.1 += count;
    }

    /// Adds what `other` counted.
    pub fn merge(&mut self, other: &Self) {
        for (key, (sum, count)) in &other.sums {
            self.add(key.as_str(), *sum, *count);
        }
    }

    /// The mean of `key`; none where nothing was counted.
    pub fn get(&self, key: &str) -> Option<f64> {
        if let Some((sum, count)) = self.sums.get(key) {
            return (*count > 0.0).then(|| sum / count);
        }
        // Unpaired completions have no margin each, only the difference of the two means.
        if key == "rewards/margins" {
            return Some(self.get("rewards/chosen")? - self.get("rewards/rejected")?);
        }
        None
    }

    /// Whether `key` was observed, even if nothing of it was counted.
    pub fn contains(&self, key: &str) -> bool {
        let has = |key: &str| self.sums.contains_key(key);
        let derived = key == "rewards/margins" && has("rewards/chosen") && has("rewards/rejected");
        has(key) || derived
    }

    /// How many values `key` is the mean of; the margin of unpaired completions is the mean of
    /// none.
    pub fn count(&self, key: &str) -> f64 {
        self.sums.get(key).map_or(0.0, |(_, count)| *count)
    }

    /// Every key that has a mean, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        let derived = ["rewards/margins"].into_iter();
        let derived = derived.filter(|key| !self.sums.contains_key(*key));
        let mut keys: Vec<&str> = self
            .sums
            .keys()
            .map(String::as_str)
            .chain(derived)
            .collect();
        keys.sort_unstable();
        keys.into_iter()
            .filter_map(|key| self.get(key).map(|mean| (key, mean)))
    }
}
