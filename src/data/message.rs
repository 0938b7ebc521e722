use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::error::RowError;
use super::json::{Json, Object};

/// The role whose messages count, unless you say otherwise.
pub(super) const ASSISTANT: &str = "assistant";

/// The role of the message that a prompt becomes which is a string.
pub(super) const USER: &str = "user";

/// The role of the message that a column of system messages becomes.
pub(super) const SYSTEM: &str = "system";

/// Whether chat templates know the role. Another one may be written as it stands, or left out.
pub(super) fn is_known_role(role: &str) -> bool {
    let known = [SYSTEM, "developer", USER, ASSISTANT, "tool", "function"];
    known.contains(&role)
}

/// A turn of a conversation, as the row has it. It serialises to the object that it was, for a
/// chat template: role, content, the other fields in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The role of the speaker: `system`, `user`, `assistant`, `tool`, …
    pub role: String,
    /// The content: a string, or a list of typed parts. Beside `tool_calls` it may be `null` or
    /// missing.
    pub content: Option<Json>,
    /// The other fields of the message (`tool_calls`, `name`) that are not null, for your template.
    pub other: Object,
}

impl Message {
    /// A message whose content is a string.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Some(Json::String(content.into())),
            other: Object::default(),
        }
    }

    /// The content as one string: the parts of type `text` one after the other, and nothing
    /// where there is no content. `None` if a part is something else, such as an image.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match &self.content {
            None | Some(Json::Null) => Some(Cow::Borrowed("")),
            Some(Json::String(text)) => Some(Cow::Borrowed(text)),
            Some(Json::Array(parts)) => {
                let text = |part: &Json| match part.get("type")?.as_str()? {
                    "text" => part.get("text")?.as_str().map(str::to_owned),
                    _ => None,
                };
                parts
                    .iter()
                    .map(text)
                    .collect::<Option<String>>()
                    .map(Cow::Owned)
            }
            Some(_) => None,
        }
    }

    pub(super) fn is_assistant(&self) -> bool {
        self.role == ASSISTANT
    }

    /// Whether both are one message, as a string or as parts, with blanks around it or without.
    pub(super) fn is_same_message(&self, other: &Self) -> bool {
        self.other == other.other && self.has_same_content(other)
    }

    /// The same of role and content alone.
    pub(super) fn has_same_content(&self, other: &Self) -> bool {
        let same_content = match (self.text(), other.text()) {
            (Some(a), Some(b)) => a.trim() == b.trim(),
            _ => self.content == other.content,
        };
        self.role == other.role && same_content
    }

    /// Whether it is an instruction that stands before what the user says.
    pub(super) fn is_system(&self) -> bool {
        self.role == SYSTEM || self.role == "developer"
    }

    /// The message at `field` of a row, with `role` and `content` or, as ShareGPT has them, `from`
    /// and `value`. `roles` are other names of roles.
    pub(super) fn parse(
        field: &str,
        value: Json,
        roles: &BTreeMap<String, String>,
    ) -> Result<Self, RowError> {
        let Json::Object(mut object) = value else {
            let expected = "a message with role and content";
            return Err(RowError::new(field, expected, value.kind()));
        };
        let is_sharegpt = object.get("role").is_none() && object.get("from").is_some();
        let [role_key, content_key] = if is_sharegpt {
            ["from", "value"]
        } else {
            ["role", "content"]
        };
        let role = match object.remove(role_key) {
            Some(Json::String(role)) => roles.get(&role).cloned().unwrap_or(role),
            other => {
                let found = other.as_ref().map_or("nothing", Json::kind);
                let field = format!("{field}.{role_key}");
                return Err(RowError::new(field, "a string", found));
            }
        };
        if is_sharegpt && !is_known_role(&role) {
            let names: Vec<_> = roles.keys().map(String::as_str).collect();
            let expected = format!("a role of chat templates, or one of {}", names.join(", "));
            return Err(RowError::new(format!("{field}.from"), expected, role));
        }
        let content = object.remove(content_key);
        if let Some(calls) = object.get("tool_calls")
            && !calls.is_null()
            && calls.as_array().is_none()
        {
            let field = format!("{field}.tool_calls");
            return Err(RowError::new(field, "a list of calls", calls.kind()));
        }
        check_content(
            &format!("{field}.{content_key}"),
            &role,
            content.as_ref(),
            &object,
        )?;
        Ok(Self {
            role,
            content,
            other: object.without_nulls(),
        })
    }
}

fn check_content(
    field: &str,
    role: &str,
    content: Option<&Json>,
    other: &Object,
) -> Result<(), RowError> {
    let expected = "a string or a list of typed parts";
    match content {
        Some(Json::String(_)) => Ok(()),
        Some(Json::Array(parts)) => parts
            .iter()
            .enumerate()
            .try_for_each(|(i, part)| check_part(&format!("{field}[{i}]"), part)),
        None | Some(Json::Null) => {
            let calls = other.get("tool_calls").and_then(Json::as_array);
            if role == ASSISTANT && calls.is_some_and(|calls| !calls.is_empty()) {
                return Ok(());
            }
            let found = content.map_or("nothing", Json::kind);
            let expected = format!("{expected} (an assistant's `tool_calls` may stand alone)");
            Err(RowError::new(field, expected, found))
        }
        Some(other) => Err(RowError::new(field, expected, other.kind())),
    }
}

/// `{"type": "text", "text": …}`, or another type that your template knows.
fn check_part(field: &str, part: &Json) -> Result<(), RowError> {
    let string = |name: &str| match part.get(name) {
        Some(Json::String(text)) => Ok(text.as_str()),
        other => {
            let found = other.map_or("nothing", Json::kind);
            Err(RowError::new(format!("{field}.{name}"), "a string", found))
        }
    };
    if part.as_object().is_none() {
        let expected = "a part with its type";
        return Err(RowError::new(field, expected, part.kind()));
    }
    if string("type")? == "text" {
        string("text")?;
    }
    Ok(())
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", &self.role)?;
        if let Some(content) = &self.content {
            map.serialize_entry("content", content)?;
        }
        for (name, value) in self.other.iter() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// A prompt or a completion, as the file has it, and as it is written into one.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum Text {
    /// A text that is one string.
    Plain(String),
    /// A text that is a list of messages, for your chat template.
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
