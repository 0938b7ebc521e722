//! The kernel for given logits. The forward is one pass; the backward is one pass that writes into
//! the buffer of the logits.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::IntTensor;
use pulp::Arch;
use rayon::prelude::*;

use super::comparison::{self, Lanes, Normalizer, Terms, sums};
use super::elementwise::{LANES, narrow};
use super::partial::{Partial, RowState, outputs};
use super::row::{observe, turn};
use super::tensors::{f32s, indices, tensor};
use crate::kernel::discrepancy::{Comparison, KEPT};
use crate::kernel::forward::Forward;

fn is_counted(counted: &FlexTensor) -> Vec<bool> {
    counted.to_contiguous().into_data().iter::<bool>().collect()
}

/// Reduces a row of logits in pieces that stay in the L1 cache.
fn reduced(arch: Arch, logits: &[f32], statistics: bool) -> Partial {
    const PIECE: usize = 4096;
    let mut partial = Partial::EMPTY;
    for (index, piece) in logits.chunks(PIECE).enumerate() {
        let more = observe(arch, piece, f32::NEG_INFINITY, statistics);
        partial = partial.and(more.starting_at(index * PIECE));
    }
    partial
}

pub(super) fn forward(
    logits: &FlexTensor,
    targets: IntTensor<Flex>,
    counted: &FlexTensor,
    statistics: bool,
) -> Forward<Flex> {
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
            RowState {
                partial: reduced(arch, logits, statistics),
                target: logits[targets[row]],
            }
        })
        .collect();
    outputs(&rows, &targets, vocab, statistics)
}

pub(super) fn backward(
    logits: FlexTensor,
    targets: IntTensor<Flex>,
    counted: &FlexTensor,
    normalizer: &FlexTensor,
    grad: &FlexTensor,
) -> FlexTensor {
    let [_, vocab] = logits.layout().shape().dims();
    let (targets, counted) = (indices(targets), is_counted(counted));
    let (normalizer, grad) = (f32s(normalizer), f32s(grad));
    let arch = Arch::new();
    let mut logits = whole(logits);
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

/// The tensor, with an allocation that holds nothing else.
fn whole(logits: FlexTensor) -> FlexTensor {
    let all = logits.layout().num_elements() * size_of::<f32>() == logits.bytes().len();
    if logits.is_contiguous() && all {
        return logits;
    }
    logits.to_contiguous()
}

/// Compares the logits of two models, row by row.
pub(super) fn compare(
    terms: impl Terms,
    [ours, theirs]: [&FlexTensor; 2],
    counted: &FlexTensor,
) -> Comparison<Flex> {
    let [rows, vocab] = ours.layout().shape().dims();
    let [ours, theirs] = [ours, theirs].map(|logits| logits.as_slice().expect("contiguous f32"));
    let counted = is_counted(counted);
    let arch = Arch::new();
    let of_row = |(row, (ours, theirs)): (usize, (&[f32], &[f32]))| {
        if !counted[row] {
            return [0.0; 1 + KEPT];
        }
        let normalizers = [ours, theirs].map(|logits| {
            let partial = reduced(arch, logits, false);
            let (max, log_sum) = (partial.max.into(), partial.log_sum());
            Normalizer { max, log_sum }
        });
        let of = Lanes::new(|_| (normalizers, 0.0, 0.0));
        let mut totals = [0.0; 2];
        each_stretch(ours, theirs, |logits| {
            let more = sums(arch, terms, logits, LANES, &of);
            for (total, more) in totals.iter_mut().zip(more) {
                *total += more.iter().sum::<f64>();
            }
        });
        let [ours, theirs] = normalizers;
        let kept = [
            ours.max,
            ours.log_sum,
            theirs.max,
            theirs.log_sum,
            totals[1],
        ];
        let mut all = [totals[0]; 1 + KEPT];
        all[1..].copy_from_slice(&kept);
        all.map(narrow)
    };
    let all = ours.par_chunks(vocab).zip(theirs.par_chunks(vocab));
    let all: Vec<[f32; 1 + KEPT]> = all.enumerate().map(of_row).collect();
    let kept = all.iter().flat_map(|of| &of[1..]).copied().collect();
    Comparison {
        discrepancy: tensor(all.iter().map(|of| of[0]).collect(), [rows]),
        kept: tensor(kept, [rows, KEPT]),
        slope: None,
    }
}

/// What a backward has beside the policy's logits.
pub(super) struct Compared<'a> {
    pub theirs: &'a FlexTensor,
    pub counted: &'a FlexTensor,
    pub kept: &'a FlexTensor,
    pub grad: &'a FlexTensor,
}

/// The gradient of the policy's logits, from [`Comparison::kept`].
pub(super) fn compared_gradient(terms: impl Terms, ours: FlexTensor, of: Compared) -> FlexTensor {
    let [_, vocab] = ours.layout().shape().dims();
    let theirs: &[f32] = of.theirs.as_slice().expect("contiguous f32");
    let counted = is_counted(of.counted);
    let [grad, kept] = [of.grad, of.kept].map(f32s);
    let kept: &[[f32; KEPT]] = kept.as_chunks().0;
    let arch = Arch::new();
    let mut ours = whole(ours);
    let values: &mut [f32] = ours.storage_mut();
    let rows = values.par_chunks_mut(vocab).zip(theirs.par_chunks(vocab));
    rows.enumerate().for_each(|(row, (ours, theirs))| {
        if !counted[row] {
            ours.fill(0.0);
            return;
        }
        let (normalizers, mean) = Normalizer::of_kept(kept[row]);
        let of = Lanes::new(|_| (normalizers, mean, grad[row].into()));
        let (ours, rest) = ours.as_chunks_mut::<LANES>();
        let (theirs, their_rest) = theirs.as_chunks::<LANES>();
        let logits = (ours.as_flattened_mut(), theirs.as_flattened());
        comparison::turn(arch, terms, logits, LANES, &of, 0.0);
        let [mut last, mut their_last] = [[f32::NEG_INFINITY; LANES]; 2];
        last[..rest.len()].copy_from_slice(rest);
        their_last[..rest.len()].copy_from_slice(their_rest);
        comparison::turn(arch, terms, (&mut last, &their_last), LANES, &of, 0.0);
        rest.copy_from_slice(&last[..rest.len()]);
    });
    ours
}

/// Calls `work` with the logits of both models: whole vectors first, then the rest of them, filled
/// up with words that neither model has.
fn each_stretch(ours: &[f32], theirs: &[f32], mut work: impl FnMut([&[f32]; 2])) {
    let [(ours, rest), (theirs, their_rest)] = [ours, theirs].map(<[f32]>::as_chunks::<LANES>);
    work([ours.as_flattened(), theirs.as_flattened()]);
    let mut last = [[f32::NEG_INFINITY; LANES]; 2];
    last[0][..rest.len()].copy_from_slice(rest);
    last[1][..rest.len()].copy_from_slice(their_rest);
    work([&last[0], &last[1]]);
}
