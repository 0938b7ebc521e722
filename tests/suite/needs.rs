//! What objectives say of themselves is true: whether a batch may be cut into parts.

use burn::tensor::{Bool, Tensor};
use burn_preference::config::ObjectiveConfig;
use burn_preference::needs::{ColumnKind, Examples, Needs, Values};
use burn_preference::{
    Batch, Demonstrations, GroupedReward, Objective, Pair, PolicyPair, Ranked, RewardPair, Samples,
    Scored, SequenceLogProbs, TokenLogProbs, Unpaired, WithBaseline, WithMargin, WithMeanMargin,
    WithNll, WithPreference, WithScores, WithSequenceKl, WithShift, WithStepTokens, WithTies,
    WithValue, batch::Candidates,
};

use crate::support::{bools, counts, error, f64s, sequence, to_vec};

/// Numbers of four examples, of which a batch takes some.
#[derive(Clone, Copy)]
struct Taken<'a>(&'a [usize]);

impl Taken<'_> {
    fn numbers(self, all: [f64; 4]) -> Tensor<1> {
        let taken: Vec<f64> = self.0.iter().map(|i| all[*i]).collect();
        f64s(&taken)
    }

    fn flags(self, all: [bool; 4]) -> Tensor<1, Bool> {
        let taken: Vec<bool> = self.0.iter().map(|i| all[*i]).collect();
        bools(&taken)
    }

    fn sequences(self, sums: [f64; 4], lengths: [usize; 4]) -> SequenceLogProbs {
        let lengths: Vec<usize> = self.0.iter().map(|i| lengths[*i]).collect();
        sequence(self.numbers(sums), &lengths)
    }

    fn policy(self) -> PolicyPair {
        let chosen = self.sequences([-4.0, -9.0, -2.5, -7.0], [3, 5, 2, 6]);
        let rejected = self.sequences([-7.0, -8.0, -3.0, -4.0], [4, 4, 1, 3]);
        PolicyPair::new(chosen, rejected).unwrap()
    }

    fn reference(self) -> PolicyPair {
        let chosen = self.sequences([-5.0, -8.5, -2.0, -9.0], [3, 5, 2, 6]);
        let rejected = self.sequences([-6.0, -8.0, -4.0, -3.5], [4, 4, 1, 3]);
        PolicyPair::new(chosen, rejected).unwrap()
    }

    /// Lists of two candidates: the sides of each pair.
    fn lists(self, pairs: PolicyPair) -> SequenceLogProbs<2> {
        let sides = [pairs.chosen, pairs.rejected];
        let join = |of: fn(&SequenceLogProbs) -> Tensor<1>| {
            let columns = sides.iter().map(|side| of(side).unsqueeze_dim(1)).collect();
            Tensor::<2>::cat(columns, 1).reshape([2 * self.0.len()])
        };
        let lengths = counts(join(SequenceLogProbs::lengths));
        let all = sequence(join(SequenceLogProbs::sum), &lengths);
        all.split_candidates(2).unwrap()
    }

    /// Completions of one to four tokens.
    fn demonstrations(self) -> Demonstrations {
        let row = |i: &usize| {
            (0..4)
                .map(|t| -0.5 - 0.25 * (i + t) as f64)
                .collect::<Vec<_>>()
        };
        let log_probs: Vec<f64> = self.0.iter().flat_map(row).collect();
        let counts = |i: &usize| (0..4).map(|t| t <= *i).collect::<Vec<_>>();
        let mask: Vec<bool> = self.0.iter().flat_map(counts).collect();
        let shape = [self.0.len(), 4];
        let log_probs = f64s(&log_probs).reshape(shape);
        let tokens = TokenLogProbs::new(log_probs, bools(&mask).reshape(shape));
        Demonstrations::new(tokens.unwrap())
    }

    /// The same completions with rewards of their groups, of which a batch may have a part.
    fn samples(self) -> Samples {
        let of_all = GroupedReward::of_groups(&[1.0, 0.0, 0.3, 0.6], &[0, 1, 1, 0]).unwrap();
        let rewards: Vec<GroupedReward> = self.0.iter().map(|i| of_all[*i]).collect();
        let policy = self.demonstrations().tokens().clone();
        let sampler = TokenLogProbs::new(policy.log_probs() - 0.1, policy.mask()).unwrap();
        Samples::new(policy, sampler, &rewards).unwrap()
    }

    fn ranked<L: Candidates>(self, candidates: L) -> Ranked<L> {
        let [n, k] = [self.0.len(), 2];
        let scores = [[1.0, 0.0], [0.25, 0.75], [0.5, 0.1], [0.9, 0.6]];
        let scores: Vec<f64> = self.0.iter().flat_map(|i| scores[*i]).collect();
        let present = bools(&vec![true; n * k]).reshape([n, k]);
        Ranked::new(candidates, f64s(&scores).reshape([n, k]), present).unwrap()
    }
}

