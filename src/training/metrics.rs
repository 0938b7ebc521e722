//! What to log: sums and counts on the device, means on the host.
//!
//! ```text
//! (batch, output)  →  BatchMetrics: small tensors, nothing read  →  read()  →  Metrics: merge
//! ```
//!
//! Keys are TRL's where TRL has the quantity, and mean the same there; what differs has another
//! key. Means are over what was counted, so merging batches of unequal size gives the metrics of
//! one large batch.
//!
//! | key | over | meaning |
//! |---|---|---|
//! | `loss` | examples | mean loss |
//! | `rewards/chosen`, `rewards/rejected` | pairs; labelled completions; of lists, as `…/chosen`, the best-scored candidate | implicit rewards; those of a reward model |
//! | `rewards`, `scores`, `logps`, `mean_logps` | scored completions | implicit rewards, what the batch holds as scores, ℓ and ℓ̄ |
//! | `rewards/margins` | pairs | chosen − rejected; unpaired: difference of the two means |
//! | `rewards/accuracies` | pairs; ordered pairs of a list | share with the better one ahead |
//! | `rewards/ties` | the same | share with equal rewards, not counted as accurate |
//! | `rewards/top1` | lists of 2 and more | share whose best-scored candidate has the highest reward, alone |
//! | `rewards/top1_ties` | the same | share where it shares the highest reward |
//! | `logps/chosen`, `logps/rejected` | the same | ℓ, nats |
//! | `mean_logps/chosen`, `mean_logps/rejected` | the same | ℓ̄, nats: what TRL's ORPO, and its CPO with `simpo` or `ipo`, call `logps/*` |
//! | `displacement` | pairs against a reference | share whose chosen log-prob fell: ℓ_w < ℓ°_w |
//! | `length_mismatches` | completions against a reference | share of which policy and reference count unequally many tokens: 0, or something is wrong |
//! | `kl` | examples | KTO's z₀ |
//! | `log_odds_chosen`, `log_odds_ratio` | pairs | ORPO's od_w − od_l, and ln σ of it |
//! | `grad_norm` | steps | of all gradients before they are clipped: [`Accumulation`](crate::training::accumulation::Accumulation) |
//! | `entropy` | counted tokens | of the policy, nats |
//! | `mean_logits` | counted tokens | mean of the logits over the vocabulary |
//! | `mean_token_accuracy` | counted tokens; of pairs the chosen ones', as in TRL | share that greedy decoding takes |
//! | `entropy/chosen`, `logits/chosen`, `mean_token_accuracy/chosen`, … | a side's tokens | the same of each side of pairs |
//!
//! `logps/*`, `mean_logps/*` and `displacement` are of the completions as the models have them,
//! whatever a modifier of tokens does to the comparison.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use burn::tensor::{Bool, DType, FloatDType, Shape, Tensor, TensorReadError};
use serde::{Serialize, Serializer};

use crate::batch::{
    Batch, Pair, Ranked, RewardPair, Scored, Unpaired, WithBaseline, WithNll, for_each_column,
};
use crate::error::InvalidInput;
use crate::log_probs::{LogProbs, RelativeLogProbs, SequenceLogProbs, TokenStatistics};
use crate::math::{any_of_row, log_odds, log_sigmoid};
use crate::objective::LossOutput;

/// The metrics of one batch, or of several, still on the device.
///
/// A key that comes twice adds up: its mean is over everything that was counted under it.
#[derive(Debug, Clone, Default)]
pub struct BatchMetrics {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    key: Cow<'static, str>,
    /// `[1]` each.
    sum: Tensor<1>,
    count: Tensor<1>,
}

impl BatchMetrics {
    /// What `batch` and the `output` of an objective say.
    pub fn observe<B: Observe>(batch: &B, output: &LossOutput<B::Rewards>) -> Self {
        let metrics = Self::default().with("loss", output.losses());
        batch.observe(output.rewards(), metrics)
    }

    /// Adds the mean of a value per example: your own, or one of an objective.
    pub fn with(self, key: impl Into<Cow<'static, str>>, values: Tensor<1>) -> Self {
        let all = values.zeros_like().equal_elem(0.0);
        self.counted(key, values, all)
    }

