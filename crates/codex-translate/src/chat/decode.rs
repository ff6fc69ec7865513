//! Reads a Chat Completions answer in all the dialects that are spoken.
//!
//! ```text
//!    ┌─ chunk
//!    ▼     │   [DONE], or the end of the stream directly after a finish_reason
//!   Open ──┴──────────────────────────────────────────────────────────────────► Over: Stop
//!    │
//!    └── error object, failure-like finish_reason, end without either ────────► Over: Failed
//! ```
//!
//! Text and reasoning leave as they come. Tool calls, usage and the stop are given out together when the answer is
//! over, because until then nothing about them is certain: a finish reason may come between the pieces of a call, in
//! every chunk, or not at all; usage may come before or after it; and arguments may be repeated, restarted or cut.
//! An answer that fails gives no call at all: it will be asked for again, and no tool may run twice.
//!
//! Sources: each rule has a fixture in `tests/fixtures/chat-completions`.

mod calls;
mod chunk;
mod details;
mod template;
mod think;
mod usage;

use std::borrow::Cow;

use crate::delta::{Delta, StopReason, Usage};
use crate::json::{self, Kind, Raw, Str};
use crate::sealed::Part;
use crate::tools::ToolTable;
use crate::{Decode, DecodeError, Failure, FailureClass, Frame};

use calls::Calls;
use chunk::{Choice, Chunk, Content, Only, Said, decoded};
use details::Details;
use template::Template;
use think::Piece;

/// Most bytes kept of one answer: arguments, state for replay, what cannot be told yet.
///
/// Thirty times the longest output of any model. What is passed on as it comes does not count here.
pub const HELD_BYTES_MAX: usize = 16 << 20;

/// Bytes of an unreadable payload that are kept for the report.
const EXCERPT_BYTES_MAX: usize = 200;

/// Decoder of one answer.
#[derive(Debug, Default)]
pub struct Decoder {
    tools: ToolTable,
    template: Template,
    think: think::Split,
    calls: Calls,
    details: Details,
    /// Where the readable reasoning comes from. The same text often comes by two ways; the first one is followed.
    source: Option<Source>,
    /// Reasoning from a field, since it was last given out as state.
    trace: String,
    /// `message` instead of `delta`, whose text may be all of the answer so far.
    message_text: String,
    message_reasoning: String,
    usage: Option<Usage>,
    ending: Option<Ending>,
    /// Something was said after a finish reason, so that here they mean nothing: only `[DONE]` is an end.
    is_doubtful: bool,
    has_started: bool,
    is_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Field,
    Details,
    Inline,
}

/// What a finish reason means, from the most to the least welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Done,
    Length,
    Filter,
}

impl Decoder {
    /// A decoder for the answer to a request that offered `tools`.
    pub fn new(tools: ToolTable) -> Self {
        Self { tools, ..Self::default() }
    }

    /// Reads one JSON payload. `event` is the SSE name that came with it.
    fn payload(&mut self, event: &str, payload: &str, out: &mut Vec<Delta>) -> Result<(), json::Error> {
        let chunk = Chunk::parse(payload)?;
        if !self.has_started {
            self.has_started = true;
            out.push(Delta::Started);
        }
        if let Some(failure) = in_band_failure(event, payload, &chunk) {
            self.fail(failure, out);
            return Ok(());
        }
        if let (false, Some(inner)) = (chunk.has_choices, chunk.data) {
            return self.payload(event, inner.text(), out);
        }
        let usage_of = |raw: Option<Raw<'_>>| raw.and_then(usage::read);
        let groq = chunk.x_groq.and_then(|groq| groq.get("usage"));
        let in_choice = chunk.choice.as_ref().and_then(|choice| choice.usage);
        self.usage = usage_of(chunk.usage).or_else(|| usage_of(in_choice)).or_else(|| usage_of(groq)).or(self.usage);
        if let Some(only) = chunk.only() {
            self.template.learn(payload, only);
        }
        if let Some(choice) = chunk.choice {
            self.choice(&choice, out);
        }
        self.check_held(out);
        Ok(())
    }

