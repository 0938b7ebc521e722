use burn::tensor::Tensor;

use crate::batch::{Pair, PolicyPair};
use crate::declare::objective;
use crate::math::bounded_expm1;
use crate::objective::{LossOutput, Objective};
use crate::part::LabelNoise;

objective! {
    /// AlphaPO (Gupta et al., 2501.03884): SimPO with rewards of another shape.
    ///
    /// ```text
    /// loss   = −ln σ(β·(r_w − r_l) − γ)     r = (1 − e^(−α·ℓ̄))/α,  with label noise as in DPO
    /// reward = β·r
    /// ```
    ///
    /// α = 0 is SimPO. The exponent is clamped to 80.
    example policy "" = 0.371085, "2·4·(4^¼ − 2^¼) − 1 = 0.80005, and −ln σ of it";
    pub struct AlphaPoLoss from AlphaPoLossConfig
        takes [PolicyPair]
    {
        /// β > 0: reward per unit of r.
        beta / with_beta: f64 = 2.0, positive;
        /// γ: the margin to reach.
        target_margin / with_target_margin: f64 = 1.0, finite;
        /// α: the shape; negative values are allowed.
        alpha / with_alpha: f64 = 0.25, finite;
        /// Assumption about flipped labels.
        label_noise / with_label_noise: LabelNoise = LabelNoise::Clean, choice;
    }
}

impl Objective<PolicyPair> for AlphaPoLoss {
    fn forward(&self, batch: PolicyPair) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = batch.map_ref(|y| {
            // The limit, to the last digit of f64, where the quotient could overflow f32.
            if self.alpha.abs() < 1e-20 {
                return y.mean() * self.beta;
            }
            bounded_expm1(y.mean() * -self.alpha) * (-self.beta / self.alpha)
        });
        let losses = self
            .label_noise
            .losses(rewards.margin() - self.target_margin);
        LossOutput::new(losses, rewards)
    }
}
