//! Adapters: which projections get one, and the files that PEFT writes and reads.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::quantization::{Calibration, QuantScheme, compute_q_params, compute_range};
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::decoder::Decoder;
use crate::projection::{Adapter, Projection};
use crate::weights::json as parser;
use crate::weights::{WeightError, at_once, bytes, file, floats, format, linears, write_tensors};

/// Why an adapter cannot be used.
#[derive(Debug, Error)]
pub enum AdapterError {
    /// Its files.
    #[error(transparent)]
    File(#[from] WeightError),
    /// An option of `adapter_config.json` that is not computed here.
    #[error("adapter_config.json, `{key}`: expected {expected}, found {found}")]
    Option {
        /// The key.
        key: String,
        /// What would be understood.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A projection that no layer has.
    #[error("`{0}`: no projection of this model; there are {TARGETS:?}")]
    Target(String),
}

/// The projections of a layer, as Hugging Face calls them.
pub const TARGETS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// Size and place of adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// Columns of A, rows of B.
    pub rank: usize,
    /// What is added is α/rank·A·B.
    pub alpha: f64,
    /// Of [`TARGETS`].
    pub targets: Vec<String>,
}

/// The last part of a name such as `self_attn.q_proj`.
fn target(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Each projection of the layers, with its name in Hugging Face's files.
fn projections(decoder: &mut Decoder) -> impl Iterator<Item = (&mut Projection, String)> {
    let layers = decoder.layers.iter_mut().enumerate();
    layers.flat_map(|(i, layer)| {
        linears(layer).map(|(projection, part)| (projection, format!("model.layers.{i}.{part}")))
    })
}

impl Decoder {
    /// With new adapters, which alone are trained.
    ///
    /// # Errors
    ///
    /// A target is no projection of a layer.
    pub fn with_adapters(self, options: &LoraOptions) -> Result<Self, AdapterError> {
        let unknown = options
            .targets
            .iter()
            .find(|name| !TARGETS.contains(&name.as_str()));
        if let Some(name) = unknown {
            return Err(AdapterError::Target(name.clone()));
        }
        let mut decoder = self.freeze();
        for (projection, name) in projections(&mut decoder) {
            if options.targets.iter().any(|of| of == target(&name)) {
                let adapted = projection.clone().with_adapter(options.rank, options.alpha);
                *projection = adapted;
            }
        }
        // What scores is new, and PEFT trains it as well.
        if let Some(score) = decoder.score.take() {
            decoder.score = Some(score.unfreeze());
        }
        Ok(decoder)
    }

    /// Whether any projection has an adapter.
    pub fn has_adapters(&self) -> bool {
        projections(&mut self.clone()).any(|(projection, _)| projection.adapter.is_some())
    }

    /// Adapters in the weights they stand beside, and no adapters.
    pub fn merged(mut self) -> Self {
        for (projection, _) in projections(&mut self) {
            *projection = projection.clone().merged();
        }
        self
    }

    /// The layers' projections in few bits, as `scheme` says: they are frozen, and numbers again
    /// while they are multiplied (QLoRA, Dettmers et al. 2023).
    pub fn quantized(mut self, scheme: &QuantScheme) -> Self {
        for (projection, _) in projections(&mut self) {
            let weight = projection.weight.val();
            let range = compute_range(scheme, &weight, &Calibration::MinMax);
            let weight = weight.quantize(scheme, compute_q_params(scheme, range));
            projection.weight = Param::from_tensor(weight).set_require_grad(false);
        }
        self
    }
}

/// Saves the adapters as PEFT does: `adapter_config.json` and `adapter_model.safetensors`, in a
/// folder that appears when all of it is written. `base` is what they were trained on.
///
/// # Errors
///
/// `to` is there already, or a file cannot be written.
pub fn save_adapter(
    decoder: &Decoder,
    options: &LoraOptions,
    base: &Path,
    to: &Path,
) -> Result<(), WeightError> {
    let mut tensors = Vec::new();
    for (projection, name) in projections(&mut decoder.clone()) {
        if let Some(adapter) = &projection.adapter {
            for (factor, part) in [(&adapter.a, "lora_A"), (&adapter.b, "lora_B")] {
                let name = format!("base_model.model.{name}.{part}.weight");
                tensors.push(bytes(&name, factor.val().transpose()));
            }
        }
    }
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": options.rank,
        "lora_alpha": options.alpha,
        "lora_dropout": 0.0,
        "target_modules": options.targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    });
    at_once(to, |folder| {
        write_tensors(&tensors, &folder.join("adapter_model.safetensors"))?;
        let path = folder.join("adapter_config.json");
        fs::write(&path, format!("{config:#}")).map_err(file(&path))
    })
}

