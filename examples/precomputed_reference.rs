//! Reference log-probs computed once, kept as plain numbers, and used in every epoch: the
//! reference model can be dropped before training starts.
//!
//! ```text
//! cargo run --example precomputed_reference
//! ```

mod toy;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use burn_preference::{Frozen, InvalidInput, IpoLossConfig, Objective, Pair, SequenceLogProbs};
use toy::{Bigram, Rows};

/// What a file or a database would hold of one completion.
struct Entry {
    sum: f32,
    length: usize,
}

fn main() -> Result<(), InvalidInput> {
    let device = Device::default();
    let mut policy = Bigram::new(&device);
    let rows = Rows::new(
        [[0, 1, 2, 7], [0, 3, 4, 5], [0, 5, 4, 7], [0, 2, 2, 2]],
        &device,
    );

    // Once, before training.
    let reference = Frozen::new(&policy)
        .log_probs(rows.tokens.clone(), rows.mask.clone(), Bigram::forward)?
        .sequence();
    let sums = reference.sum().into_data();
    let lengths = reference.lengths().into_data();
    let entries: Vec<Entry> = sums
        .iter::<f32>()
        .zip(lengths.iter::<u64>())
        .map(|(sum, length)| Entry {
            sum,
            length: usize::try_from(length).expect("a short completion"),
        })
        .collect();

    let ipo = IpoLossConfig::new().with_tau(0.5).init();
    let mut optimizer = AdamWConfig::new().init();
    for step in 0..=20 {
        let sums: Vec<f32> = entries.iter().map(|e| e.sum).collect();
        let lengths: Vec<usize> = entries.iter().map(|e| e.length).collect();
        let stored = SequenceLogProbs::from_values(&sums, &lengths, &device)?;
        let relative = policy.log_probs(&rows)?.relative_to(stored)?;
        let batch = Pair::from_concatenated(&relative)?;

        let output = ipo.forward(batch);
        if step % 5 == 0 {
            // 1/(4τ²) = 1 at the start: the policy is the reference.
            println!(
                "step {step:2}  loss {:.4}",
                output.mean().into_scalar::<f32>()
            );
        }
        let grads = GradientsParams::from_grads(output.mean().backward(), &policy);
        policy = optimizer.step(0.01, policy, grads);
    }
    Ok(())
}
