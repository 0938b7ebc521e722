//! Log-probabilities, and the slope of a frozen head.

use std::ops::Range;

use burn::backend::Flex;
use rayon::prelude::*;

use super::buffers::{Aligned, split};
use super::panel::{LANES, padded};
use super::passes::{PerRow, observe, turn};
use super::problem::{BLOCK, Lanes};
use crate::kernel::flex::bands::bands;
use crate::kernel::flex::elementwise::{narrow, shift, turned_if_certain};
use crate::kernel::flex::partial::{RowState, outputs};
use crate::kernel::flex::row::rescale;
use crate::kernel::flex::tensors::tensor;
use crate::kernel::forward::Forward;

/// Minimum number of tiles that the threads share between two synchronisation points.
const TASKS: usize = 64;
/// Minimum number of tasks in the forward of a frozen head. More tasks need more memory, because
/// each task holds its own gradient of its rows.
const SEGMENTS: usize = 8;

/// Adds the results of several parts of the vocabulary to the results `all` of the rows. The order
/// is the order of the parts.
fn add(all: &mut [RowState], parts: &[RowState]) {
    for part in parts.chunks(all.len()) {
        for (all, part) in all.iter_mut().zip(part) {
            *all = all.and(*part);
        }
    }
}

impl Lanes {
    /// Adds the results of a tile of logits to the results of its rows.
    fn observe(
        &self,
        block: &Range<usize>,
        words: &Range<usize>,
        tile: &[f32],
        states: &mut [RowState],
        statistics: bool,
    ) {
        let rows = padded(block.len());
        for ((lane, state), row) in states.iter_mut().enumerate().zip(block.clone()) {
            if words.contains(&self.targets[row]) {
                state.target = tile[(self.targets[row] - words.start) * rows + lane];
            }
        }
        for (index, states) in states.chunks_mut(LANES).enumerate() {
            let mut at_least = [f32::NEG_INFINITY; LANES];
            for (at_least, state) in at_least.iter_mut().zip(&*states) {
                *at_least = state.partial.max;
            }
            let tile = &tile[index * LANES..];
            let more = observe(self.arch, tile, rows, at_least, statistics);
            for (state, more) in states.iter_mut().zip(more) {
                state.partial = state.partial.and(more.starting_at(words.start));
            }
        }
    }

    /// Log-probabilities, and the logits of as many first chunks as fit into `bytes`.
    pub(crate) fn forward(&self, bytes: usize, statistics: bool) -> Forward<Flex> {
        let chunks = self.chunks();
        let of_chunk = size_of::<f32>() * padded(self.rows) * self.chunk;
        let kept = (bytes / of_chunk).min(chunks);
        let mut tiles = Aligned::zeros(self.tiles(0..kept).sum());
        let mut states = vec![RowState::EMPTY; self.rows];

        let step = TASKS.div_ceil(self.blocks.len());
        let mut room = tiles.get_mut();
        for some in bands(kept, chunks, step) {
            let mut next = || {
                let len = self.tiles(some.clone()).sum();
                let (out, rest) = std::mem::take(&mut room).split_at_mut(len);
                room = rest;
                split(out, self.tiles(some.clone()))
            };
            let out = (some.start < kept).then(&mut next);
            self.forward_of(some, out, &mut states, statistics);
        }
        Forward {
            tiles: if kept == 0 {
                Vec::new()
            } else {
                vec![tiles.into_tensor()]
            },
            ..outputs(&states, &self.targets, self.vocab, statistics)
        }
    }

    /// Adds the results of some chunks to `all`. `kept`, if given, receives the logits of the
    /// chunks.
    fn forward_of(
        &self,
        chunks: Range<usize>,
        kept: Option<Vec<&mut [f32]>>,
        all: &mut [RowState],
        statistics: bool,
    ) {
        let blocks = &self.blocks;
        let mut states = vec![RowState::EMPTY; chunks.len() * self.rows];
        let lens = chunks.clone().flat_map(|_| blocks.iter().map(Range::len));
        let parts = split(&mut states, lens);
        let task = |index: usize, states: &mut [RowState], tile: &mut [f32]| {
            let block = &blocks[index % blocks.len()];
            let words = self.words_of(chunks.start + index / blocks.len());
            let tile = &mut tile[..words.len() * padded(block.len())];
            self.logits(block, &words, tile);
            self.observe(block, &words, tile, states, statistics);
        };
        let parts = parts.into_par_iter().enumerate();
        if let Some(kept) = kept {
            let parts = parts.zip(kept);
            parts.for_each(|((index, states), tile)| task(index, states, tile));
        } else {
            parts.for_each_init(
                || Aligned::zeros(BLOCK * self.chunk),
                |scratch, (index, states)| task(index, states, scratch.get_mut()),
            );
        }
        add(all, &states);
    }

