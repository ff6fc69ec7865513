//! One supervisor per user: a lock that the kernel gives back when its holder ends, however it ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use codex_control::files::PRIVATE_FILE_MODE;
use codex_control::process::Process;
use codex_control::report::Hinted;

/// Tries to get at a lock file that another supervisor removes at the same moment.
const TRIES_MAX: u32 = 16;
/// Longest content of a lock file that is read: a pid and a line end.
const CONTENT_BYTES_MAX: u64 = 64;
/// Time for a lock that outlives its holder: where a supervisor was killed while it started a worker, the child has the
/// lock until it becomes the worker.
const LEFT_BEHIND_WITHIN: Duration = Duration::from_secs(1);
/// Time between two looks at such a lock.
const LEFT_BEHIND_PAUSE: Duration = Duration::from_millis(5);

/// Held as long as the supervisor lives; the file goes with it.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another supervisor runs.
    #[error("a supervisor is running already{}", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Held {
        /// Its process.
        pid: Option<u32>,
    },
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
            Self::Held { .. } => Some("`codexctl status` shows it, `codexctl stop` ends it".to_owned()),
            Self::File { .. } => None,
        }
    }
}

/// Takes the lock at `path` and writes our pid into it.
///
/// # Errors
/// [`LockError::Held`] at once if another supervisor has it, and after [`LEFT_BEHIND_WITHIN`] if the one that has taken
/// it has ended.
pub(crate) fn take(path: &Path) -> Result<Lock, LockError> {
    let given_up_at = Instant::now() + LEFT_BEHIND_WITHIN;
    loop {
        let held = match try_take(path) {
            Err(LockError::Held { pid: Some(pid) }) => pid,
            taken => return taken,
        };
        let has_ended = Process::open(held).map_or(true, |holder| holder.has_ended());
        if !has_ended || Instant::now() >= given_up_at {
            return Err(LockError::Held { pid: Some(held) });
        }
        thread::park_timeout(LEFT_BEHIND_PAUSE);
    }
}

fn try_take(path: &Path) -> Result<Lock, LockError> {
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
            Err(TryLockError::WouldBlock) => {
                let mut content = String::new();
                // A holder that has not written its pid yet is named without it.
                let _ = file.take(CONTENT_BYTES_MAX).read_to_string(&mut content);
                return Err(LockError::Held { pid: content.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        // The holder before us removes the file when it ends: what we have locked may have no name any more.
        let is_named = fs::metadata(path).is_ok_and(|named| {
            file.metadata().is_ok_and(|locked| (named.dev(), named.ino()) == (locked.dev(), locked.ino()))
        });
        if is_named {
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| writeln!(file, "{}", std::process::id()))
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

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = take(&path).unwrap();
        let error = take(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("a supervisor is running already (pid {})", std::process::id()));
        drop(first);
        assert!(!path.exists());
        drop(take(&path).unwrap());
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
        assert!(matches!(take(&path), Err(LockError::Held { .. })), "it is not taken from anybody");
        assert!(asked_at.elapsed() >= LEFT_BEHIND_WITHIN);
        let taken = thread::scope(|scope| {
            let taking = scope.spawn(|| take(&path));
            drop(left);
            taking.join().unwrap()
        });
        drop(taken.unwrap());
        // One that lives is told at once.
        let _first = take(&path).unwrap();
        let asked_at = Instant::now();
        take(&path).unwrap_err();
        assert!(asked_at.elapsed() < LEFT_BEHIND_WITHIN);
    }

    #[test]
    fn a_file_left_by_a_killed_supervisor_is_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        fs::write(&path, "4194304 and something\n").unwrap();
        let _lock = take(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }
}
