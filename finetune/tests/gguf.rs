//! GGUF files written here from the tiny Llama of scripts/goldens.py: what they compute, and which
//! keys are refused by name.

mod support;

use std::fs;
use std::path::Path;

use burn::data::dataset::Dataset;
use burn::tensor::Device;
use burn_preference::data::{Encode, Example, JsonLines, PairFormat, Text, Tokenized, Truncation};
use finetune::{Chat, Decoder, SaveOptions, WeightError, load, save};
use safetensors::SafeTensors;
use support::{Expected, data, difference, log_probs};
use tempfile::TempDir;

#[derive(Clone)]
enum Value {
    Whole(u32),
    Float(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<i32>),
}

use Value::{Flag, Float, Numbers, Texts, Whole};

fn said(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// A file under way: its metadata, and the weights of tests/data/llama.
struct Written {
    keys: Vec<(String, Value)>,
    alignment: usize,
}

/// 40 words: two special tokens, one of the user, a blank, letters and digits.
fn words() -> Vec<String> {
    let letters = ('a'..='z').chain('0'..='9').map(String::from);
    let first = ["<|end|>", "<|start|>", "<tool>", "Ġ"].map(str::to_owned);
    first.into_iter().chain(letters).collect()
}

const TEMPLATE: &str = "{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}";

const WITH_TOOLS: &str = "<tool>{% for m in messages %}{{ m.content }}{% endfor %}";

impl Written {
    fn new() -> Self {
        let kinds = [3, 3, 4].into_iter().chain([1; 37]).collect();
        let keys = [
            ("general.architecture", said("llama")),
            ("llama.block_count", Whole(2)),
            ("llama.context_length", Whole(64)),
            ("llama.embedding_length", Whole(24)),
            ("llama.feed_forward_length", Whole(32)),
            ("llama.attention.head_count", Whole(4)),
            ("llama.attention.head_count_kv", Whole(2)),
            ("llama.attention.layer_norm_rms_epsilon", Float(1e-6)),
            ("tokenizer.ggml.model", said("gpt2")),
            ("tokenizer.ggml.pre", said("smollm")),
            ("tokenizer.ggml.tokens", Texts(words())),
            ("tokenizer.ggml.token_type", Numbers(kinds)),
            ("tokenizer.ggml.merges", Texts(Vec::new())),
            ("tokenizer.ggml.eos_token_id", Whole(0)),
            ("tokenizer.chat_template", said(TEMPLATE)),
        ];
        let keys = keys.map(|(key, value)| (key.to_owned(), value)).to_vec();
        let alignment = 32;
        Self { keys, alignment }
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.keys.retain(|(known, _)| known != key);
        self.keys.push((key.to_owned(), value));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let weights = fs::read(data("llama").join("model.safetensors")).unwrap();
        let weights = SafeTensors::deserialize(&weights).unwrap();
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        let tensors = weights.tensors();
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            put_text(&mut bytes, key);
            put_value(&mut bytes, value);
        }
        let mut contents = Vec::new();
        for (name, tensor) in &tensors {
            put_text(&mut bytes, &there(name));
            let shape = tensor.shape();
            bytes.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
            for size in shape.iter().rev() {
                bytes.extend((*size as u64).to_le_bytes());
            }
            bytes.extend(0_u32.to_le_bytes());
            contents.resize(contents.len().next_multiple_of(self.alignment), 0);
            bytes.extend((contents.len() as u64).to_le_bytes());
            let heads = match name {
                name if name.ends_with("q_proj.weight") => 4,
                name if name.ends_with("k_proj.weight") => 2,
                _ => {
                    contents.extend(tensor.data());
                    continue;
                }
            };
            // The file has pairs of neighbours where Hugging Face has two halves of a head.
            let (head, width) = (shape[0] / heads, 4 * shape[1]);
            for row in 0..shape[0] {
                let (of, pair, half) = (row / head * head, row % head / 2, row % 2);
                let source = of + half * head / 2 + pair;
                contents.extend(&tensor.data()[source * width..][..width]);
            }
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(contents);
        bytes
    }

    /// The file, in a folder that is removed with it.
    fn file(&self) -> (TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        fs::write(&path, self.bytes()).unwrap();
        (folder, path)
    }

    fn load(&self) -> Result<Decoder, WeightError> {
        load(&self.file().1, &Device::default())
    }
}

/// llama.cpp's name of a tensor.
fn there(name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    for (ours, theirs) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(ours, theirs);
    }
    name
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    let list = |bytes: &mut Vec<u8>, kind: u32, length: usize| {
        bytes.extend([9_u32, kind].map(u32::to_le_bytes).concat());
        bytes.extend((length as u64).to_le_bytes());
    };
    match value {
        Whole(number) => bytes.extend([4, *number].map(u32::to_le_bytes).concat()),
        Float(number) => {
            bytes.extend(6_u32.to_le_bytes());
            bytes.extend(number.to_le_bytes());
        }
        Flag(flag) => {
            bytes.extend(7_u32.to_le_bytes());
            bytes.push(u8::from(*flag));
        }
        Value::Text(text) => {
            bytes.extend(8_u32.to_le_bytes());
            put_text(bytes, text);
        }
        Texts(texts) => {
            list(bytes, 8, texts.len());
            for text in texts {
                put_text(bytes, text);
            }
        }
        Numbers(numbers) => {
            list(bytes, 5, numbers.len());
            for number in numbers {
                bytes.extend(number.to_le_bytes());
            }
        }
    }
}

