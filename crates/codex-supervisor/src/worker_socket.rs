//! The worker socket: where workers dial in, say who they are, and report.
//!
//! Whether a Hello is believed is for the owner to decide; here only the user is checked and frames are read. A worker
//! that comes back after its supervisor's end hands over the listener it serves, as ancillary data of its first bytes.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use codex_control::ipc::frame::{self, FrameError, SupervisorCodec};
use codex_control::ipc::{FromWorker, HELLO_TIMEOUT, ToWorker, VERSION};
use codex_control::settings::ENDPOINTS_MAX;
use futures_util::{SinkExt, StreamExt};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::codec::{Decoder, Framed, FramedParts, LengthDelimitedCodec};
use tracing::{debug, warn};

use crate::control;
use crate::event::{Connected, Event, Introduction, MESSAGES_TO_WORKER_MAX, Queue, WorkerId};

/// Connections at the same time: two workers per endpoint during a hand-over, and some that are about to be refused.
const CONNECTIONS_MAX: usize = 2 * ENDPOINTS_MAX + 16;
/// Time a worker has to take a message.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept: the process has no descriptors left, trying again at once would only burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes read at once while waiting for the Hello, which is a few hundred.
const CHUNK_BYTES: usize = 4096;
/// Descriptors looked for in one message; a worker sends one.
const DESCRIPTORS_MAX: usize = 4;

/// Why a connection ended before its Hello was read.
#[derive(Debug, thiserror::Error)]
enum HelloError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the connection was closed")]
    Closed,
    #[error("the first message was no Hello")]
    Other,
    #[error("no Hello within {} s", HELLO_TIMEOUT.as_secs())]
    Timeout,
}

/// Binds the worker socket at `path`, private; what lies there is ours, since we hold the lock.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    control::make_private(path)?;
    Ok(listener)
}

/// Accepts workers until the runtime ends.
pub(crate) async fn serve(listener: UnixListener, queue: Queue) {
    let own_uid = rustix::process::geteuid().as_raw();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    for connection in 0_u64.. {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a worker cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let peer_pid = match stream.peer_cred() {
            Ok(peer) if peer.uid() == own_uid => peer.pid().and_then(|pid| u32::try_from(pid).ok()),
            Ok(peer) => {
                warn!(uid = peer.uid(), "a process of another user was sent away from the worker socket");
                continue;
            }
            Err(error) => {
                warn!(%error, "a process that cannot be identified was sent away from the worker socket");
                continue;
            }
        };
        let queue = queue.clone();
        // The task ends with its connection; the owner closes one by dropping its outbox.
        drop(tokio::spawn(async move {
            if let Err(error) = converse(stream, peer_pid, connection, queue).await {
                warn!(worker_pid = peer_pid, %error, "a connection to the worker socket was dropped");
            }
            drop(slot);
        }));
    }
}

async fn converse(stream: UnixStream, peer_pid: Option<u32>, connection: u64, queue: Queue) -> Result<(), HelloError> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, read_hello(&stream)).await.map_err(|_| HelloError::Timeout)??;
    let First { worker, hello, listener, rest } = first;
    let is_other = matches!(hello, Introduction::Other { .. });
    let (outbox, messages) = mpsc::channel::<ToWorker>(MESSAGES_TO_WORKER_MAX);
    let connected = Connected { worker: worker.clone(), hello, peer_pid, listener, connection, outbox };
    if queue.send(Event::WorkerConnected(connected)).await.is_err() {
        return Ok(()); // the owner has ended, and so does this
    }
    if is_other {
        let mut parts = FramedParts::new::<Bytes>(stream, frame::lengths());
        parts.read_buf = rest;
        attend(Framed::from_parts(parts), messages, &worker).await;
    } else {
        let mut parts = FramedParts::new::<ToWorker>(stream, SupervisorCodec::default());
        parts.read_buf = rest;
        talk(Framed::from_parts(parts), messages, &worker, peer_pid, connection, &queue).await;
    }
    let _ = queue.send(Event::WorkerDisconnected { worker, connection }).await; // fails only when the owner has ended
    Ok(())
}

/// A worker of our own version: what it says is passed on, what there is to tell it is told.
async fn talk(
    mut frames: Framed<UnixStream, SupervisorCodec>,
    mut messages: mpsc::Receiver<ToWorker>,
    worker: &WorkerId,
    peer_pid: Option<u32>,
    connection: u64,
    queue: &Queue,
) {
    loop {
        tokio::select! {
            frame = frames.next() => match frame {
                Some(Ok(message)) => {
                    let event = Event::WorkerMessage { worker: worker.clone(), connection, message };
                    if queue.send(event).await.is_err() {
                        return;
                    }
                }
                Some(Err(error)) => {
                    warn!(endpoint = %worker.endpoint, worker_pid = peer_pid, %error, "a worker sends what cannot be read");
                    return;
                }
                None => return,
            },
            message = messages.recv() => {
                let Some(message) = message else { return };
                match tokio::time::timeout(SEND_TIMEOUT, frames.send(message)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        debug!(endpoint = %worker.endpoint, worker_pid = peer_pid, %error, "a worker's connection broke");
                        return;
                    }
                    Err(_) => {
                        warn!(endpoint = %worker.endpoint, worker_pid = peer_pid, "a worker does not take its messages");
                        return;
                    }
                }
            }
        }
    }
}

