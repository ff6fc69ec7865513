//! The life of one request, read top to bottom in [`answer`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use codex_control::ipc::FromWorker;
use codex_control::tables::Protocol as WireProtocol;
use codex_control::{Secret, redact};
use codex_translate::chat::Chat;
use codex_translate::reply::{Outcome, ReplyConfig};
use codex_translate::tools::ToolTable;
use codex_translate::{
    Call, EncodeError, EndCause, Failure, FailureClass, Framing, Protocol, Reply, ReplySeed, Target, native, responses,
    sealed,
};
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::account::Account;
use crate::answer::{self, Body, Telling};
use crate::models::UnknownModel;
use crate::serve::Drain;
use crate::stream::{Relay, TurnStream, read_tail};
use crate::worker::{Worker, now_unix_ms};
use crate::{body, upstream};

/// Upstream attempts for one request, the first included.
const ATTEMPTS_MAX: u32 = 4;
/// Pause before the second attempt; doubled before each further one.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Longest wait a provider may ask for that is waited here; a longer one is told to Codex.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);
/// Largest answer put together for a client that wants no stream.
const WHOLE_ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The header that tells Codex that the model list has changed.
static MODELS_ETAG: HeaderName = HeaderName::from_static("x-models-etag");

/// Answers `POST /responses`.
pub(crate) async fn answer(worker: &Arc<Worker>, request: Request<Incoming>, drain: Drain) -> Response<Body> {
    let mut account = Account::new(worker);
    match run(worker, &mut account, request, drain).await {
        Ok(response) => response,
        Err(refusal) => {
            account.refused(refusal.status, &refusal.message);
            refusal.into_response()
        }
    }
}

/// A request that never reaches the provider.
pub(crate) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }
}

impl Refusal {
    fn into_response(self) -> Response<Body> {
        // Codex shows the body of a 400 as it is: a sentence reads better there than JSON.
        if self.status == StatusCode::BAD_REQUEST {
            answer::text(self.status, &self.message)
        } else {
            answer::error(self.status, self.code, &self.message)
        }
    }
}

impl From<UnknownModel> for Refusal {
    fn from(unknown: UnknownModel) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "model_not_found", unknown.message)
    }
}

impl From<responses::ParseError> for Refusal {
    fn from(error: responses::ParseError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", error.to_string())
    }
}

impl From<EncodeError> for Refusal {
    fn from(error: EncodeError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", error.to_string())
    }
}

async fn run(
    worker: &Arc<Worker>,
    account: &mut Account,
    request: Request<Incoming>,
    drain: Drain,
) -> Result<Response<Body>, Refusal> {
    if drain.has_begun() {
        // Only a request on a connection that was open before: Codex tries again, on a new one, at the next worker.
        return Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            "this worker is being replaced",
        ));
    }
    let body = body::read(request, worker.endpoint.limits.body_bytes_max).await?;
    account.report.request_bytes = body.len() as u64;
    let parsed = responses::Request::parse(&body)?;
    account.report.model = parsed.model.clone().into_owned();
    let model = worker.models.resolve(&worker.endpoint, &parsed.model)?;
    account.report.upstream_model.clone_from(&model);
    let facts = worker.models.facts(worker, &model);
    let target = crate::target::target(&worker.endpoint, &facts, worker.seal_key);
    let plan = Plan::new(worker, account, &parsed, &body, &target)?;
    let wants_stream = parsed.stream;
    let idle_timeout = Duration::from_secs(worker.endpoint.limits.idle_timeout_s);
    let attempt = attempts(worker, account, &plan).await;
    match attempt {
        Ok(Begun { relay, upstream, ready }) if wants_stream => {
            account.first_event();
            let account = account.take();
            let stream = TurnStream::new(relay, upstream, ready, account, idle_timeout, drain);
            let mut response = answer::event_stream(Body::Stream(Box::new(stream)));
            if let Some(etag) = worker.models.etag() {
                response.headers_mut().insert(MODELS_ETAG.clone(), etag);
            }
            Ok(response)
        }
        Ok(begun) => Ok(whole(worker, account, begun, idle_timeout).await),
        Err(failure) => Ok(failed(worker, account, &plan, &failure, wants_stream)),
    }
}

/// Everything an attempt needs, made once: each attempt gets a fresh decoder.
struct Plan<'r, 'a> {
    request: &'r responses::Request<'a>,
    target: &'r Target,
    protocol: Option<&'static (dyn Protocol + Sync)>,
    call: Call,
    /// The call's body, shared between attempts.
    body: Bytes,
    config: ReplyConfig,
}

