//! Preference data: rows of JSON lines, token ids, batches.
//!
//! ```text
//! file ─→ JsonLines ─→ Example<Text, L> ─→ Tokenized ─→ Example<Vec<u32>, L> ─→ Collator ─→ tensors
//!          an index     your closure makes ids      truncated, reported
//! ```
//!
//! Every stage but the last is a Burn [`Dataset`](burn::data::dataset::Dataset), read when it is
//! asked for: a file may be larger than memory. What an example is labelled with is its type:
//! [`Preference`] for pairs, [`Desirable`] for thumbs, [`Scores`] for lists.
//!
//! ```
//! use burn::data::dataloader::batcher::Batcher;
//! use burn::data::dataset::Dataset;
//! use burn::tensor::Device;
//! use burn_preference::data::{Collator, JsonLines, PairFormat, Encode, Tokenized, Truncation};
//! use burn_preference::tokens::Padding;
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("pairs.jsonl");
//! std::fs::write(&path, r#"{"prompt": "2+2=", "chosen": "4", "rejected": "five"}"#)?;
//!
//! let rows = JsonLines::open(&path, PairFormat::default())?;
//! // A tokenizer of bytes; 0 ends a completion. The example `preference_data` has a real one.
//! let bytes = |part: Encode<'_>| -> Result<Vec<u32>, std::convert::Infallible> {
//!     let ids = part.text().as_plain().unwrap().bytes().map(u32::from);
//!     Ok(match part {
//!         Encode::Prompt(_) => ids.collect(),
//!         Encode::Completion { .. } => ids.chain([0]).collect(),
//!     })
//! };
//! let pairs = Tokenized::new(rows, bytes, Truncation::PromptEnd { max_length: 8 })?;
//! assert_eq!(pairs.report().shortened_prompts, 1); // four tokens and "five", 0: one too many
//!
//! let items: Vec<_> = pairs.iter().collect::<Result<_, _>>()?;
//! let batch = Collator::new(Padding::new(0)).batch(items, &Device::default());
//! assert_eq!(batch.rows.ids.dims(), [2, 8]); // chosen, then rejected
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod collate;
mod cursor;
mod error;
mod example;
mod format;
mod lines;
mod loader;
mod mismatched;
mod split;
mod tokenized;

pub use collate::{Collator, PairTokens, RankedTokens, UnpairedTokens};
pub use cursor::{Cursor, Remaining};
pub use error::{DataError, RowError};
pub use example::{Desirable, Example, Message, Preference, Scores, Text};
pub use format::{Format, PairFormat, RankedFormat, ScoreField, UnpairedFormat};
pub use lines::{JsonLines, read};
pub use loader::EpochLoader;
pub use mismatched::{Mismatched, WithMismatched};
pub use split::{Split, split_by};
pub use tokenized::{Dropped, Encode, Labels, Lengths, Reason, Report, Tokenized, Truncation};