/// A worker of another version: nothing that it says is understood, and all it is told is to drain.
async fn attend(
    mut frames: Framed<UnixStream, LengthDelimitedCodec>,
    mut messages: mpsc::Receiver<ToWorker>,
    worker: &WorkerId,
) {
    loop {
        tokio::select! {
            frame = frames.next() => match frame {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return, // it dials again
            },
            message = messages.recv() => {
                let Some(message) = message else { return };
                let payload = matches!(message, ToWorker::Drain { .. }).then(|| frame::encode(&message).ok()).flatten();
                let Some(payload) = payload else { continue };
                if !matches!(tokio::time::timeout(SEND_TIMEOUT, frames.send(Bytes::from(payload))).await, Ok(Ok(()))) {
                    debug!(endpoint = %worker.endpoint, generation = worker.generation, "a worker of another version cannot be told");
                    return;
                }
            }
        }
    }
}

struct First {
    worker: WorkerId,
    hello: Introduction,
    listener: Option<OwnedFd>,
    rest: BytesMut,
}

async fn read_hello(stream: &UnixStream) -> Result<First, HelloError> {
    let mut lengths = frame::lengths();
    let mut buffer = BytesMut::new();
    let mut listener = None;
    loop {
        let mut chunk = [0; CHUNK_BYTES];
        let (read, descriptor) = stream.async_io(Interest::READABLE, || receive(stream, &mut chunk)).await?;
        listener = listener.or(descriptor);
        if read == 0 {
            return Err(HelloError::Closed);
        }
        buffer.extend_from_slice(&chunk[..read]);
        let Some(payload) = lengths.decode(&mut buffer).map_err(FrameError::from)? else { continue };
        let greeting = frame::greeting(&payload);
        if let Some(greeting) = greeting.filter(|greeting| greeting.version != VERSION) {
            let worker = WorkerId { endpoint: greeting.endpoint, generation: greeting.generation };
            let hello = Introduction::Other { version: greeting.version };
            return Ok(First { worker, hello, listener, rest: buffer });
        }
        let FromWorker::Hello(hello) = frame::decode(&payload)? else { return Err(HelloError::Other) };
        let worker = WorkerId { endpoint: hello.endpoint.clone(), generation: hello.generation };
        return Ok(First { worker, hello: Introduction::Hello(hello), listener, rest: buffer });
    }
}

/// One read, with the descriptor that came along, if any; further ones are closed.
fn receive(socket: impl AsFd, chunk: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(chunk)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok((message.bytes, descriptors.into_iter().next()))
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream as StdUnixStream;

    use codex_control::ipc::Hello;
    use codex_control::process;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    use super::*;

    fn hello_frame() -> Vec<u8> {
        let hello = FromWorker::Hello(Hello {
            version: VERSION,
            endpoint: "zai".parse().unwrap(),
            generation: 3,
            identity: process::own_identity().unwrap(),
            build: "1".to_owned(),
            serving: None,
        });
        let payload = frame::encode(&hello).unwrap();
        let length = u32::try_from(payload.len()).unwrap();
        [&length.to_be_bytes()[..], &payload].concat()
    }

    #[tokio::test]
    async fn a_hello_brings_its_listener_along_however_it_is_cut() {
        let (mut worker, supervisor) = StdUnixStream::pair().unwrap();
        supervisor.set_nonblocking(true).unwrap();
        let supervisor = UnixStream::from_std(supervisor).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bytes = hello_frame();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [listener.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        rustix::net::sendmsg(&worker, &[IoSlice::new(&bytes[..1])], &mut ancillary, SendFlags::empty()).unwrap();
        worker.write_all(&bytes[1..]).unwrap();
        worker.write_all(b"more").unwrap();
        let first = read_hello(&supervisor).await.unwrap();
        assert_eq!((first.worker.generation, &first.rest[..]), (3, &b"more"[..]));
        assert!(matches!(first.hello, Introduction::Hello(_)));
        let received = TcpListener::from(first.listener.unwrap());
        assert_eq!(received.local_addr().unwrap(), listener.local_addr().unwrap());
    }

    #[tokio::test]
    async fn of_another_versions_hello_the_beginning_is_understood() {
        let (mut worker, supervisor) = StdUnixStream::pair().unwrap();
        supervisor.set_nonblocking(true).unwrap();
        let supervisor = UnixStream::from_std(supervisor).unwrap();
        // Version 250, endpoint `a`, generation 9, and what only that version knows.
        worker.write_all(&[0, 0, 0, 7, 0, 250, 1, b'a', 9, 0xff, 0xff]).unwrap();
        let first = read_hello(&supervisor).await.unwrap();
        assert_eq!(first.worker, WorkerId { endpoint: "a".parse().unwrap(), generation: 9 });
        assert!(matches!(first.hello, Introduction::Other { version: 250 }), "{:?}", first.hello);
    }

    #[tokio::test]
    async fn what_is_no_hello_is_refused() {
        let drained = frame::encode(&FromWorker::Drained).unwrap();
        for (bytes, expected) in [
            (vec![], "the connection was closed"),
            ([&[0, 0, 0, 1][..], &drained].concat(), "the first message was no Hello"),
            (vec![0, 0, 0, 1, 0xff], "a frame is not a message of this version"),
            (vec![0xff; 8], "the worker socket failed"),
        ] {
            let (mut worker, supervisor) = StdUnixStream::pair().unwrap();
            supervisor.set_nonblocking(true).unwrap();
            worker.write_all(&bytes).unwrap();
            drop(worker);
            let error = read_hello(&UnixStream::from_std(supervisor).unwrap()).await.err().unwrap();
            assert_eq!(error.to_string(), expected);
        }
    }
}
