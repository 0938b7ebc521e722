use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use burn::data::dataset::{Dataset, DatasetError};
use flate2::read::MultiGzDecoder;

use super::error::DataError;
use super::example::Example;
use super::format::Format;
use super::json::Object;
use super::load::{Loaded, OnError, parse};
use super::message::Text;
use crate::error::InvalidInput;

/// A file of JSON lines, compressed by gzip or not, with the format and the longest length of its
/// rows.
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
    path: PathBuf,
    format: F,
    max_line_bytes: usize,
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

    /// Sets the longest line, in bytes before its line feed, once it is unpacked. A longer one is an
    /// error before it is read: a compressed file of 0.5 MB can hold a line of 500.
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

    fn long_line(&self, line: usize) -> DataError {
        DataError::LongLine {
            path: self.path.clone(),
            line,
            max: self.max_line_bytes,
        }
    }

    fn object(&self, line: usize, text: &[u8]) -> Result<Object, DataError> {
        serde_json::from_slice(text).map_err(|source| DataError::Json {
            path: self.path.clone(),
            line,
            source,
        })
    }
}

impl<F: Format> JsonLines<F> {
    /// Opens the file and finds its lines; what they hold is not looked at yet.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is compressed.
    pub fn open(self) -> Result<IndexedLines<F>, DataError> {
        let failed = |source| DataError::file(&self.path, source);
        let mut file = File::open(&self.path).map_err(failed)?;
        if is_gzip(&mut file).map_err(failed)? {
            let text = "compressed files have no random access: `read` or `load` it, or unpack it";
            return Err(failed(io::Error::new(io::ErrorKind::Unsupported, text)));
        }
        let lines = index(&mut file, self.max_line_bytes).map_err(failed)?;
        Ok(IndexedLines {
            source: self,
            file: Mutex::new(file),
            lines,
        })
    }

    /// The examples in order; one of them is in memory at a time. A row that is an error is followed
    /// by the others.
    ///
    /// # Errors
    ///
    /// The file cannot be opened; later, as [`IndexedLines::example`].
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

/// A file of JSON lines with random access, larger than memory if need be.
///
/// Opening it reads it once for an index of its lines (24 bytes each); a row is read and parsed when
/// its example is asked for. The file must not change while it is open.
#[derive(Debug)]
pub struct IndexedLines<F> {
    source: JsonLines<F>,
    file: Mutex<File>,
    lines: Vec<Line>,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    number: usize,
    start: u64,
    /// More than the limit for a line that is too long, which is not read.
    bytes: usize,
}

impl<F: Format> IndexedLines<F> {
    /// The number of rows.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The example of the row at `index`.
    ///
    /// # Errors
    ///
    /// There are not so many rows. Or the row cannot be read, is longer than the limit, is no JSON
    /// object, or does not fit the format.
    pub fn example(&self, index: usize) -> Result<Example<Text, F::Label>, DataError> {
        let Some(&line) = self.lines.get(index) else {
            let expected = format!("less than {}, the number of rows", self.lines.len());
            return Err(InvalidInput::new("index", expected, index).into());
        };
        let Line {
            number,
            start,
            bytes,
        } = line;
        if bytes > self.source.max_line_bytes {
            return Err(self.source.long_line(number));
        }
        let mut text = vec![0; bytes];
        {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(start))
                .and_then(|_| file.read_exact(&mut text))
                .map_err(|source| DataError::file(&self.source.path, source))?;
        }
        let row = self.source.object(number, &text)?;
        parse(&self.source.format, &self.source.path, number, row)
    }
}

impl<F: Format> Dataset<Example<Text, F::Label>> for IndexedLines<F> {
    fn get(&self, index: usize) -> Result<Example<Text, F::Label>, DatasetError> {
        self.example(index).map_err(DatasetError::new)
    }

    fn len(&self) -> usize {
        self.lines.len()
    }
}

fn index(file: &mut File, max_line_bytes: usize) -> io::Result<Vec<Line>> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut lines = Vec::new();
    let mut start = 0;
    let mut text = Vec::new();
    for number in 1.. {
        let bytes = next_line(&mut reader, max_line_bytes, &mut text)?;
        if bytes == 0 {
            break;
        }
        let (skipped, row) = content(number, &text);
        let is_long = bytes > text.len() as u64;
        if is_long || !row.is_empty() {
            lines.push(Line {
                number,
                start: start + skipped as u64,
                bytes: if is_long { usize::MAX } else { row.len() },
            });
        }
        start += bytes;
    }
    Ok(lines)
}

/// Reads a line with its end into `text`, and says how long it is: longer than `text` if its
/// content has more than `max` bytes, which are then passed over.
fn next_line(reader: &mut impl BufRead, max: usize, text: &mut Vec<u8>) -> io::Result<u64> {
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
