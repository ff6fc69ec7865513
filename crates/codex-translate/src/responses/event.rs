//! Responses events as bytes: the only code that writes them.
//!
//! Each is an `event:` line, a `data:` line with one JSON object, and an empty line. Fields stand in the order in which
//! `OpenAI` sends them. Which event comes when, and its numbers, are the emitter's business.

use crate::delta::Usage;
use crate::json::{write_escaped, write_string};

/// The event that keeps a waiting stream alive. Codex does not know the type and resets its idle timer; a comment
/// would not do that.
pub(super) const KEEPALIVE: &[u8] = b"event: keepalive\ndata: {\"type\":\"keepalive\"}\n\n";

/// Writes one event whose fields, after type and sequence number, are written by `fields`.
pub(super) fn write(out: &mut Vec<u8>, kind: &str, sequence_number: u64, fields: impl FnOnce(&mut Object<'_>)) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    object(out, |event| {
        event.string("type", kind);
        event.number("sequence_number", sequence_number);
        fields(event);
    });
    out.extend_from_slice(b"\n\n");
}

/// Everything of a text or reasoning delta that stays the same while its item is open, prepared once: these events are
/// nearly all that a stream consists of.
#[derive(Clone, Debug, Default)]
pub(super) struct DeltaTemplate {
    head: Vec<u8>,
    middle: Vec<u8>,
}

impl DeltaTemplate {
    /// For events of `kind` in the item at `output_index`, whose part is counted by `part_index`.
    pub(super) fn new(kind: &str, item_id: &str, output_index: u64, part_index: &str) -> Self {
        let head = format!("event: {kind}\ndata: {{\"type\":\"{kind}\",\"sequence_number\":").into_bytes();
        let middle =
            format!(",\"item_id\":\"{item_id}\",\"output_index\":{output_index},\"{part_index}\":0,\"delta\":\"");
        Self { head, middle: middle.into_bytes() }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>, sequence_number: u64, delta: &str) {
        out.extend_from_slice(&self.head);
        write_number(out, sequence_number);
        out.extend_from_slice(&self.middle);
        write_escaped(out, delta);
        out.extend_from_slice(b"\"}\n\n");
    }
}

/// A JSON object being written.
pub(super) struct Object<'o> {
    out: &'o mut Vec<u8>,
    has_fields: bool,
}

/// Writes an object whose fields are written by `fields`.
pub(super) fn object(out: &mut Vec<u8>, fields: impl FnOnce(&mut Object<'_>)) {
    out.push(b'{');
    fields(&mut Object { out: &mut *out, has_fields: false });
    out.push(b'}');
}

impl Object<'_> {
    pub(super) fn string(&mut self, name: &str, value: &str) {
        write_string(self.name(name), value);
    }

    pub(super) fn number(&mut self, name: &str, value: u64) {
        write_number(self.name(name), value);
    }

    /// `value` is JSON already.
    pub(super) fn raw(&mut self, name: &str, value: &[u8]) {
        self.name(name).extend_from_slice(value);
    }

    pub(super) fn object(&mut self, name: &str, fields: impl FnOnce(&mut Object<'_>)) {
        object(self.name(name), fields);
    }

    fn name(&mut self, name: &str) -> &mut Vec<u8> {
        if self.has_fields {
            self.out.push(b',');
        }
        self.has_fields = true;
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }
}

/// An output item. What is empty while the item is open is filled in when it is done.
#[derive(Clone, Debug)]
pub(super) enum Item<'i> {
    Message {
        id: &'i str,
        text: &'i str,
    },
    Reasoning {
        id: &'i str,
        text: &'i str,
        encrypted_content: Option<&'i str>,
    },
    FunctionCall {
        id: &'i str,
        call_id: &'i str,
        name: &'i str,
        namespace: Option<&'i str>,
        arguments: &'i str,
    },
    CustomToolCall {
        id: &'i str,
        call_id: &'i str,
        name: &'i str,
        namespace: Option<&'i str>,
        input: &'i str,
    },
    /// `arguments` is a JSON object.
    ToolSearchCall {
        id: &'i str,
        call_id: &'i str,
        arguments: &'i str,
    },
    /// `action` is a JSON object.
    LocalShellCall {
        id: &'i str,
        call_id: &'i str,
        action: &'i str,
    },
    WebSearchCall {
        id: &'i str,
        query: &'i str,
    },
    Compaction {
        id: &'i str,
        encrypted_content: &'i str,
    },
}

