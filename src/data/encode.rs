use std::borrow::Cow;
use std::error::Error;

use super::error::RowError;
use super::example::Example;
use super::json::{Json, Object};
use super::message::{Message, Text};

/// The question to a tokenizer: the ids of one whole text, and nothing but that text.
///
/// It is what `apply_chat_template(messages, tools, add_generation_prompt, **chat_template_kwargs)`
/// and the tokenizer after it do elsewhere. A tokenizer is never asked for a completion alone: its
/// ids would begin with a second beginning of sequence, and miss those that merge with the prompt.
/// [`Tokenized`](super::Tokenized) asks for the prompt, for the prompt with each completion, and
/// for their turns, and finds where a completion begins.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Encode<'a> {
    /// The whole text to encode. Conversations: render them with your template, and encode what it
    /// gives *without* special tokens, which the template has written. Strings: with them.
    pub content: Content<'a>,
    /// True for a prompt: the ids end where the answer begins (after the template's generation
    /// prompt). False for a text that is complete: strings end with the end of sequence, templates
    /// write it.
    pub add_generation_prompt: bool,
    /// The column `tools`, parsed if it is a string of JSON. `None` if it is missing, null or
    /// empty, as a list or as a string: some templates introduce tools that are not there.
    pub tools: Option<&'a Json>,
    /// The column `chat_template_kwargs`, for the template; empty if it is missing or null.
    pub chat_template_kwargs: &'a Object,
    /// Every column of the row that its format has no use for; the two above among them, as they
    /// stand there.
    pub columns: &'a Object,
}

/// A text as a tokenizer gets it.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// A string: a prompt, or a prompt and its completion.
    Plain(&'a str),
    /// The messages from the first one on.
    Conversation(&'a [Message]),
}

impl<'a> Content<'a> {
    /// The string, unless it is a conversation.
    pub fn as_plain(self) -> Option<&'a str> {
        match self {
            Self::Plain(text) => Some(text),
            Self::Conversation(_) => None,
        }
    }

    /// The messages, unless it is a string.
    pub fn as_conversation(self) -> Option<&'a [Message]> {
        match self {
            Self::Plain(_) => None,
            Self::Conversation(messages) => Some(messages),
        }
    }
}

/// The answer of a tokenizer: ids, or ids and which of them count.
///
/// Both `Vec<u32>` and `(Vec<u32>, Vec<bool>)` are turned into it. The marks say which tokens the
/// assistant writes, what transformers calls `assistant_masks`; without them they are found by
/// rendering the conversation turn by turn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded {
    pub(super) ids: Vec<u32>,
    pub(super) counted: Option<Vec<bool>>,
}

impl From<Vec<u32>> for Encoded {
    fn from(ids: Vec<u32>) -> Self {
        Self { ids, counted: None }
    }
}

/// Ids, and for each whether it counts.
impl From<(Vec<u32>, Vec<bool>)> for Encoded {
    fn from((ids, counted): (Vec<u32>, Vec<bool>)) -> Self {
        let counted = Some(counted);
        Self { ids, counted }
    }
}

/// Whatever a tokenizer fails with.
pub(super) type TokenizerError = Box<dyn Error + Send + Sync>;

impl<L> Example<Text, L> {
    /// The token ids of the prompt, up to where an answer begins: for an answer that a policy is to
    /// write. The tokenizer is asked as [`Tokenized`](super::Tokenized) asks it, with the tools and
    /// the template's arguments of the row.
    ///
    /// # Errors
    ///
    /// The tokenizer refuses the prompt, or `tools` or `chat_template_kwargs` is something else.
    pub fn prompt_ids<R, E>(
        &self,
        tokenizer: impl Fn(Encode<'_>) -> Result<R, E>,
    ) -> Result<Vec<u32>, TokenizerError>
    where
        R: Into<Encoded>,
        E: Into<TokenizerError>,
    {
        let content = match &self.prompt {
            Text::Plain(text) => Content::Plain(text),
            Text::Conversation(messages) => Content::Conversation(messages),
        };
        Ok(ask(&tokenizer, content, true, &self.columns)?.ids)
    }
}

/// Asks a tokenizer for one whole text of a row with these columns.
pub(super) fn ask<R, E>(
    tokenizer: &impl Fn(Encode<'_>) -> Result<R, E>,
    content: Content<'_>,
    add_generation_prompt: bool,
    columns: &Object,
) -> Result<Encoded, TokenizerError>
where
    R: Into<Encoded>,
    E: Into<TokenizerError>,
{
    let is_conversation = content.as_conversation().is_some();
    // Columns of these names mean something else beside strings.
    let tools = if is_conversation {
        tools(columns)?
    } else {
        None
    };
    let chat_template_kwargs = if is_conversation {
        chat_template_kwargs(columns)?
    } else {
        Object::empty()
    };
    let encode = Encode {
        content,
        add_generation_prompt,
        tools: tools.as_deref(),
        chat_template_kwargs,
        columns,
    };
    let encoded: Encoded = tokenizer(encode).map_err(Into::into)?.into();
    match &encoded.counted {
        Some(counted) if counted.len() != encoded.ids.len() => {
            let (ids, marks) = (encoded.ids.len(), counted.len());
            Err(format!("a mask of {marks} for {ids} ids").into())
        }
        _ => Ok(encoded),
    }
}

/// The tools of a row, parsed if they are a string of JSON.
pub(super) fn tools(columns: &Object) -> Result<Option<Cow<'_, Json>>, RowError> {
    let expected = "a list of tools, or a string that holds one";
    let fails = |found: &dyn std::fmt::Display| Err(RowError::new("tools", expected, found));
    let tools = match columns.get("tools") {
        None => return Ok(None),
        Some(Json::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Json::String(text)) => match serde_json::from_str(text) {
            Ok(tools) => Cow::Owned(tools),
            Err(error) => return fails(&format_args!("{text:.60}: {error}")),
        },
        Some(tools) => Cow::Borrowed(tools),
    };
    match &*tools {
        Json::Null => Ok(None),
        Json::Array(items) if items.is_empty() => Ok(None),
        Json::Array(items) => match items.iter().find(|item| item.as_object().is_none()) {
            Some(item) => fails(&format_args!("{} in it", item.kind())),
            None => Ok(Some(tools)),
        },
        other => fails(&other.kind()),
    }
}

/// The arguments of a row for its template.
pub(super) fn chat_template_kwargs(columns: &Object) -> Result<&Object, RowError> {
    match columns.get("chat_template_kwargs") {
        None | Some(Json::Null) => Ok(Object::empty()),
        Some(Json::Object(arguments)) => Ok(arguments),
        Some(other) => Err(RowError::new(
            "chat_template_kwargs",
            "an object",
            other.kind(),
        )),
    }
}
