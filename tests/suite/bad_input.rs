//! Bad input: the targets of `fuzz/` on their corpus and on random bytes, and the words of errors.

use std::fs;
use std::path::Path;

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use burn_preference::batch::quantile_scores;
use burn_preference::log_probs::{Discrepancy, TokenDiscrepancy};
use burn_preference::modifier::wpo_weights;
use burn_preference::training::state::{MovingAverage, RunningMean};
use burn_preference::{
    AlphaPoLossConfig, Divergence, DpoLossConfig, DpoShiftLossConfig, Frozen, InvalidInput, LmHead,
    Objective, Pair, PolicyPair, Ranked, ReferenceSchedule, RewardPair, Scored, SequenceLogProbs,
    SimpoLossConfig, TokenLogProbs, Unpaired, WithBaseline, WithMargin, WithMeanMargin, WithNll,
    WithPreference, WithScores, WithSequenceKl, WithShift, WithTies, WithValue, WithWeights,
};
use proptest::prelude::*;

use crate::support::fuzz::{INTEGERS, TARGETS};
use crate::support::{assert_close, bools, cases, device, elsewhere, floats, sequence, to_vec};

/// What the fuzzers found worth keeping, `fuzz/corpus/TARGET/*`.
#[test]
fn the_corpus() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let files: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        assert!(!files.is_empty(), "{}", folder.display());
        for file in files {
            target(&fs::read(file).unwrap());
        }
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn random_bytes(data in prop::collection::vec(any::<u8>(), 0..800)) {
        for (_, target) in TARGETS {
            target(&data);
        }
    }
}

fn both<T: burn_preference::batch::PerCompletion>(chosen: T, rejected: T) -> Pair<T> {
    Pair::new(chosen, rejected).unwrap()
}

/// A pair whose rejected side was put in afterwards.
fn apart(chosen: Tensor<1>, rejected: Tensor<1>) -> Pair<Tensor<1>> {
    let mut pair = both(chosen.clone(), chosen);
    pair.rejected = rejected;
    pair
}

fn far(values: &[f64]) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), (&elsewhere(), DType::F32))
}

/// The name of what does not fit, and that the message says on which devices it is.
fn is_about_devices(error: &InvalidInput, name: &str) {
    assert_eq!(error.name(), name);
    assert_eq!(error.expected(), format!("{:?}", device()));
    assert_eq!(error.found(), format!("{:?}", elsewhere()));
}

#[test]
fn rewards_and_scores_of_another_device_are_named() {
    let near = || sequence(floats(&[-1.0, -2.0], DType::F32), &[1, 1]);
    let two = || far(&[0.0, 0.0]);
    let ours = || floats(&[0.0, 0.0], DType::F32);
    let pair = || RewardPair::new(ours(), ours()).unwrap();
    let scored = Scored::new(near(), ours()).unwrap();
    let row = |x: Tensor<1>| x.reshape([1, 2]);
    let present = row(ours()).lower_elem(1.0);
    let samples = |x: Tensor<1>| x.reshape([2, 1]);
    let errors = [
        (RewardPair::new(ours(), two()).err(), "rejected"),
        (WithMargin::new(pair(), two()).err(), "margin"),
        (Scored::new(near(), two()).err(), "scores"),
        (WithValue::new(scored, two()).err(), "value"),
        (
            Ranked::new(row(ours()), row(two()), present).err(),
            "scores",
        ),
        (quantile_scores(ours(), samples(two())).err(), "reference"),
    ];
    for (error, name) in errors {
        is_about_devices(&error.unwrap(), name);
    }
}

