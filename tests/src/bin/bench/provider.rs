//! A Chat Completions provider that thinks about nothing: what it answers is chosen by the model it is asked for.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use e2e::requests;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::load;

/// A kind of answer, which is the name of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    /// The head and the first delta at once, the rest of a short answer directly behind it.
    Short,
    /// A long answer, as fast as it is taken.
    Burst,
    /// Each event in a write of its own, one in [`PACE`].
    Paced,
    /// The first delta, then silence until the client goes.
    Held,
}

/// Text deltas in a short answer.
const SHORT_DELTAS: usize = 20;
/// Text deltas in a burst: long enough that the request does not count.
const BURST_DELTAS: usize = 20_000;
/// Text deltas in a paced answer: half a second.
const PACED_DELTAS: usize = 5_000;
/// Time between two events of a paced answer.
const PACE: Duration = Duration::from_micros(100);

const FIRST_WORD: &str = "first ";
const WORD: &str = "more ";

impl Script {
    const ALL: [Self; 4] = [Self::Short, Self::Burst, Self::Paced, Self::Held];

    /// The model that gives this answer.
    pub(crate) fn model(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Burst => "burst",
            Self::Paced => "paced",
            Self::Held => "held",
        }
    }

    /// Deltas with text.
    pub(crate) fn deltas(self) -> usize {
        match self {
            Self::Short => SHORT_DELTAS,
            Self::Burst => BURST_DELTAS,
            Self::Paced => PACED_DELTAS,
            Self::Held => 1,
        }
    }

    /// The text of the whole answer.
    pub(crate) fn text(self) -> String {
        FIRST_WORD.to_owned() + &WORD.repeat(self.deltas() - 1)
    }

    /// What `body` asks for.
    fn of(body: &[u8]) -> Self {
        const MARK: &[u8] = b"\"model\":\"";
        let model = body.windows(MARK.len()).position(|window| window == MARK).map(|at| &body[at + MARK.len()..]);
        let is_asked = |script: &Self| {
            model
                .and_then(|rest| rest.strip_prefix(script.model().as_bytes()))
                .is_some_and(|rest| rest.first() == Some(&b'"'))
        };
        Self::ALL.into_iter().find(is_asked).unwrap_or(Self::Short)
    }
}

/// What all connections share.
struct Provider {
    short: [Vec<u8>; 2],
    burst: Vec<u8>,
    /// The next body is to be kept.
    is_recording: AtomicBool,
    recorded: Mutex<Vec<u8>>,
}

/// Serves the listener passed as stdin until it is killed.
///
/// `GET /record` has the body of the next request kept, `GET /recorded` gives it.
pub(crate) fn run() -> anyhow::Result<()> {
    let listener = std::net::TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let short = rest(Script::Short).concat();
    let provider = Arc::new(Provider {
        short: [first(), short],
        burst: [first(), rest(Script::Burst).concat()].concat(),
        is_recording: AtomicBool::new(false),
        recorded: Mutex::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let provider = Arc::clone(&provider);
            tokio::spawn(async move {
                // A client that goes away ends its connection, and that is all.
                let _ = serve(stream, &provider).await;
            });
        }
    })
}

async fn serve(mut stream: TcpStream, provider: &Provider) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut pending = Vec::new();
    while let Some(request) = requests::next(&mut stream, &mut pending).await? {
        let head = &request.head;
        if head.starts_with("get ") {
            let body = if head.starts_with("get /recorded ") {
                provider.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone()
            } else if head.starts_with("get /record ") {
                provider.is_recording.store(true, Relaxed);
                std::mem::take(&mut *provider.recorded.lock().unwrap_or_else(PoisonError::into_inner))
            } else {
                br#"{"object":"list","data":[{"id":"short","object":"model"}]}"#.to_vec()
            };
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.as_bytes(), &body].concat()).await?;
        } else {
            if provider.is_recording.swap(false, Relaxed) {
                *provider.recorded.lock().unwrap_or_else(PoisonError::into_inner) = request.body().to_vec();
            }
            match Script::of(request.body()) {
                Script::Short => {
                    stream.write_all(&provider.short[0]).await?;
                    stream.write_all(&provider.short[1]).await?;
                }
                Script::Burst => stream.write_all(&provider.burst).await?,
                Script::Held => stream.write_all(&first()).await?,
                Script::Paced => stream = paced(stream).await?,
            }
        }
        if head.contains("connection: close") {
            break;
        }
    }
    Ok(())
}

/// Writes a paced answer from a thread of its own: the runtime's clock ticks in milliseconds.
async fn paced(stream: TcpStream) -> std::io::Result<TcpStream> {
    let mut stream = stream.into_std()?;
    let written = tokio::task::spawn_blocking(move || {
        stream.set_nonblocking(false)?;
        stream.write_all(&first())?;
        let mut due = Instant::now();
        for event in rest(Script::Paced) {
            due += PACE;
            // What is late is not waited for, so that the rate is kept whatever a sleep takes.
            load::sleep_until(due);
            stream.write_all(&event)?;
        }
        stream.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(stream)
    });
    TcpStream::from_std(written.await.map_err(std::io::Error::other)??)
}

fn event(delta: &str, finish: &str, usage: &str) -> Vec<u8> {
    let data = format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"scripted\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]{usage}}}\n\n"
    );
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

/// The head of an answer and its first delta.
fn first() -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let delta = format!(r#"{{"role":"assistant","content":"{FIRST_WORD}"}}"#);
    [head.as_bytes(), &event(&delta, "null", "")].concat()
}

/// All further events, one HTTP chunk each, and the end of the body.
fn rest(script: Script) -> Vec<Vec<u8>> {
    let word = event(&format!(r#"{{"content":"{WORD}"}}"#), "null", "");
    let usage = r#","usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120}"#;
    let mut events = vec![word; script.deltas() - 1];
    events.push(event("{}", "\"stop\"", usage));
    events.push(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n".to_vec());
    events
}
