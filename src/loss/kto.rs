use std::fmt;
use std::ops::RangeInclusive;

use burn::tensor::Tensor;

use crate::batch::{Unpaired, WithBaseline};
use crate::declare::objective;
use crate::log_probs::RelativeLogProbs;
use crate::math::sigmoid;
use crate::objective::{LossOutput, Objective};
use crate::training::reducer::{ReduceError, Reducer};

objective! {
    /// Kahneman–Tversky optimisation (Ethayarajh et al., 2402.01306, Eq. 7–8).
    ///
    /// ```text
    /// loss   = λ_D·(1 − σ(β(ρ − z₀)))    desirable
    ///          λ_U·(1 − σ(β(z₀ − ρ)))    undesirable
    /// reward = β·ρ
    /// ```
    ///
    /// The reference point z₀ is data: a [`WithBaseline`] column, estimated by [`KlEstimate`].
    /// No gradient flows into it. At policy = reference with z₀ = 0 every loss is λ/2.
    example unpaired_with_baseline "" = 0.384471, "the mean of 1 − σ(0.1·10) and 1 − σ(0)";
    pub struct KtoLoss from KtoLossConfig
        takes [WithBaseline<Unpaired<RelativeLogProbs>>]
    {
        /// β > 0: reward per nat of log-ratio.
        beta / with_beta: f64 = 0.1, positive;
        /// λ_D ≥ 0, the weight of desirable completions.
        desirable_weight / with_desirable_weight: f64 = 1.0, non_negative;
        /// λ_U ≥ 0, the weight of undesirable completions.
        undesirable_weight / with_undesirable_weight: f64 = 1.0, non_negative;
    }
}

impl Objective<WithBaseline<Unpaired<RelativeLogProbs>>> for KtoLoss {
    fn forward(&self, batch: WithBaseline<Unpaired<RelativeLogProbs>>) -> LossOutput<Tensor<1>> {
        let WithBaseline { batch, baseline } = batch;
        let log_ratio = batch.log_probs().log_ratio();
        let sign = batch.sign(&log_ratio);
        let weight = log_ratio
            .full_like(self.desirable_weight)
            .mask_fill(batch.desirable().bool_not(), self.undesirable_weight);
        // 1 − σ(x) = σ(−x) keeps the digits of a loss near 0.
        let value = sign * (log_ratio.clone() - baseline.cast(log_ratio.dtype())) * self.beta;
        LossOutput::new(weight * sigmoid(-value), log_ratio * self.beta)
    }
}

impl KtoLossConfig {
    /// How much the desirable completions of a data set weigh against the undesirable ones, and
    /// what is recommended.
    ///
    /// ```
    /// use burn_preference::KtoLossConfig;
    ///
    /// let config = KtoLossConfig::new();
    /// assert!(config.class_ratio(120, 100).is_recommended());
    /// let ratio = config.class_ratio(300, 100);
    /// assert_eq!(ratio.value(), 3.0);
    /// assert_eq!(
    ///     ratio.to_string(),
    ///     "λ_D·n_D / (λ_U·n_U) is 3: above the recommended 1 to 1.5; \
    ///      an undesirable_weight of 2 to 3 is inside"
    /// );
    /// assert!(config.with_undesirable_weight(3.0).class_ratio(300, 100).is_recommended());
    /// ```
    pub fn class_ratio(&self, desirable: usize, undesirable: usize) -> ClassRatio {
        ClassRatio {
            desirable: self.desirable_weight * desirable as f64,
            undesirable: self.undesirable_weight * undesirable as f64,
            undesirable_weight: self.undesirable_weight,
        }
    }
}

/// λ_D·n_D / (λ_U·n_U) of a data set. `Display` says what it means.
///
/// TRL and the first versions of the paper recommend a value from 1 to 4/3, a later one up to
/// 3/2. It is advice: an imbalance may be meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassRatio {
    /// λ_D·n_D
    desirable: f64,
    /// λ_U·n_U
    undesirable: f64,
    undesirable_weight: f64,
}

