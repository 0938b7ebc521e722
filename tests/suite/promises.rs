//! What README promises, and `docs/promises.md`, which names the tests that show it.

use std::fs;
use std::path::Path;

fn text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The promises of README: a list whose items begin in bold.
fn promises() -> Vec<String> {
    let readme = text("README.md");
    let (_, section) = readme.split_once("## What you can rely on").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let items = section.lines().filter(|line| line.starts_with("- "));
    items.map(str::to_owned).collect()
}

/// The rows of the table: the words of README, the command and the tests.
fn rows() -> Vec<[String; 3]> {
    let table = text("docs/promises.md");
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = |row: &str| {
        let cells: Vec<String> = row.split('|').map(|cell| cell.trim().to_owned()).collect();
        let [_, promise, command, tests, _] = cells.try_into().expect("three columns");
        [promise, command, tests]
    };
    rows.map(cells).collect()
}

#[test]
fn every_promise_has_a_row() {
    let (promises, rows) = (promises(), rows());
    assert!(promises.len() >= 6, "{promises:?}");
    for promise in &promises {
        let head = promise.trim_start_matches("- **");
        let (head, _) = head.split_once("**").unwrap();
        assert!(rows.iter().any(|[words, ..]| words == head), "{head}");
    }
    for [words, ..] in &rows {
        let known = promises.iter().any(|promise| promise.contains(words));
        assert!(known, "README has no such words: {words}");
    }
}

/// The names of tests belong to the file before them.
#[test]
fn every_test_of_a_promise_exists() {
    let mut tests = 0;
    for [words, command, cell] in rows() {
        assert!(
            command.starts_with("`cargo test --workspace --test "),
            "{command}"
        );
        let mut file = String::new();
        for name in cell.split('`').skip(1).step_by(2) {
            if Path::new(name).extension().is_some_and(|end| end == "rs") {
                file = text(name);
                continue;
            }
            let (before, _) = file
                .split_once(&format!("fn {name}("))
                .unwrap_or_else(|| panic!("{words}: no test {name}"));
            let last = before.rsplit("\n\n").next().unwrap();
            assert!(last.contains("#[test]"), "{words}: {name} is no test");
            tests += 1;
        }
    }
    assert!(tests > 20, "{tests}");
}
