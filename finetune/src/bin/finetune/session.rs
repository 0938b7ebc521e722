//! A run: reference, policy, training, and what is saved.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::data::dataloader::BatchStrategy;
use burn::module::Module;
use burn::tensor::quantization::QuantValue;
use burn::tensor::{Device, FloatDType};
use burn_preference::data::{Example, Labels, Sample, TokenBudget};
use burn_preference::needs::Examples;
use burn_preference::reference::cache::{Fingerprint, ReferenceCache};
use burn_preference::tokens::Sequence;
use burn_preference::{Frozen, Metrics};
use finetune::{
    Batching, Chat, Claim, DataOptions, Decoder, Failure, Prompt, Ranks, ReferenceLogProbs,
    RunFolder, SaveOptions, Splits, StepContext, Task, Texts, TrainOptions, Trainer, Workers,
    check_whole_steps, draw_metrics, load_adapter, load_as, publish, save, save_adapter, say,
};
use serde_json::{Map, Value, json};
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::flag::{register, register_conditional_shutdown};

use crate::args::{Args, Bits, Layout, Numbers, ReferenceFrom, Save};
use crate::card::Card;
use crate::objective::ChosenObjective;
use crate::options_file;
use crate::report::{look_at_losses, print_answers, print_costs, table};
use crate::settings::contents;
use crate::sources::Sources;

/// A model, its tokenizer and an objective, ready for a run.
pub(crate) struct Session<'a> {
    args: &'a Args,
    sources: Sources,
    base: Decoder,
    chat: Chat,
    batching: Batching,
    folder: RunFolder,
    /// Of the process that writes.
    claim: Option<Claim>,
    workers: usize,
    ranks: &'a Ranks,
    pub(crate) objective: ChosenObjective,
}

/// A model from the files that were saved.
struct Loaded {
    model: Decoder,
    /// Name of its row in the table.
    row: String,
    /// True if numbers were rounded to half precision.
    is_rounded: bool,
}

impl<'a> Session<'a> {
    /// Makes a session, if its options agree with each other and with the objective.
    ///
    /// # Errors
    ///
    /// `--out` is there already, or another run is writing it, or there is a run that `--resume` did not
    /// ask for, or an option has nothing to act on.
    pub(crate) fn new(
        args: &'a Args,
        sources: Sources,
        base: Decoder,
        chat: Chat,
        device: Device,
        objective: ChosenObjective,
        ranks: &'a Ranks,
    ) -> Result<Self, Failure> {
        let claim = ranks
            .is_first()
            .then(|| Claim::take(&args.out))
            .transpose()?;
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
        check_options(args, &objective)?;
        let whole = objective.needs.whole_batch;
        if whole && ranks.are_several() {
            let what = "the loss of this objective is of a whole step, which one process computes";
            return Err(format!("--loss: {what}").into());
        }
        // Of full weights, each worker would have gradients of its own, as large as the model.
        let two = args.device == "flex" && !args.full && !whole;
        let workers = args.workers.unwrap_or(if two { 2 } else { 1 });
        // What runs at once shares the budget.
        let several = [Examples::Pairs, Examples::Ranked, Examples::Samples];
        let are_several =
            several.contains(&objective.needs.examples) && !objective.learns_rewards();
        let mut batching = args.batching(&chat, &device, are_several);
        batching.budget = (batching.budget / workers).max(1);
        say!("objective: {}", objective.written);
        Ok(Self {
            args,
            sources,
            base,
            chat,
            batching,
            folder,
            claim,
            workers,
            ranks,
            objective,
        })
    }

    pub(crate) fn data_options(&self) -> DataOptions {
        self.args.data_options()
    }

    /// Reads the examples of this run, each file by `texts`.
    pub(crate) fn read<L: Labels>(
        &self,
        texts: impl Fn(&DataOptions, &Path, &Chat) -> Result<Texts<L>, Failure>,
    ) -> Result<Splits<L>, Failure> {
        let (train, held_out) = (&self.args.data, &self.args.held_out_data);
        let options = self.data_options();
        let texts = |path: &Path| texts(&options, path, &self.chat);
        options.read(train, held_out, texts, &self.chat)
    }

    /// Reads the samples of this run.
    pub(crate) fn read_samples(&self) -> Result<Splits<Sample>, Failure> {
        let (train, held_out) = (&self.args.data, &self.args.held_out_data);
        let options = self.data_options();
        let texts = |path: &Path| options.groups(path, &self.chat);
        let vocab = self.base.config().vocab;
        options.read_samples(train, held_out, texts, &self.chat, vocab)
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
        let device = if args.gradient_checkpointing {
            device.gradient_checkpointing()
        } else {
            device
        };
        device.seed(args.seed);
        let mut policy = frozen.clone();
        if self.objective.learns_rewards() {
            policy = policy.into_reward_model();
        }
        let policy = policy.to_device(&device).train();
        Ok(if args.full {
            policy
        } else {
            policy.with_adapters(&self.args.lora())?
        })
    }

