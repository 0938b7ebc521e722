//! Answers of a model to prompts, and pairs of them.

use burn_preference::data::{Message, Text};
use burn_preference::tokens::Sequence;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::model::Decoder;
use crate::sampling::{Sampling, best_and_worst, draw_answers};
use crate::text::Chat;

/// An answer of a model to a prompt.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The prompt, as the file has it.
    pub prompt: Text,
    /// The answer's text.
    pub text: String,
    /// Prompt and answer as token ids.
    pub ids: Sequence,
}

impl Answer {
    /// The line that a judge reads.
    pub fn to_json(&self) -> Value {
        json!({"prompt": self.prompt, "completion": self.text})
    }
}

/// Options of answers, and the tokenizer that they are made with.
pub struct Answering<'a> {
    /// The tokenizer and the template.
    pub chat: &'a Chat,
    /// Temperature and length.
    pub sampling: Sampling,
    /// Largest number of tokens of a prompt that is answered.
    pub max_prompt: usize,
}

impl Answering<'_> {
    /// Whether a prompt is short enough to be answered whole.
    ///
    /// # Errors
    ///
    /// The prompt cannot be tokenized.
    pub fn fits(&self, prompt: &Text) -> Result<bool, Failure> {
        Ok(self.chat.prompt(prompt)?.len() <= self.max_prompt)
    }

    /// Draws `count` answers to one prompt, all at once; each has the word that ends it, unless it is
    /// cut.
    ///
    /// # Errors
    ///
    /// The prompt cannot be tokenized, has no token, or is longer than the model's window or than
    /// it may be.
    pub fn answer(
        &self,
        model: &Decoder,
        prompt: &Text,
        count: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Answer>, Failure> {
        let ids = self.chat.prompt(prompt)?;
        if ids.len() > self.max_prompt {
            let (length, most) = (ids.len(), self.max_prompt);
            return Err(format!("a prompt of {length} tokens: --max-length is {most}").into());
        }
        let sampling = within_window(self.sampling, model, ids.len())?;
        let (prompts, device) = (vec![ids.clone(); count], model.embedding.weight.device());
        let mut cache = model.cache();
        let answers = draw_answers(&prompts, &self.chat.ends, sampling, &device, rng, |words| {
            model.next(words, &mut cache)
        });
        let answers = answers.into_iter().map(|words| {
            Ok(Answer {
                prompt: prompt.clone(),
                text: self.chat.decode(&words)?.trim().to_owned(),
                ids: Sequence::new(&ids, &words),
            })
        });
        answers.collect()
    }
}

/// With as many words as the model's window leaves behind a prompt.
fn within_window(sampling: Sampling, model: &Decoder, prompt: usize) -> Result<Sampling, Failure> {
    let window = model.config().window.unwrap_or(usize::MAX);
    if !(1..=window).contains(&prompt) {
        return Err(format!("a prompt of {prompt} tokens, and a window of {window}").into());
    }
    // The last word is drawn and not read again.
    let left = (window - prompt).saturating_add(1);
    Ok(Sampling {
        max_tokens: sampling.max_tokens.min(left),
        ..sampling
    })
}

/// The best of a prompt's answers against the worst one, as a row of TRL's shape; none if all are equally good.
pub fn best_pair(answers: &[Answer], scores: &[f64]) -> Option<Value> {
    let (best, worst) = best_and_worst(scores)?;
    let side = |i: usize| match answers[i].prompt {
        Text::Conversation(_) => json!([Message::new("assistant", &answers[i].text)]),
        Text::Plain(_) => json!(answers[i].text),
    };
    Some(json!({
        "prompt": answers[best].prompt,
        "chosen": side(best),
        "rejected": side(worst),
        "chosen_score": scores[best],
        "rejected_score": scores[worst],
    }))
}
