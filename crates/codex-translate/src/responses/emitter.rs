//! Makes Responses events from deltas. The only place that numbers events, opens and closes items, and ends a stream.
//!
//! ```text
//!            Text                 Reasoning, Opaque
//!   ┌──── message ◄──── none ────► reasoning ────┐     one item is open at a time;
//!   │                    ▲                       │     whatever does not belong to it closes it
//!   └────────────────────┴───────────────────────┘
//!                        │ Call: an item that opens and closes at once
//!                        ▼
//!   completed | incomplete | failed                    exactly one, last
//! ```
//!
//! Codex takes an item into its history, and runs a call, when it sees the item *done*. So a call is written only whole,
//! and an item that is open when the answer fails is left open: Codex drops it and asks again, instead of keeping half
//! an answer as if it were one.
//!
//! Where a compacted history is asked for, text is only collected, and becomes the one item of the answer when all of it
//! is there; nothing else is an item then.
//!
//! Everything that goes out is a function of the deltas and of [`ReplyConfig`].

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::event::{self, DeltaTemplate, Item, Object};
use crate::delta::{StopReason, ToolCall, Usage};
use crate::history::stand_in::GO_ON_INSTRUCTION;
use crate::history::{earlier, fit};
use crate::json;
use crate::reply::ReplyConfig;
use crate::sealed::{self, Origin, Part};
use crate::tools::{CUSTOM_ARGUMENT, ToolKind};
use crate::{Failure, FailureClass};

/// Most bytes kept of one answer: the finished items, which stand in the terminal event again, the text of the open one,
/// and upstream state that waits for an item. 128 000 tokens, the longest output known, are some 500 kB.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Most bytes of white space kept until something visible follows it.
const SPACE_BYTES_MAX: usize = 4_096;

/// Longest wait that Codex is told. It sleeps as long as the sentence says, without a limit of its own and without a
/// sign of life.
const WAIT_SHOWN_MAX: Duration = Duration::from_mins(1);

/// Longest upstream call id that is passed on to Codex; a longer one is replaced like one that repeats.
const CALL_ID_BYTES_MAX: usize = 128;

/// Shorter upstream call ids than this are counters, which repeat with each turn.
const CALL_ID_BYTES_MIN: usize = 8;

/// Digits at the end of an id up to which they are a counter (`call_0`) and not a random number.
const COUNTER_DIGITS_MAX: usize = 4;

/// Characters of the response id that go into the ids of items and calls. Some providers refuse call ids of more than 40.
const ID_CHARS_MAX: usize = 32;

/// The tool whose free text is a patch.
const APPLY_PATCH: &str = "apply_patch";

/// Most characters of a summary that replaces a history. It is sent with each request from then on, and ten thousand
/// tokens are more than one that is worth its name has; sealed it stays well below what [`sealed::seal`] takes.
const SUMMARY_CHARS_MAX: usize = 50_000;

/// Writes one Responses stream.
#[derive(Debug)]
pub struct Emitter {
    config: ReplyConfig,
    /// The alphanumeric part of the response id.
    id_stem: String,
    sequence_number: u64,
    /// Items opened so far.
    item_count: u64,
    call_count: u64,
    /// The finished items, as JSON, separated by commas.
    output: Vec<u8>,
    open: Open,
    /// White space that would open a message: written with the text that follows, or not at all.
    held_space: String,
    /// Upstream state that no item has taken yet.
    parts: Vec<Part>,
    /// Bytes of `parts`.
    parts_bytes: usize,
    /// The summary so far, where one is asked for in place of an answer.
    summary: Option<String>,
    usage: Option<Usage>,
    /// Counts of the parts of the answer before the present one, where it was gone on with.
    usage_before: Vec<Usage>,
    /// The answer goes on in the middle of a text.
    is_going_on: bool,
    has_call: bool,
    stage: Stage,
    is_over: bool,
}

