//! The command line.

use std::env;
use std::path::PathBuf;

use burn::tensor::{Device, FloatDType};
use burn_preference::tokens::{Packing, Padding};
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use finetune::sampling::Sampling;
use finetune::{
    Answering, Batching, Chat, ColumnNames, DataOptions, DataSource, Failure, LoraOptions,
    Schedule, TARGETS,
};
use serde_json::{Map, Value};

use crate::options_file;

/// Aligns a model that lies on disk, or has it answer prompts and a judge score the answers.
#[derive(Parser, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(crate) struct Args {
    /// A folder with `config.json`, `model*.safetensors`, `tokenizer.json` and
    /// `tokenizer_config.json`, or a GGUF file of the architecture `llama`; or a name ORG/NAME, which
    /// is looked for in the local cache of Hugging Face's tools.
    #[arg(help_heading = "Model and data", long)]
    pub(crate) model: PathBuf,
    /// A PEFT adapter (LoRA) that is merged into the model before anything else; a folder, or a name
    /// as of `--model`.
    #[arg(help_heading = "Model and data", long)]
    pub(crate) adapter: Option<PathBuf>,
    /// Rows of JSON lines (also by gzip or zstd) or Parquet, in TRL's shapes: demonstrations, pairs,
    /// unpaired completions or lists, as the objective takes them; unpaired ones may be pairs. With
    /// `--sample`, anything with prompts. Columns of other names: see below. Several files:
    /// `--data a.jsonl --data b.parquet:0.5` takes half of the groups of rows of the second one.
    #[arg(
        help_heading = "Model and data",
        long,
        required = true,
        value_name = "FILE[:SHARE]"
    )]
    pub(crate) data: Vec<DataSource>,
    /// Rows to measure on, of one file or several; otherwise some of `--data` are held out.
    #[arg(
        help_heading = "Model and data",
        long,
        value_name = "FILE[:SHARE]",
        conflicts_with = "held_out"
    )]
    pub(crate) held_out_data: Vec<DataSource>,
    /// Share of the groups of rows that are held out; with 0 nothing is measured.
    #[arg(help_heading = "Model and data", long, default_value_t = 0.1)]
    pub(crate) held_out: f64,
    /// The column that says which rows belong together; without it, the prompt.
    #[arg(help_heading = "Model and data", long)]
    pub(crate) group: Option<String>,
    /// Strings stay plain text, also where the model has a chat template. Otherwise they are what a
    /// user says and an assistant answers, and transcripts (`Human:`, `Assistant:`) are turns.
    #[arg(help_heading = "Model and data", long)]
    pub(crate) plain: bool,
    /// Leave rows out that cannot be read, and report them.
    #[arg(help_heading = "Model and data", long)]
    pub(crate) skip_errors: bool,
    /// Tokens of a prompt with its completion, at most. What fits is not cut; in a longer row the
    /// prompt loses its middle, down to half of these, and then the completion its end. The beginning
    /// of a prompt stays: system message and opening of the turn.
    #[arg(help_heading = "Model and data", long, default_value_t = 512)]
    pub(crate) max_length: usize,

    #[command(flatten)]
    pub(crate) columns: ColumnNames,

    /// An objective's name, its config as JSON, or a file of it: dpo, '{"loss": "ipo", "tau": 0.5}',
    /// sft (demonstrations), kto (unpaired completions), rrhf (lists), grpo (answers of the model itself),
    /// bradley_terry (a reward model).
    #[arg(help_heading = "Objective", long, default_value = "dpo")]
    pub(crate) loss: String,
    /// Source of the reference's log-probabilities.
    #[arg(help_heading = "Objective", long, value_enum, default_value_t = ReferenceFrom::Cache)]
    pub(crate) reference: ReferenceFrom,
    /// The folder where the reference's log-probabilities are kept; otherwise `OUT.run/reference`.
    #[arg(help_heading = "Objective", long)]
    pub(crate) cache: Option<PathBuf>,

    /// Train all weights instead of adapters.
    #[arg(help_heading = "What is trained", long, conflicts_with_all = ["rank", "alpha", "targets", "quantize"])]
    pub(crate) full: bool,
    /// Rank of the adapters.
    #[arg(help_heading = "What is trained", long, default_value_t = 8)]
    pub(crate) rank: usize,
    /// α of the adapters, which add α/rank·A·B to a weight; otherwise twice the rank.
    #[arg(help_heading = "What is trained", long)]
    pub(crate) alpha: Option<f64>,
    /// Projections that get an adapter, by commas: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj,
    /// down_proj; all of them without it.
    #[arg(help_heading = "What is trained", long, value_delimiter = ',')]
    pub(crate) targets: Vec<String>,
    /// Hold the weights beside the adapters in few bits (QLoRA).
    #[arg(help_heading = "What is trained", long, value_enum)]
    pub(crate) quantize: Option<Bits>,

    /// Optimiser steps; otherwise one epoch.
    #[arg(help_heading = "Steps", long)]
    pub(crate) steps: Option<usize>,
    /// Pairs, demonstrations, unpaired completions, lists or samples of an optimiser step; what is held
    /// out is measured as a whole.
    #[arg(help_heading = "Steps", long, default_value_t = 8)]
    pub(crate) batch: usize,
    /// Tokens of a forward, at most, padding included: a step is as many forwards as it takes. An
    /// example that is longer is a forward of its own.
    #[arg(help_heading = "Steps", long, default_value_t = 2048)]
    pub(crate) budget: usize,
    /// Forwards at once, which share `--budget`; otherwise 2 for adapters on flex, and 1 elsewhere
    /// or where a loss is of a whole step.
    #[arg(help_heading = "Steps", long)]
    pub(crate) workers: Option<usize>,
    /// Rows of a forward; the numbers are the same up to rounding.
    #[arg(help_heading = "Steps", long, value_enum, default_value_t = Layout::Auto)]
    pub(crate) layout: Layout,
    /// The largest learning rate; otherwise 1e-4 for adapters and 5e-6 for all weights.
    #[arg(help_heading = "Steps", long)]
    pub(crate) rate: Option<f64>,
    /// Course of the learning rate behind the warm-up.
    #[arg(help_heading = "Steps", long, value_enum, default_value_t = Schedule::Cosine)]
    pub(crate) schedule: Schedule,
    /// Share of the steps in which the rate rises.
    #[arg(help_heading = "Steps", long, default_value_t = 0.1)]
    pub(crate) warm_up: f64,
    /// The norm that gradients are clipped at.
    #[arg(help_heading = "Steps", long, default_value_t = 1.0)]
    pub(crate) clip: f64,
    /// Weight decay of AdamW, whose β are 0.9 and 0.999, and whose ε is 1e-8.
    #[arg(help_heading = "Steps", long, default_value_t = 0.0)]
    pub(crate) weight_decay: f64,
    /// Compute activations again in the backward instead of keeping them, where Burn does.
    #[arg(help_heading = "Steps", long)]
    pub(crate) gradient_checkpointing: bool,
    /// Steps between two evaluations, each with a checkpoint; otherwise ten in the run.
    #[arg(help_heading = "Steps", long)]
    pub(crate) evaluate_every: Option<usize>,
    /// End after so many evaluations without a smaller held-out loss.
    #[arg(help_heading = "Steps", long)]
    pub(crate) patience: Option<usize>,
    /// Seed of the split, the order, the adapters and the answers.
    #[arg(help_heading = "Steps", long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Train also where the check of the first batch finds an error; it is left out.
    #[arg(help_heading = "Steps", long)]
    pub(crate) no_check: bool,
    /// Go on where a run with the same arguments was stopped.
    #[arg(help_heading = "Steps", long)]
    pub(crate) resume: bool,

    /// flex; wgpu, cuda or tch with the feature of this name; ws://HOST:PORT of a burn-remote server
    /// with the feature remote.
    #[arg(help_heading = "Devices and files", long, default_value = "flex")]
    pub(crate) device: String,
    /// The number type of weights that are not trained; with `--full`, f32 is the only one.
    #[arg(help_heading = "Devices and files", long, value_enum, default_value_t = Numbers::F32)]
    pub(crate) dtype: Numbers,
    /// The folder that appears when training ends, with the weights of the smallest held-out loss; of
    /// samples (grpo) with those of the last step.
    /// Metrics and checkpoints are in `OUT.run`.
    #[arg(help_heading = "Devices and files", long, default_value = "aligned")]
    pub(crate) out: PathBuf,
    /// Kind of files that are saved as `OUT`.
    #[arg(help_heading = "Devices and files", long, value_enum, default_value_t = Save::Model)]
    pub(crate) save: Save,
    /// The number type of what is saved; otherwise the input's (f32 for a GGUF file, and for an
    /// adapter).
    #[arg(help_heading = "Devices and files", long, value_enum)]
    pub(crate) save_dtype: Option<Numbers>,
    /// Seconds that a process of a run waits for another one: at least the time that a checkpoint takes.
    #[cfg(feature = "mpi")]
    #[arg(help_heading = "Devices and files", long, default_value_t = 600)]
    pub(crate) timeout: u64,
    /// A file of options: a JSON object by the names of the flags, such as
    /// '{"model": "m0", "rate": 1e-4, "full": true}'. The command line wins. A run writes its own as
    /// `OUT.run/options.json`.
    #[arg(help_heading = "Devices and files", long)]
    pub(crate) config: Option<PathBuf>,
    /// The options that were given, by the command line or by `--config`.
    #[arg(skip)]
    pub(crate) given: Map<String, Value>,

    /// Held-out prompts that the model answers before and after.
    #[arg(help_heading = "Answers", long, default_value_t = 2)]
    pub(crate) answers: usize,
    /// Tokens of an answer, at most.
    #[arg(help_heading = "Answers", long, default_value_t = 64)]
    pub(crate) answer_tokens: usize,
    /// Temperature of answers; 0 takes the likeliest token.
    #[arg(help_heading = "Answers", long, default_value_t = 0.7)]
    pub(crate) temperature: f64,

    /// Do not train: answer every prompt this many times, and write the best answer against the
    /// worst one into `OUT.jsonl`.
    #[arg(help_heading = "On-policy rows", long, requires = "score", conflicts_with_all = [
        "held_out_data", "held_out", "group", "loss", "reference", "cache", "full", "rank", "alpha",
        "targets", "quantize", "steps", "batch", "budget", "workers", "layout", "rate", "schedule",
        "warm_up", "clip", "weight_decay", "gradient_checkpointing", "evaluate_every", "patience",
        "no_check", "resume", "save", "save_dtype", "answers",
    ])]
    pub(crate) sample: Option<usize>,
    /// Who says which answer is better: a folder with a reward model, or a command that reads
    /// `{"prompt": …, "completion": …}`, with the other columns of the row, line by line and writes
    /// a number a line.
    #[arg(help_heading = "On-policy rows", long, requires = "sample")]
    pub(crate) score: Option<String>,
    /// Write all answers to a prompt as one row, with their scores, token ids and log-probabilities:
    /// for `--loss grpo`, or one that takes lists. They are drawn at temperature 1.
    #[arg(help_heading = "On-policy rows", long, requires = "sample")]
    pub(crate) every_answer: bool,
}

