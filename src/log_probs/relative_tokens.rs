use burn::tensor::{Bool, Tensor};

use super::relative::RelativeLogProbs;
use super::token::TokenLogProbs;
use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::bounds;

/// The policy's log-probabilities of tokens, and the reference's of the same ones.
///
/// Tokens are weighed or clamped here, before they are summed, because it has to happen to both
/// sides: a sum that is changed on one side alone gives no log-ratio. LD-DPO and SamPO need both
/// completions of a pair; they are methods of
/// [`Pair<RelativeTokenLogProbs>`](crate::batch::Pair).
///
/// ```
/// use burn::tensor::{Bool, Device, Tensor};
/// use burn_preference::TokenLogProbs;
///
/// let device = Device::default();
/// let mask = Tensor::<2, Bool>::from_bool([[true, true]], &device);
/// let of = |values| TokenLogProbs::new(Tensor::from_floats([values], &device), mask.clone());
///
/// // Log-ratios of 0.5 and −3 nats; a clamp to ±1 leaves 0.5 − 1.
/// let tokens = of([-1.0, -4.0])?.relative_to(of([-1.5, -1.0])?)?;
/// let ratio = tokens.clamped(-1.0, 1.0)?.sequence().log_ratio();
/// assert_eq!(ratio.into_scalar::<f32>(), -0.5);
/// # Ok::<(), burn_preference::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct RelativeTokenLogProbs {
    policy: TokenLogProbs,
    reference: TokenLogProbs,
    /// Policy and reference before anything was done to them; none where nothing was.
    unmodified: Option<[TokenLogProbs; 2]>,
}

impl RelativeTokenLogProbs {
    /// Compares with a reference that gives every token log-probability 0.
    pub(crate) fn against_uniform(policy: TokenLogProbs) -> Self {
        let nothing = policy.log_probs().without_autodiff().zeros_like();
        let reference = TokenLogProbs::masked(nothing, policy.mask());
        Self::of(policy, reference)
    }

    /// Takes sides that fit.
    pub(super) fn of(policy: TokenLogProbs, reference: TokenLogProbs) -> Self {
        Self {
            policy,
            reference,
            unmodified: None,
        }
    }

    /// Replaces the sides that objectives compare.
    fn modified(self, policy: TokenLogProbs, reference: TokenLogProbs) -> Self {
        let before = self.unmodified.unwrap_or([self.policy, self.reference]);
        Self {
            policy,
            reference,
            unmodified: Some(before),
        }
    }

    /// Log-probabilities of the policy, as objectives compare them.
    pub fn policy(&self) -> &TokenLogProbs {
        &self.policy
    }

    /// Log-probabilities of the reference; no gradient reaches them.
    pub fn reference(&self) -> &TokenLogProbs {
        &self.reference
    }

    /// Log-ratio ln π − ln π° of every token, 0 where it does not count; `[batch, time − 1]`, nats.
    pub fn log_ratios(&self) -> Tensor<2> {
        self.policy.log_probs() - self.reference.log_probs()
    }

    /// Sums and lengths of both sides. The [`unmodified`](super::SequenceLogProbs::unmodified)
    /// sums stay with them.
    pub fn sequence(&self) -> RelativeLogProbs {
        let [mut policy, mut reference] =
            [&self.policy, &self.reference].map(TokenLogProbs::sequence);
        if let Some([before, reference_before]) = &self.unmodified {
            policy = policy.in_place_of(&before.sequence());
            reference = reference.in_place_of(&reference_before.sequence());
        }
        RelativeLogProbs::of(policy, reference)
    }

    /// Clamps the log-ratio of every token to `low..=high` nats ("humanline" in HALOs); beyond it
    /// a token has no gradient.
    ///
    /// ```text
    /// ρ = Σ_t clamp(ln π(y_t) − ln π°(y_t), low, high)
    /// ```
    ///
    /// # Errors
    ///
    /// A bound is not finite, or `low` > `high`.
    pub fn clamped(self, low: f64, high: f64) -> Result<Self, InvalidHyperparameter> {
        bounds(low, high)?;
        let clamped = self.reference.log_probs() + self.log_ratios().clamp(low, high);
        let clamped = TokenLogProbs::masked(clamped, self.policy.mask());
        let reference = self.reference.clone();
        Ok(self.modified(clamped, reference))
    }

    /// Weighs every token of both sides, as TIS-DPO and its relatives do. No gradient flows into
    /// the weights.
    ///
    /// ```text
    /// ℓ = Σ_t w_t·ln π(y_t),   ℓ° = Σ_t w_t·ln π°(y_t)
    /// ```
    ///
    /// Lengths stay numbers of tokens: ℓ̄ is divided by them, not by Σ w. Weights of tokens that do
    /// not count may be anything.
    ///
    /// # Shapes
    ///
    /// - `weights`: `[batch, time − 1]`, a column per *predicted* token, as in [`TokenLogProbs`]
    ///
    /// # Errors
    ///
    /// `weights` has another shape or device.
    pub fn weighted(self, weights: Tensor<2>) -> Result<Self, InvalidInput> {
        let here = self.policy.log_probs();
        InvalidInput::check_shape("weights", &here.shape(), &weights.shape())?;
        InvalidInput::check_device("weights", &here.device(), &weights.device())?;
        Ok(self.times(&weights.without_autodiff()))
    }

    pub(crate) fn times(self, weights: &Tensor<2>) -> Self {
        let [policy, reference] =
            [&self.policy, &self.reference].map(|side| side.clone().times(weights));
        self.modified(policy, reference)
    }

    /// Counts only those tokens that `mask` marks as well.
    pub(crate) fn keep(self, mask: Tensor<2, Bool>) -> Self {
        let [policy, reference] = [&self.policy, &self.reference].map(|side| {
            TokenLogProbs::masked(side.log_probs(), side.mask().bool_and(mask.clone()))
        });
        self.modified(policy, reference)
    }

    /// Rows `start..start + length` of the batch.
    pub(crate) fn rows(&self, start: usize, length: usize) -> Self {
        let rows = |side: &TokenLogProbs| side.rows(start, length);
        Self {
            policy: rows(&self.policy),
            reference: rows(&self.reference),
            unmodified: self
                .unmodified
                .as_ref()
                .map(|sides| sides.each_ref().map(rows)),
        }
    }
}

impl TokenLogProbs {
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
}
