//! The same numbers on every device: objectives, laws, the head and a training step in every
//! number type that the device of `BURN_PREFERENCE_DEVICE` has, against plain f64.
//!
//! `tests/suite` says more, but in f64; this is what a GPU can be held to.

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "of the formulas, those of the tests below")]
#[path = "../suite/dual.rs"]
mod dual;
#[allow(dead_code, reason = "as above")]
#[path = "../suite/formulas.rs"]
mod formulas;
#[path = "../suite/problem.rs"]
mod problem;
#[allow(dead_code, reason = "as above")]
#[path = "../suite/scalar.rs"]
mod scalar;
#[path = "../suite/subjects.rs"]
mod subjects;
#[path = "../suite/two_models.rs"]
mod two_models;

use burn::module::{Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Bool, DType, Device, Int, Tensor};
use burn_preference::{
    Advantage, ApoZeroLossConfig, AstarPoLossConfig, BatchMetrics, BradleyTerryLossConfig,
    Demonstrations, DpoLossConfig, DroLossConfig, Frozen, GroupedReward, GrpoLossConfig,
    KlEstimate, KtoLossConfig, LmHead, NllNormalization, NpoLossConfig, Objective, OrpoLossConfig,
    PolicyPair, QrpoLossConfig, RewardPair, Samples, Scored, SftLossConfig, SftTerm, TokenLogProbs,
    TokenWeighting, Unpaired, WithStepTokens, WithValue,
    batch::{optimal_values, quantile_scores},
    log_probs::TokenDiscrepancy,
    math::{bounded_expm1, log_odds, log1mexp, softplus},
};

use burn_preference::config::ObjectiveConfig;
use dual::Dual;
use formulas::{Completion, Marks};
use problem::{FROZEN, How, LAYOUTS, Problem, REFERENCE, Shaping, TRAINABLE};
use scalar::Row;
use subjects::rows;
use support::{
    Lists, PairResult, Pairs, UnpairedCompletions, ZipEqual, assert_close, bools, device, dtypes,
    floats, keeps_nan, sequence, to_vec, tolerance, wide_dtypes,
};
use two_models::{KINDS, TwoModels};

/// A power of two, so that f32 holds it.
const BETA: f64 = 0.25;

/// Seven pairs whose numbers every type holds exactly, with empty and long completions.
fn pairs() -> Pairs {
    let lengths_w = [3, 8, 1, 20, 5, 2, 0];
    let lengths_l = [4, 1, 16, 6, 5, 0, 3];
    let ratios_w = [2.0, -1.5, 0.0, 3.25, -4.0, 0.5, 0.0];
    let ratios_l = [-8.0, 1.0, 0.0, 3.0, 0.75, 0.0, -2.5];
    let sums = |lengths: &[usize; 7], per_token: f64| -> Vec<f64> {
        let sum = |(i, &n): (usize, &usize)| -(n as f64) * (per_token + i as f64 / 8.0);
        lengths.iter().enumerate().map(sum).collect()
    };
    let (chosen, rejected) = (sums(&lengths_w, 0.5), sums(&lengths_l, 1.0));
    let reference = |sums: &[f64], ratios: [f64; 7]| -> Vec<f64> {
        sums.iter()
            .zip(ratios)
            .map(|(x, ratio)| x - ratio)
            .collect()
    };
    Pairs {
        ref_chosen: reference(&chosen, ratios_w),
        ref_rejected: reference(&rejected, ratios_l),
        chosen,
        rejected,
        chosen_len: lengths_w.to_vec(),
        rejected_len: lengths_l.to_vec(),
    }
}

fn run(subject: &subjects::PairSubject, pairs: &Pairs, dtype: DType) -> PairResult {
    pairs.run_on(dtype, |w, l| (subject.forward)(pairs.referenced(w, l)))
}

/// Losses, rewards and gradients of every objective over pairs.
#[test]
fn pairs_match_the_scalar_code() {
    let pairs = pairs();
    let rows = rows(&pairs);
    for dtype in wide_dtypes() {
        for subject in subjects::pairs(BETA) {
            let name = format!("{} in {dtype:?}", subject.name);
            let ours = run(&subject, &pairs, dtype);
            let expected = subject.losses(&rows);
            for (i, row) in rows.iter().enumerate() {
                // The log-odds of an empty completion are held where no formula says what they are.
                let of_odds = ["orpo", "asft"].contains(&subject.name);
                let held = of_odds && (row.len_w == 0 || row.len_l == 0);
                if held || subject.is_held(*row) {
                    assert!(ours.losses[i].is_finite(), "{name}");
                    continue;
                }
                let expected_rewards = subject.rewards(*row);
                let rewards = [ours.rewards.chosen[i], ours.rewards.rejected[i]];
                assert_close(&[ours.losses[i]], &[expected[i]], tolerance(dtype), &name);
                assert_close(&rewards, &expected_rewards, tolerance(dtype), &name);

                let grads = [ours.grads.chosen[i], ours.grads.rejected[i]];
                assert_close(&grads, &subject.gradient(&rows, i), tolerance(dtype), &name);
            }
        }
    }
}

