//! From JSON lines to batches: rows, what repeats, a split by conversation, a tokenizer with a chat
//! template, which tokens count, truncation with a report, tensors, and a position to resume from.
//! `--data FILE` for rows of your own, `--svg FILE` for a histogram of lengths.
//!
//! `cargo run --example preference_data`

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::transform::SelectionDataset;
use burn::data::dataset::{Dataset, InMemDataset};
use burn::tensor::Device;
use burn_preference::data::{
    Collator, Content, Cursor, Encode, Example, JsonLines, Message, OnError, PairFormat,
    PairTokens, Preference, Text, TokenizeOptions, Tokenized, Truncation, Turns, distinct,
    split_by,
};
use burn_preference::tokens::{Padding, Sequence};
use clap::Parser;
use plotters::prelude::*;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

type Failure = Box<dyn Error + Send + Sync>;
type Pairs = InMemDataset<Example<Text, Preference>>;

#[derive(Parser)]
struct Args {
    /// JSON lines of pairs in any of TRL's shapes, compressed by gzip or not.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Draws the lengths of prompts and completions into this file.
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// An explicit prompt, an implicit one, a conversation beside a string, one with a tool; and a pair
/// that teaches nothing, a row that stands twice and one that is broken.
const ROWS: &str = r#"{"group": "a", "prompt": "The capital of France is", "chosen": " Paris.", "rejected": " Lyon, I think, or perhaps another city."}
{"group": "a", "chosen": "The capital of Italy is Rome.", "rejected": "The capital of Italy is Milan."}
{"group": "b", "prompt": "2+2?", "chosen": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], "rejected": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "5"}]}
{"group": "b", "prompt": "2+3=", "chosen": "5", "rejected": "5"}
{"group": "c", "prompt": [{"role": "user", "content": "Is it cold in Oslo?"}], "tools": [{"name": "weather"}], "chosen": [{"role": "assistant", "content": null, "tool_calls": [{"name": "weather", "arguments": {"unit": "C", "city": "Oslo"}}]}, {"role": "tool", "content": "-3"}, {"role": "assistant", "content": "Yes, -3 C."}], "rejected": [{"role": "assistant", "content": "No."}]}
{"group": "c", "prompt": "2+3=", "chosen": "5", "rejected": "5"}
{"group": "c", "prompt": "Say nothing.", "chosen": 3, "rejected": "Nothing."}
"#;

const START: &str = "<start>";
const END: &str = "<end>";

/// A template: what a model's own, from its `tokenizer_config.json`, does.
fn render(messages: &[Message], text: &Encode<'_>) -> Result<String, Failure> {
    let mut rendered = String::new();
    if let Some(tools) = text.tools {
        writeln!(rendered, "{START}system\n{tools}{END}")?;
    }
    for message in messages {
        let said = message.text().ok_or("a part that is no text")?;
        let calls = message.other.get("tool_calls");
        let calls = calls.map_or(String::new(), ToString::to_string);
        writeln!(rendered, "{START}{}\n{said}{calls}{END}", message.role)?;
    }
    if text.add_generation_prompt {
        writeln!(rendered, "{START}assistant")?;
    }
    Ok(rendered)
}

/// What `Tokenized` asks for: the ids of one whole text.
fn encode(tokenizer: &Tokenizer, text: &Encode<'_>) -> Result<Vec<u32>, Failure> {
    let whole = match text.content {
        // A string that is complete ends with the end of sequence.
        Content::Plain(plain) if text.add_generation_prompt => plain.to_owned(),
        Content::Plain(plain) => format!("{plain}{END}"),
        // The template has written it.
        Content::Conversation(messages) => render(messages, text)?,
    };
    // Without offsets, which nobody asks for.
    Ok(tokenizer.encode_fast(whole, false)?.get_ids().to_vec())
}

/// A small byte-level BPE, learnt from the examples; yours comes from a file.
fn tokenizer(examples: &[Example<Text, Preference>]) -> Result<Tokenizer, Failure> {
    let said = |text: &Text| match text {
        Text::Plain(text) => vec![text.clone()],
        Text::Conversation(messages) => {
            let text = |message: &Message| message.text().map(String::from);
            messages.iter().filter_map(text).collect()
        }
    };
    let texts = examples
        .iter()
        .flat_map(|example| [&example.prompt, example.chosen(), example.rejected()]);
    let texts: Vec<String> = texts.flat_map(said).collect();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let special = |token: &str| AddedToken::from(token, true);
    let trainer = BpeTrainer::builder()
        .vocab_size(400)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![special(START), special(END)])
        .show_progress(false)
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts.into_iter())?;
    tokenizer.add_special_tokens(&[special(START), special(END)]);
    Ok(tokenizer)
}

