//! A program for `mpirun`, whose processes check together what they compute: `scripts/test_mpi.sh`
//! starts it. Alone it is one worker.
//!
//! With `time` it says how long sums take. With another argument it breaks in a way that the script
//! looks at: `absent` and `killed` are about the last rank, `other` sums another number of values there,
//! `cut` sums until the last machine loses its link (`scripts/cluster.py --cut`).

#[path = "support/mod.rs"]
mod support;

use std::ops::Range;
use std::process::{Command, ExitCode, id};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use burn::data::dataloader::batcher::Batcher;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use burn_preference::training::accumulation::Accumulation;
use burn_preference::training::gradients::sum_gradients;
use burn_preference::training::mpi::Mpi;
use burn_preference::training::reducer::{Local, ReduceError, Reducer};
use burn_preference::{DpoLossConfig, Metrics, Objective};

use support::bigram::Bigram;
use support::steps::{Collate, KINDS, Kind, Model, RATE, Row, WINDOWS, accumulated, rows_of};
use support::{assert_close, to_vec, tolerance};

/// Longer than any exchange here, and shorter than the patience of a reader.
const LONG: Duration = Duration::from_mins(1);

fn main() -> ExitCode {
    let breaks = std::env::args()
        .nth(1)
        .filter(|name| !name.starts_with('-'));
    if breaks.as_deref() == Some("time") {
        times(&Mpi::init(LONG).unwrap());
        return ExitCode::SUCCESS;
    }
    let timeout = breaks.as_ref().map_or(LONG, |_| Duration::from_secs(2));
    let mpi = Mpi::init(timeout).unwrap();
    assert_eq!(
        Mpi::init(timeout).unwrap_err().to_string(),
        "no connection to the other workers: MPI was initialised in this process before"
    );
    if let Some(how) = breaks {
        return broken(&mpi, &how);
    }
    shares_are_all_of_it(&mpi);
    sums_are_those_of_the_ranks_in_their_order(&mpi);
    number_types_come_back(&mpi);
    counts_are_exact(&mpi);
    metrics_are_those_of_all(&mpi);
    gradients_of_some(&mpi);
    steps_of_one_process(&mpi);
    accumulated_step_of_one_process(&mpi);
    let again = mpi.clone();
    let rank = mpi.rank();
    mpi.finish().unwrap();
    again.clone().finish().unwrap();
    let closed = again.total(1, &Device::flex()).unwrap_err();
    assert!(
        closed.to_string().ends_with("MPI was closed by `finish`"),
        "{closed}"
    );
    println!("rank {rank} of {}: right", again.workers());
    ExitCode::SUCCESS
}

/// Medians of seven sums.
fn times(mpi: &Mpi) {
    for numbers in [1, 2_000_000, 20_000_000] {
        let local = Tensor::<1>::ones([numbers], &Device::flex());
        let mut seconds: Vec<f64> = (0..7)
            .map(|_| {
                mpi.total(0, &Device::flex()).unwrap();
                let start = Instant::now();
                mpi.sum(local.clone()).unwrap();
                start.elapsed().as_secs_f64()
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        if mpi.rank() == 0 {
            println!("{numbers} numbers: {:.2} ms", 1e3 * seconds[3]);
        }
    }
    mpi.clone().finish().unwrap();
}

/// What the others see when the last rank breaks.
fn broken(mpi: &Mpi, how: &str) -> ExitCode {
    let last = mpi.rank() + 1 == mpi.workers();
    mpi.total(1, &Device::flex()).unwrap();
    let mut values = vec![1.0];
    match (how, last) {
        ("absent", true) => thread::sleep(Duration::from_hours(1)),
        ("killed", true) => {
            let mut kill = Command::new("kill");
            kill.args(["-9", &id().to_string()]).status().unwrap();
        }
        ("other", true) => values.push(2.0),
        ("cut", _) => values = vec![1.0; 100_000],
        _ => {}
    }
    let start = Instant::now();
    let error = loop {
        match mpi.sum(numbers(&values, DType::F32)) {
            Err(error) => break error,
            Ok(_) => assert_eq!(how, "cut", "the sum came"),
        }
    };
    let later = mpi.total(1, &Device::flex()).unwrap_err();
    assert_eq!(later, ReduceError::Broken(Box::new(error.clone())));
    println!(
        "rank {} after {} s: {error}",
        mpi.rank(),
        start.elapsed().as_secs()
    );
    ExitCode::FAILURE
}

fn numbers(values: &[f64], dtype: DType) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), (&Device::flex(), dtype))
}

/// Every worker has the same bits.
fn assert_same_everywhere(mpi: &Mpi, values: &[f64]) {
    let halves = |value: &f64| {
        let bits = value.to_bits();
        [bits >> 32, bits & 0xffff_ffff].map(|half| half as f64)
    };
    let own: Vec<f64> = values.iter().flat_map(halves).collect();
    let sums = to_vec(mpi.sum(numbers(&own, DType::F64)).unwrap());
    let expected: Vec<f64> = own.iter().map(|half| half * mpi.workers() as f64).collect();
    assert_eq!(sums, expected, "rank {} has other bits", mpi.rank());
}

