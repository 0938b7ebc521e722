//! What a loss is where a peer has NaN or infinity: from the formula in plain f64, never from ours.

use burn_preference::{Divergence, LabelNoise};

use crate::map::Difference;
use crate::scalar;
use crate::support::Pairs;
use crate::{Case, numbers};

/// Where the documentation says that exponents, and log-probabilities in log-odds, are held.
const MAX_EXPONENT: f64 = 80.0;
const MAX_LOG_PROB: f64 = -1e-30;

/// The formula of a pair, and whether it is held where the crate says so.
struct Formula {
    loss: fn(&Self, [f64; 4], [f64; 2]) -> f64,
    beta: f64,
    divergence: Divergence,
    noise: LabelNoise,
    /// γ, ε, t or α: what the loss has besides.
    number: f64,
    margin: f64,
    held: bool,
}

impl Formula {
    fn exponent(&self, x: f64) -> f64 {
        if self.held { x.min(MAX_EXPONENT) } else { x }
    }

    fn g(&self, rho: f64) -> f64 {
        match self.divergence {
            Divergence::ForwardKl => -self.exponent(-rho).exp_m1(),
            Divergence::Alpha(a) => -self.exponent(-a * rho).exp_m1() / a,
            other => scalar::g(other, rho),
        }
    }

    fn h(&self, [w, l, ref_w, ref_l]: [f64; 4]) -> f64 {
        self.beta * (self.g(w - ref_w) - self.g(l - ref_l))
    }

    fn odds(&self, x: f64) -> f64 {
        scalar::odds(if self.held { x.min(MAX_LOG_PROB) } else { x })
    }

    fn shaped(&self, x: f64) -> f64 {
        match self.number {
            0.0 => x,
            alpha => -self.exponent(-alpha * x).exp_m1() / alpha,
        }
    }
}

/// Losses whose formula may overflow, or be undefined at a point.
fn formula(case: &Case) -> Option<Formula> {
    let divergence = crate::map::divergence(case).ok()?;
    let param = |name: &str| case.param(name);
    let rate = param("label_smoothing").unwrap_or(0.0);
    let (loss, number): (fn(&Formula, [f64; 4], [f64; 2]) -> f64, f64) = match case.loss {
        "sigmoid" | "cdpo" | "robust" => (|f, x, _| scalar::noise(f.noise, f.h(x)), 0.0),
        "sigmoid_norm" => (
            |f, [w, l, rw, rl], [a, b]| {
                let h = f.beta * (f.g(w - rw) / a - f.g(l - rl) / b);
                scalar::noise(f.noise, h)
            },
            0.0,
        ),
        "ipo" => (|f, x, _| (f.h(x) / f.beta - 0.5 / f.beta).powi(2), 0.0),
        "hinge" => (|f, x, _| scalar::relu(1.0 - f.h(x)), 0.0),
        "discopop" => (
            |f, x, _| {
                let h = f.h(x);
                let exponential = f.exponent(scalar::ln_sigmoid(h / f.number) - h).exp();
                -scalar::sigmoid(-h / f.number) * scalar::ln_sigmoid(h) + exponential
            },
            param("discopop_tau").unwrap_or(0.05),
        ),
        "exo_pair" => (
            |f, x, _| {
                let (h, e) = (f.h(x), f.number);
                let side = |h: f64, p: f64| scalar::sigmoid(h) * (scalar::ln_sigmoid(h) - p.ln());
                side(h, 1.0 - e) + side(-h, e)
            },
            if rate == 0.0 { 1e-3 } else { rate },
        ),
        "alphapo" => (
            |f, [w, l, ..], _| {
                let h = f.beta * (f.shaped(w) - f.shaped(l)) - f.margin;
                scalar::noise(f.noise, h)
            },
            param("alpha").unwrap_or(0.0),
        ),
        "orpo_or" => (
            |f, [w, l, ..], _| -f.beta * scalar::ln_sigmoid(f.odds(w) - f.odds(l)),
            0.0,
        ),
        "orpo_full_avgnll" => (
            |f, [w, l, ..], _| -w - f.beta * scalar::ln_sigmoid(f.odds(w) - f.odds(l)),
            0.0,
        ),
        _ => return None,
    };
    let noise = match case.loss {
        "robust" => LabelNoise::Robust(rate),
        "sigmoid" if case.producer.starts_with("trl116") => LabelNoise::Clean,
        _ => LabelNoise::Conservative(rate),
    };
    Some(Formula {
        loss,
        beta: param("beta").or(param("tau"))?,
        divergence,
        noise,
        number,
        margin: param("gamma").unwrap_or(0.0),
        held: false,
    })
}

/// What `key[index]` may be where the peer's number is not finite, each with its reason.
pub fn limits(case: &Case, key: &str, index: usize) -> Vec<(Difference, f64)> {
    let kind = case.input["kind"].as_str();
    if !matches!(kind, Some("pairs" | "pairs_avg")) {
        return Vec::new();
    }
    let Some(mut formula) = formula(case) else {
        return Vec::new();
    };
    let pairs = crate::map::pairs(case.input);
    let mut found = Vec::new();
    for (held, difference) in [(false, Difference::Limit), (true, Difference::Held)] {
        formula.held = held;
        let value = value(&formula, &pairs, key, index, case.mode);
        found.extend(value.filter(|x| x.is_finite()).map(|x| (difference, x)));
    }
    found
}

fn value(f: &Formula, pairs: &Pairs, key: &str, index: usize, mode: &str) -> Option<f64> {
    let n = pairs.len();
    let at = |values: &[f64], i: usize| values.get(i).copied().unwrap_or(0.0);
    let row = |i: usize| {
        let x = [
            at(&pairs.chosen, i),
            at(&pairs.rejected, i),
            at(&pairs.ref_chosen, i),
            at(&pairs.ref_rejected, i),
        ];
        let lengths = [pairs.chosen_len[i], pairs.rejected_len[i]].map(|n| n.max(1) as f64);
        (x, lengths)
    };
    let loss = |i: usize| {
        let (x, lengths) = row(i);
        (f.loss)(f, x, lengths)
    };
    let slope = |side: usize| {
        let (x, lengths) = row(index);
        let moved = |by: f64| {
            let mut x = x;
            x[side] += by;
            (f.loss)(f, x, lengths)
        };
        // At a probability of 1 only the side that is held has a slope.
        let step = 1e-6;
        let (up, down) = if x[side].abs() < 1e-9 {
            (step, 0.0)
        } else {
            (step, step)
        };
        let scale = if mode == "per_example" { 1.0 } else { n as f64 };
        (moved(up) - moved(-down)) / (up + down) / scale
    };
    match key {
        "losses" => Some(loss(index)),
        "loss" => Some((0..n).map(loss).sum::<f64>() / n as f64),
        "grad_chosen" => Some(slope(0)),
        "grad_rejected" => Some(slope(1)),
        _ => None,
    }
}

/// Whether the completion that a gradient belongs to has no tokens.
pub fn is_empty_completion(case: &Case, key: &str, index: usize) -> bool {
    let lengths = match key {
        "grad_chosen" => "chosen_len",
        "grad_rejected" => "rejected_len",
        _ => return false,
    };
    let lengths = case.input.get(lengths).map(numbers);
    lengths.is_some_and(|lengths| lengths.get(index) == Some(&Some(0.0)))
}
