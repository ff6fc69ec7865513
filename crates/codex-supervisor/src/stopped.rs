//! Which endpoints the person has stopped: remembered over restarts, since a stop that undoes itself is none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use codex_control::EndpointId;
use codex_control::files::{self, FileError};
use tracing::warn;

/// Largest memory file that is read.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Stopped {
    path: PathBuf,
    ids: BTreeSet<EndpointId>,
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
        Self { path: path.to_owned(), ids }
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
    /// If it cannot be written down; it holds until the supervisor ends all the same.
    pub(crate) fn set(&mut self, id: &EndpointId, stopped: bool) -> Result<(), FileError> {
        let changed = if stopped { self.ids.insert(id.clone()) } else { self.ids.remove(id) };
        if !changed {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&self.ids).unwrap_or_default();
        files::write_atomically(&self.path, &text, files::PRIVATE_FILE_MODE)
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
}
