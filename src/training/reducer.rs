//! Sums over all workers of a run, where a statistic spans more than one of them.
//!
//! A loss needs something from the others before its backward: how many examples or tokens there are
//! in the whole step, KTO's z₀, BCO's δ. A [`Reducer`] tells. burn-train's `MultiDevice` sums the
//! gradients of its workers; between processes the same reducer does, by
//! [`Accumulation::reduced`](crate::training::accumulation::Accumulation::reduced).
//!
//! | workers | reducer |
//! |---|---|
//! | one | [`Local`] |
//! | threads of a process | [`Threads`] |
//! | processes, on one machine or on many | `Mpi` in `training::mpi`, with the feature `mpi` |
//!
//! ```
//! use std::time::Duration;
//! use burn::tensor::{Device, Tensor};
//! use burn_preference::training::reducer::{Reducer, Threads};
//!
//! let workers = Threads::new(2, Duration::from_secs(10))?;
//! let totals: Vec<f64> = std::thread::scope(|scope| {
//!     let count = |pairs: usize| {
//!         let reducer = workers.clone();
//!         scope.spawn(move || reducer.total(pairs, &Device::default()).unwrap())
//!     };
//!     [count(3), count(5)].map(|worker| worker.join().unwrap()).to_vec()
//! });
//! assert_eq!(totals, [8.0, 8.0]); // for `LossOutput::normalized_by` on both
//! # Ok::<(), burn_preference::training::reducer::ReduceError>(())
//! ```

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor, TensorData};
use thiserror::Error;

/// The error of a sum over workers.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ReduceError {
    /// A sum over no workers.
    #[error("`workers`: expected 1 at least, found 0")]
    NoWorkers,
    /// Not every worker came: one failed, or its share of the data was shorter.
    #[error(
        "{arrived} of {workers} workers came within {timeout:?}{}: the others failed, or their \
         share of the data has fewer batches",
        without(missing)
    )]
    TimedOut {
        /// Ranks of the workers that did not come, in their order; empty where workers have no
        /// ranks, as threads have none.
        missing: Vec<usize>,
        /// Number of workers that came.
        arrived: usize,
        /// Number of workers that there are.
        workers: usize,
        /// The time that they waited.
        timeout: Duration,
    },
    /// Another worker said that it failed, or the connection to it broke.
    #[error("worker {rank}: {reason}")]
    Worker {
        /// Rank of that worker.
        rank: usize,
        /// The reason, in its words or in those of the connection.
        reason: String,
    },
    /// No connection to any other worker.
    #[error("no connection to the other workers: {reason}")]
    Disconnected {
        /// The reason, in the words of the connection.
        reason: String,
    },
    /// The workers have different metrics.
    #[error("another worker has other metrics than this one, whose keys are: {keys}")]
    Metrics {
        /// The keys of this worker, with commas between them.
        keys: String,
    },
    /// The parts of all workers have more examples than the step that they belong to.
    #[error("the workers have {examples} examples, of a step of {total}")]
    Examples {
        /// Number of examples of all workers.
        examples: f64,
        /// Number of examples of the step, as this worker was told.
        total: f64,
    },
    /// The workers have different numbers of values: they are not at the same step.
    #[error("another worker has {expected} values to sum, this one {found}")]
    Length {
        /// Number of values of the first worker that came.
        expected: usize,
        /// Number of values of this worker.
        found: usize,
    },
    /// An earlier sum of these workers failed, so that they are no longer at the same step.
    #[error("an earlier sum failed: {0}")]
    Broken(Box<ReduceError>),
    /// The device of a worker failed to execute what was queued, so that its values are unknown.
    #[error("the values of this worker cannot be read: {reason}")]
    Unreadable {
        /// The error of the device.
        reason: String,
    },
}

fn without(missing: &[usize]) -> String {
    if missing.is_empty() {
        return String::new();
    }
    let ranks: Vec<String> = missing.iter().map(usize::to_string).collect();
    format!(", without rank {}", ranks.join(", "))
}

/// Sums numbers over all workers; every worker calls it as often as the others.
///
/// Results are constants: a statistic is summed before the backward, a gradient after it. Another
/// transport between workers is one method. What breaks there is [`ReduceError::Worker`] or
/// [`ReduceError::Disconnected`]. Every worker should get the same bits, or their weights part.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_preference::training::reducer::{ReduceError, Reducer};
///
/// /// Two workers that always have the same numbers.
/// #[derive(Debug)]
/// struct Twins;
///
/// impl Reducer for Twins {
///     fn sum(&self, local: Tensor<1>) -> Result<Tensor<1>, ReduceError> {
///         Ok(local.without_autodiff() * 2)
///     }
/// }
///
/// assert_eq!(Twins.total(7, &Device::default())?, 14.0);
/// # Ok::<(), ReduceError>(())
/// ```
pub trait Reducer: fmt::Debug + Send + Sync {
    /// Σ over the workers of `local`, `[n]`, element by element; on its device, in its number type.
    ///
    /// # Errors
    ///
    /// The workers do not come together; see [`ReduceError`].
    fn sum(&self, local: Tensor<1>) -> Result<Tensor<1>, ReduceError>;

