//! The provider's key: read when it is needed, kept briefly, read again when the provider refuses it.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use codex_control::credentials::{self, CREDENTIAL_BYTES_MAX, CredentialError};
use codex_control::endpoint::{CredentialSource, Endpoint};
use codex_control::ipc::Problem;
use codex_control::token::SEAL_KEY_BYTES;
use codex_control::{EndpointId, Secret, redact, report};
use codex_translate::sealed;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::worker::now_unix_ms;

/// How long a key from a file is used before the file is looked at again.
const FILE_AGE_MAX: Duration = Duration::from_secs(5);
/// How long a printed key is used: the program may ask a person or a slow vault.
const COMMAND_AGE_MAX: Duration = Duration::from_mins(10);
/// How long a program may take to print a key.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Where this endpoint's key comes from, and the key while it is fresh.
pub(crate) struct Credential {
    endpoint: EndpointId,
    source: CredentialSource,
    stored: PathBuf,
    /// Keys the names of accounts.
    seal_key: [u8; SEAL_KEY_BYTES],
    /// What is known about the key that was read last. The lock protects this one value.
    known: StdMutex<Known>,
    /// Held while the key is read, so that concurrent requests start one program, not many.
    cached: Mutex<Option<(Instant, Secret)>>,
}

/// What is known about a key without asking its provider.
#[derive(Default)]
struct Known {
    /// Name of its account.
    account: String,
    /// When it ends, in Unix milliseconds, where it says so.
    ends_at_ms: Option<u64>,
}

/// What getting a key anew has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// The provider wants none.
    None,
    /// It says that it is valid.
    Valid,
    /// It says that it has expired.
    Expired,
    /// It says nothing, and is another than before.
    Another,
    /// It says nothing, and is the one that there was.
    Same,
}

/// When a key ends, in Unix milliseconds, if it is a JSON web token that says so. Its signature is its provider's matter.
///
/// Source: RFC 7519, section 4.1.4.
fn ends_at_ms(key: &str) -> Option<u64> {
    /// Seconds since 1970, with a fraction or without.
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let mut parts = key.split('.');
    let (_header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be within a sane range")]
    (0.0..1e12).contains(&exp).then_some((exp * 1000.0) as u64)
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("endpoint `{0}` has no key")]
    Missing(EndpointId),
    #[error("endpoint `{endpoint}` cannot use its key")]
    Unusable {
        endpoint: EndpointId,
        #[source]
        source: CredentialError,
    },
    #[error("the key of endpoint `{endpoint}` comes from `{program}`, which {reason}")]
    Command { endpoint: EndpointId, program: String, reason: String },
}

impl KeyError {
    /// As shown to the person, in Codex and in `codexctl status`.
    pub(crate) fn problem(&self, source: &CredentialSource) -> Problem {
        let id = match self {
            Self::Missing(endpoint) | Self::Unusable { endpoint, .. } | Self::Command { endpoint, .. } => endpoint,
        };
        let hint = match source {
            CredentialSource::None | CredentialSource::Store => format!("store one with `codexctl login {id}`"),
            CredentialSource::Env(name) => format!(
                "set `{name}` in the supervisor's environment and restart it, or store the key with `codexctl login {id}`"
            ),
            CredentialSource::File(path) => format!("put the key into `{}`", path.display()),
            CredentialSource::Command(_) => "run that program by hand to see what it says".to_owned(),
        };
        Problem { message: report::chain(self), hint: Some(hint) }
    }
}

impl Credential {
    pub(crate) fn new(endpoint: &Endpoint, stored: PathBuf, seal_key: [u8; SEAL_KEY_BYTES]) -> Self {
        Self {
            endpoint: endpoint.id.clone(),
            source: endpoint.credential.clone(),
            stored,
            seal_key,
            known: StdMutex::default(),
            cached: Mutex::new(None),
        }
    }

