//! Policy gradients on scored groups against the scalar code, and what their batch promises:
//! padding, order, parts of a step, advantages, extremes, metrics.

use burn::data::dataloader::batcher::Batcher;
use burn::optim::GradientsParams;
use burn::tensor::{Bool, DType, Tensor, TensorData};
use burn_preference::batch::SampleLogProbs;
use burn_preference::config::{BuildError, ObjectiveConfig};
use burn_preference::data::{
    Collator, Example, Format, Group, Json, Object, PairFormat, RankedFormat, RowError,
    SampleFormat, SampleTokens, Text, TokenBudget,
};
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use burn_preference::training::accumulation::Accumulation;
use burn_preference::{
    Advantage, Batch, BatchMetrics, Error, GroupedReward, GrpoLoss, GrpoLossConfig, KlEstimator,
    Metrics, Objective, RatioClip, RatioLevel, Ratios, RelativeTokenLogProbs, Samples,
    TokenLogProbs, TokenNormalization, WithStepTokens,
};
use proptest::prelude::*;

use crate::dual::Dual;
use crate::formulas;
use crate::support::bigram::Bigram;
use crate::support::{
    assert_close, cases, device, elsewhere, error, f64s, floats, keeps_nan, to_vec, wide_dtypes,
};

/// A token that counts: ln π, ln μ and ln π°.
#[derive(Debug, Clone, Copy)]
struct Token {
    policy: f64,
    sampler: f64,
    reference: f64,
}

/// A sample: its tokens, its reward and its prompt.
#[derive(Debug, Clone)]
struct Sample {
    tokens: Vec<Token>,
    reward: f64,
    group: usize,
}

fn sample(tokens: &[(f64, f64)], reward: f64, group: usize) -> Sample {
    let token = |&(policy, sampler): &(f64, f64)| Token {
        policy,
        sampler,
        reference: policy,
    };
    Sample {
        tokens: tokens.iter().map(token).collect(),
        reward,
        group,
    }
}

fn rewards(samples: &[Sample]) -> Vec<GroupedReward> {
    let rewards: Vec<f64> = samples.iter().map(|s| s.reward).collect();
    let groups: Vec<usize> = samples.iter().map(|s| s.group).collect();
    GroupedReward::of_groups(&rewards, &groups).unwrap()
}

/// The loss of sample `i` by the scalar code, with its slope along ln π of its token `moves`.
fn loss(
    config: &GrpoLossConfig,
    samples: &[Sample],
    i: usize,
    per_example: f64,
    moves: usize,
) -> Dual {
    let token = |here: bool, (t, token): (usize, &Token)| formulas::Token {
        policy: Dual {
            value: token.policy,
            slope: f64::from(here && t == moves),
        },
        sampler: token.sampler,
        reference: token.reference,
    };
    let sample = |(j, sample): (usize, &Sample)| {
        let tokens = sample.tokens.iter().enumerate();
        formulas::Sample {
            tokens: tokens.map(|each| token(i == j, each)).collect(),
            reward: sample.reward,
            group: sample.group,
        }
    };
    let samples: Vec<_> = samples.iter().enumerate().map(sample).collect();
    formulas::sample(config, &samples, i, per_example)
}

// ---------------------------------------------------------------- the crate's

/// Losses, d Σ losses / d log-probs of the policy, row by row, and metrics.
struct Found {
    losses: Vec<f64>,
    grads: Vec<f64>,
    metrics: Metrics,
}

impl Found {
    fn is_finite(&self) -> bool {
        let all = self.losses.iter().chain(&self.grads);
        all.clone().all(|x| x.is_finite()) && self.metrics.iter().all(|(_, x)| x.is_finite())
    }
}

/// The samples as rectangles with `more` columns than the longest needs; what does not count is
/// `rest`.
struct Rectangle {
    shape: [usize; 2],
    numbers: [Vec<f64>; 3],
    mask: Tensor<2, Bool>,
}

fn rectangle(samples: &[Sample], more: usize, rest: f64) -> Rectangle {
    let longest = samples.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
    let shape = [samples.len(), longest.max(1) + more];
    let all = |of: fn(&Token) -> f64| {
        let row = |sample: &Sample| {
            let mut row: Vec<f64> = sample.tokens.iter().map(of).collect();
            row.resize(shape[1], rest);
            row
        };
        samples.iter().flat_map(row).collect::<Vec<_>>()
    };
    let counts = |sample: &Sample| {
        let length = sample.tokens.len();
        (0..shape[1]).map(move |t| t < length)
    };
    let mask: Vec<bool> = samples.iter().flat_map(counts).collect();
    Rectangle {
        shape,
        numbers: [all(|t| t.policy), all(|t| t.sampler), all(|t| t.reference)],
        mask: Tensor::from_data(TensorData::new(mask, shape), &device()),
    }
}

/// Of these samples, whose rewards are given, in a step of so many tokens per example if one is.
fn run_part(
    config: &GrpoLossConfig,
    samples: &[Sample],
    rewards: &[GroupedReward],
    per_example: Option<f64>,
    (more, rest): (usize, f64),
    dtype: DType,
) -> Found {
    let Rectangle {
        shape,
        numbers: [policy, sampler, reference],
        mask,
    } = rectangle(samples, more, rest);
    let leaf = floats(&policy, dtype).autodiff().require_grad();
    let of = |values: Tensor<1>| TokenLogProbs::new(values.reshape(shape), mask.clone()).unwrap();
    let batch = Samples::new(of(leaf.clone()), of(floats(&sampler, dtype)), rewards).unwrap();
    assert_eq!(batch.len(), samples.len());
    let (losses, metrics) = if config.beta > 0.0 {
        let batch = batch.relative_to(of(floats(&reference, dtype))).unwrap();
        forward(&config.init(), batch, per_example)
    } else {
        forward(&config.init(), batch, per_example)
    };
    let grads = losses.clone().sum().backward();
    let grads = leaf
        .grad(&grads)
        .unwrap_or_else(|| leaf.zeros_like().inner());
    Found {
        losses: to_vec(losses),
        grads: to_vec(grads),
        metrics: metrics.read().unwrap(),
    }
}

