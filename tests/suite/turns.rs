//! Conversations: which tokens count, what later steps make of the mask, rows as data sets have
//! them, limits, and labels turned into others.

use std::convert::Infallible;
use std::fs;
use std::io::Write;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::{Dataset, InMemDataset};
use burn_preference::data::{
    Collator, Content, DataError, Desirable, Encode, Example, Json, JsonLines, Message, Mismatched,
    Object, OnError, PairFormat, PairTokens, Pairing, ParquetFile, Preference, PromptFormat,
    RankedFormat, RankedTokens, Reason, Scores, Text, TokenizeOptions, Tokenized,
    TokenizedExamples, Truncation, Turns, UnpairedTokens, completion_start, distinct,
    win_probability,
};
use burn_preference::tokens::{Padding, Sequence};

use crate::support::ZipEqual;
use crate::support::device::device;

const KEEP: Truncation = Truncation::Drop { max_length: 999 };

fn said(role: &str, text: &str) -> Message {
    Message::new(role, text)
}

fn talk(messages: &[(&str, &str)]) -> Text {
    let messages = messages.iter().map(|(role, text)| said(role, text));
    Text::Conversation(messages.collect())
}

const USER: u32 = 1000;
const ASSISTANT: u32 = 1001;
const TOOL: u32 = 1002;
const END: u32 = 1003;
const THOUGHT: u32 = 1004;

/// A token per turn's opening, byte and end.
#[expect(clippy::unnecessary_wraps, reason = "what `Tokenized` asks for")]
fn template(text: Encode<'_>) -> Result<Vec<u32>, Infallible> {
    let mut ids = Vec::new();
    for message in text.content.as_conversation().unwrap() {
        ids.push(match &*message.role {
            "user" => USER,
            "assistant" => ASSISTANT,
            _ => TOOL,
        });
        ids.extend(message.text().unwrap().bytes().map(u32::from));
        ids.push(END);
    }
    if text.add_generation_prompt {
        ids.push(ASSISTANT);
    }
    Ok(ids)
}

fn pair_of(chosen: Text) -> InMemDataset<Example<Text, Preference>> {
    let prompt = talk(&[("user", "q")]);
    let rejected = talk(&[("assistant", "no")]);
    InMemDataset::new(vec![Example::pair(prompt, chosen, rejected)])
}

fn with_tool() -> Text {
    talk(&[("assistant", "a"), ("tool", "tt"), ("assistant", "b")])
}

/// Which tokens count, as digits.
fn digits(sequence: &Sequence) -> String {
    let counts = |i: usize| sequence.counted().is_none_or(|counted| counted[i]);
    let length = sequence.completion().len();
    (0..length)
        .map(|i| if counts(i) { '1' } else { '0' })
        .collect()
}

fn counted_under(turns: Turns, chosen: Text) -> String {
    let options = TokenizeOptions::new(KEEP).with_turns(turns);
    let tokens = Tokenized::new(pair_of(chosen), template, options).unwrap();
    digits(&tokens.get(0).unwrap().sequences()[0])
}

#[test]
fn the_assistant_counts_and_nobody_else() {
    // a END | TOOL t t END | ASSISTANT | b END: openings are not written by the model.
    let of = |turns| counted_under(turns, with_tool());
    assert_eq!(of(Turns::Assistant), "110000011");
    assert_eq!(of(Turns::default()), "110000011");
    assert_eq!(of(Turns::Last), "000000011");
    assert_eq!(of(Turns::All), "111111111");
    let ends = talk(&[("assistant", "a"), ("user", "u")]);
    assert_eq!(counted_under(Turns::Assistant, ends.clone()), "11000");
    assert_eq!(counted_under(Turns::Last, ends), "11000");
    let single = talk(&[("assistant", "abc")]);
    for turns in [Turns::Assistant, Turns::Last, Turns::All] {
        assert_eq!(counted_under(turns, single.clone()), "1111");
    }
    // Nothing counts: dropped, and said.
    let nobody = Tokenized::new(pair_of(talk(&[("user", "u")])), template, KEEP).unwrap();
    assert_eq!(nobody.report().dropped[0].reason, Reason::NothingCounts);
}

#[test]
fn marks_of_the_tokenizer_take_the_place_of_renderings() {
    let calls = AtomicUsize::new(0);
    let marked = |text: Encode<'_>| {
        calls.fetch_add(1, Ordering::Relaxed);
        let ids = template(text)?;
        let marks = ids
            .iter()
            .map(|&id| id == u32::from(b'b') || id == END)
            .collect();
        Ok::<(Vec<u32>, Vec<bool>), Infallible>((ids, marks))
    };
    let of = |turns| {
        let options = TokenizeOptions::new(KEEP).with_turns(turns);
        let tokens = Tokenized::new(pair_of(with_tool()), marked, options).unwrap();
        digits(&tokens.get(0).unwrap().sequences()[0])
    };
    assert_eq!(of(Turns::Assistant), "010001011");
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    assert_eq!(of(Turns::Last), "000000011");
    assert_eq!(of(Turns::All), "010001011");

    let short = |text: Encode<'_>| template(text).map(|ids| (ids, vec![true]));
    let error = Tokenized::new(pair_of(with_tool()), short, KEEP)
        .err()
        .unwrap();
    let expected = "example 0: a mask of 1 for 4 ids";
    assert_eq!(error.to_string(), expected);
}

