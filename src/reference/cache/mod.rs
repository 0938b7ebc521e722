//! The log-probabilities of a reference on disk, computed once.
//!
//! A reference never changes, so neither do its log-probabilities. They are stored by what they
//! depend on: the [`Fingerprint`] of the model, and for each entry a hash of prompt length and
//! token ids. Subsets, another order, another truncation or another chat template can then never
//! return a stale value; they miss.
//!
//! ```text
//! root/<fingerprint>/<hash of the content>.bpk      one segment per flush, never changed
//! ```
//!
//! - **What [`flush`](ReferenceCache::flush) returned from is on disk**, whatever happens to the
//!   process: a segment is written beside its place, synced, and renamed.
//! - **Several writers** may fill one cache: each adds segments of its own.
//! - **A file that is torn, foreign or of another version is an error** that names it, never a
//!   miss: delete it, or find out how it came there.
//!
//! ```
//! use burn::tensor::Device;
//! use burn_preference::SequenceLogProbs;
//! use burn_preference::reference::cache::{CacheError, Fingerprint, ReferenceCache};
//! use burn_preference::tokens::Sequence;
//!
//! # let dir = tempfile::tempdir()?;
//! # let root = dir.path();
//! # let device = Device::default();
//! # let model = burn::nn::LinearConfig::new(2, 2).init(&device);
//! let fingerprint = Fingerprint::of(&model).with("chat template", b"v1");
//! let mut cache = ReferenceCache::open(root, fingerprint)?;
//! let sequences = [Sequence::new(&[1, 2], &[3]), Sequence::new(&[1, 2], &[4, 5])];
//!
//! // Computes what is missing, 16 sequences at a time; a second run computes nothing.
//! cache.fill::<CacheError>(
//!     &sequences,
//!     16,
//!     |batch| {
//!         // Your model; here every token has −1 nat.
//!         let lengths: Vec<usize> = batch.iter().map(|s| s.completion().len()).collect();
//!         let sums: Vec<f32> = lengths.iter().map(|&n| -(n as f32)).collect();
//!         Ok(SequenceLogProbs::from_values(&sums, &lengths, &device)?)
//!     },
//!     |progress| println!("{} of {}", progress.done, progress.total),
//! )?;
//!
//! let reference = cache.log_probs(&sequences, &device)?; // for `relative_to`
//! assert_eq!(reference.sum().into_data().to_vec::<f32>().unwrap(), [-1.0, -2.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod fingerprint;
mod segment;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use thiserror::Error;

pub use fingerprint::Fingerprint;
use segment::{EXTENSION, Entry};

use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;
use crate::tokens::Sequence;

/// What is wrong with a cache.
#[derive(Debug, Error)]
pub enum CacheError {
    /// A file or directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A segment is incomplete or was changed: its content is not what its name says.
    #[error("{}: torn or changed: {found}", path.display())]
    Torn {
        /// The segment.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// A file is no segment of this cache.
    #[error("{}: {found}, not a segment of this cache", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// A segment has the format of another version of this crate.
    #[error("{}: cache format {found}, but this version reads {expected}", path.display())]
    Outdated {
        /// The segment.
        path: PathBuf,
        /// Its format.
        found: String,
        /// Ours.
        expected: &'static str,
    },
    /// A sequence was asked for that was never computed.
    #[error("sequence {index} is not in the cache: fill it first")]
    Missing {
        /// Its place among the sequences asked for.
        index: usize,
    },
    /// A log-probability is not a finite number: it would poison every later run.
    #[error("sequence {index} has the log-probability {value}")]
    NotFinite {
        /// Its place among the sequences of its batch.
        index: usize,
        /// What the model says.
        value: f64,
    },
    /// Log-probabilities that do not fit their sequences.
    #[error(transparent)]
    Input(#[from] InvalidInput),
}

impl CacheError {
    fn file(path: &Path, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }
}

/// How far [`ReferenceCache::fill`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Sequences computed and on disk, of those that were missing.
    pub done: usize,
    /// Sequences that were missing.
    pub total: usize,
}

/// Log-probabilities of one reference, in memory and on disk.
#[derive(Debug)]
pub struct ReferenceCache {
    directory: PathBuf,
    fingerprint: Fingerprint,
    entries: HashMap<Key, Entry>,
    /// Entries that no segment holds yet.
    pending: Vec<Key>,
    segments: BTreeSet<OsString>,
}

type Key = [u8; 32];

/// What an entry is found by.
fn key(sequence: &Sequence) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(segment::VERSION.as_bytes());
    hasher.update(&(sequence.prompt().len() as u64).to_le_bytes());
    for id in sequence.ids() {
        hasher.update(&id.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

impl ReferenceCache {
    /// Opens the cache of the model with this fingerprint below `root`, or begins one.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or read, or holds something else than whole segments of this
    /// cache. Scratch files of a writer that was killed are passed over.
    pub fn open(root: impl AsRef<Path>, fingerprint: Fingerprint) -> Result<Self, CacheError> {
        let directory = root.as_ref().join(fingerprint.to_string());
        fs::create_dir_all(&directory).map_err(|e| CacheError::file(&directory, e))?;
        let mut cache = Self {
            directory,
            fingerprint,
            entries: HashMap::new(),
            pending: Vec::new(),
            segments: BTreeSet::new(),
        };
        cache.refresh()?;
        Ok(cache)
    }

    /// Reads what other writers have flushed since.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn refresh(&mut self) -> Result<(), CacheError> {
        let failed = |e| CacheError::file(&self.directory, e);
        for file in fs::read_dir(&self.directory).map_err(failed)? {
            let file = file.map_err(failed)?;
            let (name, path) = (file.file_name(), file.path());
            let is = |extension| path.extension().is_some_and(|e| e == extension);
            if is("tmp") || self.segments.contains(&name) {
                continue;
            }
            if !is(EXTENSION) {
                let found = "another kind of file".to_owned();
                return Err(CacheError::Foreign { path, found });
            }
            for (key, entry) in segment::read(&path, &self.fingerprint)? {
                self.entries.entry(key).or_insert(entry);
            }
            self.segments.insert(name);
        }
        Ok(())
    }

    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where the segments are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether `sequence` is there.
    pub fn contains(&self, sequence: &Sequence) -> bool {
        self.entries.contains_key(&key(sequence))
    }

    /// Adds log-probabilities, one per sequence; a sequence that is there keeps its first value.
    /// They are on disk after the next [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// There is not one log-probability per sequence, or one is not finite; then none is added.
    pub fn insert(
        &mut self,
        sequences: &[Sequence],
        log_probs: &SequenceLogProbs,
    ) -> Result<(), CacheError> {
        let read = |values: burn::tensor::Tensor<1>| -> Vec<f64> {
            values.into_data().iter::<f64>().collect()
        };
        let sums = read(log_probs.sum());
        let lengths = read(log_probs.lengths());
        if sums.len() != sequences.len() {
            let expected = format!("{}, one per sequence", sequences.len());
            return Err(InvalidInput::new("log_probs", expected, sums.len()).into());
        }
        if let Some(index) = sums.iter().position(|sum| !sum.is_finite()) {
            let value = sums[index];
            return Err(CacheError::NotFinite { index, value });
        }
        for ((sequence, sum), length) in sequences.iter().zip(sums).zip(lengths) {
            let key = key(sequence);
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count"
            )]
            let length = length as u32;
            self.entries.entry(key).or_insert_with(|| {
                self.pending.push(key);
                Entry { sum, length }
            });
        }
        Ok(())
    }

