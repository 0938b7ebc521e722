use burn::data::dataloader::batcher::Batcher;
use burn::tensor::{Bool, DType, Device, Tensor, TensorData};

use super::collated::{Collated, candidates};
use super::example::Example;
use super::label::{Demonstration, Desirable, Preference, Sample, Scores};
use super::mismatched::WithMismatched;
use crate::batch::{GroupedReward, Pair, PerCompletion, Ranked, Samples, Unpaired};
use crate::error::InvalidInput;
use crate::log_probs::{Completions, LogProbs, TokenLogProbs};
use crate::tokens::{Padding, Sequence, TokenBatch};

/// Makes batches of token ids: a Burn `Batcher` for pairs, ranked lists, demonstrations, samples and
/// unpaired completions, with mismatched ones or without.
///
/// # Panics
///
/// `batch` panics if a token id is 2³¹ or more.
#[derive(Debug, Clone, Copy)]
pub struct Collator {
    padding: Padding,
}

impl Collator {
    /// Pads as `padding` says.
    pub fn new(padding: Padding) -> Self {
        Self { padding }
    }

    fn tokens(&self, sequences: Vec<Sequence>, device: &Device) -> TokenBatch {
        TokenBatch::new(sequences, self.padding, device).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// A batch of pairs as tensors.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PairTokens {
    /// The tokens: a row per chosen completion, then a row per rejected one, which
    /// [`pair`](Self::pair) takes apart.
    pub tokens: TokenBatch,
    /// The examples that the batch is made of; for columns of your own.
    pub examples: Vec<Example<Vec<u32>, Preference>>,
}

impl PairTokens {
    /// Takes the two sides of the batch apart: of log-probabilities of the policy alone or against
    /// a reference, of sequences or tokens, or of a tensor with an element per row.
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
    /// let log_probs = batch.tokens.log_probs(&4, |&words, ids| {
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
    pub fn pair<T: PerCompletion + Clone>(&self, both: T) -> Result<Pair<T>, InvalidInput> {
        if both.rows() != self.tokens.len() {
            let expected = format!("{}, one per row of the batch", self.tokens.len());
            return Err(InvalidInput::new("rows", expected, both.rows()));
        }
        Pair::from_concatenated(&both)
    }
}

impl Batcher<Example<Vec<u32>, Preference>, PairTokens> for Collator {
    fn batch(&self, items: Vec<Example<Vec<u32>, Preference>>, device: &Device) -> PairTokens {
        PairTokens {
            tokens: self.tokens(Preference::sequences(&items), device),
            examples: items,
        }
    }
}

/// A batch of unpaired completions as tensors.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UnpairedTokens<L = Desirable> {
    /// The tokens: a row per completion.
    pub tokens: TokenBatch,
    /// The labels, `[batch]`: true for a desirable completion.
    pub desirable: Tensor<1, Bool>,
    /// None where the dataset has no mismatched completions.
    mismatched: Option<TokenBatch>,
    /// The examples that the batch is made of; for columns of your own.
    pub examples: Vec<Example<Vec<u32>, L>>,
}

impl<L> UnpairedTokens<L> {
    /// Puts the labels beside log-probabilities, of the policy alone or against a reference.
    ///
    /// ```
    /// # use burn::data::dataloader::batcher::Batcher;
    /// # use burn::tensor::{Device, Tensor};
    /// use burn_preference::data::{Collator, Example, UnpairedTokens};
    /// use burn_preference::tokens::Padding;
    ///
    /// let examples = vec![
    ///     Example::unpaired(vec![1], vec![2, 0], true),
    ///     Example::unpaired(vec![1], vec![3], false),
    /// ];
    /// let collator = Collator::new(Padding::new(0));
    /// let batch: UnpairedTokens = collator.batch(examples, &Device::default());
    ///
    /// // A model that finds four words equally likely; yours is `&policy, Model::hidden`.
    /// let log_probs = batch.tokens.log_probs(&4, |&words, ids| {
    ///     let [rows, time] = ids.dims();
    ///     Tensor::<3>::zeros([rows, time, words], &ids.device())
    /// })?;
    /// let unpaired = batch.unpaired(log_probs)?;
    /// let lengths = unpaired.log_probs().lengths().into_data().to_vec::<f32>().unwrap();
    /// assert_eq!(lengths, [2.0, 1.0]);
    /// let desirable = unpaired.desirable().into_data().iter::<bool>().collect::<Vec<_>>();
    /// assert_eq!(desirable, [true, false]);
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
    /// The tokens of each prompt with another prompt's completion, a row each: their log-ratios are
    /// KTO's z₀ ([`KlEstimate::from_mismatched`](crate::KlEstimate::from_mismatched)).
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
            tokens: self.tokens(L::sequences(&items), device),
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
            mismatched: mismatched.map(|sequences| self.tokens(sequences, device)),
            ..self.unpaired(items, |label| label.desirable.0, device)
        }
    }
}

