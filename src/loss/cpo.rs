use burn::tensor::Tensor;

use crate::batch::{Pair, PolicyPair, WithNll};
use crate::declare::objective;
use crate::log_probs::SequenceLogProbs;
use crate::objective::{LossOutput, Objective};
use crate::part::{LabelNoise, NllNormalization};

objective! {
    /// Contrastive preference optimisation (Xu et al., 2401.08417): DPO with a uniform
    /// reference, and a term that imitates the chosen completion.
    ///
    /// ```text
    /// loss   = −ln σ(β·(ℓ_w − ℓ_l)) + α·NLL_w, with label noise as in DPO
    /// reward = β·ℓ
    /// ```
    ///
    /// The NLL is that of the chosen completion, or of a [`WithNll`] column. TRL's `cpo_alpha`
    /// multiplies the mean NLL of the batch's tokens: see [`trl`](CpoLossConfig::trl).
    ///
    /// # Panics
    ///
    /// `forward` panics if the column has the tokens of the step and the mean is per sequence: see
    /// [`WithNll::over_step`].
    example policy "" = 1.257244, "−ln σ(0.1·4·ln 2) + ln 2";
    pub struct CpoLoss from CpoLossConfig
        takes [PolicyPair, WithNll<PolicyPair>]
    {
        /// β > 0: reward per nat.
        beta / with_beta: f64 = 0.1, positive;
        /// α ≥ 0: the weight of the NLL.
        sft_weight / with_sft_weight: f64 = 1.0, non_negative;
        /// The mean that the NLL takes.
        nll_normalization / with_nll_normalization: NllNormalization = NllNormalization::Sequence;
        /// Assumption about flipped labels.
        label_noise / with_label_noise: LabelNoise = LabelNoise::Clean, choice;
    }
}

impl CpoLossConfig {
    /// TRL's convention: the NLL is the mean over all tokens of the batch.
    pub fn trl() -> Self {
        Self::new().with_nll_normalization(NllNormalization::Token)
    }
}

impl CpoLoss {
    fn losses(&self, batch: &PolicyPair, nll: Tensor<1>) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = batch.map_ref(SequenceLogProbs::sum).rewarded(self.beta);
        let preference = self.label_noise.losses(h);
        let nll = nll.cast(preference.dtype());
        LossOutput::new(preference + nll * self.sft_weight, rewards)
    }
}

impl Objective<PolicyPair> for CpoLoss {
    fn forward(&self, batch: PolicyPair) -> LossOutput<Pair<Tensor<1>>> {
        self.losses(&batch, self.nll_normalization.nll(&batch.chosen))
    }

    fn whole_batch(&self) -> bool {
        self.nll_normalization.whole_batch()
    }
}

impl Objective<WithNll<PolicyPair>> for CpoLoss {
    fn forward(&self, batch: WithNll<PolicyPair>) -> LossOutput<Pair<Tensor<1>>> {
        self.losses(&batch.batch, self.nll_normalization.nll_of(&batch))
    }

    fn whole_batch(&self) -> bool {
        self.nll_normalization.whole_batch()
    }
}
