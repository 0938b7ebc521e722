//! The program from its command line: what it writes, what it goes on from, and what it refuses.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use finetune::{OutputLayer, load, load_adapter};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use support::FAMILIES;
use support::place::{Place, Run};

/// Equal but for so much.
fn near(a: &[f64], b: &[f64], most: f64) {
    let worst = support::difference(a, b);
    assert!(worst <= most, "{worst}: {a:?} and {b:?}");
}

/// Names and shapes of all tensors of a folder.
fn layout(folder: &Path) -> BTreeMap<String, Vec<usize>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            let bytes = fs::read(path).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let tensors = tensors.tensors().into_iter();
            found.extend(tensors.map(|(name, tensor)| (name, tensor.shape().to_vec())));
        }
    }
    found
}

#[test]
fn every_family_ends_as_files_that_are_the_trained_model() {
    for family in FAMILIES {
        let place = Place::new(family);
        let mut adapted = Vec::new();
        for (out, arguments) in [
            ("merged", ""),
            ("full", "--full"),
            ("adapter", "--save adapter"),
        ] {
            let run = place.run(out, arguments);
            run.learns();
            let ([before, after], loaded) = (
                ["before", "after"].map(|row| run.row(row)),
                run.row("loaded"),
            );
            near(&before[..1], &[std::f64::consts::LN_2], 1e-4);
            // Their last digit, of numbers that round otherwise.
            near(&after, &loaded, 1.01e-4);
            let device = Device::default();
            if out == "adapter" {
                let base = load(&place.path("model"), &device).unwrap();
                load_adapter(base, &run.out, &device).unwrap();
                adapted = after;
            } else {
                load(&run.out, &device).unwrap();
                assert_eq!(layout(&run.out), layout(&place.path("model")));
                let tokenizer = place.text("model/tokenizer.json");
                assert_eq!(place.text(&format!("{out}/tokenizer.json")), tokenizer);
            }
            assert!(run.folder().join("metrics.svg").exists());
        }
        // The adapter in another run: it begins where the first one ended.
        let more = place.run("more", "--adapter adapter");
        near(&more.row("before")[3..], &adapted[3..], 1.01e-4);
    }
}

#[test]
fn the_same_numbers_another_way() {
    let place = Place::new("llama3");
    let mut count = 0;
    let mut compare = |usual: &str, other: &str, most: f64| {
        count += 1;
        let usual = place.run(&format!("usual{count}"), usual);
        let other = place.run(&format!("other{count}"), other);
        near(&usual.losses(), &other.losses(), most);
        let norms = |run: &Run| {
            let text = run.metrics();
            let lines = text
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap());
            lines
                .filter_map(|line| line["train"]["grad_norm"].as_f64())
                .collect::<Vec<_>>()
        };
        near(&norms(&usual), &norms(&other), 100.0 * most);
    };
    compare("--layout padded", "--layout packed", 1e-4);
    compare("", "--layout packed", 0.0);
    compare("", "--gradient-checkpointing", 0.0);
    compare("", "--reference live", 1e-5);
    // A forward of each row, and of each prompt.
    compare("", "--budget 40", 1e-5);
    compare("--layout padded", "--layout padded --budget 40", 1e-5);
    compare("--full", "--full --budget 40", 1e-5);
    // One after the other, and three at once; the reference is computed in other batches.
    compare("--workers 1 --budget 40", "--workers 3 --budget 120", 1e-6);
    compare("--full --workers 1", "--full --workers 2", 1e-5);
    // The mean over the tokens of a step: of one forward by a mixture, which takes no more, and of one
    // forward or several by the number of tokens.
    for loss in [
        r#"{"loss":"orpo","nll_normalization":"token"}"#,
        r#"{"loss":"cpo","nll_normalization":"token"}"#,
        r#"{"loss":"with_sft","weight":1,"normalization":"token","objective":{"loss":"dpo"}}"#,
    ] {
        let whole = format!(r#"{{"loss":"mixture","parts":[{{"weight":1,"objective":{loss}}}]}}"#);
        let [whole, loss] = [&whole, loss].map(|loss| format!("--rate 0.003 --loss {loss}"));
        compare(&whole, &loss, 1e-5);
        compare(&whole, &format!("{loss} --workers 1 --budget 40"), 1e-5);
        compare(
            &whole,
            &format!("{loss} --workers 3 --budget 120 --layout packed"),
            1e-4,
        );
    }
    // Lists of several lengths, whose batches have rows of a prompt alone.
    let ranked = place.text("ranked.jsonl");
    let mut row: Value = serde_json::from_str(ranked.lines().next().unwrap()).unwrap();
    for key in ["responses", "scores"] {
        row[key].as_array_mut().unwrap().pop();
    }
    place.write("uneven.jsonl", &format!("{row}\n{ranked}"));
    let uneven = "--data uneven.jsonl --loss plackett_luce --rate 0.01";
    compare(uneven, &format!("{uneven} --reference live"), 1e-4);
    for (rows, loss) in [
        // Their z₀ and δ are of a step, whatever its parts.
        ("unpaired", "kto"),
        ("unpaired", "bco"),
        ("ranked", "plackett_luce"),
        ("pairs", "bradley_terry"),
        ("ranked", "reward_ranking"),
    ] {
        // Fast enough that z₀ is no 0 any more.
        let usual = format!("--data {rows}.jsonl --loss {loss} --rate 0.01");
        compare(&usual, &format!("{usual} --budget 40"), 1e-4);
    }
}

/// All weights, since adapters begin with random numbers of the device.
#[cfg(feature = "wgpu")]
#[test]
fn the_same_numbers_on_another_device() {
    let place = Place::new("llama3");
    for arguments in [
        "--full --rate 0.001 --layout padded",
        "--full --rate 0.001 --layout packed",
    ] {
        let name = &arguments[arguments.len() - 6..];
        let usual = place.run(&format!("usual{name}"), arguments);
        usual.learns();
        let other = place.run(
            &format!("other{name}"),
            &format!("{arguments} --device wgpu"),
        );
        near(&usual.losses(), &other.losses(), 1e-4);
    }
    place.run("adapters", "--device wgpu").losses();
}

/// Without a warm-up the first step has the whole rate; who may read a folder may read its weights;
/// weights whose loss is no number are not saved.
#[cfg(unix)]
#[test]
fn rates_rights_and_a_run_that_diverges() {
    use std::os::unix::fs::PermissionsExt as _;

    let place = Place::new("llama");
    let run = place.run("run", "--warm-up 0 --steps 2");
    let first = run.metrics().lines().nth(1).unwrap().to_owned();
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!((&first["step"], &first["rate"]), (&json!(1), &json!(1e-4)));

    let rights = |name: &str| {
        let file = fs::metadata(run.out.join(name)).unwrap();
        file.permissions().mode()
    };
    assert_eq!(rights("model.safetensors"), rights("config.json"));

    place.fails("--steps 1 --rate 1e30", "the held-out loss is NaN");
}

/// A row of several sequences is longer than the window, and none of them.
#[test]
fn packed_rows_of_a_model_with_a_window() {
    let place = Place::new("gemma2");
    let usual = place.run("usual", "--layout padded");
    let packed = place.run("packed", "--layout packed");
    near(&usual.losses(), &packed.losses(), 1e-4);
}

