//! Both tails of `math`, value and gradient, against f64 formulas that do not cancel.

use burn::tensor::{DType, Tensor};
use burn_preference::math::{
    bounded_expm1, log_odds, log_sigmoid, log1mexp, logsumexp, sigmoid, softplus,
};

use crate::scalar;
use crate::support::{assert_close, floats, leaf, to_vec};

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
