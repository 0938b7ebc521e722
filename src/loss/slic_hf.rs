use burn::tensor::Tensor;
use burn::tensor::activation::relu;

use crate::batch::{Pair, PolicyPair};
use crate::declare::objective;
use crate::log_probs::SequenceLogProbs;
use crate::objective::{LossOutput, Objective};

objective! {
    /// SLiC-HF (Zhao et al., 2305.10425): a hinge on sequence log-probabilities, and a term
    /// that imitates the chosen completion.
    ///
    /// ```text
    /// loss   = (δ − ℓ_w + ℓ_l)⁺ − λ·ℓ_w
    /// reward = ℓ
    /// ```
    ///
    /// The regularisation is on the chosen completion; the paper has it on the supervised target.
    example policy "" = 0.277259, "1 − 4·ln 2 < 0, and 0.1·4·ln 2";
    pub struct SlicHfLoss from SlicHfLossConfig
        takes [PolicyPair]
    {
        /// δ ≥ 0: the margin to reach, nats.
        target_margin / with_target_margin: f64 = 1.0, non_negative;
        /// λ ≥ 0: the weight of the chosen completion's −ℓ (a sum, not a mean).
        sft_weight / with_sft_weight: f64 = 0.1, non_negative;
    }
}

impl Objective<PolicyPair> for SlicHfLoss {
    fn forward(&self, batch: PolicyPair) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = batch.map_ref(SequenceLogProbs::sum);
        let hinge = relu(-rewards.margin() + self.target_margin);
        let imitated = batch.chosen.unmodified().sum();
        LossOutput::new(hinge - imitated * self.sft_weight, rewards)
    }
}
