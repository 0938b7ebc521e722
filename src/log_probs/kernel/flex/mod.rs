//! The kernel of Flex for f32, f16 and bf16: tiles of rows × words that stay in cache.
//!
//! A task is one tile: a matrix product on the calling thread, and passes over its rows. Rayon
//! runs tasks side by side. What a task computes does not depend on how many threads there are,
//! and what several tasks found is combined in a fixed order, so neither do the results.
//!
//! f64 goes the way of the other backends.

mod matrix;
mod row;

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{Bytes, DType, FloatDType, Shape, bf16, f16};
use pulp::Arch;
use rayon::prelude::*;

use self::matrix::{Matrix, multiply};
use self::row::{Partial, bent_softmax, exponentiate, narrow, shape, softmax};
use super::{Forward, Head, HeadGradients, LogProbKernel, STATISTICS, Save, Shaping, generic};

/// Rows of a tile; fewer would pack the words more often, more would leave tasks too few.
const ROWS: usize = 512;
/// Rows of a tile where there is only one product.
const REFERENCE_ROWS: usize = 1024;
/// Words of a tile.
const WORDS: usize = 2048;
/// Words of a task that computes the gradient of the weight.
const SUB_WORDS: usize = 256;
/// Bytes of logits that a backward works on at a time.
const WORKSPACE: usize = 32 << 20;
/// Tasks of a frozen head's forward, at least: it has no other parallelism than rows.
const TASKS: usize = 16;

impl LogProbKernel for Flex {
    fn head_forward(head: Head<Self>, save: Save, statistics: bool) -> Forward<Self> {
        if head.hidden.dtype() == DType::F64 {
            return generic::head_forward(head, save, statistics);
        }
        match save {
            Save::Nothing => Problem::new(head, REFERENCE_ROWS).forward(0, statistics),
            Save::Tiles(bytes) => Problem::new(head, ROWS).forward(bytes, statistics),
            Save::Slope => Problem::new(head, ROWS).forward_with_slope(statistics),
        }
    }

    fn head_backward(
        head: Head<Self>,
        normalizer: FloatTensor<Self>,
        tiles: Vec<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
        wanted: [bool; 3],
    ) -> HeadGradients<Self> {
        if head.hidden.dtype() == DType::F64 {
            return generic::head_backward(head, normalizer, tiles, grad, wanted);
        }
        Problem::new(head, ROWS).backward(&normalizer, &tiles, &grad, wanted)
    }

    fn logits_forward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        statistics: bool,
    ) -> Forward<Self> {
        if logits.dtype() == DType::F64 {
            return generic::logits_forward::<Self>(logits, targets, counted, statistics);
        }
        let logits = single(logits).to_contiguous();
        logits_forward(&logits, targets, &counted, statistics)
    }

    fn logits_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        normalizer: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if logits.dtype() == DType::F64 {
            return generic::logits_backward::<Self>(logits, targets, counted, normalizer, grad);
        }
        let dtype = logits.dtype();
        let found = logits_backward(single(logits), targets, &counted, &normalizer, &grad);
        if dtype == DType::F32 {
            return found;
        }
        Flex::float_cast(found, dtype.into())
    }
}

