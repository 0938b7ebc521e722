//! Workers that are processes, on one machine or on many, by the MPI library that is installed there.
//!
//! With the feature `mpi`. `mpirun` or Slurm's `srun` starts the same program several times; each
//! process is a worker with a rank. The guide's chapter [`scale`](crate::guide::scale) says what to
//! install and to start.
//!
//! ```
//! use std::time::Duration;
//! use burn::tensor::{Device, Tensor};
//! use burn_preference::training::mpi::Mpi;
//! use burn_preference::training::reducer::Reducer;
//!
//! // Started without `mpirun`, a program is the only worker.
//! let mpi = Mpi::init(Duration::from_secs(600))?;
//! let pairs = 3 + mpi.rank(); // each worker has other data
//! let total = mpi.total(pairs, &Device::default())?;
//! assert_eq!((mpi.workers(), total), (1, 3.0));
//! mpi.finish()?;
//! # Ok::<(), burn_preference::training::reducer::ReduceError>(())
//! ```

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use mpi::Threading;
use mpi::environment::Universe;
use mpi::request::scope;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, Equivalence, Source};

use crate::training::reducer::{ReduceError, Reducer};

/// Numbers that are exchanged at once. Counts of MPI are 32 bits wide, and each worker keeps as many
/// again of the others.
const AT_ONCE: usize = 1 << 22;

/// Bytes of a message. Open MPI sends longer ones over TCP when the other side has answered, and its answer
/// waits behind what that side is sending: a link would carry one direction after the other.
const OF_A_MESSAGE: usize = 1 << 15;

/// Workers that are processes, started by `mpirun` or `srun`.
///
/// Element by element, values are added in f64 in the order of the ranks, and rounded once to the
/// number type of the tensor (half precision by way of f32). One worker adds each element, and sends
/// the sum to all: it has the same bits everywhere and in every run, whatever the network is, and
/// other bits with another number of workers. Each worker sends and receives twice the bytes of its
/// values, whatever the number of workers.
///
/// Clones belong together. Values are read back and sent from the host by a thread of its own, the
/// only one that calls MPI.
///
/// **What breaks.** A worker that does not come in time, such as one that hangs, is an error on the
/// others that names its rank, and so is every later call. One that is killed ends the others by its
/// launcher: `mpirun` does that, `srun` with `--kill-on-bad-exit=1`. A connection that breaks ends the
/// process in the MPI library, with its message. A process that ends without
/// [`finish`](Self::finish), because of an error say, is for `mpirun` one that failed, so that it
/// ends the others.
#[derive(Debug, Clone)]
pub struct Mpi {
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    rank: usize,
    workers: usize,
    local_rank: usize,
    /// The thread that calls MPI, or the reason for which nothing can be summed any more.
    jobs: Mutex<Result<SyncSender<Job>, ReduceError>>,
}

type Reply = Result<Values, ReduceError>;

/// Work of the thread that calls MPI.
#[derive(Debug)]
enum Job {
    /// Sum these values.
    Sum(Values, SyncSender<Reply>),
    /// Tell the others that the values of this worker cannot be read.
    Fail(SyncSender<Reply>),
    /// Wait until the others finish as well, and close MPI.
    Finish(SyncSender<Reply>),
}

#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    None,
}

impl Mpi {
    /// Initialises MPI in this process. A worker waits for another one at most `timeout` in each
    /// exchange of values: take the longest time that a worker may need more than the others for its
    /// part of a step, or for what it does between two steps, such as a checkpoint.
    ///
    /// # Errors
    ///
    /// MPI was initialised in this process before, by this function or by another user of the
    /// library. Where the launcher cannot be reached, the library itself ends the process.
    pub fn init(timeout: Duration) -> Result<Self, ReduceError> {
        let (jobs, work) = sync_channel(0);
        let (ready, started) = sync_channel(1);
        let thread = thread::Builder::new().name("mpi".to_owned());
        let spawned = thread.spawn(move || serve(timeout, &work, &ready));
        spawned.map_err(|error| ReduceError::Disconnected {
            reason: error.to_string(),
        })?;
        let Ok(Some([rank, workers, local_rank])) = started.recv() else {
            let reason = "MPI was initialised in this process before".to_owned();
            return Err(ReduceError::Disconnected { reason });
        };
        Ok(Self {
            group: Arc::new(Group {
                rank,
                workers,
                local_rank,
                jobs: Mutex::new(Ok(jobs)),
            }),
        })
    }

