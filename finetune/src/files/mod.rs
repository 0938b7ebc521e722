//! Models and adapters on disk.
//!
//! | file | holds |
//! |---|---|
//! | `error` | errors of weights and adapters |
//! | `source` | a model by its path, or by its name in Hugging Face's cache |
//! | `tensors` | tensors of safetensors files, and numbers of their types |
//! | `whole` | files and folders that appear when they are whole, and stay |
//! | `claim` | the right of one process to write `OUT` |
//! | `load`, `save` | a model, in Hugging Face's layout |
//! | `others` | tokenizer, templates and the rest beside the weights |
//! | `adapter`, `adapter_config` | an adapter, in PEFT's |

mod adapter;
mod adapter_config;
mod claim;
mod error;
mod load;
mod others;
mod save;
mod source;
mod tensors;
pub(crate) mod whole;

pub use adapter::{load_adapter, save_adapter};
pub use claim::Claim;
pub use error::{AdapterError, SaveError, WeightError};
pub use load::{load, load_as, remarks};
pub use save::{SaveOptions, save};
pub use source::{Hub, Source, SourceError};
pub use whole::{create_folder, publish, write_whole};
