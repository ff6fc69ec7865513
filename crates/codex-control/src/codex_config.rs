//! Codex's own `config.toml`, changed only inside a transaction: what the person wrote comes out as it went in,
//! whatever is killed, and whoever else writes the file meanwhile.
//!
//! Whoever wants Codex to use an endpoint is a [`Holder`]: a person's `codexctl use`, or a session of Codex Desktop with
//! its processes. The last holder that lives decides what is in the file. There is one operation, and everything else
//! is a case of it:
//!
//! ```text
//!   the file ──take ours out──► the person's own text ──put the last holder's keys in──► the file as it has to be
//!      ▲                            (text.rs)                                                       │
//!      └────────────── exchanged, compared with what was expected, redone if it differs ────────────┘
//!                                           (swap.rs)
//! ```
//!
//! Where nobody else has written since we did, the person's own text is the file we kept aside, byte for byte; else our
//! keys are taken out of what is there now, and nothing else.
//!
//! Before each step the journal (`journal.rs`) says what is about to happen, and it is on the disk before. So whoever
//! comes next ([`CodexConfig::recover`]) knows what a killed process was about to do and finishes it or takes it back.
//! A lock keeps our own processes apart; each of them may be the one that works, a supervisor is not needed.
//!
//! Deliberately absent: any change to a file that cannot be read, is read-only, or cannot be exchanged in one step.
//! Those are told, with what to do ([`ConfigError`]).

mod journal;
mod redirect;
mod swap;
#[cfg(test)]
mod tests;
mod text;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use self::journal::{InForce, Journal, Own, Pending, Stage, State};
use self::swap::{Disk, Found, Swapped};
use crate::EndpointId;
use crate::files::{self, FileError, PRIVATE_FILE_MODE, folder_of};
use crate::paths::Paths;
use crate::process::Identity;
use crate::report::Hinted;

pub use self::journal::{BACKUPS_MAX, BACKUPS_YOUNG_MAX, Holder};
pub use self::redirect::{Key, PROVIDER_ID, Redirect};
pub use self::swap::CONFIG_BYTES_MAX;
pub use self::text::TextError;

/// Longest wait for another process of ours that works on the same file, unless the caller has less time: it takes
/// milliseconds.
const LOCK_WITHIN: Duration = Duration::from_secs(10);
/// Pause between two tries to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// Times that a change is begun anew because somebody else has written meanwhile.
const TRIES_MAX: usize = 16;
/// Holders of one file at a time. More are a loop of somebody's.
const HOLDERS_MAX: usize = 64;

/// One `config.toml`, with what is remembered about it.
pub struct CodexConfig {
    config: PathBuf,
    folder: PathBuf,
    disk: Disk,
    lock_within: Duration,
}

/// How a change is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Somebody asks for exactly this: it is put in even where they have edited it away, and not done by halves.
    Asked,
    /// Nobody asks: what the person has edited stays.
    Tidying,
}

/// What an operation has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the file is another than before.
    pub has_changed: bool,
    /// Whose keys are in it now.
    pub in_force: Option<Holder>,
    /// Holders that want something to be in it.
    pub n_holders: usize,
    /// Files kept aside since the person may look for what is in them: an edit in a place of ours that had to go.
    pub aside: Vec<PathBuf>,
}

/// What would be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// The file.
    pub path: PathBuf,
    /// As it is; `None` if there is none.
    pub before: Option<String>,
    /// As it would be; `None` if it would be removed.
    pub after: Option<String>,
}

