//! The gradient of a weight, in the number type and the layout of the weight.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::{Bytes, DType, bf16, f16};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;

use super::buffers::split;
use super::panels::{LANES, Panels};
use crate::kernel::flex::tensors::from_bytes;

/// A number type of weights.
pub(super) trait Number: Copy + Send + Sync {
    const DTYPE: DType;

    fn zeros(len: usize) -> Vec<Self>;

    /// Rounds `values` into `out`.
    fn write(out: &mut [Self], values: &[f32]);

    fn bytes(values: Vec<Self>) -> Bytes;
}

impl Number for f32 {
    const DTYPE: DType = DType::F32;

    fn zeros(len: usize) -> Vec<Self> {
        vec![0.0; len]
    }

    fn write(out: &mut [Self], values: &[f32]) {
        out.copy_from_slice(values);
    }

    fn bytes(values: Vec<Self>) -> Bytes {
        Bytes::from_elems(values)
    }
}

macro_rules! half_precision {
    ($number:ty, $dtype:ident) => {
        impl Number for $number {
            const DTYPE: DType = DType::$dtype;

            fn zeros(len: usize) -> Vec<Self> {
                // Zeros of integers cost no pages before they are written.
                vec![0_u16; len].reinterpret_into()
            }

            fn write(out: &mut [Self], values: &[f32]) {
                out.convert_from_f32_slice(values);
            }

            fn bytes(values: Vec<Self>) -> Bytes {
                Bytes::from_elems(values)
            }
        }
    };
}

half_precision!(f16, F16);
half_precision!(bf16, BF16);

/// The gradient of a weight.
pub(super) struct WeightGradient<N> {
    values: Vec<N>,
    words_first: bool,
    vocab: usize,
    width: usize,
}

/// The gradient of the words of one chunk.
pub(super) enum Part<'a, N> {
    /// Word after word.
    Words(&'a mut [N]),
    /// A slice for each column.
    Columns(Vec<&'a mut [N]>),
}

impl<N: Number> WeightGradient<N> {
    pub(super) fn zeros(words_first: bool, vocab: usize, width: usize) -> Self {
        let values = N::zeros(vocab * width);
        Self {
            values,
            words_first,
            vocab,
            width,
        }
    }

    /// The parts of consecutive ranges of words.
    pub(super) fn parts(&mut self, words: &[Range<usize>]) -> Vec<Part<'_, N>> {
        let (Some(first), Some(last)) = (words.first(), words.last()) else {
            return Vec::new();
        };
        let all = first.start..last.end;
        if self.words_first {
            return Part::of_words(&mut self.values, words, self.width);
        }
        let mut parts: Vec<Vec<&mut [N]>> = words.iter().map(|_| Vec::new()).collect();
        for column in self.values.chunks_exact_mut(self.vocab) {
            let pieces = split(&mut column[all.clone()], words.iter().map(Range::len));
            for (part, piece) in parts.iter_mut().zip(pieces) {
                part.push(piece);
            }
        }
        parts.into_iter().map(Part::Columns).collect()
    }

    /// The gradient `[vocab, width]` whose numbers are the first ones of an allocation.
    pub(super) fn at_the_start_of(mut values: Vec<N>, vocab: usize, width: usize) -> Self {
        values.truncate(vocab * width);
        values.shrink_to_fit();
        Self {
            values,
            words_first: true,
            vocab,
            width,
        }
    }

    pub(super) fn into_tensor(self) -> FlexTensor {
        let shape = if self.words_first {
            [self.vocab, self.width]
        } else {
            [self.width, self.vocab]
        };
        from_bytes(N::bytes(self.values), shape, N::DTYPE)
    }
}

impl<'a, N> Part<'a, N> {
    /// The parts of consecutive ranges of words in a gradient `[vocab, width]`.
    pub(super) fn of_words(values: &'a mut [N], words: &[Range<usize>], width: usize) -> Vec<Self> {
        let first = words.first().map_or(0, |words| words.start * width);
        let lens = words.iter().map(|words| words.len() * width);
        let parts = split(&mut values[first..], lens);
        parts.into_iter().map(Part::Words).collect()
    }
}

impl<N: Number> Part<'_, N> {
    /// Writes a matrix in panels, whose rows are the words and whose columns are those of the
    /// weight.
    pub(super) fn write(self, panels: Panels, matrix: &[f32], [words, columns]: [usize; 2]) {
        match self {
            Part::Words(out) => {
                for panel in panels.of(columns) {
                    let lines = panel.of(matrix, words).chunks_exact(panel.width);
                    let inside = panel.first..columns.min(panel.first + panel.width);
                    for (out, line) in out.chunks_exact_mut(columns).zip(lines) {
                        N::write(&mut out[inside.clone()], &line[..inside.len()]);
                    }
                }
            }
            Part::Columns(mut out) => {
                for panel in panels.of(columns) {
                    let lines = panel.of(matrix, words);
                    let out = out[panel.first..]
                        .chunks_mut(LANES)
                        .take(panel.width / LANES);
                    for (vector, out) in out.enumerate() {
                        transpose(&lines[vector * LANES..], panel.width, out);
                    }
                }
            }
        }
    }
}

/// Writes up to [`LANES`] columns of `lines`, which start every `stride` numbers.
fn transpose<N: Number>(lines: &[f32], stride: usize, out: &mut [&mut [N]]) {
    for (group, lines) in lines.chunks(LANES * stride).enumerate() {
        let mut square = [[0.0; LANES]; LANES];
        let mut words = 0;
        for line in lines
            .chunks(stride)
            .filter_map(<[f32]>::first_chunk::<LANES>)
        {
            for (column, x) in square.iter_mut().zip(line) {
                column[words] = *x;
            }
            words += 1;
        }
        let first = group * LANES;
        for (out, column) in out.iter_mut().zip(&square) {
            N::write(&mut out[first..first + words], &column[..words]);
        }
    }
}
