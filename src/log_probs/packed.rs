//! The same log-probabilities from rows in which prompts stand once.

use burn::tensor::{Bool, Device, Int, Tensor};

use super::LmHead;
use super::head::{CountedRows, nothing, walk_rows};
use super::predictions::{Predictions, Walked};
use super::token::check_logits;
use crate::error::InvalidInput;
use crate::kernel;

/// Which rows of a model's output `[rows, time, …]` predict a counted token, and of which sequence.
pub struct PackedRows {
    /// Rows and their length.
    pub dims: [usize; 2],
    pub device: Device,
    /// The ids of the same sequences, one per row.
    pub ids: Tensor<2, Int>,
    /// Which of them count.
    pub completion_mask: Tensor<2, Bool>,
    /// Places that predict a counted token: among `ids`, and where the same token stands among the
    /// packed rows. `None` where nothing counts.
    pub predicting: Option<[Tensor<1, Int>; 2]>,
}

/// `values` of so many rows as `[rows · time, width]`.
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

/// Nothing is read back: which rows predict a counted token is known.
pub(super) fn walk_hidden(
    hidden: Tensor<3>,
    head: &LmHead,
    packed: &PackedRows,
    statistics: bool,
) -> Result<Walked, InvalidInput> {
    head.check(&hidden)?;
    let hidden = flat("hidden", hidden, packed.dims, &packed.device)?;
    let [vocab, _] = head.dims();
    let (predictions, rows) = predictions(packed, vocab)?;
    Ok(walk_rows(hidden, head, &predictions, rows, statistics))
}

/// The logits that predict a counted token are copied once, since those of a prompt's last token
/// are read for each completion.
pub(super) fn walk_logits(
    logits: Tensor<3>,
    packed: &PackedRows,
    statistics: bool,
) -> Result<Walked, InvalidInput> {
    check_logits(&logits)?;
    let [_, _, vocab] = logits.dims();
    let logits = flat("logits", logits, packed.dims, &packed.device)?;
    let (predictions, rows) = predictions(packed, vocab)?;
    let Some(rows) = rows else {
        return Ok(nothing(logits, &predictions, statistics));
    };
    let targets = rows.targets(predictions.targets());
    let all = targets.clone().greater_equal_elem(0);
    let found = kernel::logits_log_probs(rows.take(logits), targets, all, statistics);
    Ok(rows.found(&predictions, found))
}

/// What is predicted, and in which rows; nothing where there are none.
fn predictions(
    packed: &PackedRows,
    vocab: usize,
) -> Result<(Predictions, Option<CountedRows>), InvalidInput> {
    let [sequences, time] = packed.ids.dims();
    let (ids, mask) = (packed.ids.clone(), packed.completion_mask.clone());
    let predictions = Predictions::new([sequences, time, vocab], &packed.device, ids, mask)?;
    let all = sequences * time;
    let rows = (all > 0).then(|| CountedRows::at(packed.predicting.clone(), all, &packed.device));
    Ok((predictions, rows))
}
