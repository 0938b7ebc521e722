//! Pages that Zstandard compressed, unpacked without its C library.

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
pub(super) struct ZstdPages {
    /// The pages as they are stored: their reader is told that nothing is compressed.
    stored: SerializedPageReader<File>,
    /// The most bytes of a page, once it is unpacked: those of the whole column.
    most: u64,
}

impl ZstdPages {
    pub(super) fn new(
        file: Arc<File>,
        chunk: &ColumnChunkMetaData,
        rows: usize,
    ) -> Result<Self, ParquetError> {
        let most = u64::try_from(chunk.uncompressed_size())?;
        let chunk = chunk.clone().into_builder();
        let chunk = chunk.set_compression(Compression::UNCOMPRESSED).build()?;
        Ok(Self {
            stored: SerializedPageReader::new(file, &chunk, rows, None)?,
            most,
        })
    }

    /// The same page with its content unpacked behind the first bytes, which are not compressed.
    fn unpack(&self, mut page: Page) -> Result<Page, ParquetError> {
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
            } => (
                buf,
                *def_levels_byte_len as usize + *rep_levels_byte_len as usize,
            ),
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => (buf, 0),
        };
        let (levels, content) = packed
            .split_at_checked(levels)
            .ok_or_else(|| ParquetError::EOF("a page is shorter than its levels".to_owned()))?;
        let mut unpacked = levels.to_vec();
        // One byte more than there may be, so that a page which is too long is seen.
        let bytes = ZstdReader::new(content)
            .take(self.most + 1)
            .read_to_end(&mut unpacked)?;
        if bytes as u64 > self.most {
            let text = "a page is longer than its column";
            return Err(ParquetError::General(text.to_owned()));
        }
        *packed = unpacked.into();
        Ok(page)
    }
}

impl Iterator for ZstdPages {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for ZstdPages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        let page = self.stored.get_next_page()?;
        page.map(|page| self.unpack(page)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.stored.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.stored.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool, ParquetError> {
        self.stored.at_record_boundary()
    }
}
