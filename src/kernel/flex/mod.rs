//! The kernels of Flex for f32, f16 and bf16. f64 uses the generic kernel, as on other backends.
//!
//! Rayon runs tiles of rows × words in parallel. The computation of a tile does not depend on the
//! number of threads, and the results of several tiles are combined in a fixed order. So the final
//! results do not depend on the number of threads either.

mod bands;
mod lanes;
mod logits;
mod matrix;
mod partial;
mod row;
#[cfg(test)]
mod tests;
mod tiles;
mod words;

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{Bytes, DType, FloatDType, Shape};

use self::lanes::Lanes;
use self::tiles::Tiles;
use super::{Forward, Head, HeadGradients, LogProbKernel, Save, generic};

impl LogProbKernel for Flex {
    fn head_forward(head: Head<Self>, save: Save, statistics: bool) -> Forward<Self> {
        if head.hidden.dtype() == DType::F64 {
            return generic::head_forward(head, save, statistics);
        }
        if let Some(lanes) = Lanes::new(&head) {
            return match save {
                Save::Nothing => lanes.forward(0, statistics),
                Save::Tiles(bytes) => lanes.forward(bytes, statistics),
                Save::Slope => lanes.forward_with_slope(statistics),
            };
        }
        match save {
            Save::Nothing => Tiles::of_reference(head).forward(0, statistics),
            Save::Tiles(bytes) => Tiles::new(head).forward(bytes, statistics),
            Save::Slope => Tiles::new(head).forward_with_slope(statistics),
        }
    }

    fn head_backward(
        head: Head<Self>,
        normalizer: FloatTensor<Self>,
        tiles: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        if head.hidden.dtype() == DType::F64 {
            return generic::head_backward(head, normalizer, tiles, grad, wanted);
        }
        match Lanes::new(&head) {
            Some(lanes) => lanes.backward(&normalizer, tiles, &grad, wanted),
            None => Tiles::new(head).backward(&normalizer, tiles, &grad, wanted),
        }
    }

    fn logits_forward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        statistics: bool,
    ) -> Forward<Self> {
        if logits.dtype() == DType::F64 {
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
        if logits.dtype() == DType::F64 {
            return generic::logits_backward::<Self>(logits, targets, counted, normalizer, grad);
        }
        let dtype = logits.dtype();
        let found = logits::backward(single(logits), targets, &counted, &normalizer, &grad);
        if dtype == DType::F32 {
            return found;
        }
        Flex::float_cast(found, dtype.into())
    }
}

/// Casts half precision to f32.
fn single(logits: FlexTensor) -> FlexTensor {
    if logits.dtype() == DType::F32 {
        return logits;
    }
    Flex::float_cast(logits, FloatDType::F32)
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    let layout = Layout::contiguous(Shape::new(shape));
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

fn f32s(tensor: &FlexTensor) -> Vec<f32> {
    let tensor = tensor.to_contiguous();
    match tensor.as_slice() {
        Some(values) => values.to_vec(),
        None => tensor.into_data().iter::<f32>().collect(), // half precision
    }
}

fn indices(targets: IntTensor<Flex>) -> Vec<usize> {
    let ids = targets.to_contiguous().into_data();
    let index = |id: i64| usize::try_from(id).expect("targets are inside the vocabulary");
    ids.iter::<i64>().map(index).collect()
}
