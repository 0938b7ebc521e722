//! The kernels for every backend, built from Burn's own operations.
//!
//! The kernels go through blocks of rows and never slice the vocabulary, because fused GPU backends
//! panic on such slices.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{DType, IndexingUpdateOp, Shape, Slice, TensorData};

use super::discrepancy::{Comparison, Discrepancy};
use super::forward::{Forward, HeadGradients, Save};
use super::head::{Head, Shaping};

/// Bytes of f32 logits in one block of rows. The block is large enough to keep a GPU busy.
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

pub(super) fn cast<B: Backend>(tensor: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if tensor.dtype() == dtype {
        return tensor;
    }
    B::float_cast(tensor, dtype.into())
}

/// f64 for f64, f32 for everything else.
pub(super) fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// `[vocab, hidden]`, as a view.
pub(super) fn words<B: Backend>(head: &Head<B>) -> FloatTensor<B> {
    let weight = head.weight.clone();
    if head.form.words_first {
        weight
    } else {
        B::float_transpose(weight)
    }
}

/// The rows `start..start + rows` of a head.
struct Block<B: Backend> {
    hidden: FloatTensor<B>,
    /// Target of each row, `[rows, 1]`.
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
        logits::<B>(self.hidden.clone(), head)
    }
}

/// Logits `[rows, vocab]` of hidden states `[rows, hidden]`. The product has the number type of its
/// operands; everything after it is f32 at least.
pub(super) fn logits<B: Backend>(hidden: FloatTensor<B>, head: &Head<B>) -> FloatTensor<B> {
    let logits = B::float_matmul(hidden, B::float_transpose(words(head)));
    let dtype = wide(logits.dtype());
    let mut logits = cast::<B>(logits, dtype);
    if head.form.biased {
        let vocab = head.bias.shape().num_elements();
        let bias = B::float_reshape(head.bias.clone(), Shape::new([1, vocab]));
        logits = B::float_add(logits, cast::<B>(bias, dtype));
    }
    shaped::<B>(logits, head.form.shaping)
}

fn times<B: Backend>(tensor: FloatTensor<B>, factor: f64) -> FloatTensor<B> {
    if factor == 1.0 {
        return tensor;
    }
    B::float_mul_scalar(tensor, factor.into())
}

/// Turns x = W h + b into logits.
fn shaped<B: Backend>(x: FloatTensor<B>, shaping: Shaping) -> FloatTensor<B> {
    match shaping.softcap {
        None => times::<B>(x, shaping.factor()),
        Some(cap) => {
            let inside = times::<B>(x, shaping.scale / cap);
            times::<B>(B::float_tanh(inside), cap / shaping.temperature)
        }
    }
}

/// `u·logit`, the only input of the gradient of a softcap. Without a softcap the result is `None`,
/// so that no second handle keeps the logits in memory.
fn bent<B: Backend>(logits: &FloatTensor<B>, shaping: Shaping) -> Option<FloatTensor<B>> {
    let capped = shaping.softcap.is_some();
    capped.then(|| times::<B>(logits.clone(), shaping.bend()))
}

