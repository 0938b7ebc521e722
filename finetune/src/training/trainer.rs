//! The loop: steps, evaluations, the best weights, and a run that can be stopped and go on.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::data::dataloader::BatchStrategy;
use burn::data::dataset::{Dataset, InMemDataset};
use burn::module::{Module, ParamGroup};
use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams};
use burn::store::ModuleRecord;
use burn_preference::data::{Cursor, Example, TokenBudget};
use burn_preference::training::gradients::clip_by_global_norm;
use burn_preference::{BatchMetrics, Metrics};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::chat::Failure;
use crate::data::Examples;
use crate::decoder::Decoder;
use crate::objective::{Around, Layout, Task};
use crate::schedule::Schedule;
use crate::weights::at_once;
use crate::workers::Workers;

/// How long and how fast.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainOptions {
    /// Optimiser steps.
    pub steps: usize,
    /// Examples of a step; the last ones of an epoch may be fewer.
    pub batch: usize,
    /// The largest learning rate.
    pub rate: f64,
    /// What follows the warm-up.
    pub schedule: Schedule,
    /// Steps of the warm-up.
    pub warm_up: usize,
    /// The norm that gradients are clipped at.
    pub clip: f64,
    /// AdamW's.
    pub weight_decay: f64,
    /// Steps between two evaluations.
    pub evaluate_every: usize,
    /// Evaluations without a smaller held-out loss after which training ends.
    pub patience: Option<usize>,
    /// Of the order of the rows.
    pub seed: u64,
}

/// Where a run keeps what it needs to go on, and its metrics.
#[derive(Debug, Clone)]
pub struct RunFolder(PathBuf);

/// What a run knows besides its weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    step: usize,
    cursor: Cursor,
    best: Option<Best>,
    /// Evaluations since the best one.
    stale: usize,
    task: Value,
    /// What has to be the same when it goes on.
    settings: Value,
}

/// The smallest held-out loss so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After this step.
    pub step: usize,
    /// Held out.
    pub loss: f64,
}

impl RunFolder {
    /// A folder that may be there already, or not yet.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Makes it, unless it is there.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn create(&self) -> Result<(), Failure> {
        let made = fs::create_dir_all(&self.0);
        Ok(made.map_err(|error| format!("{}: {error}", self.0.display()))?)
    }

    /// One line of JSON a step and an evaluation.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// Their figure.
    pub fn figure(&self) -> PathBuf {
        self.0.join("metrics.svg")
    }

    /// The reference's log-probabilities.
    pub fn cache(&self) -> PathBuf {
        self.0.join("reference")
    }

    /// Whole checkpoints, by their step.
    fn checkpoints(&self) -> Result<Vec<(usize, PathBuf)>, Failure> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let step = name
                .strip_prefix("checkpoint-")
                .and_then(|step| step.parse().ok());
            found.extend(step.map(|step| (step, path)));
        }
        found.sort();
        Ok(found)
    }

    /// Whether there is a run that can go on.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn has_checkpoint(&self) -> Result<bool, Failure> {
        Ok(!self.checkpoints()?.is_empty())
    }

    /// The lines of metrics up to a step, without those that a killed run wrote after it; of none
    /// before the first step.
    fn keep_until(&self, step: usize) -> Result<(), Failure> {
        let path = self.metrics();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let is_before = |line: &&str| {
            let line = serde_json::from_str::<Value>(line);
            let at = line.ok().and_then(|line| line["step"].as_u64());
            step > 0 && at.is_some_and(|at| at <= step as u64)
        };
        let kept: String = text
            .lines()
            .filter(is_before)
            .map(|line| format!("{line}\n"))
            .collect();
        Ok(fs::write(path, kept)?)
    }
}

/// How training ended.
#[derive(Debug)]
pub struct Trained {
    /// The best weights by held-out loss, or where nothing was measured the last ones.
    pub policy: Decoder,
    /// Which those are.
    pub best: Option<Best>,
    /// Steps done.
    pub steps: usize,
    /// Examples trained on in this process, and seconds in their steps.
    pub examples: usize,
    /// Without evaluations.
    pub seconds: f64,
    /// Stopped by Ctrl-C, with a checkpoint to go on from.
    pub interrupted: bool,
}

