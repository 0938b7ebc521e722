//! The same log-probabilities from packed sequences, whose prompts stand once.

use burn::tensor::{Device, Int, Tensor};

use super::head::LmHead;
use super::hidden::{at_positions, from_positions};
use super::logits::check_logits;
use super::mask::CompletionMask;
use super::positions::CountedPositions;
use super::predictions::{Targets, TokenResults, check_tokens};
use super::shift::widen;
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
    /// The mask of those ids.
    pub completion_mask: CompletionMask,
    /// The positions of the packed output that predict a counted token.
    pub counted: CountedPositions,
}

impl PackedPositions {
    /// Checks that the sequences are still those of the positions: their fields are public.
    pub(super) fn check(&self) -> Result<(), InvalidInput> {
        let dims = self.counted.dims();
        check_tokens(dims, &self.device, &self.ids, &self.completion_mask)
    }
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
    packed.check()?;
    let (mask, positions) = (&packed.completion_mask, &packed.counted);
    if let [0, _] = positions.dims() {
        return Ok(R::of_no_position(hidden, mask));
    }
    let tokens = packed.ids.clone();
    Ok(from_positions(hidden, head, tokens, mask, positions))
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
    packed.check()?;
    let (mask, positions) = (&packed.completion_mask, &packed.counted);
    if let [0, _] = positions.dims() {
        return Ok(R::of_no_position(logits, mask));
    }
    let targets = Targets::new(positions.targets(widen(packed.ids.clone())), vocab);
    let all = targets.words.clone().greater_equal_elem(0);
    let logits = positions.take(logits);
    let outputs: R::Outputs = kernel::logits_log_probs(logits, targets.words.clone(), all);
    Ok(at_positions(outputs, &targets, mask, positions))
}
