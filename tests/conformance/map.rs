//! From a case of the peers to our objects: by producer, loss and parameters.

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn_preference::modifier::wpo_weights;
use burn_preference::training::state::RunningMean;
use burn_preference::{
    AlphaPoLossConfig, AotLossConfig, ApoDownLossConfig, ApoZeroLossConfig, BcoLoss, BcoLossConfig,
    CpoLossConfig, DiscopopLossConfig, Divergence, DpoLossConfig, ExoPairLossConfig,
    HingeLossConfig, IpoLossConfig, KlEstimate, KtoLossConfig, LabelNoise, LossOutput, Mixture,
    NcaLossConfig, NllNormalization, Normalization, Objective, OrpoLossConfig, Pair, PolicyPair,
    ProLossConfig, Ranked, ReferencedPair, RrhfLossConfig, SequenceLogProbs, SftTerm,
    SimpoLossConfig, SppoLossConfig, TokenLogProbs, Unpaired, Weighted, WithBaseline, WithNll,
    WithShift, WithWeights,
};
use serde_json::Value;

use crate::support::{Pairs, bools, device, f64s, floats, sequence, to_vec, token_log_probs};
use crate::{Case, Numbers, all_numbers};

/// Where we differ from a peer on purpose: a row here, with its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    Relaxed,
    BcoOrder,
    Stages,
    Rewards,
    ReferenceFreeRewards,
    NegativeAlpha,
    Refused,
    HalosKl,
    Pointwise,
    Limit,
    HeldExponent,
    HeldOdds,
    Constant,
    RobustSign,
    LengthSign,
    BetaPerPair,
    OtherDivergence,
    WpoWeights,
    LogisticKto,
}

impl Difference {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Stages => "PRO's stages are summed in one loss per list",
            Self::Relaxed => "ARPO's relaxation of CPO is in no catalogue of ours",
            Self::BcoOrder => "the mean reward of a second BCO step needs the first step's batch",
            Self::Rewards => "our rewards are what the loss compares, times β or τ",
            Self::ReferenceFreeRewards => "without a reference, our rewards have none either",
            Self::NegativeAlpha => "α < 0 is no f-divergence of f-DPO: we refuse it",
            Self::Refused => "hyperparameters outside our ranges: we refuse them",
            Self::HalosKl => "HALOs leaves mismatched log-ratios of exactly 0 out of z₀",
            Self::Limit => "the peer returns NaN or infinity where the formula has a finite value",
            Self::Pointwise => "a divergence compares two completions: pointwise losses take none",
            Self::HeldExponent => "exponents are held at 80, where the peer's grow or overflow",
            Self::HeldOdds => {
                "a completion of probability 1, or an empty one, has log-odds of 69 instead of ∞"
            }
            Self::Constant => {
                "oxRL's APO is σ(βρ_l) − σ(βρ_w), and σ(βρ_w) − σ(βΔ): 1 less than the paper's"
            }
            Self::RobustSign => {
                "oxRL's robust DPO is [−(1−ε)·ln σ(h) − ε·ln σ(−h)]/(1−2ε): cDPO times a constant; \
                 2403.00409 subtracts the flipped term"
            }
            Self::LengthSign => {
                "oxRL's R-DPO is −ln σ(h − α(len_w − len_l)), in f32; a reward r − α·len gives h + α(…)"
            }
            Self::BetaPerPair => {
                "oxRL's β-DPO has β(1 + a(Δ − 0.3)) for every pair, and gradients through it; the \
                 authors' code has one per batch, a constant"
            }
            Self::OtherDivergence => {
                "oxRL's f-DPO compares β(ρ + e^−ρ) for forward KL, βρ − ln(1 + e^ρ) for \
                 Jensen–Shannon and g without β for α-divergences; 2309.16240 compares β·f′(e^ρ)"
            }
            Self::WpoWeights => {
                "oxRL's WPO weighs by e^(ℓ̄_w + ℓ̄_l) without Σp², over the weights' sum, and lets \
                 gradients through"
            }
            Self::LogisticKto => {
                "oxRL's KTO is the mean of −ln σ(±β(ρ − z₀)), z₀ a tenth of the mean chosen ρ at the \
                 first step; the paper has 1 − σ, and mismatched completions for z₀"
            }
        }
    }
}

/// Why a case has no numbers of ours.
pub enum Unmapped {
    Deliberate(Difference),
    Unknown,
}

/// Our numbers for a case, and how they may be compared.
pub struct Ours {
    pub numbers: Numbers,
    pub tolerance: f64,
    not_compared: Vec<(&'static str, Difference)>,
}

type Mapped = Result<Ours, Unmapped>;

const REWARD_KEYS: [&str; 4] = [
    "chosen_rewards",
    "rejected_rewards",
    "mean_chosen_reward",
    "mean_rejected_reward",
];

impl Ours {
    fn new(numbers: Numbers) -> Self {
        Self {
            numbers,
            tolerance: 1e-9,
            not_compared: Vec::new(),
        }
    }

    fn named<const N: usize>(numbers: [(&str, Vec<f64>); N]) -> Self {
        let numbers = numbers.map(|(key, values)| (key.to_owned(), values));
        Self::new(numbers.into_iter().collect())
    }

    pub fn not_compared(&self, key: &str) -> Option<Difference> {
        let found = self.not_compared.iter().find(|(name, _)| *name == key);
        found.map(|(_, difference)| *difference)
    }

    /// For `expected` of `key`. A peer may compute what it logs in f32 beside a loss in f64: then
    /// its number is one of f32, or a sum of f32 divided by a count; of others one in 2²⁹ is.
    pub fn tolerance_of(&self, key: &str, expected: f64) -> f64 {
        let of_loss = matches!(key, "loss" | "losses") || key.starts_with("grad");
        let single = |count: u32| {
            let sum = expected * f64::from(count);
            #[expect(clippy::cast_possible_truncation, reason = "to see whether it changes")]
            let rounded = f64::from(sum as f32);
            (rounded - sum).abs() <= 2.0 * f64::EPSILON * sum.abs()
        };
        if !of_loss && (1..=64).any(single) {
            return self.tolerance.max(1e-6);
        }
        self.tolerance
    }

