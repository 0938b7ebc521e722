//! Conversations by a model's own chat template: tools, several turns, and the mask of what the
//! assistant says.
//!
//! ```console
//! cargo run -p finetune --example chat_template     # a row and a template of its own
//! cargo run -p finetune --example chat_template -- --model FOLDER --data pairs.jsonl
//! ```
//!
//! `FOLDER` has a model's `tokenizer_config.json` and `tokenizer.json`. The report is printed, then
//! the first rows with the tokens that count in brackets: the assistant's turns, not the answers of
//! a tool.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use burn::data::dataset::Dataset;
use burn_preference::data::{
    Content, Encode, Encoded, JsonLines, PairFormat, Tokenized, Truncation,
};
use burn_preference::tokens::Sequence;
use clap::Parser;
use finetune::ChatTemplate;
use minijinja::Value;
use minijinja::value::Serde;
use time::OffsetDateTime;
use tokenizers::Tokenizer;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
struct Args {
    /// A folder with `tokenizer_config.json` and `tokenizer.json`.
    #[arg(long)]
    model: Option<PathBuf>,
    /// JSON lines of pairs.
    #[arg(long)]
    data: Option<PathBuf>,
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

/// The chosen side asks the tool, the rejected one guesses.
const ROW: &str = r#"{"tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}], "prompt": [{"role": "user", "content": "How warm is it in Bern?"}], "chosen": [{"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Bern", "days": 1}}}]}, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "Three degrees."}], "rejected": [{"role": "assistant", "content": "Warm, I think."}]}"#;

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    // One date for the whole run: a template that writes it gives other tokens tomorrow.
    let now = OffsetDateTime::now_utc();
    let (template, tokenizer) = match args.model {
        Some(folder) => (
            ChatTemplate::open(&folder, now)?,
            Tokenizer::from_file(folder.join("tokenizer.json"))?,
        ),
        None => (ChatTemplate::new(TEMPLATE, now)?, bytes()?),
    };
    let directory = tempfile::tempdir()?;
    let path = if let Some(path) = args.data {
        path
    } else {
        let path = directory.path().join("pairs.jsonl");
        fs::write(&path, ROW)?;
        path
    };
    let rows = JsonLines::new(path, PairFormat::default()).open()?;
    let pairs = Tokenized::new(
        rows,
        |text: Encode<'_>| encode(&template, &tokenizer, text),
        Truncation::Drop { max_length: 4096 },
    )?;
    print!("{}", pairs.report());
    for pair in pairs.iter().take(2) {
        for sequence in pair?.sequences() {
            println!("\n{}", bracketed(&tokenizer, &sequence)?);
        }
    }
    Ok(())
}

/// What `Tokenized` asks for: `apply_chat_template`, and the tokenizer after it.
fn encode(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    text: Encode<'_>,
) -> Result<Encoded, Failure> {
    let Content::Conversation(messages) = text.content else {
        return Err("a text where a conversation was expected".into());
    };
    let rendered = template.render(
        Value::from(Serde(messages)),
        text.tools.map(|tools| Value::from(Serde(tools))),
        text.add_generation_prompt,
        &Value::from(Serde(text.chat_template_kwargs)),
    )?;
    // The template wrote the special tokens: none is added.
    let encoding = tokenizer.encode(rendered.text.as_str(), false)?;
    let ids = encoding.get_ids().to_vec();
    // A template without `{% generation %}` leaves it to `Tokenized` to find the turns.
    Ok(match rendered.assistant_mask(encoding.get_offsets()) {
        Some(counted) => (ids, counted).into(),
        None => ids.into(),
    })
}

/// The text of a sequence, with what counts in brackets.
fn bracketed(tokenizer: &Tokenizer, sequence: &Sequence) -> Result<String, Failure> {
    let completion = sequence.completion();
    let all = vec![true; completion.len()];
    let counted = sequence.counted().unwrap_or(&all);
    let mut text = tokenizer.decode(sequence.prompt(), false)?;
    let mut start = 0;
    for run in counted.chunk_by(|a, b| a == b) {
        let end = start + run.len();
        let part = tokenizer.decode(&completion[start..end], false)?;
        let [open, close] = if run[0] { ["⟦", "⟧"] } else { ["", ""] };
        text += open;
        text += &part;
        text += close;
        start = end;
    }
    Ok(text)
}

/// A tokenizer of bytes: a model's own has the same interface.
fn bytes() -> Result<Tokenizer, Failure> {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocab: Vocab = alphabet.iter().map(char::to_string).zip(0..).collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, Vec::new()).build()?;
    let mut tokenizer = Tokenizer::new(bpe);
    let bytes = || ByteLevel::default().add_prefix_space(false);
    tokenizer.with_pre_tokenizer(Some(bytes()));
    tokenizer.with_decoder(Some(bytes()));
    Ok(tokenizer)
}
