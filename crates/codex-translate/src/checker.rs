//! Checks a Responses stream against everything that Codex, and a strict client of the official API, relies on.
//!
//! The one checker for every test that makes a stream. It shares no code with what it checks: it reads bytes with its own
//! few lines and JSON with `serde_json`.
//!
//! What it demands:
//! - one event is an `event:` line, a `data:` line with one JSON object of the same type, and an empty line;
//! - sequence numbers begin at 0 and increase by one; only keepalives have none;
//! - `response.created`, then `response.in_progress`, then items, then exactly one terminal event, last;
//! - one item is open at a time; each added item is done once, with the same id, index and kind, and holds what its
//!   deltas said, joined. Only the item that is open when the response *fails* stays open, so that Codex drops it;
//! - items have every field that Codex parses strictly; calls have unique ids and arguments that are a JSON object;
//! - usage is whole or absent, never zero; the terminal response repeats the finished items;
//! - a completed response has something to go on from; a failed one has a code that Codex knows and a message.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// What a stream said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transcript {
    /// All visible text.
    pub text: String,
    /// All readable reasoning, notices included.
    pub reasoning: String,
    /// The finished items, as they stood in `response.output_item.done`.
    pub items: Vec<Value>,
    /// Keepalive events.
    pub keepalives: usize,
    /// How it ended; `None` for a stream that was cut.
    pub terminal: Option<Terminal>,
}

/// A terminal event.
#[derive(Clone, Debug, PartialEq)]
pub struct Terminal {
    /// `completed`, `incomplete` or `failed`.
    pub status: String,
    /// `error.code` of a failed response.
    pub error_code: Option<String>,
    /// `error.message` of a failed response.
    pub message: Option<String>,
    /// `incomplete_details.reason` of an incomplete response.
    pub incomplete_reason: Option<String>,
    /// The usage object.
    pub usage: Option<Value>,
}

impl Transcript {
    /// The finished items of a type.
    pub fn items_of(&self, kind: &str) -> Vec<&Value> {
        self.items.iter().filter(|item| item["type"] == kind).collect()
    }

    /// The finished calls, of whatever kind.
    pub fn calls(&self) -> Vec<&Value> {
        self.items.iter().filter(|item| item.get("call_id").is_some()).collect()
    }
}

/// Reads a stream that must be whole.
///
/// # Errors
/// What is wrong with it, and where.
pub fn check(stream: &[u8]) -> Result<Transcript, String> {
    let transcript = check_cut(stream)?;
    if transcript.terminal.is_none() {
        return Err("the stream has no terminal event".to_owned());
    }
    Ok(transcript)
}

/// Reads the beginning of a stream, up to some event.
///
/// # Errors
/// What is wrong with it, and where.
pub fn check_cut(stream: &[u8]) -> Result<Transcript, String> {
    let text = std::str::from_utf8(stream).map_err(|error| format!("the stream is not UTF-8: {error}"))?;
    let mut checker = Checker::default();
    for (number, event) in text.split_inclusive("\n\n").enumerate() {
        checker.event(event).map_err(|problem| format!("event {number}: {problem}\n{event}"))?;
    }
    Ok(checker.transcript)
}

#[derive(Debug, Default)]
struct Checker {
    transcript: Transcript,
    next_sequence_number: u64,
    next_output_index: u64,
    response_id: Option<String>,
    open: Option<OpenItem>,
    ids: HashSet<String>,
    call_ids: HashSet<String>,
}

/// An item between added and done.
#[derive(Debug)]
struct OpenItem {
    added: Value,
    /// What its deltas said.
    said: String,
    /// Which of its events have been seen.
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Added,
    /// The part, where the kind has one, is open.
    Part,
    /// The text is done.
    TextDone,
    /// The part is done.
    PartDone,
}

type Problem = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

