//! The processes of a run: this one alone, or several that `mpirun` or Slurm has started.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use burn::tensor::Device;
#[cfg(feature = "mpi")]
use burn_preference::training::mpi::Mpi;
use burn_preference::training::reducer::{Local, ReduceError, Reducer};

use crate::failure::Failure;

/// True in a process that says nothing: its first one speaks for a run.
static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// Whether this process reports what the run does.
pub fn speaks() -> bool {
    !IS_QUIET.load(Ordering::Relaxed)
}

/// Prints a line, as `println!` does, in the process that speaks for the run.
#[macro_export]
macro_rules! say {
    ($($line:tt)*) => {
        if $crate::speaks() {
            println!($($line)*);
        }
    };
}

/// Numbers of processes that launchers leave in the environment: Open MPI, MPICH, Slurm.
const LAUNCHERS: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// The processes of a run, of which each has a rank. All of them do the same, with a share each of the
/// examples; the first one writes files and reports.
#[derive(Debug)]
pub struct Ranks {
    #[cfg(feature = "mpi")]
    mpi: Mpi,
}

impl Ranks {
    /// Joins the other processes of this run, if a launcher has started several. They wait for each
    /// other at most `timeout`.
    ///
    /// # Errors
    ///
    /// The launcher has started several processes, and they do not find each other.
    pub fn join(timeout: Duration) -> Result<Self, Failure> {
        #[cfg(feature = "mpi")]
        let ranks = Self {
            mpi: Mpi::init(timeout)?,
        };
        #[cfg(not(feature = "mpi"))]
        let ranks = {
            let _ = timeout;
            Self {}
        };
        let started = LAUNCHERS.iter().find_map(|name| std::env::var(name).ok());
        let started = started.and_then(|count| count.parse().ok()).unwrap_or(1);
        if started > 1 && ranks.count() != started {
            let what = if cfg!(feature = "mpi") {
                "and MPI finds another number: with Slurm, `srun --mpi=pmix` or `mpirun` within `salloc`"
            } else {
                "and this program was built without --features mpi"
            };
            return Err(format!("{started} processes were started, {what}").into());
        }
        IS_QUIET.store(!ranks.is_first(), Ordering::Relaxed);
        Ok(ranks)
    }

    /// The number of processes.
    pub fn count(&self) -> usize {
        #[cfg(feature = "mpi")]
        return self.mpi.workers();
        #[cfg(not(feature = "mpi"))]
        1
    }

    /// Whether there are others.
    pub fn are_several(&self) -> bool {
        self.count() > 1
    }

    /// The rank of this process, from 0.
    pub fn rank(&self) -> usize {
        #[cfg(feature = "mpi")]
        return self.mpi.rank();
        #[cfg(not(feature = "mpi"))]
        0
    }

    /// The rank among the processes of this machine: the number of its device.
    pub fn local_rank(&self) -> usize {
        #[cfg(feature = "mpi")]
        return self.mpi.local_rank();
        #[cfg(not(feature = "mpi"))]
        0
    }

    /// Whether this process writes files and reports.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The places of `items` that are this process's.
    pub fn share(&self, items: usize) -> Range<usize> {
        #[cfg(feature = "mpi")]
        return self.mpi.share(items);
        #[cfg(not(feature = "mpi"))]
        return 0..items;
    }

    /// The sums over all processes.
    pub fn reducer(&self) -> &dyn Reducer {
        #[cfg(feature = "mpi")]
        if self.are_several() {
            return &self.mpi;
        }
        &Local
    }

    /// A count over all processes.
    ///
    /// # Errors
    ///
    /// Another process does not come; as everywhere here.
    pub fn total(&self, local: usize) -> Result<f64, ReduceError> {
        self.reducer().total(local, &Device::flex())
    }

    /// Waits for all others.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn meet(&self) -> Result<(), ReduceError> {
        self.total(0).map(drop)
    }

    /// Whether it is true in one of the processes.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn any(&self, here: bool) -> Result<bool, ReduceError> {
        Ok(self.total(usize::from(here))? > 0.0)
    }

    /// Checks that all processes do the same run.
    ///
    /// # Errors
    ///
    /// `run` says something else in another one, or as [`total`](Self::total).
    pub fn agree(&self, run: &str) -> Result<(), Failure> {
        let mut hasher = DefaultHasher::new();
        run.hash(&mut hasher);
        let hash = hasher.finish();
        let mut differs = false;
        for shift in [0, 16, 32, 48] {
            let digit = hash >> shift & 0xffff;
            #[allow(clippy::cast_possible_truncation, reason = "16 bits")]
            let sum = self.total(digit as usize)?;
            differs |= sum != digit as f64 * self.count() as f64;
        }
        // Where all differ from one another, their mean may still be one of them.
        if self.any(differs)? {
            let what = "the processes of this run have different options, data or weights";
            return Err(what.into());
        }
        Ok(())
    }

    /// Takes leave of the others, when all of them have come here. A process that ends without it has
    /// failed, and its launcher ends the others. The second time does nothing.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn finish(&self) -> Result<(), ReduceError> {
        #[cfg(feature = "mpi")]
        self.mpi.clone().finish()?;
        Ok(())
    }
}
