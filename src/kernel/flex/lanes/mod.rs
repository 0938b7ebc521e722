//! The kernel for a large f32 weight `[vocab, hidden]`. The logits of a tile need no packing: the
//! hidden states are packed once before, and the weight is read where it is stored.
//!
//! Rows are cut into blocks and words into chunks. A tile is a block times a chunk, `[word][row]`.
//! A chunk of the weight stays in the L2 cache while the kernel walks over the blocks. The
//! computation of a tile depends neither on the number of threads nor on other tiles.

mod backward;
mod panel;
mod passes;

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::DType;
use pulp::Arch;
use rayon::prelude::*;

use self::panel::{LANES, Panels, Product, padded};
use self::passes::{PerRow, observe, turn};
use super::super::{Forward, Head, Shaping};
use super::bands::bands;
use super::partial::{Found, outputs};
use super::row::{narrow, rescale, shape, shift, turned_if_certain};
use super::{f32s, indices, tensor};

/// Rows of a block.
const BLOCK: usize = 256;
/// Bytes of a chunk of the weight: half of an L2 cache.
const CHUNK_BYTES: usize = 440 << 10;
/// Minimum number of tiles that the threads share between two synchronisation points.
const TASKS: usize = 64;
/// Minimum number of tasks in the forward of a frozen head. More tasks need more memory, because
/// each task holds its own gradient of its rows.
const SEGMENTS: usize = 8;
/// A product with at least this number of multiplications is worth the packing.
const WORTH: usize = 200_000_000;

/// A buffer of numbers that starts at a cache line. A vector that crosses into a second cache line
/// would need two reads.
struct Aligned {
    data: Vec<f32>,
    start: usize,
}

impl Aligned {
    fn zeros(len: usize) -> Self {
        let data = vec![0.0; len + LANES];
        let start = data.as_ptr().align_offset(64).min(LANES);
        Self { data, start }
    }

    fn get(&self) -> &[f32] {
        &self.data[self.start..][..self.data.len() - LANES]
    }

    fn get_mut(&mut self) -> &mut [f32] {
        let len = self.data.len() - LANES;
        &mut self.data[self.start..][..len]
    }

    fn into_tensor(self) -> FlexTensor {
        let (start, len) = (self.start, self.data.len());
        tensor(self.data, [len]).narrow(0, start, len - LANES)
    }
}

