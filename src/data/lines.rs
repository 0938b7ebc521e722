use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::de::Error as _;

use super::error::DataError;
use super::example::Example;
use super::format::Format;
use super::json::{Object, read_row};
use super::load::{Loaded, OnError, parse};
use super::message::Text;
use super::zstd::ZstdReader;
use crate::error::InvalidInput;

/// A file of JSON lines, compressed by gzip, by zstd or not, with the format and the longest length
/// of its rows.
///
/// A line is a row, and a row that fits the format is an example. Blank lines are no rows. Numbers
/// of lines count from 1, and errors name them.
///
/// | | memory | compressed | |
/// |---|---|---|---|
/// | [`open`](Self::open) | an index of its lines | no | a Burn dataset with random access |
/// | [`read`](Self::read) | one row | yes | an iterator over examples, in order |
/// | [`load`](Self::load) | all examples | yes | for Burn's `InMemDataset` |
/// | [`raw`](Self::raw) | one row | yes | an iterator over rows, before the format |
#[derive(Debug, Clone)]
pub struct JsonLines<F> {
    pub(super) path: PathBuf,
    pub(super) format: F,
    pub(super) max_line_bytes: usize,
}

impl<F> JsonLines<F> {
    /// The file at `path`, whose rows have this format and 16 MiB each at most.
    ///
    /// `()` is the format of a file of which only [`raw`](Self::raw) rows are read.
    pub fn new(path: impl AsRef<Path>, format: F) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            format,
            max_line_bytes: 16 << 20,
        }
    }

    /// Sets the length of the longest line, in bytes before its line feed, once it is unpacked. A
    /// longer one is an error before it is read: a compressed file of 0.5 MB can hold a line of
    /// 500.
    ///
    /// # Errors
    ///
    /// The limit is 0.
    pub fn with_max_line_bytes(self, max_line_bytes: usize) -> Result<Self, InvalidInput> {
        if max_line_bytes == 0 {
            return Err(InvalidInput::new("max_line_bytes", "1 at least", 0));
        }
        Ok(Self {
            max_line_bytes,
            ..self
        })
    }

    /// The rows as they stand in the file, in order, each with its line; the format is not used.
    ///
    /// For what no format says: which columns a file has, for instance.
    ///
    /// ```
    /// use burn_preference::data::JsonLines;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("data.jsonl");
    /// std::fs::write(&path, r#"{"prompt": "2+2=", "completion": "4", "label": true}"#)?;
    /// let (line, row) = JsonLines::new(&path, ()).raw()?.next().ok_or("an empty file")??;
    /// assert_eq!((line, row.get("chosen"), row["label"].as_bool()), (1, None, Some(true)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The file cannot be opened; later, a line cannot be read, is longer than the limit, or is no
    /// JSON object. It is followed by the others.
    pub fn raw(
        self,
    ) -> Result<impl Iterator<Item = Result<(usize, Object), DataError>>, DataError> {
        let failed = |source| DataError::file(&self.path, source);
        let mut file = File::open(&self.path).map_err(failed)?;
        let kind = FileKind::of(&mut file).map_err(failed)?;
        let file = BufReader::new(file);
        let mut reader: Box<dyn BufRead> = match kind {
            FileKind::Gzip => Box::new(BufReader::new(MultiGzDecoder::new(file))),
            FileKind::Zstd => Box::new(BufReader::new(ZstdReader::new(file))),
            FileKind::Lines => Box::new(file),
            FileKind::Parquet => return Err(failed(parquet())),
        };
        let mut number = 0;
        let mut broken = false;
        Ok(std::iter::from_fn(move || {
            let mut text = Vec::new();
            while !broken {
                number += 1;
                match next_line(&mut reader, self.max_line_bytes, &mut text) {
                    Ok(0) => return None,
                    Ok(bytes) if bytes > text.len() as u64 => {
                        return Some(Err(self.long_line(number)));
                    }
                    Ok(_) => match content(number, &text) {
                        (_, []) => {}
                        (_, row) => return Some(self.object(number, row).map(|row| (number, row))),
                    },
                    Err(source) => {
                        broken = true;
                        return Some(Err(DataError::file(&self.path, source)));
                    }
                }
            }
            None
        }))
    }

    pub(super) fn long_line(&self, line: usize) -> DataError {
        DataError::LongLine {
            path: self.path.clone(),
            line,
            max: self.max_line_bytes,
        }
    }

    pub(super) fn object(&self, line: usize, text: &[u8]) -> Result<Object, DataError> {
        read_row(text).map_err(|source| match another_kind(text) {
            Some(kind) if line == 1 => {
                DataError::file(&self.path, io::Error::new(io::ErrorKind::InvalidData, kind))
            }
            _ => DataError::Json {
                path: self.path.clone(),
                line,
                source: match text {
                    b"{" => serde_json::Error::custom(OVER_LINES),
                    _ => source,
                },
            },
        })
    }
}