/// What every device keeps beyond the formulas: order, shifts and the start of training.
#[test]
fn laws_of_pairs() {
    let pairs = pairs();
    for dtype in wide_dtypes() {
        for subject in subjects::pairs(BETA) {
            let losses = |pairs: &Pairs| run(&subject, pairs, dtype).losses;
            let plain = losses(&pairs);
            let check = |other: &[f64], expected: &[f64], law: &str| {
                let name = format!("{}, {law}, in {dtype:?}", subject.name);
                assert_close(other, expected, tolerance(dtype), &name);
            };
            let shifted = |chosen: f64, rejected: f64, ref_chosen: f64, ref_rejected: f64| {
                let by = |values: &[f64], d: f64| values.iter().map(|x| x + d).collect();
                losses(&Pairs {
                    chosen: by(&pairs.chosen, chosen),
                    rejected: by(&pairs.rejected, rejected),
                    ref_chosen: by(&pairs.ref_chosen, ref_chosen),
                    ref_rejected: by(&pairs.ref_rejected, ref_rejected),
                    ..pairs.clone()
                })
            };
            if subject.laws.per_example {
                let first = pairs.map(|v| v[..3].to_vec(), |v| v[..3].to_vec());
                check(&losses(&first), &plain[..3], "a smaller batch");
            }
            if subject.laws.ratio_only {
                check(&shifted(-2.0, 0.0, -2.0, 0.0), &plain, "ρ_w alone");
                check(&shifted(0.0, -0.5, 0.0, -0.5), &plain, "ρ_l alone");
            }
            if subject.laws.prompt_shift {
                check(
                    &shifted(-4.0, -4.0, 0.0, 0.0),
                    &plain,
                    "shift of the prompt",
                );
            }
            if subject.laws.monotone {
                // Log-probs stay ≤ 0 where a log-odds is taken of them.
                let better = shifted(0.25, 0.0, 0.0, 0.0);
                for (a, b) in better[..5].iter().zip_equal(&plain[..5]) {
                    let slack = tolerance(dtype) * (1.0 + b.abs());
                    assert!(
                        *a <= b + slack,
                        "{}: a larger margin costs more",
                        subject.name
                    );
                }
            }
            if let Some(expected) = subject.laws.at_reference {
                let equal = Pairs {
                    ref_chosen: pairs.chosen.clone(),
                    ref_rejected: pairs.rejected.clone(),
                    ..pairs.clone()
                };
                check(
                    &losses(&equal),
                    &vec![expected; pairs.len()],
                    "policy = reference",
                );
            }
        }
    }
}

#[test]
fn lists_match_the_scalar_code() {
    let (candidates, lists) = (5, 3);
    let n = candidates * lists;
    let lengths: Vec<usize> = (0..n).map(|i| i * 7 % 11).collect();
    let sums: Vec<f64> = lengths.iter().map(|&n| -0.75 * n as f64 - 0.125).collect();
    let batch = Lists {
        candidates,
        references: (0..n)
            .map(|i| sums[i] - (i * 5 % 9) as f64 / 2.0 + 2.0)
            .collect(),
        sums,
        lengths,
        // With ties, and with lists of one candidate and of none.
        scores: (0..n).map(|i| (i * 3 % 4) as f64 / 2.0).collect(),
        present: (0..n).map(|i| i < 4 || i == 7).collect(),
    };
    for dtype in wide_dtypes() {
        for subject in subjects::lists(BETA) {
            let name = format!("{} in {dtype:?}", subject.name);
            let (losses, rewards, grads) = batch.run_on(dtype, &subject.forward);
            for (list, &loss) in losses.iter().enumerate() {
                let there = candidates * list..candidates * (list + 1);
                let there: Vec<usize> = there.filter(|&i| batch.present[i]).collect();
                if there.is_empty() {
                    assert_eq!(loss, 0.0, "{name}: an empty list");
                    continue;
                }
                let scalar = scalar::List {
                    sums: there.iter().map(|&i| batch.sums[i]).collect(),
                    references: there.iter().map(|&i| batch.references[i]).collect(),
                    lengths: there.iter().map(|&i| batch.lengths[i]).collect(),
                    scores: there.iter().map(|&i| batch.scores[i]).collect(),
                };
                let expected = subject.loss(&scalar);
                assert_close(&[loss], &[expected], tolerance(dtype), &name);
                let ours: Vec<f64> = there.iter().map(|&i| rewards[i]).collect();
                assert_close(&ours, &subject.rewards(&scalar), tolerance(dtype), &name);
                for (k, &i) in there.iter().enumerate() {
                    let slope = subject.slope(&scalar, k);
                    assert_close(&[grads[i]], &[slope], tolerance(dtype), &name);
                }
            }
            let absent = (0..n).filter(|&i| !batch.present[i]);
            assert!(
                absent.clone().all(|i| rewards[i] == 0.0 && grads[i] == 0.0),
                "{name}"
            );
        }
    }
}

