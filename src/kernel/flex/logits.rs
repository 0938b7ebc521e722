//! The kernel for given logits. The forward is one pass; the backward is one pass that writes into
//! the buffer of the logits.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::IntTensor;
use pulp::Arch;
use rayon::prelude::*;

use super::partial::{Partial, RowState, outputs};
use super::row::{observe, turn};
use super::tensors::{f32s, indices};
use crate::kernel::forward::Forward;

fn is_counted(counted: &FlexTensor) -> Vec<bool> {
    counted.to_contiguous().into_data().iter::<bool>().collect()
}

/// Reduces the rows of logits in pieces that stay in the L1 cache.
pub(super) fn forward(
    logits: &FlexTensor,
    targets: IntTensor<Flex>,
    counted: &FlexTensor,
    statistics: bool,
) -> Forward<Flex> {
    const PIECE: usize = 4096;
    let [_, vocab] = logits.layout().shape().dims();
    let logits: &[f32] = logits.as_slice().expect("contiguous f32");
    let (targets, counted) = (indices(targets), is_counted(counted));
    let arch = Arch::new();
    let rows: Vec<RowState> = logits
        .par_chunks(vocab)
        .enumerate()
        .map(|(row, logits)| {
            if !counted[row] {
                return RowState::NOT_COUNTED;
            }
            let mut partial = Partial::EMPTY;
            for (index, piece) in logits.chunks(PIECE).enumerate() {
                let more = observe(arch, piece, f32::NEG_INFINITY, statistics);
                partial = partial.and(more.starting_at(index * PIECE));
            }
            let target = logits[targets[row]];
            RowState { partial, target }
        })
        .collect();
    outputs(&rows, &targets, vocab, statistics)
}

pub(super) fn backward(
    mut logits: FlexTensor,
    targets: IntTensor<Flex>,
    counted: &FlexTensor,
    normalizer: &FlexTensor,
    grad: &FlexTensor,
) -> FlexTensor {
    let [_, vocab] = logits.layout().shape().dims();
    let (targets, counted) = (indices(targets), is_counted(counted));
    let (normalizer, grad) = (f32s(normalizer), f32s(grad));
    let arch = Arch::new();
    let whole =
        logits.is_contiguous() && logits.layout().num_elements() * 4 == logits.bytes().len();
    if !whole {
        logits = logits.to_contiguous();
    }
    // The gradient overwrites the logits, unless another tensor still holds their buffer.
    let values: &mut [f32] = logits.storage_mut();
    values
        .par_chunks_mut(vocab)
        .enumerate()
        .for_each(|(row, line)| {
            if !counted[row] {
                line.fill(0.0);
                return;
            }
            let normalizer = [normalizer[2 * row], normalizer[2 * row + 1]];
            turn(arch, line, normalizer, -grad[row], 0.0);
            line[targets[row]] += grad[row];
        });
    logits
}
