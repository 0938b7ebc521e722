//! The values of the peers' own code: TRL, Liger, HALOs, torchtune, the authors' repositories.
//!
//! Reads `tests/data/peers.json`, or the files and folders of files that the environment variable
//! `BURN_PREFERENCE_CONFORMANCE` names (separated as in `PATH`), maps every case to our objects,
//! and fails with the list of mismatches and of cases without a mapping. Where we differ on
//! purpose, a row of `Difference` says why; the rows that applied are printed.

mod support;

#[path = "conformance/limit.rs"]
mod limit;
#[path = "conformance/llama.rs"]
mod llama;
#[path = "conformance/map.rs"]
mod map;
#[allow(dead_code, reason = "of the formulas, those that may overflow")]
#[path = "suite/scalar.rs"]
mod scalar;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use map::{Difference, Ours, Unmapped, map};
use serde_json::Value;

/// Numbers by name, nested lists flattened.
type Numbers = BTreeMap<String, Vec<f64>>;

/// One case of a file, with its input.
struct Case<'a> {
    producer: &'a str,
    loss: &'a str,
    input: &'a Value,
    params: &'a Value,
    mode: &'a str,
    out: &'a Value,
}

impl Case<'_> {
    fn param(&self, name: &str) -> Option<f64> {
        number(self.params.get(name)?)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.params.get(name)?.as_str()
    }

    /// Whether a parameter is there and is neither false nor null.
    fn has(&self, name: &str) -> bool {
        !matches!(
            self.params.get(name),
            None | Some(Value::Null | Value::Bool(false))
        )
    }

    fn name(&self) -> String {
        let Self {
            producer,
            loss,
            params,
            mode,
            ..
        } = self;
        format!("{producer} {loss} {params} {mode}")
    }
}

/// A JSON number, or `"nan"`, `"inf"`, `"-inf"`; none of `null`.
fn number(value: &Value) -> Option<f64> {
    Some(match value {
        Value::Null => return None,
        Value::Number(number) => number.as_f64().unwrap(),
        Value::String(text) => text.parse().unwrap(),
        Value::Bool(flag) => f64::from(u8::from(*flag)),
        _ => panic!("not a number: {value}"),
    })
}

/// All numbers of nested lists, in order.
fn numbers(value: &Value) -> Vec<Option<f64>> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        value => vec![number(value)],
    }
}

/// As [`numbers`]; a row without tokens may be `null` instead of an empty list.
fn listed(key: &str, value: &Value) -> Vec<Option<f64>> {
    match value {
        Value::Array(rows) if key == "grad_tokens" => {
            let rows = rows.iter().filter(|row| !row.is_null());
            rows.flat_map(numbers).collect()
        }
        value => numbers(value),
    }
}

/// The same of an input, where every number is there.
fn all_numbers(value: &Value) -> Vec<f64> {
    let numbers = numbers(value).into_iter();
    numbers.map(|x| x.expect("a number")).collect()
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files to check: those that the variable names, or the copy that ships.
fn files() -> Vec<PathBuf> {
    let Some(paths) = std::env::var_os("BURN_PREFERENCE_CONFORMANCE") else {
        return vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/peers.json")];
    };
    let mut files = Vec::new();
    for path in std::env::split_paths(&paths) {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path());
            files.extend(entries.filter(|p| p.extension().is_some_and(|e| e == "json")));
        } else {
            files.push(path);
        }
    }
    files.sort();
    assert!(
        !files.is_empty(),
        "BURN_PREFERENCE_CONFORMANCE names no file"
    );
    files
}

/// What the comparison of one case found.
#[derive(Default)]
struct Report {
    compared: usize,
    mismatches: Vec<String>,
    unmapped: Vec<String>,
    deliberate: BTreeMap<Difference, BTreeSet<String>>,
}

impl Report {
    /// Every case of a file; their number.
    fn check_file(&mut self, file: &Value, name: &str) -> usize {
        let (Some(inputs), Some(list)) = (file.get("inputs"), file["cases"].as_array()) else {
            panic!("{name} is not of the schema of peers.json");
        };
        for case in list {
            let text = |key: &str| {
                case[key]
                    .as_str()
                    .unwrap_or_else(|| panic!("{key} of {case}"))
            };
            self.check(&Case {
                producer: text("p"),
                loss: text("loss"),
                input: &inputs[text("input")],
                params: &case["params"],
                mode: text("mode"),
                out: &case["out"],
            });
        }
        list.len()
    }

