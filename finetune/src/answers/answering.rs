//! What a model answers.

use rand_chacha::ChaCha8Rng;

use crate::chat::Failure;
use crate::decoder::Decoder;
use crate::sampling::{Sampling, draw_answers};

impl Sampling {
    /// With as many words as the model's window leaves behind a prompt.
    ///
    /// # Errors
    ///
    /// There is no prompt, or it is longer than the window.
    pub fn within(self, model: &Decoder, prompt: usize) -> Result<Self, Failure> {
        let window = model.config().window.unwrap_or(usize::MAX);
        if !(1..=window).contains(&prompt) {
            return Err(format!("a prompt of {prompt} tokens, and a window of {window}").into());
        }
        // The last word is drawn and not read again.
        let left = (window - prompt).saturating_add(1);
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
    let prompts = vec![prompt.to_vec(); count];
    let device = model.embedding.weight.device();
    let mut cache = model.cache();
    draw_answers(&prompts, ends, sampling, &device, rng, |words| {
        model.next(words, &mut cache)
    })
}