impl Checker {
    fn event(&mut self, event: &str) -> Problem {
        let (name, data) = event
            .strip_prefix("event: ")
            .and_then(|rest| rest.strip_suffix("\n\n")?.split_once("\ndata: "))
            .ok_or("not an `event:` line, a `data:` line and an empty line")?;
        ensure!(!name.contains('\n') && !data.contains(['\n', '\r']), "more than two lines");
        let event: Map<String, Value> = serde_json::from_str(data).map_err(|error| format!("bad JSON: {error}"))?;
        ensure!(text(&event, "type")? == name, "the name is not the type");
        ensure!(self.transcript.terminal.is_none(), "it comes after the terminal event");
        if name == "keepalive" {
            ensure!(event.len() == 1, "a keepalive has no other field");
            ensure!(self.next_sequence_number >= 2, "a keepalive before the head");
            self.transcript.keepalives += 1;
            return Ok(());
        }
        ensure!(number(&event, "sequence_number")? == self.next_sequence_number, "the sequence number is not the next");
        self.next_sequence_number += 1;
        match (self.next_sequence_number - 1, name) {
            (0, "response.created") | (1, "response.in_progress") => self.head(&event),
            (0 | 1, _) => Err("the head must be created, then in_progress".to_owned()),
            (_, "response.output_item.added") => self.item_added(&event),
            (_, "response.output_item.done") => self.item_done(&event),
            (_, "response.completed" | "response.incomplete" | "response.failed") => self.terminal(name, &event),
            _ => self.within_item(name, &event),
        }
    }

    fn head(&mut self, event: &Map<String, Value>) -> Problem {
        let response = self.response(event, "in_progress")?;
        ensure!(response["output"] == Value::Array(Vec::new()), "the output is not empty yet");
        Ok(())
    }

    /// The response object, with the fields that it always has.
    fn response(&mut self, event: &Map<String, Value>, status: &str) -> Result<Map<String, Value>, String> {
        let response = event.get("response").and_then(Value::as_object).ok_or("no `response` object")?;
        let id = text(response, "id")?;
        ensure!(!id.is_empty(), "the response has no id");
        ensure!(self.response_id.get_or_insert_with(|| id.to_owned()) == id, "the response id has changed");
        ensure!(text(response, "object")? == "response", "`object` is not `response`");
        ensure!(text(response, "status")? == status, "`status` is not `{status}`");
        number(response, "created_at")?;
        text(response, "model")?;
        ensure!(response.get("output").is_some_and(Value::is_array), "no `output`");
        Ok(response.clone())
    }

    fn item_added(&mut self, event: &Map<String, Value>) -> Problem {
        ensure!(self.open.is_none(), "another item is open");
        ensure!(number(event, "output_index")? == self.next_output_index, "the output index is not the next");
        self.next_output_index += 1;
        let item = event.get("item").and_then(Value::as_object).ok_or("no `item`")?;
        Self::item(item, false)?;
        let id = text(item, "id")?;
        ensure!(self.ids.insert(id.to_owned()), "the item id is not new");
        if item.contains_key("call_id") {
            ensure!(self.call_ids.insert(text(item, "call_id")?.to_owned()), "the call id is not new");
        }
        self.open = Some(OpenItem { added: Value::Object(item.clone()), said: String::new(), stage: Stage::Added });
        Ok(())
    }