    /// Adds the mean of a value over those examples that `counted` marks.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn with_counted(
        self,
        key: impl Into<Cow<'static, str>>,
        values: Tensor<1>,
        counted: Tensor<1, Bool>,
    ) -> Result<Self, InvalidInput> {
        InvalidInput::check_shape("counted", &values.shape(), &counted.shape())?;
        InvalidInput::check_device("counted", &values.device(), &counted.device())?;
        Ok(self.counted(key, values, counted))
    }

    fn counted(
        mut self,
        key: impl Into<Cow<'static, str>>,
        values: Tensor<1>,
        counted: Tensor<1, Bool>,
    ) -> Self {
        let values = values.without_autodiff();
        let ones = values.ones_like();
        let not_counted = counted.without_autodiff().bool_not();
        self.entries.push(Entry {
            key: key.into(),
            sum: values.mask_fill(not_counted.clone(), 0.0).sum_dim(0),
            count: ones.mask_fill(not_counted, 0.0).sum_dim(0),
        });
        self
    }

    /// What `other` counted as well: the micro-batches of a step, read back at once.
    pub fn merge(mut self, other: Self) -> Self {
        self.entries.extend(other.entries);
        self
    }

    /// The same metrics, every key with `prefix` before it: of one reference among several, say.
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        for entry in &mut self.entries {
            entry.key = format!("{prefix}{}", entry.key).into();
        }
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

    /// Adds `entropy`, `mean_token_accuracy` and `mean_logits` of all that `statistics` counts.
    pub fn with_statistics(self, statistics: &TokenStatistics) -> Self {
        self.with_tokens("entropy", statistics, TokenStatistics::entropy)
            .with_tokens("mean_token_accuracy", statistics, TokenStatistics::top1)
            .with_tokens("mean_logits", statistics, TokenStatistics::mean_logits)
    }

    /// Adds the statistics of each side of pairs, and under TRL's keys `entropy` of both sides and
    /// `mean_token_accuracy` of the chosen one.
    pub fn with_pair_statistics(self, statistics: &Pair<TokenStatistics>) -> Self {
        let Pair { chosen, rejected } = statistics;
        self.with_tokens("entropy", chosen, TokenStatistics::entropy)
            .with_tokens("entropy", rejected, TokenStatistics::entropy)
            .with_tokens("entropy/chosen", chosen, TokenStatistics::entropy)
            .with_tokens("entropy/rejected", rejected, TokenStatistics::entropy)
            .with_tokens("mean_token_accuracy", chosen, TokenStatistics::top1)
            .with_tokens("mean_token_accuracy/chosen", chosen, TokenStatistics::top1)
            .with_tokens(
                "mean_token_accuracy/rejected",
                rejected,
                TokenStatistics::top1,
            )
            .with_tokens("logits/chosen", chosen, TokenStatistics::mean_logits)
            .with_tokens("logits/rejected", rejected, TokenStatistics::mean_logits)
    }

    fn with_tokens(
        self,
        key: &'static str,
        statistics: &TokenStatistics,
        of: fn(&TokenStatistics) -> Tensor<2>,
    ) -> Self {
        let [batch, columns] = statistics.mask().dims();
        let all = [batch * columns];
        let counted = statistics.mask().reshape(all);
        self.counted(key, of(statistics).reshape(all), counted)
    }

    /// Reads everything back at once.
    ///
    /// # Errors
    ///
    /// The device fails to execute what is still queued.
    pub fn read(self) -> Result<Metrics, TensorReadError> {
        let mut metrics = Metrics::default();
        let Some(first) = self.entries.first() else {
            return Ok(metrics);
        };
        // A column in f32 beside a policy in f64, or two devices, still make one tensor.
        let device = first.sum.device();
        let wide = self.entries.iter().any(|e| e.sum.dtype() == DType::F64);
        let dtype = if wide {
            FloatDType::F64
        } else {
            FloatDType::F32
        };
        let numbers = |entry: &Entry| [entry.sum.clone(), entry.count.clone()];
        let numbers = self.entries.iter().flat_map(numbers);
        let packed = numbers.map(|number| number.to_device(&device).cast(dtype));
        let packed = Tensor::cat(packed.collect(), 0);
        let values: Vec<f64> = packed.try_into_data()?.iter::<f64>().collect();
        for (entry, value) in self.entries.into_iter().zip(values.chunks_exact(2)) {
            metrics.add(entry.key, value[0], value[1]);
        }
        Ok(metrics)
    }
}

/// A batch that knows what to log. Implement it for a batch of your own to give it metrics.
pub trait Observe: Batch {
    /// Adds this batch's metrics to `metrics`.
    fn observe(&self, rewards: &Self::Rewards, metrics: BatchMetrics) -> BatchMetrics;
}

/// What a reference adds to the metrics: nothing where there is none.
trait Against<const D: usize>: LogProbs<D> {
    fn reference(&self) -> Option<&RelativeLogProbs<D>>;
}