    fn except(mut self, keys: &[&'static str], difference: Difference) -> Self {
        let except = keys.iter().map(|key| (*key, difference));
        self.not_compared.extend(except);
        self
    }

    fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }
}

pub fn map(case: &Case) -> Mapped {
    match case.loss {
        "sigmoid" | "cdpo" | "robust" | "sigmoid_norm" => dpo(case),
        "ipo" => ipo(case),
        "hinge" => of_divergence(case, |beta, d| {
            Box::new(
                HingeLossConfig::new()
                    .with_beta(beta)
                    .with_divergence(d)
                    .init(),
            )
        }),
        "discopop" => of_divergence(case, |beta, d| {
            let discopop = DiscopopLossConfig::new().with_beta(beta).with_divergence(d);
            let t = case.param("discopop_tau").unwrap_or(0.05);
            Box::new(discopop.with_temperature(t).init())
        }),
        "exo_pair" => exo(case),
        "nca_pair" => pointwise(case, &NcaLossConfig::new().with_beta(beta(case)).init()),
        "bco_pair" => bco_pair(case),
        "bco" => bco(case),
        "sppo_hard" => sppo(case),
        "apo_zero" => referenced(case, &ApoZeroLossConfig::new().with_beta(beta(case)).init()),
        "apo_down" => pointwise(case, &ApoDownLossConfig::new().with_beta(beta(case)).init()),
        "aot" | "aot_pair" | "aot_unpaired" => aot(case),
        several if several.contains('+') => mixture(case),
        "sigmoid_humanline" => Ok(humanline(case)),
        "sft" => sft(case),
        "cpo_sigmoid" | "cpo_hinge" | "cpo_ipo" | "cpo_simpo" => cpo(case),
        "simpo" | "alphapo" => simpo(case),
        "kto" | "apo_zero_unpaired" => kto(case),
        "orpo_or" | "orpo_full_avgnll" => orpo_means(case),
        "orpo" => orpo(case),
        "rrhf" => Ok(rrhf(case)),
        "pro" => Ok(pro(case)),
        "logps" => logps(case),
        "arpo" => Err(Unmapped::Deliberate(Difference::Relaxed)),
        _ => Err(Unmapped::Unknown),
    }
}

/// The objective that a case is of, if it is of one alone.
pub fn objective(case: &Case) -> Option<&'static str> {
    let shaped = case.param("alpha").is_some_and(|alpha| alpha != 0.0);
    Some(match case.loss {
        "sigmoid" | "cdpo" | "robust" | "sigmoid_norm" | "sigmoid_humanline" => "DpoLoss",
        "ipo" | "cpo_ipo" => "IpoLoss",
        "hinge" | "cpo_hinge" => "HingeLoss",
        "discopop" => "DiscopopLoss",
        "exo_pair" => "ExoPairLoss",
        "nca_pair" => "NcaLoss",
        "bco_pair" | "bco" => "BcoLoss",
        "sppo_hard" => "SppoLoss",
        "apo_zero" | "apo_zero_unpaired" => "ApoZeroLoss",
        "apo_down" => "ApoDownLoss",
        "aot" | "aot_pair" | "aot_unpaired" => "AotLoss",
        "cpo_sigmoid" if !shaped => "CpoLoss",
        "alphapo" => "AlphaPoLoss",
        "cpo_simpo" if shaped => "AlphaPoLoss",
        "simpo" | "cpo_simpo" => "SimpoLoss",
        "kto" => "KtoLoss",
        "orpo" | "orpo_or" | "orpo_full_avgnll" => "OrpoLoss",
        "rrhf" => "RrhfLoss",
        "pro" => "ProLoss",
        _ => return None,
    })
}

/// The name of the peer whose code a producer is.
pub fn peer(producer: &str) -> &'static str {
    match producer.split('.').next().unwrap() {
        "liger" => "Liger",
        "halos" => "HALOs",
        "torchtune" => "torchtune",
        "openrlhf" => "OpenRLHF",
        "open_instruct" => "open-instruct",
        "mitchell" => "Mitchell",
        "llamafactory" => "LLaMA-Factory",
        "oxrl" => "oxRL",
        "allrank" => "allRank",
        "unlearning" => "open-unlearning",
        "simpo_repo" | "orpo_repo" | "rrhf" | "pro" | "tdpo" | "exo" | "betadpo" | "simper"
        | "rebel" => "authors",
        trl if trl.starts_with("trl") => "TRL",
        other => panic!("{other} has no name"),
    }
}

fn beta(case: &Case) -> f64 {
    case.param("beta").expect("every objective has a β")
}

/// An objective that TRL gives its divergence to, and that has none here.
fn pointwise(case: &Case, objective: &dyn Objective<ReferencedPair>) -> Mapped {
    match divergence(case)? {
        Divergence::ReverseKl => referenced(case, objective),
        _ => Err(Unmapped::Deliberate(Difference::Pointwise)),
    }
}

/// Label smoothing as the producer acts on it.
pub fn noise(case: &Case) -> LabelNoise {
    LabelNoise::Conservative(case.param("label_smoothing").unwrap_or(0.0))
}

/// An objective of a divergence; with another one than TRL's default, its rewards differ.
fn of_divergence(
    case: &Case,
    build: impl Fn(f64, Divergence) -> Box<dyn Objective<ReferencedPair>>,
) -> Mapped {
    let divergence = divergence(case)?;
    let ours = referenced(case, &*build(beta(case), divergence))?;
    Ok(if divergence == Divergence::ReverseKl {
        ours
    } else {
        ours.except(&REWARD_KEYS, Difference::Rewards)
    })
}

fn sppo(case: &Case) -> Mapped {
    let trl = SppoLossConfig::trl();
    // TRL's default where the case has it, so that the preset is compared too.
    let sppo = if beta(case) == trl.beta {
        trl
    } else {
        trl.with_beta(beta(case))
    };
    pointwise(case, &sppo.init())
}

pub fn exo_smoothing(case: &Case) -> f64 {
    match case.param("label_smoothing").unwrap_or(0.0) {
        // TRL 0.24 replaced 0 by 1e-3.
        0.0 if case.producer == "trl024.dpo" => 1e-3,
        smoothing => smoothing,
    }
}

fn exo(case: &Case) -> Mapped {
    let exo = ExoPairLossConfig::new().with_label_smoothing(exo_smoothing(case));
    if exo.try_init().is_err() {
        return Err(Unmapped::Deliberate(Difference::Refused));
    }
    of_divergence(case, |beta, divergence| {
        Box::new(
            exo.clone()
                .with_beta(beta)
                .with_divergence(divergence)
                .init(),
        )
    })
}

/// BCO with the mean reward of the batch for δ.
#[derive(Debug)]
struct Shifted(BcoLoss);
impl Objective<ReferencedPair> for Shifted {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        let rewards = self.0.forward(batch.clone()).rewards().clone();
        let all = Tensor::cat(vec![rewards.chosen, rewards.rejected], 0);
        self.0.forward(WithShift::new(batch, all.mean()).unwrap())
    }
}
/// TRL 0.24 subtracts δ, which at its first step is the mean reward of the batch.
fn bco_pair(case: &Case) -> Mapped {
    let bco = BcoLossConfig::new().with_beta(beta(case)).init();
    if case.producer != "trl024.dpo" {
        return pointwise(case, &bco);
    }
    // Its running mean is f32.
    Ok(referenced(case, &Shifted(bco))?.tolerance(1e-6))
}