/// Templates that strip what was thought, as Qwen 3 does, show history otherwise than it was said.
#[test]
fn history_that_is_written_again_is_an_error() {
    let forgets = |text: Encode<'_>| -> Result<Vec<u32>, Infallible> {
        let messages = text.content.as_conversation().unwrap();
        let last = messages.iter().rposition(|m| m.role == "user").unwrap();
        let shown: Vec<_> = messages
            .iter()
            .enumerate()
            .map(|(i, m)| {
                let text = m.text().unwrap();
                let text = text.rsplit("/think").next().filter(|_| i < last);
                said(&m.role, text.unwrap_or(&m.text().unwrap()))
            })
            .collect();
        let content = Content::Conversation(&shown);
        // `Encode` is made by the crate alone: its other fields are those that came.
        let mut shown_text = text;
        shown_text.content = content;
        template(shown_text)
    };
    let turns = [
        ("assistant", "thought/thinka"),
        ("user", "u"),
        ("assistant", "b"),
    ];
    let error = Tokenized::new(pair_of(talk(&turns)), forgets, KEEP)
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(
        text.contains("writes message 1 otherwise once others follow it"),
        "{text}"
    );
    // The last turn is as it was.
    let options = TokenizeOptions::new(KEEP).with_turns(Turns::Last);
    let tokens = Tokenized::new(pair_of(talk(&turns)), forgets, options).unwrap();
    assert_eq!(digits(&tokens.get(0).unwrap().sequences()[0]), "00000011");
    // Skipped, and said.
    let options = TokenizeOptions::new(KEEP).with_on_error(OnError::Skip);
    let tokens = Tokenized::new(pair_of(talk(&turns)), forgets, options).unwrap();
    let report = tokens.report();
    assert_eq!((report.kept, report.dropped.len()), (0, 1));
    assert!(
        report.to_string().contains("return a mask with the ids"),
        "{report}"
    );
}

/// Conversations of different lengths, of which every 50th is refused by the template, and some are
/// too long.
fn many() -> Vec<Example<Text, Preference>> {
    let row = |i: usize| {
        let question = if i % 50 == 49 { "refused" } else { "q" };
        let answer = "a".repeat(i % 23);
        let chosen = talk(&[
            ("assistant", &answer),
            ("tool", "tt"),
            ("assistant", &i.to_string()),
        ]);
        let rejected = talk(&[("assistant", "no")]);
        Example::pair(talk(&[("user", question)]), chosen, rejected)
    };
    (0..700).map(row).collect()
}

#[test]
fn threads_and_memory_change_nothing() {
    let calls = AtomicUsize::new(0);
    let picky = |text: Encode<'_>| {
        calls.fetch_add(1, Ordering::Relaxed);
        let said = text.content.as_conversation().unwrap()[0].text().unwrap();
        if said == "refused" {
            return Err(format!(
                "refused, of {} columns",
                text.columns.iter().count()
            ));
        }
        Ok(template(text).unwrap_or_default())
    };
    let truncation = Truncation::Drop { max_length: 32 };
    let options = |threads: usize| {
        let options = TokenizeOptions::new(truncation).with_on_error(OnError::Skip);
        options.with_threads(NonZero::new(threads).unwrap())
    };
    let texts = TokenizedExamples::new(many(), picky, options(1)).unwrap();
    let dropped = &texts.report.dropped;
    assert!(dropped.len() > 14 && dropped.is_sorted_by_key(|row| row.index));
    assert_eq!(texts.report.kept, texts.examples.len());
    for threads in [1, 3] {
        let again = TokenizedExamples::new(many(), picky, options(threads)).unwrap();
        assert_eq!(again.examples, texts.examples);
        assert_eq!((&again.report, &again.kept), (&texts.report, &texts.kept));
        // All ids, those of the first half, none.
        for (memory, encoded_again) in [(1 << 20, 0), (40_000, 1), (0, 700)] {
            let options = options(threads).with_memory(memory);
            let tokens = Tokenized::new(InMemDataset::new(many()), picky, options).unwrap();
            assert_eq!(tokens.report(), &texts.report);
            assert_eq!(tokens.kept(), texts.kept);
            let before = calls.load(Ordering::Relaxed);
            let examples: Result<Vec<_>, _> = tokens.iter().collect();
            assert_eq!(examples.unwrap(), texts.examples);
            let calls = calls.load(Ordering::Relaxed) - before;
            assert!(
                calls >= encoded_again && (calls > 0) == (encoded_again > 0),
                "{calls}"
            );
        }
        // The first error of the file, whichever thread met one first.
        let stop = options(threads).with_on_error(OnError::Stop);
        let error = TokenizedExamples::new(many(), picky, stop).unwrap_err();
        assert!(error.to_string().contains("example 49: refused"), "{error}");
    }
}

