use burn::tensor::{Bool, Shape, Tensor};

use super::batch::BatchMetrics;
use crate::batch::{
    Batch, Demonstrations, GroupedReward, Pair, Ranked, Ratios, RewardPair, SampleLogProbs,
    Samples, Scored, Unpaired, WithBaseline, for_each_column,
};
use crate::log_probs::{LogProbs, RelativeLogProbs, SequenceLogProbs};
use crate::math::any_of_row;
use crate::objective::LossOutput;

/// A batch with metrics. Implement it for a batch of your own to give it some.
pub trait Observe: Batch {
    /// Adds this batch's metrics to `metrics`.
    fn observe(&self, rewards: &Self::Rewards, metrics: BatchMetrics) -> BatchMetrics;
}

impl BatchMetrics {
    /// The metrics of `batch` and of the `output` of an objective.
    pub fn observe<B: Observe>(batch: &B, output: &LossOutput<B::Rewards>) -> Self {
        let metrics = Self::default().with("loss", output.losses());
        batch.observe(output.rewards(), metrics)
    }
}

/// The log-probabilities of a reference, where a batch has them.
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

/// The metrics of implicit rewards, or those of a reward model, over pairs.
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
        let desirable = self.desirable();
        let undesirable = desirable.clone().bool_not();
        let policy = self.log_probs().policy().unmodified();
        let metrics = metrics
            .counted("rewards/chosen", rewards.clone(), desirable.clone())
            .counted("rewards/rejected", rewards.clone(), undesirable.clone())
            .counted("logps/chosen", policy.sum(), desirable.clone())
            .counted("logps/rejected", policy.sum(), undesirable.clone())
            .counted("mean_logps/chosen", policy.mean(), desirable)
            .counted("mean_logps/rejected", policy.mean(), undesirable);
        with_mismatches(metrics, self.log_probs())
    }
}

impl Observe for Demonstrations {
    fn observe(&self, _: &Tensor<1>, metrics: BatchMetrics) -> BatchMetrics {
        let policy = self.tokens().sequence();
        let metrics = metrics
            .with_nll(self.tokens())
            .with("logps", policy.sum())
            .with("mean_logps", policy.mean());
        match self.statistics() {
            Some(statistics) => metrics.with_statistics(statistics),
            None => metrics,
        }
    }
}

impl<L: SampleLogProbs> Observe for Samples<L> {
    fn observe(&self, ratios: &Ratios, metrics: BatchMetrics) -> BatchMetrics {
        let policy = self.policy().sequence();
        let of_rows = |number: fn(&GroupedReward) -> f64| self.column(number).squeeze_dim::<1>(1);
        let [ours, theirs] = [policy.lengths(), self.sampler().sequence().lengths()];
        let mut metrics = metrics
            .with("reward", of_rows(GroupedReward::reward))
            .with("reward_std", of_rows(GroupedReward::std_of_all))
            .with(
                "frac_reward_zero_std",
                of_rows(|reward| f64::from(u8::from(reward.std() == 0.0))),
            )
            .with("logps", policy.sum())
            .with("mean_logps", policy.mean())
            .with(
                "length_mismatches",
                indicator(ours.clone().not_equal(theirs), &ours),
            )
            .over_tokens(
                "sampling/sampling_logp_difference/mean",
                (self.policy().log_probs() - self.sampler().log_probs()).abs(),
                self.policy().mask(),
            )
            .with_ratios(ratios);
        if let Some(y) = self.against_reference() {
            metrics = with_mismatches(metrics, &y.sequence());
        }
        match self.statistics() {
            Some(statistics) => metrics.with_statistics(statistics),
            None => metrics,
        }
    }
}

/// The metrics of rewards over lists.
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

    // The highest reward of the best-scored candidates, and of the worse ones.
    let best = lists.best();
    let others = lists.present().bool_and(best.clone().bool_not());
    let rivals = any_of_row(others.clone()).squeeze_dim::<1>(1);
    let highest = |of: Tensor<2, Bool>| {
        let rewards = rewards.clone().mask_fill(of.bool_not(), f64::NEG_INFINITY);
        rewards.max_dim(1).squeeze_dim::<1>(1)
    };
    let (ours, rival) = (highest(best), highest(others));
    let like = rewards.clone().reshape([batch * candidates]);
    let first = ours.clone().greater(rival.clone());
    let shared = ours.equal(rival);
    metrics
        .counted(
            "rewards/accuracies",
            indicator(ahead, &like),
            ordered.clone(),
        )
        .counted("rewards/ties", indicator(tied, &like), ordered)
        .counted("rewards/top1", indicator(first, &like), rivals.clone())
        .counted("rewards/top1_ties", indicator(shared, &like), rivals)
        .counted(
            "rewards/chosen",
            lists.mean_of_best(rewards.clone()),
            has_candidates(lists),
        )
}

/// False for a list without candidates.
fn has_candidates<L>(lists: &Ranked<L>) -> Tensor<1, Bool> {
    any_of_row(lists.best()).squeeze_dim(1)
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
        let policy = self.candidates().policy().unmodified().without_autodiff();
        let of_best = |x: Tensor<2>| self.mean_of_best(x);
        let metrics = with_rewards_of_lists(metrics, self, rewards)
            .counted("logps/chosen", of_best(policy.sum()), has_candidates(self))
            .counted(
                "mean_logps/chosen",
                of_best(policy.mean()),
                has_candidates(self),
            );
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
observe_inner!(WithNll);
observe_inner!(WithStepTokens);

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
