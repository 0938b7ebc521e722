use burn::tensor::{Bool, Tensor};

use super::token::TokenLogProbs;

/// Statistics of the logits at the counted tokens, from the pass that gave their log-probabilities:
/// [`WithStatistics`](super::WithStatistics) asks for them.
///
/// Columns are those of [`TokenLogProbs`]: one per predicted position, `[batch, time − 1]`, 0
/// where [`mask`](Self::mask) is false, NaN for a counted id outside the vocabulary. Nothing here
/// has a gradient.
#[derive(Debug, Clone)]
pub struct TokenStatistics {
    entropy: TokenLogProbs,
    collisions: TokenLogProbs,
    top1: TokenLogProbs,
    mean_logits: TokenLogProbs,
}

impl TokenStatistics {
    /// Takes the by-products in the order of the kernel.
    pub(super) fn new([entropy, collisions, top1, mean_logits]: [TokenLogProbs; 4]) -> Self {
        Self {
            entropy,
            collisions,
            top1,
            mean_logits,
        }
    }

    /// Entropy of the next token, `−Σ_v π(v) ln π(v)`, nats.
    pub fn entropy(&self) -> Tensor<2> {
        self.entropy.log_probs()
    }

    /// Log-probability that two samples of the next token are equal, `ln Σ_v π(v)²`.
    ///
    /// [`wpo_weights`](crate::modifier::wpo_weights) compares it with the log-probability of the
    /// token that stands there.
    pub fn collisions(&self) -> TokenLogProbs {
        self.collisions.clone()
    }

    /// Hits of greedy decoding: 1 where the token is the word that it takes, 0 elsewhere. Token
    /// accuracy is their mean.
    ///
    /// Of several words with the largest logit, the first one is taken, as by an argmax and by
    /// TRL. NaN where a logit is NaN, or all are −∞.
    pub fn top1(&self) -> Tensor<2> {
        self.top1.log_probs()
    }

    /// Mean of the logits over the vocabulary.
    pub fn mean_logits(&self) -> Tensor<2> {
        self.mean_logits.log_probs()
    }

    /// Mask of the columns that count.
    pub fn mask(&self) -> Tensor<2, Bool> {
        self.entropy.mask()
    }

    /// Rows `start..start + length` of the batch.
    pub(crate) fn rows(&self, start: usize, length: usize) -> Self {
        Self {
            entropy: self.entropy.rows(start, length),
            collisions: self.collisions.rows(start, length),
            top1: self.top1.rows(start, length),
            mean_logits: self.mean_logits.rows(start, length),
        }
    }
}
