use burn::tensor::Tensor;
use burn::tensor::activation::relu;

use crate::batch::{Pair, ReferencedPair};
use crate::declare::objective;
use crate::objective::{LossOutput, Objective};
use crate::part::Divergence;

objective! {
    /// The hinge loss of the reward margin: SLiC normalised by a reference (2305.10425), RSO
    /// (2309.06657).
    ///
    /// ```text
    /// loss   = (1 − h)⁺                  h = β·(g(ρ_w) − g(ρ_l))
    /// reward = β·g(ρ)
    /// ```
    ///
    /// g(ρ) = ρ in the papers. The gradient at h = 1 is 0.
    example referenced ".with_beta(0.05)" = 0.5, "h = 0.05·(2 + 8), and 1 − 0.5";
    pub struct HingeLoss from HingeLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// g: what the objective compares.
        divergence / with_divergence: Divergence = Divergence::ReverseKl, choice;
    }
}

impl Objective<ReferencedPair> for HingeLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = self.divergence.rewarded(&batch, self.beta);
        LossOutput::new(relu(-h + 1), rewards)
    }
}
