//! The functions of one number on Flex in f32: one pass, value and slope together.
//!
//! Burn's own steps take a pass each, and its exponential and logarithm of one number are calls of
//! the C library. Here everything is plain Rust in f64, which the compiler turns into vectors: the
//! instructions are chosen at run time, and every machine gets the same bits. The error before the
//! one rounding to f32 is below 1e-9.

#![allow(
    clippy::inline_always,
    reason = "only what is inlined into `dispatch` is vectorised"
)]

use std::f64::consts::{LN_2, LOG2_E, SQRT_2};
use std::ops::ControlFlow;

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::{
    AutodiffBackend, Autodiff, BackendTensor, DispatchTensor, DispatchTensorKind, Flex, TensorMetadata,
};
use burn::tensor::{Bytes, DType, Tensor};
use pulp::{Arch, Simd, WithSimd};

use super::function::{Function, MAX_LOG_PROB, MAX_SQUARED};
use crate::kernel::slope_node;

/// Breaks with the function of `x`, as one node if `x` is on the tape. Continues with `x` itself if
/// it is on another backend or not of f32.
pub(super) fn apply<const D: usize>(
    function: Function,
    x: Tensor<D>,
) -> ControlFlow<Tensor<D>, Tensor<D>> {
    if x.dtype() != DType::F32 {
        return ControlFlow::Continue(x);
    }
    let DispatchTensor { kind, autodiff } = x.into_dispatch();
    let tensor = |kind| Tensor::from_dispatch(DispatchTensor { kind, autodiff });
    #[allow(
        clippy::match_wildcard_for_single_variants,
        reason = "other backends may be on, here or in burn"
    )]
    match kind {
        DispatchTensorKind::Flex(BackendTensor::Float(x)) => {
            let (value, _) = run(function, x, false);
            let value = BackendTensor::Float(value);
            ControlFlow::Break(tensor(DispatchTensorKind::Flex(value)))
        }
        DispatchTensorKind::Autodiff(inner) => match *inner {
            DispatchTensorKind::Flex(BackendTensor::Autodiff(x)) => {
                let tracked = x.is_tracked();
                let (x, guard) = x.into_parts();
                let value = match run(function, x, tracked) {
                    (value, Some(slope)) => slope_node::<Flex>(guard, value, slope),
                    (value, None) => Autodiff::<Flex>::from_inner(value),
                };
                let value = DispatchTensorKind::Flex(BackendTensor::Autodiff(value));
                ControlFlow::Break(tensor(DispatchTensorKind::Autodiff(Box::new(value))))
            }
            other => {
                let other = DispatchTensorKind::Autodiff(Box::new(other));
                ControlFlow::Continue(tensor(other))
            }
        },
        other => ControlFlow::Continue(tensor(other)),
    }
}

/// The value, in the buffer of `x` unless something else holds it, and the slope if it is wanted.
fn run(function: Function, x: FlexTensor, wants_slope: bool) -> (FlexTensor, Option<FlexTensor>) {
    let whole = x.is_contiguous() && x.layout().num_elements() * 4 == x.bytes().len();
    let mut x = if whole { x } else { x.to_contiguous() };
    let layout = Layout::contiguous(x.shape());
    let numbers: &mut [f32] = x.storage_mut();
    let mut slope = vec![0.0; if wants_slope { numbers.len() } else { 0 }];
    match function {
        Function::Softplus => pass(numbers, &mut slope, softplus),
        Function::LogisticLoss => pass(numbers, &mut slope, logistic_loss),
        Function::Sigmoid => pass(numbers, &mut slope, sigmoid),
        Function::LogOdds => pass(numbers, &mut slope, log_odds),
        Function::BoundedSquare => pass(numbers, &mut slope, bounded_square),
    }
    let slope = wants_slope.then(|| FlexTensor::new(Bytes::from_elems(slope), layout, DType::F32));
    (x, slope)
}

/// Turns `x` into the values, and fills `slope` unless it is empty.
fn pass(x: &mut [f32], slope: &mut [f32], f: impl Fn(f64) -> [f64; 2]) {
    Arch::new().dispatch(Pass { x, slope, f });
}

struct Pass<'a, F> {
    x: &'a mut [f32],
    slope: &'a mut [f32],
    f: F,
}

impl<F: Fn(f64) -> [f64; 2]> WithSimd for Pass<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, slope, f } = self;
        if slope.is_empty() {
            for x in x {
                *x = narrow(f((*x).into())[0]);
            }
            return;
        }
        for (x, slope) in x.iter_mut().zip(slope) {
            let values = f((*x).into());
            [*x, *slope] = values.map(narrow);
        }
    }
}

/// The nearest f32.
#[allow(
    clippy::cast_possible_truncation,
    reason = "rounding is what it is for"
)]
#[inline(always)]
fn narrow(x: f64) -> f32 {
    x as f32
}

/// `2ⁿ` and `expm1(r)` with x = n·ln 2 + r, |r| ≤ ln 2 / 2, for x ≤ 0; below −200 it is −200. NaN
/// stays NaN in the second.
#[inline(always)]
fn power(x: f64) -> [f64; 2] {
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
fn twice_atanh(s: f64) -> f64 {
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
fn ln(x: f64) -> f64 {
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

/// `e^(−|x|)`.
#[inline(always)]
fn decay(x: f64) -> f64 {
    let [two_to_n, p] = power(-x.abs());
    two_to_n + two_to_n * p
}

/// `ln(1 + e)` for 0 ≤ e ≤ 1.
#[inline(always)]
fn ln_1p(e: f64) -> f64 {
    twice_atanh(e / (2.0 + e))
}

#[inline(always)]
fn softplus(x: f64) -> [f64; 2] {
    let e = decay(x);
    let larger = 1.0 / (1.0 + e);
    let value = if x > 0.0 { x } else { 0.0 } + ln_1p(e);
    [value, if x < 0.0 { e * larger } else { larger }]
}

#[inline(always)]
fn logistic_loss(x: f64) -> [f64; 2] {
    let [value, slope] = softplus(-x);
    [value, -slope]
}

#[inline(always)]
fn sigmoid(x: f64) -> [f64; 2] {
    let e = decay(x);
    let larger = 1.0 / (1.0 + e);
    let smaller = e * larger;
    [if x < 0.0 { smaller } else { larger }, smaller * larger]
}

#[inline(always)]
fn log_odds(x: f64) -> [f64; 2] {
    let below = if x > MAX_LOG_PROB { MAX_LOG_PROB } else { x };
    let below = if x == f64::INFINITY { f64::NAN } else { below };
    let [two_to_n, p] = power(below);
    // 1 − eˣ
    let rest = (1.0 - two_to_n) - two_to_n * p;
    let slope = if x > MAX_LOG_PROB { 0.0 } else { 1.0 / rest };
    [below - ln(rest), slope]
}

#[inline(always)]
fn bounded_square(x: f64) -> [f64; 2] {
    let infinite = x.abs() == f64::INFINITY;
    let held = x.abs() > MAX_SQUARED;
    let near = if held { MAX_SQUARED } else { x };
    let square = if infinite { f64::INFINITY } else { near * near };
    [square, if held { 0.0 } else { 2.0 * x }]
}