    /// The fields that an item of its type must have.
    fn item(item: &Map<String, Value>, is_done: bool) -> Problem {
        let status = if is_done { "completed" } else { "in_progress" };
        let kind = text(item, "type")?;
        let prefix = match kind {
            "message" => {
                ensure!(text(item, "role")? == "assistant", "the role is not `assistant`");
                let content = item.get("content").and_then(Value::as_array).ok_or("no `content`")?;
                ensure!(is_done || content.is_empty(), "an open message has content");
                for part in content {
                    let part = part.as_object().ok_or("a part is no object")?;
                    ensure!(text(part, "type")? == "output_text", "Codex drops parts that are not `output_text`");
                    text(part, "text")?;
                    ensure!(part.get("annotations").is_some_and(Value::is_array), "no `annotations`");
                }
                "msg_"
            }
            "reasoning" => {
                let summary = item.get("summary").and_then(Value::as_array).ok_or("no `summary`")?;
                for part in summary {
                    let part = part.as_object().ok_or("a part is no object")?;
                    ensure!(text(part, "type")? == "summary_text", "not `summary_text`");
                    ensure!(!text(part, "text")?.is_empty(), "an empty summary");
                }
                let has_state = item.get("encrypted_content").is_some_and(Value::is_string);
                ensure!(!is_done || !summary.is_empty() || has_state, "Codex drops reasoning without anything in it");
                "rs_"
            }
            "function_call" => {
                let arguments = text(item, "arguments")?;
                let is_object = serde_json::from_str::<Map<String, Value>>(arguments).is_ok();
                ensure!(if is_done { is_object } else { arguments.is_empty() }, "`arguments` hold no JSON object");
                named_call(item)?;
                "fc_"
            }
            "custom_tool_call" => {
                ensure!(is_done || text(item, "input")?.is_empty(), "an open call has input");
                text(item, "input")?;
                named_call(item)?;
                "ctc_"
            }
            "tool_search_call" => {
                ensure!(item.get("arguments").is_some_and(Value::is_object), "`arguments` must be an object here");
                ensure!(text(item, "execution")? == "client", "`execution` is not `client`");
                ensure!(!text(item, "call_id")?.is_empty(), "an empty `call_id`");
                "tsc_"
            }
            "local_shell_call" => {
                let action = item.get("action").and_then(Value::as_object).ok_or("no `action`")?;
                ensure!(text(action, "type")? == "exec", "the action is not `exec`");
                let command = action.get("command").and_then(Value::as_array).ok_or("no `command`")?;
                ensure!(!command.is_empty() && command.iter().all(Value::is_string), "`command` is no list of words");
                ensure!(!text(item, "call_id")?.is_empty(), "an empty `call_id`");
                "lsh_"
            }
            "web_search_call" => {
                let action = item.get("action").and_then(Value::as_object).ok_or("no `action`")?;
                text(action, "query")?;
                "ws_"
            }
            "compaction" => {
                let sealed = text(item, "encrypted_content")?;
                ensure!(
                    is_done != sealed.is_empty(),
                    "`encrypted_content` belongs in the finished item, and only there"
                );
                "cmp_"
            }
            other => return Err(format!("`{other}` is no item that Codex knows")),
        };
        ensure!(text(item, "id")?.starts_with(prefix), "Codex keeps the id only with the prefix `{prefix}`");
        let has_no_status = matches!(kind, "reasoning" | "compaction");
        ensure!(has_no_status || text(item, "status")? == status, "the item's status is not `{status}`");
        Ok(())
    }

    /// An event of a part of the open item.
    fn within_item(&mut self, name: &str, event: &Map<String, Value>) -> Problem {
        let open = self.open.as_mut().ok_or("no item is open")?;
        ensure!(open.added["id"] == event["item_id"], "it belongs to another item");
        ensure!(number(event, "output_index")? == self.next_output_index - 1, "it has another output index");
        let kind = open.added["type"].as_str().unwrap_or_default();
        let index = match kind {
            "message" => Some("content_index"),
            "reasoning" => Some("summary_index"),
            _ => None,
        };
        if let Some(index) = index {
            ensure!(number(event, index)? == 0, "`{index}` is not 0");
        }
        let part_text = || event.get("part").and_then(|part| part.get("text")).and_then(Value::as_str);
        let next = match (kind, name, open.stage) {
            ("message", "response.content_part.added", Stage::Added)
            | ("reasoning", "response.reasoning_summary_part.added", Stage::Added) => {
                ensure!(part_text() == Some(""), "the part does not begin empty");
                Stage::Part
            }
            ("message", "response.output_text.delta", Stage::Part)
            | ("reasoning", "response.reasoning_summary_text.delta", Stage::Part)
            | ("function_call", "response.function_call_arguments.delta", Stage::Added)
            | ("custom_tool_call", "response.custom_tool_call_input.delta", Stage::Added) => {
                let delta = text(event, "delta")?;
                ensure!(!delta.is_empty() || index.is_none(), "an empty delta");
                open.said.push_str(delta);
                match kind {
                    "message" => self.transcript.text.push_str(delta),
                    "reasoning" => self.transcript.reasoning.push_str(delta),
                    _ => {}
                }
                open.stage
            }
            ("message", "response.output_text.done", Stage::Part)
            | ("reasoning", "response.reasoning_summary_text.done", Stage::Part) => {
                ensure!(text(event, "text")? == open.said, "the text is not what the deltas said");
                Stage::TextDone
            }
            ("function_call", "response.function_call_arguments.done", Stage::Added) => {
                ensure!(text(event, "arguments")? == open.said, "the arguments are not what the deltas said");
                Stage::TextDone
            }
            ("custom_tool_call", "response.custom_tool_call_input.done", Stage::Added) => {
                ensure!(text(event, "input")? == open.said, "the input is not what the deltas said");
                Stage::TextDone
            }
            ("message", "response.content_part.done", Stage::TextDone)
            | ("reasoning", "response.reasoning_summary_part.done", Stage::TextDone) => {
                ensure!(part_text() == Some(&open.said), "the part is not what the deltas said");
                Stage::PartDone
            }
            (_, _, stage) => return Err(format!("`{name}` has no place in a `{kind}` at {stage:?}")),
        };
        open.stage = next;
        Ok(())
    }

