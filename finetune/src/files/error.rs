//! Errors of weights: files, names, shapes and numbers.

use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::TensorReadError;
use safetensors::{Dtype, SafeTensorError};
use thiserror::Error;

use crate::model::config_file::ConfigError;
use crate::text::ChatError;

/// An error of the weights of a folder or a file.
#[derive(Debug, Error)]
pub enum WeightError {
    /// `config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The index of the shards, or the config that is copied, cannot be read.
    #[error("{}: {source}", path.display())]
    Index {
        /// Path of the file.
        path: PathBuf,
        /// The error of the parser.
        source: serde_json::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {source}", path.display())]
    Format {
        /// Path of the file.
        path: PathBuf,
        /// The error of the reader.
        source: SafeTensorError,
    },
    /// The device cannot give the numbers of a weight.
    #[error(transparent)]
    Read(#[from] TensorReadError),
    /// A tensor of the model is in no file.
    #[error("no tensor `{0}`")]
    Missing(String),
    /// A tensor that this decoder has no place for: the model computes something else.
    #[error("`{0}`: this decoder has no such tensor, so that it would compute another model")]
    Unused(String),
    /// The index names a file outside the folder.
    #[error("`{0}` is no file of the folder")]
    Outside(String),
    /// A tensor stands in two files.
    #[error("`{0}` stands in two files")]
    Twice(String),
    /// A tensor has another shape than the config says.
    #[error("`{name}`: expected the shape {expected:?}, found {found:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// The shape by the config.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// Numbers of a type that is not read, such as a quantised one.
    #[error("`{name}`: expected F32, F16 or BF16, found {found:?}")]
    Type {
        /// Name of the tensor.
        name: String,
        /// The type of its numbers.
        found: Dtype,
    },
    /// A weight is NaN or infinite, or too large for the type that was asked for.
    #[error("`{name}`: the number at {place} is {value}")]
    NotFinite {
        /// Name of the tensor.
        name: String,
        /// Its index in the file's order.
        place: usize,
        /// Value of the number.
        value: f32,
    },
}

/// An error of a model that is saved.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The weights or the config cannot be written.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The tokenizer cannot be written.
    #[error(transparent)]
    Chat(#[from] ChatError),
}

pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> WeightError {
    let path = path.to_owned();
    |source| WeightError::File { path, source }
}

pub(crate) fn format(path: &Path) -> impl FnOnce(SafeTensorError) -> WeightError {
    let path = path.to_owned();
    |source| WeightError::Format { path, source }
}

pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> WeightError {
    let path = path.to_owned();
    |source| WeightError::Index { path, source }
}