/// Why the file stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Reading it failed.
    #[error("Codex's configuration `{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Putting another file in its place failed.
    #[error("Codex's configuration `{path}` cannot be replaced")]
    Replace {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system cannot exchange two files.
    #[error(
        "the file system of `{path}` cannot exchange two files in one step, so a change could lose another program's"
    )]
    NoExchange {
        /// The file.
        path: PathBuf,
    },
    /// It is a folder, a pipe, a device.
    #[error("`{path}` is not a file")]
    NotAFile {
        /// What should be one.
        path: PathBuf,
    },
    /// It is a link to nothing.
    #[error("`{path}` is a symbolic link to `{to}`, which does not exist")]
    Dangling {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        to: PathBuf,
    },
    /// The person has protected it.
    #[error("`{path}` is read-only")]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// It is somebody else's.
    #[error("`{path}` belongs to another user")]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// It has several names.
    #[error("`{path}` is one file with {n_names} names (hard links), and replacing it would part them")]
    Linked {
        /// One of its names.
        path: PathBuf,
        /// How many it has.
        n_names: u64,
    },
    /// It is larger than any configuration.
    #[error("`{path}` is larger than {CONFIG_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Its text cannot be changed.
    #[error("Codex's configuration `{path}` stays as it is: {source}")]
    Text {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TextError,
    },
    /// Another program writes it again and again.
    #[error("`{path}` is written by another program again and again")]
    Contended {
        /// The file.
        path: PathBuf,
    },
    /// Another process of ours works on it and does not end.
    #[error("another `codexctl` or the supervisor works on `{path}` for more than {} ms", within.as_millis())]
    Busy {
        /// The file.
        path: PathBuf,
        /// How long it was waited for.
        within: Duration,
    },
    /// Too many want something.
    #[error("{HOLDERS_MAX} sessions hold `{path}` already")]
    Crowded {
        /// The file.
        path: PathBuf,
    },
    /// What is remembered about it cannot be read or written.
    #[error("what is remembered about `{path}` cannot be kept")]
    Remember {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: FileError,
    },
}

impl Hinted for ConfigError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Text { source: TextError::Broken { .. }, .. } => Some("mend that line, then try again".to_owned()),
            Self::Text { source: TextError::Odd { name, .. }, .. } => {
                Some(format!("give `{name}` the form of Codex's documentation, then try again"))
            }
            Self::Text { source: TextError::Taken, .. } => {
                Some(format!("give `[model_providers.{PROVIDER_ID}]` another name, then try again"))
            }
            Self::Text { source: TextError::Unsure, .. } | Self::NoExchange { .. } => {
                Some("`codexctl launch cli` needs no change of the file".to_owned())
            }
            Self::NotAFile { path } => Some(format!("move `{}` away", path.display())),
            Self::Dangling { path, to } => {
                Some(format!("make `{}`, or remove the link `{}`", to.display(), path.display()))
            }
            Self::ReadOnly { path } => {
                Some(format!("`chmod u+w {}` allows the change; `codexctl launch cli` needs none", path.display()))
            }
            Self::Linked { path, .. } => Some(format!(
                "make it a symbolic link or a file of its own: `cp --remove-destination \"$(realpath {0})\" {0}` after copying it",
                path.display()
            )),
            Self::NotOurs { path } => Some(format!("`ls -l {}` says whose it is", path.display())),
            Self::TooLarge { .. } => {
                Some("look what has made it so large; `codexctl launch cli` needs no change of it".to_owned())
            }
            Self::Read { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(format!("`ls -l {}` says who may read it", path.display()))
            }
            Self::Replace { source, .. }
                if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
            {
                Some("its folder must be writable; `codexctl launch cli` needs no change of the file".to_owned())
            }
            Self::Crowded { .. } => Some("`codexctl restore` lets go of all of them".to_owned()),
            Self::Contended { .. } | Self::Busy { .. } => Some("try again when it has ended".to_owned()),
            _ => None,
        }
    }
}

impl CodexConfig {
    /// The file that Codex reads with these paths. Nothing is touched.
    pub fn new(paths: &Paths) -> Self {
        let config = place(paths.codex_home()).join("config.toml");
        let name = &journal::digest(config.as_os_str().as_encoded_bytes())[..16];
        let folder = paths.config_transactions_folder().join(name);
        Self { folder, config, disk: Disk::default(), lock_within: LOCK_WITHIN }
    }

    /// Every file that something is remembered about.
    pub fn remembered(paths: &Paths) -> Vec<Self> {
        let folders = fs::read_dir(paths.config_transactions_folder()).into_iter().flatten().flatten();
        let mut found: Vec<Self> = folders
            .filter_map(|entry| {
                let folder = entry.path();
                let config = Journal::load(&folder).ok()??.config;
                Some(Self { config, folder, disk: Disk::default(), lock_within: LOCK_WITHIN })
            })
            .collect();
        found.sort_by(|a, b| a.config.cmp(&b.config));
        found
    }

    /// The same, that waits at most so long for another process of ours that works on the file.
    #[must_use]
    pub fn with_patience(self, lock_within: Duration) -> Self {
        Self { lock_within, ..self }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.config
    }

    /// Folder of the files kept aside.
    pub fn backups_folder(&self) -> PathBuf {
        journal::backups_folder(&self.folder)
    }

