//! The computations that a backend may have kernels of its own for.

use burn::backend::Backend;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};

use super::discrepancy::{Comparison, Discrepancy};
use super::forward::{Forward, HeadGradients, Save};
use super::generic;
use super::head::Head;

/// The computations of a backend, without autodiff.
pub(super) trait LogProbKernel: Backend {
    /// The forward of [`LogProbOps::head_log_probs`].
    fn head_forward(head: Head<Self>, save: Save, statistics: bool) -> Forward<Self> {
        generic::head_forward(head, save, statistics)
    }

    /// The backward of [`Self::head_forward`] after [`Save::Tiles`]. `grad` is `[rows]`.
    fn head_backward(
        head: Head<Self>,
        normalizer: FloatTensor<Self>,
        tiles: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        generic::head_backward(head, normalizer, tiles, grad, wanted)
    }

    /// The forward of [`LogProbOps::logits_log_probs`].
    fn logits_forward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        statistics: bool,
    ) -> Forward<Self> {
        generic::logits_forward::<Self>(logits, targets, counted, statistics)
    }

    /// The backward of [`Self::logits_forward`]: the gradient of the logits. The gradient takes the
    /// buffer of the logits if no other tensor holds this buffer.
    fn logits_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        normalizer: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        generic::logits_backward::<Self>(logits, targets, counted, normalizer, grad)
    }

    /// The forward of [`LogProbOps::head_discrepancy`]. With `slope` the result holds the gradient
    /// of each row's hidden state.
    fn head_comparison(
        kind: Discrepancy,
        policy: Head<Self>,
        reference: Head<Self>,
        slope: bool,
    ) -> Comparison<Self> {
        generic::head_comparison(kind, &policy, &reference, slope)
    }

    /// The backward of [`Self::head_comparison`] without a slope, for the policy's head. `kept` is
    /// [`Comparison::kept`], and `grad` is `[rows]`.
    fn head_comparison_backward(
        kind: Discrepancy,
        policy: Head<Self>,
        reference: Head<Self>,
        kept: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        generic::head_comparison_backward(kind, &policy, &reference, &kept, &grad, wanted)
    }

    /// The forward of [`LogProbOps::logits_discrepancy`].
    fn logits_comparison(
        kind: Discrepancy,
        policy: FloatTensor<Self>,
        reference: FloatTensor<Self>,
        counted: BoolTensor<Self>,
    ) -> Comparison<Self> {
        generic::logits_comparison::<Self>(kind, &policy, &reference, &counted)
    }

    /// The backward of [`Self::logits_comparison`]: the gradient of the policy's logits.
    fn logits_comparison_backward(
        kind: Discrepancy,
        policy: FloatTensor<Self>,
        reference: FloatTensor<Self>,
        counted: BoolTensor<Self>,
        kept: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        generic::logits_comparison_backward::<Self>(
            kind, &policy, &reference, &counted, &kept, &grad,
        )
    }
}

#[cfg(feature = "ndarray")]
impl LogProbKernel for burn::backend::NdArray {}
#[cfg(feature = "tch")]
impl LogProbKernel for burn::backend::LibTorch {}
#[cfg(feature = "remote")]
impl LogProbKernel for burn::backend::Remote {}
