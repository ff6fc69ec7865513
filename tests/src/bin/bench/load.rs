//! Requests, how long their first word takes, and whether their answer is right.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use codex_translate::checker;
use e2e::http;

use crate::provider::Script;

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(20);
/// Read at once.
const READ_BYTES: usize = 16 * 1024;
/// What ends a chunked body.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";
/// Requests that an open loop has under way at most; one that finds no client free counts as late.
const OPEN_LOOP_CLIENTS: usize = 32;

/// What a server speaks.
#[derive(Clone, Copy)]
enum Shape {
    /// Chat Completions.
    Chat,
    /// Responses.
    Responses,
}

/// A request, ready to be sent again and again, and the answer it must get.
pub(crate) struct Route {
    address: SocketAddr,
    bytes: Vec<u8>,
    shape: Shape,
    script: Script,
}

impl Route {
    /// To a provider, or to what stands before it.
    pub(crate) fn chat(address: SocketAddr, script: Script, body: &[u8]) -> Self {
        Self::new(address, "/v1/chat/completions", "none", body, Shape::Chat, script)
    }

    /// To a worker.
    pub(crate) fn responses(address: SocketAddr, token: &str, script: Script, body: &[u8]) -> Self {
        Self::new(address, "/v1/responses", token, body, Shape::Responses, script)
    }

    fn new(address: SocketAddr, path: &str, token: &str, body: &[u8], shape: Shape, script: Script) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\naccept: text/event-stream\r\ncontent-type: application/json\r\nuser-agent: bench\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Self { address, bytes: [head.as_bytes(), body].concat(), shape, script }
    }

    /// Sends it on a connection of its own, as Codex does, and checks the whole answer; gives the time from connecting
    /// to the first delta.
    pub(crate) fn send(&self) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        let (mut stream, mut answer) = self.first_delta()?;
        let elapsed = begin.elapsed();
        while !answer.ends_with(LAST_CHUNK) {
            read(&mut stream, &mut answer)?;
        }
        drop(stream);
        self.check(&answer)?;
        Ok(elapsed)
    }

    /// Sends it and reads up to the first delta.
    pub(crate) fn hold(&self) -> anyhow::Result<TcpStream> {
        Ok(self.first_delta()?.0)
    }

    fn first_delta(&self) -> anyhow::Result<(TcpStream, Vec<u8>)> {
        let mark: &[u8] = match self.shape {
            Shape::Chat => b"\"content\":\"",
            Shape::Responses => b"response.output_text.delta",
        };
        let mut stream = TcpStream::connect_timeout(&self.address, DEADLINE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.write_all(&self.bytes)?;
        let mut answer = Vec::with_capacity(READ_BYTES);
        while !answer.windows(mark.len()).any(|window| window == mark) {
            read(&mut stream, &mut answer)?;
        }
        Ok((stream, answer))
    }

    fn check(&self, answer: &[u8]) -> anyhow::Result<()> {
        let answer = http::parse(answer).context("no HTTP answer")?;
        ensure!(answer.status == 200, "HTTP {}: {}", answer.status, answer.text());
        match self.shape {
            Shape::Chat => {
                let n_deltas = answer.body.windows(11).filter(|window| window == b"\"content\":\"").count();
                ensure!(n_deltas == self.script.deltas(), "{n_deltas} deltas instead of {}", self.script.deltas());
                ensure!(answer.body.ends_with(b"data: [DONE]\n\n"), "the answer is cut off");
            }
            Shape::Responses => {
                let transcript = checker::check(&answer.body).map_err(anyhow::Error::msg)?;
                ensure!(transcript.text == self.script.text(), "the text is another one: {:.200}", transcript.text);
                let status = transcript.terminal.map(|terminal| terminal.status);
                ensure!(status.as_deref() == Some("completed"), "the answer ended with {status:?}");
            }
        }
        Ok(())
    }
}

fn read(stream: &mut TcpStream, answer: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut buffer = [0; READ_BYTES];
    let read = stream.read(&mut buffer)?;
    if read == 0 {
        let error = anyhow::Error::new(io::Error::from(io::ErrorKind::UnexpectedEof));
        return Err(error.context(format!("the answer was {:.500}", String::from_utf8_lossy(answer))));
    }
    answer.extend_from_slice(&buffer[..read]);
    Ok(())
}

/// Times of many requests, every one kept: a percentile is exact.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The time that `percent` of all do not exceed.
    pub(crate) fn percentile(&mut self, percent: usize) -> Duration {
        self.0.sort_unstable();
        let place = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(place).copied().unwrap_or_default()
    }
}

/// A closed loop: `n_clients` send one request after the other until all `count` are answered.
pub(crate) fn closed_loop(route: &Route, n_clients: usize, count: u32) -> anyhow::Result<()> {
    run(n_clients, count, |_| route.send().map(drop))
}

/// An open loop: requests are sent at a fixed rate whatever has become of those before, and each is timed from the
/// moment it was due, so that a stall is felt by all that should have been sent meanwhile.
pub(crate) fn open_loop(route: &Route, rate_per_s: u32, count: u32, times: &mut Times) -> anyhow::Result<()> {
    let begin = Instant::now();
    let all = Mutex::new(times);
    run(OPEN_LOOP_CLIENTS, count, |number| {
        let due = begin + Duration::from_secs(1) * number / rate_per_s;
        sleep_until(due);
        let late = due.elapsed();
        let time = route.send()?;
        all.lock().expect("nothing panics while it is held").add(late + time);
        Ok(())
    })
}

/// Waits for a moment, for load that keeps a rate.
#[expect(clippy::disallowed_methods, reason = "a rate is made of moments; there is no condition to wait for")]
pub(crate) fn sleep_until(due: Instant) {
    thread::sleep(due.saturating_duration_since(Instant::now()));
}

/// Has `n_clients` take the numbers from 0 to `count`; ends with the first error.
fn run(n_clients: usize, count: u32, send: impl Fn(u32) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let next = AtomicU32::new(0);
    let client = || -> anyhow::Result<()> {
        loop {
            let number = next.fetch_add(1, Relaxed);
            if number >= count {
                return Ok(());
            }
            send(number).inspect_err(|_| next.store(count, Relaxed))?;
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..n_clients).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client does not panic"))
    })
}