/// How much of the stream was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Nothing,
    /// The head, and perhaps notices.
    Head,
    /// Something that Codex shows or keeps, but only reasoning.
    Reasoning,
    /// A text, a call or a search: something to go on from.
    Answer,
}

/// The item that is open.
#[derive(Debug)]
enum Open {
    None,
    Message { id: String, text: String, delta: DeltaTemplate },
    Reasoning { id: String, text: String, delta: DeltaTemplate },
}

/// How a stream ends.
enum Terminal<'t> {
    Completed { is_paused: bool },
    Incomplete { reason: &'static str },
    Failed { code: &'static str, message: &'t str },
}

impl Emitter {
    /// An emitter that has written nothing yet.
    pub fn new(config: ReplyConfig) -> Self {
        let is_id = |character: &char| character.is_ascii_alphanumeric();
        let bare = config.seed.response_id.strip_prefix("resp_").unwrap_or(&config.seed.response_id);
        let stem: String = bare.chars().filter(is_id).collect();
        let id_stem = stem[stem.len().saturating_sub(ID_CHARS_MAX)..].to_owned();
        let summary = config.compaction.then(String::new);
        Self {
            config,
            id_stem,
            sequence_number: 0,
            item_count: 0,
            call_count: 0,
            output: Vec::new(),
            open: Open::None,
            held_space: String::new(),
            parts: Vec::new(),
            parts_bytes: 0,
            summary,
            usage: None,
            usage_before: Vec::new(),
            is_going_on: false,
            has_call: false,
            stage: Stage::Nothing,
            is_over: false,
        }
    }

    /// Whether something of the answer was written that Codex shows or keeps.
    pub fn is_visible(&self) -> bool {
        self.stage >= Stage::Reasoning
    }

    /// Whether the terminal event was written.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether there is something to go on from: a text, a call or a search, or a summary where that is asked for.
    pub fn has_answer(&self) -> bool {
        match &self.summary {
            Some(summary) => !summary.trim_ascii().is_empty(),
            None => self.stage == Stage::Answer,
        }
    }

    /// Whether a summary is asked for, and nothing else.
    pub fn wants_summary(&self) -> bool {
        self.summary.is_some()
    }

    /// Whether more is kept of the answer than [`ANSWER_BYTES_MAX`].
    pub fn is_full(&self) -> bool {
        self.held_bytes() > ANSWER_BYTES_MAX
    }

    /// How much is kept of the answer, in bytes.
    pub fn held_bytes(&self) -> usize {
        let open = match &self.open {
            Open::None => 0,
            Open::Message { text, .. } | Open::Reasoning { text, .. } => text.len(),
        };
        let summary = self.summary.as_ref().map_or(0, String::len);
        self.output.len() + open + self.held_space.len() + self.parts_bytes + summary
    }

    /// What the answer has cost, all of its parts.
    pub fn usage_spent(&self) -> Option<Usage> {
        let parts = self.usage_before.iter().copied().chain(self.usage);
        parts.reduce(|sum, part| Usage {
            input_tokens: sum.input_tokens + part.input_tokens,
            cached_tokens: sum.cached_tokens + part.cached_tokens,
            output_tokens: sum.output_tokens + part.output_tokens,
            reasoning_tokens: sum.reasoning_tokens + part.reasoning_tokens,
            total_tokens: sum.total_tokens + part.total_tokens,
        })
    }

    /// What Codex is told of it. It reads the total as the length of the conversation, and each part of an answer was
    /// asked for with all of it: only what the parts have added counts.
    fn usage_told(&self) -> Option<Usage> {
        let Some(first) = self.usage_before.first() else { return self.usage };
        let spent = self.usage_spent()?;
        let Usage { input_tokens, cached_tokens, .. } = *first;
        Some(Usage { input_tokens, cached_tokens, total_tokens: input_tokens + spent.output_tokens, ..spent })
    }

