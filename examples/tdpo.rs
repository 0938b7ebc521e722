//! TDPO₂ from hidden states: the KL between reference and policy over the whole vocabulary, at
//! every token, without the logits of either in memory.
//!
//! ```text
//! cargo run --example tdpo
//! ```

mod toy;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use burn_preference::log_probs::sequence_kl_from_hidden;
use burn_preference::{
    BatchMetrics, Error, Frozen, Objective, Pair, TdpoLossConfig, TokenLogProbs, WithSequenceKl,
};
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
    let tdpo = TdpoLossConfig::new().with_beta(0.5).init();
    let mut optimizer = AdamWConfig::new().init();

    for step in 0..=20 {
        let Rows { tokens, mask } = rows.clone();
        let (ours, our_head) = policy.hidden(tokens.clone());
        let (theirs, their_head) = reference.model().hidden(tokens.clone());
        let kl = sequence_kl_from_hidden(
            (ours.clone(), &our_head),
            (theirs.clone(), &their_head),
            mask.clone(),
        )?;
        let of =
            |hidden, head| TokenLogProbs::from_hidden(hidden, head, tokens.clone(), mask.clone());
        let ours = of(ours, &our_head)?.sequence();
        let relative = ours.relative_to(of(theirs, &their_head)?.sequence())?;
        let batch = Pair::from_concatenated(&relative)?;
        let batch = WithSequenceKl::new(batch, Pair::from_concatenated(&kl)?)?;

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
