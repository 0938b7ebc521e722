//! Weights as Hugging Face lays them out: `model.safetensors`, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::nn::RmsNorm;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::chat::{Chat, ChatError};
use crate::config::{ConfigError, DecoderConfig, Top};
use crate::decoder::{Decoder, Layer};
use crate::gguf::Gguf;
use crate::projection::Projection;

/// Why a folder's weights cannot be used.
#[derive(Debug, Error)]
pub enum WeightError {
    /// `config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The index of the shards, or the config that is copied, cannot be read.
    #[error("{}: {source}", path.display())]
    Index {
        /// Which.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {source}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// What the reader says.
        source: SafeTensorError,
    },
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
        /// The tensor.
        name: String,
        /// By the config.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// Numbers of a type that is not read, such as a quantised one.
    #[error("`{name}`: expected F32, F16 or BF16, found {found:?}")]
    Type {
        /// The tensor.
        name: String,
        /// Its type.
        found: Dtype,
    },
    /// A weight is NaN or infinite, or too large for the type that was asked for.
    #[error("`{name}`: the number at {place} is {value}")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Its place in the file's order.
        place: usize,
        /// The number.
        value: f32,
    },
}

/// Why a model cannot be saved.
#[derive(Debug, Error)]
pub enum SaveError {
    /// Its weights or its config.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// Its tokenizer.
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

/// Loads a model into f32: a folder with `config.json` and `model.safetensors`, or the shards that
/// `model.safetensors.index.json` names; or a GGUF file of the architecture `llama`.
///
/// # Errors
///
/// The config is of another model, a file or tensor is missing or damaged, one is left over, or a
/// weight is not finite.
pub fn load(model: &Path, device: &Device) -> Result<Decoder, WeightError> {
    load_as(FloatDType::F32, model, device)
}

/// The same in another number type.
///
/// # Errors
///
/// As [`load`]; a weight that is not finite in this type is one, too.
pub fn load_as(dtype: FloatDType, model: &Path, device: &Device) -> Result<Decoder, WeightError> {
    let (config, files) = if model.is_file() {
        let gguf = open_gguf(model)?;
        (gguf.config().map_err(file(model))?, Files::Gguf(gguf))
    } else {
        let config = DecoderConfig::values(model)?;
        (config, Files::Safetensors(Shards::open(&files(model)?)?))
    };
    let config = DecoderConfig::parse(config)?;
    let mut weights = Weights {
        left: files.names(),
        files,
        device: device.clone(),
        dtype,
    };
    let decoder = weights.fill(&config)?;
    match weights.left.iter().find(|name| !is_known(name, &config)) {
        Some(name) => Err(WeightError::Unused(name.clone())),
        None => Ok(decoder),
    }
}

fn open_gguf(path: &Path) -> Result<Gguf, WeightError> {
    Gguf::open(path).map_err(file(path))
}

/// What `config.json` says, or would say.
fn config_of(model: &Path) -> Result<Map<String, Value>, WeightError> {
    if model.is_file() {
        return open_gguf(model)?.config().map_err(file(model));
    }
    Ok(DecoderConfig::values(model)?)
}

/// What files hold besides weights: tables of rotary positions, a copy of a tied head.
fn is_known(name: &str, config: &DecoderConfig) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (config.top == Top::Tied && name == "lm_head.weight")
}

/// Tensors by Hugging Face's names, decoded when they are asked for.
enum Files {
    Safetensors(Shards),
    Gguf(Gguf),
}

impl Files {
    fn names(&self) -> BTreeSet<String> {
        match self {
            Self::Safetensors(shards) => shards.tensors.keys().cloned().collect(),
            Self::Gguf(file) => file.names().collect(),
        }
    }

    /// Shape and numbers of a tensor that is there.
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), WeightError> {
        match self {
            Self::Safetensors(shards) => {
                let tensor = &shards.tensors[name];
                let bytes = &shards.files[tensor.file][tensor.bytes.clone()];
                Ok((tensor.shape.clone(), floats(name, tensor.dtype, bytes)?))
            }
            Self::Gguf(gguf) => gguf.named(name).map_err(file(Path::new(name))),
        }
    }
}

/// Files of safetensors.
struct Shards {
    files: Vec<Vec<u8>>,
    tensors: BTreeMap<String, Stored>,
}

