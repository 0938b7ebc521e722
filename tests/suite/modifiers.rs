//! Modifiers of objectives and of log-probs, and the state that some objectives need.

use std::sync::Arc;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::Tensor;
use burn_preference::config::{Configured, ObjectiveConfig};
use burn_preference::modifier::wpo_weights;
use burn_preference::training::state::{MovingAverage, RunningMean};
use burn_preference::{
    AsftLossConfig, BatchMetrics, BcoLossConfig, CpoLossConfig, DpoLossConfig, LossOutput, Metrics,
    Mixture, NllNormalization, Objective, OrpoLossConfig, Pair, PolicyPair, PolicySide, Ranked,
    ReferencedPair, RelativeTokenLogProbs, SequenceLogProbs, SftTerm, SimpoLossConfig,
    SlicHfLossConfig, TokenLogProbs, Weighted, WithNll, WithShift, WithStepTokens, WithWeights,
    WithoutColumn,
};

use crate::scalar;
use crate::support::{ZipEqual, assert_close, bools, device, error, f64s, leaf, sequence, to_vec};

/// Two pairs of ragged token log-probs: completions of 4 and 2, of 1 and 3 tokens.
fn tokens(leaf: Tensor<1>) -> Pair<TokenLogProbs> {
    let counted = [[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]];
    let counted: Vec<bool> = counted.concat().into_iter().map(|x| x == 1).collect();
    let mask = bools(&counted).reshape([4, 4]);
    let log_probs = TokenLogProbs::new(leaf.reshape([4, 4]), mask).unwrap();
    Pair::from_concatenated(&log_probs).unwrap()
}

/// The same against a reference of −1.5 a token.
fn relative(leaf: Tensor<1>) -> Pair<RelativeTokenLogProbs> {
    tokens(leaf).relative_to(tokens(f64s(&[-1.5; 16]))).unwrap()
}

const VALUES: [f64; 16] = [
    -1.0,
    -2.0,
    -4.0,
    -8.0,
    f64::NAN,
    -0.5,
    f64::NAN,
    f64::NAN,
    -3.0,
    f64::NAN,
    -5.0,
    f64::NAN,
    -0.1,
    -0.2,
    f64::NAN,
    -0.4,
];

#[test]
fn ld_dpo_discounts_the_tail_on_both_sides() {
    let leaf = leaf(&VALUES);
    let pair = relative(leaf.clone()).length_desensitized(0.25).unwrap();
    let pair = pair.sequences();
    // The first pair's lengths are 4 and 2, the second's 1 and 3.
    let sums = pair.map_ref(|y| to_vec(y.policy().sum()));
    assert_close(&sums.chosen, &[-3.0 - 0.25 * 12.0, -0.5], 1e-15, "chosen");
    let expected = [-8.0, -0.1 - 0.25 * 0.6];
    assert_close(&sums.rejected, &expected, 1e-15, "rejected");
    let sums = pair.map_ref(|y| to_vec(y.reference().sum()));
    assert_close(
        &sums.chosen,
        &[-1.5 * 2.5, -1.5],
        1e-15,
        "reference, chosen",
    );
    let expected = [-3.0, -1.5 * 1.5];
    assert_close(&sums.rejected, &expected, 1e-15, "reference, rejected");
    assert_eq!(to_vec(pair.chosen.policy().lengths()), [4.0, 1.0]);

    let policy = pair.policy();
    let grads = (policy.chosen.sum() + policy.rejected.sum())
        .sum()
        .backward();
    let expected = [
        1.0, 1.0, 0.25, 0.25, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.25, 0.0, 0.25,
    ];
    assert_eq!(to_vec(leaf.grad(&grads).unwrap()), expected);

    let plain = tokens(f64s(&VALUES)).sequences();
    let same = relative(f64s(&VALUES)).length_desensitized(1.0).unwrap();
    let same = same.sequences().policy();
    assert_eq!(to_vec(same.chosen.sum()), to_vec(plain.chosen.sum()));
    let error = relative(f64s(&VALUES)).length_desensitized(1.1);
    assert_eq!(
        error.unwrap_err().to_string(),
        "`alpha` is 1.1, but must be in [0, 1]"
    );
}

