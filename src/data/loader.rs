use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{
    BatchStrategy, DataLoader, DataLoaderIterator, FixBatchStrategy, Progress,
};
use burn::data::dataset::{Dataset, DatasetError};
use burn::tensor::Device;

use super::cursor::{Cursor, Remaining};
use super::error::DataError;
use crate::error::InvalidInput;

/// A Burn data loader that can go on where a run stopped: every epoch is shuffled as its
/// [`Cursor`] says, whichever process runs it.
///
/// Burn's own loader shuffles by a generator that lives in the process, so that a resumed run sees
/// other batches. Here each `iter` is the next epoch; a run that is resumed after `n` epochs starts
/// from [`Cursor::at_epoch`].
///
/// # Several workers
///
/// burn-train's `MultiDevice` gives each worker a [`slice`](Self::slice) of the items. A slice is a
/// *share*: items `start..end` of `n` are the examples from place `start·r/n` to `end·r/n`, rounded
/// down, of the `r` examples that the epoch has left. A whole epoch has all `n`; one that the
/// cursor begins in the middle of has fewer. The slices of all workers together are the examples
/// that are left, each of them once. Shares of the rest of an epoch may differ by one example, and
/// so by one batch, which a [`Reducer`](crate::training::reducer::Reducer) would miss.
///
/// [`Cursor::consumed`] counts the first examples of an epoch. Workers with a slice each have
/// consumed something else in the middle of one: save at the end of an epoch.
pub struct EpochLoader<D, I, O> {
    dataset: Arc<D>,
    batcher: Arc<dyn Batcher<I, O>>,
    /// Empty; each epoch fills one of its own.
    strategy: Box<dyn BatchStrategy<I>>,
    cursor: Mutex<Cursor>,
    /// The number of examples of the dataset.
    items: usize,
    /// The share of each epoch, for a worker among several: a range of `0..items`.
    part: Range<usize>,
    device: Device,
}

impl<D, I, O> EpochLoader<D, I, O>
where
    D: Dataset<I>,
    I: Send + Sync + 'static,
{
    /// Makes batches of `batch_size` examples, the last one of an epoch smaller, from `cursor` on.
    /// An example that cannot be read is an error in its place, and the others go on; burn-train ends
    /// the run there, and says so in `LearningResult::error` alone.
    ///
    /// # Errors
    ///
    /// `batch_size` is 0, or the dataset has another length than the cursor was made for.
    pub fn new(
        dataset: Arc<D>,
        batcher: impl Batcher<I, O> + 'static,
        batch_size: usize,
        cursor: Cursor,
        device: &Device,
    ) -> Result<Self, DataError> {
        if batch_size == 0 {
            return Err(InvalidInput::new("batch_size", "1 at least", 0).into());
        }
        let strategy = FixBatchStrategy::new(batch_size);
        Self::with_strategy(dataset, batcher, strategy, cursor, device)
    }

    /// Makes batches as `strategy` does of the examples in their order:
    /// [`TokenBudget`](super::TokenBudget), or one of your own. An example that cannot be read is
    /// an error in its place, and the others go on.
    ///
    /// # Errors
    ///
    /// The dataset has another length than the cursor was made for.
    pub fn with_strategy(
        dataset: Arc<D>,
        batcher: impl Batcher<I, O> + 'static,
        strategy: impl BatchStrategy<I> + 'static,
        cursor: Cursor,
        device: &Device,
    ) -> Result<Self, DataError> {
        let items = dataset.len();
        cursor.check(items)?;
        Ok(Self {
            dataset,
            batcher: Arc::new(batcher),
            strategy: strategy.clone_dyn(),
            cursor: Mutex::new(cursor),
            items,
            part: 0..items,
            device: device.clone(),
        })
    }

    fn cursor(&self) -> MutexGuard<'_, Cursor> {
        // A panic elsewhere leaves a whole position.
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, part: Range<usize>, device: &Device) -> Self {
        Self {
            dataset: Arc::clone(&self.dataset),
            batcher: Arc::clone(&self.batcher),
            strategy: self.strategy.clone_dyn(),
            cursor: Mutex::new(self.cursor().clone()),
            items: self.items,
            part,
            device: device.clone(),
        }
    }
}

impl<D, I, O> DataLoader<O> for EpochLoader<D, I, O>
where
    D: Dataset<I> + 'static,
    I: Clone + Send + Sync + 'static,
    O: Send + 'static,
{
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<O> + 'a> {
        let mut cursor = self.cursor();
        let left = cursor.left(&self.dataset);
        cursor.next_epoch();
        let count = left.count() as u128;
        #[allow(clippy::cast_possible_truncation, reason = "at most `count`")]
        let place = |item: usize| match self.items {
            0 => 0,
            items => (item as u128 * count / items as u128) as usize,
        };
        Box::new(Batches {
            loader: self,
            left: left.part(place(self.part.start)..place(self.part.end)),
            strategy: self.strategy.clone_dyn(),
            read: 0,
            given: 0,
            ahead: VecDeque::new(),
        })
    }

    fn num_items(&self) -> usize {
        self.part.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<O>> {
        Arc::new(self.with(self.part.clone(), device))
    }

    /// Items past the last one are none.
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<O>> {
        let Range {
            start: first,
            end: last,
        } = self.part;
        let item = |i: usize| first.saturating_add(i).min(last);
        Arc::new(self.with(item(start)..item(end).max(item(start)), &self.device))
    }
}

struct Batches<'a, D, I, O> {
    loader: &'a EpochLoader<D, I, O>,
    left: Remaining<D>,
    strategy: Box<dyn BatchStrategy<I>>,
    /// Examples that were read, and those that are in batches.
    read: usize,
    given: usize,
    /// Examples that were read and that the strategy has not got yet.
    ahead: VecDeque<Result<I, DatasetError>>,
}

/// Examples that are read at once for batches of no fixed size.
const AHEAD: usize = 16;

impl<D: Dataset<I>, I, O> Batches<'_, D, I, O> {
    /// The next example; many are asked for at once, as a database likes it.
    fn example(&mut self) -> Option<Result<I, DatasetError>> {
        if self.ahead.is_empty() {
            let size = self.strategy.batch_size().unwrap_or(AHEAD).max(1);
            let chunk = self.read..self.left.count().min(self.read + size);
            self.read = chunk.end;
            match self.left.get_many(chunk.clone().collect()) {
                Ok(examples) => self.ahead.extend(examples.into_iter().map(Ok)),
                // One of them: the others are not lost.
                Err(_) => self.ahead.extend(chunk.map(|place| self.left.get(place))),
            }
        }
        self.ahead.pop_front()
    }

    fn batch(&mut self, items: Vec<I>) -> O {
        self.given += items.len();
        self.loader.batcher.batch(items, &self.loader.device)
    }
}

impl<D, I, O> Iterator for Batches<'_, D, I, O>
where
    D: Dataset<I>,
{
    type Item = Result<O, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(example) = self.example() {
            match example {
                Ok(example) => self.strategy.add(example),
                Err(error) => return Some(Err(error)),
            }
            if let Some(items) = self.strategy.batch(false) {
                return Some(Ok(self.batch(items)));
            }
        }
        let items = self.strategy.batch(true)?;
        Some(Ok(self.batch(items)))
    }
}

impl<D, I, O> DataLoaderIterator<O> for Batches<'_, D, I, O>
where
    D: Dataset<I>,
{
    fn progress(&self) -> Progress {
        Progress::new(self.given, self.left.count(), Some("items".to_owned()))
    }
}
