//! A run: reference, policy, training, and what is saved.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use burn::data::dataloader::BatchStrategy;
use burn::module::Module;
use burn::tensor::Device;
use burn::tensor::quantization::QuantValue;
use burn_preference::Frozen;
use burn_preference::data::{Example, Format, Labels, TokenBudget};
use burn_preference::reference::cache::{Fingerprint, ReferenceCache};
use burn_preference::tokens::Sequence;
use finetune::{
    Batching, Chat, ChosenObjective, Decoder, Failure, ReferenceLogProbs, RunFolder, Splits,
    StepContext, Task, TrainOptions, Trainer, Workers, check_whole_steps, draw_metrics, load,
    load_adapter, save, save_adapter,
};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::flag::{register, register_conditional_shutdown};

use crate::args::{Args, Bits, Numbers, ReferenceFrom, Save};
use crate::report::{print_answers, print_costs, print_table};

/// A model, its tokenizer and an objective, ready for a run.
pub struct Session<'a> {
    args: &'a Args,
    base: Decoder,
    chat: Chat,
    batching: Batching,
    folder: RunFolder,
    /// As a config.
    loss: Value,
    needs_reference: bool,
    learns_rewards: bool,
    needs_whole_steps: bool,
    workers: usize,
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
        objective: &ChosenObjective,
        loss: &str,
    ) -> Result<Self, Failure> {
        if args.out.exists() {
            return Err(format!("--out: {} is there already", args.out.display()).into());
        }
        let folder = RunFolder::new(&args.beside_out(".run"));
        match (folder.has_checkpoint()?, args.resume) {
            (true, false) => {
                let folder = args.beside_out(".run");
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
        let mut batching = args.batching(&chat, &device);
        batching.budget = (batching.budget / workers).max(1);
        if objective.learns_rewards() && batching.packing.is_some() {
            return Err("--shared-prefix: a reward stands at the end of a row of its own".into());
        }
        let loss = serde_json::from_str(loss).unwrap_or_else(|_| json!({ "loss": loss }));
        println!("objective: {loss}");
        Ok(Self {
            batching,
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

    /// Reads the examples of this run.
    pub fn read<F>(&self, format: impl Fn() -> F) -> Result<Splits<F::Label>, Failure>
    where
        F: Format,
        F::Label: Labels,
    {
        let (train, held_out) = (&self.args.data, self.args.held_out_data.as_deref());
        let options = self.args.data_options();
        options.read(train, held_out, format, &self.chat)
    }

    /// The frozen weights: the base, in few bits where adapters stand on few bits.
    fn frozen(&self) -> Decoder {
        let base = self.base.clone();
        let Some(bits) = self.args.quantize else {
            return base;
        };
        let scheme = self.batching.device.settings().quantization.scheme;
        base.quantized(&scheme.with_value(match bits {
            Bits::Q8 => QuantValue::Q8S,
            Bits::Q4 => QuantValue::Q4S,
        }))
    }

    /// The model that is trained, before the first step.
    fn policy(&self, frozen: &Decoder) -> Result<Decoder, Failure> {
        let args = self.args;
        let device = self.batching.device.clone().autodiff();
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
            false => policy.with_adapters(&self.args.lora())?,
        })
    }

    /// Trains, saves, and reports.
    pub fn train<T: Task>(&self, task: T, splits: Splits<T::Label>) -> Result<ExitCode, Failure>
    where
        TokenBudget<T::Label>: BatchStrategy<Example<Vec<u32>, T::Label>>,
    {
        let args = self.args;
        if args.patience.is_some() && splits.held_out.is_empty() {
            return Err("--patience: nothing is held out that could be measured".into());
        }
        let options = self.options(splits.train.len());
        if self.needs_whole_steps {
            check_whole_steps(&self.batching, &options, &splits.train, &splits.held_out)?;
        }
        let frozen = self.frozen();
        let policy = self.policy(&frozen)?;
        let before = policy.valid();
        println!("{}", self.sizes(&policy));
        self.folder.create()?;
        let all = splits.train.iter().chain(&splits.held_out);
        let sequences: Vec<Sequence> = all.flat_map(T::sequences).collect();
        let weights = self.fingerprint(&frozen);
        let reference = self.reference(&frozen, weights, &sequences)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut trainer = Trainer {
            task,
            context: StepContext {
                batching: &self.batching,
                reference: reference.as_ref(),
            },
            options,
            check: (!args.no_check).then(|| self.tolerance()),
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
        let trained = trainer.train(policy, splits.train, &splits.held_out, args.resume)?;
        self.draw_metrics();
        print_costs(&trained);
        if trained.interrupted {
            println!("go on with --resume");
            // What the shell says of a program that Ctrl-C has ended.
            return Ok(ExitCode::from(130));
        }

        let policy = trained.policy.valid();
        match args.save {
            Save::Model => save(&policy, &args.model, &args.out)?,
            Save::Adapter => save_adapter(&policy, &self.args.lora(), &args.model, &args.out)?,
        }
        println!("saved: {}", args.out.display());
        let again = match args.save {
            Save::Model => load(&args.out, &self.batching.device)?,
            Save::Adapter => load_adapter(frozen, &args.out, &self.batching.device)?.0,
        };
        if !splits.held_out.is_empty() {
            let loaded = match args.dtype {
                Numbers::F32 => "loaded",
                _ if args.save == Save::Adapter => "loaded",
                // What stands on the disk is f32, and rounds otherwise.
                _ => "loaded, f32",
            };
            let models = [("before", &before), ("after", &policy), (loaded, &again)];
            let rows = models.map(|(name, model)| {
                let metrics = trainer.measure(model, &splits.held_out);
                metrics.map(|metrics| (name, metrics))
            });
            let rows = rows.into_iter().collect::<Result<Vec<_>, _>>()?;
            print_table(&rows);
        }
        if !self.learns_rewards {
            let prompts = splits.held_out_prompts.iter().take(args.answers);
            let prompts: Vec<_> = prompts.cloned().collect();
            let answering = args.answering(&self.chat);
            print_answers(&answering, &prompts, [&before, &again], args.seed)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn draw_metrics(&self) {
        let (metrics, figure) = (self.folder.metrics(), self.folder.figure());
        println!("metrics: {}", metrics.display());
        match draw_metrics(&metrics, &figure) {
            Ok(()) => println!("figure: {}", figure.display()),
            // What was trained is not lost for it.
            Err(error) => eprintln!("no figure: {}: {error}", figure.display()),
        }
    }

    fn options(&self, examples: usize) -> TrainOptions {
        let args = self.args;
        let steps = args.steps.unwrap_or(examples.div_ceil(args.batch));
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of them"
        )]
        let warm_up = (args.warm_up * steps as f64).ceil() as usize;
        let rate = if args.full { 5e-6 } else { 1e-4 };
        TrainOptions {
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
        }
    }

    /// By how many nats equal log-probabilities may differ: products of another shape round
    /// otherwise, and those of half precision or of a GPU more.
    fn tolerance(&self) -> f64 {
        match (self.args.dtype, self.args.device.as_str()) {
            (Numbers::F32, "flex") => 1e-4,
            _ => 0.05,
        }
    }

    /// Settings that have to be the same when a run goes on.
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

    /// The fingerprint of what is frozen.
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
    ) -> Result<Option<ReferenceLogProbs>, Failure> {
        if !self.needs_reference {
            return Ok(None);
        }
        let model = Frozen::new(frozen);
        if self.args.reference == ReferenceFrom::Live {
            return Ok(Some(ReferenceLogProbs::Live(Box::new(model))));
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
                let tokens = self.batching.tokens(some.to_vec())?;
                self.batching.log_probs(model.model(), &tokens)
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
        Ok(Some(ReferenceLogProbs::Cached(cache)))
    }
}

/// The fingerprint of what a run begins with, whatever the names of its files are.
fn contents(weights: Fingerprint, sequences: &[Sequence]) -> Fingerprint {
    let mut bytes = Vec::new();
    for sequence in sequences {
        let lengths = [sequence.prompt().len(), sequence.completion().len()];
        bytes.extend(lengths.iter().flat_map(|len| (*len as u64).to_le_bytes()));
        bytes.extend(sequence.ids().iter().flat_map(|id| id.to_le_bytes()));
    }
    weights.with("tokens", &bytes)
}
