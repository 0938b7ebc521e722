//! What it saves to run each prompt once: padded rows against shared and packed ones.
//!
//! ```console
//! cargo run --release -p finetune --example shared_prefix -- --data pairs.jsonl
//! cargo run --release -p finetune --example shared_prefix -- --data pairs.jsonl --list 8
//! ```
//!
//! One table, from one run: positions that the model runs and seconds of a training step (forward
//! and backward of LoRA adapters, from hidden states), per pair or list; peak memory of a step; and
//! by how much log-probabilities differ. All layouts take the same examples in turn; ratios are
//! medians over the rounds.
//!
//! | layout | rows | attention |
//! |---|---|---|
//! | padded | a prompt and a completion each | a mask over all of it |
//! | dense | a prompt and its completions each | the same |
//! | unshared | prompts and a completion, several | within segments: nothing that a mask would hide |
//! | shared | a prompt and its completions each | within segments |
//! | packed | prompts and their completions, several | within segments |
//!
//! docs/measured.md says where the data and SmolLM2's file come from. Without `--model` it is a small
//! model with random weights, to which four characters are a token.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use burn::data::dataset::{Dataset, InMemDataset};
use burn::tensor::{Device, Tensor};
use burn_preference::data::{
    Encode, Encoded, Example, JsonLines, OnError, PairFormat, Preference, PromptFormat, Tokenized,
    Truncation,
};
use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence, TokenBatch};
use clap::{Parser, ValueEnum};
use finetune::{Chat, Decoder, DecoderConfig, LoraOptions, TARGETS, load};
use serde_json::json;

use finetune::measure::{self, median, memory_of};

#[derive(Parser, Debug, Clone)]
struct Args {
    /// JSON lines of pairs, compressed by gzip or not.
    #[arg(long)]
    data: PathBuf,
    /// A model's folder, or a GGUF file such as SmolLM2-135M-Instruct.Q4_1.gguf.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Completions of a prompt: 2 are the file's pairs. More are the answers of the rows that
    /// follow, to the same prompt: real lengths, not real lists.
    #[arg(long, default_value_t = 2)]
    list: usize,
    /// Tokens of prompt and answer, at most; half of them for the prompt.
    #[arg(long, default_value_t = 512)]
    max_length: usize,
    /// Tokens of a packed row; without it, those of the longest group.
    #[arg(long)]
    row_length: Option<usize>,
    /// Pairs or lists of a step.
    #[arg(long, default_value_t = 4)]
    examples: usize,
    /// Steps of a round.
    #[arg(long, default_value_t = 4)]
    steps: usize,
    /// Rounds.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Prints the peak memory of one layout and nothing else: what this program asks itself.
    #[arg(long, hide = true)]
    memory: Option<TokenLayout>,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum TokenLayout {
    /// A row per completion.
    Padded,
    /// A row per prompt, and a mask over all of it.
    Dense,
    /// As packed, with a prompt for each completion: what is not gained by sharing.
    Unshared,
    /// A row per prompt, and attention within segments.
    Shared,
    /// Several prompts a row.
    Packed,
}

impl TokenLayout {
    const ALL: [Self; 5] = [
        Self::Padded,
        Self::Dense,
        Self::Unshared,
        Self::Shared,
        Self::Packed,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Padded => "padded",
            Self::Dense => "dense",
            Self::Unshared => "unshared",
            Self::Shared => "shared",
            Self::Packed => "packed",
        }
    }
}

