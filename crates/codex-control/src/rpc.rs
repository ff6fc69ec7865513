//! JSON-RPC 2.0 over the control socket: one JSON object a line, both ways.
//!
//! Methods mirror the command line. `codexctl rpc METHOD [JSON]` calls any of them.
//!
//! | method | parameters | result |
//! |---|---|---|
//! | `daemon.status` | – | [`DaemonStatus`] |
//! | `daemon.reload` | – | [`DaemonStatus`] |
//! | `daemon.stop` | – | `null`, then the daemon ends with everything it runs |
//! | `daemon.restart` | – | `null`, then the daemon ends; its workers go on until the next one, started by the service manager or else by the caller, takes them over |
//! | `endpoint.list` | – | `[`[`EndpointStatus`]`]` |
//! | `endpoint.show` | [`EndpointParams`] | [`EndpointDetail`] |
//! | `endpoint.add` | an [`EndpointSettings`] | [`EndpointStatus`] |
//! | `endpoint.set` | [`SetParams`] | [`EndpointStatus`] |
//! | `endpoint.remove`, `endpoint.default` | [`EndpointParams`] | `null` |
//! | `endpoint.start`, `endpoint.stop`, `endpoint.restart` | [`EndpointParams`] | [`EndpointStatus`] |
//! | `endpoint.wake` | [`WakeParams`] | [`EndpointStatus`], once it answers |
//! | `usage.show` | [`UsageParams`] | [`Usage`] |
//! | `session.begin` | a [`session::Begin`] | [`session::Begun`] |
//! | `session.attach` | a [`session::Session`] | `null` |
//! | `session.end` | a [`session::End`] | `null` |
//! | `session.list` | – | `[`[`session::Status`]`]` |
//! | `config.show` | – | `[`[`ConfigStatus`]`]` |
//! | `config.restore` | – | `[`[`ConfigStatus`]`]`, with nothing of ours in any file |
//! | `incident.list` | [`IncidentListParams`] | `[`[`Incident`]`]`, newest first |
//! | `incident.show` | [`IncidentParams`] | [`Incident`] |
//! | `incident.counts` | [`UsageParams`] | [`IncidentCounts`] |
//! | `incident.simulate` | [`SimulateParams`] | [`Simulation`] |
//! | `incident.report` | a [`Signal`]: what another program of the person has seen | `null` |
//! | `incident.store` | – | the original's `incident-store.json` |
//! | `incident.import` | the original's `incident-store.json` | [`Imported`] |
//! | `action.list` | – | `[`[`ActionLine`]`]` |
//! | `action.cancel`, `action.approve` | [`ActionParams`] | [`ActionLine`] |
//! | `monitor.show` | – | [`MonitorStatus`] |
//! | `monitor.set` | [`MonitorSetParams`] | [`MonitorStatus`] |
//! | `events.subscribe` | – | `null`, then `event` notifications with an [`Event`] each |

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::EndpointId;
use crate::endpoint::Endpoint;
#[expect(unused_imports, reason = "named in the documentation")]
use crate::incident::Signal;
use crate::incident::{ActionId, Attempt, Fault, Incident, IncidentId};
use crate::ipc::{Counters, Problem};
use crate::session;
#[expect(unused_imports, reason = "named in the documentation")]
use crate::settings::EndpointSettings;
use crate::settings::MonitorSettings;
use crate::tables::Protocol;

/// Longest line in either direction.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Longest wait of `endpoint.wake`.
pub const WAKE_TIMEOUT_MS_MAX: u64 = 60_000;

/// The `jsonrpc` member.
pub const JSONRPC: &str = "2.0";
/// Methods that may be called again when nobody knows whether they were carried out: they only look, or say what should
/// be, which is the same when it is said twice.
pub const REPEATABLE: &[&str] = &[
    "daemon.status",
    "daemon.reload",
    "endpoint.list",
    "endpoint.show",
    "endpoint.start",
    "endpoint.stop",
    "endpoint.wake",
    "usage.show",
    "session.attach",
    "session.list",
    "config.show",
    "incident.list",
    "incident.show",
    "incident.counts",
    "incident.simulate",
    "incident.store",
    "action.list",
    "monitor.show",
];

