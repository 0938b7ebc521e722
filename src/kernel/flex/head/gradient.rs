//! The gradient of a weight, in the number type and the layout of the weight.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::{Bytes, DType, TensorData, bf16, f16};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::vec::HalfBitsVecExt;
use pulp::bytemuck::{cast_slice, cast_slice_mut};

use super::buffers::split;
use super::panels::{LANES, Panels};
use crate::kernel::flex::tensors::from_bytes;

/// A number type of weights.
pub(super) trait Number: Copy + Send + Sync {
    const DTYPE: DType;

    fn zeros(len: usize) -> Vec<Self>;

    /// Rounds `values` into `out`.
    fn write(out: &mut [Self], values: &[f32]);

    /// The bits of `values`, as numbers of this type.
    fn bits(values: &[f32]) -> &[Self];

    /// As [`Self::bits`].
    fn bits_mut(values: &mut [f32]) -> &mut [Self];

    /// The numbers themselves, if they are f32.
    fn singles(values: &mut [Self]) -> Option<&mut [f32]>;

    fn bytes(values: Vec<Self>) -> Bytes;

    /// The inverse of [`Self::bytes`].
    fn from_data(data: TensorData) -> Vec<Self>;
}

/// Count of the numbers that take as many bits as an f32.
pub(super) fn per_single<N>() -> usize {
    size_of::<f32>() / size_of::<N>()
}

impl Number for f32 {
    const DTYPE: DType = DType::F32;

    fn zeros(len: usize) -> Vec<Self> {
        vec![0.0; len]
    }

    fn write(out: &mut [Self], values: &[f32]) {
        out.copy_from_slice(values);
    }

    fn bits(values: &[f32]) -> &[Self] {
        values
    }

    fn bits_mut(values: &mut [f32]) -> &mut [Self] {
        values
    }

    fn singles(values: &mut [Self]) -> Option<&mut [f32]> {
        Some(values)
    }

    fn bytes(values: Vec<Self>) -> Bytes {
        Bytes::from_elems(values)
    }

    fn from_data(data: TensorData) -> Vec<Self> {
        data.into_vec().expect("f32")
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

            fn bits(values: &[f32]) -> &[Self] {
                cast_slice::<f32, u16>(values).reinterpret_cast()
            }

            fn bits_mut(values: &mut [f32]) -> &mut [Self] {
                cast_slice_mut::<f32, u16>(values).reinterpret_cast_mut()
            }

            fn singles(_: &mut [Self]) -> Option<&mut [f32]> {
                None
            }

            fn bytes(values: Vec<Self>) -> Bytes {
                Bytes::from_elems(values)
            }

            fn from_data(data: TensorData) -> Vec<Self> {
                data.into_vec().expect("half precision")
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
    pub(super) fn new(values: Vec<N>, words_first: bool, [vocab, width]: [usize; 2]) -> Self {
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
            let lens = words.iter().map(|words| words.len() * self.width);
            let parts = split(&mut self.values[all.start * self.width..], lens);
            return parts.into_iter().map(Part::Words).collect();
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

    pub(super) fn into_tensor(self) -> FlexTensor {
        let shape = if self.words_first {
            [self.vocab, self.width]
        } else {
            [self.width, self.vocab]
        };
        from_bytes(N::bytes(self.values), shape, N::DTYPE)
    }
}

impl<N: Number> Part<'_, N> {
    /// The part of the first words, and the others. A word has `width` numbers.
    pub(super) fn cut(self, words: usize, width: usize) -> [Self; 2] {
        match self {
            Self::Words(all) => {
                let (first, rest) = all.split_at_mut(words * width);
                [first, rest].map(Self::Words)
            }
            Self::Columns(all) => {
                let columns = all.into_iter().map(|column| column.split_at_mut(words));
                let (first, rest) = columns.unzip();
                [first, rest].map(Self::Columns)
            }
        }
    }

    /// Cuts the part into rooms for the logits of `words` words: one room for each number of lanes.
    pub(super) fn rooms(self, words: usize, lanes: &[usize]) -> Vec<Self> {
        let lines = lanes.iter().map(|lanes| lanes * per_single::<N>());
        match self {
            Self::Words(all) => {
                let rooms = split(all, lines.map(|lines| lines * words));
                rooms.into_iter().map(Self::Words).collect()
            }
            Self::Columns(columns) => {
                let mut columns = columns.into_iter();
                lines
                    .map(|lines| Self::Columns(columns.by_ref().take(lines).collect()))
                    .collect()
            }
        }
    }

    /// A room whose numbers are f32 and follow each other: a tile may be computed there.
    pub(super) fn as_tile(&mut self) -> Option<&mut [f32]> {
        match self {
            Self::Words(room) => N::singles(room),
            Self::Columns(_) => None,
        }
    }

    /// Fills a room with logits.
    pub(super) fn hold(self, words: usize, logits: &[f32]) {
        let bits = N::bits(logits);
        match self {
            Self::Words(room) => room.copy_from_slice(bits),
            Self::Columns(columns) => {
                let lines = bits.chunks_exact(words);
                columns
                    .into_iter()
                    .zip(lines)
                    .for_each(|(column, bits)| column.copy_from_slice(bits));
            }
        }
    }

    /// The inverse of [`Self::hold`]: reads the room that starts `lanes` lanes after the start of
    /// the part.
    pub(super) fn held(&self, lanes: usize, words: usize, logits: &mut [f32]) {
        let first = lanes * per_single::<N>();
        let bits = N::bits_mut(logits);
        match self {
            Self::Words(all) => bits.copy_from_slice(&all[first * words..][..bits.len()]),
            Self::Columns(columns) => {
                let lines = bits.chunks_exact_mut(words);
                lines
                    .zip(&columns[first..])
                    .for_each(|(bits, column)| bits.copy_from_slice(column));
            }
        }
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
            if words == LANES {
                // A length that the compiler knows: no call for a few numbers.
                N::write(&mut out[first..first + LANES], column);
            } else {
                N::write(&mut out[first..first + words], &column[..words]);
            }
        }
    }
}
