use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair};
use crate::declare::objective;
use crate::math::logistic_loss;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Length-regularised DPO (Park et al., 2403.19159).
    ///
    /// ```text
    /// loss   = −ln σ(h + α·(len_w − len_l))    h = β·(ρ_w − ρ_l)
    /// reward = β·ρ
    /// ```
    ///
    /// The sign follows from what the policy maximises, r − α·length. At its optimum r_w − r_l is
    /// h + α·(len_w − len_l), so that a chosen completion which is longer gets a weaker push. Several
    /// implementations subtract instead. The rewards leave the length out.
    example referenced "" = 0.313262, "equal lengths, so DPO: −ln σ(1)";
    pub struct RdpoLoss from RdpoLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// α ≥ 0: what a token costs; 0 is DPO.
        length_cost / with_length_cost: f64 = 0.01, non_negative;
    }
}

impl Objective<ReferencedPair> for RdpoLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = batch.log_ratios().rewarded(self.beta);
        let longer = batch.map_ref(|y| y.policy().lengths()).margin();
        LossOutput::new(logistic_loss(h + longer * self.length_cost), rewards)
    }
}
