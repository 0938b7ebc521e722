use burn::data::dataloader::batcher::Batcher;
use burn::tensor::{Bool, Device, Tensor, TensorData};

use super::example::Example;
use super::label::{Desirable, Preference, Scores};
use super::mismatched::WithMismatched;
use crate::batch::{Pair, Ranked, Rows, Unpaired};
use crate::error::InvalidInput;
use crate::log_probs::{Completions, LogProbs};
use crate::tokens::{Padding, Sequence, TokenBatch};
use sealed::Collated;

/// Makes batches of token ids: a Burn `Batcher` for pairs, thumbs, thumbs with mismatched
/// completions, and lists.
///
/// # Panics
///
/// `batch` panics on a token id of 2³¹ or more.
#[derive(Debug, Clone, Copy)]
pub struct Collator {
    padding: Padding,
}

impl Collator {
    /// Pads as `padding` says.
    pub fn new(padding: Padding) -> Self {
        Self { padding }
    }

    fn rows(&self, sequences: Vec<Sequence>, device: &Device) -> TokenBatch {
        TokenBatch::new(sequences, self.padding, device).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Pairs as tensors.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PairTokens {
    /// The chosen rows, then the rejected ones: what [`pair`](Self::pair) takes apart.
    pub rows: TokenBatch,
    /// Where the rows come from; for columns of your own.
    pub examples: Vec<Example<Vec<u32>, Preference>>,
}

impl PairTokens {
    /// The pairs of what the rows have: log-probabilities of the policy alone or against a
    /// reference, of sequences or tokens, or a tensor with an element per row.
    ///
    /// ```
    /// # use burn::data::dataloader::batcher::Batcher;
    /// # use burn::tensor::{Device, Int, Tensor};
    /// use burn_preference::data::{Collator, Example, PairTokens};
    /// use burn_preference::tokens::Padding;
    ///
    /// let pairs = vec![Example::pair(vec![1], vec![2, 0], vec![3, 2, 0])];
    /// let batch: PairTokens = Collator::new(Padding::new(0)).batch(pairs, &Device::default());
    ///
    /// // A model that finds four words equally likely; yours is `&policy, Model::hidden`.
    /// let log_probs = batch.rows.log_probs(&4, |&words, ids| {
    ///     let [rows, time] = ids.dims();
    ///     Tensor::<3>::zeros([rows, time, words], &ids.device())
    /// })?;
    /// let pair = batch.pair(log_probs)?;
    /// let margin = pair.chosen.sum() - pair.rejected.sum();
    /// assert!((margin.into_scalar::<f32>() - 4_f32.ln()).abs() < 1e-6); // a token less
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// There are not two rows per pair.
    pub fn pair<T: Rows + Clone>(&self, of_rows: T) -> Result<Pair<T>, InvalidInput> {
        check_rows(of_rows.rows(), &self.rows)?;
        Pair::from_concatenated(&of_rows)
    }
}

/// What is said of rows is said of all of them.
fn check_rows(found: usize, rows: &TokenBatch) -> Result<(), InvalidInput> {
    if found == rows.len() {
        return Ok(());
    }
    let expected = format!("{}, one per row of the batch", rows.len());
    Err(InvalidInput::new("rows", expected, found))
}

impl Batcher<Example<Vec<u32>, Preference>, PairTokens> for Collator {
    fn batch(&self, items: Vec<Example<Vec<u32>, Preference>>, device: &Device) -> PairTokens {
        PairTokens {
            rows: self.rows(Preference::rows(&items), device),
            examples: items,
        }
    }
}

/// Thumbs as tensors.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UnpairedTokens<L = Desirable> {
    /// A row per completion.
    pub rows: TokenBatch,
    /// `[batch]`, true for a thumb up.
    pub desirable: Tensor<1, Bool>,
    /// None where the dataset has no mismatched completions.
    mismatched: Option<TokenBatch>,
    /// Where the rows come from; for columns of your own.
    pub examples: Vec<Example<Vec<u32>, L>>,
}

impl<L> UnpairedTokens<L> {
    /// The log-probabilities of the rows, of the policy alone or against a reference, with their
    /// thumbs.
    ///
    /// ```
    /// # use burn::data::dataloader::batcher::Batcher;
    /// # use burn::tensor::{Device, Tensor};
    /// use burn_preference::data::{Collator, Example, UnpairedTokens};
    /// use burn_preference::tokens::Padding;
    ///
    /// let thumbs = vec![
    ///     Example::unpaired(vec![1], vec![2, 0], true),
    ///     Example::unpaired(vec![1], vec![3], false),
    /// ];
    /// let batch: UnpairedTokens = Collator::new(Padding::new(0)).batch(thumbs, &Device::default());
    ///
    /// // A model that finds four words equally likely; yours is `&policy, Model::hidden`.
    /// let log_probs = batch.rows.log_probs(&4, |&words, ids| {
    ///     let [rows, time] = ids.dims();
    ///     Tensor::<3>::zeros([rows, time, words], &ids.device())
    /// })?;
    /// let thumbs = batch.unpaired(log_probs)?;
    /// let lengths = thumbs.log_probs().lengths().into_data().to_vec::<f32>().unwrap();
    /// assert_eq!(lengths, [2.0, 1.0]);
    /// let up = thumbs.desirable().into_data().iter::<bool>().collect::<Vec<_>>();
    /// assert_eq!(up, [true, false]);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// There is not one log-probability per row, or it is on another device.
    pub fn unpaired<Y: LogProbs<1>>(&self, log_probs: Y) -> Result<Unpaired<Y>, InvalidInput> {
        Unpaired::new(log_probs, self.desirable.clone())
    }
}

impl UnpairedTokens<WithMismatched> {
    /// Each prompt with another prompt's completion, a row each: their log-ratios are KTO's z₀
    /// ([`KlEstimate::from_mismatched`](crate::KlEstimate::from_mismatched)).
    #[allow(
        clippy::missing_panics_doc,
        reason = "the batcher of this label makes them"
    )]
    pub fn mismatched(&self) -> &TokenBatch {
        self.mismatched.as_ref().expect("made with its batch")
    }
}

