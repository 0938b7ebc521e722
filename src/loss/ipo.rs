use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, Rewards};
use crate::declare::objective;
use crate::math::bounded_square;
use crate::objective::{LossOutput, Objective};
use crate::part::{Divergence, Normalization};

objective! {
    /// Identity preference optimisation (Azar et al., 2310.12036, Eq. 17).
    ///
    /// ```text
    /// loss   = (Δ − 1/(2τ))²             Δ = r_w − r_l,   r = g(ρ)/length  or  g(ρ)
    /// reward = τ·r
    /// ```
    ///
    /// The equation in the paper and the first public code sum over tokens:
    /// [`paper`](IpoLossConfig::paper). The authors' results, TRL and HALOs divide by the length, and
    /// so does the default here. At policy = reference the loss is 1/(4τ²).
    ///
    /// In the paper g(ρ) = ρ. TRL takes other divergences as well, whose g may be as large as e^80.
    /// What is squared is clamped to 1e18 in f32, so that the square is finite.
    example referenced ".with_tau(0.1)" = 6.25, "Δ = 2/4 + 8/4, and (2.5 − 1/0.2)²";
    example referenced ".with_normalization(Normalization::Sum)" = 25.0, "Δ = 10, and (10 − 5)²";
    pub struct IpoLoss from IpoLossConfig
        takes [ReferencedPair]
    {
        /// τ > 0: the regularisation; the target margin is 1/(2τ) nats.
        tau / with_tau: f64 = 0.1, positive;
        /// Mean over the completion's tokens, or the paper's sum.
        normalization / with_normalization: Normalization = Normalization::Mean;
        /// g: what the objective compares.
        divergence / with_divergence: Divergence = Divergence::ReverseKl, choice;
    }
}

impl IpoLossConfig {
    /// As printed in the paper, and in the first public code: log-ratios summed over tokens.
    pub fn paper() -> Self {
        Self::new().with_normalization(Normalization::Sum)
    }
}

impl Objective<ReferencedPair> for IpoLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let r = self.divergence.compared(&batch, self.normalization);
        let losses = bounded_square(r.margin() - 0.5 / self.tau);
        LossOutput::new(losses, r.without_autodiff() * self.tau)
    }
}
