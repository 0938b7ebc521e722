use burn::tensor::Tensor;

use crate::batch::{Batch, Pair, WithWeights};
use crate::error::InvalidInput;
use crate::log_probs::TokenLogProbs;
use crate::objective::{LossOutput, Objective};

/// An objective whose losses are multiplied by a [`WithWeights`] column.
///
/// The mean stays one over the batch, as in WPO; for Σ w·loss / Σ w use
/// [`LossOutput::weighted_mean`].
#[derive(Debug, Clone, PartialEq)]
pub struct Weighted<O>(
    /// The objective whose losses are weighted.
    pub O,
);

impl<B: Batch, O: Objective<B>> Objective<WithWeights<B>> for Weighted<O> {
    fn forward(&self, batch: WithWeights<B>) -> LossOutput<B::Rewards> {
        let WithWeights { batch, weights } = batch;
        let output = self.0.forward(batch);
        output.map_losses(|losses| {
            let weights = weights.cast(losses.dtype());
            losses * weights
        })
    }

    fn whole_batch(&self) -> bool {
        self.0.whole_batch()
    }
}

/// WPO's weight of each pair (Zhou et al., 2406.11827): how likely it is under the policy.
///
/// ```text
/// weight = min(max_weight, e^(m_w + m_l))     m = mean_t [ln π(y_t) − ln Σ_v π(v)²]
/// ```
///
/// No gradient flows into it. The paper's `max_weight` is 1; TRL 1.16 has none. An empty
/// completion has m = 0.
///
/// # Errors
///
/// `max_weight` is not a finite number > 0, or `collisions` (of [`TokenStatistics::collisions`](crate::TokenStatistics::collisions)) is not of
/// the same shape or on the same device as `policy`.
pub fn wpo_weights(
    policy: &Pair<TokenLogProbs>,
    collisions: &Pair<TokenLogProbs>,
    max_weight: Option<f64>,
) -> Result<Tensor<1>, InvalidInput> {
    if let Some(max) = max_weight
        && !(max > 0.0 && max.is_finite())
    {
        return Err(InvalidInput::new("max_weight", "a finite number > 0", max));
    }
    let m = |policy: &TokenLogProbs, collisions: &TokenLogProbs| {
        let (found, expected) = (collisions.log_probs().shape(), policy.log_probs().shape());
        InvalidInput::check_shape("collisions", &expected, &found)?;
        let (here, there) = (policy.mask().device(), collisions.mask().device());
        InvalidInput::check_device("collisions", &here, &there)?;
        let policy_log_probs = policy.log_probs();
        let collisions = collisions.log_probs().cast(policy_log_probs.dtype());
        let difference = policy_log_probs - collisions;
        Ok(TokenLogProbs::new(difference, policy.mask())?
            .sequence()
            .mean()
            .without_autodiff())
    };
    let log_weight =
        m(&policy.chosen, &collisions.chosen)? + m(&policy.rejected, &collisions.rejected)?;
    Ok(match max_weight {
        Some(max) => log_weight.clamp_max(max.ln()).exp(),
        None => log_weight.exp(),
    })
}
