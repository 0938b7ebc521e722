//! The kernel for GPUs. Burn's own matmul computes the products. The logits are always f32,
//! whatever the type of the operands. The two kernels of `rows.rs` compute the rest.
//!
//! A forward walks over blocks of rows. The backward of a trained head walks over blocks of
//! *words*, each with all rows. So each row of the weight's gradient is one product and is written
//! once.
//!
//! f64 uses the generic kernel, as on other backends.

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

/// Bytes of the logits of a block. They are enough to fill a GPU, and few compared with the weights
/// of a model.
const BLOCK_BYTES: usize = 256 << 20;
/// Maximum number of rows of a block in the backward of a trained head. With more rows, a block of
/// [`BLOCK_BYTES`] would have too few words.
const BACKWARD_ROWS: usize = 8192;
/// Blocks of words begin at multiples of this number, because a view on CUDA must start at a
/// multiple of 512 bytes.
const WORDS: usize = 512;
/// Units in one cube of the gradient kernel.
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

/// Columns of the reduced output: log-prob, maximum and log-sum, then the by-products.
fn columns(statistics: bool) -> usize {
    if statistics { 3 + STATISTICS } else { 3 }
}

/// The targets, with −1 in the rows that do not count.
fn counted_targets(targets: CubeTensor, counted: CubeTensor) -> CubeTensor {
    let not_counted = CubeBackend::bool_not(counted);
    into_contiguous(CubeBackend::int_mask_fill(
        targets,
        not_counted,
        (-1_i32).into(),
    ))
}

/// The same logits, in a layout where the words of a row are contiguous.
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

/// The range `start..start + length` of a dimension. The result is a view if the device allows the
/// offset, and a copy otherwise.
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

/// A view of a part of `tensor`, to write into. The view must start at an offset that the device
/// accepts. Row starts of a pitched tensor are such offsets, and multiples of [`WORDS`] are as
/// well.
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

/// The widest vector that can read the rows of all `tensors`.
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

/// Unfinished logits of some rows and words. The kernels add `bias` to `x` and shape the sum.
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

    /// `[inside, outside, factor, bend]`. The logits are `outside·tanh(inside·x)` with a softcap
    /// and `inside·x` without one. The gradient needs factor and bend.
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

    /// The vector width in which the logits may be read. A row of logits may be padded to whole
    /// vectors, but a bias is not padded. So the length of the bias must be a multiple of the
    /// width; otherwise the width is 1.
    fn width(&self, others: &[&CubeTensor]) -> usize {
        let width = vector_size(&[&[&self.x], others].concat());
        match &self.bias {
            Some(bias) if bias.meta.shape()[0] % width != 0 => 1,
            _ => width,
        }
    }

    /// Reads the logits once. Writes one row of `out` for each row of logits, starting at
    /// `first_row`.
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

    /// The gradient of x in `dtype`. The gradient overwrites x if x has this type and no other
    /// tensor holds the buffer of x. `normalizer` is `[rows, 2 or more]`; only the first two
    /// columns are read.
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

/// Number of units that share a row. A long row gets many units, because a block then has few rows.
fn units(x: &CubeTensor, vectors: usize) -> u32 {
    let hardware = &x.client.properties().hardware;
    if hardware.num_cpu_cores.is_some() {
        return 1;
    }
    // Each unit stores six numbers in shared memory.
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

/// `size` rounded down to a multiple of `to`, but at least `to`.
fn align(size: usize, to: usize) -> usize {
    (size / to).max(1) * to
}

/// The bias `[vocab]`, if the head has one.
fn bias(head: &Head<CubeBackend>) -> Option<CubeTensor> {
    head.form.biased.then(|| into_contiguous(head.bias.clone()))
}

/// Splits the reduced output of the rows into its columns.
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
            // With a `grad` of ones, the result is the gradient of each log-probability.
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

/// The outer loop walks over blocks of words, the inner loop over blocks of `most_rows` rows. So
/// the parts of all rows for one block of words are summed in f32, and the sum is written once.
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

/// Concatenates the parts along the first dimension; a single part is not copied.
fn cat(mut parts: Vec<CubeTensor>) -> CubeTensor {
    match parts.len() {
        1 => parts.remove(0),
        _ => CubeBackend::float_cat(parts, 0),
    }
}
