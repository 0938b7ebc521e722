use burn::tensor::Tensor;

use crate::batch::{Unpaired, WithBaseline};
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::math::sigmoid;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Kahneman–Tversky optimisation (Ethayarajh et al., 2402.01306, Eq. 7–8).
    ///
    /// ```text
    /// loss   = λ_D·(1 − σ(β(ρ − z₀)))    desirable
    ///          λ_U·(1 − σ(β(z₀ − ρ)))    undesirable
    /// reward = β·ρ
    /// ```
    ///
    /// The reference point z₀ is data: a [`WithBaseline`] column, estimated by
    /// [`KlEstimate`](crate::KlEstimate). No gradient flows into it. At policy = reference with
    /// z₀ = 0 every loss is λ/2.
    example unpaired_with_baseline "" = 0.384471, "the mean of 1 − σ(0.1·10) and 1 − σ(0)";
    pub struct KtoLoss from KtoLossConfig
        takes [WithBaseline<Unpaired<RelativeLogProbs>>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// λ_D ≥ 0, the weight of desirable completions.
        desirable_weight / with_desirable_weight: f64 = 1.0, non_negative;
        /// λ_U ≥ 0, the weight of undesirable completions.
        undesirable_weight / with_undesirable_weight: f64 = 1.0, non_negative;
    }
}

impl Objective<WithBaseline<Unpaired<RelativeLogProbs>>> for KtoLoss {
    fn forward(&self, batch: WithBaseline<Unpaired<RelativeLogProbs>>) -> LossOutput<Tensor<1>> {
        let WithBaseline { batch, baseline } = batch;
        let log_ratio = batch.log_probs().log_ratio();
        let by_label = |desirable: f64, undesirable: f64| {
            let values = log_ratio.clone().without_autodiff().full_like(desirable);
            values.mask_fill(batch.desirable().bool_not(), undesirable)
        };
        let weight = by_label(self.desirable_weight, self.undesirable_weight);
        // 1 − σ(x) = σ(−x) keeps the digits of a loss near 0.
        let steepness = by_label(-self.beta, self.beta);
        let excess = log_ratio.clone() - baseline.cast(log_ratio.dtype());
        let rewards = log_ratio.without_autodiff() * self.beta;
        LossOutput::new(sigmoid(excess * steepness) * weight, rewards)
    }
}
