//! Parts of a row that the chat template of the model does not write.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fmt;

use burn_preference::data::{Encode, Example, Json, Message, Text};
use minijinja::Value;
use minijinja::value::Serde;

use super::chat::Chat;
use crate::failure::Failure;

/// Something of a row that a chat template does not write.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unwritten {
    /// The column `tools`.
    Tools,
    /// The content of a message of this role.
    Content(String),
    /// Parts of a content that have this type.
    Parts(String),
    /// A key of messages.
    Key(String),
    /// A content that is a list: the template writes the list, with its braces, and not its text.
    List,
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the chat template of this model writes ")?;
        match self {
            Self::Tools => f.write_str("nothing of `tools`"),
            Self::Content(role) => {
                write!(f, "nothing of the content of messages of the role `{role}`")
            }
            Self::Parts(kind) => write!(f, "nothing of parts of the type `{kind}`"),
            Self::Key(key) => write!(f, "nothing of `{key}` of messages"),
            Self::List => f.write_str("typed parts with their braces: it expects a string"),
        }
    }
}

/// Names of what an assistant thinks: a template reads one of them, by any of the names.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Keys by which a message says something without a content.
const SAYS: [&str; 5] = [
    "tool_calls",
    "function_call",
    REASONING[0],
    REASONING[1],
    REASONING[2],
];

impl Chat {
    /// Finds what the template does not write of an example: it may be changed, and the rendering stays
    /// the same. Nothing of an example that cannot be rendered, whose error the tokens have.
    ///
    /// # Errors
    ///
    /// Nothing is written of what a user or an answer says.
    pub fn unwritten<L>(&self, example: &Example<Text, L>) -> Result<BTreeSet<Unwritten>, Failure> {
        let mut found = BTreeSet::new();
        let Some(prompt) = example.prompt.as_conversation() else {
            return Ok(found);
        };
        let completions = example.completions().iter();
        let mut completions: Vec<_> = completions.filter_map(Text::as_conversation).collect();
        let is_prompt = completions.is_empty();
        if is_prompt {
            completions.push(&[]);
        }
        for (place, completion) in completions.into_iter().enumerate() {
            let messages = [prompt, completion].concat();
            let looked_at = if place == 0 { 0 } else { prompt.len() };
            let mut whole = Example::prompt_only(Text::Conversation(messages.clone()));
            whole.columns = example.columns.clone();
            // The library reads the arguments of the template; what it refuses is said there.
            let of_whole = OnceCell::new();
            let _ = whole.prompt_ids(|encode| {
                let row = Row {
                    chat: self,
                    encode,
                    messages: &messages,
                    answer: prompt.len(),
                    add_generation_prompt: is_prompt,
                };
                of_whole.get_or_init(|| row.unwritten(looked_at));
                Ok::<Vec<u32>, Failure>(Vec::new())
            });
            found.extend(of_whole.into_inner().transpose()?.unwrap_or_default());
        }
        Ok(found)
    }
}

/// A whole conversation, with what its template is given.
struct Row<'a> {
    chat: &'a Chat,
    encode: Encode<'a>,
    messages: &'a [Message],
    /// The place of the first message of the answer.
    answer: usize,
    add_generation_prompt: bool,
}

