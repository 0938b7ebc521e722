//! The gradients of hidden states, weight and bias, some chunks of words at a time.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::buffers::{Aligned, of_blocks, split};
use super::panel::{Product, padded};
use super::passes::{PerRow, turn};
use super::problem::Lanes;
use crate::kernel::flex::bands::{BandBuffers, bands, gradient, kept};
use crate::kernel::flex::elementwise::{narrow, turned_if_certain};
use crate::kernel::flex::tensors::{f32s, tensor};
use crate::kernel::forward::HeadGradients;

/// Bytes of logits that a backward works on at a time.
const WORKSPACE: usize = 6 << 20;

impl Lanes {
    /// `retained` holds the logits that the forward kept. The deltas overwrite these logits.
    pub(crate) fn backward(
        &self,
        normalizer: &FlexTensor,
        mut retained: Vec<FlexTensor>,
        grad: &FlexTensor,
        [wants_hidden, wants_weight, wants_bias]: [bool; 3],
    ) -> HeadGradients<Flex> {
        let (normalizer, grad) = (f32s(normalizer), f32s(grad));
        let (width, vocab, chunks) = (self.width, self.vocab, self.chunks());
        let normalizer: &[[f32; 2]] = normalizer.as_chunks().0;
        let of_chunk = padded(self.rows) * self.chunk;
        let step = (WORKSPACE / (size_of::<f32>() * of_chunk)).clamp(1, chunks);

        let kept = kept(&mut retained);
        let kept_chunks = if kept.len() == self.tiles(0..chunks).sum::<usize>() {
            chunks
        } else {
            kept.len() / of_chunk
        };
        let left = step.min(chunks - kept_chunks);
        let mut scratch = Aligned::zeros(left * of_chunk);
        let mut buffers = BandBuffers {
            kept,
            scratch: scratch.get_mut(),
        };

        let columns = wants_weight.then(|| self.columns());
        let of: Vec<PerRow> = self
            .blocks
            .iter()
            .map(|block| self.per_row(block, normalizer, &grad))
            .collect();
        let mut hidden = gradient(wants_hidden, self.rows * width);
        let mut weight = gradient(wants_weight, vocab * width);
        let mut bias = gradient(wants_bias, vocab);

        for band in bands(kept_chunks, chunks, step) {
            let len = self.tiles(band.clone()).sum();
            let is_kept = band.start < kept_chunks;
            let deltas = buffers.next(is_kept, len);
            self.deltas(&band, is_kept, &of, deltas);

            let deltas = self.cut(&band, deltas);
            let words = self.words_of(band.start).start..self.words_of(band.end - 1).end;
            let to_hidden = || {
                if wants_hidden {
                    self.add_to_hidden(&band, &deltas, &mut hidden);
                }
            };
            let to_weight = || {
                if let Some(columns) = &columns {
                    let weight = &mut weight[words.start * width..words.end * width];
                    self.write_words(&band, &deltas, columns.get(), weight);
                }
            };
            rayon::join(to_hidden, to_weight);
            if wants_bias {
                self.write_bias(&deltas, &mut bias[words]);
            }
        }
        [
            wants_hidden.then(|| tensor(hidden, [self.rows, width])),
            wants_weight.then(|| tensor(weight, [vocab, width])),
            wants_bias.then(|| tensor(bias, [vocab])),
        ]
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

    /// Writes `(onehot − softmax)·g` of all tiles of some chunks to `out`. If `is_kept`, `out`
    /// holds the logits at the start.
    fn deltas(&self, chunks: &Range<usize>, is_kept: bool, of: &[PerRow], out: &mut [f32]) {
        let (blocks, bend) = (&self.blocks, narrow(self.shaping.bend()));
        let tiles = split(out, self.tiles(chunks.clone()));
        tiles.into_par_iter().enumerate().for_each(|(index, tile)| {
            let (block, of) = (&blocks[index % blocks.len()], &of[index % blocks.len()]);
            let words = self.words_of(chunks.start + index / blocks.len());
            if !is_kept {
                self.logits(block, &words, tile);
            }
            let targets = self.targets[block.clone()].iter().enumerate();
            let targets = targets.filter(|(_, target)| words.contains(target));
            // The onehot term at the target, with the derivative of a softcap. The term needs the
            // target's logit, so compute the term before `turn` overwrites the logit.
            let gains: Vec<(usize, f32)> = targets
                .map(|(lane, target)| {
                    let place = (target - words.start) * of.max.len() + lane;
                    // `of.factor` has a minus sign for the softmax term. The onehot term has the
                    // opposite sign.
                    (
                        place,
                        turned_if_certain(tile[place], -of.factor[lane], bend),
                    )
                })
                .collect();
            turn(self.arch, tile, of, bend);
            for (place, gain) in gains {
                tile[place] += gain;
            }
        });
    }

    /// Cuts the deltas of some chunks into tiles, in the order `[chunk][block]`.
    fn cut<'a>(&self, chunks: &Range<usize>, deltas: &'a [f32]) -> Vec<&'a [f32]> {
        let mut rest = deltas;
        let cut = |len: usize| {
            let (tile, after) = rest.split_at(len);
            rest = after;
            tile
        };
        self.tiles(chunks.clone()).map(cut).collect()
    }

    fn add_to_hidden(&self, chunks: &Range<usize>, deltas: &[&[f32]], hidden: &mut [f32]) {
        let blocks = &self.blocks;
        split(hidden, blocks.iter().map(|block| block.len() * self.width))
            .into_par_iter()
            .enumerate()
            .for_each_init(
                || Aligned::zeros(padded(self.width) * self.chunk),
                |packed, (index, out)| {
                    for (chunk, deltas) in chunks.clone().zip(deltas.chunks(blocks.len())) {
                        let words = self.words_of(chunk);
                        self.add_words(
                            deltas[index],
                            &blocks[index],
                            &words,
                            out,
                            packed.get_mut(),
                        );
                    }
                },
            );
    }

    /// Hidden states, packed into panels of `[row][width]` for each block.
    fn columns(&self) -> Aligned {
        of_blocks(
            &self.blocks,
            |rows| padded(self.width) * rows,
            |block, out| self.panels.pack(self.hidden(block), self.width, out),
        )
    }

    fn write_words(
        &self,
        chunks: &Range<usize>,
        deltas: &[&[f32]],
        columns: &[f32],
        weight: &mut [f32],
    ) {
        let blocks = &self.blocks;
        let lens = chunks
            .clone()
            .map(|chunk| self.words_of(chunk).len() * self.width);
        split(weight, lens)
            .into_par_iter()
            .zip(deltas.par_chunks(blocks.len()))
            .for_each(|(out, deltas)| {
                for (block, delta) in blocks.iter().zip(deltas) {
                    let rows = padded(block.len());
                    self.arch.dispatch(Product {
                        panels: self.panels,
                        a: &columns[padded(self.width) * block.start..],
                        columns: self.width,
                        depth: block.len(),
                        b: delta,
                        strides: [rows, 1],
                        rows: delta.len() / rows,
                        out: &mut *out,
                        out_stride: self.width,
                        accumulate: block.start > 0,
                    });
                }
            });
    }

    fn write_bias(&self, deltas: &[&[f32]], bias: &mut [f32]) {
        let blocks = &self.blocks;
        bias.par_chunks_mut(self.chunk)
            .zip(deltas.par_chunks(blocks.len()))
            .for_each(|(bias, deltas)| {
                let mut sums = vec![0.0_f64; bias.len()];
                for (block, delta) in blocks.iter().zip(deltas) {
                    let lines = delta.chunks_exact(padded(block.len()));
                    for (sum, line) in sums.iter_mut().zip(lines) {
                        *sum += line[..block.len()]
                            .iter()
                            .copied()
                            .map(f64::from)
                            .sum::<f64>();
                    }
                }
                for (out, sum) in bias.iter_mut().zip(sums) {
                    *out = narrow(sum);
                }
            });
    }
}