    /// The rank of this worker, from 0.
    pub fn rank(&self) -> usize {
        self.group.rank
    }

    /// The number of workers.
    pub fn workers(&self) -> usize {
        self.group.workers
    }

    /// The rank of this worker among those of its machine, from 0: the number of its device.
    pub fn local_rank(&self) -> usize {
        self.group.local_rank
    }

    /// The share of this worker of `items`, in the order of the ranks: equal shares, or shares that
    /// differ by one.
    pub fn share(&self, items: usize) -> Range<usize> {
        share(items, self.rank(), self.workers())
    }

    /// Closes MPI, when all workers have come here. No clone sums anything afterwards; to close it
    /// again does nothing.
    ///
    /// # Errors
    ///
    /// Another worker does not come, or an earlier sum failed.
    pub fn finish(self) -> Result<(), ReduceError> {
        let closed = ReduceError::Disconnected {
            reason: "MPI was closed by `finish`".to_owned(),
        };
        if matches!(&*self.jobs(), Err(error) if *error == closed) {
            return Ok(());
        }
        self.ask(Job::Finish)?;
        *self.jobs() = Err(closed);
        Ok(())
    }

    fn jobs(&self) -> MutexGuard<'_, Result<SyncSender<Job>, ReduceError>> {
        let jobs = self.group.jobs.lock();
        jobs.unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, job: impl FnOnce(SyncSender<Reply>) -> Job) -> Reply {
        let mut jobs = self.jobs();
        let thread = match &*jobs {
            Ok(thread) => thread,
            Err(error) => return Err(ReduceError::Broken(Box::new(error.clone()))),
        };
        let (reply, answer) = sync_channel(1);
        let sent = thread.send(job(reply));
        let answer = sent.ok().and_then(|()| answer.recv().ok());
        let answer = answer.unwrap_or_else(|| {
            let reason = "the thread that calls MPI has ended".to_owned();
            Err(ReduceError::Disconnected { reason })
        });
        if let Err(error) = &answer {
            *jobs = Err(error.clone());
        }
        answer
    }
}

const OF_ITS_TYPE: &str = "the values of a tensor are of its number type";

impl Reducer for Mpi {
    fn sum(&self, local: Tensor<1>) -> Result<Tensor<1>, ReduceError> {
        let (device, dtype, shape) = (local.device(), local.dtype(), local.shape());
        let values = match dtype {
            DType::F64 => local,
            _ => local.cast(FloatDType::F32),
        };
        let values = match values.try_into_data() {
            Ok(data) if dtype == DType::F64 => Values::F64(data.try_into_vec().expect(OF_ITS_TYPE)),
            Ok(data) => Values::F32(data.try_into_vec().expect(OF_ITS_TYPE)),
            Err(error) => {
                // Nobody waits for a worker that has no values.
                let reason = error.to_string();
                let _ = self.ask(Job::Fail);
                return Err(ReduceError::Unreadable { reason });
            }
        };
        let sums = match self.ask(|reply| Job::Sum(values, reply))? {
            Values::F32(sums) => TensorData::new(sums, shape),
            Values::F64(sums) => TensorData::new(sums, shape),
            Values::None => unreachable!("a sum has values"),
        };
        Ok(Tensor::from_data(sums, (&device.inner(), dtype)))
    }
}

fn share(items: usize, rank: usize, workers: usize) -> Range<usize> {
    let start = |rank: usize| {
        let (each, more) = (items / workers, items % workers);
        rank * each + rank.min(more)
    };
    start(rank)..start(rank + 1)
}

/// A number that MPI sends.
trait Number: Equivalence + Copy {
    fn wide(self) -> f64;
    fn rounded(sum: f64) -> Self;
}