    /// Trains, saves, and reports.
    pub(crate) fn train<T: Task>(
        &self,
        task: T,
        splits: Splits<T::Label>,
    ) -> Result<ExitCode, Failure>
    where
        TokenBudget<T::Label>: BatchStrategy<Example<Vec<u32>, T::Label>>,
    {
        let args = self.args;
        if args.patience.is_some() && splits.held_out.is_empty() {
            return Err("--patience: nothing is held out that could be measured".into());
        }
        if args.patience.is_some() && task.measured_by().is_none() {
            let what = "no held-out number of this objective falls as the policy learns";
            return Err(format!("--patience: {what}").into());
        }
        let examples = splits.train.len();
        if args.batch > examples {
            let batch = args.batch;
            let all = "each step has all of them";
            say!("look: --batch is {batch}, and there are {examples} examples to train on: {all}");
        }
        let options = self.options(examples);
        if self.objective.needs.whole_batch {
            check_whole_steps(&self.batching, &options, &splits.train)?;
        }
        let frozen = self.frozen();
        let policy = self.policy(&frozen)?;
        let before = policy.valid();
        say!("{}", self.sizes(&policy));
        self.begin_folder()?;
        let all = splits.train.iter().chain(&splits.held_out);
        let sequences: Vec<Sequence> = all.flat_map(T::sequences).collect();
        let all = splits.train.iter().chain(&splits.held_out);
        // Every number as it is: `Debug` of an f64 reads back as the same one.
        let labels: Vec<_> = all.map(|example| &example.label).collect();
        let labels = format!("{labels:?}");
        let weights = args.fingerprint(&frozen)?;
        let reference = if self.objective.needs.has_reference() {
            Some(self.reference(&frozen, weights, &sequences)?)
        } else {
            None
        };
        // An adapter alone is used on the base with all its bits, and compared with that.
        let is_elsewhere = args.save == Save::Adapter && args.quantize.is_some();
        let elsewhere = (is_elsewhere && reference.is_some())
            .then(|| ReferenceLogProbs::Live(Box::new(Frozen::new(&self.base))));
        let stop = Arc::new(AtomicBool::new(false));
        let settings = args.settings(
            &self.objective.written,
            self.workers,
            &contents(weights, &sequences, &labels),
        );
        self.ranks.agree(&json!([settings, options]).to_string())?;
        let mut trainer = Trainer {
            task,
            context: StepContext {
                batching: &self.batching,
                reference: reference.as_ref(),
                ranks: self.ranks,
            },
            options,
            check: (!args.no_check).then(|| self.tolerance()),
            folder: self.folder.clone(),
            settings,
            workers: Workers::new(self.workers)?,
            stop: Arc::clone(&stop),
        };
        // A second Ctrl-C leaves at once; the first one ends the run after its step.
        for signal in TERM_SIGNALS {
            register_conditional_shutdown(*signal, 130, Arc::clone(&stop))?;
            register(*signal, Arc::clone(&stop))?;
        }
        let trained = trainer.train(policy, splits.train, &splits.held_out, args.resume)?;
        if self.ranks.is_first() {
            self.draw_metrics();
        }
        print_costs(&trained);
        if trained.interrupted {
            say!("go on with --resume");
            // What the shell says of a program that Ctrl-C has ended.
            return Ok(ExitCode::from(130));
        }

        let policy = trained.policy.valid();
        let loaded = self.save(&policy)?;
        let mut rows = Vec::new();
        if !splits.held_out.is_empty() {
            for (name, model) in [("before", &before), ("after", &policy)] {
                rows.push((name.to_owned(), trainer.measure(model, &splits.held_out)?));
            }
            if let Some(reference) = &elsewhere {
                trainer.context.reference = Some(reference);
            }
            let metrics = trainer.measure(&loaded.model, &splits.held_out)?;
            rows.push((loaded.row, metrics));
            say!("{}", table(&rows).trim_end());
            if let Some(key) = trainer.task.measured_by() {
                look_at_losses(&rows, key, loaded.is_rounded);
            }
        }
        let examples = [examples, splits.held_out.len()];
        self.publish(&rows, examples, &trainer.options)?;
        // What is left is the first one's.
        self.ranks.finish()?;
        if !self.ranks.is_first() {
            return Ok(ExitCode::SUCCESS);
        }
        self.look_for_answers(&splits.held_out_prompts);
        self.print_answers(&splits.held_out_prompts, [&before, &loaded.model])?;
        Ok(ExitCode::SUCCESS)
    }

