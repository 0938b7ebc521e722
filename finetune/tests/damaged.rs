//! Files of models, adapters and templates that are damaged: an error, or a right result.

#[path = "../../tests/support/damage.rs"]
mod damage;
#[path = "support/fuzz.rs"]
mod fuzz;

use std::fs;
use std::path::{Path, PathBuf};

use damage::damaged;
use finetune::ChatTemplate;
use fuzz::{TARGETS, data, target};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use time::OffsetDateTime;

/// Valid files, and what the fuzzers found worth keeping.
fn seeds(name: &str, valid: &[&str]) -> Vec<PathBuf> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let kept = fs::read_dir(kept.join(name)).into_iter().flatten();
    let mut seeds: Vec<_> = kept.map(|file| file.unwrap().path()).collect();
    seeds.extend(valid.iter().map(|name| data(name)));
    seeds.sort();
    assert!(!seeds.is_empty(), "{name}");
    seeds
}

/// So many copies of each file, unless `PROPTEST_CASES` asks for another number.
fn copies(usual: u32) -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.map_or(usual, |asked| asked.parse().unwrap())
}

/// Valid files, what was found before, and damaged copies of both.
#[test]
fn damaged_files_are_errors() {
    for (name, valid, target) in TARGETS {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for path in seeds(name, valid) {
            let bytes = fs::read(path).unwrap();
            target(&bytes);
            for _ in 0..copies(40) {
                let damaged = damaged(&bytes, &mut rng);
                // What failed is then there to be looked at.
                let _kept = Kept::new(name, &damaged);
                target(&damaged);
            }
        }
    }
}

/// Bytes that a panic leaves in the temporary folder.
struct Kept<'a>(&'a str, &'a [u8]);

impl<'a> Kept<'a> {
    fn new(name: &'a str, bytes: &'a [u8]) -> Self {
        Self(name, bytes)
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = std::env::temp_dir().join(format!("damaged.{}", self.0));
            let written = fs::write(&path, self.1);
            eprintln!("the bytes are in {}: {written:?}", path.display());
        }
    }
}

/// Numbers that a file of a few bytes may say, and that nobody may allocate or follow.
#[test]
fn a_small_file_that_says_large_numbers_is_an_error() {
    // A list of lists of lists …, a million deep.
    let mut deep = b"GGUF\x03\0\0\0".to_vec();
    for size in [0_u64, 1, 1] {
        deep.extend(size.to_le_bytes());
    }
    deep.push(b'k');
    deep.extend(9_u32.to_le_bytes());
    for _ in 0..1_000_000 {
        deep.extend(9_u32.to_le_bytes());
        deep.extend(1_u64.to_le_bytes());
    }
    target("gguf")(&deep);
    let config = fs::read_to_string(data("llama").join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "head_dim",
    ] {
        for size in [1_u64 << 40, u64::MAX - 1] {
            let mut config = config.clone();
            config[key] = size.into();
            target("model_config")(config.to_string().as_bytes());
        }
    }
}

/// A template may cut what it has rendered: then nobody knows what the assistant says.
#[test]
fn a_template_that_cuts_a_generation_block_is_an_error() {
    for (with, is_whole) in [
        ("x", true),
        ("x ~ x", true),
        ("x[1:]", false),
        ("x[:-1]", false),
        ("x|reverse", false),
    ] {
        let source = format!(
            "{{% set x %}}{{% generation %}}said{{% endgeneration %}}{{% endset %}}{{{{ {with} }}}}"
        );
        let template = ChatTemplate::new(&source, OffsetDateTime::UNIX_EPOCH).unwrap();
        let messages = serde_json::from_str(r#"[{"role": "user", "content": "a"}]"#).unwrap();
        match template.render(messages, None, false, &().into()) {
            Ok(rendered) => {
                assert!(is_whole, "{with}");
                let said = rendered.assistant.unwrap();
                assert!(
                    said.into_iter()
                        .all(|block| &rendered.text[block] == "said")
                );
            }
            Err(error) => {
                assert!(!is_whole, "{with}: {error}");
                assert!(error.to_string().contains("cuts or reorders"), "{error}");
            }
        }
    }
}
