use burn::tensor::Tensor;

use crate::batch::Ranked;
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::objective::{LossOutput, Objective};

objective! {
    /// DPO on ranked lists under the Plackett–Luce model (Rafailov et al., 2305.18290, App. A.3).
    ///
    /// ```text
    /// loss   = −Σ_k [q_(k) − ln Σ_{j ≥ k} e^q_(j)]     q = βρ, in the order of the scores
    /// reward = β·ρ
    /// ```
    ///
    /// Two candidates are DPO. Candidates of equal score keep their order in the list.
    example ranked "" = 0.313262, "two candidates: DPO, −ln σ(1)";
    pub struct PlackettLuceLoss from PlackettLuceLossConfig
        takes [Ranked<RelativeLogProbs<2>>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
    }
}

impl Objective<Ranked<RelativeLogProbs<2>>> for PlackettLuceLoss {
    fn forward(&self, batch: Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>> {
        let q = batch.rewards(self.beta);
        LossOutput::new(batch.order_nll(&q), q)
    }
}
