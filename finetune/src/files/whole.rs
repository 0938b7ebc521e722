//! Files and folders that appear under their names when all of them is written.

use std::fs;
use std::io;
use std::path::Path;

use super::error::{WeightError, file};

/// Writes a file or a folder that appears when all of it is written: `write` gets a place beside
/// `to`, which is renamed behind it, or removed after an error.
///
/// # Errors
///
/// `write` fails, or the place cannot be renamed.
pub fn write_whole<E: From<WeightError>>(
    to: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let scratch = to.with_file_name(format!(".{name}.{}", std::process::id()));
    let renamed = |()| Ok(fs::rename(&scratch, to).map_err(file(to))?);
    let written = write(&scratch).and_then(renamed);
    if written.is_err() {
        // The error that comes first matters.
        let _ = if scratch.is_dir() {
            fs::remove_dir_all(&scratch)
        } else {
            fs::remove_file(&scratch)
        };
    }
    written
}

/// Writes a folder by [`write_whole`] that is not there yet: `fill` gets the empty one.
pub(crate) fn write_folder<E: From<WeightError>>(
    to: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    if to.exists() {
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(file(to)(source).into());
    }
    write_whole(to, |folder| {
        fs::create_dir_all(folder).map_err(file(folder))?;
        fill(folder)
    })
}