impl Collator {
    fn unpaired<L: Collated>(
        &self,
        items: Vec<Example<Vec<u32>, L>>,
        desirable: impl Fn(&L) -> bool,
        device: &Device,
    ) -> UnpairedTokens<L> {
        let labels: Vec<bool> = items.iter().map(|x| desirable(&x.label)).collect();
        UnpairedTokens {
            rows: self.rows(L::rows(&items), device),
            desirable: Tensor::from_data(TensorData::from(labels.as_slice()), device),
            mismatched: None,
            examples: items,
        }
    }
}

impl Batcher<Example<Vec<u32>, Desirable>, UnpairedTokens> for Collator {
    fn batch(&self, items: Vec<Example<Vec<u32>, Desirable>>, device: &Device) -> UnpairedTokens {
        self.unpaired(items, |label| label.0, device)
    }
}

impl Batcher<Example<Vec<u32>, WithMismatched>, UnpairedTokens<WithMismatched>> for Collator {
    fn batch(
        &self,
        items: Vec<Example<Vec<u32>, WithMismatched>>,
        device: &Device,
    ) -> UnpairedTokens<WithMismatched> {
        let mismatched = WithMismatched::mismatched(&items);
        UnpairedTokens {
            mismatched: mismatched.map(|rows| self.rows(rows, device)),
            ..self.unpaired(items, |label| label.desirable.0, device)
        }
    }
}

/// Lists as tensors.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RankedTokens {
    /// `candidates` rows per list; those that a shorter list lacks hold its prompt alone.
    pub rows: TokenBatch,
    /// The length of the longest list, 1 at least.
    pub candidates: usize,
    /// `[batch, candidates]`, 0 where there is no candidate.
    pub scores: Tensor<2>,
    /// `[batch, candidates]`, false where there is none.
    pub present: Tensor<2, Bool>,
    /// Where the rows come from; for columns of your own.
    pub examples: Vec<Example<Vec<u32>, Scores>>,
}

