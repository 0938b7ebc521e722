use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, WithScores};
use crate::declare::objective;
use crate::objective::{LossOutput, Objective};
use crate::part::RegressionUnit;

objective! {
    /// Regression to relative rewards (Gao et al., 2404.16767).
    ///
    /// ```text
    /// loss   = (ρ_w − ρ_l − η·(s_w − s_l))²            in nats
    ///          ((ρ_w − ρ_l)/η − (s_w − s_l))²          in units of the score
    /// reward = ρ
    /// ```
    ///
    /// The two differ by the factor η², and so by the learning rate: [`RegressionUnit`]. The
    /// authors' code regresses nats, compose-rl regresses scores. The scores are a [`WithScores`] column;
    /// which completion is called chosen does not matter.
    example scored "" = 81.0, "(10 − 1·(2 − 1))²";
    example scored ".with_score_scale(4.0).with_unit(RegressionUnit::Score)" = 2.25, "(10/4 − (2 − 1))²";
    pub struct RebelLoss from RebelLossConfig
        takes [WithScores<ReferencedPair>]
    {
        /// η > 0: nats per unit of score.
        score_scale / with_score_scale: f64 = 1.0, positive;
        /// Unit of the difference that is squared.
        unit / with_unit: RegressionUnit = RegressionUnit::LogRatio;
    }
}

impl Objective<WithScores<ReferencedPair>> for RebelLoss {
    fn forward(&self, batch: WithScores<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        let rho = batch.batch.log_ratios();
        let gap = batch.scores.margin().cast(rho.chosen.dtype());
        let residual = self.unit.residual(rho.margin(), gap, self.score_scale);
        LossOutput::new(residual.square(), rho)
    }
}
