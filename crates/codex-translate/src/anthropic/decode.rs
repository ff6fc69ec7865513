//! Reads an Anthropic Messages answer, of Anthropic and of the many servers that imitate it.
//!
//! ```text
//!          message_start, message_delta             message_stop, or the end after a stop_reason
//!        ┌──────────────────────┐               ┌─────────────────────────────────────────────────► Over: Stop
//!        ▼                      │               │
//!       Open ───────────────────┴───────────────┤
//!        ▲                      ▲               │
//!        │ content_block_stop   │ content_      └── error event, the end without a stop_reason ───► Over: Failed
//!        └────── block ◄────────┘ block_start
//! ```
//!
//! Text and thinking leave as they come; the state of a thinking block (its signature) follows when the block is
//! closed. A call is held until the answer is over, since only the stop reason tells whether it was cut off, and because
//! an answer that fails before anything of it was shown can be asked for again. Only where something follows that is
//! shown at once is it given out before that, since everything must go back in the place where it came.
//!
//! Blocks are kept by their index, but nothing relies on it: gateways leave out the start or the stop of a block, open
//! one before the last is closed, and count wrongly.
//!
//! Sources: Anthropic Messages streaming, <https://docs.anthropic.com/en/api/messages-streaming>, read 2026-11; each
//! rule has a fixture in `tests/fixtures/anthropic-messages`.

mod event;
mod usage;

use crate::delta::{Delta, StopReason, ToolCall};
use crate::json::{self, Kind, Raw};
use crate::sealed::Part;
use crate::textcalls::repair::{self, Fragments, Unusable};
use crate::textcalls::tool_name;
use crate::tools::{Tool, ToolTable};
use crate::{Decode, DecodeError, Failure, FailureClass, Frame};

use event::{Event, decoded};
use usage::Counts;

/// Most bytes that are kept of one answer until a block is closed or the answer is over: thinking and its signatures,
/// names, ids and input of tools. What was given out of them counts on, so that a block cannot be begun for ever.
///
/// Thirty times the longest output of any model. Text is passed on as it comes, and does not count here.
pub const HELD_BYTES_MAX: usize = 16 << 20;

/// Most blocks of one answer. A long turn with searches has some dozens; a stream that opens more is broken, or hostile.
pub const BLOCKS_MAX: usize = 1_000;

/// Bytes of an unreadable payload that are kept for the report.
const EXCERPT_BYTES_MAX: usize = 200;

/// The payload that ends the streams of servers which are OpenAI's at heart.
const DONE: &str = "[DONE]";

/// Name of the search that Anthropic runs by itself.
const WEB_SEARCH: &str = "web_search";

/// Decoder of one answer.
#[derive(Debug, Default)]
pub struct Decoder {
    tools: ToolTable,
    /// The blocks that are open, in the order in which they came.
    open: Vec<Open>,
    /// What was not given out yet, in order; the first of it is a call.
    held: Vec<Held>,
    /// How much of what was held was given out, so that a [`Block::Call`] finds its own.
    n_given: usize,
    n_blocks: usize,
    held_bytes: usize,
    counts: Counts,
    ending: Option<Ending>,
    has_started: bool,
    is_over: bool,
}

/// An open block.
#[derive(Debug)]
struct Open {
    /// `None` where the server does not count.
    index: Option<u64>,
    block: Block,
}

/// What an open block will be.
#[derive(Debug)]
enum Block {
    Text,
    Thinking {
        text: String,
        signature: String,
    },
    /// A call that is held, by its number among all that was held.
    Call(usize),
    /// A search by the server, and what it was given.
    Search(Input),
    /// Results of the server's own tools, and types that are new to this program.
    Ignored,
}

/// What waits for the end of the answer.
#[derive(Debug)]
enum Held {
    Call(HeldCall),
    /// State that came after a call.
    State(Part),
}

/// A call that is held.
#[derive(Debug)]
struct HeldCall {
    id: Option<String>,
    /// Without decorations. Nobody could run a call without a name, so an empty one is left out.
    name: String,
    input: Input,
    /// The arguments, once the block is closed.
    arguments: Option<Result<String, Unusable>>,
    /// Another block began after this one, so it was not cut off.
    is_followed: bool,
}

/// The input of a tool as it comes: whole with the start of its block, or in pieces, or both.
#[derive(Debug, Default)]
struct Input {
    /// The object in the start, as JSON text, if there is something in it.
    start: Option<String>,
    pieces: Fragments,
}

/// What a stop reason means, from the most to the least welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Done,
    Paused,
    Length,
    Filter,
}

