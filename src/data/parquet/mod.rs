mod pages;
mod rows;
mod tree;
mod value;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rows::Rows;

use super::error::DataError;
use super::example::Example;
use super::format::Format;
use super::json::Object;
use super::load::{Loaded, OnError, parse};
use super::message::Text;

/// A Parquet file, as Hugging Face's hub has it: uncompressed, or compressed by Snappy, Zstandard,
/// gzip, LZ4 or Brotli.
///
/// Rows are what [`JsonLines`](super::JsonLines) would read of the same rows. The line of an
/// example is its row, from 1.
///
/// | a column of type | is |
/// |---|---|
/// | JSON, at any depth | the value that the text is: `datasets` 4.7, DuckDB and fastparquet write conversations so |
/// | string | a string, also where it holds JSON, as the arguments of tools of older data sets do |
/// | struct; map | an object; its keys are strings, numbers or truth values |
/// | decimal | a number, rounded to `f64` where JSON lines with the same digits would be |
/// | date, time, timestamp, UUID | a string |
/// | 32-bit float | the `f64` of the same value: 0.1 is 0.10000000149011612 |
/// | bytes, interval, NaN, a string that is not UTF-8, … | [`Json::NotJson`](super::Json::NotJson): an error if the column is read |
///
/// So a column that nobody reads never stops a file, nor does one whose pages cannot be read. A
/// struct has all its fields in every row: what a message lacks is null.
///
/// Some hundred rows are in memory at a time.
///
/// # Damaged files
///
/// A damaged file is an error. So is a panic of the crate `parquet` within it: it is caught, the
/// error names file, column and row group, and nothing is read from there on. Your panic hook has
/// run before: the usual one writes "thread … panicked at …" to standard error. With
/// `panic = "abort"` nothing can be caught, and the process ends.
#[derive(Debug, Clone)]
pub struct ParquetFile<F> {
    path: PathBuf,
    format: F,
}

impl<F> ParquetFile<F> {
    /// The file at `path`, whose rows have this format.
    ///
    /// `()` is the format of a file of which only [`raw`](Self::raw) rows are read.
    pub fn new(path: impl AsRef<Path>, format: F) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            format,
        }
    }

    /// The rows as they stand in the file, in order, each with its number from 1; the format is not
    /// used.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or is no Parquet file. Among the rows: no column of a row group can
    /// be read, and it says that it has more than 256 rows; the rest of them are left out, and the
    /// next row group follows.
    pub fn raw(
        self,
    ) -> Result<impl Iterator<Item = Result<(usize, Object), DataError>>, DataError> {
        let failed = |source| DataError::file(&self.path, source);
        let file = File::open(&self.path).map_err(failed)?;
        let rows = Rows::open(file).map_err(|source| failed(io::Error::other(source)))?;
        let path = self.path;
        Ok(rows.map(move |row| row.map_err(|text| DataError::file(&path, io::Error::other(text)))))
    }
}

impl<F: Format> ParquetFile<F> {
    /// The examples in order. A row that does not fit the format is an error, and followed by the
    /// others.
    ///
    /// # Errors
    ///
    /// As [`raw`](Self::raw); or a row does not fit the format.
    pub fn read(
        self,
    ) -> Result<impl Iterator<Item = Result<Example<Text, F::Label>, DataError>>, DataError> {
        let Self { path, format } = self;
        let rows = ParquetFile::new(&path, ()).raw()?;
        Ok(rows.map(move |row| {
            let (line, row) = row?;
            parse(&format, &path, line, row)
        }))
    }

    /// All examples at once.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), unless `on_error` is to skip the row.
    pub fn load(self, on_error: OnError) -> Result<Loaded<F::Label>, DataError> {
        Loaded::collect(self.read()?, on_error)
    }
}
