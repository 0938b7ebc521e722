//! The loop: steps, evaluations, the best weights, and a run that can be stopped and go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::data::dataloader::BatchStrategy;
use burn::data::dataset::{Dataset, InMemDataset};
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use burn_preference::Metrics;
use burn_preference::data::{Cursor, Example, TokenBudget};
use burn_preference::training::accumulation::{Accumulation, StepPart};
use burn_preference::training::first_batch::Severity;
use serde_json::{Value, json};

use super::batching::Batching;
use super::checkpoint::{Checkpoint, State};
use super::options::TrainOptions;
use super::progress::Progress;
use super::run_folder::{MetricsFile, RunFolder};
use super::task::Task;
use super::values::StepContext;
use super::workers::Workers;
use crate::data::Examples;
use crate::failure::Failure;
use crate::model::Decoder;
use crate::ranks::Ranks;
use crate::say;

/// ε of AdamW, as PyTorch and TRL have it. Burn's 1e-5 is as large as a gradient of a large model
/// that is clipped at norm 1 (1/√N a weight), whose step it would halve.
const ADAM_EPSILON: f32 = 1e-8;

/// The result of training.
#[derive(Debug)]
pub struct Trained {
    /// The best weights by held-out loss, or where nothing was measured the last ones.
    pub policy: Decoder,
    /// Number of examples that this process has trained on.
    pub examples: usize,
    /// Seconds of their steps, without evaluations.
    pub seconds: f64,
    /// True if Ctrl-C stopped the run, with a checkpoint to go on from.
    pub interrupted: bool,
}

/// Everything of a run but its weights.
pub struct Trainer<'a, T: Task> {
    /// The objective with its examples.
    pub task: T,
    /// Batching and reference.
    pub context: StepContext<'a>,
    /// Length and rate of the run.
    pub options: TrainOptions,
    /// Tolerance in nats of the check of the first batch; none leaves the check out.
    pub check: Option<f64>,
    /// The folder of metrics and checkpoints.
    pub folder: RunFolder,
    /// Other settings that have to be the same when a run goes on: model, data, objective.
    pub settings: Value,
    /// Threads that compute the parts of a step.
    pub workers: Workers,
    /// A flag that is set from outside: finish this step, save, and return.
    pub stop: Arc<AtomicBool>,
}

/// Checks that every step is one forward: for objectives whose loss is of a whole step.
///
/// # Errors
///
/// One would be split; the error says which.
pub fn check_whole_steps<L: Clone + Send + Sync + 'static>(
    batching: &Batching,
    options: &TrainOptions,
    train: &[Example<Vec<u32>, L>],
) -> Result<(), Failure>
where
    TokenBudget<L>: BatchStrategy<Example<Vec<u32>, L>>,
{
    let train = Arc::new(InMemDataset::new(train.to_vec()));
    let mut cursor = Cursor::new(train.len(), options.seed);
    for step in 1..=options.steps {
        let examples = next_examples(&cursor, &train, options.batch)?;
        cursor.advance(examples.len());
        let forwards = batching.parts(examples).len();
        if forwards > 1 {
            let what = "the loss of this objective is of all of its examples at once: raise --budget, \
                        or lower --batch";
            return Err(format!("step {step} takes {forwards} forwards, and {what}").into());
        }
    }
    Ok(())
}

/// The examples of the next step.
fn next_examples<L: Clone + Send + Sync + 'static>(
    cursor: &Cursor,
    train: &Arc<InMemDataset<Example<Vec<u32>, L>>>,
    batch: usize,
) -> Result<Examples<L>, Failure> {
    let examples = cursor.remaining(train)?;
    Ok(examples.get_many((0..examples.len().min(batch)).collect())?)
}