#[test]
fn later_steps_honour_the_mask() {
    // Cut after "a END TOOL": what is left counts two tokens.
    let cut = Truncation::CompletionStart { max_length: 7 };
    let tokens = Tokenized::new(pair_of(with_tool()), template, cut).unwrap();
    let report = tokens.report();
    assert_eq!(report.shortened_completions, 1);
    assert_eq!(
        (report.completions[0].max, report.counted[0].max),
        (3.0, 2.0)
    );
    assert!(
        report
            .to_string()
            .contains("  that count: 2 to 2, mean 2.0"),
        "{report}"
    );
    assert_eq!(report.longer, Some((0, 1)), "by what counts");
    let items: Vec<_> = tokens.iter().map(Result::unwrap).collect();
    let batch: PairTokens = Collator::new(Padding::new(0)).batch(items, &device());
    let mask: Vec<bool> = batch
        .tokens
        .completion_mask
        .tensor()
        .into_data()
        .iter::<bool>()
        .collect();
    assert_eq!(mask[..7], [false, false, false, false, true, true, false]);
    // A tool answers before anything that counts: nothing is left of it.
    let late = talk(&[("tool", "tttt"), ("assistant", "a")]);
    let tokens = Tokenized::new(pair_of(late), template, cut).unwrap();
    assert_eq!(tokens.report().dropped[0].reason, Reason::LosesCompletion);

    // Mismatched completions and lists.
    let unpaired =
        |prompt: &str, completion| Example::unpaired(talk(&[("user", prompt)]), completion, true);
    let unpaired = vec![
        unpaired("q", with_tool()),
        unpaired("r", talk(&[("assistant", "x")])),
    ];
    let unpaired = Tokenized::new(InMemDataset::new(unpaired), template, KEEP).unwrap();
    let mismatched = Mismatched::new(unpaired, KEEP);
    let items: Vec<_> = mismatched.iter().map(Result::unwrap).collect();
    assert_eq!(digits(&items[1].label.sequence), "110000011");
    let batch: UnpairedTokens<_> = Collator::new(Padding::new(0)).batch(items, &device());
    let lengths: Vec<usize> = batch
        .tokens
        .sequences
        .iter()
        .map(Sequence::length)
        .collect();
    assert_eq!(lengths, [4, 2]);
    assert_eq!(batch.mismatched().sequences[1].length(), 4);
    let list = Example::ranked(
        talk(&[("user", "q")]),
        vec![with_tool(), talk(&[("assistant", "x")])],
        vec![1.0, 0.0],
    );
    let lists = InMemDataset::new(vec![list.unwrap()]);
    let lists = Tokenized::new(lists, template, KEEP).unwrap();
    assert_eq!(lists.report().counted[0].sum, 6.0);
    assert_eq!(lists.report().score_gaps.unwrap().max, 1.0);
    let items = lists.iter().map(Result::unwrap).collect();
    let batch: RankedTokens = Collator::new(Padding::new(0)).batch(items, &device());
    assert_eq!(batch.tokens.sequences[0].length(), 4);

    let ids = Example::pair(vec![1], vec![2, 3], vec![4]);
    let masked = ids
        .clone()
        .with_counted(&[vec![false, true], vec![true]])
        .unwrap();
    assert_ne!(masked, ids);
    assert_eq!(masked.sequences()[0].length(), 1);
    let error = ids.clone().with_counted(&[vec![true, true]]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`counted`: expected 2 lists, one per completion, found 1"
    );
    assert!(ids.with_counted(&[vec![true], vec![true]]).is_err());
}

#[test]
fn a_completion_begins_where_the_encodings_part() {
    assert_eq!(
        completion_start(&[1, 2, 3], [&[1, 2, 3, 4][..], &[1, 2, 9]]),
        2
    );
    assert_eq!(completion_start(&[1, 2], []), 2);
    // "ab" is one token: the prompt "a" gives its last token away.
    let merging = |text: Encode<'_>| -> Result<Vec<u32>, Infallible> {
        let text = text.content.as_plain().unwrap().replace("ab", "X");
        Ok(text.bytes().map(u32::from).collect())
    };
    let plain = |text: &str| Text::Plain(text.to_owned());
    let rows = vec![
        Example::pair(plain("qa"), plain("b"), plain("c")),
        Example::pair(plain("qqa"), plain("qac"), plain("qac")),
    ];
    let tokens = Tokenized::new(InMemDataset::new(rows), merging, KEEP).unwrap();
    let row = tokens.get(0).unwrap();
    assert_eq!(row.prompt, [u32::from(b'q')]);
    assert_eq!((row.chosen(), row.rejected()), (&vec![88], &vec![97, 99]));
    let report = tokens.report();
    assert_eq!((report.moved_starts, report.moved_tokens), (1, 1));
    assert_eq!(
        (report.doubled_starts, report.restarted_completions),
        (1, 2)
    );
    assert_eq!(
        (report.reopened_completions, report.identical_pairs),
        (2, 1)
    );
    let end = report.end.unwrap();
    assert_eq!((end.id, end.count, end.others), (99, 3, 1));
    let text = report.to_string();
    for line in [
        "look: 1 prompts that end otherwise before a completion, by 1 tokens at most",
        "look: 1 prompts that begin with one token twice",
        "look: 2 completions that begin as their prompt does",
        "look: 2 completions that begin as their prompt ends",
        "look: 1 of 4 completions end with another token than most, which is 99",
    ] {
        assert!(text.contains(line), "{text}");
    }
    // A tokenizer that encodes what it thinks is the completion.
    let naive = |text: Encode<'_>| -> Result<Vec<u32>, Infallible> {
        Ok(vec![if text.add_generation_prompt { 1 } else { 2 }])
    };
    let rows = InMemDataset::new(vec![Example::pair(plain("q"), plain("a"), plain("b"))]);
    let tokens = Tokenized::new(rows, naive, KEEP).unwrap();
    assert_eq!(tokens.report().dropped[0].reason, Reason::NoCommonPrompt);
}