#[test]
fn weights_of_fewer_bits() {
    let place = Place::new("llama3");
    let dense = place.run("dense", "").row("before");
    for (arguments, most) in [
        ("--quantize q8", 0.01),
        ("--quantize q4", 0.1),
        ("--dtype bf16", 0.01),
        ("--dtype f16", 1e-3),
        ("--dtype f16 --quantize q8", 0.01),
    ] {
        let out = arguments.replace([' ', '-'], "");
        let run = place.run(&out, arguments);
        run.learns();
        let (before, after) = (run.row("before"), run.row("after"));
        let near_dense = |i: usize| (before[i] / dense[i] - 1.0).abs() < most;
        assert!(
            near_dense(3) && near_dense(4),
            "{arguments}: {before:?}, {dense:?}"
        );
        assert_ne!(before[3..], dense[3..], "{arguments}");
        let is_half = arguments.contains("--dtype");
        if is_half {
            // Activations are f32 again: rounded otherwise.
            near(&run.row("loaded, f32")[3..], &after[3..], 0.2);
        } else {
            near(&run.row("loaded"), &after, 1.01e-4);
        }
        if arguments == "--dtype bf16" {
            // What was learnt is not rounded away.
            let bytes = fs::read(run.out.join("model.safetensors")).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let name = "model.layers.0.self_attn.q_proj.weight";
            let numbers = file.tensor(name).unwrap();
            let (words, _) = numbers.data().as_chunks::<4>();
            assert!(words.iter().any(|word| word[..2] != [0, 0]));
        }
    }
    place.fails("--full --quantize q8", "cannot be used with");
    place.fails("--full --dtype bf16", "--dtype: all weights");
}

