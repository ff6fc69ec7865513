//! A small file of ours that holds one value over restarts.
//!
//! It is a memory, not a truth: one that cannot be read counts as empty, and one that cannot be written holds until we end
//! and is tried again.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use codex_control::files::{self, FileError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{info, warn};

/// A value, and the file that says what it is.
#[derive(Debug)]
pub(crate) struct Remembered<T> {
    path: PathBuf,
    value: T,
    /// Whether the file says something else.
    is_unwritten: bool,
}

impl<T: Default + Serialize + DeserializeOwned> Remembered<T> {
    /// Reads what was remembered, from a file of at most `bytes_max`. `otherwise` says what a file that cannot be used
    /// leads to.
    pub(crate) fn load(path: &Path, bytes_max: u64, otherwise: &str) -> Self {
        let read = files::read_bounded(path, bytes_max).map_err(|error| error.to_string());
        let parsed = read.and_then(|bytes| match bytes {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
            None => Ok(T::default()),
        });
        let value = parsed.unwrap_or_else(|error| {
            warn!(path = %path.display(), error, otherwise, "what was remembered cannot be read");
            T::default()
        });
        Self { path: path.to_owned(), value, is_unwritten: false }
    }

    /// The value, to be changed; [`write`](Self::write) comes after that.
    pub(crate) fn value_mut(&mut self) -> &mut T {
        &mut self.value
    }

    /// Whether it could not be written, and holds only until we end.
    pub(crate) fn is_unwritten(&self) -> bool {
        self.is_unwritten
    }

    /// Writes it down.
    pub(crate) fn write(&mut self) -> Result<(), FileError> {
        let text = serde_json::to_vec_pretty(&self.value).unwrap_or_default();
        let written = files::write_atomically(&self.path, &text, files::PRIVATE_FILE_MODE);
        self.is_unwritten = written.is_err();
        written
    }

    /// Tries again to write down what could not be.
    pub(crate) fn retry(&mut self) {
        if self.is_unwritten && self.write().is_ok() {
            info!(path = %self.path.display(), "what could not be written is remembered after all");
        }
    }
}

impl<T> Deref for Remembered<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
