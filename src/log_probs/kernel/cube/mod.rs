//! The kernel of GPUs: products by Burn's own matmul, with f32 logits whatever the operands are,
//! and everything else by the two kernels of `rows.rs`.
//!
//! A forward walks blocks of rows. The backward of a trained head walks blocks of *words* over all
//! rows, so that each row of the weight's gradient is one product, written once.
//!
//! f64 goes the way of the other backends.

mod fusion;
#[allow(
    clippy::all,
    clippy::pedantic,
    reason = "kernels are written in CubeCL's part of Rust"
)]
mod rows;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::{BoolTensorOps, FloatTensorOps, IntTensorOps};
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{DType, Shape, Slice};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;

use self::rows::{TURNS, reduce_rows, turn_rows};
use super::generic::{add, cast, words};
use super::{Forward, Head, HeadGradients, LogProbKernel, STATISTICS, Save, Shaping, generic};

/// Logits of a block, in bytes: enough to fill a GPU, little beside the weights of a model.
const BLOCK_BYTES: usize = 256 << 20;
/// Rows of a block of a trained backward at most: more would leave too few words.
const BACKWARD_ROWS: usize = 8192;
/// Blocks of words begin at multiples of it: views have to start at 512 bytes on CUDA.
const WORDS: usize = 512;
/// Units of a cube of the gradient kernel.
const UNITS: u32 = 256;

impl LogProbKernel for CubeBackend {
    fn head_forward(head: Head<Self>, save: Save, statistics: bool) -> Forward<Self> {
        if head.hidden.dtype() == DType::F64 {
            return generic::head_forward(head, save, statistics);
        }
        head_forward(&head, save == Save::Slope, statistics)
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
        let (normalizer, grad) = (into_contiguous(normalizer), into_contiguous(grad));
        head_backward(&head, &normalizer, &grad, wanted, BACKWARD_ROWS)
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
        let logits = Block::new(rows_in_line(logits), None, Shaping::NONE);
        let targets = counted_targets(targets, counted);
        let [rows, _] = logits.x.meta.shape().dims();
        let reduced = empty(&logits.x, [rows, columns(statistics)], DType::F32);
        logits.reduce(&targets, &reduced, 0, statistics);
        outputs(&reduced, statistics, None)
    }

    fn logits_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        normalizer: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let dtype = logits.dtype();
        if dtype == DType::F64 {
            return generic::logits_backward::<Self>(logits, targets, counted, normalizer, grad);
        }
        let targets = counted_targets(targets, counted);
        let (normalizer, grad) = (into_contiguous(normalizer), into_contiguous(grad));
        let logits = Block::new(rows_in_line(logits), None, Shaping::NONE);
        logits.turn(&targets, &normalizer, &grad, [0, 0], dtype)
    }
}

/// Log-prob, maximum and log-sum, and the by-products.
fn columns(statistics: bool) -> usize {
    if statistics { 3 + STATISTICS } else { 3 }
}

/// −1 for rows that do not count.
fn counted_targets(targets: CubeTensor, counted: CubeTensor) -> CubeTensor {
    let not_counted = CubeBackend::bool_not(counted);
    into_contiguous(CubeBackend::int_mask_fill(
        targets,
        not_counted,
        (-1_i32).into(),
    ))
}

/// The same logits with the words of a row side by side.
fn rows_in_line(logits: CubeTensor) -> CubeTensor {
    if logits.meta.strides()[1] == 1 {
        return logits;
    }
    into_contiguous(logits)
}

fn product(lhs: CubeTensor, rhs: CubeTensor, out: Option<CubeTensor>, dtype: DType) -> CubeTensor {
    matmul(lhs, rhs, out, MatmulStrategy::default(), dtype).expect("shapes that fit")
}

fn transposed(tensor: &CubeTensor) -> CubeTensor {
    CubeBackend::float_transpose(tensor.clone())
}

/// `start..start + length` of a dimension; a view where the device can.
fn part(tensor: &CubeTensor, dim: usize, start: usize, length: usize) -> CubeTensor {
    let mut slices = vec![Slice::full(); dim];
    slices.push(Slice::from(start..start + length));
    CubeBackend::float_slice(tensor.clone(), &slices)
}

fn empty(like: &CubeTensor, shape: [usize; 2], dtype: DType) -> CubeTensor {
    empty_device_dtype(
        like.client.clone(),
        like.device.clone(),
        Shape::new(shape),
        dtype,
    )
}

