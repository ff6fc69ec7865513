//! The words of the incident engine that several processes use: what was seen, what may be wrong, what can be done,
//! what came of it.
//!
//! ```text
//! Signal ──► Fault ──► Attempt (an Action of a Tier) ──► what was seen of it afterwards
//! └──────────────────────── Incident ────────────────────────────────────────────────┘
//! ```
//!
//! A [`Signal`] is typed where we write it ourselves; text of other programs is turned into one by a table of
//! signatures before it gets here. Deciding is the crate `codex-incident`; nothing here decides.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::EndpointId;

/// Longest [`Signal::detail`] that is kept, in bytes.
pub const DETAIL_BYTES_MAX: usize = 300;
/// Most tags a signal may carry; further ones are left out.
pub const TAGS_MAX: usize = 4;
/// Longest tag, in bytes.
pub const TAG_BYTES_MAX: usize = 32;
/// Most steps kept in an incident's timeline. The first half stays, of the rest the newest: how it began and how it
/// ended matter most.
pub const STEPS_MAX: usize = 40;
/// Most attempts kept in an incident; it is given up before it has more.
pub const ATTEMPTS_MAX: usize = 12;

/// Milliseconds since 1970 (UTC) that never go back within one run: the wall clock at the start of the process plus
/// monotonic time since.
pub type Millis = u64;

/// A name that is none of the known ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {what} `{name}`")]
pub struct UnknownName {
    /// What should have been named, e.g. `action`.
    pub what: &'static str,
    /// What was written.
    pub name: String,
}

/// An enum whose variants have one name each, the same in files, messages, logs and on the screen.
macro_rules! named {
    ($(#[$meta:meta])* $what:literal $type:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $type {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)+
        }

        impl $type {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name used everywhere.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|one| one.name() == name)
                    .ok_or_else(|| UnknownName { what: $what, name: name.to_owned() })
            }
        }
    };
}

named! {
    /// The faults that have a name: 38, in five groups. What each means to a person stands in `config/faults.toml`.
    ///
    /// A: the worker. B: the provider. C: the shape of an answer. D: Codex. E: files and state.
    "fault" Fault {
        /// The worker's process is gone.
        A1 = "A1",
        /// The port is taken.
        A2 = "A2",
        /// The worker uses too much memory.
        A3 = "A3",
        /// The worker lives but does not answer.
        A4 = "A4",
        /// The worker ended with an error of its own.
        A5 = "A5",
        /// The provider's certificate was not accepted.
        A6 = "A6",
        /// The provider's name could not be resolved.
        A7 = "A7",
        /// Rate limit.
        B1 = "B1",
        /// An error of the provider.
        B2 = "B2",
        /// The key was refused.
        B3 = "B3",
        /// The provider wants a newer client.
        B4 = "B4",
        /// The provider did not answer in time.
        B5 = "B5",
        /// The provider dropped the connection within an answer.
        B6 = "B6",
        /// Codex closed the connection.
        B7 = "B7",
        /// The provider did not understand the request.
        B8 = "B8",
        /// The provider is at capacity.
        B9 = "B9",
        /// A bot wall in front of the provider.
        B10 = "B10",
        /// A bare `<explore_agent>`.
        C1 = "C1",
        /// A `<require_escalation>` block.
        C2 = "C2",
        /// No tool call could be read.
        C3 = "C3",
        /// A command wrapped twice.
        C4 = "C4",
        /// A command that is JSON.
        C5 = "C5",
        /// An empty command.
        C6 = "C6",
        /// A bare `{`.
        C7 = "C7",
        /// A `<bash>` without a command.
        C8 = "C8",
        /// DSML with the other name of the command.
        C9 = "C9",
        /// The same recovery again and again.
        C10 = "C10",
        /// Codex has ended unexpectedly.
        D1 = "D1",
        /// Codex uses too much memory.
        D2 = "D2",
        /// Codex says that its stream was disconnected.
        D3 = "D3",
        /// Codex says that its database is malformed.
        D4 = "D4",
        /// The conversation does not fit the model.
        D5 = "D5",
        /// Codex reconnects in a loop.
        D6 = "D6",
        /// What was learned about the provider is corrupt.
        E1 = "E1",
        /// The registry names processes that are gone.
        E2 = "E2",
        /// Codex's configuration names another port.
        E3 = "E3",
        /// The sign-in has expired.
        E4 = "E4",
        /// All routes are cooling down.
        E5 = "E5",
    }
}