impl Number for f32 {
    fn wide(self) -> f64 {
        self.into()
    }

    #[allow(clippy::cast_possible_truncation, reason = "rounded, as documented")]
    fn rounded(sum: f64) -> Self {
        sum as Self
    }
}

impl Number for f64 {
    fn wide(self) -> f64 {
        self
    }

    fn rounded(sum: f64) -> Self {
        sum
    }
}

/// What a worker says before an exchange: what it is about to do, and with how many values.
type Header = [u64; 2];

const FAILS: u64 = 0;
const FINISHES: u64 = 1;
const SUMS_F32: u64 = 2;
const SUMS_F64: u64 = 3;

/// The loop of the thread that calls MPI.
fn serve(timeout: Duration, work: &Receiver<Job>, ready: &SyncSender<Option<[usize; 3]>>) {
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
        let _ = ready.send(None);
        return;
    };
    let world = universe.world();
    let local = world.split_shared(world.rank());
    let [rank, workers, local_rank] =
        [world.rank(), world.size(), local.rank()].map(|number| number.unsigned_abs() as usize);
    drop(local);
    let connection = Connection {
        world,
        rank,
        workers,
        timeout,
    };
    let _ = ready.send(Some([rank, workers, local_rank]));
    // Without `finish`, the launcher is to see that this process did not end well.
    let mut universe = Some(universe);
    for job in work {
        let (reply, answer) = connection.answer(job, &mut universe);
        let _ = reply.send(answer);
    }
    std::mem::forget(universe);
}

struct Connection {
    world: SimpleCommunicator,
    rank: usize,
    workers: usize,
    timeout: Duration,
}

/// An exchange of which some ranks are missing. MPI still holds its buffers.
type Stuck<'a> = &'a dyn Fn(Vec<usize>, usize) -> std::convert::Infallible;

impl Connection {
    fn answer(&self, job: Job, universe: &mut Option<Universe>) -> (SyncSender<Reply>, Reply) {
        let (header, values, reply) = match job {
            Job::Sum(values, reply) => match &values {
                Values::F64(numbers) => ([SUMS_F64, numbers.len() as u64], values, reply),
                Values::F32(numbers) => ([SUMS_F32, numbers.len() as u64], values, reply),
                Values::None => unreachable!("a sum has values"),
            },
            Job::Fail(reply) => ([FAILS, 0], Values::None, reply),
            Job::Finish(reply) => ([FINISHES, 0], Values::None, reply),
        };
        // Buffers of requests that are still open must stay where they are: the thread stays with
        // them, and the process goes on with the error.
        let stuck = |missing: Vec<usize>, arrived: usize| {
            let _ = reply.send(Err(ReduceError::TimedOut {
                missing,
                arrived,
                workers: self.workers,
                timeout: self.timeout,
            }));
            loop {
                thread::park();
            }
        };
        let answer = self.agree(header, &stuck).map(|()| match values {
            Values::F32(mut numbers) => {
                self.sum(&mut numbers, &stuck);
                Values::F32(numbers)
            }
            Values::F64(mut numbers) => {
                self.sum(&mut numbers, &stuck);
                Values::F64(numbers)
            }
            Values::None => {
                drop(universe.take());
                Values::None
            }
        });
        (reply, answer)
    }

    /// Checks that all workers are about to do the same. All of them come to the same answer.
    fn agree(&self, header: Header, stuck: Stuck<'_>) -> Result<(), ReduceError> {
        let mut headers = vec![header; self.workers];
        let send: Vec<&[u64]> = vec![&header; self.workers];
        let receive = headers.iter_mut().map(<[u64; 2]>::as_mut_slice);
        self.exchange(&send, receive.collect(), Duration::from_millis(1), stuck);
        let fails = |header: &Header| header[0] == FAILS;
        if let Some(rank) = headers.iter().position(fails) {
            let reason = "its values cannot be read".to_owned();
            return Err(ReduceError::Worker { rank, reason });
        }
        let first = headers[0];
        let Some(rank) = headers.iter().position(|header| *header != first) else {
            return Ok(());
        };
        let does = |[task, length]: Header| match task {
            FINISHES => "finishes".to_owned(),
            SUMS_F64 => format!("sums {length} numbers of 64 bits"),
            _ => format!("sums {length} numbers of 32 bits"),
        };
        let (it, zero) = (does(headers[rank]), does(first));
        let reason = format!("it {it} where worker 0 {zero}: they are not at the same step");
        Err(ReduceError::Worker { rank, reason })
    }