    /// A chunk that is nothing but a piece of text.
    fn only(&mut self, only: Only<'_>, out: &mut Vec<Delta>) {
        match only {
            Only::Content(text) => self.content(text.decode(), out),
            Only::Reasoning(text) => self.reasoning(Source::Field, text.decode().into_owned(), out),
        }
        self.check_held(out);
    }

    fn check_held(&mut self, out: &mut Vec<Delta>) {
        if self.held_bytes() > HELD_BYTES_MAX || self.details.is_full() {
            let message = format!("the answer holds more than {HELD_BYTES_MAX} bytes of tool calls or state");
            self.fail(Failure::new(FailureClass::Malformed, message), out);
        }
    }

    fn choice(&mut self, choice: &Choice<'_>, out: &mut Vec<Delta>) {
        if let Some(delta) = choice.delta {
            self.said(delta, out);
        } else if let Some(message) = choice.message {
            self.message(message, out);
        }
        if choice.finish_reason.is_empty() || self.is_over {
            return;
        }
        let reason = choice.finish_reason.decode();
        match ending(&reason) {
            Ok(ending) => self.ending = self.ending.max(Some(ending)),
            Err(class) => {
                let message = format!("the provider broke the answer off (`{}`)", excerpt(&reason));
                self.fail(Failure::new(class, message), out);
            }
        }
    }

    fn said(&mut self, said: Said<'_>, out: &mut Vec<Delta>) {
        let by_field = if said.reasoning_content.is_empty() { said.reasoning } else { said.reasoning_content };
        self.reasoning(Source::Field, by_field.decode().into_owned(), out);
        if let Some(details) = said.reasoning_details {
            let text = self.details.add(details);
            self.reasoning(Source::Details, text, out);
        }
        match said.content {
            Content::Text(text) => self.content(text.decode(), out),
            Content::Parts(parts) => self.parts(parts, out),
        }
        self.text(said.refusal.decode().into_owned(), out);
        self.calls(said.tool_calls, said.function_call, out);
    }

    /// A `message` in place of a `delta`: some repeat in each one all that was said before.
    fn message(&mut self, message: Said<'_>, out: &mut Vec<Delta>) {
        fn fresh(so_far: &mut String, text: &str) -> String {
            let text = text.strip_prefix(so_far.as_str()).unwrap_or(text).to_owned();
            so_far.push_str(&text);
            text
        }
        let by_field = if message.reasoning_content.is_empty() { message.reasoning } else { message.reasoning_content };
        let reasoning = fresh(&mut self.message_reasoning, &by_field.decode());
        self.reasoning(Source::Field, reasoning, out);
        let content = match message.content {
            Content::Text(text) => {
                let text = fresh(&mut self.message_text, &text.decode());
                self.content(text.into(), out);
                Content::Text(Str::EMPTY)
            }
            parts @ Content::Parts(_) => parts,
        };
        self.said(Said { content, reasoning_content: Str::EMPTY, reasoning: Str::EMPTY, ..message }, out);
    }

    fn calls(&mut self, tool_calls: Option<Raw<'_>>, function_call: Option<Raw<'_>>, out: &mut Vec<Delta>) {
        let mut added = Ok(());
        if let Some(tool_calls) = tool_calls {
            self.doubt_ending();
            added = self.calls.add(tool_calls);
        }
        if let Some(function_call) = function_call {
            self.doubt_ending();
            added = added.and(self.calls.add_legacy(function_call));
        }
        if added.is_err() {
            let message = format!("the answer makes more than {} tool calls", calls::CALLS_MAX);
            self.fail(Failure::new(FailureClass::Malformed, message), out);
        }
    }

    /// Mistral's typed parts, which appear among plain strings.
    fn parts(&mut self, parts: Raw<'_>, out: &mut Vec<Delta>) {
        let one = (parts.kind() == Kind::Object).then_some(parts);
        for part in one.into_iter().chain(parts.elements()) {
            if let Some(thinking) = part.get("thinking").or_else(|| part.get("reasoning")) {
                let mut text = decoded(thinking).into_owned();
                for inner in thinking.elements() {
                    text.push_str(&inner.get("text").map(decoded).unwrap_or_default());
                }
                self.reasoning(Source::Field, text, out);
            } else if let Some(text) = part.get("text").or_else(|| part.get("refusal")) {
                self.text(decoded(text).into_owned(), out);
            } else {
                let text = decoded(part);
                self.text(text.into_owned(), out);
            }
        }
    }

