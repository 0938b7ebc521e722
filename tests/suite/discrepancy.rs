//! The divergence of two models per token: against plain f64, and its laws.

use burn::tensor::{Bool, DType, Tensor, TensorData};
use burn_preference::log_probs::{CompletionMask, Discrepancy, TokenDiscrepancy};
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use burn_preference::{InvalidInput, LmHead};
use proptest::prelude::*;

use crate::problem::{FROZEN, How, LAYOUTS, Problem, REFERENCE, Shaping, TRAINABLE};
use crate::support::{
    ZipEqual, assert_close, bools, cases, device, dtypes, error, keeps_nan, to_vec, tolerance,
};
use crate::two_models::{KINDS, TwoModels, divergence, slope};

fn any_kind() -> impl Strategy<Value = Discrepancy> {
    prop_oneof![
        Just(Discrepancy::ForwardKl),
        Just(Discrepancy::ReverseKl),
        (0.01..0.99_f64).prop_map(Discrepancy::JensenShannon),
    ]
}

prop_compose! {
    fn any_models()(
        shape in (1_usize..4, 2_usize..6, 1_usize..40, 1_usize..20),
        seed in any::<u32>(),
        [ours_biased, theirs_biased] in any::<[bool; 2]>(),
        shaping in crate::head::any_shaping(),
        theirs in crate::head::any_shaping(),
    ) -> TwoModels {
        let (batch, time, vocab, width) = shape;
        let TwoModels { policy, reference } = TwoModels::new([batch, time, vocab, width], seed.into());
        let (policy, reference) = (policy.shaped(shaping), reference.shaped(theirs));
        TwoModels {
            policy: if ours_biased { policy } else { policy.without_bias() },
            reference: if theirs_biased { reference } else { reference.without_bias() },
        }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn two_heads_match_the_scalar_code(
        models in any_models(),
        kind in any_kind(),
        layout in prop::sample::select(&LAYOUTS[..]),
        (hidden, weight) in any::<(bool, bool)>(),
        (checkpointed, from_logits) in any::<(bool, bool)>(),
    ) {
        for dtype in [DType::F32, DType::F64] {
            let how = How { dtype, layout, hidden, weight, checkpointed, from_logits, ..TRAINABLE };
            models.check(kind, how, tolerance(dtype));
        }
    }

    /// The scalar code's own gradient.
    #[test]
    fn slopes_of_the_scalar_code(
        ours in prop::collection::vec(-4.0..4.0_f64, 5),
        theirs in prop::collection::vec(-4.0..4.0_f64, 5),
        kind in any_kind(),
    ) {
        let slopes = slope(kind, &ours, &theirs);
        for v in 0..5 {
            let at = |d: f64| {
                let mut moved = ours.clone();
                moved[v] += d;
                divergence(kind, &moved, &theirs)
            };
            prop_assert!(error(slopes[v], crate::scalar::slope(at)) < 1e-8);
        }
    }
}

#[test]
fn every_kind_of_every_gradient() {
    let models = TwoModels::new([2, 5, 23, 6], 4);
    for kind in KINDS {
        for (hidden, weight) in [(true, true), (true, false), (false, true), (false, false)] {
            for from_logits in [false, true] {
                let how = How {
                    hidden,
                    weight,
                    from_logits,
                    ..TRAINABLE
                };
                models.check(kind, how, 1e-11);
            }
        }
    }
}

/// More rows and words than one block has, and not a multiple of it: tiles of Flex in f32, blocks of
/// 299 rows of the generic steps in f64 and on other backends.
#[test]
fn several_blocks() {
    let shaping = Shaping {
        scale: 1.5,
        softcap: Some(2.5),
        temperature: 0.7,
    };
    let models = TwoModels::new([2, 300, 7000, 3], 1);
    let capped = TwoModels {
        policy: models.policy.clone().shaped(shaping),
        ..models.clone()
    };
    let dtype = DType::F32;
    for kind in [
        Discrepancy::ForwardKl,
        Discrepancy::ReverseKl,
        Discrepancy::JensenShannon(0.3),
    ] {
        let expected = models.scalar(kind);
        for (dtype, layout) in LAYOUTS
            .map(|layout| (dtype, layout))
            .into_iter()
            .chain([(DType::F64, LAYOUTS[0])])
        {
            let allowed = tolerance(dtype).max(1e-10) * 6.0;
            let trained = How {
                dtype,
                layout,
                ..TRAINABLE
            };
            models.check_against(&expected, kind, trained, allowed);
        }
        for dtype in [dtype, DType::F64] {
            let from_logits = How {
                dtype,
                from_logits: true,
                ..FROZEN
            };
            models.check_against(&expected, kind, from_logits, 3e-4);
        }
        let expected = capped.scalar(kind);
        for how in [TRAINABLE, FROZEN, REFERENCE] {
            capped.check_against(&expected, kind, How { dtype, ..how }, 3e-4);
        }
    }
}

#[test]
fn half_precision() {
    // Numbers that both types hold exactly: what is left is the kernel's own rounding.
    let mut models = TwoModels::new([2, 9, 47, 31], 5);
    models.coarsen();
    let half = |dtype: &DType| matches!(dtype, DType::F16 | DType::BF16);
    for dtype in dtypes().into_iter().filter(half) {
        // Outside Flex the logits are rounded, here those of two models: 2⁻⁵ of a logit of 8 in bf16, in
        // 47 terms of a weight of 4.
        let allowed = 2.0 * tolerance(dtype);
        for kind in KINDS {
            for layout in LAYOUTS {
                let how = How {
                    dtype,
                    layout,
                    ..TRAINABLE
                };
                models.check(kind, how, allowed);
            }
            models.check(kind, How { dtype, ..FROZEN }, allowed);
            // Logits of eighths; the gradient alone is rounded.
            let [ours, theirs] = [1, 2].map(|seed| {
                let noise = crate::problem::noise(20, seed).into_iter();
                noise.map(|x| (x * 32.0).round() / 8.0).collect::<Vec<_>>()
            });
            for (found, gradient) in at_one(kind, &ours, &theirs, dtype) {
                let (expected, slopes) = (
                    divergence(kind, &ours, &theirs),
                    slope(kind, &ours, &theirs),
                );
                assert_close(&[found], &[expected], 1e-5, "value");
                assert_close(&gradient, &slopes, 4e-3, "gradient");
            }
        }
    }
}

/// One position whose logits are these, by both paths: values, and the gradient of our logits.
fn at_one(kind: Discrepancy, ours: &[f64], theirs: &[f64], dtype: DType) -> [(f64, Vec<f64>); 2] {
    let vocab = ours.len();
    let mask = || bools(&[false, true]).reshape([1, 2]);
    let rows = |row: &[f64]| Problem::floats(&[row, row].concat(), [1, 2, vocab], dtype);
    let results = |leaf: &Tensor<3>, found: Result<TokenDiscrepancy, InvalidInput>| {
        let values = found.unwrap().values();
        let grads = values.clone().sum().backward();
        let gradient = to_vec(leaf.grad(&grads).unwrap())[..vocab].to_vec();
        (to_vec(values)[0], gradient)
    };
    let leaf = rows(ours).autodiff().require_grad();
    let by_logits = TokenDiscrepancy::from_outputs(kind, leaf.clone(), rows(theirs), mask());
    let by_logits = results(&leaf, by_logits);

    // The bias is the logits, since an infinite weight times 0 is NaN.
    let zeros = || Tensor::<3>::zeros([1, 2, 1], (&device(), dtype));
    let head = |bias: Tensor<1>| {
        LmHead::new(Tensor::zeros([vocab, 1], (&device(), dtype))).with_bias(bias)
    };
    let leaf = Problem::floats(ours, [1, 1, vocab], dtype)
        .autodiff()
        .require_grad();
    let policy = (zeros(), head(leaf.clone().reshape([vocab])));
    let reference = (zeros(), head(Problem::floats(theirs, [vocab], dtype)));
    let by_head = TokenDiscrepancy::from_outputs(kind, policy, reference, mask());
    [by_logits, results(&leaf, by_head)]
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn laws(
        ours in prop::collection::vec(-8.0..8.0_f64, 7),
        theirs in prop::collection::vec(-8.0..8.0_f64, 7),
        (shift, beta) in (-20.0..20.0_f64, 0.01..0.99_f64),
    ) {
        let value = |kind, ours: &[f64], theirs: &[f64]| {
            at_one(kind, ours, theirs, DType::F64)[0].0
        };
        let js = Discrepancy::JensenShannon;
        for kind in [Discrepancy::ForwardKl, Discrepancy::ReverseKl, js(beta)] {
            let found = value(kind, &ours, &theirs);
            prop_assert!(found >= 0.0);
            // A logit has no zero.
            let shifted: Vec<f64> = ours.iter().map(|x| x + shift).collect();
            prop_assert!(error(value(kind, &shifted, &theirs), found) < 1e-11);
            for (same, gradient) in at_one(kind, &ours, &ours, DType::F64) {
                prop_assert_eq!(same, 0.0);
                prop_assert!(gradient.iter().all(|g| g.abs() < 1e-15));
            }
            // The policy moves along differences of logits alone.
            for (_, gradient) in at_one(kind, &ours, &theirs, DType::F64) {
                prop_assert!(gradient.iter().sum::<f64>().abs() < 1e-12);
            }
        }
        // One is the other with the models exchanged.
        let forward = value(Discrepancy::ForwardKl, &ours, &theirs);
        let reverse = value(Discrepancy::ReverseKl, &ours, &theirs);
        prop_assert!(error(forward, value(Discrepancy::ReverseKl, &theirs, &ours)) < 1e-11);
        let mixed = value(js(beta), &ours, &theirs);
        prop_assert!(error(mixed, value(js(1.0 - beta), &theirs, &ours)) < 1e-11);
        let half = value(js(0.5), &ours, &theirs);
        prop_assert!(error(half, value(js(0.5), &theirs, &ours)) < 1e-12);
        // At most the entropy of the choice between the two, and less than both of its KLs.
        prop_assert!(mixed <= -beta * beta.ln() - (1.0 - beta) * (1.0 - beta).ln() + 1e-12);
        prop_assert!(mixed <= beta * forward + 1e-12);
        prop_assert!(mixed <= (1.0 - beta) * reverse + 1e-12);
        // The two ends. Second order: 1/p is at most e^16 here.
        let small = 1e-3;
        let near = |a: f64, b: f64| (a - b).abs() < 2e-2 * b + 1e-7;
        if ours.iter().chain(&theirs).all(|x| x.abs() < 1.0) {
            prop_assert!(near(value(js(small), &ours, &theirs) / small, forward));
            prop_assert!(near(value(js(1.0 - small), &ours, &theirs) / small, reverse));
        }
    }

    /// f32 near equality: relative digits, and never below 0 by more than the square of one.
    #[test]
    fn models_that_are_nearly_equal(
        ours in prop::collection::vec(-256..256_i32, 50),
        moves in prop::collection::vec(-8..8_i32, 50),
        digits in 8..14_i32,
    ) {
        // Numbers that f32 holds exactly.
        let ours: Vec<f64> = ours.iter().map(|x| f64::from(*x) / 32.0).collect();
        let moved = ours.iter().zip(&moves);
        let step = f64::from(2_i32.pow(digits.unsigned_abs()));
        let theirs: Vec<f64> = moved.map(|(x, d)| x + f64::from(*d) / step).collect();
        for kind in KINDS {
            let expected = divergence(kind, &ours, &theirs);
            for (found, _) in at_one(kind, &ours, &theirs, DType::F32) {
                prop_assert!((found - expected).abs() < 2e-2 * expected + 1e-13);
            }
            for (found, _) in at_one(kind, &ours, &theirs, DType::F64) {
                prop_assert!((found - expected).abs() < 1e-9 * expected + 2e-15);
            }
        }
    }

    /// Finite values and gradients, and those of the scalar code. A gradient is p·(d − mean d), of
    /// differences d up to 2e4, which f32 holds to 1e-3.
    #[test]
    fn extremes(
        ours in prop::collection::vec(prop::sample::select(&[-1e4, -100.0, 0.0, 100.0, 1e4][..]), 4),
        theirs in prop::collection::vec(prop::sample::select(&[-1e4, -100.0, 0.0, 100.0, 1e4][..]), 4),
    ) {
        for kind in KINDS {
            let (expected, slopes) = (divergence(kind, &ours, &theirs), slope(kind, &ours, &theirs));
            for dtype in [DType::F32, DType::F64] {
                let allowed = if dtype == DType::F32 { 2e-3 } else { tolerance(dtype) };
                for (found, gradient) in at_one(kind, &ours, &theirs, dtype) {
                    prop_assert!(error(found, expected) < tolerance(dtype), "{found} {expected}");
                    for (&found, &expected) in gradient.iter().zip(&slopes) {
                        prop_assert!((found - expected).abs() < allowed, "{found} {expected}");
                    }
                }
            }
        }
    }
}

/// Words with a logit of −∞: in one model, in the other, in both.
#[test]
fn words_that_are_ruled_out() {
    let none = f64::NEG_INFINITY;
    let half = 0.5_f64;
    let js = |beta: f64| -beta * beta.ln() - (1.0 - beta) * (1.0 - beta).ln();
    for dtype in [DType::F32, DType::F64] {
        let allowed = tolerance(dtype).min(1e-6);
        let check = |kind, ours: [f64; 3], theirs: [f64; 3], value: f64, slopes: [f64; 3]| {
            for (found, gradient) in at_one(kind, &ours, &theirs, dtype) {
                let what = format!("{kind:?} {dtype:?} {ours:?} {theirs:?}");
                if value.is_infinite() {
                    assert_eq!(found, value, "{what}");
                } else {
                    assert_close(&[found], &[value], allowed, &what);
                }
                assert_close(&gradient, &slopes, allowed, &what);
            }
        };
        // π = (½, ½, 0), π° = (1, 0, 0): word 1 is ruled out by the reference, word 2 by both.
        let (wide, narrow) = ([0.0, 0.0, none], [0.0, none, none]);
        check(
            Discrepancy::ForwardKl,
            wide,
            narrow,
            2_f64.ln(),
            [-half, half, 0.0],
        );
        // The other way round, KL(½, ½ ‖ 1, 0) = ∞; the gradient is π − π° all the same.
        check(
            Discrepancy::ForwardKl,
            narrow,
            wide,
            f64::INFINITY,
            [half, -half, 0.0],
        );
        check(Discrepancy::ReverseKl, narrow, wide, 2_f64.ln(), [0.0; 3]);
        // m = (¾, ¼, 0): ½·ln(4/3) + ½·(½·ln(2/3) + ½·ln 2).
        let value = half * (4_f64 / 3.0).ln() + 0.25 * ((2_f64 / 3.0).ln() + 2_f64.ln());
        check(
            Discrepancy::JensenShannon(half),
            narrow,
            wide,
            value,
            [0.0; 3],
        );
        // ½·p·(ln(p/m) − mean), with logarithms ln(2/3) and ln 2 of which the mean is ½·ln(4/3).
        let down = 0.25 * ((2_f64 / 3.0).ln() - half * (4_f64 / 3.0).ln());
        check(
            Discrepancy::JensenShannon(half),
            wide,
            narrow,
            value,
            [down, -down, 0.0],
        );
        // Nothing in common.
        let (one, other) = ([0.0, none, none], [none, 0.0, none]);
        for beta in [0.5, 0.1] {
            let kind = Discrepancy::JensenShannon(beta);
            check(kind, one, other, js(beta), [0.0; 3]);
        }
        // The reverse KL of a word that the reference rules out: no number is right.
        for (found, gradient) in at_one(Discrepancy::ReverseKl, &wide, &narrow, dtype) {
            assert_eq!(found, f64::INFINITY);
            assert!(!gradient[1].is_finite());
        }
    }
}

/// A NaN at a position that counts reaches its own value; one elsewhere reaches nothing.
#[test]
fn nan_stays_where_it_is() {
    if !keeps_nan() {
        return;
    }
    let vocab = 3;
    let plain = |rows: usize| Tensor::<3>::zeros([1, rows, vocab], (&device(), DType::F64));
    let broken = || {
        let nan = Tensor::<3>::full([1, 1, vocab], f64::NAN, (&device(), DType::F64));
        Tensor::cat(vec![plain(1), nan, plain(2)], 1)
    };
    let identity = || LmHead::new(Tensor::<2>::eye(vocab, &device()).cast(DType::F64));
    let with_mask = |kind, counted: [bool; 4], ours: Tensor<3>, theirs: Tensor<3>| {
        let mask = || bools(&counted).reshape([1, 4]);
        let leaf = ours.autodiff().require_grad();
        let heads = ((leaf.clone(), identity()), (theirs.clone(), identity()));
        let found = [
            TokenDiscrepancy::from_outputs(kind, leaf.clone(), theirs, mask()),
            TokenDiscrepancy::from_outputs(kind, heads.0, heads.1, mask()),
        ];
        found.map(|found| {
            let values = found.unwrap().values();
            let grads = values.clone().sum().backward();
            (to_vec(values), to_vec(leaf.grad(&grads).unwrap()))
        })
    };
    for kind in KINDS {
        for (ours, theirs) in [(broken(), plain(4)), (plain(4), broken())] {
            let skips = [false, true, false, true];
            for (values, gradient) in with_mask(kind, skips, ours.clone(), theirs.clone()) {
                assert!(
                    values.iter().chain(&gradient).all(|x| *x == 0.0),
                    "{kind:?}"
                );
            }
            for (values, _) in with_mask(kind, [true; 4], ours, theirs) {
                assert_eq!(
                    values.iter().map(|x| x.is_nan()).collect::<Vec<_>>(),
                    [false, true, false]
                );
            }
        }
    }
}

/// Only the policy is on the tape, and policy and reference may differ in number type.
#[test]
fn the_reference_is_a_constant() {
    let of = |dtype| Tensor::<3>::ones([1, 3, 2], (&device(), dtype));
    let head = |dtype| LmHead::new(Tensor::ones([4, 2], (&device(), dtype)));
    let mask = || bools(&[false, true, true]).reshape([1, 3]);
    let theirs = of(DType::F32).autodiff().require_grad();
    for kind in KINDS {
        let policy = (of(DType::F64), head(DType::F64));
        let reference = (theirs.clone(), head(DType::F32));
        let found = TokenDiscrepancy::from_outputs(kind, policy, reference, mask()).unwrap();
        assert!(!found.values().is_autodiff());
        assert_eq!(found.values().dtype(), DType::F64);
        assert_eq!(to_vec(found.values()), [0.0, 0.0]);

        for (ours, theirs) in [(DType::F32, DType::BF16), (DType::BF16, DType::F32)] {
            if !(device().supports_dtype(ours) && device().supports_dtype(theirs)) {
                continue;
            }
            let wide = |dtype, words| {
                // More multiplications than the generic steps take on Flex.
                let states = Tensor::<3>::ones([1, 3, 64], (&device(), dtype));
                (
                    states,
                    LmHead::new(Tensor::ones([words, 64], (&device(), dtype))),
                )
            };
            let ((h, head), reference) = (wide(ours, 2000), wide(theirs, 2000));
            let states = h.autodiff().require_grad();
            let policy = (states.clone(), head);
            let found = TokenDiscrepancy::from_outputs(kind, policy, reference, mask()).unwrap();
            assert_eq!(found.values().dtype(), DType::F32);
            assert!(to_vec(found.values()).iter().all(|x| x.abs() < 1e-6));
            let grads = found.mean().backward();
            assert_eq!(states.grad(&grads).unwrap().dtype(), ours);
        }

        let leaf = of(DType::F32).autodiff().require_grad();
        let found = TokenDiscrepancy::from_outputs(kind, leaf.clone(), theirs.clone(), mask());
        let grads = found.unwrap().mean().backward();
        assert!(theirs.grad(&grads).is_none() && leaf.grad(&grads).is_some());
    }
}

#[test]
fn sums_and_means() {
    let sequences = vec![
        Sequence::new(&[1], &[2, 3]),
        Sequence::new(&[1], &[]),
        Sequence::new(&[1, 2], &[3]),
    ];
    let batch = TokenBatch::new(sequences, Padding::new(0), &device()).unwrap();
    let noise = |seed| {
        Problem::floats(
            &crate::problem::noise(3 * 3 * 4, seed),
            [3, 3, 4],
            DType::F64,
        )
    };
    let found = batch
        .discrepancy(Discrepancy::ReverseKl, noise(1), noise(2))
        .unwrap();
    let values = to_vec(found.values());
    assert_eq!(
        values.iter().map(|x| *x != 0.0).collect::<Vec<_>>(),
        [true, true, false, false, false, true]
    );
    let counted: Vec<bool> = found.mask().into_data().iter().collect();
    assert_eq!(counted, [true, true, false, false, false, true]);
    let sums = [values[0] + values[1], 0.0, values[5]];
    assert_close(&to_vec(found.sums()), &sums, 1e-14, "sums");
    let mean = sums.iter().sum::<f64>() / 3.0;
    assert_close(&to_vec(found.mean()), &[mean], 1e-14, "mean");
}

/// Batches without a row, and without a token that counts: a graph is left, so that a backward
/// finds its leaves.
#[test]
fn nothing_to_compare() {
    let kind = Discrepancy::JensenShannon(0.5);
    let (batch, time) = (2, 3);
    let never = || bools(&[false; 6]).reshape([batch, time]);
    let leaf = |rows: usize| {
        let zeros = Tensor::<3>::zeros([rows, time, 4], (&device(), DType::F64));
        zeros.autodiff().require_grad()
    };
    let head = || LmHead::new(Tensor::ones([5, 4], (&device(), DType::F64)));
    let no_row = || {
        CompletionMask::from(Tensor::<2, Bool>::from_data(
            TensorData::new(Vec::<bool>::new(), [0, time]),
            &device(),
        ))
    };
    for (ours, mask) in [(leaf(0), no_row()), (leaf(batch), never().into())] {
        let rows = ours.dims()[0];
        let theirs = ours.clone().without_autodiff();
        let heads = ((ours.clone(), head()), (theirs.clone(), head()));
        for found in [
            TokenDiscrepancy::from_outputs(kind, ours.clone(), theirs, mask.clone()),
            TokenDiscrepancy::from_outputs(kind, heads.0, heads.1, mask.clone()),
        ] {
            let found = found.unwrap();
            assert_eq!(found.values().dims(), [rows, time - 1]);
            assert_eq!(to_vec(found.sums()), vec![0.0; rows]);
            assert!(to_vec(found.mean())[0].is_nan());
            let grads = found.sums().sum().backward();
            let gradient = ours.grad(&grads).map(to_vec).unwrap_or_default();
            assert!(gradient.iter().all(|g| *g == 0.0));
        }
    }
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let zeros = |shape: [usize; 3]| Tensor::<3>::zeros(shape, (&device(), DType::F64));
    let head = |words, width| LmHead::new(Tensor::zeros([words, width], (&device(), DType::F64)));
    let mask = || bools(&[true; 4]).reshape([2, 2]);
    let kl = Discrepancy::ForwardKl;
    let heads = |policy: [usize; 3], words, reference: [usize; 3]| {
        let ours = (zeros(policy), head(4, policy[2]));
        let theirs = (zeros(reference), head(words, reference[2]));
        TokenDiscrepancy::from_outputs(kl, ours, theirs, mask())
    };
    let found = heads([2, 2, 3], 4, [2, 2, 5]).unwrap();
    assert_eq!(to_vec(found.values()), [0.0; 2]);
    let error = heads([2, 2, 3], 5, [2, 2, 3]).unwrap_err();
    let message = "`reference`: expected the policy's vocabulary of 4, found 5";
    assert_eq!(error.to_string(), message);
    let error = heads([2, 2, 3], 4, [2, 3, 3]).unwrap_err();
    assert_eq!(error.name(), "reference");

    let logits = |kind, policy, reference| {
        TokenDiscrepancy::from_outputs(kind, zeros(policy), zeros(reference), mask())
    };
    let error = logits(kl, [2, 2, 4], [2, 2, 5]).unwrap_err();
    assert_eq!(error.to_string(), message);
    assert_eq!(
        logits(kl, [2, 2, 4], [1, 2, 4]).unwrap_err().name(),
        "reference"
    );
    assert_eq!(
        logits(kl, [2, 3, 4], [2, 3, 4]).unwrap_err().name(),
        "completion_mask"
    );
    assert_eq!(
        logits(kl, [2, 1, 4], [2, 1, 4]).unwrap_err().name(),
        "logits"
    );
    for beta in [0.0, 1.0, -0.1, f64::NAN, f64::INFINITY] {
        let error = logits(Discrepancy::JensenShannon(beta), [2, 2, 4], [2, 2, 4]).unwrap_err();
        assert_eq!(error.name(), "beta");
    }
}

/// TRL's GKD loss and Liger's JSD in f64, TRL's chunked divergence in f32:
/// `scripts/discrepancy_goldens.py` wrote the numbers.
#[test]
fn the_divergences_of_other_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/two_models.json");
    let file: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let list = |values: &serde_json::Value| -> Vec<f64> {
        let values = values.as_array().unwrap().iter();
        values.map(|x| x.as_f64().unwrap()).collect()
    };
    let models = file["models"].as_array().unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 45);
    for case in cases {
        let model = models.iter().find(|model| model["name"] == case["model"]);
        let model = model.unwrap();
        let shaping = |softcap: Option<f64>, scale: f64| Shaping {
            scale,
            softcap,
            temperature: model["temperature"].as_f64().unwrap(),
        };
        let [ours, theirs] = ["policy", "reference"].map(|side| {
            let parts: Vec<Vec<f64>> = model[side].as_array().unwrap().iter().map(list).collect();
            let (vocab, width) = (parts[2].len(), parts[1].len() / parts[2].len());
            let rows = parts[0].len() / width;
            // One more position, which predicts nothing.
            let hidden = [parts[0].clone(), vec![0.0; width]].concat();
            let mut problem = Problem::new([1, rows + 1, vocab, width], 0);
            problem.hidden = hidden;
            problem.weight.clone_from(&parts[1]);
            problem.bias = Some(parts[2].clone());
            problem.mask.fill(true);
            problem
        });
        let softcap = model["softcap"].as_f64();
        let models = TwoModels {
            policy: ours.shaped(shaping(softcap, model["scale"].as_f64().unwrap())),
            reference: theirs.shaped(shaping(None, 1.0)),
        };
        let kind = match case["beta"].as_f64().unwrap() {
            0.0 => Discrepancy::ForwardKl,
            1.0 => Discrepancy::ReverseKl,
            beta => Discrepancy::JensenShannon(beta),
        };
        let peer = case["peer"].as_str().unwrap();
        let allowed = if peer == "TRL, chunked" { 5e-6 } else { 1e-12 };
        let what = format!("{peer}, {}, {kind:?}", case["model"]);
        let weights = |i: usize| 1.0 + i as f64 / 7.0;
        for from_logits in [false, true] {
            let how = How {
                from_logits,
                ..TRAINABLE
            };
            let ours = models.run_weighted(kind, how, weights);
            assert_close(&ours.values, &list(&case["values"]), allowed, &what);
            let gradients = case["gradients"].as_array().unwrap();
            for (ours, theirs) in ours.gradients.iter().zip_equal(gradients) {
                let theirs = list(theirs);
                // That of the position that predicts nothing.
                let rest = vec![0.0; ours.len() - theirs.len()];
                assert_close(ours, &[theirs, rest].concat(), allowed, &what);
            }
        }
    }
}

