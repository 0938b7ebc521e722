//! KTO's class ratio: advice on how much desirable completions weigh against undesirable ones.

use std::fmt;
use std::ops::RangeInclusive;

use crate::loss::KtoLossConfig;

impl KtoLossConfig {
    /// The weight of the desirable completions of a data set against the undesirable ones, and
    /// whether it is the recommended one.
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

/// The ratio λ_D·n_D / (λ_U·n_U) of a data set; `Display` says what it means.
///
/// TRL and the first versions of the paper recommend a value from 1 to 4/3, a later one up to
/// 3/2. It is advice: an imbalance may be meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassRatio {
    /// λ_D·n_D.
    desirable: f64,
    /// λ_U·n_U.
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
