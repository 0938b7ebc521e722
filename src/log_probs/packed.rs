//! The same log-probabilities from rows in which prompts stand once.

use burn::tensor::Tensor;

use super::head::{CountedRows, nothing, walk_rows};
use super::predictions::Predictions;
use super::token::check_logits;
use super::{LmHead, TokenLogProbs, TokenStatistics, kernel};
use crate::error::InvalidInput;
use crate::tokens::PackedBatch;

impl TokenLogProbs {
    /// [`from_hidden`](Self::from_hidden) of packed rows: one row of log-probabilities per
    /// sequence, in the order and the columns of [`PackedBatch::unpacked`].
    ///
    /// The state of a prompt's last token predicts the first token of each completion. Nothing is
    /// read back.
    ///
    /// # Shapes
    ///
    /// - `hidden`: `[rows, time, hidden]`, aligned with [`PackedBatch::ids`]
    ///
    /// # Errors
    ///
    /// As [`from_hidden`](Self::from_hidden).
    ///
    /// # Examples
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence};
    /// use burn_preference::{LmHead, PolicyPair, TokenLogProbs};
    ///
    /// let device = Device::default();
    /// let pair = vec![Sequence::new(&[0], &[1]), Sequence::new(&[0], &[0])];
    /// let packed = PackedBatch::new(pair, Packing::new(Padding::new(0)), &device)?;
    ///
    /// // Two words and hidden states of one number: logits (h, −h). Of the row `0 1 0` the first
    /// // state predicts both completions.
    /// let head = LmHead::new(Tensor::from_floats([[1.0], [-1.0]], &device));
    /// let hidden = Tensor::<3>::from_floats([[[0.5], [7.0], [9.0]]], &device);
    /// let log_probs = TokenLogProbs::from_packed_hidden(hidden, &head, &packed)?;
    /// let pair = PolicyPair::from_concatenated(&log_probs.sequence())?;
    /// let margin = pair.chosen.sum() - pair.rejected.sum();
    /// assert!((margin.into_scalar::<f32>() - -1.0).abs() < 1e-6); // −h − h
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    pub fn from_packed_hidden(
        hidden: Tensor<3>,
        head: &LmHead,
        batch: &PackedBatch,
    ) -> Result<Self, InvalidInput> {
        let (log_probs, _) = walk_hidden(hidden, head, batch, false)?;
        Ok(log_probs)
    }

    /// [`from_packed_hidden`](Self::from_packed_hidden), and what else the same walk tells.
    ///
    /// # Errors
    ///
    /// As [`from_hidden`](Self::from_hidden).
    #[allow(clippy::missing_panics_doc, reason = "they are there when asked for")]
    pub fn from_packed_hidden_with_statistics(
        hidden: Tensor<3>,
        head: &LmHead,
        batch: &PackedBatch,
    ) -> Result<(Self, TokenStatistics), InvalidInput> {
        let (log_probs, statistics) = walk_hidden(hidden, head, batch, true)?;
        Ok((log_probs, statistics.expect("asked for")))
    }

    /// [`from_logits`](Self::from_logits) of packed rows: one row of log-probabilities per
    /// sequence, in the order and the columns of [`PackedBatch::unpacked`].
    ///
    /// The logits that predict a counted token are copied once, since those of a prompt's last
    /// token are read for each completion.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[rows, time, vocab]`, aligned with [`PackedBatch::ids`]
    ///
    /// # Errors
    ///
    /// As [`from_logits`](Self::from_logits).
    pub fn from_packed_logits(
        logits: Tensor<3>,
        batch: &PackedBatch,
    ) -> Result<Self, InvalidInput> {
        let (log_probs, _) = walk_logits(logits, batch, false)?;
        Ok(log_probs)
    }

    /// [`from_packed_logits`](Self::from_packed_logits), and what else the same walk tells.
    ///
    /// # Errors
    ///
    /// As [`from_logits`](Self::from_logits).
    #[allow(clippy::missing_panics_doc, reason = "they are there when asked for")]
    pub fn from_packed_logits_with_statistics(
        logits: Tensor<3>,
        batch: &PackedBatch,
    ) -> Result<(Self, TokenStatistics), InvalidInput> {
        let (log_probs, statistics) = walk_logits(logits, batch, true)?;
        Ok((log_probs, statistics.expect("asked for")))
    }
}

type Walked = (TokenLogProbs, Option<TokenStatistics>);

fn walk_hidden(
    hidden: Tensor<3>,
    head: &LmHead,
    batch: &PackedBatch,
    statistics: bool,
) -> Result<Walked, InvalidInput> {
    head.check(&hidden)?;
    let hidden = batch.flat("hidden", hidden)?;
    let [vocab, _] = head.dims();
    let (predictions, rows) = predictions(batch, vocab)?;
    Ok(walk_rows(hidden, head, &predictions, rows, statistics))
}

fn walk_logits(
    logits: Tensor<3>,
    batch: &PackedBatch,
    statistics: bool,
) -> Result<Walked, InvalidInput> {
    check_logits(&logits)?;
    let [_, _, vocab] = logits.dims();
    let logits = batch.flat("logits", logits)?;
    let (predictions, rows) = predictions(batch, vocab)?;
    let Some(rows) = rows else {
        return Ok(nothing(logits, &predictions, statistics));
    };
    let targets = rows.targets(predictions.targets());
    let all = targets.clone().greater_equal_elem(0);
    let found = kernel::logits_log_probs(rows.take(logits), targets, all, statistics);
    Ok(rows.found(&predictions, found))
}

/// What is predicted, and in which rows of the packed batch; nothing where it has none.
fn predictions(
    batch: &PackedBatch,
    vocab: usize,
) -> Result<(Predictions, Option<CountedRows>), InvalidInput> {
    let device = batch.ids.device();
    let unpacked = &batch.unpacked;
    let [sequences, time] = unpacked.ids.dims();
    let (ids, mask) = (unpacked.ids.clone(), unpacked.completion_mask.clone());
    let predictions = Predictions::new([sequences, time, vocab], &device, ids, mask)?;
    let all = sequences * time;
    let rows = (all > 0).then(|| CountedRows::at(batch.predicting(), all, &device));
    Ok((predictions, rows))
}
