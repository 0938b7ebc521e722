use burn::tensor::Tensor;

use crate::batch::{Scored, WithValue};
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::math::upcast;
use crate::objective::{LossOutput, Objective};

objective! {
    /// Direct reward optimisation with a value, DRO-V (Richemond et al., 2405.19107): a regression on
    /// the rewards of single completions, whoever wrote them.
    ///
    /// ```text
    /// loss   = ½·(r − V − τ·ρ)²
    /// reward = τ·ρ
    /// ```
    ///
    /// r is the score of a [`Scored`] batch. V is a [`WithValue`] column, the output of a model of the
    /// prompt. Gradients flow through the column, so that this model learns from the same loss. At
    /// the optimum V = τ·ln E e^(r/τ) over the reference's completions, and ρ = (r − V)/τ.
    ///
    /// The gradients of policy and value are those of the equation. The paper's Algorithm 1 divides
    /// the policy's gradient by τ, which acts as a learning rate; at τ = 1 both agree.
    example scored_with_value "" = 1.125, "r = 3, V = 2.5, ρ = 2: ½·(3 − 2.5 − 2)²";
    pub struct DroLoss from DroLossConfig
        takes [WithValue<Scored<RelativeLogProbs>>]
    {
        /// τ > 0: reward per nat of log-ratio.
        tau / with_tau: f64 = 1.0, positive;
    }
}

/// r − V − τ·ρ, and τ·ρ.
fn residual(
    batch: &Scored<RelativeLogProbs>,
    value: Tensor<1>,
    scale: f64,
) -> (Tensor<1>, Tensor<1>) {
    let rewards = batch.log_probs().log_ratio() * scale;
    let scores = upcast(batch.scores());
    // Large scores and a value beside them lose nothing before they are subtracted.
    let advantage = scores.clone() - value.cast(scores.dtype());
    (advantage.cast(rewards.dtype()) - rewards.clone(), rewards)
}

impl Objective<WithValue<Scored<RelativeLogProbs>>> for DroLoss {
    fn forward(&self, batch: WithValue<Scored<RelativeLogProbs>>) -> LossOutput<Tensor<1>> {
        let (residual, rewards) = residual(&batch.batch, batch.value, self.tau);
        LossOutput::new(residual.square() * 0.5, rewards)
    }
}

objective! {
    /// A*-PO (Brantley et al., 2505.20686): the regression of [`DroLoss`] on the policy's own samples,
    /// with the value of the best policy, which is computed once.
    ///
    /// ```text
    /// loss   = (β₂·ρ − (r − V*))²
    /// reward = β₂·ρ
    /// ```
    ///
    /// V* is a [`WithValue`] column that [`optimal_values`](crate::batch::optimal_values) makes of
    /// samples of the reference, at a β₁ of its own (authors: ½, and β₂ = 1e-3). No gradient flows
    /// into it. The completions are the policy's, one per prompt.
    example scored_with_value ".with_beta(0.1)" = 0.09, "r = 3, V* = 2.5, ρ = 2: (0.2 − 0.5)²";
    pub struct AstarPoLoss from AstarPoLossConfig
        takes [WithValue<Scored<RelativeLogProbs>>]
    {
        /// β₂ > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 1e-3, positive;
    }
}

impl Objective<WithValue<Scored<RelativeLogProbs>>> for AstarPoLoss {
    fn forward(&self, batch: WithValue<Scored<RelativeLogProbs>>) -> LossOutput<Tensor<1>> {
        let value = batch.value.without_autodiff();
        let (residual, rewards) = residual(&batch.batch, value, self.beta);
        LossOutput::new(residual.square(), rewards)
    }
}

objective! {
    /// Quantile reward policy optimisation (Matrenok et al., 2507.08068): rewards as quantiles,
    /// whose partition function is known.
    ///
    /// ```text
    /// loss   = (R_q − β·ln Z − β·ρ)²          Z = E e^(u/β) = β·(e^(1/β) − 1),  u ∈ [0, 1] uniform
    /// reward = β·ρ
    /// ```
    ///
    /// The score is R_q ∈ \[0, 1\], the share of the reference's samples that are not better:
    /// [`quantile_scores`](crate::batch::quantile_scores). If the rewards are continuous, R_q is
    /// uniform under the reference, so that Z needs no samples. If they are verdicts of 0 and 1, it is
    /// not uniform, and no policy reaches the minimum: take A*-PO or DRO then.
    ///
    /// Z is exact here. The authors' code drops the −1, and its ln Z differs by 5e-5 at β = 0.1 and by
    /// 0.15 at β = 0.5. This is the paper's identity transformation; its other transformations change
    /// the score and Z. The default β is that of the authors' configuration.
    example quantiles ".with_beta(0.1)" = 0.048284, "R_q = 0.75, ρ = 2, β·ln Z = 1 + 0.1·ln 0.1 + 0.1·ln(1 − e^−10)";
    pub struct QrpoLoss from QrpoLossConfig
        takes [Scored<RelativeLogProbs>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 3e-3, positive;
    }
}

impl QrpoLoss {
    /// β·ln Z, without the exponential of 1/β.
    fn value(&self) -> f64 {
        let beta = self.beta;
        if beta > 1e3 {
            return 0.5 + (24.0 * beta).recip();
        }
        // 1 − e^(−1/β)
        let complement = -(-beta.recip()).exp_m1();
        1.0 + beta * (beta * complement).ln()
    }
}

impl Objective<Scored<RelativeLogProbs>> for QrpoLoss {
    fn forward(&self, batch: Scored<RelativeLogProbs>) -> LossOutput<Tensor<1>> {
        let rewards = batch.log_probs().log_ratio() * self.beta;
        let residual = batch.scores().cast(rewards.dtype()) - self.value() - rewards.clone();
        LossOutput::new(residual.square(), rewards)
    }
}
