//! Who may ask, and what they ask for.
//!
//! Only programs of this user on this machine: the socket is on loopback, the bearer token is in a file only the user
//! can read, and a web page in the user's browser is recognised by its `Origin` or by a `Host` that is not ours (DNS
//! rebinding).

use std::sync::Arc;

use codex_control::endpoint::CredentialSource;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;

use crate::answer::{self, Body};
use crate::door::{Full, Visitor};
use crate::metrics;
use crate::models;
use crate::serve::Drain;
use crate::turn;
use crate::worker::Worker;

/// When a client that finds no room may ask again: Codex keeps to it, where it gives up at once without it.
const FULL_RETRY_AFTER_S: u64 = 10;

/// Answers one request.
pub(crate) async fn answer(
    worker: &Arc<Worker>,
    visitor: &Visitor<'_>,
    request: Request<Incoming>,
    drain: Drain,
) -> Response<Body> {
    if let Some(refusal) = foreign(worker, &request) {
        return refusal;
    }
    let path = request.uri().path();
    let path = path.strip_prefix("/v1").filter(|rest| rest.starts_with('/')).unwrap_or(path);
    let method = request.method().clone();
    if path == "/health" {
        return match method {
            Method::GET | Method::HEAD => answer::json(StatusCode::OK, &health(worker)),
            _ => answer::method_not_allowed("GET"),
        };
    }
    if let Some(refusal) = unauthorized(worker, &request) {
        return refusal;
    }
    if let Err(Full) = visitor.take_seat().await {
        return full(worker);
    }
    match (method, path) {
        (Method::POST, "/responses") => turn::answer(worker, request, drain).await,
        // Codex asks for a WebSocket first in some set-ups; 426 makes it fall back to HTTP at once, silently.
        (Method::GET, "/responses") if request.headers().contains_key(header::UPGRADE) => answer::text(
            StatusCode::UPGRADE_REQUIRED,
            "this endpoint speaks HTTP with server-sent events, not WebSocket",
        ),
        (_, "/responses") => answer::method_not_allowed("POST"),
        (Method::GET | Method::HEAD, "/models") => models::answer(worker, &request).await,
        (Method::GET | Method::HEAD, "/accounts") => answer::json(StatusCode::OK, &accounts(worker).await),
        (_, "/models" | "/accounts") => answer::method_not_allowed("GET"),
        (Method::GET | Method::HEAD, "/metrics") => {
            let uptime_s = worker.started_at.elapsed().as_secs();
            let text = worker.metrics.prometheus(worker.endpoint.id.as_str(), uptime_s, metrics::resident_bytes());
            answer::with_type(StatusCode::OK, "text/plain; version=0.0.4", text)
        }
        (Method::GET | Method::HEAD, "/monitoring") => answer::json(StatusCode::OK, &monitoring(worker)),
        (Method::DELETE, "/learned") => {
            let model = request.uri().query().and_then(|query| query.strip_prefix("model="));
            // State belongs to conversations, which no model is known of.
            let of_states = if model.is_none() { worker.states.forget_refused() } else { 0 };
            answer::json(StatusCode::OK, &json!({"forgotten": worker.learned.forget(model) + of_states}))
        }
        (_, "/learned") => answer::method_not_allowed("DELETE"),
        // Codex asks here when its own web search is switched on; 400 is shown to the model as it is.
        (Method::POST, "/alpha/search") => answer::text(
            StatusCode::BAD_REQUEST,
            "web search is not configured: this endpoint's provider has none. Work without it.",
        ),
        _ => answer::error(
            StatusCode::NOT_FOUND,
            "not_found",
            &format!("there is no `{}` here; Codex's base_url is http://{}/v1", request.uri().path(), worker.address),
        ),
    }
}

/// A refusal for a request that a web page could have made.
fn foreign(worker: &Worker, request: &Request<Incoming>) -> Option<Response<Body>> {
    let port = worker.address.port();
    let is_ours = |host: &HeaderValue| host.to_str().is_ok_and(|host| is_own(host, port));
    let hosts = request.headers().get_all(header::HOST);
    let host_is_ours = hosts.iter().next().is_some() && hosts.iter().all(is_ours);
    if !host_is_ours {
        return Some(answer::error(
            StatusCode::MISDIRECTED_REQUEST,
            "wrong_host",
            &format!("the `Host` of this endpoint is 127.0.0.1:{port}"),
        ));
    }
    if request.headers().contains_key(header::ORIGIN) {
        return Some(answer::error(StatusCode::FORBIDDEN, "web_page", "requests from web pages are not answered"));
    }
    None
}