    /// Content, in which reasoning may stand between tags.
    fn content(&mut self, text: Cow<'_, str>, out: &mut Vec<Delta>) {
        if text.is_empty() {
            return;
        }
        if self.think.passes(&text) {
            self.text(text.into_owned(), out);
            return;
        }
        let mut pieces = Vec::new();
        self.think.push(&text, &mut pieces);
        self.pieces(pieces, out);
    }

    fn pieces(&mut self, pieces: Vec<Piece>, out: &mut Vec<Delta>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.text(text, out),
                Piece::Think(text) => self.reasoning(Source::Inline, text, out),
                Piece::ThinkEnd(block) => {
                    if self.source == Some(Source::Inline) && !block.trim().is_empty() {
                        out.push(Delta::Opaque(Part::InlineThink(block)));
                    }
                }
            }
        }
    }

    fn text(&mut self, text: String, out: &mut Vec<Delta>) {
        if text.is_empty() {
            return;
        }
        let has_state = !self.trace.is_empty() || !self.details.is_empty();
        if (has_state || self.ending.is_some()) && !text.trim_ascii().is_empty() {
            self.doubt_ending();
            self.give_state(out);
        }
        out.push(Delta::Text(text));
    }

    fn reasoning(&mut self, source: Source, text: String, out: &mut Vec<Delta>) {
        if text.is_empty() || *self.source.get_or_insert(source) != source {
            return;
        }
        self.doubt_ending();
        if source == Source::Field {
            self.trace.push_str(&text);
        }
        out.push(Delta::Reasoning(text));
    }

    /// The answer goes on, whatever was said about its end.
    fn doubt_ending(&mut self) {
        self.is_doubtful |= self.ending.is_some();
    }

    /// Gives out what the upstream will want back, once the reasoning it belongs to is over.
    fn give_state(&mut self, out: &mut Vec<Delta>) {
        let trace = std::mem::take(&mut self.trace);
        if !trace.trim_ascii().is_empty() {
            out.push(Delta::Opaque(Part::ReasoningContent(trace)));
        }
        if let Some(details) = self.details.take() {
            out.push(Delta::Opaque(Part::ReasoningDetails(details)));
        }
    }

    /// The answer is over and came whole, as far as the upstream says.
    fn complete(&mut self, out: &mut Vec<Delta>) {
        let mut pieces = Vec::new();
        self.think.end(&mut pieces);
        self.pieces(pieces, out);

        let ending = self.ending.unwrap_or(Ending::Done);
        let (calls, broken) = self.calls.finish(&self.tools);
        if let (Ending::Done, Some(first)) = (ending, broken.first()) {
            self.fail(first.why.failure(&first.name), out);
            return;
        }
        self.give_state(out);
        let stop = match ending {
            Ending::Done => StopReason::Done,
            Ending::Length => StopReason::Length,
            Ending::Filter => StopReason::ContentFilter,
        };
        if ending != Ending::Filter {
            out.extend(calls.into_iter().map(Delta::Call));
        }
        out.extend(self.usage.map(Delta::Usage));
        out.push(Delta::Stop(stop));
        self.is_over = true;
    }

    fn fail(&mut self, failure: Failure, out: &mut Vec<Delta>) {
        if !self.is_over {
            out.extend(self.usage.map(Delta::Usage));
            out.push(Delta::Failed(failure));
            self.is_over = true;
        }
    }

    fn held_bytes(&self) -> usize {
        self.calls.held_bytes()
            + self.think.held_bytes()
            + self.trace.len()
            + self.details.held_bytes()
            + self.message_text.len()
            + self.message_reasoning.len()
    }

    /// Reads a payload that is not one JSON object: several glued together, a list, or one with broken text in it.
    fn odd_payload(&mut self, event: &str, payload: &str, out: &mut Vec<Delta>) -> Result<(), DecodeError> {
        if let Some(repaired) = json::without_lone_surrogates(payload)
            && self.payload(event, &repaired, out).is_ok()
        {
            return Ok(());
        }
        let unreadable = || DecodeError::Json { excerpt: excerpt(payload).to_owned() };
        if payload.starts_with('[') {
            let list = json::parse(payload).map_err(|_| unreadable())?;
            for element in list.elements().filter(|element| element.kind() == Kind::Object) {
                if self.is_over {
                    return Ok(());
                }
                self.payload(event, element.text(), out).map_err(|_| unreadable())?;
            }
            return Ok(());
        }
        if payload.contains('\n') {
            // Events that ran together because their blank lines got lost.
            let lines = payload.lines().map(str::trim_ascii).filter(|line| !line.is_empty());
            let mut first_bad = None;
            for line in lines {
                if self.is_over {
                    return Ok(());
                }
                if line == DONE {
                    self.complete(out);
                } else if self.payload(event, line, out).is_err() {
                    first_bad = first_bad.or(Some(line));
                }
            }
            return first_bad.map_or(Ok(()), |line| Err(DecodeError::Json { excerpt: excerpt(line).to_owned() }));
        }
        if event == "error" {
            self.fail(Failure::from_error_text(payload), out);
            return Ok(());
        }
        Err(unreadable())
    }
}

