//! From model outputs to log-probabilities: per token, per sequence, against a reference.

mod head;
#[allow(
    deprecated,
    reason = "NdArray and LibTorch: supported while they exist"
)]
#[allow(
    unused_variables,
    reason = "without a backend, nothing is dispatched to"
)]
mod kernel;
mod kl;
mod predictions;
mod relative;
mod sequence;
mod statistics;
mod token;

pub use head::LmHead;
pub use kl::sequence_kl;
pub use relative::RelativeLogProbs;
pub use sequence::SequenceLogProbs;
pub use statistics::TokenStatistics;
pub use token::TokenLogProbs;

/// Log-probabilities of completions, with or without a reference beside them.
///
/// `D` is 1 for `[batch]` and 2 for `[batch, candidates]`.
pub trait LogProbs<const D: usize> {
    /// The policy's side.
    fn policy(&self) -> &SequenceLogProbs<D>;
}

impl<const D: usize> LogProbs<D> for SequenceLogProbs<D> {
    fn policy(&self) -> &SequenceLogProbs<D> {
        self
    }
}

impl<const D: usize> LogProbs<D> for RelativeLogProbs<D> {
    fn policy(&self) -> &SequenceLogProbs<D> {
        RelativeLogProbs::policy(self)
    }
}
