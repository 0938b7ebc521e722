//! The computations of CubeCL's backends.

use burn::backend::TensorMetadata;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;

use super::block::Block;
use super::head::{
    BACKWARD_ROWS, columns, head_backward, head_comparison, head_comparison_backward, head_forward,
    outputs,
};
use super::tensors::{counted_targets, empty, rows_in_line};
use crate::kernel::backend::LogProbKernel;
use crate::kernel::choice::is_generic;
use crate::kernel::discrepancy::{Comparison, Discrepancy};
use crate::kernel::forward::{Forward, HeadGradients, Save};
use crate::kernel::generic;
use crate::kernel::head::{Head, Shaping};

impl LogProbKernel for CubeBackend {
    fn head_forward(head: Head<Self>, save: Save, statistics: bool) -> Forward<Self> {
        if is_generic(head.hidden.dtype()) {
            return generic::head_forward(head, save, statistics);
        }
        head_forward(&head, save == Save::Slope, statistics)
    }

    fn head_backward(
        head: Head<Self>,
        normalizer: FloatTensor<Self>,
        tiles: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        if is_generic(head.hidden.dtype()) {
            return generic::head_backward(head, normalizer, tiles, grad, wanted);
        }
        let (normalizer, grad) = (into_contiguous(normalizer), into_contiguous(grad));
        head_backward(&head, &normalizer, &grad, wanted, BACKWARD_ROWS)
    }

    fn logits_forward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        statistics: bool,
    ) -> Forward<Self> {
        if is_generic(logits.dtype()) {
            return generic::logits_forward::<Self>(logits, targets, counted, statistics);
        }
        let logits = Block::new(rows_in_line(logits), None, Shaping::NONE);
        let targets = counted_targets(targets, counted);
        let [rows, _] = logits.x.meta.shape().dims();
        let reduced = empty(&logits.x, [rows, columns(statistics)], DType::F32);
        logits.reduce(&targets, &reduced, 0, statistics);
        outputs(&reduced, statistics, None)
    }

    fn logits_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        normalizer: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let dtype = logits.dtype();
        if is_generic(dtype) {
            return generic::logits_backward::<Self>(logits, targets, counted, normalizer, grad);
        }
        let targets = counted_targets(targets, counted);
        let (normalizer, grad) = (into_contiguous(normalizer), into_contiguous(grad));
        let logits = Block::new(rows_in_line(logits), None, Shaping::NONE);
        logits.turn(&targets, &normalizer, &grad, [0, 0], dtype)
    }

    fn head_comparison(
        kind: Discrepancy,
        policy: Head<Self>,
        reference: Head<Self>,
        slope: bool,
    ) -> Comparison<Self> {
        if is_generic(policy.hidden.dtype()) || is_generic(reference.hidden.dtype()) {
            return generic::head_comparison(kind, &policy, &reference, slope);
        }
        head_comparison(kind, &policy, &reference, slope)
    }

    fn head_comparison_backward(
        kind: Discrepancy,
        policy: Head<Self>,
        reference: Head<Self>,
        kept: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        if is_generic(policy.hidden.dtype()) || is_generic(reference.hidden.dtype()) {
            return generic::head_comparison_backward(
                kind, &policy, &reference, &kept, &grad, wanted,
            );
        }
        let (kept, grad) = (into_contiguous(kept), into_contiguous(grad));
        let rows = BACKWARD_ROWS;
        head_comparison_backward(kind, &policy, &reference, [&kept, &grad], wanted, rows)
    }
}
