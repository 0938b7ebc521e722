//! The crate on every case of the files: losses, rewards and gradients.

use std::collections::BTreeMap;

use burn::tensor::{Bool, DType, Tensor, TensorData};
use burn_preference::batch::Batch;
use burn_preference::config::ObjectiveConfig;
use burn_preference::{
    Demonstrations, GroupedReward, LossOutput, Objective, Pair, PolicyPair, Ranked, Samples,
    Scored, TokenLogProbs, Unpaired, WithBaseline, WithMargin, WithMeanMargin, WithNll,
    WithPreference, WithScores, WithSequenceKl, WithShift, WithStepTokens, WithTies, WithValue,
};
use serde_json::Value;

use super::{Inputs, flags, flat, indices, rows, to_f64, words};
use crate::support::{self, ZipEqual, bools, device, floats, to_vec, wide_dtypes};

/// The inputs of a case as tensors, and those that a gradient is asked of.
struct Tensors<'a> {
    inputs: &'a Inputs,
    dtype: DType,
    /// By name: the leaf, and which of its places are in the file.
    leaves: BTreeMap<String, (Tensor<1>, Vec<Place>)>,
}

/// Where a number of a leaf stands in the file.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// The next number of the gradient, in a list or alone.
    Own(usize),
    Padding,
}

impl Tensors<'_> {
    fn plain(&self, key: &str) -> Tensor<1> {
        floats(&flat(&self.inputs[key]), self.dtype)
    }

    fn bools(&self, key: &str) -> Tensor<1, Bool> {
        bools(&flags(&self.inputs[key]))
    }

    /// Numbers that learn.
    fn leaf(&mut self, key: &str) -> Tensor<1> {
        let values = flat(&self.inputs[key]);
        let places = (0..values.len()).map(Place::Own).collect();
        self.keep(key, &values, places)
    }

    fn keep(&mut self, key: &str, values: &[f64], places: Vec<Place>) -> Tensor<1> {
        let leaf = floats(values, self.dtype).autodiff().require_grad();
        self.leaves.insert(key.into(), (leaf.clone(), places));
        leaf
    }

    /// Sequences of tokens as a rectangle. What does not count is NaN, which nobody may read; with
    /// `by_token` each token has a gradient of its own in the file.
    fn tokens(&mut self, key: &str, sequences: &[Vec<f64>], by_token: bool) -> TokenLogProbs {
        let time = sequences.iter().map(Vec::len).max().unwrap_or(0).max(1) + 1;
        let (mut values, mut places, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        let mut token = 0;
        for (row, sequence) in sequences.iter().enumerate() {
            for t in 0..time {
                let counts = t < sequence.len();
                values.push(if counts { sequence[t] } else { f64::NAN });
                places.push(match counts {
                    true if by_token => Place::Own(token),
                    true => Place::Own(row),
                    false => Place::Padding,
                });
                token += usize::from(counts);
                mask.push(counts);
            }
        }
        let shape = [sequences.len(), time];
        let leaf = self.keep(key, &values, places);
        let mask = Tensor::from_data(TensorData::new(mask, shape), &device());
        TokenLogProbs::new(leaf.reshape(shape), mask).unwrap()
    }

    fn sequences(&mut self, key: &str) -> TokenLogProbs {
        let sequences: Vec<Vec<f64>> = rows(&self.inputs[key]).map(flat).collect();
        self.tokens(key, &sequences, false)
    }

    fn by_token(&mut self, key: &str) -> TokenLogProbs {
        let sequences: Vec<Vec<f64>> = rows(&self.inputs[key]).map(flat).collect();
        self.tokens(key, &sequences, true)
    }

    fn policy_pair(&mut self, of: &str) -> PolicyPair {
        let [chosen, rejected] =
            ["chosen", "rejected"].map(|side| self.sequences(&format!("{side}.{of}")).sequence());
        Pair::new(chosen, rejected).unwrap()
    }

    fn pair(&self, of: &str) -> Pair<Tensor<1>> {
        let [chosen, rejected] =
            ["chosen", "rejected"].map(|side| self.plain(&format!("{side}.{of}")));
        Pair::new(chosen, rejected).unwrap()
    }

    /// A list of lists as a rectangle of so many columns; what is absent is `rest`.
    fn candidates<T: Clone>(lists: Vec<Vec<T>>, columns: usize, rest: &T) -> Vec<T> {
        let padded = lists.into_iter().flat_map(|mut list| {
            list.resize(columns, rest.clone());
            list
        });
        padded.collect()
    }
}

