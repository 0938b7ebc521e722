//! Whole training steps of other code: from logits to loss, gradient of every logit and what the
//! code logs.
//!
//! A file is a list of cases, with its tensors in the `.safetensors` beside it, `id/name`:
//!
//! - `tokens`, `mask` `[rows, time]`; `logits`, `ref_logits`, `grad_logits` `[rows, time, vocab]`,
//!   of which row t predicts token t + 1; pairs are `[chosen; rejected]`
//! - or compact, as `scripts/compact_steps.py` writes them: `lengths` `[rows]`, and of all counted
//!   tokens in order `tokens` `[counted]` and the logits that predict them `[counted, vocab]`. With one
//!   column they are the log-odds of the token against all other words.
//! - `scores` of lists `[queries, N]` or of rows, `sequence_kl` `[rows]`
//!
//! Where a peer's formula is another one on purpose, [`Mapped::theirs`] computes it from its
//! definition, so that the reason is a number that was compared.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn_preference::batch::PerCompletion;
use burn_preference::log_probs::{Discrepancy, TokenDiscrepancy};
use burn_preference::math::softplus;
use burn_preference::modifier::wpo_weights;
use burn_preference::{
    AlphaPoLossConfig, AotLossConfig, ApoDownLossConfig, ApoZeroLossConfig, Batch, BatchMetrics,
    BcoLossConfig, BetaDpoLossConfig, CalDpoLossConfig, ChipoLossConfig, CpoLossConfig,
    Demonstrations, DiscopopLossConfig, Divergence, DpoLossConfig, DpoShiftLossConfig,
    DpopLossConfig, ExoListLossConfig, ExoPairLossConfig, GpoLossConfig, HdpoLossConfig,
    HingeLossConfig, InfoNcaLossConfig, IpoLossConfig, KlEstimate, KtoLossConfig, LabelNoise, Link,
    LipoLossConfig, LmHead, NcaLossConfig, NllNormalization, NpoLossConfig, Objective,
    OrpoLossConfig, Pair, PlackettLuceLossConfig, PolicyPair, Ranked, RdpoLossConfig,
    RebelLossConfig, ReferencedPair, RelativeLogProbs, SequenceLogProbs, SftLossConfig, SftTerm,
    SimnpoLossConfig, SimperLossConfig, SimpoLossConfig, SppoLossConfig, TdpoLossConfig,
    TokenLogProbs, TokenStatistics, TokenWeighting, Unpaired, WithBaseline, WithMargin,
    WithMeanMargin, WithScores, WithSequenceKl, WithShift, WithStepTokens,
};
use safetensors::SafeTensors;
use serde_json::{Map, Value};

use crate::map::{Difference, Uniform};
use crate::number;
use crate::support::{ZipEqual, bools, by_hidden, device, f64s, to_vec, token_log_probs};

/// Of the largest number of a list: everything is f64 here.
const TOLERANCE: f64 = 1e-12;

/// One step of a peer.
pub struct Step {
    pub id: String,
    pub peer: String,
    spec: Map<String, Value>,
    loss: f64,
    metrics: Vec<(String, f64)>,
    rows: usize,
    time: usize,
    vocab: usize,
    tokens: Vec<i64>,
    mask: Vec<bool>,
    logits: Vec<f64>,
    ref_logits: Option<Vec<f64>>,
    grad_logits: Vec<f64>,
    scores: Option<Vec<f64>>,
    sequence_kl: Option<Vec<f64>>,
}

/// The numbers of a tensor, and its shape; none where the file has none.
fn tensor<T>(
    file: &SafeTensors,
    name: &str,
    from: impl Fn(&[u8]) -> Vec<T>,
) -> Option<(Vec<usize>, Vec<T>)> {
    let view = file.tensor(name).ok()?;
    Some((view.shape().to_vec(), from(view.data())))
}

fn words<T>(bytes: &[u8], of: fn([u8; 8]) -> T) -> Vec<T> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    assert!(rest.is_empty());
    chunks.iter().map(|word| of(*word)).collect()
}

fn doubles(bytes: &[u8]) -> Vec<f64> {
    words(bytes, f64::from_le_bytes)
}

fn integers(bytes: &[u8]) -> Vec<i64> {
    words(bytes, i64::from_le_bytes)
}

/// All steps of a list, whose tensors are beside the file.
pub fn read(path: &Path, cases: &[Value]) -> Vec<Step> {
    let path = path.with_extension("safetensors");
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    cases.iter().map(|case| Step::new(case, &tensors)).collect()
}

