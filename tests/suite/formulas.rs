//! Every objective's formula in plain numbers, by its config: from the paper, one example at a time,
//! no tensor, nothing shared with the crate but the names of its fields. Slopes are exact, by
//! [`Dual`]. The vectors in `vectors/` are made of these, and a new objective is an arm here.

#![expect(clippy::too_many_lines, reason = "tables: an arm per objective")]

use burn_preference::config::ObjectiveConfig as Config;
use burn_preference::{
    Advantage, Divergence, GapDistance, GrpoLossConfig, KlEstimator, LabelNoise, Link,
    NllNormalization, Normalization, RatioClip, RatioLevel, RegressionUnit, TieModel,
    TokenNormalization, TokenWeighting,
};

use crate::dual::Dual;
use crate::scalar::{self, ranks};

/// Log-probabilities of a completion, and its length.
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    /// ℓ.
    pub sum: Dual,
    /// ℓ°.
    pub reference: f64,
    pub length: usize,
}

impl Completion {
    /// ρ.
    fn ratio(self) -> Dual {
        self.sum - self.reference
    }

    /// ℓ̄.
    fn mean(self) -> Dual {
        self.sum / self.divisor()
    }

    fn divisor(self) -> f64 {
        self.length.max(1) as f64
    }
}

/// What stands beside pairs: each list has an entry per pair, and is empty where there is no such
/// column.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    pub margins: Vec<f64>,
    pub probabilities: Vec<f64>,
    /// Of the chosen and of the rejected completions, as the next one.
    pub scores: [Vec<f64>; 2],
    pub kl: [Vec<Dual>; 2],
    pub ties: Vec<bool>,
    /// Sequences to imitate: ℓ and tokens.
    pub gold: Vec<(Dual, usize)>,
    /// BCO's δ and β-DPO's M₀.
    pub shift: f64,
    pub mean_margin: f64,
}

/// One pair: chosen, rejected.
pub type PairOf<T> = [T; 2];

/// −ln σ(h), with the assumption about flipped labels.
pub fn noise(noise: LabelNoise, h: Dual) -> Dual {
    let (kept, flipped) = (-h.ln_sigmoid(), -(-h).ln_sigmoid());
    match noise {
        LabelNoise::Clean => kept,
        LabelNoise::Conservative(e) => (1.0 - e) * kept + e * flipped,
        LabelNoise::Robust(e) => ((1.0 - e) * kept - e * flipped) / (1.0 - 2.0 * e),
        other => panic!("no formula of {other:?}"),
    }
}

/// (1 − e^(−αx))/α, x at α = 0.
fn shaped(alpha: f64, x: Dual) -> Dual {
    if alpha == 0.0 {
        x
    } else {
        -(-alpha * x).exp_m1() / alpha
    }
}

fn g(divergence: Divergence, rho: Dual) -> Dual {
    match divergence {
        Divergence::ReverseKl => rho,
        Divergence::ForwardKl => shaped(1.0, rho),
        Divergence::Alpha(alpha) => shaped(alpha, rho),
        Divergence::JensenShannon => rho.ln_sigmoid() + 2_f64.ln(),
        Divergence::ChiSquared => rho.exp_m1() + rho,
        other => panic!("no formula of {other:?}"),
    }
}

/// What g takes the exponential of; −∞ where it takes none.
fn exponent_of_g(divergence: Divergence, rho: f64) -> f64 {
    match divergence {
        Divergence::ReverseKl | Divergence::JensenShannon => f64::NEG_INFINITY,
        Divergence::ForwardKl => -rho,
        Divergence::Alpha(alpha) => -alpha * rho,
        Divergence::ChiSquared => rho,
        other => panic!("no formula of {other:?}"),
    }
}

/// g(ρ), or g(ρ)/length.
fn compared(divergence: Divergence, normalization: Normalization, y: Completion) -> Dual {
    let value = g(divergence, y.ratio());
    match normalization {
        Normalization::Mean => value / y.divisor(),
        _ => value,
    }
}

/// ℓ, or ℓ̄.
fn per(normalization: Normalization, y: Completion) -> Dual {
    match normalization {
        Normalization::Mean => y.mean(),
        _ => y.sum,
    }
}

fn chi(rho: Dual) -> Dual {
    rho.exp_m1() + rho
}

/// KL(Ber σ(x) ‖ Ber σ(y)); with logits, since 1 − σ would cancel.
fn bernoulli_kl(x: Dual, y: Dual) -> Dual {
    let side = |x: Dual, y: Dual| x.sigmoid() * (x.ln_sigmoid() - y.ln_sigmoid());
    side(x, y) + side(-x, -y)
}

