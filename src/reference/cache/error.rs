use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::TensorReadError;
use thiserror::Error;

use crate::error::InvalidInput;

/// A cache that cannot be read, written or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A file or directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Path of the file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A segment is incomplete or was changed: its content is not what its name says.
    #[error("{}: torn or changed: {found}", path.display())]
    Torn {
        /// Path of the segment.
        path: PathBuf,
        /// A description of the damage.
        found: String,
    },
    /// A file is no segment of this cache.
    #[error("{}: {found}, not a segment of this cache", path.display())]
    Foreign {
        /// Path of the file.
        path: PathBuf,
        /// A description of its content.
        found: String,
    },
    /// A segment has the format of another version of this crate. Its keys are hashes of something
    /// else, so that nothing in it could be found.
    #[error(
        "{}: cache format {found}, but this version reads {expected}: delete the directory and \
         fill it again, or use another root",
        path.display()
    )]
    Outdated {
        /// Path of the segment.
        path: PathBuf,
        /// Version of the segment's format.
        found: String,
        /// Version of the format that this crate reads and writes.
        expected: &'static str,
    },
    /// A sequence was asked for that was never computed.
    #[error("sequence {index} is not in the cache: fill it first")]
    Missing {
        /// Index among the sequences that were asked for.
        index: usize,
    },
    /// A log-probability is not a finite number: it would poison every later run.
    #[error("sequence {index} has the log-probability {value}")]
    NotFinite {
        /// Index among the sequences of the batch.
        index: usize,
        /// The model's log-probability.
        value: f64,
    },
    /// The device failed when log-probabilities were read from it.
    #[error(transparent)]
    Read(#[from] TensorReadError),
    /// Log-probabilities that do not fit their sequences.
    #[error(transparent)]
    Input(#[from] InvalidInput),
}

impl CacheError {
    pub(super) fn file(path: &Path, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }
}
