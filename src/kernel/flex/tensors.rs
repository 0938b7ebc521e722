//! Conversions between tensors of Flex and slices.

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::IntTensor;
use burn::tensor::{Bytes, DType, FloatDType, Shape};

/// Casts half precision to f32.
pub(super) fn single(logits: FlexTensor) -> FlexTensor {
    if logits.dtype() == DType::F32 {
        return logits;
    }
    Flex::float_cast(logits, FloatDType::F32)
}

pub(super) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    from_bytes(Bytes::from_elems(values), shape, DType::F32)
}

pub(super) fn from_bytes<const D: usize>(
    bytes: Bytes,
    shape: [usize; D],
    dtype: DType,
) -> FlexTensor {
    FlexTensor::new(bytes, Layout::contiguous(Shape::new(shape)), dtype)
}

pub(super) fn f32s(tensor: &FlexTensor) -> Vec<f32> {
    let tensor = tensor.to_contiguous();
    match tensor.as_slice() {
        Some(values) => values.to_vec(),
        None => tensor.into_data().iter::<f32>().collect(), // half precision
    }
}

pub(super) fn indices(targets: IntTensor<Flex>) -> Vec<usize> {
    let ids = targets.to_contiguous().into_data();
    let index = |id: i64| usize::try_from(id).expect("targets are inside the vocabulary");
    ids.iter::<i64>().map(index).collect()
}
