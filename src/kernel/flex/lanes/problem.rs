//! A head and its hidden states, cut into tiles.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use pulp::Arch;

use super::buffers::{Aligned, of_blocks};
use super::panel::{Panels, Product, padded};
use crate::kernel::flex::row::shape;
use crate::kernel::flex::tensors::{f32s, indices};
use crate::kernel::head::{Head, Shaping};

/// Rows of a block.
pub(super) const BLOCK: usize = 256;
/// Bytes of a chunk of the weight: half of an L2 cache.
const CHUNK_BYTES: usize = 440 << 10;

/// Log-probabilities of some rows under a head, cut into tiles.
pub(crate) struct Lanes {
    pub(super) arch: Arch,
    pub(super) panels: Panels,
    /// `[rows, width]`, contiguous.
    pub(super) hidden: FlexTensor,
    /// `[vocab, width]`, contiguous.
    pub(super) weight: FlexTensor,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) shaping: Shaping,
    pub(super) targets: Vec<usize>,
    pub(super) rows: usize,
    pub(super) blocks: Vec<Range<usize>>,
    pub(super) width: usize,
    pub(super) vocab: usize,
    /// Number of words in a chunk.
    pub(super) chunk: usize,
    /// Hidden states, packed so that rows are lanes: each block has panels of `[width][row]`.
    pub(super) packed: Aligned,
}

impl Lanes {
    /// Packs the hidden states. `panels` are those of `choice::panels` for this head.
    pub(crate) fn new(head: &Head<Flex>, panels: Panels) -> Self {
        let [rows, width] = head.hidden.layout().shape().dims();
        let [vocab, ..] = head.weight.layout().shape().dims::<2>();
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
        Self {
            arch: Arch::new(),
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
        }
    }

    pub(super) fn chunks(&self) -> usize {
        self.vocab.div_ceil(self.chunk)
    }

    pub(super) fn words_of(&self, chunk: usize) -> Range<usize> {
        chunk * self.chunk..((chunk + 1) * self.chunk).min(self.vocab)
    }

    pub(super) fn hidden(&self, rows: &Range<usize>) -> &[f32] {
        let hidden: &[f32] = self.hidden.as_slice().expect("contiguous f32");
        &hidden[rows.start * self.width..rows.end * self.width]
    }

    pub(super) fn weight(&self, words: &Range<usize>) -> &[f32] {
        let weight: &[f32] = self.weight.as_slice().expect("contiguous f32");
        &weight[words.start * self.width..words.end * self.width]
    }

    /// The length of each tile of some chunks in all blocks. The layout is
    /// `[chunk][block][word][row]`.
    pub(super) fn tiles(&self, chunks: Range<usize>) -> impl Iterator<Item = usize> {
        chunks.flat_map(|chunk| {
            let words = self.words_of(chunk).len();
            let of = move |block: &Range<usize>| words * padded(block.len());
            self.blocks.iter().map(of)
        })
    }

    /// Computes the logits of a tile.
    pub(super) fn logits(&self, block: &Range<usize>, words: &Range<usize>, out: &mut [f32]) {
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

    /// Adds `Σ_word delta[word][row]·W[word]` of a tile to the rows of a gradient. `scratch` must
    /// have room for a packed chunk of the weight.
    pub(super) fn add_words(
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
}
