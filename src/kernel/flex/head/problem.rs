//! A head and its hidden states, cut into tiles of words × rows.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::DType;
use pulp::Arch;
use rayon::prelude::*;

use super::buffers::{Aligned, Pool, split};
use super::panels::{LANES, Panel, Panels, padded};
use super::passes::observe;
use super::product::{DEPTH, Product};
use super::words::{Block, Words};
use crate::kernel::flex::partial::RowState;
use crate::kernel::flex::row::shape;
use crate::kernel::flex::tensors::{f32s, indices, single};
use crate::kernel::head::{Head, Shaping};

/// Maximum number of rows of a block: the gradient of the weight sums over the rows of one.
pub(super) const BLOCK: usize = DEPTH;
/// Bytes of a chunk of the weight: half of an L2 cache.
const CHUNK_BYTES: usize = 440 << 10;

/// The number of words in a chunk is a multiple of this number.
const WORDS: usize = 48;
/// Minimum number of tasks that the threads share, if the problem is large enough.
pub(super) const TASKS: usize = 16;

/// Number of chunks that a forward copies at a time. Each column of a `Linear` is in another page, so
/// long pieces of a column are worth more than a copy that stays in the cache.
const COPIED: usize = 4;
/// Bytes of deltas that a backward works on, unless a test says otherwise.
const WORKSPACE: usize = 4 << 20;
/// Multiplications that are worth a task of their own.
const TASK: usize = 2_000_000;

/// Log-probabilities of some rows under a head, cut into tiles.
///
/// Rows are cut into blocks, words into chunks. The logits of a chunk and a block are a tile: a
/// matrix in panels whose rows are words and whose columns (lanes) are rows. The tiles of all
/// blocks for one chunk follow each other.
pub(crate) struct Problem {
    pub(super) panels: Panels,
    pub(super) words: Words,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) shaping: Shaping,
    pub(super) targets: Vec<usize>,
    pub(super) rows: usize,
    pub(super) blocks: Vec<Range<usize>>,
    pub(super) width: usize,
    pub(super) vocab: usize,
    pub(super) words_first: bool,
    /// Number type of hidden states and weight.
    pub(super) dtype: DType,
    /// Number of words in a chunk.
    chunk: usize,
    /// Bytes of deltas that a backward works on at a time. There are two such buffers.
    pub(in crate::kernel::flex) workspace: usize,
    /// Hidden states, `[rows, width]`, contiguous f32.
    hidden: FlexTensor,
    /// Hidden states, a matrix in panels for each block: its columns are rows.
    packed: Aligned,
    /// Copies of [`COPIED`] chunks of the weight.
    copies: Pool,
}

/// Number of the words of a head.
pub(super) fn vocabulary(head: &Head<Flex>) -> usize {
    let [first, second] = head.weight.layout().shape().dims::<2>();
    if head.form.words_first { first } else { second }
}

/// Number of words in a chunk of a head, unless another problem decides.
pub(super) fn words_of_a_chunk(head: &Head<Flex>) -> usize {
    let [rows, width] = head.hidden.layout().shape().dims();
    let vocab = vocabulary(head);
    let fitting = CHUNK_BYTES / (size_of::<f32>() * width) / WORDS * WORDS;
    let products = rows.saturating_mul(width).saturating_mul(vocab);
    let tasks = (products / TASK).clamp(1, TASKS);
    fitting
        .min((vocab / tasks).next_multiple_of(WORDS))
        .clamp(WORDS, 8 * WORDS)
}

impl Problem {
    pub(crate) fn new(head: Head<Flex>) -> Self {
        Self::on(Arch::new(), head)
    }

    /// As [`Self::new`], with the vectors of `arch`.
    pub(crate) fn on(arch: Arch, head: Head<Flex>) -> Self {
        let chunk = words_of_a_chunk(&head);
        Self::cut(arch, head, BLOCK, chunk)
    }

    /// As [`Self::on`], with at most `block` rows in a block, and `chunk` words in a chunk.
    pub(in crate::kernel::flex) fn cut(
        arch: Arch,
        head: Head<Flex>,
        block: usize,
        chunk: usize,
    ) -> Self {
        let [rows, width] = head.hidden.layout().shape().dims();
        let words_first = head.form.words_first;
        let vocab = vocabulary(&head);
        let panels = Panels::new(arch);
        // Blocks of equal length; only the last one may be shorter.
        let blocks = rows.div_ceil(block).max(1);
        let block = padded(rows.div_ceil(blocks)).max(LANES);
        let blocks = (0..rows).step_by(block);
        let blocks = blocks
            .map(|first| first..(first + block).min(rows))
            .collect();
        let words = Words::new(head.weight, words_first, width);
        let words_of_a_copy = words.room(COPIED * chunk);
        let mut problem = Self {
            panels,
            words,
            bias: head.form.biased.then(|| f32s(&head.bias)),
            shaping: head.form.shaping,
            targets: indices(head.targets),
            rows,
            blocks,
            width,
            vocab,
            words_first,
            dtype: head.hidden.dtype(),
            chunk,
            workspace: WORKSPACE,
            hidden: single(head.hidden).to_contiguous(),
            packed: Aligned::zeros(0),
            copies: Pool::new(words_of_a_copy),
        };
        problem.packed = problem.of_blocks(
            |rows| padded(rows) * width,
            |states, out| panels.pack_transposed(states, width, out),
        );
        problem
    }

