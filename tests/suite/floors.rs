//! The dependency map of ARCHITECTURE.md, enforced: imports point to lower floors only.

use std::fs;
use std::path::{Path, PathBuf};

const FLOORS: [&[&str]; 9] = [
    &["error", "guide", "math"],
    &["hyperparameter", "reducer"],
    &["gradients", "log_probs"],
    &["batch", "declare", "tokens"],
    &["part", "reference"],
    &["objective"],
    &["loss", "metrics", "modifier"],
    &["config", "data", "first_batch", "state", "train"],
    &["any_error"],
];

fn floor(module: &str) -> usize {
    FLOORS
        .iter()
        .position(|modules| modules.contains(&module))
        .unwrap_or_else(|| panic!("`{module}` has no floor: add it here and to ARCHITECTURE.md"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
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

/// The top-level modules that a source file names after `crate::`, comments left out.
fn imports(source: &str) -> Vec<String> {
    let code = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let mut modules = Vec::new();
    for line in code {
        for rest in line.split("crate::").skip(1) {
            let name: String = rest
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            assert!(
                !name.is_empty(),
                "`use crate::{{…}}` hides the floor: one line per module"
            );
            modules.push(name);
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
        let module = path
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let module = module.trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            let inside = import == module && module != "loss";
            assert!(
                inside || floor(&import) < floor(module),
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
        imports("use crate::loss::DpoLoss;\n// crate::batch"),
        ["loss"]
    );
}
