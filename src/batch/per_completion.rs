use burn::tensor::{Bool, DType, Device, Float, Int, Tensor};

use crate::log_probs::{
    RelativeLogProbs, RelativeTokenLogProbs, SequenceLogProbs, TokenLogProbs, TokenStatistics,
};

/// Values of which each completion has one row: a tensor, or the log-probabilities of tokens or
/// sequences. [`Pair`](crate::batch::Pair) takes them apart.
///
/// It is sealed.
pub trait PerCompletion: sealed::PerCompletion {}

impl<T: sealed::PerCompletion> PerCompletion for T {}

pub(super) mod sealed {
    use super::{DType, Device};

    pub trait PerCompletion {
        fn rows(&self) -> usize;
        fn narrow_rows(&self, start: usize, length: usize) -> Self;
        fn device(&self) -> Device;
        fn dtype(&self) -> DType;
    }
}

/// `$tensor` of `$values` has their number of rows, device and number type; `$narrow` narrows them.
macro_rules! per_completion {
    ([$($generics:tt)*] $values:ty, |$y:ident| $tensor:expr, $narrow:expr) => {
        impl $($generics)* sealed::PerCompletion for $values {
            fn rows(&self) -> usize {
                let $y = self;
                $tensor.dims()[0]
            }

            fn narrow_rows(&self, start: usize, length: usize) -> Self {
                $narrow(self, start, length)
            }

            fn device(&self) -> Device {
                let $y = self;
                $tensor.device()
            }

            fn dtype(&self) -> DType {
                let $y = self;
                $tensor.dtype()
            }
        }
    };
}

macro_rules! per_completion_of_tensors {
    ($($kind:ty),*) => {
        $(per_completion!(
            [<const D: usize>] Tensor<D, $kind>,
            |y| y,
            |y: &Tensor<D, $kind>, start, length| y.clone().narrow(0, start, length)
        );)*
    };
}

per_completion_of_tensors!(Float, Int, Bool);
per_completion!([] SequenceLogProbs, |y| y.sum_ref(), Self::narrow);
per_completion!([] RelativeLogProbs, |y| y.policy().sum_ref(), Self::narrow);
per_completion!([] TokenLogProbs, |y| y.log_probs(), Self::rows);
per_completion!([] RelativeTokenLogProbs, |y| y.policy().log_probs(), Self::rows);
per_completion!([] TokenStatistics, |y| y.entropy(), Self::rows);
