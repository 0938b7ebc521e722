//! The program in its short mode: it ends, draws its figures, and prints its table.

use std::path::Path;
use std::process::Command;

/// What it prints, by these arguments; its figures are there.
fn run(name: &str, arguments: &[&str]) -> String {
    let svg = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(name)
        .with_extension("svg");
    let mut command = Command::new(env!("CARGO_BIN_EXE_align"));
    let output = command
        .arg("--quick")
        .args(arguments)
        .arg("--svg")
        .arg(&svg)
        .output();
    let output = output.expect("the program runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    for figure in [svg.clone(), svg.with_extension("log-probs.svg")] {
        assert!(
            figure.metadata().is_ok_and(|file| file.len() > 1000),
            "{}",
            figure.display()
        );
    }
    text
}

#[test]
fn all_five() {
    let text = run("all", &[]);
    for name in ["DPO", "IPO", "KTO", "ORPO", "RRHF"] {
        assert!(text.contains(&format!("| {name} |")), "{text}");
    }
}

/// The same seed gives the same numbers, and another one others.
#[test]
fn a_seed_is_a_run() {
    let table = |name: &str, arguments: &[&str]| {
        let text = run(name, arguments);
        let mut rows = text.lines().filter(|line| line.starts_with("| DPO"));
        // The last column is seconds.
        let row = rows
            .next_back()
            .map(|row| row.rsplitn(3, '|').last().unwrap_or(row).to_owned());
        row.expect("a row of DPO")
    };
    let usual = ["--loss", "dpo"];
    let once = table("once", &usual);
    assert_eq!(table("again", &usual), once);
    assert_ne!(table("other", &["--loss", "dpo", "--seed", "8"]), once);
}

#[test]
fn a_reward_model_judges() {
    let text = run("judge", &["--judge", "reward-model", "--loss", "dpo"]);
    assert!(
        text.contains("judge: the program's better one is ahead in"),
        "{text}"
    );
}
