//! From logits to deltas: the gradient of the products of words and hidden states.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::buffers::split;
use super::panels::padded;
use super::passes::{PerRow, turn};
use super::problem::Problem;
use super::words::Block;
use crate::kernel::flex::elementwise::{narrow, turned_if_certain};
use crate::kernel::flex::tensors::f32s;
use crate::kernel::forward::HeadGradients;

/// What a backward multiplies with words and hidden states.
pub(super) trait Deltas: Sync {
    /// Writes the deltas of the tiles of a chunk to `out`. Without a weight, `out` holds the logits
    /// at the start.
    fn write(
        &self,
        problem: &Problem,
        words: &Range<usize>,
        weight: Option<Block>,
        out: &mut [f32],
    );
}

/// `(onehot − softmax)·g` of log-probabilities: the numbers of the rows of each block.
struct OfLogProbs(Vec<PerRow>);

impl Deltas for OfLogProbs {
    fn write(
        &self,
        problem: &Problem,
        words: &Range<usize>,
        weight: Option<Block>,
        out: &mut [f32],
    ) {
        let blocks = problem.blocks.par_iter().zip(&self.0);
        let tiles = problem.tiles_mut(words, out).into_par_iter().zip(blocks);
        tiles.for_each(|(tile, (block, of))| {
            if let Some(weight) = weight {
                problem.logits(weight, block, words, tile);
            }
            problem.turn(words, block, of, tile);
        });
    }
}

impl Problem {
    /// The gradients of log-probabilities. `kept` holds the logits that the forward kept.
    pub(crate) fn backward(
        &self,
        normalizer: &FlexTensor,
        kept: Vec<FlexTensor>,
        grad: &FlexTensor,
        wanted: [bool; 3],
    ) -> HeadGradients<Flex> {
        let (normalizer, grad) = (f32s(normalizer), f32s(grad));
        let of_rows = |block| self.per_row(block, normalizer.as_chunks().0, &grad);
        let deltas = OfLogProbs(self.blocks.iter().map(of_rows).collect());
        self.gradients(deltas, kept, wanted)
    }

    /// The tiles of the blocks for one chunk.
    pub(super) fn tiles_mut<'a>(
        &self,
        words: &Range<usize>,
        out: &'a mut [f32],
    ) -> Vec<&'a mut [f32]> {
        let len = |block: &Range<usize>| words.len() * padded(block.len());
        split(out, self.blocks.iter().map(len))
    }

    /// The numbers that turn the logits of a block into deltas, except for the onehot term at the
    /// targets.
    fn per_row(&self, block: &Range<usize>, normalizer: &[[f32; 2]], grad: &[f32]) -> PerRow {
        let factor = narrow(self.shaping.factor());
        let normalizer = &normalizer[block.clone()];
        let mut of = PerRow {
            max: normalizer.iter().map(|of| of[0]).collect(),
            log_sum: normalizer.iter().map(|of| of[1]).collect(),
            factor: grad[block.clone()]
                .iter()
                .map(|grad| -factor * grad)
                .collect(),
        };
        for numbers in [&mut of.max, &mut of.log_sum, &mut of.factor] {
            numbers.resize(padded(block.len()), 0.0);
        }
        of
    }

    /// Turns the logits of a tile into deltas.
    fn turn(&self, words: &Range<usize>, block: &Range<usize>, of: &PerRow, tile: &mut [f32]) {
        let bend = narrow(self.shaping.bend());
        for panel in self.panels.of(block.len()) {
            let tile = panel.of_mut(tile, words.len());
            let first = block.start + panel.first;
            let rows = first..block.end.min(first + panel.width);
            // The onehot term at the target, with the derivative of a softcap. The term needs the
            // target's logit, so compute the term before `turn` overwrites the logit.
            let targets = self.targets[rows].iter().enumerate();
            let gains: Vec<(usize, f32)> = targets
                .filter(|(_, target)| words.contains(target))
                .map(|(lane, target)| {
                    let place = (target - words.start) * panel.width + lane;
                    // `of.factor` has a minus sign for the softmax term. The onehot term has the
                    // opposite sign.
                    let factor = -of.factor[panel.first + lane];
                    (place, turned_if_certain(tile[place], factor, bend))
                })
                .collect();
            turn(self.panels.arch, tile, panel, of, bend);
            for (place, gain) in gains {
                tile[place] += gain;
            }
        }
    }
}
