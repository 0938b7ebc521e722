//! The share of a word in a divergence of two models, in f64.
//!
//! The difference of two nearly equal probabilities has no digits left in f32, and so would a
//! divergence of two nearly equal models. In f64 the words cost a few percent of the products.

#![allow(
    clippy::inline_always,
    clippy::needless_range_loop,
    reason = "only what is inlined into `dispatch` is vectorised; lanes have a number"
)]

use pulp::{Arch, Simd, WithSimd};

use super::elementwise::{LANES, ln, narrow, power};
#[cfg(doc)]
use crate::kernel::discrepancy::Comparison;
use crate::kernel::discrepancy::KEPT;

/// Probabilities below this one (its logarithm) are 0.
const SMALLEST: f64 = -200.0;

/// Numbers of the rows of logits, which turn them into log-probabilities.
#[derive(Debug, Clone, Copy)]
pub(super) struct Normalizer {
    pub max: f64,
    pub log_sum: f64,
}

impl Normalizer {
    /// The normalisers of policy and reference and the mean E of a row of [`Comparison::kept`].
    pub(super) fn of_kept(kept: [f32; KEPT]) -> ([Self; 2], f64) {
        let [max, log_sum, their_max, their_log_sum, mean] = kept.map(f64::from);
        let ours = Self { max, log_sum };
        let theirs = Self {
            max: their_max,
            log_sum: their_log_sum,
        };
        ([ours, theirs], mean)
    }
}

/// A word under the policy (p) and the reference (q).
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    p: f64,
    q: f64,
    log_p: f64,
    log_q: f64,
}

#[inline(always)]
fn probability(log: f64) -> f64 {
    let [two_to_n, less] = power(log);
    let value = two_to_n + two_to_n * less;
    if log < SMALLEST { 0.0 } else { value }
}

impl Word {
    #[inline(always)]
    pub(super) fn new(logits: [f32; 2], of: [Normalizer; 2]) -> Self {
        let [log_p, log_q] = [0, 1].map(|i| (f64::from(logits[i]) - of[i].max) - of[i].log_sum);
        Self {
            p: probability(log_p),
            q: probability(log_q),
            log_p,
            log_q,
        }
    }
}

/// The term of a word in KL(a ‖ b): `a·ln(a/b) − a + b`, where `log_ratio` is ln(a/b). It is never
/// negative, and an error of a normaliser cancels in the sum of all words to first order.
#[inline(always)]
fn kl(a: f64, b: f64, log_ratio: f64) -> f64 {
    let term = a * log_ratio + (b - a);
    if a == 0.0 { b } else { term }
}

/// A divergence of two models, word by word.
pub(super) trait Terms: Copy + Sync {
    /// The terms of the divergence, and of the mean E that its gradient subtracts.
    fn terms(self, word: Word) -> [f64; 2];

    /// The gradient of the policy's logit.
    fn slope(self, word: Word, mean: f64) -> f64;
}

/// KL(π° ‖ π)
#[derive(Debug, Clone, Copy)]
pub(super) struct ForwardKl;

impl Terms for ForwardKl {
    #[inline(always)]
    fn terms(self, word: Word) -> [f64; 2] {
        [kl(word.q, word.p, word.log_q - word.log_p), 0.0]
    }

    #[inline(always)]
    fn slope(self, word: Word, _: f64) -> f64 {
        word.p - word.q
    }
}

/// KL(π ‖ π°)
#[derive(Debug, Clone, Copy)]
pub(super) struct ReverseKl;

impl Terms for ReverseKl {
    #[inline(always)]
    fn terms(self, word: Word) -> [f64; 2] {
        let log_ratio = word.log_p - word.log_q;
        let mean = word.p * log_ratio;
        [
            kl(word.p, word.q, log_ratio),
            if word.p == 0.0 { 0.0 } else { mean },
        ]
    }

    #[inline(always)]
    fn slope(self, word: Word, mean: f64) -> f64 {
        let slope = word.p * ((word.log_p - word.log_q) - mean);
        if word.p == 0.0 { 0.0 } else { slope }
    }
}

/// β·KL(π° ‖ m) + (1 − β)·KL(π ‖ m), with m = β·π° + (1 − β)·π
#[derive(Debug, Clone, Copy)]
pub(super) struct JensenShannon {
    pub beta: f64,
}

impl JensenShannon {
    /// m and ln m, a number if m is 0.
    #[inline(always)]
    fn mixture(self, word: Word) -> [f64; 2] {
        let m = self.beta * word.q + (1.0 - self.beta) * word.p;
        // `ln` makes a number of a NaN.
        [m, if m.is_nan() { m } else { ln(m) }]
    }
}

impl Terms for JensenShannon {
    #[inline(always)]
    fn terms(self, word: Word) -> [f64; 2] {
        let [m, log_m] = self.mixture(word);
        let log_ratio = word.log_p - log_m;
        let of_reference = kl(word.q, m, word.log_q - log_m);
        let of_policy = kl(word.p, m, log_ratio);
        let mean = word.p * log_ratio;
        [
            self.beta * of_reference + (1.0 - self.beta) * of_policy,
            if word.p == 0.0 { 0.0 } else { mean },
        ]
    }

