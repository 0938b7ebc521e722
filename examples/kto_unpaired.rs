//! Thumbs up and down instead of pairs: KTO, with its reference point z₀ from mismatched
//! completions and class weights for unbalanced labels.
//!
//! ```text
//! cargo run --example kto_unpaired
//! ```

mod toy;

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Bool, Device, Tensor};
use burn_preference::{
    BatchMetrics, Error, Frozen, InvalidInput, KlEstimate, KtoLossConfig, Objective,
    RelativeLogProbs, Unpaired, WithBaseline,
};
use toy::{Bigram, Rows};

fn relative(
    policy: &Bigram,
    reference: &Frozen<Bigram>,
    rows: &Rows,
) -> Result<RelativeLogProbs, InvalidInput> {
    let theirs = reference.log_probs(rows.tokens.clone(), rows.mask.clone(), Bigram::forward)?;
    policy.log_probs(rows)?.relative_to(theirs.sequence())
}

fn main() -> Result<(), Error> {
    let device = Device::default();
    let mut policy = Bigram::new(&device);
    let reference = Frozen::new(&policy);

    let rows = Rows::new(
        [[0, 1, 2, 7], [3, 3, 4, 5], [1, 5, 4, 7], [2, 2, 2, 2]],
        &device,
    );
    let desirable = Tensor::<1, Bool>::from_bool([true, false, false, false], &device);
    // Each prompt with the completion of the next row.
    let mismatched = Rows::new(
        [[0, 3, 4, 5], [3, 5, 4, 7], [1, 2, 2, 2], [2, 1, 2, 7]],
        &device,
    );

    // One thumb up, three down: the weights bring λ_D·n_D/(λ_U·n_U) where the paper wants it.
    let config = KtoLossConfig::new().with_beta(0.5);
    println!("unweighted: {}", config.class_ratio(1, 3));
    let config = config.with_desirable_weight(3.0);
    println!("weighted: {}", config.class_ratio(1, 3));
    let kto = config.init();
    let mut optimizer = AdamWConfig::new().init();

    for step in 0..=20 {
        // z₀ is a number, not a path for gradients: the policy without autodiff computes it.
        let z0 = relative(&policy.valid(), &reference, &mismatched)?;
        let z0 = KlEstimate::from_mismatched(&z0).baseline();
        let batch = Unpaired::new(relative(&policy, &reference, &rows)?, desirable.clone())?;
        let batch = WithBaseline::new(batch, z0)?;

        let output = kto.forward(batch.clone());
        let grads = GradientsParams::from_grads(output.mean().backward(), &policy);
        policy = optimizer.step(0.02, policy, grads);

        if step % 5 == 0 {
            let metrics = BatchMetrics::observe(&batch, &output).read()?;
            let keys = ["loss", "rewards/chosen", "rewards/rejected", "kl"];
            let [loss, up, down, kl] = keys.map(|key| metrics.get(key).unwrap());
            println!("step {step:2}  loss {loss:.4}  up {up:+.3}  down {down:+.3}  kl {kl:.3}");
        }
    }
    Ok(())
}