const OVER_LINES: &str =
    "an object over several lines: `jq -c . FILE > FILE.jsonl` makes a line of it";

/// The kind of a file whose first line is no row and could be none, with what makes JSON lines of
/// it.
fn another_kind(first: &[u8]) -> Option<&'static str> {
    match first {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            Some("text in UTF-16: `iconv -f UTF-16 -t UTF-8 FILE > FILE.jsonl` makes UTF-8 of it")
        }
        [b'[', ..] => Some(
            "one JSON array and no JSON lines, of which each is an object: \
             `jq -c '.[]' FILE > FILE.jsonl` makes lines of it",
        ),
        [b'{', ..] => None,
        _ if first.contains(&b'{') && std::str::from_utf8(first).is_ok() => None,
        _ => Some(
            "no JSON lines. Of CSV and others DuckDB makes them: \
             `duckdb -c \"COPY (FROM 'rows.csv') TO 'rows.jsonl' (FORMAT json)\"`",
        ),
    }
}

impl<F: Format> JsonLines<F> {
    /// The examples in order; one of them is in memory at a time. A row that is an error is
    /// followed by the others.
    ///
    /// # Errors
    ///
    /// The file cannot be opened; later, a row cannot be read, is longer than the limit, is
    /// no JSON object, or does not fit the format.
    pub fn read(
        self,
    ) -> Result<impl Iterator<Item = Result<Example<Text, F::Label>, DataError>>, DataError> {
        let Self {
            path,
            format,
            max_line_bytes,
        } = self;
        let file = JsonLines {
            path: path.clone(),
            format: (),
            max_line_bytes,
        };
        Ok(file.raw()?.map(move |row| {
            let (line, row) = row?;
            parse(&format, &path, line, row)
        }))
    }

    /// All examples at once.
    ///
    /// # Errors
    ///
    /// The file cannot be read; or a row, unless `on_error` is to skip it.
    pub fn load(self, on_error: OnError) -> Result<Loaded<F::Label>, DataError> {
        Loaded::collect(self.read()?, on_error)
    }
}

/// Reads a line with its end into `text`, and says how long it is: longer than `text` if its
/// content has more than `max` bytes, which are then passed over.
pub(super) fn next_line(
    reader: &mut impl BufRead,
    max: usize,
    text: &mut Vec<u8>,
) -> io::Result<u64> {
    text.clear();
    let mut bytes = 0;
    loop {
        let available = match reader.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = available.iter().position(|&byte| byte == b'\n');
        let used = end.map_or(available.len(), |end| end + 1);
        let content = end.unwrap_or(used);
        let room = max.saturating_sub(text.len());
        text.extend_from_slice(&available[..content.min(room)]);
        if end.is_some() && content <= room {
            text.push(b'\n');
        }
        let is_last = end.is_some() || used == 0;
        reader.consume(used);
        bytes += used as u64;
        if is_last {
            return Ok(bytes);
        }
    }
}

/// The kind of a file, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Lines,
    Gzip,
    Zstd,
    Parquet,
}

impl FileKind {
    /// The kind of a file, which is at its beginning afterwards.
    pub(super) fn of(file: &mut File) -> io::Result<Self> {
        let mut magic = Vec::new();
        file.take(4).read_to_end(&mut magic)?;
        file.rewind()?;
        Ok(match magic.as_slice() {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Self::Zstd,
            b"PAR1" => Self::Parquet,
            _ => Self::Lines,
        })
    }
}

pub(super) fn parquet() -> io::Error {
    let text = "a Parquet file and no JSON lines: `ParquetFile` reads it";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A line without its end and without the byte order mark with which some editors begin a file,
/// and where it starts.
pub(super) fn content(number: usize, text: &[u8]) -> (usize, &[u8]) {
    let rest = match text.strip_prefix(b"\xef\xbb\xbf") {
        Some(rest) if number == 1 => rest,
        _ => text,
    };
    (text.len() - rest.len(), rest.trim_ascii_end())
}