#[test]
fn sampo_counts_equally_many_tokens() {
    let noise = |values: [f64; 8]| f64s(&values).reshape([2, 4]);
    let noise = Pair::new(
        noise([0.9, 0.1, 0.5, 0.2, 0.0, 0.9, 0.0, 0.0]),
        noise([0.4, 0.0, 0.3, 0.0, 0.6, 0.5, 0.0, 0.7]),
    );
    let noise = noise.unwrap();
    let pair = relative(f64s(&VALUES)).subsampled(&noise).unwrap();
    let pair = pair.sequences();
    let policy = pair.policy();
    // The two smallest of the chosen side of the first pair: columns 1 and 3.
    assert_eq!(to_vec(policy.chosen.sum()), [-2.0 - 8.0, -0.5]);
    assert_eq!(to_vec(policy.rejected.sum()), [-8.0, -0.2]);
    for side in [&pair.chosen, &pair.rejected] {
        // The same tokens of the reference.
        assert_eq!(to_vec(side.reference().sum()), [-3.0, -1.5]);
        assert_eq!(to_vec(side.policy().lengths()), [2.0, 1.0]);
    }
    let narrow = noise.map(|noise| noise.narrow(1, 0, 3));
    let error = relative(f64s(&VALUES)).subsampled(&narrow).unwrap_err();
    assert_eq!(error.name(), "noise.chosen");
}