impl Item<'_> {
    /// Writes the item as it is when it opens (`is_done` false), or when it is finished.
    pub(super) fn write(&self, out: &mut Vec<u8>, is_done: bool) {
        let status = if is_done { "completed" } else { "in_progress" };
        object(out, |item| match *self {
            Self::Message { id, text } => {
                item.string("type", "message");
                item.string("id", id);
                item.string("status", status);
                item.string("role", "assistant");
                let content = item.name("content");
                content.push(b'[');
                if is_done {
                    output_text(content, text);
                }
                content.push(b']');
            }
            Self::Reasoning { id, text, encrypted_content } => {
                item.string("type", "reasoning");
                item.string("id", id);
                let summary = item.name("summary");
                summary.push(b'[');
                if is_done && !text.is_empty() {
                    summary_text(summary, text);
                }
                summary.push(b']');
                if let Some(state) = encrypted_content.filter(|_| is_done) {
                    item.string("encrypted_content", state);
                }
            }
            Self::FunctionCall { id, call_id, name, namespace, arguments } => {
                item.string("type", "function_call");
                call_head(item, id, call_id, Some(name), namespace);
                item.string("arguments", if is_done { arguments } else { "" });
                item.string("status", status);
            }
            Self::CustomToolCall { id, call_id, name, namespace, input } => {
                item.string("type", "custom_tool_call");
                call_head(item, id, call_id, Some(name), namespace);
                item.string("input", if is_done { input } else { "" });
                item.string("status", status);
            }
            Self::ToolSearchCall { id, call_id, arguments } => {
                item.string("type", "tool_search_call");
                call_head(item, id, call_id, None, None);
                item.string("execution", "client");
                item.raw("arguments", arguments.as_bytes());
                item.string("status", status);
            }
            Self::LocalShellCall { id, call_id, action } => {
                item.string("type", "local_shell_call");
                call_head(item, id, call_id, None, None);
                item.raw("action", action.as_bytes());
                item.string("status", status);
            }
            Self::WebSearchCall { id, query } => {
                item.string("type", "web_search_call");
                item.string("id", id);
                item.string("status", status);
                item.object("action", |action| {
                    action.string("type", "search");
                    action.string("query", query);
                });
            }
            Self::Compaction { id, encrypted_content } => {
                item.string("type", "compaction");
                item.string("id", id);
                item.string("encrypted_content", if is_done { encrypted_content } else { "" });
            }
        });
    }
}

fn call_head(item: &mut Object<'_>, id: &str, call_id: &str, name: Option<&str>, namespace: Option<&str>) {
    item.string("id", id);
    item.string("call_id", call_id);
    if let Some(name) = name {
        item.string("name", name);
    }
    if let Some(namespace) = namespace {
        item.string("namespace", namespace);
    }
}

/// The one part of a message.
pub(super) fn output_text(out: &mut Vec<u8>, text: &str) {
    object(out, |part| {
        part.string("type", "output_text");
        part.string("text", text);
        part.raw("annotations", b"[]");
    });
}

/// The one part of a reasoning item.
pub(super) fn summary_text(out: &mut Vec<u8>, text: &str) {
    object(out, |part| {
        part.string("type", "summary_text");
        part.string("text", text);
    });
}

/// The counts, whole: Codex repeats the request when one of these fields is missing.
pub(super) fn usage(out: &mut Vec<u8>, usage: &Usage) {
    object(out, |counts| {
        counts.number("input_tokens", usage.input_tokens);
        counts.object("input_tokens_details", |details| details.number("cached_tokens", usage.cached_tokens));
        counts.number("output_tokens", usage.output_tokens);
        counts.object("output_tokens_details", |details| details.number("reasoning_tokens", usage.reasoning_tokens));
        counts.number("total_tokens", usage.total_tokens);
    });
}

fn write_number(out: &mut Vec<u8>, mut number: u64) {
    /// Decimal digits of the largest `u64`.
    const DIGITS_MAX: usize = 20;
    let mut digits = [0; DIGITS_MAX];
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for number in [0, 7, 10, 1_234_567_890, u64::MAX] {
            let mut out = Vec::new();
            write_number(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }

    #[test]
    fn a_template_writes_what_the_general_writer_does() {
        let mut fast = Vec::new();
        DeltaTemplate::new("response.output_text.delta", "msg_1", 3, "content_index").write(&mut fast, 42, "a\"\n");
        let mut general = Vec::new();
        write(&mut general, "response.output_text.delta", 42, |event| {
            event.string("item_id", "msg_1");
            event.number("output_index", 3);
            event.number("content_index", 0);
            event.string("delta", "a\"\n");
        });
        assert_eq!(fast, general);
    }
}
