//! The files of a run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::Failure;

/// The folder of a run: checkpoints to go on from, metrics and their figure, the reference's cache.
#[derive(Debug, Clone)]
pub struct RunFolder(pub(super) PathBuf);

impl RunFolder {
    /// Names a folder that may be there already, or not yet.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Makes the folder, unless it is there.
    ///
    /// # Errors
    ///
    /// The folder cannot be made.
    pub fn create(&self) -> Result<(), Failure> {
        let made = fs::create_dir_all(&self.0);
        Ok(made.map_err(|error| format!("{}: {error}", self.0.display()))?)
    }

    /// The file of metrics, with a line of JSON a step and an evaluation.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// The file of the run's options.
    pub fn options(&self) -> PathBuf {
        self.0.join("options.json")
    }

    /// The figure of the metrics.
    pub fn figure(&self) -> PathBuf {
        self.0.join("metrics.svg")
    }

    /// The cache of the reference's log-probabilities.
    pub fn cache(&self) -> PathBuf {
        self.0.join("reference")
    }

    /// Whole checkpoints with their steps, the last one last.
    pub(super) fn checkpoints(&self) -> Result<Vec<(usize, PathBuf)>, Failure> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let step = name
                .strip_prefix("checkpoint-")
                .and_then(|step| step.parse().ok());
            found.extend(step.map(|step| (step, path)));
        }
        found.sort();
        Ok(found)
    }

    /// True if there is a run that can go on.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn has_checkpoint(&self) -> Result<bool, Failure> {
        Ok(!self.checkpoints()?.is_empty())
    }

    /// Cuts the metrics behind a step, where a killed run may have written more; before the first
    /// step, all of them.
    pub(super) fn cut_metrics(&self, step: usize) -> Result<(), Failure> {
        let path = self.metrics();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.map_err(|error| format!("{}: {error}", path.display()))?,
        };
        let is_before = |line: &&str| {
            let line = serde_json::from_str::<Value>(line);
            let at = line.ok().and_then(|line| line["step"].as_u64());
            step > 0 && at.is_some_and(|at| at <= step as u64)
        };
        let lines = text.lines().filter(is_before);
        let kept: String = lines.flat_map(|line| [line, "\n"]).collect();
        Ok(fs::write(path, kept)?)
    }
}
