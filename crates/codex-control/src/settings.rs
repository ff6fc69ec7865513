//! `supervisor.toml`: the person's own file.
//!
//! A file that does not parse is never "repaired" and never voids the running system: the daemon keeps the last good
//! settings, refuses changes, and says which line to fix. One endpoint that makes no sense does not affect the others:
//! that is found when it is resolved ([`crate::endpoint`]), not here.

pub mod edit;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::EndpointId;
use crate::files::{self, FileError};
use crate::report::{self, Hinted};
use crate::tables::{AuthKind, Model, Protocol, Quirk};

/// Largest `supervisor.toml` that is read.
pub const SETTINGS_BYTES_MAX: u64 = 1024 * 1024;
/// Most endpoints: each has a process and a port of its own.
pub const ENDPOINTS_MAX: usize = 64;

/// The whole file. Every key has a default; an absent file means all defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The endpoint used when a command names none. Default: the only one, if there is just one.
    pub default_endpoint: Option<EndpointId>,
    /// The supervisor itself.
    pub daemon: DaemonSettings,
    /// Limits of every worker.
    pub worker: WorkerSettings,
    /// Codex, where it was started by `codexctl launch`.
    pub codex: CodexSettings,
    /// Noticing, mending and telling.
    pub monitor: MonitorSettings,
    /// The endpoints.
    pub endpoint: Vec<EndpointSettings>,
}

/// `[daemon]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaemonSettings {
    /// Seconds between two health probes of a worker. Default 5, 1 to 300.
    pub health_interval_s: u64,
    /// Seconds a health probe may take. Default 5, 1 to 60.
    pub health_timeout_s: u64,
    /// Failed probes in a row after which a worker is replaced. Default 3, 1 to 100.
    pub health_failures_max: u32,
    /// Longest pause between two restarts of a worker, in seconds. Default 30, 1 to 600.
    pub restart_backoff_max_s: u64,
    /// Seconds a worker may take to end its streams when it is stopped. Default 5, 1 to 600.
    pub stop_timeout_s: u64,
    /// Memory of a worker, in bytes, before which it is replaced by another one; running streams end in their own time,
    /// unless it goes on growing to twice as much. Under systemd the kernel slows it down from there, and kills it at
    /// three times as much. Default 1073741824 (1 GiB), at least 16777216.
    pub worker_memory_bytes_max: u64,
    /// A log file is put aside when it reaches this many bytes. Default 1048576, 65536 to 1073741824.
    pub log_bytes_max: u64,
    /// Old log files kept. Default 3, 0 to 100.
    pub log_files_max: u32,
}

impl Default for DaemonSettings {
    fn default() -> Self {
        Self {
            health_interval_s: 5,
            health_timeout_s: 5,
            health_failures_max: 3,
            restart_backoff_max_s: 30,
            stop_timeout_s: 5,
            worker_memory_bytes_max: 1024 * 1024 * 1024,
            log_bytes_max: 1024 * 1024,
            log_files_max: 3,
        }
    }
}

/// `[worker]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSettings {
    /// Largest request body accepted from Codex, in bytes, after decompression. Default 67108864 (64 MiB).
    pub body_bytes_max: u64,
    /// Open connections from Codex, those that have shown the token; further ones wait. Default 1024.
    pub connections_max: u32,
    /// Seconds to reach a provider. Default 15.
    pub connect_timeout_s: u64,
    /// Seconds a provider may take to begin its answer. Default 120.
    pub first_byte_timeout_s: u64,
    /// Seconds a provider may be silent within an answer; it may say no more than that it is alive for twice as long.
    /// Default 300.
    pub idle_timeout_s: u64,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            body_bytes_max: 64 * 1024 * 1024,
            connections_max: 1024,
            connect_timeout_s: 15,
            first_byte_timeout_s: 120,
            idle_timeout_s: 300,
        }
    }
}

