//! The log-probabilities of a reference on disk, computed once.
//!
//! A reference never changes, so neither do its log-probabilities. They are stored by what they
//! depend on: the [`Fingerprint`] of the model, and for each entry a hash of the [`Sequence`]:
//! prompt length, token ids, which tokens count, and the hash of a context. Subsets, another order,
//! another truncation, mask, image or chat template can then never return a stale value; they miss.
//!
//! ```text
//! root/<fingerprint>/<hash of the content>.bpk      one segment per flush, never changed
//! ```
//!
//! - **What [`flush`](ReferenceCache::flush) returned from is on disk**, whatever happens to the
//!   process: a segment is written beside its place, synced, and renamed.
//! - **Several writers** may fill one cache: each adds segments of its own. Where two of them
//!   computed the same sequence, the last digits may differ, since another batch rounds otherwise.
//!   The segment with the smallest name then decides. After [`open`](ReferenceCache::open) or
//!   [`refresh`](ReferenceCache::refresh) every process that sees the same segments has the same
//!   values, whoever wrote them and in whatever order they were read.
//! - **A value changes only in [`refresh`](ReferenceCache::refresh)**, which may find a segment
//!   with a smaller name. For one value in the whole run: open after all writers have ended.
//! - **A file that is torn, foreign or of another version is an error** that names it, never a
//!   miss: delete it, or find out how it came there. Files whose name begins with a dot
//!   (`.DS_Store`, `.nfs…`) are the system's and passed over.
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
//!         let lengths: Vec<usize> = batch.iter().map(|s| s.length()).collect();
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
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use thiserror::Error;

pub use fingerprint::Fingerprint;
use segment::{EXTENSION, Entry};

use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;
use crate::tokens::{Reference, Sealed, Sequence};

/// What is wrong with a cache.
#[derive(Debug, Error)]
#[non_exhaustive]
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
    /// A segment has the format of another version of this crate. Its keys are hashes of something
    /// else, so that nothing in it could be found.
    #[error(
        "{}: cache format {found}, but this version reads {expected}: delete the directory and \
         fill it again, or use another root",
        path.display()
    )]
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
#[non_exhaustive]
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
    entries: HashMap<Key, Known>,
    /// Keys of entries that no segment held when they were inserted.
    pending: Vec<Key>,
    segments: BTreeSet<Arc<OsStr>>,
}

type Key = [u8; 32];

/// What an entry is found by.
fn key(sequence: &Sequence) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(segment::VERSION.as_bytes());
    hasher.update(&(sequence.prompt().len() as u64).to_le_bytes());
    hasher.update(&(sequence.ids().len() as u64).to_le_bytes());
    for id in sequence.ids() {
        hasher.update(&id.to_le_bytes());
    }
    // A byte says whether something follows. The numbers above say how much it is.
    hasher.update(&[u8::from(sequence.counted().is_some())]);
    for &counted in sequence.counted().unwrap_or_default() {
        hasher.update(&[u8::from(counted)]);
    }
    hasher.update(&[u8::from(sequence.context().is_some())]);
    hasher.update(sequence.context().map_or(&[], <[u8; 32]>::as_slice));
    *hasher.finalize().as_bytes()
}

/// An entry, and where it is from.
#[derive(Debug)]
struct Known {
    entry: Entry,
    /// The segment with the smallest name that holds it; `None` while it is not on disk.
    segment: Option<Arc<OsStr>>,
}

/// Makes a directory that a loss of power does not take away.
fn create(directory: &Path) -> Result<(), CacheError> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = directory.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(parent) = parent {
        create(parent)?;
    }
    match fs::create_dir(directory) {
        // Another process was faster; whether it has synced is unknown, so that we do.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
        made => made.map_err(|e| CacheError::file(directory, e))?,
    }
    // The name of a directory is an entry of its parent.
    #[cfg(unix)]
    {
        let parent = parent.unwrap_or(Path::new("."));
        fs::File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(|e| CacheError::file(parent, e))?;
    }
    Ok(())
}

