use burn::tensor::Tensor;

use crate::batch::{Pair, PolicyPair};
use crate::declare::objective;
use crate::log_probs::SequenceLogProbs;
use crate::math::log1mexp;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Aligned supervised fine-tuning (Wang et al., 2409.10571). No reference.
    ///
    /// ```text
    /// loss   = −ℓ̄_w + λ·[−ln σ(od_w) − ln σ(−od_l)]      od = ℓ̄ − ln(1 − e^ℓ̄), the log-odds
    /// reward = λ·ℓ̄
    /// ```
    ///
    /// σ of the log-odds is the probability itself, so ln σ(od_w) = ℓ̄_w and
    /// ln σ(−od_l) = ln(1 − e^ℓ̄_l). As in ORPO, ℓ̄_l is clamped to at most −1e-30. The formula was
    /// derived again from the paper; no peer's code was compared.
    example policy "" = 1.673976, "ln 2 + [ln 2 − ln ¾]";
    pub struct AsftLoss from AsftLossConfig
        takes [PolicyPair]
    {
        /// λ ≥ 0: the weight of the alignment.
        alignment_weight / with_alignment_weight: f64 = 1.0, non_negative;
    }
}

impl Objective<PolicyPair> for AsftLoss {
    fn forward(&self, batch: PolicyPair) -> LossOutput<Pair<Tensor<1>>> {
        let means = batch.map_ref(SequenceLogProbs::mean);
        let Pair { chosen, rejected } = means.clone();
        let alignment = -chosen - log1mexp(rejected);
        let imitated = batch.chosen.unmodified().mean();
        let losses = alignment * self.alignment_weight - imitated;
        LossOutput::new(losses, means * self.alignment_weight)
    }
}
