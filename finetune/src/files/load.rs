//! Weights as Hugging Face lays them out, and those of GGUF files, into a decoder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
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
use crate::model::names::{EMBEDDING, HEAD, norms, projections};
use crate::model::projection::Projection;

/// Loads a model into f32: a folder with `config.json` and `model.safetensors`, or else the shards that
/// `model.safetensors.index.json` names; or a GGUF file of the architecture `llama`.
///
/// An `lm_head.weight` that differs from the embedding is the head even where the config ties them,
/// as in transformers; [`remarks`] says so.
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
    let (mut config, files) = if model.is_file() {
        let gguf = open_gguf(model)?;
        let keys = gguf.config().map_err(file(model))?;
        (DecoderConfig::of_file(model, keys)?, Files::Gguf(gguf))
    } else {
        let config = DecoderConfig::read(model)?;
        (
            config,
            Files::Safetensors(Shards::open(&weight_files(model)?)?),
        )
    };
    let names = files.names();
    files.check_sizes(&config, &names)?;
    if files.have_another_head(&config)? {
        config.output = OutputLayer::Head;
    }
    let mut weights = Weights {
        left: names,
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

/// Sentences about what a model's files hold and `decoder`, loaded from them, was not made of.
///
/// # Errors
///
/// A file cannot be read.
pub fn remarks(model: &Path, decoder: &Decoder) -> Result<Vec<String>, WeightError> {
    if model.is_file() {
        return Ok(Vec::new());
    }
    let mut remarks = Vec::new();
    let WeightFiles { read, unread } = WeightFiles::find(model)?;
    if let (false, [first, ..]) = (unread.is_empty(), read.as_slice()) {
        let name = first.file_name().unwrap_or_default().to_string_lossy();
        let more = if read.len() > 1 {
            " and its shards"
        } else {
            ""
        };
        remarks.push(format!(
            "{}: not read, since {name}{more} goes before, as in transformers",
            unread.join(", ")
        ));
    }
    let said = DecoderConfig::read(model)?.output;
    if (said, decoder.config().output) == (OutputLayer::Tied, OutputLayer::Head) {
        remarks.push(
            "config.json ties the head to the embedding, but the weights have an `lm_head.weight` \
             that differs: it is the head, as in transformers, and is saved as one"
                .to_owned(),
        );
    }
    Ok(remarks)
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

/// Names of what files hold besides weights: tables of rotary positions, a copy of a tied head, the
/// head that a reward model has no use for.
fn is_known(name: &str, config: &DecoderConfig) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (config.output != OutputLayer::Head && name == HEAD)
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

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Safetensors(shards) => shards.tensors.contains_key(name),
            Self::Gguf(file) => file.names().any(|there| there == name),
        }
    }

    /// Tells whether there is a head that is not the embedding to which the config ties it.
    fn have_another_head(&self, config: &DecoderConfig) -> Result<bool, WeightError> {
        let is_tied = config.output == OutputLayer::Tied;
        if !is_tied || !self.has(EMBEDDING) || !self.has(HEAD) {
            return Ok(false);
        }
        Ok(self.tensor(EMBEDDING)? != self.tensor(HEAD)?)
    }

    /// The shape of a tensor that is there.
    fn shape(&self, name: &str) -> Result<&[usize], WeightError> {
        match self {
            Self::Safetensors(shards) => Ok(&shards.tensors[name].shape),
            Self::Gguf(gguf) => gguf.shape_of(name).map_err(file(Path::new(name))),
        }
    }

    /// Compares the sizes of a config with those of the files, before a model of these sizes is made:
    /// a config may say any.
    fn check_sizes(
        &self,
        config: &DecoderConfig,
        names: &BTreeSet<String>,
    ) -> Result<(), WeightError> {
        let check = |name: &str, expected: [usize; 2]| {
            if !names.contains(name) {
                return Err(WeightError::Missing(name.to_owned()));
            }
            let found = self.shape(name)?;
            if found == expected {
                return Ok(());
            }
            Err(WeightError::Shape {
                name: name.to_owned(),
                expected: expected.to_vec(),
                found: found.to_vec(),
            })
        };
        let is_head = config.output == OutputLayer::Tied && !names.contains(EMBEDDING);
        let embedding = if is_head { HEAD } else { EMBEDDING };
        check(embedding, [config.vocab, config.hidden])?;
        let queries = config.heads.saturating_mul(config.head_dim);
        let keys = config.kv_heads.saturating_mul(config.head_dim);
        // Ends at the first layer that is not there.
        for i in 0..config.layers {
            for (part, rows) in [
                ("self_attn.q_proj", queries),
                ("self_attn.k_proj", keys),
                ("mlp.gate_proj", config.intermediate),
            ] {
                let name = format!("model.layers.{i}.{part}.weight");
                check(&name, [rows, config.hidden])?;
            }
        }
        Ok(())
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

/// The files that a folder's model is made of.
pub(super) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, WeightError> {
    Ok(WeightFiles::find(folder)?.read)
}

/// The files of a folder with weights.
struct WeightFiles {
    /// Those that the model is made of, in transformers' order: one file, or an index's shards.
    read: Vec<PathBuf>,
    /// Names of others that have weights of a model.
    unread: Vec<String>,
}

impl WeightFiles {
    fn find(folder: &Path) -> Result<Self, WeightError> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let read = match (single.is_file(), index.is_file()) {
            (true, _) => vec![single],
            (false, true) => shards(folder, &index)?,
            (false, false) => {
                let found = weights_of_other_names(folder, &[])?;
                if found.is_empty() {
                    fs::metadata(&single).map_err(file(&single))?;
                }
                let folder = folder.to_owned();
                return Err(WeightError::NoWeights { folder, found });
            }
        };
        let unread = weights_of_other_names(folder, &read)?;
        Ok(Self { read, unread })
    }
}

/// Names of a folder's files that look like weights or an index of a model, but for those that are
/// `read`.
fn weights_of_other_names(folder: &Path, read: &[PathBuf]) -> Result<Vec<String>, WeightError> {
    let is_single = read.iter().any(|path| path.ends_with("model.safetensors"));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(file(folder))? {
        let path = entry.map_err(file(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ours = name.starts_with("model") && name.ends_with(".safetensors");
        // Other formats of the same weights stand beside them in many folders.
        let others = [".safetensors", ".bin", ".pth", ".gguf"];
        let others = read.is_empty() && others.iter().any(|end| name.ends_with(end));
        let index = is_single && name == "model.safetensors.index.json";
        if (ours || others || index) && !read.contains(&path) {
            names.push(name.into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The files that an index names.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, WeightError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }

    let text = fs::read_to_string(index).map_err(file(index))?;
    let index: Index = serde_json::from_str(&text).map_err(json(index))?;
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
        // Either name will do where they are one.
        let is_head = config.output == OutputLayer::Tied && !self.left.contains(EMBEDDING);
        let name = if is_head { HEAD } else { EMBEDDING };
        let embedding = self.take(name, &shape)?;
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
