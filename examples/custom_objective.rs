//! Your own objective: implement one method, and everything else works with it.
//!
//! Here the squared hinge of the generalised preference optimisation family (2402.05749),
//! `((1 − h)⁺)²`. The SFT term, the reductions and the metrics come for free. Then it takes a
//! column of its own: a confidence per pair, which multiplies h.
//!
//! ```text
//! cargo run --example custom_objective
//! ```

mod toy;

use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use burn_preference::modifier::SftTarget;
use burn_preference::training::metrics::Observe;
use burn_preference::{
    Batch, BatchMetrics, Column, DpoLossConfig, Error, Frozen, LossOutput, Mixture, Objective,
    Pair, ReferencedPair, SequenceLogProbs, SftTerm, WithoutColumn,
};
use toy::Bigram;

#[derive(Debug, Clone)]
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

/// A batch with how sure the annotator was of each pair, in [0, 1].
#[derive(Debug, Clone)]
struct WithConfidence<B> {
    batch: B,
    confidence: Tensor<1>,
}

impl<B: Batch> Batch for WithConfidence<B> {
    type Rewards = B::Rewards;

    fn len(&self) -> usize {
        self.batch.len()
    }

    fn device(&self) -> Device {
        self.batch.device()
    }
}

/// With this, `WithoutColumn` serves objectives that have no use for it.
impl<B: Batch> Column for WithConfidence<B> {
    type Inner = B;

    fn into_batch(self) -> B {
        self.batch
    }
}

/// With this, `BatchMetrics::observe` takes it: what the pairs say, and one value more.
impl<B: Observe> Observe for WithConfidence<B> {
    fn observe(&self, rewards: &B::Rewards, metrics: BatchMetrics) -> BatchMetrics {
        let metrics = self.batch.observe(rewards, metrics);
        metrics.with("confidence", self.confidence.clone())
    }
}

/// With this, `SftTerm` knows which completion to imitate.
impl<B: SftTarget> SftTarget for WithConfidence<B> {
    fn sft_target(&self) -> &SequenceLogProbs {
        self.batch.sft_target()
    }
}

impl Objective<WithConfidence<ReferencedPair>> for SquaredHinge {
    fn forward(&self, batch: WithConfidence<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = batch.batch.map_ref(|y| y.log_ratio() * self.beta);
        let h = rewards.margin() * batch.confidence;
        LossOutput::new(relu(-h + 1).square(), rewards)
    }
}

fn main() -> Result<(), Error> {
    let device = Device::default();
    let policy = Bigram::new(&device);
    let reference = Frozen::new(&policy);
    let pairs = toy::pairs(&device);
    let ours = pairs.tokens.log_probs(&policy, Bigram::hidden)?;
    let theirs = pairs.tokens.reference(&reference, Bigram::hidden)?;
    let batch = pairs.pair(ours.relative_to(theirs)?)?;

    let hinge = SquaredHinge { beta: 0.1 };
    let objective = SftTerm::new(hinge.clone(), 0.2)?;
    let output = objective.forward(batch.clone());
    // At policy = reference h is 0: (1 − 0)² plus the SFT term.
    print!("{}", BatchMetrics::observe(&batch, &output).read()?);

    let batch = WithConfidence {
        batch,
        confidence: Tensor::from_floats([1.0, 0.5], &device),
    };
    let both = Mixture::new(1.0, hinge)?;
    let both = both.and(1.0, WithoutColumn(DpoLossConfig::new().init()))?;
    let output = SftTerm::new(both, 0.2)?.forward(batch.clone());
    println!("\nwith a column, and DPO without it:"); // a loss of 1 + ln 2 plus the SFT term
    print!("{}", BatchMetrics::observe(&batch, &output).read()?);
    Ok(())
}
