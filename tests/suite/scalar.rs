//! Building blocks of the scalar code: plain f64, one example at a time, no tensor, nothing shared
//! with the crate. The objectives themselves stand in `subjects.rs`, beside the crate's.

use burn_preference::{Divergence, LabelNoise};

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

    pub fn mean_w(self) -> f64 {
        self.w / self.len_w.max(1) as f64
    }

    pub fn mean_l(self) -> f64 {
        self.l / self.len_l.max(1) as f64
    }
}

/// f′(0) by central differences of fourth order.
pub fn slope(f: impl Fn(f64) -> f64) -> f64 {
    let h = 1e-5;
    (f(-2.0 * h) - 8.0 * f(-h) + 8.0 * f(h) - f(2.0 * h)) / (12.0 * h)
}

/// Whether f has a kink at 0, where a difference quotient means nothing.
pub fn kink(f: impl Fn(f64) -> f64) -> bool {
    let h = 1e-5;
    let bend = (f(h) + f(-h) - 2.0 * f(0.0)).abs() / h;
    bend > 0.01 * (slope(f).abs() + 1e-3)
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

pub fn noise(noise: LabelNoise, h: f64) -> f64 {
    match noise {
        LabelNoise::Clean => -ln_sigmoid(h),
        LabelNoise::Conservative(e) => -(1.0 - e) * ln_sigmoid(h) - e * ln_sigmoid(-h),
        LabelNoise::Robust(e) => {
            (-(1.0 - e) * ln_sigmoid(h) + e * ln_sigmoid(-h)) / (1.0 - 2.0 * e)
        }
        other => panic!("no formula of {other:?}"),
    }
}

pub fn g(divergence: Divergence, rho: f64) -> f64 {
    match divergence {
        Divergence::ReverseKl => rho,
        Divergence::ForwardKl => -(-rho).exp_m1(),
        Divergence::JensenShannon => ln_sigmoid(rho) + 2_f64.ln(),
        Divergence::Alpha(a) => -(-a * rho).exp_m1() / a,
        Divergence::ChiSquared => rho.exp_m1() + rho,
        other => panic!("no formula of {other:?}"),
    }
}

/// What g takes the exponential of; −∞ where it takes none.
pub fn exponent(divergence: Divergence, rho: f64) -> f64 {
    match divergence {
        Divergence::ReverseKl | Divergence::JensenShannon => f64::NEG_INFINITY,
        Divergence::ForwardKl => -rho,
        Divergence::Alpha(a) => -a * rho,
        Divergence::ChiSquared => rho,
        other => panic!("no formula of {other:?}"),
    }
}

/// KL(Ber σ(x) ‖ Ber σ(y)); with logits, since 1 − σ would cancel.
pub fn bernoulli_kl(x: f64, y: f64) -> f64 {
    sigmoid(x) * (ln_sigmoid(x) - ln_sigmoid(y)) + sigmoid(-x) * (ln_sigmoid(-x) - ln_sigmoid(-y))
}

pub fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
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

pub fn kto(rho: f64, z0: f64, desirable: bool, beta: f64, weights: (f64, f64)) -> f64 {
    if desirable {
        weights.0 * (1.0 - sigmoid(beta * (rho - z0)))
    } else {
        weights.1 * (1.0 - sigmoid(beta * (z0 - rho)))
    }
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

    /// β·ρ.
    pub fn rewards(&self, beta: f64) -> Vec<f64> {
        let pairs = self.sums.iter().zip(&self.references);
        pairs.map(|(l, r)| beta * (l - r)).collect()
    }

    /// ℓ/len^κ.
    pub fn per_token(&self, kappa: f64) -> Vec<f64> {
        let pairs = self.sums.iter().zip(&self.lengths);
        pairs
            .map(|(l, &n)| l / (n.max(1) as f64).powf(kappa))
            .collect()
    }

    /// The candidates of the highest score.
    pub fn best(&self) -> Vec<usize> {
        let highest = self
            .scores
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        (0..self.len())
            .filter(|&i| self.scores[i] == highest)
            .collect()
    }

    /// The candidates whose score is lower than that of `k`.
    pub fn worse(&self, k: usize) -> Vec<usize> {
        let worse = |i: &usize| self.scores[*i] < self.scores[k];
        (0..self.len()).filter(worse).collect()
    }

    /// −ℓ̄ of the best candidates, the mean of several.
    pub fn best_nll(&self) -> f64 {
        let best: Vec<f64> = self
            .best()
            .iter()
            .map(|&i| -self.per_token(1.0)[i])
            .collect();
        best.iter().sum::<f64>() / best.len().max(1) as f64
    }

    /// −ln of the probability that `k` comes before all worse candidates, of strengths `q`.
    pub fn lead_nll(&self, q: &[f64], k: usize) -> f64 {
        let worse: Vec<f64> = self.worse(k).iter().map(|&j| q[j] - q[k]).collect();
        if worse.is_empty() {
            return 0.0;
        }
        -ln_sigmoid(-logsumexp(&worse))
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
