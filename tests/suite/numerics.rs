//! Both tails of `math`, value and gradient, against f64 formulas that do not cancel.

use burn::tensor::{DType, Tensor};
use burn_preference::math::{
    bounded_exp, bounded_expm1, bounded_square, exp_up_to, log_odds, log_sigmoid, log1mexp,
    logsumexp, sigmoid, softplus,
};

use crate::scalar;
use crate::support::{assert_close, floats, leaf, to_vec, wide_dtypes};

fn value_and_slope(f: impl Fn(Tensor<1>) -> Tensor<1>, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let x = leaf(x);
    let y = f(x.clone());
    let grads = y.clone().sum().backward();
    (to_vec(y), to_vec(x.grad(&grads).unwrap()))
}

const POINTS: [f64; 15] = [
    -1e4, -745.0, -100.0, -40.1, -20.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 20.0, 39.9, 100.0, 745.0, 1e4,
];

#[test]
fn logistic_functions_keep_both_tails() {
    let (y, slope) = value_and_slope(log_sigmoid, &POINTS);
    assert_close(&y, &POINTS.map(scalar::ln_sigmoid), 1e-15, "ln σ");
    assert_close(
        &slope,
        &POINTS.map(|x| scalar::sigmoid(-x)),
        1e-15,
        "its slope",
    );
    // Relative, not absolute: the tail itself is right.
    let at = |x: f64| to_vec(softplus(floats(&[x], DType::F64)))[0];
    assert!((at(-30.0) / (-30.0_f64).exp() - 1.0).abs() < 1e-12);
    let at = |x: f64| to_vec(softplus(floats(&[x], DType::F32)))[0];
    assert!((at(-30.0) / (-30.0_f64).exp() - 1.0).abs() < 1e-5);

    let (y, slope) = value_and_slope(sigmoid, &POINTS);
    assert_close(&y, &POINTS.map(scalar::sigmoid), 1e-15, "σ");
    let expected = POINTS.map(|x| scalar::sigmoid(x) * scalar::sigmoid(-x));
    assert_close(&slope, &expected, 1e-15, "its slope");
}

/// An elementwise function, its value and its slope in plain f64, and what its error is relative to.
type Elementwise = (
    &'static str,
    fn(Tensor<1>) -> Tensor<1>,
    fn(f64) -> f64,
    fn(f64) -> f64,
    fn(f64) -> f64,
);

/// The relative error of every function that says that it keeps its tails, value and slope, from
/// −100 to −1e-30 and back up to 79.
#[test]
fn tails_keep_their_digits() {
    let itself = |y: f64| y.abs();
    let functions: [Elementwise; 7] = [
        (
            "ln(1 − eˣ)",
            log1mexp,
            |x| {
                if x < -1.0 {
                    (-x.exp()).ln_1p()
                } else {
                    (-x.exp_m1()).ln()
                }
            },
            |x| x.exp() / x.exp_m1(),
            itself,
        ),
        // 0 at −ln 2, where two numbers of size ln 2 cancel.
        (
            "log-odds",
            log_odds,
            scalar::odds,
            |x| -1.0 / x.exp_m1(),
            |y| y.abs().max(1.0),
        ),
        ("eˣ − 1", bounded_expm1, f64::exp_m1, f64::exp, itself),
        ("eˣ", bounded_exp, f64::exp, f64::exp, itself),
        (
            "softplus",
            softplus,
            |x| -scalar::ln_sigmoid(-x),
            scalar::sigmoid,
            itself,
        ),
        (
            "ln σ",
            log_sigmoid,
            scalar::ln_sigmoid,
            |x| scalar::sigmoid(-x),
            itself,
        ),
        (
            "σ",
            sigmoid,
            scalar::sigmoid,
            |x| scalar::sigmoid(x) * scalar::sigmoid(-x),
            itself,
        ),
    ];
    let far = (1..=400).map(|i| f64::from(i) * -0.25);
    let near = (0..=120).map(|i| -10_f64.powf(f64::from(i) * -0.25));
    let below: Vec<f64> = far.chain(near).collect();
    let above: Vec<f64> = below.iter().filter(|x| **x > -79.0).map(|x| -x).collect();
    for dtype in wide_dtypes() {
        // A slope takes up to twenty roundings in a row.
        let (tolerance, smallest) = match dtype {
            DType::F64 => (1e-14, 0.0),
            // Below 1.2e-38 f32 has fewer and fewer digits.
            _ => (5e-6, 3e-45),
        };
        for (name, f, value, slope, scale) in functions {
            let one_sided = ["ln(1 − eˣ)", "log-odds"].contains(&name);
            let upper: &[f64] = if one_sided { &[] } else { &above };
            let x = floats(&[&below[..], upper].concat(), dtype);
            let leaf = x.clone().autodiff().require_grad();
            let y = f(leaf.clone());
            let grads = y.clone().sum().backward();
            let (y, grad) = (to_vec(y), to_vec(leaf.grad(&grads).unwrap()));
            // What the type makes of the inputs.
            for (i, x) in to_vec(x).into_iter().enumerate() {
                let near = |ours: f64, expected: f64, scale: f64, what: &str| {
                    assert!(
                        (ours - expected).abs() <= tolerance * scale + smallest,
                        "{what} of {name} at {x:e} in {dtype:?}: {ours:e} instead of {expected:e}"
                    );
                };
                near(y[i], value(x), scale(value(x)), "value");
                near(grad[i], slope(x), slope(x).abs(), "slope");
            }
        }
    }
}

