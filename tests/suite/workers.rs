//! One large batch, unequal micro-batches, two workers of burn-train's `MultiDevice` and two
//! burn-remote servers take the same steps, for objectives that need something of the whole window.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::{Dataset, DatasetError, InMemDataset};
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, SgdConfig};
use burn::tensor::{DType, Device, Tensor};
use burn::train::{
    ExecutionStrategy, InferenceStep, Learner, LearningResult, MultiDeviceOptim,
    SupervisedTraining, TrainOutput, TrainStep,
};
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use burn_preference::training::reducer::{Local, Reducer, Threads};
use burn_preference::training::state::RunningMean;
use burn_preference::{
    BcoLossConfig, DpoLossConfig, Frozen, KlEstimate, KtoLossConfig, NllNormalization, Objective,
    PolicyPair, ReferencedPair, RelativeLogProbs, SequenceLogProbs, SftTerm, Unpaired,
    WithBaseline, WithNll, WithShift,
};

use super::renderer::Lines;
use crate::support::bigram::Bigram;
use crate::support::{ZipEqual, assert_close, to_vec, tolerance};

const VOCAB: u32 = 7;

fn bigram(device: &Device) -> Bigram {
    Bigram::new([VOCAB as usize, 4], 0, device)
}

fn log_probs(model: &Bigram, batch: &TokenBatch) -> SequenceLogProbs {
    batch.log_probs(model, Bigram::logits).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Dpo,
    DpoWithTokenMeanSft,
    Kto,
    Bco,
}

/// δ of BCO with the number of the window that moved it last: the workers are threads that share
/// it, and all have the same global sums.
type Delta = Arc<Mutex<(usize, RunningMean)>>;

#[derive(Module, Debug)]
struct Model {
    policy: Bigram,
    reference: Frozen<Bigram>,
    #[module(skip)]
    kind: Kind,
    #[module(skip)]
    reducer: Arc<dyn Reducer>,
    #[module(skip)]
    delta: Delta,
}

/// Row `i` of the data set, as tensors: pairs, and prompts with another's completion.
#[derive(Debug, Clone)]
struct Rows {
    window: usize,
    pairs: TokenBatch,
    mismatched: TokenBatch,
}

/// A pair of unequal lengths; the window that it belongs to is part of the row.
#[derive(Debug, Clone, Copy)]
struct Row {
    window: usize,
    i: u32,
}

fn sequence(prompt: u32, completion: u32) -> Sequence {
    let token = |t: u32| (completion * 3 + t * t) % VOCAB;
    let ids: Vec<u32> = (0..=completion % 3).map(token).collect();
    Sequence::new(&[prompt % VOCAB], &ids)
}

struct Collate;

impl Batcher<Row, Rows> for Collate {
    fn batch(&self, rows: Vec<Row>, device: &Device) -> Rows {
        let all = |of: fn(u32) -> Sequence| rows.iter().map(move |row| of(row.i));
        let chosen = all(|i| sequence(i, i));
        let rejected = all(|i| sequence(i, i + 11));
        let batch = |sequences| TokenBatch::new(sequences, Padding::new(0), device).unwrap();
        Rows {
            window: rows[0].window,
            pairs: batch(chosen.chain(rejected).collect()),
            mismatched: batch(all(|i| sequence(i, i + 5)).collect()),
        }
    }
}

/// What a loss needs of the whole window before its backward.
struct Window {
    pairs: f64,
    tokens: f64,
    kl: KlEstimate,
    /// Sum and count.
    rewards: Tensor<1>,
}

impl Window {
    fn merge(self, other: Self) -> Self {
        Self {
            pairs: self.pairs + other.pairs,
            tokens: self.tokens + other.tokens,
            kl: self.kl.merge(other.kl),
            rewards: self.rewards + other.rewards,
        }
    }

    fn reduced(self, reducer: &dyn Reducer) -> Self {
        let device = self.rewards.device();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        let total = |local: f64| {
            reducer
                .total(local as usize, &device)
                .unwrap_or_else(|e| panic!("{e}"))
        };
        Self {
            pairs: total(self.pairs),
            tokens: total(self.tokens),
            kl: self.kl.reduced(reducer).unwrap(),
            rewards: reducer.sum(self.rewards).unwrap(),
        }
    }
}

const BETA: f64 = 0.7;