fn forward<L: SampleLogProbs + Clone>(
    grpo: &GrpoLoss,
    batch: Samples<L>,
    per_example: Option<f64>,
) -> (Tensor<1>, BatchMetrics)
where
    GrpoLoss: Objective<Samples<L>> + Objective<WithStepTokens<Samples<L>>>,
    Samples<L>: burn_preference::training::metrics::Observe<Rewards = Ratios>,
{
    match per_example {
        None => {
            let output = grpo.forward(batch.clone());
            (output.losses(), BatchMetrics::observe(&batch, &output))
        }
        Some(per_example) => {
            let batch = WithStepTokens::new(batch, 64.0 * per_example, 64.0).unwrap();
            let output = grpo.forward(batch.clone());
            (output.losses(), BatchMetrics::observe(&batch, &output))
        }
    }
}

fn run(config: &GrpoLossConfig, samples: &[Sample], dtype: DType) -> Found {
    run_part(config, samples, &rewards(samples), None, (0, 0.0), dtype)
}

const ADVANTAGES: [Advantage; 4] = [
    Advantage::Normalized(1e-4),
    Advantage::NormalizedByAll(1e-2),
    Advantage::Centered,
    Advantage::LeaveOneOut,
];
const LEVELS: [RatioLevel; 3] = [
    RatioLevel::Token,
    RatioLevel::Sequence,
    RatioLevel::Completion,
];
const CLIPS: [RatioClip; 3] = [
    RatioClip::Objective,
    RatioClip::TwoSided(1.5),
    RatioClip::Weight,
];
const NORMALIZATIONS: [TokenNormalization; 3] = [
    TokenNormalization::Token,
    TokenNormalization::Sequence,
    TokenNormalization::Constant(7.0),
];
const KLS: [(f64, KlEstimator); 3] = [
    (0.0, KlEstimator::K3),
    (0.3, KlEstimator::K3),
    (0.3, KlEstimator::WeightedK3),
];

/// Every level, clip, normalisation and KL, with one advantage.
fn all(advantage: Advantage) -> Vec<GrpoLossConfig> {
    let mut configs = Vec::new();
    for level in LEVELS {
        for clip in CLIPS {
            for normalization in NORMALIZATIONS {
                for (beta, kl) in KLS {
                    let config = GrpoLossConfig::new()
                        .with_advantage(advantage)
                        .with_level(level)
                        .with_clip(clip)
                        .with_normalization(normalization)
                        .with_beta(beta)
                        .with_kl(kl);
                    configs.push(config.with_clip_low(0.3).with_clip_high(0.25));
                }
            }
        }
    }
    configs
}

prop_compose! {
    fn any_config()(
        advantage in prop::sample::select(&ADVANTAGES[..]),
        level in prop::sample::select(&LEVELS[..]),
        clip in prop::sample::select(&CLIPS[..]),
        normalization in prop::sample::select(&NORMALIZATIONS[..]),
        (beta, kl) in prop::sample::select(&KLS[..]),
        (low, high) in (0.05..1.0_f64, 0.05..1.0_f64),
    ) -> GrpoLossConfig {
        GrpoLossConfig::new()
            .with_advantage(advantage)
            .with_level(level)
            .with_clip(clip)
            .with_normalization(normalization)
            .with_beta(beta)
            .with_kl(kl)
            .with_clip_low(low)
            .with_clip_high(high)
    }
}

prop_compose! {
    fn any_token()(policy in -6.0..-1e-3_f64, ratio in -0.8..0.8_f64, away in -2.0..2.0_f64) -> Token {
        Token { policy, sampler: policy - ratio, reference: policy + away }
    }
}