    /// Whether a call was written.
    pub fn has_call(&self) -> bool {
        self.has_call
    }

    /// Whether a text is open that is more than white space.
    pub fn is_in_text(&self) -> bool {
        matches!(&self.open, Open::Message { text, .. } if !text.trim_ascii().is_empty())
    }

    /// The items so far, the open text as one of them, and the request to go on with it.
    pub fn so_far(&self) -> Vec<u8> {
        let message = |role: &str, kind: &str, text: &str| {
            json!({"type": "message", "role": role, "content": [{"type": kind, "text": text}]}).to_string()
        };
        let mut items = self.output.clone();
        if let Open::Message { text, .. } = &self.open {
            earlier::append(&mut items, message("assistant", "output_text", text).as_bytes());
        }
        earlier::append(&mut items, message("user", "input_text", GO_ON_INSTRUCTION).as_bytes());
        items
    }

    /// What follows is the rest of the text that is open.
    pub fn go_on(&mut self) {
        self.is_going_on = true;
        self.take_parts();
        self.usage_before.extend(self.usage.take());
    }

    /// The finished items, as JSON, separated by commas, where they are to be kept.
    pub fn kept_output(&self) -> Vec<u8> {
        if self.config.keep_output { self.output.clone() } else { Vec::new() }
    }

    /// Sets the counts for the terminal event.
    pub fn set_usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// Makes what follows come from elsewhere. Only an answer that is not visible yet can do that.
    pub fn set_origin(&mut self, origin: Origin) {
        self.config.origin = origin;
        self.held_space.clear();
        self.take_parts();
        if let Some(summary) = &mut self.summary {
            summary.clear();
        }
        self.usage = None;
    }

    /// Writes `response.created` and `response.in_progress`, once.
    pub fn open(&mut self, out: &mut Vec<u8>) {
        if self.stage > Stage::Nothing {
            return;
        }
        self.stage = Stage::Head;
        for kind in ["response.created", "response.in_progress"] {
            self.event(out, kind, |event, this| {
                event.object("response", |response| this.response(response, "in_progress"));
            });
        }
    }

    /// Writes an event that resets Codex's idle timer.
    pub fn keepalive(&mut self, out: &mut Vec<u8>) {
        if !self.is_over {
            self.open(out);
            out.extend_from_slice(event::KEEPALIVE);
        }
    }

    /// Shows `text` as reasoning of its own. Not part of the answer, so only before anything of it is visible.
    pub fn notice(&mut self, text: &str, out: &mut Vec<u8>) {
        if self.is_over || self.is_visible() || text.is_empty() {
            return;
        }
        if self.summary.is_some() {
            // There may be no item but one.
            self.keepalive(out);
            return;
        }
        // State that waits for an item of the answer is not for this one.
        let parts = self.take_parts();
        self.open_reasoning(out);
        self.write_reasoning(text, out);
        self.close_item(out);
        for part in parts {
            self.add_part(part);
        }
    }

    /// Adds visible text.
    pub fn text(&mut self, text: &str, out: &mut Vec<u8>) {
        if let Some(summary) = &mut self.summary {
            summary.push_str(text);
            return;
        }
        // State that came after the text before has its place between the two.
        if !matches!(self.open, Open::Message { .. }) || !self.parts.is_empty() {
            if self.holds_space(text) {
                return;
            }
            let space = std::mem::take(&mut self.held_space);
            self.open_message(out);
            if !space.is_empty() {
                self.write_text(&space, out);
            }
        }
        self.write_text(text, out);
    }

    /// Adds readable reasoning.
    pub fn reasoning(&mut self, text: &str, out: &mut Vec<u8>) {
        if !self.config.show_reasoning || self.summary.is_some() || self.is_going_on {
            return;
        }
        if !matches!(self.open, Open::Reasoning { .. }) {
            if text.trim_ascii().is_empty() {
                return;
            }
            self.held_space.clear();
            self.open_reasoning(out);
            self.stage = self.stage.max(Stage::Reasoning);
        }
        self.write_reasoning(text, out);
    }