/// What the crate says: losses, rewards in the order of the file, d Σ losses.
struct Ours {
    losses: Vec<f64>,
    rewards: Vec<f64>,
    leaves: BTreeMap<String, Vec<f64>>,
}

fn forward<B: Batch + 'static>(config: &ObjectiveConfig, batch: B) -> LossOutput<B::Rewards> {
    let objective = config
        .build::<B>()
        .unwrap_or_else(|error| panic!("{error}"));
    objective.forward(batch)
}

/// Of a case, in a number type.
fn run(config: &ObjectiveConfig, kind: &str, inputs: &Inputs, dtype: DType) -> Ours {
    let mut tensors = Tensors {
        inputs,
        dtype,
        leaves: BTreeMap::new(),
    };
    let has = |key: &str| inputs.contains_key(key);
    let (losses, rewards) = match kind {
        "pairs" => {
            let output = pairs(config, &mut tensors);
            let rewards = output.rewards().clone().map(to_vec);
            (output.losses(), [rewards.chosen, rewards.rejected].concat())
        }
        "completions" => {
            let output = completions(config, &mut tensors);
            (output.losses(), to_vec(output.rewards().clone()))
        }
        "lists" | "reward_lists" => lists(config, kind, &mut tensors),
        "reward_pairs" => {
            let [chosen, rejected] =
                ["chosen.reward", "rejected.reward"].map(|key| tensors.leaf(key));
            let batch = Pair::new(chosen, rejected).unwrap();
            let output = if has("margin") {
                forward(
                    config,
                    WithMargin::new(batch, tensors.plain("margin")).unwrap(),
                )
            } else if has("win_probability") {
                let p = tensors.plain("win_probability");
                forward(config, WithPreference::new(batch, p).unwrap())
            } else if has("tied") {
                forward(config, WithTies::new(batch, tensors.bools("tied")).unwrap())
            } else {
                forward(config, batch)
            };
            let rewards = output.rewards().clone().map(to_vec);
            (output.losses(), [rewards.chosen, rewards.rejected].concat())
        }
        "demonstrations" => {
            let tokens = tensors.by_token("policy");
            let [rows_of, time] = tokens.mask().dims();
            let mut batch = Demonstrations::new(tokens);
            if has("weight") {
                let weights = rows(&inputs["weight"]).map(flat).collect();
                let weights = Tensors::candidates(weights, time, &1.0);
                let weights = floats(&weights, dtype).reshape([rows_of, time]);
                batch = batch.weighted(weights).unwrap();
            }
            let output = if has("tokens_per_example") {
                let step = to_f64(&inputs["tokens_per_example"]) * 64.0;
                forward(config, WithStepTokens::new(batch, step, 64.0).unwrap())
            } else {
                forward(config, batch)
            };
            (output.losses(), to_vec(output.rewards().clone()))
        }
        "samples" => samples(config, &mut tensors),
        other => panic!("no kind {other}"),
    };
    let grads = losses.clone().sum().backward();
    let gradient = |(key, (leaf, places)): (String, (Tensor<1>, Vec<Place>))| {
        let all = leaf.grad(&grads).map(to_vec);
        let all = all.unwrap_or_else(|| vec![0.0; places.len()]);
        let mut own: BTreeMap<usize, f64> = BTreeMap::new();
        for (place, slope) in places.into_iter().zip_equal(all) {
            match place {
                Place::Padding => assert_eq!(slope, 0.0, "{key}: a gradient of padding"),
                // Every token of a sequence has the same.
                Place::Own(at) => {
                    let before = *own.entry(at).or_insert(slope);
                    assert!(before.total_cmp(&slope).is_eq(), "{key}: {before}, {slope}");
                }
            }
        }
        (key, own.into_values().collect())
    };
    Ours {
        losses: to_vec(losses),
        rewards,
        leaves: tensors.leaves.into_iter().map(gradient).collect(),
    }
}