#[test]
fn every_kind_of_rows() {
    let place = Place::new("qwen2");
    let down = place
        .text("unpaired.jsonl")
        .replace("\"label\": true", "\"label\": false");
    place.write("down.jsonl", &down);
    write_demonstrations(&place);
    place.write("ipo.json", r#"{"loss": "ipo", "tau": 0.5}"#);
    let mixed = r#"{"loss":"mixture","parts":[{"weight":1,"objective":{"loss":"dpo"}}]}"#;
    let mut losses = BTreeMap::new();
    for (rows, objectives) in [
        (
            "pairs",
            &[
                "dpo",
                "simpo",
                "orpo",
                "cpo",
                "bco",
                "bradley_terry",
                "ipo.json",
                r#"{"loss":"ipo","tau":0.5}"#,
                r#"{"loss":"with_sft","weight":0.5,"objective":{"loss":"dpo"}}"#,
                mixed,
            ][..],
        ),
        ("unpaired", &["kto", "bco", "apo_zero"]),
        ("down", &["npo", "simnpo"]),
        ("ranked", &["rrhf", "plackett_luce", "reward_ranking"]),
        (
            "demonstrations",
            &[
                "sft",
                r#"{"loss":"sft","normalization":"sequence"}"#,
                r#"{"loss":"sft","token_weighting":"probability"}"#,
            ],
        ),
        ("messages", &["sft"]),
    ] {
        for (i, objective) in objectives.iter().enumerate() {
            let out = format!("{rows}{i}");
            let run = place.run(
                &out,
                &format!("--data {rows}.jsonl --loss {objective} --rate 1e-3"),
            );
            if objective.contains("probability") {
                // DFT's loss rises while the likelihood does.
                run.learns_by("nll");
            } else {
                run.learns();
            }
            let free = [
                "simpo",
                "orpo",
                "cpo",
                "rrhf",
                "simnpo",
                "bradley_terry",
                "reward_ranking",
            ];
            let is_sft = *objective == "sft" || objective.starts_with(r#"{"loss":"sft""#);
            let is_free = free.contains(objective) || is_sft;
            let has_reference = run.folder().join("reference").exists();
            assert_eq!(has_reference, !is_free, "{objective}");
            let is_reward_model = ["bradley_terry", "reward_ranking"].contains(objective);
            let saved = load(&run.out, &Device::default()).unwrap();
            assert_eq!(
                saved.config().output == OutputLayer::Reward,
                is_reward_model
            );
            let [after, loaded] = ["after", "loaded"].map(|name| {
                let mut row = run.row(name);
                // Some have no accuracy, some no log-probabilities.
                row.retain(|number| number.is_finite());
                row
            });
            near(&after, &loaded, 1.01e-4);
            losses.insert((rows, *objective), run.losses());
        }
    }
    assert_eq!(
        losses[&("pairs", "ipo.json")],
        losses[&("pairs", r#"{"loss":"ipo","tau":0.5}"#)]
    );
    assert_eq!(losses[&("pairs", "dpo")], losses[&("pairs", mixed)]);
    // The same name, and another objective.
    assert_ne!(losses[&("pairs", "bco")], losses[&("unpaired", "bco")]);

    objectives_that_do_not_fit(&place);
}

/// `pairs5` is a reward model.
fn objectives_that_do_not_fit(place: &Place) {
    // A reward model has no words, learns on, and wants rows and an end of its own.
    place.fails("--model pairs5", "a reward model has no words");
    place
        .run("further", "--model pairs5 --loss bradley_terry")
        .learns();
    place.fails("--loss bradley_terry --save adapter", "save the model");
    place.fails("--loss bradley_terry --layout packed", "--layout packed");
    place.fails(
        "--loss bradley_terry_ties",
        "it takes rewards of pairs, ties",
    );
    let unlike = r#"{"loss":"mixture","parts":[{"weight":1,"objective":{"loss":"kto"}}]}"#;
    place.fails(&format!("--loss {unlike}"), "its parts have none in common");
    place.fails(
        "--data unpaired.jsonl --loss npo",
        "a desirable completion, and this objective unlearns",
    );
    place.fails("--loss dpo2", "`dpo`, `ipo`");
    place.fails(
        r#"--loss {"loss":"dpo","betta":1}"#,
        "unknown field `betta`",
    );
    place.fails(
        r#"--loss {"loss":"dpo","label_noise":"all"}"#,
        "unknown variant `all`",
    );
    place.fails(r#"--loss {"loss":"dpo","beta":-1}"#, "`beta` is -1");
    place.fails("--loss simpo --reference live", "has no reference");
    place.fails("--reference live --cache kept", "nothing is kept");
}

/// Chosen completions as demonstrations, and whole conversations.
fn write_demonstrations(place: &Place) {
    let rows = |row: fn(&Value) -> Value| {
        let text = place.text("pairs.jsonl");
        let pairs = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let lines: Vec<String> = pairs.map(|pair: Value| row(&pair).to_string()).collect();
        lines.join("\n")
    };
    let split = |pair: &Value| json!({"prompt": pair["prompt"], "completion": pair["chosen"]});
    let whole = |pair: &Value| {
        let turns = ["prompt", "chosen"].map(|side| pair[side].as_array().unwrap().clone());
        json!({"messages": turns.concat()})
    };
    place.write("demonstrations.jsonl", &rows(split));
    place.write("messages.jsonl", &rows(whole));
}

/// Both stages: SFT of a base, and DPO of what it saves. README.md has the two commands.
#[test]
fn stage_one_and_stage_two() {
    let place = Place::new("llama");
    write_demonstrations(&place);
    let sft = "--loss sft --full --rate 3e-3 --steps 8 --held-out 0.25";
    let stage_one = place.run("sft", &format!("--data messages.jsonl {sft}"));
    stage_one.learns();
    let text = &stage_one.text;
    assert!(
        text.contains("| held out | loss | token accuracy | entropy | perplexity |"),
        "{text}"
    );
    let [before, after, loaded] = ["before", "after", "loaded"].map(|name| stage_one.row(name));
    near(&after, &loaded, 1.01e-4);
    // The loss is per token, its exponential the perplexity, and both have fallen.
    for row in [&before, &after] {
        assert!((row[0].exp() / row[3] - 1.0).abs() < 1e-4, "{row:?}");
    }
    assert!(
        after[3] < before[3] && after[1] > before[1],
        "{before:?} {after:?}"
    );
    assert!(!stage_one.folder().join("reference").exists());
    let card = fs::read_to_string(stage_one.out.join("README.md")).unwrap();
    assert!(
        card.contains("token accuracy") && card.contains("- sft"),
        "{card}"
    );

    // The same numbers from packed rows, and from parts of a step.
    for more in ["--layout packed", "--budget 64", "--workers 2 --budget 96"] {
        let name = format!("same{}", more.len());
        let same = place.run(&name, &format!("--data messages.jsonl {sft} {more}"));
        near(&same.losses(), &stage_one.losses(), 2e-4);
    }

    // DFT's weights are those of the smallest NLL: its loss is smallest where nothing is learnt.
    let dft = r#"{"loss":"sft","token_weighting":"probability"}"#;
    let more = "--full --rate 3e-3 --steps 8 --evaluate-every 2 --held-out 0.25";
    let dft = place.run("dft", &format!("--data messages.jsonl --loss {dft} {more}"));
    let nll = dft
        .numbers("held_out", "nll")
        .into_iter()
        .map(|(_, nll)| nll);
    let least = nll.fold(f64::INFINITY, f64::min);
    let [before, after] = ["before", "after"].map(|name| dft.row(name));
    assert!((after[3].ln() - least).abs() < 1e-4, "{least} {after:?}");
    assert!(
        after[0] > before[0] && after[3] < before[3],
        "{before:?} {after:?}"
    );
    assert!(!dft.text.contains("has not fallen"), "{}", dft.text);

    let stage_two = place.run("dpo", "--model sft --full --rate 1e-3 --steps 8");
    stage_two.learns();
    // It starts from what the first stage has saved, which is its reference as well.
    let first = stage_two.numbers("train", "loss")[0].1;
    assert!((first - std::f64::consts::LN_2).abs() < 1e-6, "{first}");
    let of_base = place.run("dpo_of_base", "--full --rate 1e-3 --steps 8");
    assert_ne!(stage_two.row("before")[3..], of_base.row("before")[3..]);
}

#[test]
fn what_is_no_demonstration() {
    let place = Place::new("llama");
    let message = "--completion-column chosen imitates the chosen ones";
    place.fails("--loss sft", message);
    place.run("chosen", "--loss sft --completion-column chosen");
    place.fails(
        "--loss sft --data unpaired.jsonl",
        "unpaired.jsonl:1: an undesirable completion by its `label`",
    );
    place.run(
        "none",
        "--loss sft --data unpaired.jsonl --label-column other",
    );
    write_demonstrations(&place);
    place.fails("--data messages.jsonl", "--loss sft takes them");
    place.fails(
        "--loss sft --data ranked.jsonl",
        "lists, and the objective takes demonstrations",
    );
    place.fails(
        "--loss sft --reference live",
        "this objective has no reference",
    );
    place.fails("--loss sft --chosen-column a", "it says nothing of them");
    let asked = r#"{"messages": [{"role": "user", "content": "a red cat?"}]}"#;
    place.write("asked.jsonl", asked);
    place.fails("--loss sft --data asked.jsonl", "found no answer");
    // Completions of which nothing is the assistant's, or that are empty.
    let turn = |role: &str| json!([{"role": role, "content": "a red cat?"}]);
    let none = json!({"prompt": turn("user"), "completion": turn("user")});
    place.write("none.jsonl", &none.to_string());
    place.fails(
        "--loss sft --data none.jsonl --held-out 0",
        "no row of the split `train` is left",
    );
    let prompts = r#"{"prompt": "a red cat?"}"#;
    place.write("prompts.jsonl", prompts);
    place.fails(
        "--loss sft --data prompts.jsonl",
        "or messages in `messages`",
    );
    // Another name of the column.
    let renamed = place
        .text("messages.jsonl")
        .replace("messages", "conversations");
    place.write("conversations.jsonl", &renamed);
    let named = "--loss sft --data conversations.jsonl --messages-column conversations";
    let run = place.run("named", named);
    let same = place.run("usual", "--loss sft --data messages.jsonl");
    assert_eq!(run.losses(), same.losses());
}

/// KTO takes pairs, as two unpaired completions each.
#[test]
fn pairs_as_unpaired_completions() {
    let place = Place::new("qwen2");
    let both = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let side = |(side, label)| {
            let row = json!({"prompt": row["prompt"], "completion": row[side], "label": label});
            format!("{row}\n")
        };
        [("chosen", true), ("rejected", false)].map(side).concat()
    };
    let unpaired: String = place.text("pairs.jsonl").lines().map(both).collect();
    place.write("both.jsonl", &unpaired);
    let pairs = place.run("pairs", "--loss kto");
    let both = place.run("both", "--loss kto --data both.jsonl");
    let said = "pairs.jsonl: 24 pairs, taken as 48 unpaired completions";
    assert!(pairs.text.contains(said), "{}", pairs.text);
    assert_eq!(pairs.losses(), both.losses());
    let after = [&pairs, &both].map(|run| format!("{:?}", run.row("after")));
    assert_eq!(after[0], after[1]);

    // Rows that are both: what the objective takes as it stands.
    let add = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        (row["chosen"], row["rejected"]) = (json!("yes"), json!("no"));
        format!("{row}\n")
    };
    place.write("more.jsonl", &unpaired.lines().map(add).collect::<String>());
    let more = place.run("more", "--loss kto --data more.jsonl");
    assert_eq!(more.losses(), both.losses());
    assert!(
        more.text
            .contains("columns that are not read: `chosen`, `rejected`")
    );

    place.fails(
        "--data unpaired.jsonl",
        "unpaired.jsonl: unpaired completions, and the objective takes pairs (--loss kto",
    );
    place.fails(
        "--data ranked.jsonl --loss kto",
        "ranked.jsonl: lists, and the objective takes unpaired completions",
    );
    place.fails(
        "--loss rrhf",
        "pairs.jsonl: pairs, and the objective takes lists",
    );
}

#[test]
fn several_files_and_shares_of_them() {
    let place = Place::new("llama");
    let rows = place.text("pairs.jsonl");
    let (first, second) = rows.split_at(rows.match_indices('\n').nth(9).unwrap().0 + 1);
    place.write("first.jsonl", first);
    place.write("second.jsonl", second);
    let whole = place.run("whole", "");
    let both = "--data first.jsonl --data second.jsonl";
    let parts = place.run("parts", both);
    assert_eq!(whole.losses(), parts.losses());
    assert_eq!(whole.row("after"), parts.row("after"));
    assert!(
        parts.text.contains("train, first.jsonl: rows: "),
        "{}",
        parts.text
    );

    let shared = |out: &str, more: &str| place.run(out, &format!("{both}:0.5 {more}"));
    let half = shared("half", "");
    let said = "second.jsonl: 7 of 14 rows are taken, a share of 0.5";
    assert!(half.text.contains(said), "{}", half.text);
    assert_eq!(half.losses(), shared("again", "").losses());
    assert_ne!(half.losses(), shared("other", "--seed 1").losses());
    place.fails(
        "--data pairs.jsonl:1.5",
        "a share of pairs.jsonl in (0, 1], found 1.5",
    );
    place.fails("--data pairs.jsonl:0", "in (0, 1], found 0");
    place.fails("--data pairs.jsonl:0.001", "none of 24 rows is taken");
    place.fails("--data model", "model is a folder: name its files");
    place.fails("--data pairs.jsonl:half", "pairs.jsonl:half: No such file");
    // Another share is another run.
    place.fails_as(
        place
            .command(&format!("{both}:0.4 --resume"))
            .args(["--out", "half"]),
        "half is there already",
    );
    place.fails(
        "--held-out-data pairs.jsonl --group topic",
        "--group: nothing is split or shared",
    );
}

/// The model is shown the tools of a row, and its other columns stay beside the answers.
#[test]
fn columns_of_prompts() {
    let place = Place::new("llama");
    let config = place.text("model/tokenizer_config.json");
    let wants_tools =
        r"{{- bos_token }}{%- if not tools %}{{ raise_exception('no tools') }}{% endif %}";
    let with_tools = config.replace("{{- bos_token }}", wants_tools);
    assert_ne!(config, with_tools);
    place.write("model/tokenizer_config.json", &with_tools);
    let rows = place.text("pairs.jsonl");
    let columns = r#""id": 7, "tools": [{"z": 1, "a": 2}], "kl": NaN, "label": true, "prompt""#;
    let rows = rows.replace(r#""prompt""#, columns);
    place.write("tools.jsonl", &rows);
    let run = place.run("trained", "--data tools.jsonl --held-out 0.2 --answers 2");
    assert_eq!(run.text.matches("  after: ").count(), 2, "{}", run.text);

    let mut sample = place
        .command("--data tools.jsonl --sample 4 --answer-tokens 12 --temperature 1 --out pairs2");
    // Which reads a column of the row.
    sample.args([
        "--score",
        r#"sed 's/.*"id"://; s/[,}].*//' | awk '{print $1 * NR}'"#,
    ]);
    let said = place.finish("pairs2", &mut sample);
    let left = "look: the column `kl` is left out of the rows: JSON does not have <NaN>";
    assert!(said.text.contains(left), "{}", said.text);
    let pairs = place.text("pairs2.jsonl");
    for line in pairs.lines() {
        assert!(
            line.contains(r#""id":7,"tools":[{"z":1,"a":2}],"chosen_score""#),
            "{line}"
        );
        let row: Value = serde_json::from_str(line).unwrap();
        assert_ne!(row["chosen"], row["rejected"]);
        assert!(
            row.get("label").is_none() && row.get("kl").is_none(),
            "{line}"
        );
    }
    place.run("next", "--data pairs2.jsonl").losses();
    let twice = format!("{rows}{rows}");
    place.write("twice.jsonl", &twice);
    let mut sample = place.command("--data twice.jsonl --sample 2 --answer-tokens 1 --out pairs3");
    let said = place.finish("pairs3", sample.args(["--score", "awk '{print NR}'"]));
    assert!(
        said.text.contains("48 rows have 24 different prompts"),
        "{}",
        said.text
    );
}

/// Errors of the first batch end a run before its first step; warnings are printed.
#[test]
fn the_first_batch_is_checked() {
    let place = Place::new("llama3");
    let clean = place.run("clean", "");
    assert!(!clean.text.contains("look: "), "{}", clean.text);

    let rows = |from: &str, to: &str, change: &dyn Fn(&mut Value)| {
        let rows = place.text(from);
        let rows = rows.lines().map(|line| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            change(&mut row);
            format!("{row}\n")
        });
        let rows: String = rows.collect();
        place.write(to, &rows);
    };
    // The better completion is the longer one, in pairs and alone.
    rows("pairs.jsonl", "short.jsonl", &|row| {
        row["rejected"][0]["content"] = json!("no");
    });
    rows("unpaired.jsonl", "one_word.jsonl", &|row| {
        if row["label"] == json!(false) {
            row["completion"][0]["content"] = json!("no");
        }
    });
    for (out, arguments) in [
        ("pairs", "--data short.jsonl"),
        ("padded", "--data short.jsonl --layout padded"),
        ("rewards", "--data short.jsonl --loss bradley_terry"),
        ("free", "--data short.jsonl --loss simpo"),
        ("kto", "--data one_word.jsonl --loss kto --batch 20"),
        ("bco", "--data one_word.jsonl --loss bco --batch 20"),
    ] {
        let run = place.run(out, arguments);
        let text = "look: The better completion is the longer one in 100% of the comparisons";
        assert_eq!(run.text.matches(text).count(), 1, "{}", run.text);
        let silent = place.run(&format!("{out}2"), &format!("{arguments} --no-check"));
        assert!(!silent.text.contains(text), "{}", silent.text);
        assert_eq!(silent.metrics(), run.metrics());
    }

    // Nothing to learn from.
    rows("pairs.jsonl", "same.jsonl", &|row| {
        row["rejected"] = row["chosen"].clone();
    });
    let same = "--data same.jsonl";
    let text = "error: Chosen and rejected are the same tokens in 8 of 8 pairs";
    for arguments in ["", "--layout padded", "--loss orpo", "--loss bradley_terry"] {
        place.fails(&format!("{same} {arguments}"), text);
        fs::remove_dir_all(place.path("failed.run")).unwrap();
    }
    place.fails(same, "--no-check trains nevertheless");
    place.run("forced", &format!("{same} --no-check"));
    // What has begun goes on.
    fs::remove_dir_all(place.path("forced")).unwrap();
    place.run("forced", &format!("{same} --resume"));
}

/// A loss of a whole step is not one of its parts.
#[test]
fn losses_of_a_whole_step_are_not_split() {
    let place = Place::new("llama");
    for (i, loss) in [
        r#"{"loss":"aot"}"#,
        r#"{"loss":"mixture","parts":[{"weight":1,"objective":{"loss":"aot"}}]}"#,
        r#"{"loss":"mixture","parts":[{"weight":1,"objective":{"loss":"orpo","nll_normalization":"token"}}]}"#,
    ]
    .iter()
    .enumerate()
    {
        // Rows of two pairs of 30 tokens each.
        let loss = format!("--loss {loss} --batch 2");
        let padded = format!("{loss} --layout padded");
        place.run(&format!("{i}"), &format!("{padded} --budget 120"));
        place.fails(&format!("{padded} --budget 100"), "2 forwards, and the loss");
        place.fails(&format!("{loss} --workers 2"), "of a whole step");
        place.fails(&format!("{loss} --budget 60 --steps 1"), "2 forwards");
    }
    // Others are, to the same numbers: above.
    place.run("split", "--loss orpo --budget 40");
}

/// Held-out losses and z₀ of a run on two rows, which are one step whatever `--batch` is, so that
/// the trained weights are the same.
fn measured(place: &Place, out: &str, rows: &str, arguments: &str) -> [Vec<f64>; 2] {
    let text = place.text(rows);
    let two: Vec<&str> = text.lines().take(2).collect();
    place.write("two.jsonl", &two.join("\n"));
    let usual = "--data two.jsonl --steps 3 --evaluate-every 3 --rate 0.02 --warm-up 0";
    let run = place.run(out, &format!("{usual} --held-out-data {rows} {arguments}"));
    ["loss", "kl"].map(|key| {
        let numbers = run.numbers("held_out", key).into_iter();
        numbers.map(|(_, number)| number).collect()
    })
}

#[test]
fn what_is_measured_does_not_depend_on_the_batch() {
    let place = Place::new("llama");
    for (i, (rows, loss)) in [
        ("unpaired.jsonl", "kto"),
        ("unpaired.jsonl", "bco"),
        ("pairs.jsonl", "aot"),
        (
            "pairs.jsonl",
            r#"{"loss":"with_sft","weight":1,"normalization":"token","objective":{"loss":"dpo"}}"#,
        ),
        (
            "pairs.jsonl",
            r#"{"loss":"orpo","nll_normalization":"token"}"#,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut count = 0;
        let mut by = |more: &str| {
            count += 1;
            let arguments = format!("--loss {loss} {more}");
            measured(&place, &format!("{i}-{count}"), rows, &arguments)
        };
        let whole = by("--batch 24");
        let [losses, baselines] = &whole;
        assert!(losses.len() == 2 && losses[0] != losses[1], "{losses:?}");
        for batch in ["--batch 2", "--batch 3"] {
            assert_eq!(by(batch), whole, "{loss} {batch}");
        }
        // By several forwards: rows of like length together, or those of one prompt.
        for cut in ["--budget 120", "--budget 120 --layout packed"] {
            let [of_cut, baselines_of_cut] = by(&format!("--batch 2 --workers 1 {cut}"));
            near(&of_cut, losses, 2e-5);
            near(&baselines_of_cut, baselines, 2e-4);
        }
    }
}

/// δ of the table is the one of the evaluation whose weights are saved.
#[test]
fn the_table_is_of_the_best_evaluation() {
    let place = Place::new("llama");
    let run = place.run(
        "best",
        "--data unpaired.jsonl --loss bco --steps 12 --evaluate-every 1 --rate 0.05 --warm-up 0",
    );
    let losses = run.numbers("held_out", "loss");
    let best = losses[1..]
        .iter()
        .copied()
        .min_by(|a, b| a.1.total_cmp(&b.1));
    let (step, loss) = best.unwrap();
    assert!(step < 12, "{losses:?}");
    near(&run.row("after")[..1], &[loss], 1e-4);
}

/// AdamW's first step moves every weight by the rate, however small its gradient is, while that is
/// larger than ε. Clipped at a norm of 1e-3, gradients are about 1e-5 here.
#[test]
fn small_gradients_move_weights_by_the_rate() {
    let place = Place::new("llama");
    let once = "--full --steps 1 --evaluate-every 1 --warm-up 0 --schedule constant";
    let run = place.run("once", &format!("{once} --rate 0.001 --clip 0.001"));
    let read = |folder: &Path| {
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut numbers: Vec<(String, Vec<f32>)> = Vec::new();
        for (name, tensor) in tensors.tensors() {
            let (words, _) = tensor.data().as_chunks();
            let of = words.iter().map(|word| f32::from_le_bytes(*word));
            numbers.push((name, of.collect()));
        }
        numbers.sort_by(|a, b| a.0.cmp(&b.0));
        numbers
            .into_iter()
            .flat_map(|(_, of)| of)
            .collect::<Vec<_>>()
    };
    let [before, after] = [place.path("model"), run.out].map(|folder| read(&folder));
    let moves = before.iter().zip(&after).map(|(a, b)| (a - b).abs());
    let mut moves: Vec<f32> = moves.filter(|moved| *moved > 0.0).collect();
    moves.sort_by(f32::total_cmp);
    let median = moves[moves.len() / 2];
    assert!((median / 0.001 - 1.0).abs() < 0.01, "{median}");
}

/// Starts a run, and interrupts it after some steps.
#[cfg(unix)]
fn interrupted(place: &Place, out: &str, arguments: &str) -> Run {
    let mut command = place.command(&format!("{arguments} --out {out}"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    let metrics = place.path(&format!("{out}.run/metrics.jsonl"));
    let start = Instant::now();
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 6 {
        assert!(start.elapsed() < Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(1));
    }
    signal("-INT", child.id());
    let done = child.wait_with_output().unwrap();
    let run = Run::new(place.path(out), &done);
    assert_eq!(done.status.code(), Some(130), "{}", run.text);
    assert!(run.text.contains("go on with --resume"), "{}", run.text);
    assert!(!run.out.exists());
    assert_eq!(run.checkpoints().len(), 1);
    run
}

#[cfg(unix)]
#[test]
fn a_run_that_was_interrupted_goes_on_with_the_same_numbers() {
    let place = Place::new("llama");
    write_demonstrations(&place);
    let sft = "--data messages.jsonl --loss sft";
    let mut sample = place.command("--sample 4 --every-answer --answer-tokens 6 --out own");
    place.finish("own", sample.args(["--score", "awk '{print NR % 3}'"]));
    let grpo = "--data own.jsonl --loss grpo";
    let bco = "--data unpaired.jsonl --loss bco";
    for (i, arguments) in ["", "--full", bco, sft, grpo].iter().enumerate() {
        let arguments =
            format!("{arguments} --steps 80 --evaluate-every 20 --batch 2 --rate 0.001");
        let whole = place.run(&format!("whole{i}"), &arguments);
        let out = format!("part{i}");
        let part = interrupted(&place, &out, &arguments).metrics();
        assert!(whole.metrics().starts_with(&part) && whole.metrics() != part);
        let rest = place.run(&out, &format!("{arguments} --resume"));
        assert!(rest.text.contains("goes on after step"));
        assert_eq!(rest.metrics(), whole.metrics());
        for name in ["model.safetensors", "config.json"] {
            let [a, b] = [&whole, &rest].map(|run| fs::read(run.out.join(name)).unwrap());
            assert!(a == b, "{arguments}: {name}");
        }
    }
}

/// Sends a signal to a process.
#[cfg(unix)]
fn signal(name: &str, id: u32) {
    let sent = Command::new("kill").args([name, &id.to_string()]).status();
    assert!(sent.unwrap().success());
}

#[cfg(unix)]
#[test]
fn a_run_has_its_place_alone() {
    let place = Place::new("llama");
    let arguments = "--steps 200 --evaluate-every 3 --batch 2";
    let whole = place.run("whole", arguments);
    let start = |more: &str| {
        let mut command = place.command(&format!("{arguments} --out out {more}"));
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        // Also in the middle of writing a checkpoint, a process that is stopped lives.
        while !fs::read_to_string(place.path("out.run/metrics.jsonl"))
            .is_ok_and(|text| text.lines().count() > 6)
        {
            assert!(start.elapsed() < Duration::from_mins(1));
            std::thread::sleep(Duration::from_millis(1));
        }
        child
    };
    let mut first = start("");
    signal("-STOP", first.id());
    let sample = "--sample 2 --score cat --out out";
    for others in [
        &format!("{arguments} --out out"),
        &format!("{arguments} --out out --resume"),
        sample,
    ] {
        let done = place.command(others).output().unwrap();
        let error = String::from_utf8(done.stderr).unwrap();
        assert!(
            !done.status.success() && error.contains("--out: out: another run is writing it"),
            "{error}"
        );
    }
    signal("-CONT", first.id());
    assert!(first.wait().unwrap().success());
    let run = |text: &str| Run {
        out: place.path("out"),
        text: text.to_owned(),
    };
    assert_eq!(run("").metrics(), whole.metrics());
    let bytes = |run: &Run| fs::read(run.out.join("model.safetensors")).unwrap();
    assert!(bytes(&run("")) == bytes(&whole));
    assert!(!place.path(".out.lock").exists());

    // Killed, it leaves what it was writing, and lines that no checkpoint has seen.
    for name in ["out", "out.run"] {
        fs::remove_dir_all(place.path(name)).unwrap();
    }
    let mut first = start("");
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(place.path(".out.lock").exists());
    let cache = fs::read_dir(place.path("out.run/reference"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let cache = format!("out.run/reference/{}", cache.file_name().to_string_lossy());
    let left = [
        ".out.saved/config.json",
        ".out.saved.7/config.json",
        ".out.jsonl.7",
        "out.run/.checkpoint-199.7/state.json",
        "out.run/checkpoint-1/state.json",
        "out.run/.options.json.7",
    ]
    .map(str::to_owned);
    let left = left.into_iter().chain([format!("{cache}/x.bpk.7-0.tmp")]);
    // Of somebody else.
    let kept = [
        ".outer.saved/x",
        ".outer.jsonl.7",
        ".out.txt.7",
        "out.run/.keep",
        "out.run/notes.7",
    ];
    let left: Vec<String> = left.collect();
    for name in left.iter().map(String::as_str).chain(kept) {
        fs::create_dir_all(place.path(name).parent().unwrap()).unwrap();
        place.write(name, "{");
    }
    // A loss of power may leave any bytes behind those that were synced.
    let mut metrics = fs::read(place.path("out.run/metrics.jsonl")).unwrap();
    metrics.extend(b"{\"step\": 1, \"tr\0\0\xff\xfe");
    fs::write(place.path("out.run/metrics.jsonl"), metrics).unwrap();
    let rest = place.run("out", &format!("{arguments} --resume"));
    assert!(rest.text.contains("goes on after step"), "{}", rest.text);
    assert_eq!(rest.metrics(), whole.metrics());
    assert!(bytes(&rest) == bytes(&whole));
    for name in &left {
        assert!(!place.path(name).exists(), "{name}");
    }
    assert!(!place.path(".out.lock").exists());
    for name in kept {
        assert!(place.path(name).exists(), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn another_run_does_not_go_on() {
    let place = Place::new("llama");
    let run = |steps, batch| format!("--steps {steps} --evaluate-every 50 --batch {batch}");
    let usual = run(500, 2);
    interrupted(&place, "stopped", &usual);
    let go_on = |arguments: &str, text: &str| {
        place.fails_as(
            &mut place.command(&format!("{arguments} --out stopped")),
            text,
        );
    };
    go_on(&usual, "go on with --resume, or remove it");
    let resume = |arguments: String, text: &str| go_on(&format!("{arguments} --resume"), text);
    resume(run(499, 2), "options steps was 500 and is 499");
    resume(run(500, 3), "options batch was 2 and is 3");
    for (other, text) in [
        ("--rate 0.5", "options rate was 0.0001 and is 0.5"),
        ("--seed 1", "options seed was 0 and is 1"),
        ("--loss ipo", "run loss loss was \"dpo\" and is \"ipo\""),
        ("--full --rate 0.0001", "run full was false and is true"),
        ("--rank 2", "run rank was 8 and is 2"),
        ("--budget 99", "run budget was 2048 and is 99"),
        ("--reference live", "run reference was"),
    ] {
        resume(format!("{usual} {other}"), text);
    }
    let rows = place.text("pairs.jsonl");
    place.write("pairs.jsonl", &rows.replace("red", "wet"));
    resume(usual.clone(), "weights and tokens");
    place.write("pairs.jsonl", &rows);
    place.fails("--resume", "there is no checkpoint to go on from");
    place.run("there", "");
    let again = |arguments: &str| {
        let mut command = place.command(&format!("{arguments} --out there"));
        let done = command.output().unwrap();
        let error = String::from_utf8(done.stderr).unwrap();
        assert!(error.contains("--out: there is there already"), "{error}");
    };
    again("");
    again("--resume");
    // A slash at the end is the same name.
    place.run("slash/", "");
    assert!(place.path("slash.run/metrics.jsonl").exists());
}

/// Held-out rows of which every fourth contradicts the others: their loss falls, and rises again.
#[test]
fn the_best_weights_are_saved() {
    let place = Place::new("llama");
    let rows = place.text("pairs.jsonl");
    let rows: Vec<String> = rows
        .lines()
        .enumerate()
        .map(|(i, line)| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            if i % 4 == 0 {
                let chosen = row["chosen"].take();
                row["chosen"] = row["rejected"].take();
                row["rejected"] = chosen;
            }
            row.to_string()
        })
        .collect();
    place.write("held.jsonl", &rows.join("\n"));
    let usual = "--held-out-data held.jsonl --full --rate 0.002 --schedule constant \
                 --evaluate-every 1 --steps 20";
    let all = place.run("all", usual);
    let losses = all.numbers("held_out", "loss");
    let best = losses[1..]
        .iter()
        .copied()
        .min_by(|a, b| a.1.total_cmp(&b.1));
    let (best, loss) = best.unwrap();
    assert!(best > 1 && best < 17, "{losses:?}");
    near(
        &[all.row("after")[0], all.row("loaded")[0]],
        &[loss, loss],
        1e-4,
    );
    let last = losses[losses.len() - 1].1;
    assert!(last > loss + 0.01, "{last}");

    let early = place.run("early", &format!("{usual} --patience 3"));
    assert!(
        early.text.contains("does not fall any more"),
        "{}",
        early.text
    );
    let steps = early.numbers("train", "loss").len() as u64;
    assert_eq!(steps, best + 3);
    assert!(all.metrics().starts_with(&early.metrics()));
    let [a, b] = [&all, &early].map(|run| fs::read(run.out.join("model.safetensors")).unwrap());
    assert!(a == b);
    // It has ended, and going on to save it again adds no step.
    fs::remove_dir_all(&early.out).unwrap();
    let again = place.run("early", &format!("{usual} --patience 3 --resume"));
    assert_eq!(again.metrics(), early.metrics());
    assert!(fs::read(again.out.join("model.safetensors")).unwrap() == b);
}

#[cfg(unix)]
#[test]
fn pairs_of_the_models_own_answers() {
    let place = Place::new("llama");
    let sample = |out: &str, judge: &str| {
        let arguments = "--sample 4 --answer-tokens 12 --temperature 1";
        let mut command = place.command(&format!("{arguments} --out {out}"));
        command.args(["--score", judge]);
        command
    };
    // How many letters a there are in an answer.
    let judge = r#"sed 's/.*"completion":"//; s/","prompt.*//; s/[^a]//g' | awk '{print length}'"#;
    let said = place.finish("own", &mut sample("own", judge));
    assert!(said.text.contains("24 prompts"), "{}", said.text);
    let rows = place.text("own.jsonl");
    let prompts = place.text("pairs.jsonl");
    let mut lines = 0;
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let mut scores = [0.0; 2];
        for (score, side) in scores.iter_mut().zip(["chosen", "rejected"]) {
            assert_eq!(row[side][0]["role"], json!("assistant"), "{line}");
            let text = row[side][0]["content"].as_str().unwrap();
            *score = row[format!("{side}_score")].as_f64().unwrap();
            assert_eq!(*score, text.matches('a').count() as f64, "{line}");
        }
        assert!(scores[0] > scores[1], "{line}");
        let question = row["prompt"][0]["content"].as_str().unwrap();
        assert!(prompts.contains(question));
        lines += 1;
    }
    assert!(lines > 4, "{rows}");
    // The second command of a round, and the first one again.
    place
        .run("aligned", "--data own.jsonl --skip-errors")
        .losses();
    let again = place.finish("again", &mut sample("again", judge));
    assert!(!again.text.is_empty() && place.text("again.jsonl") == rows);

    place.run("judge", "--loss bradley_terry --rate 0.01");
    place.finish("judged", &mut sample("judged", "judge"));
    place.run("better", "--data judged.jsonl").losses();

    let fails = |judge: &str, text: &str| place.fails_as(&mut sample("failed", judge), text);
    fails("model", "model is no reward model");
    fails(
        "cat > /dev/null; exit 3",
        "the command ended with exit status: 3",
    );
    fails("sed s/.*/1/ | head -n 5", "5 numbers for 96 answers");
    fails("sed s/.*/1/; echo 1", "97 numbers for 96 answers");
    fails("cat", "is no number");
    fails("sed s/.*/nan/", "answer 0 has the score NaN");
    fails("sed s/.*/1/", "there is no pair");
    // What a judge could not judge is not lost.
    assert_eq!(place.text("failed.answers.jsonl").lines().count(), 96);
    fails("no-such-program", "exit status: 127");
    let mut training = sample("failed", "cat");
    place.fails_as(training.args(["--rank", "4"]), "cannot be used with");
    place.fails("--sample 4", "--score");
    place.fails("--score cat", "--sample");
    place.fails("--score cat --steps 2", "--sample");
    place.write(
        "sums.jsonl",
        r#"{"instruction": "Add.", "input": "two and three", "id": 3, "output": "5"}"#,
    );
    let alpaca = "--sample 4 --answer-tokens 12 --temperature 1 --data sums.jsonl";
    let alpaca = format!("{alpaca} --prompt-column instruction --out alpaca");
    let mut alpaca = place.command(&alpaca);
    alpaca.args(["--score", "awk '{print NR}'"]);
    let text = place.finish("alpaca", &mut alpaca).text;
    let look = "look: the model sees nothing of the columns `input`\n";
    assert!(text.contains(look), "{text}");
    place.fails("--sample 1 --score cat", "--sample: at least 2");
    place.fails_as(&mut sample("own", judge), "own.jsonl is there already");
}

/// A model folder that `change` has spoiled.
fn spoiled(family: &str, change: impl FnOnce(&Place)) -> Place {
    let place = Place::new(family);
    change(&place);
    place
}

#[test]
fn a_model_that_is_not_whole() {
    let without = |family: &str, name: &str| {
        let place = spoiled(family, |place| {
            fs::remove_file(place.path(&format!("model/{name}"))).unwrap();
        });
        place.fails("", &format!("model/{name}: No such file"));
    };
    without("llama3", "model-00002-of-00003.safetensors");
    without("llama", "model.safetensors");
    without("llama", "config.json");
    without("llama", "tokenizer.json");
    without("llama", "tokenizer_config.json");

    let replaced = |name: &str, from: &str, to: &str, text: &str| {
        let name = format!("model/{name}");
        let place = spoiled("llama", |place| {
            let file = place.text(&name);
            assert!(file.contains(from));
            place.write(&name, &file.replacen(from, to, 1));
        });
        place.fails("", text);
    };
    let family = r#""model_type": "llama""#;
    let unknown = "`model_type`: expected one of";
    replaced("config.json", family, r#""model_type": "mamba""#, unknown);
    let added = r#""added_tokens": ["#;
    let more = r#"{"id": 40, "content": "<new>", "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true},"#;
    let vocabulary = "the tokenizer has the id 40 (\"<new>\"), and the model 40 words";
    replaced(
        "tokenizer.json",
        added,
        &format!("{added}{more}"),
        vocabulary,
    );
    let end = "no `eos_token`";
    replaced(
        "tokenizer_config.json",
        r#""eos_token": "</s>""#,
        r#""eos_token": "<end>""#,
        end,
    );

    let place = spoiled("llama", |place| {
        let path = place.path("model/model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len() - 4;
        bytes[end..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(path, bytes).unwrap();
    });
    place.fails("", "is NaN");
    place.fails("--model nowhere", "nowhere/config.json: No such file");
    place.fails("--model pairs.jsonl", "pairs.jsonl: not a GGUF file");
}

#[test]
fn rows_that_are_not_there_or_broken() {
    let place = Place::new("mistral");
    place.fails("--data nowhere.jsonl", "nowhere.jsonl: No such file");
    place.write("empty.jsonl", "");
    place.fails("--data empty.jsonl", "no row of the split `train` is left");
    place.fails(
        "--held-out-data empty.jsonl",
        "no row of the split `held out` is left",
    );
    place.fails("--held-out 1", "no row of the split `train` is left");
    let rows = place.text("pairs.jsonl");
    place.write(
        "broken.jsonl",
        &format!("{rows}{{\"prompt\": 3}}\n{{broken\n{rows}"),
    );
    place.fails("--data broken.jsonl", "broken.jsonl:25: `chosen`: expected");
    let run = place.run("skipped", "--data broken.jsonl --skip-errors");
    for line in ["25: `chosen`", "26: key must be a string"] {
        assert!(
            run.text.contains(&format!("left out: broken.jsonl:{line}")),
            "{}",
            run.text
        );
    }
    // A token of what each prompt says, and four of each completion.
    let short = place.run("short", "--max-length 8");
    let report = "shortened: 22 prompts, 38 completions";
    assert!(short.text.contains(report), "{}", short.text);
    place.fails("--max-length 2", "no row of the split `train` is left");
    place.fails("--max-length 33", "--max-length: at most 32");
    // Prompts beyond the window are cut where they train, and not answered.
    place.write("long.jsonl", &rows.replace("a red", &"a very ".repeat(9)));
    let run = place.run("long", "--data long.jsonl --held-out 0.5 --answers 12");
    assert!(run.text.matches("  after: ").count() > 4, "{}", run.text);
    let unanswered = "not answered: a prompt that is longer than --max-length";
    assert!(run.text.contains(unanswered), "{}", run.text);
    place.fails("--group topic", "line 1 has no column `topic`");
    place.fails(
        "--held-out-data pairs.jsonl --held-out 0.5",
        "cannot be used with",
    );

    // Nothing is measured, and the last weights are saved.
    let run = place.run("all", "--held-out 0");
    assert!(!run.text.contains("| before |") && run.numbers("held_out", "loss").is_empty());
    assert_eq!(run.numbers("train", "loss").len(), 4);
    load(&run.out, &Device::default()).unwrap();
    place.fails(
        "--held-out 0 --patience 1",
        "--patience: nothing is held out",
    );

    for (arguments, text) in [
        ("--rate nan", "--rate: a number > 0, found NaN"),
        ("--clip 0", "--clip: a number > 0, found 0"),
        ("--warm-up 1.5", "--warm-up: a number in [0, 1]"),
        ("--batch 0", "--batch: at least 1"),
        ("--targets q_proj,head", "`head`: no projection"),
        ("--device abacus", "--device: expected flex"),
        ("--rate 1e30", "not finite"),
        (
            "--full --save adapter",
            "--save adapter: with --full there is none",
        ),
        (
            "--adapter nowhere",
            "nowhere/adapter_config.json: No such file",
        ),
    ] {
        place.fails(arguments, text);
    }
}

/// A limit on the size of files does what a full disk does, and needs no rights.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full() {
    let place = Place::new("llama");
    let limited = |blocks: usize, arguments: &str| {
        let run = place.command(&format!("{arguments} --out failed"));
        let mut command = Command::new("sh");
        let line = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        command.args(["-c", &line]).arg(run.get_program());
        command.args(run.get_args()).current_dir(place.0.path());
        command
    };
    // sh counts blocks of 512 bytes, and the model has 38 kB.
    let arguments = "--rank 1 --targets q_proj";
    place.fails_as(
        &mut limited(64, arguments),
        "model.safetensors: I/O error: File too large",
    );
    let run = Run {
        out: place.path("failed"),
        text: String::new(),
    };
    assert_eq!(run.checkpoints(), ["checkpoint-4"]);
    // With room, what was trained is saved without another step.
    let saved = place.run("failed", &format!("{arguments} --resume"));
    assert!(saved.text.contains("goes on after step 4"));
    load(&saved.out, &Device::default()).unwrap();

    for name in ["failed", "failed.run"] {
        fs::remove_dir_all(place.path(name)).unwrap();
    }
    place.fails_as(&mut limited(40, "--full"), "File too large");
    assert!(run.checkpoints().is_empty());
}

/// A column that says which answer is better, beside options that say it of all rows.
#[test]
fn a_choice_that_is_not_read() {
    let place = Place::new("llama");
    let row = |id: &str| {
        let row =
            json!({"prompt": format!("{id} cat?"), "a": "a cat", "b": "a dog", "winner": "b"});
        format!("{row}\n")
    };
    place.write("won.jsonl", &["red", "wet", "big", "hot"].map(row).concat());
    let columns = "--data won.jsonl --chosen-column a --rejected-column b --held-out 0";
    let text = place.run("won", columns).text;
    assert!(text.contains("which answer is better? `winner`"), "{text}");
}

/// Columns of other names are read where they are named, and nothing is lost for their names.
#[test]
fn columns_of_other_names() {
    let place = Place::new("llama");
    // The template of these models has no system messages: another one, with the same tokens.
    let config = place.text("model/tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["chat_template"] = json!(
        "{{ bos_token }}{% for m in messages %}{{ '<|assistant|>' if m.role == 'assistant' else '<|user|>' }}\
         {{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}\
         {{ '<|assistant|>' if add_generation_prompt }}"
    );
    place.write("model/tokenizer_config.json", &config.to_string());
    let row = |i: usize, mut row: Value| {
        let id = ["red", "wet", "big", "hot"][i];
        let text = row.to_string().replace("ID", id);
        row = serde_json::from_str(&text).unwrap();
        format!("{row}\n")
    };
    let rows = |shape: Value| (0..4).map(|i| row(i, shape.clone())).collect::<String>();
    let usual = "--held-out 0.5 --steps 1 --batch 2";
    let numbers = |out: &str, arguments: &str| {
        let run = place.run(out, &format!("{usual} {arguments}"));
        (run.row("before"), run.text)
    };

    let pair = json!({"prompt": "ID cat?", "chosen": "a cat", "rejected": "a dog"});
    place.write("usual.jsonl", &rows(pair));
    let (expected, text) = numbers("usual", "--data usual.jsonl");
    assert!(!text.contains("look: "), "{text}");

    let question = json!({"question": "ID cat?", "chosen": "a cat", "rejected": "a dog", "id": 3});
    place.write("question.jsonl", &rows(question));
    place.fails("--data question.jsonl", "--prompt-column NAME");
    place.fails("--data question.jsonl --plain", "may be one of `question`");
    let (named, text) = numbers("named", "--data question.jsonl --prompt-column question");
    assert_eq!(named, expected);
    assert!(text.contains("columns that are not read: `id`\n"), "{text}");
    let said = "--data question.jsonl --plain --implicit-prompt --held-out 0 --answer-tokens 8";
    let text = place.run("said", said).text;
    assert!(
        text.contains("look: the model sees nothing of the columns `question`"),
        "{text}"
    );
    let look = "look: --answer-tokens changes nothing: no prompt is answered\n";
    assert!(text.contains(look), "{text}");
    place.fails(
        "--data question.jsonl --prompt-column qestion",
        "`qestion`: expected a string",
    );

    let talk = json!({
        "talk": [{"from": "human", "value": "ID cat?"}],
        "good": {"from": "bot", "value": "a cat"},
        "bad": "a dog",
    });
    place.write("talk.jsonl", &rows(talk));
    let columns =
        "--data talk.jsonl --prompt-column talk --chosen-column good --rejected-column bad";
    place.fails(columns, "--roles NAME=ROLE");
    let (talk, text) = numbers("talk", &format!("{columns} --roles bot=assistant,foo=user"));
    assert_eq!(talk, expected);
    let look = "look: --roles: no message of talk.jsonl is of the role `foo`\n";
    assert!(text.contains(look) && !text.contains("`bot`"), "{text}");

    let transcript = |answer: &str| format!("\n\nHuman: ID cat?\n\nAssistant: a {answer}");
    let transcripts = json!({"chosen": transcript("cat"), "rejected": transcript("dog")});
    place.write("transcripts.jsonl", &rows(transcripts));
    assert_eq!(numbers("turns", "--data transcripts.jsonl").0, expected);
    let other = json!({"chosen": "ID cat? a cat", "rejected": "ID cat? a dog"});
    place.write("other.jsonl", &rows(other));
    place.fails("--data other.jsonl", "ends inside an answer");
    numbers("other", "--data other.jsonl --plain");

    let system =
        json!({"system": "be big", "prompt": "ID cat?", "chosen": "a cat", "rejected": "a dog"});
    place.write("system.jsonl", &rows(system.clone()));
    let (with, text) = numbers("system", "--data system.jsonl");
    assert_ne!(with, expected);
    assert!(
        text.contains("prompts with a system message: 2\n"),
        "{text}"
    );
    assert_eq!(
        numbers("none", "--data system.jsonl --system-column=").0,
        expected
    );
    place.fails(
        "--data system.jsonl --system-column mood",
        "no row of system.jsonl has a column `mood`",
    );
    let (_, text) = numbers("plain", "--data system.jsonl --plain");
    let look = "look: the model sees nothing of the columns `system`\n";
    assert!(text.contains(look), "{text}");

    // A template that was applied before, and options for rows of another kind.
    let applied = json!({"prompt": "<|user|>ID cat?", "chosen": "a cat", "rejected": "a dog"});
    place.write("applied.jsonl", &rows(applied));
    let (_, text) = numbers("applied", "--data applied.jsonl");
    assert!(
        text.contains("such as `<|user|>`: was a template"),
        "{text}"
    );
    place.fails("--label-column good", "--label-column: pairs are read");
    place.fails("--roles bot", "a name and the role that it stands for");
}
