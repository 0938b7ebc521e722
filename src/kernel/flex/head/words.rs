//! The weight of a head, in any number type and layout: its words as an operand of a product.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, bf16, f16};
use half::slice::HalfFloatSliceExt;

use super::buffers::Pool;
use super::panels::LANES;
use super::product::Factors;

/// The sums that run over some words and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    /// Over columns: logits.
    OverColumns,
    /// Over words: the gradient of hidden states.
    OverWords,
    Both,
}

/// Some columns of some words, as f32. Words or columns lie side by side.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    values: &'a [f32],
    /// Distance of two words.
    down: usize,
    /// Distance of two columns.
    right: usize,
}

impl<'a> Block<'a> {
    /// The block for a sum over columns: j is a word, k a column.
    pub(super) fn over_columns(self) -> Factors<'a> {
        Self::factors(self.values, self.down, self.right)
    }

    /// The block for a sum over words: j is a column, k a word.
    pub(super) fn over_words(self) -> Factors<'a> {
        Self::factors(self.values, self.right, self.down)
    }

    fn factors(values: &'a [f32], j: usize, k: usize) -> Factors<'a> {
        if k == 1 {
            Factors::Rows { values, stride: j }
        } else {
            Factors::Columns { values, stride: k }
        }
    }
}

/// The weight of a head, `[vocab, hidden]` in any layout.
pub(super) struct Words {
    tensor: FlexTensor,
    /// Place of the first number.
    start: isize,
    /// Distance of two words.
    down: isize,
    /// Distance of two columns.
    right: isize,
}

impl Words {
    /// The weight is `[vocab, hidden]` if `words_first`, otherwise `[hidden, vocab]`.
    pub(super) fn new(tensor: FlexTensor, words_first: bool) -> Self {
        let layout = tensor.layout();
        let start = layout.start_offset().cast_signed();
        let (first, second) = (layout.strides()[0], layout.strides()[1]);
        let [down, right] = if words_first {
            [first, second]
        } else {
            [second, first]
        };
        Self {
            tensor,
            start,
            down,
            right,
        }
    }

    /// Whether blocks for `sums` are read where they are stored, without a copy. `columns` is their
    /// number of columns.
    pub(super) fn in_place(&self, sums: Sums, columns: usize) -> bool {
        let apart = self.down >= columns.cast_signed();
        let side_by_side = match sums {
            Sums::OverColumns => self.right == 1 && self.down >= 0,
            Sums::OverWords => (self.right == 1 && apart) || (self.down == 1 && self.right >= 0),
            Sums::Both => self.right == 1 && apart,
        };
        self.tensor.dtype() == DType::F32 && side_by_side
    }

    /// Numbers that a copy of `words` × `columns` may need.
    pub(super) fn room(words: usize, columns: usize) -> usize {
        (words * apart(columns)).max(columns * apart(words))
    }

    fn place(&self, word: usize, column: usize) -> usize {
        let from_start = word.cast_signed() * self.down + column.cast_signed() * self.right;
        (self.start + from_start).cast_unsigned()
    }

    /// Calls `work` with some columns of some words. Half precision, and a layout whose numbers for
    /// one sum lie pages apart, are copied into a buffer of the pool first.
    pub(super) fn with<R>(
        &self,
        words: &Range<usize>,
        columns: &Range<usize>,
        sums: Sums,
        pool: &Pool,
        work: impl FnOnce(Block) -> R,
    ) -> R {
        if self.in_place(sums, columns.len()) {
            let stored: &[f32] = self.tensor.storage();
            return work(Block {
                values: &stored[self.place(words.start, columns.start)..],
                down: self.down.cast_unsigned(),
                right: self.right.cast_unsigned(),
            });
        }
        pool.with(|copy| {
            // What lies side by side stays side by side.
            let by_columns = self.down == 1;
            let (outer, inner) = if by_columns {
                (columns, words)
            } else {
                (words, columns)
            };
            let stride = apart(inner.len());
            for (line, outer) in copy.chunks_mut(stride).zip(outer.clone()) {
                let line = &mut line[..inner.len()];
                if by_columns {
                    self.read(self.place(inner.start, outer), 1, line);
                } else {
                    self.read(self.place(outer, inner.start), self.right, line);
                }
            }
            let (down, right) = if by_columns { (1, stride) } else { (stride, 1) };
            work(Block {
                values: copy,
                down,
                right,
            })
        })
    }

    /// The numbers at `first`, `first + stride`, …
    fn read(&self, first: usize, stride: isize, out: &mut [f32]) {
        let len = out.len();
        let at = |i: usize| (first.cast_signed() + i.cast_signed() * stride).cast_unsigned();
        match self.tensor.dtype() {
            DType::F32 => {
                let stored: &[f32] = self.tensor.storage();
                if stride == 1 {
                    out.copy_from_slice(&stored[first..][..len]);
                } else {
                    out.iter_mut()
                        .enumerate()
                        .for_each(|(i, x)| *x = stored[at(i)]);
                }
            }
            DType::F16 => {
                let stored: &[f16] = self.tensor.storage();
                if stride == 1 {
                    stored[first..][..len].convert_to_f32_slice(out);
                } else {
                    let each = out.iter_mut().enumerate();
                    each.for_each(|(i, x)| *x = stored[at(i)].to_f32());
                }
            }
            DType::BF16 => {
                let stored: &[bf16] = self.tensor.storage();
                if stride == 1 {
                    stored[first..][..len].convert_to_f32_slice(out);
                } else {
                    let each = out.iter_mut().enumerate();
                    each.for_each(|(i, x)| *x = stored[at(i)].to_f32());
                }
            }
            dtype => unreachable!("{dtype:?} goes another way"),
        }
    }

    /// Adds to each row of `out` its factor times its word.
    pub(super) fn add_chosen(&self, chosen: &[usize], factors: &[f32], out: &mut [f32]) {
        let width = out.len() / chosen.len().max(1);
        if self.right == 1 {
            let mut word = vec![0.0; width];
            let rows = out.chunks_exact_mut(width).zip(factors);
            for ((out, factor), chosen) in rows.zip(chosen) {
                self.read(self.place(*chosen, 0), 1, &mut word);
                out.iter_mut()
                    .zip(&word)
                    .for_each(|(out, x)| *out += factor * x);
            }
            return;
        }
        // The columns of a word lie pages apart, so column by column.
        let mut x = [0.0];
        for column in 0..width {
            let rows = out[column..].iter_mut().step_by(width).zip(factors);
            for ((out, factor), chosen) in rows.zip(chosen) {
                self.read(self.place(*chosen, column), 1, &mut x);
                *out += factor * x[0];
            }
        }
    }
}

/// Distance of two lines of a copy: an odd number of cache lines, so that the lines of a column do
/// not all fall into one set of the cache.
fn apart(len: usize) -> usize {
    len.div_ceil(LANES) / 2 * 2 * LANES + LANES
}
