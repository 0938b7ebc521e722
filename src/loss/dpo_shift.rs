use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair};
use crate::declare::objective;
use crate::math::logistic_loss;
use crate::objective::{LossOutput, Objective};

objective! {
    /// DPO-Shift (Yang et al., 2502.07599): the rejected log-ratio counts less, so that the
    /// chosen log-probability falls less.
    ///
    /// ```text
    /// loss   = −ln σ(β·(ρ_w − λ·ρ_l))
    /// reward = β·ρ
    /// ```
    ///
    /// The rewards leave λ out, as the authors' do.
    example referenced "" = 0.371101, "0.1·(2 + 0.75·8) = 0.8, and −ln σ(0.8)";
    pub struct DpoShiftLoss from DpoShiftLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// λ ∈ (0, 1]: the share of the rejected log-ratio that counts; 1 is DPO.
        rejected_share / with_rejected_share: f64 = 0.75, share;
    }
}

impl Objective<ReferencedPair> for DpoShiftLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = batch.log_ratios() * self.beta;
        let h = rewards.chosen.clone() - rewards.rejected.clone() * self.rejected_share;
        LossOutput::new(logistic_loss(h), rewards)
    }
}
