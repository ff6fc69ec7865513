//! Who notices: streams that are open all the time, connections that are made again and again, and short requests.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use e2e::http;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::HUNG;

/// Longest wait for anything: whatever takes longer hangs for good.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Longest silence of a stream: longer than anything is frozen.
const STREAM_PATIENCE: Duration = Duration::from_mins(3);
/// Pause between two connections of a [`Knocker`]: those of a one-second gap still fit into the listener's backlog.
const KNOCK_INTERVAL: Duration = Duration::from_millis(2);
/// Pause between two short requests of one client.
const REQUEST_INTERVAL: Duration = Duration::from_millis(5);

/// The body of a request whose last message is `text`.
fn body(text: &str) -> String {
    json!({ "model": "scripted", "stream": true, "input": text }).to_string()
}

/// Streams that are open at the same time.
pub(crate) struct Streams {
    runtime: tokio::runtime::Runtime,
    address: SocketAddr,
    token: String,
    counts: Arc<Counts>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    flowing: AtomicUsize,
    complete: AtomicUsize,
    failed: AtomicUsize,
    cut: AtomicUsize,
    disordered: AtomicUsize,
    events: AtomicUsize,
}

impl Streams {
    /// None yet.
    pub(crate) fn new(address: SocketAddr, token: String) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { runtime, address, token, counts: Arc::default(), tasks: Vec::new() })
    }

    /// Opens so many more and waits until each has said something.
    pub(crate) fn open(&mut self, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            let (address, token, counts) = (self.address, self.token.clone(), Arc::clone(&self.counts));
            self.tasks.push(self.runtime.spawn(async move {
                if follow(address, &token, &counts).await.is_err() {
                    counts.cut.fetch_add(1, Relaxed);
                }
            }));
        }
        wait(&format!("{count} streams to flow"), || {
            let counts = &self.counts;
            let ended = counts.complete.load(Relaxed) + counts.failed.load(Relaxed) + counts.cut.load(Relaxed);
            (counts.flowing.load(Relaxed) + ended >= self.tasks.len()).then_some(())
        })
    }

    /// How many did not end as they should.
    pub(crate) fn broken(&self) -> usize {
        let Counts { failed, cut, disordered, .. } = &*self.counts;
        failed.load(Relaxed) + cut.load(Relaxed) + disordered.load(Relaxed)
    }

    /// How many were cut without a terminal event.
    pub(crate) fn cut(&self) -> usize {
        self.counts.cut.load(Relaxed)
    }

    /// How many were opened.
    pub(crate) fn opened(&self) -> usize {
        self.tasks.len()
    }

    /// Waits until all have ended, well or not; gives the number of events they had.
    pub(crate) fn finish(&self) -> anyhow::Result<usize> {
        wait("all streams to end", || self.tasks.iter().all(tokio::task::JoinHandle::is_finished).then_some(()))?;
        Ok(self.counts.events.load(Relaxed))
    }
}

/// Reads one stream to its end and looks at every event.
async fn follow(address: SocketAddr, token: &str, counts: &Counts) -> io::Result<()> {
    let body = body("Drip.");
    let head = format!(
        "POST /v1/responses HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\naccept: text/event-stream\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all((head + &body).as_bytes()).await?;
    let (mut pending, mut next, mut is_flowing) = (Vec::new(), 0_u64, false);
    loop {
        if tokio::time::timeout(STREAM_PATIENCE, stream.read_buf(&mut pending)).await?? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let Some(event) = line.strip_prefix(b"data: ") else { continue };
            let event: serde_json::Value = serde_json::from_slice(event).unwrap_or_default();
            counts.events.fetch_add(1, Relaxed);
            if event["sequence_number"]
                .as_u64()
                .is_some_and(|number| number != std::mem::replace(&mut next, number + 1))
            {
                counts.disordered.fetch_add(1, Relaxed);
            }
            match event["type"].as_str() {
                Some("response.output_text.delta") if !std::mem::replace(&mut is_flowing, true) => {
                    counts.flowing.fetch_add(1, Relaxed);
                }
                Some("response.completed") => {
                    counts.complete.fetch_add(1, Relaxed);
                    return Ok(());
                }
                Some("response.failed" | "response.incomplete") => {
                    counts.failed.fetch_add(1, Relaxed);
                    return Ok(());
                }
                _ => {}
            }
        }
    }
}

