//! The computations of Flex.

use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::DType;

use super::lanes::Lanes;
use super::logits;
use super::tensors::single;
use super::tiles::Tiles;
use crate::kernel::backend::LogProbKernel;
use crate::kernel::choice::{FlexKernel, is_generic, on_flex};
use crate::kernel::forward::{Forward, HeadGradients, Save};
use crate::kernel::generic;
use crate::kernel::head::Head;

impl LogProbKernel for Flex {
    fn head_forward(head: Head<Self>, save: Save, statistics: bool) -> Forward<Self> {
        match on_flex(&head) {
            FlexKernel::Generic => generic::head_forward(head, save, statistics),
            FlexKernel::Lanes(panels) => {
                let lanes = Lanes::new(&head, panels);
                match save {
                    Save::Nothing => lanes.forward(0, statistics),
                    Save::Tiles(bytes) => lanes.forward(bytes, statistics),
                    Save::Slope => lanes.forward_with_slope(statistics),
                }
            }
            FlexKernel::Tiles => match save {
                Save::Nothing => Tiles::of_reference(head).forward(0, statistics),
                Save::Tiles(bytes) => Tiles::new(head).forward(bytes, statistics),
                Save::Slope => Tiles::new(head).forward_with_slope(statistics),
            },
        }
    }

    fn head_backward(
        head: Head<Self>,
        normalizer: FloatTensor<Self>,
        tiles: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        match on_flex(&head) {
            FlexKernel::Generic => generic::head_backward(head, normalizer, tiles, grad, wanted),
            FlexKernel::Lanes(panels) => {
                Lanes::new(&head, panels).backward(&normalizer, tiles, &grad, wanted)
            }
            FlexKernel::Tiles => Tiles::new(head).backward(&normalizer, tiles, &grad, wanted),
        }
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
}