fn pairs(config: &ObjectiveConfig, tensors: &mut Tensors) -> LossOutput<Pair<Tensor<1>>> {
    let inputs = tensors.inputs;
    let has = |key: &str| inputs.contains_key(key);
    let policy = tensors.policy_pair("policy");
    if !has("chosen.reference") {
        return if has("gold") {
            let gold = tensors.sequences("gold").sequence();
            forward(config, WithNll::new(policy, gold).unwrap())
        } else {
            forward(config, policy)
        };
    }
    let reference = tensors.policy_pair("reference");
    let batch = policy.relative_to(reference).unwrap();
    if has("margin") {
        forward(
            config,
            WithMargin::new(batch, tensors.plain("margin")).unwrap(),
        )
    } else if has("win_probability") {
        let p = tensors.plain("win_probability");
        forward(config, WithPreference::new(batch, p).unwrap())
    } else if has("chosen.score") {
        forward(
            config,
            WithScores::new(batch, tensors.pair("score")).unwrap(),
        )
    } else if has("tied") {
        forward(config, WithTies::new(batch, tensors.bools("tied")).unwrap())
    } else if has("chosen.kl") {
        let [chosen, rejected] = ["chosen.kl", "rejected.kl"].map(|key| tensors.leaf(key));
        let kl = Pair::new(chosen, rejected).unwrap();
        forward(config, WithSequenceKl::new(batch, kl).unwrap())
    } else if has("delta") {
        forward(
            config,
            WithShift::new(batch, tensors.plain("delta")).unwrap(),
        )
    } else if has("mean_margin") {
        let mean = tensors.plain("mean_margin");
        forward(config, WithMeanMargin::new(batch, mean).unwrap())
    } else {
        forward(config, batch)
    }
}

fn completions(config: &ObjectiveConfig, tensors: &mut Tensors) -> LossOutput<Tensor<1>> {
    let inputs = tensors.inputs;
    let has = |key: &str| inputs.contains_key(key);
    let policy = tensors.sequences("policy").sequence();
    if !has("reference") {
        return forward(config, policy);
    }
    let relative = policy
        .relative_to(tensors.sequences("reference").sequence())
        .unwrap();
    if has("score") {
        let scored = Scored::new(relative, tensors.plain("score")).unwrap();
        return if has("value") {
            forward(
                config,
                WithValue::new(scored, tensors.leaf("value")).unwrap(),
            )
        } else {
            forward(config, scored)
        };
    }
    if !has("desirable") {
        return forward(config, relative);
    }
    let batch = Unpaired::new(relative, tensors.bools("desirable")).unwrap();
    if has("z0") {
        forward(
            config,
            WithBaseline::new(batch, tensors.plain("z0")).unwrap(),
        )
    } else if has("delta") {
        forward(
            config,
            WithShift::new(batch, tensors.plain("delta")).unwrap(),
        )
    } else {
        forward(config, batch)
    }
}

fn lists(config: &ObjectiveConfig, kind: &str, tensors: &mut Tensors) -> (Tensor<1>, Vec<f64>) {
    let inputs = tensors.inputs;
    let scores: Vec<Vec<f64>> = rows(&inputs["score"]).map(flat).collect();
    let columns = scores.iter().map(Vec::len).max().unwrap();
    let shape = [scores.len(), columns];
    let present = scores.iter().map(|list| vec![true; list.len()]).collect();
    let present = Tensors::candidates(present, columns, &false);
    // Neither the score nor the log-probability of an absent candidate may be read.
    let scores = Tensors::candidates(scores, columns, &f64::NAN);
    let scores = floats(&scores, tensors.dtype).reshape(shape);
    let there = bools(&present).reshape(shape);
    let output = if kind == "reward_lists" {
        let lists = rows(&inputs["reward"]).map(flat).collect();
        let values = Tensors::candidates(lists, columns, &f64::NAN);
        let mut next = 0..;
        let places = present.iter().map(|present| match present {
            true => Place::Own(next.next().unwrap()),
            false => Place::Padding,
        });
        let places = places.collect();
        let rewards = tensors.keep("reward", &values, places).reshape(shape);
        forward(config, Ranked::new(rewards, scores, there).unwrap())
    } else {
        // Absent candidates are sequences without tokens; their places are not in the file.
        let mut both = ["policy", "reference"].into_iter().filter_map(|key| {
            let lists = rows(inputs.get(key)?).map(|list| rows(list).map(flat).collect());
            let sequences = Tensors::candidates(lists.collect(), columns, &Vec::new());
            Some(tensors.tokens(key, &sequences, false).sequence())
        });
        let (policy, reference) = (both.next().unwrap(), both.next());
        drop(both);
        if let Some(reference) = reference {
            let relative = policy.relative_to(reference).unwrap();
            let relative = relative.split_candidates(columns).unwrap();
            forward(config, Ranked::new(relative, scores, there).unwrap())
        } else {
            let policy = policy.split_candidates(columns).unwrap();
            forward(config, Ranked::new(policy, scores, there).unwrap())
        }
    };
    let rewards = to_vec(output.rewards().clone())
        .into_iter()
        .zip_equal(present);
    let rewards = rewards.filter_map(|(reward, present)| present.then_some(reward));
    (output.losses(), rewards.collect())
}

