//! The local token, as its file says it now: another one takes effect without a restart.
//!
//! The file is looked at when somebody shows a token, at most once in [`LOOK_INTERVAL`]; and once more before a token
//! is refused, so that a new one counts from the moment it is written.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use codex_control::token::{self, TokenError, Tokens};

use crate::worker::now_unix_ms;

/// Longest time for which an old token is accepted after the file has changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// See the [module](self). The lock protects what was read last and is held for a look at the file at most.
pub(crate) struct LocalToken {
    path: PathBuf,
    known: Mutex<Known>,
}

struct Known {
    tokens: Tokens,
    stamp: Stamp,
    looked_at: Instant,
}

/// What differs when a file was replaced: inode, time of its last change. `None`: there is no file.
type Stamp = Option<(u64, i64, i64)>;

impl LocalToken {
    /// Reads the token, making it on first use.
    pub(crate) fn load(path: PathBuf) -> Result<Self, TokenError> {
        token::ensure_token(&path)?;
        // Before it is read: a change in between is then seen at the next look.
        let (looked_at, stamp) = (Instant::now(), stamp(&path));
        let tokens = token::read_tokens(&path)?.ok_or_else(|| TokenError::Damaged(path.clone()))?;
        Ok(Self { path, known: Mutex::new(Known { tokens, stamp, looked_at }) })
    }

    /// Whether `offered` is the token, or one before that is still accepted.
    pub(crate) fn accept(&self, offered: &[u8]) -> bool {
        let now_s = now_unix_ms() / 1_000;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.looked_at.elapsed() >= LOOK_INTERVAL {
            known.look(&self.path);
        }
        known.tokens.accept(offered, now_s) || (known.look(&self.path) && known.tokens.accept(offered, now_s))
    }
}

impl Known {
    /// Reads the file again if it was replaced; says whether it was. One that is gone or damaged changes nothing: those
    /// who have the token are not to suffer from it.
    fn look(&mut self, path: &Path) -> bool {
        self.looked_at = Instant::now();
        let stamp = stamp(path);
        if stamp == self.stamp {
            return false;
        }
        self.stamp = stamp;
        match token::read_tokens(path) {
            Ok(Some(tokens)) => {
                tracing::info!("the local token was rotated");
                self.tokens = tokens;
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(%error, "the local token cannot be read again; the one known so far counts");
                false
            }
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    std::fs::metadata(path).ok().map(|metadata| (metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_counts_at_once_and_damage_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zai");
        let local = LocalToken::load(path.clone()).unwrap();
        let current = || token::read_token(&path).unwrap().unwrap();
        let first = current();
        let accepts = |token: &codex_control::Secret| local.accept(token.expose().as_bytes());
        assert!(accepts(&first) && !local.accept(b"other"));
        token::rotate(&path, 0, u64::MAX).unwrap();
        assert!(accepts(&current()) && accepts(&first));
        let second = current();
        token::rotate(&path, 0, 0).unwrap();
        assert!(accepts(&current()), "the look it takes also ends the time of those before");
        assert!(!accepts(&first) && !accepts(&second));
        let third = current();
        std::fs::write(&path, "damaged").unwrap();
        assert!(!accepts(&first) && accepts(&third));
        std::fs::remove_file(&path).unwrap();
        assert!(!accepts(&first) && accepts(&third));
    }

    #[test]
    fn an_old_token_is_refused_after_a_moment_though_nobody_shows_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zai");
        let local = LocalToken::load(path.clone()).unwrap();
        let first = token::read_token(&path).unwrap().unwrap();
        token::rotate(&path, 0, 0).unwrap();
        local.known.lock().unwrap().looked_at -= LOOK_INTERVAL;
        assert!(!local.accept(first.expose().as_bytes()));
    }
}
