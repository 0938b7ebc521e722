//! What is saved, and where models are found: types, shards, the files beside the weights, cards,
//! options, and the cache of Hugging Face's tools.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, FloatDType, bf16, f16};
use finetune::{
    Chat, SaveError, SaveOptions, Source, SourceError, WeightError, load, load_adapter, save,
};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::{Value, json};
use support::place::Place;
use support::{data, difference, log_probs};
use tempfile::tempdir;

fn json_of(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).unwrap()
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Every tensor of a file.
fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, tensor): (String, TensorView<'_>)| {
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        (name, (dtype, shape, tensor.data().to_vec()))
    };
    file.tensors().into_iter().map(tensor).collect()
}

fn write(tensors: &Tensors, path: &Path) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

/// The model `llama` with weights and a config of another type, but for its norms.
fn in_bf16(folder: &Path) -> Tensors {
    support::copy(&data("llama"), folder);
    let mut tensors = read(&folder.join("model.safetensors"));
    for (name, (dtype, _, bytes)) in &mut tensors {
        if !name.ends_with("norm.weight") {
            let (words, _) = bytes.as_chunks();
            let halves = words
                .iter()
                .map(|word| bf16::from_f32(f32::from_le_bytes(*word)));
            (*dtype, *bytes) = (Dtype::BF16, halves.flat_map(bf16::to_le_bytes).collect());
        }
    }
    write(&tensors, &folder.join("model.safetensors"));
    let mut config = json_of(&folder.join("config.json"));
    config.as_object_mut().unwrap().remove("dtype");
    config["torch_dtype"] = json!("bfloat16");
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    tensors
}

#[test]
fn weights_keep_the_types_of_the_input_or_have_the_one_that_is_asked_for() {
    let there = tempdir().unwrap();
    let from = there.path().join("from");
    let tensors = in_bf16(&from);
    let decoder = load(&from, &Device::default()).unwrap();
    let saved = |name: &str, dtype| {
        let to = there.path().join(name);
        let options = SaveOptions {
            dtype,
            ..Default::default()
        };
        let usual = save(&decoder, &from, &to, &options).unwrap();
        let config = json_of(&to.join("config.json"));
        (read(&to.join("model.safetensors")), config, usual)
    };
    let (same, config, usual) = saved("same", None);
    assert!(same == tensors && usual == FloatDType::BF16);
    assert_eq!(config, json_of(&from.join("config.json")));

    for (dtype, of_file, name) in [
        (FloatDType::F32, Dtype::F32, "float32"),
        (FloatDType::F16, Dtype::F16, "float16"),
        (FloatDType::BF16, Dtype::BF16, "bfloat16"),
    ] {
        let (tensors, config, usual) = saved(name, Some(dtype));
        assert!(tensors.values().all(|(dtype, ..)| *dtype == of_file));
        assert_eq!((&config["dtype"], usual), (&json!(name), dtype));
        assert!(config.get("torch_dtype").is_none());
        let [a, b] = [&from, &there.path().join(name)].map(|folder| {
            let model = load(folder, &Device::default()).unwrap();
            log_probs(&model, &support::Expected::read(&data("llama")).ids)
        });
        // f16 has more digits than bf16, and f32 loses none.
        let most = if dtype == FloatDType::F32 { 0.0 } else { 0.05 };
        assert!(difference(&a, &b) <= most, "{name}");
    }
    // To the nearest: 1 + 2⁻⁹ and 1 + 3·2⁻⁹ of bf16, 1 + 2⁻¹¹ of f16.
    let nearest = [1.001_953_1_f32, 1.005_859_4, 1.000_488_3].map(|x| bf16::from_f32(x).to_f32());
    assert_eq!(nearest, [1.0, 1.007_812_5, 1.0]);

    // More than f16 holds is no silent infinity.
    let mut large = decoder.clone();
    large.norm.gamma = Param::from_tensor(large.norm.gamma.val() + 65_520.0);
    let options = SaveOptions {
        dtype: Some(FloatDType::F16),
        ..Default::default()
    };
    let to = there.path().join("large");
    let error = save(&large, &from, &to, &options).unwrap_err();
    assert!(
        matches!(&error, SaveError::Weights(WeightError::TooLarge { name, .. }) if name == "model.norm.weight"),
        "{error}"
    );
    assert!(!to.exists() && f16::from_f32(65_520.0).is_infinite());
}