/// Keys of `adapter_config.json` that do not change what an adapter computes, whatever they say:
/// its tensors tell which projections have one.
const IRRELEVANT: [&str; 15] = [
    "peft_type",
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Rank and α, unless something else is on.
fn options(config: &Map<String, Value>) -> Result<LoraOptions, AdapterError> {
    let wrong = |key: &str, expected: &str, found: &Value| AdapterError::Option {
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: found.to_string(),
    };
    let of = |key: &str| config.get(key).unwrap_or(&Value::Null);
    if of("peft_type") != "LORA" {
        return Err(wrong("peft_type", "LORA", of("peft_type")));
    }
    let rank = of("r").as_u64().filter(|rank| *rank > 0);
    let rank = rank.ok_or_else(|| wrong("r", "an integer > 0", of("r")))?;
    let alpha = of("lora_alpha").as_f64();
    let alpha = alpha.ok_or_else(|| wrong("lora_alpha", "a number", of("lora_alpha")))?;
    for (key, value) in config {
        let is_off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::String(text) => text == "none",
            _ => false,
        };
        let is_known = ["r", "lora_alpha"].contains(&key.as_str())
            || IRRELEVANT.contains(&key.as_str())
            // Other beginnings than PEFT's own change the base as well.
            || (key == "init_lora_weights" && value == true);
        if !is_off && !is_known {
            return Err(wrong(key, "nothing", value));
        }
    }
    let targets = match of("target_modules") {
        Value::Array(names) => names
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    };
    #[allow(clippy::cast_possible_truncation, reason = "a rank")]
    let rank = rank as usize;
    Ok(LoraOptions {
        rank,
        alpha,
        targets,
    })
}

/// Puts an adapter that PEFT wrote beside the projections of `decoder`.
///
/// # Errors
///
/// A file is missing or damaged, an option would change what is computed, or a tensor is of
/// another model.
pub fn load_adapter(
    mut decoder: Decoder,
    folder: &Path,
    device: &Device,
) -> Result<(Decoder, LoraOptions), AdapterError> {
    let path = folder.join("adapter_config.json");
    let text = fs::read_to_string(&path).map_err(file(&path))?;
    let config: Map<String, Value> = serde_json::from_str(&text).map_err(parser(&path))?;
    let options = options(&config)?;
    let path = folder.join("adapter_model.safetensors");
    let all = fs::read(&path).map_err(file(&path))?;
    let tensors = SafeTensors::deserialize(&all).map_err(format(&path))?;
    // Names that nobody has asked for.
    let mut left: BTreeSet<&str> = tensors.names().into_iter().collect();
    for (projection, name) in projections(&mut decoder) {
        let [from, to] = projection.weight.val().dims();
        let shapes = [
            ("lora_A", [options.rank, from]),
            ("lora_B", [to, options.rank]),
        ];
        let names = shapes.map(|(part, _)| format!("base_model.model.{name}.{part}.weight"));
        if names.iter().all(|name| tensors.tensor(name).is_err()) {
            continue;
        }
        let mut factors = Vec::new();
        for (name, (_, shape)) in names.iter().zip(shapes) {
            let view = tensors
                .tensor(name)
                .map_err(|_| WeightError::Missing(name.clone()))?;
            if view.shape() != shape {
                return Err(AdapterError::File(WeightError::Shape {
                    name: name.clone(),
                    expected: shape.to_vec(),
                    found: view.shape().to_vec(),
                }));
            }
            let numbers = floats(name, view.dtype(), view.data())?;
            if let Some(place) = numbers.iter().position(|x| !x.is_finite()) {
                let (name, value) = (name.clone(), numbers[place]);
                return Err(WeightError::NotFinite { name, place, value }.into());
            }
            left.remove(name.as_str());
            let tensor = Tensor::<2>::from_data(TensorData::new(numbers, shape), device);
            factors.push(Param::from_tensor(tensor.transpose()));
        }
        let [a, b] = factors.try_into().expect("two");
        let scale = options.alpha / options.rank as f64;
        projection.adapter = Some(Adapter { a, b, scale });
    }
    match left.pop_first() {
        Some(name) => Err(WeightError::Unused(name.to_owned()).into()),
        None => Ok((decoder, options)),
    }
}
