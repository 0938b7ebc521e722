//! Weights as Hugging Face lays them out, and those of GGUF files, into a decoder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::nn::RmsNorm;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, f16};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{WeightError, file, format, json};
use super::tensors::floats;
use crate::gguf::Gguf;
use crate::model::config::{DecoderConfig, OutputLayer};
use crate::model::decoder::Decoder;
use crate::model::names::{norms, projections};
use crate::model::projection::Projection;

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

/// Loads a model as [`load`] does, in another number type.
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
        (
            config,
            Files::Safetensors(Shards::open(&weight_files(model)?)?),
        )
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

pub(super) fn open_gguf(path: &Path) -> Result<Gguf, WeightError> {
    Gguf::open(path).map_err(file(path))
}

/// The keys of a model's `config.json`; of a GGUF file, those that it would have.
pub(super) fn config_keys(model: &Path) -> Result<Map<String, Value>, WeightError> {
    if model.is_file() {
        return open_gguf(model)?.config().map_err(file(model));
    }
    Ok(DecoderConfig::values(model)?)
}

/// Names of what files hold besides weights: tables of rotary positions, a copy of a tied head.
fn is_known(name: &str, config: &DecoderConfig) -> bool {
    name.ends_with("rotary_emb.inv_freq")
        || (config.output == OutputLayer::Tied && name == "lm_head.weight")
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

/// A tensor of a shard: where its bytes are.
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
pub(super) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, WeightError> {
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
/// Weights by Hugging Face's names, on their way into a decoder.
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
            for number in &mut gamma {
                *number += 1.0;
            }
        }
        norm.gamma = self.param(gamma, [width]);
        Ok(())
    }

    fn fill(&mut self, config: &DecoderConfig) -> Result<Decoder, WeightError> {
        let mut decoder = config.init(&self.device);
        let gemma = config.gemma;
        for (i, layer) in decoder.layers.iter_mut().enumerate() {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            for (linear, part) in projections(layer) {
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
