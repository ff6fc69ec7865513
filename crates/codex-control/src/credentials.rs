//! The credentials store: one private file per endpoint.
//!
//! Only a worker (to use one) and `codexctl` (to store one) read or write here. The supervisor never does.

use std::path::Path;

use crate::files::{self, FileError};
use crate::paths::Paths;
use crate::{EndpointId, Secret};

/// Longest credential: OAuth documents are a few kilobytes.
pub const CREDENTIAL_BYTES_MAX: usize = 64 * 1024;

/// Why a credential cannot be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is nothing in it.
    #[error("the key is empty")]
    Empty,
    /// It is larger than [`CREDENTIAL_BYTES_MAX`].
    #[error("the key is longer than {CREDENTIAL_BYTES_MAX} bytes")]
    TooLong,
    /// It could not be put into an HTTP header.
    #[error(
        "the key holds characters that cannot be sent in an HTTP header (a line break in the middle, or non-ASCII)"
    )]
    NotHeaderSafe,
}

/// Stores `key` for `endpoint`, 0600, replacing what was there whole.
pub fn store(paths: &Paths, endpoint: &EndpointId, key: &str) -> Result<(), CredentialError> {
    let key = validated(key)?;
    files::create_private_folder(paths.config_folder())?;
    files::create_private_folder(&paths.credentials_folder())?;
    files::write_atomically(&paths.credential(endpoint), format!("{key}\n").as_bytes(), files::PRIVATE_FILE_MODE)?;
    Ok(())
}

/// Reads the stored credential of `endpoint`; `None` if there is none.
pub fn load(paths: &Paths, endpoint: &EndpointId) -> Result<Option<Secret>, CredentialError> {
    load_file(&paths.credential(endpoint))
}

/// Reads a credential from a file of the person's; `None` if it does not exist.
pub fn load_file(path: &Path) -> Result<Option<Secret>, CredentialError> {
    let Some(bytes) = files::read_bounded(path, CREDENTIAL_BYTES_MAX as u64)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|_| CredentialError::NotHeaderSafe)?;
    validated(&text).map(|key| Some(Secret::new(key.to_owned())))
}

/// Removes the stored credential of `endpoint`; says whether there was one.
pub fn remove(paths: &Paths, endpoint: &EndpointId) -> Result<bool, CredentialError> {
    let path = paths.credential(endpoint);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(FileError::Write { path, source }.into()),
    }
}

/// Checks a key as typed, piped or printed by a command, without the white space around it.
pub fn validated(key: &str) -> Result<&str, CredentialError> {
    let key = key.trim();
    if key.is_empty() {
        return Err(CredentialError::Empty);
    }
    if key.len() > CREDENTIAL_BYTES_MAX {
        return Err(CredentialError::TooLong);
    }
    if !key.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Err(CredentialError::NotHeaderSafe);
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_key_is_kept_private_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let paths =
            Paths::from_environment(&[("HOME", home), ("XDG_RUNTIME_DIR", home)].into_iter().collect()).unwrap();
        let id: EndpointId = "zai".parse().unwrap();
        assert!(load(&paths, &id).unwrap().is_none());
        store(&paths, &id, "  key-1\n").unwrap();
        store(&paths, &id, "key-2").unwrap();
        assert_eq!(load(&paths, &id).unwrap().unwrap().expose(), "key-2");
        assert_eq!(std::fs::metadata(paths.credential(&id)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(paths.credentials_folder()).unwrap().mode() & 0o777, 0o700);
        assert!(remove(&paths, &id).unwrap());
        assert!(!remove(&paths, &id).unwrap());
    }

    #[test]
    fn unusable_keys_are_refused() {
        assert!(matches!(validated(" \n"), Err(CredentialError::Empty)));
        assert!(matches!(validated("a\nb"), Err(CredentialError::NotHeaderSafe)));
        assert!(matches!(validated("schlüssel"), Err(CredentialError::NotHeaderSafe)));
        assert!(matches!(validated(&"k".repeat(CREDENTIAL_BYTES_MAX + 1)), Err(CredentialError::TooLong)));
    }
}