/// A batch of demonstrations as tensors.
///
/// ```
/// # use burn::data::dataloader::batcher::Batcher;
/// # use burn::tensor::{Device, Tensor};
/// use burn_preference::data::{Collator, DemonstrationTokens, Example};
/// use burn_preference::tokens::{Padding, Sequence};
/// use burn_preference::{Demonstrations, Objective, SftLossConfig, WithStepTokens};
///
/// let examples = vec![
///     Example::demonstration(vec![1], vec![2, 0]),
///     Example::demonstration(vec![1, 3], vec![3, 2, 2, 0]),
/// ];
/// let batch: DemonstrationTokens =
///     Collator::new(Padding::new(0)).batch(examples, &Device::default());
///
/// // Logits that find four words equally likely; yours are `policy.hidden(batch.tokens.ids)`.
/// let [rows, time] = batch.tokens.ids.dims();
/// let logits = Tensor::<3>::zeros([rows, time, 4], &Device::default());
/// let demonstrations = Demonstrations::new(batch.tokens.token_log_probs(logits)?);
/// // The tokens that count in the whole step; here it is this batch alone.
/// let counted: usize = batch.tokens.sequences.iter().map(Sequence::length).sum();
/// let demonstrations = WithStepTokens::new(demonstrations, counted as f64, rows as f64)?;
/// let loss = SftLossConfig::new().init().forward(demonstrations).mean();
/// assert!((loss.into_scalar::<f32>() - 4_f32.ln()).abs() < 1e-6);
/// # Ok::<(), burn_preference::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DemonstrationTokens {
    /// The tokens: a row per completion.
    pub tokens: TokenBatch,
    /// The examples that the batch is made of; for columns of your own.
    pub examples: Vec<Example<Vec<u32>, Demonstration>>,
}

impl Batcher<Example<Vec<u32>, Demonstration>, DemonstrationTokens> for Collator {
    fn batch(
        &self,
        items: Vec<Example<Vec<u32>, Demonstration>>,
        device: &Device,
    ) -> DemonstrationTokens {
        DemonstrationTokens {
            tokens: self.tokens(Demonstration::sequences(&items), device),
            examples: items,
        }
    }
}

/// A batch of samples as tensors.
///
/// ```
/// # use burn::data::dataloader::batcher::Batcher;
/// # use burn::tensor::{Device, Tensor};
/// use burn_preference::data::{Collator, Example, SampleTokens};
/// use burn_preference::tokens::Padding;
/// use burn_preference::{GroupedReward, GrpoLossConfig, Objective};
///
/// // Two samples of one prompt, of a model that found four words equally likely.
/// let rewards = GroupedReward::of_groups(&[1.0, 0.0], &[0, 0])?;
/// let even = -4_f64.ln();
/// let examples = vec![
///     Example::sample(vec![1], vec![2, 0], vec![even; 2], rewards[0])?,
///     Example::sample(vec![1], vec![3, 2, 2, 0], vec![even; 4], rewards[1])?,
/// ];
/// let batch: SampleTokens = Collator::new(Padding::new(0)).batch(examples, &Device::default());
///
/// // Logits of the same model; yours are `policy.hidden(batch.tokens.ids)`.
/// let [rows, time] = batch.tokens.ids.dims();
/// let logits = Tensor::<3>::zeros([rows, time, 4], &Device::default());
/// let samples = batch.samples(batch.tokens.token_log_probs(logits)?)?;
/// let output = GrpoLossConfig::new().init().forward(samples);
/// let ratios = output.rewards().ratios().into_data().to_vec::<f32>().unwrap();
/// assert!(ratios.iter().all(|ratio| (ratio - 1.0).abs() < 1e-6));
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SampleTokens {
    /// The tokens: a row per sample.
    pub tokens: TokenBatch,
    /// ln μ of the tokens, `[batch, time − 1]`; 0 where there is none.
    pub sampler: Tensor<2>,
    /// The examples that the batch is made of; for columns of your own.
    pub examples: Vec<Example<Vec<u32>, Sample>>,
}

impl SampleTokens {
    /// Puts the sampler's log-probabilities and the rewards beside the policy's.
    ///
    /// # Errors
    ///
    /// As [`Samples::new`].
    pub fn samples(&self, policy: TokenLogProbs) -> Result<Samples, InvalidInput> {
        let sampler = TokenLogProbs::new(self.sampler.clone(), policy.mask())?;
        let rewards = self.examples.iter().map(|example| example.label.reward);
        Samples::new(policy, sampler, &rewards.collect::<Vec<GroupedReward>>())
    }
}

impl Batcher<Example<Vec<u32>, Sample>, SampleTokens> for Collator {
    fn batch(&self, items: Vec<Example<Vec<u32>, Sample>>, device: &Device) -> SampleTokens {
        let tokens = self.tokens(Sample::sequences(&items), device);
        let [rows, time] = tokens.ids.dims();
        // Column t belongs to token t + 1. The first token of a row is predicted by nothing.
        let mut values = Vec::with_capacity(rows * (time - 1));
        for item in &items {
            let (prompt, log_probs) = (item.prompt.len(), &item.label.log_probs);
            let of = |token: usize| log_probs.get(token.checked_sub(prompt)?).copied();
            values.extend((1..time).map(|token| of(token).unwrap_or(0.0)));
        }
        let values = TensorData::new(values, [rows, time - 1]);
        SampleTokens {
            sampler: Tensor::from_data(values, (device, DType::F32)),
            tokens,
            examples: items,
        }
    }
}

/// A batch of ranked lists as tensors.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RankedTokens {
    /// The tokens: `candidates` rows per list; those that a shorter list lacks hold its prompt
    /// alone.
    pub tokens: TokenBatch,
    /// The length of the longest list, 1 at least.
    pub candidates: usize,
    /// The scores, `[batch, candidates]`; 0 where there is no candidate.
    pub scores: Tensor<2>,
    /// Whether a list has a candidate there, `[batch, candidates]`.
    pub present: Tensor<2, Bool>,
    /// The examples that the batch is made of; for columns of your own.
    pub examples: Vec<Example<Vec<u32>, Scores>>,
}

impl RankedTokens {
    /// Makes ranked lists of log-probabilities, of the policy alone or against a reference.
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
    /// let log_probs = batch.tokens.log_probs(&8, |&words, ids| {
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
            tokens: self.tokens(Scores::sequences(&items), device),
            candidates,
            scores: Tensor::from_data(TensorData::new(scores, shape), device),
            present: Tensor::from_data(TensorData::new(present, shape), device),
            examples: items,
        }
    }
}