/// The completion, with what counts between brackets.
fn marked(tokenizer: &Tokenizer, sequence: &Sequence) -> Result<String, Failure> {
    let counts = |i: usize| sequence.counted().is_none_or(|counted| counted[i]);
    let ids = sequence.completion();
    let places: Vec<usize> = (0..ids.len()).collect();
    let mut text = String::new();
    for part in places.chunk_by(|&a, &b| counts(a) == counts(b)) {
        let part_text = tokenizer.decode(&ids[part[0]..=part[part.len() - 1]], false)?;
        if counts(part[0]) {
            write!(text, "[{part_text}]")?;
        } else {
            text += &part_text;
        }
    }
    Ok(text.replace('\n', "⏎"))
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let directory = tempfile::tempdir()?;
    let path = if let Some(path) = args.data {
        path
    } else {
        let path = directory.path().join("pairs.jsonl");
        std::fs::write(&path, ROWS)?;
        path
    };
    let loaded = JsonLines::new(&path, PairFormat::default()).load(OnError::Skip)?;
    for error in &loaded.skipped {
        let text = error.to_string();
        println!(
            "skipped: {}",
            text.trim_start_matches(&*directory.path().to_string_lossy())
        );
    }
    let tokenizer = tokenizer(&loaded.examples)?;
    let end = tokenizer.token_to_id(END).ok_or("no end of sequence")?;

    let examples = Arc::new(InMemDataset::new(loaded.examples));
    let found = distinct(&examples)?;
    println!(
        "examples: {} distinct, {} repeated",
        found.kept.len(),
        found.repeated.len()
    );
    let examples = Arc::new(SelectionDataset::<Pairs, _>::from_indices_checked(
        examples, found.kept,
    ));
    let group = |example: &Example<Text, _>| {
        let name = example.columns.get("group");
        name.map(ToString::to_string).unwrap_or_default()
    };
    let split = split_by(&examples, 0.34, 1, group)?;
    println!(
        "groups: {} train, {} held out",
        split.train_groups, split.held_out_groups
    );

    let train = SelectionDataset::<SelectionDataset<Pairs, _>, _>::from_indices_checked(
        examples,
        split.train,
    );
    // Of conversations only the assistant's turns count: the default, said once more.
    let options = TokenizeOptions::new(Truncation::CompletionStart { max_length: 300 })
        .with_turns(Turns::Assistant);
    let pairs = Tokenized::new(train, |text: Encode<'_>| encode(&tokenizer, &text), options)?;
    print!("{}", pairs.report());

    let pairs = pairs.iter().collect::<Result<Vec<_>, _>>()?;
    if let Some(pair) = pairs.iter().max_by_key(|pair| pair.chosen().len()) {
        println!("what counts: {}", marked(&tokenizer, &pair.sequences()[0])?);
    }
    if let Some(path) = args.svg {
        draw(&path, &pairs).map_err(|error| error.to_string())?;
    }
    let pairs = Arc::new(InMemDataset::new(pairs));
    let mut cursor = Cursor::new(pairs.len(), 7);
    let collator = Collator::new(Padding::new(end).to_multiple_of(8)?);
    for _ in 0..2 {
        let left = cursor.remaining(&pairs)?;
        let some = left.get_many((0..left.len().min(2)).collect())?;
        let batch: PairTokens = collator.batch(some, &Device::default());
        cursor.advance(batch.examples.len());
        let lines: Vec<_> = batch.examples.iter().filter_map(|x| x.line).collect();
        println!(
            "lines {lines:?}: tokens {:?}, then {cursor:?}",
            batch.tokens.ids.dims()
        );
    }
    Ok(())
}

/// Twenty bars a panel: how many prompts, chosen and rejected completions have how many tokens.
fn draw(path: &Path, pairs: &[Example<Vec<u32>, Preference>]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (960, 280)).into_drawing_area();
    root.fill(&WHITE)?;
    let lengths = |of: fn(&Example<Vec<u32>, Preference>) -> usize| pairs.iter().map(of).collect();
    let panels: [(&str, Vec<usize>); 3] = [
        ("prompts", lengths(|pair| pair.prompt.len())),
        ("chosen completions", lengths(|pair| pair.chosen().len())),
        (
            "rejected completions",
            lengths(|pair| pair.rejected().len()),
        ),
    ];
    for (area, (name, lengths)) in root.split_evenly((1, 3)).iter().zip(panels) {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let width = (longest + 1).div_ceil(20);
        let mut counts = [0; 20];
        for length in lengths {
            counts[length / width] += 1;
        }
        let most = counts.iter().copied().max().unwrap_or(0).max(1);
        let mut chart = ChartBuilder::on(area)
            .caption(name, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(36)
            .build_cartesian_2d(0..20 * width, 0..most)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("tokens").light_line_style(WHITE).draw()?;
        let color = RGBColor(0, 114, 178).filled();
        let bars = counts.iter().enumerate();
        chart.draw_series(bars.map(|(bar, &count)| {
            Rectangle::new([(bar * width, 0), ((bar + 1) * width, count)], color)
        }))?;
    }
    root.present()?;
    Ok(())
}