/// A call. Without `id` it is a notification and gets no answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// `"2.0"`
    pub jsonrpc: String,
    /// Chosen by the caller, returned with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// Name of the method.
    pub method: String,
    /// Its parameters, an object.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub params: Value,
}

/// The answer to a call: `result` or `error`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// `"2.0"`
    pub jsonrpc: String,
    /// The caller's id; null when it could not be read.
    pub id: Value,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RpcError>,
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// One of [`code`].
    pub code: i64,
    /// What happened, for a person.
    pub message: String,
    /// More.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ErrorData>,
}

/// More about a failed call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorData {
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Error codes: JSON-RPC's own and ours.
pub mod code {
    /// The line is not JSON.
    pub const PARSE: i64 = -32_700;
    /// The JSON is no request.
    pub const INVALID_REQUEST: i64 = -32_600;
    /// There is no such method.
    pub const METHOD_NOT_FOUND: i64 = -32_601;
    /// The parameters do not fit.
    pub const INVALID_PARAMS: i64 = -32_602;
    /// Something failed inside the supervisor.
    pub const INTERNAL: i64 = -32_603;
    /// What was named does not exist.
    pub const NOT_FOUND: i64 = 1;
    /// It cannot be done in the present state: settings that do not parse, an id that is taken.
    pub const CONFLICT: i64 = 2;
    /// It did not happen in time.
    pub const TIMEOUT: i64 = 3;
    /// The endpoint cannot run until the person changes something.
    pub const BROKEN: i64 = 4;
}

impl RpcError {
    /// An error with an optional remedy.
    pub fn new(code: i64, message: impl Into<String>, hint: Option<String>) -> Self {
        Self { code, message: message.into(), data: hint.map(|hint| ErrorData { hint: Some(hint) }) }
    }

    /// The remedy, if there is one.
    pub fn hint(&self) -> Option<&str> {
        self.data.as_ref().and_then(|data| data.hint.as_deref())
    }
}

/// Names an endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointParams {
    /// The endpoint.
    pub id: EndpointId,
}

/// One key of an endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetParams {
    /// The endpoint.
    pub id: EndpointId,
    /// The key, dotted where it is nested.
    pub key: String,
    /// TOML, or a bare word; null removes the key.
    pub value: Option<String>,
}

/// Waits until an endpoint answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WakeParams {
    /// The endpoint; the default one where absent.
    #[serde(default)]
    pub id: Option<EndpointId>,
    /// How long to wait at most; bounded by [`WAKE_TIMEOUT_MS_MAX`].
    pub timeout_ms: u64,
}

/// The supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Version of the program.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Unix milliseconds of its start.
    pub started_at_ms: u64,
    /// How well workers survive it.
    pub protection: Protection,
    /// State of `supervisor.toml`.
    pub settings: SettingsStatus,
    /// State of `state.db`.
    #[serde(default)]
    pub database: DatabaseStatus,
    /// Incidents that need the person; `codexctl incidents` lists them.
    #[serde(default)]
    pub incidents_alerted: u64,
    /// The endpoint used when a command names none.
    pub default_endpoint: Option<EndpointId>,
    /// Every endpoint, in the order of the file.
    pub endpoints: Vec<EndpointStatus>,
    /// Codex, where it was started by `codexctl launch`, oldest first.
    #[serde(default)]
    pub sessions: Vec<session::Status>,
}

/// State of `state.db`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// The file.
    pub path: String,
    /// Why nothing can be written to it at present.
    pub problem: Option<Problem>,
    /// Whether what happens is kept in memory only, until the supervisor ends.
    pub is_in_memory: bool,
    /// Damaged databases that were put aside, oldest first. They are the person's to delete.
    pub put_aside: Vec<String>,
    /// Rows that could not be written since the supervisor started.
    pub rows_dropped_total: u64,
}

impl DatabaseStatus {
    /// How the name of a file in [`DatabaseStatus::put_aside`] ends that is no database, but what the incident engine
    /// had learned, in a form that this version cannot read.
    pub const ENGINE_ASIDE: &'static str = ".engine.json";
}

/// Asks for what was used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UsageParams {
    /// Unix milliseconds from which on; absent: everything that is kept.
    pub since_ms: Option<u64>,
}

