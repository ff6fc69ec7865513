//! Watches a Responses stream that is relayed byte for byte.
//!
//! An upstream that speaks the Responses API itself needs no translation, and gets none. The worker still has to know
//! when the first thing Codex keeps goes by (until then the request can be retried elsewhere), whether the stream ended
//! with a terminal event, what it cost and why it failed. That is all that is read: event names, the body of the one event
//! that ends the stream, and the [marks](crate::mark) of state that goes by.
//!
//! An answer in one piece ([`Sniffer::whole`]) is relayed as it is to who asked for that. Who asked for a stream cannot read it, and
//! gets its items as events.

mod request;
mod whole;

pub use request::encode;

use serde_json::Value;

use crate::failure::Repair;
use crate::mark::{self, Mark};
use crate::reply::{Outcome, Progress, Summary};
use crate::{EndCause, Failure, FailureClass, Frame, Usage, json, sse};

/// What a provider does not take, though it speaks the same protocol. Nothing by default: all of it is learned from
/// refusals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
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
            Repair::NoImages => self.omit_images = true,
            Repair::MergeSystem => self.omit_developer = true,
            Repair::Efforts(words) if words.is_empty() => self.drop_parameter(EFFORT),
            Repair::Efforts(words) => self.effort_words.clone_from(words),
            // The form is the protocol's own, and what is forgotten is told apart by its marks.
            Repair::ForgetThinking
            | Repair::CleanSchema
            | Repair::StringContent
            | Repair::ReasoningContentRequired
            | Repair::OutputTokens(_)
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
        self.omit_images || self.omit_developer
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
    input: Input,
    framer: sse::Framer,
    /// Whose answer it is.
    account: String,
    /// An event was too long to look at: what follows is relayed unseen.
    is_blind: bool,
    is_visible: bool,
    n_events: u64,
    outcome: Option<Outcome>,
    usage: Option<Usage>,
    states: States,
}

/// The state in an answer.
#[derive(Debug, Default)]
struct States {
    marks: Vec<Mark>,
    is_compacted: bool,
}

impl States {
    fn add(&mut self, item: json::Raw<'_>, account: &str) {
        if let Some(state) = mark::state(item) {
            self.marks.push(Mark::of(account, &state.decode()));
            self.is_compacted |= item.get("type").and_then(json::Raw::as_str).is_some_and(mark::is_compacted);
        }
    }
}

/// What arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Input {
    /// Only white space so far.
    #[default]
    Unknown,
    Events,
    /// One JSON document, or a page.
    Body,
}

impl Input {
    fn of(chunk: &[u8]) -> Self {
        // A byte order mark counts as white space here.
        let is_space = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, 0xEF | 0xBB | 0xBF);
        match chunk.iter().find(|byte| !is_space(byte)) {
            None => Self::Unknown,
            Some(b'{' | b'[' | b'<') => Self::Body,
            Some(_) => Self::Events,
        }
    }
}

impl Sniffer {
    /// A sniffer at the start of a stream for the account of that name.
    pub fn new(account: String) -> Self {
        Self { account, ..Self::default() }
    }

    /// Whether the answer comes in one piece: nothing can be said about it before all of it is there.
    pub fn is_body(&self) -> bool {
        self.input == Input::Body
    }

    /// Reads all of an answer in one piece; returns what became of it and the bytes for the client. Those are the body as
    /// it came, or where it `wants_events` what Codex needs of a stream: the finished items and the end, each carried as
    /// the provider wrote it.
    ///
    /// # Errors
    /// The [`Failure`] that the body reports, or is: of what is no response nothing can be shown.
    pub fn whole(&self, body: &[u8], wants_events: bool) -> Result<(Summary, Vec<u8>), Failure> {
        whole::read(body, wants_events, &self.account)
    }

    /// Looks at bytes that are relayed.
    pub fn feed(&mut self, chunk: &[u8]) -> Progress {
        let mut chunk = chunk;
        if self.input == Input::Unknown {
            self.input = Input::of(chunk);
        }
        while !self.is_blind && !self.is_body() {
            match self.framer.next(&mut chunk) {
                Ok(Some(frame)) => {
                    self.n_events += u64::from(!frame.is_ping());
                    let seen = look(frame, &self.account, &mut self.states);
                    self.note(seen);
                }
                Ok(None) => break,
                Err(sse::FrameTooLong) => self.go_blind(),
            }
        }
        // Then any piece may be one.
        self.n_events += u64::from(self.is_blind || self.is_body());
        self.progress()
    }

