//! Rows of all shapes against TRL's own preprocessing (`scripts/data_goldens.py`): the same ids,
//! the same masks, or a difference with its reason.

use std::collections::BTreeMap;

use burn::data::dataset::{Dataset, InMemDataset};
use burn_preference::data::{
    Content, Encode, Example, Format, Json, JsonLines, Labels, Message, PairFormat,
    TokenizeOptions, Tokenized, Truncation, Turns, UnpairedFormat,
};
use tokenizers::Tokenizer;

/// Where we differ on purpose, and why.
const DIFFERENCES: [(&str, &str); 9] = [
    (
        "null kwargs",
        "TRL fails; a null column is a missing one, as datasets write it",
    ),
    (
        "implicit text, an empty side",
        "TRL fails; there is no prompt, and the empty side is an answer that ends at once",
    ),
    (
        "implicit text, a space at the end",
        "TRL looks at the character before the first one, which Python takes for the last: its \
         prompt is all of the chosen text but the space",
    ),
    (
        "string prompt, not repeated",
        "TRL's function drops the string and then fails; it is what the user says",
    ),
    (
        "string prompt, another one",
        "TRL's function drops the string; which of the two was asked is unknown: an error",
    ),
    (
        "string answers",
        "TRL fails; beside messages a string is what the assistant says",
    ),
    (
        "a prompt of messages that is repeated",
        "TRL asks the question twice; no conversation is its own continuation",
    ),
    (
        "no message",
        "a completion without a token: dropped and reported; TRL keeps the row",
    ),
    (
        "nobody answers",
        "no token counts: dropped and reported; TRL's assistant-only loss has none either, and its \
         DPO trains on what the user says",
    ),
];

