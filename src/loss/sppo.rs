use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, Rewards, WithPreference};
use crate::declare::objective;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Self-play preference optimisation (Wu et al., 2405.00675, Eq. 4.7).
    ///
    /// ```text
    /// loss   = (ρ_w − (P − ½)/β)² + (ρ_l + (P − ½)/β)²
    /// reward = β·ρ
    /// ```
    ///
    /// P is the probability that the chosen completion wins: a [`WithPreference`] column, or 1 for
    /// plain pairs ("hard" in TRL). There is no leading ½, as in TRL and Liger. TRL's default β is 0.1.
    example referenced ".with_beta(0.1)" = 18.0, "(2 − 5)² + (−8 + 5)²";
    pub struct SppoLoss from SppoLossConfig
        takes [ReferencedPair, WithPreference<ReferencedPair>]
    {
        /// β > 0: 1/η of the paper.
        beta / with_beta: f64 = 1e-3, positive;
    }
}

impl SppoLossConfig {
    /// TRL's default, β = 0.1.
    pub fn trl() -> Self {
        Self::new().with_beta(0.1)
    }
}

impl SppoLoss {
    fn losses(&self, batch: &ReferencedPair, edge: Tensor<1>) -> LossOutput<Pair<Tensor<1>>> {
        let rho = batch.log_ratios();
        let target = edge.cast(rho.chosen.dtype()) * self.beta.recip();
        let losses = (rho.chosen.clone() - target.clone()).square()
            + (rho.rejected.clone() + target).square();
        LossOutput::new(losses, rho.without_autodiff() * self.beta)
    }
}

impl Objective<ReferencedPair> for SppoLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let edge = batch.chosen.policy().sum().without_autodiff();
        self.losses(&batch, edge.full_like(0.5))
    }
}

impl Objective<WithPreference<ReferencedPair>> for SppoLoss {
    fn forward(&self, batch: WithPreference<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        self.losses(&batch.batch, batch.win_probability - 0.5)
    }
}