    /// Prints answers before and after, unless rewards were learnt.
    fn print_answers(&self, prompts: &[Prompt], models: [&Decoder; 2]) -> Result<(), Failure> {
        if self.objective.learns_rewards() {
            return Ok(());
        }
        let prompts = &prompts[..prompts.len().min(self.args.answers)];
        let answering = self.args.answering(&self.chat);
        print_answers(&answering, prompts, models, self.args.seed)
    }

    /// Names an option of answers that was given although nothing is answered.
    fn look_for_answers(&self, prompts: &[Prompt]) {
        let answers = self.args.answers;
        if !(self.objective.learns_rewards() || prompts.is_empty() || answers == 0) {
            return;
        }
        let given = |name: &&str| self.args.given.contains_key(*name);
        let options = ["answers", "answer-tokens", "temperature"];
        let options = &options[usize::from(answers == 0)..];
        if let Some(name) = options.iter().find(|name| given(name)) {
            say!("look: --{name} changes nothing: no prompt is answered");
        }
    }

    /// Makes the folder of the run, without what a killed one has left.
    fn begin_folder(&self) -> Result<(), Failure> {
        if !self.ranks.is_first() {
            return Ok(());
        }
        self.folder.create()?;
        if self.is_alone() {
            self.folder.remove_leftovers()?;
        }
        options_file::write(&self.given(), &self.folder.options())
    }

    /// Gives what was saved its card and its name, and prints the card's remarks.
    fn publish(
        &self,
        rows: &[(String, Metrics)],
        examples: [usize; 2],
        training: &TrainOptions,
    ) -> Result<(), Failure> {
        if !self.ranks.is_first() {
            return Ok(());
        }
        let remarks = self.remarks();
        for remark in &remarks {
            say!("look: {remark}");
        }
        let table = (!rows.is_empty()).then(|| table(rows));
        let name = self.args.out.file_name().unwrap_or_default();
        let card = Card {
            name: &name.to_string_lossy(),
            base: &self.sources.model,
            adapter: self.sources.adapter.as_ref(),
            is_adapter: self.args.save == Save::Adapter,
            is_reward_model: self.objective.learns_rewards(),
            objective: &self.objective.written,
            examples,
            training,
            options: &self.given(),
            table: table.as_deref(),
            remarks: &remarks,
        };
        card.write(&self.staging())?;
        publish(&self.staging(), &self.args.out)?;
        say!("saved: {}", self.args.out.display());
        Ok(())
    }

    /// Whether no other process may write into the folder of the run.
    fn is_alone(&self) -> bool {
        self.claim.as_ref().is_some_and(Claim::is_exclusive)
    }

    /// The folder that becomes `--out` when it has its card.
    fn staging(&self) -> PathBuf {
        Claim::staging(&self.args.out)
    }

    /// Saves what was trained, and loads it as other programs do.
    fn save(&self, policy: &Decoder) -> Result<Loaded, Failure> {
        let (args, device) = (self.args, &self.batching.device);
        let to = &self.staging();
        let dtype = args.save_dtype.map(Numbers::dtype);
        let base = &self.sources.model;
        let (saved, model) = match args.save {
            Save::Model => {
                let options = SaveOptions {
                    dtype,
                    ..Default::default()
                };
                let saved = self.first(|| Ok(save(policy, &base.path, to, &options)?))?;
                // As it was trained, or in f32, whatever the files have.
                let same = saved == args.dtype.dtype();
                let dtype = if same { saved } else { FloatDType::F32 };
                (saved, load_as(dtype, to, device)?)
            }
            Save::Adapter => {
                let saved = dtype.unwrap_or(FloatDType::F32);
                self.first(|| {
                    save_adapter(policy, base, to, saved)?;
                    Ok(saved)
                })?;
                // On the weights that its config names, which have all their bits.
                let base = self.base.clone();
                (saved, load_adapter(base, to, device)?)
            }
        };
        let trained = match args.save {
            Save::Model => args.dtype.dtype(),
            Save::Adapter => FloatDType::F32,
        };
        let other = format!("loaded, {saved:?}").to_lowercase();
        Ok(Loaded {
            model,
            row: if saved == trained {
                "loaded".to_owned()
            } else {
                other
            },
            is_rounded: saved != FloatDType::F32,
        })
    }

    /// Has the first process save, and returns the number type of what it saved when it is there.
    fn first(
        &self,
        save: impl FnOnce() -> Result<FloatDType, Failure>,
    ) -> Result<FloatDType, Failure> {
        const SAVED: [FloatDType; 4] = [
            FloatDType::F32,
            FloatDType::F16,
            FloatDType::BF16,
            FloatDType::F64,
        ];
        if !self.ranks.are_several() {
            return save();
        }
        let saved = self.ranks.is_first().then(save).transpose()?;
        for dtype in SAVED {
            if self.ranks.any(saved == Some(dtype))? {
                return Ok(dtype);
            }
        }
        Err(format!("{saved:?}: a number type that several processes do not know").into())
    }

