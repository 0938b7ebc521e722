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
    /// The gradients from the deltas of all logits. `kept` holds the logits that the forward kept;
    /// their deltas overwrite them.
    pub(super) fn gradients(
        &self,
        deltas: impl Deltas,
        kept: Vec<FlexTensor>,
        wanted: [bool; 3],
    ) -> HeadGradients<Flex> {
        match self.dtype {
            DType::F16 => self.gradients_as::<f16, _>(deltas, kept, wanted),
            DType::BF16 => self.gradients_as::<bf16, _>(deltas, kept, wanted),
            _ if self.shares_buffer() => self.gradients_in_place(deltas, kept, wanted),
            _ => self.gradients_as::<f32, _>(deltas, kept, wanted),
        }
    }

    /// Whether the gradient of the weight overwrites the kept logits. It does so where it is
    /// written word by word, in the number type of the logits.
    pub(super) fn shares_buffer(&self) -> bool {
        self.dtype == DType::F32 && self.words_first
    }

    /// Count of the numbers before the kept logits of `chunks`, in the buffer that the gradient of
    /// the weight takes from its start. A band of the gradient must end before the logits of the
    /// band before it, whose deltas are still in use.
    pub(super) fn room_before(&self, chunks: &Range<usize>) -> usize {
        let gradient = |chunks: &Range<usize>| self.words_in(chunks).end * self.width;
        let mut room = (self.vocab * self.width).saturating_sub(self.logits_of(chunks));
        let mut used = 0;
        for band in self.bands(chunks.clone()) {
            room = room.max(gradient(&band).saturating_sub(used));
            used = self.logits_of(&(chunks.start..band.start));
        }
        room
    }

    fn gradients_in_place(
        &self,
        deltas: impl Deltas,
        kept: Vec<FlexTensor>,
        wanted: [bool; 3],
    ) -> HeadGradients<Flex> {
        let mut state = Backward::<f32, _>::new(self, deltas, wanted);
        let next = self.each_kept(kept, |chunks, logits| state.add_in_place(chunks, logits));
        state.finish(next)
    }

    fn gradients_as<N: Number, D: Deltas>(
        &self,
        deltas: D,
        kept: Vec<FlexTensor>,
        wanted: [bool; 3],
    ) -> HeadGradients<Flex> {
        let mut state = Backward::<N, D>::new(self, deltas, wanted);
        let next = self.each_kept(kept, |chunks, mut logits| {
            state.add_kept(chunks, logits.get_mut());
        });
        state.finish(next)
    }

    /// Calls `work` with each buffer of kept logits and its chunks. Returns the chunk after them.
    fn each_kept(
        &self,
        kept: Vec<FlexTensor>,
        mut work: impl FnMut(Range<usize>, Aligned),
    ) -> usize {
        let mut next = 0;
        for logits in kept {
            let count = logits.layout().num_elements();
            let chunks = next..next + count.div_ceil(self.logits_of(&(0..1)).max(1));
            next = chunks.end;
            work(chunks, Aligned::from_tensor(logits));
        }
        next
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
    columns: Option<Aligned>,
    /// Products of the deltas of a chunk with the hidden states.
    products: Pool,
    /// For each part of the columns and each block a matrix in panels, whose columns are rows.
    hidden: Option<Aligned>,
    weight: Option<WeightGradient<N>>,
    bias: Option<Vec<f32>>,
}

/// The deltas of some chunks, and their part of the weight.
struct Band<'a> {
    chunks: Range<usize>,
    deltas: &'a [f32],
    weight: Block<'a>,
}

impl<'a, N: Number, D: Deltas> Backward<'a, N, D> {
    fn new(
        problem: &'a Problem,
        deltas: D,
        [wants_hidden, wants_weight, wants_bias]: [bool; 3],
    ) -> Self {
        let (vocab, width) = (problem.vocab, problem.width);
        Self {
            problem,
            deltas,
            columns: wants_weight.then(|| problem.columns()),
            products: Pool::new(problem.largest_chunk() * padded(width)),
            hidden: wants_hidden.then(|| Aligned::zeros(problem.lanes() * width)),
            weight: None,
            bias: wants_bias.then(|| vec![0.0; vocab]),
        }
    }

    /// Takes the gradient of the weight, if it is wanted, to write some of its words.
    fn take_weight(&mut self) -> Option<WeightGradient<N>> {
        let of = self.problem;
        let zeros = || WeightGradient::zeros(of.words_first, of.vocab, of.width);
        let weight = self.weight.take();
        weight.or_else(|| self.columns.is_some().then(zeros))
    }

    /// Adds the chunks from `next` on, and returns the gradients.
    fn finish(mut self, next: usize) -> HeadGradients<Flex> {
        let problem = self.problem;
        self.add_others(next..problem.chunks());
        let dtype: FloatDType = problem.dtype.into();
        let bias = self.bias.map(|bias| tensor(bias, [problem.vocab]));
        [
            self.hidden
                .map(|sums| Flex::float_cast(problem.in_rows(&sums), dtype)),
            self.weight.map(WeightGradient::into_tensor),
            bias.map(|bias| Flex::float_cast(bias, dtype)),
        ]
    }

    /// Two rooms for copies of the weight: of the chunks at hand, and of those before.
    fn rooms(&self, chunks: usize) -> [Aligned; 2] {
        let words = self.problem.largest_chunk() * self.problem.step().min(chunks);
        [(); 2].map(|()| Aligned::zeros(self.problem.words.room(words)))
    }

