//! The tokenizer of a model: from the files of its folder, or from its GGUF file.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;
use time::OffsetDateTime;
use tokenizers::Tokenizer;

use super::chat::{Chat, ChatError, failed};
use super::template::ChatTemplate;
use crate::gguf::Gguf;
use crate::model::config::DecoderConfig;

impl Chat {
    /// Opens the tokenizer of a folder with `tokenizer.json` and `tokenizer_config.json`, or of a GGUF
    /// file.
    ///
    /// A template that writes a date gets today's.
    ///
    /// # Errors
    ///
    /// A file is missing or damaged, no token ends a text, or the tokenizer has ids that the model
    /// has no words for.
    pub fn open(model: &Path, config: &DecoderConfig) -> Result<Self, ChatError> {
        let chat = if model.is_file() {
            let file = Gguf::open(model).map_err(|error| failed(model, error))?;
            Self::from_gguf(&file).map_err(|error| failed(model, error))?
        } else {
            Self::from_folder(model)?
        };
        let words = chat.tokenizer.get_vocab(true);
        match words.into_iter().max_by_key(|(_, id)| *id) {
            Some((token, id)) if id as usize >= config.vocab => Err(ChatError::Vocabulary {
                id,
                token,
                vocab: config.vocab,
            }),
            _ => Ok(chat),
        }
    }

    fn from_folder(folder: &Path) -> Result<Self, ChatError> {
        let path = folder.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| failed(&path, error))?;
        // Files of other programs may cut and pad, which would lose data.
        tokenizer
            .with_truncation(None)
            .map_err(|error| failed(&path, error))?;
        tokenizer.with_padding(None);
        let path = folder.join("tokenizer_config.json");
        let config = read_json(&path)?.ok_or_else(|| failed(&path, "No such file"))?;
        let token = |name: &str| {
            let text = config[name]
                .as_str()
                .or_else(|| config[name]["content"].as_str());
            text.and_then(|text| tokenizer.token_to_id(text))
        };
        let end =
            token("eos_token").ok_or_else(|| ChatError::NoEnd(config["eos_token"].to_string()))?;
        let padding = token("pad_token").unwrap_or(end);
        let has_template =
            !config["chat_template"].is_null() || folder.join("chat_template.jinja").exists();
        let template = has_template
            .then(|| ChatTemplate::open(folder, OffsetDateTime::now_utc()))
            .transpose()
            .map_err(|error| failed(&path, error))?;
        let mut chat = Self::new(tokenizer, template, end, padding);
        let path = folder.join("generation_config.json");
        if let Some(generation) = read_json(&path)? {
            let ends = &generation["eos_token_id"];
            let several = ends
                .as_array()
                .cloned()
                .unwrap_or_else(|| vec![ends.clone()]);
            let ids = several.iter().filter_map(Value::as_u64);
            chat.ends
                .extend(ids.filter_map(|id| u32::try_from(id).ok()));
        }
        Ok(chat)
    }
}

/// A file of JSON, if there is one.
fn read_json(path: &Path) -> Result<Option<Value>, ChatError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let json = serde_json::from_str(&text);
            json.map(Some).map_err(|error| failed(path, error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, error)),
    }
}
