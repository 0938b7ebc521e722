//! The kernels in Burn's own operations, for every backend.
//!
//! They walk blocks of rows, never of the vocabulary: fused GPU backends panic on slices of it.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, IndexingUpdateOp, Shape, Slice};

use super::{Forward, Head, HeadGradients, Save};

/// Logits of one block of rows, in bytes of f32: large enough to keep a GPU busy.
const BLOCK_BYTES: usize = 64 << 20;

fn dims<B: Backend>(tensor: &FloatTensor<B>) -> [usize; 2] {
    tensor.shape().dims()
}

fn narrow<B: Backend>(tensor: FloatTensor<B>, start: usize, length: usize) -> FloatTensor<B> {
    B::float_slice(tensor, &[Slice::from(start..start + length)])
}

fn column<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let rows = tensor.shape().num_elements();
    B::float_reshape(tensor, Shape::new([rows, 1]))
}

fn cast<B: Backend>(tensor: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if tensor.dtype() == dtype {
        return tensor;
    }
    B::float_cast(tensor, dtype.into())
}

/// f64 for f64, f32 for everything else.
fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// `[vocab, hidden]`, as a view.
fn words<B: Backend>(head: &Head<B>) -> FloatTensor<B> {
    let weight = head.weight.clone();
    if head.words_first {
        weight
    } else {
        B::float_transpose(weight)
    }
}

/// The rows `start..start + rows` of a head.
struct Block<B: Backend> {
    hidden: FloatTensor<B>,
    /// `[rows, 1]`
    targets: IntTensor<B>,
}

impl<B: Backend> Block<B> {
    fn new(head: &Head<B>, start: usize, rows: usize) -> Self {
        let targets = B::int_slice(head.targets.clone(), &[Slice::from(start..start + rows)]);
        Self {
            hidden: narrow::<B>(head.hidden.clone(), start, rows),
            targets: B::int_reshape(targets, Shape::new([rows, 1])),
        }
    }

    fn logits(&self, head: &Head<B>) -> FloatTensor<B> {
        let logits = B::float_matmul(self.hidden.clone(), B::float_transpose(words(head)));
        let dtype = wide(logits.dtype());
        let logits = cast::<B>(logits, dtype);
        if !head.biased {
            return logits;
        }
        let vocab = head.bias.shape().num_elements();
        let bias = B::float_reshape(head.bias.clone(), Shape::new([1, vocab]));
        B::float_add(logits, cast::<B>(bias, dtype))
    }
}

fn block_rows(rows: usize, vocab: usize) -> usize {
    (BLOCK_BYTES / (4 * vocab)).clamp(1, rows)
}

/// `(start, length)` of every block.
fn blocks(rows: usize, vocab: usize) -> impl Iterator<Item = (usize, usize)> {
    let step = block_rows(rows, vocab);
    (0..rows)
        .step_by(step)
        .map(move |start| (start, step.min(rows - start)))
}

/// What a block of logits gives.
struct Normalized<B: Backend> {
    /// `[rows, 1]`
    log_probs: FloatTensor<B>,
    /// `[rows, 2]`
    normalizer: FloatTensor<B>,
    /// `[rows, vocab]`, if asked for.
    softmax: Option<FloatTensor<B>>,
    statistics: Option<FloatTensor<B>>,
}

fn normalize<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    wants_softmax: bool,
    statistics: bool,
) -> Normalized<B> {
    let max = B::float_max_dim(logits.clone(), 1);
    let target = B::float_gather(1, logits.clone(), targets);
    let shifted = B::float_sub(logits.clone(), max.clone());
    let powers = B::float_exp(shifted.clone());
    let sum = B::float_sum_dim(powers.clone(), 1);
    let log_sum = B::float_log(sum.clone());
    let softmax = (wants_softmax || statistics).then(|| B::float_mul(powers, B::float_recip(sum)));
    let statistics = softmax.clone().filter(|_| statistics).map(|softmax| {
        // e^−1e4 is 0 already; −∞ times that 0 would be NaN.
        let bounded = B::float_clamp_min(shifted, (-1e4).into());
        let expected = B::float_sum_dim(B::float_mul(softmax.clone(), bounded), 1);
        let entropy = B::float_sub(log_sum.clone(), expected);
        let squares = B::float_mul(softmax.clone(), softmax);
        let collisions = B::float_log(B::float_sum_dim(squares, 1));
        // 0 where the target is a largest logit, −1 where it is not.
        let below = B::float_sign(B::float_sub(target.clone(), max.clone()));
        let top1 = B::float_add_scalar(below, 1.0.into());
        let mean = B::float_mean_dim(logits, 1);
        B::float_cat(vec![entropy, collisions, top1, mean], 1)
    });
    Normalized {
        log_probs: B::float_sub(B::float_sub(target, max.clone()), log_sum.clone()),
        normalizer: B::float_cat(vec![max, log_sum], 1),
        softmax,
        statistics,
    }
}

fn flat<B: Backend>(columns: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    let tensor = B::float_cat(columns, 0);
    let rows = tensor.shape().num_elements();
    B::float_reshape(tensor, Shape::new([rows]))
}

