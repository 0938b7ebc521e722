use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::log_probs::SequenceLogProbs;

/// How a batch of negative log-likelihoods is weighed: by sequence or by token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NllNormalization {
    /// −ℓ̄: every sequence counts the same.
    #[default]
    Sequence,
    /// −ℓ · batch / Σ lengths: every token counts the same, so the mean over the batch is the
    /// mean over its tokens, as TRL and HF's cross-entropy take it. An example's value then
    /// depends on the lengths in its batch: accumulated micro-batches weigh tokens unequally.
    Token,
}

impl NllNormalization {
    /// One value per sequence, nats; 0 for an empty one.
    pub fn nll(&self, log_probs: &SequenceLogProbs) -> Tensor<1> {
        match self {
            Self::Sequence => -log_probs.mean(),
            Self::Token => {
                let lengths = log_probs.lengths();
                let [batch] = lengths.dims();
                -log_probs.sum() * batch as f64 / lengths.sum().clamp_min(1.0)
            }
        }
    }
}
