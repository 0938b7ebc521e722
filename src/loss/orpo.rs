use burn::tensor::Tensor;

use crate::batch::{Imitated, Pair, PolicyPair, Rewards, WithNll, WithStepTokens};
use crate::declare::{objective, over_step};
use crate::log_probs::SequenceLogProbs;
use crate::math::{log_odds, logistic_loss};
use crate::objective::LossOutput;
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
    ///   batch, as TRL and HF's cross-entropy do; with a [`WithStepTokens`] column over those of the
    ///   whole step, which may then be cut into parts.
    ///
    /// ℓ̄ is clamped to at most −1e-30, where its log-odds is 69. So a completion of probability 1, or
    /// an empty one, gives a finite loss, and the odds ratio gives it no gradient.
    example policy "" = 0.721915, "odds of 1 and ⅓: ln 2 − 0.1·ln σ(ln 3) = ln 2 + 0.1·ln(4/3)";
    pub struct OrpoLoss from OrpoLossConfig
        takes [
            PolicyPair,
            WithNll<PolicyPair>,
            WithStepTokens<PolicyPair>,
            WithStepTokens<WithNll<PolicyPair>>
        ]
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
    fn output(
        &self,
        batch: &impl Imitated,
        tokens_per_example: Option<f64>,
    ) -> LossOutput<Pair<Tensor<1>>> {
        let means = batch.pair().map_ref(SequenceLogProbs::mean);
        let nll = self.nll(batch, &means.chosen, tokens_per_example);
        let odds_ratio = logistic_loss(means.clone().map(log_odds).margin());
        let losses = nll.cast(odds_ratio.dtype()) + odds_ratio * self.odds_ratio_weight;
        LossOutput::new(losses, means.without_autodiff() * self.odds_ratio_weight)
    }

    fn nll(
        &self,
        batch: &impl Imitated,
        means: &Tensor<1>,
        tokens_per_example: Option<f64>,
    ) -> Tensor<1> {
        let is_mean = self.nll_normalization == NllNormalization::Sequence;
        // The mean is there already: fewer operations on the tape.
        if is_mean && batch.column().is_none() && batch.imitated().is_unmodified() {
            return -means.clone();
        }
        self.nll_normalization
            .nll_over(batch.imitated(), tokens_per_example)
    }
}

over_step!(OrpoLoss, nll_normalization: PolicyPair, WithNll<PolicyPair>);
