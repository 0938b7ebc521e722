//! Long runs, many runs, and data of which a part is broken: what stays flat, and what stays the same.

#![cfg(target_os = "linux")]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use support::place::{Place, Run};

/// What a process holds, and what it has done, at a moment of its run.
#[derive(Debug, Clone, Copy)]
struct Sample {
    steps: usize,
    cpu_seconds: f64,
    kibibytes: u64,
    handles: usize,
}

impl Sample {
    /// None of a process that has ended.
    fn of(child: &Child, metrics: &Path) -> Option<Self> {
        let process = Path::new("/proc").join(child.id().to_string());
        let status = fs::read_to_string(process.join("status")).ok()?;
        let resident = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        // Behind the name: user and system time are the 12th and 13th, in hundredths of a second.
        let behind: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let ticks: f64 = behind[11..13]
            .iter()
            .map(|x| x.parse::<f64>().unwrap())
            .sum();
        Some(Self {
            steps: last_step(metrics)?,
            cpu_seconds: ticks / 100.0,
            kibibytes: resident.split_whitespace().nth(1)?.parse().ok()?,
            handles: fs::read_dir(process.join("fd")).ok()?.count(),
        })
    }
}

/// The step of the last whole line.
fn last_step(metrics: &Path) -> Option<usize> {
    let text = fs::read(metrics).ok()?;
    let end = text.iter().rposition(|byte| *byte == b'\n')?;
    let start = text[..end].iter().rposition(|byte| *byte == b'\n');
    let line = &text[start.map_or(0, |start| start + 1)..end];
    let line: serde_json::Value = serde_json::from_slice(line).ok()?;
    Some(usize::try_from(line["step"].as_u64()?).unwrap())
}

fn run_of(place: &Place, out: &str, mut child: Child) -> Run {
    assert!(child.wait().unwrap().success());
    let log = fs::read_to_string(place.path(&format!("{out}.log"))).unwrap();
    Run {
        out: place.path(out),
        text: log,
    }
}

fn start(place: &Place, out: &str, arguments: &str) -> Child {
    let log = fs::File::create(place.path(&format!("{out}.log"))).unwrap();
    let mut command = place.command(&format!("{arguments} --out {out}"));
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap()
}

fn weights(run: &Run) -> Vec<u8> {
    fs::read(run.out.join("model.safetensors")).unwrap()
}

/// `BURN_PREFERENCE_SOAK` minutes, 2 without it.
#[test]
#[ignore = "minutes or hours: CONTRIBUTING.md"]
fn a_long_run_stays_flat_and_a_second_half_is_the_same() {
    let minutes = std::env::var("BURN_PREFERENCE_SOAK").map_or(2.0, |text| text.parse().unwrap());
    let place = Place::new("llama");
    let usual = "--batch 16 --rank 2 --workers 1 --schedule constant --cache cache";
    let clock = Instant::now();
    place.run(
        "short",
        &format!("{usual} --steps 200 --evaluate-every 100"),
    );
    let each = clock.elapsed().as_secs_f64() / 200.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of steps"
    )]
    let steps = (60.0 * minutes / each) as usize / 200 * 200;
    let arguments = format!("{usual} --steps {steps} --evaluate-every {}", steps / 200);

    let mut child = start(&place, "whole", &arguments);
    let metrics = place.path("whole.run/metrics.jsonl");
    let mut samples = Vec::new();
    let mut half = None;
    while child.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_secs_f64(0.6 * minutes));
        samples.extend(Sample::of(&child, &metrics));
        if half.is_none() && samples.last().is_some_and(|now| 2 * now.steps > steps) {
            // As a kill would leave it.
            signal(&child, "STOP");
            let mut copy = Command::new("cp");
            let copy = copy.args(["-r", "whole.run", "half.run"]);
            assert!(copy.current_dir(place.0.path()).status().unwrap().success());
            signal(&child, "CONT");
            half = Some(start(&place, "half", &format!("{arguments} --resume")));
        }
    }
    let whole = run_of(&place, "whole", child);
    let half = run_of(
        &place,
        "half",
        half.expect("a run of more than two samples"),
    );
    println!("{steps} steps, {} samples", samples.len());
    println!("| steps | CPU ms a step | MiB | handles |\n|---|---|---|---|");
    // Tenths of the run; the beginning of the first one loads the model.
    let tenths: Vec<_> = (0..10)
        .map(|tenth| {
            let within = |sample: &&Sample| sample.steps * 10 / (steps + 1) == tenth;
            let of: Vec<_> = samples.iter().filter(within).collect();
            let (first, last) = (of[0], of[of.len() - 1]);
            let per_step =
                1e3 * (last.cpu_seconds - first.cpu_seconds) / (last.steps - first.steps) as f64;
            let kibibytes = of.iter().map(|sample| sample.kibibytes).max().unwrap();
            let handles = of.iter().map(|sample| sample.handles).max().unwrap();
            let mib = kibibytes as f64 / 1024.0;
            println!("| {} | {per_step:.3} | {mib:.1} | {handles} |", last.steps);
            (per_step, mib, handles)
        })
        .collect();
    assert!(half.text.contains("goes on after step"), "{}", half.text);
    assert!(whole.metrics() == half.metrics(), "other metrics");
    assert!(weights(&whole) == weights(&half), "other weights");
    // In two hours, 50 bytes a step would be seen. The time is printed, not judged.
    let (_, first, handles) = tenths[0];
    for (_, mib, of_tenth) in &tenths[1..] {
        assert!(*mib < first + 16.0 && *of_tenth < handles + 4, "{tenths:?}");
    }
}

