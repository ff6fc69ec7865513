//! The conversation with the supervisor, and the life of a supervised worker.
//!
//! ```text
//! dial ─► Hello ─► Assignment ─► serve, Ready ─► reports and heartbeats ─► Drain ─► Drained, exit
//!   ▲                                                   │
//!   └──────── pause ◄──────── the socket broke ◄────────┘      serving goes on meanwhile
//! ```

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use codex_control::endpoint::CredentialSource;
use codex_control::ipc::frame::{self, WorkerCodec};
use codex_control::ipc::{
    Assignment, FromWorker, HEARTBEAT_INTERVAL, HELLO_TIMEOUT, Hello, REPORTS_QUEUED_MAX, RequestOutcome, ToWorker,
    VERSION,
};
use codex_control::process;
use codex_control::tables::Tables;
use futures_util::{SinkExt, StreamExt};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::Interest;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::codec::Framed;

use crate::arguments::Supervision;
use crate::serve::{self, Drain};
use crate::worker::Worker;

/// Pause before dialling again after the socket broke; doubled up to [`REDIAL_PAUSE_MAX`].
const REDIAL_PAUSE: Duration = Duration::from_millis(25);
/// Longest pause between two dials: a supervisor that is back must find its workers at once. A dial in vain costs a
/// few microseconds.
const REDIAL_PAUSE_MAX: Duration = Duration::from_millis(100);
/// A failure is in the supervisor's counters this much later at most; so many failures at once make one heartbeat.
const NEWS_WITHIN: Duration = Duration::from_millis(20);
/// A worker that has neither a supervisor nor a request for this long ends itself: nobody is left to end it.
const ORPHANED_MAX: Duration = Duration::from_mins(10);
/// Time for the first conversation, before anything is served.
const FIRST_CONTACT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a missing key is looked for.
const KEY_RECHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time open streams get after a signal; what they are told at its end arrives within five seconds.
const STOP_TIMEOUT: Duration = Duration::from_millis(4_500);

type Socket = Framed<UnixStream, WorkerCodec>;

/// Serves as the supervisor says until it, or a signal, ends it.
pub(crate) async fn run_supervised(supervision: Supervision) -> anyhow::Result<()> {
    let identity = process::own_identity().context("cannot find out who this process is")?;
    let hello = Hello {
        version: VERSION,
        endpoint: supervision.endpoint,
        generation: supervision.generation,
        identity,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        serving: None,
    };
    let listener = serve::listener(supervision.listen)?;
    let address = listener.local_addr()?;
    // A second descriptor of the same socket, to give back to a supervisor that has lost its own.
    let spare = listener.as_fd().try_clone_to_owned()?;
    let first_contact = async {
        let mut socket = Framed::new(UnixStream::connect(&supervision.socket).await?, WorkerCodec::default());
        socket.send(FromWorker::Hello(hello.clone())).await?;
        match socket.next().await {
            Some(Ok(ToWorker::Assignment(assignment))) => Ok(Some((socket, assignment))),
            Some(Ok(ToWorker::Drain { .. })) => Ok(None),
            Some(Ok(ToWorker::ForgetLearned | ToWorker::RetryNow | ToWorker::RenewKey { .. })) => {
                bail!("the supervisor gives orders too early")
            }
            Some(Err(error)) => Err(anyhow::Error::from(error)),
            None => bail!("the supervisor does not want this worker"),
        }
    };
    let contact = tokio::time::timeout(FIRST_CONTACT_TIMEOUT, first_contact)
        .await
        .context("the supervisor does not answer")?
        .with_context(|| format!("no assignment over `{}`", supervision.socket.display()))?;
    let Some((socket, assignment)) = contact else {
        return Ok(());
    };
    let (reports, outgoing) = mpsc::channel(REPORTS_QUEUED_MAX);
    let worker = prepare(*assignment, address, reports)?;
    if !matches!(worker.credential.source(), CredentialSource::Command(_)) {
        // Files are read at once, so that the first word about this endpoint is a true one; a program may take its time.
        look_for_key(&worker).await;
    }
    worker.looked_at_facts();
    let drain = Drain::new();
    // Only now: until it has its assignment, connections are to wake the worker before it, not this one.
    let listener = TcpListener::from_std(listener)?;
    let serving = tokio::spawn(serve::run(Arc::clone(&worker), listener, drain.clone()));
    let warm_up = tokio::spawn({
        let worker = Arc::clone(&worker);
        async move {
            warm_up(&worker).await;
            worker.watch_sign_in().await;
        }
    });
    let hello = Hello { serving: Some(address), ..hello };
    let link = Link {
        worker,
        hello,
        spare: Some(spare),
        outgoing,
        unsent: None,
        drain: drain.clone(),
        path: supervision.socket,
    };
    let talking = tokio::spawn(link.run(socket, address));
    serve::until_served(serving, serve::on_stop_signals(|| drain.begin(STOP_TIMEOUT))).await?;
    warm_up.abort();
    // The link says Drained by itself when serving has ended; it is not waited for longer than a Hello may take.
    let _ = tokio::time::timeout(HELLO_TIMEOUT, talking).await;
    Ok(())
}