    /// A buffer with one part for each block. `len` gives the length of a part from the number of
    /// rows of the block. `fill` writes the parts in parallel, from the hidden states of the block.
    pub(super) fn of_blocks(
        &self,
        len: impl Fn(usize) -> usize,
        fill: impl Fn(&[f32], &mut [f32]) + Sync,
    ) -> Aligned {
        let hidden: &[f32] = self.hidden.as_slice().expect("contiguous f32");
        let lens: Vec<usize> = self.blocks.iter().map(|block| len(block.len())).collect();
        let mut all = Aligned::zeros(lens.iter().sum());
        split(all.get_mut(), lens)
            .into_par_iter()
            .zip(&self.blocks)
            .for_each(|(out, block)| {
                fill(
                    &hidden[block.start * self.width..block.end * self.width],
                    out,
                );
            });
        all
    }

    pub(super) fn chunks(&self) -> usize {
        self.vocab.div_ceil(self.chunk)
    }

    pub(super) fn words_of(&self, chunk: usize) -> Range<usize> {
        chunk * self.chunk..((chunk + 1) * self.chunk).min(self.vocab)
    }

    /// The words of some chunks.
    pub(super) fn words_in(&self, chunks: &Range<usize>) -> Range<usize> {
        self.words_of(chunks.start).start..self.words_of(chunks.end - 1).end
    }

    /// Count of the rows, with the padding of the last block.
    pub(super) fn lanes(&self) -> usize {
        padded(self.rows)
    }

    /// Count of the logits of some chunks, with padding.
    pub(super) fn logits_of(&self, chunks: &Range<usize>) -> usize {
        if chunks.is_empty() {
            0
        } else {
            self.words_in(chunks).len() * self.lanes()
        }
    }

    /// Calls `work` with each of some chunks: its words, and their part of the weight.
    pub(super) fn each_chunk(
        &self,
        chunks: Range<usize>,
        mut work: impl FnMut(&Range<usize>, Block),
    ) {
        for first in chunks.clone().step_by(COPIED) {
            let some = first..(first + COPIED).min(chunks.end);
            let all = self.words_in(&some);
            self.copies.with(|room| {
                self.words.fill(&all, room);
                let weight = self.words.block(&all, room);
                for words in some.map(|chunk| self.words_of(chunk)) {
                    work(&words, weight.from(words.start - all.start, 0));
                }
            });
        }
    }

    /// Count of the words of a chunk; the last one may be shorter.
    pub(super) fn largest_chunk(&self) -> usize {
        self.chunk
    }

    /// Count of the numbers of the largest tile.
    pub(super) fn largest_tile(&self) -> usize {
        let rows = self.blocks.first().map_or(0, Range::len);
        padded(rows) * self.chunk
    }

    /// Computes the logits of a tile. `weight` has all columns of the words.
    pub(super) fn logits(
        &self,
        weight: Block,
        block: &Range<usize>,
        words: &Range<usize>,
        out: &mut [f32],
    ) {
        let lanes = padded(block.len());
        Product {
            panels: self.panels,
            a: &self.packed.get()[block.start * self.width..],
            columns: lanes,
            depth: self.width,
            b: weight.over_columns(),
            rows: words.len(),
            out,
            accumulate: false,
        }
        .run();
        if let Some(bias) = &self.bias {
            for panel in self.panels.of(lanes) {
                let lines = panel.of_mut(out, words.len()).chunks_exact_mut(panel.width);
                for (line, bias) in lines.zip(&bias[words.clone()]) {
                    for x in line {
                        *x += bias;
                    }
                }
            }
        }
        shape(self.panels.arch, out, self.shaping);
    }

    /// Adds the results of a tile of logits to the results of its rows.
    pub(super) fn observe(
        &self,
        block: &Range<usize>,
        words: &Range<usize>,
        tile: &[f32],
        states: &mut [RowState],
        statistics: bool,
    ) {
        for panel in self.panels.of(padded(block.len())) {
            let tile = panel.of(tile, words.len());
            let lanes = panel.first..block.len().min(panel.first + panel.width);
            let states = &mut states[lanes.clone()];
            for ((lane, state), row) in states
                .iter_mut()
                .enumerate()
                .zip(&self.targets[block.clone()][lanes])
            {
                if words.contains(row) {
                    state.target = tile[(row - words.start) * panel.width + lane];
                }
            }
            for (index, states) in states.chunks_mut(LANES).enumerate() {
                let mut at_least = [f32::NEG_INFINITY; LANES];
                for (at_least, state) in at_least.iter_mut().zip(&*states) {
                    *at_least = state.partial.max;
                }
                let tile = &tile[index * LANES..];
                let more = observe(self.panels.arch, tile, panel.width, at_least, statistics);
                for (state, more) in states.iter_mut().zip(more) {
                    state.partial = state.partial.and(more.starting_at(words.start));
                }
            }
        }
    }

    /// Adds `Σ_word delta[word][row]·W[word][column]` of a tile to a matrix in panels whose columns
    /// are rows. `weight` has `columns` columns.
    pub(super) fn add_words(
        &self,
        weight: Block,
        columns: usize,
        delta: &[f32],
        block: &Range<usize>,
        words: &Range<usize>,
        out: &mut [f32],
    ) {
        Product {
            panels: self.panels,
            a: delta,
            columns: padded(block.len()),
            depth: words.len(),
            b: weight.over_words(),
            rows: columns,
            out,
            accumulate: true,
        }
        .run();
    }

    /// The panel of a column of a matrix of `columns` columns, and its lane there.
    pub(super) fn lane(&self, columns: usize, lane: usize) -> (Panel, usize) {
        let mut panels = self.panels.of(columns);
        let holds = |panel: &Panel| (panel.first..panel.first + panel.width).contains(&lane);
        let panel = panels.find(holds).expect("a column of the matrix");
        (panel, lane - panel.first)
    }
}