impl Step {
    fn new(case: &Value, file: &SafeTensors) -> Self {
        let text = |key: &str| {
            case[key]
                .as_str()
                .unwrap_or_else(|| panic!("{key} of {case}"))
        };
        let id = text("id");
        let name = |name: &str| format!("{id}/{name}");
        let f64s = |key: &str| tensor(file, &name(key), doubles);
        let of_shape = |key: &str, shape: &[usize]| {
            let (found, numbers) = f64s(key)?;
            assert_eq!(found, shape, "{}", name(key));
            Some(numbers)
        };
        let (shape, logits) = f64s("logits").expect("logits");
        let ref_logits = of_shape("ref_logits", &shape);
        let grad_logits = of_shape("grad_logits", &shape).expect("grad_logits");
        let mut step = Self {
            id: id.to_owned(),
            peer: text("peer").to_owned(),
            spec: case["spec"].as_object().expect("spec").clone(),
            loss: number(&case["loss"]).expect("a loss"),
            metrics: case["metrics"]
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(key, value)| Some((key.clone(), number(value)?)))
                .collect(),
            rows: shape[0],
            time: *shape.get(1).unwrap(),
            vocab: *shape.last().unwrap(),
            tokens: Vec::new(),
            mask: Vec::new(),
            logits,
            ref_logits,
            grad_logits,
            scores: f64s("scores").map(|(_, scores)| scores),
            sequence_kl: f64s("sequence_kl").map(|(_, kl)| kl),
        };
        let tokens = tensor(file, &name("tokens"), integers).map(|(_, tokens)| tokens);
        if let Some((_, lengths)) = tensor(file, &name("lengths"), <[u8]>::to_vec) {
            step.expand(&lengths, tokens);
        } else {
            step.tokens = tokens.expect("tokens");
            let mask = tensor(file, &name("mask"), <[u8]>::to_vec).expect("mask").1;
            step.mask = mask.iter().map(|&counted| counted != 0).collect();
        }
        step
    }

    /// From the compact form: a prompt of one token, then the counted ones.
    fn expand(&mut self, lengths: &[u8], tokens: Option<Vec<i64>>) {
        let columns = self.vocab;
        self.rows = lengths.len();
        self.time = 1 + usize::from(lengths.iter().copied().max().unwrap());
        // The other words' logit is 0 where the token's is its log-odds; their gradients cancel.
        self.vocab = columns.max(2);
        let counted = self.rows * self.time;
        let spread = |numbers: &[f64], others: fn(f64) -> f64| {
            let mut out = vec![0.0; counted * columns.max(2)];
            let mut next = numbers.chunks_exact(columns);
            for (row, &length) in lengths.iter().enumerate() {
                for t in 0..usize::from(length) {
                    let words = next.next().unwrap();
                    let place = &mut out[(row * self.time + t) * columns.max(2)..];
                    place[..columns].copy_from_slice(words);
                    if columns == 1 {
                        place[1] = others(words[0]);
                    }
                }
            }
            assert!(next.next().is_none());
            out
        };
        self.logits = spread(&self.logits, |_| 0.0);
        self.ref_logits = self.ref_logits.as_ref().map(|x| spread(x, |_| 0.0));
        self.grad_logits = spread(&self.grad_logits, |slope| -slope);
        self.tokens = vec![0; counted];
        self.mask = vec![false; counted];
        let mut next = tokens.into_iter().flatten();
        for (row, &length) in lengths.iter().enumerate() {
            for t in 1..=usize::from(length) {
                self.mask[row * self.time + t] = true;
                self.tokens[row * self.time + t] = next.next().unwrap_or(0);
            }
        }
    }

    fn param(&self, name: &str) -> Option<f64> {
        number(self.spec.get(name)?)
    }

    #[track_caller]
    fn given(&self, name: &str) -> f64 {
        let param = self.param(name);
        param.unwrap_or_else(|| panic!("{} has no {name}", self.id))
    }

    fn beta(&self) -> f64 {
        self.given("beta")
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.spec.get(name)?.as_str()
    }

    pub fn name(&self) -> String {
        let spec = Value::from(self.spec.clone());
        format!("{} {} {spec}", self.peer, self.id)
    }

    fn of_logits(&self, numbers: &[f64]) -> Tensor<3> {
        let data = TensorData::new(numbers.to_vec(), [self.rows, self.time, self.vocab]);
        Tensor::from_data(data, (&device(), DType::F64))
    }

    fn tokens(&self) -> Tensor<2, Int> {
        let data = TensorData::new(self.tokens.clone(), [self.rows, self.time]);
        Tensor::from_data(data, &device())
    }

    fn mask(&self) -> Tensor<2, Bool> {
        bools(&self.mask).reshape([self.rows, self.time])
    }

    fn scores(&self) -> &[f64] {
        self.scores.as_deref().expect("scores")
    }

    /// What `of` makes of a forward pass, with the gradient of the logits.
    fn numbers(&self, of: &Formula) -> BTreeMap<String, Vec<f64>> {
        let leaf = self.of_logits(&self.logits).autodiff().require_grad();
        let (policy, statistics) = token_log_probs(leaf.clone(), self.tokens(), self.mask());
        let reference = self
            .ref_logits
            .as_ref()
            .map(|logits| token_log_probs(self.of_logits(logits), self.tokens(), self.mask()).0);
        let found = of(&Pass {
            logits: leaf.clone(),
            policy,
            statistics,
            reference,
        });
        let grads = found.loss.backward();
        let grad = leaf
            .grad(&grads)
            .unwrap_or_else(|| leaf.zeros_like().inner());
        let mut numbers = found.logged;
        numbers.insert("loss".to_owned(), to_vec(found.loss));
        numbers.insert("grad_logits".to_owned(), to_vec(grad));
        numbers
    }

    /// What the peer says, by the same names.
    fn expected(&self) -> Vec<(&str, Vec<f64>)> {
        let metrics = self.metrics.iter().map(|(key, x)| (key.as_str(), vec![*x]));
        let mut all: Vec<(&str, Vec<f64>)> = metrics.collect();
        all.push(("loss", vec![self.loss]));
        all.push(("grad_logits", self.grad_logits.clone()));
        if let Some(kl) = &self.sequence_kl {
            all.push(("sequence_kl", kl.clone()));
        }
        all
    }
}

