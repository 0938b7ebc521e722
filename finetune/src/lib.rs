//! From a model on disk to an aligned model on disk.
//!
//! [`DecoderConfig`] reads the `config.json` of a folder as Hugging Face lays it out, [`load`] the
//! weights, and [`Decoder`] is one decoder for the families Llama, Mistral, Qwen 2, Qwen 3 and
//! Gemma 2. A family that is not known, or a key that would change the result, is an error that
//! names it. [`Chat`] is the model's tokenizer with its template, [`DataOptions`] reads rows,
//! [`Trainer`] is the loop, and [`save`] writes what other programs load.
//!
//! | module | holds |
//! |---|---|
//! | [`attention`], [`sampling`], [`measure`] | what needs no model of this package |
//! | `gguf` | the container of llama.cpp's files |
//! | `model` | the decoder and its adapters |
//! | `text` | tokenizer and chat template |
//! | `files` | weights and adapters on disk |
//! | `source`, `columns`, `data` | files; names of columns; rows of files as examples |
//! | `ranks` | the processes of a run |
//! | `training` | the loop |
//! | `answers` | a model's answers and their judges |

pub mod attention;
pub mod measure;
pub mod sampling;

#[cfg(feature = "program")]
mod answers;
#[cfg(feature = "program")]
mod columns;
#[cfg(feature = "program")]
mod data;
#[cfg(feature = "program")]
mod failure;
#[cfg(feature = "program")]
mod files;
#[cfg(feature = "program")]
mod gguf;
#[cfg(feature = "program")]
mod model;
#[cfg(feature = "program")]
mod ranks;
#[cfg(feature = "program")]
mod source;
#[cfg(feature = "program")]
mod text;
#[cfg(feature = "program")]
mod training;

#[cfg(feature = "program")]
pub use {
    answers::*, columns::*, data::*, failure::Failure, files::*, model::*, ranks::*, source::*,
    text::*, training::*,
};
