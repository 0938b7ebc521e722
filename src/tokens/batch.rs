use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use super::Sequence;
use crate::error::InvalidInput;

/// How sequences of several lengths become rows of one.
///
/// They are padded at their end: a causal model then sees no padding before a token that counts.
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

    /// At most `tokens`, a multiple.
    pub(super) fn round_down(self, tokens: usize) -> usize {
        tokens - tokens % self.multiple_of
    }

    /// Rows and their length once these sequences are padded.
    pub fn dims(&self, sequences: &[Sequence]) -> [usize; 2] {
        let longest = sequences.iter().map(|s| s.ids().len()).max().unwrap_or(0);
        [sequences.len(), self.width(longest)]
    }

    /// How wide a batch is whose longest row has so many tokens: two at least, since fewer predict
    /// nothing.
    pub(super) fn width(self, longest: usize) -> usize {
        longest.max(2).next_multiple_of(self.multiple_of)
    }
}

/// An id in the narrowest default integers of Burn's backends.
pub(super) fn signed(id: u32) -> Result<i32, InvalidInput> {
    i32::try_from(id).map_err(|_| InvalidInput::new("tokens", "ids below 2^31", id))
}

/// Sequences as tensors, `[sequences, time]` each.
///
/// ```
/// use burn::tensor::Device;
/// use burn_preference::tokens::{Padding, Sequence, TokenBatch};
///
/// let sequences = vec![Sequence::new(&[5], &[6, 7]), Sequence::new(&[8, 9], &[4, 3])];
/// let batch = TokenBatch::new(sequences, Padding::new(0), &Device::default())?;
/// let ids = batch.ids.into_data().iter::<i64>().collect::<Vec<_>>();
/// assert_eq!(ids, [5, 6, 7, 0, 8, 9, 4, 3]);
/// let counted = batch.completion_mask.int().sum().into_scalar::<i64>();
/// assert_eq!(counted, 4);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TokenBatch {
    /// Token ids.
    pub ids: Tensor<2, Int>,
    /// True for the tokens of completions that count.
    pub completion_mask: Tensor<2, Bool>,
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
    /// An id is beyond 2³¹ − 1: the narrowest default integers of Burn's backends have 32 bits.
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
            completion_mask: Tensor::from_data(TensorData::new(completion, shape), device),
            pad_mask: Tensor::from_data(TensorData::new(padded, shape), device),
            sequences,
        })
    }

    /// Of the values that a model gives every token, `[sequences, time]`, that of each sequence's
    /// last token, `[sequences]`: the reward of a reward model. Padding is not read.
    ///
    /// Its last token is the last of its completion, whether that counts or not.
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

    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }
}
