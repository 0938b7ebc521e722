//! Policy gradients of the program: the model answers (`--sample` with `--every-answer`), and
//! `--loss grpo` takes several steps on its answers.

#![cfg(unix)]

mod support;

use std::process::Command;

use burn::tensor::Device;
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use finetune::{Batching, load};
use serde_json::{Value, json};
use support::place::{Place, Run};

/// How many letters a there are in an answer.
const JUDGE: &str =
    r#"sed 's/.*"completion":"//; s/","prompt.*//; s/[^a]//g' | awk '{print length}'"#;

fn sample(place: &Place, model: &str, out: &str, judge: &str) -> Command {
    let arguments = format!("--model {model} --sample 4 --every-answer --answer-tokens 12");
    let mut command = place.command(&format!("{arguments} --out {out}"));
    command.args(["--score", judge]);
    command
}

fn mean_score(run: &Run) -> f64 {
    let (_, rest) = run.text.split_once("mean score ").unwrap();
    rest.lines().next().unwrap().parse().unwrap()
}

fn grpo(place: &Place, out: &str, fields: &Value, arguments: &str) -> Run {
    let mut loss = json!({ "loss": "grpo" });
    for (name, value) in fields.as_object().unwrap() {
        loss[name] = value.clone();
    }
    let arguments = format!("--data own.jsonl --held-out 0.25 --batch 24 {arguments} --out {out}");
    let mut command = place.command(&arguments);
    place.finish(out, command.args(["--loss", &loss.to_string()]))
}

fn rows(text: &str) -> Vec<Value> {
    let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
    rows.collect()
}

/// The rows hold what was drawn, and how likely it was: a forward over the ids says the same.
#[test]
fn every_answer_is_written_with_its_log_probabilities() {
    let place = Place::new("llama");
    let said = place.finish("own", &mut sample(&place, "model", "own", JUDGE));
    assert!(said.text.contains("24 prompts, 24 groups"), "{}", said.text);
    let model = load(&place.path("model"), &Device::default()).unwrap();
    let batching = Batching {
        padding: Padding::new(0),
        packing: None,
        budget: usize::MAX,
        device: Device::default(),
    };
    let rows = rows(&place.text("own.jsonl"));
    assert_eq!(rows.len(), 24);
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    for row in rows {
        let prompt = ids(&row["prompt_ids"]);
        for i in 0..4 {
            let text = row["responses"][i][0]["content"].as_str().unwrap();
            let score = row["scores"][i].as_f64().unwrap();
            assert_eq!(score, text.matches('a').count() as f64);
            let drawn = ids(&row["response_ids"][i]);
            let found: Vec<f64> =
                serde_json::from_value(row["response_log_probs"][i].clone()).unwrap();
            assert!(found.len() == drawn.len() && (1..=12).contains(&drawn.len()));
            let sequence = Sequence::new(&prompt, &drawn);
            let tokens = TokenBatch::new(vec![sequence], batching.padding, &batching.device);
            let expected = batching.demonstrations(&model, &tokens.unwrap()).unwrap();
            let expected = expected.tokens().sequence().sum().into_scalar::<f32>();
            let sum: f64 = found.iter().sum();
            assert!((sum - f64::from(expected)).abs() < 1e-4, "{sum} {expected}");
        }
    }
    // The same rows are lists with scores for other objectives.
    place.run("lists", "--data own.jsonl --loss rrhf").losses();
}

