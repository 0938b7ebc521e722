use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::log_probs::SequenceLogProbs;

/// Whether a log-ratio, or what a divergence makes of it, counts per sequence or per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// ρ, the sum over the completion.
    Sum,
    /// ρ / max(length, 1), the mean over the completion's tokens.
    Mean,
}

impl Normalization {
    /// `values`, one per sequence of `log_probs`, as they are or per token.
    pub fn apply<const D: usize>(
        &self,
        values: Tensor<D>,
        log_probs: &SequenceLogProbs<D>,
    ) -> Tensor<D> {
        match self {
            Self::Sum => values,
            Self::Mean => values / log_probs.divisor(),
        }
    }
}
