//! A decoder as a folder of Hugging Face.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::nn::RmsNorm;
use burn::tensor::{FloatDType, Tensor, TensorData, TensorReadError};
use serde_json::{Map, Value, json as value};

use super::error::{SaveError, WeightError, file, json};
use super::load::{config_keys, weight_files};
use super::others::write_others;
use super::tensors::{Stored, types, write_tensors};
use super::whole::write_folder;
use crate::model::config::OutputLayer;
use crate::model::decoder::Decoder;
use crate::model::names::{EMBEDDING, HEAD, norms, projections};
use crate::model::projection::Projection;
use crate::text::Chat;

/// Number type and files of weights that are saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveOptions {
    /// The type of all weights; `None` is the type that each has in the input, and f32 of a GGUF file
    /// and of a weight that the input has not.
    pub dtype: Option<FloatDType>,
    /// Largest number of bytes of a file of weights, its header aside; a single weight may be larger.
    /// 5 GB by default.
    pub shard_bytes: usize,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            dtype: None,
            shard_bytes: 5_000_000_000,
        }
    }
}

/// Saves a decoder as a folder of its own, which other programs load as they load `from`: the files
/// that stand beside its weights (tokenizer, templates; those of a GGUF file are written out), its
/// config, and the weights, with adapters merged into them: in `model.safetensors`, or in shards with
/// their index. Returns the type that most weights are in.
///
/// What speaks of the input alone is left behind: an adapter, its card, the state of its training.
/// The folder appears under its name when all of it is written.
///
/// # Errors
///
/// `to` is there already, a file cannot be read or written, or a number is too large for its type.
pub fn save(
    decoder: &Decoder,
    from: &Path,
    to: &Path,
    options: &SaveOptions,
) -> Result<FloatDType, SaveError> {
    let types = Types::of(from, options.dtype)?;
    write_folder(to, |folder| {
        write_others(from, folder)?;
        let config = config(decoder, from, &types)?;
        let path = folder.join("config.json");
        let config = serde_json::to_string_pretty(&config).map_err(json(&path))?;
        fs::write(&path, config).map_err(file(&path))?;
        Ok::<_, SaveError>(write_weights(
            weights(decoder, &types),
            folder,
            options.shard_bytes,
        )?)
    })?;
    Ok(types.usual)
}

/// The number type of each weight.
struct Types {
    usual: FloatDType,
    stored: BTreeMap<String, FloatDType>,
}

impl Types {
    fn of(from: &Path, dtype: Option<FloatDType>) -> Result<Self, WeightError> {
        let mut stored = BTreeMap::new();
        if dtype.is_none() && !from.is_file() {
            for path in weight_files(from)? {
                stored.extend(types(&path)?);
            }
        }
        // Where they are one, the input may have it under either name.
        let embedding = stored.get(EMBEDDING).or(stored.get(HEAD)).copied();
        let usual = dtype.or(embedding).unwrap_or(FloatDType::F32);
        Ok(Self { usual, stored })
    }

    fn get(&self, name: &str) -> FloatDType {
        self.stored.get(name).copied().unwrap_or(self.usual)
    }
}

/// The config of the input, of this decoder and its type.
fn config(decoder: &Decoder, from: &Path, types: &Types) -> Result<Map<String, Value>, SaveError> {
    let mut config = config_keys(from)?;
    // A file may tie a head that differs from the embedding.
    if decoder.config().output == OutputLayer::Head {
        config.insert("tie_word_embeddings".to_owned(), false.into());
    }
    // As it is in the input, it says nothing else.
    let is_kept = !types.stored.is_empty()
        && ["dtype", "torch_dtype"]
            .iter()
            .any(|key| config.contains_key(*key));
    if !is_kept {
        config.remove("torch_dtype");
        let name = match types.usual {
            FloatDType::F16 => "float16",
            FloatDType::BF16 => "bfloat16",
            _ => "float32",
        };
        config.insert("dtype".to_owned(), name.into());
    }
    if decoder.config().output == OutputLayer::Reward {
        let family = config["model_type"].as_str().unwrap_or_default();
        let family = CLASSES.iter().find(|class| class.to_lowercase() == family);
        let class = format!(
            "{}ForSequenceClassification",
            family.expect("a known family")
        );
        config.insert("architectures".to_owned(), [class].as_slice().into());
        // transformers looks for the last token that is no padding. Where padding is what ends a text,
        // it would look past that end: without padding it takes one row at a time, and its last token.
        let chat = Chat::open(from, decoder.config())?;
        let padding = (chat.padding != chat.end).then_some(chat.padding);
        config.insert("pad_token_id".to_owned(), padding.into());
        config.insert("id2label".to_owned(), value!({"0": "LABEL_0"}));
        config.insert("label2id".to_owned(), value!({"LABEL_0": 0}));
    }
    Ok(config)
}

