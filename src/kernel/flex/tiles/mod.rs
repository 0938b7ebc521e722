//! The kernel for any weight and any machine. `gemm` computes the matrix products of the tiles.
//!
//! A task is one tile: a matrix product on the calling thread, then passes over the rows of the
//! tile.

mod backward;

use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::FloatDType;
use pulp::Arch;
use rayon::prelude::*;

use super::super::{Forward, Head, Shaping};
use super::matrix::{Matrix, multiply};
use super::partial::{Found, outputs};
use super::row::{narrow, observe, rescale, shape, shift, turn, turned_if_certain};
use super::words::Words;
use super::{f32s, indices, tensor};

/// Rows of a tile. With fewer rows, the words would be packed more often. With more rows, there
/// would be too few tasks.
const ROWS: usize = 512;
/// Rows of a tile if the logits are the only product.
const REFERENCE_ROWS: usize = 1024;
/// Words of a tile.
const WORDS: usize = 2048;
/// Words of one task that computes the gradient of the weight.
const SUB_WORDS: usize = 256;
/// Bytes of logits that a backward works on at a time.
const WORKSPACE: usize = 16 << 20;
/// Minimum number of tasks in the forward of a frozen head. Blocks of rows alone could be too few
/// tasks, so the vocabulary is cut into segments as well.
const TASKS: usize = 16;

/// The buffers of one task.
#[derive(Default)]
struct Scratch {
    logits: Vec<f32>,
    words: Vec<f32>,
}

/// Log-probabilities of some rows under a head, cut into tiles.
pub struct Tiles {
    arch: Arch,
    /// `[rows, width]`
    hidden: Vec<f32>,
    words: Words,
    bias: Option<Vec<f32>>,
    shaping: Shaping,
    targets: Vec<usize>,
    rows: usize,
    width: usize,
    /// Type of the returned gradients.
    dtype: FloatDType,
    words_first: bool,
    /// Rows and words of a tile.
    tile: [usize; 2],
    /// Number of tiles over the rows and over the words.
    grid: [usize; 2],
}

impl Tiles {
    /// Tiles for a forward that computes only one product, the logits.
    pub fn of_reference(head: Head<Flex>) -> Self {
        Self::with_rows(head, REFERENCE_ROWS)
    }

    pub fn new(head: Head<Flex>) -> Self {
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
    fn tile_len(&self) -> usize {
        self.tile[0] * self.tile[1]
    }

    fn rows_of(&self, block: usize) -> Range<usize> {
        block * self.tile[0]..((block + 1) * self.tile[0]).min(self.rows)
    }

    fn words_of(&self, tile: usize) -> Range<usize> {
        tile * self.tile[1]..((tile + 1) * self.tile[1]).min(self.words.len())
    }

    fn hidden(&self, rows: Range<usize>) -> Matrix<'_> {
        Matrix::rows_of(&self.hidden, [self.rows, self.width], self.width).rows(rows)
    }