/// A template that ends all but the last message without its end, and one that opens an answer with
/// a thought which only one side has.
#[test]
fn ends_and_openings_that_move() {
    let last_end = |text: Encode<'_>| -> Result<Vec<u32>, Infallible> {
        let ids = template(text)?;
        let open = usize::from(text.add_generation_prompt);
        let last = ids.len() - open - 1;
        let keep = |&(i, &id): &(usize, &u32)| id != END || (i == last && open == 0);
        let kept = ids.iter().enumerate().filter(keep);
        Ok(kept.map(|(_, &id)| id).collect())
    };
    // ASSISTANT | a TOOL t t ASSISTANT b END
    let tokens = Tokenized::new(pair_of(with_tool()), last_end, KEEP).unwrap();
    assert_eq!(digits(&tokens.get(0).unwrap().sequences()[0]), "1000011");
    let report = tokens.report();
    assert_eq!(report.moved_ends, 1);
    let line = "look: 1 messages of the assistant that end otherwise before another message";
    assert!(report.to_string().contains(line), "{report}");
    let tokens = Tokenized::new(pair_of(with_tool()), template, KEEP).unwrap();
    assert_eq!(tokens.report().moved_ends, 0);

    // The generation prompt opens a thought; an answer without one shows none. The prompt ends
    // before the opening for both; each side counts from behind its own.
    let thinks = |text: Encode<'_>| -> Result<Vec<u32>, Infallible> {
        let mut ids = template(text)?;
        if text.add_generation_prompt {
            ids.push(THOUGHT);
        }
        let thought = u32::from(b'#');
        Ok(ids
            .into_iter()
            .map(|id| if id == thought { THOUGHT } else { id })
            .collect())
    };
    let tokens = Tokenized::new(pair_of(talk(&[("assistant", "#a")])), thinks, KEEP).unwrap();
    let row = tokens.get(0).unwrap();
    assert_eq!(row.prompt.last(), Some(&ASSISTANT));
    let counted: Vec<_> = row.sequences().iter().map(digits).collect();
    assert_eq!(
        counted,
        ["011", "111"],
        "the thought's opening is not written"
    );
}

fn one(row: &str) -> Result<Example<Text, Preference>, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.jsonl");
    fs::write(&path, row).unwrap();
    let mut rows = JsonLines::new(&path, PairFormat::default()).read().unwrap();
    let row = rows.next().unwrap();
    row.map_err(|error| {
        error
            .to_string()
            .split_once(".jsonl:")
            .unwrap()
            .1
            .to_owned()
    })
}

#[test]
fn the_tokenizer_sees_the_row() {
    let row = r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b",
        "tools": "[{\"name\": \"f\", \"b\": 1, \"a\": 2}]", "chat_template_kwargs": {"z": 1, "a": 2}, "tree": 7}"#;
    let row = one(&row.replace('\n', "")).unwrap();
    let sees = |text: Encode<'_>| -> Result<Vec<u32>, Infallible> {
        let tools = text.tools.unwrap().to_string();
        assert_eq!(
            tools, r#"[{"name":"f","b":1,"a":2}]"#,
            "the order of its keys"
        );
        let arguments: Vec<_> = text
            .chat_template_kwargs
            .iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(arguments, ["z", "a"]);
        assert_eq!(text.columns["tree"].as_f64(), Some(7.0));
        template(text)
    };
    let tokens = Tokenized::new(InMemDataset::new(vec![row]), sees, KEEP).unwrap();
    assert_eq!(tokens.report().kept, 1);
    // By hand as well, where nobody has checked the columns.
    let columns: Object = [("tools", Json::from("no JSON"))].into_iter().collect();
    let bad = pair_of(with_tool()).get(0).unwrap().with_columns(columns);
    let error = Tokenized::new(InMemDataset::new(vec![bad]), template, KEEP)
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("`tools`: expected a list of tools"),
        "{error}"
    );
}

