//! Conversations and texts as token ids, and back.
//!
//! | file | holds |
//! |---|---|
//! | `python_json` | JSON as Python writes it, for templates |
//! | `template` | a model's own chat template |
//! | `chat` | a tokenizer with its template |
//! | `gguf` | both from the metadata of a GGUF file |
//! | `open` | both from a folder, or from either |

mod chat;
pub(crate) mod gguf;
mod open;
mod python_json;
mod template;

pub use chat::{Chat, ChatError};
pub use template::{ChatTemplate, Raised, Rendered};
