//! What answers a listener whose endpoint cannot or must not run: always the same few bytes.
//!
//! HTTP 400 with one plain sentence: Codex shows the body of a 400 verbatim and stops, whereas it would retry a 503
//! for half a minute and then blame the provider, and wait for ever in front of a listener that nobody serves.
//!
//! A request is read to its end before it is answered (within bounds): closing a socket with unread bytes resets the
//! connection, and then the client would see the reset instead of the sentence.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use codex_control::guests::Guests;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tracing::warn;

/// Connections answered at the same time. For one more, that one is closed which has taken longest to ask: a client
/// that asks at once is answered however many connections say nothing.
const CONNECTIONS_MAX: usize = 64;
/// Time for one connection, from its first byte to its last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Time a client gets to close after the answer.
const LINGER: Duration = Duration::from_secs(1);
/// Longest request head that is read.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Longest body that is read and thrown away: the largest a worker accepts by default.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Pause after a failed accept: the process has no descriptors left, trying again at once would only burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// A running stand-in. Dropping it stops accepting; connections already accepted still get their answer.
#[derive(Debug)]
pub(crate) struct StandIn {
    sentence: String,
    _stop: oneshot::Sender<()>,
}

impl StandIn {
    /// Answers every connection to `listener` with `sentence`, until dropped.
    pub(crate) fn start(listener: &TcpListener, sentence: String) -> io::Result<Self> {
        let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        let (stop, stopped) = oneshot::channel();
        // The task owns itself: it ends when `stop` is dropped, at the latest CONNECTION_TIMEOUT and LINGER later.
        tokio::spawn(accept(listener, answer(&sentence).into(), stopped, CONNECTION_TIMEOUT));
        Ok(Self { sentence, _stop: stop })
    }

    /// What it says.
    pub(crate) fn sentence(&self) -> &str {
        &self.sentence
    }
}

fn answer(sentence: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{sentence}",
        sentence.len()
    )
    .into_bytes()
}

