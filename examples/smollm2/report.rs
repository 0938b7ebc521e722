//! What a model does with pairs that it was not trained on.

use std::error::Error;

use burn::data::dataloader::batcher::Batcher;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_preference::config::PairObjective;
use burn_preference::data::{Collator, Example, Preference};
use burn_preference::log_probs::sequence_kl;
use burn_preference::reference::cache::ReferenceCache;
use burn_preference::tokens::{PackedBatch, Packing};
use burn_preference::{
    BatchMetrics, Frozen, LossOutput, Metrics, Objective, Pair, PolicyPair, ReferencedPair,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::chat::END;
use crate::llama::Llama;
use crate::model::{hidden, hidden_packed};

/// How pairs become rows.
pub struct Layout {
    pub collator: Collator,
    /// Each prompt once; otherwise a row per answer.
    pub packing: Option<Packing>,
    pub device: Device,
}

/// Pairs of a batch.
pub const PAIRS: usize = 2;

pub type Tokens = Example<Vec<u32>, Preference>;
type Output = LossOutput<Pair<Tensor<1>>>;

/// Losses of a batch of pairs, and what they were computed from.
pub fn forward(
    model: &Llama,
    objective: &PairObjective,
    cache: &ReferenceCache,
    pairs: &[Tokens],
    layout: &Layout,
) -> Result<(ReferencedPair, Output), Box<dyn Error>> {
    let device = &layout.device;
    let batch = layout.collator.batch(pairs.to_vec(), device).rows;
    let ours = if let Some(packing) = layout.packing {
        let packed = PackedBatch::new(batch.sequences.clone(), packing, device)?;
        packed.log_probs(model, hidden_packed)?
    } else {
        batch.log_probs(model, hidden)?
    };
    let policy = PolicyPair::from_concatenated(&ours)?;
    let theirs = cache.log_probs(&batch.sequences, device)?;
    let pair = policy
        .clone()
        .relative_to(PolicyPair::from_concatenated(&theirs)?)?;
    let output = match objective {
        PairObjective::Referenced(objective) => objective.forward(pair.clone()),
        PairObjective::ReferenceFree(objective) => objective.forward(policy),
    };
    Ok((pair, output))
}

/// Metrics of `pairs`, and the KL of model and reference per token of the first `of_kl` chosen
/// completions.
pub fn held_out(
    model: &Llama,
    reference: &Frozen<Llama>,
    objective: &PairObjective,
    cache: &ReferenceCache,
    pairs: &[Tokens],
    of_kl: usize,
    layout: &Layout,
) -> Result<Metrics, Box<dyn Error>> {
    let mut metrics = Metrics::default();
    for some in pairs.chunks(PAIRS) {
        let (pair, output) = forward(model, objective, cache, some, layout)?;
        metrics.merge(&BatchMetrics::observe(&pair, &output).read()?);
    }
    for pair in pairs.iter().take(of_kl) {
        let batch = layout
            .collator
            .batch(vec![pair.clone()], &layout.device)
            .rows;
        let chosen = |x: Tensor<2, Int>| x.narrow(0, 0, 1);
        let tokens = chosen(batch.ids);
        let logits = |model: &Llama| model.forward(tokens.clone());
        let mask = batch.completion_mask.narrow(0, 0, 1);
        let kl = sequence_kl(logits(model), logits(reference.model()), mask)?;
        metrics.add(
            "kl per token",
            kl.into_scalar::<f64>(),
            pair.chosen().len() as f64,
        );
    }
    Ok(metrics)
}

pub fn print(name: &str, metrics: &Metrics) {
    let get = |key| metrics.get(key).unwrap_or(f64::NAN);
    println!(
        "| {name} | {:.4} | {:.1}% | {:+.4} | {:+.2} | {:+.2} | {:.5} |",
        get("loss"),
        100.0 * get("rewards/accuracies"),
        get("rewards/margins"),
        get("logps/chosen"),
        get("logps/rejected"),
        get("kl per token"),
    );
}

pub fn print_header() {
    println!(
        "| held out | loss | reward accuracy | margin | ℓ chosen | ℓ rejected | KL(π° ‖ π) a token |"
    );
    println!("|---|---|---|---|---|---|---|");
}

/// An answer of at most `length` tokens at temperature 0.3, the same for the same seed.
pub fn sample(
    model: &Llama,
    prompt: &[u32],
    length: usize,
    seed: u64,
    device: &Device,
) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut cache = vec![None; model.blocks.len()];
    let (mut next, mut start) = (prompt.to_vec(), 0);
    let mut answer = Vec::new();
    while answer.len() < length {
        let ids: Vec<i32> = next.iter().map(|id| id.cast_signed()).collect();
        let ids = TensorData::new(ids, [1, next.len()]);
        let tokens = Tensor::<2, Int>::from_data(ids, device);
        let logits = model.forward_cached(tokens, start, &mut cache);
        start += next.len();
        let last = logits.narrow(1, next.len() - 1, 1).into_data();
        let logits: Vec<f64> = last.iter::<f64>().map(|x| x / 0.3).collect();
        let word = draw(&logits, &mut rng);
        if word == END {
            break;
        }
        answer.push(word);
        next = vec![word];
    }
    answer
}

fn draw(logits: &[f64], rng: &mut impl Rng) -> u32 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
    let mut left = rng.random::<f64>() * powers.iter().sum::<f64>();
    for (word, power) in (0_u32..).zip(&powers) {
        left -= power;
        if left < 0.0 {
            return word;
        }
    }
    END
}