fn logsumexp(x: &[Dual]) -> Dual {
    let max = x.iter().fold(f64::NEG_INFINITY, |max, x| max.max(x.value));
    max + x.iter().map(|x| (*x - max).exp()).sum::<Dual>().ln()
}

fn log_softmax(x: &[Dual]) -> Vec<Dual> {
    let z = logsumexp(x);
    x.iter().map(|x| *x - z).collect()
}

/// −ln P(outcome) at margin h.
fn tie_nll(model: TieModel, h: Dual, tied: bool) -> Dual {
    let (win, tie) = match model {
        TieModel::RaoKupper(nu) => {
            let (win, loss) = ((h - nu.ln()).ln_sigmoid(), (-h - nu.ln()).ln_sigmoid());
            (win, (nu * nu - 1.0).ln() + win + loss)
        }
        TieModel::Davidson(nu) => {
            let half = (2.0 * nu).ln() - h / 2.0;
            let win = -logsumexp(&[Dual::constant(0.0), -h, half]);
            (win, half + win)
        }
        other => panic!("no formula of {other:?}"),
    };
    -if tied { tie } else { win }
}

/// The −ℓ of each sequence, over the divisor of its mean.
fn nlls(normalization: NllNormalization, of: &[(Dual, usize)]) -> Vec<Dual> {
    let tokens: usize = of.iter().map(|(_, length)| length).sum();
    let divisor = |length: usize| match normalization {
        NllNormalization::Sequence => length.max(1) as f64,
        NllNormalization::Token => tokens.max(1) as f64 / of.len() as f64,
        NllNormalization::Sum => 1.0,
        other => panic!("no formula of {other:?}"),
    };
    of.iter().map(|(sum, n)| -*sum / divisor(*n)).collect()
}

