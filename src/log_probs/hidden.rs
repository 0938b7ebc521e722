use burn::tensor::{Bool, Int, Tensor};

use super::head::LmHead;
use super::positions::{CountedPositions, Spread};
use super::predictions::{Predictions, TokenResults};
use crate::error::InvalidInput;
use crate::kernel;

/// Results from the hidden states of a padded batch.
pub(super) fn from_hidden<R: TokenResults>(
    hidden: Tensor<3>,
    head: &LmHead,
    tokens: Tensor<2, Int>,
    completion_mask: Tensor<2, Bool>,
) -> Result<R, InvalidInput> {
    head.check(&hidden)?;
    let [batch, time, width] = hidden.dims();
    let [vocab, _] = head.dims();
    let shape = [batch, time, vocab];
    let predictions = Predictions::new(shape, &hidden.device(), tokens, completion_mask)?;
    let positions = (batch > 0).then(|| CountedPositions::new(predictions.counted()));
    let hidden = hidden.reshape([batch * time, width]);
    Ok(from_positions(hidden, head, &predictions, positions))
}

/// Results of `predictions`, whose counted ones are at `positions` of the hidden states
/// `[positions, hidden]`; `None` where there is no position at all.
pub(super) fn from_positions<R: TokenResults>(
    hidden: Tensor<2>,
    head: &LmHead,
    predictions: &Predictions,
    positions: Option<CountedPositions>,
) -> R {
    let Some(positions) = positions else {
        return R::of_no_position(predictions, hidden);
    };
    let values: R::Outputs = kernel::head_log_probs(
        head.with_hidden(positions.take(hidden)),
        positions.targets(predictions.targets()),
        head.retained_bytes,
    );
    R::new(predictions, values.spread(&positions))
}
