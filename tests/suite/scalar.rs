//! The objectives again, one example at a time in plain f64: no tensor, no shared code, written
//! from the papers' equations. Gradients come from central differences of these.

use burn_preference::{Divergence, LabelNoise, Normalization};

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
    /// (d f / d ℓ_w, d f / d ℓ_l) by central differences.
    pub fn gradient(self, f: impl Fn(Row) -> f64) -> (f64, f64) {
        let w = |d: f64| {
            f(Row {
                w: self.w + d,
                ..self
            })
        };
        let l = |d: f64| {
            f(Row {
                l: self.l + d,
                ..self
            })
        };
        (slope(w), slope(l))
    }
}

/// f′(0) by central differences of fourth order.
pub fn slope(f: impl Fn(f64) -> f64) -> f64 {
    let h = 1e-5;
    (f(-2.0 * h) - 8.0 * f(-h) + 8.0 * f(h) - f(2.0 * h)) / (12.0 * h)
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

fn noise(noise: LabelNoise, h: f64) -> f64 {
    match noise {
        LabelNoise::Clean => -ln_sigmoid(h),
        LabelNoise::Conservative(e) => -(1.0 - e) * ln_sigmoid(h) - e * ln_sigmoid(-h),
        LabelNoise::Robust(e) => {
            (-(1.0 - e) * ln_sigmoid(h) + e * ln_sigmoid(-h)) / (1.0 - 2.0 * e)
        }
    }
}

fn g(divergence: Divergence, rho: f64) -> f64 {
    match divergence {
        Divergence::ReverseKl => rho,
        Divergence::ForwardKl => 1.0 - (-rho).exp(),
        Divergence::JensenShannon => (2.0 * rho.exp() / (1.0 + rho.exp())).ln(),
        Divergence::Alpha(a) => (1.0 - (-a * rho).exp()) / a,
    }
}

fn per(normalization: Normalization, length: usize) -> f64 {
    match normalization {
        Normalization::Sum => 1.0,
        Normalization::Mean => length.max(1) as f64,
    }
}

pub fn dpo(r: Row, beta: f64, n: LabelNoise, d: Divergence, norm: Normalization) -> f64 {
    let w = g(d, r.w - r.ref_w) / per(norm, r.len_w);
    let l = g(d, r.l - r.ref_l) / per(norm, r.len_l);
    noise(n, beta * (w - l))
}

pub fn ipo(r: Row, tau: f64, d: Divergence, norm: Normalization) -> f64 {
    let w = g(d, r.w - r.ref_w) / per(norm, r.len_w);
    let l = g(d, r.l - r.ref_l) / per(norm, r.len_l);
    (w - l - 1.0 / (2.0 * tau)).powi(2)
}

pub fn orpo(r: Row, weight: f64) -> f64 {
    let (w, l) = (r.w / r.len_w.max(1) as f64, r.l / r.len_l.max(1) as f64);
    let odds = |mean: f64| mean - (-mean.exp_m1()).ln();
    -w - weight * ln_sigmoid(odds(w) - odds(l))
}

pub fn kto(rho: f64, z0: f64, desirable: bool, beta: f64, weights: (f64, f64)) -> f64 {
    if desirable {
        weights.0 * (1.0 - sigmoid(beta * (rho - z0)))
    } else {
        weights.1 * (1.0 - sigmoid(beta * (z0 - rho)))
    }
}

/// One list: sums, lengths, scores and which candidates are there.
pub fn rrhf(l: &[f64], len: &[usize], s: &[f64], present: &[bool], kappa: f64, w: f64) -> f64 {
    let q = |i: usize| l[i] / (len[i].max(1) as f64).powf(kappa);
    let there: Vec<usize> = (0..l.len()).filter(|&i| present[i]).collect();
    let mut loss = 0.0;
    for &i in &there {
        for &j in &there {
            if s[i] < s[j] {
                loss += (q(i) - q(j)).max(0.0);
            }
        }
    }
    let mut best: Option<usize> = None;
    for &i in &there {
        if best.is_none_or(|b| s[i] > s[b]) {
            best = Some(i);
        }
    }
    loss - best.map_or(0.0, |b| w * l[b] / len[b].max(1) as f64)
}
