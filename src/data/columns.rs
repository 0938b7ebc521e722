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
