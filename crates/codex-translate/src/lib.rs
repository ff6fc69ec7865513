//! Translates between the Responses API, which is all that Codex speaks, and the wire protocols of providers.
//!
//! Bytes in, bytes out: nothing here opens a socket, reads a file, asks for the time or draws a random number.
//! What a request needs of those (ids, the time of creation, the key that seals state) is an argument, so that
//! the same input always gives the same output and any exchange can be replayed in a test.
//!
//! ```text
//!  Codex ── body ──► responses::Request ──► Protocol::encode ──► Call ──► (the worker sends it)
//!  Codex ◄─ SSE ──── responses::Emitter ◄── Delta ◄── Decode ◄── Frame ◄── sse ◄── (bytes as they arrive)
//!                    └────────────────────── Reply::feed ──────────────────────┘
//! ```
//!
//! Every upstream protocol decodes into the one alphabet [`Delta`]; the one [`responses::Emitter`] makes all
//! Responses events from it. A decoder never writes an event, the emitter never reads an upstream byte.

pub mod anthropic;
pub mod chat;
#[cfg(any(test, feature = "testing"))]
pub mod checker;
pub mod delta;
mod effort;
pub mod failure;
pub mod history;
pub mod json;
pub mod mark;
pub mod native;
pub mod ndjson;
pub mod reply;
pub mod responses;
pub mod sealed;
pub mod sse;
pub mod target;
pub mod textcalls;
pub mod tools;

pub use delta::{Delta, StopReason, Usage};
pub use failure::{Failure, FailureClass, Repair, Trouble};
pub use reply::{EndCause, Outcome, Progress, Reply, ReplyConfig, ReplySeed, Summary};
pub use responses::Request;
pub use target::Target;

/// How the bytes of an upstream answer are cut into frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Server-sent events.
    Sse,
    /// One JSON object a line.
    Ndjson,
}

/// One upstream HTTP request, as plain data: no HTTP client's type stands in this crate's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Path below the endpoint's base URL, with a leading `/`, e.g. `/chat/completions`.
    pub path: String,
    /// Query string without `?`.
    pub query: Option<String>,
    /// Headers that belong to the protocol (lower-case names); the worker adds authorization.
    pub headers: Vec<(&'static str, String)>,
    /// The JSON body.
    pub body: Vec<u8>,
    /// How the answer will be framed.
    pub framing: Framing,
}

/// One payload of an upstream stream: an SSE event or an NDJSON line.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The SSE `event:` name, empty when there was none.
    pub event: &'a str,
    /// The payload: `data:` lines joined by newlines, without their prefix. At most [`sse::FRAME_BYTES_MAX`] bytes.
    pub data: &'a str,
}

impl Frame<'_> {
    /// Whether it says no more than that the sender is alive: `ping`, as Anthropic sends it, with or without a name.
    fn is_ping(&self) -> bool {
        const PING_BYTES_MAX: usize = 64;
        self.event == "ping"
            || self.data.len() <= PING_BYTES_MAX
                && json::parse(self.data)
                    .is_ok_and(|data| data.get("type").and_then(json::Raw::as_str).is_some_and(|kind| kind.is("ping")))
    }
}

/// A request that cannot be expressed for the target.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A part of the request is not what the Responses API allows.
    #[error("`{what}` in the request is not valid: {detail}")]
    Invalid {
        /// JSON path of the part, e.g. `input[3].output`.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// A frame that cannot be read. The stream goes on; the reply counts these and keeps the first for the report.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The payload is not JSON.
    #[error("a frame is not JSON: `{excerpt}`")]
    Json {
        /// The first 200 bytes of the payload.
        excerpt: String,
    },
}

/// A wire protocol: how a request is written for it.
pub trait Protocol {
    /// Writes `request` for `target`. The same input gives the same bytes.
    ///
    /// # Errors
    /// [`EncodeError::Invalid`] when the request's own content rules the translation out.
    fn encode(&self, request: &Request<'_>, target: &Target) -> Result<Call, EncodeError>;

    /// A decoder for the answer to `request`; it knows the tools that were offered.
    fn decoder(&self, request: &Request<'_>, target: &Target) -> Box<dyn Decode + Send>;
}

/// A wire protocol: how an answer is read, one frame at a time.
pub trait Decode {
    /// Reads one frame and appends the deltas it completes to `out`, in upstream order; a frame may yield none.
    ///
    /// # Errors
    /// [`DecodeError::Json`] for a payload that is not JSON; the stream goes on.
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Delta>) -> Result<(), DecodeError>;

    /// The upstream has ended: releases what is complete and held, and says how the answer ended.
    ///
    /// Appends exactly one [`Delta::Stop`] or [`Delta::Failed`] unless one was given already.
    fn end(&mut self, out: &mut Vec<Delta>);
}