#[test]
fn messages_as_data_sets_have_them() {
    let chat = |message: &str| {
        let user = r#"{"role": "user", "content": "q"}"#;
        one(&format!(
            r#"{{"prompt": [{user}], "chosen": [{message}], "rejected": "b"}}"#
        ))
    };
    let calls = r#"{"role": "assistant", "tool_calls": [{"z": 1, "a": 2}], "content": null}"#;
    let row = chat(calls).unwrap();
    let message = &row.chosen().as_conversation().unwrap()[0];
    assert_eq!(message.text().unwrap(), "");
    let written = serde_json::to_string(message).unwrap();
    assert_eq!(
        written,
        r#"{"role":"assistant","content":null,"tool_calls":[{"z":1,"a":2}]}"#
    );
    let parts = r#"{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}"#;
    let row = chat(parts).unwrap();
    assert_eq!(
        row.chosen().as_conversation().unwrap()[0].text().unwrap(),
        "ab"
    );
    // What a table fills in where a message has no such field.
    let filled =
        r#"{"role": "assistant", "content": "a", "tool_calls": null, "name": null, "n": 1}"#;
    let row = chat(filled).unwrap();
    let message = &row.chosen().as_conversation().unwrap()[0];
    assert_eq!(
        serde_json::to_string(message).unwrap(),
        r#"{"role":"assistant","content":"a","n":1}"#
    );
    let image = r#"{"role": "assistant", "content": [{"type": "image"}]}"#;
    assert_eq!(
        chat(image).unwrap().chosen().as_conversation().unwrap()[0].text(),
        None
    );
    let says = |message: &str, expected: &str| {
        let text = chat(message).unwrap_err();
        assert!(text.starts_with(expected), "{text}");
    };
    let missing = "1: `chosen[0].content`: expected a string or a list of typed parts (an \
                   assistant's `tool_calls` may stand alone), found";
    says(r#"{"role": "assistant"}"#, &format!("{missing} nothing"));
    says(
        r#"{"role": "assistant", "content": null, "tool_calls": []}"#,
        &format!("{missing} null"),
    );
    says(
        r#"{"role": "user", "content": null, "tool_calls": [1]}"#,
        &format!("{missing} null"),
    );
    says(
        r#"{"role": "assistant", "content": 3}"#,
        "1: `chosen[0].content`: expected a string",
    );
    says(
        r#"{"role": "assistant", "content": ["a"]}"#,
        "1: `chosen[0].content[0]`: expected a part with its type, found a string",
    );
    says(
        r#"{"role": "assistant", "content": [{"type": "text"}]}"#,
        "1: `chosen[0].content[0].text`: expected a string, found nothing",
    );
    says(
        r#"{"content": "a"}"#,
        "1: `chosen[0].role`: expected a string, found nothing",
    );
    says(
        r#"{"role": "assistant", "content": "a", "x": [{"b": 1, "b": 2}]}"#,
        "1: `chosen`: expected a string or a list of messages, found a value in which the field \
         `b` stands twice",
    );
    let columns = |columns: &str| {
        let user = r#"[{"role": "user", "content": "q"}]"#;
        one(&format!(
            r#"{{"prompt": {user}, "chosen": "a", "rejected": "b", {columns}}}"#
        ))
        .unwrap_err()
    };
    let list = "1: `tools`: expected a list of tools, or a string that holds one, found";
    assert_eq!(columns(r#""tools": {}"#), format!("{list} an object"));
    assert_eq!(columns(r#""tools": [1]"#), format!("{list} a number in it"));
    assert!(columns(r#""tools": "x""#).starts_with(&format!("{list} x: expected value")));
    assert_eq!(
        columns(r#""chat_template_kwargs": 1"#),
        "1: `chat_template_kwargs`: expected an object, found a number"
    );
    let other = r#"{"prompt": "p", "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": "b"}"#;
    assert_eq!(
        one(other).unwrap_err(),
        "1: `prompt`: expected what a user says before the completions part, found another string"
    );
}

/// What a completion repeats of its prompt stands there once, however it is written; a part of it
/// is an error.
#[test]
fn a_prompt_that_is_repeated() {
    let message = |role: &str, text: &str| format!(r#"{{"role": "{role}", "content": "{text}"}}"#);
    let user = |text: &str| message("user", text);
    let answer = message("assistant", "a");
    let row = |prompt: &str, chosen: &[&str], rejected: &str| {
        let chosen = chosen.join(", ");
        one(&format!(
            r#"{{"prompt": {prompt}, "chosen": [{chosen}], "rejected": {rejected}}}"#
        ))
    };
    let answers = |row: Result<Example<Text, Preference>, String>| {
        let row = row.unwrap();
        let count = |text: &Text| text.as_conversation().unwrap().len();
        let prompt = row.prompt.as_conversation().unwrap();
        assert_eq!(prompt.last().unwrap().text().unwrap().trim(), "q");
        [
            count(&row.prompt),
            count(row.chosen()),
            count(row.rejected()),
        ]
    };
    let list = format!("[{}]", user("q"));
    let spaced = user("q ");
    let parts = r#"{"role": "user", "content": [{"type": "text", "text": "q"}]}"#;
    for question in [&user("q"), &spaced, parts] {
        assert_eq!(
            answers(row(&list, &[question, &answer], "\"b\"")),
            [1, 1, 1]
        );
        assert_eq!(
            answers(row("\"q\"", &[question, &answer], "\"b\"")),
            [1, 1, 1]
        );
        let other = format!("[{spaced}, {answer}]");
        assert_eq!(
            answers(row("\"q\"", &[question, &answer], &other)),
            [1, 1, 1]
        );
    }
    // A string as the prompt may be the last question of a longer conversation.
    let earlier = [&*user("p"), &answer, &*user("q"), &answer];
    assert_eq!(answers(row("\"q\"", &earlier, "\"b\"")), [3, 1, 1]);
    // The user says in the completion what was said before: no repetition of the prompt.
    let again = [&*answer, &*user("q"), &answer];
    assert_eq!(answers(row(&list, &again, "\"b\"")), [1, 3, 1]);
    // Two tools that answer alike.
    let tools = message("tool", "q");
    let call = r#"{"role": "assistant", "tool_calls": [1]}"#;
    let called = format!("[{}, {call}, {tools}]", user("p"));
    assert_eq!(
        answers(row(&called, &[&tools, &answer], "\"b\"")),
        [3, 2, 1]
    );

    let part = "1: `prompt`: expected what the completions begin with, whole or not at all, found a \
                prompt of which one repeats a part";
    let system = message("system", "s");
    assert_eq!(
        row(&list, &[&system, &user("q"), &answer], "\"b\"").unwrap_err(),
        part
    );
    let with_system = format!("[{system}, {}]", user("q"));
    assert_eq!(
        row(&with_system, &[&user("q"), &answer], "\"b\"").unwrap_err(),
        part
    );
    let calls = r#"{"role": "assistant", "content": null, "tool_calls": "[1]"}"#;
    assert_eq!(
        row(&list, &[calls], "\"b\"").unwrap_err(),
        "1: `chosen[0].tool_calls`: expected a list of calls, found a string"
    );
}

#[test]
fn json_keeps_what_it_read() {
    let text =
        r#"{"z":[1,-2,1.5,1e+300,18446744073709551615,true,null,"é\n"],"a":{"c":{},"b":[]}}"#;
    let json: Json = serde_json::from_str(text).unwrap();
    assert_eq!(json.to_string(), text);
    assert_eq!(json["a"]["c"], Json::Object(Object::default()));
    assert!(json["z"].as_array().unwrap()[6].is_null());
    let of = |text: &str| serde_json::from_str::<Json>(text);
    assert_eq!(
        of(r#"{"a": 1, "b": 2}"#).unwrap(),
        of(r#"{"b": 2, "a": 1}"#).unwrap()
    );
    assert_ne!(
        of(r#"{"a": 1}"#).unwrap(),
        of(r#"{"a": 1, "b": 2}"#).unwrap()
    );
    assert!(
        of("1e999")
            .unwrap_err()
            .to_string()
            .contains("out of range")
    );
    assert!(of(r#"{"a": {"x": 1, "y": 2, "x": 3}}"#).is_err());
    let number = of(r#"{"$serde_json::private::Number": "1.50"}"#).unwrap();
    assert_eq!(
        number.as_f64(),
        Some(1.5),
        "as `arbitrary_precision` hands it over"
    );
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(Json::from(value), json);
    let mut object = json["a"].as_object().unwrap().clone();
    object.insert("c", Json::from("new"));
    object.insert("d", Json::from(0.5));
    assert_eq!(object.remove("b"), Some(Json::Array(vec![])));
    assert_eq!(Json::Object(object).to_string(), r#"{"c":"new","d":0.5}"#);
    assert_eq!(Json::from(f64::NAN), Json::Null);
}

#[test]
fn scores_fit_a_tensor() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.jsonl");
    let of = |scores: &str| {
        let row = format!(r#"{{"prompt": "p", "responses": ["a", "b"], "scores": {scores}}}"#);
        fs::write(&path, row).unwrap();
        let mut rows = JsonLines::new(&path, RankedFormat::default())
            .read()
            .unwrap();
        rows.next().unwrap().map(|row| row.label)
    };
    assert_eq!(of("[1, 3e38]").unwrap(), Scores(vec![1.0, 3e38]));
    let error = of("[1, 1e39]").unwrap_err().to_string();
    assert!(
        error.contains("1: `scores[1]`: expected a number that f32 holds, found 1"),
        "{error}"
    );
    let error = of("[1, 1e999]").unwrap_err().to_string();
    assert!(
        error.contains("1: `scores[1]`: expected a number, found 1e999, which is beyond f64"),
        "{error}"
    );
    let text = || vec![Text::Plain("a".into())];
    for score in [f64::NAN, f64::INFINITY, 4e38] {
        let error = Example::ranked(Text::Plain("p".into()), text(), vec![score]).unwrap_err();
        assert_eq!(error.name(), "scores");
    }
}

#[test]
fn long_lines_are_errors_before_they_are_read() {
    let row = r#"{"chosen": "a", "rejected": "b"}"#;
    let long = format!(
        "{{\"chosen\": \"a\", \"rejected\": \"{}\"}}",
        "b".repeat(100)
    );
    let content = format!("{row}\n{long}\n{row}\r\n{}\n{long}", " ".repeat(90));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.jsonl");
    fs::write(&path, &content).unwrap();
    let file = |limit| JsonLines::new(&path, PairFormat::default()).with_max_line_bytes(limit);
    // One byte more than the first row, for the carriage return.
    for limit in [row.len() + 1, 60, 99] {
        let rows: Vec<_> = file(limit).unwrap().read().unwrap().collect();
        let lines: Vec<_> = rows
            .iter()
            .map(|row| {
                row.as_ref()
                    .map_or_else(|error| error.line().unwrap(), |row| row.line.unwrap())
            })
            .collect();
        let blank = limit < 90;
        assert_eq!(
            lines,
            if blank {
                vec![1, 2, 3, 4, 5]
            } else {
                vec![1, 2, 3, 5]
            }
        );
        assert!(matches!(rows[1], Err(DataError::LongLine { line: 2, max, .. }) if max == limit));
        let random = file(limit).unwrap().open().unwrap();
        for (index, row) in rows.iter().enumerate() {
            match (row, random.example(index)) {
                (Ok(row), Ok(other)) => assert_eq!(*row, other),
                (Err(error), Err(other)) => assert_eq!(error.to_string(), other.to_string()),
                other => panic!("{other:?}"),
            }
        }
    }
    let error = file(60)
        .unwrap()
        .load(OnError::Stop)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with(
            ":2: longer than 60 bytes; `JsonLines::with_max_line_bytes` raises the limit"
        ),
        "{error}"
    );
    let loaded = file(99).unwrap().load(OnError::Skip).unwrap();
    assert_eq!((loaded.examples.len(), loaded.skipped.len()), (2, 2));
    assert_eq!(
        file(0).unwrap_err().to_string(),
        "`max_line_bytes`: expected 1 at least, found 0"
    );
    assert_eq!(
        file(200)
            .unwrap()
            .load(OnError::Stop)
            .unwrap()
            .examples
            .len(),
        4
    );

    // A bomb: a small file that is one line of 200 MB. What is read of it is what the limit says.
    let bomb = directory.path().join("bomb.gz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![b' '; 1 << 20];
    for _ in 0..200 {
        encoder.write_all(&zeros).unwrap();
    }
    encoder.write_all(format!("\n{row}\n").as_bytes()).unwrap();
    let packed = encoder.finish().unwrap();
    assert!(packed.len() < 2 << 20);
    fs::write(&bomb, packed).unwrap();
    let mut rows = JsonLines::new(&bomb, PairFormat::default()).read().unwrap();
    assert!(matches!(
        rows.next(),
        Some(Err(DataError::LongLine { line: 1, .. }))
    ));
    assert_eq!(rows.next().unwrap().unwrap().line, Some(2));
}

#[test]
fn a_bad_row_stops_or_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.jsonl");
    let row = r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#;
    fs::write(
        &path,
        format!("{row}\n{{\"chosen\": 3}}\nnot JSON\n{row}\n"),
    )
    .unwrap();
    let open = || JsonLines::new(&path, PairFormat::default()).open().unwrap();
    let bytes = |text: Encode<'_>| -> Result<Vec<u32>, Infallible> {
        Ok(text
            .content
            .as_plain()
            .unwrap()
            .bytes()
            .map(u32::from)
            .collect())
    };
    let error = Tokenized::new(open(), bytes, KEEP).err().unwrap();
    assert_eq!(error.line(), Some(2));
    let options = TokenizeOptions::new(KEEP).with_on_error(OnError::Skip);
    let tokens = Tokenized::new(open(), bytes, options).unwrap();
    assert_eq!(tokens.kept(), [0, 3]);
    let dropped = &tokens.report().dropped;
    assert_eq!(
        dropped.iter().map(|row| row.line).collect::<Vec<_>>(),
        [Some(2), Some(3)]
    );
    let Reason::Error(text) = &dropped[0].reason else {
        panic!("{dropped:?}")
    };
    assert_eq!(
        text,
        "`chosen`: expected a string or a list of messages, found a number"
    );
    let report = tokens.report().to_string();
    let expected = "row 2 (line 3): expected ident at column 2";
    assert!(report.contains(expected), "{report}");
    // A file that is gone is no bad row.
    let lines = open();
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    let error = Tokenized::new(lines, bytes, options).err().unwrap();
    assert!(
        error.to_string().ends_with("failed to fill whole buffer"),
        "{error}"
    );
}

#[test]
fn lists_become_pairs_and_pairs_are_taken_apart() {
    let list = Example::ranked('p', vec!['a', 'b', 'c', 'd'], vec![1.0, 3.0, 1.0, 2.5]).unwrap();
    let pairs = |pairing| {
        let pairs = list.pairs(pairing).unwrap();
        pairs
            .iter()
            .map(|pair| (*pair.chosen(), *pair.rejected()))
            .collect::<Vec<_>>()
    };
    assert_eq!(pairs(Pairing::BestWorst), [('b', 'a')]);
    assert_eq!(
        pairs(Pairing::Adjacent),
        [('b', 'd'), ('d', 'a'), ('d', 'c')],
        "no pair of a tie"
    );
    let all = [('b', 'a'), ('b', 'c'), ('d', 'a'), ('d', 'c'), ('b', 'd')];
    assert_eq!(pairs(Pairing::Gap(0.0)), all);
    assert_eq!(pairs(Pairing::Gap(1.5)), all[..4]);
    assert_eq!(pairs(Pairing::Gap(2.0)), all[..2]);
    assert!(pairs(Pairing::Gap(2.1)).is_empty());
    let columns = &list.pairs(Pairing::BestWorst).unwrap()[0].columns;
    let scores = ["score_chosen", "score_rejected"].map(|name| columns[name].as_f64().unwrap());
    assert_eq!(scores, [3.0, 1.0]);
    for gap in [-1.0, f64::NAN] {
        assert_eq!(list.pairs(Pairing::Gap(gap)).unwrap_err().name(), "gap");
    }
    let tied = Example::ranked('p', vec!['a', 'b'], vec![1.0, 1.0]).unwrap();
    for pairing in [Pairing::BestWorst, Pairing::Adjacent, Pairing::Gap(0.0)] {
        assert!(tied.pairs(pairing).unwrap().is_empty());
    }
    let mut broken = tied.clone();
    broken.label.0[0] = f64::NAN;
    assert_eq!(
        broken.pairs(Pairing::BestWorst).unwrap_err().name(),
        "scores"
    );

    // Masks go with their completions.
    let pair = Example::pair(vec![1], vec![2, 3], vec![4]);
    let pair = pair.with_counted(&[vec![false, true], vec![true]]).unwrap();
    let [up, down] = pair.unpair();
    assert_eq!((up.label, up.completion()), (Desirable(true), &vec![2, 3]));
    assert_eq!(
        (down.label, down.completion()),
        (Desirable(false), &vec![4])
    );
    assert_eq!(up.sequences()[0].length(), 1);

    assert_eq!(
        win_probability(&[[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [1.0, 0.5]]).unwrap(),
        0.625
    );
    assert_eq!(win_probability(&[[1.0, 1.0]]).unwrap(), 0.5);
    assert!(win_probability(&[]).is_err() && win_probability(&[[f64::NAN, 0.0]]).is_err());
}

#[test]
fn rows_that_say_the_same_are_found() {
    let pair = |prompt: &str, chosen: &str, rejected: &str| {
        Example::pair(
            Text::Plain(prompt.into()),
            Text::Plain(chosen.into()),
            Text::Plain(rejected.into()),
        )
    };
    let columns = |json: &str| match serde_json::from_str(json).unwrap() {
        Json::Object(columns) => columns,
        other => unreachable!("{other}"),
    };
    let tools = columns(r#"{"tools": [{"x": 1}]}"#);
    let rows = vec![
        pair("p", "a", "b"),
        pair("p", "b", "a"),                     // 1: the other way round
        pair("p", "a", "b").with_columns(tools), // 2: repeats 0, no template reads it
        pair("pa", "", "b"),                     // 3: neighbours do not run together
        pair("p", "b", "a"),                     // 4: repeats 1
    ];
    let found = distinct(&InMemDataset::new(rows)).unwrap();
    assert_eq!(found.kept, [0, 1, 3]);
    assert_eq!(found.repeated, [(2, 0), (4, 1)]);
    assert_eq!(found.contradictory, [1]);

    let with = |json: &str| {
        let talk = pair_of(with_tool()).get(0).unwrap();
        talk.with_columns(columns(json))
    };
    let rows = vec![
        with("{}"),
        with(r#"{"tree": 1, "tools": [], "chat_template_kwargs": {}}"#), // 1: repeats 0
        with(r#"{"tools": null, "chat_template_kwargs": null}"#),        // 2: repeats 0
        with(r#"{"tools": "[]"}"#),                                      // 3: repeats 0
        with(r#"{"tools": ""}"#),                                        // 4: repeats 0
        with(r#"{"tools": [{"x": 1, "y": 2}]}"#),                        // 5: other tokens
        with(r#"{"tools": [{"y": 2, "x": 1}]}"#),                        // 6: repeats 5
        with(r#"{"tools": "[{\"x\": 1, \"y\": 2}]"}"#),                  // 7: repeats 5
        with(r#"{"chat_template_kwargs": {"x": 1}}"#),                   // 8: other tokens
        with(r#"{"tools": "no JSON"}"#),                                 // 9: others, unusable
    ];
    let found = distinct(&InMemDataset::new(rows)).unwrap();
    assert_eq!(found.kept, [0, 5, 8, 9]);
    let repeated = [(1, 0), (2, 0), (3, 0), (4, 0), (6, 5), (7, 5)];
    assert_eq!(found.repeated, repeated);
    assert!(found.contradictory.is_empty());

    let list = |texts: [&str; 2], scores: [f64; 2]| {
        let texts = texts.map(|text| Text::Plain(text.into())).into();
        Example::ranked(Text::Plain("p".into()), texts, scores.into()).unwrap()
    };
    let rows = vec![
        list(["a", "b"], [1.0, 0.0]),
        list(["b", "a"], [-0.0, 1.0]), // 1: repeats 0 in another order
        list(["b", "a"], [1.0, 0.0]),  // 2: other scores
    ];
    let found = distinct(&InMemDataset::new(rows)).unwrap();
    assert_eq!((found.kept, found.repeated), (vec![0, 2], vec![(1, 0)]));
    assert_eq!(found.contradictory, [2]);
    let unpaired = |text: &str, up| {
        Example::unpaired(Text::Plain("p".into()), talk(&[("assistant", text)]), up)
    };
    let rows = vec![
        unpaired("a", true),
        unpaired("a", false),
        unpaired("b", true),
        unpaired("a", true),
    ];
    let found = distinct(&InMemDataset::new(rows)).unwrap();
    assert_eq!((found.kept, found.contradictory), (vec![0, 1, 2], vec![1]));
    assert_eq!(found.repeated, [(3, 0)]);
}

/// Written by pyarrow: `scripts/data_goldens.py`.
#[test]
fn parquet_holds_the_same_rows() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/rows.parquet");
    let file = || ParquetFile::new(path, PairFormat::default());
    let rows = file().load(OnError::Stop).unwrap().examples;
    assert_eq!(rows.len(), 3);
    let texts = |text: &Text| {
        let messages = text.as_conversation().unwrap().iter();
        let said = messages.map(|m| format!("{}: {}", m.role, m.text().unwrap()));
        said.collect::<Vec<_>>()
    };
    assert_eq!(texts(&rows[0].prompt), ["user: What colour is the sky?"]);
    assert_eq!(texts(rows[0].chosen()), ["assistant: It is blue."]);
    assert_eq!(texts(rows[1].rejected()).len(), 5);
    assert_eq!(
        texts(rows[2].chosen()),
        ["assistant: ", "tool: -3", "assistant: Yes."]
    );
    let call = &rows[2].chosen().as_conversation().unwrap()[0].other["tool_calls"];
    let arguments = call.as_array().unwrap()[0]["arguments"].as_str();
    assert_eq!(arguments, Some(r#"{"unit": "C", "city": "Oslo"}"#));
    assert_eq!(rows[2].columns["score"].as_f64(), Some(3.5));
    assert_eq!(rows[2].columns["tree"].to_string(), "2");
    assert_eq!(rows[2].line, Some(3));

    let raw = ParquetFile::new(path, ()).raw().unwrap();
    let raw: Vec<_> = raw.collect::<Result<_, _>>().unwrap();
    assert_eq!(
        raw.iter().map(|(line, _)| *line).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    for (example, (_, row)) in rows.iter().zip_equal(&raw) {
        for field in ["prompt", "chosen", "rejected"] {
            assert!(row.get(field).is_some());
        }
        let mut others = example.columns.iter();
        assert_eq!(example.columns.len() + 3, row.len());
        assert!(others.all(|(name, value)| row[name] == *value));
    }
    let prompts = ParquetFile::new(path, PromptFormat::default());
    let prompts = prompts.load(OnError::Stop).unwrap().examples;
    assert_eq!(prompts.len(), 3);
    assert!(
        prompts
            .iter()
            .zip_equal(&rows)
            .all(|(p, r)| p.prompt == r.prompt)
    );

    let other = PairFormat {
        chosen: "score".into(),
        ..PairFormat::default()
    };
    let loaded = ParquetFile::new(path, other).load(OnError::Skip).unwrap();
    assert_eq!(loaded.skipped.len(), 3);
    let error = loaded.skipped[1].to_string();
    let expected =
        "rows.parquet:2: `score`: expected a string or a list of messages, found a number";
    assert!(error.ends_with(expected), "{error}");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/data_goldens.py");
    let error = ParquetFile::new(script, PairFormat::default())
        .read()
        .err()
        .unwrap();
    assert!(error.to_string().contains("data_goldens.py: "), "{error}");
}
