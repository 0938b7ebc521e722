use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::InvalidHyperparameter;
use crate::hyperparameter::{Choice, positive};
use crate::log_probs::TokenLogProbs;
use crate::math::sum_columns;

/// Divisor of the losses of a sample's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum TokenNormalization {
    /// The tokens of the step per example: every token counts the same. DAPO (Yu et al., 2503.14476),
    /// CISPO; TRL's `dapo` and `cispo`, and `bnpo` of the tokens of a batch.
    #[default]
    Token,
    /// max(length, 1): every completion counts the same. GRPO; TRL's `grpo`, and GSPO. A token of a
    /// long completion counts less, so that long wrong answers cost little.
    Sequence,
    /// A constant > 0: Dr. GRPO takes the longest completion that is allowed, TRL's `dr_grpo` its
    /// `max_completion_length`. 1 is a sum: TRL's `luspo`.
    Constant(f64),
}

impl TokenNormalization {
    /// Loss of each sample, `[batch]`, of the losses of its tokens, `[batch, time − 1]`; those of
    /// tokens that do not count may be anything. Without `tokens_per_example` the tokens are those
    /// of the batch.
    pub fn losses(
        &self,
        token_losses: Tensor<2>,
        tokens: &TokenLogProbs,
        tokens_per_example: Option<f64>,
    ) -> Tensor<1> {
        let not_counted = tokens.mask().bool_not();
        let sum = sum_columns(token_losses.mask_fill(not_counted, 0.0));
        match (*self, tokens_per_example) {
            (Self::Sequence, _) => sum / tokens.sequence().divisor(),
            (Self::Constant(divisor), _) => sum * divisor.recip(),
            (Self::Token, Some(per_example)) => sum * per_example.recip(),
            (Self::Token, None) => {
                let lengths = tokens.sequence().lengths();
                let [batch] = lengths.dims();
                sum * batch as f64 / lengths.sum_dim(0).clamp_min(1.0)
            }
        }
    }

    /// True if the loss of a sample depends on the lengths of the others in its batch.
    pub(crate) fn whole_batch(self) -> bool {
        self == Self::Token
    }
}

impl Choice for TokenNormalization {
    fn check(&self) -> Result<(), InvalidHyperparameter> {
        match *self {
            Self::Token | Self::Sequence => Ok(()),
            Self::Constant(divisor) => positive("normalization.constant", divisor),
        }
    }
}