impl Row<'_> {
    fn render(&self, messages: &[Message], tools: Option<&Json>) -> Option<String> {
        let tools = tools.map(|tools| Value::from(Serde(tools)));
        let kwargs = Value::from(Serde(self.encode.chat_template_kwargs));
        let rendered = self
            .chat
            .rendered(messages, tools, self.add_generation_prompt, &kwargs);
        rendered.ok().map(|rendered| rendered.text)
    }

    /// What is not written of the messages from a place on, and of the tools.
    fn unwritten(&self, from: usize) -> Result<BTreeSet<Unwritten>, Failure> {
        let mut found = BTreeSet::new();
        let (messages, tools) = (self.messages, self.encode.tools);
        let Some(rendered) = self.render(messages, tools) else {
            return Ok(found);
        };
        let same = |changed: &[Message]| self.render(changed, tools).as_ref() == Some(&rendered);
        if tools.is_some() && self.render(messages, None).as_ref() == Some(&rendered) {
            found.insert(Unwritten::Tools);
        }

        // All contents at once, and one at a time those that are not found.
        let other = |place: usize| format!("said-{place}-");
        let all = messages.iter().enumerate();
        let all = all.map(|(place, message)| {
            with_text(message, &other(place)).unwrap_or_else(|| message.clone())
        });
        let all = self.render(&all.collect::<Vec<_>>(), tools);
        let all = all.unwrap_or_default();
        if all.contains("'type': 'text'") {
            found.insert(Unwritten::List);
        }
        let replaced = |place: usize, message: Message| {
            let mut messages = messages.to_vec();
            messages[place] = message;
            messages
        };
        for (place, message) in messages.iter().enumerate().skip(from) {
            let changed = with_text(message, &other(place));
            let is_lost = changed.as_ref().is_some_and(|changed| {
                !all.contains(&other(place)) && same(&replaced(place, changed.clone()))
            });
            let says = SAYS.iter().any(|key| message.other.get(key).is_some());
            let is_answer = place >= self.answer && message.role == "assistant";
            if is_answer && (is_lost || (changed.is_none() && says)) {
                let silent = without(changed.as_ref().unwrap_or(message), &SAYS);
                if same(&replaced(place, silent)) {
                    return Err(lost(message, "the model would learn an empty answer"));
                }
            }
            if is_lost && message.role == "user" {
                return Err(lost(message, "the model would not see it"));
            }
            if is_lost {
                found.insert(Unwritten::Content(message.role.clone()));
            }
        }

        let changed = |change: &dyn Fn(&Message) -> Message| {
            let (before, after) = messages.split_at(from);
            same(&[before.to_vec(), after.iter().map(change).collect()].concat())
        };
        for kind in messages[from..].iter().flat_map(kinds) {
            if changed(&|message| with_other_parts(message, &kind)) {
                found.insert(Unwritten::Parts(kind));
            }
        }
        let keys = messages[from..]
            .iter()
            .flat_map(|message| message.other.iter());
        let keys: BTreeSet<&str> = keys
            .filter(|(_, value)| !is_empty(value))
            .map(|(key, _)| key)
            // An id that says which call a result is of: most templates go by the order.
            .filter(|key| *key != "tool_call_id" && !REASONING.contains(key))
            .collect();
        for key in keys {
            if changed(&|message| without(message, &[key])) {
                found.insert(Unwritten::Key(key.to_owned()));
            }
        }
        found.extend(self.thoughts(from).map(Unwritten::Key));
        Ok(found)
    }

    /// The name of thoughts that are not written. Many templates leave those of earlier turns out: the
    /// ones of a prompt are looked at where their turn is the last one.
    fn thoughts(&self, from: usize) -> Option<String> {
        let name = |message: &Message| {
            let has = |key: &&&str| message.other.get(key).is_some_and(|value| !is_empty(value));
            REASONING.iter().find(has).map(|key| (*key).to_owned())
        };
        let (prompt, answer) = self.messages.split_at(self.answer);
        let earlier = prompt.iter().rposition(|message| name(message).is_some());
        let earlier = earlier
            .filter(|_| from == 0)
            .map(|place| (place, place + 1));
        let later = answer.iter().any(|message| name(message).is_some());
        let later = later.then_some((self.answer, self.messages.len()));
        let ranges = [earlier, later].into_iter().flatten();
        for (first, end) in ranges {
            let mut changed = self.messages[..end].to_vec();
            for message in &mut changed[first..] {
                *message = without(message, &REASONING);
            }
            let rendered = self.render(&self.messages[..end], self.encode.tools);
            if rendered.is_some() && rendered == self.render(&changed, self.encode.tools) {
                return self.messages[first..end].iter().find_map(name);
            }
        }
        None
    }
}

/// The error of a message that is lost.
fn lost(message: &Message, what: &str) -> Failure {
    let role = &message.role;
    let help = match &message.content {
        Some(Json::Array(_)) => {
            "its content is a list of typed parts: a string may be what the template expects"
        }
        _ if SAYS.iter().any(|key| message.other.get(key).is_some()) => {
            "its keys such as `tool_calls` need a template that knows them, or a content that says \
             the same"
        }
        _ => "name a role that the template knows (--roles), or take another template",
    };
    let found = "the chat template of this model writes nothing of what a message of the role";
    format!("{found} `{role}` says, and {what}: {help}").into()
}

/// A message that says another text; `None` of one without a text.
fn with_text(message: &Message, text: &str) -> Option<Message> {
    let mut changed = message.clone();
    let is_changed = match &mut changed.content {
        Some(Json::String(said)) => {
            let is_said = !said.trim().is_empty();
            text.clone_into(said);
            is_said
        }
        Some(Json::Array(parts)) => {
            let mut is_said = false;
            for part in parts {
                if let Json::Object(part) = part
                    && part.get("type").and_then(Json::as_str) == Some("text")
                {
                    let said = part.get("text").and_then(Json::as_str);
                    is_said |= said.is_some_and(|said| !said.trim().is_empty());
                    part.insert("text", text.into());
                }
            }
            is_said
        }
        _ => false,
    };
    is_changed.then_some(changed)
}

/// The types of a message's parts that are no text.
fn kinds(message: &Message) -> BTreeSet<String> {
    let parts = message.content.as_ref().and_then(Json::as_array);
    let kinds = parts.into_iter().flatten();
    let kinds = kinds.filter_map(|part| part.get("type")?.as_str());
    let others = kinds.filter(|kind| *kind != "text");
    others.map(str::to_owned).collect()
}

/// A message whose parts of a type hold something else.
fn with_other_parts(message: &Message, kind: &str) -> Message {
    let mut message = message.clone();
    if let Some(Json::Array(parts)) = &mut message.content {
        for part in parts {
            if part.get("type").and_then(Json::as_str) == Some(kind) {
                let mut changed = something_else(part);
                if let Json::Object(part) = &mut changed {
                    part.insert("type", kind.into());
                }
                *part = changed;
            }
        }
    }
    message
}

/// A value of the same shape with other texts.
fn something_else(value: &Json) -> Json {
    match value {
        Json::String(text) => Json::String(format!("{text}-other-")),
        Json::Array(items) => Json::Array(items.iter().map(something_else).collect()),
        Json::Object(object) => Json::Object(
            object
                .iter()
                .map(|(name, value)| (name, something_else(value)))
                .collect(),
        ),
        other => other.clone(),
    }
}

fn without(message: &Message, keys: &[&str]) -> Message {
    let mut message = message.clone();
    for key in keys {
        message.other.remove(key);
    }
    message
}

fn is_empty(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::String(text) => text.trim().is_empty(),
        Json::Array(items) => items.is_empty(),
        Json::Object(object) => object.is_empty(),
        _ => false,
    }
}
