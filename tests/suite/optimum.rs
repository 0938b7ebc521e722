//! What a paper says of the minimum of its loss, on a world that is solved by brute force: a prompt,
//! three completions of one word, and every pair of them as often as people prefer it so.
//!
//! The policy is a softmax of logits, or free numbers where the paper leaves the normaliser out. It is
//! optimised to convergence on the expected loss of the crate's objective, by Newton's method in f64,
//! and then compared with the policy that the paper claims. Where the claim is that this policy
//! maximises something, the maximum is searched as well, without the loss and without a closed form.
//!
//! What is claimed comes from the papers' statements, and shares nothing with the formulas of
//! `subjects.rs`: a wrong sign or factor that both have ends here.

use std::f64::consts::LN_2;

use burn::tensor::{Bool, Int, Tensor};
use burn_preference::batch::{Scored, WithValue, optimal_values};
use burn_preference::log_probs::{Discrepancy, TokenDiscrepancy};
use burn_preference::{
    Advantage, AstarPoLossConfig, BcoLossConfig, BradleyTerryLossConfig,
    BradleyTerryTiesLossConfig, ChipoLossConfig, CpoLossConfig, DavidsonLossConfig, Demonstrations,
    Divergence, DpoLossConfig, DroLossConfig, ExoListLossConfig, ExoPairLossConfig, GapDistance,
    GpoLossConfig, GroupedReward, GrpoLossConfig, HdpoLossConfig, HingeLossConfig,
    InfoNcaLossConfig, IpoLossConfig, KlEstimator, KtoLossConfig, LabelNoise, Link, LossOutput,
    NcaListLossConfig, NcaLossConfig, NllNormalization, NpoLossConfig, Objective, Pair,
    PlackettLuceLossConfig, QrpoLossConfig, Ranked, RaoKupperLossConfig, RdpoLossConfig,
    RebelLossConfig, ReferencedPair, RegressionUnit, RelativeLogProbs, RewardPair,
    RewardRankingLossConfig, RpoLossConfig, Samples, SdpoLossConfig, SequenceLogProbs,
    SftLossConfig, SppoLossConfig, TdpoLossConfig, TieModel, TokenLogProbs, TokenNormalization,
    TokenWeighting, Unpaired, WithBaseline, WithPreference, WithScores, WithSequenceKl, WithShift,
    WithTies, batch::Rewards,
};

use crate::scalar::{log_softmax, logsumexp, sigmoid, softmax};
use crate::support::{ZipEqual, assert_close, bools, f64s, ints, leaf, sequence, to_vec};

