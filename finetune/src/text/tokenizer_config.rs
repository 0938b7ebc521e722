//! Special tokens and templates from the files beside `tokenizer.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::error::{ChatError, failed};

/// `tokenizer_config.json` and the older and newer files that go before it, as transformers 5.24 reads
/// them.
pub(super) struct TokenizerConfig {
    values: Map<String, Value>,
    /// File that the ids of `added` stand in.
    ids: PathBuf,
    /// By their ids.
    added: BTreeMap<u32, AddedToken>,
    /// By their names: `default`, and `tool_use` for conversations with tools.
    pub templates: BTreeMap<String, String>,
}

/// Names of special tokens, in the order in which transformers adds them.
const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

impl TokenizerConfig {
    pub fn read(folder: &Path) -> Result<Self, ChatError> {
        let path = folder.join("tokenizer_config.json");
        let mut values = read_object(&path)?.ok_or_else(|| failed(&path, "No such file"))?;
        let mut added = BTreeMap::new();
        if let Some(Value::Object(tokens)) = values.remove("added_tokens_decoder") {
            for (id, token) in tokens {
                let id: u32 = id.parse().map_err(|error| failed(&path, error))?;
                let token = added_token(&token, false);
                added.insert(id, token.ok_or_else(|| failed(&path, no_token(id)))?);
            }
        } else {
            let older = folder.join("special_tokens_map.json");
            values.extend(read_object(&older)?.unwrap_or_default());
        }
        let mut config = Self {
            templates: templates(folder, &values)?,
            values,
            ids: path,
            added,
        };
        let path = folder.join("added_tokens.json");
        if config.added.is_empty()
            && let Some(tokens) = read_object(&path)?
        {
            let special: BTreeSet<String> = config.special().map(|(_, of)| of.content).collect();
            for (text, id) in tokens {
                let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let wrong = || failed(&path, format!("{text:?}: expected an id, found {id}"));
                let token = AddedToken::from(text.clone(), special.contains(&text));
                config.added.insert(number.ok_or_else(wrong)?, token);
            }
            config.ids = path;
        }
        Ok(config)
    }

    /// A value of `tokenizer_config.json`, null where there is none.
    pub fn value(&self, key: &str) -> &Value {
        self.values.get(key).unwrap_or(&Value::Null)
    }

    /// Special tokens with the names that templates know them by.
    pub fn named(&self) -> impl Iterator<Item = (&str, AddedToken)> {
        let others = self.values.keys().map(String::as_str);
        let others = others.filter(|name| name.ends_with("_token") && !NAMES.contains(name));
        let keys = NAMES.into_iter().chain(others);
        let keys = keys.map(|name| (name, self.value(name)));
        let more = self.value("extra_special_tokens").as_object();
        let more = more.into_iter().flatten();
        let all = keys.chain(more.map(|(name, token)| (name.as_str(), token)));
        all.filter_map(|(name, token)| Some((name, added_token(token, true)?)))
    }

    /// All special tokens, and the names of those that have one.
    fn special(&self) -> impl Iterator<Item = (Option<&str>, AddedToken)> {
        let lists = ["extra_special_tokens", "additional_special_tokens"];
        let mut lists = lists.into_iter().map(|key| self.value(key).as_array());
        let more = lists.find_map(|list| list.filter(|list| !list.is_empty()));
        let more = more.into_iter().flatten();
        let more = more.filter_map(|token| Some((None, added_token(token, true)?)));
        let named = self.named().map(|(name, token)| (Some(name), token));
        named.chain(more)
    }

    /// Adds what only these files name to a tokenizer: a text that is a special token there is one
    /// here, too. Padding and the end that a model of `vocab` words has no word for are left out: rows
    /// may be filled by another token, and a model without an end is refused.
    pub fn add_tokens(&self, tokenizer: &mut Tokenizer, vocab: usize) -> Result<(), ChatError> {
        let there = tokenizer.get_added_tokens_decoder();
        let texts: BTreeSet<&str> = there.values().map(|token| token.content.as_str()).collect();
        let next = tokenizer.get_vocab_size(true);
        let ends = ["pad_token", "eos_token"].map(|name| added_token(self.value(name), true));
        let has_no_word = |token: &AddedToken, id: Option<u32>| {
            let mut ends = ends.iter().flatten();
            let is_new = tokenizer.token_to_id(&token.content).is_none();
            let id = id.map_or(next, |id| id as usize);
            is_new && id >= vocab && ends.any(|end| end.content == token.content)
        };
        let special: Vec<_> = self.special().collect();
        let mut tokens: Vec<(Option<u32>, AddedToken)> = Vec::new();
        for (&id, token) in &self.added {
            let is_named = special
                .iter()
                .any(|(name, named)| name.is_some() && named.content == token.content);
            let special = token.special || is_named;
            tokens.push((Some(id), token.clone().special(special)));
        }
        for (_, token) in special {
            let mut known = tokens.iter().map(|(_, token)| token.content.as_str());
            if !texts.contains(token.content.as_str()) && known.all(|text| text != token.content) {
                tokens.push((None, token));
            }
        }
        tokens.retain(|(id, token)| !has_no_word(token, *id));
        let new: Vec<bool> = tokens
            .iter()
            .map(|(_, token)| tokenizer.token_to_id(&token.content).is_none())
            .collect();
        let added: Vec<AddedToken> = tokens.iter().map(|(_, token)| token.clone()).collect();
        tokenizer.add_tokens(&added);
        for ((id, token), is_new) in tokens.into_iter().zip(new) {
            let found = tokenizer.token_to_id(&token.content);
            if let (Some(expected), true, Some(found)) = (id, is_new, found)
                && expected != found
            {
                let token = token.content;
                return Err(ChatError::Id {
                    path: self.ids.clone(),
                    token,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}

fn no_token(id: u32) -> String {
    format!("added_tokens_decoder: no token at {id}")
}

/// A text, or an object with its text and flags.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    let text = value.as_str().or_else(|| value["content"].as_str())?;
    let flag = |name: &str| value[name].as_bool();
    let special = special || flag("special").unwrap_or(false);
    let token = AddedToken::from(text, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false));
    Some(match flag("normalized") {
        Some(normalized) => token.normalized(normalized),
        None => token,
    })
}

/// The templates of files of their own, or else of `tokenizer_config.json`.
fn templates(
    folder: &Path,
    values: &Map<String, Value>,
) -> Result<BTreeMap<String, String>, ChatError> {
    let mut templates = BTreeMap::new();
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| failed(path, error));
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        templates.insert("default".to_owned(), read(&path)?);
    }
    let more = folder.join("additional_chat_templates");
    if more.is_dir() {
        for entry in fs::read_dir(&more).map_err(|error| failed(&more, error))? {
            let path = entry.map_err(|error| failed(&more, error))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "jinja")
            {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                templates.insert(name.into_owned(), read(&path)?);
            }
        }
    }
    if !templates.is_empty() {
        return Ok(templates);
    }
    let one = |template: &Value| template.as_str().map(str::to_owned);
    match values.get("chat_template") {
        Some(Value::Array(several)) => {
            let several = several
                .iter()
                .filter_map(|of| Some((one(&of["name"])?, one(&of["template"])?)));
            templates.extend(several);
        }
        Some(template) => templates.extend(one(template).map(|text| ("default".to_owned(), text))),
        None => {}
    }
    Ok(templates)
}

/// A file of one JSON object, if there is one.
pub(super) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, ChatError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let json = serde_json::from_str(&text);
            json.map(Some).map_err(|error| failed(path, error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, error)),
    }
}
