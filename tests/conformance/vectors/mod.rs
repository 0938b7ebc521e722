//! The folder `vectors/`: written from the scalar code, `tests/suite/formulas.rs`, and read here by
//! the crate, as an author of another library would read it.
//!
//! ```console
//! UPDATE_VECTORS=1 cargo test --workspace --test conformance vectors   # writes the files
//! ```

mod cases;
mod head;
mod reader;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn_preference::config::ObjectiveConfig;
use serde_json::{Map, Value, json};

use crate::dual::Dual;
use crate::formulas::{self, Candidates, Columns, Completion, Marks, Sample, Token, advantage};
use crate::support;

/// The version of the files: a higher one where a number or the meaning of a key changes.
const VERSION: u32 = 1;

/// Numbers and lists by the names of `vectors/README.md`.
type Inputs = Map<String, Value>;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// A JSON number, or an infinity as a word.
fn number(x: f64) -> Value {
    if x.is_infinite() {
        json!(if x > 0.0 { "inf" } else { "-inf" })
    } else {
        json!(x)
    }
}

fn numbers(values: impl IntoIterator<Item = f64>) -> Value {
    Value::Array(values.into_iter().map(number).collect())
}

fn to_f64(value: &Value) -> f64 {
    match value {
        Value::Number(number) => number.as_f64().unwrap(),
        Value::String(word) => word.parse().unwrap(),
        Value::Null => f64::NAN,
        other => panic!("not a number: {other}"),
    }
}

/// All numbers of nested lists, in order.
fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(flat).collect(),
        value => vec![to_f64(value)],
    }
}

/// Indices: ids of tokens, numbers of prompts.
fn indices(value: &Value) -> Vec<usize> {
    let index = |value: &Value| usize::try_from(value.as_u64().expect("an index")).unwrap();
    rows(value).map(index).collect()
}

fn flags(value: &Value) -> Vec<bool> {
    let values = value.as_array().expect("a list").iter();
    values.map(|flag| flag.as_bool().expect("a flag")).collect()
}

fn rows(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().expect("a list").iter()
}

/// The inputs of a case, one of which may move.
struct Seeded<'a> {
    inputs: &'a Inputs,
    /// Its name, and its place.
    moves: Option<(&'a str, usize)>,
}

