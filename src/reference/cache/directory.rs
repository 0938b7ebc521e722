use std::fs;
use std::io;
use std::path::Path;

use super::error::CacheError;

/// Makes a directory that a loss of power does not take away.
pub(super) fn create(directory: &Path) -> Result<(), CacheError> {
    let parent = directory.parent().filter(|p| !p.as_os_str().is_empty());
    if directory.is_dir() {
        // A process may have been killed between making and syncing it. One that may write into it and
        // not read its parent cannot do better.
        return match sync_entries(parent) {
            Err(CacheError::File { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Ok(())
            }
            synced => synced,
        };
    }
    if let Some(parent) = parent {
        create(parent)?;
    }
    match fs::create_dir(directory) {
        // Another process was faster; whether it has synced is unknown, so that we do.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
        made => made.map_err(|e| CacheError::file(directory, e))?,
    }
    sync_entries(parent)
}

/// Syncs a parent: the name of a directory is an entry of it.
fn sync_entries(parent: Option<&Path>) -> Result<(), CacheError> {
    if cfg!(unix) {
        let parent = parent.unwrap_or(Path::new("."));
        fs::File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(|e| CacheError::file(parent, e))?;
    }
    Ok(())
}
