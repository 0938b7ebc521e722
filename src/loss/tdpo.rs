use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, WithSequenceKl};
use crate::declare::objective;
use crate::math::logistic_loss;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Token-level DPO, TDPO₂ (Zeng et al., 2404.11999).
    ///
    /// ```text
    /// loss   = −ln σ(β·(Δ − α·(K_l − sg K_w)))      Δ = ρ_w − ρ_l,   K = Σ_t KL(π° ‖ π)
    /// reward = β·ρ
    /// ```
    ///
    /// K is a [`WithSequenceKl`] column, of the
    /// [`sums`](crate::log_probs::TokenDiscrepancy::sums) of the
    /// [`ForwardKl`](crate::log_probs::Discrepancy::ForwardKl) of both models; sg stops its gradient
    /// on the chosen side. `examples/tdpo.rs` is a whole step. The rewards leave K out; the authors'
    /// code logs β·(ρ + K).
    example with_sequence_kl "" = 0.341154, "K = 1 and 3: 0.1·(10 − 0.5·2) = 0.9, and −ln σ(0.9)";
    pub struct TdpoLoss from TdpoLossConfig
        takes [WithSequenceKl<ReferencedPair>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// α ≥ 0: the weight of the difference of the KLs; 0 is DPO.
        kl_weight / with_kl_weight: f64 = 0.5, non_negative;
    }
}

impl Objective<WithSequenceKl<ReferencedPair>> for TdpoLoss {
    fn forward(&self, batch: WithSequenceKl<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = batch.batch.log_ratios().rewarded(self.beta);
        let kl = batch.sequence_kl.map(|kl| kl.cast(rewards.chosen.dtype()));
        let excess = kl.rejected - kl.chosen.without_autodiff();
        let h = h - excess * (self.kl_weight * self.beta);
        LossOutput::new(logistic_loss(h), rewards)
    }
}
