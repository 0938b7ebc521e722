//! The example's chat templates against transformers' `apply_chat_template`, byte for byte:
//! `scripts/chat_goldens.py` makes the goldens, and says whose the templates are.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use minijinja::Value;
use serde::Deserialize;
use time::OffsetDateTime;
use tokenizers::Tokenizer;

use finetune::{Chat, ChatTemplate, DecoderConfig, Raised, Rendered};

#[derive(Deserialize)]
struct Goldens {
    bos_token: String,
    eos_token: String,
    tools: Value,
    conversations: Value,
    templates: Vec<Family>,
    snippets: Vec<Snippet>,
    blanks: Blanks,
    beside: Vec<Beside>,
}

/// Files beside `tokenizer.json`, and what a tokenizer makes of a text with them.
#[derive(Deserialize)]
struct Beside {
    files: BTreeMap<String, serde_json::Value>,
    text: String,
    ids: Vec<u32>,
    decoded: String,
    /// A template that writes special tokens, and what becomes of it.
    template: String,
    names: String,
    end: u32,
}

/// A tokenizer that drops blanks, and masks of templates whose blocks begin or end with them.
#[derive(Deserialize)]
struct Blanks {
    tokenizer: serde_json::Value,
    masks: Vec<(String, Vec<u8>)>,
}

/// A small template, and what becomes of it.
#[derive(Deserialize)]
struct Snippet {
    source: String,
    text: Option<String>,
}

#[derive(Deserialize)]
struct Family {
    name: String,
    /// Beside the goldens where it is ours.
    template: Option<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    conversation: String,
    tools: bool,
    add_generation_prompt: bool,
    kwargs: Value,
    text: Option<String>,
    tokens: Option<usize>,
    /// From and to which token the assistant speaks.
    assistant: Option<Vec<(usize, usize)>>,
    error: Option<String>,
}

fn data(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat");
    fs::read_to_string(folder.join(file)).unwrap()
}

/// The clock of the goldens: 2026-03-07 12:05:09 UTC.
fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_772_885_109).unwrap()
}

fn template(source: &str, goldens: &Goldens) -> ChatTemplate {
    ChatTemplate::new(source, now())
        .unwrap()
        .with_special_token("bos_token", &goldens.bos_token)
        .with_special_token("eos_token", &goldens.eos_token)
}

/// What differs from the golden, if anything does.
fn difference(
    goldens: &Goldens,
    case: &Case,
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
) -> Option<String> {
    let messages = goldens.conversations.get_attr(&case.conversation).unwrap();
    let tools = case.tools.then(|| goldens.tools.clone());
    let rendered = template.render(messages, tools, case.add_generation_prompt, &case.kwargs);
    let rendered: Rendered = match (rendered, &case.text) {
        (Err(_), None) => return None,
        (Err(error), Some(_)) => return Some(format!("error: {error:#}")),
        (Ok(rendered), None) => {
            let refused = case.error.as_ref().unwrap();
            return Some(format!("not refused ({refused}): {}", rendered.text));
        }
        (Ok(rendered), Some(_)) => rendered,
    };
    if Some(&rendered.text) != case.text.as_ref() {
        return Some(format!(
            "text: {:?}\nexpected: {:?}",
            rendered.text, case.text
        ));
    }
    let encoding = tokenizer.encode(rendered.text.as_str(), false).unwrap();
    if Some(encoding.len()) != case.tokens {
        return Some(format!(
            "{} tokens, expected {:?}",
            encoding.len(),
            case.tokens
        ));
    }
    let mask = rendered.assistant_mask(encoding.get_offsets());
    let expected = case.assistant.as_ref().map(|runs| {
        let spoken = |token: usize| runs.iter().any(|run| (run.0..run.1).contains(&token));
        (0..encoding.len()).map(spoken).collect::<Vec<_>>()
    });
    (mask != expected).then(|| format!("mask: {mask:?}\nexpected: {expected:?}"))
}

fn tokenizer() -> Tokenizer {
    data("tokenizer.json").parse().unwrap()
}

#[test]
fn as_transformers_renders_them() {
    let goldens: Goldens = serde_json::from_str(&data("goldens.json")).unwrap();
    let tokenizer = tokenizer();
    let (mut texts, mut errors, mut masks) = (0, 0, 0);
    for family in &goldens.templates {
        let template = template(&data(&format!("{}.jinja", family.name)), &goldens);
        for case in &family.cases {
            if let Some(difference) = difference(&goldens, case, &template, &tokenizer) {
                panic!(
                    "{}, {:?}, tools {}, prompt {}: {difference}",
                    family.name, case.conversation, case.tools, case.add_generation_prompt
                );
            }
            texts += usize::from(case.text.is_some());
            errors += usize::from(case.error.is_some());
            masks += usize::from(case.assistant.as_ref().is_some_and(|runs| !runs.is_empty()));
        }
    }
    assert_eq!(goldens.templates.len(), 5);
    assert!(
        texts > 200 && errors > 40 && masks > 100,
        "{texts} {errors} {masks}"
    );
}