named! {
    /// What can be seen, by whoever sees it. `value` and `limit` are those of the [`Signal`].
    ///
    /// *Good* ones ([`Observation::is_good`]) show that something works; they end counts and prove actions.
    "observation" Observation {
        /// The worker was ended by a signal; `value`: its number.
        WorkerKilled = "worker-killed",
        /// The worker ended by itself without being asked to; `value`: its exit code.
        WorkerCrashed = "worker-crashed",
        /// The worker's heartbeat is missing; `value`: silence in ms.
        WorkerStuck = "worker-stuck",
        /// The worker has ended too often and is only tried slowly; `value`: ends in a row.
        WorkerTripped = "worker-tripped",
        /// Good: a worker serves.
        WorkerReady = "worker-ready",
        /// A probe found nobody; `value`: failures in a row.
        ProbeRefused = "probe-refused",
        /// A probe had no answer in time, or a wrong one; `value`: failures in a row.
        ProbeTimedOut = "probe-timed-out",
        /// Good: a probe was answered.
        ProbeGood = "probe-good",
        /// The endpoint's port is held by another process; `value`: its pid, if known.
        PortTaken = "port-taken",
        /// A sample of the worker's memory; `value`, `limit`: bytes. Good while it is within the limit.
        WorkerMemory = "worker-memory",
        /// The worker's memory grows so that it will reach the limit soon; made from samples; `value`: ms until then.
        MemoryRising = "memory-rising",

        /// The provider's certificate was not accepted.
        UpstreamTlsFailed = "upstream-tls-failed",
        /// The provider's name could not be resolved.
        UpstreamDnsFailed = "upstream-dns-failed",
        /// Too many requests; `value`: ms the provider asks to wait.
        UpstreamRateLimited = "upstream-rate-limited",
        /// An error of the provider; `value`: HTTP status.
        UpstreamServerError = "upstream-server-error",
        /// The key was refused; `value`: HTTP status.
        UpstreamUnauthorized = "upstream-unauthorized",
        /// Money or plan is used up; `value`: HTTP status.
        UpstreamQuotaSpent = "upstream-quota-spent",
        /// The provider wants a newer client; `value`: HTTP status.
        UpstreamUpgradeRequired = "upstream-upgrade-required",
        /// No connection, or no first byte in time; `value`: ms waited.
        UpstreamTimedOut = "upstream-timed-out",
        /// The connection broke, or the answer ended before its end; `value`: 0 when nothing of the answer had come.
        UpstreamReset = "upstream-reset",
        /// The provider fell silent within an answer; `value`: 0 when nothing of it had come.
        StreamIdle = "stream-idle",
        /// The provider did not understand the request; `value`: HTTP status.
        UpstreamBadRequest = "upstream-bad-request",
        /// The provider is at capacity; `value`: HTTP status.
        UpstreamOverloaded = "upstream-overloaded",
        /// A bot wall refused us; `value`: HTTP status.
        UpstreamBlocked = "upstream-blocked",
        /// The provider's answer makes no sense: nothing we have a name for.
        UpstreamNonsense = "upstream-nonsense",
        /// Good: the provider has answered; `value`: ms to the first event.
        UpstreamGood = "upstream-good",
        /// Answers begin much later than usual; made from [`Observation::UpstreamGood`]; `value`: ms, `limit`: the usual.
        LatencyRising = "latency-rising",
        /// Codex closed the connection before the answer was whole.
        ClientGone = "client-gone",

        /// A bare `<explore_agent>`.
        ExploreAgentBare = "explore-agent-bare",
        /// A `<require_escalation>` block.
        EscalationAsked = "escalation-asked",
        /// An answer has ended with no call in it although one was meant.
        ParserEmpty = "parser-empty",
        /// An answer looks like a tool call in a format that no dialect reads.
        FormatUnknown = "format-unknown",
        /// A command wrapped twice; `value`: 1 when it is still JSON after unwrapping.
        CommandWrapped = "command-wrapped",
        /// A command that is JSON.
        CommandSuspicious = "command-suspicious",
        /// An empty command.
        CommandEmpty = "command-empty",
        /// A bare `{`.
        BraceBare = "brace-bare",
        /// A `<bash>` without a command.
        BashWithoutCommand = "bash-without-command",
        /// DSML with the other name of the command.
        DsmlNameMismatch = "dsml-name-mismatch",
        /// A recovery was needed once more; `value`: times in a row.
        StuckRecovery = "stuck-recovery",
        /// Good: a tool call was read as the model meant it.
        ToolCallGood = "tool-call-good",

        /// Codex has ended, not by the person; `value`: exit code, or 128 plus the signal.
        CodexGone = "codex-gone",
        /// A sample of the memory of Codex and its children; `value`, `limit`: bytes. Good while within the limit.
        CodexMemory = "codex-memory",
        /// Codex reports a disconnected stream.
        CodexDisconnected = "codex-disconnected",
        /// Codex reports a malformed database.
        CodexDatabase = "codex-database",
        /// Codex reports that the conversation does not fit.
        CodexContext = "codex-context",
        /// Codex reconnects; `value`: which try.
        CodexReconnecting = "codex-reconnecting",
        /// Good: Codex has started.
        CodexStarted = "codex-started",

        /// What was learned about the provider is corrupt.
        FactsCorrupt = "facts-corrupt",
        /// Good: it was read and is sound.
        FactsSound = "facts-sound",
        /// The registry names processes that are gone; `value`: how many.
        RegistryStale = "registry-stale",
        /// Good: it names none.
        RegistrySound = "registry-sound",
        /// Codex's configuration names another port than ours; `value`: the one it names, `limit`: ours.
        ConfigPortStale = "config-port-stale",
        /// Good: they agree.
        ConfigSound = "config-sound",
        /// The sign-in has expired and could not be renewed; `value`: ms since.
        SignInExpired = "sign-in-expired",
        /// Good: it is valid.
        SignInGood = "sign-in-good",
        /// All routes of an endpoint are cooling down; `value`: how many.
        RoutesCooling = "routes-cooling",
        /// Good: at least one is free; `value`: how many.
        RouteFree = "route-free",

        /// A person has stopped the endpoint: silence about it.
        UserStopped = "user-stopped",
        /// A person has started it again.
        UserStarted = "user-started",
    }
}

