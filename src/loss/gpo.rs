use burn::tensor::Tensor;

use crate::batch::{Pair, ReferencedPair};
use crate::declare::objective;
use crate::objective::{LossOutput, Objective};
use crate::part::Link;

objective! {
    /// Generalised preference optimisation (Tang et al., 2402.05749): any convex f of the reward
    /// margin.
    ///
    /// ```text
    /// loss   = f(h)                      h = β·(ρ_w − ρ_l)
    /// reward = β·ρ
    /// ```
    ///
    /// The hinge and the logistic loss have objectives of their own: [`HingeLoss`] and
    /// [`DpoLoss`].
    ///
    /// [`HingeLoss`]: crate::HingeLoss
    /// [`DpoLoss`]: crate::DpoLoss
    example referenced "" = 0.367879, "h = 1, and e^−1";
    example referenced ".with_beta(0.05).with_link(Link::SquaredHinge)" = 0.25, "(1 − 0.5)²";
    pub struct GpoLoss from GpoLossConfig
        takes [ReferencedPair]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// f: the loss of a margin.
        link / with_link: Link = Link::Exponential;
    }
}

impl Objective<ReferencedPair> for GpoLoss {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let (h, rewards) = batch.log_ratios().rewarded(self.beta);
        LossOutput::new(self.link.losses(h), rewards)
    }
}
