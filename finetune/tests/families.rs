//! Every family against what transformers computes with the same files (scripts/goldens.py).

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence};
use finetune::{
    Activation, ConfigError, Decoder, DecoderConfig, OutputLayer, SaveError, SaveOptions,
    WeightError, load, remarks, save,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
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

/// Where a key is missing, what transformers 5.24 assumes; null is off.
#[test]
fn keys_that_are_missing_have_the_defaults_of_their_family() {
    let without = |family: &str, keys: &[&str]| {
        let mut config = config(family);
        config.retain(|key, _| !keys.contains(&key.as_str()));
        config
    };
    let parse = |config| DecoderConfig::parse(config).unwrap();
    let gemma = parse(without(
        "gemma2",
        &[
            "query_pre_attn_scalar",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "hidden_activation",
            "layer_types",
            "sliding_window",
            "head_dim",
            "num_key_value_heads",
            "tie_word_embeddings",
        ],
    ));
    assert_eq!(gemma.attention_divisor, 16.0);
    assert_eq!(gemma.attention_softcap, Some(50.0));
    assert_eq!(gemma.logit_softcap, Some(30.0));
    assert_eq!(gemma.activation, Activation::GeluTanh);
    assert_eq!((gemma.head_dim, gemma.kv_heads), (256, 4));
    assert_eq!(gemma.window, Some(4096));
    assert_eq!(gemma.output, OutputLayer::Tied);
    let with = |family: &str, changes: &[(&str, Value)]| {
        let mut config = config(family);
        for (key, value) in changes {
            config.insert((*key).to_owned(), value.clone());
        }
        DecoderConfig::parse(config).map_err(|error| error.to_string())
    };
    let off = [
        ("attn_logit_softcapping", Value::Null),
        ("final_logit_softcapping", Value::Null),
        // What Gemma 2 does not read.
        ("hidden_act", json!("gelu")),
    ];
    let off = with("gemma2", &off).unwrap();
    assert_eq!((off.attention_softcap, off.logit_softcap), (None, None));
    let error = with("gemma2", &[("query_pre_attn_scalar", Value::Null)]).unwrap_err();
    assert!(error.contains("found null"), "{error}");

    let llama = parse(without(
        "llama",
        &["hidden_act", "rms_norm_eps", "head_dim"],
    ));
    assert_eq!((llama.activation, llama.epsilon), (Activation::Silu, 1e-6));
    assert_eq!(llama.head_dim, 6);
    let qwen3 = parse(without("qwen3", &["head_dim"]));
    assert_eq!(qwen3.head_dim, 128);
    let error = DecoderConfig::parse(without("mistral", &["num_key_value_heads"]));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("a divisor of 4 heads, found 8"), "{error}");

    let mistral = parse(without("mistral", &["sliding_window"]));
    assert_eq!(mistral.window, Some(4096));
    let unused = [
        ("use_sliding_window", json!(false)),
        ("sliding_window", json!(8)),
    ];
    assert_eq!(with("mistral", &unused).unwrap().window, Some(8));
    let none = [("sliding_window", Value::Null)];
    assert_eq!(with("mistral", &none).unwrap().window, None);
    // Qwen's first layers have none, and its files may name one that is not used.
    for (uses, first, expected) in [(true, 1, Some(8)), (true, 2, None), (false, 0, None)] {
        let mut config = without("qwen2", &["layer_types"]);
        config.insert("use_sliding_window".into(), json!(uses));
        config.insert("max_window_layers".into(), json!(first));
        config.insert("sliding_window".into(), json!(8));
        assert_eq!(parse(config).window, expected);
    }
    // Rotary positions: an empty object, what is outside, and 1 as a factor.
    let mut old = without("llama3", &["rope_parameters"]);
    old.insert("rope_scaling".into(), json!({}));
    assert_eq!(parse(old.clone()).rope.theta, 1e4);
    old.insert(
        "rope_scaling".into(),
        json!({"type": "linear", "factor": 1.0}),
    );
    assert_eq!(parse(old.clone()).rope.scaling, None);
    let scaling = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    old.insert("rope_scaling".into(), scaling);
    let original = |config| parse(config).rope.scaling.unwrap().original;
    assert_eq!(original(old.clone()), 64.0);
    old.insert("original_max_position_embeddings".into(), json!(16));
    assert_eq!(original(old), 16.0);
}

