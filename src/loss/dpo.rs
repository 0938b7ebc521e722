use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, WithMargin, WithPreference};
use crate::declare::objective;
use crate::objective::{LossOutput, Objective};
use crate::part::{Divergence, LabelNoise, Normalization};

objective! {
    /// Direct preference optimisation (Rafailov et al., 2305.18290, Eq. 7) and its variants.
    ///
    /// ```text
    /// loss   = −ln σ(h)                  h = β·(g(ρ_w) − g(ρ_l)),   ρ = ℓ − ℓ°
    /// reward = β·g(ρ)
    /// ```
    ///
    /// | field | alternatives | source |
    /// |---|---|---|
    /// | `label_noise` | clean, conservative (cDPO), robust | Mitchell's note; 2403.00409 |
    /// | `divergence` | reverse KL (g = ρ), forward KL, Jensen–Shannon, α | 2309.16240 |
    /// | `normalization` | g(ρ), or g(ρ)/length; Tülu 3 divides, with β = 5 | 2411.15124 |
    ///
    /// At policy = reference the loss is ln 2 and the gradient of ℓ_w is −β/2. With a
    /// [`WithMargin`] column the loss is that of h − m (ODPO, 2402.10571); with a
    /// [`WithPreference`] column of p it is p·loss(h) + (1 − p)·loss(−h).
    ///
    /// TRL 1.16 ignores `label_smoothing` with its `sigmoid` loss; here every field acts. Its
    /// rewards stay β·ρ under any divergence or normalisation; ours are what the loss compares.
    example referenced ".with_beta(0.1)" = 0.313262, "h = 0.1·(2 + 8) = 1, and −ln σ(1)";
    pub struct DpoLoss from DpoLossConfig
        takes [ReferencedPair, WithMargin<ReferencedPair>, WithPreference<ReferencedPair>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// Assumption about flipped labels.
        label_noise / with_label_noise: LabelNoise = LabelNoise::Clean, choice;
        /// g: what the objective compares.
        divergence / with_divergence: Divergence = Divergence::ReverseKl, choice;
        /// g(ρ) per sequence, or divided by the length (after g, as in TRL).
        normalization / with_normalization: Normalization = Normalization::Sum;
    }
}

impl DpoLoss {
    /// The margins h, and the rewards.
    fn margins(&self, batch: &ReferencedPair) -> (Tensor<1>, Pair<Tensor<1>>) {
        let compared = self.divergence.compared(batch, self.normalization);
        compared.rewarded(self.beta)
    }
}

impl Objective<ReferencedPair> for DpoLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = self.margins(&batch);
        LossOutput::new(self.label_noise.losses(h), rewards)
    }
}

impl Objective<WithMargin<ReferencedPair>> for DpoLoss {
    fn forward(&self, batch: WithMargin<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = self.margins(&batch.batch);
        let excess = h.clone() - batch.margin.cast(h.dtype());
        LossOutput::new(self.label_noise.losses(excess), rewards)
    }
}

impl Objective<WithPreference<ReferencedPair>> for DpoLoss {
    fn forward(&self, batch: WithPreference<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = self.margins(&batch.batch);
        let p = batch.win_probability.cast(h.dtype());
        LossOutput::new(self.label_noise.graded_losses(h, p), rewards)
    }
}