pub fn head_forward<B: Backend>(head: Head<B>, save: Save, statistics: bool) -> Forward<B> {
    let [rows, _] = dims::<B>(&head.hidden);
    let [vocab, _] = dims::<B>(&words(&head));
    let mut budget = match save {
        Save::Tiles(bytes) => bytes,
        Save::Nothing | Save::Slope => 0,
    };
    let (mut log_probs, mut normalizers) = (Vec::new(), Vec::new());
    let (mut by_products, mut slopes, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
    for (start, length) in blocks(rows, vocab) {
        let block = Block::new(&head, start, length);
        let logits = block.logits(&head);
        let dtype = logits.dtype();
        let bytes = length * vocab * dtype.size();
        if save != Save::Slope && bytes <= budget && tiles.len() == log_probs.len() {
            budget -= bytes;
            tiles.push(logits.clone());
        }
        let wants_softmax = save == Save::Slope;
        let found = normalize::<B>(logits, block.targets.clone(), wants_softmax, statistics);
        if let Some(softmax) = found.softmax.filter(|_| wants_softmax) {
            let targets = B::int_reshape(block.targets, Shape::new([length]));
            let chosen = B::float_select(words(&head), 0, targets);
            let softmax = cast::<B>(softmax, head.weight.dtype());
            let expected = B::float_matmul(softmax, words(&head));
            slopes.push(B::float_sub(
                cast::<B>(chosen, dtype),
                cast::<B>(expected, dtype),
            ));
        }
        log_probs.push(found.log_probs);
        normalizers.push(found.normalizer);
        by_products.extend(found.statistics);
    }
    Forward {
        log_probs: flat::<B>(log_probs),
        normalizer: B::float_cat(normalizers, 0),
        statistics: statistics.then(|| B::float_cat(by_products, 0)),
        slope: (save == Save::Slope).then(|| B::float_cat(slopes, 0)),
        tiles,
    }
}

/// `(onehot − softmax) · g`, `[rows, vocab]`; `normalizer` is `[rows, 2]` and `grad` `[rows, 1]`.
fn logits_gradient<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    normalizer: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let max = B::float_slice(normalizer.clone(), &[Slice::full(), Slice::from(0..1)]);
    let log_sum = B::float_slice(normalizer, &[Slice::full(), Slice::from(1..2)]);
    let softmax = B::float_exp(B::float_sub(B::float_sub(logits, max), log_sum));
    let pushed_down = B::float_mul(softmax, B::float_neg(grad.clone()));
    B::float_scatter(1, pushed_down, targets, grad, IndexingUpdateOp::Add)
}

pub fn head_backward<B: Backend>(
    head: Head<B>,
    normalizer: FloatTensor<B>,
    tiles: Vec<FloatTensor<B>>,
    grad: FloatTensor<B>,
    [wants_hidden, wants_weight, wants_bias]: [bool; 3],
) -> HeadGradients<B> {
    let [rows, _] = dims::<B>(&head.hidden);
    let [vocab, _] = dims::<B>(&words(&head));
    let dtype = head.hidden.dtype();
    let add = |total: Option<FloatTensor<B>>, part: FloatTensor<B>| match total {
        Some(total) => Some(B::float_add(total, part)),
        None => Some(part),
    };
    let mut tiles = tiles.into_iter();
    let (mut hidden, mut weight, mut bias) = (Vec::new(), None, None);
    for (start, length) in blocks(rows, vocab) {
        let block = Block::new(&head, start, length);
        let logits = tiles.next().unwrap_or_else(|| block.logits(&head));
        let delta = logits_gradient::<B>(
            logits,
            block.targets,
            narrow::<B>(normalizer.clone(), start, length),
            column::<B>(narrow::<B>(grad.clone(), start, length)),
        );
        if wants_bias {
            bias = add(bias, B::float_sum_dim(delta.clone(), 0));
        }
        let delta = cast::<B>(delta, dtype);
        if wants_hidden {
            hidden.push(B::float_matmul(delta.clone(), words(&head)));
        }
        if wants_weight {
            // Blocks add up in f32 at least.
            let part = if head.words_first {
                B::float_matmul(B::float_transpose(delta), block.hidden)
            } else {
                B::float_matmul(B::float_transpose(block.hidden), delta)
            };
            weight = add(weight, cast::<B>(part, wide(dtype)));
        }
    }
    let bias = bias.map(|bias| B::float_reshape(bias, Shape::new([vocab])));
    [
        wants_hidden.then(|| B::float_cat(hidden, 0)),
        weight.map(|weight| cast::<B>(weight, dtype)),
        bias.map(|bias| cast::<B>(bias, dtype)),
    ]
}

/// `[rows]` as a mask of the rows of `[rows, width]` that do not count.
fn not_counted<B: Backend>(counted: BoolTensor<B>, width: usize) -> BoolTensor<B> {
    let rows = counted.shape().num_elements();
    let column = B::bool_reshape(B::bool_not(counted), Shape::new([rows, 1]));
    B::bool_expand(column, Shape::new([rows, width]))
}

pub fn logits_forward<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    counted: BoolTensor<B>,
    statistics: bool,
) -> Forward<B> {
    let [rows, vocab] = dims::<B>(&logits);
    let targets = B::int_reshape(targets, Shape::new([rows, 1]));
    let logits = B::float_mask_fill(logits, not_counted::<B>(counted, vocab), 0.0.into());
    let found = normalize::<B>(logits, targets, false, statistics);
    Forward {
        log_probs: flat::<B>(vec![found.log_probs]),
        normalizer: found.normalizer,
        statistics: found.statistics,
        slope: None,
        tiles: Vec::new(),
    }
}

pub fn logits_backward<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    counted: BoolTensor<B>,
    normalizer: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let [rows, vocab] = dims::<B>(&logits);
    let targets = B::int_reshape(targets, Shape::new([rows, 1]));
    let delta = logits_gradient::<B>(logits, targets, normalizer, column::<B>(grad));
    B::float_mask_fill(delta, not_counted::<B>(counted, vocab), 0.0.into())
}
