//! Rows as published sets have them: a row of the guide's table is read as it stands, with other
//! names of columns, or after the guide's conversion, and what would be lost is an error or reported.

use std::convert::Infallible;

use burn::data::dataset::{Dataset, InMemDataset};
use burn_preference::data::{
    Content, Encode, Example, Format, Json, Object, PairFormat, PromptFormat, RankedFormat, Reason,
    RowError, Text, Tokenized, Truncation, UnpairedFormat,
};

fn row(json: &str) -> Object {
    serde_json::from_str(json).unwrap()
}

/// A text in one line for each message; a string in quotes.
fn shown(text: &Text) -> String {
    match text {
        Text::Plain(text) => format!("{text:?}"),
        Text::Conversation(messages) => {
            let line =
                |m: &burn_preference::data::Message| format!("{}: {}", m.role, m.text().unwrap());
            messages.iter().map(line).collect::<Vec<_>>().join(" | ")
        }
    }
}

fn parts<L>(example: &Example<Text, L>) -> Vec<String> {
    let completions = example.completions().iter().map(shown);
    std::iter::once(shown(&example.prompt))
        .chain(completions)
        .collect()
}

/// The prompts of a chat model, from the column of this name.
fn chat(prompt: &str) -> PromptFormat {
    PromptFormat {
        as_conversation: true,
        ..PromptFormat::from(prompt)
    }
}

fn pairs(prompt: &str, chosen: &str, rejected: &str) -> PairFormat {
    PairFormat {
        prompt: chat(prompt),
        implicit_prompt: false,
        chosen: chosen.into(),
        rejected: rejected.into(),
    }
}

fn chat_pairs() -> PairFormat {
    pairs("prompt", "chosen", "rejected")
}

fn refused(format: &impl Format, json: &str) -> RowError {
    format.parse(row(json)).unwrap_err()
}

/// Lines of the guide's table that need no conversion: the format, a row, its parts.
#[test]
fn published_pairs_are_read() {
    let usual = [
        "user: Name a red fruit.",
        "assistant: A cherry.",
        "assistant: A banana.",
    ];
    let with_system = [
        "system: Be brief. | user: Name a red fruit.",
        "assistant: A cherry.",
        "assistant: A banana.",
    ];
    let hh = [
        "user: Hi | assistant: Hello | user: A fruit?",
        "assistant: It is red.",
        "assistant: It is tan.",
    ];
    for (format, json, expected) in [
        // TRL
        (
            chat_pairs(),
            r#"{"prompt": "Name a red fruit.", "chosen": "A cherry.", "rejected": "A banana."}"#,
            usual,
        ),
        // Anthropic/hh-rlhf
        (
            chat_pairs(),
            r#"{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: A fruit?\n\nAssistant: It is red.",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: A fruit?\n\nAssistant: It is tan."}"#,
            hh,
        ),
        // Dahoas/full-hh-rlhf
        (
            chat_pairs(),
            r#"{"prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: A fruit?\n\nAssistant:",
                "response": " It is red.", "chosen": " It is red.", "rejected": " It is tan."}"#,
            hh,
        ),
        // Intel/orca_dpo_pairs
        (
            pairs("question", "chosen", "rejected"),
            r#"{"system": "Be brief.", "question": "Name a red fruit.", "chosen": "A cherry.",
                "rejected": "A banana."}"#,
            with_system,
        ),
        // argilla/distilabel-intel-orca-dpo-pairs
        (
            pairs("input", "chosen", "rejected"),
            r#"{"system": "", "input": "Name a red fruit.", "chosen": "A cherry.", "rejected": "A banana.",
                "generations": ["A cherry.", "A banana."], "order": ["chosen", "rejected"], "rating": [9, 2],
                "labelling_prompt": [{"role": "user", "content": "Which one?"}], "status": "tie"}"#,
            usual,
        ),
        // jondurbin/truthy-dpo-v0.1
        (
            chat_pairs(),
            r#"{"id": "0", "source": "truthy_dpo", "system": "Be brief.", "prompt": "Name a red fruit.",
                "chosen": "A cherry.", "rejected": "A banana."}"#,
            with_system,
        ),
        // HuggingFaceH4/ultrafeedback_binarized
        (
            chat_pairs(),
            r#"{"prompt": "Name a red fruit.", "prompt_id": "a1", "score_chosen": 8, "score_rejected": 2,
                "messages": [{"role": "user", "content": "Name a red fruit."},
                             {"role": "assistant", "content": "A cherry."}],
                "chosen": [{"role": "user", "content": "Name a red fruit."},
                           {"role": "assistant", "content": "A cherry."}],
                "rejected": [{"role": "user", "content": "Name a red fruit."},
                             {"role": "assistant", "content": "A banana."}]}"#,
            usual,
        ),
        // argilla/ultrafeedback-binarized-preferences
        (
            pairs("instruction", "chosen_response", "rejected_response"),
            r#"{"source": "evol", "instruction": "Name a red fruit.", "chosen_response": "A cherry.",
                "rejected_response": "A banana.", "chosen_avg_rating": 4.5}"#,
            usual,
        ),
        // LLaMA-Factory
        (
            pairs("conversations", "chosen", "rejected"),
            r#"{"conversations": [{"from": "system", "value": "Be brief."},
                                  {"from": "human", "value": "Name a red fruit."}],
                "chosen": {"from": "gpt", "value": "A cherry."},
                "rejected": {"from": "gpt", "value": "A banana."}}"#,
            with_system,
        ),
        // ms-swift
        (
            pairs("prompt", "messages", "rejected_response"),
            r#"{"messages": [{"role": "system", "content": "Be brief."},
                             {"role": "user", "content": "Name a red fruit."},
                             {"role": "assistant", "content": "A cherry."}],
                "rejected_response": "A banana."}"#,
            with_system,
        ),
        // NeMo-RL
        (
            pairs("context", "best", "worst"),
            r#"{"context": "Name a red fruit.", "best": "A cherry.", "worst": "A banana."}"#,
            usual,
        ),
    ] {
        let example = format
            .parse(row(json))
            .unwrap_or_else(|error| panic!("{json}: {error}"));
        assert_eq!(parts(&example), expected, "{json}");
    }
}

