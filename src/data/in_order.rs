use std::collections::BTreeMap;
use std::num::NonZero;
use std::panic;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Items that a thread takes at once.
const BLOCK: usize = 64;

/// Computes `of` of all items on several threads, and gives the results to `take` in the order of the
/// items, until it fails.
pub(super) fn in_order<I: Send, O: Send, E>(
    items: impl Iterator<Item = I> + Send,
    threads: NonZero<usize>,
    of: impl Fn(I) -> O + Sync,
    mut take: impl FnMut(O) -> Result<(), E>,
) -> Result<(), E> {
    if threads.get() == 1 {
        return items.map(of).try_for_each(take);
    }
    let items = Mutex::new((0, items.fuse()));
    let next_block = || {
        let mut items = items.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, items) = &mut *items;
        let block: Vec<I> = items.take(BLOCK).collect();
        *number += 1;
        (!block.is_empty()).then_some((*number - 1, block))
    };
    thread::scope(|scope| {
        let (sender, results) = sync_channel(2 * threads.get());
        let workers: Vec<_> = (0..threads.get())
            .map(|_| {
                let (sender, next_block, of) = (sender.clone(), &next_block, &of);
                scope.spawn(move || {
                    while let Some((number, block)) = next_block() {
                        let results: Vec<O> = block.into_iter().map(of).collect();
                        if sender.send((number, results)).is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let (mut next, mut early) = (0, BTreeMap::new());
        let mut taken = Ok(());
        for (number, block) in &results {
            early.insert(number, block);
            while taken.is_ok()
                && let Some(block) = early.remove(&next)
            {
                taken = block.into_iter().try_for_each(&mut take);
                next += 1;
            }
            if taken.is_err() {
                break;
            }
        }
        drop(results);
        for worker in workers {
            if let Err(panic) = worker.join() {
                panic::resume_unwind(panic);
            }
        }
        taken
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(count: usize) -> NonZero<usize> {
        NonZero::new(count).unwrap()
    }

    #[test]
    fn results_come_in_order_whatever_takes_long() {
        for count in [1, 2, 3, 8] {
            let mut taken = Vec::new();
            let of = |i: u64| {
                if i.is_multiple_of(97) {
                    thread::sleep(std::time::Duration::from_millis(2));
                }
                i * i
            };
            let done: Result<(), ()> = in_order(0..1000, threads(count), of, |square| {
                taken.push(square);
                Ok(())
            });
            assert!(done.is_ok());
            assert!(taken.into_iter().eq((0..1000).map(|i| i * i)));
        }
    }

    #[test]
    fn the_first_failure_ends_it() {
        for count in [1, 4] {
            let mut taken = 0;
            let done = in_order(
                0..,
                threads(count),
                |i| i,
                |i| {
                    taken += 1;
                    if i == 300 { Err(i) } else { Ok(()) }
                },
            );
            assert_eq!((done, taken), (Err(300), 301));
        }
    }

    #[test]
    #[should_panic = "at 70"]
    fn a_panic_comes_through() {
        let of = |i: usize| assert!(i != 70, "at {i}");
        let _: Result<(), ()> = in_order(0..1000, threads(3), of, |()| Ok(()));
    }
}
