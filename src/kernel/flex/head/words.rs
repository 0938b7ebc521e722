//! The weight of a head, in any number type and layout: its words as an operand of a product.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, bf16, f16};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::panels::LANES;
use super::product::Factors;

/// Some words as f32. The numbers of a word, or those of a column, lie side by side.
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

    /// The block from a word and a column on.
    pub(super) fn from(self, word: usize, column: usize) -> Self {
        let values = &self.values[word * self.down + column * self.right..];
        Self { values, ..self }
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
    /// Number of columns.
    width: usize,
}

impl Words {
    /// The weight is `[vocab, hidden]` if `words_first`, otherwise `[hidden, vocab]`.
    pub(super) fn new(tensor: FlexTensor, words_first: bool, width: usize) -> Self {
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
            width,
        }
    }

    fn place(&self, word: usize, column: usize) -> usize {
        let from_start = word.cast_signed() * self.down + column.cast_signed() * self.right;
        (self.start + from_start).cast_unsigned()
    }

    /// Whether products read the weight where it is stored. Half precision is not, nor is a layout
    /// in which the numbers of a word lie pages apart.
    pub(super) fn in_place(&self) -> bool {
        let side_by_side = self.right == 1 && self.down >= self.width.cast_signed();
        self.tensor.dtype() == DType::F32 && side_by_side
    }

    /// Numbers that a copy of `words` words takes: none if there is no need of one.
    pub(super) fn room(&self, words: usize) -> usize {
        if self.in_place() {
            return 0;
        }
        let [outer, stride] = self.lines(words);
        outer * stride
    }

    /// Number of lines of a copy, and their distance. What lies side by side stays side by side.
    fn lines(&self, words: usize) -> [usize; 2] {
        if self.down == 1 {
            [self.width, apart(words)]
        } else {
            [words, apart(self.width)]
        }
    }

    /// Copies some words into `room`, if they are not read in place.
    pub(super) fn fill(&self, words: &Range<usize>, room: &mut [f32]) {
        let [_, stride] = self.lines(words.len());
        let lines = room.chunks_mut(stride).enumerate();
        lines.for_each(|(line, out)| self.copy(words, line, out));
    }

    /// As [`Self::fill`], on all threads.
    pub(super) fn fill_in_parallel(&self, words: &Range<usize>, room: &mut [f32]) {
        let [_, stride] = self.lines(words.len());
        let lines = room.par_chunks_mut(stride).enumerate();
        lines.for_each(|(line, out)| self.copy(words, line, out));
    }

    /// Some words, from where they are stored, or from the copy in `room`.
    pub(super) fn block<'a>(&'a self, words: &Range<usize>, room: &'a [f32]) -> Block<'a> {
        if self.in_place() {
            let stored: &[f32] = self.tensor.storage();
            return Block {
                values: &stored[self.place(words.start, 0)..],
                down: self.down.cast_unsigned(),
                right: 1,
            };
        }
        let [_, stride] = self.lines(words.len());
        let [down, right] = if self.down == 1 {
            [1, stride]
        } else {
            [stride, 1]
        };
        Block {
            values: room,
            down,
            right,
        }
    }

    /// Copies a line, unless there are fewer.
    fn copy(&self, words: &Range<usize>, line: usize, out: &mut [f32]) {
        let [lines, _] = self.lines(words.len());
        if line >= lines {
            return;
        }
        if self.down == 1 {
            self.read(self.place(words.start, line), 1, &mut out[..words.len()]);
        } else {
            let first = self.place(words.start + line, 0);
            self.read(first, self.right, &mut out[..self.width]);
        }
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
        let width = self.width;
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
