//! Errors of weights and adapters: files, names, shapes and numbers.

use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{FloatDType, TensorReadError};
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
    /// A folder has no file of weights that is read.
    #[error(
        "{}: no model.safetensors and no model.safetensors.index.json; found {}, which is \
         not read: save the model by transformers' save_pretrained",
        folder.display(),
        found.join(", ")
    )]
    NoWeights {
        /// Path of the folder.
        folder: PathBuf,
        /// Its files that may have weights, in other formats or under other names.
        found: Vec<String>,
    },
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
    /// A number is larger than the type that it should be saved in.
    #[error(
        "`{name}`: the number at {place} is {value}, more than {dtype:?} holds: save in another type"
    )]
    TooLarge {
        /// Name of the tensor.
        name: String,
        /// Its index in the file's order.
        place: usize,
        /// Value of the number.
        value: f32,
        /// The type of the file.
        dtype: FloatDType,
    },
}

/// An error of an adapter's files.
#[derive(Debug, Error)]
pub enum AdapterError {
    /// A file or a tensor of it cannot be used.
    #[error(transparent)]
    File(#[from] WeightError),
    /// An option of `adapter_config.json` that is not computed here.
    #[error("adapter_config.json, `{key}`: expected {expected}, found {found}")]
    Option {
        /// Name of the key.
        key: String,
        /// Values that are computed here.
        expected: String,
        /// The value of the file.
        found: String,
    },
    /// Tensors that `target_modules` asks for are in no file: the adapter was not saved whole.
    #[error(
        "{}: no tensor `{name}`: {} of the {all} tensors that `target_modules` of adapter_config.json \
         ({targets}) asks for are missing, and {others}; the adapter was not saved whole, or for \
         another model",
        path.display(),
        missing,
    )]
    Missing {
        /// Path of the file.
        path: PathBuf,
        /// Name of the first tensor that is missing.
        name: String,
        /// Number of tensors that are missing.
        missing: usize,
        /// Number of tensors that are asked for.
        all: usize,
        /// The `target_modules` of the config.
        targets: String,
        /// Description of what the file has besides.
        others: String,
    },
    /// A file without any tensor, of a config that does not say which there should be.
    #[error("{}: the file has no tensors: the adapter was not saved whole", .0.display())]
    Empty(PathBuf),
    /// Tensors of a projection that `target_modules` does not name.
    #[error(
        "`{name}`: `target_modules` of adapter_config.json ({targets}) does not name this projection, \
         and other programs would not use it"
    )]
    NotTargeted {
        /// Name of the tensor.
        name: String,
        /// The `target_modules` of the config.
        targets: String,
    },
    /// The tensors are in a file of Python's pickles, which is not read.
    #[error(
        "{}: pickled tensors are not read. In Python: from safetensors.torch import save_file; \
         save_file(torch.load(\"adapter_model.bin\", map_location=\"cpu\", weights_only=True), \
         \"adapter_model.safetensors\")",
        .0.display()
    )]
    Pickled(PathBuf),
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