/// Examples as sequences with one prompt each.
type Groups = Vec<Vec<Sequence>>;

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let device = Device::default().autodiff();
    let (model, groups) = if let Some(path) = &args.model {
        let base = load(path, &device)?;
        let chat = Chat::open(path, base.config())?;
        let groups = groups(&args, |text| chat.encode(text))?;
        (base, groups)
    } else {
        device.seed(0);
        (small().init(&device), groups(&args, four_characters)?)
    };
    let model = model.with_adapters(&LoraOptions {
        rank: 8,
        alpha: 16.0,
        targets: TARGETS.map(str::to_owned).to_vec(),
    })?;
    let groups: Groups = groups
        .into_iter()
        .take(args.steps * args.examples)
        .collect();
    let longest = Packing::new(Padding::new(END)).dims(&groups.concat())?[1];
    let row_length = args.row_length.unwrap_or(longest);
    let run = Run {
        model,
        row_length,
        device: Device::default(),
    };
    if let Some(layout) = args.memory {
        let mut peak = None;
        for some in groups.chunks(args.examples) {
            let here = measure::peak_memory(|| run.step(layout, some).map(drop))?;
            peak = here.map(|here| here.max(peak.unwrap_or(0.0)));
        }
        if let Some(peak) = peak {
            println!("{peak:.0}");
        }
        return Ok(());
    }

    let sequences: usize = groups.iter().map(Vec::len).sum();
    let count = groups.len() as f64;
    let lengths = |f: fn(&Sequence) -> usize| -> f64 {
        groups.iter().flatten().map(f).sum::<usize>() as f64 / sequences as f64
    };
    println!(
        "{} {}: prompts of {:.0} tokens, completions of {:.0}; {} a step, packed rows of {row_length}",
        groups.len(),
        if args.list == 2 {
            "pairs".to_owned()
        } else {
            format!("lists of {}", args.list)
        },
        lengths(|s| s.prompt().len()),
        lengths(|s| s.completion().len()),
        args.examples,
    );

    let mut seconds = [const { Vec::new() }; 5];
    let mut positions = [0; 5];
    let mut log_probs = [const { Vec::new() }; 5];
    for _ in 0..args.rounds {
        let mut round = [0.0; 5];
        (positions, log_probs) = ([0; 5], [const { Vec::new() }; 5]);
        for some in groups.chunks(args.examples) {
            for (i, layout) in TokenLayout::ALL.into_iter().enumerate() {
                let start = Instant::now();
                let (dims, values) = run.step(layout, some)?;
                round[i] += start.elapsed().as_secs_f64();
                positions[i] += dims[0] * dims[1];
                log_probs[i].extend(values);
            }
        }
        for (all, round) in seconds.iter_mut().zip(round) {
            all.push(round / count);
        }
    }
    println!("\n| layout | positions | fewer | seconds | faster | peak MiB | nats a token |");
    println!("|---|---|---|---|---|---|---|");
    for (i, layout) in TokenLayout::ALL.into_iter().enumerate() {
        let ratios = seconds[0].iter().zip(&seconds[i]).map(|(a, b)| a / b);
        let difference = log_probs[0].iter().zip(&log_probs[i]);
        let difference = difference.map(|(a, b): (&f32, &f32)| (a - b).abs());
        println!(
            "| {} | {:.0} | {:.2} | {:.3} | {:.2} | {} | {:.0e} |",
            layout.name(),
            positions[i] as f64 / count,
            positions[0] as f64 / positions[i] as f64,
            median(seconds[i].clone()),
            median(ratios.collect()),
            memory_of(layout.name()).unwrap_or_else(|| "unknown".to_owned()),
            difference.fold(0.0, f32::max),
        );
    }
    Ok(())
}

/// Pairs of the file, or lists of their prompts.
fn groups<R, E>(
    args: &Args,
    tokenizer: impl Fn(Encode<'_>) -> Result<R, E> + Send + Sync,
) -> Result<Groups, Box<dyn Error>>
where
    R: Into<Encoded>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let format = PairFormat {
        prompt: PromptFormat {
            as_conversation: true,
            ..PromptFormat::default()
        },
        ..PairFormat::default()
    };
    let rows = JsonLines::new(&args.data, format)
        .load(OnError::Stop)?
        .examples;
    let truncation = Truncation::PromptMiddleThenCompletionStart {
        min_prompt: args.max_length / 2,
        max_length: args.max_length,
    };
    let rows = Tokenized::new(InMemDataset::new(rows), tokenizer, truncation)?;
    let rows: Vec<Example<Vec<u32>, Preference>> = rows.iter().collect::<Result<_, _>>()?;
    let answers: Vec<&Vec<u32>> = rows.iter().flat_map(Example::completions).collect();
    let group = |i: usize| {
        let all = answers.iter().cycle().skip(2 * i).take(args.list);
        let prompt = &rows[i].prompt;
        let sequence = |answer: &&Vec<u32>| {
            let room = args.max_length - prompt.len();
            Sequence::new(prompt, &answer[..answer.len().min(room)])
        };
        all.map(sequence).collect()
    };
    Ok((0..rows.len()).map(group).collect())
}