/// A part to write into. It has to start where the device can: rows of a pitched tensor do, and
/// so do multiples of [`WORDS`].
fn place(tensor: &CubeTensor, dim: usize, start: usize, length: usize) -> CubeTensor {
    let mut view = tensor.clone();
    let size = tensor.dtype.size() as u64;
    let stride = tensor.meta.strides()[dim];
    let whole = tensor.meta.shape()[dim];
    let before = (stride * start) as u64 * size;
    let after = (stride * (whole - start - length)) as u64 * size;
    view.handle = view.handle.offset_start(before).offset_end(after);
    view.meta.shape[dim] = length;
    view
}

/// The widest vector that rows of `tensors` can be read in.
fn vector_size(tensors: &[&CubeTensor]) -> usize {
    let widest = |tensor: &&CubeTensor| {
        let stride = tensor.meta.strides()[0];
        let sizes = tensor.client.io_optimized_vector_sizes(tensor.dtype.size());
        sizes
            .filter(|size| stride.is_multiple_of(*size))
            .max()
            .unwrap_or(1)
    };
    tensors.iter().map(widest).min().unwrap_or(1)
}

fn address_type(tensors: &[&CubeTensor]) -> AddressType {
    let types = tensors.iter().map(|tensor| tensor.required_address_type());
    types.max().unwrap_or_default()
}

/// x = W h + b of some rows and words, not yet shaped.
struct Block {
    x: CubeTensor,
    bias: Option<CubeTensor>,
    shaping: Shaping,
}

impl Block {
    fn new(x: CubeTensor, bias: Option<CubeTensor>, shaping: Shaping) -> Self {
        Self { x, bias, shaping }
    }

    /// Whether x is scaled, and whether it is capped.
    fn kind(&self) -> [bool; 2] {
        let capped = self.shaping.softcap.is_some();
        [!capped && !self.shaping.is_none(), capped]
    }

    /// `outside·tanh(inside·x)` or `inside·x`; factor and bend of the gradient.
    fn factors(&self) -> [f32; 4] {
        let Shaping {
            scale,
            softcap,
            temperature,
        } = self.shaping;
        let (inside, outside) = match softcap {
            Some(cap) => (scale / cap, cap / temperature),
            None => (self.shaping.factor(), 1.0),
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "f32 is what a kernel takes"
        )]
        let narrow = |x: f64| x as f32;
        [inside, outside, self.shaping.factor(), self.shaping.bend()].map(narrow)
    }

    /// What vectors of logits may be read in: a bias has no row to pad, so that its vectors have
    /// to end where it does.
    fn width(&self, others: &[&CubeTensor]) -> usize {
        let width = vector_size(&[&[&self.x], others].concat());
        match &self.bias {
            Some(bias) if bias.meta.shape()[0] % width != 0 => 1,
            _ => width,
        }
    }

    /// Reads the logits once; writes a row of `out` for each, from `first_row` on.
    fn reduce(&self, targets: &CubeTensor, out: &CubeTensor, first_row: usize, statistics: bool) {
        let [rows, vocab] = self.x.meta.shape().dims();
        let of_bias = self.bias.as_ref().map_or(out.dtype, |bias| bias.dtype);
        let dtypes = [self.x.dtype, of_bias, targets.dtype];
        let ([inside, outside, ..], [scaled, capped]) = (self.factors(), self.kind());
        let across = rows.min(32_768);
        let width = self.width(&[]);
        let units = units(&self.x, vocab.div_ceil(width));
        reduce_rows::launch(
            &self.x.client,
            CubeCount::new_2d(count(across), count(rows.div_ceil(across))),
            CubeDim::new_1d(units),
            address_type(&[&self.x]),
            width,
            self.x.clone().into_tensor_arg(),
            ComptimeOptionArgs::from(self.bias.clone().map(CubeTensor::into_tensor_arg)),
            targets.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            inside,
            outside,
            count(first_row),
            scaled,
            capped,
            units,
            vocab % width == 0,
            statistics,
            dtypes.map(dtype_to_storage_type),
        );
    }

    /// The gradient of x in `dtype`, in the buffer of x where that is its own and nobody else's.
    /// `normalizer` is `[rows, 2 or more]`, of which the first two columns are read.
    fn turn(
        self,
        targets: &CubeTensor,
        normalizer: &CubeTensor,
        grad: &CubeTensor,
        [first_row, first_word]: [usize; 2],
        dtype: DType,
    ) -> CubeTensor {
        let [rows, vocab] = self.x.meta.shape().dims();
        let x = &self.x;
        let in_place = x.dtype == dtype && x.can_mut() && x.is_nonoverlapping();
        let output = if in_place {
            x.clone()
        } else {
            empty(x, [rows, vocab], dtype)
        };
        let width = self.width(&[&output]);
        let of_bias = self.bias.as_ref().map_or(grad.dtype, |bias| bias.dtype);
        let dtypes = [x.dtype, of_bias, dtype, targets.dtype];
        let ([inside, outside, factor, bend], [scaled, capped]) = (self.factors(), self.kind());
        let argument = if in_place {
            output.as_tensor_alias(0)
        } else {
            output.clone().into_tensor_arg()
        };
        let stretches = vocab.div_ceil(width).div_ceil(UNITS as usize * TURNS);
        let down = rows.min(32_768);
        turn_rows::launch(
            &x.client,
            CubeCount::new_3d(count(stretches), count(down), count(rows.div_ceil(down))),
            CubeDim::new_1d(UNITS),
            address_type(&[x, &output]),
            width,
            x.clone().into_tensor_arg(),
            ComptimeOptionArgs::from(self.bias.clone().map(CubeTensor::into_tensor_arg)),
            targets.clone().into_tensor_arg(),
            normalizer.clone().into_tensor_arg(),
            grad.clone().into_tensor_arg(),
            argument,
            inside,
            outside,
            factor,
            bend,
            count(first_row),
            count(first_word),
            scaled,
            capped,
            UNITS,
            TURNS,
            dtypes.map(dtype_to_storage_type),
        );
        output
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).expect("rows and words are fewer than 2³²")
}

