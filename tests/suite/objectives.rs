//! Every objective, formula and gradient, against the scalar code, and known values.

use approx::assert_relative_eq;
use burn::tensor::{DType, Tensor};
use burn_preference::{
    AotLossConfig, ApoDownLossConfig, ApoZeroLossConfig, AstarPoLossConfig, BcoLossConfig,
    BetaDpoLossConfig, CalDpoLossConfig, ChipoLossConfig, CpoLossConfig, DiscopopLossConfig,
    Divergence, DpoLossConfig, DpopLossConfig, DroLossConfig, ExoPairLossConfig, HingeLossConfig,
    InfoNcaLossConfig, IpoLossConfig, KlEstimate, KtoLossConfig, LabelNoise, LipoLossConfig,
    LossOutput, NcaListLossConfig, NcaLossConfig, NllNormalization, Normalization, NpoLossConfig,
    Objective, OrpoLossConfig, Pair, PlackettLuceLossConfig, PolicyPair, ProLossConfig,
    QrpoLossConfig, Ranked, RdpoLossConfig, ReferencedPair, RelativeLogProbs, RrhfLossConfig,
    Scored, SftTerm, SimnpoLossConfig, SimpoLossConfig, SppoLossConfig, TpoLossConfig, Unpaired,
    WithMargin, WithMeanMargin, WithNll, WithShift, WithValue,
};
use proptest::prelude::*;

use burn_preference::batch::{optimal_values, quantile_scores};
use burn_preference::config::ObjectiveConfig;

use crate::dual::Dual;
use crate::formulas::{self, Completion, Marks};
use crate::scalar::{self, Row};
use crate::subjects::{self, rows};
use crate::support::{
    Lists, Pairs, UnpairedCompletions, assert_close, bools, cases, error, f64s, ints, leaf,
    sequence, to_vec,
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
#[expect(clippy::too_many_lines, reason = "one line per value")]
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

    assert_relative_eq!(
        of(ExoPairLossConfig::new().init()),
        1.498_838,
        epsilon = 1e-6
    );
    assert_relative_eq!(of(NcaLossConfig::new().init()), 1.234_52, epsilon = 1e-5);
    assert_relative_eq!(of(BcoLossConfig::new().init()), 1.082_063, epsilon = 1e-6);
    assert_relative_eq!(
        of(SppoLossConfig::trl().init()),
        128.546_667,
        epsilon = 1e-6
    );
    assert_relative_eq!(
        of(ApoZeroLossConfig::new().init()),
        0.800_323,
        epsilon = 1e-6
    );
    assert_relative_eq!(
        of(ApoDownLossConfig::new().init()),
        0.789_386,
        epsilon = 1e-6
    );
    assert_relative_eq!(
        of(DiscopopLossConfig::new().init()),
        0.449_929,
        epsilon = 1e-6
    );
    assert_relative_eq!(of(HingeLossConfig::new().init()), 0.333_333, epsilon = 1e-6);
    let aot = AotLossConfig::new();
    assert_relative_eq!(of(aot.init()), 0.377_779, epsilon = 1e-6);
    assert_relative_eq!(of(aot.with_paired(false).init()), 0.377_016, epsilon = 1e-6);
    assert_relative_eq!(of(DpopLossConfig::new().init()), 1.195_1, epsilon = 1e-4);
    assert_relative_eq!(of(ChipoLossConfig::new().init()), 0.366_678, epsilon = 1e-6);
    assert_relative_eq!(of(RdpoLossConfig::new().init()), 0.381_889, epsilon = 1e-6);
    assert_relative_eq!(
        of(CalDpoLossConfig::new().init()),
        128.777_731,
        epsilon = 1e-6
    );
    let free = |o: &dyn Objective<PolicyPair>| mean(&catalogue().run_policy(o, DType::F64).losses);
    assert_relative_eq!(
        free(&SimpoLossConfig::new().init()),
        0.621_773,
        epsilon = 1e-6
    );
    let cpo = CpoLossConfig::new().with_sft_weight(0.0).init();
    assert_relative_eq!(free(&cpo), 0.322_401, epsilon = 1e-6);

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
    let unpaired = UnpairedCompletions {
        policy: [rows.chosen, rows.rejected].concat(),
        reference: [rows.ref_chosen, rows.ref_rejected].concat(),
        desirable: vec![true, true, true, false, false, false],
        baseline: 0.0,
    };
    let (losses, ..) = unpaired.run(&KtoLossConfig::new().init(), DType::F64);
    assert_relative_eq!(mean(&losses), 0.400_162, epsilon = 1e-6);

    let list = Lists {
        candidates: 4,
        references: vec![],
        sums: vec![-1.2, -0.7, -2.0, -0.9],
        lengths: vec![1; 4],
        scores: vec![0.9, 0.1, 0.5, 0.3],
        present: vec![true; 4],
    };
    let ranking = RrhfLossConfig::new().with_sft_weight(0.0).init();
    assert_relative_eq!(list.run(&ranking, DType::F64).0[0], 3.4, epsilon = 1e-12);
    let pro = ProLossConfig::new().with_sft_weight(0.0).init();
    assert_relative_eq!(list.run(&pro, DType::F64).0[0], 3.872_697, epsilon = 1e-6);
    // Against a reference of zeros at β = 1, q is ρ.
    let list = Lists {
        references: vec![0.0; 4],
        ..list
    };
    let of = |o: &dyn Objective<Ranked<RelativeLogProbs<2>>>| {
        list.run_on(DType::F64, |batch| o.forward(batch)).0[0]
    };
    let plackett_luce = PlackettLuceLossConfig::new().with_beta(1.0).init();
    assert_relative_eq!(of(&plackett_luce), 4.328_341, epsilon = 1e-6);
    let lipo = LipoLossConfig::new().with_beta(1.0).init();
    assert_relative_eq!(of(&lipo), 1.251_881, epsilon = 1e-6);
    let info_nca = InfoNcaLossConfig::new().with_beta(1.0).init();
    assert_relative_eq!(of(&info_nca), 1.547_503, epsilon = 1e-6);
    let nca = NcaListLossConfig::new().with_beta(1.0).init();
    assert_relative_eq!(of(&nca), 1.807_309, epsilon = 1e-6);
}

