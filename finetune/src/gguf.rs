//! GGUF version 3 of the architecture `llama`: metadata, tokenizer, and tensors of the three types
//! that SmolLM2's file has.
//!
//! ```text
//! magic, version u32, tensors u64, entries u64
//! entries   key, type, value
//! tensors   name, dimensions (fastest first), type, offset from the end of the header,
//!           rounded up to `general.alignment` (32)
//! F32       as it is
//! Q8_0      32 numbers: f16 d, 32 × i8 q           value q·d
//! Q4_1      32 numbers: f16 d, f16 m, 16 bytes     value q·d + m, low nibbles first
//! ```

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::{fmt, fs};

use burn::tensor::f16;
use serde_json::{Map, Value as Json, json};

/// A value of the metadata; numbers of every width are one kind.
#[derive(Debug, Clone)]
enum Value {
    Number(f64),
    Text(String),
    List(Vec<Value>),
}

impl Value {
    /// Tells whether a key with this value, which is not known, turns nothing on.
    fn is_off(&self, key: &str) -> bool {
        match self {
            Self::Number(number) => {
                let multiplies = key.contains("scale") || key.contains("factor");
                // Scores times 1 would not be divided by √head_dim.
                let of_scores = key.starts_with("attention");
                *number == 0.0 || multiplies && !of_scores && *number == 1.0
            }
            Self::Text(text) => text.is_empty(),
            Self::List(items) => items.is_empty(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::List(items) => write!(f, "a list of {}", items.len()),
        }
    }
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
                // As llama.cpp has it; so no file makes this function call itself deeply.
                if kind == 9 {
                    return Err(invalid("a list of lists".to_owned()));
                }
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

fn unexpected(key: &str, expected: &str, found: Option<&Value>) -> io::Error {
    let found = found.map_or("nothing".to_owned(), Value::to_string);
    invalid(format!("`{key}`: expected {expected}, found {found}"))
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
        let metadata: HashMap<_, _> = (0..entries).map(&mut entry).collect::<io::Result<_>>()?;
        if metadata.len() != entries {
            return Err(invalid(
                "a key of the metadata stands there twice".to_owned(),
            ));
        }
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
        let count = tensors;
        let tensors: HashMap<_, _> = (0..count).map(tensor).collect::<io::Result<_>>()?;
        if tensors.len() != count {
            return Err(invalid("a tensor stands there twice".to_owned()));
        }
        let header = file.at;
        let mut gguf = Self {
            bytes,
            metadata,
            tensors,
            data: header,
        };
        let alignment = gguf.size_or("general.alignment", 32)?;
        let data = (alignment > 0).then(|| header.checked_next_multiple_of(alignment));
        let wrong = || invalid(format!("`general.alignment`: {alignment}"));
        gguf.data = data.flatten().ok_or_else(wrong)?;
        Ok(gguf)
    }

    /// Tells whether a key of the metadata is there.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// A size of the metadata, or `default` where the file does not say one.
    fn size_or(&self, key: &str, default: usize) -> io::Result<usize> {
        if self.has(key) {
            self.size(key)
        } else {
            Ok(default)
        }
    }

    /// Refuses keys that begin with `prefix`, unless they turn nothing on or `known` has the rest of
    /// their name.
    pub(crate) fn refuse_others(&self, prefix: &str, known: &[&str]) -> io::Result<()> {
        let others = self.metadata.iter().filter(|(key, value)| {
            let name = key.strip_prefix(prefix);
            name.is_some_and(|name| !known.contains(&name) && !value.is_off(name))
        });
        match others.min_by_key(|(key, _)| *key) {
            Some((key, value)) => {
                let what = "not read, and may change what the model computes; found";
                Err(invalid(format!("`{key}`: {what} {value}")))
            }
            None => Ok(()),
        }
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
            other => Err(unexpected(key, "a number", other)),
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
        let parse = |item: &Value| parse(item).ok_or_else(|| unexpected(key, expected, Some(item)));
        items.iter().map(parse).collect()
    }

    /// The shape of a tensor whose bytes are all there.
    fn shape(&self, name: &str) -> io::Result<&[usize]> {
        let info = self.info(name)?;
        self.content(name, info).map(|_| info.shape.as_slice())
    }

    fn info(&self, name: &str) -> io::Result<&TensorInfo> {
        let missing = || invalid(format!("no tensor `{name}`"));
        self.tensors.get(name).ok_or_else(missing)
    }

    /// The bytes of a tensor.
    fn content(&self, name: &str, info: &TensorInfo) -> io::Result<&[u8]> {
        // Numbers of a block, and its bytes.
        let (of_block, size) = match info.kind {
            0 => (1, 4),
            3 => (32, 20),
            8 => (32, 34),
            other => return Err(invalid(format!("`{name}`: tensors of type {other}"))),
        };
        let mut sizes = info.shape.iter();
        let elements = sizes.try_fold(1_usize, |n, of| n.checked_mul(*of));
        let elements = elements.ok_or(io::ErrorKind::UnexpectedEof)?;
        if !elements.is_multiple_of(of_block) {
            return Err(invalid(format!(
                "`{name}`: {elements} numbers in blocks of 32"
            )));
        }
        let from = self.data.checked_add(info.offset);
        let length = (elements / of_block).checked_mul(size);
        let bytes = from.zip(length).and_then(|(from, length)| {
            let bytes = self.bytes.get(from..)?;
            bytes.get(..length)
        });
        Ok(bytes.ok_or(io::ErrorKind::UnexpectedEof)?)
    }

    /// The numbers of a tensor, rows of `[out, in]` one after the other.
    pub(crate) fn tensor(&self, name: &str) -> io::Result<Vec<f32>> {
        let info = self.info(name)?;
        let bytes = self.content(name, info)?;
        let half =
            |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let mut values = Vec::with_capacity(info.shape.iter().product());
        match info.kind {
            0 => {
                let words = bytes.as_chunks::<4>().0;
                values.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
            }
            3 => {
                for block in bytes.chunks_exact(20) {
                    let (d, m) = (half(block, 0), half(block, 2));
                    let nibbles = block[4..].iter().map(|byte| byte & 15);
                    let nibbles = nibbles.chain(block[4..].iter().map(|byte| byte >> 4));
                    values.extend(nibbles.map(|q| f32::from(q) * d + m));
                }
            }
            _ => {
                for block in bytes.chunks_exact(34) {
                    let d = half(block, 0);
                    let numbers = block[2..].iter().map(|byte| f32::from(byte.cast_signed()));
                    values.extend(numbers.map(|q| q * d));
                }
            }
        }
        Ok(values)
    }

    /// The shape of a tensor by Hugging Face's name.
    pub(crate) fn shape_of(&self, name: &str) -> io::Result<&[usize]> {
        self.shape(&renamed(name, |pair| pair))
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
        let shape = self.shape(&there)?.to_vec();
        let heads = self.size("llama.attention.head_count")?;
        let heads = match name {
            name if name.ends_with("q_proj.weight") => heads,
            name if name.ends_with("k_proj.weight") => {
                self.size_or("llama.attention.head_count_kv", heads)?
            }
            _ => return Ok((shape, numbers)),
        };
        let rows = shape.first().copied().unwrap_or(0);
        let halves = heads.checked_mul(2).filter(|halves| *halves > 0);
        if rows == 0 || halves.is_none_or(|halves| !rows.is_multiple_of(halves)) {
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
            other => Err(unexpected(key, "a text", other)),
        }
    }

    /// The keys of a `config.json` of the model.
    pub(crate) fn config(&self) -> io::Result<Map<String, Json>> {
        let family = self.text("general.architecture")?;
        if family != "llama" {
            let what = format!("`general.architecture`: expected llama, found {family}");
            return Err(invalid(what));
        }
        if let Ok(kind) = self.text("general.type")
            && kind != "model"
        {
            return Err(invalid(format!(
                "`general.type`: expected model, found {kind}"
            )));
        }
        self.check_computation()?;
        let size = |key: &str| self.size(&format!("llama.{key}"));
        let heads = size("attention.head_count")?;
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| config.insert(key.to_owned(), value);
        set("architectures", json!(["LlamaForCausalLM"]));
        set("model_type", "llama".into());
        set("hidden_act", "silu".into());
        set("hidden_size", size("embedding_length")?.into());
        set("intermediate_size", size("feed_forward_length")?.into());
        set("num_hidden_layers", size("block_count")?.into());
        set("num_attention_heads", heads.into());
        let kv_heads = self.size_or("llama.attention.head_count_kv", heads)?;
        set("num_key_value_heads", kv_heads.into());
        if self.has("llama.attention.key_length") {
            set("head_dim", size("attention.key_length")?.into());
        }
        set("max_position_embeddings", size("context_length")?.into());
        let words = self.texts("tokenizer.ggml.tokens")?.len();
        set("vocab_size", words.into());
        let epsilon = self.shortest("llama.attention.layer_norm_rms_epsilon")?;
        set("rms_norm_eps", epsilon.into());
        if self.has("llama.rope.freq_base") {
            set("rope_theta", self.shortest("llama.rope.freq_base")?.into());
        }
        let tied = !self.tensors.contains_key("output.weight");
        set("tie_word_embeddings", tied.into());
        if self.has("tokenizer.ggml.bos_token_id") {
            set("bos_token_id", self.id("bos_token_id")?.into());
        }
        set("eos_token_id", self.id("eos_token_id")?.into());
        set("pad_token_id", self.padding()?.into());
        Ok(config)
    }

    /// Refuses what would have this program compute another model than the file's.
    fn check_computation(&self) -> io::Result<()> {
        let number = |key: &str| self.has(key).then(|| self.number(key)).transpose();
        // As llama.cpp reads them: `none` turns the others off, and without a type it is linear.
        let kind = self.text("llama.rope.scaling.type").unwrap_or("linear");
        let plain = |factor: Option<f64>| matches!(factor, None | Some(0.0 | 1.0));
        for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
            let factor = number(key)?;
            if kind == "linear" && !plain(factor) {
                let by = factor.unwrap_or_default();
                let what = format!("positions divided by {by}, which is not implemented");
                return Err(invalid(format!("`{key}`: {what}")));
            }
        }
        if !["none", "linear"].contains(&kind) {
            let what = format!("expected none or linear, found {kind}");
            return Err(invalid(format!("`llama.rope.scaling.type`: {what}")));
        }
        let heads = self.size("llama.attention.head_count")?.max(1);
        let head_dim = self.size("llama.embedding_length")? / heads;
        let head_dim = self.size_or("llama.attention.key_length", head_dim)?;
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            let found = self.size_or(key, head_dim)?;
            if found != head_dim {
                let what = format!("expected {head_dim}, the width of a head, found {found}");
                return Err(invalid(format!("`{key}`: {what}")));
            }
        }
        if number("llama.attention.causal")?.is_some_and(|causal| causal != 1.0) {
            return Err(invalid(
                "`llama.attention.causal`: expected true".to_owned(),
            ));
        }
        self.refuse_others("llama.", &READ)?;
        let parts = self.size_or("split.count", 1)?;
        if parts > 1 {
            let what = format!("one of {parts} parts; join them by llama-gguf-split --merge");
            return Err(invalid(format!("`split.count`: {what}")));
        }
        self.refuse_others("adapter.", &[])
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
        if self.has("tokenizer.ggml.padding_token_id") {
            self.id("padding_token_id")
        } else {
            self.id("eos_token_id")
        }
    }
}

/// Keys of `llama.` that are read, or change no logits of a model that is not refused before.
const READ: [&str; 20] = [
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "vocab_size",
];

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
