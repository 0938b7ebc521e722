//! TDPO₂ from hidden states: the KL between reference and policy over the whole vocabulary, at
//! every token, without the logits of either in memory.
//!
//! ```text
//! cargo run --example tdpo
//! ```

mod toy;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use burn_preference::log_probs::Discrepancy;
use burn_preference::{BatchMetrics, Error, Frozen, Objective, TdpoLossConfig, WithSequenceKl};
use toy::Bigram;

fn main() -> Result<(), Error> {
    let device = Device::default();
    let mut policy = Bigram::new(&device);
    let reference = Frozen::new(&policy);
    let pairs = toy::pairs(&device);
    let rows = &pairs.tokens;
    let tdpo = TdpoLossConfig::new().with_beta(0.5).init();
    let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).init();

    for step in 0..=20 {
        // Each model runs once: its hidden states serve the KL and the log-probabilities.
        let ours = policy.hidden(rows.ids.clone());
        let theirs = reference.model().hidden(rows.ids.clone());
        let kl = rows.discrepancy(Discrepancy::ForwardKl, ours.clone(), theirs.clone())?;
        let kl = kl.sums();
        let ours = rows.token_log_probs(ours)?.sequence();
        let theirs = rows.token_log_probs(theirs)?.sequence();
        let relative = ours.relative_to(theirs)?;
        let batch = WithSequenceKl::new(pairs.pair(relative)?, pairs.pair(kl.clone())?)?;

        let output = tdpo.forward(batch.clone());
        let grads = GradientsParams::from_grads(output.mean().backward(), &policy);
        policy = optimizer.step(0.02, policy, grads);

        if step % 5 == 0 {
            let metrics = BatchMetrics::observe(&batch, &output)
                .with("sequence_kl", kl)
                .read()?;
            let keys = ["loss", "rewards/margins", "sequence_kl"];
            let [loss, margin, kl] = keys.map(|key| metrics.get(key).unwrap());
            println!("step {step:2}  loss {loss:.4}  margin {margin:.3}  kl {kl:.4}");
        }
    }
    Ok(())
}
