use burn::tensor::{Device, Tensor};

use super::per_completion::PerCompletion;
use super::traits::{Batch, Rewards, sealed};
use crate::error::InvalidInput;
use crate::log_probs::{LogProbs, RelativeLogProbs, SequenceLogProbs};
use crate::needs::{Examples, Needs, Values};

/// The chosen (y_w) and the rejected (y_l) side of pairs of the same prompts: log-probabilities,
/// rewards, scores, statistics.
///
/// As a batch it is a [`PolicyPair`], a [`ReferencedPair`] or a [`RewardPair`].
///
/// [`new`](Self::new) and [`from_concatenated`](Self::from_concatenated) make one; both see to it
/// that the sides fit together. What you assign to a field afterwards is not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pair<T> {
    /// Values of the preferred completion.
    pub chosen: T,
    /// Values of the other completion.
    pub rejected: T,
}

/// Chosen and rejected log-probabilities of the policy alone.
pub type PolicyPair = Pair<SequenceLogProbs>;

/// Chosen and rejected log-probabilities of the policy against a reference.
pub type ReferencedPair = Pair<RelativeLogProbs>;

/// Rewards that a reward model gives the two completions, `[batch]` each. Reward models are trained
/// on them, by [`BradleyTerryLoss`](crate::BradleyTerryLoss). Gradients flow through them.
///
/// A model that reads `[chosen; rejected]` in one forward gives both sides to
/// [`from_concatenated`](Pair::from_concatenated);
/// [`TokenBatch::at_end`](crate::tokens::TokenBatch::at_end) takes its value at the last token of
/// each row.
pub type RewardPair = Pair<Tensor<1>>;

impl<T: PerCompletion> Pair<T> {
    /// Takes both sides, a row per pair.
    ///
    /// # Errors
    ///
    /// Batch sizes, devices or number types differ.
    pub fn new(chosen: T, rejected: T) -> Result<Self, InvalidInput> {
        if chosen.rows() != rejected.rows() {
            let expected = format!("{} rows, as many as `chosen`", chosen.rows());
            return Err(InvalidInput::new("rejected", expected, rejected.rows()));
        }
        InvalidInput::check_device("rejected", &chosen.device(), &rejected.device())?;
        InvalidInput::check_dtype("rejected", chosen.dtype(), rejected.dtype())?;
        Ok(Self { chosen, rejected })
    }

    /// Takes apart the two halves of one concatenated `[chosen; rejected]` forward, rows `0..n` and `n..2n`:
    /// of a tensor, of log-probabilities, of statistics.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use burn_preference::Pair;
    ///
    /// let scores = Tensor::<1>::from_floats([0.9, 0.7, 0.1, 0.2], &Device::default());
    /// let scores = Pair::from_concatenated(&scores)?; // for `WithScores`
    /// assert_eq!(scores.rejected.into_data().to_vec::<f32>().unwrap(), [0.1, 0.2]);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The number of rows is odd.
    pub fn from_concatenated(rows: &T) -> Result<Self, InvalidInput>
    where
        T: Clone,
    {
        let n = rows.rows();
        if n == 0 {
            // Burn narrows nothing to nothing by a panic.
            return Ok(Self {
                chosen: rows.clone(),
                rejected: rows.clone(),
            });
        }
        if !n.is_multiple_of(2) {
            let expected = "an even number of rows: chosen, then rejected";
            return Err(InvalidInput::new("rows", expected, n));
        }
        Ok(Self {
            chosen: rows.narrow_rows(0, n / 2),
            rejected: rows.narrow_rows(n / 2, n / 2),
        })
    }
}

impl<T> Pair<T> {
    /// Applies `f` to both sides.
    pub fn map<U>(self, f: impl Fn(T) -> U) -> Pair<U> {
        Pair {
            chosen: f(self.chosen),
            rejected: f(self.rejected),
        }
    }

    /// Applies `f` to both sides by reference.
    pub fn map_ref<U>(&self, f: impl Fn(&T) -> U) -> Pair<U> {
        Pair {
            chosen: f(&self.chosen),
            rejected: f(&self.rejected),
        }
    }

    /// Applies `f` to each side and the same side of `other`.
    pub(super) fn zip<V, U, E>(
        self,
        other: Pair<V>,
        f: impl Fn(T, V) -> Result<U, E>,
    ) -> Result<Pair<U>, E> {
        Ok(Pair {
            chosen: f(self.chosen, other.chosen)?,
            rejected: f(self.rejected, other.rejected)?,
        })
    }
}

