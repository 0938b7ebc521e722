//! Bad files: whatever bytes stand there, a model, an adapter or a template is right or an error that
//! says something. The targets in `fuzz/` and `tests/damaged.rs` share these functions.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use finetune::{Chat, ChatTemplate, DecoderConfig, load, load_adapter};
use minijinja::Value;
use tempfile::TempDir;
use time::OffsetDateTime;

/// A target: fails by panicking.
pub(crate) type Target = fn(&[u8]);

/// Every target, by the name of its binary and its corpus, with valid files of `tests/data`.
pub(crate) const TARGETS: [(&str, &[&str], Target); 7] = [
    ("gguf", &[], gguf),
    ("model_config", &CONFIGS, |bytes| {
        model(bytes, "config.json");
    }),
    ("safetensors", &["llama/model.safetensors"], |bytes| {
        model(bytes, "model.safetensors");
    }),
    (
        "shard_index",
        &["llama3/model.safetensors.index.json"],
        shard_index,
    ),
    ("adapter_config", &ADAPTERS, |bytes| {
        adapter(bytes, "adapter_config.json");
    }),
    (
        "adapter_weights",
        &["adapter/llama/adapter_model.safetensors"],
        |bytes| adapter(bytes, "adapter_model.safetensors"),
    ),
    ("template", &TEMPLATES, template),
];

const CONFIGS: [&str; 3] = [
    "gemma2/config.json",
    "llama/config.json",
    "llama3/config.json",
];

const ADAPTERS: [&str; 5] = [
    "adapter/layers/adapter_config.json",
    "adapter/llama/adapter_config.json",
    "adapter/patterns/adapter_config.json",
    "adapter/regex/adapter_config.json",
    "adapter/rslora/adapter_config.json",
];

const TEMPLATES: [&str; 5] = [
    "chat/chatml.jinja",
    "chat/gemma2.jinja",
    "chat/llama3.jinja",
    "chat/mistral.jinja",
    "chat/qwen3.jinja",
];

/// The target of a name.
pub(crate) fn target(name: &str) -> Target {
    let found = TARGETS.iter().find(|(known, ..)| *known == name);
    found.expect("a name of the list").2
}

/// A file of `tests/data`.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../finetune/tests/data")
        .join(name)
}

fn says_something(error: impl Display) {
    assert!(error.to_string().len() > 5, "{error}");
}

/// A copy of a folder, in which one file has these bytes.
fn folder(of: &str, name: &str, bytes: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for entry in fs::read_dir(data(of)).expect("a folder").flatten() {
        fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a copy");
    }
    fs::write(dir.path().join(name), bytes).expect("a file");
    dir
}

/// Weights and tokenizer of a GGUF file.
fn gguf(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("tiny.gguf");
    fs::write(&path, bytes).expect("a file");
    match load(&path, &Device::flex()) {
        Ok(model) => {
            // As many numbers as the file has at most: Q4_1 needs the fewest bits, five.
            let parameters = burn::module::Module::num_params(&model);
            assert!(parameters <= 2 * bytes.len(), "{parameters}");
            if let Err(error) = Chat::open(&path, model.config()) {
                says_something(error);
            }
        }
        Err(error) => says_something(error),
    }
}

fn model(bytes: &[u8], name: &str) {
    let dir = folder("llama", name, bytes);
    opened(dir.path());
}

fn shard_index(bytes: &[u8]) {
    opened(folder("llama3", "model.safetensors.index.json", bytes).path());
}

fn opened(folder: &Path) {
    if let Err(error) = DecoderConfig::read(folder) {
        says_something(error);
    }
    match load(folder, &Device::flex()) {
        Ok(model) => assert_eq!(model.config().layers, model.layers.len()),
        Err(error) => says_something(error),
    }
}

fn adapter(bytes: &[u8], name: &str) {
    let dir = folder("adapter/llama", name, bytes);
    let base = load(&data("llama"), &Device::flex()).expect("a whole model");
    match load_adapter(base, dir.path(), &Device::flex()) {
        Ok(model) => assert!(model.has_adapters()),
        Err(error) => says_something(error),
    }
}

/// A template renders a conversation, or says why not; what the assistant says lies in the text.
fn template(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else {
        return;
    };
    let template = match ChatTemplate::new(source, OffsetDateTime::UNIX_EPOCH) {
        Ok(template) => template.with_special_token("bos_token", "<s>"),
        Err(error) => return says_something(error),
    };
    let messages = r#"[{"role": "user", "content": "Hé 🦀"},
        {"role": "assistant", "content": "<think>a</think>b", "tool_calls": [{"type": "function",
            "function": {"name": "f", "arguments": {"x": 1.5}}}]},
        {"role": "tool", "content": "1"}, {"role": "assistant", "content": "c"}]"#;
    let messages: Value = serde_json::from_str(messages).expect("JSON");
    let tools: Value = serde_json::from_str(r#"[{"name": "f"}]"#).expect("JSON");
    for tools in [None, Some(tools)] {
        match template.render(messages.clone(), tools, true, &Value::from(())) {
            Ok(rendered) => {
                for block in rendered.assistant.unwrap_or_default() {
                    assert!(rendered.text.get(block).is_some(), "characters are whole");
                }
            }
            Err(error) => says_something(error),
        }
    }
}