    /// The holders, the last deciding. Those of them that have ended are not told apart.
    ///
    /// # Errors
    /// [`ConfigError::Remember`].
    pub fn holders(&self) -> Result<Vec<Holder>, ConfigError> {
        let journal = Journal::load(&self.folder).map_err(|source| self.remember(source))?;
        Ok(journal.map(|journal| journal.state.holders).unwrap_or_default())
    }

    /// Whether [`Self::recover`] has something to do: a holder has ended, a change was cut off, or our keys are back in
    /// a file that nobody holds. Reads two small files and waits for nobody.
    pub fn needs_recovery(&self) -> bool {
        let Ok(Some(journal)) = Journal::load(&self.folder) else { return false };
        let state = &journal.state;
        if journal.pending.is_some() || state.holders.iter().any(|holder| !holder.lives()) {
            return true;
        }
        state.in_force.is_none() && self.is_redirected()
    }

    /// What would be changed if the file had to hold `keys`, or nothing of ours.
    ///
    /// # Errors
    /// [`ConfigError`], as the change itself would give.
    pub fn preview(&self, keys: &[Key]) -> Result<Preview, ConfigError> {
        let journal = self.load()?;
        let found = self.disk.look(&self.config)?;
        found.may_be_replaced()?;
        let own = self.own(&journal.state, &found)?;
        let after = if keys.is_empty() { own } else { Some(self.put(own.as_deref(), keys)?.0) };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Preview { path: self.config.clone(), before: found.bytes().map(text), after: after.as_deref().map(text) })
    }

    /// Takes `holder` in: from now on its keys are in the file, until it is released, another comes, or its processes
    /// have ended and somebody looks.
    ///
    /// # Errors
    /// [`ConfigError`]; the file is as it was, and `holder` is not taken in.
    pub fn hold(&self, holder: Holder) -> Result<Outcome, ConfigError> {
        self.change(Manner::Asked, |state| {
            state.holders.retain(|known| known.id != holder.id);
            state.holders.push(holder);
            state.is_suspended = false;
        })
    }

    /// The holder `id` lasts as long as `process`, too. Nothing else changes: not who decides, and what was let go or
    /// taken out meanwhile stays so.
    ///
    /// # Errors
    /// [`ConfigError`]; the holder is remembered as before.
    pub fn extend(&self, id: &str, process: Identity) -> Result<Outcome, ConfigError> {
        self.change(Manner::Tidying, |state| {
            if let Some(holder) = state.holders.iter_mut().find(|holder| holder.id == id) {
                holder.processes.push(process);
            }
        })
    }

    /// Lets the holder `id` go.
    ///
    /// # Errors
    /// [`ConfigError`]; the holder is remembered as before.
    pub fn release(&self, id: &str) -> Result<Outcome, ConfigError> {
        self.change(Manner::Tidying, |state| state.holders.retain(|holder| holder.id != id))
    }

    /// Lets all holders go.
    ///
    /// # Errors
    /// [`ConfigError`]; they are remembered as before.
    pub fn restore(&self) -> Result<Outcome, ConfigError> {
        self.change(Manner::Tidying, |state| state.holders.clear())
    }

    /// Takes our keys out for as long as nobody serves them; the holders stay.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn suspend(&self) -> Result<Outcome, ConfigError> {
        self.change(Manner::Tidying, |state| state.is_suspended = true)
    }

    /// Puts right what was left by whoever came before: a change that was cut off, a holder that has ended.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn recover(&self) -> Result<Outcome, ConfigError> {
        self.change(Manner::Tidying, |_| {})
    }

    /// The same, and ends a suspension. `is_served` is asked when nobody else can change anything any more, so that one
    /// who stops meanwhile has the last word.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn resume(&self, is_served: impl FnOnce() -> bool) -> Result<Outcome, ConfigError> {
        self.change(Manner::Tidying, |state| state.is_suspended &= !is_served())
    }

    /// Whether [`Self::readdress`] has something to do. Reads two small files and waits for nobody.
    pub fn is_misaddressed(&self, address_of: impl Fn(&EndpointId) -> Option<SocketAddr>) -> bool {
        let Ok(Some(mut journal)) = Journal::load(&self.folder) else { return false };
        self.readdress_state(&mut journal.state, address_of)
    }

    /// Endpoints listen somewhere else now: whoever wants one of them wants it there. Where the person has edited the
    /// address in the file, or taken it out, it stays as they made it.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn readdress(&self, address_of: impl Fn(&EndpointId) -> Option<SocketAddr>) -> Result<Outcome, ConfigError> {
        self.change(Manner::Tidying, |state| {
            self.readdress_state(state, address_of);
        })
    }

    /// Says whether something is another than before.
    fn readdress_state(&self, state: &mut State, address_of: impl Fn(&EndpointId) -> Option<SocketAddr>) -> bool {
        let in_force = state.in_force.as_ref().map(|in_force| in_force.holder.as_str());
        let mut is_other = false;
        for holder in &mut state.holders {
            let Some((readdressed, former)) = holder.readdressed(&address_of) else { continue };
            let holds =
                || swap::content(&self.config).is_some_and(|bytes| String::from_utf8_lossy(&bytes).contains(&former));
            if in_force != Some(holder.id.as_str()) || holds() {
                *holder = readdressed;
                is_other = true;
            }
        }
        is_other
    }

    /// Where the file points Codex, if at one of our endpoints.
    pub fn points_at(&self) -> Option<(EndpointId, SocketAddr)> {
        self.content().and_then(|text| text::points_at(&text))
    }

    /// Puts our keys in anew, with the addresses that the endpoints have now; ends a suspension as [`Self::resume`] does.
    /// Unlike [`Self::readdress`] this overrules an address that a person has written there.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn regenerate(
        &self,
        address_of: impl Fn(&EndpointId) -> Option<SocketAddr>,
        is_served: impl FnOnce() -> bool,
    ) -> Result<Outcome, ConfigError> {
        let is_stale = self.points_at().is_some_and(|(id, theirs)| address_of(&id).is_some_and(|ours| ours != theirs));
        let manner = if is_stale { Manner::Asked } else { Manner::Tidying };
        self.change(manner, |state| {
            state.is_suspended &= !is_served();
            for holder in &mut state.holders {
                if let Some((readdressed, _)) = holder.readdressed(&address_of) {
                    *holder = readdressed;
                }
            }
        })
    }

    fn change(&self, manner: Manner, change: impl FnOnce(&mut State)) -> Result<Outcome, ConfigError> {
        let mut outcome = Outcome::default();
        let is_known = self
            .folder
            .try_exists()
            .map_err(|source| self.remember(FileError::Read { path: self.folder.clone(), source }))?;
        if !is_known {
            let mut state = State::default();
            change(&mut state);
            // Nothing is known, wanted or to be seen: then nothing is written, either.
            if state.holders.is_empty() && !self.is_redirected() {
                return Ok(outcome);
            }
            return self.change_locked(manner, |known| *known = state, &mut outcome).map(|()| outcome);
        }
        self.change_locked(manner, change, &mut outcome).map(|()| outcome)
    }

    fn change_locked(
        &self,
        manner: Manner,
        change: impl FnOnce(&mut State),
        outcome: &mut Outcome,
    ) -> Result<(), ConfigError> {
        files::create_private_folder(&self.folder).map_err(|source| self.remember(source))?;
        let _lock = self.lock()?;
        let mut journal = self.load()?;
        self.finish(&mut journal, outcome)?;
        let before = journal.state.clone();
        let mut goal = before.clone();
        goal.bury();
        change(&mut goal);
        if goal.holders.len() > HOLDERS_MAX {
            return Err(ConfigError::Crowded { path: self.config.clone() });
        }
        let result = self.reach(&mut journal, goal, manner, outcome);
        if result.is_err() {
            // What cannot be put right now is put right by whoever comes next.
            let is_settled = self.finish(&mut journal, outcome).is_ok();
            if is_settled && manner == Manner::Asked && journal.state.holders != before.holders {
                // The file was changed and something failed after it: then it was not done.
                let _ = self.reach(&mut journal, before, manner, outcome);
            }
        }
        journal::sweep(&self.folder, &journal, now_ms());
        let state = &journal.state;
        let holder = state.in_force.as_ref().map(|in_force| &in_force.holder);
        outcome.in_force = holder.and_then(|id| state.holders.iter().find(|holder| holder.id == *id)).cloned();
        outcome.n_holders = state.holders.len();
        result
    }

    /// Brings the file to what `goal` wants, and `journal` to `goal`.
    fn reach(
        &self,
        journal: &mut Journal,
        mut goal: State,
        manner: Manner,
        outcome: &mut Outcome,
    ) -> Result<(), ConfigError> {
        for _ in 0..TRIES_MAX {
            if manner == Manner::Tidying
                && let (Some(in_force), Some(holder)) = (&journal.state.in_force, goal.wanted())
                && in_force.is_of(holder)
            {
                // It is there already, or the person has edited it: that is theirs to do.
                goal.in_force = Some(in_force.clone());
                return self.settle(journal, goal);
            }
            let found = match self.disk.look(&self.config) {
                // Nothing of ours is in it, and nothing is to be: whatever it is, it is no business of ours.
                Err(_) if goal.wanted().is_none() && journal.state.in_force.is_none() => {
                    return self.settle(journal, goal);
                }
                result => result?,
            };
            let own = self.own(&journal.state, &found)?;
            let (new, in_force) = match goal.wanted() {
                None => (own, None),
                Some(holder) => {
                    found.may_be_replaced()?;
                    let (text, changes) = self.put(own.as_deref(), &holder.keys)?;
                    let written = journal::digest(&text);
                    let own = self.keep_own(journal, own.as_deref())?;
                    (Some(text), Some(InForce { holder: holder.id.clone(), changes, own, written }))
                }
            };
            if let (None, Some(last)) = (&in_force, &journal.state.in_force) {
                goal.released.clone_from(&last.changes);
            }
            goal.in_force = in_force;
            if new.as_deref() == found.bytes() {
                return self.settle(journal, goal);
            }
            found.may_be_replaced()?;
            // What somebody has edited in our own places is about to go.
            if let (Some(last), Some(bytes)) = (&journal.state.in_force, found.bytes())
                && last.written != journal::digest(bytes)
            {
                outcome.aside = vec![self.put_aside(bytes)?];
            }
            if self.replace(journal, &goal, &found, new.as_deref(), outcome)? {
                outcome.has_changed = true;
                return Ok(());
            }
            goal.released.clone_from(&journal.state.released);
        }
        Err(ConfigError::Contended { path: self.config.clone() })
    }

    /// The file is as `goal` wants it.
    fn settle(&self, journal: &mut Journal, goal: State) -> Result<(), ConfigError> {
        if journal.state == goal {
            return Ok(());
        }
        let mut next = journal.clone();
        next.state = goal;
        self.store(&next)?;
        *journal = next;
        Ok(())
    }

    /// The person's own file as it is without us; `None` if there is none.
    fn own(&self, state: &State, found: &Found) -> Result<Option<Vec<u8>>, ConfigError> {
        let Some(bytes) = found.bytes() else { return Ok(None) };
        let Some(in_force) = &state.in_force else {
            // Nothing of ours is known to be in it: then it matters only to who wants something in it whether it can be
            // read, and they are told.
            return Ok(Some(self::without_strays(state, bytes).unwrap_or_else(|_| bytes.to_owned())));
        };
        if journal::digest(bytes) == in_force.written {
            match &in_force.own {
                Own::Absent { .. } => return Ok(None),
                Own::Kept { backup, digest } => {
                    if let Some(kept) = journal::kept(&self.folder, backup, digest) {
                        return Ok(Some(kept));
                    }
                }
            }
        }
        let own = text::decode(bytes).and_then(|text| text::take_out(text, &in_force.changes));
        let own = own.map_err(|source| self.text(source))?;
        let is_gone = matches!(in_force.own, Own::Absent { .. }) && own.trim().is_empty();
        Ok((!is_gone).then(|| own.into_bytes()))
    }

    fn put(&self, own: Option<&[u8]>, keys: &[Key]) -> Result<(Vec<u8>, Vec<text::Change>), ConfigError> {
        let put = text::decode(own.unwrap_or_default()).and_then(|text| text::put(text, keys));
        put.map(|(text, changes)| (text.into_bytes(), changes)).map_err(|source| self.text(source))
    }

    /// Keeps the person's own file aside, unless it is already.
    fn keep_own(&self, journal: &Journal, own: Option<&[u8]>) -> Result<Own, ConfigError> {
        let Some(own) = own else {
            // An own file that was absent before is so in a folder that was there or not before.
            let known = journal.state.in_force.as_ref().map(|in_force| in_force.own.clone());
            let is_missing = !folder_of(&self.config).exists();
            return Ok(known
                .filter(|known| matches!(known, Own::Absent { .. }))
                .unwrap_or(Own::Absent { made_folder: is_missing }));
        };
        let backup = self.keep(own)?;
        Ok(Own::Kept { backup, digest: journal::digest(own) })
    }

    fn keep(&self, bytes: &[u8]) -> Result<String, ConfigError> {
        journal::keep(&self.folder, bytes, now_ms(), &self.disk).map_err(|source| self.remember(source))
    }

    fn put_aside(&self, bytes: &[u8]) -> Result<PathBuf, ConfigError> {
        self.keep(bytes).map(|name| self.backups_folder().join(name))
    }

    fn is_redirected(&self) -> bool {
        self.content().is_some_and(|text| text::is_redirected(&text))
    }

    /// What is in the file, if it can be read.
    fn content(&self) -> Option<String> {
        let bytes = fs::canonicalize(&self.config).ok().and_then(|target| swap::content(&target))?;
        text::decode(&bytes).ok().map(str::to_owned)
    }

    /// Puts `new` into the place of what was `found`; `Ok(false)` if somebody else has written meanwhile.
    fn replace(
        &self,
        journal: &mut Journal,
        goal: &State,
        found: &Found,
        new: Option<&[u8]>,
        outcome: &mut Outcome,
    ) -> Result<bool, ConfigError> {
        let failed = |source: io::Error| match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                ConfigError::NoExchange { path: found.target.clone() }
            }
            _ => ConfigError::Replace { path: found.target.clone(), source },
        };
        let mut number = [0; 4];
        getrandom::fill(&mut number).map_err(|error| failed(io::Error::other(error)))?;
        let name = format!(".config.toml.{:08x}.tmp", u32::from_ne_bytes(number));
        let temporary = folder_of(&found.target).join(name);
        journal.pending = Some(Pending {
            target: found.target.clone(),
            temporary: temporary.clone(),
            stage: Stage::Disposable,
            expected: found.bytes().map(journal::digest),
            replacement: new.map(journal::digest),
            folder_is_ours: goal.made_folder() || journal.state.made_folder(),
            then: goal.clone(),
        });
        self.store(journal)?;
        if let Some(new) = new {
            self.disk.create(&temporary, new, found).map_err(failed)?;
        }
        self.stage(journal, Stage::Exchanging)?;
        let mut kept = Vec::new();
        let mut keep = |theirs: &[u8]| kept.extend(self.put_aside(theirs));
        let (target, expected) = (&found.target, found.bytes());
        let mut swapped = self.disk.swap(target, &temporary, expected, new, &mut keep).map_err(failed)?;
        self.disk.sync(target).map_err(failed)?;
        if swapped == Swapped::Done {
            // Whoever had the old file open may have written into it since.
            swapped = self.disk.compare(target, &temporary, expected, new, &mut keep).map_err(failed)?;
        }
        let is_done = swapped == Swapped::Done;
        match swapped {
            Swapped::Done => journal.state = goal.clone(),
            Swapped::Raced => {}
            Swapped::GivenBack => journal.state.remember_exposed(goal),
            Swapped::Overtaken => {
                journal.state.remember_exposed(goal);
                outcome.aside.extend(kept.pop());
            }
        }
        self.stage(journal, Stage::Disposable)?;
        self.clear(journal)?;
        Ok(is_done)
    }

    /// Sees a replacement that was cut off to its end, one way or the other.
    fn finish(&self, journal: &mut Journal, outcome: &mut Outcome) -> Result<(), ConfigError> {
        let Some(pending) = journal.pending.clone() else { return Ok(()) };
        let Pending { target, temporary, stage, expected, replacement, then, .. } = pending;
        if stage == Stage::Exchanging {
            let failed = |source| ConfigError::Replace { path: target.clone(), source };
            let digest_of = |path: &Path| swap::content(path).map(|bytes| journal::digest(&bytes));
            let is_there = fs::symlink_metadata(&temporary).is_ok();
            let beside = digest_of(&temporary);
            let holds_ours = replacement.is_some() && digest_of(&target) == replacement;
            let is_done = if !is_there {
                // Moved to the target as it was, or never moved from there.
                expected.is_none() || (replacement.is_some() && holds_ours)
            } else if expected.is_some() && beside == expected {
                true
            } else if beside == replacement {
                false
            } else {
                // Theirs has come out and was not given back.
                let mut kept = Vec::new();
                let mut keep = |theirs: &[u8]| kept.extend(self.put_aside(theirs));
                let swapped = if replacement.is_none() {
                    self.disk.put_back(&target, &temporary, &mut keep).map_err(failed)?
                } else if holds_ours || is_newer(&temporary, &target) {
                    let put = fs::read(&target).unwrap_or_default();
                    if !holds_ours {
                        // That is somebody's, too, and is about to come out.
                        keep(&put);
                    }
                    self.disk.give_back(&target, &temporary, &put, &mut keep).map_err(failed)?
                } else {
                    keep(&fs::read(&temporary).unwrap_or_default());
                    Swapped::Overtaken
                };
                if swapped == Swapped::Overtaken || !holds_ours {
                    outcome.aside.extend(kept);
                }
                false
            };
            if is_done {
                journal.state = then;
            } else {
                journal.state.remember_exposed(&then);
            }
            self.disk.sync(&target).or_else(ignore_missing).map_err(failed)?;
            self.stage(journal, Stage::Disposable)?;
        }
        self.clear(journal)
    }

    /// Removes the temporary and forgets the replacement.
    fn clear(&self, journal: &mut Journal) -> Result<(), ConfigError> {
        let Some(pending) = &journal.pending else { return Ok(()) };
        let failed = |source| ConfigError::Replace { path: pending.target.clone(), source };
        self.disk.remove(&pending.temporary).map_err(failed)?;
        if pending.folder_is_ours {
            // Goes only if it is empty: then it is as it was before us.
            let _ = fs::remove_dir(folder_of(&pending.target));
        }
        self.disk.sync(&pending.target).or_else(ignore_missing).map_err(failed)?;
        journal.pending = None;
        self.store(journal)
    }

    fn stage(&self, journal: &mut Journal, stage: Stage) -> Result<(), ConfigError> {
        if let Some(pending) = &mut journal.pending {
            pending.stage = stage;
        }
        self.store(journal)
    }

    fn load(&self) -> Result<Journal, ConfigError> {
        let journal = Journal::load(&self.folder).map_err(|source| self.remember(source))?;
        Ok(journal.unwrap_or_else(|| Journal::new(&self.config)))
    }

    fn store(&self, journal: &Journal) -> Result<(), ConfigError> {
        journal.store(&self.folder, &self.disk).map_err(|source| self.remember(source))
    }

    fn lock(&self) -> Result<File, ConfigError> {
        let path = self.folder.join("lock");
        let failed = |source| self.remember(FileError::Write { path: path.clone(), source });
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE_FILE_MODE)
            .open(&path)
            .map_err(failed)?;
        let deadline = Instant::now() + self.lock_within;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(ConfigError::Busy { path: self.config.clone(), within: self.lock_within });
                }
                Err(TryLockError::WouldBlock) => std::thread::park_timeout(LOCK_PAUSE),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }

    fn remember(&self, source: FileError) -> ConfigError {
        ConfigError::Remember { path: self.config.clone(), source }
    }

    fn text(&self, source: TextError) -> ConfigError {
        ConfigError::Text { path: self.config.clone(), source }
    }
}

/// `bytes` without what of ours has come back into them, or was never known here.
fn without_strays(state: &State, bytes: &[u8]) -> Result<Vec<u8>, TextError> {
    if !bytes.windows(PROVIDER_ID.len()).any(|window| window == PROVIDER_ID.as_bytes()) {
        return Ok(bytes.to_owned());
    }
    let text = text::decode(bytes)?;
    let known = if text::is_redirected(text) { text::take_out(text, &state.released)? } else { text.to_owned() };
    let own = match text::unremembered(&known)? {
        Some(changes) => text::take_out(&known, &changes)?,
        None => known,
    };
    Ok(own.into_bytes())
}

/// `folder` without symbolic links, as far as it exists: so one file has one name here, however it is reached.
fn place(folder: &Path) -> PathBuf {
    match (fs::canonicalize(folder), folder.parent(), folder.file_name()) {
        (Ok(found), _, _) => found,
        (Err(_), Some(parent), Some(name)) => place(parent).join(name),
        (Err(_), _, _) => folder.to_owned(),
    }
}

fn is_newer(path: &Path, than: &Path) -> bool {
    let modified = |path: &Path| fs::symlink_metadata(path).and_then(|metadata| metadata.modified()).ok();
    modified(path) >= modified(than)
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
