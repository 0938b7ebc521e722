//! Your own objective: implement one method, and everything else works with it.
//!
//! Here the squared hinge of the generalised preference optimisation family (2402.05749),
//! `((1 − h)⁺)²`. The SFT term, the reductions and the metrics come for free.
//!
//! ```text
//! cargo run --example custom_objective
//! ```

mod toy;

use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use burn_preference::{
    BatchMetrics, Frozen, InvalidInput, LossOutput, Objective, Pair, PolicyPair, ReferencedPair,
    SftTerm,
};
use toy::{Bigram, Rows};

struct SquaredHinge {
    beta: f64,
}

impl Objective<ReferencedPair> for SquaredHinge {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = batch.map_ref(|y| y.log_ratio() * self.beta);
        let losses = relu(-rewards.margin() + 1).square();
        LossOutput::new(losses, rewards)
    }
}

fn main() -> Result<(), InvalidInput> {
    let device = Device::default();
    let policy = Bigram::new(&device);
    let rows = Rows::new(
        [[0, 1, 2, 7], [0, 3, 4, 5], [0, 5, 4, 7], [0, 2, 2, 2]],
        &device,
    );
    let reference = Frozen::new(&policy)
        .log_probs(rows.tokens.clone(), rows.mask.clone(), Bigram::forward)?
        .sequence();
    let reference = PolicyPair::from_concatenated(&reference)?;
    let batch = PolicyPair::from_concatenated(&policy.log_probs(&rows)?)?.relative_to(reference)?;

    let objective = SftTerm::new(SquaredHinge { beta: 0.1 }, 0.2);
    let output = objective.forward(batch.clone());
    // At policy = reference h is 0: (1 − 0)² plus the SFT term.
    for (key, value) in BatchMetrics::observe(&batch, &output).read().iter() {
        println!("{key:20} {value:.4}");
    }
    Ok(())
}