    /// Computes the logits of a tile. The rows of `out` start every `self.tile[1]` numbers.
    fn logits(
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

    /// Log-probabilities, and the logits of as many first tiles as fit into `retained_bytes`.
    pub fn forward(&self, retained_bytes: usize, statistics: bool) -> Forward<Flex> {
        let [blocks, tiles] = self.grid;
        let column = blocks * self.tile_len();
        let retained = (retained_bytes / (size_of::<f32>() * column.max(1))).min(tiles);
        let mut kept = vec![0.0; retained * column];
        let mut found = vec![Found::NOTHING; tiles * blocks * self.tile[0]];
        let (keeping, passing) = found.split_at_mut(retained * blocks * self.tile[0]);

        let task = |index: usize, found: &mut [Found], logits: &mut [f32], words: &mut Vec<f32>| {
            let (tile, block) = (index / blocks, index % blocks);
            self.walk(block, tile, logits, words, found, statistics);
        };
        keeping
            .par_chunks_mut(self.tile[0])
            .zip(kept.par_chunks_mut(self.tile_len()))
            .enumerate()
            .for_each_init(Vec::new, |scratch, (index, (found, logits))| {
                task(index, found, logits, scratch);
            });
        passing
            .par_chunks_mut(self.tile[0])
            .enumerate()
            .for_each_init(
                Scratch::default,
                |Scratch { logits, words }, (index, found)| {
                    logits.resize(self.tile_len(), 0.0);
                    task(index + retained * blocks, found, logits, words);
                },
            );

        let len = kept.len();
        Forward {
            tiles: if len == 0 {
                Vec::new()
            } else {
                vec![tensor(kept, [len])]
            },
            ..self.finish(&self.combined(&found), statistics)
        }
    }

    /// Computes the logits of a tile, and adds their results to `found`.
    fn walk(
        &self,
        block: usize,
        tile: usize,
        logits: &mut [f32],
        scratch: &mut Vec<f32>,
        found: &mut [Found],
        statistics: bool,
    ) {
        let (rows, words) = (self.rows_of(block), self.words_of(tile));
        self.logits(rows.clone(), words.clone(), logits, scratch);
        let lines = logits.chunks(self.tile[1]).zip(found);
        for (row, (line, found)) in rows.zip(lines) {
            let line = &line[..words.len()];
            if words.contains(&self.targets[row]) {
                found.target = line[self.targets[row] - words.start];
            }
            let partial = observe(self.arch, line, found.partial.max, statistics);
            found.partial = found.partial.and(partial.starting_at(words.start));
        }
    }

    /// Combines the results of all tiles for each row. `found` is `[tile][padded row]`.
    fn combined(&self, found: &[Found]) -> Vec<Found> {
        let column = self.grid[0] * self.tile[0];
        let of = |row: usize| {
            let parts = found[row..].iter().step_by(column);
            parts.copied().fold(Found::NOTHING, Found::and)
        };
        (0..self.rows).into_par_iter().map(of).collect()
    }

    fn finish(&self, rows: &[Found], statistics: bool) -> Forward<Flex> {
        outputs(rows, &self.targets, self.words.len(), statistics)
    }

    /// Log-probabilities, and the gradient of each one with respect to its hidden state:
    /// `W[y] − Σ_v softmax_v W[v]`.
    pub fn forward_with_slope(&self, statistics: bool) -> Forward<Flex> {
        let [blocks, tiles] = self.grid;
        let tile_rows = self.tile[0];
        let segments = TASKS.div_ceil(blocks.max(1)).min(tiles);
        let segment_tiles = tiles.div_ceil(segments);
        let segments = tiles.div_ceil(segment_tiles);
        let mut found = vec![Found::NOTHING; segments * blocks * tile_rows];
        let mut expected = vec![0.0; segments * blocks * tile_rows * self.width];
        found
            .par_chunks_mut(tile_rows)
            .zip(expected.par_chunks_mut(tile_rows * self.width))
            .enumerate()
            .for_each_init(Scratch::default, |scratch, (index, (found, expected))| {
                let (segment, block) = (index / blocks, index % blocks);
                scratch.logits.resize(self.tile_len(), 0.0);
                let first = segment * segment_tiles;
                for tile in first..(first + segment_tiles).min(tiles) {
                    self.walk_with_slope(block, tile, scratch, found, expected, statistics);
                }
            });

        let rows = self.combined(&found);
        let combined = self.finish(&rows, statistics);
        let maxima: &[f32] = combined.normalizer.storage();
        let (factor, bend) = (narrow(self.shaping.factor()), narrow(self.shaping.bend()));
        let mut slope = vec![0.0; self.rows * self.width];
        slope.par_chunks_mut(self.width).enumerate().for_each_init(
            Vec::new,
            |scratch, (row, slope)| {
                let target = self.targets[row];
                let chosen = self.words.rows(target..target + 1, scratch);
                let left = turned_if_certain(rows[row].target, factor, bend);
                for (column, slope) in slope.iter_mut().enumerate() {
                    *slope = left * chosen.at(0, column);
                }
                for segment in 0..segments {
                    let padded = segment * blocks * tile_rows + row;
                    let share = found[padded].partial.max - maxima[2 * row];
                    let share = factor * (share - maxima[2 * row + 1]).exp();
                    let expected = &expected[padded * self.width..][..self.width];
                    for (slope, expected) in slope.iter_mut().zip(expected) {
                        *slope -= share * expected;
                    }
                }
            },
        );
        Forward {
            slope: Some(tensor(slope, [self.rows, self.width])),
            ..combined
        }
    }

    /// Adds a tile to the results of a segment. The powers are relative to the largest logit so
    /// far.
    fn walk_with_slope(
        &self,
        block: usize,
        tile: usize,
        scratch: &mut Scratch,
        found: &mut [Found],
        expected: &mut [f32],
        statistics: bool,
    ) {
        let (rows, words) = (self.rows_of(block), self.words_of(tile));
        let before: Vec<f32> = found.iter().map(|found| found.partial.max).collect();
        let Scratch {
            logits,
            words: converted,
        } = scratch;
        self.walk(block, tile, logits, converted, found, statistics);
        let bend = narrow(self.shaping.bend());
        let sums = expected
            .chunks_mut(self.width)
            .zip(logits.chunks_mut(self.tile[1]));
        for (before, (found, (sums, line))) in before.into_iter().zip(found.iter().zip(sums)) {
            let max = found.partial.max;
            rescale(sums, before, max);
            turn(
                self.arch,
                &mut line[..words.len()],
                [shift(max), 0.0],
                1.0,
                bend,
            );
        }
        let powers = Matrix::rows_of(logits, [rows.len(), words.len()], self.tile[1]);
        multiply(
            powers,
            self.words.rows(words, converted),
            expected,
            self.width,
            true,
        );
    }
}
