use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair};
use crate::declare::objective;
use crate::math::logistic_loss;
use crate::objective::{LossOutput, Objective};
use crate::part::Divergence;

objective! {
    /// χPO (Huang et al., 2407.13399): DPO with the χ² divergence, which does not
    /// over-optimise where the reference has little data.
    ///
    /// ```text
    /// loss   = −ln σ(clip(h, ±2R))     h = β·(g(ρ_w) − g(ρ_l)),   g = e^ρ − 1 + ρ
    /// reward = β·g(ρ)
    /// ```
    ///
    /// Beyond the clip the gradient is 0.
    example referenced ".with_reward_bound(Some(0.25))" = 0.474077, "h > 0.5, and −ln σ(0.5)";
    pub struct ChipoLoss from ChipoLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per unit of g.
        beta / with_beta: f64 = 0.1, positive;
        /// R > 0: the margin is clipped to ±2R; none leaves it.
        reward_bound / with_reward_bound: Option<f64> = None, optional_positive;
    }
}

impl Objective<ReferencedPair> for ChipoLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = Divergence::ChiSquared.rewarded(&batch, self.beta);
        let h = match self.reward_bound {
            Some(bound) => h.clamp(-2.0 * bound, 2.0 * bound),
            None => h,
        };
        LossOutput::new(logistic_loss(h), rewards)
    }
}
