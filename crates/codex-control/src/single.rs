//! One supervisor per user: a lock that the kernel gives back when its holder ends, however it ends.
//!
//! Who cleans up after earlier supervisors ([`crate::cleanup`]) holds it meanwhile: a worker is not to be ended by one and
//! taken over by the other.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cleanup;
use crate::files::PRIVATE_FILE_MODE;
use crate::process::Process;
use crate::report::Hinted;

/// Tries to get at a lock file that another supervisor removes at the same moment.
const TRIES_MAX: u32 = 16;
/// Longest content of a lock file that is read: a pid, what for, and a line end.
const CONTENT_BYTES_MAX: u64 = 64;
/// Time for a lock that outlives its holder: where a supervisor was killed while it started a worker, the child has the
/// lock until it becomes the worker.
const LEFT_BEHIND_WITHIN: Duration = Duration::from_secs(1);
/// Time between two looks at a lock that is waited for.
const HELD_PAUSE: Duration = Duration::from_millis(5);
/// Looks at the list of locks before one is believed to be missing; see [`listed_locks`].
const LOOKS: u32 = 3;
/// Room for the list of locks, more than systems have.
const LOCKS_BYTES: usize = 64 * 1024;
/// What stands behind the pid of one that cleans up.
const CLEANS_UP: &str = "cleanup";

/// What the lock is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To supervise, as long as the process lives.
    Supervise,
    /// To clean up after earlier supervisors, at most [`cleanup::WITHIN`].
    CleanUp,
}

/// Held until it is dropped; the file goes with it.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

/// Who has the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process, if it has written that down already.
    pub pid: Option<u32>,
    /// What for.
    pub purpose: Purpose,
}

impl Holder {
    fn parse(content: &str) -> Self {
        let mut words = content.split_ascii_whitespace();
        let pid = words.next().and_then(|pid| pid.parse().ok());
        let purpose = if words.next() == Some(CLEANS_UP) { Purpose::CleanUp } else { Purpose::Supervise };
        Self { pid, purpose }
    }

    /// How long it may keep somebody waiting, who has it only for a while; `left_behind` if it has ended.
    fn patience(self, left_behind: Duration) -> Duration {
        match (self.pid, self.purpose) {
            (None, _) => left_behind, // about to say who it is
            (Some(pid), _) if Process::open(pid).map_or(true, |holder| holder.has_ended()) => left_behind,
            (Some(_), Purpose::CleanUp) => cleanup::WITHIN,
            (Some(_), Purpose::Supervise) => Duration::ZERO,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.purpose {
            Purpose::Supervise => "a supervisor is running already",
            Purpose::CleanUp => "`codexctl cleanup` is running",
        })?;
        self.pid.map_or(Ok(()), |pid| write!(f, " (pid {pid})"))
    }
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("{0}")]
    Held(Holder),
    /// The file could not be used.
    #[error("the lock `{path}` cannot be taken")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Hinted for LockError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Held(Holder { purpose: Purpose::Supervise, .. }) => {
                Some("`codexctl status` shows it, `codexctl stop` ends it".to_owned())
            }
            Self::Held(Holder { purpose: Purpose::CleanUp, .. }) => Some("try again when it has ended".to_owned()),
            Self::File { .. } => None,
        }
    }
}

/// Takes the lock at `path` and writes our pid into it.
///
/// # Errors
/// [`LockError::Held`] at once if a supervisor has it, after `LEFT_BEHIND_WITHIN` if who has taken it has ended, and
/// after [`cleanup::WITHIN`] if somebody cleans up.
pub fn take(path: &Path, purpose: Purpose) -> Result<Lock, LockError> {
    take_from(path, purpose, LEFT_BEHIND_WITHIN)
}

/// [`take`], with the time for a lock that outlives its holder.
fn take_from(path: &Path, purpose: Purpose, left_behind: Duration) -> Result<Lock, LockError> {
    let asked_at = Instant::now();
    loop {
        // Read before the look: nobody gives up without a look after their time.
        let waited = asked_at.elapsed();
        let holder = match try_take(path, purpose) {
            Err(LockError::Held(holder)) => holder,
            taken => return taken,
        };
        if waited >= holder.patience(left_behind) {
            return Err(LockError::Held(holder));
        }
        thread::park_timeout(HELD_PAUSE);
    }
}

/// Who has the lock at `path`. Looked up instead of tried: a lock taken for a moment could make a starting supervisor
/// believe that there is another one.
pub fn holder(path: &Path) -> Option<Holder> {
    let file = File::open(path).ok()?;
    let inode = file.metadata().ok()?.ino();
    // A system that does not tell has locks all the same.
    let is_held = (0..LOOKS).any(|_| listed_locks().map_or(true, |locks| is_listed(&locks, inode)));
    is_held.then(|| read_holder(file))
}

/// The content of `/proc/locks`, in as few reads as there can be: between two, a lock that goes takes the next one's
/// place, which is then not listed.
fn listed_locks() -> io::Result<String> {
    let mut locks = String::with_capacity(LOCKS_BYTES);
    File::open("/proc/locks")?.read_to_string(&mut locks)?;
    Ok(locks)
}

/// Whether `locks`, the content of `/proc/locks`, has a lock on the file `inode`.
///
/// `1: FLOCK  ADVISORY  WRITE 5120 00:1b:4711 0 EOF`. Devices are not compared: some file systems (btrfs, overlayfs)
/// show another device there than `stat` does.
fn is_listed(locks: &str, inode: u64) -> bool {
    let suffix = format!(":{inode}");
    locks.lines().any(|line| line.split_ascii_whitespace().any(|field| field.ends_with(&suffix)))
}