/// Losses of pairs.
pub fn pairs(config: &Config, rows: &[PairOf<Completion>], columns: &Columns) -> Vec<Dual> {
    let each = |loss: &dyn Fn(usize, Completion, Completion) -> Dual| -> Vec<Dual> {
        let rows = rows.iter().enumerate();
        rows.map(|(i, [w, l])| loss(i, *w, *l)).collect()
    };
    let delta = |w: Completion, l: Completion| w.ratio() - l.ratio();
    // With a margin, or with a win probability, where there is such a column.
    let logistic = |n: LabelNoise, h: Dual, i: usize| {
        if let Some(margin) = columns.margins.get(i) {
            noise(n, h - *margin)
        } else if let Some(p) = columns.probabilities.get(i) {
            *p * noise(n, h) + (1.0 - p) * noise(n, -h)
        } else {
            noise(n, h)
        }
    };
    let nll = |normalization: NllNormalization| {
        let chosen: Vec<(Dual, usize)> = rows.iter().map(|[w, _]| (w.sum, w.length)).collect();
        let of = if columns.gold.is_empty() {
            &chosen
        } else {
            &columns.gold
        };
        nlls(normalization, of)
    };
    let gap = |i: usize| columns.scores[0][i] - columns.scores[1][i];
    match config {
        Config::Dpo(c) => each(&|i, w, l| {
            let r = |y| compared(c.divergence, c.normalization, y);
            logistic(c.label_noise, c.beta * (r(w) - r(l)), i)
        }),
        Config::Ipo(c) => each(&|_, w, l| {
            let r = |y| compared(c.divergence, c.normalization, y);
            (r(w) - r(l) - 0.5 / c.tau).square()
        }),
        Config::Hinge(c) => each(&|_, w, l| {
            let r = |y| compared(c.divergence, c.normalization, y);
            (1.0 - c.beta * (r(w) - r(l))).relu()
        }),
        Config::Gpo(c) => each(&|_, w, l| {
            let h = c.beta * delta(w, l);
            match c.link {
                Link::Exponential => (-h).exp(),
                Link::SquaredHinge => (1.0 - h).relu().square(),
                Link::Savage => (-h).sigmoid().square(),
                other => panic!("no formula of {other:?}"),
            }
        }),
        Config::Discopop(c) => each(&|_, w, l| {
            // σ(h/t)·e^(−h) in the logarithm: its factors are 0 and ∞ for large −h.
            let h = c.beta * (g(c.divergence, w.ratio()) - g(c.divergence, l.ratio()));
            let modulated = h / c.temperature;
            (modulated.ln_sigmoid() - h).exp() - (-modulated).sigmoid() * h.ln_sigmoid()
        }),
        Config::ExoPair(c) => each(&|_, w, l| {
            let h = c.beta * (g(c.divergence, w.ratio()) - g(c.divergence, l.ratio()));
            let side = |h: Dual, p: f64| h.sigmoid() * (h.ln_sigmoid() - p.ln());
            side(h, 1.0 - c.label_smoothing) + side(-h, c.label_smoothing)
        }),
        Config::Nca(c) => each(&|_, w, l| {
            let (w, l) = (c.beta * w.ratio(), c.beta * l.ratio());
            -w.ln_sigmoid() - 0.5 * (-w).ln_sigmoid() - 0.5 * (-l).ln_sigmoid()
        }),
        Config::Bco(c) => each(&|_, w, l| {
            let (w, l) = (c.beta * w.ratio(), c.beta * l.ratio());
            -(w - columns.shift).ln_sigmoid() - (columns.shift - l).ln_sigmoid()
        }),
        Config::Sppo(c) => each(&|i, w, l| {
            let p = columns.probabilities.get(i).copied().unwrap_or(1.0);
            let edge = (p - 0.5) / c.beta;
            (w.ratio() - edge).square() + (l.ratio() + edge).square()
        }),
        Config::ApoZero(c) => {
            each(&|_, w, l| 1.0 - (c.beta * w.ratio()).sigmoid() + (c.beta * l.ratio()).sigmoid())
        }
        Config::ApoDown(c) => {
            each(&|_, w, l| (c.beta * w.ratio()).sigmoid() + 1.0 - (c.beta * delta(w, l)).sigmoid())
        }
        Config::Dpop(c) => each(&|_, w, l| {
            let penalty = c.penalty * (-w.ratio()).relu();
            -(c.beta * (delta(w, l) - penalty)).ln_sigmoid()
        }),
        Config::Rdpo(c) => each(&|_, w, l| {
            let longer = w.length as f64 - l.length as f64;
            -(c.beta * delta(w, l) + c.length_cost * longer).ln_sigmoid()
        }),
        Config::CalDpo(c) => each(&|_, w, l| {
            let target = 1.0 / (2.0 * c.beta);
            let calibration = (w.ratio() - target).square() + (l.ratio() + target).square();
            c.calibration_weight * calibration - delta(w, l).ln_sigmoid()
        }),
        Config::Aot(c) => {
            let sort = |mut values: Vec<Dual>| {
                values.sort_by(|a, b| a.value.total_cmp(&b.value));
                values
            };
            let of = |f: &dyn Fn(&PairOf<Completion>) -> Dual| sort(rows.iter().map(f).collect());
            let (a, b) = if c.paired {
                let reference = |[w, l]: &PairOf<Completion>| (w.reference - l.reference).into();
                (of(&|[w, l]| w.sum - l.sum), of(&reference))
            } else {
                (of(&|[w, _]| w.ratio()), of(&|[_, l]| l.ratio()))
            };
            let ranks = a.into_iter().zip(b);
            ranks
                .map(|(a, b)| noise(c.label_noise, c.beta * (a - b)))
                .collect()
        }
        Config::DpoShift(c) => {
            each(&|_, w, l| -(c.beta * (w.ratio() - c.rejected_share * l.ratio())).ln_sigmoid())
        }
        Config::Hdpo(c) => each(&|_, w, l| {
            let reference = w.reference - l.reference;
            -(c.beta * (c.entropy_weight * (w.sum - l.sum) - reference)).ln_sigmoid()
        }),
        Config::Chipo(c) => each(&|_, w, l| {
            let h = c.beta * (chi(w.ratio()) - chi(l.ratio()));
            -c.reward_bound
                .map_or(h, |r| h.clamp(-2.0 * r, 2.0 * r))
                .ln_sigmoid()
        }),
        Config::BetaDpo(c) => {
            let deltas = rows.iter().map(|[w, l]| delta(*w, *l).value);
            let mean = deltas.sum::<f64>() / rows.len() as f64;
            let beta = c.beta * (1.0 + c.sensitivity * (mean - columns.mean_margin));
            each(&|_, w, l| -(beta.max(1e-3) * delta(w, l)).ln_sigmoid())
        }
        Config::Tdpo(c) => each(&|i, w, l| {
            let drift = columns.kl[1][i] - columns.kl[0][i].frozen();
            -(c.beta * (delta(w, l) - c.kl_weight * drift)).ln_sigmoid()
        }),
        Config::Rpo(c) => each(&|i, w, l| {
            let (d, h) = ((c.score_scale * gap(i)).into(), c.beta * delta(w, l));
            match c.distance {
                GapDistance::BackwardKl => bernoulli_kl(d, h),
                GapDistance::ForwardKl => bernoulli_kl(h, d),
                GapDistance::Squared => (h - d).square(),
                other => panic!("no formula of {other:?}"),
            }
        }),
        Config::Rebel(c) => each(&|i, w, l| match c.unit {
            RegressionUnit::LogRatio => (delta(w, l) - c.score_scale * gap(i)).square(),
            RegressionUnit::Score => (delta(w, l) / c.score_scale - gap(i)).square(),
            other => panic!("no formula of {other:?}"),
        }),
        Config::RaoKupper(c) => each(&|i, w, l| {
            let model = TieModel::RaoKupper(c.tie_factor);
            tie_nll(model, c.beta * delta(w, l), columns.ties[i])
        }),
        Config::Davidson(c) => each(&|i, w, l| {
            let model = TieModel::Davidson(c.tie_factor);
            tie_nll(model, c.beta * delta(w, l), columns.ties[i])
        }),
        Config::Simpo(c) => each(&|_, w, l| {
            noise(
                c.label_noise,
                c.beta * (w.mean() - l.mean()) - c.target_margin,
            )
        }),
        Config::Cpo(c) => {
            let nll = nll(c.nll_normalization);
            each(&|i, w, l| noise(c.label_noise, c.beta * (w.sum - l.sum)) + c.sft_weight * nll[i])
        }
        Config::AlphaPo(c) => each(&|_, w, l| {
            let r = |y: Completion| shaped(c.alpha, y.mean());
            noise(c.label_noise, c.beta * (r(w) - r(l)) - c.target_margin)
        }),
        Config::Orpo(c) => {
            let nll = nll(c.nll_normalization);
            each(&|i, w, l| {
                let odds = w.mean().odds() - l.mean().odds();
                nll[i] - c.odds_ratio_weight * odds.ln_sigmoid()
            })
        }
        Config::SlicHf(c) => {
            each(&|_, w, l| (c.target_margin - w.sum + l.sum).relu() - c.sft_weight * w.sum)
        }
        Config::Simper(_) => each(&|_, w, l| l.mean().exp() - w.mean().exp()),
        Config::Asft(c) => each(&|_, w, l| {
            // σ of the log-odds is the probability itself.
            let alignment = -w.mean() - (-l.mean().odds()).ln_sigmoid();
            -w.mean() + c.alignment_weight * alignment
        }),
        Config::Tpo(c) => {
            let nll = nlls(c.nll_normalization, &columns.gold);
            each(&|i, w, l| {
                let h = c.beta * (per(c.normalization, w) - per(c.normalization, l));
                noise(c.label_noise, h - c.target_margin) + c.sft_weight * nll[i]
            })
        }
        Config::Mixture(c) => {
            let mut sum = vec![Dual::default(); rows.len()];
            for part in &c.parts {
                for (sum, loss) in sum.iter_mut().zip(pairs(&part.objective, rows, columns)) {
                    *sum = *sum + part.weight * loss;
                }
            }
            sum
        }
        Config::WithSft(c) => {
            let losses = pairs(&c.objective, rows, columns).into_iter();
            let terms = losses.zip(nll(c.normalization));
            terms.map(|(loss, nll)| loss + c.weight * nll).collect()
        }
        other => panic!("{} does not take pairs", other.name()),
    }
}

