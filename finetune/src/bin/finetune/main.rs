//! From a model on disk to an aligned model on disk.
//!
//! ```console
//! cargo run --release -p finetune -- --model DIR --data pairs.jsonl --out aligned
//! ```
//!
//! `DIR` is a folder as Hugging Face lays it out, or a GGUF file; README.md beside this package
//! says the rest.

mod answers;
mod session;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use burn::tensor::{Device, FloatDType};
use burn_preference::config::{RewardObjective, UnpairedObjective};
use burn_preference::data::{Desirable, PairFormat, RankedFormat, UnpairedFormat};
use burn_preference::training::state::RunningMean;
use clap::{Parser, ValueEnum};
use finetune::{
    Chat, DataOptions, Failure, Kto, Lists, Objective, Pairs, RewardLists, RewardPairs, Rows,
    Schedule, Thumbs, Top, load_adapter, load_as,
};
use session::Session;

/// Aligns a model that lies on disk, or has it answer prompts and a judge make pairs of the answers.
#[derive(Parser, Debug)]
struct Args {
    /// A folder with `config.json`, `model*.safetensors`, `tokenizer.json` and
    /// `tokenizer_config.json`, or a GGUF file of the architecture `llama`.
    #[arg(help_heading = "Model and data", long)]
    model: PathBuf,
    /// A PEFT adapter that is merged into the model before anything else.
    #[arg(help_heading = "Model and data", long)]
    adapter: Option<PathBuf>,
    /// Rows of JSON lines (gzip or not) or Parquet, in TRL's shapes: pairs, thumbs or lists, as the
    /// objective takes them. With `--sample`, anything with prompts.
    #[arg(help_heading = "Model and data", long)]
    data: PathBuf,
    /// Rows to measure on; otherwise some of `--data` are held out.
    #[arg(help_heading = "Model and data", long, conflicts_with_all = ["held_out", "group"])]
    held_out_data: Option<PathBuf>,
    /// Share of the groups of rows that are held out; with 0 nothing is measured.
    #[arg(help_heading = "Model and data", long, default_value_t = 0.1)]
    held_out: f64,
    /// The column that says which rows belong together; without it, the prompt.
    #[arg(help_heading = "Model and data", long)]
    group: Option<String>,
    /// Strings stay plain text, also where the model has a chat template.
    #[arg(help_heading = "Model and data", long)]
    plain: bool,
    /// Leave rows out that cannot be read, and report them.
    #[arg(help_heading = "Model and data", long)]
    skip_errors: bool,
    /// Tokens of a prompt with its completion, at most: of a prompt the last ones stay, half of
    /// these, and of a completion the first ones.
    #[arg(help_heading = "Model and data", long, default_value_t = 512)]
    max_length: usize,

    /// An objective's name, its config as JSON, or a file of it: dpo, '{"loss": "ipo", "tau": 0.5}',
    /// kto (thumbs), rrhf (lists), bradley_terry (a reward model).
    #[arg(help_heading = "Objective", long, default_value = "dpo")]
    loss: String,
    /// Where the reference's log-probabilities come from.
    #[arg(help_heading = "Objective", long, value_enum, default_value_t = ReferenceFrom::Cache)]
    reference: ReferenceFrom,
    /// The folder where the reference's log-probabilities are kept; otherwise `OUT.run/reference`.
    #[arg(help_heading = "Objective", long)]
    cache: Option<PathBuf>,

    /// Train all weights instead of adapters.
    #[arg(help_heading = "What is trained", long, conflicts_with_all = ["rank", "alpha", "targets", "quantize"])]
    full: bool,
    /// Rank of the adapters.
    #[arg(help_heading = "What is trained", long, default_value_t = 8)]
    rank: usize,
    /// α of the adapters, which add α/rank·A·B to a weight; otherwise twice the rank.
    #[arg(help_heading = "What is trained", long)]
    alpha: Option<f64>,
    /// Projections that get an adapter, by commas: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj,
    /// down_proj; all of them without it.
    #[arg(help_heading = "What is trained", long, value_delimiter = ',')]
    targets: Vec<String>,
    /// Hold the weights beside the adapters in few bits (QLoRA).
    #[arg(help_heading = "What is trained", long, value_enum)]
    quantize: Option<Bits>,

