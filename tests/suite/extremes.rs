//! What no formula was written for: log-probs of −1e30, infinities, NaN, completions of a million
//! tokens, batches of nothing.
//!
//! Powers of two, so that sums of very different sizes and products with β round the same way in
//! the crate and in the scalar code: what is compared is the formula, not the order of its steps.

use burn::tensor::{DType, Tensor};
use burn_preference::batch::{optimal_values, quantile_scores};
use burn_preference::{
    ApoZeroLossConfig, AsftLossConfig, AstarPoLossConfig, BcoLossConfig, BradleyTerryLossConfig,
    DroLossConfig, IpoLossConfig, KlEstimate, KtoLossConfig, LipoLossConfig, LossOutput,
    NpoLossConfig, Objective, OrpoLossConfig, PlackettLuceLossConfig, PolicyPair, QrpoLossConfig,
    Ranked, RelativeLogProbs, RewardPair, RewardRankingLossConfig, Scored, SdpoLossConfig,
    SimnpoLossConfig, TokenLogProbs, Unpaired, WithBaseline, WithPreference, WithShift, WithValue,
};
use proptest::prelude::*;
use proptest::sample::select;

use crate::scalar::{self, Row};
use crate::subjects::{self, MAX_EXPONENT, PairSubject};
use crate::support::{
    Candidate, Lists, PairResult, Pairs, ZipEqual, assert_close, bools, cases, dtypes, error, f64s,
    floats, ints, sequence, to_vec, tolerance, wide_dtypes,
};

/// 2¹⁰⁰ ≈ 1.3e30, 2⁻²⁰ ≈ 1e-6.
fn power(exponent: i32) -> f64 {
    2_f64.powi(exponent)
}

fn log_prob() -> impl Strategy<Value = f64> {
    select(vec![
        -0.0,
        -power(-100),
        -power(-20),
        -0.5,
        -1.0,
        -3.0,
        -power(10),
        -power(17),
        -power(50),
        -power(100),
    ])
}

fn beta() -> impl Strategy<Value = f64> {
    (-20..=10_i32).prop_map(power)
}

fn length() -> impl Strategy<Value = usize> {
    select(vec![0, 1, 2, 64, 1 << 10, 1 << 20])
}

prop_compose! {
    fn any_row(log_prob: fn() -> BoxedStrategy<f64>)(
        w in log_prob(), l in log_prob(), ref_w in log_prob(), ref_l in log_prob(),
        len_w in length(), len_l in length(),
    ) -> Row {
        // Nothing is the log-prob of an empty completion but 0.
        let of = |x: f64, len: usize| if len == 0 && x.is_finite() { 0.0 } else { x };
        Row { w: of(w, len_w), l: of(l, len_l), ref_w: of(ref_w, len_w), ref_l: of(ref_l, len_l), len_w, len_l }
    }
}

fn finite() -> BoxedStrategy<f64> {
    log_prob().boxed()
}

fn anything() -> BoxedStrategy<f64> {
    let special = select(vec![f64::NEG_INFINITY, f64::INFINITY, f64::NAN]);
    prop_oneof![3 => log_prob(), 2 => special].boxed()
}

fn pairs_of(rows: &[Row]) -> Pairs {
    Pairs {
        chosen: rows.iter().map(|r| r.w).collect(),
        rejected: rows.iter().map(|r| r.l).collect(),
        ref_chosen: rows.iter().map(|r| r.ref_w).collect(),
        ref_rejected: rows.iter().map(|r| r.ref_l).collect(),
        chosen_len: rows.iter().map(|r| r.len_w).collect(),
        rejected_len: rows.iter().map(|r| r.len_l).collect(),
    }
}

fn run(subject: &PairSubject, pairs: &Pairs, dtype: DType) -> PairResult {
    pairs.run_on(dtype, |w, l| (subject.forward)(pairs.referenced(w, l)))
}

