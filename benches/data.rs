//! What rows of a file cost until they are token ids: seconds, rows a second, and memory as a multiple
//! of the file, each phase in turn, in one process; memory in fresh ones.
//!
//! ```console
//! cargo bench --bench data -- --tokenizer tokenizer.json
//! ```
//!
//! The rows are pairs of a prompt and two answers, cut from the guide of this crate; none is twice in
//! the file. `kept` reads the ids that [`Tokenized`] holds, `again` makes them once more, from rows of
//! a file that is not in memory.

use std::convert::Infallible;
use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use burn::data::dataset::Dataset;
use burn_preference::data::{
    DataError, Encode, Example, IndexedLines, JsonLines, OnError, PairFormat, Preference, Text,
    TokenizeOptions, Tokenized, TokenizedExamples, Truncation,
};
use clap::Parser;
use finetune::measure::{memory_of, peak_memory, timed};
use tokenizers::Tokenizer;

#[derive(Parser, Debug)]
struct Arguments {
    /// A `tokenizer.json`.
    #[arg(long)]
    tokenizer: String,
    /// Rows of the file.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000])]
    rows: Vec<usize>,
    /// Bytes of a row.
    #[arg(long, default_value_t = 1000)]
    bytes: usize,
    /// Only writes the largest file, for `scripts/rows_peers.py`.
    #[arg(long)]
    write: Option<PathBuf>,
    /// PHASE=FILE: measures the memory of this phase, in a process of its own.
    #[arg(long, hide = true)]
    memory: Option<String>,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

const PROSE: [&str; 4] = [
    include_str!("../docs/guide/data.md"),
    include_str!("../docs/guide/questions.md"),
    include_str!("../docs/guide/recipes.md"),
    include_str!("../docs/guide/training_loop.md"),
];

/// Writes rows of prose; each begins at another character.
fn write(path: &Path, rows: usize, bytes: usize) -> Result<(), Box<dyn Error>> {
    let prose: Vec<char> = PROSE.concat().chars().collect();
    let mut file = BufWriter::new(File::create(path)?);
    // A third each; quotes, newlines and columns are about a tenth.
    let part = bytes * 3 / 10;
    for row in 0..rows {
        let text = |place: usize| -> String {
            // Far apart, and never the same three places twice.
            let start = (row * 7919 + place * 104_729 + row / prose.len() * place) % prose.len();
            (start..start + part)
                .map(|at| prose[at % prose.len()])
                .collect()
        };
        let row = serde_json::json!({"prompt": text(0), "chosen": text(1), "rejected": text(2)});
        writeln!(file, "{row}")?;
    }
    Ok(file.flush()?)
}

type Texts = Vec<Example<Text, Preference>>;

fn texts(path: &Path) -> Result<Texts, DataError> {
    let lines = JsonLines::new(path, PairFormat::default());
    Ok(lines.load(OnError::Stop)?.examples)
}

fn rows_of(path: &Path) -> Result<IndexedLines<PairFormat>, DataError> {
    JsonLines::new(path, PairFormat::default()).open()
}

/// The whole length of every row.
fn options() -> TokenizeOptions {
    let truncation = Truncation::CompletionStart { max_length: 4096 };
    TokenizeOptions::new(truncation).with_memory(usize::MAX)
}

const PHASES: [&str; 5] = [
    "tokenizer alone",
    "texts",
    "texts, then ids",
    "ids of a file",
    "file alone",
];

/// Runs one phase, whose memory is measured.
fn run(phase: &str, path: &Path, encode: impl Encoder) -> Result<(), Box<dyn Error>> {
    match phase {
        "tokenizer alone" => {}
        "texts" => drop(black_box(texts(path)?)),
        "texts, then ids" => {
            let examples = TokenizedExamples::new(texts(path)?, encode, options())?;
            drop(black_box(examples));
        }
        "ids of a file" => drop(black_box(Tokenized::new(
            rows_of(path)?,
            encode,
            options(),
        )?)),
        "file alone" => {
            let options = options().with_memory(0);
            drop(black_box(Tokenized::new(rows_of(path)?, encode, options)?));
        }
        other => return Err(format!("no phase `{other}`").into()),
    }
    Ok(())
}

trait Encoder: Fn(Encode<'_>) -> Result<Vec<u32>, Infallible> + Send + Sync {}

impl<F: Fn(Encode<'_>) -> Result<Vec<u32>, Infallible> + Send + Sync> Encoder for F {}

/// A row of the table.
fn row(path: &Path, encode: impl Encoder) -> Result<String, Box<dyn Error>> {
    let megabytes = path.metadata()?.len() as f64 / 1e6;
    let (loaded, load) = timed(|| texts(path))?;
    let rows = loaded.len();
    let one = options().with_threads(NonZero::<usize>::MIN);
    let (one, alone) = timed(|| TokenizedExamples::new(loaded, &encode, one))?;
    let loaded = texts(path)?;
    let (all, together) = timed(|| TokenizedExamples::new(loaded, &encode, options()))?;
    assert_eq!((all.report, all.examples), (one.report, one.examples));
    let read = |memory: usize| {
        let options = options().with_memory(memory);
        let tokens = Tokenized::new(rows_of(path)?, &encode, options)?;
        let (read, seconds) = timed(|| Ok::<_, DataError>(tokens.iter().flatten().count()))?;
        assert_eq!(read, rows);
        Ok::<_, DataError>(seconds)
    };
    let [kept, again] = [read(usize::MAX)?, read(0)?];
    Ok(format!(
        "| {rows} | {megabytes:.0} | {load:.2} | {alone:.2} | {together:.2} | {:.2} | {:.0} | {kept:.2} | \
         {again:.2} |",
        alone / together,
        rows as f64 / together
    ))
}

fn tokenizer(arguments: &Arguments) -> Result<Tokenizer, Box<dyn Error>> {
    Ok(Tokenizer::from_file(&arguments.tokenizer).map_err(|error| error.to_string())?)
}

/// Ids of texts, without the offsets that nobody asks for.
fn ids(tokenizer: &Tokenizer) -> impl Encoder {
    |text: Encode<'_>| {
        let text = text.content.as_plain().expect("rows of strings");
        let ids = tokenizer.encode_fast(text, true);
        Ok(ids.expect("it takes any text").get_ids().to_vec())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if let Some((phase, path)) = arguments.memory.as_ref().and_then(|m| m.split_once('=')) {
        let peak = peak_memory(|| {
            let tokenizer = tokenizer(&arguments)?;
            run(phase, Path::new(path), ids(&tokenizer))
        })?;
        if let Some(peak) = peak {
            println!("{peak:.1}");
        }
        return Ok(());
    }
    if let Some(path) = &arguments.write {
        let rows = arguments.rows.iter().max().copied().unwrap_or(0);
        return write(path, rows, arguments.bytes);
    }
    let tokenizer = tokenizer(&arguments)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rows.jsonl");
    println!(
        "| rows | MB | load, s | ids, calling thread, s | all processors, s | × | rows a second | kept, s | again, s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for &rows in &arguments.rows {
        write(&path, rows, arguments.bytes)?;
        println!("{}", row(&path, ids(&tokenizer))?);
    }
    println!("\n| memory, of the last file | MiB | of the file |\n|---|---|---|");
    let mebibytes = path.metadata()?.len() as f64 / f64::from(1 << 20);
    for phase in PHASES {
        if let Some(peak) = memory_of(&format!("{phase}={}", path.display())) {
            println!(
                "| {phase} | {peak} | {:.2} |",
                peak.parse::<f64>()? / mebibytes
            );
        }
    }
    Ok(())
}
