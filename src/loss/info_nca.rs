use burn::tensor::Tensor;

use crate::batch::Ranked;
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::math::log_softmax_where;
use crate::objective::{LossOutput, Objective};

objective! {
    /// InfoNCA (Chen et al., 2402.05369): cross-entropy from the scores' distribution to
    /// the rewards'.
    ///
    /// ```text
    /// loss   = −Σ_i p_i·ln softmax(q)_i        q = βρ,   p = softmax(s/α)
    /// reward = β·ρ
    /// ```
    ///
    /// Candidates of equal score have equal targets. A list of equal scores makes all rewards equal.
    example ranked "" = 0.582203, "p = 0.731, 0.269: 0.731·0.31326 + 0.269·1.31326";
    pub struct InfoNcaLoss from InfoNcaLossConfig
        takes [Ranked<RelativeLogProbs<2>>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// α > 0: the temperature of the scores; the paper uses 0.01 to 1.
        score_temperature / with_score_temperature: f64 = 1.0, positive;
    }
}

impl Objective<Ranked<RelativeLogProbs<2>>> for InfoNcaLoss {
    fn forward(&self, batch: Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>> {
        let q = batch.rewards(self.beta);
        let scores = batch.scores().cast(q.dtype()) * self.score_temperature.recip();
        let p = log_softmax_where(scores, batch.present()).exp();
        let log_probs = log_softmax_where(q.clone(), batch.present());
        LossOutput::new(-batch.sum_present(p * log_probs), q)
    }
}
