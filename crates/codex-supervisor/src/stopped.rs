//! Which endpoints the person has stopped: remembered over restarts, since a stop that undoes itself is none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use codex_control::EndpointId;
use codex_control::files::{self, FileError};
use tracing::{info, warn};

/// Largest memory file that is read.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Stopped {
    path: PathBuf,
    ids: BTreeSet<EndpointId>,
    /// Whether the file says something else.
    is_unwritten: bool,
}

impl Stopped {
    /// Reads what was remembered. A file that cannot be used counts as empty: everything runs, as the settings say.
    pub(crate) fn load(path: &Path) -> Self {
        let ids = match files::read_bounded(path, FILE_BYTES_MAX) {
            Ok(None) => BTreeSet::new(),
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!(path = %path.display(), %error, "remembered stops cannot be read");
                BTreeSet::new()
            }),
            Err(error) => {
                warn!(%error, "remembered stops cannot be read");
                BTreeSet::new()
            }
        };
        Self { path: path.to_owned(), ids, is_unwritten: false }
    }

    /// Whether the person has stopped `id`.
    pub(crate) fn contains(&self, id: &EndpointId) -> bool {
        self.ids.contains(id)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &EndpointId> {
        self.ids.iter()
    }

    /// Remembers that `id` is stopped, or that it is not.
    ///
    /// # Errors
    /// If it cannot be written down; it holds until the supervisor ends all the same, and is tried again.
    pub(crate) fn set(&mut self, id: &EndpointId, stopped: bool) -> Result<(), FileError> {
        let changed = if stopped { self.ids.insert(id.clone()) } else { self.ids.remove(id) };
        if changed || self.is_unwritten { self.write() } else { Ok(()) }
    }

    /// Tries again to write down what could not be.
    pub(crate) fn retry(&mut self) {
        if self.is_unwritten && self.write().is_ok() {
            info!(path = %self.path.display(), "stops are remembered again");
        }
    }

    fn write(&mut self) -> Result<(), FileError> {
        let text = serde_json::to_vec_pretty(&self.ids).unwrap_or_default();
        let written = files::write_atomically(&self.path, &text, files::PRIVATE_FILE_MODE);
        self.is_unwritten = written.is_err();
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stopped.json");
        let id: EndpointId = "zai".parse().unwrap();
        let mut stopped = Stopped::load(&path);
        stopped.set(&id, true).unwrap();
        assert!(Stopped::load(&path).contains(&id));
        stopped.set(&id, false).unwrap();
        assert!(!Stopped::load(&path).contains(&id));
        std::fs::write(&path, "{").unwrap();
        assert!(!Stopped::load(&path).contains(&id));
    }

    #[test]
    fn a_stop_that_cannot_be_written_holds_and_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stopped.json");
        let id: EndpointId = "zai".parse().unwrap();
        let mut stopped = Stopped::load(&path);
        // Nothing can be renamed over a folder that is not empty, whoever tries.
        std::fs::create_dir_all(path.join("in the way")).unwrap();
        stopped.set(&id, true).unwrap_err();
        assert!(stopped.contains(&id));
        stopped.retry();
        std::fs::remove_dir_all(&path).unwrap();
        stopped.retry();
        assert!(Stopped::load(&path).contains(&id));
        // What is no news is not written.
        std::fs::remove_file(&path).unwrap();
        stopped.set(&id, true).unwrap();
        stopped.retry();
        assert!(!path.exists());
    }
}
