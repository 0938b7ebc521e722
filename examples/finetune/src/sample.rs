//! Answers of a model, drawn word by word.

use burn::tensor::{Int, Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::chat::Failure;
use crate::decoder::Decoder;

/// How answers are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest word.
    pub temperature: f64,
    /// Words of an answer, at most.
    pub max_tokens: usize,
}

impl Sampling {
    /// With as many words as the model's window leaves behind a prompt.
    ///
    /// # Errors
    ///
    /// The prompt alone is longer.
    pub fn within(self, model: &Decoder, prompt: usize) -> Result<Self, Failure> {
        let window = model.config().window.unwrap_or(usize::MAX);
        // The last word is drawn and not read again.
        let left = window.saturating_add(1).saturating_sub(prompt);
        if prompt == 0 || left < 1 {
            return Err(format!("a prompt of {prompt} tokens, and a window of {window}").into());
        }
        Ok(Self {
            max_tokens: self.max_tokens.min(left),
            ..self
        })
    }
}

/// `count` answers to one prompt, all at once; each with the word that ends it, unless it is cut.
pub fn sample(
    model: &Decoder,
    prompt: &[u32],
    count: usize,
    ends: &[u32],
    sampling: Sampling,
    rng: &mut ChaCha8Rng,
) -> Vec<Vec<u32>> {
    let mut cache = model.cache();
    let device = model.embedding.weight.device();
    let mut answers = vec![Vec::new(); count];
    let done = |answer: &Vec<u32>| {
        let ended = answer.last().is_some_and(|word| ends.contains(word));
        ended || answer.len() >= sampling.max_tokens
    };
    let mut words: Vec<u32> = prompt.repeat(count);
    while !answers.iter().all(done) {
        let shape = [count, words.len() / count];
        let ids: Vec<i32> = words.iter().map(|id| id.cast_signed()).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device);
        let logits = model.next(ids, &mut cache);
        let [_, vocab] = logits.dims();
        let logits: Vec<f64> = logits.into_data().iter().collect();
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
fn draw(logits: &[f64], temperature: f64, u: f64) -> u32 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |logit: f64| match temperature {
        0.0 => f64::from(logit == largest),
        temperature => ((logit - largest) / temperature).exp(),
    };
    let mut rest = u * logits.iter().map(|x| weight(*x)).sum::<f64>();
    let mut last = 0;
    for (word, logit) in (0_u32..).zip(logits) {
        let weight = weight(*logit);
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
