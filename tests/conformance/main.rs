//! The values of the peers' own code: TRL, Liger, HALOs, torchtune, oxRL, the authors' repositories.
//!
//! Reads `tests/data/peers.json` and whole training steps, `tests/data/steps.json`, or the files and
//! folders of files that the environment variable `BURN_PREFERENCE_CONFORMANCE` names (separated as
//! in `PATH`), of either schema; maps every case to our objects, and fails with the list of
//! mismatches and of cases without a mapping. Where we differ on purpose, a row of `Difference` says
//! why; the rows that applied are printed.

#[path = "../support/mod.rs"]
mod support;

#[path = "../suite/dual.rs"]
mod dual;
#[path = "../suite/formulas.rs"]
mod formulas;
mod limit;
mod llama;
mod map;
mod samples;
#[allow(dead_code, reason = "of the formulas, those that may overflow")]
#[path = "../suite/scalar.rs"]
mod scalar;
mod small;
mod steps;
mod vectors;

use crate::support::ZipEqual;
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

impl<'a> Case<'a> {
    fn of(case: &'a Value, inputs: &'a Value) -> Self {
        let text = |key: &str| {
            let text = case[key].as_str();
            text.unwrap_or_else(|| panic!("{key} of {case}"))
        };
        Self {
            producer: text("p"),
            loss: text("loss"),
            input: &inputs[text("input")],
            params: &case["params"],
            mode: text("mode"),
            out: &case["out"],
        }
    }

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

/// The copies that ship.
fn shipped() -> [PathBuf; 2] {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    ["peers.json", "steps.json"].map(|name| data.join(name))
}

/// The files to check: those that the variable names, or the copies that ship.
fn files() -> Vec<PathBuf> {
    let Some(paths) = std::env::var_os("BURN_PREFERENCE_CONFORMANCE") else {
        return shipped().into();
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
    /// Whose code each objective agreed with.
    agreed: BTreeMap<&'static str, BTreeSet<&'static str>>,
}

impl Report {
    /// Every case of the file at `path`; their number.
    fn check_path(&mut self, path: &Path) -> usize {
        let file = read(path);
        let Some(cases) = file.as_array() else {
            return self.check_file(&file, &path.display().to_string());
        };
        let steps = steps::read(path, cases);
        for step in &steps {
            self.check_step(step);
        }
        steps.len()
    }

    fn check_step(&mut self, step: &steps::Step) {
        match steps::check(step) {
            steps::Verdict::Same { objective, lists } => {
                self.compared += lists;
                self.agree(objective, &step.peer);
            }
            steps::Verdict::Different { difference, lists } => {
                self.compared += lists;
                let cases = self.deliberate.entry(difference).or_default();
                cases.insert(step.peer.clone());
            }
            steps::Verdict::Unmapped(text) => self.unmapped.push(text),
            steps::Verdict::Mismatch(texts) => self.mismatches.extend(texts),
        }
    }

    fn agree(&mut self, objective: &'static str, producer: &str) {
        let peer = map::peer(producer);
        self.agreed.entry(objective).or_default().insert(peer);
    }

    /// Every case of a file of one object; their number.
    fn check_file(&mut self, file: &Value, name: &str) -> usize {
        let (Some(inputs), Some(list)) = (file.get("inputs"), file["cases"].as_array()) else {
            panic!("{name} is not of the schema of peers.json");
        };
        for case in list {
            self.check(&Case::of(case, inputs));
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
        let wrong = self.mismatches.len();
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
        let of_loss = out.contains_key("loss") || out.contains_key("losses");
        if let Some(objective) = map::objective(case)
            && of_loss
            && self.mismatches.len() == wrong
        {
            self.agree(objective, case.producer);
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
        for (i, (&a, &b)) in ours.iter().zip_equal(expected).enumerate() {
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
            let close = |x: f64| support::error(a, x) <= all.tolerance_of(key, x);
            if close(b) && a.is_nan() == b.is_nan() {
                continue;
            }
            // A number that is not the peer's needs one of the formula that it is.
            let known = if a.is_finite() {
                limit::limits(case, key, i)
            } else {
                Vec::new()
            };
            // Where we hold a number, a finite one of the peer is that of the formula without it.
            let theirs = known.iter().find(|(d, _)| *d == Difference::Limit);
            let explained = !b.is_finite()
                || theirs.is_none_or(|(_, x)| support::error(*x, b) <= all.tolerance_of(key, b));
            let fits = |&(difference, x): &(Difference, f64)| {
                close(x) && explained && !(b.is_finite() && difference == Difference::Limit)
            };
            if let Some((difference, _)) = known.iter().copied().find(fits) {
                self.differ(difference, case);
                continue;
            }
            let known: Vec<f64> = known.into_iter().map(|(_, x)| x).collect();
            let text = format!("{}: {key}[{i}] is {a} instead of {b}", case.name());
            self.mismatches
                .push(format!("{text}; the formula has {known:?}"));
            // One number of a list is enough to find the rest.
            return;
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
        cases += report.check_path(&path);
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

/// docs/checked.md names whose code each objective agrees with: exactly what the files that ship show.
#[test]
fn the_documentation_names_whose_code_was_compared() {
    let mut report = Report::default();
    for path in shipped() {
        report.check_path(&path);
    }
    let of_samples = report.agreed.entry("GrpoLoss").or_default();
    of_samples.extend(samples::compare());
    for (objective, peers) in vectors::seconded() {
        report.agreed.entry(objective).or_default().extend(peers);
    }
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/checked.md");
    let table = std::fs::read_to_string(table).unwrap();
    let mut rows = 0;
    // Divergences are compared in `tests/suite/discrepancy.rs`.
    let rows_of_objectives = |line: &&str| line.starts_with("| [`") && line.contains("/loss/");
    for row in table.lines().filter(rows_of_objectives) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let objective = cells[1].split('`').nth(1).expect("a name in a link");
        // In brackets are peers whose values were not compared.
        let named = cells[2].split(", ").filter(|name| !name.starts_with('('));
        let named: BTreeSet<&str> = named.filter(|name| *name != "—").collect();
        let agreed = report.agreed.get(objective).cloned().unwrap_or_default();
        assert_eq!(named, agreed, "{objective}");
        rows += 1;
    }
    assert!(rows >= report.agreed.len(), "{rows} rows");
}

/// The formulas that give the limits are the peers' where these are finite.
#[test]
fn limits_are_the_peers_formulas() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/peers.json");
    let file = read(&path);
    let mut compared = BTreeSet::new();
    for case in file["cases"].as_array().unwrap() {
        let case = Case::of(case, &file["inputs"]);
        let Ok(ours) = map(&case) else { continue };
        for (key, expected) in case.out.as_object().unwrap() {
            if ours.not_compared(key).is_some() {
                continue;
            }
            for (i, expected) in listed(key, expected).into_iter().enumerate() {
                let limits = limit::limits(&case, key, i);
                let (Some(expected), false) = (expected, limits.is_empty()) else {
                    continue;
                };
                let close =
                    |x: f64| support::error(x, expected) <= ours.tolerance_of(key, expected);
                assert!(
                    limits.iter().any(|(_, x)| close(*x)),
                    "{}: {key}[{i}] is {expected}, the formula has {limits:?}",
                    case.name()
                );
                compared.insert(format!("{} {key}", case.loss));
            }
        }
    }
    assert!(compared.len() > 40, "{compared:?}");
}
