//! A model's own chat template, and the mask of what the assistant says.
//!
//! ```console
//! cargo run --example chat_template                          # a template in the style of Qwen 3
//! cargo run --example chat_template -- --model FOLDER        # tokenizer_config.json, tokenizer.json
//! ```
//!
//! A conversation with a tool is rendered, tokenized, and printed with the counted tokens in
//! brackets: the assistant's turns, not the tool's answer.

mod template;

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;
use minijinja::Value;
use template::{ChatTemplate, Rendered};
use time::OffsetDateTime;
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
struct Args {
    /// A folder with `tokenizer_config.json` and `tokenizer.json`.
    #[arg(long)]
    model: Option<PathBuf>,
}

/// Turns in tags, tools in front, and `{% generation %}` around what the model is to learn.
const TEMPLATE: &str = r"{%- if tools %}
    {{- '<|im_start|>system\n# Functions' }}
    {%- for tool in tools %}
        {{- '\n' + tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {{- message.content | default('') }}
            {%- for call in message.tool_calls %}
                {{- '<tool_call>' + call.function | tojson + '</tool_call>' }}
            {%- endfor %}
            {{- '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}";

const TOOLS: &str = r#"[{"type": "function", "function": {"name": "weather", "parameters": {}}}]"#;

const MESSAGES: &str = r#"[
    {"role": "user", "content": "How warm is it?"},
    {"role": "assistant", "content": null, "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"town": "Bern"}}}]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "Three degrees."}]"#;

fn main() -> Result<(), Failure> {
    // One date for the whole run: a template that writes it gives other tokens tomorrow.
    let now = OffsetDateTime::now_utc();
    let (template, tokenizer) = match Args::parse().model {
        Some(folder) => (
            ChatTemplate::open(&folder, now)?,
            Tokenizer::from_file(folder.join("tokenizer.json"))?,
        ),
        None => (ChatTemplate::new(TEMPLATE, now)?, words()?),
    };
    // Read as they stand: a template writes keys in their order, which `serde_json::Value` loses.
    let messages: Value = serde_json::from_str(MESSAGES)?;
    let tools: Value = serde_json::from_str(TOOLS)?;
    let rendered = template.render(messages, Some(tools), false, &Value::from(()))?;
    let (ids, counted) = tokens(&tokenizer, &rendered)?;
    let Some(counted) = counted else {
        println!("{}", rendered.text);
        println!("no {{% generation %}} block: masks come from prefixes of the conversation");
        return Ok(());
    };
    let spoken = counted.iter().filter(|&&counted| counted).count();
    println!("{}", bracketed(&rendered));
    println!("{} tokens, of which {spoken} count", ids.len());
    Ok(())
}

/// Ids, and which of them count. The template wrote the special tokens: none is added.
fn tokens(
    tokenizer: &Tokenizer,
    rendered: &Rendered,
) -> Result<(Vec<u32>, Option<Vec<bool>>), Failure> {
    let encoding = tokenizer.encode(rendered.text.as_str(), false)?;
    let counted = rendered.assistant_mask(encoding.get_offsets());
    Ok((encoding.get_ids().to_vec(), counted))
}

/// The text with what counts in brackets.
fn bracketed(rendered: &Rendered) -> String {
    let mut text = rendered.text.clone();
    for block in rendered.assistant.iter().flatten().rev() {
        text.insert(block.end, '⟧');
        text.insert(block.start, '⟦');
    }
    text
}

/// A tokenizer of words, all of them unknown: a model's own has the same interface.
fn words() -> Result<Tokenizer, Failure> {
    let unknown = [("?".to_owned(), 0)].into_iter().collect();
    let words = WordLevel::builder().vocab(unknown).unk_token("?".into());
    let mut tokenizer = Tokenizer::new(words.build()?);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    Ok(tokenizer)
}
