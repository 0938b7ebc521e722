//! Supervised fine-tuning against the scalar code, and what its batch promises: padding,
//! parts of a step, weights of tokens, metrics.

use burn::data::dataloader::batcher::Batcher;
use burn::optim::GradientsParams;
use burn::tensor::{Bool, DType, Tensor, TensorData};
use burn_preference::config::ObjectiveConfig;
use burn_preference::data::{Collator, Demonstration, DemonstrationTokens, Example};
use burn_preference::log_probs::WithStatistics;
use burn_preference::tokens::{Padding, Sequence};
use burn_preference::training::accumulation::Accumulation;
use burn_preference::{
    Batch, BatchMetrics, Demonstrations, Error, NllNormalization, Objective, SftLoss,
    SftLossConfig, TokenLogProbs, TokenWeighting, Weighted, WithStepTokens, WithWeights,
};
use proptest::prelude::*;

use crate::dual::Dual;
use crate::formulas;
use crate::support::bigram::Bigram;
use crate::support::{
    assert_close, cases, device, elsewhere, error, f64s, floats, to_vec, wide_dtypes,
};

const NORMALIZATIONS: [NllNormalization; 3] = [
    NllNormalization::Token,
    NllNormalization::Sequence,
    NllNormalization::Sum,
];
const WEIGHTINGS: [TokenWeighting; 2] = [TokenWeighting::Uniform, TokenWeighting::Probability];

/// Completions of any lengths: a log-probability and a weight for each token that counts.
type Rows = Vec<Vec<(f64, f64)>>;

/// As a rectangle with `more` columns than the longest needs, one at least; what does not count is
/// `rest`.
fn rectangle(rows: &Rows, more: usize, rest: f64) -> [Vec<f64>; 2] {
    let time = rows.iter().map(Vec::len).max().unwrap_or(0).max(1) + more;
    let all = |of: fn(&(f64, f64)) -> f64| {
        let row = |row: &Vec<(f64, f64)>| {
            let mut row: Vec<f64> = row.iter().map(of).collect();
            row.resize(time, rest);
            row
        };
        rows.iter().flat_map(row).collect()
    };
    [all(|token| token.0), all(|token| token.1)]
}

fn mask(rows: &Rows, time: usize) -> Tensor<2, Bool> {
    let counts = rows.iter().flat_map(|row| (0..time).map(|t| t < row.len()));
    let counts: Vec<bool> = counts.collect();
    Tensor::from_data(TensorData::new(counts, [rows.len(), time]), &device())
}

/// Losses, rewards, and d Σ losses / d log-probs.
struct Found {
    losses: Vec<f64>,
    rewards: Vec<f64>,
    grads: Vec<f64>,
}

/// Of these completions, in a step of so many tokens per example if one is given.
fn run(
    sft: &SftLoss,
    rows: &Rows,
    per_example: Option<f64>,
    (more, rest): (usize, f64),
    dtype: DType,
) -> Found {
    let [log_probs, weights] = rectangle(rows, more, rest);
    let shape = [rows.len(), log_probs.len() / rows.len()];
    let leaf = floats(&log_probs, dtype).autodiff().require_grad();
    let tokens = TokenLogProbs::new(leaf.clone().reshape(shape), mask(rows, shape[1])).unwrap();
    let batch = Demonstrations::new(tokens);
    let batch = batch
        .weighted(floats(&weights, dtype).reshape(shape))
        .unwrap();
    assert_eq!(batch.len(), rows.len());
    let output = match per_example {
        None => sft.forward(batch),
        Some(per_example) => {
            let batch = WithStepTokens::new(batch, 64.0 * per_example, 64.0).unwrap();
            assert!(error(batch.tokens_per_example(), per_example) < 1e-15);
            sft.forward(batch)
        }
    };
    let grads = output.sum().backward();
    let grads = leaf
        .grad(&grads)
        .unwrap_or_else(|| leaf.zeros_like().inner());
    Found {
        losses: to_vec(output.losses()),
        rewards: to_vec(output.rewards().clone()),
        grads: to_vec(grads),
    }
}

fn sft(normalization: NllNormalization, weighting: TokenWeighting) -> SftLoss {
    SftLossConfig::new()
        .with_normalization(normalization)
        .with_token_weighting(weighting)
        .init()
}

/// Every objective by its two fields.
fn all() -> impl Iterator<Item = (NllNormalization, TokenWeighting, SftLoss)> {
    NORMALIZATIONS
        .into_iter()
        .flat_map(|n| WEIGHTINGS.map(|w| (n, w, sft(n, w))))
}

