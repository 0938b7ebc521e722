use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use burn::data::dataset::{Dataset, DatasetError};
use flate2::read::MultiGzDecoder;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::error::DataError;
use super::example::{Example, Text};
use super::format::Format;

/// A file of JSON lines with random access, larger than memory if need be.
///
/// Opening it reads it once for an index of its lines (24 bytes each); a row is read and parsed
/// when it is asked for. Blank lines are no rows. The file must not change while it is open.
///
/// Compressed files have no random access: [`read`] goes through them in order.
#[derive(Debug)]
pub struct JsonLines<F> {
    path: PathBuf,
    format: F,
    file: Mutex<File>,
    lines: Vec<Line>,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    number: usize,
    start: u64,
    bytes: usize,
}

impl<F: Format> JsonLines<F> {
    /// Opens a file and finds its lines; what they hold is not looked at yet.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is compressed.
    pub fn open(path: impl AsRef<Path>, format: F) -> Result<Self, DataError> {
        let path = path.as_ref();
        let failed = |source| DataError::file(path, source);
        let mut file = File::open(path).map_err(failed)?;
        if is_gzip(&mut file).map_err(failed)? {
            let text = "compressed files have no random access: use `data::read`, or unpack it";
            return Err(failed(io::Error::new(io::ErrorKind::Unsupported, text)));
        }
        let lines = index(&mut file).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            format,
            file: Mutex::new(file),
            lines,
        })
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The row at `index`.
    ///
    /// # Errors
    ///
    /// It cannot be read, is no JSON object, or does not fit the format.
    ///
    /// # Panics
    ///
    /// Panics if there are not so many rows.
    pub fn row(&self, index: usize) -> Result<Example<Text, F::Label>, DataError> {
        let Line {
            number,
            start,
            bytes,
        } = self.lines[index];
        let mut text = vec![0; bytes];
        {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(start))
                .and_then(|_| file.read_exact(&mut text))
                .map_err(|source| DataError::file(&self.path, source))?;
        }
        parse(&self.path, number, &text, &self.format)
    }
}

impl<F: Format> Dataset<Example<Text, F::Label>> for JsonLines<F> {
    fn get(&self, index: usize) -> Result<Example<Text, F::Label>, DatasetError> {
        self.row(index).map_err(DatasetError::new)
    }

    fn len(&self) -> usize {
        self.lines.len()
    }
}

/// The rows of a file in order, compressed by gzip or not.
///
/// One row is in memory at a time. For random access to a compressed file that fits into memory,
/// collect them into Burn's [`InMemDataset`](burn::data::dataset::InMemDataset).
///
/// # Errors
///
/// The file cannot be opened; later, as [`JsonLines::row`].
pub fn read<F: Format>(
    path: impl AsRef<Path>,
    format: F,
) -> Result<impl Iterator<Item = Result<Example<Text, F::Label>, DataError>>, DataError> {
    let path = path.as_ref().to_owned();
    let failed = |source| DataError::file(&path, source);
    let mut file = File::open(&path).map_err(failed)?;
    let packed = is_gzip(&mut file).map_err(failed)?;
    let mut reader: Box<dyn BufRead> = if packed {
        Box::new(BufReader::new(MultiGzDecoder::new(BufReader::new(file))))
    } else {
        Box::new(BufReader::new(file))
    };
    let mut number = 0;
    let mut broken = false;
    Ok(std::iter::from_fn(move || {
        let mut text = Vec::new();
        while !broken {
            number += 1;
            text.clear();
            match reader.read_until(b'\n', &mut text) {
                Ok(0) => return None,
                Ok(_) => match content(number, &text) {
                    (_, []) => {}
                    (_, row) => return Some(parse(&path, number, row, &format)),
                },
                Err(source) => {
                    broken = true;
                    return Some(Err(DataError::file(&path, source)));
                }
            }
        }
        None
    }))
}

fn index(file: &mut File) -> io::Result<Vec<Line>> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut lines = Vec::new();
    let mut start = 0;
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        let read = reader.read_until(b'\n', &mut text)?;
        if read == 0 {
            break;
        }
        let (skipped, row) = content(number, &text);
        if !row.is_empty() {
            lines.push(Line {
                number,
                start: start + skipped as u64,
                bytes: row.len(),
            });
        }
        start += read as u64;
    }
    Ok(lines)
}

fn is_gzip(file: &mut File) -> io::Result<bool> {
    let mut magic = Vec::new();
    file.take(2).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(magic == [0x1f, 0x8b])
}

/// A line without its end and without the byte order mark with which some editors begin a file,
/// and where it starts.
fn content(number: usize, text: &[u8]) -> (usize, &[u8]) {
    let rest = match text.strip_prefix(b"\xef\xbb\xbf") {
        Some(rest) if number == 1 => rest,
        _ => text,
    };
    (text.len() - rest.len(), rest.trim_ascii_end())
}

fn parse<F: Format>(
    path: &Path,
    line: usize,
    text: &[u8],
    format: &F,
) -> Result<Example<Text, F::Label>, DataError> {
    let row: Row = serde_json::from_slice(text).map_err(|source| DataError::Json {
        path: path.to_owned(),
        line,
        source,
    })?;
    let mut example = format.parse(row.0).map_err(|source| DataError::Row {
        path: path.to_owned(),
        line,
        source,
    })?;
    example.line = Some(line);
    Ok(example)
}

/// A JSON object that has no field twice: serde_json would keep the last without a word.
struct Row(Map<String, Value>);

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Map<String, Value>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut fields = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if fields.contains_key(&name) {
                        return Err(A::Error::custom(format!("the field `{name}` stands twice")));
                    }
                    fields.insert(name, value);
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Fields).map(Row)
    }
}
