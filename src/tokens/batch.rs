use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use super::reference::Reference;
use super::sequence::Sequence;
use crate::error::InvalidInput;
use crate::log_probs::{
    ComparableOutput, CompletionMask, Discrepancy, ModelOutput, SequenceLogProbs, TokenDiscrepancy,
    TokenLogProbs,
};

/// Padding, which makes rows of the same length of sequences of different lengths.
///
/// Sequences are padded at their end: a causal model then sees no padding before a token that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    id: u32,
    multiple_of: usize,
}

impl Padding {
    /// Pads with the token `id` to the longest sequence of the batch. The id may be any that the
    /// model knows: padding never counts.
    pub fn new(id: u32) -> Self {
        Self { id, multiple_of: 1 }
    }

    /// Pads to a multiple of `multiple_of` tokens, so that a device sees fewer shapes.
    ///
    /// # Errors
    ///
    /// `multiple_of` is 0.
    pub fn to_multiple_of(self, multiple_of: usize) -> Result<Self, InvalidInput> {
        if multiple_of == 0 {
            return Err(InvalidInput::new("multiple_of", "1 at least", 0));
        }
        Ok(Self {
            multiple_of,
            ..self
        })
    }

    pub(super) fn id(self) -> u32 {
        self.id
    }

    /// Largest multiple of at most `tokens`.
    pub(super) fn round_down(self, tokens: usize) -> usize {
        tokens - tokens % self.multiple_of
    }

    /// Number of rows and their length, once these sequences are padded.
    pub fn dims(&self, sequences: &[Sequence]) -> [usize; 2] {
        let longest = sequences.iter().map(|s| s.ids().len()).max().unwrap_or(0);
        [sequences.len(), self.width(longest)]
    }

    /// Width of a batch whose longest row has so many tokens: two at least, since fewer predict
    /// nothing.
    pub(super) fn width(self, longest: usize) -> usize {
        longest.max(2).next_multiple_of(self.multiple_of)
    }
}

/// The id in the narrowest default integers of Burn's backends.
pub(super) fn signed(id: u32) -> Result<i32, InvalidInput> {
    i32::try_from(id).map_err(|_| InvalidInput::new("tokens", "ids below 2^31", id))
}

/// Sequences as tensors, `[sequences, time]` each: the input of a model.
///
/// For pairs, give all chosen sequences, then all rejected ones:
/// [`Pair::from_concatenated`](crate::Pair::from_concatenated) takes the log-probabilities apart.
///
/// ```
/// use burn::tensor::Device;
/// use burn_preference::tokens::{Padding, Sequence, TokenBatch};
///
/// let sequences = vec![Sequence::new(&[5], &[6, 7]), Sequence::new(&[8, 9], &[4, 3])];
/// let batch = TokenBatch::new(sequences, Padding::new(0), &Device::default())?;
/// let ids = batch.ids.into_data().iter::<i64>().collect::<Vec<_>>();
/// assert_eq!(ids, [5, 6, 7, 0, 8, 9, 4, 3]);
/// let counted = batch.completion_mask.tensor().int().sum().into_scalar::<i64>();
/// assert_eq!(counted, 4);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TokenBatch {
    /// Token ids, `[sequences, time]`.
    pub ids: Tensor<2, Int>,
    /// True for the tokens of completions that count. It knows on the host where they are, so that
    /// no pass reads it back.
    pub completion_mask: CompletionMask,
    /// True for padding: what Burn's attention calls `mask_pad`.
    pub pad_mask: Tensor<2, Bool>,
    /// The same ids on the host, in the order of the rows.
    pub sequences: Vec<Sequence>,
}

