use burn::tensor::{Bool, Tensor};

use super::{Batch, Pair};
use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;

/// A column of data beside a batch: `Name, field: Type, check;` where `check` says what fits.
macro_rules! column {
    ($(#[$meta:meta])* $name:ident, $field:ident: $ty:ty, $check:expr) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub struct $name<B> {
            pub(crate) batch: B,
            pub(crate) $field: $ty,
        }

        impl<B: Batch> $name<B> {
            /// Puts the column beside the batch.
            ///
            /// # Errors
            ///
            /// The column has another shape than documented above.
            pub fn new(batch: B, $field: $ty) -> Result<Self, InvalidInput> {
                let check: fn(usize, $ty) -> Result<$ty, InvalidInput> = $check;
                let $field = check(batch.len(), $field)?;
                Ok(Self { batch, $field })
            }
        }

        impl<B> $name<B> {
            /// The batch that the column stands beside.
            pub fn batch(&self) -> &B {
                &self.batch
            }

            /// The column.
            pub fn $field(&self) -> $ty {
                self.$field.clone()
            }
        }

        impl<B: Batch> Batch for $name<B> {
            type Rewards = B::Rewards;

            fn len(&self) -> usize {
                self.batch.len()
            }
        }
    };
}

/// A constant of the expected length.
fn constant(
    name: &'static str,
    length: usize,
    column: Tensor<1>,
) -> Result<Tensor<1>, InvalidInput> {
    InvalidInput::check_shape(name, &[length].into(), &column.shape())?;
    Ok(column.without_autodiff())
}

column! {
    /// A batch with the reward margin that each pair should reach, `[batch]`.
    ///
    /// ODPO (2402.10571) uses `α·ln(s_w − s_l)` of the pair's scores.
    WithMargin, margin: Tensor<1>, |batch, margin| constant("margin", batch, margin)
}

column! {
    /// A batch with the probability that the chosen completion is the better one, `[batch]`, in
    /// \[0, 1\]: a graded label.
    WithPreference, win_probability: Tensor<1>, |batch, p| constant("win_probability", batch, p)
}

column! {
    /// A batch with the score of both completions of each pair, `[batch]` each.
    WithScores, scores: Pair<Tensor<1>>, |batch, scores| Ok(Pair {
        chosen: constant("scores.chosen", batch, scores.chosen)?,
        rejected: constant("scores.rejected", batch, scores.rejected)?,
    })
}

column! {
    /// A batch whose pairs may be ties, `[batch]`, true where neither completion was preferred.
    WithTies, tied: Tensor<1, Bool>, |batch, tied| {
        InvalidInput::check_shape("tied", &[batch].into(), &tied.shape())?;
        Ok(tied)
    }
}

column! {
    /// A batch with a weight per example, `[batch]`, for [`Weighted`](crate::modifier::Weighted).
    WithWeights, weights: Tensor<1>, |batch, weights| constant("weights", batch, weights)
}

column! {
    /// A batch with KTO's reference point z₀, `[1]`, nats.
    ///
    /// It is data, not a field of the loss, so that the caller can estimate it on completions of
    /// its own choice and average it over devices first: see
    /// [`KlEstimate`](crate::loss::KlEstimate).
    WithBaseline, baseline: Tensor<1>, |_, baseline| constant("baseline", 1, baseline)
}

column! {
    /// A batch with BCO's reward shift δ, `[1]`: see [`RunningMean`](crate::state::RunningMean).
    WithShift, shift: Tensor<1>, |_, shift| constant("shift", 1, shift)
}

column! {
    /// A batch with β-DPO's M₀, `[1]`, the mean margin of the batches so far: see
    /// [`MovingAverage`](crate::state::MovingAverage).
    WithMeanMargin, mean_margin: Tensor<1>, |_, mean| constant("mean_margin", 1, mean)
}

column! {
    /// A batch with the sequences whose negative log-likelihood is added, where that is not the
    /// chosen completion alone: prompt and completion, as the authors of ORPO and TRL count it.
    ///
    /// One sequence per example; gradients flow through them.
    WithNll, nll_of: SequenceLogProbs, |batch, nll_of| {
        InvalidInput::check_shape("nll_of", &[batch].into(), &nll_of.sum().shape())?;
        Ok(nll_of)
    }
}

column! {
    /// A batch with K = Σ_t KL(π° ‖ π) of both completions, `[batch]` each, nats: see
    /// [`sequence_kl`](crate::log_probs::sequence_kl). Gradients flow through them.
    WithSequenceKl, sequence_kl: Pair<Tensor<1>>, |batch, kl| {
        for (name, side) in [("sequence_kl.chosen", &kl.chosen), ("sequence_kl.rejected", &kl.rejected)] {
            InvalidInput::check_shape(name, &[batch].into(), &side.shape())?;
        }
        Ok(kl)
    }
}

/// Expands `$delegate!($column)` for every column that only adds data.
macro_rules! for_each_column {
    ($delegate:ident) => {
        $delegate!(WithMargin);
        $delegate!(WithPreference);
        $delegate!(WithScores);
        $delegate!(WithTies);
        $delegate!(WithWeights);
        $delegate!(WithShift);
        $delegate!(WithMeanMargin);
        $delegate!(WithNll);
        $delegate!(WithSequenceKl);
    };
}
pub(crate) use for_each_column;
