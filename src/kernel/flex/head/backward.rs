//! The gradients of hidden states, weight and bias, some chunks of words at a time.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType, bf16, f16};
use rayon::prelude::*;

use super::buffers::{Aligned, Pool, split};
use super::gradient::{Number, Part, WeightGradient};
use super::panels::padded;
use super::passes::{PerRow, turn};
use super::problem::Problem;
use super::product::Product;
use super::words::Sums;
use crate::kernel::flex::elementwise::{narrow, turned_if_certain};
use crate::kernel::flex::tensors::{f32s, tensor};
use crate::kernel::forward::HeadGradients;

/// Bytes of deltas that a backward works on at a time. There are two such buffers.
const WORKSPACE: usize = 4 << 20;
/// Columns of the hidden states' gradient that one task adds to.
const COLUMNS: usize = 96;

impl Problem {
    /// `kept` holds the logits that the forward kept. The deltas overwrite these logits.
    pub(crate) fn backward(
        &self,
        normalizer: &FlexTensor,
        kept: Vec<FlexTensor>,
        grad: &FlexTensor,
        wanted: [bool; 3],
    ) -> HeadGradients<Flex> {
        match self.dtype {
            DType::F16 => self.backward_as::<f16>(normalizer, kept, grad, wanted),
            DType::BF16 => self.backward_as::<bf16>(normalizer, kept, grad, wanted),
            _ => self.backward_as::<f32>(normalizer, kept, grad, wanted),
        }
    }

    fn backward_as<N: Number>(
        &self,
        normalizer: &FlexTensor,
        kept: Vec<FlexTensor>,
        grad: &FlexTensor,
        [wants_hidden, wants_weight, wants_bias]: [bool; 3],
    ) -> HeadGradients<Flex> {
        let (normalizer, grad) = (f32s(normalizer), f32s(grad));
        let (vocab, width) = (self.vocab, self.width);
        let of_rows = |block| self.per_row(block, normalizer.as_chunks().0, &grad);
        let mut state = Backward::<N> {
            problem: self,
            of: self.blocks.iter().map(of_rows).collect(),
            columns: wants_weight.then(|| self.columns()),
            products: Pool::new(self.largest_chunk() * padded(width)),
            hidden: wants_hidden.then(|| Aligned::zeros(self.lanes() * width)),
            weight: wants_weight.then(|| WeightGradient::zeros(self.words_first, vocab, width)),
            bias: wants_bias.then(|| vec![0.0; vocab]),
        };
        let mut next = 0;
        for mut tiles in kept {
            let (start, len) = (tiles.layout().start_offset(), tiles.layout().num_elements());
            let tiles = &mut tiles.storage_mut()[start..][..len];
            let chunks = next..next + len.div_ceil(self.logits_of(&(0..1)));
            next = chunks.end;
            state.add_kept(chunks, tiles);
        }
        state.add_others(next..self.chunks());

        let Backward {
            hidden,
            weight,
            bias,
            ..
        } = state;
        let dtype: FloatDType = self.dtype.into();
        [
            hidden.map(|sums| Flex::float_cast(self.in_rows(&sums), dtype)),
            weight.map(WeightGradient::into_tensor),
            bias.map(|bias| Flex::float_cast(tensor(bias, [vocab]), dtype)),
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

    /// Hidden states, a matrix in panels for each block: its rows are rows.
    fn columns(&self) -> Aligned {
        self.of_blocks(
            |rows| padded(self.width) * rows,
            |states, out| self.panels.pack(states, self.width, out),
        )
    }

    /// The columns of hidden states that each task adds to.
    fn column_parts(&self) -> impl Iterator<Item = Range<usize>> {
        let width = self.width;
        let part = move |first: usize| first..(first + COLUMNS).min(width);
        (0..width).step_by(COLUMNS).map(part)
    }

    /// The gradient of the hidden states, `[rows, width]`, from the sums of the tasks.
    fn in_rows(&self, sums: &Aligned) -> FlexTensor {
        let width = self.width;
        let mut rows = vec![0.0; self.rows * width];
        let mut sums = sums.get();
        for columns in self.column_parts() {
            for block in &self.blocks {
                let (of_block, rest) = sums.split_at(padded(block.len()) * columns.len());
                sums = rest;
                for panel in self.panels.of(block.len()) {
                    let lines = panel.of(of_block, columns.len()).chunks_exact(panel.width);
                    for (column, line) in columns.clone().zip(lines) {
                        let first = block.start + panel.first;
                        let lanes = panel.width.min(block.end - first);
                        let out = rows[first * width + column..].iter_mut().step_by(width);
                        out.zip(&line[..lanes]).for_each(|(out, x)| *out = *x);
                    }
                }
            }
        }
        tensor(rows, [self.rows, width])
    }
}

/// The gradients so far.
struct Backward<'a, N> {
    problem: &'a Problem,
    of: Vec<PerRow>,
    columns: Option<Aligned>,
    /// Products of the deltas of a chunk with the hidden states.
    products: Pool,
    /// For each part of the columns and each block a matrix in panels, whose columns are rows.
    hidden: Option<Aligned>,
    weight: Option<WeightGradient<N>>,
    bias: Option<Vec<f32>>,
}

/// The deltas of some chunks.
struct Band<'a> {
    chunks: Range<usize>,
    deltas: &'a [f32],
}

