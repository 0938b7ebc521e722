//! Rows of a file as examples, whatever kind of file it is.

use std::path::Path;

use super::error::DataError;
use super::example::Example;
use super::format::Format;
use super::json::Object;
use super::message::Text;

/// The treatment of a row that cannot be read or tokenized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// The whole dataset fails: the default.
    #[default]
    Stop,
    /// The row is left out and reported. A file that cannot be read at all is an error still.
    Skip,
}

impl OnError {
    /// Whether this error is passed over.
    pub(super) fn skips(self, error: &DataError) -> bool {
        self == Self::Skip && error.is_about_a_row()
    }
}

/// All examples of a file, in memory, and the errors that were passed over.
#[derive(Debug)]
#[non_exhaustive]
pub struct Loaded<L> {
    /// The examples, in the order of the file.
    pub examples: Vec<Example<Text, L>>,
    /// The errors of the rows that were left out; with [`OnError::Stop`] there are none.
    pub skipped: Vec<DataError>,
}

impl<L> Loaded<L> {
    /// All examples, or those that are no error.
    pub(super) fn collect(
        all: impl Iterator<Item = Result<Example<Text, L>, DataError>>,
        on_error: OnError,
    ) -> Result<Self, DataError> {
        let (mut examples, mut skipped) = (Vec::new(), Vec::new());
        for example in all {
            match example {
                Ok(example) => examples.push(example),
                Err(error) if on_error.skips(&error) => skipped.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(Self { examples, skipped })
    }
}

/// The example of the row at `line` of the file at `path`.
pub(super) fn parse<F: Format>(
    format: &F,
    path: &Path,
    line: usize,
    row: Object,
) -> Result<Example<Text, F::Label>, DataError> {
    let columns: Vec<String> = row.iter().map(|(name, _)| name.to_owned()).collect();
    let mut example = format
        .parse(row)
        .map_err(|source| DataError::row(path, line, source.among(&columns)))?;
    example.line = Some(line);
    Ok(example)
}