#[test]
fn token_clamp_bounds_each_log_ratio() {
    let leaf = leaf(&VALUES);
    let clamped = relative(leaf.clone()).clamped(-1.0, 0.6).unwrap();
    let clamped = clamped.sequences();
    // Log-ratios 0.5, −0.5, −2.5, −6.5 and 1 of the chosen sides.
    assert_close(
        &to_vec(clamped.chosen.log_ratio()),
        &[-2.0, 0.6],
        1e-15,
        "chosen",
    );
    let grads = clamped.chosen.log_ratio().sum().backward();
    let grads = to_vec(leaf.grad(&grads).unwrap());
    assert_eq!(grads[..8], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let error = relative(f64s(&VALUES)).clamped(1.0, 0.5).unwrap_err();
    assert_eq!(error.to_string(), "`high` is 0.5, but must be ≥ `low`");
    let error = relative(f64s(&VALUES)).clamped(f64::NAN, 0.5).unwrap_err();
    assert_eq!(error.name(), "low");
}

#[test]
fn token_weights_act_on_both_sides_and_leave_lengths() {
    let leaf = leaf(&VALUES);
    let weights = |values: [f64; 8]| f64s(&values).reshape([2, 4]);
    let nan = f64::NAN;
    let weights = Pair::new(
        weights([1.0, 0.5, 0.0, 2.0, nan, 3.0, nan, nan]),
        weights([1.0, nan, 1.0, nan, 1.0, 1.0, nan, 1.0]),
    );
    let pair = relative(leaf.clone()).weighted(weights.unwrap()).unwrap();
    let pair = pair.sequences();
    assert_close(
        &to_vec(pair.chosen.policy().sum()),
        &[-1.0 - 0.5 * 2.0 - 2.0 * 8.0, -1.5],
        1e-15,
        "policy",
    );
    let expected = [-1.5 * 3.5, -1.5 * 3.0];
    assert_close(
        &to_vec(pair.chosen.reference().sum()),
        &expected,
        1e-15,
        "reference",
    );
    assert_eq!(to_vec(pair.chosen.policy().lengths()), [4.0, 1.0]);
    // A NaN of a token that does not count reaches neither value nor gradient.
    let grads = to_vec(
        leaf.grad(&pair.log_ratios().margin().sum().backward())
            .unwrap(),
    );
    assert_eq!(grads[..8], [1.0, 0.5, 0.0, 2.0, 0.0, 3.0, 0.0, 0.0]);
    let error = relative(f64s(&VALUES)).weighted(
        Pair::new(
            f64s(&[1.0; 2]).reshape([2, 1]),
            f64s(&[1.0; 2]).reshape([2, 1]),
        )
        .unwrap(),
    );
    assert_eq!(error.unwrap_err().name(), "weights");
}

/// The share whose chosen log-prob fell, of pairs to which nothing was done.
fn plain_fallen(plain: &ReferencedPair) -> f64 {
    let ratios = to_vec(plain.chosen.log_ratio());
    ratios.iter().filter(|ratio| **ratio < 0.0).count() as f64 / ratios.len() as f64
}

/// Whatever is done to the comparison: the NLL and the logs are those of the whole completion.
#[test]
fn nll_terms_and_logs_are_of_the_unmodified_completion() {
    let noise = f64s(&[0.4; 8]).reshape([2, 4]);
    let noise = Pair::new(noise.clone(), noise).unwrap();
    let tokens_of = || relative(f64s(&VALUES));
    let mut batches = vec![
        tokens_of().length_desensitized(0.0).unwrap().sequences(),
        tokens_of().subsampled(&noise).unwrap().sequences(),
        tokens_of().clamped(-0.1, 0.1).unwrap().sequences(),
        tokens_of().weighted(noise).unwrap().sequences(),
    ];
    let plain = tokens_of().sequences();
    batches.push(plain.clone().scaled_by(f64s(&[0.5, 3.0])).unwrap());
    let policy = tokens(f64s(&VALUES)).sequences();
    let dpo = DpoLossConfig::new().init();
    let with_sft = |n| {
        SftTerm::new(dpo.clone(), 1.0)
            .unwrap()
            .with_normalization(n)
    };
    for batch in batches {
        assert_ne!(to_vec(batch.chosen.policy().sum()), [-15.0, -0.5]);
        let losses = |o: &dyn Objective<ReferencedPair>| to_vec(o.forward(batch.clone()).losses());
        let nll = |with: &dyn Objective<ReferencedPair>| -> Vec<f64> {
            let both = losses(with).into_iter().zip_equal(losses(&dpo));
            both.map(|(with, without)| with - without).collect()
        };
        let per_sequence = nll(&with_sft(NllNormalization::Sequence));
        assert_close(&per_sequence, &[15.0 / 4.0, 0.5], 1e-14, "−ℓ̄");
        let per_token = nll(&with_sft(NllNormalization::Token));
        assert_close(
            &per_token,
            &[15.0 * 2.0 / 5.0, 0.5 * 2.0 / 5.0],
            1e-14,
            "−ℓ·B/T",
        );

        // Objectives with an NLL of their own: ∂loss/∂weight is that NLL.
        let free = |weight: f64| -> [Vec<f64>; 4] {
            let policy = batch.policy();
            let orpo = OrpoLossConfig::new().with_odds_ratio_weight(0.0).init();
            let cpo = CpoLossConfig::new().with_sft_weight(weight).init();
            let slic = SlicHfLossConfig::new().with_sft_weight(weight).init();
            let asft = AsftLossConfig::new().with_alignment_weight(0.0).init();
            [
                orpo.forward(policy.clone()).losses(),
                cpo.forward(policy.clone()).losses(),
                slic.forward(policy.clone()).losses(),
                asft.forward(policy).losses(),
            ]
            .map(to_vec)
        };
        let ([orpo, cpo, slic, asft], [_, no_cpo, no_slic, _]) = (free(1.0), free(0.0));
        let less = |a: &[f64], b: &[f64]| -> Vec<f64> {
            a.iter().zip_equal(b).map(|(a, b)| a - b).collect()
        };
        assert_close(&orpo, &[15.0 / 4.0, 0.5], 1e-14, "ORPO");
        assert_close(&asft, &[15.0 / 4.0, 0.5], 1e-14, "ASFT");
        assert_close(&less(&cpo, &no_cpo), &[15.0 / 4.0, 0.5], 1e-14, "CPO");
        assert_close(&less(&slic, &no_slic), &[15.0, 0.5], 1e-14, "SLiC-HF");

        let metrics = BatchMetrics::observe(&batch, &dpo.forward(batch.clone()));
        let metrics = metrics.read().unwrap();
        let of = |key: &str| metrics.get(key).unwrap();
        assert_close(&[of("logps/chosen")], &[-15.5 / 2.0], 1e-14, "logps");
        let mean = -(15.0 / 4.0 + 0.5) / 2.0;
        assert_close(&[of("mean_logps/chosen")], &[mean], 1e-14, "mean_logps");
        let fallen = plain_fallen(&plain);
        assert_close(&[of("displacement")], &[fallen], 1e-14, "displacement");
        let reference =
            |batch: &ReferencedPair| batch.map_ref(|y| to_vec(y.reference().unmodified().sum()));
        assert_eq!(reference(&batch), reference(&plain));
    }
    assert_eq!(to_vec(policy.chosen.unmodified().sum()), [-15.0, -0.5]);
}

/// LD-DPO of a policy without a reference, for SimPO and others.
#[test]
fn token_modifiers_serve_reference_free_objectives() {
    let pair = tokens(f64s(&VALUES)).with_uniform_reference();
    let pair = pair.length_desensitized(0.25).unwrap().sequences();
    assert_eq!(to_vec(pair.chosen.log_ratio()), [-6.0, -0.5]);
    let simpo = SimpoLossConfig::new()
        .with_beta(1.0)
        .with_target_margin(0.0);
    let output = simpo.init().forward(pair.policy());
    let h = [-6.0 / 4.0 + 8.0 / 2.0, -0.5 + 0.25 / 3.0];
    let expected = h.map(|h| -scalar::ln_sigmoid(h));
    assert_close(&to_vec(output.losses()), &expected, 1e-14, "SimPO");
}

/// A β per example is a scale at β = 1, for referenced and reference-free objectives and lists.
#[test]
fn a_scale_per_example_is_a_beta_per_example() {
    let pair = relative(f64s(&VALUES)).sequences();
    let ratios = pair.log_ratios().map(to_vec);
    let scaled = pair.clone().scaled_by(f64s(&[0.1, 0.7])).unwrap();
    let dpo = DpoLossConfig::new().with_beta(1.0).init();
    let output = dpo.forward(scaled);
    for (i, beta) in [0.1, 0.7].into_iter().enumerate() {
        let alone = DpoLossConfig::new().with_beta(beta).init();
        let expected = alone.forward(pair.clone());
        let (ours, theirs) = (to_vec(output.losses())[i], to_vec(expected.losses())[i]);
        assert!(error(ours, theirs) < 1e-14);
        let reward = to_vec(output.rewards().chosen.clone())[i];
        assert!(error(reward, beta * ratios.chosen[i]) < 1e-14);
    }
    let error = pair.scaled_by(f64s(&[1.0])).unwrap_err();
    assert_eq!(error.name(), "scale");
    let lists = sequence(f64s(&[-1.0, -2.0, -3.0, -4.0]), &[1; 4]);
    let lists = lists.split_candidates(2).unwrap();
    let scores = f64s(&[1.0, 0.0, 0.0, 1.0]).reshape([2, 2]);
    let present = bools(&[true; 4]).reshape([2, 2]);
    let lists = burn_preference::Ranked::new(lists, scores, present).unwrap();
    let lists = lists.scaled_by(f64s(&[2.0, 3.0])).unwrap();
    assert_eq!(to_vec(lists.candidates().sum()), [-2.0, -4.0, -9.0, -12.0]);
}

#[test]
fn several_references_are_one() {
    let of = |a: f64, b: f64| sequence(f64s(&[a, b]), &[2, 3]);
    let mean = SequenceLogProbs::weighted_mean([(1.0, of(-4.0, -1.0)), (3.0, of(-8.0, -2.0))]);
    assert_eq!(to_vec(mean.unwrap().sum()), [-7.0, -1.75]);
    let none = SequenceLogProbs::weighted_mean(Vec::<(f64, SequenceLogProbs)>::new());
    assert_eq!(none.unwrap_err().name(), "models");
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = SequenceLogProbs::weighted_mean([(bad, of(-1.0, -1.0))]).unwrap_err();
        assert_eq!(error.name(), "weight");
    }
    let other = sequence(f64s(&[-1.0]), &[1]);
    let error = SequenceLogProbs::weighted_mean([(1.0, of(-1.0, -1.0)), (1.0, other)]);
    assert_eq!(error.unwrap_err().name(), "models");

    // Each reference with logs of its own.
    let policy = tokens(f64s(&VALUES)).sequences();
    let dpo = DpoLossConfig::new().init();
    let mut metrics = BatchMetrics::default();
    for (name, level) in [("base/", -1.5), ("sft/", -0.5)] {
        let reference = tokens(f64s(&[level; 16])).sequences();
        let batch = policy.clone().relative_to(reference).unwrap();
        let observed = BatchMetrics::observe(&batch, &dpo.forward(batch.clone()));
        metrics = metrics.merge(observed.with_prefix(name));
    }
    let metrics = metrics.read().unwrap();
    let chosen = |key: &str| metrics.get(key).unwrap();
    // β·(ℓ − ℓ°): (−15.5 + 5·1.5)/2 and (−15.5 + 5·0.5)/2, times 0.1.
    assert_close(&[chosen("base/rewards/chosen")], &[-0.4], 1e-14, "base");
    assert_close(&[chosen("sft/rewards/chosen")], &[-0.65], 1e-14, "sft");
}