/// An objective over scored completions, and their values.
type OfScores<'a> = &'a dyn Fn(Scored<RelativeLogProbs>, Tensor<1>) -> LossOutput<Tensor<1>>;

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

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn pairs_match_the_scalar_code(pairs in any_pairs(), beta in 0.02..2.0_f64) {
        for subject in subjects::pairs(beta) {
            let name = subject.name;
            let ours = pairs.run_on(DType::F64, |w, l| (subject.forward)(pairs.referenced(w, l)));
            let rows = rows(&pairs);
            let expected = subject.losses(&rows);
            // Log-odds of an empty completion have no scalar value: finite is all there is to say.
            // What is held is another formula: `extremes.rs` says which.
            let defined = |i: usize| !subject.is_held(rows[i])
                && (!["orpo", "asft"].contains(&name)
                    || (rows[i].len_w > 0 && rows[i].len_l > 0));
            for i in 0..rows.len() {
                let loss = ours.losses[i];
                prop_assert!(loss.is_finite());
                if !defined(i) {
                    continue;
                }
                prop_assert!(
                    error(loss, expected[i]) < 1e-10,
                    "{name}: loss {loss} instead of {}", expected[i]
                );
                let [w, l] = subject.rewards(rows[i]);
                prop_assert!(
                    error(ours.rewards.chosen[i], w) < 1e-11
                        && error(ours.rewards.rejected[i], l) < 1e-11,
                    "{name}: rewards"
                );
            }
            for i in (0..rows.len()).filter(|&i| defined(i)) {
                let [w, l] = subject.gradient(&rows, i);
                let (a, b) = (ours.grads.chosen[i], ours.grads.rejected[i]);
                prop_assert!(
                    error(a, w) < 1e-10 && error(b, l) < 1e-10,
                    "{name}: gradients {a}, {b} instead of {w}, {l}"
                );
            }
        }
    }

    #[test]
    fn kto_matches_the_scalar_code(
        rows in prop::collection::vec((-50.0..0.0_f64, -9.0..9.0_f64, any::<bool>()), 1..9),
        z0 in 0.0..5.0_f64,
        beta in 0.02..2.0_f64,
        weights in (0.0..2.0_f64, 0.0..2.0_f64),
    ) {
        let batch = UnpairedCompletions {
            policy: rows.iter().map(|r| r.0).collect(),
            reference: rows.iter().map(|r| r.0 - r.1).collect(),
            desirable: rows.iter().map(|r| r.2).collect(),
            baseline: z0,
        };
        let kto = KtoLossConfig::new()
            .with_beta(beta)
            .with_desirable_weight(weights.0)
            .with_undesirable_weight(weights.1);
        let (losses, rewards, grads) = batch.run(&kto.init(), DType::F64);
        let config = ObjectiveConfig::Kto(kto);
        for (i, &(policy, _, desirable)) in rows.iter().enumerate() {
            let y = Completion {
                sum: Dual::input(policy),
                reference: batch.reference[i],
                length: 5,
            };
            let marks = Marks {
                desirable: vec![desirable],
                baseline: z0,
                ..Marks::default()
            };
            let scalar = formulas::completions(&config, &[y], &marks)[0];
            prop_assert!(error(losses[i], scalar.value) < 1e-12);
            prop_assert!(error(rewards[i], formulas::completion_reward(&config, y)) < 1e-12);
            prop_assert!(error(grads[i], scalar.slope) < 1e-12);
        }
    }

    #[test]
    fn other_unpaired_objectives_match_the_scalar_code(
        rows in prop::collection::vec((-50.0..0.0_f64, -9.0..9.0_f64, any::<bool>()), 1..9),
        shift in -2.0..2.0_f64,
        beta in 0.02..2.0_f64,
    ) {
        let policy: Vec<f64> = rows.iter().map(|r| r.0).collect();
        let labels: Vec<bool> = rows.iter().map(|r| r.2).collect();
        let lengths = vec![5; rows.len()];
        let reference: Vec<f64> = rows.iter().map(|r| r.0 - r.1).collect();
        let check = |config: ObjectiveConfig,
                     forward: &dyn Fn(RelativeLogProbs) -> LossOutput<Tensor<1>>| {
            let leaf = leaf(&policy);
            let relative = sequence(leaf.clone(), &lengths);
            let output = forward(relative.relative_to(sequence(f64s(&reference), &lengths)).unwrap());
            let grads = to_vec(leaf.grad(&output.sum().backward()).unwrap());
            let losses = to_vec(output.losses());
            let name = config.name();
            for i in 0..rows.len() {
                let y = Completion {
                    sum: Dual::input(policy[i]),
                    reference: reference[i],
                    length: 5,
                };
                let marks = Marks {
                    desirable: vec![labels[i]],
                    shift,
                    ..Marks::default()
                };
                let scalar = formulas::completions(&config, &[y], &marks)[0];
                assert!(error(losses[i], scalar.value) < 1e-12, "{name}");
                assert!(error(grads[i], scalar.slope) < 1e-12, "{name}");
            }
        };
        let unpaired = |relative| Unpaired::new(relative, bools(&labels)).unwrap();
        let apo = ApoZeroLossConfig::new().with_beta(beta);
        let objective = apo.init();
        check(ObjectiveConfig::ApoZero(apo), &|r| objective.forward(unpaired(r)));
        let bco = BcoLossConfig::new().with_beta(beta);
        let objective = bco.init();
        check(ObjectiveConfig::Bco(bco), &|r| {
            objective.forward(WithShift::new(unpaired(r), f64s(&[shift])).unwrap())
        });
        let npo = NpoLossConfig::new().with_beta(beta);
        let objective = npo.init();
        check(ObjectiveConfig::Npo(npo), &|r| objective.forward(r));
        let simnpo = SimnpoLossConfig::new().with_beta(beta).with_target_margin(shift);
        let objective = simnpo.init();
        check(ObjectiveConfig::Simnpo(simnpo), &|r| objective.forward(r.policy().clone()));
    }

    #[test]
    fn scored_completions_match_the_scalar_code(
        rows in prop::collection::vec(
            (-50.0..0.0_f64, -9.0..9.0_f64, -3.0..3.0_f64, -3.0..3.0_f64), 1..9),
        scale in 0.02..2.0_f64,
    ) {
        let policy_of: Vec<f64> = rows.iter().map(|r| r.0).collect();
        let reference: Vec<f64> = rows.iter().map(|r| r.0 - r.1).collect();
        let scores: Vec<f64> = rows.iter().map(|r| r.2).collect();
        let values: Vec<f64> = rows.iter().map(|r| r.3).collect();
        let lengths = vec![5; rows.len()];
        let check = |config: ObjectiveConfig, forward: OfScores, learns: bool| {
            let name = config.name();
            // Along ℓ, or along V.
            let scalar = |i: usize, along_value: bool| {
                let dual = |value, moves| Dual { value, slope: f64::from(moves) };
                let y = Completion {
                    sum: dual(policy_of[i], !along_value),
                    reference: reference[i],
                    length: 5,
                };
                let marks = Marks {
                    scores: vec![scores[i]],
                    values: vec![dual(values[i], along_value)],
                    ..Marks::default()
                };
                formulas::completions(&config, &[y], &marks)[0]
            };
            let (policy, value) = (leaf(&policy_of), leaf(&values));
            let score = leaf(&scores);
            let relative = sequence(policy.clone(), &lengths);
            let relative = relative.relative_to(sequence(f64s(&reference), &lengths)).unwrap();
            let output = forward(Scored::new(relative, score.clone()).unwrap(), value.clone());
            let grads = output.sum().backward();
            let of_policy = to_vec(policy.grad(&grads).unwrap());
            let of_value = value.grad(&grads).map(to_vec);
            assert_eq!(of_value.is_some(), learns, "{name}");
            assert!(score.grad(&grads).is_none(), "{name}");
            let (losses, rewards) = (to_vec(output.losses()), to_vec(output.rewards().clone()));
            for i in 0..rows.len() {
                assert!(error(losses[i], scalar(i, false).value) < 1e-11, "{name}");
                assert!(error(rewards[i], scale * rows[i].1) < 1e-11, "{name}");
                assert!(error(of_policy[i], scalar(i, false).slope) < 1e-11, "{name}");
                if let Some(of_value) = &of_value {
                    assert!(error(of_value[i], scalar(i, true).slope) < 1e-11, "{name}");
                }
            }
        };
        let dro = DroLossConfig::new().with_tau(scale);
        let objective = dro.init();
        check(
            ObjectiveConfig::Dro(dro),
            &|b, v| objective.forward(WithValue::new(b, v).unwrap()),
            true,
        );
        let astar_po = AstarPoLossConfig::new().with_beta(scale);
        let objective = astar_po.init();
        check(
            ObjectiveConfig::AstarPo(astar_po),
            &|b, v| objective.forward(WithValue::new(b, v).unwrap()),
            false,
        );
        let qrpo = QrpoLossConfig::new().with_beta(scale);
        let objective = qrpo.init();
        check(ObjectiveConfig::Qrpo(qrpo), &|b, _| objective.forward(b), false);
    }

    /// What the papers say of Z and V*: the policy at which the regression has no residual sums
    /// to 1. Brute force over a grid of quantiles, and over the samples.
    #[test]
    fn policies_without_a_residual_sum_to_1(
        rewards in prop::collection::vec(-3.0..3.0_f64, 1..9),
        beta in 0.05..3.0_f64,
    ) {
        // QRPO: the losses at ρ = 0 are (u − β·ln Z)², so that the best ρ is their root over β.
        const GRID: usize = 2000;
        let quantiles: Vec<f64> = (0..GRID).map(|i| (i as f64 + 0.5) / GRID as f64).collect();
        let lengths = vec![1; GRID];
        let at_reference = || sequence(f64s(&vec![-1.0; GRID]), &lengths);
        let relative = at_reference().relative_to(at_reference()).unwrap();
        let qrpo = QrpoLossConfig::new().with_beta(beta).init();
        let leaf = leaf(&quantiles);
        let losses = to_vec(qrpo.forward(Scored::new(relative, leaf).unwrap()).losses());
        // The root is negative before the smallest loss, positive after it.
        let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
        let turn = losses.iter().position(|&loss| loss == least).unwrap();
        let mass = |up_to: usize| -> f64 {
            let roots = losses.iter().enumerate().map(|(i, loss)| {
                if i < up_to { -loss.sqrt() } else { loss.sqrt() }
            });
            roots.map(|root| (root / beta).exp()).sum::<f64>() / GRID as f64
        };
        let closest = [mass(turn), mass(turn + 1)].map(|mass| (mass - 1.0).abs());
        prop_assert!(closest[0].min(closest[1]) < 1e-3, "{closest:?}");

        // A*-PO and DRO: V* = β·ln E e^(r/β) makes ρ = (r − V*)/β a distribution.
        let samples = f64s(&rewards).reshape([1, rewards.len()]);
        let value = to_vec(optimal_values(samples, beta).unwrap())[0];
        let mass = rewards.iter().map(|r| ((r - value) / beta).exp()).sum::<f64>();
        prop_assert!((mass / rewards.len() as f64 - 1.0).abs() < 1e-12);
        let highest = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        prop_assert!(mean(&rewards) <= value + 1e-12 && value <= highest + 1e-12);
    }

    #[test]
    fn lists_match_the_scalar_code(
        lists in prop::collection::vec(
            prop::collection::vec(
                (-9.0..-0.1_f64, -4.0..4.0_f64, 0_usize..9, 0..4_i32, any::<bool>()), 5),
            1..4,
        ),
        beta in 0.02..2.0_f64,
    ) {
        let flat = lists.concat();
        let batch = Lists {
            candidates: 5,
            sums: flat.iter().map(|c| c.0).collect(),
            references: flat.iter().map(|c| c.0 - c.1).collect(),
            lengths: flat.iter().map(|c| c.2).collect(),
            scores: flat.iter().map(|c| f64::from(c.3) / 2.0).collect(),
            present: flat.iter().map(|c| c.4).collect(),
        };
        for subject in subjects::lists(beta) {
            let name = subject.name;
            let (losses, rewards, grads) = batch.run_on(DType::F64, &subject.forward);
            for (b, &loss) in losses.iter().enumerate() {
                let there: Vec<usize> = (5 * b..5 * b + 5).filter(|&i| batch.present[i]).collect();
                let list = scalar::List {
                    sums: there.iter().map(|&i| batch.sums[i]).collect(),
                    references: there.iter().map(|&i| batch.references[i]).collect(),
                    lengths: there.iter().map(|&i| batch.lengths[i]).collect(),
                    scores: there.iter().map(|&i| batch.scores[i]).collect(),
                };
                let expected = if there.is_empty() { 0.0 } else { subject.loss(&list) };
                prop_assert!(
                    error(loss, expected) < 1e-10,
                    "{name}: {} instead of {expected}", loss
                );
                let expected_rewards = subject.rewards(&list);
                for (k, &i) in there.iter().enumerate() {
                    prop_assert!(error(rewards[i], expected_rewards[k]) < 1e-12, "{name}: rewards");
                    let slope = subject.slope(&list, k);
                    prop_assert!(
                        error(grads[i], slope) < 1e-10,
                        "{name}: gradient {} instead of {slope}", grads[i]
                    );
                }
            }
            for i in (0..flat.len()).filter(|&i| !batch.present[i]) {
                prop_assert!(rewards[i] == 0.0 && grads[i] == 0.0, "{name}: absent candidate");
            }
        }
    }
}

