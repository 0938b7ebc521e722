//! `vectors/head.json`: from logits, or hidden states and a head, to log-probabilities, entropy and
//! gradients; and which logits belong to which token.

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn_preference::log_probs::WithStatistics;
use burn_preference::{LmHead, TokenLogProbs, TokenStatistics};
use serde_json::{Value, json};

use super::{Inputs, Seeded, VERSION, flat, indices, number, numbers, rows, to_f64};
use crate::dual::Dual;
use crate::support::{self, ZipEqual, device, floats, to_vec, tolerance};

/// Inputs of each case; a log-probability for each row of logits or of hidden states.
fn inputs() -> Vec<(&'static str, Value)> {
    let wave = |rows: usize, columns: usize, scale: f64| -> Value {
        let at = |row: usize, column: usize| {
            let x = ((row * 7 + column * 5 + row * column * 3) % 17) as f64 - 8.0;
            x * scale / 8.0
        };
        let row = |row| numbers((0..columns).map(|column| at(row, column)));
        (0..rows).map(row).collect()
    };
    vec![
        (
            "logits",
            json!({"logits": wave(4, 6, 3.0), "targets": [0, 5, 2, 2]}),
        ),
        (
            "one word",
            json!({"logits": [[2.5], [-1e4]], "targets": [0, 0]}),
        ),
        (
            "equal logits",
            json!({"logits": [[0.0, 0.0, 0.0, 0.0], [1e4, 1e4, 1e4, 1e4]], "targets": [1, 3]}),
        ),
        (
            "far apart",
            json!({"logits": [[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [-1e4, -10001.0, -10000.5], [1e6, 1_000_000.5, 999_999.0]],
                "targets": [0, 1, 1, 2]}),
        ),
        (
            "words that are ruled out",
            json!({"logits": [[0.5, "-inf", 1.5], [0.5, "-inf", 1.5], ["-inf", "-inf", 3.0]], "targets": [2, 1, 2]}),
        ),
        (
            "temperature",
            json!({"logits": wave(3, 5, 4.0), "targets": [4, 0, 1], "temperature": 0.7}),
        ),
        (
            "head",
            json!({"hidden": wave(3, 4, 1.0), "weight": wave(5, 4, 0.75), "targets": [0, 4, 2]}),
        ),
        (
            "bias, scale, softcap, temperature",
            json!({"hidden": wave(3, 4, 1.0), "weight": wave(5, 4, 2.0), "bias": [0.5, -0.25, 0.0, 1.0, -1.5],
                "targets": [1, 3, 0], "logit_scale": 2.0, "softcap": 5.0, "temperature": 1.5}),
        ),
        (
            "softcap of large logits",
            json!({"hidden": [[100.0], [-100.0]], "weight": [[50.0], [-50.0], [0.01]], "targets": [0, 2], "softcap": 30.0}),
        ),
    ]
}

/// Logits of a row of tokens, and which of its tokens count.
fn shifted() -> Value {
    json!({
        "ids": [[3, 1, 0, 2], [2, 2, 1, 0]],
        "mask": [[false, false, true, true], [true, true, false, true]],
        "logits": [
            [[0.5, 1.0, -0.5, 0.0], [1.5, -1.0, 0.0, 0.25], [0.0, 0.5, 2.0, -1.0], [9.0, 9.0, -9.0, 0.0]],
            [[-0.5, 0.25, 1.0, 0.0], [0.0, 1.0, 0.5, -2.0], [2.0, 0.0, -1.0, 0.5], [-9.0, 9.0, 9.0, 0.0]],
        ],
    })
}

/// Each row of logits, from the inputs of a case.
fn logits(seeded: &Seeded) -> Vec<Vec<Dual>> {
    let scalar = |key: &str| seeded.inputs.get(key).map(to_f64);
    let raw = if seeded.has("logits") {
        seeded.nested("logits")
    } else {
        let (hidden, weight) = (seeded.nested("hidden"), seeded.nested("weight"));
        let bias = if seeded.has("bias") {
            seeded.numbers("bias")
        } else {
            vec![Dual::default(); weight.len()]
        };
        let product = |hidden: &Vec<Dual>, word: usize| -> Dual {
            let terms = hidden.iter().zip_equal(&weight[word]);
            terms.map(|(h, w)| *h * *w).sum::<Dual>() + bias[word]
        };
        let row = |hidden: &Vec<Dual>| {
            (0..weight.len())
                .map(|word| product(hidden, word))
                .collect()
        };
        hidden.iter().map(row).collect::<Vec<Vec<Dual>>>()
    };
    let change = |x: Dual| {
        let mut x = x * scalar("logit_scale").unwrap_or(1.0);
        if let Some(cap) = scalar("softcap") {
            let tanh = (x.value / cap).tanh();
            x = x.then(cap * tanh, 1.0 - tanh * tanh);
        }
        x / scalar("temperature").unwrap_or(1.0)
    };
    raw.into_iter()
        .map(|row| row.into_iter().map(change).collect())
        .collect()
}

/// ln softmax of a row; a logit of −∞ stays what it is.
fn log_softmax(row: &[Dual]) -> Vec<Dual> {
    let max = row
        .iter()
        .fold(f64::NEG_INFINITY, |max, x| max.max(x.value));
    let terms = row.iter().filter(|x| x.value > f64::NEG_INFINITY);
    let normalizer = terms.map(|x| (*x - max).exp()).sum::<Dual>().ln();
    row.iter().map(|x| *x - max - normalizer).collect()
}

fn targets(inputs: &Inputs) -> Vec<usize> {
    indices(&inputs["targets"])
}

/// Ids as a tensor of two columns or more.
fn ids<const N: usize>(rows: &[[usize; N]]) -> Tensor<2, Int> {
    crate::support::ints(rows.as_flattened()).reshape([rows.len(), N])
}

fn log_probs(seeded: &Seeded) -> Vec<Dual> {
    let rows = logits(seeded);
    let rows = rows.iter().zip_equal(targets(seeded.inputs));
    rows.map(|(row, target)| log_softmax(row)[target]).collect()
}

fn entropies(seeded: &Seeded) -> Vec<f64> {
    let entropy = |row: Vec<Dual>| -> f64 {
        let words = log_softmax(&row).into_iter().map(|x| x.value);
        let terms = words.filter(|x| *x > f64::NEG_INFINITY);
        // Not −0 of a single word.
        0.0 - terms.map(|x| x.exp() * x).sum::<f64>()
    };
    logits(seeded).into_iter().map(entropy).collect()
}

fn case(name: &str, inputs: &Inputs) -> Value {
    let still = Seeded {
        inputs,
        moves: None,
    };
    let mut gradients = serde_json::Map::new();
    for key in ["logits", "hidden", "weight", "bias"] {
        let Some(value) = inputs.get(key) else {
            continue;
        };
        let mut place = 0;
        let mut next = || {
            let moves = Some((key, place));
            place += 1;
            let log_probs = log_probs(&Seeded { inputs, moves });
            // A finite gradient of an impossible word: that of the others alone.
            number(log_probs.into_iter().map(|x| x.slope).sum())
        };
        let gradient: Vec<Value> = rows(value)
            .map(|row| match row {
                Value::Array(row) => Value::Array(row.iter().map(|_| next()).collect()),
                _ => next(),
            })
            .collect();
        gradients.insert(key.into(), gradient.into());
    }
    json!({
        "name": name,
        "inputs": inputs,
        "log_probs": numbers(log_probs(&still).into_iter().map(|x| x.value)),
        "entropy": numbers(entropies(&still)),
        "gradients": gradients,
    })
}

/// The log-probabilities of the tokens that count: logits at t predict token t + 1.
fn shifted_log_probs(inputs: &Value) -> Vec<Vec<f64>> {
    let rows_of = |key: &str| rows(&inputs[key]).collect::<Vec<_>>();
    let (ids, mask, logits) = (rows_of("ids"), rows_of("mask"), rows_of("logits"));
    let row = |i: usize| {
        let (ids, mask) = (indices(ids[i]), super::flags(mask[i]));
        let logits: Vec<Vec<f64>> = rows(logits[i]).map(flat).collect();
        let counted = (1..ids.len()).filter(|t| mask[*t]);
        counted
            .map(|t| crate::scalar::log_softmax(&logits[t - 1])[ids[t]])
            .collect()
    };
    (0..ids.len()).map(row).collect()
}

/// The file.
pub fn file() -> Value {
    let cases: Vec<Value> = inputs()
        .into_iter()
        .map(|(name, inputs)| case(name, inputs.as_object().unwrap()))
        .collect();
    let inputs = shifted();
    let log_probs: Vec<Value> = shifted_log_probs(&inputs)
        .into_iter()
        .map(numbers)
        .collect();
    json!({
        "version": VERSION,
        "objective": "head",
        "formula": "logits = softcap(logit_scale*(weight*hidden + bias))/temperature, softcap(x) = c*tanh(x/c); log_prob = logit of the target - ln sum e^logit; entropy = -sum p*ln p; gradients are of the sum of log_probs",
        "cases": cases,
        "shift": {"inputs": inputs, "log_probs": log_probs},
    })
}

/// The crate's numbers are the file's, in every number type that sums are kept in.
#[test]
fn the_head_is_that_of_the_vectors() {
    let file = super::read("head.json");
    for dtype in support::wide_dtypes() {
        for case in rows(&file["cases"]) {
            check(case, dtype);
        }
    }
    let inputs = &file["shift"]["inputs"];
    let places: Vec<[usize; 4]> = rows(&inputs["ids"])
        .map(|row| indices(row).try_into().unwrap())
        .collect();
    let ids = ids(&places);
    let mask: Vec<bool> = rows(&inputs["mask"]).flat_map(super::flags).collect();
    let mask = Tensor::<2, Bool>::from_data(TensorData::new(mask, [2, 4]), &device());
    let logits = floats(&flat(&inputs["logits"]), DType::F64).reshape([2, 4, 4]);
    let ours = TokenLogProbs::from_output(logits, ids, mask).unwrap();
    let sums = to_vec(ours.sequence().sum());
    for (sum, expected) in sums.iter().zip_equal(rows(&file["shift"]["log_probs"])) {
        let expected: f64 = flat(expected).iter().sum();
        assert!(
            support::error(*sum, expected) < 1e-12,
            "{sum}, not {expected}"
        );
    }
}

fn check(case: &Value, dtype: DType) {
    let inputs = case["inputs"].as_object().unwrap();
    let name = format!("{} in {dtype:?}", case["name"]);
    let leaf = |key: &str| {
        let value = inputs.get(key)?;
        Some(floats(&flat(value), dtype).autodiff().require_grad())
    };
    let shape = |key: &str| [rows(&inputs[key]).count(), flat(&inputs[key][0]).len()];
    let targets = targets(inputs);
    // One position a row: a token that nobody predicts, then the target.
    let rows_of: Vec<[usize; 2]> = targets.iter().map(|target| [0, *target]).collect();
    let ids = ids(&rows_of);
    let mask = vec![[false, true]; targets.len()].concat();
    let mask = Tensor::<2, Bool>::from_data(TensorData::new(mask, [targets.len(), 2]), &device());
    let twice = |rows: Tensor<2>| {
        let last = rows.clone().without_autodiff().ones_like();
        Tensor::stack::<3>(vec![rows, last], 1)
    };
    let scalar = |key: &str| inputs.get(key).map(to_f64);
    let mut leaves = Vec::new();
    let mut add = |key: &'static str| {
        let leaf = leaf(key).unwrap();
        leaves.push((key, leaf.clone()));
        leaf
    };
    let (log_probs, statistics): (TokenLogProbs, TokenStatistics) = if inputs.contains_key("hidden")
    {
        let hidden = add("hidden").reshape(shape("hidden"));
        let mut head = LmHead::new(add("weight").reshape(shape("weight")));
        if inputs.contains_key("bias") {
            head = head.with_bias(add("bias"));
        }
        if let Some(scale) = scalar("logit_scale") {
            head = head.with_logit_scale(scale).unwrap();
        }
        if let Some(cap) = scalar("softcap") {
            head = head.with_softcap(cap).unwrap();
        }
        if let Some(temperature) = scalar("temperature") {
            head = head.with_temperature(temperature).unwrap();
        }
        TokenLogProbs::from_output(WithStatistics((twice(hidden), head)), ids, mask).unwrap()
    } else {
        let temperature = scalar("temperature").unwrap_or(1.0);
        let logits = add("logits").reshape(shape("logits")) * temperature.recip();
        TokenLogProbs::from_output(WithStatistics(twice(logits)), ids, mask).unwrap()
    };
    let allowed = tolerance(dtype);
    let expect = |ours: &[f64], key: &Value, what: &str| {
        support::assert_close(ours, &flat(key), allowed, &format!("{name}: {what}"));
    };
    let sum = log_probs.log_probs();
    expect(&to_vec(sum.clone()), &case["log_probs"], "log_probs");
    expect(&to_vec(statistics.entropy()), &case["entropy"], "entropy");
    let grads = sum.sum().backward();
    for (key, leaf) in leaves {
        let ours = to_vec(leaf.grad(&grads).unwrap());
        expect(&ours, &case["gradients"][key], key);
    }
}
