use std::ops::Range;

use super::finding::Finding;
use super::{Labels, length};
use crate::tokens::TokenTensors;

/// Rows on the host.
pub(super) struct Host {
    pub rows: usize,
    pub time: usize,
    pub ids: Vec<i64>,
    /// The completion mask, without padding and without what padding predicts.
    pub counted: Vec<bool>,
    pub padding: Vec<bool>,
    /// The completion mask as it is.
    mask: Vec<bool>,
}

impl Host {
    pub fn read(rows: &TokenTensors) -> Self {
        let [n, time] = rows.ids.dims();
        let bools = |mask: &burn::tensor::Tensor<2, burn::tensor::Bool>| -> Vec<bool> {
            mask.to_data().iter::<bool>().collect()
        };
        let mask = bools(&rows.completion_mask);
        let padding = bools(&rows.pad_mask);
        let predicted = |i: usize| !i.is_multiple_of(time) && !padding[i - 1];
        let counts = |i: usize| mask[i] && !padding[i] && predicted(i);
        Self {
            rows: n,
            time,
            ids: rows.ids.to_data().iter::<i64>().collect(),
            counted: (0..n * time).map(counts).collect(),
            padding,
            mask,
        }
    }

    fn row(&self, row: usize) -> Range<usize> {
        row * self.time..(row + 1) * self.time
    }

    /// Where the tokens of a row are that are no padding.
    pub fn real(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        self.row(row).filter(|&i| !self.padding[i])
    }

    /// How many tokens a log-probability of a row sums.
    pub fn length(&self, row: usize) -> usize {
        self.row(row).filter(|&i| self.counted[i]).count()
    }

    /// Tokens of padding that the completion mask counts.
    fn counted_padding(&self, row: usize) -> usize {
        let both = |&i: &usize| self.mask[i] && self.padding[i];
        self.row(row).filter(both).count()
    }

    /// The tokens before the first one that counts.
    fn prompt(&self, row: usize) -> Vec<i64> {
        let real = self.real(row).take_while(|&i| !self.counted[i]);
        real.map(|i| self.ids[i]).collect()
    }

    /// What the data alone says.
    pub fn findings(&self, labels: &Labels, vocab: Option<usize>) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(vocab.and_then(|vocab| self.outside(vocab)));
        let rows_where = |f: &dyn Fn(usize) -> bool| -> Vec<usize> {
            (0..self.rows).filter(|&row| f(row)).collect()
        };
        let of = self.rows;

        let absent = |row: usize| matches!(labels, Labels::Lists(present) if !present[row]);
        let rows = rows_where(&|row| self.length(row) == 0 && !absent(row));
        if !rows.is_empty() {
            findings.push(Finding::NothingCounts { rows, of });
        }
        let everything = |row: usize| {
            let mut real = self.real(row).peekable();
            real.peek().is_some() && real.all(|i| self.mask[i])
        };
        let rows = rows_where(&|row| everything(row) && self.length(row) > 0);
        if !rows.is_empty() {
            findings.push(Finding::EverythingCounts { rows, of });
        }
        let rows = rows_where(&|row| self.counted_padding(row) > 0);
        if !rows.is_empty() {
            let tokens = (0..of).map(|row| self.counted_padding(row)).sum();
            findings.push(Finding::PaddingCounts { tokens, rows, of });
        }
        match labels {
            Labels::None | Labels::Lists(_) => {}
            Labels::Pairs => self.pair_findings(&mut findings),
            Labels::Thumbs(up) => {
                let lengths = (0..of).map(|row| self.length(row)).zip(up.iter().copied());
                findings.extend(length::of_thumbs(lengths).and_then(by_length));
            }
        }
        findings
    }

    fn pair_findings(&self, findings: &mut Vec<Finding>) {
        let of = self.rows / 2;
        let pairs_where = |f: &dyn Fn(usize, usize) -> bool| -> Vec<usize> {
            (0..of).filter(|&i| f(i, of + i)).collect()
        };
        let tokens = |row| {
            self.real(row)
                .map(|i| (self.ids[i], self.counted[i]))
                .collect::<Vec<_>>()
        };
        // Where nothing counts, there is no completion to compare.
        let counts = |row| self.length(row) > 0;
        let pairs = pairs_where(&|w, l| counts(w) && tokens(w) == tokens(l));
        if !pairs.is_empty() {
            findings.push(Finding::IdenticalSides { pairs, of });
        }
        let differ = |w, l| counts(w) && counts(l) && self.prompt(w) != self.prompt(l);
        let pairs = pairs_where(&differ);
        if !pairs.is_empty() {
            findings.push(Finding::PromptsDiffer { pairs, of });
        }
        let lengths = (0..of).map(|i| (self.length(i), self.length(of + i)));
        findings.extend(length::of_pairs(lengths).and_then(by_length));
    }

    fn outside(&self, vocab: usize) -> Option<Finding> {
        let inside = |id: i64| usize::try_from(id).is_ok_and(|id| id < vocab);
        let mut outside = (0..self.ids.len()).filter(|&i| !inside(self.ids[i]));
        let first = outside.next()?;
        Some(Finding::OutsideVocabulary {
            tokens: 1 + outside.count(),
            id: self.ids[first],
            row: first / self.time,
            position: first % self.time,
            vocab,
        })
    }
}

/// One batch in a hundred without any relation is reported.
fn by_length(relation: length::Relation) -> Option<Finding> {
    (relation.p_value < 0.01).then_some(Finding::LengthTellsLabel {
        share: relation.share,
        p_value: relation.p_value,
    })
}
