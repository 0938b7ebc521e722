use burn::tensor::{Int, Tensor};

use super::head::LmHead;
use super::hidden::from_hidden;
use super::logits::from_logits;
use super::mask::CompletionMask;
use super::packed::{PackedPositions, from_packed_hidden, from_packed_logits};
use super::predictions::TokenResults;
use super::statistics::TokenStatistics;
use super::token::TokenLogProbs;
use crate::error::InvalidInput;

/// Output of a model: logits, or the hidden states before them.
///
/// | type | holds |
/// |---|---|
/// | `Tensor<3>` | logits `[batch, time, vocab]` |
/// | `(Tensor<3>, LmHead)` | hidden states `[batch, time, hidden]` and the head: all logits never exist at once |
/// | [`WithStatistics`] | one of these, of which the statistics are wanted as well |
///
/// It is sealed.
pub trait ModelOutput: sealed::ModelOutput {
    /// Result for the tokens: [`TokenLogProbs`], and with them [`TokenStatistics`] if they are
    /// wanted.
    type TokenLogProbs: TokenResults;
}

/// An output of a model of which [`TokenStatistics`] are wanted, beside [`TokenLogProbs`].
///
/// One pass over the logits gives both.
///
/// ```
/// use burn::tensor::{Bool, Device, Int, Tensor};
/// use burn_preference::TokenLogProbs;
/// use burn_preference::log_probs::WithStatistics;
///
/// let device = Device::default();
/// let logits = Tensor::<3>::zeros([1, 2, 8], &device);
/// let tokens = Tensor::<2, Int>::from_ints([[1, 3]], &device);
/// let mask = Tensor::<2, Bool>::from_bool([[false, true]], &device);
///
/// let (log_probs, statistics) =
///     TokenLogProbs::from_output(WithStatistics(logits), tokens, mask)?;
/// let surprise = -log_probs.log_probs(); // ln 8 of every word, and so is the entropy
/// let difference = (surprise - statistics.entropy()).into_scalar::<f32>();
/// assert!(difference.abs() < 1e-6);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
#[derive(Debug, Clone)]
pub struct WithStatistics<O>(pub O);

mod sealed {
    use super::{CompletionMask, Int, InvalidInput, PackedPositions, Tensor, TokenResults};

    pub trait ModelOutput: Sized {
        /// Results of a padded batch.
        fn padded<R: TokenResults>(
            self,
            tokens: Tensor<2, Int>,
            completion_mask: &CompletionMask,
        ) -> Result<R, InvalidInput>;

        /// Results of a packed batch.
        fn packed<R: TokenResults>(self, positions: &PackedPositions) -> Result<R, InvalidInput>;

        fn without_autodiff(self) -> Self;
    }
}

impl ModelOutput for Tensor<3> {
    type TokenLogProbs = TokenLogProbs;
}

impl sealed::ModelOutput for Tensor<3> {
    fn padded<R: TokenResults>(
        self,
        tokens: Tensor<2, Int>,
        completion_mask: &CompletionMask,
    ) -> Result<R, InvalidInput> {
        from_logits(self, tokens, completion_mask)
    }

    fn packed<R: TokenResults>(self, positions: &PackedPositions) -> Result<R, InvalidInput> {
        from_packed_logits(self, positions)
    }

    fn without_autodiff(self) -> Self {
        Tensor::without_autodiff(self)
    }
}

impl ModelOutput for (Tensor<3>, LmHead) {
    type TokenLogProbs = TokenLogProbs;
}

impl sealed::ModelOutput for (Tensor<3>, LmHead) {
    fn padded<R: TokenResults>(
        self,
        tokens: Tensor<2, Int>,
        completion_mask: &CompletionMask,
    ) -> Result<R, InvalidInput> {
        let (hidden, head) = self;
        from_hidden(hidden, &head, tokens, completion_mask)
    }

    fn packed<R: TokenResults>(self, positions: &PackedPositions) -> Result<R, InvalidInput> {
        let (hidden, head) = self;
        from_packed_hidden(hidden, &head, positions)
    }

