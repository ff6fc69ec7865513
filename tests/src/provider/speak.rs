//! How an answer is spoken in each protocol: what the script says as server-sent events.
//!
//! ```text
//! begin ──► text | reasoning | calls ──► … ──► end
//!           (pieces of one kind go on in the block or item that is open)
//! ```

use base64::Engine as _;
use codex_control::tables::Protocol;
use serde_json::{Value, json};

/// Characters in the pieces of text and arguments, used in turn.
const PIECE_CHARS: [usize; 5] = [3, 1, 7, 2, 11];
/// Bytes of a token, roughly, where the script gives no usage.
const BYTES_PER_TOKEN: usize = 4;

/// Speaks one answer.
pub(super) struct Speaker {
    protocol: Protocol,
    id: String,
    model: String,
    /// Tokens of the request and of the answer, where the script says them.
    pub(super) usage: Option<(u64, u64)>,
    /// Why the answer ends, where the script says it.
    pub(super) finish: Option<String>,
    /// Whether token counts are wanted at the end; only Chat Completions asks.
    wants_usage: bool,
    request_bytes: usize,
    bytes: usize,
    has_begun: bool,
    n_calls: usize,
    /// Blocks or items begun so far, the open one included.
    n_parts: usize,
    open: Option<Open>,
    /// Items that are whole; Responses only.
    items: Vec<Value>,
    n_events: usize,
    thought: Option<Thought>,
    /// Thoughts that have become whole since they were last asked for.
    new_thoughts: Vec<Thought>,
}

/// What the model has thought, and the proof that it was this model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Thought {
    pub(super) text: String,
    pub(super) signature: String,
}

/// A call with everything that the request decides about it.
pub(super) struct Spoken {
    pub(super) id: String,
    /// The name in the [view](super::view), `NAMESPACE/NAME` where there is one.
    pub(super) name: String,
    pub(super) arguments: Value,
    pub(super) is_freeform: bool,
}

/// A block or an item that further pieces go on.
enum Open {
    Text(String),
    Thinking(String),
}

impl Speaker {
    pub(super) fn new(protocol: Protocol, number: usize, body: &Value) -> Self {
        let prefix = match protocol {
            Protocol::ChatCompletions => "chatcmpl-",
            Protocol::AnthropicMessages => "msg_scripted_",
            Protocol::Responses => "resp_scripted_",
        };
        Self {
            protocol,
            id: format!("{prefix}{number}"),
            model: body["model"].as_str().unwrap_or_default().to_owned(),
            usage: None,
            finish: None,
            wants_usage: protocol != Protocol::ChatCompletions || body["stream_options"]["include_usage"] == true,
            request_bytes: body.to_string().len(),
            bytes: 0,
            has_begun: false,
            n_calls: 0,
            n_parts: 0,
            open: None,
            items: Vec::new(),
            n_events: 0,
            thought: None,
            new_thoughts: Vec::new(),
        }
    }

    /// The thoughts that have become whole since the last time.
    pub(super) fn take_thoughts(&mut self) -> Vec<Thought> {
        std::mem::take(&mut self.new_thoughts)
    }

    /// The id of the call with this number.
    pub(super) fn call_id(&self, number: usize) -> String {
        match self.protocol {
            Protocol::AnthropicMessages => format!("toolu_scripted_{number:04}"),
            Protocol::ChatCompletions | Protocol::Responses => format!("call_scripted_{number:04}"),
        }
    }

    /// The last thought that is whole.
    pub(super) fn thought(&self) -> Option<&Thought> {
        self.thought.as_ref()
    }

    pub(super) fn text(&mut self, text: &str) -> Vec<String> {
        let mut out = self.begin();
        if !matches!(self.open, Some(Open::Text(_))) {
            self.close(&mut out);
            self.open = Some(Open::Text(String::new()));
            self.open_part(&mut out);
        }
        for piece in pieces(text) {
            self.bytes += piece.len();
            let part = self.n_parts.saturating_sub(1);
            out.push(match self.protocol {
                Protocol::ChatCompletions => self.chunk(&json!({ "content": piece }), None),
                Protocol::AnthropicMessages => {
                    block_delta(part, &json!({ "type": "text_delta", "text": piece }))
                }
                Protocol::Responses => {
                    let item_id = self.item_id("msg");
                    self.event("response.output_text.delta", json!({ "item_id": item_id, "output_index": part, "content_index": 0, "delta": piece, "logprobs": [] }))
                }
            });
        }
        if let Some(Open::Text(said)) = &mut self.open {
            said.push_str(text);
        }
        out
    }