/// Everything of a run but its weights.
pub struct Trainer<'a, T: Task> {
    /// The objective.
    pub task: T,
    /// Layout and reference.
    pub around: Around<'a>,
    /// How long and how fast.
    pub options: TrainOptions,
    /// Where metrics and checkpoints go.
    pub folder: RunFolder,
    /// What else has to be the same when a run goes on: model, data, objective.
    pub settings: Value,
    /// Who computes the parts of a step.
    pub workers: Workers,
    /// Set from outside: finish this step, save, and return.
    pub stop: Arc<AtomicBool>,
}

/// That every step, and every batch that is measured, is one forward: for objectives whose loss is
/// of a whole step.
///
/// # Errors
///
/// One would be split; the error says which.
pub fn check_whole_steps<L: Clone + Send + Sync + 'static>(
    layout: &Layout,
    options: &TrainOptions,
    train: &[Example<Vec<u32>, L>],
    held_out: &[Example<Vec<u32>, L>],
) -> Result<(), Failure>
where
    TokenBudget<L>: BatchStrategy<Example<Vec<u32>, L>>,
{
    let check = |name: &str, rows: Vec<_>| match layout.parts(rows).len() {
        0 | 1 => Ok(()),
        parts => Err(format!(
            "{name} takes {parts} forwards, and the loss of this objective is of all of its \
             examples at once: raise --budget, or lower --batch"
        )),
    };
    let train = Arc::new(InMemDataset::new(train.to_vec()));
    let mut cursor = Cursor::new(train.len(), options.seed);
    for step in 1..=options.steps {
        let rows = next_rows(&cursor, &train, options.batch)?;
        cursor.advance(rows.len());
        check(&format!("step {step}"), rows)?;
    }
    for rows in held_out.chunks(options.batch) {
        check("an evaluation", rows.to_vec())?;
    }
    Ok(())
}

/// The examples of the next step.
fn next_rows<L: Clone + Send + Sync + 'static>(
    cursor: &Cursor,
    train: &Arc<InMemDataset<Example<Vec<u32>, L>>>,
    batch: usize,
) -> Result<Examples<L>, Failure> {
    let rows = cursor.remaining(train)?;
    Ok(rows.get_many((0..rows.len().min(batch)).collect())?)
}

/// What is trained: adapters and a new head of a reward model, or all of it.
fn trained_part(model: &Decoder) -> ParamGroup {
    match model.has_adapters() {
        true => ParamGroup::from_any_predicates(vec!["adapter", "score"]),
        false => ParamGroup::all(),
    }
}

