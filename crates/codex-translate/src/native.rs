//! Watches a Responses stream that is relayed byte for byte.
//!
//! An upstream that speaks the Responses API itself needs no translation, and gets none. The worker still has to know
//! when the first thing Codex keeps goes by (until then the request can be retried elsewhere), whether the stream ended
//! with a terminal event, what it cost and why it failed. That is all that is read: event names, and the body of the one
//! event that ends the stream.

mod request;

pub use request::encode;

use serde_json::Value;

use crate::failure::Repair;
use crate::reply::{Outcome, Progress, Summary};
use crate::{EndCause, Failure, FailureClass, Frame, Usage, json, sse};

/// What a provider does not take, though it speaks the same protocol. Nothing by default: all of it is learned from
/// refusals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// No reasoning of the history goes along, after the provider has refused some that it did not make itself.
    /// Otherwise what is not ours does: it is this provider's own, as far as can be told.
    pub forget_reasoning: bool,
    /// Notes go in the place of images: the model takes none.
    pub omit_images: bool,
    /// What `developer` says is said as the user, under a label: the provider knows no such role, or only as the first.
    pub omit_developer: bool,
    /// The words that `reasoning.effort` may be, as the provider has listed them when it refused another. Empty: any.
    pub effort_words: Vec<String>,
    /// Members that are never sent: `store`, inside of one `reasoning.summary`, of each tool `tools.strict`.
    pub omit: Vec<String>,
}

/// Where the effort stands.
const EFFORT: &str = "reasoning.effort";

/// `strict` of each tool.
const TOOL_STRICT: &str = "tools.strict";

/// What a body can do without.
const OPTIONAL_MEMBERS: [&str; 15] = [
    "include",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "temperature",
    "text",
    "tool_choice",
    "top_p",
];

impl Profile {
    /// Changes the dialect as a refusal asks for; `false` if that would not change anything in the request.
    pub fn apply(&mut self, repair: &Repair) -> bool {
        let before = self.clone();
        match repair {
            Repair::Drop(parameter) => self.drop_parameter(parameter),
            Repair::ForgetThinking => self.forget_reasoning = true,
            Repair::NoImages => self.omit_images = true,
            Repair::MergeSystem => self.omit_developer = true,
            Repair::Efforts(words) if words.is_empty() => self.drop_parameter(EFFORT),
            Repair::Efforts(words) => self.effort_words.clone_from(words),
            // The form is the protocol's own.
            Repair::CleanSchema
            | Repair::StringContent
            | Repair::ReasoningContentRequired
            | Repair::ThinkAdaptively
            | Repair::ThinkByBudget
            | Repair::RefreshToken
            | Repair::CreateSession
            | Repair::StartNewRun => {}
        }
        *self != before
    }

    fn drop_parameter(&mut self, parameter: &str) {
        let path = parameter.strip_prefix("body.").unwrap_or(parameter);
        // What stands behind it may speak another protocol.
        let path = if path == "reasoning_effort" { EFFORT } else { path };
        if path.starts_with("tools") && path.ends_with(".strict") {
            if !self.omits(TOOL_STRICT) {
                self.omit.push(TOOL_STRICT.to_owned());
            }
            return;
        }
        let (member, inside) = path.split_once('.').unwrap_or((path, ""));
        if OPTIONAL_MEMBERS.contains(&member) && !inside.contains('.') && !self.omits(path) {
            self.omit.push(path.to_owned());
        }
    }

    /// Whether items of the conversation may have to be written otherwise than they came.
    fn changes_items(&self) -> bool {
        self.forget_reasoning || self.omit_images || self.omit_developer
    }

    fn omits(&self, path: &str) -> bool {
        self.omit.iter().any(|omitted| omitted == path)
    }

    fn omits_inside(&self, member: &str) -> bool {
        let is_inside = |path: &String| path.strip_prefix(member).is_some_and(|rest| rest.starts_with('.'));
        self.omit.iter().any(is_inside)
    }
}

/// How far into a payload without an `event:` line its type is looked for; every known writer puts it first.
const TYPE_BYTES_MAX: usize = 256;

/// What goes by in one stream.
#[derive(Debug, Default)]
pub struct Sniffer {
    framer: sse::Framer,
    /// An event was too long to look at: what follows is relayed unseen.
    is_blind: bool,
    is_visible: bool,
    outcome: Option<Outcome>,
    usage: Option<Usage>,
}

