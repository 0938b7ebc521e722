use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use ::parquet::file::serialized_reader::SerializedFileReader;
use ::parquet::record::reader::RowIter;
use ::parquet::record::{Field, Row};

use super::error::{DataError, RowError};
use super::example::Example;
use super::format::Format;
use super::json::{Json, Object};
use super::load::{Loaded, OnError, parse};
use super::message::Text;

/// A Parquet file, as Hugging Face's hub has it, uncompressed or compressed by Snappy (what pandas
/// and `datasets` write unless they are told otherwise).
///
/// Rows are what [`JsonLines`](super::JsonLines) would read: structs are objects, dates and
/// decimals strings. The line of an example is its row, from 1. A file is one row group in memory
/// at a time.
///
/// Structs of Parquet have all their fields in every row: a field that a message lacks is null, and
/// the arguments of one tool have the fields of all other tools. Data sets therefore keep arguments
/// as a string of JSON, and a string stays a string.
///
/// # Panics
///
/// Panics while it is read if the crate that reads Parquet panics on a damaged file: read what you
/// trust.
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
    /// The file cannot be opened or is no Parquet file; later, a value has no JSON, and the row is
    /// followed by the others; or a page is damaged or compressed by another method, and is the
    /// end.
    pub fn raw(
        self,
    ) -> Result<impl Iterator<Item = Result<(usize, Object), DataError>>, DataError> {
        let failed = |source: ::parquet::errors::ParquetError| {
            DataError::file(&self.path, io::Error::other(source))
        };
        let file = File::open(&self.path).map_err(|source| DataError::file(&self.path, source))?;
        let reader = SerializedFileReader::new(file).map_err(failed)?;
        let rows = RowIter::from_file_into(Box::new(reader));
        let mut broken = false;
        Ok(rows.zip(1..).map_while(move |(row, line)| {
            if broken {
                return None;
            }
            broken = row.is_err();
            let row = row.map_err(|source| DataError::file(&self.path, io::Error::other(source)));
            Some(row.and_then(|row| match object("", &row) {
                Ok(row) => Ok((line, row)),
                Err(source) => Err(DataError::row(&self.path, line, source)),
            }))
        }))
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

fn object(path: &str, row: &Row) -> Result<Object, RowError> {
    let fields = row.get_column_iter();
    let field = |(name, field): (&String, &Field)| {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        Ok((name.clone(), value(&path, field)?))
    };
    fields.map(field).collect()
}

fn value(path: &str, field: &Field) -> Result<Json, RowError> {
    let float = |number: f64| match Json::from(number) {
        Json::Null => Err(RowError::new(path, "a finite number", number)),
        number => Ok(number),
    };
    Ok(match field {
        Field::Null => Json::Null,
        Field::Bool(value) => Json::Bool(*value),
        Field::Byte(number) => Json::Number((*number).into()),
        Field::Short(number) => Json::Number((*number).into()),
        Field::Int(number) => Json::Number((*number).into()),
        Field::Long(number) => Json::Number((*number).into()),
        Field::UByte(number) => Json::Number((*number).into()),
        Field::UShort(number) => Json::Number((*number).into()),
        Field::UInt(number) => Json::Number((*number).into()),
        Field::ULong(number) => Json::Number((*number).into()),
        Field::Float16(number) => float(number.to_f64())?,
        Field::Float(number) => float((*number).into())?,
        Field::Double(number) => float(*number)?,
        Field::Str(text) => Json::String(text.clone()),
        Field::Group(row) => Json::Object(object(path, row)?),
        Field::ListInternal(list) => {
            let items = list.elements().iter().enumerate();
            let item = |(i, item)| value(&format!("{path}[{i}]"), item);
            Json::Array(items.map(item).collect::<Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let entries = map.entries().iter();
            let entry = |(key, field): &(Field, Field)| match key {
                Field::Str(name) => Ok((name.clone(), value(&format!("{path}.{name}"), field)?)),
                other => Err(RowError::new(path, "a map whose keys are strings", other)),
            };
            Json::Object(entries.map(entry).collect::<Result<_, _>>()?)
        }
        Field::Bytes(_) => {
            let expected = "anything but bytes, which JSON does not have: leave the column out";
            return Err(RowError::new(path, expected, "bytes"));
        }
        // Dates, times and decimals, as Parquet prints them.
        other => Json::String(other.to_string()),
    })
}
