use burn::tensor::{Bool, Shape, Tensor};

use super::head::LmHead;
use super::logits::check_logits;
use super::positions::CountedPositions;
use super::predictions::without_last;
use super::shift::prediction_mask;
use crate::error::InvalidInput;
use crate::kernel;
use crate::math::{logsumexp, upcast};

/// Sum over the counted positions of each sequence of KL(π° ‖ π), K = Σ_t KL, `[batch]`, nats:
/// TDPO's column.
///
/// Gradients flow into the policy's logits, none into the reference's.
///
/// # Shapes
///
/// - `policy`, `reference`: logits `[batch, time, vocab]`, aligned as in
///   [`TokenLogProbs::from_output`](super::TokenLogProbs::from_output)
/// - `completion_mask`: `[batch, time]`
///
/// # Errors
///
/// As [`TokenLogProbs::from_output`](super::TokenLogProbs::from_output).
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
    let kl = without_last(terms.sum_dim(2).squeeze_dim(2), policy.mask);
    Ok(kl.sequence().sum())
}

/// [`sequence_kl`] from hidden states and heads: no logits on the tape, and only the positions
/// that predict a counted token reach the heads.
///
/// Policy and reference may have hidden states of different width; they share the vocabulary. Only
/// the logits of one block of rows exist at a time, and the backward computes them again. That is
/// two products in the forward; in the backward two more, and one for each gradient that is wanted.
///
/// # Shapes
///
/// - `policy`, `reference`: hidden states `[batch, time, hidden]`, aligned as in
///   [`TokenLogProbs::from_output`](super::TokenLogProbs::from_output), and their head
/// - `completion_mask`: `[batch, time]`; it is read back, once
///
/// # Errors
///
/// As [`TokenLogProbs::from_output`](super::TokenLogProbs::from_output), or the vocabularies
/// differ.
pub fn sequence_kl_from_hidden(
    policy: (Tensor<3>, &LmHead),
    reference: (Tensor<3>, &LmHead),
    completion_mask: Tensor<2, Bool>,
) -> Result<Tensor<1>, InvalidInput> {
    let ((ours, our_head), (theirs, their_head)) = (policy, reference);
    our_head.check(&ours)?;
    their_head.check(&theirs)?;
    let ([vocab, _], [their_vocab, _]) = (our_head.dims(), their_head.dims());
    if vocab != their_vocab {
        let expected = format!("the policy's vocabulary of {vocab}");
        return Err(InvalidInput::new("reference", expected, their_vocab));
    }
    let [batch, time, width] = ours.dims();
    let [their_batch, their_time, their_width] = theirs.dims();
    let shape = [batch, time];
    InvalidInput::check_shape(
        "reference",
        &shape.into(),
        &[their_batch, their_time].into(),
    )?;
    InvalidInput::check_device("reference", &ours.device(), &theirs.device())?;
    let mask = prediction_mask(shape, &ours.device(), completion_mask)?;
    if batch == 0 {
        return Ok(upcast(ours.reshape([0, time * width]).sum_dim(1)).reshape([0]));
    }
    let positions = CountedPositions::new(mask.clone().reshape([batch * time]));
    let ours = positions.take(ours.reshape([batch * time, width]));
    let theirs = theirs.without_autodiff();
    let theirs = positions.take(theirs.reshape([batch * time, their_width]));
    let reference = their_head.clone().without_autodiff().with_hidden(theirs);
    let kl = kernel::head_kl(our_head.with_hidden(ours), reference);
    let kl = without_last(positions.spread(kl).reshape(shape), mask);
    Ok(kl.sequence().sum())
}

/// Logits of which only the positions are read that predict a counted token.
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