    fn check(&mut self, case: &Case) {
        let ours = match map(case) {
            Ok(ours) => ours,
            Err(Unmapped::Deliberate(difference)) => return self.differ(difference, case),
            Err(Unmapped::Unknown) => return self.unmapped.push(case.name()),
        };
        let out = case.out.as_object().expect("out is an object");
        for (key, expected) in out {
            if expected.is_null() {
                continue; // The peer reports none.
            }
            if let Some(difference) = ours.not_compared(key) {
                self.differ(difference, case);
                continue;
            }
            match ours.numbers.get(key) {
                Some(values) => self.compare(case, key, values, &listed(key, expected), &ours),
                None => self.unmapped.push(format!("{}: out.{key}", case.name())),
            }
        }
    }

    fn compare(
        &mut self,
        case: &Case,
        key: &str,
        ours: &[f64],
        expected: &[Option<f64>],
        all: &Ours,
    ) {
        self.compared += 1;
        if ours.len() != expected.len() {
            let (a, b) = (ours.len(), expected.len());
            let text = format!("{}: {key} has {a} values instead of {b}", case.name());
            return self.mismatches.push(text);
        }
        for (i, (&a, &b)) in ours.iter().zip(expected).enumerate() {
            let b = match b {
                // Nothing flows into what has no tokens: a peer writes 0, NaN or null there, and
                // what we have is of a sum that nothing can move.
                b if limit::is_empty_completion(case, key, i)
                    && b.is_none_or(|b| b.is_nan() || b == 0.0) =>
                {
                    continue;
                }
                None => continue,
                Some(b) => b,
            };
            let close = |x: f64, tolerance: f64| support::error(a, x) <= tolerance;
            if !b.is_finite() && a.is_finite() {
                let known = limit::limits(case, key, i);
                // A gradient of the formula is a difference quotient.
                let tolerance = if key.starts_with("grad") { 1e-5 } else { 1e-9 };
                let Some((difference, _)) = known.iter().find(|(_, x)| close(*x, tolerance)) else {
                    let text = format!(
                        "{}: {key}[{i}] is {a} where the peer has {b}; the formula has {:?}",
                        case.name(),
                        known.iter().map(|(_, x)| x).collect::<Vec<_>>()
                    );
                    return self.mismatches.push(text);
                };
                self.differ(*difference, case);
            } else if !close(b, all.tolerance_of(key, b)) || a.is_nan() != b.is_nan() {
                let text = format!("{}: {key}[{i}] is {a} instead of {b}", case.name());
                // One number of a list is enough to find the rest.
                return self.mismatches.push(text);
            }
        }
    }

    fn differ(&mut self, difference: Difference, case: &Case) {
        self.deliberate
            .entry(difference)
            .or_default()
            .insert(format!("{} {}", case.producer, case.loss));
    }
}

#[test]
fn peers() {
    let mut report = Report::default();
    let mut cases = 0;
    for path in files() {
        cases += report.check_file(&read(&path), &path.display().to_string());
    }
    println!(
        "{cases} cases, {} lists of numbers compared",
        report.compared
    );
    for (difference, cases) in &report.deliberate {
        let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
        println!(
            "deliberate: {}\n    {}",
            difference.reason(),
            cases.join(", ")
        );
    }
    assert!(
        report.mismatches.is_empty() && report.unmapped.is_empty(),
        "{} mismatches:\n{}\n{} without a mapping:\n{}",
        report.mismatches.len(),
        report.mismatches.join("\n"),
        report.unmapped.len(),
        report.unmapped.join("\n"),
    );
    assert!(
        report.compared > 0,
        "no case of these files speaks of an objective of this crate"
    );
}