impl Seeded<'_> {
    fn has(&self, key: &str) -> bool {
        self.inputs.contains_key(key)
    }

    /// Numbers by place; the one that moves has a slope.
    fn duals(&self, key: &str, values: Vec<f64>) -> Vec<Dual> {
        let dual = |(place, value)| match self.moves {
            Some(moves) if moves == (key, place) => Dual::input(value),
            _ => Dual::constant(value),
        };
        values.into_iter().enumerate().map(dual).collect()
    }

    fn numbers(&self, key: &str) -> Vec<Dual> {
        self.duals(key, flat(&self.inputs[key]))
    }

    fn plain(&self, key: &str) -> Vec<f64> {
        self.inputs.get(key).map(flat).unwrap_or_default()
    }

    fn scalar(&self, key: &str) -> f64 {
        self.inputs.get(key).map(to_f64).unwrap_or_default()
    }

    /// Sums and numbers of tokens of sequences.
    fn sequences(&self, key: &str) -> Vec<(Dual, usize)> {
        let Some(value) = self.inputs.get(key) else {
            return Vec::new();
        };
        let (sums, lengths): (Vec<f64>, Vec<usize>) = rows(value)
            .map(|row| (flat(row).into_iter().sum::<f64>(), flat(row).len()))
            .unzip();
        self.duals(key, sums).into_iter().zip(lengths).collect()
    }

    /// Completions of a policy and, where there is one, of a reference.
    fn completions(&self, prefix: &str) -> Vec<Completion> {
        let reference = format!("{prefix}reference");
        let references = self.sequences(&reference);
        let policy = self.sequences(&format!("{prefix}policy")).into_iter();
        let completion = |(i, (sum, length))| Completion {
            sum,
            reference: references
                .get(i)
                .map_or(0.0, |of: &(Dual, usize)| of.0.value),
            length,
        };
        policy.enumerate().map(completion).collect()
    }

    /// As [`Self::numbers`], of each row of a nested list.
    fn nested(&self, key: &str) -> Vec<Vec<Dual>> {
        let mut all = self.numbers(key).into_iter();
        rows(&self.inputs[key])
            .map(|row| all.by_ref().take(flat(row).len()).collect())
            .collect()
    }

    fn columns(&self) -> Columns {
        let both = |of: &str| ["chosen.", "rejected."].map(|side| format!("{side}{of}"));
        Columns {
            margins: self.plain("margin"),
            probabilities: self.plain("win_probability"),
            scores: both("score").map(|key| self.plain(&key)),
            kl: both("kl").map(|key| {
                if self.has(&key) {
                    self.numbers(&key)
                } else {
                    Vec::new()
                }
            }),
            ties: self.inputs.get("tied").map(flags).unwrap_or_default(),
            gold: self.sequences("gold"),
            shift: self.scalar("delta"),
            mean_margin: self.scalar("mean_margin"),
        }
    }

    fn candidates(&self) -> Vec<Candidates> {
        let scores = rows(&self.inputs["score"]).map(flat);
        if self.has("reward") {
            let of = |reward| Completion {
                sum: reward,
                reference: 0.0,
                length: 1,
            };
            let rewards = self.nested("reward").into_iter();
            return rewards
                .zip(scores)
                .map(|(rewards, scores)| Candidates {
                    completions: rewards.into_iter().map(of).collect(),
                    scores,
                })
                .collect();
        }
        // A list of candidates is a list of sequences.
        let joined = |key: &str| -> Value {
            let lists = rows(&self.inputs[key]).flat_map(rows);
            Value::Array(lists.cloned().collect())
        };
        let mut flat_inputs = Inputs::new();
        for key in ["policy", "reference"] {
            if self.has(key) {
                flat_inputs.insert(key.into(), joined(key));
            }
        }
        let all = Seeded {
            inputs: &flat_inputs,
            moves: self.moves,
        };
        let mut all = all.completions("").into_iter();
        scores
            .map(|scores| Candidates {
                completions: all.by_ref().take(scores.len()).collect(),
                scores,
            })
            .collect()
    }

    fn samples(&self) -> Vec<Sample> {
        let [sampler, reference] = ["sampler", "reference"].map(|key| {
            let rows = self.inputs.get(key).map(rows);
            rows.map(|rows| rows.map(flat).collect::<Vec<_>>())
        });
        let (rewards, groups) = (self.plain("reward"), indices(&self.inputs["group"]));
        let tokens = self.nested("policy").into_iter().enumerate();
        tokens
            .map(|(i, row)| Sample {
                tokens: row
                    .into_iter()
                    .enumerate()
                    .map(|(t, policy)| Token {
                        policy,
                        sampler: sampler.as_ref().unwrap()[i][t],
                        reference: reference.as_ref().map_or(0.0, |rows| rows[i][t]),
                    })
                    .collect(),
                reward: rewards[i],
                group: groups[i],
            })
            .collect()
    }
}

/// What the scalar code says of a batch.
struct Outcome {
    losses: Vec<Dual>,
    rewards: Value,
    /// Rows of which the crate holds an exponential, or a log-odds.
    held: bool,
}

