use burn::tensor::Tensor;

use crate::batch::{Pair, PolicyPair};
use crate::declare::objective;
use crate::objective::{LossOutput, Objective};

objective! {
    /// SimPER (Xiao et al., 2502.00883): the inverse perplexities themselves. It has no
    /// hyperparameter.
    ///
    /// ```text
    /// loss   = −e^ℓ̄_w + e^ℓ̄_l
    /// reward = e^ℓ̄
    /// ```
    example policy "" = -0.25, "−½ + ¼";
    pub struct SimperLoss from SimperLossConfig
        takes [PolicyPair]
    {}
}

impl Objective<PolicyPair> for SimperLoss {
    fn forward(&self, batch: PolicyPair) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = batch.map_ref(|y| y.mean().exp());
        LossOutput::new(-rewards.margin(), rewards)
    }
}
