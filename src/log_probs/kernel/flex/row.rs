//! Passes over a stretch of one row of logits, in vector instructions chosen at run time.
//!
//! Loops are over arrays of [`LANES`] numbers, which the compiler turns into vectors. No fused
//! multiply-add and no reordering that depends on the width: every machine gets the same bits.

#![allow(
    clippy::inline_always,
    reason = "only what is inlined into `dispatch` is vectorised"
)]

use pulp::Arch;

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

#[inline(always)]
fn exponentiate_here<const STATISTICS: bool>(x: &mut [f32], at_least: f32) -> Partial {
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
        *x = power;
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

/// Turns logits into `exp(x − m)`, m = the largest of them and `at_least`.
pub fn exponentiate(arch: Arch, x: &mut [f32], at_least: f32, statistics: bool) -> Partial {
    if statistics {
        arch.dispatch(|| exponentiate_here::<true>(x, at_least))
    } else {
        arch.dispatch(|| exponentiate_here::<false>(x, at_least))
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

#[cfg(test)]
mod tests {
    use pulp::Arch;

    use super::{Partial, exp, exponentiate, softmax};

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

    /// Every length up to a few vectors: whole ones and what is left.
    #[test]
    fn stretches_of_any_length() {
        let arch = Arch::new();
        for length in 0..70 {
            let x: Vec<f32> = (0..length).map(|i| ((i * 37) % 11) as f32 - 5.0).collect();
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = x.iter().map(|&x| f64::from(x - max).exp()).sum();
            let mut powers = x.clone();
            let whole = exponentiate(arch, &mut powers, f32::NEG_INFINITY, true);
            assert_eq!(whole.max, max);
            assert!((whole.sum - sum).abs() <= 1e-6 * sum);

            // Two parts make the whole, and so does a larger logit from elsewhere.
            let (mut a, mut b) = (x.clone(), Vec::new());
            b.extend(a.drain(length / 3..));
            let part = |x: &mut [f32]| exponentiate(arch, x, f32::NEG_INFINITY, true);
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
