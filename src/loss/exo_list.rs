use burn::tensor::Tensor;

use crate::batch::Ranked;
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::math::log_softmax_where;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Efficient exact optimisation on lists (Ji et al., 2402.00856): the reverse KL from
    /// the rewards' distribution to the scores'.
    ///
    /// ```text
    /// loss   = KL(softmax(q) ‖ softmax(s/β_r))     q = βρ
    /// reward = β·ρ
    /// ```
    ///
    /// Candidates of equal score have equal targets. A list of equal scores makes all rewards equal.
    example ranked ".with_score_temperature(0.5)" = 0.082608, "0.731·(0.127 − 0.313) + 0.269·(2.127 − 1.313)";
    pub struct ExoListLoss from ExoListLossConfig
        takes [Ranked<RelativeLogProbs<2>>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// β_r > 0: the temperature of the scores.
        score_temperature / with_score_temperature: f64 = 1.0, positive;
    }
}

impl Objective<Ranked<RelativeLogProbs<2>>> for ExoListLoss {
    fn forward(&self, batch: Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>> {
        let q = batch.rewards(self.beta);
        let scores = batch.scores().cast(q.dtype()) * self.score_temperature.recip();
        let target = log_softmax_where(scores, batch.present());
        let log_probs = log_softmax_where(q.clone(), batch.present());
        let losses = batch.sum_present(log_probs.clone().exp() * (log_probs - target));
        LossOutput::new(losses, q)
    }
}
