use std::fmt;
use std::sync::Arc;

use super::encode::{chat_template_kwargs, tools};
use super::error::RowError;
use super::example::Example;
use super::json::{Json, Object};
use super::label::{Desirable, Preference, PromptOnly, Scores, fits_f32};
use super::message::{Message, Text};
use super::prompt::{explicit, implicit};

/// The fields of a row that are the prompt, the completions and the labels.
///
/// A text is a string or a list of messages; in an example, either all of them are strings or all
/// are conversations. Rows that mix them, as UltraFeedback does, are understood:
///
/// ```text
/// prompt: "2+2?", chosen: [assistant]              the prompt is what a user says
/// prompt: "2+2?", chosen: [user "2+2?", assistant] the completion repeats it: it stands there once
/// prompt: [user], chosen: [user, assistant]        the same, with other blanks or in parts too
/// prompt: [user], chosen: "4"                      the completion is what the assistant says
/// ```
///
/// A completion that repeats a part of its prompt, such as the question without the system message,
/// is an error.
///
/// Fields that a format does not name stay in [`Example::columns`].
pub trait Format: Send + Sync {
    /// The label of its examples.
    type Label: Clone + PartialEq + fmt::Debug + Send + Sync + 'static;

    /// Parses a row: the example that it holds.
    ///
    /// # Errors
    ///
    /// A field is missing or holds something else; the error names it.
    fn parse(&self, row: Object) -> Result<Example<Text, Self::Label>, RowError>;
}

/// Pairs: TRL's "preference" rows. A text is a string or a list of messages.
///
/// ```text
/// {"prompt": "2+2=", "chosen": "4", "rejected": "5"}                     explicit prompt
/// {"chosen": "2+2=4", "rejected": "2+2=5"}                               implicit prompt
/// {"prompt": [{"role": "user", "content": "2+2?"}], "chosen": […], "rejected": […]}
/// ```
///
/// Without a `prompt`, what both texts begin with is the prompt, as in TRL: their common messages,
/// or their common characters. A space at its end belongs to the completions. If one text is the
/// beginning of the other, its last message or character is its completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairFormat {
    /// The field of the prompt: `prompt`.
    pub prompt: String,
    /// The field of the preferred completion: `chosen`.
    pub chosen: String,
    /// The field of the other completion: `rejected`.
    pub rejected: String,
}

impl Default for PairFormat {
    fn default() -> Self {
        Self {
            prompt: "prompt".into(),
            chosen: "chosen".into(),
            rejected: "rejected".into(),
        }
    }
}

impl Format for PairFormat {
    type Label = Preference;

    fn parse(&self, mut row: Object) -> Result<Example<Text, Preference>, RowError> {
        let chosen = required_text(&mut row, &self.chosen)?;
        let rejected = required_text(&mut row, &self.rejected)?;
        let (prompt, completions) = match row.remove(&self.prompt) {
            Some(Json::Null) | None => implicit([&self.chosen, &self.rejected], chosen, rejected)?,
            Some(prompt) => {
                let prompt = text(&self.prompt, prompt)?;
                explicit(&self.prompt, prompt, vec![chosen, rejected])?
            }
        };
        with_columns(Example::new(prompt, completions, Preference), row)
    }
}

/// Unpaired completions: TRL's "unpaired preference" rows.
///
/// ```text
/// {"prompt": "2+2=", "completion": "4", "label": true}
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpairedFormat {
    /// The field of the prompt: `prompt`.
    pub prompt: String,
    /// The field of the completion: `completion`.
    pub completion: String,
    /// The field of the label: `label`, true or 1 for desirable, false or 0 for not.
    pub label: String,
}

impl Default for UnpairedFormat {
    fn default() -> Self {
        Self {
            prompt: "prompt".into(),
            completion: "completion".into(),
            label: "label".into(),
        }
    }
}

impl Format for UnpairedFormat {
    type Label = Desirable;

    fn parse(&self, mut row: Object) -> Result<Example<Text, Desirable>, RowError> {
        let prompt = required_text(&mut row, &self.prompt)?;
        let completion = required_text(&mut row, &self.completion)?;
        let expected = "true or false, or 1 or 0";
        let label = match required(&mut row, &self.label, expected)? {
            Json::Bool(label) => label,
            other => match other.as_f64() {
                Some(1.0) => true,
                Some(0.0) => false,
                Some(number) => return Err(RowError::new(&self.label, expected, number)),
                None => return Err(RowError::new(&self.label, expected, other.kind())),
            },
        };
        let (prompt, completions) = explicit(&self.prompt, prompt, vec![completion])?;
        with_columns(Example::new(prompt, completions, Desirable(label)), row)
    }
}

/// The order of the responses of a ranked list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScoreField {
    /// A field of numbers, higher is better.
    Scores(String),
    /// A field of numbers, lower is better: 1 or 0 for the best. The score is minus the rank.
    Ranks(String),
    /// No field: the file lists them best first. The scores are 0, −1, −2, …
    BestFirst,
}