#[expect(clippy::too_many_lines, reason = "a table: an arm per kind of batch")]
fn evaluate(config: &ObjectiveConfig, kind: &str, seeded: &Seeded) -> Outcome {
    let mut held = false;
    let (losses, rewards) = match kind {
        "pairs" => {
            let sides = ["chosen.", "rejected."].map(|side| seeded.completions(side));
            let [chosen, rejected] = sides;
            let pairs: Vec<[Completion; 2]> = chosen
                .into_iter()
                .zip(rejected)
                .map(<[_; 2]>::from)
                .collect();
            let of_odds = matches!(config, ObjectiveConfig::Orpo(_) | ObjectiveConfig::Asft(_));
            let certain = |y: &Completion| of_odds && y.sum.value > -1e-30;
            held = pairs
                .iter()
                .any(|row| formulas::exponent(config, *row) > 80.0 || row.iter().any(certain));
            // What IPO squares is held as well, where it is infinite.
            held |= matches!(config, ObjectiveConfig::Ipo(_))
                && pairs.iter().flatten().any(|y| y.sum.value.is_infinite());
            let rewards: Vec<[f64; 2]> = pairs
                .iter()
                .map(|row| formulas::pair_rewards(config, *row))
                .collect();
            let side = |at: usize| numbers(rewards.iter().map(|row| row[at]));
            let rewards = json!({"chosen": side(0), "rejected": side(1)});
            (formulas::pairs(config, &pairs, &seeded.columns()), rewards)
        }
        "completions" => {
            let all = seeded.completions("");
            let values = if seeded.has("value") {
                seeded.numbers("value")
            } else {
                Vec::new()
            };
            let marks = Marks {
                desirable: seeded
                    .inputs
                    .get("desirable")
                    .map(flags)
                    .unwrap_or_default(),
                scores: seeded.plain("score"),
                values,
                baseline: seeded.scalar("z0"),
                shift: seeded.scalar("delta"),
            };
            let rewards = all.iter().map(|y| formulas::completion_reward(config, *y));
            let rewards = numbers(rewards);
            (formulas::completions(config, &all, &marks), rewards)
        }
        "lists" | "reward_lists" => {
            let lists = seeded.candidates();
            let rewards = lists
                .iter()
                .map(|list| numbers(formulas::list_rewards(config, list)));
            let rewards = Value::Array(rewards.collect());
            let losses = lists.iter().map(|list| formulas::list(config, list));
            (losses.collect(), rewards)
        }
        "reward_pairs" => {
            let [chosen, rejected] =
                ["chosen.reward", "rejected.reward"].map(|key| seeded.numbers(key));
            let values = |side: &[Dual]| numbers(side.iter().map(|reward| reward.value));
            let rewards = json!({"chosen": values(&chosen), "rejected": values(&rejected)});
            let pairs: Vec<[Dual; 2]> = chosen
                .into_iter()
                .zip(rejected)
                .map(<[_; 2]>::from)
                .collect();
            (
                formulas::rewards(config, &pairs, &seeded.columns()),
                rewards,
            )
        }
        "demonstrations" => {
            let policy = seeded.nested("policy");
            let weights = seeded
                .inputs
                .get("weight")
                .map(|weights| rows(weights).map(flat));
            let weights: Vec<Vec<f64>> = match weights {
                Some(weights) => weights.collect(),
                None => policy.iter().map(|row| vec![1.0; row.len()]).collect(),
            };
            let tokens: Vec<Vec<(Dual, f64)>> = policy
                .into_iter()
                .zip(weights)
                .map(|(row, weights)| row.into_iter().zip(weights).collect())
                .collect();
            let step = seeded.inputs.get("tokens_per_example").map(to_f64);
            let (losses, rewards): (Vec<Dual>, Vec<f64>) =
                formulas::demonstrations(config, &tokens, step)
                    .into_iter()
                    .unzip();
            (losses, numbers(rewards))
        }
        "samples" => {
            let ObjectiveConfig::Grpo(config) = config else {
                panic!("{} does not take samples", config.name());
            };
            let samples = seeded.samples();
            let tokens: usize = samples.iter().map(|sample| sample.tokens.len()).sum();
            let of_batch = tokens.max(1) as f64 / samples.len() as f64;
            let step = seeded.inputs.get("tokens_per_example").map(to_f64);
            let per_example = step.unwrap_or(of_batch);
            let all = 0..samples.len();
            let losses = all
                .clone()
                .map(|i| formulas::sample(config, &samples, i, per_example));
            // In the place of rewards: the advantages.
            let advantages = all.map(|i| advantage(config, &samples, i));
            (losses.collect(), numbers(advantages))
        }
        other => panic!("no kind {other}"),
    };
    Outcome {
        losses,
        rewards,
        held,
    }
}

/// Inputs that may carry a gradient.
const LEARNED: &[&str] = &[
    "chosen.policy",
    "rejected.policy",
    "policy",
    "gold",
    "rejected.kl",
    "value",
    "chosen.reward",
    "rejected.reward",
    "reward",
];

/// Slopes of Σ losses along every place of the input `key`, in the shape of vectors/README.md.
fn gradient(config: &ObjectiveConfig, kind: &str, inputs: &Inputs, key: &str) -> Value {
    let place = std::cell::Cell::new(0);
    let next = || {
        let moves = Some((key, place.replace(place.get() + 1)));
        let outcome = evaluate(config, kind, &Seeded { inputs, moves });
        number(outcome.losses.into_iter().sum::<Dual>().slope)
    };
    let of_tokens = ["demonstrations", "samples"].contains(&kind);
    let sequence = |row: &Value| {
        let slope = next();
        // Nothing learns of an empty completion.
        if flat(row).is_empty() {
            Value::Null
        } else {
            slope
        }
    };
    let value = &inputs[key];
    let is_row = |value: &Value| {
        value
            .as_array()
            .is_some_and(|row| !row.iter().any(Value::is_array))
    };
    Value::Array(
        rows(value)
            .map(|row| match row {
                Value::Array(list) if kind == "lists" => {
                    Value::Array(list.iter().map(sequence).collect())
                }
                Value::Array(list) if of_tokens || kind == "reward_lists" => {
                    Value::Array(list.iter().map(|_| next()).collect())
                }
                row if is_row(row) => sequence(row),
                _ => next(),
            })
            .collect(),
    )
}

