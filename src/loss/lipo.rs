use burn::tensor::Tensor;

use crate::batch::Ranked;
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::math::{exp_up_to, logistic_loss};
use crate::objective::{LossOutput, Objective};

/// ln of the largest gain.
const MAX_GAIN: f64 = 60.0;

objective! {
    /// LiPO-λ (Liu et al., 2402.01878): LambdaRank on the rewards.
    ///
    /// ```text
    /// loss   = Σ_{s_i > s_j} |G_i − G_j|·|1/D_i − 1/D_j|·ln(1 + e^(−(q_i − q_j)))
    ///          q = βρ,   G = 2^s − 1,   D = ln(1 + rank of q)
    /// reward = β·ρ
    /// ```
    ///
    /// Ranks are those of the policy's own rewards among the present candidates, 1 for the highest,
    /// without gradient. Where rewards are equal, as all are at policy = reference, |1/D_i − 1/D_j| is
    /// its mean over all orders of the equal ones: the order in the list means nothing. Candidates of
    /// equal score are not compared; a list without an order has loss 0. G grows as 2^s, so scale
    /// scores to a few units; from e^60 on it is constant, so that losses stay finite in f32.
    example ranked "" = 0.252425, "q = 0.1, −0.4: 1·(1/ln 2 − 1/ln 3)·ln(1 + e^−0.5)";
    pub struct LipoLoss from LipoLossConfig
        takes [Ranked<RelativeLogProbs<2>>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.05, positive;
    }
}

impl Objective<Ranked<RelativeLogProbs<2>>> for LipoLoss {
    fn forward(&self, batch: Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>> {
        let q = batch.rewards(self.beta);
        let exponent = batch.scores().cast(q.dtype()) * 2_f64.ln();
        let gain = exp_up_to(batch.fill_absent(exponent), MAX_GAIN);
        let frozen = q.clone().without_autodiff();
        let ranks = batch.ranks(&frozen);
        // An absent candidate has rank 0; any finite discount will do, since it is filled below.
        let discount = (ranks.clamp_min(1.0) + 1.0).log().recip();
        let weight = batch.differences(&gain).abs() * batch.mean_gaps(&discount, &frozen);
        let losses = (weight * logistic_loss(batch.differences(&q)))
            .mask_fill(batch.better_than().bool_not(), 0.0)
            .sum_dims_squeeze::<1, usize>(&[1, 2]);
        LossOutput::new(batch.nan_where_unknown(losses, &q), q)
    }
}
