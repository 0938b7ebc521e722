use burn::tensor::{Tensor, activation::relu};

use crate::batch::Ranked;
use crate::declare::objective;
use crate::log_probs::SequenceLogProbs;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Rank responses to align human feedback (Yuan et al., 2304.05302). No reference.
    ///
    /// ```text
    /// loss   = Σ_{s_i < s_j} (q_i − q_j)⁺ + w·NLL(best)     q = ℓ / max(length, 1)^κ
    /// reward = q
    /// ```
    ///
    /// The sum runs over all ordered pairs of present candidates; equal scores make no pair.
    /// `NLL(best)` is −ℓ̄ of the best-scored candidate, the mean where several tie: a list without an
    /// order has this term alone. A list without candidates has loss 0.
    ///
    /// The authors' code weighs the ranking term instead of the NLL, and imitates the first of several
    /// best candidates. As it runs it takes the padded length of the batch for every candidate's; the
    /// paper and this crate take its own.
    example ranked_policy "" = 3.5, "q = −0.5 and −2, the better one is less likely: 1.5 + NLL 2";
    pub struct RrhfLoss from RrhfLossConfig
        takes [Ranked<SequenceLogProbs<2>>]
    {
        /// κ ≥ 0: the power of the length that divides ℓ.
        length_penalty / with_length_penalty: f64 = 1.0, non_negative;
        /// w ≥ 0: the weight of the best candidate's NLL.
        sft_weight / with_sft_weight: f64 = 1.0, non_negative;
    }
}

impl Objective<Ranked<SequenceLogProbs<2>>> for RrhfLoss {
    fn forward(&self, batch: Ranked<SequenceLogProbs<2>>) -> LossOutput<Tensor<2>> {
        let candidates = batch.candidates();
        let length = candidates.divisor();
        // Not `powf_scalar`, which goes through f32 on some backends.
        let penalty = match self.length_penalty {
            1.0 => length,
            kappa => (length.log() * kappa).exp(),
        };
        let q = batch.fill_absent(candidates.sum() / penalty);
        let ranking = relu(batch.differences(&q))
            .mask_fill(batch.worse_than().bool_not(), 0.0)
            .sum_dims_squeeze::<1, usize>(&[1, 2]);
        let losses = ranking + batch.best_nll() * self.sft_weight;
        LossOutput::new(batch.nan_where_unknown(losses, &q), q)
    }
}