impl ReferenceCache {
    /// Opens the cache of the model with this fingerprint below `root`, or begins one.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or read, or holds something else than whole segments of this
    /// cache. Scratch files of a writer that was killed are passed over, and so are dot files.
    pub fn open(root: impl AsRef<Path>, fingerprint: Fingerprint) -> Result<Self, CacheError> {
        let directory = root.as_ref().join(fingerprint.to_string());
        create(&directory)?;
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
    /// A sequence that several segments hold has the value of the segment with the smallest name,
    /// also where this cache had another one before. What was inserted here and is not flushed yet
    /// gives way to what is on disk.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn refresh(&mut self) -> Result<(), CacheError> {
        let failed = |e| CacheError::file(&self.directory, e);
        let mut names: Vec<OsString> = fs::read_dir(&self.directory)
            .and_then(|files| files.map(|file| Ok(file?.file_name())).collect())
            .map_err(failed)?;
        // Of several files that are wrong, the error names the same one everywhere.
        names.sort_unstable();
        for name in names {
            let path = self.directory.join(&name);
            let is = |extension| path.extension().is_some_and(|e| e == extension);
            let hidden = name.as_encoded_bytes().starts_with(b".");
            if hidden || is("tmp") || self.segments.contains(&*name) {
                continue;
            }
            if !is(EXTENSION) {
                let found = "another kind of file".to_owned();
                return Err(CacheError::Foreign { path, found });
            }
            let entries = segment::read(&path, &self.fingerprint)?;
            let name: Arc<OsStr> = name.into();
            for (key, entry) in entries {
                let segment = Some(Arc::clone(&name));
                match self.entries.get(&key) {
                    Some(Known {
                        segment: Some(known),
                        ..
                    }) if *known <= name => {}
                    _ => drop(self.entries.insert(key, Known { entry, segment })),
                }
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

    /// Adds log-probabilities, one per sequence; a sequence that is there keeps the value that it
    /// has. They are on disk after the next [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// There is not one log-probability per sequence, one is not finite, or one sums another number
    /// of tokens than its sequence counts; then none is added.
    pub fn insert(
        &mut self,
        sequences: &[Sequence],
        log_probs: &SequenceLogProbs,
    ) -> Result<(), CacheError> {
        let read = |values: Tensor<1>| values.into_data().iter().collect::<Vec<f64>>();
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
        for (index, (sequence, &length)) in sequences.iter().zip(&lengths).enumerate() {
            check_length(index, sequence, length)?;
        }
        for (sequence, sum) in sequences.iter().zip(sums) {
            let key = key(sequence);
            self.entries.entry(key).or_insert_with(|| {
                self.pending.push(key);
                let length = u32::try_from(sequence.length()).unwrap_or(u32::MAX);
                Known {
                    entry: Entry { sum, length },
                    segment: None,
                }
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
        // What a refresh has found on disk meanwhile needs no second place.
        let entries = &self.entries;
        self.pending.retain(|key| entries[key].segment.is_none());
        if self.pending.is_empty() {
            return Ok(());
        }
        let entries: Vec<(Key, Entry)> = self
            .pending
            .iter()
            .map(|key| (*key, self.entries[key].entry))
            .collect();
        let name = segment::write(&self.directory, &self.fingerprint, &entries)?;
        let name: Arc<OsStr> = name.into();
        for key in self.pending.drain(..) {
            if let Some(known) = self.entries.get_mut(&key) {
                known.segment = Some(Arc::clone(&name));
            }
        }
        self.segments.insert(name);
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
    /// `batch` is 0, `compute` fails, or as [`insert`](Self::insert) and [`flush`](Self::flush).
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
        if batch == 0 {
            let error = InvalidInput::new("batch", "1 at least", batch);
            return Err(CacheError::from(error).into());
        }
        let mut seen = HashSet::new();
        let mut missing: Vec<Sequence> = sequences
            .iter()
            .filter(|s| s.length() > 0 && !self.contains(s) && seen.insert(*s))
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

    /// The log-probabilities of `sequences`, in their order, as f32. That of a sequence that counts
    /// no token is 0, and needs no entry: such rows stand where a list is shorter than others.
    ///
    /// # Errors
    ///
    /// A sequence is not there, or its log-probability sums another number of tokens than the
    /// sequence counts; the error says which.
    pub fn log_probs(
        &self,
        sequences: &[Sequence],
        device: &Device,
    ) -> Result<SequenceLogProbs, CacheError> {
        let mut sums = Vec::with_capacity(sequences.len());
        let mut lengths = Vec::with_capacity(sequences.len());
        for (index, sequence) in sequences.iter().enumerate() {
            let known = match sequence.length() {
                // A sum over nothing, whatever the model is.
                0 => Some(Entry {
                    sum: 0.0,
                    length: 0,
                }),
                _ => self.entries.get(&key(sequence)).map(|known| known.entry),
            };
            let Entry { sum, length } = known.ok_or(CacheError::Missing { index })?;
            check_length(index, sequence, f64::from(length))?;
            #[allow(clippy::cast_possible_truncation, reason = "policies sum in f32")]
            sums.push(sum as f32);
            lengths.push(length as usize);
        }
        Ok(SequenceLogProbs::from_values(&sums, &lengths, device)?)
    }
}

impl Sealed for ReferenceCache {}

impl<M> Reference<M> for ReferenceCache {
    type Error = CacheError;

    fn answer(
        &self,
        sequences: &[Sequence],
        device: &Device,
        _: impl FnOnce(&M) -> Result<SequenceLogProbs, InvalidInput>,
    ) -> Result<SequenceLogProbs, CacheError> {
        self.log_probs(sequences, device)
    }
}

/// A sum over other tokens than those that count is the log-probability of something else.
fn check_length(index: usize, sequence: &Sequence, length: f64) -> Result<(), InvalidInput> {
    let expected = sequence.length();
    if length == expected as f64 {
        return Ok(());
    }
    let expected = format!("{expected} counted tokens of sequence {index}");
    Err(InvalidInput::new("lengths", expected, length))
}
