use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::data::dataset::{Dataset, DatasetError};
use serde::{Deserialize, Serialize};

use super::error::DataError;
use crate::error::InvalidInput;

/// The position of a run in its data: save it with each checkpoint and go on at exactly the next
/// example.
///
/// An order needs no state but the numbers that are saved: `seed`, `epoch` and the number of
/// `examples`. It is defined here and by no random generator of a dependency, so that an update
/// moves no example:
///
/// ```text
/// stream = BLAKE3 in the mode derive_key, context "burn-preference data::Cursor order 1",
///          of seed and epoch: u64, little endian; its output as u64 numbers, little endian
/// order  = 0, 1, …, examples − 1
/// for i = examples − 1, …, 1:
///     x = the next number of the stream below ⌊(2⁶⁴ − 1)/(i + 1)⌋·(i + 1)
///     swap order[i] and order[x mod (i + 1)]
/// ```
///
/// Numbers past the last multiple are passed over, so that all orders are equally likely.
///
/// The order of an epoch is computed when it is first asked for and kept until the next one: 8
/// bytes an example. Later clones share it.
///
/// `consumed` counts the *first* examples of an epoch's order, whoever trained on them. Workers
/// that share each batch keep to that. Workers with a range of the epoch each do not: in its middle
/// they have consumed the beginnings of several ranges, which no cursor says. Save their position
/// at the end of an epoch, as burn-train does.
///
/// ```
/// use burn::data::dataset::{Dataset, InMemDataset};
/// use burn_preference::data::Cursor;
/// use std::sync::Arc;
///
/// let dataset = Arc::new(InMemDataset::new((0..10).collect::<Vec<i32>>()));
/// let mut cursor = Cursor::new(dataset.len(), 7);
/// let epoch: Vec<i32> = cursor.remaining(&dataset)?.iter().map(Result::unwrap).collect();
///
/// cursor.advance(4); // one batch of four, then the machine stops
/// let saved = serde_json::to_string(&cursor)?;
/// let cursor: Cursor = serde_json::from_str(&saved)?;
/// let rest: Vec<i32> = cursor.remaining(&dataset)?.iter().map(Result::unwrap).collect();
/// assert_eq!(rest, epoch[4..]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "CursorFields")]
pub struct Cursor {
    examples: usize,
    seed: u64,
    epoch: u64,
    consumed: usize,
    /// The order of `epoch`, once somebody has asked.
    #[serde(skip)]
    order: OnceLock<Arc<[usize]>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CursorFields {
    examples: usize,
    seed: u64,
    epoch: u64,
    consumed: usize,
}

impl TryFrom<CursorFields> for Cursor {
    type Error = InvalidInput;

    fn try_from(fields: CursorFields) -> Result<Self, InvalidInput> {
        let CursorFields {
            examples,
            seed,
            epoch,
            consumed,
        } = fields;
        if consumed > 0 && consumed >= examples {
            let expected = format!("fewer than the {examples} examples of an epoch");
            return Err(InvalidInput::new("consumed", expected, consumed));
        }
        Ok(Self {
            examples,
            seed,
            epoch,
            consumed,
            order: OnceLock::new(),
        })
    }
}

/// Equal positions are equal, whether their order was computed already or not.
impl PartialEq for Cursor {
    fn eq(&self, other: &Self) -> bool {
        let position = |c: &Self| (c.examples, c.seed, c.epoch, c.consumed);
        position(self) == position(other)
    }
}

impl Eq for Cursor {}

/// The position without the order of a million examples.
impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("examples", &self.examples)
            .field("seed", &self.seed)
            .field("epoch", &self.epoch)
            .field("consumed", &self.consumed)
            .finish_non_exhaustive()
    }
}

impl Cursor {
    /// The beginning of the first epoch of a dataset of `examples` examples.
    pub fn new(examples: usize, seed: u64) -> Self {
        Self {
            examples,
            seed,
            epoch: 0,
            consumed: 0,
            order: OnceLock::new(),
        }
    }

    /// The beginning of `epoch`, counted from 0: what a run that finished so many epochs goes on
    /// with.
    pub fn at_epoch(mut self, epoch: u64) -> Self {
        self.begin(epoch);
        self
    }

    fn begin(&mut self, epoch: u64) {
        if epoch != self.epoch {
            self.epoch = epoch;
            self.order = OnceLock::new();
        }
        self.consumed = 0;
    }

