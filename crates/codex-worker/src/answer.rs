//! Answers that are known whole, and how a failure is told to Codex.
//!
//! What Codex does with an answer decides its shape (measured, see `ARCHITECTURE.md`, *Answers to Codex*):
//!
//! | failure | answer | Codex |
//! |---|---|---|
//! | permanent: key, quota, model, request | 400, plain sentence | shows the sentence, stops |
//! | context window | 400, `context_length_exceeded` | compacts or says so |
//! | rate limit | 200, `response.failed` with the delay | waits that long, tries again |
//! | everything that may pass | 200, `response.failed` `server_error` | tries again, five times |

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use codex_control::redact;
use codex_translate::{Failure, FailureClass};
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde_json::{Value, json};

use crate::stream::TurnStream;
use crate::worker::Worker;

/// What a response carries.
pub(crate) enum Body {
    /// Known whole.
    Whole(Option<Bytes>),
    /// Made while it flows.
    Stream(Box<TurnStream>),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream.poll_bytes(ctx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(stream) => stream.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

pub(crate) fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = body.into();
    let mut response = Response::new(Body::Whole((!body.is_empty()).then_some(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(crate) fn text(status: StatusCode, sentence: &str) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", sentence.to_owned())
}

pub(crate) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    with_type(status, "application/json", value.to_string())
}

/// An error in OpenAI's shape.
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    error_about(status, code, message, None)
}

/// An error in OpenAI's shape that names the parameter it is about.
pub(crate) fn error_about(status: StatusCode, code: &str, message: &str, parameter: Option<&str>) -> Response<Body> {
    let error = json!({"message": message, "type": "invalid_request_error", "code": code, "param": parameter});
    json(status, &json!({ "error": error }))
}

pub(crate) fn method_not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response =
        error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &format!("only {allowed} is possible here"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

/// An answer whose body is an event stream.
pub(crate) fn event_stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// How a failure before the first event is told.
pub(crate) enum Telling {
    /// As this answer.
    Answer(Response<Body>),
    /// As a stream that ends with `response.failed`, carrying this failure.
    Stream(Failure),
}

/// Chooses the answer for `failure` of a request for `model`.
pub(crate) fn telling(worker: &Worker, model: &str, failure: &Failure) -> Telling {
    let told = told(worker, model, failure);
    match failure.class {
        FailureClass::ContextLength => {
            Telling::Answer(error(StatusCode::BAD_REQUEST, failure.class.responses_code(), &told.message))
        }
        class if class.is_retryable() => Telling::Stream(told),
        _ => Telling::Answer(text(StatusCode::BAD_REQUEST, &told.message)),
    }
}

/// `failure` in the words in which Codex is told.
pub(crate) fn told(worker: &Worker, model: &str, failure: &Failure) -> Failure {
    Failure { message: sentence(worker, model, failure), ..failure.clone() }
}

/// The failure for a person: the endpoint, the provider's own words, the remedy.
pub(crate) fn sentence(worker: &Worker, model: &str, failure: &Failure) -> String {
    let id = &worker.endpoint.id;
    let name = &worker.endpoint.name;
    let words = redact::redact(&failure.message);
    let words = words.trim().trim_end_matches('.');
    let status = failure.http_status.map(|status| format!(" (HTTP {status})")).unwrap_or_default();
    let remedy = hint(worker, failure.class).map(|hint| format!(" {hint}")).unwrap_or_default();
    let what = match failure.class {
        FailureClass::Auth => format!("{name} refused the key of endpoint `{id}`"),
        FailureClass::Quota => format!("the quota of endpoint `{id}` at {name} is used up"),
        FailureClass::RateLimit => format!("{name} limits the rate of endpoint `{id}`"),
        FailureClass::ContextLength => format!("the conversation does not fit the model `{model}`"),
        FailureClass::ModelNotFound => format!("{name} has no model `{model}`"),
        FailureClass::InvalidRequest => format!("{name} did not accept the request of endpoint `{id}`"),
        FailureClass::Refused => format!("{name} refuses to serve endpoint `{id}`"),
        FailureClass::UpgradeRequired => format!("{name} wants a newer client than endpoint `{id}` shows"),
        FailureClass::Overloaded => format!("{name} is at capacity"),
        FailureClass::Server => format!("{name} had an error"),
        FailureClass::Network => format!("endpoint `{id}` has no connection to {name}"),
        FailureClass::Truncated => format!("the answer of {name} was cut off"),
        FailureClass::Malformed => format!("the answer of {name} made no sense"),
    };
    if words.is_empty() { format!("{what}{status}.{remedy}") } else { format!("{what}{status}: {words}.{remedy}") }
}

/// What the person can do about a failure of this class.
pub(crate) fn hint(worker: &Worker, class: FailureClass) -> Option<String> {
    let id = &worker.endpoint.id;
    match class {
        FailureClass::Auth => Some(format!("Store a valid key with `codexctl login {id}`.")),
        FailureClass::ModelNotFound => Some(format!("`codexctl models {id}` lists the models.")),
        FailureClass::Network => Some(format!(
            "Is `{}` right, and is there a network? `codexctl endpoint show {id}`.",
            worker.endpoint.base_url
        )),
        FailureClass::Quota
        | FailureClass::RateLimit
        | FailureClass::ContextLength
        | FailureClass::InvalidRequest
        | FailureClass::Refused
        | FailureClass::UpgradeRequired
        | FailureClass::Overloaded
        | FailureClass::Server
        | FailureClass::Truncated
        | FailureClass::Malformed => None,
    }
}

/// The name of a class in reports and logs.
pub(crate) fn class_name(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Auth => "auth",
        FailureClass::Quota => "quota",
        FailureClass::RateLimit => "rate-limit",
        FailureClass::ContextLength => "context-length",
        FailureClass::ModelNotFound => "model-not-found",
        FailureClass::InvalidRequest => "invalid-request",
        FailureClass::Refused => "refused",
        FailureClass::UpgradeRequired => "upgrade-required",
        FailureClass::Overloaded => "overloaded",
        FailureClass::Server => "server",
        FailureClass::Network => "network",
        FailureClass::Truncated => "truncated",
        FailureClass::Malformed => "malformed",
    }
}