    /// Events so far that say more than that the provider is alive, as comments and pings do.
    pub fn n_events(&self) -> u64 {
        self.n_events
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
            let seen = look(frame, &self.account, &mut self.states);
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
        Summary {
            outcome,
            usage: self.usage,
            states: self.states.marks,
            is_compacted: self.states.is_compacted,
            ..Summary::default()
        }
    }

    fn note(&mut self, seen: Seen) {
        match seen {
            Seen::Head => {}
            Seen::Body => self.is_visible = true,
            Seen::End(outcome, usage) => {
                self.usage = usage.or(self.usage);
                self.outcome.get_or_insert(outcome);
            }
            // Codex would take it for the end of the turn.
            Seen::EmptyEnd(usage) => {
                self.usage = usage.or(self.usage);
                let is_answer = self.is_visible || self.is_blind;
                self.outcome.get_or_insert(if is_answer { Outcome::Completed } else { Outcome::Failed(no_answer()) });
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
    /// It ends the answer well, and holds nothing of it.
    EmptyEnd(Option<Usage>),
}

fn look(frame: Frame<'_>, account: &str, states: &mut States) -> Seen {
    let kind = kind_of(frame);
    let is_end = matches!(kind, "response.completed" | "response.done" | "response.incomplete");
    if is_end && json::parse(frame.data).is_err() {
        // Torn: the provider broke off inside it. Codex cannot read it either, so it ends nothing.
        return Seen::Head;
    }
    match kind {
        "response.created" | "response.in_progress" | "response.queued" | "keepalive" | "" => Seen::Head,
        "response.completed" | "response.done" if has_output(frame.data) => {
            Seen::End(Outcome::Completed, usage_of(frame.data))
        }
        "response.completed" | "response.done" => Seen::EmptyEnd(usage_of(frame.data)),
        "response.incomplete" => Seen::End(Outcome::Incomplete, usage_of(frame.data)),
        "response.failed" | "error" => Seen::End(Outcome::Failed(failure_of(frame.data)), usage_of(frame.data)),
        "response.output_item.done" => {
            if frame.data.contains("\"encrypted_content\"")
                && let Some(item) = json::parse(frame.data).ok().and_then(|event| event.get("item"))
            {
                states.add(item, account);
            }
            Seen::Body
        }
        _ => Seen::Body,
    }
}

/// What kind of event it is; empty for one that Codex does not know. Of what does not say so in the protocol's own way only
/// an error counts: a gateway's, or that of a server which imitates the protocol.
fn kind_of(frame: Frame<'_>) -> &str {
    let is_known = |kind: &&str| kind.starts_with("response.") || matches!(*kind, "error" | "keepalive");
    if let Some(kind) = [frame.event, early_type(frame.data)].into_iter().find(is_known) {
        return kind;
    }
    let Ok(data) = json::parse(frame.data) else { return "" };
    match (data.get("type").and_then(json::Raw::as_str).map(json::Str::escaped), data.get("error")) {
        (Some(kind), _) if is_known(&kind) => kind,
        (_, Some(error)) if !error.is_null() => "error",
        _ => "",
    }
}

/// The first `type` in a payload, without reading all of it; empty if none comes early.
fn early_type(data: &str) -> &str {
    let early = &data[..data.floor_char_boundary(TYPE_BYTES_MAX)];
    let value = early.split_once("\"type\"").map(|(_, after)| after.trim_start());
    let value = value.and_then(|after| after.strip_prefix(':')).and_then(|after| after.trim_start().strip_prefix('"'));
    value.and_then(|value| value.split_once('"')).map_or("", |(kind, _)| kind)
}

fn usage_of(data: &str) -> Option<Usage> {
    usage_in(json::parse(data).ok()?.get("response")?)
}

/// Whether the response of an event has items in it. Not every provider repeats them at the end.
fn has_output(data: &str) -> bool {
    let output = json::parse(data).ok().and_then(|event| event.get("response")?.get("output"));
    output.is_some_and(|output| output.elements().next().is_some())
}

/// The failure of an answer that ended well and said nothing.
fn no_answer() -> Failure {
    Failure::new(FailureClass::Malformed, "the provider ended its answer without a text or a tool call")
}

/// The token counts of a response object.
fn usage_in(response: json::Raw<'_>) -> Option<Usage> {
    let usage = response.get("usage")?;
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
        let mut sniffer = Sniffer::new("me".to_owned());
        let progress = stream.split_inclusive("\n\n").map(|event| sniffer.feed(event.as_bytes())).collect();
        let mut by_bytes = Sniffer::new("me".to_owned());
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
        let summary = run(&[DELTA, COMPLETED].concat(), EndCause::Failed(reset)).1;
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
    fn an_error_in_any_form_is_one_and_shows_nothing() {
        let error = r#"{"error":{"message":"boom","type":"server_error","code":500}}"#;
        for event in [
            format!("data: {error}\n\n"),
            format!("event: message\ndata: {error}\n\n"),
            format!("event: error\ndata: {error}\n\n"),
            format!("error: {error}\n\n"),
            format!("{error}\n\n"),
        ] {
            let (progress, summary) = run(&[CREATED, &event].concat(), EndCause::Eof);
            assert_eq!(progress[1], Progress { visible: false, finished: true }, "{event}");
            let Outcome::Failed(failure) = summary.outcome else { panic!("{event}") };
            assert_eq!((failure.class, failure.message.as_str()), (FailureClass::Server, "boom"), "{event}");
        }
    }

    #[test]
    fn an_answer_without_anything_in_it_is_none() {
        let (progress, summary) = run(&[CREATED, COMPLETED].concat(), EndCause::Eof);
        assert_eq!(progress[1], Progress { visible: false, finished: true }, "it can be asked for again");
        let Outcome::Failed(failure) = summary.outcome else { panic!("{:?}", summary.outcome) };
        assert_eq!((failure.class, summary.usage.unwrap().total_tokens), (FailureClass::Malformed, 11));
        for answer in [
            [CREATED, DELTA, COMPLETED].concat(),
            COMPLETED.replace("\"usage\"", "\"output\":[{}],\"usage\""),
            COMPLETED.replace("completed", "incomplete"),
        ] {
            let outcome = run(&answer, EndCause::Eof).1.outcome;
            assert!(matches!(outcome, Outcome::Completed | Outcome::Incomplete), "{answer}: {outcome:?}");
        }
    }

    #[test]
    fn what_codex_does_not_know_is_nothing_to_see() {
        let stream =
            [CREATED, "event: ping\ndata: {\"type\":\"ping\"}\n\n", "data: [DONE]\n\n", "data: {}\n\n"].concat();
        let (progress, _) = run(&stream, EndCause::Eof);
        assert!(progress.iter().all(|progress| !progress.visible), "{progress:?}");
        let late = "data: {\"item\":{\"type\":\"message\"},\"type\":\"response.output_item.added\"}\n\n";
        assert!(run(&[CREATED, late].concat(), EndCause::Eof).0[1].visible);
    }

    #[test]
    fn state_that_goes_by_is_marked() {
        let item = |state: &str| {
            format!(
                "data: {{\"type\":\"response.output_item.done\",\"item\":{{\"type\":\"reasoning\",\"encrypted_content\":{state}}}}}\n\n"
            )
        };
        let stream = [CREATED, &item("\"a\\/b\""), &item("null"), &item("7"), &item("\"c\""), COMPLETED].concat();
        let summary = run(&stream, EndCause::Eof).1;
        assert_eq!(summary.states, ["a/b", "c"].map(|state| Mark::of("me", state)));
        assert!(!summary.is_compacted);
        let compacted = item("\"c\"").replace("\"reasoning\"", "\"compaction\"");
        assert!(run(&[CREATED, &compacted, COMPLETED].concat(), EndCause::Eof).1.is_compacted);
    }

    #[test]
    fn a_body_is_told_from_a_stream_by_its_first_byte() {
        for (bytes, is_body) in
            [(" \n{", true), ("\u{feff}[", true), ("<html", true), ("\ndata: {}\n\n{", false), (": {", false)]
        {
            let mut sniffer = Sniffer::default();
            for byte in bytes.as_bytes() {
                sniffer.feed(&[*byte]);
            }
            assert_eq!(sniffer.is_body(), is_body, "{bytes:?}");
        }
    }

    #[test]
    fn an_event_beyond_the_limit_is_relayed_unseen() {
        let mut sniffer = Sniffer::default();
        assert!(sniffer.feed(&vec![b'x'; sse::FRAME_BYTES_MAX + 1]).visible);
        assert_eq!(sniffer.feed(COMPLETED.as_bytes()), Progress { visible: true, finished: false });
        assert_eq!(sniffer.end(EndCause::Eof).outcome, Outcome::Completed);
    }
}