#[test]
fn unpaired_completions_match_the_scalar_code() {
    let batch = UnpairedCompletions {
        policy: vec![-1.5, -20.0, -3.0, -0.25, -7.5],
        reference: vec![-2.5, -17.0, -3.0, -8.25, -7.0],
        desirable: vec![true, true, false, false, true],
        baseline: 0.75,
    };
    let rho: Vec<f64> = batch
        .policy
        .iter()
        .zip(&batch.reference)
        .map(|(a, b)| a - b)
        .collect();
    let sign = |i: usize| if batch.desirable[i] { 1.0 } else { -1.0 };
    for dtype in wide_dtypes() {
        let allowed = tolerance(dtype).max(1e-9);
        let kto = KtoLossConfig::new()
            .with_beta(BETA)
            .with_desirable_weight(1.5);
        let (losses, rewards, grads) = batch.run(&kto.init(), dtype);
        let kto = ObjectiveConfig::Kto(kto);
        let scalar = |i: usize| {
            let y = Completion {
                sum: Dual::input(batch.policy[i]),
                reference: batch.reference[i],
                length: 5,
            };
            let marks = Marks {
                desirable: vec![batch.desirable[i]],
                baseline: batch.baseline,
                ..Marks::default()
            };
            formulas::completions(&kto, &[y], &marks)[0]
        };
        for i in 0..rho.len() {
            assert_close(
                &[losses[i], rewards[i]],
                &[scalar(i).value, BETA * rho[i]],
                allowed,
                "kto",
            );
            assert_close(&[grads[i]], &[scalar(i).slope], allowed, "kto, gradient");
        }

        let relative = || {
            let lengths = [5; 5];
            let policy = sequence(floats(&batch.policy, dtype), &lengths);
            policy
                .relative_to(sequence(floats(&batch.reference, dtype), &lengths))
                .unwrap()
        };
        let apo = ApoZeroLossConfig::new().with_beta(BETA).init();
        let apo = apo.forward(Unpaired::new(relative(), bools(&batch.desirable)).unwrap());
        let npo = NpoLossConfig::new()
            .with_beta(BETA)
            .init()
            .forward(relative());
        let (apo, npo) = (to_vec(apo.losses()), to_vec(npo.losses()));
        for i in 0..rho.len() {
            let expected = [
                scalar::sigmoid(-sign(i) * BETA * rho[i]),
                -2.0 / BETA * scalar::ln_sigmoid(-BETA * rho[i]),
            ];
            assert_close(&[apo[i], npo[i]], &expected, allowed, "apo zero, npo");
        }
        let scored = || Scored::new(relative(), floats(&[0.75; 5], dtype)).unwrap();
        let with_value = || WithValue::new(scored(), floats(&[0.5; 5], dtype)).unwrap();
        let dro = DroLossConfig::new().with_tau(BETA).init();
        let astar_po = AstarPoLossConfig::new().with_beta(BETA).init();
        let qrpo = QrpoLossConfig::new().with_beta(BETA).init();
        let dro = to_vec(dro.forward(with_value()).losses());
        let astar_po = to_vec(astar_po.forward(with_value()).losses());
        let qrpo = to_vec(qrpo.forward(scored()).losses());
        for i in 0..rho.len() {
            let residual = 0.25 - BETA * rho[i];
            let value = BETA * (BETA * (BETA.recip().exp() - 1.0)).ln();
            let expected = [
                0.5 * residual.powi(2),
                residual.powi(2),
                (0.75 - value - BETA * rho[i]).powi(2),
            ];
            let what = "dro, a*-po, qrpo";
            assert_close(&[dro[i], astar_po[i], qrpo[i]], &expected, allowed, what);
        }
        let reference = floats(&[0.0, 1.0, 1.0, 2.0], dtype).reshape([1, 4]);
        let quantile = quantile_scores(floats(&[1.0], dtype), reference.clone()).unwrap();
        let value = optimal_values(reference, 0.5).unwrap();
        let expected = [
            0.75,
            0.5 * ((1.0 + 2.0 * 2_f64.exp() + 4_f64.exp()) / 4.0).ln(),
        ];
        let ours = [to_vec(quantile)[0], to_vec(value)[0]];
        assert_close(&ours, &expected, allowed, "of reference samples");
        let kl = to_vec(KlEstimate::from_mismatched(&relative()).baseline());
        let mean = rho.iter().sum::<f64>() / rho.len() as f64;
        assert_close(&kl, &[mean.max(0.0)], allowed, "z₀");
    }
}