impl TokenBatch {
    /// One row per sequence, at least two tokens wide, since fewer predict nothing.
    ///
    /// # Errors
    ///
    /// An id is beyond 2³¹ − 1, or the batch has more tokens: the narrowest default integers of
    /// Burn's backends have 32 bits.
    pub fn new(
        sequences: Vec<Sequence>,
        padding: Padding,
        device: &Device,
    ) -> Result<Self, InvalidInput> {
        let shape = padding.dims(&sequences);
        let [_, time] = shape;
        let mut tokens = Vec::with_capacity(shape[0] * time);
        let mut completion = Vec::with_capacity(shape[0] * time);
        let mut padded = Vec::with_capacity(shape[0] * time);
        for sequence in &sequences {
            for t in 0..time {
                let id = *sequence.ids().get(t).unwrap_or(&padding.id);
                tokens.push(signed(id)?);
                completion.push(sequence.counts(t));
                padded.push(t >= sequence.ids().len());
            }
        }
        Ok(Self {
            ids: Tensor::from_data(TensorData::new(tokens, shape), device),
            completion_mask: CompletionMask::from_data(TensorData::new(completion, shape), device)?,
            pad_mask: Tensor::from_data(TensorData::new(padded, shape), device),
            sequences,
        })
    }

    /// Sum and length of each sequence's completion under `model`.
    ///
    /// `forward` gets the model and [`ids`](Self::ids), and returns logits, or hidden states and the
    /// head. A method of your model is one. A closure can give the model more, such as
    /// [`pad_mask`](Self::pad_mask). If the output is computed already, take
    /// [`token_log_probs`](Self::token_log_probs).
    ///
    /// ```
    /// use burn::module::Module;
    /// use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
    /// use burn::tensor::{Device, Int, Tensor};
    /// use burn_preference::tokens::{Padding, Sequence, TokenBatch};
    /// use burn_preference::{Frozen, LmHead};
    ///
    /// #[derive(Module, Debug)]
    /// struct Model {
    ///     embedding: Embedding,
    ///     head: Linear,
    /// }
    ///
    /// impl Model {
    ///     fn hidden(&self, ids: Tensor<2, Int>) -> (Tensor<3>, LmHead) {
    ///         (self.embedding.forward(ids), LmHead::from(&self.head))
    ///     }
    /// }
    ///
    /// let device = Device::default();
    /// let policy = Model {
    ///     embedding: EmbeddingConfig::new(9, 4).init(&device),
    ///     head: LinearConfig::new(4, 9).init(&device),
    /// };
    /// let reference = Frozen::new(&policy);
    /// let rows = vec![Sequence::new(&[5], &[6, 7]), Sequence::new(&[8, 4], &[3])];
    /// let batch = TokenBatch::new(rows, Padding::new(0), &device)?;
    ///
    /// let ours = batch.log_probs(&policy, Model::hidden)?;
    /// let relative = ours.relative_to(batch.reference(&reference, Model::hidden)?)?;
    /// assert_eq!(relative.log_ratio().into_data().to_vec::<f32>().unwrap(), [0.0, 0.0]);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the model returns does not fit these ids, or one another, in shape, number type or
    /// device.
    pub fn log_probs<M, O: ModelOutput>(
        &self,
        model: &M,
        forward: impl FnOnce(&M, Tensor<2, Int>) -> O,
    ) -> Result<SequenceLogProbs, InvalidInput> {
        let output = forward(model, self.ids.clone());
        let log_probs: TokenLogProbs = output.padded(self.ids.clone(), &self.completion_mask)?;
        Ok(log_probs.sequence())
    }

    /// Log-probabilities of the tokens from an output of a model, for whatever is done to tokens
    /// before they are summed: [`TokenLogProbs::from_output`] for these tensors.
    ///
    /// `output` is that of [`ids`](Self::ids). It decides the type of the result:
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use burn_preference::log_probs::WithStatistics;
    /// use burn_preference::tokens::{Padding, Sequence, TokenBatch};
    ///
    /// let device = Device::default();
    /// let batch = TokenBatch::new(vec![Sequence::new(&[1], &[2])], Padding::new(0), &device)?;
    /// let logits = Tensor::<3>::zeros([1, 2, 4], &device);
    ///
    /// let log_probs = batch.token_log_probs(logits.clone())?;
    /// assert_eq!(log_probs.sequence().lengths().into_scalar::<f32>(), 1.0);
    /// let (_, statistics) = batch.token_log_probs(WithStatistics(logits))?;
    /// assert_eq!(statistics.mean_logits().into_scalar::<f32>(), 0.0);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`log_probs`](Self::log_probs).
    pub fn token_log_probs<O: ModelOutput>(
        &self,
        output: O,
    ) -> Result<O::TokenLogProbs, InvalidInput> {
        output.padded(self.ids.clone(), &self.completion_mask)
    }