    fn item_done(&mut self, event: &Map<String, Value>) -> Problem {
        let open = self.open.take().ok_or("no item is open")?;
        ensure!(number(event, "output_index")? == self.next_output_index - 1, "it has another output index");
        let item = event.get("item").and_then(Value::as_object).ok_or("no `item`")?;
        Self::item(item, true)?;
        for name in ["id", "type", "call_id", "name", "namespace"] {
            ensure!(item.get(name) == open.added.get(name), "`{name}` is not the one that was added");
        }
        let said = Some(open.said.as_str());
        let (is_whole, has_said) = match item["type"].as_str().unwrap_or_default() {
            "message" => (open.stage == Stage::PartDone, item["content"][0]["text"].as_str() == said),
            "reasoning" if open.stage == Stage::Added => (true, item["summary"] == Value::Array(Vec::new())),
            "reasoning" => (open.stage == Stage::PartDone, item["summary"][0]["text"].as_str() == said),
            "function_call" => (open.stage == Stage::TextDone, item["arguments"].as_str() == said),
            "custom_tool_call" => (open.stage == Stage::TextDone, item["input"].as_str() == said),
            _ => (open.stage == Stage::Added, true),
        };
        ensure!(is_whole, "events are missing before it");
        ensure!(has_said, "the item is not what its deltas said");
        self.transcript.items.push(Value::Object(item.clone()));
        Ok(())
    }

    fn terminal(&mut self, name: &str, event: &Map<String, Value>) -> Problem {
        let status = name.strip_prefix("response.").unwrap_or_default();
        let response = self.response(event, status)?;
        ensure!(status == "failed" || self.open.is_none(), "an item is still open");
        ensure!(
            response["output"] == Value::Array(self.transcript.items.clone()),
            "`output` is not the finished items"
        );
        let is_compaction = |item: &Value| item["type"] == "compaction";
        ensure!(
            self.transcript.items.len() == 1 || !self.transcript.items.iter().any(is_compaction),
            "Codex wants a compacted history to be the only item"
        );
        let usage = response.get("usage").filter(|usage| !usage.is_null()).cloned();
        if let Some(usage) = &usage {
            check_usage(usage)?;
        }
        let inner = |object: &str, name: &str| {
            let value = response.get(object).and_then(|object| object.get(name)).and_then(Value::as_str);
            value.map(str::to_owned)
        };
        let terminal = Terminal {
            status: status.to_owned(),
            error_code: inner("error", "code"),
            message: inner("error", "message"),
            incomplete_reason: inner("incomplete_details", "reason"),
            usage,
        };
        match status {
            "failed" => check_failed(&terminal)?,
            "incomplete" => {
                let reason = terminal.incomplete_reason.as_deref();
                ensure!(matches!(reason, Some("max_output_tokens" | "content_filter")), "not a known reason");
            }
            _ => {
                let is_something = |item: &Value| item["type"] != "reasoning";
                let goes_on = response.get("end_turn") == Some(&Value::Bool(false));
                ensure!(goes_on || self.transcript.items.iter().any(is_something), "a completed response says nothing");
            }
        }
        ensure!(status == "failed" || terminal.error_code.is_none(), "an error in a response that did not fail");
        self.transcript.terminal = Some(terminal);
        Ok(())
    }
}

fn named_call(item: &Map<String, Value>) -> Problem {
    ensure!(!text(item, "name")?.is_empty(), "an empty `name`");
    ensure!(!text(item, "call_id")?.is_empty(), "an empty `call_id`");
    if item.contains_key("namespace") {
        ensure!(!text(item, "namespace")?.is_empty(), "an empty `namespace`");
    }
    Ok(())
}

