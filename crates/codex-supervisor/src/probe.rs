//! The health probe: a real request through the endpoint's real listener.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Most bytes of an answer that are read: the report is a few hundred.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The connection failed.
    #[error("the connection failed")]
    Connection(#[source] std::io::Error),
    /// It answered something else than 200.
    #[error("it answered `{0}`")]
    Status(String),
}

/// Asks `address` for `GET /health` and waits for the whole answer, at most `timeout`.
pub(crate) async fn probe(address: SocketAddr, timeout: Duration) -> Result<(), ProbeError> {
    let answer = match tokio::time::timeout(timeout, ask(address)).await {
        Ok(answer) => answer.map_err(ProbeError::Connection)?,
        Err(_) => return Err(ProbeError::Timeout(timeout)),
    };
    judge(&answer)
}

async fn ask(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = format!("GET /health HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn judge(answer: &[u8]) -> Result<(), ProbeError> {
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    if line.starts_with(b"HTTP/1.1 200 ") {
        Ok(())
    } else {
        Err(ProbeError::Status(String::from_utf8_lossy(line).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn answering(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            let expected = format!("GET /health HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
            assert_eq!(String::from_utf8_lossy(&request[..read]), expected);
            stream.write_all(answer).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn only_a_200_is_health() {
        let timeout = Duration::from_mins(1);
        let good = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        assert!(probe(good, timeout).await.is_ok());
        let bad = answering(b"HTTP/1.1 500 Internal Server Error\r\n\r\n").await;
        assert_eq!(
            probe(bad, timeout).await.unwrap_err().to_string(),
            "it answered `HTTP/1.1 500 Internal Server Error`"
        );
        let nothing = answering(b"").await;
        assert!(matches!(probe(nothing, timeout).await, Err(ProbeError::Status(_))));
    }

    #[tokio::test]
    async fn silence_and_refusal_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(matches!(probe(address, Duration::from_millis(20)).await, Err(ProbeError::Timeout(_))));
        drop(listener);
        assert!(matches!(probe(address, Duration::from_mins(1)).await, Err(ProbeError::Connection(_))));
    }
}