    /// Divergence of two models at each counted token, from their outputs of [`ids`](Self::ids):
    /// [`TokenDiscrepancy::from_outputs`] for these tensors.
    ///
    /// The reference is a constant: what it returns needs no `without_autodiff`. Its forward does,
    /// or the tape keeps it: give a [`Frozen`](crate::Frozen) model ids without autodiff.
    ///
    /// # Errors
    ///
    /// As [`TokenDiscrepancy::from_outputs`].
    pub fn discrepancy<O: ComparableOutput>(
        &self,
        kind: Discrepancy,
        policy: O,
        reference: O,
    ) -> Result<TokenDiscrepancy, InvalidInput> {
        TokenDiscrepancy::from_outputs(kind, policy, reference, self.completion_mask.clone())
    }

    /// [`log_probs`](Self::log_probs) of the reference: for
    /// [`relative_to`](SequenceLogProbs::relative_to). They cannot carry a graph.
    ///
    /// A [`Frozen`](crate::Frozen) model gets the ids without autodiff. A
    /// [`ReferenceCache`](crate::reference::cache::ReferenceCache) looks [`sequences`](Self::sequences)
    /// up and calls no forward.
    ///
    /// # Errors
    ///
    /// Of a model as [`log_probs`](Self::log_probs), of a cache its
    /// [`CacheError`](crate::reference::cache::CacheError).
    pub fn reference<M, O: ModelOutput, R: Reference<M>>(
        &self,
        reference: &R,
        forward: impl FnOnce(&M, Tensor<2, Int>) -> O,
    ) -> Result<SequenceLogProbs, R::Error> {
        reference.answer(&self.sequences, &self.ids.device(), |model| {
            let ids = self.ids.clone().without_autodiff();
            let mask = self.completion_mask.clone().without_autodiff();
            let output = forward(model, ids.clone()).without_autodiff();
            let log_probs: TokenLogProbs = output.padded(ids, &mask)?;
            Ok(log_probs.sequence())
        })
    }

    /// The same batch as constants of the device without autodiff.
    pub(super) fn without_autodiff(&self) -> Self {
        Self {
            ids: self.ids.clone().without_autodiff(),
            completion_mask: self.completion_mask.clone().without_autodiff(),
            pad_mask: self.pad_mask.clone().without_autodiff(),
            sequences: self.sequences.clone(),
        }
    }

    /// The value at the last token of each sequence, `[sequences]`, of the values that a model gives
    /// every token, `[sequences, time]`: the reward of a reward model. Padding is not read.
    ///
    /// The last token is the last one of the completion, whether it counts or not.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use burn_preference::tokens::{Padding, Sequence, TokenBatch};
    ///
    /// let device = Device::default();
    /// let sequences = vec![Sequence::new(&[5], &[6, 7]), Sequence::new(&[8], &[9])];
    /// let batch = TokenBatch::new(sequences, Padding::new(0), &device)?;
    /// let values = Tensor::<2>::from_floats([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], &device);
    /// assert_eq!(batch.at_end(values)?.into_data().to_vec::<f32>().unwrap(), [3.0, 5.0]);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `values` is not `[sequences, time]`, or on another device, or a sequence has no token.
    pub fn at_end(&self, values: Tensor<2>) -> Result<Tensor<1>, InvalidInput> {
        InvalidInput::check_shape("values", &self.ids.shape(), &values.shape())?;
        InvalidInput::check_device("values", &self.ids.device(), &values.device())?;
        let [rows, time] = values.dims();
        let mut ends: Vec<i64> = Vec::with_capacity(rows);
        for (row, sequence) in self.sequences.iter().enumerate() {
            let tokens = sequence.ids().len();
            let end = tokens.checked_sub(1).filter(|&end| end < time);
            let Some(end) = end.and_then(|end| end.try_into().ok()) else {
                let found = format!("{tokens} in row {row}");
                let expected = format!("1 to {time} tokens");
                return Err(InvalidInput::new("sequences", expected, found));
            };
            ends.push(end);
        }
        if rows == 0 {
            return Ok(values.reshape([0]));
        }
        let ends = Tensor::<1, Int>::from_data(TensorData::from(ends.as_slice()), &values.device());
        Ok(values.gather(1, ends.unsqueeze_dim(1)).squeeze_dim(1))
    }

