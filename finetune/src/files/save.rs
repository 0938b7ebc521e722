//! A decoder as a folder of Hugging Face.

use std::fs;
use std::path::Path;

use burn::nn::RmsNorm;
use burn::tensor::Tensor;
use serde_json::Value;

use super::error::{SaveError, WeightError, file, json};
use super::load::{config_keys, open_gguf};
use super::tensors::{Bytes, bytes, write_tensors};
use super::whole::write_folder;
use crate::model::config::OutputLayer;
use crate::model::decoder::Decoder;
use crate::model::names::{norms, projections};
use crate::model::projection::Projection;
use crate::text::Chat;
use crate::text::gguf::write_tokenizer;

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
    write_folder(to, |folder| write(decoder, from, folder))
}

fn write(decoder: &Decoder, from: &Path, to: &Path) -> Result<(), SaveError> {
    if from.is_file() {
        write_tokenizer(&open_gguf(from)?, from, to)?;
    } else {
        copy_files(from, to)?;
    }
    let mut config = config_keys(from)?;
    config.remove("torch_dtype");
    config.insert("dtype".to_owned(), "float32".into());
    if decoder.config().output == OutputLayer::Reward {
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
    write_tensors(&tensors(decoder)?, &to.join("model.safetensors"))?;
    Ok(())
}

/// The families as transformers calls them.
const CLASSES: [&str; 5] = ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2"];

/// Copies everything of a folder but config and weights.
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

/// All weights under the names and in the layout of Hugging Face.
fn tensors(decoder: &Decoder) -> Result<Vec<Bytes>, WeightError> {
    let mut saved = Saved {
        gemma: decoder.config().gemma,
        tensors: Vec::new(),
    };
    saved.add("model.embed_tokens.weight", decoder.embedding.weight.val())?;
    for (i, mut layer) in decoder.layers.iter().cloned().enumerate() {
        let name = |part: &str| format!("model.layers.{i}.{part}");
        for (linear, part) in projections(&mut layer) {
            saved.linear(&name(part), linear)?;
        }
        for (norm, part) in norms(&mut layer, decoder.config().gemma) {
            saved.norm(&name(part), norm)?;
        }
    }
    saved.norm("model.norm", &decoder.norm)?;
    if let Some(head) = &decoder.head {
        saved.linear("lm_head", head)?;
    }
    if let Some(score) = &decoder.score {
        saved.linear("score", score)?;
    }
    Ok(saved.tensors)
}

/// Tensors of a file, under way.
struct Saved {
    gemma: bool,
    tensors: Vec<Bytes>,
}

impl Saved {
    fn add<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Result<(), WeightError> {
        self.tensors.push(bytes(name, tensor)?);
        Ok(())
    }

    fn linear(&mut self, name: &str, linear: &Projection) -> Result<(), WeightError> {
        self.add(&format!("{name}.weight"), linear.weight().transpose())?;
        if let Some(bias) = &linear.bias {
            self.add(&format!("{name}.bias"), bias.val())?;
        }
        Ok(())
    }

    fn norm(&mut self, name: &str, norm: &RmsNorm) -> Result<(), WeightError> {
        let gamma = norm.gamma.val();
        let gamma = if self.gemma { gamma - 1 } else { gamma };
        self.add(&format!("{name}.weight"), gamma)
    }
}