prop_compose! {
    /// Groups of two to four samples, whose rows are mixed.
    fn any_samples()(
        groups in prop::collection::vec(
            prop::collection::vec((prop::collection::vec(any_token(), 0..5), -2.0..2.0_f64), 2..5), 1..4)
    )(
        samples in Just(groups.into_iter().enumerate().flat_map(|(group, members)| {
            let sample = move |(tokens, reward)| Sample { tokens, reward, group: 7 * group };
            members.into_iter().map(sample)
        }).collect::<Vec<_>>()).prop_shuffle()
    ) -> Vec<Sample> {
        samples
    }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn the_loss_matches_the_scalar_code(
        config in any_config(),
        samples in any_samples(),
        step in prop::option::of(0.5..9.0_f64),
    ) {
        let counted: usize = samples.iter().map(|s| s.tokens.len()).sum();
        let of_batch = counted.max(1) as f64 / samples.len() as f64;
        let per_example = step.unwrap_or(of_batch);
        let found = run_part(&config, &samples, &rewards(&samples), step, (0, 0.0), DType::F64);
        let time = found.grads.len() / samples.len();
        for (i, sample) in samples.iter().enumerate() {
            let loss = |t| loss(&config, &samples, i, per_example, t);
            let expected = loss(0).value;
            prop_assert!(error(found.losses[i], expected) < 1e-11, "{} {expected}", found.losses[i]);
            for t in 0..time {
                let ours = found.grads[i * time + t];
                if t >= sample.tokens.len() {
                    prop_assert_eq!(ours, 0.0);
                } else {
                    let slope = loss(t).slope;
                    prop_assert!(error(ours, slope) < 1e-10, "{ours} {slope}");
                }
            }
        }
    }

    /// Columns that do not count change nothing, whatever stands there.
    #[test]
    fn padding_changes_nothing(config in any_config(), samples in any_samples(), more in 1..4_usize) {
        let expected = run(&config, &samples, DType::F64);
        for rest in [1.0, f64::NAN, f64::NEG_INFINITY] {
            let grouped = rewards(&samples);
            let found = run_part(&config, &samples, &grouped, None, (more, rest), DType::F64);
            assert_close(&found.losses, &expected.losses, 1e-13, "loss");
            let [before, after] = [&expected, &found].map(|of| of.grads.len() / samples.len());
            for i in 0..samples.len() {
                let (old, new) = (&expected.grads[i * before..][..before], &found.grads[i * after..]);
                assert_close(&new[..before], old, 1e-13, "gradient");
                prop_assert!(new[before..after].iter().all(|grad| *grad == 0.0));
            }
            for (key, value) in expected.metrics.iter() {
                prop_assert!(error(found.metrics.get(key).unwrap(), value) < 1e-12, "{key}");
            }
        }
    }

    /// A step is the sum of its samples, each in a part of its own; where a sample stands means
    /// nothing.
    #[test]
    fn samples_alone_add_up_to_the_step(config in any_config(), samples in any_samples()) {
        let counted: usize = samples.iter().map(|s| s.tokens.len()).sum();
        let per_example = counted.max(1) as f64 / samples.len() as f64;
        let whole = run(&config, &samples, DType::F64);
        let grouped = rewards(&samples);
        let mut metrics = Metrics::default();
        for (i, sample) in samples.iter().enumerate() {
            let (sample, reward) = (std::slice::from_ref(sample), &grouped[i..=i]);
            let part = run_part(&config, sample, reward, Some(per_example), (1, 0.0), DType::F64);
            prop_assert!(error(part.losses[0], whole.losses[i]) < 1e-12);
            metrics.merge(&part.metrics);
        }
        for (key, value) in whole.metrics.iter() {
            prop_assert!(error(metrics.get(key).unwrap(), value) < 1e-11, "{key}");
        }
        let reversed: Vec<Sample> = samples.iter().rev().cloned().collect();
        let mut found = run(&config, &reversed, DType::F64).losses;
        found.reverse();
        assert_close(&found, &whole.losses, 1e-12, "order");
    }

    /// The level of the rewards means nothing, and their scale nothing once they are divided by it.
    #[test]
    fn rewards_are_compared_within_their_group(samples in any_samples(), up in -50.0..50.0_f64) {
        let moved: Vec<Sample> = samples.iter().cloned().map(|s| Sample {
            reward: 2.0 * s.reward + up * s.group as f64,
            ..s
        }).collect();
        for (old, new) in rewards(&samples).iter().zip(rewards(&moved)) {
            for of in [Advantage::Centered, Advantage::LeaveOneOut] {
                prop_assert!((2.0 * of.of(old) - of.of(&new)).abs() < 1e-11);
            }
            let normalized = Advantage::Normalized(1e-9);
            prop_assert!((normalized.of(old) - normalized.of(&new)).abs() < 1e-6);
        }
        // Of a group, the mean is 0.
        for of in [Advantage::Normalized(1e-4), Advantage::Centered, Advantage::LeaveOneOut] {
            let grouped = rewards(&samples);
            for group in 0..3 {
                let members = samples.iter().zip(&grouped).filter(|(s, _)| s.group == 7 * group);
                let sum: f64 = members.map(|(_, reward)| of.of(reward)).sum();
                prop_assert!(sum.abs() < 1e-10, "{of:?} {sum}");
            }
        }
    }
}

#[test]
fn advantages_by_hand() {
    // Means 2 and 0.5, deviations √(2/2)·… of 1, 2, 3 and of 0, 1.
    let grouped = GroupedReward::of_groups(&[1.0, 0.0, 2.0, 3.0, 1.0], &[4, 9, 4, 4, 9]).unwrap();
    let all = |of: Advantage| grouped.iter().map(|r| of.of(r)).collect::<Vec<_>>();
    let half = 0.5 / (0.5_f64.sqrt() + 1e-4);
    let one = 1.0 / 1.0001;
    let normalized = all(Advantage::Normalized(1e-4));
    assert_close(&normalized, &[-one, -half, 0.0, one, half], 1e-15, "A");
    assert_eq!(all(Advantage::Centered), [-1.0, -0.5, 0.0, 1.0, 0.5]);
    assert_eq!(all(Advantage::LeaveOneOut), [-1.5, -1.0, 0.0, 1.5, 1.0]);
    // 1, 0, 2, 3, 1: mean 1.4, Σ of squares 5.2, over 4.
    let of_all = 1.3_f64.sqrt() + 1e-4;
    let expected = [-1.0, -0.5, 0.0, 1.0, 0.5].map(|x| x / of_all);
    assert_close(
        &all(Advantage::NormalizedByAll(1e-4)),
        &expected,
        1e-14,
        "A",
    );
    assert_eq!(
        (grouped[0].reward(), grouped[0].size(), grouped[1].size()),
        (1.0, 3, 2)
    );
    // 0.1 three times has another mean than 0.1, if it is added up.
    let equal = GroupedReward::of_groups(&[0.1; 3], &[0; 3]).unwrap();
    assert!(equal.iter().all(|r| r.deviation() == 0.0 && r.std() == 0.0));
}