/// What Python's `json.dumps(…, ensure_ascii=False)` writes: the filter `tojson`.
fn python_json(json: &Json) -> String {
    match json {
        Json::Array(items) => {
            let items: Vec<_> = items.iter().map(python_json).collect();
            format!("[{}]", items.join(", "))
        }
        Json::Object(object) => {
            let field = |(name, value)| format!("{}: {}", Json::from(name), python_json(value));
            let fields: Vec<_> = object.iter().map(field).collect();
            format!("{{{}}}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

/// The template of the script, and for each byte of what it gives whether the assistant writes it.
fn render(messages: &[Message], text: &Encode<'_>) -> (String, Vec<bool>) {
    let mut rendered = String::new();
    let mut counted = Vec::new();
    let mut push = |part: &str, counts: bool| {
        rendered += part;
        counted.resize(rendered.len(), counts);
    };
    if let Some(mood) = text.chat_template_kwargs.get("mood") {
        let mood = mood.as_str().unwrap();
        push(&format!("<|start|>system\nMood: {mood}<|end|>\n"), false);
    }
    if let Some(tools) = text.tools {
        let tools = python_json(tools);
        push(&format!("<|start|>system\nTools: {tools}<|end|>\n"), false);
    }
    for message in messages {
        push(&format!("<|start|>{}\n", message.role), false);
        let calls = match message.other.get("tool_calls") {
            Some(calls) => python_json(calls),
            None => String::new(),
        };
        let said = format!("{}{calls}<|end|>\n", message.text().unwrap());
        push(&said, message.role == "assistant");
    }
    if text.add_generation_prompt {
        push("<|start|>assistant\n", false);
        if text.chat_template_kwargs.get("thinking") == Some(&Json::Bool(false)) {
            push("<think>\n</think>\n", false);
        }
    }
    (rendered, counted)
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn encode(tokenizer: &Tokenizer, text: &Encode<'_>) -> Result<(Vec<u32>, Vec<bool>), Failure> {
    let (whole, counted, special) = match text.content {
        Content::Plain(plain) => {
            let is_open = text.add_generation_prompt || plain.ends_with("<|end|>");
            let end = if is_open { "" } else { "<|end|>" };
            (format!("{plain}{end}"), None, true)
        }
        Content::Conversation(messages) => {
            let (whole, counted) = render(messages, text);
            (whole, Some(counted), false)
        }
    };
    let encoding = tokenizer.encode(whole, special)?;
    let ids = encoding.get_ids().to_vec();
    let counts = |&(start, _): &(usize, usize)| counted.as_ref().is_none_or(|c| c[start]);
    let counted = encoding.get_offsets().iter().map(counts).collect();
    Ok((ids, counted))
}

struct Goldens {
    tokenizer: Tokenizer,
    cases: Vec<Json>,
}

fn goldens() -> Goldens {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/trl_rows.json");
    let file: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tokenizer = Tokenizer::from_bytes(file.get("tokenizer").unwrap().to_string()).unwrap();
    Goldens {
        tokenizer,
        cases: file.get("cases").unwrap().as_array().unwrap().to_vec(),
    }
}

/// What we make of a row, in the form of the fixture; an error or a reason to drop it is a string.
type Ours = Result<(Vec<u32>, Vec<Vec<u32>>, Vec<String>), String>;

fn ours<F: Format>(
    row: &Json,
    format: F,
    tokenizer: &Tokenizer,
    turns: Turns,
    with_marks: bool,
) -> Ours
where
    F::Label: Labels,
{
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("row.jsonl");
    std::fs::write(&path, row.to_string()).unwrap();
    let rows = JsonLines::new(&path, format).read().unwrap();
    let rows: Result<Vec<_>, _> = rows.collect();
    let rows = InMemDataset::new(rows.map_err(|error| error.to_string())?);
    let options = TokenizeOptions::new(Truncation::Drop { max_length: 9999 }).with_turns(turns);
    let marks = |text: Encode<'_>| encode(tokenizer, &text);
    let ids = |text: Encode<'_>| encode(tokenizer, &text).map(|(ids, _)| ids);
    let of = |example: Example<Vec<u32>, F::Label>| {
        let counted = example.sequences().into_iter().map(|sequence| {
            let all = vec![true; sequence.completion().len()];
            let counted = sequence.counted().unwrap_or(&all);
            counted.iter().map(|&c| if c { '1' } else { '0' }).collect()
        });
        (
            example.prompt.clone(),
            example.completions().to_vec(),
            counted.collect(),
        )
    };
    macro_rules! first {
        ($tokenizer:expr) => {{
            let tokens = Tokenized::new(rows, $tokenizer, options).map_err(|e| e.to_string())?;
            match tokens.report().dropped.first() {
                Some(dropped) => Err(dropped.reason.to_string()),
                None => Ok(of(tokens.get(0).unwrap())),
            }
        }};
    }
    if with_marks {
        first!(marks)
    } else {
        first!(ids)
    }
}

fn ids(json: &Json) -> Vec<u32> {
    serde_json::from_str(&json.to_string()).unwrap()
}

/// Whether ours is what the fixture says, and in words if not.
fn difference(case: &Json, ours: &Ours, is_whole: bool) -> Option<String> {
    let (prompt, completions, counted) = match ours {
        Ok(ours) => ours,
        // Rows that neither of us takes.
        Err(_) if case.get("error").is_some() => return None,
        Err(error) => return Some(format!("ours: {error}")),
    };
    if let Some(error) = case.get("error") {
        return Some(format!("TRL: {error}"));
    }
    if *prompt != ids(&case["prompt"]) {
        return Some(format!("prompt {prompt:?}, TRL {}", case["prompt"]));
    }
    let theirs: Vec<_> = case["completions"]
        .as_array()
        .unwrap()
        .iter()
        .map(ids)
        .collect();
    if *completions != theirs {
        return Some(format!("completions {completions:?}, TRL {theirs:?}"));
    }
    let masks = match case.get("counted") {
        Some(masks) if !is_whole => {
            let masks = masks.as_array().unwrap().iter();
            masks
                .map(|mask| mask.as_str().unwrap().to_owned())
                .collect()
        }
        // Strings, and what DPO and KTO count.
        _ => theirs
            .iter()
            .map(|ids| "1".repeat(ids.len()))
            .collect::<Vec<_>>(),
    };
    (*counted != masks).then(|| format!("counted {counted:?}, TRL {masks:?}"))
}

#[test]
fn rows_of_all_shapes_are_tokenized_as_trl_does() {
    let Goldens { tokenizer, cases } = goldens();
    assert!(cases.len() >= 120);
    let mut expected = BTreeMap::from(DIFFERENCES);
    let mut seen = BTreeMap::new();
    let mut same = 0;
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let row = &case["row"];
        let of = |turns, marks| {
            if row.get("label").is_some() {
                ours(row, UnpairedFormat::default(), &tokenizer, turns, marks)
            } else {
                ours(row, PairFormat::default(), &tokenizer, turns, marks)
            }
        };
        // Turns found by rendering, turns that the tokenizer marks, and all of them.
        let ways = [
            (Turns::Assistant, false),
            (Turns::Assistant, true),
            (Turns::All, false),
        ];
        let found =
            ways.map(|(turns, marks)| difference(case, &of(turns, marks), turns == Turns::All));
        if let Some(text) = found.iter().flatten().next() {
            seen.insert(name, text.clone());
        } else {
            same += 1;
        }
    }
    let mut unexplained = Vec::new();
    println!("{same} of {} rows as TRL has them", cases.len());
    for (name, found) in &seen {
        match expected.remove(name) {
            Some(reason) => println!("{name}: {reason}"),
            None => unexplained.push(format!("{name}: {found}")),
        }
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
    assert!(expected.is_empty(), "no longer different: {expected:?}");
}
