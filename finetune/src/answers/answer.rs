//! Answers of a model to prompts, and pairs of them.

use std::sync::Arc;

use burn_preference::data::{Json, Message, Object, Text};
use burn_preference::tokens::Sequence;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::data::Prompt;
use crate::failure::Failure;
use crate::model::Decoder;
use crate::sampling::{Sampling, best_and_worst, draw_answers};
use crate::text::Chat;
use crate::training::Batching;

/// An answer of a model to a prompt.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The prompt, with the columns of its row.
    pub prompt: Arc<Prompt>,
    /// The answer's text.
    pub text: String,
    /// Prompt and answer as token ids.
    pub ids: Sequence,
}

/// Columns that a row with other answers has in another meaning.
const REPLACED: [&str; 10] = [
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "label",
    "responses",
    "scores",
    "prompt_ids",
    "response_ids",
    "response_log_probs",
];

impl Answer {
    /// The line that a judge reads: `prompt` and `completion`, with the other columns of the row.
    ///
    /// # Errors
    ///
    /// The prompt has something that JSON does not have.
    pub fn to_json(&self) -> Result<Object, Failure> {
        let mut row = Object::default();
        row.insert("completion", Json::from(&*self.text));
        row.insert("prompt", json(&self.prompt.prompt)?);
        for (name, value) in carried(&self.prompt) {
            row.insert(name, value);
        }
        Ok(row)
    }

    /// The answer as a completion of its prompt: a text, or what the assistant says.
    fn completion(&self) -> Result<Json, Failure> {
        match self.prompt.prompt {
            Text::Conversation(_) => json(&[Message::new("assistant", &self.text)]),
            Text::Plain(_) => Ok(Json::from(&*self.text)),
        }
    }
}

/// The answers to a prompt as a row of a list with scores, with the other columns of the prompt's
/// row, the token ids and the log-probabilities of each.
///
/// # Errors
///
/// The prompt has something that JSON does not have.
pub fn group(
    answers: &[Answer],
    scores: &[f64],
    log_probs: &[Vec<f64>],
) -> Result<Option<Object>, Failure> {
    let Some(first) = answers.first() else {
        return Ok(None);
    };
    let responses = answers.iter().map(Answer::completion);
    let ids: Vec<_> = answers
        .iter()
        .map(|answer| answer.ids.completion())
        .collect();
    let mut row = Object::default();
    row.insert("prompt", json(&first.prompt.prompt)?);
    row.insert(
        "responses",
        Json::Array(responses.collect::<Result<_, _>>()?),
    );
    row.insert("scores", json(&scores)?);
    for (name, value) in carried(&first.prompt) {
        row.insert(name, value);
    }
    row.insert("prompt_ids", json(&first.ids.prompt())?);
    row.insert("response_ids", json(&ids)?);
    row.insert("response_log_probs", json(&log_probs)?);
    Ok(Some(row))
}

/// The columns of a prompt's row that keep their meaning beside other answers.
fn carried(prompt: &Prompt) -> impl Iterator<Item = (&str, Json)> {
    let is_carried = |(name, value): &(&str, &Json)| !REPLACED.contains(name) && is_json(value);
    let columns = prompt.columns.iter().filter(is_carried);
    columns.map(|(name, value)| (name, value.clone()))
}

/// Whether a value can be written as JSON.
pub fn is_json(value: &Json) -> bool {
    serde_json::to_writer(std::io::sink(), value).is_ok()
}

/// A value in the order of its fields, which `serde_json` would sort.
fn json(value: &impl Serialize) -> Result<Json, Failure> {
    Ok(serde_json::from_str(&serde_json::to_string(value)?)?)
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
    pub fn fits(&self, prompt: &Prompt) -> Result<bool, Failure> {
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
        prompt: &Prompt,
        count: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Answer>, Failure> {
        let ids = self.chat.prompt(prompt)?;
        if ids.is_empty() {
            let line = prompt.line.map(|line| format!("line {line}: "));
            return Err(format!("{}the prompt has no token", line.unwrap_or_default()).into());
        }
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
        let prompt = Arc::new(prompt.clone());
        let answers = answers.into_iter().map(|words| {
            Ok(Answer {
                prompt: Arc::clone(&prompt),
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

/// ln π of every token of each answer, by forwards of the same kind as a training step has.
///
/// # Errors
///
/// The batching or the device fails.
pub fn log_probs(
    model: &Decoder,
    answers: &[Answer],
    batching: &Batching,
) -> Result<Vec<Vec<f64>>, Failure> {
    let mut found = Vec::with_capacity(answers.len());
    for some in answers.chunks(8) {
        let sequences: Vec<_> = some.iter().map(|answer| answer.ids.clone()).collect();
        let tokens = batching.tokens(sequences)?;
        let log_probs = batching
            .demonstrations(model, &tokens)?
            .tokens()
            .log_probs();
        let [_, columns] = log_probs.dims();
        let values: Vec<f64> = log_probs.try_into_data()?.iter::<f64>().collect();
        for (row, answer) in values.chunks(columns).zip(some) {
            // Column t belongs to token t + 1, and a prompt has one at least.
            let start = answer.ids.prompt().len() - 1;
            let drawn = &row[start..start + answer.ids.completion().len()];
            // A certain token's may round to a number above 0.
            found.push(drawn.iter().map(|value| value.min(0.0)).collect());
        }
    }
    Ok(found)
}

/// The best of a prompt's answers against the worst one, as a row of TRL's shape with the other
/// columns of the prompt's row; none if both are equally good or the same.
///
/// # Errors
///
/// The prompt has something that JSON does not have.
pub fn best_pair(answers: &[Answer], scores: &[f64]) -> Result<Option<Object>, Failure> {
    let sides = best_and_worst(scores);
    let Some((best, worst)) = sides.filter(|(b, w)| answers[*b].text != answers[*w].text) else {
        return Ok(None);
    };
    let prompt = &answers[best].prompt;
    let mut row = Object::default();
    row.insert("prompt", json(&prompt.prompt)?);
    row.insert("chosen", answers[best].completion()?);
    row.insert("rejected", answers[worst].completion()?);
    for (name, value) in carried(prompt) {
        row.insert(name, value);
    }
    row.insert("chosen_score", Json::from(scores[best]));
    row.insert("rejected_score", Json::from(scores[worst]));
    Ok(Some(row))
}
