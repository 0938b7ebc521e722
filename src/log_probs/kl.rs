use burn::tensor::{Bool, Shape, Tensor};

use super::predictions::{finish, prediction_mask};
use super::token::{check_logits, upcast};
use crate::error::InvalidInput;
use crate::math::logsumexp;

/// K = Σ_t KL(π° ‖ π) over the counted positions of each sequence, `[batch]`, nats: TDPO's column.
///
/// Gradients flow into the policy's logits, none into the reference's.
///
/// # Shapes
///
/// - `policy`, `reference`: logits `[batch, time, vocab]`, aligned as in
///   [`TokenLogProbs::from_logits`](super::TokenLogProbs::from_logits)
/// - `completion_mask`: `[batch, time]`
///
/// # Errors
///
/// As [`TokenLogProbs::from_logits`](super::TokenLogProbs::from_logits).
pub fn sequence_kl(
    policy: Tensor<3>,
    reference: Tensor<3>,
    completion_mask: Tensor<2, Bool>,
) -> Result<Tensor<1>, InvalidInput> {
    InvalidInput::check_shape("reference", &policy.shape(), &reference.shape())?;
    let policy = CountedLogits::new(policy, completion_mask.clone())?;
    let reference = CountedLogits::new(reference.without_autodiff(), completion_mask)?;
    let theirs = reference.log_softmax().cast(policy.logits.dtype());
    let ours = policy.log_softmax();
    // A token that the reference rules out contributes 0·(−∞) = 0.
    let ruled_out = theirs.clone().equal_elem(f64::NEG_INFINITY);
    let terms = (theirs.clone().exp() * (theirs - ours)).mask_fill(ruled_out, 0.0);
    let kl = finish(terms.sum_dim(2).squeeze_dim(2), policy.mask);
    Ok(kl.sequence().sum())
}

/// Logits of which only those rows are read that predict a counted token.
struct CountedLogits {
    logits: Tensor<3>,
    mask: Tensor<2, Bool>,
}

impl CountedLogits {
    fn new(logits: Tensor<3>, completion_mask: Tensor<2, Bool>) -> Result<Self, InvalidInput> {
        check_logits(&logits)?;
        let [batch, time, vocab] = logits.dims();
        let mask = prediction_mask([batch, time], &logits.device(), completion_mask)?;
        let not_counted: Tensor<3, Bool> = mask.clone().bool_not().unsqueeze_dim(2);
        let logits =
            upcast(logits).mask_fill(not_counted.expand(Shape::new([batch, time, vocab])), 0.0);
        Ok(Self { logits, mask })
    }

    fn log_softmax(&self) -> Tensor<3> {
        self.logits.clone() - logsumexp(self.logits.clone())
    }
}