/// A forward pass: the log-probs of policy and reference, and the leaf.
pub struct Pass {
    logits: Tensor<3>,
    policy: TokenLogProbs,
    statistics: TokenStatistics,
    reference: Option<TokenLogProbs>,
}

impl Pass {
    fn relative(&self) -> RelativeLogProbs {
        let reference = self.reference.as_ref().expect("a reference");
        let policy = self.policy.sequence();
        policy.relative_to(reference.sequence()).unwrap()
    }

    fn referenced(&self) -> ReferencedPair {
        halves(&self.relative())
    }

    fn pair(&self) -> PolicyPair {
        halves(&self.policy.sequence())
    }
}

fn halves<T: PerCompletion + Clone>(rows: &T) -> Pair<T> {
    Pair::from_concatenated(rows).unwrap()
}

/// A loss as the peer reduces it, and what is logged beside it.
pub struct Found {
    loss: Tensor<1>,
    logged: BTreeMap<String, Vec<f64>>,
}

impl Found {
    fn new(loss: Tensor<1>) -> Self {
        Self {
            loss,
            logged: BTreeMap::new(),
        }
    }

    fn with(mut self, key: &str, value: f64) -> Self {
        self.logged.insert(key.to_owned(), vec![value]);
        self
    }

    fn with_mean(self, key: &str, values: Tensor<1>) -> Self {
        let values = to_vec(values);
        self.with(key, values.iter().sum::<f64>() / values.len() as f64)
    }

    /// The margin and the accuracy of rewards r.
    fn with_rewards(self, chosen: Tensor<1>, rejected: Tensor<1>) -> Self {
        let margins = to_vec(chosen - rejected);
        let ahead = margins.iter().filter(|&&margin| margin > 0.0).count();
        let n = margins.len() as f64;
        let margin = margins.iter().sum::<f64>() / n;
        self.with("margin", margin)
            .with("reward_acc", ahead as f64 / n)
    }
}

type Formula = Box<dyn Fn(&Pass) -> Found>;

/// A case in our terms.
pub struct Mapped {
    /// The objective's struct, and what it makes of the case.
    objective: &'static str,
    ours: Formula,
    /// The peer's own formula, where it is another one.
    theirs: Option<(Difference, Formula)>,
    tolerance: f64,
}

impl Mapped {
    fn new(objective: &'static str, ours: impl Fn(&Pass) -> Found + 'static) -> Self {
        Self {
            objective,
            ours: Box::new(ours),
            theirs: None,
            tolerance: TOLERANCE,
        }
    }

    fn or(self, difference: Difference, theirs: impl Fn(&Pass) -> Found + 'static) -> Self {
        Self {
            theirs: Some((difference, Box::new(theirs))),
            ..self
        }
    }
}

/// What the comparison of a step found.
pub enum Verdict {
    /// Ours, so many lists of numbers.
    Same {
        objective: &'static str,
        lists: usize,
    },
    /// The peer's own formula, for this reason.
    Different {
        difference: Difference,
        lists: usize,
    },
    Unmapped(String),
    Mismatch(Vec<String>),
}

pub fn check(step: &Step) -> Verdict {
    let Some(mapped) = map(step) else {
        return Verdict::Unmapped(step.name());
    };
    let expected = step.expected();
    let mut texts = Vec::new();
    let ours = compare(
        step,
        &expected,
        &step.numbers(&mapped.ours),
        mapped.tolerance,
    );
    match ours {
        Ok(lists) => {
            let objective = mapped.objective;
            return Verdict::Same { objective, lists };
        }
        Err(text) => texts.push(text),
    }
    if let Some((difference, theirs)) = &mapped.theirs {
        match compare(step, &expected, &step.numbers(theirs), mapped.tolerance) {
            Ok(lists) => {
                let difference = *difference;
                return Verdict::Different { difference, lists };
            }
            Err(text) => texts.push(format!("and with {difference:?}: {text}")),
        }
    }
    Verdict::Mismatch(texts)
}

fn compare(
    step: &Step,
    expected: &[(&str, Vec<f64>)],
    ours: &BTreeMap<String, Vec<f64>>,
    tolerance: f64,
) -> Result<usize, String> {
    for (key, expected) in expected {
        let Some(ours) = ours.get(*key) else {
            return Err(format!("{}: no number of ours is its {key}", step.name()));
        };
        if ours.len() != expected.len() {
            let (a, b) = (ours.len(), expected.len());
            return Err(format!(
                "{}: {key} has {a} values instead of {b}",
                step.name()
            ));
        }
        let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let allowed = match *key {
            // The mean of indicators is f32 in the peer.
            "reward_acc" => 1e-6,
            // The mean of what cancels: numbers of the size of a log-ratio, 1.
            "margin" => tolerance,
            _ => tolerance * largest,
        };
        for (i, (a, b)) in ours.iter().zip_equal(expected).enumerate() {
            // Written so that a NaN fails.
            let close = (a - b).abs() <= allowed;
            if !close {
                return Err(format!("{}: {key}[{i}] is {a} instead of {b}", step.name()));
            }
        }
    }
    Ok(expected.len())
}

