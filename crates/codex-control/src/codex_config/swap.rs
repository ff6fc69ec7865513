//! One file exchanged for another so that nothing anybody else writes meanwhile is lost.
//!
//! The new file is written beside the old one and put in its place by `renameat2(RENAME_EXCHANGE)`: in one step, so
//! that a reader sees the old or the new file, and in a way that brings the old one out. What comes out is compared with
//! what was expected. If somebody wrote in between, theirs comes out and is given back the same way.
//!
//! Deliberately absent: a fallback for file systems that cannot exchange. There a change could lose what another
//! program writes, so there is none.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::io::Errno;

use super::ConfigError;
use crate::files::{PRIVATE_FILE_MODE, PRIVATE_FOLDER_MODE, folder_of};

/// Largest `config.toml` that is changed. A large one of a person has a few hundred lines.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// Time for another program to write what it has begun to write.
const SETTLE: Duration = Duration::from_millis(20);
/// Longest wait for a file to be left alone.
const SETTLE_MAX: Duration = Duration::from_secs(2);
/// Times that what others write is given back, before the last of it is kept aside instead.
const GIVE_BACK_MAX: usize = 16;

/// A moment between two operations on the disk, where another program may do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Look,
    Settle,
    Keep,
    Journal,
    Create,
    Check,
    Exchange,
    Compare,
    GiveBack,
    Sync,
    Remove,
}

/// The disk, as one who works on it sees it.
pub(super) struct Disk {
    /// Is told before each step: nobody, but for tests that do something in between.
    pub(super) before: Option<Box<dyn Fn(Step)>>,
    /// A file that was written less than this ago may still be being written: programs that write in place first empty
    /// it.
    pub(super) settle: Duration,
}

impl Default for Disk {
    fn default() -> Self {
        Self { before: None, settle: SETTLE }
    }
}

/// What is at the place of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The file itself, links followed.
    pub(super) target: PathBuf,
    /// Its content and who may do what with it; `None` if there is no file.
    pub(super) file: Option<FoundFile>,
}

/// A file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundFile {
    pub(super) bytes: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    n_names: u64,
}

/// How an exchange went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Swapped {
    /// What was expected has come out and is in the temporary's place, if there was a file.
    Done,
    /// Somebody else has written before us: nothing was done, and the temporary is of no worth.
    Raced,
    /// Somebody else has written in the same moment. Theirs came out and is in its place again; the temporary is of no
    /// worth.
    GivenBack,
    /// The same, but one of theirs could not be given back since they have written again: the one kept last.
    Overtaken,
}

/// Keeps what came out aside before it is given back: whoever has read ours meanwhile may write without it.
pub(super) type Keep<'a> = &'a mut dyn FnMut(&[u8]);

impl Disk {
    pub(super) fn step(&self, step: Step) {
        if let Some(before) = &self.before {
            before(step);
        }
    }

