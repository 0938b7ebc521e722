use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair};
use crate::declare::objective;
use crate::math::{bounded_exp, log_sigmoid, logistic_loss, sigmoid};
use crate::objective::{LossOutput, Objective};
use crate::part::Divergence;

objective! {
    /// The log-ratio modulated loss that DiscoPOP discovered (Lu et al., 2406.08414).
    ///
    /// ```text
    /// loss   = (1 − σ(h/t))·(−ln σ(h)) + σ(h/t)·e^(−h)      h = β·(g(ρ_w) − g(ρ_l))
    /// reward = β·g(ρ)
    /// ```
    ///
    /// The loss is not convex, and not monotone around h = 0. Its second term is computed as one
    /// exponential, e^(ln σ(h/t) − h), because its factors may be 0 and ∞, whose product is NaN. For
    /// t > 1 the exponent is clamped to 80.
    example referenced "" = 0.367879, "h = 1, σ(1/0.05) ≈ 1, so e^−1";
    pub struct DiscopopLoss from DiscopopLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// t > 0: the temperature of the mixture.
        temperature / with_temperature: f64 = 0.05, positive;
        /// g: what the objective compares.
        divergence / with_divergence: Divergence = Divergence::ReverseKl, choice;
    }
}

impl Objective<ReferencedPair> for DiscopopLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = self.divergence.rewarded(&batch, self.beta);
        let modulated = h.clone() * self.temperature.recip();
        let logistic = logistic_loss(h.clone()) * sigmoid(-modulated.clone());
        let exponential = bounded_exp(log_sigmoid(modulated) - h);
        LossOutput::new(logistic + exponential, rewards)
    }
}
