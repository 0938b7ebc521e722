use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::columns::{is_message, is_text, list};
use super::encode::{chat_template_kwargs, tools};
use super::error::RowError;
use super::example::Example;
use super::json::{Json, Object};
use super::label::{Demonstration, Desirable, Group, Preference, PromptOnly, Scores, fits_f32};
use super::message::{ASSISTANT, Message, SYSTEM, Text, USER};
use super::prompt::{
    Parts, explicit, explicit_turns, first_answer, implicit, implicit_answer, implicit_turns,
    transcript,
};
use super::transcript::is_transcript;

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
/// is an error. A message may have `from` and `value` instead of `role` and `content`, as ShareGPT
/// has it, and a list of one message may be that message alone.
///
/// Fields that a format does not name stay in [`Example::columns`]; the
/// [`Report`](super::Report) names them.
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

/// Prompts alone: TRL's "prompt-only" rows, or rows of any other kind, of which only the prompt is
/// read. For completions that a policy is to write. The other formats read their prompts by it.
///
/// ```text
/// {"prompt": "2+2="}
/// {"system": "Be brief.", "prompt": "2+2?"}
/// {"prompt": [{"role": "user", "content": "2+2?"}], "chosen": […], "rejected": […]}
/// ```
///
/// Everything else that a row has, its completions too, stays in [`Example::columns`], unread.
///
/// A string stands for the format that reads the column of this name:
///
/// ```
/// use burn_preference::data::{PairFormat, PromptFormat};
///
/// let orca = PairFormat {
///     prompt: PromptFormat { as_conversation: true, ..PromptFormat::from("question") },
///     ..PairFormat::default()
/// };
/// assert_eq!(orca.prompt.prompt, "question");
/// assert_eq!(orca.prompt.system.as_deref(), Some("system"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptFormat {
    /// The field of the prompt: `prompt`. Pairs and unpaired completions may lack the field of this
    /// name, and have an implicit prompt; a field of another name has to be there.
    pub prompt: String,
    /// The field of a string that becomes the first message of a conversation, of the role
    /// `system`: `system`. Missing, null and blank ones are none. Beside strings it stays in
    /// [`Example::columns`]. `None` reads no such field.
    pub system: Option<String>,
    /// True if strings become messages, for a chat model: a prompt is what a user says, a
    /// completion what the assistant answers, to the letter. False, the default: they stay text.
    ///
    /// Strings that are transcripts, as HH-RLHF has them, become their turns, without the blanks
    /// around each. A transcript begins with `Human:`, after blanks or none, and has `Assistant:`
    /// behind two line feeds:
    ///
    /// ```text
    /// \n\nHuman: 2+2?\n\nAssistant: 4\n\nHuman: Sure?\n\nAssistant: Yes.
    /// ```
    ///
    /// If there is no prompt, only transcripts can become messages: what other strings begin with
    /// in common ends inside an answer, and the row is an error.
    pub as_conversation: bool,
    /// Other names of roles, with the role that each stands for: `human`, `Human`, `User` for
    /// `user`, `gpt`, `Assistant` for `assistant`, `System` for `system`.
    pub roles: BTreeMap<String, String>,
}

impl Default for PromptFormat {
    fn default() -> Self {
        let roles = [
            ("human", USER),
            ("Human", USER),
            ("User", USER),
            ("gpt", ASSISTANT),
            ("Assistant", ASSISTANT),
            ("System", SYSTEM),
        ];
        Self {
            prompt: "prompt".into(),
            system: Some(SYSTEM.into()),
            as_conversation: false,
            roles: roles.map(|(name, role)| (name.into(), role.into())).into(),
        }
    }
}

impl From<&str> for PromptFormat {
    fn from(prompt: &str) -> Self {
        Self {
            prompt: prompt.into(),
            ..Self::default()
        }
    }
}

impl Format for PromptFormat {
    type Label = PromptOnly;

    fn parse(&self, mut row: Object) -> Result<Example<Text, PromptOnly>, RowError> {
        let prompt = self.required_text(&mut row, &self.prompt)?;
        let (prompt, _) = self.explicit(prompt, Vec::new())?;
        self.with_columns(Example::prompt_only(prompt), row)
    }
}

