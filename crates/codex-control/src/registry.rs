//! The PID registry: which processes are ours, for the next supervisor and for a person.
//!
//! It is a cache of what is known in memory. Whoever reads it believes nothing without proof: an entry names a process
//! only if a process with exactly that [`Identity`] lives.
//!
//! JSON, with a checksum of all bytes before it as its last member: a file that was cut, or has another byte anywhere, is
//! found to be damaged, and none of it is used.

use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::EndpointId;
use crate::files::{self, FileError, PRIVATE_FILE_MODE};
use crate::process::Identity;
use crate::session::Session;

/// Version of the file's form.
const VERSION: u32 = 2;
/// Largest registry that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    version: u32,
    /// The supervisor that wrote it.
    pub supervisor: SupervisorEntry,
    /// Its workers.
    pub workers: Vec<WorkerEntry>,
    /// Codex, where it was started by `codexctl launch`.
    #[serde(default)]
    pub sessions: Vec<SessionEntry>,
    /// Endpoints whose workers keep ending.
    #[serde(default)]
    pub crashes: Vec<CrashesEntry>,
}

/// A supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorEntry {
    /// Its process.
    pub identity: Identity,
    /// Version of its program.
    pub build: String,
    /// Unix milliseconds of its start.
    pub started_at_ms: u64,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerEntry {
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Which start of that endpoint's worker.
    pub generation: u64,
    /// Its process.
    pub identity: Identity,
    /// Address of the listener it was given.
    pub address: SocketAddr,
    /// Unix milliseconds of its start.
    pub started_at_ms: u64,
    /// Whether it has been told to end.
    pub leaving: bool,
    /// [`fingerprint`] of what it was told to serve.
    pub fingerprint: String,
}

/// A session of Codex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEntry {
    /// What its launcher said.
    pub session: Session,
    /// What was seen below its launcher and its Codex.
    pub members: Vec<Identity>,
}

/// How often the worker of an endpoint has crashed: a supervisor that is killed meanwhile does not make that forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashesEntry {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// [`fingerprint`] of what crashes; something else has not crashed yet.
    pub fingerprint: String,
    /// Crashes with no health in between.
    pub in_a_row: u32,
    /// Unix milliseconds of the latest ones.
    pub at_ms: Vec<u64>,
    /// Whether restarts are slow because of them.
    pub is_tripped: bool,
}

impl Registry {
    /// What stands in the file now.
    pub fn new(
        supervisor: SupervisorEntry,
        workers: Vec<WorkerEntry>,
        sessions: Vec<SessionEntry>,
        crashes: Vec<CrashesEntry>,
    ) -> Self {
        Self { version: VERSION, supervisor, workers, sessions, crashes }
    }

    /// Reads the file.
    pub fn load(path: &Path) -> Loaded {
        let bytes = match files::read_bounded(path, FILE_BYTES_MAX) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Loaded::Absent,
            Err(error) => return Loaded::Damaged(crate::report::chain(&error)),
        };
        Self::parse(&bytes)
            .map_or_else(|reason| Loaded::Damaged(reason.to_owned()), |registry| Loaded::Good(Box::new(registry)))
    }

    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let tail_at = bytes.len().checked_sub(tail(0).len()).ok_or("it is cut")?;
        let (body, found) = bytes.split_at(tail_at);
        if found != tail(fnv(body)).as_bytes() {
            return Err("its checksum does not fit");
        }
        // Without its last member it is an object without its end.
        let registry: Self = serde_json::from_slice(&[body, b"\n}"].concat()).map_err(|_| "it has another form")?;
        if registry.version == VERSION { Ok(registry) } else { Err("it is of another version") }
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// [`FileError::Write`]; the file is as it was.
    pub fn store(&self, path: &Path) -> Result<(), FileError> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        let body = text.strip_suffix("\n}").unwrap_or(&text);
        files::write_volatile(path, format!("{body}{}", tail(fnv(body.as_bytes()))).as_bytes(), PRIVATE_FILE_MODE)
    }
}

/// What was found where the registry should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// A registry.
    Good(Box<Registry>),
    /// Nothing.
    Absent,
    /// Something that cannot be used, and why.
    Damaged(String),
}

/// What stands behind the body of a registry with this checksum. Of one length.
fn tail(checksum: u64) -> String {
    format!(",\n  \"checksum\": \"{checksum:016x}\"\n}}\n")
}

/// 64-bit FNV-1a (Fowler, Noll, Vo). One changed byte always changes it: each step can be undone.
fn fnv(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// A short name of what a worker serves, equal for equal settings of the same program version.
///
/// A hash of the JSON form: whoever could forge a match owns the settings already.
pub fn fingerprint(served: &impl Serialize) -> String {
    format!("{:016x}", fnv(&serde_json::to_vec(served).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

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
        let crashes = CrashesEntry {
            endpoint: "zai".parse().unwrap(),
            fingerprint: fingerprint(&"x"),
            in_a_row: 2,
            at_ms: vec![3, 4],
            is_tripped: false,
        };
        Registry::new(supervisor, vec![worker], Vec::new(), vec![crashes])
    }

    #[test]
    fn a_registry_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.json");
        assert_eq!(Registry::load(&path), Loaded::Absent);
        let registry = registry();
        registry.store(&path).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(json["workers"][0]["endpoint"], "zai", "a person and any program can read it");
        assert_eq!(Registry::load(&path), Loaded::Good(Box::new(registry)));
    }

    #[test]
    fn damage_at_any_byte_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.json");
        registry().store(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            assert!(Registry::parse(&whole[..length]).is_err(), "cut at {length}");
        }
        let mut damaged = whole.clone();
        for at in 0..whole.len() {
            for bit in 0..8 {
                damaged[at] = whole[at] ^ (1 << bit);
                assert!(Registry::parse(&damaged).is_err(), "bit {bit} of byte {at}");
            }
            damaged[at] = 0;
            assert!(Registry::parse(&damaged).is_err(), "byte {at} erased");
            damaged[at] = whole[at];
        }
        assert!(Registry::parse(&damaged).is_ok());
        assert!(Registry::parse(&[&whole[..], b"\n"].concat()).is_err());
        let newer = Registry { version: VERSION + 1, ..registry() };
        newer.store(&path).unwrap();
        assert_eq!(Registry::load(&path), Loaded::Damaged("it is of another version".to_owned()));
    }

    #[test]
    fn fingerprints_tell_settings_apart() {
        assert_eq!(fingerprint(&"a"), fingerprint(&"a"));
        assert_ne!(fingerprint(&"a"), fingerprint(&"b"));
    }
}
