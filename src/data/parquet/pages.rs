//! The pages of a column: those without values left out, and those by Zstandard unpacked without
//! its C library.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::ColumnChunkMetaData;
use ::parquet::file::reader::SerializedPageReader;

use crate::data::zstd::ZstdReader;

/// The pages of a column of a row group.
///
/// To the reader of columns a page without values is the end of them, and pyarrow writes such pages.
pub(super) struct Pages {
    pages: SerializedPageReader<File>,
    /// Of pages that are still compressed by Zstandard, the most bytes of one: those of the whole
    /// column.
    packed: Option<u64>,
}

impl Pages {
    pub(super) fn new(
        file: Arc<File>,
        chunk: &ColumnChunkMetaData,
        rows: usize,
    ) -> Result<Self, ParquetError> {
        let start = chunk.dictionary_page_offset();
        let start = start.unwrap_or_else(|| chunk.data_page_offset());
        if start < 0 || chunk.compressed_size() < 0 {
            let text = "its pages begin before the file";
            return Err(ParquetError::General(text.to_owned()));
        }
        let Compression::ZSTD(_) = chunk.compression() else {
            return Ok(Self {
                pages: SerializedPageReader::new(file, chunk, rows, None)?,
                packed: None,
            });
        };
        let packed = u64::try_from(chunk.uncompressed_size())?;
        // Their reader is told that nothing is compressed.
        let chunk = chunk.clone().into_builder();
        let chunk = chunk.set_compression(Compression::UNCOMPRESSED).build()?;
        Ok(Self {
            pages: SerializedPageReader::new(file, &chunk, rows, None)?,
            packed: Some(packed),
        })
    }
}

/// The same page with its content unpacked behind its levels, which may be stored as they are.
fn unpack(mut page: Page, most: u64) -> Result<Page, ParquetError> {
    let (packed, levels) = match &mut page {
        Page::DataPageV2 {
            is_compressed: false,
            ..
        } => return Ok(page),
        Page::DataPageV2 {
            buf,
            def_levels_byte_len,
            rep_levels_byte_len,
            ..
        } => {
            let levels = u64::from(*def_levels_byte_len) + u64::from(*rep_levels_byte_len);
            (buf, usize::try_from(levels)?)
        }
        Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => (buf, 0),
    };
    let (levels, content) = packed
        .split_at_checked(levels)
        .ok_or_else(|| ParquetError::EOF("a page is shorter than its levels".to_owned()))?;
    let mut unpacked = levels.to_vec();
    // A byte more than there may be, so that a page which is too long is seen.
    let bytes = ZstdReader::new(content)
        .take(most.saturating_add(1))
        .read_to_end(&mut unpacked)?;
    if bytes as u64 > most {
        let text = "a page is longer than its column";
        return Err(ParquetError::General(text.to_owned()));
    }
    *packed = unpacked.into();
    Ok(page)
}

impl Iterator for Pages {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        while let Some(page) = self.pages.get_next_page()? {
            if page.is_data_page() && page.num_values() == 0 {
                continue;
            }
            return match self.packed {
                Some(most) => unpack(page, most).map(Some),
                None => Ok(Some(page)),
            };
        }
        Ok(None)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        loop {
            match self.pages.peek_next_page()? {
                Some(page) if page.num_levels == Some(0) => self.pages.skip_next_page()?,
                page => return Ok(page),
            }
        }
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.peek_next_page()?;
        self.pages.skip_next_page()
    }
}
