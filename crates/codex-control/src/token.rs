//! The local bearer token that Codex shows to a worker, and the key that seals carried state.
//!
//! Both are random, and kept in files that only their owner can read: another local user, or a web page in the user's
//! browser, knows neither.
//!
//! A token can be [rotated](rotate). Its file then holds the new one on the first line, and below it those before, each
//! with the Unix second until which it is still accepted:
//!
//! ```text
//! 8f14e45fceea167a5a36dedd4bea2543…
//! c9f0f895fb98ab9159f51fd0297e236d… 1795412345
//! ```

use std::fmt::Write;
use std::fs::File;
use std::path::Path;

use rustix::fs::FlockOperation;
use subtle::ConstantTimeEq;

use crate::Secret;
use crate::files::{self, FileError};

/// Random bytes behind a token: out of reach of guessing.
const TOKEN_BYTES: usize = 32;
/// Length of the seal key.
pub const SEAL_KEY_BYTES: usize = 32;
/// Longest token file that is read.
const TOKEN_FILE_BYTES_MAX: u64 = 4_096;
/// Earlier tokens that are kept; further ones are refused before their time.
const EARLIER_MAX: usize = 8;

/// The tokens of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    current: Secret,
    /// Newest first, each with the Unix second until which it is accepted.
    earlier: Vec<(Secret, u64)>,
}

impl Tokens {
    /// The one to show.
    pub fn current(&self) -> &Secret {
        &self.current
    }

    /// Whether `offered` is the current token, or an earlier one that is still accepted at `now_s`, in a time that does
    /// not depend on where they differ.
    pub fn accept(&self, offered: &[u8], now_s: u64) -> bool {
        let earlier = self.earlier.iter().filter(|(_, until_s)| now_s < *until_s).map(|(token, _)| token);
        std::iter::once(&self.current).chain(earlier).fold(false, |found, token| {
            // Both sides are evaluated, whichever token it is.
            found | bool::from(token.expose().as_bytes().ct_eq(offered))
        })
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file holds something else than a token.
    #[error("`{0}` does not hold a token; remove it, a new one is made at the next start")]
    Damaged(std::path::PathBuf),
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// Reads the token at `path`, making it on first use.
pub fn ensure_token(path: &Path) -> Result<Secret, TokenError> {
    if let Some(token) = read_token(path)? {
        return Ok(token);
    }
    files::create_missing_folders(files::folder_of(path))?;
    files::create_private_once(path, format!("{}\n", hex(&random::<TOKEN_BYTES>()?)).as_bytes())?;
    read_token(path)?.ok_or_else(|| TokenError::Damaged(path.to_owned()))
}

/// Reads the token at `path`; `None` if there is no such file.
pub fn read_token(path: &Path) -> Result<Option<Secret>, TokenError> {
    Ok(read_tokens(path)?.map(|tokens| tokens.current))
}

/// Reads the token at `path` and those before it; `None` if there is no such file.
pub fn read_tokens(path: &Path) -> Result<Option<Tokens>, TokenError> {
    let Some(bytes) = files::read_bounded(path, TOKEN_FILE_BYTES_MAX)? else {
        return Ok(None);
    };
    let text = Secret::new(String::from_utf8(bytes).map_err(|_| TokenError::Damaged(path.to_owned()))?);
    parse(text.expose()).map(Some).ok_or_else(|| TokenError::Damaged(path.to_owned()))
}

fn parse(text: &str) -> Option<Tokens> {
    let token = |text: &str| {
        let is_token = text.len() == 2 * TOKEN_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_token.then(|| Secret::new(text.to_owned()))
    };
    let mut lines = text.trim().lines();
    let current = token(lines.next()?.trim())?;
    let earlier = lines.map(|line| {
        let (before, until_s) = line.trim().split_once(' ')?;
        Some((token(before)?, until_s.parse().ok()?))
    });
    Some(Tokens { current, earlier: earlier.collect::<Option<_>>()? })
}

/// Puts a new token into `path`. The one before is accepted until the Unix second `until_s`, and none before that one
/// for longer than it was; with an `until_s` that has passed only the new one is.
///
/// The file is replaced whole. Two rotations at once happen one after the other.
pub fn rotate(path: &Path, now_s: u64, until_s: u64) -> Result<(), TokenError> {
    let folder = files::folder_of(path);
    files::create_missing_folders(folder)?;
    let failed = |source| FileError::Read { path: folder.to_owned(), source };
    // Released when it is closed.
    let lock = File::open(folder).map_err(failed)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    let mut text = format!("{}\n", hex(&random::<TOKEN_BYTES>()?));
    if let Some(Tokens { current, earlier }) = read_tokens(path)? {
        let all =
            std::iter::once((current, until_s)).chain(earlier.into_iter().map(|(token, s)| (token, s.min(until_s))));
        for (token, until_s) in all.filter(|(_, until_s)| now_s < *until_s).take(EARLIER_MAX) {
            text.push_str(token.expose());
            let _ = writeln!(text, " {until_s}"); // writing to a String cannot fail
        }
    }
    let text = Secret::new(text);
    files::write_atomically(path, text.expose().as_bytes(), files::PRIVATE_FILE_MODE)?;
    Ok(())
}

/// Reads the seal key at `path`, making it on first use. A damaged one is replaced: state sealed before is then
/// treated as unknown, which costs quality, never correctness.
pub fn ensure_seal_key(path: &Path) -> Result<[u8; SEAL_KEY_BYTES], TokenError> {
    for _ in 0..2 {
        match files::read_bounded(path, TOKEN_FILE_BYTES_MAX)?.map(<[u8; SEAL_KEY_BYTES]>::try_from) {
            Some(Ok(key)) => return Ok(key),
            Some(Err(_)) => files::write_atomically(path, &random::<SEAL_KEY_BYTES>()?, files::PRIVATE_FILE_MODE)?,
            None => {
                files::create_missing_folders(files::folder_of(path))?;
                files::create_private_once(path, &random::<SEAL_KEY_BYTES>()?)?;
            }
        }
    }
    Err(TokenError::Damaged(path.to_owned()))
}

fn random<const N: usize>() -> Result<[u8; N], TokenError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(TokenError::Random)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_compared_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens/zai");
        let token = ensure_token(&path).unwrap();
        assert_eq!(ensure_token(&path).unwrap(), token);
        let tokens = read_tokens(&path).unwrap().unwrap();
        assert!(tokens.accept(token.expose().as_bytes(), 0));
        assert!(!tokens.accept(&token.expose().as_bytes()[1..], 0));
        assert!(!tokens.accept(b"", 0));
        assert_ne!(ensure_token(&folder.path().join("other")).unwrap(), token);
    }

