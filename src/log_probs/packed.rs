//! The same log-probabilities from packed sequences, whose prompts stand once.

use burn::tensor::{Bool, Device, Int, Tensor};

use super::head::LmHead;
use super::hidden::from_positions;
use super::logits::check_logits;
use super::positions::{CountedPositions, Spread};
use super::predictions::{Predictions, TokenResults};
use crate::error::InvalidInput;
use crate::kernel;

/// The positions of a packed output `[rows, time, …]` that predict a counted token, and their
/// sequences.
pub struct PackedPositions {
    /// Rows of the output, and their length.
    pub dims: [usize; 2],
    pub device: Device,
    /// The ids of the same sequences, one per row.
    pub ids: Tensor<2, Int>,
    /// True for those ids that count.
    pub completion_mask: Tensor<2, Bool>,
    /// Places that predict a counted token: among `ids`, and of the same token in the packed
    /// output. `None` where nothing counts.
    pub predicting: Option<[Tensor<1, Int>; 2]>,
}

/// `values` of a packed output, `[rows · time, width]`.
pub(crate) fn flat(
    name: &'static str,
    values: Tensor<3>,
    [rows, time]: [usize; 2],
    device: &Device,
) -> Result<Tensor<2>, InvalidInput> {
    let [_, _, width] = values.dims();
    let expected = [rows, time, width].into();
    InvalidInput::check_shape(name, &expected, &values.shape())?;
    InvalidInput::check_device(name, device, &values.device())?;
    Ok(values.reshape([rows * time, width]))
}

/// Results from hidden states. Nothing is read back: the positions are known.
pub(super) fn from_packed_hidden<R: TokenResults>(
    hidden: Tensor<3>,
    head: &LmHead,
    packed: &PackedPositions,
) -> Result<R, InvalidInput> {
    head.check(&hidden)?;
    let hidden = flat("hidden", hidden, packed.dims, &packed.device)?;
    let [vocab, _] = head.dims();
    let (predictions, positions) = predictions(packed, vocab)?;
    Ok(from_positions(hidden, head, &predictions, positions))
}

/// Results from logits. Those that predict a counted token are copied once, since those of a
/// prompt's last token are read for each completion.
pub(super) fn from_packed_logits<R: TokenResults>(
    logits: Tensor<3>,
    packed: &PackedPositions,
) -> Result<R, InvalidInput> {
    check_logits(&logits)?;
    let [_, _, vocab] = logits.dims();
    let logits = flat("logits", logits, packed.dims, &packed.device)?;
    let (predictions, positions) = predictions(packed, vocab)?;
    let Some(positions) = positions else {
        return Ok(R::of_no_position(&predictions, logits));
    };
    let targets = positions.targets(predictions.targets());
    let all = targets.clone().greater_equal_elem(0);
    let values: R::Outputs = kernel::logits_log_probs(positions.take(logits), targets, all);
    Ok(R::new(&predictions, values.spread(&positions)))
}

/// The predictions and their positions; no positions where there is no sequence.
fn predictions(
    packed: &PackedPositions,
    vocab: usize,
) -> Result<(Predictions, Option<CountedPositions>), InvalidInput> {
    let [sequences, time] = packed.ids.dims();
    let (ids, mask) = (packed.ids.clone(), packed.completion_mask.clone());
    let predictions = Predictions::new([sequences, time, vocab], &packed.device, ids, mask)?;
    let all = sequences * time;
    let positions =
        (all > 0).then(|| CountedPositions::at(packed.predicting.clone(), all, &packed.device));
    Ok((predictions, positions))
}