/// TRL's BCO trainer: chosen and rejected completions apart, δ over all steps so far.
fn bco(case: &Case) -> Mapped {
    if case.input["kind"] != "pairs" {
        return Err(Unmapped::Unknown);
    }
    let beta = beta(case);
    let pairs = pairs(case.input);
    let step = |shift: f64| {
        let rejected = pairs.rejected.iter().map(|x| x + shift).collect();
        Pairs {
            rejected,
            ..pairs.clone()
        }
    };
    // A first step knows its own batch only. Before a second one, the recorded runs shifted the
    // rejected log-probs by −½ instead of −1.
    let shift = case.param("rejected_shift").unwrap_or(0.0);
    let shifts = match case.param("step") {
        None | Some(1.0) => vec![shift],
        Some(2.0) if shift == -1.0 => vec![-0.5, shift],
        _ => return Err(Unmapped::Deliberate(Difference::BcoOrder)),
    };
    let mut delta = RunningMean::default();
    let mut now = step(shift);
    for shift in shifts {
        now = step(shift);
        let ratios = [
            (&now.chosen, &now.ref_chosen),
            (&now.rejected, &now.ref_rejected),
        ];
        for (policy, reference) in ratios {
            let rewards = policy.iter().zip(reference).map(|(p, r)| beta * (p - r));
            delta.update(rewards.sum(), now.len() as f64);
        }
    }
    let n = now.len();
    let leaf = |values: &[f64]| f64s(values).autodiff().require_grad();
    let (chosen, rejected) = (leaf(&now.chosen), leaf(&now.rejected));
    let lengths = vec![1; 2 * n];
    let reference = f64s(&[now.ref_chosen.clone(), now.ref_rejected.clone()].concat());
    let policy = Tensor::cat(vec![chosen.clone(), rejected.clone()], 0);
    let relative = sequence(policy, &lengths).relative_to(sequence(reference, &lengths));
    let labels: Vec<bool> = (0..2 * n).map(|i| i < n).collect();
    let batch = Unpaired::new(relative.unwrap(), bools(&labels)).unwrap();
    let batch = WithShift::new(batch, f64s(&[delta.mean()])).unwrap();
    let output = BcoLossConfig::new().with_beta(beta).init().forward(batch);
    let grads = output.mean().backward();
    let rewards = to_vec(output.rewards().clone());
    let numbers = [
        ("loss", to_vec(output.mean())),
        ("losses", to_vec(output.losses())),
        ("delta", vec![delta.mean()]),
        ("chosen_rewards", rewards[..n].to_vec()),
        ("rejected_rewards", rewards[n..].to_vec()),
        ("grad_chosen", to_vec(chosen.grad(&grads).unwrap())),
        ("grad_rejected", to_vec(rejected.grad(&grads).unwrap())),
    ];
    // The peer's running mean is f32.
    Ok(Ours::named(numbers).tolerance(1e-6))
}

fn aot(case: &Case) -> Mapped {
    // TRL 0.24 calls `aot_pair` what sorts the two sides apart; `aot_unpaired` since.
    let paired = case.loss == "aot";
    let aot = AotLossConfig::new()
        .with_beta(beta(case))
        .with_paired(paired)
        .with_label_noise(noise(case))
        .init();
    referenced(case, &aot)
}

/// TRL's list of losses, with a weight each.
fn mixture(case: &Case) -> Mapped {
    if divergence(case)? != Divergence::ReverseKl {
        return Err(Unmapped::Unknown);
    }
    let names: Vec<&str> = case.loss.split('+').collect();
    let weights = match case.params.get("loss_weights") {
        Some(weights) if !weights.is_null() => all_numbers(weights),
        _ => vec![1.0; names.len()],
    };
    let beta = beta(case);
    let dpo = DpoLossConfig::new().with_beta(beta);
    // TRL logs the rewards of DPO, whatever the losses are.
    let mut mixture = Mixture::new(0.0, dpo.clone().init()).unwrap();
    let mut sft_weight = 0.0;
    for (name, weight) in names.into_iter().zip(weights) {
        let part: Box<dyn Objective<ReferencedPair>> = match name {
            "sigmoid" => Box::new(dpo.clone().init()),
            "sigmoid_norm" => {
                let mean = dpo.clone().with_normalization(Normalization::Mean);
                Box::new(mean.init())
            }
            "hinge" => Box::new(HingeLossConfig::new().with_beta(beta).init()),
            "ipo" => Box::new(IpoLossConfig::new().with_tau(beta).init()),
            "bco_pair" => Box::new(BcoLossConfig::new().with_beta(beta).init()),
            "nca_pair" => Box::new(NcaLossConfig::new().with_beta(beta).init()),
            "sppo_hard" => Box::new(SppoLossConfig::new().with_beta(beta).init()),
            "apo_zero" => Box::new(ApoZeroLossConfig::new().with_beta(beta).init()),
            "apo_down" => Box::new(ApoDownLossConfig::new().with_beta(beta).init()),
            "discopop" => Box::new(DiscopopLossConfig::new().with_beta(beta).init()),
            "sft" => {
                sft_weight += weight;
                continue;
            }
            _ => return Err(Unmapped::Unknown),
        };
        mixture = mixture.and(weight, part).unwrap();
    }
    let sft = SftTerm::new(mixture, sft_weight).unwrap();
    let sft = sft.with_normalization(NllNormalization::Token);
    referenced(case, &sft)
}

fn humanline(case: &Case) -> Ours {
    let dpo = DpoLossConfig::new().with_beta(beta(case)).init();
    let low = case.param("log_epsilon_P").unwrap();
    let high = case.param("log_epsilon_R").unwrap();
    token_pairs(case, |policy, reference| {
        let tokens = policy.clone().relative_to(reference.clone()).unwrap();
        dpo.forward(tokens.clamped(low, high).unwrap().sequences())
    })
}

