use burn::tensor::{Bool, Device, Shape, Tensor};

use super::pair::{Pair, PolicyPair};
use super::traits::Batch;
use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::{of_step, positive};
use crate::log_probs::SequenceLogProbs;
use crate::needs::{ColumnKind, Needs};

/// Data beside a batch: each of [`WithMargin`], [`WithScores`] and so on.
///
/// Shapes and devices are checked, values are not: they stay on the device. A win probability of
/// 1.5 gives a loss that means nothing.
///
/// Implement it, and [`Batch`], for a column of your own:
/// [`WithoutColumn`](crate::modifier::WithoutColumn) then hands the batch below it to objectives
/// that have no use for the column.
pub trait Column: Batch<Rewards = <Self::Inner as Batch>::Rewards> {
    /// The batch that the column stands beside.
    type Inner: Batch;

    /// The batch without the column.
    fn into_batch(self) -> Self::Inner;
}

/// A column of data beside a batch: `Name is Kind, field: Type, check` where `check` says what fits.
macro_rules! column {
    ($(#[$meta:meta])* $name:ident is $kind:ident, $field:ident: $ty:ty, $check:expr) => {
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
                let check: fn(BatchDims, $ty) -> Result<$ty, InvalidInput> = $check;
                let $field = check(BatchDims::of(&batch), $field)?;
                Ok(Self { batch, $field })
            }
        }

        impl<B> $name<B> {
            /// The batch that the column stands beside.
            pub fn batch(&self) -> &B {
                &self.batch
            }

            /// Data of the column.
            pub fn $field(&self) -> $ty {
                self.$field.clone()
            }
        }

        beside!($name, $kind);
    };
}