    /// Adds upstream state to the reasoning item that is open, or to the next one.
    pub fn opaque(&mut self, part: Part) {
        // What was thought for the rest of a text belongs to a request that Codex knows nothing of.
        if self.summary.is_none() && !self.is_going_on {
            self.add_part(part);
        }
    }

    /// Writes whole calls that belong together.
    pub fn calls(&mut self, calls: &[ToolCall], out: &mut Vec<u8>) {
        if self.summary.is_some() {
            // No tool was offered.
            return;
        }
        let call_ids: Vec<String> = calls.iter().map(|call| self.call_id(call)).collect();
        for (call, call_id) in calls.iter().zip(&call_ids) {
            if let Some(upstream_id) = call.upstream_id.as_ref().filter(|id| *id != call_id) {
                self.add_part(Part::UpstreamId { call_id: call_id.clone(), upstream_id: upstream_id.clone() });
            }
            if let Some(extra_content) = call.extra_content.clone() {
                self.add_part(Part::ToolExtra { call_id: call_id.clone(), extra_content });
            }
        }
        self.close(out);
        self.held_space.clear();
        for (call, call_id) in calls.iter().zip(&call_ids) {
            self.call(call, call_id, out);
        }
    }

    /// Shows a search that the provider ran.
    pub fn web_search(&mut self, query: &str, out: &mut Vec<u8>) {
        if self.summary.is_some() {
            return;
        }
        self.close(out);
        self.begin_answer(out);
        let id = self.item_id("ws");
        self.whole_item(&Item::WebSearchCall { id: &id, query }, out, |_, _| {});
    }

    /// Ends the stream as the upstream ended its answer.
    pub fn stop(&mut self, reason: StopReason, out: &mut Vec<u8>) {
        if self.is_over {
            return;
        }
        let summary = self.summary.take();
        let is_paused = reason == StopReason::Paused && summary.is_none();
        match (summary, reason) {
            (None, _) => self.close(out),
            (Some(summary), StopReason::Done | StopReason::Paused) => self.compaction(summary, out),
            // Half a summary would be taken for the whole history.
            (Some(_), StopReason::Length | StopReason::ContentFilter) => {}
        }
        let terminal = match reason {
            // Codex asks again at once after a pause, which is what the provider expects.
            StopReason::Done | StopReason::Paused => Terminal::Completed { is_paused },
            StopReason::Length => Terminal::Incomplete { reason: "max_output_tokens" },
            StopReason::ContentFilter => Terminal::Incomplete { reason: "content_filter" },
        };
        self.terminal(&terminal, out);
    }