/// Rewards of a pair.
pub fn pair_rewards(config: &Config, row: PairOf<Completion>) -> PairOf<f64> {
    let of = |reward: &dyn Fn(Completion) -> Dual| row.map(|y| reward(y).value);
    match config {
        Config::Dpo(c) => of(&|y| c.beta * compared(c.divergence, c.normalization, y)),
        Config::Ipo(c) => of(&|y| c.tau * compared(c.divergence, c.normalization, y)),
        Config::Hinge(c) => of(&|y| c.beta * compared(c.divergence, c.normalization, y)),
        Config::Discopop(c) => of(&|y| c.beta * g(c.divergence, y.ratio())),
        Config::ExoPair(c) => of(&|y| c.beta * g(c.divergence, y.ratio())),
        Config::Chipo(c) => of(&|y| c.beta * chi(y.ratio())),
        Config::Hdpo(c) => of(&|y| c.beta * (c.entropy_weight * y.sum - y.reference)),
        Config::Rebel(_) => of(&Completion::ratio),
        Config::Simpo(c) => of(&|y| c.beta * y.mean()),
        Config::Cpo(c) => of(&|y| c.beta * y.sum),
        Config::AlphaPo(c) => of(&|y| c.beta * shaped(c.alpha, y.mean())),
        Config::Orpo(c) => of(&|y| c.odds_ratio_weight * y.mean()),
        Config::SlicHf(_) => of(&|y| y.sum),
        Config::Simper(_) => of(&|y| y.mean().exp()),
        Config::Asft(c) => of(&|y| c.alignment_weight * y.mean()),
        Config::Tpo(c) => of(&|y| c.beta * per(c.normalization, y)),
        Config::Mixture(c) => pair_rewards(&c.parts[0].objective, row),
        Config::WithSft(c) => pair_rewards(&c.objective, row),
        other => {
            let beta = reward_scale(other);
            of(&|y| beta * y.ratio())
        }
    }
}

