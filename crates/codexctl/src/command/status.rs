//! `codexctl status`: does it work, and if not, what is to be done?

use codex_control::ipc::Problem;
use codex_control::rpc::{DaemonStatus, DatabaseStatus, EndpointState, EndpointStatus, Protection, StandingChange};
use codex_control::session;
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::{CALL_TIMEOUT, CallError};
use crate::command::launch::find_codex;
use crate::failure::Failure;
use crate::text::{self, told};
use crate::{Context, daemon};

/// Says whether Codex, the endpoint and the provider work, and what to do if not
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  codexctl status")]
pub(crate) struct Arguments {}

pub(crate) fn run(ctx: &Context) -> Result<(), Failure> {
    let mut client = daemon::connect(ctx)?;
    // Kept as it came for `--json`: a newer supervisor may say more than this program knows.
    let value: Value = client.call_raw("daemon.status", (), CALL_TIMEOUT)?;
    let status: DaemonStatus = serde_json::from_value(value.clone()).map_err(|error| {
        let message = format!("the supervisor's answer has an unknown form: {error}");
        CallError::Lost(Failure::new(message).hint("`codexctl restart` starts the installed version"))
    })?;
    let codex = find_codex(ctx).map(|_| ()).map_err(|failure| {
        let (message, hint) = failure.into_parts();
        Problem { message, hint }
    });
    let now_ms = text::now_ms();
    let chain = chain(&status, codex, now_ms);
    let answer = json!({ "works": chain.works(), "chain": chain.links, "daemon": value });
    ctx.output.show(&answer, || shown(&status, &chain, now_ms))
}

