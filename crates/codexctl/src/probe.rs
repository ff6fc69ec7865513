//! Trying an endpoint out: does its worker answer, is the provider reachable, is the key accepted, which models are there?

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use codex_control::EndpointId;
use codex_control::ipc::Problem;
use codex_control::rpc::{EndpointStatus, WakeParams};
use codex_control::token;
use serde::Serialize;
use serde_json::Value;

use crate::Context;
use crate::client::{CallError, Client};
use crate::failure::Failure;
use crate::{http, text};

/// Time for a worker to become healthy.
pub(crate) const WAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for the supervisor's own answer beyond the time it waits for a worker.
pub(crate) const WAKE_MARGIN: Duration = Duration::from_secs(2);
/// Time for an answer for which the worker may have to ask the provider, or a program that prints the key.
const ASK_TIMEOUT: Duration = Duration::from_secs(15);

/// Waits until the worker of `endpoint` (the default one for `None`) answers, at most `timeout`. The supervisor gets
/// `margin` more to say that it did not.
pub(crate) fn wake(
    client: &mut Client,
    endpoint: Option<&EndpointId>,
    timeout: Duration,
    margin: Duration,
) -> Result<EndpointStatus, CallError> {
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    client.call("endpoint.wake", WakeParams { id: endpoint.cloned(), timeout_ms }, timeout + margin)
}

/// What a worker says about its models.
pub(crate) struct ModelList {
    /// The body of its answer: `data` in OpenAI's shape, `models` in Codex's, `problem` when the provider gave none.
    pub(crate) body: Value,
}