impl<T: Task> Trainer<'_, T>
where
    TokenBudget<T::Label>: BatchStrategy<Example<Vec<u32>, T::Label>>,
{
    /// Trains `policy`, from the beginning or from the run folder's last checkpoint.
    ///
    /// # Errors
    ///
    /// A loss or gradient is not finite, a checkpoint is of a run with other settings, or a file
    /// cannot be read or written.
    pub fn train(
        &mut self,
        mut policy: Decoder,
        train: Examples<T::Label>,
        held_out: &[Example<Vec<u32>, T::Label>],
        resume: bool,
    ) -> Result<Trained, Failure> {
        let train = Arc::new(InMemDataset::new(train));
        let options = self.options.clone();
        let device = policy.embedding.weight.device();
        let decay = options.weight_decay;
        #[allow(clippy::cast_possible_truncation, reason = "Burn takes it as f32")]
        let mut optimizer = AdamWConfig::new().with_weight_decay(decay as f32).init();
        let mut state = State {
            step: 0,
            cursor: Cursor::new(train.len(), options.seed),
            best: None,
            stale: 0,
            task: Value::Null,
            settings: self.settings(),
        };
        let mut best_policy = policy.clone();
        let saved = self.folder.checkpoints()?.pop();
        if let Some((_, path)) = saved.filter(|_| resume) {
            state = self.read_state(&path)?;
            self.task.restore(state.task.clone())?;
            let record = |name: &str| -> Result<ModuleRecord, Failure> {
                Ok(ModuleRecord::load(path.join(name))?.allow_partial(true))
            };
            best_policy = policy.clone().load_record(record("best.bpk")?);
            policy = policy.load_record(record("policy.bpk")?);
            optimizer = optimizer.load(path.join("optimizer.bpk"))?;
            println!("goes on after step {}", state.step);
        }
        self.folder.keep_until(state.step)?;
        let mut log = fs::OpenOptions::new()
            .append(true)
            .open(self.folder.metrics())?;
        let progress = Progress::new(options.steps, state.step);
        let (mut examples, mut seconds) = (0, 0.0);
        if state.step == 0 && !held_out.is_empty() {
            let before = self.measure(&policy, held_out)?;
            writeln!(log, "{}", json!({"step": 0, "held_out": table(&before)}))?;
        }
        let is_patient = |stale| options.patience.is_none_or(|patience| stale < patience);
        while state.step < options.steps && is_patient(state.stale) {
            let start = Instant::now();
            state.step += 1;
            let step = state.step;
            let rows = next_rows(&state.cursor, &train, options.batch)?;
            let (count, tokens) = (rows.len(), tokens::<T>(&rows));
            let mut metrics = BatchMetrics::default();
            let mut accumulator = GradientsAccumulator::new();
            let parts = self.around.layout.parts(rows);
            self.task.begin(&policy, &parts, &self.around)?;
            let parts = self.workers.map(parts, |part| {
                // Leaves of its own: Burn locks graphs that share one against each other.
                let policy = policy.clone().fork(&device);
                let part = self.task.step(&policy, part, &self.around)?;
                let loss = part.sum * (count as f64).recip();
                let grads = GradientsParams::from_grads(loss.backward(), &policy);
                Ok((part.metrics, grads))
            })?;
            for (of_part, grads) in parts {
                metrics = metrics.merge(of_part);
                accumulator.accumulate(&policy, grads);
            }
            let (grads, norm) = clip_by_global_norm(accumulator.grads(), &policy, options.clip)?;
            let (metrics, norm) = (metrics.read()?, norm.into_scalar::<f64>());
            let loss = metrics.get("loss").unwrap_or(f64::NAN);
            if !(loss.is_finite() && norm.is_finite()) {
                let what = format!("step {step}: loss {loss}, gradient {norm}: not finite");
                return Err(format!("{what}; a smaller --rate may help").into());
            }
            let factor = options
                .schedule
                .factor(step, options.steps, options.warm_up);
            let rate = options.rate * factor;
            policy = optimizer.step(rate, policy, grads);
            self.task.observe(&metrics);
            state.cursor.advance(count);
            let took = start.elapsed().as_secs_f64();
            (examples, seconds) = (examples + count, seconds + took);
            let line = json!({
                "step": step,
                "epoch": state.cursor.epoch(),
                "rate": rate,
                "gradient_norm": norm,
                "train": table(&metrics),
            });
            writeln!(log, "{line}")?;
            progress.step(&metrics, tokens as f64 / took);

            let last = step == options.steps;
            let stop = self.stop.load(Ordering::Relaxed);
            let measured = last || step.is_multiple_of(options.evaluate_every);
            if measured && !held_out.is_empty() {
                let held = self.measure(&policy, held_out)?;
                writeln!(log, "{}", json!({"step": step, "held_out": table(&held)}))?;
                let loss = held.get("loss").unwrap_or(f64::NAN);
                progress.measured(step, &held);
                if !loss.is_finite() {
                    let what = format!("step {step}: the held-out loss is {loss}");
                    return Err(format!("{what}; a smaller --rate may help").into());
                }
                if state.best.is_none_or(|best| loss < best.loss) {
                    state.best = Some(Best { step, loss });
                    state.stale = 0;
                    best_policy = policy.clone();
                } else {
                    state.stale += 1;
                }
            }
            if measured || stop {
                state.task = self.task.state();
                self.save(&state, &policy, &best_policy, &optimizer)?;
            }
            if stop {
                println!("interrupted after step {step}");
                break;
            }
            if !is_patient(state.stale) {
                println!("stopped after step {step}: the held-out loss does not fall any more");
            }
        }
        progress.finish();
        Ok(Trained {
            policy: if state.best.is_some() {
                best_policy
            } else {
                policy
            },
            best: state.best,
            steps: state.step,
            examples,
            seconds,
            interrupted: self.stop.load(Ordering::Relaxed)
                && state.step < options.steps
                && is_patient(state.stale),
        })
    }

    /// Metrics of rows that nothing is trained on, in batches as large as a step's.
    ///
    /// # Errors
    ///
    /// As a step.
    pub fn measure(
        &mut self,
        policy: &Decoder,
        rows: &[Example<Vec<u32>, T::Label>],
    ) -> Result<Metrics, Failure> {
        let model = policy.valid();
        let mut metrics = Metrics::default();
        for rows in rows.chunks(self.options.batch) {
            let parts = self.around.layout.parts(rows.to_vec());
            self.task.begin(&model, &parts, &self.around)?;
            let step = |part| self.task.step(&model, part, &self.around);
            let steps = self.workers.map(parts, step)?;
            for step in steps {
                metrics.merge(&step.metrics.read()?);
            }
        }
        Ok(metrics)
    }

    fn settings(&self) -> Value {
        json!({ "options": self.options, "run": self.settings })
    }

    fn read_state(&self, path: &Path) -> Result<State, Failure> {
        let file = path.join("state.json");
        let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let state: State =
            serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        let ours = self.settings();
        if state.settings != ours {
            let what = first_difference("", &state.settings, &ours);
            return Err(format!("--resume: the saved run has other settings: {what}").into());
        }
        Ok(state)
    }

    /// A whole checkpoint, and then no older one.
    fn save(
        &self,
        state: &State,
        policy: &Decoder,
        best: &Decoder,
        optimizer: &burn::optim::ModuleOptimizer,
    ) -> Result<(), Failure> {
        let older = self.folder.checkpoints()?;
        let to = self.folder.0.join(format!("checkpoint-{}", state.step));
        let part = || trained_part(policy);
        at_once::<Failure>(&to, |folder| {
            let record = |model: &Decoder| model.clone().into_record_group(part());
            record(policy).save(folder.join("policy.bpk"))?;
            record(best).save(folder.join("best.bpk"))?;
            optimizer.save(folder.join("optimizer.bpk"))?;
            Ok(fs::write(
                folder.join("state.json"),
                serde_json::to_string_pretty(state)?,
            )?)
        })?;
        for (_, path) in older {
            fs::remove_dir_all(path)?;
        }
        Ok(())
    }
}

