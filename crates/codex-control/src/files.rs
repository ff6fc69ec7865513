//! Private folders and files that are whole or absent.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Mode of a folder only its owner may enter.
pub const PRIVATE_FOLDER_MODE: u32 = 0o700;
/// Mode of a file only its owner may read.
pub const PRIVATE_FILE_MODE: u32 = 0o600;

/// A file operation that failed, with the file it concerned.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Reading failed.
    #[error("`{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing failed; the file is as it was before.
    #[error("`{path}` cannot be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A folder could not be made or made private.
    #[error("the folder `{path}` cannot be made private")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is larger than its limit.
    #[error("`{path}` is larger than {bytes_max} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
}

/// Creates `path` and its missing parents with mode 0700; what exists stays as it is.
///
/// # Errors
/// [`FileError::Folder`] if it cannot be made.
pub fn create_missing_folders(path: &Path) -> Result<(), FileError> {
    let created = DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER_MODE).create(path);
    created.map_err(|source| FileError::Folder { path: path.to_owned(), source })
}

/// Creates `path` and its missing parents with mode 0700, and makes an existing `path` that we own private. Only for
/// folders that are the product's own.
///
/// # Errors
/// [`FileError::Folder`] if it cannot be made, or belongs to somebody else.
pub fn create_private_folder(path: &Path) -> Result<(), FileError> {
    let error = |source| FileError::Folder { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER_MODE).create(path).map_err(error)?;
    let metadata = fs::metadata(path).map_err(error)?;
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(error(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user")));
    }
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE_FOLDER_MODE)).map_err(error)?;
    }
    Ok(())
}

/// Replaces the content of `path` so that a reader, or a crash at any moment, sees the old or the new bytes, whole.
///
/// Writes a temporary in the same folder, syncs it, renames it over `path`, syncs the folder. `mode` is the mode of a
/// new file; an existing one keeps its own. A symbolic link is followed, so that the link itself survives.
///
/// # Errors
/// [`FileError::Write`]; the temporary is removed and `path` is as it was.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    replace(path, bytes, mode, true)
}

/// Like [`write_atomically`], for a file that means nothing after a reboot: nothing is synced, so a power cut may leave
/// anything, but no crash of a process can. Costs microseconds where syncing costs milliseconds.
///
/// # Errors
/// [`FileError::Write`]; the temporary is removed and `path` is as it was.
pub fn write_volatile(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    replace(path, bytes, mode, false)
}

fn replace(path: &Path, bytes: &[u8], mode: u32, sync: bool) -> Result<(), FileError> {
    let error = |source| FileError::Write { path: path.to_owned(), source };
    let target = match fs::canonicalize(path) {
        Ok(resolved) => resolved,
        Err(source) if source.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(source) => return Err(error(source)),
    };
    let folder = folder_of(&target);
    let mode = fs::metadata(&target).map_or(mode, |metadata| metadata.mode() & 0o7777);
    let (temporary, mut file) = create_temporary(folder, &target, mode).map_err(error)?;
    let synced = |file: &File| if sync { file.sync_all() } else { Ok(()) };
    let written = file
        .set_permissions(fs::Permissions::from_mode(mode))
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| synced(&file))
        .and_then(|()| fs::rename(&temporary, &target))
        .and_then(|()| synced(&File::open(folder)?));
    if let Err(source) = written {
        // The rename may have failed or never been reached; either way the temporary is litter of ours.
        let _ = fs::remove_file(&temporary);
        return Err(error(source));
    }
    Ok(())
}

/// Creates `path` with `bytes` and mode 0600 unless it exists; says whether it was created.
///
/// # Errors
/// [`FileError::Write`].
pub fn create_private_once(path: &Path, bytes: &[u8]) -> Result<bool, FileError> {
    let error = |source| FileError::Write { path: path.to_owned(), source };
    let folder = folder_of(path);
    let (temporary, mut file) = create_temporary(folder, path, PRIVATE_FILE_MODE).map_err(error)?;
    // A hard link, unlike a rename, fails when the name is taken: the first of two racing writers wins.
    let linked = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&temporary, path));
    let _ = fs::remove_file(&temporary);
    match linked {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(error(source)),
    }
}