#[test]
fn large_models_are_written_in_shards() {
    let there = tempdir().unwrap();
    let decoder = load(&data("llama"), &Device::default()).unwrap();
    let whole = read(&data("llama").join("model.safetensors"));
    let sizes: BTreeMap<&String, usize> = whole
        .iter()
        .map(|(name, (.., bytes))| (name, bytes.len()))
        .collect();
    let largest = *sizes.values().max().unwrap();
    for (i, most) in [1, largest, 2 * largest, usize::MAX]
        .into_iter()
        .enumerate()
    {
        let to = there.path().join(i.to_string());
        let options = SaveOptions {
            shard_bytes: most,
            ..Default::default()
        };
        save(&decoder, &data("llama"), &to, &options).unwrap();
        let names = fs::read_dir(&to)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.contains("model")).collect();
        names.sort();
        if most == usize::MAX {
            assert_eq!(names, ["model.safetensors"]);
            continue;
        }
        let index = json_of(&to.join("model.safetensors.index.json"));
        let total: usize = sizes.values().sum();
        let metadata = json!({"total_parameters": total / 4, "total_size": total});
        assert_eq!(index["metadata"], metadata);
        let map = index["weight_map"].as_object().unwrap();
        let shards = names.len() - 1;
        let mut all = Tensors::new();
        for (shard, name) in names.iter().take(shards).enumerate() {
            assert_eq!(
                *name,
                format!("model-{:05}-of-{shards:05}.safetensors", shard + 1)
            );
            let tensors = read(&to.join(name));
            let bytes: usize = tensors.values().map(|(.., bytes)| bytes.len()).sum();
            assert!(bytes <= most || tensors.len() == 1, "{bytes}");
            assert!(tensors.keys().all(|tensor| map[tensor] == json!(name)));
            all.extend(tensors);
        }
        assert!(all == whole && map.len() == whole.len());
        assert_eq!(shards == whole.len(), most == 1);
        load(&to, &Device::default()).unwrap();
    }
}

#[test]
fn a_model_takes_along_what_other_programs_read_and_nothing_of_its_past() {
    let place = Place::new("llama");
    let model = place.path("model");
    let along = [
        "LICENSE",
        "added_tokens.json",
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.model",
    ];
    let behind = [
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoint-4/trainer_state.json",
        "optimizer.pt",
        "original/params.json",
        "pytorch_model.bin.index.json",
        "rng_state.pth",
        "trainer_state.json",
        "training_args.bin",
    ];
    for name in along.iter().chain(&behind) {
        let path = model.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let is_json = path.extension().is_some_and(|end| end == "json");
        fs::write(&path, if is_json { "{}" } else { "x" }).unwrap();
    }
    let template = json_of(&model.join("tokenizer_config.json"))["chat_template"].clone();
    place.write("model/chat_template.jinja", template.as_str().unwrap());
    place.write(
        "model/adapter_config.json",
        r#"{"base_model_name_or_path": "some/base"}"#,
    );
    for (out, arguments) in [("merged", ""), ("adapter", "--save adapter")] {
        let run = place.run(out, arguments);
        let is_adapter = out == "adapter";
        for name in along {
            let [from, to] = [&model, &run.out].map(|folder| fs::read(folder.join(name)).unwrap());
            assert!(from == to, "{out}: {name}");
        }
        for name in behind {
            let is_its_own = name == "README.md" || is_adapter && name.starts_with("adapter_");
            assert_eq!(run.out.join(name).exists(), is_its_own, "{out}: {name}");
        }
        assert_eq!(run.out.join("config.json").exists(), !is_adapter);
        // An adapter beside the weights may be merged into them, or not.
        let text = "look: model has adapter_config.json beside its weights";
        assert!(run.text.contains(text), "{}", run.text);
        let chat = |folder| Chat::open(folder, load(&model, &Device::default()).unwrap().config());
        assert!(chat(&run.out).unwrap().is_the_same(&chat(&model).unwrap()));
    }
    // A merged model has none, and an adapter is no model.
    let again = place.run("again", "--model merged");
    assert!(
        !again.text.contains("adapter_config.json"),
        "{}",
        again.text
    );
    place.fails("--model adapter", "is an adapter of ");
    let base =
        json_of(&place.path("adapter/adapter_config.json"))["base_model_name_or_path"].clone();
    assert_eq!(Path::new(base.as_str().unwrap()), place.path("model"));
}

