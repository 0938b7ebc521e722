//! `config.json` of Hugging Face as a [`DecoderConfig`]; what would change the result and is not
//! known is an error that names the key.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use thiserror::Error;

use super::config::{Activation, DecoderConfig, OutputLayer, Rope, RopeScaling};

/// An error of a `config.json`.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// It is no JSON object.
    #[error("{}: {source}", path.display())]
    Json {
        /// Path of the file.
        path: PathBuf,
        /// The error of the parser.
        source: serde_json::Error,
    },
    /// A key is missing or has a value that this decoder does not know.
    #[error("`{key}`: expected {expected}, found {found}")]
    Key {
        /// Name of the key.
        key: String,
        /// Values that this decoder knows.
        expected: String,
        /// The value of the file.
        found: String,
    },
    /// A key that this program does not know, and that may change what the model computes.
    #[error(
        "`{key}`: an unknown key of the family {family}: it may change what the model computes; \
         remove it if it does not"
    )]
    Unknown {
        /// Name of the key.
        key: String,
        /// Family of the model, its `model_type`.
        family: String,
    },
    /// The keys of a file are not those of a model that this decoder computes.
    #[error("{}: {source}", path.display())]
    Keys {
        /// Path of the file.
        path: PathBuf,
        /// The error of one of its keys.
        source: Box<ConfigError>,
    },
}

fn wrong(key: &str, expected: &str, found: impl ToString) -> ConfigError {
    ConfigError::Key {
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: found.to_string(),
    }
}

/// Keys that say nothing about what a trained model computes: of files and tools, of generation, and
/// of how a program computes the same numbers.
const IRRELEVANT: &[&str] = &[
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "attn_implementation",
    "auto_map",
    "bf16",
    "cache_implementation",
    "chunk_size_feed_forward",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "finetuning_task",
    "fp16",
    "fp32",
    "gradient_checkpointing",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "max_seq_len",
    "max_sequence_length",
    "min_length",
    "model_max_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pretraining_tp",
    "problem_type",
    "processor_class",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "seq_length",
    "target_lookbehind",
    "task_specific_params",
    "temperature",
    "tie_last_hidden_states",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_flash_attn",
];

/// Keys that are not read and whose off value is the switch: transformers looks at them in every
/// family, and another value than true is another model.
const ON: &[(&str, &str)] = &[(
    "is_causal",
    "true (attention in both directions is not computed)",
)];

/// Keys that a type of rotary positions has, and that transformers passes over under `default`.
const OF_SCALED_ROPE: &[&str] = &[
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "high_freq_factor",
    "long_factor",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "short_factor",
    "truncate",
];

/// Tells whether no value of a key changes what a trained model computes.
fn is_irrelevant(key: &str) -> bool {
    // Names of tokens; dropout, which preference training turns off; what tools write for themselves.
    let ends = ["_token_id", "dropout", "_pdrop", "dropout_prob"];
    let starts = ["_", "unsloth_"];
    IRRELEVANT.contains(&key)
        || ends.iter().any(|end| key.ends_with(end))
        || starts.iter().any(|start| key.starts_with(start))
}

/// Tells whether a key that is not known turns nothing on.
fn is_off(key: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        Value::Number(number) => {
            let names = ["multiplier", "scale", "scaling", "factor"];
            let multiplies = names.iter().any(|name| key.contains(name));
            // Scores times 1 would not be divided by √head_dim.
            let of_scores = key.starts_with("attention");
            let off = if multiplies && !of_scores { 1.0 } else { 0.0 };
            number.as_f64() == Some(off)
        }
    }
}

/// A family, and what transformers 5.24 assumes where its file has no such key.
struct Family {
    /// `model_type`
    name: &'static str,
    /// `num_key_value_heads`; as many as heads without one.
    kv_heads: Option<usize>,
    /// `head_dim`; the hidden size by the heads without one.
    head_dim: Option<usize>,
    /// `sliding_window`
    window: Option<usize>,
}

#[rustfmt::skip]
const FAMILIES: [Family; 5] = [
    Family { name: "llama", kv_heads: None, head_dim: None, window: None },
    Family { name: "mistral", kv_heads: Some(8), head_dim: None, window: Some(4096) },
    Family { name: "qwen2", kv_heads: Some(32), head_dim: None, window: Some(4096) },
    Family { name: "qwen3", kv_heads: Some(32), head_dim: Some(128), window: Some(4096) },
    Family { name: "gemma2", kv_heads: Some(4), head_dim: Some(256), window: Some(4096) },
];

/// A JSON object that knows which of its keys were asked for.
struct Keys {
    values: Map<String, Value>,
    asked: Vec<String>,
}