#[test]
fn published_unpaired_completions_are_read() {
    let swift = UnpairedFormat {
        prompt: chat("prompt"),
        completion: "messages".into(),
        ..UnpairedFormat::default()
    };
    let json = r#"{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
                   "label": false}"#;
    let example = swift.parse(row(json)).unwrap();
    assert_eq!(parts(&example), ["user: 2+2?", "assistant: 4"]);
    let hh = r#"{"messages": "\n\nHuman: 2+2?\n\nAssistant: 4", "label": true}"#;
    assert_eq!(
        parts(&swift.parse(row(hh)).unwrap()),
        ["user: 2+2?", "assistant: 4"]
    );
    for (json, field, found) in [
        (r#"{"messages": "4", "label": true}"#, "prompt", "nothing"),
        (
            r#"{"messages": [{"role": "user", "content": "2+2?"}], "label": true}"#,
            "messages",
            "another one",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "4"}], "label": true}"#,
            "messages",
            "another one",
        ),
    ] {
        let error = refused(&swift, json);
        assert_eq!((error.field(), error.found()), (field, found), "{json}");
    }
}

/// The guide's commands, and what DuckDB makes of rows by them.
#[test]
fn converted_rows_are_read() {
    let root = env!("CARGO_MANIFEST_DIR");
    let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).unwrap();
    let guide = read("docs/guide/data.md");
    let cases: Json = serde_json::from_str(&read("tests/data/published_rows.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), guide.matches("```sql\n").count());
    let mut seen = Vec::new();
    for case in cases {
        let command = case["command"].as_str().unwrap();
        assert!(
            guide.contains(&format!("```sql\n{command}```")),
            "{command}"
        );
        let source = case["source"].as_str().unwrap();
        let ranked = RankedFormat {
            prompt: chat("prompt"),
            ..RankedFormat::default()
        };
        let is_list = case["target"].as_str() == Some("lists.jsonl");
        // None of them is taken for something else before it is converted.
        for raw in case["raw"].as_array().unwrap() {
            let raw = raw.as_object().unwrap();
            assert!(chat_pairs().parse(raw.clone()).is_err(), "{source}");
            assert!(ranked.parse(raw.clone()).is_err(), "{source}");
        }
        for converted in case["rows"].as_array().unwrap() {
            let row = converted.as_object().unwrap().clone();
            let read = if is_list {
                let list = ranked.parse(row).unwrap();
                format!("{:?} {:?}", parts(&list), list.label.0)
            } else {
                format!("{:?}", parts(&chat_pairs().parse(row).unwrap()))
            };
            seen.push(format!("{source} {read}"));
        }
    }
    assert_eq!(
        seen,
        [
            r#"ultrafeedback.jsonl ["user: Name a red fruit.", "assistant: A banana.", "assistant: A cherry.", "assistant: Red."] [2.5, 8.0, 4.0]"#,
            r#"helpsteer2.jsonl ["user: 2+2?", "assistant: 4, \"four\"", "assistant: 22"]"#,
            r#"helpsteer3.jsonl ["user: Hi | assistant: Hello. | user: Where is Oslo?", "assistant: In Norway.", "assistant: In Peru."]"#,
            r#"helpsteer3.jsonl ["user: 2+2?", "assistant: 4", "assistant: 5"]"#,
            r#"nectar.jsonl ["user: Name a red fruit.", "assistant: A banana.", "assistant: A cherry."] [-2.0, -1.0]"#,
            r#"saferlhf.jsonl ["user: How do I sleep well?", "assistant: In the dark.", "assistant: Never."]"#,
            r#"saferlhf.jsonl ["user: 2+2?", "assistant: 4", "assistant: 5"]"#,
            r#"shp.jsonl ["user: Why is the sky blue?", "assistant: It scatters.", "assistant: Paint."]"#,
            r#"shp.jsonl ["user: 2+2?", "assistant: 4", "assistant: 5"]"#,
            r#"nemo.jsonl ["user: 2+2?", "assistant: 4", "assistant: 5"]"#,
            r#"nemo.jsonl ["user: Hi | assistant: Hello. | user: 3+3?", "assistant: 6", "assistant: 33"]"#,
        ]
    );
}

/// A prompt in a column of another name is not lost for the letters that both answers begin with.
#[test]
fn strings_without_a_prompt_beside_a_text_are_refused() {
    let plain = PairFormat::default();
    for name in [
        "question",
        "input",
        "instruction",
        "context",
        "history",
        "query",
        "system",
    ] {
        // Also where it has one word, or none.
        for text in ["2+2=", "Why?", "Why is it so?"] {
            let json =
                format!(r#"{{"{name}": "{text}", "chosen": "Ab", "rejected": "Ac", "id": 1}}"#);
            for format in [&plain, &chat_pairs()] {
                let error = refused(format, &json);
                assert_eq!(
                    (error.field(), error.found()),
                    ("prompt", "nothing"),
                    "{json}"
                );
                assert!(error.expected().contains(&format!("`{name}`")), "{error}");
            }
        }
    }
    let other = r#"{"task": "Say it twice", "chosen": "Ab", "rejected": "Ac", "id": "x7 9"}"#;
    let error = refused(&plain, other);
    assert!(error.expected().contains("one of `task` ("), "{error}");
    let messages =
        r#"{"talk": [{"from": "human", "value": "Hi"}], "chosen": "Ab", "rejected": "Ac"}"#;
    assert!(refused(&plain, messages).expected().contains("`talk`"));

    // It is said that there is none; other columns are no texts; null and blank ones are none.
    let said = PairFormat {
        implicit_prompt: true,
        ..PairFormat::default()
    };
    assert_eq!(
        parts(&said.parse(row(other)).unwrap()),
        ["\"A\"", "\"b\"", "\"c\""]
    );
    for json in [
        r#"{"chosen": "Ab", "rejected": "Ac", "source": "hh", "id": 7, "rating": [1, 2], "day": "2024-01-01 10:00"}"#,
        r#"{"chosen": "Ab", "rejected": "Ac", "question": null, "system": "", "input": " "}"#,
        r#"{"prompt": null, "chosen": "Ab", "rejected": "Ac"}"#,
    ] {
        assert_eq!(
            parts(&plain.parse(row(json)).unwrap())[0],
            "\"A\"",
            "{json}"
        );
    }
    // A column that is asked for is there.
    let error = refused(
        &pairs("qestion", "chosen", "rejected"),
        r#"{"question": "?", "chosen": "Ab", "rejected": "Ac"}"#,
    );
    assert_eq!((error.field(), error.found()), ("qestion", "nothing"));
    // Conversations have their prompts in them; those that do not name the column that may be it.
    let turn = |text: &str| {
        format!(
            r#"[{{"role": "user", "content": "Q"}}, {{"role": "assistant", "content": "{text}"}}]"#
        )
    };
    let json = format!(
        r#"{{"question": "Q", "chosen": {}, "rejected": {}}}"#,
        turn("A"),
        turn("B")
    );
    assert_eq!(
        parts(&chat_pairs().parse(row(&json)).unwrap()),
        ["user: Q", "assistant: A", "assistant: B"]
    );
    let answers = r#"{"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "A"},
                      "rejected": {"from": "gpt", "value": "B"}}"#;
    let error = refused(&chat_pairs(), answers);
    assert!(
        error
            .found()
            .ends_with("the prompt may be one of `conversations`"),
        "{error}"
    );
}

/// What both answers begin with ends inside an answer, so that no string becomes messages by it.
#[test]
fn strings_without_a_prompt_do_not_become_messages() {
    let json = r#"{"chosen": "The sky is blue.", "rejected": "The sky is green."}"#;
    let error = refused(&chat_pairs(), json);
    assert_eq!((error.field(), error.found()), ("prompt", "nothing"));
    assert!(
        error.expected().contains("ends inside an answer"),
        "{error}"
    );
    let said = PairFormat {
        implicit_prompt: true,
        ..chat_pairs()
    };
    assert_eq!(refused(&said, json), error);
    // One transcript and a string that is none: another last answer.
    let mixed = r#"{"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "B"}"#;
    assert_eq!(
        parts(&chat_pairs().parse(row(mixed)).unwrap()),
        ["user: Q", "assistant: A", "assistant: B"]
    );
}

#[test]
fn transcripts_are_turns() {
    let of = |json: &str| parts(&chat_pairs().parse(row(json)).unwrap());
    // Blanks or none before it, no space behind a mark, several lines, an answer with nothing in it.
    let json = r#"{"chosen": "Human:Q\nand more\n\nAssistant:\n\nHuman: So?\n\nAssistant: A", "id": "x",
                   "rejected": "  Human:Q\nand more\n\nAssistant:\n\nHuman: So?\n\nAssistant: "}"#;
    assert_eq!(
        of(json),
        [
            "user: Q\nand more | assistant:  | user: So?",
            "assistant: A",
            "assistant: "
        ]
    );
    // They part before the last answer; one goes on.
    let parted = r#"{"chosen": "\n\nHuman: Q\n\nAssistant: A\n\nHuman: So?\n\nAssistant: C",
                     "rejected": "\n\nHuman: Q\n\nAssistant: B"}"#;
    assert_eq!(
        of(parted),
        [
            "user: Q",
            "assistant: A | user: So? | assistant: C",
            "assistant: B"
        ]
    );
    let same =
        r#"{"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: A"}"#;
    assert_eq!(of(same), ["user: Q", "assistant: A", "assistant: A"]);
    // The prompt opens the answer, the answers do, or they repeat the prompt.
    let usual = ["user: Q", "assistant: A", "assistant: B"];
    for json in [
        r#"{"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " A", "rejected": " B"}"#,
        r#"{"prompt": "\n\nHuman: Q", "chosen": "\n\nAssistant: A", "rejected": "\n\nAssistant: B"}"#,
        r#"{"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": "\n\nHuman: Q\n\nAssistant: A",
            "rejected": "\n\nHuman: Q\n\nAssistant: B"}"#,
        r#"{"prompt": "Q", "chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"}"#,
    ] {
        assert_eq!(of(json), usual, "{json}");
    }
    // What only looks like one is text.
    let json = r#"{"prompt": "What is a Human: in HH?", "chosen": "A", "rejected": "B"}"#;
    assert_eq!(of(json)[0], "user: What is a Human: in HH?");
    let open = chat("prompt")
        .parse(row(r#"{"prompt": "\n\nHuman: Q\n\nAssistant:"}"#))
        .unwrap();
    assert_eq!(parts(&open), ["user: Q"]);
    assert_eq!(
        parts(&chat("prompt").parse(row(r#"{"prompt": "Q"}"#)).unwrap()),
        ["user: Q"]
    );

    // As text, the prompt ends where the answer opens, whatever both answers begin with.
    let text = r#"{"chosen": "\n\nHuman: Q\n\nAssistant: The sky is blue.",
                   "rejected": "\n\nHuman: Q\n\nAssistant: The sky is green."}"#;
    let text = PairFormat::default().parse(row(text)).unwrap();
    let expected = [
        r#""\n\nHuman: Q\n\nAssistant:""#,
        "\" The sky is blue.\"",
        "\" The sky is green.\"",
    ];
    assert_eq!(parts(&text), expected);
}

#[test]
fn a_system_message_of_a_column() {
    let answers = r#""chosen": "A", "rejected": "B""#;
    let of = |format: &PairFormat, rest: &str| {
        let parsed = format.parse(row(&format!("{{{rest}, {answers}}}")));
        parsed.map(|example| (shown(&example.prompt), example.columns.len()))
    };
    let system = r#""system": "Be brief.", "prompt": "#;
    let (prompt, columns) = of(&chat_pairs(), &format!(r#"{system}"Q""#)).unwrap();
    assert_eq!(
        (prompt.as_str(), columns),
        ("system: Be brief. | user: Q", 0)
    );
    // Messages as they are, strings as text: there it is left, and reported.
    let messages = |role: &str| {
        format!(
            r#"[{{"role": "{role}", "content": "Be brief."}}, {{"role": "user", "content": "Q"}}]"#
        )
    };
    let plain = PairFormat::default();
    let once = of(&plain, &format!("{system}{}", messages("system"))).unwrap();
    assert_eq!(once, ("system: Be brief. | user: Q".into(), 0));
    assert_eq!(
        of(&plain, &format!(r#"{system}"Q""#)).unwrap(),
        ("\"Q\"".into(), 1)
    );
    for blank in ["null", "\"\"", "\" \""] {
        let (prompt, _) = of(
            &chat_pairs(),
            &format!(r#""system": {blank}, "prompt": "Q""#),
        )
        .unwrap();
        assert_eq!(prompt, "user: Q", "{blank}");
    }
    let other = format!(
        r#""system": "Be long.", "prompt": {}"#,
        messages("developer")
    );
    let error = of(&plain, &other).unwrap_err();
    assert_eq!((error.field(), error.found()), ("system", "another one"));
    let number = of(&chat_pairs(), r#""system": 3, "prompt": "Q""#).unwrap_err();
    assert_eq!((number.field(), number.found()), ("system", "a number"));
    // Another column, or none.
    let mut named = chat_pairs();
    named.prompt.system = Some("mood".into());
    let both = r#""mood": "Calm.", "system": 3, "prompt": "Q""#;
    assert_eq!(
        of(&named, both).unwrap(),
        ("system: Calm. | user: Q".into(), 1)
    );
    named.prompt.system = None;
    assert_eq!(of(&named, both).unwrap(), ("user: Q".into(), 2));
}

#[test]
fn roles_of_other_names() {
    let format = UnpairedFormat {
        prompt: PromptFormat {
            roles: [("prompter".into(), "user".into())].into(),
            ..PromptFormat::default()
        },
        ..UnpairedFormat::default()
    };
    let json = |role: &str, key: &str, value: &str| {
        format!(
            r#"{{"prompt": [{{"{key}": "{role}", "{value}": "Q"}}], "completion": "A", "label": 1}}"#
        )
    };
    let usual = UnpairedFormat::default();
    for (format, role, expected) in [
        (&usual, "human", "user: Q"),
        (&usual, "Human", "user: Q"),
        (&usual, "user", "user: Q"),
        (&usual, "tool", "tool: Q"),
        (&format, "prompter", "user: Q"),
    ] {
        for (key, value) in [("role", "content"), ("from", "value")] {
            let example = format.parse(row(&json(role, key, value))).unwrap();
            assert_eq!(parts(&example)[0], expected);
        }
    }
    // A template may know a role that we do not; nobody has ShareGPT's names in a template.
    assert_eq!(
        parts(
            &usual
                .parse(row(&json("prompter", "role", "content")))
                .unwrap()
        )[0],
        "prompter: Q"
    );
    let error = refused(&usual, &json("function_call", "from", "value"));
    assert_eq!(
        (error.field(), error.found()),
        ("prompt[0].from", "function_call")
    );
    assert!(error.expected().contains("human"), "{error}");
    let object = r#"{"prompt": {"full_text": "Q"}, "completion": "A", "label": 1}"#;
    assert_eq!(refused(&usual, object).found(), "an object");
    let error = refused(&usual, &json("human", "from", "content"));
    assert_eq!(
        (error.field(), error.found()),
        ("prompt[0].value", "nothing")
    );
}

fn id(word: &str) -> u32 {
    let next = |id: u32, byte: u8| id.wrapping_mul(31).wrapping_add(u32::from(byte));
    word.bytes().fold(7, next) | 4
}

/// A token per word; a message is `<role>`, its words, `</>`, and 1 begins every text.
#[expect(clippy::unnecessary_wraps, reason = "what `Tokenized` asks for")]
fn words(text: Encode<'_>) -> Result<Vec<u32>, Infallible> {
    let mut ids = vec![1];
    match text.content {
        Content::Plain(text) => ids.extend(text.split_whitespace().map(id)),
        Content::Conversation(messages) => {
            for message in messages {
                ids.push(id(&format!("<{}>", message.role)));
                ids.extend(message.text().unwrap().split_whitespace().map(id));
                ids.push(2);
            }
            ids.extend(text.add_generation_prompt.then(|| id("<assistant>")));
        }
    }
    Ok(ids)
}

fn tokenized<F: Format>(
    format: &F,
    rows: &[&str],
    truncation: Truncation,
) -> Tokenized<InMemDataset<Example<Text, F::Label>>, fn(Encode<'_>) -> Result<Vec<u32>, Infallible>>
where
    F::Label: burn_preference::data::Labels,
{
    let rows = rows.iter().map(|json| format.parse(row(json)).unwrap());
    let rows = InMemDataset::new(rows.collect());
    Tokenized::new(rows, words as fn(Encode<'_>) -> _, truncation).unwrap()
}

#[test]
fn the_report_names_what_is_not_read() {
    let keep = Truncation::Drop { max_length: 99 };
    let rows = [
        r#"{"id": 1, "system": "Be brief.", "input": "x", "prompt": "Q", "chosen": "A", "rejected": "B", "note": null}"#,
        r#"{"id": 2, "system": "Be brief.", "prompt": "Q", "chosen": "A", "rejected": "B", "why": "a longer text",
            "tools": []}"#,
    ];
    let of_chat = tokenized(&chat_pairs(), &rows, keep);
    let report = of_chat.report();
    let names = |columns: &std::collections::BTreeMap<String, usize>| {
        columns
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&report.unread_columns), ["id 2", "input 1", "why 1"]);
    assert_eq!(names(&report.unread_texts), ["input 1", "why 1"]);
    assert_eq!((report.system_prompts, report.answered_prompts), (2, 0));
    let text = report.to_string();
    for line in [
        "prompts with a system message: 2\n",
        "columns that are not read: `id`, `input`, `why`\n",
        "look: the model sees nothing of the columns `input`, `why`\n",
    ] {
        assert!(text.contains(line), "{text}");
    }

    let plain = tokenized(&PairFormat::default(), &rows, keep);
    assert_eq!(
        names(&plain.report().unread_texts),
        ["input 1", "system 2", "tools 1", "why 1"]
    );
    assert_eq!(plain.report().system_prompts, 0);

    let meant = [
        r#"{"prompt": "Q", "chosen": "A", "rejected": "B", "winner": 1, "documents": [3], "images": [], "id": 4}"#,
        r#"{"prompt": "User: Q\nAssistant: A", "chosen": "[{\"role\": \"user\"}]", "rejected": "[{'from': 'gpt'}]", "context": {"a": 1}}"#,
        r#"{"prompt": "[INST] Q [/INST]", "chosen": "[a]", "rejected": "{\"a\": 1}", "persona": "Ed"}"#,
    ];
    for format in [chat_pairs(), PairFormat::default()] {
        let meant = tokenized(&format, &meant, keep);
        let report = meant.report();
        assert_eq!(
            names(&report.unread_texts),
            ["context 1", "documents 1", "persona 1", "winner 1"]
        );
        assert_eq!((report.written_messages, report.other_transcripts), (2, 2));
        let text = report.to_string();
        let look = "look: 2 strings that look like messages in JSON";
        assert!(text.contains(look), "{text}");
    }

    let turns = r#"{"prompt": [{"role": "prompter", "content": "Q"}, {"role": "assistant", "content": "A"}],
                    "chosen": "A", "rejected": "B"}"#;
    let turns = tokenized(&PairFormat::default(), &[turns, turns], keep);
    let report = turns.report();
    assert_eq!(
        (report.answered_prompts, names(&report.other_roles)),
        (2, vec!["prompter 2".into()])
    );
    let text = report.to_string();
    for line in [
        "look: 2 messages of the role `prompter`, which chat templates seldom know\n",
        "look: 2 prompts that end with a message of the assistant\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let quiet = r#"{"prompt": "Q", "chosen": "A", "rejected": "B"}"#;
    let quiet = tokenized(&chat_pairs(), &[quiet], keep)
        .report()
        .to_string();
    assert!(
        !quiet.contains("look") && !quiet.contains("columns"),
        "{quiet}"
    );
}

/// What is cut of a prompt is its middle: its opening stays, and the end before the answer.
#[test]
fn prompts_keep_their_opening() {
    let json = r#"{"prompt": [{"role": "system", "content": "s t"}, {"role": "user", "content": "a b c d e f"}],
                   "chosen": "X Y", "rejected": "Z"}"#;
    let format = chat_pairs();
    let whole = tokenized(&format, &[json], Truncation::Drop { max_length: 99 });
    let whole = whole.get(0).unwrap();
    // 1 <system> s t 2 <user> a b c d e f 2 <assistant>, and X Y 2
    assert_eq!((whole.prompt.len(), whole.chosen().len()), (14, 3));
    let opening = 6;
    let of = |truncation| {
        let tokens = tokenized(&format, &[json], truncation);
        match tokens.report().dropped.first() {
            Some(dropped) => Err(dropped.reason.clone()),
            None => Ok((tokens.get(0).unwrap(), tokens.report().shortened_prompts)),
        }
    };
    let middle = |max_length| Truncation::PromptMiddle { max_length };
    let both = |min_prompt, max_length| Truncation::PromptMiddleThenCompletionStart {
        min_prompt,
        max_length,
    };
    // What fits is whole, also a prompt of more than half.
    for fits in [middle(17), both(1, 17), both(16, 17)] {
        assert_eq!(of(fits), Ok((whole.clone(), 0)));
    }
    for (truncation, prompt, completion) in [
        (middle(16), 13, 3),
        (middle(12), 9, 3),
        (both(9, 11), 9, 2),
        (both(1, 12), 9, 3),
        (both(13, 14), 13, 1),
    ] {
        let (short, cut) = of(truncation).unwrap();
        let last = &whole.prompt[14 - (prompt - opening)..];
        assert_eq!(
            short.prompt,
            [&whole.prompt[..opening], last].concat(),
            "{truncation:?}"
        );
        assert_eq!(
            short.chosen(),
            &whole.chosen()[..completion],
            "{truncation:?}"
        );
        assert_eq!(cut, 1);
    }
    // Eight tokens are the opening, the end of the turn and the opening of the answer.
    for none in [middle(11), both(8, 11), both(6, 7), middle(2)] {
        assert_eq!(of(none), Err(Reason::LosesPrompt), "{none:?}");
    }

    // Of a string, what the tokenizer begins every text with.
    let plain = tokenized(
        &PairFormat::default(),
        &[r#"{"prompt": "a b c d", "chosen": " X", "rejected": " Y"}"#],
        middle(4),
    );
    assert_eq!(plain.get(0).unwrap().prompt, [1, id("c"), id("d")]);

    // Nothing stands behind the system message, which is not cut.
    let alone = r#"{"prompt": [{"role": "system", "content": "s t u v w"}], "chosen": "X", "rejected": "Y"}"#;
    let alone = tokenized(&format, &[alone], middle(8));
    assert_eq!(alone.report().dropped[0].reason, Reason::LosesPrompt);
}
