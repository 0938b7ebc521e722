//! Rows of a file, some at a time.

use std::fs::File;
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

/// The rows of a file, in order.
pub(super) struct Rows {
    file: Arc<File>,
    metadata: ParquetMetaData,
    columns: Vec<Column>,
    /// The row group that is read next.
    next_group: usize,
    /// Rows of the row group at hand that are not read yet.
    left: usize,
    /// Rows that are.
    ready: std::vec::IntoIter<Object>,
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
            ready: Vec::new().into_iter(),
        })
    }

    /// Reads the next rows; none at the end.
    fn fill(&mut self) {
        while self.left == 0 && self.next_group < self.metadata.num_row_groups() {
            let group = self.metadata.row_group(self.next_group);
            self.next_group += 1;
            self.left = usize::try_from(group.num_rows()).unwrap_or(0);
            for column in &mut self.columns {
                column.open(&self.file, group, self.left);
            }
        }
        let count = self.left.min(AT_ONCE);
        self.left -= count;
        let mut rows = vec![Object::default(); count];
        for column in &mut self.columns {
            for (row, value) in rows.iter_mut().zip(column.read(count)) {
                row.insert(column.name.clone(), value);
            }
        }
        self.ready = rows.into_iter();
    }
}

impl Iterator for Rows {
    type Item = Object;

    fn next(&mut self) -> Option<Object> {
        if self.ready.len() == 0 {
            self.fill();
        }
        self.ready.next()
    }
}

impl Column {
    /// Opens the leaves in a row group.
    fn open(&mut self, file: &Arc<File>, group: &RowGroupMetaData, rows: usize) {
        let leaf = |place: usize| {
            let chunk = group.column(self.first + place);
            let pages = Pages::new(Arc::clone(file), chunk, rows).map_err(|error| {
                format!(
                    "a column compressed by {} whose pages cannot be read ({error}); DuckDB may \
                     make JSON lines of it: `duckdb -c \"COPY (FROM 'rows.parquet') TO \
                     'rows.jsonl' (FORMAT json)\"`",
                    chunk.compression_codec()
                )
            })?;
            Ok(get_column_reader(chunk.column_descr_ptr(), Box::new(pages)))
        };
        self.readers = match &self.tree {
            Ok(_) => (0..self.leaves.len()).map(leaf).collect(),
            Err(_) => Ok(Vec::new()),
        };
    }

    /// The values of the next rows. Where the column cannot be read, each says why.
    fn read(&mut self, rows: usize) -> Vec<Json> {
        let description = match (&self.tree, &mut self.readers) {
            (Ok(tree), Ok(readers)) => {
                let leaves = readers.iter_mut().zip(&self.leaves);
                let leaves = leaves.map(|(reader, leaf)| leaf.read(reader, rows));
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
                    Err(error) => format!("a column that cannot be read ({error})"),
                }
            }
            (Err(description), _) => description.clone(),
            (_, Err(description)) => description.clone(),
        };
        // What follows it would be the values of other rows.
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