/// Filters, tests, methods, white space and scopes, one by one.
#[test]
fn small_templates() {
    let goldens: Goldens = serde_json::from_str(&data("goldens.json")).unwrap();
    assert!(goldens.snippets.len() > 40);
    for Snippet { source, text } in &goldens.snippets {
        let messages = goldens.conversations.get_attr("odd characters").unwrap();
        let tools = Some(goldens.tools.clone());
        let rendered = template(source, &goldens).render(messages, tools, true, &Value::from(()));
        match text {
            Some(text) => assert_eq!(&rendered.expect(source).text, text, "{source}"),
            None => assert!(rendered.is_err(), "{source}"),
        }
    }
}

#[test]
fn blanks_that_the_tokenizer_drops() {
    let goldens: Goldens = serde_json::from_str(&data("goldens.json")).unwrap();
    let tokenizer: Tokenizer = goldens.blanks.tokenizer.to_string().parse().unwrap();
    assert!(goldens.blanks.masks.len() > 5);
    for (source, expected) in &goldens.blanks.masks {
        let message = Value::from_pairs([("content", "")]);
        let rendered = template(source, &goldens)
            .render(Value::from(vec![message]), None, false, &Value::from(()))
            .unwrap();
        let encoding = tokenizer.encode(rendered.text.as_str(), false).unwrap();
        let mask = rendered.assistant_mask(encoding.get_offsets()).unwrap();
        let mask: Vec<u8> = mask.into_iter().map(u8::from).collect();
        assert_eq!(&mask, expected, "{source}");
    }
}

/// Special tokens that only the files beside `tokenizer.json` name.
#[test]
fn files_beside_the_tokenizer() {
    let goldens: Goldens = serde_json::from_str(&data("goldens.json")).unwrap();
    let config = config_of(400);
    assert!(goldens.beside.len() > 6);
    for beside in &goldens.beside {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("tokenizer.json", &data("tokenizer.json"));
        write("chat_template.jinja", &beside.template);
        for (name, content) in &beside.files {
            write(name, &content.to_string());
        }
        let chat = Chat::open(folder.path(), &config).unwrap();
        let files = &beside.files;
        assert_eq!(chat.ids(&beside.text).unwrap(), beside.ids, "{files:?}");
        assert_eq!(
            chat.decode(&beside.ids).unwrap(),
            beside.decoded,
            "{files:?}"
        );
        assert_eq!(chat.end, beside.end, "{files:?}");
        let template = ChatTemplate::open(folder.path(), now()).unwrap();
        let message = Value::from_pairs([("content", "")]);
        let rendered = template
            .render(Value::from(vec![message]), None, false, &Value::from(()))
            .unwrap();
        assert_eq!(rendered.text, beside.names, "{files:?}");
    }
}

/// A decoder of this many words.
fn config_of(vocab: usize) -> DecoderConfig {
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4,
        "num_hidden_layers": 1, "vocab_size": vocab,
    });
    DecoderConfig::parse(config.as_object().unwrap().clone()).unwrap()
}

#[test]
fn tokens_that_the_model_has_no_words_for() {
    let folder = tempfile::tempdir().unwrap();
    let open = |config: serde_json::Value| {
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("tokenizer.json", &data("tokenizer.json"));
        write("tokenizer_config.json", &config.to_string());
        let chat = Chat::open(folder.path(), &config_of(340));
        chat.map_err(|error| error.to_string())
    };
    // Padding is never counted: what ends a text fills rows.
    let chat = open(serde_json::json!({"eos_token": "</s>", "pad_token": "[PAD]"})).unwrap();
    assert_eq!(chat.padding, chat.end);
    let error = open(serde_json::json!({"eos_token": "<end>"}))
        .err()
        .unwrap();
    assert!(error.starts_with("no `eos_token`"), "{error}");
    let more = serde_json::json!({"eos_token": "</s>", "additional_special_tokens": ["<end>"]});
    let error = open(more).err().unwrap();
    assert!(
        error.contains("the id 340 (\"<end>\"), and the model 340 words"),
        "{error}"
    );
    let far = serde_json::json!({"eos_token": "</s>", "added_tokens_decoder": {
        "339": {"content": "<tool>"}
    }});
    let error = open(far).err().unwrap();
    assert!(
        error.contains("tokenizer_config.json: \"<tool>\" has the id 339")
            && error.contains("at 340"),
        "{error}"
    );
    // Ids of an older file: the error names it.
    let older = folder.path().join("added_tokens.json");
    fs::write(&older, r#"{"<tool>": 339}"#).unwrap();
    let error = open(serde_json::json!({"eos_token": "</s>"}))
        .err()
        .unwrap();
    assert!(
        error.contains("added_tokens.json: \"<tool>\" has the id 339")
            && !error.contains("tokenizer_config.json"),
        "{error}"
    );
    fs::remove_file(older).unwrap();
    let error = open(serde_json::json!({"eos_token": null})).err().unwrap();
    assert!(error.contains("eos_token"), "{error}");
}

/// The models' own templates, where `BURN_PREFERENCE_CHAT` names their goldens.
///
/// One difference is known: a method of a text that has none in Python, where the template goes on.
#[test]
#[ignore = "their goldens are made by scripts/chat_goldens.py --originals"]
fn the_models_own_templates() {
    let path = std::env::var_os("BURN_PREFERENCE_CHAT").expect("BURN_PREFERENCE_CHAT");
    let goldens: Goldens = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let tokenizer = tokenizer();
    let (mut same, mut known) = (0, 0);
    for family in &goldens.templates {
        let template = template(family.template.as_ref().unwrap(), &goldens);
        for case in &family.cases {
            let Some(difference) = difference(&goldens, case, &template, &tokenizer) else {
                same += 1;
                continue;
            };
            let lenient = case
                .error
                .as_ref()
                .is_some_and(|error| error.contains("'str object'"));
            let name = (&family.name, &case.conversation);
            assert!(lenient, "{name:?}: {difference}");
            known += 1;
        }
    }
    println!(
        "{same} the same, {known} known differences, {} templates",
        goldens.templates.len()
    );
}

#[test]
fn what_a_template_refuses_is_told_apart() {
    let goldens: Goldens = serde_json::from_str(&data("goldens.json")).unwrap();
    let template = template(&data("gemma2.jinja"), &goldens);
    let messages = goldens.conversations.get_attr("a system turn").unwrap();
    let none = Value::from(());
    let error = template.render(messages, None, false, &none).unwrap_err();
    assert_eq!(error.detail(), Some("Gemma 2 knows no system turn"));
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.is::<Raised>());
    // Not a conversation at all.
    let error = template
        .render(Value::from(3), None, false, &none)
        .unwrap_err();
    assert!(std::error::Error::source(&error).is_none());
}

