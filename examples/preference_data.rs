//! From JSON lines to batches: rows, a split by conversation, a tokenizer, truncation with a report,
//! tensors, and a position to resume from. `--data FILE` for rows of your own.
//!
//! `cargo run --example preference_data`

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::transform::SelectionDataset;
use burn::data::dataset::{Dataset, InMemDataset};
use burn::tensor::Device;
use burn_preference::data::{
    Collator, Cursor, Encode, Example, PairFormat, PairTokens, Text, Tokenized, Truncation, read,
    split_by,
};
use burn_preference::tokens::Padding;
use clap::Parser;
use tokenizers::Tokenizer;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

#[derive(Parser)]
struct Args {
    /// JSON lines of pairs in any of TRL's shapes, compressed by gzip or not.
    #[arg(long)]
    data: Option<PathBuf>,
}

/// An explicit prompt, an implicit one, a conversation, and a pair that teaches nothing.
const ROWS: &str = r#"{"group": "a", "prompt": "The capital of France is", "chosen": " Paris.", "rejected": " Lyon, I think, or perhaps another city."}
{"group": "a", "chosen": "The capital of Italy is Rome.", "rejected": "The capital of Italy is Milan."}
{"group": "b", "prompt": [{"role": "user", "content": "2+2?"}], "chosen": [{"role": "assistant", "content": "4"}], "rejected": [{"role": "assistant", "content": "5"}]}
{"group": "b", "prompt": "2+3=", "chosen": "5", "rejected": "5"}
{"group": "c", "prompt": "Say nothing.", "chosen": "", "rejected": "Nothing."}
"#;

/// Your template: here, one turn a line.
fn render(text: &Text) -> String {
    match text {
        Text::Plain(text) => text.clone(),
        Text::Conversation(messages) => {
            let turn = |m: &burn_preference::data::Message| format!("{}: {}\n", m.role, m.content);
            messages.iter().map(turn).collect()
        }
    }
}

/// A small byte-level BPE, learnt from the rows; yours comes from a file.
fn tokenizer(
    texts: impl Iterator<Item = String> + Send,
) -> Result<Tokenizer, Box<dyn Error + Send + Sync>> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    let alphabet = ByteLevel::alphabet().into_iter().collect();
    let trainer = BpeTrainer::builder()
        .vocab_size(400)
        .initial_alphabet(alphabet)
        .show_progress(false)
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts)?;
    Ok(tokenizer)
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let directory = tempfile::tempdir()?;
    let path = if let Some(path) = Args::parse().data {
        path
    } else {
        let path = directory.path().join("pairs.jsonl");
        std::fs::write(&path, ROWS)?;
        path
    };
    let rows = read(&path, PairFormat::default())?.collect::<Result<Vec<_>, _>>()?;
    let texts = rows
        .iter()
        .flat_map(|row| [&row.prompt, row.chosen(), row.rejected()]);
    let tokenizer = tokenizer(texts.map(render).collect::<Vec<_>>().into_iter())?;
    let end = u32::try_from(tokenizer.get_vocab_size(true))?;

    let rows = Arc::new(InMemDataset::new(rows));
    let group = |row: &Example<Text, _>| {
        row.other
            .get("group")
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    let split = split_by(&rows, 0.34, 1, group)?;
    println!(
        "groups: {} train, {} held out",
        split.train_groups, split.held_out_groups
    );

    let train = SelectionDataset::<InMemDataset<_>, _>::from_indices_checked(rows, split.train);
    let encode = |part: Encode<'_>| -> Result<Vec<u32>, Box<dyn Error + Send + Sync>> {
        let mut ids = tokenizer
            .encode(render(part.text()), false)?
            .get_ids()
            .to_vec();
        // An empty completion stays one: the end alone is not an answer.
        if matches!(part, Encode::Completion { .. }) && !ids.is_empty() {
            ids.push(end);
        }
        Ok(ids)
    };
    let pairs = Tokenized::new(
        train,
        encode,
        Truncation::CompletionStart { max_length: 24 },
    )?;
    print!("{}", pairs.report());

    let pairs = pairs.iter().collect::<Result<Vec<_>, _>>()?;
    let pairs = Arc::new(InMemDataset::new(pairs));
    let mut cursor = Cursor::new(pairs.len(), 7);
    let collator = Collator::new(Padding::new(end).to_multiple_of(8)?);
    for _ in 0..2 {
        let rows = cursor.remaining(&pairs)?;
        let some = rows.get_many((0..rows.len().min(2)).collect())?;
        let batch: PairTokens = collator.batch(some, &Device::default());
        cursor.advance(batch.examples.len());
        let lines: Vec<_> = batch.examples.iter().filter_map(|x| x.line).collect();
        println!(
            "lines {lines:?}: tokens {:?}, then {cursor:?}",
            batch.rows.ids.dims()
        );
    }
    Ok(())
}