/// β of rewards β·ρ.
fn reward_scale(config: &Config) -> f64 {
    match config {
        Config::Gpo(c) => c.beta,
        Config::Nca(c) => c.beta,
        Config::Bco(c) => c.beta,
        Config::Sppo(c) => c.beta,
        Config::ApoZero(c) => c.beta,
        Config::ApoDown(c) => c.beta,
        Config::Dpop(c) => c.beta,
        Config::Rdpo(c) => c.beta,
        Config::CalDpo(c) => c.beta,
        Config::Aot(c) => c.beta,
        Config::DpoShift(c) => c.beta,
        Config::BetaDpo(c) => c.beta,
        Config::Tdpo(c) => c.beta,
        Config::Rpo(c) => c.beta,
        Config::RaoKupper(c) => c.beta,
        Config::Davidson(c) => c.beta,
        Config::Kto(c) => c.beta,
        Config::Npo(c) => c.beta,
        Config::Dro(c) => c.tau,
        Config::AstarPo(c) => c.beta,
        Config::Qrpo(c) => c.beta,
        Config::PlackettLuce(c) => c.beta,
        Config::Sdpo(c) => c.beta,
        Config::Lipo(c) => c.beta,
        Config::InfoNca(c) => c.beta,
        Config::NcaList(c) => c.beta,
        Config::ExoList(c) => c.beta,
        other => panic!("no β of {}", other.name()),
    }
}

/// The largest number that a formula takes the exponential of; −∞ if it takes none.
pub fn exponent(config: &Config, row: PairOf<Completion>) -> f64 {
    let [w, l] = row;
    let of_g = |divergence: Divergence| {
        let of = |y: Completion| exponent_of_g(divergence, y.ratio().value);
        of(w).max(of(l))
    };
    match config {
        Config::Dpo(c) => of_g(c.divergence),
        Config::Ipo(c) => of_g(c.divergence),
        Config::Hinge(c) => of_g(c.divergence),
        Config::ExoPair(c) => of_g(c.divergence),
        Config::Discopop(c) => {
            let h = c.beta * (g(c.divergence, w.ratio()) - g(c.divergence, l.ratio()));
            let own = (h / c.temperature).ln_sigmoid() - h;
            own.value.max(of_g(c.divergence))
        }
        Config::Gpo(c) if c.link == Link::Exponential => (-c.beta * (w.ratio() - l.ratio())).value,
        Config::Chipo(_) => w.ratio().value.max(l.ratio().value),
        Config::AlphaPo(c) => (-c.alpha * w.mean()).value.max((-c.alpha * l.mean()).value),
        Config::Mixture(c) => {
            let parts = c.parts.iter().map(|part| exponent(&part.objective, row));
            parts.fold(f64::NEG_INFINITY, f64::max)
        }
        Config::WithSft(c) => exponent(&c.objective, row),
        _ => f64::NEG_INFINITY,
    }
}

/// What stands beside single completions, as [`Columns`] beside pairs.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    pub desirable: Vec<bool>,
    pub scores: Vec<f64>,
    pub values: Vec<Dual>,
    /// KTO's z₀ and BCO's δ.
    pub baseline: f64,
    pub shift: f64,
}

