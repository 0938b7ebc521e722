use burn::tensor::{Int, Tensor};

use super::head::LmHead;
use super::mask::CompletionMask;
use super::positions::CountedPositions;
use super::predictions::{Targets, TokenResults, check_tokens};
use super::shift::widen;
use super::token::TokenLogProbs;
use crate::error::InvalidInput;
use crate::kernel;

/// Results from the hidden states of a padded batch.
pub(super) fn from_hidden<R: TokenResults>(
    hidden: Tensor<3>,
    head: &LmHead,
    tokens: Tensor<2, Int>,
    mask: &CompletionMask,
) -> Result<R, InvalidInput> {
    head.check(&hidden)?;
    let [batch, time, width] = hidden.dims();
    check_tokens([batch, time], &hidden.device(), &tokens, mask)?;
    let hidden = hidden.reshape([batch * time, width]);
    if batch == 0 {
        return Ok(R::of_no_position(hidden, mask));
    }
    let positions = mask.positions()?;
    Ok(from_positions(hidden, head, tokens, mask, &positions))
}

/// Results at the counted `positions` of the hidden states `[positions, hidden]`.
pub(super) fn from_positions<R: TokenResults>(
    hidden: Tensor<2>,
    head: &LmHead,
    tokens: Tensor<2, Int>,
    mask: &CompletionMask,
    positions: &CountedPositions,
) -> R {
    let [vocab, _] = head.dims();
    let targets = Targets::new(positions.targets(widen(tokens)), vocab);
    let outputs: R::Outputs = kernel::head_log_probs(
        head.with_hidden(positions.take(hidden)),
        targets.words.clone(),
        head.retained_bytes,
    );
    at_positions(outputs, &targets, mask, positions)
}

/// Results of kernels that got the counted `positions` alone.
pub(super) fn at_positions<R: TokenResults>(
    outputs: R::Outputs,
    targets: &Targets,
    mask: &CompletionMask,
    positions: &CountedPositions,
) -> R {
    R::new(outputs, |values| {
        let values = positions.spread(targets.values(values));
        TokenLogProbs::zero_elsewhere(values, mask.predictions())
    })
}
