//! A provider that answers the first request of each case in the case's bad way, and every further one well.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use codex_control::tables::Protocol;
use serde_json::{Value, json};

use super::samples::Sample;

/// Stands in each request, before the number of its case.
pub(super) const CASE_MARK: &str = "sweep case ";
/// Digits of a case's number.
pub(super) const CASE_DIGITS: usize = 6;
/// Longest silence on a connection: above all timeouts of the worker, below the whole sweep's.
const SILENCE: Duration = Duration::from_mins(2);
/// Read at once.
const READ_BYTES: usize = 16 * 1024;

/// How the first answer of a case fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// The connection ends, in an answer that has no other end.
    Close,
    /// The connection ends before the last chunk.
    Cut,
    /// The connection is reset.
    Reset,
    /// Nothing more comes.
    Stall,
    /// The provider says that it failed.
    Said(Words),
    /// It says so in another form than an event of its protocol.
    Odd(Form),
    /// It fails before the stream, with this status.
    Status(u16),
}

impl Fault {
    /// Whether asking again can help.
    pub(super) fn may_pass(self) -> bool {
        match self {
            Self::Said(words) => words.may_pass(),
            Self::Status(status) => matches!(status, 408 | 429 | 500..),
            Self::Close | Self::Cut | Self::Reset | Self::Stall | Self::Odd(_) => true,
        }
    }

    /// Whether it is the provider's word that the answer has failed, which counts even behind a whole one.
    pub(super) fn is_told(self) -> bool {
        matches!(self, Self::Said(_) | Self::Odd(_))
    }
}

/// Odd forms of an error in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// The field `error:` in place of `data:`.
    Field,
    /// A line of JSON without a field.
    Line,
    /// An event by the name of `error`.
    Named,
}

impl Form {
    pub(super) const ALL: [Self; 3] = [Self::Field, Self::Line, Self::Named];

    fn text(self) -> String {
        let error = json!({ "error": { "code": 500, "message": "Compute error.", "type": "server_error" } });
        match self {
            Self::Field => format!("error: {}\n\n", error["error"]),
            Self::Line => format!("{error}\n\n"),
            Self::Named => format!("event: error\ndata: {error}\n\n"),
        }
    }
}

/// What a provider says of a failure inside a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Words {
    Server,
    Overloaded,
    RateLimit,
    Quota,
    ContextLength,
    Auth,
    Refused,
    Invalid,
}

impl Words {
    pub(super) const ALL: [Self; 8] = [
        Self::Server,
        Self::Overloaded,
        Self::RateLimit,
        Self::Quota,
        Self::ContextLength,
        Self::Auth,
        Self::Refused,
        Self::Invalid,
    ];

    /// Whether asking again can help.
    pub(super) fn may_pass(self) -> bool {
        matches!(self, Self::Server | Self::Overloaded | Self::RateLimit)
    }

    fn code_and_message(self) -> (&'static str, &'static str) {
        match self {
            Self::Server => ("server_error", "The server had an error while processing your request."),
            Self::Overloaded => ("server_is_overloaded", "Our servers are currently overloaded."),
            Self::RateLimit => ("rate_limit_exceeded", "Rate limit reached. Please try again in 0.05s."),
            Self::Quota => ("insufficient_quota", "You exceeded your current quota, please check your plan."),
            Self::ContextLength => ("context_length_exceeded", "This model's maximum context length is 1000 tokens."),
            Self::Auth => ("invalid_api_key", "Incorrect API key provided."),
            Self::Refused => ("content_policy_violation", "This request violates our usage policies."),
            Self::Invalid => ("invalid_request_error", "Something in it is wrong."),
        }
    }

    /// The event, as a provider of `protocol` writes it.
    pub(super) fn event(self, protocol: Protocol) -> String {
        let (code, message) = self.code_and_message();
        match protocol {
            Protocol::ChatCompletions => {
                let kind = if self == Self::ContextLength { "invalid_request_error" } else { code };
                format!("data: {}\n\n", json!({ "error": { "message": message, "type": kind, "code": code } }))
            }
            Protocol::AnthropicMessages => {
                let (kind, message) = match self {
                    Self::Server => ("api_error", "Internal server error"),
                    Self::Overloaded => ("overloaded_error", "Overloaded"),
                    Self::RateLimit => ("rate_limit_error", message),
                    Self::Quota => ("billing_error", "Your credit balance is too low."),
                    Self::ContextLength => {
                        ("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")
                    }
                    Self::Auth => ("authentication_error", "invalid x-api-key"),
                    Self::Refused | Self::Invalid => ("invalid_request_error", message),
                };
                let data = json!({ "type": "error", "error": { "type": kind, "message": message } });
                format!("event: error\ndata: {data}\n\n")
            }
            Protocol::Responses => {
                let response = json!({ "id": "resp_upstream", "object": "response", "created_at": 1, "status": "failed", "model": "scripted", "output": [], "error": { "code": code, "message": message } });
                let data = json!({ "type": "response.failed", "sequence_number": 99, "response": response });
                format!("event: response.failed\ndata: {data}\n\n")
            }
        }
    }
}

/// One way of failing at one place of one answer.
pub(super) struct Case {
    pub(super) sample: Arc<Sample>,
    pub(super) fault: Fault,
    /// Bytes of the good answer that come before it.
    pub(super) at: usize,
    /// How often the provider was asked.
    pub(super) asked: AtomicUsize,
}

