//! What log-probabilities cost, from hidden states and from logits.
//!
//! ```console
//! cargo bench --bench head
//! ```
//!
//! Read the rows of one run against each other: `matmul` is the product that every row needs once
//! forward, and twice more for both gradients. `benches/head_floor.rs` prints multiples of the
//! bare products, and memory.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Distribution, Tensor};
use burn_preference::LmHead;
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

const WIDTH: usize = 256;
const VOCABS: [usize; 2] = [4096, 32768];

struct Inputs {
    hidden: Tensor<2>,
    weight: Tensor<2>,
    /// Collated before the clock starts, as a data loader does it.
    tokens: TokenBatch,
}

/// Sequences of which every token counts that something predicts.
fn tokens([rows, time]: [usize; 2], vocab: usize) -> TokenBatch {
    let id = |i: usize| u32::try_from(i % vocab).expect("a small vocabulary");
    let row = |row: usize| (row * time..(row + 1) * time).map(id).collect::<Vec<_>>();
    let rows = (0..rows).map(|i| Sequence::new(&[], &row(i))).collect();
    TokenBatch::new(rows, Padding::new(0), &Device::default()).expect("small ids")
}

/// `[2, 256]` tokens, all counted.
fn inputs(vocab: usize) -> Inputs {
    let device = Device::default();
    let normal = |scale| Distribution::Normal(0.0, scale);
    Inputs {
        hidden: Tensor::random([512, WIDTH], normal(1.0), &device),
        weight: Tensor::random([vocab, WIDTH], normal(0.06), &device),
        tokens: tokens([2, 256], vocab),
    }
}

#[divan::bench(args = VOCABS, sample_count = 10)]
fn matmul(bencher: Bencher, vocab: usize) {
    let Inputs { hidden, weight, .. } = inputs(vocab);
    bencher.bench_local(|| black_box(hidden.clone().matmul(weight.clone().transpose())));
}

fn from_hidden(bencher: Bencher, vocab: usize, leaves: [bool; 2], retained_bytes: usize) {
    let inputs = inputs(vocab);
    let leaf = |tensor: &Tensor<2>, wanted: bool| {
        if wanted {
            tensor.clone().autodiff().require_grad()
        } else {
            tensor.clone()
        }
    };
    bencher.bench_local(|| {
        let head = LmHead::new(leaf(&inputs.weight, leaves[1])).with_retained_bytes(retained_bytes);
        let hidden = leaf(&inputs.hidden, leaves[0]).reshape([2, 256, WIDTH]);
        let log_probs = inputs.tokens.token_log_probs((hidden, head));
        let loss = log_probs.expect("the shapes fit").log_probs().sum();
        if leaves[0] {
            black_box(loss.backward());
        }
    });
}

#[divan::bench(args = VOCABS, sample_count = 10)]
fn reference(bencher: Bencher, vocab: usize) {
    from_hidden(bencher, vocab, [false, false], 0);
}

#[divan::bench(args = VOCABS, sample_count = 10)]
fn frozen(bencher: Bencher, vocab: usize) {
    from_hidden(bencher, vocab, [true, false], 0);
}

#[divan::bench(args = VOCABS, sample_count = 10)]
fn bounded(bencher: Bencher, vocab: usize) {
    from_hidden(bencher, vocab, [true, true], 0);
}

#[divan::bench(args = VOCABS, sample_count = 10)]
fn retained(bencher: Bencher, vocab: usize) {
    from_hidden(bencher, vocab, [true, true], usize::MAX);
}

fn logits(inputs: &Inputs, vocab: usize) -> Tensor<3> {
    let weight = inputs.weight.clone().transpose();
    inputs
        .hidden
        .clone()
        .matmul(weight)
        .reshape([2, 256, vocab])
}

fn from_logits(inputs: &Inputs, logits: Tensor<3>) -> Tensor<1> {
    let log_probs = inputs.tokens.token_log_probs(logits);
    log_probs.expect("the shapes fit").log_probs().sum()
}

/// The logits are there. An exponential of each is all that is left, here and in
/// `logits_backward`: if one row takes much longer than the other, a loop is not compiled to
/// vectors.
#[divan::bench(args = VOCABS, sample_count = 10)]
fn logits_forward(bencher: Bencher, vocab: usize) {
    let inputs = inputs(vocab);
    let logits = logits(&inputs, vocab);
    bencher.bench_local(|| black_box(from_logits(&inputs, logits.clone())));
}

#[divan::bench(args = VOCABS, sample_count = 10)]
fn logits_backward(bencher: Bencher, vocab: usize) {
    let inputs = inputs(vocab);
    let loss = || {
        let logits = logits(&inputs, vocab).autodiff().require_grad();
        from_logits(&inputs, logits)
    };
    let bencher = bencher.with_inputs(loss);
    bencher.bench_local_values(|loss| black_box(loss.backward()));
}

/// Small problems, `[rows, width, vocab]`: a toy, few rows, a small vocabulary.
const SMALL: [[usize; 3]; 5] = [
    [32, 16, 12],
    [32, 64, 512],
    [128, 64, 512],
    [32, 256, 4096],
    [256, 128, 2048],
];

fn small([rows, width, vocab]: [usize; 3]) -> Inputs {
    let device = Device::default();
    let normal = |scale| Distribution::Normal(0.0, scale);
    Inputs {
        hidden: Tensor::random([rows, width], normal(1.0), &device),
        weight: Tensor::random([vocab, width], normal(0.1), &device),
        tokens: tokens([1, rows], vocab),
    }
}

/// Forward and backward of a trained head from hidden states.
#[divan::bench(args = SMALL)]
fn small_head(bencher: Bencher, shape: [usize; 3]) {
    let inputs = small(shape);
    let [rows, width, _] = shape;
    bencher.bench_local(|| {
        let head = LmHead::new(inputs.weight.clone().autodiff().require_grad());
        let hidden = inputs.hidden.clone().autodiff().require_grad();
        let hidden = hidden.reshape([1, rows, width]);
        let log_probs = inputs.tokens.token_log_probs((hidden, head));
        let loss = log_probs.expect("the shapes fit").log_probs().sum();
        black_box(loss.backward())
    });
}

/// The same by Burn's own `log_softmax` and `gather`, without a mask.
#[divan::bench(args = SMALL)]
fn small_by_hand(bencher: Bencher, shape: [usize; 3]) {
    let inputs = small(shape);
    let [rows, ..] = shape;
    bencher.bench_local(|| {
        let weight = inputs.weight.clone().autodiff().require_grad();
        let hidden = inputs.hidden.clone().autodiff().require_grad();
        let log_probs = log_softmax(hidden.matmul(weight.transpose()), 1);
        let targets = inputs
            .tokens
            .ids
            .clone()
            .reshape([rows, 1])
            .narrow(0, 1, rows - 1);
        let loss = log_probs.narrow(0, 0, rows - 1).gather(1, targets).sum();
        black_box(loss.backward())
    });
}