impl ModelList {
    /// Codex's catalog entries.
    pub(crate) fn entries(&self) -> &[Value] {
        self.body["models"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Why the provider's own list could not be had; the entries are what was known before.
    pub(crate) fn problem(&self) -> Option<Problem> {
        match self.body.get("problem")? {
            Value::String(message) => Some(Problem { message: message.clone(), hint: None }),
            Value::Object(problem) => Some(Problem {
                message: problem.get("message")?.as_str()?.to_owned(),
                hint: problem.get("hint").and_then(Value::as_str).map(str::to_owned),
            }),
            _ => None,
        }
    }
}

/// Asks the worker at `address` for the models of `endpoint`; `refresh` makes it ask the provider anew.
pub(crate) fn models(
    ctx: &Context,
    endpoint: &EndpointId,
    address: SocketAddr,
    refresh: bool,
) -> Result<ModelList, Failure> {
    let target = if refresh { "/v1/models?refresh=1" } else { "/v1/models" };
    Ok(ModelList { body: ask(ctx, endpoint, address, target, "no model list")? })
}

/// Asks the worker at `address` for its accounts.
pub(crate) fn accounts(ctx: &Context, endpoint: &EndpointId, address: SocketAddr) -> Result<Value, Failure> {
    ask(ctx, endpoint, address, "/v1/accounts", "no list of accounts")
}

/// Asks the worker of `endpoint` for `target`; `lacking` says what is not there without an answer.
fn ask(
    ctx: &Context,
    endpoint: &EndpointId,
    address: SocketAddr,
    target: &str,
    lacking: &str,
) -> Result<Value, Failure> {
    let path = ctx.paths.token(endpoint);
    let token = token::read_token(&path)
        .map_err(|error| Failure::from_error(&error))?
        .ok_or_else(|| Failure::new(format!("endpoint `{endpoint}` has no local token in `{}`", path.display())))?;
    let failed = |what: String| {
        Failure::new(format!("endpoint `{endpoint}` at http://{address} gives {lacking}: {what}"))
            .hint(format!("`codexctl logs {endpoint}` shows what its worker does"))
    };
    let answer = http::get(address, target, &token, ASK_TIMEOUT).map_err(|error| failed(error.to_string()))?;
    if answer.status != 200 {
        let said: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let said = said.as_ref().and_then(|body| body["error"]["message"].as_str()).map(str::to_owned);
        // Not JSON: a sentence of the supervisor for an endpoint that cannot run.
        let said = said.unwrap_or_else(|| String::from_utf8_lossy(&answer.body).trim().to_owned());
        return Err(failed(format!("HTTP {}: {said}", answer.status)));
    }
    serde_json::from_slice(&answer.body).map_err(|error| failed(format!("it is not JSON: {error}")))
}

/// What trying an endpoint out has shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Probe {
    /// Whether its worker answers.
    pub(crate) is_healthy: bool,
    /// How long that took.
    pub(crate) healthy_ms: Option<u64>,
    /// Models offered to Codex.
    pub(crate) n_models: Option<usize>,
    /// Whether the provider itself was asked for them and answered.
    pub(crate) provider_answered: bool,
    /// How long that took.
    pub(crate) models_ms: Option<u64>,
    /// The first thing that does not work.
    pub(crate) problem: Option<Problem>,
}

/// Tries `endpoint` out. `models_are_listed` says that its settings list the models, so that the provider is not asked.
pub(crate) fn probe(
    ctx: &Context,
    client: &mut Client,
    endpoint: &EndpointId,
    models_are_listed: bool,
) -> (Option<EndpointStatus>, Probe) {
    let mut probe = Probe {
        is_healthy: false,
        healthy_ms: None,
        n_models: None,
        provider_answered: false,
        models_ms: None,
        problem: None,
    };
    let started_at = Instant::now();
    let status = match wake(client, Some(endpoint), WAKE_TIMEOUT, WAKE_MARGIN) {
        Ok(status) => status,
        Err(error) => {
            probe.problem = Some(problem(error.into()));
            return (None, probe);
        }
    };
    probe.is_healthy = true;
    probe.healthy_ms = Some(elapsed_ms(started_at));
    probe.problem.clone_from(&status.problem);
    if let Some(address) = status.address {
        let asked_at = Instant::now();
        match models(ctx, endpoint, address, true) {
            Ok(list) => {
                probe.models_ms = Some(elapsed_ms(asked_at));
                probe.n_models = Some(list.entries().len());
                probe.provider_answered = list.problem().is_none() && !models_are_listed;
                let remedy = || {
                    Some(format!(
                        "`codexctl login {endpoint}` stores another key, `codexctl endpoint show {endpoint}` shows the settings"
                    ))
                };
                let told = list.problem().map(|problem| Problem { hint: problem.hint.or_else(remedy), ..problem });
                probe.problem = probe.problem.or(told);
            }
            Err(failure) => probe.problem = probe.problem.or(Some(problem(failure))),
        }
    }
    (Some(status), probe)
}

impl Probe {
    /// For a person: one line about the worker, one about the provider. `has_key` says that a key was shown to it.
    pub(crate) fn lines(&self, has_key: bool) -> [(&'static str, Option<String>); 2] {
        let took = |ms: Option<u64>| ms.map(|ms| format!(" ({})", text::duration(ms))).unwrap_or_default();
        let worker =
            if self.is_healthy { format!("healthy{}", took(self.healthy_ms)) } else { "does not answer".to_owned() };
        // Some providers give their list to anybody, so that it proves no more about the key than this.
        let key = if has_key { ", key not refused" } else { "" };
        let provider = match self.n_models {
            Some(n) if self.provider_answered => {
                Some(format!("reachable{key}, {}{}", text::count(n, "model"), took(self.models_ms)))
            }
            Some(n) if self.problem.is_none() => {
                Some(format!("not asked: the settings list {}", text::count(n, "model")))
            }
            _ if self.is_healthy => Some("does not work yet".to_owned()),
            _ => None,
        };
        [("  worker", Some(worker)), ("  provider", provider)]
    }

    /// Tells what does not work, if anything.
    pub(crate) fn warn(&self, ctx: &Context) {
        if let Some(problem) = &self.problem {
            ctx.output.warn(&problem.message, problem.hint.as_deref());
        }
    }
}

fn problem(failure: Failure) -> Problem {
    let (message, hint) = failure.into_parts();
    Problem { message, hint }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