/// Where a number must be finite: where its true value fits the type with room for the terms that
/// it is made of.
fn fits(expected: f64, dtype: DType) -> bool {
    expected.abs() < if dtype == DType::F64 { 1e290 } else { 1e37 }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn finite_log_probs_give_the_loss_or_nothing_that_looks_like_one(
        rows in prop::collection::vec(any_row(finite), 0..4),
        beta in beta(),
    ) {
        let pairs = pairs_of(&rows);
        for subject in subjects::pairs(beta) {
            let name = subject.name;
            let expected = subject.losses(&rows);
            for dtype in wide_dtypes() {
                let ours = run(&subject, &pairs, dtype);
                // Means and differences over a batch of such numbers mean nothing in f32.
                if dtype == DType::F32 && !subject.laws.per_example && rows.len() > 1 {
                    continue;
                }
                for (i, &expected) in expected.iter().enumerate() {
                    let loss = ours.losses[i];
                    let grads = [ours.grads.chosen[i], ours.grads.rejected[i]];
                    let rewards = subject.rewards(rows[i]);
                    let held = subject.is_held(rows[i]);
                    // e^80 times β, over an α of 1e-3.
                    let fits = if held {
                        fits(MAX_EXPONENT.exp() * 1e3 * beta, dtype)
                    } else {
                        [expected, rewards[0], rewards[1]].iter().all(|&x| fits(x, dtype))
                    };
                    if !fits {
                        continue;
                    }
                    prop_assert!(
                        loss.is_finite() && grads.iter().all(|g| g.is_finite()),
                        "{name} in {dtype:?}: {loss} and {grads:?} of {:?}, expected {expected}", rows[i]
                    );
                    // f32 rounds ratios of such numbers long before an objective sees them, h-DPO
                    // multiplies before it subtracts, and log-odds are held at 0.
                    let rounded = ["h-dpo", "orpo", "asft"].contains(&name);
                    if dtype == DType::F64 && !rounded && !held {
                        prop_assert!(
                            error(loss, expected) < 1e-9,
                            "{name}: {loss} instead of {expected} of {:?}", rows[i]
                        );
                    }
                }
            }
        }
    }

    /// Infinities and NaN: the limit, an infinity or NaN, and never another number.
    #[test]
    fn what_is_not_finite_never_looks_like_a_loss(
        row in any_row(anything),
        beta in beta(),
    ) {
        let pairs = pairs_of(&[row]);
        for subject in subjects::pairs(beta) {
            let name = subject.name;
            let rows = [row];
            let expected = subject.losses(&rows)[0];
            // Which log-probs an objective reads: those whose change changes its loss at a
            // moderate point.
            let reads = reads(&subject);
            let read = [row.w, row.l, row.ref_w, row.ref_l].into_iter().zip(reads);
            let read: Vec<f64> = read.filter_map(|(x, read)| read.then_some(x)).collect();
            if read.iter().all(|x| x.is_finite()) {
                continue;
            }
            // A bound is for large numbers: ∞ passes it.
            let exponent = subject.exponent(row).unwrap_or(0.0);
            for dtype in wide_dtypes() {
                let loss = run(&subject, &pairs, dtype).losses[0];
                if read.iter().any(|x| x.is_nan()) {
                    prop_assert!(loss.is_nan(), "{name} in {dtype:?}: {loss} of {row:?}");
                } else if loss.is_finite() && !(subject.is_held(row) && exponent.is_finite()) {
                    let limit = limit(&subject, row);
                    // Neither: a finite limit that is too large for the type, or none.
                    if !limit.is_infinite() && !fits(limit, dtype) {
                        continue;
                    }
                    let close = |x| error(loss, x) < tolerance(dtype);
                    prop_assert!(
                        close(limit) || close(expected),
                        "{name} in {dtype:?}: {loss} of {row:?}, limit {limit}, scalar code {expected}"
                    );
                }
            }
        }
    }
}

/// A pair in no way extreme.
const ORDINARY: Row = Row {
    w: -3.0,
    l: -2.0,
    ref_w: -2.5,
    ref_l: -4.0,
    len_w: 2,
    len_l: 3,
};

