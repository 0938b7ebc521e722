use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, WithTies};
use crate::declare::objective;
use crate::objective::{LossOutput, Objective};
use crate::part::TieModel;

objective! {
    /// DPO with ties after Rao and Kupper (Chen et al., 2409.17431).
    ///
    /// ```text
    /// P(win) = σ(h − a)     P(tie) = (ν² − 1)·σ(h − a)·σ(−h − a)     a = ln ν,  h = β·(ρ_w − ρ_l)
    /// loss   = −ln P(labelled outcome)
    /// reward = β·ρ
    /// ```
    ///
    /// Ties are a [`WithTies`] column. No peer has this loss; it was derived again from the
    /// paper's probabilities, which sum to 1 over win, tie and loss.
    example untied "" = 0.743668, "−ln σ(1 − ln 3)";
    pub struct RaoKupperLoss from RaoKupperLossConfig
        takes [WithTies<ReferencedPair>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// ν > 1: how readily a small difference is called a tie.
        tie_factor / with_tie_factor: f64 = 3.0, above_one;
    }
}

impl Objective<WithTies<ReferencedPair>> for RaoKupperLoss {
    fn forward(&self, batch: WithTies<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = batch.batch.log_ratios().rewarded(self.beta);
        let ties = TieModel::RaoKupper(self.tie_factor);
        LossOutput::new(ties.losses(h, batch.tied), rewards)
    }
}

objective! {
    /// DPO with ties after Davidson (Chen et al., 2409.17431).
    ///
    /// ```text
    /// P(win) = 1/(1 + e^(−h) + 2ν·e^(−h/2))     P(tie) = 2ν·e^(−h/2)·P(win)     h = β·(ρ_w − ρ_l)
    /// loss   = −ln P(labelled outcome)
    /// reward = β·ρ
    /// ```
    ///
    /// Ties are a [`WithTies`] column. No peer has this loss; it was derived again from the
    /// paper's probabilities, which sum to 1 over win, tie and loss.
    example untied "" = 0.948154, "ln(1 + e^−1 + 2·e^−½)";
    pub struct DavidsonLoss from DavidsonLossConfig
        takes [WithTies<ReferencedPair>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// ν > 0: at h = 0 a tie is 2ν times as likely as a win.
        tie_factor / with_tie_factor: f64 = 1.0, positive;
    }
}

impl Objective<WithTies<ReferencedPair>> for DavidsonLoss {
    fn forward(&self, batch: WithTies<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = batch.batch.log_ratios().rewarded(self.beta);
        let ties = TieModel::Davidson(self.tie_factor);
        LossOutput::new(ties.losses(h, batch.tied), rewards)
    }
}
