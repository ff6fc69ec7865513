//! The supervisor's JSON-RPC, over blocking sockets: a command makes one or two calls and ends.
//!
//! A call can meet a supervisor that is just dying: the connection is made, and ends without an answer. Then it is made
//! once more over a new one, if the old one shows that nobody has read it, or if it may be carried out twice
//! ([`rpc::REPEATABLE`]). Of any other call nobody can say what has become of it, and that is what the person is told.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codex_control::rpc::{self, Event, Request, Response, RpcError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::Failure;

/// Time for an answer to a call that does nothing but look or write a file.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the connection itself: a live supervisor accepts within milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a full accept queue is tried again.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
/// Time for the next supervisor to be there, when one has ended under a call.
const RECONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Bytes read at once; most answers fit.
const READ_BYTES: usize = 16 * 1024;

/// A connection to the supervisor.
pub(crate) struct Client {
    path: PathBuf,
    stream: UnixStream,
    received: Vec<u8>,
    calls: u64,
    /// Whether events arrive over this connection, which another one would not bring.
    is_subscribed: bool,
}

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CallError {
    /// The supervisor says no.
    Refused(RpcError),
    /// There was no answer, or none that could be understood.
    Lost(Failure),
}

/// Why there is no answer over this connection.
enum Lost {
    /// It has ended, and what was sent last was not read by anybody.
    Unread(Failure),
    /// It has ended.
    Ended(Failure),
    /// It is of no use, though it may not have ended.
    Useless(Failure),
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Unread(failure) | Lost::Ended(failure) | Lost::Useless(failure) => failure,
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(error) => error.into(),
            CallError::Lost(failure) => failure,
        }
    }
}