/// What a file may hold that `peers.json` does not: nulls, numbers that are not finite, metrics in
/// f32, gradients of nothing.
#[test]
fn odd_cases() {
    let softplus = |x: f64| x.exp().ln_1p();
    let held = 30.0 * 10_f64.ln();
    let odds = scalar::odds(-0.5);
    // AlphaPO: r = (1 − e^(−αℓ̄))/α of ℓ̄ = −1 and −2, β = 2, γ = 0.5, α = 0.25.
    let r = |x: f64| -(-0.25 * x).exp_m1() / 0.25;
    let alpha_po = softplus(-(2.0 * (r(-1.0) - r(-2.0)) - 0.5));
    let file = serde_json::json!({
        "inputs": {
            "certain": {"kind": "pairs_avg", "chosen": [0.0], "rejected": [-0.5]},
            "far": {
                "kind": "pairs", "chosen": [-2000.0], "rejected": [-5.0],
                "ref_chosen": [-4.0], "ref_rejected": [-4.0],
                "chosen_len": [9], "rejected_len": [9],
            },
            "empty": {
                "kind": "pairs", "chosen": [0.0, -3.0], "rejected": [-5.0, -4.0],
                "ref_chosen": [0.0, -3.0], "ref_rejected": [-4.0, -4.0],
                "chosen_len": [0, 2], "rejected_len": [9, 2],
            },
            "means": {"kind": "pairs_avg", "chosen": [-1.0], "rejected": [-2.0]},
        },
        "cases": [
            {
                // A probability of 1: infinite odds there, held here.
                "p": "trl116.orpo", "loss": "orpo_or", "input": "certain", "mode": "per_example",
                "params": {"beta": 0.5},
                "out": {"losses": ["nan"], "grad_chosen": ["nan"], "mean_chosen_reward": null},
            },
            {
                // e^1996 is no f64, and its gradient is no number.
                "p": "trl116.dpo", "loss": "hinge", "input": "far", "mode": "per_example",
                "params": {"beta": 0.1, "f_divergence_type": "forward_kl"},
                "out": {"losses": ["inf"], "grad_chosen": ["nan"]},
            },
            {
                "p": "trl116.dpo", "loss": "sigmoid", "input": "empty", "mode": "per_example",
                "params": {"beta": 0.1},
                "out": {
                    "losses": [softplus(-0.1), 2_f64.ln()],
                    "grad_chosen": [null, -0.05],
                    // As f32 has it: 1e-9 would not do.
                    "mean_rejected_reward": f64::from(0.1_f32 * -0.5),
                    "accuracy": null,
                },
            },
            {
                "p": "trl116.cpo", "loss": "cpo_simpo", "input": "means", "mode": "per_example",
                "params": {"beta": 2.0, "simpo_gamma": 0.5, "alpha": 0.25, "cpo_alpha": 0.0},
                "out": {"losses": [alpha_po]},
            },
        ],
    });
    let mut report = Report::default();
    report.check_file(&file, "odd cases");
    let found = format!("{:?}, {:?}", report.mismatches, report.unmapped);
    assert!(
        report.mismatches.is_empty() && report.unmapped.is_empty(),
        "{found}"
    );
    let differences: Vec<_> = report.deliberate.keys().collect();
    assert!(differences.contains(&&Difference::Held), "{differences:?}");
    let orpo = limit::limits(
        &Case {
            producer: "trl116.orpo",
            loss: "orpo_or",
            input: &file["inputs"]["certain"],
            params: &serde_json::json!({"beta": 0.5}),
            mode: "per_example",
            out: &Value::Null,
        },
        "losses",
        0,
    );
    let expected = -0.5 * scalar::ln_sigmoid(held - odds);
    assert!(
        orpo.iter()
            .any(|(_, x)| support::error(*x, expected) < 1e-12),
        "{orpo:?}"
    );

    // A finite number of ours where nobody knows the limit is a mismatch, not a pass.
    let unknown = serde_json::json!({
        "inputs": {"far": file["inputs"]["far"]},
        "cases": [{
            "p": "trl116.dpo", "loss": "nca_pair", "input": "far", "mode": "per_example",
            "params": {"beta": 0.1}, "out": {"losses": ["inf"]},
        }],
    });
    let mut report = Report::default();
    report.check_file(&unknown, "unknown");
    assert_eq!(report.mismatches.len(), 1, "{:?}", report.mismatches);
}
