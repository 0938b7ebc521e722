//! From model outputs to log-probabilities: per token, per sequence, against a reference.
//!
//! ```text
//! logits, or hidden states and a head
//!     ─→ TokenLogProbs: a column per predicted token
//!     ─→ RelativeTokenLogProbs: the reference beside them, where tokens are weighed or clamped
//!     ─→ SequenceLogProbs or RelativeLogProbs: a sum and a length per completion, for a batch
//! ```
//!
//! Most programs never name these types: [`TokenBatch::log_probs`](crate::tokens::TokenBatch::log_probs)
//! makes them from the forward of a model. Use them directly for tensors of your own
//! ([`TokenLogProbs::from_hidden`]), for numbers of your own ([`SequenceLogProbs::new`]), and for
//! what else the logits say ([`TokenStatistics`]).
//!
//! # Memory
//!
//! The logits of 4 × 512 tokens over 128k words are 1 GB in f32, and their gradient another. Let the
//! forward return hidden states and the head ([`ModelOutput`], [`LmHead`]) instead: rows that predict
//! no completion token are dropped, and all logits never exist at once. Everything after it stays
//! as it is.

mod head;
mod kl;
mod output;
mod packed;
mod predictions;
mod relative;
mod relative_tokens;
mod sequence;
mod statistics;
mod token;

pub use head::LmHead;
pub use kl::{sequence_kl, sequence_kl_from_hidden};
pub use output::ModelOutput;
pub(crate) use packed::{PackedRows, flat};
pub(crate) use predictions::Walked;
pub use relative::RelativeLogProbs;
pub use relative_tokens::RelativeTokenLogProbs;
pub use sequence::SequenceLogProbs;
pub use statistics::TokenStatistics;
pub use token::TokenLogProbs;

use burn::tensor::Tensor;

use crate::error::InvalidInput;
use crate::needs::Values;

/// Log-probabilities of completions, with or without a reference beside them:
/// [`SequenceLogProbs`] or [`RelativeLogProbs`].
///
/// `D` is 1 for `[batch]` and 2 for `[batch, candidates]`. It is sealed: what stands in a batch of
/// pairs, thumbs or lists is one of the two.
pub trait LogProbs<const D: usize>: sealed::Sealed + Clone {
    /// Values that a batch of these holds.
    const VALUES: Values;

    /// The policy's side.
    fn policy(&self) -> &SequenceLogProbs<D>;

    /// What objectives compare, times a scale per completion: ℓ, or ℓ and ℓ°.
    #[doc(hidden)]
    fn times(self, scale: Tensor<D>) -> Self;
}

/// Rows of completions that become lists: `[batch · candidates]` to `[batch, candidates]`.
///
/// It is sealed, as [`LogProbs`] is.
pub trait Completions: LogProbs<1> {
    /// The same of lists.
    type Lists: LogProbs<2>;

    /// `candidates` consecutive rows per prompt become one row.
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