    /// Writes what was inserted since the last time, in one segment.
    ///
    /// # Errors
    ///
    /// It cannot be written. Nothing is lost then: the next flush tries again.
    pub fn flush(&mut self) -> Result<(), CacheError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let entries: Vec<(Key, Entry)> = self
            .pending
            .iter()
            .map(|key| (*key, self.entries[key]))
            .collect();
        let name = segment::write(&self.directory, &self.fingerprint, &entries)?;
        self.segments.insert(name);
        self.pending.clear();
        Ok(())
    }

    /// Computes and stores what is missing of `sequences`, `batch` of them at a time.
    ///
    /// Every batch is flushed before `progress` hears of it, so that a run that is stopped goes on
    /// where it was. Sequences of similar length come together, the longest first: a batch that
    /// does not fit into memory then fails at once.
    ///
    /// # Errors
    ///
    /// `compute` fails, or as [`insert`](Self::insert) and [`flush`](Self::flush).
    ///
    /// # Panics
    ///
    /// Panics if `batch` is 0.
    pub fn fill<E>(
        &mut self,
        sequences: &[Sequence],
        batch: usize,
        mut compute: impl FnMut(&[Sequence]) -> Result<SequenceLogProbs, E>,
        mut progress: impl FnMut(Progress),
    ) -> Result<(), E>
    where
        E: From<CacheError>,
    {
        assert!(batch > 0, "batch: at least 1");
        let mut seen = HashSet::new();
        let mut missing: Vec<Sequence> = sequences
            .iter()
            .filter(|s| !self.contains(s) && seen.insert(*s))
            .cloned()
            .collect();
        missing.sort_by_key(|s| std::cmp::Reverse(s.ids().len()));
        let total = missing.len();
        let mut done = 0;
        for batch in missing.chunks(batch) {
            let log_probs = compute(batch)?;
            self.insert(batch, &log_probs)?;
            self.flush()?;
            done += batch.len();
            progress(Progress { done, total });
        }
        Ok(())
    }

    /// The log-probabilities of `sequences`, in their order, as f32.
    ///
    /// # Errors
    ///
    /// A sequence is not there; the error says which.
    pub fn log_probs(
        &self,
        sequences: &[Sequence],
        device: &Device,
    ) -> Result<SequenceLogProbs, CacheError> {
        let mut sums = Vec::with_capacity(sequences.len());
        let mut lengths = Vec::with_capacity(sequences.len());
        for (index, sequence) in sequences.iter().enumerate() {
            let entry = self.entries.get(&key(sequence));
            let Entry { sum, length } = *entry.ok_or(CacheError::Missing { index })?;
            #[allow(clippy::cast_possible_truncation, reason = "policies sum in f32")]
            sums.push(sum as f32);
            lengths.push(length as usize);
        }
        Ok(SequenceLogProbs::from_values(&sums, &lengths, device)?)
    }
}