/// f32 of half precision.
fn single(logits: FlexTensor) -> FlexTensor {
    if logits.dtype() == DType::F32 {
        return logits;
    }
    Flex::float_cast(logits, FloatDType::F32)
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    let layout = Layout::contiguous(Shape::new(shape));
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

fn f32s(tensor: &FlexTensor) -> Vec<f32> {
    let tensor = tensor.to_contiguous();
    match tensor.as_slice() {
        Some(values) => values.to_vec(),
        None => tensor.into_data().iter::<f32>().collect(), // half precision
    }
}

fn indices(targets: IntTensor<Flex>) -> Vec<usize> {
    let ids = targets.to_contiguous().into_data();
    let index = |id: i64| usize::try_from(id).expect("targets are inside the vocabulary");
    ids.iter::<i64>().map(index).collect()
}

/// The words of a head, `[vocab, hidden]`, in whatever type and layout they are stored.
struct Words {
    tensor: FlexTensor,
}

impl Words {
    fn len(&self) -> usize {
        self.tensor.layout().shape()[0]
    }

    /// Those in `words`; half precision becomes f32, in `scratch`.
    fn rows<'a>(&'a self, words: Range<usize>, scratch: &'a mut Vec<f32>) -> Matrix<'a> {
        match self.tensor.dtype() {
            DType::F32 => Matrix {
                data: self.tensor.storage(),
                offset: self.tensor.layout().start_offset(),
                shape: self.tensor.layout().shape().dims(),
                strides: self.strides(),
            }
            .rows(words),
            DType::F16 => {
                let stored: &[f16] = self.tensor.storage();
                self.converted(words, scratch, |index| stored[index].to_f32())
            }
            DType::BF16 => {
                let stored: &[bf16] = self.tensor.storage();
                self.converted(words, scratch, |index| stored[index].to_f32())
            }
            dtype => unreachable!("{dtype:?} goes another way"),
        }
    }

    fn strides(&self) -> [isize; 2] {
        let strides = self.tensor.layout().strides();
        [strides[0], strides[1]]
    }

    fn converted<'a>(
        &self,
        words: Range<usize>,
        scratch: &'a mut Vec<f32>,
        at: impl Fn(usize) -> f32,
    ) -> Matrix<'a> {
        let width = self.tensor.layout().shape()[1];
        let [down, right] = self.strides();
        let start = self.tensor.layout().start_offset().cast_signed();
        let rows = words.len();
        scratch.clear();
        scratch.extend(words.flat_map(|word| {
            let first = start + word.cast_signed() * down;
            let at = &at;
            let columns = 0..width.cast_signed();
            columns.map(move |column| at((first + column * right).cast_unsigned()))
        }));
        Matrix::rows_of(scratch, [rows, width], width)
    }
}

/// What a task needs room for.
#[derive(Default)]
struct Scratch {
    logits: Vec<f32>,
    words: Vec<f32>,
}

/// Log-probabilities of some rows under a head, cut into tiles.
struct Problem {
    arch: Arch,
    /// `[rows, width]`
    hidden: Vec<f32>,
    words: Words,
    bias: Option<Vec<f32>>,
    shaping: Shaping,
    targets: Vec<usize>,
    rows: usize,
    width: usize,
    /// What the gradients are returned in.
    dtype: FloatDType,
    words_first: bool,
    /// Rows and words of a tile.
    tile: [usize; 2],
    /// Tiles over the rows and over the words.
    grid: [usize; 2],
}