impl Model {
    fn new(kind: Kind, reducer: Arc<dyn Reducer>, device: &Device) -> Self {
        let policy = bigram(&device.clone().autodiff());
        // Another model, so that the first window has log-ratios.
        let mut reference = policy.clone();
        reference.head.weight = reference.head.weight.map(|w| w * 0.5);
        Self {
            reference: Frozen::new(&reference),
            policy,
            kind,
            reducer,
            delta: Arc::default(),
        }
    }

    fn ratios(&self, tokens: &TokenBatch) -> RelativeLogProbs {
        let reference = log_probs(self.reference.model(), tokens);
        log_probs(&self.policy, tokens)
            .relative_to(reference)
            .unwrap()
    }

    fn pairs(&self, rows: &Rows) -> ReferencedPair {
        let of =
            |model: &Bigram| PolicyPair::from_concatenated(&log_probs(model, &rows.pairs)).unwrap();
        of(&self.policy)
            .relative_to(of(self.reference.model()))
            .unwrap()
    }

    fn window(&self, rows: &Rows) -> Window {
        let pairs = rows.pairs.len() / 2;
        let chosen = rows.pairs.sequences[..pairs].iter();
        let rewards = self.ratios(&rows.pairs).log_ratio().without_autodiff() * BETA;
        let count = rewards.ones_like().sum_dim(0);
        Window {
            pairs: pairs as f64,
            tokens: chosen.map(|s| s.completion().len()).sum::<usize>() as f64,
            kl: KlEstimate::from_mismatched(&self.ratios(&rows.mismatched)),
            rewards: Tensor::cat(vec![rewards.sum_dim(0), count], 0),
        }
    }

    /// This batch's share of the window's loss.
    fn loss(&self, rows: &Rows, window: &Window) -> Tensor<1> {
        let pairs = self.pairs(rows);
        match self.kind {
            Kind::Dpo => {
                let dpo = DpoLossConfig::new().with_beta(BETA).init();
                dpo.forward(pairs).normalized_by(window.pairs).unwrap()
            }
            Kind::DpoWithTokenMeanSft => {
                let dpo = DpoLossConfig::new().with_beta(BETA).init();
                let sft = SftTerm::new(dpo, 0.3).unwrap();
                let sft = sft.with_normalization(NllNormalization::Token);
                let chosen = pairs.policy().chosen;
                let batch = WithNll::new(pairs, chosen).unwrap();
                let batch = batch.over_step(window.tokens, window.pairs).unwrap();
                sft.forward(batch).normalized_by(window.pairs).unwrap()
            }
            Kind::Kto => {
                let desirable = (0..rows.pairs.len()).map(|i| i < rows.pairs.len() / 2);
                let desirable: Vec<bool> = desirable.collect();
                let ratios = self.ratios(&rows.pairs);
                let desirable =
                    Tensor::from_data(desirable.as_slice(), &pairs.chosen.policy().sum().device());
                let batch = Unpaired::new(ratios, desirable).unwrap();
                let batch = WithBaseline::new(batch, window.kl.baseline()).unwrap();
                let kto = KtoLossConfig::new().with_beta(BETA).init();
                kto.forward(batch)
                    .normalized_by(2.0 * window.pairs)
                    .unwrap()
            }
            Kind::Bco => {
                let delta = {
                    let mut delta = self.delta.lock().unwrap();
                    if delta.0 <= rows.window {
                        let sums = to_vec(window.rewards.clone());
                        delta.1.update(sums[0], sums[1]);
                        delta.0 = rows.window + 1;
                    }
                    delta.1
                };
                let shift = delta.tensor(&pairs.chosen.policy().sum().device().inner());
                let batch = WithShift::new(pairs, shift).unwrap();
                let bco = BcoLossConfig::new().with_beta(BETA).init();
                bco.forward(batch).normalized_by(window.pairs).unwrap()
            }
        }
    }

    fn numbers(&self) -> Vec<f64> {
        let weights = [&self.policy.embedding.weight, &self.policy.head.weight];
        weights.into_iter().flat_map(|w| to_vec(w.val())).collect()
    }
}

impl TrainStep for Model {
    type Input = Rows;
    type Output = ();

    fn step(&self, rows: Rows) -> TrainOutput<()> {
        let window = self.window(&rows).reduced(&*self.reducer);
        TrainOutput::new(self, self.loss(&rows, &window).backward(), ())
    }
}