fn prepare(
    assignment: Assignment,
    address: SocketAddr,
    reports: mpsc::Sender<FromWorker>,
) -> anyhow::Result<Arc<Worker>> {
    let (tables, problems) = Tables::load_from(&assignment.config_folder);
    for problem in problems {
        tracing::warn!(error = %problem, "a table was left out");
    }
    Ok(Worker::new(assignment, tables, address, reports)?)
}

/// What can be done before the first request: the key is looked at, certificates and the model list are read.
async fn warm_up(worker: &Worker) {
    worker.upstream.prepare().await;
    while !look_for_key(worker).await {
        tokio::time::sleep(KEY_RECHECK_INTERVAL).await;
    }
}

/// Whether there is a key; tells the supervisor if that has changed.
async fn look_for_key(worker: &Worker) -> bool {
    let problem = worker.credential.get().await.err().map(|error| error.problem(worker.credential.source()));
    let is_there = problem.is_none();
    worker.set_problem(problem);
    is_there
}

struct Link {
    worker: Arc<Worker>,
    hello: Hello,
    /// The listener once more, to give back to a supervisor that has lost its own.
    spare: Option<OwnedFd>,
    outgoing: mpsc::Receiver<FromWorker>,
    /// Taken from the queue when the socket broke: goes out first over the next one.
    unsent: Option<FromWorker>,
    drain: Drain,
    path: std::path::PathBuf,
}

enum Broken {
    /// Dial again.
    Socket,
    /// All is said.
    Done,
}

impl Link {
    async fn run(mut self, socket: Socket, address: SocketAddr) {
        let mut socket = Some(socket);
        let mut pause = REDIAL_PAUSE;
        let mut solitude = Solitude { since: Instant::now() };
        loop {
            if let Some(connected) = socket.take() {
                pause = REDIAL_PAUSE;
                if let Broken::Done = self.talk(connected, address).await {
                    return;
                }
                solitude = Solitude { since: Instant::now() };
                tracing::warn!("the supervisor is gone; serving goes on");
            }
            if self.drain.has_begun() {
                return;
            }
            if solitude.is_over(Instant::now(), self.worker.metrics.requests_active()) {
                tracing::warn!("no supervisor and no request for a long time; this worker ends");
                self.drain.begin(STOP_TIMEOUT);
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.drain.begun() => return,
            }
            pause = (pause * 2).min(REDIAL_PAUSE_MAX);
            let Some(spare) = &self.spare else { return };
            let answered = tokio::time::timeout(HELLO_TIMEOUT, redial(&self.path, &self.hello, spare)).await;
            if let Ok(Ok((connected, first))) = answered {
                if let ToWorker::Drain { deadline_ms } = first {
                    self.drain(deadline_ms);
                }
                socket = Some(connected);
            }
        }
    }

    fn drain(&mut self, deadline_ms: u64) {
        // Nobody is to connect to a socket on which nobody accepts.
        self.spare = None;
        self.drain.begin(Duration::from_millis(deadline_ms));
    }