impl PromptFormat {
    /// The prompt of a row, unless it is implicit.
    fn optional_prompt(&self, row: &mut Object) -> Result<Option<Text>, RowError> {
        let is_missing = row.get(&self.prompt).is_none_or(Json::is_null);
        if is_missing && self.prompt == Self::default().prompt {
            row.remove(&self.prompt);
            return Ok(None);
        }
        self.required_text(row, &self.prompt).map(Some)
    }

    /// The words for an error that a row has no prompt.
    fn missing_prompt(&self, row: &Object) -> &'static str {
        match row.get(&self.prompt) {
            Some(_) => "null",
            None => "nothing",
        }
    }

    fn explicit(&self, prompt: Text, completions: Vec<Text>) -> Result<Parts, RowError> {
        let parts = if self.as_conversation {
            explicit_turns
        } else {
            explicit
        };
        parts(&self.prompt, prompt, completions)
    }

    /// The parts of a row with one completion, whose prompt may be implicit: what stands before the
    /// last answer of a conversation.
    fn of_one(&self, row: &mut Object, field: &str, completion: Text) -> Result<Parts, RowError> {
        let found = self.missing_prompt(row);
        if let Some(prompt) = self.optional_prompt(row)? {
            return self.explicit(prompt, vec![completion]);
        }
        match self.turns(completion) {
            Text::Conversation(messages) => implicit_answer(field, messages),
            Text::Plain(_) => Err(RowError::new(&self.prompt, TEXT, found)),
        }
    }

    /// The text, and the turns of a transcript where strings become messages.
    fn turns(&self, text: Text) -> Text {
        if self.as_conversation {
            transcript(text)
        } else {
            text
        }
    }

    fn required_text(&self, row: &mut Object, field: &str) -> Result<Text, RowError> {
        self.text(field, required(row, field, TEXT)?)
    }

    fn text(&self, field: &str, value: Json) -> Result<Text, RowError> {
        let message = |field: &str, value| Message::parse(field, value, &self.roles);
        match value {
            Json::String(text) => Ok(Text::Plain(text)),
            Json::Array(messages) => messages
                .into_iter()
                .enumerate()
                .map(|(i, value)| message(&format!("{field}[{i}]"), value))
                .collect::<Result<_, _>>()
                .map(Text::Conversation),
            Json::Object(_) if is_message(&value) => {
                Ok(Text::Conversation(vec![message(field, value)?]))
            }
            other => Err(RowError::new(field, TEXT, other.kind())),
        }
    }

    /// The example with its system message and the columns that are left, once those that a
    /// template is given are in order.
    fn with_columns<L>(
        &self,
        mut example: Example<Text, L>,
        mut columns: Object,
    ) -> Result<Example<Text, L>, RowError> {
        if let Text::Conversation(messages) = &mut example.prompt {
            if let Some(field) = &self.system {
                add_system(messages, field, &mut columns)?;
            }
            tools(&columns)?;
            chat_template_kwargs(&columns)?;
        }
        example.columns = Arc::new(columns);
        Ok(example)
    }
}

/// Puts the system message of a column before the others.
fn add_system(
    messages: &mut Vec<Message>,
    field: &str,
    columns: &mut Object,
) -> Result<(), RowError> {
    let text = match columns.remove(field) {
        None | Some(Json::Null) => return Ok(()),
        Some(Json::String(text)) => text,
        Some(other) => {
            let expected = "a system message (read none, or another column, if it is none)";
            return Err(RowError::new(field, expected, other.kind()));
        }
    };
    let system = Message::new(SYSTEM, text);
    let first = messages.first().filter(|message| message.is_system());
    let is_blank = system.text().is_none_or(|text| text.trim().is_empty());
    match first {
        _ if is_blank => {}
        None => messages.insert(0, system),
        Some(first) if first.has_same_content(&system) => {}
        Some(_) => {
            let expected = "the system message that the conversation begins with, or none";
            return Err(RowError::new(field, expected, "another one"));
        }
    }
    Ok(())
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
/// beginning of the other, its last message or character is its completion. Two transcripts
/// ([`as_conversation`](PromptFormat::as_conversation)) part where the answer opens. A string
/// beside a conversation is another last answer of it.
///
/// Strings without a `prompt` are an error if the row has another column of text, since that may be
/// the prompt: a column named `question`, `instruction` or the like, messages, or a string of two
/// words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairFormat {
    /// The prompt, and what all texts have in common.
    pub prompt: PromptFormat,
    /// True if what two strings begin with is their prompt, whatever other columns the row has. The
    /// default is false.
    pub implicit_prompt: bool,
    /// The field of the preferred completion: `chosen`.
    pub chosen: String,
    /// The field of the other completion: `rejected`.
    pub rejected: String,
}