impl RankedTokens {
    /// The lists with the log-probabilities of their rows: of the policy alone, or against a
    /// reference.
    ///
    /// ```
    /// # use burn::data::dataloader::batcher::Batcher;
    /// # use burn::tensor::{Device, Tensor};
    /// use burn_preference::data::{Collator, Example, RankedTokens};
    /// use burn_preference::tokens::Padding;
    ///
    /// let three = vec![vec![2, 0], vec![3], vec![4, 5, 0]];
    /// let lists = vec![
    ///     Example::ranked(vec![1], three, vec![0.9, 0.2, 0.5])?,
    ///     Example::ranked(vec![7], vec![vec![2]], vec![1.0])?,
    /// ];
    /// let batch: RankedTokens = Collator::new(Padding::new(0)).batch(lists, &Device::default());
    ///
    /// // A model that finds eight words equally likely; yours is `&policy, Model::hidden`.
    /// let log_probs = batch.rows.log_probs(&8, |&words, ids| {
    ///     let [rows, time] = ids.dims();
    ///     Tensor::<3>::zeros([rows, time, words], &ids.device())
    /// })?;
    /// let lists = batch.ranked(log_probs)?;
    /// let lengths = lists.candidates().lengths().into_data().to_vec::<f32>().unwrap();
    /// assert_eq!(lengths, [2.0, 1.0, 3.0, 1.0, 0.0, 0.0]);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// There is not one log-probability per row.
    pub fn ranked<L: Completions>(&self, log_probs: L) -> Result<Ranked<L::Lists>, InvalidInput> {
        let candidates = log_probs.split_candidates(self.candidates)?;
        Ranked::new(candidates, self.scores.clone(), self.present.clone())
    }
}

impl Batcher<Example<Vec<u32>, Scores>, RankedTokens> for Collator {
    fn batch(&self, items: Vec<Example<Vec<u32>, Scores>>, device: &Device) -> RankedTokens {
        let candidates = candidates(&items);
        let shape = [items.len(), candidates];
        let mut scores = Vec::with_capacity(shape[0] * candidates);
        let mut present = Vec::with_capacity(shape[0] * candidates);
        for item in &items {
            for i in 0..candidates {
                scores.push(item.label.0.get(i).copied().unwrap_or(0.0));
                present.push(i < item.completions().len());
            }
        }
        RankedTokens {
            rows: self.rows(Scores::rows(&items), device),
            candidates,
            scores: Tensor::from_data(TensorData::new(scores, shape), device),
            present: Tensor::from_data(TensorData::new(present, shape), device),
            examples: items,
        }
    }
}

/// The length of the longest list.
fn candidates(items: &[Example<Vec<u32>, Scores>]) -> usize {
    let lengths = items.iter().map(|item| item.completions().len());
    lengths.max().unwrap_or(1)
}

pub(super) mod sealed {
    use super::{Example, Sequence};

    /// A label whose examples become a batch: which rows, in which order.
    pub trait Collated: Sized {
        fn rows(items: &[Example<Vec<u32>, Self>]) -> Vec<Sequence> {
            items.iter().flat_map(Example::sequences).collect()
        }

        /// The rows of a second batch.
        fn mismatched(_: &[Example<Vec<u32>, Self>]) -> Option<Vec<Sequence>> {
            None
        }
    }
}

impl Collated for Preference {
    fn rows(items: &[Example<Vec<u32>, Self>]) -> Vec<Sequence> {
        let pairs = items.iter().map(Example::sequences);
        let (mut sequences, mut rejected) = (Vec::new(), Vec::new());
        for mut pair in pairs.map(Vec::into_iter) {
            sequences.extend(pair.next());
            rejected.extend(pair.next());
        }
        sequences.append(&mut rejected);
        sequences
    }
}

impl Collated for Desirable {}

impl Collated for WithMismatched {
    fn mismatched(items: &[Example<Vec<u32>, Self>]) -> Option<Vec<Sequence>> {
        let of = |item: &Example<_, Self>| item.label.sequence.clone();
        Some(items.iter().map(of).collect())
    }
}

impl Collated for Scores {
    fn rows(items: &[Example<Vec<u32>, Self>]) -> Vec<Sequence> {
        let candidates = candidates(items);
        let row = |item: &Example<Vec<u32>, Self>| {
            let absent = Sequence::new(&item.prompt, &[]);
            let mut row = item.sequences();
            row.resize(candidates, absent);
            row
        };
        items.iter().flat_map(row).collect()
    }
}