    /// The examples that are left of this epoch, in its order, for a data loader without shuffling.
    /// More than one worker of a loader has no fixed order. Copies no examples and no indices.
    ///
    /// # Errors
    ///
    /// The dataset has another length than the cursor was made for.
    pub fn remaining<D, I>(&self, dataset: &Arc<D>) -> Result<Remaining<D>, DataError>
    where
        D: Dataset<I>,
    {
        self.check(dataset.len())?;
        Ok(self.left(dataset))
    }

    /// Checks that a dataset of so many examples is the one that the position is of.
    pub(super) fn check(&self, found: usize) -> Result<(), DataError> {
        if found == self.examples {
            return Ok(());
        }
        let saved = self.examples;
        Err(DataError::OtherDataset { saved, found })
    }

    /// The rest of this epoch of a dataset that has passed [`check`](Self::check).
    pub(super) fn left<D>(&self, dataset: &Arc<D>) -> Remaining<D> {
        let order = self
            .order
            .get_or_init(|| order(self.examples, self.seed, self.epoch));
        Remaining {
            dataset: Arc::clone(dataset),
            order: Arc::clone(order),
            left: self.consumed..self.examples,
        }
    }

    pub(super) fn next_epoch(&mut self) {
        self.begin(self.epoch.saturating_add(1));
    }

    /// Moves on by `examples` that were trained on; past the last one the next epoch begins.
    pub fn advance(&mut self, examples: usize) {
        let consumed = self.consumed.saturating_add(examples);
        // Of a dataset without examples there is nothing to consume.
        let Some(epochs) = consumed.checked_div(self.examples) else {
            return;
        };
        if epochs > 0 {
            self.begin(self.epoch.saturating_add(epochs as u64));
        }
        self.consumed = consumed - epochs * self.examples;
    }

    /// The epoch that the run is in, from 0.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The number of examples of this epoch that were trained on.
    pub fn consumed(&self) -> usize {
        self.consumed
    }
}

/// The order of an epoch, as [`Cursor`] defines it.
fn order(examples: usize, seed: u64, epoch: u64) -> Arc<[usize]> {
    let mut hasher = blake3::Hasher::new_derive_key("burn-preference data::Cursor order 1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&epoch.to_le_bytes());
    let mut stream = hasher.finalize_xof();
    // Many numbers at a time: BLAKE3 is fastest over several of its blocks.
    let mut buffer = [[0; 8]; 128];
    let mut read = buffer.len();
    let mut next = || {
        if read == buffer.len() {
            stream.fill(buffer.as_flattened_mut());
            read = 0;
        }
        read += 1;
        u64::from_le_bytes(buffer[read - 1])
    };
    let mut order: Vec<usize> = (0..examples).collect();
    for i in (1..examples).rev() {
        let n = i as u64 + 1;
        let bound = u64::MAX / n * n;
        let x = loop {
            let x = next();
            if x < bound {
                break x % n;
            }
        };
        #[allow(clippy::cast_possible_truncation, reason = "at most `i`")]
        order.swap(i, x as usize);
    }
    order.into()
}

/// The examples of an epoch that are left, in its order: a view of the dataset.
#[derive(Debug, Clone)]
pub struct Remaining<D> {
    dataset: Arc<D>,
    order: Arc<[usize]>,
    /// A range of `order`.
    left: Range<usize>,
}

impl<D> Remaining<D> {
    /// The number of examples.
    pub(super) fn count(&self) -> usize {
        self.left.len()
    }

    /// The examples at these `places` among them.
    pub(super) fn part(self, places: Range<usize>) -> Self {
        let first = self.left.start;
        Self {
            left: first + places.start..first + places.end,
            ..self
        }
    }

    /// The index of an example in the dataset.
    fn index(&self, place: usize) -> usize {
        self.order[self.left.clone()][place]
    }
}

/// A dataset of what is left.
///
/// # Panics
///
/// `get` and `get_many` panic if an index is past the last example, as Burn's selections do.
impl<D: Dataset<I>, I> Dataset<I> for Remaining<D> {
    fn get(&self, index: usize) -> Result<I, DatasetError> {
        self.dataset.get(self.index(index))
    }

    fn get_many(&self, indexes: Vec<usize>) -> Result<Vec<I>, DatasetError> {
        let indexes = indexes.into_iter().map(|index| self.index(index));
        self.dataset.get_many(indexes.collect())
    }

    fn len(&self) -> usize {
        self.left.len()
    }
}
