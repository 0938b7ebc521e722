use burn::data::dataloader::BatchStrategy;

use super::example::Example;
use crate::tokens::{Packing, Padding, Sequence};

/// Batches of as many tokens as fit, instead of so many rows: each step takes about the same memory,
/// whether its rows are long or short.
///
/// It is Burn's `BatchStrategy`: [`EpochLoader::with_strategy`](super::EpochLoader::with_strategy)
/// takes it, and so does Burn's `BatchDataLoader`. Rows come in their order; the one that does not
/// fit begins the next batch. Batches have several sizes, so divide a loss by the examples or
/// tokens of the batch, not by a constant.
///
/// ```
/// use burn::data::dataloader::BatchStrategy;
/// use burn_preference::data::{Example, TokenBudget};
/// use burn_preference::tokens::{Packing, Padding};
///
/// let packing = Packing::new(Padding::new(0)); // a row per prompt
/// let mut budget = TokenBudget::packed(12, packing);
/// let pair = |prompt: u32, length| Example::pair(vec![prompt], vec![7; length], vec![8; length]);
/// let mut sizes = Vec::new();
/// for pair in [pair(1, 1), pair(2, 2), pair(3, 2), pair(4, 5)] {
///     budget.add(pair);
///     sizes.extend(budget.batch(false).map(|batch| batch.len()));
/// }
/// sizes.extend(budget.batch(true).map(|batch| batch.len()));
/// assert_eq!(sizes, [2, 1, 1]); // 2 × 5 tokens, 1 × 5, 1 × 11
/// ```
#[derive(Debug, Clone)]
pub struct TokenBudget<L> {
    tokens: usize,
    layout: Layout,
    items: Vec<Example<Vec<u32>, L>>,
    sequences: Vec<Sequence>,
}

#[derive(Debug, Clone, Copy)]
enum Layout {
    Padded(Padding),
    Packed(Packing),
}

impl<L> TokenBudget<L> {
    /// Batches whose [`TokenBatch`](crate::tokens::TokenBatch) has at most `tokens` tokens, padding
    /// included.
    ///
    /// A row that alone has more is a batch of its own: truncate rows to what a device holds.
    pub fn padded(tokens: usize, padding: Padding) -> Self {
        Self::new(tokens, Layout::Padded(padding))
    }

    /// Batches whose [`PackedBatch`](crate::tokens::PackedBatch) has at most `tokens` tokens,
    /// padding included.
    ///
    /// A row that alone has more is a batch of its own, also where it is longer than a packed row,
    /// which `PackedBatch::new` then says.
    pub fn packed(tokens: usize, packing: Packing) -> Self {
        Self::new(tokens, Layout::Packed(packing))
    }

    fn new(tokens: usize, layout: Layout) -> Self {
        Self {
            tokens,
            layout,
            items: Vec::new(),
            sequences: Vec::new(),
        }
    }

    /// Whether what is here makes a batch within the budget.
    fn fits(&self) -> bool {
        let dims = match self.layout {
            Layout::Padded(padding) => Ok(padding.dims(&self.sequences)),
            Layout::Packed(packing) => packing.dims(&self.sequences),
        };
        dims.is_ok_and(|[rows, time]| rows.saturating_mul(time) <= self.tokens)
    }
}

impl<L: Clone + Send + Sync + 'static> BatchStrategy<Example<Vec<u32>, L>> for TokenBudget<L> {
    fn add(&mut self, item: Example<Vec<u32>, L>) {
        self.sequences.extend(item.sequences());
        self.items.push(item);
    }

    /// What fits, once something does not; with `force`, what is left.
    fn batch(&mut self, force: bool) -> Option<Vec<Example<Vec<u32>, L>>> {
        let full = !self.fits();
        if self.items.is_empty() || !(full || force) {
            return None;
        }
        let mut next = Vec::new();
        if full && self.items.len() > 1 {
            next.extend(self.items.pop());
        }
        self.sequences = next.iter().flat_map(Example::sequences).collect();
        Some(std::mem::replace(&mut self.items, next))
    }

    fn clone_dyn(&self) -> Box<dyn BatchStrategy<Example<Vec<u32>, L>>> {
        Box::new(Self::new(self.tokens, self.layout))
    }

    fn batch_size(&self) -> Option<usize> {
        None
    }
}
