use burn::tensor::Tensor;

use crate::batch::{Batch, Pair, ReferencedPair, Rewards, WithMeanMargin};
use crate::declare::objective;
use crate::math::logistic_loss;
use crate::objective::{LossOutput, Objective};

objective! {
    /// β-DPO (Wu et al., 2407.08639): a batch whose margin is larger than usual is trusted
    /// less, by a larger β.
    ///
    /// ```text
    /// loss   = −ln σ(β′·Δ)      Δ = ρ_w − ρ_l,   β′ = max(β·(1 + a·(mean Δ − M₀)), 1e-3)
    /// reward = β·ρ
    /// ```
    ///
    /// The mean is that of the batch, without gradient. M₀ is a [`WithMeanMargin`] column, nats: a
    /// [`MovingAverage`](crate::training::state::MovingAverage) of momentum 0.9 over the mean Δ of each
    /// step, which is the metric `rewards/margins` divided by β. The losses depend on the batch.
    ///
    /// The sensitivity a acts on Δ, as in the authors' code, and not on β·Δ. Their code does two more
    /// things. It moves M₀ before it uses it, so that the batch at hand counts: to have the same,
    /// update the average first. And it leaves 20% of the pairs out of loss and mean, drawn with
    /// weights exp(−½·((Δ − M₀)/s)²), where s is a moving standard deviation. This crate keeps all
    /// pairs.
    example with_mean_margin "" = 0.000911, "M₀ = 0: β′ = 0.1·(1 + 0.6·10) = 0.7, and −ln σ(7)";
    pub struct BetaDpoLoss from BetaDpoLossConfig
        takes [WithMeanMargin<ReferencedPair>]
    {
        /// β > 0: reward per nat of log-ratio of an average batch.
        beta / with_beta: f64 = 0.1, positive;
        /// a ≥ 0: how much β follows Δ, per nat; 0 is DPO.
        sensitivity / with_sensitivity: f64 = 0.6, non_negative;
    }
}

/// Below this a batch would hardly count, and below 0 it would count backwards.
const MIN_BETA: f64 = 1e-3;

impl Objective<WithMeanMargin<ReferencedPair>> for BetaDpoLoss {
    fn forward(&self, batch: WithMeanMargin<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        let WithMeanMargin { batch, mean_margin } = batch;
        let count = batch.len().max(1) as f64;
        let rho = batch.log_ratios();
        let delta = rho.margin();
        let mean = delta.clone().without_autodiff().sum_dim(0) * count.recip();
        let excess = mean - mean_margin.cast(delta.dtype());
        let beta = ((excess * self.sensitivity + 1) * self.beta).clamp_min(MIN_BETA);
        LossOutput::new(
            logistic_loss(delta * beta),
            rho.without_autodiff() * self.beta,
        )
    }

    fn whole_batch(&self) -> bool {
        true
    }
}
