use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::batch::WithNll;
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
    /// micro-batches give the tokens of all of them: [`WithNll::over_step`].
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

    /// [`Self::nll`], from the means ℓ̄ of the same sequences where it is their negative.
    pub(crate) fn nll_of_means(self, log_probs: &SequenceLogProbs, means: &Tensor<1>) -> Tensor<1> {
        if self == Self::Sequence && log_probs.is_unmodified() {
            -means.clone()
        } else {
            self.nll(log_probs)
        }
    }

    /// True if the value of a sequence depends on the lengths of the others.
    pub(crate) fn whole_batch(self) -> bool {
        self == Self::Token
    }

    /// Negative log-likelihood of each of the column's sequences, `[batch]`, nats; over the tokens
    /// of the step if the column has their number.
    ///
    /// # Panics
    ///
    /// Panics if the column has the tokens of the step and the mean is not per token: the number
    /// would act on nothing.
    pub(crate) fn nll_of<B>(self, column: &WithNll<B>) -> Tensor<1> {
        match column.tokens_per_example {
            None => self.nll(&column.nll_of),
            Some(tokens) if self == Self::Token => self.nll_over(&column.nll_of, tokens),
            Some(_) => panic!(
                "the column `WithNll` has the tokens of the step, which only a mean per token \
                 uses: take `NllNormalization::Token`, or leave `over_step` out"
            ),
        }
    }

    /// [`Self::nll`] in a step with so many tokens per example, which a mean per token is over.
    pub(crate) fn nll_over(
        self,
        log_probs: &SequenceLogProbs,
        tokens_per_example: f64,
    ) -> Tensor<1> {
        match self {
            Self::Token => -log_probs.unmodified().sum() * tokens_per_example.recip(),
            Self::Sequence | Self::Sum => self.nll(log_probs),
        }
    }
}
