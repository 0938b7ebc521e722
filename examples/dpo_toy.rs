//! The smallest complete loop: a bigram model learns to prefer one continuation over another.
//!
//! ```text
//! cargo run --example dpo_toy
//! ```

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Bool, Device, Int, Tensor};
use burn_preference::{
    BatchMetrics, DpoLossConfig, Frozen, InvalidInput, Objective, PolicyPair, TokenLogProbs,
};

#[derive(Module, Debug)]
struct Bigram {
    embedding: Embedding,
    head: Linear,
}

impl Bigram {
    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.head.forward(self.embedding.forward(tokens))
    }
}

fn main() -> Result<(), InvalidInput> {
    let device = Device::default();
    device.seed(1);
    let training = device.clone().autodiff();
    let mut model = Bigram {
        embedding: EmbeddingConfig::new(8, 16).init(&training),
        head: LinearConfig::new(16, 8).init(&training),
    };

    // Two pairs in one forward: chosen rows first. Token 0 is the prompt, 7 is padding.
    let tokens = [[0, 1, 2, 7], [0, 3, 4, 5], [0, 5, 4, 7], [0, 2, 2, 2]];
    let tokens = Tensor::<2, Int>::from_ints(tokens, &device);
    let completion = [
        [false, true, true, false],
        [false, true, true, true],
        [false, true, true, false],
        [false, true, true, true],
    ];
    let mask = Tensor::<2, Bool>::from_bool(completion, &device);

    // The reference never changes, so its log-probs are computed once.
    let reference = Frozen::new(&model)
        .log_probs(tokens.clone(), mask.clone(), Bigram::forward)?
        .sequence();
    let reference = PolicyPair::from_concatenated(&reference)?;
    let dpo = DpoLossConfig::new().with_beta(0.5).init();
    let mut optimizer = AdamWConfig::new().init();

    for step in 0..=20 {
        let logits = model.forward(tokens.clone());
        let policy = TokenLogProbs::from_logits(logits, tokens.clone(), mask.clone())?.sequence();
        let pair = PolicyPair::from_concatenated(&policy)?.relative_to(reference.clone())?;
        let output = dpo.forward(pair.clone());
        if step % 5 == 0 {
            let metrics = BatchMetrics::observe(&pair, &output).read();
            println!(
                "step {step:2}  loss {:.4}  margin {:.3}",
                metrics.get("loss").unwrap_or_default(),
                metrics.get("rewards/margins").unwrap_or_default(),
            );
        }
        let grads = GradientsParams::from_grads(output.mean().backward(), &model);
        model = optimizer.step(0.02, model, grads);
    }
    Ok(())
}