/// Units that share a row: many where the row is long, since there are few rows at a time.
fn units(x: &CubeTensor, vectors: usize) -> u32 {
    let hardware = &x.client.properties().hardware;
    if hardware.num_cpu_cores.is_some() {
        return 1;
    }
    // Six numbers a unit.
    let memory = hardware.max_shared_memory_size / (6 * size_of::<f32>());
    let most = (hardware.max_units_per_cube as usize).min(memory).min(1024);
    let most = 1 << most.ilog2();
    count(
        vectors
            .div_ceil(4)
            .next_power_of_two()
            .clamp(32.min(most), most),
    )
}

fn blocks(all: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..all)
        .step_by(step)
        .map(move |start| (start, step.min(all - start)))
}

/// A multiple of `to`, one at least.
fn align(size: usize, to: usize) -> usize {
    (size / to).max(1) * to
}

/// `[vocab]`, if there is one.
fn bias(head: &Head<CubeBackend>) -> Option<CubeTensor> {
    head.form.biased.then(|| into_contiguous(head.bias.clone()))
}

/// The columns of what the rows gave.
fn outputs(
    reduced: &CubeTensor,
    statistics: bool,
    slope: Option<CubeTensor>,
) -> Forward<CubeBackend> {
    let [rows, _] = reduced.meta.shape().dims();
    let log_probs = part(reduced, 1, 0, 1);
    Forward {
        log_probs: CubeBackend::float_reshape(log_probs, Shape::new([rows])),
        normalizer: part(reduced, 1, 1, 2),
        statistics: statistics.then(|| part(reduced, 1, 3, STATISTICS)),
        slope,
        tiles: Vec::new(),
    }
}

