use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::log_probs::SequenceLogProbs;

/// Scale of a log-ratio, or of what a divergence makes of it: per sequence or per token.
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
    /// The `values`, one per sequence of `log_probs`, as they are or divided by the length.
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