    #[inline(always)]
    fn slope(self, word: Word, mean: f64) -> f64 {
        let [_, log_m] = self.mixture(word);
        let slope = (1.0 - self.beta) * word.p * ((word.log_p - log_m) - mean);
        if word.p == 0.0 { 0.0 } else { slope }
    }
}

/// Calls a function with the [`Terms`] of a `Discrepancy`. Each of the three is compiled by itself.
macro_rules! with_terms {
    ($kind:expr, |$terms:ident| $body:expr) => {{
        use $crate::kernel::flex::comparison::{ForwardKl, JensenShannon, ReverseKl};
        match $kind {
            Discrepancy::ForwardKl => {
                let $terms = ForwardKl;
                $body
            }
            Discrepancy::ReverseKl => {
                let $terms = ReverseKl;
                $body
            }
            Discrepancy::JensenShannon(beta) => {
                let $terms = JensenShannon { beta };
                $body
            }
        }
    }};
}
pub(super) use with_terms;

/// Numbers of the rows of [`LANES`] pairs of logits.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    /// Of the policy and of the reference.
    normalizer: [Normalizers; 2],
    /// The mean E.
    mean: [f64; LANES],
    /// Multiplies the gradient of the logits.
    factor: [f64; LANES],
}

#[derive(Debug, Clone)]
struct Normalizers {
    max: [f64; LANES],
    log_sum: [f64; LANES],
}

impl Lanes {
    /// Takes the numbers of each lane: the two normalisers, E, and the factor.
    pub(super) fn new(of: impl Fn(usize) -> ([Normalizer; 2], f64, f64)) -> Self {
        let all: [_; LANES] = std::array::from_fn(of);
        let normalizer = [0, 1].map(|model| Normalizers {
            max: all.map(|of| of.0[model].max),
            log_sum: all.map(|of| of.0[model].log_sum),
        });
        Self {
            normalizer,
            mean: all.map(|of| of.1),
            factor: all.map(|of| of.2),
        }
    }

    #[inline(always)]
    fn word(&self, lane: usize, logits: [f32; 2]) -> Word {
        let of = |model: usize| Normalizer {
            max: self.normalizer[model].max[lane],
            log_sum: self.normalizer[model].log_sum[lane],
        };
        Word::new(logits, [of(0), of(1)])
    }
}

/// The logits of both models: [`LANES`] of them every `stride` numbers.
struct Sums<'a, T> {
    terms: T,
    logits: [&'a [f32]; 2],
    stride: usize,
    of: &'a Lanes,
}

impl<T: Terms> WithSimd for Sums<'_, T> {
    type Output = [[f64; LANES]; 2];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let mut sums = [[0.0; LANES]; 2];
        let [ours, theirs] = self.logits.map(|logits| {
            let lines = logits.chunks(self.stride);
            lines.filter_map(<[f32]>::first_chunk::<LANES>)
        });
        for (x, y) in ours.zip(theirs) {
            for l in 0..LANES {
                let terms = self.terms.terms(self.of.word(l, [x[l], y[l]]));
                sums[0][l] += terms[0];
                sums[1][l] += terms[1];
            }
        }
        sums
    }
}

/// The sums of a divergence and of its mean E in each lane.
pub(super) fn sums(
    arch: Arch,
    terms: impl Terms,
    logits: [&[f32]; 2],
    stride: usize,
    of: &Lanes,
) -> [[f64; LANES]; 2] {
    arch.dispatch(Sums {
        terms,
        logits,
        stride,
        of,
    })
}

struct Turn<'a, T> {
    terms: T,
    ours: &'a mut [f32],
    theirs: &'a [f32],
    stride: usize,
    of: &'a Lanes,
    bend: f64,
}

impl<T: Terms> WithSimd for Turn<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let theirs = self.theirs.chunks(self.stride);
        let ours = self.ours.chunks_mut(self.stride);
        let lines = ours.zip(theirs.filter_map(<[f32]>::first_chunk::<LANES>));
        for (x, y) in lines {
            let Some(x) = x.first_chunk_mut::<LANES>() else {
                continue;
            };
            for l in 0..LANES {
                let word = self.of.word(l, [x[l], y[l]]);
                let slope = self.of.factor[l] * self.terms.slope(word, self.of.mean[l]);
                // Without a softcap a logit may be −∞.
                let bent = self.bend * f64::from(x[l]);
                let bent = if self.bend == 0.0 { 0.0 } else { bent };
                x[l] = narrow(slope - slope * (bent * bent));
            }
        }
    }
}

/// Turns the policy's logits into `factor · ∂D/∂logit · (1 − (bend·logit)²)`, the gradient of what a
/// softcap takes.
pub(super) fn turn(
    arch: Arch,
    terms: impl Terms,
    (ours, theirs): (&mut [f32], &[f32]),
    stride: usize,
    of: &Lanes,
    bend: f64,
) {
    arch.dispatch(Turn {
        terms,
        ours,
        theirs,
        stride,
        of,
        bend,
    });
}
