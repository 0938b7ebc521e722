//! One immutable file of log-probabilities: a burnpack container whose name is the hash of its
//! content.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use burn_pack::{Bytes, DType, Reader, Tensor, Writer};

use super::error::CacheError;
use super::fingerprint::Fingerprint;
use super::key::{Key, VERSION};

pub(super) const EXTENSION: &str = burn_pack::EXTENSION;
const FORMAT: &str = "burn-preference reference cache";

/// The log-probability of a sequence, and how many tokens it sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CachedLogProb {
    pub(super) sum: f64,
    pub(super) length: u32,
}

/// Keys, sums and lengths as bytes, in this order.
type Columns = [(&'static str, DType, Vec<usize>, Vec<u8>); 3];

fn columns(entries: &[(Key, CachedLogProb)]) -> Columns {
    let n = entries.len();
    let keys = entries.iter().flat_map(|(key, _)| *key).collect();
    let sums = entries.iter().flat_map(|(_, e)| e.sum.to_le_bytes());
    let lengths = entries.iter().flat_map(|(_, e)| e.length.to_le_bytes());
    [
        ("keys", DType::U8, vec![n, size_of::<Key>()], keys),
        ("sums", DType::F64, vec![n], sums.collect()),
        ("lengths", DType::U32, vec![n], lengths.collect()),
    ]
}

/// The name of the file that holds these columns.
fn name<'a>(fingerprint: &Fingerprint, columns: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(VERSION.as_bytes());
    hasher.update(fingerprint.to_string().as_bytes());
    for column in columns {
        hasher.update(&(column.len() as u64).to_le_bytes());
        hasher.update(column);
    }
    format!("{}.{EXTENSION}", hasher.finalize().to_hex())
}

pub(super) fn write(
    directory: &Path,
    fingerprint: &Fingerprint,
    entries: &[(Key, CachedLogProb)],
) -> Result<OsString, CacheError> {
    let columns = columns(entries);
    let name = name(fingerprint, columns.iter().map(|c| &*c.3));
    let path = directory.join(&name);
    let tensors = columns.map(|(name, dtype, shape, bytes)| {
        Tensor::new(
            name.to_owned(),
            dtype,
            shape,
            None,
            Bytes::from_bytes_vec(bytes),
        )
    });
    // Beside its place, synced, renamed, and then the directory synced, so that the new name, too,
    // survives a loss of power. The same content twice is the same file.
    Writer::new(tensors.into())
        .with_metadata("format", FORMAT)
        .with_metadata("version", VERSION)
        .with_metadata("fingerprint", &fingerprint.to_string())
        .write_to_file(&path)
        .map_err(|error| CacheError::file(&path, io::Error::other(error)))?;
    Ok(name.into())
}

pub(super) fn read(
    path: &Path,
    fingerprint: &Fingerprint,
) -> Result<Vec<(Key, CachedLogProb)>, CacheError> {
    let bytes = fs::read(path).map_err(|e| CacheError::file(path, e))?;
    let torn = |found: String| CacheError::Torn {
        path: path.to_owned(),
        found,
    };
    let foreign = |found: String| CacheError::Foreign {
        path: path.to_owned(),
        found,
    };
    let reader = match Reader::from_bytes(Bytes::from_bytes_vec(bytes)) {
        Ok(reader) => reader,
        Err(error @ burn_pack::Error::InvalidMagicNumber) => {
            return Err(foreign(error.to_string()));
        }
        Err(error) => return Err(torn(error.to_string())),
    };
    let metadata = |key: &str| reader.metadata().get(key).cloned().unwrap_or_default();
    if metadata("format") != FORMAT {
        return Err(foreign("a burnpack file of something else".to_owned()));
    }
    if metadata("version") != VERSION {
        return Err(CacheError::Outdated {
            path: path.to_owned(),
            found: metadata("version"),
            expected: VERSION,
        });
    }
    if metadata("fingerprint") != fingerprint.to_string() {
        return Err(foreign(format!("of the model {}", metadata("fingerprint"))));
    }
    let column = |name: &str| reader.tensor_data(name).map_err(|e| torn(e.to_string()));
    let [keys, sums, lengths] = [column("keys")?, column("sums")?, column("lengths")?];
    let expected = self::name(fingerprint, [&*keys, &sums, &lengths].into_iter());
    if path.file_name() != Some(expected.as_ref()) {
        return Err(torn(format!("by its content its name is {expected}")));
    }
    let entries = keys.as_chunks().0.iter().zip(sums.as_chunks().0);
    Ok(entries
        .zip(lengths.as_chunks().0)
        .map(|((key, sum), length)| {
            let value = CachedLogProb {
                sum: f64::from_le_bytes(*sum),
                length: u32::from_le_bytes(*length),
            };
            (*key, value)
        })
        .collect())
}