impl Keys {
    fn new(values: Map<String, Value>) -> Self {
        let asked = Vec::new();
        Self { values, asked }
    }

    /// The value of a key, unless it is null.
    fn get(&mut self, key: &str) -> Option<Value> {
        self.asked.push(key.to_owned());
        self.values
            .get(key)
            .filter(|value| !value.is_null())
            .cloned()
    }

    /// The value of a key that null turns off, and `default` where it is missing.
    fn or_off<T>(
        &mut self,
        key: &str,
        default: Option<T>,
        read: impl Fn(&mut Self, &str) -> Result<Option<T>, ConfigError>,
    ) -> Result<Option<T>, ConfigError> {
        match read(self, key)? {
            None if !self.values.contains_key(key) => Ok(default),
            value => Ok(value),
        }
    }

    /// The value of a key that is `default` where it is missing, and that null does not turn off.
    fn or_default<T>(
        &mut self,
        key: &str,
        default: T,
        read: impl Fn(&mut Self, &str) -> Result<Option<T>, ConfigError>,
    ) -> Result<T, ConfigError> {
        let value = self.or_off(key, Some(default), read)?;
        value.ok_or_else(|| wrong(key, "a number > 0", "null"))
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value
            .as_f64()
            .filter(|number| number.is_finite() && *number > 0.0);
        number
            .map(Some)
            .ok_or_else(|| wrong(key, "a number > 0", value))
    }

    fn size(&mut self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        let size = size.filter(|&size| size > 0);
        size.map(Some)
            .ok_or_else(|| wrong(key, "an integer > 0", value))
    }

    fn needs_size(&mut self, key: &str) -> Result<usize, ConfigError> {
        self.size(key)?
            .ok_or_else(|| wrong(key, "an integer > 0", "nothing"))
    }

    fn flag(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| wrong(key, "true or false", value))
    }

    /// A key that has to be false or missing.
    fn refuse(&mut self, key: &str) -> Result<(), ConfigError> {
        match self.flag(key)? {
            Some(true) => Err(wrong(key, "false", "true")),
            _ => Ok(()),
        }
    }

    /// A key that has to be true or missing; null turns it off.
    fn needs_on(&mut self, key: &str, expected: &str) -> Result<(), ConfigError> {
        self.asked.push(key.to_owned());
        match self.values.get(key) {
            None | Some(Value::Bool(true)) => Ok(()),
            Some(other) => Err(wrong(key, expected, other)),
        }
    }

    /// The first key that nobody asked for and that may change what the model computes.
    fn unknown(&self) -> Option<&String> {
        let mut unknown = self.values.iter().filter(|(key, value)| {
            let known = self.asked.contains(key) || is_irrelevant(key);
            !known && !is_off(key, value)
        });
        unknown.next().map(|(key, _)| key)
    }
}