async fn accept(
    listener: tokio::net::TcpListener,
    answer: Arc<[u8]>,
    mut stopped: oneshot::Receiver<()>,
    timeout: Duration,
) {
    let guests = Guests::default();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased; // once told to stop, nothing more is taken away from the worker that comes
            _ = &mut stopped => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (answer, guest) = (answer.clone(), guests.admit());
                connections.spawn(async move {
                    tokio::select! {
                        // A client that goes away or dawdles has only itself to blame.
                        _ = tokio::time::timeout(timeout, refuse(stream, &answer)) => {}
                        () = guest.sent_away() => {}
                    }
                });
                if connections.len() > CONNECTIONS_MAX {
                    guests.send_longest_away();
                    // Whoever it is that has ended, the others get a turn to be heard before the next one comes.
                    connections.join_next().await;
                }
            }
            Err(error) => {
                warn!(%error, "a connection cannot be accepted");
                guests.send_longest_away();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn refuse(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    read_request(&mut stream).await?;
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    let mut rest = vec![0; CHUNK_BYTES];
    let linger = async { while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(LINGER, linger).await;
    Ok(())
}

/// Reads a request's head and body and forgets them.
async fn read_request(stream: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let head_end = loop {
        let read = stream.read(&mut chunk).await?;
        head.extend_from_slice(&chunk[..read]);
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if read == 0 || head.len() > HEAD_BYTES_MAX {
            return Ok(()); // no request, but the sentence fits that, too
        }
    };
    let mut left = match body_length(&head[..head_end]) {
        BodyLength::Known(length) => length.min(BODY_BYTES_MAX).saturating_sub((head.len() - head_end) as u64),
        BodyLength::Chunked => {
            let mut tail = head.split_off(head_end);
            let mut read_total = 0;
            while !tail.ends_with(b"0\r\n\r\n") && read_total < BODY_BYTES_MAX {
                let read = stream.read(&mut chunk).await?;
                if read == 0 {
                    break;
                }
                read_total += read as u64;
                tail.extend_from_slice(&chunk[..read]);
                tail.drain(..tail.len().saturating_sub(LAST_CHUNK_BYTES));
            }
            0
        }
    };
    while left > 0 {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            break;
        }
        left = left.saturating_sub(read as u64);
    }
    Ok(())
}

/// Length of the chunk that ends a chunked body, `0\r\n\r\n`.
const LAST_CHUNK_BYTES: usize = 5;

enum BodyLength {
    Known(u64),
    Chunked,
}

fn body_length(head: &[u8]) -> BodyLength {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let field = |name: &str| {
        head.lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.trim())
    };
    if field("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        return BodyLength::Chunked;
    }
    BodyLength::Known(field("content-length").and_then(|value| value.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// Longest wait for what comes in the end.
    const PATIENCE: Duration = Duration::from_mins(1);
    const SENTENCE: &str = "endpoint `zai` is stopped; start it with `codexctl start zai`";

    fn listening() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn every_request_gets_the_sentence_whole() {
        let (listener, address) = listening();
        let _stand_in = StandIn::start(&listener, SENTENCE.to_owned()).unwrap();
        let large = vec![b'x'; 3 * 1024 * 1024];
        let mut sized =
            format!("POST /v1/responses HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", large.len()).into_bytes();
        sized.extend_from_slice(&large);
        let mut chunked =
            format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n", large.len()).into_bytes();
        chunked.extend_from_slice(&large);
        chunked.extend_from_slice(b"\r\n0\r\n\r\n");
        for request in [&b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n"[..], &sized, &chunked] {
            let answer = ask(address, request).await;
            assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain"), "{answer}");
            assert!(
                answer.ends_with(&format!("content-length: {}\r\nconnection: close\r\n\r\n{SENTENCE}", SENTENCE.len()))
            );
        }
    }

    #[tokio::test]
    async fn the_answer_comes_when_the_request_is_whole() {
        let (listener, address) = listening();
        let _stand_in = StandIn::start(&listener, SENTENCE.to_owned()).unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 8\r\n\r\nhalf").await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(200), stream.readable()).await;
        assert!(early.is_err(), "some clients take an answer in the middle of their body for a broken connection");
        stream.write_all(b"half").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with(SENTENCE), "{answer}");
    }

    #[tokio::test]
    async fn when_it_goes_connections_wait_for_the_worker() {
        let (listener, address) = listening();
        let stand_in = StandIn::start(&listener, SENTENCE.to_owned()).unwrap();
        assert!(ask(address, b"GET / HTTP/1.1\r\n\r\n").await.contains(SENTENCE));
        drop(stand_in);
        // The stand-in's task sees the end of its channel before anything else that is ready.
        tokio::task::yield_now().await;
        let mut waiting = TcpStream::connect(address).await.unwrap();
        waiting.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let worker = tokio::net::TcpListener::from_std(listener).unwrap();
        let (mut accepted, _) = tokio::time::timeout(PATIENCE, worker.accept()).await.unwrap().unwrap();
        let mut request = [0; 4];
        accepted.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"GET ");
    }

    #[tokio::test]
    async fn who_asks_is_answered_however_many_say_nothing() {
        let (listener, address) = listening();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (_stop, stopped) = oneshot::channel();
        // Who waited for the silent ones to be let go would wait for longer than the answer is waited for.
        tokio::spawn(accept(listener, answer(SENTENCE).into(), stopped, 2 * PATIENCE));
        let mut silent = Vec::new();
        for _ in 0..3 * CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(ask(address, b"GET / HTTP/1.1\r\n\r\n").await.ends_with(SENTENCE));
    }

    #[tokio::test]
    async fn a_client_that_dawdles_is_let_go() {
        let (listener, address) = listening();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (stop, stopped) = oneshot::channel();
        let timeout = Duration::from_millis(50);
        let accepting = tokio::spawn(accept(listener, answer(SENTENCE).into(), stopped, timeout));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "the connection stays open");
        assert_eq!(answer, b"");
        drop(stop);
        tokio::time::timeout(PATIENCE, accepting).await.unwrap().unwrap();
    }
}