/// The payload that ends a stream.
const DONE: &str = "[DONE]";

impl Decode for Decoder {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Delta>) -> Result<(), DecodeError> {
        let payload = frame.data.trim_ascii();
        if self.is_over || payload.is_empty() {
            return Ok(());
        }
        if payload == DONE {
            self.complete(out);
            return Ok(());
        }
        if let Some(only) = self.template.read(payload) {
            self.only(only, out);
            return Ok(());
        }
        match self.payload(frame.event, payload, out) {
            Ok(()) => Ok(()),
            Err(_) => self.odd_payload(frame.event, payload, out),
        }
    }

    fn end(&mut self, out: &mut Vec<Delta>) {
        if self.is_over {
            return;
        }
        if self.ending.is_some() && !self.is_doubtful {
            self.complete(out);
            return;
        }
        let message = if self.has_started {
            "the provider closed the stream in the middle of the answer"
        } else {
            "the provider closed the stream without an answer"
        };
        self.fail(Failure::new(FailureClass::Truncated, message), out);
    }
}

/// The failure that a chunk reports, if it does: an answer that began with HTTP 200 can still fail.
fn in_band_failure(event: &str, payload: &str, chunk: &Chunk<'_>) -> Option<Failure> {
    if chunk.error.is_some() {
        // All of the chunk: some hosts put the code beside the error.
        return Some(Failure::from_error_text(payload));
    }
    if let Some(error) = chunk.choice.as_ref().and_then(|choice| choice.error) {
        return Some(Failure::from_error_text(error.text()));
    }
    let base_code = chunk.base_resp.and_then(|base| base.get("status_code"));
    if base_code.is_some_and(|code| code.text() != "0") {
        return Some(Failure::from_error_text(payload));
    }
    let is_error = chunk.is_error_object || event == "error" || chunk.has_error_words && chunk.usage.is_none();
    (!chunk.has_choices && chunk.data.is_none() && is_error).then(|| Failure::from_error_text(payload))
}

/// What a finish reason means; `Err` for one that means a failure. Reasons nobody has seen yet are a good end.
fn ending(reason: &str) -> Result<Ending, FailureClass> {
    match reason.to_ascii_lowercase().as_str() {
        "length" | "max_tokens" | "model_length" | "max_output_tokens" | "max_length" => Ok(Ending::Length),
        "content_filter" | "content-filter" | "sensitive" | "safety" | "prohibited_content" => Ok(Ending::Filter),
        "network_error" => Err(FailureClass::Network),
        "insufficient_system_resource" => Err(FailureClass::Overloaded),
        "error" | "abort" | "aborted" | "server_error" => Err(FailureClass::Server),
        _ => Ok(Ending::Done),
    }
}

fn excerpt(text: &str) -> &str {
    &text[..text.floor_char_boundary(EXCERPT_BYTES_MAX)]
}

#[cfg(test)]
mod tests;