/// TRL's CPO trainer: no reference, and on logits the NLL of the chosen completions.
fn cpo(case: &Case) -> Mapped {
    let config = CpoLossConfig::trl()
        .with_beta(beta(case))
        .with_label_noise(noise(case));
    let weight = case.param("cpo_alpha").unwrap_or(0.0);
    let plain = CpoLossConfig::trl().with_sft_weight(weight);
    // On logits TRL hands means to `ipo` and `simpo`, sums to the others.
    let normalization = match case.input["kind"].as_str() {
        Some("pair_logits") => Normalization::Mean,
        _ => Normalization::Sum,
    };
    // AlphaPO's rewards under the other losses are those of an α-divergence.
    let alpha = case.param("alpha").unwrap_or(0.0);
    let shape = match alpha {
        0.0 => Divergence::ReverseKl,
        _ if case.loss == "cpo_simpo" => Divergence::ReverseKl,
        _ if alpha < 0.0 => return Err(Unmapped::Deliberate(Difference::NegativeAlpha)),
        // Of a mean: no divergence of ours is.
        _ if case.loss == "cpo_ipo" && normalization == Normalization::Mean => {
            return Err(Unmapped::Unknown);
        }
        alpha => Divergence::Alpha(alpha),
    };
    let preference: Box<dyn Objective<PolicyPair> + Send + Sync> = match case.loss {
        "cpo_sigmoid" if shape != Divergence::ReverseKl => Box::new(Uniform(
            DpoLossConfig::new()
                .with_beta(beta(case))
                .with_label_noise(noise(case))
                .with_divergence(shape)
                .init(),
        )),
        "cpo_sigmoid" => Box::new(config.clone().with_sft_weight(0.0).init()),
        "cpo_simpo" if alpha != 0.0 => Box::new(
            AlphaPoLossConfig::new()
                .with_beta(beta(case))
                .with_target_margin(simpo_margin(case))
                .with_alpha(alpha)
                .with_label_noise(noise(case))
                .init(),
        ),
        "cpo_simpo" => Box::new(
            SimpoLossConfig::new()
                .with_beta(beta(case))
                .with_target_margin(simpo_margin(case))
                .with_label_noise(noise(case))
                .init(),
        ),
        "cpo_hinge" => Box::new(Uniform(
            HingeLossConfig::new()
                .with_beta(beta(case))
                .with_divergence(shape)
                .init(),
        )),
        _ => Box::new(Uniform(
            IpoLossConfig::new()
                .with_tau(beta(case))
                .with_normalization(normalization)
                .with_divergence(shape)
                .init(),
        )),
    };
    let term = SftTerm::new(preference, weight).unwrap();
    let term = term.with_normalization(NllNormalization::Token);
    match case.input["kind"].as_str() {
        Some("pairs" | "pairs_avg") => {
            let pairs = pairs(case.input);
            let result = pairs.run_policy(&term, DType::F64);
            let numbers = pair_numbers(case.mode, result.losses, &result.rewards, result.grads);
            Ok(Ours::new(numbers))
        }
        Some("pair_logits") => {
            let input = PairLogits::new(case.input);
            let batch = input.pair(&input.completion);
            let nll = NllNormalization::Token.nll(&batch.chosen);
            let nll = mean(&to_vec(nll)) * f64::from(u8::from(weight != 0.0));
            let logps = batch.map_ref(|y| match case.loss {
                "cpo_simpo" | "cpo_ipo" => mean(&to_vec(y.mean())),
                _ => mean(&to_vec(y.sum())),
            });
            // One objective that holds both terms gives the same as the term around another.
            let whole = plain
                .with_beta(beta(case))
                .with_label_noise(noise(case))
                .init();
            let output = match case.loss {
                "cpo_sigmoid" if shape == Divergence::ReverseKl => whole.forward(batch),
                _ => term.forward(batch),
            };
            let grads = output.mean().backward();
            let numbers = [
                ("loss", to_vec(output.mean())),
                ("nll_loss", vec![nll]),
                ("mean_chosen_logp", vec![logps.chosen]),
                ("mean_rejected_logp", vec![logps.rejected]),
                ("grad_logits", to_vec(input.logits.grad(&grads).unwrap())),
            ];
            Ok(Ours::named(numbers))
        }
        _ => Err(Unmapped::Unknown),
    }
}

/// An objective against a reference, reference-free.
#[derive(Debug, Clone)]
pub struct Uniform<O>(pub O);

impl<O: Objective<ReferencedPair>> Objective<PolicyPair> for Uniform<O> {
    fn forward(&self, batch: PolicyPair) -> LossOutput<Pair<Tensor<1>>> {
        self.0.forward(batch.with_uniform_reference())
    }
}

/// γ, by the names that it has: times β in some. TRL's default is ½.
pub fn simpo_margin(case: &Case) -> f64 {
    let ratio = case
        .param("gamma_beta_ratio")
        .map(|ratio| ratio * beta(case));
    let gamma = case.param("gamma").or(case.param("simpo_gamma"));
    ratio.or(gamma).unwrap_or(0.5)
}

fn simpo(case: &Case) -> Mapped {
    let simpo = match case.param("gamma_beta_ratio") {
        Some(ratio) => SimpoLossConfig::from_margin_ratio(beta(case), ratio),
        None => SimpoLossConfig::new()
            .with_beta(beta(case))
            .with_target_margin(simpo_margin(case)),
    };
    let objective: Box<dyn Objective<PolicyPair>> = match case.param("alpha") {
        Some(alpha) if case.loss == "alphapo" => Box::new(
            AlphaPoLossConfig::new()
                .with_beta(simpo.beta)
                .with_target_margin(simpo.target_margin)
                .with_alpha(alpha)
                .with_label_noise(noise(case))
                .init(),
        ),
        _ => Box::new(simpo.with_label_noise(noise(case)).init()),
    };
    match case.input["kind"].as_str() {
        Some("pairs_avg") => {
            let result = pairs(case.input).run_policy(&*objective, DType::F64);
            let numbers = pair_numbers(case.mode, result.losses, &result.rewards, result.grads);
            let ours = Ours::new(numbers);
            Ok(if case.loss == "alphapo" {
                ours.except(&REWARD_KEYS, Difference::Rewards)
            } else {
                ours
            })
        }
        Some("token_pairs") => {
            let ours = token_pairs(case, |policy, _| objective.forward(policy.sequences()));
            // HALOs logs ℓ̄ without β.
            Ok(ours.except(&REWARD_KEYS, Difference::Rewards))
        }
        _ => Err(Unmapped::Unknown),
    }
}

pub fn divergence(case: &Case) -> Result<Divergence, Unmapped> {
    match case.text("f_divergence_type") {
        None | Some("reverse_kl") => Ok(Divergence::ReverseKl),
        Some("forward_kl") => Ok(Divergence::ForwardKl),
        Some("js_divergence") => Ok(Divergence::JensenShannon),
        Some("alpha_divergence") => {
            // TRL 0.24 names α itself, 1.16 names 1 − α.
            let alpha = match case.param("alpha_divergence_coef") {
                Some(alpha) => alpha,
                None => 1.0 - case.param("f_alpha_divergence_coef").unwrap_or(0.5),
            };
            match alpha {
                0.0 => Ok(Divergence::ReverseKl),
                alpha if alpha > 0.0 => Ok(Divergence::Alpha(alpha)),
                _ => Err(Unmapped::Deliberate(Difference::NegativeAlpha)),
            }
        }
        Some(_) => Err(Unmapped::Unknown),
    }
}

