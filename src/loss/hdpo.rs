use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair};
use crate::declare::objective;
use crate::math::logistic_loss;
use crate::objective::{LossOutput, Objective};

objective! {
    /// H-DPO (Omura et al., 2411.07595): the entropy of the policy is weighed apart from
    /// the cross-entropy to the reference.
    ///
    /// ```text
    /// loss   = −ln σ(r_w − r_l)       r = β·(α·ℓ − ℓ°)
    /// reward = r
    /// ```
    ///
    /// α < 1 sharpens the policy, α > 1 flattens it. α = 1 is DPO, so there is no default.
    example referenced of 0.9 "" = 0.371101, "0.1·(0.9·20 − 10) = 0.8";
    pub struct HdpoLoss from HdpoLossConfig
        takes [ReferencedPair]
        requires entropy_weight / with_entropy_weight: f64, positive,
            "α > 0: the weight of the policy's entropy."
    {
        /// β > 0: reward per nat.
        beta / with_beta: f64 = 0.1, positive;
    }
}

impl Objective<ReferencedPair> for HdpoLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let compared = batch.map_ref(|y| {
            let policy = y.policy().sum() * self.entropy_weight;
            let reference = y.reference().sum().cast(policy.dtype());
            policy - reference
        });
        let (h, rewards) = compared.rewarded(self.beta);
        LossOutput::new(logistic_loss(h), rewards)
    }
}
