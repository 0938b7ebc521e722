//! The weight of a head, in any number type and layout: its words as an operand of a product.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, bf16, f16};
use half::slice::HalfFloatSliceExt;

use super::buffers::Pool;
use super::panels::LANES;
use super::product::Factors;

/// What the sum of a product with words runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    /// The columns: the products are logits.
    Columns,
    /// The words: the products are the gradient of hidden states.
    Words,
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

    /// Whether logits are computed from the weight where it is stored, without a copy of each chunk.
    pub(super) fn in_place(&self) -> bool {
        self.tensor.dtype() == DType::F32 && self.right == 1 && self.down >= 0
    }

    /// Numbers that a copy of `words` × `columns` may need.
    pub(super) fn room(words: usize, columns: usize) -> usize {
        (words * apart(columns)).max(columns * apart(words))
    }

    fn place(&self, word: usize, column: usize) -> usize {
        let from_start = word.cast_signed() * self.down + column.cast_signed() * self.right;
        (self.start + from_start).cast_unsigned()
    }

    /// Calls `work` with some columns of some words. j and k of the factors are word and column, or
    /// column and word: k is what `sum` runs over. Half precision, and a layout whose numbers for
    /// one k lie pages apart, are copied into a buffer of the pool first.
    pub(super) fn with<R>(
        &self,
        words: &Range<usize>,
        columns: &Range<usize>,
        sum: Sum,
        pool: &Pool,
        work: impl FnOnce(Factors) -> R,
    ) -> R {
        if self.tensor.dtype() == DType::F32 {
            let stored: &[f32] = self.tensor.storage();
            let values = &stored[self.place(words.start, columns.start)..];
            let [down, right] = [self.down, self.right].map(|stride| usize::try_from(stride).ok());
            match (sum, down, right) {
                (Sum::Columns, Some(stride), Some(1)) => {
                    return work(Factors::Rows { values, stride });
                }
                (Sum::Words, Some(stride), Some(1)) if stride >= columns.len() => {
                    return work(Factors::Columns { values, stride });
                }
                (Sum::Words, Some(1), Some(stride)) => {
                    return work(Factors::Rows { values, stride });
                }
                _ => {}
            }
        }
        pool.with(|copy| {
            // What lies side by side stays side by side.
            let columns_outside = self.down == 1;
            let (outer, inner) = if columns_outside {
                (columns, words)
            } else {
                (words, columns)
            };
            let stride = apart(inner.len());
            for (line, outer) in copy.chunks_mut(stride).zip(outer.clone()) {
                let line = &mut line[..inner.len()];
                if columns_outside {
                    self.read(self.place(inner.start, outer), 1, line);
                } else {
                    self.read(self.place(outer, inner.start), self.right, line);
                }
            }
            let values = &*copy;
            work(if columns_outside == (sum == Sum::Words) {
                Factors::Rows { values, stride }
            } else {
                Factors::Columns { values, stride }
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

    /// Adds `factor` times a word to `out`.
    pub(super) fn add(&self, word: usize, factor: f32, scratch: &mut [f32], out: &mut [f32]) {
        let scratch = &mut scratch[..out.len()];
        self.read(self.place(word, 0), self.right, scratch);
        for (out, x) in out.iter_mut().zip(scratch) {
            *out += factor * *x;
        }
    }
}

/// Distance of two lines of a copy: an odd number of cache lines, so that the lines of a column do
/// not all fall into one set of the cache.
fn apart(len: usize) -> usize {
    len.div_ceil(LANES) / 2 * 2 * LANES + LANES
}
