//! Steps on tensors of CubeCL.

use burn::backend::ops::{BoolTensorOps, FloatTensorOps, IntTensorOps};
use burn::tensor::{DType, Shape, Slice};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;

/// Blocks of words begin at multiples of this number, because a view on CUDA must start at a
/// multiple of 512 bytes.
pub(super) const WORDS: usize = 512;

/// The targets, with −1 in the rows that do not count.
pub(super) fn counted_targets(targets: CubeTensor, counted: CubeTensor) -> CubeTensor {
    let not_counted = CubeBackend::bool_not(counted);
    into_contiguous(CubeBackend::int_mask_fill(
        targets,
        not_counted,
        (-1_i32).into(),
    ))
}

/// The same logits, in a layout where the words of a row are contiguous.
pub(super) fn rows_in_line(logits: CubeTensor) -> CubeTensor {
    if logits.meta.strides()[1] == 1 {
        return logits;
    }
    into_contiguous(logits)
}

pub(super) fn product(
    lhs: CubeTensor,
    rhs: CubeTensor,
    out: Option<CubeTensor>,
    dtype: DType,
) -> CubeTensor {
    matmul(lhs, rhs, out, MatmulStrategy::default(), dtype).expect("shapes that fit")
}

pub(super) fn transposed(tensor: &CubeTensor) -> CubeTensor {
    CubeBackend::float_transpose(tensor.clone())
}

/// The range `start..start + length` of a dimension. The result is a view if the device allows the
/// offset, and a copy otherwise.
pub(super) fn part(tensor: &CubeTensor, dim: usize, start: usize, length: usize) -> CubeTensor {
    let mut slices = vec![Slice::full(); dim];
    slices.push(Slice::from(start..start + length));
    CubeBackend::float_slice(tensor.clone(), &slices)
}

pub(super) fn empty(like: &CubeTensor, shape: [usize; 2], dtype: DType) -> CubeTensor {
    empty_device_dtype(
        like.client.clone(),
        like.device.clone(),
        Shape::new(shape),
        dtype,
    )
}

/// A view of a part of `tensor`, to write into. The view must start at an offset that the device
/// accepts. Row starts of a pitched tensor are such offsets, and multiples of [`WORDS`] are as
/// well.
pub(super) fn place(tensor: &CubeTensor, dim: usize, start: usize, length: usize) -> CubeTensor {
    let mut view = tensor.clone();
    let size = tensor.dtype.size() as u64;
    let stride = tensor.meta.strides()[dim];
    let whole = tensor.meta.shape()[dim];
    let before = (stride * start) as u64 * size;
    let after = (stride * (whole - start - length)) as u64 * size;
    view.handle = view.handle.offset_start(before).offset_end(after);
    view.meta.shape[dim] = length;
    view
}

/// The widest vector that can read the rows of all `tensors`.
pub(super) fn vector_size(tensors: &[&CubeTensor]) -> usize {
    let widest = |tensor: &&CubeTensor| {
        let stride = tensor.meta.strides()[0];
        let sizes = tensor.client.io_optimized_vector_sizes(tensor.dtype.size());
        sizes
            .filter(|size| stride.is_multiple_of(*size))
            .max()
            .unwrap_or(1)
    };
    tensors.iter().map(widest).min().unwrap_or(1)
}

pub(super) fn address_type(tensors: &[&CubeTensor]) -> AddressType {
    let types = tensors.iter().map(|tensor| tensor.required_address_type());
    types.max().unwrap_or_default()
}

/// Concatenates the parts along the first dimension; a single part is not copied.
pub(super) fn cat(mut parts: Vec<CubeTensor>) -> CubeTensor {
    match parts.len() {
        1 => parts.remove(0),
        _ => CubeBackend::float_cat(parts, 0),
    }
}
