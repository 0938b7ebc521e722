//! Passes over a stretch of one row of logits, in vector instructions chosen at run time.
//!
//! Loops are over arrays of [`LANES`] numbers, which the compiler turns into vectors. No fused
//! multiply-add and no reordering that depends on the width: every machine gets the same bits.

#![allow(
    clippy::inline_always,
    reason = "only what is inlined into `dispatch` is vectorised"
)]

use pulp::{Arch, Simd, WithSimd};

use super::super::Shaping;

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

/// What a stretch of logits x says, relative to its largest m; a NaN makes every sum NaN.
#[derive(Debug, Clone, Copy)]
pub struct Partial {
    pub max: f32,
    /// Where the first of the largest stands, if by-products were asked for.
    first: usize,
    /// `Σ exp(x − m)`
    pub sum: f64,
    /// `Σ exp(x − m)·(x − m)`
    expected: f64,
    /// `Σ exp(x − m)²`
    squares: f64,
    /// `Σ x`
    total: f64,
}

impl Partial {
    pub const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        first: usize::MAX,
        sum: 0.0,
        expected: 0.0,
        squares: 0.0,
        total: 0.0,
    };

    /// One logit of 0.
    pub const ONE: Self = Self {
        max: 0.0,
        first: 0,
        sum: 1.0,
        squares: 1.0,
        ..Self::EMPTY
    };

    /// Both stretches as one.
    pub fn and(self, other: Self) -> Self {
        let max = if other.max > self.max {
            other.max
        } else {
            self.max
        };
        let first = |of: Self| if of.max == max { of.first } else { usize::MAX };
        let (a, b) = (self.relative_to(max), other.relative_to(max));
        Self {
            max,
            first: first(self).min(first(other)),
            sum: a.sum + b.sum,
            expected: a.expected + b.expected,
            squares: a.squares + b.squares,
            total: a.total + b.total,
        }
    }

    fn relative_to(self, max: f32) -> Self {
        // Nothing but −∞ weighs nothing; −∞ − (−∞) would be NaN.
        if max == self.max || self.max == f32::NEG_INFINITY {
            return Self { max, ..self };
        }
        let difference = f64::from(self.max) - f64::from(max);
        let factor = difference.exp();
        Self {
            max,
            sum: factor * self.sum,
            expected: factor * (self.expected + difference * self.sum),
            squares: factor * factor * self.squares,
            ..self
        }
    }

    /// The same stretch, which begins at `word` of its row.
    pub fn starting_at(self, word: usize) -> Self {
        Self {
            first: self.first.saturating_add(word),
            ..self
        }
    }

    /// `ln Σ exp(x − m)`
    pub fn log_sum(self) -> f64 {
        self.sum.ln()
    }

    /// The by-products of a row of `words` logits, of which `target` was asked for.
    pub fn statistics(self, target: usize, words: usize) -> [f32; super::super::STATISTICS] {
        let top1 = if self.sum.is_nan() {
            f64::NAN
        } else {
            f64::from(u8::from(target == self.first))
        };
        [
            self.log_sum() - self.expected / self.sum,
            self.squares.ln() - 2.0 * self.log_sum(),
            top1,
            self.total / words as f64,
        ]
        .map(narrow)
    }
}

/// `eˣ` for x ≤ 0, or a little above; 0 below the smallest normal number, NaN for NaN.
///
/// Cody and Waite: x = n·ln 2 + r, then the Taylor polynomial in |r| ≤ ln 2 / 2. Relative error
/// below 2e-7.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first so short that n·LN_2_HIGH is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5·2²³ rounds to an integer, which then stands in the low bits.
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

/// `tanh x`, right to 2e-7 relatively.
///
/// The Padé approximant of degree 7 over 6 for |x| ≤ ½, and beyond it (1 − e)/(1 + e) of
/// e = exp(−2|x|), which has no digits near 0.
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

#[inline(always)]
fn exponentiate_here<const STATISTICS: bool, const BENT: bool>(
    x: &mut [f32],
    at_least: f32,
    bend: f32,
) -> Partial {
    let max = largest(x, at_least);
    let first = if STATISTICS {
        x.iter().position(|&x| x == max).unwrap_or(usize::MAX)
    } else {
        usize::MAX
    };
    let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let (mut sum, mut expected) = ([0.0; LANES], [0.0; LANES]);
    let (mut squares, mut total) = ([0.0; LANES], [0.0; LANES]);
    let mut step = |lane: usize, x: &mut f32| {
        let below = *x - shift;
        let power = exp(below);
        sum[lane] += power;
        if STATISTICS {
            // e^−1e4 is 0 already; −∞ times that 0 would be NaN.
            let bounded = if below < -1e4 { -1e4 } else { below };
            expected[lane] += power * bounded;
            squares[lane] += power * power;
            total[lane] += *x;
        }
        *x = if BENT {
            let bent = bend * *x;
            power - power * (bent * bent)
        } else {
            power
        };
    };
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (lane, x) in chunk.iter_mut().enumerate() {
            step(lane, x);
        }
    }
    for (lane, x) in rest.iter_mut().enumerate() {
        step(lane, x);
    }
    Partial {
        max,
        first,
        sum: wide_sum(sum),
        expected: wide_sum(expected),
        squares: wide_sum(squares),
        total: wide_sum(total),
    }
}

