//! What a loss is where a peer has NaN or infinity, or where the crate holds a number that the
//! peer does not: from the formula in plain f64, with its exact slope, never from ours.

use burn_preference::{Divergence, Normalization};
use serde_json::Value;

use crate::dual::Dual;
use crate::formulas::noise;
use crate::map::{self, Difference};
use crate::{Case, all_numbers, numbers, scalar};

/// Where the documentation says that exponents, and log-probabilities in log-odds, are held.
const MAX_EXPONENT: f64 = 80.0;
const MAX_LOG_PROB: f64 = -1e-30;

/// Whether numbers are held where the documentation says so.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bounds {
    None,
    Held,
}

impl Bounds {
    fn at_most(self, x: Dual, bound: f64) -> Dual {
        if self == Self::Held && x.value > bound {
            Dual::constant(bound)
        } else {
            x
        }
    }

    fn exp(self, x: Dual) -> Dual {
        let x = self.at_most(x, MAX_EXPONENT);
        x.then(x.value.exp(), x.value.exp())
    }

    fn exp_m1(self, x: Dual) -> Dual {
        let x = self.at_most(x, MAX_EXPONENT);
        x.then(x.value.exp_m1(), x.value.exp())
    }

    fn odds(self, x: Dual) -> Dual {
        let x = self.at_most(x, MAX_LOG_PROB);
        x.then(scalar::odds(x.value), -1.0 / x.value.exp_m1())
    }

    /// (1 − e^(−αx))/α.
    fn shaped(self, alpha: f64, x: Dual) -> Dual {
        if alpha == 0.0 {
            x
        } else {
            self.exp_m1(x * -alpha) * -alpha.recip()
        }
    }

    fn g(self, divergence: Divergence, rho: Dual) -> Dual {
        match divergence {
            Divergence::ForwardKl => self.shaped(1.0, rho),
            Divergence::Alpha(alpha) => self.shaped(alpha, rho),
            Divergence::JensenShannon => rho.ln_sigmoid() + 2_f64.ln(),
            Divergence::ReverseKl => rho,
            other => panic!("no peer has {other:?}"),
        }
    }
}

/// One completion of a pair.
#[derive(Debug, Clone, Copy)]
struct Side {
    sum: Dual,
    reference: f64,
    length: f64,
}

impl Side {
    fn ratio(self) -> Dual {
        self.sum + -self.reference
    }

    fn mean(self) -> Dual {
        self.sum * self.length.max(1.0).recip()
    }
}

type Formula = Box<dyn Fn(Bounds, Side, Side) -> Dual>;

/// Losses whose formula may overflow, or be undefined at a point.
fn formula(case: &Case) -> Option<Formula> {
    let beta = case.param("beta").or(case.param("tau"))?;
    let d = map::divergence(case).ok()?;
    let h = move |bounds: Bounds, w: Side, l: Side| {
        (bounds.g(d, w.ratio()) - bounds.g(d, l.ratio())) * beta
    };
    let compared = move |bounds: Bounds, w: Side, l: Side, normalization: Normalization| {
        let per = |y: Side| {
            let length = if normalization == Normalization::Mean {
                y.length.max(1.0)
            } else {
                1.0
            };
            bounds.g(d, y.ratio()) * length.recip()
        };
        per(w) - per(l)
    };
    let odds = move |bounds: Bounds, w: Side, l: Side| {
        -(bounds.odds(w.mean()) - bounds.odds(l.mean())).ln_sigmoid() * beta
    };
    let smoothed = map::noise(case);
    Some(match case.loss {
        "sigmoid" | "cdpo" | "robust" => {
            let n = map::dpo_noise(case);
            Box::new(move |bounds, w, l| noise(n, h(bounds, w, l)))
        }
        "sigmoid_norm" => {
            let n = map::dpo_noise(case);
            Box::new(move |bounds, w, l| {
                noise(n, compared(bounds, w, l, Normalization::Mean) * beta)
            })
        }
        "ipo" => {
            let normalization = map::ipo_normalization(case);
            Box::new(move |bounds, w, l| {
                (compared(bounds, w, l, normalization) + -0.5 / beta).square()
            })
        }
        "hinge" => Box::new(move |bounds, w, l| (-h(bounds, w, l) + 1.0).relu()),
        "discopop" => {
            let t = case.param("discopop_tau").unwrap_or(0.05);
            Box::new(move |bounds, w, l| {
                let h = h(bounds, w, l);
                let modulated = h * t.recip();
                let exponential = bounds.exp(modulated.ln_sigmoid() - h);
                exponential - (-modulated).sigmoid() * h.ln_sigmoid()
            })
        }
        "exo_pair" => {
            let e = map::exo_smoothing(case);
            let side = |h: Dual, p: f64| h.sigmoid() * (h.ln_sigmoid() + -p.ln());
            Box::new(move |bounds, w, l| {
                let h = h(bounds, w, l);
                side(h, 1.0 - e) + side(-h, e)
            })
        }
        "simpo" | "alphapo" | "cpo_simpo" => {
            let (margin, alpha) = (map::simpo_margin(case), case.param("alpha").unwrap_or(0.0));
            Box::new(move |bounds, w, l| {
                let r = |y: Side| bounds.shaped(alpha, y.mean());
                noise(smoothed, (r(w) - r(l)) * beta + -margin)
            })
        }
        "cpo_ipo" if case.input["kind"] == "pair_logits" => {
            Box::new(move |_, w, l| (w.mean() - l.mean() + -0.5 / beta).square())
        }
        "orpo_full_avgnll" => Box::new(move |bounds, w, l| odds(bounds, w, l) - w.mean()),
        "orpo_or" | "orpo" => Box::new(odds),
        _ => return None,
    })
}

