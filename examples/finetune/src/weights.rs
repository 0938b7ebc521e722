//! Weights as Hugging Face lays them out: `model.safetensors`, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::nn::{Linear, RmsNorm};
use burn::tensor::{Device, Tensor, TensorData, bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use thiserror::Error;

use crate::config::{ConfigError, DecoderConfig};
use crate::decoder::{Decoder, Layer};

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
    /// A weight is NaN or infinite.
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

fn file(path: &Path) -> impl FnOnce(io::Error) -> WeightError {
    let path = path.to_owned();
    |source| WeightError::File { path, source }
}

fn format(path: &Path) -> impl FnOnce(SafeTensorError) -> WeightError {
    let path = path.to_owned();
    |source| WeightError::Format { path, source }
}

fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> WeightError {
    let path = path.to_owned();
    |source| WeightError::Index { path, source }
}

/// Loads a folder with `config.json` and `model.safetensors`, or the shards that
/// `model.safetensors.index.json` names, into f32.
///
/// # Errors
///
/// The config is of another model, a file or tensor is missing or damaged, one is left over, or a
/// weight is not finite.
pub fn load(folder: &Path, device: &Device) -> Result<Decoder, WeightError> {
    let config = DecoderConfig::read(folder)?;
    let mut tensors = BTreeMap::new();
    for path in files(folder)? {
        let bytes = fs::read(&path).map_err(file(&path))?;
        let tensors_of = SafeTensors::deserialize(&bytes).map_err(format(&path))?;
        for (name, tensor) in tensors_of.tensors() {
            let numbers = floats(&name, tensor.dtype(), tensor.data())?;
            let tensor = (tensor.shape().to_vec(), numbers);
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(WeightError::Twice(name));
            }
        }
    }
    let mut weights = Weights {
        tensors,
        device: device.clone(),
    };
    let decoder = weights.fill(&config)?;
    match weights.tensors.keys().find(|name| !is_known(name, &config)) {
        Some(name) => Err(WeightError::Unused(name.clone())),
        None => Ok(decoder),
    }
}

/// What files hold besides weights: tables of rotary positions, a copy of a tied head.
fn is_known(name: &str, config: &DecoderConfig) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (config.tied && name == "lm_head.weight")
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
/// files of that folder (tokenizer, template), its config with `dtype` float32, and the weights in
/// one `model.safetensors` in f32. Adapters have to be merged before.
///
/// The folder appears under its name when all of it is written.
///
/// # Errors
///
/// `to` is there already, or a file cannot be read or written.
pub fn save(decoder: &Decoder, from: &Path, to: &Path) -> Result<(), WeightError> {
    if to.exists() {
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(file(to)(source));
    }
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let scratch = to.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::create_dir_all(&scratch).map_err(file(&scratch))?;
    let written =
        write(decoder, from, &scratch).and_then(|()| fs::rename(&scratch, to).map_err(file(to)));
    if written.is_err() {
        // What went wrong is what matters.
        let _ = fs::remove_dir_all(&scratch);
    }
    written
}

fn write(decoder: &Decoder, from: &Path, to: &Path) -> Result<(), WeightError> {
    for entry in fs::read_dir(from).map_err(file(from))? {
        let path = entry.map_err(file(from))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let of_weights = name.ends_with(".safetensors") || name.ends_with(".index.json");
        if path.is_file() && !of_weights && name != "config.json" {
            fs::copy(&path, to.join(&name)).map_err(file(&path))?;
        }
    }
    let path = from.join("config.json");
    let text = fs::read_to_string(&path).map_err(file(&path))?;
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&text).map_err(json(&path))?;
    config.remove("torch_dtype");
    config.insert("dtype".to_owned(), "float32".into());
    let config = serde_json::to_string_pretty(&config).map_err(json(&path))?;
    let path = to.join("config.json");
    fs::write(&path, config).map_err(file(&path))?;

    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = tensors(decoder);
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (
            name.as_str(),
            view.expect("as many bytes as the shape says"),
        )
    });
    let path = to.join("model.safetensors");
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(views, Some(metadata), &path).map_err(format(&path))?;
    let written = fs::File::open(&path).map_err(file(&path))?;
    written.sync_all().map_err(file(&path))
}

/// All weights under the names and in the layout of Hugging Face.
fn tensors(decoder: &Decoder) -> Vec<(String, Vec<usize>, Vec<u8>)> {
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
    saved.tensors
}

/// What [`Weights`] takes apart, put together.
struct Saved {
    gemma: bool,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
}

impl Saved {
    fn add<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) {
        let shape = tensor.dims().to_vec();
        let numbers = tensor.into_data();
        let bytes = numbers.iter::<f32>().flat_map(f32::to_le_bytes).collect();
        self.tensors.push((name.to_owned(), shape, bytes));
    }

    fn linear(&mut self, name: &str, linear: &Linear) {
        self.add(&format!("{name}.weight"), linear.weight.val().transpose());
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
fn floats(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, WeightError> {
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
    match numbers.iter().position(|number| !number.is_finite()) {
        None => Ok(numbers),
        Some(place) => Err(WeightError::NotFinite {
            name: name.to_owned(),
            place,
            value: numbers[place],
        }),
    }
}

/// The products of a layer, and what Hugging Face calls them.
fn linears(layer: &mut Layer) -> [(&mut Linear, &'static str); 7] {
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
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    device: Device,
}

impl Weights {
    fn take(&mut self, name: &str, expected: &[usize]) -> Result<Vec<f32>, WeightError> {
        let missing = || WeightError::Missing(name.to_owned());
        let (found, numbers) = self.tensors.remove(name).ok_or_else(missing)?;
        if found != expected {
            return Err(WeightError::Shape {
                name: name.to_owned(),
                expected: expected.to_vec(),
                found,
            });
        }
        Ok(numbers)
    }

    fn param<const D: usize>(&self, numbers: Vec<f32>, shape: [usize; D]) -> Param<Tensor<D>> {
        let data = TensorData::new(numbers, shape);
        Param::from_tensor(Tensor::from_data(data, &self.device))
    }

    /// `[out, in]` in the file; stored as it is used, `[in, out]`: what is composed with adapters
    /// later has this layout as well, and products of another layout round otherwise.
    fn linear(&mut self, linear: &mut Linear, name: &str) -> Result<(), WeightError> {
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
        Ok(decoder)
    }
}
