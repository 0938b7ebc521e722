//! The smallest complete loop: a bigram model learns to prefer one continuation over another.
//!
//! ```text
//! cargo run --example dpo_toy
//! ```

mod toy;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use burn_preference::{BatchMetrics, DpoLossConfig, Error, Frozen, Objective, Pair};
use toy::{Bigram, Rows};

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
