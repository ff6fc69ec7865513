//! A plain blocking HTTP/1.1 client: says exactly what it is told to, wrong things included.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest wait for a connection, for room to write, and for bytes to read.
const DEADLINE: Duration = Duration::from_secs(20);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Lower-case names and values.
    pub headers: Vec<(String, String)>,
    /// Body, with chunked encoding undone.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Sends one request on a connection of its own and reads the whole answer.
///
/// # Errors
/// When the connection fails; a body that the server did not want to read is no error if it answered.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let (stream, written) = send(address, method, path, headers, body)?;
    let mut raw = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut raw);
    if let Some(answer) = parse(&raw) {
        return Ok(answer);
    }
    written?;
    read?;
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP answer: {:?}", String::from_utf8_lossy(&raw))))
}

/// Sends one request on a connection of its own, which ends after the answer. The answer is the caller's to read; whether
/// all of the body was written stands beside it, since a server may refuse before it has read everything and close.
///
/// # Errors
/// When there is no connection.
pub fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<(TcpStream, io::Result<()>)> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        let _ = write!(head, "content-length: {}\r\n", body.len()); // writing to a String cannot fail
    }
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let written = stream.write_all(body);
    Ok((stream, written))
}

/// Reads an answer that has arrived whole; `None` when it is none or a part of it is missing.
pub fn parse(raw: &[u8]) -> Option<Answer> {
    let head_end = raw.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&raw[..head_end]).ok()?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let chunked =
        headers.iter().any(|(name, value)| name == "transfer-encoding" && value.eq_ignore_ascii_case("chunked"));
    let body = &raw[head_end + 4..];
    let body = if chunked { unchunk(body)? } else { body.to_vec() };
    Some(Answer { status, headers, body })
}

/// Undoes chunked encoding; `None` when the last chunk is missing.
fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line_end]).ok()?.trim(), 16).ok()?;
        rest = &rest[line_end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_in_both_framings() {
        let plain = parse(b"HTTP/1.1 404 Not Found\r\nX-A: 1\r\n\r\nbody").unwrap();
        assert_eq!((plain.status, plain.header("x-a"), plain.text()), (404, Some("1"), "body".to_owned()));
        let chunked =
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n").unwrap();
        assert_eq!(chunked.text(), "abcd");
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab"), None);
        assert_eq!(parse(b"garbage"), None);
    }
}