impl Default for PairFormat {
    fn default() -> Self {
        Self {
            prompt: PromptFormat::default(),
            implicit_prompt: false,
            chosen: "chosen".into(),
            rejected: "rejected".into(),
        }
    }
}

impl Format for PairFormat {
    type Label = Preference;

    fn parse(&self, mut row: Object) -> Result<Example<Text, Preference>, RowError> {
        let format = &self.prompt;
        let chosen = format.required_text(&mut row, &self.chosen)?;
        let rejected = format.required_text(&mut row, &self.rejected)?;
        let found = format.missing_prompt(&row);
        let (prompt, completions) = match format.optional_prompt(&mut row)? {
            Some(prompt) => format.explicit(prompt, vec![chosen, rejected])?,
            None => self.implicit(chosen, rejected, &row, found)?,
        };
        format.with_columns(Example::new(prompt, completions, Preference), row)
    }
}

impl PairFormat {
    /// The parts of a row without a prompt, where this was `found`; `columns` are its others.
    fn implicit(
        &self,
        chosen: Text,
        rejected: Text,
        columns: &Object,
        found: &str,
    ) -> Result<Parts, RowError> {
        let format = &self.prompt;
        let fields = [self.chosen.as_str(), self.rejected.as_str()];
        let texts = columns.iter().filter(|(name, value)| is_text(name, value));
        let texts = list(texts.map(|(name, _)| name));
        let is_plain = |text: &Text| text.as_plain().is_some_and(|text| !is_transcript(text));
        let is_doubtful = !(texts.is_empty() || self.implicit_prompt);
        if is_doubtful && is_plain(&chosen) && is_plain(&rejected) {
            let expected = format!(
                "the prompt, since it may be one of {texts} (name its column, or say that it is \
                 implicit: what both strings begin with)"
            );
            return Err(RowError::new(&format.prompt, expected, found));
        }
        let parts = if format.as_conversation {
            implicit_turns(&format.prompt, fields, chosen, rejected)
        } else {
            implicit(fields, chosen, rejected)
        };
        let Err(error) = &parts else {
            return parts;
        };
        if error.field() == format.prompt && error.found() == "nothing" {
            return Err(RowError::new(error.field(), error.expected(), found));
        }
        if texts.is_empty() || error.field() == format.prompt {
            return parts;
        }
        // The conversations alone have no prompt in common.
        let found = format!("{}; the prompt may be one of {texts}", error.found());
        Err(RowError::new(error.field(), error.expected(), found))
    }
}

/// Unpaired completions: TRL's "unpaired preference" rows.
///
/// ```text
/// {"prompt": "2+2=", "completion": "4", "label": true}
/// ```
///
/// Without a `prompt`, a conversation's last answer is the completion, and what stands before it is
/// the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpairedFormat {
    /// The prompt, and what all texts have in common.
    pub prompt: PromptFormat,
    /// The field of the completion: `completion`.
    pub completion: String,
    /// The field of the label: `label`, true or 1 for desirable, false or 0 for not.
    pub label: String,
}

impl Default for UnpairedFormat {
    fn default() -> Self {
        Self {
            prompt: PromptFormat::default(),
            completion: "completion".into(),
            label: "label".into(),
        }
    }
}

impl Format for UnpairedFormat {
    type Label = Desirable;

    fn parse(&self, mut row: Object) -> Result<Example<Text, Desirable>, RowError> {
        let format = &self.prompt;
        let completion = format.required_text(&mut row, &self.completion)?;
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
        let (prompt, completions) = format.of_one(&mut row, &self.completion, completion)?;
        format.with_columns(Example::new(prompt, completions, Desirable(label)), row)
    }
}