    /// Optimiser steps; otherwise one epoch.
    #[arg(help_heading = "Steps", long)]
    steps: Option<usize>,
    /// Pairs, thumbs or lists of an optimiser step.
    #[arg(help_heading = "Steps", long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a forward, at most, padding included: a step is as many forwards as it takes. An
    /// example that is longer is a forward of its own.
    #[arg(help_heading = "Steps", long, default_value_t = 2048)]
    budget: usize,
    /// Forwards at once, which share `--budget`; otherwise 2 for adapters on flex, and 1 elsewhere
    /// or where a loss is of a whole step.
    #[arg(help_heading = "Steps", long)]
    workers: Option<usize>,
    /// Each prompt once, with its completions in one row.
    #[arg(help_heading = "Steps", long)]
    shared_prefix: bool,
    /// The largest learning rate; otherwise 1e-4 for adapters and 5e-6 for all weights.
    #[arg(help_heading = "Steps", long)]
    rate: Option<f64>,
    /// What follows the warm-up.
    #[arg(help_heading = "Steps", long, value_enum, default_value_t = Schedule::Cosine)]
    schedule: Schedule,
    /// Share of the steps in which the rate rises.
    #[arg(help_heading = "Steps", long, default_value_t = 0.1)]
    warm_up: f64,
    /// The norm that gradients are clipped at.
    #[arg(help_heading = "Steps", long, default_value_t = 1.0)]
    clip: f64,
    /// Weight decay of AdamW.
    #[arg(help_heading = "Steps", long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Compute activations again in the backward instead of keeping them, where Burn does.
    #[arg(help_heading = "Steps", long)]
    gradient_checkpointing: bool,
    /// Steps between two evaluations, each with a checkpoint; otherwise ten in the run.
    #[arg(help_heading = "Steps", long)]
    evaluate_every: Option<usize>,
    /// End after so many evaluations without a smaller held-out loss.
    #[arg(help_heading = "Steps", long)]
    patience: Option<usize>,
    /// Seed of the split, the order, the adapters and the answers.
    #[arg(help_heading = "Steps", long, default_value_t = 0)]
    seed: u64,
    /// Go on where a run with the same arguments was stopped.
    #[arg(help_heading = "Steps", long)]
    resume: bool,

    /// flex; wgpu, cuda or tch with the feature of this name; ws://HOST:PORT of a burn-remote server
    /// with the feature remote.
    #[arg(help_heading = "Devices and files", long, default_value = "flex")]
    device: String,
    /// The number type of weights that are not trained; with `--full`, f32 is the only one.
    #[arg(help_heading = "Devices and files", long, value_enum, default_value_t = Numbers::F32)]
    dtype: Numbers,
    /// The folder that appears when training ends, with the weights of the smallest held-out loss.
    /// Metrics and checkpoints are in `OUT.run`.
    #[arg(help_heading = "Devices and files", long, default_value = "aligned")]
    out: PathBuf,
    /// What is saved as `OUT`.
    #[arg(help_heading = "Devices and files", long, value_enum, default_value_t = Save::Model)]
    save: Save,

    /// Held-out prompts that the model answers before and after.
    #[arg(help_heading = "Answers", long, default_value_t = 2)]
    answers: usize,
    /// Tokens of an answer, at most.
    #[arg(help_heading = "Answers", long, default_value_t = 64)]
    answer_tokens: usize,
    /// Temperature of answers; 0 takes the likeliest token.
    #[arg(help_heading = "Answers", long, default_value_t = 0.7)]
    temperature: f64,

