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

use std::ops::ControlFlow;

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::{
    Autodiff, AutodiffBackend, BackendTensor, DispatchTensor, DispatchTensorKind, Flex,
    TensorMetadata,
};
use burn::tensor::{Bytes, DType, Tensor};
use pulp::{Arch, Simd, WithSimd};

use super::function::{Function, MAX_LOG_PROB, MAX_SQUARED};
use crate::kernel::{ln, narrow, power, slope_node, twice_atanh};

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

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::super::{bounded_square, log_odds, logistic_loss, sigmoid, softplus};

    type Function = fn(Tensor<1>) -> Tensor<1>;

    /// The function and its slope, of f32 numbers.
    fn both(f: Function, x: &[f32]) -> [Vec<f32>; 2] {
        let leaf = Tensor::<1>::from_floats(x, &Device::flex()).autodiff();
        let leaf = leaf.require_grad();
        let y = f(leaf.clone());
        let grads = y.clone().sum().backward();
        let numbers = |x: Tensor<1>| x.into_data().try_to_vec().expect("f32");
        [
            numbers(y.inner()),
            numbers(leaf.grad(&grads).expect("a leaf")),
        ]
    }

    /// The nearest f32 of the exact number, give or take one.
    #[test]
    fn right_to_the_last_digit() {
        let far = (-4200..=4200).map(|i| i as f32 * 0.025);
        let near = (1..=150).flat_map(|i| {
            let x = 0.5 * 10_f32.powf(i as f32 * -0.25);
            [x, -x]
        });
        let x: Vec<f32> = far.chain(near).collect();
        let below: Vec<f32> = x.iter().copied().filter(|&x| x < -1e-30).collect();
        let tail = |x: f64| (-x.abs()).exp();
        let share = |x: f64| if x < 0.0 { x.exp() } else { 1.0 } / (1.0 + (-x.abs()).exp());
        let plus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        let rest = |x: f64| -x.exp_m1();
        let functions: [(Function, &[f32], &dyn Fn(f64) -> [f64; 2]); 5] = [
            (softplus, &x, &|x| [plus(x), share(x)]),
            (logistic_loss, &x, &|x| [plus(-x), -share(-x)]),
            (sigmoid, &x, &|x| {
                let larger = 1.0 / (1.0 + tail(x));
                [share(x), tail(x) * larger * larger]
            }),
            (log_odds, &below, &|x| [x - rest(x).ln(), 1.0 / rest(x)]),
            (bounded_square, &x, &|x| [x * x, 2.0 * x]),
        ];
        for (index, (f, x, exact)) in functions.into_iter().enumerate() {
            let [value, slope] = both(f, x);
            for (i, &x) in x.iter().enumerate() {
                for (ours, exact) in [value[i], slope[i]].into_iter().zip(exact(x.into())) {
                    let error = (f64::from(ours) - exact).abs();
                    // Log-odds are 0 where two numbers of size ln 2 cancel.
                    let size = exact.abs().max(if index == 3 { 1e-2 } else { 0.0 });
                    // Half a unit in the last place, and numbers below the smallest normal one.
                    let allowed = size * 6.1e-8 + 1e-45;
                    assert!(error <= allowed, "{index} at {x}: {ours}, not {exact}");
                }
            }
        }
    }

    /// A view, and a buffer that something else holds.
    #[test]
    fn the_input_stays_as_it_is() {
        let all = Tensor::<1>::from_floats([9.0, -1.0, 0.0, 2.0], &Device::flex());
        let view = all.clone().narrow(0, 1, 2);
        let kept = view.clone();
        let value = sigmoid(view).into_data().try_to_vec::<f32>().expect("f32");
        assert_eq!(value[1], 0.5);
        let numbers = |x: Tensor<1>| x.into_data().try_to_vec::<f32>().expect("f32");
        assert_eq!(numbers(kept), [-1.0, 0.0]);
        assert_eq!(numbers(all), [9.0, -1.0, 0.0, 2.0]);
    }

    /// A tape that computes cheap operations again.
    #[test]
    fn under_gradient_checkpointing() {
        let device = Device::flex().autodiff().gradient_checkpointing();
        let x = Tensor::<1>::from_floats([-1.0, 0.5], &device).require_grad();
        let y = softplus(x.clone() * 2.0).exp();
        let grads = y.sum().backward();
        let grad = x.grad(&grads).expect("a leaf").into_data();
        // exp(softplus(2x)) = 1 + e^(2x)
        let expected = [-2.0_f32, 1.0].map(|x| 2.0 * x.exp());
        for (ours, expected) in grad.iter::<f32>().zip(expected) {
            assert!((ours - expected).abs() < 1e-6, "{ours}, not {expected}");
        }
    }

    #[test]
    fn ends() {
        let ends = [f32::NEG_INFINITY, f32::MIN, f32::MAX, f32::INFINITY];
        let infinity = f32::INFINITY;
        let max = f32::MAX;
        assert_eq!(
            both(softplus, &ends),
            [vec![0.0, 0.0, max, infinity], vec![0.0, 0.0, 1.0, 1.0]]
        );
        let [value, slope] = both(sigmoid, &ends);
        assert_eq!((value, slope), (vec![0.0, 0.0, 1.0, 1.0], vec![0.0; 4]));
        for f in [softplus, logistic_loss, sigmoid, log_odds, bounded_square] as [Function; 5] {
            let [value, slope] = both(f, &[f32::NAN]);
            assert!(value[0].is_nan() && slope[0].is_nan());
        }
    }
}
