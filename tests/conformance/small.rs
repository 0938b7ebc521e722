//! What a file may hold that `peers.json` does not, in small files: numbers that are not finite,
//! nulls, gradients of nothing, metrics in f32, other parameters, batches of one.

use serde_json::{Value, json};

use crate::map::Difference;
use crate::support::error;
use crate::{Case, Report, limit, scalar};

/// What the cases of a small file say: our report, which has to be without mismatches.
#[track_caller]
fn checked(inputs: &Value, cases: &Value) -> Report {
    let mut report = Report::default();
    let file = json!({"inputs": inputs, "cases": cases});
    report.check_file(&file, "a small file");
    let found = [&report.mismatches[..], &report.unmapped].concat();
    assert!(found.is_empty(), "{found:#?}");
    report
}

/// The mismatches of one case of one input.
fn mismatches(input: &Value, case: &Value) -> Vec<String> {
    let mut report = Report::default();
    let file = json!({"inputs": {"x": input}, "cases": [case]});
    report.check_file(&file, "a small file");
    [report.mismatches, report.unmapped].concat()
}

fn softplus(x: f64) -> f64 {
    -scalar::ln_sigmoid(-x)
}

/// Two pairs, the first of which makes a divergence take an exponential of 1996 or of 96.
fn far_pairs(chosen: f64) -> Value {
    json!({
        "kind": "pairs", "chosen": [chosen, -3.0], "rejected": [-5.0, -4.0],
        "ref_chosen": [-4.0, -3.5], "ref_rejected": [-4.0, -4.0],
        "chosen_len": [9, 2], "rejected_len": [9, 2],
    })
}

/// Where a peer overflows, or its exponentials grow on, ours are held at 80; and no other number
/// passes.
#[test]
fn held_exponents_have_their_own_reason() {
    for (chosen, theirs) in [(-2000.0, f64::INFINITY), (-100.0, 96_f64.exp() * 0.1)] {
        let theirs = if theirs.is_finite() {
            json!(theirs)
        } else {
            json!("inf")
        };
        // f = −e^(−ρ): the hinge of a margin of −0.1·e^96, or of none.
        let case = |loss: &str, out: Value| {
            json!({
                "p": "trl116.dpo", "loss": loss, "input": "x", "mode": "per_example",
                "params": {"beta": 0.1, "f_divergence_type": "forward_kl"}, "out": out,
            })
        };
        let second = 1.0 - 0.1 * (1.0 - (-0.5_f64).exp());
        let out = json!({
            "losses": [theirs, second],
            "grad_chosen": ["nan", -0.1 * (-0.5_f64).exp()],
        });
        let cases = json!([case("hinge", out)]);
        let report = checked(&json!({"x": far_pairs(chosen)}), &cases);
        let reasons: Vec<_> = report.deliberate.into_keys().collect();
        assert_eq!(reasons, [Difference::HeldExponent]);
        // IPO divides by the length, and squares.
        let ipo = case("ipo", json!({"losses": ["inf", "nan"]}));
        assert!(mismatches(&far_pairs(chosen), &ipo).is_empty());
    }
    // A finite number that is not the formula's is none of ours either.
    let wrong = json!({
        "p": "trl116.dpo", "loss": "hinge", "input": "x", "mode": "per_example",
        "params": {"beta": 0.1, "f_divergence_type": "forward_kl"},
        "out": {"losses": [1e40, 1.0]},
    });
    assert_eq!(mismatches(&far_pairs(-100.0), &wrong).len(), 1);
    // Where no formula says what the number is, ours does not pass for it.
    for wrong in ["\"nan\"", "\"inf\"", "1.5"] {
        let wrong: Value = serde_json::from_str(wrong).unwrap();
        let case = json!({
            "p": "trl116.dpo", "loss": "nca_pair", "input": "x", "mode": "per_example",
            "params": {"beta": 0.1}, "out": {"losses": [wrong, wrong]},
        });
        assert_eq!(mismatches(&far_pairs(-9.0), &case).len(), 1);
    }
}

