//! What is remembered about one `config.toml`: who wants which keys in it, what was put in, what is under way; and the
//! person's own files, kept aside.
//!
//! ```text
//! $XDG_STATE_HOME/codex-supervisor/codex-config/HASH/     one folder for each config.toml ever changed
//!   lock            held by whoever works on it
//!   journal.json    this module
//!   backups/        BACKUPS_MAX files as they were before we changed them, the newest last; more after a burst
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::redirect::Key;
use super::swap::{Disk, Step};
use super::text::Change;
use crate::EndpointId;
use crate::files::{self, FileError, PRIVATE_FILE_MODE};
use crate::process::{Identity, Process};

/// Files kept aside for each `config.toml`. Those that are still needed for putting one back are kept beyond it, and
/// young ones up to [`BACKUPS_YOUNG_MAX`].
pub const BACKUPS_MAX: usize = 10;
/// Young files kept aside: where several programs write at once, what one of them has overwritten is among these, and
/// the changes of a moment must not push it out.
pub const BACKUPS_YOUNG_MAX: usize = 60;
/// Age, in milliseconds, up to which a file kept aside is young: an edit that is gone is missed soon.
const BACKUP_YOUNG_MS: u64 = 60 * 60 * 1000;
/// Largest journal: a few holders with their keys. A larger one is not ours.
const JOURNAL_BYTES_MAX: u64 = 1024 * 1024;
/// Version of the journal's format.
const FORMAT: u32 = 1;

/// Everything remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    format: u32,
    /// The file, as it is named: a symbolic link is not followed here.
    pub(super) config: PathBuf,
    /// What holds.
    pub(super) state: State,
    /// A replacement of the file that has not been seen to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pending: Option<Pending>,
}

/// Who wants what, and what is in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The last one that lives decides.
    pub(super) holders: Vec<Holder>,
    /// The supervisor was stopped cleanly: nothing of ours is to be in the file until it runs again.
    pub(super) is_suspended: bool,
    /// What of ours is in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) in_force: Option<InForce>,
    /// What was in it last. Another program that had read the file before we took our keys out, and writes it after,
    /// brings them back: then they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) released: Vec<Change>,
}

/// Somebody who wants something to be in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Chosen by the holder; a second one of the same id takes the first one's place.
    pub id: String,
    /// The endpoint; `None` for Codex's own provider.
    pub endpoint: Option<EndpointId>,
    /// What is to be in the file; nothing of ours where it is empty.
    pub keys: Vec<Key>,
    /// It ends when all these have ended; without any it lasts until it is released.
    pub processes: Vec<Identity>,
    /// Unix milliseconds.
    pub since_ms: u64,
}

/// What of ours is in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InForce {
    /// Whose keys.
    pub(super) holder: String,
    /// Key by key.
    pub(super) changes: Vec<Change>,
    /// The person's own file.
    pub(super) own: Own,
    /// Digest of what we wrote.
    pub(super) written: String,
}

/// The person's own file, without us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Own {
    /// There is none.
    Absent {
        /// Whether its folder is ours, too.
        made_folder: bool,
    },
    /// A file kept aside.
    Kept {
        /// Its name among the backups.
        backup: String,
        /// Its digest.
        digest: String,
    },
}

/// A replacement under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    /// The file itself, links followed.
    pub(super) target: PathBuf,
    /// The file beside it that it is exchanged with.
    pub(super) temporary: PathBuf,
    /// How far it came.
    pub(super) stage: Stage,
    /// Digest of the file that is to come out; `None` if there is none.
    pub(super) expected: Option<String>,
    /// Digest of the file that is to go in; `None` if there is to be none.
    pub(super) replacement: Option<String>,
    /// Whether we have made the folder that it is in.
    pub(super) folder_is_ours: bool,
    /// What holds when it is done.
    pub(super) then: State,
}

/// How far a replacement came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    /// The temporary holds nothing that anybody could miss: it is being written, or what came out is known.
    Disposable,
    /// The temporary is whole, and it or what came out for it is there.
    Exchanging,
}

impl Holder {
    /// The same with keys that lead to where its endpoint listens now, and the base URL they lead to so far; `None` if
    /// that is the same, or nothing is known.
    pub(super) fn readdressed(&self, address_of: impl Fn(&EndpointId) -> Option<SocketAddr>) -> Option<(Self, String)> {
        let address = address_of(self.endpoint.as_ref()?)?;
        let mut readdressed = self.clone();
        let former = readdressed.keys.iter_mut().find_map(|key| {
            let (moved, former) = key.readdressed(address)?;
            *key = moved;
            Some(former)
        })?;
        Some((readdressed, former))
    }

    /// Whether it still wants it.
    pub(super) fn lives(&self) -> bool {
        let runs = |identity| Process::open_identity(identity).is_ok_and(|process| !process.has_ended());
        self.processes.is_empty() || self.processes.iter().any(runs)
    }
}

impl InForce {
    /// Whether it is what `holder` wants.
    pub(super) fn is_of(&self, holder: &Holder) -> bool {
        let ours = self.changes.iter().map(|change| (&change.name, &change.ours));
        self.holder == holder.id && ours.eq(holder.keys.iter().map(|key| (&key.name, &key.value)))
    }
}

