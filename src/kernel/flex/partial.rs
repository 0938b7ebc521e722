//! Partial results of a row of logits, and how two partial results are combined.

use burn::backend::Flex;

use super::elementwise::narrow;
use super::tensors::tensor;
use crate::kernel::forward::{Forward, STATISTICS};

/// The sums over a stretch of logits x. The powers are relative to m, the largest logit of the
/// stretch. A NaN logit makes every sum NaN.
#[derive(Debug, Clone, Copy)]
pub(super) struct Partial {
    pub max: f32,
    /// Position of the first largest logit. Only known with by-products.
    first: usize,
    /// `Σ exp(x − m)`
    pub sum: f64,
    /// `Σ exp(x − m)·(x − m)`
    expected: f64,
    /// `Σ exp(x − m)²`
    squares: f64,
    /// `Σ x`
    total: f64,
}

impl Partial {
    pub(super) const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        first: usize::MAX,
        sum: 0.0,
        expected: 0.0,
        squares: 0.0,
        total: 0.0,
    };

    /// The result of a single logit of value 0.
    pub(super) const ONE: Self = Self {
        max: 0.0,
        first: 0,
        sum: 1.0,
        squares: 1.0,
        ..Self::EMPTY
    };

    pub(super) fn new(max: f32, first: Option<usize>, sums: [f64; STATISTICS]) -> Self {
        let [sum, expected, squares, total] = sums;
        Self {
            max,
            first: first.unwrap_or(usize::MAX),
            sum,
            expected,
            squares,
            total,
        }
    }

    /// The result of both stretches together.
    pub(super) fn and(self, other: Self) -> Self {
        let max = if other.max > self.max {
            other.max
        } else {
            self.max
        };
        let first = |of: Self| if of.max == max { of.first } else { usize::MAX };
        let (a, b) = (self.relative_to(max), other.relative_to(max));
        Self {
            max,
            first: first(self).min(first(other)),
            sum: a.sum + b.sum,
            expected: a.expected + b.expected,
            squares: a.squares + b.squares,
            total: a.total + b.total,
        }
    }

    fn relative_to(self, max: f32) -> Self {
        // A stretch that has only −∞ has only zero powers and needs no rescaling. The code below
        // would compute −∞ − (−∞), which is NaN.
        if max == self.max || self.max == f32::NEG_INFINITY {
            return Self { max, ..self };
        }
        let difference = f64::from(self.max) - f64::from(max);
        let factor = difference.exp();
        Self {
            max,
            sum: factor * self.sum,
            expected: factor * (self.expected + difference * self.sum),
            squares: factor * factor * self.squares,
            ..self
        }
    }

    /// Moves the stretch so that it begins at `word` of its row.
    pub(super) fn starting_at(self, word: usize) -> Self {
        Self {
            first: self.first.saturating_add(word),
            ..self
        }
    }

    /// `ln Σ exp(x − m)`
    pub(super) fn log_sum(self) -> f64 {
        self.sum.ln()
    }

    /// The by-products of a row of `words` logits with the target `target`.
    pub(super) fn statistics(self, target: usize, words: usize) -> [f32; STATISTICS] {
        // 0 if all logits are −∞, NaN if one is NaN.
        let top1 = if self.sum > 0.0 {
            f64::from(u8::from(target == self.first))
        } else {
            f64::NAN
        };
        [
            self.log_sum() - self.expected / self.sum,
            self.squares.ln() - 2.0 * self.log_sum(),
            top1,
            self.total / words as f64,
        ]
        .map(narrow)
    }
}

/// The result of some logits of a row, and the target's logit if it is among them.
#[derive(Clone, Copy)]
pub(super) struct RowState {
    pub partial: Partial,
    pub target: f32,
}

impl RowState {
    /// A row that does not count. The numbers are finite, and the mask drops them later.
    pub(super) const NOT_COUNTED: Self = Self {
        partial: Partial::ONE,
        target: 0.0,
    };
    pub(super) const EMPTY: Self = Self {
        partial: Partial::EMPTY,
        target: f32::NEG_INFINITY,
    };

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            partial: self.partial.and(other.partial),
            // Only one of the two parts contains the target; the other part holds −∞. The test with
            // `==` keeps a target logit of NaN.
            target: if self.target == f32::NEG_INFINITY {
                other.target
            } else {
                self.target
            },
        }
    }
}

/// Computes the outputs of a forward from the results of all rows.
pub(super) fn outputs(
    rows: &[RowState],
    targets: &[usize],
    words: usize,
    statistics: bool,
) -> Forward<Flex> {
    let log_prob = |row: &RowState| {
        let below = f64::from(row.target) - f64::from(row.partial.max);
        narrow(below - row.partial.log_sum())
    };
    let normalizer = |row: &RowState| [row.partial.max, narrow(row.partial.log_sum())];
    let by_products = |(row, &target): (&RowState, &usize)| row.partial.statistics(target, words);
    Forward {
        log_probs: tensor(rows.iter().map(log_prob).collect(), [rows.len()]),
        normalizer: tensor(rows.iter().flat_map(normalizer).collect(), [rows.len(), 2]),
        statistics: statistics.then(|| {
            let values = rows.iter().zip(targets).flat_map(by_products).collect();
            tensor(values, [rows.len(), STATISTICS])
        }),
        slope: None,
        tiles: Vec::new(),
    }
}