    #[test]
    fn an_earlier_token_is_accepted_for_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens/zai");
        let accepted =
            |token: &Secret, now_s| read_tokens(&path).unwrap().unwrap().accept(token.expose().as_bytes(), now_s);
        let first = ensure_token(&path).unwrap();
        rotate(&path, 100, 200).unwrap();
        let second = read_token(&path).unwrap().unwrap();
        assert_ne!(first, second);
        assert_eq!([199, 200].map(|now_s| accepted(&first, now_s)), [true, false]);
        rotate(&path, 150, 400).unwrap();
        assert_eq!([199, 200].map(|now_s| accepted(&first, now_s)), [true, false], "its time is not prolonged");
        assert_eq!([399, 400].map(|now_s| accepted(&second, now_s)), [true, false]);
        // At once: only the newest counts.
        rotate(&path, 160, 0).unwrap();
        let third = read_token(&path).unwrap().unwrap();
        assert_eq!([&first, &second, &third].map(|token| accepted(token, 160)), [false, false, true]);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1, "what counts no more is not kept");
    }

    #[test]
    fn only_so_many_earlier_tokens_are_kept_and_rotations_do_not_mix() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens/zai");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| rotate(&path, 0, 100).unwrap()));
            }
        });
        let tokens = read_tokens(&path).unwrap().unwrap();
        assert_eq!(tokens.earlier.len(), EARLIER_MAX);
        let names: Vec<_> = std::fs::read_dir(folder.path().join("tokens")).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing else is left");
    }

    #[test]
    fn a_damaged_token_is_told_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let token = "0".repeat(2 * TOKEN_BYTES);
        for text in
            ["short", "", "\n", &format!("{token}\n{token}\n"), &format!("{token}\nshort 1\n"), &format!("{token} 1\n")]
        {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(ensure_token(&path), Err(TokenError::Damaged(_))), "{text:?}");
        }
    }

    #[test]
    fn a_damaged_seal_key_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        let key = ensure_seal_key(&path).unwrap();
        assert_eq!(ensure_seal_key(&path).unwrap(), key);
        std::fs::write(&path, "short").unwrap();
        let next = ensure_seal_key(&path).unwrap();
        assert_ne!(next, key);
        assert_eq!(ensure_seal_key(&path).unwrap(), next);
    }
}
