//! A head and its hidden states, cut into tiles.

use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::FloatDType;
use pulp::Arch;

use crate::kernel::flex::matrix::{Matrix, multiply};
use crate::kernel::flex::row::shape;
use crate::kernel::flex::tensors::{f32s, indices};
use crate::kernel::flex::words::Words;
use crate::kernel::head::{Head, Shaping};

/// Rows of a tile. With fewer rows, the words would be packed more often. With more rows, there
/// would be too few tasks.
const ROWS: usize = 512;
/// Rows of a tile if the logits are the only product.
const REFERENCE_ROWS: usize = 1024;
/// Words of a tile.
const WORDS: usize = 2048;
/// Words of one task that computes the gradient of the weight.
pub(super) const SUB_WORDS: usize = 256;
/// Bytes of logits that a backward works on at a time.
pub(super) const WORKSPACE: usize = 16 << 20;

/// Log-probabilities of some rows under a head, cut into tiles.
pub(crate) struct Tiles {
    pub(super) arch: Arch,
    /// `[rows, width]`
    pub(super) hidden: Vec<f32>,
    pub(super) words: Words,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) shaping: Shaping,
    pub(super) targets: Vec<usize>,
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Type of the returned gradients.
    pub(super) dtype: FloatDType,
    pub(super) words_first: bool,
    /// Rows and words of a tile.
    pub(super) tile: [usize; 2],
    /// Number of tiles over the rows and over the words.
    pub(super) grid: [usize; 2],
}

impl Tiles {
    /// Tiles for a forward that computes only one product, the logits.
    pub(crate) fn of_reference(head: Head<Flex>) -> Self {
        Self::with_rows(head, REFERENCE_ROWS)
    }

    pub(crate) fn new(head: Head<Flex>) -> Self {
        Self::with_rows(head, ROWS)
    }

    fn with_rows(head: Head<Flex>, tile_rows: usize) -> Self {
        let [rows, width] = head.hidden.layout().shape().dims();
        let words = Words {
            tensor: if head.form.words_first {
                head.weight
            } else {
                head.weight.transpose(0, 1)
            },
        };
        let tile_rows = tile_rows.min(rows).max(1);
        let blocks = rows.div_ceil(tile_rows);
        let fitting = WORKSPACE / (size_of::<f32>() * tile_rows * blocks.max(1));
        let tile_words = fitting.clamp(SUB_WORDS, WORDS) / SUB_WORDS * SUB_WORDS;
        Self {
            arch: Arch::new(),
            dtype: head.hidden.dtype().into(),
            hidden: f32s(&head.hidden),
            bias: head.form.biased.then(|| f32s(&head.bias)),
            shaping: head.form.shaping,
            targets: indices(head.targets),
            rows,
            width,
            words_first: head.form.words_first,
            tile: [tile_rows, tile_words],
            grid: [blocks, words.len().div_ceil(tile_words)],
            words,
        }
    }

    /// Count of the numbers in a tile.
    pub(super) fn tile_len(&self) -> usize {
        self.tile[0] * self.tile[1]
    }

    pub(super) fn rows_of(&self, block: usize) -> Range<usize> {
        block * self.tile[0]..((block + 1) * self.tile[0]).min(self.rows)
    }

    pub(super) fn words_of(&self, tile: usize) -> Range<usize> {
        tile * self.tile[1]..((tile + 1) * self.tile[1]).min(self.words.len())
    }

    pub(super) fn hidden(&self, rows: Range<usize>) -> Matrix<'_> {
        Matrix::rows_of(&self.hidden, [self.rows, self.width], self.width).rows(rows)
    }

    /// Computes the logits of a tile. The rows of `out` start every `self.tile[1]` numbers.
    pub(super) fn logits(
        &self,
        rows: Range<usize>,
        words: Range<usize>,
        out: &mut [f32],
        scratch: &mut Vec<f32>,
    ) {
        let weight = self.words.rows(words.clone(), scratch);
        multiply(
            self.hidden(rows),
            weight.transposed(),
            out,
            self.tile[1],
            false,
        );
        for row in out.chunks_mut(self.tile[1]) {
            if let Some(bias) = &self.bias {
                for (x, b) in row.iter_mut().zip(&bias[words.clone()]) {
                    *x += b;
                }
            }
            let len = words.len().min(row.len());
            shape(self.arch, &mut row[..len], self.shaping);
        }
    }
}