impl Observation {
    /// Whether this shows that something works. Samples are good or bad by their value: see [`Signal::is_good`].
    pub const fn is_good(self) -> bool {
        matches!(
            self,
            Self::WorkerReady
                | Self::ProbeGood
                | Self::UpstreamGood
                | Self::ToolCallGood
                | Self::CodexStarted
                | Self::FactsSound
                | Self::RegistrySound
                | Self::ConfigSound
                | Self::SignInGood
                | Self::RouteFree
                | Self::UserStarted
        )
    }

    /// Whether this is a measurement that is reported all the time.
    pub const fn is_sample(self) -> bool {
        matches!(self, Self::WorkerMemory | Self::CodexMemory)
    }
}

/// Something that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// What.
    pub what: Observation,
    /// About which endpoint; `None`: about the installation.
    #[serde(default)]
    pub endpoint: Option<EndpointId>,
    /// The provider's model, where one was involved.
    #[serde(default)]
    pub model: Option<String>,
    /// A figure, in the unit the [`Observation`] says.
    #[serde(default)]
    pub value: Option<u64>,
    /// What the figure is measured against.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Circumstances that tell one failure from another, e.g. `explore_agent`, `no_url`: lower-case letters, digits,
    /// `_`. They become part of the fingerprint by which a fix is remembered.
    #[serde(default)]
    pub tags: Vec<String>,
    /// An excerpt for a person: redacted by whoever made it, at most [`DETAIL_BYTES_MAX`] bytes are kept.
    #[serde(default)]
    pub detail: String,
}