/// Demonstrations: TRL's "prompt-completion" rows, and conversations.
///
/// ```text
/// {"prompt": "2+2=", "completion": "4"}
/// {"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]}
/// {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}, …]}
/// ```
///
/// Without a `completion`, the conversation in `messages` is read: its prompt ends before the first
/// answer, and everything behind it is the completion, of which every answer counts
/// ([`Turns`](super::Turns) says otherwise). A `prompt` beside it that is the text of the first
/// message is not read.
///
/// A `completion` without a `prompt` is read as [`UnpairedFormat`] reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemonstrationFormat {
    /// The prompt, and what all texts have in common.
    pub prompt: PromptFormat,
    /// The field of the completion: `completion`.
    pub completion: String,
    /// The field of a whole conversation: `messages`.
    pub messages: String,
}

impl Default for DemonstrationFormat {
    fn default() -> Self {
        Self {
            prompt: PromptFormat::default(),
            completion: "completion".into(),
            messages: "messages".into(),
        }
    }
}

impl Format for DemonstrationFormat {
    type Label = Demonstration;

    fn parse(&self, mut row: Object) -> Result<Example<Text, Demonstration>, RowError> {
        let format = &self.prompt;
        let has = |row: &Object, field: &str| row.get(field).is_some_and(|value| !value.is_null());
        let (prompt, completions) = if has(&row, &self.completion) {
            let completion = format.required_text(&mut row, &self.completion)?;
            format.of_one(&mut row, &self.completion, completion)?
        } else if has(&row, &self.messages) {
            row.remove(&self.completion);
            let conversation = format.required_text(&mut row, &self.messages)?;
            let Text::Conversation(messages) = format.turns(conversation) else {
                let expected = "a list of messages";
                return Err(RowError::new(&self.messages, expected, "a string"));
            };
            let first = messages.first().and_then(Message::text);
            let prompt = row.get(&format.prompt).and_then(Json::as_str);
            if prompt.is_some_and(|prompt| first.is_some_and(|text| text.trim() == prompt.trim())) {
                row.remove(&format.prompt);
            }
            first_answer(&self.messages, messages)?
        } else {
            let expected = format!("{TEXT}, or messages in `{}`", self.messages);
            return Err(RowError::new(&self.completion, expected, "nothing"));
        };
        format.with_columns(Example::new(prompt, completions, Demonstration), row)
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
    /// The prompt, and what all texts have in common.
    pub prompt: PromptFormat,
    /// The field of the responses: `responses`.
    pub responses: String,
    /// The order of the responses: the field `scores`.
    pub order: ScoreField,
}

impl Default for RankedFormat {
    fn default() -> Self {
        Self {
            prompt: PromptFormat::default(),
            responses: "responses".into(),
            order: ScoreField::Scores("scores".into()),
        }
    }
}

impl Format for RankedFormat {
    type Label = Scores;

    fn parse(&self, mut row: Object) -> Result<Example<Text, Scores>, RowError> {
        let format = &self.prompt;
        let prompt = format.required_text(&mut row, &format.prompt)?;
        let expected = "a list of texts, one at least";
        let responses = match required(&mut row, &self.responses, expected)? {
            Json::Array(items) if !items.is_empty() => items,
            other => return Err(RowError::new(&self.responses, expected, other.kind())),
        };
        let responses: Vec<Text> = responses
            .into_iter()
            .enumerate()
            .map(|(i, value)| format.text(&format!("{}[{i}]", self.responses), value))
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
        let (prompt, responses) = format.explicit(prompt, responses)?;
        format.with_columns(Example::new(prompt, responses, Scores(scores)), row)
    }
}

/// Groups of samples: ranked lists with the token ids that a sampler drew, and its log-probabilities
/// of them.
///
/// ```text
/// {"prompt": "2+2=", "responses": ["4", "5"], "scores": [1.0, 0.0], "prompt_ids": [50, 43, 50, 61],
///  "response_ids": [[52, 0], [53, 0]], "response_log_probs": [[-0.7, -0.1], [-1.6, -0.2]]}
/// ```
///
/// The ids are what counts: [`Example::samples`] makes sequences of them, without a tokenizer. The
/// texts are for people, and for [`RankedFormat`], which reads the same rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleFormat {
    /// The prompt, and what all texts have in common.
    pub prompt: PromptFormat,
    /// The field of the completions' texts: `responses`; two at least.
    pub responses: String,
    /// The field of their rewards: `scores`.
    pub rewards: String,
    /// The field of the prompt's token ids: `prompt_ids`.
    pub prompt_ids: String,
    /// The field of the completions' token ids: `response_ids`.
    pub ids: String,
    /// The field of the sampler's log-probabilities, one per id: `response_log_probs`.
    pub log_probs: String,
}

