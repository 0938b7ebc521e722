//! Logits that a forward keeps for its backward.
//!
//! Fresh pages cost more than the numbers on them. So the forward allocates the gradient of the
//! weight and keeps logits there: those of a chunk lie where the gradient of its words will be. The
//! backward copies the logits of a chunk before it writes the gradient over them. There is room for
//! the tiles of the first blocks. Tiles of the other blocks are kept in buffers of their own.

use std::ops::Range;
use std::vec::IntoIter;

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::Shape;

use super::buffers::{ranges, split};
use super::gradient::{Number, Part, WeightGradient, per_single};
use super::panels::padded;
use super::problem::Problem;
use crate::kernel::flex::tensors::from_bytes;

/// Bytes of one buffer of kept logits. An allocation of this size is returned to the system as soon
/// as the backward has used it.
const KEPT_BYTES: usize = 32 << 20;

/// Kept logits, as bits of numbers of the gradient.
pub(super) struct Kept<N> {
    /// The gradient of the weight, if it holds logits.
    gradient: Option<WeightGradient<N>>,
    /// Number of the first chunks whose logits the gradient holds.
    inside: usize,
    /// Chunks whose other logits are in a buffer, and this buffer.
    beside: Vec<(Range<usize>, Vec<N>)>,
}

/// The room for the logits of some chunks.
pub(super) struct Rooms<'a, N> {
    /// The gradient of the first of these chunks.
    inside: Part<'a, N>,
    /// Number of the chunks that it has room for.
    chunks: usize,
    beside: IntoIter<&'a mut [N]>,
}

/// The kept logits of a chunk.
#[derive(Clone, Copy)]
pub(super) struct Held<'a, N> {
    pub inside: Option<&'a Part<'a, N>>,
    pub beside: Option<&'a [N]>,
}

impl Problem {
    /// Number of the first blocks whose tiles fit into the gradient of their words.
    fn blocks_inside<N: Number>(&self) -> usize {
        let fits = |block: &&Range<usize>| {
            let lanes = block.start + padded(block.len());
            lanes * per_single::<N>() <= self.width
        };
        self.blocks.iter().take_while(fits).count()
    }

    /// The gradient of the weight, in this memory.
    pub(super) fn gradient_in<N: Number>(&self, values: Vec<N>) -> WeightGradient<N> {
        WeightGradient::new(values, self.words_first, [self.vocab, self.width])
    }

    /// Lanes of the blocks whose tiles fit into the gradient of their words, and of the others.
    fn lanes_inside_and_beside<N: Number>(&self) -> [usize; 2] {
        let inside = self.blocks.get(self.blocks_inside::<N>());
        let inside = inside.map_or(self.lanes(), |block| block.start);
        [inside, self.lanes() - inside]
    }
}

impl<N: Number> Kept<N> {
    /// Room for as many logits as fit into `bytes`, of the first chunks.
    pub(super) fn with_room(problem: &Problem, bytes: usize) -> Self {
        let largest = size_of::<f32>() * problem.words_of(0).len();
        let chunks = problem.chunks();
        let [inside, beside] = problem.lanes_inside_and_beside::<N>();
        let [of_inside, of_beside] = [inside, beside].map(|lanes| lanes * largest);
        let fitting = |bytes: usize, of_chunk: usize| match of_chunk {
            0 => 0,
            of_chunk => (bytes / of_chunk).min(chunks),
        };
        let inside = fitting(bytes, of_inside);
        let count = fitting(bytes - inside * of_inside, of_beside);
        let buffers = count.div_ceil(KEPT_BYTES.div_ceil(of_beside.max(1)));
        let buffer = |chunks: Range<usize>| {
            let logits = problem.words_in(&chunks).len() * beside;
            (chunks, N::zeros(logits * per_single::<N>()))
        };
        Self {
            gradient: (inside > 0)
                .then(|| problem.gradient_in(N::zeros(problem.vocab * problem.width))),
            inside,
            beside: ranges(count, buffers).into_iter().map(buffer).collect(),
        }
    }

    /// The rooms of all chunks, for each of `segments`.
    pub(super) fn rooms(
        &mut self,
        problem: &Problem,
        segments: &[Range<usize>],
    ) -> Vec<Rooms<'_, N>> {
        let inside: Vec<Range<usize>> = segments
            .iter()
            .map(|chunks| chunks.start..chunks.end.min(self.inside))
            .take_while(|chunks| !chunks.is_empty())
            .collect();
        let words: Vec<Range<usize>> = inside.iter().map(|of| problem.words_in(of)).collect();
        let gradient = self.gradient.as_mut();
        let parts = gradient.map_or_else(Vec::new, |gradient| gradient.parts(&words));
        let mut parts = parts.into_iter().zip(inside);