impl DecoderConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or says something that this decoder does not compute.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        Self::of_file(&folder.join("config.json"), Self::values(folder)?)
    }

    /// Parses keys that stand in the file at `path`, which errors name.
    pub(crate) fn of_file(path: &Path, values: Map<String, Value>) -> Result<Self, ConfigError> {
        Self::parse(values).map_err(|error| ConfigError::Keys {
            path: path.to_owned(),
            source: Box::new(error),
        })
    }

    pub(crate) fn values(folder: &Path) -> Result<Map<String, Value>, ConfigError> {
        let path = folder.join("config.json");
        let text = fs::read_to_string(&path).map_err(|source| ConfigError::File {
            path: path.clone(),
            source,
        })?;
        serde_json::from_str(&text).map_err(|source| ConfigError::Json { path, source })
    }

    /// Parses the keys of a `config.json`.
    ///
    /// # Errors
    ///
    /// A family or a key that is not known, a key that is missing, or a value that this decoder does
    /// not compute.
    pub fn parse(values: Map<String, Value>) -> Result<Self, ConfigError> {
        let mut keys = Keys::new(values);
        let name = match keys.get("model_type") {
            Some(Value::String(name)) => name,
            other => {
                let found = other.map_or("nothing".to_owned(), |other| other.to_string());
                return Err(wrong("model_type", "a string", found));
            }
        };
        let Some(family) = FAMILIES.iter().find(|family| family.name == name) else {
            let known = FAMILIES.each_ref().map(|family| family.name);
            return Err(wrong("model_type", &format!("one of {known:?}"), name));
        };
        let gemma = family.name == "gemma2";
        let hidden = keys.needs_size("hidden_size")?;
        let heads = keys.needs_size("num_attention_heads")?;
        let head_dim = match (keys.size("head_dim")?, family.head_dim) {
            (Some(head_dim), _) => head_dim,
            (None, Some(default)) => keys.or_default("head_dim", default, Keys::size)?,
            (None, None) if hidden.is_multiple_of(heads) => hidden / heads,
            (None, None) => return Err(wrong("head_dim", "an integer > 0", "nothing")),
        };
        if !head_dim.is_multiple_of(2) {
            return Err(wrong("head_dim", "an even number", head_dim));
        }
        let kv_heads = keys.or_off("num_key_value_heads", family.kv_heads, Keys::size)?;
        let kv_heads = kv_heads.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of {heads} heads");
            return Err(wrong("num_key_value_heads", &expected, kv_heads));
        }
        let window = window(&mut keys, family)?;
        let mut scalar = head_dim as f64;
        let (mut attention_softcap, mut logit_softcap) = (None, None);
        if gemma {
            scalar = keys.or_default("query_pre_attn_scalar", 256.0, Keys::number)?;
            attention_softcap = keys.or_off("attn_logit_softcapping", Some(50.0), Keys::number)?;
            logit_softcap = keys.or_off("final_logit_softcapping", Some(30.0), Keys::number)?;
        }
        let qkv_bias = match keys.flag("attention_bias")? {
            _ if family.name == "qwen2" => true,
            Some(true) => return Err(wrong("attention_bias", "false", "true")),
            _ => false,
        };
        keys.refuse("mlp_bias")?;
        for (key, expected) in ON {
            keys.needs_on(key, expected)?;
        }
        // Those of transformers, of older compressed-tensors and of MLX.
        for key in ["quantization_config", "compression_config", "quantization"] {
            if let Some(quantized) = keys.get(key).filter(|value| !is_off(key, value)) {
                let expected = "nothing (quantised weights are not read: load the model that they \
                                were made from)";
                return Err(wrong(key, expected, quantized));
            }
        }
        let config = Self {
            hidden,
            intermediate: keys.needs_size("intermediate_size")?,
            layers: keys.needs_size("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            vocab: keys.needs_size("vocab_size")?,
            epsilon: keys.or_default("rms_norm_eps", 1e-6, Keys::number)?,
            rope: rope(&mut keys)?,
            output: output(&mut keys, gemma)?,
            qkv_bias,
            qk_norm: family.name == "qwen3",
            gemma,
            activation: activation(&mut keys, gemma)?,
            attention_divisor: scalar.sqrt(),
            attention_softcap,
            logit_softcap,
            window,
            positions: keys.size("max_position_embeddings")?,
        };
        match keys.unknown() {
            Some(key) => Err(ConfigError::Unknown {
                key: key.clone(),
                family: family.name.to_owned(),
            }),
            None => Ok(config),
        }
    }
}

/// By the architecture: with a head of words, or of one reward.
fn output(keys: &mut Keys, gemma: bool) -> Result<OutputLayer, ConfigError> {
    // What transformers assumes where it is not said.
    let tied = keys.flag("tie_word_embeddings")?.unwrap_or(gemma);
    let architecture = match keys.get("architectures") {
        Some(Value::Array(names)) if names.len() == 1 => names[0].clone(),
        Some(other) if !is_off("architectures", &other) => {
            return Err(wrong("architectures", "one name", other));
        }
        _ => Value::String("ForCausalLM".to_owned()),
    };
    let architecture = architecture.as_str().unwrap_or_default();
    let labels = keys.get("id2label");
    let count = keys.size("num_labels")?;
    if architecture.ends_with("ForCausalLM") {
        return Ok(if tied {
            OutputLayer::Tied
        } else {
            OutputLayer::Head
        });
    }
    if !architecture.ends_with("ForSequenceClassification") {
        let expected = "…ForCausalLM or …ForSequenceClassification";
        return Err(wrong("architectures", expected, architecture));
    }
    // transformers writes them unless there are two, its default.
    let labels = labels.as_ref().and_then(Value::as_object).map(Map::len);
    match labels.or(count).unwrap_or(2) {
        1 => Ok(OutputLayer::Reward),
        labels => Err(wrong("id2label", "one label, a reward", labels)),
    }
}

fn activation(keys: &mut Keys, gemma: bool) -> Result<Activation, ConfigError> {
    // Gemma 2's older files have both, and this one counts.
    let (key, default) = if gemma {
        keys.get("hidden_act");
        ("hidden_activation", "gelu_pytorch_tanh")
    } else {
        ("hidden_act", "silu")
    };
    let name = keys.get(key);
    let missing = !keys.values.contains_key(key);
    match name.as_ref().and_then(Value::as_str) {
        None if missing => activation_by_name(default),
        name => name.and_then(activation_by_name),
    }
    .ok_or_else(|| {
        let found = name.map_or("null".to_owned(), |name| name.to_string());
        wrong(key, "silu or gelu_pytorch_tanh", found)
    })
}