impl<N: Number> Backward<'_, N> {
    /// Number of chunks whose deltas are computed before they are added to the hidden states'
    /// gradient.
    fn step(&self) -> usize {
        let of_chunk = size_of::<f32>() * self.problem.logits_of(&(0..1));
        (WORKSPACE / of_chunk.max(1)).max(1)
    }

    /// Ranges of [`Self::step`] chunks.
    fn bands(&self, chunks: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<N> {
        let (end, step) = (chunks.end, self.step());
        let band = move |first: usize| first..(first + step).min(end);
        chunks.step_by(step).map(band)
    }

    /// Adds chunks whose logits are in `tiles`.
    fn add_kept(&mut self, chunks: Range<usize>, tiles: &mut [f32]) {
        let (mut before, mut rest) = (None, tiles);
        for chunks in self.bands(chunks) {
            let len = self.problem.logits_of(&chunks);
            let (deltas, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            self.add(before, &chunks, deltas, true);
            before = Some(Band { chunks, deltas });
        }
        self.add_to_hidden(before);
    }

    /// Adds chunks whose logits are computed again.
    fn add_others(&mut self, chunks: Range<usize>) {
        let len = self.problem.logits_of(&(0..1)) * self.step().min(chunks.len());
        let mut buffers = [Aligned::zeros(len), Aligned::zeros(len)];
        let [last, this] = &mut buffers;
        let (mut last, mut this) = (last.get_mut(), this.get_mut());
        let mut before: Option<Range<usize>> = None;
        for chunks in self.bands(chunks) {
            let deltas = &*last;
            let before = before.replace(chunks.clone());
            let before = before.map(|chunks| Band { chunks, deltas });
            let len = self.problem.logits_of(&chunks);
            self.add(before, &chunks, &mut this[..len], false);
            std::mem::swap(&mut last, &mut this);
        }
        let deltas = &*last;
        self.add_to_hidden(before.map(|chunks| Band { chunks, deltas }));
    }

    /// Computes the deltas of some chunks, and their gradients of weight and bias. At the same
    /// time, adds the deltas of the chunks before to the gradient of the hidden states.
    fn add(
        &mut self,
        before: Option<Band>,
        chunks: &Range<usize>,
        deltas: &mut [f32],
        are_kept: bool,
    ) {
        let problem = self.problem;
        let words: Vec<Range<usize>> = chunks
            .clone()
            .map(|chunk| problem.words_of(chunk))
            .collect();
        let deltas = split(
            deltas,
            words.iter().map(|words| words.len() * problem.lanes()),
        );
        let weights = match &mut self.weight {
            Some(weight) => weight.parts(&words).into_iter().map(Some).collect(),
            None => words.iter().map(|_| None).collect::<Vec<_>>(),
        };
        let biases = match &mut self.bias {
            Some(bias) => {
                let bias = &mut bias[problem.words_in(chunks)];
                split(bias, words.iter().map(Range::len))
                    .into_iter()
                    .map(Some)
                    .collect()
            }
            None => words.iter().map(|_| None).collect::<Vec<_>>(),
        };
        let (of, columns, products) = (&self.of, self.columns.as_ref(), &self.products);
        let hidden = self.hidden.as_mut();
        rayon::join(
            || {
                if let Some((hidden, band)) = hidden.zip(before) {
                    problem.add_to_hidden(&band, hidden.get_mut());
                }
            },
            || {
                let tasks = words.into_par_iter().zip(deltas).zip(weights).zip(biases);
                tasks.for_each(|(((words, deltas), weight), bias)| {
                    problem.deltas(&words, are_kept, of, deltas);
                    if let Some((weight, columns)) = weight.zip(columns) {
                        products.with(|products| {
                            problem.write_weight(&words, deltas, columns, products, weight);
                        });
                    }
                    if let Some(bias) = bias {
                        problem.write_bias(&words, deltas, bias);
                    }
                });
            },
        );
    }

    fn add_to_hidden(&mut self, band: Option<Band>) {
        if let Some((hidden, band)) = self.hidden.as_mut().zip(band) {
            self.problem.add_to_hidden(&band, hidden.get_mut());
        }
    }
}

impl Problem {
    /// The tiles of the deltas of `words`, with their blocks.
    fn tiles<'a>(
        &'a self,
        words: &Range<usize>,
        mut deltas: &'a [f32],
    ) -> impl Iterator<Item = (&'a Range<usize>, &'a [f32])> {
        let words = words.len();
        self.blocks.iter().map(move |block| {
            let (tile, rest) = deltas.split_at(words * padded(block.len()));
            deltas = rest;
            (block, tile)
        })
    }

    /// Writes `(onehot − softmax)·g` of the tiles of a chunk to `out`. If `are_kept`, `out` holds
    /// the logits at the start.
    fn deltas(&self, words: &Range<usize>, are_kept: bool, of: &[PerRow], out: &mut [f32]) {
        let lens = self
            .blocks
            .iter()
            .map(|block| words.len() * padded(block.len()));
        let tiles = split(out, lens).into_par_iter().zip(&self.blocks).zip(of);
        if are_kept {
            tiles.for_each(|((tile, block), of)| self.turn(words, block, of, tile));
            return;
        }
        let columns = 0..self.width;
        self.words
            .with(words, &columns, Sums::OverColumns, &self.copies, |weight| {
                tiles.for_each(|((tile, block), of)| {
                    self.logits(weight, block, words, tile);
                    self.turn(words, block, of, tile);
                });
            });
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

    fn add_to_hidden(&self, band: &Band, hidden: &mut [f32]) {
        let parts: Vec<Range<usize>> = self.column_parts().collect();
        let blocks = self.blocks.iter();
        // Place of the first tile of each block in the deltas of a chunk, in lanes.
        let tasks = parts
            .iter()
            .flat_map(|columns| blocks.clone().map(move |block| (columns, block)));
        let tasks: Vec<_> = tasks.collect();
        let lens = tasks
            .iter()
            .map(|(columns, block)| columns.len() * padded(block.len()));
        split(hidden, lens)
            .into_par_iter()
            .zip(&tasks)
            .for_each(|(out, (columns, block))| {
                let mut deltas = band.deltas;
                for chunk in band.chunks.clone() {
                    let words = self.words_of(chunk);
                    let (of_chunk, rest) = deltas.split_at(words.len() * self.lanes());
                    deltas = rest;
                    let tile = &of_chunk[words.len() * block.start..];
                    let tile = &tile[..words.len() * padded(block.len())];
                    self.words
                        .with(&words, columns, Sums::OverWords, &self.copies, |weight| {
                            self.add_words(weight, columns.len(), tile, block, &words, out);
                        });
                }
            });
    }

    fn write_weight<N: Number>(
        &self,
        words: &Range<usize>,
        deltas: &[f32],
        columns: &Aligned,
        products: &mut [f32],
        out: Part<N>,
    ) {
        let products = &mut products[..words.len() * padded(self.width)];
        for (block, tile) in self.tiles(words, deltas) {
            Product {
                panels: self.panels,
                a: &columns.get()[padded(self.width) * block.start..],
                columns: self.width,
                depth: block.len(),
                b: super::product::Factors::Panels(tile),
                rows: words.len(),
                out: &mut *products,
                accumulate: block.start > 0,
            }
            .run();
        }
        out.write(self.panels, products, [words.len(), self.width]);
    }

    fn write_bias(&self, words: &Range<usize>, deltas: &[f32], bias: &mut [f32]) {
        let mut sums = vec![0.0_f64; words.len()];
        for (block, tile) in self.tiles(words, deltas) {
            for panel in self.panels.of(block.len()) {
                let lanes = panel.width.min(block.len() - panel.first);
                let lines = panel.of(tile, words.len()).chunks_exact(panel.width);
                for (sum, line) in sums.iter_mut().zip(lines) {
                    *sum += line[..lanes].iter().copied().map(f64::from).sum::<f64>();
                }
            }
        }
        for (out, sum) in bias.iter_mut().zip(sums) {
            *out = narrow(sum);
        }
    }
}
