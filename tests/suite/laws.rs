//! Laws that hold for whole families of objectives, on generated batches.

use approx::assert_relative_eq;
use burn::tensor::{DType, Tensor};
use burn_preference::config::ObjectiveConfig;
use burn_preference::needs::{Examples, Needs, Values};
use burn_preference::{
    AlphaPoLossConfig, ApoZeroLossConfig, AstarPoLossConfig, BcoLossConfig, BetaDpoLossConfig,
    BradleyTerryLossConfig, BradleyTerryTiesLossConfig, DavidsonLossConfig, Divergence,
    DpoLossConfig, DpoShiftLossConfig, DpopLossConfig, DroLossConfig, HdpoLossConfig,
    IpoLossConfig, KtoLossConfig, LabelNoise, LossOutput, NpoLossConfig, Objective, OrpoLossConfig,
    Pair, PlackettLuceLossConfig, QrpoLossConfig, Ranked, RaoKupperLossConfig, RdpoLossConfig,
    ReferencedPair, RelativeLogProbs, RewardPair, RewardRankingLossConfig, RrhfLossConfig, Scored,
    SdpoLossConfig, SequenceLogProbs, SimnpoLossConfig, SimpoLossConfig, TdpoLossConfig, TieModel,
    Unpaired, WithMargin, WithMeanMargin, WithPreference, WithSequenceKl, WithShift, WithTies,
    WithValue,
};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use crate::objectives::any_pairs;
use crate::subjects::{self, PairSubject, rows};
use crate::support::{
    Candidate, Lists, PairResult, Pairs, UnpairedCompletions, ZipEqual, assert_close, bools, cases,
    error, f64s, floats, sequence, to_vec,
};

/// The reward scale at which the laws are checked.
const BETA: f64 = 0.1;

fn run(subject: &PairSubject, pairs: &Pairs, dtype: DType) -> PairResult {
    pairs.run_on(dtype, |w, l| (subject.forward)(pairs.referenced(w, l)))
}

fn losses(objective: &dyn Objective<ReferencedPair>, pairs: &Pairs) -> Vec<f64> {
    pairs.run(objective, DType::F64).losses
}

prop_compose! {
    /// A list with many ties, of scores and of rewards, and another order of its candidates.
    fn shuffled_list()(
        candidates in prop::collection::vec(
            (
                select(vec![-1.0, -2.0, -2.5, -6.0]),
                select(vec![-1.0, -2.0, -3.5]),
                0..4_usize,
                select(vec![0.0, 0.5, 1.0]),
                prop::bool::weighted(0.8),
            ),
            1..8,
        ),
    )(
        order in Just((0..candidates.len()).collect::<Vec<_>>()).prop_shuffle(),
        candidates in Just(candidates),
    ) -> (Vec<Candidate>, Vec<usize>) {
        (candidates, order)
    }
}

/// Every objective that takes lists, with its defaults.
fn of_lists() -> Vec<(ObjectiveConfig, Needs)> {
    // Made of objectives over pairs.
    let nested = ["mixture", "with_sft"];
    let names = ObjectiveConfig::NAMES.iter();
    let names = names.filter(|name| !nested.contains(name));
    let configs = names.map(|name| -> ObjectiveConfig {
        serde_json::from_value(json!({ "loss": name })).unwrap()
    });
    let taken = configs.flat_map(|config| {
        let needs = config.takes().into_iter();
        needs.map(move |needs| (config.clone(), needs))
    });
    let lists: Vec<_> = taken
        .filter(|(_, needs)| needs.examples == Examples::Ranked)
        .collect();
    assert!(lists.len() >= 9, "{lists:?}");
    lists
}