/// A probability of 1, in means and in logits: NaN in a peer.
#[test]
fn certain_and_empty_completions_have_held_odds() {
    let held = 30.0 * 10_f64.ln();
    let odds = scalar::odds(-0.5);
    let input = |chosen: f64, rejected: f64| json!({"kind": "pairs_avg", "chosen": [chosen], "rejected": [rejected]});
    let nan = json!({
        "p": "trl116.orpo", "loss": "orpo_or", "input": "x", "mode": "per_example",
        "params": {"beta": 0.5},
        "out": {"losses": ["nan"], "grad_chosen": ["nan"], "grad_rejected": ["nan"]},
    });
    for (chosen, rejected, odds_of) in [
        (0.0, -0.5, held - odds),
        (-0.5, 0.0, odds - held),
        (0.0, 0.0, 0.0),
    ] {
        let input = input(chosen, rejected);
        let report = checked(&json!({"x": input}), &json!([nan]));
        assert!(report.deliberate.contains_key(&Difference::HeldOdds));
        let case = Case::of(&nan, &Value::Null);
        let case = Case {
            input: &input,
            ..case
        };
        let expected = -0.5 * scalar::ln_sigmoid(odds_of);
        let limits = limit::limits(&case, "losses", 0);
        assert!(error(limits.last().unwrap().1, expected) < 1e-12);
    }
    // Where the odds are ordinary, NaN of a peer is no reason for anything but the formula.
    assert!(mismatches(&input(-1.0, -0.5), &nan).is_empty());

    // Two pairs of logits; the second chosen row has no completion, and TRL's mean is 0/0 there.
    let row = |a: f64| json!([[a, 0.5, 0.0], [0.0, a, 1.0], [1.0, 0.0, a]]);
    let logits = json!({
        "kind": "pair_logits", "n_pairs": 2, "prompt_len": 1,
        "input_ids": [[1, 2, 0], [1, 0, 0], [1, 0, 2], [1, 1, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 1, 0]],
        "labels": [[-100, 2, 0], [-100, -100, -100], [-100, 0, 2], [-100, 1, -100]],
        "logits": [row(0.1), row(-0.3), row(0.7), row(0.2)],
    });
    let all_nan = |n: usize| vec!["nan"; n];
    for (p, loss, params) in [
        ("trl116.orpo.full", "orpo", json!({"beta": 0.1})),
        (
            "trl116.cpo.full",
            "cpo_simpo",
            json!({"beta": 2.0, "simpo_gamma": 0.5, "alpha": 0.25, "cpo_alpha": 1.0}),
        ),
        (
            "trl116.cpo.full",
            "cpo_ipo",
            json!({"beta": 0.1, "cpo_alpha": 0.0, "alpha": 0.0}),
        ),
    ] {
        let mut out = json!({
            "loss": "nan", "mean_chosen_logp": "nan", "nll_loss": null,
            "grad_logits": all_nan(36),
        });
        if loss == "orpo" {
            out["log_odds_ratio"] = "nan".into();
        }
        let case = json!({
            "p": p, "loss": loss, "input": "x", "mode": "logits_batch_mean",
            "params": params, "out": out,
        });
        checked(&json!({"x": logits}), &json!([case]));
    }
    let labels = json!({
        "kind": "logits", "labels": [[-100, 2, 0], [-100, -100, -100]],
        "logits": [row(0.1), row(0.4)],
    });
    let mean = |out: Value| {
        json!({
            "p": "trl116.logps", "loss": "logps", "input": "x", "mode": "logps", "params": {},
            "out": out,
        })
    };
    let out = json!({"mean": [null, "nan"]});
    let report = checked(&json!({"x": labels}), &json!([mean(out)]));
    assert!(report.deliberate.contains_key(&Difference::Limit));
    let wrong = mean(json!({"mean": ["nan", "nan"]}));
    assert_eq!(
        mismatches(&labels, &wrong).len(),
        1,
        "the first row has labels"
    );
}

/// Nulls, gradients of nothing, metrics in f32.
#[test]
fn what_a_peer_does_not_report_is_not_compared() {
    let inputs = json!({
        "empty": {
            "kind": "pairs", "chosen": [0.0, -3.0], "rejected": [-5.0, -4.0],
            "ref_chosen": [0.0, -3.0], "ref_rejected": [-4.0, -4.0],
            "chosen_len": [0, 2], "rejected_len": [9, 2],
        },
        "tokens": {
            "kind": "token_pairs", "n_pairs": 1,
            "policy": [[], [-1.0, -2.0]], "ref": [[], [-1.5, -2.0]],
        },
    });
    let empty = |out: Value| {
        json!({
            "p": "trl116.dpo", "loss": "sigmoid", "input": "empty", "mode": "per_example",
            "params": {"beta": 0.1, "label_smoothing": null}, "out": out,
        })
    };
    let losses = json!([softplus(-0.1), 2_f64.ln()]);
    let mut cases = Vec::new();
    for nothing in [json!(null), json!("nan"), json!(0.0)] {
        cases.push(empty(json!({
            "losses": losses,
            "grad_chosen": [nothing, -0.05],
            "chosen_rewards": [null, 0.0],
            // In f32, and the sum of two divided by their number.
            "mean_rejected_reward": f64::from(-0.1_f32) / 2.0,
            "accuracy": null, "mean_chosen_reward": null,
        })));
    }
    for row in [json!(null), json!([])] {
        let slope = 0.1 * scalar::sigmoid(0.05);
        cases.push(json!({
            "p": "trl116.dpo", "loss": "sigmoid", "input": "tokens", "mode": "token_batch_mean",
            "params": {"beta": 0.1},
            "out": {"loss": softplus(0.05), "grad_tokens": [row, [slope, slope]]},
        }));
    }
    checked(&inputs, &cases.into());
    // Of a completion with tokens, 0 is a number like others; so is a loss in f32.
    let wrong = empty(json!({"grad_chosen": [0.0, 0.0]}));
    assert_eq!(mismatches(&inputs["empty"], &at_x(wrong)).len(), 1);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the value that f32 has is meant"
    )]
    let single = f64::from(softplus(-0.1) as f32);
    let wrong = empty(json!({"losses": [single, 2_f64.ln()]}));
    assert_eq!(mismatches(&inputs["empty"], &at_x(wrong)).len(), 1);
}