/// SFT and DFT of three demonstrations, one of them empty, in a step of more tokens than the batch has.
#[test]
fn demonstrations_match_the_scalar_code() {
    let log_probs = [-0.5, -2.0, -1e4, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let lengths: [usize; 3] = [3, 1, 0];
    let counts: Vec<bool> = lengths
        .iter()
        .flat_map(|n| (0..3).map(|t| t < *n))
        .collect();
    for dtype in wide_dtypes() {
        let allowed = tolerance(dtype).max(1e-9);
        for weighting in [TokenWeighting::Uniform, TokenWeighting::Probability] {
            for (normalization, divisors) in [
                (NllNormalization::Token, [2.5; 3]),
                (NllNormalization::Sequence, [3.0, 1.0, 1.0]),
                (NllNormalization::Sum, [1.0; 3]),
            ] {
                let sft = SftLossConfig::new()
                    .with_normalization(normalization)
                    .with_token_weighting(weighting)
                    .init();
                let leaf = floats(&log_probs, dtype).autodiff().require_grad();
                let mask = bools(&counts).reshape([3, 3]);
                let tokens = TokenLogProbs::new(leaf.clone().reshape([3, 3]), mask).unwrap();
                let batch = WithStepTokens::new(Demonstrations::new(tokens), 10.0, 4.0).unwrap();
                let output = sft.forward(batch);
                let grads = output.sum().backward();
                let weight = |i: usize| match weighting {
                    _ if !counts[i] => 0.0,
                    TokenWeighting::Probability => log_probs[i].exp(),
                    _ => 1.0,
                };
                let slopes: Vec<f64> = (0..9).map(|i| -weight(i) / divisors[i / 3]).collect();
                let loss = |row: usize| {
                    (3 * row..3 * row + 3)
                        .map(|i| slopes[i] * log_probs[i])
                        .sum()
                };
                let losses: Vec<f64> = (0..3).map(loss).collect();
                let what = format!("{normalization:?}, {weighting:?}");
                assert_close(&to_vec(output.losses()), &losses, allowed, &what);
                assert_close(&to_vec(leaf.grad(&grads).unwrap()), &slopes, allowed, &what);
            }
        }
    }
}

/// GRPO's ratios, clips, KL and means of three samples, one of them empty.
#[test]
fn samples_match_the_scalar_code() {
    let policy = [-0.5, -2.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let log_ratios = [0.3, -0.1, 0.05, -0.4, 0.0, 0.0, 0.0, 0.0, 0.0];
    let away = [0.2, -0.3, 1e-3, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0];
    let lengths: [usize; 3] = [3, 1, 0];
    let counts: Vec<bool> = lengths
        .iter()
        .flat_map(|n| (0..3).map(|t| t < *n))
        .collect();
    let grouped = GroupedReward::of_groups(&[1.0, 0.0, 0.5], &[0; 3]).unwrap();
    let advantages = [1.0 / 1.0, -1.0, 0.0].map(|x| 0.5 * x);
    let beta = 0.1;
    for dtype in wide_dtypes() {
        let allowed = tolerance(dtype).max(1e-9);
        let mask = bools(&counts).reshape([3, 3]);
        let of =
            |values: Tensor<1>| TokenLogProbs::new(values.reshape([3, 3]), mask.clone()).unwrap();
        let minus = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>();
        let leaf = floats(&policy, dtype).autodiff().require_grad();
        let sampler = of(floats(&minus(&policy, &log_ratios), dtype));
        let reference = of(floats(&minus(&policy, &away.map(|d| -d)), dtype));
        let batch = Samples::new(of(leaf.clone()), sampler, &grouped)
            .and_then(|batch| batch.relative_to(reference))
            .unwrap();
        let grpo = GrpoLossConfig::new()
            .with_advantage(Advantage::Centered)
            .with_beta(beta)
            .init();
        let output = grpo.forward(WithStepTokens::new(batch, 10.0, 4.0).unwrap());
        let grads = output.sum().backward();
        let (mut losses, mut slopes) = ([0.0; 3], [0.0; 9]);
        for i in (0..9).filter(|i| counts[*i]) {
            let (w, d) = (log_ratios[i].exp(), away[i]);
            let a = advantages[i / 3];
            let clipped = a > 0.0 && w > 1.2 || a < 0.0 && w < 0.8;
            let k3 = d.exp_m1() - d;
            losses[i / 3] += (beta * w * k3 - (w * a).min(w.clamp(0.8, 1.2) * a)) / 2.5;
            let of_objective = if clipped { 0.0 } else { w * a };
            slopes[i] = (beta * w * (k3 - d.exp_m1()) - of_objective) / 2.5;
        }
        assert_close(&to_vec(output.losses()), &losses, allowed, "loss");
        assert_close(
            &to_vec(leaf.grad(&grads).unwrap()),
            &slopes,
            allowed,
            "gradient",
        );
    }
}

/// What a reward model says at the last token of each row, and the gradient of it.
#[test]
fn rewards_at_the_end_of_rows() {
    use burn_preference::tokens::{Padding, Sequence, TokenBatch};

    let of = |prompt: &[u32], completion: &[u32]| Sequence::new(prompt, completion);
    let rows = vec![
        of(&[1], &[2, 3, 4]),
        of(&[4], &[]),
        of(&[5], &[6]),
        of(&[7, 8], &[9]),
    ];
    let batch = TokenBatch::new(rows, Padding::new(0), &device()).unwrap();
    let values: Vec<f64> = (0..16).map(|i| f64::from(i * 5 % 7) / 4.0 - 0.5).collect();
    let ends = [3, 4, 9, 14];
    let (w, l) = ([values[3], values[4]], [values[9], values[14]]);
    for dtype in wide_dtypes() {
        let leaf = floats(&values, dtype).autodiff().require_grad();
        let says = batch.at_end(leaf.clone().reshape([4, 4])).unwrap();
        let expected = ends.map(|end| values[end]);
        assert_close(
            &to_vec(says.clone()),
            &expected,
            tolerance(dtype),
            "rewards",
        );
        let says = RewardPair::from_concatenated(&says).unwrap();
        let objective = BradleyTerryLossConfig::new().with_centering_weight(0.25);
        let output = objective.init().forward(says);
        let loss = |i: usize| -scalar::ln_sigmoid(w[i] - l[i]) + 0.25 * (w[i] + l[i]).powi(2);
        let losses = to_vec(output.losses());
        assert_close(&losses, &[loss(0), loss(1)], tolerance(dtype), "losses");
        let grads = to_vec(leaf.grad(&output.sum().backward()).unwrap());
        let mut slopes = vec![0.0; 16];
        for i in 0..2 {
            let (pull, level) = (scalar::sigmoid(l[i] - w[i]), 0.5 * (w[i] + l[i]));
            slopes[ends[i]] = level - pull;
            slopes[ends[i + 2]] = level + pull;
        }
        assert_close(&grads, &slopes, tolerance(dtype), "gradients");
    }
}

/// Log-probs, by-products and gradients, by both paths, in every layout and number type.
#[test]
fn the_head_matches_the_scalar_code() {
    let half = |dtype: &DType| matches!(dtype, DType::F16 | DType::BF16);
    for dtype in dtypes() {
        for (seed, shape) in [[2, 9, 47, 31], [1, 2, 1, 3], [3, 4, 300, 8]]
            .into_iter()
            .enumerate()
        {
            let mut problem = Problem::new(shape, 5 + seed as u64);
            if half(&dtype) {
                problem.coarsen();
            }
            if seed == 1 {
                problem = problem.without_bias();
                problem.mask.fill(true);
            }
            if seed == 2 {
                // Scaled, capped and tempered logits, as Gemma 2 and Granite have them.
                problem = problem.shaped(Shaping {
                    scale: 0.5,
                    softcap: Some(4.0),
                    temperature: 0.75,
                });
            }
            for layout in LAYOUTS {
                for retained_bytes in [0, usize::MAX] {
                    let how = How {
                        dtype,
                        layout,
                        retained_bytes,
                        ..TRAINABLE
                    };
                    problem.check(how, tolerance(dtype));
                }
            }
            for how in [FROZEN, REFERENCE] {
                problem.check(How { dtype, ..how }, tolerance(dtype));
            }
            let checkpointed = How {
                dtype,
                checkpointed: true,
                ..TRAINABLE
            };
            problem.check(checkpointed, tolerance(dtype));
            // Logits in half precision are rounded before anybody sees them.
            if !half(&dtype) {
                let from_logits = How {
                    dtype,
                    from_logits: true,
                    ..TRAINABLE
                };
                problem.check(from_logits, tolerance(dtype));
            }
        }
    }
}

/// Half-precision log-probs are upcast, and their gradients come back in their own type.
#[test]
fn half_precision_is_upcast() {
    let pairs = pairs();
    let rows = rows(&pairs);
    for dtype in dtypes() {
        let subject = &subjects::pairs(BETA)[0];
        let ours = run(subject, &pairs, dtype);
        let expected = subject.losses(&rows);
        let upcast = if dtype == DType::F64 {
            dtype
        } else {
            DType::F32
        };
        assert_close(&ours.losses, &expected, tolerance(upcast), "losses");
        for (i, row) in rows.iter().enumerate() {
            let push = BETA * scalar::sigmoid(-BETA * row.delta());
            let grads = [ours.grads.chosen[i], ours.grads.rejected[i]];
            assert_close(&grads, &[-push, push], tolerance(dtype), "gradients");
        }
    }
}

#[test]
fn what_does_not_count_reaches_nothing() {
    for dtype in wide_dtypes() {
        let problem = Problem::new([2, 4, 7, 3], 3);
        let logits = |junk: f64| {
            // Row 0 of the first sequence predicts token 1, which is masked below.
            let mut values = problem::noise(2 * 4 * 7, 17);
            values[..7].fill(junk);
            Problem::floats(&values, [2, 4, 7], dtype)
        };
        let mut mask = vec![true; 8];
        mask[1] = false;
        let of = |logits: Tensor<3>| {
            let leaf = logits.autodiff().require_grad();
            let mask = bools(&mask).reshape([2, 4]);
            let ours = TokenLogProbs::from_output(leaf.clone(), problem.tokens(), mask).unwrap();
            let sums = ours.sequence().sum();
            let grads = sums.clone().sum().backward();
            (to_vec(sums), to_vec(leaf.grad(&grads).unwrap()))
        };
        let clean = of(logits(0.5));
        for junk in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e30] {
            assert_eq!(
                of(logits(junk)),
                clean,
                "{junk} of a row that does not count"
            );
        }
        assert!(clean.1[..7].iter().all(|&g| g == 0.0));
    }
}

/// Where the bias rules out every word there is no distribution: no log-prob, no entropy, no
/// collisions and no largest logit, whatever the target is. Only the mean logit is known.
#[test]
fn a_row_without_a_word_is_nan() {
    if !keeps_nan() {
        return;
    }
    for dtype in dtypes() {
        let mut problem = Problem::new([1, 3, 20, 5], 4);
        problem.mask.fill(true);
        problem.tokens = vec![1, 0, 3];
        problem.bias.as_mut().unwrap().fill(f64::NEG_INFINITY);
        let from_logits = How {
            from_logits: true,
            ..TRAINABLE
        };
        let mut ways = vec![FROZEN, REFERENCE, from_logits];
        ways.extend(LAYOUTS.map(|layout| How {
            layout,
            ..TRAINABLE
        }));
        for how in ways {
            let how = How { dtype, ..how };
            let ours = problem.run(how);
            let [entropy, collisions, top1, mean] = &ours.statistics;
            let unknown = [&ours.log_probs, entropy, collisions, top1];
            for (name, values) in ["log-prob", "entropy", "Σp²", "top-1"].iter().zip(unknown) {
                assert!(
                    values.iter().all(|x| x.is_nan()),
                    "{name}, {how:?}: {values:?}"
                );
            }
            assert_eq!(*mean, [f64::NEG_INFINITY; 2], "{how:?}");
            // None for a reference; the third row predicts nothing.
            assert!(ours.hidden.iter().take(10).all(|g| g.is_nan()), "{how:?}");
        }
    }
}

#[test]
fn ids_outside_the_vocabulary_give_nan() {
    let problem = Problem::new([1, 3, 4, 2], 8);
    for dtype in wide_dtypes() {
        let states = Problem::floats(&problem.hidden, [1, 3, 2], dtype);
        let head = LmHead::new(Problem::floats(&problem.weight, [4, 2], dtype));
        let logits = states.clone().matmul(
            Problem::floats(&problem.weight, [4, 2], dtype)
                .transpose()
                .unsqueeze(),
        );
        let mask = || bools(&[false, true, true]).reshape([1, 3]);
        for id in [4, -1, i32::MAX, i32::MIN] {
            let tokens = Tensor::<2, Int>::from_ints([[0, id, 1]], &device());
            let from_hidden =
                TokenLogProbs::from_output((states.clone(), head.clone()), tokens.clone(), mask())
                    .unwrap();
            let from_logits = TokenLogProbs::from_output(logits.clone(), tokens, mask()).unwrap();
            for ours in [from_hidden, from_logits] {
                let ours = to_vec(ours.log_probs());
                assert!(ours[0].is_nan() && ours[1].is_finite(), "{id}: {ours:?}");
            }
        }
    }
}

/// A NaN that goes in comes out, whichever side it came from.
#[test]
fn nan_in_nan_out() {
    if !keeps_nan() {
        return;
    }
    for dtype in wide_dtypes() {
        for subject in subjects::pairs(BETA) {
            let sides: [fn(&mut Pairs) -> &mut Vec<f64>; 2] =
                [|p| &mut p.chosen, |p| &mut p.rejected];
            for side in sides {
                let mut pairs = pairs();
                side(&mut pairs)[1] = f64::NAN;
                let losses = run(&subject, &pairs, dtype).losses;
                let nan = losses.iter().any(|loss| loss.is_nan());
                assert!(nan, "{} in {dtype:?}: {losses:?}", subject.name);
            }
        }
    }
}

#[test]
fn extremes_stay_finite() {
    let ends = [-1e5, -1e4, -100.0, -1.0, 0.0];
    let mut pairs = Pairs::default();
    for (i, w) in ends.into_iter().enumerate() {
        for (j, l) in ends.into_iter().enumerate() {
            pairs.chosen.push(w);
            pairs.rejected.push(l);
            pairs.ref_chosen.push(ends[(i + j) % 5]);
            pairs.ref_rejected.push(ends[(i * 2 + j) % 5]);
            pairs.chosen_len.push(1 + i);
            pairs.rejected_len.push(j);
        }
    }
    for dtype in wide_dtypes() {
        for subject in subjects::pairs(BETA) {
            let result = run(&subject, &pairs, dtype);
            let all = [result.losses, result.grads.chosen, result.grads.rejected].concat();
            assert!(
                all.iter().all(|x| x.is_finite()),
                "{} in {dtype:?}",
                subject.name
            );
        }
    }
}

#[test]
fn metrics_of_pairs() {
    let pairs = pairs();
    let dtype = DType::F32;
    let batch = pairs.referenced(floats(&pairs.chosen, dtype), floats(&pairs.rejected, dtype));
    let output = DpoLossConfig::new()
        .with_beta(BETA)
        .init()
        .forward(batch.clone());
    let metrics = BatchMetrics::observe(&batch, &output).read().unwrap();
    let rows = rows(&pairs);
    let mean = |f: &dyn Fn(&Row) -> f64| rows.iter().map(f).sum::<f64>() / rows.len() as f64;
    let share = |f: &dyn Fn(&Row) -> bool| mean(&|row| f64::from(u8::from(f(row))));
    for (key, expected) in [
        ("loss", mean(&|row| -scalar::ln_sigmoid(BETA * row.delta()))),
        ("rewards/margins", mean(&|row| BETA * row.delta())),
        ("rewards/accuracies", share(&|row| row.delta() > 0.0)),
        ("rewards/ties", share(&|row| row.delta() == 0.0)),
        ("displacement", share(&|row| row.rho_w() < 0.0)),
        ("logps/rejected", mean(&|row| row.l)),
    ] {
        assert_close(
            &[metrics.get(key).unwrap()],
            &[expected],
            tolerance(dtype),
            key,
        );
    }
}

/// Every divergence of two models, with its gradients, by both paths, in every layout and number
/// type; with shaped logits, and with models that are nearly equal.
#[test]
fn two_models_match_the_scalar_code() {
    let half = |dtype: &DType| matches!(dtype, DType::F16 | DType::BF16);
    let shaping = Shaping {
        scale: 0.5,
        softcap: Some(4.0),
        temperature: 0.75,
    };
    for dtype in dtypes() {
        for (seed, shape) in [[2, 9, 47, 31], [1, 2, 1, 3], [3, 4, 300, 8]]
            .into_iter()
            .enumerate()
        {
            let mut models = TwoModels::new(shape, 5 + seed as u64);
            if half(&dtype) {
                models.coarsen();
            }
            if seed == 1 {
                models.policy = models.policy.without_bias();
                models.policy.mask.fill(true);
            }
            if seed == 2 {
                models.policy = models.policy.shaped(shaping);
                models.reference = models.reference.without_bias();
            }
            // Of two models: where a product rounds its logits, both are rounded.
            let allowed = tolerance(dtype) * if half(&dtype) { 2.0 } else { 1.0 };
            for kind in KINDS {
                for layout in LAYOUTS {
                    for how in [TRAINABLE, FROZEN, REFERENCE] {
                        let how = How {
                            dtype,
                            layout,
                            ..how
                        };
                        models.check(kind, how, allowed);
                    }
                }
                // `head.logits` may round its product to half precision.
                if !half(&dtype) {
                    let how = How {
                        dtype,
                        from_logits: true,
                        ..TRAINABLE
                    };
                    models.check(kind, how, tolerance(dtype));
                }
            }
        }
    }
}

/// Two models that differ by 2⁻¹³ in each logit: the divergence has relative digits.
#[test]
fn two_models_that_are_nearly_equal() {
    let vocab = 40;
    let ours: Vec<f64> = problem::noise(vocab, 1)
        .iter()
        .map(|x| (x * 64.0).round() / 16.0)
        .collect();
    let theirs: Vec<f64> = ours
        .iter()
        .zip(problem::noise(vocab, 2))
        .map(|(x, d)| x + (d * 8.0).round() / 65536.0)
        .collect();
    for dtype in wide_dtypes() {
        // The scalar code itself cancels to 1e-16, absolutely.
        let allowed = if dtype == DType::F64 { 1e-6 } else { 2e-2 };
        let identity = Tensor::<2>::eye(vocab, &device()).cast(dtype);
        let logits = |row: &[f64]| {
            let rows = [row, row].concat();
            Problem::floats(&rows, [1, 2, vocab], dtype)
        };
        let mask = || bools(&[false, true]).reshape([1, 2]);
        for kind in KINDS {
            let expected = two_models::divergence(kind, &ours, &theirs);
            let head = || LmHead::new(identity.clone());
            let [policy, reference] = [&ours, &theirs].map(|row| (logits(row), head()));
            let heads = TokenDiscrepancy::from_outputs(kind, policy, reference, mask());
            let [policy, reference] = [&ours, &theirs].map(|row| logits(row));
            let plain = TokenDiscrepancy::from_outputs(kind, policy, reference, mask());
            for found in [heads, plain] {
                let found = to_vec(found.unwrap().values())[0];
                let relative = (found / expected - 1.0).abs();
                assert!(
                    relative < allowed,
                    "{kind:?}, {dtype:?}: {found} of {expected}"
                );
            }
        }
    }
}

/// Words with a logit of −∞, which the bias of a head gives them.
#[test]
fn words_that_a_model_rules_out() {
    use burn_preference::log_probs::Discrepancy;

    let none = f64::NEG_INFINITY;
    let (wide, narrow, other) = ([0.0, 0.0, none], [0.0, none, none], [none, 0.0, none]);
    let ln2 = 2_f64.ln();
    let js = Discrepancy::JensenShannon(0.5);
    for dtype in wide_dtypes() {
        let allowed = tolerance(dtype);
        for (kind, ours, theirs, value, slopes) in [
            (Discrepancy::ForwardKl, wide, narrow, ln2, [-0.5, 0.5, 0.0]),
            (Discrepancy::ReverseKl, narrow, wide, ln2, [0.0; 3]),
            (js, narrow, other, ln2, [0.0; 3]),
        ] {
            let leaf = |bias: &[f64]| {
                Problem::floats(bias, [1, 3], dtype)
                    .autodiff()
                    .require_grad()
            };
            let model = |bias: Tensor<2>| {
                let weight = Tensor::zeros([3, 2], (&device(), dtype));
                let hidden = Tensor::<3>::zeros([1, 2, 2], (&device(), dtype));
                (hidden, LmHead::new(weight).with_bias(bias.reshape([3])))
            };
            let (ours, theirs) = (leaf(&ours), leaf(&theirs));
            let mask = bools(&[false, true]).reshape([1, 2]);
            let (policy, reference) = (model(ours.clone()), model(theirs));
            let found = TokenDiscrepancy::from_outputs(kind, policy, reference, mask).unwrap();
            let values = found.values();
            let grads = values.clone().sum().backward();
            assert_close(&to_vec(values), &[value], allowed, "value");
            let gradient = to_vec(ours.grad(&grads).unwrap());
            assert_close(&gradient, &slopes, allowed, "gradient");
        }
    }
}

/// Packed rows against plain f64: two prompts, three completions of one, one of the other.
#[test]
fn prompts_that_stand_once() {
    use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence};

    const WORDS: usize = 5;
    const WIDTH: usize = 3;
    let of = |prompt: &[u32], completion: &[u32]| Sequence::new(prompt, completion);
    let sequences = [
        of(&[1, 2], &[3, 4, 0]),
        of(&[4], &[2]),
        of(&[1, 2], &[0]).with_counted(&[true]).unwrap(),
        of(&[1, 2], &[2, 1]).with_counted(&[false, true]).unwrap(),
    ];
    let packing = Packing::new(Padding::new(0)).to_rows_of(8).unwrap();
    let packed = PackedBatch::new(sequences.to_vec(), packing, &device()).unwrap();
    // 1 2 3 4 0 0 2 1 | 4 2
    assert_eq!(packed.ids.dims(), [2, 8]);
    let visible = packed.attention_mask().bool_not().int().sum_dim(3);
    let visible: Vec<i64> = visible.into_data().iter().collect();
    assert_eq!(visible, [1, 2, 3, 4, 5, 3, 3, 4, 1, 2, 2, 3, 4, 5, 6, 7]);
    // 2 1, the last completion: the prompt and itself.
    let hidden = packed.attention_mask().slice([0..1, 0..1, 7..8, 0..8]);
    let hidden: Vec<bool> = hidden.into_data().iter().collect();
    assert_eq!(hidden, [false, false, true, true, true, true, false, false]);

    // Which row of hidden states predicts which word, and where that stands.
    let predictions = [
        (1, 3, 0, 1),
        (2, 4, 0, 2),
        (3, 0, 0, 3),
        (8, 2, 1, 0),
        (1, 0, 2, 1),
        (6, 1, 3, 2),
    ];
    let number = |i: usize, step: usize| (i * step % 17) as f64 / 8.0 - 1.0;
    let hidden: Vec<f64> = (0..16 * WIDTH).map(|i| number(i, 7)).collect();
    let weight: Vec<f64> = (0..WORDS * WIDTH).map(|i| number(i, 5)).collect();
    let row = |values: &[f64], i: usize| values[i * WIDTH..][..WIDTH].to_vec();
    let mut values = vec![0.0; 4 * 4];
    let mut slopes = vec![0.0; 16 * WIDTH];
    for (source, word, sequence, column) in predictions {
        let state = row(&hidden, source);
        let dot =
            |w: usize| -> f64 { row(&weight, w).iter().zip(&state).map(|(a, b)| a * b).sum() };
        let logits: Vec<f64> = (0..WORDS).map(dot).collect();
        let sum: f64 = logits.iter().map(|x| x.exp()).sum();
        values[sequence * 4 + column] = logits[word] - sum.ln();
        for h in 0..WIDTH {
            let mean: f64 = (0..WORDS)
                .map(|w| logits[w].exp() / sum * weight[w * WIDTH + h])
                .sum();
            slopes[source * WIDTH + h] += weight[word * WIDTH + h] - mean;
        }
    }
    for dtype in dtypes() {
        let weight: Tensor<2> = floats(&weight, dtype).reshape([WORDS, WIDTH]);
        for by_logits in [false, true] {
            let name = format!("{dtype:?}, by logits: {by_logits}");
            let leaf = floats(&hidden, dtype).autodiff().require_grad();
            let states: Tensor<3> = leaf.clone().reshape([2, 8, WIDTH]);
            let log_probs = if by_logits {
                let logits = states.matmul(weight.clone().transpose().unsqueeze());
                packed.token_log_probs(logits).unwrap()
            } else {
                let head = LmHead::new(weight.clone());
                packed.token_log_probs((states, head)).unwrap()
            };
            let ours = to_vec(log_probs.log_probs());
            assert_close(&ours, &values, tolerance(dtype), &name);
            let grads = log_probs.sequence().sum().sum().backward();
            let ours = to_vec(leaf.grad(&grads).unwrap());
            assert_close(&ours, &slopes, tolerance(dtype), &name);
        }
        let head = LmHead::new(weight.narrow(0, 0, 4));
        let states: Tensor<3> = floats(&hidden, dtype).reshape([2, 8, WIDTH]);
        let log_probs = packed.token_log_probs((states, head)).unwrap();
        if keeps_nan() {
            let nan: Vec<bool> = to_vec(log_probs.log_probs())
                .iter()
                .map(|x| x.is_nan())
                .collect();
            assert_eq!(nan.iter().position(|&nan| nan), Some(2), "the word 4");
            assert_eq!(nan.iter().filter(|&&nan| nan).count(), 1);
        }
    }
}