fn activation_by_name(name: &str) -> Option<Activation> {
    match name {
        "silu" | "swish" => Some(Activation::Silu),
        "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
        _ => None,
    }
}

/// The window of layers that have one. A window that a family does not use may stand in its file.
fn window(keys: &mut Keys, family: &Family) -> Result<Option<usize>, ConfigError> {
    keys.get("sliding_window");
    let uses = keys.flag("use_sliding_window")?;
    let first = keys.get("max_window_layers");
    let slides = match keys.get("layer_types") {
        Some(Value::Array(layers)) => {
            let kinds = ["full_attention", "sliding_attention"];
            let known = |layer: &&Value| layer.as_str().is_some_and(|layer| kinds.contains(&layer));
            if let Some(other) = layers.iter().find(|layer| !known(layer)) {
                return Err(wrong("layer_types", &format!("{kinds:?}"), other));
            }
            Some(layers.iter().any(|layer| layer == "sliding_attention"))
        }
        _ => None,
    };
    let slides = match (family.name, slides) {
        ("llama", Some(true)) => {
            return Err(wrong("layer_types", "full_attention", "sliding_attention"));
        }
        ("llama", _) => false,
        // Every layer of Mistral, whatever their types are.
        ("mistral", _) | ("gemma2", None) => true,
        (_, Some(slides)) => slides,
        // Qwen's first layers have none.
        (_, None) => {
            let first = first.as_ref().map_or(Some(28), Value::as_u64);
            let first = first.ok_or_else(|| wrong("max_window_layers", "an integer", "another"))?;
            uses == Some(true) && keys.needs_size("num_hidden_layers")? as u64 > first
        }
    };
    if slides {
        keys.or_off("sliding_window", family.window, Keys::size)
    } else {
        Ok(None)
    }
}

/// Either `rope_theta` and `rope_scaling`, or newer files' `rope_parameters`.
fn rope(keys: &mut Keys) -> Result<Rope, ConfigError> {
    let theta = keys.number("rope_theta")?;
    // What the model was first trained on; newer files have it inside.
    let original = keys.number("original_max_position_embeddings")?;
    let old = keys
        .get("rope_scaling")
        .filter(|old| !is_off("rope_scaling", old));
    let new = keys
        .get("rope_parameters")
        .filter(|new| !is_off("rope_parameters", new));
    let name = match (&old, &new) {
        (Some(old), Some(new)) if old != new => {
            return Err(wrong("rope_scaling", "nothing beside rope_parameters", old));
        }
        (_, None) => "rope_scaling",
        _ => "rope_parameters",
    };
    let Some(parameters) = new.or(old) else {
        return Ok(Rope {
            theta: theta.unwrap_or(1e4),
            scaling: None,
        });
    };
    let Value::Object(values) = parameters else {
        return Err(wrong(name, "an object", parameters));
    };
    let mut inner = Keys::new(values);
    let theta = match (inner.number("rope_theta")?, theta) {
        (Some(inner), Some(outer)) if inner != outer => {
            return Err(wrong(
                "rope_theta",
                &format!("{inner}, as in {name}"),
                outer,
            ));
        }
        (inner, outer) => inner.or(outer).unwrap_or(1e4),
    };
    let kind = inner.get("rope_type").or_else(|| inner.get("type"));
    inner.get("type");
    let kind = kind
        .as_ref()
        .and_then(Value::as_str)
        .unwrap_or("default")
        .to_owned();
    let inside = inner.number("original_max_position_embeddings")?;
    let scaling = match kind.as_str() {
        "default" => {
            inner
                .asked
                .extend(OF_SCALED_ROPE.iter().map(|key| (*key).to_owned()));
            None
        }
        // Positions divided by 1.
        "linear" if inner.number("factor")? == Some(1.0) => None,
        "llama3" => {
            let missing = |key: &str| wrong(&format!("{name}.{key}"), "a number > 0", "nothing");
            let mut needs = |key: &str| inner.number(key)?.ok_or_else(|| missing(key));
            let original = original
                .or(inside)
                .or(keys.number("max_position_embeddings")?);
            Some(RopeScaling {
                factor: needs("factor")?,
                low: needs("low_freq_factor")?,
                high: needs("high_freq_factor")?,
                original: original.ok_or_else(|| missing("original_max_position_embeddings"))?,
            })
        }
        other => {
            let key = format!("{name}.rope_type");
            return Err(wrong(&key, "default or llama3", other));
        }
    };
    match inner.unknown() {
        Some(key) => {
            let found = inner.values[key].to_string();
            let what = format!("nothing, as it is not known for the type {kind}");
            Err(wrong(&format!("{name}.{key}"), &what, found))
        }
        None => Ok(Rope { theta, scaling }),
    }
}
