use burn::tensor::{Bool, FloatDType, Int, Tensor};

use super::predictions::{Predictions, Walked, shift_left};
use super::{LmHead, RelativeTokenLogProbs, SequenceLogProbs, TokenStatistics, head};
use crate::error::InvalidInput;
use crate::kernel;
use crate::math::{sum_columns, upcast};

/// Log-probabilities of the counted tokens, one column per *predicted* position.
///
/// Column `t` belongs to token `t + 1`, predicted from the tokens `0..=t`: a batch of `time`
/// tokens has `time − 1` columns, and a `completion_mask` marks tokens, not predictions.
///
/// | you have | call |
/// |---|---|
/// | token ids and a model | [`TokenBatch::token_log_probs`](crate::tokens::TokenBatch::token_log_probs), which is one of the next two |
/// | hidden states and a head | [`from_hidden`](Self::from_hidden): all logits never exist at once |
/// | logits | [`from_logits`](Self::from_logits) |
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
    /// From the hidden states before the head, without the logits `[batch, time, vocab]`.
    ///
    /// Equal to [`from_logits`](Self::from_logits) of what the head returns. Rows that predict no
    /// counted token are dropped before the product with the head, the others are taken block by
    /// block, and the backward has its gradients in closed form:
    ///
    /// | head | products of 2·rows·hidden·vocab | kept from forward to backward |
    /// |---|---|---|
    /// | no gradient (reference) | 1 | nothing |
    /// | frozen, hidden states trained | 2 | a number per hidden state |
    /// | trained | 4; 3 where logits are kept | two numbers per row, and 8 MiB of logits or what [`LmHead::with_retained_bytes`] allows |
    ///
    /// # Shapes
    ///
    /// - `hidden`: `[batch, time, hidden]`, aligned with `tokens`: row `t` predicts token `t + 1`
    /// - `tokens`: `[batch, time]`, prompt and completion
    /// - `completion_mask`: `[batch, time]`, true where a token counts
    ///
    /// # Numerics
    ///
    /// As [`from_logits`](Self::from_logits): f32 at least from the logits on, NaN for counted
    /// ids outside the vocabulary. The completion mask is read back, once, to know which rows to
    /// drop.
    ///
    /// # Errors
    ///
    /// Shapes, dtypes or devices that do not fit together, fewer than two time steps, or no
    /// vocabulary.
    ///
    /// # Examples
    ///
    /// ```
    /// use burn::tensor::{Bool, Device, Int, Tensor};
    /// use burn_preference::{LmHead, TokenLogProbs};
    ///
    /// let device = Device::default();
    /// // Two words and hidden states of one number: logits (h, −h).
    /// let head = LmHead::new(Tensor::from_floats([[1.0], [-1.0]], &device));
    /// let hidden = Tensor::<3>::from_floats([[[0.5], [9.0]]], &device);
    /// let tokens = Tensor::<2, Int>::from_ints([[1, 0]], &device);
    /// let mask = Tensor::<2, Bool>::from_bool([[false, true]], &device);
    ///
    /// let log_probs = TokenLogProbs::from_hidden(hidden, &head, tokens, mask)?;
    /// let expected = -(1.0 + (-1.0_f32).exp()).ln(); // ln σ(0.5 − (−0.5))
    /// assert!((log_probs.log_probs().into_scalar::<f32>() - expected).abs() < 1e-6);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    pub fn from_hidden(
        hidden: Tensor<3>,
        head: &LmHead,
        tokens: Tensor<2, Int>,
        completion_mask: Tensor<2, Bool>,
    ) -> Result<Self, InvalidInput> {
        let (log_probs, _) = head::walk(hidden, head, tokens, completion_mask, false)?;
        Ok(log_probs)
    }

    /// [`from_hidden`](Self::from_hidden), and what else the same walk tells.
    ///
    /// # Errors
    ///
    /// As [`from_hidden`](Self::from_hidden).
    #[allow(clippy::missing_panics_doc, reason = "they are there when asked for")]
    pub fn from_hidden_with_statistics(
        hidden: Tensor<3>,
        head: &LmHead,
        tokens: Tensor<2, Int>,
        completion_mask: Tensor<2, Bool>,
    ) -> Result<(Self, TokenStatistics), InvalidInput> {
        let (log_probs, statistics) = head::walk(hidden, head, tokens, completion_mask, true)?;
        Ok((log_probs, statistics.expect("asked for")))
    }

    /// From the logits of a causal model over whole sequences; the shift happens here.
    ///
    /// ```text
    /// log π(y_t) = logits[t − 1, y_t] − ln Σ_v exp(logits[t − 1, v])
    /// ```
    ///
    /// # Shapes
    ///
    /// - `logits`: `[batch, time, vocab]`, aligned with `tokens`: row `t` predicts token `t + 1`.
    ///   They are final: scaled and capped already, as your model's forward returns them
    /// - `tokens`: `[batch, time]`, prompt and completion
    /// - `completion_mask`: `[batch, time]`, true where a token counts; false for the prompt and
    ///   for padding on either side
    ///
    /// # Numerics
    ///
    /// bf16 and f16 logits are upcast to f32 before the normaliser. Logits of positions that do
    /// not count may hold anything, NaN included: they reach neither value nor gradient. Token 0
    /// never counts, since nothing predicts it. A counted token outside the vocabulary gets NaN,
    /// never a plausible number: check ids on the host with [`check_tokens`](Self::check_tokens)
    /// where the batch is built.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit together, fewer than two time steps (nothing is predicted),
    /// no vocabulary, or several devices.
    pub fn from_logits(
        logits: Tensor<3>,
        tokens: Tensor<2, Int>,
        completion_mask: Tensor<2, Bool>,
    ) -> Result<Self, InvalidInput> {
        let (log_probs, _) = walk(logits, tokens, completion_mask, false)?;
        Ok(log_probs)
    }

    /// [`from_logits`](Self::from_logits), and what else the same walk tells.
    ///
    /// # Errors
    ///
    /// As [`from_logits`](Self::from_logits).
    #[allow(clippy::missing_panics_doc, reason = "they are there when asked for")]
    pub fn from_logits_with_statistics(
        logits: Tensor<3>,
        tokens: Tensor<2, Int>,
        completion_mask: Tensor<2, Bool>,
    ) -> Result<(Self, TokenStatistics), InvalidInput> {
        let (log_probs, statistics) = walk(logits, tokens, completion_mask, true)?;
        Ok((log_probs, statistics.expect("asked for")))
    }

    /// From per-token log-probabilities that are there already, one column per prediction.
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
        let tokens = tokens.to_data();
        let mask = completion_mask.to_data();
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
    /// - `mask`: `[batch, time]`, over tokens as in [`from_logits`](Self::from_logits)
    ///
    /// # Errors
    ///
    /// `mask` has another shape or device.
    pub fn restrict(self, mask: Tensor<2, Bool>) -> Result<Self, InvalidInput> {
        let [batch, predictions] = self.mask.dims();
        InvalidInput::check_shape("mask", &[batch, predictions + 1].into(), &mask.shape())?;
        InvalidInput::check_device("mask", &self.mask.device(), &mask.device())?;
        let mask = self
            .mask
            .clone()
            .bool_and(shift_left(mask).narrow(1, 0, predictions));
        Ok(Self::masked(self.log_probs, mask))
    }

    /// The log-probabilities, 0 where [`mask`](Self::mask) is false; `[batch, time − 1]`, nats.
    pub fn log_probs(&self) -> Tensor<2> {
        self.log_probs.clone()
    }

    /// Which columns count; `[batch, time − 1]`.
    pub fn mask(&self) -> Tensor<2, Bool> {
        self.mask.clone()
    }

    /// Every token times its weight; a weight of a token that does not count is never read.
    pub(super) fn times(self, weights: &Tensor<2>) -> Self {
        let weights = weights.clone().cast(self.log_probs.dtype());
        let weights = weights.mask_fill(self.mask.clone().bool_not(), 0.0);
        Self::masked(self.log_probs * weights, self.mask)
    }

    /// Puts the reference's log-probabilities of the same tokens beside the policy's.
    ///
    /// No gradient flows into the reference, whatever it was computed with. The masks are not
    /// compared, since that would wait for the device: give both sides the same one. The metric
    /// `length_mismatches` shows rows of which they count unequally many tokens.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn relative_to(self, reference: Self) -> Result<RelativeTokenLogProbs, InvalidInput> {
        let (ours, theirs) = (self.log_probs(), reference.log_probs());
        InvalidInput::check_shape("reference", &ours.shape(), &theirs.shape())?;
        InvalidInput::check_device("reference", &ours.device(), &theirs.device())?;
        let theirs = theirs.without_autodiff().cast(ours.dtype());
        let reference = Self::masked(theirs, reference.mask());
        Ok(RelativeTokenLogProbs::of(self, reference))
    }

    /// Rows `start..start + length` of the batch.
    pub(crate) fn rows(&self, start: usize, length: usize) -> Self {
        Self {
            log_probs: self.log_probs().narrow(0, start, length),
            mask: self.mask().narrow(0, start, length),
        }
    }

    /// Sum and length per sequence.
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

pub(super) fn walk(
    logits: Tensor<3>,
    tokens: Tensor<2, Int>,
    completion_mask: Tensor<2, Bool>,
    statistics: bool,
) -> Result<Walked, InvalidInput> {
    check_logits(&logits)?;
    let [batch, time, vocab] = logits.dims();
    let shape = [batch, time, vocab];
    let predictions = Predictions::new(shape, &logits.device(), tokens, completion_mask)?;
    let (values, by_products) = kernel::logits_log_probs(
        logits.reshape([batch * time, vocab]),
        predictions.targets(),
        predictions.counted(),
        statistics,
    );
    let statistics = by_products.map(|by_products| predictions.statistics(&by_products));
    Ok((predictions.log_probs(values), statistics))
}

/// Something is predicted, from some vocabulary.
pub(super) fn check_logits(logits: &Tensor<3>) -> Result<(), InvalidInput> {
    let [_, time, vocab] = logits.dims();
    if time < 2 || vocab == 0 {
        let found = format!("shape {:?}", logits.dims());
        return Err(InvalidInput::new("logits", "time ≥ 2 and vocab ≥ 1", found));
    }
    Ok(())
}