/// Connects again and again: nobody may ever be refused.
pub(crate) struct Knocker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Knocks>,
}

/// What a knocker has seen.
#[derive(Default)]
pub(crate) struct Knocks {
    pub(crate) connected: usize,
    pub(crate) refused: usize,
}

impl Knocker {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut knocks = Knocks::default();
                while !stop.load(Relaxed) {
                    match TcpStream::connect_timeout(&address, PATIENCE) {
                        Ok(_) => knocks.connected += 1,
                        Err(_) => knocks.refused += 1,
                    }
                    thread::park_timeout(KNOCK_INTERVAL);
                }
                knocks
            }
        });
        Self { stop, thread }
    }

    pub(crate) fn finish(self) -> Knocks {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("a knocker does not panic")
    }
}

/// Short requests, one after the other, by several clients.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    n_answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Asked>>,
}

/// What came of them.
#[derive(Default)]
pub(crate) struct Asked {
    /// Answered whole.
    pub(crate) answered: usize,
    /// Cut in the middle, as when its worker is killed.
    pub(crate) cut: usize,
    /// Nobody listened.
    pub(crate) refused: usize,
    /// Answered with something else than 200.
    pub(crate) odd: usize,
    /// Of all of them, those that took longer than [`HUNG`].
    pub(crate) hung: usize,
    /// The longest that one took.
    pub(crate) longest: Duration,
}

impl Load {
    pub(crate) fn start(address: SocketAddr, token: &str, clients: usize) -> Self {
        let (stop, n_answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let ask = |_| {
            let (stop, n_answered, token) = (Arc::clone(&stop), Arc::clone(&n_answered), token.to_owned());
            thread::spawn(move || {
                let mut asked = Asked::default();
                while !stop.load(Relaxed) {
                    let before = asked.answered;
                    asked.ask(address, &token);
                    n_answered.fetch_add(asked.answered - before, Relaxed);
                    thread::park_timeout(REQUEST_INTERVAL);
                }
                asked
            })
        };
        let threads = (0..clients).map(ask).collect();
        Self { stop, n_answered, threads }
    }

    /// How many were answered whole so far.
    pub(crate) fn n_answered(&self) -> usize {
        self.n_answered.load(Relaxed)
    }

    pub(crate) fn finish(self) -> Asked {
        self.stop.store(true, Relaxed);
        let mut sum = Asked::default();
        for thread in self.threads {
            let asked = thread.join().expect("a client does not panic");
            sum.answered += asked.answered;
            sum.cut += asked.cut;
            sum.refused += asked.refused;
            sum.odd += asked.odd;
            sum.hung += asked.hung;
            sum.longest = sum.longest.max(asked.longest);
        }
        sum
    }
}

impl Asked {
    fn ask(&mut self, address: SocketAddr, token: &str) {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let begin = Instant::now();
        match http::request(address, "POST", "/v1/responses", &headers, body("Load.").as_bytes()) {
            Ok(answer) if answer.status == 200 && answer.text().contains("response.completed") => self.answered += 1,
            Ok(answer) => {
                eprintln!("an odd answer: {} {}", answer.status, answer.text());
                self.odd += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.refused += 1,
            Err(_) => self.cut += 1,
        }
        let took = begin.elapsed();
        self.hung += usize::from(took > HUNG);
        self.longest = self.longest.max(took);
    }
}

/// Asks for `GET /health` until it is answered; connections that are cut meanwhile are made again.
pub(crate) fn healthy(address: SocketAddr) -> anyhow::Result<()> {
    wait("an answer to GET /health", || knock_for_health(address).ok().filter(|answered| *answered).map(drop))
}

fn knock_for_health(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET /health HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(answer == *b"HTTP/1.1 200")
}

/// Looks until there is something.
pub(crate) fn wait<T>(what: &str, look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    e2e::until::try_until(PATIENCE, look).ok_or_else(|| anyhow::anyhow!("waited {PATIENCE:?} in vain for {what}"))
}
