use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Unit of the error in a regression of log-ratios on scores, at η nats per unit of score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum RegressionUnit {
    /// Nats: Δ − η·s.
    #[default]
    LogRatio,
    /// Units of the score: Δ/η − s.
    Score,
}

impl RegressionUnit {
    /// Differences between Δ and the gap of the scores, in this unit, elementwise.
    pub fn residual<const D: usize>(
        &self,
        log_ratio: Tensor<D>,
        score_gap: Tensor<D>,
        scale: f64,
    ) -> Tensor<D> {
        match self {
            Self::LogRatio => log_ratio - score_gap * scale,
            Self::Score => log_ratio * scale.recip() - score_gap,
        }
    }
}