#[test]
fn pairs_that_do_not_fit_are_refused() {
    let row = |n: usize| {
        TokenLogProbs::new(
            f64s(&vec![-1.0; n]).reshape([n, 1]),
            bools(&vec![true; n]).reshape([n, 1]),
        )
        .unwrap()
    };
    let error = Pair::from_concatenated(&row(3)).unwrap_err();
    assert_eq!(error.found(), "3");
    let error = Pair::new(row(2), row(3)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`rejected`: expected 2 rows, as many as `chosen`, found 3"
    );
    let y = |n: usize| sequence(f64s(&vec![-1.0; n]), &vec![1; n]);
    let relative = |n: usize| y(n).relative_to(y(n)).unwrap();
    assert_eq!(Pair::new(y(1), y(3)).unwrap_err().name(), "rejected");
    assert_eq!(
        Pair::new(relative(1), relative(3)).unwrap_err().name(),
        "rejected"
    );
    // Any rows split, whatever they hold.
    let pair = Pair::from_concatenated(&f64s(&[1.0, 2.0, 3.0, 4.0])).unwrap();
    assert_eq!(
        (to_vec(pair.chosen), to_vec(pair.rejected)),
        (vec![1.0, 2.0], vec![3.0, 4.0])
    );
    let pair = Pair::from_concatenated(&relative(4)).unwrap();
    assert_eq!(to_vec(pair.rejected.log_ratio()), [0.0; 2]);
    let flags = Pair::from_concatenated(&bools(&[true, false])).unwrap();
    assert!(flags.chosen.into_scalar::<bool>() && !flags.rejected.into_scalar::<bool>());
}