impl<'r, 'a> Plan<'r, 'a> {
    fn new(
        worker: &Worker,
        account: &Account,
        request: &'r responses::Request<'a>,
        body: &[u8],
        target: &'r Target,
    ) -> Result<Self, Refusal> {
        let protocol: Option<&'static (dyn Protocol + Sync)> = match worker.endpoint.protocol {
            WireProtocol::ChatCompletions => Some(&Chat),
            WireProtocol::Responses => None,
        };
        let mut call = match protocol {
            Some(protocol) => protocol.encode(request, target)?,
            None => native::encode(body, &target.model)?,
        };
        let config = ReplyConfig {
            seed: ReplySeed {
                response_id: account.response_id(),
                created_at: now_unix_ms() / 1_000,
                model: account.report.model.clone(),
            },
            tools: ToolTable::from_request(request),
            origin: sealed::Origin {
                provider: target.provider.clone(),
                model: target.model.clone(),
            },
            seal_key: target.seal_key,
            show_reasoning: request.reasoning.summary.as_deref() != Some("none"),
            known_call_ids: request.call_ids().map(str::to_owned).collect(),
        };
        let body = Bytes::from(std::mem::take(&mut call.body));
        Ok(Self {
            request,
            target,
            protocol,
            call,
            body,
            config,
        })
    }

    fn relay(&self) -> Relay {
        match self.protocol {
            Some(protocol) => {
                let decoder = protocol.decoder(self.request, self.target);
                Relay::Translated(Box::new(Reply::new(decoder, self.call.framing, self.config.clone())))
            }
            None => Relay::Native(Box::default()),
        }
    }

    /// A reply that exists only to tell a failure.
    fn failure_reply(&self) -> Reply {
        let decoder = Chat.decoder(self.request, self.target);
        Reply::new(decoder, Framing::Sse, self.config.clone())
    }
}

/// An answer that has begun well.
struct Begun {
    relay: Relay,
    upstream: Incoming,
    /// Bytes for Codex made so far.
    ready: Vec<u8>,
}

/// Asks the provider until an answer begins well, within the budget of this request.
///
/// Nothing has been sent to Codex yet, so a failure here costs time and nothing else.
async fn attempts(worker: &Worker, account: &mut Account, plan: &Plan<'_, '_>) -> Result<Begun, Failure> {
    let mut key_was_renewed = false;
    let mut waited = Duration::ZERO;
    loop {
        let key = worker.credential.get().await.map_err(|error| {
            let problem = error.problem(worker.credential.source());
            let message = format!("{}; {}", problem.message, problem.hint.as_deref().unwrap_or_default());
            worker.report(FromWorker::Problem(Some(problem)));
            Failure::new(FailureClass::Auth, message)
        })?;
        account.report.attempts += 1;
        let failure = match attempt(worker, plan, key.as_ref()).await {
            Ok(begun) => return Ok(begun),
            Err(failure) => failure,
        };
        tracing::info!(
            request = %account.report.request,
            attempt = account.report.attempts,
            status = failure.http_status,
            fault = answer::class_name(failure.class),
            message = %redact::redact(&failure.message),
            "an attempt failed"
        );
        if failure.class == FailureClass::Auth && !key_was_renewed && worker.credential.has_changed(key.as_ref()).await
        {
            key_was_renewed = true;
            continue;
        }
        let pause = retry_pause(&failure, account.report.attempts);
        let Some(pause) = pause.filter(|pause| waited + *pause <= RETRY_AFTER_MAX) else {
            return Err(failure);
        };
        waited += pause;
        worker.metrics.retried();
        tokio::time::sleep(pause).await;
    }
}

/// How long to wait before asking again; `None` when that cannot help or the budget is spent.
fn retry_pause(failure: &Failure, attempts: u32) -> Option<Duration> {
    if !failure.class.is_retryable() || attempts >= ATTEMPTS_MAX {
        return None;
    }
    let backoff = RETRY_PAUSE * 2_u32.pow(attempts - 1);
    Some(failure.retry_after.unwrap_or(backoff))
}

