//! Answers drawn word by word, and the best and the worst of them: what on-policy data is made of.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Temperature and length of answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The temperature, which logits are divided by; 0 takes the likeliest word.
    pub temperature: f64,
    /// Largest number of words of an answer.
    pub max_tokens: usize,
}

/// Draws an answer to each prompt, with the word that ends it unless it is cut. All prompts have one
/// length; `next` gives logits `[prompts, vocab]` of what follows the words that it has got so far.
///
/// # Panics
///
/// The device fails to compute logits.
pub fn draw_answers(
    prompts: &[Vec<u32>],
    ends: &[u32],
    sampling: Sampling,
    device: &Device,
    rng: &mut ChaCha8Rng,
    mut next: impl FnMut(Tensor<2, Int>) -> Tensor<2>,
) -> Vec<Vec<u32>> {
    let mut answers: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    let done = |answer: &Vec<u32>| {
        let ended = answer.last().is_some_and(|word| ends.contains(word));
        ended || answer.len() >= sampling.max_tokens
    };
    let mut words = prompts.concat();
    while !answers.iter().all(done) {
        let shape = [prompts.len(), words.len() / prompts.len()];
        let ids: Vec<i32> = words.iter().map(|id| id.cast_signed()).collect();
        let logits = next(Tensor::from_data(TensorData::new(ids, shape), device));
        let [_, vocab] = logits.dims();
        let logits: Vec<f32> = logits.into_data().iter().collect();
        words.clear();
        for (answer, logits) in answers.iter_mut().zip(logits.chunks(vocab)) {
            // Always draw, so that the end of one answer does not change another.
            let word = draw(logits, sampling.temperature, rng.random());
            if !done(answer) {
                answer.push(word);
            }
            words.push(word);
        }
    }
    answers
}

/// The word at quantile `u` of softmax(logits / temperature).
fn draw(logits: &[f32], temperature: f64, u: f64) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| match temperature {
        0.0 => f64::from(u8::from(logit == largest)),
        temperature => (f64::from(logit - largest) / temperature).exp(),
    };
    let weights: Vec<f64> = logits.iter().map(|logit| weight(*logit)).collect();
    let mut rest = u * weights.iter().sum::<f64>();
    let mut last = 0;
    for (word, weight) in (0_u32..).zip(weights) {
        // A word of no weight is never drawn, however the sum was rounded.
        if weight > 0.0 {
            last = word;
            rest -= weight;
            if rest < 0.0 {
                break;
            }
        }
    }
    last
}

/// Returns the indices of the best and the worst score, unless all are equal.
pub fn best_and_worst(scores: &[f64]) -> Option<(usize, usize)> {
    let by_score = |&a: &usize, &b: &usize| scores[a].total_cmp(&scores[b]);
    let all = 0..scores.len();
    let (best, worst) = (all.clone().max_by(by_score)?, all.min_by(by_score)?);
    (scores[best] > scores[worst]).then_some((best, worst))
}