struct Stored {
    file: usize,
    bytes: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Shards {
    fn open(paths: &[PathBuf]) -> Result<Self, WeightError> {
        let mut shards = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        for path in paths {
            let bytes = fs::read(path).map_err(file(path))?;
            // Checks that every tensor lies within the file.
            SafeTensors::deserialize(&bytes).map_err(format(path))?;
            let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(format(path))?;
            let start = 8 + header;
            for (name, info) in metadata.tensors() {
                let (from, to) = info.data_offsets;
                let tensor = Stored {
                    file: shards.files.len(),
                    bytes: start + from..start + to,
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                };
                if shards.tensors.insert(name.clone(), tensor).is_some() {
                    return Err(WeightError::Twice(name));
                }
            }
            shards.files.push(bytes);
        }
        Ok(shards)
    }
}

/// The files with weights.
fn files(folder: &Path) -> Result<Vec<PathBuf>, WeightError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }

    let path = folder.join("model.safetensors.index.json");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(vec![folder.join("model.safetensors")]);
        }
        Err(source) => return Err(file(&path)(source)),
    };
    let index: Index = serde_json::from_str(&text).map_err(json(&path))?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    // Names of the index are files of the folder, and nowhere else.
    if let Some(file) = files
        .iter()
        .find(|file| Path::new(file).file_name() != Some(file.as_ref()))
    {
        return Err(WeightError::Outside(file.clone()));
    }
    Ok(files.into_iter().map(|file| folder.join(file)).collect())
}

/// Saves a decoder as a folder of its own, which other programs load as they load `from`: the other
/// files of that folder (tokenizer, template; those of a GGUF file are written out), its config with
/// `dtype` float32, and the weights in one `model.safetensors` in f32, adapters merged into them.
///
/// The folder appears under its name when all of it is written.
///
/// # Errors
///
/// `to` is there already, or a file cannot be read or written.
pub fn save(decoder: &Decoder, from: &Path, to: &Path) -> Result<(), SaveError> {
    at_once(to, |folder| write(decoder, from, folder))
}

/// Fills a folder that appears under its name when all of it is written.
pub(crate) fn at_once<E: From<WeightError>>(
    to: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    if to.exists() {
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(file(to)(source).into());
    }
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let scratch = to.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::create_dir_all(&scratch).map_err(file(&scratch))?;
    let renamed = |()| Ok(fs::rename(&scratch, to).map_err(file(to))?);
    let written = fill(&scratch).and_then(renamed);
    if written.is_err() {
        // What went wrong is what matters.
        let _ = fs::remove_dir_all(&scratch);
    }
    written
}

fn write(decoder: &Decoder, from: &Path, to: &Path) -> Result<(), SaveError> {
    if from.is_file() {
        open_gguf(from)?.save_tokenizer(from, to)?;
    } else {
        copy_files(from, to)?;
    }
    let mut config = config_of(from)?;
    config.remove("torch_dtype");
    config.insert("dtype".to_owned(), "float32".into());
    if decoder.config().top == Top::Reward {
        let family = config["model_type"].as_str().unwrap_or_default();
        let family = CLASSES.iter().find(|class| class.to_lowercase() == family);
        let class = format!(
            "{}ForSequenceClassification",
            family.expect("a known family")
        );
        config.insert("architectures".to_owned(), [class].as_slice().into());
        // transformers looks for the last token that fills no row. Where padding is what ends a text,
        // it would look past that end: then rows are for the user to pad.
        let chat = Chat::open(from, decoder.config())?;
        if chat.padding != chat.end && config.get("pad_token_id").is_none_or(Value::is_null) {
            config.insert("pad_token_id".to_owned(), chat.padding.into());
        }
        config.insert("id2label".to_owned(), serde_json::json!({"0": "LABEL_0"}));
        config.insert("label2id".to_owned(), serde_json::json!({"LABEL_0": 0}));
    }
    let path = to.join("config.json");
    let config = serde_json::to_string_pretty(&config).map_err(json(&path))?;
    fs::write(&path, config).map_err(file(&path))?;
    write_tensors(&tensors(decoder), &to.join("model.safetensors"))?;
    Ok(())
}

/// What transformers calls the families.
const CLASSES: [&str; 5] = ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2"];

