//! Sums over all workers of a run, where a statistic spans more than one of them.
//!
//! Burn sums the *gradients* of workers and of accumulated micro-batches. What it cannot know is
//! what a loss needs from the others before its backward: how many examples or tokens there are in
//! the whole window, KTO's z₀, BCO's δ. A [`Reducer`] tells.
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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::distributed::{ReduceOperation, all_reduce};
use burn::tensor::{Device, Tensor, TensorData};
use thiserror::Error;

/// Why a sum over workers failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReduceError {
    /// A sum over no workers.
    #[error("`workers`: expected 1 at least, found 0")]
    NoWorkers,
    /// Not every worker came: one failed, or its share of the data was shorter.
    #[error(
        "{arrived} of {workers} workers came within {timeout:?}: the others failed, or their \
         share of the data has fewer batches"
    )]
    TimedOut {
        /// Workers that came.
        arrived: usize,
        /// Workers that there are.
        workers: usize,
        /// How long they waited.
        timeout: Duration,
    },
    /// The workers have different numbers of values: they are not at the same step.
    #[error("another worker has {expected} values to sum, this one {found}")]
    Length {
        /// Values of the first worker that came.
        expected: usize,
        /// Values of this one.
        found: usize,
    },
    /// An earlier sum of these workers failed, so that they are no longer at the same step.
    #[error("an earlier sum failed: {0}")]
    Broken(Box<ReduceError>),
    /// The device has no collective operations.
    #[error("{device} has no collective operations: {reason}")]
    Unsupported {
        /// The device.
        device: String,
        /// What its backend says.
        reason: String,
    },
}

/// Sums a few numbers over all workers; every worker calls it as often as the others.
///
/// Give it statistics, not gradients: results are constants. Another transport between workers is
/// one method:
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
        let digits = [(local % DIGIT) as f64, (local / DIGIT) as f64];
        let local = Tensor::from_data(TensorData::from(digits), device);
        let total: Vec<f64> = self.sum(local)?.into_data().iter::<f64>().collect();
        Ok(total[0] + total[1] * DIGIT as f64)
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
    /// Of the workers that came so far.
    values: Vec<Vec<f64>>,
    /// Of the round before. No worker ends the next round before all have read it.
    sums: Vec<f64>,
    broken: Option<ReduceError>,
}

impl Threads {
    /// For `workers` threads that wait for each other at most `timeout`; for ever, if that is
    /// longer than the system's clock counts, such as [`Duration::MAX`].
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
    fn sum(&self, values: Vec<f64>) -> Result<Vec<f64>, ReduceError> {
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
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
        let values = local.into_data().iter::<f64>().collect();
        let sums = self.group.sum(values)?;
        Ok(Tensor::from_data(
            TensorData::from(sums.as_slice()),
            (&device.inner(), dtype),
        ))
    }
}

/// **Experimental**: workers with a device each, summed by Burn's collective operations, on the
/// devices.
///
/// In Burn 0.22 that is CUDA with NCCL on one machine (burn-train's `ddp`), or devices of one
/// remote server that has them; other backends give [`ReduceError::Unsupported`].
///
/// What was run: that error, on Flex. What was not: a sum, since none of our machines has two CUDA
/// devices. Compare its first sums with those of [`Threads`] before you train with it. It has no
/// timeout of its own: a worker that does not come leaves the others waiting as long as the backend
/// does.
#[derive(Debug, Clone)]
pub struct BurnCollective {
    devices: Vec<Device>,
}

impl BurnCollective {
    /// For one worker on each of `devices`.
    pub fn new(devices: Vec<Device>) -> Self {
        Self { devices }
    }
}

impl Reducer for BurnCollective {
    fn sum(&self, local: Tensor<1>) -> Result<Tensor<1>, ReduceError> {
        let local = local.without_autodiff();
        let device = local.device();
        // A backend without collectives panics: "not implemented".
        let reduce = || all_reduce(local, ReduceOperation::Sum, self.devices.clone()).resolve();
        catch_unwind(AssertUnwindSafe(reduce)).map_err(|panic| ReduceError::Unsupported {
            device: format!("{device:?}"),
            reason: panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default(),
        })
    }
}
