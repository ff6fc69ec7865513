//! The local bearer token that Codex shows to a worker, and the key that seals carried state.
//!
//! Both are random, made once, and kept in files that only their owner can read: another local user, or a web page in
//! the user's browser, knows neither.

use std::path::Path;

use subtle::ConstantTimeEq;

use crate::Secret;
use crate::files::{self, FileError};

/// Random bytes behind a token: out of reach of guessing.
const TOKEN_BYTES: usize = 32;
/// Length of the seal key.
pub const SEAL_KEY_BYTES: usize = 32;
/// Longest token file that is read.
const TOKEN_FILE_BYTES_MAX: u64 = 4_096;

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
    let Some(bytes) = files::read_bounded(path, TOKEN_FILE_BYTES_MAX)? else {
        return Ok(None);
    };
    let token = String::from_utf8(bytes).ok().map(|text| text.trim().to_owned());
    match token {
        Some(token) if token.len() == 2 * TOKEN_BYTES && token.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Ok(Some(Secret::new(token)))
        }
        _ => Err(TokenError::Damaged(path.to_owned())),
    }
}

/// Whether `offered` is `token`, in a time that does not depend on where they differ.
pub fn matches(token: &Secret, offered: &[u8]) -> bool {
    token.expose().as_bytes().ct_eq(offered).into()
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
    use std::fmt::Write;
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
        assert!(matches(&token, token.expose().as_bytes()));
        assert!(!matches(&token, &token.expose().as_bytes()[1..]));
        assert!(!matches(&token, b""));
        assert_ne!(ensure_token(&folder.path().join("other")).unwrap(), token);
    }

    #[test]
    fn a_damaged_token_is_told_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(ensure_token(&path), Err(TokenError::Damaged(_))));
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
