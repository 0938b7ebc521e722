use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::transform::SelectionDataset;
use burn::data::dataset::{Dataset, DatasetError};
use burn::tensor::Device;

use super::cursor::Cursor;

/// A Burn data loader that can go on where a run stopped: every epoch is shuffled as its
/// [`Cursor`] says, whichever process runs it.
///
/// Burn's own loader shuffles by a generator that lives in the process, so that a resumed run sees
/// other batches. Here each `iter` is the next epoch; a run that is resumed after `n` epochs starts
/// from [`Cursor::at_epoch`].
pub struct EpochLoader<D, I, O> {
    dataset: Arc<D>,
    batcher: Arc<dyn Batcher<I, O>>,
    batch_size: usize,
    cursor: Mutex<Cursor>,
    /// Which part of each epoch, for a worker among several.
    part: Range<usize>,
    device: Device,
}

impl<D, I, O> EpochLoader<D, I, O>
where
    D: Dataset<I>,
{
    /// Batches of `batch_size` rows, the last one of an epoch smaller, from `cursor` on.
    ///
    /// # Panics
    ///
    /// Panics if `batch_size` is 0.
    pub fn new(
        dataset: Arc<D>,
        batcher: impl Batcher<I, O> + 'static,
        batch_size: usize,
        cursor: Cursor,
        device: &Device,
    ) -> Self {
        assert!(batch_size > 0, "batch_size: at least 1");
        Self {
            part: 0..dataset.len(),
            dataset,
            batcher: Arc::new(batcher),
            batch_size,
            cursor: Mutex::new(cursor),
            device: device.clone(),
        }
    }

    fn cursor(&self) -> Cursor {
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, part: Range<usize>, device: &Device) -> Self {
        Self {
            dataset: Arc::clone(&self.dataset),
            batcher: Arc::clone(&self.batcher),
            batch_size: self.batch_size,
            cursor: Mutex::new(self.cursor()),
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
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = cursor.whole_epoch(&self.dataset).map(|rows| {
            let start = self.part.start.max(cursor.consumed());
            rows.slice(start.min(self.part.end), self.part.end)
        });
        cursor.next_epoch();
        let (rows, error) = match epoch {
            Ok(rows) => (rows, None),
            Err(error) => (
                SelectionDataset::from_indices_unchecked(Arc::clone(&self.dataset), Vec::new()),
                Some(DatasetError::new(error)),
            ),
        };
        Box::new(Batches {
            loader: self,
            rows,
            next: 0,
            error,
        })
    }

    fn num_items(&self) -> usize {
        self.part.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<O>> {
        Arc::new(self.with(self.part.clone(), device))
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<O>> {
        let first = self.part.start;
        Arc::new(self.with(first + start..first + end, &self.device))
    }
}

struct Batches<'a, D: Dataset<I>, I: Clone + Send + Sync, O> {
    loader: &'a EpochLoader<D, I, O>,
    rows: SelectionDataset<D, I>,
    next: usize,
    error: Option<DatasetError>,
}

impl<D, I, O> Iterator for Batches<'_, D, I, O>
where
    D: Dataset<I>,
    I: Clone + Send + Sync,
{
    type Item = Result<O, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.error.take() {
            return Some(Err(error));
        }
        let end = self.rows.len().min(self.next + self.loader.batch_size);
        if self.next == end {
            return None;
        }
        let rows = self.rows.get_many((self.next..end).collect());
        self.next = end;
        Some(rows.map(|rows| self.loader.batcher.batch(rows, &self.loader.device)))
    }
}

impl<D, I, O> DataLoaderIterator<O> for Batches<'_, D, I, O>
where
    D: Dataset<I>,
    I: Clone + Send + Sync,
{
    fn progress(&self) -> Progress {
        Progress::new(self.next, self.rows.len(), Some("items".to_owned()))
    }
}
