//! The tokenizer of a model: from the files of its folder, or from its GGUF file.

use std::path::Path;

use serde_json::Value;
use time::OffsetDateTime;
use tokenizers::Tokenizer;

use super::chat::{Chat, ChatError, failed};
use super::template::ChatTemplate;
use super::tokenizer_config::{TokenizerConfig, read_object};
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
            Self::from_folder(model, config.vocab)?
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

    fn from_folder(folder: &Path, vocab: usize) -> Result<Self, ChatError> {
        let path = folder.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| failed(&path, error))?;
        // Files of other programs may cut and pad, which would lose data.
        tokenizer
            .with_truncation(None)
            .map_err(|error| failed(&path, error))?;
        tokenizer.with_padding(None);
        let config = TokenizerConfig::read(folder)?;
        config.add_tokens(&mut tokenizer, vocab)?;
        let splits = config.value("split_special_tokens") == &Value::Bool(true);
        tokenizer.set_encode_special_tokens(splits);
        let token = |name: &str| {
            let mut named = config.named().filter(|(known, _)| *known == name);
            tokenizer.token_to_id(&named.next()?.1.content)
        };
        let end = token("eos_token")
            .ok_or_else(|| ChatError::NoEnd(config.value("eos_token").to_string()))?;
        let padding = token("pad_token").unwrap_or(end);
        let has_template = !config.templates.is_empty();
        let template = has_template
            .then(|| ChatTemplate::from_config(&config, OffsetDateTime::now_utc()))
            .transpose()
            .map_err(|error| failed(folder, error))?;
        let mut chat = Self::new(tokenizer, template, end, padding);
        let path = folder.join("generation_config.json");
        if let Some(generation) = read_object(&path)? {
            let ends = generation.get("eos_token_id").unwrap_or(&Value::Null);
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
