//! Ranges of hyperparameters: each function checks one, and its error says which.
//!
//! Numbers must be normal ones of f32, or 0 where that is allowed: tensors of f32 take them, and a
//! β of 1e-300 that becomes 0 there would be ignored without a word.

use crate::error::InvalidHyperparameter;

type Check = Result<(), InvalidHyperparameter>;

fn require(ok: bool, name: &'static str, value: f64, allowed: &'static str) -> Check {
    if ok {
        Ok(())
    } else {
        Err(InvalidHyperparameter::new(name, value, allowed))
    }
}

/// Whether f32 holds the value without rounding it to 0 or infinity.
fn is_normal(value: f64) -> bool {
    (f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&value.abs())
}

pub(crate) fn positive(name: &'static str, value: f64) -> Check {
    let ok = value > 0.0 && is_normal(value);
    require(ok, name, value, "a finite number > 0, in f32")
}

pub(crate) fn of_step(name: &'static str, value: f64, part: usize) -> Check {
    let ok = value >= part as f64;
    require(ok, name, value, "at least those of this part of the step")
}

pub(crate) fn non_negative(name: &'static str, value: f64) -> Check {
    let ok = value == 0.0 || value > 0.0 && is_normal(value);
    require(ok, name, value, "a finite number ≥ 0, in f32")
}

pub(crate) fn finite(name: &'static str, value: f64) -> Check {
    let ok = value == 0.0 || is_normal(value);
    require(ok, name, value, "a finite number, in f32")
}

/// The two ends of a clamp.
pub(crate) fn bounds(low: f64, high: f64) -> Check {
    finite("low", low)?;
    finite("high", high)?;
    require(low <= high, "high", high, "≥ `low`")
}

/// A share in (0, 1].
pub(crate) fn share(name: &'static str, value: f64) -> Check {
    let ok = value > 0.0 && value <= 1.0 && is_normal(value);
    require(ok, name, value, "in (0, 1], in f32")
}

/// A share in [0, 1].
pub(crate) fn fraction(name: &'static str, value: f64) -> Check {
    require((0.0..=1.0).contains(&value), name, value, "in [0, 1]")
}

/// A rate whose logarithm is taken.
pub(crate) fn positive_noise_rate(name: &'static str, value: f64) -> Check {
    let ok = value > 0.0 && value < 0.5;
    require(ok, name, value, "in (0, 0.5)")
}

/// A factor that must exceed 1.
pub(crate) fn above_one(name: &'static str, value: f64) -> Check {
    let ok = value > 1.0 && is_normal(value);
    require(ok, name, value, "a finite number > 1, in f32")
}

/// A number without a default: NaN where a file lacks it.
pub(crate) fn given(name: &'static str, value: f64) -> Check {
    require(!value.is_nan(), name, value, "given: it has no default")
}

/// A bound that may be missing.
pub(crate) fn optional_positive(name: &'static str, value: Option<f64>) -> Check {
    value.map_or(Ok(()), |value| positive(name, value))
}

/// A label noise rate: at ½ a label says nothing.
pub(crate) fn noise_rate(name: &'static str, value: f64) -> Check {
    let ok = (0.0..0.5).contains(&value);
    require(ok, name, value, "in [0, 0.5)")
}

/// An alternative of one stage that carries numbers of its own.
pub(crate) trait Choice {
    fn check(&self) -> Check;
}

pub(crate) fn choice(_: &'static str, value: impl Choice) -> Check {
    value.check()
}
