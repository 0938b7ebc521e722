//! The tiny models of scripts/goldens.py, and what they compute.

#![allow(dead_code, reason = "each test uses its own part")]

pub(crate) mod place;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Bool, Int, Tensor, TensorData};
use burn_preference::TokenLogProbs;
use finetune::Decoder;
use serde::Deserialize;

/// Folders of tests/data.
pub(crate) const FAMILIES: [&str; 6] = ["gemma2", "llama", "llama3", "mistral", "qwen2", "qwen3"];

/// What another program computes: the log-probability of each token but the first.
#[derive(Deserialize)]
pub(crate) struct Expected {
    pub(crate) ids: Vec<Vec<u32>>,
    pub(crate) log_probs: Vec<Vec<f64>>,
}

impl Expected {
    pub(crate) fn read(folder: &Path) -> Self {
        let text = fs::read_to_string(folder.join("expected.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

/// Of tests/data.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// Log-probability of each token but the first, on the decoder's device.
pub(crate) fn token_log_probs(decoder: &Decoder, ids: &[Vec<u32>]) -> Tensor<2> {
    let shape = [ids.len(), ids[0].len()];
    let device = decoder.embedding.weight.device();
    let ids: Vec<i32> = ids.concat().into_iter().map(u32::cast_signed).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device);
    let mask = Tensor::<2, Bool>::full(shape, true, &device);
    let (hidden, head) = decoder.hidden(ids.clone());
    let log_probs = TokenLogProbs::from_output((hidden, head), ids, mask).unwrap();
    log_probs.log_probs()
}

/// The same as numbers.
pub(crate) fn log_probs(decoder: &Decoder, ids: &[Vec<u32>]) -> Vec<f64> {
    token_log_probs(decoder, ids).into_data().iter().collect()
}

/// The largest distance; NaN where a number is.
pub(crate) fn difference(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let apart = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    apart.fold(
        0.0,
        |worst, x| if x > worst || x.is_nan() { x } else { worst },
    )
}

/// A copy of a folder's files.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