/// Everything of a folder but config and weights.
fn copy_files(from: &Path, to: &Path) -> Result<(), WeightError> {
    for entry in fs::read_dir(from).map_err(file(from))? {
        let path = entry.map_err(file(from))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let of_weights = [".safetensors", ".index.json", ".bin", ".gguf"];
        let of_weights = of_weights.iter().any(|end| name.ends_with(end));
        if path.is_file() && !of_weights && name != "config.json" {
            fs::copy(&path, to.join(&name)).map_err(file(&path))?;
        }
    }
    Ok(())
}

/// A tensor in f32 as a file has it: name, shape, bytes.
pub(crate) type Bytes = (String, Vec<usize>, Vec<u8>);

/// Writes tensors in f32, to the disk.
pub(crate) fn write_tensors(tensors: &[Bytes], path: &Path) -> Result<(), WeightError> {
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (
            name.as_str(),
            view.expect("as many bytes as the shape says"),
        )
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    // safetensors writes a scratch file that only its owner may read, and renames it.
    let usual = fs::File::create(path).and_then(|made| made.metadata());
    let usual = usual.map_err(file(path))?.permissions();
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(format(path))?;
    fs::set_permissions(path, usual).map_err(file(path))?;
    let written = fs::File::open(path).map_err(file(path))?;
    written.sync_all().map_err(file(path))
}

/// A tensor as a file has it.
pub(crate) fn bytes<const D: usize>(name: &str, tensor: Tensor<D>) -> Bytes {
    let shape = tensor.dims().to_vec();
    let numbers = tensor.into_data();
    let bytes = numbers.iter::<f32>().flat_map(f32::to_le_bytes).collect();
    (name.to_owned(), shape, bytes)
}

/// All weights under the names and in the layout of Hugging Face.
fn tensors(decoder: &Decoder) -> Vec<Bytes> {
    let mut saved = Saved {
        gemma: decoder.config().gemma,
        tensors: Vec::new(),
    };
    saved.add("model.embed_tokens.weight", decoder.embedding.weight.val());
    for (i, mut layer) in decoder.layers.iter().cloned().enumerate() {
        let name = |part: &str| format!("model.layers.{i}.{part}");
        for (linear, part) in linears(&mut layer) {
            saved.linear(&name(part), linear);
        }
        for (norm, part) in norms(&mut layer, decoder.config().gemma) {
            saved.norm(&name(part), norm);
        }
    }
    saved.norm("model.norm", &decoder.norm);
    if let Some(head) = &decoder.head {
        saved.linear("lm_head", head);
    }
    if let Some(score) = &decoder.score {
        saved.linear("score", score);
    }
    saved.tensors
}

/// What [`Weights`] takes apart, put together.
struct Saved {
    gemma: bool,
    tensors: Vec<Bytes>,
}

impl Saved {
    fn add<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) {
        self.tensors.push(bytes(name, tensor));
    }

    fn linear(&mut self, name: &str, linear: &Projection) {
        self.add(&format!("{name}.weight"), linear.weight().transpose());
        if let Some(bias) = &linear.bias {
            self.add(&format!("{name}.bias"), bias.val());
        }
    }

    fn norm(&mut self, name: &str, norm: &RmsNorm) {
        let gamma = norm.gamma.val();
        let gamma = if self.gemma { gamma - 1 } else { gamma };
        self.add(&format!("{name}.weight"), gamma);
    }
}

