//! What supervisor and workers say to each other over the worker socket.
//!
//! ```text
//! worker                                   supervisor
//!   Hello (who I am)          ─────────────►  known? this endpoint and generation?
//!   ◄───────────── Assignment                 (or Drain, when it is no longer wanted)
//!   Ready                     ─────────────►  it accepts connections
//!   Heartbeat every 500 ms    ─────────────►
//!   Finished per request      ─────────────►
//!   Signals                   ─────────────►
//!   ◄───────────── ForgetLearned, RetryNow, RenewKey    (any number of times)
//!   CarriedOut                ─────────────►  for each RenewKey
//!   ◄───────────── Drain
//!   Drained                   ─────────────►  and it exits
//! ```
//!
//! A worker depends on this conversation for nothing while it serves: when the socket breaks it goes on serving and
//! dials again. Frames are described in [`frame`].
//!
//! After an upgrade a supervisor meets workers of an earlier [`VERSION`] that serve. What it needs to replace them
//! without cutting an answer is the same in all versions: the length before each frame, the beginning of a Hello
//! ([`Greeting`]), the listener that comes along with its first byte, and [`ToWorker::Drain`].

pub mod frame;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::EndpointId;
use crate::endpoint::Endpoint;
use crate::incident::{ActionId, Outcome, Signal};
use crate::process::Identity;

/// Grows with every change of a message. A supervisor understands nothing that a worker of another version says but its
/// [`Greeting`], and tells it nothing but to drain.
pub const VERSION: u16 = 3;
/// Time between two heartbeats.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Heartbeats missed in a row after which a worker counts as stuck.
pub const HEARTBEATS_MISSED_MAX: u32 = 3;
/// Time a side may take to answer a Hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Reports a worker keeps for the supervisor while the socket is down; the oldest are dropped and counted.
pub const REPORTS_QUEUED_MAX: usize = 1024;

/// Most signals in one message.
pub const SIGNALS_MAX: usize = 256;

/// From worker to supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// First message on each connection.
    Hello(Hello),
    /// It accepts connections at this address.
    Ready {
        /// Address of the listener.
        address: SocketAddr,
    },
    /// It lives.
    Heartbeat(Counters),
    /// A request has ended.
    Finished(Box<RequestReport>),
    /// The endpoint cannot work as configured (no key, unusable setting); it answers every request with this.
    Problem(Option<Problem>),
    /// All streams have ended after a Drain; the process exits.
    Drained,
    /// What it has seen that may mean a fault, or the end of one; at most [`SIGNALS_MAX`] at once, oldest first. All
    /// are about the worker's own endpoint.
    Signals(Vec<Signal>),
    /// How an action went that it was told to carry out.
    CarriedOut {
        /// Which.
        action: ActionId,
        /// How.
        outcome: Outcome,
    },
}

/// From supervisor to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// What to serve. Sent once, after Hello.
    Assignment(Box<Assignment>),
    /// Stop accepting, end within the deadline, exit. The same bytes in every version.
    Drain {
        /// Time for open streams; after it they get a terminal event.
        deadline_ms: u64,
    },
    /// Forget what refusals of the provider have taught.
    ForgetLearned,
    /// Requests that wait before they try again are to try at once.
    RetryNow,
    /// Get the provider's key anew from where it comes from, and say whether that has brought a usable one.
    RenewKey {
        /// The action that it is part of.
        action: ActionId,
    },
}

/// Who a worker is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`]
    pub version: u16,
    /// The endpoint it was started for.
    pub endpoint: EndpointId,
    /// Which start of that endpoint's worker this is.
    pub generation: u64,
    /// Its process.
    pub identity: Identity,
    /// Version of the program.
    pub build: String,
    /// What it serves already, when this is a reconnection.
    pub serving: Option<SocketAddr>,
}

/// What the Hello of every version begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The worker's [`VERSION`].
    pub version: u16,
    /// The endpoint it was started for.
    pub endpoint: EndpointId,
    /// Which start of that endpoint's worker it is.
    pub generation: u64,
}

/// What a worker is to serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// File of the local bearer token.
    pub token_file: PathBuf,
    /// File of the stored credential.
    pub credential_file: PathBuf,
    /// File of the key that seals carried state.
    pub seal_key_file: PathBuf,
    /// File for the provider's model list.
    pub models_cache_file: PathBuf,
    /// File for what the provider's refusals have taught.
    pub learned_file: PathBuf,
    /// Overrides of embedded tables are looked for here.
    pub config_folder: PathBuf,
}

/// A worker's counters since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Requests for a model's answer.
    pub requests_total: u64,
    /// Those that are running.
    pub requests_active: u64,
    /// Those that ended in a failure Codex saw.
    pub requests_failed_total: u64,
    /// Upstream attempts beyond the first of a request.
    pub retries_total: u64,
    /// Open connections from Codex.
    pub connections_open: u64,
    /// Input tokens, as far as providers told.
    pub input_tokens_total: u64,
    /// Output tokens, as far as providers told.
    pub output_tokens_total: u64,
    /// Unix milliseconds of the last good answer.
    pub last_success_at_ms: Option<u64>,
    /// The last failure, if it came after the last good answer.
    pub last_failure: Option<LastFailure>,
    /// Reports dropped because the supervisor was away too long.
    pub reports_dropped_total: u64,
}

/// The most recent upstream failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Kind of failure, kebab-case, e.g. `rate-limit`.
    pub class: String,
    /// HTTP status, if there was one.
    pub status: Option<u16>,
    /// The provider's words, redacted.
    pub message: String,
    /// What the person can do.
    pub hint: Option<String>,
}

/// Something that keeps an endpoint from working.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// One finished request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestReport {
    /// Our id of it, as in the log.
    pub request: String,
    /// Model asked for.
    pub model: String,
    /// Model the provider was asked for.
    pub upstream_model: String,
    /// HTTP status of the answer to Codex.
    pub status: u16,
    /// How it ended.
    pub outcome: RequestOutcome,
    /// Kind of failure, kebab-case, where it failed.
    pub failure: Option<String>,
    /// The failure's message, redacted.
    pub message: Option<String>,
    /// Upstream attempts.
    pub attempts: u32,
    /// Size of the request body.
    pub request_bytes: u64,
    /// Time to the first event sent to Codex.
    pub first_event_ms: Option<u64>,
    /// Time to the end.
    pub elapsed_ms: u64,
    /// Unix milliseconds of the end.
    pub ended_at_ms: u64,
    /// Tokens, where the provider told.
    pub input_tokens: Option<u64>,
    /// Tokens, where the provider told.
    pub output_tokens: Option<u64>,
    /// Cached input tokens, where the provider told.
    pub cached_tokens: Option<u64>,
    /// Output tokens spent on reasoning, where the provider told.
    pub reasoning_tokens: Option<u64>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestOutcome {
    /// Answered whole.
    Completed,
    /// Answered in part: output limit or filter.
    Incomplete,
    /// Failed, and Codex was told.
    Failed,
    /// Codex closed the connection first.
    Cancelled,
    /// Refused before any upstream was asked.
    Refused,
}

impl RequestOutcome {
    /// The word for it, as in messages and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
        }
    }
}