impl Signal {
    /// Just that, about the installation.
    pub fn new(what: Observation) -> Self {
        Self { what, endpoint: None, model: None, value: None, limit: None, tags: Vec::new(), detail: String::new() }
    }

    /// Just that, about an endpoint.
    pub fn of(what: Observation, endpoint: &EndpointId) -> Self {
        Self { endpoint: Some(endpoint.clone()), ..Self::new(what) }
    }

    /// With a figure.
    #[must_use]
    pub fn value(mut self, value: u64) -> Self {
        self.value = Some(value);
        self
    }

    /// With what the figure is measured against.
    #[must_use]
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// With an excerpt for a person. It must be redacted.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// Whether it shows that something works. A sample does while it is within its limit.
    pub fn is_good(&self) -> bool {
        if self.what.is_sample() { !self.is_over_limit() } else { self.what.is_good() }
    }

    /// Whether the figure is above what it is measured against.
    pub fn is_over_limit(&self) -> bool {
        matches!((self.value, self.limit), (Some(value), Some(limit)) if value > limit)
    }
}

named! {
    /// What can be done. The names are those of the tables, of the AI's answers and of the screen.
    "action" Action {
        /// Start the worker again, or replace a living one without dropping its streams.
        RestartProxy = "restart_proxy",
        /// End processes that are proven ours and no longer wanted; nothing that is not in the registry.
        KillStaleProcesses = "kill_stale_processes",
        /// Route the endpoint to its backup until the person takes it back.
        SwitchProvider = "switch_provider",
        /// Give the provider more time.
        IncreaseTimeout = "increase_timeout",
        /// Forget what refusals have taught about the endpoint's models.
        ClearSchemaCache = "clear_schema_cache",
        /// Delete the file of what was learned, because it is corrupt.
        DeleteProviderCaps = "delete_provider_caps",
        /// Write our part of Codex's configuration again, in a transaction.
        RegenerateConfig = "regenerate_config",
        /// Forget registry entries of processes that are gone.
        CleanupPids = "cleanup_pids",
        /// Remove what ended Codex sessions have left: sockets and pid files nobody listens on.
        CleanupCodexStale = "cleanup_codex_stale",
        /// Say a newer client version to Command Code.
        UpdateCcVersion = "update_cc_version",
        /// Renew the sign-in.
        RefreshToken = "refresh_token",
        /// Look at once whether the endpoint answers.
        CheckProxyHealth = "check_proxy_health",
        /// Let a waiting request try again at once.
        RetryNow = "retry_now",

        /// The worker tries again with growing pauses. It does so by itself.
        RetryWithBackoff = "retry_with_backoff",
        /// The worker waits as long as the provider asks. It does so by itself.
        WaitRetryAfter = "wait_retry_after",
        /// The worker reads the person's URLs out of the conversation. It does so by itself.
        SynthExploreFromUrls = "synth_explore_from_urls",
        /// As before, from the latest message with one.
        SynthExploreFromLastUserUrls = "synth_explore_from_last_user_urls",
        /// The worker answers a request for escalation with a harmless command. It does so by itself.
        AutoProceedEcho = "auto_proceed_echo",
        /// The worker makes a read-only command of what the model said it wants. It does so by itself.
        SynthFromIntent = "synth_from_intent",
        /// The worker unwraps the command. It does so by itself.
        UnwrapCommand = "unwrap_command",
        /// The worker lets Codex run a command that only reports the mistake. It does so by itself.
        DiagnosticEcho = "diagnostic_echo",

        /// Nothing: it passes by itself.
        Ignore = "ignore",

        /// Tell the person.
        AlertUser = "alert_user",
        /// Tell the person: the key is refused.
        AlertUserBadKey = "alert_user_bad_key",
        /// Tell the person: the model does not make usable calls.
        AlertUserModelIssue = "alert_user_model_issue",
        /// Tell the person: Codex is gone.
        AlertUserRestart = "alert_user_restart",
        /// Tell the person: Codex's memory.
        AlertUserMemory = "alert_user_memory",
        /// Tell the person: the conversation is too long.
        AlertUserContext = "alert_user_context",
        /// Tell the person: sign in again.
        AlertUserReauth = "alert_user_reauth",
        /// Tell the person: no provider is left.
        AlertUserNoProvider = "alert_user_no_provider",
        /// Tell the person: a bot wall, and which header may help. Never changed by us.
        CheckBrowserUa = "check_browser_ua",
        /// Tell the person: another model would do better.
        SuggestSwitchModel = "suggest_switch_model",
        /// Tell the person: another provider would do better.
        SuggestSwitchProvider = "suggest_switch_provider",

        /// In a rule: go on to what was learned, then to the AI. Never carried out.
        Diagnose = "diagnose",
    }
}