    pub(super) fn reasoning(&mut self, text: &str) -> Vec<String> {
        let mut out = self.begin();
        if !matches!(self.open, Some(Open::Thinking(_))) {
            self.close(&mut out);
            self.open = Some(Open::Thinking(String::new()));
            self.open_part(&mut out);
        }
        for piece in pieces(text) {
            self.bytes += piece.len();
            let part = self.n_parts.saturating_sub(1);
            out.push(match self.protocol {
                Protocol::ChatCompletions => self.chunk(&json!({ "reasoning_content": piece }), None),
                Protocol::AnthropicMessages => {
                    block_delta(part, &json!({ "type": "thinking_delta", "thinking": piece }))
                }
                Protocol::Responses => {
                    let item_id = self.item_id("rs");
                    self.event(
                        "response.reasoning_summary_text.delta",
                        json!({ "item_id": item_id, "output_index": part, "summary_index": 0, "delta": piece }),
                    )
                }
            });
        }
        if let Some(Open::Thinking(thought)) = &mut self.open {
            thought.push_str(text);
        }
        out
    }

    /// Several calls: fragments take turns where the protocol allows it.
    pub(super) fn calls(&mut self, calls: &[Spoken]) -> Vec<String> {
        let mut out = self.begin();
        self.close(&mut out);
        match self.protocol {
            Protocol::ChatCompletions => self.interleaved(calls, &mut out),
            Protocol::AnthropicMessages => {
                for call in calls {
                    let part = self.n_parts;
                    self.n_parts += 1;
                    out.push(named("content_block_start", &json!({ "type": "content_block_start", "index": part, "content_block": { "type": "tool_use", "id": call.id, "name": call.name, "input": {} } })));
                    // The first fragment is empty, as Anthropic's is.
                    out.push(block_delta(part, &json!({ "type": "input_json_delta", "partial_json": "" })));
                    for piece in pieces(&call.arguments.to_string()) {
                        self.bytes += piece.len();
                        out.push(block_delta(part, &json!({ "type": "input_json_delta", "partial_json": piece })));
                    }
                    out.push(named("content_block_stop", &json!({ "type": "content_block_stop", "index": part })));
                }
            }
            Protocol::Responses => {
                for call in calls {
                    self.item_of(call, &mut out);
                }
            }
        }
        self.n_calls += calls.len();
        out
    }

    fn interleaved(&mut self, calls: &[Spoken], out: &mut Vec<String>) {
        let mut fragments = Vec::new();
        for (index, call) in (self.n_calls..).zip(calls) {
            let start = json!({ "index": index, "id": call.id, "type": "function", "function": { "name": call.name, "arguments": "" } });
            out.push(self.chunk(&json!({ "tool_calls": [start] }), None));
            let arguments: Vec<String> = pieces(&call.arguments.to_string()).map(str::to_owned).collect();
            fragments.push((index, arguments.into_iter()));
        }
        while !fragments.is_empty() {
            let mut left = Vec::new();
            for (index, mut rest) in fragments {
                if let Some(piece) = rest.next() {
                    self.bytes += piece.len();
                    let delta = json!({ "tool_calls": [{ "index": index, "function": { "arguments": piece } }] });
                    out.push(self.chunk(&delta, None));
                    left.push((index, rest));
                }
            }
            fragments = left;
        }
    }