/// The exact slopes of the scalar code are those of difference quotients.
#[test]
fn slopes_are_difference_quotients() {
    // ρ_w = 0 is a kink of DPO-Positive.
    let pairs = Pairs {
        chosen: vec![-0.53, -9.7, -1.2],
        ..catalogue()
    };
    let rows = rows(&pairs);
    // What carries no gradient moves in a quotient: β of β-DPO.
    let subjects = subjects::pairs(0.3).into_iter();
    for subject in subjects.filter(|subject| subject.name != "beta-dpo") {
        for i in 0..rows.len() {
            let of = |by: &dyn Fn(&mut Row, f64)| {
                scalar::slope(|d| {
                    let mut moved = rows.clone();
                    by(&mut moved[i], d);
                    subject.losses(&moved).into_iter().sum()
                })
            };
            let quotients = [of(&|row, d| row.w += d), of(&|row, d| row.l += d)];
            let scale = 1.0
                + subject
                    .losses(&rows)
                    .iter()
                    .fold(0.0, |m: f64, x| m.max(x.abs()));
            let slopes = subject.gradient(&rows, i);
            assert_close(&slopes, &quotients, 1e-7 * scale, subject.name);
        }
    }
    let list = scalar::List {
        sums: vec![-3.0, -1.25, -6.5, -2.2],
        references: vec![-2.5, -2.0, -5.5, -3.5],
        lengths: vec![3, 1, 4, 2],
        scores: vec![0.9, 0.1, 0.5, 0.5],
    };
    for subject in subjects::lists(0.3) {
        for k in 0..list.len() {
            let quotient = scalar::slope(|d| {
                let mut moved = list.clone();
                moved.sums[k] += d;
                subject.loss(&moved)
            });
            assert_close(&[subject.slope(&list, k)], &[quotient], 1e-8, subject.name);
        }
    }
}

