//! A Chat Completions provider that answers at once and thinks about nothing.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Text deltas in an answer.
const DELTAS: usize = 20;

/// Serves the listener passed as stdin until it is killed.
pub(crate) fn run() -> anyhow::Result<()> {
    let listener = std::net::TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let last = Arc::new(Mutex::new(Vec::new()));
        loop {
            let (stream, _) = listener.accept().await?;
            let last = Arc::clone(&last);
            tokio::spawn(async move {
                // A client that goes away ends its connection, and that is all.
                let _ = serve(stream, &last).await;
            });
        }
    })
}

async fn serve(mut stream: TcpStream, last: &Mutex<Vec<u8>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (first, rest) = answer();
    let mut pending = Vec::with_capacity(64 * 1024);
    loop {
        let head_end = loop {
            if let Some(at) = pending.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut pending).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&pending[..head_end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let end = if head.contains("transfer-encoding: chunked") {
            loop {
                if pending.ends_with(b"\r\n0\r\n\r\n") {
                    break pending.len();
                }
                if stream.read_buf(&mut pending).await? == 0 {
                    return Ok(());
                }
            }
        } else {
            head_end + length.unwrap_or_default()
        };
        while pending.len() < end {
            if stream.read_buf(&mut pending).await? == 0 {
                return Ok(());
            }
        }
        if head.starts_with("get /last ") {
            let body = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
            stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes()).await?;
            stream.write_all(&body).await?;
        } else if head.starts_with("get ") {
            let body = r#"{"object":"list","data":[{"id":"scripted","object":"model"}]}"#;
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await?;
        } else {
            stream.write_all(&first).await?;
            stream.write_all(&rest).await?;
            last.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&pending[head_end..end].to_vec());
        }
        if head.contains("connection: close") {
            return Ok(());
        }
        pending.drain(..end);
    }
}

/// The answer in two writes: head and first delta, then the rest.
fn answer() -> (Vec<u8>, Vec<u8>) {
    let chunk = |delta: &str, finish: &str, usage: &str| {
        let data = format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"scripted\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]{usage}}}\n\n"
        );
        format!("{:x}\r\n{data}\r\n", data.len())
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let first = format!("{head}{}", chunk(r#"{"role":"assistant","content":"first "}"#, "null", ""));
    let mut rest = chunk(r#"{"content":"more "}"#, "null", "").repeat(DELTAS - 1);
    rest += &chunk("{}", "\"stop\"", r#","usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120}"#);
    rest += "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    (first.into_bytes(), rest.into_bytes())
}