fn check_usage(usage: &Value) -> Problem {
    let usage = usage.as_object().ok_or("usage is no object")?;
    let details = |name: &str| usage.get(name).and_then(Value::as_object).ok_or(format!("no `{name}`"));
    let input = number(usage, "input_tokens")?;
    let output = number(usage, "output_tokens")?;
    let cached = number(details("input_tokens_details")?, "cached_tokens")?;
    let reasoning = number(details("output_tokens_details")?, "reasoning_tokens")?;
    let total = number(usage, "total_tokens")?;
    ensure!(input > 0 && total > 0, "usage of zero keeps Codex from compacting");
    ensure!(cached <= input && reasoning <= output, "a part is larger than the whole");
    Ok(())
}

fn check_failed(terminal: &Terminal) -> Problem {
    /// Codes whose effect on Codex is known and wanted; see the table of failures.
    const CODES: [&str; 5] =
        ["context_length_exceeded", "rate_limit_exceeded", "server_is_overloaded", "server_error", "invalid_prompt"];
    /// The longest wait that Codex may be told.
    const WAIT_S_MAX: f64 = 60.0;
    let code = terminal.error_code.as_deref().ok_or("no `error.code`")?;
    ensure!(CODES.contains(&code), "`{code}` is not a code of ours");
    let message = terminal.message.as_deref().unwrap_or_default();
    ensure!(!message.trim().is_empty(), "no `error.message`");
    if code == "rate_limit_exceeded" {
        let lower = message.to_lowercase();
        for (at, lead) in lower.match_indices("try again in ") {
            let rest = &lower[at + lead.len()..];
            let end = rest.find(|next: char| !next.is_ascii_digit() && next != '.').unwrap_or(rest.len());
            let seconds: f64 = rest[..end].trim_end_matches('.').parse().map_err(|_| "a wait without a number")?;
            ensure!(rest[end..].starts_with("s."), "Codex reads seconds only");
            if seconds > WAIT_S_MAX {
                return Err(format!("Codex would sleep for {seconds} s"));
            }
        }
    }
    Ok(())
}

fn text<'v>(object: &'v Map<String, Value>, name: &str) -> Result<&'v str, String> {
    object.get(name).and_then(Value::as_str).ok_or_else(|| format!("no string `{name}`"))
}

