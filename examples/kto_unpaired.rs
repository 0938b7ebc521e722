//! Unpaired completions instead of pairs: KTO, with its reference point z₀ from mismatched
//! completions and class weights for unbalanced labels.
//!
//! ```text
//! cargo run --example kto_unpaired
//! ```

mod toy;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::{Dataset, InMemDataset};
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use burn_preference::data::{Collator, Example, Mismatched, Truncation, UnpairedTokens};
use burn_preference::tokens::{Padding, TokenBatch};
use burn_preference::{
    BatchMetrics, Error, Frozen, InvalidInput, KlEstimate, KtoLossConfig, Objective,
    RelativeLogProbs, WithBaseline,
};
use toy::{Bigram, PAD};

fn relative(
    policy: &Bigram,
    reference: &Frozen<Bigram>,
    tokens: &TokenBatch,
) -> Result<RelativeLogProbs, InvalidInput> {
    tokens
        .log_probs(policy, Bigram::hidden)?
        .relative_to(tokens.reference(reference, Bigram::hidden)?)
}

fn main() -> Result<(), Error> {
    let device = Device::default();
    let mut policy = Bigram::new(&device);
    let reference = Frozen::new(&policy);

    let examples = InMemDataset::new(vec![
        Example::unpaired(vec![0], vec![1, 2], true),
        Example::unpaired(vec![3], vec![3, 4, 5], false),
        Example::unpaired(vec![1], vec![5, 4], false),
        Example::unpaired(vec![2], vec![2, 2, 2], false),
    ]);
    // Each prompt also with the completion of the next example.
    let examples = Mismatched::new(examples, Truncation::Drop { max_length: 4 });
    let examples = examples.iter().collect::<Result<_, _>>()?;
    let batch: UnpairedTokens<_> = Collator::new(Padding::new(PAD)).batch(examples, &device);

    // One is desirable, three are not: the weights bring λ_D·n_D/(λ_U·n_U) where the paper wants it.
    let config = KtoLossConfig::new().with_beta(0.5);
    println!("unweighted: {}", config.class_ratio(1, 3));
    let config = config.with_desirable_weight(3.0);
    println!("weighted: {}", config.class_ratio(1, 3));
    let kto = config.init();
    let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).init();

    for step in 0..=20 {
        // z₀ is a number, not a path for gradients: the policy without autodiff computes it.
        let z0 = relative(&policy.valid(), &reference, batch.mismatched())?;
        let z0 = KlEstimate::from_mismatched(&z0).baseline();
        let unpaired = batch.unpaired(relative(&policy, &reference, &batch.tokens)?)?;
        let unpaired = WithBaseline::new(unpaired, z0)?;

        let output = kto.forward(unpaired.clone());
        let grads = GradientsParams::from_grads(output.mean().backward(), &policy);
        policy = optimizer.step(0.02, policy, grads);

        if step % 5 == 0 {
            let metrics = BatchMetrics::observe(&unpaired, &output).read()?;
            let keys = ["loss", "rewards/chosen", "rewards/rejected", "kl"];
            let [loss, good, bad, kl] = keys.map(|key| metrics.get(key).unwrap());
            println!("step {step:2}  loss {loss:.4}  good {good:+.3}  bad {bad:+.3}  kl {kl:.3}");
        }
    }
    Ok(())
}