/// Which of w, l, ref_w, ref_l the loss depends on.
fn reads(subject: &PairSubject) -> [bool; 4] {
    let loss = |row: Row| subject.losses(&[row])[0];
    let moved: [fn(&mut Row) -> &mut f64; 4] = [
        |r| &mut r.w,
        |r| &mut r.l,
        |r| &mut r.ref_w,
        |r| &mut r.ref_l,
    ];
    moved.map(|side| {
        [-7.0, -0.25, 0.25, 7.0].into_iter().any(|by| {
            let mut row = ORDINARY;
            *side(&mut row) += by;
            loss(row) != loss(ORDINARY)
        })
    })
}

/// The loss where infinities are huge numbers instead.
fn limit(subject: &PairSubject, row: Row) -> f64 {
    let huge = |x: f64| x.clamp(-1e250, 1e250);
    let row = Row {
        w: huge(row.w),
        l: huge(row.l),
        ref_w: huge(row.ref_w),
        ref_l: huge(row.ref_l),
        ..row
    };
    subject.losses(&[row])[0]
}

/// Up to an exponent of 80 a loss is its formula; beyond it is constant, and the exponential has no
/// gradient. In f32 as well it is finite.
#[test]
fn exponents_are_held_at_80() {
    let mut found = 0;
    for subject in subjects::pairs(0.25) {
        let name = subject.name;
        if subject.exponent(ORDINARY).is_none() {
            continue;
        }
        let exponent = |row: Row| subject.exponent(row).unwrap();
        for (side, sign) in [(0, -1.0), (0, 1.0), (1, -1.0), (1, 1.0)] {
            let moved = |by: f64| {
                let mut row = ORDINARY;
                *[&mut row.w, &mut row.l][side] += sign * by;
                row
            };
            // The row of an exponent, by bisection.
            let at = |target: f64| {
                let (mut low, mut high) = (0.0, 1e7);
                for _ in 0..200 {
                    let middle = 0.5 * (low + high);
                    if exponent(moved(middle)) < target {
                        low = middle;
                    } else {
                        high = middle;
                    }
                }
                moved(low)
            };
            if exponent(moved(1e7)) < 600.0 {
                continue;
            }
            found += 1;
            let loss = |target: f64, dtype| {
                let ours = run(&subject, &pairs_of(&[at(target)]), dtype);
                (
                    ours.losses[0],
                    [ours.grads.chosen[0], ours.grads.rejected[0]][side],
                )
            };
            for target in [40.0, 79.9] {
                let row = at(target);
                let expected = subject.losses(&[row])[0];
                let (ours, _) = loss(target, DType::F64);
                assert!(
                    error(ours, expected) < 1e-9,
                    "{name}: {ours} instead of {expected}"
                );
            }
            for dtype in wide_dtypes() {
                let (just_beyond, _) = loss(80.1, dtype);
                for target in [80.1, 200.0, 600.0] {
                    let (ours, grad) = loss(target, dtype);
                    let what = format!("{name} at {target} in {dtype:?}: {ours}, {grad}");
                    assert!(ours.is_finite(), "{what}");
                    assert!(error(ours, just_beyond) < tolerance(dtype), "{what}");
                    // That of the formula is as large as the loss.
                    assert!(grad.abs() <= 1e-9 * ours.abs().max(1.0), "{what}");
                }
            }
        }
    }
    assert!(found > 50, "{found} held exponents");
}

