use crate::batch::{Batch, Pair, for_each_column};
use crate::error::InvalidHyperparameter;
use crate::hyperparameter::non_negative;
use crate::log_probs::{LogProbs, SequenceLogProbs};
use crate::objective::{LossOutput, Objective};
use crate::part::NllNormalization;

/// An objective plus the negative log-likelihood of the chosen completion.
///
/// ```text
/// loss = objective + α·NLL_w          NLL_w = −ℓ̄_w
/// ```
///
/// RPO's α, iterative RPO (2404.19733); CPO (2401.08417) has the same term. It keeps the chosen
/// log-probability from falling together with the rejected one. Any objective over pairs takes
/// it; over other batches it does not compile:
///
/// ```compile_fail,E0277
/// # use burn_preference::*;
/// fn kto(loss: SftTerm<KtoLoss>, batch: WithBaseline<Unpaired<RelativeLogProbs>>) {
///     let _ = loss.forward(batch); // which completion would it imitate?
/// }
/// ```
///
/// ```
/// # let device = burn::tensor::Device::default();
/// use burn_preference::{DpoLossConfig, Objective, PolicyPair, SequenceLogProbs, SftTerm};
///
/// let y = |sum| SequenceLogProbs::from_values(&[sum], &[4], &device).unwrap();
/// let policy = PolicyPair::new(y(-10.0), y(-30.0))?;
/// let pair = policy.clone().relative_to(policy)?;
///
/// let objective = SftTerm::new(DpoLossConfig::new().init(), 0.2);
/// // ln 2 + 0.2·(10/4)
/// assert!((objective.forward(pair).mean().into_scalar::<f32>() - 1.19315).abs() < 1e-5);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SftTerm<O> {
    objective: O,
    weight: f64,
    normalization: NllNormalization,
}

impl<O> SftTerm<O> {
    /// `objective` + `weight`·NLL, per sequence.
    ///
    /// # Panics
    ///
    /// Panics unless `weight` is a finite number ≥ 0; see [`try_new`](Self::try_new).
    pub fn new(objective: O, weight: f64) -> Self {
        Self::try_new(objective, weight).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`new`](Self::new), for a weight that comes from outside the program.
    ///
    /// # Errors
    ///
    /// `weight` is negative or not finite.
    pub fn try_new(objective: O, weight: f64) -> Result<Self, InvalidHyperparameter> {
        non_negative("sft_weight", weight)?;
        Ok(Self {
            objective,
            weight,
            normalization: NllNormalization::Sequence,
        })
    }

    /// The mean that the NLL takes: per sequence (default) or over the batch's tokens.
    pub fn with_normalization(mut self, normalization: NllNormalization) -> Self {
        self.normalization = normalization;
        self
    }
}

/// A batch that has a completion to imitate.
pub trait SftTarget: Batch {
    /// The policy's log-probabilities of the chosen completions.
    fn sft_target(&self) -> &SequenceLogProbs;
}

impl<L: LogProbs<1>> SftTarget for Pair<L> {
    fn sft_target(&self) -> &SequenceLogProbs {
        self.chosen.policy()
    }
}

macro_rules! target_of_inner {
    ($column:ident) => {
        impl<B: SftTarget> SftTarget for crate::batch::$column<B> {
            fn sft_target(&self) -> &SequenceLogProbs {
                self.batch().sft_target()
            }
        }
    };
}

for_each_column!(target_of_inner);

impl<B: SftTarget, O: Objective<B>> Objective<B> for SftTerm<O> {
    fn forward(&self, batch: B) -> LossOutput<B::Rewards> {
        let nll = self.normalization.nll(batch.sft_target());
        self.objective
            .forward(batch)
            .map_losses(|losses| losses + nll * self.weight)
    }
}
