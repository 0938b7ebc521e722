//! Models and adapters on disk.
//!
//! | file | holds |
//! |---|---|
//! | `error` | errors of weights |
//! | `tensors` | tensors of safetensors files as numbers |
//! | `whole` | files and folders that appear when they are whole |
//! | `load`, `save` | a model, in Hugging Face's layout |
//! | `adapter` | an adapter, in PEFT's |

mod adapter;
mod error;
mod load;
mod save;
mod tensors;
pub(crate) mod whole;

pub use adapter::{AdapterError, load_adapter, save_adapter};
pub use error::{SaveError, WeightError};
pub use load::{load, load_as};
pub use save::save;
pub use whole::write_whole;