/// The bounds of single objectives, each where its documentation says.
#[test]
fn bounds_of_single_objectives() {
    // LiPO: gains are constant from e^60 on.
    let lipo = LipoLossConfig::new().init();
    let of = |score: f64| {
        let list = Lists {
            candidates: 2,
            sums: vec![-1.0, -2.0],
            references: vec![0.0; 2],
            lengths: vec![1; 2],
            scores: vec![score, 0.0],
            present: vec![true; 2],
        };
        list.run_on(DType::F64, |batch| lipo.forward(batch)).0[0]
    };
    let e60 = 60.0 / std::f64::consts::LN_2;
    let weight = of(1.0);
    assert!(error(of(e60 - 0.01) / weight, (e60 - 0.01).exp2()) < 1e-9);
    for score in [e60 + 0.01, 200.0, 1e4] {
        assert!(error(of(score) / weight, 60_f64.exp()) < 1e-9, "{score}");
    }

    for dtype in wide_dtypes() {
        // IPO: the square is constant from 1e18 on in f32; f64 has room for more.
        let largest = if dtype == DType::F64 { 1e150 } else { 1e18 };
        let ipo = IpoLossConfig::paper().init();
        let pair = |w: (f64, usize), l: (f64, usize)| Pairs {
            chosen: vec![w.0],
            rejected: vec![l.0],
            ref_chosen: vec![0.0],
            ref_rejected: vec![0.0],
            chosen_len: vec![w.1],
            rejected_len: vec![l.1],
        };
        for factor in [1.001, 10.0, 1e9] {
            let ours = pair((-largest * factor, 1), (0.0, 1)).run(&ipo, dtype);
            assert!(error(ours.losses[0] / largest, largest) < tolerance(dtype));
            assert_eq!((ours.grads.chosen[0], ours.grads.rejected[0]), (0.0, 0.0));
        }

        // ORPO and ASFT: a completion of probability 1, or an empty one, has log-odds of
        // ln(1/1e-30), and no gradient of them. That of the NLL is left.
        let held = 30.0 * 10_f64.ln();
        let half = (-0.5, 1);
        let odds = scalar::odds(-0.5);
        let close = |ours: &PairResult, expected: f64, what: &str| {
            assert_close(&ours.losses, &[expected], tolerance(dtype), what);
        };
        for length in [0, 1] {
            let certain = (0.0, length);
            let orpo = OrpoLossConfig::new().with_odds_ratio_weight(2.0).init();
            let ours = pair(certain, half).run_policy(&orpo, dtype);
            close(&ours, -2.0 * scalar::ln_sigmoid(held - odds), "orpo");
            assert_eq!(ours.grads.chosen, [-1.0]);
            let ours = pair(half, certain).run_policy(&orpo, dtype);
            close(&ours, 0.5 - 2.0 * scalar::ln_sigmoid(odds - held), "orpo");
            assert_eq!(ours.grads.rejected, [0.0]);

            let asft = AsftLossConfig::new().with_alignment_weight(2.0).init();
            let ours = pair(half, certain).run_policy(&asft, dtype);
            close(&ours, 3.0 * 0.5 + 2.0 * held, "asft");
            assert_eq!(ours.grads.rejected, [0.0]);
        }
    }
}

fn any_list(log_prob: fn() -> BoxedStrategy<f64>) -> impl Strategy<Value = Vec<Candidate>> {
    let score = select(vec![-power(20), -1.5, -0.0, 0.25, 1.0, 2.0, 16.0]);
    let candidate = (
        log_prob(),
        log_prob(),
        length(),
        score,
        prop::bool::weighted(0.8),
    );
    prop::collection::vec(candidate, 1..=64)
}

