use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, Rewards};
use crate::declare::objective;
use crate::math::logistic_loss;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Calibrated DPO (Xiao et al., 2412.14516): rewards get an absolute scale.
    ///
    /// ```text
    /// loss   = −ln σ(Δ) + w·[(ρ_w − 1/(2β))² + (ρ_l + 1/(2β))²]      Δ = ρ_w − ρ_l
    /// reward = β·ρ
    /// ```
    ///
    /// The logistic term has no β. The authors' code weighs the calibration with 0.5.
    example referenced "" = 18.000045, "−ln σ(10) + (2 − 5)² + (−8 + 5)²";
    pub struct CalDpoLoss from CalDpoLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: the target log-ratio is ±1/(2β) nats.
        beta / with_beta: f64 = 0.1, positive;
        /// w ≥ 0: the weight of the calibration.
        calibration_weight / with_calibration_weight: f64 = 1.0, non_negative;
    }
}

impl Objective<ReferencedPair> for CalDpoLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let rho = batch.log_ratios();
        let target = 0.5 / self.beta;
        let calibration =
            (rho.chosen.clone() - target).square() + (rho.rejected.clone() + target).square();
        let losses = logistic_loss(rho.margin()) + calibration * self.calibration_weight;
        LossOutput::new(losses, rho.without_autodiff() * self.beta)
    }
}
