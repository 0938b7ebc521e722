//! Divergences of two models over the vocabulary, and their gradients.
//!
//! A divergence needs both normalisers before its first word, so the logits of some rows stay in
//! memory until all of their words are there. The backward has the normalisers and computes the
//! logits of both models again.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use pulp::Arch;
use rayon::prelude::*;

use super::buffers::{Aligned, Pool, split};
use super::deltas::Deltas;
use super::forward::{combined, ranges};
use super::panels::{LANES, padded};
use super::problem::{BLOCK, Problem, TASKS, vocabulary, words_of_a_chunk};
use super::words::Block;
use crate::kernel::discrepancy::{Comparison, KEPT};
use crate::kernel::flex::comparison::{Lanes, Normalizer, Terms, sums, turn};
use crate::kernel::flex::elementwise::narrow;
use crate::kernel::flex::partial::RowState;
use crate::kernel::flex::tensors::{f32s, tensor};
use crate::kernel::forward::HeadGradients;
use crate::kernel::head::Head;

/// Bytes of logits of both models that a forward holds at a time.
const LOGITS: usize = 40 << 20;
/// Minimum number of rows whose logits a forward holds. With fewer, the products wait for the
/// weights.
const ROWS: usize = 2 * LANES;
/// Segments of the vocabulary whose words are summed by one task. Each task has its own sums.
const SEGMENTS: usize = 2;

/// Two heads with the same rows and the same vocabulary, cut in the same way.
pub(crate) struct Pair {
    policy: Problem,
    reference: Problem,
}

impl Pair {
    /// Two heads for a forward.
    pub(crate) fn forward(arch: Arch, heads: [Head<Flex>; 2]) -> Self {
        let [vocab, _] = [&heads[0], &heads[1]].map(vocabulary);
        let of_row = 2 * size_of::<f32>() * vocab;
        let rows = LOGITS / of_row.max(1) / LANES * LANES;
        Self::cut(arch, heads, rows.clamp(ROWS, BLOCK))
    }

    /// Two heads for a backward.
    pub(crate) fn backward(arch: Arch, heads: [Head<Flex>; 2]) -> Self {
        Self::cut(arch, heads, BLOCK)
    }

    fn cut(arch: Arch, heads: [Head<Flex>; 2], block: usize) -> Self {
        let chunk = words_of_a_chunk(&heads[0]).min(words_of_a_chunk(&heads[1]));
        let [policy, reference] = heads.map(|head| Problem::cut(arch, head, block, chunk));
        Self { policy, reference }
    }

    /// The divergence of each row. With `slope`, also the gradient of its hidden state.
    pub(crate) fn compare(&self, terms: impl Terms, slope: bool) -> Comparison<Flex> {
        let problem = &self.policy;
        let lanes = problem
            .blocks
            .first()
            .map_or(0, |block| padded(block.len()));
        let mut logits = [(); 2].map(|()| Aligned::zeros(problem.vocab * lanes));
        let segments = ranges(problem.chunks(), TASKS);
        let mut rows = Rows::default();
        for block in &problem.blocks {
            let [ours, theirs] = &mut logits;
            let normalizers = self.normalizers(block, &segments, [ours, theirs]);
            let sums = self.sums(terms, block, &segments, [ours, theirs], &normalizers);
            let mean = |row: usize| f64::from(narrow(sums[row][1]));
            if slope {
                let lanes = lanes_of(block.len(), |row| {
                    let factor = problem.shaping.factor();
                    (normalizers[row], mean(row), factor)
                });
                self.turn_all(terms, block, &segments, (ours, theirs), &lanes);
                rows.slope.extend(self.slope(block, &segments, ours.get()));
            }
            for (of, sums) in normalizers.iter().zip(&sums) {
                let [ours, theirs] = of.map(|of| [of.max, of.log_sum]);
                let kept = [ours[0], ours[1], theirs[0], theirs[1], sums[1]];
                rows.kept.extend(kept.map(narrow));
                rows.divergence.push(narrow(sums[0]));
            }
        }
        let (rows, count, width) = (rows, problem.rows, problem.width);
        Comparison {
            discrepancy: tensor(rows.divergence, [count]),
            kept: tensor(rows.kept, [count, KEPT]),
            slope: slope.then(|| tensor(rows.slope, [count, width])),
        }
    }

    /// The gradients, from [`Comparison::kept`].
    pub(crate) fn gradients(
        self,
        terms: impl Terms,
        kept: &FlexTensor,
        grad: &FlexTensor,
        wanted: [bool; 3],
    ) -> HeadGradients<Flex> {
        let Self { policy, reference } = self;
        let (kept, grad) = (f32s(kept), f32s(grad));
        let kept: &[[f32; KEPT]] = kept.as_chunks().0;
        let factor = policy.shaping.factor();
        let of_block = |block: &Range<usize>| {
            lanes_of(block.len(), |row| {
                let (normalizers, mean) = Normalizer::of_kept(kept[block.start + row]);
                let grad = f64::from(grad[block.start + row]);
                (normalizers, mean, factor * grad)
            })
        };
        let deltas = OfDivergences {
            terms,
            of: policy.blocks.iter().map(of_block).collect(),
            scratch: Pool::new(reference.largest_tile()),
            reference,
        };
        policy.gradients(deltas, Vec::new(), wanted)
    }

