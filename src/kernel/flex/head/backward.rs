//! The gradients of hidden states, weight and bias, some chunks of words at a time.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType, bf16, f16};
use rayon::prelude::*;

use super::buffers::{Aligned, Pool, split};
use super::deltas::Deltas;
use super::gradient::{Number, Part, WeightGradient};
use super::kept::{Held, Kept};
use super::panels::padded;
use super::problem::Problem;
use super::product::{Factors, Product};
use super::words::Block;
use crate::kernel::flex::elementwise::narrow;
use crate::kernel::flex::tensors::tensor;
use crate::kernel::forward::HeadGradients;

/// Columns of the hidden states' gradient that one task adds to.
const COLUMNS: usize = 96;

impl Problem {
    /// The gradients from the deltas of all logits. `kept` holds the logits that the forward kept.
    pub(super) fn gradients(
        &self,
        deltas: impl Deltas,
        kept: Vec<FlexTensor>,
        wanted: [bool; 3],
    ) -> HeadGradients<Flex> {
        match self.dtype {
            DType::F16 => self.gradients_as::<f16, _>(deltas, kept, wanted),
            DType::BF16 => self.gradients_as::<bf16, _>(deltas, kept, wanted),
            _ => self.gradients_as::<f32, _>(deltas, kept, wanted),
        }
    }

    fn gradients_as<N: Number, D: Deltas>(
        &self,
        deltas: D,
        kept: Vec<FlexTensor>,
        wanted: [bool; 3],
    ) -> HeadGradients<Flex> {
        let kept = Kept::from_tensors(self, kept);
        Backward::<N, D>::new(self, deltas, kept, wanted).run()
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
struct Backward<'a, N, D> {
    problem: &'a Problem,
    deltas: D,
    kept: Kept<N>,
    columns: Option<Aligned>,
    /// Products of the deltas of a chunk with the hidden states.
    products: Pool,
    /// For each part of the columns and each block a matrix in panels, whose columns are rows.
    hidden: Option<Aligned>,
    bias: Option<Vec<f32>>,
}

/// The deltas of some chunks, and their part of the weight.
struct Band<'a> {
    chunks: Range<usize>,
    deltas: &'a [f32],
    weight: Block<'a>,
}

/// What the gradients of one chunk are computed from, and where they are written.
struct Chunk<'a, N> {
    words: Range<usize>,
    /// The gradient of the words, or the logits that lie there.
    weight: Option<Part<'a, N>>,
    /// Whether there are logits in `weight`.
    is_inside: bool,
    /// Logits that are kept elsewhere.
    beside: Option<&'a [N]>,
    bias: Option<&'a mut [f32]>,
    deltas: &'a mut [f32],
}

impl<'a, N: Number, D: Deltas> Backward<'a, N, D> {
    fn new(
        problem: &'a Problem,
        deltas: D,
        kept: Kept<N>,
        [wants_hidden, wants_weight, wants_bias]: [bool; 3],
    ) -> Self {
        let (vocab, width) = (problem.vocab, problem.width);
        Self {
            problem,
            deltas,
            kept,
            columns: wants_weight.then(|| problem.columns()),
            products: Pool::new(problem.largest_chunk() * padded(width)),
            hidden: wants_hidden.then(|| Aligned::zeros(problem.lanes() * width)),
            bias: wants_bias.then(|| vec![0.0; vocab]),
        }
    }

    fn run(mut self) -> HeadGradients<Flex> {
        let problem = self.problem;
        let most = problem.step().min(problem.chunks());
        let words = problem.words.room(problem.largest_chunk() * most);
        // Copies of the weight, and deltas: of the chunks at hand, and of those before.
        let [mut last, mut this] = [(); 2].map(|()| Aligned::zeros(words));
        let len = problem.logits_of(&(0..1)) * most;
        let [mut last_deltas, mut this_deltas] = [(); 2].map(|()| Aligned::zeros(len));
        let mut weight = self.kept.take_gradient();
        if self.columns.is_some() {
            let zeros = || problem.gradient_in(N::zeros(problem.vocab * problem.width));
            weight = weight.or_else(|| Some(zeros()));
        }
        let mut before: Option<Range<usize>> = None;
        for (stretch, buffer) in self.kept.take_stretches(problem) {
            for chunks in problem.bands(stretch.clone()) {
                problem.fill(&chunks, this.get_mut());
                let earlier = before.replace(chunks.clone());
                let earlier =
                    earlier.map(|chunks| problem.band(chunks, last_deltas.get(), last.get()));
                let beside = (&stretch, buffer.as_slice());
                let weight = weight.as_mut();
                self.add(
                    earlier,
                    chunks,
                    weight,
                    beside,
                    this.get(),
                    this_deltas.get_mut(),
                );
                std::mem::swap(&mut last, &mut this);
                std::mem::swap(&mut last_deltas, &mut this_deltas);
            }
        }
        if let Some((hidden, chunks)) = self.hidden.as_mut().zip(before) {
            let band = problem.band(chunks, last_deltas.get(), last.get());
            problem.add_to_hidden(&band, hidden.get_mut());
        }

        let dtype: FloatDType = problem.dtype.into();
        let bias = self.bias.map(|bias| tensor(bias, [problem.vocab]));
        [
            self.hidden
                .map(|sums| Flex::float_cast(problem.in_rows(&sums), dtype)),
            weight
                .filter(|_| self.columns.is_some())
                .map(WeightGradient::into_tensor),
            bias.map(|bias| Flex::float_cast(bias, dtype)),
        ]
    }

