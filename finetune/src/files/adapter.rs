//! Adapters in the files that PEFT writes and reads.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, FloatDType, Tensor, TensorData, TensorReadError};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::adapter_config::AdapterConfig;
use super::error::{AdapterError, SaveError, WeightError, file, format};
use super::others::write_others;
use super::source::Source;
use super::tensors::{Stored, floats, write_tensors};
use super::whole::write_folder;
use crate::model::decoder::Decoder;
use crate::model::names::all_projections;
use crate::model::projection::Adapter;

/// Saves the adapters as PEFT does: `adapter_config.json` and `adapter_model.safetensors`, and beside
/// them tokenizer and templates of `base`, which they were trained on. The folder appears when all of
/// it is written.
///
/// The config names `base` by its name on the hub or its absolute path, and the numbers are in
/// `dtype`.
///
/// # Errors
///
/// `to` is there already, a file cannot be read or written, or a number is too large for `dtype`.
pub fn save_adapter(
    decoder: &Decoder,
    base: &Source,
    to: &Path,
    dtype: FloatDType,
) -> Result<(), SaveError> {
    let mut tensors = Vec::new();
    let mut sizes = Vec::new();
    for (projection, module) in all_projections(&mut decoder.clone()) {
        let size = projection.adapter.as_ref().map(|adapter| {
            let [_, rank] = adapter.a.val().dims();
            (rank, adapter.scale * rank as f64)
        });
        for (factor, part) in factors(projection.adapter.as_ref()) {
            let data = factor.transpose().try_into_data();
            let data = data.map_err(|error| WeightError::Read(TensorReadError::from(error)))?;
            let name = tensor_name(&module, part);
            tensors.push(Stored::new(name, dtype, &data)?);
        }
        sizes.push((module, size));
    }
    let config = format!("{:#}", config(base, &sizes));
    write_folder(to, |folder| {
        write_others(&base.path, folder)?;
        write_tensors(&tensors, &folder.join("adapter_model.safetensors"))?;
        let path = folder.join("adapter_config.json");
        Ok(fs::write(&path, config).map_err(file(&path))?)
    })
}

/// The name of a factor in PEFT's files.
fn tensor_name(module: &str, part: &str) -> String {
    format!("base_model.model.{module}.{part}.weight")
}

fn factors(adapter: Option<&Adapter>) -> impl Iterator<Item = (Tensor<2>, &'static str)> {
    let factors = adapter.map(|of| [(of.a.val(), "lora_A"), (of.b.val(), "lora_B")]);
    factors.into_iter().flatten()
}

/// The config of adapters, from rank and α of each module that has one.
fn config(base: &Source, sizes: &[(String, Option<(usize, f64)>)]) -> Value {
    let adapted = || (sizes.iter()).filter_map(|(module, size)| Some((module, (*size)?)));
    let (rank, alpha) = adapted().next().map_or((1, 1.0), |(_, size)| size);
    // A projection that all layers adapt is named by its end.
    let end = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
    let is_everywhere = |of: &str| {
        let mut alike = sizes.iter().filter(|(module, _)| end(module) == of);
        alike.all(|(_, size)| size.is_some())
    };
    let targets: BTreeSet<String> = adapted()
        .map(|(module, _)| match end(module) {
            end if is_everywhere(&end) => end,
            _ => module.clone(),
        })
        .collect();
    let ranks = adapted().filter(|(_, (other, _))| *other != rank);
    let ranks = ranks.map(|(module, (rank, _))| (module.clone(), json!(rank)));
    let alphas = adapted().filter(|(_, (_, other))| *other != alpha);
    let alphas = alphas.map(|(module, (_, alpha))| (module.clone(), json!(alpha)));
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name(),
        "revision": base.hub.as_ref().map(|hub| &hub.commit),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": Value::Object(ranks.collect()),
        "alpha_pattern": Value::Object(alphas.collect()),
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    })
}

