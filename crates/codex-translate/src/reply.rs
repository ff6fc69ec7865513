//! One answer on its way from the provider's bytes to Codex's events.
//!
//! ```text
//!  bytes ──► framing ──► decoder ──► textcalls ──► emitter ──► bytes
//! ```
//!
//! Nothing waits for more than it needs: what a chunk completes is written by the call that brings the chunk. As long as
//! nothing of the answer has been written, a failure is only noted ([`Reply::pending_failure`]), so that the worker can
//! ask again, there or elsewhere, inside the same stream ([`Reply::restart`]); after that it ends the stream.

use std::collections::HashSet;

use crate::failure::redact;
use crate::mark::Mark;
use crate::responses::Emitter;
use crate::sealed::Origin;
use crate::sse::{FRAME_BYTES_MAX, FrameTooLong};
use crate::textcalls::TextCalls;
use crate::tools::ToolTable;
use crate::{Decode, DecodeError, Delta, Failure, FailureClass, Frame, Framing, StopReason, Usage, json, ndjson, sse};

/// What a reply needs from outside, so that it stays a pure function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplySeed {
    /// `resp_…`, unique; ids of items and calls are derived from it.
    pub response_id: String,
    /// Unix seconds.
    pub created_at: u64,
    /// Model as Codex named it.
    pub model: String,
}

/// What an answer is made with.
#[derive(Clone, Debug)]
pub struct ReplyConfig {
    /// Ids and time.
    pub seed: ReplySeed,
    /// The tools that were offered.
    pub tools: ToolTable,
    /// Where the answer comes from.
    pub origin: Origin,
    /// Key that seals upstream state.
    pub seal_key: [u8; 32],
    /// Call ids of the request's history, which no new call may have.
    pub known_call_ids: HashSet<String>,
    /// Show reasoning as summary text; otherwise only its state is carried. Codex asks for that with
    /// `reasoning.summary: "none"`.
    pub show_reasoning: bool,
    /// The request asks for a compacted history ([`Request::is_compaction`](crate::Request::is_compaction)): the answer
    /// is one `compaction` item with the sealed summary, and nothing else.
    pub compaction: bool,
    /// The items of the answer are wanted at its end, too.
    pub keep_output: bool,
    /// How often the rest of an answer may be asked for that has reached the provider's output limit
    /// ([`Reply::wants_more`]); 0 to end it there, as a client wants that has set the limit itself.
    pub continuations_max: u32,
}

/// How the upstream's bytes came to an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// End of the body.
    Eof,
    /// The connection broke or a limit of ours was reached.
    Failed(Failure),
}

/// How far an answer has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Something of the answer was written, now or earlier, that Codex shows or keeps: there is no way back.
    pub visible: bool,
    /// The terminal event was written; nothing follows.
    pub finished: bool,
}

/// What became of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// How it ended.
    pub outcome: Outcome,
    /// Token counts, when the provider gave them.
    pub usage: Option<Usage>,
    /// The finished items of the answer, as JSON, separated by commas, where they are to be kept
    /// ([`ReplyConfig::keep_output`]).
    pub output: Vec<u8>,
    /// Marks of the state in the answer that is not sealed by us: a native provider's.
    pub states: Vec<Mark>,
    /// One of them is a compacted history.
    pub is_compacted: bool,
    /// Frames that could not be read.
    pub unreadable_frames: u64,
    /// What the first of them began with.
    pub first_unreadable: Option<String>,
}

/// How an answer ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Outcome {
    /// `response.completed`
    #[default]
    Completed,
    /// `response.incomplete`
    Incomplete,
    /// `response.failed`
    Failed(Failure),
}

/// One answer.
pub struct Reply {
    input: Input,
    rest: Rest,
}

/// How the bytes are read. Not every host that is asked for a stream sends one.
enum Input {
    /// Only white space so far.
    Unknown,
    Sse(sse::Framer),
    Ndjson(ndjson::Framer),
    /// One JSON document, or a page.
    Body(Vec<u8>),
}

/// Everything behind the framing.
struct Rest {
    decoder: Box<dyn Decode + Send>,
    textcalls: TextCalls,
    emitter: Emitter,
    /// Reused for each frame.
    deltas: Vec<Delta>,
    /// Failed before anything was visible.
    pending: Option<Failure>,
    outcome: Option<Outcome>,
    /// The answer has reached the provider's output limit in the middle of a text, and may go on.
    wants_more: bool,
    /// How often the rest may still be asked for.
    continuations_left: u32,
    /// The answer may end in a better way than the provider has ended it.
    may_be_mended: bool,
    unreadable_frames: u64,
    first_unreadable: Option<String>,
    n_events: u64,
    tools: ToolTable,
}