impl Decoder {
    /// A decoder for the answer to a request that offered `tools`.
    pub fn new(tools: ToolTable) -> Self {
        Self { tools, ..Self::default() }
    }

    /// Reads one JSON payload. `name` is the SSE name that came with it.
    fn payload(&mut self, name: &str, payload: &str, out: &mut Vec<Delta>) -> Result<(), json::Error> {
        let event = Event::parse(payload)?;
        let kind = if event.kind.is_empty() { name } else { &*event.kind };
        if kind == "error" || name == "error" || event.error.is_some() || !is_known(kind) && event.has_error_words {
            self.fail(Failure::from_error_text(payload), out);
            return Ok(());
        }
        if !is_known(kind) || kind == "ping" {
            return Ok(());
        }
        if !self.has_started {
            self.has_started = true;
            out.push(Delta::Started);
        }
        match kind {
            "message_start" => {
                if let Some(usage) = event.message.and_then(|message| message.get("usage")) {
                    self.counts.add(usage);
                }
            }
            "content_block_start" => self.start(event.index, event.content_block.unwrap_or(Raw::NULL), out),
            "content_block_delta" => self.step(event.index, &event.delta, out),
            "content_block_stop" => self.stop(event.index, out),
            "message_delta" => {
                if let Some(usage) = event.usage {
                    self.counts.add(usage);
                }
                self.stop_reason(event.delta.stop_reason, out);
            }
            "message_stop" => self.complete(out),
            // The whole answer at once, by a server that does not stream.
            _ => self.message(&event, out),
        }
        if self.held_bytes > HELD_BYTES_MAX || self.n_blocks > BLOCKS_MAX {
            let message = format!(
                "the answer has more than {BLOCKS_MAX} blocks or holds more than {HELD_BYTES_MAX} bytes of them"
            );
            self.fail(Failure::new(FailureClass::Malformed, message), out);
        }
        Ok(())
    }

    /// An answer that came whole.
    fn message(&mut self, message: &Event<'_>, out: &mut Vec<Delta>) {
        let content = message.content.unwrap_or(Raw::NULL);
        self.text(&decoded(content), out);
        for block in content.elements() {
            if self.n_blocks > BLOCKS_MAX {
                return;
            }
            self.start(None, block, out);
            self.stop(None, out);
        }
        if let Some(usage) = message.usage {
            self.counts.add(usage);
        }
        self.stop_reason(message.stop_reason, out);
        self.complete(out);
    }

    fn start(&mut self, index: Option<u64>, block: Raw<'_>, out: &mut Vec<Delta>) {
        // A thinking block is over when the next one begins, whether its server says so or not.
        self.seal_thinking(out);
        self.open.retain(|open| index.is_none() || open.index != index);
        for held in &mut self.held {
            if let Held::Call(call) = held {
                call.is_followed = true;
            }
        }
        self.n_blocks += 1;

        let member = |name| block.get(name).map(decoded).unwrap_or_default();
        let begun = match &*member("type") {
            "text" => {
                self.text(&member("text"), out);
                Block::Text
            }
            "thinking" => {
                let text = member("thinking").into_owned();
                let signature = member("signature").into_owned();
                self.held_bytes += text.len() + signature.len();
                if !text.is_empty() {
                    self.give_whole(out);
                    out.push(Delta::Reasoning(text.clone()));
                }
                Block::Thinking { text, signature }
            }
            "redacted_thinking" => {
                let data = member("data");
                if !data.is_empty() {
                    self.held_bytes += data.len();
                    self.state(redacted_block(&data), out);
                }
                Block::Ignored
            }
            "tool_use" => {
                let id = member("id").into_owned();
                let name = tool_name(&member("name"), &self.tools);
                let input = Input::from_start(block.get("input"));
                self.held_bytes += id.len() + name.len() + input.held_bytes();
                self.held.push(Held::Call(HeldCall {
                    id: Some(id).filter(|id| !id.is_empty()),
                    name,
                    input,
                    arguments: None,
                    is_followed: false,
                }));
                Block::Call(self.n_given + self.held.len() - 1)
            }
            "server_tool_use" if member("name") == WEB_SEARCH => {
                let input = Input::from_start(block.get("input"));
                self.held_bytes += input.held_bytes();
                Block::Search(input)
            }
            _ => Block::Ignored,
        };
        self.open.push(Open { index, block: begun });
    }

