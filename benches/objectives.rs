//! What an objective costs beside the model: forward and backward of a batch of log-probs.
//!
//! ```console
//! cargo bench --bench objectives
//! ```
//!
//! `floor` is the least that any loss of a margin pays on this machine: one subtraction, one
//! sigmoid and the mean, forward and backward. Read the others as multiples of it, in one run.

use burn::tensor::{Device, Int, Tensor, activation};
use burn_preference::config::ObjectiveConfig;
use burn_preference::{Objective, PolicyPair, ReferencedPair, SequenceLogProbs, TokenLogProbs};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

const BATCHES: [usize; 3] = [8, 1024, 65536];

fn log_probs(batch: usize, step: f32) -> Tensor<1> {
    let values: Vec<f32> = (0..batch).map(|i| -1.0 - step * (i % 97) as f32).collect();
    Tensor::from_floats(values.as_slice(), &Device::default())
}

fn sequences(sum: Tensor<1>) -> SequenceLogProbs {
    let [batch] = sum.dims();
    SequenceLogProbs::new(sum, &vec![7; batch]).expect("as many lengths")
}

fn leaves(batch: usize) -> [Tensor<1>; 2] {
    [0.3, 0.4].map(|step| log_probs(batch, step).autodiff().require_grad())
}

#[divan::bench(consts = BATCHES)]
fn floor<const BATCH: usize>(bencher: Bencher) {
    bencher
        .with_inputs(|| leaves(BATCH))
        .bench_values(|[w, l]| {
            let loss = activation::sigmoid(w.clone() - l).mean();
            black_box(w.grad(&loss.backward()))
        });
}

#[divan::bench(consts = BATCHES, args = ["dpo", "ipo", "hinge", "nca", "simpo", "orpo"])]
fn objective<const BATCH: usize>(bencher: Bencher, name: &str) {
    let config = format!(r#"{{"loss": "{name}"}}"#);
    let config: ObjectiveConfig = serde_json::from_str(&config).expect("the name is known");
    let referenced = config.build::<ReferencedPair>();
    let free = config.build::<PolicyPair>();
    let pair = |w, l| PolicyPair::new(sequences(w), sequences(l)).expect("same shape");
    let reference = pair(log_probs(BATCH, 0.31), log_probs(BATCH, 0.37));
    bencher
        .with_inputs(|| leaves(BATCH))
        .bench_values(|[w, l]| {
            let policy = pair(w.clone(), l);
            let output = if let Ok(objective) = &referenced {
                let pair = policy.relative_to(reference.clone()).expect("same shape");
                objective.forward(pair)
            } else {
                free.as_ref()
                    .expect("defaults are in range")
                    .forward(policy)
            };
            black_box(w.grad(&output.mean().backward()))
        });
}

/// Logits `[4, 256, vocab]`, half of the tokens counted.
#[divan::bench(args = [512, 8192], sample_count = 10)]
fn token_log_probs(bencher: Bencher, vocab: usize) {
    let device = Device::default();
    let tokens = Tensor::<1, Int>::arange(0..1024, &device) % 512;
    let tokens = tokens.reshape([4, 256]);
    let mask = (Tensor::<1, Int>::arange(0..1024, &device) % 256).greater_elem(127);
    let mask = mask.reshape([4, 256]);
    let logits = || {
        Tensor::<3>::ones([4, 256, vocab], &device)
            .autodiff()
            .require_grad()
    };
    bencher.with_inputs(logits).bench_values(|logits| {
        let log_probs = TokenLogProbs::from_output(logits.clone(), tokens.clone(), mask.clone());
        let sums = log_probs.expect("shapes fit").sequence().sum();
        black_box(logits.grad(&sums.mean().backward()))
    });
}
