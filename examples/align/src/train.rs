//! The two training loops: fitting the base model, and aligning a copy of it.

use burn::grad_clipping::GradientClippingConfig;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn_preference::{
    Demonstrations, Frozen, InvalidInput, NllNormalization, Objective, SftLossConfig,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::llama::{Llama, LlamaConfig};
use crate::objective::Loss;
use crate::report::{Held, Point, Progress};
use crate::rollout::{Batches, Batching, List};
use crate::task::{self, Sorting};

/// How long everything runs.
#[derive(Debug, Clone)]
pub struct Plan {
    pub base_steps: usize,
    /// Of the reward model, where one judges.
    pub judge_steps: usize,
    pub prompts: usize,
    pub held_out: usize,
    pub candidates: usize,
    pub batch: usize,
    pub steps: usize,
    pub learning_rate: f64,
    /// Steps between two points of the curves.
    pub every: usize,
}

/// AdamW with the ε of PyTorch: Burn's 1e-5 shortens the steps of small gradients.
pub fn optimizer() -> ModuleOptimizer {
    let clipping = GradientClippingConfig::Norm(1.0);
    AdamWConfig::new()
        .with_epsilon(1e-8)
        .with_weight_decay(0.0)
        .with_grad_clipping(Some(clipping))
        .init()
}

/// Fits a small model to noisy demonstrations of sorting: it will be right most of the time.
pub fn base_model(plan: &Plan, seed: u64, batching: &Batching) -> Result<Llama, InvalidInput> {
    let config = LlamaConfig {
        dim: 64,
        hidden: 128,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        vocab: task::VOCAB,
        max_time: 16,
        tied: false,
        rope_base: 1e4,
    };
    batching.device.seed(seed);
    let mut model = config.init(&batching.device.clone().autodiff());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut optimizer = optimizer();
    // All answers have one length: a mean per sequence is one per token.
    let sft = SftLossConfig::new()
        .with_normalization(NllNormalization::Sequence)
        .init();
    let progress = Progress::new("base model", plan.base_steps);
    for step in 0..plan.base_steps {
        let examples: Vec<_> = (0..64)
            .map(|_| {
                let prompt = Sorting::prompt(&mut rng);
                let completion = Sorting::demonstration(&prompt, 0.25, &mut rng);
                (prompt, completion)
            })
            .collect();
        let rows = batching.tokens(examples.iter().map(|(p, c)| (&p[..], &c[..])))?;
        let demonstrations = Demonstrations::new(rows.token_log_probs(&model)?);
        let nll = sft.forward(demonstrations).mean();
        let grads = GradientsParams::from_grads(nll.backward(), &model);
        // Down to zero at the end, so that the last batches do not show in the result.
        let left = 1.0 - step as f64 / plan.base_steps as f64;
        model = optimizer.step(4e-3 * left, model, grads);
        progress.step(|| format!("nll {:.3}", nll.into_scalar::<f32>()));
    }
    Ok(model)
}

/// A policy, and its curve on the held-out prompts, up to the last step.
pub type Aligned = (Llama, Vec<Point>);

/// Aligns a copy of `base` on the training lists.
pub fn align(
    loss: Loss,
    base: &Llama,
    train: &[List],
    held: &Held,
    plan: &Plan,
    seed: u64,
    batching: &Batching,
) -> Result<Aligned, InvalidInput> {
    let reference = Frozen::new(base);
    let mut policy = base.clone().train();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut optimizer = optimizer();
    let mut batches = Batches::new(train, plan.batch);
    let mut curve = vec![held.measure(0, &policy)?];
    let progress = Progress::new(loss.name(), plan.steps);
    for step in 1..=plan.steps {
        let lists = batches.next(&mut rng);
        let (loss, metrics) = loss.step(&policy, &reference, lists, batching)?;
        let grads = GradientsParams::from_grads(loss.backward(), &policy);
        let warmup = (step as f64 / 10.0).min(1.0);
        policy = optimizer.step(plan.learning_rate * warmup, policy, grads);

        progress.step(|| {
            let metrics = metrics.read().expect("the device works");
            let loss = metrics.get("loss").unwrap_or(f64::NAN);
            let accuracy = metrics.get("rewards/accuracies");
            let accuracy = accuracy.map_or(String::new(), |a| format!("  accuracy {a:.2}"));
            format!("loss {loss:.3}{accuracy}")
        });
        if step.is_multiple_of(plan.every) || step == plan.steps {
            curve.push(held.measure(step, &policy)?);
        }
    }
    Ok((policy, curve))
}