#[test]
fn wpo_weights_have_no_gradient_and_a_bound() {
    let policy = tokens(leaf(&VALUES));
    let collisions = tokens(f64s(&[-2.0; 16]));
    let free = wpo_weights(&policy, &collisions, None).unwrap();
    // m = mean(−1, −2, −4, −8) + 2 and mean(−3, −5) + 2; then 1.5 and 2 − 0.7/3.
    let expected = [(-1.75_f64 - 2.0).exp(), (1.5_f64 + 2.0 - 0.7 / 3.0).exp()];
    assert_close(&to_vec(free.clone()), &expected, 1e-14, "weights");
    assert!(!free.is_autodiff());
    let bounded = wpo_weights(&policy, &collisions, Some(1.0)).unwrap();
    assert_close(&to_vec(bounded), &[expected[0], 1.0], 1e-14, "bounded");
    let narrow = |y: &TokenLogProbs| {
        TokenLogProbs::new(y.log_probs().narrow(1, 0, 3), y.mask().narrow(1, 0, 3)).unwrap()
    };
    let error = wpo_weights(&policy, &policy.map_ref(narrow), None).unwrap_err();
    assert_eq!(error.name(), "collisions");
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = wpo_weights(&policy, &collisions, Some(bad)).unwrap_err();
        assert_eq!(error.name(), "max_weight");
    }
}

