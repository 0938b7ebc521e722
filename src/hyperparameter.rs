//! Ranges of hyperparameters: each function checks one, and its error says which.

use crate::error::InvalidHyperparameter;

type Check = Result<(), InvalidHyperparameter>;

fn require(ok: bool, name: &'static str, value: f64, allowed: &'static str) -> Check {
    if ok {
        Ok(())
    } else {
        Err(InvalidHyperparameter::new(name, value, allowed))
    }
}

pub(crate) fn positive(name: &'static str, value: f64) -> Check {
    let ok = value > 0.0 && value.is_finite();
    require(ok, name, value, "a finite number > 0")
}

pub(crate) fn non_negative(name: &'static str, value: f64) -> Check {
    let ok = value >= 0.0 && value.is_finite();
    require(ok, name, value, "a finite number ≥ 0")
}

pub(crate) fn finite(name: &'static str, value: f64) -> Check {
    require(value.is_finite(), name, value, "a finite number")
}

/// A share that may be everything but not nothing.
pub(crate) fn share(name: &'static str, value: f64) -> Check {
    let ok = value > 0.0 && value <= 1.0;
    require(ok, name, value, "in (0, 1]")
}

/// A share that may be nothing and everything.
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
    let ok = value > 1.0 && value.is_finite();
    require(ok, name, value, "a finite number > 1")
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
pub(crate) trait Part {
    fn check(&self) -> Check;
}

pub(crate) fn part(_: &'static str, value: impl Part) -> Check {
    value.check()
}