    /// Computes the logits of a block of rows under both models, and their normalisers.
    fn normalizers(
        &self,
        block: &Range<usize>,
        segments: &[Range<usize>],
        logits: [&mut Aligned; 2],
    ) -> Vec<[Normalizer; 2]> {
        let [ours, theirs] = logits.map(|logits| self.parts_mut(block, segments, logits));
        let states: Vec<[Vec<RowState>; 2]> = segments
            .par_iter()
            .zip(ours)
            .zip(theirs)
            .map(|((chunks, ours), theirs)| {
                [(&self.policy, ours), (&self.reference, theirs)]
                    .map(|(problem, out)| problem.observed(chunks, block, out))
            })
            .collect();
        let [ours, theirs] = [0, 1].map(|model| {
            let states: Vec<RowState> = states.iter().flat_map(|of| of[model].clone()).collect();
            combined(block.len(), &states)
        });
        let normalizer = |state: &RowState| Normalizer {
            max: state.partial.max.into(),
            log_sum: state.partial.log_sum(),
        };
        let both = ours.iter().zip(&theirs);
        both.map(|(ours, theirs)| [ours, theirs].map(normalizer))
            .collect()
    }

    /// The divergence and the mean E of each row of a block.
    fn sums(
        &self,
        terms: impl Terms,
        block: &Range<usize>,
        segments: &[Range<usize>],
        logits: [&Aligned; 2],
        normalizers: &[[Normalizer; 2]],
    ) -> Vec<[f64; 2]> {
        let problem = &self.policy;
        let of = lanes_of(block.len(), |row| (normalizers[row], 0.0, 0.0));
        let [ours, theirs] = logits.map(|logits| self.parts(block, segments, logits));
        let each = segments.par_iter().zip(ours).zip(theirs);
        let of_segments: Vec<Vec<[f64; 2]>> = each
            .map(|((chunks, ours), theirs)| {
                let mut all = vec![[0.0; 2]; padded(block.len())];
                problem.each_vector(chunks, block, |place, stride, vector| {
                    let logits = [&ours[place.clone()], &theirs[place]];
                    let arch = problem.panels.arch;
                    let [values, means] = sums(arch, terms, logits, stride, &of[vector]);
                    let all = &mut all[vector * LANES..];
                    for (all, (value, mean)) in all.iter_mut().zip(values.iter().zip(means)) {
                        *all = [all[0] + value, all[1] + mean];
                    }
                });
                all
            })
            .collect();
        let sum = |row: usize| {
            let add = |a: [f64; 2], b: &Vec<[f64; 2]>| [a[0] + b[row][0], a[1] + b[row][1]];
            of_segments.iter().fold([0.0; 2], add)
        };
        (0..block.len()).map(sum).collect()
    }

    /// Turns the policy's logits of a block into deltas.
    fn turn_all(
        &self,
        terms: impl Terms,
        block: &Range<usize>,
        segments: &[Range<usize>],
        (ours, theirs): (&mut Aligned, &Aligned),
        of: &[Lanes],
    ) {
        let ours = self.parts_mut(block, segments, ours);
        let theirs = self.parts(block, segments, theirs);
        let each = segments.par_iter().zip(ours).zip(theirs);
        each.for_each(|((chunks, ours), theirs)| {
            self.policy
                .turn_pair(terms, chunks, block, (ours, theirs), of);
        });
    }

    /// `Σ_v delta_v·W[v]` of a block, row by row.
    fn slope(&self, block: &Range<usize>, segments: &[Range<usize>], deltas: &[f32]) -> Vec<f32> {
        let (problem, width) = (&self.policy, self.policy.width);
        let lanes = padded(block.len());
        let tasks: Vec<Range<usize>> = segments
            .chunks(SEGMENTS)
            .map(|some| some[0].start..some[some.len() - 1].end)
            .collect();
        let mut all = Aligned::zeros(tasks.len() * lanes * width);
        all.get_mut()
            .par_chunks_mut((lanes * width).max(1))
            .zip(&tasks)
            .for_each(|(sums, chunks)| {
                problem.each_chunk(chunks.clone(), |words, weight| {
                    let deltas = &deltas[words.start * lanes..words.end * lanes];
                    problem.add_words(weight, width, deltas, block, words, sums);
                });
            });
        let mut slope = vec![0.0; block.len() * width];
        for sums in all.get().chunks_exact((lanes * width).max(1)) {
            problem.subtract(&vec![-1.0; block.len()], sums, &mut slope);
        }
        slope
    }

