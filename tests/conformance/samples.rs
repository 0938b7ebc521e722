//! GRPO and its relatives beside TRL's trainers (scripts/grpo_goldens.py): advantages, loss, the
//! gradient with respect to every log-probability, and metrics, of every `loss_type` that is claimed;
//! and beside Liger's loss of the same samples.

use std::collections::BTreeMap;

use burn::tensor::{Bool, DType, Tensor, TensorData};
use burn_preference::{
    Advantage, BatchMetrics, GroupedReward, GrpoLoss, GrpoLossConfig, KlEstimator, Metrics,
    Objective, RatioClip, RatioLevel, Samples, TokenLogProbs, TokenNormalization,
};
use serde::Deserialize;

use crate::support::{device, error, floats, to_vec};

/// Of losses, gradients and metrics; TRL computes them in f32.
const TOLERANCE: f64 = 2e-6;

type Rows = Vec<Vec<f64>>;

#[derive(Deserialize)]
struct Goldens {
    longest: f64,
    rewards: Vec<f64>,
    groups: Vec<usize>,
    policy: Rows,
    sampler: Rows,
    reference: Rows,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    options: Options,
    advantages: Vec<f64>,
    loss: f64,
    grads: Rows,
    metrics: BTreeMap<String, f64>,
    /// None where Liger has no such objective.
    liger: Option<OfLiger>,
}

#[derive(Deserialize)]
struct OfLiger {
    loss: f64,
    grads: Rows,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    rloo: bool,
    #[serde(default)]
    loss_type: String,
    #[serde(default)]
    scale_rewards: Option<String>,
    #[serde(default)]
    importance_sampling_level: Option<String>,
    #[serde(default)]
    epsilon: Option<f64>,
    #[serde(default)]
    epsilon_high: Option<f64>,
    #[serde(default)]
    delta: Option<f64>,
    #[serde(default)]
    use_bias_correction_kl: Option<bool>,
    beta: f64,
}

impl Options {
    /// The same objective here.
    fn config(&self, longest: f64) -> GrpoLossConfig {
        let low = self.epsilon.unwrap_or(0.2);
        let config = GrpoLossConfig::new()
            .with_clip_low(low)
            .with_clip_high(self.epsilon_high.unwrap_or(low));
        if self.rloo {
            // Its β is one of the rewards.
            return config
                .with_advantage(Advantage::LeaveOneOut)
                .with_level(RatioLevel::Completion)
                .with_normalization(TokenNormalization::Sequence);
        }
        let advantage = match self.scale_rewards.as_deref() {
            None => Advantage::Normalized(1e-4),
            Some("batch") => Advantage::NormalizedByAll(1e-4),
            Some("none") => Advantage::Centered,
            Some(other) => panic!("{other}"),
        };
        let level = match self.importance_sampling_level.as_deref() {
            None => RatioLevel::Token,
            Some("sequence") => RatioLevel::Sequence,
            Some(other) => panic!("{other}"),
        };
        let normalization = match self.loss_type.as_str() {
            "dapo" | "bnpo" | "cispo" => TokenNormalization::Token,
            "grpo" => TokenNormalization::Sequence,
            "dr_grpo" => TokenNormalization::Constant(longest),
            "luspo" => TokenNormalization::Constant(1.0),
            other => panic!("{other}"),
        };
        let kl = match self.use_bias_correction_kl {
            Some(false) => KlEstimator::K3,
            _ => KlEstimator::WeightedK3,
        };
        let config = config
            .with_advantage(advantage)
            .with_level(level)
            .with_normalization(normalization)
            .with_beta(self.beta)
            .with_kl(kl);
        match (self.delta, self.loss_type.as_str()) {
            (Some(delta), _) => config.with_clip(RatioClip::TwoSided(delta)),
            // Its bound is that of the ratio, and there is none below.
            (None, "cispo") => config
                .with_clip(RatioClip::Weight)
                .with_clip_low(1.0)
                .with_clip_high(self.epsilon_high.unwrap() - 1.0),
            (None, _) => config,
        }
    }
}

impl Goldens {
    fn read() -> Self {
        serde_json::from_str(include_str!("../data/grpo.json")).unwrap()
    }

    fn shape(&self) -> [usize; 2] {
        let longest = self.policy.iter().map(Vec::len).max().unwrap();
        [self.policy.len(), longest]
    }

    /// Rows as a rectangle; what does not count is `rest`.
    fn padded(&self, rows: &Rows, rest: f64) -> Vec<f64> {
        let [_, time] = self.shape();
        let row = |row: &Vec<f64>| {
            let mut row = row.clone();
            row.resize(time, rest);
            row
        };
        rows.iter().flat_map(row).collect()
    }

    fn tokens(&self, values: Tensor<1>) -> TokenLogProbs {
        let [_, time] = self.shape();
        let counts = |row: &Vec<f64>| {
            let length = row.len();
            (0..time).map(move |t| t < length)
        };
        let mask: Vec<bool> = self.policy.iter().flat_map(counts).collect();
        let mask = Tensor::<2, Bool>::from_data(TensorData::new(mask, self.shape()), &device());
        TokenLogProbs::new(values.reshape(self.shape()), mask).unwrap()
    }