/// The folder that holds `path`; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads `path` whole, at most `bytes_max` bytes; `None` if it does not exist.
///
/// # Errors
/// [`FileError::Read`], [`FileError::TooLarge`].
pub fn read_bounded(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, FileError> {
    let error = |source| FileError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > bytes_max {
        return Err(FileError::TooLarge { path: path.to_owned(), bytes_max });
    }
    Ok(Some(bytes))
}

/// Tries before giving up on a free temporary name; each try draws another random name.
const TEMPORARY_NAME_TRIES: u32 = 16;

fn create_temporary(folder: &Path, target: &Path, mode: u32) -> io::Result<(PathBuf, File)> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    for _ in 0..TEMPORARY_NAME_TRIES {
        let temporary = folder.join(format!(".{name}.{:08x}.tmp", getrandom::u32().map_err(io::Error::other)?));
        match OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|file| (temporary, file)),
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "no free temporary name"))
}

/// Removes the temporaries that writers have left in `folder` who were killed in the middle, and that are at least
/// `min_age` old: nobody writes that long. Says how many those were; what cannot be read or removed is left.
pub fn remove_left_temporaries(folder: &Path, min_age: Duration) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let is_left = |entry: &fs::DirEntry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        // One from the future, by a clock that was set back, is not young for ever.
        let age = metadata.modified().ok()?.elapsed().unwrap_or(min_age);
        Some(age >= min_age)
    };
    let left = entries.flatten().filter(|entry| is_temporary(&entry.file_name()) && is_left(entry) == Some(true));
    left.filter(|entry| fs::remove_file(entry.path()).is_ok()).count()
}

/// Whether the name is one that [`create_temporary`] makes.
fn is_temporary(name: &OsStr) -> bool {
    let inner = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(".tmp"));
    let number = inner.and_then(|inner| Some(inner.rsplit_once('.').filter(|(name, _)| !name.is_empty())?.1));
    number.is_some_and(|number| number.len() == 8 && number.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporaries_of_killed_writers_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (left, _file) = create_temporary(folder.path(), Path::new("registry.json"), PRIVATE_FILE_MODE).unwrap();
        let others =
            [".registry.json.tmp", ".registry.json.0123456g.tmp", "registry.json.01234567.tmp", ".01234567.tmp", "a"];
        for name in others {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join(".folder.01234567.tmp")).unwrap();
        assert_eq!(remove_left_temporaries(folder.path(), Duration::from_hours(1)), 0, "it may be in use");
        assert!(left.exists());
        assert_eq!(remove_left_temporaries(folder.path(), Duration::ZERO), 1);
        assert_eq!(names(folder.path()).len(), others.len() + 1);
        assert_eq!(remove_left_temporaries(&folder.path().join("none"), Duration::ZERO), 0);
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_replaces_whole_and_leaves_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomically(&path, b"one", 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        write_atomically(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640, "an existing file keeps its mode");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn a_symbolic_link_survives_a_write() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_atomically(&link, b"new", 0o600).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("is-a-folder");
        fs::create_dir(&path).unwrap();
        assert!(matches!(write_atomically(&path, b"x", 0o600), Err(FileError::Write { .. })));
        assert_eq!(names(folder.path()), ["is-a-folder"]);
    }

    #[test]
    fn the_first_writer_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("once");
        assert!(create_private_once(&path, b"a").unwrap());
        assert!(!create_private_once(&path, b"b").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"a");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, PRIVATE_FILE_MODE);
        assert_eq!(names(folder.path()), ["once"]);
    }

    #[test]
    fn reads_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(read_bounded(&path, 3).unwrap().is_none());
        fs::write(&path, "abc").unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap().as_deref(), Some(&b"abc"[..]));
        assert!(matches!(read_bounded(&path, 2), Err(FileError::TooLarge { bytes_max: 2, .. })));
    }

    #[test]
    fn a_bare_name_is_in_this_folder() {
        assert_eq!(folder_of(Path::new("token")), Path::new("."));
        assert_eq!(folder_of(Path::new("a/token")), Path::new("a"));
    }

    #[test]
    fn folders_are_made_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        create_private_folder(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        create_missing_folders(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o755, "a folder of somebody else's stays as it is");
        create_private_folder(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, PRIVATE_FOLDER_MODE);
    }
}
