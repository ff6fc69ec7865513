//! Good answers, what they say, and where in their bytes that is settled.

use std::fmt::Write as _;
use std::fs;

use codex_control::tables::Protocol;
use e2e::home::workspace;
use serde_json::{Value, json};

/// Deltas of the long answers.
const LONG_DELTAS: usize = 40;

/// A good answer.
pub(super) struct Sample {
    pub(super) name: &'static str,
    pub(super) protocol: Protocol,
    pub(super) bytes: Vec<u8>,
    pub(super) said: Said,
    /// Where the first event lies of which Codex is shown something.
    pub(super) shown: Span,
    /// From here on the answer may count as whole, …
    pub(super) whole_from: usize,
    /// … and from here on it must.
    pub(super) whole_by: usize,
}

/// A stretch of an answer's bytes.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// What an answer says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Said {
    pub(super) text: String,
    pub(super) reasoning: String,
    /// Names and arguments.
    pub(super) calls: Vec<(String, Value)>,
}

impl Said {
    /// Whether this is a beginning of `whole`, with no call in part.
    pub(super) fn begins(&self, whole: &Self) -> bool {
        whole.text.starts_with(&self.text)
            && whole.reasoning.starts_with(&self.reasoning)
            && whole.calls.starts_with(&self.calls)
    }
}

impl Sample {
    /// `marks`: what stands in the first event that shows something, in the first after which the answer may be whole,
    /// and in the one after which it is.
    fn new(name: &'static str, protocol: Protocol, bytes: Vec<u8>, said: Said, marks: [&str; 3]) -> Self {
        let events = events(&bytes);
        let [shown, whole_from, whole_by] = marks.map(|mark| {
            let has_mark =
                |span: &&Span| bytes[span.start..span.end].windows(mark.len()).any(|part| part == mark.as_bytes());
            *events.iter().find(has_mark).unwrap_or_else(|| panic!("no `{mark}` in {name}"))
        });
        Self { name, protocol, bytes, said, shown, whole_from: whole_from.start, whole_by: whole_by.end }
    }

    fn recorded(protocol: Protocol, name: &'static str, marks: [&str; 3]) -> Self {
        let path = workspace().join(format!("tests/fixtures/{}/{name}", protocol.name()));
        let bytes = fs::read(path.with_extension("sse")).expect("the fixture is there");
        let expected = fs::read(path.with_extension("expect.json")).expect("the fixture is there");
        let expected: Value = serde_json::from_slice(&expected).expect("an expectation is JSON");
        let text = |name: &str| expected[name].as_str().unwrap_or_default().to_owned();
        let calls = expected["tool_calls"].as_array().into_iter().flatten();
        let calls = calls.map(|call| (call["name"].as_str().unwrap_or_default().to_owned(), call["arguments"].clone()));
        let said = Said { text: text("text"), reasoning: text("reasoning_text"), calls: calls.collect() };
        Self::new(name, protocol, bytes, said, marks)
    }

    /// The ends of its events, and its beginning.
    pub(super) fn boundaries(&self) -> Vec<usize> {
        std::iter::once(0).chain(events(&self.bytes).iter().map(|span| span.end)).collect()
    }
}

/// Where each event, or comment, lies, its empty line included.
fn events(bytes: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut start = 0;
    while let Some(length) = bytes[start..].windows(2).position(|pair| pair == b"\n\n") {
        spans.push(Span { start, end: start + length + 2 });
        start += length + 2;
    }
    spans
}