/// Splits `all` into consecutive parts of the lengths `lens`.
fn split<T>(mut all: &mut [T], lens: impl IntoIterator<Item = usize>) -> Vec<&mut [T]> {
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
fn of_blocks(
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

/// Adds the results of several parts of the vocabulary to the results `all` of the rows. The order
/// is the order of the parts.
fn add(all: &mut [Found], parts: &[Found]) {
    for part in parts.chunks(all.len()) {
        for (all, part) in all.iter_mut().zip(part) {
            *all = all.and(*part);
        }
    }
}

/// Log-probabilities of some rows under a head, cut into tiles.
pub struct Lanes {
    arch: Arch,
    panels: Panels,
    /// `[rows, width]`, contiguous.
    hidden: FlexTensor,
    /// `[vocab, width]`, contiguous.
    weight: FlexTensor,
    bias: Option<Vec<f32>>,
    shaping: Shaping,
    targets: Vec<usize>,
    rows: usize,
    blocks: Vec<Range<usize>>,
    width: usize,
    vocab: usize,
    /// Number of words in a chunk.
    chunk: usize,
    /// Hidden states, packed so that rows are lanes: each block has panels of `[width][row]`.
    packed: Aligned,
}

impl Lanes {
    /// `None` if the kernel of `tiles` is faster or the only possible one.
    pub fn new(head: &Head<Flex>) -> Option<Self> {
        let [rows, width] = head.hidden.layout().shape().dims();
        let [words, ..] = head.weight.layout().shape().dims::<2>();
        (rows >= LANES && rows.saturating_mul(width).saturating_mul(words) >= WORTH)
            .then(|| Self::of(head))
            .flatten()
    }

    /// `None` if this kernel does not support the operands or the machine.
    pub fn of(head: &Head<Flex>) -> Option<Self> {
        let [rows, width] = head.hidden.layout().shape().dims();
        let [vocab, ..] = head.weight.layout().shape().dims::<2>();
        let fits = head.form.words_first
            && head.hidden.dtype() == DType::F32
            && head.weight.dtype() == DType::F32
            && head.weight.is_contiguous();
        if !fits {
            return None;
        }
        let arch = Arch::new();
        let panels = Panels::new(arch)?;
        let hidden = head.hidden.to_contiguous();
        let states: &[f32] = hidden.as_slice().expect("contiguous f32");
        let block = |first: usize| first..(first + BLOCK).min(rows);
        let blocks: Vec<Range<usize>> = (0..rows).step_by(BLOCK).map(block).collect();
        let packed = of_blocks(
            &blocks,
            |rows| padded(rows) * width,
            |block, out| {
                let states = &states[block.start * width..block.end * width];
                panels.pack_transposed(states, width, out);
            },
        );
        let chunk = CHUNK_BYTES / (size_of::<f32>() * width);
        Some(Self {
            arch,
            panels,
            hidden,
            weight: head.weight.clone(),
            bias: head.form.biased.then(|| f32s(&head.bias)),
            shaping: head.form.shaping,
            targets: indices(head.targets.clone()),
            rows,
            blocks,
            width,
            vocab,
            chunk: (chunk / 48 * 48).clamp(48, 384),
            packed,
        })
    }

    fn chunks(&self) -> usize {
        self.vocab.div_ceil(self.chunk)
    }

    fn words_of(&self, chunk: usize) -> Range<usize> {
        chunk * self.chunk..((chunk + 1) * self.chunk).min(self.vocab)
    }

    fn hidden(&self, rows: &Range<usize>) -> &[f32] {
        let hidden: &[f32] = self.hidden.as_slice().expect("contiguous f32");
        &hidden[rows.start * self.width..rows.end * self.width]
    }

    fn weight(&self, words: &Range<usize>) -> &[f32] {
        let weight: &[f32] = self.weight.as_slice().expect("contiguous f32");
        &weight[words.start * self.width..words.end * self.width]
    }

    /// The length of each tile of some chunks in all blocks. The layout is
    /// `[chunk][block][word][row]`.
    fn tiles(&self, chunks: Range<usize>) -> impl Iterator<Item = usize> {
        chunks.flat_map(|chunk| {
            let words = self.words_of(chunk).len();
            let of = move |block: &Range<usize>| words * padded(block.len());
            self.blocks.iter().map(of)
        })
    }

    /// Computes the logits of a tile.
    fn logits(&self, block: &Range<usize>, words: &Range<usize>, out: &mut [f32]) {
        let rows = padded(block.len());
        self.arch.dispatch(Product {
            panels: self.panels,
            a: &self.packed.get()[block.start * self.width..],
            columns: rows,
            depth: self.width,
            b: self.weight(words),
            strides: [self.width, 1],
            rows: words.len(),
            out,
            out_stride: rows,
            accumulate: false,
        });
        if let Some(bias) = &self.bias {
            for (line, bias) in out.chunks_exact_mut(rows).zip(&bias[words.clone()]) {
                for x in line {
                    *x += bias;
                }
            }
        }
        shape(self.arch, out, self.shaping);
    }

    /// Adds the results of a tile of logits to the results of its rows.
    fn observe(
        &self,
        block: &Range<usize>,
        words: &Range<usize>,
        tile: &[f32],
        found: &mut [Found],
        statistics: bool,
    ) {
        let rows = padded(block.len());
        for ((lane, found), row) in found.iter_mut().enumerate().zip(block.clone()) {
            if words.contains(&self.targets[row]) {
                found.target = tile[(self.targets[row] - words.start) * rows + lane];
            }
        }
        for (index, found) in found.chunks_mut(LANES).enumerate() {
            let mut at_least = [f32::NEG_INFINITY; LANES];
            for (at_least, found) in at_least.iter_mut().zip(&*found) {
                *at_least = found.partial.max;
            }
            let tile = &tile[index * LANES..];
            let more = observe(self.arch, tile, rows, at_least, statistics);
            for (found, more) in found.iter_mut().zip(more) {
                found.partial = found.partial.and(more.starting_at(words.start));
            }
        }
    }

    /// Log-probabilities, and the logits of as many first chunks as fit into `bytes`.
    pub fn forward(&self, bytes: usize, statistics: bool) -> Forward<Flex> {
        let chunks = self.chunks();
        let of_chunk = size_of::<f32>() * padded(self.rows) * self.chunk;
        let kept = (bytes / of_chunk).min(chunks);
        let mut tiles = Aligned::zeros(self.tiles(0..kept).sum());
        let mut found = vec![Found::NOTHING; self.rows];

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
            self.forward_of(some, out, &mut found, statistics);
        }
        Forward {
            tiles: if kept == 0 {
                Vec::new()
            } else {
                vec![tiles.into_tensor()]
            },
            ..outputs(&found, &self.targets, self.vocab, statistics)
        }
    }

    /// Adds the results of some chunks to `all`. `kept`, if given, receives the logits of the
    /// chunks.
    fn forward_of(
        &self,
        chunks: Range<usize>,
        kept: Option<Vec<&mut [f32]>>,
        all: &mut [Found],
        statistics: bool,
    ) {
        let blocks = &self.blocks;
        let mut found = vec![Found::NOTHING; chunks.len() * self.rows];
        let lens = chunks.clone().flat_map(|_| blocks.iter().map(Range::len));
        let parts = split(&mut found, lens);
        let task = |index: usize, found: &mut [Found], tile: &mut [f32]| {
            let block = &blocks[index % blocks.len()];
            let words = self.words_of(chunks.start + index / blocks.len());
            let tile = &mut tile[..words.len() * padded(block.len())];
            self.logits(block, &words, tile);
            self.observe(block, &words, tile, found, statistics);
        };
        let parts = parts.into_par_iter().enumerate();
        if let Some(kept) = kept {
            let parts = parts.zip(kept);
            parts.for_each(|((index, found), tile)| task(index, found, tile));
        } else {
            parts.for_each_init(
                || Aligned::zeros(BLOCK * self.chunk),
                |scratch, (index, found)| task(index, found, scratch.get_mut()),
            );
        }
        add(all, &found);
    }

    /// Adds `Σ_word delta[word][row]·W[word]` of a tile to the rows of a gradient. `scratch` must
    /// have room for a packed chunk of the weight.
    fn add_words(
        &self,
        delta: &[f32],
        block: &Range<usize>,
        words: &Range<usize>,
        out: &mut [f32],
        scratch: &mut [f32],
    ) {
        self.panels.pack(self.weight(words), self.width, scratch);
        self.arch.dispatch(Product {
            panels: self.panels,
            a: scratch,
            columns: self.width,
            depth: words.len(),
            b: delta,
            strides: [1, padded(block.len())],
            rows: block.len(),
            out,
            out_stride: self.width,
            accumulate: true,
        });
    }

    /// Log-probabilities, and the gradient of each one with respect to its hidden state:
    /// `W[y] − Σ_v softmax_v W[v]`.
    pub fn forward_with_slope(&self, statistics: bool) -> Forward<Flex> {
        let blocks = &self.blocks;
        let segments = SEGMENTS.div_ceil(blocks.len()).min(self.chunks());
        let segment = self.chunks().div_ceil(segments);
        let segments = self.chunks().div_ceil(segment);
        let (rows, width) = (self.rows, self.width);
        let mut found = vec![Found::NOTHING; segments * rows];
        let mut expected = vec![0.0; segments * rows * width];
        let lens = || (0..segments).flat_map(|_| blocks.iter().map(Range::len));
        split(&mut found, lens())
            .into_par_iter()
            .zip(split(&mut expected, lens().map(|rows| rows * width)))
            .enumerate()
            .for_each(|(index, (found, expected))| {
                let first = index / blocks.len() * segment;
                let chunks = first..(first + segment).min(self.chunks());
                let block = &blocks[index % blocks.len()];
                self.slope_of(chunks, block, found, expected, statistics);
            });

        let mut all = vec![Found::NOTHING; rows];
        add(&mut all, &found);
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
                    let share = (found[row].partial.max - max) - log_sum;
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

    /// Adds the results of some chunks for one block to `found`. Adds the weighted sum of the words
    /// `W[v]` to `expected`. The weights are the powers of the logits, relative to the largest
    /// logit so far.
    fn slope_of(
        &self,
        chunks: Range<usize>,
        block: &Range<usize>,
        found: &mut [Found],
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
            self.observe(block, &words, tile, found, statistics);
            let lines = expected.chunks_exact_mut(self.width);
            for (row, line) in lines.enumerate() {
                let max = found[row].partial.max;
                let before = std::mem::replace(&mut before[row], max);
                rescale(line, before, max);
                of.max[row] = shift(max);
            }
            turn(self.arch, tile, &of, narrow(self.shaping.bend()));
            self.add_words(tile, block, &words, expected, packed.get_mut());
        }
    }
}
