//! Requests of the sizes and shapes that Codex sends, and how long their first word takes.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(10);
/// Read at once.
const READ_BYTES: usize = 16 * 1024;

/// What an answer looks like.
pub(crate) enum Shape {
    /// Chat Completions.
    Chat,
    /// Responses.
    Responses,
}

impl Shape {
    /// What stands in the first event with text, and what in the last event.
    fn marks(&self) -> (&'static [u8], &'static [u8]) {
        match self {
            Self::Chat => (b"\"content\":\"", b"[DONE]"),
            Self::Responses => (b"response.output_text.delta", b"\"type\":\"response.completed\""),
        }
    }
}

/// A request, ready to be sent again and again.
pub(crate) struct Route {
    address: SocketAddr,
    bytes: Vec<u8>,
}

impl Route {
    /// To a provider.
    pub(crate) fn chat(address: SocketAddr, body: &[u8]) -> Self {
        Self::new(address, "/v1/chat/completions", "none", body)
    }

    /// To a worker.
    pub(crate) fn responses(address: SocketAddr, token: &str, body: &[u8]) -> Self {
        Self::new(address, "/v1/responses", token, body)
    }

    fn new(address: SocketAddr, path: &str, token: &str, body: &[u8]) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\naccept: text/event-stream\r\ncontent-type: application/json\r\nuser-agent: bench\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Self { address, bytes: [head.as_bytes(), body].concat() }
    }

    /// Sends it on a connection of its own, as Codex does; gives the time from connecting to the first delta.
    pub(crate) fn send(&self, shape: &Shape) -> anyhow::Result<Duration> {
        let (first, last) = shape.marks();
        let begin = Instant::now();
        let mut stream = TcpStream::connect_timeout(&self.address, DEADLINE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(&self.bytes)?;
        let mut answer = Vec::with_capacity(READ_BYTES);
        read_until(&mut stream, &mut answer, first)?;
        let elapsed = begin.elapsed();
        read_until(&mut stream, &mut answer, last)?;
        Ok(elapsed)
    }
}

fn read_until(stream: &mut TcpStream, answer: &mut Vec<u8>, mark: &[u8]) -> anyhow::Result<()> {
    let mut buffer = [0; READ_BYTES];
    while !answer.windows(mark.len()).any(|window| window == mark) {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            let error = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(
                anyhow::Error::new(error).context(format!("the answer was {:?}", String::from_utf8_lossy(answer)))
            );
        }
        answer.extend_from_slice(&buffer[..read]);
    }
    Ok(())
}

/// The body of a request of Codex with about so many bytes: instructions, tools, and a history of shell calls.
pub(crate) fn body(bytes: usize) -> Vec<u8> {
    let message = |role: &str, kind: &str, text: &str| json!({ "type": "message", "role": role, "content": [{ "type": kind, "text": text }] });
    let mut request = json!({
        "model": "scripted",
        "input": [
            message("developer", "input_text", "You are a coding agent. Work in small steps, look before you change, and say what you did."),
            message("user", "input_text", "<environment_context>\n  <cwd>/home/dev/project</cwd>\n  <shell>bash</shell>\n</environment_context>"),
            message("user", "input_text", "Find out why the build fails, and mend it."),
        ],
        "tools": [
            { "type": "function", "name": "exec_command", "description": "Runs a command.", "strict": false, "parameters": {
                "type": "object", "properties": { "cmd": { "type": "string" }, "workdir": { "type": "string" } }, "required": ["cmd"], "additionalProperties": false,
            } },
            { "type": "custom", "name": "apply_patch", "description": "Changes files.", "format": { "type": "grammar", "syntax": "lark", "definition": "start: begin_patch hunk+ end_patch" } },
        ],
        "tool_choice": "auto", "parallel_tool_calls": true, "reasoning": { "summary": "auto" }, "store": false, "stream": true,
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "01a20229-8a8b-7871-ade4-da909933d21f",
    });
    let mut size = request.to_string().len();
    let mut turn = 0;
    while size < bytes {
        turn += 1;
        let lines: Vec<String> = (0..20)
            .map(|line| format!("src/module_{turn}.rs:{line}: let value = \"compute\\t({turn}, {line})\";\n"))
            .collect();
        let output = lines.concat();
        let left = bytes.saturating_sub(size).clamp(1, output.len());
        let items = [
            message("assistant", "output_text", "I look at the next file."),
            json!({ "type": "function_call", "id": format!("fc_{turn}"), "call_id": format!("call_{turn}"), "name": "exec_command", "arguments": format!("{{\"cmd\":\"grep -n value src/module_{turn}.rs\"}}") }),
            json!({ "type": "function_call_output", "call_id": format!("call_{turn}"), "output": output[..left] }),
        ];
        size += items.iter().map(|item| item.to_string().len() + 1).sum::<usize>();
        request["input"].as_array_mut().expect("`input` was just made").extend(items);
    }
    Value::to_string(&request).into_bytes()
}

/// The time that `percent` of `times` do not exceed.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}
