//! HTTP/1.1 by hand: what goes on the wire, and when, is the point of this server.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use codex_control::tables::Protocol;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::script::{Call, Script, Step, When, Wire};
use super::speak::{Speaker, Spoken};
use super::view::view;
use super::{End, Received, Shared, validate};

/// Longest request head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Largest request body: the worker's own limit and some.
const BODY_BYTES_MAX: usize = 80 * 1024 * 1024;

/// Said before a connection is closed, so that the next request does not go into it and get lost.
const CLOSING: (&str, &str) = ("connection", "close");

/// Serves connections until it is dropped.
pub(super) async fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of descriptors, or a connection that is gone already: the next one may work.
                let Ok((stream, _)) = accepted else { continue };
                shared.state().connections += 1;
                let shared = Arc::clone(shared);
                connections.spawn(async move {
                    // A client may go away at any moment; what that means is recorded where it matters.
                    let _ = connection(stream, &shared).await;
                });
            }
            Some(ended) = connections.join_next() => ended.expect("a connection does not panic"),
        }
    }
}

async fn connection(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut pending = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut pending).await? {
        let asked_to_close =
            request.headers.iter().any(|(name, value)| name == "connection" && value.eq_ignore_ascii_case("close"));
        let keep = answer(&mut stream, shared, request).await?;
        if !keep || asked_to_close {
            break;
        }
    }
    // Dropping the stream closes it, or resets it where the script has asked for that.
    Ok(())
}

struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// Reads one request; `None` when the client has closed.
async fn read_request(stream: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let head_end = loop {
        if let Some(at) = find(pending, b"\r\n\r\n") {
            break at;
        }
        if pending.len() > HEAD_BYTES_MAX {
            return Err(bad("the head is too long"));
        }
        if stream.read_buf(pending).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8(pending.drain(..head_end + 4).collect()).map_err(|_| bad("the head is no text"))?;
    let mut lines = head.lines();
    let mut request_line = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (request_line.next().unwrap_or_default(), request_line.next().unwrap_or_default());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let header = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let body = if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        read_chunks(stream, pending).await?
    } else {
        let length = header("content-length").map_or(Ok(0), str::parse).map_err(|_| bad("content-length"))?;
        read_exactly(stream, pending, length).await?
    };
    Ok(Some(Request { method: method.to_owned(), path: path.to_owned(), headers, body }))
}

async fn read_exactly(stream: &mut TcpStream, pending: &mut Vec<u8>, length: usize) -> io::Result<Vec<u8>> {
    if length > BODY_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the body is too long"));
    }
    while pending.len() < length {
        if stream.read_buf(pending).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(pending.drain(..length).collect())
}

async fn read_chunks(stream: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_end = loop {
            if let Some(at) = find(pending, b"\r\n") {
                break at;
            }
            if stream.read_buf(pending).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let line: Vec<u8> = pending.drain(..line_end + 2).collect();
        let digits = String::from_utf8_lossy(&line);
        let size = usize::from_str_radix(digits.trim(), 16).map_err(|_| io::ErrorKind::InvalidData)?;
        let chunk = read_exactly(stream, pending, size + 2).await?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(&chunk[..size]);
        if body.len() > BODY_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the body is too long"));
        }
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

/// Answers one request; says whether the connection can be used again.
async fn answer(stream: &mut TcpStream, shared: &Shared, request: Request) -> io::Result<bool> {
    let script = &shared.script;
    let header =
        |wanted: &str| request.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    if let Some(key) = &script.key
        && header("authorization") != Some(format!("Bearer {key}").as_str())
        && (script.protocol != Protocol::AnthropicMessages || header("x-api-key") != Some(key.as_str()))
    {
        (shared.log)(&format!("{} {}: 401, wrong key", request.method, request.path));
        let error = json!({ "error": { "message": "Incorrect API key provided", "type": "invalid_request_error", "code": "invalid_api_key" } });
        return write_status(stream, 401, &[], &error.to_string()).await;
    }
    let path = request.path.split('?').next().unwrap_or_default();
    match (request.method.as_str(), path) {
        ("GET", "/v1/models") => {
            shared.state().models_asked += 1;
            (shared.log)("GET /v1/models: 200");
            let data: Vec<Value> =
                script.models.iter().map(|id| json!({ "id": id, "object": "model", "owned_by": "script" })).collect();
            write_status(stream, 200, &[], &json!({ "object": "list", "data": data }).to_string()).await
        }
        ("POST", path) if path == path_of(script.protocol) => completion(stream, shared, request).await,
        (method, path) => {
            shared.state().complaints.push(format!("{method} {path} is not there"));
            write_status(stream, 404, &[], &error_body(&format!("{method} {path} is not there"))).await
        }
    }
}

/// Where a protocol asks for an answer.
fn path_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::ChatCompletions => "/v1/chat/completions",
        Protocol::AnthropicMessages => "/v1/messages",
        Protocol::Responses => "/v1/responses",
    }
}