impl<T: Task> Trainer<'_, T>
where
    TokenBudget<T::Label>: BatchStrategy<Example<Vec<u32>, T::Label>>,
{
    /// Trains `policy`, from the beginning or from the run folder's last checkpoint. Where there are
    /// several processes, every one has a share of each step and of what is measured, and all have the
    /// same weights; the first one writes the files.
    ///
    /// # Errors
    ///
    /// The check of the first batch finds an error, a loss or gradient is not finite, a checkpoint
    /// is of a run with other settings, or a file cannot be read or written.
    pub fn train(
        &mut self,
        policy: Decoder,
        train: Examples<T::Label>,
        held_out: &[Example<Vec<u32>, T::Label>],
        resume: bool,
    ) -> Result<Trained, Failure> {
        let train = Arc::new(InMemDataset::new(train));
        let mut run = self.begin(policy, train.len(), resume)?;
        let mut log = if self.context.ranks.is_first() {
            self.folder.open_metrics(run.state.step)?
        } else {
            MetricsFile::none()
        };
        if run.state.step == 0 {
            self.check_first_batch(&run, &train)?;
            if !held_out.is_empty() {
                let start = Instant::now();
                let before = self.measure(&run.policy, held_out)?;
                log.append(&held_out_line(0, &before, start.elapsed()))?;
            }
        }
        let evaluations = if held_out.is_empty() {
            None
        } else {
            Some(self.options.evaluate_every)
        };
        let mut progress = Progress::new(self.options.steps, run.state.step, evaluations);
        let (mut examples, mut seconds) = (0, 0.0);
        let mut stopped = false;
        while run.state.step < self.options.steps && self.is_patient(&run.state) {
            let start = Instant::now();
            run.state.step += 1;
            let step = run.state.step;
            let batch = next_examples(&run.state.cursor, &train, self.options.batch)?;
            let (count, tokens) = (batch.len(), tokens::<T>(&batch));
            let (gradients, metrics) = self.step(&run, batch)?;
            let rate = self.options.rate_of(step);
            run.policy = run.optimizer.step(rate, run.policy, gradients);
            self.task.observe(&metrics);
            run.state.cursor.advance(count);
            let took = start.elapsed();
            let speed = tokens as f64 / took.as_secs_f64();
            (examples, seconds) = (examples + count, seconds + took.as_secs_f64());
            let line = json!({
                "step": step,
                "epoch": run.state.cursor.epoch(),
                "rate": rate,
                "seconds": took.as_secs_f64(),
                "tokens": tokens,
                "tokens_per_second": speed,
                "train": table(&metrics),
            });
            log.append(&line)?;
            progress.step(&metrics, speed, took);

            let last = step == self.options.steps;
            // All of them stop after the same step.
            let stop = self.context.ranks.any(self.stop.load(Ordering::Relaxed))?;
            let measured = last || step.is_multiple_of(self.options.evaluate_every);
            if measured && !held_out.is_empty() {
                let start = Instant::now();
                let metrics = self.measure(&run.policy, held_out)?;
                let took = start.elapsed();
                log.append(&held_out_line(step, &metrics, took))?;
                progress.measured(step, &metrics, took);
                let key = self.task.measured_by();
                let measured = held_out_loss(&metrics, key.unwrap_or("loss"), step)?;
                if key.is_some() {
                    run.keep_best(measured, self.task.state());
                }
            }
            if measured || stop {
                run.state.task = self.task.state();
                if self.context.ranks.is_first() {
                    // No checkpoint without the lines of its steps.
                    log.sync()?;
                    run.save(&self.folder)?;
                }
            }
            if stop {
                say!("interrupted after step {step}");
                stopped = true;
                break;
            }
            if !self.is_patient(&run.state) {
                say!("stopped after step {step}: the held-out loss does not fall any more");
            }
        }
        progress.finish();
        let ended = run.state.step == self.options.steps || !self.is_patient(&run.state);
        let policy = match run.state.best {
            Some(best) => {
                self.task.restore(best.task)?;
                run.best_policy
            }
            None => run.policy,
        };
        Ok(Trained {
            policy,
            examples,
            seconds,
            interrupted: stopped && !ended,
        })
    }

    /// The run before its first step, or after the last checkpoint.
    fn begin(
        &mut self,
        policy: Decoder,
        examples: usize,
        resume: bool,
    ) -> Result<Checkpoint, Failure> {
        #[allow(clippy::cast_possible_truncation, reason = "Burn takes it as f32")]
        let decay = self.options.weight_decay as f32;
        let optimizer = AdamWConfig::new()
            .with_epsilon(ADAM_EPSILON)
            .with_weight_decay(decay)
            .init();
        let run = Checkpoint {
            state: State {
                step: 0,
                cursor: Cursor::new(examples, self.options.seed),
                best: None,
                stale: 0,
                task: Value::Null,
                settings: json!({ "options": self.options, "run": self.settings }),
            },
            best_policy: policy.clone(),
            policy,
            optimizer,
        };
        if !resume {
            return Ok(run);
        }
        let run = run.resume(&self.folder)?;
        if run.state.step > 0 {
            self.task.restore(run.state.task.clone())?;
            say!("goes on after step {}", run.state.step);
        }
        Ok(run)
    }

    fn is_patient(&self, state: &State) -> bool {
        let patience = self.options.patience;
        patience.is_none_or(|patience| state.stale < patience)
    }

    /// Checks the first examples that fit into a forward, with everything that is on in training.
    fn check_first_batch(
        &mut self,
        run: &Checkpoint,
        train: &Arc<InMemDataset<Example<Vec<u32>, T::Label>>>,
    ) -> Result<(), Failure> {
        let Some(tolerance) = self.check else {
            return Ok(());
        };
        let examples = next_examples(&run.state.cursor, train, self.options.batch)?;
        let parts = self.context.batching.parts(examples);
        let Some(first) = parts.first() else {
            return Ok(());
        };
        self.task.begin(&run.policy, &parts[..1], &self.context)?;
        let part = self.task.part(first.clone(), self.context.batching)?;
        let findings = part.check(&run.policy, &self.context, tolerance)?;
        let (errors, warnings): (Vec<_>, Vec<_>) = findings
            .iter()
            .partition(|finding| finding.severity() == Severity::Error);
        for warning in warnings {
            say!("look: {warning}");
        }
        for error in &errors {
            eprintln!("error: {error}");
        }
        match errors.len() {
            0 => Ok(()),
            _ => Err("the first batch is wrong; --no-check trains nevertheless".into()),
        }
    }

    /// Gradients of a step, clipped, and its metrics.
    fn step(
        &mut self,
        run: &Checkpoint,
        examples: Examples<T::Label>,
    ) -> Result<(GradientsParams, Metrics), Failure> {
        let (policy, total) = (&run.policy, examples.len() as f64);
        let device = policy.embedding.weight.device();
        let ranks = self.context.ranks;
        let parts = self.context.batching.parts(own(examples, ranks));
        self.task.begin(policy, &parts, &self.context)?;
        let parts = self.workers.map(parts, |examples| {
            // Leaves of its own: Burn locks graphs that share one against each other.
            let policy = policy.clone().fork(&device);
            let part = self.task.part(examples, self.context.batching)?;
            let (losses, metrics) = part.losses(&policy, &self.context)?;
            Ok(StepPart::new(&policy, losses, metrics, total)?)
        })?;
        let mut step = Accumulation::over(total)?;
        for part in parts {
            step.add_part(policy, part)?;
        }
        if ranks.are_several() {
            step = step.reduced(policy, ranks.reducer())?;
        }
        let (gradients, metrics) = step.clipped(policy, self.options.clip)?;
        let metrics = metrics.read()?;
        let [loss, norm] = ["loss", "grad_norm"].map(|key| metrics.get(key).unwrap_or(f64::NAN));
        if !(loss.is_finite() && norm.is_finite()) {
            let step = run.state.step;
            let what = format!("step {step}: loss {loss}, gradient {norm}: not finite");
            return Err(format!("{what}; a smaller --rate may help").into());
        }
        Ok((gradients, metrics))
    }

    /// Metrics of examples that nothing is trained on, all at once: a z₀ and a loss of a whole batch
    /// are those of all of them, however many a step has. A δ is that of the rewards in training.
    ///
    /// # Errors
    ///
    /// As a step.
    pub fn measure(
        &mut self,
        policy: &Decoder,
        examples: &[Example<Vec<u32>, T::Label>],
    ) -> Result<Metrics, Failure> {
        let model = policy.valid();
        let ranks = self.context.ranks;
        let examples = own(examples.to_vec(), ranks);
        let parts = if self.task.whole_batch() {
            vec![examples]
        } else {
            self.context.batching.parts(examples)
        };
        self.task.begin(&model, &parts, &self.context)?;
        let parts = self.workers.map(parts, |examples| {
            let part = self.task.part(examples, self.context.batching)?;
            let (_, metrics) = part.measure(&model, &self.context)?;
            Ok(metrics.read()?)
        })?;
        let mut all = Metrics::default();
        for metrics in &parts {
            all.merge(metrics);
        }
        if ranks.are_several() {
            all = all.reduced(ranks.reducer(), &Device::flex())?;
        }
        Ok(all)
    }
}

/// The share of this process of examples of a step, or of those that are measured.
fn own<L>(examples: Examples<L>, ranks: &Ranks) -> Examples<L> {
    let share = ranks.share(examples.len());
    let own = examples.into_iter().skip(share.start);
    own.take(share.len()).collect()
}

/// The metric `key` of held-out examples, a loss.
fn held_out_loss(held_out: &Metrics, key: &str, step: usize) -> Result<f64, Failure> {
    let loss = held_out.get(key).unwrap_or(f64::NAN);
    if loss.is_finite() {
        return Ok(loss);
    }
    let what = format!("step {step}: the held-out {key} is {loss}");
    Err(format!("{what}; a smaller --rate may help").into())
}

fn held_out_line(step: usize, metrics: &Metrics, took: Duration) -> Value {
    json!({"step": step, "seconds": took.as_secs_f64(), "held_out": table(metrics)})
}

/// Every number of a step by its name.
fn table(metrics: &Metrics) -> Value {
    metrics
        .iter()
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect()
}

fn tokens<T: Task>(examples: &[Example<Vec<u32>, T::Label>]) -> usize {
    let sequences = examples.iter().flat_map(T::sequences);
    sequences.map(|sequence| sequence.ids().len()).sum()
}
