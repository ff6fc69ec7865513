//! HTTP/1.1 requests as a provider reads them that is written for a measurement, with nothing in between.

use std::io;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// What a chunked body ends with.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// A request that has arrived whole.
pub struct Request {
    /// Its first line and its headers, in lower case.
    pub head: String,
    bytes: Vec<u8>,
    head_end: usize,
}

impl Request {
    /// Its body, as it came over the connection: a chunked one with its chunks' sizes.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.head_end..]
    }
}

/// Reads the next request from `stream`; `pending` holds what has arrived beyond it. `None` when the client has gone.
///
/// # Errors
/// When the connection fails.
pub async fn next(stream: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let head_end = loop {
        if let Some(at) = pending.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(pending).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&pending[..head_end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let is_chunked = head.contains("transfer-encoding: chunked");
    let end = head_end + length.unwrap_or_default();
    pending.reserve(end.saturating_sub(pending.len()));
    while if is_chunked { !pending.ends_with(LAST_CHUNK) } else { pending.len() < end } {
        if stream.read_buf(pending).await? == 0 {
            return Ok(None);
        }
    }
    let beyond = pending.split_off(if is_chunked { pending.len() } else { end });
    Ok(Some(Request { head, bytes: std::mem::replace(pending, beyond), head_end }))
}
