use burn::tensor::{Tensor, TensorData};

use super::batch::FirstBatch;
use super::check::Check;
use super::finding::{Finding, Side};
use super::findings::Findings;
use super::host::with_others;
use crate::error::InvalidInput;
use crate::log_probs::SequenceLogProbs;
use crate::tokens::{PackedBatch, TokenTensors};

impl FirstBatch {
    /// Checks that a model gives packed rows the log-probabilities that it gives each sequence in a
    /// row of its own: that it takes positions and mask.
    ///
    /// It reports [`SeesNeighbours`](Finding::SeesNeighbours) and
    /// [`PackedDiffers`](Finding::PackedDiffers), or why that cannot be told
    /// ([`Random`](Finding::Random), [`NotFinite`](Finding::NotFinite)). Other mistakes of the batch
    /// are found by [`check_policy`](Self::check_policy) and
    /// [`check_against`](Self::check_against) of `FirstBatch::new(&batch.unpacked)`.
    ///
    /// - `batch`: the sequences of this check, packed
    /// - `padded`: the model on [`PackedBatch::unpacked`]; called once
    /// - `packed`: the model on `batch`, or on other tokens in its place; called up to three times
    ///
    /// # Errors
    ///
    /// What a closure returns, it does not give one log-probability per sequence, `batch` has other
    /// tokens than this check, or a device fails.
    pub fn check_packed<E: From<InvalidInput>>(
        &self,
        batch: &PackedBatch,
        padded: impl FnOnce(&TokenTensors) -> Result<SequenceLogProbs, E>,
        mut packed: impl FnMut(&PackedBatch) -> Result<SequenceLogProbs, E>,
    ) -> Result<Findings, E> {
        let mut check = Check::new(self)?;
        let ids = &batch.unpacked.ids;
        let theirs: Vec<i64> = InvalidInput::read("batch", ids)?.iter().collect();
        if self.tokens.ids.dims() != ids.dims() || check.host.ids != theirs {
            let expected = "the tokens of this check, packed";
            return Err(InvalidInput::new("batch", expected, "others").into());
        }
        // Findings of the data are the other checks' business.
        check.not_checked.clear();
        if check.stop {
            let is_outside = |it: &Finding| matches!(it, Finding::OutsideVocabulary { .. });
            check.findings.retain(is_outside);
            return Ok(check.finish());
        }
        check.findings.clear();
        let unpacked = check.sums(&padded(&check.tokens)?)?;
        let sums = check.sums(&packed(batch)?)?;
        let is_finite = |row: usize| unpacked[row].is_finite() && sums[row].is_finite();
        if !check.check_finite(Side::Policy, is_finite) {
            return Ok(check.finish());
        }
        let again = check.sums(&packed(batch)?)?;
        if !check.check_repeats(Side::Policy, &sums, &again) {
            return Ok(check.finish());
        }
        match neighbours(batch)? {
            Some((other, changed)) => {
                let moved = check.sums(&packed(&other)?)?;
                let differ = check.differences(&sums, &moved);
                let mut differ = differ.into_iter().filter(|(row, _)| !changed[*row]);
                if let Some((row, difference)) = differ.next() {
                    let difference = difference.abs();
                    check.report(Finding::SeesNeighbours { row, difference });
                    // What follows from it is not reported again.
                    return Ok(check.finish());
                }
            }
            None => check.not_checked.push(
                "neighbours: no row has two completions with tokens of their own; prompts that are \
                 cut to several lengths share no row",
            ),
        }
        if let Some(&(row, _)) = check.differences(&unpacked, &sums).first() {
            let (unpacked, packed) = (unpacked[row], sums[row]);
            check.report(Finding::PackedDiffers {
                row,
                unpacked,
                packed,
            });
        }
        Ok(check.finish())
    }
}

/// The batch with other tokens in the first completion of each row that has several, and true for
/// the sequences of these completions; none where no row has several.
fn neighbours(batch: &PackedBatch) -> Result<Option<(PackedBatch, Vec<bool>)>, InvalidInput> {
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
        return Ok(None);
    }
    let ids: Vec<i64> = InvalidInput::read("batch", &batch.ids)?.iter().collect();
    let others = with_others(&ids, |i| is_other[i]);
    Ok(others.map(|ids| {
        let like = (&batch.ids.device(), batch.ids.dtype());
        let mut other = batch.clone();
        other.ids = Tensor::from_data(TensorData::new(ids, [rows, time]), like);
        (other, changed)
    }))
}