/// An objective on pairs against the reference, with the rewards that oxRL logs: β·ρ.
fn referenced(
    objective: &'static str,
    beta: f64,
    build: impl Objective<ReferencedPair> + 'static,
) -> Mapped {
    Mapped::new(objective, of_referenced(beta, build))
}

fn of_referenced(
    beta: f64,
    objective: impl Objective<ReferencedPair> + 'static,
) -> impl Fn(&Pass) -> Found {
    move |pass| {
        let batch = pass.referenced();
        logged(&batch, beta, objective.forward(batch.clone()).mean())
    }
}

fn logged(batch: &ReferencedPair, beta: f64, loss: Tensor<1>) -> Found {
    let rho = batch.log_ratios();
    Found::new(loss).with_rewards(rho.chosen * beta, rho.rejected * beta)
}

pub fn map(step: &Step) -> Option<Mapped> {
    let (peer, algorithm) = step.peer.split_once('.')?;
    match peer {
        "oxrl" => oxrl(step, algorithm),
        "trl" => sft(step, algorithm),
        _ => authors(step),
    }
}

/// TRL's SFT: a mean over the tokens of the batch, or of a step of which the batch is a part.
fn sft(step: &Step, algorithm: &str) -> Option<Mapped> {
    let weighting = match (algorithm, step.text("loss_type")?) {
        ("sft", "nll") => TokenWeighting::Uniform,
        ("sft", "dft") => TokenWeighting::Probability,
        _ => return None,
    };
    let sft = SftLossConfig::new().with_token_weighting(weighting).init();
    let of_step = step.param("num_items");
    Some(Mapped::new("SftLoss", move |pass| {
        let batch = Demonstrations::new(pass.policy.clone());
        Found::new(match of_step {
            None => sft.forward(batch).mean(),
            Some(tokens) => {
                let examples = batch.len() as f64;
                let batch = WithStepTokens::new(batch, tokens, examples).unwrap();
                sft.forward(batch).mean()
            }
        })
    }))
}

/// Ours and, of the peers' numbers, what they log; nothing is logged by the authors' code.
fn authors(step: &Step) -> Option<Mapped> {
    let beta = step.param("beta").unwrap_or(1.0);
    Some(match step.peer.as_str() {
        "tdpo.tdpo2" => {
            let config = TdpoLossConfig::new()
                .with_beta(beta)
                .with_kl_weight(step.given("kl_weight"));
            let (objective, reference) = (config.init(), step.ref_logits.clone()?);
            let (reference, mask) = (step.of_logits(&reference), step.mask());
            Mapped::new("TdpoLoss", move |pass| {
                let kl = kl(pass.logits.clone(), reference.clone(), mask.clone());
                let sides = halves(&kl);
                let batch = WithSequenceKl::new(pass.referenced(), sides).unwrap();
                let mut found = Found::new(objective.forward(batch).mean());
                found.logged.insert("sequence_kl".to_owned(), to_vec(kl));
                found
            })
        }
        "unlearning.npo" => {
            let objective = NpoLossConfig::new().with_beta(beta).init();
            Mapped::new("NpoLoss", move |pass| {
                Found::new(objective.forward(pass.relative()).mean())
            })
        }
        "unlearning.simnpo" => {
            let config = SimnpoLossConfig::from_margin_ratio(beta, step.given("delta"));
            let objective = config.init();
            Mapped::new("SimnpoLoss", move |pass| {
                Found::new(objective.forward(pass.policy.sequence()).mean())
            })
        }
        "betadpo.authors" => {
            let config = BetaDpoLossConfig::new()
                .with_beta(beta)
                .with_sensitivity(step.given("a"));
            let (objective, mean) = (config.init(), step.given("gap_mean"));
            Mapped::new("BetaDpoLoss", move |pass| {
                let batch = WithMeanMargin::new(pass.referenced(), f64s(&[mean])).unwrap();
                Found::new(objective.forward(batch).mean())
            })
        }
        "simper.authors" => {
            let objective = SimperLossConfig::new().init();
            Mapped::new("SimperLoss", move |pass| {
                Found::new(objective.forward(pass.pair()).mean())
            })
        }
        "rebel.authors" => {
            let config = RebelLossConfig::new().with_score_scale(step.given("eta"));
            let objective = config.init();
            let scores = halves(&f64s(step.scores()));
            Mapped::new("RebelLoss", move |pass| {
                let batch = WithScores::new(pass.referenced(), scores.clone()).unwrap();
                Found::new(objective.forward(batch).mean())
            })
        }
        "exo.exo" => list(
            step,
            "ExoListLoss",
            ExoListLossConfig::new()
                .with_beta(beta)
                .with_score_temperature(step.given("score_temperature"))
                .init(),
        ),
        "exo.infonca" => list(
            step,
            "InfoNcaLoss",
            InfoNcaLossConfig::new()
                .with_beta(beta)
                .with_score_temperature(step.given("score_temperature"))
                .init(),
        ),
        "allrank.listmle" => list(
            step,
            "PlackettLuceLoss",
            PlackettLuceLossConfig::new().with_beta(beta).init(),
        ),
        "allrank.lambdarank" => list(
            step,
            "LipoLoss",
            LipoLossConfig::new().with_beta(beta).init(),
        ),
        _ => return None,
    })
}

