//! Token ids on the host, and how they become a batch of tensors.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::error::InvalidInput;

/// The token ids of a prompt and one completion of it, and what else its log-probability depends
/// on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sequence {
    ids: Vec<u32>,
    prompt: usize,
    /// One per token of the completion; `None` where all of them count.
    counted: Option<Vec<bool>>,
    context: Option<[u8; 32]>,
}

impl Sequence {
    /// A prompt and its completion, of which every token counts.
    pub fn new(prompt: &[u32], completion: &[u32]) -> Self {
        Self {
            ids: [prompt, completion].concat(),
            prompt: prompt.len(),
            counted: None,
            context: None,
        }
    }

    /// Counts only those tokens of the completion that are marked here, such as the turns of the
    /// assistant in a conversation, without what a tool answered.
    ///
    /// # Errors
    ///
    /// There is not one mark per token of the completion.
    pub fn with_counted(self, counted: &[bool]) -> Result<Self, InvalidInput> {
        let tokens = self.completion().len();
        if counted.len() != tokens {
            let expected = format!("{tokens} marks, one per token of the completion");
            return Err(InvalidInput::new("counted", expected, counted.len()));
        }
        // One form per meaning, so that equal sequences have equal hashes.
        let all = counted.iter().all(|&counted| counted);
        Ok(Self {
            counted: (!all).then(|| counted.to_vec()),
            ..self
        })
    }

    /// The hash of what the model sees beside the tokens: images, audio, a document. This crate
    /// only tells sequences apart by it.
    pub fn with_context(self, hash: [u8; 32]) -> Self {
        Self {
            context: Some(hash),
            ..self
        }
    }

    /// Prompt, then completion.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The ids of the prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.ids[..self.prompt]
    }

    /// The ids of the completion.
    pub fn completion(&self) -> &[u32] {
        &self.ids[self.prompt..]
    }

    /// Which tokens of the completion count; `None` where all of them do.
    pub fn counted(&self) -> Option<&[bool]> {
        self.counted.as_deref()
    }

    /// The hash of what the model sees beside the tokens.
    pub fn context(&self) -> Option<&[u8; 32]> {
        self.context.as_ref()
    }

    /// How many tokens a log-probability of this sequence sums: those of the completion that
    /// count. The first token of all is never among them, since nothing predicts it.
    pub fn length(&self) -> usize {
        (1..self.ids.len()).filter(|&t| self.counts(t)).count()
    }

    /// Whether token `t` is of the completion and counts.
    fn counts(&self, t: usize) -> bool {
        let inside = self.prompt..self.ids.len();
        let counted = self.counted.as_ref();
        inside.contains(&t) && counted.is_none_or(|counted| counted[t - self.prompt])
    }
}

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
        let longest = sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0);
        let time = longest.max(2).next_multiple_of(padding.multiple_of);
        let shape = [sequences.len(), time];
        let mut tokens = Vec::with_capacity(shape[0] * time);
        let mut completion = Vec::with_capacity(shape[0] * time);
        let mut padded = Vec::with_capacity(shape[0] * time);
        for sequence in &sequences {
            for t in 0..time {
                let id = *sequence.ids.get(t).unwrap_or(&padding.id);
                tokens.push(
                    i32::try_from(id)
                        .map_err(|_| InvalidInput::new("tokens", "ids below 2^31", id))?,
                );
                completion.push(sequence.counts(t));
                padded.push(t >= sequence.ids.len());
            }
        }
        Ok(Self {
            ids: Tensor::from_data(TensorData::new(tokens, shape), device),
            completion_mask: Tensor::from_data(TensorData::new(completion, shape), device),
            pad_mask: Tensor::from_data(TensorData::new(padded, shape), device),
            sequences,
        })
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
