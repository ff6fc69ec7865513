//! A *session*: one start of Codex by `codexctl launch`, from the launcher's first word to the end of everything Codex
//! has started.
//!
//! ```text
//!  launcher (codexctl)                               supervisor
//!    session.begin  ──────────────────────────────►  gives it an id, a folder and, with systemd, a scope
//!    starts Codex, as its child                      
//!    session.attach ──────────────────────────────►  watches Codex: its end, its memory, what it writes
//!    (again every minute: after a supervisor that lost its memory, the next one knows the session again)
//!    Codex ends; ends what Codex has left behind
//!    session.end    ──────────────────────────────►  forgets it; does the launcher's work where the launcher was killed
//! ```
//!
//! Codex is never the supervisor's child: the supervisor's hardening would break Codex's own sandbox. The launcher is its
//! parent, in the person's terminal, and subreaper of everything below. Without a supervisor Codex runs all the same.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::EndpointId;
use crate::process::Identity;
use crate::tree::Patience;

/// How often a launcher says again what it runs.
pub const ATTACH_INTERVAL: Duration = Duration::from_mins(1);
/// Most sessions at a time that are watched; further ones run unwatched.
pub const SESSIONS_MAX: usize = 64;
/// Longest id.
const ID_BYTES_MAX: usize = 32;
/// Name of the file in a session's folder to which the launcher copies what Codex writes to stderr.
pub const STDERR_LOG: &str = "stderr.log";
/// Name of the file that Codex writes in its log folder.
pub const CODEX_LOG: &str = "codex-tui.log";
/// What Codex has left behind gets this long to end.
pub const PATIENCE: Patience = Patience { term: Duration::from_secs(1), kill: Duration::from_secs(5) };

/// Id of a session, e.g. `cli-5f3a09c2`: lower-case letters, digits and dashes, at most 32 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);

/// A text that is no session id.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a session id: it consists of lower-case letters, digits and dashes, and is short")]
pub struct SessionIdError(String);

impl SessionId {
    /// The id of the session `kind` with the random `number`.
    pub fn new(kind: Kind, number: u32) -> Self {
        Self(format!("{}-{number:08x}", kind.name()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = SessionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !text.is_empty() && text.len() <= ID_BYTES_MAX && text.bytes().all(is_fine) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SessionIdError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for SessionId {
    type Error = SessionIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What runs in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The Codex CLI, in a terminal.
    Cli,
    /// Codex Desktop.
    Desktop,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Desktop => "desktop",
        }
    }
}

/// Parameters of `session.begin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// What is to run.
    pub kind: Kind,
    /// The endpoint it uses; none for Codex's own login.
    pub endpoint: Option<EndpointId>,
    /// Who asks: the parent of what is to run.
    pub launcher: Identity,
}

/// Result of `session.begin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Its id.
    pub id: SessionId,
    /// Its folder, private and empty, for [`STDERR_LOG`] and Codex's own log.
    pub folder: PathBuf,
    /// Whether Codex is to write its log into the folder.
    pub takes_codex_log: bool,
    /// The scope the launcher stands in now, where there is a service manager: what it starts is born there.
    pub scope: Option<Scope>,
}

/// A transient scope of systemd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// Name of the unit.
    pub unit: String,
    /// Its control group, below `/sys/fs/cgroup`.
    pub cgroup: PathBuf,
}

impl Scope {
    /// Name of the unit that a session gets.
    pub fn unit_of(session: &SessionId) -> String {
        format!("codex-session-{session}.scope")
    }

    /// Whether it is that of `session`, and nobody else's: all that stands in it is ended with the session.
    pub fn is_of(&self, session: &SessionId) -> bool {
        let is_plain = self.cgroup.components().all(|part| part != std::path::Component::ParentDir);
        self.unit == Self::unit_of(session)
            && is_plain
            && self.cgroup.starts_with("/sys/fs/cgroup")
            && self.cgroup.ends_with(&self.unit)
    }
}

/// Parameters of `session.attach`: everything there is to know, so that it can also be said to a supervisor that knows
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// What runs.
    pub kind: Kind,
    /// The endpoint it uses; none for Codex's own login.
    pub endpoint: Option<EndpointId>,
    /// Unix milliseconds of its start.
    pub started_at_ms: u64,
    /// The parent of what runs.
    pub launcher: Identity,
    /// What runs. `None` before it has been started.
    pub program: Option<Identity>,
    /// The scope both stand in.
    pub scope: Option<Scope>,
    /// Files to which it writes what it does, line by line.
    pub logs: Vec<PathBuf>,
    /// Programs that are not to be ended with it, files or folders: they serve others, too.
    pub spared: Vec<PathBuf>,
}

/// Parameters of `session.end`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Which.
    pub id: SessionId,
    /// How the program ended, for a person: `exit code 1`, `signal 9`.
    pub exit: String,
    /// Processes it had left behind and that were ended.
    pub n_ended: usize,
    /// Processes it had left behind and that could not be ended.
    pub n_left: usize,
}

/// A session, as `session.list` and `daemon.status` tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its id.
    pub id: SessionId,
    /// What runs.
    pub kind: Kind,
    /// The endpoint it uses; none for Codex's own login.
    pub endpoint: Option<EndpointId>,
    /// Process id of what runs; none before it was started and after it ended.
    pub pid: Option<u32>,
    /// Unix milliseconds of its start.
    pub started_at_ms: u64,
    /// Resident memory of everything in it.
    pub memory_bytes: Option<u64>,
    /// Processes in it, the launcher not counted.
    pub n_processes: usize,
    /// What a person should know about it.
    pub problem: Option<crate::ipc::Problem>,
    /// What it wrote last to its logs, redacted, its beginning.
    pub last_line: Option<String>,
    /// Lines it has written to its logs.
    pub n_lines: u64,
    /// Lines that were not looked at, because they came faster than they could be.
    pub n_lines_lost: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_that_of_its_session_alone() {
        let id = SessionId::new(Kind::Cli, 7);
        let unit = "codex-session-cli-00000007.scope";
        let scope = |unit: &str, cgroup: &str| Scope { unit: unit.to_owned(), cgroup: cgroup.into() };
        let group = format!("/sys/fs/cgroup/user.slice/{unit}");
        assert!(scope(unit, &group).is_of(&id));
        assert!(!scope(unit, &group).is_of(&SessionId::new(Kind::Cli, 8)));
        for (unit, cgroup) in [
            (unit, "/sys/fs/cgroup/user.slice"),
            (unit, "/sys/fs/cgroup/user.slice/../codex-session-cli-00000007.scope"),
            (unit, "/tmp/codex-session-cli-00000007.scope"),
            ("dbus.service", "/sys/fs/cgroup/user.slice/dbus.service"),
            ("dbus.service", group.as_str()),
        ] {
            assert!(!scope(unit, cgroup).is_of(&id), "{unit} {cgroup}");
        }
    }

    #[test]
    fn an_id_is_fit_for_a_file_name_and_a_unit_name() {
        let id = SessionId::new(Kind::Cli, 0x5f3a);
        assert_eq!(id.as_str(), "cli-00005f3a");
        assert_eq!(id.as_str().parse::<SessionId>().unwrap(), id);
        for text in ["", "a/b", "..", "A", "a b", "ä", &"a".repeat(33)] {
            assert!(text.parse::<SessionId>().is_err(), "{text}");
        }
    }
}
