//! A run: reference, policy, training, what is saved, and the table at the end.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use burn::data::dataloader::BatchStrategy;
use burn::module::Module;
use burn::tensor::Device;
use burn::tensor::quantization::QuantValue;
use burn_preference::data::{Example, Format, Labels, Text, TokenBudget};
use burn_preference::reference::cache::{Fingerprint, ReferenceCache};
use burn_preference::tokens::{Packing, Padding, Sequence};
use burn_preference::{Frozen, Metrics};
use finetune::{
    Around, Chat, DataOptions, Decoder, Failure, Layout, LoraOptions, Objective, Reference, Rows,
    RunFolder, Sampling, TARGETS, Task, TrainOptions, Trainer, Workers, check_whole_steps, draw,
    load, load_adapter, sample, save, save_adapter,
};
use indicatif::ProgressBar;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::flag::{register, register_conditional_shutdown};

use crate::{Args, Bits, Numbers, ReferenceFrom, Save};

/// What was read from disk, and how it is used.
pub struct Session<'a> {
    args: &'a Args,
    base: Decoder,
    chat: Chat,
    layout: Layout,
    folder: RunFolder,
    /// As a config.
    loss: Value,
    needs_reference: bool,
    learns_rewards: bool,
    needs_whole_steps: bool,
    workers: usize,
    pub data: DataOptions,
}

/// `OUT` with an end, such as `OUT.run`.
pub fn beside(out: &Path, end: &str) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(end);
    name.into()
}

pub fn data_options(args: &Args) -> DataOptions {
    DataOptions {
        max_length: args.max_length,
        group: args.group.clone(),
        held_out: args.held_out,
        plain: args.plain,
        skip_errors: args.skip_errors,
        seed: args.seed,
    }
}

pub fn layout(args: &Args, chat: &Chat, device: &Device) -> Layout {
    let padding = Padding::new(chat.padding);
    Layout {
        padding,
        packing: args.shared_prefix.then(|| Packing::new(padding)),
        budget: args.budget,
        device: device.clone(),
    }
}

/// A prompt up to where an answer begins, as long as rows of the training are.
pub fn prompt_ids(args: &Args, chat: &Chat, prompt: &Text) -> Result<Vec<u32>, Failure> {
    let mut ids = chat.prompt(prompt)?;
    let room = (args.max_length / 2).max(1);
    Ok(ids.split_off(ids.len().saturating_sub(room)))
}

