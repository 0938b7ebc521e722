use burn::tensor::{Tensor, TensorData};

use super::{Check, Finding, Findings, FirstBatch, Side, with_others};
use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;
use crate::tokens::{PackedBatch, TokenTensors};

impl FirstBatch {
    /// Checks that a model gives packed rows the log-probabilities that it gives each sequence in a
    /// row of its own: that it takes positions and mask.
    ///
    /// It says [`SeesNeighbours`](Finding::SeesNeighbours) and
    /// [`PackedDiffers`](Finding::PackedDiffers), or why that cannot be told
    /// ([`Random`](Finding::Random), [`NotFinite`](Finding::NotFinite)). What else may be wrong with
    /// the batch say [`check_policy`](Self::check_policy) and
    /// [`check_against`](Self::check_against) of `FirstBatch::new(&batch.unpacked)`.
    ///
    /// - `batch`: the sequences of this check, packed
    /// - `padded`: the model on [`PackedBatch::unpacked`]; called once
    /// - `packed`: the model on `batch`, or on other tokens in its place; called up to three times
    ///
    /// # Errors
    ///
    /// What a closure returns, it does not give one log-probability per sequence, or `batch` has
    /// other tokens than this check.
    ///
    /// # Panics
    ///
    /// The device fails to execute what is queued.
    pub fn check_packed<E: From<InvalidInput>>(
        &self,
        batch: &PackedBatch,
        padded: impl FnOnce(&TokenTensors) -> Result<SequenceLogProbs, E>,
        mut packed: impl FnMut(&PackedBatch) -> Result<SequenceLogProbs, E>,
    ) -> Result<Findings, E> {
        let [ours, theirs] = [&self.rows.ids, &batch.unpacked.ids].map(|ids| {
            let values: Vec<i64> = ids.to_data().iter().collect();
            (ids.dims(), values)
        });
        if ours != theirs {
            let expected = "the tokens of this check, packed";
            return Err(InvalidInput::new("batch", expected, "others").into());
        }
        let mut check = Check::of(self);
        // What the data says of its rows is the other checks' business.
        check.not_checked.clear();
        if check.stop {
            let outside = |found: &Finding| matches!(found, Finding::OutsideVocabulary { .. });
            check.findings.retain(outside);
            return Ok(check.done());
        }
        check.findings.clear();
        let unpacked = check.sums(&padded(&check.rows)?)?;
        let sums = check.sums(&packed(batch)?)?;
        let finite = |row: usize| unpacked[row].is_finite() && sums[row].is_finite();
        if !check.finite(Side::Policy, finite) {
            return Ok(check.done());
        }
        let again = check.sums(&packed(batch)?)?;
        if !check.repeats(Side::Policy, &sums, &again) {
            return Ok(check.done());
        }
        match neighbours(batch) {
            Some((other, changed)) => {
                let moved = check.sums(&packed(&other)?)?;
                let differ = check.differences(&sums, &moved);
                let mut differ = differ.into_iter().filter(|(row, _)| !changed[*row]);
                if let Some((row, difference)) = differ.next() {
                    let difference = difference.abs();
                    check.found(Finding::SeesNeighbours { row, difference });
                    // What follows from it is not reported again.
                    return Ok(check.done());
                }
            }
            None => check.not_checked.push(
                "neighbours: no row has two completions with tokens of their own; prompts that are \
                 cut to several lengths share no row",
            ),
        }
        if let Some(&(row, _)) = check.differences(&unpacked, &sums).first() {
            let (unpacked, packed) = (unpacked[row], sums[row]);
            check.found(Finding::PackedDiffers {
                row,
                unpacked,
                packed,
            });
        }
        Ok(check.done())
    }
}

/// The batch with other tokens in the first completion of each row that has several, and whose
/// those are; nothing where no row has.
fn neighbours(batch: &PackedBatch) -> Option<(PackedBatch, Vec<bool>)> {
    let [rows, time] = batch.ids.dims();
    let mut changed = vec![false; batch.len()];
    let mut is_other = vec![false; rows * time];
    for row in 0..rows {
        let of_row = batch.segments.iter().filter(|segment| segment.row == row);
        let mut completions = of_row.filter_map(|segment| Some((segment.sequence?, segment)));
        if let (Some((sequence, segment)), Some(_)) = (completions.next(), completions.next()) {
            changed[sequence] = true;
            for t in segment.tokens.clone() {
                is_other[row * time + t] = true;
            }
        }
    }
    if !changed.contains(&true) {
        return None;
    }
    let ids: Vec<i64> = batch.ids.to_data().iter().collect();
    let ids = TensorData::new(with_others(&ids, |i| is_other[i])?, [rows, time]);
    let like = (&batch.ids.device(), batch.ids.dtype());
    let mut other = batch.clone();
    other.ids = Tensor::from_data(ids, like);
    Some((other, changed))
}
