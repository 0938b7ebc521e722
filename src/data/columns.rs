//! Columns that nobody reads, and whether one of them may be a text that was meant to be read.

use super::json::Json;

/// Names under which published data sets have their prompts.
const PROMPTS: [&str; 11] = [
    "context",
    "conversation",
    "conversations",
    "history",
    "input",
    "instruction",
    "messages",
    "problem",
    "query",
    "question",
    "system",
];

/// Names of columns that change what a row means, whatever their type: a choice, something that the
/// answer is about, a tool, a medium.
const MEANINGS: [&str; 18] = [
    "audio",
    "context",
    "documents",
    "functions",
    "image",
    "images",
    "labels",
    "margin",
    "passages",
    "persona",
    "preference",
    "preference_strength",
    "video",
    "videos",
    "winner",
    "winner_model_a",
    "winner_model_b",
    "winner_tie",
];

/// Whether a column may be meant for the model: a text, or one with a name that says so.
pub(super) fn has_meaning(name: &str, value: &Json) -> bool {
    let is_empty = match value {
        Json::Null => true,
        Json::String(text) => text.trim().is_empty(),
        Json::Array(items) => items.is_empty(),
        Json::Object(fields) => fields.is_empty(),
        _ => false,
    };
    is_text(name, value) || (!is_empty && MEANINGS.contains(&name))
}

/// Whether a string looks like messages that JSON or Python has written.
pub(super) fn is_written_message(text: &str) -> bool {
    let text = text.trim_start();
    let inside = text.strip_prefix('[').unwrap_or(text).trim_start();
    let names = ["\"role\"", "'role'", "\"from\"", "'from'"];
    inside.starts_with('{') && names.iter().any(|name| inside.contains(name))
}

/// Whether a string looks like a transcript by marks that are not read.
pub(super) fn is_other_transcript(text: &str) -> bool {
    let begins = |mark: &str| text.trim_start().starts_with(mark);
    let has = |mark: &str| text.contains(mark);
    has("[INST]")
        || has("<|im_start|>")
        || begins("### Human:")
        || begins("### User:")
        || (begins("User:") && has("\nAssistant:"))
        || (begins("Human:") && has("\nAI:"))
}

/// Whether a column may be a text for a model: it has such a name and is not empty, or it holds
/// messages, or two words.
pub(super) fn is_text(name: &str, value: &Json) -> bool {
    let is_word = |word: &&str| word.contains(char::is_alphabetic);
    match value {
        Json::String(text) if PROMPTS.contains(&name) => !text.trim().is_empty(),
        Json::String(text) => text.split_whitespace().filter(is_word).nth(1).is_some(),
        Json::Array(items) if PROMPTS.contains(&name) => !items.is_empty(),
        Json::Array(items) => items.first().is_some_and(is_message),
        Json::Object(_) => is_message(value),
        _ => false,
    }
}

/// Whether an object is a message, with a role at least.
pub(super) fn is_message(value: &Json) -> bool {
    let has = |name| value.get(name).is_some_and(|role| role.as_str().is_some());
    has("role") || has("from")
}

/// Names of columns as an error or a report lists them.
pub(super) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    // Rows whose keys are data have thousands of them.
    const MOST: usize = 20;
    let mut names = names.into_iter();
    let shown: Vec<_> = names
        .by_ref()
        .take(MOST)
        .map(|n| format!("`{n}`"))
        .collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