/// `[codex]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodexSettings {
    /// Memory of Codex and everything it has started, in bytes, above which the person is told. Default 4294967296
    /// (4 GiB), at least 16777216.
    pub memory_bytes_max: u64,
    /// Whether Codex is told to write a log where the supervisor reads it. Codex then keeps all of its logs there.
    /// Default true.
    pub log: bool,
}

impl Default for CodexSettings {
    fn default() -> Self {
        Self { memory_bytes_max: 4 * 1024 * 1024 * 1024, log: true }
    }
}

/// `[monitor]`: what is done about failures, and how far it may go. Names as in the original's `ai_monitoring`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own in the person's file")]
pub struct MonitorSettings {
    /// Whether failures are watched and acted upon. Workers that end are started again in any case. Default true.
    pub enabled: bool,
    /// Whether rules act (`codexctl rules`). Default true.
    pub tier1_enabled: bool,
    /// Whether fixes that helped before are used again. Default true.
    pub tier2_enabled: bool,
    /// Whether an AI is asked about what neither of them knows; it takes `ai_endpoint`, too. Default true.
    pub tier3_enabled: bool,
    /// The endpoint whose model is asked. Default: none, and nobody is asked.
    pub ai_endpoint: Option<EndpointId>,
    /// The model that is asked. Default: the endpoint's default model.
    pub ai_model: Option<String>,
    /// What the AI may cost in a calendar month, in US cents. Default 200, 0 to 100000.
    pub ai_budget_cents: u64,
    /// Whether a worker that lives may be replaced by itself. Default true.
    pub auto_restart_proxy: bool,
    /// Whether an endpoint may be switched to its `backup` by itself. Default false.
    pub auto_switch_provider: bool,
    /// What is worth a desktop notification. Default `important_only`.
    pub notification_level: NotificationLevel,
}

impl Default for MonitorSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            tier1_enabled: true,
            tier2_enabled: true,
            tier3_enabled: true,
            ai_endpoint: None,
            ai_model: None,
            ai_budget_cents: 200,
            auto_restart_proxy: true,
            auto_switch_provider: false,
            notification_level: NotificationLevel::default(),
        }
    }
}

/// What is worth a desktop notification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotificationLevel {
    /// Every incident that is told.
    All,
    /// What a person has to do something about.
    #[default]
    ImportantOnly,
    /// Nothing; `codexctl incidents` tells all the same.
    Off,
}

/// One `[[endpoint]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSettings {
    /// Kebab-case name, used in every command.
    pub id: EndpointId,
    /// A row of `providers.toml` that fills in what is not said here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Name for people. Default: the preset's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether it is started. Default true.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub enabled: bool,
    /// Wire protocol. Default: the preset's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Base URL. Default: the preset's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Where the credential comes from. Default: the credentials store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthSettings>,
    /// Another endpoint whose provider and key may take over while this one's provider is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<EndpointId>,
    /// Model when a request names none, or one the provider does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_model: Option<String>,
    /// Models offered to Codex, in this order. Default: the preset's list, else asked from the provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Other names for models: `alias = "model"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, String>,
    /// Local port. Default: a free one, chosen once and remembered.
    #[serde(default, skip_serializing_if = "Port::is_auto")]
    pub port: Port,
    /// Headers sent with each request; beats the preset's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Headers of Codex's own requests that are passed on, by name. Default: none. Not possible for those that belong to
    /// one connection, to authorization, or to Codex itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forward_headers: Vec<String>,
    /// Departures from the portable request, added to the preset's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quirks: Vec<Quirk>,
    /// Facts about models of this endpoint; each beats `models.toml`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub model: Vec<Model>,
}

/// Where an endpoint's credential comes from. At most one of `env`, `file`, `command`; none of them: the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthSettings {
    /// How the key goes into a request. Default: the preset's, else `bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<AuthKind>,
    /// Name of a variable in the supervisor's environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// A file that holds the key alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// A program, with arguments, that prints the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
}

