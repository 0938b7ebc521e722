//! The gradients of hidden states, weight and bias, a group of tiles at a time.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use rayon::prelude::*;

use super::problem::{SUB_WORDS, Tiles, WORKSPACE};
use crate::kernel::flex::bands::{BandBuffers, bands, gradient, kept};
use crate::kernel::flex::elementwise::{narrow, turned_if_certain};
use crate::kernel::flex::matrix::{Matrix, multiply};
use crate::kernel::flex::row::turn;
use crate::kernel::flex::tensors::{f32s, tensor};
use crate::kernel::forward::HeadGradients;

impl Tiles {
    /// `retained` holds the logits that the forward kept. The deltas overwrite these logits.
    pub(crate) fn backward(
        &self,
        normalizer: &FlexTensor,
        mut retained: Vec<FlexTensor>,
        grad: &FlexTensor,
        [wants_hidden, wants_weight, wants_bias]: [bool; 3],
    ) -> HeadGradients<Flex> {
        let (normalizer, grad) = (f32s(normalizer), f32s(grad));
        let delta = Delta {
            problem: self,
            normalizer: normalizer.as_chunks().0,
            grad: &grad,
        };
        let [blocks, tiles] = self.grid;
        let vocab = self.words.len();
        let column = blocks * self.tile_len();
        let group = (WORKSPACE / (size_of::<f32>() * column.max(1))).clamp(1, tiles);
        let kept = kept(&mut retained);
        let kept_tiles = kept.len() / column.max(1);
        let mut scratch = vec![0.0; group.min(tiles - kept_tiles) * column];
        let mut buffers = BandBuffers {
            kept,
            scratch: &mut scratch,
        };
        let mut hidden = gradient(wants_hidden, self.rows * self.width);
        let mut weight = gradient(wants_weight, vocab * self.width);
        let mut bias = gradient(wants_bias, vocab);

        for group in bands(kept_tiles, tiles, group) {
            let first = group.start;
            let is_kept = first < kept_tiles;
            let deltas = buffers.next(is_kept, group.len() * column);
            deltas
                .par_chunks_mut(self.tile_len())
                .enumerate()
                .for_each_init(Vec::new, |scratch, (index, out)| {
                    delta.tile(
                        index % blocks,
                        first + index / blocks,
                        is_kept,
                        out,
                        scratch,
                    );
                });
            let deltas = Deltas {
                problem: self,
                first,
                values: deltas,
            };
            if wants_hidden {
                deltas.add_to_hidden(group.clone(), &mut hidden);
            }
            let words = first * self.tile[1]..(group.end * self.tile[1]).min(vocab);
            if wants_weight && self.words_first {
                let range = words.start * self.width..words.end * self.width;
                deltas.write_words(words.clone(), &mut weight[range]);
            } else if wants_weight {
                deltas.write_columns(group, &mut weight);
            }
            if wants_bias {
                deltas.write_bias(words.clone(), &mut bias[words]);
            }
        }

        let shape = if self.words_first {
            [vocab, self.width]
        } else {
            [self.width, vocab]
        };
        let cast = |tensor: FlexTensor| Flex::float_cast(tensor, self.dtype);
        [
            wants_hidden.then(|| cast(tensor(hidden, [self.rows, self.width]))),
            wants_weight.then(|| cast(tensor(weight, shape))),
            wants_bias.then(|| cast(tensor(bias, [vocab]))),
        ]
    }
}

/// `(onehot − softmax) · g`, tile by tile.
struct Delta<'a> {
    problem: &'a Tiles,
    normalizer: &'a [[f32; 2]],
    grad: &'a [f32],
}

impl Delta<'_> {
    /// Writes the deltas of a tile to `out`. If `is_kept`, `out` holds the logits of the tile at
    /// the start; otherwise the logits are computed first.
    fn tile(
        &self,
        block: usize,
        tile: usize,
        is_kept: bool,
        out: &mut [f32],
        scratch: &mut Vec<f32>,
    ) {
        let problem = self.problem;
        let (rows, words) = (problem.rows_of(block), problem.words_of(tile));
        if !is_kept {
            problem.logits(rows.clone(), words.clone(), out, scratch);
        }
        let factor = narrow(problem.shaping.factor());
        let bend = narrow(problem.shaping.bend());
        for (row, out) in rows.zip(out.chunks_mut(problem.tile[1])) {
            let out = &mut out[..words.len()];
            let (normalizer, grad) = (self.normalizer[row], factor * self.grad[row]);
            let target = words.contains(&problem.targets[row]);
            let target = target.then(|| problem.targets[row] - words.start);
            // The onehot term at the target, with the derivative of a softcap. The term needs the
            // target's logit, so compute the term before `turn` overwrites the logit.
            let gain = target.map(|target| turned_if_certain(out[target], grad, bend));
            turn(problem.arch, out, normalizer, -grad, bend);
            if let Some((target, gain)) = target.zip(gain) {
                out[target] += gain;
            }
        }
    }
}