    fn step(&mut self, index: Option<u64>, step: &event::Step<'_>, out: &mut Vec<Delta>) {
        let string = |value: Option<Raw<'_>>| value.map(|value| decoded(value).into_owned()).unwrap_or_default();
        // The kind of a step counts, not that of its block: servers send text into a tool's block. Where there is no
        // kind, its one member tells.
        let is = |kind: &str| step.kind == kind || step.kind.is_empty();
        if is("text_delta")
            && let Some(text) = step.text
        {
            self.text(&decoded(text), out);
        }
        if is("thinking_delta") && step.thinking.is_some() {
            self.thinking(index, string(step.thinking), out);
        }
        if is("signature_delta") && step.signature.is_some() {
            self.signature(index, string(step.signature));
        }
        if is("input_json_delta")
            && let Some(piece) = step.partial_json
        {
            self.input(index, piece);
        }
    }

    fn stop(&mut self, index: Option<u64>, out: &mut Vec<Delta>) {
        let Some(place) = self.place_of(index) else { return };
        match self.open[place].block {
            // Sealing takes it out of the list.
            Block::Thinking { .. } => self.seal_thinking(out),
            Block::Call(number) => {
                self.open.remove(place);
                if let Some(call) = held_call(&mut self.held, self.n_given, number) {
                    call.arguments = Some(call.input.object(self.tools.resolve(&call.name)));
                }
            }
            Block::Search(_) | Block::Text | Block::Ignored => {
                if let Block::Search(input) = self.open.remove(place).block {
                    self.search(&input, out);
                }
            }
        }
    }

    fn text(&mut self, text: &str, out: &mut Vec<Delta>) {
        if text.is_empty() {
            return;
        }
        self.seal_thinking(out);
        self.give_whole(out);
        out.push(Delta::Text(text.to_owned()));
    }

    fn thinking(&mut self, index: Option<u64>, piece: String, out: &mut Vec<Delta>) {
        if piece.is_empty() {
            return;
        }
        if self.open_thinking(index).is_none() {
            // Its start was left out.
            self.n_blocks += 1;
            self.open.push(Open { index, block: Block::Thinking { text: String::new(), signature: String::new() } });
        }
        if let Some((text, _)) = self.open_thinking(index) {
            text.push_str(&piece);
            self.held_bytes += piece.len();
        }
        self.give_whole(out);
        out.push(Delta::Reasoning(piece));
    }

    fn signature(&mut self, index: Option<u64>, given: String) {
        if let Some((_, signature)) = self.open_thinking(index)
            && !given.is_empty()
        {
            // Set, not added to, as Anthropic's own clients do: the start of a block may have it already.
            let n_before = signature.len();
            let n_now = given.len();
            *signature = given;
            self.held_bytes = self.held_bytes - n_before + n_now;
        }
    }

    fn input(&mut self, index: Option<u64>, piece: Raw<'_>) {
        let piece = match piece.kind() {
            Kind::String => decoded(piece),
            Kind::Object => piece.text().into(),
            _ => return,
        };
        let takes_input = |open: &Open| matches!(open.block, Block::Call(_) | Block::Search(_));
        let place = self.place_of(index).filter(|place| !matches!(self.open[*place].block, Block::Text));
        let Some(place) = place.or_else(|| self.open.iter().rposition(takes_input)) else { return };
        let input = match &mut self.open[place].block {
            Block::Call(number) => held_call(&mut self.held, self.n_given, *number).map(|call| &mut call.input),
            Block::Search(input) => Some(input),
            Block::Text | Block::Thinking { .. } | Block::Ignored => None,
        };
        if let Some(input) = input {
            self.held_bytes -= input.held_bytes();
            input.pieces.push(&piece);
            self.held_bytes += input.held_bytes();
        }
    }

    /// The open block with this index; the newest one where the server does not count.
    fn place_of(&self, index: Option<u64>) -> Option<usize> {
        self.open.iter().rposition(|open| index.is_none() || open.index == index)
    }

    /// Text and signature of the thinking block with this index, or of the one that is open.
    fn open_thinking(&mut self, index: Option<u64>) -> Option<(&mut String, &mut String)> {
        let is_thinking = |open: &Open| matches!(open.block, Block::Thinking { .. });
        let place = self
            .place_of(index)
            .filter(|place| is_thinking(&self.open[*place]))
            .or_else(|| self.open.iter().rposition(is_thinking))?;
        match &mut self.open[place].block {
            Block::Thinking { text, signature } => Some((text, signature)),
            _ => None,
        }
    }

    /// Closes the thinking that is open and gives out what must go back.
    fn seal_thinking(&mut self, out: &mut Vec<Delta>) {
        while let Some(place) = self.open.iter().position(|open| matches!(open.block, Block::Thinking { .. })) {
            if let Block::Thinking { text, signature } = self.open.remove(place).block
                && !(text.is_empty() && signature.is_empty())
            {
                self.state(thinking_block(&text, &signature), out);
            }
        }
    }

