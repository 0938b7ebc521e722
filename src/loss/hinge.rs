use burn::tensor::Tensor;
use burn::tensor::activation::relu;

use crate::batch::{Pair, ReferencedPair};
use crate::declare::objective;
use crate::objective::{LossOutput, Objective};
use crate::part::{Divergence, Normalization};

objective! {
    /// The hinge loss of the reward margin: SLiC normalised by a reference (2305.10425), RSO
    /// (2309.06657).
    ///
    /// ```text
    /// loss   = (1 − h)⁺                  h = r_w − r_l,   r = β·g(ρ)  or  β·g(ρ)/length
    /// reward = r
    /// ```
    ///
    /// g(ρ) = ρ in the papers. The gradient at h = 1 is 0. RePO (Wu et al., 2503.07426),
    /// (γ − ℓ̄_w + ℓ̄_l)⁺, is γ times this loss per token, at β = 1/γ and without a reference:
    /// [in the guide](crate::guide::dpo_variants#another-reference).
    example referenced ".with_beta(0.05)" = 0.5, "h = 0.05·(2 + 8), and 1 − 0.5";
    example referenced ".with_normalization(Normalization::Mean)" = 0.75, "h = 0.1·(2 + 8)/4, and 1 − 0.25";
    pub struct HingeLoss from HingeLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// g: what the objective compares.
        divergence / with_divergence: Divergence = Divergence::ReverseKl, choice;
        /// g(ρ) per sequence, or divided by the length.
        normalization / with_normalization: Normalization = Normalization::Sum;
    }
}

impl Objective<ReferencedPair> for HingeLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let compared = self.divergence.compared(&batch, self.normalization);
        let (h, rewards) = compared.rewarded(self.beta);
        LossOutput::new(relu(-h + 1), rewards)
    }
}
