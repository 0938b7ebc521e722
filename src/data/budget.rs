use burn::data::dataloader::BatchStrategy;

use super::collated::Collated;
use super::example::Example;
use crate::tokens::{Packing, Padding, Sequence};

/// Batches of as many tokens as fit, instead of a fixed number of examples: each step takes about
/// the same memory, whether its examples are long or short.
///
/// The tokens are those of the tensors that [`Collator`](super::Collator) makes of pairs, unpaired
/// completions, ranked lists or demonstrations: padding, absent candidates and mismatched completions included.
///
/// It is Burn's `BatchStrategy`: [`EpochLoader::with_strategy`](super::EpochLoader::with_strategy)
/// takes it, and so does Burn's `BatchDataLoader`. Examples come in their order; the one that does
/// not fit begins the next batch. Batches have different sizes, so divide a loss by the examples or
/// tokens of the batch, not by a constant. Workers with a share of the examples each may have
/// several numbers of batches, which a [`Reducer`](crate::training::reducer::Reducer) does not
/// stand: there, split each batch over the workers instead.
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
    shape: TensorShape,
    items: Vec<Example<Vec<u32>, L>>,
}

#[derive(Debug, Clone, Copy)]
enum TensorShape {
    Padded(Padding),
    Packed(Packing),
}

impl TensorShape {
    /// Tokens of the tensor; none where a sequence is longer than a row of it.
    fn tokens(self, sequences: &[Sequence]) -> Option<usize> {
        let [rows, time] = match self {
            Self::Padded(padding) => padding.dims(sequences),
            Self::Packed(packing) => packing.dims(sequences).ok()?,
        };
        rows.checked_mul(time)
    }
}

impl<L> TokenBudget<L> {
    /// Batches whose [`TokenBatch`](crate::tokens::TokenBatch)es have at most `tokens` tokens.
    ///
    /// An example that alone has more is a batch of its own: truncate examples to what a device
    /// holds.
    pub fn padded(tokens: usize, padding: Padding) -> Self {
        Self::new(tokens, TensorShape::Padded(padding))
    }

    /// Batches whose rows, packed, have at most `tokens` tokens; mismatched completions are packed
    /// by themselves.
    ///
    /// An example that alone has more is a batch of its own, also where it is longer than a packed
    /// row, which `PackedBatch::new` then says.
    pub fn packed(tokens: usize, packing: Packing) -> Self {
        Self::new(tokens, TensorShape::Packed(packing))
    }

    fn new(tokens: usize, shape: TensorShape) -> Self {
        Self {
            tokens,
            shape,
            items: Vec::new(),
        }
    }
}

impl<L: Collated> TokenBudget<L> {
    /// Whether the examples make a batch within the budget.
    fn fits(&self) -> bool {
        let mismatched = L::mismatched(&self.items).unwrap_or_default();
        let both = [L::sequences(&self.items), mismatched];
        let tokens = both.map(|sequences| self.shape.tokens(&sequences));
        matches!(tokens, [Some(a), Some(b)] if a.saturating_add(b) <= self.tokens)
    }
}

impl<L> BatchStrategy<Example<Vec<u32>, L>> for TokenBudget<L>
where
    L: Collated + Clone + Send + Sync + 'static,
{
    fn add(&mut self, item: Example<Vec<u32>, L>) {
        self.items.push(item);
    }

    /// The examples that fit, once one does not; with `force`, those that are left.
    fn batch(&mut self, force: bool) -> Option<Vec<Example<Vec<u32>, L>>> {
        if self.items.is_empty() {
            return None;
        }
        let full = !self.fits();
        if !(full || force) {
            return None;
        }
        let mut next = Vec::new();
        if full && self.items.len() > 1 {
            next.extend(self.items.pop());
        }
        Some(std::mem::replace(&mut self.items, next))
    }

    fn clone_dyn(&self) -> Box<dyn BatchStrategy<Example<Vec<u32>, L>>> {
        Box::new(Self::new(self.tokens, self.shape))
    }

    fn batch_size(&self) -> Option<usize> {
        None
    }
}