#[test]
fn log_probs_are_those_of_transformers() {
    let expected = Expected::read(&data("llama"));
    let mut aligned = Written::new().with("general.alignment", Whole(256));
    aligned.alignment = 256;
    let none = Written::new()
        .with("llama.rope.scaling.type", said("none"))
        .with("llama.rope.scaling.factor", Float(4.0));
    for written in [
        Written::new(),
        aligned,
        none,
        Written::new()
            .with("llama.attention.key_length", Whole(6))
            .with("llama.attention.value_length", Whole(6))
            .with("llama.attention.causal", Flag(true))
            .with("llama.rope.dimension_count", Whole(6))
            .with("llama.rope.freq_base", Float(1e4)),
        // Keys that turn nothing on, and those of tools.
        Written::new()
            .with("llama.expert_count", Whole(0))
            .with("llama.logit_scale", Float(1.0))
            .with("llama.rope.scale_linear", Float(1.0))
            .with("llama.rope.scaling.type", said("linear"))
            .with("llama.rope.scaling.attn_factor", Float(1.0))
            .with("general.name", said("tiny"))
            .with("quantize.imatrix.entries_count", Whole(3)),
    ] {
        let decoder = written.load().unwrap();
        let ours = log_probs(&decoder, &expected.ids);
        let worst = difference(&ours, &expected.log_probs.concat());
        assert!(worst < 2e-5, "{worst}");
    }
}

#[test]
fn keys_that_are_not_read_are_refused_by_name() {
    for (key, value, found) in [
        ("llama.rope.scaling.factor", Float(4.0), "divided by 4"),
        ("llama.rope.scale_linear", Float(4.0), "divided by 4"),
        ("llama.rope.scaling.type", said("yarn"), "found yarn"),
        ("llama.rope.scaling.attn_factor", Float(0.5), "found 0.5"),
        ("llama.rope.dimension_count", Whole(4), "expected 6"),
        ("llama.attention.value_length", Whole(8), "expected 6"),
        ("llama.attention.causal", Flag(false), "expected true"),
        ("llama.attention.scale", Float(1.0), "found 1"),
        ("llama.attention.sliding_window", Whole(4096), "found 4096"),
        ("llama.expert_count", Whole(8), "found 8"),
        ("llama.logit_scale", Float(0.5), "found 0.5"),
        ("llama.final_logit_softcapping", Float(30.0), "found 30"),
        (
            "llama.tensor_data_layout",
            said("Meta AI original pth"),
            "Meta AI",
        ),
        ("general.type", said("adapter"), "found adapter"),
        ("general.alignment", Whole(0), "0"),
        ("general.architecture", said("qwen2"), "found qwen2"),
        ("split.count", Whole(3), "one of 3 parts"),
        ("adapter.type", said("lora"), "lora"),
    ] {
        let error = Written::new()
            .with(key, value)
            .load()
            .unwrap_err()
            .to_string();
        let named = format!("`{key}`");
        assert!(error.contains(&named) && error.contains(found), "{error}");
    }
    // Twice the same key, of which one would be lost.
    let mut twice = Written::new();
    twice.keys.push(("llama.block_count".to_owned(), Whole(1)));
    let error = twice.load().unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
}

