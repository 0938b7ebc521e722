//! The smallest language model: logits of the next token from this one alone.

#![allow(dead_code, reason = "each example uses its own part")]

use burn::data::dataloader::batcher::Batcher;
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use burn_preference::LmHead;
use burn_preference::data::{Collator, Example, PairTokens};
use burn_preference::tokens::Padding;

pub const VOCAB: usize = 8;
pub const PAD: u32 = 7;

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
}

/// Two pairs of different lengths in one forward: chosen rows, then rejected ones.
pub fn pairs(device: &Device) -> PairTokens {
    let pairs = vec![
        Example::pair(vec![0], vec![1, 2], vec![5, 4]),
        Example::pair(vec![0], vec![3, 4, 5], vec![2, 2, 2]),
    ];
    Collator::new(Padding::new(PAD)).batch(pairs, device)
}
