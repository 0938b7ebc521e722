use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair};
use crate::declare::objective;
use crate::math::{log_sigmoid, sigmoid};
use crate::objective::{LossOutput, Objective};
use crate::part::Divergence;

objective! {
    /// Efficient exact optimisation on pairs (Ji et al., 2402.00856, Eq. 16): the reverse KL from
    /// the policy's preference to the smoothed label.
    ///
    /// ```text
    /// loss   = σ(h)·[ln σ(h) − ln(1−ε)] + σ(−h)·[ln σ(−h) − ln ε]     h = β·(g(ρ_w) − g(ρ_l))
    /// reward = β·g(ρ)
    /// ```
    ///
    /// At ε = 0 the loss is infinite, so that ε = 0 is an error, as in TRL 1.16. (TRL 0.24 took 1e-3
    /// instead.)
    example referenced "" = 1.276310, "h = 1: 0.731·(−0.313 + 0.001) + 0.269·(−1.313 + 6.908)";
    pub struct ExoPairLoss from ExoPairLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// ε ∈ (0, 0.5): the smoothing of the label.
        label_smoothing / with_label_smoothing: f64 = 1e-3, positive_noise_rate;
        /// g: what the objective compares.
        divergence / with_divergence: Divergence = Divergence::ReverseKl, choice;
    }
}

impl Objective<ReferencedPair> for ExoPairLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = self.divergence.rewarded(&batch, self.beta);
        let toward = |h: Tensor<1>, label: f64| sigmoid(h.clone()) * (log_sigmoid(h) - label.ln());
        let losses =
            toward(h.clone(), 1.0 - self.label_smoothing) + toward(-h, self.label_smoothing);
        LossOutput::new(losses, rewards)
    }
}
