use burn::tensor::Tensor;

use crate::batch::{Pair, Ranked, ReferencedPair};
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::math::{log_softmax_where, logistic_loss, softplus};
use crate::objective::{LossOutput, Objective};

objective! {
    /// Noise-contrastive alignment on pairs (Chen et al., 2402.05369).
    ///
    /// ```text
    /// loss   = −ln σ(βρ_w) − ½·ln σ(−βρ_w) − ½·ln σ(−βρ_l)
    /// reward = β·ρ
    /// ```
    ///
    /// Unlike a loss of the margin, it keeps the chosen log-probability from falling.
    example referenced "" = 1.182759, "βρ = 0.2 and −0.8: 0.59814 + ½·0.79814 + ½·0.37110";
    pub struct NcaLoss from NcaLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per nat of log-ratio (the authors use 0.01).
        beta / with_beta: f64 = 0.1, positive;
    }
}

impl Objective<ReferencedPair> for NcaLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = batch.log_ratios() * self.beta;
        let Pair { chosen, rejected } = rewards.clone();
        let noise = softplus(chosen.clone()) + softplus(rejected);
        LossOutput::new(logistic_loss(chosen) + noise * 0.5, rewards)
    }
}

objective! {
    /// Noise-contrastive alignment on scored lists (Chen et al., 2402.05369).
    ///
    /// ```text
    /// loss   = −Σ_i [p_i·ln σ(q_i) + (1/K)·ln σ(−q_i)]     q = βρ,   p = softmax(s/α)
    /// reward = β·ρ
    /// ```
    ///
    /// K counts the present candidates. Those of equal score have equal targets; a list of equal scores
    /// makes all rewards 0.
    example ranked "" = 1.336852, "p = 0.731, 0.269: −Σ [p·ln σ(q) + ½·ln σ(−q)]";
    pub struct NcaListLoss from NcaListLossConfig
        takes [Ranked<RelativeLogProbs<2>>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// α > 0: the temperature of the scores.
        score_temperature / with_score_temperature: f64 = 1.0, positive;
    }
}

impl Objective<Ranked<RelativeLogProbs<2>>> for NcaListLoss {
    fn forward(&self, batch: Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>> {
        let q = batch.rewards(self.beta);
        let scores = batch.scores().cast(q.dtype()) * self.score_temperature.recip();
        let p = log_softmax_where(scores, batch.present()).exp();
        let share = batch.share(&q);
        let losses = batch.sum_present(logistic_loss(q.clone()) * p + softplus(q.clone()) * share);
        LossOutput::new(losses, q)
    }
}