/// The size of llama2.c's stories260K.
fn small() -> DecoderConfig {
    let config = json!({
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 512,
        "tie_word_embeddings": true,
    });
    let config = config.as_object().expect("an object").clone();
    DecoderConfig::parse(config).expect("a model of this package")
}

/// Ends turns, and fills rows.
const END: u32 = 2;

/// A token for every four bytes of a conversation.
#[expect(clippy::unnecessary_wraps, reason = "what `Tokenized` asks for")]
fn four_characters(text: Encode<'_>) -> Result<Vec<u32>, std::convert::Infallible> {
    let mut ids = Vec::new();
    for message in text.content.as_conversation().unwrap_or_default() {
        ids.push(3);
        let said = message.text().unwrap_or_default();
        let id = |four: &[u8]| 4 + four.iter().map(|&byte| u32::from(byte)).sum::<u32>() % 508;
        ids.extend(said.as_bytes().chunks(4).map(id));
        ids.push(END);
    }
    if text.add_generation_prompt {
        ids.push(3);
    }
    Ok(ids)
}

struct Run {
    model: Decoder,
    row_length: usize,
    device: Device,
}

impl Run {
    /// Forward and backward: rows and their length, and the log-probabilities.
    fn step(
        &self,
        layout: TokenLayout,
        groups: &[Vec<Sequence>],
    ) -> Result<([usize; 2], Vec<f32>), Box<dyn Error>> {
        let (padding, sequences) = (Padding::new(END), groups.concat());
        let (dims, log_probs) = if layout == TokenLayout::Padded {
            let batch = TokenBatch::new(sequences, padding, &self.device)?;
            let log_probs = batch.log_probs(&self.model, Decoder::hidden)?;
            (batch.ids.dims(), log_probs)
        } else {
            let sequences = if layout == TokenLayout::Unshared {
                // Sequences of other contexts share nothing.
                let context = |(i, s): (usize, Sequence)| {
                    let mut context = [0; 32];
                    context[..8].copy_from_slice(&(i as u64).to_le_bytes());
                    s.with_context(context)
                };
                sequences.into_iter().enumerate().map(context).collect()
            } else {
                sequences
            };
            let packing = Packing::new(padding);
            let packing = match layout {
                TokenLayout::Packed | TokenLayout::Unshared => {
                    packing.to_rows_of(self.row_length)?
                }
                _ => packing,
            };
            let batch = PackedBatch::new(sequences, packing, &self.device)?;
            let log_probs = match layout {
                TokenLayout::Dense => batch.log_probs(&self.model, Decoder::hidden_masked)?,
                _ => batch.log_probs(&self.model, Decoder::hidden_packed)?,
            };
            (batch.ids.dims(), log_probs)
        };
        let sums = log_probs.sum();
        let values = log_probs.mean().without_autodiff();
        // What an objective adds to a step is microseconds; these weights are any objective's.
        let weights: Vec<f32> = (0..sums.dims()[0])
            .map(|i| if i % 2 == 0 { 1.0 } else { -1.0 })
            .collect();
        let weights = Tensor::<1>::from_floats(weights.as_slice(), &self.device);
        let grads = (sums * weights).mean().backward();
        drop(grads);
        Ok((dims, values.into_data().iter().collect()))
    }
}
