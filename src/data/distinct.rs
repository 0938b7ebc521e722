use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use burn::data::dataset::Dataset;

use super::encode::{chat_template_kwargs, tools};
use super::error::DataError;
use super::example::Example;
use super::json::Json;
use super::label::Labels;
use super::message::Text;

/// Examples of a dataset that differ from all earlier ones, and those that repeat one, by index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Distinct {
    /// Indices of the examples to keep: the first one of each content, in order.
    pub kept: Vec<usize>,
    /// Index of each of the others, with that of the example which it repeats.
    pub repeated: Vec<(usize, usize)>,
    /// Indices of kept examples whose prompt and completions stand in an earlier one with another
    /// label: a pair the other way round, a completion that is desirable and undesirable.
    pub contradictory: Vec<usize>,
}

/// Finds examples that repeat an earlier one: their prompt, completions, label and arguments for a
/// template (`tools`, `chat_template_kwargs`) are the same. Other columns and lines do not matter,
/// nor the order of keys and of a list's completions. Select the examples with Burn's
/// `SelectionDataset`.
///
/// It reads every example once and keeps a hash of each.
///
/// # Errors
///
/// An example cannot be read.
pub fn distinct<L: Labels>(
    dataset: &impl Dataset<Example<Text, L>>,
) -> Result<Distinct, DataError> {
    let mut distinct = Distinct::default();
    let mut whole: HashMap<[u8; 32], usize> = HashMap::new();
    let mut texts: HashSet<[u8; 32]> = HashSet::new();
    for index in 0..dataset.len() {
        let example = dataset.get(index)?;
        let hashes = hashes(&example);
        if let Some(&first) = whole.get(&hashes.whole) {
            distinct.repeated.push((index, first));
            continue;
        }
        whole.insert(hashes.whole, index);
        if !texts.insert(hashes.texts) {
            distinct.contradictory.push(index);
        }
        distinct.kept.push(index);
    }
    Ok(distinct)
}

struct Hashes {
    /// The hash of everything that counts.
    whole: [u8; 32],
    /// The hash of the same without the label, completions in any order.
    texts: [u8; 32],
}

fn hashes<L: Labels>(example: &Example<Text, L>) -> Hashes {
    let mut context = blake3::Hasher::new();
    add_text(&mut context, &example.prompt);
    if example.prompt.as_conversation().is_some() {
        // What cannot be used is compared as it stands there.
        let raw = |column| example.columns.get(column).cloned().unwrap_or_default();
        let tools = tools(&example.columns).map_or_else(
            |_| raw("tools"),
            |it| it.map_or(Json::Null, Cow::into_owned),
        );
        let arguments = chat_template_kwargs(&example.columns).map_or_else(
            |_| raw("chat_template_kwargs"),
            |it| Json::Object(it.clone()),
        );
        add(&mut context, &tools);
        add(&mut context, &arguments);
    }
    let completions = example.completions().iter().map(|completion| {
        let mut hasher = blake3::Hasher::new();
        add_text(&mut hasher, completion);
        *hasher.finalize().as_bytes()
    });
    let mut texts: Vec<_> = completions.collect();
    let labels = example.label.label().numbers();
    // Zero has two signs.
    let label = |label: f64| (label + 0.0).to_le_bytes();
    let labelled = texts.iter().zip(labels).map(|(t, l)| (*t, label(l)));
    let mut labelled: Vec<_> = labelled.collect();
    labelled.sort_unstable();
    let mut whole = context.clone();
    for (text, label) in labelled {
        whole.update(&text);
        whole.update(&label);
    }
    texts.sort_unstable();
    context.update(texts.as_flattened());
    Hashes {
        whole: *whole.finalize().as_bytes(),
        texts: *context.finalize().as_bytes(),
    }
}

fn add_text(hasher: &mut blake3::Hasher, text: &Text) {
    match text {
        Text::Plain(text) => {
            hasher.update(b"p");
            add_bytes(hasher, text.as_bytes());
        }
        Text::Conversation(messages) => {
            hasher.update(b"c");
            hasher.update(&(messages.len() as u64).to_le_bytes());
            for message in messages {
                add_bytes(hasher, message.role.as_bytes());
                add(hasher, message.content.as_ref().unwrap_or(&Json::Null));
                add(hasher, &Json::Object(message.other.clone()));
            }
        }
    }
}

/// A value in one form: fields in the order of their names.
fn add(hasher: &mut blake3::Hasher, value: &Json) {
    match value {
        Json::Array(items) => {
            hasher.update(b"[");
            hasher.update(&(items.len() as u64).to_le_bytes());
            for item in items {
                add(hasher, item);
            }
        }
        Json::Object(object) => {
            hasher.update(b"{");
            hasher.update(&(object.len() as u64).to_le_bytes());
            for (name, value) in object.sorted() {
                add_bytes(hasher, name.as_bytes());
                add(hasher, value);
            }
        }
        other => add_bytes(hasher, other.to_string().as_bytes()),
    }
}

/// With their number before them, so that neighbours cannot run into each other.
fn add_bytes(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
