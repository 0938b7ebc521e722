//! Laws that hold for whole families of objectives, on generated batches.

use approx::assert_relative_eq;
use burn::tensor::DType;
use burn_preference::{
    Divergence, DpoLossConfig, IpoLossConfig, KtoLossConfig, LabelNoise, Normalization, Objective,
    OrpoLossConfig, PolicyPair, ReferencedPair, RrhfLossConfig, SftTerm,
};
use proptest::prelude::*;

use crate::objectives::any_pairs;
use crate::support::{Labelled, Lists, Pairs, assert_close, error};

/// Which laws an objective keeps, beyond those that all keep.
#[derive(Clone, Copy)]
struct Laws {
    /// The same constant on both log-probs of a pair changes nothing: only Δ counts.
    prompt_shift: bool,
    /// A larger margin never costs more.
    monotone: bool,
    /// The loss where policy = reference.
    at_reference: f64,
}

type Row = (&'static str, Box<dyn Objective<ReferencedPair>>, Laws);

/// A new objective against a reference is a row here.
fn referenced() -> Vec<Row> {
    let ln2 = std::f64::consts::LN_2;
    let difference = |monotone, at_reference| Laws {
        prompt_shift: true,
        monotone,
        at_reference,
    };
    let dpo = DpoLossConfig::new();
    let ipo = IpoLossConfig::new();
    let sum = Normalization::Sum;
    let noise = |n| Box::new(dpo.clone().with_label_noise(n).init());
    let divergence = |d| Box::new(dpo.clone().with_divergence(d).init());
    let curved = Laws {
        prompt_shift: false,
        ..difference(true, ln2)
    };
    vec![
        ("dpo", Box::new(dpo.init()), difference(true, ln2)),
        (
            "cdpo",
            noise(LabelNoise::Conservative(0.2)),
            difference(false, ln2),
        ),
        (
            "robust dpo",
            noise(LabelNoise::Robust(0.2)),
            difference(false, ln2),
        ),
        ("forward kl dpo", divergence(Divergence::ForwardKl), curved),
        ("js dpo", divergence(Divergence::JensenShannon), curved),
        ("alpha dpo", divergence(Divergence::Alpha(0.4)), curved),
        (
            "dpo per token",
            Box::new(dpo.clone().with_normalization(Normalization::Mean).init()),
            curved,
        ),
        (
            "ipo",
            Box::new(ipo.init()),
            Laws {
                monotone: false,
                at_reference: 25.0,
                ..curved
            },
        ),
        (
            "ipo sum",
            Box::new(ipo.with_normalization(sum).init()),
            difference(false, 25.0),
        ),
    ]
}

fn losses(objective: &dyn Objective<ReferencedPair>, pairs: &Pairs) -> Vec<f64> {
    pairs.run(objective, DType::F64).losses
}

fn reversed<T: Clone>(values: &[T]) -> Vec<T> {
    values.iter().rev().cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn laws_of_referenced_pairs(pairs in any_pairs(), shift in -5.0..5.0_f64) {
        for (name, objective, laws) in referenced() {
            let objective = &*objective;
            let plain = losses(objective, &pairs);

            let permuted = losses(objective, &pairs.map(reversed, reversed));
            prop_assert_eq!(&reversed(&permuted), &plain, "{}: order of the examples", name);

            let mut moved = pairs.clone();
            for side in [&mut moved.chosen, &mut moved.ref_chosen] {
                *side = side.iter().map(|x| x + shift).collect();
            }
            for (a, b) in losses(objective, &moved).iter().zip(&plain) {
                prop_assert!(error(*a, *b) < 1e-11, "{name}: policy and reference shifted together");
            }

            if laws.prompt_shift {
                let mut moved = pairs.clone();
                for side in [&mut moved.chosen, &mut moved.rejected] {
                    *side = side.iter().map(|x| x + shift).collect();
                }
                for (a, b) in losses(objective, &moved).iter().zip(&plain) {
                    prop_assert!(error(*a, *b) < 1e-11, "{name}: shift of the prompt");
                }
            }

            if laws.monotone {
                let mut better = pairs.clone();
                better.chosen.iter_mut().for_each(|x| *x += shift.abs());
                for (a, b) in losses(objective, &better).iter().zip(&plain) {
                    prop_assert!(*a <= b + 1e-12, "{name}: a larger margin costs more");
                }
            }

            let mut equal = pairs.clone();
            equal.ref_chosen = equal.chosen.clone();
            equal.ref_rejected = equal.rejected.clone();
            let result = equal.run(objective, DType::F64);
            for loss in &result.losses {
                prop_assert!(error(*loss, laws.at_reference) < 1e-12, "{name}: at the reference");
            }
            prop_assert!(
                result.rewards.chosen.iter().chain(&result.rewards.rejected).all(|&r| r == 0.0),
                "{name}: rewards at the reference"
            );
        }
    }

    #[test]
    fn limits_and_comparisons(pairs in any_pairs(), beta in 0.02..1.0_f64) {
        let dpo = DpoLossConfig::new().with_beta(beta);
        let of = |config: DpoLossConfig| losses(&config.init(), &pairs);
        let clean = of(dpo.clone());
        let near = |other: Vec<f64>, tolerance: f64| {
            clean.iter().zip(&other).all(|(a, b)| error(*b, *a) < tolerance)
        };

        // Noise → 0, α → 0: DPO. α = 1: forward KL.
        prop_assert!(near(of(dpo.clone().with_label_noise(LabelNoise::Conservative(1e-13))), 1e-11));
        prop_assert!(near(of(dpo.clone().with_label_noise(LabelNoise::Robust(1e-13))), 1e-11));
        prop_assert!(near(of(dpo.clone().with_divergence(Divergence::Alpha(1e-12))), 1e-10));
        let alpha = of(dpo.clone().with_divergence(Divergence::Alpha(1.0)));
        prop_assert_eq!(alpha, of(dpo.clone().with_divergence(Divergence::ForwardKl)));

        // Flipping labels at rate ε and correcting for it is DPO in expectation.
        let rate = 0.2;
        let flipped = Pairs {
            chosen: pairs.rejected.clone(),
            rejected: pairs.chosen.clone(),
            ref_chosen: pairs.ref_rejected.clone(),
            ref_rejected: pairs.ref_chosen.clone(),
            chosen_len: pairs.rejected_len.clone(),
            rejected_len: pairs.chosen_len.clone(),
        };
        let robust = dpo.clone().with_label_noise(LabelNoise::Robust(rate)).init();
        let (kept, flipped) = (losses(&robust, &pairs), losses(&robust, &flipped));
        let expected: Vec<f64> = kept
            .iter()
            .zip(&flipped)
            .map(|(k, f)| (1.0 - rate) * k + rate * f)
            .collect();
        prop_assert!(near(expected, 1e-11));

        // (1 − h)⁺ ≤ … : the logistic loss lies between the hinge at 0 and the same plus ln 2,
        // and cDPO between DPO and DPO of the flipped label.
        let result = pairs.run(&dpo.init(), DType::F64);
        let conservative = of(dpo.clone().with_label_noise(LabelNoise::Conservative(0.3)));
        for i in 0..pairs.len() {
            let h = result.rewards.chosen[i] - result.rewards.rejected[i];
            let hinge = (-h).max(0.0);
            prop_assert!(hinge <= clean[i] && clean[i] <= hinge + std::f64::consts::LN_2 + 1e-12);
            let flipped = clean[i] + h;
            prop_assert!(conservative[i] >= clean[i].min(flipped) - 1e-12);
            prop_assert!(conservative[i] <= clean[i].max(flipped) + 1e-12);
        }
    }

    #[test]
    fn kto_is_bounded_and_pulls_the_right_way(
        ratios in prop::collection::vec(-200.0..200.0_f64, 1..8),
        z0 in 0.0..20.0_f64,
    ) {
        for desirable in [true, false] {
            let batch = Labelled {
                policy: ratios.clone(),
                reference: vec![0.0; ratios.len()],
                desirable: vec![desirable; ratios.len()],
                baseline: z0,
            };
            let (losses, _, grads) = batch.run(&KtoLossConfig::new().init(), DType::F64);
            for (loss, grad) in losses.iter().zip(&grads) {
                prop_assert!((0.0..=1.0).contains(loss));
                let pull = if desirable { -grad } else { *grad };
                prop_assert!(pull >= 0.0);
            }
        }
    }

    #[test]
    fn rrhf_is_symmetric_in_its_candidates(
        completions in prop::collection::vec((-40.0..-0.1_f64, 1_usize..9), 2..7),
    ) {
        // Scores without ties: the first of several best would move with the order.
        let candidates: Vec<_> = (0..).map(f64::from).zip(completions).collect();
        let list = |c: &[(f64, (f64, usize))]| Lists {
            candidates: c.len(),
            scores: c.iter().map(|c| c.0).collect(),
            sums: c.iter().map(|c| c.1.0).collect(),
            lengths: c.iter().map(|c| c.1.1).collect(),
            present: vec![true; c.len()],
        };
        let rrhf = RrhfLossConfig::new().init();
        let one = list(&candidates).run(&rrhf, DType::F64).0;
        let other = list(&reversed(&candidates)).run(&rrhf, DType::F64).0;
        prop_assert!(error(one[0], other[0]) < 1e-12);
    }

    #[test]
    fn rrhf_ignores_lists_in_the_right_order(mut means in prop::collection::vec(-9.0..-0.1_f64, 2..7)) {
        means.sort_by(f64::total_cmp);
        let list = Lists {
            candidates: means.len(),
            lengths: vec![1; means.len()],
            scores: (0..means.len()).map(|i| i as f64).collect(),
            present: vec![true; means.len()],
            sums: means,
        };
        let ranking = RrhfLossConfig::new().with_sft_weight(0.0).init();
        prop_assert_eq!(list.run(&ranking, DType::F64).0, vec![0.0]);
    }
}

#[test]
fn the_gradient_at_the_reference_is_half_beta() {
    let one = Pairs {
        chosen: vec![-3.0],
        rejected: vec![-4.0],
        ref_chosen: vec![-3.0],
        ref_rejected: vec![-4.0],
        chosen_len: vec![2],
        rejected_len: vec![4],
    };
    for dtype in [DType::F32, DType::F64] {
        let grads = one
            .run(&DpoLossConfig::new().with_beta(0.1).init(), dtype)
            .grads;
        assert_close(&grads.chosen, &[-0.05], 1e-8, "−β/2");
        assert_close(&grads.rejected, &[0.05], 1e-8, "β/2");
    }
    let ipo = one.run(&IpoLossConfig::new().with_tau(0.25).init(), DType::F64);
    assert_close(&ipo.losses, &[4.0], 1e-15, "1/(4τ²)");
    assert_close(&ipo.grads.chosen, &[-2.0], 1e-15, "−1/(τ·length)");
}

/// Log-probs at the ends of what a batch can hold.
fn extremes() -> Pairs {
    let ends = [-1e5, -1e4, -100.0, -1.0, -1e-8, 0.0];
    let mut pairs = Pairs::default();
    for w in ends {
        for l in ends {
            for (ref_w, ref_l) in [(w, l), (l, w), (-1e4, 0.0), (0.0, -1e4)] {
                pairs.chosen.push(w);
                pairs.rejected.push(l);
                pairs.ref_chosen.push(ref_w);
                pairs.ref_rejected.push(ref_l);
                pairs.chosen_len.push(1);
                pairs.rejected_len.push(3);
            }
        }
    }
    pairs
}

#[test]
fn extremes_stay_finite() {
    let finite = |name: &str, values: &[f64]| {
        assert!(values.iter().all(|v| v.is_finite()), "{name}: {values:?}");
    };
    for dtype in [DType::F32, DType::F64] {
        for (name, objective, _) in referenced() {
            for with_sft in [false, true] {
                let objective = SftTerm::new(&objective, if with_sft { 1.0 } else { 0.0 });
                let result = extremes().run(&objective, dtype);
                finite(name, &result.losses);
                finite(name, &result.grads.chosen);
                finite(name, &result.grads.rejected);
            }
        }
        let orpo: Box<dyn Objective<PolicyPair>> = Box::new(OrpoLossConfig::new().init());
        let result = extremes().run_policy(&orpo, dtype);
        finite("orpo", &result.losses);
        finite("orpo", &result.grads.chosen);
        finite("orpo", &result.grads.rejected);

        let pairs = extremes();
        let labelled = Labelled {
            desirable: (0..pairs.len()).map(|i| i % 3 == 0).collect(),
            policy: pairs.chosen,
            reference: pairs.ref_rejected,
            baseline: 1e4,
        };
        let (losses, rewards, grads) = labelled.run(&KtoLossConfig::new().init(), dtype);
        finite("kto", &[losses, rewards, grads].concat());

        let list = Lists {
            candidates: 6,
            sums: vec![-1e5, -1e4, -100.0, -1.0, -1e-8, 0.0],
            lengths: vec![0, 1, 1, 5, 9, 0],
            scores: vec![1e4, -1e4, 0.0, 0.0, 1e-4, 1e30],
            present: vec![true; 6],
        };
        let (losses, rewards, grads) = list.run(&RrhfLossConfig::new().init(), dtype);
        finite("rrhf", &[losses, rewards, grads].concat());
    }
}

#[test]
fn margins_of_ten_thousand_have_linear_and_vanishing_tails() {
    let pair = |margin: f64| Pairs {
        chosen: vec![margin],
        rejected: vec![0.0],
        ref_chosen: vec![0.0],
        ref_rejected: vec![0.0],
        chosen_len: vec![1],
        rejected_len: vec![1],
    };
    let dpo = DpoLossConfig::new().with_beta(1.0).init();
    for dtype in [DType::F32, DType::F64] {
        let lost = pair(-1e4).run(&dpo, dtype);
        assert_eq!((lost.losses[0], lost.grads.chosen[0]), (1e4, -1.0));
        let won = pair(1e4).run(&dpo, dtype);
        assert_eq!((won.losses[0], won.grads.chosen[0]), (0.0, 0.0));
    }
}

#[test]
fn empty_batches_and_completions() {
    let nothing = Pairs::default();
    for (name, objective, _) in referenced() {
        let batch = nothing.referenced(crate::support::f64s(&[]), crate::support::f64s(&[]));
        let output = objective.forward(batch);
        assert_eq!(crate::support::to_vec(output.mean()), [0.0], "{name}");
    }
    // Both completions empty: the log-ratio is 0, the gradient finite.
    let empty = Pairs {
        chosen: vec![0.0],
        rejected: vec![0.0],
        ref_chosen: vec![0.0],
        ref_rejected: vec![0.0],
        chosen_len: vec![0],
        rejected_len: vec![0],
    };
    for (name, objective, laws) in referenced() {
        let loss = empty.run(&*objective, DType::F64).losses[0];
        assert_relative_eq!(loss, laws.at_reference, epsilon = 1e-12);
        assert!(loss.is_finite(), "{name}");
    }
    let orpo = empty.run_policy(&OrpoLossConfig::new().init(), DType::F64);
    assert_relative_eq!(
        orpo.losses[0],
        0.1 * std::f64::consts::LN_2,
        epsilon = 1e-12
    );
    assert_eq!(orpo.grads.rejected, [0.0]);
}