/// An error in a form that clients of every protocol read.
fn error_body(message: &str) -> String {
    json!({ "type": "error", "error": { "message": message, "type": "invalid_request_error", "code": null } })
        .to_string()
}

async fn completion(stream: &mut TcpStream, shared: &Shared, request: Request) -> io::Result<bool> {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
    let script = &shared.script;
    let view = view(script.protocol, &body);
    let mut complaints = validate::headers(&request.headers);
    complaints.extend(validate::protocol_headers(script.protocol, &request.headers));
    complaints.extend(match script.protocol {
        Protocol::ChatCompletions => validate::body(&body, &script.allow),
        Protocol::AnthropicMessages => validate::messages_body(&request.body, &body, &script.models),
        Protocol::Responses => validate::responses_body(&body, &script.models),
    });
    let (index, turn) = {
        let mut state = shared.state();
        let index = state.requests.len();
        complaints.extend(state.thoughts.complaints(script, &body));
        let turn = if complaints.is_empty() { choose(script, &mut state.uses, &view) } else { None };
        if complaints.is_empty() && turn.is_none() {
            let last = view["messages"].as_array().and_then(|messages| messages.last()).map(super::message_text);
            complaints.push(format!("no turn of the script expects this; the last message is {last:?}"));
        }
        state.complaints.extend(complaints.iter().map(|text| format!("request {index}: {text}")));
        state.requests.push(Received {
            path: request.path,
            headers: request.headers,
            body_bytes: request.body.len(),
            body: body.clone(),
            view: view.clone(),
            turn,
            end: None,
        });
        (index, turn)
    };
    let messages = view["messages"].as_array().map_or(0, Vec::len);
    let tools = view["tools"].as_array().map_or(0, Vec::len);
    (shared.log)(&format!(
        "POST {}: request {} with {messages} messages and {tools} tools",
        path_of(script.protocol),
        index + 1
    ));
    let Some(turn) = turn else {
        let _ = write_status(
            stream,
            400,
            &[CLOSING],
            &error_body(&format!("refused by the scripted provider: {}", complaints.join("; "))),
        )
        .await;
        shared.state().requests[index].end = Some(End::Complete);
        return Ok(false);
    };
    let answer = play(stream, shared, &shared.script.turn[turn].answer, &body, &view).await;
    let (end, keep) = match answer {
        Ok(End::Complete) => (End::Complete, !shared.script.wire.close_delimited),
        Ok(end) => (end, false),
        Err(_) => (End::ClientGone, false),
    };
    shared.state().requests[index].end = Some(end);
    Ok(keep)
}

/// The first turn that expects this request and may still be used.
fn choose(script: &Script, uses: &mut [usize], view: &Value) -> Option<usize> {
    let fits = |when: &When| when.fits(view);
    let turn =
        script.turn.iter().zip(&*uses).position(|(turn, uses)| (turn.repeat || *uses == 0) && fits(&turn.when))?;
    uses[turn] += 1;
    Some(turn)
}

/// Plays the steps of one answer.
async fn play(stream: &mut TcpStream, shared: &Shared, steps: &[Step], body: &Value, view: &Value) -> io::Result<End> {
    if let Some(Step::Status(status)) = steps.first() {
        (shared.log)(&format!("answered with status {}", status.code));
        let headers = status.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let headers: Vec<(&str, &str)> = headers.chain([CLOSING]).collect();
        write_status(stream, status.code, &headers, &status.body).await?;
        return Ok(End::Scripted);
    }
    let mut answer = Answer {
        wire: Writer { stream, wire: &shared.script.wire, place: 0, pending: Vec::new(), head_sent: false },
        shared,
        view,
        speaker: Speaker::new(shared.script.protocol, shared.state().requests.len(), body),
        told: Vec::new(),
    };
    if let Some(end) = answer.steps(steps).await? {
        return Ok(end);
    }
    answer.end().await?;
    Ok(End::Complete)
}

/// An answer that is being written.
struct Answer<'a> {
    wire: Writer<'a>,
    shared: &'a Shared,
    /// The request in the shape of Chat Completions.
    view: &'a Value,
    speaker: Speaker,
    /// What it consists of, for the log.
    told: Vec<String>,
}