    /// Looks what is at `config`, and waits until nobody is writing it.
    pub(super) fn look(&self, config: &Path) -> Result<Found, ConfigError> {
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            self.step(Step::Look);
            let target = resolve(config)?;
            let Some((file, modified)) = read(&target)? else { return Ok(Found { target, file: None }) };
            // A clock that was set back says nothing.
            let age = SystemTime::now().duration_since(modified).unwrap_or(self.settle);
            if age >= self.settle || Instant::now() >= deadline {
                return Ok(Found { target, file: Some(file) });
            }
            self.step(Step::Settle);
            // An early end of it is an early look.
            std::thread::park_timeout(self.settle.saturating_sub(age));
        }
    }

    /// Writes `bytes` beside the target, with the rights of the file that is there.
    pub(super) fn create(&self, temporary: &Path, bytes: &[u8], found: &Found) -> io::Result<()> {
        self.step(Step::Create);
        DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER_MODE).create(folder_of(temporary))?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE_FILE_MODE).open(temporary)?;
        if let Some(like) = &found.file {
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (like.uid, like.gid) {
                std::os::unix::fs::fchown(&file, Some(like.uid), Some(like.gid))?;
            }
            file.set_permissions(fs::Permissions::from_mode(like.mode))?;
        }
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Puts `new`, which is whole at `temporary`, into the place of `expected` at `target`; `None` is no file.
    pub(super) fn swap(
        &self,
        target: &Path,
        temporary: &Path,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
        keep: Keep<'_>,
    ) -> io::Result<Swapped> {
        self.step(Step::Check);
        // Seen now, nobody gets to see ours for a moment. What comes after this is seen by what comes out.
        if expected.is_some_and(|expected| !is(target, expected)) {
            return Ok(Swapped::Raced);
        }
        self.step(Step::Exchange);
        match (expected, new) {
            (None, None) => Ok(Swapped::Done),
            (None, Some(_)) => match rename(temporary, target, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(Swapped::Done),
                Err(Errno::EXIST) => Ok(Swapped::Raced),
                Err(error) => Err(error.into()),
            },
            (Some(_), None) => match rename(target, temporary, RenameFlags::NOREPLACE) {
                Ok(()) => self.compare(target, temporary, expected, new, keep),
                Err(Errno::NOENT) => Ok(Swapped::Raced),
                Err(error) => Err(error.into()),
            },
            (Some(_), Some(_)) => match rename(temporary, target, RenameFlags::EXCHANGE) {
                Ok(()) => self.compare(target, temporary, expected, new, keep),
                Err(Errno::NOENT) => Ok(Swapped::Raced),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Compares what has come out with what was expected, and gives back what differs.
    pub(super) fn compare(
        &self,
        target: &Path,
        temporary: &Path,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
        keep: Keep<'_>,
    ) -> io::Result<Swapped> {
        self.step(Step::Compare);
        match (expected, new) {
            (None, _) => Ok(Swapped::Done),
            (Some(expected), _) if is(temporary, expected) => Ok(Swapped::Done),
            (Some(_), None) => self.put_back(target, temporary, keep),
            (Some(_), Some(new)) => self.give_back(target, temporary, new, keep),
        }
    }

    /// Puts back what was moved away.
    pub(super) fn put_back(&self, target: &Path, temporary: &Path, keep: Keep<'_>) -> io::Result<Swapped> {
        self.step(Step::GiveBack);
        keep(&fs::read(temporary).unwrap_or_default());
        match rename(temporary, target, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Swapped::GivenBack),
            // They have written again: that is newer.
            Err(Errno::EXIST) => Ok(Swapped::Overtaken),
            Err(error) => Err(error.into()),
        }
    }

    /// Exchanges until what comes out is what was put in last; `put` is what we have put in before.
    pub(super) fn give_back(&self, target: &Path, temporary: &Path, put: &[u8], keep: Keep<'_>) -> io::Result<Swapped> {
        let mut put = put.to_owned();
        for _ in 0..GIVE_BACK_MAX {
            self.step(Step::GiveBack);
            // What is not a file that can be read (a link, a folder) is no less somebody's.
            let theirs = fs::read(temporary).unwrap_or_default();
            keep(&theirs);
            match rename(temporary, target, RenameFlags::EXCHANGE) {
                Ok(()) => {}
                // They have removed it since, which is newer.
                Err(Errno::NOENT) => return Ok(Swapped::Overtaken),
                Err(error) => return Err(error.into()),
            }
            self.step(Step::Compare);
            if is(temporary, &put) {
                return Ok(Swapped::GivenBack);
            }
            put = theirs;
        }
        keep(&fs::read(temporary).unwrap_or_default());
        Ok(Swapped::Overtaken)
    }

    /// Makes renames in the folder of `target` last.
    pub(super) fn sync(&self, target: &Path) -> io::Result<()> {
        self.step(Step::Sync);
        File::open(folder_of(target))?.sync_all()
    }

    /// Removes `temporary`, if it is there.
    pub(super) fn remove(&self, temporary: &Path) -> io::Result<()> {
        self.step(Step::Remove);
        match fs::remove_file(temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// Whether `path` is a file with exactly these bytes.
pub(super) fn is(path: &Path, bytes: &[u8]) -> bool {
    content(path).is_some_and(|found| found == bytes)
}

/// What `path` holds, if it is a file of a size that we change; a link is not followed.
pub(super) fn content(path: &Path) -> Option<Vec<u8>> {
    read(path).ok().flatten().map(|(file, _)| file.bytes)
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
}

/// Follows links; a file that does not exist is at the place where it would be made.
fn resolve(config: &Path) -> Result<PathBuf, ConfigError> {
    let unreadable = |source| ConfigError::Read { path: config.to_owned(), source };
    match fs::symlink_metadata(config) {
        Ok(metadata) if metadata.is_symlink() => match fs::canonicalize(config) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ConfigError::Dangling { path: config.to_owned(), to: fs::read_link(config).map_err(unreadable)? })
            }
            result => result.map_err(unreadable),
        },
        Ok(_) => Ok(config.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(config.to_owned()),
        Err(error) => Err(unreadable(error)),
    }
}

/// Reads a file that we may change, with the time of its last change. `None` if there is none.
fn read(path: &Path) -> Result<Option<(FoundFile, SystemTime)>, ConfigError> {
    let unreadable = |source| ConfigError::Read { path: path.to_owned(), source };
    // Not following: links were followed before. Not blocking: it may be a pipe.
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(ConfigError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    (&file).take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    // Asked after the last byte was read: whoever writes while we read is seen.
    let metadata = file.metadata().map_err(unreadable)?;
    let modified = metadata.modified().map_err(unreadable)?;
    let found = FoundFile {
        bytes,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        n_names: metadata.nlink(),
    };
    Ok(Some((found, modified)))
}

impl Found {
    /// Checks that the file may be replaced by another without a loss.
    pub(super) fn may_be_replaced(&self) -> Result<(), ConfigError> {
        const OWNER_MAY_WRITE: u32 = 0o200;
        let Some(file) = &self.file else { return Ok(()) };
        let path = self.target.clone();
        let user = rustix::process::geteuid();
        if file.mode & OWNER_MAY_WRITE == 0 {
            Err(ConfigError::ReadOnly { path })
        } else if file.uid != user.as_raw() && !user.is_root() {
            Err(ConfigError::NotOurs { path })
        } else if file.n_names > 1 {
            Err(ConfigError::Linked { path, n_names: file.n_names })
        } else {
            Ok(())
        }
    }

    pub(super) fn bytes(&self) -> Option<&[u8]> {
        self.file.as_ref().map(|file| file.bytes.as_slice())
    }
}
