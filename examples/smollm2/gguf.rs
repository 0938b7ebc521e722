//! GGUF version 3: metadata, and tensors of the three types that SmolLM2's file has.
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

/// A value of the metadata; numbers of every width are one kind.
#[derive(Debug, Clone)]
pub enum Value {
    Number(f64),
    Text(String),
    List(Vec<Value>),
}

struct Entry {
    elements: usize,
    kind: u32,
    offset: usize,
}

/// A file in memory; tensors are decoded when they are asked for.
pub struct Gguf {
    bytes: Vec<u8>,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, Entry>,
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
    pub fn open(path: &Path) -> io::Result<Self> {
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
            let elements = dims.product::<io::Result<usize>>()?;
            let (kind, offset) = (file.u32()?, file.size()?);
            let entry = Entry {
                elements,
                kind,
                offset,
            };
            Ok((name, entry))
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
    pub fn size(&self, key: &str) -> io::Result<usize> {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a size"
        )]
        self.number(key).map(|number| number as usize)
    }

    pub fn number(&self, key: &str) -> io::Result<f64> {
        match self.metadata.get(key) {
            Some(Value::Number(number)) => Ok(*number),
            other => Err(invalid(format!(
                "`{key}`: expected a number, found {other:?}"
            ))),
        }
    }

    /// A list of texts of the metadata.
    pub fn texts(&self, key: &str) -> io::Result<Vec<String>> {
        let Some(Value::List(items)) = self.metadata.get(key) else {
            return Err(invalid(format!("`{key}`: expected a list")));
        };
        let text = |item: &Value| match item {
            Value::Text(text) => Ok(text.clone()),
            other => Err(invalid(format!("`{key}`: expected texts, found {other:?}"))),
        };
        items.iter().map(text).collect()
    }

    /// The numbers of a tensor, rows of `[out, in]` one after the other.
    pub fn tensor(&self, name: &str) -> io::Result<Vec<f32>> {
        let missing = || invalid(format!("no tensor `{name}`"));
        let entry = self.tensors.get(name).ok_or_else(missing)?;
        let bytes = self.bytes.get(self.data + entry.offset..);
        let bytes = bytes.ok_or(io::ErrorKind::UnexpectedEof)?;
        let blocks = |size: usize| {
            let length = entry.elements / 32 * size;
            let bytes = bytes.get(..length).ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok::<_, io::Error>(bytes.chunks_exact(size))
        };
        let half =
            |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let mut values = Vec::with_capacity(entry.elements);
        match entry.kind {
            0 => {
                let bytes = bytes.get(..entry.elements * 4);
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
}
