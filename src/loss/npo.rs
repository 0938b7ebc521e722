use burn::tensor::Tensor;

use crate::declare::objective;
use crate::log_probs::{RelativeLogProbs, SequenceLogProbs};
use crate::math::softplus;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Negative preference optimisation (Zhang et al., 2404.05868): unlearning, as DPO
    /// without a chosen completion.
    ///
    /// ```text
    /// loss   = −(2/β)·ln σ(−βρ)
    /// reward = β·ρ
    /// ```
    example undesirable "" = 15.962779, "−20·ln σ(−0.2)";
    pub struct NpoLoss from NpoLossConfig
        takes [RelativeLogProbs]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
    }
}

impl Objective<RelativeLogProbs> for NpoLoss {
    fn forward(&self, batch: RelativeLogProbs) -> LossOutput<Tensor<1>> {
        let rewards = batch.log_ratio() * self.beta;
        LossOutput::new(softplus(rewards.clone()) * (2.0 / self.beta), rewards)
    }
}

objective! {
    /// SimNPO (Fan et al., 2410.07163): negative preference optimisation without a
    /// reference.
    ///
    /// ```text
    /// loss   = −(2/β)·ln σ(−β·ℓ̄ − γ)
    /// reward = β·ℓ̄
    /// ```
    ///
    /// γ is absolute here. The authors' code and open-unlearning have theirs inside the product,
    /// −β·(ℓ̄ + δ), so that γ = β·δ: see
    /// [`from_margin_ratio`](SimnpoLossConfig::from_margin_ratio).
    example undesirable_policy "" = 0.001543, "ℓ̄ = −2.5: −0.8·ln σ(6.25)";
    pub struct SimnpoLoss from SimnpoLossConfig
        takes [SequenceLogProbs]
    {
        /// β > 0: reward per nat and token.
        beta / with_beta: f64 = 2.5, positive;
        /// γ: the margin to reach.
        target_margin / with_target_margin: f64 = 0.0, finite;
    }
}

impl SimnpoLossConfig {
    /// γ given as a multiple of β: `gamma` of the authors' code, `delta` of open-unlearning.
    pub fn from_margin_ratio(beta: f64, ratio: f64) -> Self {
        Self::new().with_beta(beta).with_target_margin(beta * ratio)
    }
}

impl Objective<SequenceLogProbs> for SimnpoLoss {
    fn forward(&self, batch: SequenceLogProbs) -> LossOutput<Tensor<1>> {
        let rewards = batch.mean() * self.beta;
        let losses = softplus(rewards.clone() + self.target_margin) * (2.0 / self.beta);
        LossOutput::new(losses, rewards)
    }
}
