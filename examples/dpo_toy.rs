//! The smallest complete loop: a bigram model learns to prefer one continuation over another.
//!
//! ```text
//! cargo run --example dpo_toy
//! ```

mod toy;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use burn_preference::first_batch::FirstBatch;
use burn_preference::{BatchMetrics, DpoLossConfig, Error, Frozen, Objective, Pair};
use toy::{Bigram, PAD, Rows, VOCAB};

fn main() -> Result<(), Error> {
    let device = Device::default();
    let mut policy = Bigram::new(&device);
    let reference = Frozen::new(&policy);

    // Two pairs in one forward: chosen rows first.
    let rows = Rows::new(
        [[0, 1, 2, 7], [0, 3, 4, 5], [0, 5, 4, 7], [0, 2, 2, 2]],
        &device,
    );
    let dpo = DpoLossConfig::new().with_beta(0.5).init();

    // Once, before training: masks, padding, dropout, a reference that is not the policy's start.
    let padding = rows.tokens.clone().equal_elem(PAD);
    let check = FirstBatch::new(rows.tokens.clone(), rows.mask.clone(), padding)?;
    let findings = check.pairs()?.with_vocab(VOCAB).check_against(
        |rows| policy.log_probs(&Rows::from(rows)),
        |rows| {
            let (tokens, mask) = (rows.ids.clone(), rows.completion_mask.clone());
            let theirs = reference.log_probs(tokens, mask, Bigram::forward);
            theirs.map(|y| y.sequence())
        },
        |y| Ok(dpo.forward(Pair::from_concatenated(&y)?).losses()),
    )?;
    print!("{findings}");

    let mut optimizer = AdamWConfig::new().init();

    for step in 0..=20 {
        let theirs =
            reference.log_probs(rows.tokens.clone(), rows.mask.clone(), Bigram::forward)?;
        let relative = policy.log_probs(&rows)?.relative_to(theirs.sequence())?;
        let batch = Pair::from_concatenated(&relative)?;

        let output = dpo.forward(batch.clone());
        let grads = GradientsParams::from_grads(output.mean().backward(), &policy);
        policy = optimizer.step(0.02, policy, grads);

        if step % 5 == 0 {
            let metrics = BatchMetrics::observe(&batch, &output).read()?;
            let [loss, margin] = ["loss", "rewards/margins"].map(|key| metrics.get(key).unwrap());
            println!("step {step:2}  loss {loss:.4}  margin {margin:.3}");
        }
    }
    Ok(())
}