impl Case {
    fn pieces(&self) -> Pieces {
        // A reset takes back what the kernel has not sent yet, and of many pieces it may have some left.
        let is_together = self.fault == Fault::Reset || self.at.is_multiple_of(2);
        if is_together { Pieces::Together } else { Pieces::Apart }
    }

    /// The body of the first answer, as far as it comes.
    pub(super) fn bad_body(&self) -> Vec<u8> {
        let mut body = self.sample.bytes[..self.at].to_vec();
        let told = match self.fault {
            Fault::Said(words) => words.event(self.sample.protocol),
            Fault::Odd(form) => form.text(),
            _ => return body,
        };
        if self.at > 0 && !body.ends_with(b"\n\n") {
            // The event that it broke off in, ended by the server that reports the failure.
            body.extend_from_slice(b"\n\n");
        }
        body.extend_from_slice(told.as_bytes());
        body
    }
}

/// Starts it; it lives as long as this process.
pub(super) fn start(cases: Arc<Vec<Case>>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let cases = Arc::clone(&cases);
            // A client that goes away ends its connection, and that is all.
            thread::spawn(move || _ = serve(stream, &cases));
        }
    });
    Ok(address)
}

fn serve(mut stream: TcpStream, cases: &[Case]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut pending = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut pending)? {
        if request.starts_with("GET ") {
            let list = json!({ "object": "list", "data": [{ "id": "scripted", "object": "model" }] });
            write_status(&mut stream, 200, &list)?;
            continue;
        }
        let number = request.find(CASE_MARK).and_then(|at| request.get(at + CASE_MARK.len()..)?.get(..CASE_DIGITS));
        let Some(case) = number.and_then(|number| cases.get(number.parse::<usize>().ok()?)) else {
            write_status(&mut stream, 404, &json!({ "error": { "message": "no such case" } }))?;
            continue;
        };
        if case.asked.fetch_add(1, Ordering::SeqCst) == 0 {
            if !fail(&mut stream, case)? {
                return Ok(());
            }
        } else {
            stream.write_all(CHUNKED_HEAD)?;
            write_events(&mut stream, &case.sample.bytes, case.pieces())?;
            stream.write_all(LAST_CHUNK)?;
        }
    }
    Ok(())
}

pub(crate) const CHUNKED_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Answers badly; `false` if that was the end of the connection.
fn fail(stream: &mut TcpStream, case: &Case) -> io::Result<bool> {
    let body = case.bad_body();
    match case.fault {
        Fault::Status(status) => {
            let error = json!({ "error": { "message": "not now", "type": "server_error" } });
            write_status(stream, status, &error)?;
            return Ok(true);
        }
        Fault::Close => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")?;
            stream.write_all(&body)?;
        }
        Fault::Said(_) | Fault::Odd(_) => {
            stream.write_all(CHUNKED_HEAD)?;
            write_events(stream, &body, case.pieces())?;
            stream.write_all(LAST_CHUNK)?;
            return Ok(true);
        }
        Fault::Cut | Fault::Reset | Fault::Stall => {
            stream.write_all(CHUNKED_HEAD)?;
            write_events(stream, &body, case.pieces())?;
            if case.fault == Fault::Reset {
                rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO))?;
            }
            if case.fault == Fault::Stall {
                // Until the worker has had enough.
                while stream.read(&mut [0; 64])? > 0 {}
            }
        }
    }
    Ok(false)
}

/// How an answer is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pieces {
    /// In one write.
    Together,
    /// Each event by itself.
    Apart,
}

/// One chunk for each event.
fn write_events(stream: &mut TcpStream, body: &[u8], pieces: Pieces) -> io::Result<()> {
    let mut chunks = Vec::with_capacity(body.len() * 2);
    let mut rest = body;
    while !rest.is_empty() {
        let length = rest.windows(2).position(|pair| pair == b"\n\n").map_or(rest.len(), |at| at + 2);
        let (event, after) = rest.split_at(length);
        chunks.extend_from_slice(format!("{length:x}\r\n").as_bytes());
        chunks.extend_from_slice(event);
        chunks.extend_from_slice(b"\r\n");
        if pieces == Pieces::Apart {
            stream.write_all(&chunks)?;
            chunks.clear();
        }
        rest = after;
    }
    stream.write_all(&chunks)
}

pub(crate) fn write_status(stream: &mut TcpStream, status: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    // Short waits: what is waited for is tested elsewhere.
    let wait = if status == 429 { "retry-after-ms: 50\r\n" } else { "" };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} Answer\r\ncontent-type: application/json\r\n{wait}content-length: {length}\r\n\r\n");
    stream.write_all((head + &body).as_bytes())
}

/// The next request, head and body; `None` when the client has closed the connection.
pub(crate) fn read_request(stream: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<Option<String>> {
    let mut buffer = [0; READ_BYTES];
    loop {
        let head_end = pending.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head_end) = head_end {
            let head = String::from_utf8_lossy(&pending[..head_end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let end = head_end + length.unwrap_or(0_usize);
            if pending.len() >= end {
                let request: Vec<u8> = pending.drain(..end).collect();
                return Ok(Some(String::from_utf8_lossy(&request).into_owned()));
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(None),
            n => pending.extend_from_slice(&buffer[..n]),
        }
    }
}
