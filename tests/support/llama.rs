//! The two-layer Llama of the conformance suite, in the transformer of the example `align`.

#[path = "../../examples/align/src/llama.rs"]
mod model;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor};
use burn_preference::LmHead;
use safetensors::SafeTensors;

#[allow(unused_imports, reason = "each test binary uses its own part")]
pub use model::{Llama, LlamaConfig, Visible};

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama")
}

/// Hidden states of `tokens`, and the head above them.
pub fn hidden(model: &Llama, tokens: Tensor<2, Int>) -> (Tensor<3>, LmHead) {
    let states = model.hidden(tokens);
    let head = model
        .head
        .as_ref()
        .expect("the head has weights of its own");
    (states, LmHead::from(head))
}

/// Loads `policy.safetensors` or `reference.safetensors`.
pub fn load(file: &str, device: &Device) -> Llama {
    let bytes = std::fs::read(folder().join(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let config = LlamaConfig {
        dim: 64,
        hidden: 128,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        vocab: 256,
        max_time: 128,
        tied: false,
        rope_base: 1e4,
    };
    config.load(device, false, |name| {
        let data = tensors.tensor(name).unwrap().data();
        let (floats, rest) = data.as_chunks::<4>();
        assert!(rest.is_empty());
        floats.iter().map(|b| f32::from_le_bytes(*b)).collect()
    })
}
