use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, WithScores};
use crate::declare::objective;
use crate::objective::{LossOutput, Objective};
use crate::part::GapDistance;

objective! {
    /// Reward-aware preference optimisation (2406.11704, NeMo-Aligner): the reward margin should
    /// equal the gap of the scores.
    ///
    /// ```text
    /// loss   = D(d, h)          d = η·(s_w − s_l),   h = β·(ρ_w − ρ_l)
    /// reward = β·ρ
    /// ```
    ///
    /// The scores are a [`WithScores`] column.
    example scored ".with_score_scale(2.0)" = 0.067131, "d = 2, h = 1: KL(Ber σ(2) ‖ Ber σ(1))";
    pub struct RpoLoss from RpoLossConfig
        takes [WithScores<ReferencedPair>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// η > 0: reward per unit of score.
        score_scale / with_score_scale: f64 = 1.0, positive;
        /// D: how far the margin is from the gap.
        distance / with_distance: GapDistance = GapDistance::BackwardKl;
    }
}

impl Objective<WithScores<ReferencedPair>> for RpoLoss {
    fn forward(&self, batch: WithScores<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = batch.batch.log_ratios().rewarded(self.beta);
        let gap = batch.scores.margin().cast(h.dtype()) * self.score_scale;
        LossOutput::new(self.distance.losses(gap, h), rewards)
    }
}