prop_compose! {
    fn any_rows()(
        rows in prop::collection::vec(
            prop::collection::vec((-6.0..-1e-3_f64, 0.0..2.0_f64), 0..6), 1..6)
    ) -> Rows {
        rows
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn the_loss_matches_the_scalar_code(rows in any_rows(), per_example in 0.5..9.0_f64) {
        for (normalization, weighting, sft) in all() {
            for step in [None, Some(per_example)] {
                let config = SftLossConfig::new()
                    .with_normalization(normalization)
                    .with_token_weighting(weighting);
                let config = ObjectiveConfig::Sft(config);
                // Along the log-probability of one token.
                let scalar = |moves: (usize, usize)| {
                    let token = |i: usize, (t, &(value, weight)): (usize, &(f64, f64))| {
                        let slope = f64::from((i, t) == moves);
                        (Dual { value, slope }, weight)
                    };
                    let row = |(i, row): (usize, &Vec<(f64, f64)>)| {
                        let tokens = row.iter().enumerate();
                        tokens.map(|each| token(i, each)).collect()
                    };
                    let rows: Vec<_> = rows.iter().enumerate().map(row).collect();
                    formulas::demonstrations(&config, &rows, step)[moves.0]
                };
                let found = run(&sft, &rows, step, (0, 0.0), DType::F64);
                let time = found.grads.len() / rows.len();
                for (i, row) in rows.iter().enumerate() {
                    let (loss, reward) = scalar((i, 0));
                    prop_assert!(error(found.losses[i], loss.value) < 1e-12);
                    prop_assert!(error(found.rewards[i], reward) < 1e-12);
                    for t in 0..time {
                        let slope = if t < row.len() { scalar((i, t)).0.slope } else { 0.0 };
                        prop_assert!(error(found.grads[i * time + t], slope) < 1e-12);
                    }
                }
            }
        }
    }

    /// Columns that do not count change nothing, whatever stands there.
    #[test]
    fn padding_changes_nothing(rows in any_rows(), more in 1..4_usize) {
        for (.., sft) in all() {
            let expected = run(&sft, &rows, None, (0, 0.0), DType::F64);
            for rest in [1.0, f64::NAN, f64::NEG_INFINITY] {
                let found = run(&sft, &rows, None, (more, rest), DType::F64);
                // Sums of more columns are in another order.
                assert_close(&found.losses, &expected.losses, 1e-14, "loss");
                let [before, after] =
                    [&expected, &found].map(|of| of.grads.len() / rows.len());
                for i in 0..rows.len() {
                    let old = &expected.grads[i * before..][..before];
                    prop_assert_eq!(&found.grads[i * after..][..before], old);
                    let rest = &found.grads[i * after + before..(i + 1) * after];
                    prop_assert!(rest.iter().all(|grad| *grad == 0.0));
                }
            }
        }
    }

    /// A step is the sum of its completions, each in a part of its own.
    #[test]
    fn completions_alone_add_up_to_the_step(rows in any_rows()) {
        let counted: usize = rows.iter().map(Vec::len).sum();
        let per_example = counted.max(1) as f64 / rows.len() as f64;
        for (normalization, _, sft) in all() {
            let whole = run(&sft, &rows, None, (0, 0.0), DType::F64);
            for (i, row) in rows.iter().enumerate() {
                let alone = vec![row.clone()];
                let part = run(&sft, &alone, Some(per_example), (1, 0.0), DType::F64);
                prop_assert!(error(part.losses[0], whole.losses[i]) < 1e-12, "{normalization:?}");
            }
        }
    }
}

#[test]
fn a_mean_over_the_batch_is_one_of_the_whole_batch() {
    let whole = |normalization| {
        let sft = sft(normalization, TokenWeighting::Uniform);
        let of_batch = Objective::<Demonstrations>::whole_batch(&sft);
        let of_step = Objective::<WithStepTokens<Demonstrations>>::whole_batch(&sft);
        (of_batch, of_step)
    };
    assert_eq!(
        NORMALIZATIONS.map(whole),
        [(true, false), (false, false), (false, false)]
    );
}

/// −1e4 nats and less, a single token, certainty, and completions of which nothing counts.
#[test]
fn extremes_are_finite() {
    let rows: Rows = vec![
        vec![(-1e4, 1.0)],
        vec![(-1e5, 1.0), (-1e-8, 1.0), (0.0, 1.0)],
        vec![(-0.5, 1.0)],
        vec![],
    ];
    let nothing: Rows = vec![vec![], vec![]];
    for dtype in wide_dtypes() {
        for (normalization, weighting, sft) in all() {
            let what = format!("{normalization:?}, {weighting:?}");
            let found = run(&sft, &rows, None, (1, f64::NAN), dtype);
            let numbers = [&found.losses, &found.rewards, &found.grads];
            assert!(
                numbers.iter().all(|of| of.iter().all(|x| x.is_finite())),
                "{what}"
            );
            assert_eq!((found.losses[3], found.rewards[3]), (0.0, 0.0), "{what}");
            let found = run(&sft, &nothing, None, (2, f64::NAN), dtype);
            assert_eq!(found.losses, [0.0; 2], "{what}");
            assert!(found.grads.iter().all(|grad| *grad == 0.0), "{what}");
        }
        let sum = sft(NllNormalization::Sum, TokenWeighting::Uniform);
        let found = run(&sum, &rows, None, (0, 0.0), dtype);
        assert_eq!((found.losses[0], found.grads[0]), (1e4, -1.0));
        // A token that the policy finds impossible has no weight in DFT.
        let dft = sft(NllNormalization::Sum, TokenWeighting::Probability);
        let found = run(&dft, &rows, None, (0, 0.0), dtype);
        assert_eq!((found.losses[0], found.grads[0]), (0.0, 0.0));
    }
}

#[test]
fn a_nan_stays_in_its_completion() {
    let rows: Rows = vec![vec![(-1.0, 1.0), (f64::NAN, 1.0)], vec![(-2.0, 1.0)]];
    for (.., sft) in all() {
        let found = run(&sft, &rows, Some(1.5), (0, 0.0), DType::F64);
        assert!(found.losses[0].is_nan() && found.losses[1].is_finite());
    }
    // −∞ is a loss of ∞; its probability times itself has no value that IEEE would give.
    let impossible: Rows = vec![vec![(f64::NEG_INFINITY, 1.0)]];
    for (_, weighting, sft) in all() {
        let loss = run(&sft, &impossible, None, (0, 0.0), DType::F64).losses[0];
        match weighting {
            TokenWeighting::Probability => assert!(loss.is_nan()),
            _ => assert_eq!(loss, f64::INFINITY),
        }
    }
}

fn two_tokens() -> Demonstrations {
    let log_probs = f64s(&[-1.0, -2.0]).reshape([1, 2]);
    let counted = log_probs.clone().lower_elem(0.0);
    Demonstrations::new(TokenLogProbs::new(log_probs, counted).unwrap())
}

#[test]
fn weights_are_factors() {
    let weights = |values: [f64; 2]| f64s(&values).reshape([1, 2]);
    let twice = two_tokens()
        .weighted(weights([2.0, 3.0]))
        .and_then(|batch| batch.weighted(weights([0.5, 2.0])))
        .unwrap();
    assert_eq!(to_vec(twice.weights().unwrap()), [1.0, 6.0]);
    let sum = sft(NllNormalization::Sum, TokenWeighting::Uniform);
    assert_eq!(to_vec(sum.forward(twice.clone()).losses()), [13.0]);
    // Metrics are of the completion itself.
    let metrics = BatchMetrics::observe(&twice, &sum.forward(twice.clone()));
    let metrics = metrics.read().unwrap();
    assert_eq!(metrics.get("logps"), Some(-3.0));
    assert_eq!((metrics.get("nll"), metrics.count("nll")), (Some(1.5), 2.0));
    // Weights of examples are a column, as for any objective.
    let column = WithWeights::new(two_tokens(), f64s(&[0.25])).unwrap();
    assert_eq!(to_vec(Weighted(sum).forward(column).losses()), [0.75]);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let name = |error: burn_preference::InvalidInput| error.name();
    let error = two_tokens().weighted(Tensor::ones([2, 1], &device()));
    assert_eq!(error.map_err(name).unwrap_err(), "weights");
    let error = two_tokens().weighted(Tensor::ones([1, 2], &elsewhere()));
    assert_eq!(error.map_err(name).unwrap_err(), "weights");
    let (policy, tokens) = parts();
    let batch = tokens(&[0, 1]);
    let output = policy.hidden(batch.tokens.ids.clone());
    let (_, statistics) = batch
        .tokens
        .token_log_probs(WithStatistics(output))
        .unwrap();
    let error = two_tokens().with_statistics(statistics);
    assert_eq!(error.map_err(name).unwrap_err(), "statistics");
    for (tokens, examples, wrong) in [
        (0.0, 1.0, "tokens"),
        (f64::NAN, 1.0, "tokens"),
        (1.0, 0.0, "examples"),
        (1.0, f64::INFINITY, "examples"),
        (1.0, 0.5, "examples"), // fewer than there are here
    ] {
        let error = WithStepTokens::new(two_tokens(), tokens, examples).unwrap_err();
        assert_eq!(error.name(), wrong);
    }
}

/// A policy, and demonstrations of a data set by their places.
fn parts() -> (Bigram, impl Fn(&[u32]) -> DemonstrationTokens) {
    let policy = Bigram::new([9, 4], 0, &device().autodiff());
    let tokens = |places: &[u32]| {
        let example = |&i: &u32| -> Example<Vec<u32>, Demonstration> {
            // Completions of 2 to 12 tokens, of which every third one does not count.
            let completion: Vec<u32> = (0..=1 + i * 7 % 11).map(|t| (i + t * t + 1) % 9).collect();
            let counted = (0..completion.len()).map(|t| t % 3 != 2).collect();
            let example = Example::demonstration(vec![i % 9], completion);
            example.with_counted(&[counted]).unwrap()
        };
        Collator::new(Padding::new(0)).batch(places.iter().map(example).collect(), &device())
    };
    (policy, tokens)
}

fn demonstrations(policy: &Bigram, batch: &DemonstrationTokens) -> Demonstrations {
    let output = policy.hidden(batch.tokens.ids.clone());
    let (tokens, statistics) = batch
        .tokens
        .token_log_probs(WithStatistics(output))
        .unwrap();
    Demonstrations::new(tokens)
        .with_statistics(statistics)
        .unwrap()
}

fn numbers(policy: &Bigram, grads: &GradientsParams) -> Vec<f64> {
    let weights = [&policy.embedding.weight, &policy.head.weight].map(|weight| weight.id);
    let matrices = weights.map(|id| to_vec(grads.get::<2>(id).unwrap()));
    matrices.concat()
}

/// Gradients and metrics of unequal parts are those of one batch.
#[test]
fn parts_add_up_to_the_step() -> Result<(), Error> {
    let (policy, tokens) = parts();
    for (normalization, weighting, sft) in all() {
        let whole = demonstrations(&policy, &tokens(&[0, 1, 2, 3, 4]));
        let output = sft.forward(whole.clone());
        let grads = GradientsParams::from_grads(output.mean().backward(), &policy);
        let expected = numbers(&policy, &grads);
        let metrics = BatchMetrics::observe(&whole, &output).read()?;

        let parts = [&[0, 1][..], &[2], &[3, 4]].map(&tokens);
        let length = |part: &DemonstrationTokens| -> usize {
            part.tokens.sequences.iter().map(Sequence::length).sum()
        };
        let counted: usize = parts.iter().map(length).sum();
        let mut step = Accumulation::over(5.0)?;
        for part in &parts {
            let batch = demonstrations(&policy, part);
            let batch = WithStepTokens::new(batch, counted as f64, 5.0)?;
            step.add(&policy, &batch, sft.forward(batch.clone()))?;
        }
        let (grads, of_parts) = step.clipped(&policy, 1e9)?;
        let what = format!("{normalization:?}, {weighting:?}");
        assert_close(&numbers(&policy, &grads), &expected, 2e-6, &what);
        let of_parts = of_parts.read()?;
        for (key, value) in metrics.iter() {
            let found = of_parts.get(key).unwrap();
            assert!(
                error(found, value) < 1e-5,
                "{what}: {key} {found}, not {value}"
            );
        }
        assert_eq!(of_parts.count("nll"), counted as f64);
        if (normalization, weighting) == (NllNormalization::Token, TokenWeighting::Uniform) {
            assert!(error(metrics.get("loss").unwrap(), metrics.get("nll").unwrap()) < 1e-6);
        }
    }
    Ok(())
}

#[test]
fn metrics_of_demonstrations() {
    let (policy, tokens) = parts();
    let batch = demonstrations(&policy, &tokens(&[0, 1]));
    let output = SftLossConfig::new().init().forward(batch.clone());
    let metrics = BatchMetrics::observe(&batch, &output).read().unwrap();
    let keys: Vec<&str> = metrics.iter().map(|(key, _)| key).collect();
    let expected = [
        "entropy",
        "logps",
        "loss",
        "mean_logits",
        "mean_logps",
        "mean_token_accuracy",
        "nll",
        "perplexity",
    ];
    assert_eq!(keys, expected);
    assert!(metrics.contains("perplexity") && metrics.count("perplexity") == 0.0);
    let [nll, perplexity] = ["nll", "perplexity"].map(|key| metrics.get(key).unwrap());
    assert_eq!(perplexity, nll.exp());
    // 2 and 9 tokens, less every third one.
    assert_eq!(metrics.count("nll"), 2.0 + 6.0);
    assert_eq!(metrics.count("mean_token_accuracy"), 8.0);
    // Without statistics there is no accuracy, and nothing that stands for it.
    let plain = Demonstrations::new(batch.tokens().clone());
    let metrics =
        BatchMetrics::observe(&plain, &SftLossConfig::new().init().forward(plain.clone()));
    assert!(!metrics.read().unwrap().contains("mean_token_accuracy"));
}