/// Multiplies by `∂logit/∂x = factor·(1 − (u·logit)²)`. This turns the gradient of the logits into
/// the gradient of x.
fn unshaped<B: Backend>(
    gradient: FloatTensor<B>,
    bent: Option<FloatTensor<B>>,
    shaping: Shaping,
) -> FloatTensor<B> {
    let gradient = times::<B>(gradient, shaping.factor());
    let Some(bent) = bent else {
        return gradient;
    };
    let lost = B::float_mul(bent.clone(), bent);
    B::float_sub(gradient.clone(), B::float_mul(gradient, lost))
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

/// The results of one block of logits.
struct Normalized<B: Backend> {
    /// `[rows, 1]`
    log_probs: FloatTensor<B>,
    /// `[rows, 2]`
    normalizer: FloatTensor<B>,
    /// `[rows, vocab]`, if asked for.
    softmax: Option<FloatTensor<B>>,
    statistics: Option<FloatTensor<B>>,
}

/// `[1, vocab]` with the values vocab, vocab − 1, …, 1. Among words with equal logits, the first
/// word has the largest value.
fn precedence<B: Backend>(like: &FloatTensor<B>, vocab: usize) -> FloatTensor<B> {
    let values: Vec<f64> = (1..=vocab).rev().map(|place| place as f64).collect();
    let data = TensorData::new(values, [1, vocab]).convert_dtype(wide(like.dtype()));
    B::float_from_data(data, &like.device())
}

/// For each row: 1 if the target is the first of the largest logits, 0 if not, and NaN if any logit
/// is NaN.
fn top1<B: Backend>(
    logits: FloatTensor<B>,
    max: FloatTensor<B>,
    log_sum: FloatTensor<B>,
    targets: IntTensor<B>,
    precedence: FloatTensor<B>,
) -> FloatTensor<B> {
    // 1 for a largest logit, 0 for the others.
    let largest = B::float_add_scalar(B::float_sign(B::float_sub(logits, max)), 1.0.into());
    let candidates = B::float_mul(largest, precedence);
    let first = B::float_max_dim(candidates.clone(), 1);
    let behind = B::float_sign(B::float_sub(B::float_gather(1, candidates, targets), first));
    // If a logit is NaN, `log_sum` is NaN on every backend. The maximum and the sign of NaN differ
    // between backends.
    let nan_or_0 = B::float_sub(log_sum.clone(), log_sum);
    B::float_add(B::float_add_scalar(behind, 1.0.into()), nan_or_0)
}

/// Computes by-products only if the [`precedence`] of the words is given.
fn normalize<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    wants_softmax: bool,
    precedence: Option<FloatTensor<B>>,
) -> Normalized<B> {
    let max = B::float_max_dim(logits.clone(), 1);
    let target = B::float_gather(1, logits.clone(), targets.clone());
    let shifted = B::float_sub(logits.clone(), max.clone());
    let powers = B::float_exp(shifted.clone());
    let sum = B::float_sum_dim(powers.clone(), 1);
    let log_sum = B::float_log(sum.clone());
    let softmax =
        (wants_softmax || precedence.is_some()).then(|| B::float_mul(powers, B::float_recip(sum)));
    let statistics = softmax
        .clone()
        .zip(precedence)
        .map(|(softmax, precedence)| {
            // exp(−1e4) is 0 already, so the bound changes no sum. Without the bound, 0 · (−∞)
            // would be NaN.
            let bounded = B::float_clamp_min(shifted, (-1e4).into());
            let expected = B::float_sum_dim(B::float_mul(softmax.clone(), bounded), 1);
            let entropy = B::float_sub(log_sum.clone(), expected);
            let squares = B::float_mul(softmax.clone(), softmax);
            let collisions = B::float_log(B::float_sum_dim(squares, 1));
            let (max, log_sum) = (max.clone(), log_sum.clone());
            let top1 = top1::<B>(logits.clone(), max, log_sum, targets, precedence);
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

pub(super) fn head_forward<B: Backend>(head: Head<B>, save: Save, statistics: bool) -> Forward<B> {
    let [rows, _] = dims::<B>(&head.hidden);
    let [vocab, _] = dims::<B>(&words(&head));
    let mut budget = match save {
        Save::Tiles(bytes) => bytes,
        Save::Nothing | Save::Slope => 0,
    };
    let (mut log_probs, mut normalizers) = (Vec::new(), Vec::new());
    let (mut by_products, mut slopes, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
    let precedence = statistics.then(|| precedence::<B>(&head.hidden, vocab));
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
        let (targets, shaping) = (block.targets, head.form.shaping);
        let bent = bent::<B>(&logits, shaping).filter(|_| wants_softmax);
        let normalized = normalize::<B>(logits, targets.clone(), wants_softmax, precedence.clone());
        if let Some(softmax) = normalized.softmax.filter(|_| wants_softmax) {
            let bent_target = bent.clone().map(|bent| {
                let target = B::float_gather(1, bent, targets.clone());
                let [_, width] = dims::<B>(&words(&head));
                B::float_expand(target, Shape::new([length, width]))
            });
            let chosen = B::int_reshape(targets, Shape::new([length]));
            let chosen = cast::<B>(B::float_select(words(&head), 0, chosen), dtype);
            let chosen = unshaped::<B>(chosen, bent_target, shaping);
            let softmax = unshaped::<B>(softmax, bent, shaping);
            let softmax = cast::<B>(softmax, head.weight.dtype());
            let expected = B::float_matmul(softmax, words(&head));
            slopes.push(B::float_sub(chosen, cast::<B>(expected, dtype)));
        }
        log_probs.push(normalized.log_probs);
        normalizers.push(normalized.normalizer);
        by_products.extend(normalized.statistics);
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

pub(super) fn head_backward<B: Backend>(
    head: Head<B>,
    normalizer: FloatTensor<B>,
    tiles: Vec<FloatTensor<B>>,
    grad: FloatTensor<B>,
    wanted: [bool; 3],
) -> HeadGradients<B> {
    let [rows, _] = dims::<B>(&head.hidden);
    let [vocab, _] = dims::<B>(&words(&head));
    let mut tiles = tiles.into_iter();
    let mut sums = Sums::new(wanted);
    for (start, length) in blocks(rows, vocab) {
        let block = Block::new(&head, start, length);
        let logits = tiles.next().unwrap_or_else(|| block.logits(&head));
        let bent = bent::<B>(&logits, head.form.shaping);
        let delta = logits_gradient::<B>(
            logits,
            block.targets.clone(),
            narrow::<B>(normalizer.clone(), start, length),
            column::<B>(narrow::<B>(grad.clone(), start, length)),
        );
        let delta = unshaped::<B>(delta, bent, head.form.shaping);
        sums.add(&head, block, delta);
    }
    sums.finish(&head)
}

/// Adds the part of one block to a total.
pub(super) fn add<B: Backend>(total: &mut Option<FloatTensor<B>>, part: FloatTensor<B>) {
    *total = Some(match total.take() {
        Some(total) => B::float_add(total, part),
        None => part,
    });
}

/// Gradients of a head, collected block by block.
struct Sums<B: Backend> {
    wanted: [bool; 3],
    hidden: Vec<FloatTensor<B>>,
    /// Summed in f32 at least, as the bias is.
    weight: Option<FloatTensor<B>>,
    bias: Option<FloatTensor<B>>,
}

impl<B: Backend> Sums<B> {
    fn new(wanted: [bool; 3]) -> Self {
        Self {
            wanted,
            hidden: Vec::new(),
            weight: None,
            bias: None,
        }
    }

    /// Adds the part of one block; `delta` is the gradient of the block's x = W h + b.
    fn add(&mut self, head: &Head<B>, block: Block<B>, delta: FloatTensor<B>) {
        let dtype = head.hidden.dtype();
        let [wants_hidden, wants_weight, wants_bias] = self.wanted;
        if wants_bias {
            add::<B>(&mut self.bias, B::float_sum_dim(delta.clone(), 0));
        }
        let delta = cast::<B>(delta, dtype);
        if wants_hidden {
            self.hidden
                .push(B::float_matmul(delta.clone(), words(head)));
        }
        if wants_weight {
            let part = if head.form.words_first {
                B::float_matmul(B::float_transpose(delta), block.hidden)
            } else {
                B::float_matmul(B::float_transpose(block.hidden), delta)
            };
            add::<B>(&mut self.weight, cast::<B>(part, wide(dtype)));
        }
    }

    fn finish(self, head: &Head<B>) -> HeadGradients<B> {
        let dtype = head.hidden.dtype();
        let [vocab, _] = dims::<B>(&words(head));
        let bias = self
            .bias
            .map(|bias| B::float_reshape(bias, Shape::new([vocab])));
        [
            self.wanted[0].then(|| B::float_cat(self.hidden, 0)),
            self.weight.map(|weight| cast::<B>(weight, dtype)),
            bias.map(|bias| cast::<B>(bias, dtype)),
        ]
    }
}

/// Tensors of the size of a block that a comparison of two models holds at once. Its blocks are
/// smaller by this factor.
const COMPARED: usize = 8;
/// Stands for ln(p/p°) where one of the two probabilities is 0, and is multiplied by this 0.
const RULED_OUT: f64 = 1e30;

/// A block of words under two models: probabilities and their logarithms, `[rows, vocab]`.
struct Words<B: Backend> {
    ours: FloatTensor<B>,
    theirs: FloatTensor<B>,
    /// ln(p/p°)
    log_ratio: FloatTensor<B>,
    kind: Discrepancy,
}

/// ln(m/p) and ln(m/p°), and the mixture m = β·p° + (1 − β)·p.
struct Mixed<B: Backend> {
    above_ours: FloatTensor<B>,
    above_theirs: FloatTensor<B>,
    mixture: FloatTensor<B>,
}

/// The normaliser `[rows, 2]` of logits `[rows, vocab]`.
fn normalizer<B: Backend>(logits: FloatTensor<B>) -> FloatTensor<B> {
    let max = B::float_max_dim(logits.clone(), 1);
    let powers = B::float_exp(B::float_sub(logits, max.clone()));
    B::float_cat(vec![max, B::float_log(B::float_sum_dim(powers, 1))], 1)
}

fn column_of<B: Backend>(tensor: &FloatTensor<B>, index: usize) -> FloatTensor<B> {
    let column = [Slice::full(), Slice::from(index..index + 1)];
    B::float_slice(tensor.clone(), &column)
}

/// Terms `a·(eᵈ − 1 − d)` of KL(a ‖ b), where b = a·eᵈ. No term is negative, and so the sum has
/// its digits where the models are nearly equal; it is Σ a·(−d), since Σa = Σb.
///
/// eᵈ − 1 = (1 + eᵈ)·tanh(d/2) neither cancels near 0 nor overflows when a is multiplied in.
fn excess<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>, d: FloatTensor<B>) -> FloatTensor<B> {
    let tanh = B::float_tanh(times::<B>(d.clone(), 0.5));
    let difference = B::float_mul(B::float_add(a.clone(), b), tanh);
    B::float_sub(difference, B::float_mul(a, d))
}

impl<B: Backend> Words<B> {
    /// Words of the logits of both models. `kept` holds at least four columns of
    /// [`Comparison::kept`].
    fn new(
        kind: Discrepancy,
        ours: FloatTensor<B>,
        theirs: FloatTensor<B>,
        kept: &FloatTensor<B>,
    ) -> Self {
        let log_softmax = |logits: FloatTensor<B>, first: usize| {
            let shifted = B::float_sub(logits, column_of::<B>(kept, first));
            B::float_sub(shifted, column_of::<B>(kept, first + 1))
        };
        let [ours, theirs] = [log_softmax(ours, 0), log_softmax(theirs, 2)];
        let log_ratio = B::float_sub(ours.clone(), theirs.clone());
        let [ours, theirs] = [ours, theirs].map(B::float_exp);
        // A probability of 0 is multiplied by a logarithm that may be infinite or, of two such
        // probabilities, NaN. A word that only the first argument of a KL has keeps its ∞.
        let bools = get_device_settings::<B>(&ours.device()).bool_dtype;
        let ruled_out = |probability: &FloatTensor<B>, log_ratio: FloatTensor<B>, value: f64| {
            let zero = B::float_equal_elem(probability.clone(), 0.0.into(), bools);
            B::float_mask_fill(log_ratio, zero, value.into())
        };
        let log_ratio = match kind {
            Discrepancy::ForwardKl => ruled_out(&theirs, log_ratio, RULED_OUT),
            Discrepancy::ReverseKl => ruled_out(&ours, log_ratio, -RULED_OUT),
            Discrepancy::JensenShannon(_) => {
                let log_ratio = ruled_out(&ours, log_ratio, -RULED_OUT);
                ruled_out(&theirs, log_ratio, RULED_OUT)
            }
        };
        Self {
            ours,
            theirs,
            log_ratio,
            kind,
        }
    }

    /// The mixture by `ln(1 + w·(e^(−|d|) − 1))`, w the weight of the smaller probability, which
    /// keeps its digits near d = 0 and never overflows.
    fn mixed(&self, beta: f64) -> Mixed<B> {
        let d = self.log_ratio.clone();
        let tanh = B::float_tanh(times::<B>(B::float_abs(d.clone()), 0.5));
        // e^(−|d|) − 1
        let less = B::float_mul(
            times::<B>(tanh.clone(), -2.0),
            B::float_recip(B::float_add_scalar(tanh, 1.0.into())),
        );
        let sign = B::float_sign(d.clone());
        let weight = B::float_add_scalar(times::<B>(sign, beta - 0.5), 0.5.into());
        let below_larger = B::float_log1p(B::float_mul(weight, less));
        let positive = B::float_clamp_min(d.clone(), 0.0.into());
        let negative = B::float_sub(positive.clone(), d);
        Mixed {
            above_ours: B::float_add(below_larger.clone(), negative),
            above_theirs: B::float_add(below_larger, positive),
            mixture: B::float_add(
                times::<B>(self.theirs.clone(), beta),
                times::<B>(self.ours.clone(), 1.0 - beta),
            ),
        }
    }

    /// Terms of the divergence, and of E: see [`Comparison::kept`].
    fn terms(&self) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
        let (ours, theirs, d) = (&self.ours, &self.theirs, &self.log_ratio);
        match self.kind {
            Discrepancy::ForwardKl => {
                let terms = excess::<B>(theirs.clone(), ours.clone(), d.clone());
                (terms, None)
            }
            Discrepancy::ReverseKl => {
                let up = B::float_neg(d.clone());
                let terms = excess::<B>(ours.clone(), theirs.clone(), up);
                (terms, Some(B::float_mul(ours.clone(), d.clone())))
            }
            Discrepancy::JensenShannon(beta) => {
                let mixed = self.mixed(beta);
                let m = mixed.mixture;
                let of_ours = excess::<B>(ours.clone(), m.clone(), mixed.above_ours.clone());
                let of_theirs = excess::<B>(theirs.clone(), m, mixed.above_theirs);
                let terms =
                    B::float_add(times::<B>(of_theirs, beta), times::<B>(of_ours, 1.0 - beta));
                let down = B::float_neg(mixed.above_ours);
                (terms, Some(B::float_mul(ours.clone(), down)))
            }
        }
    }

    /// Gradient of the policy's logits, where `mean` is E, `[rows, 1]`.
    fn gradient(self, mean: FloatTensor<B>) -> FloatTensor<B> {
        match self.kind {
            Discrepancy::ForwardKl => B::float_sub(self.ours, self.theirs),
            Discrepancy::ReverseKl => B::float_mul(self.ours, B::float_sub(self.log_ratio, mean)),
            Discrepancy::JensenShannon(beta) => {
                let above = self.mixed(beta).above_ours;
                let centred = B::float_add(above, mean);
                times::<B>(B::float_mul(self.ours, centred), beta - 1.0)
            }
        }
    }
}

/// Compares the logits of some rows. The results are the divergence `[rows, 1]`, what the backward
/// needs `[rows, 5]`, and the words.
fn compare<B: Backend>(
    kind: Discrepancy,
    ours: FloatTensor<B>,
    theirs: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>, Words<B>) {
    let theirs = cast::<B>(theirs, ours.dtype());
    let normalizers = [ours.clone(), theirs.clone()].map(normalizer::<B>);
    let normalizers = B::float_cat(normalizers.into(), 1);
    let words = Words::<B>::new(kind, ours, theirs, &normalizers);
    let (terms, expected) = words.terms();
    let discrepancy = B::float_sum_dim(terms, 1);
    let mean = match expected {
        Some(expected) => B::float_sum_dim(expected, 1),
        None => B::float_zeros(
            discrepancy.shape(),
            &discrepancy.device(),
            discrepancy.dtype().into(),
        ),
    };
    let kept = B::float_cat(vec![normalizers, mean], 1);
    (discrepancy, kept, words)
}

/// Gradient of the policy's logits, from what [`compare`] kept of the same rows.
fn compared_gradient<B: Backend>(
    kind: Discrepancy,
    ours: FloatTensor<B>,
    theirs: FloatTensor<B>,
    kept: &FloatTensor<B>,
) -> FloatTensor<B> {
    let theirs = cast::<B>(theirs, ours.dtype());
    Words::<B>::new(kind, ours, theirs, kept).gradient(column_of::<B>(kept, 4))
}

fn comparison_blocks(rows: usize, vocab: usize) -> impl Iterator<Item = (usize, usize)> {
    blocks(rows, vocab.saturating_mul(COMPARED))
}

pub(super) fn head_comparison<B: Backend>(
    kind: Discrepancy,
    policy: &Head<B>,
    reference: &Head<B>,
    slope: bool,
) -> Comparison<B> {
    let [rows, _] = dims::<B>(&policy.hidden);
    let [vocab, _] = dims::<B>(&words(policy));
    let (mut all, mut keep, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
    for (start, length) in comparison_blocks(rows, vocab) {
        let logits = Block::new(policy, start, length).logits(policy);
        let theirs = Block::new(reference, start, length).logits(reference);
        let bent = bent::<B>(&logits, policy.form.shaping).filter(|_| slope);
        let (discrepancy, kept, compared) = compare::<B>(kind, logits, theirs);
        if slope {
            let delta = compared.gradient(column_of::<B>(&kept, 4));
            let delta = unshaped::<B>(delta, bent, policy.form.shaping);
            let dtype = delta.dtype();
            let delta = cast::<B>(delta, policy.weight.dtype());
            let product = B::float_matmul(delta, words(policy));
            slopes.push(cast::<B>(product, dtype));
        }
        all.push(discrepancy);
        keep.push(kept);
    }
    Comparison {
        discrepancy: flat::<B>(all),
        kept: B::float_cat(keep, 0),
        slope: slope.then(|| B::float_cat(slopes, 0)),
    }
}

pub(super) fn head_comparison_backward<B: Backend>(
    kind: Discrepancy,
    policy: &Head<B>,
    reference: &Head<B>,
    kept: &FloatTensor<B>,
    grad: &FloatTensor<B>,
    wanted: [bool; 3],
) -> HeadGradients<B> {
    let [rows, _] = dims::<B>(&policy.hidden);
    let [vocab, _] = dims::<B>(&words(policy));
    let mut sums = Sums::new(wanted);
    for (start, length) in comparison_blocks(rows, vocab) {
        let block = Block::new(policy, start, length);
        let logits = block.logits(policy);
        let theirs = Block::new(reference, start, length).logits(reference);
        let bent = bent::<B>(&logits, policy.form.shaping);
        let kept = narrow::<B>(kept.clone(), start, length);
        let delta = compared_gradient::<B>(kind, logits, theirs, &kept);
        let grad = column::<B>(narrow::<B>(grad.clone(), start, length));
        let delta = unshaped::<B>(B::float_mul(delta, grad), bent, policy.form.shaping);
        sums.add(policy, block, delta);
    }
    sums.finish(policy)
}

/// Rows `start..start + length` of logits, in f32 at least; zeros in the rows that do not count.
fn some_logits<B: Backend>(
    logits: &FloatTensor<B>,
    counted: &BoolTensor<B>,
    start: usize,
    length: usize,
) -> FloatTensor<B> {
    let [_, vocab] = dims::<B>(logits);
    let some = narrow::<B>(logits.clone(), start, length);
    let some = cast::<B>(some, wide(logits.dtype()));
    let counted = B::bool_slice(counted.clone(), &[Slice::from(start..start + length)]);
    B::float_mask_fill(some, not_counted::<B>(counted, vocab), 0.0.into())
}

pub(super) fn logits_comparison<B: Backend>(
    kind: Discrepancy,
    policy: &FloatTensor<B>,
    reference: &FloatTensor<B>,
    counted: &BoolTensor<B>,
) -> Comparison<B> {
    let [rows, vocab] = dims::<B>(policy);
    let (mut all, mut keep) = (Vec::new(), Vec::new());
    for (start, length) in comparison_blocks(rows, vocab) {
        let [ours, theirs] =
            [policy, reference].map(|logits| some_logits::<B>(logits, counted, start, length));
        let (discrepancy, kept, _) = compare::<B>(kind, ours, theirs);
        all.push(discrepancy);
        keep.push(kept);
    }
    Comparison {
        discrepancy: flat::<B>(all),
        kept: B::float_cat(keep, 0),
        slope: None,
    }
}

pub(super) fn logits_comparison_backward<B: Backend>(
    kind: Discrepancy,
    policy: &FloatTensor<B>,
    reference: &FloatTensor<B>,
    counted: &BoolTensor<B>,
    kept: &FloatTensor<B>,
    grad: &FloatTensor<B>,
) -> FloatTensor<B> {
    let [rows, vocab] = dims::<B>(policy);
    let mut gradients = Vec::new();
    for (start, length) in comparison_blocks(rows, vocab) {
        let [ours, theirs] =
            [policy, reference].map(|logits| some_logits::<B>(logits, counted, start, length));
        let kept = narrow::<B>(kept.clone(), start, length);
        let delta = compared_gradient::<B>(kind, ours, theirs, &kept);
        let grad = column::<B>(narrow::<B>(grad.clone(), start, length));
        let delta = B::float_mul(delta, grad);
        let counted = B::bool_slice(counted.clone(), &[Slice::from(start..start + length)]);
        let delta = B::float_mask_fill(delta, not_counted::<B>(counted, vocab), 0.0.into());
        gradients.push(cast::<B>(delta, policy.dtype()));
    }
    B::float_cat(gradients, 0)
}

/// Turns `counted`, `[rows]`, into a mask `[rows, width]` that is true in the rows that do not
/// count.
fn not_counted<B: Backend>(counted: BoolTensor<B>, width: usize) -> BoolTensor<B> {
    let rows = counted.shape().num_elements();
    let column = B::bool_reshape(B::bool_not(counted), Shape::new([rows, 1]));
    B::bool_expand(column, Shape::new([rows, width]))
}

pub(super) fn logits_forward<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    counted: BoolTensor<B>,
    statistics: bool,
) -> Forward<B> {
    let [rows, vocab] = dims::<B>(&logits);
    let dtype = wide(logits.dtype());
    let logits = cast::<B>(logits, dtype);
    let targets = B::int_reshape(targets, Shape::new([rows, 1]));
    let logits = B::float_mask_fill(logits, not_counted::<B>(counted, vocab), 0.0.into());
    let precedence = statistics.then(|| precedence::<B>(&logits, vocab));
    let normalized = normalize::<B>(logits, targets, false, precedence);
    Forward {
        log_probs: flat::<B>(vec![normalized.log_probs]),
        normalizer: normalized.normalizer,
        statistics: normalized.statistics,
        slope: None,
        tiles: Vec::new(),
    }
}

pub(super) fn logits_backward<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    counted: BoolTensor<B>,
    normalizer: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let [rows, vocab] = dims::<B>(&logits);
    let dtype = logits.dtype();
    let logits = cast::<B>(logits, wide(dtype));
    let targets = B::int_reshape(targets, Shape::new([rows, 1]));
    let delta = logits_gradient::<B>(logits, targets, normalizer, column::<B>(grad));
    let delta = B::float_mask_fill(delta, not_counted::<B>(counted, vocab), 0.0.into());
    cast::<B>(delta, dtype)
}