/// Losses, rewards and d Σ losses / d ℓ, or of reward models d Σ losses / d r.
fn run_list(
    config: &ObjectiveConfig,
    needs: &Needs,
    list: &Lists,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    assert!(
        needs.columns.is_empty(),
        "{needs}: no value for its columns"
    );
    match needs.values {
        Values::LogProbs => {
            let objective = config.build::<Ranked<SequenceLogProbs<2>>>().unwrap();
            list.run(&objective, DType::F64)
        }
        Values::LogRatios => {
            let objective = config.build::<Ranked<RelativeLogProbs<2>>>().unwrap();
            list.run_on(DType::F64, |batch| objective.forward(batch))
        }
        Values::Rewards => {
            let objective = config.build::<Ranked<Tensor<2>>>().unwrap();
            list.run_on(DType::F64, |batch| {
                let rewards = batch.candidates().policy().sum();
                let batch = Ranked::new(rewards, batch.scores(), batch.present());
                objective.forward(batch.unwrap())
            })
        }
        other => panic!("{}: no list of {other:?}", config.name()),
    }
}

/// The probability under Plackett and Luce that every candidate comes before all of a lower level:
/// the sum over the orders in which that is so.
fn probability_of_levels(q: &[f64], levels: &[i32]) -> f64 {
    let Some(best) = levels.iter().max() else {
        return 1.0;
    };
    let all: f64 = q.iter().map(|q| q.exp()).sum();
    let firsts = (0..q.len()).filter(|&i| levels[i] == *best);
    let orders = firsts.map(|first| {
        let (mut q, mut levels) = (q.to_vec(), levels.to_vec());
        levels.remove(first);
        q.remove(first).exp() / all * probability_of_levels(&q, &levels)
    });
    orders.sum()
}

