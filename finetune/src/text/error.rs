//! Errors of tokenizers and templates on disk.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::failure::Failure;

/// An error of a model's tokenizer.
#[derive(Debug, Error)]
pub enum ChatError {
    /// A file cannot be read, or is not what it should be.
    #[error("{}: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The error of its reader.
        source: Failure,
    },
    /// No token ends a text.
    #[error("no `eos_token` in tokenizer_config.json that the tokenizer knows: found {0}")]
    NoEnd(String),
    /// A token of `tokenizer_config.json` or `added_tokens.json` would get another id than stands there.
    #[error(
        "{}: {token:?} has the id {expected}, and tokenizer.json, which does not have it, would add \
         it at {found}: save the tokenizer again by the program that made it",
        path.display()
    )]
    Id {
        /// Path of the file that has the id.
        path: PathBuf,
        /// Text of the token.
        token: String,
        /// Its id by this file.
        expected: u32,
        /// The id behind those of `tokenizer.json`.
        found: u32,
    },
    /// The tokenizer is another model's.
    #[error("the tokenizer has the id {id} ({token:?}), and the model {vocab} words")]
    Vocabulary {
        /// The largest id.
        id: u32,
        /// The text of this id.
        token: String,
        /// Number of words of the model.
        vocab: usize,
    },
}

pub(super) fn failed(path: &Path, source: impl Into<Failure>) -> ChatError {
    ChatError::File {
        path: path.to_owned(),
        source: source.into(),
    }
}
