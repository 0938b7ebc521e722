//! The log-probabilities of a reference on disk, computed once.
//!
//! A reference never changes, so neither do its log-probabilities. They are stored by what they
//! depend on: the [`Fingerprint`] of the model, and for each entry a hash of the [`Sequence`](crate::tokens::Sequence):
//! prompt length, token ids, which tokens count, and the hash of a context. Subsets, another order,
//! another truncation, mask, image or chat template can then never return a stale value; they miss.
//!
//! ```text
//! root/<fingerprint>/<hash of the content>.bpk      one segment per flush, never changed
//! ```
//!
//! - **What [`flush`](ReferenceCache::flush) returned from is on disk**, whatever happens to the
//!   process, and on Unix to the power: a segment is written beside its place, synced, and renamed, and
//!   then its directory is synced. A flush that fails, on a full disk for one, has changed nothing.
//! - **A killed writer leaves a scratch file**, `….bpk.PID-N.tmp`, which is passed over.
//!   [`remove_scratch`](ReferenceCache::remove_scratch) removes it, when nobody writes.
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
//! let fingerprint = Fingerprint::of(&model)?.with("chat template", b"v1");
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

mod directory;
mod error;
mod fingerprint;
mod key;
mod segment;
mod store;

pub use error::CacheError;
pub use fingerprint::Fingerprint;
pub use store::{Progress, ReferenceCache};