    /// A count of examples or tokens over all workers: a denominator for
    /// [`LossOutput::normalized_by`](crate::LossOutput::normalized_by). Reads it back.
    ///
    /// # Errors
    ///
    /// As [`sum`](Self::sum).
    fn total(&self, local: usize, device: &Device) -> Result<f64, ReduceError> {
        // f32 is exact to 2²⁴: in two digits, counts to 2⁴⁸ are.
        const DIGIT: usize = 1 << 20;
        let local = Tensor::from_data(
            TensorData::from([(local % DIGIT) as f64, (local / DIGIT) as f64]),
            (device, DType::F32),
        );
        let total = read(self.sum(local)?)?;
        Ok(total[0] + total[1] * DIGIT as f64)
    }
}

/// Σ over the workers of numbers on the host, by `device` in f32.
pub(super) fn sum_numbers(
    reducer: &dyn Reducer,
    local: &[f64],
    device: &Device,
) -> Result<Vec<f64>, ReduceError> {
    read(reducer.sum(Tensor::from_data(
        TensorData::from(local),
        (device, DType::F32),
    ))?)
}

pub(super) fn read(values: Tensor<1>) -> Result<Vec<f64>, ReduceError> {
    match values.try_into_data() {
        Ok(data) => Ok(data.iter().collect()),
        Err(error) => Err(ReduceError::Unreadable {
            reason: error.to_string(),
        }),
    }
}

/// One worker: its sum is the total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Local;

impl Reducer for Local {
    fn sum(&self, local: Tensor<1>) -> Result<Tensor<1>, ReduceError> {
        Ok(local.without_autodiff())
    }
}

/// Workers that are threads of one process, such as those of burn-train's `MultiDevice`, whatever
/// their devices.
///
/// Clones belong together. Values are read back and added on the host, in f64 and in an order that
/// does not depend on who comes first. A worker that waits longer than the timeout gets an error,
/// and so does every later call of every worker: they are no longer at the same step.
#[derive(Debug, Clone)]
pub struct Threads {
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    workers: usize,
    timeout: Duration,
    round: Mutex<Round>,
    finished: Condvar,
}

#[derive(Debug, Default)]
struct Round {
    number: u64,
    /// Values of the workers that came so far.
    values: Vec<Vec<f64>>,
    /// Sums of the round before. No worker ends the next round before all have read them.
    sums: Vec<f64>,
    broken: Option<ReduceError>,
}

impl Threads {
    /// A group of `workers` threads that wait for each other at most `timeout`; for ever, if that
    /// is longer than the system's clock counts, such as [`Duration::MAX`].
    ///
    /// # Errors
    ///
    /// `workers` is 0.
    pub fn new(workers: usize, timeout: Duration) -> Result<Self, ReduceError> {
        if workers == 0 {
            return Err(ReduceError::NoWorkers);
        }
        Ok(Self {
            group: Arc::new(Group {
                workers,
                timeout,
                round: Mutex::default(),
                finished: Condvar::new(),
            }),
        })
    }
}

impl Group {
    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sum(&self, values: Vec<f64>) -> Result<Vec<f64>, ReduceError> {
        let mut round = self.round();
        if let Some(error) = &round.broken {
            return Err(ReduceError::Broken(Box::new(error.clone())));
        }
        if let Some(first) = round.values.first()
            && first.len() != values.len()
        {
            let error = ReduceError::Length {
                expected: first.len(),
                found: values.len(),
            };
            return Err(self.fail(&mut round, error));
        }
        round.values.push(values);
        let number = round.number;
        if round.values.len() == self.workers {
            let values = std::mem::take(&mut round.values);
            round.sums = sum_in_order(&values);
            round.number += 1;
            self.finished.notify_all();
            return Ok(round.sums.clone());
        }
        // None: past the end of the clock, which nobody waits for.
        let until = Instant::now().checked_add(self.timeout);
        while round.number == number {
            if let Some(error) = &round.broken {
                return Err(ReduceError::Broken(Box::new(error.clone())));
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                let error = ReduceError::TimedOut {
                    missing: Vec::new(),
                    arrived: round.values.len(),
                    workers: self.workers,
                    timeout: self.timeout,
                };
                return Err(self.fail(&mut round, error));
            }
            round = if let Some(left) = left {
                let woken = self.finished.wait_timeout(round, left);
                woken.unwrap_or_else(PoisonError::into_inner).0
            } else {
                let woken = self.finished.wait(round);
                woken.unwrap_or_else(PoisonError::into_inner)
            };
        }
        Ok(round.sums.clone())
    }

    fn fail(&self, round: &mut Round, error: ReduceError) -> ReduceError {
        round.broken = Some(error.clone());
        self.finished.notify_all();
        error
    }
}

/// Element by element, the smallest values first: the same bits whoever came first.
fn sum_in_order(values: &[Vec<f64>]) -> Vec<f64> {
    let sum = |i: usize| {
        let mut column: Vec<f64> = values.iter().map(|worker| worker[i]).collect();
        column.sort_by(f64::total_cmp);
        column.iter().sum()
    };
    (0..values[0].len()).map(sum).collect()
}

impl Reducer for Threads {
    fn sum(&self, local: Tensor<1>) -> Result<Tensor<1>, ReduceError> {
        let (device, dtype) = (local.device(), local.dtype());
        let sums = match read(local) {
            Ok(values) => self.group.sum(values)?,
            // Nobody waits for a worker that has no values.
            Err(error) => return Err(self.group.fail(&mut self.group.round(), error)),
        };
        Ok(Tensor::from_data(
            TensorData::from(sums.as_slice()),
            (&device.inner(), dtype),
        ))
    }
}
