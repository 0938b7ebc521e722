use burn::tensor::Tensor;

use super::relative::RelativeLogProbs;
use super::sequence::SequenceLogProbs;
use crate::error::InvalidInput;
use crate::needs::Values;

/// Log-probabilities of completions, with or without a reference beside them:
/// [`SequenceLogProbs`] or [`RelativeLogProbs`].
///
/// `D` is 1 for `[batch]` and 2 for `[batch, candidates]`. It is sealed: what stands in a batch of
/// pairs, unpaired completions or lists is one of the two.
pub trait LogProbs<const D: usize>: sealed::Sealed + Clone {
    /// Values that a batch of these holds.
    const VALUES: Values;

    /// Log-probabilities of the policy.
    fn policy(&self) -> &SequenceLogProbs<D>;

    /// Multiplies the values that objectives compare by a scale per completion: ℓ, or ℓ and ℓ°.
    #[doc(hidden)]
    fn times(self, scale: Tensor<D>) -> Self;
}

/// Rows of completions that become lists: `[batch · candidates]` to `[batch, candidates]`.
///
/// It is sealed, as [`LogProbs`] is.
pub trait Completions: LogProbs<1> {
    /// Log-probabilities of the lists.
    type Lists: LogProbs<2>;

    /// Makes one row of `candidates` consecutive rows of a prompt.
    ///
    /// # Errors
    ///
    /// The number of rows is not a multiple of `candidates`, or `candidates` is 0.
    fn split_candidates(self, candidates: usize) -> Result<Self::Lists, InvalidInput>;
}

mod sealed {
    pub trait Sealed {}

    impl<const D: usize> Sealed for super::SequenceLogProbs<D> {}
    impl<const D: usize> Sealed for super::RelativeLogProbs<D> {}
}

impl<const D: usize> LogProbs<D> for SequenceLogProbs<D> {
    const VALUES: Values = Values::LogProbs;

    fn policy(&self) -> &SequenceLogProbs<D> {
        self
    }

    fn times(self, scale: Tensor<D>) -> Self {
        SequenceLogProbs::times(self, scale)
    }
}

impl<const D: usize> LogProbs<D> for RelativeLogProbs<D> {
    const VALUES: Values = Values::LogRatios;

    fn policy(&self) -> &SequenceLogProbs<D> {
        RelativeLogProbs::policy(self)
    }

    fn times(self, scale: Tensor<D>) -> Self {
        self.map(|side| side.times(scale.clone()))
    }
}

impl Completions for SequenceLogProbs {
    type Lists = SequenceLogProbs<2>;

    fn split_candidates(self, candidates: usize) -> Result<Self::Lists, InvalidInput> {
        SequenceLogProbs::split_candidates(self, candidates)
    }
}

impl Completions for RelativeLogProbs {
    type Lists = RelativeLogProbs<2>;

    fn split_candidates(self, candidates: usize) -> Result<Self::Lists, InvalidInput> {
        RelativeLogProbs::split_candidates(self, candidates)
    }
}
