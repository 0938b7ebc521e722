use burn::tensor::{Bool, DType, Device, Float, Int, Tensor};

use crate::log_probs::{
    RelativeLogProbs, RelativeTokenLogProbs, SequenceLogProbs, TokenLogProbs, TokenStatistics,
};

/// Something with a row per completion, which [`Pair`](super::Pair) takes apart: a tensor, or the
/// log-probabilities of tokens or sequences.
///
/// It is sealed.
pub trait Rows: sealed::Rows {}

impl<T: sealed::Rows> Rows for T {}

pub(super) mod sealed {
    use super::{DType, Device};

    pub trait Rows {
        fn rows(&self) -> usize;
        fn narrow_rows(&self, start: usize, length: usize) -> Self;
        fn device(&self) -> Device;
        fn dtype(&self) -> DType;
    }
}

/// `$tensor` says everything about `$rows` but how to narrow it.
macro_rules! rows_of {
    ([$($generics:tt)*] $rows:ty, |$y:ident| $tensor:expr, $narrow:expr) => {
        impl $($generics)* sealed::Rows for $rows {
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

macro_rules! rows_of_tensors {
    ($($kind:ty),*) => {
        $(rows_of!(
            [<const D: usize>] Tensor<D, $kind>,
            |y| y,
            |y: &Tensor<D, $kind>, start, length| y.clone().narrow(0, start, length)
        );)*
    };
}

rows_of_tensors!(Float, Int, Bool);
rows_of!([] SequenceLogProbs, |y| y.sum(), Self::narrow);
rows_of!([] RelativeLogProbs, |y| y.policy().sum(), Self::narrow);
rows_of!([] TokenLogProbs, |y| y.log_probs(), Self::rows);
rows_of!([] RelativeTokenLogProbs, |y| y.policy().log_probs(), Self::rows);
rows_of!([] TokenStatistics, |y| y.entropy(), Self::rows);
