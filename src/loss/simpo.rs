use burn::tensor::Tensor;

use crate::batch::{Pair, PolicyPair};
use crate::declare::objective;
use crate::log_probs::SequenceLogProbs;
use crate::objective::{LossOutput, Objective};
use crate::part::LabelNoise;

objective! {
    /// SimPO (Meng et al., 2405.14734): length-normalised log-probabilities as rewards, and
    /// a margin to reach.
    ///
    /// ```text
    /// loss   = −ln σ(β·(ℓ̄_w − ℓ̄_l) − γ), with label noise as in DPO
    /// reward = β·ℓ̄
    /// ```
    ///
    /// γ is absolute, as in the paper, TRL and Liger. The authors' configs give γ/β: see
    /// [`from_margin_ratio`](SimpoLossConfig::from_margin_ratio).
    example policy "" = 0.518538, "2·ln 2 − 1 = 0.38629, and −ln σ of it";
    pub struct SimpoLoss from SimpoLossConfig
        takes [PolicyPair]
    {
        /// β > 0: reward per nat and token.
        beta / with_beta: f64 = 2.0, positive;
        /// γ: the margin to reach.
        target_margin / with_target_margin: f64 = 1.0, finite;
        /// Assumption about flipped labels.
        label_noise / with_label_noise: LabelNoise = LabelNoise::Clean, choice;
    }
}

impl SimpoLossConfig {
    /// γ given as a multiple of β: `gamma_beta_ratio` of the authors' code, HALOs and
    /// open-instruct.
    pub fn from_margin_ratio(beta: f64, ratio: f64) -> Self {
        Self::new().with_beta(beta).with_target_margin(beta * ratio)
    }
}

impl Objective<PolicyPair> for SimpoLoss {
    fn forward(&self, batch: PolicyPair) -> LossOutput<Pair<Tensor<1>>> {
        let means = batch.map_ref(SequenceLogProbs::mean);
        let (h, rewards) = means.rewarded(self.beta);
        LossOutput::new(self.label_noise.losses(h - self.target_margin), rewards)
    }
}