    /// Ends the stream with a failure.
    pub fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        if self.is_over {
            return;
        }
        let code = match failure.class {
            FailureClass::Overloaded if self.is_visible() => "server_error",
            class => class.responses_code(),
        };
        self.terminal(&Terminal::Failed { code, message: &shown_message(failure) }, out);
    }

    /// Writes the item that stands for a compacted history from now on.
    fn compaction(&mut self, summary: String, out: &mut Vec<u8>) {
        self.begin_answer(out);
        let summary = fit::cut(&summary, SUMMARY_CHARS_MAX).unwrap_or(summary);
        let sealed = sealed::seal(&self.config.seal_key, &self.config.origin, &[Part::Summary(summary)]);
        let id = self.item_id("cmp");
        self.whole_item(&Item::Compaction { id: &id, encrypted_content: &sealed }, out, |_, _| {});
    }

    fn call(&mut self, call: &ToolCall, call_id: &str, out: &mut Vec<u8>) {
        self.begin_answer(out);
        self.has_call = true;
        let tool = self.config.tools.resolve(&call.name).cloned();
        let namespace = tool.as_ref().and_then(|tool| tool.namespace.as_deref());
        let name = tool.as_ref().map_or(call.name.as_str(), |tool| tool.name.as_str());
        match tool.as_ref().map(|tool| tool.kind) {
            Some(ToolKind::Custom) => {
                let id = self.item_id("ctc");
                let input = &custom_input(&call.arguments, name);
                self.whole_item(
                    &Item::CustomToolCall { id: &id, call_id, name, namespace, input },
                    out,
                    |this, out| {
                        this.item_event(out, "response.custom_tool_call_input.delta", &id, "delta", input);
                        this.item_event(out, "response.custom_tool_call_input.done", &id, "input", input);
                    },
                );
            }
            Some(ToolKind::ToolSearch) => {
                let id = self.item_id("tsc");
                self.whole_item(&Item::ToolSearchCall { id: &id, call_id, arguments: &call.arguments }, out, |_, _| {});
            }
            Some(ToolKind::LocalShell) if let Some(action) = local_shell_action(&call.arguments) => {
                let id = self.item_id("lsh");
                self.whole_item(&Item::LocalShellCall { id: &id, call_id, action: &action }, out, |_, _| {});
            }
            Some(ToolKind::Function | ToolKind::LocalShell) | None => {
                let id = self.item_id("fc");
                let arguments = call.arguments.as_str();
                self.whole_item(
                    &Item::FunctionCall { id: &id, call_id, name, namespace, arguments },
                    out,
                    |this, out| {
                        this.item_event(out, "response.function_call_arguments.delta", &id, "delta", arguments);
                        this.item_event(out, "response.function_call_arguments.done", &id, "arguments", arguments);
                    },
                );
            }
        }
    }

    /// The id by which Codex will know the call: the upstream's own where it can last, since that makes the next request
    /// look to the upstream like its own answer.
    fn call_id(&mut self, call: &ToolCall) -> String {
        if let Some(id) = call.upstream_id.as_deref().filter(|id| can_last(id))
            && self.config.known_call_ids.insert(id.to_owned())
        {
            return id.to_owned();
        }
        loop {
            let id = format!("call_{}_{}", self.id_stem, self.call_count);
            self.call_count += 1;
            if self.config.known_call_ids.insert(id.clone()) {
                return id;
            }
        }
    }

    /// Whether `text` is white space that would open a message; if so it is kept for later.
    fn holds_space(&mut self, text: &str) -> bool {
        let is_space = text.trim_ascii().is_empty();
        if is_space && self.held_space.len() + text.len() <= SPACE_BYTES_MAX {
            self.held_space.push_str(text);
        }
        is_space
    }

    fn open_message(&mut self, out: &mut Vec<u8>) {
        self.close(out);
        self.begin_answer(out);
        let id = self.item_id("msg");
        self.item_added(&Item::Message { id: &id, text: "" }, out);
        self.part_event(out, "response.content_part.added", &id, "content_index", |part| event::output_text(part, ""));
        let delta = DeltaTemplate::new("response.output_text.delta", &id, self.item_count - 1, "content_index");
        self.open = Open::Message { id, text: String::new(), delta };
    }

    fn write_text(&mut self, text: &str, out: &mut Vec<u8>) {
        if let Open::Message { text: all, delta, .. } = &mut self.open {
            all.push_str(text);
            delta.write(out, self.sequence_number, text);
            self.sequence_number += 1;
        }
    }

    fn open_reasoning(&mut self, out: &mut Vec<u8>) {
        self.close_item(out);
        self.open(out);
        let id = self.item_id("rs");
        self.item_added(&Item::Reasoning { id: &id, text: "", encrypted_content: None }, out);
        self.part_event(out, "response.reasoning_summary_part.added", &id, "summary_index", |part| {
            event::summary_text(part, "");
        });
        let delta =
            DeltaTemplate::new("response.reasoning_summary_text.delta", &id, self.item_count - 1, "summary_index");
        self.open = Open::Reasoning { id, text: String::new(), delta };
    }

    fn write_reasoning(&mut self, text: &str, out: &mut Vec<u8>) {
        if let Open::Reasoning { text: all, delta, .. } = &mut self.open {
            all.push_str(text);
            delta.write(out, self.sequence_number, text);
            self.sequence_number += 1;
        }
    }

    /// Closes the open item, and gives state that no item has taken one of its own.
    fn close(&mut self, out: &mut Vec<u8>) {
        self.close_item(out);
        if !self.parts.is_empty() {
            self.open(out);
            self.stage = self.stage.max(Stage::Reasoning);
            let id = self.item_id("rs");
            let state = self.take_state();
            let item = Item::Reasoning { id: &id, text: "", encrypted_content: state.as_deref() };
            self.whole_item(&item, out, |_, _| {});
        }
    }

    fn close_item(&mut self, out: &mut Vec<u8>) {
        match std::mem::replace(&mut self.open, Open::None) {
            Open::None => {}
            Open::Message { id, text, .. } => {
                self.event(out, "response.output_text.done", |event, this| {
                    this.place(event, &id, "content_index");
                    event.string("text", &text);
                });
                self.part_event(out, "response.content_part.done", &id, "content_index", |part| {
                    event::output_text(part, &text);
                });
                self.item_done(&Item::Message { id: &id, text: &text }, out);
            }
            Open::Reasoning { id, text, .. } => {
                self.event(out, "response.reasoning_summary_text.done", |event, this| {
                    this.place(event, &id, "summary_index");
                    event.string("text", &text);
                });
                self.part_event(out, "response.reasoning_summary_part.done", &id, "summary_index", |part| {
                    event::summary_text(part, &text);
                });
                let state = self.take_state();
                self.item_done(&Item::Reasoning { id: &id, text: &text, encrypted_content: state.as_deref() }, out);
            }
        }
    }

    fn add_part(&mut self, part: Part) {
        self.parts_bytes += size_of::<Part>() + part.bytes();
        self.parts.push(part);
    }

    fn take_parts(&mut self) -> Vec<Part> {
        self.parts_bytes = 0;
        std::mem::take(&mut self.parts)
    }

    fn take_state(&mut self) -> Option<String> {
        let parts = self.take_parts();
        (!parts.is_empty()).then(|| sealed::seal(&self.config.seal_key, &self.config.origin, &parts))
    }

    fn begin_answer(&mut self, out: &mut Vec<u8>) {
        self.open(out);
        self.stage = Stage::Answer;
    }

    /// The id of the next item; [`Self::item_added`] counts it.
    fn item_id(&self, prefix: &str) -> String {
        format!("{prefix}_{}_{}", self.id_stem, self.item_count)
    }

    /// Opens and closes `item`, with what `between` writes in the middle.
    fn whole_item(&mut self, item: &Item<'_>, out: &mut Vec<u8>, between: impl FnOnce(&mut Self, &mut Vec<u8>)) {
        self.item_added(item, out);
        between(self, out);
        self.item_done(item, out);
    }

    fn item_added(&mut self, item: &Item<'_>, out: &mut Vec<u8>) {
        self.item_count += 1;
        let mut bytes = Vec::new();
        item.write(&mut bytes, false);
        self.event(out, "response.output_item.added", |event, this| {
            event.number("output_index", this.item_count - 1);
            event.raw("item", &bytes);
        });
    }

    fn item_done(&mut self, item: &Item<'_>, out: &mut Vec<u8>) {
        if !self.output.is_empty() {
            self.output.push(b',');
        }
        let start = self.output.len();
        item.write(&mut self.output, true);
        self.event(out, "response.output_item.done", |event, this| {
            event.number("output_index", this.item_count - 1);
            event.raw("item", &this.output[start..]);
        });
    }

    /// An event of a call with one text.
    fn item_event(&mut self, out: &mut Vec<u8>, kind: &str, item_id: &str, field: &str, text: &str) {
        self.event(out, kind, |event, this| {
            event.string("item_id", item_id);
            event.number("output_index", this.item_count - 1);
            event.string(field, text);
        });
    }

    /// An event about the one part of the newest item.
    fn part_event(
        &mut self,
        out: &mut Vec<u8>,
        kind: &str,
        item_id: &str,
        index: &str,
        part: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut bytes = Vec::new();
        part(&mut bytes);
        self.event(out, kind, |event, this| {
            this.place(event, item_id, index);
            event.raw("part", &bytes);
        });
    }

    /// The fields that say where in the newest item an event belongs.
    fn place(&self, event: &mut Object<'_>, item_id: &str, index: &str) {
        event.string("item_id", item_id);
        event.number("output_index", self.item_count - 1);
        event.number(index, 0);
    }

    fn terminal(&mut self, terminal: &Terminal<'_>, out: &mut Vec<u8>) {
        self.open(out);
        let (kind, status) = match terminal {
            Terminal::Completed { .. } => ("response.completed", "completed"),
            Terminal::Incomplete { .. } => ("response.incomplete", "incomplete"),
            Terminal::Failed { .. } => ("response.failed", "failed"),
        };
        self.event(out, kind, |event, this| {
            event.object("response", |response| {
                this.response(response, status);
                match terminal {
                    Terminal::Completed { is_paused: false } => {}
                    Terminal::Completed { is_paused: true } => response.raw("end_turn", b"false"),
                    Terminal::Incomplete { reason } => {
                        response.object("incomplete_details", |details| details.string("reason", reason));
                    }
                    Terminal::Failed { code, message } => response.object("error", |error| {
                        error.string("code", code);
                        error.string("message", message);
                    }),
                }
                if let Some(usage) = this.usage_told().filter(Usage::is_known) {
                    let mut bytes = Vec::new();
                    event::usage(&mut bytes, &usage);
                    response.raw("usage", &bytes);
                }
            });
        });
        self.is_over = true;
    }

    /// The fields that every response object has.
    fn response(&self, response: &mut Object<'_>, status: &str) {
        response.string("id", &self.config.seed.response_id);
        response.string("object", "response");
        response.number("created_at", self.config.seed.created_at);
        response.string("status", status);
        response.string("model", &self.config.seed.model);
        response.raw("output", &[b"[".as_slice(), &self.output, b"]"].concat());
    }

    fn event(&mut self, out: &mut Vec<u8>, kind: &str, fields: impl FnOnce(&mut Object<'_>, &Self)) {
        let sequence_number = self.sequence_number;
        self.sequence_number += 1;
        event::write(out, kind, sequence_number, |event| fields(event, self));
    }
}