/// A local port: `"auto"` or a number from 1 to 65535.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PortText", into = "PortText")]
pub enum Port {
    /// A free one, chosen once and remembered.
    #[default]
    Auto,
    /// This one.
    Fixed(u16),
}

impl Port {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected \"auto\" or a port number from 1 to 65535")]
enum PortText {
    Number(u16),
    Word(String),
}

impl TryFrom<PortText> for Port {
    type Error = String;

    fn try_from(text: PortText) -> Result<Self, Self::Error> {
        match text {
            PortText::Number(0) => Err("port 0 cannot be used; say \"auto\" for a free one".to_owned()),
            PortText::Number(number) => Ok(Self::Fixed(number)),
            PortText::Word(word) if word == "auto" => Ok(Self::Auto),
            PortText::Word(word) => Err(format!("`{word}` is not a port; say \"auto\" or a number")),
        }
    }
}

impl From<Port> for PortText {
    fn from(port: Port) -> Self {
        match port {
            Port::Auto => Self::Word("auto".to_owned()),
            Port::Fixed(number) => Self::Number(number),
        }
    }
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_true(value: &bool) -> bool {
    *value
}

/// Why a settings or table file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It could not be read or written.
    #[error(transparent)]
    File(FileError),
    /// It is not valid; nothing of it is in force.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

impl Hinted for SettingsError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::File(_) => None,
            Self::Invalid { hint, .. } => hint.clone(),
        }
    }
}

impl Settings {
    /// Reads the file at `path`; an absent or empty one gives the defaults.
    ///
    /// # Errors
    /// [`SettingsError`] with the line to fix.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        match files::read_bounded(path, SETTINGS_BYTES_MAX).map_err(SettingsError::File)? {
            Some(bytes) => Self::parse(path, &bytes),
            None => Ok(Self::default()),
        }
    }

    /// Reads `bytes` as the content of `path`.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, SettingsError> {
        let settings: Self = parse_toml(path, bytes)?;
        settings.check().map_err(|(needle, message, hint)| {
            let text = String::from_utf8_lossy(bytes);
            let (line, column) = position(&text, text.find(&needle).unwrap_or(0));
            SettingsError::Invalid { path: path.to_owned(), line, column, message, hint }
        })?;
        Ok(settings)
    }

    /// The settings of one endpoint.
    pub fn endpoint(&self, id: &EndpointId) -> Option<&EndpointSettings> {
        self.endpoint.iter().find(|endpoint| endpoint.id == *id)
    }

    /// The endpoint used when a command names none.
    pub fn default_endpoint(&self) -> Option<&EndpointId> {
        match (&self.default_endpoint, &self.endpoint[..]) {
            (Some(id), _) => Some(id),
            (None, [only]) => Some(&only.id),
            (None, _) => None,
        }
    }

    /// What the types cannot say. The error is (text to point at, message, hint).
    fn check(&self) -> Result<(), (String, String, Option<String>)> {
        let ids: Vec<&str> = self.endpoint.iter().map(|endpoint| endpoint.id.as_str()).collect();
        if ids.len() > ENDPOINTS_MAX {
            return Err((String::new(), format!("there are more than {ENDPOINTS_MAX} endpoints"), None));
        }
        for (index, id) in ids.iter().enumerate() {
            if ids[..index].contains(id) {
                let hint = "give one of them another id".to_owned();
                return Err((format!("\"{id}\""), format!("the endpoint `{id}` stands twice"), Some(hint)));
            }
        }
        let unknown = |key: &str, what: &str, id: &EndpointId| {
            let hint = match report::nearest(id.as_str(), ids.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known endpoints: {}", list(&ids)),
            };
            Err((key.to_owned(), format!("{what} does not exist"), Some(hint)))
        };
        let is_known = |id: &EndpointId| ids.contains(&id.as_str());
        if let Some(id) = self.default_endpoint.as_ref().filter(|id| !is_known(id)) {
            return unknown("default_endpoint", &format!("the default endpoint `{id}`"), id);
        }
        if let Some(id) = self.monitor.ai_endpoint.as_ref().filter(|id| !is_known(id)) {
            return unknown("ai_endpoint", &format!("the `ai_endpoint` `{id}`"), id);
        }
        for endpoint in &self.endpoint {
            let Some(backup) = &endpoint.backup else { continue };
            if *backup == endpoint.id {
                let hint = Some("name another endpoint, or remove `backup`".to_owned());
                return Err(("backup".to_owned(), format!("`{backup}` cannot be its own backup"), hint));
            }
            if !is_known(backup) {
                return unknown("backup", &format!("the backup `{backup}` of `{}`", endpoint.id), backup);
            }
        }
        let Self { daemon: d, worker: w, codex: c, monitor: m, .. } = self;
        let ranges = [
            ("health_interval_s", d.health_interval_s, 1, 300),
            ("health_timeout_s", d.health_timeout_s, 1, 60),
            ("health_failures_max", d.health_failures_max.into(), 1, 100),
            ("restart_backoff_max_s", d.restart_backoff_max_s, 1, 600),
            ("stop_timeout_s", d.stop_timeout_s, 1, 600),
            ("worker_memory_bytes_max", d.worker_memory_bytes_max, 16 << 20, 1 << 50),
            ("log_bytes_max", d.log_bytes_max, 64 * 1024, 1 << 30),
            ("log_files_max", d.log_files_max.into(), 0, 100),
            ("body_bytes_max", w.body_bytes_max, 1024 * 1024, 1 << 30),
            ("connections_max", w.connections_max.into(), 8, 65_536),
            ("connect_timeout_s", w.connect_timeout_s, 1, 300),
            ("first_byte_timeout_s", w.first_byte_timeout_s, 1, 3_600),
            ("idle_timeout_s", w.idle_timeout_s, 1, 3_600),
            ("memory_bytes_max", c.memory_bytes_max, 16 << 20, 1 << 50),
            ("ai_budget_cents", m.ai_budget_cents, 0, 100_000),
        ];
        for (key, value, min, max) in ranges {
            if value < min || value > max {
                return Err((key.to_owned(), format!("`{key}` is {value}, outside {min} to {max}"), None));
            }
        }
        Ok(())
    }
}

