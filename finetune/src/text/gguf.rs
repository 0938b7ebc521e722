//! The tokenizer and the chat template of a GGUF file.

use std::io;
use std::path::Path;

use serde_json::json;
use time::OffsetDateTime;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::chat::{Chat, ChatError, failed};
use super::template::ChatTemplate;
use crate::failure::Failure;
use crate::gguf::Gguf;

impl Chat {
    /// The tokenizer of a GGUF file, byte-level BPE as SmolLM2 has it, and its template.
    pub(super) fn from_gguf(file: &Gguf) -> Result<Chat, Failure> {
        for (key, expected) in [("model", "gpt2"), ("pre", "smollm")] {
            let found = file.text(&format!("tokenizer.ggml.{key}"))?;
            if found != expected {
                let what = format!("expected {expected}, found {found}");
                return Err(format!("`tokenizer.ggml.{key}`: {what}").into());
            }
        }
        file.refuse_others("tokenizer.ggml.", &READ)?;
        let words = file.texts("tokenizer.ggml.tokens")?;
        let vocab: Vocab = words.iter().cloned().zip(0..).collect();
        let merge = |merge: String| {
            let (left, right) = merge.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
            Ok::<_, io::Error>((left.to_owned(), right.to_owned()))
        };
        let merges = file.texts("tokenizer.ggml.merges")?;
        let merges = merges.into_iter().map(merge).collect::<Result<_, _>>()?;
        let bpe = BPE::builder().vocab_and_merges(vocab, merges).build()?;
        let mut tokenizer = Tokenizer::new(bpe);
        let bytes = || ByteLevel::default().add_prefix_space(false);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
            Digits::new(true).into(),
            bytes().into(),
        ])));
        tokenizer.with_decoder(Some(bytes()));
        let added = added_tokens(file, &words)?;
        tokenizer.add_tokens(&added);
        tokenizer.with_post_processor(around(file, &words)?);
        let named = |name: &str| {
            let source = file.text(&format!("tokenizer.chat_template{name}")).ok();
            source
                .map(|source| template(source, file, &words))
                .transpose()
        };
        // `default` is the one without a name.
        let mut template = named("")?;
        if let (Some(template), Some(with_tools)) = (&mut template, named(".tool_use")?) {
            template.use_with_tools(with_tools);
        }
        let mut chat = Self::new(
            tokenizer,
            template,
            file.id("eos_token_id")?,
            file.padding()?,
        );
        for name in ["eot_token_id", "eom_token_id"] {
            if file.has(&format!("tokenizer.ggml.{name}")) {
                chat.ends.push(file.id(name)?);
            }
        }
        Ok(chat)
    }
}

/// Keys of `tokenizer.ggml.` that are read, or say nothing about byte-level BPE.
const READ: [&str; 25] = [
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
    "bos_token_id",
    "cls_token_id",
    "eom_token_id",
    "eos_token_id",
    "eot_token_id",
    "fim_mid_token_id",
    "fim_pad_token_id",
    "fim_pre_token_id",
    "fim_rep_token_id",
    "fim_sep_token_id",
    "fim_suf_token_id",
    "mask_token_id",
    "merges",
    "model",
    "padding_token_id",
    "pre",
    "remove_extra_whitespaces",
    "scores",
    "seperator_token_id",
    "token_type",
    "tokens",
    "unknown_token_id",
];

/// The words that are found in a text before it is cut: special ones (types 2 and 3, unknown and
/// control) and those of the user (4).
fn added_tokens(file: &Gguf, words: &[String]) -> Result<Vec<AddedToken>, Failure> {
    let key = "tokenizer.ggml.token_type";
    // A file need not say the types.
    if !file.has(key) {
        return Ok(Vec::new());
    }
    let kinds = file.numbers(key)?;
    if kinds.len() != words.len() {
        let what = format!("{} types of {} tokens", kinds.len(), words.len());
        return Err(format!("`{key}`: {what}").into());
    }
    let mut added = Vec::new();
    for (word, kind) in words.iter().zip(kinds) {
        match kind {
            2.0 | 3.0 => added.push(AddedToken::from(word.clone(), true)),
            4.0 => added.push(AddedToken::from(word.clone(), false)),
            // Normal ones, and fillers that no text becomes.
            1.0 | 5.0 => {}
            other => {
                let what = format!("expected 1 to 5, found {other} for {word:?}");
                return Err(format!("`{key}`: {what}").into());
            }
        }
    }
    Ok(added)
}

/// The tokens that a text begins and ends with.
fn around(file: &Gguf, words: &[String]) -> Result<Option<TemplateProcessing>, Failure> {
    let mut special = Vec::new();
    let mut parts = vec!["$A".to_owned()];
    for (flag, name) in [("add_bos_token", "bos"), ("add_eos_token", "eos")] {
        let key = format!("tokenizer.ggml.{flag}");
        if !file.has(&key) || file.number(&key)? == 0.0 {
            continue;
        }
        let (word, id) = special_token(file, words, name)?;
        match name {
            "bos" => parts.insert(0, word.clone()),
            _ => parts.push(word.clone()),
        }
        special.push((word, id));
    }
    if special.is_empty() {
        return Ok(None);
    }
    let processing = TemplateProcessing::builder()
        .try_single(parts)?
        .special_tokens(special)
        .build()?;
    Ok(Some(processing))
}

/// A special token and its id.
fn special_token(file: &Gguf, words: &[String], name: &str) -> Result<(String, u32), Failure> {
    let id = file.id(&format!("{name}_token_id"))?;
    let word = words.get(id as usize);
    let missing = || format!("`tokenizer.ggml.{name}_token_id`: {id}, and no such token");
    Ok((word.cloned().ok_or_else(missing)?, id))
}

fn template(source: &str, file: &Gguf, words: &[String]) -> Result<ChatTemplate, Failure> {
    let mut template = ChatTemplate::new(source, OffsetDateTime::now_utc())?;
    for name in ["bos", "eos"] {
        if file.has(&format!("tokenizer.ggml.{name}_token_id")) {
            let (word, _) = special_token(file, words, name)?;
            template = template.with_special_token(&format!("{name}_token"), &word);
        }
    }
    Ok(template)
}

/// Writes the tokenizer of the GGUF file at `path` into a folder, as files that other programs read.
pub(crate) fn write_tokenizer(file: &Gguf, path: &Path, folder: &Path) -> Result<(), ChatError> {
    let chat = Chat::from_gguf(file).map_err(|error| failed(path, error))?;
    let beginning = file.id("bos_token_id").ok();
    let named = |name: &str| file.text(&format!("tokenizer.chat_template{name}")).ok();
    let template = named("").map(|default| match named(".tool_use") {
        Some(with_tools) => json!([
            {"name": "default", "template": default},
            {"name": "tool_use", "template": with_tools},
        ]),
        None => default.into(),
    });
    chat.save(folder, beginning, template)
}