/// The KL of every sequence, by the path that the environment names.
fn kl(policy: Tensor<3>, reference: Tensor<3>, mask: Tensor<2, Bool>) -> Tensor<1> {
    if by_hidden() {
        let [_, _, vocab] = policy.dims();
        let head = LmHead::new(Tensor::<2>::eye(vocab, &policy.device()).cast(DType::F64));
        let (ours, theirs) = ((policy, head.clone()), (reference, head));
        let kl = TokenDiscrepancy::from_outputs(Discrepancy::ForwardKl, ours, theirs, mask);
        return kl.unwrap().sums();
    }
    let kl = TokenDiscrepancy::from_outputs(Discrepancy::ForwardKl, policy, reference, mask);
    kl.unwrap().sums()
}

/// An objective on lists of N rows each.
fn list(
    step: &Step,
    name: &'static str,
    objective: impl Objective<Ranked<RelativeLogProbs<2>>> + 'static,
) -> Mapped {
    let scores = step.scores().to_vec();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count"
    )]
    let candidates = step.given("N") as usize;
    Mapped::new(name, move |pass| {
        let shape = [scores.len() / candidates, candidates];
        let split = |y: SequenceLogProbs| y.split_candidates(candidates).unwrap();
        let reference = pass.reference.as_ref().expect("a reference").sequence();
        let relative = split(pass.policy.sequence()).relative_to(split(reference));
        let present = bools(&vec![true; scores.len()]).reshape(shape);
        let scores = f64s(&scores).reshape(shape);
        let batch = Ranked::new(relative.unwrap(), scores, present).unwrap();
        Found::new(objective.forward(batch).mean())
    })
}

/// NLL of the chosen completions, a mean over all their tokens.
fn token_nll(pair: &PolicyPair) -> Tensor<1> {
    NllNormalization::Token.nll(&pair.chosen)
}

#[expect(clippy::too_many_lines, reason = "a table: an arm per algorithm")]
fn oxrl(step: &Step, algorithm: &str) -> Option<Mapped> {
    let beta = step.beta();
    let dpo = || DpoLossConfig::new().with_beta(beta);
    let smoothing = step.param("label_smoothing").unwrap_or(0.0);
    Some(match algorithm {
        "dpo" => referenced("DpoLoss", beta, dpo().init()),
        "sampo" => sampo(beta),
        "cdpo" => {
            let noise = LabelNoise::Conservative(smoothing);
            referenced("DpoLoss", beta, dpo().with_label_noise(noise).init())
        }
        "robust_dpo" => {
            let robust = dpo().with_label_noise(LabelNoise::Robust(smoothing));
            let conservative = dpo()
                .with_label_noise(LabelNoise::Conservative(smoothing))
                .init();
            referenced("DpoLoss", beta, robust.init()).or(Difference::RobustSign, move |pass| {
                let batch = pass.referenced();
                let loss = conservative.forward(batch.clone()).mean();
                logged(&batch, beta, loss / (1.0 - 2.0 * smoothing))
            })
        }
        "ipo" => referenced(
            "IpoLoss",
            beta,
            IpoLossConfig::paper().with_tau(beta).init(),
        ),
        "hinge" => referenced(
            "HingeLoss",
            beta,
            HingeLossConfig::new().with_beta(beta).init(),
        ),
        "dpop" => {
            let config = DpopLossConfig::new().with_penalty(step.given("dpop_lambda"));
            referenced("DpopLoss", beta, config.with_beta(beta).init())
        }
        "rdpo" => rdpo(step),
        "caldpo" => {
            let weight = step.given("caldpo_lambda");
            let config = CalDpoLossConfig::new().with_beta(beta);
            let (whole, alone) = (
                config.clone().with_calibration_weight(weight).init(),
                config.with_calibration_weight(0.0).init(),
            );
            Mapped::new("CalDpoLoss", move |pass| {
                let batch = pass.referenced();
                let loss = whole.forward(batch.clone()).mean();
                let logistic = to_vec(alone.forward(batch.clone()).mean())[0];
                let calibration = (to_vec(loss.clone())[0] - logistic) / weight;
                logged(&batch, beta, loss)
                    .with("loss_bt", logistic)
                    .with("loss_cal", calibration)
            })
        }
        "betadpo" => beta_dpo_per_pair(step),
        "drdpo" => {
            let (objective, beta_prime) = (dpo().init(), step.given("beta_prime"));
            Mapped::new("DpoLoss", move |pass| {
                let batch = pass.referenced();
                let output = objective.forward(batch.clone());
                logged(&batch, beta, output.robust_mean(beta_prime).unwrap())
            })
        }
        "hdpo" => {
            let config = HdpoLossConfig::new(step.given("hdpo_alpha")).with_beta(beta);
            referenced("HdpoLoss", beta, config.init())
        }
        "dposhift" => {
            let config = DpoShiftLossConfig::new().with_beta(beta);
            let config = config.with_rejected_share(step.given("shift_lambda"));
            referenced("DpoShiftLoss", beta, config.init())
        }
        "chipo" => referenced(
            "ChipoLoss",
            beta,
            ChipoLossConfig::new().with_beta(beta).init(),
        ),
        "gpo" => gpo(step)?,
        "odpo" => {
            let (objective, margin) = (dpo().init(), step.given("odpo_delta"));
            Mapped::new("DpoLoss", move |pass| {
                let batch = pass.referenced();
                let margins = f64s(&vec![margin; batch.chosen.policy().sum().dims()[0]]);
                let beside = WithMargin::new(batch.clone(), margins).unwrap();
                logged(&batch, beta, objective.forward(beside).mean())
            })
        }
        "sppo" => referenced(
            "SppoLoss",
            beta,
            SppoLossConfig::new().with_beta(beta).init(),
        ),
        "exo" => referenced(
            "ExoPairLoss",
            beta,
            ExoPairLossConfig::new().with_beta(beta).init(),
        ),
        "nca" => referenced("NcaLoss", beta, NcaLossConfig::new().with_beta(beta).init()),
        "bco" => referenced("BcoLoss", beta, BcoLossConfig::new().with_beta(beta).init()),
        "apo" => match step.text("apo_mode")? {
            "zero" => less_one(
                "ApoZeroLoss",
                beta,
                ApoZeroLossConfig::new().with_beta(beta).init(),
            ),
            "down" => less_one(
                "ApoDownLoss",
                beta,
                ApoDownLossConfig::new().with_beta(beta).init(),
            ),
            _ => return None,
        },
        "discopop" => {
            let config = DiscopopLossConfig::new().with_beta(beta);
            referenced("DiscopopLoss", beta, config.init())
        }
        "aot" => {
            let config = AotLossConfig::new().with_beta(beta).with_paired(false);
            referenced("AotLoss", beta, config.init())
        }
        "dpnll" => {
            let (objective, weight) = (dpo().init(), step.given("dpnll_alpha"));
            let term = SftTerm::new(objective.clone(), weight).unwrap();
            let term = term.with_normalization(NllNormalization::Token);
            Mapped::new("DpoLoss", move |pass| {
                let batch = pass.referenced();
                let alone = objective.forward(batch.clone());
                logged(&batch, beta, term.forward(batch.clone()).mean())
                    .with_mean("dpo_loss", alone.losses())
                    .with_mean("nll_loss", token_nll(&pass.pair()))
            })
        }
        "fdpo" => f_dpo(step)?,
        "simpo" | "alphapo" => simpo(step, algorithm),
        "cpo" | "cposimpo" => cpo(step, algorithm)?,
        "orpo" => {
            let config = OrpoLossConfig::trl().with_odds_ratio_weight(beta);
            let objective = config.init();
            Mapped::new("OrpoLoss", move |pass| {
                let pair = pass.pair();
                let odds = BatchMetrics::default().with_log_odds(&pair).read().unwrap();
                Found::new(objective.forward(pair.clone()).mean())
                    .with_mean("sft_loss", token_nll(&pair))
                    .with("or_loss", -odds.get("log_odds_ratio").unwrap())
            })
        }
        "wpo" => wpo(step),
        "kto" => kto(step),
        _ => return None,
    })
}

