//! Modifiers of objectives and of log-probs, and the state that some objectives need.

use burn::tensor::{DType, Tensor, TensorData};
use burn_preference::config::TokenModifierConfig;
use burn_preference::log_probs::sequence_kl;
use burn_preference::modifier::wpo_weights;
use burn_preference::state::{MovingAverage, RunningMean};
use burn_preference::{
    BcoLossConfig, DpoLossConfig, LossOutput, Metrics, Mixture, NllNormalization, Objective, Pair,
    ReferencedPair, TokenLogProbs, Weighted, WithWeights,
};
use proptest::prelude::*;

use crate::scalar;
use crate::support::{assert_close, bools, cases, device, error, f64s, leaf, to_vec};

/// Two pairs of ragged token log-probs: completions of 4 and 2, of 1 and 3 tokens.
fn tokens(leaf: Tensor<1>) -> Pair<TokenLogProbs> {
    let counted = [[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]];
    let counted: Vec<bool> = counted.concat().into_iter().map(|x| x == 1).collect();
    let mask = bools(&counted).reshape([4, 4]);
    let log_probs = TokenLogProbs::new(leaf.reshape([4, 4]), mask).unwrap();
    Pair::from_concatenated_tokens(&log_probs).unwrap()
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
fn ld_dpo_discounts_the_tail() {
    let leaf = leaf(&VALUES);
    let pair = tokens(leaf.clone()).length_desensitized(0.25).unwrap();
    // The first pair's lengths are 4 and 2, the second's 1 and 3.
    assert_close(
        &to_vec(pair.chosen.sum()),
        &[-3.0 - 0.25 * 12.0, -0.5],
        1e-15,
        "chosen",
    );
    assert_close(
        &to_vec(pair.rejected.sum()),
        &[-8.0, -0.1 - 0.25 * 0.6],
        1e-15,
        "rejected",
    );
    assert_eq!(to_vec(pair.chosen.lengths()), [4.0, 1.0]);
    let grads = (pair.chosen.sum() + pair.rejected.sum()).sum().backward();
    let expected = [
        1.0, 1.0, 0.25, 0.25, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.25, 0.0, 0.25,
    ];
    assert_eq!(to_vec(leaf.grad(&grads).unwrap()), expected);

    let plain = tokens(f64s(&VALUES)).sequences();
    let same = tokens(f64s(&VALUES)).length_desensitized(1.0).unwrap();
    assert_eq!(to_vec(same.chosen.sum()), to_vec(plain.chosen.sum()));
    let error = tokens(f64s(&VALUES)).length_desensitized(1.1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`ld_alpha` is 1.1, but must be in [0, 1]"
    );
}

#[test]
fn sampo_counts_equally_many_tokens() {
    let noise = |values: [f64; 8]| f64s(&values).reshape([2, 4]);
    let noise = Pair {
        chosen: noise([0.9, 0.1, 0.5, 0.2, 0.0, 0.9, 0.0, 0.0]),
        rejected: noise([0.4, 0.0, 0.3, 0.0, 0.6, 0.5, 0.0, 0.7]),
    };
    let pair = tokens(f64s(&VALUES)).subsampled(&noise).unwrap();
    // The two smallest of the chosen side of the first pair: columns 1 and 3.
    assert_eq!(to_vec(pair.chosen.sum()), [-2.0 - 8.0, -0.5]);
    assert_eq!(to_vec(pair.rejected.sum()), [-8.0, -0.2]);
    assert_eq!(to_vec(pair.chosen.lengths()), [2.0, 1.0]);
    assert_eq!(to_vec(pair.rejected.lengths()), [2.0, 1.0]);
    let narrow = Pair {
        chosen: noise.chosen.clone().narrow(1, 0, 3),
        ..noise
    };
    let error = tokens(f64s(&VALUES)).subsampled(&narrow).unwrap_err();
    assert_eq!(error.name(), "noise.chosen");
}

#[test]
fn token_clamp_bounds_each_log_ratio() {
    let leaf = leaf(&VALUES);
    let reference = tokens(f64s(&[-1.5; 16]));
    let clamped = tokens(leaf.clone())
        .clamped_relative_to(&reference, -1.0, 0.6)
        .unwrap();
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
}

#[test]
fn token_modifiers_come_from_files() {
    let parse = |json: &str| serde_json::from_str::<TokenModifierConfig>(json);
    let (policy, reference) = (tokens(f64s(&VALUES)), tokens(f64s(&[-1.5; 16])));
    let of = |json: &str| {
        let modifier = parse(json).unwrap().try_init().unwrap();
        let pair = modifier.apply(&policy, &reference).unwrap();
        to_vec(pair.chosen.log_ratio())
    };
    let ld = of(r#"{"modifier": "length_desensitized", "alpha": 0.25}"#);
    assert_close(&ld, &[-6.0 + 1.5 * 2.5, 1.0], 1e-15, "LD-DPO");
    let clamp = of(r#"{"modifier": "token_clamp", "low": -1, "high": 0.6}"#);
    assert_close(&clamp, &[-2.0, 0.6], 1e-15, "clamp");
    let typo = parse(r#"{"modifier": "token_clamp", "low": -1, "hihg": 1}"#).unwrap_err();
    assert!(typo.to_string().contains("hihg"), "{typo}");
    let out_of_range = |json: &str| parse(json).unwrap().try_init().unwrap_err().to_string();
    assert_eq!(
        out_of_range(r#"{"modifier": "token_clamp", "low": 1, "high": 0.5}"#),
        "`high` is 0.5, but must be ≥ `low`"
    );
    assert_eq!(
        out_of_range(r#"{"modifier": "length_desensitized", "alpha": -1}"#),
        "`alpha` is -1, but must be in [0, 1]"
    );
}

#[test]
fn odd_rows_are_no_pairs() {
    let log_probs = TokenLogProbs::new(
        f64s(&[-1.0; 3]).reshape([3, 1]),
        bools(&[true; 3]).reshape([3, 1]),
    );
    let error = Pair::from_concatenated_tokens(&log_probs.unwrap()).unwrap_err();
    assert_eq!(error.found(), "3");
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
    let narrow = Pair {
        chosen: policy.rejected.clone(),
        rejected: policy.rejected.clone(),
    };
    assert!(wpo_weights(&policy, &narrow, None).is_ok());
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn the_kl_between_two_models(
        logits in prop::collection::vec(-8.0..8.0_f64, 12),
        other in prop::collection::vec(-8.0..8.0_f64, 12),
    ) {
        // One row, three steps, four words; steps 0 and 1 predict counted tokens.
        let tensor = |values: &[f64]| {
            let data = TensorData::new(values.to_vec(), [1, 3, 4]);
            Tensor::<3>::from_data(data, (&device(), DType::F64))
        };
        let mask = || bools(&[false, true, true]).reshape([1, 3]);
        let p = |values: &[f64], t: usize| scalar::softmax(&values[4 * t..4 * t + 4]);

        let leaf = tensor(&logits).autodiff().require_grad();
        let kl = sequence_kl(leaf.clone(), tensor(&other), mask()).unwrap();
        let terms = |t| {
            let (ours, theirs) = (p(&logits, t), p(&other, t));
            theirs.into_iter().zip(ours).map(|(q, p)| q * (q / p).ln()).sum::<f64>()
        };
        prop_assert!(error(to_vec(kl.clone())[0], terms(0) + terms(1)) < 1e-11);
        // d KL / d logits = π − π°
        let grads = to_vec(leaf.grad(&kl.sum().backward()).unwrap());
        for t in 0..2 {
            for v in 0..4 {
                let expected = p(&logits, t)[v] - p(&other, t)[v];
                prop_assert!(error(grads[4 * t + v], expected) < 1e-11);
            }
        }
        prop_assert!(grads[8..].iter().all(|&g| g == 0.0), "the last step predicts nothing");
        let same = sequence_kl(tensor(&logits), tensor(&logits), mask()).unwrap();
        prop_assert_eq!(to_vec(same), vec![0.0]);
    }
}

#[test]
fn a_word_that_the_reference_rules_out_costs_nothing() {
    let tensor = |values: [f64; 4]| {
        let data = TensorData::new(values.to_vec(), [1, 2, 2]);
        Tensor::<3>::from_data(data, (&device(), DType::F64))
    };
    let mask = bools(&[false, true]).reshape([1, 2]);
    let leaf = tensor([0.0; 4]).autodiff().require_grad();
    let reference = tensor([0.0, f64::NEG_INFINITY, 0.0, 0.0]);
    let kl = sequence_kl(leaf.clone(), reference, mask).unwrap();
    assert_close(
        &to_vec(kl.clone()),
        &[std::f64::consts::LN_2],
        1e-15,
        "1·ln(1/½)",
    );
    let grads = to_vec(leaf.grad(&kl.backward()).unwrap());
    assert_close(&grads, &[-0.5, 0.5, 0.0, 0.0], 1e-15, "gradient");
}

#[test]
fn weights_of_modifiers_are_checked() {
    let dpo = || DpoLossConfig::new().init();
    let name = |e: burn_preference::InvalidHyperparameter| (e.name(), e.value());
    let error = Mixture::<ReferencedPair>::try_new(-1.0, dpo())
        .err()
        .unwrap();
    assert_eq!(name(error), ("weight", -1.0));
    let mixture = Mixture::<ReferencedPair>::new(1.0, dpo());
    let error = mixture
        .try_and(-2.0, BcoLossConfig::new().init())
        .err()
        .unwrap();
    assert_eq!(name(error), ("weight", -2.0));
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