/// Puts an adapter that PEFT wrote beside the projections of `decoder`.
///
/// Rank and scale of each are those of its config, with `rank_pattern`, `alpha_pattern` and rsLoRA.
/// Adapters that PEFT begins as gaussian, orthogonal, eva or mica load as well.
///
/// # Errors
///
/// A file is missing or damaged, an option would change what is computed, the file has not the
/// tensors that the config asks for, or a tensor is of another model.
pub fn load_adapter(
    mut decoder: Decoder,
    folder: &Path,
    device: &Device,
) -> Result<Decoder, AdapterError> {
    let config = AdapterConfig::read(folder)?;
    // No layers' projections, and nothing that could stand beside them.
    if let Some(module) = ["lm_head", "model.embed_tokens"]
        .into_iter()
        .find(|module| config.adapts(module) == Some(true))
    {
        return Err(AdapterError::Option {
            key: "target_modules".to_owned(),
            expected: "projections of layers alone".to_owned(),
            found: format!("{module} among {}", config.targets),
        });
    }
    let path = folder.join("adapter_model.safetensors");
    let all = fs::read(&path).map_err(|source| {
        let pickle = folder.join("adapter_model.bin");
        if source.kind() == io::ErrorKind::NotFound && pickle.exists() {
            AdapterError::Pickled(pickle)
        } else {
            file(&path)(source).into()
        }
    })?;
    let tensors = SafeTensors::deserialize(&all).map_err(format(&path))?;
    // Names that nobody has asked for.
    let mut left: BTreeSet<&str> = tensors.names().into_iter().collect();
    let (mut asked, mut missing) = (0, Vec::new());
    for (projection, module) in all_projections(&mut decoder) {
        let names = ["lora_A", "lora_B"].map(|part| tensor_name(&module, part));
        let stored = names.iter().find(|name| left.contains(name.as_str()));
        match (config.adapts(&module), stored) {
            (Some(false) | None, None) => continue,
            (Some(false), Some(name)) => {
                return Err(AdapterError::NotTargeted {
                    name: name.clone(),
                    targets: config.targets.to_string(),
                });
            }
            (Some(true), _) | (None, Some(_)) => {}
        }
        asked += 2;
        let gone = names.iter().filter(|name| !left.contains(name.as_str()));
        let before = missing.len();
        missing.extend(gone.cloned());
        if missing.len() > before {
            for name in &names {
                left.remove(name.as_str());
            }
            continue;
        }
        let (rank, scale) = config.size(&module);
        let [from, to] = projection.weight.val().dims();
        let factor = |name: &str, shape| {
            let view = tensors.tensor(name).map_err(format(&path))?;
            factor(name, &view, shape, device)
        };
        projection.adapter = Some(Adapter {
            a: factor(&names[0], [rank, from])?,
            b: factor(&names[1], [to, rank])?,
            scale,
        });
        for name in &names {
            left.remove(name.as_str());
        }
    }
    for (name, copy) in copies(&decoder) {
        // PEFT saves embeddings beside an adapter where it cannot tell whether they were trained.
        if left.contains(name) {
            let view = tensors.tensor(name).map_err(format(&path))?;
            let numbers = floats(name, view.dtype(), view.data())?;
            if copy.dims() == view.shape() && is_equal(&numbers, copy)? {
                left.remove(name);
            }
        }
    }
    match (missing.first(), left.first()) {
        (Some(name), other) => Err(AdapterError::Missing {
            path,
            name: name.clone(),
            missing: missing.len(),
            all: asked,
            targets: config.targets.to_string(),
            others: match other {
                Some(other) => format!("there is `{other}` instead"),
                None => "there are no others".to_owned(),
            },
        }),
        (None, Some(name)) => Err(WeightError::Unused((*name).to_owned()).into()),
        (None, None) if asked == 0 => Err(AdapterError::Empty(path)),
        (None, None) => Ok(decoder),
    }
}

/// Weights of the base that a file of an adapter may have a copy of, by their names there.
fn copies(decoder: &Decoder) -> impl Iterator<Item = (&'static str, Tensor<2>)> {
    let embedding = decoder.embedding.weight.val();
    let head = match &decoder.head {
        Some(head) => head.weight.val().transpose(),
        None => embedding.clone(),
    };
    [
        ("base_model.model.model.embed_tokens.weight", embedding),
        ("base_model.model.lm_head.weight", head),
    ]
    .into_iter()
}

/// True if a tensor has these numbers, in its own type.
fn is_equal(numbers: &[f32], tensor: Tensor<2>) -> Result<bool, WeightError> {
    let data = tensor.try_into_data().map_err(TensorReadError::from)?;
    let numbers = TensorData::new(numbers.to_vec(), data.shape().clone());
    Ok(numbers.convert_dtype(data.dtype()) == data)
}

/// A factor from its tensor in the file, which has it transposed.
fn factor(
    name: &str,
    view: &TensorView<'_>,
    shape: [usize; 2],
    device: &Device,
) -> Result<Param<Tensor<2>>, WeightError> {
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
    let tensor = Tensor::<2>::from_data(TensorData::new(numbers, shape), device);
    Ok(Param::from_tensor(tensor.transpose()))
}