/// A batch in plain numbers: sums, references and lengths, `[chosen; rejected]`.
struct Rows {
    sums: Vec<f64>,
    references: Vec<f64>,
    lengths: Vec<f64>,
}

impl Rows {
    fn of(input: &Value) -> Option<Self> {
        let both = |prefix: &str, suffix: &str| {
            let side = |side: &str| input.get(format!("{prefix}{side}{suffix}"));
            Some([all_numbers(side("chosen")?), all_numbers(side("rejected")?)].concat())
        };
        if input["kind"] == "token_pairs" {
            let rows = |key: &str| -> Option<Vec<Vec<f64>>> {
                Some(input[key].as_array()?.iter().map(all_numbers).collect())
            };
            let sums = |rows: &[Vec<f64>]| rows.iter().map(|row| row.iter().sum()).collect();
            let policy = rows("policy")?;
            return Some(Self {
                sums: sums(&policy),
                references: sums(&rows("ref")?),
                lengths: policy.iter().map(|row| row.len() as f64).collect(),
            });
        }
        let sums = both("", "")?;
        Some(Self {
            references: both("ref_", "").unwrap_or_else(|| vec![0.0; sums.len()]),
            lengths: both("", "_len").unwrap_or_else(|| vec![1.0; sums.len()]),
            sums,
        })
    }

    fn pairs(&self) -> usize {
        self.sums.len() / 2
    }

    /// The loss of pair `i`, with its slope along the sum of `row`.
    fn loss(&self, formula: &Formula, bounds: Bounds, i: usize, row: Option<usize>) -> Dual {
        let side = |at: usize| Side {
            sum: Dual {
                value: self.sums[at],
                slope: f64::from(Some(at) == row),
            },
            reference: self.references[at],
            length: self.lengths[at],
        };
        formula(bounds, side(i), side(self.pairs() + i))
    }

    /// d loss of its pair / d sum of `row`.
    fn slope(&self, formula: &Formula, bounds: Bounds, row: usize) -> f64 {
        self.loss(formula, bounds, row % self.pairs(), Some(row))
            .slope
    }

    fn mean_loss(&self, formula: &Formula, bounds: Bounds) -> f64 {
        let losses = (0..self.pairs()).map(|i| self.loss(formula, bounds, i, None).value);
        losses.sum::<f64>() / self.pairs() as f64
    }
}

/// Logits of pairs, with the tokens that the preference and the NLL count.
struct OfLogits {
    rows: Rows,
    /// ln softmax of the logits that predict each token: `[row][token][word]`.
    log_softmax: Vec<Vec<Vec<f64>>>,
    tokens: Vec<Vec<f64>>,
    counted: Vec<Vec<bool>>,
    nll_counted: Vec<Vec<bool>>,
    nll_weight: f64,
}

impl OfLogits {
    fn of(case: &Case) -> Option<Self> {
        let input = map::PairLogits::new(case.input);
        let (counted, nll_counted, nll_weight) = if case.loss == "orpo" {
            (input.odds_mask(case), input.nll_mask(case), 1.0)
        } else {
            let weight = case.param("cpo_alpha").unwrap_or(0.0);
            (input.completion.clone(), input.completion.clone(), weight)
        };
        let log_softmax: Vec<Vec<Vec<f64>>> = case.input["logits"]
            .as_array()?
            .iter()
            .map(|row| {
                let steps = row.as_array().unwrap().iter();
                steps
                    .map(|x| scalar::log_softmax(&all_numbers(x)))
                    .collect()
            })
            .collect();
        let n = input.tokens.len();
        let mut this = Self {
            rows: Rows {
                sums: vec![],
                references: vec![0.0; n],
                lengths: vec![],
            },
            log_softmax,
            tokens: input.tokens,
            counted,
            nll_counted,
            nll_weight,
        };
        for row in 0..n {
            let (sum, count) = this.sum(row, &this.counted);
            this.rows.sums.push(sum);
            this.rows.lengths.push(count);
        }
        Some(this)
    }

