//! The errors of this crate. Each carries the name of what is wrong and the value that it has.

use burn::tensor::kind::Basic;
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use thiserror::Error;

/// A hyperparameter outside its range.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("`{name}` is {}, but must be {allowed}", readable(*value))]
pub struct InvalidHyperparameter {
    name: &'static str,
    value: f64,
    allowed: &'static str,
}

impl InvalidHyperparameter {
    /// An error about the hyperparameter `name`; `allowed` completes "must be …".
    pub fn new(name: &'static str, value: f64, allowed: &'static str) -> Self {
        Self {
            name,
            value,
            allowed,
        }
    }

    /// The hyperparameter's field name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The value that was refused.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// The allowed range, in words.
    pub fn allowed(&self) -> &'static str {
        self.allowed
    }
}

/// The value in a form without three hundred zeros.
fn readable(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
        return value.to_string();
    }
    format!("{value:e}")
}

/// A tensor that does not fit: its shape, its dtype, its device or one of its values. A tensor that
/// its device fails to compute does not fit either.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{name}`: expected {expected}, found {found}")]
pub struct InvalidInput {
    name: &'static str,
    expected: String,
    found: String,
}

impl InvalidInput {
    /// An error about the argument `name`.
    pub fn new(
        name: &'static str,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Self {
        Self {
            name,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// The name of the argument.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Words for what the argument should have been.
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// Words for what the argument was.
    pub fn found(&self) -> &str {
        &self.found
    }

    pub(crate) fn check_shape(
        name: &'static str,
        expected: &Shape,
        found: &Shape,
    ) -> Result<(), Self> {
        if expected == found {
            return Ok(());
        }
        let text = |shape: &Shape| format!("shape {:?}", shape.as_slice());
        Err(Self::new(name, text(expected), text(found)))
    }

    pub(crate) fn check_dtype(
        name: &'static str,
        expected: DType,
        found: DType,
    ) -> Result<(), Self> {
        Self::check_equal(name, &expected, &found)
    }

    pub(crate) fn check_device(
        name: &'static str,
        expected: &Device,
        found: &Device,
    ) -> Result<(), Self> {
        Self::check_equal(name, expected, found)
    }

    /// The values of an argument, on the host.
    pub(crate) fn read<const D: usize, K: Basic>(
        name: &'static str,
        tensor: &Tensor<D, K>,
    ) -> Result<TensorData, Self> {
        let unreadable = |error| Self::new(name, "values that its device can read", error);
        tensor.try_to_data().map_err(unreadable)
    }

    fn check_equal<T: PartialEq + std::fmt::Debug>(
        name: &'static str,
        expected: &T,
        found: &T,
    ) -> Result<(), Self> {
        if expected == found {
            return Ok(());
        }
        Err(Self::new(
            name,
            format!("{expected:?}"),
            format!("{found:?}"),
        ))
    }
}
