//! Every family against what transformers computes with the same files (scripts/goldens.py).

mod support;

use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence};
use finetune::{
    ConfigError, Decoder, DecoderConfig, SaveError, SaveOptions, WeightError, load, save,
};
use serde_json::{Value, json};
use support::{Expected, FAMILIES, data, difference, log_probs};

fn read(family: &str) -> (Decoder, Expected) {
    let decoder = load(&data(family), &Device::default()).unwrap();
    (decoder, Expected::read(&data(family)))
}

#[test]
fn log_probs_are_those_of_transformers() {
    for family in FAMILIES {
        let (decoder, expected) = read(family);
        let ours = log_probs(&decoder, &expected.ids);
        let theirs = expected.log_probs.concat();
        let worst = difference(&ours, &theirs);
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
        let unpacked = &packed.unpacked;
        let ours = packed.token_log_probs(decoder.hidden_packed(&packed));
        let theirs = unpacked.token_log_probs(decoder.hidden(unpacked.ids.clone()));
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        let difference = (ours.log_probs() - theirs.log_probs())
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(difference < 2e-5, "{family}: {difference}");
    }
}

fn config(family: &str) -> serde_json::Map<String, Value> {
    let text = fs::read_to_string(data(family).join("config.json")).unwrap();
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
    let linear = json!({"type": "linear", "factor": 2.0});
    fails("llama3", "rope_scaling", linear, "beside rope_parameters");
    fails("llama3", "rope_theta", json!(3.0), "as in rope_parameters");

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

/// What is saved is what was loaded, for this program; `scripts/check.py` has transformers load
/// it.
#[test]
fn what_is_saved_is_what_was_loaded() {
    for family in FAMILIES {
        let (decoder, expected) = read(family);
        let there = tempfile::tempdir().unwrap();
        let to = there.path().join("out");
        save(&decoder, &data(family), &to, &SaveOptions::default()).unwrap();
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
            assert!(difference(&before, &after) < 2e-5);
        } else {
            assert_eq!(before, after, "{family}");
        }
        let error = save(&decoder, &data(family), &to, &SaveOptions::default()).unwrap_err();
        assert!(matches!(error, SaveError::Weights(WeightError::File { path, .. }) if path == to));
    }
    let (decoder, _) = read("llama");
    let there = tempfile::tempdir().unwrap();
    let error = save(
        &decoder,
        Path::new("/nowhere"),
        &there.path().join("out"),
        &SaveOptions::default(),
    )
    .unwrap_err();
    assert!(matches!(
        error,
        SaveError::Weights(WeightError::File { .. })
    ));
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
        support::copy(&data(family), to.path());
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
