//! The smallest language model: logits of the next token from this one alone.

#![allow(dead_code, reason = "each example uses its own part")]

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Bool, Device, Int, Tensor};
use burn_preference::first_batch::TokenRows;
use burn_preference::{InvalidInput, LmHead, SequenceLogProbs, TokenLogProbs};

pub const VOCAB: usize = 8;
pub const PAD: i32 = 7;

#[derive(Module, Debug)]
pub struct Bigram {
    embedding: Embedding,
    head: Linear,
}

impl Bigram {
    /// The same weights every time, ready for training.
    pub fn new(device: &Device) -> Self {
        device.seed(1);
        let training = device.clone().autodiff();
        Self {
            embedding: EmbeddingConfig::new(VOCAB, 16).init(&training),
            head: LinearConfig::new(16, VOCAB).init(&training),
        }
    }

    /// Logits `[batch, time, vocab]` of tokens `[batch, time]`.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.head.forward(self.embedding.forward(tokens))
    }

    /// The same before the head.
    pub fn hidden(&self, tokens: Tensor<2, Int>) -> (Tensor<3>, LmHead) {
        (self.embedding.forward(tokens), LmHead::from(&self.head))
    }

    /// Sums and lengths of the completions.
    pub fn log_probs(&self, rows: &Rows) -> Result<SequenceLogProbs, InvalidInput> {
        let logits = self.forward(rows.tokens.clone());
        let log_probs = TokenLogProbs::from_logits(logits, rows.tokens.clone(), rows.mask.clone())?;
        Ok(log_probs.sequence())
    }
}

/// Four tokens a row: one of prompt, then the completion, padded with [`PAD`].
#[derive(Clone)]
pub struct Rows {
    pub tokens: Tensor<2, Int>,
    pub mask: Tensor<2, Bool>,
}

impl Rows {
    pub fn new<const N: usize>(rows: [[i32; 4]; N], device: &Device) -> Self {
        let counted = rows.map(|row| std::array::from_fn(|t| t > 0 && row[t] != PAD));
        let counted: [[bool; 4]; N] = counted;
        Self {
            tokens: Tensor::from_ints(rows, device),
            mask: Tensor::from_bool(counted, device),
        }
    }
}

impl From<&TokenRows> for Rows {
    fn from(rows: &TokenRows) -> Self {
        Self {
            tokens: rows.ids.clone(),
            mask: rows.completion_mask.clone(),
        }
    }
}