/// The source of the reference's log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReferenceFrom {
    /// Computed once, before training, and kept on disk.
    Cache,
    /// Computed in every step.
    Live,
}

/// Bits of quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bits {
    Q8,
    Q4,
}

/// The number type of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Numbers {
    F32,
    F16,
    Bf16,
}

/// Rows of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// Packed on flex where a prompt has several completions, as in pairs and lists; else padded.
    Auto,
    /// A row for each completion with its prompt.
    Padded,
    /// Each prompt once, with its completions in one row.
    Packed,
}

/// The kind of files that are saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Save {
    /// Weights in the input's layout and names, adapters merged.
    Model,
    /// The adapters alone, as PEFT has them.
    Adapter,
}

impl Numbers {
    pub(crate) fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::F16 => FloatDType::F16,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

impl Args {
    /// Parses and checks the arguments of this process.
    pub(crate) fn checked() -> Result<Self, Failure> {
        let command = Self::command();
        let typed = options_file::with_file(env::args_os().collect(), &command)?;
        let matches = command.clone().try_get_matches_from(typed);
        let parsed = matches.and_then(|matches| {
            let mut args = Self::from_arg_matches(&matches)?;
            args.given = options_file::given(&command, &matches);
            Ok(args)
        });
        let mut args = match parsed {
            Ok(args) => args,
            Err(error) => error.exit(),
        };
        // Without a slash at its end, so that other names can be made of it.
        args.out = args.out.components().collect();
        check(&args)?;
        Ok(args)
    }