/// Whether an upstream id will still be unique in a later turn: neither a counter nor unwieldy.
fn can_last(id: &str) -> bool {
    let stem = id.trim_end_matches(|character: char| character.is_ascii_digit());
    let digits = id.len() - stem.len();
    let is_counter = (1..=COUNTER_DIGITS_MAX).contains(&digits) && stem.ends_with(['_', '-', ':', '.']);
    (CALL_ID_BYTES_MIN..=CALL_ID_BYTES_MAX).contains(&id.len())
        && !is_counter
        && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What Codex is told about a failure.
///
/// For a rate limit the sentence at the end makes Codex wait; a sentence of the provider's own like it is reworded, as
/// Codex would believe it without a limit.
fn shown_message(failure: &Failure) -> String {
    /// What Codex looks for, whatever its case.
    const SENTENCE: &str = "try again in";
    if failure.class != FailureClass::RateLimit {
        return failure.message.clone();
    }
    let lower = failure.message.to_ascii_lowercase();
    let mut message = String::with_capacity(failure.message.len() + 40);
    let mut kept = 0;
    for (at, _) in lower.match_indices(SENTENCE) {
        message.push_str(&failure.message[kept..at]);
        message.push_str("retry in");
        kept = at + SENTENCE.len();
    }
    message.push_str(&failure.message[kept..]);
    let Some(wait) = failure.retry_after.map(|wait| wait.min(WAIT_SHOWN_MAX)).filter(|wait| !wait.is_zero()) else {
        return message;
    };
    if !message.ends_with(['.', '!', '?']) {
        message.push('.');
    }
    let wait_ms = wait.as_millis().max(1);
    let seconds = format!("{}.{:03}", wait_ms / 1_000, wait_ms % 1_000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    message + " Please try again in " + seconds + "s."
}

/// The free text of a custom tool, out of the object in which it had to travel.
fn custom_input(arguments: &str, tool: &str) -> String {
    let texts = || {
        let object = json::parse(arguments).ok();
        object.into_iter().flat_map(json::Raw::entries).filter_map(|(key, value)| Some((key, value.as_str()?)))
    };
    let named = [CUSTOM_ARGUMENT, "patch", "content"].iter().find_map(|name| texts().find(|(key, _)| key.is(name)));
    let only = || Some(texts().next()?).filter(|_| texts().count() == 1);
    let Some((_, text)) = named.or_else(only) else {
        // No text at all: what came is what the tool is given, so that its complaint tells the model.
        return arguments.to_owned();
    };
    let text = text.decode().into_owned();
    if tool == APPLY_PATCH { unwrapped_patch(text) } else { text }
}

/// A patch without the code fence or the here-document around it. One that has neither stays as it is.
fn unwrapped_patch(text: String) -> String {
    /// A fence around a here-document around a patch.
    const LAYERS_MAX: usize = 3;
    const BEGIN: &str = "*** Begin Patch";
    let mut patch = text.clone();
    if !patch.contains('\n')
        && let Ok(Value::String(unescaped)) = serde_json::from_str(&format!("\"{patch}\""))
    {
        // A patch has several lines, so these line ends were escaped once too often.
        patch = unescaped;
    }
    for _ in 0..LAYERS_MAX {
        let trimmed = patch.trim();
        if trimmed.starts_with(BEGIN) {
            break;
        }
        let Some((first, body)) = trimmed.split_once('\n') else { break };
        let inner = if first.starts_with("```") {
            body.strip_suffix("```").unwrap_or(body)
        } else if let Some((_, after)) = first.split_once("<<") {
            let delimiter = after.trim_start_matches('-').split_whitespace().next().unwrap_or_default();
            let delimiter = delimiter.trim_matches(['\'', '"']);
            let mut at = 0;
            let mut end = body.len();
            for line in body.split_inclusive('\n') {
                if line.trim() == delimiter {
                    end = at;
                }
                at += line.len();
            }
            &body[..end]
        } else {
            break;
        };
        patch = String::from(inner);
    }
    if patch.trim_start().starts_with(BEGIN) { patch } else { text }
}

/// The `action` of a `local_shell_call`; `None` when there is no command in `arguments`.
fn local_shell_action(arguments: &str) -> Option<String> {
    let fields: Map<String, Value> = serde_json::from_str(arguments).ok()?;
    let field = |names: [&str; 2]| names.iter().find_map(|name| fields.get(*name));
    let command = match field(["command", "cmd"])? {
        Value::Array(words) if !words.is_empty() && words.iter().all(Value::is_string) => Value::Array(words.clone()),
        Value::String(line) if !line.is_empty() => json!(["bash", "-lc", line]),
        _ => return None,
    };
    let mut action = json!({"type": "exec", "command": command, "env": {}});
    if let Some(timeout_ms) = field(["timeout_ms", "timeout"]).and_then(Value::as_u64) {
        action["timeout_ms"] = timeout_ms.into();
    }
    if let Some(folder) = field(["working_directory", "workdir"]).and_then(Value::as_str) {
        action["working_directory"] = folder.into();
    }
    Some(action.to_string())
}