/// Where two settings part.
fn first_difference(at: &str, saved: &Value, now: &Value) -> String {
    if let (Value::Object(a), Value::Object(b)) = (saved, now) {
        for key in a.keys().chain(b.keys()) {
            let (a, b) = (&saved[key], &now[key]);
            if a != b {
                return first_difference(&format!("{at} {key}"), a, b);
            }
        }
    }
    format!("{} was {saved} and is {now}", at.trim_start())
}

/// Every number of a step by its name.
fn table(metrics: &Metrics) -> Value {
    metrics
        .iter()
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect()
}

fn tokens<T: Task>(rows: &[Example<Vec<u32>, T::Label>]) -> usize {
    let sequences = rows.iter().flat_map(T::sequences);
    sequences.map(|sequence| sequence.ids().len()).sum()
}

/// A bar with tokens a second and the time that is left; where there is no terminal, some lines.
struct Progress {
    bar: ProgressBar,
    every: u64,
}

impl Progress {
    fn new(steps: usize, done: usize) -> Self {
        let bar = ProgressBar::new(steps as u64).with_position(done as u64);
        bar.reset_eta();
        let template = "{bar:24} {pos}/{len}  {elapsed}, {eta} left  {msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
        Self {
            bar,
            every: (steps as u64).div_ceil(10),
        }
    }

    fn step(&self, metrics: &Metrics, tokens_a_second: f64) {
        self.bar.inc(1);
        let mut text = format!("loss {:.4}", metrics.get("loss").unwrap_or(f64::NAN));
        if let Some(accuracy) = metrics.get("rewards/accuracies") {
            text += &format!(", accuracy {accuracy:.2}");
        }
        text += &format!(", {tokens_a_second:.0} tokens/s");
        if self.bar.is_hidden() && self.bar.position().is_multiple_of(self.every) {
            println!("step {}: {text}", self.bar.position());
        }
        self.bar.set_message(text);
    }

    fn measured(&self, step: usize, held: &Metrics) {
        let get = |key| {
            held.get(key)
                .map_or("–".to_owned(), |value| format!("{value:.4}"))
        };
        let (loss, accuracy) = (get("loss"), get("rewards/accuracies"));
        let line = format!("step {step}: held out: loss {loss}, accuracy {accuracy}");
        self.bar.suspend(|| println!("{line}"));
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