    pub(crate) fn data_options(&self) -> DataOptions {
        DataOptions {
            max_length: self.max_length,
            columns: self.columns.clone(),
            group: self.group.clone(),
            held_out: self.held_out,
            plain: self.plain,
            skip_errors: self.skip_errors,
            seed: self.seed,
        }
    }

    /// Of examples that have several completions of a prompt, or one.
    pub(crate) fn batching(&self, chat: &Chat, device: &Device, are_several: bool) -> Batching {
        let padding = Padding::new(chat.padding);
        let packs = match self.layout {
            Layout::Auto => are_several && self.device == "flex",
            Layout::Padded => false,
            Layout::Packed => true,
        };
        Batching {
            padding,
            packing: packs.then(|| Packing::new(padding)),
            budget: self.budget,
            device: device.clone(),
        }
    }

    pub(crate) fn answering<'a>(&self, chat: &'a Chat) -> Answering<'a> {
        Answering {
            chat,
            sampling: Sampling {
                // Of another temperature the log-probabilities would be those of another model.
                temperature: if self.every_answer {
                    1.0
                } else {
                    self.temperature
                },
                max_tokens: self.answer_tokens,
            },
            max_prompt: self.max_length,
        }
    }

    pub(crate) fn lora(&self) -> LoraOptions {
        LoraOptions {
            rank: self.rank,
            alpha: self.alpha.unwrap_or(2.0 * self.rank as f64),
            targets: if self.targets.is_empty() {
                TARGETS.map(str::to_owned).to_vec()
            } else {
                self.targets.clone()
            },
        }
    }

    /// `OUT` with an end, such as `OUT.run`.
    pub(crate) fn beside_out(&self, end: &str) -> PathBuf {
        let mut name = self.out.as_os_str().to_owned();
        name.push(end);
        name.into()
    }
}

/// Checks values and combinations that the parser of arguments does not know.
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
        #[cfg(feature = "mpi")]
        (
            "--timeout",
            usize::try_from(args.timeout).unwrap_or(usize::MAX),
            1,
        ),
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
    // The parser does not ask for an option that another given one excludes.
    if args.score.is_some() && args.sample.is_none() {
        return wrong("--score: nothing is scored without --sample");
    }
    if args.every_answer && args.sample.is_none() {
        return wrong("--every-answer: nothing is answered without --sample");
    }
    if args.every_answer && args.given.contains_key("temperature") && args.temperature != 1.0 {
        return wrong("--temperature: with --every-answer it is 1, as the log-probabilities are");
    }
    let mut files = args.data.iter().chain(&args.held_out_data);
    if args.group.is_some() && !args.held_out_data.is_empty() && files.all(|file| file.share == 1.0)
    {
        return wrong("--group: nothing is split or shared where --held-out-data has the rows");
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