#[test]
fn sft_and_nll_over_tokens() {
    let pairs = catalogue();
    let dpo = DpoLossConfig::new().init();
    let token = SftTerm::new(dpo.clone(), 1.0).unwrap();
    let token = token.with_normalization(NllNormalization::Token);
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
    let orpo = OrpoLossConfig::new().with_odds_ratio_weight(0.0).init();
    let sft = SftTerm::new(orpo, 2.0).unwrap();
    let grads = catalogue().run_policy(&sft, DType::F64).grads;
    assert_close(
        &grads.chosen,
        &[-1.5, -0.6, -0.75],
        1e-15,
        "−(1 + 2)/length",
    );
    assert_close(&grads.rejected, &[0.0; 3], 0.0, "rejected");
    let negative = SftTerm::new(DpoLossConfig::new().init(), -1.0).unwrap_err();
    assert_eq!(
        negative.to_string(),
        "`sft_weight` is -1, but must be a finite number ≥ 0, in f32"
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
fn the_class_ratio_is_advice() {
    let kto = KtoLossConfig::new();
    let of = |up, down| kto.class_ratio(up, down);
    assert_relative_eq!(of(1, 4).value(), 0.25);
    for (up, down, fits) in [(7, 7, true), (4, 3, true), (7, 5, true), (3, 2, true)] {
        assert_eq!(of(up, down).is_recommended(), fits, "{up} and {down}");
    }
    assert!(!of(2, 1).is_recommended() && !of(1, 4).is_recommended());
    let text = of(1, 4).to_string();
    assert!(
        text.ends_with(
            "below the recommended 1 to 1.5; an undesirable_weight of 0.167 to 0.25 is inside"
        ),
        "{text}"
    );
    // The weights that it names are inside.
    for (up, down) in (1..300).flat_map(|up| [1, 3, 7, 100, 333, 90_000].map(|down| (up, down))) {
        let text = of(up, down).to_string();
        let Some((_, weights)) = text.split_once("an undesirable_weight of ") else {
            continue;
        };
        let (from, to) = weights.split_once(" to ").unwrap();
        for weight in [from, to.trim_end_matches(" is inside")] {
            assert!(weight.len() <= 10, "three digits: {weight}");
            let weighted = kto.clone().with_undesirable_weight(weight.parse().unwrap());
            assert!(weighted.class_ratio(up, down).is_recommended(), "{text}");
        }
    }
    // 1.5·20 / (3·8)
    let weighted = kto
        .clone()
        .with_desirable_weight(1.5)
        .with_undesirable_weight(3.0);
    assert_eq!(weighted.class_ratio(20, 8).value(), 1.25);
    assert_eq!(of(1, 0).value(), f64::INFINITY);
    assert!(!of(1, 0).is_recommended() && !of(0, 0).is_recommended());
    assert!(!of(1, 0).to_string().contains("is inside"));
    assert!(
        of(0, 0)
            .to_string()
            .ends_with("is 0/0: nothing weighs anything")
    );
    assert!(
        of(7, 5)
            .to_string()
            .ends_with("1.4: inside the recommended 1 to 1.5")
    );
}

#[test]
fn objectives_work_behind_pointers() {
    let boxed: Box<dyn Objective<ReferencedPair>> = Box::new(DpoLossConfig::new().init());
    let sft = SftTerm::new(boxed, 0.0).unwrap();
    assert_relative_eq!(of(&sft), 0.377_779, epsilon = 1e-6);
    assert_relative_eq!(of(std::sync::Arc::new(sft)), 0.377_779, epsilon = 1e-6);
}

#[test]
fn absent_candidates_are_never_read() {
    let list = |junk: f64, present: bool| Lists {
        candidates: 3,
        references: vec![],
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
    let grads = output.weighted_mean(weights.clone()).unwrap().backward();
    for input in inputs.iter().chain([&weights, &margin]) {
        assert!(input.grad(&grads).is_none());
    }
    let labelled = sequence(leaf(&[-1.0]), &[1]);
    let z0 = leaf(&[1.0]);
    let relative = labelled.relative_to(sequence(f64s(&[-2.0]), &[1])).unwrap();
    let batch = Unpaired::new(relative, bools(&[true])).unwrap();
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
        only(output.normalized_by(12.0).unwrap()),
        mean(&losses) / 4.0,
        epsilon = 1e-15
    );
    let weighted = only(output.weighted_mean(f64s(&[0.0, 3.0, 1.0])).unwrap());
    assert_relative_eq!(
        weighted,
        (3.0 * losses[1] + losses[2]) / 4.0,
        epsilon = 1e-15
    );
    assert_eq!(only(output.weighted_mean(f64s(&[0.0; 3])).unwrap()), 0.0);
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
        grad(&|output| output.normalized_by(7.0).unwrap()),
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
fn the_robust_mean_listens_to_small_losses() {
    let pairs = catalogue();
    let dpo = DpoLossConfig::new().with_beta(1.0).init();
    let leaf = leaf(&pairs.chosen);
    let output = dpo.forward(pairs.referenced(leaf.clone(), f64s(&pairs.rejected)));
    let losses = to_vec(output.losses());
    let of = |losses: &[f64], b: f64| {
        let terms = losses.iter().map(|l| (-l / b).exp());
        -b * (terms.sum::<f64>() / losses.len() as f64).ln()
    };
    let ours = to_vec(output.robust_mean(0.7).unwrap())[0];
    assert_relative_eq!(ours, of(&losses, 0.7), max_relative = 1e-14);
    assert!(ours < mean(&losses));
    let wide = to_vec(output.robust_mean(1e6).unwrap())[0];
    assert_relative_eq!(wide, mean(&losses), max_relative = 1e-5);
    // d/d loss_i is softmax(−loss/β′)_i.
    let grads = to_vec(
        leaf.grad(&output.robust_mean(0.7).unwrap().backward())
            .unwrap(),
    );
    let weights = scalar::softmax(&losses.iter().map(|l| -l / 0.7).collect::<Vec<_>>());
    for (i, row) in rows(&pairs).into_iter().enumerate() {
        let slope = -scalar::sigmoid(-row.delta());
        assert_relative_eq!(grads[i], weights[i] * slope, max_relative = 1e-12);
    }
    let huge = Pairs {
        rejected: vec![1e4; 3],
        ..pairs
    };
    let output = dpo.forward(huge.referenced(leaf, f64s(&huge.rejected)));
    assert!(to_vec(output.robust_mean(1.0).unwrap())[0].is_finite());
}

#[test]
fn reductions_check_what_they_are_given() {
    let pairs = catalogue();
    let batch = pairs.referenced(f64s(&pairs.chosen), f64s(&pairs.rejected));
    let output = DpoLossConfig::new().init().forward(batch);
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(output.normalized_by(bad).unwrap_err().name(), "denominator");
        assert_eq!(output.robust_mean(bad).unwrap_err().name(), "beta_prime");
    }
    let error = output.weighted_mean(f64s(&[1.0; 2])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`weights`: expected shape [3], found shape [2]"
    );
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

/// The numbers of the authors' own code (`beta_used` and loss of whole steps, from logits): a acts
/// on Δ. On β·Δ, which is ten times weaker at β = 0.1, the second would be 0.72799.
#[test]
fn beta_dpo_is_its_authors() {
    // β, a, M₀, then ℓ and ℓ° of [chosen; rejected], and the loss.
    let cases = [
        (
            [0.1, 0.6, 0.5],
            [
                -22.733_882_589_333_29,
                -45.661_687_753_019_15,
                -46.653_138_828_565_574,
                -13.251_560_329_065_288,
                -0.613_770_944_958_929_5,
                -43.775_470_530_864_58,
                -28.243_375_122_154_127,
                -23.967_885_722_400_734,
            ],
            [
                -23.408_725_532_484_876,
                -44.537_259_943_422_676,
                -46.637_643_685_463_66,
                -13.427_444_842_901_217,
                -0.600_704_542_418_919_9,
                -41.805_018_598_233_87,
                -29.288_997_719_934_954,
                -23.504_305_499_166_42,
            ],
            0.681_734_487_033_428_8,
        ),
        (
            [0.1, 0.6, -2.0],
            [
                -19.431_892_671_829_562,
                -11.557_159_558_416_052,
                -20.607_150_488_631_714,
                -42.394_210_088_879_696,
                -25.837_168_281_199_475,
                -15.024_249_727_792_522,
                -14.711_142_684_319_157,
                -6.055_602_083_774_561,
            ],
            [
                -19.358_057_945_320_16,
                -11.837_800_959_855_091,
                -20.489_865_760_838_12,
                -42.384_727_384_926_39,
                -26.075_121_497_273_84,
                -15.457_097_671_593_63,
                -15.541_041_957_915_18,
                -5.855_188_457_318_241,
            ],
            0.725_250_282_730_780_5,
        ),
        (
            [0.3, 0.4, 1.0],
            [
                -18.576_323_418_390_75,
                -30.854_396_209_057_633,
                -6.275_742_153_868_646,
                -36.406_627_769_821_84,
                -40.790_353_310_393_4,
                -4.865_941_489_878_543,
                -37.105_917_577_496_13,
                -11.665_460_296_114_86,
            ],
            [
                -18.167_979_822_030_336,
                -30.080_756_517_063_46,
                -6.146_793_556_827_705,
                -36.637_816_607_333_15,
                -40.344_601_154_444_135,
                -4.785_246_424_229_777,
                -36.762_539_901_634_13,
                -11.575_355_737_275_009,
            ],
            0.696_402_260_893_532_5,
        ),
    ];
    for ([beta, a, m0], policy, reference, expected) in cases {
        let of = |values: &[f64]| sequence(f64s(values), &[1; 8]);
        let relative = of(&policy).relative_to(of(&reference)).unwrap();
        let batch = Pair::from_concatenated(&relative).unwrap();
        let batch = WithMeanMargin::new(batch, f64s(&[m0])).unwrap();
        let config = BetaDpoLossConfig::new().with_beta(beta).with_sensitivity(a);
        let loss = to_vec(config.init().forward(batch).mean())[0];
        assert_relative_eq!(loss, expected, max_relative = 1e-12);
    }
}

#[test]
fn quantiles_and_values_of_reference_samples() {
    // Ties count as not better; a NaN is not a rank.
    let reference = f64s(&[0.0, 1.0, 1.0, 2.0, 0.0, f64::NAN, 1.0, 2.0]).reshape([2, 4]);
    let ours = quantile_scores(f64s(&[1.0, 1.0]), reference.clone()).unwrap();
    let ours = to_vec(ours);
    assert!(ours[0] == 0.75 && ours[1].is_nan(), "{ours:?}");
    let first = reference.clone().narrow(0, 0, 1);
    for (reward, expected) in [(-1.0, 0.0), (0.0, 0.25), (2.0, 1.0), (9.0, 1.0)] {
        let ours = quantile_scores(f64s(&[reward]), first.clone()).unwrap();
        assert_eq!(to_vec(ours), [expected]);
    }
    assert!(to_vec(quantile_scores(f64s(&[f64::NAN]), first.clone()).unwrap())[0].is_nan());

    // β → 0: the highest; β → ∞: the mean. Rewards of 1e4 at β = 1e-3 do not overflow.
    let of = |beta| to_vec(optimal_values(first.clone(), beta).unwrap())[0];
    assert_relative_eq!(of(1e-3), 2.0 - 1e-3 * 4_f64.ln(), epsilon = 1e-12);
    assert_relative_eq!(of(1e6), 1.0, epsilon = 1e-6);
    let large = f64s(&[1e4, -1e4]).reshape([1, 2]);
    let ours = to_vec(optimal_values(large, 1e-3).unwrap())[0];
    assert_relative_eq!(ours, 1e4 - 1e-3 * 2_f64.ln(), epsilon = 1e-9);

    let name = |error: burn_preference::InvalidInput| (error.name(), error.found().to_owned());
    let error = optimal_values(first.clone(), 0.0).unwrap_err();
    assert_eq!(name(error), ("beta", "0".to_owned()));
    let none = Tensor::zeros([1, 0], (&crate::support::device(), DType::F64));
    let error = optimal_values(none, 1.0).unwrap_err();
    assert_eq!(name(error), ("reference", "0".to_owned()));
    let error = quantile_scores(f64s(&[1.0]), reference).unwrap_err();
    assert_eq!(name(error), ("reference", "2".to_owned()));
}

/// The gold completion gets a gradient, and TPO is CPO where the gold one is the chosen one.
#[test]
fn tpo_imitates_the_gold_completion() {
    let pairs = catalogue();
    let gold = leaf(&[-1.0, -2.0, -3.0]);
    let column = sequence(gold.clone(), &[2, 4, 5]);
    let policy = pairs.policy(f64s(&pairs.chosen), f64s(&pairs.rejected));
    let tpo = TpoLossConfig::new().with_sft_weight(0.5).init();
    let output = tpo.forward(WithNll::new(policy.clone(), column).unwrap());
    let grads = to_vec(gold.grad(&output.sum().backward()).unwrap());
    assert_close(&grads, &[-0.25, -0.125, -0.1], 1e-15, "−α/length");

    let own = WithNll::new(policy.clone(), policy.chosen.clone()).unwrap();
    for token in [NllNormalization::Sequence, NllNormalization::Token] {
        let tpo = TpoLossConfig::new().with_beta(0.1);
        let tpo = tpo.with_nll_normalization(token).init();
        let cpo = CpoLossConfig::new().with_nll_normalization(token).init();
        let (tpo, cpo) = (tpo.forward(own.clone()), cpo.forward(own.clone()));
        assert_eq!(to_vec(tpo.losses()), to_vec(cpo.losses()));
    }
    let tpo_l = TpoLossConfig::tpo_l(1.0)
        .with_beta(2.0)
        .with_sft_weight(0.0);
    let simpo = SimpoLossConfig::new().init().forward(policy);
    let tpo_l = tpo_l.init().forward(own);
    assert_eq!(to_vec(tpo_l.losses()), to_vec(simpo.losses()));
}
