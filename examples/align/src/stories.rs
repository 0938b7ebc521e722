//! A real pretrained model: stories260K in llama2.c's format, and its tokenizer.
//!
//! ```text
//! header   7 × i32: dim, hidden, layers, heads, kv heads, vocab, time
//! weights  f32, all layers of one kind together, [out, in] rows; the head is the embedding
//! tokens   i32 longest, then (f32 score, i32 length, bytes) each
//! ```

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use burn::tensor::Device;

use crate::llama::{Llama, LlamaConfig};
use crate::task::Task;

/// Tell a *happy* story: the score counts happy words, four are enough.
pub struct Stories {
    pieces: Vec<Vec<u8>>,
}

/// Begins every story of the model.
pub const START: usize = 1;

const HAPPY: [&str; 20] = [
    "happy", "smile", "smiled", "love", "loved", "fun", "friend", "friends", "play", "played",
    "laughed", "nice", "good", "hug", "hugged", "glad", "proud", "best", "pretty", "kind",
];

/// Reads little-endian numbers one after the other.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn word(&mut self) -> io::Result<[u8; 4]> {
        let (word, rest) = self
            .0
            .split_first_chunk()
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(*word)
    }

    fn int(&mut self) -> io::Result<usize> {
        let value = i32::from_le_bytes(self.word()?);
        usize::try_from(value).map_err(|_| io::Error::other(format!("a size of {value}")))
    }

    fn floats(&mut self, count: usize) -> io::Result<Vec<f32>> {
        (0..count)
            .map(|_| self.word().map(f32::from_le_bytes))
            .collect()
    }

    fn bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let (bytes, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(bytes.to_vec())
    }
}

/// Loads a llama2.c checkpoint with a tied head.
pub fn load(path: &Path, device: &Device) -> io::Result<Llama> {
    let bytes = fs::read(path)?;
    let mut file = Reader(&bytes);
    let mut size = || file.int();
    let config = LlamaConfig {
        dim: size()?,
        hidden: size()?,
        layers: size()?,
        heads: size()?,
        kv_heads: size()?,
        vocab: size()?,
        max_time: size()?,
        tied: true,
        rope_base: 1e4,
    };
    let (dim, hidden) = (config.dim, config.hidden);
    let kv_dim = dim / config.heads * config.kv_heads;
    let mut weights = HashMap::new();
    weights.insert(
        "model.embed_tokens.weight".to_owned(),
        file.floats(config.vocab * dim)?,
    );
    for (name, count) in [
        ("input_layernorm", dim),
        ("self_attn.q_proj", dim * dim),
        ("self_attn.k_proj", dim * kv_dim),
        ("self_attn.v_proj", dim * kv_dim),
        ("self_attn.o_proj", dim * dim),
        ("post_attention_layernorm", dim),
        ("mlp.gate_proj", dim * hidden),
        ("mlp.down_proj", dim * hidden),
        ("mlp.up_proj", dim * hidden),
    ] {
        for layer in 0..config.layers {
            let name = format!("model.layers.{layer}.{name}.weight");
            weights.insert(name, file.floats(count)?);
        }
    }
    weights.insert("model.norm.weight".to_owned(), file.floats(dim)?);
    Ok(config.load(device, true, |name| {
        weights.remove(name).expect("every name is there")
    }))
}

impl Stories {
    /// Loads llama2.c's tokenizer of `vocab` pieces.
    pub fn load(path: &Path, vocab: usize) -> io::Result<Self> {
        let bytes = fs::read(path)?;
        let mut file = Reader(&bytes);
        file.int()?;
        let pieces = (0..vocab)
            .map(|_| {
                file.word()?;
                let length = file.int()?;
                file.bytes(length)
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { pieces })
    }

    fn text(&self, tokens: &[usize]) -> String {
        let mut bytes = Vec::new();
        for &token in tokens.iter().filter(|&&token| token > 2) {
            let piece = &self.pieces[token];
            // <0x0A> is a byte of its own.
            let hex = piece
                .strip_prefix(b"<0x")
                .and_then(|p| p.strip_suffix(b">"));
            let hex = hex.and_then(|hex| str::from_utf8(hex).ok());
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend_from_slice(piece),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Task for Stories {
    fn name(&self) -> &'static str {
        "tell a happy story (happy words, four are enough)"
    }

    fn max_completion(&self) -> usize {
        48
    }

    fn end(&self) -> usize {
        START
    }

    fn score(&self, _: &[usize], completion: &[usize]) -> f64 {
        let text = self.text(completion).to_lowercase();
        let words = text.split(|c: char| !c.is_alphabetic());
        let happy = words.filter(|word| HAPPY.contains(word)).count();
        (happy as f64 / 4.0).min(1.0)
    }

    fn show(&self, tokens: &[usize]) -> String {
        self.text(tokens).replace('\n', " ").trim().to_owned()
    }
}