fn read_holder(file: File) -> Holder {
    let mut content = String::new();
    // One that has not written its pid yet is named without it.
    let _ = file.take(CONTENT_BYTES_MAX).read_to_string(&mut content);
    Holder::parse(&content)
}

fn try_take(path: &Path, purpose: Purpose) -> Result<Lock, LockError> {
    let error = |source| LockError::File { path: path.to_owned(), source };
    for _ in 0..TRIES_MAX {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE_FILE_MODE)
            .open(path)
            .map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LockError::Held(read_holder(file))),
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        // The holder before us removes the file when it ends: what we have locked may have no name any more.
        let is_named = fs::metadata(path).is_ok_and(|named| {
            file.metadata().is_ok_and(|locked| (named.dev(), named.ino()) == (locked.dev(), locked.ino()))
        });
        if is_named {
            let what_for = if purpose == Purpose::CleanUp { format!(" {CLEANS_UP}") } else { String::new() };
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| writeln!(file, "{}{what_for}", std::process::id()))
                .map_err(error)?;
            return Ok(Lock { path: path.to_owned(), _file: file });
        }
    }
    Err(error(io::Error::new(io::ErrorKind::WouldBlock, "other supervisors come and go")))
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked here, so nobody else can have taken this file. A failure leaves an unlocked file: harmless.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longest wait for what comes in the end.
    const DEADLINE: Duration = Duration::from_mins(1);

    /// Who has the lock that cannot be taken.
    fn refused(path: &Path, purpose: Purpose) -> Holder {
        let error = take(path, purpose).unwrap_err();
        let LockError::Held(holder) = error else { panic!("{error}") };
        holder
    }

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = take(&path, Purpose::Supervise).unwrap();
        let error = take(&path, Purpose::Supervise).unwrap_err();
        let holder = Holder { pid: Some(std::process::id()), purpose: Purpose::Supervise };
        assert!(matches!(error, LockError::Held(found) if found == holder));
        assert_eq!(error.to_string(), format!("a supervisor is running already (pid {})", std::process::id()));
        drop(first);
        assert!(!path.exists());
        drop(take(&path, Purpose::Supervise).unwrap());
    }

    #[test]
    fn a_lock_that_outlives_its_holder_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let ended = std::process::Command::new("true").spawn().and_then(|mut child| child.wait().map(|_| child.id()));
        fs::write(&path, format!("{}\n", ended.unwrap())).unwrap();
        let left = File::open(&path).unwrap();
        left.lock().unwrap();
        let asked_at = Instant::now();
        assert!(matches!(take(&path, Purpose::Supervise), Err(LockError::Held { .. })), "it is not taken from anybody");
        assert!(asked_at.elapsed() >= LEFT_BEHIND_WITHIN);
        let taken = thread::scope(|scope| {
            let taking = scope.spawn(|| take_from(&path, Purpose::Supervise, DEADLINE));
            drop(left);
            taking.join().unwrap()
        });
        drop(taken.unwrap());
        // One that lives is told at once.
        let _first = take(&path, Purpose::Supervise).unwrap();
        assert_eq!(refused(&path, Purpose::Supervise).patience(DEADLINE), Duration::ZERO);
    }

    #[test]
    fn a_file_left_by_a_killed_supervisor_is_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        fs::write(&path, "4194304 and something\n").unwrap();
        let _lock = take(&path, Purpose::Supervise).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn one_that_cleans_up_is_waited_for_and_one_that_supervises_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let cleaning = take(&path, Purpose::CleanUp).unwrap();
        let holder = Holder { pid: Some(std::process::id()), purpose: Purpose::CleanUp };
        assert_eq!(super::holder(&path), Some(holder));
        let taken = thread::scope(|scope| {
            let taking = scope.spawn(|| take(&path, Purpose::Supervise));
            let waited = Instant::now() + LEFT_BEHIND_WITHIN * 2; // longer than for one that has ended
            while Instant::now() < waited {
                assert!(!taking.is_finished());
                thread::park_timeout(HELD_PAUSE);
            }
            drop(cleaning);
            taking.join().unwrap()
        });
        let _supervising = taken.unwrap();
        let supervising = refused(&path, Purpose::CleanUp);
        assert!(supervising.to_string().starts_with("a supervisor is running already (pid "), "{supervising}");
        assert_eq!(supervising.patience(DEADLINE), Duration::ZERO);
    }

    #[test]
    fn a_held_lock_is_seen() {
        let locks = "1: FLOCK  ADVISORY  WRITE 5120 00:1b:4711 0 EOF\n2: POSIX  ADVISORY  READ 7 08:01:99 0 EOF\n";
        assert!(is_listed(locks, 4711) && is_listed(locks, 99));
        assert!(!is_listed(locks, 711) && !is_listed(locks, 1));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert_eq!(holder(&path), None);
        fs::write(&path, "1\n").unwrap();
        assert_eq!(holder(&path), None, "a file that nobody has locked says nothing");
        let _lock = take(&path, Purpose::Supervise).unwrap();
        assert_eq!(holder(&path), Some(Holder { pid: Some(std::process::id()), purpose: Purpose::Supervise }));
    }
}