/// From Codex to the provider: what a request passes.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Chain {
    links: Vec<Link>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Link {
    /// `codex`, `endpoint` or `provider`.
    what: &'static str,
    name: String,
    state: LinkState,
    /// Why it is in this state.
    message: Option<String>,
    /// What to do.
    hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum LinkState {
    /// It works, as real traffic or a probe has shown.
    Good,
    /// Nothing is known against it yet.
    Unknown,
    /// It does not work.
    Bad,
}

impl Chain {
    /// Whether it works, as far as that is known.
    fn works(&self) -> Option<bool> {
        if self.links.iter().any(|link| link.state == LinkState::Bad) {
            return Some(false);
        }
        self.links.iter().all(|link| link.state == LinkState::Good).then_some(true)
    }

    /// One line that answers the question, and one with the remedy.
    fn headline(&self) -> String {
        let verdict = match self.works() {
            Some(true) => "works",
            Some(false) => "does not work",
            None => "ready",
        };
        let links: Vec<String> = self
            .links
            .iter()
            .map(|link| {
                let mark = if link.state == LinkState::Bad { " ✗" } else { "" };
                let message = link.message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default();
                format!("{}{mark}{message}", link.name)
            })
            .collect();
        let hint = self.links.iter().find(|link| link.state == LinkState::Bad).and_then(|link| link.hint.as_ref());
        let hint = hint.map(|hint| format!("  hint: {hint}\n")).unwrap_or_default();
        format!("{verdict}: {}\n{hint}", links.join(" → "))
    }
}

fn chain(status: &DaemonStatus, codex: Result<(), Problem>, now_ms: u64) -> Chain {
    let link = |what, name: &str, state, problem: Option<Problem>| {
        let (message, hint) = problem.map_or((None, None), |problem| (Some(problem.message), problem.hint));
        Link { what, name: name.to_owned(), state, message, hint }
    };
    let mut links = vec![match codex {
        Ok(()) => link("codex", "Codex", LinkState::Good, None),
        Err(problem) => link("codex", "Codex", LinkState::Bad, Some(problem)),
    }];
    // Without a default endpoint, the first one stands for all; the table shows the others.
    let endpoint = status.endpoints.iter().find(|endpoint| endpoint.is_default).or(status.endpoints.first());
    let Some(endpoint) = endpoint else {
        let problem = status.settings.problem.clone().unwrap_or_else(|| Problem {
            message: "there is none yet".to_owned(),
            hint: Some(
                "`codexctl endpoint add --preset PRESET` adds one, `codexctl presets` lists the presets".to_owned(),
            ),
        });
        links.push(link("endpoint", "endpoint", LinkState::Bad, Some(problem)));
        return Chain { links };
    };
    let (state, problem) = endpoint_link(endpoint);
    links.push(link("endpoint", endpoint.id.as_str(), state, problem));
    if state != LinkState::Bad {
        let (state, problem) = provider_link(endpoint, now_ms);
        // An endpoint without a preset or a name of its own is called by its id; its provider is not.
        let name = match &endpoint.base_url {
            Some(base_url) if endpoint.name == endpoint.id.as_str() => base_url,
            _ => &endpoint.name,
        };
        links.push(link("provider", name, state, problem));
    }
    Chain { links }
}

fn endpoint_link(endpoint: &EndpointStatus) -> (LinkState, Option<Problem>) {
    let id = &endpoint.id;
    let says = |message: String, hint: Option<String>| Some(Problem { message, hint });
    if let Some(problem) = &endpoint.problem {
        return (LinkState::Bad, Some(problem.clone()));
    }
    match endpoint.state {
        EndpointState::Running => (LinkState::Good, None),
        EndpointState::Starting => (LinkState::Unknown, says("starts".to_owned(), None)),
        EndpointState::Restarting => {
            let why = endpoint.last_exit.as_ref().map(|exit| format!(" after {exit}")).unwrap_or_default();
            (
                LinkState::Bad,
                says(format!("restarts{why}, requests wait"), Some(format!("`codexctl logs {id}` shows why"))),
            )
        }
        EndpointState::Stopped => {
            (LinkState::Bad, says("stopped by you".to_owned(), Some(format!("`codexctl start {id}`"))))
        }
        EndpointState::Disabled => {
            (LinkState::Bad, says("disabled".to_owned(), Some(format!("`codexctl endpoint set {id} enabled true`"))))
        }
        EndpointState::Broken => {
            (LinkState::Bad, says("cannot run".to_owned(), Some(format!("`codexctl logs {id}` shows why"))))
        }
    }
}

/// The provider's health comes from real traffic, never from being configured.
fn provider_link(endpoint: &EndpointStatus, now_ms: u64) -> (LinkState, Option<Problem>) {
    let counters = &endpoint.counters;
    if let Some(failure) = &counters.last_failure {
        let status = failure.status.map(|status| format!(", HTTP {status}")).unwrap_or_default();
        let message =
            format!("{}{status}, {}: {}", failure.class, text::ago(now_ms, failure.at_ms), failure.message.trim());
        return (LinkState::Bad, Some(Problem { message, hint: failure.hint.clone() }));
    }
    match counters.last_success_at_ms {
        Some(at_ms) => {
            let message = format!("answered {}", text::ago(now_ms, at_ms));
            (LinkState::Good, Some(Problem { message, hint: None }))
        }
        None => (LinkState::Unknown, Some(Problem { message: "no request yet".to_owned(), hint: None })),
    }
}

fn shown(status: &DaemonStatus, chain: &Chain, now_ms: u64) -> String {
    let mut parts = vec![chain.headline()];
    if !status.endpoints.is_empty() {
        let rows: Vec<[String; 8]> = status.endpoints.iter().map(|endpoint| row(endpoint, now_ms)).collect();
        let header = ["ENDPOINT", "STATE", "ADDRESS", "MODEL", "REQUESTS", "FAILED", "RESTARTS", "MEMORY"];
        parts.push(text::table(header, &rows));
    }
    if !status.sessions.is_empty() {
        let rows: Vec<[String; 6]> = status.sessions.iter().map(|session| session_row(session, now_ms)).collect();
        parts.push(text::table(["CODEX", "ENDPOINT", "PID", "PROCESSES", "MEMORY", "SINCE"], &rows));
    }
    for session in &status.sessions {
        if let Some(problem) = &session.problem {
            parts.push(told(&format!("{}: {}", session.id, problem.message), problem.hint.as_deref()));
        }
    }
    for endpoint in &status.endpoints {
        if let Some(problem) = &endpoint.problem {
            parts.push(told(&format!("{}: {}", endpoint.id, problem.message), problem.hint.as_deref()));
        }
    }
    for endpoint in &status.endpoints {
        if let Some(standing) = &endpoint.standing {
            parts.push(changed_by_action(endpoint, standing, now_ms));
        }
    }
    if status.incidents_alerted > 0 {
        let n = usize::try_from(status.incidents_alerted).unwrap_or(usize::MAX);
        let verb = if n == 1 { "needs" } else { "need" };
        parts
            .push(told(&format!("{} {verb} you", text::count(n, "incident")), Some("`codexctl incidents` tells what")));
    }
    if let Some(problem) = &status.settings.problem {
        let message = format!("settings: {}; the last good ones stay in force", problem.message);
        parts.push(told(&message, problem.hint.as_deref()));
    }
    if let Some(problem) = &status.database.problem {
        parts.push(told(&problem.message, problem.hint.as_deref()));
    }
    let is_of_engine = |path: &&String| path.ends_with(DatabaseStatus::ENGINE_ASIDE);
    if let Some(latest) = status.database.put_aside.iter().rfind(|path| !is_of_engine(path)) {
        let message = format!("a damaged database was put aside as `{latest}`");
        parts.push(told(&message, Some("delete it when nothing in it is missed; a new one is in use")));
    }
    if let Some(latest) = status.database.put_aside.iter().rfind(is_of_engine) {
        let message = format!("what was learned from incidents cannot be understood, and was put aside as `{latest}`");
        parts.push(told(&message, Some("delete it when nothing in it is missed; learning has begun anew")));
    }
    if status.default_endpoint.is_none() && status.endpoints.len() > 1 {
        parts.push(told("no default endpoint is chosen", Some("`codexctl endpoint default ENDPOINT` chooses one")));
    }
    let protection = match status.protection {
        Protection::Full => "",
        Protection::Partial => ", protection reduced: running answers would end with it (`codexctl logs` tells why)",
        Protection::Reduced => ", protection reduced: no service manager restarts it",
    };
    let uptime = text::duration(now_ms.saturating_sub(status.started_at_ms));
    parts.push(format!("supervisor {} (pid {}), up {uptime}{protection}\n", status.version, status.pid));
    let own = env!("CARGO_PKG_VERSION");
    if status.version != own {
        let message = format!("this program is {own}, the supervisor {}", status.version);
        parts.push(told(&message, Some("`codexctl restart` starts the installed version")));
    }
    parts.join("\n")
}

/// What an action has changed about an endpoint, and how that is taken back.
fn changed_by_action(endpoint: &EndpointStatus, standing: &StandingChange, now_ms: u64) -> String {
    let mut what = Vec::new();
    if let Some(route) = &standing.route {
        what.push(format!("uses the provider of `{route}`"));
    }
    if standing.timeout_raises > 0 {
        what.push("has longer timeouts".to_owned());
    }
    let since = text::duration(now_ms.saturating_sub(standing.since_ms));
    let message = format!("`{}` {} for {since} now", endpoint.id, what.join(" and "));
    let hint = standing.actions.first().map(|id| format!("`codexctl actions cancel {id}` takes it back"));
    told(&message, hint.as_deref())
}

fn row(endpoint: &EndpointStatus, now_ms: u64) -> [String; 8] {
    [
        format!("{}{}", endpoint.id, if endpoint.is_default { " (default)" } else { "" }),
        state_line(endpoint, now_ms),
        endpoint.address.map(|address| address.to_string()).unwrap_or_default(),
        endpoint.default_model.clone().unwrap_or_default(),
        endpoint.counters.requests_total.to_string(),
        endpoint.counters.requests_failed_total.to_string(),
        endpoint.restarts_total.to_string(),
        endpoint.memory_bytes.map(text::size).unwrap_or_default(),
    ]
}

fn session_row(session: &session::Status, now_ms: u64) -> [String; 6] {
    [
        session.id.to_string(),
        session.endpoint.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string),
        session.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        session.n_processes.to_string(),
        session.memory_bytes.map(text::size).unwrap_or_default(),
        text::ago(now_ms, session.started_at_ms),
    ]
}

/// An endpoint's state, with the age of its last health probe while it runs.
pub(crate) fn state_line(endpoint: &EndpointStatus, now_ms: u64) -> String {
    let name = state_name(endpoint.state);
    match (endpoint.state, endpoint.healthy_at_ms) {
        (EndpointState::Running, Some(at_ms)) => format!("{name}, healthy {}", text::ago(now_ms, at_ms)),
        _ => name.to_owned(),
    }
}

/// The word for a state.
pub(crate) fn state_name(state: EndpointState) -> &'static str {
    match state {
        EndpointState::Disabled => "disabled",
        EndpointState::Stopped => "stopped",
        EndpointState::Starting => "starting",
        EndpointState::Running => "running",
        EndpointState::Restarting => "restarting",
        EndpointState::Broken => "broken",
    }
}