    /// Values of `other`, whose completions are those of this batch after other prompts, at the places
    /// of this batch: `[sequences, time, width]`.
    ///
    /// The state that predicts a token of a completion there stands where this batch predicts it. So
    /// a teacher may see more than the policy, such as an example or the solution, and still be
    /// compared with it: [`discrepancy`](Self::discrepancy). What stands in place of prompts and of
    /// padding is unspecified. It is a copy: take hidden states, not logits. Nothing is read back.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use burn_preference::tokens::{Padding, Sequence, TokenBatch};
    ///
    /// let device = Device::default();
    /// let batch = |rows| TokenBatch::new(rows, Padding::new(0), &device);
    /// let ours = batch(vec![Sequence::new(&[5], &[6, 7])])?;
    /// let hinted = batch(vec![Sequence::new(&[8, 9, 5], &[6, 7])])?;
    ///
    /// let states = Tensor::<3>::from_floats([[[1.0], [2.0], [3.0], [4.0], [5.0]]], &device);
    /// let aligned = ours.aligned(&hinted, states)?; // 5 predicts 6 in both, and 6 predicts 7
    /// assert_eq!(aligned.into_data().to_vec::<f32>().unwrap(), [3.0, 4.0, 5.0]);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `values` is not `[sequences, time, …]` of `other`, or on another device. `other` has other
    /// completions, or one that stands after no prompt while it has one here: nothing predicts its
    /// first token.
    pub fn aligned(&self, other: &Self, values: Tensor<3>) -> Result<Tensor<3>, InvalidInput> {
        let [rows, time] = self.ids.dims();
        let [_, _, width] = values.dims();
        let [their_rows, their_time] = other.ids.dims();
        let expected = [their_rows, their_time, width].into();
        InvalidInput::check_shape("values", &expected, &values.shape())?;
        InvalidInput::check_device("values", &self.ids.device(), &values.device())?;
        if self.len() != other.len() || rows != their_rows {
            let expected = format!("{} sequences", self.len());
            return Err(InvalidInput::new("other", expected, other.len()));
        }
        let mut places: Vec<i32> = Vec::with_capacity(rows * time);
        for (row, (ours, theirs)) in self.sequences.iter().zip(&other.sequences).enumerate() {
            let (prompt, their_prompt) = (ours.prompt().len(), theirs.prompt().len());
            if ours.completion() != theirs.completion() {
                let expected = "the same completions";
                let found = format!("another one in row {row}");
                return Err(InvalidInput::new("other", expected, found));
            }
            if prompt > 0 && their_prompt == 0 && !ours.completion().is_empty() {
                let found = format!("none in row {row}");
                return Err(InvalidInput::new("other", "prompts", found));
            }
            for t in 0..time {
                let place = (t + their_prompt)
                    .saturating_sub(prompt)
                    .min(their_time - 1);
                // As many places as ids, which are fewer than 2³¹.
                places.push(i32::try_from(row * their_time + place).unwrap_or(i32::MAX));
            }
        }
        if rows == 0 {
            return Ok(Tensor::zeros(
                [0, time, width],
                (&values.device(), values.dtype()),
            ));
        }
        let places = Tensor::from_data(TensorData::from(places.as_slice()), &values.device());
        let values = values.reshape([rows * their_time, width]);
        Ok(values.select(0, places).reshape([rows, time, width]))
    }

    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }
}