fn signal(child: &Child, name: &str) {
    let mut kill = Command::new("kill");
    let kill = kill.args([format!("-{name}"), child.id().to_string()]);
    assert!(kill.status().unwrap().success());
}

/// Rows that no pair can be read from, each broken in its way.
const BROKEN: [&[u8]; 20] = [
    b"{",
    b"not json",
    b"[]",
    b"[{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}]",
    b"3",
    b"null",
    b"\"text\"",
    b"{}",
    br#"{"prompt": "a red", "chosen": " cat"}"#,
    br#"{"prompt": "a red", "rejected": " cat"}"#,
    br#"{"prompt": "a red", "chosen": " cat", "rejected": null}"#,
    br#"{"prompt": "a red", "chosen": 3, "rejected": " dog"}"#,
    br#"{"prompt": "a red", "chosen": {"text": " cat"}, "rejected": " dog"}"#,
    br#"{"prompt": "a red", "chosen": [" cat"], "rejected": [" dog"]}"#,
    br#"{"prompt": "a red", "chosen": " cat", "rejected": " dog""#,
    br#"{"prompt": "a red", "chosen": " cat", "rejected": " dog"} {"#,
    br#"{"prompt": "a \ud800 red", "chosen": " cat", "rejected": " dog"}"#,
    b"{\"prompt\": \"a \xff red\", \"chosen\": \" cat\", \"rejected\": \" dog\"}",
    b"{\"prompt\": \"a \x01 red\", \"chosen\": \" cat\", \"rejected\": \" dog\"}",
    b"{\"prompt\": \"a red\", \"chosen\": 1e999, \"rejected\": \" dog\"}",
];

#[test]
fn one_row_in_a_hundred_is_broken() {
    let place = Place::new("llama");
    let rows = place.text("pairs.jsonl");
    let rows: Vec<&str> = rows.lines().collect();
    let (mut clean, mut broken) = (String::new(), Vec::new());
    for number in 0..2000 {
        let row = rows[number % rows.len()];
        writeln!(clean, "{row}").unwrap();
        if number % 100 == 50 {
            broken.extend_from_slice(BROKEN[number / 100]);
            broken.push(b'\n');
        }
        broken.extend_from_slice(row.as_bytes());
        broken.push(b'\n');
    }
    place.write("clean.jsonl", &clean);
    fs::write(place.path("broken.jsonl"), broken).unwrap();
    let steps = "--batch 64 --budget 4096 --steps 8";
    let expected = place.run("expected", &format!("--data clean.jsonl {steps}"));
    let found = place.run(
        "found",
        &format!("--data broken.jsonl --skip-errors {steps}"),
    );
    for (kind, row) in BROKEN.iter().enumerate() {
        let line = 100 * kind + 51 + kind;
        let said = format!("left out: broken.jsonl:{line}");
        let row = String::from_utf8_lossy(row);
        assert!(found.text.contains(&said), "{row} {}", found.text);
    }
    assert_eq!(found.text.matches("left out: ").count(), BROKEN.len());
    assert!(expected.metrics() == found.metrics());
    assert!(weights(&expected) == weights(&found));
}

#[test]
fn twenty_runs_at_once_on_one_cache() {
    let place = Place::new("llama");
    let arguments = "--batch 4 --steps 6 --evaluate-every 3";
    let alone = place.run("alone", &format!("{arguments} --cache of-one"));
    let of_all = format!("{arguments} --cache cache");
    let runs: Vec<_> = (0..20)
        .map(|number| {
            let out = format!("out{number}");
            let child = start(&place, &out, &of_all);
            (out, child)
        })
        .collect();
    for (out, child) in runs {
        let run = run_of(&place, &out, child);
        assert!(run.metrics() == alone.metrics(), "{out}");
        assert!(weights(&run) == weights(&alone), "{out}");
    }
    // What they kept serves the next one, which computes nothing.
    let next = place.run("next", &of_all);
    let said = "reference: 48 in the cache, 0 computed";
    assert!(next.text.contains(said), "{}", next.text);
    assert!(next.metrics() == alone.metrics());
}
