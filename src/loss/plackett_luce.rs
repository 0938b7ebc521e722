use burn::tensor::Tensor;

use crate::batch::Ranked;
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::objective::{LossOutput, Objective};

objective! {
    /// DPO on ranked lists under the Plackett–Luce model (Rafailov et al., 2305.18290, App. A.3).
    ///
    /// ```text
    /// loss   = −Σ_k [q_k − ln(e^q_k + Σ_{s_j < s_k} e^q_j)]     q = βρ
    /// reward = β·ρ
    /// ```
    ///
    /// e^(−loss) is the product of the probabilities that each candidate comes first among itself and
    /// all worse ones. Without ties that is the probability of the order, the paper's loss; two
    /// candidates are DPO.
    ///
    /// **Ties.** Candidates of equal score do not compete, and their order in the list means nothing.
    /// e^(−loss) is then a lower bound of P(every candidate comes before all worse ones), the sum of
    /// Plackett and Luce's probabilities over all orders of the equal ones. That sum has M! terms for
    /// M equal candidates. The bound is the sum if only candidates of the worst score tie. A list
    /// without an order (all scores are equal, or there are fewer than two candidates) has loss 0.
    example ranked "" = 0.313262, "two candidates: DPO, −ln σ(1)";
    example ranked_tied "" = 1.006409, "the better two, each against the third: ln 2 and ln(1 + e^−1)";
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
