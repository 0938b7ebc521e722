//! SmolLM2's tokenizer, from its GGUF file, and its chat template.

use std::error::Error;
use std::io;

use burn_preference::data::{Content, Encode, Message};
use tokenizers::Tokenizer;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

use crate::gguf::Gguf;

type Failure = Box<dyn Error + Send + Sync>;

pub struct Chat {
    tokenizer: Tokenizer,
}

/// `<|im_start|>`
const START: u32 = 1;
/// `<|im_end|>`: the end of a turn, and the padding.
pub const END: u32 = 2;

/// Part of every fingerprint: another template gives other token ids.
pub const TEMPLATE: &str = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

impl Chat {
    pub fn new(file: &Gguf) -> Result<Self, Failure> {
        let words = file.texts("tokenizer.ggml.tokens")?;
        let words: Vocab = words.into_iter().zip(0..).collect();
        let merge = |merge: String| {
            let (left, right) = merge.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
            Ok::<_, io::Error>((left.to_owned(), right.to_owned()))
        };
        let merges = file.texts("tokenizer.ggml.merges")?;
        let merges = merges.into_iter().map(merge).collect::<Result<_, _>>()?;
        let bpe = BPE::builder().vocab_and_merges(words, merges).build()?;
        let mut tokenizer = Tokenizer::new(bpe);
        let bytes = || ByteLevel::default().add_prefix_space(false);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
            Digits::new(true).into(),
            bytes().into(),
        ])));
        tokenizer.with_decoder(Some(bytes()));
        Ok(Self { tokenizer })
    }

    /// Text alone: what looks like a control token in it is text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Failure> {
        Ok(self.tokenizer.encode(text, false)?.get_ids().to_vec())
    }

    pub fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }

    /// A turn from its beginning to its end; between turns is a new line.
    fn turn(&self, ids: &mut Vec<u32>, role: &str, content: &str) -> Result<(), Failure> {
        if !ids.is_empty() {
            ids.extend(self.encode("\n")?);
        }
        ids.push(START);
        ids.extend(self.encode(&format!("{role}\n"))?);
        ids.extend(self.encode(content)?);
        ids.push(END);
        Ok(())
    }

    /// A conversation, and with `open` the opening of an answer.
    fn conversation(&self, messages: &[Message], open: bool) -> Result<Vec<u32>, Failure> {
        let mut ids = Vec::new();
        if messages.first().is_none_or(|first| first.role != "system") {
            self.turn(&mut ids, "system", TEMPLATE)?;
        }
        for message in messages {
            let text = message.text().ok_or("this model only reads text")?;
            self.turn(&mut ids, &message.role, &text)?;
        }
        if open {
            ids.extend(self.encode("\n")?);
            ids.push(START);
            ids.extend(self.encode("assistant\n")?);
        }
        Ok(ids)
    }

    /// A question and the opening of the answer.
    pub fn prompt(&self, question: &str) -> Result<Vec<u32>, Failure> {
        self.conversation(&[Message::new("user", question)], true)
    }

    /// What `Tokenized` asks for.
    pub fn ids(&self, text: Encode<'_>) -> Result<Vec<u32>, Failure> {
        match text.content {
            Content::Plain(_) => Err("rows are made conversations when they are read".into()),
            Content::Conversation(_) if text.tools.is_some() => {
                Err("this model's template has no tools".into())
            }
            Content::Conversation(messages) => {
                self.conversation(messages, text.add_generation_prompt)
            }
        }
    }
}
