use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair, Rewards};
use crate::declare::objective;
use crate::objective::{LossOutput, Objective};
use crate::part::LabelNoise;

objective! {
    /// Alignment via optimal transport (Melnyk et al., 2406.05882): the sorted log-ratios of the
    /// policy should dominate.
    ///
    /// ```text
    /// paired:   Δ = sort(ℓ_w − ℓ_l) − sort(ℓ°_w − ℓ°_l)
    /// unpaired: Δ = sort(ρ_w) − sort(ρ_l)
    /// loss   = −ln σ(βΔ), with label noise as in DPO
    /// reward = β·ρ
    /// ```
    ///
    /// The losses belong to ranks of the batch, not to its examples: they depend on what else is
    /// in the batch, and micro-batches do *not* add up to one large batch.
    ///
    /// Burn 0.22.1 has no sort for GPUs. There the order is found on the host: `forward` waits for
    /// the device, and panics in a browser.
    example referenced "" = 0.313262, "one pair sorts to itself: −ln σ(0.1·10)";
    pub struct AotLoss from AotLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// Whether the differences of the pairs are sorted (TRL's `aot`), or the two sides apart
        /// (`aot_unpaired`, `aot_pair` until 0.24).
        paired / with_paired: bool = true;
        /// Assumption about flipped labels.
        label_noise / with_label_noise: LabelNoise = LabelNoise::Clean, choice;
    }
}

fn sort(values: Tensor<1>) -> Tensor<1> {
    let order = values.clone().without_autodiff().argsort(0);
    values.select(0, order)
}

impl Objective<ReferencedPair> for AotLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let delta = if self.paired {
            let policy = batch.map_ref(|y| y.policy().sum()).margin();
            let reference = batch.map_ref(|y| y.reference().sum()).margin();
            sort(policy.clone()) - sort(reference.cast(policy.dtype()))
        } else {
            batch.log_ratios().map(sort).margin()
        };
        let losses = self.label_noise.losses(delta * self.beta);
        LossOutput::new(losses, batch.log_ratios().without_autodiff() * self.beta)
    }

    fn whole_batch(&self) -> bool {
        true
    }
}