    /// Talks over one connection until it breaks or the worker has drained.
    async fn talk(&mut self, mut socket: Socket, address: SocketAddr) -> Broken {
        if socket.send(FromWorker::Ready { address }).await.is_err() {
            return Broken::Socket;
        }
        // Always said once: the supervisor takes an endpoint for usable only when it knows that nothing is in the way.
        if socket.send(FromWorker::Problem(self.worker.problem())).await.is_err() {
            return Broken::Socket;
        }
        if let Some(report) = self.unsent.take()
            && socket.send(report.clone()).await.is_err()
        {
            self.unsent = Some(report);
            return Broken::Socket;
        }
        let mut heartbeat_at = Instant::now();
        loop {
            let message = tokio::select! {
                () = tokio::time::sleep_until(heartbeat_at) => {
                    heartbeat_at = Instant::now() + HEARTBEAT_INTERVAL;
                    FromWorker::Heartbeat(self.worker.metrics.snapshot())
                }
                report = self.outgoing.recv() => match report {
                    Some(report) => {
                        if is_news(&report) {
                            heartbeat_at = heartbeat_at.min(Instant::now() + NEWS_WITHIN);
                        }
                        self.unsent = Some(report.clone());
                        report
                    }
                    None => return Broken::Done,
                },
                received = socket.next() => match received {
                    Some(Ok(ToWorker::Drain { deadline_ms })) => {
                        self.drain(deadline_ms);
                        continue;
                    }
                    // After a reconnection: what is served already.
                    Some(Ok(ToWorker::Assignment(_))) => continue,
                    Some(Ok(ToWorker::ForgetLearned)) => {
                        let n_forgotten = self.worker.learned.begin_anew() + self.worker.states.forget_refused();
                        tracing::info!(n_forgotten, "what was learned about the provider is forgotten");
                        self.worker.looked_at_facts();
                        continue;
                    }
                    Some(Ok(ToWorker::RetryNow)) => {
                        self.worker.retry_now.notify_waiters();
                        continue;
                    }
                    Some(Ok(ToWorker::RenewKey { action })) => {
                        let worker = Arc::clone(&self.worker);
                        // Ends with the program that prints the key, which has a deadline.
                        tokio::spawn(async move {
                            let outcome = worker.renew_key().await;
                            worker.report(FromWorker::CarriedOut { action, outcome });
                        });
                        continue;
                    }
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the supervisor said something unreadable");
                        return Broken::Socket;
                    }
                    None => return Broken::Socket,
                },
                () = drained(&self.worker, &self.drain) => {
                    while let Ok(report) = self.outgoing.try_recv() {
                        if socket.feed(report).await.is_err() {
                            return Broken::Done;
                        }
                    }
                    let _ = socket.send(FromWorker::Drained).await; // the exit of this process says it, too
                    return Broken::Done;
                }
            };
            if socket.send(message).await.is_err() {
                return Broken::Socket;
            }
            self.unsent = None;
        }
    }
}

/// Whether a person who looks at the status is to see it at once: a request that did not go as it should.
fn is_news(report: &FromWorker) -> bool {
    matches!(report, FromWorker::Finished(report) if !matches!(report.outcome, RequestOutcome::Completed | RequestOutcome::Cancelled))
}

/// How long a worker has been without a supervisor and without work.
struct Solitude {
    since: Instant,
}

impl Solitude {
    /// Whether that is [`ORPHANED_MAX`].
    fn is_over(&mut self, now: Instant, requests_active: u64) -> bool {
        if requests_active > 0 {
            self.since = now;
        }
        now.saturating_duration_since(self.since) >= ORPHANED_MAX
    }
}

/// Waits until a drain has begun and the last request has ended, or the deadline has passed.
async fn drained(worker: &Worker, drain: &Drain) {
    /// How often the number of running requests is looked at.
    const LOOK_INTERVAL: Duration = Duration::from_millis(20);
    drain.begun().await;
    let quiet = async {
        while worker.metrics.requests_active() > 0 {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    tokio::select! {
        () = quiet => {}
        () = drain.expired() => {}
    }
}

/// Connects anew. The listener goes along with the first byte of the Hello, for a supervisor that has lost its own.
async fn redial(path: &Path, hello: &Hello, listener: &OwnedFd) -> anyhow::Result<(Socket, ToWorker)> {
    let stream = UnixStream::connect(path).await?;
    let payload = frame::encode(&FromWorker::Hello(hello.clone()))?;
    let mut bytes = u32::try_from(payload.len())?.to_be_bytes().to_vec();
    bytes.extend_from_slice(&payload);
    let mut sent = stream
        .async_io(Interest::WRITABLE, || {
            let descriptors = [listener.as_fd()];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::Error::other("no room for a descriptor"));
            }
            Ok(rustix::net::sendmsg(&stream, &[io::IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
        })
        .await?;
    while sent < bytes.len() {
        stream.writable().await?;
        match stream.try_write(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut socket = Framed::new(stream, WorkerCodec::default());
    match socket.next().await {
        Some(Ok(first)) => Ok((socket, first)),
        Some(Err(error)) => Err(error.into()),
        None => bail!("the supervisor does not know this worker"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_nobody_needs_ends_and_one_that_works_does_not() {
        let start = Instant::now();
        let mut solitude = Solitude { since: start };
        let almost = start + ORPHANED_MAX.checked_sub(Duration::from_secs(1)).unwrap();
        assert!(!solitude.is_over(almost, 0));
        assert!(!solitude.is_over(almost, 1), "a request counts");
        assert!(!solitude.is_over(start + ORPHANED_MAX, 0));
        assert!(!solitude.is_over(almost + ORPHANED_MAX * 3, 1));
        assert!(solitude.is_over(almost + ORPHANED_MAX * 4, 0));
    }
}
