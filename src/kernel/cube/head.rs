//! Forward and backward of a head, block by block.

use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, Slice};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::block::{self, Block};
use super::tensors::{WORDS, cat, empty, part, place, product, transposed};
use crate::kernel::discrepancy::{Comparison, Discrepancy};
use crate::kernel::forward::{Forward, HeadGradients, STATISTICS};
use crate::kernel::generic::{add, cast, words};
use crate::kernel::head::Head;

/// Bytes of the logits of a block. They are enough to fill a GPU, and few compared with the weights
/// of a model.
const BLOCK_BYTES: usize = 256 << 20;
/// Maximum number of rows of a block in the backward of a trained head. With more rows, a block of
/// [`BLOCK_BYTES`] would have too few words.
pub(super) const BACKWARD_ROWS: usize = 8192;

/// Columns of the reduced output: log-prob, maximum and log-sum, then the by-products.
pub(super) fn columns(statistics: bool) -> usize {
    if statistics { 3 + STATISTICS } else { 3 }
}

fn blocks(all: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..all)
        .step_by(step)
        .map(move |start| (start, step.min(all - start)))
}

/// `size` rounded down to a multiple of `to`, but at least `to`.
fn align(size: usize, to: usize) -> usize {
    (size / to).max(1) * to
}

/// The bias `[vocab]`, if the head has one.
fn bias(head: &Head<CubeBackend>) -> Option<CubeTensor> {
    head.form.biased.then(|| into_contiguous(head.bias.clone()))
}

/// Splits the reduced output of the rows into its columns.
pub(super) fn outputs(
    reduced: &CubeTensor,
    statistics: bool,
    slope: Option<CubeTensor>,
) -> Forward<CubeBackend> {
    let [rows, _] = reduced.meta.shape().dims();
    let log_probs = part(reduced, 1, 0, 1);
    Forward {
        log_probs: CubeBackend::float_reshape(log_probs, Shape::new([rows])),
        normalizer: part(reduced, 1, 1, 2),
        statistics: statistics.then(|| part(reduced, 1, 3, STATISTICS)),
        slope,
        tiles: Vec::new(),
    }
}

pub(super) fn head_forward(
    head: &Head<CubeBackend>,
    slope: bool,
    statistics: bool,
) -> Forward<CubeBackend> {
    let [rows, width] = head.hidden.meta.shape().dims();
    let (words, bias) = (words(head), bias(head));
    let [vocab, _] = words.meta.shape().dims();
    let targets = into_contiguous(head.targets.clone());
    let reduced = empty(&head.hidden, [rows, columns(statistics)], DType::F32);
    let mut slopes = Vec::new();
    let ones = slope.then(|| {
        let shape = Shape::new([rows]);
        CubeBackend::float_ones(shape, &head.hidden.device, DType::F32.into())
    });
    let step = align(BLOCK_BYTES / (4 * vocab), 16).clamp(1, rows);
    for (start, length) in blocks(rows, step) {
        let states = part(&head.hidden, 0, start, length);
        let x = product(states, transposed(&words), None, DType::F32);
        let block = Block::new(x, bias.clone(), head.form.shaping);
        block.reduce(&targets, &reduced, start, statistics);
        if let Some(ones) = &ones {
            // With a `grad` of ones, the result is the gradient of each log-probability.
            let normalizer = into_contiguous(part(&reduced, 1, 1, 2));
            let dtype = head.hidden.dtype;
            let delta = block.turn(&targets, &normalizer, ones, [start, 0], dtype);
            slopes.push(product(delta, words.clone(), None, DType::F32));
        }
    }
    let slope = slope.then(|| cat(slopes));
    debug_assert!(slope.as_ref().is_none_or(|s| s.meta.shape()[1] == width));
    outputs(&reduced, statistics, slope)
}

/// The rows `first_row..first_row + rows` and words `first_word..first_word + words` of a head.
struct Bounds {
    first_row: usize,
    rows: usize,
    first_word: usize,
    words: usize,
}

pub(super) fn head_backward(
    head: &Head<CubeBackend>,
    normalizer: &CubeTensor,
    grad: &CubeTensor,
    wanted: [bool; 3],
    most_rows: usize,
) -> HeadGradients<CubeBackend> {
    let targets = into_contiguous(head.targets.clone());
    let dtype = head.hidden.dtype;
    gradients(head, wanted, most_rows, |block, bounds| {
        let from = [bounds.first_row, bounds.first_word];
        block.turn(&targets, normalizer, grad, from, dtype)
    })
}

/// `kept` and `grad` are contiguous.
pub(super) fn head_comparison_backward(
    kind: Discrepancy,
    policy: &Head<CubeBackend>,
    reference: &Head<CubeBackend>,
    [kept, grad]: [&CubeTensor; 2],
    wanted: [bool; 3],
    most_rows: usize,
) -> HeadGradients<CubeBackend> {
    let dtype = policy.hidden.dtype;
    let (words, bias) = (words(reference), bias(reference));
    let targets = into_contiguous(policy.targets.clone());
    gradients(policy, wanted, most_rows, |policy, bounds| {
        let some = part(&words, 0, bounds.first_word, bounds.words);
        let bias = bias.as_ref();
        let bias = bias.map(|bias| into_contiguous(part(bias, 0, bounds.first_word, bounds.words)));
        let comparison = block::Comparison {
            kind,
            policy,
            reference: block_of(reference, (bounds.first_row, bounds.rows), &some, bias),
        };
        comparison.turn(&targets, kept, grad, bounds.first_row, dtype)
    })
}