fn shares_are_all_of_it(mpi: &Mpi) {
    for items in [0, 1, 2, 7, 100] {
        let share = mpi.share(items);
        let total = mpi.total(share.len(), &Device::flex()).unwrap();
        assert_eq!(total, items as f64);
        assert!(share.len() >= items / mpi.workers());
        assert!(share.len() <= items.div_ceil(mpi.workers()));
        assert!(share.end <= items);
    }
}

/// A number that no two ranks and places have alike.
fn value(rank: usize, place: usize) -> f64 {
    let of_rank = [1.0, 1e-9, -1.0, 1e7][rank % 4];
    of_rank * ((rank * 31 + place) as f64 * 0.37).sin()
}

fn sums_are_those_of_the_ranks_in_their_order(mpi: &Mpi) {
    // Fewer numbers than ranks, no equal shares, and more than are exchanged at once.
    for (dtype, length) in [
        (DType::F64, 0),
        (DType::F64, 1),
        (DType::F64, 1001),
        (DType::F32, 2),
        (DType::F32, 1001),
        (DType::F32, (1 << 22) + 5),
    ] {
        let narrow = |value: f64| match dtype {
            #[allow(clippy::cast_possible_truncation, reason = "as the tensor has it")]
            DType::F32 => f64::from(value as f32),
            _ => value,
        };
        let local: Vec<f64> = (0..length).map(|i| value(mpi.rank(), i)).collect();
        let sums = to_vec(mpi.sum(numbers(&local, dtype)).unwrap());
        let in_order = |i: usize| -> f64 {
            let ranks = 0..mpi.workers();
            narrow(ranks.map(|rank| narrow(value(rank, i))).sum())
        };
        assert_eq!(sums.len(), length);
        for (i, sum) in sums.into_iter().enumerate() {
            assert_eq!(
                sum.to_bits(),
                in_order(i).to_bits(),
                "{dtype:?} {i} of {length}"
            );
        }
    }
}

fn number_types_come_back(mpi: &Mpi) {
    let local = numbers(&[0.25, 3.0], DType::F32).cast(FloatDType::BF16);
    let sum = mpi.sum(local.autodiff().require_grad() * 2).unwrap();
    assert_eq!(sum.dtype(), DType::BF16);
    assert!(!sum.is_tracked());
    let workers = mpi.workers() as f64;
    assert_eq!(to_vec(sum), [0.5 * workers, 6.0 * workers]);
}

fn counts_are_exact(mpi: &Mpi) {
    let large = (1 << 40) + 1 + mpi.rank();
    let expected: usize = (0..mpi.workers()).map(|rank| (1 << 40) + 1 + rank).sum();
    assert_eq!(mpi.total(large, &Device::flex()).unwrap(), expected as f64);
}

fn metrics_are_those_of_all(mpi: &Mpi) {
    let device = Device::flex();
    let mut own = Metrics::default();
    // The last of several ranks had no examples.
    let idle = mpi.workers() > 1 && mpi.rank() + 1 == mpi.workers();
    if !idle {
        own.add("loss", 1.5 * (mpi.rank() + 1) as f64, 2.0);
        own.add("rewards/chosen", 0.25, 1.0);
        own.add("nothing", 0.0, 0.0);
    }
    let busy = mpi.workers().max(2) - 1;
    let all = own.reduced(mpi, &device).unwrap();
    let loss: f64 = (1..=busy).map(|rank| 1.5 * rank as f64).sum();
    assert_eq!(all.count("loss"), 2.0 * busy as f64);
    assert_eq!(all.get("loss"), Some(loss / (2.0 * busy as f64)));
    assert_eq!(all.get("rewards/chosen"), Some(0.25));
    assert!(all.contains("nothing") && all.get("nothing").is_none());
    let nobody = Metrics::default().reduced(mpi, &device).unwrap();
    assert_eq!(nobody, Metrics::default());
    if mpi.workers() > 1 {
        // Of the same length, and of another.
        for key in ["lost", "losses"] {
            let mut other = Metrics::default();
            other.add(if mpi.rank() == 0 { "loss" } else { key }, 1.0, 1.0);
            let error = other.reduced(mpi, &device).unwrap_err();
            assert!(matches!(error, ReduceError::Metrics { .. }), "{error}");
        }
    }
}