#[test]
fn keys_that_turn_nothing_on_or_belong_to_tools() {
    let with = |key: &str, value: &Value| {
        let mut config = config("qwen2");
        config.insert(key.to_owned(), value.clone());
        DecoderConfig::parse(config).map_err(|error| error.to_string())
    };
    let plain = DecoderConfig::parse(config("qwen2")).unwrap();
    for (key, value) in [
        ("use_mrope", json!(false)),
        ("unsloth_fixed", json!(true)),
        ("unsloth_version", json!("2026.1")),
        ("_attn_implementation", json!("sdpa")),
        ("max_sequence_length", json!(4096)),
        ("rope_scaling", json!({})),
        ("rope_scaling", Value::Null),
        ("quantization_config", Value::Null),
        ("quantization_config", json!({})),
        ("torch_dtype", json!("bfloat16")),
        ("temperature", json!(0.7)),
        ("decoder_start_token_id", json!(1)),
        ("resid_pdrop", json!(0.1)),
        ("logit_scale", json!(1.0)),
        ("partial_rotary_factor", json!(1.0)),
        ("router_aux_loss_coef", json!(0.0)),
        ("mlp_only_layers", json!([])),
        ("clip_qkv", Value::Null),
        ("neuron_name", json!("")),
        ("num_labels", json!(2)),
        ("is_causal", json!(true)),
        ("use_bidirectional_attention", json!(false)),
        // transformers passes over what `default` does not have.
        (
            "rope_parameters",
            json!({"rope_type": "default", "rope_theta": 10000.0, "factor": 8.0}),
        ),
    ] {
        assert_eq!(with(key, &value).as_ref(), Ok(&plain), "{key}: {value}");
    }
    for (key, value) in [
        ("use_mrope", json!(true)),
        // Where the off value is the switch.
        ("is_causal", json!(false)),
        ("is_causal", json!(0)),
        ("is_causal", Value::Null),
        ("use_bidirectional_attention", json!(true)),
        ("logit_scale", json!(0.1)),
        ("embedding_multiplier", json!(0.0)),
        ("attention_multiplier", json!(1.0)),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_interleaved", json!(true)),
        ("clip_qkv", json!(8)),
        ("quantization_config", json!({"bits": 4})),
        ("quantization", json!({"bits": 4, "group_size": 64})),
        ("per_layer_config", json!({"0": {"num_attention_heads": 2}})),
    ] {
        let error = with(key, &value).unwrap_err();
        assert!(error.starts_with(&format!("`{key}`")), "{error}");
    }
    let mut old = config("qwen2");
    old.remove("rope_parameters");
    let scaling = json!({"type": "default", "factor": 8.0, "attention_factor": 2.0});
    old.insert("rope_scaling".into(), scaling);
    assert_eq!(DecoderConfig::parse(old.clone()).unwrap().rope, plain.rope);
    let other = json!({"type": "default", "full_attention": {"rope_type": "yarn"}});
    old.insert("rope_scaling".into(), other);
    let error = DecoderConfig::parse(old).unwrap_err().to_string();
    assert!(
        error.starts_with("`rope_scaling.full_attention`"),
        "{error}"
    );
}

#[test]
fn errors_of_keys_name_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config("llama");
    config.insert("is_causal".into(), json!(false));
    let path = folder.path().join("config.json");
    fs::write(&path, Value::Object(config).to_string()).unwrap();
    let expected = format!("{}: `is_causal`: expected true", path.display());
    let read = DecoderConfig::read(folder.path()).unwrap_err().to_string();
    let loaded = load(folder.path(), &Device::default()).map(|_| ());
    for error in [read, loaded.unwrap_err().to_string()] {
        assert!(error.starts_with(&expected), "{error}");
    }
}

/// Tensors of a folder, to be written with others.
fn tensors(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, tensor): (String, TensorView<'_>)| {
        (name, (tensor.shape().to_vec(), tensor.data().to_vec()))
    };
    file.tensors().into_iter().map(tensor).collect()
}