    /// Σ and number of the log-probs of a row that a mask counts.
    fn sum(&self, row: usize, counted: &[Vec<bool>]) -> (f64, f64) {
        let time = self.tokens[row].len();
        let there = (1..time).filter(|&t| counted[row][t]);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an id is a small whole number"
        )]
        let log_prob = |t: usize| self.log_softmax[row][t - 1][self.tokens[row][t] as usize];
        there.fold((0.0, 0.0), |(sum, count), t| {
            (sum + log_prob(t), count + 1.0)
        })
    }

    /// The NLL of the chosen rows, over all their tokens, and the number of these; TRL takes none
    /// without a weight.
    fn nll(&self) -> (f64, f64) {
        if self.nll_weight == 0.0 {
            return (0.0, 1.0);
        }
        let sums = (0..self.rows.pairs()).map(|row| self.sum(row, &self.nll_counted));
        let (sum, count) = sums.fold((0.0, 0.0), |all, row| (all.0 + row.0, all.1 + row.1));
        let count = count.max(1.0);
        (-sum / count, count)
    }

    fn value(&self, formula: &Formula, bounds: Bounds, key: &str, index: usize) -> Option<f64> {
        let n = self.rows.pairs();
        let mean = |values: &dyn Fn(usize) -> f64| (0..n).map(values).sum::<f64>() / n as f64;
        let mean_of = |row: usize| self.rows.sums[row] / self.rows.lengths[row].max(1.0);
        Some(match key {
            "loss" => {
                let nll = if self.nll_weight == 0.0 {
                    0.0
                } else {
                    self.nll().0
                };
                self.rows.mean_loss(formula, bounds) + self.nll_weight * nll
            }
            "nll_loss" => self.nll().0,
            "mean_chosen_logp" => mean(&mean_of),
            "mean_rejected_logp" => mean(&|i| mean_of(n + i)),
            "log_odds_ratio" => {
                let odds = |row: usize| bounds.odds(Dual::constant(mean_of(row)));
                mean(&|i| (odds(i) - odds(n + i)).ln_sigmoid().value)
            }
            "grad_logits" => {
                let time = self.tokens[0].len();
                let vocab = self.log_softmax[0][0].len();
                let (row, t, word) = (
                    index / (time * vocab),
                    index / vocab % time + 1,
                    index % vocab,
                );
                if t == time {
                    return Some(0.0);
                }
                let mut slope = 0.0;
                if self.counted[row][t] {
                    slope += self.rows.slope(formula, bounds, row) / n as f64;
                }
                if row < n && self.nll_counted[row][t] {
                    slope -= self.nll_weight / self.nll().1;
                }
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "an id is a small whole number"
                )]
                let is_token = self.tokens[row][t] as usize == word;
                slope * (f64::from(is_token) - self.log_softmax[row][t - 1][word].exp())
            }
            _ => return None,
        })
    }
}

/// What `key[index]` may be where it is not the peer's number, each with its reason: the limit where
/// that one is not finite, and what is held where the formula is not.
pub fn limits(case: &Case, key: &str, index: usize) -> Vec<(Difference, f64)> {
    if case.input["kind"] == "logits" {
        return mean_of_nothing(case, key, index).into_iter().collect();
    }
    let Some(formula) = formula(case) else {
        return Vec::new();
    };
    let value = |bounds| value(case, &formula, bounds, key, index);
    let (free, held) = (value(Bounds::None), value(Bounds::Held));
    let reason = if case.loss.starts_with("orpo") {
        Difference::HeldOdds
    } else {
        Difference::HeldExponent
    };
    let held = held.filter(|held| free != Some(*held)).map(|x| (reason, x));
    let free = free.map(|x| (Difference::Limit, x));
    let both = [free, held].into_iter().flatten();
    both.filter(|(_, x)| x.is_finite()).collect()
}

/// A row without labels has a mean of 0.
fn mean_of_nothing(case: &Case, key: &str, index: usize) -> Option<(Difference, f64)> {
    let row = case.input["labels"].get(index)?;
    let nothing = all_numbers(row).iter().skip(1).all(|&id| id < 0.0);
    (key == "mean" && nothing).then_some((Difference::Limit, 0.0))
}

fn value(case: &Case, formula: &Formula, bounds: Bounds, key: &str, index: usize) -> Option<f64> {
    let kind = case.input["kind"].as_str()?;
    if kind == "pair_logits" {
        return OfLogits::of(case)?.value(formula, bounds, key, index);
    }
    // Log-probs of tokens are sums only where nothing is done to them.
    if ["ld_alpha", "use_weighting"]
        .into_iter()
        .any(|x| case.has(x))
    {
        return None;
    }
    let mut rows = Rows::of(case.input)?;
    if case.has("reference_free") {
        rows.references.fill(0.0);
    }
    let n = rows.pairs();
    let scale = if case.mode == "per_example" {
        1.0
    } else {
        n as f64
    };
    let slope = |row: usize| rows.slope(formula, bounds, row) / scale;
    match key {
        "losses" => Some(rows.loss(formula, bounds, index, None).value),
        "loss" => Some(rows.mean_loss(formula, bounds)),
        "grad_chosen" => Some(slope(index)),
        "grad_rejected" => Some(slope(n + index)),
        "grad_tokens" => {
            let ends = rows.lengths.iter().scan(0.0, |end, length| {
                *end += length;
                Some(*end)
            });
            let row = ends.filter(|end| *end <= index as f64).count();
            Some(slope(row))
        }
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
