use burn::tensor::Tensor;

use super::sequence::SequenceLogProbs;
use crate::error::InvalidInput;

/// The policy's log-probabilities of completions, and the reference's of the same ones.
#[derive(Debug, Clone)]
pub struct RelativeLogProbs<const D: usize = 1> {
    policy: SequenceLogProbs<D>,
    reference: SequenceLogProbs<D>,
}

impl<const D: usize> RelativeLogProbs<D> {
    pub(super) fn new(
        policy: SequenceLogProbs<D>,
        reference: SequenceLogProbs<D>,
    ) -> Result<Self, InvalidInput> {
        let (ours, theirs) = (policy.sum_ref(), reference.sum_ref());
        InvalidInput::check_shape("reference", &ours.shape(), &theirs.shape())?;
        InvalidInput::check_device("reference", &ours.device(), &theirs.device())?;
        Ok(Self::of(policy, reference))
    }

    /// Takes sides that fit.
    pub(super) fn of(policy: SequenceLogProbs<D>, reference: SequenceLogProbs<D>) -> Self {
        Self {
            policy,
            reference: reference.without_autodiff(),
        }
    }

    /// Compares with a reference that gives every completion log-probability 0.
    pub(crate) fn against_uniform(policy: SequenceLogProbs<D>) -> Self {
        let reference = policy.clone().uniform();
        Self { policy, reference }
    }

    /// Log-ratio of each completion, ρ = ℓ − ℓ°, nats.
    pub fn log_ratio(&self) -> Tensor<D> {
        self.policy.sum() - self.reference.sum().cast(self.policy.sum_ref().dtype())
    }

    /// Log-probabilities of the policy.
    pub fn policy(&self) -> &SequenceLogProbs<D> {
        &self.policy
    }

    /// Log-probabilities of the reference; no gradient reaches them.
    pub fn reference(&self) -> &SequenceLogProbs<D> {
        &self.reference
    }

    pub(super) fn map<const E: usize>(
        self,
        f: impl Fn(SequenceLogProbs<D>) -> SequenceLogProbs<E>,
    ) -> RelativeLogProbs<E> {
        RelativeLogProbs {
            policy: f(self.policy),
            reference: f(self.reference),
        }
    }
}

impl RelativeLogProbs {
    /// Rows `start..start + length` of the batch.
    pub(crate) fn narrow(&self, start: usize, length: usize) -> Self {
        self.clone().map(|side| side.narrow(start, length))
    }

    /// Makes lists of both sides, as [`SequenceLogProbs::split_candidates`] does.
    ///
    /// # Errors
    ///
    /// As [`SequenceLogProbs::split_candidates`].
    pub fn split_candidates(self, candidates: usize) -> Result<RelativeLogProbs<2>, InvalidInput> {
        Ok(RelativeLogProbs {
            policy: self.policy.split_candidates(candidates)?,
            reference: self.reference.split_candidates(candidates)?,
        })
    }
}

impl<const D: usize> SequenceLogProbs<D> {
    /// Puts the reference's log-probabilities of the same completions beside the policy's.
    ///
    /// No gradient flows into the reference, whatever it was computed with.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn relative_to(self, reference: Self) -> Result<RelativeLogProbs<D>, InvalidInput> {
        RelativeLogProbs::new(self, reference)
    }
}
