use burn::tensor::{Bool, DType, FloatDType, Int, Tensor};

use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;
use crate::math::logsumexp;

/// Log-probabilities of the counted tokens, one column per *predicted* position.
///
/// Column `t` belongs to token `t + 1`, predicted from the tokens `0..=t`: a batch of `time`
/// tokens has `time − 1` columns, and a `completion_mask` marks tokens, not predictions.
#[derive(Debug, Clone)]
pub struct TokenLogProbs {
    log_probs: Tensor<2>,
    mask: Tensor<2, Bool>,
}

impl TokenLogProbs {
    /// From the logits of a causal model over whole sequences; the shift happens here.
    ///
    /// ```text
    /// log π(y_t) = logits[t − 1, y_t] − ln Σ_v exp(logits[t − 1, v])
    /// ```
    ///
    /// # Shapes
    ///
    /// - `logits`: `[batch, time, vocab]`, aligned with `tokens`: row `t` predicts token `t + 1`
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
        let [batch, time, vocab] = logits.dims();
        InvalidInput::check_shape("tokens", &[batch, time].into(), &tokens.shape())?;
        InvalidInput::check_device("tokens", &logits.device(), &tokens.device())?;
        let counted = CountedLogits::new(logits, completion_mask)?;

        let targets = roll_left(tokens);
        let inside = targets
            .clone()
            .greater_equal_elem(0)
            .bool_and(targets.clone().lower_elem(vocab as i64));
        let outside = counted.mask.clone().bool_and(inside.clone().bool_not());
        let readable = counted.mask.clone().bool_and(inside);
        let targets = targets.mask_fill(readable.bool_not(), 0);

        let logits = counted.logits.clone();
        let chosen = logits.clone().gather(2, targets.unsqueeze_dim(2));
        let log_probs = (chosen - logsumexp(logits)).squeeze_dim::<2>(2);
        Ok(counted.finish(log_probs.mask_fill(outside, f64::NAN)))
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

