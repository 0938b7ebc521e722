use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};

use super::token::upcast;
use crate::error::InvalidInput;
use crate::log_probs::RelativeLogProbs;

/// Sum of a completion's token log-probabilities together with its length.
///
/// They travel together so that the objective, not the caller, picks the normalisation. `D` is 1
/// for `[batch]` and 2 for `[batch, candidates]`. Sums are f32 at least.
#[derive(Debug, Clone)]
pub struct SequenceLogProbs<const D: usize = 1> {
    sum: Tensor<D>,
    lengths: Tensor<D>,
}

impl<const D: usize> SequenceLogProbs<D> {
    /// From sums (nats) and completion lengths (tokens).
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn new(sum: Tensor<D>, lengths: Tensor<D, Int>) -> Result<Self, InvalidInput> {
        InvalidInput::check_shape("lengths", &sum.shape(), &lengths.shape())?;
        InvalidInput::check_device("lengths", &sum.device(), &lengths.device())?;
        let sum = upcast(sum);
        let dtype: FloatDType = sum.dtype().into();
        Ok(Self::from_parts(sum, lengths.float().cast(dtype)))
    }

    pub(super) fn from_parts(sum: Tensor<D>, lengths: Tensor<D>) -> Self {
        Self { sum, lengths }
    }

    /// ℓ = Σ log π(token), nats.
    pub fn sum(&self) -> Tensor<D> {
        self.sum.clone()
    }

    /// ℓ̄ = ℓ / max(length, 1): 0 for an empty completion.
    pub fn mean(&self) -> Tensor<D> {
        self.sum() / self.divisor()
    }

    /// Completion lengths in tokens, as floats.
    pub fn lengths(&self) -> Tensor<D> {
        self.lengths.clone()
    }

    /// max(length, 1).
    pub(crate) fn divisor(&self) -> Tensor<D> {
        self.lengths().clamp_min(1.0)
    }

    /// The same completions under a model that gives each of them log-probability 0.
    pub(crate) fn uniform(self) -> Self {
        Self {
            sum: self.sum.without_autodiff().zeros_like(),
            lengths: self.lengths,
        }
    }

    /// The same values without autodiff.
    pub fn without_autodiff(self) -> Self {
        Self {
            sum: self.sum.without_autodiff(),
            lengths: self.lengths.without_autodiff(),
        }
    }

    /// Puts the reference's log-probabilities of the same completions beside the policy's.
    ///
    /// No gradient flows into the reference, whatever it was computed with.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn relative_to(self, reference: Self) -> Result<RelativeLogProbs<D>, InvalidInput> {
        RelativeLogProbs::new(self, reference)
    }
}

impl SequenceLogProbs {
    /// From numbers on the host, such as a cache of the reference holds.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use burn_preference::SequenceLogProbs;
    ///
    /// let log_probs = SequenceLogProbs::from_values(&[-6.0, 0.0], &[4, 0], &Device::default())?;
    /// assert_eq!(log_probs.mean().into_data().to_vec::<f32>().unwrap(), [-1.5, 0.0]);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The numbers of sums and lengths differ, or a length is negative; the error names the first.
    pub fn from_values(
        sums: &[f32],
        lengths: &[i32],
        device: &Device,
    ) -> Result<Self, InvalidInput> {
        if let Some(row) = lengths.iter().position(|&length| length < 0) {
            let found = format!("{} at [{row}]", lengths[row]);
            return Err(InvalidInput::new("lengths", "numbers ≥ 0", found));
        }
        Self::new(
            Tensor::from_data(TensorData::from(sums), (device, DType::F32)),
            Tensor::from_data(TensorData::from(lengths), device),
        )
    }

    /// Rows `start..start + length` of the batch.
    pub(crate) fn narrow(&self, start: usize, length: usize) -> Self {
        Self {
            sum: self.sum().narrow(0, start, length),
            lengths: self.lengths().narrow(0, start, length),
        }
    }

    /// `candidates` consecutive rows per prompt become one row: `[batch · candidates]` to
    /// `[batch, candidates]`.
    ///
    /// # Errors
    ///
    /// The number of rows is not a multiple of `candidates`, or `candidates` is 0.
    pub fn split_candidates(self, candidates: usize) -> Result<SequenceLogProbs<2>, InvalidInput> {
        let [rows] = self.sum.dims();
        if candidates == 0 || rows % candidates != 0 {
            let expected = format!("a multiple of candidates = {candidates} ≥ 1 rows");
            return Err(InvalidInput::new("log_probs", expected, rows));
        }
        let shape = [rows / candidates, candidates];
        Ok(SequenceLogProbs {
            sum: self.sum.reshape(shape),
            lengths: self.lengths.reshape(shape),
        })
    }
}