/// The table of an adapter is of the base that its config names, whatever it was trained on.
#[test]
fn an_adapter_of_quantised_weights_is_measured_on_its_base() {
    let place = Place::new("llama3");
    let held_out = "--held-out-data pairs.jsonl --rate 0.01";
    let run = place.run(
        "adapter",
        &format!("{held_out} --quantize q4 --save adapter"),
    );
    assert!(
        run.text
            .contains("look: The adapter was trained on weights of few bits (q4)")
    );
    let [after, loaded] = ["after", "loaded"].map(|row| run.row(row));
    assert!(difference(&after[3..], &loaded[3..]) > 0.01, "{after:?}");
    // The same by another way: merged into the base, before the first step.
    let merged = place.run("merged", &format!("{held_out} --adapter adapter"));
    assert!(difference(&merged.row("before")[3..], &loaded[3..]) < 1.01e-4);
    let base = load(&place.path("model"), &Device::default()).unwrap();
    load_adapter(base, &run.out, &Device::default()).unwrap();
    // Nothing of it where all bits are there.
    let usual = place.run("usual", &format!("{held_out} --save adapter"));
    assert!(!usual.text.contains("few bits"));
}

#[test]
fn saved_types_of_a_run() {
    let place = Place::new("llama");
    fs::remove_dir_all(place.path("model")).unwrap();
    in_bf16(&place.path("model"));
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let to = place.path(&format!("model/{name}"));
        fs::copy(data("tokenizer").join(name), to).unwrap();
    }
    let types = |out: &str, file: &str| {
        let tensors = read(&place.path(&format!("{out}/{file}")));
        let mut types: Vec<Dtype> = tensors.values().map(|(dtype, ..)| *dtype).collect();
        types.sort();
        types.dedup();
        types
    };
    // As the input has them, and the table says what was measured.
    let run = place.run("usual", "");
    assert_eq!(
        types("usual", "model.safetensors"),
        [Dtype::BF16, Dtype::F32]
    );
    run.row("loaded, bf16");
    let run = place.run("same", "--dtype bf16");
    assert_eq!(
        types("same", "model.safetensors"),
        [Dtype::BF16, Dtype::F32]
    );
    run.row("loaded");
    let run = place.run("wide", "--save-dtype f32");
    assert_eq!(types("wide", "model.safetensors"), [Dtype::F32]);
    let [after, loaded] = ["after", "loaded"].map(|row| run.row(row));
    assert!(difference(&after, &loaded) < 1.01e-4);
    // What a small rate has learnt, bf16 has no digits for.
    let run = place.run("small", "--rate 1e-6");
    assert!(
        run.text.contains("--save-dtype f32 keeps it"),
        "{}",
        run.text
    );
    // Adapters are f32, or what is asked for.
    place.run("adapter", "--save adapter");
    assert_eq!(types("adapter", "adapter_model.safetensors"), [Dtype::F32]);
    place
        .run("half", "--save adapter --save-dtype f16")
        .row("loaded, f16");
    assert_eq!(types("half", "adapter_model.safetensors"), [Dtype::F16]);
}