/// Tokens in, a head with a bias out.
#[derive(Module, Debug)]
struct Model {
    embedding: Embedding,
    mix: Linear,
    scale: Param<Tensor<1>>,
    head: Linear,
}

const VOCAB: usize = 23;

impl Model {
    /// The same weights on every device: drawn on Flex.
    fn new(device: &Device) -> Self {
        let flex = Device::flex().autodiff();
        flex.seed(7);
        let model = Self {
            embedding: EmbeddingConfig::new(VOCAB, 8).init(&flex),
            mix: LinearConfig::new(8, 8).init(&flex),
            scale: Param::from_tensor(Tensor::ones([8], &flex)),
            head: LinearConfig::new(8, VOCAB).init(&flex),
        };
        model.numbers(); // Parameters that nobody has read are drawn where they are moved to.
        model.fork(device)
    }

    fn hidden(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let embedded = self.embedding.forward(tokens);
        let mixed = self.mix.forward(embedded.clone()).tanh();
        (embedded + mixed) * self.scale.val().unsqueeze()
    }

    fn log_probs(
        &self,
        by_logits: bool,
        tokens: Tensor<2, Int>,
        mask: Tensor<2, Bool>,
    ) -> TokenLogProbs {
        let hidden = self.hidden(tokens.clone());
        if by_logits {
            TokenLogProbs::from_output(self.head.forward(hidden), tokens, mask).unwrap()
        } else {
            TokenLogProbs::from_output((hidden, LmHead::from(&self.head)), tokens, mask).unwrap()
        }
    }

