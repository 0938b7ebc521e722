//! The computations of CubeCL's backends.

use burn::backend::TensorMetadata;
use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{DType, IntDType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::block::{self, Block};
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

    fn logits_comparison(
        kind: Discrepancy,
        policy: FloatTensor<Self>,
        reference: FloatTensor<Self>,
        counted: BoolTensor<Self>,
    ) -> Comparison<Self> {
        if is_generic(policy.dtype()) || is_generic(reference.dtype()) {
            return generic::logits_comparison::<Self>(kind, &policy, &reference, &counted);
        }
        let targets = targets_of(counted);
        let comparison = both(kind, policy, reference);
        let [discrepancy, kept] = comparison.reduce(&targets);
        let [rows, _] = discrepancy.meta.shape().dims();
        Comparison {
            discrepancy: CubeBackend::float_reshape(discrepancy, Shape::new([rows])),
            kept,
            slope: None,
        }
    }

    fn logits_comparison_backward(
        kind: Discrepancy,
        policy: FloatTensor<Self>,
        reference: FloatTensor<Self>,
        counted: BoolTensor<Self>,
        kept: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let dtype = policy.dtype();
        if is_generic(dtype) || is_generic(reference.dtype()) {
            return generic::logits_comparison_backward::<Self>(
                kind, &policy, &reference, &counted, &kept, &grad,
            );
        }
        let (kept, grad) = (into_contiguous(kept), into_contiguous(grad));
        let targets = targets_of(counted);
        both(kind, policy, reference).turn(&targets, &kept, &grad, 0, dtype)
    }
}

/// Targets that only say which rows count: 0, or −1.
fn targets_of(counted: CubeTensor) -> CubeTensor {
    let shape = counted.meta.shape().clone();
    let zeros = CubeBackend::int_zeros(shape, &counted.device, IntDType::I32);
    counted_targets(zeros, counted)
}

/// Logits of two models, as they are.
fn both(kind: Discrepancy, policy: CubeTensor, reference: CubeTensor) -> block::Comparison {
    let [policy, reference] =
        [policy, reference].map(|x| Block::new(rows_in_line(x), None, Shaping::NONE));
    block::Comparison {
        kind,
        policy,
        reference,
    }
}