impl Answer<'_> {
    /// Plays `steps`; gives an end when they end the answer early.
    async fn steps(&mut self, steps: &[Step]) -> io::Result<Option<End>> {
        for step in steps {
            match step {
                Step::Text(text) => {
                    self.told.push("text".to_owned());
                    let events = self.speaker.text(text);
                    self.send(&events).await?;
                }
                Step::Reasoning(text) => {
                    self.told.push("reasoning".to_owned());
                    let events = self.speaker.reasoning(text);
                    self.send(&events).await?;
                }
                Step::Call(call) => self.calls(std::slice::from_ref(call)).await?,
                Step::Calls(calls) => self.calls(calls).await?,
                Step::Patch(patch) => {
                    let call = self.patch_call(patch);
                    self.calls(&[call]).await?;
                }
                Step::Raw(bytes) => self.wire.push(bytes.as_bytes()).await?,
                Step::Usage { prompt_tokens, completion_tokens } => {
                    self.speaker.usage = Some((*prompt_tokens, *completion_tokens));
                }
                Step::Finish(reason) => self.speaker.finish = Some(reason.clone()),
                Step::Hold(gate) => self.hold(gate).await?,
                Step::PauseMs(pause_ms) => {
                    self.wire.flush().await?;
                    self.wire.unless_gone(tokio::time::sleep(Duration::from_millis(*pause_ms))).await?;
                }
                Step::Reset => {
                    self.wire.flush().await?;
                    rustix::net::sockopt::set_socket_linger(&*self.wire.stream, Some(Duration::ZERO))?;
                    return Ok(Some(End::Scripted));
                }
                Step::Close => {
                    self.wire.flush().await?;
                    return Ok(Some(End::Scripted));
                }
                Step::Silence => {
                    self.wire.flush().await?;
                    self.wire.unless_gone(std::future::pending()).await?;
                }
                Step::Computed(computed) => {
                    let steps = computed.steps(self.view);
                    if let Some(end) = Box::pin(self.steps(&steps)).await? {
                        return Ok(Some(end));
                    }
                }
                Step::Status(_) => self.complain("a status is not the first step".to_owned()),
            }
        }
        Ok(None)
    }

    fn complain(&self, complaint: String) {
        self.shared.state().complaints.push(complaint);
    }

    async fn send(&mut self, events: &[String]) -> io::Result<()> {
        for event in events {
            let event = if self.wire.wire.crlf { event.replace('\n', "\r\n") } else { event.clone() };
            self.wire.push(event.as_bytes()).await?;
        }
        Ok(())
    }

    async fn calls(&mut self, calls: &[Call]) -> io::Result<()> {
        let mut spoken = Vec::new();
        for call in calls {
            let Some(function) = offered(self.view, &call.tool) else {
                self.complain(format!("no offered tool is `{}`", call.tool));
                continue;
            };
            let name = function["name"].as_str().unwrap_or_default().to_owned();
            self.told.push(format!("a call of `{name}`"));
            let number = {
                let mut state = self.shared.state();
                state.calls += 1;
                state.calls
            };
            let is_freeform = function["freeform"] == true;
            let id = self.speaker.call_id(number);
            spoken.push(Spoken { id, name, arguments: call.arguments.clone(), is_freeform });
        }
        let events = self.speaker.calls(&spoken);
        let ids = spoken.into_iter().map(|call| call.id);
        self.shared.state().thoughts.called(ids, self.speaker.thought());
        self.send(&events).await
    }

    /// `apply_patch` comes as a function with one string argument, whatever its name.
    fn patch_call(&self, patch: &str) -> Call {
        let tools = self.view["tools"].as_array().into_iter().flatten();
        let schema = tools
            .map(|tool| &tool["function"])
            .find(|function| function["name"] == "apply_patch")
            .map(|function| &function["parameters"]);
        let properties = schema.and_then(|schema| schema["properties"].as_object());
        let mut strings = properties
            .into_iter()
            .flatten()
            .filter(|(_, schema)| schema["type"] == "string")
            .map(|(name, _)| name.clone());
        let name = strings.next().unwrap_or_else(|| {
            self.complain(format!("`apply_patch` is not a function with one string argument: {schema:?}"));
            "input".to_owned()
        });
        Call { tool: "apply_patch".to_owned(), arguments: json!({ name: patch }) }
    }

    async fn hold(&mut self, gate: &str) -> io::Result<()> {
        self.wire.flush().await?;
        self.shared.state().held.insert(gate.to_owned());
        let shared = self.shared;
        let open = async {
            loop {
                // Registered before the look, so that a release in between is not missed.
                let released = shared.released.notified();
                if shared.state().open_gates.contains(gate) {
                    break;
                }
                released.await;
            }
        };
        self.wire.unless_gone(open).await
    }

    async fn end(mut self) -> io::Result<()> {
        let events = self.speaker.end();
        self.shared.state().thoughts.thought(self.speaker.take_thoughts());
        self.send(&events).await?;
        (self.shared.log)(&format!("answered with {}", self.told.join(", ")));
        self.wire.finish().await
    }
}

