//! Rows of a file, some at a time.

use std::any::Any;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use ::parquet::data_type::DataType;
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use ::parquet::schema::types::ColumnDescriptor;

use super::pages::Pages;
use super::tree::{Leaf, Tree};
use super::value::{Meaning, Unit, float, timestamp};
use crate::data::json::{Json, Object};

/// Rows that are read at once: a page is decoded for them, not a whole row group.
const AT_ONCE: usize = 256;

/// The rows of a file, in order, each with its number from 1.
pub(super) struct Rows {
    file: Arc<File>,
    metadata: ParquetMetaData,
    columns: Vec<Column>,
    /// The row group that is read next.
    next_group: usize,
    /// Rows of the row group at hand that are not read yet.
    left: usize,
    /// Whether others of it are.
    has_begun: bool,
    /// Rows that are.
    ready: std::vec::IntoIter<Object>,
    /// The number of the row before those.
    line: usize,
}

/// The result of `work`; a panic of the crate that reads Parquet is an error.
///
/// `work` owns what it changes, or its caller drops that after an error.
fn caught<T>(work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    let text = |panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref().cloned())
            .unwrap_or_default()
    };
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = format!("the crate parquet panicked: {}", text(panic));
        Err(ParquetError::General(text))
    })
}

/// A column of the rows: one or more columns of the file.
struct Column {
    name: String,
    /// The number of the first leaf in the file.
    first: usize,
    leaves: Vec<LeafType>,
    /// The type, or a description of what cannot be read.
    tree: Result<Tree, String>,
    /// The readers of the leaves in the row group at hand, or why there is none.
    readers: Result<Vec<ColumnReader>, String>,
}

/// The type of a leaf.
struct LeafType {
    meaning: Meaning,
    /// The definition level of a value that is there.
    most: i16,
}

impl LeafType {
    fn of(column: &ColumnDescriptor) -> Self {
        Self {
            meaning: Meaning::of(column),
            most: column.max_def_level(),
        }
    }
}

impl Rows {
    pub(super) fn open(file: File) -> Result<Self, ParquetError> {
        caught(|| Self::of(file))
    }

    fn of(file: File) -> Result<Self, ParquetError> {
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file)?;
        // A row has an entry in each leaf at least.
        let is_whole = |group: &RowGroupMetaData| {
            let mut leaves = group.columns().iter();
            group.num_rows() >= 0 && leaves.all(|leaf| leaf.num_values() >= group.num_rows())
        };
        if !metadata.row_groups().iter().all(is_whole) {
            let text = "it says that it has more rows than its columns have";
            return Err(ParquetError::General(text.to_owned()));
        }
        let schema = metadata.file_metadata().schema_descr();
        let mut columns: Vec<Column> = Vec::new();
        let mut leaf = 0;
        for (place, field) in schema.root_schema().get_fields().iter().enumerate() {
            let first = leaf;
            while leaf < schema.num_columns() && schema.get_column_root_idx(leaf) == place {
                leaf += 1;
            }
            let leaves = (first..leaf).map(|leaf| LeafType::of(&schema.column(leaf)));
            let tree = if first == leaf {
                Err("an object without fields".to_owned())
            } else {
                Tree::of(field)
            };
            let name = field.name().to_owned();
            if let Some(twin) = columns.iter_mut().find(|other| other.name == name) {
                twin.tree = Err("two columns of one name".to_owned());
                continue;
            }
            columns.push(Column {
                name,
                first,
                leaves: leaves.collect(),
                tree,
                readers: Ok(Vec::new()),
            });
        }
        Ok(Self {
            file: Arc::new(file),
            metadata,
            columns,
            next_group: 0,
            left: 0,
            has_begun: false,
            ready: Vec::new().into_iter(),
            line: 0,
        })
    }

    /// Reads the next rows; none at the end.
    ///
    /// # Errors
    ///
    /// The rest of a row group without a column that can be read: how many rows it has nobody knows
    /// but its header, which may say anything.
    fn fill(&mut self) -> Result<(), String> {
        while self.left == 0 && self.next_group < self.metadata.num_row_groups() {
            let group = self.metadata.row_group(self.next_group);
            self.next_group += 1;
            self.left = usize::try_from(group.num_rows()).unwrap_or(0);
            self.has_begun = false;
            for column in &mut self.columns {
                column.open(&self.file, group, self.next_group, self.left);
            }
        }
        if self.has_begun && self.left > 0 && !self.columns.iter().any(Column::is_readable) {
            let lost = std::mem::take(&mut self.left);
            let first = self.line + 1;
            self.line = self.line.saturating_add(lost);
            return Err(format!(
                "row group {}: none of its columns can be read, and it says that it has rows \
                 {first} to {}",
                self.next_group, self.line
            ));
        }
        let count = self.left.min(AT_ONCE);
        self.left -= count;
        self.has_begun = true;
        let mut rows = vec![Object::default(); count];
        for column in &mut self.columns {
            for (row, value) in rows.iter_mut().zip(column.read(self.next_group, count)) {
                row.insert(column.name.clone(), value);
            }
        }
        self.ready = rows.into_iter();
        Ok(())
    }
}