#[test]
fn tensors_of_another_device_are_named() {
    let near = || sequence(floats(&[-1.0, -2.0], DType::F32), &[1, 1]);
    let away = sequence(far(&[-1.0, -2.0]), &[1, 1]);
    let batch = || {
        let pair = PolicyPair::new(near(), near()).unwrap();
        pair.clone().relative_to(pair).unwrap()
    };
    let two = || far(&[0.0, 0.0]);
    let ours = || floats(&[0.0, 0.0], DType::F32);

    let errors = [
        (PolicyPair::new(near(), away.clone()).err(), "rejected"),
        (near().relative_to(away.clone()).err(), "reference"),
        (
            Unpaired::new(near(), two().lower_elem(1.0)).err(),
            "desirable",
        ),
        (WithMargin::new(batch(), two()).err(), "margin"),
        (WithPreference::new(batch(), two()).err(), "win_probability"),
        (WithWeights::new(batch(), two()).err(), "weights"),
        (
            WithScores::new(batch(), both(two(), two())).err(),
            "scores.chosen",
        ),
        (
            WithScores::new(batch(), apart(ours(), two())).err(),
            "scores.rejected",
        ),
        (
            WithSequenceKl::new(batch(), both(two(), two())).err(),
            "sequence_kl.chosen",
        ),
        (
            WithSequenceKl::new(batch(), apart(ours(), two())).err(),
            "sequence_kl.rejected",
        ),
        (WithTies::new(batch(), two().lower_elem(1.0)).err(), "tied"),
        (WithNll::new(batch(), away).err(), "nll_of"),
        (WithBaseline::new(batch(), far(&[0.0])).err(), "baseline"),
        (WithShift::new(batch(), far(&[0.0])).err(), "shift"),
        (
            WithMeanMargin::new(batch(), far(&[0.0])).err(),
            "mean_margin",
        ),
    ];
    for (error, name) in errors {
        is_about_devices(&error.unwrap(), name);
    }

    let lists = || near().split_candidates(2).unwrap();
    let [scores, present] = [ours(), ours()].map(|x| x.reshape([1, 2]));
    let there = |x: Tensor<2>| x.lower_elem(1.0);
    let error = Ranked::new(lists(), two().reshape([1, 2]), there(present));
    is_about_devices(&error.unwrap_err(), "scores");
    let error = Ranked::new(lists(), scores, there(two().reshape([1, 2])));
    is_about_devices(&error.unwrap_err(), "present");

    // Tokens, masks and what is done to them.
    let row = |x: Tensor<1>| x.reshape([1, 2]);
    let error = TokenLogProbs::new(row(ours()), there(row(two())));
    is_about_devices(&error.unwrap_err(), "mask");
    let tokens = |mask: Tensor<2, Bool>| TokenLogProbs::new(row(ours()), mask).unwrap();
    let here = || tokens(there(row(ours())));
    let mask = there(Tensor::<2>::zeros([1, 3], &elsewhere()));
    is_about_devices(&here().restrict(mask).unwrap_err(), "mask");
    let gone = TokenLogProbs::new(row(two()), there(row(two()))).unwrap();
    let pair = || both(here(), here());
    let other = || both(gone.clone(), gone.clone());
    let error = pair().relative_to(other());
    is_about_devices(&error.unwrap_err(), "reference");
    let tokens = || pair().relative_to(pair()).unwrap();
    let noise = both(row(two()), row(two()));
    is_about_devices(&tokens().subsampled(&noise).unwrap_err(), "noise.chosen");
    is_about_devices(&tokens().weighted(noise).unwrap_err(), "weights");
    let error = Pair::new(ours(), two());
    is_about_devices(&error.unwrap_err(), "rejected");
    let error = batch().scaled_by(two());
    is_about_devices(&error.unwrap_err(), "scale");
    is_about_devices(
        &wpo_weights(&pair(), &other(), None).unwrap_err(),
        "collisions",
    );

    let logits = |device: &Device| Tensor::<3>::zeros([1, 2, 3], (device, DType::F32));
    let ids = |device: &Device| Tensor::<2, Int>::zeros([1, 2], device);
    let all = |device: &Device| Tensor::<2>::zeros([1, 2], device).lower_elem(1.0);
    let (d, e) = (device(), elsewhere());
    let error = TokenLogProbs::from_output(logits(&d), ids(&e), all(&d));
    is_about_devices(&error.unwrap_err(), "tokens");
    let error = TokenLogProbs::from_output(logits(&d), ids(&d), all(&e));
    is_about_devices(&error.unwrap_err(), "completion_mask");
    let kind = Discrepancy::ForwardKl;
    let error = TokenDiscrepancy::from_outputs(kind, logits(&d), logits(&d), all(&e));
    is_about_devices(&error.unwrap_err(), "completion_mask");
    let head = LmHead::new(Tensor::zeros([5, 3], (&d, DType::F32)));
    let bias = Tensor::zeros([5], (&e, DType::F32));
    let error = TokenLogProbs::from_output((logits(&d), head.with_bias(bias)), ids(&d), all(&d));
    is_about_devices(&error.unwrap_err(), "head.bias");
}

