//! GGUF version 3 of the architecture `llama`: metadata, tokenizer, and tensors of the three types
//! that SmolLM2's file has.
//!
//! ```text
//! magic, version u32, tensors u64, entries u64
//! entries   key, type, value
//! tensors   name, dimensions (fastest first), type, offset from the end of the header,
//!           rounded up to 32
//! F32       as it is
//! Q8_0      32 numbers: f16 d, 32 × i8 q           value q·d
//! Q4_1      32 numbers: f16 d, f16 m, 16 bytes     value q·d + m, low nibbles first
//! ```

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use burn::tensor::f16;
use serde_json::{Map, Value as Json, json};

/// A value of the metadata; numbers of every width are one kind.
#[derive(Debug, Clone)]
enum Value {
    Number(f64),
    Text(String),
    List(Vec<Value>),
}

/// A tensor of the file: its shape, its number type and where its numbers begin.
struct TensorInfo {
    /// The slowest first.
    shape: Vec<usize>,
    kind: u32,
    offset: usize,
}

/// A file in memory; tensors are decoded when they are asked for.
pub(crate) struct Gguf {
    bytes: Vec<u8>,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
    data: usize,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (word, _) = rest
            .split_first_chunk()
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        self.at += N;
        Ok(*word)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn size(&mut self) -> io::Result<usize> {
        let size = u64::from_le_bytes(self.take()?);
        usize::try_from(size).map_err(|_| invalid(format!("a size of {size}")))
    }

    fn text(&mut self) -> io::Result<String> {
        let length = self.size()?;
        let text = self
            .bytes
            .get(self.at..self.at.saturating_add(length))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        self.at += length;
        String::from_utf8(text.to_vec()).map_err(|error| invalid(error.to_string()))
    }

