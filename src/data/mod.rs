//! Preference data: rows of a file, examples, token ids, batches.
//!
//! ```text
//! file ─→ JsonLines, a Format ─→ Example<Text, L>         rows, each parsed when it is asked for
//!      ─→ Tokenized           ─→ Example<Vec<u32>, L>     your closure's ids, truncated, reported
//!      ─→ Collator            ─→ tensors                  PairTokens, UnpairedTokens, RankedTokens,
//!                                                      DemonstrationTokens, SampleTokens
//! ```
//!
//! Every stage but the last is a Burn
//! [`Dataset`](https://docs.rs/burn/0.22.1/burn/data/dataset/trait.Dataset.html): a row is read
//! when its example is asked for, so a file may be larger than memory. The type of an example says
//! how it is labelled: [`Preference`] for pairs, [`Desirable`] for unpaired completions, [`Scores`]
//! for ranked lists, [`Demonstration`] for completions to imitate, [`Sample`] for those that a model
//! drew, [`PromptOnly`] for prompts alone.
//!
//! A batch asks your models for log-probabilities
//! ([`TokenBatch::log_probs`](crate::tokens::TokenBatch::log_probs)) and makes of them what an
//! objective takes ([`PairTokens::pair`], [`UnpairedTokens::unpaired`], [`RankedTokens::ranked`],
//! [`SampleTokens::samples`], [`Demonstrations`](crate::Demonstrations)).
//! The guide's chapter on [data](crate::guide::data) explains tokenizers, conversations and what
//! counts; its [training loop](crate::guide::training_loop) uses the batches.
//!
//! ```
//! use burn::data::dataloader::batcher::Batcher;
//! use burn::data::dataset::Dataset;
//! use burn::tensor::Device;
//! use burn_preference::data::{Collator, Encode, JsonLines, PairFormat, Tokenized, Truncation};
//! use burn_preference::tokens::Padding;
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("pairs.jsonl");
//! std::fs::write(&path, r#"{"prompt": "2+2=", "chosen": "4", "rejected": "five"}"#)?;
//!
//! let texts = JsonLines::new(&path, PairFormat::default()).open()?;
//! // A tokenizer of bytes; 0 ends a text. The example `preference_data` has a real one, and the
//! // guide's chapter on [data](crate::guide::data) conversations.
//! let bytes = |text: Encode<'_>| -> Result<Vec<u32>, &str> {
//!     let plain = text.content.as_plain().ok_or("a conversation")?;
//!     let end = (!text.add_generation_prompt).then_some(0);
//!     Ok(plain.bytes().map(u32::from).chain(end).collect())
//! };
//! let pairs = Tokenized::new(texts, bytes, Truncation::PromptMiddle { max_length: 8 })?;
//! assert_eq!(pairs.report().shortened_prompts, 1); // four tokens and "five", 0: one too many
//!
//! let items: Vec<_> = pairs.iter().collect::<Result<_, _>>()?;
//! let batch = Collator::new(Padding::new(0)).batch(items, &Device::default());
//! assert_eq!(batch.tokens.ids.dims(), [2, 8]); // chosen, then rejected
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod budget;
mod collate;
mod collated;
mod columns;
mod convert;
mod cursor;
mod distinct;
mod encode;
mod encoder;
mod error;
mod example;
mod format;
mod in_order;
mod indexed_lines;
mod json;
mod kept_ids;
mod label;
mod lines;
mod load;
mod loader;
mod message;
mod mismatched;
mod options;
#[cfg(feature = "parquet")]
mod parquet;
mod prompt;
mod report;
mod split;
mod tokenized;
mod transcript;
mod truncate;
mod turns;
mod zstd;

pub use budget::TokenBudget;
pub use collate::{
    Collator, DemonstrationTokens, PairTokens, RankedTokens, SampleTokens, UnpairedTokens,
};
pub use convert::{Pairing, win_probability};
pub use cursor::{Cursor, Remaining};
pub use distinct::{Distinct, distinct};
pub use encode::{Content, Encode, Encoded};
pub use error::{DataError, RowError};
pub use example::Example;
pub use format::{
    DemonstrationFormat, Format, PairFormat, PromptFormat, RankedFormat, SampleFormat, ScoreField,
    UnpairedFormat,
};
pub use indexed_lines::IndexedLines;
pub use json::{Json, Object};
pub use label::{Demonstration, Desirable, Group, Labels, Preference, PromptOnly, Sample, Scores};
pub use lines::JsonLines;
pub use load::{Loaded, OnError};
pub use loader::EpochLoader;
pub use message::{Message, Text};
pub use mismatched::{Mismatched, WithMismatched};
pub use options::TokenizeOptions;
#[cfg(feature = "parquet")]
pub use parquet::ParquetFile;
pub use report::{Dropped, End, Report, Spread};
pub use split::{Split, split_by};
pub use tokenized::{Tokenized, TokenizedExamples};
pub use truncate::{Reason, Truncation};
pub use turns::{Turns, completion_start};
