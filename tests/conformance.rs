//! The values of the peers' own code: TRL, Liger, HALOs, torchtune, the authors' repositories.
//!
//! Reads `tests/data/peers.json`, or the files and folders of files that the environment variable
//! `BURN_PREFERENCE_CONFORMANCE` names (separated as in `PATH`), maps every case to our objects,
//! and fails with the list of mismatches and of cases without a mapping. Where we differ on
//! purpose, a row of `Difference` says why; the rows that applied are printed.

mod support;

#[path = "conformance/llama.rs"]
mod llama;
#[path = "conformance/map.rs"]
mod map;

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
        let value = self.params.get(name)?;
        (!value.is_null()).then(|| number(value))
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

/// A JSON number, or `"nan"`, `"inf"`, `"-inf"`.
fn number(value: &Value) -> f64 {
    match value {
        Value::Number(number) => number.as_f64().unwrap(),
        Value::String(text) => text.parse().unwrap(),
        Value::Bool(flag) => f64::from(u8::from(*flag)),
        _ => panic!("not a number: {value}"),
    }
}

/// All numbers of nested lists, in order.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        value => vec![number(value)],
    }
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
    fn check(&mut self, case: &Case) {
        let ours = match map(case) {
            Ok(ours) => ours,
            Err(Unmapped::Deliberate(difference)) => return self.differ(difference, case),
            Err(Unmapped::Unknown) => return self.unmapped.push(case.name()),
        };
        let out = case.out.as_object().expect("out is an object");
        for (key, expected) in out {
            if let Some(difference) = ours.not_compared(key) {
                self.differ(difference, case);
                continue;
            }
            match ours.numbers.get(key) {
                Some(values) => self.compare(case, key, values, &numbers(expected), &ours),
                None => self.unmapped.push(format!("{}: out.{key}", case.name())),
            }
        }
    }

    fn compare(&mut self, case: &Case, key: &str, ours: &[f64], expected: &[f64], all: &Ours) {
        self.compared += 1;
        if ours.len() != expected.len() {
            let (a, b) = (ours.len(), expected.len());
            let text = format!("{}: {key} has {a} values instead of {b}", case.name());
            return self.mismatches.push(text);
        }
        for (i, (&a, &b)) in ours.iter().zip(expected).enumerate() {
            if !b.is_finite() && a.is_finite() {
                self.differ(Difference::NotFinite, case);
            } else if support::error(a, b) > all.tolerance || a.is_nan() != b.is_nan() {
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
        let file = read(&path);
        let (Some(inputs), Some(list)) = (file.get("inputs"), file["cases"].as_array()) else {
            panic!("{} is not of the schema of peers.json", path.display());
        };
        for case in list {
            let text = |key: &str| {
                case[key]
                    .as_str()
                    .unwrap_or_else(|| panic!("{key} of {case}"))
            };
            cases += 1;
            report.check(&Case {
                producer: text("p"),
                loss: text("loss"),
                input: &inputs[text("input")],
                params: &case["params"],
                mode: text("mode"),
                out: &case["out"],
            });
        }
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
