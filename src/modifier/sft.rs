use crate::batch::{Batch, Column, Pair, WithNll, WithStepTokens, for_each_column};
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
/// It keeps the chosen log-probability from falling together with the rejected one. α is that of
/// iterative RPO (2404.19733), `rpo_alpha` of TRL 0.24; CPO (2401.08417) has the same term. The likelihood
/// is that of the whole completion, whatever LD-DPO, SamPO, a clamp or weights do to the comparison;
/// LLaMA-Factory discounts it with LD-DPO, TRL does not.
///
/// With a [`WithNll`] column it is the likelihood of the column's sequences: of prompt and
/// completion, say. With a [`WithStepTokens`] column, around that one or alone, a mean over tokens is
/// one over the tokens of the whole step, which may then be cut into parts. The objective gets the
/// batch without these columns.
///
/// Any objective over pairs takes the term; over other batches it does not compile:
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
/// let objective = SftTerm::new(DpoLossConfig::new().init(), 0.2)?;
/// // ln 2 + 0.2·(10/4)
/// assert!((objective.forward(pair).mean().into_scalar::<f32>() - 1.19315).abs() < 1e-5);
/// # Ok::<(), burn_preference::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SftTerm<O> {
    objective: O,
    weight: f64,
    normalization: NllNormalization,
}

impl<O> SftTerm<O> {
    /// The sum `objective` + `weight`·NLL, with the NLL per sequence.
    ///
    /// # Errors
    ///
    /// `weight` is negative or not finite.
    pub fn new(objective: O, weight: f64) -> Result<Self, InvalidHyperparameter> {
        non_negative("sft_weight", weight)?;
        Ok(Self {
            objective,
            weight,
            normalization: NllNormalization::Sequence,
        })
    }

    /// Sets the mean that the NLL takes: per sequence (default), or over the tokens of the batch, or of
    /// the step with a [`WithStepTokens`] column.
    pub fn with_normalization(mut self, normalization: NllNormalization) -> Self {
        self.normalization = normalization;
        self
    }

    /// The objective that the term is added to.
    pub fn objective(&self) -> &O {
        &self.objective
    }

    /// The weight α of the term.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The mean that the NLL takes.
    pub fn normalization(&self) -> NllNormalization {
        self.normalization
    }
}

/// A batch that has a completion to imitate. Implement it for a batch of your own to give it an
/// [`SftTerm`].
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

impl<O> SftTerm<O> {
    /// The sum of the objective's losses and the term.
    fn with_term<B: Batch>(
        &self,
        batch: B,
        nll_of: &SequenceLogProbs,
        tokens_per_example: Option<f64>,
    ) -> LossOutput<B::Rewards>
    where
        O: Objective<B>,
    {
        let nll = self.normalization.nll_over(nll_of, tokens_per_example);
        self.objective.forward(batch).map_losses(|losses| {
            let nll = nll.cast(losses.dtype());
            losses + nll * self.weight
        })
    }
}

impl<B: SftTarget, O: Objective<B>> Objective<B> for SftTerm<O> {
    fn forward(&self, batch: B) -> LossOutput<B::Rewards> {
        let chosen = batch.sft_target().clone();
        self.with_term(batch, &chosen, None)
    }

    fn whole_batch(&self) -> bool {
        self.normalization.whole_batch() || self.objective.whole_batch()
    }
}

impl<B: Batch, O: Objective<B>> Objective<WithNll<B>> for SftTerm<O> {
    fn forward(&self, batch: WithNll<B>) -> LossOutput<B::Rewards> {
        let WithNll { batch, nll_of } = batch;
        self.with_term(batch, &nll_of, None)
    }

    fn whole_batch(&self) -> bool {
        self.normalization.whole_batch() || self.objective.whole_batch()
    }
}

impl<B: SftTarget, O: Objective<B>> Objective<WithStepTokens<B>> for SftTerm<O> {
    fn forward(&self, batch: WithStepTokens<B>) -> LossOutput<B::Rewards> {
        let tokens = batch.tokens_per_example();
        let batch = batch.into_batch();
        let chosen = batch.sft_target().clone();
        self.with_term(batch, &chosen, Some(tokens))
    }

    fn whole_batch(&self) -> bool {
        self.objective.whole_batch()
    }
}

impl<B: Batch, O: Objective<B>> Objective<WithStepTokens<WithNll<B>>> for SftTerm<O> {
    fn forward(&self, batch: WithStepTokens<WithNll<B>>) -> LossOutput<B::Rewards> {
        let tokens = batch.tokens_per_example();
        let WithNll { batch, nll_of } = batch.into_batch();
        self.with_term(batch, &nll_of, Some(tokens))
    }

    fn whole_batch(&self) -> bool {
        self.objective.whole_batch()
    }
}
