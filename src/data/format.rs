use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::error::RowError;
use super::example::{Desirable, Example, Message, Preference, Scores, Text};

/// Which fields of a JSON object are the prompt, the completions and the labels.
///
/// Fields that a format does not name stay in [`Example::other`].
pub trait Format: Send + Sync {
    /// What its rows are labelled with.
    type Label: Clone + PartialEq + fmt::Debug + Send + Sync + 'static;

    /// The example that a row holds.
    ///
    /// # Errors
    ///
    /// A field is missing or holds something else; the error names it.
    fn parse(&self, row: Map<String, Value>) -> Result<Example<Text, Self::Label>, RowError>;
}

/// Pairs: TRL's "preference" rows. A text is a string or a list of messages.
///
/// ```text
/// {"prompt": "2+2=", "chosen": "4", "rejected": "5"}                     explicit prompt
/// {"chosen": "2+2=4", "rejected": "2+2=5"}                               implicit prompt
/// {"prompt": [{"role": "user", "content": "2+2?"}], "chosen": […], "rejected": […]}
/// ```
///
/// Without a `prompt`, what both texts begin with is the prompt: their common messages, or their
/// common characters less a trailing space, which belongs to the completions (as TRL takes it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairFormat {
    /// The field of the prompt: `prompt`.
    pub prompt: String,
    /// The field of the preferred completion: `chosen`.
    pub chosen: String,
    /// The field of the other one: `rejected`.
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

    fn parse(&self, mut row: Map<String, Value>) -> Result<Example<Text, Preference>, RowError> {
        let chosen = required_text(&mut row, &self.chosen)?;
        let rejected = required_text(&mut row, &self.rejected)?;
        let pair = match row.remove(&self.prompt) {
            Some(prompt) => Example::pair(text(&self.prompt, prompt)?, chosen, rejected),
            None => implicit(&self.rejected, chosen, rejected)?,
        };
        Ok(with_other(pair, row))
    }
}

/// Thumbs up and down: TRL's "unpaired preference" rows.
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
    /// The field of the label: `label`, true for desirable.
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

    fn parse(&self, mut row: Map<String, Value>) -> Result<Example<Text, Desirable>, RowError> {
        let prompt = required_text(&mut row, &self.prompt)?;
        let completion = required_text(&mut row, &self.completion)?;
        let label = match required(&mut row, &self.label, "true or false")? {
            Value::Bool(label) => label,
            other => return Err(RowError::new(&self.label, "true or false", kind(&other))),
        };
        Ok(with_other(
            Example::unpaired(prompt, completion, label),
            row,
        ))
    }
}

/// What orders the responses of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScoreField {
    /// A field of numbers, higher is better.
    Scores(String),
    /// A field of numbers, lower is better: 1 or 0 for the best. The score is minus the rank.
    Ranks(String),
    /// None: the file lists them best first. The scores are 0, −1, −2, …
    BestFirst,
}

/// Lists of responses to one prompt, with scores or ranks.
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
    /// What orders them: the field `scores`.
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

    fn parse(&self, mut row: Map<String, Value>) -> Result<Example<Text, Scores>, RowError> {
        let prompt = required_text(&mut row, &self.prompt)?;
        let expected = "a list of texts, one at least";
        let responses = match required(&mut row, &self.responses, expected)? {
            Value::Array(items) if !items.is_empty() => items,
            other => return Err(RowError::new(&self.responses, expected, kind(&other))),
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
        let list = Example::of(prompt, responses, Scores(scores));
        Ok(with_other(list, row))
    }
}

fn with_other<L>(mut example: Example<Text, L>, row: Map<String, Value>) -> Example<Text, L> {
    example.other = Arc::new(row);
    example
}

fn required(row: &mut Map<String, Value>, field: &str, expected: &str) -> Result<Value, RowError> {
    row.remove(field)
        .ok_or_else(|| RowError::new(field, expected, "nothing"))
}

const TEXT: &str = "a string or a list of messages";

fn required_text(row: &mut Map<String, Value>, field: &str) -> Result<Text, RowError> {
    text(field, required(row, field, TEXT)?)
}

fn text(field: &str, value: Value) -> Result<Text, RowError> {
    match value {
        Value::String(text) => Ok(Text::Plain(text)),
        Value::Array(messages) => messages
            .into_iter()
            .enumerate()
            .map(|(i, value)| message(&format!("{field}[{i}]"), value))
            .collect::<Result<_, _>>()
            .map(Text::Conversation),
        other => Err(RowError::new(field, TEXT, kind(&other))),
    }
}

fn message(field: &str, value: Value) -> Result<Message, RowError> {
    let Value::Object(mut object) = value else {
        let expected = "a message with role and content";
        return Err(RowError::new(field, expected, kind(&value)));
    };
    let mut string = |name: &str| {
        let field = format!("{field}.{name}");
        match object.remove(name) {
            Some(Value::String(text)) => Ok(text),
            other => Err(RowError::new(
                field,
                "a string",
                other.as_ref().map_or("nothing", kind),
            )),
        }
    };
    let role = string("role")?;
    let content = string("content")?;
    Ok(Message {
        role,
        content,
        other: object,
    })
}

fn numbers(row: &mut Map<String, Value>, field: &str, length: usize) -> Result<Vec<f64>, RowError> {
    let expected = format!("{length} numbers, one per response");
    let values = match required(row, field, &expected)? {
        Value::Array(values) if values.len() == length => values,
        Value::Array(values) => return Err(RowError::new(field, expected, values.len())),
        other => return Err(RowError::new(field, expected, kind(&other))),
    };
    let number = |(i, value): (usize, &Value)| {
        value
            .as_f64()
            .ok_or_else(|| RowError::new(format!("{field}[{i}]"), "a number", kind(value)))
    };
    values.iter().enumerate().map(number).collect()
}

/// What both begin with, and the rest of each.
fn implicit(
    field: &str,
    chosen: Text,
    rejected: Text,
) -> Result<Example<Text, Preference>, RowError> {
    match (chosen, rejected) {
        (Text::Plain(chosen), Text::Plain(rejected)) => {
            let common = chosen.chars().zip(rejected.chars());
            let mut end: usize = common
                .take_while(|(w, l)| w == l)
                .map(|(w, _)| w.len_utf8())
                .sum();
            if chosen[..end].ends_with(' ') {
                end -= 1;
            }
            let of = |text: &str| Text::Plain(text.to_owned());
            Ok(Example::pair(
                of(&chosen[..end]),
                of(&chosen[end..]),
                of(&rejected[end..]),
            ))
        }
        (Text::Conversation(mut chosen), Text::Conversation(mut rejected)) => {
            let common = chosen.iter().zip(&rejected);
            let end = common.take_while(|(w, l)| w == l).count();
            rejected.drain(..end);
            let completion = chosen.split_off(end);
            Ok(Example::pair(
                Text::Conversation(chosen),
                Text::Conversation(completion),
                Text::Conversation(rejected),
            ))
        }
        (Text::Plain(_), _) => Err(RowError::new(
            field,
            "a string, as the chosen one",
            "messages",
        )),
        (Text::Conversation(_), _) => Err(RowError::new(
            field,
            "messages, as the chosen ones",
            "a string",
        )),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(items) if items.is_empty() => "an empty list",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