/// Asks for incidents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IncidentListParams {
    /// Unix milliseconds: those that changed since; absent: all that are kept.
    pub since_ms: Option<u64>,
    /// Those of one endpoint only.
    pub endpoint: Option<EndpointId>,
    /// Those with a smaller number only: how a long list is asked for in parts.
    pub before: Option<IncidentId>,
    /// At most so many; there is a bound in any case.
    pub limit: Option<u32>,
    /// With their timelines, of which only the step that says when the person was told is there otherwise.
    pub whole: bool,
}

/// Names an incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncidentParams {
    /// Its number.
    pub id: IncidentId,
}

/// How often things happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncidentCounts {
    /// Incidents by fault, e.g. `A1`.
    pub faults: BTreeMap<String, u32>,
    /// What became of the actions of each rule.
    pub rules: BTreeMap<String, RuleCount>,
}

/// What became of a rule's actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCount {
    /// All of them.
    pub acted: u32,
    /// Those that were seen to help.
    pub helped: u32,
    /// Those that were seen not to.
    pub failed: u32,
}

/// Asks what the engine would do about a log of signals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulateParams {
    /// Absolute path of the log: one JSON object a line, `{"at_ms": …, "signal": {…}}`.
    pub log: String,
    /// Absolute path of a `rules.toml` to try; absent: the rules in force.
    #[serde(default)]
    pub rules: Option<String>,
}

/// What the engine would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Simulation {
    /// Lines of the log.
    pub signals: u64,
    /// Incidents as they would have ended, by number.
    pub incidents: Vec<Incident>,
    /// What the person would have been told, with the moment.
    pub notices: Vec<(u64, String)>,
    /// Questions that would have gone to the AI.
    pub questions: u64,
    /// Incidents and notices that were left out because there were too many.
    pub left_out: u64,
}

/// What was taken over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Learned fixes.
    pub patterns: u64,
    /// Entries that could not be used, each with its reason.
    pub left_out: Vec<String>,
}

/// Names an action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionParams {
    /// Its number.
    pub id: ActionId,
}

/// One action that is under way, waits for a yes, or stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionLine {
    /// The incident it is about.
    pub incident: IncidentId,
    /// The endpoint concerned.
    pub endpoint: Option<EndpointId>,
    /// The fault, where it has a name.
    pub fault: Option<Fault>,
    /// The action itself.
    pub attempt: Attempt,
    /// Whether what it changed stands until it is taken back.
    pub stands: bool,
}

/// What the monitor may do, and what it has done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MonitorStatus {
    /// As set.
    pub settings: MonitorSettings,
    /// Seconds between two health probes (`[daemon] health_interval_s`).
    pub health_check_interval_s: u64,
    /// Memory of a worker before which it is replaced, in MiB: `daemon.worker_memory_bytes_max`.
    pub max_memory_mb: u64,
    /// The model that is asked; absent: nobody is asked.
    pub ai_model: Option<String>,
    /// Why nobody is asked at present, where it is not the person's wish.
    pub ai_problem: Option<String>,
    /// Questions of the last 24 hours.
    pub ai_calls_day: u64,
    /// Questions of this calendar month.
    pub ai_calls_month: u64,
    /// Tokens of their prompts.
    pub ai_input_tokens: u64,
    /// Tokens of their answers.
    pub ai_output_tokens: u64,
    /// What they have cost, in dollars.
    pub ai_usd: f64,
    /// Fixes that are known.
    pub patterns: u64,
    /// Incidents that are open.
    pub incidents_open: u64,
    /// Signals that were not looked at because there were too many.
    pub signals_dropped_total: u64,
}

/// One key of `[monitor]`, or of what belongs to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorSetParams {
    /// The key.
    pub key: String,
    /// TOML, or a bare word; null removes the key.
    pub value: Option<String>,
}

/// What was used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Unix milliseconds from which on.
    pub since_ms: u64,
    /// A line for each endpoint and model, most requests first.
    pub lines: Vec<UsageLine>,
    /// How often each kind of failure ended a request, most frequent first.
    pub failures: Vec<(String, u64)>,
}

