use std::ops::Range;

use burn::tensor::{Bool, Tensor};

use crate::error::InvalidInput;
use crate::tokens::TokenTensors;

/// Tokens and masks of a batch, on the host.
pub(super) struct HostTokens {
    pub rows: usize,
    pub time: usize,
    pub ids: Vec<i64>,
    /// The completion mask, without padding and without what padding predicts.
    pub counted: Vec<bool>,
    pub padding: Vec<bool>,
    /// The completion mask as it is.
    pub mask: Vec<bool>,
}

impl HostTokens {
    pub(super) fn read(tokens: &TokenTensors) -> Result<Self, InvalidInput> {
        let [rows, time] = tokens.ids.dims();
        let read = |name, mask: &Tensor<2, Bool>| -> Result<Vec<bool>, InvalidInput> {
            Ok(InvalidInput::read(name, mask)?.iter().collect())
        };
        let mask = read("completion_mask", &tokens.completion_mask.tensor())?;
        let padding = read("pad_mask", &tokens.pad_mask)?;
        let is_predicted = |i: usize| !i.is_multiple_of(time) && !padding[i - 1];
        let counts = |i: usize| mask[i] && !padding[i] && is_predicted(i);
        Ok(Self {
            rows,
            time,
            ids: InvalidInput::read("ids", &tokens.ids)?.iter().collect(),
            counted: (0..rows * time).map(counts).collect(),
            padding,
            mask,
        })
    }

    pub(super) fn row(&self, row: usize) -> Range<usize> {
        row * self.time..(row + 1) * self.time
    }

    /// Indices of the tokens of a row that are no padding.
    pub(super) fn real(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        self.row(row).filter(|&i| !self.padding[i])
    }

    /// Number of tokens of padding in a row.
    pub(super) fn padding_of(&self, row: usize) -> usize {
        self.time - self.real(row).count()
    }

    /// Number of tokens that the log-probability of a row sums.
    pub(super) fn length(&self, row: usize) -> usize {
        self.row(row).filter(|&i| self.counted[i]).count()
    }

    /// Rows with this property.
    pub(super) fn rows_where(&self, is: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.rows).filter(|&row| is(row)).collect()
    }
}

/// `ids` with another id where `replace` says so; none if all of them are the same.
pub(super) fn with_others(ids: &[i64], replace: impl Fn(usize) -> bool) -> Option<Vec<i64>> {
    let first = *ids.first()?;
    let second = *ids.iter().find(|&&id| id != first)?;
    let other = |id| if id == first { second } else { first };
    let replaced = ids.iter().enumerate();
    let replaced = replaced.map(|(i, &id)| if replace(i) { other(id) } else { id });
    Some(replaced.collect())
}
