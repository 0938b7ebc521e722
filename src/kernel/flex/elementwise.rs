//! Functions of one number, and of one logit of a row.

#![allow(
    clippy::inline_always,
    reason = "only what is inlined into `dispatch` is vectorised"
)]

use std::f64::consts::{LN_2, LOG2_E, SQRT_2};

use crate::kernel::forward::STATISTICS;

/// Numbers that a pass computes at once: the length of the longest vector of f32.
pub(super) const LANES: usize = 16;

/// The nearest f32.
#[allow(
    clippy::cast_possible_truncation,
    reason = "rounding is what it is for"
)]
#[inline(always)]
pub(crate) fn narrow(x: f64) -> f32 {
    x as f32
}

/// `eˣ` for x ≤ 0 or slightly above 0. Results below the smallest normal number become 0, and NaN
/// stays NaN.
///
/// The range reduction is that of Cody and Waite: `x = n·ln 2 + r`. Then comes the Taylor
/// polynomial of r, with |r| ≤ ln 2 / 2. The relative error is below 2e-7.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts. The first part has so few bits that n·LN_2_HIGH is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5·2²³ rounds to an integer. The low bits of the sum then hold this integer.
    const ROUND: f32 = 12_582_912.0;
    const SMALLEST: f32 = -87.3;
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    let value = p * power;
    if x < SMALLEST { 0.0 } else { value }
}

/// `2ⁿ` and `expm1(r)` with x = n·ln 2 + r, |r| ≤ ln 2 / 2, for x ≤ 0; below −200 it is −200. NaN
/// stays NaN in the second.
#[inline(always)]
pub(crate) fn power(x: f64) -> [f64; 2] {
    // Adding 1.5·2⁵² rounds to an integer. The low bits of the sum then hold this integer.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let x = if x < -200.0 { -200.0 } else { x };
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2;
    let mut p = 1.0 / 3_628_800.0;
    p = p * r + 1.0 / 362_880.0;
    p = p * r + 1.0 / 40_320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    let two_to_n = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0_f64.to_bits()));
    [two_to_n, p * r]
}

/// `ln((1 + s)/(1 − s))` for |s| ≤ 1/3.
#[inline(always)]
pub(crate) fn twice_atanh(s: f64) -> f64 {
    let square = s * s;
    let mut sum = 1.0 / 17.0;
    sum = sum * square + 1.0 / 15.0;
    sum = sum * square + 1.0 / 13.0;
    sum = sum * square + 1.0 / 11.0;
    sum = sum * square + 1.0 / 9.0;
    sum = sum * square + 1.0 / 7.0;
    sum = sum * square + 1.0 / 5.0;
    sum = sum * square + 1.0 / 3.0;
    sum = sum * square + 1.0;
    2.0 * s * sum
}

/// `ln x` for normal x > 0; some number for NaN.
#[inline(always)]
pub(crate) fn ln(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    // An integer in the low bits of 2⁵² is added to it.
    const SHIFT: f64 = 4_503_599_627_370_496.0;
    let lowest = (SQRT_2 / 2.0).to_bits();
    let moved = x.to_bits().wrapping_add(1.0_f64.to_bits() - lowest);
    let exponent = f64::from_bits((moved >> 52) | SHIFT.to_bits()) - (SHIFT + 1023.0);
    // In √½ … √2.
    let factor = f64::from_bits((moved & MANTISSA) + lowest);
    exponent * LN_2 + twice_atanh((factor - 1.0) / (factor + 1.0))
}

/// `tanh x` with a relative error of 2e-7.
///
/// For |x| ≤ ½ the result is the Padé approximant of degree 7 over 6. For larger |x| the result is
/// `(1 − e)/(1 + e)` with `e = exp(−2|x|)`. Near 0 that formula would lose all digits.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let above = ((square + 378.0) * square + 17_325.0) * square + 135_135.0;
    let below = ((28.0 * square + 3150.0) * square + 62_370.0) * square + 135_135.0;
    let near = x * above / below;
    let e = exp(-2.0 * x.abs());
    let far = (1.0 - e) / (1.0 + e);
    if x.abs() <= 0.5 {
        near
    } else {
        far.copysign(x)
    }
}

/// The number to subtract from logits before exp, where `max` is the largest logit. This is 0 if
/// all logits are −∞: then each power is 0, while −∞ − (−∞) would make NaN.
#[inline(always)]
pub(super) fn shift(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// The terms that a logit adds to the sums of its row: power, power·(x − m), power², x. Without
/// by-products only the first term is computed.
#[inline(always)]
pub(super) fn terms<const BY_PRODUCTS: bool>(x: f32, shift: f32) -> [f32; STATISTICS] {
    let below = x - shift;
    let power = exp(below);
    if !BY_PRODUCTS {
        return [power, 0.0, 0.0, 0.0];
    }
    // exp(−1e4) is 0 already, so the bound changes no sum. Without the bound, 0 · (−∞) would be
    // NaN.
    let bounded = if below < -1e4 { -1e4 } else { below };
    [power, power * bounded, power * power, x]
}

/// `factor · exp((x − max) − log_sum)`. With `BENT`, the result is also multiplied by
/// `1 − (bend·x)²`.
#[inline(always)]
pub(super) fn turned<const BENT: bool>(
    x: f32,
    [max, log_sum]: [f32; 2],
    factor: f32,
    bend: f32,
) -> f32 {
    let power = factor * exp((x - max) - log_sum);
    if !BENT {
        return power;
    }
    let bent = bend * x;
    power - power * (bent * bent)
}

/// [`turned`] for the probability 1. This is the onehot term of the gradient at the target. The
/// rounding is the same as in [`turned`], so the gradient of a certain word is exactly 0.
pub(super) fn turned_if_certain(logit: f32, factor: f32, bend: f32) -> f32 {
    if bend == 0.0 {
        return factor;
    }
    turned::<true>(logit, [logit, 0.0], factor, bend)
}

#[cfg(test)]
mod tests {
    use super::{exp, narrow, tanh};

    #[test]
    fn exponentials() {
        let largest_error = (0..=873_000)
            .map(|i| -1e-4 * f64::from(i))
            .chain((0..100).map(|i| 1e-3 * f64::from(i)))
            .map(|x| {
                let x = narrow(x);
                (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs()
            })
            .fold(0.0, f64::max);
        assert!(largest_error < 2e-7, "{largest_error}");
        assert_eq!(exp(0.0), 1.0);
        for x in [-87.4, -104.0, -1e30, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp(x), 0.0, "{x}");
        }
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn hyperbolic_tangents() {
        let largest_error = (-120_000..=120_000)
            .map(|i| 1e-4 * f64::from(i))
            .chain((0..40).map(|i| 10_f64.powi(-i)))
            .filter(|&x| x != 0.0)
            .map(|x| {
                let x = narrow(x);
                (f64::from(tanh(x)) / f64::from(x).tanh() - 1.0).abs()
            })
            .fold(0.0, f64::max);
        assert!(largest_error < 3e-7, "{largest_error}");
        assert_eq!(
            [tanh(0.0), tanh(1e30), tanh(f32::NEG_INFINITY)],
            [0.0, 1.0, -1.0]
        );
        assert!(tanh(f32::NAN).is_nan());
    }
}