impl InferenceStep for Model {
    type Input = Rows;
    type Output = ();

    fn step(&self, _: Rows) {}
}

const WINDOWS: usize = 3;
const RATE: f64 = 0.5;

/// Each window is cut into batches of these sizes, one after the other, their gradients added.
fn accumulated(kind: Kind, sizes: &[usize], device: &Device) -> Vec<f64> {
    let mut model = Model::new(kind, Arc::new(Local), device);
    let mut optimizer = SgdConfig::new().init();
    for window in 0..WINDOWS {
        let rows: Vec<Row> = rows_of(window);
        let mut start = 0;
        let cut = |size: &usize| {
            let part = rows[start..start + size].to_vec();
            start += size;
            Collate.batch(part, device)
        };
        let batches: Vec<Rows> = sizes.iter().map(cut).collect();
        let parts = batches.iter().map(|rows| model.window(rows));
        let whole = parts.reduce(Window::merge).unwrap();
        let mut accumulator = GradientsAccumulator::new();
        for rows in &batches {
            let grads = model.loss(rows, &whole).backward();
            accumulator.accumulate(&model, GradientsParams::from_grads(grads, &model));
        }
        model = optimizer.step(RATE, model, accumulator.grads());
    }
    model.numbers()
}

/// Eight rows a window.
fn rows_of(window: usize) -> Vec<Row> {
    let first = 8 * u32::try_from(window).unwrap();
    (first..first + 8).map(|i| Row { window, i }).collect()
}

fn launch(
    model: Model,
    rows: impl Dataset<Row> + 'static,
    batch: usize,
    devices: Vec<Device>,
) -> LearningResult<Model> {
    fn loader(
        rows: impl Dataset<Row> + 'static,
        batch: usize,
        device: &Device,
    ) -> Arc<dyn DataLoader<Rows>> {
        let loader = DataLoaderBuilder::new(Collate).batch_size(batch);
        loader.set_device(device.clone()).build(rows)
    }
    let train = loader(rows, batch, &devices[0]);
    let valid = loader(InMemDataset::new(Vec::new()), batch, &devices[0]);
    let directory = tempfile::tempdir().unwrap();
    let strategy = ExecutionStrategy::multi(
        devices.iter().map(|d| d.clone().autodiff()).collect(),
        MultiDeviceOptim::OptimMainDevice,
    );
    SupervisedTraining::new(directory.path(), train, valid)
        .with_training_strategy(strategy.into())
        .with_application_logger(None)
        .renderer(Box::new(Lines::default()))
        .launch(Learner::new(model, SgdConfig::new().init(), RATE))
}

/// Two workers of burn-train with four rows each.
fn by_workers(kind: Kind, devices: [Device; 2]) -> Vec<f64> {
    let reducer = Threads::new(2, Duration::from_mins(1)).unwrap();
    let model = Model::new(kind, Arc::new(reducer), &devices[0]);
    // The loader gives the first half of the rows to the first worker.
    let half = |part: usize| {
        let of = move |window| rows_of(window)[4 * part..4 * part + 4].to_vec();
        (0..WINDOWS).flat_map(of)
    };
    let rows = InMemDataset::new(half(0).chain(half(1)).collect());
    let result = launch(model, rows, 4, devices.into());
    assert!(result.error.is_none(), "{:?}", result.error);
    result.model.numbers()
}

const KINDS: [Kind; 4] = [Kind::Dpo, Kind::DpoWithTokenMeanSft, Kind::Kto, Kind::Bco];

#[test]
fn micro_batches_and_workers_take_the_steps_of_one_large_batch() {
    let flex = Device::flex();
    for kind in KINDS {
        let whole = accumulated(kind, &[8], &flex);
        let start = Model::new(kind, Arc::new(Local), &flex).numbers();
        assert!(whole.iter().zip(&start).any(|(a, b)| (a - b).abs() > 0.01));
        let unequal = accumulated(kind, &[3, 5], &flex);
        let workers = by_workers(kind, [flex.clone(), flex.clone()]);
        let what = format!("{kind:?}");
        assert_close(&unequal, &whole, tolerance(DType::F32), &what);
        assert_close(&workers, &whole, tolerance(DType::F32), &what);
        // Whoever comes first: the sum of two numbers has no order. That of three has one.
        assert_eq!(by_workers(kind, [flex.clone(), flex.clone()]), workers);
    }
}

