//! Passes over a stretch of one row of logits. The vector instructions are chosen at run time.
//!
//! The loops are over arrays of [`LANES`] numbers, which the compiler turns into vectors. The code
//! uses no fused multiply-add, and the order of its sums does not depend on the vector width. So
//! every machine gets the same bits.

#![allow(
    clippy::inline_always,
    reason = "only what is inlined into `dispatch` is vectorised"
)]

use pulp::{Arch, Simd, WithSimd};

use super::super::{STATISTICS, Shaping};
use super::partial::Partial;

const LANES: usize = 16;
type Lanes = [f32; LANES];

/// The nearest f32.
#[allow(
    clippy::cast_possible_truncation,
    reason = "rounding is what it is for"
)]
pub fn narrow(x: f64) -> f32 {
    x as f32
}

/// `eˣ` for x ≤ 0 or slightly above 0. Results below the smallest normal number become 0, and NaN
/// stays NaN.
///
/// The range reduction is that of Cody and Waite: `x = n·ln 2 + r`. Then comes the Taylor
/// polynomial of r, with |r| ≤ ln 2 / 2. The relative error is below 2e-7.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
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

#[inline(always)]
fn largest(x: &[f32], mut max: f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [max; LANES];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for &x in lanes.iter().chain(rest) {
        max = if x > max { x } else { max };
    }
    max
}

fn wide_sum(lanes: Lanes) -> f64 {
    lanes.into_iter().map(f64::from).sum()
}

/// `tanh x` with a relative error of 2e-7.
///
/// For |x| ≤ ½ the result is the Padé approximant of degree 7 over 6. For larger |x| the result is
/// `(1 − e)/(1 + e)` with `e = exp(−2|x|)`. Near 0 that formula would lose all digits.
#[inline(always)]
fn tanh(x: f32) -> f32 {
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
pub fn shift(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// The terms that a logit adds to the sums of its row: power, power·(x − m), power², x. Without
/// by-products only the first term is computed.
#[inline(always)]
pub fn terms<const BY_PRODUCTS: bool>(x: f32, shift: f32) -> [f32; STATISTICS] {
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
pub fn turned<const BENT: bool>(x: f32, [max, log_sum]: [f32; 2], factor: f32, bend: f32) -> f32 {
    let power = factor * exp((x - max) - log_sum);
    if !BENT {
        return power;
    }
    let bent = bend * x;
    power - power * (bent * bent)
}

/// Rescales sums of powers: powers relative to `before` become powers relative to the larger `max`.
/// If `before` is −∞, all sums are still zero and need no rescaling.
pub fn rescale(sums: &mut [f32], before: f32, max: f32) {
    if before < max && before > f32::NEG_INFINITY {
        let factor = (before - max).exp();
        for x in sums {
            *x *= factor;
        }
    }
}

struct Observe<'a, const BY_PRODUCTS: bool> {
    x: &'a [f32],
    at_least: f32,
}

impl<const BY_PRODUCTS: bool> WithSimd for Observe<'_, BY_PRODUCTS> {
    type Output = Partial;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Partial {
        let max = largest(self.x, self.at_least);
        let first = self.x.iter().position(|&x| BY_PRODUCTS && x == max);
        let shift = shift(max);
        let mut sums = [[0.0; LANES]; STATISTICS];
        let used = if BY_PRODUCTS { STATISTICS } else { 1 };
        let mut step = |lane: usize, x: f32| {
            let terms = terms::<BY_PRODUCTS>(x, shift);
            for (sums, term) in sums.iter_mut().zip(terms).take(used) {
                sums[lane] += term;
            }
        };
        let (chunks, rest) = self.x.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, x) in chunk.iter().enumerate() {
                step(lane, *x);
            }
        }
        for (lane, x) in rest.iter().enumerate() {
            step(lane, *x);
        }
        Partial::new(max, first, sums.map(wide_sum))
    }
}

/// Reduces a stretch of logits. The powers are relative to the largest of the logits and
/// `at_least`.
pub fn observe(arch: Arch, x: &[f32], at_least: f32, statistics: bool) -> Partial {
    if statistics {
        arch.dispatch(Observe::<true> { x, at_least })
    } else {
        arch.dispatch(Observe::<false> { x, at_least })
    }
}

