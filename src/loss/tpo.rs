use burn::tensor::Tensor;

use crate::batch::{Imitated, Pair, PolicyPair, WithNll, WithStepTokens};
use crate::declare::{objective, over_step};
use crate::log_probs::SequenceLogProbs;
use crate::objective::LossOutput;
use crate::part::{LabelNoise, NllNormalization, Normalization};

objective! {
    /// Triple preference optimisation (Saeidi et al., 2405.16681), TPO and TPO-L: a pair, and a
    /// gold completion of the same prompt to imitate. No reference.
    ///
    /// ```text
    /// loss   = −ln σ(β·(r_w − r_l) − γ) + α·NLL_gold     r = ℓ (TPO)  or  ℓ̄ (TPO-L),
    ///          with label noise as in DPO
    /// reward = β·r
    /// ```
    ///
    /// The gold completions are a [`WithNll`] column; a batch without it does not compile. CPO imitates
    /// the chosen completion instead. TPO has γ = 0; TPO-L is [`tpo_l`](TpoLossConfig::tpo_l).
    ///
    /// TRL's NLL is the mean over the tokens of the batch: [`trl`](TpoLossConfig::trl). The authors'
    /// code takes that mean over prompt and completion: for theirs, give the column the
    /// log-probabilities of both. With a [`WithStepTokens`] column the mean is over the gold tokens of
    /// the whole step, which may then be cut into parts.
    example with_gold "" = 1.179380, "−ln σ(0.01·4·ln 2) + 2/4";
    example with_gold ".with_beta(2.0).with_normalization(Normalization::Mean)" = 0.723144, "−ln σ(2·ln 2) + 2/4";
    pub struct TpoLoss from TpoLossConfig
        takes [WithNll<PolicyPair>, WithStepTokens<WithNll<PolicyPair>>]
    {
        /// β > 0: reward per nat, or per nat and token.
        beta / with_beta: f64 = 0.01, positive;
        /// γ: the margin to reach.
        target_margin / with_target_margin: f64 = 0.0, finite;
        /// α ≥ 0: the weight of the gold completion's NLL.
        sft_weight / with_sft_weight: f64 = 1.0, non_negative;
        /// ℓ per sequence (TPO), or divided by the length (TPO-L).
        normalization / with_normalization: Normalization = Normalization::Sum;
        /// The mean that the NLL takes.
        nll_normalization / with_nll_normalization: NllNormalization = NllNormalization::Sequence;
        /// Assumption about flipped labels.
        label_noise / with_label_noise: LabelNoise = LabelNoise::Clean, choice;
    }
}

impl TpoLossConfig {
    /// TPO-L: log-probabilities per token, and a margin γ, absolute as TRL's `tpo_l_gamma`. The
    /// authors take β = 2, γ = 1.6 and α = 0.05, or β = 0.01, γ = 0.5 and α = 1.
    pub fn tpo_l(target_margin: f64) -> Self {
        Self::new()
            .with_normalization(Normalization::Mean)
            .with_target_margin(target_margin)
    }

    /// TRL's convention: the NLL is the mean over all gold tokens of the batch.
    pub fn trl() -> Self {
        Self::new().with_nll_normalization(NllNormalization::Token)
    }
}

impl TpoLoss {
    fn output(
        &self,
        batch: &impl Imitated,
        tokens_per_example: Option<f64>,
    ) -> LossOutput<Pair<Tensor<1>>> {
        let of = |y: &SequenceLogProbs| self.normalization.apply(y.sum(), y);
        let (h, rewards) = batch.pair().map_ref(of).rewarded(self.beta);
        let preference = self.label_noise.losses(h - self.target_margin);
        let nll = self
            .nll_normalization
            .nll_over(batch.imitated(), tokens_per_example)
            .cast(preference.dtype());
        LossOutput::new(preference + nll * self.sft_weight, rewards)
    }
}

over_step!(TpoLoss, nll_normalization: WithNll<PolicyPair>);
