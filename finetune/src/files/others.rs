//! The files of a model besides its weights and its config, which other programs need.

use std::fs;
use std::path::Path;

use super::error::{SaveError, WeightError, file};
use super::load::open_gguf;
use crate::text::gguf::write_tokenizer;

/// Templates besides the usual one, as transformers lays them out: the one folder that is copied.
const TEMPLATES: &str = "additional_chat_templates";

/// Ends of files that hold weights, in any layout, or the state of a training.
const WEIGHTS: [&str; 10] = [
    ".bin",
    ".ckpt",
    ".gguf",
    ".h5",
    ".index.json",
    ".msgpack",
    ".onnx",
    ".pt",
    ".pth",
    ".safetensors",
];

/// Files that speak of the model as it was, or of how it was trained.
const OF_THE_INPUT: [&str; 10] = [
    "README.md",
    "adapter_config.json",
    "all_results.json",
    "config.json",
    "eval_results.json",
    "latest",
    "params.json",
    "train_results.json",
    "trainer_state.json",
    "zero_to_fp32.py",
];

/// Writes tokenizer, templates and the rest of what stands beside the weights of a folder, or the
/// tokenizer of a GGUF file.
pub(super) fn write_others(from: &Path, to: &Path) -> Result<(), SaveError> {
    if from.is_file() {
        return Ok(write_tokenizer(&open_gguf(from)?, from, to)?);
    }
    let is_other = |name: &str| {
        let of_weights = WEIGHTS.iter().any(|end| name.ends_with(end));
        !of_weights && !OF_THE_INPUT.contains(&name) && !name.starts_with('.')
    };
    copy_files(from, to, is_other)?;
    let templates = from.join(TEMPLATES);
    if templates.is_dir() {
        let to = to.join(TEMPLATES);
        fs::create_dir(&to).map_err(file(&to))?;
        copy_files(&templates, &to, |_| true)?;
    }
    Ok(())
}

/// Copies the files of a folder whose names are wanted.
fn copy_files(from: &Path, to: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<(), WeightError> {
    for entry in fs::read_dir(from).map_err(file(from))? {
        let path = entry.map_err(file(from))?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_file() && is_wanted(&name.to_string_lossy()) {
            fs::copy(&path, to.join(name)).map_err(file(&path))?;
        }
    }
    Ok(())
}