/// Who carries an action out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The supervisor, when it is told to.
    Supervisor,
    /// The worker, within the request, without being told.
    Worker,
    /// The person: all that is done is to tell them.
    Person,
    /// Nobody.
    Nobody,
}

impl Action {
    /// What an AI may choose: the original's set. Everything else is a wrong answer.
    pub const OF_AI: &'static [Self] = &[
        Self::RestartProxy,
        Self::KillStaleProcesses,
        Self::ClearSchemaCache,
        Self::SwitchProvider,
        Self::IncreaseTimeout,
        Self::RegenerateConfig,
        Self::CleanupCodexStale,
        Self::AlertUser,
        Self::Ignore,
        Self::RetryNow,
    ];

    /// Who carries it out.
    pub const fn actor(self) -> Actor {
        match self {
            Self::RestartProxy
            | Self::KillStaleProcesses
            | Self::SwitchProvider
            | Self::IncreaseTimeout
            | Self::ClearSchemaCache
            | Self::DeleteProviderCaps
            | Self::RegenerateConfig
            | Self::CleanupPids
            | Self::CleanupCodexStale
            | Self::UpdateCcVersion
            | Self::RefreshToken
            | Self::CheckProxyHealth
            | Self::RetryNow => Actor::Supervisor,
            Self::RetryWithBackoff
            | Self::WaitRetryAfter
            | Self::SynthExploreFromUrls
            | Self::SynthExploreFromLastUserUrls
            | Self::AutoProceedEcho
            | Self::SynthFromIntent
            | Self::UnwrapCommand
            | Self::DiagnosticEcho => Actor::Worker,
            Self::AlertUser
            | Self::AlertUserBadKey
            | Self::AlertUserModelIssue
            | Self::AlertUserRestart
            | Self::AlertUserMemory
            | Self::AlertUserContext
            | Self::AlertUserReauth
            | Self::AlertUserNoProvider
            | Self::CheckBrowserUa
            | Self::SuggestSwitchModel
            | Self::SuggestSwitchProvider => Actor::Person,
            Self::Ignore | Self::Diagnose => Actor::Nobody,
        }
    }

    /// Whether a person gets the time to cancel it: it changes a living process, a file, a route or a cache. A rule may
    /// waive that for one thing, bringing a dead worker back.
    pub const fn is_cancellable(self) -> bool {
        matches!(self.actor(), Actor::Supervisor) && !matches!(self, Self::CheckProxyHealth | Self::RetryNow)
    }
}

named! {
    /// Who decided.
    "tier" Tier {
        /// A rule of the table.
        Rule = "rule",
        /// A fix that has helped before.
        Pattern = "pattern",
        /// An AI was asked.
        Ai = "ai",
        /// A person.
        Person = "person",
    }
}