/// APO without the constant that makes it positive.
fn less_one(
    name: &'static str,
    beta: f64,
    objective: impl Objective<ReferencedPair> + Clone + 'static,
) -> Mapped {
    let theirs = of_referenced(beta, objective.clone());
    referenced(name, beta, objective).or(Difference::Constant, move |pass| {
        let found = theirs(pass);
        Found {
            loss: found.loss - 1.0,
            ..found
        }
    })
}

/// SamPO on completions of equal lengths, of which all tokens stay whatever is drawn. oxRL sums
/// them in f32.
fn sampo(beta: f64) -> Mapped {
    let mapped = Mapped::new("DpoLoss", move |pass| {
        let reference = halves(pass.reference.as_ref().expect("a reference"));
        let pair = halves(&pass.policy).relative_to(reference).unwrap();
        let noise = halves(&pass.policy.log_probs().without_autodiff());
        let batch = pair.subsampled(&noise).unwrap().sequences();
        let output = DpoLossConfig::new()
            .with_beta(beta)
            .init()
            .forward(batch.clone());
        logged(&batch, beta, output.mean())
    });
    Mapped {
        tolerance: 1e-6,
        ..mapped
    }
}

fn gpo(step: &Step) -> Option<Mapped> {
    let beta = step.beta();
    let link = match step.text("gpo_loss_type")? {
        "logistic" => {
            let dpo = DpoLossConfig::new().with_beta(beta).init();
            return Some(referenced("DpoLoss", beta, dpo));
        }
        "exponential" => Link::Exponential,
        "truncated_quadratic" => Link::SquaredHinge,
        "savage" => Link::Savage,
        _ => return None,
    };
    let config = GpoLossConfig::new().with_beta(beta).with_link(link);
    Some(referenced("GpoLoss", beta, config.init()))
}

/// R-DPO, whose length oxRL subtracts. It multiplies α and the lengths in f32.
fn rdpo(step: &Step) -> Mapped {
    let (beta, alpha) = (step.beta(), step.given("alpha"));
    let config = RdpoLossConfig::new()
        .with_beta(beta)
        .with_length_cost(alpha);
    let dpo = DpoLossConfig::new().with_beta(beta).init();
    let longer = |pass: &Pass| pass.pair().map_ref(SequenceLogProbs::lengths).margin();
    let ours = of_referenced(beta, config.init());
    let with_lengths =
        move |found: Found, pass: &Pass| found.with_mean("avg_length_diff", longer(pass));
    let mapped = Mapped::new("RdpoLoss", move |pass| with_lengths(ours(pass), pass)).or(
        Difference::LengthSign,
        move |pass| {
            let batch = pass.referenced();
            let subtracted = longer(pass) * alpha;
            let beside = WithMargin::new(batch.clone(), subtracted).unwrap();
            let loss = dpo.forward(beside).mean();
            with_lengths(logged(&batch, beta, loss), pass)
        },
    );
    Mapped {
        tolerance: 1e-7,
        ..mapped
    }
}

