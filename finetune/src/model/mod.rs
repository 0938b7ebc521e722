//! One decoder for all families, and the adapters beside its weights.
//!
//! | file | holds |
//! |---|---|
//! | `config` | sizes and shape of a decoder |
//! | `config_file` | them from Hugging Face's `config.json` |
//! | `projection` | a product with a weight, and an adapter beside it |
//! | `rotary`, `cache` | rotary positions; keys and values that sampling keeps |
//! | `decoder` | the model |
//! | `names` | its parts by the names of Hugging Face's files |
//! | `adapters` | new adapters, merged ones, weights of few bits |

mod adapters;
mod cache;
pub(crate) mod config;
pub(crate) mod config_file;
pub(crate) mod decoder;
pub(crate) mod names;
pub(crate) mod projection;
mod rotary;

pub use adapters::{LoraOptions, TARGETS, UnknownTarget};
pub use cache::{Cache, KeysValues};
pub use config::{Activation, DecoderConfig, OutputLayer, Rope, RopeScaling};
pub use config_file::ConfigError;
pub use decoder::{Decoder, Layer};
pub use projection::{Adapter, Projection};
