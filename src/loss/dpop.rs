use burn::tensor::Tensor;
use burn::tensor::activation::relu;

use crate::batch::{Pair, ReferencedPair, Rewards};
use crate::declare::objective;
use crate::math::logistic_loss;
use crate::objective::{LossOutput, Objective};

objective! {
    /// DPO-Positive (Pal et al., 2402.13228): a penalty where the chosen log-probability
    /// falls below the reference's.
    ///
    /// ```text
    /// loss   = −ln σ(β·(Δ − λ·(−ρ_w)⁺))   Δ = ρ_w − ρ_l
    /// reward = β·ρ
    /// ```
    ///
    /// The rewards leave the penalty out.
    example referenced "" = 0.313262, "ρ_w > 0, so DPO: −ln σ(0.1·10)";
    pub struct DpopLoss from DpopLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// λ ≥ 0: the weight of the penalty; 0 is DPO.
        penalty / with_penalty: f64 = 50.0, non_negative;
    }
}

impl Objective<ReferencedPair> for DpopLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let rho = batch.log_ratios();
        let fallen = relu(-rho.chosen.clone());
        let h = (rho.margin() - fallen * self.penalty) * self.beta;
        LossOutput::new(logistic_loss(h), rho.without_autodiff() * self.beta)
    }
}