#[test]
fn weights_of_modifiers_are_checked() {
    let dpo = || DpoLossConfig::new().init();
    let name = |e: burn_preference::InvalidHyperparameter| (e.name(), e.value());
    let error = Mixture::<ReferencedPair>::new(-1.0, dpo()).err().unwrap();
    assert_eq!(name(error), ("weight", -1.0));
    let mixture = Mixture::<ReferencedPair>::new(1.0, dpo()).unwrap();
    let error = mixture
        .and(-2.0, BcoLossConfig::new().init())
        .err()
        .unwrap();
    assert_eq!(name(error), ("weight", -2.0));
}

/// MPO as its paper has it, and objectives with and without a reference in one sum.
#[test]
fn objectives_of_different_batches_mix() {
    let pair = relative(f64s(&VALUES)).sequences();
    let (dpo, bco) = (DpoLossConfig::new().init(), BcoLossConfig::new().init());
    let simpo = SimpoLossConfig::new().init();
    let shifted = || WithShift::new(pair.clone(), f64s(&[0.2])).unwrap();
    let losses = |output: LossOutput<Pair<Tensor<1>>>| to_vec(output.losses());
    let (of_dpo, of_bco) = (
        losses(dpo.forward(pair.clone())),
        losses(bco.forward(shifted())),
    );

    let mpo = Mixture::new(0.8, WithoutColumn(dpo.clone())).unwrap();
    let mpo = SftTerm::new(mpo.and(0.2, bco).unwrap(), 1.0).unwrap();
    let nll = [15.0 / 4.0, 0.5];
    let expected: Vec<f64> = (0..2)
        .map(|i| 0.8 * of_dpo[i] + 0.2 * of_bco[i] + nll[i])
        .collect();
    assert_close(&losses(mpo.forward(shifted())), &expected, 1e-14, "MPO");

    let both = Mixture::new(1.0, dpo).unwrap();
    let both = both.and(0.5, PolicySide(simpo.clone())).unwrap();
    let of_simpo = losses(simpo.forward(pair.policy()));
    let expected: Vec<f64> = (0..2).map(|i| of_dpo[i] + 0.5 * of_simpo[i]).collect();
    assert_close(
        &losses(both.forward(pair.clone())),
        &expected,
        1e-14,
        "DPO + SimPO",
    );

    // The same from a file.
    let json = r#"{"loss": "mixture", "parts": [
        {"weight": 1.0, "objective": {"loss": "dpo"}},
        {"weight": 0.5, "objective": {"loss": "simpo"}}]}"#;
    let config: ObjectiveConfig = serde_json::from_str(json).unwrap();
    let objective: Configured<ReferencedPair> = config.build().unwrap();
    assert_eq!(
        losses(objective.forward(pair)),
        losses(both.forward(relative(f64s(&VALUES)).sequences()))
    );
}