    fn without_autodiff(self) -> Self {
        let (hidden, head) = self;
        (hidden.without_autodiff(), head.without_autodiff())
    }
}

impl<O: ModelOutput> ModelOutput for WithStatistics<O> {
    type TokenLogProbs = (TokenLogProbs, TokenStatistics);
}

impl<O: sealed::ModelOutput> sealed::ModelOutput for WithStatistics<O> {
    fn padded<R: TokenResults>(
        self,
        tokens: Tensor<2, Int>,
        completion_mask: &CompletionMask,
    ) -> Result<R, InvalidInput> {
        self.0.padded(tokens, completion_mask)
    }

    fn packed<R: TokenResults>(self, positions: &PackedPositions) -> Result<R, InvalidInput> {
        self.0.packed(positions)
    }

    fn without_autodiff(self) -> Self {
        Self(self.0.without_autodiff())
    }
}

impl TokenLogProbs {
    /// Computes log-probabilities from the output of a causal model over whole sequences: logits,
    /// or hidden states and the head. The shift happens here.
    ///
    /// ```text
    /// log π(y_t) = logits[t − 1, y_t] − ln Σ_v exp(logits[t − 1, v])
    /// ```
    ///
    /// Take hidden states and the head, `(hidden, head)`, where you can. Positions that predict no
    /// counted token are dropped before the product with the head, the logits are computed block by
    /// block, and the backward has its gradients in closed form. A product is one of
    /// 2·positions·hidden·vocab operations:
    ///
    /// | head | products, forward and backward | kept from forward to backward |
    /// |---|---|---|
    /// | no gradient (reference) | 1 | nothing |
    /// | frozen, hidden states trained | 2 | a number per hidden state |
    /// | trained | 4; 3 where logits are kept | two numbers per position, and one and a half times as many bytes of logits as the weight's gradient has (8 MiB at least), or what [`LmHead::with_retained_bytes`] allows |
    ///
    /// With [`WithStatistics`]`(output)` the result is a pair of [`TokenLogProbs`] and
    /// [`TokenStatistics`].
    ///
    /// # Shapes
    ///
    /// - `output`: `[batch, time, vocab]` or `[batch, time, hidden]`, aligned with `tokens`:
    ///   position `t` predicts token `t + 1`. Logits are final: scaled and capped already, as your
    ///   model's forward returns them
    /// - `tokens`: `[batch, time]`, prompt and completion
    /// - `completion_mask`: `[batch, time]`, true where a token counts; false for the prompt and
    ///   for padding on either side. A [`CompletionMask`], or a tensor: with a head that one is read
    ///   back, to know which positions to drop. The former is as easily made, of marks on the host,
    ///   and then nothing is read
    ///
    /// # Numerics
    ///
    /// bf16 and f16 logits are upcast to f32 before the normaliser. The output at positions that
    /// do not count may be anything, NaN included: it reaches neither value nor gradient. Token 0
    /// never counts, since nothing predicts it. A counted token outside the vocabulary gets NaN,
    /// never a plausible number: check ids on the host with [`check_tokens`](Self::check_tokens)
    /// where the batch is built.
    ///
    /// # Errors
    ///
    /// Shapes, number types or devices do not fit together, there are fewer than two time steps
    /// (nothing is predicted), or there is no vocabulary. Or the device fails to compute a mask that
    /// is read back.
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
    /// let log_probs = TokenLogProbs::from_output((hidden, head), tokens, mask)?;
    /// let expected = -(1.0 + (-1.0_f32).exp()).ln(); // ln σ(0.5 − (−0.5))
    /// assert!((log_probs.log_probs().into_scalar::<f32>() - expected).abs() < 1e-6);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    pub fn from_output<O: ModelOutput>(
        output: O,
        tokens: Tensor<2, Int>,
        completion_mask: impl Into<CompletionMask>,
    ) -> Result<O::TokenLogProbs, InvalidInput> {
        output.padded(tokens, &completion_mask.into())
    }
}
