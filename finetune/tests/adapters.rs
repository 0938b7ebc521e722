//! Adapters as PEFT writes them (scripts/adapters.py), new ones, and what is trained of them.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, FloatDType, Gradients, Tensor};
use finetune::{
    AdapterError, Decoder, LoraOptions, SaveError, Source, TARGETS, UnknownTarget, WeightError,
    load, load_adapter, save_adapter,
};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::{Map, Value, json};
use support::{Expected, FAMILIES, copy, data, difference, log_probs, token_log_probs};
use tempfile::{TempDir, tempdir};

fn base(family: &str) -> Decoder {
    load(&data(family), &Device::default()).unwrap()
}

fn adapter(family: &str) -> std::path::PathBuf {
    data("adapter").join(family)
}

#[test]
fn log_probs_are_those_of_peft() {
    for family in FAMILIES {
        let expected = Expected::read(&adapter(family));
        let theirs = expected.log_probs.concat();
        let base = base(family);
        let plain = log_probs(&base, &expected.ids);
        assert!(
            difference(&plain, &theirs) > 0.1,
            "{family}: nothing to see"
        );
        let adapted = load_adapter(base, &adapter(family), &Device::default()).unwrap();
        let merged = adapted.clone().merged();
        assert!(adapted.has_adapters() && !merged.has_adapters());
        for model in [&adapted, &merged] {
            let worst = difference(&log_probs(model, &expected.ids), &theirs);
            println!("{family}: off by {worst:.1e} nats a token at most");
            assert!(worst < 2e-5, "{family}: {worst}");
        }
    }
}

/// Adapters of `llama` that begin in another way, or say rank, scale and places in another way.
const KINDS: [&str; 8] = [
    "eva",
    "gaussian",
    "layers",
    "mica",
    "orthogonal",
    "patterns",
    "regex",
    "rslora",
];

#[test]
fn every_kind_of_adapter_computes_what_it_does_in_peft() {
    let device = Device::default();
    for kind in KINDS {
        let expected = Expected::read(&adapter(kind));
        let theirs = expected.log_probs.concat();
        let adapted = load_adapter(base("llama"), &adapter(kind), &device).unwrap();
        let worst = difference(&log_probs(&adapted, &expected.ids), &theirs);
        assert!(worst < 2e-5, "{kind}: {worst}");
        // What is saved of it has a config of the usual kind, and is the same adapter.
        let there = tempdir().unwrap();
        let to = there.path().join("adapter");
        save_adapter(&adapted, &source("llama"), &to, FloatDType::F32).unwrap();
        let again = load_adapter(base("llama"), &to, &device).unwrap();
        let worst = difference(&log_probs(&again, &expected.ids), &theirs);
        assert!(worst < 2e-5, "{kind} again: {worst}");
    }
}

fn source(family: &str) -> Source {
    Source::find(&data(family), &[]).unwrap()
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn read(folder: &Path) -> Tensors {
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, tensor): (String, TensorView<'_>)| {
        (name, (tensor.shape().to_vec(), tensor.data().to_vec()))
    };
    file.tensors().into_iter().map(tensor).collect()
}

#[test]
fn what_is_saved_is_what_was_loaded() {
    for family in FAMILIES {
        let device = Device::default();
        let adapted = load_adapter(base(family), &adapter(family), &device).unwrap();
        let folder = tempdir().unwrap();
        let to = folder.path().join("adapter");
        let save = |dtype| save_adapter(&adapted, &source(family), &to, dtype);
        save(FloatDType::F32).unwrap();
        assert_eq!(read(&to), read(&adapter(family)), "{family}");
        let config = fs::read_to_string(to.join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        let theirs = fs::read_to_string(adapter(family).join("adapter_config.json")).unwrap();
        let theirs: Value = serde_json::from_str(&theirs).unwrap();
        for key in ["r", "lora_alpha", "rank_pattern", "alpha_pattern"] {
            assert_eq!(config[key].as_f64(), theirs[key].as_f64(), "{key}");
            assert_eq!(config[key].as_object(), theirs[key].as_object(), "{key}");
        }
        let names = |config: &Value| {
            let names = config["target_modules"].as_array().unwrap().iter();
            names.map(ToString::to_string).collect::<BTreeSet<_>>()
        };
        assert_eq!(names(&config), names(&theirs));
        // Whatever folder it is loaded from.
        let base_of = config["base_model_name_or_path"].as_str().unwrap();
        assert!(Path::new(base_of).is_absolute() && Path::new(base_of).ends_with(family));
        let again = load_adapter(base(family), &to, &device).unwrap();
        let ids = Expected::read(&adapter(family)).ids;
        assert_eq!(log_probs(&again, &ids), log_probs(&adapted, &ids));
        let error = save(FloatDType::F32).unwrap_err();
        assert!(matches!(error, SaveError::Weights(WeightError::File { path, .. }) if path == to));
    }
}

/// Qwen 2's adapter in a folder of its own, changed.
fn changed(change: impl FnOnce(&mut Map<String, Value>, &mut Tensors)) -> TempDir {
    let folder = tempdir().unwrap();
    copy(&adapter("qwen2"), folder.path());
    let path = folder.path().join("adapter_config.json");
    let mut config = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let mut tensors = read(folder.path());
    change(&mut config, &mut tensors);
    fs::write(path, Value::Object(config).to_string()).unwrap();
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name, view)
    });
    serialize_to_file(
        views,
        None,
        &folder.path().join("adapter_model.safetensors"),
    )
    .unwrap();
    folder
}