impl Tier {
    /// The tier's number, 1 to 3; 0 for a person.
    pub const fn number(self) -> u8 {
        match self {
            Self::Rule => 1,
            Self::Pattern => 2,
            Self::Ai => 3,
            Self::Person => 0,
        }
    }
}

named! {
    /// What a rule may do.
    "mode" Mode {
        /// It does not exist.
        Off = "off",
        /// It writes down what it would do.
        Observe = "observe",
        /// It asks the person first.
        Ask = "ask",
        /// It acts.
        Auto = "auto",
    }
}

named! {
    /// How much a message matters to a person.
    "level" Level {
        /// Good to know: shown where one looks for it.
        Info = "info",
        /// A person has to do something, or should know that something is not as before.
        Important = "important",
    }
}

/// The number of an incident; they count up and are not used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IncidentId(pub u64);

/// The number of one attempt to mend something; they count up over all incidents and are not used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ActionId(pub u64);

impl fmt::Display for IncidentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ActionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What shows that an action has helped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verify {
    /// Any of these, seen as good about the same endpoint.
    pub seen: Vec<Observation>,
    /// Time for it, from when the action was carried out.
    pub within_ms: u64,
    /// What it means when nothing at all was seen: `true`, it did not help (there is always something to be seen);
    /// `false`, nobody knows, and nothing is learned.
    pub silence_is_failure: bool,
}

/// How carrying out an action went, as told to the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was carried out. Whether it helped is seen from the signals that follow.
    Done,
    /// It could not be carried out; the reason, for a person.
    Failed(String),
    /// It was carried out, and a look at its object has shown that it helped.
    Helped,
    /// It was carried out, and a look at its object has shown that it did not help; the reason, for a person.
    DidNotHelp(String),
}

/// What came back from the AI.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Its text, and the tokens it cost, where told.
    Text {
        /// As received; it is bounded and judged by the engine.
        text: String,
        /// Tokens of the prompt.
        input_tokens: Option<u64>,
        /// Tokens of the answer.
        output_tokens: Option<u64>,
    },
    /// There was none; the reason, for a person.
    None(String),
}

/// Something that went wrong, what was done about it, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Its number.
    pub id: IncidentId,
    /// Which fault; `None`: nothing we have a name for.
    pub fault: Option<Fault>,
    /// What was seen first.
    pub what: Observation,
    /// By what a fix is remembered, e.g. `server_error+repeat_3x`.
    pub fingerprint: String,
    /// About which endpoint.
    pub endpoint: Option<EndpointId>,
    /// The provider's model, where one was involved.
    pub model: Option<String>,
    /// When it began.
    pub opened_at_ms: Millis,
    /// When something last changed in it.
    pub changed_at_ms: Millis,
    /// When it ended.
    pub closed_at_ms: Option<Millis>,
    /// Where it stands.
    pub state: IncidentState,
    /// Signals that belong to it.
    pub n_signals: u64,
    /// The latest excerpt, redacted.
    pub detail: String,
    /// What was tried, oldest first.
    pub attempts: Vec<Attempt>,
    /// What happened, in words, oldest first; at most [`STEPS_MAX`].
    pub timeline: Vec<Step>,
}

impl Incident {
    /// How a step begins that says that the person was told.
    pub const TOLD: &str = "you were told";

    /// When the person was last told of it, as far as the timeline goes back.
    pub fn told_at_ms(&self) -> Option<Millis> {
        self.timeline.iter().rfind(|step| step.text.starts_with(Self::TOLD)).map(|step| step.at_ms)
    }
}

named! {
    /// Where an incident stands.
    "state" IncidentState {
        /// Being dealt with.
        Open = "open",
        /// A person was told and has to act; open until it is seen to work.
        Alerted = "alerted",
        /// Seen to work again.
        Resolved = "resolved",
        /// Left alone on purpose.
        Ignored = "ignored",
        /// Nothing more was seen of it, good or bad.
        Lapsed = "lapsed",
    }
}