/// The deltas of a group of tiles: `[tile, padded row, word]`.
struct Deltas<'a> {
    problem: &'a Tiles,
    /// The first tile of the group.
    first: usize,
    values: &'a [f32],
}

impl Deltas<'_> {
    /// The deltas of all rows of a tile, `[rows, words]`.
    fn of(&self, tile: usize) -> Matrix<'_> {
        let problem = self.problem;
        let column = problem.grid[0] * problem.tile_len();
        let values = &self.values[(tile - self.first) * column..][..column];
        let shape = [problem.rows, problem.words_of(tile).len()];
        Matrix::rows_of(values, shape, problem.tile[1])
    }

    fn add_to_hidden(&self, group: Range<usize>, hidden: &mut [f32]) {
        /// Rows of the gradient that one task adds to.
        const HIDDEN_ROWS: usize = 256;
        let problem = self.problem;
        hidden
            .par_chunks_mut(HIDDEN_ROWS * problem.width)
            .enumerate()
            .for_each_init(Vec::new, |scratch, (index, out)| {
                let start = index * HIDDEN_ROWS;
                let rows = start..start + out.len() / problem.width;
                for tile in group.clone() {
                    let deltas = self.of(tile).rows(rows.clone());
                    let words = problem.words.rows(problem.words_of(tile), scratch);
                    multiply(deltas, words, out, problem.width, true);
                }
            });
    }

    /// Writes whole rows of the gradient of a weight `[vocab, hidden]`.
    fn write_words(&self, words: Range<usize>, weight: &mut [f32]) {
        let problem = self.problem;
        weight
            .par_chunks_mut(SUB_WORDS * problem.width)
            .enumerate()
            .for_each(|(index, out)| {
                let deltas = self.sub(&words, index, out.len() / problem.width);
                let hidden = problem.hidden(0..problem.rows);
                multiply(deltas.transposed(), hidden, out, problem.width, false);
            });
    }

    /// Writes some columns of the gradient of a weight `[hidden, vocab]`.
    fn write_columns(&self, group: Range<usize>, weight: &mut [f32]) {
        /// Rows of the weight that one task writes. Each row belongs to one number of a hidden
        /// state.
        const ROWS: usize = 128;
        let problem = self.problem;
        let vocab = problem.words.len();
        let hidden = problem.hidden(0..problem.rows);
        weight
            .par_chunks_mut(ROWS * vocab)
            .enumerate()
            .for_each(|(index, out)| {
                let rows = index * ROWS..index * ROWS + out.len() / vocab;
                for tile in group.clone() {
                    let hidden = hidden.columns(rows.clone()).transposed();
                    let out = &mut out[problem.words_of(tile).start..];
                    multiply(hidden, self.of(tile), out, vocab, false);
                }
            });
    }

    fn write_bias(&self, words: Range<usize>, bias: &mut [f32]) {
        bias.par_chunks_mut(SUB_WORDS)
            .enumerate()
            .for_each(|(index, out)| {
                let deltas = self.sub(&words, index, out.len());
                let mut sums = [0.0_f64; SUB_WORDS];
                for row in 0..self.problem.rows {
                    for (sum, x) in sums.iter_mut().zip(deltas.row(row)) {
                        *sum += f64::from(*x);
                    }
                }
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = narrow(sum);
                }
            });
    }

    /// The deltas of `len` words: part `index` of `words`, in parts of [`SUB_WORDS`]. The width of
    /// a tile is a multiple of [`SUB_WORDS`], so a part never crosses two tiles.
    fn sub(&self, words: &Range<usize>, index: usize, len: usize) -> Matrix<'_> {
        let start = words.start + index * SUB_WORDS;
        let tile = start / self.problem.tile[1];
        let start = start - self.problem.words_of(tile).start;
        self.of(tile).columns(start..start + len)
    }
}
