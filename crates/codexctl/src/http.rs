//! One request to a worker on loopback: HTTP/1.1 without TLS, one connection a request, everything bounded.
//!
//! A general client would bring a runtime and start slower than the whole command takes.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use codex_control::Secret;

/// Largest answer: a catalog of a thousand models with their instructions.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest head of an answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// The body, whole.
    pub(crate) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum HttpError {
    /// The connection failed.
    Io(io::Error),
    /// The answer is not HTTP, or ends too early.
    Malformed(&'static str),
    /// The answer is larger than it may be.
    TooLarge,
    /// There was no whole answer in time.
    Timeout,
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Malformed(what) => f.write_str(what),
            Self::TooLarge => write!(f, "the answer is larger than {ANSWER_BYTES_MAX} bytes"),
            Self::Timeout => f.write_str("there was no answer in time"),
        }
    }
}

impl From<io::Error> for HttpError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Io(error),
        }
    }
}

/// Asks `address` for `path`, showing `token`.
pub(crate) fn get(address: SocketAddr, path: &str, token: &Secret, timeout: Duration) -> Result<Answer, HttpError> {
    ask(address, "GET", path, token, b"", timeout)
}

/// Sends a request with a JSON body, or an empty one, showing `token`.
pub(crate) fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: &Secret,
    body: &[u8],
    timeout: Duration,
) -> Result<Answer, HttpError> {
    let deadline = Instant::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_write_timeout(Some(timeout))?;
    // The request holds the token: it is written and forgotten, never kept or shown.
    let request = Secret::new(format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\naccept: application/json\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        token.expose(),
        body.len()
    ));
    stream.write_all(request.expose().as_bytes())?;
    stream.write_all(body)?;
    let mut received = Vec::new();
    let mut chunk = vec![0; READ_BYTES];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(HttpError::Timeout);
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            // We asked for the connection to be closed, so its end is the end of the answer.
            Ok(0) => return parse(&received),
            Ok(n) => received.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        if received.len() > ANSWER_BYTES_MAX {
            return Err(HttpError::TooLarge);
        }
    }
}

/// Reads a whole answer: `content-length`, chunks, or up to the end.
fn parse(received: &[u8]) -> Result<Answer, HttpError> {
    let head_end = received.windows(4).take(HEAD_BYTES_MAX).position(|window| window == b"\r\n\r\n");
    let head_end = head_end.ok_or(HttpError::Malformed("the answer has no head"))?;
    let head =
        std::str::from_utf8(&received[..head_end]).map_err(|_| HttpError::Malformed("the answer is not HTTP"))?;
    let body = &received[head_end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .filter(|line| line.starts_with("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or(HttpError::Malformed("the answer is not HTTP"))?;
    let header = |name: &str| {
        lines.clone().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let body = if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        unchunked(body)?
    } else if let Some(length) = header("content-length") {
        let length: usize = length.parse().map_err(|_| HttpError::Malformed("the answer has a bad length"))?;
        body.get(..length).ok_or(HttpError::Malformed("the answer was cut off"))?.to_vec()
    } else {
        body.to_vec()
    };
    Ok(Answer { status, body })
}

fn unchunked(mut rest: &[u8]) -> Result<Vec<u8>, HttpError> {
    const CUT: HttpError = HttpError::Malformed("the answer was cut off");
    let mut body = Vec::new();
    loop {
        let line_end = rest.windows(2).position(|window| window == b"\r\n").ok_or(CUT)?;
        let size = std::str::from_utf8(&rest[..line_end]).ok().and_then(|line| {
            let digits = line.split(';').next().unwrap_or_default().trim();
            usize::from_str_radix(digits, 16).ok()
        });
        let size = size.ok_or(HttpError::Malformed("the answer has a bad chunk"))?;
        rest = &rest[line_end + 2..];
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(rest.get(..size).ok_or(CUT)?);
        rest = rest.get(size..).and_then(|rest| rest.strip_prefix(b"\r\n")).ok_or(CUT)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(received: &str) -> Result<String, String> {
        parse(received.as_bytes())
            .map(|answer| format!("{} {}", answer.status, String::from_utf8(answer.body).unwrap()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn answers_are_read_in_every_framing() {
        for (received, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", Ok("200 ab")),
            ("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", Ok("401 ")),
            ("HTTP/1.0 200 OK\r\n\r\nall of it", Ok("200 all of it")),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
                Ok("200 abc0123456789"),
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", Err("the answer was cut off")),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", Err("the answer was cut off")),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n", Err("the answer has a bad chunk")),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nabc\r\n",
                Err("the answer was cut off"),
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", Err("the answer has a bad length")),
            ("SSH-2.0-OpenSSH\r\n\r\n", Err("the answer is not HTTP")),
            ("", Err("the answer has no head")),
        ] {
            assert_eq!(body(received), expected.map(str::to_owned).map_err(str::to_owned), "{received}");
        }
    }
}