pub fn dpo_noise(case: &Case) -> LabelNoise {
    let rate = case.param("label_smoothing").or(case.param("epsilon"));
    let rate = rate.unwrap_or(0.0);
    match case.loss {
        "robust" => LabelNoise::Robust(rate),
        // TRL 1.16 ignores label smoothing with `sigmoid`.
        "sigmoid" | "sigmoid_norm" if case.producer.starts_with("trl116") => LabelNoise::Clean,
        _ => LabelNoise::Conservative(rate),
    }
}

fn dpo(case: &Case) -> Mapped {
    let noise = dpo_noise(case);
    let divergence = divergence(case)?;
    let (normalization, plain) = match case.loss {
        "sigmoid_norm" => (Normalization::Mean, false),
        _ => (Normalization::Sum, divergence == Divergence::ReverseKl),
    };
    let dpo = DpoLossConfig::new()
        .with_beta(case.param("beta").unwrap())
        .with_label_noise(noise)
        .with_divergence(divergence)
        .with_normalization(normalization)
        .try_init();
    let dpo = dpo.map_err(|_| Unmapped::Deliberate(Difference::Refused))?;
    let ours = referenced(case, &dpo)?;
    Ok(if plain {
        ours
    } else {
        ours.except(&REWARD_KEYS, Difference::Rewards)
    })
}

/// TRL 1.16 divides by the length, and so does HALOs; the first public code sums, and others leave
/// the mean to their caller.
pub fn ipo_normalization(case: &Case) -> Normalization {
    if case.producer.starts_with("trl116.dpo") || case.producer == "halos" {
        Normalization::Mean
    } else {
        Normalization::Sum
    }
}

fn ipo(case: &Case) -> Mapped {
    let normalization = ipo_normalization(case);
    let config = if normalization == Normalization::Mean {
        IpoLossConfig::new()
    } else {
        IpoLossConfig::paper()
    };
    let ipo = config
        .with_tau(case.param("beta").or(case.param("tau")).unwrap())
        .with_divergence(divergence(case)?)
        .init();
    let ours = referenced(case, &ipo)?;
    Ok(if normalization == Normalization::Sum {
        ours
    } else {
        ours.except(&REWARD_KEYS, Difference::Rewards)
    })
}

/// The chosen completions' NLL alone, over tokens.
fn sft(case: &Case) -> Mapped {
    /// The scale of the rewards that are logged.
    #[derive(Debug)]
    struct Sft(f64);
    impl Objective<ReferencedPair> for Sft {
        fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
            let rewards = batch.map_ref(|y| y.log_ratio() * self.0);
            let nll = NllNormalization::Token.nll(batch.chosen.policy());
            LossOutput::new(nll, rewards)
        }
    }
    referenced(case, &Sft(case.param("beta").unwrap_or(0.1)))
}