impl<const D: usize> Against<D> for SequenceLogProbs<D> {
    fn reference(&self) -> Option<&RelativeLogProbs<D>> {
        None
    }
}

impl<const D: usize> Against<D> for RelativeLogProbs<D> {
    fn reference(&self) -> Option<&RelativeLogProbs<D>> {
        Some(self)
    }
}

/// 1 where policy and reference count another number of tokens.
fn mismatched<const D: usize>(y: &RelativeLogProbs<D>) -> Tensor<D, Bool> {
    let (ours, theirs) = (y.policy().lengths(), y.reference().lengths());
    ours.clone().not_equal(theirs.cast(ours.dtype()))
}

fn with_mismatches<L: Against<1>>(metrics: BatchMetrics, y: &L) -> BatchMetrics {
    match y.reference() {
        Some(y) => metrics.with(
            "length_mismatches",
            indicator(mismatched(y), &y.policy().lengths()),
        ),
        None => metrics,
    }
}

/// What implicit rewards, or those of a reward model, say of pairs.
fn with_rewards_of_pairs(metrics: BatchMetrics, rewards: &Pair<Tensor<1>>) -> BatchMetrics {
    let Pair { chosen, rejected } = rewards.clone();
    let ahead = indicator(chosen.clone().greater(rejected.clone()), &chosen);
    let tied = indicator(chosen.clone().equal(rejected.clone()), &chosen);
    metrics
        .with("rewards/chosen", chosen)
        .with("rewards/rejected", rejected)
        .with("rewards/margins", rewards.margin())
        .with("rewards/accuracies", ahead)
        .with("rewards/ties", tied)
}

impl Observe for RewardPair {
    fn observe(&self, rewards: &Self, metrics: BatchMetrics) -> BatchMetrics {
        with_rewards_of_pairs(metrics, rewards)
    }
}

impl<L: Against<1>> Observe for Pair<L> {
    fn observe(&self, rewards: &Pair<Tensor<1>>, metrics: BatchMetrics) -> BatchMetrics {
        let policy = self.map_ref(|y| y.policy().unmodified());
        let metrics = with_rewards_of_pairs(metrics, rewards)
            .with("logps/chosen", policy.chosen.sum())
            .with("logps/rejected", policy.rejected.sum())
            .with("mean_logps/chosen", policy.chosen.mean())
            .with("mean_logps/rejected", policy.rejected.mean());
        let metrics = with_mismatches(metrics, &self.chosen);
        let metrics = with_mismatches(metrics, &self.rejected);
        match self.chosen.reference() {
            Some(chosen) => {
                let [ours, theirs] =
                    [chosen.policy(), chosen.reference()].map(|y| y.unmodified().sum());
                let fallen = indicator(ours.clone().lower(theirs), &ours);
                metrics.with("displacement", fallen)
            }
            None => metrics,
        }
    }
}

impl<L: Against<1>> Observe for Unpaired<L> {
    fn observe(&self, rewards: &Tensor<1>, metrics: BatchMetrics) -> BatchMetrics {
        let up = self.desirable();
        let down = up.clone().bool_not();
        let policy = self.log_probs().policy().unmodified();
        let metrics = metrics
            .counted("rewards/chosen", rewards.clone(), up.clone())
            .counted("rewards/rejected", rewards.clone(), down.clone())
            .counted("logps/chosen", policy.sum(), up.clone())
            .counted("logps/rejected", policy.sum(), down.clone())
            .counted("mean_logps/chosen", policy.mean(), up)
            .counted("mean_logps/rejected", policy.mean(), down);
        with_mismatches(metrics, self.log_probs())
    }
}

/// What rewards say of lists.
fn with_rewards_of_lists<L>(
    metrics: BatchMetrics,
    lists: &Ranked<L>,
    rewards: &Tensor<2>,
) -> BatchMetrics {
    let [batch, candidates] = rewards.dims();
    let pairs = |x: Tensor<3, Bool>| x.reshape([batch * candidates * candidates]);
    let (worse, better) = lists.compare(rewards);
    let ordered = pairs(lists.worse_than());
    let ahead = pairs(worse.clone().lower(better.clone()));
    let tied = pairs(worse.equal(better));

    // The highest reward of the others; a list of one orders nothing.
    let best = Best::of(lists);
    let others = lists.present().bool_and(best.mask.clone().bool_not());
    let rivals = any_of_row(others.clone()).squeeze_dim::<1>(1);
    let rival = rewards
        .clone()
        .mask_fill(others.bool_not(), f64::NEG_INFINITY)
        .max_dim(1)
        .squeeze_dim::<1>(1);
    let like = rewards.clone().reshape([batch * candidates]);
    let best_reward = best.value(rewards.clone());
    let first = best_reward.clone().greater(rival.clone());
    let shared = best_reward.clone().equal(rival);
    metrics
        .counted(
            "rewards/accuracies",
            indicator(ahead, &like),
            ordered.clone(),
        )
        .counted("rewards/ties", indicator(tied, &like), ordered)
        .counted("rewards/top1", indicator(first, &like), rivals.clone())
        .counted("rewards/top1_ties", indicator(shared, &like), rivals)
        .counted("rewards/chosen", best_reward, best.exists)
}

