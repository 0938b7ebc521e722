//! Feature `data`: rows as people have them, what is wrong with them, and the way to tensors.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::split::split_dataloader;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::{Dataset, InMemDataset};
use burn::tensor::{Device, Tensor};
use burn_preference::data::{
    Collator, Cursor, DataError, DemonstrationFormat, Desirable, Encode, EpochLoader, Example,
    Format, Json, JsonLines, Mismatched, PairFormat, PairTokens, PromptFormat, PromptOnly,
    RankedFormat, Reason, ScoreField, Scores, Text, Tokenized, Truncation, UnpairedFormat,
    split_by,
};
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use burn_preference::{PolicyPair, SequenceLogProbs, TokenLogProbs};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::device::device;
use crate::support::{ZipEqual, cases, to_vec};

struct File {
    _dir: TempDir,
    path: PathBuf,
}

fn file(content: impl AsRef<[u8]>) -> File {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    fs::write(&path, content).unwrap();
    File { _dir: dir, path }
}

fn plain(text: &str) -> Text {
    Text::Plain(text.to_owned())
}

/// A token per byte, and 0 at the end of a completion.
#[expect(clippy::unnecessary_wraps, reason = "what `Tokenized` asks for")]
fn bytes(text: Encode<'_>) -> Result<Vec<u32>, Infallible> {
    let plain = text.content.as_plain().unwrap();
    let end = (!text.add_generation_prompt).then_some(0);
    Ok(plain.bytes().map(u32::from).chain(end).collect())
}

fn only<F: Format>(content: &str, format: F) -> Result<Example<Text, F::Label>, DataError> {
    JsonLines::new(&file(content).path, format)
        .open()?
        .example(0)
}

fn pair(content: &str) -> Result<Example<Text, burn_preference::data::Preference>, DataError> {
    only(content, PairFormat::default())
}

