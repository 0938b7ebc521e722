//! Files of rows: which, how much of each, and what kind of rows they hold.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use burn_preference::data::{DataError, Format, JsonLines, Loaded, Object, OnError, ParquetFile};
use serde::{Serialize, Serializer};

use crate::columns::ColumnNames;

/// A file of rows, and the share of its groups that is taken.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSource {
    /// Path of the file.
    pub path: PathBuf,
    /// Share of the groups of rows, greater than 0 and at most 1.
    pub share: f64,
}

/// `PATH`, or `PATH:SHARE`.
impl FromStr for DataSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = text
            .rsplit_once(':')
            .and_then(|(path, share)| Some((path, share.parse::<f64>().ok()?)));
        let path = share.map_or(text, |(path, _)| path);
        if Path::new(path).is_dir() || Path::new(text).is_dir() {
            return Err(format!(
                "{path} is a folder: name its files, each by an option of its own"
            ));
        }
        match share {
            Some((path, share)) if !Path::new(text).exists() => {
                if share > 0.0 && share <= 1.0 {
                    let path = path.into();
                    return Ok(Self { path, share });
                }
                Err(format!("a share of {path} in (0, 1], found {share}"))
            }
            _ => Ok(Self {
                path: text.into(),
                share: 1.0,
            }),
        }
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match self.share {
            1.0 => Ok(()),
            share => write!(f, ":{share}"),
        }
    }
}

impl Serialize for DataSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The kind of a file's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// A chosen and a rejected completion.
    Pairs,
    /// A completion with a label.
    Unpaired,
    /// Lists of responses.
    Lists,
    /// A completion without a label, or a whole conversation.
    Demonstrations,
}

impl RowKind {
    /// The kind of the first row that can be read, by the columns it has; `None` if they are of no
    /// kind, or there is no row.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn of(path: &Path, names: &ColumnNames) -> Result<Option<Self>, DataError> {
        let Some(row) = raw(path)?.next() else {
            return Ok(None);
        };
        let has = |name: &str| row.get(name).is_some_and(|value| !value.is_null());
        let [chosen, rejected] = names.sides();
        Ok(if has(chosen) && has(rejected) {
            Some(Self::Pairs)
        } else if has(names.label()) {
            Some(Self::Unpaired)
        } else if has(names.responses()) {
            Some(Self::Lists)
        } else if has(names.completion()) || has(names.messages()) {
            Some(Self::Demonstrations)
        } else {
            None
        })
    }
}

impl fmt::Display for RowKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pairs => "pairs",
            Self::Unpaired => "unpaired completions",
            Self::Lists => "lists",
            Self::Demonstrations => "demonstrations",
        })
    }
}

/// The examples of a file.
pub(crate) fn load_rows<F: Format>(
    path: &Path,
    format: F,
    on_error: OnError,
) -> Result<Loaded<F::Label>, DataError> {
    if is_parquet(path) {
        ParquetFile::new(path, format).load(on_error)
    } else {
        JsonLines::new(path, format).load(on_error)
    }
}

/// The rows of a file that can be read, without a format.
pub(crate) fn raw(path: &Path) -> Result<Box<dyn Iterator<Item = Object>>, DataError> {
    let row = |row: Result<(usize, Object), DataError>| row.ok().map(|(_, row)| row);
    Ok(if is_parquet(path) {
        Box::new(ParquetFile::new(path, ()).raw()?.filter_map(row))
    } else {
        Box::new(JsonLines::new(path, ()).raw()?.filter_map(row))
    })
}

/// Whether a file begins as one of Parquet, whatever its name is.
fn is_parquet(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && &magic == b"PAR1"
}