const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

fn open(folder: &Path) -> Result<Decoder, AdapterError> {
    load_adapter(base("qwen2"), folder, &Device::default())
}

fn fails(change: impl FnOnce(&mut Map<String, Value>, &mut Tensors), text: &str) {
    let error = open(changed(change).path()).unwrap_err().to_string();
    assert!(error.contains(text), "{error}");
}

#[test]
fn options_of_another_adapter_are_refused() {
    open(changed(|_, _| ()).path()).unwrap();
    for (key, value) in [
        ("use_dora", json!(true)),
        ("use_rslora", json!("yes")),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({"(": 4})),
        ("alpha_pattern", json!({"q_proj": "4"})),
        ("layers_to_transform", json!("all")),
        ("target_modules", json!("(")),
        ("target_modules", json!(["q_proj", "lm_head"])),
        ("target_modules", json!(3)),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("lora_ga")),
        ("trainable_token_indices", json!([1])),
        ("target_parameters", json!(["x"])),
        ("layer_replication", json!([[0, 1]])),
        ("modules_to_save", json!(["lm_head"])),
        ("init_lora_weights", json!("pissa")),
        ("what_comes_next", json!(1)),
        ("peft_type", json!("LOHA")),
        ("r", json!(0)),
        ("lora_alpha", Value::Null),
    ] {
        fails(
            |config, _| drop(config.insert(key.to_owned(), value.clone())),
            &format!("`{key}`"),
        );
    }
    let shape = "expected the shape [3, 24], found [2, 24]";
    fails(
        |config, _| drop(config.insert("r".to_owned(), json!(3))),
        shape,
    );
    fails(
        |config, _| drop(config.insert("rank_pattern".to_owned(), json!({"q_proj": 3}))),
        shape,
    );
}

