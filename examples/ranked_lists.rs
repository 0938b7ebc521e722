//! Ranked lists of different length: RRHF without a reference, then Plackett–Luce against one.
//!
//! ```text
//! cargo run --example ranked_lists
//! ```

mod toy;

use burn::data::dataloader::batcher::Batcher;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use burn_preference::data::{Collator, Example, RankedTokens};
use burn_preference::tokens::Padding;
use burn_preference::training::metrics::Observe;
use burn_preference::{
    BatchMetrics, Error, Frozen, LossOutput, Objective, PlackettLuceLossConfig, RrhfLossConfig,
};
use toy::{Bigram, PAD};

fn train<B: Observe<Rewards = Tensor<2>> + Clone>(
    objective: &dyn Objective<B>,
    batch: impl Fn(&Bigram) -> Result<B, Error>,
) -> Result<(), Error> {
    let mut policy = Bigram::new(&Device::default());
    let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).init();
    for step in 0..=20 {
        let lists = batch(&policy)?;
        let output: LossOutput<Tensor<2>> = objective.forward(lists.clone());
        let grads = GradientsParams::from_grads(output.mean().backward(), &policy);
        policy = optimizer.step(0.02, policy, grads);

        if step % 5 == 0 {
            let metrics = BatchMetrics::observe(&lists, &output).read()?;
            let keys = ["loss", "rewards/accuracies", "rewards/top1"];
            let [loss, ordered, top] = keys.map(|key| metrics.get(key).unwrap());
            println!(
                "step {step:2}  loss {loss:.4}  pairs in order {ordered:.2}  best first {top:.2}"
            );
        }
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let device = Device::default();
    // Three candidates, and two: the batch knows which are there.
    let three = vec![vec![1, 2], vec![3, 4, 5], vec![6]];
    let two = vec![vec![5, 4], vec![2, 2, 2]];
    let lists = vec![
        Example::ranked(vec![0], three, vec![0.9, 0.2, 0.5])?,
        Example::ranked(vec![3], two, vec![1.0, 3.0])?,
    ];
    let lists: RankedTokens = Collator::new(Padding::new(PAD)).batch(lists, &device);
    let ours = |policy: &Bigram| lists.tokens.log_probs(policy, Bigram::hidden);

    println!("RRHF");
    let rrhf = RrhfLossConfig::new().with_sft_weight(0.5).init();
    train(&rrhf, |policy| Ok(lists.ranked(ours(policy)?)?))?;

    println!("Plackett–Luce DPO");
    let reference = Frozen::new(&Bigram::new(&device));
    let theirs = lists.tokens.reference(&reference, Bigram::hidden)?;
    let plackett_luce = PlackettLuceLossConfig::new().with_beta(0.5).init();
    train(&plackett_luce, |policy| {
        Ok(lists.ranked(ours(policy)?.relative_to(theirs.clone())?)?)
    })
}