fn present(candidates: &[Candidate]) -> scalar::List {
    let there = candidates.iter().filter(|c| c.4);
    let (mut list, empty) = (scalar::List::default(), scalar::List::default());
    for &(sum, reference, length, score, _) in there {
        list.sums.push(sum);
        list.references.push(reference);
        list.lengths.push(length);
        list.scores.push(score);
    }
    if list.len() == 0 { empty } else { list }
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn lists_of_finite_log_probs(list in any_list(finite), beta in beta()) {
        let scalar = present(&list);
        for subject in subjects::lists(beta) {
            let name = subject.name;
            let expected = if scalar.len() == 0 { 0.0 } else { subject.loss(&scalar) };
            for dtype in wide_dtypes() {
                let (losses, _, grads) = Lists::of_one(&list).run_on(dtype, &subject.forward);
                if !fits(expected, dtype) {
                    continue;
                }
                prop_assert!(
                    losses[0].is_finite() && grads.iter().all(|g| g.is_finite()),
                    "{name} in {dtype:?}: {losses:?} and {grads:?}, expected {expected}"
                );
                if dtype == DType::F64 {
                    prop_assert!(
                        error(losses[0], expected) < 1e-8,
                        "{name}: {} instead of {expected}", losses[0]
                    );
                }
            }
        }
    }

    /// A NaN of a candidate that is there, in its log-prob or its score, comes out; one of an
    /// absent candidate does not.
    #[test]
    fn lists_with_nan(
        mut list in any_list(finite),
        at in any::<prop::sample::Index>(),
        in_score in any::<bool>(),
    ) {
        let at = at.index(list.len());
        let present = list[at].4;
        if in_score {
            list[at].3 = f64::NAN;
        } else {
            list[at].0 = f64::NAN;
        }
        for subject in subjects::lists(0.25) {
            let name = subject.name;
            for dtype in wide_dtypes() {
                let (losses, ..) = Lists::of_one(&list).run_on(dtype, &subject.forward);
                if present {
                    prop_assert!(losses[0].is_nan(), "{name} in {dtype:?}: {losses:?}");
                } else if dtype == DType::F64 {
                    let scalar = self::present(&list);
                    let expected =
                        if scalar.len() == 0 { 0.0 } else { subject.loss(&scalar) };
                    prop_assert!(
                        error(losses[0], expected) < 1e-8 || !fits(expected, dtype),
                        "{name}: {losses:?} instead of {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn single_completions(
        rows in prop::collection::vec((anything(), anything(), length(), any::<bool>()), 0..5),
        baseline in anything(),
        beta in beta(),
    ) {
        let lengths: Vec<usize> = rows.iter().map(|r| r.2).collect();
        let [policy, reference] = [0, 1].map(|side| -> Vec<f64> {
            rows.iter().map(|r| if side == 0 { r.0 } else { r.1 }).collect()
        });
        let labels: Vec<bool> = rows.iter().map(|r| r.3).collect();
        let sign = |i: usize| if labels[i] { 1.0 } else { -1.0 };
        for dtype in wide_dtypes() {
            let batch = || {
                let theirs = sequence(floats(&reference, dtype), &lengths);
                sequence(floats(&policy, dtype), &lengths).relative_to(theirs).unwrap()
            };
            let unpaired = || Unpaired::new(batch(), bools(&labels)).unwrap();
            let check = |name: &str, output: LossOutput<Tensor<1>>, loss: &dyn Fn(usize, [f64; 3]) -> f64| {
                for (i, ours) in to_vec(output.losses()).into_iter().enumerate() {
                    let inputs = [policy[i], reference[i], baseline];
                    let expected = loss(i, inputs);
                    let limit = loss(i, inputs.map(|x| x.clamp(-1e250, 1e250)));
                    let what = format!("{name} in {dtype:?}: {ours} of {inputs:?}, limit {limit}");
                    if expected.is_nan() && inputs.iter().any(|x| x.is_nan()) {
                        assert!(ours.is_nan(), "{what}");
                    } else if inputs.iter().all(|x| x.is_finite()) && fits(limit, dtype) {
                        assert!(ours.is_finite(), "{what}");
                    }
                    if ours.is_finite() && dtype == DType::F64 {
                        assert!(error(ours, limit) < 1e-9, "{what}");
                    }
                }
            };
            let kto = KtoLossConfig::new().with_beta(beta).init();
            let column = || floats(&[baseline], dtype);
            let output = kto.forward(WithBaseline::new(unpaired(), column()).unwrap());
            check("kto", output, &|i, [policy, reference, baseline]| {
                scalar::sigmoid(-sign(i) * beta * ((policy - reference) - baseline))
            });
            let bco = BcoLossConfig::new().with_beta(beta).init();
            let output = bco.forward(WithShift::new(unpaired(), column()).unwrap());
            check("bco", output, &|i, [policy, reference, shift]| {
                -scalar::ln_sigmoid(sign(i) * (beta * (policy - reference) - shift))
            });
            let apo = ApoZeroLossConfig::new().with_beta(beta).init();
            check("apo zero", apo.forward(unpaired()), &|i, [policy, reference, _]| {
                scalar::sigmoid(-sign(i) * beta * (policy - reference))
            });
            let npo = NpoLossConfig::new().with_beta(beta).init();
            check("npo", npo.forward(batch()), &|_, [policy, reference, _]| {
                -2.0 / beta * scalar::ln_sigmoid(-beta * (policy - reference))
            });
            let scored = || {
                let scores = floats(&vec![0.5; rows.len()], dtype);
                Scored::new(batch(), scores).unwrap()
            };
            let with_value = || {
                let value = floats(&vec![baseline; rows.len()], dtype);
                WithValue::new(scored(), value).unwrap()
            };
            let dro = DroLossConfig::new().with_tau(beta).init();
            check("dro", dro.forward(with_value()), &|_, [policy, reference, value]| {
                0.5 * ((0.5 - value) - beta * (policy - reference)).powi(2)
            });
            let astar_po = AstarPoLossConfig::new().with_beta(beta).init();
            check("a*-po", astar_po.forward(with_value()), &|_, [policy, reference, value]| {
                ((0.5 - value) - beta * (policy - reference)).powi(2)
            });
            let qrpo = QrpoLossConfig::new().with_beta(beta).init();
            // β·ln Z of 1 + β·ln β + β·ln(1 − e^(−1/β)).
            let value = 1.0 + beta * beta.ln() + beta * (-(-1.0 / beta).exp_m1()).ln();
            check("qrpo", qrpo.forward(scored()), &|_, [policy, reference, _]| {
                ((0.5 - value) - beta * (policy - reference)).powi(2)
            });
            let simnpo = SimnpoLossConfig::new().with_beta(beta).init();
            check("simnpo", simnpo.forward(batch().policy().clone()), &|i, [policy, ..]| {
                -2.0 / beta * scalar::ln_sigmoid(-beta * policy / lengths[i].max(1) as f64)
            });
        }
    }
}

#[test]
fn a_baseline_of_nan_stays_nan() {
    let relative = |policy: f64| -> RelativeLogProbs {
        let theirs = sequence(f64s(&[-1.0, -2.0]), &[1, 1]);
        sequence(f64s(&[policy, -2.0]), &[1, 1])
            .relative_to(theirs)
            .unwrap()
    };
    let z0 = |policy: f64| to_vec(KlEstimate::from_mismatched(&relative(policy)).baseline())[0];
    assert!(z0(f64::NAN).is_nan(), "not max(0, NaN) = 0");
    assert_eq!(z0(f64::NEG_INFINITY), 0.0);
    assert_eq!(z0(f64::INFINITY), f64::INFINITY);
}

/// A completion of a million tokens is summed in f32 without losing them.
#[test]
fn a_million_tokens() {
    let tokens = 1_000_000;
    for dtype in wide_dtypes() {
        let log_probs = Tensor::<2>::full([1, tokens], -0.3, (&crate::support::device(), dtype));
        let mask = log_probs.clone().lower_elem(0.0);
        let ours = TokenLogProbs::new(log_probs, mask).unwrap().sequence();
        assert_eq!(to_vec(ours.lengths()), [1e6]);
        // 0.3 in f32 is 0.3 + 1.2e-8.
        assert_close(&to_vec(ours.sum()), &[-3e5], 1e-6, "Σ ln π");
        assert_close(&to_vec(ours.mean()), &[-0.3], 1e-6, "mean");
    }
}

/// Every batch of nothing has a loss of 0, by every reduction.
#[test]
fn batches_of_nothing() {
    for dtype in wide_dtypes() {
        let none = || sequence(floats(&[], dtype), &[]);
        let pair = PolicyPair::new(none(), none()).unwrap();
        let relative = pair.clone().relative_to(pair).unwrap();
        for subject in subjects::pairs(0.25) {
            let output = (subject.forward)(relative.clone());
            let reduced = [
                output.mean(),
                output.sum(),
                output.weighted_mean(floats(&[], dtype)).unwrap(),
                output.robust_mean(1.0).unwrap(),
                output.normalized_by(3.0).unwrap(),
            ];
            assert!(
                reduced.into_iter().all(|x| to_vec(x) == [0.0]),
                "{}",
                subject.name
            );
        }
        for subject in subjects::lists(0.25) {
            for candidates in [1, 64] {
                let lists = Lists {
                    candidates,
                    sums: vec![],
                    references: vec![],
                    lengths: vec![],
                    scores: vec![],
                    present: vec![],
                };
                let (losses, rewards, grads) = lists.run_on(dtype, &subject.forward);
                assert!(
                    [losses, rewards, grads].concat().is_empty(),
                    "{}",
                    subject.name
                );
            }
        }
        let (policy, reference) = (none(), none());
        let baseline = KlEstimate::from_mismatched(&policy.relative_to(reference).unwrap());
        assert_eq!(to_vec(baseline.baseline()), [0.0]);
    }
    assert_eq!(ints(&[]).dims(), [0]);
}

/// Lists of two are pairs, in f32 as well: at any level, and with both gradients where one is far
/// ahead.
#[test]
fn lists_of_two_are_pairs() {
    let floats = |values: &[f64]| floats(values, DType::F32).autodiff().require_grad();
    for (w, l) in [
        (1.0, 0.0),
        (1e3 + 1.0, 1e3),
        (1e7 + 1.0, 1e7),
        (10.0, 0.0),
        (20.0, 0.0),
        (50.0, 0.0),
        (0.0, 50.0),
        (0.0, 1e4),
    ] {
        let check = |name: &str, ours: [f64; 3], pair: [f64; 3]| {
            for (a, b) in ours.into_iter().zip_equal(pair) {
                assert!(
                    (a - b).abs() <= 2e-6 * b.abs(),
                    "{name} of {w}, {l}: {ours:?} {pair:?}"
                );
            }
        };
        let leaves = [floats(&[w]), floats(&[l])];
        let numbers = |loss: Tensor<1>, leaves: [&Tensor<1>; 2]| {
            let grads = loss.clone().sum().backward();
            let [a, b] = leaves.map(|leaf| to_vec(leaf.grad(&grads).unwrap())[0]);
            [to_vec(loss)[0], a, b]
        };
        let pair = RewardPair::new(leaves[0].clone(), leaves[1].clone()).unwrap();
        let loss = BradleyTerryLossConfig::new().init().forward(pair).losses();
        let expected = numbers(loss, [&leaves[0], &leaves[1]]);

        let list = |x: &[Tensor<1>; 2]| Tensor::cat(x.to_vec(), 0).reshape([1, 2]);
        let scores = || f64s(&[1.0, 0.0]).reshape([1, 2]);
        let present = || bools(&[true, true]).reshape([1, 2]);
        let ranked = Ranked::new(list(&leaves), scores(), present()).unwrap();
        let loss = RewardRankingLossConfig::new().init().forward(ranked);
        check(
            "ranking",
            numbers(loss.losses(), [&leaves[0], &leaves[1]]),
            expected,
        );

        let of = || sequence(Tensor::cat(leaves.to_vec(), 0), &[1, 1]);
        let nothing = sequence(floats(&[0.0, 0.0]), &[1, 1]);
        let relative = || {
            of().relative_to(nothing.clone())
                .unwrap()
                .split_candidates(2)
                .unwrap()
        };
        let ranked = || Ranked::new(relative(), scores(), present()).unwrap();
        let loss = SdpoLossConfig::new().init().forward(ranked());
        check(
            "S-DPO",
            numbers(loss.losses(), [&leaves[0], &leaves[1]]),
            expected,
        );
        let loss = PlackettLuceLossConfig::new()
            .with_beta(1.0)
            .init()
            .forward(ranked());
        check(
            "Plackett-Luce",
            numbers(loss.losses(), [&leaves[0], &leaves[1]]),
            expected,
        );
    }
    // A loser of −∞ is the limit.
    let candidates = floats(&[0.0, f64::NEG_INFINITY]).reshape([1, 2]);
    let scores = f64s(&[1.0, 0.0]).reshape([1, 2]);
    let ranked = Ranked::new(candidates, scores, bools(&[true, true]).reshape([1, 2])).unwrap();
    let loss = RewardRankingLossConfig::new()
        .init()
        .forward(ranked)
        .losses();
    assert_eq!(to_vec(loss), [0.0]);
}

/// Values, quantiles and targets of scalar rewards where their formulas would round.
#[test]
fn baselines_of_scalar_rewards() {
    for dtype in [DType::F32, DType::F64] {
        let value = |rewards: &[f64], beta: f64| {
            let rewards = floats(rewards, dtype).reshape([1, rewards.len()]);
            to_vec(optimal_values(rewards, beta).unwrap())[0]
        };
        for beta in [1e5, 1e8, 1e30] {
            // The mean, and half the variance over β.
            let check = |rewards: &[f64], mean: f64, variance: f64| {
                let (ours, limit) = (value(rewards, beta), mean + variance / (2.0 * beta));
                assert!(
                    (ours - limit).abs() < 1e-6 * limit,
                    "{ours} {limit} at {beta}"
                );
            };
            check(&[0.0, 1.0], 0.5, 0.25);
            check(&[5.0, 5.0], 5.0, 0.0);
            check(&[100.0, 300.0], 200.0, 1e4);
        }
        assert!((value(&[100.0, 300.0], 1e-37) - 300.0).abs() < 1e-3);
        let infinity = f64::INFINITY;
        assert_eq!(value(&[0.0, infinity], 0.5), infinity);
        assert_eq!(value(&[-infinity, -infinity], 0.5), -infinity);
        assert!(value(&[0.0, f64::NAN], 0.5).is_nan());
    }
    // Half-precision rewards beside samples that are not.
    if dtypes().contains(&DType::BF16) {
        let rewards = floats(&[1.001], DType::BF16);
        let reference = floats(&[1.002, 1.003], DType::F32).reshape([1, 2]);
        assert_eq!(to_vec(quantile_scores(rewards, reference).unwrap()), [0.0]);
    }

    // The target is not rounded to the scores' type.
    for dtype in dtypes() {
        let rho = floats(&[5.5], DType::F32).autodiff().require_grad();
        let nothing = sequence(floats(&[0.0], DType::F32), &[1]);
        let relative = sequence(rho.clone(), &[1]).relative_to(nothing).unwrap();
        let scored = Scored::new(relative, floats(&[1.0], dtype)).unwrap();
        let loss = QrpoLossConfig::new().init().forward(scored).sum();
        let grad = to_vec(rho.grad(&loss.clone().backward()).unwrap())[0];
        // 1 − β·ln Z − β·ρ of β = 3e-3: Z = β·e^(1/β), so that 1 − 1 − 3e-3·ln 3e-3 − 0.0165.
        let residual = -3e-3 * 3e-3_f64.ln() - 0.0165;
        assert!(
            (to_vec(loss)[0] - residual * residual).abs() < 2e-10,
            "{dtype:?}"
        );
        assert!(
            (grad + 2.0 * 3e-3 * residual).abs() < 1e-9,
            "{dtype:?}: {grad}"
        );
    }
    // A large reward beside a large value.
    let relative = sequence(f64s(&[0.0]), &[1]).relative_to(sequence(f64s(&[0.0]), &[1]));
    let scored = Scored::new(relative.unwrap(), f64s(&[1e8 + 0.5])).unwrap();
    let batch = WithValue::new(scored, f64s(&[1e8])).unwrap();
    assert_eq!(
        to_vec(DroLossConfig::new().init().forward(batch).losses()),
        [0.125]
    );

    // A certain label at an infinite margin is the plain loss.
    let pair = RewardPair::new(f64s(&[f64::INFINITY]), f64s(&[0.0])).unwrap();
    let certain = WithPreference::new(pair, f64s(&[1.0])).unwrap();
    assert_eq!(
        to_vec(
            BradleyTerryLossConfig::new()
                .init()
                .forward(certain)
                .losses()
        ),
        [0.0]
    );
}
