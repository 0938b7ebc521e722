//! The dependency map of ARCHITECTURE.md, enforced: imports point to lower floors only.

use std::fs;
use std::path::{Path, PathBuf};

/// A room whose parts stand on floors of their own.
const STAIRS: &str = "training";

const FLOORS: [&[&str]; 10] = [
    &["error", "guide", "kernel", "math"],
    &["hyperparameter", "needs", "training::reducer"],
    &["log_probs", "training::gradients"],
    &["batch", "tokens"],
    &["part", "reference"],
    &["objective"],
    &["declare"],
    &["loss", "modifier", "training::metrics"],
    &[
        "config",
        "data",
        "training::accumulation",
        "training::burn_train",
        "training::class_ratio",
        "training::first_batch",
        "training::state",
    ],
    &["any_error"],
];

fn floor(module: &str) -> usize {
    FLOORS
        .iter()
        .position(|modules| modules.contains(&module))
        .unwrap_or_else(|| panic!("`{module}` has no floor: add it here and to ARCHITECTURE.md"))
}

/// All source files below a folder.
pub fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// The modules that a source file names after `crate::`, comments left out.
fn imports(source: &str) -> Vec<String> {
    let code = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let mut modules = Vec::new();
    for line in code {
        for rest in line.split("crate::").skip(1) {
            let name = |text: &str| -> String {
                let name = text
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_');
                let name: String = name.collect();
                assert!(
                    !name.is_empty(),
                    "`use crate::{{…}}` hides the floor: one line per module"
                );
                name
            };
            let first = name(rest);
            modules.push(match rest.strip_prefix("training::") {
                Some(rest) => format!("{STAIRS}::{}", name(rest)),
                None => first,
            });
        }
    }
    modules
}

#[test]
fn imports_point_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for file in sources(&src) {
        let path = file.strip_prefix(&src).unwrap();
        let parts: Vec<&str> = path
            .iter()
            .map(|part| part.to_str().unwrap().trim_end_matches(".rs"))
            .collect();
        let module = match parts.as_slice() {
            ["lib"] | [STAIRS, "mod"] => continue,
            [STAIRS, part, ..] => format!("{STAIRS}::{part}"),
            [module, ..] => (*module).to_owned(),
            [] => unreachable!("a file has a name"),
        };
        let source = fs::read_to_string(&file).unwrap();
        if let [STAIRS, _] = parts.as_slice() {
            assert!(
                !source.contains("super::"),
                "{}: `super` hides the floor: say `crate::{STAIRS}::…`",
                path.display()
            );
        }
        for import in imports(&source) {
            let inside = import == module && module != "loss";
            assert!(
                inside || floor(&import) < floor(&module),
                "{}: `{module}` may not import `{import}`",
                path.display()
            );
            checked += 1;
        }
    }
    assert!(
        checked > 30,
        "only {checked} imports found: is the reader broken?"
    );
}

#[test]
fn the_reader_sees_upward_imports() {
    assert_eq!(
        imports(
            "use crate::loss::DpoLoss;\n// crate::batch\nuse crate::training::metrics::{Metrics};"
        ),
        ["loss", "training::metrics"]
    );
}