fn words(value: &Value) -> Vec<String> {
    let words = rows(value).map(|word| word.as_str().expect("a word").to_owned());
    words.collect()
}

/// The inputs that a case reads.
fn chosen_inputs(batch: &Inputs, reads: &[String]) -> Inputs {
    let input = |key: &String| (key.clone(), batch[key].clone());
    reads.iter().map(input).collect()
}

/// Every file of the folder, by its name, from the scalar code.
fn files() -> BTreeMap<String, Value> {
    let mut files: BTreeMap<String, Value> = ObjectiveConfig::NAMES
        .iter()
        .map(|name| (format!("{name}.json"), cases::file(name)))
        .collect();
    files.insert("head.json".into(), head::file());
    files
}

/// Whose code agreed with which objective when `vectors/check.py` was last run:
///
/// ```console
/// python3 vectors/check.py --clones DIR --record tests/data/seconded.json
/// ```
pub fn seconded() -> Vec<(&'static str, Vec<&'static str>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/seconded.json");
    let text = std::fs::read_to_string(path).unwrap();
    let file: BTreeMap<String, Vec<String>> = serde_json::from_str(&text).unwrap();
    let peer = |name: &String| match name.split(' ').next() {
        Some("TRL") => "TRL",
        Some("Liger") => "Liger",
        Some("OpenRLHF") => "OpenRLHF",
        _ => "authors",
    };
    // From `exo_pair` to `ExoPairLoss`.
    let of = |name: &String| -> &'static str {
        let words = name.split('_').map(|word| {
            let (first, rest) = word.split_at(1);
            first.to_uppercase() + rest
        });
        String::leak(words.collect::<String>() + "Loss")
    };
    file.iter()
        .map(|(name, peers)| (of(name), peers.iter().map(peer).collect()))
        .collect()
}

/// The file of this name as it stands in the folder, or as it is about to be written.
fn read(name: &str) -> Value {
    let text = if is_update() {
        writer::text(&files()[name])
    } else {
        std::fs::read_to_string(folder().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    let file: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(file["version"], VERSION, "{name}");
    file
}

fn is_update() -> bool {
    std::env::var_os("UPDATE_VECTORS").is_some()
}

/// The folder is what the scalar code says, up to the last digits of other machines' exponentials.
#[test]
fn vectors_are_those_of_the_scalar_code() {
    let files = files();
    let mut bytes = 0;
    for (name, file) in &files {
        let path = folder().join(name);
        let text = writer::text(file);
        bytes += text.len();
        if is_update() {
            std::fs::write(&path, &text).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; UPDATE_VECTORS=1 writes it", path.display())
        });
        let there: Value = serde_json::from_str(&there).unwrap();
        // What is written is what is read, to the last bit.
        let again: Value = serde_json::from_str(&text).unwrap();
        assert!(
            same(&again, file, 0.0),
            "{name}: not the numbers that were written"
        );
        assert!(
            same(&there, file, 1e-12),
            "{name} is not what the scalar code says: UPDATE_VECTORS=1 writes it again"
        );
    }
    // Nothing else has this ending, so that a reader may take all.
    let others = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let mut others: Vec<String> = others.map(|name| name.into_string().unwrap()).collect();
    others.retain(|name| name.contains(".json") && !files.contains_key(name));
    assert_eq!(others, ["schema.json"]);
    assert!(bytes < 1_000_000, "{bytes} bytes: too much to ship");
}

/// Whether two files say the same, numbers up to `tolerance`, absolute or relative.
fn same(a: &Value, b: &Value, tolerance: f64) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let [a, b] = [a, b].map(|x| x.as_f64().unwrap());
            support::error(a, b) <= tolerance
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b, tolerance))
        }
        (Value::Object(a), Value::Object(b)) => {
            let same_keys = a.len() == b.len();
            same_keys
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| same(a, b, tolerance)))
        }
        (a, b) => a == b,
    }
}