impl Reply {
    /// A reply to which nothing was fed yet.
    pub fn new(decoder: Box<dyn Decode + Send>, framing: Framing, config: ReplyConfig) -> Self {
        let tools = config.tools.clone();
        let continuations_left = config.continuations_max;
        let rest = Rest {
            decoder,
            textcalls: TextCalls::new(tools.clone()),
            emitter: Emitter::new(config),
            deltas: Vec::new(),
            pending: None,
            outcome: None,
            wants_more: false,
            continuations_left,
            may_be_mended: continuations_left > 0,
            unreadable_frames: 0,
            first_unreadable: None,
            n_events: 0,
            tools,
        };
        Self { input: Input::new(framing), rest }
    }

    /// Starts over with another attempt, in the same stream to Codex: what was opened, kept alive and noted stays.
    ///
    /// Returns `false`, and does nothing, once something of the answer is visible or the stream is finished.
    pub fn restart(&mut self, decoder: Box<dyn Decode + Send>, framing: Framing, origin: Origin) -> bool {
        if self.rest.emitter.is_visible() || self.rest.emitter.is_over() {
            return false;
        }
        self.input = Input::new(framing);
        self.rest.decoder = decoder;
        self.rest.textcalls = TextCalls::new(self.rest.tools.clone());
        self.rest.emitter.set_origin(origin);
        self.rest.pending = None;
        true
    }

    /// Reads what has arrived and appends what it completes to `out`. After the end everything is ignored.
    pub fn feed(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Progress {
        if !self.rest.is_settled()
            && let Err(error) = self.read(chunk, out)
        {
            self.rest.fail(Failure::new(FailureClass::Malformed, error.to_string()), out);
        }
        self.progress()
    }

    /// How far the answer has come.
    pub fn progress(&self) -> Progress {
        Progress { visible: self.rest.emitter.is_visible(), finished: self.rest.emitter.is_over() }
    }

    /// Events so far, over all attempts, that say more than that the provider is alive, as comments and pings do.
    pub fn n_events(&self) -> u64 {
        self.rest.n_events
    }

    /// Whether the answer has reached the provider's output limit in the middle of a text, and the rest may be asked for
    /// with [`so_far`](Self::so_far) behind the conversation and be given to [`go_on`](Self::go_on). What else arrives of
    /// the present body is ignored.
    ///
    /// Only a text can be gone on with: a call that is cut off is lost, and made again by the model, whole. Where nothing
    /// can be gone on with, or [`ReplyConfig::continuations_max`] is reached, the answer ends as incomplete; one that
    /// holds a whole call ends as complete, since Codex goes on by itself with what comes of the call.
    pub fn wants_more(&self) -> bool {
        self.rest.wants_more
    }

    /// The answer so far and the request for the rest: items as JSON, separated by commas.
    pub fn so_far(&self) -> Vec<u8> {
        self.rest.emitter.so_far()
    }

    /// Goes on with the rest of an answer that [wants more](Self::wants_more): its text becomes part of the message that
    /// is open. What was thought for it is not kept.
    pub fn go_on(&mut self, decoder: Box<dyn Decode + Send>, framing: Framing) {
        if std::mem::take(&mut self.rest.wants_more) {
            self.input = Input::new(framing);
            self.rest.decoder = decoder;
            self.rest.textcalls = TextCalls::new(self.rest.tools.clone());
            self.rest.continuations_left -= 1;
            self.rest.emitter.go_on();
        }
    }

    /// Why the answer failed, while nothing of it is visible: this attempt can be forgotten.
    pub fn pending_failure(&self) -> Option<&Failure> {
        self.rest.pending.as_ref()
    }

    /// Writes the head of the stream now, instead of with the first visible delta.
    pub fn open(&mut self, out: &mut Vec<u8>) {
        self.rest.emitter.open(out);
    }

    /// Writes an event that resets Codex's idle timer, opening the stream if need be.
    pub fn keepalive(&mut self, out: &mut Vec<u8>) {
        self.rest.emitter.keepalive(out);
    }

    /// Shows a sentence of ours as reasoning, opening the stream if need be. Ignored once the answer is visible.
    pub fn notice(&mut self, text: &str, out: &mut Vec<u8>) {
        self.rest.emitter.notice(text, out);
    }

    /// The upstream's bytes are over, and the answer may be asked for again.
    ///
    /// Like [`end`](Self::end) at the end of a body, except that a failure before anything is visible writes nothing:
    /// then this is `None` and [`pending_failure`](Self::pending_failure) says why.
    pub fn end_of_attempt(&mut self, out: &mut Vec<u8>) -> Option<Summary> {
        self.end_of_body(out);
        (self.rest.pending.is_none() && !self.rest.wants_more).then(|| self.rest.summary())
    }

    /// The upstream's bytes are over; unlike [`end`](Self::end) it may [want more](Self::wants_more) after that.
    pub fn end_of_body(&mut self, out: &mut Vec<u8>) {
        if !self.rest.is_settled() {
            match self.read_end(out) {
                Ok(()) => self.rest.end(None, out),
                Err(error) => self.rest.fail(Failure::new(FailureClass::Malformed, error.to_string()), out),
            }
        }
    }

    /// The upstream's bytes are over: writes what is left and the terminal event, if it was not written yet.
    ///
    /// An answer that was complete but for the end of its body is completed also if the connection broke. Otherwise
    /// the failure of `cause` counts, and without one what the upstream itself reported.
    pub fn end(&mut self, cause: EndCause, out: &mut Vec<u8>) -> Summary {
        let cause = match cause {
            EndCause::Eof => None,
            EndCause::Failed(failure) => Some(failure),
        };
        match &cause {
            None => self.end_of_body(out),
            // Half an event at a broken connection says nothing; at the end of a body it only lacks its line end.
            Some(cause) => self.rest.end(Some(cause), out),
        }
        if std::mem::take(&mut self.rest.wants_more) {
            // The rest could not be had here: Codex keeps what there is, and asks for the rest itself.
            self.rest.emitter.stop(StopReason::Paused, out);
            self.rest.outcome = Some(Outcome::Completed);
        }
        if !self.rest.emitter.is_over() {
            let failure = cause.or(self.rest.pending.take()).unwrap_or_else(no_answer);
            self.rest.finish_failed(failure, out);
        }
        self.rest.summary()
    }

    fn read(&mut self, mut chunk: &[u8], out: &mut Vec<u8>) -> Result<(), FrameTooLong> {
        if matches!(self.input, Input::Unknown) {
            // A byte order mark counts as white space here; the framing does without it.
            let is_space = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, 0xEF | 0xBB | 0xBF);
            let Some(start) = chunk.iter().position(|byte| !is_space(byte)) else { return Ok(()) };
            chunk = &chunk[start..];
            self.input = match chunk[0] {
                b'{' | b'[' | b'<' => Input::Body(Vec::new()),
                _ => Input::Sse(sse::Framer::new()),
            };
        }
        match &mut self.input {
            Input::Unknown => {}
            Input::Sse(framer) => {
                while !self.rest.is_settled()
                    && let Some(frame) = framer.next(&mut chunk)?
                {
                    self.rest.frame(frame, out);
                }
            }
            Input::Ndjson(framer) => {
                while !self.rest.is_settled()
                    && let Some(frame) = framer.next(&mut chunk)?
                {
                    self.rest.frame(frame, out);
                }
            }
            Input::Body(body) => {
                if body.len() + chunk.len() > FRAME_BYTES_MAX {
                    return Err(FrameTooLong);
                }
                body.extend_from_slice(chunk);
                self.rest.n_events += 1; // any piece may be one
            }
        }
        Ok(())
    }