impl IncidentState {
    /// Whether it is over.
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::Resolved | Self::Ignored | Self::Lapsed)
    }
}

/// One step of an incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When.
    pub at_ms: Millis,
    /// What, in words.
    pub text: String,
}

/// One attempt to mend something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its number, as in `codexctl actions cancel ID`.
    pub id: ActionId,
    /// What.
    pub action: Action,
    /// What is done right after it, as part of it.
    pub then: Option<Action>,
    /// Who decided.
    pub tier: Tier,
    /// The rule's name, the pattern, or the AI's reason.
    pub because: String,
    /// When it was decided.
    pub decided_at_ms: Millis,
    /// Where it stands.
    pub state: AttemptState,
    /// When it was carried out.
    pub done_at_ms: Option<Millis>,
    /// When it was seen whether it helped.
    pub ended_at_ms: Option<Millis>,
    /// What came of it, in words; empty while it runs.
    pub result: String,
}

/// Where an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttemptState {
    /// It will be carried out then, unless somebody cancels it.
    Planned {
        /// When.
        at_ms: Millis,
    },
    /// It waits for a person's yes.
    Asked,
    /// It is being carried out.
    Running,
    /// It was carried out, and it is watched whether it helps.
    Watched {
        /// Until when.
        until_ms: Millis,
    },
    /// It helped.
    Helped,
    /// It did not help, or could not be carried out.
    Failed,
    /// Nothing was seen that tells.
    Unknown,
    /// A person stopped it.
    Cancelled,
    /// It would have been done: its rule only observes.
    WouldHave,
    /// Something else was tried before it could show.
    Superseded,
}

impl AttemptState {
    /// Whether nothing more comes of it.
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Planned { .. } | Self::Asked | Self::Running | Self::Watched { .. })
    }

    /// The name, without its moment.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Planned { .. } => "planned",
            Self::Asked => "asked",
            Self::Running => "running",
            Self::Watched { .. } => "watched",
            Self::Helped => "helped",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Cancelled => "cancelled",
            Self::WouldHave => "would have",
            Self::Superseded => "superseded",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_the_same_everywhere() {
        fn check<T: Copy + fmt::Display + Serialize + FromStr<Err = UnknownName> + PartialEq + fmt::Debug>(all: &[T]) {
            let names: BTreeSet<String> = all.iter().map(T::to_string).collect();
            assert_eq!(names.len(), all.len());
            for one in all {
                assert_eq!(one.to_string().parse::<T>(), Ok(*one));
                assert_eq!(serde_json::to_value(one).unwrap(), one.to_string());
            }
        }
        check(Fault::ALL);
        check(Observation::ALL);
        check(Action::ALL);
        check(Tier::ALL);
        check(Mode::ALL);
        check(Level::ALL);
        check(IncidentState::ALL);
        assert_eq!(Fault::ALL.len(), 38);
        assert_eq!("F1".parse::<Fault>().unwrap_err().to_string(), "there is no fault `F1`");
    }

    #[test]
    fn a_sample_is_good_within_its_limit() {
        let sample = |value| Signal::new(Observation::WorkerMemory).value(value).limit(10);
        assert!(sample(10).is_good());
        assert!(!sample(11).is_good());
        assert!(Signal::new(Observation::ProbeGood).is_good());
        assert!(!Signal::new(Observation::ProbeRefused).is_good());
    }

    #[test]
    fn the_ai_can_choose_nothing_that_only_a_rule_may() {
        for action in Action::OF_AI {
            assert!(!matches!(action.actor(), Actor::Worker), "{action}");
            assert_ne!(*action, Action::Diagnose);
        }
    }

    #[test]
    fn signals_are_short_to_write() {
        let signal: Signal =
            serde_json::from_str(r#"{"what":"upstream-rate-limited","endpoint":"zai","value":3000}"#).unwrap();
        assert_eq!(signal, Signal::of(Observation::UpstreamRateLimited, &"zai".parse().unwrap()).value(3000));
    }
}
