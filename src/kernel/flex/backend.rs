//! The computations of Flex.

use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::DType;
use pulp::Arch;

use super::comparison::with_terms;
use super::head::{Pair, Problem};
use super::logits;
use super::tensors::single;
use crate::kernel::backend::LogProbKernel;
use crate::kernel::choice::{is_generic, takes_generic};
use crate::kernel::discrepancy::{Comparison, Discrepancy};
use crate::kernel::forward::{Forward, HeadGradients, Save};
use crate::kernel::generic;
use crate::kernel::head::Head;

impl LogProbKernel for Flex {
    fn head_forward(head: Head<Self>, save: Save, statistics: bool) -> Forward<Self> {
        if takes_generic(&head) {
            return generic::head_forward(head, save, statistics);
        }
        let problem = Problem::new(head);
        match save {
            Save::Nothing => problem.forward(0, statistics),
            Save::Tiles(bytes) => problem.forward(bytes, statistics),
            Save::Slope => problem.forward_with_slope(statistics),
        }
    }

    fn head_backward(
        head: Head<Self>,
        normalizer: FloatTensor<Self>,
        tiles: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        if takes_generic(&head) {
            return generic::head_backward(head, normalizer, tiles, grad, wanted);
        }
        Problem::new(head).backward(&normalizer, tiles, &grad, wanted)
    }

    fn head_comparison(
        kind: Discrepancy,
        policy: Head<Self>,
        reference: Head<Self>,
        slope: bool,
    ) -> Comparison<Self> {
        if takes_generic(&policy) || takes_generic(&reference) {
            return generic::head_comparison(kind, &policy, &reference, slope);
        }
        let pair = Pair::forward(Arch::new(), [policy, reference]);
        with_terms!(kind, |terms| pair.compare(terms, slope))
    }

    fn head_comparison_backward(
        kind: Discrepancy,
        policy: Head<Self>,
        reference: Head<Self>,
        kept: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        if takes_generic(&policy) || takes_generic(&reference) {
            return generic::head_comparison_backward(
                kind, &policy, &reference, &kept, &grad, wanted,
            );
        }
        let pair = Pair::backward(Arch::new(), [policy, reference]);
        with_terms!(kind, |terms| pair.gradients(terms, &kept, &grad, wanted))
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
        let logits = single(logits).to_contiguous();
        logits::forward(&logits, targets, &counted, statistics)
    }

    fn logits_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        normalizer: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if is_generic(logits.dtype()) {
            return generic::logits_backward::<Self>(logits, targets, counted, normalizer, grad);
        }
        let dtype = logits.dtype();
        let gradient = logits::backward(single(logits), targets, &counted, &normalizer, &grad);
        if dtype == DType::F32 {
            return gradient;
        }
        Flex::float_cast(gradient, dtype.into())
    }

    fn logits_comparison(
        kind: Discrepancy,
        policy: FloatTensor<Self>,
        reference: FloatTensor<Self>,
        counted: BoolTensor<Self>,
    ) -> Comparison<Self> {
        if [&policy, &reference].map(|of| is_generic(of.dtype())) != [false; 2] {
            return generic::logits_comparison::<Self>(kind, &policy, &reference, &counted);
        }
        let [policy, reference] = [policy, reference].map(|of| single(of).to_contiguous());
        let logits = [&policy, &reference];
        with_terms!(kind, |terms| logits::compare(terms, logits, &counted))
    }

    fn logits_comparison_backward(
        kind: Discrepancy,
        policy: FloatTensor<Self>,
        reference: FloatTensor<Self>,
        counted: BoolTensor<Self>,
        kept: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if [&policy, &reference].map(|of| is_generic(of.dtype())) != [false; 2] {
            return generic::logits_comparison_backward::<Self>(
                kind, &policy, &reference, &counted, &kept, &grad,
            );
        }
        let dtype = policy.dtype();
        let policy = single(policy);
        let reference = single(reference).to_contiguous();
        let of = logits::Compared {
            theirs: &reference,
            counted: &counted,
            kept: &kept,
            grad: &grad,
        };
        let gradient = with_terms!(kind, |terms| logits::compared_gradient(terms, policy, of));
        if dtype == DType::F32 {
            return gradient;
        }
        Flex::float_cast(gradient, dtype.into())
    }
}
