//! The right of one process to write `OUT`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use super::error::file;
use super::whole::{create_folder, hidden, parent, remove, remove_scratch};
use crate::failure::Failure;
use crate::say;

/// `OUT` and what stands beside it, for this process alone until the value is dropped: a lock on the
/// file `.OUT.lock`, which the system takes back when a process dies, however it does.
///
/// So what a dead process has left is known without asking which processes live. Their numbers say
/// nothing in another container or on another machine. Who has the lock writes alone, and all scratch of `OUT` is
/// of the dead. [`take`](Self::take) removes it, and so does dropping.
#[derive(Debug)]
pub struct Claim {
    out: PathBuf,
    /// The lock; none where the file system has no locks.
    lock: Option<File>,
}

impl Claim {
    /// Claims `out`, and makes the folder that it stands in. Where the file system has no locks, a line
    /// says so, and nothing is removed.
    ///
    /// # Errors
    ///
    /// Another process has claimed it, or a file cannot be made or removed.
    pub fn take(out: &Path) -> Result<Self, Failure> {
        create_folder(parent(out)).map_err(|error| format!("--out: {error}"))?;
        let path = hidden(out, ".lock");
        let lock = loop {
            let mut options = OpenOptions::new();
            let lock = options.write(true).create(true).truncate(false).open(&path);
            let lock = lock.map_err(file(&path))?;
            match lock.try_lock() {
                Ok(()) if is_at(&lock, &path) => break Some(lock),
                // Its holder has ended meanwhile, and removed it.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let what = "another run is writing it";
                    return Err(format!("--out: {}: {what}", out.display()).into());
                }
                Err(TryLockError::Error(error)) => {
                    say!(
                        "look: no lock on {}: {error}; a second run into the same --out would not be \
                         noticed, and what a killed one has left stays",
                        path.display()
                    );
                    let _ = fs::remove_file(&path);
                    break None;
                }
            }
        };
        let out = out.to_owned();
        let claim = Self { out, lock };
        claim.remove_scratch()?;
        Ok(claim)
    }

    /// True if no other process can have claimed the same.
    pub fn is_exclusive(&self) -> bool {
        self.lock.is_some()
    }

    /// The folder that is saved first, and published as `out` when all of it is there.
    pub fn staging(out: &Path) -> PathBuf {
        hidden(out, ".saved")
    }

    fn remove_scratch(&self) -> Result<(), Failure> {
        if !self.is_exclusive() {
            return Ok(());
        }
        let name = self.out.file_name().unwrap_or_default().to_string_lossy();
        let name = name.strip_prefix('.').unwrap_or(&name);
        let ends = [".saved", ".jsonl", ".answers.jsonl"];
        remove_scratch(parent(&self.out), |scratch| {
            let end = scratch.strip_prefix(name);
            end.is_some_and(|end| ends.contains(&end))
        })?;
        let staging = Self::staging(&self.out);
        if staging.exists() {
            remove(&staging).map_err(file(&staging))?;
        }
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // After an error, which matters more.
        let _ = self.remove_scratch();
        if cfg!(unix) && self.is_exclusive() {
            // Before the lock ends: who waits for this file sees that it is another one.
            let _ = fs::remove_file(hidden(&self.out, ".lock"));
        }
    }
}

/// True if an open file still has this name.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |data: fs::Metadata| (data.dev(), data.ino());
    let [opened, named] = [file.metadata(), fs::metadata(path)].map(|data| data.map(place));
    matches!((opened, named), (Ok(opened), Ok(named)) if opened == named)
}

/// Nobody removes it.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}