#[test]
fn pairs_with_a_prompt() {
    let row = pair(r#"{"prompt": "2+2=", "chosen": "4", "rejected": "5", "tree": "a"}"#).unwrap();
    assert_eq!(row.prompt, plain("2+2="));
    assert_eq!((row.chosen(), row.rejected()), (&plain("4"), &plain("5")));
    assert_eq!(row.columns["tree"], Json::from("a"));
    assert_eq!(row.columns.len(), 1);
    assert_eq!(row.line, Some(1));
}

#[test]
fn pairs_whose_prompt_is_what_both_begin_with() {
    let of = |chosen: &str, rejected: &str| {
        let row = serde_json::json!({"chosen": chosen, "rejected": rejected});
        let row = pair(&row.to_string()).unwrap();
        [&row.prompt, row.chosen(), row.rejected()].map(|text| text.as_plain().unwrap().to_owned())
    };
    // As `trl.extract_prompt` documents it: the space goes to the completions.
    let sky = of("The sky is blue.", "The sky is green.");
    assert_eq!(sky, ["The sky is", " blue.", " green."]);
    assert_eq!(of("Q: é!", "Q: è!"), ["Q:", " é!", " è!"]); // é and è share their first byte
    // No side is left empty.
    assert_eq!(of("ab", "abc"), ["a", "b", "bc"]);
    assert_eq!(of("same", "same"), ["sam", "e", "e"]);
    assert_eq!(of("", "b"), ["", "", "b"]);
    assert_eq!(of("x", "y"), ["", "x", "y"]);
}

#[test]
fn conversations() {
    let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let explicit = serde_json::json!({
        "prompt": [turn("user", "2+2?")],
        "chosen": [turn("assistant", "4")],
        "rejected": [turn("assistant", "5")],
    });
    let implicit = serde_json::json!({
        "chosen": [turn("user", "2+2?"), turn("assistant", "4")],
        "rejected": [turn("user", "2+2?"), turn("assistant", "5")],
    });
    let explicit = pair(&explicit.to_string()).unwrap();
    assert_eq!(explicit, pair(&implicit.to_string()).unwrap());
    let messages = explicit.chosen().as_conversation().unwrap();
    assert_eq!(
        (&*messages[0].role, &*messages[0].text().unwrap()),
        ("assistant", "4")
    );
    assert!(explicit.chosen().as_plain().is_none());

    let named = serde_json::json!({
        "prompt": [{"role": "user", "content": "?", "name": "Ada"}], "chosen": "a", "rejected": "b",
    });
    let row = pair(&named.to_string()).unwrap();
    assert_eq!(
        row.prompt.as_conversation().unwrap()[0].other["name"],
        Json::from("Ada")
    );
}

#[test]
fn demonstrations() {
    let read = |row: Value| only(&row.to_string(), DemonstrationFormat::default());
    let row = read(json!({"prompt": "p", "completion": "c"})).unwrap();
    assert_eq!((&row.prompt, row.completion()), (&plain("p"), &plain("c")));

    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let [u, a] = [turn("user", "2+2?"), turn("assistant", "4")];
    let [sure, yes] = [turn("user", "Sure?"), turn("assistant", "Yes.")];
    let length = |text: &Text| text.as_conversation().unwrap().len();
    let system = turn("system", "Be brief.");
    let row = read(json!({"messages": [system, u, a, sure, yes]})).unwrap();
    assert_eq!((length(&row.prompt), length(row.completion())), (2, 3));
    // The same conversation in two columns.
    let split = json!({"prompt": [system, u], "completion": [a, sure, yes]});
    assert_eq!(read(split).unwrap().completion(), row.completion());
    // A completion without a prompt ends with its only answer that counts, as that of a label does.
    let implicit = read(json!({"completion": [u, a, sure, yes]})).unwrap();
    assert_eq!(
        (length(&implicit.prompt), length(implicit.completion())),
        (3, 1)
    );
    // The prompt that UltraChat repeats beside its messages.
    let repeated = read(json!({"prompt": "2+2?", "messages": [u, a]})).unwrap();
    assert!(repeated.columns.get("prompt").is_none());
    let other = read(json!({"prompt": "3+3?", "messages": [u, a]})).unwrap();
    assert!(other.columns.get("prompt").is_some());
    // ShareGPT's names, in a column of another name.
    let format = DemonstrationFormat {
        messages: "conversations".into(),
        ..DemonstrationFormat::default()
    };
    let share = json!({"conversations": [
        {"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"},
    ]});
    let share = only(&share.to_string(), format).unwrap();
    assert_eq!((length(&share.prompt), length(share.completion())), (1, 1));

    for (row, message) in [
        (
            json!({"prompt": "p"}),
            "`completion`: expected a string or a list of messages, or messages in `messages`, found nothing",
        ),
        (
            json!({"prompt": null, "completion": "c"}),
            "`prompt`: expected a string or a list of messages, found null",
        ),
        (
            json!({"messages": "text"}),
            "`messages`: expected a list of messages, found a string",
        ),
        (json!({"messages": []}), "found no answer"),
        (json!({"messages": [u]}), "found no answer"),
        (
            json!({"messages": [a, u]}),
            "found an answer at the beginning",
        ),
    ] {
        let error = read(row).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn unpaired_and_ranked() {
    let row = r#"{"prompt": "p", "completion": "c", "label": false}"#;
    let row = only(row, UnpairedFormat::default()).unwrap();
    assert_eq!(
        (row.completion(), row.label),
        (&plain("c"), Desirable(false))
    );

    let list = r#"{"prompt": "p", "responses": ["a", "b"], "scores": [1, 2.5], "ranks": [1, 2]}"#;
    let scored = |order| {
        let format = RankedFormat {
            order,
            ..RankedFormat::default()
        };
        only(list, format).unwrap().label
    };
    assert_eq!(
        RankedFormat::default().order,
        ScoreField::Scores("scores".into())
    );
    assert_eq!(
        scored(ScoreField::Scores("scores".into())),
        Scores(vec![1.0, 2.5])
    );
    assert_eq!(
        scored(ScoreField::Ranks("ranks".into())),
        Scores(vec![-1.0, -2.0])
    );
    assert_eq!(scored(ScoreField::BestFirst), Scores(vec![0.0, -1.0]));
}

#[test]
fn prompts_of_rows_of_any_kind() {
    let parse = |row: &str| only(row, PromptFormat::default());
    let alone = parse(r#"{"prompt": "2+2=", "tree": "a"}"#).unwrap();
    assert_eq!((alone.prompt, alone.label), (plain("2+2="), PromptOnly));
    // What else the row has is carried on and not looked at.
    let pair = r#"{"tree": "a", "prompt": "2+2=", "chosen": 4, "rejected": [], "label": "?"}"#;
    let pair = parse(pair).unwrap();
    assert!(pair.completions().is_empty());
    let columns: Vec<_> = pair.columns.iter().map(|(name, _)| name).collect();
    assert_eq!(columns, ["tree", "chosen", "rejected", "label"]);

    let turns = r#"{"prompt": [{"role": "user", "content": "?"}], "tools": [{"x": 1}]}"#;
    let turns = parse(turns).unwrap();
    assert_eq!(turns.prompt.as_conversation().unwrap().len(), 1);
    assert!(turns.columns.get("tools").is_some());
    let chat = PromptFormat {
        as_conversation: true,
        ..PromptFormat::default()
    };
    let said = only(r#"{"prompt": "?"}"#, chat).unwrap();
    assert_eq!(said.prompt, turns.prompt);
    let named = PromptFormat::from("question");
    assert_eq!(
        only(r#"{"question": "?"}"#, named).unwrap().prompt,
        plain("?")
    );

    let ids = Example::prompt_only(vec![1, 2]);
    assert!(ids.sequences().is_empty());
    assert_eq!(ids.clone().with_counted(&[]).unwrap(), ids);
    for (row, field, found) in [
        (
            r#"{"chosen": "a", "rejected": "b"}"#,
            "prompt",
            "nothing beside `chosen`, `rejected`",
        ),
        (r#"{"prompt": null}"#, "prompt", "null"),
        (r#"{"prompt": []}"#, "prompt", "an empty list"),
        (
            r#"{"prompt": [{"role": "user", "content": "?"}], "tools": 1}"#,
            "tools",
            "a number",
        ),
    ] {
        let Err(DataError::Row { source, .. }) = parse(row) else {
            panic!("{row}");
        };
        assert_eq!((source.field(), source.found()), (field, found));
    }
}

#[test]
fn raw_rows_have_their_line_and_no_format() {
    let file = file("\n{\"b\": 1, \"a\": [2]}\n[3]\n\n{\"chosen\": \"c\"}");
    let rows: Vec<_> = JsonLines::new(&file.path, ()).raw().unwrap().collect();
    assert_eq!(rows.len(), 3);
    let (line, row) = rows[0].as_ref().unwrap();
    let fields: Vec<_> = row
        .iter()
        .map(|(name, value)| (name, value.to_string()))
        .collect();
    assert_eq!(
        (*line, fields),
        (2, vec![("b", "1".into()), ("a", "[2]".into())])
    );
    let error = rows[1].as_ref().unwrap_err();
    assert!(matches!(error, DataError::Json { line: 3, .. }), "{error}");
    assert_eq!(rows[2].as_ref().unwrap().0, 5);
    // The limit holds, and another format than `()` is not asked.
    let short = JsonLines::new(&file.path, PairFormat::default());
    let short = short.with_max_line_bytes(16).unwrap();
    let mut short = short.raw().unwrap();
    let error = short.next().unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            DataError::LongLine {
                line: 2,
                max: 16,
                ..
            }
        ),
        "{error}"
    );
    assert!(short.next().unwrap().is_err());
    assert!(short.next().unwrap().is_ok() && short.next().is_none());
    assert!(JsonLines::new("/nowhere/rows.jsonl", ()).raw().is_err());
}

#[test]
fn an_example_past_the_last_row_is_an_error() {
    let file = file(r#"{"chosen": "a", "rejected": "b"}"#);
    let rows = JsonLines::new(&file.path, PairFormat::default());
    let error = rows.open().unwrap().example(1).unwrap_err();
    let expected = "`index`: expected less than 1, the number of rows, found 1";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn fields_of_other_names() {
    let format = PairFormat {
        prompt: "question".into(),
        implicit_prompt: false,
        chosen: "good".into(),
        rejected: "bad".into(),
    };
    let row = only(r#"{"question": "q", "good": "g", "bad": "b"}"#, format).unwrap();
    assert_eq!(row.prompt, plain("q"));
    assert!(row.columns.is_empty());
}

/// What cannot be read stops nothing in a column that is not read.
#[test]
fn values_that_are_not_read() {
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let values = [
        (
            r#"{"a": 1, "b\"}": ["],"], "a": NaN}"#.to_owned(),
            "a value in which the field `a` stands twice",
        ),
        (deep(300), "a value of more than 128 levels"),
    ];
    for (value, expected) in values {
        let row = format!(r#"{{"meta": {value} , "chosen": "ab", "rejected": "ac", "id": 7}}"#);
        let row = only(&row, PairFormat::default()).unwrap();
        assert_eq!(
            row.columns.get("meta"),
            Some(&Json::NotJson(expected.into()))
        );
        assert_eq!(row.columns["id"].as_f64(), Some(7.0));
        let row = format!(r#"{{"prompt": {value}, "chosen": "ab", "rejected": "ac"}}"#);
        let error = only(&row, PairFormat::default()).unwrap_err();
        let text = "`prompt`: expected a string or a list of messages";
        assert!(
            error
                .to_string()
                .ends_with(&format!("{text}, found {expected}")),
            "{error}"
        );
    }
    for row in [
        r#"{"meta": {"a": 1, "a": 2}, "chosen": "ab", "rejected": "ac""#,
        r#"{"meta": {"a": 1, "a": 2]}, "chosen": "ab", "rejected": "ac"}"#,
    ] {
        let error = only(row, PairFormat::default()).unwrap_err();
        assert!(matches!(error, DataError::Json { .. }), "{error}");
    }
}

/// Files that are near to JSON lines, and prompts that are null.
#[test]
fn errors_of_files_say_what_helps() {
    let read = |content: Vec<u8>| {
        let file = self::file(content);
        let mut rows = JsonLines::new(&file.path, PairFormat::default())
            .read()
            .unwrap();
        rows.next().unwrap().unwrap_err().to_string()
    };
    let says = read(b"{\"chosen\": \"caf\xe9\", \"rejected\": \"b\"}\n".to_vec());
    assert!(
        says.contains("a string that is not UTF-8 (`iconv -f LATIN1"),
        "{says}"
    );
    let says = read(b"{\n  \"chosen\": \"a\"\n}\n".to_vec());
    assert!(says.contains("`jq -c . FILE > FILE.jsonl`"), "{says}");
    let row = r#"{"prompt": null, "chosen": "ab", "rejected": "ac"}"#;
    let mut turns = PairFormat::default();
    turns.prompt.as_conversation = true;
    let says = only(row, turns).unwrap_err().to_string();
    assert!(says.ends_with("found null"), "{says}");
    let row = r#"{"prompt": null, "completion": "c", "label": true}"#;
    let says = only(row, UnpairedFormat::default())
        .unwrap_err()
        .to_string();
    assert!(
        says.ends_with("`prompt`: expected a string or a list of messages, found null"),
        "{says}"
    );
}

#[test]
fn errors_name_file_line_and_field() {
    let says = |error: DataError, expected: &str| {
        let text = error.to_string();
        let (path, rest) = text.split_once(".jsonl:").unwrap();
        assert!(path.ends_with("rows"), "{text}");
        assert_eq!(rest, expected);
    };
    let second = |row: &str| {
        let content = format!("\n{{\"chosen\": \"a\", \"rejected\": \"b\"}}\n\n{row}\n");
        let file = file(content);
        let rows = JsonLines::new(&file.path, PairFormat::default())
            .open()
            .unwrap();
        assert_eq!(rows.len(), 2);
        rows.example(0).unwrap();
        rows.example(1).unwrap_err()
    };
    let text = "a string or a list of messages";
    says(
        second(r#"{"chosen": "a"}"#),
        &format!("4: `rejected`: expected {text}, found nothing beside `chosen`"),
    );
    says(
        second(r#"{"chosen": 3, "rejected": "b"}"#),
        &format!("4: `chosen`: expected {text}, found a number"),
    );
    says(
        second(r#"{"chosen": [{"role": "user"}], "rejected": "b"}"#),
        "4: `chosen[0].content`: expected a string or a list of typed parts (an assistant's \
         `tool_calls` may stand alone), found nothing",
    );
    says(
        second(r#"{"chosen": ["hi"], "rejected": "b"}"#),
        "4: `chosen[0]`: expected a message with role and content, found a string",
    );
    says(
        second(r#"{"chosen": [], "rejected": "b"}"#),
        "4: `rejected`: expected messages, as the chosen ones, found a string",
    );
    says(
        second(r#"{"chosen": "a", "chosen": "b", "rejected": "c"}"#),
        "4: the field `chosen` stands twice at column 47",
    );
    says(
        second("[1]"),
        "4: invalid type: sequence, expected a JSON object at column 0",
    );
    says(
        second(r#"{"chosen": "a""#),
        "4: EOF while parsing an object at column 14",
    );

    let unpaired = |label: &str| {
        let row = format!(r#"{{"prompt": "p", "completion": "c", "label": {label}}}"#);
        only(&row, UnpairedFormat::default()).unwrap_err()
    };
    says(
        unpaired("2"),
        "1: `label`: expected true or false, or 1 or 0, found 2",
    );
    says(
        unpaired("\"yes\""),
        "1: `label`: expected true or false, or 1 or 0, found a string",
    );
    let list = |rest: &str| {
        let row = format!(r#"{{"prompt": "p", {rest}}}"#);
        only(&row, RankedFormat::default()).unwrap_err()
    };
    says(
        list(r#""responses": [], "scores": []"#),
        "1: `responses`: expected a list of texts, one at least, found an empty list",
    );
    says(
        list(r#""responses": ["a", "b"], "scores": [1]"#),
        "1: `scores`: expected 2 numbers, one per response, found 1",
    );
    says(
        list(r#""responses": ["a", "b"], "scores": [1, null]"#),
        "1: `scores[1]`: expected a number, found null",
    );

    let Err(DataError::Row { line, source, .. }) = pair(r#"{"chosen": "a"}"#) else {
        panic!("another error");
    };
    assert_eq!(
        (line, source.field(), source.found()),
        (1, "rejected", "nothing beside `chosen`")
    );
    assert_eq!(source.expected(), text);
    let missing = JsonLines::new("/nowhere/rows.jsonl", PairFormat::default()).open();
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .starts_with("/nowhere/rows.jsonl: ")
    );
}

#[test]
fn files_as_editors_and_systems_write_them() {
    let rows = "\u{feff}{\"chosen\": \"a\", \"rejected\": \"b\"}\r\n   \r\n\
                {\"chosen\": \"c\", \"rejected\": \"d\"}";
    let file = file(rows);
    let random = JsonLines::new(&file.path, PairFormat::default())
        .open()
        .unwrap();
    assert_eq!(random.len(), 2);
    assert!(!random.is_empty());
    let in_order: Vec<_> = JsonLines::new(&file.path, PairFormat::default())
        .read()
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(
        in_order,
        [random.example(0).unwrap(), random.example(1).unwrap()]
    );
    assert_eq!(in_order[1].line, Some(3));
    assert!(
        JsonLines::new(&self::file("").path, PairFormat::default())
            .open()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn compressed_files_are_read_in_order() {
    let packed = |rows: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(rows.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    // Two members, as `cat a.gz b.gz` makes them.
    let first = packed("{\"chosen\": \"a\", \"rejected\": \"b\"}\n");
    let second = packed("{\"chosen\": \"c\", \"rejected\": \"d\"}\n{\"chosen\": \"e\"}\n");
    let whole = file([first.clone(), second.clone()].concat());
    let mut rows = JsonLines::new(&whole.path, PairFormat::default())
        .read()
        .unwrap();
    assert_eq!(rows.next().unwrap().unwrap().chosen(), &plain("a"));
    assert_eq!(rows.next().unwrap().unwrap().line, Some(2));
    assert!(
        rows.next()
            .unwrap()
            .unwrap_err()
            .to_string()
            .contains(".jsonl:3: `rejected`")
    );
    assert!(rows.next().is_none());

    let torn = file(&second[..second.len() - 9]);
    let rows = JsonLines::new(&torn.path, PairFormat::default())
        .read()
        .unwrap();
    let last = rows.last().unwrap();
    assert!(matches!(last, Err(DataError::File { .. })), "{last:?}");

    let error = JsonLines::new(&whole.path, PairFormat::default())
        .open()
        .unwrap_err();
    assert!(error.to_string().contains("no random access"), "{error}");
}

/// Counted from 0 over prompt and completion.
fn ids(prompt: usize, completions: &[usize]) -> (Vec<u32>, Vec<Vec<u32>>) {
    let count = |from: usize, n: usize| (0..).skip(from).take(n).collect();
    (
        count(0, prompt),
        completions.iter().map(|&n| count(prompt, n)).collect(),
    )
}

/// The lengths after truncation, by way of a dataset of one list.
fn truncated(
    truncation: Truncation,
    prompt: usize,
    completions: &[usize],
) -> Result<(Vec<u32>, Vec<Vec<u32>>), Reason> {
    let text = |n: usize| plain(&"x".repeat(n));
    let list = Example::ranked(
        text(prompt),
        completions.iter().map(|&n| text(n)).collect(),
        vec![0.0; completions.len()],
    )
    .unwrap();
    let count = |text: Encode<'_>| -> Result<Vec<u32>, Infallible> {
        Ok((0..).take(text.content.as_plain().unwrap().len()).collect())
    };
    let tokens = Tokenized::new(InMemDataset::new(vec![list]), count, truncation).unwrap();
    match tokens.report().dropped.as_slice() {
        [] => {
            let row = tokens.get(0).unwrap();
            Ok((row.prompt.clone(), row.completions().to_vec()))
        }
        [dropped] => Err(dropped.reason.clone()),
        _ => unreachable!("one row"),
    }
}

#[test]
fn truncation_does_what_its_name_says() {
    let max_length = 10;
    let drop = Truncation::Drop { max_length };
    assert_eq!(truncated(drop, 4, &[6, 2]), Ok(ids(4, &[6, 2])));
    assert_eq!(truncated(drop, 4, &[7, 2]), Err(Reason::TooLong));

    let prompt_end = Truncation::PromptMiddle { max_length };
    let (prompt, completions) = truncated(prompt_end, 9, &[7, 2]).unwrap();
    assert_eq!((prompt, completions), (vec![6, 7, 8], ids(9, &[7, 2]).1));
    assert_eq!(truncated(prompt_end, 9, &[10, 2]), Err(Reason::LosesPrompt));

    let start = Truncation::CompletionStart { max_length };
    assert_eq!(truncated(start, 7, &[9, 2]), Ok(ids(7, &[3, 2])));
    assert_eq!(truncated(start, 10, &[9, 2]), Err(Reason::LosesCompletion));

    let both = Truncation::PromptMiddleThenCompletionStart {
        min_prompt: 4,
        max_length,
    };
    let (prompt, completions) = truncated(both, 9, &[7, 2]).unwrap();
    assert_eq!((prompt, completions), (vec![5, 6, 7, 8], ids(9, &[6, 2]).1));

    for truncation in [drop, prompt_end, start, both] {
        assert_eq!(truncated(truncation, 0, &[1]), Err(Reason::EmptyPrompt));
        assert_eq!(
            truncated(truncation, 1, &[1, 0]),
            Err(Reason::EmptyCompletion)
        );
    }
}

proptest! {
    #![proptest_config(cases(200))]

    /// Nothing is longer than allowed, empty, or something else than a piece of what it was; what
    /// fits is not touched.
    #[test]
    fn truncation_keeps_its_promises(
        prompt in 0_usize..12,
        completions in prop::collection::vec(0_usize..12, 1..4),
        max_length in 2_usize..16,
        min_prompt in 1_usize..12,
        policy in 0..4,
    ) {
        let truncation = match policy {
            0 => Truncation::Drop { max_length },
            1 => Truncation::PromptMiddle { max_length },
            2 => Truncation::CompletionStart { max_length },
            _ => Truncation::PromptMiddleThenCompletionStart {
                min_prompt: min_prompt.min(max_length - 1),
                max_length,
            },
        };
        let (whole_prompt, whole) = ids(prompt, &completions);
        let longest = completions.iter().max().unwrap();
        let fits = prompt + longest <= max_length;
        let something = prompt > 0 && completions.iter().all(|&n| n > 0);
        match truncated(truncation, prompt, &completions) {
            Ok((prompt, completions)) => {
                prop_assert!(!prompt.is_empty() && whole_prompt.ends_with(&prompt));
                for (short, whole) in completions.iter().zip(&whole) {
                    prop_assert!(!short.is_empty() && whole.starts_with(short));
                    prop_assert!(prompt.len() + short.len() <= max_length);
                }
                if fits {
                    prop_assert_eq!(&prompt, &whole_prompt);
                    prop_assert_eq!(&completions, &whole);
                }
                prop_assert!(policy != 0 || fits);
            }
            Err(_) => prop_assert!(!(fits && something)),
        }
    }

    /// Any bytes are a row or an error, in a file as in a stream.
    #[test]
    fn random_bytes_are_rows_or_errors(
        noise in prop::collection::vec(any::<u8>(), 0..60),
        cut in 0_usize..80,
        at in 0_usize..80,
    ) {
        let row = br#"{"prompt": "p", "completion": "c", "label": true}
{"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}"#;
        let mut content = row[..row.len() - cut].to_vec();
        let at = at.min(content.len());
        content.splice(at..at, noise);
        let file = file(&content);
        macro_rules! both {
            ($format:expr) => {
                let in_order: Vec<_> = JsonLines::new(&file.path, $format).read().unwrap().collect();
                if let Ok(rows) = JsonLines::new(&file.path, $format).open() {
                    prop_assert_eq!(in_order.len(), rows.len());
                    for (index, one) in in_order.iter().enumerate() {
                        match (one, rows.example(index)) {
                            (Ok(one), Ok(other)) => prop_assert_eq!(one, &other),
                            (Err(one), Err(other)) => {
                                prop_assert_eq!(one.to_string(), other.to_string());
                            }
                            other => prop_assert!(false, "{other:?}"),
                        }
                    }
                }
            };
        }
        both!(PairFormat::default());
        both!(UnpairedFormat::default());
        both!(DemonstrationFormat::default());
        both!(RankedFormat::default());
    }
}

#[test]
fn the_report_counts_what_is_kept() {
    let pairs = vec![
        Example::pair(plain("abc"), plain("d"), plain("efg")),
        Example::pair(plain("abcdefgh"), plain("ijk"), plain("l")),
        Example::pair(plain("a"), plain("same"), plain("same")),
        Example::pair(plain("a"), plain("far too long"), plain("b")),
        Example::pair(plain(""), plain("b"), plain("c")),
    ];
    let truncation = Truncation::PromptMiddle { max_length: 10 };
    let tokens = Tokenized::new(InMemDataset::new(pairs), bytes, truncation).unwrap();
    let report = tokens.report();
    assert_eq!((report.kept, report.dropped.len()), (3, 2));
    assert_eq!(report.dropped[0].index, 3);
    assert_eq!(report.dropped[0].reason, Reason::LosesPrompt);
    assert_eq!(report.dropped[1].reason, Reason::EmptyPrompt);
    assert_eq!(
        (report.shortened_prompts, report.shortened_completions),
        (1, 0)
    );
    assert_eq!(
        (report.prompts.min, report.prompts.max, report.prompts.sum),
        (1.0, 6.0, 10.0)
    );
    assert_eq!(report.completions.len(), 2);
    assert_eq!(report.completions[0].mean(), f64::from(2 + 4 + 5) / 3.0);
    assert_eq!(report.identical_pairs, 1);
    assert_eq!(report.classes, None);
    assert_eq!(tokens.kept(), [0, 1, 2]);
    let text = report.to_string();
    for line in [
        "rows: 3 kept, 2 dropped",
        "row 3: nothing of what the prompt says would be left",
        "shortened: 1 prompts, 0 completions",
        "tokens of prompts: 1 to 6, mean 3.3",
        "look: 1 pairs whose completions are the same in what counts",
    ] {
        assert!(text.contains(line), "{text}");
    }

    let unpaired = vec![
        Example::unpaired(plain("p"), plain("c"), true),
        Example::unpaired(plain("p"), plain("c"), false),
        Example::unpaired(plain("p"), plain("c"), true),
    ];
    let start = Truncation::CompletionStart { max_length: 2 };
    let unpaired = Tokenized::new(InMemDataset::new(unpaired), bytes, start).unwrap();
    assert_eq!(unpaired.report().classes, Some((2, 1)));
    assert_eq!(unpaired.report().shortened_completions, 3);

    let lists = [
        Example::ranked(plain("p"), vec![plain("a"), plain("bb")], vec![1.0, 1.0]),
        Example::ranked(plain("p"), vec![plain("a")], vec![2.0]),
        Example::ranked(plain("p"), vec![plain("a"), plain("b")], vec![2.0, 1.0]),
        Example::ranked(
            plain("p"),
            vec![plain("a"), plain("b"), plain("c")],
            vec![1.0, 0.0, 1.0],
        ),
    ];
    let lists = lists.map(Result::unwrap).into();
    let lists = Tokenized::new(InMemDataset::new(lists), bytes, truncation).unwrap();
    let report = lists.report();
    assert_eq!((report.tied_lists, report.unordered_lists), (2, 2));
    assert_eq!(report.completions[0].count, 8);
    let printed = report.to_string();
    for line in [
        "lists with equal scores: 2\n",
        "look: 2 lists without an order\n",
    ] {
        assert!(printed.contains(line), "{printed}");
    }
}

#[test]
fn a_tokenizer_that_refuses_names_the_example() {
    let file = file(
        "\n{\"prompt\": \"ok\", \"chosen\": \"a\", \"rejected\": \"b\"}\n\n\
                     {\"prompt\": \"no\", \"chosen\": \"a\", \"rejected\": \"b\"}\n",
    );
    let rows = JsonLines::new(&file.path, PairFormat::default())
        .open()
        .unwrap();
    let picky = |text: Encode<'_>| match text.content.as_plain() {
        Some("no") => Err("not in this language"),
        _ => Ok(vec![1]),
    };
    let error = Tokenized::new(rows, picky, Truncation::Drop { max_length: 9 });
    let Err(error) = error else {
        panic!("accepted")
    };
    let expected = "example 1 (line 4): not in this language";
    assert_eq!(error.to_string(), expected);
}

fn pair_tokens(i: u32) -> Example<Vec<u32>, burn_preference::data::Preference> {
    Example::pair(vec![100 + i], vec![200 + i, 1], vec![300 + i])
}

#[test]
fn pairs_become_two_halves_of_a_batch() {
    let items = vec![pair_tokens(0), pair_tokens(1)];
    let collator = Collator::new(Padding::new(7).to_multiple_of(4).unwrap());
    let batch: PairTokens = collator.batch(items, &device());
    let rows: Vec<i64> = batch.tokens.ids.into_data().iter::<i64>().collect();
    #[rustfmt::skip]
    assert_eq!(rows, [
        100, 200, 1, 7,
        101, 201, 1, 7,
        100, 300, 7, 7,
        101, 301, 7, 7,
    ]);
    let counted: Vec<bool> = batch
        .tokens
        .completion_mask
        .tensor()
        .into_data()
        .iter::<bool>()
        .collect();
    assert_eq!(counted[..4], [false, true, true, false]);
    assert_eq!(counted[12..], [false, true, false, false]);
    let padding: Vec<bool> = batch.tokens.pad_mask.into_data().iter::<bool>().collect();
    assert_eq!(padding[12..], [false, false, true, true]);
    assert_eq!(batch.tokens.sequences[3], Sequence::new(&[101], &[301]));

    let log_probs = SequenceLogProbs::from_values(&[-1., -2., -3., -4.], &[2; 4], &device());
    let pair = PolicyPair::from_concatenated(&log_probs.unwrap()).unwrap();
    let chosen = pair
        .chosen
        .sum()
        .into_data()
        .iter::<f64>()
        .collect::<Vec<_>>();
    assert_eq!(chosen, [-1.0, -2.0]);
}

#[test]
fn lists_of_several_lengths() {
    let items = [
        Example::ranked(
            vec![1],
            vec![vec![2], vec![3], vec![4]],
            vec![3.0, 1.0, 2.0],
        ),
        Example::ranked(vec![5], vec![vec![6]], vec![9.0]),
    ];
    let items = items.map(Result::unwrap).into();
    let batch: burn_preference::data::RankedTokens =
        Collator::new(Padding::new(0)).batch(items, &device());
    assert_eq!((batch.candidates, batch.tokens.len()), (3, 6));
    assert_eq!(batch.tokens.sequences[4], Sequence::new(&[5], &[]));
    let present: Vec<bool> = batch.present.clone().into_data().iter::<bool>().collect();
    assert_eq!(present, [true, true, true, true, false, false]);
    let sequences = batch.tokens.sequences.iter();
    let lengths: Vec<usize> = sequences.map(|s| s.completion().len()).collect();
    let log_probs =
        |value| SequenceLogProbs::from_values(&[value; 6], &lengths, &device()).unwrap();
    // Against a reference as well: what is given is what comes back.
    let relative = log_probs(-1.0).relative_to(log_probs(-1.5)).unwrap();
    let referenced = batch.ranked(relative).unwrap();
    let ratios = to_vec(referenced.candidates().log_ratio());
    assert_eq!(ratios, [0.5; 6]);
    let ranked = batch.ranked(log_probs(-1.0)).unwrap();
    let other = ranked
        .clone()
        .relative_to(log_probs(-1.5).split_candidates(3).unwrap());
    assert_eq!(to_vec(other.unwrap().candidates().log_ratio()), ratios);
    let scores: Vec<f64> = ranked.scores().into_data().iter::<f64>().collect();
    assert_eq!(scores, [3.0, 1.0, 2.0, 9.0, 0.0, 0.0]);
}

#[test]
fn mismatched_completions_are_another_prompts() {
    let unpaired = |prompt: u32, completion: &[u32]| {
        Example::unpaired(vec![prompt], completion.to_vec(), prompt.is_multiple_of(2))
    };
    let rows = vec![
        unpaired(1, &[10]),
        unpaired(1, &[11]),
        unpaired(2, &[20, 20, 20]),
        unpaired(3, &[30]),
    ];
    let rows = InMemDataset::new(rows);
    let keep = Truncation::Drop { max_length: 3 };
    let mismatched = Mismatched::new(rows, keep);
    let items: Vec<_> = mismatched.iter().collect::<Result<_, _>>().unwrap();
    let sequences: Vec<&Sequence> = items.iter().map(|x| &x.label.sequence).collect();
    // Example 0 passes over example 1 (its own prompt) and example 2 (too long).
    let expected = [(1, 30), (1, 30), (2, 30), (3, 10)];
    for (sequence, (prompt, completion)) in sequences.iter().zip_equal(expected) {
        assert_eq!(**sequence, Sequence::new(&[prompt], &[completion]));
    }
    // A batch of one has another prompt's completion as well.
    let batch: burn_preference::data::UnpairedTokens<_> =
        Collator::new(Padding::new(0)).batch(vec![items[2].clone()], &device());
    assert_eq!(batch.mismatched().sequences, [Sequence::new(&[2], &[30])]);
    assert_eq!(
        batch
            .desirable
            .into_data()
            .iter::<bool>()
            .collect::<Vec<_>>(),
        [true]
    );

    let same = Mismatched::new(
        InMemDataset::new(vec![unpaired(1, &[1]), unpaired(1, &[2])]),
        keep,
    );
    let error = same.get(1).unwrap_err().to_string();
    assert!(
        error.starts_with("example 1: there is no completion of another prompt"),
        "{error}"
    );
}

#[test]
fn a_group_is_on_one_side() {
    let rows: Vec<(String, usize)> = (0..100).map(|i| (format!("tree {}", i % 20), i)).collect();
    let group = |row: &(String, usize)| row.0.clone();
    let split = split_by(&InMemDataset::new(rows.clone()), 0.25, 3, group).unwrap();
    assert_eq!((split.train_groups, split.held_out_groups), (15, 5));
    assert_eq!(split.train.len() + split.held_out.len(), 100);
    let names = |rows_of: &[usize]| -> BTreeSet<String> {
        rows_of.iter().map(|&i| rows[i].0.clone()).collect()
    };
    assert!(names(&split.train).is_disjoint(&names(&split.held_out)));
    assert!(split.train.is_sorted() && split.held_out.is_sorted());

    // The order of the rows decides nothing; another seed does.
    let mut backwards = rows.clone();
    backwards.reverse();
    let again = split_by(&InMemDataset::new(backwards.clone()), 0.25, 3, group).unwrap();
    let held: BTreeSet<String> = again
        .held_out
        .iter()
        .map(|&i| backwards[i].0.clone())
        .collect();
    assert_eq!(held, names(&split.held_out));
    let other = split_by(&InMemDataset::new(rows.clone()), 0.25, 4, group).unwrap();
    assert_ne!(names(&other.held_out), names(&split.held_out));
    let all = split_by(&InMemDataset::new(rows), 1.0, 3, group).unwrap();
    assert!(all.train.is_empty() && all.train_groups == 0);
}

#[test]
fn a_run_goes_on_at_the_next_example() {
    let rows = Arc::new(InMemDataset::new((0..11_u32).collect::<Vec<_>>()));
    let whole = |mut cursor: Cursor, until: u64| {
        let mut seen = Vec::new();
        while cursor.epoch() < until {
            let epoch = cursor.remaining(&rows).unwrap();
            for start in (0..epoch.len()).step_by(3) {
                let batch: Vec<u32> = (start..epoch.len().min(start + 3))
                    .map(|i| epoch.get(i).unwrap())
                    .collect();
                cursor.advance(batch.len());
                seen.push((batch, cursor.clone()));
            }
        }
        seen
    };
    let uninterrupted = whole(Cursor::new(11, 5), 3);
    let epochs: Vec<u32> = uninterrupted.iter().flat_map(|(b, _)| b.clone()).collect();
    assert_eq!(epochs.len(), 33);
    assert_ne!(epochs[..11], epochs[11..22], "each epoch has its own order");
    for stop in 0..uninterrupted.len() {
        let saved = serde_json::to_string(&uninterrupted[stop].1).unwrap();
        let resumed = whole(serde_json::from_str(&saved).unwrap(), 3);
        assert_eq!(resumed, uninterrupted[stop + 1..]);
    }
    let shorter = Arc::new(InMemDataset::new(vec![0_u32; 10]));
    let error = Cursor::new(11, 5).remaining(&shorter).err().unwrap();
    let expected = "the position was saved in a dataset of 11 examples, this one has 10";
    assert_eq!(error.to_string(), expected);
    let read = |json| {
        serde_json::from_str::<Cursor>(json)
            .unwrap_err()
            .to_string()
    };
    assert!(read(r#"{"examples": 1}"#).contains("missing field `seed`"));
    let far = read(r#"{"examples": 3, "seed": 0, "epoch": 0, "consumed": 3}"#);
    assert_eq!(
        far,
        "`consumed`: expected fewer than the 3 examples of an epoch, found 3"
    );
    let mut several = Cursor::new(3, 0);
    several.advance(8);
    assert_eq!((several.epoch(), several.consumed()), (2, 2));
    let mut none = Cursor::new(0, 0);
    none.advance(8);
    assert_eq!(none, Cursor::new(0, 0), "what is saved can be loaded");
}

fn places(cursor: &Cursor, rows: u32) -> Vec<u32> {
    let rows = Arc::new(InMemDataset::new((0..rows).collect::<Vec<_>>()));
    let left = cursor.remaining(&rows).unwrap();
    left.iter().map(Result::unwrap).collect()
}

/// The definition in `Cursor`'s documentation, once more.
fn order_by_definition(rows: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut hasher = blake3::Hasher::new_derive_key("burn-preference data::Cursor order 1");
    hasher.update(&[seed.to_le_bytes(), epoch.to_le_bytes()].concat());
    let mut stream = hasher.finalize_xof();
    let mut order: Vec<u32> = (0..).take(rows).collect();
    for i in (1..rows).rev() {
        let n = i as u64 + 1;
        let mut number = [0; 8];
        let x = loop {
            stream.fill(&mut number);
            let x = u64::from_le_bytes(number);
            if x < u64::MAX / n * n {
                break x;
            }
        };
        order.swap(i, usize::try_from(x % n).unwrap());
    }
    order
}

#[test]
fn the_order_of_an_epoch_is_defined_here() {
    // Numbers that no update may move: a saved position would go on at other rows.
    let known = places(&Cursor::new(10, 7), 10);
    assert_eq!(known, [5, 9, 3, 0, 1, 2, 8, 6, 4, 7]);
    for (rows, seed, epoch) in [
        (0, 1, 0),
        (1, 1, 0),
        (2, 9, 1),
        (1000, 7, 3),
        (1000, u64::MAX, 0),
    ] {
        let cursor = Cursor::new(rows as usize, seed).at_epoch(epoch);
        let expected = order_by_definition(rows as usize, seed, epoch);
        assert_eq!(places(&cursor, rows), expected, "{rows} {seed} {epoch}");
    }
    // All orders of three rows, about equally often: 1000 each, with a standard deviation of 29.
    let mut seen = std::collections::BTreeMap::new();
    for epoch in 0..6000 {
        let order = places(&Cursor::new(3, 1).at_epoch(epoch), 3);
        *seen.entry(order).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 6);
    assert!(
        seen.values().all(|&n: &i32| (n - 1000).abs() < 150),
        "{seen:?}"
    );
}

#[test]
fn seed_and_epoch_are_two_numbers() {
    let order = |seed, epoch| places(&Cursor::new(50, seed).at_epoch(epoch), 50);
    assert_ne!(order(0, 1), order(1, 0));
    assert_ne!(order(3, 4), order(4, 3));
    assert_eq!(order(3, 4), order(3, 4));
}

/// A step must not cost what an epoch does.
#[test]
fn the_order_is_computed_once_an_epoch() {
    let rows = Arc::new(InMemDataset::new((0..1_000_000).collect::<Vec<u32>>()));
    let mut cursor = Cursor::new(rows.len(), 1);
    let start = Instant::now();
    cursor.remaining(&rows).unwrap();
    let once = start.elapsed();
    let start = Instant::now();
    for _ in 0..1000 {
        cursor.advance(8);
        cursor.remaining(&rows).unwrap().get(0).unwrap();
    }
    let steps = start.elapsed();
    println!("a million rows: {once:?} for the order, {steps:?} for 1000 steps");
    assert!(steps < 50 * once, "{steps:?} for 1000 steps, {once:?} once");
    // Another epoch has its own, and a way back finds the first one.
    let ten = |cursor: &Cursor| {
        let left = cursor.remaining(&rows).unwrap();
        left.get_many((0..10).collect()).unwrap()
    };
    let first = Cursor::new(rows.len(), 1);
    let moved = cursor.at_epoch(1);
    assert_ne!(ten(&moved), ten(&first));
    assert_eq!(ten(&moved.at_epoch(0)), ten(&first));
}

/// Rows as they are, so that a test sees which ones a loader takes.
struct Same;

impl Batcher<u32, Vec<u32>> for Same {
    fn batch(&self, rows: Vec<u32>, _: &Device) -> Vec<u32> {
        rows
    }
}

fn loader(
    rows: usize,
    batch: usize,
    cursor: Cursor,
) -> Result<EpochLoader<InMemDataset<u32>, u32, Vec<u32>>, DataError> {
    let rows = Arc::new(InMemDataset::new((0..).take(rows).collect()));
    EpochLoader::new(rows, Same, batch, cursor, &device())
}

/// The rows of the next epoch, in batches.
fn epoch(loader: &dyn DataLoader<Vec<u32>>) -> Vec<Vec<u32>> {
    loader.iter().map(Result::unwrap).collect()
}

proptest! {
    #![proptest_config(cases(100))]

    /// However an epoch is cut and wherever it begins, its workers see what is left of it, once,
    /// and whole epochs after it.
    #[test]
    fn slices_of_a_resumed_epoch_are_what_is_left(
        rows in 0_usize..40,
        consumed in any::<prop::sample::Index>(),
        workers in 1_usize..6,
        batch in 1_usize..5,
    ) {
        let mut cursor = Cursor::new(rows, 5);
        if rows > 0 {
            cursor.advance(consumed.index(rows));
        }
        let expected = places(&cursor, u32::try_from(rows).unwrap());
        let loader: Arc<dyn DataLoader<Vec<u32>>> = Arc::new(loader(rows, batch, cursor.clone()).unwrap());
        let shares = split_dataloader(loader, &vec![device(); workers]);
        let items: usize = shares.iter().map(|share| share.num_items()).sum();
        prop_assert_eq!(items, rows);
        let seen: Vec<Vec<u32>> = shares.iter().map(|share| epoch(&**share).concat()).collect();
        // In the order of the workers they are the very order of one worker.
        prop_assert_eq!(seen.concat(), expected);
        for next in 1..3 {
            let whole = places(&cursor.clone().at_epoch(next), u32::try_from(rows).unwrap());
            let seen: Vec<Vec<u32>> = shares.iter().map(|share| epoch(&**share).concat()).collect();
            prop_assert_eq!(seen.concat(), whole);
        }
    }
}

#[test]
fn a_loader_goes_on_in_the_middle_of_an_epoch() {
    // Ten rows, three consumed, two workers.
    let mut cursor = Cursor::new(10, 0);
    cursor.advance(3);
    let loader = loader(10, 2, cursor).unwrap();
    let halves = [loader.slice(0, 5), loader.slice(5, 10)];
    let sizes = halves.each_ref().map(|half| {
        let iter = half.iter();
        (half.num_items(), iter.progress().items_total)
    });
    assert_eq!(sizes, [(5, 3), (5, 4)]);
    // A slice of a slice, and one past the end.
    assert_eq!(halves[1].slice(2, 5).num_items(), 3);
    assert_eq!(halves[1].slice(2, 50).num_items(), 3);
    assert_eq!(halves[1].slice(60, 50).num_items(), 0);
    assert_eq!(epoch(&*halves[1].slice(60, 50)), Vec::<Vec<u32>>::new());
}

#[test]
fn arguments_without_a_meaning() {
    let says = |error: DataError, expected: &str| assert_eq!(error.to_string(), expected);
    says(
        loader(3, 0, Cursor::new(3, 0)).err().unwrap(),
        "`batch_size`: expected 1 at least, found 0",
    );
    says(
        loader(3, 1, Cursor::new(4, 0)).err().unwrap(),
        "the position was saved in a dataset of 4 examples, this one has 3",
    );
    let keep = |truncation| {
        let rows = InMemDataset::new(vec![Example::pair(plain("p"), plain("a"), plain("b"))]);
        Tokenized::new(rows, bytes, truncation).err().unwrap()
    };
    let both = "2 at least: a token of the prompt and one of the completion";
    for max_length in [0, 1] {
        for truncation in [
            Truncation::Drop { max_length },
            Truncation::PromptMiddle { max_length },
            Truncation::CompletionStart { max_length },
        ] {
            let expected = format!("`max_length`: expected {both}, found {max_length}");
            says(keep(truncation), &expected);
        }
    }
    for min_prompt in [0, 9] {
        let truncation = Truncation::PromptMiddleThenCompletionStart {
            min_prompt,
            max_length: 9,
        };
        let expected = "1 at least, and less than 9, the most of all";
        let expected = format!("`min_prompt`: expected {expected}, found {min_prompt}");
        says(keep(truncation), &expected);
    }
    let none = InMemDataset::new(vec![0_u8]);
    for share in [-0.1, 1.5, f64::NAN] {
        says(
            split_by(&none, share, 0, |_| String::new()).unwrap_err(),
            &format!("`share`: expected a number in [0, 1], found {share}"),
        );
    }
    let list = |n: usize, scores| Example::ranked(plain("p"), vec![plain("c"); n], scores);
    assert_eq!(
        list(2, vec![1.0]).unwrap_err().to_string(),
        "`scores`: expected 2, one per completion, found 1"
    );
    assert_eq!(list(0, vec![]).unwrap_err().name(), "completions");
    let padding = Padding::new(0).to_multiple_of(0).unwrap_err();
    assert_eq!(
        padding.to_string(),
        "`multiple_of`: expected 1 at least, found 0"
    );
}

#[test]
fn the_mask_counts_what_the_sequence_counts() {
    let sequence = Sequence::new(&[5], &[6, 7, 8]);
    let some = sequence.clone().with_counted(&[true, false, true]).unwrap();
    assert_eq!((sequence.length(), some.length()), (3, 2));
    assert_eq!(some.counted(), Some(&[true, false, true][..]));
    // The default has one form.
    assert_eq!(sequence.clone().with_counted(&[true; 3]).unwrap(), sequence);
    assert_ne!(sequence.clone().with_context([0; 32]), sequence);
    let error = sequence.with_counted(&[true; 4]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`counted`: expected 3 marks, one per token of the completion, found 4"
    );
    // Nothing predicts the first token of all.
    let unprompted = Sequence::new(&[], &[6, 7, 8]);
    let nothing = Sequence::new(&[], &[]);
    assert_eq!((unprompted.length(), nothing.length()), (2, 0));

    let sequences = vec![some, unprompted, nothing, Sequence::new(&[1, 2], &[3])];
    let lengths: Vec<f64> = sequences.iter().map(|s| s.length() as f64).collect();
    let batch = TokenBatch::new(sequences, Padding::new(0), &device()).unwrap();
    let mask: Vec<bool> = batch
        .completion_mask
        .tensor()
        .to_data()
        .iter::<bool>()
        .collect();
    assert_eq!(mask[..4], [false, true, false, true]);
    let logits = Tensor::zeros([4, 4, 9], &device());
    let ours = TokenLogProbs::from_output(logits, batch.ids, batch.completion_mask).unwrap();
    let counted = ours.sequence().lengths();
    assert_eq!(
        counted.into_data().iter::<f64>().collect::<Vec<_>>(),
        lengths
    );
}

#[test]
fn burns_loader_takes_it_all() {
    let row = |i| format!(r#"{{"prompt": "p{i}", "chosen": "yes", "rejected": "no"}}"#);
    let file = file((0..7).map(row).collect::<Vec<_>>().join("\n"));
    let rows = JsonLines::new(&file.path, PairFormat::default())
        .open()
        .unwrap();
    let tokens = Tokenized::new(rows, bytes, Truncation::Drop { max_length: 9 }).unwrap();
    assert_eq!(tokens.texts().len(), 7);
    let loader = DataLoaderBuilder::<_, PairTokens>::new(Collator::new(Padding::new(0)))
        .batch_size(3)
        .set_device(device())
        .build(tokens);
    let batches: Vec<PairTokens> = loader.iter().map(Result::unwrap).collect();
    let sizes: Vec<usize> = batches.iter().map(|b| b.examples.len()).collect();
    assert_eq!(sizes, [3, 3, 1]);
    assert_eq!(batches[2].examples[0].line, Some(7));
}

/// Real files: `cargo test --test suite -- --ignored open_assistant`.
#[test]
#[ignore = "wants the Open-Assistant files in ../shared/data"]
fn open_assistant() {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let pairs = JsonLines::new(
        data.join("oasst_en100_pairs.jsonl.gz"),
        PairFormat::default(),
    );
    let pairs: Vec<_> = pairs.read().unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(pairs.len(), 207);
    assert!(pairs[0].prompt.as_conversation().is_some());
    let group = |row: &Example<Text, _>| row.columns["tree"].as_str().unwrap().to_owned();
    let split = split_by(&InMemDataset::new(pairs), 0.2, 0, group).unwrap();
    assert!(split.held_out.len() > 20 && split.train.len() > 120);

    let unpaired = JsonLines::new(
        data.join("oasst_en100_unpaired.jsonl.gz"),
        UnpairedFormat::default(),
    );
    let up = unpaired
        .read()
        .unwrap()
        .filter(|row| row.as_ref().unwrap().label == Desirable(true));
    assert_eq!(up.count(), 334);

    let format = RankedFormat {
        order: ScoreField::Ranks("ranks".into()),
        ..RankedFormat::default()
    };
    let lists = JsonLines::new(data.join("oasst_en100_ranked.jsonl.gz"), format);
    let lists = lists.read().unwrap();
    let sizes: Vec<usize> = lists.map(|row| row.unwrap().completions().len()).collect();
    assert_eq!(
        (sizes.len(), sizes.iter().min(), sizes.iter().max()),
        (207, Some(&2), Some(&9))
    );
}
