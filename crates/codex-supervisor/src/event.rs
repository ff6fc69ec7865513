//! Everything that can happen to the supervisor: one closed list, one queue, one task that takes from it.

use std::os::fd::OwnedFd;

use codex_control::EndpointId;
use codex_control::incident::{ActionId, Answer, IncidentId, Outcome};
use codex_control::ipc::{FromWorker, Hello, ToWorker};
use codex_control::rpc::{Request, RpcError};
use codex_control::session::SessionId;
use codex_control::tree::Ended;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::codex_config::Tended;
use crate::incidents::{Kept, Loaded};
use crate::probe::ProbeError;
use crate::worker::Exit;

/// Events that may wait for the owner task. Senders wait when it is full: they are readers of sockets, and a reader
/// that waits is how a socket tells its other end to slow down.
pub(crate) const EVENTS_MAX: usize = 256;
/// Messages that may wait for one worker: an assignment and a few drains. A worker that does not read even those is
/// stuck, which its heartbeats show; further messages are dropped with a warning.
pub(crate) const MESSAGES_TO_WORKER_MAX: usize = 8;

/// The owner's queue, as its senders see it.
pub(crate) type Queue = mpsc::Sender<Event>;

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A client of the control socket calls a method.
    Call(Call),
    /// A process has said Hello on the worker socket.
    WorkerConnected(Connected),
    /// A worker has said something.
    WorkerMessage {
        /// Which.
        worker: WorkerId,
        /// On which of its connections.
        connection: u64,
        /// What.
        message: FromWorker,
    },
    /// A worker's connection has ended.
    WorkerDisconnected {
        /// Which.
        worker: WorkerId,
        /// Which of its connections.
        connection: u64,
    },
    /// A worker's process has ended.
    WorkerEnded {
        /// Which.
        worker: WorkerId,
        /// Its number, which may be another's by now.
        pid: u32,
        /// How.
        exit: Exit,
    },
    /// A health probe has an answer.
    Probed {
        /// The worker that was serving when it was sent.
        worker: WorkerId,
        /// The answer.
        result: Result<(), ProbeError>,
    },
    /// A worker was to be moved into a scope of its own.
    Scoped {
        /// Which.
        worker: WorkerId,
        /// Why it could not be.
        result: Result<(), String>,
    },
    /// A process of a session of Codex has ended: its launcher, or Codex.
    SessionProcessEnded {
        /// Which session.
        session: SessionId,
        /// Which process. Its number may be another's by now.
        pid: u32,
    },
    /// What a session had left behind has been ended.
    SessionCleared {
        /// Which.
        session: SessionId,
        /// What was done.
        ended: Ended,
    },
    /// A session has written to its logs.
    SessionWrote {
        /// Which.
        session: SessionId,
    },
    /// Codex's own configuration was looked after.
    ConfigTended(Vec<Tended>),
    /// What of ours was in Codex's own configuration was taken out, since we end.
    ConfigTakenOut(Vec<Tended>),
    /// What an earlier run knew about incidents was read, or cannot be.
    IncidentsLoaded(Box<Loaded>),
    /// Something of the incident engine was written down, or could not be.
    IncidentKept(Kept),
    /// The AI has answered, or not.
    Diagnosed {
        /// The incident it was asked about.
        incident: IncidentId,
        /// What it said.
        answer: Answer,
    },
    /// An action that took its time was carried out, or could not be.
    CarriedOut {
        /// Which.
        action: ActionId,
        /// How it went.
        outcome: Outcome,
    },
    /// A settings file may have changed.
    SettingsTouched,
    /// Somebody asks us by a signal.
    Signal(Signal),
}

/// A signal that means something to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// TERM, INT: end cleanly; the second time: at once.
    Stop,
    /// TERM of a service manager that restarts us: end at once and leave the workers to the next one.
    Leave,
    /// HUP: read the settings again.
    Reload,
}

/// In what way we end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// With everything we run, or with another of us already on its way.
    End,
    /// Another of us is to take over what goes on running.
    Restart,
}

/// One worker process of ours, past or present.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WorkerId {
    /// Its endpoint.
    pub(crate) endpoint: EndpointId,
    /// Which start of that endpoint's worker.
    pub(crate) generation: u64,
}

/// How a worker has introduced itself.
#[derive(Debug)]
pub(crate) enum Introduction {
    /// In our own words.
    Hello(Hello),
    /// In those of another version. It understands nothing but that it is to drain, and says nothing that we understand.
    Other {
        /// Its version.
        version: u16,
    },
}

/// A call of a client that waits for `answer`.
#[derive(Debug)]
pub(crate) struct Call {
    /// What it wants.
    pub(crate) request: Request,
    /// Where the answer goes. A client that has gone no longer listens.
    pub(crate) answer: oneshot::Sender<Result<Value, RpcError>>,
}

/// A Hello, with what the kernel says about who said it.
#[derive(Debug)]
pub(crate) struct Connected {
    /// Who it says it is.
    pub(crate) worker: WorkerId,
    /// What else it says.
    pub(crate) hello: Introduction,
    /// Its process id by `SO_PEERCRED`; `None` where the kernel does not tell.
    pub(crate) peer_pid: Option<u32>,
    /// The listener it has brought along.
    pub(crate) listener: Option<OwnedFd>,
    /// Number of this connection.
    pub(crate) connection: u64,
    /// Where messages to it go. Dropping this closes the connection.
    pub(crate) outbox: mpsc::Sender<ToWorker>,
}
