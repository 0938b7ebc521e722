//! Parts of a step, computed at once.

use std::panic::resume_unwind;
use std::thread;

use rayon::{ThreadPool, ThreadPoolBuilder, current_num_threads};

use crate::failure::Failure;

/// Pools of threads that share the cores.
///
/// Flex uses all threads of its pool in a matrix product and one in most of what stands between two
/// products. Of two parts of a step, each in a pool with half of the threads, both cores have
/// something to do all the time.
pub struct Workers(Vec<ThreadPool>);

impl Workers {
    /// Makes `count` pools.
    ///
    /// # Errors
    ///
    /// The system has no threads left.
    pub fn new(count: usize) -> Result<Self, Failure> {
        let threads = (current_num_threads() / count).max(1);
        let pool = |_| ThreadPoolBuilder::new().num_threads(threads).build();
        Ok(Self((0..count).map(pool).collect::<Result<_, _>>()?))
    }

    /// Computes `compute` of each item, as many at once as there are pools, and returns the results in
    /// their order.
    ///
    /// # Errors
    ///
    /// The first error of `compute`.
    pub fn map<I: Send, O: Send>(
        &self,
        items: Vec<I>,
        compute: impl Fn(I) -> Result<O, Failure> + Sync,
    ) -> Result<Vec<O>, Failure> {
        let Self(pools) = self;
        let (mut items, compute) = (items.into_iter(), &compute);
        let mut done = Vec::with_capacity(items.len());
        while items.len() > 0 {
            let results = thread::scope(|scope| {
                let running: Vec<_> = pools
                    .iter()
                    .zip(items.by_ref())
                    .map(|(pool, item)| scope.spawn(move || pool.install(|| compute(item))))
                    .collect();
                let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
                ended
                    .map(|ended| ended.unwrap_or_else(|panic| resume_unwind(panic)))
                    .collect::<Result<Vec<O>, Failure>>()
            });
            done.extend(results?);
        }
        Ok(done)
    }
}