pub fn pairs(input: &Value) -> Pairs {
    let floats = |key: &str| all_numbers(&input[key]);
    let lengths = |key: &str| match input.get(key) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a length is a small whole number"
        )]
        Some(values) => all_numbers(values)
            .into_iter()
            .map(|x| x as usize)
            .collect(),
        None => vec![1; all_numbers(&input["chosen"]).len()],
    };
    Pairs {
        chosen: floats("chosen"),
        rejected: floats("rejected"),
        ref_chosen: input.get("ref_chosen").map_or(Vec::new(), all_numbers),
        ref_rejected: input.get("ref_rejected").map_or(Vec::new(), all_numbers),
        chosen_len: lengths("chosen_len"),
        rejected_len: lengths("rejected_len"),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Everything that a peer may report of pairs.
fn pair_numbers(
    mode: &str,
    losses: Vec<f64>,
    rewards: &Pair<Vec<f64>>,
    grads: Pair<Vec<f64>>,
) -> Numbers {
    let scale = if mode == "per_example" {
        1.0
    } else {
        losses.len() as f64
    };
    let grad = |g: Vec<f64>| g.into_iter().map(|g| g / scale).collect::<Vec<_>>();
    let ahead = rewards.chosen.iter().zip(&rewards.rejected);
    let ahead: Vec<f64> = ahead.map(|(w, l)| f64::from(u8::from(w > l))).collect();
    [
        ("loss", vec![mean(&losses)]),
        ("losses", losses),
        ("chosen_rewards", rewards.chosen.clone()),
        ("rejected_rewards", rewards.rejected.clone()),
        ("mean_chosen_reward", vec![mean(&rewards.chosen)]),
        ("mean_rejected_reward", vec![mean(&rewards.rejected)]),
        ("accuracy", vec![mean(&ahead)]),
        ("grad_chosen", grad(grads.chosen)),
        ("grad_rejected", grad(grads.rejected)),
    ]
    .into_iter()
    .map(|(key, values)| (key.to_owned(), values))
    .collect()
}

/// An objective against a reference, on sums or on ragged per-token log-probs.
fn referenced(case: &Case, objective: &dyn Objective<ReferencedPair>) -> Mapped {
    match case.input["kind"].as_str() {
        Some("pairs") => {
            let mut pairs = pairs(case.input);
            if case.has("reference_free") {
                pairs.ref_chosen = vec![0.0; pairs.len()];
                pairs.ref_rejected = vec![0.0; pairs.len()];
            }
            let result = pairs.run(objective, DType::F64);
            let numbers = pair_numbers(case.mode, result.losses, &result.rewards, result.grads);
            let ours = Ours::new(numbers);
            Ok(if case.has("reference_free") {
                ours.except(&REWARD_KEYS, Difference::ReferenceFreeRewards)
            } else {
                ours
            })
        }
        Some("token_pairs") => Ok(token_pairs(case, |policy, reference| {
            token_objective(case, objective, policy, reference)
        })),
        _ => Err(Unmapped::Unknown),
    }
}

/// On per-token log-probs, with TRL's modifiers of them.
fn token_objective(
    case: &Case,
    objective: &dyn Objective<ReferencedPair>,
    policy: &Pair<TokenLogProbs>,
    reference: &Pair<TokenLogProbs>,
) -> LossOutput<Pair<Tensor<1>>> {
    if let Some(alpha) = case.param("ld_alpha") {
        let tokens = policy.clone().relative_to(reference.clone()).unwrap();
        return objective.forward(tokens.length_desensitized(alpha).unwrap().sequences());
    }
    let batch = policy
        .sequences()
        .relative_to(reference.sequences())
        .unwrap();
    if !case.has("use_weighting") {
        return objective.forward(batch);
    }
    let rows: Vec<Vec<f64>> = nested(&case.input["log_sum_sq_probs"]);
    let [_, time] = policy.chosen.mask().dims();
    let padded = |row: &Vec<f64>| [row.clone(), vec![0.0; time - row.len()]].concat();
    let values: Vec<f64> = rows.iter().flat_map(padded).collect();
    let values = f64s(&values).reshape([rows.len(), time]);
    let mask = Tensor::cat(vec![policy.chosen.mask(), policy.rejected.mask()], 0);
    let collisions = TokenLogProbs::new(values, mask).unwrap();
    let collisions = Pair::from_concatenated(&collisions).unwrap();
    // TRL 1.16 does not bound the weight.
    let weights = wpo_weights(policy, &collisions, None).unwrap();
    Weighted(objective).forward(WithWeights::new(batch, weights).unwrap())
}

fn token_pairs(
    case: &Case,
    forward: impl FnOnce(&Pair<TokenLogProbs>, &Pair<TokenLogProbs>) -> LossOutput<Pair<Tensor<1>>>,
) -> Ours {
    let rows = |key: &str| -> Vec<Vec<f64>> {
        let rows = case.input[key].as_array().unwrap();
        rows.iter().map(all_numbers).collect()
    };
    let (policy, reference) = (rows("policy"), rows("ref"));
    let time = policy.iter().map(Vec::len).max().unwrap().max(1);
    let tensor = |rows: &[Vec<f64>]| {
        let padded = |row: &Vec<f64>| [row.clone(), vec![f64::NAN; time - row.len()]].concat();
        let values: Vec<f64> = rows.iter().flat_map(padded).collect();
        f64s(&values).reshape([rows.len(), time])
    };
    let counted = |row: &Vec<f64>| (0..time).map(|t| t < row.len()).collect::<Vec<_>>();
    let mask: Vec<bool> = policy.iter().flat_map(counted).collect();
    let mask = bools(&mask).reshape([policy.len(), time]);

    let leaf = tensor(&policy).autodiff().require_grad();
    let pair = |tokens: Tensor<2>| {
        let tokens = TokenLogProbs::new(tokens, mask.clone()).unwrap();
        Pair::from_concatenated(&tokens).unwrap()
    };
    let (policy_tokens, reference_tokens) = (pair(leaf.clone()), pair(tensor(&reference)));
    let alpha = case.param("ld_alpha").unwrap_or(1.0);
    // TRL logs the discounted sums.
    let logps = policy_tokens.clone().with_uniform_reference();
    let logps = logps.length_desensitized(alpha).unwrap().sequences();
    let logps = logps.policy().map(|y| mean(&to_vec(y.sum())));
    let output = forward(&policy_tokens, &reference_tokens);
    let grads = output.mean().backward();
    let grad = to_vec(leaf.grad(&grads).unwrap());
    let ragged = policy.iter().enumerate();
    let ragged = ragged.flat_map(|(i, row)| grad[i * time..][..row.len()].to_vec());

    let rewards = output.rewards().clone().map(to_vec);
    let nothing = rewards.map_ref(|_| vec![]);
    let mut numbers = pair_numbers(case.mode, to_vec(output.losses()), &rewards, nothing);
    numbers.insert("grad_tokens".into(), ragged.collect());
    numbers.insert("mean_chosen_logp".into(), vec![logps.chosen]);
    numbers.insert("mean_rejected_logp".into(), vec![logps.rejected]);
    Ours::new(numbers)
}

fn kto(case: &Case) -> Mapped {
    let floats_of = |key: &str| all_numbers(&case.input[key]);
    let desirable: Vec<bool> = floats_of("label").iter().map(|&x| x > 0.0).collect();
    let (policy, reference) = (floats_of("policy"), floats_of("ref"));
    let relative = |policy: Tensor<1>, reference: &[f64]| {
        let lengths = vec![1; reference.len()];
        let reference = sequence(f64s(reference), &lengths);
        sequence(policy, &lengths).relative_to(reference).unwrap()
    };
    let (kl_policy, kl_ref) = (floats_of("kl_policy"), floats_of("kl_ref"));
    if case.producer == "halos" && kl_policy.iter().zip(&kl_ref).any(|(p, r)| p == r) {
        return Err(Unmapped::Deliberate(Difference::HalosKl));
    }
    let estimate = KlEstimate::from_mismatched(&relative(f64s(&kl_policy), &kl_ref));
    let leaf = f64s(&policy).autodiff().require_grad();
    let batch = Unpaired::new(relative(leaf.clone(), &reference), bools(&desirable)).unwrap();
    let beta = beta(case);
    let kto = KtoLossConfig::new()
        .with_beta(beta)
        .with_desirable_weight(case.param("desirable_weight").unwrap_or(1.0))
        .with_undesirable_weight(case.param("undesirable_weight").unwrap_or(1.0))
        .init();
    let apo = case.loss == "apo_zero_unpaired";
    let output = if apo {
        ApoZeroLossConfig::new()
            .with_beta(beta)
            .init()
            .forward(batch)
    } else {
        kto.forward(WithBaseline::new(batch, estimate.baseline()).unwrap())
    };
    let kl = if apo {
        vec![0.0]
    } else {
        to_vec(estimate.baseline())
    };
    let grads = output.mean().backward();

    let rewards = to_vec(output.rewards().clone());
    // HALOs logs ρ without β.
    let scale = if case.producer == "halos" { beta } else { 1.0 };
    let side = |values: &[f64], of: bool| -> Vec<f64> {
        let pick = values.iter().zip(&desirable).filter(|(_, d)| **d == of);
        pick.map(|(x, _)| *x).collect()
    };
    let losses = to_vec(output.losses());
    let chosen: Vec<f64> = side(&rewards, true).iter().map(|r| r / scale).collect();
    let rejected: Vec<f64> = side(&rewards, false).iter().map(|r| r / scale).collect();
    let sum = |values: &[f64]| vec![values.iter().sum::<f64>()];
    let numbers = [
        ("loss", vec![mean(&losses)]),
        (
            "losses",
            [side(&losses, true), side(&losses, false)].concat(),
        ),
        ("kl", kl),
        ("grad_policy", to_vec(leaf.grad(&grads).unwrap())),
        ("chosen_rewards_sum", sum(&chosen)),
        ("rejected_rewards_sum", sum(&rejected)),
        ("mean_chosen_reward", vec![mean(&chosen)]),
        ("mean_rejected_reward", vec![mean(&rejected)]),
        ("chosen_rewards", chosen),
        ("rejected_rewards", rejected),
    ];
    Ok(Ours::named(numbers))
}

/// ORPO on mean log-probs: with its NLL, or the odds ratio alone.
fn orpo_means(case: &Case) -> Mapped {
    if case.input["kind"] != "pairs_avg" {
        return Err(Unmapped::Unknown);
    }
    let pairs = pairs(case.input);
    let orpo = OrpoLossConfig::new()
        .with_odds_ratio_weight(case.param("beta").unwrap())
        .init();
    let result = pairs.run_on(DType::F64, |w, l| {
        let batch = pairs.policy(w, l);
        if case.loss == "orpo_full_avgnll" {
            return orpo.forward(batch);
        }
        let nothing = sequence(f64s(&vec![0.0; pairs.len()]), &pairs.chosen_len);
        orpo.forward(WithNll::new(batch, nothing).unwrap())
    });
    // The peers form 1 − e^ℓ̄, which loses digits as ℓ̄ → 0.
    let means = pairs.chosen.iter().chain(&pairs.rejected);
    let nearest = means
        .fold(f64::INFINITY, |near, x| near.min(x.abs()))
        .max(1e-30);
    let numbers = pair_numbers(case.mode, result.losses, &result.rewards, result.grads);
    let f32_inside = case.producer == "trl116.orpo.f32";
    let precision = if f32_inside { 1e-6 } else { 4e-16 };
    let tolerance = (if f32_inside { 1e-5 } else { 1e-9 }) + precision / nearest;
    Ok(Ours::new(numbers).tolerance(tolerance))
}

/// Logits of `[chosen; rejected]`, unshifted token ids and the masks over tokens.
pub struct PairLogits {
    logits: Tensor<3>,
    pub tokens: Vec<Vec<f64>>,
    attention: Vec<Vec<bool>>,
    pub completion: Vec<Vec<bool>>,
}

fn nested(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap().iter().map(all_numbers).collect()
}

fn logits(value: &Value) -> Tensor<3> {
    let rows = value.as_array().unwrap();
    let steps = rows[0].as_array().unwrap();
    let shape = [rows.len(), steps.len(), all_numbers(&steps[0]).len()];
    let data = TensorData::new(all_numbers(value), shape);
    Tensor::from_data(data, (&device(), DType::F64))
}

fn token_tensor(rows: &[Vec<f64>]) -> Tensor<2, Int> {
    // −100 marks what does not count; any id does there.
    let ids: Vec<f64> = rows.concat().iter().map(|id| id.max(0.0)).collect();
    floats(&ids, DType::F64)
        .int()
        .reshape([rows.len(), rows[0].len()])
}

fn mask_tensor(rows: &[Vec<bool>]) -> Tensor<2, Bool> {
    bools(&rows.concat()).reshape([rows.len(), rows[0].len()])
}

impl PairLogits {
    pub fn new(input: &Value) -> Self {
        let flags = |key: &str, f: &dyn Fn(f64) -> bool| -> Vec<Vec<bool>> {
            let rows = nested(&input[key]).into_iter();
            rows.map(|row| row.into_iter().map(f).collect()).collect()
        };
        Self {
            logits: logits(&input["logits"]).autodiff().require_grad(),
            tokens: nested(&input["input_ids"]),
            attention: flags("attention_mask", &|x| x > 0.0),
            completion: flags("labels", &|x| x >= 0.0),
        }
    }

    /// The tokens of ORPO's odds.
    pub fn odds_mask(&self, case: &Case) -> Vec<Vec<bool>> {
        let mut mask = self.completion.clone();
        if case.producer.starts_with("orpo_repo") {
            // Their mask pairs the attention of position t − 1 with the prompt flag of position t,
            // so a right-padded row counts the prediction of its first padding token as well.
            for (row, attention) in mask.iter_mut().zip(&self.attention) {
                for t in (1..row.len()).rev() {
                    let prompt = attention[t] && !row[t];
                    row[t] = attention[t - 1] && !prompt;
                }
            }
        }
        mask
    }

    /// The tokens of ORPO's NLL.
    pub fn nll_mask(&self, case: &Case) -> Vec<Vec<bool>> {
        if case.has("disable_prompt_loss") {
            self.completion.clone()
        } else {
            self.attention.clone()
        }
    }

    /// Log-probs of the tokens that `mask` counts, chosen and rejected.
    fn pair(&self, mask: &[Vec<bool>]) -> PolicyPair {
        let tokens = token_tensor(&self.tokens);
        let (log_probs, _) = token_log_probs(self.logits.clone(), tokens, mask_tensor(mask));
        PolicyPair::from_concatenated(&log_probs.sequence()).unwrap()
    }
}

fn orpo(case: &Case) -> Mapped {
    if case.input["kind"] != "pair_logits" {
        return Err(Unmapped::Unknown);
    }
    let input = PairLogits::new(case.input);
    let batch = input.pair(&input.odds_mask(case));
    let means = batch.map_ref(|y| mean(&to_vec(y.mean())));
    let nll_of = input.pair(&input.nll_mask(case)).chosen;
    let nll = mean(&to_vec(NllNormalization::Token.nll(&nll_of)));
    let metrics = burn_preference::BatchMetrics::default()
        .with_log_odds(&batch)
        .read()
        .unwrap();
    let orpo = OrpoLossConfig::trl()
        .with_odds_ratio_weight(beta(case))
        .init();
    let output = orpo.forward(WithNll::new(batch, nll_of).unwrap());
    let grads = output.mean().backward();
    let numbers = [
        ("loss", to_vec(output.mean())),
        ("nll_loss", vec![nll]),
        (
            "log_odds_ratio",
            vec![metrics.get("log_odds_ratio").unwrap()],
        ),
        ("mean_chosen_logp", vec![means.chosen]),
        ("mean_rejected_logp", vec![means.rejected]),
        ("grad_logits", to_vec(input.logits.grad(&grads).unwrap())),
    ];
    let ours = Ours::named(numbers);
    // Unpatched, the authors' code casts its mask and its loss to bf16.
    Ok(if case.producer == "orpo_repo" {
        ours.tolerance(1e-2)
    } else {
        ours
    })
}

fn rrhf(case: &Case) -> Ours {
    // Labels are shifted already: prepend a token, and add a row of logits that predicts nothing.
    let labels = nested(&case.input["labels"]);
    let time = labels[0].len();
    let leaf = logits(&case.input["logits"]).autodiff().require_grad();
    let [rows, _, vocab] = leaf.dims();
    let more = Tensor::<3>::zeros([rows, 1, vocab], (&device(), DType::F64));
    let shifted: Vec<Vec<f64>> = labels
        .iter()
        .map(|row| [&[-100.0], &row[..]].concat())
        .collect();
    let mask: Vec<Vec<bool>> = shifted
        .iter()
        .map(|row| row.iter().map(|&id| id >= 0.0).collect())
        .collect();
    let (log_probs, _) = token_log_probs(
        Tensor::cat(vec![leaf.clone(), more], 1),
        token_tensor(&shifted),
        mask_tensor(&mask),
    );
    // As it runs, the authors' code takes the padded length for every candidate's.
    let sums = log_probs.sequence().sum();
    let sequences = sequence(sums, &vec![time; rows]);
    let scores = all_numbers(&case.input["scores"]);

    let rrhf = |sft_weight: f64, present: &[bool]| {
        let config = RrhfLossConfig::new()
            .with_length_penalty(case.param("length_penalty").unwrap())
            .with_sft_weight(sft_weight);
        let lists: SequenceLogProbs<2> = sequences.clone().split_candidates(rows).unwrap();
        let shape = [1, rows];
        let present = bools(present).reshape(shape);
        let list = Ranked::new(lists, f64s(&scores).reshape(shape), present).unwrap();
        config.init().forward(list)
    };
    // Of several best candidates they imitate the first: a list of it alone has its NLL.
    let best = (0..rows).fold(0, |b, i| if scores[i] > scores[b] { i } else { b });
    let imitated: Vec<bool> = (0..rows).map(|i| i == best).collect();
    let output = rrhf(0.0, &vec![true; rows]);
    let rank = to_vec(output.sum())[0];
    // They weigh the ranking term instead of the NLL.
    let weight = case.param("rrhf_weight").unwrap();
    let total = output.sum() * weight + rrhf(1.0, &imitated).sum();
    let grads = total.clone().backward();
    let total = to_vec(total)[0];
    let numbers = [
        ("loss", vec![total]),
        ("scores", to_vec(output.rewards().clone())),
        ("rank_loss", vec![rank]),
        ("sft_loss", vec![total - weight * rank]),
        ("grad_logits", to_vec(leaf.grad(&grads).unwrap())),
    ];
    Ours::named(numbers)
}

fn pro(case: &Case) -> Ours {
    let queries = |key: &str| case.input[key].as_array().unwrap();
    let rewards = nested(&case.input["rewards"]);
    let count = rewards.len() as f64;
    let (mut total, mut sft) = (0.0, 0.0);
    let mut grads = Vec::new();
    for (query, scores) in rewards.iter().enumerate() {
        let labels = nested(&queries("labels")[query]);
        let flags = |key: &str| nested(&queries(key)[query]);
        let (attention, prefix) = (flags("attention_mask"), flags("prefix_mask"));
        // As written, the mask of position t counts the label of position t + 1.
        let mask: Vec<Vec<bool>> = (0..labels.len())
            .map(|i| {
                let counted = |t: usize| attention[i][t] > 0.0 && prefix[i][t] == 0.0;
                (0..labels[i].len())
                    .map(|t| t > 0 && counted(t - 1))
                    .collect()
            })
            .collect();
        let leaf = logits(&queries("logits")[query]).autodiff().require_grad();
        let tokens = token_tensor(&labels);
        let (log_probs, _) = token_log_probs(leaf.clone(), tokens, mask_tensor(&mask));
        let k = labels.len();
        let lists = log_probs.sequence().split_candidates(k).unwrap();
        // The authors' NLL is a sum, once per stage, and not divided by the number of queries.
        let best = (0..k).fold(0, |b, i| if scores[i] > scores[b] { i } else { b });
        let length = mask[best].iter().filter(|&&counted| counted).count();
        let weight = case.param("sft_weight").unwrap() * count * (k - 1) as f64 * length as f64;
        sft -= weight * to_vec(lists.mean())[best] / count;
        let present = bools(&vec![true; k]).reshape([1, k]);
        let list = Ranked::new(lists, f64s(scores).reshape([1, k]), present).unwrap();
        let pro = ProLossConfig::new().with_sft_weight(weight).init();
        let loss = pro.forward(list).normalized_by(count).unwrap();
        let gradient = loss.backward();
        total += to_vec(loss)[0];
        grads.extend(to_vec(leaf.grad(&gradient).unwrap()));
    }
    let numbers = [
        ("loss", vec![total]),
        ("sft_loss", vec![sft]),
        ("grad_logits", grads),
    ];
    let ours = Ours::named(numbers);
    ours.except(&["stage_losses"], Difference::Stages)
}

fn logps(case: &Case) -> Mapped {
    if case.input["kind"] != "logits" {
        return Err(Unmapped::Unknown);
    }
    let labels = nested(&case.input["labels"]);
    let mask: Vec<Vec<bool>> = labels
        .iter()
        .map(|row| row.iter().map(|&id| id >= 0.0).collect())
        .collect();
    let largest = all_numbers(&case.input["logits"]).into_iter();
    let largest = largest.fold(0.0, |largest: f64, x| largest.max(x.abs()));
    let leaf = logits(&case.input["logits"]).autodiff().require_grad();
    let scaled = leaf.clone() / case.param("temperature").unwrap_or(1.0);
    let (tokens, _) = token_log_probs(scaled, token_tensor(&labels), mask_tensor(&mask));
    let sequences = tokens.sequence();
    let rows = labels.len();
    let weights: Vec<f64> = (0..rows)
        .map(|i| 1.0 + i as f64 / (rows.max(2) - 1) as f64)
        .collect();
    let grads = (sequences.sum() * f64s(&weights)).sum().backward();
    let (_, statistics) = token_log_probs(leaf.clone(), token_tensor(&labels), mask_tensor(&mask));
    let numbers = [
        (
            "log_sum_sq_probs",
            to_vec(statistics.collisions().log_probs()),
        ),
        ("entropy", to_vec(statistics.entropy())),
        ("mean_logits", to_vec(statistics.mean_logits())),
        ("is_top1", to_vec(statistics.top1())),
        ("per_token", to_vec(tokens.log_probs())),
        ("sum", to_vec(sequences.sum())),
        ("mean", to_vec(sequences.mean())),
        ("grad_logits", to_vec(leaf.grad(&grads).unwrap())),
    ];
    let ours = Ours::named(numbers);
    Ok(match (case.mode, case.producer) {
        // Statistics in f32 whatever the input is: huge logits leave fewer digits.
        ("logps_f32", _) => ours.tolerance(if largest > 1e3 { 1e-3 } else { 1e-5 }),
        // Adds 1e-8 to the denominator of the mean.
        (_, "torchtune") => ours.tolerance(1e-7),
        _ => ours,
    })
}