    /// Do not train: answer every prompt this many times, and write the best answer against the
    /// worst one into `OUT.jsonl`.
    #[arg(help_heading = "On-policy pairs", long, requires = "score", conflicts_with_all = [
        "held_out_data", "held_out", "group", "loss", "reference", "cache", "full", "rank", "alpha",
        "targets", "quantize", "steps", "batch", "budget", "workers", "shared_prefix", "rate", "schedule",
        "warm_up", "clip", "weight_decay", "gradient_checkpointing", "evaluate_every", "patience",
        "resume", "save", "answers",
    ])]
    sample: Option<usize>,
    /// Who says which answer is better: a folder with a reward model, or a command that reads
    /// `{"prompt": …, "completion": …}` line by line and writes a number a line.
    #[arg(help_heading = "On-policy pairs", long, requires = "sample")]
    score: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReferenceFrom {
    /// Computed once, before training, and kept on disk.
    Cache,
    /// Computed in every step.
    Live,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bits {
    Q8,
    Q4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Numbers {
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Save {
    /// Weights in the input's layout and names, adapters merged.
    Model,
    /// The adapters alone, as PEFT has them.
    Adapter,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    // Without a slash at its end, so that other names can be made of it.
    args.out = args.out.components().collect();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, Failure> {
    check(args)?;
    let device = device(&args.device)?;
    let dtype = match args.dtype {
        Numbers::F32 => FloatDType::F32,
        Numbers::F16 => FloatDType::F16,
        Numbers::Bf16 => FloatDType::BF16,
    };
    let mut base = load_as(dtype, &args.model, &device)?;
    if let Some(folder) = &args.adapter {
        base = load_adapter(base, folder, &device)?.0.merged();
    }
    let chat = Chat::open(&args.model, base.config())?;
    let asked = args.max_length;
    let longest = base.config().window.unwrap_or(usize::MAX);
    if asked > longest {
        let what = "this model attends to a window of that many tokens, which is not implemented";
        return Err(format!("--max-length: at most {longest}: {what}").into());
    }
    if let Some(known) = base.config().positions.filter(|known| *known < asked) {
        println!("look: --max-length is {asked}, and the model was trained on {known} tokens");
    }
    if let (Some(count), Some(judge)) = (args.sample, &args.score) {
        if base.config().top == Top::Reward {
            return Err("--model: a reward model has no words to answer with".into());
        }
        answers::write_pairs(args, &base, &chat, &device, count, judge)?;
        return Ok(ExitCode::SUCCESS);
    }
    let loss = fs::read_to_string(&args.loss).unwrap_or_else(|_| args.loss.clone());
    let objective = Objective::parse(&loss, DataOptions::has_thumbs(&args.data)?)
        .map_err(|error| format!("--loss {}: {error}", args.loss))?;
    if base.config().top == Top::Reward && !objective.learns_rewards() {
        return Err(
            "--model: a reward model has no words whose probability could be learnt".into(),
        );
    }
    let session = Session::new(args, base, chat, device, &objective, &loss)?;
    match objective {
        Objective::Pairs(objective) => {
            let rows = session.read(PairFormat::default)?;
            session.train(Pairs(objective), rows)
        }
        Objective::Thumbs(objective) => {
            let rows = session.read(UnpairedFormat::default)?;
            check_thumbs(&objective, &rows)?;
            if let UnpairedObjective::Kto(objective) = objective {
                return session.train(Kto::new(objective), session.data.mismatched(rows)?);
            }
            let rewards = RunningMean::default();
            session.train(Thumbs { objective, rewards }, rows)
        }
        Objective::Lists(objective) => {
            let rows = session.read(RankedFormat::default)?;
            session.train(Lists(objective), rows)
        }
        Objective::Rewards(RewardObjective::BradleyTerry(objective)) => {
            let rows = session.read(PairFormat::default)?;
            session.train(RewardPairs(objective), rows)
        }
        Objective::Rewards(RewardObjective::RewardRanking(objective)) => {
            let rows = session.read(RankedFormat::default)?;
            session.train(RewardLists(objective), rows)
        }
        Objective::Rewards(_) => {
            let what = "wants a column of ties, which is not read here";
            Err(format!("--loss {}: {what}", args.loss).into())
        }
    }
}

/// Arguments that contradict each other in ways that their parser does not know.
fn check(args: &Args) -> Result<(), Failure> {
    let wrong = |what: &str| Err(what.to_owned().into());
    let sizes = [
        ("--max-length", args.max_length, 2),
        ("--rank", args.rank, 1),
        ("--batch", args.batch, 1),
        ("--budget", args.budget, 1),
        ("--workers", args.workers.unwrap_or(1), 1),
        ("--steps", args.steps.unwrap_or(1), 1),
        ("--evaluate-every", args.evaluate_every.unwrap_or(1), 1),
        ("--patience", args.patience.unwrap_or(1), 1),
        ("--sample", args.sample.unwrap_or(2), 2),
        ("--answer-tokens", args.answer_tokens, 1),
    ];
    if let Some((name, size, least)) = sizes.into_iter().find(|(_, size, least)| size < least) {
        return Err(format!("{name}: at least {least}, found {size}").into());
    }
    let numbers = [
        ("--alpha", args.alpha.unwrap_or(1.0), "> 0"),
        ("--rate", args.rate.unwrap_or(1.0), "> 0"),
        ("--clip", args.clip, "> 0"),
        ("--weight-decay", args.weight_decay, "≥ 0"),
        ("--temperature", args.temperature, "≥ 0"),
        ("--warm-up", args.warm_up, "in [0, 1]"),
        ("--held-out", args.held_out, "in [0, 1]"),
    ];
    let is_wrong = |(_, number, range): &(_, f64, &str)| match *range {
        "> 0" => !(number.is_finite() && *number > 0.0),
        "≥ 0" => !(number.is_finite() && *number >= 0.0),
        _ => !(0.0..=1.0).contains(number),
    };
    if let Some((name, number, range)) = numbers.into_iter().find(is_wrong) {
        return Err(format!("{name}: a number {range}, found {number}").into());
    }
    if args.full && args.dtype != Numbers::F32 {
        return wrong("--dtype: all weights are trained with --full, in f32");
    }
    if args.save == Save::Adapter && (args.full || args.adapter.is_some()) {
        return wrong(
            "--save adapter: with --full there is none, and beside --adapter it would be one of two",
        );
    }
    if args.out.file_name().is_none() {
        return wrong("--out: the name of a folder that is not there yet");
    }
    Ok(())
}

fn device(name: &str) -> Result<Device, Failure> {
    Ok(match name {
        "flex" => Device::flex(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        #[cfg(feature = "tch")]
        #[expect(deprecated, reason = "supported while it exists")]
        "tch" => Device::libtorch(),
        #[cfg(feature = "remote")]
        remote if remote.starts_with("ws://") => {
            let host = burn::remote::RemoteHost::websocket(remote);
            Device::remote_options(&host).init()?
        }
        other => {
            let what = "flex, or wgpu, cuda, tch or ws://HOST:PORT, built with --features wgpu, \
                        cuda, tch or remote";
            return Err(format!("--device: expected {what}; found {other}").into());
        }
    })
}

/// Objectives that unlearn take no thumbs up.
fn check_thumbs(objective: &UnpairedObjective, rows: &Rows<Desirable>) -> Result<(), Failure> {
    let unlearns = matches!(
        objective,
        UnpairedObjective::Npo(_) | UnpairedObjective::Simnpo(_)
    );
    let up = rows
        .train
        .iter()
        .chain(&rows.held_out)
        .find(|row| row.label.0);
    match up.filter(|_| unlearns) {
        Some(row) => {
            let line = row.line.unwrap_or_default();
            Err(format!("line {line}: a thumb up, and this objective unlearns").into())
        }
        None => Ok(()),
    }
}
