use burn::tensor::Tensor;

use crate::batch::{Demonstrations, WithStepTokens};
use crate::declare::{objective, over_step};
use crate::objective::LossOutput;
use crate::part::{NllNormalization, TokenWeighting};

objective! {
    /// Supervised fine-tuning (Ouyang et al., 2203.02155, their first step): the likelihood of
    /// demonstrations.
    ///
    /// ```text
    /// loss   = −ℓ·examples / tokens    mean per token: Σ loss / examples = Σ −ℓ / tokens
    ///          −ℓ / length             mean per sequence
    ///          −ℓ                      sum
    /// reward = ℓ
    /// ```
    ///
    /// By default every token of the step counts the same, as in TRL and transformers. With a
    /// [`WithStepTokens`] column the tokens are those of the whole step, and a step may be cut into
    /// parts; without it they are those of the batch.
    ///
    /// With [`TokenWeighting::Probability`] it is DFT (Wu et al., 2508.05629), TRL's
    /// `loss_type="dft"`: ℓ = Σ_t π(y_t)·ln π(y_t), where no gradient flows through the weight. Its
    /// value is no measure of progress: −π·ln π rises until π is 1/e. Look at the metric `nll`.
    ///
    /// A batch or a step in which nothing counts has the loss 0 here. [`WithStepTokens::new`] is an
    /// error there.
    example demonstrations "" = 1.333333, "(4·1 + 2·2)/6";
    example demonstrations ".with_normalization(NllNormalization::Sequence)" = 1.5, "(1 + 2)/2";
    example demonstrations ".with_token_weighting(TokenWeighting::Probability)" = 0.335477,
        "(4·e⁻¹·1 + 2·e⁻²·2)/6";
    pub struct SftLoss from SftLossConfig
        takes [Demonstrations, WithStepTokens<Demonstrations>]
    {
        /// The mean that the likelihood takes: per token, per sequence, or none.
        normalization / with_normalization: NllNormalization = NllNormalization::Token;
        /// The weight of each token.
        token_weighting / with_token_weighting: TokenWeighting = TokenWeighting::Uniform;
    }
}

impl SftLoss {
    fn output(
        &self,
        batch: &Demonstrations,
        tokens_per_example: Option<f64>,
    ) -> LossOutput<Tensor<1>> {
        let log_probs = self.token_weighting.sequence(batch);
        let nll = self.normalization.nll_over(&log_probs, tokens_per_example);
        LossOutput::new(nll, log_probs.sum())
    }
}

over_step!(SftLoss, normalization: Demonstrations);