impl Sniffer {
    /// A sniffer at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at bytes that are relayed.
    pub fn feed(&mut self, chunk: &[u8]) -> Progress {
        let mut chunk = chunk;
        while !self.is_blind {
            match self.framer.next(&mut chunk) {
                Ok(Some(frame)) => {
                    let seen = look(frame);
                    self.note(seen);
                }
                Ok(None) => break,
                Err(sse::FrameTooLong) => self.go_blind(),
            }
        }
        self.progress()
    }

    /// How far the stream has come. `visible` means that it holds more than its head.
    pub fn progress(&self) -> Progress {
        Progress { visible: self.is_visible, finished: self.outcome.is_some() }
    }

    /// Token counts, once the stream has told them.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Why the upstream failed, once it has said so.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.outcome {
            Some(Outcome::Failed(failure)) => Some(failure),
            _ => None,
        }
    }

    /// The stream is over.
    pub fn end(mut self, cause: EndCause) -> Summary {
        if !self.is_blind
            && let Ok(Some(frame)) = self.framer.end()
        {
            let seen = look(frame);
            self.note(seen);
        }
        let outcome = self.outcome.unwrap_or_else(|| match cause {
            // What was too long to look at may have been its end.
            EndCause::Eof if self.is_blind => Outcome::Completed,
            EndCause::Eof => Outcome::Failed(Failure::new(
                FailureClass::Truncated,
                "the provider closed the stream in the middle of the answer",
            )),
            EndCause::Failed(failure) => Outcome::Failed(failure),
        });
        Summary { outcome, usage: self.usage, output: Vec::new(), unreadable_frames: 0, first_unreadable: None }
    }

    fn note(&mut self, seen: Seen) {
        match seen {
            Seen::Head => {}
            Seen::Body => self.is_visible = true,
            Seen::End(outcome, usage) => {
                self.usage = usage.or(self.usage);
                self.outcome.get_or_insert(outcome);
            }
        }
    }

    fn go_blind(&mut self) {
        self.is_blind = true;
        // Only output is ever that long.
        self.is_visible = true;
    }
}

/// What one event is.
enum Seen {
    /// It comes before the answer.
    Head,
    /// It is part of the answer.
    Body,
    /// It ends the answer.
    End(Outcome, Option<Usage>),
}

fn look(frame: Frame<'_>) -> Seen {
    let kind = if frame.event.is_empty() { kind_of(frame.data) } else { frame.event };
    let is_end = matches!(kind, "response.completed" | "response.done" | "response.incomplete");
    if is_end && json::parse(frame.data).is_err() {
        // Torn: the provider broke off inside it. Codex cannot read it either, so it ends nothing.
        return Seen::Head;
    }
    match kind {
        "response.created" | "response.in_progress" | "response.queued" | "keepalive" | "" => Seen::Head,
        "response.completed" | "response.done" => Seen::End(Outcome::Completed, usage_of(frame.data)),
        "response.incomplete" => Seen::End(Outcome::Incomplete, usage_of(frame.data)),
        "response.failed" | "error" => Seen::End(Outcome::Failed(failure_of(frame.data)), usage_of(frame.data)),
        _ => Seen::Body,
    }
}

/// The `type` of a payload, without reading all of it; empty if it does not come early.
fn kind_of(data: &str) -> &str {
    let early = &data[..data.floor_char_boundary(TYPE_BYTES_MAX)];
    let value = early.split_once("\"type\"").map(|(_, after)| after.trim_start());
    let value = value.and_then(|after| after.strip_prefix(':')).and_then(|after| after.trim_start().strip_prefix('"'));
    value.and_then(|value| value.split_once('"')).map_or("", |(kind, _)| kind)
}

fn usage_of(data: &str) -> Option<Usage> {
    let usage = json::parse(data).ok()?.get("response")?.get("usage")?;
    let count = |name: &str| usage.get(name).and_then(json::Raw::as_u64);
    let detail = |name: &str, inner: &str| usage.get(name)?.get(inner)?.as_u64();
    let input_tokens = count("input_tokens")?;
    let output_tokens = count("output_tokens")?;
    let usage = Usage {
        input_tokens,
        cached_tokens: detail("input_tokens_details", "cached_tokens").unwrap_or_default(),
        output_tokens,
        reasoning_tokens: detail("output_tokens_details", "reasoning_tokens").unwrap_or_default(),
        total_tokens: count("total_tokens").unwrap_or_else(|| input_tokens.saturating_add(output_tokens)),
    };
    usage.is_known().then_some(usage)
}