    /// Replaces `values` by their sums over the workers.
    fn sum<T: Number>(&self, values: &mut [T], stuck: Stuck<'_>) {
        for values in values.chunks_mut(AT_ONCE) {
            self.sum_at_once(values, stuck);
        }
    }

    fn sum_at_once<T: Number>(&self, values: &mut [T], stuck: Stuck<'_>) {
        // All are here: a pause would only delay the next piece of a message.
        let patience = Duration::from_secs(1);
        let places = |rank: usize| share(values.len(), rank, self.workers);
        let own = places(self.rank);
        // The values of all workers for the share of this one. Its own stay where they are.
        let mut theirs: Vec<Vec<T>> = vec![values[own.clone()].to_vec(); self.workers];
        let send: Vec<&[T]> = (0..self.workers)
            .map(|rank| &values[places(rank)])
            .collect();
        let receive = theirs.iter_mut().map(Vec::as_mut_slice).collect();
        self.exchange(&send, receive, patience, stuck);
        let sum = |i: usize| theirs.iter().map(|values| values[i].wide()).sum();
        let sums: Vec<T> = (0..own.len()).map(|i| T::rounded(sum(i))).collect();
        values[own].copy_from_slice(&sums);
        let send = vec![sums.as_slice(); self.workers];
        let count = values.len();
        let mut rest = values;
        let mut receive = Vec::new();
        for rank in 0..self.workers {
            let (first, others) = rest.split_at_mut(share(count, rank, self.workers).len());
            receive.push(first);
            rest = others;
        }
        self.exchange(&send, receive, patience, stuck);
    }

    /// Sends a vector to each other rank, and receives one of each: they stand at the places of the
    /// ranks, and those of this rank are left alone. After `patience` the thread sleeps between looks.
    fn exchange<'a, T: Equivalence>(
        &self,
        send: &[&'a [T]],
        receive: Vec<&'a mut [T]>,
        patience: Duration,
        stuck: Stuck<'_>,
    ) {
        let process = |rank: usize| {
            let rank = i32::try_from(rank).expect("ranks of MPI have 32 bits");
            self.world.process_at_rank(rank)
        };
        let others = |rank: &usize| *rank != self.rank;
        let of_a_message = OF_A_MESSAGE / size_of::<T>();
        let start = Instant::now();
        scope(|scope| {
            let mut open = Vec::new();
            for (rank, buffer) in receive
                .into_iter()
                .enumerate()
                .filter(|(rank, _)| others(rank))
            {
                for part in buffer.chunks_mut(of_a_message) {
                    open.push((rank, process(rank).immediate_receive_into(scope, part)));
                }
            }
            for rank in (0..self.workers).filter(others) {
                for part in send[rank].chunks(of_a_message) {
                    open.push((rank, process(rank).immediate_send(scope, part)));
                }
            }
            loop {
                let still = open.into_iter();
                let still = still.filter_map(|(rank, r)| r.test().err().map(|r| (rank, r)));
                open = still.collect();
                if open.is_empty() {
                    return;
                }
                let waited = start.elapsed();
                if waited >= self.timeout {
                    let mut missing: Vec<usize> = open.iter().map(|(rank, _)| *rank).collect();
                    missing.sort_unstable();
                    missing.dedup();
                    let arrived = self.workers - missing.len();
                    match stuck(missing, arrived) {}
                }
                if waited < patience {
                    thread::yield_now();
                } else {
                    thread::sleep(Duration::from_micros(100));
                }
            }
        });
    }
}
