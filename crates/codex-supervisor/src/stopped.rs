//! Which endpoints the person has stopped: remembered over restarts, since a stop that undoes itself is none.

use std::collections::BTreeSet;
use std::path::Path;

use codex_control::EndpointId;
use codex_control::files::FileError;

use crate::remembered::Remembered;

/// Largest memory file that is read.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Stopped {
    ids: Remembered<BTreeSet<EndpointId>>,
}

impl Stopped {
    /// Reads what was remembered. A file that cannot be used counts as empty: everything runs, as the settings say.
    pub(crate) fn load(path: &Path) -> Self {
        Self { ids: Remembered::load(path, FILE_BYTES_MAX, "everything runs, as the settings say") }
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
        let ids = self.ids.value_mut();
        let changed = if stopped { ids.insert(id.clone()) } else { ids.remove(id) };
        if changed || self.ids.is_unwritten() { self.ids.write() } else { Ok(()) }
    }

    /// Tries again to write down what could not be.
    pub(crate) fn retry(&mut self) {
        self.ids.retry();
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
