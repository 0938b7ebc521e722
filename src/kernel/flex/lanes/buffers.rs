//! Buffers that start at a cache line, and their parts.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::panel::LANES;
use crate::kernel::flex::tensors::tensor;

/// A buffer of numbers that starts at a cache line. A vector that crosses into a second cache line
/// would need two reads.
pub(super) struct Aligned {
    data: Vec<f32>,
    start: usize,
}

impl Aligned {
    pub(super) fn zeros(len: usize) -> Self {
        let data = vec![0.0; len + LANES];
        let start = data.as_ptr().align_offset(64).min(LANES);
        Self { data, start }
    }

    pub(super) fn get(&self) -> &[f32] {
        &self.data[self.start..][..self.data.len() - LANES]
    }

    pub(super) fn get_mut(&mut self) -> &mut [f32] {
        let len = self.data.len() - LANES;
        &mut self.data[self.start..][..len]
    }

    pub(super) fn into_tensor(self) -> FlexTensor {
        let (start, len) = (self.start, self.data.len());
        tensor(self.data, [len]).narrow(0, start, len - LANES)
    }
}

/// Splits `all` into consecutive parts of the lengths `lens`.
pub(super) fn split<T>(mut all: &mut [T], lens: impl IntoIterator<Item = usize>) -> Vec<&mut [T]> {
    lens.into_iter()
        .map(|len| {
            let (part, rest) = std::mem::take(&mut all).split_at_mut(len);
            all = rest;
            part
        })
        .collect()
}

/// A buffer with one part for each block. `len` gives the length of a part from the number of rows
/// of the block. `fill` writes the parts in parallel.
pub(super) fn of_blocks(
    blocks: &[Range<usize>],
    len: impl Fn(usize) -> usize,
    fill: impl Fn(&Range<usize>, &mut [f32]) + Sync,
) -> Aligned {
    let lens: Vec<usize> = blocks.iter().map(|block| len(block.len())).collect();
    let mut all = Aligned::zeros(lens.iter().sum());
    split(all.get_mut(), lens)
        .into_par_iter()
        .zip(blocks)
        .for_each(|(out, block)| fill(block, out));
    all
}