/// Names for a sentence: `` `a`, `b` ``, or "none".
pub(crate) fn list(names: &[&str]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Parses `bytes` as TOML into `T`, with the position and a suggestion in the error.
pub(crate) fn parse_toml<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, SettingsError> {
    let invalid = |text: &str, offset, message: String, hint| {
        let (line, column) = position(text, offset);
        SettingsError::Invalid { path: path.to_owned(), line, column, message, hint }
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        invalid(&valid, valid.len(), "the file is not UTF-8 text".to_owned(), None)
    })?;
    toml::from_str(text).map_err(|error| {
        let message = error.message().trim().replace('\n', " ");
        let hint = suggestion(&message);
        invalid(text, error.span().map_or(0, |span| span.start), message, hint)
    })
}

/// The nearest known name, or all of them, when serde's message says "unknown field … expected one of …".
fn suggestion(message: &str) -> Option<String> {
    let (head, tail) = message.split_once(", expected ")?;
    if !head.starts_with("unknown field") && !head.starts_with("unknown variant") {
        return None;
    }
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let typed = quoted(head).into_iter().next()?;
    let known = quoted(tail);
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    Some(match report::nearest(&typed, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known here: {}", list(&known)),
    })
}

pub(crate) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingsError> {
        Settings::parse(Path::new("s.toml"), text.as_bytes())
    }

    #[test]
    fn nothing_means_defaults() {
        assert_eq!(parse("").unwrap(), Settings::default());
        assert_eq!(parse("# only a comment\n").unwrap(), Settings::default());
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Settings::load(&folder.path().join("absent.toml")).unwrap(), Settings::default());
    }

    #[test]
    fn the_shipped_file_shows_every_setting_at_its_default() {
        let text = include_str!("../../../config/supervisor.toml");
        assert_eq!(parse(text).unwrap(), Settings::default(), "a value differs from its default");
        // Commented examples are part of the reference: they must parse, too.
        let uncommented: String = text
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .fold(String::new(), |all, line| all + line + "\n");
        let example = parse(&uncommented).unwrap();
        let shown = toml::Value::try_from(&example).unwrap();
        for key in ["default_endpoint", "daemon", "worker", "codex", "monitor", "endpoint"] {
            assert!(shown.get(key).is_some(), "`{key}` is not shown");
        }
        let keys: Vec<String> = serde_json::to_value(Settings::default())
            .unwrap()
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(_, section)| section.as_object().into_iter().flat_map(|keys| keys.keys().cloned()))
            .collect();
        for key in keys.iter().chain(
            &[
                "id",
                "preset",
                "name",
                "enabled",
                "protocol",
                "base_url",
                "auth",
                "backup",
                "default_model",
                "models",
                "aliases",
                "port",
                "headers",
                "forward_headers",
                "quirks",
                "model",
            ]
            .map(String::from),
        ) {
            assert!(
                text.contains(&format!("{key} ")) || text.contains(&format!("endpoint.{key}")),
                "`{key}` is not shown"
            );
        }
    }

    #[test]
    fn mistakes_name_their_line_and_the_remedy() {
        for (text, message, hint) in [
            (
                "[[endpoint]]\nid = \"a\"\nbase_ulr = \"x\"\n",
                "s.toml:3:1: unknown field `base_ulr`",
                Some("did you mean `base_url`?"),
            ),
            ("[daemon]\nhealth_interval_s = 0\n", "s.toml:2:1: `health_interval_s` is 0, outside 1 to 300", None),
            ("[[endpoint]]\nid = \"A b\"\n", "s.toml:2:6: `A b` is not an endpoint id", None),
            ("x = [\n", "s.toml:", None),
            (
                "[[endpoint]]\nid = \"a\"\n[[endpoint]]\nid = \"a\"\n",
                "s.toml:2:6: the endpoint `a` stands twice",
                Some("give one of them another id"),
            ),
            (
                "default_endpoint = \"zia\"\n[[endpoint]]\nid = \"zai\"\n",
                "the default endpoint `zia` does not exist",
                Some("did you mean `zai`?"),
            ),
            (
                "[[endpoint]]\nid = \"a\"\nbackup = \"b\"\n",
                "s.toml:3:1: the backup `b` of `a` does not exist",
                Some("did you mean `a`?"),
            ),
            ("[[endpoint]]\nid = \"a\"\nbackup = \"a\"\n", "`a` cannot be its own backup", None),
            (
                "[monitor]\nai_endpoint = \"zia\"\n[[endpoint]]\nid = \"zai\"\n",
                "the `ai_endpoint` `zia` does not exist",
                Some("did you mean `zai`?"),
            ),
            ("[[endpoint]]\nid = \"a\"\nport = 0\n", "port 0 cannot be used", None),
            (
                "[[endpoint]]\nid = \"a\"\nprotocol = \"chat\"\n",
                "unknown variant `chat`",
                Some("did you mean `chat-completions`?"),
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains(message), "{error}\nshould contain\n{message}");
            if hint.is_some() {
                assert_eq!(error.hint().as_deref(), hint, "{text}");
            }
        }
        let error = Settings::parse(Path::new("s.toml"), b"# \xff\n").unwrap_err();
        assert_eq!(error.to_string(), "s.toml:1:3: the file is not UTF-8 text");
    }

    #[test]
    fn the_only_endpoint_is_the_default() {
        let one = parse("[[endpoint]]\nid = \"a\"\n").unwrap();
        assert_eq!(one.default_endpoint().map(EndpointId::as_str), Some("a"));
        let two = parse("[[endpoint]]\nid = \"a\"\n[[endpoint]]\nid = \"b\"\n").unwrap();
        assert_eq!(two.default_endpoint(), None);
    }
}
