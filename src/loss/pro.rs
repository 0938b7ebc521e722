use burn::tensor::Tensor;

use crate::batch::Ranked;
use crate::declare::objective;
use crate::log_probs::SequenceLogProbs;
use crate::math::logsumexp_where;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Preference ranking optimisation (Song et al., 2306.17492). No reference.
    ///
    /// ```text
    /// loss   = Σ_k [ln(e^(q_k·T_k) + Σ_{s_i < s_k} e^(q_i·(s_k − s_i))) − q_k·T_k] + w·NLL(best)
    ///          q = ℓ̄,   T_k = max_i (s_k − s_i)
    /// reward = ℓ̄
    /// ```
    ///
    /// A candidate without a worse one adds nothing, and candidates of equal score do not compete.
    /// `NLL(best)` is −ℓ̄ of the best-scored candidate, the mean where several tie.
    /// The authors' code takes the sum for the NLL, once per stage; and it does not shift its mask
    /// with the labels, so it drops the first response token and scores a padding token instead.
    example ranked_policy "" = 1.341154, "T = 0.6: ln(e^−1.2 + e^−0.3) + 1.2, and 0.05·2";
    pub struct ProLoss from ProLossConfig
        takes [Ranked<SequenceLogProbs<2>>]
    {
        /// w ≥ 0: the weight of the best candidate's NLL.
        sft_weight / with_sft_weight: f64 = 0.05, non_negative;
    }
}

impl Objective<Ranked<SequenceLogProbs<2>>> for ProLoss {
    fn forward(&self, batch: Ranked<SequenceLogProbs<2>>) -> LossOutput<Tensor<2>> {
        let q = batch.fill_absent(batch.candidates().mean());
        let square = batch.square();
        // factor[k, i] = s_k − s_i where i is worse than k; T_k, the largest of its row, where i = k.
        let gap = batch.score_gaps().cast(q.dtype());
        let temperature = gap.clone().max_dim(2);
        let factor = gap.mask_where(batch.itself(), temperature.clone().expand(square.clone()));
        let own = q.clone() * temperature.squeeze_dim::<2>(2);
        let terms = q.clone().unsqueeze_dim::<3>(1).expand(square) * factor;
        let competing = batch.better_than().bool_or(batch.itself());
        let ranking = logsumexp_where(terms, competing).squeeze_dim::<2>(2) - own;
        let losses = batch.sum_present(ranking) + batch.best_nll() * self.sft_weight;
        LossOutput::new(batch.nan_where_unknown(losses, &q), q)
    }
}