#[test]
fn a_tokenizer_config() {
    let folder = tempfile::tempdir().unwrap();
    let write = |config: serde_json::Value| {
        let config = serde_json::to_string(&config).unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    };
    let render_with = |tools: Option<Value>| {
        let message = Value::from_pairs([("role", "user"), ("content", "Hi")]);
        let template = ChatTemplate::open(folder.path(), now())?;
        let none = Value::from(());
        let rendered = template.render(Value::from(vec![message]), tools, true, &none)?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(rendered.text)
    };
    let render = || render_with(None);
    let source =
        "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ strftime_now('%Y-%m-%d') }}";
    let end = serde_json::json!({"content": "</s>", "lstrip": false});
    write(serde_json::json!({"chat_template": source, "bos_token": "<s>", "eos_token": end}));
    assert_eq!(render().unwrap(), "<s></s>True2026-03-07");
    let named = serde_json::json!([
        {"name": "rag", "template": "no"},
        {"name": "default", "template": "yes"},
        {"name": "tool_use", "template": "{{ bos_token }}tools"},
    ]);
    write(serde_json::json!({"chat_template": named, "bos_token": "<s>"}));
    assert_eq!(render().unwrap(), "yes");
    let tools = Some(Value::from(vec![Value::from(1)]));
    assert_eq!(render_with(tools.clone()).unwrap(), "<s>tools");
    // A file of its own goes before.
    let apart = folder.path().join("chat_template.jinja");
    fs::write(&apart, "apart\n").unwrap();
    assert_eq!(render().unwrap(), "apart");
    assert_eq!(render_with(tools.clone()).unwrap(), "apart");
    // Others beside it, as transformers 5 saves several.
    let more = folder.path().join("additional_chat_templates");
    fs::create_dir(&more).unwrap();
    fs::write(more.join("tool_use.jinja"), "{{ bos_token }}apart").unwrap();
    assert_eq!(render_with(tools.clone()).unwrap(), "<s>apart");
    assert_eq!(render().unwrap(), "apart");
    fs::remove_file(apart).unwrap();
    assert_eq!(render_with(tools).unwrap(), "<s>apart");
    let error = render().unwrap_err().to_string();
    assert!(
        error.contains("none of the chat templates is named default"),
        "{error}"
    );
    fs::remove_dir_all(more).unwrap();
    write(serde_json::json!({"bos_token": "<s>"}));
    assert!(render().is_err(), "there is none");
}

/// A conversation that holds the character which marks turns would move them.
#[test]
fn marks_in_a_conversation_are_refused() {
    let source = "{% generation %}{{ messages[0].content }}{% endgeneration %}\
                  -{% generation %}x{% endgeneration %}";
    let render = |source: &str, content: &str| {
        let message = Value::from_pairs([("content", Value::from(content))]);
        let template = ChatTemplate::new(source, now()).unwrap();
        template.render(Value::from(vec![message]), None, false, &Value::from(()))
    };
    assert!(render(source, "\u{e000}").is_err());
    // Only those that the template does not use itself.
    let uses = format!("{source}\u{e000}");
    let rendered = render(&uses, "é\u{e000}").unwrap();
    assert_eq!(rendered.text, "é\u{e000}-x\u{e000}");
    assert_eq!(rendered.assistant, Some(vec![0..5, 6..7]));
}
