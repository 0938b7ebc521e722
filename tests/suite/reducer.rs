//! Sums over workers: right, the same bits whoever comes first, and an error instead of a hang.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Tensor, TensorData};
use burn_preference::training::reducer::{Local, ReduceError, Reducer, Threads};
use burn_preference::{KlEstimate, Metrics, RelativeLogProbs, SequenceLogProbs};

use crate::support::{device, to_vec};

const LONG: Duration = Duration::from_mins(1);

fn values(values: &[f64], dtype: DType) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), (&device(), dtype))
}

/// What each worker's call returned, in the order of the workers.
fn on_threads<T: Send>(workers: usize, call: impl Fn(usize) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let start = |worker| {
            scope.spawn({
                let call = &call;
                move || call(worker)
            })
        };
        let threads: Vec<_> = (0..workers).map(start).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn one_worker_is_its_own_total() {
    let local = values(&[1.5, -2.0], DType::F32);
    assert_eq!(to_vec(Local.sum(local).unwrap()), [1.5, -2.0]);
    let many = (1 << 40) + 7;
    assert_eq!(Local.total(many, &device()), Ok(1_099_511_627_783.0));
    assert_eq!(Local.total(0, &device()), Ok(0.0));
}

#[test]
fn threads_sum_round_after_round() {
    let group = Threads::new(3, LONG).unwrap();
    let sums = on_threads(3, |worker| {
        let round = |round: usize| {
            let local = values(&[(10 * round + worker) as f64, 1.0], DType::F32);
            let sum = group.sum(local).unwrap();
            assert_eq!(sum.dtype(), DType::F32);
            to_vec(sum)
        };
        (0..50).map(round).collect::<Vec<_>>()
    });
    for worker in sums {
        for (round, sum) in worker.into_iter().enumerate() {
            assert_eq!(sum, [(30 * round + 3) as f64, 3.0]);
        }
    }
}

#[test]
fn the_order_of_arrival_changes_no_bit() {
    let local = [1e16, 1.0, -1e16, 3.0];
    let mut seen = Vec::new();
    for first in 0..4 {
        let group = Threads::new(4, LONG).unwrap();
        let gate = Barrier::new(4);
        let sums = on_threads(4, |worker| {
            // Rotated: another worker arrives first in every round of the outer loop.
            gate.wait();
            thread::sleep(Duration::from_millis(((worker + first) % 4) as u64 * 3));
            to_vec(group.sum(values(&[local[worker]], DType::F64)).unwrap())[0].to_bits()
        });
        assert!(sums.iter().all(|bits| *bits == sums[0]));
        seen.push(sums[0]);
    }
    assert!(seen.iter().all(|bits| *bits == seen[0]), "{seen:?}");
}

#[test]
fn who_does_not_come_is_missed_in_time() {
    let timeout = Duration::from_millis(50);
    let group = Threads::new(3, timeout).unwrap();
    let start = Instant::now();
    let errors = on_threads(2, |_| group.sum(values(&[1.0], DType::F32)).unwrap_err());
    assert!(start.elapsed() < LONG);
    let missed = ReduceError::TimedOut {
        missing: Vec::new(),
        arrived: 2,
        workers: 3,
        timeout,
    };
    assert!(errors.contains(&missed), "{errors:?}");
    let broken = ReduceError::Broken(Box::new(missed.clone()));
    assert!(
        errors.iter().all(|e| *e == missed || *e == broken),
        "{errors:?}"
    );
    assert_eq!(
        missed.to_string(),
        "2 of 3 workers came within 50ms: the others failed, or their share of the data has fewer \
         batches"
    );
    // The one that was late learns it at once, and so does everybody from then on.
    let late = group.total(1, &device()).unwrap_err();
    assert_eq!(late, broken);
    assert!(
        late.to_string()
            .starts_with("an earlier sum failed: 2 of 3"),
        "{late}"
    );
}

#[test]
fn workers_at_different_steps_are_told() {
    let group = Threads::new(2, LONG).unwrap();
    let errors = on_threads(2, |worker| {
        group
            .sum(values(&vec![1.0; worker + 1], DType::F32))
            .unwrap_err()
    });
    let length = |e: &ReduceError| matches!(e, ReduceError::Length { .. });
    assert_eq!(errors.iter().filter(|e| length(e)).count(), 1, "{errors:?}");
    let broken = |e: &ReduceError| matches!(e, ReduceError::Broken(inner) if length(inner));
    assert_eq!(errors.iter().filter(|e| broken(e)).count(), 1, "{errors:?}");
}

#[test]
fn nobody() {
    let error = Threads::new(0, LONG).unwrap_err();
    assert_eq!(error, ReduceError::NoWorkers);
    assert_eq!(error.to_string(), "`workers`: expected 1 at least, found 0");
}

/// A timeout past the end of the clock is none, and no overflow.
#[test]
fn waiting_for_ever() {
    let group = Threads::new(2, Duration::MAX).unwrap();
    let sums = on_threads(2, |worker| {
        thread::sleep(Duration::from_millis(30 * worker as u64));
        to_vec(
            group
                .sum(values(&[1.0 + worker as f64], DType::F32))
                .unwrap(),
        )
    });
    assert_eq!(sums, [[3.0], [3.0]]);
    // Who waits for ever still hears of a failure.
    let lengths = on_threads(2, |worker| {
        thread::sleep(Duration::from_millis(30 * worker as u64));
        let local = values(&vec![1.0; worker + 1], DType::F32);
        group.sum(local).unwrap_err()
    });
    assert!(matches!(lengths[0], ReduceError::Broken(_)), "{lengths:?}");
    assert!(
        matches!(lengths[1], ReduceError::Length { .. }),
        "{lengths:?}"
    );
}

#[test]
fn the_baseline_of_all_workers() {
    let log_ratios = [vec![1.0_f32, 3.0, -0.5], vec![-4.0]];
    let estimate = |values: &[f32]| {
        let lengths = vec![1; values.len()];
        let of = |x: &[f32]| SequenceLogProbs::from_values(x, &lengths, &device()).unwrap();
        let reference = of(&vec![0.0; values.len()]);
        let ratios: RelativeLogProbs = of(values).relative_to(reference).unwrap();
        KlEstimate::from_mismatched(&ratios)
    };
    let group: Arc<dyn Reducer> = Arc::new(Threads::new(2, LONG).unwrap());
    let baselines = on_threads(2, |worker| {
        let global = estimate(&log_ratios[worker]).reduced(&*group).unwrap();
        to_vec(global.baseline())
    });
    // (1 + 3 − ½ − 4)/4, clamped after the mean: the mean of clamped ones would be 7/12.
    assert_eq!(baselines, [[0.0], [0.0]]);
    let both = estimate(&[1.0, 3.0]).merge(estimate(&[2.0]));
    assert_eq!(to_vec(both.reduced(&Local).unwrap().baseline()), [2.0]);
}

/// What each worker gets as the metrics of all, from its own ones.
fn metrics_of_all(own: &[Metrics]) -> Vec<Result<Metrics, ReduceError>> {
    let group = Threads::new(own.len(), LONG).unwrap();
    on_threads(own.len(), |worker| own[worker].reduced(&group, &device()))
}

fn metrics(entries: &[(&str, f64, f64)]) -> Metrics {
    let mut metrics = Metrics::default();
    for (key, sum, count) in entries {
        metrics.add(*key, *sum, *count);
    }
    metrics
}

#[test]
fn metrics_of_workers_are_those_of_all() {
    let own = [
        metrics(&[
            ("loss", 1.5, 2.0),
            ("rewards/chosen", -0.25, 1.0),
            ("ü", 0.0, 0.0),
        ]),
        // Without examples, it does not know the keys.
        Metrics::default(),
        metrics(&[
            ("loss", 3.0, 1.0),
            ("rewards/chosen", 0.75, 3.0),
            ("ü", 0.0, 0.0),
        ]),
    ];
    let all = metrics(&[
        ("loss", 4.5, 3.0),
        ("rewards/chosen", 0.5, 4.0),
        ("ü", 0.0, 0.0),
    ]);
    for found in metrics_of_all(&own) {
        assert_eq!(found, Ok(all.clone()));
    }
    assert_eq!(own[0].reduced(&Local, &device()), Ok(own[0].clone()));
    for found in metrics_of_all(&[Metrics::default(), Metrics::default()]) {
        assert_eq!(found, Ok(Metrics::default()));
    }
    // A NaN is one of all of them.
    let broken = [f64::NAN, 1.0].map(|sum| metrics(&[("loss", sum, 1.0)]));
    for found in metrics_of_all(&broken) {
        assert!(found.unwrap().get("loss").unwrap().is_nan());
    }
}

#[test]
fn other_keys_are_an_error_of_every_worker() {
    let loss = metrics(&[("loss", 1.0, 1.0)]);
    // As long, longer, more of them; with the letters of a mean.
    for other in [
        metrics(&[("lost", 1.0, 1.0)]),
        metrics(&[("losses", 1.0, 1.0)]),
        metrics(&[("loss", 1.0, 1.0), ("nll", 1.0, 1.0)]),
        metrics(&[("l", 1.0, 1.0), ("s", 1.0, 1.0)]),
    ] {
        let three = [loss.clone(), Metrics::default(), other];
        for found in metrics_of_all(&three) {
            let error = found.unwrap_err();
            assert!(matches!(error, ReduceError::Metrics { .. }), "{error}");
        }
    }
}

#[test]
fn errors_name_ranks() {
    let timeout = Duration::from_secs(5);
    let missed = ReduceError::TimedOut {
        missing: vec![1, 3],
        arrived: 2,
        workers: 4,
        timeout,
    };
    assert!(
        missed
            .to_string()
            .starts_with("2 of 4 workers came within 5s, without rank 1, 3: "),
        "{missed}"
    );
    let reason = "connection reset".to_owned();
    let broken = ReduceError::Worker { rank: 2, reason };
    assert_eq!(broken.to_string(), "worker 2: connection reset");
}