/// What is claimed of an objective, in words, and the check of it.
pub type Statement = (&'static str, fn());

/// Of every objective, what its paper claims of the minimum, or of the loss as a whole; nothing where
/// the paper has no such statement that we know of. docs/checked.md is made of it.
#[rustfmt::skip]
pub const STATEMENTS: &[(&str, &[Statement])] = &[
    ("DpoLoss", &[
        ("π ∝ π°·e^(r/β), the maximum of E[r] − β·KL(π ‖ π°), under Bradley–Terry", dpo),
        ("the same from win probabilities", soft_labels),
        ("the same from labels of which a share ε is flipped (robust)", robust),
        ("Δ = logit(1 − ε)/β of a pair with one label (cDPO)", conservative),
        ("the maximum of E[r] − β·D_f(π ‖ π°) for every f (f-DPO)", f_dpo),
    ]),
    ("IpoLoss", &[("π ∝ π°·e^(P(y ≻ μ)/τ), the maximum of E[P] − τ·KL(π ‖ π°), for any P, cycles included", ipo)]),
    ("HingeLoss", &[("h is 1 or −1, as the majority has it", hinge)]),
    ("GpoLoss", &[("h has the sign of P − ½, and is ½·logit P (exponential), 2P − 1 (squared hinge), logit P (Savage)", gpo)]),
    ("DiscopopLoss", &[]),
    ("ExoPairLoss", &[("Δ = logit(1 − ε)/β of a pair", exo_pair)]),
    ("NcaLoss", &[("βρ = r − ln Z, the absolute reward, for two completions", nca_pair)]),
    ("BcoLoss", &[("a bound: its loss is above DPO's, for every δ", bco_bound)]),
    ("SppoLoss", &[("ρ = (P(y ≻ π°) − ½)/β, so π ∝ π°·e^(P/β)", sppo)]),
    ("ApoZeroLoss", &[]),
    ("ApoDownLoss", &[]),
    ("DpopLoss", &[]),
    ("RdpoLoss", &[("the maximum of E[r − α·length] − β·KL(π ‖ π°)", rdpo)]),
    ("CalDpoLoss", &[]),
    ("AotLoss", &[]),
    ("DpoShiftLoss", &[]),
    ("HdpoLoss", &[("the maximum of E[r] + αβ·H(π) + β·E[ln π°]", hdpo)]),
    ("ChipoLoss", &[("the maximum of E[r] − β·(χ² + KL), with the margin bounded or not", chipo)]),
    ("BetaDpoLoss", &[]),
    ("TdpoLoss", &[("α = 1: the loss is the entropy of Bradley–Terry's labels where π ∝ π°·e^(Q/β) after every prefix", tdpo)]),
    ("RpoLoss", &[("π ∝ π°·e^(ηs/β), for every distance", rpo)]),
    ("RebelLoss", &[("π ∝ π°·e^(ηs), a step of mirror descent", rebel)]),
    ("RaoKupperLoss", &[("π ∝ π°·e^(r/β) from wins and ties", rao_kupper)]),
    ("DavidsonLoss", &[("π ∝ π°·e^(r/β) from wins and ties", davidson)]),
    ("SimpoLoss", &[]),
    ("CpoLoss", &[("π ∝ e^(r/β) without the NLL: DPO with a uniform reference", cpo)]),
    ("AlphaPoLoss", &[]),
    ("OrpoLoss", &[]),
    ("SlicHfLoss", &[]),
    ("SimperLoss", &[]),
    ("AsftLoss", &[]),
    ("TpoLoss", &[]),
    ("SftLoss", &[
        ("π is the distribution of the demonstrations", sft),
        ("DFT: the gradient is that of −E π(y), whose minimum is the most frequent completion for certain", dft),
    ]),
    ("GrpoLoss", &[
        ("r minus the mean of the others: the gradient is that of −E[r] where π = μ; r − r̄ gives (n − 1)/n of it", grpo),
        ("the weighted k3 has the gradient of KL(π ‖ π°), whatever the sampler; k3 that of KL(π° ‖ π) where π = μ", grpo_kl),
    ]),
    ("KtoLoss", &[("contradictory labels: the majority's completion for certain, where DPO may take the minority's", kto)]),
    ("NpoLoss", &[("a limit: gradient ascent as β → 0", npo_limit)]),
    ("SimnpoLoss", &[]),
    ("DroLoss", &[("V = τ·ln E e^(r/τ) and π ∝ π°·e^(r/τ), of single completions", dro)]),
    ("AstarPoLoss", &[("π ∝ π°·e^(r/β₂) with V* of β₁ = β₂", astar_po)]),
    ("QrpoLoss", &[("Σ π = 1 at π = π°·e^(R_q/β)/Z, without a normaliser", qrpo)]),
    ("PlackettLuceLoss", &[("π ∝ π°·e^(r/β) under Plackett–Luce", plackett_luce)]),
    ("SdpoLoss", &[("π ∝ π°·e^(r/β) where one of a list is chosen as Plackett and Luce have it", sdpo)]),
    ("LipoLoss", &[]),
    ("InfoNcaLoss", &[("π ∝ π°·e^(s/(αβ)), whatever the lists", info_nca)]),
    ("NcaListLoss", &[("βρ = s/α − ln Z, the absolute reward", nca_list)]),
    ("ExoListLoss", &[("π ∝ π°·e^(s/(β_r·β)), whatever the lists", exo_list)]),
    ("RrhfLoss", &[]),
    ("ProLoss", &[]),
    ("BradleyTerryLoss", &[("r_w − r_l = logit P(w ≻ l), and Σ r = 0 with centring", reward_model)]),
    ("BradleyTerryTiesLoss", &[("r_w − r_l is the true one, from wins and ties of either model", rewards_of_ties)]),
    ("RewardRankingLoss", &[("r_i − r_j is the true one under Plackett–Luce", rewards_of_orders)]),
];

#[test]
fn every_statement_holds() {
    let mut wrong = Vec::new();
    for (objective, statements) in STATEMENTS {
        for (statement, check) in *statements {
            println!("{objective}: {statement}");
            if std::panic::catch_unwind(check).is_err() {
                wrong.push(format!("{objective}: {statement}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Of probabilities, and of log-ratios.
const TOLERANCE: f64 = 1e-8;

const BETA: f64 = 0.7;
const REWARDS: [f64; 3] = [1.0, -0.4, 0.3];
/// The scores of lists, whose temperature is not 1.
const TEMPERATURE: f64 = 0.6;
const NOISE: f64 = 0.2;

fn reference() -> Vec<f64> {
    [0.5_f64, 0.2, 0.3].map(f64::ln).to_vec()
}

fn uniform(n: usize) -> Vec<f64> {
    vec![-(n as f64).ln(); n]
}

/// log π of π ∝ e^(base + tilt).
fn tilted(base: &[f64], tilt: impl Fn(usize) -> f64) -> Vec<f64> {
    let logits = base.iter().enumerate().map(|(i, x)| x + tilt(i));
    log_softmax(&logits.collect::<Vec<_>>())
}

/// P(i ≻ j) of Bradley and Terry.
fn bradley_terry(i: usize, j: usize) -> f64 {
    sigmoid(REWARDS[i] - REWARDS[j])
}

/// How the policy's log-probabilities come from the numbers that are optimised.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Policy {
    /// Logits, through the crate's own log-probs: Σ π = 1.
    Softmax,
    /// Free: the paper leaves the normaliser out.
    Free,
}

impl Policy {
    /// ln π of every completion, `[n]`.
    fn log_probs(self, numbers: &Tensor<1>) -> Tensor<1> {
        let [n] = numbers.dims();
        if self == Self::Free {
            return numbers.clone();
        }
        // A row per completion: the prompt, then the word; all rows have the same logits.
        let logits = numbers.clone().reshape([1, 1, n]).expand([n, 2, n]);
        let words: Vec<usize> = (0..n).flat_map(|i| [0, i]).collect();
        let tokens: Tensor<2, Int> = ints(&words).reshape([n, 2]);
        let mask: Tensor<2, Bool> = bools(&[false, true].repeat(n)).reshape([n, 2]);
        let tokens = TokenLogProbs::from_output(logits, tokens, mask).unwrap();
        tokens.sequence().sum()
    }

    /// Where `loss` of the log-probabilities is least: the log-probabilities there.
    fn minimum(self, start: &[f64], loss: impl Fn(Tensor<1>) -> Tensor<1>) -> Vec<f64> {
        let loss = |numbers: Tensor<1>| loss(self.log_probs(&numbers));
        let numbers = least(start, self == Self::Softmax, loss);
        to_vec(self.log_probs(&f64s(&numbers)))
    }
}

/// The numbers at which a loss is least. `shifted`: a constant on all of them changes nothing.
fn least(start: &[f64], shifted: bool, loss: impl Fn(Tensor<1>) -> Tensor<1>) -> Vec<f64> {
    newton(start, shifted, |numbers| {
        let leaf = leaf(numbers);
        let loss = loss(leaf.clone());
        let grad = to_vec(leaf.grad(&loss.backward()).unwrap());
        (to_vec(loss)[0], grad)
    })
}

/// The minimum of a function that knows its gradient. `shifted`: a constant on all numbers changes
/// nothing.
fn newton(start: &[f64], shifted: bool, at: impl Fn(&[f64]) -> (f64, Vec<f64>)) -> Vec<f64> {
    let n = start.len();
    let size = |g: &[f64]| g.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let moved =
        |x: &[f64], step: &[f64]| -> Vec<f64> { x.iter().zip(step).map(|(x, s)| x + s).collect() };
    let mut x = start.to_vec();
    let (mut value, mut grad) = at(&x);
    for _ in 0..200 {
        if size(&grad) < 1e-13 {
            break;
        }
        let h = 1e-4;
        let columns: Vec<Vec<f64>> = (0..n)
            .map(|k| {
                let mut step = vec![0.0; n];
                step[k] = h;
                let above = at(&moved(&x, &step)).1;
                step[k] = -h;
                let below = at(&moved(&x, &step)).1;
                above
                    .iter()
                    .zip(below)
                    .map(|(a, b)| (a - b) / (2.0 * h))
                    .collect()
            })
            .collect();
        let gauge = if shifted { 1.0 / n as f64 } else { 0.0 };
        let scale = columns
            .iter()
            .flatten()
            .fold(1e-12, |m: f64, x| m.max(x.abs()));
        // A step of Newton, or a shorter one towards steepest descent, that goes down.
        let accepted = (0..40).find_map(|attempt| {
            let damping = if attempt == 0 {
                0.0
            } else {
                scale * 10_f64.powf(0.5 * f64::from(attempt) - 6.0)
            };
            let matrix = (0..n).map(|i| {
                let row = (0..n).map(|j| {
                    let own = if i == j { damping } else { 0.0 };
                    0.5 * (columns[i][j] + columns[j][i]) + scale * gauge + own
                });
                row.collect()
            });
            let step = solve(matrix.collect(), grad.iter().map(|g| -g).collect())?;
            let next = moved(&x, &step);
            let (below, slope) = at(&next);
            let closer = size(&slope) < size(&grad) && below <= value + 1e-14 * value.abs();
            (below < value || closer).then_some((next, below, slope))
        });
        let Some(next) = accepted else { break };
        (x, value, grad) = next;
    }
    assert!(size(&grad) < 1e-9, "no minimum: the gradient is {grad:?}");
    x
}

/// x of A·x = b; none where A is singular.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let n = b.len();
    for k in 0..n {
        let pivot = (k..n).max_by(|&i, &j| a[i][k].abs().total_cmp(&a[j][k].abs()))?;
        a.swap(k, pivot);
        b.swap(k, pivot);
        if a[k][k].abs() < 1e-300 {
            return None;
        }
        for i in 0..n {
            if i == k {
                continue;
            }
            let factor = a[i][k] / a[k][k];
            let pivot = a[k].clone();
            for (x, p) in a[i].iter_mut().zip(pivot) {
                *x -= factor * p;
            }
            b[i] -= factor * b[k];
        }
    }
    let x: Vec<f64> = (0..n).map(|i| b[i] / a[i][i]).collect();
    x.iter().all(|x| x.is_finite()).then_some(x)
}

/// The policy with the largest value, searched with nothing but values: its log-probabilities.
fn best(value: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let of = |logits: &[f64]| -value(&softmax(logits));
    let at = |logits: &[f64]| {
        let slope = |k: usize| {
            let h = 1e-3;
            let f = |steps: f64| {
                let mut moved = logits.to_vec();
                moved[k] += steps * h;
                of(&moved)
            };
            (f(-2.0) - 8.0 * f(-1.0) + 8.0 * f(1.0) - f(2.0)) / (12.0 * h)
        };
        (of(logits), (0..logits.len()).map(slope).collect())
    };
    log_softmax(&newton(&reference(), true, at))
}

fn mean_of(pi: &[f64], values: &[f64]) -> f64 {
    pi.iter().zip(values).map(|(p, v)| p * v).sum()
}

/// Σ π ln(π/π°).
fn kl(pi: &[f64], reference: &[f64]) -> f64 {
    pi.iter()
        .zip(reference)
        .map(|(p, r)| p * (p.ln() - r))
        .sum()
}

/// E[r] − β·KL(π ‖ π°).
fn regularized(pi: &[f64], rewards: &[f64]) -> f64 {
    mean_of(pi, rewards) - BETA * kl(pi, &reference())
}

/// Which completion of a pair is chosen, which rejected, and how often.
#[derive(Debug, Clone)]
struct Comparisons {
    chosen: Vec<usize>,
    rejected: Vec<usize>,
    weights: Vec<f64>,
    reference: Vec<f64>,
    lengths: Vec<usize>,
}

impl Comparisons {
    fn new(reference: Vec<f64>, pairs: impl IntoIterator<Item = (usize, usize, f64)>) -> Self {
        let mut all = Self {
            chosen: Vec::new(),
            rejected: Vec::new(),
            weights: Vec::new(),
            lengths: vec![1; reference.len()],
            reference,
        };
        for (chosen, rejected, weight) in pairs {
            all.chosen.push(chosen);
            all.rejected.push(rejected);
            all.weights.push(weight);
        }
        all
    }

    /// Every pair of different completions, as often as P says; pairs need not be equally frequent.
    fn preferred(p: impl Fn(usize, usize) -> f64) -> Self {
        let pairs = ordered(3).map(|(i, j)| (i, j, p(i, j) * frequency(i, j)));
        Self::new(reference(), pairs)
    }

    /// Each once, the first before the second: what is chosen does not matter.
    fn unordered() -> Self {
        let pairs = ordered(3).filter(|(i, j)| i < j);
        Self::new(reference(), pairs.map(|(i, j)| (i, j, frequency(i, j))))
    }

    fn column(&self, of: impl Fn(usize, usize) -> f64) -> Tensor<1> {
        let pairs = self.chosen.iter().zip(&self.rejected);
        f64s(&pairs.map(|(&i, &j)| of(i, j)).collect::<Vec<_>>())
    }

    fn batch(&self, log_probs: &Tensor<1>) -> ReferencedPair {
        let side = |which: &[usize]| {
            let lengths: Vec<usize> = which.iter().map(|&i| self.lengths[i]).collect();
            let reference: Vec<f64> = which.iter().map(|&i| self.reference[i]).collect();
            let policy = sequence(log_probs.clone().select(0, ints(which)), &lengths);
            policy
                .relative_to(sequence(f64s(&reference), &lengths))
                .unwrap()
        };
        Pair::new(side(&self.chosen), side(&self.rejected)).unwrap()
    }

    fn expected<R: Rewards>(&self, output: &LossOutput<R>) -> Tensor<1> {
        output.weighted_mean(f64s(&self.weights)).unwrap()
    }

    /// The policy at the minimum of `forward`, from the reference on.
    fn minimum<R: Rewards>(
        &self,
        policy: Policy,
        forward: impl Fn(ReferencedPair) -> LossOutput<R>,
    ) -> Vec<f64> {
        policy.minimum(&self.reference, |log_probs| {
            self.expected(&forward(self.batch(&log_probs)))
        })
    }

    /// The softmax policy at the minimum of an objective.
    fn optimum(&self, objective: impl Objective<ReferencedPair>) -> Vec<f64> {
        self.minimum(Policy::Softmax, |batch| objective.forward(batch))
    }
}

fn ordered(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n * n)
        .map(move |k| (k / n, k % n))
        .filter(|(i, j)| i != j)
}

/// How often a pair is asked about, whichever wins.
fn frequency(i: usize, j: usize) -> f64 {
    [1.0, 0.3, 2.0][i + j - 1]
}

#[track_caller]
fn assert_policy(ours: &[f64], claimed: &[f64], what: &str) {
    let exp = |x: &[f64]| x.iter().map(|x| x.exp()).collect::<Vec<_>>();
    assert_close(&exp(ours), &exp(claimed), TOLERANCE, what);
}

/// π ∝ π°·e^(r/β): Eq. 4 of 2305.18290, and of all who keep its policy.
fn claimed() -> Vec<f64> {
    tilted(&reference(), |i| REWARDS[i] / BETA)
}

/// Rafailov et al., 2305.18290: Eq. 3 is what is maximised, Eq. 4 the policy, and under Eq. 1 the
/// minimum of Eq. 7 is that policy.
fn dpo() {
    let ours =
        Comparisons::preferred(bradley_terry).optimum(DpoLossConfig::new().with_beta(BETA).init());
    assert_policy(&ours, &claimed(), "Eq. 4");
    assert_policy(&ours, &best(|pi| regularized(pi, &REWARDS)), "Eq. 3");
}

/// Each pair once, with the probability that the first wins.
fn soft_labels() {
    let dpo = DpoLossConfig::new().with_beta(BETA).init();
    let pairs = Comparisons::unordered();
    let ours = pairs.minimum(Policy::Softmax, |batch| {
        let p = pairs.column(bradley_terry);
        dpo.forward(WithPreference::new(batch, p).unwrap())
    });
    assert_policy(&ours, &claimed(), "from win probabilities");
}

/// Ray Chowdhury et al., 2403.00409: the loss of flipped labels is on average that of clean ones, so
/// that its minimum is theirs.
fn robust() {
    let flipped = |i, j| (1.0 - NOISE) * bradley_terry(i, j) + NOISE * bradley_terry(j, i);
    let robust = DpoLossConfig::new().with_beta(BETA);
    let robust = robust.with_label_noise(LabelNoise::Robust(NOISE));
    let ours = Comparisons::preferred(flipped).optimum(robust.init());
    assert_policy(&ours, &claimed(), "robust");
}

/// Mitchell's note: of a pair that is labelled one way, the policy's own probability of the label is
/// σ(βΔ) = 1 − ε at the minimum.
fn conservative() {
    let cdpo = DpoLossConfig::new().with_beta(BETA);
    let cdpo = cdpo.with_label_noise(LabelNoise::Conservative(NOISE));
    assert_smoothed(cdpo.init());
}

/// Of one pair, the minimum is where σ(βΔ) = 1 − ε.
#[track_caller]
fn assert_smoothed(objective: impl Objective<ReferencedPair>) {
    let reference = vec![0.3_f64.ln(), 0.7_f64.ln()];
    let ours = Comparisons::new(reference.clone(), [(0, 1, 1.0)]).optimum(objective);
    let delta = (ours[0] - reference[0]) - (ours[1] - reference[1]);
    let probability = sigmoid(BETA * delta);
    assert_close(&[probability], &[1.0 - NOISE], TOLERANCE, "σ(βΔ)");
}

/// Σ π°·f(π/π°).
fn f_divergence(pi: &[f64], f: impl Fn(f64) -> f64) -> f64 {
    let reference = reference();
    let terms = pi.iter().zip(&reference);
    terms.map(|(p, r)| r.exp() * f(p / r.exp())).sum()
}

/// Wang et al., 2309.16240: the minimum is the policy that maximises E[r] − β·D_f(π ‖ π°), for each f
/// that it names, and for χPO's.
fn f_dpo() {
    let alpha = 0.4_f64;
    let alphas =
        move |u: f64| (u.powf(1.0 - alpha) - (1.0 - alpha) * u - alpha) / (alpha * (alpha - 1.0));
    let shannon = |u: f64| u * u.ln() - (u + 1.0) * (0.5 * (u + 1.0)).ln();
    let all: [(Divergence, Box<dyn Fn(f64) -> f64>); 5] = [
        (Divergence::ReverseKl, Box::new(|u: f64| u * u.ln())),
        (Divergence::ForwardKl, Box::new(|u: f64| -u.ln())),
        (Divergence::JensenShannon, Box::new(shannon)),
        (Divergence::Alpha(alpha), Box::new(alphas)),
        (Divergence::ChiSquared, Box::new(chi_squared)),
    ];
    for (divergence, f) in all {
        let dpo = DpoLossConfig::new()
            .with_beta(BETA)
            .with_divergence(divergence);
        let ours = Comparisons::preferred(bradley_terry).optimum(dpo.init());
        let best = best(|pi| mean_of(pi, &REWARDS) - BETA * f_divergence(pi, &f));
        assert_policy(&ours, &best, &format!("{divergence:?}"));
    }
}

/// ½(u − 1)² + u·ln u: χ² mixed with KL.
fn chi_squared(u: f64) -> f64 {
    0.5 * (u - 1.0).powi(2) + u * u.ln()
}

/// Huang et al., 2407.13399: E[r] − β·(χ² + KL); margins of rewards inside ±R are not clipped.
fn chipo() {
    let best = best(|pi| mean_of(pi, &REWARDS) - BETA * f_divergence(pi, chi_squared));
    for bound in [None, Some(1.0)] {
        let chipo = ChipoLossConfig::new()
            .with_beta(BETA)
            .with_reward_bound(bound);
        let ours = Comparisons::preferred(bradley_terry).optimum(chipo.init());
        assert_policy(&ours, &best, "χPO");
    }
}

/// No reward has these: 0 beats 1, 1 beats 2, 2 beats 0.
fn cyclic(i: usize, j: usize) -> f64 {
    const P: [[f64; 3]; 3] = [[0.5, 0.9, 0.35], [0.1, 0.5, 0.8], [0.65, 0.2, 0.5]];
    P[i][j]
}

/// E_{y' ∼ μ} P(y ≻ y') of every completion.
fn win_rates(mu: &[f64]) -> Vec<f64> {
    let rate = |i| {
        mu.iter()
            .enumerate()
            .map(|(j, m)| m.exp() * cyclic(i, j))
            .sum()
    };
    (0..3).map(rate).collect()
}

/// Azar et al., 2310.12036, with Ψ the identity: what is maximised is E[P(y ≻ μ)] − τ·KL(π ‖ π°). Its
/// maximum is π ∝ π°·e^(P(y ≻ μ)/τ), and the minimum of Eq. 17 over pairs from μ. μ is not π° here.
fn ipo() {
    let mu = [0.2_f64, 0.5, 0.3].map(f64::ln);
    let pairs = ordered(3).map(|(i, j)| (i, j, (mu[i] + mu[j]).exp() * cyclic(i, j)));
    let pairs = Comparisons::new(reference(), pairs);
    let ours = pairs.optimum(IpoLossConfig::paper().with_tau(BETA).init());
    let rates = win_rates(&mu);
    let claimed = tilted(&reference(), |i| rates[i] / BETA);
    assert_policy(&ours, &claimed, "the closed form");
    assert_policy(&ours, &best(|pi| regularized(pi, &rates)), "the maximum");
}

/// Tang et al., 2402.05749: a link whose slope at 0 is negative is calibrated, so h has the sign of
/// P − ½. Where: ½·logit P for e^(−h) (Friedman et al. 2000), 2P − 1 for the squared hinge (Zhang 2004),
/// logit P for Savage's loss (Masnadi-Shirazi and Vasconcelos 2008).
fn gpo() {
    let logit = |p: f64| (p / (1.0 - p)).ln();
    let links: [(Link, &dyn Fn(f64) -> f64); 3] = [
        (Link::Exponential, &|p| 0.5 * logit(p)),
        (Link::SquaredHinge, &|p| 2.0 * p - 1.0),
        (Link::Savage, &logit),
    ];
    let reference = vec![0.3_f64.ln(), 0.7_f64.ln()];
    for (link, claimed) in links {
        for p in [0.15, 0.45, 0.7, 0.9] {
            let gpo = GpoLossConfig::new().with_beta(BETA).with_link(link);
            let pairs = [(0, 1, p), (1, 0, 1.0 - p)];
            let ours = Comparisons::new(reference.clone(), pairs).optimum(gpo.init());
            let h = BETA * ((ours[0] - reference[0]) - (ours[1] - reference[1]));
            assert!((h > 0.0) == (p > 0.5), "{link:?} at {p}: {h}");
            assert_close(&[h], &[claimed(p)], TOLERANCE, "h");
        }
    }
}

/// The hinge is calibrated as well (Zhang 2004): its minimum takes the side of the majority, at the
/// kink, where no gradient finds it.
fn hinge() {
    let reference = vec![0.3_f64.ln(), 0.7_f64.ln()];
    let hinge = HingeLossConfig::new().with_beta(BETA).init();
    for (p, claimed) in [(0.15, -1.0), (0.45, -1.0), (0.7, 1.0)] {
        let pairs = Comparisons::new(reference.clone(), [(0, 1, p), (1, 0, 1.0 - p)]);
        let loss = |h: f64| {
            let log_probs = f64s(&[reference[0] + h / BETA, reference[1]]);
            to_vec(pairs.expected(&hinge.forward(pairs.batch(&log_probs))))[0]
        };
        for step in 1..40 {
            let away = 0.1 * f64::from(step);
            assert!(loss(claimed) < loss(claimed - away), "{p}: below");
            assert!(loss(claimed) < loss(claimed + away), "{p}: above");
        }
    }
}

/// Zeng et al., 2404.11999: what is maximised after every prefix s is E_π[A(s, ·)] − β·KL(π ‖ π°), A the
/// advantage of π°, so that π(z | s) ∝ π°(z | s)·e^(Q(s, z)/β), and then Bradley and Terry's probability
/// is σ(βΔ − β(K_l − K_w)): with α = 1 every pair's loss is −ln of it, and below their mean, the
/// entropy, comes no policy. Values only: of the gradient, TDPO₂ stops the one through K_w, and
/// β·P·(1 − P)·∂(K_w + K_l) of each pair is left there.
///
/// Completions of two tokens, nine of them; π has four prefixes with three words each.
fn tdpo() {
    let numbers = |seed: f64, n: usize| -> Vec<f64> {
        (0..n).map(|k| (seed * (k as f64 + 1.0)).sin()).collect()
    };
    let reference: Vec<Vec<f64>> = numbers(1.3, 12).chunks(3).map(log_softmax).collect();
    // The reward of first word a and second word b, in the row 3a + b; and Q of π° by the tree.
    let rewards = numbers(2.1, 9);
    let value = |node: usize, q: &[f64]| -> f64 {
        reference[node]
            .iter()
            .zip(q)
            .map(|(p, q)| p.exp() * q)
            .sum()
    };
    let second: Vec<&[f64]> = rewards.chunks(3).collect();
    let first: Vec<f64> = (0..3).map(|a| value(1 + a, second[a])).collect();
    let policy: Vec<f64> = (0..4)
        .flat_map(|node| {
            let q = if node == 0 {
                &first[..]
            } else {
                second[node - 1]
            };
            tilted(&reference[node], |z| q[z] / BETA)
        })
        .collect();

    // Rows of a prompt and two words; the last position predicts nothing.
    let (mut words, mut nodes) = (Vec::new(), Vec::new());
    for row in 0..9 {
        words.extend([0, row / 3, row % 3]);
        nodes.extend([0, 1 + row / 3, 0]);
    }
    let tokens: Tensor<2, Int> = ints(&words).reshape([9, 3]);
    let mask: Tensor<2, Bool> = bools(&[false, true, true].repeat(9)).reshape([9, 3]);
    let logits = |tree: Tensor<2>| tree.select(0, ints(&nodes)).reshape([9, 3, 3]);
    let theirs = logits(f64s(&reference.concat()).reshape([4, 3]));
    let ours = logits(f64s(&policy).reshape([4, 3]));
    let log_probs = |logits: Tensor<3>| {
        TokenLogProbs::from_output(logits, tokens.clone(), mask.clone())
            .unwrap()
            .sequence()
    };
    let (forward, mask_of) = (Discrepancy::ForwardKl, mask.clone());
    let kl = TokenDiscrepancy::from_outputs(forward, ours.clone(), theirs.clone(), mask_of);
    let kl = kl.unwrap().sums();
    let relative = [log_probs(ours), log_probs(theirs)];

    let (chosen, rejected): (Vec<usize>, Vec<usize>) = ordered(9).unzip();
    let side = |which: &[usize]| {
        let [policy, reference] = relative
            .each_ref()
            .map(|y| sequence(y.sum().select(0, ints(which)), &vec![2; which.len()]));
        policy.relative_to(reference).unwrap()
    };
    let batch = Pair::new(side(&chosen), side(&rejected)).unwrap();
    let of = |which: &[usize]| kl.clone().select(0, ints(which));
    let kl = Pair::new(of(&chosen), of(&rejected)).unwrap();
    let tdpo = TdpoLossConfig::new()
        .with_beta(BETA)
        .with_kl_weight(1.0)
        .init();
    let output = tdpo.forward(WithSequenceKl::new(batch, kl).unwrap());

    // −ln of the probability itself.
    let surprise = ordered(9).map(|(i, j)| -sigmoid(rewards[i] - rewards[j]).ln());
    let surprise: Vec<f64> = surprise.collect();
    assert_close(&to_vec(output.losses()), &surprise, TOLERANCE, "losses");
}

/// Ji et al., 2402.00856, Eq. 16: a KL is 0 where both sides are equal, σ(βΔ) = 1 − ε.
fn exo_pair() {
    let exo = ExoPairLossConfig::new().with_beta(BETA);
    assert_smoothed(exo.with_label_smoothing(NOISE).init());
}

/// Chen et al., 2402.05369: at the minimum of NCA βρ is r − ln Z, Z = E_μ[e^r]: not only differences
/// of rewards. With two completions, of which μ has each half the time, the label of a pair is
/// Bradley and Terry's.
fn nca_pair() {
    let rewards = [0.8_f64, -0.5];
    let p = sigmoid(rewards[0] - rewards[1]);
    let pairs = Comparisons::new(uniform(2), [(0, 1, p), (1, 0, 1.0 - p)]);
    let nca = NcaLossConfig::new().with_beta(BETA).init();
    let ours = pairs.minimum(Policy::Free, |batch| nca.forward(batch));
    let z = logsumexp(&rewards) - LN_2;
    let claimed = rewards.map(|r| (r - z) / BETA);
    let rho: Vec<f64> = ours.iter().map(|l| l + LN_2).collect();
    assert_close(&rho, &claimed, TOLERANCE, "ρ");
}

/// Jung et al., 2404.04656: σ(a)·σ(b) < σ(a + b), so the classifier's loss bounds DPO's from above.
fn bco_bound() {
    let rewards: Vec<f64> = (-6..=6).map(|k| 1.3 * f64::from(k)).collect();
    let pairs = rewards
        .iter()
        .flat_map(|w| rewards.iter().map(|l| (*w, *l)));
    let (chosen, rejected): (Vec<f64>, Vec<f64>) = pairs.unzip();
    let lengths = vec![1; chosen.len()];
    let nothing = sequence(f64s(&vec![0.0; chosen.len()]), &lengths);
    let side = |rho: &[f64]| {
        let policy = sequence(f64s(rho), &lengths);
        policy.relative_to(nothing.clone()).unwrap()
    };
    let batch: ReferencedPair = Pair::new(side(&chosen), side(&rejected)).unwrap();
    let dpo = to_vec(
        DpoLossConfig::new()
            .with_beta(1.0)
            .init()
            .forward(batch.clone())
            .losses(),
    );
    let bco = BcoLossConfig::new().with_beta(1.0).init();
    for delta in [-2.0, 0.0, 0.7] {
        let shifted = WithShift::new(batch.clone(), f64s(&[delta])).unwrap();
        let above = to_vec(bco.forward(shifted).losses());
        assert!(dpo.iter().zip_equal(above).all(|(dpo, bco)| bco > *dpo));
    }
}

/// Wu et al., 2405.00675: π_{t+1} ∝ π_t·e^(η·P(y ≻ π_t)), by a regression of ρ on
/// η·(P(y ≻ π_t) − ½) that takes ln Z for η/2. The normaliser is left out, so ρ is free; η = 1/β.
fn sppo() {
    let mu = reference();
    // Each pair once, a completion against itself included: half as often as two different ones.
    let pairs = (0..9).map(|k| (k / 3, k % 3)).filter(|(i, j)| i <= j);
    let pairs = pairs.map(|(i, j)| {
        let orders = if i == j { 1.0 } else { 2.0 };
        (i, j, orders * (mu[i] + mu[j]).exp())
    });
    let pairs = Comparisons::new(mu.clone(), pairs);
    let sppo = SppoLossConfig::new().with_beta(BETA).init();
    let ours = pairs.minimum(Policy::Free, |batch| {
        let p = pairs.column(cyclic);
        sppo.forward(WithPreference::new(batch, p).unwrap())
    });
    let rates = win_rates(&mu);
    let rho: Vec<f64> = ours.iter().zip(&mu).map(|(l, r)| l - r).collect();
    let claimed: Vec<f64> = rates.iter().map(|p| (p - 0.5) / BETA).collect();
    assert_close(&rho, &claimed, TOLERANCE, "ρ");
    assert_policy(
        &log_softmax(&ours),
        &tilted(&mu, |i| rates[i] / BETA),
        "the step",
    );
}

/// Park et al., 2403.19159: the reward that is maximised is r − α·length, and people judge by r.
fn rdpo() {
    let (cost, lengths) = (0.15, [1, 5, 3]);
    let mut pairs = Comparisons::preferred(bradley_terry);
    pairs.lengths = lengths.to_vec();
    let rdpo = RdpoLossConfig::new().with_beta(BETA).with_length_cost(cost);
    let paid: Vec<f64> = (0..3)
        .map(|i| REWARDS[i] - cost * lengths[i] as f64)
        .collect();
    let best = best(|pi| regularized(pi, &paid));
    assert_policy(&pairs.optimum(rdpo.init()), &best, "R-DPO");
}

/// Omura et al., 2411.07595: of KL(π ‖ π°) = −H(π) − E[ln π°], the entropy alone is weighed by α.
fn hdpo() {
    for alpha in [0.6, 1.4] {
        let hdpo = HdpoLossConfig::new(alpha).with_beta(BETA).init();
        let ours = Comparisons::preferred(bradley_terry).optimum(hdpo);
        let best = best(|pi| {
            let entropy = -pi.iter().map(|p| p * p.ln()).sum::<f64>();
            mean_of(pi, &REWARDS) + BETA * (alpha * entropy + mean_of(pi, &reference()))
        });
        assert_policy(&ours, &best, "H-DPO");
    }
}

/// 2406.11704: the margin of the rewards equals η times the gap of the scores.
fn rpo() {
    let eta = 1.7;
    let pairs = Comparisons::unordered();
    for distance in [
        GapDistance::BackwardKl,
        GapDistance::ForwardKl,
        GapDistance::Squared,
    ] {
        let rpo = RpoLossConfig::new().with_beta(BETA).with_score_scale(eta);
        let rpo = rpo.with_distance(distance).init();
        let ours = pairs.minimum(Policy::Softmax, |batch| rpo.forward(scored(&pairs, batch)));
        let claimed = tilted(&reference(), |i| eta * REWARDS[i] / BETA);
        assert_policy(&ours, &claimed, &format!("{distance:?}"));
    }
}

fn scored(pairs: &Comparisons, batch: ReferencedPair) -> WithScores<ReferencedPair> {
    let scores = Pair::new(
        pairs.column(|i, _| REWARDS[i]),
        pairs.column(|_, j| REWARDS[j]),
    );
    WithScores::new(batch, scores.unwrap()).unwrap()
}

/// Gao et al., 2404.16767: the regression is solved by π_{t+1} ∝ π_t·e^(ηr), a step of mirror descent.
fn rebel() {
    let eta = 1.7;
    let pairs = Comparisons::unordered();
    for unit in [RegressionUnit::LogRatio, RegressionUnit::Score] {
        let rebel = RebelLossConfig::new()
            .with_score_scale(eta)
            .with_unit(unit)
            .init();
        let ours = pairs.minimum(Policy::Softmax, |batch| {
            rebel.forward(scored(&pairs, batch))
        });
        assert_policy(&ours, &tilted(&reference(), |i| eta * REWARDS[i]), "REBEL");
    }
}

/// Pairs, how often each is compared with this outcome, and whether it is a tie, by the probability
/// of a win.
fn outcomes(wins: impl Fn(usize, usize) -> f64) -> (Vec<(usize, usize, f64)>, Vec<bool>) {
    let of_pair = |(i, j): (usize, usize)| {
        // A tie of both orders together.
        let tie = 0.5 * (1.0 - wins(i, j) - wins(j, i));
        let often = |share: f64| (i, j, frequency(i, j) * share);
        [(often(wins(i, j)), false), (often(tie), true)]
    };
    ordered(3).flat_map(of_pair).unzip()
}

/// The policy that is learned from them.
fn with_ties(
    wins: impl Fn(usize, usize) -> f64,
    forward: impl Fn(WithTies<ReferencedPair>) -> LossOutput<Pair<Tensor<1>>>,
) -> Vec<f64> {
    let (pairs, tied) = outcomes(wins);
    Comparisons::new(reference(), pairs).minimum(Policy::Softmax, |batch| {
        forward(WithTies::new(batch, bools(&tied)).unwrap())
    })
}

/// P(i ≻ j) = λ_i/(λ_i + ν·λ_j), λ = e^r, after Rao and Kupper (1967).
fn wins_rao_kupper(nu: f64) -> impl Fn(usize, usize) -> f64 {
    let lambda = REWARDS.map(f64::exp);
    move |i, j| lambda[i] / (lambda[i] + nu * lambda[j])
}

/// P(i ≻ j) = λ_i/(λ_i + λ_j + 2ν·√(λ_i·λ_j)), after Davidson (1970).
fn wins_davidson(nu: f64) -> impl Fn(usize, usize) -> f64 {
    let lambda = REWARDS.map(f64::exp);
    move |i, j| lambda[i] / (lambda[i] + lambda[j] + 2.0 * nu * (lambda[i] * lambda[j]).sqrt())
}

/// Chen et al., 2409.17431.
fn rao_kupper() {
    let nu = 2.5;
    let loss = RaoKupperLossConfig::new()
        .with_beta(BETA)
        .with_tie_factor(nu)
        .init();
    let ours = with_ties(wins_rao_kupper(nu), |batch| loss.forward(batch));
    assert_policy(&ours, &claimed(), "Rao and Kupper");
}

/// The same.
fn davidson() {
    let nu = 0.8;
    let loss = DavidsonLossConfig::new()
        .with_beta(BETA)
        .with_tie_factor(nu)
        .init();
    let ours = with_ties(wins_davidson(nu), |batch| loss.forward(batch));
    assert_policy(&ours, &claimed(), "Davidson");
}

/// Xu et al., 2401.08417: DPO whose reference is uniform, and an NLL, left out here.
fn cpo() {
    let cpo = CpoLossConfig::new()
        .with_beta(BETA)
        .with_sft_weight(0.0)
        .init();
    let pairs = Comparisons::preferred(bradley_terry);
    let ours = pairs.minimum(Policy::Softmax, |batch| cpo.forward(batch.policy()));
    assert_policy(&ours, &tilted(&uniform(3), |i| REWARDS[i] / BETA), "CPO");
}

/// Ethayarajh et al., 2402.01306, on contradictory preferences: y_a is preferred to y_b by a share p > ½ of the data, but
/// p^(1/β)·π°(y_a) < (1 − p)^(1/β)·π°(y_b). Then DPO's minimum prefers y_b, and KTO's takes y_a for
/// certain: its loss falls all the way there.
fn kto() {
    let (p, beta): (f64, f64) = (0.6, 0.5);
    let reference = vec![0.1_f64.ln(), 0.9_f64.ln()];
    let weighed = |p: f64, r: f64| p.powf(1.0 / beta) * r.exp();
    assert!(weighed(p, reference[0]) < weighed(1.0 - p, reference[1]));

    let pairs = Comparisons::new(reference.clone(), [(0, 1, p), (1, 0, 1.0 - p)]);
    let dpo = pairs.optimum(DpoLossConfig::new().with_beta(beta).init());
    assert!(dpo[0] < dpo[1], "DPO takes the minority's: {dpo:?}");

    let kto = KtoLossConfig::new().with_beta(beta).init();
    // y_a and y_b desirable, y_a and y_b undesirable.
    let (which, desirable) = ([0, 1, 0, 1], [true, true, false, false]);
    let weights = f64s(&[p, 1.0 - p, 1.0 - p, p]);
    for z0 in [0.0, 0.4] {
        let loss = |logit: f64| {
            let log_probs = Policy::Softmax.log_probs(&f64s(&[logit, 0.0]));
            let side = |x: Tensor<1>| sequence(x.select(0, ints(&which)), &[1; 4]);
            let relative = side(log_probs).relative_to(side(f64s(&reference))).unwrap();
            let batch = Unpaired::new(relative, bools(&desirable)).unwrap();
            let batch = WithBaseline::new(batch, f64s(&[z0])).unwrap();
            to_vec(kto.forward(batch).weighted_mean(weights.clone()).unwrap())[0]
        };
        let losses: Vec<f64> = (-24..=24).map(|k| loss(0.5 * f64::from(k))).collect();
        assert!(losses.is_sorted_by(|a, b| a > b), "{losses:?}");
    }
}

/// Zhang et al., 2404.05868: the loss without its constant (2/β)·ln 2 becomes E[ρ], whose descent is
/// gradient ascent on the NLL. What is left is β·ρ²/4.
fn npo_limit() {
    let rho = [-3.0, 0.2, 1.5];
    for beta in [1e-4, 1e-5] {
        let policy = leaf(&rho);
        let nothing = sequence(f64s(&[0.0; 3]), &[1; 3]);
        let relative = sequence(policy.clone(), &[1; 3])
            .relative_to(nothing)
            .unwrap();
        let output = NpoLossConfig::new()
            .with_beta(beta)
            .init()
            .forward(relative);
        let grad = to_vec(policy.grad(&output.sum().backward()).unwrap());
        for ((loss, slope), rho) in to_vec(output.losses()).into_iter().zip(grad).zip(rho) {
            let rest = beta * rho.powi(2) / 4.0;
            let left = loss - 2.0 * LN_2 / beta - rho;
            assert!((left - rest).abs() < 1e-9, "{left} {rest}");
            assert!((slope - 1.0).abs() < beta * rho.abs(), "{slope}");
        }
    }
}

/// Shares of three demonstrations of one prompt, one token each.
const SHARES: [f64; 3] = [0.5, 0.2, 0.3];

/// The completions of a policy as demonstrations.
fn demonstrations(log_probs: Tensor<1>) -> Demonstrations {
    let tokens = log_probs.reshape([3, 1]);
    let counted = tokens.clone().without_autodiff().is_nan().bool_not();
    Demonstrations::new(TokenLogProbs::new(tokens, counted).unwrap())
}

fn sft() {
    for normalization in [
        NllNormalization::Token,
        NllNormalization::Sequence,
        NllNormalization::Sum,
    ] {
        let sft = SftLossConfig::new()
            .with_normalization(normalization)
            .init();
        let found = Policy::Softmax.minimum(&uniform(3), |log_probs| {
            let output = sft.forward(demonstrations(log_probs));
            output.weighted_mean(f64s(&SHARES)).unwrap()
        });
        assert_close(&found, &SHARES.map(f64::ln), TOLERANCE, "ln π");
    }
}

/// The minimum is at the edge: the gradient is compared, everywhere inside.
fn dft() {
    let dft = SftLossConfig::new()
        .with_token_weighting(TokenWeighting::Probability)
        .init();
    for logits in [[0.0, 0.0, 0.0], [1.0, -2.0, 0.5], [-3.0, 4.0, 0.0]] {
        let gradient = |loss: &dyn Fn(Tensor<1>) -> Tensor<1>| {
            let leaf = leaf(&logits);
            let loss = loss(Policy::Softmax.log_probs(&leaf));
            to_vec(leaf.grad(&loss.backward()).unwrap())
        };
        let ours = gradient(&|log_probs| {
            let output = dft.forward(demonstrations(log_probs));
            output.weighted_mean(f64s(&SHARES)).unwrap()
        });
        let expected = gradient(&|log_probs| -(log_probs.exp() * f64s(&SHARES)).sum());
        assert_close(&ours, &expected, 1e-13, "gradient");
    }
}

/// Every group of two or three completions of one token, as often as the sampler draws it.
fn grpo() {
    let gradient = |logits: &[f64], loss: &dyn Fn(Tensor<1>) -> Tensor<1>| {
        let leaf = leaf(logits);
        let loss = loss(Policy::Softmax.log_probs(&leaf));
        to_vec(leaf.grad(&loss.backward()).unwrap())
    };
    for logits in [[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]] {
        let shares = log_softmax(&logits);
        let of_return = gradient(&logits, &|log_probs| {
            -(log_probs.exp() * f64s(&REWARDS)).sum()
        });
        for size in [2, 3_u32] {
            for (advantage, factor) in [
                (Advantage::LeaveOneOut, 1.0),
                (Advantage::Centered, f64::from(size - 1) / f64::from(size)),
            ] {
                let grpo = GrpoLossConfig::new()
                    .with_advantage(advantage)
                    .with_normalization(TokenNormalization::Sequence)
                    .init();
                let ours = gradient(&logits, &|log_probs| {
                    let groups = (0..3_usize.pow(size)).map(|group| {
                        (0..size)
                            .map(|k| group / 3_usize.pow(k) % 3)
                            .collect::<Vec<_>>()
                    });
                    let losses = groups.map(|group| {
                        let weight: f64 = group.iter().map(|i| shares[*i]).sum::<f64>().exp();
                        let rewards: Vec<f64> = group.iter().map(|i| REWARDS[*i]).collect();
                        let rewards =
                            GroupedReward::of_groups(&rewards, &vec![0; group.len()]).unwrap();
                        let drawn = log_probs.clone().select(0, ints(&group));
                        let sampler = drawn.clone().without_autodiff();
                        let batch = Samples::new(one_token(drawn), one_token(sampler), &rewards);
                        grpo.forward(batch.unwrap()).mean() * weight
                    });
                    losses.reduce(|a, b| a + b).unwrap()
                });
                let expected: Vec<f64> = of_return.iter().map(|g| factor * g).collect();
                assert_close(&ours, &expected, 1e-13, &format!("{advantage:?} of {size}"));
            }
        }
    }
}

/// Completions of one token.
fn one_token(log_probs: Tensor<1>) -> TokenLogProbs {
    let tokens = log_probs.unsqueeze_dim::<2>(1);
    let counted = tokens.clone().without_autodiff().is_nan().bool_not();
    TokenLogProbs::new(tokens, counted).unwrap()
}

/// All three completions, each as often as the sampler draws it, with rewards that say nothing.
fn grpo_kl() {
    let reference = reference();
    for logits in [[0.2, 0.0, -0.3], [1.0, -2.0, 0.5]] {
        for (kl, sampler) in [
            (KlEstimator::WeightedK3, log_softmax(&logits)),
            (KlEstimator::WeightedK3, log_softmax(&[0.3, 0.8, -0.5])),
            (KlEstimator::K3, log_softmax(&logits)),
        ] {
            let grpo = GrpoLossConfig::new()
                .with_beta(1.0)
                .with_kl(kl)
                .with_normalization(TokenNormalization::Sequence)
                .init();
            let policy = leaf(&logits);
            let log_probs = Policy::Softmax.log_probs(&policy);
            let rewards = GroupedReward::of_groups(&[0.0; 3], &[0; 3]).unwrap();
            let batch = Samples::new(one_token(log_probs), one_token(f64s(&sampler)), &rewards)
                .and_then(|batch| batch.relative_to(one_token(f64s(&reference))));
            let weights: Vec<f64> = sampler.iter().map(|x| x.exp()).collect();
            let loss = grpo.forward(batch.unwrap()).losses() * f64s(&weights);
            let ours = to_vec(policy.grad(&loss.sum().backward()).unwrap());
            let of_kl = leaf(&logits);
            let log_probs = Policy::Softmax.log_probs(&of_kl);
            let divergence = if kl == KlEstimator::K3 {
                (-log_probs + f64s(&reference)) * f64s(&reference).exp()
            } else {
                log_probs.clone().exp() * (log_probs - f64s(&reference))
            };
            let expected = to_vec(of_kl.grad(&divergence.sum().backward()).unwrap());
            assert_close(&ours, &expected, 1e-13, &format!("{kl:?}"));
        }
    }
}

/// Lists of the world's completions, and how often each comes.
struct ListsOf {
    lists: Vec<Vec<usize>>,
    weights: Vec<f64>,
    reference: Vec<f64>,
}

impl ListsOf {
    fn minimum(
        &self,
        policy: Policy,
        objective: impl Objective<Ranked<RelativeLogProbs<2>>>,
        score: impl Fn(usize, usize) -> f64,
    ) -> Vec<f64> {
        let shape = [self.lists.len(), self.lists[0].len()];
        let which = self.lists.concat();
        let lengths = vec![1; which.len()];
        let take = |x: Tensor<1>| -> SequenceLogProbs<2> {
            let picked = sequence(x.select(0, ints(&which)), &lengths);
            picked.split_candidates(shape[1]).unwrap()
        };
        let places = which.iter().enumerate();
        let scores: Vec<f64> = places.map(|(k, &i)| score(k % shape[1], i)).collect();
        let present = bools(&vec![true; which.len()]).reshape(shape);
        policy.minimum(&self.reference, |log_probs| {
            let relative = take(log_probs)
                .relative_to(take(f64s(&self.reference)))
                .unwrap();
            let scores = f64s(&scores).reshape(shape);
            let batch = Ranked::new(relative, scores, present.clone()).unwrap();
            let output = objective.forward(batch);
            output.weighted_mean(f64s(&self.weights)).unwrap()
        })
    }
}

/// Every order of the three, and its probability under Plackett and Luce:
/// P(τ) = Π_k e^(r_τ(k)) / Σ_{j ≥ k} e^(r_τ(j)).
fn orders() -> (Vec<Vec<usize>>, Vec<f64>) {
    let of_first = |(i, j): (usize, usize)| {
        let order = vec![i, j, 3 - i - j];
        let strength = |k: usize| REWARDS[order[k]].exp();
        let share = |k: usize| strength(k) / (k..3).map(strength).sum::<f64>();
        let probability: f64 = (0..3).map(share).product();
        (order, probability)
    };
    ordered(3).map(of_first).unzip()
}

/// Rafailov et al., 2305.18290, App. A.3: rankings from Plackett and Luce.
fn plackett_luce() {
    let (lists, weights) = orders();
    let lists = ListsOf {
        lists,
        weights,
        reference: reference(),
    };
    let objective = PlackettLuceLossConfig::new().with_beta(BETA).init();
    let ours = lists.minimum(Policy::Softmax, objective, |place, _| -(place as f64));
    assert_policy(&ours, &claimed(), "Plackett and Luce");
}

/// Chen et al., 2406.09215: of three completions one is chosen, with probability e^r / Σ e^r.
fn sdpo() {
    let lists = ListsOf {
        lists: vec![vec![0, 1, 2], vec![1, 2, 0], vec![2, 0, 1]],
        weights: softmax(&REWARDS),
        reference: reference(),
    };
    let objective = SdpoLossConfig::new().with_beta(BETA).init();
    let ours = lists.minimum(Policy::Softmax, objective, |place, _| -(place as f64));
    assert_policy(&ours, &claimed(), "S-DPO");
}

/// Every completion with its reward, beside a value that all share.
fn single(log_probs: Tensor<1>, value: Tensor<1>) -> WithValue<Scored<RelativeLogProbs>> {
    let reference = sequence(f64s(&reference()), &[1; 3]);
    let relative = sequence(log_probs, &[1; 3]).relative_to(reference).unwrap();
    let scored = Scored::new(relative, f64s(&REWARDS)).unwrap();
    WithValue::new(scored, value.expand([3])).unwrap()
}

/// Richemond et al., 2405.19107: policy and value are found together, from completions of whoever
/// wrote them. Sampled here as often as they like.
fn dro() {
    let objective = DroLossConfig::new().with_tau(BETA).init();
    let value = BETA * {
        let terms = reference().into_iter().zip(REWARDS);
        logsumexp(&terms.map(|(p, r)| p + r / BETA).collect::<Vec<_>>())
    };
    for often in [[1.0, 1.0, 1.0], [5.0, 0.5, 2.0]] {
        // Three logits, whose mean is free, and the value.
        let numbers = least(&[0.0, 0.1, -0.1, 0.0], false, |numbers| {
            let logits = numbers.clone().narrow(0, 0, 3);
            let log_probs = Policy::Softmax.log_probs(&logits);
            let output = objective.forward(single(log_probs, numbers.narrow(0, 3, 1)));
            let loss = output.weighted_mean(f64s(&often)).unwrap();
            // Holds the mean of the logits, which changes no policy.
            loss + logits.sum().square()
        });
        assert!(
            (numbers[3] - value).abs() < TOLERANCE,
            "{} {value}",
            numbers[3]
        );
        assert_policy(&log_softmax(&numbers[..3]), &claimed(), "DRO");
    }
}

/// Brantley et al., 2505.20686, Theorem 1 at β₁ = β₂: V* is of samples that are the reference.
fn astar_po() {
    // Ten samples, as often as the reference has them.
    let samples: Vec<f64> = [(0, 5), (1, 2), (2, 3)]
        .iter()
        .flat_map(|&(i, n)| vec![REWARDS[i]; n])
        .collect();
    let value = optimal_values(f64s(&samples).reshape([1, 10]), BETA).unwrap();
    let objective = AstarPoLossConfig::new().with_beta(BETA).init();
    for often in [[1.0, 1.0, 1.0], [5.0, 0.5, 2.0]] {
        let ours = Policy::Softmax.minimum(&uniform(3), |log_probs| {
            let output = objective.forward(single(log_probs, value.clone()));
            output.weighted_mean(f64s(&often)).unwrap()
        });
        assert_policy(&ours, &claimed(), "A*-PO");
    }
}

/// The rewards at which a loss is least.
fn learned(shifted: bool, loss: impl Fn(Tensor<1>) -> Tensor<1>) -> Vec<f64> {
    least(&[0.0, 0.1, -0.1], shifted, loss)
}

/// That they are the true ones up to a constant.
fn assert_rewards(ours: &[f64], tolerance: f64) {
    for (i, j) in ordered(3) {
        let wrong = ours[i] - ours[j] - (REWARDS[i] - REWARDS[j]);
        assert!(wrong.abs() < tolerance, "{ours:?}");
    }
}

/// Both sides of some comparisons.
fn reward_pair(rewards: &Tensor<1>, pairs: &[(usize, usize)]) -> RewardPair {
    let side = |which: Vec<usize>| rewards.clone().select(0, ints(&which));
    let chosen = side(pairs.iter().map(|pair| pair.0).collect());
    let rejected = side(pairs.iter().map(|pair| pair.1).collect());
    RewardPair::new(chosen, rejected).unwrap()
}

/// Rewards that are learned from Bradley and Terry's preferences are those, up to a constant, which
/// centring takes to Σ r = 0 where all pairs are as frequent.
fn reward_model() {
    let pairs: Vec<(usize, usize)> = ordered(3).collect();
    let weights: Vec<f64> = pairs.iter().map(|&(i, j)| bradley_terry(i, j)).collect();
    let of = |centering: f64| {
        let config = BradleyTerryLossConfig::new().with_centering_weight(centering);
        let objective = config.init();
        learned(centering == 0.0, |rewards| {
            let output = objective.forward(reward_pair(&rewards, &pairs));
            output.weighted_mean(f64s(&weights)).unwrap()
        })
    };
    assert_rewards(&of(0.0), TOLERANCE);
    let centered = of(1e-6);
    assert!(centered.iter().sum::<f64>().abs() < 1e-5, "{centered:?}");
    assert_rewards(&centered, 1e-4);
}

/// The same from wins and ties of Rao and Kupper's model, and of Davidson's.
fn rewards_of_ties() {
    let check = |model: TieModel, (outcomes, tied): (Vec<(usize, usize, f64)>, Vec<bool>)| {
        let pairs: Vec<_> = outcomes.iter().map(|&(i, j, _)| (i, j)).collect();
        let weights: Vec<f64> = outcomes.iter().map(|outcome| outcome.2).collect();
        let config = BradleyTerryTiesLossConfig::new().with_tie_model(model);
        let objective = config.init();
        let ours = learned(true, |rewards| {
            let batch = WithTies::new(reward_pair(&rewards, &pairs), bools(&tied)).unwrap();
            let output = objective.forward(batch);
            output.weighted_mean(f64s(&weights)).unwrap()
        });
        assert_rewards(&ours, TOLERANCE);
    };
    check(TieModel::RaoKupper(2.5), outcomes(wins_rao_kupper(2.5)));
    check(TieModel::Davidson(0.8), outcomes(wins_davidson(0.8)));
}

/// The same from orders of Plackett and Luce.
fn rewards_of_orders() {
    let (orders, weights) = orders();
    let which = orders.concat();
    let objective = RewardRankingLossConfig::new().init();
    let ours = learned(true, |rewards| {
        let candidates = rewards.select(0, ints(&which)).reshape([6, 3]);
        let scores = f64s(&[2.0, 1.0, 0.0].repeat(6)).reshape([6, 3]);
        let present = bools(&[true; 18]).reshape([6, 3]);
        let batch = Ranked::new(candidates, scores, present).unwrap();
        let output = objective.forward(batch);
        output.weighted_mean(f64s(&weights)).unwrap()
    });
    assert_rewards(&ours, TOLERANCE);
}

/// Matrenok et al., 2507.08068: without a normaliser, since Z is known where quantiles are uniform.
/// Of n equally likely completions they are 1/n, …, 1, and Σ π misses 1 by (e^(1/β) − 1)/(2n·Z).
fn qrpo() {
    let beta = 0.5_f64;
    for n in [50_usize, 400] {
        let quantiles: Vec<f64> = (1..=n).map(|i| i as f64 / n as f64).collect();
        let objective = QrpoLossConfig::new().with_beta(beta).init();
        // A regression of each completion for itself: one step of Newton from anywhere.
        let rho = leaf(&vec![0.0; n]);
        let nothing = sequence(f64s(&vec![0.0; n]), &vec![1; n]);
        let relative = sequence(rho.clone(), &vec![1; n])
            .relative_to(nothing)
            .unwrap();
        let batch = Scored::new(relative, f64s(&quantiles)).unwrap();
        let loss = objective.forward(batch).sum();
        let grad = to_vec(rho.grad(&loss.backward()).unwrap());
        let policy = grad
            .iter()
            .map(|g| (-g / (2.0 * beta * beta)).exp() / n as f64);
        let z = beta * (beta.recip().exp() - 1.0);
        let rest = (beta.recip().exp() - 1.0) / (2.0 * n as f64 * z);
        let total: f64 = policy.sum();
        assert!(
            (total - 1.0 - rest).abs() < 0.4 * rest / n as f64,
            "{total} {rest}"
        );
    }
}

/// Lists of two and of three, not equally often.
fn any_lists() -> [ListsOf; 2] {
    [
        ListsOf {
            lists: vec![vec![0, 1], vec![1, 2], vec![2, 0]],
            weights: vec![1.0, 0.2, 3.0],
            reference: reference(),
        },
        ListsOf {
            lists: vec![vec![0, 1, 2]],
            weights: vec![1.0],
            reference: reference(),
        },
    ]
}

/// The policy whose rewards β·ρ have the softmax of s/α on every list.
fn of_scores() -> Vec<f64> {
    tilted(&reference(), |i| REWARDS[i] / (TEMPERATURE * BETA))
}

/// Chen et al., 2402.05369: the cross-entropy is least where softmax(βρ) = softmax(s/α), so that
/// π ∝ π°·e^(s/(αβ)).
fn info_nca() {
    for lists in any_lists() {
        let loss = InfoNcaLossConfig::new().with_beta(BETA);
        let loss = loss.with_score_temperature(TEMPERATURE).init();
        let ours = lists.minimum(Policy::Softmax, loss, |_, i| REWARDS[i]);
        assert_policy(&ours, &of_scores(), "InfoNCA");
    }
}

/// Ji et al., 2402.00856: a reverse KL of the same two distributions is least at the same policy.
fn exo_list() {
    for lists in any_lists() {
        let loss = ExoListLossConfig::new().with_beta(BETA);
        let loss = loss.with_score_temperature(TEMPERATURE).init();
        let ours = lists.minimum(Policy::Softmax, loss, |_, i| REWARDS[i]);
        assert_policy(&ours, &of_scores(), "EXO");
    }
}

/// Chen et al., 2402.05369: βρ = s/α − ln Z, Z = E_μ[e^(s/α)]. One list of everything that μ has, each
/// once, is the expectation itself. For β = 1 a softmax can hold it, since Σ μ·e^ρ = 1.
fn nca_list() {
    let lists = ListsOf {
        lists: vec![vec![0, 1, 2]],
        weights: vec![1.0],
        reference: uniform(3),
    };
    let scaled = REWARDS.map(|s| s / TEMPERATURE);
    let z = logsumexp(&scaled) - 3_f64.ln();
    for (policy, beta) in [
        (Policy::Free, BETA),
        (Policy::Free, 1.0),
        (Policy::Softmax, 1.0),
    ] {
        let loss = NcaListLossConfig::new().with_beta(beta);
        let loss = loss.with_score_temperature(TEMPERATURE).init();
        let ours = lists.minimum(policy, loss, |_, i| REWARDS[i]);
        let rho: Vec<f64> = ours.iter().map(|l| l + 3_f64.ln()).collect();
        let claimed = scaled.map(|s| (s - z) / beta);
        assert_close(&rho, &claimed, TOLERANCE, "ρ");
    }
}

/// The search itself finds what is known: without it a wrong claim could meet a wrong search.
#[test]
fn the_search_finds_a_known_maximum() {
    let found = best(|pi| regularized(pi, &REWARDS));
    assert_policy(&found, &claimed(), "by values");
    // −Σ q·ln π is least at q.
    let q = [0.1, 0.6, 0.3];
    let found = Policy::Softmax.minimum(&reference(), |log_probs| -(log_probs * f64s(&q)).sum());
    assert_policy(&found, &q.map(f64::ln), "by gradients");
}
