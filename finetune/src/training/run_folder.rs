//! The files of a run.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::Failure;
use crate::files::whole::{create_folder, remove_scratch, write_whole};

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
        Ok(create_folder(&self.0)?)
    }

    /// Removes what a killed run has left: scratch, and checkpoints before the last one. Only while no
    /// other process writes into the folder, as [`Claim`](crate::Claim) says it.
    ///
    /// # Errors
    ///
    /// The folder cannot be read, or a file cannot be removed.
    pub fn remove_leftovers(&self) -> Result<(), Failure> {
        if !self.0.is_dir() {
            return Ok(());
        }
        remove_scratch(&self.0, |_| true)?;
        let mut checkpoints = self.checkpoints()?;
        checkpoints.pop();
        remove_checkpoints(checkpoints)
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

    /// Opens the metrics to append to, cut behind a step, where a killed run may have written more;
    /// before the first step, all of them.
    pub(super) fn open_metrics(&self, step: usize) -> Result<MetricsFile, Failure> {
        let path = self.metrics();
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        // A loss of power may leave any bytes behind what was synced.
        let there = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            bytes => Some(bytes.map_err(failed)?),
        };
        let is_before = |line: &&[u8]| {
            let line = serde_json::from_slice::<Value>(line);
            let at = line.ok().and_then(|line| line["step"].as_u64());
            step > 0 && at.is_some_and(|at| at <= step as u64)
        };
        let lines = there
            .as_deref()
            .unwrap_or_default()
            .split(|byte| *byte == b'\n');
        let kept: Vec<u8> = lines
            .filter(is_before)
            .flat_map(|line| [line, b"\n"].concat())
            .collect();
        if there.as_ref() != Some(&kept) {
            write_whole::<Failure>(&path, |scratch| {
                Ok(fs::write(scratch, kept).map_err(failed)?)
            })?;
        }
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(failed)?;
        Ok(MetricsFile(Some((path, file))))
    }
}

/// Removes checkpoints, with their steps.
pub(super) fn remove_checkpoints(checkpoints: Vec<(usize, PathBuf)>) -> Result<(), Failure> {
    for (_, path) in checkpoints {
        let removed = fs::remove_dir_all(&path);
        removed.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// The file of metrics, open to append to.
pub(super) struct MetricsFile(Option<(PathBuf, File)>);

impl MetricsFile {
    /// Nowhere, for a process that writes none.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Appends a line, by one write: a kill tears none.
    pub(super) fn append(&mut self, line: &Value) -> Result<(), Failure> {
        self.each(|file| file.write_all(format!("{line}\n").as_bytes()))
    }

    /// Syncs the lines to the disk.
    pub(super) fn sync(&mut self) -> Result<(), Failure> {
        self.each(|file| file.sync_all())
    }

    fn each(&mut self, act: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Failure> {
        if let Some((path, file)) = &mut self.0 {
            act(file).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }
}