/// A parameter has a gradient where one worker has one, and only there.
fn gradients_of_some(mpi: &Mpi) {
    let device = Device::flex().autodiff();
    let mut model = Bigram::new([5, 3], 0, &device);
    model.head.bias = model.head.bias.map(|bias| bias.set_require_grad(false));
    let weight = |model: &Bigram| match mpi.rank() {
        0 => model.embedding.weight.val().sum() * 3.0,
        _ => model.head.weight.val().sum() * 2.0,
    };
    let grads = GradientsParams::from_grads(weight(&model).backward(), &model);
    let sum = sum_gradients(grads, &model, mpi).unwrap();
    let of = |grad: Option<Tensor<2>>| grad.map(to_vec);
    assert_eq!(of(sum.get(model.embedding.weight.id)), Some(vec![3.0; 15]));
    let others = mpi.workers() - 1;
    let head = (others > 0).then(|| vec![2.0 * others as f64; 15]);
    assert_eq!(of(sum.get(model.head.weight.id)), head);
    assert_eq!(sum.len(), if others > 0 { 2 } else { 1 });
}

/// Unequal shares: the first rank has one row, the last one the rest.
fn rows_of_rank(mpi: &Mpi, window: usize) -> Vec<Row> {
    let rows = rows_of(window);
    let places: Range<usize> = match (mpi.rank(), mpi.workers()) {
        (0, 1) => 0..8,
        (rank, workers) if rank + 1 == workers => rank..8,
        (rank, _) => rank..rank + 1,
    };
    rows[places].to_vec()
}

fn steps_of_one_process(mpi: &Mpi) {
    let device = Device::flex();
    for kind in KINDS {
        let mut model = Model::new(kind, Arc::new(mpi.clone()), &device);
        let mut optimizer = SgdConfig::new().init();
        for window in 0..WINDOWS {
            let rows = Collate.batch(rows_of_rank(mpi, window), &device);
            let whole = model.window(&rows).reduced(&*model.reducer);
            let grads = model.loss(&rows, &whole).backward();
            let grads = GradientsParams::from_grads(grads, &model);
            let grads = sum_gradients(grads, &model, mpi).unwrap();
            model = optimizer.step(RATE, model, grads);
        }
        let what = format!("{kind:?} on rank {}", mpi.rank());
        let expected = accumulated(kind, &[8], &device);
        assert_close(&model.numbers(), &expected, tolerance(DType::F32), &what);
        assert_same_everywhere(mpi, &model.numbers());
    }
}

/// Metrics, norm and clipped gradients, where the first rank has no part.
fn accumulated_step_of_one_process(mpi: &Mpi) {
    let device = Device::flex();
    let dpo = DpoLossConfig::new().with_beta(0.7).init();
    let step = |rows: &[Row], reducer: &dyn Reducer| {
        let model = Model::new(Kind::Dpo, Arc::new(Local), &device);
        let mut step = Accumulation::over(8.0).unwrap();
        if !rows.is_empty() {
            let pairs = model.pairs(&Collate.batch(rows.to_vec(), &device));
            let output = dpo.forward(pairs.clone());
            step.add(&model, &pairs, output).unwrap();
        }
        let step = step.reduced(&model, reducer).unwrap();
        assert_eq!(step.examples(), 8);
        let (grads, metrics) = step.clipped(&model, 0.01).unwrap();
        let grad = grads.get::<2>(model.policy.embedding.weight.id).unwrap();
        (to_vec(grad), metrics.read().unwrap())
    };
    let rows = rows_of(0);
    let (gradient, one) = step(&rows, &Local);
    let idle = mpi.workers() > 1;
    let own = match (mpi.rank(), mpi.workers() - usize::from(idle)) {
        (0, _) if idle => 0..0,
        (rank, busy) => {
            let rank = rank - usize::from(idle);
            8 * rank / busy..8 * (rank + 1) / busy
        }
    };
    let (found, all) = step(&rows[own], mpi);
    assert_close(
        &found,
        &gradient,
        tolerance(DType::F32),
        "clipped gradients",
    );
    assert_same_everywhere(mpi, &found);
    let keys = |metrics: &Metrics| -> Vec<String> {
        metrics.iter().map(|(key, _)| key.to_owned()).collect()
    };
    assert_eq!(keys(&all), keys(&one));
    for (key, expected) in one.iter() {
        let found = all.get(key).unwrap();
        let what = format!("{key} on rank {}", mpi.rank());
        assert_close(&[found], &[expected], tolerance(DType::F32), &what);
        assert_eq!(all.count(key), one.count(key), "{key}");
    }
    let bits: Vec<f64> = all.iter().map(|(_, mean)| mean).collect();
    assert_same_everywhere(mpi, &bits);
    if idle {
        // Twice the rows of a step that has eight.
        let model = Model::new(Kind::Dpo, Arc::new(Local), &device);
        let mut step = Accumulation::over(8.0).unwrap();
        let pairs = model.pairs(&Collate.batch(rows.clone(), &device));
        step.add(&model, &pairs, dpo.forward(pairs.clone()))
            .unwrap();
        let error = step.reduced(&model, mpi).unwrap_err();
        let examples = 8.0 * mpi.workers() as f64;
        assert_eq!(
            error,
            ReduceError::Examples {
                examples,
                total: 8.0
            }
        );
    }
}
