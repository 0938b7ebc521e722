use burn::tensor::Tensor;

use crate::batch::{Pair, PolicyPair, Rewards, WithNll};
use crate::declare::objective;
use crate::log_probs::SequenceLogProbs;
use crate::math::{log_odds, logistic_loss};
use crate::objective::{LossOutput, Objective};
use crate::part::NllNormalization;

objective! {
    /// Odds-ratio preference optimisation (Hong et al., 2403.07691). No reference.
    ///
    /// ```text
    /// loss   = NLL − λ·ln σ(od_w − od_l)     od = ℓ̄ − ln(1 − e^ℓ̄),  the log-odds
    /// reward = λ·ℓ̄
    /// ```
    ///
    /// Implementations disagree on two things about the NLL, both of which are explicit here:
    ///
    /// - **Which tokens.** A plain [`PolicyPair`] takes the chosen completion. The authors and
    ///   TRL count the prompt too: give those log-probabilities as a [`WithNll`] column.
    /// - **Which mean.** [`NllNormalization`]: per sequence (default) or over all tokens of the
    ///   batch, as TRL and HF's cross-entropy do.
    ///
    /// ℓ̄ is clamped to at most −1e-30, where its log-odds is 69. So a completion of probability 1, or
    /// an empty one, gives a finite loss, and the odds ratio gives it no gradient.
    ///
    /// # Panics
    ///
    /// `forward` panics if the column has the tokens of the step and the mean is per sequence: see
    /// [`WithNll::over_step`].
    example policy "" = 0.721915, "odds of 1 and ⅓: ln 2 − 0.1·ln σ(ln 3) = ln 2 + 0.1·ln(4/3)";
    pub struct OrpoLoss from OrpoLossConfig
        takes [PolicyPair, WithNll<PolicyPair>]
    {
        /// λ ≥ 0: the weight of the odds ratio (TRL's `beta`).
        odds_ratio_weight / with_odds_ratio_weight: f64 = 0.1, non_negative;
        /// The mean that the NLL takes.
        nll_normalization / with_nll_normalization: NllNormalization = NllNormalization::Sequence;
    }
}

impl OrpoLossConfig {
    /// TRL's convention, and the authors': the NLL is the mean over all tokens of the batch. They
    /// count the prompt's tokens too: give a [`WithNll`] column of prompt and completion.
    pub fn trl() -> Self {
        Self::new().with_nll_normalization(NllNormalization::Token)
    }
}

impl OrpoLoss {
    fn losses(&self, means: Pair<Tensor<1>>, nll: Tensor<1>) -> LossOutput<Pair<Tensor<1>>> {
        let odds_ratio = logistic_loss(means.clone().map(log_odds).margin());
        let losses = nll.cast(odds_ratio.dtype()) + odds_ratio * self.odds_ratio_weight;
        LossOutput::new(losses, means.without_autodiff() * self.odds_ratio_weight)
    }
}

impl Objective<PolicyPair> for OrpoLoss {
    fn forward(&self, batch: PolicyPair) -> LossOutput<Pair<Tensor<1>>> {
        let means = batch.map_ref(SequenceLogProbs::mean);
        let normalization = self.nll_normalization;
        let nll = normalization.nll_of_means(&batch.chosen, &means.chosen);
        self.losses(means, nll)
    }

    fn whole_batch(&self) -> bool {
        self.nll_normalization.whole_batch()
    }
}

impl Objective<WithNll<PolicyPair>> for OrpoLoss {
    fn forward(&self, batch: WithNll<PolicyPair>) -> LossOutput<Pair<Tensor<1>>> {
        let means = batch.batch.map_ref(SequenceLogProbs::mean);
        self.losses(means, self.nll_normalization.nll_of(&batch))
    }

    fn whole_batch(&self) -> bool {
        self.nll_normalization.whole_batch()
    }
}