    #[allow(clippy::cast_precision_loss, reason = "sizes and flags")]
    fn value(&mut self, kind: u32) -> io::Result<Value> {
        Ok(Value::Number(match kind {
            0 | 7 => f64::from(u8::from_le_bytes(self.take()?)),
            1 => f64::from(i8::from_le_bytes(self.take()?)),
            2 => f64::from(u16::from_le_bytes(self.take()?)),
            3 => f64::from(i16::from_le_bytes(self.take()?)),
            4 => f64::from(self.u32()?),
            5 => f64::from(i32::from_le_bytes(self.take()?)),
            6 => f64::from(f32::from_le_bytes(self.take()?)),
            8 => return self.text().map(Value::Text),
            9 => {
                let (kind, length) = (self.u32()?, self.size()?);
                let items = (0..length).map(|_| self.value(kind));
                return items.collect::<io::Result<_>>().map(Value::List);
            }
            10 => u64::from_le_bytes(self.take()?) as f64,
            11 => i64::from_le_bytes(self.take()?) as f64,
            12 => f64::from_le_bytes(self.take()?),
            other => return Err(invalid(format!("a value of type {other}"))),
        }))
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Gguf {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let bytes = fs::read(path)?;
        let mut file = Reader {
            bytes: &bytes,
            at: 0,
        };
        if file.take()? != *b"GGUF" || file.u32()? != 3 {
            return Err(invalid("not a GGUF file of version 3".to_owned()));
        }
        let (tensors, entries) = (file.size()?, file.size()?);
        let mut entry = |_| {
            let (name, kind) = (file.text()?, file.u32()?);
            Ok((name, file.value(kind)?))
        };
        let metadata = (0..entries).map(&mut entry).collect::<io::Result<_>>()?;
        let tensor = |_| {
            let name = file.text()?;
            let rank = file.u32()?;
            let dims = (0..rank).map(|_| file.size());
            let mut shape = dims.collect::<io::Result<Vec<usize>>>()?;
            shape.reverse();
            let (kind, offset) = (file.u32()?, file.size()?);
            let info = TensorInfo {
                shape,
                kind,
                offset,
            };
            Ok((name, info))
        };
        let tensors = (0..tensors).map(tensor).collect::<io::Result<_>>()?;
        let data = file.at.next_multiple_of(32);
        Ok(Self {
            bytes,
            metadata,
            tensors,
            data,
        })
    }

    /// A number of the metadata, as a size.
    pub(crate) fn size(&self, key: &str) -> io::Result<usize> {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a size"
        )]
        self.number(key).map(|number| number as usize)
    }

    /// A number of the metadata.
    pub(crate) fn number(&self, key: &str) -> io::Result<f64> {
        match self.metadata.get(key) {
            Some(Value::Number(number)) => Ok(*number),
            other => Err(invalid(format!(
                "`{key}`: expected a number, found {other:?}"
            ))),
        }
    }

    /// A list of texts of the metadata.
    pub(crate) fn texts(&self, key: &str) -> io::Result<Vec<String>> {
        self.list(key, "texts", |item| match item {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        })
    }

    /// A list of numbers of the metadata.
    pub(crate) fn numbers(&self, key: &str) -> io::Result<Vec<f64>> {
        self.list(key, "numbers", |item| match item {
            Value::Number(number) => Some(*number),
            _ => None,
        })
    }

    fn list<T>(
        &self,
        key: &str,
        expected: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let Some(Value::List(items)) = self.metadata.get(key) else {
            return Err(invalid(format!("`{key}`: expected a list")));
        };
        let parse = |item| {
            let found = || invalid(format!("`{key}`: expected {expected}, found {item:?}"));
            parse(item).ok_or_else(found)
        };
        items.iter().map(parse).collect()
    }

    /// The numbers of a tensor, rows of `[out, in]` one after the other.
    pub(crate) fn tensor(&self, name: &str) -> io::Result<Vec<f32>> {
        let missing = || invalid(format!("no tensor `{name}`"));
        let info = self.tensors.get(name).ok_or_else(missing)?;
        let bytes = self.data.checked_add(info.offset);
        let bytes = bytes.and_then(|from| self.bytes.get(from..));
        let bytes = bytes.ok_or(io::ErrorKind::UnexpectedEof)?;
        let elements = info
            .shape
            .iter()
            .try_fold(1_usize, |n, of| n.checked_mul(*of));
        let elements = elements.filter(|n| *n <= 2 * self.bytes.len());
        let elements = elements.ok_or(io::ErrorKind::UnexpectedEof)?;
        if info.kind != 0 && !elements.is_multiple_of(32) {
            return Err(invalid(format!(
                "`{name}`: {elements} numbers in blocks of 32"
            )));
        }
        let blocks = |size: usize| {
            let length = elements / 32 * size;
            let bytes = bytes.get(..length).ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok::<_, io::Error>(bytes.chunks_exact(size))
        };
        let half =
            |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let mut values = Vec::with_capacity(elements);
        match info.kind {
            0 => {
                let bytes = bytes.get(..elements * 4);
                let bytes = bytes.ok_or(io::ErrorKind::UnexpectedEof)?;
                let words = bytes.as_chunks::<4>().0;
                values.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
            }
            3 => {
                for block in blocks(20)? {
                    let (d, m) = (half(block, 0), half(block, 2));
                    let nibbles = block[4..].iter().map(|byte| byte & 15);
                    let nibbles = nibbles.chain(block[4..].iter().map(|byte| byte >> 4));
                    values.extend(nibbles.map(|q| f32::from(q) * d + m));
                }
            }
            8 => {
                for block in blocks(34)? {
                    let d = half(block, 0);
                    let numbers = block[2..].iter().map(|byte| f32::from(byte.cast_signed()));
                    values.extend(numbers.map(|q| q * d));
                }
            }
            other => return Err(invalid(format!("`{name}`: tensors of type {other}"))),
        }
        Ok(values)
    }

    /// The names of its tensors, as Hugging Face calls them.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.tensors
            .keys()
            .map(|name| renamed(name, |[ours, theirs]| [theirs, ours]))
    }

    /// A tensor by Hugging Face's name, in Hugging Face's order: queries and keys have the two
    /// halves of a head apart, where the file has pairs of neighbours.
    pub(crate) fn named(&self, name: &str) -> io::Result<(Vec<usize>, Vec<f32>)> {
        let there = renamed(name, |pair| pair);
        let numbers = self.tensor(&there)?;
        let shape = self.tensors[&there].shape.clone();
        let heads = match name {
            name if name.ends_with("q_proj.weight") => "llama.attention.head_count",
            name if name.ends_with("k_proj.weight") => "llama.attention.head_count_kv",
            _ => return Ok((shape, numbers)),
        };
        let (heads, rows) = (self.size(heads)?, shape[0]);
        if heads == 0 || !rows.is_multiple_of(2 * heads) {
            return Err(invalid(format!("`{there}`: {rows} rows of {heads} heads")));
        }
        let (head, width) = (rows / heads, numbers.len() / rows);
        let source = |row: usize| {
            let (half, pair) = (row % head / (head / 2), row % head % (head / 2));
            row / head * head + 2 * pair + half
        };
        let ordered = (0..rows).flat_map(|row| &numbers[source(row) * width..][..width]);
        Ok((shape, ordered.copied().collect()))
    }

    /// A text of the metadata.
    pub(crate) fn text(&self, key: &str) -> io::Result<&str> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Ok(text),
            other => Err(invalid(format!(
                "`{key}`: expected a text, found {other:?}"
            ))),
        }
    }

    /// The keys of a `config.json` of the model.
    pub(crate) fn config(&self) -> io::Result<Map<String, Json>> {
        let family = self.text("general.architecture")?;
        if family != "llama" {
            let what = format!("`general.architecture`: expected llama, found {family}");
            return Err(invalid(what));
        }
        let size = |key: &str| self.size(&format!("llama.{key}"));
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": size("embedding_length")?,
            "intermediate_size": size("feed_forward_length")?,
            "num_hidden_layers": size("block_count")?,
            "num_attention_heads": size("attention.head_count")?,
            "num_key_value_heads": size("attention.head_count_kv")?,
            "max_position_embeddings": size("context_length")?,
            "vocab_size": self.texts("tokenizer.ggml.tokens")?.len(),
            "rms_norm_eps": self.shortest("llama.attention.layer_norm_rms_epsilon")?,
            "rope_theta": self.shortest("llama.rope.freq_base")?,
            "tie_word_embeddings": !self.tensors.contains_key("output.weight"),
            "bos_token_id": self.size("tokenizer.ggml.bos_token_id")?,
            "eos_token_id": self.size("tokenizer.ggml.eos_token_id")?,
            "pad_token_id": self.padding()?,
        });
        match config {
            Json::Object(config) => Ok(config),
            _ => unreachable!("an object"),
        }
    }

    /// A number that the file has as f32, with the fewest digits that mean it: 1e-5, not
    /// 0.00000999….
    fn shortest(&self, key: &str) -> io::Result<f64> {
        #[allow(clippy::cast_possible_truncation, reason = "f32 in the file")]
        let number = self.number(key)? as f32;
        number
            .to_string()
            .parse()
            .map_err(|_| invalid(format!("`{key}`: {number}")))
    }

    /// The id of a special token, such as `eos_token_id`.
    pub(crate) fn id(&self, key: &str) -> io::Result<u32> {
        let id = self.size(&format!("tokenizer.ggml.{key}"))?;
        u32::try_from(id).map_err(|_| invalid(format!("`tokenizer.ggml.{key}`: {id}")))
    }

    /// The id that fills rows: of a file that names none, the one that ends a text.
    pub(crate) fn padding(&self) -> io::Result<u32> {
        if self
            .metadata
            .contains_key("tokenizer.ggml.padding_token_id")
        {
            self.id("padding_token_id")
        } else {
            self.id("eos_token_id")
        }
    }
}