impl State {
    /// Whose keys are to be in the file.
    pub(super) fn wanted(&self) -> Option<&Holder> {
        self.holders.last().filter(|holder| !self.is_suspended && !holder.keys.is_empty())
    }

    /// Whether the folder of the file is there because of us.
    pub(super) fn made_folder(&self) -> bool {
        self.in_force.as_ref().is_some_and(|in_force| in_force.own == Own::Absent { made_folder: true })
    }

    /// What `goal` wanted to be in the file was there for a moment. Whoever read it then may write it back: it must be
    /// known to be taken out.
    pub(super) fn remember_exposed(&mut self, goal: &Self) {
        if let (None, Some(exposed)) = (&self.in_force, &goal.in_force) {
            self.released.clone_from(&exposed.changes);
        }
    }

    /// Lets go of holders whose processes have ended.
    pub(super) fn bury(&mut self) {
        self.holders.retain(Holder::lives);
    }
}

impl Journal {
    /// That of a file of which nothing is known.
    pub(super) fn new(config: &Path) -> Self {
        Self { format: FORMAT, config: config.to_owned(), state: State::default(), pending: None }
    }

    /// Reads the journal in `folder`; `None` if there is none, or none that makes sense.
    pub(super) fn load(folder: &Path) -> Result<Option<Self>, FileError> {
        let bytes = files::read_bounded(&path(folder), JOURNAL_BYTES_MAX)?;
        let journal = bytes.and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        Ok(journal.filter(|journal| journal.format == FORMAT))
    }

    /// Writes the journal into `folder`, so that it is there after a power cut.
    pub(super) fn store(&self, folder: &Path, disk: &Disk) -> Result<(), FileError> {
        disk.step(Step::Journal);
        let path = path(folder);
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| FileError::Write { path: path.clone(), source: error.into() })?;
        bytes.push(b'\n');
        files::write_atomically(&path, &bytes, PRIVATE_FILE_MODE)
    }

    /// Names of backups that are still needed.
    fn needed(&self) -> impl Iterator<Item = &str> {
        let states = [Some(&self.state), self.pending.as_ref().map(|pending| &pending.then)];
        states.into_iter().flatten().filter_map(|state| match &state.in_force.as_ref()?.own {
            Own::Kept { backup, .. } => Some(backup.as_str()),
            Own::Absent { .. } => None,
        })
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("journal.json")
}

/// Folder of files kept aside.
pub(super) fn backups_folder(folder: &Path) -> PathBuf {
    folder.join("backups")
}

/// SHA-256 in hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// Keeps `bytes` aside and returns the name of the backup. The same content is kept once.
pub(super) fn keep(folder: &Path, bytes: &[u8], now_ms: u64, disk: &Disk) -> Result<String, FileError> {
    /// Digits that tell the content of one moment from another's.
    const DIGITS: usize = 12;
    disk.step(Step::Keep);
    let backups = backups_folder(folder);
    files::create_private_folder(&backups)?;
    let digest = &digest(bytes)[..DIGITS];
    let suffix = format!("-{digest}.toml");
    if let Some(known) = names(&backups).into_iter().rfind(|name| name.ends_with(&suffix))
        && fs::read(backups.join(&known)).is_ok_and(|kept| kept == bytes)
    {
        return Ok(known);
    }
    let name = format!("{now_ms}{suffix}");
    let path = backups.join(&name);
    let error = |source| FileError::Write { path: path.clone(), source };
    let temporary = backups.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary).map_err(error)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, &path))
        .and_then(|()| File::open(&backups)?.sync_all())
        .map_err(error)?;
    Ok(name)
}

/// The backup `name`, if it is there and still what it was.
pub(super) fn kept(folder: &Path, name: &str, expected: &str) -> Option<Vec<u8>> {
    fs::read(backups_folder(folder).join(name)).ok().filter(|bytes| digest(bytes) == expected)
}

/// Removes what nobody needs: temporaries of writers that were killed, and backups beyond [`BACKUPS_MAX`] that are old
/// or beyond [`BACKUPS_YOUNG_MAX`].
pub(super) fn sweep(folder: &Path, journal: &Journal, now_ms: u64) {
    let backups = backups_folder(folder);
    for place in [folder, &backups] {
        for name in names(place).into_iter().filter(|name| Path::new(name).extension().is_some_and(|ext| ext == "tmp"))
        {
            let _ = fs::remove_file(place.join(name)); // the next one tries again
        }
    }
    let at_ms = |name: &str| name.split('-').next().and_then(|at_ms| at_ms.parse::<u64>().ok());
    let mut kept: Vec<String> = names(&backups);
    kept.sort_by_key(|name| std::cmp::Reverse(at_ms(name)));
    for (n_newer, name) in kept.into_iter().enumerate().skip(BACKUPS_MAX) {
        let is_young = at_ms(&name).is_some_and(|at_ms| now_ms.saturating_sub(at_ms) < BACKUP_YOUNG_MS);
        let stays = (is_young && n_newer < BACKUPS_YOUNG_MAX) || journal.needed().any(|needed| needed == name);
        if !stays {
            let _ = fs::remove_file(backups.join(name)); // the next one tries again
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
