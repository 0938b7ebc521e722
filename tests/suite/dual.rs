//! A number and its exact slope along one input: forward differentiation of the scalar code.

use std::iter::Sum;
use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::scalar;

/// A number, and its slope along one input.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dual {
    pub value: f64,
    pub slope: f64,
}

impl Dual {
    pub fn constant(value: f64) -> Self {
        Self { value, slope: 0.0 }
    }

    /// The input itself.
    pub fn input(value: f64) -> Self {
        Self { value, slope: 1.0 }
    }

    /// The same number where no gradient flows: `sg`.
    pub fn frozen(self) -> Self {
        Self::constant(self.value)
    }

    /// f of it, whose derivative here is `slope`.
    pub fn then(self, value: f64, slope: f64) -> Self {
        // A number that does not move stays so, however steep f is.
        let slope = if self.slope == 0.0 {
            0.0
        } else {
            self.slope * slope
        };
        Self { value, slope }
    }

    pub fn exp(self) -> Self {
        self.then(self.value.exp(), self.value.exp())
    }

    pub fn exp_m1(self) -> Self {
        self.then(self.value.exp_m1(), self.value.exp())
    }

    pub fn ln(self) -> Self {
        self.then(self.value.ln(), self.value.recip())
    }

    pub fn square(self) -> Self {
        self.then(self.value.powi(2), 2.0 * self.value)
    }

    pub fn relu(self) -> Self {
        self.then(scalar::relu(self.value), f64::from(self.value > 0.0))
    }

    pub fn ln_sigmoid(self) -> Self {
        self.then(scalar::ln_sigmoid(self.value), scalar::sigmoid(-self.value))
    }

    pub fn sigmoid(self) -> Self {
        let slope = scalar::sigmoid(self.value) * scalar::sigmoid(-self.value);
        self.then(scalar::sigmoid(self.value), slope)
    }

    /// ln(p/(1 − p)) of ln p.
    pub fn odds(self) -> Self {
        self.then(scalar::odds(self.value), -1.0 / self.value.exp_m1())
    }

    /// The bound where it is exceeded, which has no slope.
    pub fn clamp(self, low: f64, high: f64) -> Self {
        if self.value < low {
            Self::constant(low)
        } else if self.value > high {
            Self::constant(high)
        } else {
            self
        }
    }

    pub fn min(self, other: Self) -> Self {
        if other.value < self.value {
            other
        } else {
            self
        }
    }
}

impl From<f64> for Dual {
    fn from(value: f64) -> Self {
        Self::constant(value)
    }
}

impl Neg for Dual {
    type Output = Self;
    fn neg(self) -> Self {
        Self {
            value: -self.value,
            slope: -self.slope,
        }
    }
}

impl Add for Dual {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            value: self.value + other.value,
            slope: self.slope + other.slope,
        }
    }
}

impl Sub for Dual {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            value: self.value - other.value,
            slope: self.slope - other.slope,
        }
    }
}

impl Mul for Dual {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let of = |slope: f64, factor: f64| if slope == 0.0 { 0.0 } else { slope * factor };
        Self {
            value: self.value * other.value,
            slope: of(self.slope, other.value) + of(other.slope, self.value),
        }
    }
}

impl Div<f64> for Dual {
    type Output = Self;
    fn div(self, divisor: f64) -> Self {
        Self {
            value: self.value / divisor,
            slope: self.slope / divisor,
        }
    }
}

macro_rules! with_plain_numbers {
    ($($trait:ident $function:ident),*) => {$(
        impl $trait<f64> for Dual {
            type Output = Self;
            fn $function(self, other: f64) -> Self {
                $trait::$function(self, Self::constant(other))
            }
        }

        impl $trait<Dual> for f64 {
            type Output = Dual;
            fn $function(self, other: Dual) -> Dual {
                $trait::$function(Dual::constant(self), other)
            }
        }
    )*};
}

with_plain_numbers!(Add add, Sub sub, Mul mul);

impl Sum for Dual {
    fn sum<I: Iterator<Item = Self>>(terms: I) -> Self {
        terms.fold(Self::default(), Add::add)
    }
}
