use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::columns::list;
use crate::error::InvalidInput;

/// A row that does not fit its format: the field, what was expected there and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{field}`: expected {expected}, found {found}")]
pub struct RowError {
    field: String,
    expected: String,
    found: String,
}

impl RowError {
    /// An error about `field`, a path such as `chosen[1].content`.
    pub fn new(field: impl Into<String>, expected: impl Display, found: impl Display) -> Self {
        Self {
            field: field.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// The same error; if its field is a column that is missing, with those that there are.
    pub(super) fn among(self, columns: &[String]) -> Self {
        if self.found != "nothing" || self.field.contains(['.', '[']) {
            return self;
        }
        let found = match columns {
            [] => "nothing in a row without columns".to_owned(),
            names => format!("nothing beside {}", list(names.iter().map(String::as_str))),
        };
        Self { found, ..self }
    }

    /// The path of the field.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// A description of what would have been accepted.
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// A description of what stands there.
    pub fn found(&self) -> &str {
        &self.found
    }
}

/// Data that cannot be used; each error says where.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A line is not a JSON object.
    #[error("{}:{line}: {}", path.display(), in_its_line(source))]
    Json {
        /// Path of the file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A field of a row is missing or of another kind.
    #[error("{}:{line}: {source}", path.display())]
    Row {
        /// Path of the file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The error about the field.
        source: RowError,
    },
    /// A line is longer than the limit of its file.
    #[error("{}:{line}: {}", path.display(), too_long(*max))]
    LongLine {
        /// Path of the file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The most bytes of a line.
        max: usize,
    },
    /// The tokenizer refused a text, or what it gave cannot be used.
    #[error("example {index}{}: {source}", line_suffix(*line))]
    Tokenizer {
        /// Index of the example in the dataset of texts.
        index: usize,
        /// Line of its row in the file, if it comes from one.
        line: Option<usize>,
        /// The tokenizer's error, or what is wrong with its answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A dataset below this one failed.
    #[error(transparent)]
    Dataset(#[from] burn::data::dataset::DatasetError),
    /// No other prompt's completion fits.
    #[error(
        "example {index}: there is no completion of another prompt that fits: mismatched \
         completions need two different prompts"
    )]
    NoMismatch {
        /// Index of the example in its dataset.
        index: usize,
    },
    /// A saved position belongs to another dataset.
    #[error("the position was saved in a dataset of {saved} examples, this one has {found}")]
    OtherDataset {
        /// Number of examples of the dataset that the position was saved in.
        saved: usize,
        /// Number of examples of the dataset at hand.
        found: usize,
    },
    /// An argument outside its range.
    #[error(transparent)]
    Input(#[from] InvalidInput),
}

/// The error that a dataset of this crate failed with.
fn inner(error: &burn::data::dataset::DatasetError) -> Option<&DataError> {
    std::error::Error::source(error)?.downcast_ref()
}

fn too_long(max: usize) -> String {
    format!("longer than {max} bytes; `JsonLines::with_max_line_bytes` raises the limit")
}

/// The error of a parser about one line: with its column, and not as the first line of a text.
fn in_its_line(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    match text.strip_suffix(&format!(" at line {line} column {column}")) {
        Some(text) => format!("{text} at column {column}"),
        None => text,
    }
}

/// The place of a row in its file, if it comes from one.
pub(super) fn line_suffix(line: Option<usize>) -> String {
    line.map_or(String::new(), |line| format!(" (line {line})"))
}

impl DataError {
    /// The line of the file, if it is about one.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Json { line, .. } | Self::Row { line, .. } | Self::LongLine { line, .. } => {
                Some(*line)
            }
            Self::Tokenizer { line, .. } => *line,
            Self::Dataset(error) => inner(error).and_then(Self::line),
            _ => None,
        }
    }

    /// The description of an error about a row, without the place of the row.
    pub(super) fn without_place(&self) -> String {
        match self {
            Self::Json { source, .. } => in_its_line(source),
            Self::Row { source, .. } => source.to_string(),
            Self::Tokenizer { source, .. } => source.to_string(),
            Self::LongLine { max, .. } => too_long(*max),
            Self::Dataset(error) => inner(error).map_or(self.to_string(), Self::without_place),
            _ => self.to_string(),
        }
    }

    /// Whether it is one row that is wrong, and others may be right.
    pub(super) fn is_about_a_row(&self) -> bool {
        match self {
            Self::Json { .. }
            | Self::Row { .. }
            | Self::LongLine { .. }
            | Self::Tokenizer { .. } => true,
            Self::Dataset(error) => inner(error).is_some_and(Self::is_about_a_row),
            _ => false,
        }
    }

    pub(super) fn row(path: &Path, line: usize, source: RowError) -> Self {
        let path = path.to_owned();
        Self::Row { path, line, source }
    }

    pub(super) fn file(path: &Path, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }
}
