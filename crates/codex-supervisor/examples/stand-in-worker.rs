//! Plays a worker in the supervisor's own tests: speaks the worker socket, serves a few paths, talks to no provider.
//!
//! | path | answer |
//! |---|---|
//! | `/health` | 200 and its generation (500 when it plays `sick`) |
//! | `/stream/N` | N lines, one every 20 ms; then a `Finished` report |
//! | `/outlast/N` | lines until its worker is to end, and N more |
//! | `/heartbeat` | 200 once it has sent its next heartbeat |
//! | `/finish/N` | N `Finished` reports at once |
//! | `/signal/NAME/VALUE/TIMES` | reports that signal so many times |
//! | `/exit/CODE` | none: it ends with that exit code |
//! | `/leak/N` | from now on it uses N MiB more every second |
//!
//! What else it plays is said by its endpoint's `name`: `crash` ends before it is ready, `sick` fails its health
//! probes, `keyless` reports a problem, `stubborn` never ends by itself, `silent` answers nothing but its health probes,
//! `leak N` uses N MiB more every second, `of other version` speaks another version from its second Hello on, as one
//! does whose supervisor was upgraded. The endpoint `other-version` has a worker program that never speaks any other.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use codex_control::EndpointId;
use codex_control::incident::{Observation, Signal};
use codex_control::ipc::frame::WorkerCodec;
use codex_control::ipc::{
    Assignment, Counters, FromWorker, HEARTBEAT_INTERVAL, HELLO_TIMEOUT, Hello, Problem, RequestOutcome, RequestReport,
    ToWorker, VERSION, frame,
};
use codex_control::process;
use futures_util::{SinkExt, StreamExt};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio_util::codec::Framed;

type Socket = Framed<UnixStream, WorkerCodec>;

/// What a worker of another version says: nobody knows more of it than its beginning.
#[derive(serde::Serialize)]
enum OtherVersion<'a> {
    Hello { version: u16, endpoint: &'a EndpointId, generation: u64, news: [u8; 7] },
}

/// A frame that means nothing in any version.
const UNREADABLE: [u8; 8] = [0, 0, 0, 4, 0xff, 0xfe, 0xfd, 0xfc];

/// What the connections share with the conversation.
struct Shared {
    role: String,
    endpoint: EndpointId,
    generation: u64,
    is_draining: Cell<bool>,
    n_open: Cell<usize>,
    reports: mpsc::UnboundedSender<FromWorker>,
    beaten: Notify,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, run())
}

