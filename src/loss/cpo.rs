use burn::tensor::Tensor;

use crate::batch::{Imitated, Pair, PolicyPair, WithNll, WithStepTokens};
use crate::declare::{objective, over_step};
use crate::log_probs::SequenceLogProbs;
use crate::objective::LossOutput;
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
    /// multiplies the mean NLL of the batch's tokens: see [`trl`](CpoLossConfig::trl). With a
    /// [`WithStepTokens`] column that mean is over the tokens of the whole step, which may then be cut
    /// into parts.
    example policy "" = 1.257244, "−ln σ(0.1·4·ln 2) + ln 2";
    pub struct CpoLoss from CpoLossConfig
        takes [
            PolicyPair,
            WithNll<PolicyPair>,
            WithStepTokens<PolicyPair>,
            WithStepTokens<WithNll<PolicyPair>>
        ]
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
    fn output(
        &self,
        batch: &impl Imitated,
        tokens_per_example: Option<f64>,
    ) -> LossOutput<Pair<Tensor<1>>> {
        let sums = batch.pair().map_ref(SequenceLogProbs::sum);
        let (h, rewards) = sums.rewarded(self.beta);
        let preference = self.label_noise.losses(h);
        let nll = self
            .nll_normalization
            .nll_over(batch.imitated(), tokens_per_example)
            .cast(preference.dtype());
        LossOutput::new(preference + nll * self.sft_weight, rewards)
    }
}

over_step!(CpoLoss, nll_normalization: PolicyPair, WithNll<PolicyPair>);