fn head_forward(head: &Head<CubeBackend>, slope: bool, statistics: bool) -> Forward<CubeBackend> {
    let [rows, width] = head.hidden.meta.shape().dims();
    let (words, bias) = (words(head), bias(head));
    let [vocab, _] = words.meta.shape().dims();
    let targets = into_contiguous(head.targets.clone());
    let reduced = empty(&head.hidden, [rows, columns(statistics)], DType::F32);
    let mut slopes = Vec::new();
    let ones = slope.then(|| {
        let shape = Shape::new([rows]);
        CubeBackend::float_ones(shape, &head.hidden.device, DType::F32.into())
    });
    let step = align(BLOCK_BYTES / (4 * vocab), 16).clamp(1, rows);
    for (start, length) in blocks(rows, step) {
        let states = part(&head.hidden, 0, start, length);
        let x = product(states, transposed(&words), None, DType::F32);
        let block = Block::new(x, bias.clone(), head.form.shaping);
        block.reduce(&targets, &reduced, start, statistics);
        if let Some(ones) = &ones {
            // The gradient of each log-probability itself.
            let normalizer = into_contiguous(part(&reduced, 1, 1, 2));
            let dtype = head.hidden.dtype;
            let delta = block.turn(&targets, &normalizer, ones, [start, 0], dtype);
            slopes.push(product(delta, words.clone(), None, DType::F32));
        }
    }
    let slope = slope.then(|| cat(slopes));
    debug_assert!(slope.as_ref().is_none_or(|s| s.meta.shape()[1] == width));
    outputs(&reduced, statistics, slope)
}

/// Blocks of words outside, blocks of `most_rows` inside: what the rows add to a block of words is
/// summed in f32 and written once.
fn head_backward(
    head: &Head<CubeBackend>,
    normalizer: &CubeTensor,
    grad: &CubeTensor,
    [wants_hidden, wants_weight, wants_bias]: [bool; 3],
    most_rows: usize,
) -> HeadGradients<CubeBackend> {
    let dtype = head.hidden.dtype;
    let [rows, _] = head.hidden.meta.shape().dims();
    let (words, bias) = (words(head), bias(head));
    let [vocab, _] = words.meta.shape().dims();
    let targets = into_contiguous(head.targets.clone());
    let axis = usize::from(!head.form.words_first);
    let shape: [usize; 2] = head.weight.meta.shape().dims();
    let mut weight = wants_weight.then(|| empty(&head.weight, shape, dtype));
    let mut hidden = vec![None; rows.div_ceil(most_rows)];
    let mut biases = Vec::new();
    let step = align(BLOCK_BYTES / (4 * rows.min(most_rows)), WORDS).min(vocab);
    for (start, length) in blocks(vocab, step) {
        let some = part(&words, 0, start, length);
        let some_bias = bias
            .as_ref()
            .map(|bias| into_contiguous(part(bias, 0, start, length)));
        let (mut of_weight, mut of_bias) = (None, None);
        for ((first_row, rows_here), hidden) in blocks(rows, most_rows).zip(&mut hidden) {
            let states = part(&head.hidden, 0, first_row, rows_here);
            let x = product(states.clone(), transposed(&some), None, DType::F32);
            let block = Block::new(x, some_bias.clone(), head.form.shaping);
            let delta = block.turn(&targets, normalizer, grad, [first_row, start], dtype);
            if wants_bias {
                let wide = CubeBackend::float_cast(delta.clone(), DType::F32.into());
                add::<CubeBackend>(&mut of_bias, CubeBackend::float_sum_dim(wide, 0));
            }
            if let Some(weight) = &weight {
                let (lhs, rhs) = if head.form.words_first {
                    (transposed(&delta), states)
                } else {
                    (transposed(&states), delta.clone())
                };
                if rows_here == rows {
                    product(lhs, rhs, Some(place(weight, axis, start, length)), dtype);
                } else {
                    add::<CubeBackend>(&mut of_weight, product(lhs, rhs, None, DType::F32));
                }
            }
            if wants_hidden {
                add::<CubeBackend>(hidden, product(delta, some.clone(), None, DType::F32));
            }
        }
        weight = weight.map(|weight| match of_weight {
            Some(sum) => {
                let mut slices = vec![Slice::full(); axis];
                slices.push(Slice::from(start..start + length));
                CubeBackend::float_slice_assign(weight, &slices, cast::<CubeBackend>(sum, dtype))
            }
            None => weight,
        });
        biases.extend(of_bias.map(|sum| CubeBackend::float_reshape(sum, Shape::new([length]))));
    }
    let joined = |parts: Vec<CubeTensor>| {
        (!parts.is_empty()).then(|| cast::<CubeBackend>(cat(parts), dtype))
    };
    let hidden = hidden.into_iter().flatten().collect();
    [joined(hidden), weight, joined(biases)]
}

/// One after another.
fn cat(mut parts: Vec<CubeTensor>) -> CubeTensor {
    match parts.len() {
        1 => parts.remove(0),
        _ => CubeBackend::float_cat(parts, 0),
    }
}