#[test]
fn numbers_that_cannot_be_are_named() {
    let error = SequenceLogProbs::from_values(&[-1.0, -2.0], &[3], &device()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`lengths`: expected 2, one per sum, found 1"
    );

    let narrow = sequence(floats(&[-1.0], DType::F32), &[1]);
    let wide = sequence(floats(&[-1.0], DType::F64), &[1]);
    let error = PolicyPair::new(narrow, wide).unwrap_err();
    assert_eq!(error.to_string(), "`rejected`: expected F32, found F64");

    let none = || Tensor::<2>::zeros([1, 0], &device());
    let candidates = SequenceLogProbs::new(none(), &[]).unwrap();
    let error = Ranked::new(candidates, none(), none().lower_elem(0.0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`candidates`: expected one per list at least, found 0"
    );
}

/// A value that f32 would turn into 0 or ∞ is not a small or a large one: it would be ignored.
#[test]
fn hyperparameters_fit_into_f32() {
    for beta in [1e-300, 1e300, 1e-39, 4e38] {
        let error = DpoLossConfig::new().with_beta(beta).try_init().unwrap_err();
        let text = format!("`beta` is {beta:e}, but must be a finite number > 0, in f32");
        assert_eq!(error.to_string(), text);
    }
    let error = SimpoLossConfig::new()
        .with_target_margin(-1e39)
        .try_init()
        .unwrap_err();
    assert_eq!(
        (error.name(), error.allowed()),
        ("target_margin", "a finite number, in f32")
    );
    let error = DpoShiftLossConfig::new()
        .with_rejected_share(1e-40)
        .try_init()
        .unwrap_err();
    assert_eq!(
        (error.name(), error.allowed()),
        ("rejected_share", "in (0, 1], in f32")
    );
    for beta in [1.2e-38, 3.4e38] {
        assert!(DpoLossConfig::new().with_beta(beta).try_init().is_ok());
    }
    // α → 0 is a limit, not a division by 0: to the last bit.
    let dpo = |divergence| {
        let y = |sum: f64| sequence(floats(&[sum], DType::F32), &[2]);
        // A log-ratio of 1e-3, of which α = 2e-38 leaves no normal number.
        let policy = PolicyPair::new(y(-1.3), y(-4.1)).unwrap();
        let reference = PolicyPair::new(y(-1.301), y(-4.1)).unwrap();
        let dpo = DpoLossConfig::new().with_beta(1e3);
        let dpo = dpo.with_divergence(divergence).init();
        to_vec(dpo.forward(policy.relative_to(reference).unwrap()).losses())
    };
    assert_eq!(dpo(Divergence::Alpha(2e-38)), dpo(Divergence::ReverseKl));
    for alpha in [0.0, 1.2e-38, -1e-30] {
        let alpha = AlphaPoLossConfig::new().with_alpha(alpha).init();
        let pair = |sum: f64| sequence(floats(&[sum], DType::F32), &[2]);
        let batch = || PolicyPair::new(pair(-1.0), pair(-4.0)).unwrap();
        let simpo = SimpoLossConfig::new().init().forward(batch()).losses();
        assert_eq!(to_vec(alpha.forward(batch()).losses()), to_vec(simpo));
    }
}

#[test]
fn files_say_what_is_wrong_with_their_values() {
    let message = |text: &str| {
        serde_json::from_str::<ReferenceSchedule>(text)
            .unwrap_err()
            .to_string()
    };
    assert!(
        message(r#"{"interval": 0, "alpha": 0.5}"#).starts_with("`interval` is 0, but must be ≥ 1")
    );
    assert!(
        message(r#"{"interval": 3, "alpha": 7.0}"#)
            .starts_with("`alpha` is 7, but must be in (0, 1]")
    );
    assert!(message(r#"{"interval": 3, "alfa": 0.5}"#).contains("unknown field `alfa`"));
    let error = serde_json::from_str::<MovingAverage>(r#"{"value": 0.0, "momentum": 5.0}"#);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .starts_with("`momentum` is 5, but must be in [0, 1]")
    );
    let error = serde_json::from_str::<RunningMean>(r#"{"sum": 0.0, "count": -1.0}"#);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .starts_with("`count` is -1, but must be")
    );
}

#[test]
fn ids_of_every_integer_type() {
    for dtype in INTEGERS {
        if !device().supports_dtype(dtype) {
            continue;
        }
        // 300 words: no id of 8 bits is outside, and none may wrap into another.
        let logits: Vec<f64> = (0..600).map(|i| f64::from(i % 300) / 100.0).collect();
        let logits = floats(&logits, DType::F32).reshape([1, 2, 300]);
        for id in [0_i64, 5, 127] {
            let ids =
                Tensor::<2, Int>::from_data(TensorData::from([[1_i64, id]]), (&device(), dtype));
            let mask = bools(&[false, true]).reshape([1, 2]);
            let ours =
                TokenLogProbs::from_output(logits.clone(), ids.clone(), mask.clone()).unwrap();
            let z: f64 = (0..300).map(|v| (f64::from(v) / 100.0).exp()).sum();
            let expected = id as f64 / 100.0 - z.ln();
            assert_close(
                &to_vec(ours.log_probs()),
                &[expected],
                1e-5,
                &format!("{id} as {dtype:?}"),
            );
            assert_eq!(TokenLogProbs::check_tokens(&ids, &mask, 300), Ok(()));
        }
    }
}

#[test]
fn a_reference_is_not_moved_past_the_policy() {
    let layer = burn::nn::LinearConfig::new(1, 1).init(&device());
    for alpha in [2.0, -0.1, f64::NAN] {
        let error = Frozen::new(&layer).moved_toward(&layer, alpha).unwrap_err();
        assert_eq!((error.name(), error.expected()), ("alpha", "in [0, 1]"));
    }
}