impl ClassRatio {
    /// The lowest and the highest ratio that the paper recommends.
    pub const RECOMMENDED: RangeInclusive<f64> = 1.0..=1.5;

    /// The ratio; ∞ or NaN where nothing undesirable weighs anything.
    pub fn value(&self) -> f64 {
        self.desirable / self.undesirable
    }

    /// Whether it is inside [`RECOMMENDED`](Self::RECOMMENDED).
    pub fn is_recommended(&self) -> bool {
        // A rounding error does not take a ratio of exactly 1 out of the range.
        let (low, high) = Self::RECOMMENDED.into_inner();
        (low - 1e-9..=high + 1e-9).contains(&self.value())
    }
}

impl fmt::Display for ClassRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = Self::RECOMMENDED.into_inner();
        let value = self.value();
        if value.is_nan() {
            return write!(f, "λ_D·n_D / (λ_U·n_U) is 0/0: nothing weighs anything");
        }
        let shown = to_digits(value, f64::round);
        write!(f, "λ_D·n_D / (λ_U·n_U) is {shown}: ")?;
        if self.is_recommended() {
            return write!(f, "inside the recommended {low} to {high}");
        }
        let side = if value > high { "above" } else { "below" };
        write!(f, "{side} the recommended {low} to {high}")?;
        let weights = [high, low].map(|ratio| self.undesirable_weight * value / ratio);
        if weights
            .iter()
            .all(|weight| *weight > 0.0 && weight.is_finite())
        {
            // Rounded inwards, so that what is printed is inside.
            let [from, to] = weights;
            let (from, to) = (to_digits(from, f64::ceil), to_digits(to, f64::floor));
            write!(f, "; an undesirable_weight of {from} to {to} is inside")?;
        }
        Ok(())
    }
}

/// Three digits of `x`, those after them rounded by `round`.
fn to_digits(x: f64, round: fn(f64) -> f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let unit = 10_f64.powf(x.abs().log10().floor() - 2.0);
    // A whole number of units stays one.
    let units = (1e9 * x / unit).round() / 1e9;
    // Divided where the unit is below 1: its inverse is exact.
    if unit < 1.0 {
        round(units) / unit.recip().round()
    } else {
        round(units) * unit
    }
}

/// KTO's z₀, estimated on *mismatched* completions: each prompt with another prompt's completion.
///
/// ```text
/// z₀ = max(0, mean ρ)
/// ```
///
/// Sum and count stay apart until [`baseline`](Self::baseline), because over several devices or
/// micro-batches the global mean comes first and the maximum after it. Both are without autodiff.
#[derive(Debug, Clone)]
pub struct KlEstimate {
    sum: Tensor<1>,
    count: Tensor<1>,
}

impl KlEstimate {
    /// From the log-probabilities of mismatched completions; an empty one counts with ρ = 0.
    pub fn from_mismatched(log_probs: &RelativeLogProbs) -> Self {
        let log_ratio = log_probs.log_ratio().without_autodiff();
        let count = log_ratio.ones_like().sum_dim(0);
        Self {
            sum: log_ratio.sum_dim(0),
            count,
        }
    }

    /// The estimate over both parts.
    pub fn merge(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            count: self.count + other.count,
        }
    }

    /// The estimate over all workers.
    ///
    /// # Errors
    ///
    /// The workers do not come together.
    pub fn reduced(self, reducer: &dyn Reducer) -> Result<Self, ReduceError> {
        let both = reducer.sum(Tensor::cat(vec![self.sum, self.count], 0))?;
        Ok(Self {
            sum: both.clone().narrow(0, 0, 1),
            count: both.narrow(0, 1, 1),
        })
    }

    /// z₀, `[1]`, nats; 0 where nothing was counted.
    pub fn baseline(&self) -> Tensor<1> {
        (self.sum.clone() / self.count.clone().clamp_min(1.0)).clamp_min(0.0)
    }
}