#[test]
fn a_file_has_the_tensors_that_its_config_asks_for() {
    fails(
        |_, tensors| drop(tensors.remove(A)),
        &format!("no tensor `{A}`: 1 of the 28 tensors"),
    );
    // No tensors, one half of them, those of a name that nobody reads, more than the config says.
    fails(
        |_, tensors| tensors.clear(),
        &format!("no tensor `{A}`: 28 of the 28 tensors"),
    );
    fails(
        |_, tensors| tensors.retain(|name, _| !name.contains("_proj.lora_B")),
        "14 of the 28 tensors",
    );
    fails(
        |_, tensors| {
            let other = |name: String| name.replace(".weight", ".default.weight");
            let old = std::mem::take(tensors).into_iter();
            *tensors = old.map(|(name, tensor)| (other(name), tensor)).collect();
        },
        "there is `base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight` instead",
    );
    fails(
        |config, _| drop(config.insert("target_modules".to_owned(), json!(["v_proj"]))),
        &format!("`{A}`: `target_modules` of adapter_config.json ([\"v_proj\"]) does not name"),
    );
    fails(
        |config, _| drop(config.insert("layers_to_transform".to_owned(), json!([1]))),
        &format!("`{A}`: `target_modules`"),
    );
    fails(
        |config, tensors| {
            config.insert("target_modules".to_owned(), Value::Null);
            tensors.clear();
        },
        "the file has no tensors",
    );
    let extra = A.replace("layers.0", "layers.2");
    let more = |tensors: &mut Tensors| tensors.insert(extra.clone(), tensors[A].clone());
    fails(|_, tensors| drop(more(tensors)), &format!("`{extra}`"));
    // Of a place that is known, and no factor.
    let other = A.replace("lora_A", "lora_magnitude_vector");
    let more = |tensors: &mut Tensors| tensors.insert(other.clone(), tensors[A].clone());
    fails(|_, tensors| drop(more(tensors)), &format!("`{other}`"));
    let turn = |tensors: &mut Tensors| tensors.get_mut(A).unwrap().0.reverse();
    fails(
        |_, tensors| turn(tensors),
        "expected the shape [2, 24], found [24, 2]",
    );
    let spoil = |tensors: &mut Tensors| {
        let (_, bytes) = tensors.get_mut(A).unwrap();
        bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    fails(
        |_, tensors| spoil(tensors),
        &format!("`{A}`: the number at 1 is NaN"),
    );

    // Another model's: of other heads.
    let error = open(&adapter("llama3")).unwrap_err();
    assert!(matches!(
        error,
        AdapterError::File(WeightError::Shape { .. })
    ));
    let pickled = changed(|_, _| ());
    let at = |name: &str| pickled.path().join(name);
    fs::rename(at("adapter_model.safetensors"), at("adapter_model.bin")).unwrap();
    let error = open(pickled.path()).unwrap_err().to_string();
    assert!(error.contains("adapter_model.bin: pickled"), "{error}");
    for gone in ["adapter_config.json", "adapter_model.safetensors"] {
        let folder = changed(|_, _| ());
        let path = folder.path().join(gone);
        fs::remove_file(&path).unwrap();
        let error = open(folder.path()).unwrap_err();
        assert!(
            matches!(error, AdapterError::File(WeightError::File { path: of, .. }) if of == path)
        );
    }
}

#[test]
fn what_cannot_change_an_adapter_stops_nothing() {
    let ids = Expected::read(&adapter("qwen2")).ids;
    let usual = log_probs(&open(&adapter("qwen2")).unwrap(), &ids);
    for (key, value) in [
        ("target_modules", Value::Null),
        ("target_modules", json!("all-linear")),
        ("lora_dropout", json!(0.1)),
        ("init_lora_weights", json!("Gaussian")),
        ("init_lora_weights", json!(false)),
        ("rank_pattern", Value::Null),
        ("rank_pattern", json!({"lm_head": 4})),
        ("what_comes_next", json!(false)),
    ] {
        let folder = changed(|config, _| drop(config.insert(key.to_owned(), value.clone())));
        let other = log_probs(&open(folder.path()).unwrap(), &ids);
        assert_eq!(usual, other, "{key}: {value}");
    }
    // A copy of the base's embedding, which PEFT saves where it cannot tell; and another one.
    let model = fs::read(data("qwen2").join("model.safetensors")).unwrap();
    let model = SafeTensors::deserialize(&model).unwrap();
    let embedding = model.tensor("model.embed_tokens.weight").unwrap();
    let name = "base_model.model.model.embed_tokens.weight";
    let with = |spoiled: u8| {
        changed(|_, tensors| {
            let mut bytes = embedding.data().to_vec();
            bytes[0] ^= spoiled;
            tensors.insert(name.to_owned(), (embedding.shape().to_vec(), bytes));
        })
    };
    assert_eq!(usual, log_probs(&open(with(0).path()).unwrap(), &ids));
    let error = open(with(1).path()).unwrap_err().to_string();
    assert!(error.contains(name), "{error}");
}

#[test]
fn new_adapters_change_nothing_yet() {
    let options = |targets: &[&str]| LoraOptions {
        rank: 3,
        alpha: 6.0,
        targets: targets.iter().map(ToString::to_string).collect(),
    };
    for family in FAMILIES {
        let base = base(family);
        let ids = Expected::read(&data(family)).ids;
        let adapted = base.clone().with_adapters(&options(&TARGETS)).unwrap();
        assert!(adapted.has_adapters());
        assert_eq!(log_probs(&adapted, &ids), log_probs(&base, &ids));
        let error = base
            .with_adapters(&options(&["q_proj", "lm_head"]))
            .unwrap_err();
        assert!(matches!(error, UnknownTarget(name) if name == "lm_head"));
    }
}

/// Numbers of each parameter by its path, and whether it has a gradient.
struct Found<'a> {
    gradients: Option<&'a Gradients>,
    path: Vec<String>,
    numbers: BTreeMap<String, (Vec<f32>, bool)>,
}

impl Found<'_> {
    fn of(model: &Decoder, gradients: Option<&Gradients>) -> BTreeMap<String, (Vec<f32>, bool)> {
        let mut found = Found {
            gradients,
            path: Vec::new(),
            numbers: BTreeMap::new(),
        };
        model.visit(&mut found);
        found.numbers
    }
}

impl ModuleVisitor for Found<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let has = self.gradients.is_some_and(|of| value.grad(of).is_some());
        let numbers = value.into_data().iter().collect();
        self.numbers.insert(self.path.join("."), (numbers, has));
    }
}

#[test]
fn a_step_trains_factors_and_nothing_else() {
    let device = Device::default().autodiff();
    for family in FAMILIES {
        let base = load(&data(family), &device).unwrap();
        let ids = Expected::read(&data(family)).ids;
        let options = LoraOptions {
            rank: 2,
            alpha: 4.0,
            targets: ["q_proj", "down_proj"].map(str::to_owned).to_vec(),
        };
        let mut policy = base.with_adapters(&options).unwrap();
        let before = Found::of(&policy, None);
        // B is 0 before the first step, and the gradient of A with it: two steps move both.
        let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
        for _ in 0..2 {
            let gradients = token_log_probs(&policy, &ids).sum().backward();
            for (name, (_, has_gradient)) in Found::of(&policy, Some(&gradients)) {
                assert_eq!(has_gradient, name.contains(".adapter."), "{family}: {name}");
            }
            let gradients = GradientsParams::from_grads(gradients, &policy);
            policy = optimizer.step(0.1, policy, gradients);
        }
        let after = Found::of(&policy, None);
        assert_eq!(before.len(), after.len());
        let mut factors = 0;
        for (name, (numbers, _)) in &after {
            let moved = *numbers != before[name].0;
            assert_eq!(moved, name.contains(".adapter."), "{family}: {name}");
            factors += usize::from(moved);
        }
        // A and B of two projections in two layers.
        assert_eq!(factors, 8);
    }
}