fn chat(written: &Written) -> Result<Chat, String> {
    let (_folder, path) = written.file();
    let config = load(&path, &Device::default()).unwrap().config().clone();
    Chat::open(&path, &config).map_err(|error| error.to_string())
}

fn ids(chat: &Chat, text: &str) -> Vec<u32> {
    let [prompt, chosen, rejected] = [text, "a", "b"].map(|text| Text::Plain(text.to_owned()));
    chat.prompt(&Example::pair(prompt, chosen, rejected))
        .unwrap()
}

#[test]
fn tokens_of_the_user_are_one_token() {
    let chat = chat(&Written::new()).unwrap();
    // a, <tool>, blank, b, <|end|>
    assert_eq!(ids(&chat, "a<tool> b<|end|>c"), [4, 2, 3, 5, 0, 6]);
    assert_eq!(chat.decode(&[4, 2, 5, 0]).unwrap(), "a<tool>b");
    assert_eq!(chat.ends, [0]);
    let unknown = Written::new().with("tokenizer.ggml.token_type", Numbers(vec![6; 40]));
    let error = self::chat(&unknown).err().unwrap();
    assert!(
        error.contains("token_type`: expected 1 to 5, found 6"),
        "{error}"
    );
    let few = Written::new().with("tokenizer.ggml.token_type", Numbers(vec![3, 3]));
    let error = self::chat(&few).err().unwrap();
    assert!(error.contains("2 types of 40 tokens"), "{error}");
}

/// The prompt `a` of a row with these tools.
fn prompt_of_a_row(chat: &Chat, tools: &str) -> Vec<u32> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("row.jsonl");
    let said = |role: &str, text: &str| format!(r#"[{{"role": "{role}", "content": "{text}"}}]"#);
    let [prompt, chosen, rejected] = [("user", "a"), ("assistant", "b"), ("assistant", "c")]
        .map(|(role, text)| said(role, text));
    let row = format!(
        r#"{{"tools": {tools}, "prompt": {prompt}, "chosen": {chosen}, "rejected": {rejected}}}"#
    );
    fs::write(&path, row).unwrap();
    let rows = JsonLines::new(path, PairFormat::default()).open().unwrap();
    let whole = Truncation::Drop { max_length: 64 };
    let pairs = Tokenized::new(rows, |text: Encode<'_>| chat.encode(text), whole).unwrap();
    let pair = pairs.iter().next().unwrap().unwrap();
    pair.sequences()[0].prompt().to_vec()
}

#[test]
fn what_the_metadata_says_of_texts() {
    let written = Written::new()
        .with("tokenizer.ggml.bos_token_id", Whole(1))
        .with("tokenizer.ggml.add_bos_token", Flag(true))
        .with("tokenizer.ggml.eot_token_id", Whole(7))
        .with("tokenizer.chat_template.tool_use", said(WITH_TOOLS))
        .with(
            "tokenizer.chat_templates",
            Texts(vec!["tool_use".to_owned()]),
        );
    let (_folder, path) = written.file();
    let decoder = load(&path, &Device::default()).unwrap();
    // As it is, and as a folder that other programs load.
    let there = tempfile::tempdir().unwrap();
    let to = there.path().join("out");
    save(&decoder, &path, &to, &SaveOptions::default()).unwrap();
    for model in [path.as_path(), to.as_path()] {
        let chat = Chat::open(model, decoder.config()).unwrap();
        assert_eq!(ids(&chat, "ab<tool>"), [1, 4, 5, 2]);
        assert_eq!(prompt_of_a_row(&chat, "[]"), [1, 4, 0]);
        assert_eq!(prompt_of_a_row(&chat, "[{}]"), [2, 4]);
    }
    let chat = Chat::open(&path, decoder.config()).unwrap();
    assert_eq!(chat.ends, [0, 7]);
    for (key, value) in [
        ("tokenizer.ggml.model", said("llama")),
        ("tokenizer.ggml.pre", said("llama-bpe")),
        ("tokenizer.ggml.normalizer", said("lowercase")),
    ] {
        let error = self::chat(&Written::new().with(key, value)).err().unwrap();
        assert!(error.contains(&format!("`{key}`")), "{error}");
    }
    // A file that ends early is an error at every length.
    let whole = Written::new().bytes();
    for length in (0..whole.len() - 64).step_by(211) {
        fs::write(Path::new(&path), &whole[..length]).unwrap();
        assert!(load(&path, &Device::default()).is_err(), "{length}");
    }
}
