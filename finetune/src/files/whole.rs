//! Files and folders that appear under their names when all of them is written, and that a loss of
//! power does not take away again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{WeightError, file};

/// Writes a file or a folder that appears when all of it is on the disk: `write` gets a place beside
/// `to`, which is [published](publish) behind it, or removed after an error. A process that is killed
/// meanwhile leaves this place, `.NAME.PID`.
///
/// # Errors
///
/// `write` fails, or as [`publish`].
pub fn write_whole<E: From<WeightError>>(
    to: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let scratch = hidden(to, &format!(".{}", std::process::id()));
    let published = |()| Ok(publish(&scratch, to)?);
    let written = write(&scratch).and_then(published);
    if written.is_err() {
        // The error that comes first matters.
        let _ = remove(&scratch);
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

/// Gives a file or a folder its name, for good: all of it is synced to the disk first, then renamed
/// (a file replaces another one), and then the folder of the new name is synced.
///
/// # Errors
///
/// A file cannot be synced, or the place cannot be renamed. If the last sync fails, `to` is there, and
/// a loss of power may take it away.
pub fn publish(from: &Path, to: &Path) -> Result<(), WeightError> {
    sync_all(from)?;
    fs::rename(from, to).map_err(file(to))?;
    sync_name(to)
}

/// Makes a folder, with those above it, that a loss of power does not take away; nothing if it is
/// there.
///
/// # Errors
///
/// A folder cannot be made or synced.
pub fn create_folder(folder: &Path) -> Result<(), WeightError> {
    if folder.is_dir() {
        // A process may have been killed between making and syncing it. One that may write into it and
        // not read the folder above cannot do better.
        return match sync_name(folder) {
            Err(WeightError::File { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Ok(())
            }
            synced => synced,
        };
    }
    create_folder(parent(folder))?;
    match fs::create_dir(folder) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made.map_err(file(folder))?,
    }
    sync_name(folder)
}

/// Removes a file, or a folder with everything in it.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

/// Removes what killed processes have left in a folder where [`write_whole`] wrote these names.
pub(crate) fn remove_scratch(
    folder: &Path,
    is_written: impl Fn(&str) -> bool,
) -> Result<(), WeightError> {
    for entry in fs::read_dir(folder).map_err(file(folder))? {
        let entry = entry.map_err(file(folder))?;
        let is_scratch = entry.file_name().to_str().is_some_and(|name| {
            let name = name
                .strip_prefix('.')
                .and_then(|name| name.rsplit_once('.'));
            name.is_some_and(|(name, process)| process.parse::<u32>().is_ok() && is_written(name))
        });
        if is_scratch {
            let path = entry.path();
            remove(&path).map_err(file(&path))?;
        }
    }
    Ok(())
}

/// The hidden name beside `path` with this end; one dot for a name that is hidden already.
pub(crate) fn hidden(path: &Path, end: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_prefix('.').unwrap_or(&name);
    path.with_file_name(format!(".{name}{end}"))
}

/// The folder that a path stands in.
pub(crate) fn parent(path: &Path) -> &Path {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Syncs a file, or a folder with everything in it.
fn sync_all(path: &Path) -> Result<(), WeightError> {
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(file(path))? {
            sync_all(&entry.map_err(file(path))?.path())?;
        }
        return sync_folder(path);
    }
    let written = fs::File::open(path).map_err(file(path))?;
    written.sync_all().map_err(file(path))
}

/// Syncs a name, which is an entry of its folder.
fn sync_name(path: &Path) -> Result<(), WeightError> {
    sync_folder(parent(path))
}

/// Other systems than Unix do not open folders.
fn sync_folder(folder: &Path) -> Result<(), WeightError> {
    if cfg!(unix) {
        let opened = fs::File::open(folder).and_then(|folder| folder.sync_all());
        opened.map_err(file(folder))?;
    }
    Ok(())
}
