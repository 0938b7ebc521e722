//! Every objective, formula and gradient, against the scalar code, and known values.

use approx::assert_relative_eq;
use burn::tensor::{DType, Tensor};
use burn_preference::{
    Divergence, DpoLossConfig, IpoLossConfig, KlEstimate, KtoLossConfig, LabelNoise, LossOutput,
    NllNormalization, Normalization, Objective, OrpoLossConfig, Pair, PolicyPair, ReferencedPair,
    RrhfLossConfig, SftTerm, WithMargin, WithNll,
};
use proptest::prelude::*;

use crate::scalar::{self, Row};
use crate::support::{
    Labelled, Lists, Pairs, assert_close, bools, error, f64s, ints, leaf, sequence, to_vec,
};

/// The example batch of the design's catalogue.
fn catalogue() -> Pairs {
    Pairs {
        chosen: vec![-0.5, -10.0, -1.0],
        rejected: vec![-0.1, -30.0, -21.0],
        ref_chosen: vec![-0.5, -10.1, -0.1],
        ref_rejected: vec![-0.1, -20.1, -0.1],
        chosen_len: vec![2, 5, 4],
        rejected_len: vec![1, 10, 7],
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn of(objective: impl Objective<ReferencedPair>) -> f64 {
    mean(&catalogue().run(&objective, DType::F64).losses)
}

#[test]
fn values_of_the_catalogue() {
    let dpo = DpoLossConfig::new();
    let noise = |n| dpo.clone().with_label_noise(n).init();
    assert_relative_eq!(of(dpo.init()), 0.377_779, epsilon = 1e-6);
    assert_relative_eq!(
        of(noise(LabelNoise::Conservative(0.1))),
        0.477_779,
        epsilon = 1e-6
    );
    assert_relative_eq!(
        of(noise(LabelNoise::Robust(0.1))),
        0.252_779,
        epsilon = 1e-6
    );
    let js = dpo
        .clone()
        .with_divergence(Divergence::JensenShannon)
        .init();
    assert_relative_eq!(of(js), 0.386_012, epsilon = 1e-6);
    let normalized = dpo.clone().with_normalization(Normalization::Mean).init();
    assert_relative_eq!(of(normalized), 0.633_892, epsilon = 1e-6);

    let ipo = IpoLossConfig::new();
    assert_relative_eq!(of(ipo.init()), 15.3115, epsilon = 1e-4);
    let sum = ipo.with_normalization(Normalization::Sum).init();
    assert_relative_eq!(of(sum), 91.666_667, epsilon = 1e-6);

    let margin = f64s(&[0.5; 3]);
    let odpo = catalogue().run_on(DType::F64, |w, l| {
        let batch = catalogue().referenced(w, l);
        dpo.init().forward(WithMargin::new(batch, margin).unwrap())
    });
    assert_relative_eq!(mean(&odpo.losses), 0.549_856, epsilon = 1e-6);

    let orpo = |weight| {
        let orpo = OrpoLossConfig::new().with_odds_ratio_weight(weight).init();
        mean(&catalogue().run_policy(&orpo, DType::F64).losses)
    };
    assert_relative_eq!(orpo(1.0) - orpo(0.0), 0.537_34, epsilon = 1e-6);

    let rows = catalogue();
    let labelled = Labelled {
        policy: [rows.chosen, rows.rejected].concat(),
        reference: [rows.ref_chosen, rows.ref_rejected].concat(),
        desirable: vec![true, true, true, false, false, false],
        baseline: 0.0,
    };
    let (losses, ..) = labelled.run(&KtoLossConfig::new().init(), DType::F64);
    assert_relative_eq!(mean(&losses), 0.400_162, epsilon = 1e-6);

    let list = Lists {
        candidates: 4,
        sums: vec![-1.2, -0.7, -2.0, -0.9],
        lengths: vec![1; 4],
        scores: vec![0.9, 0.1, 0.5, 0.3],
        present: vec![true; 4],
    };
    let ranking = RrhfLossConfig::new().with_sft_weight(0.0).init();
    assert_relative_eq!(list.run(&ranking, DType::F64).0[0], 3.4, epsilon = 1e-12);
}

fn noises() -> Vec<LabelNoise> {
    vec![
        LabelNoise::Clean,
        LabelNoise::Conservative(0.0),
        LabelNoise::Conservative(0.3),
        LabelNoise::Robust(0.3),
    ]
}

fn divergences() -> Vec<Divergence> {
    vec![
        Divergence::ReverseKl,
        Divergence::ForwardKl,
        Divergence::JensenShannon,
        Divergence::Alpha(0.5),
        Divergence::Alpha(1e-3),
        Divergence::Alpha(2.0),
    ]
}

type Scalar = Box<dyn Fn(Row) -> f64>;

/// Every pair objective of the crate with the scalar code of the same formula: a row each.
fn pair_objectives(beta: f64) -> Vec<(String, Box<dyn Objective<ReferencedPair>>, Scalar)> {
    let mut all: Vec<(String, Box<dyn Objective<ReferencedPair>>, Scalar)> = Vec::new();
    for norm in [Normalization::Sum, Normalization::Mean] {
        for d in divergences() {
            for n in noises() {
                let dpo = DpoLossConfig::new()
                    .with_beta(beta)
                    .with_label_noise(n)
                    .with_divergence(d)
                    .with_normalization(norm)
                    .init();
                let scalar = move |r| scalar::dpo(r, beta, n, d, norm);
                all.push((format!("{dpo:?}"), Box::new(dpo), Box::new(scalar)));
            }
            let ipo = IpoLossConfig::new()
                .with_tau(beta)
                .with_divergence(d)
                .with_normalization(norm)
                .init();
            let scalar = move |r| scalar::ipo(r, beta, d, norm);
            all.push((format!("{ipo:?}"), Box::new(ipo), Box::new(scalar)));
        }
    }
    let sft = SftTerm::new(DpoLossConfig::new().with_beta(beta).init(), 0.7);
    let scalar = move |r: Row| {
        let dpo = scalar::dpo(
            r,
            beta,
            LabelNoise::Clean,
            Divergence::ReverseKl,
            Normalization::Sum,
        );
        dpo - 0.7 * r.w / r.len_w.max(1) as f64
    };
    all.push((format!("{sft:?}"), Box::new(sft), Box::new(scalar)));
    all
}

prop_compose! {
    /// A sequence: log-prob, log-ratio and length.
    fn any_sequence()(len in 0_usize..60, per_token in -3.0..-0.01_f64, ratio in -4.0..4.0_f64)
        -> (f64, f64, usize)
    {
        let sum = per_token * len as f64;
        (sum, sum - ratio, len)
    }
}

prop_compose! {
    pub fn any_pairs()(
        rows in prop::collection::vec((any_sequence(), any_sequence()), 1..7)
    ) -> Pairs {
        let mut pairs = Pairs::default();
        for ((w, ref_w, len_w), (l, ref_l, len_l)) in rows {
            pairs.chosen.push(w);
            pairs.ref_chosen.push(ref_w);
            pairs.chosen_len.push(len_w);
            pairs.rejected.push(l);
            pairs.ref_rejected.push(ref_l);
            pairs.rejected_len.push(len_l);
        }
        pairs
    }
}

pub fn rows(pairs: &Pairs) -> Vec<Row> {
    (0..pairs.len())
        .map(|i| Row {
            w: pairs.chosen[i],
            l: pairs.rejected[i],
            ref_w: pairs.ref_chosen[i],
            ref_l: pairs.ref_rejected[i],
            len_w: pairs.chosen_len[i],
            len_l: pairs.rejected_len[i],
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pairs_match_the_scalar_code(pairs in any_pairs(), beta in 0.02..2.0_f64) {
        for (name, objective, scalar) in pair_objectives(beta) {
            let ours = pairs.run(&*objective, DType::F64);
            for (i, row) in rows(&pairs).into_iter().enumerate() {
                let expected = scalar(row);
                prop_assert!(
                    error(ours.losses[i], expected) < 1e-10,
                    "{name}: loss {} instead of {expected}", ours.losses[i]
                );
                let (w, l) = row.gradient(&scalar);
                let scale = 1.0 + expected.abs();
                prop_assert!(
                    error(ours.grads.chosen[i], w) < 1e-6 * scale
                        && error(ours.grads.rejected[i], l) < 1e-6 * scale,
                    "{name}: gradients {:?} instead of {w}, {l}", ours.grads
                );
            }
        }
    }

    #[test]
    fn orpo_matches_the_scalar_code(pairs in any_pairs(), weight in 0.0..2.0_f64) {
        let orpo = OrpoLossConfig::new().with_odds_ratio_weight(weight).init();
        let ours = pairs.run_policy(&orpo, DType::F64);
        for (i, row) in rows(&pairs).into_iter().enumerate() {
            if row.len_w == 0 || row.len_l == 0 {
                prop_assert!(ours.losses[i].is_finite());
                continue;
            }
            let scalar = |r| scalar::orpo(r, weight);
            prop_assert!(error(ours.losses[i], scalar(row)) < 1e-11);
            let (w, l) = row.gradient(scalar);
            prop_assert!(error(ours.grads.chosen[i], w) < 1e-6, "{} {w}", ours.grads.chosen[i]);
            prop_assert!(error(ours.grads.rejected[i], l) < 1e-6);
        }
    }

    #[test]
    fn kto_matches_the_scalar_code(
        rows in prop::collection::vec((-50.0..0.0_f64, -9.0..9.0_f64, any::<bool>()), 1..9),
        z0 in 0.0..5.0_f64,
        beta in 0.02..2.0_f64,
        weights in (0.0..2.0_f64, 0.0..2.0_f64),
    ) {
        let batch = Labelled {
            policy: rows.iter().map(|r| r.0).collect(),
            reference: rows.iter().map(|r| r.0 - r.1).collect(),
            desirable: rows.iter().map(|r| r.2).collect(),
            baseline: z0,
        };
        let kto = KtoLossConfig::new()
            .with_beta(beta)
            .with_desirable_weight(weights.0)
            .with_undesirable_weight(weights.1)
            .init();
        let (losses, rewards, grads) = batch.run(&kto, DType::F64);
        for (i, &(policy, _, desirable)) in rows.iter().enumerate() {
            let rho = policy - batch.reference[i];
            let scalar = |rho| scalar::kto(rho, z0, desirable, beta, weights);
            prop_assert!(error(losses[i], scalar(rho)) < 1e-12);
            prop_assert!(error(rewards[i], beta * rho) < 1e-12);
            let slope = scalar::slope(|d| scalar(rho + d));
            prop_assert!(error(grads[i], slope) < 1e-8);
        }
    }

    #[test]
    fn rrhf_matches_the_scalar_code(
        lists in prop::collection::vec(
            prop::collection::vec((-40.0..-0.1_f64, 0_usize..9, 0..4_i32, any::<bool>()), 5),
            1..4,
        ),
        kappa in 0.0..2.0_f64,
        weight in 0.0..2.0_f64,
    ) {
        let flat = lists.concat();
        let batch = Lists {
            candidates: 5,
            sums: flat.iter().map(|c| c.0).collect(),
            lengths: flat.iter().map(|c| c.1).collect(),
            scores: flat.iter().map(|c| f64::from(c.2)).collect(),
            present: flat.iter().map(|c| c.3).collect(),
        };
        let rrhf = RrhfLossConfig::new()
            .with_length_penalty(kappa)
            .with_sft_weight(weight)
            .init();
        let (losses, _, grads) = batch.run(&rrhf, DType::F64);
        for b in 0..lists.len() {
            let at = 5 * b..5 * b + 5;
            let scalar = |sums: &[f64]| scalar::rrhf(
                sums,
                &batch.lengths[at.clone()],
                &batch.scores[at.clone()],
                &batch.present[at.clone()],
                kappa,
                weight,
            );
            let sums = batch.sums[at.clone()].to_vec();
            prop_assert!(error(losses[b], scalar(&sums)) < 1e-12, "{} {}", losses[b], scalar(&sums));
            for i in 0..5 {
                let moved = |d: f64| {
                    let mut sums = sums.clone();
                    sums[i] += d;
                    scalar(&sums)
                };
                let (up, down) = (moved(1e-6), moved(-1e-6));
                let curvature = (up + down - 2.0 * scalar(&sums)).abs();
                if curvature > 1e-9 {
                    continue; // at a kink the difference quotient means nothing
                }
                prop_assert!(error(grads[5 * b + i], (up - down) / 2e-6) < 1e-6);
            }
        }
    }
}

#[test]
fn sft_and_nll_over_tokens() {
    let pairs = catalogue();
    let dpo = DpoLossConfig::new().init();
    let token = SftTerm::new(dpo.clone(), 1.0).with_normalization(NllNormalization::Token);
    let nll = of(token) - of(dpo);
    // Σ −ℓ_w / Σ lengths = 11.5 / 11
    assert_relative_eq!(nll, 11.5 / 11.0, epsilon = 1e-12);

    let orpo = OrpoLossConfig::new().with_odds_ratio_weight(0.0).init();
    let whole = sequence(f64s(&[-3.0, -12.0, -8.0]), &[6, 6, 8]);
    let output = pairs.run_on(DType::F64, |w, l| {
        orpo.forward(WithNll::new(pairs.policy(w, l), whole).unwrap())
    });
    assert_close(
        &output.losses,
        &[0.5, 2.0, 1.0],
        1e-15,
        "NLL of prompt and completion",
    );
}

#[test]
fn the_sft_term_reaches_the_chosen_completion_only() {
    let sft = SftTerm::new(
        OrpoLossConfig::new().with_odds_ratio_weight(0.0).init(),
        2.0,
    );
    let grads = catalogue().run_policy(&sft, DType::F64).grads;
    assert_close(
        &grads.chosen,
        &[-1.5, -0.6, -0.75],
        1e-15,
        "−(1 + 2)/length",
    );
    assert_close(&grads.rejected, &[0.0; 3], 0.0, "rejected");
    let negative = SftTerm::try_new(DpoLossConfig::new().init(), -1.0).unwrap_err();
    assert_eq!(
        negative.to_string(),
        "`sft_weight` is -1, but must be a finite number ≥ 0"
    );
}

#[test]
fn kl_is_averaged_before_it_is_clamped() {
    let estimate = |policy: &[f64]| {
        let lengths = vec![3; policy.len()];
        let reference = sequence(f64s(&vec![-10.0; policy.len()]), &lengths);
        let log_probs = sequence(leaf(policy), &lengths)
            .relative_to(reference)
            .unwrap();
        KlEstimate::from_mismatched(&log_probs)
    };
    let (up, down) = (estimate(&[-4.0]), estimate(&[-13.0, -12.0]));
    assert_eq!(to_vec(up.baseline()), [6.0]);
    assert_eq!(to_vec(down.baseline()), [0.0]);
    // (6 − 3 − 2)/3, not (6 + 0)/2
    let both = up.merge(down).baseline();
    assert!(!both.is_autodiff());
    assert_relative_eq!(to_vec(both)[0], 1.0 / 3.0, epsilon = 1e-15);
}

#[test]
fn the_class_ratio_error_carries_the_ratio() {
    let error = KtoLossConfig::new().check_class_ratio(1, 4).unwrap_err();
    assert_relative_eq!(error.value(), 0.25);
    assert_eq!(error.allowed(), "in [1, 4/3]");
    assert_eq!(KtoLossConfig::new().check_class_ratio(4, 3), Ok(4.0 / 3.0));
    assert!(KtoLossConfig::new().check_class_ratio(1, 0).is_err());
    assert!(KtoLossConfig::new().check_class_ratio(0, 0).is_err());
}

#[test]
fn objectives_work_behind_pointers() {
    let boxed: Box<dyn Objective<ReferencedPair> + Send + Sync> =
        Box::new(DpoLossConfig::new().init());
    let sft = SftTerm::new(boxed, 0.0);
    assert_relative_eq!(of(&sft), 0.377_779, epsilon = 1e-6);
    assert_relative_eq!(of(std::sync::Arc::new(sft)), 0.377_779, epsilon = 1e-6);
}

#[test]
fn absent_candidates_are_never_read() {
    let list = |junk: f64, present: bool| Lists {
        candidates: 3,
        sums: vec![-1.0, -6.0, junk],
        lengths: vec![2, 3, 4],
        scores: vec![0.1, 0.7, junk],
        present: vec![true, true, present],
    };
    let rrhf = RrhfLossConfig::new().init();
    for junk in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30] {
        let (losses, _, grads) = list(junk, false).run(&rrhf, DType::F64);
        assert_close(&losses, &[-0.5 + 2.0 + 2.0], 1e-12, "loss");
        assert_close(
            &grads,
            &[0.5, -1.0 / 3.0 - 1.0 / 3.0, 0.0],
            1e-12,
            "gradient",
        );
    }
    let empty = Lists {
        present: vec![false; 3],
        ..list(f64::NAN, false)
    };
    let (losses, _, grads) = empty.run(&rrhf, DType::F64);
    assert_eq!((losses, grads), (vec![0.0], vec![0.0; 3]));
    // It does matter once it is there.
    assert!(list(-0.5, true).run(&rrhf, DType::F64).0[0] > 4.0);
}

#[test]
fn no_gradient_reaches_reference_weights_or_baseline() {
    let pairs = catalogue();
    let reference = pairs.policy(leaf(&pairs.ref_chosen), leaf(&pairs.ref_rejected));
    let inputs = [reference.chosen.sum(), reference.rejected.sum()];
    let policy = pairs.policy(leaf(&pairs.chosen), leaf(&pairs.rejected));
    let batch = policy.relative_to(reference).unwrap();
    let weights = leaf(&[1.0, 2.0, 3.0]);
    let margin = leaf(&[0.5; 3]);
    let batch = WithMargin::new(batch, margin.clone()).unwrap();
    let output = DpoLossConfig::new().init().forward(batch);
    assert!(!output.rewards().chosen.is_autodiff());
    let grads = output.weighted_mean(weights.clone()).backward();
    for input in inputs.iter().chain([&weights, &margin]) {
        assert!(input.grad(&grads).is_none());
    }
    let labelled = sequence(leaf(&[-1.0]), &[1]);
    let z0 = leaf(&[1.0]);
    let relative = labelled.relative_to(sequence(f64s(&[-2.0]), &[1])).unwrap();
    let batch = burn_preference::Unpaired::new(relative, bools(&[true])).unwrap();
    let batch = burn_preference::WithBaseline::new(batch, z0.clone()).unwrap();
    let grads = KtoLossConfig::new().init().forward(batch).mean().backward();
    assert!(z0.grad(&grads).is_none());
}

#[test]
fn reductions_are_explicit() {
    let output = DpoLossConfig::new()
        .init()
        .forward(catalogue().referenced(f64s(&catalogue().chosen), f64s(&catalogue().rejected)));
    let losses = to_vec(output.losses());
    let only = |t: Tensor<1>| to_vec(t)[0];
    assert_relative_eq!(
        only(output.sum()),
        losses.iter().sum::<f64>(),
        epsilon = 1e-15
    );
    assert_relative_eq!(only(output.mean()), mean(&losses), epsilon = 1e-15);
    assert_relative_eq!(
        only(output.normalized_by(12.0)),
        mean(&losses) / 4.0,
        epsilon = 1e-15
    );
    let weighted = only(output.weighted_mean(f64s(&[0.0, 3.0, 1.0])));
    assert_relative_eq!(
        weighted,
        (3.0 * losses[1] + losses[2]) / 4.0,
        epsilon = 1e-15
    );
    assert_eq!(only(output.weighted_mean(f64s(&[0.0; 3]))), 0.0);
}

#[test]
fn no_gradient_is_rounded_to_f32() {
    // Burn 0.22.1 computes the gradient of `tensor / scalar` in f32: no objective may use it.
    let pairs = catalogue();
    let dpo = DpoLossConfig::new()
        .with_divergence(Divergence::Alpha(0.3))
        .init();
    let grad = |reduce: &dyn Fn(&LossOutput<Pair<Tensor<1>>>) -> Tensor<1>| {
        let leaf = leaf(&pairs.chosen);
        let output = dpo.forward(pairs.referenced(leaf.clone(), f64s(&pairs.rejected)));
        to_vec(leaf.grad(&reduce(&output).backward()).unwrap())
    };
    let (mean, seventh) = (
        grad(&LossOutput::mean),
        grad(&|output| output.normalized_by(7.0)),
    );
    for (i, row) in rows(&pairs).into_iter().enumerate() {
        let g = |rho: f64| -(-0.3 * rho).exp_m1() / 0.3;
        let (w, l) = (row.w - row.ref_w, row.l - row.ref_l);
        let expected = -0.1 * scalar::sigmoid(-0.1 * (g(w) - g(l))) * (-0.3 * w).exp();
        assert_relative_eq!(mean[i], expected / 3.0, max_relative = 1e-13);
        assert_relative_eq!(seventh[i], expected / 7.0, max_relative = 1e-13);
    }
}

#[test]
#[should_panic(expected = "denominator: a finite number > 0, not 0")]
fn a_zero_denominator_panics() {
    let pairs = catalogue();
    let batch = pairs.referenced(f64s(&pairs.chosen), f64s(&pairs.rejected));
    let _ = DpoLossConfig::new()
        .init()
        .forward(batch)
        .normalized_by(0.0);
}

#[test]
fn lengths_are_part_of_the_policy() {
    // The same sums with other lengths: a length-normalised loss changes, a summed one does not.
    let mut longer = catalogue();
    longer.chosen_len = vec![20; 3];
    let sum = DpoLossConfig::new().init();
    let mean = DpoLossConfig::new()
        .with_normalization(Normalization::Mean)
        .init();
    let of = |p: &Pairs, o: &dyn Objective<ReferencedPair>| p.run(o, DType::F64).losses;
    assert_eq!(of(&catalogue(), &sum), of(&longer, &sum));
    assert_ne!(of(&catalogue(), &mean), of(&longer, &mean));
    let _: PolicyPair = longer.policy(f64s(&longer.chosen), f64s(&longer.rejected));
    assert_eq!(to_vec(sequence(f64s(&[0.0]), &[7]).lengths()), [7.0]);
    assert_eq!(ints(&[7]).dims(), [1]);
}
