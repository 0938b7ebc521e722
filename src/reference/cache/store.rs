use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorReadError};

use super::directory::create;
use super::error::CacheError;
use super::fingerprint::Fingerprint;
use super::key::{Key, key};
use super::segment::{self, CachedLogProb, EXTENSION};
use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;
use crate::tokens::{Reference, Sealed, Sequence};

/// Progress of [`ReferenceCache::fill`].
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

/// The log-probability of a sequence, and the segment that it is from.
#[derive(Debug)]
struct Known {
    value: CachedLogProb,
    /// The segment with the smallest name that holds it; `None` while it is not on disk.
    segment: Option<Arc<OsStr>>,
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
            for (key, value) in entries {
                let segment = Some(Arc::clone(&name));
                match self.entries.get(&key) {
                    Some(Known {
                        segment: Some(known),
                        ..
                    }) if *known <= name => {}
                    _ => drop(self.entries.insert(key, Known { value, segment })),
                }
            }
            self.segments.insert(name);
        }
        Ok(())
    }

    /// Removes the scratch files of writers that were killed. Only when nobody else writes: the flush of
    /// a living writer whose scratch is gone fails, and has to be called again.
    ///
    /// # Errors
    ///
    /// The directory cannot be read, or a file cannot be removed.
    pub fn remove_scratch(&self) -> Result<(), CacheError> {
        let scratch = |name: &OsStr| {
            let name = name.to_string_lossy();
            name.ends_with(".tmp") && name.contains(&format!(".{EXTENSION}."))
        };
        let failed = |e| CacheError::file(&self.directory, e);
        for file in fs::read_dir(&self.directory).map_err(failed)? {
            let file = file.map_err(failed)?;
            if scratch(&file.file_name()) {
                let path = file.path();
                fs::remove_file(&path).map_err(|e| CacheError::file(&path, e))?;
            }
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

    /// The directory of the segments.
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
    /// of tokens than its sequence counts, or they cannot be read from their device; then none is
    /// added.
    pub fn insert(
        &mut self,
        sequences: &[Sequence],
        log_probs: &SequenceLogProbs,
    ) -> Result<(), CacheError> {
        let read = |values: Tensor<1>| -> Result<Vec<f64>, CacheError> {
            let values = values.try_into_data().map_err(TensorReadError::from)?;
            Ok(values.iter().collect())
        };
        let sums = read(log_probs.sum())?;
        let lengths = read(log_probs.lengths())?;
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
                    value: CachedLogProb { sum, length },
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
        let entries: Vec<(Key, CachedLogProb)> = self
            .pending
            .iter()
            .map(|key| (*key, self.entries[key].value))
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
                0 => Some(CachedLogProb {
                    sum: 0.0,
                    length: 0,
                }),
                _ => self.entries.get(&key(sequence)).map(|known| known.value),
            };
            let CachedLogProb { sum, length } = known.ok_or(CacheError::Missing { index })?;
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