/// All of them.
pub(super) fn all() -> Vec<Sample> {
    let chat = |name, marks| Sample::recorded(Protocol::ChatCompletions, name, marks);
    let anthropic = |name, shown| {
        Sample::recorded(Protocol::AnthropicMessages, name, [shown, "\"stop_reason\":\"", "event: message_stop"])
    };
    let (stop, calls) = ("\"finish_reason\":\"stop\"", "\"finish_reason\":\"tool_calls\"");
    // Calls without a word before them are shown with the very end: until then they may not be all, or not whole.
    vec![
        chat("01-text-basic", ["Hello", stop, stop]),
        chat("02-tool-fragments", ["[DONE]", calls, "[DONE]"]),
        chat("03-tool-parallel-interleaved", ["[DONE]", calls, "[DONE]"]),
        chat("10-deepseek-reasoning-text", ["The user wants", stop, stop]),
        chat("11-deepseek-reasoning-tool", ["I should list", calls, calls]),
        long_chat(),
        anthropic("01-text", "\"Hello\""),
        anthropic("02-thinking-text-tool", "The user wants"),
        anthropic("04-parallel-tools", "event: message_stop"),
        anthropic("17-interleaved-thinking", "First the log."),
        long_anthropic(),
        native("text", &[Item::Text(&["Hel", "lo", ", world. 🦀"])]),
        native("reasoning-text", &[Item::Reasoning(&["The user ", "greets."]), Item::Text(&["Hi", "!"])]),
        native("one-call", &[Item::Call("call_1", &["{\"cmd\":", "\"ls\"}"])]),
        native(
            "two-calls",
            &[
                Item::Text(&["Looking."]),
                Item::Call("call_1", &["{}"]),
                Item::Call("call_2", &["{\"cmd\"", ":\"cat\"}"]),
            ],
        ),
        native("long", &[Item::Text(&long_pieces().iter().map(String::as_str).collect::<Vec<_>>())]),
    ]
}

fn long_pieces() -> Vec<String> {
    (0..LONG_DELTAS).map(|n| format!("Satz {n}: größer, 更大, 🦀; {}\n", "word ".repeat(n % 7))).collect()
}

fn long_chat() -> Sample {
    let chunk = |delta: Value, finish: Value| json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }] });
    let pieces = long_pieces();
    let mut stream = String::new();
    for piece in &pieces {
        push(&mut stream, None, &chunk(json!({ "content": piece }), Value::Null));
    }
    push(&mut stream, None, &chunk(json!({}), json!("stop")));
    stream.push_str("data: [DONE]\n\n");
    let said = Said { text: pieces.concat(), ..Said::default() };
    let stop = "\"finish_reason\":\"stop\"";
    Sample::new("long", Protocol::ChatCompletions, stream.into_bytes(), said, ["Satz 0", stop, stop])
}

fn long_anthropic() -> Sample {
    let pieces = long_pieces();
    let mut events = vec![
        json!({ "type": "message_start", "message": { "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": null, "stop_sequence": null, "usage": { "input_tokens": 9, "output_tokens": 1 } } }),
        json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
    ];
    events.extend(pieces.iter().map(
        |piece| json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": piece } }),
    ));
    events.extend([
        json!({ "type": "content_block_stop", "index": 0 }),
        json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn", "stop_sequence": null }, "usage": { "output_tokens": 99 } }),
        json!({ "type": "message_stop" }),
    ]);
    let mut stream = String::new();
    for event in &events {
        push(&mut stream, event["type"].as_str(), event);
    }
    let said = Said { text: pieces.concat(), ..Said::default() };
    let marks = ["Satz 0", "\"stop_reason\":\"", "event: message_stop"];
    Sample::new("long", Protocol::AnthropicMessages, stream.into_bytes(), said, marks)
}

fn push(stream: &mut String, name: Option<&str>, data: &Value) {
    if let Some(name) = name {
        let _ = writeln!(stream, "event: {name}"); // writing to a String cannot fail
    }
    let _ = write!(stream, "data: {data}\n\n"); // writing to a String cannot fail
}