fn losses<B: Batch + 'static>(config: &ObjectiveConfig, batch: B) -> Vec<f64> {
    let objective = config.build::<B>().unwrap();
    to_vec(objective.forward(batch).losses())
}

/// Losses of a batch with the columns of `needs`.
fn with_columns<B: Batch + 'static>(
    config: &ObjectiveConfig,
    needs: &Needs,
    batch: B,
    taken: Taken,
) -> Vec<f64> {
    let numbers = || taken.numbers([0.5, 0.25, 0.75, 0.6]);
    let one = || f64s(&[0.3]);
    let pair = || Pair::new(taken.numbers([1.5, 0.9, 0.3, 2.0]), numbers()).unwrap();
    match needs.columns.as_slice() {
        [] => losses(config, batch),
        [ColumnKind::Margin] => losses(config, WithMargin::new(batch, numbers()).unwrap()),
        [ColumnKind::Preference] => losses(config, WithPreference::new(batch, numbers()).unwrap()),
        [ColumnKind::Scores] => losses(config, WithScores::new(batch, pair()).unwrap()),
        [ColumnKind::SequenceKl] => losses(config, WithSequenceKl::new(batch, pair()).unwrap()),
        [ColumnKind::Ties] => {
            let tied = taken.flags([false, true, false, true]);
            losses(config, WithTies::new(batch, tied).unwrap())
        }
        [ColumnKind::Value] => losses(config, WithValue::new(batch, numbers()).unwrap()),
        [ColumnKind::Baseline] => losses(config, WithBaseline::new(batch, one()).unwrap()),
        [ColumnKind::Shift] => losses(config, WithShift::new(batch, one()).unwrap()),
        [ColumnKind::MeanMargin] => losses(config, WithMeanMargin::new(batch, one()).unwrap()),
        [ColumnKind::StepTokens] => losses(config, WithStepTokens::new(batch, 16.0, 4.0).unwrap()),
        [ColumnKind::Nll] => {
            let imitated = taken.sequences([-3.0, -6.0, -2.0, -8.0], [2, 5, 3, 4]);
            losses(config, WithNll::new(batch, imitated).unwrap())
        }
        [ColumnKind::Nll, ColumnKind::StepTokens] => {
            let imitated = taken.sequences([-3.0, -6.0, -2.0, -8.0], [2, 5, 3, 4]);
            let batch = WithNll::new(batch, imitated).unwrap();
            losses(config, WithStepTokens::new(batch, 14.0, 4.0).unwrap())
        }
        columns => panic!("{}: no value for {columns:?}", config.name()),
    }
}

/// Losses of a batch that has what `needs` names.
fn losses_of(config: &ObjectiveConfig, needs: &Needs, taken: Taken) -> Vec<f64> {
    let policy = taken.policy();
    let referenced = policy.clone().relative_to(taken.reference()).unwrap();
    let rewards = taken.numbers([0.5, -1.0, 0.2, 2.0]);
    let desirable = taken.flags([true, false, false, true]);
    let lists = || taken.lists(taken.policy());
    macro_rules! of {
        ($batch:expr) => {
            with_columns(config, needs, $batch, taken)
        };
    }
    match (needs.examples, needs.values) {
        (Examples::Pairs, Values::LogProbs) => of!(policy),
        (Examples::Pairs, Values::LogRatios) => of!(referenced),
        (Examples::Pairs, Values::Rewards) => {
            let other = taken.numbers([0.1, -0.5, 1.0, 0.0]);
            of!(RewardPair::new(rewards, other).unwrap())
        }
        (Examples::Unpaired, Values::LogRatios) => {
            of!(Unpaired::new(referenced.chosen, desirable).unwrap())
        }
        (Examples::Demonstrations, Values::LogProbs) => of!(taken.demonstrations()),
        (Examples::Samples, Values::LogProbs) => of!(taken.samples()),
        (Examples::Samples, Values::LogRatios) => {
            let reference = taken.samples().sampler().clone();
            of!(taken.samples().relative_to(reference).unwrap())
        }
        (Examples::Completions, Values::LogProbs) => of!(policy.chosen),
        (Examples::Completions, Values::LogRatios) => of!(referenced.chosen),
        (Examples::Scored, Values::LogRatios) => {
            of!(Scored::new(referenced.chosen, taken.numbers([0.5, 0.2, 0.9, 0.7])).unwrap())
        }
        (Examples::Ranked, Values::LogProbs) => of!(taken.ranked(lists())),
        (Examples::Ranked, Values::LogRatios) => {
            let reference = taken.lists(taken.reference());
            of!(taken.ranked(lists().relative_to(reference).unwrap()))
        }
        (Examples::Ranked, Values::Rewards) => of!(taken.ranked(lists().sum())),
        other => panic!("{}: no batch of {other:?}", config.name()),
    }
}