    /// Adds chunks whose logits are in `tiles`.
    fn add_kept(&mut self, chunks: Range<usize>, tiles: &mut [f32]) {
        let problem = self.problem;
        let mut weight = self.take_weight();
        let [mut last, mut this] = self.rooms(chunks.len());
        let (mut before, mut rest) = (None, tiles);
        for chunks in problem.bands(chunks) {
            let (deltas, after) = rest.split_at_mut(problem.logits_of(&chunks));
            rest = after;
            problem.fill(&chunks, this.get_mut());
            let earlier = before.map(|(chunks, deltas)| problem.band(chunks, deltas, last.get()));
            let words = problem.words_of_each(&chunks);
            let weights = weight.as_mut().map(|weight| weight.parts(&words));
            self.add(earlier, words, this.get(), deltas, weights, true);
            before = Some((chunks, &*deltas));
            std::mem::swap(&mut last, &mut this);
        }
        self.weight = weight;
        if let Some((chunks, deltas)) = before {
            self.add_to_hidden(Some(problem.band(chunks, deltas, last.get())));
        }
    }

    /// Adds chunks whose logits are computed again.
    fn add_others(&mut self, chunks: Range<usize>) {
        let problem = self.problem;
        let [mut last, mut this] = self.rooms(chunks.len());
        let len = problem.logits_of(&(0..1)) * problem.step().min(chunks.len());
        let [mut last_deltas, mut this_deltas] = [(); 2].map(|()| Aligned::zeros(len));
        let mut weight = self.take_weight();
        let mut before: Option<Range<usize>> = None;
        for chunks in problem.bands(chunks) {
            problem.fill(&chunks, this.get_mut());
            let deltas = &mut this_deltas.get_mut()[..problem.logits_of(&chunks)];
            let earlier = before.replace(chunks.clone());
            let earlier = earlier.map(|chunks| problem.band(chunks, last_deltas.get(), last.get()));
            let words = problem.words_of_each(&chunks);
            let weights = weight.as_mut().map(|weight| weight.parts(&words));
            self.add(earlier, words, this.get(), deltas, weights, false);
            std::mem::swap(&mut last, &mut this);
            std::mem::swap(&mut last_deltas, &mut this_deltas);
        }
        self.weight = weight;
        if let Some(chunks) = before {
            self.add_to_hidden(Some(problem.band(chunks, last_deltas.get(), last.get())));
        }
    }

    /// Computes the deltas of some chunks, and their gradients of weight and bias. `copy` holds the
    /// part of the weight if it is not read in place. At the same time, adds the deltas of the
    /// chunks before to the gradient of the hidden states.
    fn add(
        &mut self,
        before: Option<Band>,
        words: Vec<Range<usize>>,
        copy: &[f32],
        deltas: &mut [f32],
        weights: Option<Vec<Part<N>>>,
        are_kept: bool,
    ) {
        let problem = self.problem;
        let all = words[0].start..words[words.len() - 1].end;
        let lens = words.iter().map(|words| words.len() * problem.lanes());
        let deltas = split(deltas, lens);
        let weights = match weights {
            Some(weights) => weights.into_iter().map(Some).collect(),
            None => words.iter().map(|_| None).collect::<Vec<_>>(),
        };
        let biases = match &mut self.bias {
            Some(bias) => {
                let parts = split(&mut bias[all.clone()], words.iter().map(Range::len));
                parts.into_iter().map(Some).collect()
            }
            None => words.iter().map(|_| None).collect::<Vec<_>>(),
        };
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
                let tasks = words.into_par_iter().zip(deltas).zip(weights).zip(biases);
                tasks.for_each(|(((words, deltas), weight), bias)| {
                    let matrix = matrix.from(words.start - all.start, 0);
                    source.write(problem, &words, (!are_kept).then_some(matrix), deltas);
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

impl<D: Deltas> Backward<'_, f32, D> {
    /// Adds chunks whose logits are in a buffer, and writes their gradient of the weight from the
    /// start of this buffer on: see [`Problem::room_before`].
    fn add_in_place(&mut self, chunks: Range<usize>, mut logits: Aligned) {
        if self.columns.is_none() {
            return self.add_kept(chunks, logits.get_mut());
        }
        let problem = self.problem;
        let [mut last, mut this] = self.rooms(chunks.len());
        let (mut buffer, start) = logits.into_parts();
        let of_first = chunks.start;
        let place = |chunk: usize| start + problem.logits_of(&(of_first..chunk));
        let mut before: Option<Range<usize>> = None;
        for chunks in problem.bands(chunks) {
            let used = place(before.as_ref().unwrap_or(&chunks).start);
            let (gradient, rest) = buffer.split_at_mut(used);
            let (deltas_before, rest) = rest.split_at_mut(place(chunks.start) - used);
            let deltas = &mut rest[..problem.logits_of(&chunks)];
            problem.fill(&chunks, this.get_mut());
            let earlier = before.replace(chunks.clone());
            let earlier = earlier.map(|chunks| problem.band(chunks, deltas_before, last.get()));
            let words = problem.words_of_each(&chunks);
            let weights = Part::of_words(gradient, &words, problem.width);
            self.add(earlier, words, this.get(), deltas, Some(weights), true);
            std::mem::swap(&mut last, &mut this);
        }
        if let Some(chunks) = before {
            let deltas = &buffer[place(chunks.start)..];
            self.add_to_hidden(Some(problem.band(chunks, deltas, last.get())));
        }
        let weight = WeightGradient::at_the_start_of(buffer, problem.vocab, problem.width);
        self.weight = Some(weight);
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

    fn words_of_each(&self, chunks: &Range<usize>) -> Vec<Range<usize>> {
        chunks.clone().map(|chunk| self.words_of(chunk)).collect()
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