fn reversed<T: Clone>(values: &[T]) -> Vec<T> {
    values.iter().rev().cloned().collect()
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn laws_of_pairs(pairs in any_pairs(), shift in -5.0..5.0_f64) {
        for subject in subjects::pairs(BETA) {
            let PairSubject { name, laws, .. } = &subject;
            let losses = |pairs: &Pairs| run(&subject, pairs, DType::F64).losses;
            let plain = losses(&pairs);
            let same = |other: &[f64], law: &str| {
                for (a, b) in other.iter().zip_equal(&plain) {
                    assert!(error(*a, *b) < 1e-9, "{name}: {law}: {a} instead of {b}");
                }
            };
            let moved = |sides: [fn(&mut Pairs) -> &mut Vec<f64>; 2], by: f64| {
                let mut pairs = pairs.clone();
                for side in sides {
                    for x in side(&mut pairs) {
                        *x += by;
                    }
                }
                losses(&pairs)
            };

            if laws.per_example {
                let first = pairs.map(|v| v[..1].to_vec(), |v| v[..1].to_vec());
                prop_assert_eq!(losses(&first)[0], plain[0], "{}: the rest of the batch", name);
            }
            if laws.ratio_only {
                same(&moved([|p| &mut p.chosen, |p| &mut p.ref_chosen], shift), "ρ alone");
                same(&moved([|p| &mut p.rejected, |p| &mut p.ref_rejected], shift), "ρ alone");
            }
            if laws.prompt_shift {
                same(&moved([|p| &mut p.chosen, |p| &mut p.rejected], shift), "shift of the prompt");
            }
            if laws.monotone {
                let better = pairs.clone();
                let up = |x: &f64| x + shift.abs();
                // Log-probs stay ≤ 0 where a log-odds is taken of them.
                let chosen = better.chosen.iter().zip(&better.chosen_len);
                let chosen = chosen.map(|(x, &n)| up(x).min(-0.001 * n as f64).max(*x)).collect();
                for (a, b) in losses(&Pairs { chosen, ..better }).iter().zip_equal(&plain) {
                    prop_assert!(*a <= b + 1e-9 * (1.0 + b.abs()), "{name}: a larger margin costs more");
                }
            }
            if let Some(expected) = laws.at_reference {
                let equal = Pairs {
                    ref_chosen: pairs.chosen.clone(),
                    ref_rejected: pairs.rejected.clone(),
                    ..pairs.clone()
                };
                let result = run(&subject, &equal, DType::F64);
                for loss in &result.losses {
                    prop_assert!(error(*loss, expected) < 1e-11, "{name}: {loss} at the reference");
                }
                let rewards = result.rewards.chosen.iter().chain(&result.rewards.rejected);
                prop_assert!(rewards.copied().all(|r| r == 0.0), "{name}: rewards at the reference");
            }
        }
    }

    #[test]
    fn order_of_the_examples(pairs in any_pairs()) {
        // Columns of `subjects` go by the index, so only objectives without one can be permuted.
        for subject in subjects::pairs(BETA) {
            let plain = run(&subject, &pairs, DType::F64).losses;
            let same_columns = subject.losses(&rows(&pairs));
            let back = pairs.map(reversed, reversed);
            let columns_matter = reversed(&subject.losses(&rows(&back)))
                .iter()
                .zip_equal(&same_columns)
                .any(|(a, b)| error(*a, *b) > 1e-12);
            if columns_matter {
                continue;
            }
            let permuted = run(&subject, &back, DType::F64).losses;
            for (a, b) in reversed(&permuted).iter().zip_equal(&plain) {
                prop_assert!(error(*a, *b) < 1e-12, "{}: {a} instead of {b}", subject.name);
            }
        }
    }

    #[test]
    fn limits_and_comparisons(pairs in any_pairs(), beta in 0.02..1.0_f64) {
        let dpo = DpoLossConfig::new().with_beta(beta);
        let of = |config: DpoLossConfig| losses(&config.init(), &pairs);
        let clean = of(dpo.clone());
        let near = |other: Vec<f64>, tolerance: f64| {
            clean.iter().zip_equal(&other).all(|(a, b)| error(*b, *a) < tolerance)
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
            .zip_equal(&flipped)
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
    fn many_objectives_contain_dpo(pairs in any_pairs(), beta in 0.02..1.0_f64) {
        let expected = losses(&DpoLossConfig::new().with_beta(beta).init(), &pairs);
        let same = |name: &str, ours: &[f64], tolerance: f64| {
            for (a, b) in ours.iter().zip_equal(&expected) {
                assert!(error(*a, *b) <= tolerance, "{name}: {a} instead of {b}");
            }
        };
        let of = |objective: &dyn Objective<ReferencedPair>| losses(objective, &pairs);
        let shift = DpoShiftLossConfig::new().with_beta(beta).with_rejected_share(1.0);
        same("dpo-shift, λ = 1", &of(&shift.init()), 1e-13);
        let dpop = DpopLossConfig::new().with_beta(beta).with_penalty(0.0);
        same("dpop, λ = 0", &of(&dpop.init()), 1e-13);
        let rdpo = RdpoLossConfig::new().with_beta(beta).with_length_cost(0.0);
        same("r-dpo, α = 0", &of(&rdpo.init()), 1e-13);
        same("h-dpo, α = 1", &of(&HdpoLossConfig::new(1.0).with_beta(beta).init()), 1e-11);

        let batch = || pairs.referenced(f64s(&pairs.chosen), f64s(&pairs.rejected));
        let column = |value: f64| f64s(&vec![value; pairs.len()]);
        let dpo = DpoLossConfig::new().with_beta(beta).init();
        let odpo = dpo.forward(WithMargin::new(batch(), column(0.0)).unwrap());
        same("odpo, m = 0", &to_vec(odpo.losses()), 0.0);
        let soft = dpo.forward(WithPreference::new(batch(), column(1.0)).unwrap());
        same("soft label, p = 1", &to_vec(soft.losses()), 0.0);
        let beta_dpo = BetaDpoLossConfig::new().with_beta(beta).with_sensitivity(0.0).init();
        let m0 = WithMeanMargin::new(batch(), f64s(&[0.3])).unwrap();
        same("β-dpo, a = 0", &to_vec(beta_dpo.forward(m0).losses()), 1e-13);
        let kl = Pair::new(column(1.0), column(2.0)).unwrap();
        let tdpo = TdpoLossConfig::new().with_beta(beta).with_kl_weight(0.0).init();
        let tdpo = tdpo.forward(WithSequenceKl::new(batch(), kl).unwrap());
        same("tdpo, α = 0", &to_vec(tdpo.losses()), 1e-13);
        let no_ties = || WithTies::new(batch(), bools(&vec![false; pairs.len()])).unwrap();
        let rao_kupper = RaoKupperLossConfig::new().with_beta(beta).with_tie_factor(1.0 + 1e-13);
        same("rao–kupper, ν → 1", &to_vec(rao_kupper.init().forward(no_ties()).losses()), 1e-11);
        let davidson = DavidsonLossConfig::new().with_beta(beta).with_tie_factor(1e-14);
        same("davidson, ν → 0", &to_vec(davidson.init().forward(no_ties()).losses()), 1e-11);

        // Two candidates of a list are a pair.
        let zip = |w: &[f64], l: &[f64]| -> Vec<f64> {
            w.iter().zip(l).flat_map(|(w, l)| [*w, *l]).collect()
        };
        let lists = Lists {
            candidates: 2,
            sums: zip(&pairs.chosen, &pairs.rejected),
            references: zip(&pairs.ref_chosen, &pairs.ref_rejected),
            lengths: vec![1; 2 * pairs.len()],
            scores: zip(&vec![1.0; pairs.len()], &vec![0.0; pairs.len()]),
            present: vec![true; 2 * pairs.len()],
        };
        let plackett_luce = PlackettLuceLossConfig::new().with_beta(beta).init();
        let (ours, ..) = lists.run_on(DType::F64, |batch| plackett_luce.forward(batch));
        same("plackett–luce, K = 2", &ours, 1e-12);
        let sdpo = SdpoLossConfig::new().with_beta(beta).init();
        let (ours, ..) = lists.run_on(DType::F64, |batch| sdpo.forward(batch));
        same("s-dpo, K = 1", &ours, 1e-12);

        // Log-ratios are rewards: Bradley–Terry of β·ρ is DPO, as a pair, with ties that never come,
        // and as a list of two.
        let says = |w: &[f64], ref_w: &[f64]| -> Vec<f64> {
            w.iter().zip(ref_w).map(|(a, b)| beta * (a - b)).collect()
        };
        let says = RewardPair::new(
            f64s(&says(&pairs.chosen, &pairs.ref_chosen)),
            f64s(&says(&pairs.rejected, &pairs.ref_rejected)),
        )
        .unwrap();
        let of_rewards = BradleyTerryLossConfig::new().init().forward(says.clone());
        same("bradley–terry", &to_vec(of_rewards.losses()), 1e-12);
        let never = WithTies::new(says.clone(), bools(&vec![false; pairs.len()])).unwrap();
        let ties = BradleyTerryTiesLossConfig::new().with_tie_model(TieModel::Davidson(1e-14));
        let ties = ties.init().forward(never);
        same("bradley–terry without ties", &to_vec(ties.losses()), 1e-11);
        let lists = Tensor::stack::<2>(vec![says.chosen.clone(), says.rejected.clone()], 1);
        let scores = lists.zeros_like() + f64s(&[1.0, 0.0]).unsqueeze::<2>();
        let lists = Ranked::new(lists.clone(), scores, lists.is_nan().bool_not()).unwrap();
        for weight in [0.0, 0.3] {
            let list = RewardRankingLossConfig::new().with_centering_weight(weight);
            let pair = BradleyTerryLossConfig::new().with_centering_weight(weight);
            let list = to_vec(list.init().forward(lists.clone()).losses());
            let pair = to_vec(pair.init().forward(says.clone()).losses());
            for (a, b) in list.iter().zip_equal(&pair) {
                prop_assert!(error(*a, *b) < 1e-12, "two rewards of a list: {a} instead of {b}");
            }
        }

        // AlphaPO → SimPO as α → 0.
        let simpo = SimpoLossConfig::new().with_beta(beta).init();
        let simpo = pairs.run_policy(&simpo, DType::F64).losses;
        let alpha = AlphaPoLossConfig::new().with_beta(beta).with_alpha(1e-12).init();
        let alpha = pairs.run_policy(&alpha, DType::F64).losses;
        for (a, b) in alpha.iter().zip_equal(&simpo) {
            prop_assert!(error(*a, *b) < 1e-9, "alphapo, α → 0");
        }
    }

    #[test]
    fn kto_is_bounded_and_pulls_the_right_way(
        ratios in prop::collection::vec(-200.0..200.0_f64, 1..8),
        z0 in 0.0..20.0_f64,
    ) {
        for desirable in [true, false] {
            let batch = UnpairedCompletions {
                policy: ratios.clone(),
                reference: vec![0.0; ratios.len()],
                desirable: vec![desirable; ratios.len()],
                baseline: z0,
            };
            let (losses, _, grads) = batch.run(&KtoLossConfig::new().init(), DType::F64);
            for (loss, grad) in losses.iter().zip_equal(&grads) {
                prop_assert!((0.0..=1.0).contains(loss));
                let pull = if desirable { -grad } else { *grad };
                prop_assert!(pull >= 0.0);
            }
        }
    }

    /// Of every objective that takes lists: where its candidates stand changes neither loss nor
    /// gradient, of equal scores and of equal rewards as well.
    #[test]
    fn the_order_in_a_list_means_nothing((candidates, order) in shuffled_list()) {
        let list = Lists::of_one(&candidates);
        let shuffled: Vec<Candidate> = order.iter().map(|&i| candidates[i]).collect();
        let shuffled = Lists::of_one(&shuffled);
        let at = |values: &[f64]| order.iter().map(|&i| values[i]).collect::<Vec<_>>();
        for (config, needs) in of_lists() {
            let name = config.name();
            let (loss, rewards, grads) = run_list(&config, &needs, &list);
            let (shuffled_loss, shuffled_rewards, shuffled_grads) =
                run_list(&config, &needs, &shuffled);
            assert_close(&shuffled_loss, &loss, 1e-12, name);
            assert_close(&shuffled_rewards, &at(&rewards), 0.0, name);
            assert_close(&shuffled_grads, &at(&grads), 1e-12, name);
        }
    }

    /// Plackett–Luce of equal scores: a lower bound of the sum over all orders of the equal ones, and
    /// that sum where only the worst tie.
    #[test]
    fn plackett_luce_bounds_the_orders_of_ties(
        candidates in prop::collection::vec((-3.0..3.0_f64, 0..3_i32), 1..7),
    ) {
        let (q, levels): (Vec<f64>, Vec<i32>) = candidates.into_iter().unzip();
        let list = Lists {
            candidates: q.len(),
            references: vec![0.0; q.len()],
            lengths: vec![1; q.len()],
            scores: levels.iter().copied().map(f64::from).collect(),
            present: vec![true; q.len()],
            sums: q.clone(),
        };
        let objective = PlackettLuceLossConfig::new().with_beta(1.0).init();
        let (loss, ..) = list.run_on(DType::F64, |batch| objective.forward(batch));
        let (ours, exact) = ((-loss[0]).exp(), probability_of_levels(&q, &levels));
        prop_assert!(ours <= exact * (1.0 + 1e-12), "{ours} is more than {exact}");
        let worst = levels.iter().min().unwrap();
        let ties = |level: &i32| levels.iter().filter(|other| *other == level).count() > 1;
        let better_tie = levels.iter().any(|level| level != worst && ties(level));
        prop_assert_eq!(error(ours, exact) < 1e-12, !better_tie, "{} and {}", ours, exact);
    }

    #[test]
    fn rrhf_ignores_lists_in_the_right_order(mut means in prop::collection::vec(-9.0..-0.1_f64, 2..7)) {
        means.sort_by(f64::total_cmp);
        let list = Lists {
            candidates: means.len(),
            references: vec![],
            lengths: vec![1; means.len()],
            scores: (0..means.len()).map(|i| i as f64).collect(),
            present: vec![true; means.len()],
            sums: means,
        };
        let ranking = RrhfLossConfig::new().with_sft_weight(0.0).init();
        prop_assert_eq!(list.run(&ranking, DType::F64).0, vec![0.0]);
    }
}

/// The common list of rollouts: rewards of 1 and 0, β = 1, ρ = 1, −1, −2, −0.5.
#[test]
fn a_list_of_right_and_wrong_answers() {
    let of = |sums: [f64; 4], scores: [f64; 4]| Lists {
        candidates: 4,
        sums: sums.to_vec(),
        references: vec![0.0; 4],
        lengths: vec![1; 4],
        scores: scores.to_vec(),
        present: vec![true; 4],
    };
    let ln1p_sum = |terms: [f64; 2]| terms.map(f64::exp).iter().sum::<f64>().ln_1p();
    let (first, second) = (ln1p_sum([-3.0, -1.5]), ln1p_sum([-1.0, 0.5]));
    let expected: [(&str, f64); 3] = [
        ("plackett_luce", first + second),
        ("reward_ranking", first + second),
        ("sdpo", f64::midpoint(first, second)),
    ];
    let equal = ["plackett_luce", "reward_ranking", "sdpo", "lipo"];
    for (config, needs) in of_lists() {
        let name = config.name();
        let mut fields = json!(config);
        if let Some(beta) = fields.get_mut("beta") {
            *beta = json!(1.0);
        }
        let config: ObjectiveConfig = serde_json::from_value(fields).unwrap();
        let loss = |sums| run_list(&config, &needs, &of(sums, [1.0, 1.0, 0.0, 0.0])).0;
        let one = loss([1.0, -1.0, -2.0, -0.5]);
        assert_close(&loss([-1.0, 1.0, -2.0, -0.5]), &one, 1e-14, name);
        assert_close(&loss([1.0, -1.0, -0.5, -2.0]), &one, 1e-14, name);
        if let Some((_, expected)) = expected.iter().find(|row| row.0 == name) {
            assert_close(&one, &[*expected], 1e-14, name);
        }
        // All right: nothing to learn from an order.
        if equal.contains(&name) {
            let list = of([1.0, -1.0, -2.0, -0.5], [1.0; 4]);
            let (loss, _, grads) = run_list(&config, &needs, &list);
            assert_eq!((loss, grads), (vec![0.0], vec![0.0; 4]), "{name}");
        }
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
        for subject in subjects::pairs(BETA) {
            let result = run(&subject, &extremes(), dtype);
            finite(subject.name, &result.losses);
            finite(subject.name, &result.grads.chosen);
            finite(subject.name, &result.grads.rejected);
        }

        let pairs = extremes();
        let unpaired = UnpairedCompletions {
            desirable: (0..pairs.len()).map(|i| i % 3 == 0).collect(),
            policy: pairs.chosen,
            reference: pairs.ref_rejected,
            baseline: 1e4,
        };
        let (losses, rewards, grads) = unpaired.run(&KtoLossConfig::new().init(), dtype);
        finite("kto", &[losses, rewards, grads].concat());

        // Single completions: unpaired ones, and ones to unlearn.
        let pairs = extremes();
        let lengths = vec![3; pairs.len()];
        let labels: Vec<bool> = (0..pairs.len()).map(|i| i % 3 == 0).collect();
        let single = |name: &str, forward: &dyn Fn(RelativeLogProbs) -> LossOutput<Tensor<1>>| {
            let leaf = floats(&pairs.chosen, dtype).autodiff().require_grad();
            let reference = sequence(floats(&pairs.ref_rejected, dtype), &lengths);
            let output = forward(
                sequence(leaf.clone(), &lengths)
                    .relative_to(reference)
                    .unwrap(),
            );
            let grads = output.sum().backward();
            let grads = to_vec(leaf.grad(&grads).unwrap());
            finite(name, &[to_vec(output.losses()), grads].concat());
        };
        let unpaired = |relative| Unpaired::new(relative, bools(&labels)).unwrap();
        let apo_zero = ApoZeroLossConfig::new().init();
        single("apo zero", &|relative| apo_zero.forward(unpaired(relative)));
        let bco = BcoLossConfig::new().init();
        let shift = || floats(&[-1e3], dtype);
        single("bco", &|relative| {
            bco.forward(WithShift::new(unpaired(relative), shift()).unwrap())
        });
        let npo = NpoLossConfig::new().init();
        single("npo", &|relative| npo.forward(relative));
        let scored = |relative, score: f64| {
            let scores = floats(&vec![score; lengths.len()], dtype);
            Scored::new(relative, scores).unwrap()
        };
        let values = || floats(&vec![-1e4; lengths.len()], dtype);
        let dro = DroLossConfig::new().init();
        single("dro", &|relative| {
            dro.forward(WithValue::new(scored(relative, 1e4), values()).unwrap())
        });
        let astar_po = AstarPoLossConfig::new().init();
        single("a*-po", &|relative| {
            astar_po.forward(WithValue::new(scored(relative, 1e4), values()).unwrap())
        });
        for beta in [1e-6, 1e-3, 0.1, 1e3] {
            let qrpo = QrpoLossConfig::new().with_beta(beta).init();
            single("qrpo", &|relative| qrpo.forward(scored(relative, 0.75)));
        }
        let simnpo = SimnpoLossConfig::new().init();
        single("simnpo", &|relative| {
            simnpo.forward(relative.policy().clone())
        });

        let list = Lists {
            candidates: 6,
            sums: vec![-1e5, -1e4, -100.0, -1.0, -1e-8, 0.0],
            references: vec![0.0, -1e4, -1e5, -1.0, 0.0, -1e4],
            lengths: vec![0, 1, 1, 5, 9, 0],
            scores: vec![1e4, -1e4, 0.0, 0.0, 1e-4, 30.0],
            present: vec![true; 6],
        };
        for subject in subjects::lists(BETA) {
            let (losses, rewards, grads) = list.run_on(dtype, &subject.forward);
            finite(subject.name, &[losses, rewards, grads].concat());
        }
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
    for subject in subjects::pairs(BETA) {
        let batch = nothing.referenced(f64s(&[]), f64s(&[]));
        let output = (subject.forward)(batch);
        assert_eq!(to_vec(output.mean()), [0.0], "{}", subject.name);
    }
    // Both completions empty: the log-ratio is 0, loss and gradient are finite.
    let empty = Pairs {
        chosen: vec![0.0],
        rejected: vec![0.0],
        ref_chosen: vec![0.0],
        ref_rejected: vec![0.0],
        chosen_len: vec![0],
        rejected_len: vec![0],
    };
    for subject in subjects::pairs(BETA) {
        let result = run(&subject, &empty, DType::F64);
        if let Some(expected) = subject.laws.at_reference {
            assert_relative_eq!(result.losses[0], expected, epsilon = 1e-12);
        }
        let all = [result.losses, result.grads.chosen, result.grads.rejected].concat();
        assert!(all.iter().all(|x| x.is_finite()), "{}", subject.name);
    }
    let orpo = empty.run_policy(&OrpoLossConfig::new().init(), DType::F64);
    assert_relative_eq!(
        orpo.losses[0],
        0.1 * std::f64::consts::LN_2,
        epsilon = 1e-12
    );
    assert_eq!(orpo.grads.rejected, [0.0]);
}