/// The losses of a batch are those of its examples alone, exactly if the objective says so.
#[test]
fn whole_batch_is_true() {
    let mut configs = Vec::new();
    for name in ObjectiveConfig::NAMES {
        let more: &[&str] = match *name {
            "hdpo" => &[r#", "entropy_weight": 0.9"#],
            "aot" => &["", r#", "paired": false"#],
            "sft" => &[
                "",
                r#", "normalization": "sequence""#,
                r#", "normalization": "sum", "token_weighting": "probability""#,
            ],
            "grpo" => &[
                "",
                r#", "beta": 0.1"#,
                r#", "normalization": "sequence", "advantage": {"normalized_by_all": 1e-4}"#,
                r#", "normalization": {"constant": 8}, "level": "sequence", "beta": 0.1"#,
            ],
            "cpo" | "orpo" | "tpo" => &["", r#", "nll_normalization": "token""#],
            "mixture" => &[
                r#", "parts": [{"weight": 1, "objective": {"loss": "dpo"}}]"#,
                r#", "parts": [{"weight": 1, "objective": {"loss": "dpo"}},
                    {"weight": 1, "objective": {"loss": "aot"}}]"#,
                r#", "parts": [{"weight": 1, "objective": {"loss": "simpo"}}]"#,
            ],
            "with_sft" => &[
                r#", "weight": 1, "objective": {"loss": "dpo"}"#,
                r#", "weight": 1, "objective": {"loss": "aot"}"#,
                r#", "weight": 1, "normalization": "token", "objective": {"loss": "simpo"}"#,
                r#", "weight": 1, "normalization": "token", "objective": {"loss": "dpo"}"#,
                r#", "weight": 1, "objective": {"loss": "orpo", "nll_normalization": "token"}"#,
            ],
            _ => &[""],
        };
        for fields in more {
            configs.push(format!(r#"{{"loss": "{name}"{fields}}}"#));
        }
    }
    for json in configs {
        let config: ObjectiveConfig = serde_json::from_str(&json).unwrap();
        let takes = config.takes();
        assert!(!takes.is_empty(), "{json}");
        for needs in takes {
            let together = losses_of(&config, &needs, Taken(&[0, 1, 2, 3]));
            let alone = (0..4).map(|i| losses_of(&config, &needs, Taken(&[i]))[0]);
            let equal = together
                .iter()
                .zip(alone)
                .all(|(a, b)| error(*a, b) < 1e-13);
            assert_eq!(
                equal, !needs.whole_batch,
                "{json} over {needs}: {together:?}"
            );
        }
    }
}

/// With the tokens of the batch at hand, a mean over the tokens of the step is that over the batch.
#[test]
fn the_tokens_of_a_step_are_those_of_its_batch() {
    let mut compared = 0;
    for json in [
        r#"{"loss": "orpo", "nll_normalization": "token"}"#,
        r#"{"loss": "cpo", "nll_normalization": "token"}"#,
        r#"{"loss": "tpo", "nll_normalization": "token"}"#,
        r#"{"loss": "with_sft", "weight": 2, "normalization": "token", "objective": {"loss": "dpo"}}"#,
        r#"{"loss": "with_sft", "weight": 2, "normalization": "token", "objective": {"loss": "simpo"}}"#,
    ] {
        let config: ObjectiveConfig = serde_json::from_str(json).unwrap();
        let all = config.takes();
        for needs in &all {
            let Some((ColumnKind::StepTokens, below)) = needs.columns.split_last() else {
                continue;
            };
            let of_batch = |n: &&Needs| n.values == needs.values && n.columns == below;
            let of_batch = all.iter().find(of_batch).unwrap();
            assert!(of_batch.whole_batch && !needs.whole_batch, "{json}");
            // 16 chosen tokens and 14 of the column, as `with_columns` has them.
            let [a, b] = [needs, of_batch].map(|n| losses_of(&config, n, Taken(&[0, 1, 2, 3])));
            let equal = a.iter().zip(&b).all(|(a, b)| error(*a, *b) < 1e-13);
            assert!(equal, "{json} over {needs}: {a:?} and {b:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 7);
}