impl<const D: usize> Pair<Tensor<D>> {
    /// Margin, chosen − rejected.
    pub fn margin(&self) -> Tensor<D> {
        self.chosen.clone() - self.rejected.clone()
    }

    /// The margin h of the rewards β·x, and the rewards without autodiff, of compared values x.
    ///
    /// Only the margin is on the tape: an operation of each side less than `(x · β).margin()`.
    pub(crate) fn rewarded(self, beta: f64) -> (Tensor<D>, Self) {
        let h = self.margin() * beta;
        (h, self.map(Tensor::without_autodiff) * beta)
    }
}

impl<L: LogProbs<1>> Pair<L> {
    /// Scales the rewards of every pair by a number of its own, as ε-DPO and MallowsPO do: what
    /// objectives compare is multiplied by it, on both sides and for policy and reference.
    ///
    /// ```text
    /// ρ_w ← s·ρ_w,   ρ_l ← s·ρ_l          so that h = β·s·(ρ_w − ρ_l)
    /// ```
    ///
    /// With β = 1 the scale is a β per example. NLL terms and the metrics `logps/*` stay those of
    /// the completions. No gradient flows into the scale.
    ///
    /// ```
    /// # use burn::tensor::Tensor;
    /// # use burn_preference::*;
    /// # let device = burn::tensor::Device::default();
    /// # let y = |sum| SequenceLogProbs::from_values(&[sum], &[4], &device).unwrap();
    /// # let policy = PolicyPair::new(y(-10.0), y(-30.0))?;
    /// # let batch = policy.relative_to(PolicyPair::new(y(-12.0), y(-22.0))?)?;
    /// // One pair: ρ_w = 2, ρ_l = −8.
    /// let batch = batch.scaled_by(Tensor::from_floats([0.05], &device))?;
    /// let loss = DpoLossConfig::new().with_beta(1.0).init().forward(batch).mean();
    /// assert!((loss.into_scalar::<f32>() - 0.474077).abs() < 1e-5); // −ln σ(0.05·10)
    /// # Ok::<(), InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `scale` is not `[batch]`, or is on another device.
    pub fn scaled_by(self, scale: Tensor<1>) -> Result<Self, InvalidInput> {
        InvalidInput::check_shape("scale", &[self.len()].into(), &scale.shape())?;
        InvalidInput::check_device("scale", &self.device(), &scale.device())?;
        Ok(self.map(|y| y.times(scale.clone())))
    }
}

impl PolicyPair {
    /// Puts the reference's log-probabilities of the same pairs beside the policy's.
    ///
    /// # Errors
    ///
    /// Batch sizes or devices differ.
    pub fn relative_to(self, reference: Self) -> Result<ReferencedPair, InvalidInput> {
        self.zip(reference, SequenceLogProbs::relative_to)
    }

    /// Compares with a reference that finds every completion equally likely, ρ = ℓ: this turns
    /// any objective against a reference into a reference-free one.
    pub fn with_uniform_reference(self) -> ReferencedPair {
        self.map(RelativeLogProbs::against_uniform)
    }
}

impl ReferencedPair {
    /// Log-ratios ρ_w and ρ_l, nats.
    pub fn log_ratios(&self) -> Pair<Tensor<1>> {
        self.map_ref(RelativeLogProbs::log_ratio)
    }

    /// The side of the policy alone, for objectives that have no use for the reference.
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
        self.chosen.policy().sum_ref().dims()[0]
    }

    fn device(&self) -> Device {
        self.chosen.policy().sum_ref().device()
    }

    fn needs() -> Needs {
        Needs::new(Examples::Pairs, L::VALUES)
    }
}

impl Batch for RewardPair {
    type Rewards = Self;

    fn len(&self) -> usize {
        self.chosen.dims()[0]
    }

    fn device(&self) -> Device {
        self.chosen.device()
    }

    fn needs() -> Needs {
        Needs::new(Examples::Pairs, Values::Rewards)
    }
}

impl<R: sealed::Sealed> sealed::Sealed for Pair<R> {}

impl<R: Rewards> Rewards for Pair<R> {
    fn without_autodiff(self) -> Self {
        self.map(R::without_autodiff)
    }
}