/// A struct with a `batch` is a batch and a column.
macro_rules! beside {
    ($name:ident, $kind:ident) => {
        impl<B: Batch> Column for $name<B> {
            type Inner = B;

            fn into_batch(self) -> B {
                self.batch
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

            fn needs() -> Needs {
                B::needs().with_column(ColumnKind::$kind)
            }
        }
    };
}

/// Length and device of the batch that a column has to fit.
struct BatchDims {
    length: usize,
    device: Device,
}

impl BatchDims {
    fn of(batch: &impl Batch) -> Self {
        Self {
            length: batch.len(),
            device: batch.device(),
        }
    }

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
    WithMargin is Margin, margin: Tensor<1>, |dims, margin| dims.constant("margin", margin)
}

column! {
    /// A batch with the probability that the chosen completion is the better one, `[batch]`: a graded
    /// label. It belongs into \[0, 1\], which is not checked.
    WithPreference is Preference, win_probability: Tensor<1>, |dims, p| dims.constant("win_probability", p)
}

column! {
    /// A batch with the score of both completions of each pair, `[batch]` each.
    WithScores is Scores, scores: Pair<Tensor<1>>, |dims, scores| Ok(Pair {
        chosen: dims.constant("scores.chosen", scores.chosen)?,
        rejected: dims.constant("scores.rejected", scores.rejected)?,
    })
}

column! {
    /// A batch whose pairs may be ties, `[batch]`, true where neither completion was preferred.
    WithTies is Ties, tied: Tensor<1, Bool>, |dims, tied| {
        dims.check("tied", &tied.shape(), &tied.device())?;
        Ok(tied)
    }
}

column! {
    /// A batch with a weight per example, `[batch]`, for [`Weighted`](crate::modifier::Weighted).
    WithWeights is Weights, weights: Tensor<1>, |dims, weights| dims.constant("weights", weights)
}

column! {
    /// A batch with KTO's reference point z₀, `[1]`, nats.
    ///
    /// It is data, not a field of the loss, so that the caller can estimate it on completions of
    /// its own choice and average it over devices first: see
    /// [`KlEstimate`](crate::KlEstimate).
    WithBaseline is Baseline, baseline: Tensor<1>, |dims, baseline| dims.scalar("baseline", baseline)
}

column! {
    /// A batch with BCO's reward shift δ, `[1]`: see [`RunningMean`](crate::training::state::RunningMean).
    WithShift is Shift, shift: Tensor<1>, |dims, shift| dims.scalar("shift", shift)
}

column! {
    /// A batch with β-DPO's M₀, `[1]`, the mean Δ = ρ_w − ρ_l of the batches so far, nats: see
    /// [`MovingAverage`](crate::training::state::MovingAverage).
    WithMeanMargin is MeanMargin, mean_margin: Tensor<1>, |dims, mean| dims.scalar("mean_margin", mean)
}

column! {
    /// A batch with the sequences whose negative log-likelihood is added: an NLL term then takes these
    /// instead of the chosen completions.
    ///
    /// Two things need it:
    ///
    /// - [`TpoLoss`](crate::TpoLoss) imitates a gold completion beside the pair.
    /// - The authors of ORPO, and TRL, count the prompt's tokens too: give the log-probabilities of
    ///   prompt and chosen completion.
    ///
    /// [`TpoLoss`](crate::TpoLoss) requires the column. [`OrpoLoss`](crate::OrpoLoss),
    /// [`CpoLoss`](crate::CpoLoss) and [`SftTerm`](crate::SftTerm) may have it; an `SftTerm` gives its
    /// objective the batch without it. There is one sequence per example, and gradients flow through it.
    /// A [`WithStepTokens`] column stands around it, and has the tokens of these sequences.
    WithNll is Nll, nll_of: SequenceLogProbs, |dims, nll_of| {
        let sum = nll_of.sum();
        dims.check("nll_of", &sum.shape(), &sum.device())?;
        Ok(nll_of)
    }
}

/// Pairs with sequences that are imitated: those of a [`WithNll`] column, or the chosen completions.
pub(crate) trait Imitated {
    /// The pairs that are compared.
    fn pair(&self) -> &PolicyPair;

    /// The sequences of the column, if there is one.
    fn column(&self) -> Option<&SequenceLogProbs>;

    /// The sequences whose likelihood counts.
    fn imitated(&self) -> &SequenceLogProbs {
        self.column().unwrap_or(&self.pair().chosen)
    }
}

impl Imitated for PolicyPair {
    fn pair(&self) -> &PolicyPair {
        self
    }

    fn column(&self) -> Option<&SequenceLogProbs> {
        None
    }
}

impl Imitated for WithNll<PolicyPair> {
    fn pair(&self) -> &PolicyPair {
        &self.batch
    }

    fn column(&self) -> Option<&SequenceLogProbs> {
        Some(&self.nll_of)
    }
}

/// A batch with the number of tokens that count in the whole optimiser step: of all its
/// micro-batches and workers.
///
/// A mean over the tokens of the step is divided by it:
/// [`NllNormalization::Token`](crate::NllNormalization::Token) of [`SftLoss`](crate::SftLoss),
/// [`OrpoLoss`](crate::OrpoLoss), [`CpoLoss`](crate::CpoLoss), [`TpoLoss`](crate::TpoLoss) and
/// [`SftTerm`](crate::SftTerm), [`TokenNormalization::Token`](crate::TokenNormalization::Token) of
/// [`GrpoLoss`](crate::GrpoLoss). A mean per sequence and a sum have no use for it. The tokens are
/// those of the sequences whose likelihood counts: of a pair the chosen completion's, not the
/// rejected one's; of a [`WithNll`] column its sequences'.
///
/// With [`normalized_by`](crate::LossOutput::normalized_by)`(examples)`, and so in an
/// [`Accumulation`](crate::training::accumulation::Accumulation) over them, the micro-batches add up
/// to one large batch, however unequal they are.
///
/// ```
/// # use burn::tensor::{Bool, Device, Tensor};
/// # use burn_preference::*;
/// # let device = Device::default();
/// # let of = |log_prob: f32, length: usize| {
/// #     let mask = Tensor::<2, Bool>::full([1, length], true, &device);
/// #     let log_probs = Tensor::full([1, length], log_prob, &device);
/// #     TokenLogProbs::new(log_probs, mask).map(Demonstrations::new)
/// # };
/// // Two parts of a step: four tokens of −1 nat, and two of −2.
/// let parts = [of(-1.0, 4)?, of(-2.0, 2)?];
/// let sft = SftLossConfig::new().init();
/// let mut loss = 0.0;
/// for part in parts {
///     let part = WithStepTokens::new(part, 6.0, 2.0)?; // 6 tokens and 2 examples in all parts
///     loss += sft.forward(part).normalized_by(2.0)?.into_scalar::<f32>();
/// }
/// assert!((loss - 8.0 / 6.0).abs() < 1e-6);
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct WithStepTokens<B> {
    pub(crate) batch: B,
    pub(crate) tokens_per_example: f64,
}

impl<B: Batch> WithStepTokens<B> {
    /// Puts the numbers of the whole step beside the batch: the tokens that count, and the
    /// examples.
    ///
    /// # Errors
    ///
    /// `tokens` or `examples` is not a finite number > 0: nothing counts in the whole step. The step
    /// has fewer examples than this part of it.
    pub fn new(batch: B, tokens: f64, examples: f64) -> Result<Self, InvalidHyperparameter> {
        positive("tokens", tokens)?;
        positive("examples", examples)?;
        of_step("examples", examples, batch.len())?;
        Ok(Self {
            batch,
            tokens_per_example: tokens / examples,
        })
    }
}

impl<B> WithStepTokens<B> {
    /// The batch that the column stands beside.
    pub fn batch(&self) -> &B {
        &self.batch
    }

    /// Tokens that count in the step, per example.
    pub fn tokens_per_example(&self) -> f64 {
        self.tokens_per_example
    }
}

beside!(WithStepTokens, StepTokens);

column! {
    /// A batch with K = Σ_t KL(π° ‖ π) of both completions, `[batch]` each, nats: the
    /// [`sums`](crate::log_probs::TokenDiscrepancy::sums) of the
    /// [`ForwardKl`](crate::log_probs::Discrepancy::ForwardKl). Gradients flow through them.
    WithSequenceKl is SequenceKl, sequence_kl: Pair<Tensor<1>>, |dims, kl| {
        dims.check("sequence_kl.chosen", &kl.chosen.shape(), &kl.chosen.device())?;
        dims.check("sequence_kl.rejected", &kl.rejected.shape(), &kl.rejected.device())?;
        Ok(kl)
    }
}

column! {
    /// A batch with V of each example's prompt, `[batch]`, in units of the reward: what the
    /// regularised return is expected to be.
    ///
    /// [`DroLoss`](crate::DroLoss) learns it, so gradients flow through it;
    /// [`AstarPoLoss`](crate::AstarPoLoss) takes the constant of
    /// [`optimal_values`](super::optimal_values).
    WithValue is Value, value: Tensor<1>, |dims, value| {
        dims.check("value", &value.shape(), &value.device())?;
        Ok(value)
    }
}

/// Expands `$delegate!($column)` for every column that only adds data: all but [`WithBaseline`],
/// which metrics report, and two that an NLL term takes: [`WithNll`] says whose NLL it is, and
/// [`WithStepTokens`] what its mean is over.
macro_rules! for_each_column {
    ($delegate:ident) => {
        $delegate!(WithMargin);
        $delegate!(WithPreference);
        $delegate!(WithScores);
        $delegate!(WithTies);
        $delegate!(WithWeights);
        $delegate!(WithShift);
        $delegate!(WithMeanMargin);
        $delegate!(WithSequenceKl);
        $delegate!(WithValue);
    };
}
pub(crate) use for_each_column;
