//! Building blocks of the scalar code: plain f64, one example at a time, no tensor, nothing shared
//! with the crate. The objectives themselves stand in `formulas.rs`.

/// One pair: ℓ_w, ℓ_l, ℓ°_w, ℓ°_l and the two lengths.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub w: f64,
    pub l: f64,
    pub ref_w: f64,
    pub ref_l: f64,
    pub len_w: usize,
    pub len_l: usize,
}

impl Row {
    pub fn rho_w(self) -> f64 {
        self.w - self.ref_w
    }

    pub fn rho_l(self) -> f64 {
        self.l - self.ref_l
    }

    pub fn delta(self) -> f64 {
        self.rho_w() - self.rho_l()
    }
}

/// f′(0) by central differences of fourth order.
pub fn slope(f: impl Fn(f64) -> f64) -> f64 {
    let h = 1e-5;
    (f(-2.0 * h) - 8.0 * f(-h) + 8.0 * f(h) - f(2.0 * h)) / (12.0 * h)
}

pub fn relu(x: f64) -> f64 {
    x.max(0.0)
}

pub fn ln_sigmoid(x: f64) -> f64 {
    if x > 0.0 {
        -(-x).exp().ln_1p()
    } else {
        x - x.exp().ln_1p()
    }
}

pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        x.exp() / (1.0 + x.exp())
    }
}

/// ln(p/(1 − p)) of x = ln p.
pub fn odds(x: f64) -> f64 {
    x - (-x.exp_m1()).ln()
}

pub fn logsumexp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

pub fn log_softmax(x: &[f64]) -> Vec<f64> {
    let z = logsumexp(x);
    x.iter().map(|x| x - z).collect()
}

pub fn softmax(x: &[f64]) -> Vec<f64> {
    log_softmax(x).into_iter().map(f64::exp).collect()
}

/// The present candidates of one list.
#[derive(Debug, Clone, Default)]
pub struct List {
    pub sums: Vec<f64>,
    pub references: Vec<f64>,
    pub lengths: Vec<usize>,
    pub scores: Vec<f64>,
}

impl List {
    pub fn len(&self) -> usize {
        self.sums.len()
    }
}

/// The ranks that each value may have, 1 for the highest: several where values are equal.
pub fn ranks(values: &[f64]) -> Vec<std::ops::RangeInclusive<usize>> {
    let ahead = |x: f64| values.iter().filter(|&&y| y > x).count();
    let level = |x: f64| values.iter().filter(|&&y| y == x).count();
    let values = values.iter().map(|&x| (ahead(x), level(x)));
    values
        .map(|(ahead, level)| ahead + 1..=ahead + level)
        .collect()
}
