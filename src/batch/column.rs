use burn::tensor::{Bool, Device, Shape, Tensor};

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
            /// The column has another shape than documented above, or is on another device.
            pub fn new(batch: B, $field: $ty) -> Result<Self, InvalidInput> {
                let check: fn(Room, $ty) -> Result<$ty, InvalidInput> = $check;
                let room = Room { length: batch.len(), device: batch.device() };
                let $field = check(room, $field)?;
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

            fn device(&self) -> Device {
                self.batch.device()
            }
        }
    };
}

/// What a column has to fit into.
struct Room {
    length: usize,
    device: Device,
}

impl Room {
    fn check(
        &self,
        name: &'static str,
        shape: &Shape,
        device: &Device,
    ) -> Result<(), InvalidInput> {
        InvalidInput::check_shape(name, &[self.length].into(), shape)?;
        InvalidInput::check_device(name, &self.device, device)
    }

    /// A column of numbers that no gradient reaches.
    fn constant(&self, name: &'static str, column: Tensor<1>) -> Result<Tensor<1>, InvalidInput> {
        self.check(name, &column.shape(), &column.device())?;
        Ok(column.without_autodiff())
    }

    /// A single number that no gradient reaches.
    fn scalar(self, name: &'static str, value: Tensor<1>) -> Result<Tensor<1>, InvalidInput> {
        Self { length: 1, ..self }.constant(name, value)
    }
}

column! {
    /// A batch with the reward margin that each pair should reach, `[batch]`.
    ///
    /// ODPO (2402.10571) uses `α·ln(s_w − s_l)` of the pair's scores.
    WithMargin, margin: Tensor<1>, |room, margin| room.constant("margin", margin)
}

column! {
    /// A batch with the probability that the chosen completion is the better one, `[batch]`, in
    /// \[0, 1\]: a graded label.
    WithPreference, win_probability: Tensor<1>, |room, p| room.constant("win_probability", p)
}

column! {
    /// A batch with the score of both completions of each pair, `[batch]` each.
    WithScores, scores: Pair<Tensor<1>>, |room, scores| Ok(Pair {
        chosen: room.constant("scores.chosen", scores.chosen)?,
        rejected: room.constant("scores.rejected", scores.rejected)?,
    })
}

column! {
    /// A batch whose pairs may be ties, `[batch]`, true where neither completion was preferred.
    WithTies, tied: Tensor<1, Bool>, |room, tied| {
        room.check("tied", &tied.shape(), &tied.device())?;
        Ok(tied)
    }
}

column! {
    /// A batch with a weight per example, `[batch]`, for [`Weighted`](crate::modifier::Weighted).
    WithWeights, weights: Tensor<1>, |room, weights| room.constant("weights", weights)
}

column! {
    /// A batch with KTO's reference point z₀, `[1]`, nats.
    ///
    /// It is data, not a field of the loss, so that the caller can estimate it on completions of
    /// its own choice and average it over devices first: see
    /// [`KlEstimate`](crate::loss::KlEstimate).
    WithBaseline, baseline: Tensor<1>, |room, baseline| room.scalar("baseline", baseline)
}

column! {
    /// A batch with BCO's reward shift δ, `[1]`: see [`RunningMean`](crate::state::RunningMean).
    WithShift, shift: Tensor<1>, |room, shift| room.scalar("shift", shift)
}

column! {
    /// A batch with β-DPO's M₀, `[1]`, the mean margin of the batches so far: see
    /// [`MovingAverage`](crate::state::MovingAverage).
    WithMeanMargin, mean_margin: Tensor<1>, |room, mean| room.scalar("mean_margin", mean)
}

column! {
    /// A batch with the sequences whose negative log-likelihood is added, where that is not the
    /// chosen completion alone: prompt and completion, as the authors of ORPO and TRL count it.
    ///
    /// One sequence per example; gradients flow through them.
    WithNll, nll_of: SequenceLogProbs, |room, nll_of| {
        room.check("nll_of", &nll_of.sum().shape(), &nll_of.sum().device())?;
        Ok(nll_of)
    }
}

column! {
    /// A batch with K = Σ_t KL(π° ‖ π) of both completions, `[batch]` each, nats: see
    /// [`sequence_kl`](crate::log_probs::sequence_kl). Gradients flow through them.
    WithSequenceKl, sequence_kl: Pair<Tensor<1>>, |room, kl| {
        room.check("sequence_kl.chosen", &kl.chosen.shape(), &kl.chosen.device())?;
        room.check("sequence_kl.rejected", &kl.rejected.shape(), &kl.rejected.device())?;
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
