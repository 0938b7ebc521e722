use burn::tensor::{Device, Tensor};

use super::{Batch, Rewards};
use crate::error::InvalidInput;
use crate::log_probs::{LogProbs, RelativeLogProbs, SequenceLogProbs};

/// A chosen (y_w) and a rejected (y_l) something of the same prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<T> {
    /// Of the preferred completion.
    pub chosen: T,
    /// Of the other one.
    pub rejected: T,
}

/// Chosen and rejected log-probabilities of the policy alone.
pub type PolicyPair = Pair<SequenceLogProbs>;

/// Chosen and rejected log-probabilities of the policy against a reference.
pub type ReferencedPair = Pair<RelativeLogProbs>;

impl<T> Pair<T> {
    /// `f` of both sides.
    pub fn map<U>(self, f: impl Fn(T) -> U) -> Pair<U> {
        Pair {
            chosen: f(self.chosen),
            rejected: f(self.rejected),
        }
    }

    /// Rows `0..n` and `n..2n` of something, each by `narrow(start, length)`.
    pub(super) fn halves(
        all: &T,
        rows: usize,
        narrow: impl Fn(usize, usize) -> T,
    ) -> Result<Self, InvalidInput>
    where
        T: Clone,
    {
        if rows == 0 {
            // Burn narrows nothing to nothing by a panic.
            return Ok(Self {
                chosen: all.clone(),
                rejected: all.clone(),
            });
        }
        if !rows.is_multiple_of(2) {
            let expected = "an even number of rows: chosen, then rejected";
            return Err(InvalidInput::new("log_probs", expected, rows));
        }
        Ok(Self {
            chosen: narrow(0, rows / 2),
            rejected: narrow(rows / 2, rows / 2),
        })
    }

    /// `f` of both sides by reference.
    pub fn map_ref<U>(&self, f: impl Fn(&T) -> U) -> Pair<U> {
        Pair {
            chosen: f(&self.chosen),
            rejected: f(&self.rejected),
        }
    }
}

impl<const D: usize> Pair<Tensor<D>> {
    /// chosen − rejected.
    pub fn margin(&self) -> Tensor<D> {
        self.chosen.clone() - self.rejected.clone()
    }
}

impl PolicyPair {
    /// From chosen and rejected log-probabilities of the same prompts.
    ///
    /// # Errors
    ///
    /// Batch sizes, devices or number types differ.
    pub fn new(chosen: SequenceLogProbs, rejected: SequenceLogProbs) -> Result<Self, InvalidInput> {
        let (w, l) = (chosen.sum(), rejected.sum());
        InvalidInput::check_shape("rejected", &w.shape(), &l.shape())?;
        InvalidInput::check_device("rejected", &w.device(), &l.device())?;
        InvalidInput::check_dtype("rejected", w.dtype(), l.dtype())?;
        Ok(Self { chosen, rejected })
    }

    /// The two halves of one concatenated `[chosen; rejected]` forward: rows `0..n` and `n..2n`.
    ///
    /// # Errors
    ///
    /// The number of rows is odd.
    pub fn from_concatenated(log_probs: &SequenceLogProbs) -> Result<Self, InvalidInput> {
        let [rows] = log_probs.sum().dims();
        Self::halves(log_probs, rows, |start, length| {
            log_probs.narrow(start, length)
        })
    }

    /// Puts the reference's log-probabilities of the same pairs beside the policy's.
    ///
    /// # Errors
    ///
    /// Batch sizes or devices differ.
    pub fn relative_to(self, reference: Self) -> Result<ReferencedPair, InvalidInput> {
        Ok(Pair {
            chosen: self.chosen.relative_to(reference.chosen)?,
            rejected: self.rejected.relative_to(reference.rejected)?,
        })
    }

    /// These pairs against a reference that finds every completion equally likely, ρ = ℓ: it turns
    /// any objective against a reference into a reference-free one.
    pub fn with_uniform_reference(self) -> ReferencedPair {
        self.map(RelativeLogProbs::against_uniform)
    }
}

impl ReferencedPair {
    /// ρ_w and ρ_l, nats.
    pub fn log_ratios(&self) -> Pair<Tensor<1>> {
        self.map_ref(RelativeLogProbs::log_ratio)
    }

    /// The policy's side alone, for objectives that have no use for the reference.
    pub fn policy(&self) -> PolicyPair {
        self.map_ref(|y| y.policy().clone())
    }
}

impl<const D: usize> std::ops::Mul<f64> for Pair<Tensor<D>> {
    type Output = Self;

    /// Both sides times a number.
    fn mul(self, factor: f64) -> Self {
        self.map(|x| x * factor)
    }
}

impl<L: LogProbs<1>> Batch for Pair<L> {
    type Rewards = Pair<Tensor<1>>;

    fn len(&self) -> usize {
        self.chosen.policy().sum().dims()[0]
    }

    fn device(&self) -> Device {
        self.chosen.policy().sum().device()
    }
}

impl<R: Rewards> Rewards for Pair<R> {
    fn without_autodiff(self) -> Self {
        self.map(R::without_autodiff)
    }
}