    /// A call as an item of the Responses API.
    fn item_of(&mut self, call: &Spoken, out: &mut Vec<String>) {
        let part = self.n_parts;
        self.n_parts += 1;
        let (namespace, name) = match call.name.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, call.name.as_str()),
        };
        let (kind, prefix, member, events) = if call.is_freeform {
            ("custom_tool_call", "ctc", "input", "response.custom_tool_call_input")
        } else {
            ("function_call", "fc", "arguments", "response.function_call_arguments")
        };
        let item_id = self.item_id(prefix);
        let given = match (&call.arguments, call.is_freeform) {
            (Value::Object(members), true) => {
                members.values().next().and_then(Value::as_str).unwrap_or_default().to_owned()
            }
            (arguments, _) => arguments.to_string(),
        };
        let mut item = json!({ "type": kind, "id": item_id, "call_id": call.id, "name": name, member: "", "status": "in_progress" });
        if let Some(namespace) = namespace {
            item["namespace"] = json!(namespace);
        }
        out.push(self.event("response.output_item.added", json!({ "output_index": part, "item": item })));
        for piece in pieces(&given) {
            self.bytes += piece.len();
            out.push(self.event(
                &format!("{events}.delta"),
                json!({ "item_id": item_id, "output_index": part, "delta": piece }),
            ));
        }
        out.push(
            self.event(&format!("{events}.done"), json!({ "item_id": item_id, "output_index": part, member: given })),
        );
        item[member] = json!(given);
        item["status"] = json!("completed");
        self.done(part, item, out);
    }

    fn done(&mut self, part: usize, item: Value, out: &mut Vec<String>) {
        out.push(self.event("response.output_item.done", json!({ "output_index": part, "item": item })));
        self.items.push(item);
    }

    /// The end of the answer.
    pub(super) fn end(&mut self) -> Vec<String> {
        let mut out = self.begin();
        self.close(&mut out);
        let (called, said) = match self.protocol {
            Protocol::ChatCompletions => ("tool_calls", "stop"),
            Protocol::AnthropicMessages => ("tool_use", "end_turn"),
            Protocol::Responses => ("completed", "completed"),
        };
        let reason = self.finish.take().unwrap_or_else(|| (if self.n_calls > 0 { called } else { said }).to_owned());
        let (input, output) = self.tokens();
        match self.protocol {
            Protocol::ChatCompletions => {
                out.push(self.chunk(&json!({}), Some(&reason)));
                if self.wants_usage {
                    let usage =
                        json!({ "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output });
                    out.push(self.chat(&json!([]), Some(usage)));
                }
                out.push("data: [DONE]\n\n".to_owned());
            }
            Protocol::AnthropicMessages => {
                out.push(named(
                    "message_delta",
                    &json!({ "type": "message_delta", "delta": { "stop_reason": reason, "stop_sequence": null }, "usage": { "input_tokens": input, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": output } }),
                ));
                out.push(named("message_stop", &json!({ "type": "message_stop" })));
            }
            Protocol::Responses => {
                let mut response = self.response(&reason);
                response["output"] = Value::Array(std::mem::take(&mut self.items));
                response["usage"] = json!({
                    "input_tokens": input, "input_tokens_details": { "cached_tokens": 0 },
                    "output_tokens": output, "output_tokens_details": { "reasoning_tokens": 0 },
                    "total_tokens": input + output,
                });
                out.push(self.event(&format!("response.{reason}"), json!({ "response": response })));
            }
        }
        out
    }

    fn tokens(&self) -> (u64, u64) {
        let made_up = || ((self.request_bytes / BYTES_PER_TOKEN) as u64, (self.bytes / BYTES_PER_TOKEN + 1) as u64);
        self.usage.unwrap_or_else(made_up)
    }

    /// What stands before the first part.
    fn begin(&mut self) -> Vec<String> {
        if std::mem::replace(&mut self.has_begun, true) {
            return Vec::new();
        }
        match self.protocol {
            Protocol::ChatCompletions => Vec::new(),
            Protocol::AnthropicMessages => {
                let usage = json!({ "input_tokens": self.tokens().0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1 });
                let message = json!({ "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage });
                vec![
                    named("message_start", &json!({ "type": "message_start", "message": message })),
                    named("ping", &json!({ "type": "ping" })),
                ]
            }
            Protocol::Responses => {
                let response = self.response("in_progress");
                vec![
                    self.event("response.created", json!({ "response": response })),
                    self.event("response.in_progress", json!({ "response": response })),
                ]
            }
        }
    }

    fn response(&self, status: &str) -> Value {
        json!({ "id": self.id, "object": "response", "created_at": 1_700_000_000, "status": status, "model": self.model, "output": [], "error": null, "incomplete_details": null, "usage": null })
    }

    fn open_part(&mut self, out: &mut Vec<String>) {
        let part = self.n_parts;
        self.n_parts += 1;
        let is_text = matches!(self.open, Some(Open::Text(_)));
        match self.protocol {
            Protocol::ChatCompletions => {}
            Protocol::AnthropicMessages => {
                let block = if is_text {
                    json!({ "type": "text", "text": "" })
                } else {
                    json!({ "type": "thinking", "thinking": "", "signature": "" })
                };
                out.push(named(
                    "content_block_start",
                    &json!({ "type": "content_block_start", "index": part, "content_block": block }),
                ));
            }
            Protocol::Responses if is_text => {
                let item_id = self.item_id("msg");
                let item = json!({ "type": "message", "id": item_id, "role": "assistant", "status": "in_progress", "content": [] });
                out.push(self.event("response.output_item.added", json!({ "output_index": part, "item": item })));
                out.push(self.event("response.content_part.added", json!({ "item_id": item_id, "output_index": part, "content_index": 0, "part": { "type": "output_text", "text": "", "annotations": [] } })));
            }
            Protocol::Responses => {
                let item_id = self.item_id("rs");
                let item = json!({ "type": "reasoning", "id": item_id, "summary": [], "encrypted_content": null });
                out.push(self.event("response.output_item.added", json!({ "output_index": part, "item": item })));
                out.push(self.event("response.reasoning_summary_part.added", json!({ "item_id": item_id, "output_index": part, "summary_index": 0, "part": { "type": "summary_text", "text": "" } })));
            }
        }
    }

    /// Ends the open block or item.
    fn close(&mut self, out: &mut Vec<String>) {
        let Some(open) = self.open.take() else { return };
        let part = self.n_parts.saturating_sub(1);
        if let Open::Thinking(text) = &open {
            let signature = base64::engine::general_purpose::STANDARD.encode(format!("{}/{part}:{text}", self.id));
            let thought = Thought { text: text.clone(), signature };
            self.new_thoughts.push(thought.clone());
            self.thought = Some(thought);
        }
        match (self.protocol, open) {
            (Protocol::ChatCompletions, _) => {}
            (Protocol::AnthropicMessages, open) => {
                if let (Open::Thinking(_), Some(thought)) = (open, &self.thought) {
                    out.push(block_delta(part, &json!({ "type": "signature_delta", "signature": thought.signature })));
                }
                out.push(named("content_block_stop", &json!({ "type": "content_block_stop", "index": part })));
            }
            (Protocol::Responses, Open::Text(text)) => {
                let item_id = self.item_id("msg");
                let content = json!({ "type": "output_text", "text": text, "annotations": [] });
                out.push(self.event("response.output_text.done", json!({ "item_id": item_id, "output_index": part, "content_index": 0, "text": text, "logprobs": [] })));
                out.push(self.event(
                    "response.content_part.done",
                    json!({ "item_id": item_id, "output_index": part, "content_index": 0, "part": content }),
                ));
                let item = json!({ "type": "message", "id": item_id, "role": "assistant", "status": "completed", "content": [content] });
                self.done(part, item, out);
            }
            (Protocol::Responses, Open::Thinking(text)) => {
                let item_id = self.item_id("rs");
                let summary = json!({ "type": "summary_text", "text": text });
                out.push(self.event(
                    "response.reasoning_summary_text.done",
                    json!({ "item_id": item_id, "output_index": part, "summary_index": 0, "text": text }),
                ));
                out.push(self.event(
                    "response.reasoning_summary_part.done",
                    json!({ "item_id": item_id, "output_index": part, "summary_index": 0, "part": summary }),
                ));
                let signature = self.thought.as_ref().map(|thought| thought.signature.clone());
                let item =
                    json!({ "type": "reasoning", "id": item_id, "summary": [summary], "encrypted_content": signature });
                self.done(part, item, out);
            }
        }
    }

    /// The id of the item begun last.
    fn item_id(&self, prefix: &str) -> String {
        format!("{prefix}_{}_{}", self.id, self.n_parts)
    }

    fn event(&mut self, kind: &str, members: Value) -> String {
        let mut event = json!({ "type": kind, "sequence_number": self.n_events });
        self.n_events += 1;
        if let (Value::Object(event), Value::Object(members)) = (&mut event, members) {
            event.extend(members);
        }
        named(kind, &event)
    }

    fn chunk(&self, delta: &Value, finish: Option<&str>) -> String {
        self.chat(&json!([{ "index": 0, "delta": delta, "finish_reason": finish }]), None)
    }

    fn chat(&self, choices: &Value, usage: Option<Value>) -> String {
        let mut chunk = json!({ "id": self.id, "object": "chat.completion.chunk", "created": 1_700_000_000, "model": self.model, "choices": choices });
        if let Some(usage) = usage {
            chunk["usage"] = usage;
        }
        format!("data: {chunk}\n\n")
    }
}

fn named(event: &str, data: &Value) -> String {
    format!("event: {event}\ndata: {data}\n\n")
}

fn block_delta(index: usize, delta: &Value) -> String {
    named("content_block_delta", &json!({ "type": "content_block_delta", "index": index, "delta": delta }))
}

/// Cuts a text into pieces between characters.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    let mut sizes = PIECE_CHARS.iter().cycle();
    std::iter::from_fn(move || {
        let size = *sizes.next()?;
        let end = rest.char_indices().nth(size).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_to_the_text() {
        for text in ["", "a", "grüße an alle 🦀 auf der Erde"] {
            assert_eq!(pieces(text).collect::<String>(), text);
            assert!(pieces(text).all(|piece| !piece.is_empty()));
        }
    }
}
