use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, WithMargin};
use crate::hyperparameter::objective;
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
    /// [`WithMargin`] column the loss is that of h − m (ODPO, 2402.10571).
    ///
    /// TRL 1.16 ignores `label_smoothing` with its `sigmoid` loss; here every field acts. Its
    /// rewards stay β·ρ under any divergence or normalisation; ours are what the loss compares.
    ///
    /// ```
    /// use burn::tensor::{Device, Int, Tensor};
    /// use burn_preference::{DpoLossConfig, Objective, PolicyPair, SequenceLogProbs};
    ///
    /// let device = Device::default();
    /// let log_probs = |sum: [f32; 1]| {
    ///     SequenceLogProbs::new(
    ///         Tensor::<1>::from_floats(sum, &device),
    ///         Tensor::<1, Int>::from_ints([4], &device),
    ///     )
    /// };
    /// let policy = PolicyPair::new(log_probs([-10.0])?, log_probs([-30.0])?)?;
    /// let reference = PolicyPair::new(log_probs([-12.0])?, log_probs([-22.0])?)?;
    ///
    /// let dpo = DpoLossConfig::new().with_beta(0.1).init();
    /// let output = dpo.forward(policy.relative_to(reference)?);
    /// // h = 0.1·((−10 + 12) − (−30 + 22)) = 1, and −ln σ(1) = 0.31326
    /// assert!((output.mean().into_scalar::<f32>() - 0.31326).abs() < 1e-5);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    pub struct DpoLoss from DpoLossConfig {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// What is assumed about flipped labels.
        label_noise / with_label_noise: LabelNoise = LabelNoise::Clean, part;
        /// g: what the objective compares.
        divergence / with_divergence: Divergence = Divergence::ReverseKl, part;
        /// g(ρ) per sequence, or divided by the length (after g, as in TRL).
        normalization / with_normalization: Normalization = Normalization::Sum;
    }
}

impl DpoLoss {
    fn rewards(&self, batch: &ReferencedPair) -> Pair<Tensor<1>> {
        batch.map_ref(|y| {
            let g = self.divergence.apply(y.log_ratio());
            self.normalization.apply(g, y.policy()) * self.beta
        })
    }
}

impl Objective<ReferencedPair> for DpoLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = self.rewards(&batch);
        LossOutput::new(self.label_noise.losses(rewards.margin()), rewards)
    }
}

impl Objective<WithMargin<ReferencedPair>> for DpoLoss {
    fn forward(&self, batch: WithMargin<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = self.rewards(&batch.batch);
        let excess = rewards.margin() - batch.margin;
        LossOutput::new(self.label_noise.losses(excess), rewards)
    }
}