    /// Gives out state, or holds it behind the calls that are held. It is not shown, so it can wait.
    fn state(&mut self, part: Part, out: &mut Vec<Delta>) {
        if self.held.is_empty() {
            out.push(Delta::Opaque(part));
        } else {
            self.held.push(Held::State(part));
        }
    }

    fn search(&mut self, input: &Input, out: &mut Vec<Delta>) {
        let Ok(input) = input.object(None) else { return };
        let query =
            json::parse(&input).ok().and_then(|input| input.get("query")).map(|query| decoded(query).into_owned());
        if let Some(query) = query.filter(|query| !query.trim().is_empty()) {
            self.give_whole(out);
            out.push(Delta::WebSearch { query });
        }
    }

    /// Gives out what is held before something is shown that must come after it, up to the first call that is not whole.
    fn give_whole(&mut self, out: &mut Vec<Delta>) {
        let is_broken = |held: &Held| matches!(held, Held::Call(call) if !matches!(call.arguments, Some(Ok(_))));
        let n_whole = self.held.iter().position(is_broken).unwrap_or(self.held.len());
        self.n_given += n_whole;
        for held in self.held.drain(..n_whole) {
            match held {
                Held::State(part) => out.push(Delta::Opaque(part)),
                Held::Call(call) => out.extend(call.settle(&self.tools).ok().flatten().map(Delta::Call)),
            }
        }
    }

    fn stop_reason(&mut self, reason: Option<Raw<'_>>, out: &mut Vec<Delta>) {
        let reason = reason.map(decoded).unwrap_or_default();
        if reason.is_empty() {
            return;
        }
        match ending(&reason) {
            Ok(ending) => self.ending = self.ending.max(Some(ending)),
            Err(class) => {
                let message = format!("the provider broke the answer off (`{}`)", excerpt(&reason));
                self.fail(Failure::new(class, message), out);
            }
        }
    }

    /// The answer is over and came whole, as far as the upstream says.
    fn complete(&mut self, out: &mut Vec<Delta>) {
        if self.is_over {
            return;
        }
        let ending = self.ending.unwrap_or(Ending::Done);
        self.seal_thinking(out);
        let mut rest = Vec::new();
        let mut first_broken = None;
        for held in std::mem::take(&mut self.held) {
            match held {
                Held::State(part) => rest.push(Delta::Opaque(part)),
                // What the provider itself has cut off for its content is not to be run.
                Held::Call(_) if ending == Ending::Filter => {}
                // At the output limit a block is closed wherever it stands, be it before its first piece of input.
                Held::Call(call) if ending == Ending::Length && !call.is_followed && call.input.is_bare() => {}
                Held::Call(call) => match call.settle(&self.tools) {
                    Ok(call) => rest.extend(call.map(Delta::Call)),
                    Err(broken) => first_broken = first_broken.or(Some(broken)),
                },
            }
        }
        if let (Ending::Done | Ending::Paused, Some((name, why))) = (ending, first_broken) {
            self.fail(why.failure(&name), out);
            return;
        }
        out.append(&mut rest);
        out.extend(self.counts.usage().map(Delta::Usage));
        out.push(Delta::Stop(match ending {
            Ending::Done => StopReason::Done,
            Ending::Paused => StopReason::Paused,
            Ending::Length => StopReason::Length,
            Ending::Filter => StopReason::ContentFilter,
        }));
        self.is_over = true;
    }

    fn fail(&mut self, failure: Failure, out: &mut Vec<Delta>) {
        if !self.is_over {
            out.extend(self.counts.usage().map(Delta::Usage));
            out.push(Delta::Failed(failure));
            self.is_over = true;
        }
    }

    /// Reads a payload that is not one JSON object: several that ran together because their blank lines got lost, or
    /// one with broken text in it.
    fn odd_payload(&mut self, name: &str, payload: &str, out: &mut Vec<Delta>) -> Result<(), DecodeError> {
        if let Some(repaired) = json::without_lone_surrogates(payload)
            && self.payload(name, &repaired, out).is_ok()
        {
            return Ok(());
        }
        if name == "error" {
            self.fail(Failure::from_error_text(payload), out);
            return Ok(());
        }
        let mut first_bad = None;
        for line in payload.lines().map(str::trim_ascii).filter(|line| !line.is_empty()) {
            if self.is_over {
                return Ok(());
            }
            if line == DONE {
                self.end(out);
            } else if self.payload("", line, out).is_err() {
                first_bad = first_bad.or(Some(line));
            }
        }
        first_bad.map_or(Ok(()), |line| Err(DecodeError::Json { excerpt: excerpt(line).to_owned() }))
    }
}