/// In the first step the policy is its sampler; then it moves away, and its next answers are better.
#[test]
fn several_steps_on_one_sample_and_the_next_round() {
    let place = Place::new("llama");
    let first = place.finish("own", &mut sample(&place, "model", "own", JUDGE));
    // The weights of the last step are kept: the held-out loss does not fall.
    let steps = "--steps 9 --evaluate-every 3 --full --rate 1e-2";
    let run = grpo(
        &place,
        "m1",
        &json!({ "advantage": "leave_one_out" }),
        steps,
    );
    run.losses();
    let ratios = run.numbers("train", "ratio");
    assert_eq!(ratios.len(), 9);
    assert!((ratios[0].1 - 1.0).abs() < 1e-5, "{ratios:?}");
    assert!(
        ratios[1..]
            .iter()
            .any(|(_, ratio)| (ratio - 1.0).abs() > 1e-3)
    );
    let clipped = run.numbers("train", "clip_ratio/region_mean");
    assert_eq!(clipped[0].1, 0.0);
    assert!(clipped.iter().any(|(_, share)| *share > 0.0), "{clipped:?}");
    for key in ["reward", "reward_std", "frac_reward_zero_std", "entropy"] {
        assert_eq!(run.numbers("train", key).len(), 9, "{key}");
    }
    assert!(run.numbers("train", "kl").is_empty());
    assert!(
        run.text.contains("| held out | loss | π/μ | clipped |"),
        "{}",
        run.text
    );
    let second = place.finish("next", &mut sample(&place, "m1", "next", JUDGE));
    let [before, after] = [&first, &second].map(mean_score);
    assert!(after > before + 0.2, "{before} {after}");
    assert!(!run.text.contains("is --model the one"), "{}", run.text);
    // Answers of another model are no samples of this one.
    let other = place.run("other", "--data next.jsonl --loss grpo").text;
    assert!(
        other.contains("is --model the one that wrote these answers,"),
        "{other}"
    );
    // Padded rows have the same numbers.
    let padded = format!("{steps} --layout padded");
    let padded = grpo(
        &place,
        "padded",
        &json!({ "advantage": "leave_one_out" }),
        &padded,
    );
    for (a, b) in padded.losses().iter().zip(run.losses()).take(3) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
}