/// The offered function that `wanted` means; see [`Call::tool`].
fn offered<'v>(view: &'v Value, wanted: &str) -> Option<&'v Value> {
    let functions = || view["tools"].as_array().into_iter().flatten().map(|tool| &tool["function"]);
    let in_order = |function: &&Value| {
        let mut rest = function["name"].as_str().unwrap_or_default();
        wanted.split('/').all(|word| match rest.find(word) {
            Some(at) => {
                rest = &rest[at + word.len()..];
                true
            }
            None => false,
        })
    };
    functions().find(|function| function["name"] == wanted).or_else(|| functions().find(in_order))
}

/// Puts an answer on the wire in writes of the scripted sizes.
struct Writer<'a> {
    stream: &'a mut TcpStream,
    wire: &'a Wire,
    /// Index of the next size.
    place: usize,
    pending: Vec<u8>,
    head_sent: bool,
}

impl Writer<'_> {
    /// Adds payload; writes what fills whole pieces.
    async fn push(&mut self, payload: &[u8]) -> io::Result<()> {
        self.open();
        if self.wire.close_delimited {
            self.pending.extend_from_slice(payload);
        } else {
            self.pending.extend_from_slice(format!("{:x}\r\n", payload.len()).as_bytes());
            self.pending.extend_from_slice(payload);
            self.pending.extend_from_slice(b"\r\n");
        }
        self.write(false).await
    }

    /// Puts the head before everything else.
    fn open(&mut self) {
        if !self.head_sent {
            self.head_sent = true;
            let framing = if self.wire.close_delimited { "connection: close" } else { "transfer-encoding: chunked" };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{framing}\r\n\r\n");
            self.pending.extend_from_slice(head.as_bytes());
        }
    }

    /// Writes everything, the head at least.
    async fn flush(&mut self) -> io::Result<()> {
        self.open();
        self.write(true).await
    }

    async fn finish(&mut self) -> io::Result<()> {
        if !self.wire.close_delimited {
            self.pending.extend_from_slice(b"0\r\n\r\n");
        }
        self.write(true).await
    }

    async fn write(&mut self, all: bool) -> io::Result<()> {
        while !self.pending.is_empty() {
            let sizes = &self.wire.write_bytes;
            let size = if sizes.is_empty() { self.pending.len() } else { sizes[self.place % sizes.len()].max(1) };
            if size > self.pending.len() && !all {
                break;
            }
            self.place += 1;
            let piece: Vec<u8> = self.pending.drain(..size.min(self.pending.len())).collect();
            self.stream.write_all(&piece).await?;
            if self.wire.pause_us > 0 {
                tokio::time::sleep(Duration::from_micros(self.wire.pause_us)).await;
            } else {
                // Gives the other side a chance to read this piece by itself.
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Waits for `event`, unless the client goes away first.
    async fn unless_gone(&mut self, event: impl Future<Output = ()>) -> io::Result<()> {
        let mut byte = [0];
        tokio::select! {
            () = event => Ok(()),
            read = self.stream.read(&mut byte) => match read {
                Ok(0) | Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
                Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a second request before the end of the answer")),
            },
        }
    }
}

async fn write_status(stream: &mut TcpStream, code: u16, headers: &[(&str, &str)], body: &str) -> io::Result<bool> {
    let mut head =
        format!("HTTP/1.1 {code} Scripted\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n"); // writing to a String cannot fail
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_found_by_the_words_of_their_names() {
        let body = json!({ "tools": [
            { "function": { "name": "mcp__notes__keep_all" } },
            { "function": { "name": "mcp__notes__keep" } },
            { "function": { "name": "keep" } },
        ] });
        let name = |wanted: &str| offered(&body, wanted).and_then(|function| function["name"].as_str());
        assert_eq!(name("keep"), Some("keep"));
        assert_eq!(name("mcp__notes__keep"), Some("mcp__notes__keep"));
        assert_eq!(name("notes/all"), Some("mcp__notes__keep_all"));
        assert_eq!(name("keep/notes"), None);
    }
}