    fn read_end(&mut self, out: &mut Vec<u8>) -> Result<(), FrameTooLong> {
        match &mut self.input {
            Input::Unknown => {}
            Input::Sse(framer) => {
                if let Some(frame) = framer.end()? {
                    self.rest.frame(frame, out);
                }
            }
            Input::Ndjson(framer) => {
                if let Some(frame) = framer.end()? {
                    self.rest.frame(frame, out);
                }
            }
            Input::Body(body) => {
                let body = std::mem::take(body);
                self.rest.body(&String::from_utf8_lossy(&body), out);
            }
        }
        Ok(())
    }
}

impl Input {
    fn new(framing: Framing) -> Self {
        match framing {
            Framing::Sse => Self::Unknown,
            Framing::Ndjson => Self::Ndjson(ndjson::Framer::new()),
        }
    }
}

impl Rest {
    /// Whether nothing that arrives can matter any more.
    fn is_settled(&self) -> bool {
        self.pending.is_some() || self.wants_more || self.emitter.is_over()
    }

    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) {
        self.n_events += u64::from(!frame.is_ping());
        let mut deltas = std::mem::take(&mut self.deltas);
        if let Err(DecodeError::Json { excerpt }) = self.decoder.frame(frame, &mut deltas) {
            self.unreadable_frames += 1;
            self.first_unreadable.get_or_insert_with(|| redact(&excerpt));
        }
        self.emit(&mut deltas, out);
        self.deltas = deltas;
    }

    /// A whole body that came in place of a stream.
    fn body(&mut self, body: &str, out: &mut Vec<u8>) {
        /// What ends a stream of Chat Completions, the only protocol whose hosts do this.
        const DONE: Frame<'static> = Frame { event: "", data: "[DONE]" };
        if body.trim_start().starts_with('<') {
            let mut failure = Failure::from_error_text(body);
            failure.class = FailureClass::Malformed;
            self.fail(failure, out);
        } else if json::parse(body).is_ok() {
            self.frame(Frame { event: "", data: body }, out);
            if !self.is_settled() {
                self.frame(DONE, out);
            }
        } else {
            for line in body.lines().filter(|line| !line.trim().is_empty()) {
                if self.is_settled() {
                    return;
                }
                self.frame(Frame { event: "", data: line }, out);
            }
        }
    }

    /// The upstream has nothing more to say; `cause` is why, unless it ended properly.
    fn end(&mut self, cause: Option<&Failure>, out: &mut Vec<u8>) {
        if self.is_settled() {
            return;
        }
        let mut deltas = std::mem::take(&mut self.deltas);
        self.decoder.end(&mut deltas);
        if let (Some(cause), Some(Delta::Failed(failure))) = (cause, deltas.last_mut()) {
            *failure = cause.clone();
        }
        self.emit(&mut deltas, out);
        self.deltas = deltas;
    }

    /// Writes `deltas` and empties them.
    fn emit(&mut self, deltas: &mut Vec<Delta>, out: &mut Vec<u8>) {
        self.textcalls.apply(deltas);
        let mut calls = Vec::new();
        let mut rest = deltas.drain(..).peekable();
        while let Some(delta) = rest.next() {
            match delta {
                Delta::Started => {}
                Delta::Text(text) => self.emitter.text(&text, out),
                Delta::Reasoning(text) => self.emitter.reasoning(&text, out),
                Delta::Opaque(part) => self.emitter.opaque(part),
                Delta::Call(call) => {
                    calls.push(call);
                    // Calls that come together share the item that carries their state.
                    if !matches!(rest.peek(), Some(Delta::Call(_))) {
                        self.emitter.calls(&calls, out);
                        calls.clear();
                    }
                }
                Delta::WebSearch { query } => self.emitter.web_search(&query, out),
                Delta::Usage(usage) => self.emitter.set_usage(usage),
                Delta::Stop(reason) => {
                    let is_end = match reason {
                        StopReason::Done => true,
                        StopReason::Paused => self.emitter.wants_summary(),
                        StopReason::Length | StopReason::ContentFilter => false,
                    };
                    if is_end && !self.emitter.has_answer() {
                        // Codex would take it for the end of the turn.
                        drop(rest);
                        self.fail(no_answer(), out);
                        return;
                    }
                    let has_call = self.emitter.has_call();
                    let reason = match reason {
                        StopReason::Length if self.continuations_left > 0 && self.emitter.is_in_text() && !has_call => {
                            self.wants_more = true;
                            return;
                        }
                        StopReason::Length if self.may_be_mended && has_call => StopReason::Done,
                        _ => reason,
                    };
                    self.emitter.stop(reason, out);
                    let is_incomplete = matches!(reason, StopReason::Length | StopReason::ContentFilter);
                    self.outcome = Some(if is_incomplete { Outcome::Incomplete } else { Outcome::Completed });
                    return;
                }
                Delta::Failed(failure) => {
                    drop(rest);
                    self.fail(failure, out);
                    return;
                }
            }
        }
        drop(rest);
        if self.emitter.is_full() {
            let limit = crate::responses::emitter::ANSWER_BYTES_MAX;
            self.fail(Failure::new(FailureClass::Malformed, format!("the answer is longer than {limit} bytes")), out);
        }
    }

    /// Ends the stream, or, while nothing is visible, only notes why it would.
    fn fail(&mut self, failure: Failure, out: &mut Vec<u8>) {
        if self.is_settled() {
            return;
        }
        if self.emitter.is_visible() {
            self.finish_failed(failure, out);
        } else {
            self.pending = Some(failure);
        }
    }

    fn finish_failed(&mut self, failure: Failure, out: &mut Vec<u8>) {
        self.emitter.fail(&failure, out);
        self.outcome = Some(Outcome::Failed(failure));
    }

    fn summary(&self) -> Summary {
        Summary {
            outcome: self.outcome.clone().unwrap_or_else(|| Outcome::Failed(no_answer())),
            usage: self.emitter.usage_spent().filter(Usage::is_known),
            output: self.emitter.kept_output(),
            states: Vec::new(),
            is_compacted: false,
            unreadable_frames: self.unreadable_frames,
            first_unreadable: self.first_unreadable.clone(),
        }
    }
}

/// The failure of an answer that ended well and said nothing.
fn no_answer() -> Failure {
    Failure::new(FailureClass::Malformed, "the provider ended its answer without a text or a tool call")
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply")
            .field("progress", &self.progress())
            .field("pending", &self.rest.pending)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
