use std::sync::Arc;

use burn::data::dataset::Dataset;
use burn::data::dataset::transform::SelectionDataset;
use serde::{Deserialize, Serialize};

use super::error::DataError;
use crate::error::InvalidInput;

/// Where a run is in its data: save it with each checkpoint and go on at exactly the next row.
///
/// Each epoch is shuffled by `seed + epoch`, so that an order needs no state but these numbers.
///
/// ```
/// use burn::data::dataset::{Dataset, InMemDataset};
/// use burn_preference::data::Cursor;
/// use std::sync::Arc;
///
/// let rows = Arc::new(InMemDataset::new((0..10).collect::<Vec<i32>>()));
/// let mut cursor = Cursor::new(rows.len(), 7);
/// let epoch: Vec<i32> = cursor.remaining(&rows)?.iter().map(Result::unwrap).collect();
///
/// cursor.advance(4); // one batch of four, then the machine stops
/// let saved = serde_json::to_string(&cursor)?;
/// let cursor: Cursor = serde_json::from_str(&saved)?;
/// let rest: Vec<i32> = cursor.remaining(&rows)?.iter().map(Result::unwrap).collect();
/// assert_eq!(rest, epoch[4..]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CursorFields")]
pub struct Cursor {
    rows: usize,
    seed: u64,
    epoch: u64,
    consumed: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CursorFields {
    rows: usize,
    seed: u64,
    epoch: u64,
    consumed: usize,
}

impl TryFrom<CursorFields> for Cursor {
    type Error = InvalidInput;

    fn try_from(fields: CursorFields) -> Result<Self, InvalidInput> {
        let CursorFields {
            rows,
            seed,
            epoch,
            consumed,
        } = fields;
        if consumed > 0 && consumed >= rows {
            let expected = format!("fewer than the {rows} rows of an epoch");
            return Err(InvalidInput::new("consumed", expected, consumed));
        }
        Ok(Self {
            rows,
            seed,
            epoch,
            consumed,
        })
    }
}

impl Cursor {
    /// The beginning of the first epoch of a dataset of `rows` rows.
    pub fn new(rows: usize, seed: u64) -> Self {
        Self {
            rows,
            seed,
            epoch: 0,
            consumed: 0,
        }
    }

    /// The beginning of `epoch`, counted from 0: what a run that finished so many epochs goes on
    /// with.
    pub fn at_epoch(self, epoch: u64) -> Self {
        Self {
            epoch,
            consumed: 0,
            ..self
        }
    }

    /// What is left of this epoch, in its order: what a data loader without shuffling takes. More
    /// than one worker of a loader has no fixed order.
    ///
    /// # Errors
    ///
    /// The dataset has another length than the cursor was made for.
    pub fn remaining<D, I>(&self, dataset: &Arc<D>) -> Result<SelectionDataset<D, I>, DataError>
    where
        D: Dataset<I>,
        I: Clone + Send + Sync,
    {
        let epoch = self.whole_epoch(dataset)?;
        Ok(epoch.slice(self.consumed.min(self.rows), self.rows))
    }

    pub(super) fn whole_epoch<D, I>(
        &self,
        dataset: &Arc<D>,
    ) -> Result<SelectionDataset<D, I>, DataError>
    where
        D: Dataset<I>,
        I: Clone + Send + Sync,
    {
        if dataset.len() != self.rows {
            return Err(DataError::OtherDataset {
                saved: self.rows,
                found: dataset.len(),
            });
        }
        let seed = self.seed.wrapping_add(self.epoch);
        Ok(SelectionDataset::new_shuffled(Arc::clone(dataset), seed))
    }

    pub(super) fn next_epoch(&mut self) {
        *self = self.at_epoch(self.epoch.saturating_add(1));
    }

    /// `rows` more were trained on; past the last one the next epoch begins.
    pub fn advance(&mut self, rows: usize) {
        let consumed = self.consumed.saturating_add(rows);
        let epochs = consumed.checked_div(self.rows).unwrap_or(0);
        self.epoch = self.epoch.saturating_add(epochs as u64);
        self.consumed = consumed - epochs * self.rows;
    }

    /// The epoch, from 0.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many rows of this epoch were trained on.
    pub fn consumed(&self) -> usize {
        self.consumed
    }
}