struct Shape<'a> {
    x: &'a mut [f32],
    shaping: Shaping,
}

impl WithSimd for Shape<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Some(cap) = self.shaping.softcap else {
            let factor = narrow(self.shaping.factor());
            for x in self.x {
                *x *= factor;
            }
            return;
        };
        let inside = narrow(self.shaping.scale / cap);
        let outside = narrow(cap / self.shaping.temperature);
        for x in self.x {
            *x = outside * tanh(inside * *x);
        }
    }
}

/// Turns `W h + b` into logits, in place.
pub fn shape(arch: Arch, x: &mut [f32], shaping: Shaping) {
    if !shaping.is_none() {
        arch.dispatch(Shape { x, shaping });
    }
}

struct Turn<'a, const BENT: bool> {
    x: &'a mut [f32],
    normalizer: [f32; 2],
    factor: f32,
    bend: f32,
}

impl<const BENT: bool> WithSimd for Turn<'_, BENT> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for x in self.x {
            *x = turned::<BENT>(*x, self.normalizer, self.factor, self.bend);
        }
    }
}

/// Turns logits into `factor · exp((x − max) − log_sum)`. If `bend` (u) is not 0, the result is
/// also multiplied by `1 − (u·x)²`, which comes from the derivative of a softcap.
pub fn turn(arch: Arch, x: &mut [f32], normalizer: [f32; 2], factor: f32, bend: f32) {
    if bend == 0.0 {
        arch.dispatch(Turn::<false> {
            x,
            normalizer,
            factor,
            bend,
        });
    } else {
        arch.dispatch(Turn::<true> {
            x,
            normalizer,
            factor,
            bend,
        });
    }
}

/// [`turned`] for the probability 1. This is the onehot term of the gradient at the target. The
/// rounding is the same as in [`turned`], so the gradient of a certain word is exactly 0.
pub fn turned_if_certain(logit: f32, factor: f32, bend: f32) -> f32 {
    if bend == 0.0 {
        return factor;
    }
    turned::<true>(logit, [logit, 0.0], factor, bend)
}

#[cfg(test)]
mod tests {
    use pulp::Arch;

    use super::{Partial, exp, observe, tanh, turn};

    #[test]
    fn exponentials() {
        let largest_error = (0..=873_000)
            .map(|i| -1e-4 * f64::from(i))
            .chain((0..100).map(|i| 1e-3 * f64::from(i)))
            .map(|x| {
                let x = super::narrow(x);
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
                let x = super::narrow(x);
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

    /// Tests every length up to a few vectors, so that whole vectors and the rest after them occur.
    #[test]
    fn stretches_of_any_length() {
        let arch = Arch::new();
        for length in 0..70 {
            let x: Vec<f32> = (0..length).map(|i| ((i * 37) % 11) as f32 - 5.0).collect();
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = x.iter().map(|&x| f64::from(x - max).exp()).sum();
            let whole = observe(arch, &x, f32::NEG_INFINITY, true);
            assert_eq!(whole.max, max);
            assert!((whole.sum - sum).abs() <= 1e-6 * sum);

            // Two parts together give the same result as the whole stretch.
            let (mut a, mut b) = (x.clone(), Vec::new());
            b.extend(a.drain(length / 3..));
            let part = |x: &[f32]| observe(arch, x, f32::NEG_INFINITY, true);
            let both = part(&a).and(part(&b).starting_at(a.len()));
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
            let [of_both, of_whole] = [both, whole].map(|of| of.statistics(0, length.max(1)));
            for (a, b) in of_both.into_iter().zip(of_whole) {
                assert!(
                    length == 0 || close(a.into(), b.into()),
                    "{length}: {a} and {b}"
                );
            }
            assert!(close(both.sum, whole.sum));
            assert_eq!(Partial::EMPTY.and(whole).max, whole.max);

            let mut p = x.clone();
            turn(arch, &mut p, [max, super::narrow(sum.ln())], 2.0, 0.0);
            let total: f64 = p.iter().map(|&p| f64::from(p)).sum();
            assert!(length == 0 || (total - 2.0).abs() < 1e-5, "{total}");
        }
    }
}
