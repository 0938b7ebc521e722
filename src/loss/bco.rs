use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, Unpaired, WithShift};
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::math::{logistic_loss, softplus};
use crate::objective::{LossOutput, Objective};

objective! {
    /// Binary classifier optimisation (Jung et al., 2404.04656): a classifier whose logit is the
    /// reward, shifted by δ.
    ///
    /// ```text
    /// pairs:      loss = −ln σ(βρ_w − δ) − ln σ(−(βρ_l − δ))
    /// desirable:  loss = −ln σ(βρ − δ)
    /// undesirable: loss = −ln σ(−(βρ − δ))
    /// reward = β·ρ
    /// ```
    ///
    /// δ is a [`WithShift`] column: the paper takes the mean of all rewards so far, which a
    /// [`RunningMean`](crate::training::state::RunningMean) holds. Plain pairs have δ = 0, as TRL 1.16 and
    /// Liger do; unpaired completions always name it. The rewards leave δ out, as theirs do.
    example referenced "" = 0.969240, "−ln σ(0.2) − ln σ(0.8)";
    pub struct BcoLoss from BcoLossConfig
        takes [ReferencedPair, WithShift<ReferencedPair>, WithShift<Unpaired<RelativeLogProbs>>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
    }
}

/// −ln σ(chosen) − ln σ(−rejected).
fn classify(logits: Pair<Tensor<1>>) -> Tensor<1> {
    logistic_loss(logits.chosen) + softplus(logits.rejected)
}

impl Objective<ReferencedPair> for BcoLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = batch.log_ratios() * self.beta;
        LossOutput::new(classify(rewards.clone()), rewards)
    }
}

impl Objective<WithShift<ReferencedPair>> for BcoLoss {
    fn forward(&self, batch: WithShift<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = batch.batch.log_ratios() * self.beta;
        let shift = batch.shift.cast(rewards.chosen.dtype());
        let shifted = rewards.clone().map(|reward| reward - shift.clone());
        LossOutput::new(classify(shifted), rewards)
    }
}

impl Objective<WithShift<Unpaired<RelativeLogProbs>>> for BcoLoss {
    fn forward(&self, batch: WithShift<Unpaired<RelativeLogProbs>>) -> LossOutput<Tensor<1>> {
        let WithShift { batch, shift } = batch;
        let rewards = batch.log_probs().log_ratio() * self.beta;
        let value = batch.sign(&rewards) * (rewards.clone() - shift.cast(rewards.dtype()));
        LossOutput::new(logistic_loss(value), rewards)
    }
}
