//! Ranked lists of different length: RRHF without a reference, then Plackett–Luce against one.
//!
//! ```text
//! cargo run --example ranked_lists
//! ```

mod toy;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Bool, Device, Tensor};
use burn_preference::metrics::Observe;
use burn_preference::{
    BatchMetrics, Error, Frozen, LossOutput, Objective, PlackettLuceLossConfig, Ranked,
    RrhfLossConfig, SequenceLogProbs,
};
use toy::{Bigram, Rows};

/// Three candidates for prompt 0, two for prompt 3; the last row is padding of the list.
const ROWS: [[i32; 4]; 6] = [
    [0, 1, 2, 7],
    [0, 3, 4, 5],
    [0, 6, 7, 7],
    [3, 5, 4, 7],
    [3, 2, 2, 2],
    [7, 7, 7, 7],
];

/// The policy's log-probabilities with scores and the mask of candidates that are there.
fn lists(policy: &Bigram, rows: &Rows) -> Result<Ranked<SequenceLogProbs<2>>, Error> {
    let device = Device::default();
    let scores = Tensor::<2>::from_floats([[0.9, 0.2, 0.5], [1.0, 3.0, 0.0]], &device);
    let present = [[true, true, true], [true, true, false]];
    let present = Tensor::<2, Bool>::from_bool(present, &device);
    let candidates = policy.log_probs(rows)?.split_candidates(3)?;
    Ok(Ranked::new(candidates, scores, present)?)
}

fn train<B: Observe<Rewards = Tensor<2>> + Clone>(
    objective: &dyn Objective<B>,
    batch: impl Fn(&Bigram) -> Result<B, Error>,
) -> Result<(), Error> {
    let mut policy = Bigram::new(&Device::default());
    let mut optimizer = AdamWConfig::new().init();
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
    let rows = Rows::new(ROWS, &device);

    println!("RRHF");
    let rrhf = RrhfLossConfig::new().with_sft_weight(0.5).init();
    train(&rrhf, |policy| lists(policy, &rows))?;

    println!("Plackett–Luce DPO");
    let reference = Frozen::new(&Bigram::new(&device));
    let theirs = reference.log_probs(rows.tokens.clone(), rows.mask.clone(), Bigram::forward)?;
    let theirs = theirs.sequence().split_candidates(3)?;
    let plackett_luce = PlackettLuceLossConfig::new().with_beta(0.5).init();
    train(&plackett_luce, |policy| {
        Ok(lists(policy, &rows)?.relative_to(theirs.clone())?)
    })
}