impl Iterator for Rows {
    type Item = Result<(usize, Object), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.len() == 0
            && let Err(error) = self.fill()
        {
            return Some(Err(error));
        }
        let row = self.ready.next()?;
        self.line += 1;
        Some(Ok((self.line, row)))
    }
}

impl Column {
    /// Opens the leaves in the row group of this number, from 1.
    fn open(&mut self, file: &Arc<File>, group: &RowGroupMetaData, number: usize, rows: usize) {
        let leaf = |place: usize| {
            let chunk = group.column(self.first + place);
            let opened = caught(|| {
                let pages = Pages::new(Arc::clone(file), chunk, rows)?;
                Ok(get_column_reader(chunk.column_descr_ptr(), Box::new(pages)))
            });
            opened.map_err(|error| {
                format!(
                    "a column compressed by {} whose pages in row group {number} cannot be read \
                     ({error}); DuckDB may make JSON lines of it: `duckdb -c \"COPY (FROM \
                     'rows.parquet') TO 'rows.jsonl' (FORMAT json)\"`",
                    chunk.compression_codec()
                )
            })
        };
        self.readers = match &self.tree {
            Ok(_) => (0..self.leaves.len()).map(leaf).collect(),
            Err(_) => Ok(Vec::new()),
        };
    }

    /// Whether the next rows may have values.
    fn is_readable(&self) -> bool {
        self.tree.is_ok() && self.readers.is_ok()
    }

    /// The values of the next rows, in the row group of this number. Where the column cannot be read,
    /// each says why.
    fn read(&mut self, group: usize, rows: usize) -> Vec<Json> {
        let description = match (&self.tree, &mut self.readers) {
            (Ok(tree), Ok(readers)) => {
                let leaves = readers.iter_mut().zip(&self.leaves);
                let leaves = leaves.map(|(reader, leaf)| caught(|| leaf.read(reader, rows)));
                let values = leaves
                    .collect::<Result<Vec<Leaf>, _>>()
                    .and_then(|mut leaves| {
                        let values = (0..rows).map(|_| tree.take(&mut leaves));
                        values
                            .collect::<Option<Vec<Json>>>()
                            .filter(|_| leaves.iter().all(Leaf::is_at_end))
                            .ok_or_else(|| ParquetError::EOF("other rows than it says".to_owned()))
                    });
                match values {
                    Ok(values) => return values,
                    Err(error) => {
                        format!("a column that cannot be read in row group {group} ({error})")
                    }
                }
            }
            (Err(description), _) => description.clone(),
            (_, Err(description)) => description.clone(),
        };
        // What follows it would be the values of other rows, and after a panic the readers may be
        // in any state.
        self.readers = Err(description.clone());
        vec![Json::NotJson(description); rows]
    }
}

impl LeafType {
    fn read(&self, reader: &mut ColumnReader, rows: usize) -> Result<Leaf, ParquetError> {
        let meaning = self.meaning;
        match reader {
            ColumnReader::BoolColumnReader(reader) => self.records(reader, rows, Json::Bool),
            ColumnReader::Int32ColumnReader(reader) => {
                self.records(reader, rows, |it| meaning.int32(it))
            }
            ColumnReader::Int64ColumnReader(reader) => {
                self.records(reader, rows, |it| meaning.int64(it))
            }
            ColumnReader::Int96ColumnReader(reader) => {
                self.records(reader, rows, |it| timestamp(it.to_millis(), Unit::Milli))
            }
            ColumnReader::FloatColumnReader(reader) => {
                self.records(reader, rows, |it| float(it.into()))
            }
            ColumnReader::DoubleColumnReader(reader) => self.records(reader, rows, float),
            ColumnReader::ByteArrayColumnReader(reader) => {
                self.records(reader, rows, |it| meaning.bytes(it))
            }
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                self.records(reader, rows, |it| meaning.bytes(it.into()))
            }
        }
    }

    fn records<T: DataType>(
        &self,
        reader: &mut ColumnReaderImpl<T>,
        rows: usize,
        json: impl Fn(T::T) -> Json,
    ) -> Result<Leaf, ParquetError> {
        let (mut definitions, mut repetitions, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let (_, _, entries) = reader.read_records(
            rows,
            Some(&mut definitions),
            Some(&mut repetitions),
            &mut values,
        )?;
        let values: Vec<Json> = values.into_iter().map(json).collect();
        Ok(Leaf {
            most: self.most,
            definitions,
            repetitions,
            entries,
            values: values.into_iter(),
            place: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        let at = |index: usize| [1, 2][index];
        let words = |work: &dyn Fn() -> usize| {
            let result = caught(|| Ok(work()));
            result.map_err(|error| error.to_string())
        };
        assert_eq!(words(&|| at(1)), Ok(2));
        let error = words(&|| at(2)).unwrap_err();
        assert!(
            error.ends_with(
                "the crate parquet panicked: index out of bounds: the len is 2 but the index is 2"
            ),
            "{error}"
        );
        let error = words(&|| panic!("a word")).unwrap_err();
        assert!(error.ends_with("panicked: a word"), "{error}");
    }
}