        let [_, lanes] = problem.lanes_inside_and_beside::<N>();
        let mut beside = self.beside.iter_mut().flat_map(|(chunks, buffer)| {
            let len = |chunk| problem.words_of(chunk).len() * lanes * per_single::<N>();
            split(buffer, chunks.clone().map(len))
        });
        let room = |chunks: &Range<usize>| {
            let (inside, of) = parts.next().unwrap_or((Part::Words(&mut []), 0..0));
            let beside: Vec<&mut [N]> = beside.by_ref().take(chunks.len()).collect();
            Rooms {
                inside,
                chunks: of.len(),
                beside: beside.into_iter(),
            }
        };
        segments.iter().map(room).collect()
    }

    /// The gradient, narrowed to the words whose logits it holds, and the buffers.
    pub(super) fn into_tensors(self, problem: &Problem) -> Vec<FlexTensor> {
        let dim = usize::from(!problem.words_first);
        let gradient = self.gradient.map(|gradient| {
            let words = problem.words_in(&(0..self.inside)).len();
            gradient.into_tensor().narrow(dim, 0, words)
        });
        let beside = self.beside.into_iter().map(|(_, buffer)| {
            let len = [buffer.len()];
            from_bytes(N::bytes(buffer), len, N::DTYPE)
        });
        gradient.into_iter().chain(beside).collect()
    }

    /// The inverse of [`Self::into_tensors`].
    pub(super) fn from_tensors(problem: &Problem, tensors: Vec<FlexTensor>) -> Self {
        let [_, lanes] = problem.lanes_inside_and_beside::<N>();
        let chunks = |words: usize| words.div_ceil(problem.words_of(0).len().max(1));
        let mut kept = Self {
            gradient: None,
            inside: 0,
            beside: Vec::new(),
        };
        for tensor in tensors {
            let shape = tensor.layout().shape().clone();
            if shape.num_dims() == 2 {
                kept.inside = chunks(shape[usize::from(!problem.words_first)]);
                let len = problem.vocab * problem.width;
                let values = numbers(tensor, len);
                kept.gradient = Some(problem.gradient_in(values));
            } else {
                let len = shape[0];
                let words = len / (lanes * per_single::<N>()).max(1);
                let first = kept.beside.last().map_or(0, |(chunks, _)| chunks.end);
                let of = first..first + chunks(words);
                kept.beside.push((of, numbers(tensor, len)));
            }
        }
        kept
    }

    /// Takes the gradient.
    pub(super) fn take_gradient(&mut self) -> Option<WeightGradient<N>> {
        self.gradient.take()
    }

    /// Whether the gradient holds logits of a chunk.
    pub(super) fn is_inside(&self, chunk: usize) -> bool {
        chunk < self.inside
    }

    /// All chunks in order, with the buffers that belong to some of them.
    pub(super) fn take_stretches(&mut self, problem: &Problem) -> Vec<(Range<usize>, Vec<N>)> {
        let mut all = std::mem::take(&mut self.beside);
        let first = all.last().map_or(0, |(chunks, _)| chunks.end);
        all.push((first..problem.chunks(), Vec::new()));
        all
    }

    /// The logits of a chunk in the buffer of `chunks`.
    pub(super) fn of_chunk<'a>(
        problem: &Problem,
        (chunks, buffer): (&Range<usize>, &'a [N]),
        chunk: usize,
    ) -> Option<&'a [N]> {
        let [_, lanes] = problem.lanes_inside_and_beside::<N>();
        let words = problem.words_of(chunk);
        let before = words.start - problem.words_of(chunks.start).start;
        let [before, len] = [before, words.len()].map(|words| words * lanes * per_single::<N>());
        (!buffer.is_empty()).then(|| &buffer[before..][..len])
    }
}

/// The first `len` numbers of the memory of a tensor.
fn numbers<N: Number>(tensor: FlexTensor, len: usize) -> Vec<N> {
    let whole = tensor.with_layout(Layout::contiguous(Shape::new([len])));
    N::from_data(whole.into_data())
}

impl<'a, N: Number> Rooms<'a, N> {
    /// The rooms of the next chunk: one for each block whose logits are kept.
    pub(super) fn next(&mut self, problem: &Problem, words: usize) -> Vec<Option<Part<'a, N>>> {
        let lanes: Vec<usize> = problem.blocks.iter().map(|of| padded(of.len())).collect();
        let (inside, beside) = lanes.split_at(problem.blocks_inside::<N>());
        let rooms = |part: Option<Part<'a, N>>, lanes: &[usize]| match part {
            Some(part) => part.rooms(words, lanes).into_iter().map(Some).collect(),
            None => lanes.iter().map(|_| None).collect::<Vec<_>>(),
        };
        let of_gradient = (self.chunks > 0).then(|| {
            self.chunks -= 1;
            let all = std::mem::replace(&mut self.inside, Part::Words(&mut []));
            let [first, rest] = all.cut(words, problem.width);
            self.inside = rest;
            first
        });
        let mut all = rooms(of_gradient, inside);
        all.extend(rooms(self.beside.next().map(Part::Words), beside));
        all
    }
}

impl<N: Number> Held<'_, N> {
    /// Copies the logits of a block to a tile, if they were kept. Returns whether they were.
    pub(super) fn read(
        self,
        problem: &Problem,
        block: usize,
        words: usize,
        tile: &mut [f32],
    ) -> bool {
        let inside = problem.blocks_inside::<N>();
        let start = problem.blocks[block].start;
        if block < inside {
            self.inside
                .inspect(|part| part.held(start, words, tile))
                .is_some()
        } else {
            let start = start - problem.blocks[inside].start;
            let first = start * words * per_single::<N>();
            let bits = N::bits_mut(tile);
            self.beside
                .inspect(|buffer| bits.copy_from_slice(&buffer[first..][..bits.len()]))
                .is_some()
        }
    }
}