impl Problem {
    fn new(head: Head<Flex>, tile_rows: usize) -> Self {
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

    /// Numbers of a tile.
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

    /// The logits of a tile, rows `self.tile[1]` apart.
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

    /// Log-probabilities, and the powers of the first tiles that fit into so many bytes.
    fn forward(&self, retained_bytes: usize, statistics: bool) -> Forward<Flex> {
        let [blocks, tiles] = self.grid;
        let column = blocks * self.tile_len();
        // What is kept are powers, from which a softcap's gradient cannot be had.
        let retained_bytes = match self.shaping.softcap {
            Some(_) => 0,
            None => retained_bytes,
        };
        let retained = (retained_bytes / (size_of::<f32>() * column.max(1))).min(tiles);
        let mut powers = vec![0.0; retained * column];
        let mut found = vec![Found::NOTHING; tiles * blocks * self.tile[0]];
        let (kept, passing) = found.split_at_mut(retained * blocks * self.tile[0]);

        let task = |index: usize, found: &mut [Found], logits: &mut [f32], words: &mut Vec<f32>| {
            let (tile, block) = (index / blocks, index % blocks);
            self.walk(block, tile, logits, words, found, [false, statistics]);
        };
        kept.par_chunks_mut(self.tile[0])
            .zip(powers.par_chunks_mut(self.tile_len()))
            .enumerate()
            .for_each_init(Vec::new, |scratch, (index, (found, powers))| {
                task(index, found, powers, scratch);
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

        let maxima: Vec<f32> = found[..retained * blocks * self.tile[0]]
            .iter()
            .map(|found| found.partial.max)
            .collect();
        let tiles = if retained == 0 {
            Vec::new()
        } else {
            let (powers_len, maxima_len) = (powers.len(), maxima.len());
            vec![tensor(powers, [powers_len]), tensor(maxima, [maxima_len])]
        };
        Forward {
            tiles,
            ..self.finish(&self.combined(&found), statistics)
        }
    }

    /// Turns the logits of a tile into powers relative to the largest of each row of the tile,
    /// times what a softcap leaves of a gradient if that is asked for.
    fn walk(
        &self,
        block: usize,
        tile: usize,
        logits: &mut [f32],
        scratch: &mut Vec<f32>,
        found: &mut [Found],
        [for_gradient, statistics]: [bool; 2],
    ) {
        let (rows, words) = (self.rows_of(block), self.words_of(tile));
        self.logits(rows.clone(), words.clone(), logits, scratch);
        let bend = if for_gradient {
            narrow(self.shaping.bend())
        } else {
            0.0
        };
        let lines = logits.chunks_mut(self.tile[1]).zip(found);
        for (row, (line, found)) in rows.zip(lines) {
            let line = &mut line[..words.len()];
            if words.contains(&self.targets[row]) {
                found.target = line[self.targets[row] - words.start];
            }
            let partial = exponentiate(self.arch, line, found.partial.max, bend, statistics);
            found.partial = partial.starting_at(words.start);
        }
    }

    /// What all tiles found of each row; `found` holds columns of padded rows.
    fn combined(&self, found: &[Found]) -> Vec<Found> {
        let column = self.grid[0] * self.tile[0];
        let of = |row: usize| {
            let parts = found[row..].iter().step_by(column);
            parts.copied().fold(Found::NOTHING, Found::and)
        };
        (0..self.rows).into_par_iter().map(of).collect()
    }

    fn finish(&self, rows: &[Found], statistics: bool) -> Forward<Flex> {
        forward(rows, &self.targets, self.words.len(), statistics)
    }

    /// The same, and the gradient of each log-probability with respect to its hidden state:
    /// `W[y] − Σ_v softmax_v W[v]`.
    fn forward_with_slope(&self, statistics: bool) -> Forward<Flex> {
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
                let bent = bend * rows[row].target;
                let left = factor * (1.0 - bent * bent);
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

    /// Adds a tile to what a segment found, with powers relative to the largest logit so far.
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
        let before: Vec<Partial> = found.iter().map(|found| found.partial).collect();
        let Scratch {
            logits,
            words: converted,
        } = scratch;
        self.walk(block, tile, logits, converted, found, [true, statistics]);
        let lines = expected.chunks_mut(self.width).zip(found.iter_mut());
        for (before, (line, found)) in before.into_iter().zip(lines) {
            // Without anything before, the line is zeros.
            if before.max < found.partial.max && before.max > f32::NEG_INFINITY {
                let factor = (before.max - found.partial.max).exp();
                for x in line.iter_mut() {
                    *x *= factor;
                }
            }
            found.partial = before.and(found.partial);
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

    fn backward(
        &self,
        normalizer: &FlexTensor,
        retained: &[FlexTensor],
        grad: &FlexTensor,
        [wants_hidden, wants_weight, wants_bias]: [bool; 3],
    ) -> HeadGradients<Flex> {
        let (normalizer, grad) = (f32s(normalizer), f32s(grad));
        let delta = Delta {
            problem: self,
            normalizer: normalizer.as_chunks().0,
            grad: &grad,
            powers: retained.first().map_or(&[], FlexTensor::storage),
            maxima: retained.get(1).map_or(&[], FlexTensor::storage),
        };
        let [blocks, tiles] = self.grid;
        let vocab = self.words.len();
        let column = blocks * self.tile_len();
        let group = (WORKSPACE / (size_of::<f32>() * column.max(1))).clamp(1, tiles);
        let mut workspace = vec![0.0; group * column];
        let gradient = |wanted: bool, len: usize| vec![0.0; if wanted { len } else { 0 }];
        let mut hidden = gradient(wants_hidden, self.rows * self.width);
        let mut weight = gradient(wants_weight, vocab * self.width);
        let mut bias = gradient(wants_bias, vocab);

        for first in (0..tiles).step_by(group) {
            let group = first..(first + group).min(tiles);
            let deltas = &mut workspace[..group.len() * column];
            deltas
                .par_chunks_mut(self.tile_len())
                .enumerate()
                .for_each_init(Vec::new, |scratch, (index, out)| {
                    delta.tile(index % blocks, first + index / blocks, out, scratch);
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
    problem: &'a Problem,
    normalizer: &'a [[f32; 2]],
    grad: &'a [f32],
    /// The powers that the forward kept, and the largest logits that they are relative to.
    powers: &'a [f32],
    maxima: &'a [f32],
}

impl Delta<'_> {
    fn tile(&self, block: usize, tile: usize, out: &mut [f32], scratch: &mut Vec<f32>) {
        let problem = self.problem;
        let [tile_rows, tile_words] = problem.tile;
        let (rows, words) = (problem.rows_of(block), problem.words_of(tile));
        let index = tile * problem.grid[0] + block;
        let kept = self.powers.chunks(problem.tile_len()).nth(index);
        if kept.is_none() {
            problem.logits(rows.clone(), words.clone(), out, scratch);
        }
        let factor = narrow(problem.shaping.factor());
        let bend = narrow(problem.shaping.bend());
        for (line, row) in rows.enumerate() {
            let out = &mut out[line * tile_words..][..words.len()];
            let (normalizer, grad) = (self.normalizer[row], factor * self.grad[row]);
            let target = problem.targets[row];
            // What the target gains, a softcap considered.
            let mut gain = grad;
            if bend != 0.0 && words.contains(&target) {
                let bent = bend * out[target - words.start];
                gain -= gain * (bent * bent);
            }
            if let Some(powers) = kept {
                let shift = self.maxima[index * tile_rows + line] - normalizer[0];
                let factor = -grad * (shift - normalizer[1]).exp();
                let powers = &powers[line * tile_words..][..words.len()];
                for (out, power) in out.iter_mut().zip(powers) {
                    *out = factor * power;
                }
            } else if bend == 0.0 {
                softmax(problem.arch, out, normalizer, -grad);
            } else {
                bent_softmax(problem.arch, out, normalizer, -grad, bend);
            }
            if words.contains(&target) {
                out[target - words.start] += gain;
            }
        }
    }
}

/// The deltas of a group of tiles, `[tile, padded row, word]`.
struct Deltas<'a> {
    problem: &'a Problem,
    /// The first tile of the group.
    first: usize,
    values: &'a [f32],
}

impl Deltas<'_> {
    /// All rows of a tile, `[rows, words]`.
    fn of(&self, tile: usize) -> Matrix<'_> {
        let problem = self.problem;
        let column = problem.grid[0] * problem.tile_len();
        let values = &self.values[(tile - self.first) * column..][..column];
        let shape = [problem.rows, problem.words_of(tile).len()];
        Matrix::rows_of(values, shape, problem.tile[1])
    }

    fn add_to_hidden(&self, group: Range<usize>, hidden: &mut [f32]) {
        /// Rows that a task adds to.
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

    /// Whole rows of the gradient of a weight `[vocab, hidden]`.
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

    /// Some columns of the gradient of a weight `[hidden, vocab]`.
    fn write_columns(&self, group: Range<usize>, weight: &mut [f32]) {
        /// Rows of the weight, numbers of a hidden state, that a task writes.
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

    /// `len` words, the `index`th such part of the group's; tiles are a multiple of it wide.
    fn sub(&self, words: &Range<usize>, index: usize, len: usize) -> Matrix<'_> {
        let start = words.start + index * SUB_WORDS;
        let tile = start / self.problem.tile[1];
        let start = start - self.problem.words_of(tile).start;
        self.of(tile).columns(start..start + len)
    }
}

/// What some logits of a row say, its target's logit included if it was among them.
#[derive(Clone, Copy)]
struct Found {
    partial: Partial,
    target: f32,
}

impl Found {
    /// A row that does not count: finite numbers, which the mask then drops.
    const NOT_COUNTED: Self = Self {
        partial: Partial::ONE,
        target: 0.0,
    };
    const NOTHING: Self = Self {
        partial: Partial::EMPTY,
        target: f32::NEG_INFINITY,
    };

    fn and(self, other: Self) -> Self {
        Self {
            partial: self.partial.and(other.partial),
            // Only one of them met the target. NaN is no smaller than −∞, but stays.
            target: if self.target == f32::NEG_INFINITY {
                other.target
            } else {
                self.target
            },
        }
    }
}

fn forward(rows: &[Found], targets: &[usize], words: usize, statistics: bool) -> Forward<Flex> {
    let log_prob = |found: &Found| {
        let below = f64::from(found.target) - f64::from(found.partial.max);
        narrow(below - found.partial.log_sum())
    };
    let normalizer = |found: &Found| [found.partial.max, narrow(found.partial.log_sum())];
    let by_products = |(found, &target): (&Found, &usize)| found.partial.statistics(target, words);
    Forward {
        log_probs: tensor(rows.iter().map(log_prob).collect(), [rows.len()]),
        normalizer: tensor(rows.iter().flat_map(normalizer).collect(), [rows.len(), 2]),
        statistics: statistics.then(|| {
            let values = rows.iter().zip(targets).flat_map(by_products).collect();
            tensor(values, [rows.len(), STATISTICS])
        }),
        slope: None,
        tiles: Vec::new(),
    }
}

fn is_counted(counted: &FlexTensor) -> Vec<bool> {
    counted.to_contiguous().into_data().iter::<bool>().collect()
}

/// Walks rows of logits in pieces that stay in the first cache.
fn logits_forward(
    logits: &FlexTensor,
    targets: IntTensor<Flex>,
    counted: &FlexTensor,
    statistics: bool,
) -> Forward<Flex> {
    const PIECE: usize = 4096;
    let [_, vocab] = logits.layout().shape().dims();
    let logits: &[f32] = logits.as_slice().expect("contiguous f32");
    let (targets, counted) = (indices(targets), is_counted(counted));
    let arch = Arch::new();
    let found: Vec<Found> = logits
        .par_chunks(vocab)
        .enumerate()
        .map_init(
            || vec![0.0; PIECE.min(vocab)],
            |scratch, (row, logits)| {
                if !counted[row] {
                    return Found::NOT_COUNTED;
                }
                let mut partial = Partial::EMPTY;
                for (index, piece) in logits.chunks(PIECE).enumerate() {
                    let scratch = &mut scratch[..piece.len()];
                    scratch.copy_from_slice(piece);
                    let found = exponentiate(arch, scratch, f32::NEG_INFINITY, 0.0, statistics);
                    partial = partial.and(found.starting_at(index * PIECE));
                }
                let target = logits[targets[row]];
                Found { partial, target }
            },
        )
        .collect();
    forward(&found, &targets, vocab, statistics)
}

fn logits_backward(
    mut logits: FlexTensor,
    targets: IntTensor<Flex>,
    counted: &FlexTensor,
    normalizer: &FlexTensor,
    grad: &FlexTensor,
) -> FlexTensor {
    let [_, vocab] = logits.layout().shape().dims();
    let (targets, counted) = (indices(targets), is_counted(counted));
    let (normalizer, grad) = (f32s(normalizer), f32s(grad));
    let arch = Arch::new();
    let whole =
        logits.is_contiguous() && logits.layout().num_elements() * 4 == logits.bytes().len();
    if !whole {
        logits = logits.to_contiguous();
    }
    // In place, unless somebody else still holds the logits.
    let values: &mut [f32] = logits.storage_mut();
    values
        .par_chunks_mut(vocab)
        .enumerate()
        .for_each(|(row, line)| {
            if !counted[row] {
                line.fill(0.0);
                return;
            }
            let normalizer = [normalizer[2 * row], normalizer[2 * row + 1]];
            softmax(arch, line, normalizer, -grad[row]);
            line[targets[row]] += grad[row];
        });
    logits
}
