//! From a model on disk to an aligned model on disk.
//!
//! [`DecoderConfig`] reads the `config.json` of a folder as Hugging Face lays it out, [`load`] the
//! weights, and [`Decoder`] is one decoder for the families Llama, Mistral, Qwen 2, Qwen 3 and
//! Gemma 2. A family that is not known, or a key that would change the result, is an error that
//! names it.

mod adapter;
pub mod attention;
mod chat;
mod config;
mod data;
mod decoder;
mod figure;
mod gguf;
pub mod measure;
mod objective;
mod projection;
mod sample;
pub mod sampling;
mod schedule;
mod score;
pub mod template;
mod train;
mod weights;
mod workers;

pub use adapter::{AdapterError, LoraOptions, TARGETS, load_adapter, save_adapter};
pub use chat::{Chat, ChatError, Failure};
pub use config::{Activation, ConfigError, DecoderConfig, Rope, RopeScaling, Top};
pub use data::{DataOptions, Examples, Rows};
pub use decoder::{Cache, Decoder, Layer, Past};
pub use figure::draw;
pub use objective::*;
pub use projection::{Adapter, Projection};
pub use sample::sample;
pub use sampling::Sampling;
pub use schedule::Schedule;
pub use score::{Answer, Judge, pair_of};
pub use train::{Best, RunFolder, TrainOptions, Trained, Trainer, check_whole_steps};
pub use weights::{SaveError, WeightError, load, load_as, save};
pub use workers::Workers;