/// What was used of one model over one endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UsageLine {
    /// The endpoint.
    pub endpoint: String,
    /// The model the provider was asked for.
    pub model: String,
    /// Requests that have ended.
    pub requests: u64,
    /// Those that failed or were refused.
    pub failed: u64,
    /// Those that Codex gave up itself.
    pub cancelled: u64,
    /// Those that needed more than one attempt.
    pub retried: u64,
    /// Input tokens, as far as the provider told; so with all tokens.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Input tokens that the provider had cached.
    pub cached_tokens: u64,
    /// Output tokens spent on reasoning.
    pub reasoning_tokens: u64,
    /// Mean time to the first event, where there was one.
    pub first_event_mean_ms: Option<u64>,
    /// Mean time to the end.
    pub elapsed_mean_ms: Option<u64>,
    /// Unix milliseconds of the end of the last one.
    pub last_at_ms: u64,
}

/// How well workers survive the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// A service manager restarts the supervisor and keeps its listeners, and workers have scopes of their own.
    Full,
    /// A service manager restarts the supervisor, but workers would end with it: they have no scopes.
    Partial,
    /// Nobody restarts the supervisor.
    Reduced,
}

/// State of `supervisor.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingsStatus {
    /// The file.
    pub path: String,
    /// What is wrong with it; the last good settings are in force.
    pub problem: Option<Problem>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Its id.
    pub id: EndpointId,
    /// Name for people.
    pub name: String,
    /// Id of its preset, or `custom`.
    pub provider: String,
    /// Wire protocol, where it could be resolved.
    pub protocol: Option<Protocol>,
    /// Base URL, where it could be resolved.
    pub base_url: Option<String>,
    /// Model when a request names none.
    pub default_model: Option<String>,
    /// Whether commands that name no endpoint use it.
    pub is_default: bool,
    /// What it does.
    pub state: EndpointState,
    /// Where Codex connects to.
    pub address: Option<SocketAddr>,
    /// The worker's process.
    pub worker_pid: Option<u32>,
    /// Which start of the worker this is.
    pub generation: u64,
    /// Restarts after crashes since the supervisor started.
    pub restarts_total: u64,
    /// How the last worker ended, e.g. `signal 9`.
    pub last_exit: Option<String>,
    /// Unix milliseconds of the last passed health probe.
    pub healthy_at_ms: Option<u64>,
    /// The worker's resident memory.
    pub memory_bytes: Option<u64>,
    /// What keeps it from working.
    pub problem: Option<Problem>,
    /// What an action has changed about it, over the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<StandingChange>,
    /// The worker's counters.
    pub counters: Counters,
}

/// What an action has changed about an endpoint, until it is taken back by `codexctl actions cancel`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandingChange {
    /// The endpoint whose provider and key it uses.
    pub route: Option<EndpointId>,
    /// How often its timeouts were doubled.
    pub timeout_raises: u32,
    /// The actions that did it.
    pub actions: Vec<ActionId>,
    /// Unix milliseconds since when.
    pub since_ms: u64,
}

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// `enabled = false`
    Disabled,
    /// Stopped by the person.
    Stopped,
    /// Its worker is on its way.
    Starting,
    /// Its worker accepts connections.
    Running,
    /// Its worker ended and is started again after a pause; connections wait.
    Restarting,
    /// It cannot run until the person changes something; see `problem`.
    Broken,
}

/// One endpoint with everything known about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointDetail {
    /// Its status.
    pub status: EndpointStatus,
    /// As resolved; absent when that failed.
    pub endpoint: Option<Endpoint>,
}

/// A `config.toml` of Codex that was changed at some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The file.
    pub path: String,
    /// The endpoint it points Codex at; none when it is the person's own.
    pub endpoint: Option<EndpointId>,
    /// Sessions and people who want something to be in it.
    pub n_holders: usize,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Grows by one with each event of this supervisor; a gap means that the reader was too slow.
    pub sequence: u64,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Kind, e.g. `endpoint.state`, `request.finished`, `settings.loaded`.
    pub kind: String,
    /// The endpoint it concerns.
    pub endpoint: Option<EndpointId>,
    /// For a person.
    pub message: String,
    /// For a program; its shape depends on the kind.
    pub detail: Value,
}
