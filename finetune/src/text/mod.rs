//! Conversations and texts as token ids, and back.
//!
//! | file | holds |
//! |---|---|
//! | `error` | errors of tokenizers and templates |
//! | `python_json`, `python_text` | JSON and values as Python writes them, for templates |
//! | `source` | a template's source, for minijinja |
//! | `chat` | a tokenizer with its template |
//! | `tokenizer_config` | special tokens and templates of a folder |
//! | `template` | a model's own chat template |
//! | `unwritten` | what a row says and the template does not write |
//! | `gguf` | both from the metadata of a GGUF file |
//! | `open` | both from a folder, or from either |

mod chat;
mod error;
pub(crate) mod gguf;
mod open;
mod python_json;
mod python_text;
mod source;
mod template;
mod tokenizer_config;
mod unwritten;

pub use chat::Chat;
pub use error::ChatError;
pub use template::{ChatTemplate, Raised, Rendered};
pub use unwritten::Unwritten;
