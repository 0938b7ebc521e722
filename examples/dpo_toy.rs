//! The smallest complete loop: a bigram model learns to prefer one continuation over another.
//!
//! ```text
//! cargo run --example dpo_toy
//! ```

mod toy;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use burn_preference::training::first_batch::FirstBatch;
use burn_preference::{BatchMetrics, DpoLossConfig, Error, Frozen, Objective};
use toy::{Bigram, VOCAB};

fn main() -> Result<(), Error> {
    let device = Device::default();
    let mut policy = Bigram::new(&device);
    let reference = Frozen::new(&policy);

    let pairs = toy::pairs(&device);
    let rows = &pairs.tokens;
    let dpo = DpoLossConfig::new().with_beta(0.5).init();

    // Once, before training: masks, padding, dropout, a reference that is not the policy's start.
    let check = FirstBatch::new(rows)?.pairs()?.with_vocab(VOCAB);
    let check = check.with_parameters_of(&policy);
    let findings = check.check_against(
        |rows| rows.log_probs(&policy, Bigram::hidden),
        |rows| rows.log_probs(reference.model(), Bigram::hidden),
        |relative| Ok(dpo.forward(pairs.pair(relative)?).losses()),
    )?;
    print!("{findings}");

    // As PyTorch and TRL have it: Burn's ε of 1e-5 shortens the steps of small gradients.
    let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).init();

    for step in 0..=20 {
        let relative = rows
            .log_probs(&policy, Bigram::hidden)?
            .relative_to(rows.reference(&reference, Bigram::hidden)?)?;
        let batch = pairs.pair(relative)?;

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
