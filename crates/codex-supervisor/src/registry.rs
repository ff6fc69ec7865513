//! The PID registry: which processes are ours, for the next supervisor and for a person.
//!
//! It is a cache of what is known in memory. Whoever reads it believes nothing without proof: an entry names a process
//! only if a process with exactly that [`Identity`] lives. A file that cannot be read counts as empty.

use std::net::SocketAddr;
use std::path::Path;

use codex_control::EndpointId;
use codex_control::files::{self, FileError, PRIVATE_FILE_MODE};
use codex_control::process::Identity;
use codex_control::session::Session;
use serde::{Deserialize, Serialize};
use tracing::warn;

/// Version of the file's form.
const VERSION: u32 = 1;
/// Largest registry that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registry {
    version: u32,
    /// The supervisor that wrote it.
    pub(crate) supervisor: SupervisorEntry,
    /// Its workers.
    pub(crate) workers: Vec<WorkerEntry>,
    /// Codex, where it was started by `codexctl launch`.
    #[serde(default)]
    pub(crate) sessions: Vec<SessionEntry>,
}

/// A supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SupervisorEntry {
    /// Its process.
    pub(crate) identity: Identity,
    /// Version of its program.
    pub(crate) build: String,
    /// Unix milliseconds of its start.
    pub(crate) started_at_ms: u64,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerEntry {
    /// Its endpoint.
    pub(crate) endpoint: EndpointId,
    /// Which start of that endpoint's worker.
    pub(crate) generation: u64,
    /// Its process.
    pub(crate) identity: Identity,
    /// Address of the listener it was given.
    pub(crate) address: SocketAddr,
    /// Unix milliseconds of its start.
    pub(crate) started_at_ms: u64,
    /// Whether it has been told to end.
    pub(crate) leaving: bool,
    /// [`fingerprint`] of what it was told to serve.
    pub(crate) fingerprint: String,
}

/// A session of Codex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionEntry {
    /// What its launcher said.
    pub(crate) session: Session,
    /// What was seen below its launcher and its Codex.
    pub(crate) members: Vec<Identity>,
}

impl Registry {
    /// What stands in the file now.
    pub(crate) fn new(supervisor: SupervisorEntry, workers: Vec<WorkerEntry>, sessions: Vec<SessionEntry>) -> Self {
        Self { version: VERSION, supervisor, workers, sessions }
    }

    /// Reads the registry of an earlier supervisor; `None` if there is none that can be used.
    pub(crate) fn load(path: &Path) -> Option<Self> {
        let bytes = match files::read_bounded(path, FILE_BYTES_MAX) {
            Ok(bytes) => bytes?,
            Err(error) => {
                warn!(%error, "the registry of an earlier supervisor cannot be read");
                return None;
            }
        };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(registry) if registry.version == VERSION => Some(registry),
            Ok(registry) => {
                warn!(version = registry.version, "the registry of an earlier supervisor has another form");
                None
            }
            Err(error) => {
                warn!(%error, "the registry of an earlier supervisor is damaged");
                None
            }
        }
    }

    /// Replaces the file.
    pub(crate) fn store(&self, path: &Path) -> Result<(), FileError> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        files::write_volatile(path, &text, PRIVATE_FILE_MODE)
    }
}

/// A short name of what a worker serves, equal for equal settings of the same program version.
///
/// 64-bit FNV-1a (Fowler, Noll, Vo) over the JSON form: whoever could forge a match owns the settings already.
pub(crate) fn fingerprint(served: &impl Serialize) -> String {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let text = serde_json::to_vec(served).unwrap_or_default();
    let hash = text.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use codex_control::process;

    use super::*;

    fn registry() -> Registry {
        let identity = process::own_identity().unwrap();
        let supervisor = SupervisorEntry { identity: identity.clone(), build: "0".to_owned(), started_at_ms: 1 };
        let worker = WorkerEntry {
            endpoint: "zai".parse().unwrap(),
            generation: 3,
            identity,
            address: "127.0.0.1:20000".parse().unwrap(),
            started_at_ms: 2,
            leaving: false,
            fingerprint: fingerprint(&"x"),
        };
        Registry::new(supervisor, vec![worker], Vec::new())
    }

    #[test]
    fn a_registry_survives_its_file_and_damage_means_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.json");
        assert_eq!(Registry::load(&path), None);
        let registry = registry();
        registry.store(&path).unwrap();
        assert_eq!(Registry::load(&path), Some(registry));
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() - 2 {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(Registry::load(&path), None, "cut at {length}");
        }
        let text = String::from_utf8(whole).unwrap().replace("\"version\": 1", "\"version\": 99");
        std::fs::write(&path, text).unwrap();
        assert_eq!(Registry::load(&path), None);
    }

    #[test]
    fn fingerprints_tell_settings_apart() {
        assert_eq!(fingerprint(&"a"), fingerprint(&"a"));
        assert_ne!(fingerprint(&"a"), fingerprint(&"b"));
    }
}
