//! Every family against what transformers computes with the same files (scripts/goldens.py).

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use burn_preference::TokenLogProbs;
use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence};
use finetune::{ConfigError, Decoder, DecoderConfig, WeightError, load, save};
use serde::Deserialize;
use serde_json::{Value, json};

const FAMILIES: [&str; 6] = ["gemma2", "llama", "llama3", "mistral", "qwen2", "qwen3"];

#[derive(Deserialize)]
struct Expected {
    ids: Vec<Vec<u32>>,
    log_probs: Vec<Vec<f64>>,
}

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(family)
}

fn read(family: &str) -> (Decoder, Expected) {
    let text = fs::read_to_string(folder(family).join("expected.json")).unwrap();
    let decoder = load(&folder(family), &Device::default()).unwrap();
    (decoder, serde_json::from_str(&text).unwrap())
}

fn log_probs(decoder: &Decoder, ids: &[Vec<u32>]) -> Vec<f64> {
    let shape = [ids.len(), ids[0].len()];
    let device = Device::default();
    let ids: Vec<i32> = ids.concat().into_iter().map(u32::cast_signed).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device);
    let mask = Tensor::<2, Bool>::from_data(
        TensorData::new(vec![true; shape[0] * shape[1]], shape),
        &device,
    );
    let hidden = decoder.hidden(ids.clone());
    let log_probs = TokenLogProbs::from_hidden(hidden, &decoder.lm_head(), ids, mask).unwrap();
    log_probs.log_probs().into_data().iter().collect()
}

#[test]
fn log_probs_are_those_of_transformers() {
    for family in FAMILIES {
        let (decoder, expected) = read(family);
        let ours = log_probs(&decoder, &expected.ids);
        let theirs = expected.log_probs.concat();
        assert_eq!(ours.len(), theirs.len());
        let worst = ours
            .iter()
            .zip(&theirs)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        println!("{family}: off by {worst:.1e} nats a token at most");
        assert!(worst < 2e-5, "{family}: {worst}");
    }
}

/// The prompt once, by segments.
#[test]
fn packed_rows_are_the_same() {
    for family in FAMILIES {
        let (decoder, expected) = read(family);
        let [first, second] = [&expected.ids[0], &expected.ids[1]];
        let of = |n: usize| Sequence::new(&first[..6], &second[..n]);
        let sequences = vec![of(7), of(3), Sequence::new(&second[..2], &first[..4])];
        let packing = Packing::new(Padding::new(0)).to_rows_of(32).unwrap();
        let packed = PackedBatch::new(sequences, packing, &Device::default()).unwrap();
        let head = decoder.lm_head();
        let ours = packed
            .token_log_probs(&decoder, |decoder, packed| {
                (decoder.hidden_packed(packed), decoder.lm_head())
            })
            .unwrap();
        let ids = packed.unpacked.ids.clone();
        let hidden = decoder.hidden(ids.clone());
        let mask = packed.unpacked.completion_mask.clone();
        let theirs = TokenLogProbs::from_hidden(hidden, &head, ids, mask).unwrap();
        let difference = (ours.log_probs() - theirs.log_probs())
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(difference < 2e-5, "{family}: {difference}");
    }
}

