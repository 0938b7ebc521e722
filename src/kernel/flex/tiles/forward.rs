//! Log-probabilities, and the slope of a frozen head.

use burn::backend::Flex;
use rayon::prelude::*;

use super::problem::Tiles;
use crate::kernel::flex::elementwise::{narrow, shift, turned_if_certain};
use crate::kernel::flex::matrix::{Matrix, multiply};
use crate::kernel::flex::partial::{RowState, outputs};
use crate::kernel::flex::row::{observe, rescale, turn};
use crate::kernel::flex::tensors::tensor;
use crate::kernel::forward::Forward;

/// Minimum number of tasks in the forward of a frozen head. Blocks of rows alone could be too few
/// tasks, so the vocabulary is cut into segments as well.
const TASKS: usize = 16;

/// The buffers of one task.
#[derive(Default)]
struct Scratch {
    logits: Vec<f32>,
    words: Vec<f32>,
}

impl Tiles {
    /// Log-probabilities, and the logits of as many first tiles as fit into `retained_bytes`.
    pub(crate) fn forward(&self, retained_bytes: usize, statistics: bool) -> Forward<Flex> {
        let [blocks, tiles] = self.grid;
        let column = blocks * self.tile_len();
        let retained = (retained_bytes / (size_of::<f32>() * column.max(1))).min(tiles);
        let mut kept = vec![0.0; retained * column];
        let mut states = vec![RowState::EMPTY; tiles * blocks * self.tile[0]];
        let (keeping, passing) = states.split_at_mut(retained * blocks * self.tile[0]);

        let task =
            |index: usize, states: &mut [RowState], logits: &mut [f32], words: &mut Vec<f32>| {
                let (tile, block) = (index / blocks, index % blocks);
                self.add_tile(block, tile, logits, words, states, statistics);
            };
        keeping
            .par_chunks_mut(self.tile[0])
            .zip(kept.par_chunks_mut(self.tile_len()))
            .enumerate()
            .for_each_init(Vec::new, |scratch, (index, (states, logits))| {
                task(index, states, logits, scratch);
            });
        passing
            .par_chunks_mut(self.tile[0])
            .enumerate()
            .for_each_init(
                Scratch::default,
                |Scratch { logits, words }, (index, states)| {
                    logits.resize(self.tile_len(), 0.0);
                    task(index + retained * blocks, states, logits, words);
                },
            );

        let len = kept.len();
        Forward {
            tiles: if len == 0 {
                Vec::new()
            } else {
                vec![tensor(kept, [len])]
            },
            ..self.finish(&self.combined(&states), statistics)
        }
    }

    /// Computes the logits of a tile, and adds their results to `states`.
    fn add_tile(
        &self,
        block: usize,
        tile: usize,
        logits: &mut [f32],
        scratch: &mut Vec<f32>,
        states: &mut [RowState],
        statistics: bool,
    ) {
        let (rows, words) = (self.rows_of(block), self.words_of(tile));
        self.logits(rows.clone(), words.clone(), logits, scratch);
        let lines = logits.chunks(self.tile[1]).zip(states);
        for (row, (line, state)) in rows.zip(lines) {
            let line = &line[..words.len()];
            if words.contains(&self.targets[row]) {
                state.target = line[self.targets[row] - words.start];
            }
            let partial = observe(self.arch, line, state.partial.max, statistics);
            state.partial = state.partial.and(partial.starting_at(words.start));
        }
    }

    /// Combines the results of all tiles for each row. `states` is `[tile][padded row]`.
    fn combined(&self, states: &[RowState]) -> Vec<RowState> {
        let column = self.grid[0] * self.tile[0];
        let of = |row: usize| {
            let parts = states[row..].iter().step_by(column);
            parts.copied().fold(RowState::EMPTY, RowState::and)
        };
        (0..self.rows).into_par_iter().map(of).collect()
    }

    fn finish(&self, rows: &[RowState], statistics: bool) -> Forward<Flex> {
        outputs(rows, &self.targets, self.words.len(), statistics)
    }

    /// Log-probabilities, and the gradient of each one with respect to its hidden state:
    /// `W[y] − Σ_v softmax_v W[v]`.
    pub(crate) fn forward_with_slope(&self, statistics: bool) -> Forward<Flex> {
        let [blocks, tiles] = self.grid;
        let tile_rows = self.tile[0];
        let segments = TASKS.div_ceil(blocks.max(1)).min(tiles);
        let segment_tiles = tiles.div_ceil(segments);
        let segments = tiles.div_ceil(segment_tiles);
        let mut states = vec![RowState::EMPTY; segments * blocks * tile_rows];
        let mut expected = vec![0.0; segments * blocks * tile_rows * self.width];
        states
            .par_chunks_mut(tile_rows)
            .zip(expected.par_chunks_mut(tile_rows * self.width))
            .enumerate()
            .for_each_init(Scratch::default, |scratch, (index, (states, expected))| {
                let (segment, block) = (index / blocks, index % blocks);
                scratch.logits.resize(self.tile_len(), 0.0);
                let first = segment * segment_tiles;
                for tile in first..(first + segment_tiles).min(tiles) {
                    self.add_tile_with_slope(block, tile, scratch, states, expected, statistics);
                }
            });

        let rows = self.combined(&states);
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
                    let share = states[padded].partial.max - maxima[2 * row];
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
    fn add_tile_with_slope(
        &self,
        block: usize,
        tile: usize,
        scratch: &mut Scratch,
        states: &mut [RowState],
        expected: &mut [f32],
        statistics: bool,
    ) {
        let (rows, words) = (self.rows_of(block), self.words_of(tile));
        let before: Vec<f32> = states.iter().map(|state| state.partial.max).collect();
        let Scratch {
            logits,
            words: converted,
        } = scratch;
        self.add_tile(block, tile, logits, converted, states, statistics);
        let bend = narrow(self.shaping.bend());
        let sums = expected
            .chunks_mut(self.width)
            .zip(logits.chunks_mut(self.tile[1]));
        for (before, (state, (sums, line))) in before.into_iter().zip(states.iter().zip(sums)) {
            let max = state.partial.max;
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