/// Its relatives run, with a reference where β asks for one, and in parts.
#[test]
fn relatives_and_a_reference() {
    let place = Place::new("llama");
    place.finish("own", &mut sample(&place, "model", "own", JUDGE));
    let gspo = json!({ "level": "sequence", "normalization": "sequence", "clip_low": 3e-4, "clip_high": 4e-4 });
    grpo(&place, "gspo", &gspo, "").losses();
    let cispo = json!({ "clip": "weight", "clip_low": 1, "clip_high": 4 });
    grpo(&place, "cispo", &cispo, "").losses();

    let with_kl = json!({ "beta": 0.1, "normalization": {"constant": 12} });
    let run = grpo(&place, "kl", &with_kl, "--rate 0.01 --steps 6");
    run.losses();
    let kl = run.numbers("train", "kl");
    assert!(kl[0].1.abs() < 1e-6 && kl[5].1 > 1e-5, "{kl:?}");
    // Many forwards a step: the same step.
    let parts = grpo(
        &place,
        "parts",
        &with_kl,
        "--rate 0.01 --steps 6 --budget 64 --workers 1",
    );
    for (a, b) in run.losses().iter().zip(parts.losses()) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let place = Place::new("llama");
    place.finish("own", &mut sample(&place, "model", "own", JUDGE));
    place.fails(
        "--loss grpo",
        "pairs.jsonl: pairs, and the objective takes lists",
    );
    place.fails(
        "--loss grpo --data ranked.jsonl",
        "`response_log_probs`: expected a list of log-probabilities for each response, found nothing",
    );
    place.fails(
        "--loss grpo --data ranked.jsonl",
        "--sample N --every-answer writes it",
    );

    let rows = rows(&place.text("own.jsonl"));
    let fails = |change: &dyn Fn(&mut Value), text: &str| {
        changed(&place, "changed.jsonl", &rows, change);
        place.fails("--loss grpo --data changed.jsonl", text);
    };
    fails(
        &|row| row["responses"][1][0]["content"] = json!("another text"),
        "`response_ids[1]` are not those of the response",
    );
    fails(
        &|row| row["prompt_ids"][0] = json!(5),
        "`prompt_ids` are not those of the prompt",
    );
    fails(
        &|row| row["scores"] = json!([1, 1, 1, 1]),
        "all answers to each prompt have one score: there is nothing to learn",
    );
    fails(
        &|row| row["scores"] = json!([1, 2, 3]),
        "`scores`: expected 4 numbers, one per response, found 3",
    );
    fails(
        &|row| row["response_log_probs"][2] = json!([]),
        "`response_log_probs[2]`: expected",
    );
    fails(
        &|row| row["response_log_probs"][2][0] = json!(null),
        "`response_log_probs[2][0]`: expected a number that f32 holds, found null",
    );
    fails(
        &|row| row["response_log_probs"][2][0] = json!(0.1),
        "`response_log_probs[2][0]`: expected a log-probability, ≤ 0, found 0.1",
    );
    fails(
        &|row| row["response_ids"][0][0] = json!(99_999_999),
        "`response_ids`: 99999999, and the model has",
    );
    fails(
        &|row| row["response_ids"][0][0] = json!(1.5),
        "`response_ids[0][0]`: expected a token id",
    );
    fails(
        &|row| {
            for name in ["responses", "scores", "response_ids", "response_log_probs"] {
                row[name].as_array_mut().unwrap().truncate(1);
            }
        },
        "`responses`: expected two responses at least",
    );
    place.fails(
        "--loss grpo --data own.jsonl --max-length 8",
        "a sample is never cut",
    );
    let mut with_kl = place.command("--data own.jsonl --cache kept --out failed");
    with_kl.args(["--loss", r#"{"loss": "grpo", "beta": 0.1}"#]);
    place.fails_as(&mut with_kl, "the reference of samples is live");
    place.fails(
        "--data own.jsonl --loss grpo --patience 2",
        "--patience: no held-out number of this objective falls",
    );
    place.fails("--every-answer", "--sample");
    let mut warm = sample(&place, "model", "failed", JUDGE);
    place.fails_as(
        warm.args(["--temperature", "0.7"]),
        "--every-answer it is 1",
    );
}

/// Writes rows with a change to each.
fn changed(place: &Place, name: &str, rows: &[Value], change: &dyn Fn(&mut Value)) {
    let mut lines = String::new();
    for row in rows {
        let mut row = row.clone();
        change(&mut row);
        lines.push_str(&row.to_string());
        lines.push('\n');
    }
    place.write(name, &lines);
}

#[test]
fn what_is_strange_is_said() {
    let place = Place::new("llama");
    place.finish("own", &mut sample(&place, "model", "own", JUDGE));
    let rows = rows(&place.text("own.jsonl"));
    let changed = |name: &str, change: &dyn Fn(&mut Value)| changed(&place, name, &rows, change);
    // Each number as likely above as below: the mean ratio is still near 1.
    changed("shaken.jsonl", &|row| {
        for list in row["response_log_probs"].as_array_mut().unwrap() {
            for (i, value) in list.as_array_mut().unwrap().iter_mut().enumerate() {
                let by = if i % 2 == 0 { 0.2 } else { -0.2 };
                *value = json!((value.as_f64().unwrap() + by).min(0.0));
            }
        }
        row["input"] = json!("a text that nobody reads");
    });
    let text = place.run("shaken", "--loss grpo --data shaken.jsonl").text;
    assert!(text.contains("look: |ln π/μ| is 0."), "{text}");
    let look = "look: the model sees nothing of the columns `input`";
    assert!(text.contains(look), "{text}");
    // A run does not go on with other scores.
    std::fs::remove_dir_all(place.path("shaken")).unwrap();
    changed("shaken.jsonl", &|row| row["scores"] = json!([1, 2, 3, 4]));
    let mut on = place.command("--loss grpo --data shaken.jsonl --out shaken --resume");
    place.fails_as(&mut on, "weights and tokens");
    // One prompt in two rows is one group.
    let mut lines = String::new();
    for (i, row) in rows.iter().flat_map(|row| [row, row]).enumerate() {
        let mut row = row.clone();
        row["scores"] = json!([i % 2, i % 2, i % 2, i % 2]);
        lines.push_str(&row.to_string());
        lines.push('\n');
    }
    place.write("twice.jsonl", &lines);
    let twice = "--loss grpo --data twice.jsonl --held-out 0";
    let text = place.run("twice", twice).text;
    assert!(text.contains("train: 192 samples of 24 prompts"), "{text}");
    assert!(!text.contains("are all equal"), "{text}");
    let answers = "--model model --sample 4 --every-answer --answer-tokens 12";
    let mut long = place.command(&format!("{answers} --max-length 16 --out long"));
    let text = place.finish("long", long.args(["--score", JUDGE])).text;
    assert!(
        text.contains("with their prompts are longer than --max-length, 16"),
        "{text}"
    );
    // The labels of KTO are of the data, too.
    let kto = "--loss kto --data unpaired.jsonl --out kto";
    place.run("kto", "--loss kto --data unpaired.jsonl");
    std::fs::remove_dir_all(place.path("kto")).unwrap();
    let labels = place.text("unpaired.jsonl").replacen("true", "false", 1);
    place.write("unpaired.jsonl", &labels);
    let mut on = place.command(&format!("{kto} --resume"));
    place.fails_as(&mut on, "weights and tokens");
    // Some groups that teach nothing are only counted.
    changed("some.jsonl", &|row| {
        if row["scores"][0] == row["scores"][1] {
            row["scores"] = json!([1, 1, 1, 1]);
        }
    });
    let text = place.run("some", "--loss grpo --data some.jsonl").text;
    assert!(
        text.contains("are all equal, so that they teach nothing"),
        "{text}"
    );
}