/// A column that says whose NLL is meant is used, not passed over.
#[test]
fn an_nll_column_is_used() {
    let pair = relative(f64s(&VALUES)).sequences();
    let whole = || sequence(f64s(&[-20.0, -3.0]), &[5, 2]);
    let column = || WithNll::new(pair.clone(), whole()).unwrap();
    let dpo = DpoLossConfig::new().init();
    let plain = to_vec(dpo.forward(pair.clone()).losses());
    let nll = |output: LossOutput<Pair<Tensor<1>>>, without: &[f64]| -> Vec<f64> {
        to_vec(output.losses())
            .iter()
            .zip_equal(without)
            .map(|(a, b)| a - b)
            .collect()
    };
    let sft = SftTerm::new(dpo, 1.0).unwrap();
    assert_close(
        &nll(sft.forward(column()), &plain),
        &[4.0, 1.5],
        1e-14,
        "per sequence",
    );
    let token = sft.clone().with_normalization(NllNormalization::Token);
    let expected = [20.0 * 2.0 / 7.0, 3.0 * 2.0 / 7.0];
    assert_close(
        &nll(token.forward(column()), &plain),
        &expected,
        1e-14,
        "per token",
    );
    let step = || WithStepTokens::new(column(), 40.0, 10.0).unwrap();
    let expected = [20.0 / 4.0, 3.0 / 4.0];
    assert_close(
        &nll(token.forward(step()), &plain),
        &expected,
        1e-14,
        "of a step",
    );
    // A mean per sequence has no use for the tokens of the step.
    assert_close(
        &nll(sft.forward(step()), &plain),
        &[4.0, 1.5],
        1e-14,
        "per sequence, in a step",
    );
    // The chosen completions, where there is no column.
    let chosen = to_vec(pair.policy().chosen.sum());
    let alone = WithStepTokens::new(pair.clone(), 40.0, 10.0).unwrap();
    let of_chosen: Vec<f64> = chosen.iter().map(|sum| -sum / 4.0).collect();
    assert_close(
        &nll(token.forward(alone), &plain),
        &of_chosen,
        1e-14,
        "chosen completions of a step",
    );

    let free = || WithNll::new(pair.policy(), whole()).unwrap();
    let without = CpoLossConfig::new().with_sft_weight(0.0).init();
    let without = to_vec(without.forward(pair.policy()).losses());
    let cpo = CpoLossConfig::new().init().forward(free());
    assert_close(&nll(cpo, &without), &[4.0, 1.5], 1e-14, "CPO");
    let orpo = OrpoLossConfig::trl().with_odds_ratio_weight(0.0).init();
    let orpo = orpo.forward(WithStepTokens::new(free(), 40.0, 10.0).unwrap());
    assert_close(&to_vec(orpo.losses()), &expected, 1e-14, "ORPO of a step");
}

/// Objectives as fields of a model: cloned, printed, sent.
#[derive(Module, Debug)]
struct Trainee {
    policy: Linear,
    #[module(skip)]
    of_pairs: Configured<ReferencedPair>,
    #[module(skip)]
    of_lists: Configured<Ranked<SequenceLogProbs<2>>>,
    #[module(skip)]
    mixture: Mixture<ReferencedPair>,
    #[module(skip)]
    any: Arc<dyn Objective<ReferencedPair>>,
}