/// The ends of `ln(1 − eˣ)` and the log-odds: what is held, what is infinite, what is none.
#[test]
fn ends_of_the_log_odds() {
    for dtype in wide_dtypes() {
        let of = |f: fn(Tensor<1>) -> Tensor<1>, x: f64| {
            let leaf = floats(&[x], dtype).autodiff().require_grad();
            let y = f(leaf.clone());
            let grads = y.clone().backward();
            (to_vec(y)[0], to_vec(leaf.grad(&grads).unwrap())[0])
        };
        assert_eq!(of(log1mexp, f64::NEG_INFINITY), (0.0, 0.0));
        assert_eq!(of(log_odds, f64::NEG_INFINITY), (f64::NEG_INFINITY, 1.0));
        // Rounding may put a certain completion above 0: the same as at 0, and no gradient.
        let certain = of(log1mexp, -1e-30).0;
        for x in [-1e-31, 0.0, 1e-6, 1.0, 1e30] {
            assert_eq!(of(log1mexp, x), (certain, 0.0), "{x} in {dtype:?}");
        }
        assert!(of(log1mexp, f64::INFINITY).0.is_nan());
        assert!(of(log_odds, f64::INFINITY).0.is_nan());
    }
}

#[test]
fn log_odds_near_certainty() {
    let x = [-1e-30, -1e-20, -1e-9, -1e-3, -0.5, -1.0, -5.0, -40.0, -1e4];
    let (y, slope) = value_and_slope(log1mexp, &x);
    assert_close(&y, &x.map(|x| (-x.exp_m1()).ln()), 1e-14, "ln(1 − eˣ)");
    assert_close(&slope, &x.map(|x| x.exp() / x.exp_m1()), 1e-12, "its slope");
    let (y, slope) = value_and_slope(log_odds, &x);
    assert_close(&y, &x.map(|x| x - (-x.exp_m1()).ln()), 1e-14, "log-odds");
    assert_close(&slope, &x.map(|x| -1.0 / x.exp_m1()), 1e-12, "its slope");
    let (y, slope) = value_and_slope(log_odds, &[0.0, 1.0]);
    assert_close(&y, &[30.0 * 10_f64.ln(); 2], 1e-12, "held at −1e-30");
    assert_eq!(slope, [0.0, 0.0]);
}

#[test]
fn expm1_does_not_cancel() {
    let x = [-1e4, -30.0, -1.0, -1e-12, 0.0, 1e-12, 1.0, 30.0, 79.0];
    let (y, slope) = value_and_slope(bounded_expm1, &x);
    assert_close(&y, &x.map(f64::exp_m1), 2e-15, "eˣ − 1");
    assert_close(&slope, &x.map(f64::exp), 1e-14, "its slope");
    let (y, slope) = value_and_slope(bounded_expm1, &[81.0, 1e4]);
    assert_close(&y, &[80.0_f64.exp_m1(); 2], 1e-14, "held at 80");
    assert_eq!(slope, [0.0, 0.0]);
}

/// Where a function is constant, as its documentation says: its value at the bound, no gradient
/// beyond, ∞ of ∞.
#[test]
fn bounds_stand_where_they_are_documented() {
    let to_ten: fn(Tensor<1>) -> Tensor<1> = |x| exp_up_to(x, 10.0);
    for dtype in wide_dtypes() {
        let largest = if dtype == DType::F64 { 1e150 } else { 1e18 };
        let exact = if dtype == DType::F64 { 1e-13 } else { 1e-5 };
        let functions: [(&str, fn(Tensor<1>) -> Tensor<1>, f64, f64); 4] = [
            ("eˣ", bounded_exp, 80.0, 80_f64.exp()),
            ("eˣ up to 10", to_ten, 10.0, 10_f64.exp()),
            ("eˣ − 1", bounded_expm1, 80.0, 80_f64.exp_m1()),
            ("x²", bounded_square, largest, largest * largest),
        ];
        for (name, f, bound, there) in functions {
            let at = |x: f64| {
                let leaf = floats(&[x], dtype).autodiff().require_grad();
                let y = f(leaf.clone());
                let grads = y.clone().backward();
                (to_vec(y)[0], to_vec(leaf.grad(&grads).unwrap())[0])
            };
            let what = format!("{name} in {dtype:?}");
            let (below, slope) = at(bound * 0.99);
            assert!(below < there && slope > 0.0, "{what}: {below}, {slope}");
            for x in [1.01, 2.0, 100.0, 1e10].map(|factor| bound * factor) {
                let (y, slope) = at(x);
                assert!((y / there - 1.0).abs() < exact, "{what}: {y}, not {there}");
                assert_eq!(slope, 0.0, "{what} at {x}");
            }
            assert_eq!(at(f64::INFINITY).0, f64::INFINITY, "{what}");
        }
        let square = to_vec(bounded_square(floats(&[f64::NEG_INFINITY], dtype)));
        assert_eq!(square, [f64::INFINITY]);
    }
}

#[test]
fn logsumexp_does_not_overflow() {
    let x = leaf(&[1e4, 1e4, -1e4, f64::NEG_INFINITY]);
    let y = logsumexp(x.clone());
    let grads = y.clone().sum().backward();
    assert_close(&to_vec(y), &[1e4 + 2_f64.ln()], 1e-15, "value");
    assert_close(
        &to_vec(x.grad(&grads).unwrap()),
        &[0.5, 0.5, 0.0, 0.0],
        1e-15,
        "softmax",
    );
}

#[test]
fn nan_in_nan_out() {
    for dtype in [DType::F32, DType::F64] {
        let nan = floats(&[f64::NAN], dtype);
        for f in [
            softplus,
            log_sigmoid,
            sigmoid,
            bounded_expm1,
            log1mexp,
            log_odds,
            logsumexp,
        ] {
            assert!(to_vec(f(nan.clone()))[0].is_nan());
        }
    }
}