/// Ranked lists: responses to one prompt, with scores or ranks.
///
/// ```text
/// {"prompt": "2+2=", "responses": ["4", "5", "fish"], "scores": [1.0, 0.2, 0.0]}
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankedFormat {
    /// The field of the prompt: `prompt`.
    pub prompt: String,
    /// The field of the responses: `responses`.
    pub responses: String,
    /// The order of the responses: the field `scores`.
    pub order: ScoreField,
}

impl Default for RankedFormat {
    fn default() -> Self {
        Self {
            prompt: "prompt".into(),
            responses: "responses".into(),
            order: ScoreField::Scores("scores".into()),
        }
    }
}

impl Format for RankedFormat {
    type Label = Scores;

    fn parse(&self, mut row: Object) -> Result<Example<Text, Scores>, RowError> {
        let prompt = required_text(&mut row, &self.prompt)?;
        let expected = "a list of texts, one at least";
        let responses = match required(&mut row, &self.responses, expected)? {
            Json::Array(items) if !items.is_empty() => items,
            other => return Err(RowError::new(&self.responses, expected, other.kind())),
        };
        let responses: Vec<Text> = responses
            .into_iter()
            .enumerate()
            .map(|(i, value)| text(&format!("{}[{i}]", self.responses), value))
            .collect::<Result<_, _>>()?;
        let scores = match &self.order {
            ScoreField::Scores(field) => numbers(&mut row, field, responses.len())?,
            ScoreField::Ranks(field) => {
                let ranks = numbers(&mut row, field, responses.len())?;
                ranks.into_iter().map(|rank| -rank).collect()
            }
            ScoreField::BestFirst => (0..responses.len()).map(|i| -(i as f64)).collect(),
        };
        // One response at least and a score for each: checked above, where errors name the field.
        let (prompt, responses) = explicit(&self.prompt, prompt, responses)?;
        with_columns(Example::new(prompt, responses, Scores(scores)), row)
    }
}

/// Prompts alone: TRL's "prompt-only" rows, or rows of any other kind, of which only the prompt is
/// read. For completions that a policy is to write.
///
/// ```text
/// {"prompt": "2+2="}
/// {"prompt": [{"role": "user", "content": "2+2?"}], "chosen": […], "rejected": […]}
/// ```
///
/// Everything else that a row has, its completions too, stays in [`Example::columns`], unread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptFormat {
    /// The field of the prompt: `prompt`.
    pub prompt: String,
}

impl Default for PromptFormat {
    fn default() -> Self {
        Self {
            prompt: "prompt".into(),
        }
    }
}

impl Format for PromptFormat {
    type Label = PromptOnly;

    fn parse(&self, mut row: Object) -> Result<Example<Text, PromptOnly>, RowError> {
        let prompt = required_text(&mut row, &self.prompt)?;
        let (prompt, _) = explicit(&self.prompt, prompt, Vec::new())?;
        with_columns(Example::prompt_only(prompt), row)
    }
}

/// The columns that are left, once those that a template is given are in order.
fn with_columns<L>(
    mut example: Example<Text, L>,
    columns: Object,
) -> Result<Example<Text, L>, RowError> {
    if example.prompt.as_conversation().is_some() {
        tools(&columns)?;
        chat_template_kwargs(&columns)?;
    }
    example.columns = Arc::new(columns);
    Ok(example)
}

fn required(row: &mut Object, field: &str, expected: &str) -> Result<Json, RowError> {
    row.remove(field)
        .ok_or_else(|| RowError::new(field, expected, "nothing"))
}

const TEXT: &str = "a string or a list of messages";

fn required_text(row: &mut Object, field: &str) -> Result<Text, RowError> {
    text(field, required(row, field, TEXT)?)
}

fn text(field: &str, value: Json) -> Result<Text, RowError> {
    match value {
        Json::String(text) => Ok(Text::Plain(text)),
        Json::Array(messages) => messages
            .into_iter()
            .enumerate()
            .map(|(i, value)| Message::parse(&format!("{field}[{i}]"), value))
            .collect::<Result<_, _>>()
            .map(Text::Conversation),
        other => Err(RowError::new(field, TEXT, other.kind())),
    }
}

/// Scores that a tensor can hold: `f32`, as devices have it.
fn numbers(row: &mut Object, field: &str, length: usize) -> Result<Vec<f64>, RowError> {
    let expected = format!("{length} numbers, one per response");
    let values = match required(row, field, &expected)? {
        Json::Array(values) if values.len() == length => values,
        Json::Array(values) => return Err(RowError::new(field, expected, values.len())),
        other => return Err(RowError::new(field, expected, other.kind())),
    };
    let number = |(i, value): (usize, &Json)| {
        let field = || format!("{field}[{i}]");
        match value.as_f64() {
            Some(number) if fits_f32(number) => Ok(number),
            Some(number) => Err(RowError::new(field(), "a number that f32 holds", number)),
            None => Err(RowError::new(field(), "a number", value.kind())),
        }
    };
    values.iter().enumerate().map(number).collect()
}
