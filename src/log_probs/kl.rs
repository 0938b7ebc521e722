use burn::tensor::{Bool, Shape, Tensor};

use super::head::LmHead;
use super::logits::check_logits;
use super::mask::CompletionMask;
use super::token::TokenLogProbs;
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
    completion_mask: impl Into<CompletionMask>,
) -> Result<Tensor<1>, InvalidInput> {
    InvalidInput::check_shape("reference", &policy.shape(), &reference.shape())?;
    let mask = completion_mask.into();
    let policy = counted_logits(policy, &mask)?;
    let reference = counted_logits(reference.without_autodiff(), &mask)?;
    let theirs = log_softmax(reference).cast(policy.dtype());
    let ours = log_softmax(policy);
    // A token that the reference rules out contributes 0·(−∞) = 0.
    let ruled_out = theirs.clone().equal_elem(f64::NEG_INFINITY);
    let terms = (theirs.clone().exp() * (theirs - ours)).mask_fill(ruled_out, 0.0);
    let kl: Tensor<2> = terms.sum_dim(2).squeeze_dim(2);
    let [_, time] = kl.dims();
    let kl = TokenLogProbs::masked(kl.narrow(1, 0, time - 1), mask.predictions());
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
/// - `completion_mask`: `[batch, time]`; a tensor is read back ([`CompletionMask`])
///
/// # Errors
///
/// As [`TokenLogProbs::from_output`](super::TokenLogProbs::from_output), or the vocabularies
/// differ.
pub fn sequence_kl_from_hidden(
    policy: (Tensor<3>, &LmHead),
    reference: (Tensor<3>, &LmHead),
    completion_mask: impl Into<CompletionMask>,
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
    let mask = completion_mask.into();
    mask.check("completion_mask", shape, &ours.device())?;
    if batch == 0 {
        return Ok(upcast(ours.reshape([0, time * width]).sum_dim(1)).reshape([0]));
    }
    let positions = mask.positions()?;
    let ours = positions.take(ours.reshape([batch * time, width]));
    let theirs = theirs.without_autodiff();
    let theirs = positions.take(theirs.reshape([batch * time, their_width]));
    let reference = their_head.clone().without_autodiff().with_hidden(theirs);
    let kl = kernel::head_kl(our_head.with_hidden(ours), reference);
    let kl = TokenLogProbs::zero_elsewhere(positions.spread(kl), mask.predictions());
    Ok(kl.sequence().sum())
}

/// Logits of which only the positions are read that predict a counted token.
fn counted_logits(logits: Tensor<3>, mask: &CompletionMask) -> Result<Tensor<3>, InvalidInput> {
    check_logits(&logits)?;
    let [batch, time, vocab] = logits.dims();
    mask.check("completion_mask", [batch, time], &logits.device())?;
    let not_counted: Tensor<3, Bool> = mask.predicting().bool_not().unsqueeze_dim(2);
    let not_counted = not_counted.expand(Shape::new([batch, time, vocab]));
    Ok(upcast(logits).mask_fill(not_counted, 0.0))
}

fn log_softmax(logits: Tensor<3>) -> Tensor<3> {
    logits.clone() - logsumexp(logits)
}