/// A pass over a row, as a type: a closure given to `dispatch` is not compiled for the
/// instruction set that it chooses.
struct Exponentiate<'a, const STATISTICS: bool, const BENT: bool> {
    x: &'a mut [f32],
    at_least: f32,
    bend: f32,
}

impl<const STATISTICS: bool, const BENT: bool> WithSimd for Exponentiate<'_, STATISTICS, BENT> {
    type Output = Partial;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Partial {
        exponentiate_here::<STATISTICS, BENT>(self.x, self.at_least, self.bend)
    }
}

/// Turns logits x into `exp(x − m)`, m = the largest of them and `at_least`; with a `bend` u that
/// is not 0, into `exp(x − m)·(1 − (u·x)²)`. What it returns is of the former.
pub fn exponentiate(
    arch: Arch,
    x: &mut [f32],
    at_least: f32,
    bend: f32,
    statistics: bool,
) -> Partial {
    macro_rules! pass {
        ($statistics:literal, $bent:literal) => {
            arch.dispatch(Exponentiate::<$statistics, $bent> { x, at_least, bend })
        };
    }
    match (statistics, bend != 0.0) {
        (false, false) => pass!(false, false),
        (false, true) => pass!(false, true),
        (true, false) => pass!(true, false),
        (true, true) => pass!(true, true),
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

/// Turns W h + b into logits.
pub fn shape(arch: Arch, x: &mut [f32], shaping: Shaping) {
    if !shaping.is_none() {
        arch.dispatch(Shape { x, shaping });
    }
}

struct BentSoftmax<'a> {
    powers: &'a mut [f32],
    normalizer: [f32; 2],
    factor: f32,
    bend: f32,
}

impl WithSimd for BentSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let [max, log_sum] = self.normalizer;
        for x in self.powers {
            let bent = self.bend * *x;
            let power = self.factor * exp((*x - max) - log_sum);
            *x = power - power * (bent * bent);
        }
    }
}

/// Turns logits into `factor · exp((x − max) − log_sum)`.
pub fn softmax(arch: Arch, x: &mut [f32], [max, log_sum]: [f32; 2], factor: f32) {
    arch.dispatch(
        #[inline(always)]
        || {
            for x in x {
                *x = factor * exp((*x - max) - log_sum);
            }
        },
    );
}

/// [`softmax`] times `1 − (bend·x)²`: what a softcap leaves of a gradient.
pub fn bent_softmax(arch: Arch, x: &mut [f32], normalizer: [f32; 2], factor: f32, bend: f32) {
    arch.dispatch(BentSoftmax {
        powers: x,
        normalizer,
        factor,
        bend,
    });
}

#[cfg(test)]
mod tests {
    use pulp::Arch;

    use super::{Partial, exp, exponentiate, softmax, tanh};

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

    /// Every length up to a few vectors: whole ones and what is left.
    #[test]
    fn stretches_of_any_length() {
        let arch = Arch::new();
        for length in 0..70 {
            let x: Vec<f32> = (0..length).map(|i| ((i * 37) % 11) as f32 - 5.0).collect();
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = x.iter().map(|&x| f64::from(x - max).exp()).sum();
            let mut powers = x.clone();
            let whole = exponentiate(arch, &mut powers, f32::NEG_INFINITY, 0.0, true);
            assert_eq!(whole.max, max);
            assert!((whole.sum - sum).abs() <= 1e-6 * sum);

            // Two parts make the whole, and so does a larger logit from elsewhere.
            let (mut a, mut b) = (x.clone(), Vec::new());
            b.extend(a.drain(length / 3..));
            let part = |x: &mut [f32]| exponentiate(arch, x, f32::NEG_INFINITY, 0.0, true);
            let both = part(&mut a).and(part(&mut b));
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
            assert!(close(both.sum, whole.sum) && close(both.expected, whole.expected));
            assert!(close(both.squares, whole.squares) && close(both.total, whole.total));
            assert_eq!(Partial::EMPTY.and(whole).max, whole.max);

            let mut p = x.clone();
            softmax(arch, &mut p, [max, super::narrow(sum.ln())], 2.0);
            let total: f64 = p.iter().map(|&p| f64::from(p)).sum();
            assert!(length == 0 || (total - 2.0).abs() < 1e-5, "{total}");
        }
    }
}
