use burn::tensor::{Bool, Int, Tensor};

use super::batch::TokenBatch;
use crate::error::InvalidInput;
use crate::log_probs::{CompletionMask, ModelOutput, SequenceLogProbs, TokenLogProbs};

/// Tokens and their masks as tensors of your own, `[rows, time]` each, padded on either side.
/// [`TokenBatch`] makes them of ids on the host.
///
/// ```
/// use burn::tensor::{Bool, Device, Int, Tensor};
/// use burn_preference::tokens::TokenTensors;
///
/// let device = Device::default();
/// let ids = Tensor::<2, Int>::from_ints([[7, 1, 0]], &device);
/// let counted = Tensor::<2, Bool>::from_bool([[false, false, true]], &device);
/// let padded = Tensor::<2, Bool>::from_bool([[true, false, false]], &device);
/// let tokens = TokenTensors::new(ids, counted, padded)?;
///
/// // A model that finds its words equally likely, whatever it has read.
/// let words = 8;
/// let log_probs = tokens.log_probs(&words, |&words, ids| {
///     let [rows, time] = ids.dims();
///     Tensor::<3>::zeros([rows, time, words], &ids.device())
/// })?;
/// assert!((log_probs.sum().into_scalar::<f32>() + 8_f32.ln()).abs() < 1e-6);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TokenTensors {
    /// Token ids, `[rows, time]`.
    pub ids: Tensor<2, Int>,
    /// True for the tokens that count.
    pub completion_mask: CompletionMask,
    /// True for padding: what Burn's attention calls `mask_pad`.
    pub pad_mask: Tensor<2, Bool>,
}

impl TokenTensors {
    /// Takes tensors of your own.
    ///
    /// # Shapes
    ///
    /// - `ids`: `[rows, time]`
    /// - `completion_mask`: `[rows, time]`, true where a token counts: a tensor, or a
    ///   [`CompletionMask`] of marks on the host, which no pass reads back
    /// - `pad_mask`: `[rows, time]`, true for padding
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn new(
        ids: Tensor<2, Int>,
        completion_mask: impl Into<CompletionMask>,
        pad_mask: Tensor<2, Bool>,
    ) -> Result<Self, InvalidInput> {
        let completion_mask = completion_mask.into();
        completion_mask.check("completion_mask", ids.dims(), &ids.device())?;
        InvalidInput::check_shape("pad_mask", &ids.shape(), &pad_mask.shape())?;
        InvalidInput::check_device("pad_mask", &ids.device(), &pad_mask.device())?;
        Ok(Self {
            ids,
            completion_mask,
            pad_mask,
        })
    }

    /// Sum and length of the completion of each row under `model`: [`TokenBatch::log_probs`] of these
    /// tensors.
    ///
    /// # Errors
    ///
    /// As [`TokenBatch::log_probs`].
    pub fn log_probs<M, O: ModelOutput>(
        &self,
        model: &M,
        forward: impl FnOnce(&M, Tensor<2, Int>) -> O,
    ) -> Result<SequenceLogProbs, InvalidInput> {
        let output = forward(model, self.ids.clone());
        let log_probs: TokenLogProbs = output.padded(self.ids.clone(), &self.completion_mask)?;
        Ok(log_probs.sequence())
    }
}

impl From<&TokenBatch> for TokenTensors {
    fn from(batch: &TokenBatch) -> Self {
        Self {
            ids: batch.ids.clone(),
            completion_mask: batch.completion_mask.clone(),
            pad_mask: batch.pad_mask.clone(),
        }
    }
}
