use burn::tensor::{Bool, FloatDType, Int, Tensor};

use super::mask::CompletionMask;
use super::sequence::SequenceLogProbs;
use crate::error::InvalidInput;
use crate::math::{sum_columns, upcast};

/// Log-probabilities of the counted tokens, one column per *predicted* position.
///
/// Column `t` belongs to token `t + 1`, predicted from the tokens `0..=t`: a batch of `time`
/// tokens has `time − 1` columns, and a `completion_mask` marks tokens, not predictions.
///
/// | you have | call |
/// |---|---|
/// | sequences on the host | [`TokenBatch::token_log_probs`](crate::tokens::TokenBatch::token_log_probs), which is the next |
/// | logits, or hidden states and a head | [`from_output`](Self::from_output) |
/// | log-probabilities | [`new`](Self::new) |
///
/// Then [`relative_to`](Self::relative_to) puts the reference's beside them, where tokens are
/// weighed or clamped; [`sequence`](Self::sequence) sums them for an objective.
#[derive(Debug, Clone)]
pub struct TokenLogProbs {
    log_probs: Tensor<2>,
    mask: Tensor<2, Bool>,
}

impl TokenLogProbs {
    /// Takes per-token log-probabilities that are there already, one column per prediction.
    ///
    /// # Shapes
    ///
    /// - `log_probs`, `mask`: `[batch, predictions]`; column `t` of both belongs to the same token
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn new(log_probs: Tensor<2>, mask: Tensor<2, Bool>) -> Result<Self, InvalidInput> {
        InvalidInput::check_shape("mask", &log_probs.shape(), &mask.shape())?;
        InvalidInput::check_device("mask", &log_probs.device(), &mask.device())?;
        Ok(Self::masked(upcast(log_probs), mask))
    }

    pub(super) fn masked(log_probs: Tensor<2>, mask: Tensor<2, Bool>) -> Self {
        // Filled, never multiplied: −∞ · 0 is NaN.
        let log_probs = log_probs.mask_fill(mask.clone().bool_not(), 0.0);
        Self::zero_elsewhere(log_probs, mask)
    }

    /// Takes log-probabilities that are 0 already where `mask` is false.
    pub(super) fn zero_elsewhere(log_probs: Tensor<2>, mask: Tensor<2, Bool>) -> Self {
        Self { log_probs, mask }
    }

    /// Checks that every counted token is inside the vocabulary.
    ///
    /// Reads both tensors back: for the place where a batch is built, not for the training step.
    ///
    /// # Errors
    ///
    /// Shapes differ, or a counted token is outside `0..vocab`; the error names the first one.
    pub fn check_tokens(
        tokens: &Tensor<2, Int>,
        completion_mask: &Tensor<2, Bool>,
        vocab: usize,
    ) -> Result<(), InvalidInput> {
        InvalidInput::check_shape("completion_mask", &tokens.shape(), &completion_mask.shape())?;
        let [_, time] = tokens.dims();
        let tokens = InvalidInput::read("tokens", tokens)?;
        let mask = InvalidInput::read("completion_mask", completion_mask)?;
        for (position, (token, counted)) in
            tokens.iter::<i64>().zip(mask.iter::<bool>()).enumerate()
        {
            if counted && usize::try_from(token).map_or(true, |token| token >= vocab) {
                let (row, column) = (position / time, position % time);
                return Err(InvalidInput::new(
                    "tokens",
                    format!("ids in 0..{vocab} where the completion mask is true"),
                    format!("{token} at [{row}, {column}]"),
                ));
            }
        }
        Ok(())
    }

    /// The same log-probabilities, counting only those tokens that `mask` marks as well.
    ///
    /// One pass over the logits serves two masks: take prompt and completion from the logits,
    /// then restrict a clone to the completion.
    ///
    /// # Shapes
    ///
    /// - `mask`: `[batch, time]`, over tokens as in [`from_output`](Self::from_output)
    ///
    /// # Errors
    ///
    /// `mask` has another shape or device.
    pub fn restrict(self, mask: impl Into<CompletionMask>) -> Result<Self, InvalidInput> {
        let [batch, predictions] = self.mask.dims();
        let mask = mask.into();
        mask.check("mask", [batch, predictions + 1], &self.mask.device())?;
        let both = self.mask.bool_and(mask.predictions());
        Ok(Self::masked(self.log_probs, both))
    }

    /// The log-probabilities, 0 where [`mask`](Self::mask) is false; `[batch, time − 1]`, nats.
    pub fn log_probs(&self) -> Tensor<2> {
        self.log_probs.clone()
    }

    /// Mask of the columns that count, `[batch, time − 1]`.
    pub fn mask(&self) -> Tensor<2, Bool> {
        self.mask.clone()
    }

    /// Every token times its weight; a weight of a token that does not count is never read.
    pub(crate) fn times(self, weights: &Tensor<2>) -> Self {
        let weights = weights.clone().cast(self.log_probs.dtype());
        let weights = weights.mask_fill(self.mask.clone().bool_not(), 0.0);
        Self::masked(self.log_probs * weights, self.mask)
    }

    /// Rows `start..start + length` of the batch.
    pub(crate) fn rows(&self, start: usize, length: usize) -> Self {
        Self {
            log_probs: self.log_probs().narrow(0, start, length),
            mask: self.mask().narrow(0, start, length),
        }
    }

    /// Sums and lengths of the sequences.
    pub fn sequence(&self) -> SequenceLogProbs {
        let dtype: FloatDType = self.log_probs.dtype().into();
        SequenceLogProbs::from_parts(
            sum_columns(self.log_probs.clone()),
            self.mask
                .clone()
                .float()
                .cast(dtype)
                .sum_dim(1)
                .squeeze_dim(1),
        )
    }
}