/// Losses of single completions.
pub fn completions(config: &Config, rows: &[Completion], marks: &Marks) -> Vec<Dual> {
    let each = |loss: &dyn Fn(usize, Completion) -> Dual| -> Vec<Dual> {
        let rows = rows.iter().enumerate();
        rows.map(|(i, y)| loss(i, *y)).collect()
    };
    let sign = |i: usize| if marks.desirable[i] { 1.0 } else { -1.0 };
    match config {
        Config::Kto(c) => each(&|i, y| {
            let weight = if marks.desirable[i] {
                c.desirable_weight
            } else {
                c.undesirable_weight
            };
            weight * (-sign(i) * c.beta * (y.ratio() - marks.baseline)).sigmoid()
        }),
        Config::ApoZero(c) => each(&|i, y| (-sign(i) * c.beta * y.ratio()).sigmoid()),
        Config::Bco(c) => {
            each(&|i, y| -(sign(i) * (c.beta * y.ratio() - marks.shift)).ln_sigmoid())
        }
        Config::Npo(c) => each(&|_, y| -2.0 / c.beta * (-c.beta * y.ratio()).ln_sigmoid()),
        Config::Simnpo(c) => {
            each(&|_, y| -2.0 / c.beta * (-c.beta * y.mean() - c.target_margin).ln_sigmoid())
        }
        Config::Dro(c) => {
            each(&|i, y| 0.5 * (marks.scores[i] - marks.values[i] - c.tau * y.ratio()).square())
        }
        Config::AstarPo(c) => {
            each(&|i, y| (c.beta * y.ratio() - (marks.scores[i] - marks.values[i].value)).square())
        }
        Config::Qrpo(c) => each(&|i, y| {
            // β·ln Z, Z = β·(e^(1/β) − 1) without the overflow of e^(1/β).
            let ln_z = c.beta.ln() + 1.0 / c.beta + (-(-1.0 / c.beta).exp()).ln_1p();
            (marks.scores[i] - c.beta * ln_z - c.beta * y.ratio()).square()
        }),
        other => panic!("{} does not take single completions", other.name()),
    }
}

/// Rewards of single completions.
pub fn completion_reward(config: &Config, y: Completion) -> f64 {
    match config {
        Config::Simnpo(c) => (c.beta * y.mean()).value,
        other => (reward_scale(other) * y.ratio()).value,
    }
}

/// The present candidates of one prompt, and their scores.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    pub completions: Vec<Completion>,
    pub scores: Vec<f64>,
}

impl Candidates {
    fn len(&self) -> usize {
        self.scores.len()
    }

    /// The candidates of the highest score.
    fn best(&self) -> Vec<usize> {
        let highest = self.scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let best = |i: &usize| self.scores[*i] == highest;
        (0..self.len()).filter(best).collect()
    }

    /// The candidates whose score is lower than that of `k`.
    fn worse(&self, k: usize) -> Vec<usize> {
        let worse = |i: &usize| self.scores[*i] < self.scores[k];
        (0..self.len()).filter(worse).collect()
    }

    /// −ℓ̄ of the best candidates, the mean of several.
    fn best_nll(&self) -> Dual {
        let best = self.best();
        let sum: Dual = best.iter().map(|&i| -self.completions[i].mean()).sum();
        sum / best.len().max(1) as f64
    }

    /// −ln of the probability that `k` comes before all worse candidates, of strengths `q`.
    fn lead_nll(&self, q: &[Dual], k: usize) -> Dual {
        let worse: Vec<Dual> = self.worse(k).iter().map(|&j| q[j] - q[k]).collect();
        if worse.is_empty() {
            return Dual::default();
        }
        -(-logsumexp(&worse)).ln_sigmoid()
    }

    /// softmax(s/t) of the scores, in the logarithm.
    fn targets(&self, t: f64) -> Vec<f64> {
        scalar::log_softmax(&self.scores.iter().map(|s| s / t).collect::<Vec<_>>())
    }
}

/// What a list objective compares: its rewards.
fn strengths(config: &Config, list: &Candidates) -> Vec<Dual> {
    let of = |f: &dyn Fn(&Completion) -> Dual| list.completions.iter().map(f).collect();
    match config {
        Config::Pro(_) => of(&|y| y.mean()),
        Config::Rrhf(c) => of(&|y| y.sum / y.divisor().powf(c.length_penalty)),
        Config::RewardRanking(_) => of(&|y| y.sum),
        other => {
            let beta = reward_scale(other);
            of(&|y| beta * y.ratio())
        }
    }
}

/// Rewards of the candidates of a list.
pub fn list_rewards(config: &Config, list: &Candidates) -> Vec<f64> {
    let strengths = strengths(config, list).into_iter();
    strengths.map(|q| q.value).collect()
}

