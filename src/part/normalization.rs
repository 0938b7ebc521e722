use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::log_probs::RelativeLogProbs;

/// Whether a log-ratio counts per sequence or per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// ρ: the sum over the completion.
    Sum,
    /// ρ̄ = ρ / max(length, 1): the mean over the completion's tokens.
    Mean,
}

impl Normalization {
    /// ρ or ρ̄.
    pub fn log_ratio<const D: usize>(&self, log_probs: &RelativeLogProbs<D>) -> Tensor<D> {
        match self {
            Self::Sum => log_probs.log_ratio(),
            Self::Mean => log_probs.mean_log_ratio(),
        }
    }
}
