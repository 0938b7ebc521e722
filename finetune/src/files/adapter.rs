//! Adapters in the files that PEFT writes and reads.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::error::json as parser;
use super::error::{WeightError, file, format};
use super::tensors::{bytes, floats, write_tensors};
use super::whole::write_folder;
use crate::model::LoraOptions;
use crate::model::decoder::Decoder;
use crate::model::names::all_projections;
use crate::model::projection::Adapter;

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
    for (projection, name) in all_projections(&mut decoder.clone()) {
        if let Some(adapter) = &projection.adapter {
            for (factor, part) in [(&adapter.a, "lora_A"), (&adapter.b, "lora_B")] {
                let name = format!("base_model.model.{name}.{part}.weight");
                tensors.push(bytes(&name, factor.val().transpose())?);
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
    write_folder(to, |folder| {
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
    let mut factor = |name: &str, shape: [usize; 2]| -> Result<Param<Tensor<2>>, WeightError> {
        let view = tensors.tensor(name);
        let view = view.map_err(|_| WeightError::Missing(name.to_owned()))?;
        if view.shape() != shape {
            return Err(WeightError::Shape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: view.shape().to_vec(),
            });
        }
        let numbers = floats(name, view.dtype(), view.data())?;
        if let Some(place) = numbers.iter().position(|x| !x.is_finite()) {
            let (name, value) = (name.to_owned(), numbers[place]);
            return Err(WeightError::NotFinite { name, place, value });
        }
        left.remove(name);
        let tensor = Tensor::<2>::from_data(TensorData::new(numbers, shape), device);
        Ok(Param::from_tensor(tensor.transpose()))
    };
    for (projection, name) in all_projections(&mut decoder) {
        let [from, to] = projection.weight.val().dims();
        let names = ["lora_A", "lora_B"];
        let [a, b] = names.map(|part| format!("base_model.model.{name}.{part}.weight"));
        if tensors.tensor(&a).is_ok() || tensors.tensor(&b).is_ok() {
            projection.adapter = Some(Adapter {
                a: factor(&a, [options.rank, from])?,
                b: factor(&b, [to, options.rank])?,
                scale: options.alpha / options.rank as f64,
            });
        }
    }
    match left.pop_first() {
        Some(name) => Err(WeightError::Unused(name.to_owned()).into()),
        None => Ok((decoder, options)),
    }
}
