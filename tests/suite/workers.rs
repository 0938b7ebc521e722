//! One large batch, unequal micro-batches, two workers of burn-train's `MultiDevice` and two
//! burn-remote servers take the same steps, for objectives that need something of the whole window.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::{Dataset, DatasetError, InMemDataset};
use burn::optim::SgdConfig;
use burn::tensor::{DType, Device};
use burn::train::{
    ExecutionStrategy, InferenceStep, Learner, LearningResult, MultiDeviceOptim,
    SupervisedTraining, TrainOutput, TrainStep,
};
use burn_preference::training::reducer::{Local, Threads};

use super::renderer::Lines;
use crate::support::steps::{
    Collate, KINDS, Kind, Model, RATE, Row, Rows, WINDOWS, Window, accumulated, rows_of,
};
use crate::support::{ZipEqual, assert_close, to_vec, tolerance};

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

fn launch(
    model: Model,
    rows: impl Dataset<Row> + 'static,
    batch: usize,
    devices: Vec<Device>,
    optimizer: MultiDeviceOptim,
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
        optimizer,
    );
    SupervisedTraining::new(directory.path(), train, valid)
        .with_training_strategy(strategy.into())
        .with_application_logger(None)
        .renderer(Box::new(Lines::default()))
        .launch(Learner::new(model, SgdConfig::new().init(), RATE))
}

/// Two, four or eight workers of burn-train, with equal parts of the eight rows of a window.
fn by_workers(kind: Kind, devices: &[Device], optimizer: MultiDeviceOptim) -> Vec<f64> {
    let workers = devices.len();
    let reducer = Threads::new(workers, Duration::from_mins(1)).unwrap();
    let model = Model::new(kind, Arc::new(reducer), &devices[0]);
    // The loader gives the first part of all rows to the first worker.
    let each = 8 / workers;
    let part = |worker: usize| {
        let of = move |window| rows_of(window)[each * worker..each * (worker + 1)].to_vec();
        (0..WINDOWS).flat_map(of)
    };
    let rows = InMemDataset::new((0..workers).flat_map(part).collect());
    let result = launch(model, rows, each, devices.to_vec(), optimizer);
    assert!(result.error.is_none(), "{:?}", result.error);
    result.model.numbers()
}

#[test]
fn micro_batches_and_workers_take_the_steps_of_one_large_batch() {
    let flex = Device::flex();
    for kind in KINDS {
        let whole = accumulated(kind, &[8], &flex);
        let start = Model::new(kind, Arc::new(Local), &flex).numbers();
        assert!(whole.iter().zip(&start).any(|(a, b)| (a - b).abs() > 0.01));
        let unequal = accumulated(kind, &[3, 5], &flex);
        let two = vec![flex.clone(); 2];
        let workers = by_workers(kind, &two, MultiDeviceOptim::OptimMainDevice);
        let what = format!("{kind:?}");
        assert_close(&unequal, &whole, tolerance(DType::F32), &what);
        assert_close(&workers, &whole, tolerance(DType::F32), &what);
        // Whoever comes first: the sum of two numbers has no order. That of three has one.
        let again = by_workers(kind, &two, MultiDeviceOptim::OptimMainDevice);
        assert_eq!(again, workers);
    }
}

/// More workers, with one optimiser or with parts of it on each device.
#[test]
fn four_and_eight_workers_and_a_sharded_optimizer() {
    let flex = Device::flex();
    for kind in KINDS {
        let whole = accumulated(kind, &[8], &flex);
        for (workers, optimizer) in [
            (4, MultiDeviceOptim::OptimMainDevice),
            (8, MultiDeviceOptim::OptimMainDevice),
            (2, MultiDeviceOptim::OptimSharded),
            (4, MultiDeviceOptim::OptimSharded),
        ] {
            let what = format!("{kind:?}, {workers} workers");
            let found = by_workers(kind, &vec![flex.clone(); workers], optimizer);
            assert_close(&found, &whole, tolerance(DType::F32), &what);
        }
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
        for optimizer in [
            MultiDeviceOptim::OptimMainDevice,
            MultiDeviceOptim::OptimSharded,
        ] {
            let remote = by_workers(kind, &servers, optimizer);
            assert_close(&remote, &whole, tolerance(DType::F32), &format!("{kind:?}"));
        }
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
    let result = launch(
        model,
        rows,
        4,
        vec![flex.clone(), flex],
        MultiDeviceOptim::OptimMainDevice,
    );
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
    let result = launch(
        model(),
        damaged,
        2,
        vec![flex.clone()],
        MultiDeviceOptim::OptimMainDevice,
    );
    let error = result.error.expect("a row is damaged").to_string();
    assert!(error.contains("row 5 is damaged"), "{error}");
    // Two steps were taken, of rows 0 to 3.
    let two_steps = InMemDataset::new(rows[..4].to_vec());
    let expected = launch(
        model(),
        two_steps,
        2,
        vec![flex.clone()],
        MultiDeviceOptim::OptimMainDevice,
    );
    assert!(expected.error.is_none());
    let same = result.model.numbers() == expected.model.numbers();
    assert!(same, "{:?}", result.model.numbers());
    assert_ne!(result.model.numbers(), model().numbers());
}