fn at_x(mut case: Value) -> Value {
    case["input"] = "x".into();
    case
}

/// Batches of one, and parameters that `peers.json` does not have together.
#[test]
fn other_parameters_and_batches_of_one() {
    let inputs = json!({
        "one": {
            "kind": "pairs", "chosen": [-3.0], "rejected": [-5.0],
            "ref_chosen": [-3.5], "ref_rejected": [-4.0], "chosen_len": [2], "rejected_len": [4],
        },
        "means": {"kind": "pairs_avg", "chosen": [-1.0], "rejected": [-2.0]},
        "label": {
            "kind": "unpaired", "policy": [-2.0], "ref": [-2.5], "label": [true],
            "kl_policy": [-3.0], "kl_ref": [-3.2],
        },
    });
    // ρ = ½ and −1.
    let (w, l, delta) = (0.5, -1.0, 1.5);
    let r = |x: f64| -(-0.25 * x).exp_m1() / 0.25;
    let alpha_po = softplus(-(2.0 * (r(-1.0) - r(-2.0)) - 0.7));
    let case = |p: &str, loss: &str, input: &str, params: Value, out: Value| {
        let mode = if loss == "kto" || loss == "bco" {
            "batch_mean"
        } else {
            "per_example"
        };
        json!({
            "p": p, "loss": loss, "input": input, "mode": mode, "params": params, "out": out,
        })
    };
    let one = |loss: &str, params: Value, expected: f64| {
        case(
            "trl116.dpo",
            loss,
            "one",
            params,
            json!({"losses": [expected]}),
        )
    };
    let sft = 3.0 / 2.0;
    let bco = softplus(-0.1 * w) + softplus(0.1 * l);
    let shift = 0.1 * (w + l - 0.3) / 2.0;
    let first_step = softplus(-(0.1 * w - shift)) + softplus(0.1 * (l - 0.3) - shift);
    let kto = json!({"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0});
    checked(
        &inputs,
        &json!([
            one("aot", json!({"beta": 0.1}), softplus(-0.1 * delta)),
            one(
                "sigmoid+sft",
                json!({"beta": 0.1, "loss_weights": [1.0, 0.3]}),
                softplus(-0.1 * delta) + 0.3 * sft
            ),
            one(
                "hinge+bco_pair",
                json!({"beta": 0.1, "loss_weights": null}),
                1.0 - 0.1 * delta + bco
            ),
            case(
                "trl116.cpo",
                "cpo_simpo",
                "means",
                json!({"beta": 2.0, "simpo_gamma": 0.7, "alpha": 0.25}),
                json!({"losses": [alpha_po]})
            ),
            // The same rewards under another loss, of sums.
            case(
                "trl116.cpo",
                "cpo_hinge",
                "one",
                json!({"beta": 0.01, "alpha": 0.25}),
                json!({"losses": [1.0 - 0.01 * (r(-3.0) - r(-5.0))]})
            ),
            case(
                "trl100.bco",
                "bco",
                "one",
                json!({"beta": 0.1, "step": 1, "rejected_shift": -0.3}),
                json!({"loss": first_step / 2.0, "delta": shift})
            ),
            // No undesirable completion: a mean of nothing.
            case(
                "trl116.kto",
                "kto",
                "label",
                kto,
                json!({
                    "loss": scalar::sigmoid(-0.1 * (0.5 - 0.2)), "mean_rejected_reward": null,
                    "rejected_rewards": [], "mean_chosen_reward": f64::from(0.05_f32),
                })
            ),
            case(
                "trl116.dpo",
                "nca_pair",
                "one",
                json!({"beta": 0.1, "f_divergence_type": "forward_kl"}),
                json!({"losses": [1.0]})
            ),
        ]),
    );
}