    /// The rewards as the trainer of a case has them: RLOO subtracts the sampler's KL.
    fn rewards(&self, options: &Options) -> Vec<GroupedReward> {
        let mut rewards = self.rewards.clone();
        if options.rloo {
            let rows = self.sampler.iter().zip(&self.reference);
            for (reward, (sampler, reference)) in rewards.iter_mut().zip(rows) {
                *reward -=
                    options.beta * (sampler.iter().sum::<f64>() - reference.iter().sum::<f64>());
            }
        }
        GroupedReward::of_groups(&rewards, &self.groups).unwrap()
    }

    fn run(&self, case: &Case, dtype: DType) -> (f64, Vec<f64>, Metrics) {
        let grpo: GrpoLoss = case.options.config(self.longest).init();
        let of = |rows: &Rows| floats(&self.padded(rows, f64::NAN), dtype);
        let leaf = of(&self.policy).autodiff().require_grad();
        let batch = Samples::new(
            self.tokens(leaf.clone()),
            self.tokens(of(&self.sampler)),
            &self.rewards(&case.options),
        );
        let batch = batch.unwrap();
        let (loss, metrics) = if grpo.config().beta > 0.0 {
            let batch = batch.relative_to(self.tokens(of(&self.reference))).unwrap();
            let output = grpo.forward(batch.clone());
            (output.mean(), BatchMetrics::observe(&batch, &output))
        } else {
            let output = grpo.forward(batch.clone());
            (output.mean(), BatchMetrics::observe(&batch, &output))
        };
        let grads = to_vec(leaf.grad(&loss.backward()).unwrap());
        (to_vec(loss)[0], grads, metrics.read().unwrap())
    }
}

/// Compares every case, and returns the peers whose values agree.
pub(crate) fn compare() -> [&'static str; 2] {
    let goldens = Goldens::read();
    assert_eq!(goldens.cases.len(), 19);
    let (mut clipped, mut compared) = ([0.0; 2], 0);
    for (name, case) in &goldens.cases {
        let config = case.options.config(goldens.longest);
        for (reward, expected) in goldens.rewards(&case.options).iter().zip(&case.advantages) {
            let advantage = config.advantage.of(reward);
            assert!(
                (advantage - expected).abs() < 1e-5,
                "{name}: {advantage} {expected}"
            );
        }
        for dtype in [DType::F64, DType::F32] {
            let (loss, grads, metrics) = goldens.run(case, dtype);
            assert!(
                error(loss, case.loss) < TOLERANCE,
                "{name}: {loss} {}",
                case.loss
            );
            let expected = goldens.padded(&case.grads, 0.0);
            assert!(expected.iter().any(|grad| grad.abs() > 1e-3), "{name}");
            for (grad, expected) in grads.iter().zip(&expected) {
                assert!(
                    error(*grad, *expected) < TOLERANCE,
                    "{name}: {grad} {expected}"
                );
            }
            if let Some(liger) = &case.liger {
                compared += 1;
                assert!(
                    error(loss, liger.loss) < TOLERANCE,
                    "{name}: {loss} {}",
                    liger.loss
                );
                for (grad, expected) in grads.iter().zip(goldens.padded(&liger.grads, 0.0)) {
                    assert!(
                        error(*grad, expected) < TOLERANCE,
                        "{name}: {grad} {expected}"
                    );
                }
            }
            for (key, value) in &case.metrics {
                let found = match (key.as_str(), case.options.rloo) {
                    // Of weights; here every ratio above is clipped, whatever the advantage is.
                    ("cispo_clip_ratio", _) => {
                        let all = metrics.get("clip_ratio/high_mean").unwrap();
                        assert!(all >= *value, "{name}");
                        continue;
                    }
                    // With scale_rewards="batch" TRL looks at the deviation of all rewards.
                    ("frac_reward_zero_std", false) if name == "grpo, by all" => 0.0,
                    // The KL of RLOO is in the rewards, but not in those that TRL logs.
                    ("kl" | "reward" | "reward_std", true) if case.options.beta > 0.0 => continue,
                    _ => metrics.get(key).unwrap_or_else(|| panic!("{name}: {key}")),
                };
                assert!(
                    error(found, *value) < TOLERANCE,
                    "{name}: {key} {found} {value}"
                );
            }
        }
        for (sum, key) in clipped.iter_mut().zip(["low", "high"]) {
            *sum += case
                .metrics
                .get(&format!("clip_ratio/{key}_mean"))
                .unwrap_or(&0.0);
        }
    }
    assert_eq!(compared, 2 * 16);
    // Both clips act in the cases.
    assert!(clipped.iter().all(|sum| *sum > 0.5), "{clipped:?}");
    ["TRL", "Liger"]
}

#[test]
fn losses_and_gradients_are_the_peers() {
    assert_eq!(compare().len(), 2);
}
