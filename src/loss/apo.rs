use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, Unpaired};
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::math::sigmoid;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Anchored preference optimisation, zero (D'Oosterlinck et al., 2408.06266, Eq. 7): the
    /// chosen completion goes up and the rejected one down, each against the reference.
    ///
    /// ```text
    /// pairs:       loss = 1 − σ(βρ_w) + σ(βρ_l)
    /// desirable:   loss = 1 − σ(βρ)
    /// undesirable: loss = σ(βρ)
    /// reward = β·ρ
    /// ```
    example referenced "" = 0.760192, "βρ = 0.2 and −0.8: σ(−0.2) + σ(−0.8)";
    example unpaired "" = 0.384471, "the mean of 1 − σ(1) and σ(0)";
    pub struct ApoZeroLoss from ApoZeroLossConfig
        takes [ReferencedPair, Unpaired<RelativeLogProbs>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
    }
}

impl Objective<ReferencedPair> for ApoZeroLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = batch.log_ratios() * self.beta;
        let Pair { chosen, rejected } = rewards.clone();
        LossOutput::new(sigmoid(-chosen) + sigmoid(rejected), rewards)
    }
}

impl Objective<Unpaired<RelativeLogProbs>> for ApoZeroLoss {
    fn forward(&self, batch: Unpaired<RelativeLogProbs>) -> LossOutput<Tensor<1>> {
        let rewards = batch.log_probs().log_ratio() * self.beta;
        let value = batch.sign(&rewards) * rewards.clone();
        LossOutput::new(sigmoid(-value), rewards)
    }
}

objective! {
    /// Anchored preference optimisation, down (D'Oosterlinck et al., 2408.06266, Eq. 8): both
    /// completions go down, the rejected one further. For data that is worse than the policy.
    ///
    /// ```text
    /// loss   = σ(βρ_w) + 1 − σ(β(ρ_w − ρ_l))
    /// reward = β·ρ
    /// ```
    example referenced "" = 0.818775, "βρ = 0.2 and −0.8: σ(0.2) + σ(−1)";
    pub struct ApoDownLoss from ApoDownLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
    }
}

impl Objective<ReferencedPair> for ApoDownLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = batch.log_ratios() * self.beta;
        let losses = sigmoid(rewards.chosen.clone()) + sigmoid(-rewards.margin());
        LossOutput::new(losses, rewards)
    }
}
