use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::error::InvalidInput;
use crate::math::upcast;

/// Sum of a completion's token log-probabilities together with its length.
///
/// They travel together so that the objective, not the caller, picks the normalisation. `D` is 1
/// for `[batch]` and 2 for `[batch, candidates]`. Sums are f32 at least.
#[derive(Debug, Clone)]
pub struct SequenceLogProbs<const D: usize = 1> {
    sum: Tensor<D>,
    lengths: Tensor<D>,
    /// Sum and lengths before anything was done to them; none where nothing was.
    unmodified: Option<(Tensor<D>, Tensor<D>)>,
}

impl<const D: usize> SequenceLogProbs<D> {
    /// Takes sums (nats) and completion lengths (tokens), of sums that were computed elsewhere.
    ///
    /// Lengths are those of `sum`'s elements, row by row, on the host. Nothing is read back. Where
    /// only the device knows them, begin with [`TokenLogProbs::new`](super::TokenLogProbs::new),
    /// which takes a mask.
    ///
    /// # Errors
    ///
    /// The numbers of sums and lengths differ.
    pub fn new(sum: Tensor<D>, lengths: &[usize]) -> Result<Self, InvalidInput> {
        let shape = sum.shape();
        if shape.num_elements() != lengths.len() {
            let expected = format!("{}, one per sum", shape.num_elements());
            return Err(InvalidInput::new("lengths", expected, lengths.len()));
        }
        let sum = upcast(sum);
        let lengths: Vec<f64> = lengths.iter().map(|&n| n as f64).collect();
        let lengths = TensorData::new(lengths, shape);
        let lengths = Tensor::from_data(lengths, (&sum.device(), sum.dtype()));
        Ok(Self::from_parts(sum, lengths.without_autodiff()))
    }

    pub(super) fn from_parts(sum: Tensor<D>, lengths: Tensor<D>) -> Self {
        Self {
            sum,
            lengths,
            unmodified: None,
        }
    }

    /// Log-probability of each completion, ℓ = Σ log π(token), nats.
    pub fn sum(&self) -> Tensor<D> {
        self.sum.clone()
    }

    /// [`Self::sum`], borrowed: a clone of a tensor on the tape costs a tenth of a node.
    pub(crate) fn sum_ref(&self) -> &Tensor<D> {
        &self.sum
    }

    /// Mean over the tokens of each completion, ℓ̄ = ℓ / max(length, 1): 0 for an empty one.
    pub fn mean(&self) -> Tensor<D> {
        self.sum() / self.divisor()
    }

    /// Completion lengths in tokens, as floats.
    pub fn lengths(&self) -> Tensor<D> {
        self.lengths.clone()
    }

    /// The completions as the model has them, before LD-DPO, SamPO, a clamp, token weights or a
    /// scale changed what an objective compares.
    ///
    /// Negative log-likelihoods and the metrics `logps/*` are of these.
    pub fn unmodified(&self) -> Self {
        match self.unmodified.clone() {
            Some((sum, lengths)) => Self::from_parts(sum, lengths),
            None => self.clone(),
        }
    }

    /// Whether nothing changed the sums.
    pub(crate) fn is_unmodified(&self) -> bool {
        self.unmodified.is_none()
    }

    /// Keeps the sums of `before` as the unmodified ones.
    pub(super) fn in_place_of(self, before: &Self) -> Self {
        let Self { sum, lengths, .. } = before.unmodified();
        Self {
            unmodified: Some((sum, lengths)),
            ..self
        }
    }

    /// max(length, 1).
    pub(crate) fn divisor(&self) -> Tensor<D> {
        self.lengths().clamp_min(1.0)
    }

    /// The same completions under a model that gives each of them log-probability 0.
    pub(crate) fn uniform(self) -> Self {
        let sum = self.sum.without_autodiff().zeros_like();
        Self::from_parts(sum, self.lengths)
    }

    /// The same values without autodiff.
    pub fn without_autodiff(self) -> Self {
        self.map(Tensor::without_autodiff)
    }

    /// `f` of every tensor.
    fn map<const E: usize>(self, f: impl Fn(Tensor<D>) -> Tensor<E>) -> SequenceLogProbs<E> {
        SequenceLogProbs {
            sum: f(self.sum),
            lengths: f(self.lengths),
            unmodified: self.unmodified.map(|(sum, lengths)| (f(sum), f(lengths))),
        }
    }

    /// ℓ times `scale`, for objectives to compare; lengths stay.
    pub(super) fn times(self, scale: Tensor<D>) -> Self {
        let sum = self.sum() * scale.without_autodiff().cast(self.sum.dtype());
        Self::from_parts(sum, self.lengths()).in_place_of(&self)
    }

    /// Makes one reference of several models: the weighted mean of their log-probabilities.
    ///
    /// ```text
    /// ℓ° = Σ_i w_i·ℓ°_i / Σ_i w_i
    /// ```
    ///
    /// It is the reference of an objective with a KL to each model, weighted by w_i. It is not
    /// normalised over completions. That constant of the prompt cancels in differences, so take it
    /// for pairs and lists, not for single completions. Lengths are those of the first model, and
    /// not compared.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use burn_preference::SequenceLogProbs;
    ///
    /// let of = |sum| SequenceLogProbs::from_values(&[sum], &[2], &Device::default());
    /// let reference = SequenceLogProbs::weighted_mean([(3.0, of(-4.0)?), (1.0, of(-8.0)?)])?;
    /// assert_eq!(reference.sum().into_scalar::<f32>(), -5.0);
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// There is no model, a weight is not a finite number > 0, or shapes or devices differ.
    pub fn weighted_mean(
        models: impl IntoIterator<Item = (f64, Self)>,
    ) -> Result<Self, InvalidInput> {
        let mut total = 0.0;
        let mut mean: Option<Self> = None;
        for (weight, model) in models {
            if !(weight > 0.0 && weight.is_finite()) {
                return Err(InvalidInput::new("weight", "a finite number > 0", weight));
            }
            total += weight;
            let sum = model.sum() * weight;
            mean = Some(match mean {
                None => Self::from_parts(sum, model.lengths),
                Some(so_far) => {
                    let here = so_far.sum();
                    InvalidInput::check_shape("models", &here.shape(), &sum.shape())?;
                    InvalidInput::check_device("models", &here.device(), &sum.device())?;
                    Self::from_parts(here.clone() + sum.cast(here.dtype()), so_far.lengths)
                }
            });
        }
        let mean = mean.ok_or_else(|| InvalidInput::new("models", "one at least", 0))?;
        Ok(Self::from_parts(mean.sum * total.recip(), mean.lengths))
    }
}

impl SequenceLogProbs {
    /// Takes numbers on the host, such as a cache of the reference holds.
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
    /// The numbers of sums and lengths differ.
    pub fn from_values(
        sums: &[f32],
        lengths: &[usize],
        device: &Device,
    ) -> Result<Self, InvalidInput> {
        let sums = Tensor::from_data(TensorData::from(sums), (device, DType::F32));
        Self::new(sums, lengths)
    }

    /// Rows `start..start + length` of the batch.
    pub(crate) fn narrow(&self, start: usize, length: usize) -> Self {
        self.clone().map(|tensor| tensor.narrow(0, start, length))
    }

    /// Makes one row of `candidates` consecutive rows of a prompt: `[batch · candidates]` becomes
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
        Ok(self.map(|tensor| tensor.reshape([rows / candidates, candidates])))
    }
}
