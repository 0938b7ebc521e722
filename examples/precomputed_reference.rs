//! The reference's log-probs computed once and kept on disk: every epoch, and every later run, looks
//! them up, and the reference model is gone before training starts.
//!
//! ```text
//! cargo run --example precomputed_reference
//! ```

mod toy;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use burn_preference::reference::cache::{CacheError, Fingerprint, ReferenceCache};
use burn_preference::tokens::{Padding, TokenBatch};
use burn_preference::{Error, Frozen, IpoLossConfig, Objective};
use toy::{Bigram, PAD};

fn main() -> Result<(), Error> {
    let device = Device::default();
    let mut policy = Bigram::new(&device);
    let pairs = toy::pairs(&device);
    let tokens = &pairs.tokens;

    // Once, before training: a second run computes nothing.
    let reference = Frozen::new(&policy);
    let root = tempfile::tempdir().expect("a temporary directory"); // yours stays
    let mut cache = ReferenceCache::open(&root, Fingerprint::of(reference.model())?)?;
    cache.fill::<CacheError>(
        &tokens.sequences,
        16,
        |some| {
            let batch = TokenBatch::new(some.to_vec(), Padding::new(PAD), &device)?;
            Ok(batch.reference(&reference, Bigram::hidden)?)
        },
        |progress| println!("reference: {} of {}", progress.done, progress.total),
    )?;
    drop(reference);

    let ipo = IpoLossConfig::new().with_tau(0.5).init();
    let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).init();
    for step in 0..=20 {
        let relative = tokens
            .log_probs(&policy, Bigram::hidden)?
            .relative_to(tokens.reference(&cache, Bigram::hidden)?)?;
        let output = ipo.forward(pairs.pair(relative)?);
        if step % 5 == 0 {
            // 1/(4τ²) = 1 at the start: the policy is the reference.
            let loss = output.mean().into_scalar::<f32>();
            println!("step {step:2}  loss {loss:.4}");
        }
        let grads = GradientsParams::from_grads(output.mean().backward(), &policy);
        policy = optimizer.step(0.01, policy, grads);
    }
    Ok(())
}