    fn parts_mut<'a>(
        &self,
        block: &Range<usize>,
        segments: &[Range<usize>],
        logits: &'a mut Aligned,
    ) -> Vec<&'a mut [f32]> {
        let lanes = padded(block.len());
        let len = |chunks: &Range<usize>| self.policy.words_in(chunks).len() * lanes;
        split(logits.get_mut(), segments.iter().map(len))
    }

    fn parts<'a>(
        &self,
        block: &Range<usize>,
        segments: &[Range<usize>],
        logits: &'a Aligned,
    ) -> Vec<&'a [f32]> {
        let lanes = padded(block.len());
        let part = |chunks: &Range<usize>| {
            let words = self.policy.words_in(chunks);
            &logits.get()[words.start * lanes..words.end * lanes]
        };
        segments.iter().map(part).collect()
    }
}

/// Results of the rows so far.
#[derive(Default)]
struct Rows {
    divergence: Vec<f32>,
    kept: Vec<f32>,
    slope: Vec<f32>,
}

/// The numbers of the rows of a block; those of its padding are 0.
fn lanes_of(rows: usize, of: impl Fn(usize) -> ([Normalizer; 2], f64, f64)) -> Vec<Lanes> {
    let vector = |first: usize| {
        Lanes::new(|lane| {
            if first + lane < rows {
                return of(first + lane);
            }
            let zero = Normalizer {
                max: 0.0,
                log_sum: 0.0,
            };
            ([zero; 2], 0.0, 0.0)
        })
    };
    (0..rows).step_by(LANES).map(vector).collect()
}

/// The deltas of the policy's head, from the logits of both models.
struct OfDivergences<T> {
    terms: T,
    reference: Problem,
    /// Numbers of the rows of each block.
    of: Vec<Vec<Lanes>>,
    /// Tiles of the reference's logits.
    scratch: Pool,
}

impl<T: Terms> Deltas for OfDivergences<T> {
    fn write(
        &self,
        problem: &Problem,
        words: &Range<usize>,
        weight: Option<Block>,
        out: &mut [f32],
    ) {
        let reference = &self.reference;
        let chunk = words.start / problem.largest_chunk();
        reference.each_chunk(chunk..chunk + 1, |words, their_weight| {
            let blocks = problem.blocks.par_iter().zip(&self.of);
            let tiles = problem.tiles_mut(words, out).into_par_iter().zip(blocks);
            tiles.for_each(|(tile, (block, of))| {
                if let Some(weight) = weight {
                    problem.logits(weight, block, words, tile);
                }
                self.scratch.with(|theirs| {
                    let theirs = &mut theirs[..tile.len()];
                    reference.logits(their_weight, block, words, theirs);
                    let chunks = chunk..chunk + 1;
                    problem.turn_pair(self.terms, &chunks, block, (tile, theirs), of);
                });
            });
        });
    }
}

impl Problem {
    /// Writes the logits of some chunks and a block to `out`. Returns the results of its rows.
    fn observed(
        &self,
        chunks: &Range<usize>,
        block: &Range<usize>,
        mut out: &mut [f32],
    ) -> Vec<RowState> {
        let mut states = vec![RowState::EMPTY; block.len()];
        self.each_chunk(chunks.clone(), |words, weight| {
            let all = std::mem::take(&mut out);
            let (tile, rest) = all.split_at_mut(words.len() * padded(block.len()));
            out = rest;
            self.logits(weight, block, words, tile);
            self.observe(block, words, tile, &mut states, false);
        });
        states
    }

    /// Calls `work` with each vector of rows in the tiles of some chunks and a block: the place of
    /// its logits, the distance of those of two words, and the index of the vector.
    fn each_vector(
        &self,
        chunks: &Range<usize>,
        block: &Range<usize>,
        mut work: impl FnMut(Range<usize>, usize, usize),
    ) {
        let mut start = 0;
        for words in chunks.clone().map(|chunk| self.words_of(chunk)) {
            for panel in self.panels.of(padded(block.len())) {
                let of_panel = start + panel.first * words.len();
                let end = of_panel + panel.width * words.len();
                for first in (0..panel.width).step_by(LANES) {
                    let vector = (panel.first + first) / LANES;
                    work(of_panel + first..end, panel.width, vector);
                }
            }
            start += padded(block.len()) * words.len();
        }
    }

    /// Turns the logits of some chunks and a block into deltas. `theirs` are those of the
    /// reference.
    fn turn_pair(
        &self,
        terms: impl Terms,
        chunks: &Range<usize>,
        block: &Range<usize>,
        (ours, theirs): (&mut [f32], &[f32]),
        of: &[Lanes],
    ) {
        let (arch, bend) = (self.panels.arch, self.shaping.bend());
        self.each_vector(chunks, block, |place, stride, vector| {
            let logits = (&mut ours[place.clone()], &theirs[place]);
            turn(arch, terms, logits, stride, &of[vector], bend);
        });
    }
}