    /// A name for the account of the key that [`Self::get`] gave last; empty where the provider wants no key, and before
    /// the first one was read.
    ///
    /// A program that prints keys stands for its account: it may well print another key every hour.
    pub(crate) fn account(&self) -> String {
        self.known().account.clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the key that was read last is past its end at the Unix time `now_ms`; 0: not yet. `None`: it says no end,
    /// or none was read.
    pub(crate) fn expired_for_ms(&self, now_ms: u64) -> Option<u64> {
        self.known().ends_at_ms.map(|at| now_ms.saturating_sub(at))
    }

    /// When the key that was read last ends, in Unix milliseconds, if it says so.
    pub(crate) fn ends_at_ms(&self) -> Option<u64> {
        self.known().ends_at_ms
    }

    pub(crate) fn source(&self) -> &CredentialSource {
        &self.source
    }

    /// The key; `None` where the provider wants none.
    pub(crate) async fn get(&self) -> Result<Option<Secret>, KeyError> {
        if self.source == CredentialSource::None {
            return Ok(None);
        }
        let mut cached = self.cached.lock().await;
        let age_max = if matches!(self.source, CredentialSource::Command(_)) { COMMAND_AGE_MAX } else { FILE_AGE_MAX };
        // What has expired is asked for anew, but not with every request.
        let age_max = if self.expired_for_ms(now_unix_ms()).is_some_and(|ms| ms > 0) { FILE_AGE_MAX } else { age_max };
        if let Some((read_at, key)) = &*cached
            && read_at.elapsed() < age_max
        {
            return Ok(Some(key.clone()));
        }
        let key = self.read().await?;
        redact::never_show(&key);
        let account = match &self.source {
            CredentialSource::Command(command) => sealed::account(&self.seal_key, command.join("\0").as_bytes()),
            _ => sealed::account(&self.seal_key, key.expose().as_bytes()),
        };
        *self.known() = Known { account, ends_at_ms: ends_at_ms(key.expose()) };
        *cached = Some((Instant::now(), key.clone()));
        Ok(Some(key))
    }

    /// After the provider refused `refused`: reads the key anew and says whether it is another one now.
    pub(crate) async fn has_changed(&self, refused: Option<&Secret>) -> bool {
        *self.cached.lock().await = None;
        matches!((self.get().await, refused), (Ok(Some(now)), Some(refused)) if now != *refused)
    }

    /// Gets the key anew from where it comes from, whatever its age.
    pub(crate) async fn renew(&self) -> Result<Renewed, KeyError> {
        let before = self.cached.lock().await.take().map(|(_, key)| key);
        let Some(key) = self.get().await? else { return Ok(Renewed::None) };
        Ok(match self.expired_for_ms(now_unix_ms()) {
            Some(0) => Renewed::Valid,
            Some(_) => Renewed::Expired,
            None if before.is_some_and(|before| before == key) => Renewed::Same,
            None => Renewed::Another,
        })
    }

    async fn read(&self) -> Result<Secret, KeyError> {
        let missing = || KeyError::Missing(self.endpoint.clone());
        let unusable = |source| KeyError::Unusable { endpoint: self.endpoint.clone(), source };
        match &self.source {
            CredentialSource::None => Err(missing()),
            CredentialSource::Store => credentials::load_file(&self.stored).map_err(unusable)?.ok_or_else(missing),
            CredentialSource::File(path) => credentials::load_file(path).map_err(unusable)?.ok_or_else(missing),
            CredentialSource::Env(name) => {
                let value = std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(missing)?;
                credentials::validated(&value).map(|key| Secret::new(key.to_owned())).map_err(unusable)
            }
            CredentialSource::Command(command) => self.run(command).await,
        }
    }

    async fn run(&self, command: &[String]) -> Result<Secret, KeyError> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(KeyError::Missing(self.endpoint.clone()));
        };
        let failed =
            |reason: String| KeyError::Command { endpoint: self.endpoint.clone(), program: program.clone(), reason };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(format!("cannot be started: {error}")))?;
        let mut stdout = child.stdout.take().ok_or_else(|| failed("has no output".to_owned()))?;
        let mut printed = Vec::new();
        let ended = tokio::time::timeout(COMMAND_TIMEOUT, async {
            (&mut stdout).take(CREDENTIAL_BYTES_MAX as u64 + 1).read_to_end(&mut printed).await?;
            child.wait().await
        })
        .await
        .map_err(|_| failed(format!("took longer than {} s", COMMAND_TIMEOUT.as_secs())))?
        .map_err(|error| failed(format!("failed: {error}")))?;
        if !ended.success() {
            return Err(failed(format!("ended with {ended}")));
        }
        let printed = String::from_utf8(printed).map_err(|_| failed("printed no text".to_owned()))?;
        credentials::validated(&printed)
            .map(|key| Secret::new(key.to_owned()))
            .map_err(|source| KeyError::Unusable { endpoint: self.endpoint.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_web_token_says_when_it_ends() {
        let token = |claims: &str| format!("eyJhbGciOiJIUzI1NiJ9.{}.sig", URL_SAFE_NO_PAD.encode(claims));
        for (key, expected) in [
            (token(r#"{"sub":"1","exp":1700000000}"#), Some(1_700_000_000_000)),
            (token(r#"{"exp":1700000000.5}"#), Some(1_700_000_000_500)),
            (token(r#"{"sub":"1"}"#), None),
            (token(r#"{"exp":"soon"}"#), None),
            (token(r#"{"exp":-1}"#), None),
            (token(r#"{"exp":1e300}"#), None),
            (token("no json"), None),
            ("sk-proj-abc.def".to_owned(), None),
            ("a.b.c".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(ends_at_ms(&key), expected, "{key}");
        }
    }
}