/// An item of a Responses stream, by its deltas.
enum Item<'a> {
    Text(&'a [&'a str]),
    Reasoning(&'a [&'a str]),
    Call(&'a str, &'a [&'a str]),
}

/// A Responses stream as `OpenAI` writes it.
struct Writer {
    stream: String,
    sequence_number: u64,
}

impl Writer {
    fn event(&mut self, kind: &str, mut fields: Value) {
        fields["type"] = json!(kind);
        fields["sequence_number"] = json!(self.sequence_number);
        self.sequence_number += 1;
        push(&mut self.stream, Some(kind), &fields);
    }

    fn response(&mut self, kind: &str, status: &str, output: &[Value], usage: &Value) {
        let response = json!({ "id": "resp_upstream", "object": "response", "created_at": 1, "status": status, "model": "scripted", "output": output, "usage": usage });
        self.event(kind, json!({ "response": response }));
    }

    fn item(&mut self, index: usize, item: &Item<'_>) -> Value {
        let (pieces, prefix) = match item {
            Item::Text(pieces) => (pieces, "msg_"),
            Item::Reasoning(pieces) => (pieces, "rs_"),
            Item::Call(_, pieces) => (pieces, "fc_"),
        };
        let id = format!("{prefix}{index}");
        let whole = pieces.concat();
        let place = |inner: Value| {
            let mut place = json!({ "item_id": id, "output_index": index });
            let (Some(fields), Value::Object(inner)) = (place.as_object_mut(), inner) else { return place };
            fields.extend(inner);
            place
        };
        let (added, part, done) = match item {
            Item::Text(_) => {
                let part = |text: &str| json!({ "type": "output_text", "annotations": [], "text": text });
                let item = |status: &str, content: Value| json!({ "type": "message", "id": id, "role": "assistant", "status": status, "content": content });
                (item("in_progress", json!([])), part(""), item("completed", json!([part(&whole)])))
            }
            Item::Reasoning(_) => {
                let part = |text: &str| json!({ "type": "summary_text", "text": text });
                let item = |summary: Value| json!({ "type": "reasoning", "id": id, "summary": summary });
                (item(json!([])), part(""), item(json!([part(&whole)])))
            }
            Item::Call(call_id, _) => {
                let item = |status: &str, arguments: &str| json!({ "type": "function_call", "id": id, "call_id": call_id, "name": "exec_command", "status": status, "arguments": arguments });
                (item("in_progress", ""), Value::Null, item("completed", &whole))
            }
        };
        self.event("response.output_item.added", json!({ "output_index": index, "item": added }));
        let (part_kind, text_kind, at) = match item {
            Item::Text(_) => ("response.content_part", "response.output_text", "content_index"),
            Item::Reasoning(_) => {
                ("response.reasoning_summary_part", "response.reasoning_summary_text", "summary_index")
            }
            Item::Call(..) => ("", "response.function_call_arguments", "output_index"),
        };
        let at_value = if at == "output_index" { index } else { 0 };
        if !part_kind.is_empty() {
            self.event(&format!("{part_kind}.added"), place(json!({ at: at_value, "part": part })));
        }
        for piece in *pieces {
            self.event(&format!("{text_kind}.delta"), place(json!({ at: at_value, "delta": piece })));
        }
        let text_name = if part_kind.is_empty() { "arguments" } else { "text" };
        self.event(&format!("{text_kind}.done"), place(json!({ at: at_value, text_name: whole })));
        if !part_kind.is_empty() {
            let mut whole_part = part;
            whole_part["text"] = json!(whole);
            self.event(&format!("{part_kind}.done"), place(json!({ at: at_value, "part": whole_part })));
        }
        self.event("response.output_item.done", json!({ "output_index": index, "item": done }));
        done
    }
}

fn native(name: &'static str, items: &[Item<'_>]) -> Sample {
    let mut writer = Writer { stream: String::new(), sequence_number: 0 };
    let mut said = Said::default();
    writer.response("response.created", "in_progress", &[], &Value::Null);
    writer.response("response.in_progress", "in_progress", &[], &Value::Null);
    let mut output = Vec::new();
    for (index, item) in items.iter().enumerate() {
        output.push(writer.item(index, item));
        match item {
            Item::Text(pieces) => said.text.push_str(&pieces.concat()),
            Item::Reasoning(pieces) => said.reasoning.push_str(&pieces.concat()),
            Item::Call(_, pieces) => {
                let arguments = serde_json::from_str(&pieces.concat()).expect("the arguments are JSON");
                said.calls.push(("exec_command".to_owned(), arguments));
            }
        }
    }
    let usage = json!({ "input_tokens": 9, "input_tokens_details": { "cached_tokens": 0 }, "output_tokens": 3, "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": 12 });
    writer.response("response.completed", "completed", &output, &usage);
    let end = "event: response.completed";
    let marks = ["event: response.output_item.added", end, end];
    Sample::new(name, Protocol::Responses, writer.stream.into_bytes(), said, marks)
}