fn failure_of(data: &str) -> Failure {
    let value: Value = serde_json::from_str(data).unwrap_or_else(|_| Value::String(data.to_owned()));
    let error = value.get("response").and_then(|response| response.get("error")).or_else(|| value.get("error"));
    Failure::from_error_value(error.unwrap_or(&value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATED: &str =
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\n";
    const DELTA: &str = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"response.completed\"}\n\n";
    const COMPLETED: &str = "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"usage\":{\"input_tokens\":9,\
        \"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":2,\"total_tokens\":11}}}\n\n";

    fn run(stream: &str, cause: EndCause) -> (Vec<Progress>, Summary) {
        let mut sniffer = Sniffer::new();
        let progress = stream.split_inclusive("\n\n").map(|event| sniffer.feed(event.as_bytes())).collect();
        let mut by_bytes = Sniffer::new();
        for byte in stream.as_bytes() {
            by_bytes.feed(std::slice::from_ref(byte));
        }
        let summary = sniffer.end(cause.clone());
        assert_eq!(by_bytes.end(cause), summary);
        (progress, summary)
    }

    #[test]
    fn what_goes_by_is_noticed() {
        let (progress, summary) = run(&[CREATED, ": ping\n\n", DELTA, COMPLETED].concat(), EndCause::Eof);
        let flags: Vec<_> = progress.iter().map(|progress| (progress.visible, progress.finished)).collect();
        assert_eq!(flags, [(false, false), (false, false), (true, false), (true, true)]);
        assert_eq!(summary.outcome, Outcome::Completed);
        assert_eq!(summary.usage.unwrap().cached_tokens, 4);
    }

    #[test]
    fn failures_are_read() {
        let failed = "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"Try again in 3s\"}}}\n\n";
        let (progress, summary) = run(&[CREATED, failed].concat(), EndCause::Eof);
        assert_eq!(progress[1], Progress { visible: false, finished: true });
        let Outcome::Failed(failure) = summary.outcome else { panic!("{summary:?}") };
        assert_eq!((failure.class, failure.retry_after.unwrap().as_secs()), (FailureClass::RateLimit, 3));

        let error = "data: {\"type\":\"error\",\"error\":{\"type\":\"server_error\",\"message\":\"boom\"}}";
        let Outcome::Failed(failure) = run(error, EndCause::Eof).1.outcome else { panic!() };
        assert_eq!((failure.class, failure.message.as_str()), (FailureClass::Server, "boom"));
    }

    #[test]
    fn a_cut_stream_is_no_success() {
        for stream in [CREATED.to_owned(), [CREATED, DELTA].concat(), String::new()] {
            let Outcome::Failed(failure) = run(&stream, EndCause::Eof).1.outcome else { panic!() };
            assert_eq!(failure.class, FailureClass::Truncated);
        }
        let reset = Failure::new(FailureClass::Network, "reset");
        let summary = run(CREATED, EndCause::Failed(reset.clone())).1;
        assert_eq!(summary.outcome, Outcome::Failed(reset.clone()));
        let summary = run(COMPLETED, EndCause::Failed(reset)).1;
        assert_eq!(summary.outcome, Outcome::Completed);
    }

    #[test]
    fn an_end_that_is_torn_ends_nothing() {
        let torn = format!("event: response.completed\n{}\n\n", &COMPLETED[..60]);
        let (progress, summary) = run(&[CREATED, &torn].concat(), EndCause::Eof);
        assert_eq!(progress[1], Progress::default(), "nothing was shown, so it can be asked for again");
        let Outcome::Failed(failure) = summary.outcome else { panic!("{summary:?}") };
        assert_eq!(failure.class, FailureClass::Truncated);
    }

    #[test]
    fn an_event_beyond_the_limit_is_relayed_unseen() {
        let mut sniffer = Sniffer::new();
        assert!(sniffer.feed(&vec![b'x'; sse::FRAME_BYTES_MAX + 1]).visible);
        assert_eq!(sniffer.feed(COMPLETED.as_bytes()), Progress { visible: true, finished: false });
        assert_eq!(sniffer.end(EndCause::Eof).outcome, Outcome::Completed);
    }
}