/// The loss of a list; 0 of one without candidates.
pub fn list(config: &Config, list: &Candidates) -> Dual {
    let all = 0..list.len();
    if all.is_empty() {
        return Dual::default();
    }
    let (q, s) = (strengths(config, list), &list.scores);
    match config {
        Config::PlackettLuce(_) => all.map(|k| list.lead_nll(&q, k)).sum(),
        Config::Sdpo(_) => {
            let best = list.best();
            let losses: Dual = best.iter().map(|&w| list.lead_nll(&q, w)).sum();
            losses / best.len() as f64
        }
        Config::Lipo(_) => {
            let values: Vec<f64> = q.iter().map(|q| q.value).collect();
            let ranks = ranks(&values);
            // Over all pairs of ranks that the two may have.
            let discount = |i: usize, j: usize| {
                let (mut sum, mut count) = (0.0, 0.0);
                for a in ranks[i].clone() {
                    for b in ranks[j].clone().filter(|&b| b != a) {
                        let d = |rank: usize| 1.0 / ((rank + 1) as f64).ln();
                        sum += (d(a) - d(b)).abs();
                        count += 1.0;
                    }
                }
                sum / count
            };
            let mut loss = Dual::default();
            for i in all.clone() {
                for j in list.worse(i) {
                    let gain = (s[i].exp2() - s[j].exp2()).abs();
                    loss = loss - gain * discount(i, j) * (q[i] - q[j]).ln_sigmoid();
                }
            }
            loss
        }
        Config::InfoNca(c) => {
            let terms = log_softmax(&q).into_iter();
            let targets = list.targets(c.score_temperature);
            -terms.zip(targets).map(|(q, p)| p.exp() * q).sum::<Dual>()
        }
        Config::NcaList(c) => {
            let share = 1.0 / list.len() as f64;
            let targets = list.targets(c.score_temperature).into_iter();
            let terms = q.iter().zip(targets);
            -terms
                .map(|(q, p)| p.exp() * q.ln_sigmoid() + share * (-*q).ln_sigmoid())
                .sum::<Dual>()
        }
        Config::ExoList(c) => {
            let terms = log_softmax(&q).into_iter();
            let targets = list.targets(c.score_temperature);
            terms.zip(targets).map(|(q, p)| q.exp() * (q - p)).sum()
        }
        Config::Rrhf(c) => {
            let mut loss = c.sft_weight * list.best_nll();
            for j in all {
                for i in list.worse(j) {
                    loss = loss + (q[i] - q[j]).relu();
                }
            }
            loss
        }
        Config::Pro(c) => {
            let mut loss = c.sft_weight * list.best_nll();
            for k in all {
                let worse = list.worse(k);
                let t = worse.iter().map(|&i| s[k] - s[i]).fold(0.0, f64::max);
                let others = worse.iter().map(|&i| q[i] * (s[k] - s[i]));
                let terms: Vec<Dual> = others.chain([q[k] * t]).collect();
                loss = loss + logsumexp(&terms) - q[k] * t;
            }
            loss
        }
        Config::RewardRanking(c) => {
            let ranking: Dual = all.map(|k| list.lead_nll(&q, k)).sum();
            if c.centering_weight == 0.0 {
                return ranking;
            }
            let mean = q.iter().copied().sum::<Dual>() / q.len() as f64;
            ranking + c.centering_weight * (2.0 * mean).square()
        }
        other => panic!("{} does not take lists", other.name()),
    }
}

/// Losses of pairs of rewards, which a reward model gives.
pub fn rewards(config: &Config, rows: &[PairOf<Dual>], columns: &Columns) -> Vec<Dual> {
    let centered = |weight: f64, [w, l]: PairOf<Dual>| {
        if weight == 0.0 {
            Dual::default()
        } else {
            weight * (w + l).square()
        }
    };
    let rows = rows.iter().enumerate();
    let loss = |(i, row): (usize, &PairOf<Dual>)| {
        let h = row[0] - row[1];
        match config {
            Config::BradleyTerry(c) => {
                let loss = if let Some(margin) = columns.margins.get(i) {
                    noise(c.label_noise, h - *margin)
                } else if let Some(p) = columns.probabilities.get(i) {
                    *p * noise(c.label_noise, h) + (1.0 - p) * noise(c.label_noise, -h)
                } else {
                    noise(c.label_noise, h)
                };
                loss + centered(c.centering_weight, *row)
            }
            Config::BradleyTerryTies(c) => {
                tie_nll(c.tie_model, h, columns.ties[i]) + centered(c.centering_weight, *row)
            }
            other => panic!("{} does not take rewards of pairs", other.name()),
        }
    };
    rows.map(loss).collect()
}