/// Whether `host` is what a client writes that was told our address, to the letter: a number has one form.
fn is_own(host: &str, port: u16) -> bool {
    match host.rsplit_once(':') {
        Some((name, number)) => {
            matches!(name, "127.0.0.1" | "localhost" | "[::1]") && number == port.to_string().as_str()
        }
        None => port == 80 && matches!(host, "127.0.0.1" | "localhost"),
    }
}

/// A refusal for a request without this endpoint's token.
fn unauthorized(worker: &Worker, request: &Request<Incoming>) -> Option<Response<Body>> {
    let offered = request.headers().get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let bearer = offered.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case(b"bearer ")).map(|_| &offered[7..]);
    if bearer.is_some_and(|bearer| worker.token.accept(bearer)) {
        return None;
    }
    let id = &worker.endpoint.id;
    let message = format!("the token of endpoint `{id}` is missing or wrong; `codexctl token {id}` prints it");
    let mut refusal = answer::error(StatusCode::UNAUTHORIZED, "invalid_token", &message);
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Some(refusal)
}

/// A refusal for a request that would wait behind too many others.
fn full(worker: &Worker) -> Response<Body> {
    let id = &worker.endpoint.id;
    let message = format!(
        "endpoint `{id}` has too many requests at once; `worker.connections_max` in supervisor.toml sets the limit"
    );
    let mut refusal = answer::error(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", &message);
    refusal.headers_mut().insert(header::RETRY_AFTER, FULL_RETRY_AFTER_S.into());
    refusal
}

/// Whose key this endpoint uses, and whether it can be used as far as that is known here. Never the key.
///
/// A list, though an endpoint has one account at most: none where its provider wants no key.
async fn accounts(worker: &Worker) -> serde_json::Value {
    let credential = &worker.credential;
    let from = match credential.source() {
        CredentialSource::None => return json!({ "accounts": [] }),
        CredentialSource::Store => json!({ "kind": "store" }),
        CredentialSource::Env(name) => json!({ "kind": "env", "name": name }),
        CredentialSource::File(path) => json!({ "kind": "file", "path": path }),
        // Its arguments may name an account or hold a secret of their own.
        CredentialSource::Command(command) => json!({ "kind": "command", "program": command.first() }),
    };
    let problem = credential.get().await.err().map(|error| error.problem(credential.source()));
    let account = credential.account();
    json!({ "accounts": [{
        // A keyed hash: it tells accounts apart and says nothing else.
        "account": (!account.is_empty()).then_some(account),
        "key_from": from,
        "has_key": problem.is_none(),
        "expires_at_ms": credential.ends_at_ms(),
        "problem": problem,
    }] })
}

/// Everything about this worker that helps to find a fault.
fn monitoring(worker: &Worker) -> serde_json::Value {
    json!({
        "health": health(worker),
        "counters": worker.metrics.snapshot(),
        "problem": worker.problem(),
        "learned": worker.learned.all(),
    })
}

fn health(worker: &Worker) -> serde_json::Value {
    const MIB: u64 = 1024 * 1024;
    json!({
        "status": "ok",
        "endpoint": worker.endpoint.id,
        "backend": worker.endpoint.protocol.name(),
        "target": worker.endpoint.base_url,
        "models": worker.models.known(&worker.endpoint),
        "routes": 1,
        "uptime_s": worker.started_at.elapsed().as_secs(),
        "memory_mb": metrics::resident_bytes() / MIB,
        "requests_total": worker.metrics.requests_total(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_ours_to_the_letter() {
        for (host, port, is_ours) in [
            ("127.0.0.1:41017", 41017, true),
            ("localhost:41017", 41017, true),
            ("[::1]:41017", 41017, true),
            ("localhost", 80, true),
            ("localhost", 41017, false),
            ("127.0.0.1:41018", 41017, false),
            ("127.0.0.1:+41017", 41017, false),
            ("127.0.0.1:041017", 41017, false),
            ("127.0.0.1:", 80, false),
            ("127.0.0.1.:41017", 41017, false),
            ("127.1:41017", 41017, false),
            ("x@127.0.0.1:41017", 41017, false),
            ("127.0.0.1:41017.evil.example", 41017, false),
            ("127.0.0.1.evil.example:41017", 41017, false),
            ("", 80, false),
        ] {
            assert_eq!(is_own(host, port), is_ours, "{host} {port}");
        }
    }
}
