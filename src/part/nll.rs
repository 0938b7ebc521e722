use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::log_probs::SequenceLogProbs;

/// Weighting of the negative log-likelihoods of a batch: by sequence, by token, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum NllNormalization {
    /// −ℓ̄: every sequence counts the same.
    #[default]
    Sequence,
    /// −ℓ · batch / Σ lengths: every token counts the same, so the mean over the batch is the
    /// mean over its tokens, as TRL and HF's cross-entropy take it.
    ///
    /// An example's value then depends on the lengths in its batch. For a step of several
    /// micro-batches give the tokens of all of them:
    /// [`WithStepTokens`](crate::batch::WithStepTokens).
    Token,
    /// −ℓ: a sum over the tokens of each sequence, in nats. Long sequences count more, and the loss
    /// grows with them.
    Sum,
}

impl NllNormalization {
    /// Negative log-likelihood of each sequence, `[batch]`, nats; 0 for an empty one.
    ///
    /// It is that of the [`unmodified`](SequenceLogProbs::unmodified) completions: LD-DPO, SamPO, a
    /// clamp and weights change comparisons, and no likelihood.
    pub fn nll(&self, log_probs: &SequenceLogProbs) -> Tensor<1> {
        let log_probs = log_probs.unmodified();
        match self {
            // The sign goes to the constant: one operation on the tape.
            Self::Sequence => log_probs.sum() / -log_probs.divisor(),
            Self::Token => {
                let lengths = log_probs.lengths();
                let [batch] = lengths.dims();
                -log_probs.sum() * batch as f64 / lengths.sum().clamp_min(1.0)
            }
            Self::Sum => -log_probs.sum(),
        }
    }

    /// [`Self::nll`] in a step with so many tokens per example, which a mean per token is over;
    /// without their number it is over the tokens of the batch.
    pub(crate) fn nll_over(
        self,
        log_probs: &SequenceLogProbs,
        tokens_per_example: Option<f64>,
    ) -> Tensor<1> {
        match (self, tokens_per_example) {
            (Self::Token, Some(tokens)) => -log_probs.unmodified().sum() * tokens.recip(),
            (Self::Token, None) | (Self::Sequence | Self::Sum, _) => self.nll(log_probs),
        }
    }

    /// True if the value of a sequence depends on the lengths of the others.
    pub(crate) fn whole_batch(self) -> bool {
        self == Self::Token
    }
}
