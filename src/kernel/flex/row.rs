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

use super::elementwise::{LANES, narrow, shift, tanh, terms, turned};
use super::partial::Partial;
use crate::kernel::forward::STATISTICS;
use crate::kernel::head::Shaping;

type Lanes = [f32; LANES];

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
pub(super) fn observe(arch: Arch, x: &[f32], at_least: f32, statistics: bool) -> Partial {
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
pub(super) fn shape(arch: Arch, x: &mut [f32], shaping: Shaping) {
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
pub(super) fn turn(arch: Arch, x: &mut [f32], normalizer: [f32; 2], factor: f32, bend: f32) {
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

#[cfg(test)]
mod tests {
    use pulp::Arch;

    use super::{Partial, narrow, observe, turn};

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
            turn(arch, &mut p, [max, narrow(sum.ln())], 2.0, 0.0);
            let total: f64 = p.iter().map(|&p| f64::from(p)).sum();
            assert!(length == 0 || (total - 2.0).abs() < 1e-5, "{total}");
        }
    }
}
