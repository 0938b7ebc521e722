//! The tokenizer and the chat template of a GGUF file.

use std::io;
use std::path::Path;

use time::OffsetDateTime;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer};

use super::chat::{Chat, ChatError, failed};
use super::template::ChatTemplate;
use crate::failure::Failure;
use crate::gguf::Gguf;

impl Chat {
    /// The tokenizer of a GGUF file, byte-level BPE as SmolLM2 has it, and its template.
    pub(super) fn from_gguf(file: &Gguf) -> Result<Chat, Failure> {
        let kind = file.text("tokenizer.ggml.pre")?;
        if kind != "smollm" {
            return Err(format!("`tokenizer.ggml.pre`: expected smollm, found {kind}").into());
        }
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
        // Type 3 is control. A file need not say the types.
        let kinds = file
            .numbers("tokenizer.ggml.token_type")
            .unwrap_or_default();
        let special = words.iter().zip(kinds);
        let special = special.filter(|(_, kind)| *kind == 3.0);
        let special: Vec<_> = special
            .map(|(word, _)| AddedToken::from(word.clone(), true))
            .collect();
        tokenizer.add_special_tokens(&special);
        let template = match file.text("tokenizer.chat_template") {
            Ok(source) => {
                let mut template = ChatTemplate::new(source, OffsetDateTime::now_utc())?;
                for name in ["bos", "eos"] {
                    let word = words.get(file.id(&format!("{name}_token_id"))? as usize);
                    let word = word.ok_or("a special token that is no word")?;
                    template = template.with_special_token(&format!("{name}_token"), word);
                }
                Some(template)
            }
            Err(_) => None,
        };
        Ok(Self::new(
            tokenizer,
            template,
            file.id("eos_token_id")?,
            file.padding()?,
        ))
    }
}

/// Writes the tokenizer of the GGUF file at `path` into a folder, as files that other programs read.
pub(crate) fn write_tokenizer(file: &Gguf, path: &Path, folder: &Path) -> Result<(), ChatError> {
    let chat = Chat::from_gguf(file).map_err(|error| failed(path, error))?;
    let beginning = file.id("bos_token_id").ok();
    chat.save(folder, beginning, file.text("tokenizer.chat_template").ok())
}