    /// Remarks for those who load what was saved.
    fn remarks(&self) -> Vec<String> {
        let args = self.args;
        let mut remarks = Vec::new();
        if let (Save::Adapter, Some(bits)) = (args.save, args.quantize) {
            remarks.push(format!(
                "The adapter was trained on weights of few bits ({}), which are in no file: `after` has \
                 them, and `loaded` (with its reference) those of the base that adapter_config.json names.",
                format!("{bits:?}").to_lowercase(),
            ));
        }
        if args.save == Save::Adapter && self.sources.model.path.is_file() {
            remarks.push(
                "PEFT takes no GGUF file as the base of an adapter: name a folder with the same weights \
                 in adapter_config.json, or save with `--save model`."
                    .to_owned(),
            );
        }
        if self.objective.learns_rewards() && self.chat.padding == self.chat.end {
            remarks.push(
                "The padding token of this tokenizer ends a text as well, and transformers would read \
                 rewards before that end in rows that are padded: config.json has no `pad_token_id`, so \
                 that transformers takes one row at a time."
                    .to_owned(),
            );
        }
        remarks
    }

    /// The options of this run, as `--config` reads them.
    fn given(&self) -> Map<String, Value> {
        let mut given = self.args.given.clone();
        // Not the name of a file, which may change.
        if let Some(loss) = given.get_mut("loss") {
            *loss = self.objective.written.clone();
        }
        given
    }

    fn draw_metrics(&self) {
        let (metrics, figure) = (self.folder.metrics(), self.folder.figure());
        say!("metrics: {}", metrics.display());
        match draw_metrics(&metrics, &figure) {
            Ok(()) => say!("figure: {}", figure.display()),
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

    fn reference(
        &self,
        frozen: &Decoder,
        weights: Fingerprint,
        sequences: &[Sequence],
    ) -> Result<ReferenceLogProbs, Failure> {
        let model = Frozen::new(frozen);
        // A cache has sums, and a KL of samples is one of tokens.
        let of_tokens = self.objective.needs.examples == Examples::Samples;
        if of_tokens || self.args.reference == ReferenceFrom::Live {
            return Ok(ReferenceLogProbs::Live(Box::new(model)));
        }
        let folder = self.args.cache.clone();
        let folder = folder.unwrap_or_else(|| self.folder.cache());
        let cache = ReferenceCache::open(&folder, weights)?;
        // In a folder that other runs may share, a living one could be writing.
        if self.args.cache.is_none() && self.is_alone() {
            cache.remove_scratch()?;
        }
        // Nothing is kept for a backward: as many rows as a step's forward has, at least.
        let longest = sequences.iter().map(|s| s.ids().len()).max().unwrap_or(1);
        let rows = (self.args.budget / longest).max(1);
        let computed = |cache, sequences: &[Sequence]| {
            ReferenceLogProbs::computed(cache, &model, sequences, rows, &self.batching)
        };
        if !self.ranks.are_several() {
            return computed(cache, sequences);
        }
        // Nobody writes before the first one has removed what was left. Then each process has its share,
        // and then all of them find everything.
        self.ranks.meet()?;
        computed(cache, &sequences[self.ranks.share(sequences.len())])?;
        self.ranks.meet()?;
        computed(ReferenceCache::open(&folder, weights)?, sequences)
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
}

/// Checks that options have something to act on.
fn check_options(args: &Args, objective: &ChosenObjective) -> Result<(), Failure> {
    let wrong = |what: &str| Err(what.to_owned().into());
    if objective.learns_rewards() && args.save == Save::Adapter {
        return wrong("--save adapter: a reward model has a head besides, save the model");
    }
    if objective.learns_rewards() && args.layout == Layout::Packed {
        return wrong("--layout packed: a reward stands at the end of a row of its own");
    }
    let is_live = args.reference == ReferenceFrom::Live;
    if !objective.needs.has_reference() && (is_live || args.cache.is_some()) {
        return wrong("--reference and --cache: this objective has no reference");
    }
    let given = |name| args.given.contains_key(name);
    if objective.needs.examples == Examples::Samples
        && (args.cache.is_some() || given("reference") && !is_live)
    {
        return wrong(
            "--reference and --cache: the reference of samples is live, token by token; a cache has \
             sums",
        );
    }
    if is_live && args.cache.is_some() {
        return wrong("--cache: with --reference live nothing is kept");
    }
    if objective.needs.whole_batch && args.workers.is_some_and(|workers| workers > 1) {
        return wrong("--workers: the loss of this objective is of a whole step");
    }
    Ok(())
}
