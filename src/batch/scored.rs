use burn::tensor::{DType, Device, FloatDType, Shape, Tensor};

use super::traits::Batch;
use crate::error::InvalidInput;
use crate::hyperparameter::positive;
use crate::log_probs::LogProbs;
use crate::math::{bounded_expm1, upcast};
use crate::needs::{Examples, Needs};

/// Completions with a scalar score each; they need not share prompts.
///
/// The meaning of the score is the objective's: a reward, or its place among the rewards of samples of the
/// reference ([`quantile_scores`]).
#[derive(Debug, Clone)]
pub struct Scored<L> {
    log_probs: L,
    scores: Tensor<1>,
}

impl<L> Scored<L> {
    /// The completions' log-probabilities.
    pub fn log_probs(&self) -> &L {
        &self.log_probs
    }

    /// Score of each completion, `[batch]`; higher is better.
    pub fn scores(&self) -> Tensor<1> {
        self.scores.clone()
    }
}

impl<L: LogProbs<1>> Scored<L> {
    /// Takes log-probabilities and scores, one per completion. No gradient flows into the scores.
    ///
    /// # Errors
    ///
    /// Batch sizes or devices differ.
    pub fn new(log_probs: L, scores: Tensor<1>) -> Result<Self, InvalidInput> {
        let sum = log_probs.policy().sum_ref();
        InvalidInput::check_shape("scores", &sum.shape(), &scores.shape())?;
        InvalidInput::check_device("scores", &sum.device(), &scores.device())?;
        Ok(Self {
            log_probs,
            scores: scores.without_autodiff(),
        })
    }
}

impl<L: LogProbs<1>> Batch for Scored<L> {
    type Rewards = Tensor<1>;

    fn len(&self) -> usize {
        self.scores.dims()[0]
    }

    fn device(&self) -> Device {
        self.scores.device()
    }

    fn needs() -> Needs {
        Needs::new(Examples::Scored, L::VALUES)
    }
}

/// The share of the reference samples of the same prompt whose reward is not higher, `[batch]`:
/// QRPO's quantile reward (Matrenok et al., 2507.08068).
///
/// ```text
/// R_q = #{i: r°_i ≤ r} / n          in [0, 1]
/// ```
///
/// Rewards `[batch]` of the completions, `reference` `[batch, n]` of n samples of the reference for
/// each of their prompts. A NaN among them gives NaN. No gradient flows through it. The result is f32
/// at least.
///
/// If rewards are continuous, R_q is uniform under the reference. With verdicts of 0 and 1, or with
/// many ties, it is not: break ties at random, or take another objective.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_preference::batch::quantile_scores;
///
/// let device = Device::default();
/// let reference = Tensor::<2>::from_floats([[0.1, 0.4, 0.4, 0.9]], &device);
/// let scores = quantile_scores(Tensor::from_floats([0.4], &device), reference)?;
/// assert_eq!(scores.into_scalar::<f32>(), 0.75);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
///
/// # Errors
///
/// `reference` has not one row per reward, or no column, or is on another device.
pub fn quantile_scores(
    rewards: Tensor<1>,
    reference: Tensor<2>,
) -> Result<Tensor<1>, InvalidInput> {
    let [rows] = rewards.dims();
    let samples = samples_of(&reference, rows)?;
    InvalidInput::check_device("reference", &rewards.device(), &reference.device())?;
    let rewards = upcast(rewards.without_autodiff());
    let reference = upcast(reference.without_autodiff());
    // In the wider of both types.
    let (rewards, reference) = if reference.dtype() == DType::F64 {
        (rewards.cast(FloatDType::F64), reference)
    } else {
        let dtype = rewards.dtype();
        (rewards, reference.cast(dtype))
    };
    let unknown =
        rewards.clone().is_nan().int() + reference.clone().is_nan().int().sum_dim(1).squeeze_dim(1);
    let own = rewards
        .clone()
        .unsqueeze_dim::<2>(1)
        .expand(Shape::new([rows, samples]));
    let below = reference.lower_equal(own).float().cast(rewards.dtype());
    let share = below.sum_dim(1).squeeze_dim::<1>(1) * (samples as f64).recip();
    Ok(share.mask_fill(unknown.greater_elem(0), f64::NAN))
}

/// V* of each prompt, `[batch]`, from the rewards of n samples of the reference, `[batch, n]`
/// (A*-PO, Brantley et al., 2505.20686): the value of the best policy at KL weight β.
///
/// ```text
/// V* = β·ln (1/n)·Σ_i e^(r°_i/β)
/// ```
///
/// For β → 0 it is the highest reward of the samples, for β → ∞ their mean. The authors' code takes
/// β = ½, for rewards of 0 and 1. No gradient flows through it.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_preference::batch::optimal_values;
///
/// let rewards = Tensor::<2>::from_floats([[0.0, 1.0]], &Device::default());
/// let value = optimal_values(rewards, 0.5)?.into_scalar::<f32>();
/// assert!((value - 0.716890).abs() < 1e-5); // ½·ln((1 + e²)/2)
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
///
/// # Errors
///
/// `beta` is not a finite number > 0, or there is no sample.
pub fn optimal_values(reference: Tensor<2>, beta: f64) -> Result<Tensor<1>, InvalidInput> {
    if positive("beta", beta).is_err() {
        return Err(InvalidInput::new(
            "beta",
            "a finite number > 0, in f32",
            beta,
        ));
    }
    let [rows, _] = reference.dims();
    let samples = samples_of(&reference, rows)?;
    let reference = upcast(reference.without_autodiff());
    // max + β·ln(1 + mean(e^((r − max)/β) − 1)): neither a large β nor a small one loses digits.
    let max = reference.clone().max_dim(1);
    let below = (reference - max.clone()) * beta.recip();
    let mean = bounded_expm1(below).sum_dim(1) * (samples as f64).recip();
    let values = mean.log1p() * beta + max.clone();
    let infinite = max.clone().is_inf();
    Ok(values.mask_where(infinite, max).squeeze_dim::<1>(1))
}

/// Number of samples of each of `rows` prompts.
fn samples_of(reference: &Tensor<2>, rows: usize) -> Result<usize, InvalidInput> {
    let [prompts, samples] = reference.dims();
    if prompts != rows {
        let expected = format!("{rows} rows, one per reward");
        return Err(InvalidInput::new("reference", expected, prompts));
    }
    if samples == 0 {
        return Err(InvalidInput::new("reference", "one sample at least", 0));
    }
    Ok(samples)
}
