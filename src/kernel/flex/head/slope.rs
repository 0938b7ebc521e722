//! Log-probabilities, and the gradient of each one with respect to its own hidden state.

use std::ops::Range;

use burn::backend::Flex;
use rayon::prelude::*;

use super::buffers::{Aligned, Pool, split};
use super::forward::{Grid, combined};
use super::panels::padded;
use super::passes::{PerRow, turn};
use super::problem::Problem;
use super::words::Block;
use crate::kernel::flex::elementwise::{narrow, shift, turned_if_certain};
use crate::kernel::flex::partial::{RowState, outputs};
use crate::kernel::flex::tensors::tensor;
use crate::kernel::forward::Forward;

/// Minimum number of tasks. More tasks need more memory, because each task holds its own gradient
/// of its rows.
const TASKS: usize = 8;
/// How far the largest logit may rise, in nats, before the sums of powers are rescaled: e¹⁶ times
/// the sum of a vocabulary is far from the largest number.
const RISE: f32 = 16.0;

impl Problem {
    /// Log-probabilities, and the slope `W[y] − Σ_v softmax_v W[v]`.
    pub(crate) fn forward_with_slope(&self, statistics: bool) -> Forward<Flex> {
        let (rows, width) = (self.rows, self.width);
        // A copy of a chunk is worth more than one block.
        let group = if self.words.in_place() { 1 } else { 2 };
        let groups = self.blocks.len().div_ceil(group).max(1);
        let grid = Grid::new(self, TASKS.div_ceil(groups), group);
        let lens = || grid.tasks().map(|(_, group)| self.rows_of(&group));
        let mut states = vec![RowState::EMPTY; grid.segments.len() * rows];
        let mut shifts = vec![f32::NEG_INFINITY; states.len()];
        let mut expected = Aligned::zeros(grid.segments.len() * self.lanes() * width);
        let scratch = Pool::new(self.largest_tile());
        let tasks: Vec<_> = grid.tasks().collect();
        tasks
            .into_par_iter()
            .zip(split(&mut states, lens()))
            .zip(split(&mut shifts, lens()))
            .zip(split(
                expected.get_mut(),
                lens().map(|rows| padded(rows) * width),
            ))
            .for_each(|(((task, states), shifts), expected)| {
                let mut found = Found {
                    states,
                    shifts,
                    expected,
                };
                let (chunks, blocks) = task;
                self.each_chunk(chunks, |words, weight| {
                    self.add_chunk(words, weight, &blocks, &scratch, &mut found, statistics);
                });
            });

        let all = combined(rows, &states);
        let forward = outputs(&all, &self.targets, self.vocab, statistics);
        let normalizer: &[[f32; 2]] = forward.normalizer.storage::<f32>().as_chunks().0;
        let (factor, bend) = (narrow(self.shaping.factor()), narrow(self.shaping.bend()));
        let mut slope = vec![0.0; rows * width];
        split(
            &mut slope,
            self.blocks.iter().map(|block| block.len() * width),
        )
        .into_par_iter()
        .zip(&self.blocks)
        .for_each(|(slope, block)| {
            let left = |state: &RowState| turned_if_certain(state.target, factor, bend);
            let left: Vec<f32> = all[block.clone()].iter().map(left).collect();
            let targets = &self.targets[block.clone()];
            self.words.add_chosen(targets, &left, slope);
            for segment in 0..grid.segments.len() {
                let share = |row: usize| {
                    let [max, log_sum] = normalizer[row];
                    let shift = shifts[segment * rows + row];
                    factor * ((shift - max) - log_sum).exp()
                };
                let shares: Vec<f32> = block.clone().map(share).collect();
                let start = (segment * self.lanes() + block.start) * width;
                let expected = &expected.get()[start..];
                self.subtract(&shares, expected, slope);
            }
        });
        Forward {
            slope: Some(tensor(slope, [rows, width])),
            ..forward
        }
    }

    /// Adds the results of a chunk to those of a group of blocks: for each row the sums over its
    /// logits, and the weighted sum of the words `W[v]`. The weights are the powers of the logits,
    /// relative to the shift of the row.
    fn add_chunk(
        &self,
        words: &Range<usize>,
        weight: Block,
        group: &Range<usize>,
        scratch: &Pool,
        found: &mut Found,
        statistics: bool,
    ) {
        let (blocks, width) = (&self.blocks[group.clone()], self.width);
        let first = blocks[0].start;
        for block in blocks {
            let rows = block.start - first..block.end - first;
            let states = &mut found.states[rows.clone()];
            let shifts = &mut found.shifts[rows.clone()];
            let lanes = padded(block.len());
            let expected = &mut found.expected[rows.start * width..][..lanes * width];
            scratch.with(|tile| {
                let tile = &mut tile[..words.len() * lanes];
                self.logits(weight, block, words, tile);
                self.observe(block, words, tile, states, statistics);
                let of = self.raise(states, shifts, expected);
                let bend = narrow(self.shaping.bend());
                for panel in self.panels.of(lanes) {
                    let tile = panel.of_mut(tile, words.len());
                    turn(self.panels.arch, tile, panel, &of, bend);
                }
                self.add_words(weight, width, tile, block, words, expected);
            });
        }
    }

    /// Raises the shifts of rows whose largest logit has risen far above them, and rescales their
    /// sums. Returns the numbers that turn logits into powers.
    fn raise(&self, states: &[RowState], shifts: &mut [f32], expected: &mut [f32]) -> PerRow {
        let lanes = padded(states.len());
        for (lane, (state, before)) in states.iter().zip(&mut *shifts).enumerate() {
            let max = state.partial.max;
            if max <= *before + RISE && *before > f32::NEG_INFINITY {
                continue;
            }
            let before = std::mem::replace(before, max);
            // If the shift was −∞, all sums are still zero and need no rescaling.
            if before < max && before > f32::NEG_INFINITY {
                let factor = (before - max).exp();
                let (panel, lane) = self.lane(lanes, lane);
                let sums = panel.of_mut(expected, self.width)[lane..].iter_mut();
                sums.step_by(panel.width).for_each(|x| *x *= factor);
            }
        }
        let mut max: Vec<f32> = shifts.iter().copied().map(shift).collect();
        max.resize(lanes, 0.0);
        PerRow {
            max,
            log_sum: vec![0.0; lanes],
            factor: vec![1.0; lanes],
        }
    }

    /// Subtracts from the rows of a block their shares of a matrix in panels, whose columns are
    /// rows.
    pub(super) fn subtract(&self, shares: &[f32], expected: &[f32], slope: &mut [f32]) {
        let width = self.width;
        for panel in self.panels.of(shares.len()) {
            let lines = panel.of(expected, width).chunks_exact(panel.width);
            let rows = &shares[panel.first..];
            for (column, line) in lines.enumerate() {
                let out = slope[panel.first * width + column..]
                    .iter_mut()
                    .step_by(width);
                for ((out, x), share) in out.zip(line).zip(rows) {
                    *out -= share * x;
                }
            }
        }
    }
}

/// What a task has summed for its rows.
struct Found<'a> {
    states: &'a mut [RowState],
    /// Shift of each row: what its logits are relative to, in the powers of `expected`.
    shifts: &'a mut [f32],
    /// For each block a matrix in panels, whose columns are rows: `Σ_v exp(x_v − shift)·W[v]`.
    expected: &'a mut [f32],
}
