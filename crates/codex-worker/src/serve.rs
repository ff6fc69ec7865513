//! The listener: accepting, bounding and draining connections.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, bail};
use codex_control::descriptors;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::door::Door;
use crate::route;
use crate::worker::Worker;

/// Time a client may take to send the head of a request, idle time between two requests included. Codex sends it at
/// once; who drips it keeps a guest's place meanwhile, and not even that when others come.
const HEAD_TIMEOUT: Duration = Duration::from_mins(1);
/// Most header lines of a request; Codex sends about twenty.
const HEADERS_MAX: usize = 128;
/// Largest head of a request, and the read buffer: Codex's turn metadata is a few kilobytes.
const HEAD_BYTES_MAX: usize = 256 * 1024;
/// Pause after an `accept` that failed for want of descriptors or memory, before the next try: a guest that was sent
/// away has given its descriptor back by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time the first request of a new connection has to arrive while the worker drains.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(2);
/// Time the last bytes of ended streams get to leave, beyond the drain's own deadline.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Room for a request in the kernel, of a connection: with what the kernel begins with, 64 KiB, a client that sends a long
/// conversation and we wake each other for every piece of it. Beyond the machine's own limit (`net.core.rmem_max`) the
/// kernel gives less.
const RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;

/// Begins once and is seen by everyone who holds a clone: stop accepting, end by the deadline.
#[derive(Clone)]
pub(crate) struct Drain(watch::Sender<Option<Instant>>);

impl Drain {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Begins, or brings the deadline nearer.
    pub(crate) fn begin(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.0.send_if_modified(|current| match current {
            Some(earlier) if *earlier <= deadline => false,
            _ => {
                *current = Some(deadline);
                true
            }
        });
    }

    /// Whether it has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits for the beginning.
    pub(crate) async fn begun(&self) {
        // The sender lives in `self`, so the channel cannot close.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits for the deadline.
    pub(crate) async fn expired(&self) {
        let mut deadlines = self.0.subscribe();
        loop {
            let deadline = *deadlines.borrow_and_update();
            let expiry = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = expiry => return,
                _ = deadlines.changed() => {}
            }
        }
    }
}

/// The listener passed as standard input, or a new one at `address`. Nobody waits for its connections yet.
pub(crate) fn listener(address: Option<SocketAddr>) -> anyhow::Result<StdListener> {
    let listener = match address {
        Some(address) if !address.ip().is_loopback() => {
            bail!("`{address}` is reachable from other machines; listen on a loopback address, e.g. 127.0.0.1:0")
        }
        Some(address) => StdListener::bind(address).with_context(|| format!("cannot listen on {address}"))?,
        None => {
            let inherited =
                StdListener::from(io::stdin().as_fd().try_clone_to_owned().context("cannot use standard input")?);
            inherited.local_addr().context("standard input is no listening socket; give `--listen 127.0.0.1:0`")?;
            inherited
        }
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts and serves until `drain` begins, then until the last connection has ended or the deadline has passed.
pub(crate) async fn run(worker: Arc<Worker>, listener: TcpListener, drain: Drain) {
    prepare(&listener);
    let door = Arc::new(Door::new(worker.endpoint.limits.connections_max, descriptors::raise_limit()));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.begun() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (worker, inside, drain) = (Arc::clone(&worker), Arc::clone(&door), drain.clone());
                connections.spawn(async move { connection(worker, &inside, stream, drain).await });
                if door.is_crowded() {
                    tokio::task::yield_now().await;
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                door.make_room();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        // Streams end themselves at the deadline; this is for those whose client does not read.
        () = async { drain.expired().await; tokio::time::sleep(FLUSH_TIMEOUT).await } => {}
    }
}

/// What each connection takes over from its listener.
fn prepare(listener: &TcpListener) {
    // Without it the kernel holds small events back for the client's acknowledgement, up to 40 ms each.
    let prepared = sockopt::set_tcp_nodelay(listener, true)
        .and_then(|()| sockopt::set_socket_recv_buffer_size(listener, RECEIVE_BUFFER_BYTES));
    if let Err(error) = prepared {
        tracing::warn!(%error, "connections are not as fast as they could be");
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

async fn connection(worker: Arc<Worker>, door: &Door, stream: TcpStream, drain: Drain) {
    let _present = worker.metrics.connection();
    let visitor = door.admit();
    let (has_asked, first_request) = (AtomicBool::new(false), Notify::new());
    let service = service_fn(|request| {
        if !has_asked.swap(true, Relaxed) {
            first_request.notify_one();
        }
        let (worker, drain) = (Arc::clone(&worker), drain.clone());
        let visitor = &visitor;
        // hyper keeps the room of this future as long as the connection lives: a box is gone with the head of the answer.
        Box::pin(async move { Ok::<_, Infallible>(route::answer(&worker, visitor, request, drain).await) })
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    // Pinned where it is made: a name of its own before that would be room for a second one in each connection's task.
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = drain.begun() => {
            // A graceful shutdown would close a connection whose first request has not been read yet, and whoever has
            // connected to this worker can be answered by no other.
            let first = tokio::time::timeout(FIRST_REQUEST_WITHIN, first_request.notified());
            tokio::select! {
                ended = &mut connection => ended,
                _ = first => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
        () = visitor.sent_away() => {
            tracing::debug!("a silent connection made room for another");
            return;
        }
    };
    if let Err(error) = ended {
        // A client that goes away is no event for a person; the turn's own report says what was lost.
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Calls `stop` for each SIGTERM and SIGINT, as long as it is polled. Ends only when there can be no signals.
pub(crate) async fn on_stop_signals(stop: impl Fn()) -> io::Error {
    let signals = signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = match signals {
        Ok(signals) => signals,
        Err(error) => return error,
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop();
    }
}

/// Waits until serving has ended. The stop signals are obeyed all the time: a worker that drains already gets less
/// time by one, and may have nobody else left to tell it.
///
/// # Errors
/// When serving has not ended but broken. Nobody accepts any more, and a process that exits is replaced at once.
pub(crate) async fn until_served(
    serving: JoinHandle<()>,
    stopping: impl Future<Output = io::Error>,
) -> anyhow::Result<()> {
    tokio::select! {
        ended = serving => ended.context("the worker has stopped accepting connections"),
        error = stopping => Err(error).context("the worker cannot be told to stop"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_accepted_sends_at_once_and_has_room_for_a_request() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        prepare(&listener);
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (connected, accepted) = tokio::join!(connecting, listener.accept());
        let accepted = accepted.unwrap().0;
        assert!(accepted.nodelay().unwrap());
        let room = |stream: &TcpStream| sockopt::socket_recv_buffer_size(stream).unwrap();
        // What is asked for is a machine's to grant; all grant more than they begin with.
        assert!(room(&accepted) > room(&connected.unwrap()), "{}", room(&accepted));
    }

    #[tokio::test]
    async fn a_worker_that_no_longer_accepts_ends() {
        let broken = tokio::spawn(async { panic!("played by the test") });
        let error = until_served(broken, std::future::pending()).await.unwrap_err();
        assert_eq!(error.to_string(), "the worker has stopped accepting connections");
        until_served(tokio::spawn(async {}), std::future::pending()).await.unwrap();
    }
}