impl Decode for Decoder {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Delta>) -> Result<(), DecodeError> {
        let payload = frame.data.trim_ascii();
        if self.is_over || payload.is_empty() {
            return Ok(());
        }
        if payload == DONE {
            self.end(out);
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
        // The stop reason is the last thing an answer says; some gateways leave out the `message_stop` behind it.
        if self.ending.is_some() {
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

/// The call with this number, if it is still held.
fn held_call(held: &mut [Held], n_given: usize, number: usize) -> Option<&mut HeldCall> {
    match held.get_mut(number.checked_sub(n_given)?)? {
        Held::Call(call) => Some(call),
        Held::State(_) => None,
    }
}

impl HeldCall {
    /// The call as it goes out, `None` without a name; or its name and why it cannot be run.
    fn settle(self, tools: &ToolTable) -> Result<Option<ToolCall>, (String, Unusable)> {
        if self.name.is_empty() {
            return Ok(None);
        }
        match self.arguments.unwrap_or_else(|| self.input.object(tools.resolve(&self.name))) {
            Ok(arguments) => {
                Ok(Some(ToolCall { upstream_id: self.id, name: self.name, arguments, extra_content: None }))
            }
            Err(why) => Err((self.name, why)),
        }
    }
}

impl Input {
    fn from_start(input: Option<Raw<'_>>) -> Self {
        let mut begun = Self::default();
        match input.map(|input| (input, input.kind())) {
            Some((input, Kind::Object)) => begun.start = input.entries().next().map(|_| input.text().to_owned()),
            Some((input, Kind::String)) => begun.pieces.push(&decoded(input)),
            _ => {}
        }
        begun
    }

    /// How much is kept, in bytes.
    fn held_bytes(&self) -> usize {
        self.start.as_ref().map_or(0, String::len) + self.pieces.held_bytes()
    }

    /// Whether nothing was given at all.
    fn is_bare(&self) -> bool {
        self.start.is_none() && self.pieces.text().trim().is_empty()
    }

    /// The object that was given, as JSON text. What came in pieces goes before what came with the start, unless it is
    /// nothing: one of the two is a placeholder, or they are the same.
    fn object(&self, tool: Option<&Tool>) -> Result<String, Unusable> {
        let is_empty = |object: &str| json::parse(object).is_ok_and(|object| object.entries().next().is_none());
        match (repair::arguments_of(tool, &self.pieces), &self.start) {
            (Ok(pieces), Some(start)) if is_empty(&pieces) => Ok(start.clone()),
            (pieces, _) => pieces,
        }
    }
}

/// Whether an event of this type means something.
fn is_known(kind: &str) -> bool {
    matches!(
        kind,
        "content_block_delta"
            | "content_block_start"
            | "content_block_stop"
            | "message_start"
            | "message_delta"
            | "message_stop"
            | "message"
            | "ping"
    )
}

/// What a stop reason means; `Err` for one that means a failure. Those of other protocols come through gateways;
/// reasons nobody has seen yet are a good end.
fn ending(reason: &str) -> Result<Ending, FailureClass> {
    match reason {
        "pause_turn" => Ok(Ending::Paused),
        "max_tokens" | "model_context_window_exceeded" | "length" => Ok(Ending::Length),
        "refusal" | "content_filter" | "sensitive" => Ok(Ending::Filter),
        "network_error" => Err(FailureClass::Network),
        "error" | "abort" | "aborted" => Err(FailureClass::Server),
        _ => Ok(Ending::Done),
    }
}

/// A thinking block as it has to go back. Without a signature it has none.
fn thinking_block(text: &str, signature: &str) -> Part {
    let mut block = br#"[{"type":"thinking","thinking":"#.to_vec();
    json::write_string(&mut block, text);
    if !signature.is_empty() {
        block.extend_from_slice(br#","signature":"#);
        json::write_string(&mut block, signature);
    }
    block.extend_from_slice(b"}]");
    Part::ThinkingBlocks(String::from_utf8_lossy(&block).into_owned())
}

/// A block of thinking that the provider keeps to itself.
fn redacted_block(data: &str) -> Part {
    let mut block = br#"[{"type":"redacted_thinking","data":"#.to_vec();
    json::write_string(&mut block, data);
    block.extend_from_slice(b"}]");
    Part::ThinkingBlocks(String::from_utf8_lossy(&block).into_owned())
}

fn excerpt(text: &str) -> &str {
    &text[..text.floor_char_boundary(EXCERPT_BYTES_MAX)]
}

#[cfg(test)]
mod tests;
