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
        "`{key}`: an unknown key of the family {family}: it may change what the model computes"
    )]
    Unknown {
        /// Name of the key.
        key: String,
        /// Family of the model, its `model_type`.
        family: String,
    },
}

fn wrong(key: &str, expected: &str, found: impl ToString) -> ConfigError {
    ConfigError::Key {
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: found.to_string(),
    }
}

/// Keys that say nothing about what a trained model computes.
const IRRELEVANT: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "max_window_layers",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "rope_interleaved",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
];

/// A JSON object that knows which of its keys were asked for.
struct Keys {
    values: Map<String, Value>,
    asked: Vec<String>,
}

impl Keys {
    /// The value of a key, unless it is null.
    fn get(&mut self, key: &str) -> Option<Value> {
        self.asked.push(key.to_owned());
        self.values
            .get(key)
            .filter(|value| !value.is_null())
            .cloned()
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
}

impl DecoderConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or says something that this decoder does not compute.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        Self::parse(Self::values(folder)?)
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
        let mut keys = Keys {
            values,
            asked: Vec::new(),
        };
        let family = match keys.get("model_type") {
            Some(Value::String(family)) => family,
            other => {
                let found = other.map_or("nothing".to_owned(), |other| other.to_string());
                return Err(wrong("model_type", "a string", found));
            }
        };
        let known = ["llama", "mistral", "qwen2", "qwen3", "gemma2"];
        if !known.contains(&family.as_str()) {
            return Err(wrong("model_type", &format!("one of {known:?}"), family));
        }
        let gemma = family == "gemma2";
        let hidden = keys.needs_size("hidden_size")?;
        let heads = keys.needs_size("num_attention_heads")?;
        let head_dim = match keys.size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(wrong("head_dim", "an integer > 0", "nothing")),
        };
        if !head_dim.is_multiple_of(2) {
            return Err(wrong("head_dim", "an even number", head_dim));
        }
        let kv_heads = keys.size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of {heads} heads");
            return Err(wrong("num_key_value_heads", &expected, kv_heads));
        }
        let window = window(&mut keys, &family)?;
        let scalar = match keys.number("query_pre_attn_scalar")? {
            Some(scalar) if gemma => scalar,
            Some(_) => {
                let key = "query_pre_attn_scalar".to_owned();
                return Err(ConfigError::Unknown { key, family });
            }
            None => head_dim as f64,
        };
        let mut softcap = |key: &str| match keys.number(key)? {
            Some(_) if !gemma => Err(ConfigError::Unknown {
                key: key.to_owned(),
                family: family.clone(),
            }),
            cap => Ok(cap),
        };
        let attention_softcap = softcap("attn_logit_softcapping")?;
        let logit_softcap = softcap("final_logit_softcapping")?;
        let qkv_bias = match keys.flag("attention_bias")? {
            _ if family == "qwen2" => true,
            Some(true) => return Err(wrong("attention_bias", "false", "true")),
            _ => false,
        };
        keys.refuse("mlp_bias")?;
        let config = Self {
            hidden,
            intermediate: keys.needs_size("intermediate_size")?,
            layers: keys.needs_size("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            vocab: keys.needs_size("vocab_size")?,
            epsilon: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope: rope(&mut keys)?,
            output: output(&mut keys, gemma)?,
            qkv_bias,
            qk_norm: family == "qwen3",
            gemma,
            activation: activation(&mut keys)?,
            attention_divisor: scalar.sqrt(),
            attention_softcap,
            logit_softcap,
            window,
            positions: keys.size("max_position_embeddings")?,
        };
        let unknown = keys.values.iter().find(|(key, value)| {
            let known = keys.asked.contains(key) || IRRELEVANT.contains(&key.as_str());
            !known && !value.is_null()
        });
        match unknown {
            Some((key, _)) => Err(ConfigError::Unknown {
                key: key.clone(),
                family,
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
        Some(other) => return Err(wrong("architectures", "one name", other)),
        None => Value::String("ForCausalLM".to_owned()),
    };
    let architecture = architecture.as_str().unwrap_or_default();
    let labels = keys.get("id2label");
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
    match labels
        .as_ref()
        .and_then(Value::as_object)
        .map_or(2, Map::len)
    {
        1 => Ok(OutputLayer::Reward),
        labels => Err(wrong("id2label", "one label, a reward", labels)),
    }
}

fn activation(keys: &mut Keys) -> Result<Activation, ConfigError> {
    // Gemma 2's older files have both, and the second one counts.
    let hidden = keys.get("hidden_activation");
    let key = if hidden.is_some() {
        "hidden_activation"
    } else {
        "hidden_act"
    };
    let other = keys.get("hidden_act");
    match hidden.or(other).as_ref().and_then(Value::as_str) {
        Some("silu") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        other => Err(wrong(
            key,
            "silu or gelu_pytorch_tanh",
            other.unwrap_or("nothing"),
        )),
    }
}

/// The window of layers that have one.
fn window(keys: &mut Keys, family: &str) -> Result<Option<usize>, ConfigError> {
    let window = keys.size("sliding_window")?;
    let uses = keys.flag("use_sliding_window")?;
    let layers = keys.get("layer_types");
    if let Some(Value::Array(layers)) = &layers {
        let kinds = ["full_attention", "sliding_attention"];
        let known = |layer: &&Value| layer.as_str().is_some_and(|layer| kinds.contains(&layer));
        if let Some(other) = layers.iter().find(|layer| !known(layer)) {
            return Err(wrong("layer_types", &format!("{kinds:?}"), other));
        }
        let slides = layers.iter().any(|layer| layer == "sliding_attention");
        return Ok(window.filter(|_| slides));
    }
    // Qwen's files name a window that they do not use.
    let used = uses.unwrap_or(matches!(family, "mistral" | "gemma2"));
    Ok(window.filter(|_| used))
}

/// Either `rope_theta` and `rope_scaling`, or newer files' `rope_parameters`.
fn rope(keys: &mut Keys) -> Result<Rope, ConfigError> {
    let theta = keys.number("rope_theta")?;
    let old = keys.get("rope_scaling");
    let new = keys.get("rope_parameters");
    let name = match (&old, &new) {
        (Some(old), Some(_)) => {
            return Err(wrong("rope_scaling", "nothing beside rope_parameters", old));
        }
        (_, None) => "rope_scaling",
        (None, Some(_)) => "rope_parameters",
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
    let mut inner = Keys {
        values,
        asked: Vec::new(),
    };
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
    let kind = kind
        .as_ref()
        .and_then(Value::as_str)
        .unwrap_or("default")
        .to_owned();
    let mut needs = |key: &str| {
        let number = inner.number(key)?;
        number.ok_or_else(|| wrong(&format!("{name}.{key}"), "a number > 0", "nothing"))
    };
    let scaling = match kind.as_str() {
        "default" => None,
        "llama3" => Some(RopeScaling {
            factor: needs("factor")?,
            low: needs("low_freq_factor")?,
            high: needs("high_freq_factor")?,
            original: needs("original_max_position_embeddings")?,
        }),
        other => {
            let key = format!("{name}.rope_type");
            return Err(wrong(&key, "default or llama3", other));
        }
    };
    inner.get("type");
    let unknown = inner.values.keys().find(|key| !inner.asked.contains(key));
    match unknown {
        Some(key) => Err(wrong(
            &format!("{name}.{key}"),
            "nothing",
            "a key that is not known",
        )),
        None => Ok(Rope { theta, scaling }),
    }
}