impl Client {
    /// Connects to the control socket; `None` if nobody listens there.
    ///
    /// # Errors
    /// Exit code 3 when the socket is there but cannot be used.
    pub(crate) fn connect(path: &Path) -> Result<Option<Self>, Failure> {
        let failed = |error: io::Error| {
            Failure::unreachable(format!("the supervisor's socket `{}` cannot be used: {error}", path.display()))
        };
        let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            // Non-blocking: a blocking connect to a Unix socket whose accept queue is full waits without limit.
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                .map_err(|error| failed(error.into()))?;
            match rustix::net::connect(&socket, &address) {
                Ok(()) => {
                    let stream = UnixStream::from(socket);
                    stream.set_nonblocking(false).map_err(failed)?;
                    let path = path.to_owned();
                    return Ok(Some(Self { path, stream, received: Vec::new(), calls: 0, is_subscribed: false }));
                }
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOTDIR) => {
                    return Ok(None);
                }
                Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => pause(CONNECT_PAUSE),
                Err(error) => return Err(failed(error.into())),
            }
        }
    }

    /// Calls `method` and waits for its result.
    pub(crate) fn call<R: DeserializeOwned>(
        &mut self,
        method: &str,
        params: impl Serialize,
        timeout: Duration,
    ) -> Result<R, CallError> {
        let result = self.call_raw(method, params, timeout)?;
        serde_json::from_value(result).map_err(|error| {
            let message = format!("the supervisor's answer to `{method}` has an unknown form: {error}");
            // After an upgrade the old supervisor runs on until it is restarted.
            CallError::Lost(Failure::new(message).hint("`codexctl restart` starts the installed version"))
        })
    }

    /// Calls `method` and waits for its result, whatever it is.
    pub(crate) fn call_raw(
        &mut self,
        method: &str,
        params: impl Serialize,
        timeout: Duration,
    ) -> Result<Value, CallError> {
        let deadline = Instant::now() + timeout;
        let params = serde_json::to_value(params).map_err(|error| CallError::Lost(Failure::from_error(&error)))?;
        let may_repeat = rpc::REPEATABLE.contains(&method) && !self.is_subscribed;
        let answer = match self.ask(method, &params, deadline) {
            Err(Lost::Unread(_)) if !self.is_subscribed && self.reconnect(deadline) => {
                self.ask(method, &params, deadline)
            }
            Err(Lost::Ended(_)) if may_repeat && self.reconnect(deadline) => self.ask(method, &params, deadline),
            answer => answer,
        };
        answer.map_err(|lost| match lost {
            Lost::Ended(_) if !may_repeat => CallError::Lost(
                Failure::unreachable(format!(
                    "the supervisor ended before it answered; nobody knows whether `{method}` was carried out"
                ))
                .hint("`codexctl status` shows how things are now; `codexctl logs` says why it ended"),
            ),
            lost => CallError::Lost(lost.into()),
        })?
    }

    /// Calls `daemon.status` over this very connection: says whether somebody answers there.
    pub(crate) fn is_answered(&mut self, timeout: Duration) -> Result<(), Failure> {
        // An error is an answer, too.
        self.ask("daemon.status", &Value::Null, Instant::now() + timeout).map(drop).map_err(Failure::from)
    }

    /// Makes one call over this connection: what the supervisor says, if it says anything.
    fn ask(&mut self, method: &str, params: &Value, deadline: Instant) -> Result<Result<Value, CallError>, Lost> {
        self.calls += 1;
        let id = Value::from(self.calls);
        let request = Request {
            jsonrpc: rpc::JSONRPC.to_owned(),
            id: Some(id.clone()),
            method: method.to_owned(),
            params: params.clone(),
        };
        self.send(&request, deadline)?;
        loop {
            let value = self.receive(Some(deadline))?;
            if value.get("method").is_some() {
                continue; // a notification of an earlier subscription
            }
            let response: Response = serde_json::from_value(value).map_err(|error| Lost::Useless(foreign(&error)))?;
            return match (response.error, response.result) {
                (Some(error), _) => Ok(Err(CallError::Refused(error))),
                // An answer without our id concerns a line of ours that could not be read; there is only this one.
                (None, result) if response.id == id => {
                    self.is_subscribed |= method == "events.subscribe";
                    Ok(Ok(result.unwrap_or_default()))
                }
                (None, _) => continue,
            };
        }
    }

    /// Connects to the next supervisor, if there is one soon.
    fn reconnect(&mut self, deadline: Instant) -> bool {
        let deadline = deadline.min(Instant::now() + RECONNECT_WITHIN);
        loop {
            match Self::connect(&self.path) {
                Ok(Some(next)) => {
                    *self = next;
                    return true;
                }
                Ok(None) if Instant::now() < deadline => pause(CONNECT_PAUSE),
                // What happened to the first connection says more.
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// Waits for the next event of a subscription, however long it takes; ends with the connection.
    ///
    /// # Errors
    /// Exit code 3 when the supervisor is gone.
    pub(crate) fn next_event(&mut self) -> Result<Event, Failure> {
        loop {
            let mut value = self.receive(None).map_err(Failure::from)?;
            if value.get("method").and_then(Value::as_str) == Some("event")
                && let Some(params) = value.get_mut("params")
            {
                return serde_json::from_value(params.take()).map_err(|error| foreign(&error));
            }
        }
    }

    fn send(&mut self, request: &Request, deadline: Instant) -> Result<(), Lost> {
        let mut line = serde_json::to_vec(request).map_err(|error| Lost::Useless(Failure::from_error(&error)))?;
        if line.len() >= rpc::LINE_BYTES_MAX {
            let what = format!("the parameters are longer than {} bytes", rpc::LINE_BYTES_MAX);
            return Err(Lost::Useless(Failure::new(what)));
        }
        line.push(b'\n');
        let timeout = deadline.saturating_duration_since(Instant::now());
        if timeout.is_zero() {
            return Err(Lost::Useless(silent()));
        }
        let sent = self.stream.set_write_timeout(Some(timeout)).and_then(|()| self.stream.write_all(&line));
        sent.map_err(|error| lost(&error))
    }

    /// One line. Without a deadline it waits until the supervisor or the person ends it.
    fn receive(&mut self, deadline: Option<Instant>) -> Result<Value, Lost> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|error| Lost::Useless(foreign(&error)));
            }
            if self.received.len() > rpc::LINE_BYTES_MAX {
                return Err(Lost::Useless(Failure::unreachable("the supervisor sent a line without end")));
            }
            let timeout = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Err(Lost::Useless(silent())),
                timeout => timeout,
            };
            let mut chunk = [0; READ_BYTES];
            match self.stream.set_read_timeout(timeout).and_then(|()| self.stream.read(&mut chunk)) {
                Ok(0) => return Err(lost(&io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(&error)),
            }
        }
    }
}

fn lost(error: &io::Error) -> Lost {
    let closed = || {
        Failure::unreachable("the supervisor closed the connection")
            .hint("`codexctl logs` says why; `codexctl start` starts it again")
    };
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Lost::Useless(silent()),
        // A Unix socket whose peer closes it says so in this way if the peer had not read all that was sent: so the
        // line, whose end comes last, was not taken for a call.
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Lost::Unread(closed()),
        io::ErrorKind::UnexpectedEof => Lost::Ended(closed()),
        _ => Lost::Useless(Failure::unreachable(format!("the connection to the supervisor broke: {error}"))),
    }
}

fn silent() -> Failure {
    Failure::unreachable("the supervisor does not answer in time").hint("`codexctl logs` shows what it did last")
}

fn foreign(error: &serde_json::Error) -> Failure {
    Failure::unreachable(format!("what the supervisor sent cannot be understood: {error}"))
        .hint("`codexctl restart` starts the installed version")
}

/// Waits for something that cannot be waited for, between two looks at it; each caller has a deadline.
pub(crate) fn pause(duration: Duration) {
    wait_readable(&mut [], duration);
}

/// Waits until one of `watched` is readable, at most `duration`; says whether one is.
pub(crate) fn wait_readable(watched: &mut [PollFd<'_>], duration: Duration) -> bool {
    let timeout = Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
    // A signal ends the wait early, which every caller's loop takes for an early look.
    rustix::event::poll(watched, Some(&timeout)).is_ok_and(|n_ready| n_ready > 0)
}

/// Watches `fd` for [`wait_readable`].
pub(crate) fn readable(fd: &impl std::os::fd::AsFd) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::IN)
}