/// Gradients of a head, where `turn` makes the gradient of a block of x = W h + b.
///
/// The outer loop goes through blocks of words, the inner loop through blocks of `most_rows` rows.
/// So the parts of all rows for one block of words are summed in f32, and the sum is written once.
fn gradients(
    head: &Head<CubeBackend>,
    [wants_hidden, wants_weight, wants_bias]: [bool; 3],
    most_rows: usize,
    turn: impl Fn(Block, &Bounds) -> CubeTensor,
) -> HeadGradients<CubeBackend> {
    let dtype = head.hidden.dtype;
    let [rows, _] = head.hidden.meta.shape().dims();
    let (words, bias) = (words(head), bias(head));
    let [vocab, _] = words.meta.shape().dims();
    let axis = usize::from(!head.form.words_first);
    let shape: [usize; 2] = head.weight.meta.shape().dims();
    let mut weight = wants_weight.then(|| empty(&head.weight, shape, dtype));
    let mut hidden = vec![None; rows.div_ceil(most_rows)];
    let mut biases = Vec::new();
    let step = align(BLOCK_BYTES / (4 * rows.min(most_rows)), WORDS).min(vocab);
    for (start, length) in blocks(vocab, step) {
        let some = part(&words, 0, start, length);
        let some_bias = bias
            .as_ref()
            .map(|bias| into_contiguous(part(bias, 0, start, length)));
        let (mut of_weight, mut of_bias) = (None, None);
        for ((first_row, rows_here), hidden) in blocks(rows, most_rows).zip(&mut hidden) {
            let states = part(&head.hidden, 0, first_row, rows_here);
            let block = block_of(head, (first_row, rows_here), &some, some_bias.clone());
            let bounds = Bounds {
                first_row,
                rows: rows_here,
                first_word: start,
                words: length,
            };
            let delta = turn(block, &bounds);
            if wants_bias {
                let wide = CubeBackend::float_cast(delta.clone(), DType::F32.into());
                add::<CubeBackend>(&mut of_bias, CubeBackend::float_sum_dim(wide, 0));
            }
            if let Some(weight) = &weight {
                let (lhs, rhs) = if head.form.words_first {
                    (transposed(&delta), states)
                } else {
                    (transposed(&states), delta.clone())
                };
                if rows_here == rows {
                    product(lhs, rhs, Some(place(weight, axis, start, length)), dtype);
                } else {
                    add::<CubeBackend>(&mut of_weight, product(lhs, rhs, None, DType::F32));
                }
            }
            if wants_hidden {
                add::<CubeBackend>(hidden, product(delta, some.clone(), None, DType::F32));
            }
        }
        weight = weight.map(|weight| match of_weight {
            Some(sum) => {
                let mut slices = vec![Slice::full(); axis];
                slices.push(Slice::from(start..start + length));
                CubeBackend::float_slice_assign(weight, &slices, cast::<CubeBackend>(sum, dtype))
            }
            None => weight,
        });
        biases.extend(of_bias.map(|sum| CubeBackend::float_reshape(sum, Shape::new([length]))));
    }
    let joined = |parts: Vec<CubeTensor>| {
        (!parts.is_empty()).then(|| cast::<CubeBackend>(cat(parts), dtype))
    };
    let hidden = hidden.into_iter().flatten().collect();
    [joined(hidden), weight, joined(biases)]
}

/// A block of logits under one head, unfinished: rows of hidden states times all words.
fn block_of(
    head: &Head<CubeBackend>,
    (first_row, rows): (usize, usize),
    words: &CubeTensor,
    bias: Option<CubeTensor>,
) -> Block {
    let states = part(&head.hidden, 0, first_row, rows);
    let x = product(states, transposed(words), None, DType::F32);
    Block::new(x, bias, head.form.shaping)
}

pub(super) fn head_comparison(
    kind: Discrepancy,
    policy: &Head<CubeBackend>,
    reference: &Head<CubeBackend>,
    slope: bool,
) -> Comparison<CubeBackend> {
    let [rows, _] = policy.hidden.meta.shape().dims();
    let heads = [policy, reference];
    let [our_words, their_words] = heads.map(words);
    let [our_bias, their_bias] = heads.map(bias);
    let [vocab, _] = our_words.meta.shape().dims();
    // The results do not depend on the targets, which may be any.
    let targets = into_contiguous(policy.targets.clone());
    let (mut all, mut keep, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
    let step = align(BLOCK_BYTES / (4 * vocab), 16).clamp(1, rows);
    for (start, length) in blocks(rows, step) {
        let comparison = block::Comparison {
            kind,
            policy: block_of(policy, (start, length), &our_words, our_bias.clone()),
            reference: block_of(reference, (start, length), &their_words, their_bias.clone()),
        };
        let [discrepancy, kept] = comparison.reduce(&targets);
        if slope {
            let shape = Shape::new([length]);
            let ones = CubeBackend::float_ones(shape, &policy.hidden.device, DType::F32.into());
            let delta = comparison.turn(&targets, &kept, &ones, 0, policy.hidden.dtype);
            slopes.push(product(delta, our_words.clone(), None, DType::F32));
        }
        all.push(discrepancy);
        keep.push(kept);
    }
    Comparison {
        discrepancy: CubeBackend::float_reshape(cat(all), Shape::new([rows])),
        kept: cat(keep),
        slope: slope.then(|| cat(slopes)),
    }
}
