//! The program in a folder of its own: its command line, and what a run has said and written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use super::{copy, data};

/// A folder of its own with a model, its tokenizer and rows.
pub(crate) struct Place(pub(crate) TempDir);

impl Place {
    pub(crate) fn new(family: &str) -> Self {
        let folder = tempdir().unwrap();
        let to = |name: &str| folder.path().join(name);
        copy(&data(family), &to("model"));
        for entry in fs::read_dir(data("tokenizer")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let of_model = Path::new(&name).extension() != Some("jsonl".as_ref());
            let place = if of_model { "model/" } else { "" };
            fs::copy(data("tokenizer").join(&name), to(&format!("{place}{name}"))).unwrap();
        }
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Arguments without blanks in them; those of every run need not be said.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut all: Vec<&str> = arguments.split_whitespace().collect();
        let usual = [
            ("--model", "model"),
            ("--data", "pairs.jsonl"),
            ("--max-length", "32"),
            ("--steps", "4"),
            ("--evaluate-every", "4"),
            ("--answers", "0"),
        ];
        let samples = all.contains(&"--sample");
        for (name, value) in usual {
            let of_training = ["--steps", "--evaluate-every", "--answers"].contains(&name);
            if !(all.contains(&name) || samples && of_training) {
                all.extend([name, value]);
            }
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_finetune"));
        command.args(all).current_dir(self.0.path());
        command
    }

    /// A run that ends well.
    pub(crate) fn run(&self, out: &str, arguments: &str) -> Run {
        self.finish(out, &mut self.command(&format!("{arguments} --out {out}")))
    }

    pub(crate) fn finish(&self, out: &str, command: &mut Command) -> Run {
        let done = command.output().unwrap();
        let run = Run::new(self.path(out), &done);
        assert!(done.status.success(), "{command:?}: {}", run.text);
        run
    }

    /// What a run says that fails, and leaves nothing that could be taken for a result.
    pub(crate) fn fails(&self, arguments: &str, text: &str) {
        self.fails_as(
            &mut self.command(&format!("{arguments} --out failed")),
            text,
        );
    }

    pub(crate) fn fails_as(&self, command: &mut Command, text: &str) {
        let done = command.output().unwrap();
        let error = String::from_utf8(done.stderr).unwrap();
        assert!(!done.status.success(), "{command:?}");
        assert!(error.contains(text), "{command:?}: {error}");
        assert!(!error.contains("panicked"), "{error}");
        for entry in fs::read_dir(self.0.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with('.'), "{name}");
            let is_result = name == "failed" || name.starts_with("failed.json");
            assert!(!is_result, "{name}");
        }
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }
}

/// What a run has said and written.
pub(crate) struct Run {
    pub(crate) out: PathBuf,
    pub(crate) text: String,
}

impl Run {
    pub(crate) fn new(out: PathBuf, done: &Output) -> Self {
        let text = [&done.stdout[..], &done.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        Self { out, text }
    }

    /// Loss, accuracy, margin, and the log-probabilities of both sides; NaN where there is none.
    pub(crate) fn row(&self, name: &str) -> Vec<f64> {
        let start = format!("| {name} | ");
        let line = self.text.lines().find_map(|line| line.strip_prefix(&start));
        let line = line.unwrap_or_else(|| panic!("no row {name}: {}", self.text));
        let numbers = line.trim_end_matches('|').split('|');
        numbers
            .map(|x| x.trim().parse().unwrap_or(f64::NAN))
            .collect()
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.out.with_extension("run")
    }

    /// The lines of the metrics, without the clock.
    pub(crate) fn metrics(&self) -> String {
        without_clock(&fs::read_to_string(self.folder().join("metrics.jsonl")).unwrap())
    }

    /// A number of each line that has it, and its step.
    pub(crate) fn numbers(&self, of: &str, key: &str) -> Vec<(u64, f64)> {
        let text = self.metrics();
        let lines = text.lines().map(|line| -> Value {
            let line = serde_json::from_str(line);
            line.unwrap()
        });
        let numbers = lines.filter_map(|line| {
            let step = line["step"].as_u64().unwrap();
            Some((step, line[of][key].as_f64()?))
        });
        numbers.collect()
    }

    pub(crate) fn losses(&self) -> Vec<f64> {
        let all = ["train", "held_out"].map(|of| self.numbers(of, "loss"));
        let losses: Vec<f64> = all.concat().into_iter().map(|(_, loss)| loss).collect();
        assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
        losses
    }

    /// That the held-out loss has fallen.
    pub(crate) fn learns(&self) {
        self.learns_by("loss");
    }

    /// That this held-out metric has fallen.
    pub(crate) fn learns_by(&self, key: &str) {
        self.losses();
        let held_out = self.numbers("held_out", key);
        let (first, last) = (held_out[0], held_out[held_out.len() - 1]);
        assert!(first.0 == 0 && last.1 < first.1, "{held_out:?}");
    }

    pub(crate) fn checkpoints(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains("checkpoint")).collect()
    }
}

/// Lines of metrics without what differs from run to run.
pub(crate) fn without_clock(lines: &str) -> String {
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        let seconds = fields.remove("seconds");
        if let Some(speed) = fields.remove("tokens_per_second") {
            let product = speed.as_f64().unwrap() * seconds.unwrap().as_f64().unwrap();
            let tokens = fields["tokens"].as_f64().unwrap();
            assert!(tokens > 0.0 && (product / tokens - 1.0).abs() < 1e-6);
        }
        format!("{line}\n")
    };
    lines.lines().map(line).collect()
}
