use burn::tensor::Device;

use super::Sequence;
use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;

/// What answers for the reference π°: a [`Frozen`](crate::Frozen) model `M`, or a
/// [`ReferenceCache`](crate::reference::cache::ReferenceCache).
///
/// With it a training step is written once for both. A cache calls no model: it looks the sequences
/// up, and an absent one is its error.
///
/// It is sealed.
pub trait Reference<M>: sealed::Reference<M> {}

impl<M, R: sealed::Reference<M>> Reference<M> for R {}

pub(crate) mod sealed {
    use super::{Device, InvalidInput, Sequence, SequenceLogProbs};

    pub trait Reference<M> {
        /// What may fail.
        type Error;

        /// Of these sequences, or of what `compute` makes of a model.
        fn answer(
            &self,
            sequences: &[Sequence],
            device: &Device,
            compute: impl FnOnce(&M) -> Result<SequenceLogProbs, InvalidInput>,
        ) -> Result<SequenceLogProbs, Self::Error>;
    }
}