/// The numbers of a tensor as f32, which holds f16 and bf16 exactly.
pub(crate) fn floats(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, WeightError> {
    let halves = |of: fn([u8; 2]) -> f32| bytes.as_chunks().0.iter().map(|b| of(*b)).collect();
    let numbers: Vec<f32> = match dtype {
        Dtype::F32 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
        Dtype::F16 => halves(|b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => halves(|b| bf16::from_le_bytes(b).to_f32()),
        found => {
            let name = name.to_owned();
            return Err(WeightError::Type { name, found });
        }
    };
    Ok(numbers)
}

/// The products of a layer, and what Hugging Face calls them.
pub(crate) fn linears(layer: &mut Layer) -> [(&mut Projection, &'static str); 7] {
    [
        (&mut layer.query, "self_attn.q_proj"),
        (&mut layer.key, "self_attn.k_proj"),
        (&mut layer.value, "self_attn.v_proj"),
        (&mut layer.output, "self_attn.o_proj"),
        (&mut layer.gate, "mlp.gate_proj"),
        (&mut layer.up, "mlp.up_proj"),
        (&mut layer.down, "mlp.down_proj"),
    ]
}

/// Its norms. The one before the feed-forward layer has another name where attention has a norm
/// behind it.
fn norms(layer: &mut Layer, gemma: bool) -> impl Iterator<Item = (&mut RmsNorm, &'static str)> {
    let before_mlp = if gemma {
        "pre_feedforward_layernorm"
    } else {
        "post_attention_layernorm"
    };
    [
        (Some(&mut layer.input_norm), "input_layernorm"),
        (Some(&mut layer.mlp_norm), before_mlp),
        (layer.query_norm.as_mut(), "self_attn.q_norm"),
        (layer.key_norm.as_mut(), "self_attn.k_norm"),
        (layer.after_attention.as_mut(), "post_attention_layernorm"),
        (layer.after_mlp.as_mut(), "post_feedforward_layernorm"),
    ]
    .into_iter()
    .filter_map(|(norm, name)| Some((norm?, name)))
}

struct Weights {
    files: Files,
    /// Names that nobody has asked for.
    left: BTreeSet<String>,
    device: Device,
    dtype: FloatDType,
}

impl Weights {
    fn take(&mut self, name: &str, expected: &[usize]) -> Result<Vec<f32>, WeightError> {
        if !self.left.remove(name) {
            return Err(WeightError::Missing(name.to_owned()));
        }
        let (found, numbers) = self.files.tensor(name)?;
        if found != expected {
            return Err(WeightError::Shape {
                name: name.to_owned(),
                expected: expected.to_vec(),
                found,
            });
        }
        let largest = match self.dtype {
            FloatDType::F16 => f16::MAX.to_f32(),
            _ => f32::MAX,
        };
        match numbers.iter().position(|x| x.is_nan() || x.abs() > largest) {
            None => Ok(numbers),
            Some(place) => Err(WeightError::NotFinite {
                name: name.to_owned(),
                place,
                value: numbers[place],
            }),
        }
    }

    fn param<const D: usize>(&self, numbers: Vec<f32>, shape: [usize; D]) -> Param<Tensor<D>> {
        let data = TensorData::new(numbers, shape).convert_dtype(self.dtype.into());
        let options = (&self.device, DType::from(self.dtype));
        Param::from_tensor(Tensor::from_data(data, options))
    }

    /// `[out, in]` in the file; stored as it is used, `[in, out]`: what is composed with adapters
    /// later has this layout as well, and products of another layout round otherwise.
    fn linear(&mut self, linear: &mut Projection, name: &str) -> Result<(), WeightError> {
        let [from, to] = linear.weight.val().dims();
        let rows = self.take(&format!("{name}.weight"), &[to, from])?;
        let columns = (0..from).flat_map(|i| rows[i..].iter().step_by(from).copied());
        linear.weight = self.param(columns.collect(), [from, to]);
        if linear.bias.is_some() {
            let bias = self.take(&format!("{name}.bias"), &[to])?;
            linear.bias = Some(self.param(bias, [to]));
        }
        Ok(())
    }

    fn norm(&mut self, norm: &mut RmsNorm, name: &str, gemma: bool) -> Result<(), WeightError> {
        let [width] = norm.gamma.val().dims();
        let mut gamma = self.take(&format!("{name}.weight"), &[width])?;
        if gemma {
            gamma.iter_mut().for_each(|number| *number += 1.0);
        }
        norm.gamma = self.param(gamma, [width]);
        Ok(())
    }

    fn fill(&mut self, config: &DecoderConfig) -> Result<Decoder, WeightError> {
        let mut decoder = config.init(&self.device);
        let gemma = config.gemma;
        for (i, layer) in decoder.layers.iter_mut().enumerate() {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            for (linear, part) in linears(layer) {
                self.linear(linear, &name(part))?;
            }
            for (norm, part) in norms(layer, gemma) {
                self.norm(norm, &name(part), gemma)?;
            }
        }
        self.norm(&mut decoder.norm, "model.norm", gemma)?;
        let shape = [config.vocab, config.hidden];
        let embedding = self.take("model.embed_tokens.weight", &shape)?;
        decoder.embedding.weight = self.param(embedding, shape);
        if let Some(head) = &mut decoder.head {
            self.linear(head, "lm_head")?;
        }
        if let Some(score) = &mut decoder.score {
            self.linear(score, "score")?;
        }
        Ok(decoder)
    }
}
