use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::{Mutex, PoisonError};

use burn::data::dataset::{Dataset, DatasetError};

use super::error::DataError;
use super::example::Example;
use super::format::Format;
use super::lines::{FileKind, JsonLines, content, next_line, parquet};
use super::load::parse;
use super::message::Text;
use crate::error::InvalidInput;

/// A file of JSON lines with random access, larger than memory if need be.
///
/// Opening it reads it once for an index of its lines (24 bytes each); a row is read and parsed
/// when its example is asked for. The file must not change while it is open.
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

impl<F: Format> JsonLines<F> {
    /// Opens the file and finds its lines; what they hold is not looked at yet.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is compressed.
    pub fn open(self) -> Result<IndexedLines<F>, DataError> {
        let failed = |source| DataError::file(&self.path, source);
        let mut file = File::open(&self.path).map_err(failed)?;
        match FileKind::of(&mut file).map_err(failed)? {
            FileKind::Lines => {}
            FileKind::Parquet => return Err(failed(parquet())),
            FileKind::Gzip | FileKind::Zstd => {
                let text =
                    "compressed files have no random access: `read` or `load` it, or unpack it";
                return Err(failed(io::Error::new(io::ErrorKind::Unsupported, text)));
            }
        }
        let lines = index(&mut file, self.max_line_bytes).map_err(failed)?;
        Ok(IndexedLines {
            source: self,
            file: Mutex::new(file),
            lines,
        })
    }
}

impl<F: Format> IndexedLines<F> {
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
