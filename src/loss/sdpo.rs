use burn::tensor::Tensor;

use crate::batch::Ranked;
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Softmax DPO (Chen et al., 2406.09215): one chosen completion against several rejected
    /// ones at once.
    ///
    /// ```text
    /// loss   = −ln σ(−ln Σ_l e^(q_l − q_w)) = ln(1 + Σ_l e^(q_l − q_w))     q = βρ
    /// reward = β·ρ
    /// ```
    ///
    /// The best-scored candidate of each list is the chosen one; all that are worse are rejected,
    /// whatever their scores. Where several tie for the best, each is the chosen one in turn, without
    /// the others, and the loss is the mean: equal candidates do not compete. Without ties it is the
    /// first stage of [`PlackettLuceLoss`](crate::PlackettLuceLoss); two candidates are DPO. At policy
    /// = reference the loss is ln(1 + N), N the number of worse candidates. A list without an order
    /// (all scores are equal, or there are fewer than two candidates) has loss 0. The default β is
    /// that of the authors' script; the default of their code is 0.1.
    example ranked "" = 0.000045, "two candidates: DPO, −ln σ(10)";
    example ranked_tied "" = 0.346596, "ln 2 and ln(1 + e^−10): their mean";
    pub struct SdpoLoss from SdpoLossConfig
        takes [Ranked<RelativeLogProbs<2>>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 1.0, positive;
    }
}

impl Objective<Ranked<RelativeLogProbs<2>>> for SdpoLoss {
    fn forward(&self, batch: Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>> {
        let q = batch.rewards(self.beta);
        let losses = batch.mean_of_best(batch.lead_nll(&q, batch.best()));
        LossOutput::new(batch.nan_where_unknown(losses, &q), q)
    }
}