/// Losses and rewards of demonstrations: a log-probability and a weight for each token that counts;
/// in a step of so many tokens per example, if that is given.
pub fn demonstrations(
    config: &Config,
    rows: &[Vec<(Dual, f64)>],
    per_example: Option<f64>,
) -> Vec<(Dual, f64)> {
    let Config::Sft(c) = config else {
        panic!("{} does not take demonstrations", config.name());
    };
    let counted: usize = rows.iter().map(Vec::len).sum();
    let of_batch = counted.max(1) as f64 / rows.len() as f64;
    let sum = |row: &Vec<(Dual, f64)>| {
        // The weight of a token does not move with its log-probability.
        let terms = row.iter().map(|&(x, weight)| match c.token_weighting {
            TokenWeighting::Probability => weight * x.value.exp() * x,
            _ => weight * x,
        });
        terms.sum::<Dual>()
    };
    let divisor = |row: &Vec<(Dual, f64)>| match c.normalization {
        NllNormalization::Sequence => row.len().max(1) as f64,
        NllNormalization::Token => per_example.unwrap_or(of_batch),
        _ => 1.0,
    };
    let rows = rows.iter();
    rows.map(|row| (-sum(row) / divisor(row), sum(row).value))
        .collect()
}

/// A token that counts: ln π, ln μ and ln π°.
#[derive(Debug, Clone, Copy)]
pub struct Token {
    pub policy: Dual,
    pub sampler: f64,
    pub reference: f64,
}

/// A sample: its tokens, its reward and its prompt.
#[derive(Debug, Clone)]
pub struct Sample {
    pub tokens: Vec<Token>,
    pub reward: f64,
    pub group: usize,
}

/// The advantage of sample `i` over the others of its group.
pub fn advantage(config: &GrpoLossConfig, samples: &[Sample], i: usize) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let std = |values: &[f64]| {
        let centre = mean(values);
        let squares: f64 = values.iter().map(|x| (x - centre).powi(2)).sum();
        (squares / (values.len() - 1) as f64).sqrt()
    };
    let members = samples.iter().filter(|s| s.group == samples[i].group);
    let group: Vec<f64> = members.map(|s| s.reward).collect();
    let all: Vec<f64> = samples.iter().map(|s| s.reward).collect();
    let reward = samples[i].reward;
    match config.advantage {
        Advantage::Normalized(epsilon) => (reward - mean(&group)) / (std(&group) + epsilon),
        Advantage::NormalizedByAll(epsilon) => (reward - mean(&group)) / (std(&all) + epsilon),
        Advantage::Centered => reward - mean(&group),
        Advantage::LeaveOneOut => {
            let others = group.iter().sum::<f64>() - reward;
            reward - others / (group.len() - 1) as f64
        }
        other => panic!("no formula of {other:?}"),
    }
}

/// The loss of sample `i`, in a step of so many tokens per example.
pub fn sample(config: &GrpoLossConfig, samples: &[Sample], i: usize, per_example: f64) -> Dual {
    let tokens = &samples[i].tokens;
    let a = advantage(config, samples, i);
    let log = |token: &Token| token.policy - token.sampler;
    let all: Dual = tokens.iter().map(log).sum();
    let mut sum = Dual::default();
    for token in tokens {
        let w = match config.level {
            RatioLevel::Token => log(token),
            RatioLevel::Sequence => all / tokens.len() as f64,
            RatioLevel::Completion => all,
            other => panic!("no formula of {other:?}"),
        };
        let w = w.exp();
        let clip = |w: Dual| w.clamp(1.0 - config.clip_low, 1.0 + config.clip_high);
        let objective = match config.clip {
            RatioClip::Objective => (w * a).min(clip(w) * a),
            RatioClip::TwoSided(bound) => (w.clamp(0.0, bound) * a).min(clip(w) * a),
            RatioClip::Weight => clip(w.frozen()) * a * token.policy,
            other => panic!("no formula of {other:?}"),
        };
        sum = sum - objective;
        // At β = 0 there is no reference.
        if config.beta > 0.0 {
            let away = token.reference - token.policy;
            let k3 = away.exp_m1() - away;
            let kl = match config.kl {
                KlEstimator::K3 => k3,
                KlEstimator::WeightedK3 => w * k3,
                other => panic!("no formula of {other:?}"),
            };
            sum = sum + config.beta * kl;
        }
    }
    match config.normalization {
        TokenNormalization::Token => sum / per_example,
        TokenNormalization::Sequence => sum / tokens.len().max(1) as f64,
        TokenNormalization::Constant(divisor) => sum / divisor,
        other => panic!("no formula of {other:?}"),
    }
}