    fn masked(log_probs: Tensor<2>, mask: Tensor<2, Bool>) -> Self {
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

    /// Rows `start..start + length` of the batch.
    pub(crate) fn rows(&self, start: usize, length: usize) -> Self {
        Self {
            log_probs: self.log_probs().narrow(0, start, length),
            mask: self.mask().narrow(0, start, length),
        }
    }

    /// ln Σ_v π(v)² of every counted position: how likely two samples are to be equal.
    ///
    /// Without gradient. [`wpo_weights`](crate::modifier::wpo_weights) compares it with the
    /// log-probability of the token that stands there.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[batch, time, vocab]`, aligned as in [`from_logits`](Self::from_logits)
    /// - `completion_mask`: `[batch, time]`
    ///
    /// # Errors
    ///
    /// As [`from_logits`](Self::from_logits).
    pub fn collisions(
        logits: Tensor<3>,
        completion_mask: Tensor<2, Bool>,
    ) -> Result<Self, InvalidInput> {
        let counted = CountedLogits::new(logits.without_autodiff(), completion_mask)?;
        let x = counted.logits.clone();
        let log_sum_squares = logsumexp(x.clone() * 2) - logsumexp(x) * 2;
        Ok(counted.finish(log_sum_squares.squeeze_dim(2)))
    }

    /// Sum and length per sequence.
    pub fn sequence(&self) -> SequenceLogProbs {
        let dtype: FloatDType = self.log_probs.dtype().into();
        SequenceLogProbs::from_parts(
            self.log_probs.clone().sum_dim(1).squeeze_dim(1),
            self.mask
                .clone()
                .float()
                .cast(dtype)
                .sum_dim(1)
                .squeeze_dim(1),
        )
    }
}

/// K = Σ_t KL(π° ‖ π) over the counted positions of each sequence, `[batch]`, nats: TDPO's column.
///
/// Gradients flow into the policy's logits, none into the reference's.
///
/// # Shapes
///
/// - `policy`, `reference`: logits `[batch, time, vocab]`, aligned as in
///   [`TokenLogProbs::from_logits`]
/// - `completion_mask`: `[batch, time]`
///
/// # Errors
///
/// As [`TokenLogProbs::from_logits`].
pub fn sequence_kl(
    policy: Tensor<3>,
    reference: Tensor<3>,
    completion_mask: Tensor<2, Bool>,
) -> Result<Tensor<1>, InvalidInput> {
    InvalidInput::check_shape("reference", &policy.shape(), &reference.shape())?;
    let policy = CountedLogits::new(policy, completion_mask.clone())?;
    let reference = CountedLogits::new(reference.without_autodiff(), completion_mask)?;
    let theirs = reference.log_softmax().cast(policy.logits.dtype());
    let ours = policy.log_softmax();
    // A token that the reference rules out contributes 0·(−∞) = 0.
    let ruled_out = theirs.clone().equal_elem(f64::NEG_INFINITY);
    let terms = (theirs.clone().exp() * (theirs - ours)).mask_fill(ruled_out, 0.0);
    let kl = policy.finish(terms.sum_dim(2).squeeze_dim(2));
    Ok(kl.sequence().sum())
}

/// Logits of which only those rows are read that predict a counted token.
struct CountedLogits {
    logits: Tensor<3>,
    /// `[batch, time]`: which rows predict a counted token.
    mask: Tensor<2, Bool>,
}

impl CountedLogits {
    /// Shifting the small mask left instead of slicing the logits saves a copy of
    /// `[batch, time, vocab]`. The last row predicts nothing; [`finish`](Self::finish) cuts it off.
    fn new(logits: Tensor<3>, completion_mask: Tensor<2, Bool>) -> Result<Self, InvalidInput> {
        let [batch, time, vocab] = logits.dims();
        let expected = [batch, time].into();
        InvalidInput::check_shape("completion_mask", &expected, &completion_mask.shape())?;
        if time < 2 || vocab == 0 {
            let found = format!("shape {:?}", [batch, time, vocab]);
            return Err(InvalidInput::new("logits", "time ≥ 2 and vocab ≥ 1", found));
        }
        let device = logits.device();
        InvalidInput::check_device("completion_mask", &device, &completion_mask.device())?;

        let mask = shift_left(completion_mask);
        let not_counted: Tensor<3, Bool> = mask.clone().bool_not().unsqueeze_dim(2);
        let logits = upcast(logits).mask_fill(not_counted.expand([batch, time, vocab]), 0.0);
        Ok(Self { logits, mask })
    }

    fn log_softmax(&self) -> Tensor<3> {
        self.logits.clone() - logsumexp(self.logits.clone())
    }

    /// From a value per row of logits to one per prediction.
    fn finish(self, values: Tensor<2>) -> TokenLogProbs {
        let [_, time] = values.dims();
        TokenLogProbs::masked(
            values.narrow(1, 0, time - 1),
            self.mask.narrow(1, 0, time - 1),
        )
    }
}

/// Half-precision values to f32; f32 and f64 as they are.
pub(super) fn upcast<const D: usize>(values: Tensor<D>) -> Tensor<D> {
    match values.dtype() {
        DType::F64 | DType::F32 => values,
        _ => values.cast(FloatDType::F32),
    }
}

/// Column `t` takes what stood at `t + 1`; the last column takes the first's.
fn roll_left(tokens: Tensor<2, Int>) -> Tensor<2, Int> {
    let [_, time] = tokens.dims();
    let first = tokens.clone().narrow(1, 0, 1);
    Tensor::cat(vec![tokens.narrow(1, 1, time - 1), first], 1)
}

/// As [`roll_left`], but the last column is false: nothing is predicted there.
fn shift_left(mask: Tensor<2, Bool>) -> Tensor<2, Bool> {
    let [_, time] = mask.dims();
    let last = mask.clone().narrow(1, 0, 1);
    let last = last.clone().bool_and(last.bool_not());
    Tensor::cat(vec![mask.narrow(1, 1, time - 1), last], 1)
}