/// While the policy is its sampler: ratio 1, nothing is clipped, and the gradient of REINFORCE.
#[test]
fn the_first_step_is_reinforce() {
    let samples = [
        sample(&[(-1.0, -1.0), (-2.0, -2.0)], 1.0, 0),
        sample(&[(-0.5, -0.5)], 0.0, 0),
        // All equal: it counts, and teaches nothing.
        sample(&[(-0.5, -0.5)], 3.0, 1),
        sample(&[(-0.5, -0.5), (-1.5, -1.5)], 3.0, 1),
    ];
    for config in all(Advantage::LeaveOneOut) {
        if config.beta > 0.0 {
            continue;
        }
        let found = run(&config, &samples, DType::F64);
        let divisors = |length: f64| match config.normalization {
            TokenNormalization::Sequence => length,
            TokenNormalization::Constant(divisor) => divisor,
            _ => 1.5,
        };
        // The ratio of a completion moves with each of its tokens, and each token has it.
        let tokens = |length: f64| match (config.level, config.clip) {
            (RatioLevel::Completion, RatioClip::Objective | RatioClip::TwoSided(_)) => length,
            _ => 1.0,
        };
        let slope = |advantage: f64, length: f64| -advantage * tokens(length) / divisors(length);
        let (first, second) = (slope(1.0, 2.0), slope(-1.0, 1.0));
        let expected = [first, first, second, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert_close(&found.grads, &expected, 1e-14, &format!("{config:?}"));
        let metrics = &found.metrics;
        assert_eq!(metrics.get("ratio"), Some(1.0));
        assert_eq!(metrics.get("clip_ratio/region_mean"), Some(0.0));
        assert_eq!(metrics.get("frac_reward_zero_std"), Some(0.5));
        assert_eq!(metrics.get("reward"), Some(1.75));
    }
}

#[test]
fn which_losses_are_of_the_whole_batch() {
    for config in all(Advantage::NormalizedByAll(1e-4)) {
        let grpo = config.init();
        let token = config.normalization == TokenNormalization::Token;
        assert_eq!(Objective::<Samples>::whole_batch(&grpo), token);
        assert!(!Objective::<WithStepTokens<Samples>>::whole_batch(&grpo));
        assert_eq!(
            Objective::<Samples<RelativeTokenLogProbs>>::whole_batch(&grpo),
            token
        );
    }
}

/// Ratios of e^±1e4, a reference as far away, completions of which nothing counts, huge rewards.
#[test]
fn extremes_are_finite() {
    let token = |policy: f64, sampler: f64, reference: f64| Token {
        policy,
        sampler,
        reference,
    };
    let of = |tokens: &[Token], reward| Sample {
        tokens: tokens.to_vec(),
        reward,
        group: 0,
    };
    let far = [
        token(-1.0, -1e4, -1e4),
        token(-1e4, -1.0, -1.0),
        token(-1e4, -1.0, -1e4),
        token(-1.0, -1e4, -1.0),
        token(-1e5, -1e5, 0.0),
        token(-1e-8, 0.0, -1e5),
    ];
    let mut samples: Vec<Sample> = far.iter().map(|t| of(&[*t], 1.0)).collect();
    samples.extend(far.iter().map(|t| of(&[*t, token(-0.5, -0.6, -0.4)], -1.0)));
    samples.push(of(&far, 0.5));
    samples.push(of(&[], 0.3));
    for dtype in wide_dtypes() {
        for advantage in ADVANTAGES {
            for config in all(advantage) {
                let grouped = rewards(&samples);
                let found = run_part(&config, &samples, &grouped, None, (1, f64::NAN), dtype);
                assert!(
                    found.is_finite(),
                    "{dtype:?} {config:?}: {:?} {:?}",
                    found.losses,
                    found.grads
                );
                assert_eq!(found.losses.last(), Some(&0.0));
            }
        }
        // Rewards of ±1e30, where their square does not fit into f32.
        let mut huge = vec![
            sample(&[(-1.0, -1.1)], 1e30, 0),
            sample(&[(-1.0, -0.9)], -1e30, 0),
        ];
        let found = run(&GrpoLossConfig::new(), &huge, dtype);
        assert!(found.is_finite());
        huge.truncate(0);
        assert_eq!(
            run(
                &GrpoLossConfig::new(),
                &[sample(&[], 1.0, 0), sample(&[], 0.0, 0)],
                dtype
            )
            .losses,
            [0.0; 2]
        );
    }
}

#[test]
fn an_empty_batch_has_no_loss() {
    let none = || {
        let empty = Tensor::<2>::zeros([0, 3], &device());
        let mask = Tensor::<2, Bool>::full([0, 3], true, &device());
        TokenLogProbs::new(empty, mask).unwrap()
    };
    for config in all(Advantage::Centered) {
        let batch = Samples::new(none(), none(), &[]).unwrap();
        assert!(batch.is_empty());
        let batch = batch.relative_to(none()).unwrap();
        let output = config.init().forward(batch);
        assert_eq!(to_vec(output.mean()), [0.0], "{config:?}");
    }
}

#[test]
fn a_nan_stays_in_its_sample() {
    if !keeps_nan() {
        return;
    }
    let mut samples = vec![
        sample(&[(-1.0, -1.1), (-2.0, -2.0)], 1.0, 0),
        sample(&[(-0.5, -0.4)], 0.0, 0),
    ];
    for config in all(Advantage::Centered) {
        for (place, value) in [(0, f64::NAN), (1, f64::NAN)] {
            let token = &mut samples[0].tokens[0];
            let before = *token;
            *[&mut token.policy, &mut token.sampler][place] = value;
            let found = run_part(
                &config,
                &samples,
                &rewards(&samples),
                Some(1.5),
                (0, 0.0),
                DType::F64,
            );
            assert!(
                found.losses[0].is_nan() && found.losses[1].is_finite(),
                "{config:?} {place}: {:?}",
                found.losses
            );
            samples[0].tokens[0] = before;
        }
    }
}

/// e^d − d − 1 to the last digit, where the terms cancel and where they do not.
#[test]
fn the_kl_term_keeps_its_digits() {
    let away = [
        1e-12, -1e-9, 1e-7, -1e-5, 1e-3, -0.1, 0.3, -0.69, 0.7, -3.0, 5.0, -1e4,
    ];
    let exact = |d: f64| {
        if d.abs() > 0.1 {
            return d.exp_m1() - d;
        }
        let terms = (2..20).rev().map(|n| {
            let factorial: f64 = (1..=n).map(f64::from).product();
            d.powi(n) / factorial
        });
        terms.sum()
    };
    for dtype in wide_dtypes() {
        let leaf = floats(&away, dtype).autodiff().require_grad();
        let n = away.len();
        let mask = || Tensor::<2, Bool>::full([1, n], true, &device());
        let policy = TokenLogProbs::new(-leaf.clone().reshape([1, n]), mask()).unwrap();
        let zero = TokenLogProbs::new(policy.log_probs().zeros_like(), mask()).unwrap();
        let against = policy.relative_to(zero).unwrap();
        let kl = KlEstimator::K3.of_tokens(&against, against.log_ratios());
        let rounded: Vec<f64> = to_vec(leaf.clone().inner());
        let allowed = if dtype == DType::F64 { 2e-15 } else { 1e-6 };
        let values = to_vec(kl.clone().flatten::<1>(0, 1));
        for (found, d) in values.iter().zip(&rounded) {
            let expected = exact(*d);
            let relative = (found - expected).abs() / expected;
            assert!(relative < allowed, "{dtype:?} {d}: {found} {expected}");
        }
        let grads = to_vec(leaf.grad(&kl.sum().backward()).unwrap());
        for (found, d) in grads.iter().zip(&rounded) {
            let relative = (found - d.exp_m1()).abs() / d.exp_m1().abs();
            assert!(relative < allowed, "{dtype:?} {d}: {found}");
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let wrong = |rewards: &[f64], groups: &[usize]| {
        let error = GroupedReward::of_groups(rewards, groups).unwrap_err();
        (error.name(), error.to_string())
    };
    let (name, text) = wrong(&[1.0, 2.0, 3.0], &[0, 0, 1]);
    assert_eq!(name, "groups");
    assert_eq!(
        text,
        "`groups`: expected two samples of each prompt at least, found one of the group 1"
    );
    assert_eq!(wrong(&[1.0, 2.0], &[0]).0, "groups");
    assert_eq!(wrong(&[1.0, f64::NAN], &[0, 0]).0, "rewards");
    assert_eq!(wrong(&[f64::INFINITY, 1.0], &[0, 0]).0, "rewards");
    assert_eq!(wrong(&[1e300, 1.0], &[0, 0]).0, "rewards");
    assert_eq!(GroupedReward::of_groups(&[], &[]), Ok(Vec::new()));

    let of = |rows: usize, columns: usize, device: &burn::tensor::Device| {
        let mask = Tensor::<2, Bool>::full([rows, columns], true, device);
        TokenLogProbs::new(Tensor::zeros([rows, columns], device), mask).unwrap()
    };
    let here = device();
    let two = GroupedReward::of_groups(&[1.0, 0.0], &[0, 0]).unwrap();
    let name = |result: Result<Samples, burn_preference::InvalidInput>| result.unwrap_err().name();
    assert_eq!(
        name(Samples::new(of(2, 3, &here), of(2, 2, &here), &two)),
        "sampler"
    );
    assert_eq!(
        name(Samples::new(of(2, 3, &here), of(2, 3, &elsewhere()), &two)),
        "sampler"
    );
    assert_eq!(
        name(Samples::new(of(3, 2, &here), of(3, 2, &here), &two)),
        "rewards"
    );
    let batch = || Samples::new(of(2, 3, &here), of(2, 3, &here), &two).unwrap();
    let error = batch().relative_to(of(2, 2, &here)).unwrap_err();
    assert_eq!(error.name(), "reference");
    let ratios = || Tensor::<2>::ones([2, 1], &here);
    let marks = |columns: usize| Tensor::<2, Bool>::full([2, columns], true, &here);
    let error = Ratios::new(ratios(), marks(2), [marks(1), marks(1)]).unwrap_err();
    assert_eq!(error.name(), "counted");
    let error = Ratios::new(ratios(), marks(1), [marks(1), marks(2)]).unwrap_err();
    assert_eq!(error.name(), "high");
    let fits = Ratios::new(ratios(), marks(1), [marks(1), marks(1)]).unwrap();
    assert_eq!(
        fits.with_kl(ratios(), marks(2)).unwrap_err().name(),
        "counted"
    );

    // Values outside their ranges.
    let config = GrpoLossConfig::new;
    for (config, name) in [
        (
            config().with_advantage(Advantage::Normalized(0.0)),
            "advantage.normalized",
        ),
        (
            config().with_advantage(Advantage::NormalizedByAll(-1.0)),
            "advantage.normalized_by_all",
        ),
        (
            config().with_clip(RatioClip::TwoSided(1.0)),
            "clip.two_sided",
        ),
        (config().with_clip_low(1.5), "clip_low"),
        (config().with_clip_high(-0.1), "clip_high"),
        (config().with_beta(-0.1), "beta"),
        (
            config().with_normalization(TokenNormalization::Constant(0.0)),
            "normalization.constant",
        ),
    ] {
        assert_eq!(config.try_init().unwrap_err().name(), name);
    }
}

/// A file with β takes batches with a reference, and only these.
#[test]
fn beta_asks_for_a_reference() {
    let config = |json: &str| serde_json::from_str::<ObjectiveConfig>(json).unwrap();
    let words = |config: &ObjectiveConfig| -> Vec<String> {
        config.takes().iter().map(ToString::to_string).collect()
    };
    let plain = config(r#"{"loss": "grpo"}"#);
    assert_eq!(words(&plain), ["samples", "samples, tokens of the step"]);
    let with_beta = config(r#"{"loss": "grpo", "beta": 0.04, "kl": "k3"}"#);
    assert_eq!(
        words(&with_beta),
        [
            "samples, reference",
            "samples, reference, tokens of the step"
        ]
    );
    assert!(plain.build::<WithStepTokens<Samples>>().is_ok());
    assert!(with_beta.build::<Samples<RelativeTokenLogProbs>>().is_ok());
    let error = with_beta.build::<Samples>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "`grpo` takes samples, reference; or samples, reference, tokens of the step; it does not \
         take samples"
    );
    assert!(matches!(error, BuildError::Batch { .. }));
    assert!(plain.build::<Samples<RelativeTokenLogProbs>>().is_err());
    let negative = config(r#"{"loss": "grpo", "beta": -1}"#);
    assert!(matches!(negative.check(), Err(error) if error.name() == "beta"));
    // Alternatives with a number, in a file.
    let json = r#"{"loss": "grpo", "advantage": {"normalized": 1e-6}, "level": "sequence",
        "clip": {"two_sided": 4}, "normalization": {"constant": 512}}"#;
    let written = serde_json::to_string(&config(json)).unwrap();
    assert_eq!(config(&written), config(json));
}

#[test]
#[should_panic(expected = "β > 0 needs a batch with a reference")]
fn beta_without_a_reference_panics() {
    let samples = [
        sample(&[(-1.0, -1.0)], 1.0, 0),
        sample(&[(-1.0, -1.0)], 0.0, 0),
    ];
    let Rectangle {
        shape,
        numbers,
        mask,
    } = rectangle(&samples, 0, 0.0);
    let of =
        |values: &[f64]| TokenLogProbs::new(f64s(values).reshape(shape), mask.clone()).unwrap();
    let batch = Samples::new(of(&numbers[0]), of(&numbers[1]), &rewards(&samples)).unwrap();
    let _ = GrpoLossConfig::new().with_beta(0.1).init().forward(batch);
}

#[test]
fn metrics_of_samples() {
    // Ratios of e^0.5, e^−0.5, 1 and e^−0.5; advantages ±½.
    let mut samples = vec![
        sample(&[(-1.0, -1.5), (-2.0, -1.5)], 1.0, 0),
        sample(&[(-1.0, -1.0), (-2.0, -1.5)], 0.0, 0),
    ];
    let centered = GrpoLossConfig::new().with_advantage(Advantage::Centered);
    let metrics = run(&centered, &samples, DType::F64).metrics;
    let keys: Vec<&str> = metrics.iter().map(|(key, _)| key).collect();
    let expected = [
        "clip_ratio/high_mean",
        "clip_ratio/low_mean",
        "clip_ratio/region_mean",
        "frac_reward_zero_std",
        "length_mismatches",
        "logps",
        "loss",
        "mean_logps",
        "ratio",
        "reward",
        "reward_std",
        "sampling/sampling_logp_difference/mean",
    ];
    assert_eq!(keys, expected);
    let get = |metrics: &Metrics, key: &str| metrics.get(key).unwrap();
    // The good one's first token is above 1.2, the bad one's second below 0.8.
    assert_eq!(get(&metrics, "clip_ratio/high_mean"), 0.25);
    assert_eq!(get(&metrics, "clip_ratio/low_mean"), 0.25);
    assert_eq!(get(&metrics, "clip_ratio/region_mean"), 0.5);
    let ratio = (0.5_f64.exp() + 2.0 * (-0.5_f64).exp() + 1.0) / 4.0;
    assert!(error(get(&metrics, "ratio"), ratio) < 1e-14);
    // Of 0.5, 0.5, 0.5 and 0: the mean ratio is near 1 nevertheless.
    let off = "sampling/sampling_logp_difference/mean";
    assert!(error(get(&metrics, off), 0.375) < 1e-14);
    assert_eq!(metrics.count(off), 4.0);
    assert_eq!(metrics.count("ratio"), 4.0);
    assert!(error(get(&metrics, "reward_std"), 0.5_f64.sqrt()) < 1e-14);
    assert_eq!(get(&metrics, "frac_reward_zero_std"), 0.0);
    assert_eq!(
        (get(&metrics, "logps"), get(&metrics, "length_mismatches")),
        (-3.0, 0.0)
    );

    // Of completions there are two.
    let of_completions = centered.clone().with_level(RatioLevel::Completion);
    let metrics = run(&of_completions, &samples, DType::F64).metrics;
    assert_eq!(metrics.count("ratio"), 2.0);
    assert_eq!(get(&metrics, "clip_ratio/low_mean"), 0.5);
    assert_eq!(get(&metrics, "clip_ratio/high_mean"), 0.0);
    // A weight is clipped whatever the advantage is.
    let of_weights = centered.clone().with_clip(RatioClip::Weight);
    let metrics = run(&of_weights, &samples, DType::F64).metrics;
    assert_eq!(get(&metrics, "clip_ratio/low_mean"), 0.5);

    // The KL term is what the loss has.
    samples[0].tokens[0].reference = -2.0;
    let k3 = (-1.0_f64).exp() + 1.0 - 1.0;
    let with_kl = centered.with_beta(0.1).with_kl(KlEstimator::K3);
    let metrics = run(&with_kl, &samples, DType::F64).metrics;
    assert!(error(get(&metrics, "kl"), k3 / 4.0) < 1e-14);
    let metrics = run(
        &with_kl.with_kl(KlEstimator::WeightedK3),
        &samples,
        DType::F64,
    )
    .metrics;
    assert!(error(get(&metrics, "kl"), 0.5_f64.exp() * k3 / 4.0) < 1e-14);
}

/// Gradients of unequal parts, which cut groups, are those of one batch.
#[test]
fn parts_add_up_to_the_step() -> Result<(), Error> {
    let policy = Bigram::new([9, 4], 0, &device().autodiff());
    let sampler = Bigram::new([9, 4], 1, &device());
    let rows: Vec<Sequence> = (0..6_u32)
        .map(|i| {
            let completion: Vec<u32> = (0..=i % 3).map(|t| (i + t * t + 1) % 9).collect();
            Sequence::new(&[i / 3], &completion)
        })
        .collect();
    let grouped = GroupedReward::of_groups(&[1.0, 0.0, 0.5, 2.0, 2.0, -1.0], &[0, 0, 0, 1, 1, 1])?;
    let batch = |places: &[usize]| -> Result<Samples, Error> {
        let sequences = places.iter().map(|i| rows[*i].clone()).collect();
        let rewards: Vec<GroupedReward> = places.iter().map(|i| grouped[*i]).collect();
        let tokens = TokenBatch::new(sequences, Padding::new(0), &device())?;
        let of_sampler = tokens.token_log_probs(sampler.hidden(tokens.ids.clone()))?;
        let ours = tokens.token_log_probs(policy.hidden(tokens.ids.clone()))?;
        Ok(Samples::new(ours, of_sampler, &rewards)?)
    };
    let numbers = |grads: &GradientsParams| -> Vec<f64> {
        let weights = [&policy.embedding.weight, &policy.head.weight].map(|weight| weight.id);
        let of = weights.map(|id| to_vec(grads.get::<2>(id).unwrap()));
        of.concat()
    };
    let counted: usize = rows.iter().map(Sequence::length).sum();
    for config in all(Advantage::Normalized(1e-4)) {
        if config.beta > 0.0 {
            continue;
        }
        let grpo = config.init();
        let output = grpo.forward(batch(&[0, 1, 2, 3, 4, 5])?);
        let grads = GradientsParams::from_grads(output.mean().backward(), &policy);
        let expected = numbers(&grads);
        let mut step = Accumulation::over(6.0)?;
        for places in [&[0, 4][..], &[3], &[5, 2, 1]] {
            let part = WithStepTokens::new(batch(places)?, counted as f64, 6.0)?;
            step.add(&policy, &part, grpo.forward(part.clone()))?;
        }
        let (grads, _) = step.clipped(&policy, 1e9)?;
        assert_close(&numbers(&grads), &expected, 5e-6, &format!("{config:?}"));
    }
    Ok(())
}

fn row(json: &str) -> Object {
    match serde_json::from_str(json).unwrap() {
        Json::Object(row) => row,
        other => panic!("{other}"),
    }
}

const ROW: &str = r#"{"prompt": "2+2=", "responses": ["4", "22", "5"], "scores": [1, 0, 0.5],
    "prompt_ids": [5, 6], "response_ids": [[1, 0], [2, 2, 0], []],
    "response_log_probs": [[-0.7, -0.1], [-1.6, -0.2, -0.3], []], "id": 7}"#;

/// Each sample is an example of its own, with the ids that were drawn.
#[test]
fn groups_of_a_file_are_samples() {
    use burn::data::dataloader::BatchStrategy;

    let group = SampleFormat::default().parse(row(ROW)).unwrap();
    assert_eq!(group.completions().len(), 3);
    assert_eq!(group.prompt, Text::Plain("2+2=".into()));
    let mut other = group.clone();
    other.label = Group {
        rewards: vec![3.0, 1.0],
        prompt_ids: Vec::new(),
        ids: vec![vec![8, 9], vec![7]],
        log_probs: vec![vec![-9.0, -0.5], vec![-9.0]],
    };
    let samples = Example::samples(&[group.clone(), other]).unwrap();
    let deviations: Vec<f64> = samples.iter().map(|s| s.label.reward.deviation()).collect();
    assert_close(&deviations, &[0.5, -0.5, 0.0, 1.0, -1.0], 1e-15, "r − r̄");
    assert!(
        samples
            .iter()
            .all(|sample| sample.columns["id"].as_f64() == Some(7.0))
    );
    // As many as fit, as of any label.
    let mut budget = TokenBudget::padded(10, Padding::new(0));
    budget.add(samples[0].clone());
    budget.add(samples[1].clone());
    assert_eq!(budget.batch(true).unwrap().len(), 2);

    // Column t belongs to token t + 1, and nothing predicts the first token of a row.
    let batch: SampleTokens = Collator::new(Padding::new(0)).batch(samples, &device());
    assert_eq!(batch.sampler.dims(), [5, 4]);
    let expected = [
        [0.0, -0.7, -0.1, 0.0],
        [0.0, -1.6, -0.2, -0.3],
        [0.0; 4],
        [-0.5, 0.0, 0.0, 0.0],
        [0.0; 4],
    ];
    assert_close(
        &to_vec(batch.sampler.clone()),
        expected.as_flattened(),
        1e-7,
        "ln μ",
    );
    let [rows, time] = batch.tokens.ids.dims();
    let logits = Tensor::<3>::zeros([rows, time, 10], &device());
    let policy = batch.tokens.token_log_probs(logits).unwrap();
    let lengths = to_vec(policy.sequence().lengths());
    let found = batch.samples(policy.clone()).unwrap();
    assert_eq!(to_vec(found.sampler().sequence().lengths()), lengths);
    let ratio = -10_f64.ln() + 0.7;
    assert!(error(to_vec(found.log_ratios())[1], ratio) < 1e-6);
    assert_eq!(found.rewards()[4].deviation(), -1.0);
    let fewer = TokenLogProbs::new(
        Tensor::zeros([4, 4], &device()),
        Tensor::full([4, 4], true, &device()),
    );
    assert!(batch.samples(fewer.unwrap()).is_err());
}

/// Formats do not take one kind of rows for another: what is missing has a name.
#[test]
fn rows_of_groups_are_no_other_rows() {
    let lists = RankedFormat::default().parse(row(ROW)).unwrap();
    assert_eq!((lists.completions().len(), lists.label.0[2]), (3, 0.5));
    assert_eq!(
        PairFormat::default().parse(row(ROW)).unwrap_err().field(),
        "chosen"
    );
    let wrong = |change: &dyn Fn(&mut Object)| -> RowError {
        let mut row = row(ROW);
        change(&mut row);
        SampleFormat::default().parse(row).unwrap_err()
    };
    let json = |text: &str| serde_json::from_str::<Json>(text).unwrap();
    for name in [
        "prompt",
        "responses",
        "scores",
        "prompt_ids",
        "response_ids",
        "response_log_probs",
    ] {
        let error = wrong(&|row| {
            row.remove(name);
        });
        assert_eq!((error.field(), error.found()), (name, "nothing"));
    }
    for (name, value, field) in [
        ("prompt_ids", "3", "prompt_ids"),
        ("prompt_ids", "[-1]", "prompt_ids[0]"),
        ("prompt_ids", "[2147483648]", "prompt_ids[0]"),
        ("response_ids", "[[1, 0], [2, 2, 0]]", "response_ids"),
        (
            "response_ids",
            "[[1, 0], [2, 0.5, 0], []]",
            "response_ids[1][1]",
        ),
        ("response_ids", "[[1, 0], 4, []]", "response_ids[1]"),
        (
            "response_log_probs",
            "[[-0.7], [-1.6, -0.2, -0.3], []]",
            "response_log_probs[0]",
        ),
        (
            "response_log_probs",
            "[[-0.7, null], [-1, -1, -1], []]",
            "response_log_probs[0][1]",
        ),
        (
            "response_log_probs",
            "[[-0.7, -1e300], [-1, -1, -1], []]",
            "response_log_probs[0][1]",
        ),
        ("responses", r#"["4"]"#, "scores"),
        ("scores", "[1, 0, null]", "scores[2]"),
    ] {
        let error = wrong(&|row| row.insert(name, json(value)));
        assert_eq!(error.field(), field, "{error}");
    }
    let one = r#"{"prompt": "?", "responses": ["4"], "scores": [1], "prompt_ids": [5],
        "response_ids": [[1]], "response_log_probs": [[-1]]}"#;
    assert_eq!(
        SampleFormat::default().parse(row(one)).unwrap_err().field(),
        "responses"
    );

    // What does not fit without a file.
    let grouped = GroupedReward::of_groups(&[1.0, 0.0], &[0, 0]).unwrap();
    for log_probs in [vec![-1.0], vec![-1.0, f64::NAN]] {
        let error = Example::sample(vec![1], vec![2, 3], log_probs, grouped[0]).unwrap_err();
        assert_eq!(error.name(), "log_probs");
    }
    let group = SampleFormat::default().parse(row(ROW)).unwrap();
    let spoiled = |change: &dyn Fn(&mut Group)| {
        let mut group = group.clone();
        change(&mut group.label);
        Example::samples(&[group]).unwrap_err().name()
    };
    assert_eq!(spoiled(&|group| group.rewards.truncate(2)), "rewards");
    assert_eq!(spoiled(&|group| group.log_probs.truncate(2)), "log_probs");
    assert_eq!(spoiled(&|group| group.rewards[0] = f64::NAN), "rewards");
}

/// Rows with the same prompt are one group.
#[test]
fn rows_with_one_prompt_are_one_group() {
    use burn_preference::data::{Format, Json, SampleFormat};
    let group = |prompt: &str, scores: &str| {
        let row = format!(
            r#"{{"prompt": "p", "responses": ["4", "5"], "scores": {scores}, "prompt_ids": {prompt},
            "response_ids": [[2], [3]], "response_log_probs": [[-0.5], [-1.5]]}}"#
        );
        let Json::Object(row) = serde_json::from_str(&row).unwrap() else {
            unreachable!()
        };
        SampleFormat::default().parse(row).unwrap()
    };
    let groups = [
        group("[7]", "[0, 0]"),
        group("[8]", "[5, 7]"),
        group("[7]", "[4, 4]"),
    ];
    let samples = Example::samples(&groups).unwrap();
    let deviations = samples.iter().map(|sample| sample.label.reward.deviation());
    let expected = [-2.0, -2.0, -1.0, 1.0, 2.0, 2.0];
    assert_eq!(deviations.collect::<Vec<_>>(), expected);
    let reward = samples[0].label.reward;
    for bad in [0.1, f64::NAN, f64::NEG_INFINITY] {
        assert!(
            Example::sample(vec![7], vec![2], vec![bad], reward).is_err(),
            "{bad}"
        );
    }
}
