use serde::{Deserialize, Serialize};

use crate::batch::Demonstrations;
use crate::log_probs::SequenceLogProbs;

/// Weight that the likelihood of each token has in supervised fine-tuning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum TokenWeighting {
    /// 1: the likelihood itself.
    #[default]
    Uniform,
    /// π(token), through which no gradient flows: DFT (Wu et al., 2508.05629).
    ///
    /// The gradient is that of −π(token), so that a token that the policy finds impossible does not
    /// dominate it, as −ln π would have it.
    Probability,
}

impl TokenWeighting {
    /// Weighted sum and length of each demonstration; the weights of the batch are factors as well.
    ///
    /// ```text
    /// ℓ = Σ_t w_t·ln π(y_t)
    /// ```
    pub fn sequence(&self, demonstrations: &Demonstrations) -> SequenceLogProbs {
        let tokens = demonstrations.tokens();
        let mut weighted = tokens.clone();
        if *self == Self::Probability {
            weighted = weighted.times(&tokens.log_probs().without_autodiff().exp());
        }
        if let Some(weights) = demonstrations.weights() {
            weighted = weighted.times(&weights);
        }
        weighted.sequence()
    }
}