async fn run() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name).expect("an argument");
        arguments[at + 1].clone()
    };
    println!("stand-in started, generation {}", value("--generation"));
    let listener: OwnedFd = io::stdin().as_fd().try_clone_to_owned().expect("a listener");
    let address =
        std::net::TcpListener::from(listener.try_clone().expect("a duplicate")).local_addr().expect("an address");
    let mut hello = Hello {
        version: VERSION,
        endpoint: value("--endpoint-id").parse().expect("an id"),
        generation: value("--generation").parse().expect("a number"),
        identity: process::own_identity().expect("an identity"),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        serving: None,
    };
    let path = value("--supervisor");
    if hello.endpoint.as_str() == "other-version" {
        hello.version += 1;
    }
    let Some((mut socket, first)) = dial(&path, &hello, &listener).await else { return ExitCode::FAILURE };
    let ToWorker::Assignment(assignment) = first else { return ExitCode::SUCCESS };
    let Assignment { endpoint, .. } = *assignment;
    if endpoint.name == "crash" {
        return ExitCode::from(3);
    }
    let (reports, mut outgoing) = mpsc::unbounded_channel();
    let shared = Rc::new(Shared {
        role: endpoint.name,
        endpoint: endpoint.id.clone(),
        generation: hello.generation,
        is_draining: Cell::new(false),
        n_open: Cell::new(0),
        reports,
        beaten: Notify::new(),
    });
    let problem = (shared.role == "keyless").then(|| Problem {
        message: format!("endpoint `{}` has no key", endpoint.id),
        hint: Some("store one".to_owned()),
    });
    if let Some(mib_s) = shared.role.strip_prefix("leak ") {
        tokio::task::spawn_local(leak(mib_s.parse().expect("a number")));
    }
    let accepting = tokio::task::spawn_local(accept(listener.try_clone().expect("a duplicate"), shared.clone()));
    hello.serving = Some(address);
    hello.version += u16::from(shared.role == "of other version");
    loop {
        let ended = converse(&mut socket, &shared, address, problem.clone(), &mut outgoing, &accepting).await;
        if ended {
            return ExitCode::SUCCESS;
        }
        socket = loop {
            match tokio::time::timeout(HELLO_TIMEOUT, dial(&path, &hello, &listener)).await.ok().flatten() {
                Some((socket, ToWorker::Assignment(_))) => break socket,
                Some((socket, ToWorker::Drain { .. })) => {
                    drain(&shared, &accepting);
                    break socket;
                }
                Some(_) => return ExitCode::SUCCESS,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
    }
}

/// Dials, says Hello with the listener, and returns the first message.
async fn dial(path: &str, hello: &Hello, listener: &OwnedFd) -> Option<(Socket, ToWorker)> {
    let stream = UnixStream::connect(path).await.ok()?;
    let payload = if hello.version == VERSION {
        frame::encode(&FromWorker::Hello(hello.clone())).ok()?
    } else {
        let Hello { version, ref endpoint, generation, .. } = *hello;
        frame::encode(&OtherVersion::Hello { version, endpoint, generation, news: [0xff; 7] }).ok()?
    };
    let bytes = [&u32::try_from(payload.len()).ok()?.to_be_bytes()[..], &payload].concat();
    let send_hello = || {
        let descriptors = [listener.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if hello.serving.is_some() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let n_sent = rustix::net::sendmsg(&stream, &[io::IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(n_sent)
    };
    let sent = stream.async_io(Interest::WRITABLE, send_hello).await.ok()?;
    assert_eq!(sent, bytes.len(), "a Hello fits any socket buffer");
    let mut socket = Framed::new(stream, WorkerCodec::default());
    let first = socket.next().await?.ok()?;
    if hello.version != VERSION {
        assert!(matches!(first, ToWorker::Drain { .. }), "a worker of another version is told nothing else");
        socket.get_mut().write_all(&UNREADABLE).await.ok()?;
    }
    Some((socket, first))
}

/// Says what there is to say until the socket breaks (false) or the drain is done (true).
async fn converse(
    socket: &mut Socket,
    shared: &Rc<Shared>,
    address: SocketAddr,
    problem: Option<Problem>,
    outgoing: &mut mpsc::UnboundedReceiver<FromWorker>,
    accepting: &tokio::task::JoinHandle<()>,
) -> bool {
    for message in [FromWorker::Ready { address }, FromWorker::Problem(problem)] {
        if socket.send(message).await.is_err() {
            return false;
        }
    }
    let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("signals");
    loop {
        let message = tokio::select! {
            _ = heartbeat.tick() => FromWorker::Heartbeat(Counters::default()),
            Some(report) = outgoing.recv() => report,
            received = socket.next() => match received {
                Some(Ok(ToWorker::Drain { .. })) => {
                    drain(shared, accepting);
                    continue;
                }
                Some(Ok(ToWorker::Assignment(_))) => continue,
                Some(Ok(order @ (ToWorker::ForgetLearned | ToWorker::RetryNow | ToWorker::RenewKey { .. }))) => {
                    println!("told {order:?}"); // to the worker's log, where a test finds it
                    continue;
                }
                _ => return false,
            },
            _ = terminated.recv() => {
                drain(shared, accepting);
                continue;
            }
            _ = look.tick() => {
                if shared.is_draining.get() && shared.n_open.get() == 0 && outgoing.is_empty() {
                    let _ = socket.send(FromWorker::Drained).await;
                    return true;
                }
                continue;
            }
        };
        let is_heartbeat = matches!(message, FromWorker::Heartbeat(_));
        if socket.send(message).await.is_err() {
            return false;
        }
        if is_heartbeat {
            shared.beaten.notify_waiters();
        }
    }
}

fn drain(shared: &Rc<Shared>, accepting: &tokio::task::JoinHandle<()>) {
    if shared.role != "stubborn" {
        accepting.abort();
        shared.is_draining.set(true);
    }
}

/// Uses so much more memory every second, however seldom it gets to it.
async fn leak(mib_s: usize) {
    const MIB: usize = 1024 * 1024;
    let (begin, mut leaked) = (std::time::Instant::now(), Vec::new());
    loop {
        let due_mib = usize::try_from(begin.elapsed().as_millis()).expect("a test is short") * mib_s / 1000;
        while leaked.len() < due_mib {
            leaked.push(vec![1_u8; MIB]);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn accept(listener: OwnedFd, shared: Rc<Shared>) {
    let listener = TcpListener::from_std(listener.into()).expect("a listener");
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        shared.n_open.set(shared.n_open.get() + 1);
        tokio::task::spawn_local(async move {
            let _ = answer(stream, &shared).await;
            shared.n_open.set(shared.n_open.get() - 1);
        });
    }
}

async fn answer(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    if path == "/v1/responses" {
        println!("asked"); // to the worker's log, where a test finds it
    }
    if path == "/heartbeat" {
        shared.beaten.notified().await;
    }
    if shared.role == "silent" && path != "/health" {
        std::future::pending::<()>().await;
    }
    let status = if shared.role == "sick" { "500 Internal Server Error" } else { "200 OK" };
    stream.write_all(format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    if let Some(n_lines) = path.strip_prefix("/stream/").and_then(|count| count.parse::<u32>().ok()) {
        for line in 0..n_lines {
            stream.write_all(format!("{line} of generation {}\n", shared.generation).as_bytes()).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = shared.reports.send(FromWorker::Finished(Box::new(report())));
    } else if let Some(more) = path.strip_prefix("/outlast/").and_then(|count| count.parse::<u32>().ok()) {
        let mut left = more;
        for line in 0_u32.. {
            left -= u32::from(shared.is_draining.get());
            let end = if left == 0 { "the end" } else { "more" };
            stream.write_all(format!("{line} of generation {}, {end}\n", shared.generation).as_bytes()).await?;
            if left == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    } else if let Some(times) = path.strip_prefix("/finish/").and_then(|times| times.parse::<u32>().ok()) {
        for _ in 0..times {
            let _ = shared.reports.send(FromWorker::Finished(Box::new(report())));
        }
    } else if let Some(code) = path.strip_prefix("/exit/").and_then(|code| code.parse().ok()) {
        crash(code);
    } else if let Some(mib_s) = path.strip_prefix("/leak/").and_then(|mib_s| mib_s.parse().ok()) {
        tokio::task::spawn_local(leak(mib_s));
    } else if let Some(seen) = path.strip_prefix("/signal/") {
        // `/signal/NAME/VALUE/TIMES`
        let mut parts = seen.split('/');
        let what: Option<Observation> = parts.next().and_then(|name| name.parse().ok());
        let mut number = || parts.next().and_then(|number| number.parse::<u64>().ok());
        let (value, times) = (number(), number().unwrap_or(1));
        let signal = Signal { value, ..Signal::of(what.expect("a name"), &shared.endpoint) };
        for _ in 0..times {
            let _ = shared.reports.send(FromWorker::Signals(vec![signal.clone()]));
        }
    } else {
        stream.write_all(format!("generation {}\n", shared.generation).as_bytes()).await?;
    }
    stream.shutdown().await
}

/// Ends as a program does that has met a mistake of its own.
#[expect(clippy::disallowed_methods, reason = "nothing is to be cleaned up by a worker that crashes")]
fn crash(code: i32) -> ! {
    std::process::exit(code)
}

fn report() -> RequestReport {
    RequestReport {
        request: "r1".to_owned(),
        model: "m".to_owned(),
        upstream_model: "m".to_owned(),
        status: 200,
        outcome: RequestOutcome::Completed,
        failure: None,
        message: None,
        attempts: 1,
        request_bytes: 0,
        first_event_ms: Some(1),
        elapsed_ms: 2,
        // Now, give or take: nobody looks closer.
        ended_at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() * 1000),
        input_tokens: None,
        output_tokens: None,
        cached_tokens: None,
        reasoning_tokens: None,
    }
}