/// β-DPO with a β for every pair, through which gradients flow: β·(1 + a·(Δ − 0.3)).
fn beta_dpo_per_pair(step: &Step) -> Mapped {
    let (beta, a) = (step.beta(), step.given("betadpo_alpha"));
    let threshold = 0.3;
    let config = BetaDpoLossConfig::new().with_beta(beta).with_sensitivity(a);
    let ours = config.init();
    Mapped::new("BetaDpoLoss", move |pass| {
        let batch = pass.referenced();
        let beside = WithMeanMargin::new(batch.clone(), f64s(&[threshold])).unwrap();
        let loss = ours.forward(beside).mean();
        let margins = batch.log_ratios().margin();
        let of_batch = margins.mean().sub_scalar(threshold) * (a * beta) + beta;
        logged(&batch, beta, loss).with_mean("dynamic_beta", of_batch)
    })
    .or(Difference::BetaPerPair, move |pass| {
        let batch = pass.referenced();
        let delta = batch.log_ratios().margin();
        let betas = ((delta.clone() - threshold) * a + 1.0) * beta;
        let loss = softplus(-(betas.clone() * delta)).mean();
        logged(&batch, beta, loss).with_mean("dynamic_beta", betas)
    })
}

/// f-DPO; oxRL compares other functions of the log-ratio.
fn f_dpo(step: &Step) -> Option<Mapped> {
    let beta = step.beta();
    let (divergence, theirs): (_, Box<dyn Fn(Tensor<1>) -> Tensor<1>>) =
        match step.text("fdpo_divergence")? {
            "reverse_kl" => (Divergence::ReverseKl, Box::new(move |rho| rho * beta)),
            // ρ + e^(−ρ), whose derivative is the g of forward KL.
            "forward_kl" => {
                let r = move |rho: Tensor<1>| (rho.clone() + (-rho).exp()) * beta;
                (Divergence::ForwardKl, Box::new(r))
            }
            // βρ − ln(1 + e^ρ).
            "js_divergence" => {
                let r = move |rho: Tensor<1>| rho.clone() * beta - softplus(rho);
                (Divergence::JensenShannon, Box::new(r))
            }
            // g without β.
            "alpha_divergence" => {
                let alpha = step.given("fdpo_alpha");
                let r = move |rho: Tensor<1>| (-(-rho * alpha).exp() + 1.0) * alpha.recip();
                (Divergence::Alpha(alpha), Box::new(r))
            }
            _ => return None,
        };
    let dpo = DpoLossConfig::new()
        .with_beta(beta)
        .with_divergence(divergence);
    let mapped = referenced("DpoLoss", beta, dpo.init());
    Some(mapped.or(Difference::OtherDivergence, move |pass| {
        let batch = pass.referenced();
        let r = batch.log_ratios().map(&theirs);
        logged(&batch, beta, softplus(-r.margin()).mean())
    }))
}

/// SimPO and AlphaPO, whose margins are logged without β.
fn simpo(step: &Step, algorithm: &str) -> Mapped {
    let (beta, gamma) = (step.beta(), step.given("gamma"));
    let (name, objective): (_, Box<dyn Objective<PolicyPair>>) = if algorithm == "alphapo" {
        let config = AlphaPoLossConfig::new()
            .with_beta(beta)
            .with_target_margin(gamma);
        let config = config.with_alpha(step.given("alpha"));
        ("AlphaPoLoss", Box::new(config.init()))
    } else {
        let config = SimpoLossConfig::new()
            .with_beta(beta)
            .with_target_margin(gamma);
        ("SimpoLoss", Box::new(config.init()))
    };
    Mapped::new(name, move |pass| {
        let pair = pass.pair();
        let output = objective.forward(pair.clone());
        let rewards = output.rewards().clone();
        let means = pair.map_ref(SequenceLogProbs::mean);
        Found::new(output.mean())
            .with_rewards(rewards.chosen / beta, rewards.rejected / beta)
            .with_mean("logps_margin", means.margin())
    })
}

type Boxed = Box<dyn Objective<PolicyPair>>;

