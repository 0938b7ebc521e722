use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::InvalidInput;
use crate::tokens::Sequence;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, …
    pub role: String,
    /// What is said.
    pub content: String,
    /// Whatever else the message holds (`tool_calls`, `name`), for your template.
    pub other: Map<String, Value>,
}

/// A prompt or a completion, as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Text {
    /// A string.
    Plain(String),
    /// Messages, for your chat template.
    Conversation(Vec<Message>),
}

impl Text {
    /// The string, unless it is a conversation.
    pub fn as_plain(&self) -> Option<&str> {
        match self {
            Self::Plain(text) => Some(text),
            Self::Conversation(_) => None,
        }
    }

    /// The messages, unless it is a string.
    pub fn as_conversation(&self) -> Option<&[Message]> {
        match self {
            Self::Plain(_) => None,
            Self::Conversation(messages) => Some(messages),
        }
    }
}

/// The label of a pair: the first completion was preferred to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preference;

/// The label of a single completion: a thumb up or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Desirable(pub bool);

/// The labels of a list: one score per completion, higher is better.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores(pub Vec<f64>);

/// A prompt, its completions and what is known of them: `T` is [`Text`] or `Vec<u32>`, token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Example<T, L> {
    /// What is completed.
    pub prompt: T,
    /// Two for [`Preference`], one for [`Desirable`], as many as scores for [`Scores`].
    completions: Vec<T>,
    /// What was preferred.
    pub label: L,
    /// The fields of the row that its format has no use for: a group to split by, a margin.
    pub other: Arc<Map<String, Value>>,
    /// The line of the file, from 1, if it comes from one.
    pub line: Option<usize>,
}

impl<T> Example<T, Preference> {
    /// A chosen and a rejected completion.
    pub fn pair(prompt: T, chosen: T, rejected: T) -> Self {
        Self::of(prompt, vec![chosen, rejected], Preference)
    }

    /// The preferred completion.
    pub fn chosen(&self) -> &T {
        &self.completions[0]
    }

    /// The other one.
    pub fn rejected(&self) -> &T {
        &self.completions[1]
    }
}

impl<T> Example<T, Desirable> {
    /// A completion with a thumb up or down.
    pub fn unpaired(prompt: T, completion: T, desirable: bool) -> Self {
        Self::of(prompt, vec![completion], Desirable(desirable))
    }

    /// The completion.
    pub fn completion(&self) -> &T {
        &self.completions[0]
    }
}

impl<T> Example<T, Scores> {
    /// Completions with a score each, higher is better.
    ///
    /// # Errors
    ///
    /// There is no completion, or not one score for each.
    pub fn ranked(prompt: T, completions: Vec<T>, scores: Vec<f64>) -> Result<Self, InvalidInput> {
        if completions.is_empty() {
            return Err(InvalidInput::new("completions", "one at least", "none"));
        }
        if completions.len() != scores.len() {
            let expected = format!("{}, one per completion", completions.len());
            return Err(InvalidInput::new("scores", expected, scores.len()));
        }
        Ok(Self::of(prompt, completions, Scores(scores)))
    }
}

impl<T, L> Example<T, L> {
    /// As many completions as the label says.
    pub(super) fn of(prompt: T, completions: Vec<T>, label: L) -> Self {
        Self {
            prompt,
            completions,
            label,
            other: Arc::default(),
            line: None,
        }
    }

    /// All completions: chosen before rejected, lists in the order of the file.
    pub fn completions(&self) -> &[T] {
        &self.completions
    }

    /// The same example with another label; the completions stay.
    pub(super) fn relabel<M>(self, label: impl FnOnce(L) -> M) -> Example<T, M> {
        Example {
            prompt: self.prompt,
            completions: self.completions,
            label: label(self.label),
            other: self.other,
            line: self.line,
        }
    }

    /// The same example of other contents, as many completions as before.
    pub(super) fn with_contents<U>(self, prompt: U, completions: Vec<U>) -> Example<U, L> {
        debug_assert_eq!(completions.len(), self.completions.len());
        Example {
            prompt,
            completions,
            label: self.label,
            other: self.other,
            line: self.line,
        }
    }
}

impl<L> Example<Vec<u32>, L> {
    /// The prompt with each completion.
    pub fn sequences(&self) -> Vec<Sequence> {
        let of = |completion: &Vec<u32>| Sequence::new(&self.prompt, completion);
        self.completions.iter().map(of).collect()
    }
}