/// The families as transformers calls them.
const CLASSES: [&str; 5] = ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2"];

/// A weight whose numbers are computed when its file is written.
struct Weight {
    name: String,
    dtype: FloatDType,
    count: usize,
    numbers: Box<dyn FnOnce() -> Result<TensorData, TensorReadError>>,
}

impl Weight {
    fn bytes(&self) -> usize {
        let each = match self.dtype {
            FloatDType::F16 | FloatDType::BF16 => 2,
            _ => 4,
        };
        self.count * each
    }
}

/// Writes weights into as many files as it takes, and an index of several.
fn write_weights(weights: Vec<Weight>, to: &Path, most: usize) -> Result<(), WeightError> {
    let sizes: Vec<usize> = weights.iter().map(Weight::bytes).collect();
    let shards = shards(&sizes, most);
    let parameters: usize = weights.iter().map(|weight| weight.count).sum();
    let mut files = Map::new();
    let mut weights = weights.into_iter();
    for (i, count) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            all => format!("model-{:05}-of-{all:05}.safetensors", i + 1),
        };
        let mut stored = Vec::new();
        for weight in weights.by_ref().take(*count) {
            files.insert(weight.name.clone(), name.clone().into());
            stored.push(Stored::new(
                weight.name,
                weight.dtype,
                &(weight.numbers)()?,
            )?);
        }
        write_tensors(&stored, &to.join(name))?;
    }
    if shards.len() > 1 {
        let size: usize = sizes.iter().sum();
        let index = value!({
            "metadata": {"total_parameters": parameters, "total_size": size},
            "weight_map": files,
        });
        let path = to.join("model.safetensors.index.json");
        fs::write(&path, format!("{index:#}\n")).map_err(file(&path))?;
    }
    Ok(())
}

/// Numbers of consecutive weights that go into a file each, of at most so many bytes together.
fn shards(sizes: &[usize], most: usize) -> Vec<usize> {
    let mut shards = vec![];
    let (mut count, mut bytes) = (0, 0);
    for size in sizes {
        if count > 0 && bytes + size > most {
            shards.push(count);
            (count, bytes) = (0, 0);
        }
        count += 1;
        bytes += size;
    }
    shards.push(count);
    shards
}

/// All weights under the names and in the layout of Hugging Face.
fn weights(decoder: &Decoder, types: &Types) -> Vec<Weight> {
    let mut list = List {
        gemma: decoder.config().gemma,
        types,
        weights: Vec::new(),
    };
    list.tensor(EMBEDDING.to_owned(), decoder.embedding.weight.val());
    for (i, mut layer) in decoder.layers.iter().cloned().enumerate() {
        let name = |part: &str| format!("model.layers.{i}.{part}");
        for (linear, part) in projections(&mut layer) {
            list.linear(&name(part), linear);
        }
        for (norm, part) in norms(&mut layer, decoder.config().gemma) {
            list.norm(&name(part), norm);
        }
    }
    list.norm("model.norm", &decoder.norm);
    if let Some(head) = &decoder.head {
        list.linear("lm_head", head);
    }
    if let Some(score) = &decoder.score {
        list.linear("score", score);
    }
    list.weights
}

/// The weights of a model, under way.
struct List<'a> {
    gemma: bool,
    types: &'a Types,
    weights: Vec<Weight>,
}

impl List<'_> {
    fn add<const D: usize>(
        &mut self,
        name: String,
        count: usize,
        tensor: impl FnOnce() -> Tensor<D> + 'static,
    ) {
        self.weights.push(Weight {
            dtype: self.types.get(&name),
            name,
            count,
            numbers: Box::new(move || Ok(tensor().try_into_data()?)),
        });
    }

    fn tensor<const D: usize>(&mut self, name: String, tensor: Tensor<D>) {
        self.add(name, tensor.shape().num_elements(), move || tensor);
    }

    /// Adapters are merged when the numbers are asked for: all of them at once would be a second model.
    fn linear(&mut self, name: &str, linear: &Projection) {
        let (projection, [from, to]) = (linear.clone(), linear.weight.val().dims());
        self.add(format!("{name}.weight"), from * to, move || {
            projection.weight().transpose()
        });
        if let Some(bias) = &linear.bias {
            self.tensor(format!("{name}.bias"), bias.val());
        }
    }

    fn norm(&mut self, name: &str, norm: &RmsNorm) {
        let gamma = norm.gamma.val();
        let gamma = if self.gemma { gamma - 1 } else { gamma };
        self.tensor(format!("{name}.weight"), gamma);
    }
}