    /// Computes the deltas of some chunks, and their gradients of weight and bias. `copy` holds the
    /// part of the weight if it is not read in place. At the same time, adds the deltas of the
    /// chunks before to the gradient of the hidden states.
    fn add(
        &mut self,
        before: Option<Band>,
        chunks: Range<usize>,
        weight: Option<&mut WeightGradient<N>>,
        beside: (&Range<usize>, &[N]),
        copy: &[f32],
        deltas: &mut [f32],
    ) {
        let problem = self.problem;
        let all = problem.words_in(&chunks);
        let words: Vec<Range<usize>> = chunks.clone().map(|of| problem.words_of(of)).collect();
        let deltas = split(deltas, words.iter().map(|of| of.len() * problem.lanes()));
        let weights = weight.map_or_else(Vec::new, |weight| weight.parts(&words));
        let biases = self.bias.as_mut().map_or_else(Vec::new, |bias| {
            split(&mut bias[all.clone()], words.iter().map(Range::len))
        });
        let (mut weights, mut biases) = (weights.into_iter(), biases.into_iter());
        let kept = &self.kept;
        let tasks: Vec<Chunk<N>> = chunks
            .zip(words)
            .zip(deltas)
            .map(|((chunk, words), deltas)| Chunk {
                words,
                weight: weights.next(),
                is_inside: kept.is_inside(chunk),
                beside: Kept::of_chunk(problem, beside, chunk),
                bias: biases.next(),
                deltas,
            })
            .collect();
        let (source, columns, products) = (&self.deltas, self.columns.as_ref(), &self.products);
        let hidden = self.hidden.as_mut();
        let matrix = problem.words.block(&all, copy);
        rayon::join(
            || {
                if let Some((hidden, band)) = hidden.zip(before) {
                    problem.add_to_hidden(&band, hidden.get_mut());
                }
            },
            || {
                tasks.into_par_iter().for_each(|chunk| {
                    let (words, deltas) = (&chunk.words, chunk.deltas);
                    let matrix = matrix.from(words.start - all.start, 0);
                    let held = Held {
                        inside: chunk.weight.as_ref().filter(|_| chunk.is_inside),
                        beside: chunk.beside,
                    };
                    let logits = |block: usize, tile: &mut [f32]| {
                        if !held.read(problem, block, words.len(), tile) {
                            problem.logits(matrix, &problem.blocks[block], words, tile);
                        }
                    };
                    source.write(problem, words, logits, deltas);
                    if let Some((weight, columns)) = chunk.weight.zip(columns) {
                        products.with(|products| {
                            problem.write_weight(words, deltas, columns, products, weight);
                        });
                    }
                    if let Some(bias) = chunk.bias {
                        problem.write_bias(words, deltas, bias);
                    }
                });
            },
        );
    }
}

impl Problem {
    /// Number of chunks whose deltas are computed before they are added to the hidden states'
    /// gradient.
    fn step(&self) -> usize {
        let of_chunk = size_of::<f32>() * self.logits_of(&(0..1));
        (self.workspace / of_chunk.max(1)).max(1)
    }

    /// Ranges of [`Self::step`] chunks.
    fn bands(&self, chunks: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (end, step) = (chunks.end, self.step());
        let band = move |first: usize| first..(first + step).min(end);
        chunks.step_by(step).map(band)
    }

    /// Copies the words of some chunks into `room`, if they are not read in place.
    fn fill(&self, chunks: &Range<usize>, room: &mut [f32]) {
        self.words.fill_in_parallel(&self.words_in(chunks), room);
    }

    fn band<'a>(&'a self, chunks: Range<usize>, deltas: &'a [f32], copy: &'a [f32]) -> Band<'a> {
        Band {
            weight: self.words.block(&self.words_in(&chunks), copy),
            chunks,
            deltas,
        }
    }

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

    /// Adds the deltas of a band, a part of the columns and a block of rows in each task.
    fn add_to_hidden(&self, band: &Band, hidden: &mut [f32]) {
        let first = self.words_in(&band.chunks).start;
        let tasks: Vec<(Range<usize>, &Range<usize>)> = self
            .column_parts()
            .flat_map(|columns| {
                self.blocks
                    .iter()
                    .map(move |block| (columns.clone(), block))
            })
            .collect();
        let lens = tasks
            .iter()
            .map(|(columns, block)| columns.len() * padded(block.len()));
        split(hidden, lens)
            .into_par_iter()
            .zip(&tasks)
            .for_each(|(out, (columns, block))| {
                let mut deltas = band.deltas;
                for words in band.chunks.clone().map(|chunk| self.words_of(chunk)) {
                    let (of_chunk, rest) = deltas.split_at(words.len() * self.lanes());
                    deltas = rest;
                    let tile = &of_chunk[words.len() * block.start..];
                    let tile = &tile[..words.len() * padded(block.len())];
                    let weight = band.weight.from(words.start - first, columns.start);
                    self.add_words(weight, columns.len(), tile, block, &words, out);
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
                b: Factors::Panels(tile),
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