/// What the test above would not notice if local statistics did as well.
#[test]
fn local_statistics_would_not_do() {
    let flex = Device::flex();
    for kind in KINDS {
        let mut model = Model::new(kind, Arc::new(Local), &flex);
        let rows = rows_of(0);
        let gradient = |model: &Model, parts: &[&[Row]], local: bool| {
            let batches: Vec<Rows> = parts
                .iter()
                .map(|p| Collate.batch(p.to_vec(), &flex))
                .collect();
            let window = || {
                batches
                    .iter()
                    .map(|b| model.window(b))
                    .reduce(Window::merge)
                    .unwrap()
            };
            let mut sum = vec![0.0; 7 * 4];
            for batch in &batches {
                let window = if local { model.window(batch) } else { window() };
                let share = if local {
                    1.0 / batches.len() as f64
                } else {
                    1.0
                };
                let grads = (model.loss(batch, &window) * share).backward();
                let grad = model.policy.embedding.weight.val().grad(&grads).unwrap();
                sum.iter_mut().zip(to_vec(grad)).for_each(|(s, g)| *s += g);
            }
            sum
        };
        let whole = gradient(&model, &[&rows], false);
        model.delta = Arc::default();
        let local = gradient(&model, &[&rows[..3], &rows[3..]], true);
        let worst = whole
            .iter()
            .zip_equal(&local)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(worst > 1e-3, "{kind:?}: {worst}");
    }
}

#[cfg(all(feature = "remote-server", feature = "remote-websocket"))]
#[test]
fn two_remote_servers_take_the_same_steps() {
    use crate::support::device::remote::server;
    let servers = [server(), server()];
    assert_ne!(servers[0], servers[1]);
    for kind in KINDS {
        let whole = accumulated(kind, &[8], &Device::flex());
        let remote = by_workers(kind, servers.clone());
        assert_close(&remote, &whole, tolerance(DType::F32), &format!("{kind:?}"));
    }
}

#[test]
fn uneven_shards_fail_in_time() {
    let flex = Device::flex();
    let reducer = Threads::new(2, Duration::from_millis(300)).unwrap();
    let model = Model::new(Kind::Kto, Arc::new(reducer), &flex);
    // Four rows for the first worker, five for the second: one batch and two.
    let rows = InMemDataset::new((0..9).map(|i| Row { window: 0, i }).collect());
    let start = Instant::now();
    let result = launch(model, rows, 4, vec![flex.clone(), flex]);
    assert!(start.elapsed() < Duration::from_secs(30));
    let error = result
        .error
        .expect("the second batch waits for nobody")
        .to_string();
    assert!(
        error.contains("1 of 2 workers came within 300ms"),
        "{error}"
    );
}

/// Rows of which one cannot be read.
struct Damaged {
    rows: Vec<Row>,
    at: usize,
}

impl Dataset<Row> for Damaged {
    fn get(&self, index: usize) -> Result<Row, DatasetError> {
        if index == self.at {
            return Err(DatasetError::new(io::Error::other("row 5 is damaged")));
        }
        Ok(self.rows[index])
    }

    fn len(&self) -> usize {
        self.rows.len()
    }
}

/// What the guide tells users to look at: burn-train returns the model of the steps before.
#[test]
fn a_run_that_failed_returns_a_model_and_its_error() {
    let flex = Device::flex();
    let model = || Model::new(Kind::Dpo, Arc::new(Local), &flex);
    let rows: Vec<Row> = (0..8).map(|i| Row { window: 0, i }).collect();
    let damaged = Damaged {
        rows: rows.clone(),
        at: 5,
    };
    let result = launch(model(), damaged, 2, vec![flex.clone()]);
    let error = result.error.expect("a row is damaged").to_string();
    assert!(error.contains("row 5 is damaged"), "{error}");
    // Two steps were taken, of rows 0 to 3.
    let two_steps = InMemDataset::new(rows[..4].to_vec());
    let expected = launch(model(), two_steps, 2, vec![flex.clone()]);
    assert!(expected.error.is_none());
    let same = result.model.numbers() == expected.model.numbers();
    assert!(same, "{:?}", result.model.numbers());
    assert_ne!(result.model.numbers(), model().numbers());
}