/// Answers to the prompt `ids`, as the arguments say.
pub fn answers_to(
    args: &Args,
    chat: &Chat,
    model: &Decoder,
    ids: &[u32],
    count: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Vec<u32>>, Failure> {
    let sampling = Sampling {
        temperature: args.temperature,
        max_tokens: args.answer_tokens,
    };
    let sampling = sampling.within(model, ids.len())?;
    Ok(sample(model, ids, count, &chat.ends, sampling, rng))
}

impl<'a> Session<'a> {
    /// # Errors
    ///
    /// `--out` is there already, or a run that `--resume` did not ask for, or an option has nothing
    /// to act on.
    pub fn new(
        args: &'a Args,
        base: Decoder,
        chat: Chat,
        device: Device,
        objective: &Objective,
        loss: &str,
    ) -> Result<Self, Failure> {
        if args.out.exists() {
            return Err(format!("--out: {} is there already", args.out.display()).into());
        }
        let folder = RunFolder::new(&beside(&args.out, ".run"));
        match (folder.has_checkpoint()?, args.resume) {
            (true, false) => {
                let folder = beside(&args.out, ".run");
                let what = "has a run: go on with --resume, or remove it";
                return Err(format!("--out: {} {what}", folder.display()).into());
            }
            (false, true) => return Err("--resume: there is no checkpoint to go on from".into()),
            _ => {}
        }
        if objective.learns_rewards() && args.save == Save::Adapter {
            let what = "a reward model has a head besides, save the model";
            return Err(format!("--save adapter: {what}").into());
        }
        if objective.needs_reference() {
            if args.cache.is_some() && args.reference == ReferenceFrom::Live {
                return Err("--cache: with --reference live nothing is kept".into());
            }
        } else if args.cache.is_some() || args.reference == ReferenceFrom::Live {
            return Err("--reference and --cache: this objective has no reference".into());
        }
        let whole = objective.needs_whole_steps();
        if whole && args.workers.is_some_and(|workers| workers > 1) {
            return Err("--workers: the loss of this objective is of a whole step".into());
        }
        // Of full weights, each worker would have gradients of its own, as large as the model.
        let two = args.device == "flex" && !args.full && !whole;
        let workers = args.workers.unwrap_or(if two { 2 } else { 1 });
        // What runs at once shares the budget.
        let mut layout = layout(args, &chat, &device);
        layout.budget = (layout.budget / workers).max(1);
        if objective.learns_rewards() && layout.packing.is_some() {
            return Err("--shared-prefix: a reward stands at the end of a row of its own".into());
        }
        let loss = serde_json::from_str(loss).unwrap_or_else(|_| json!({ "loss": loss }));
        println!("objective: {loss}");
        Ok(Self {
            data: data_options(args),
            layout,
            args,
            base,
            chat,
            folder,
            loss,
            needs_reference: objective.needs_reference(),
            learns_rewards: objective.learns_rewards(),
            needs_whole_steps: whole,
            workers,
        })
    }

    /// The rows of this run.
    pub fn read<F>(&self, format: impl Fn() -> F) -> Result<Rows<F::Label>, Failure>
    where
        F: Format,
        F::Label: Labels,
    {
        let (train, held_out) = (&self.args.data, self.args.held_out_data.as_deref());
        self.data.read(train, held_out, format, &self.chat)
    }

    fn lora(&self) -> LoraOptions {
        let all = || TARGETS.map(str::to_owned).to_vec();
        let args = self.args;
        LoraOptions {
            rank: args.rank,
            alpha: args.alpha.unwrap_or(2.0 * args.rank as f64),
            targets: if args.targets.is_empty() {
                all()
            } else {
                args.targets.clone()
            },
        }
    }

    /// What is frozen: the base, in few bits where adapters stand on few bits.
    fn frozen(&self) -> Decoder {
        let base = self.base.clone();
        let Some(bits) = self.args.quantize else {
            return base;
        };
        let scheme = self.layout.device.settings().quantization.scheme;
        base.quantized(&scheme.with_value(match bits {
            Bits::Q8 => QuantValue::Q8S,
            Bits::Q4 => QuantValue::Q4S,
        }))
    }

    /// What is trained, before the first step.
    fn policy(&self, frozen: &Decoder) -> Result<Decoder, Failure> {
        let args = self.args;
        let device = self.layout.device.clone().autodiff();
        let device = match args.gradient_checkpointing {
            true => device.gradient_checkpointing(),
            false => device,
        };
        device.seed(args.seed);
        let mut policy = frozen.clone();
        if self.learns_rewards {
            policy = policy.into_reward_model();
        }
        let policy = policy.to_device(&device).train();
        Ok(match args.full {
            true => policy,
            false => policy.with_adapters(&self.lora())?,
        })
    }

    /// Trains, saves, and reports.
    pub fn train<T: Task>(&self, task: T, rows: Rows<T::Label>) -> Result<ExitCode, Failure>
    where
        TokenBudget<T::Label>: BatchStrategy<Example<Vec<u32>, T::Label>>,
    {
        let args = self.args;
        if args.patience.is_some() && rows.held_out.is_empty() {
            return Err("--patience: nothing is held out that could be measured".into());
        }
        let steps = args.steps.unwrap_or(rows.train.len().div_ceil(args.batch));
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of them"
        )]
        let warm_up = (args.warm_up * steps as f64).ceil() as usize;
        let rate = if args.full { 5e-6 } else { 1e-4 };
        let options = TrainOptions {
            steps,
            batch: args.batch,
            rate: args.rate.unwrap_or(rate),
            schedule: args.schedule,
            warm_up,
            clip: args.clip,
            weight_decay: args.weight_decay,
            evaluate_every: args.evaluate_every.unwrap_or(steps.div_ceil(10)),
            patience: args.patience,
            seed: args.seed,
        };
        if self.needs_whole_steps {
            check_whole_steps(&self.layout, &options, &rows.train, &rows.held_out)?;
        }
        let frozen = self.frozen();
        let policy = self.policy(&frozen)?;
        let before = policy.valid();
        println!("{}", self.sizes(&policy));
        self.folder.create()?;
        let all = rows.train.iter().chain(&rows.held_out);
        let sequences: Vec<Sequence> = all.flat_map(T::sequences).collect();
        let weights = self.fingerprint(&frozen);
        let reference = self.reference(&frozen, weights, &sequences)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut trainer = Trainer {
            task,
            around: Around {
                layout: &self.layout,
                reference: &reference,
            },
            options,
            folder: self.folder.clone(),
            settings: self.settings(&contents(weights, &sequences)),
            workers: Workers::new(self.workers)?,
            stop: Arc::clone(&stop),
        };
        // A second Ctrl-C leaves at once; the first one ends the run after its step.
        for signal in TERM_SIGNALS {
            register_conditional_shutdown(*signal, 130, Arc::clone(&stop))?;
            register(*signal, Arc::clone(&stop))?;
        }
        let trained = trainer.train(policy, rows.train, &rows.held_out, args.resume)?;
        let (metrics, figure) = (self.folder.metrics(), self.folder.figure());
        println!("metrics: {}", metrics.display());
        match draw(&metrics, &figure) {
            Ok(()) => println!("figure: {}", figure.display()),
            // What was trained is not lost for it.
            Err(error) => eprintln!("no figure: {}: {error}", figure.display()),
        }
        if trained.examples > 0 {
            println!(
                "{:.2} s an example; peak memory {}",
                trained.seconds / trained.examples as f64,
                peak_memory()
            );
        }
        if trained.interrupted {
            println!("go on with --resume");
            // What the shell says of a program that Ctrl-C has ended.
            return Ok(ExitCode::from(130));
        }

        let policy = trained.policy.valid();
        match args.save {
            Save::Model => save(&policy, &args.model, &args.out)?,
            Save::Adapter => save_adapter(&policy, &self.lora(), &args.model, &args.out)?,
        }
        println!("saved: {}", args.out.display());
        let again = match args.save {
            Save::Model => load(&args.out, &self.layout.device)?,
            Save::Adapter => load_adapter(frozen, &args.out, &self.layout.device)?.0,
        };
        if !rows.held_out.is_empty() {
            let loaded = match args.dtype {
                Numbers::F32 => "loaded",
                _ if args.save == Save::Adapter => "loaded",
                // What stands on the disk is f32, and rounds otherwise.
                _ => "loaded, f32",
            };
            println!("| held out | loss | reward accuracy | margin | chosen | rejected |");
            println!("|---|---|---|---|---|---|");
            let mut losses = Vec::new();
            for (name, model) in [("before", &before), ("after", &policy), (loaded, &again)] {
                let metrics = trainer.measure(model, &rows.held_out)?;
                print_row(name, &metrics);
                losses.push(metrics.get("loss"));
            }
            if losses[1] >= losses[0] {
                println!("look: the held-out loss has not fallen");
            }
        }
        if !self.learns_rewards {
            self.print_answers(&rows.prompts, [&before, &again])?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What has to be the same when a run goes on.
    fn settings(&self, contents: &Fingerprint) -> Value {
        let args = self.args;
        json!({
            "model": args.model,
            "adapter": args.adapter,
            "data": args.data,
            "held_out_data": args.held_out_data,
            "held_out": args.held_out,
            "skip_errors": args.skip_errors,
            "group": args.group,
            "plain": args.plain,
            "max_length": args.max_length,
            "loss": self.loss,
            "reference": format!("{:?}", args.reference),
            "device": args.device,
            "full": args.full,
            "rank": args.rank,
            "alpha": args.alpha,
            "targets": args.targets,
            "quantize": args.quantize.map(|bits| format!("{bits:?}")),
            "dtype": format!("{:?}", args.dtype),
            "budget": args.budget,
            "shared_prefix": args.shared_prefix,
            "workers": self.workers,
            "weights and tokens": contents.to_string(),
        })
    }

    fn sizes(&self, policy: &Decoder) -> String {
        let all = policy.num_params();
        if self.args.full {
            return format!("parameters: {all}, all trained");
        }
        let frozen = self.base.num_params();
        format!(
            "parameters: {frozen} and {} trained ones",
            all.saturating_sub(frozen)
        )
    }

    /// Of what is frozen.
    fn fingerprint(&self, frozen: &Decoder) -> Fingerprint {
        let fingerprint = Fingerprint::of(frozen);
        match self.args.quantize {
            Some(bits) => fingerprint.with("bits", format!("{bits:?}").as_bytes()),
            None => fingerprint,
        }
    }

    /// Every log-probability that the run will ask for, from the cache or computed into it.
    fn reference(
        &self,
        frozen: &Decoder,
        weights: Fingerprint,
        sequences: &[Sequence],
    ) -> Result<Reference, Failure> {
        if !self.needs_reference {
            return Ok(Reference::None);
        }
        let model = Frozen::new(frozen);
        if self.args.reference == ReferenceFrom::Live {
            return Ok(Reference::Live(Box::new(model)));
        }
        let folder = self
            .args
            .cache
            .clone()
            .unwrap_or_else(|| self.folder.cache());
        let mut cache = ReferenceCache::open(folder, weights)?;
        let longest = sequences.iter().map(|s| s.ids().len()).max().unwrap_or(1);
        // Nothing is kept for a backward: as many rows as a step's forward has, at least.
        let rows = (self.args.budget / longest).max(1);
        let bar = ProgressBar::new(sequences.len() as u64).with_message("reference");
        let (start, found) = (Instant::now(), cache.len());
        cache.fill::<Failure>(
            sequences,
            rows,
            |some| {
                let rows = self.layout.rows(some.to_vec())?;
                self.layout.log_probs(model.model(), &rows)
            },
            |progress| {
                bar.set_length(progress.total as u64);
                bar.set_position(progress.done as u64);
            },
        )?;
        bar.finish_and_clear();
        println!(
            "reference: {found} in the cache, {} computed in {:.1} s",
            cache.len() - found,
            start.elapsed().as_secs_f64()
        );
        Ok(Reference::Cached(cache))
    }

    /// What two models say to the same prompts.
    fn print_answers(&self, prompts: &[Text], models: [&Decoder; 2]) -> Result<(), Failure> {
        let args = self.args;
        for prompt in prompts.iter().take(args.answers) {
            let ids = prompt_ids(args, &self.chat, prompt)?;
            println!("\n{}", self.chat.decode(&ids)?.trim());
            for (name, model) in ["before", "after"].into_iter().zip(models) {
                let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
                let answer = answers_to(args, &self.chat, model, &ids, 1, &mut rng)?;
                println!("  {name}: {}", self.chat.decode(&answer[0])?.trim());
            }
        }
        Ok(())
    }
}

/// What a run begins with, whatever the names of its files are.
fn contents(weights: Fingerprint, sequences: &[Sequence]) -> Fingerprint {
    let mut bytes = Vec::new();
    for sequence in sequences {
        let lengths = [sequence.prompt().len(), sequence.completion().len()];
        bytes.extend(lengths.iter().flat_map(|len| (*len as u64).to_le_bytes()));
        bytes.extend(sequence.ids().iter().flat_map(|id| id.to_le_bytes()));
    }
    weights.with("tokens", &bytes)
}

fn print_row(name: &str, metrics: &Metrics) {
    let get = |key| {
        metrics
            .get(key)
            .map_or("–".to_owned(), |value| format!("{value:.4}"))
    };
    println!(
        "| {name} | {} | {} | {} | {} | {} |",
        get("loss"),
        get("rewards/accuracies"),
        get("rewards/margins"),
        get("logps/chosen"),
        get("logps/rejected"),
    );
}

/// As Linux counts it.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or("unknown".to_owned(), |line| line.trim().to_owned())
}