/// Asks the provider once and reads until something can be shown, or the answer has failed.
async fn attempt(worker: &Worker, plan: &Plan<'_, '_>, key: Option<&Secret>) -> Result<Begun, Failure> {
    let limits = &worker.endpoint.limits;
    let deadline = Instant::now() + Duration::from_secs(limits.connect_timeout_s + limits.first_byte_timeout_s);
    let late = || {
        let seconds = limits.first_byte_timeout_s;
        upstream::network(&format!(
            "the provider at {} did not begin to answer within {seconds} s",
            worker.endpoint.base_url
        ))
    };
    let response = tokio::time::timeout_at(deadline, worker.upstream.post(&plan.call, plan.body.clone(), key))
        .await
        .map_err(|_| late())??;
    let (head, mut body) = response.into_parts();
    if !head.status.is_success() {
        let bytes = upstream::error_body(body).await;
        let headers: Vec<(&str, &str)> = head
            .headers
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
            .collect();
        return Err(Failure::from_response(
            head.status.as_u16(),
            &headers,
            &bytes,
            now_unix_ms(),
        ));
    }
    let mut relay = plan.relay();
    let mut ready = Vec::new();
    loop {
        let frame = tokio::time::timeout_at(deadline, body.frame())
            .await
            .map_err(|_| late())?;
        let is_over = match frame {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                let progress = relay.feed(&data, &mut ready);
                if let Some(failure) = relay.pending_failure() {
                    return Err(failure.clone());
                }
                if progress.visible {
                    return Ok(Begun {
                        relay,
                        upstream: body,
                        ready,
                    });
                }
                progress.finished
            }
            Some(Err(error)) => return Err(upstream::network(&format!("the connection broke: {error}"))),
            None => true,
        };
        if is_over {
            // Nothing visible, yet over: empty, or so short that it is complete only with its end.
            return ended_early(relay, body, ready);
        }
    }
}

/// Decides on an answer that ended before anything of it could be shown.
fn ended_early(mut relay: Relay, upstream: Incoming, mut ready: Vec<u8>) -> Result<Begun, Failure> {
    let mark = ready.len();
    let summary = relay.end(EndCause::Eof, &mut ready);
    match summary.outcome {
        Outcome::Failed(failure) => Err(failure),
        Outcome::Completed | Outcome::Incomplete => {
            debug_assert!(ready.len() >= mark, "an end only appends");
            let ended = Relay::Ended(Box::new(summary));
            Ok(Begun {
                relay: ended,
                upstream,
                ready,
            })
        }
    }
}

/// The answer for a client that asked for no stream: the `response` object of the terminal event.
async fn whole(worker: &Worker, account: &mut Account, begun: Begun, idle_timeout: Duration) -> Response<Body> {
    let Begun {
        mut relay,
        mut upstream,
        ready: mut stream,
    } = begun;
    account.first_event();
    let summary = loop {
        let frame = tokio::time::timeout(idle_timeout, upstream.frame()).await;
        let cause = match frame {
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                if stream.len() > WHOLE_ANSWER_BYTES_MAX {
                    EndCause::Failed(Failure::new(FailureClass::Malformed, "the answer is too large"))
                } else if relay.feed(&data, &mut stream).finished {
                    EndCause::Eof
                } else {
                    continue;
                }
            }
            Ok(Some(Err(error))) => EndCause::Failed(upstream::network(&format!("the connection broke: {error}"))),
            Ok(None) => EndCause::Eof,
            Err(_) => EndCause::Failed(upstream::network("the provider fell silent")),
        };
        break relay.end(cause, &mut stream);
    };
    read_tail(upstream);
    let response = terminal_response(&stream);
    let failure = match &summary.outcome {
        Outcome::Failed(failure) => Some(failure.clone()),
        Outcome::Completed | Outcome::Incomplete => None,
    };
    account.ended(&summary);
    match (failure, response) {
        (None, Some(response)) => answer::with_type(StatusCode::OK, "application/json", response),
        (failure, _) => {
            let failure = failure.unwrap_or_else(|| Failure::new(FailureClass::Malformed, "the answer has no end"));
            let sentence = answer::sentence(worker, &account.report.model, &failure);
            answer::error(StatusCode::BAD_GATEWAY, failure.class.responses_code(), &sentence)
        }
    }
}

/// The `response` member of the last event of `stream`.
fn terminal_response(stream: &[u8]) -> Option<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Terminal<'a> {
        #[serde(borrow)]
        response: &'a serde_json::value::RawValue,
    }
    let last = stream
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.strip_prefix(b"data: "))
        .next_back()?;
    let terminal: Terminal<'_> = serde_json::from_slice(last).ok()?;
    Some(terminal.response.get().as_bytes().to_vec())
}

/// Tells Codex that every attempt failed.
fn failed(
    worker: &Worker,
    account: &mut Account,
    plan: &Plan<'_, '_>,
    failure: &Failure,
    wants_stream: bool,
) -> Response<Body> {
    let mut response = match answer::telling(worker, &account.report.upstream_model, failure) {
        Telling::Answer(response) => response,
        Telling::Stream(told) if wants_stream => {
            let mut bytes = Vec::new();
            plan.failure_reply().end(EndCause::Failed(told), &mut bytes);
            answer::event_stream(Body::Whole(Some(Bytes::from(bytes))))
        }
        Telling::Stream(told) => answer::error(StatusCode::BAD_GATEWAY, told.class.responses_code(), &told.message),
    };
    // Codex re-reads the head of each answer for it; a failure tells nothing new about models.
    response.headers_mut().remove(&MODELS_ETAG);
    account.report.status = response.status().as_u16();
    account.failed(failure);
    response
}
