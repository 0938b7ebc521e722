//! From a model on disk to an aligned model on disk.
//!
//! [`DecoderConfig`] reads the `config.json` of a folder as Hugging Face lays it out, [`load`] the
//! weights, and [`Decoder`] is one decoder for the families Llama, Mistral, Qwen 2, Qwen 3 and
//! Gemma 2. A family that is not known, or a key that would change the result, is an error that
//! names it.

#[path = "../../llama/attention.rs"]
mod attention;
mod config;
mod decoder;
mod weights;

pub use attention::Sees;
pub use config::{Activation, ConfigError, DecoderConfig, Rope, RopeScaling};
pub use decoder::Decoder;
pub use weights::{WeightError, load, save};
