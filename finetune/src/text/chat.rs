//! From messages to token ids and back: a model's tokenizer and its chat template.

use std::fs;
use std::path::Path;

use burn_preference::data::{Content, Encode, Encoded, Example, Message, Text};
use minijinja::Value;
use minijinja::value::Serde;
use tokenizers::Tokenizer;

use super::error::{ChatError, failed};
use super::template::{ChatTemplate, Rendered};
use crate::failure::Failure;

/// A tokenizer, and the template that makes one text of a conversation.
pub struct Chat {
    pub(super) tokenizer: Tokenizer,
    /// None of a model that was never taught to chat.
    template: Option<ChatTemplate>,
    /// The id that ends a text.
    pub end: u32,
    /// The id that fills rows.
    pub padding: u32,
    /// Ids that end an answer: `end`, and what `generation_config.json` names.
    pub ends: Vec<u32>,
}

impl Chat {
    pub(super) fn new(
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        end: u32,
        padding: u32,
    ) -> Self {
        Self {
            tokenizer,
            template,
            end,
            padding,
            ends: vec![end],
        }
    }

    /// True if both mean the same by every id.
    pub fn is_the_same(&self, other: &Self) -> bool {
        self.tokenizer.get_vocab(true) == other.tokenizer.get_vocab(true)
    }

    /// True if there is a template, so that strings are questions and answers.
    pub fn converses(&self) -> bool {
        self.template.is_some()
    }

    /// Encodes a text or a conversation, as `Tokenized` asks for it.
    ///
    /// # Errors
    ///
    /// A conversation and no template, or what the template or the tokenizer says.
    pub fn encode(&self, text: Encode<'_>) -> Result<Encoded, Failure> {
        let messages = match text.content {
            Content::Conversation(messages) => messages,
            Content::Plain(plain) => {
                let mut ids = self.open_text(plain)?;
                ids.extend((!text.add_generation_prompt).then_some(self.end));
                return Ok(ids.into());
            }
        };
        let tools = text.tools.map(|tools| Value::from(Serde(tools)));
        let kwargs = Value::from(Serde(text.chat_template_kwargs));
        // A template without `{% generation %}` leaves it to `Tokenized` to find the turns.
        Ok(
            match self.render(messages, tools, text.add_generation_prompt, &kwargs)? {
                (ids, Some(counted)) => (ids, counted).into(),
                (ids, None) => ids.into(),
            },
        )
    }

    /// The ids of an example's prompt, up to where an answer begins.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn prompt<L>(&self, example: &Example<Text, L>) -> Result<Vec<u32>, Failure> {
        example.prompt_ids(|text| self.encode(text))
    }

    /// The ids of a text that may go on: with its special tokens, but for an end.
    fn open_text(&self, text: &str) -> Result<Vec<u32>, Failure> {
        let mut ids = self.tokenizer.encode_fast(text, true)?.get_ids().to_vec();
        if ids.last() == Some(&self.end) {
            ids.pop();
        }
        Ok(ids)
    }

    /// The ids of a rendered conversation, and which of them the template says are the assistant's.
    fn render(
        &self,
        messages: &[Message],
        tools: Option<Value>,
        add_generation_prompt: bool,
        kwargs: &Value,
    ) -> Result<(Vec<u32>, Option<Vec<bool>>), Failure> {
        let rendered = self.rendered(messages, tools, add_generation_prompt, kwargs)?;
        // The template wrote the special tokens: none is added.
        let text = rendered.text.as_str();
        let encoding = if rendered.assistant.is_some() {
            self.tokenizer.encode(text, false)?
        } else {
            // Without offsets.
            self.tokenizer.encode_fast(text, false)?
        };
        let mask = rendered.assistant_mask(encoding.get_offsets());
        Ok((encoding.get_ids().to_vec(), mask))
    }

    /// A conversation as its template writes it.
    pub(super) fn rendered(
        &self,
        messages: &[Message],
        tools: Option<Value>,
        add_generation_prompt: bool,
        kwargs: &Value,
    ) -> Result<Rendered, Failure> {
        let template = self.template.as_ref();
        let template = template.ok_or("a conversation, and the model has no chat template")?;
        let messages = Value::from(Serde(messages));
        Ok(template.render(messages, tools, add_generation_prompt, kwargs)?)
    }

    /// Texts of the special tokens, which a template writes and nobody says.
    pub fn special_tokens(&self) -> Vec<String> {
        let added = self.tokenizer.get_added_tokens_decoder();
        let special = added.into_values().filter(|token| token.special);
        let mut special: Vec<_> = special.map(|token| token.content).collect();
        special.sort_unstable();
        special
    }

    /// A text alone, without special tokens around it.
    ///
    /// # Errors
    ///
    /// What the tokenizer says.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, Failure> {
        Ok(self.tokenizer.encode_fast(text, false)?.get_ids().to_vec())
    }

    /// The text of ids, without special tokens.
    ///
    /// # Errors
    ///
    /// What the tokenizer says.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Failure> {
        self.tokenizer.decode(ids, true)
    }

    /// Writes the files that other programs read the tokenizer from.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub(super) fn save(
        &self,
        folder: &Path,
        beginning: Option<u32>,
        template: Option<serde_json::Value>,
    ) -> Result<(), ChatError> {
        let path = folder.join("tokenizer.json");
        self.tokenizer
            .save(&path, true)
            .map_err(|error| failed(&path, error))?;
        let token = |id: u32| self.tokenizer.id_to_token(id);
        let mut config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "eos_token": token(self.end),
            "pad_token": token(self.padding),
        });
        if let Some(beginning) = beginning {
            config["bos_token"] = token(beginning).into();
        }
        // An empty one would make conversations of nothing.
        if let Some(template) = template {
            config["chat_template"] = template;
        }
        let path = folder.join("tokenizer_config.json");
        fs::write(&path, format!("{config:#}")).map_err(|error| failed(&path, error))
    }
}