/// A teacher that sees a hint before the prompt: its states stand where ours predict the same word.
#[test]
fn completions_after_other_prompts() {
    let batch = |rows: Vec<Sequence>| TokenBatch::new(rows, Padding::new(0), &device()).unwrap();
    let ours = batch(vec![
        Sequence::new(&[1], &[2, 3]),
        Sequence::new(&[4, 5, 6], &[7]),
        Sequence::new(&[], &[2, 8, 1]),
    ]);
    let rows = || {
        vec![
            Sequence::new(&[9, 9, 1], &[2, 3]),
            Sequence::new(&[5], &[7]),
            Sequence::new(&[9], &[2, 8, 1]),
        ]
    };
    let theirs = batch(rows());
    // A state is its own token: what it predicts is not, so the policy is told apart.
    let states = |batch: &TokenBatch| batch.ids.clone().float().cast(DType::F64).unsqueeze_dim(2);
    let aligned = ours.aligned(&theirs, states(&theirs)).unwrap();
    assert_eq!(aligned.dims(), [3, 4, 1]);
    let aligned = to_vec(aligned);
    // Where a token of a completion is predicted, the state of the token before it.
    assert_eq!(aligned[..2], [1.0, 2.0]);
    assert_eq!(aligned[4 + 2], 5.0);
    assert_eq!(aligned[8..8 + 2], [2.0, 8.0]);

    let error = |rows: Vec<Sequence>| {
        let theirs = batch(rows);
        let values = states(&theirs);
        ours.aligned(&theirs, values).unwrap_err().to_string()
    };
    assert_eq!(
        error(rows()[..2].to_vec()),
        "`other`: expected 3 sequences, found 2"
    );
    let mut other = rows();
    other[1] = Sequence::new(&[5], &[8]);
    assert_eq!(
        error(other),
        "`other`: expected the same completions, found another one in row 1"
    );
    let mut none = rows();
    none[0] = Sequence::new(&[], &[2, 3]);
    assert_eq!(
        error(none),
        "`other`: expected prompts, found none in row 0"
    );
    let wrong = ours.aligned(&theirs, states(&ours));
    assert_eq!(wrong.unwrap_err().name(), "values");
    let nobody = batch(Vec::new());
    let none = nobody.aligned(&nobody, states(&nobody)).unwrap();
    assert_eq!(none.dims(), [0, 2, 1]);
}

/// The minimum is the teacher: gradient descent from another distribution ends there.
#[test]
fn the_minimum_is_the_teacher() {
    let teacher = [1.0, -2.0, 0.5, 0.0];
    for kind in KINDS {
        let mut ours = vec![-1.0, 1.0, 0.0, 0.5];
        // Near the teacher all of them are this multiple of the same square.
        let curvature = match kind {
            Discrepancy::JensenShannon(beta) => beta * (1.0 - beta),
            _ => 1.0,
        };
        for _ in 0..1000 {
            let [(_, gradient), _] = at_one(kind, &ours, &teacher, DType::F64);
            for (x, g) in ours.iter_mut().zip(gradient) {
                *x -= 1.5 / curvature * g;
            }
        }
        let [(value, _), _] = at_one(kind, &ours, &teacher, DType::F64);
        assert!(value < 1e-12, "{kind:?}: {value}");
        assert_close(
            &crate::scalar::softmax(&ours),
            &crate::scalar::softmax(&teacher),
            1e-5,
            "π = π°",
        );
    }
}