fn config(family: &str) -> serde_json::Map<String, Value> {
    let text = fs::read_to_string(folder(family).join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn what_would_be_another_model_is_refused_by_name() {
    let with = |family: &str, key: &str, value: Value| {
        let mut config = config(family);
        config.insert(key.to_owned(), value);
        DecoderConfig::parse(config).map_err(|error| error.to_string())
    };
    let fails = |family: &str, key: &str, value: Value, text: &str| {
        let error = with(family, key, value).unwrap_err();
        assert!(
            error.starts_with(&format!("`{key}")) && error.contains(text),
            "{error}"
        );
    };
    fails("llama", "model_type", json!("mamba"), "expected one of");
    fails("llama", "attention_bias", json!(true), "expected false");
    fails("llama", "mlp_bias", json!(true), "expected false");
    fails(
        "llama",
        "logit_scale",
        json!(0.1),
        "an unknown key of the family llama",
    );
    fails(
        "llama",
        "final_logit_softcapping",
        json!(30.0),
        "an unknown key",
    );
    fails("llama", "hidden_act", json!("relu"), "expected silu");
    fails(
        "llama",
        "num_key_value_heads",
        json!(3),
        "a divisor of 4 heads",
    );
    fails("llama", "hidden_size", Value::Null, "found nothing");
    fails("llama", "vocab_size", json!(-1), "an integer > 0, found -1");
    fails("llama", "rms_norm_eps", json!("x"), "a number > 0");
    let yarn = json!({"rope_type": "yarn", "factor": 4.0});
    let mut old = config("llama");
    old.remove("rope_parameters");
    old.insert("rope_scaling".into(), yarn);
    let error = DecoderConfig::parse(old).unwrap_err().to_string();
    assert!(error.starts_with("`rope_scaling.rope_type`"), "{error}");

    // Older files say the same otherwise.
    let mut old = config("llama3");
    let Some(Value::Object(mut rope)) = old.remove("rope_parameters") else {
        panic!("{old:?}")
    };
    old.insert("rope_theta".into(), rope.remove("rope_theta").unwrap());
    old.insert("rope_scaling".into(), Value::Object(rope));
    old.insert("torch_dtype".into(), json!("float32"));
    assert_eq!(
        DecoderConfig::parse(old).unwrap(),
        DecoderConfig::parse(config("llama3")).unwrap()
    );
    assert!(
        with("qwen2", "sliding_window", json!(4))
            .unwrap()
            .window
            .is_none()
    );
    assert_eq!(
        DecoderConfig::parse(config("mistral")).unwrap().window,
        Some(32)
    );
    assert!(matches!(
        DecoderConfig::read(Path::new("/nowhere")),
        Err(ConfigError::File { .. })
    ));
}

#[test]
#[should_panic(expected = "the window is not implemented")]
fn a_row_longer_than_the_window() {
    let (decoder, _) = read("mistral");
    decoder.hidden(Tensor::zeros([1, 33], &Device::default()));
}

/// What is saved is what was loaded, for this program; `scripts/check_saved.py` has transformers load
/// it.
#[test]
fn what_is_saved_is_what_was_loaded() {
    for family in FAMILIES {
        let (decoder, expected) = read(family);
        let there = tempfile::tempdir().unwrap();
        let to = there.path().join("out");
        save(&decoder, &folder(family), &to).unwrap();
        let mut names: Vec<String> = fs::read_dir(&to)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["config.json", "expected.json", "model.safetensors"]);
        assert_eq!(
            fs::read_dir(there.path()).unwrap().count(),
            1,
            "no scratch folder"
        );
        let again = load(&to, &Device::default()).unwrap();
        let [before, after] = [&decoder, &again].map(|model| log_probs(model, &expected.ids));
        if family == "gemma2" {
            // 1 + w − 1 rounds.
            let difference = before.iter().zip(&after).map(|(a, b)| (a - b).abs());
            assert!(difference.fold(0.0, f64::max) < 2e-5);
        } else {
            assert_eq!(before, after, "{family}");
        }
        let error = save(&decoder, &folder(family), &to).unwrap_err();
        assert!(matches!(error, WeightError::File { path, .. } if path == to));
    }
    let (decoder, _) = read("llama");
    let there = tempfile::tempdir().unwrap();
    let error = save(&decoder, Path::new("/nowhere"), &there.path().join("out")).unwrap_err();
    assert!(matches!(error, WeightError::File { .. }));
    assert_eq!(
        fs::read_dir(there.path()).unwrap().count(),
        0,
        "nothing half-written"
    );
}

#[test]
fn damaged_weights() {
    let copy = |family: &str| {
        let to = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(folder(family)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
        }
        to
    };
    let fails = |folder: &Path| load(folder, &Device::default()).unwrap_err();
    // A shard that is gone.
    let shards = copy("llama3");
    let shard = fs::read_dir(shards.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let shard = shard.filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
    let shard = shard.min().unwrap();
    let bytes = fs::read(&shard).unwrap();
    fs::remove_file(&shard).unwrap();
    assert!(matches!(fails(shards.path()), WeightError::File { path, .. } if path == shard));
    // One that is cut.
    fs::write(&shard, &bytes[..bytes.len() - 4]).unwrap();
    assert!(matches!(fails(shards.path()), WeightError::Format { path, .. } if path == shard));
    // A weight that is NaN.
    let mut broken = bytes.clone();
    let end = broken.len() - 4;
    broken[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&shard, &broken).unwrap();
    let error = fails(shards.path());
    assert!(matches!(error, WeightError::NotFinite { .. }), "{error}");
    assert!(error.to_string().ends_with("is NaN"), "{error}");

    // An index that leads out of the folder.
    let index = shards.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("model-00001", "../model-00001")).unwrap();
    assert!(matches!(fails(shards.path()), WeightError::Outside(file) if file.starts_with("..")));

    // A config of another size, and of another family.
    let other = copy("qwen2");
    let set = |key: &str, value: Value| {
        let mut config = config("qwen2");
        config.insert(key.to_owned(), value);
        fs::write(
            other.path().join("config.json"),
            Value::Object(config).to_string(),
        )
        .unwrap();
    };
    set("vocab_size", json!(41));
    assert!(
        matches!(fails(other.path()), WeightError::Shape { name, .. } if name.contains("embed"))
    );
    set("num_hidden_layers", json!(1));
    assert!(
        matches!(fails(other.path()), WeightError::Unused(name) if name.starts_with("model.layers.1"))
    );
    set("num_hidden_layers", json!(3));
    assert!(
        matches!(fails(other.path()), WeightError::Missing(name) if name.starts_with("model.layers.2"))
    );
    set("model_type", json!("llama"));
    assert!(matches!(fails(other.path()), WeightError::Unused(name) if name.ends_with("bias")));
}