fn number(object: &Map<String, Value>, name: &str) -> Result<u64, String> {
    object.get(name).and_then(Value::as_u64).ok_or_else(|| format!("no whole number `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = concat!(
        "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":\"resp_1\",\"object\":\"response\",\"created_at\":1,\"status\":\"in_progress\",\"model\":\"m\",\"output\":[]}}\n\n",
        "event: response.in_progress\ndata: {\"type\":\"response.in_progress\",\"sequence_number\":1,\"response\":{\"id\":\"resp_1\",\"object\":\"response\",\"created_at\":1,\"status\":\"in_progress\",\"model\":\"m\",\"output\":[]}}\n\n",
    );
    const ADDED: &str = "event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"sequence_number\":2,\"output_index\":0,\"item\":{\"type\":\"function_call\",\"id\":\"fc_1\",\"call_id\":\"c\",\"name\":\"n\",\"arguments\":\"\",\"status\":\"in_progress\"}}\n\n";
    const DELTA: &str = "event: response.function_call_arguments.delta\ndata: {\"type\":\"response.function_call_arguments.delta\",\"sequence_number\":3,\"item_id\":\"fc_1\",\"output_index\":0,\"delta\":\"{}\"}\n\n";
    const TEXT_DONE: &str = "event: response.function_call_arguments.done\ndata: {\"type\":\"response.function_call_arguments.done\",\"sequence_number\":4,\"item_id\":\"fc_1\",\"output_index\":0,\"arguments\":\"{}\"}\n\n";
    const DONE: &str = "event: response.output_item.done\ndata: {\"type\":\"response.output_item.done\",\"sequence_number\":5,\"output_index\":0,\"item\":{\"type\":\"function_call\",\"id\":\"fc_1\",\"call_id\":\"c\",\"name\":\"n\",\"arguments\":\"{}\",\"status\":\"completed\"}}\n\n";
    const COMPLETED: &str = "event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":6,\"response\":{\"id\":\"resp_1\",\"object\":\"response\",\"created_at\":1,\"status\":\"completed\",\"model\":\"m\",\"output\":[{\"type\":\"function_call\",\"id\":\"fc_1\",\"call_id\":\"c\",\"name\":\"n\",\"arguments\":\"{}\",\"status\":\"completed\"}],\"usage\":{\"input_tokens\":3,\"input_tokens_details\":{\"cached_tokens\":1},\"output_tokens\":2,\"output_tokens_details\":{\"reasoning_tokens\":0},\"total_tokens\":5}}}\n\n";

    fn stream() -> String {
        [HEAD, ADDED, DELTA, TEXT_DONE, DONE, COMPLETED].concat()
    }

    #[test]
    fn a_good_stream_passes() {
        let transcript = check(stream().as_bytes()).unwrap();
        assert_eq!(transcript.calls().len(), 1);
        assert_eq!(transcript.terminal.unwrap().status, "completed");
    }

    #[test]
    fn each_fault_is_found() {
        let faults: [(&str, &str, &str); 21] = [
            ("\"sequence_number\":4", "\"sequence_number\":5", "sequence number"),
            ("event: response.output_item.done", "event: response.output_item.gone", "the name is not the type"),
            ("\"created_at\":1,\"status\":\"completed\"", "\"created_at\":1.5,\"status\":\"completed\"", "created_at"),
            ("\"output_index\":0,\"delta\"", "\"output_index\":1,\"delta\"", "output index"),
            ("\"delta\":\"{}\"", "\"delta\":\"{\"", "deltas said"),
            (
                "\"arguments\":\"{}\",\"status\":\"completed\"}}\n",
                "\"arguments\":\"[]\",\"status\":\"completed\"}}\n",
                "no JSON object",
            ),
            (
                "\"arguments\":\"{}\",\"status\":\"completed\"}}\n",
                "\"arguments\":{},\"status\":\"completed\"}}\n",
                "no string `arguments`",
            ),
            (
                "\"id\":\"fc_1\",\"call_id\":\"c\",\"name\":\"n\",\"arguments\":\"\"",
                "\"id\":\"x_1\",\"call_id\":\"c\",\"name\":\"n\",\"arguments\":\"\"",
                "prefix",
            ),
            ("\"call_id\":\"c\",\"name\":\"n\",\"arguments\":\"\"", "\"name\":\"n\",\"arguments\":\"\"", "call_id"),
            (
                "\"type\":\"function_call\",\"id\":\"fc_1\",\"call_id\":\"c\",\"name\":\"n\",\"arguments\":\"\"",
                "\"type\":\"refusal\",\"id\":\"fc_1\",\"call_id\":\"c\",\"name\":\"n\",\"arguments\":\"\"",
                "no item that Codex knows",
            ),
            ("\"item_id\":\"fc_1\"", "\"item_id\":\"fc_2\"", "another item"),
            ("\"total_tokens\":5", "\"total_tokens\":0", "zero"),
            (",\"total_tokens\":5", "", "total_tokens"),
            ("\"input_tokens_details\":{\"cached_tokens\":1}", "\"input_tokens_details\":{}", "cached_tokens"),
            ("\"output\":[{", "\"output\":[{\"x\":1,", "`output` is not the finished items"),
            (
                "\"object\":\"response\",\"created_at\":1,\"status\":\"completed\"",
                "\"object\":\"response\",\"created_at\":1,\"status\":\"incomplete\"",
                "status",
            ),
            ("data: {\"type\":\"response.completed\"", "data: \n{\"type\":\"response.completed\"", "two lines"),
            (COMPLETED, "", "no terminal event"),
            (TEXT_DONE, "", "sequence number"),
            (ADDED, "", "sequence number"),
            (HEAD, "", "sequence number"),
        ];
        for (from, to, problem) in faults {
            let broken = stream().replacen(from, to, 1);
            assert_ne!(broken, stream(), "{from}");
            let found = check(broken.as_bytes()).expect_err(to);
            assert!(found.contains(problem), "{from} -> {to}\n{found}");
        }
        let twice = [stream(), COMPLETED.to_owned()].concat();
        assert!(check(twice.as_bytes()).unwrap_err().contains("after the terminal event"));
        assert!(check_cut([HEAD, ADDED].concat().as_bytes()).is_ok());
    }
}