fn write(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<u8>)>) {
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Of a model whose config ties the head: as transformers has it, the head of the file if it differs.
#[test]
fn a_head_beside_a_tied_embedding() {
    const HEAD: &str = "lm_head.weight";
    const EMBEDDING: &str = "model.embed_tokens.weight";
    let device = Device::default();
    let folder = tempfile::tempdir().unwrap();
    support::copy(&data("llama"), folder.path());
    let path = folder.path().join("model.safetensors");
    let expected = Expected::read(&data("llama"));
    let tied = tensors(folder.path());
    let loaded = || {
        let decoder = load(folder.path(), &device).unwrap();
        let remarks = remarks(folder.path(), &decoder).unwrap();
        (log_probs(&decoder, &expected.ids), decoder, remarks)
    };
    let (plain, _, none) = loaded();
    assert_eq!(none, Vec::<String>::new());
    // A copy, under both names or only the head's.
    let mut both = tied.clone();
    both.insert(HEAD.to_owned(), tied[EMBEDDING].clone());
    write(&path, &both);
    let (copied, decoder, none) = loaded();
    assert_eq!(decoder.config().output, OutputLayer::Tied);
    assert_eq!((copied, none.len()), (plain.clone(), 0));
    both.remove(EMBEDDING);
    write(&path, &both);
    assert_eq!(loaded().0, plain);

    // Another one: as if the config said that they are not tied.
    let mut other = tied.clone();
    let (shape, bytes) = &tied[EMBEDDING];
    let reversed = bytes.chunks(4).rev().flatten().copied().collect();
    other.insert(HEAD.to_owned(), (shape.clone(), reversed));
    write(&path, &other);
    let (untied, decoder, said) = loaded();
    assert_eq!(decoder.config().output, OutputLayer::Head);
    assert!(
        matches!(&said[..], [said] if said.contains("`lm_head.weight`")),
        "{said:?}"
    );
    assert!(difference(&untied, &plain) > 0.1);
    // What is saved says so itself.
    let to = folder.path().join("out");
    save(&decoder, folder.path(), &to, &SaveOptions::default()).unwrap();
    let again = load(&to, &device).unwrap();
    assert_eq!(log_probs(&again, &expected.ids), untied);
    assert_eq!(remarks(&to, &again).unwrap(), Vec::<String>::new());
    let mut config = config("llama");
    config.insert("tie_word_embeddings".into(), json!(false));
    let config = Value::Object(config).to_string();
    fs::write(folder.path().join("config.json"), config).unwrap();
    let (said, _, none) = loaded();
    assert_eq!((said, none.len()), (untied, 0));
}

/// One file goes before shards, as in transformers, and what is not read is named.
#[test]
fn a_single_file_beside_shards() {
    let device = Device::default();
    let folder = tempfile::tempdir().unwrap();
    support::copy(&data("llama3"), folder.path());
    let expected = Expected::read(&data("llama3"));
    let shards = load(folder.path(), &device).unwrap();
    assert!(remarks(folder.path(), &shards).unwrap().is_empty());
    // A shard of another save.
    let stale = "model-00001-of-00009.safetensors";
    fs::write(folder.path().join(stale), "another").unwrap();
    let again = load(folder.path(), &device).unwrap();
    let said = remarks(folder.path(), &again).unwrap();
    assert!(
        matches!(&said[..], [said] if said.starts_with(stale)),
        "{said:?}"
    );

    let single = folder.path().join("model.safetensors");
    let there = folder.path().join("out");
    save(&shards, folder.path(), &there, &SaveOptions::default()).unwrap();
    let mut other = tensors(&there);
    let (_, norm) = other.get_mut("model.norm.weight").unwrap();
    norm[..4].copy_from_slice(&7_f32.to_le_bytes());
    write(&single, &other);
    let decoder = load(folder.path(), &device).unwrap();
    let [shards, one] = [&shards, &decoder].map(|model| log_probs(model, &expected.ids));
    assert!(difference(&shards, &one) > 0.01);
    let said = remarks(folder.path(), &decoder).unwrap();
    let named =
        |said: &String| said.contains("model.safetensors.index.json") && said.contains(stale);
    assert!(matches!(&said[..], [said] if named(said)), "{said:?}");

    // Weights of another kind alone.
    let bare = tempfile::tempdir().unwrap();
    fs::copy(
        data("llama").join("config.json"),
        bare.path().join("config.json"),
    )
    .unwrap();
    fs::write(bare.path().join("pytorch_model.bin"), "").unwrap();
    let error = load(bare.path(), &device).unwrap_err();
    assert!(
        matches!(&error, WeightError::NoWeights { found, .. } if found == &["pytorch_model.bin"])
    );
    assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
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
