use std::error::Error;

use burn::tensor::Device;

use super::sequence::Sequence;
use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;

/// A source of log-probabilities of the reference π°: a [`Frozen`](crate::Frozen) model `M`, or a
/// [`ReferenceCache`](crate::reference::cache::ReferenceCache).
///
/// With it a training step is written once for both. A cache calls no model: it looks the sequences
/// up, and an absent one is its error.
///
/// ```
/// use burn::tensor::{Int, Tensor};
/// use burn_preference::tokens::{Reference, TokenBatch};
/// use burn_preference::{LmHead, RelativeLogProbs};
///
/// fn relative<M, R: Reference<M>>(
///     batch: &TokenBatch,
///     policy: &M,
///     reference: &R,
///     hidden: impl Fn(&M, Tensor<2, Int>) -> (Tensor<3>, LmHead),
/// ) -> Result<RelativeLogProbs, R::Error> {
///     let ours = batch.log_probs(policy, &hidden)?;
///     Ok(ours.relative_to(batch.reference(reference, &hidden)?)?)
/// }
/// ```
///
/// It is sealed.
pub trait Reference<M>: sealed::Sealed {
    /// Error of the source: [`InvalidInput`] of a model,
    /// [`CacheError`](crate::reference::cache::CacheError) of a cache.
    type Error: Error + From<InvalidInput> + Send + Sync + 'static;

    /// Log-probabilities of these sequences, or what `compute` makes of a model.
    #[doc(hidden)]
    fn answer(
        &self,
        sequences: &[Sequence],
        device: &Device,
        compute: impl FnOnce(&M) -> Result<SequenceLogProbs, InvalidInput>,
    ) -> Result<SequenceLogProbs, Self::Error>;
}

pub(crate) mod sealed {
    pub trait Sealed {}
}