fn samples(config: &ObjectiveConfig, tensors: &mut Tensors) -> (Tensor<1>, Vec<f64>) {
    let ObjectiveConfig::Grpo(fields) = config else {
        panic!("{} does not take samples", config.name());
    };
    let inputs = tensors.inputs;
    let groups = indices(&inputs["group"]);
    let rewards = GroupedReward::of_groups(&flat(&inputs["reward"]), &groups).unwrap();
    let advantages = rewards
        .iter()
        .map(|reward| fields.advantage.of(reward))
        .collect();
    let [policy, sampler] = ["policy", "sampler"].map(|key| tensors.by_token(key));
    let batch = Samples::new(policy, sampler, &rewards).unwrap();
    let step = inputs
        .get("tokens_per_example")
        .map(|step| to_f64(step) * 64.0);
    let losses = match (inputs.contains_key("reference"), step) {
        (false, None) => forward(config, batch).losses(),
        (false, Some(step)) => {
            forward(config, WithStepTokens::new(batch, step, 64.0).unwrap()).losses()
        }
        (true, _) => {
            let reference = tensors.by_token("reference");
            forward(config, batch.relative_to(reference).unwrap()).losses()
        }
    };
    (losses, advantages)
}

fn rewards(case: &Value) -> Vec<f64> {
    match &case["rewards"] {
        Value::Object(sides) => [&sides["chosen"], &sides["rejected"]].map(flat).concat(),
        rewards => flat(rewards),
    }
}

#[test]
fn the_crate_is_that_of_the_vectors() {
    let (mut compared, mut wrong) = (BTreeMap::new(), Vec::new());
    for name in ObjectiveConfig::NAMES {
        let file = super::read(&format!("{name}.json"));
        for case in rows(&file["cases"]) {
            let config: ObjectiveConfig = serde_json::from_value(case["config"].clone()).unwrap();
            assert_eq!(config.name(), *name);
            let batch = case["batch"].as_str().unwrap();
            let all = file["batches"][batch].as_object().unwrap();
            let inputs = super::chosen_inputs(all, &words(&case["reads"]));
            for dtype in wide_dtypes() {
                // Beyond f64 only what is ordinary has digits to compare.
                let (_, place) = batch.split_once('.').unwrap();
                let ordinary = ["ordinary", "edges"].contains(&place);
                if dtype != DType::F64 && !ordinary {
                    continue;
                }
                wrong.extend(check(case, &config, &inputs, dtype));
                *compared.entry(*name).or_insert(0) += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared.values().all(|cases| *cases >= 3), "{compared:?}");
}

/// What differs.
fn check(case: &Value, config: &ObjectiveConfig, inputs: &Inputs, dtype: DType) -> Vec<String> {
    let kind = case["kind"].as_str().unwrap();
    let batch = case["batch"].as_str().unwrap();
    let ours = run(config, kind, inputs, dtype);
    let mut wrong = Vec::new();
    let mut close = |ours: &[f64], expected: &[f64], what: &str| {
        let both = ours.iter().zip_equal(expected);
        let differs = |(a, b): (&f64, &f64)| support::error(*a, *b) > support::tolerance(dtype);
        if both.clone().any(differs) {
            let both: Vec<_> = both.filter(|both| differs(*both)).collect();
            let config = &case["config"];
            wrong.push(format!("{config} of {batch} in {dtype:?}: {what} {both:?}"));
        }
    };
    close(&ours.losses, &flat(&case["losses"]), "losses");
    close(&ours.rewards, &rewards(case), "rewards");
    for (key, gradient) in case["gradients"].as_object().unwrap() {
        // An empty completion has no token, and no gradient.
        let gradient = flat(gradient).into_iter().filter(|slope| !slope.is_nan());
        close(&ours.leaves[key], &gradient.collect::<Vec<_>>(), key);
    }
    // Nothing else learns.
    for (key, gradient) in &ours.leaves {
        if case["gradients"].get(key).is_none() {
            close(gradient, &vec![0.0; gradient.len()], key);
        }
    }
    wrong
}