    /// Log-probabilities, and the gradient of each one with respect to its hidden state:
    /// `W[y] − Σ_v softmax_v W[v]`.
    pub(crate) fn forward_with_slope(&self, statistics: bool) -> Forward<Flex> {
        let blocks = &self.blocks;
        let segments = SEGMENTS.div_ceil(blocks.len()).min(self.chunks());
        let segment = self.chunks().div_ceil(segments);
        let segments = self.chunks().div_ceil(segment);
        let (rows, width) = (self.rows, self.width);
        let mut states = vec![RowState::EMPTY; segments * rows];
        let mut expected = vec![0.0; segments * rows * width];
        let lens = || (0..segments).flat_map(|_| blocks.iter().map(Range::len));
        split(&mut states, lens())
            .into_par_iter()
            .zip(split(&mut expected, lens().map(|rows| rows * width)))
            .enumerate()
            .for_each(|(index, (states, expected))| {
                let first = index / blocks.len() * segment;
                let chunks = first..(first + segment).min(self.chunks());
                let block = &blocks[index % blocks.len()];
                self.slope_of(chunks, block, states, expected, statistics);
            });

        let mut all = vec![RowState::EMPTY; rows];
        add(&mut all, &states);
        let forward = outputs(&all, &self.targets, self.vocab, statistics);
        let normalizer: &[f32] = forward.normalizer.storage();
        let normalizer = normalizer.as_chunks().0;
        let (factor, bend) = (narrow(self.shaping.factor()), narrow(self.shaping.bend()));
        let mut slope = vec![0.0; rows * width];
        slope
            .par_chunks_mut(width)
            .enumerate()
            .for_each(|(row, slope)| {
                let target = self.targets[row];
                let left = turned_if_certain(all[row].target, factor, bend);
                for (slope, x) in slope.iter_mut().zip(self.weight(&(target..target + 1))) {
                    *slope = left * x;
                }
                let [max, log_sum]: [f32; 2] = normalizer[row];
                for segment in 0..segments {
                    let row = segment * rows + row;
                    let share = (states[row].partial.max - max) - log_sum;
                    let share = factor * share.exp();
                    for (slope, x) in slope.iter_mut().zip(&expected[row * width..]) {
                        *slope -= share * x;
                    }
                }
            });
        Forward {
            slope: Some(tensor(slope, [rows, width])),
            ..forward
        }
    }

    /// Adds the results of some chunks for one block to `states`. Adds the weighted sum of the words
    /// `W[v]` to `expected`. The weights are the powers of the logits, relative to the largest
    /// logit so far.
    fn slope_of(
        &self,
        chunks: Range<usize>,
        block: &Range<usize>,
        states: &mut [RowState],
        expected: &mut [f32],
        statistics: bool,
    ) {
        let rows = padded(block.len());
        let mut tile = Aligned::zeros(rows * self.chunk);
        let mut packed = Aligned::zeros(padded(self.width) * self.chunk);
        let mut before = vec![f32::NEG_INFINITY; block.len()];
        let mut of = PerRow {
            max: vec![0.0; rows],
            log_sum: vec![0.0; rows],
            factor: vec![1.0; rows],
        };
        for chunk in chunks {
            let words = self.words_of(chunk);
            let tile = &mut tile.get_mut()[..words.len() * rows];
            self.logits(block, &words, tile);
            self.observe(block, &words, tile, states, statistics);
            let lines = expected.chunks_exact_mut(self.width);
            for (row, line) in lines.enumerate() {
                let max = states[row].partial.max;
                let before = std::mem::replace(&mut before[row], max);
                rescale(line, before, max);
                of.max[row] = shift(max);
            }
            turn(self.arch, tile, &of, narrow(self.shaping.bend()));
            self.add_words(tile, block, &words, expected, packed.get_mut());
        }
    }
}