#[test]
fn objectives_are_fields_of_a_module() {
    fn shared<T: Send + Sync + Clone + std::fmt::Debug>(_: &T) {}
    let pairs: ObjectiveConfig = serde_json::from_str(r#"{"loss": "dpo", "beta": 0.3}"#).unwrap();
    let lists: ObjectiveConfig =
        serde_json::from_str(r#"{"loss": "rrhf", "sft_weight": 0.5}"#).unwrap();
    let dpo = DpoLossConfig::new().with_beta(0.25).init();
    let mixture = Mixture::new(0.75, dpo.clone()).unwrap();
    let model = Trainee {
        policy: LinearConfig::new(2, 2).init(&device()),
        of_pairs: pairs.build().unwrap(),
        of_lists: lists.build().unwrap(),
        mixture: mixture.and(0.5, BcoLossConfig::new().init()).unwrap(),
        any: Arc::new(dpo.clone()),
    };
    shared(&model.of_pairs);
    shared(&model.of_lists);
    shared(&model.mixture);
    let model = model.clone();
    assert_eq!(model.num_params(), 6);
    // What is printed says which objective it is.
    let printed = |x: &dyn std::fmt::Debug| format!("{x:?}");
    assert!(
        printed(&model.of_pairs).contains("beta: 0.3"),
        "{:?}",
        model.of_pairs
    );
    assert!(
        printed(&model.of_lists).contains("sft_weight: 0.5"),
        "{:?}",
        model.of_lists
    );
    let text = printed(&model.mixture);
    assert!(
        text.contains("0.75") && text.contains("beta: 0.25"),
        "{text}"
    );
    assert!(printed(&model.any).contains("beta: 0.25"));
    // What is built gives its config back.
    assert_eq!(*model.of_pairs.config(), pairs);
    assert_eq!(*model.of_lists.config(), lists);
    assert_eq!(dpo.config(), DpoLossConfig::new().with_beta(0.25));
    let weights: Vec<f64> = model.mixture.terms().map(|(weight, _)| weight).collect();
    assert_eq!(weights, [0.75, 0.5]);
    let json = r#"{"loss": "with_sft", "weight": 1.0, "objective": {"loss": "cpo"}}"#;
    let nested: ObjectiveConfig = serde_json::from_str(json).unwrap();
    assert_eq!(*nested.build::<PolicyPair>().unwrap().config(), nested);
}

#[test]
fn a_weight_of_zero_silences_an_example() {
    let pair = tokens(leaf(&VALUES)).sequences();
    let batch = pair.clone().with_uniform_reference();
    let batch = WithWeights::new(batch, f64s(&[0.0, 2.0])).unwrap();
    let dpo = DpoLossConfig::new().init();
    let output: LossOutput<_> = Weighted(&dpo).forward(batch.clone());
    let plain = to_vec(dpo.forward(batch.batch().clone()).losses());
    assert_eq!(to_vec(output.losses()), [0.0, 2.0 * plain[1]]);
    let nll = to_vec(NllNormalization::Sequence.nll(&pair.chosen));
    assert_eq!(nll, [15.0 / 4.0, 0.5]);
}

#[test]
fn state_merges_saves_and_resumes() {
    let step = |w: f64, l: f64, n: f64| {
        let mut metrics = Metrics::default();
        metrics.add("rewards/chosen", w * n, n);
        metrics.add("rewards/rejected", l * n, n);
        metrics
    };
    let mut whole = RunningMean::default();
    assert_eq!(whole.mean(), 0.0);
    let (mut here, mut there) = (whole, whole);
    for (k, (w, l, n)) in [(1.0, -1.0, 2.0), (0.4, 0.2, 3.0)].into_iter().enumerate() {
        whole.observe_rewards(&step(w, l, n));
        [&mut here, &mut there][k].observe_rewards(&step(w, l, n));
    }
    here.merge(&there);
    assert!(error(here.mean(), whole.mean()) < 1e-15);
    assert!(error(whole.mean(), 1.8 / 10.0) < 1e-15);

    let mut average = MovingAverage::new(0.9).unwrap();
    average.update(2.0);
    let saved = serde_json::to_string(&average).unwrap();
    let mut resumed: MovingAverage = serde_json::from_str(&saved).unwrap();
    for state in [&mut average, &mut resumed] {
        state.update(-1.0);
        assert!(error(state.value(), 0.9 * 0.2 - 0.1) < 1e-15);
    }
    assert_eq!(to_vec(resumed.tensor(&device())).len(), 1);
    assert_eq!(MovingAverage::new(1.5).unwrap_err().name(), "momentum");
    let saved = serde_json::to_string(&whole).unwrap();
    assert_eq!(serde_json::from_str::<RunningMean>(&saved).unwrap(), whole);
}