impl Default for SampleFormat {
    fn default() -> Self {
        Self {
            prompt: PromptFormat::default(),
            responses: "responses".into(),
            rewards: "scores".into(),
            prompt_ids: "prompt_ids".into(),
            ids: "response_ids".into(),
            log_probs: "response_log_probs".into(),
        }
    }
}

impl Format for SampleFormat {
    type Label = Group;

    fn parse(&self, mut row: Object) -> Result<Example<Text, Group>, RowError> {
        let log_probs = lists(&mut row, &self.log_probs, "log-probabilities", log_prob)?;
        let ids = lists(&mut row, &self.ids, "token ids", token_id)?;
        let expected = "a list of token ids";
        let prompt_ids = match required(&mut row, &self.prompt_ids, expected)? {
            Json::Array(items) => each(&self.prompt_ids, &items, token_id)?,
            other => return Err(RowError::new(&self.prompt_ids, expected, other.kind())),
        };
        let list = RankedFormat {
            prompt: self.prompt.clone(),
            responses: self.responses.clone(),
            order: ScoreField::Scores(self.rewards.clone()),
        };
        let list = list.parse(row)?;
        let count = list.completions().len();
        if count < 2 {
            let expected = "two responses at least: nothing says whether one alone is good";
            return Err(RowError::new(&self.responses, expected, count));
        }
        for (field, found) in [(&self.ids, ids.len()), (&self.log_probs, log_probs.len())] {
            if found != count {
                let expected = format!("{count} lists, one per response");
                return Err(RowError::new(field, expected, found));
            }
        }
        for (place, (ids, log_probs)) in ids.iter().zip(&log_probs).enumerate() {
            if ids.len() != log_probs.len() {
                let field = format!("{}[{place}]", self.log_probs);
                let expected = format!("{} numbers, one per token id", ids.len());
                return Err(RowError::new(field, expected, log_probs.len()));
            }
        }
        Ok(list.relabel(|Scores(rewards)| Group {
            rewards,
            prompt_ids,
            ids,
            log_probs,
        }))
    }
}

/// Lists of what `item` reads.
fn lists<X>(
    row: &mut Object,
    field: &str,
    what: &str,
    item: fn(&Json) -> Result<X, &'static str>,
) -> Result<Vec<Vec<X>>, RowError> {
    let expected = format!("a list of {what} for each response");
    let items = match required(row, field, &expected)? {
        Json::Array(items) => items,
        other => return Err(RowError::new(field, expected, other.kind())),
    };
    let list = |(place, value): (usize, &Json)| {
        let field = format!("{field}[{place}]");
        match value {
            Json::Array(items) => each(&field, items, item),
            other => Err(RowError::new(
                field,
                format!("a list of {what}"),
                other.kind(),
            )),
        }
    };
    items.iter().enumerate().map(list).collect()
}

fn each<X>(
    field: &str,
    items: &[Json],
    item: fn(&Json) -> Result<X, &'static str>,
) -> Result<Vec<X>, RowError> {
    let read = |(place, value): (usize, &Json)| {
        let wrong = |expected| RowError::new(format!("{field}[{place}]"), expected, value);
        item(value).map_err(wrong)
    };
    items.iter().enumerate().map(read).collect()
}

fn log_prob(value: &Json) -> Result<f64, &'static str> {
    let number = value.as_f64().filter(|number| fits_f32(*number));
    let number = number.ok_or("a number that f32 holds")?;
    (number <= 0.0)
        .then_some(number)
        .ok_or("a log-probability, ≤ 0")
}

fn token_id(value: &Json) -> Result<u32, &'static str> {
    let expected = "a token id, a whole number in 0..2³¹";
    let number = value.as_f64().ok_or(expected)?;
    let fits = number >= 0.0 && number < f64::from(1_u32 << 31) && number.fract() == 0.0;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked"
    )]
    fits.then_some(number as u32).ok_or(expected)
}

fn required(row: &mut Object, field: &str, expected: &str) -> Result<Json, RowError> {
    row.remove(field)
        .ok_or_else(|| RowError::new(field, expected, "nothing"))
}

const TEXT: &str = "a string or a list of messages";

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