    fn numbers(&self) -> Vec<f64> {
        let head = self.head.bias.as_ref().unwrap().val();
        [
            to_vec(self.embedding.weight.val()),
            to_vec(self.mix.weight.val()),
            to_vec(self.mix.bias.as_ref().unwrap().val()),
            to_vec(self.scale.val()),
            to_vec(self.head.weight.val()),
            to_vec(head),
        ]
        .concat()
    }
}

/// Three steps of DPO with an SFT term and of ORPO: losses, then every parameter.
fn train(device: &Device, by_logits: bool) -> Vec<f64> {
    let mut policy = Model::new(&device.clone().autodiff());
    let reference = Frozen::new(&policy);
    let dpo = SftTerm::new(DpoLossConfig::new().with_beta(BETA).init(), 0.5).unwrap();
    let orpo = OrpoLossConfig::new().init();
    let mut optimizer = SgdConfig::new().init();
    let mut numbers = Vec::new();
    for step in 0..3 {
        let token = |i: usize| i32::try_from((i * 13 + step * 5) % VOCAB).unwrap();
        let tokens: Vec<i32> = (0..24).map(token).collect();
        let tokens = Tensor::<1, Int>::from_ints(tokens.as_slice(), device).reshape([4, 6]);
        let counted: Vec<bool> = (0..24).map(|i| i % 6 > 1 && i % 7 != 3).collect();
        let mask = Tensor::<1, Bool>::from_data(counted.as_slice(), device).reshape([4, 6]);

        let [pair, theirs] = [&policy, reference.model()].map(|model| {
            let log_probs = model.log_probs(by_logits, tokens.clone(), mask.clone());
            PolicyPair::from_concatenated(&log_probs.sequence()).unwrap()
        });
        let loss = dpo
            .forward(pair.clone().relative_to(theirs).unwrap())
            .mean()
            + orpo.forward(pair).mean();
        numbers.extend(to_vec(loss.clone()));
        let grads = GradientsParams::from_grads(loss.backward(), &policy);
        policy = optimizer.step(0.5, policy, grads);
    }
    numbers.extend(policy.numbers());
    numbers
}

