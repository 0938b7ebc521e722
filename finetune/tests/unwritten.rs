//! What a row says and the template of the model does not write is named, or ends the run.

mod support;

use serde_json::{Value, json};
use support::data;
use support::place::Place;

/// A place whose model has this template of tests/data/chat.
fn with_template(name: &str) -> Place {
    let place = Place::new("llama");
    let template = data("chat").join(format!("{name}.jinja"));
    let template = std::fs::read_to_string(template).unwrap();
    let config = place.text("model/tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["chat_template"] = template.into();
    place.write("model/tokenizer_config.json", &config.to_string());
    place
}

const USUAL: &str = "--data rows.jsonl --steps 1 --held-out 0.5 --batch 2 --max-length 256";

/// A pair with these messages before the answers, for four prompts.
fn write(place: &Place, shape: &Value) {
    let rows = ["red", "wet", "big", "hot"].map(|id| {
        let row = shape.to_string().replace("ID", id);
        format!("{row}\n")
    });
    place.write("rows.jsonl", &rows.concat());
}

fn user() -> Value {
    json!({"role": "user", "content": "a ID cat?"})
}

fn pair(prompt: &[Value]) -> Value {
    let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
    json!({"prompt": prompt, "chosen": answer("yes, a cat."), "rejected": answer("no!")})
}

/// The lines about the template that a run says.
fn looks(place: &Place, out: &str, shape: &Value) -> (Vec<String>, String) {
    write(place, shape);
    let text = place.run(out, USUAL).text;
    let start = "look: the chat template of this model writes ";
    let lines = text.lines().filter_map(|line| line.strip_prefix(start));
    let mut lines: Vec<String> = lines.map(str::to_owned).collect();
    // Those of both splits.
    lines.sort();
    lines.dedup();
    (lines, text)
}

#[test]
fn what_is_written_is_not_named() {
    let place = with_template("qwen3");
    let tools = json!([{"type": "function", "function": {"name": "cat"}}]);
    let call = json!([{"function": {"name": "cat", "arguments": {"a": "ID"}}}]);
    let mut row = pair(&[
        json!({"role": "system", "content": "be big"}),
        user(),
        // Thoughts of an earlier turn are left out by design.
        json!({"role": "assistant", "content": " yes ", "reasoning_content": "a cat"}),
        user(),
        json!({"role": "assistant", "content": "", "tool_calls": call}),
        json!({"role": "tool", "content": "dog", "tool_call_id": "1"}),
    ]);
    row["tools"] = tools;
    row["chosen"][0]["reasoning_content"] = "a dog".into();
    let (lines, text) = looks(&place, "written", &row);
    assert!(lines.is_empty(), "{lines:?}");
    assert!(text.contains("prompts with a system message: 2"), "{text}");
}

#[test]
fn what_is_not_written_is_named() {
    let place = with_template("qwen3");
    let mut row = pair(&[json!({"role": "developer", "content": "be big"}), user()]);
    row["prompt"][1]["name"] = "dog".into();
    row["chosen"][0]["weight"] = 1.into();
    row["chosen"][0]["function_call"] = json!({"name": "cat", "arguments": "{}"});
    let (lines, text) = looks(&place, "keys", &row);
    let expected = [
        "nothing of `function_call` of messages (2 of 2 examples)",
        "nothing of `name` of messages (2 of 2 examples)",
        "nothing of `weight` of messages (2 of 2 examples)",
        "nothing of the content of messages of the role `developer` (2 of 2 examples)",
    ];
    assert_eq!(lines, expected);
    assert!(!text.contains("prompts with a system message"), "{text}");

    // The template writes the system message in a last turn of the user alone.
    let place = with_template("mistral");
    let row = pair(&[json!({"role": "system", "content": "be big"}), user()]);
    let (lines, _) = looks(&place, "system", &row);
    let expected = "nothing of the content of messages of the role `system` (2 of 2 examples)";
    assert_eq!(lines, [expected]);

    // Neither tools nor thoughts nor pictures.
    let place = with_template("chatml");
    let mut row = json!({"prompt": "a ID cat?", "chosen": "yes, a cat.", "rejected": "no!"});
    row["tools"] = json!([{"type": "function", "function": {"name": "cat"}}]);
    let (lines, _) = looks(&place, "tools", &row);
    assert_eq!(lines, ["nothing of `tools` (2 of 2 examples)"]);
    let mut row = pair(&[user()]);
    row["chosen"][0]["reasoning_content"] = "a dog".into();
    let (lines, _) = looks(&place, "thoughts", &row);
    let expected = "nothing of `reasoning_content` of messages (2 of 2 examples)";
    assert_eq!(lines, [expected]);
}

#[test]
fn a_question_or_an_answer_that_is_not_written_ends_the_run() {
    let place = with_template("qwen3");
    let fails = |place: &Place, row: &Value, text: &str| {
        write(place, row);
        place.fails(USUAL, text);
    };
    let mut row = pair(&[user()]);
    row["prompt"][0]["content"] = json!([{"type": "text", "text": "a ID cat?"}]);
    fails(&place, &row, "of the role `user` says");
    let mut row = pair(&[user()]);
    row["rejected"][0]["content"] = json!([{"type": "text", "text": "no!"}]);
    fails(&place, &row, "the model would learn an empty answer");

    let place = with_template("gemma2");
    let calls = json!([{"function": {"name": "cat", "arguments": {}}}]);
    let mut row = pair(&[user()]);
    row["chosen"] = json!([{"role": "assistant", "content": "", "tool_calls": calls}]);
    fails(&place, &row, "such as `tool_calls` need a template");
}

#[test]
fn parts_of_a_content() {
    let place = Place::new("llama");
    let config = place.text("model/tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&config).unwrap();
    let template = |user: &str| {
        format!(
            "{{% for m in messages %}}{{% if m.role == 'user' %}}{user}{{% else %}}\
             <|assistant|>{{{{ m.content }}}}{{{{ eos_token }}}}{{% endif %}}{{% endfor %}}\
             {{% if add_generation_prompt %}}<|assistant|>{{% endif %}}"
        )
    };
    let mut row = pair(&[user()]);
    row["prompt"][0]["content"] = json!([
        {"type": "image", "image": "cat.png"},
        {"type": "text", "text": "a ID cat?"},
    ]);
    let parts =
        "{% for p in m.content %}{{ p.text if p.type == 'text' else '<|user|>' }}{% endfor %}";
    config["chat_template"] = template(parts).into();
    place.write("model/tokenizer_config.json", &config.to_string());
    let (lines, _) = looks(&place, "image", &row);
    let expected = "nothing of parts of the type `image` (2 of 2 examples)";
    assert_eq!(lines, [expected]);

    config["chat_template"] = template("{{ m.content }}").into();
    place.write("model/tokenizer_config.json", &config.to_string());
    let (lines, _) = looks(&place, "list", &row);
    let expected = "typed parts with their braces: it expects a string (2 of 2 examples)";
    assert_eq!(lines, [expected]);
}