/// The best-scored candidate of each list.
struct Best {
    mask: Tensor<2, Bool>,
    /// False for a list without candidates.
    exists: Tensor<1, Bool>,
}

impl Best {
    fn of<L>(lists: &Ranked<L>) -> Self {
        let mask = lists.best();
        let exists = any_of_row(mask.clone()).squeeze_dim::<1>(1);
        Self { mask, exists }
    }

    fn value(&self, x: Tensor<2>) -> Tensor<1> {
        x.mask_fill(self.mask.clone().bool_not(), 0.0)
            .sum_dim(1)
            .squeeze_dim::<1>(1)
    }
}

impl Observe for Ranked<Tensor<2>> {
    fn observe(&self, rewards: &Tensor<2>, metrics: BatchMetrics) -> BatchMetrics {
        with_rewards_of_lists(metrics, self, rewards)
    }
}

impl<L: Against<1>> Observe for Scored<L> {
    fn observe(&self, rewards: &Tensor<1>, metrics: BatchMetrics) -> BatchMetrics {
        let policy = self.log_probs().policy().unmodified();
        let metrics = metrics
            .with("rewards", rewards.clone())
            .with("scores", self.scores())
            .with("logps", policy.sum())
            .with("mean_logps", policy.mean());
        with_mismatches(metrics, self.log_probs())
    }
}

impl<L: Against<2>> Observe for Ranked<L> {
    fn observe(&self, rewards: &Tensor<2>, metrics: BatchMetrics) -> BatchMetrics {
        let [batch, candidates] = rewards.dims();
        let like = rewards.clone().reshape([batch * candidates]);
        let best = Best::of(self);
        let policy = self.candidates().policy().unmodified().without_autodiff();
        let metrics = with_rewards_of_lists(metrics, self, rewards)
            .counted(
                "logps/chosen",
                best.value(policy.sum()),
                best.exists.clone(),
            )
            .counted("mean_logps/chosen", best.value(policy.mean()), best.exists);
        match self.candidates().reference() {
            Some(y) => {
                let flat = |x: Tensor<2, Bool>| x.reshape([batch * candidates]);
                let mismatched = indicator(flat(mismatched(y)), &like);
                metrics.counted("length_mismatches", mismatched, flat(self.present()))
            }
            None => metrics,
        }
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

impl<B: Observe> Observe for WithNll<B> {
    fn observe(&self, rewards: &B::Rewards, metrics: BatchMetrics) -> BatchMetrics {
        self.batch().observe(rewards, metrics)
    }
}

macro_rules! observe_alone {
    ($log_probs:ty) => {
        impl Observe for $log_probs {
            fn observe(&self, rewards: &Tensor<1>, metrics: BatchMetrics) -> BatchMetrics {
                let policy = self.policy().unmodified();
                let metrics = metrics
                    .with("rewards/rejected", rewards.clone())
                    .with("logps/rejected", policy.sum())
                    .with("mean_logps/rejected", policy.mean());
                with_mismatches(metrics, self)
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
///
/// `Display` prints them, one a line, and `Serialize` writes them as one object of means: a line
/// of a log. Both leave out what nothing was counted of, as [`iter`](Self::iter) does. JSON has no
/// NaN and no ∞: `serde_json` writes `null`. `{metrics:.6}` prints six decimals instead of four.
///
/// ```
/// use burn_preference::Metrics;
///
/// let mut metrics = Metrics::default();
/// metrics.add("loss", 1.5, 2.0); // a sum of 1.5 over two examples
/// assert_eq!(metrics.to_string(), "loss                     0.7500\n");
/// assert_eq!(serde_json::to_string(&metrics)?, r#"{"loss":0.75}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
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

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(4);
        for (key, mean) in self.iter() {
            writeln!(f, "{key:24} {mean:.digits$}")?;
        }
        Ok(())
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}