/// CPO and its kin, all with the NLL of the chosen completions.
fn cpo(step: &Step, algorithm: &str) -> Option<Mapped> {
    let beta = step.beta();
    let weight = step
        .param("cpo_alpha")
        .or(step.param("cposimpo_alpha"))
        .unwrap_or(1.0);
    let noise = LabelNoise::Conservative(step.param("label_smoothing").unwrap_or(0.0));
    let cpo = CpoLossConfig::trl().with_beta(beta).with_label_noise(noise);
    let term = |objective: Boxed| {
        let term = SftTerm::new(objective, weight).unwrap();
        Box::new(term.with_normalization(NllNormalization::Token)) as Boxed
    };
    let mean = algorithm == "cposimpo";
    let (name, preference, whole): (_, Boxed, Boxed) = if mean {
        let gamma = step.given("gamma");
        let simpo = SimpoLossConfig::new()
            .with_beta(beta)
            .with_target_margin(gamma)
            .init();
        ("SimpoLoss", Box::new(simpo.clone()), term(Box::new(simpo)))
    } else {
        match step.text("loss_type").unwrap_or("sigmoid") {
            "sigmoid" => (
                "CpoLoss",
                Box::new(cpo.clone().with_sft_weight(0.0).init()),
                Box::new(cpo.with_sft_weight(weight).init()),
            ),
            "hinge" => {
                let hinge = Uniform(HingeLossConfig::new().with_beta(beta).init());
                ("HingeLoss", Box::new(hinge.clone()), term(Box::new(hinge)))
            }
            _ => return None,
        }
    };
    Some(Mapped::new(name, move |pass| {
        let pair = pass.pair();
        let logps = pair.map_ref(|y| if mean { y.mean() } else { y.sum() });
        Found::new(whole.forward(pair.clone()).mean())
            .with_rewards(logps.chosen, logps.rejected)
            .with_mean("pref_loss", preference.forward(pair.clone()).losses())
            .with_mean("nll_loss", token_nll(&pair))
    }))
}

/// WPO: oxRL weighs by e^(ℓ̄_w + ℓ̄_l), divides by the weights' sum, and lets gradients through.
fn wpo(step: &Step) -> Mapped {
    let beta = step.beta();
    let dpo = DpoLossConfig::new().with_beta(beta).init();
    let ours = dpo.clone();
    Mapped::new("DpoLoss", move |pass| {
        let policy = halves(&pass.policy);
        let collisions = halves(&pass.statistics.collisions());
        let weights = wpo_weights(&policy, &collisions, Some(1.0)).unwrap();
        let batch = pass.referenced();
        let loss = ours.forward(batch.clone()).losses() * weights.clone();
        logged(&batch, beta, loss.mean()).with_mean("avg_weight", weights)
    })
    .or(Difference::WpoWeights, move |pass| {
        let means = pass.pair().map_ref(SequenceLogProbs::mean);
        let weights = (means.chosen + means.rejected).exp();
        let batch = pass.referenced();
        let losses = dpo.forward(batch.clone()).losses();
        let loss = (losses * weights.clone()).sum() / weights.clone().sum();
        logged(&batch, beta, loss).with_mean("avg_weight", weights)
    })
}

/// KTO: oxRL takes −ln σ for 1 − σ, and a moving mean of the chosen ρ for z₀.
fn kto(step: &Step) -> Mapped {
    let beta = step.beta();
    let z0 = |pass: &Pass| {
        let chosen = pass.referenced().log_ratios().chosen.without_autodiff();
        chosen.mean() * 0.1
    };
    let kto = KtoLossConfig::new().with_beta(beta).init();
    let bco = BcoLossConfig::new().with_beta(beta).init();
    let ours = move |pass: &Pass| {
        let relative = pass.relative();
        let rows = relative.policy().sum().dims()[0];
        let labels: Vec<bool> = (0..rows).map(|i| i < rows / 2).collect();
        let baseline = KlEstimate::from_mismatched(&relative).baseline();
        let batch = Unpaired::new(relative, bools(&labels)).unwrap();
        let batch = WithBaseline::new(batch, baseline.clone()).unwrap();
        Found::new(kto.forward(batch).mean()).with_mean("kl_ema", baseline)
    };
    Mapped::new("KtoLoss", ours).or(Difference::LogisticKto, move |pass| {
        let z0 = z0(pass);
        let batch = WithShift::new(pass.referenced(), z0.clone() * beta).unwrap();
        // Over completions, of which a pair has two.
        let loss = bco.forward(batch).mean() * 0.5;
        Found::new(loss).with_mean("kl_ema", z0)
    })
}

/// A digit more or less, in a loss, a gradient or a metric, is a mismatch; what nobody mapped says so.
#[test]
fn another_number_does_not_pass() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/steps.json");
    let cases = crate::read(&path);
    let steps = || read(&path, cases.as_array().unwrap());
    let wrong = |change: fn(&mut Step)| {
        for mut step in steps() {
            // What the peer has in f32 tells no such digit.
            if matches!(step.peer.as_str(), "oxrl.rdpo" | "oxrl.sampo") {
                continue;
            }
            change(&mut step);
            assert!(
                matches!(check(&step), Verdict::Mismatch(_)),
                "{}",
                step.name()
            );
        }
    };
    wrong(|step| step.loss *= 1.0 + 1e-10);
    wrong(|step| step.loss = f64::NAN);
    wrong(|step| {
        let gradients = step.grad_logits.iter_mut();
        *gradients.max_by(|a, b| a.total_cmp(b)).unwrap() *= 1.0 + 1e-10;
    });
    wrong(|step| step.metrics.push(("loss".to_owned(), 17.0)));
    for mut step in steps() {
        step.metrics.push(("tokens per second".to_owned(), 1.0));
        assert!(
            matches!(check(&step), Verdict::Mismatch(_)),
            "{}",
            step.name()
        );
        step.peer = "nobody.dpo".to_owned();
        assert!(
            matches!(check(&step), Verdict::Unmapped(_)),
            "{}",
            step.name()
        );
    }
}