#[test]
fn padding_of_a_reward_model() {
    let place = Place::new("llama");
    let arguments = "--loss bradley_terry";
    let run = place.run("padded", arguments);
    let chat = load(&run.out, &Device::default()).unwrap();
    let chat = Chat::open(&run.out, chat.config()).unwrap();
    let config = json_of(&run.out.join("config.json"));
    assert_eq!(config["pad_token_id"], json!(chat.padding));
    assert!(!run.text.contains("ends a text as well"));

    let tokenizer = place.text("model/tokenizer_config.json");
    let tokenizer = tokenizer.replace(r#""pad_token": "<pad>""#, r#""pad_token": "</s>""#);
    place.write("model/tokenizer_config.json", &tokenizer);
    let mut config = json_of(&place.path("model/config.json"));
    config["pad_token_id"] = json!(chat.end);
    place.write("model/config.json", &config.to_string());
    let run = place.run("unpadded", arguments);
    assert!(
        run.text
            .contains("look: The padding token of this tokenizer ends a text as well")
    );
    let config = json_of(&run.out.join("config.json"));
    assert_eq!(config["pad_token_id"], Value::Null);
    let card = place.text("unpadded/README.md");
    assert!(card.contains("pipeline_tag: text-classification") && card.contains("`pad_token_id`"));
}

#[test]
fn options_of_a_file_and_those_of_a_run() {
    let place = Place::new("llama");
    place.write(
        "options.json",
        r#"{"rate": 0.01, "targets": ["q_proj", "v_proj"], "loss": {"loss": "ipo", "tau": 0.5},
            "plain": false, "skip-errors": true, "rank": 4, "group": null}"#,
    );
    let of_file = place.run("of_file", "--config options.json");
    let of_line = "--rate 0.01 --targets q_proj,v_proj --skip-errors --rank 4";
    let mut command = place.command(&format!("{of_line} --out of_line"));
    let of_line = place.finish(
        "of_line",
        command.args(["--loss", r#"{"loss":"ipo","tau":0.5}"#]),
    );
    assert_eq!(of_file.metrics(), of_line.metrics());
    // What a run writes, another reads; the command line wins.
    let written = json_of(&of_line.folder().join("options.json"));
    assert_eq!(
        written,
        json!({"rate": 0.01, "targets": ["q_proj", "v_proj"], "loss": {"loss": "ipo", "tau": 0.5},
               "skip-errors": true, "rank": 4, "model": "model", "data": ["pairs.jsonl"], "max-length": 32,
               "steps": 4, "evaluate-every": 4, "answers": 0, "out": "of_line"})
    );
    let of_file = json_of(&of_file.folder().join("options.json"));
    assert_eq!(of_file["loss"], written["loss"]);
    let again = place.run("again", "--config of_line.run/options.json");
    assert_eq!(again.metrics(), of_line.metrics());
    let other = place.run("other", "--config of_line.run/options.json --rate 0.02");
    assert_ne!(other.metrics(), of_line.metrics());
    let full = place.run("full", "--config of_line.run/options.json --full");
    for name in ["rank", "targets"] {
        let text = format!("look: `{name}` of of_line.run/options.json gives way to --full");
        assert!(full.text.contains(&text), "{}", full.text);
    }
    assert!(full.text.contains("all trained"));

    for (file, text) in [
        (
            r#"{"learning-rate": 1}"#,
            "`learning-rate`: there is no such option",
        ),
        (
            r#"{"max_length": 1}"#,
            "`max_length`: there is no such option; write `max-length`",
        ),
        (r#"{"config": "x"}"#, "`config`: there is no such option"),
        (r#"{"full": 1}"#, "`full`: expected true or false, found 1"),
        (r#"{"rank": true}"#, "`rank`: expected a value, found true"),
        (r#"{"rank": [1, 2]}"#, "`rank`: expected one value"),
        (
            r#"{"rank": "four"}"#,
            "invalid value 'four' for '--rank <RANK>'",
        ),
        (r#"["rank"]"#, "expected a JSON object of options"),
        ("rank: 4", "--config: wrong.json: expected a JSON object"),
    ] {
        place.write("wrong.json", file);
        place.fails("--config wrong.json", text);
    }
    place.fails(
        "--config nowhere.json",
        "--config: nowhere.json: No such file",
    );
    place.fails("--config", "a value is required for '--config");
}

/// A model in a cache as `hf download` lays it out: links to files of another folder.
fn cached(place: &Place, name: &str, commit: &str, folder: &str) {
    let model = place.path(&format!("hf/hub/models--{}", name.replace('/', "--")));
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::write(model.join("refs/main"), commit).unwrap();
    let snapshot = model.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    for entry in fs::read_dir(place.path(folder)).unwrap() {
        let entry = entry.unwrap();
        let to = snapshot.join(entry.file_name());
        #[cfg(unix)]
        std::os::unix::fs::symlink(entry.path(), to).unwrap();
        #[cfg(not(unix))]
        fs::copy(entry.path(), to).unwrap();
    }
}

#[test]
fn names_are_found_in_the_cache_of_hugging_faces_tools() {
    let place = Place::new("llama");
    cached(&place, "some/base-1.5", "abc123", "model");
    let hub = |out: &str, arguments: &str| {
        let mut command = place.command(&format!("{arguments} --out {out}"));
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", place.path("hf"));
        command
    };
    let named = "--model some/base-1.5 --save adapter";
    let run = place.finish("named", &mut hub("named", named));
    let usual = place.run("usual", "--save adapter");
    assert_eq!(run.metrics(), usual.metrics());
    let config = json_of(&run.out.join("adapter_config.json"));
    assert_eq!(config["base_model_name_or_path"], json!("some/base-1.5"));
    assert_eq!(config["revision"], json!("abc123"));
    let card = place.text("named/README.md");
    let head = "---\nbase_model: some/base-1.5\nlibrary_name: peft\npipeline_tag: text-generation\n\
                tags:\n- lora\n- base_model:adapter:some/base-1.5\n- dpo\n- burn-preference\n---\n";
    assert!(card.starts_with(head), "{card}");
    for text in [
        "[some/base-1.5](https://huggingface.co/some/base-1.5) (commit abc123)",
        "| held out | loss |",
        "`pairs.jsonl`: 22 examples were trained on, 2 held out",
        "\"save\": \"adapter\"",
    ] {
        assert!(card.contains(text), "{text}: {card}");
    }
    // A folder by no name of the hub: no base in the lines that the hub reads.
    let card = place.text("usual/README.md");
    assert!(card.starts_with("---\nlibrary_name: peft\n"), "{card}");
    assert!(
        card.contains("A LoRA adapter of `model`, trained"),
        "{card}"
    );

    // Adapters, too; and the cache by its own variable.
    cached(&place, "some/adapter", "def", "named");
    let mut command = hub("more", "--model some/base-1.5 --adapter some/adapter");
    command
        .env("HF_HOME", "nowhere")
        .env("HF_HUB_CACHE", place.path("hf/hub"));
    let more = place.finish("more", &mut command);
    assert!(difference(&more.row("before")[3..], &run.row("loaded")[3..]) < 1.01e-4);
    assert!(
        place
            .text("more/README.md")
            .contains("with the adapter `some/adapter` merged into it")
    );

    let fails = |model: &str, text: &str| {
        place.fails_as(&mut hub("failed", &format!("--model {model}")), text);
    };
    fails(
        "some/other",
        "some/other: no such file or folder, and not in the cache",
    );
    fails("some/other", "`hf download some/other`");
    // A path, whatever the cache has.
    fails("some/base-1.5/", "config.json: No such file");
    let shard = place.path("hf/hub/models--some--base-1.5/snapshots/abc123/tokenizer.json");
    fs::remove_file(shard).unwrap();
    fails("some/base-1.5", "the cache has it without tokenizer.json");
    fs::write(
        place.path("hf/hub/models--some--base-1.5/refs/main"),
        "gone",
    )
    .unwrap();
    fails("some/base-1.5", "not in the cache");
}

/// A path that is there goes before a name.
#[test]
fn a_path_is_a_path() {
    let source = Source::find(&data("llama"), &[&["nowhere"]]).unwrap();
    assert!(source.hub.is_none() && Path::new(&source.name()).is_absolute());
    for written in ["nowhere", "/nowhere/model", "a/b/c", "../models/m", "-x/y"] {
        let source = Source::find(Path::new(written), &[]).unwrap();
        assert_eq!(
            (source.path.as_path(), source.hub),
            (Path::new(written), None)
        );
    }
    let error = Source::find(Path::new("no.such_org/model-1.5"), &[]).unwrap_err();
    assert!(matches!(error, SourceError::NotThere { .. }));
}

#[test]
fn an_adapter_of_another_base() {
    let place = Place::new("llama");
    place.run("adapter", "--save adapter");
    let text = "look: adapter was trained on some/base, and is merged into ";
    let same = place.run("same", "--adapter adapter");
    assert!(!same.text.contains("was trained on"), "{}", same.text);
    let path = place.path("adapter/adapter_config.json");
    let mut config = json_of(&path);
    config["base_model_name_or_path"] = json!("some/base");
    fs::write(path, config.to_string()).unwrap();
    let other = place.run("other", "--adapter adapter");
    assert!(other.text.contains(text), "{}", other.text);
    // As transformers 4 says in the config of a model that it has saved elsewhere.
    let mut config = json_of(&place.path("model/config.json"));
    config["_name_or_path"] = json!("another/BASE/");
    place.write("model/config.json", &config.to_string());
    let copied = place.run("copied", "--adapter adapter");
    assert!(!copied.text.contains("was trained on"), "{}", copied.text);
}

/// The template that an adapter has learnt is not used silently.
#[test]
fn another_chat_template_beside_an_adapter() {
    let place = Place::new("llama");
    place.run("adapter", "--save adapter");
    let text = "look: the chat template of adapter is not used";
    let same = place.run("same", "--adapter adapter");
    assert!(!same.text.contains(text));
    place.write(
        "adapter/chat_template.jinja",
        "{{ messages[0]['content'] }}",
    );
    let other = place.run("other", "--adapter adapter");
    assert!(other.text.contains(text) && other.text.contains("is another one, and is used"));
    let mut config = json_of(&place.path("model/tokenizer_config.json"));
    config.as_object_mut().unwrap().remove("chat_template");
    place.write("model/tokenizer_config.json", &config.to_string());
    place.write(
        "plain.jsonl",
        &r#"{"prompt": "a red cat?", "chosen": " yes", "rejected": " no"}
{"prompt": "a big bee?", "chosen": " no", "rejected": " yes"}
"#
        .repeat(4),
    );
    let none = place.run("none", "--adapter adapter --data plain.jsonl --held-out 0");
    assert!(
        none.text.contains(text) && none.text.contains("has none"),
        "{}",
        none.text
    );
}