#[test]
fn training_takes_the_same_steps() {
    let expected = train(&Device::flex(), true);
    for by_logits in [true, false] {
        let ours = train(&device(), by_logits);
        assert_close(
            &ours,
            &expected,
            tolerance(DType::F32),
            "losses and parameters",
        );
    }
    // It moved, and the reference did not: the first loss has ln 2 in it.
    assert_ne!(expected[0], expected[1]);
}

/// Elementwise numerics near 0, relative to the value: tanh and log1p of a shading language have
/// no digits there.
#[test]
fn tails_of_the_numerics() {
    let x = [
        -1e-30, -1e-20, -1e-9, -1e-6, -1e-3, -0.1, -0.9, -1.1, -3.0, -20.0, -80.0,
    ];
    for dtype in wide_dtypes() {
        let leaf = floats(&x, dtype).autodiff().require_grad();
        // What the type makes of them.
        let exact = to_vec(leaf.clone());
        let check = |name: &str, y: Tensor<1>, value: fn(f64) -> f64, slope: fn(f64) -> f64| {
            let grads = y.clone().sum().backward();
            let (y, grad) = (to_vec(y), to_vec(leaf.grad(&grads).unwrap()));
            for i in 0..x.len() {
                for (ours, expected) in [(y[i], value(exact[i])), (grad[i], slope(exact[i]))] {
                    // Far from 0 no digit of the tail is promised.
                    let scale = if x[i] > -1.0 { expected.abs() } else { 1.0 };
                    assert!(
                        (ours - expected).abs() <= tolerance(dtype) * scale,
                        "{name}({}) in {dtype:?}: {ours} instead of {expected}",
                        x[i]
                    );
                }
            }
        };
        check("expm1", bounded_expm1(leaf.clone()), f64::exp_m1, f64::exp);
        check(
            "log1mexp",
            log1mexp(leaf.clone()),
            |x| (-x.exp_m1()).ln(),
            |x| x.exp() / x.exp_m1(),
        );
        check("log odds", log_odds(leaf.clone()), scalar::odds, |x| {
            -1.0 / x.exp_m1()
        });
        check(
            "softplus",
            softplus(leaf.clone()),
            |x| -scalar::ln_sigmoid(-x),
            scalar::sigmoid,
        );
    }
    // The gradient of a pair that is already told apart.
    let won = floats(&[-30.0], DType::F32).autodiff().require_grad();
    let grads = softplus(won.clone()).backward();
    let slope = to_vec(won.grad(&grads).unwrap())[0];
    assert!((slope / (-30_f64).exp() - 1.0).abs() < 1e-4, "{slope}");
}