/// GGUF's names beside Hugging Face's; longer ones before their ends.
const NAMES: [[&str; 2]; 12] = [
    ["blk.", "model.layers."],
    ["token_embd.", "model.embed_tokens."],
    ["output_norm.", "model.norm."],
    ["attn_norm.", "input_layernorm."],
    ["ffn_norm.", "post_attention_layernorm."],
    ["attn_q.", "self_attn.q_proj."],
    ["attn_k.", "self_attn.k_proj."],
    ["attn_v.", "self_attn.v_proj."],
    ["attn_output.", "self_attn.o_proj."],
    ["ffn_gate.", "mlp.gate_proj."],
    ["ffn_up.", "mlp.up_proj."],
    ["ffn_down.", "mlp.down_proj."],
];

/// A name in the other program's words; `order` says which of the two those are.
fn renamed<'a>(name: &str, order: impl Fn([&'a str; 2]) -> [&'a str; 2]) -> String {
    let [there, here] = order(["output.weight", "lm_head.weight"]);
    if name == here {
        return there.to_owned();
    }
    NAMES.into_iter().fold(name.to_owned(), |name, pair| {
        let [there, here] = order(pair);
        name.replace(here, there)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn read(bytes: &[u8]) -> io::Result<Gguf> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        fs::write(&path, bytes).unwrap();
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

        let says = |error: io::Error| error.to_string();
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
}
