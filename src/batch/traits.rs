use burn::tensor::{Device, Tensor};

use crate::log_probs::{LogProbs, RelativeLogProbs, SequenceLogProbs};
use crate::needs::{Examples, Needs, Values};

/// One batch of examples, as an objective takes it.
///
/// Implement it for a batch of your own, whose objectives are then yours as well:
/// `examples/custom_objective.rs` does.
pub trait Batch {
    /// Shape of the implicit rewards: one tensor, or one per side of a pair. Samples have
    /// [`Ratios`](super::Ratios) in their place.
    type Rewards: Rewards;

    /// Number of examples, which is the length of the losses.
    fn len(&self) -> usize;

    /// The device that holds the examples.
    fn device(&self) -> Device;

    /// Needs of an objective over this batch. A batch outside this crate may leave it as it is.
    fn needs() -> Needs
    where
        Self: Sized,
    {
        Needs::new(Examples::Custom, Values::Custom)
    }

    /// Whether there is no example.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Implicit rewards: a tensor or a pair of them, for logging, so that they carry no autodiff; or what
/// stands in their place.
///
/// It is sealed.
pub trait Rewards: sealed::Sealed {
    /// The same values without autodiff.
    fn without_autodiff(self) -> Self;
}

pub(super) mod sealed {
    use super::Tensor;

    pub trait Sealed {}

    impl<const D: usize> Sealed for Tensor<D> {}
}

impl<const D: usize> Rewards for Tensor<D> {
    fn without_autodiff(self) -> Self {
        Tensor::without_autodiff(self)
    }
}

macro_rules! completions_alone {
    ($log_probs:ty) => {
        impl Batch for $log_probs {
            type Rewards = Tensor<1>;

            fn len(&self) -> usize {
                self.policy().sum_ref().dims()[0]
            }

            fn device(&self) -> Device {
                self.policy().sum_ref().device()
            }

            fn needs() -> Needs {
                Needs::new(Examples::Completions, <$log_probs as LogProbs<1>>::VALUES)
            }
        }
    };
}

completions_alone!(SequenceLogProbs);
completions_alone!(RelativeLogProbs);
