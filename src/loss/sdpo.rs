use burn::tensor::Tensor;

use crate::batch::Ranked;
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::math::log1p_sum_exp_where;
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
    /// The best-scored candidate of each list is the chosen one, the first where several tie; all
    /// others are rejected, whatever their scores. It is the first stage of
    /// [`PlackettLuceLoss`](crate::PlackettLuceLoss); two candidates are DPO. At policy = reference
    /// the loss is ln K, of K candidates. A list of one candidate, or of none, has loss 0. The default β
    /// is that of the authors' script; the default of their code is 0.1.
    example ranked "" = 0.000045, "two candidates: DPO, −ln σ(10)";
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
        let not_chosen = batch.best().bool_not();
        let chosen = q.clone().mask_fill(not_chosen.clone(), 0.0).sum_dim(1);
        let rejected = batch.present().bool_and(not_chosen);
        let losses = log1p_sum_exp_where(q.clone() - chosen, rejected).squeeze_dim::<1>(1);
        LossOutput::new(batch.nan_where_unknown(losses, &q), q)
    }
}
