//! The service manager: what it hands over at the start, what it is told, what it keeps for the next start.
//!
//! Without one, all of this does nothing.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::time::Duration;

use codex_control::EndpointId;
use codex_control::environment::{self, Environment};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use sd_notify::NotifyState;
use tracing::{debug, warn};

/// `FileDescriptorName=` of the control socket in `codex-supervisor.socket`, and its default.
const CONTROL_NAMES: [&str; 2] = ["control", "codex-supervisor.socket"];
/// The name of a stored listener is this and its endpoint's id. A name must not hold a colon (`sd_pid_notify_with_fds(3)`).
const LISTENER_PREFIX: &str = "ep-";

/// Sockets that the service manager had for us.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// The control socket, already listening.
    pub(crate) control: Option<UnixListener>,
    /// Listeners that an earlier run of ours had stored.
    pub(crate) endpoints: BTreeMap<EndpointId, TcpListener>,
}

/// Takes over what the service manager has passed to this very process.
pub(crate) fn inherited() -> io::Result<Inherited> {
    let mut inherited = Inherited::default();
    let names: Vec<_> = sd_notify::listen_fds_with_names()?.collect();
    if names.is_empty() {
        return Ok(inherited);
    }
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    for (number, name) in names {
        // The environment gives bare numbers; this makes an owned duplicate of one without trusting that it is open.
        let descriptor = rustix::process::pidfd_getfd(&own, number, PidfdGetfdFlags::empty())?;
        let family = listening_family(&descriptor);
        let endpoint = name.strip_prefix(LISTENER_PREFIX).and_then(|id| id.parse::<EndpointId>().ok());
        match (family, endpoint) {
            (Some(AddressFamily::UNIX), None) if CONTROL_NAMES.contains(&name.as_str()) => {
                inherited.control = Some(descriptor.into());
            }
            (Some(AddressFamily::INET), Some(id)) => {
                inherited.endpoints.insert(id, descriptor.into());
            }
            _ => warn!(name, "the service manager passed a socket that means nothing to us"),
        }
    }
    Ok(inherited)
}

fn listening_family(descriptor: &OwnedFd) -> Option<AddressFamily> {
    sockopt::socket_acceptconn(descriptor).ok().filter(|listens| *listens)?;
    sockopt::socket_domain(descriptor).ok()
}

/// Tells the service manager, if there is one.
pub(crate) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "the service manager cannot be told");
    }
}

/// How often the watchdog wants to hear from us: half of its limit. `None` if it does not.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|interval| !interval.is_zero())
}

/// Where listeners are stored for the next start.
#[derive(Debug)]
pub(crate) struct Store {
    socket: Option<PathBuf>,
}

impl Store {
    /// The service manager's store, if we run under one.
    pub(crate) fn new(environment: &Environment) -> Self {
        Self { socket: environment.get(environment::NOTIFY_SOCKET).map(PathBuf::from) }
    }

    /// Whether there is a store.
    pub(crate) fn exists(&self) -> bool {
        self.socket.is_some()
    }

    /// Keeps a duplicate of an endpoint's listener; the same one is kept once.
    pub(crate) fn keep(&self, id: &EndpointId, listener: &TcpListener) {
        self.send(&format!("FDSTORE=1\nFDNAME={LISTENER_PREFIX}{id}\n"), &[listener.as_fd()]);
    }

    /// Forgets an endpoint's listener.
    pub(crate) fn forget(&self, id: &EndpointId) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={LISTENER_PREFIX}{id}\n"), &[]);
    }

    fn send(&self, message: &str, descriptors: &[BorrowedFd<'_>]) {
        let Some(path) = &self.socket else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.connect(path)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            Ok(rustix::net::sendmsg(&socket, &[IoSlice::new(message.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?)
        });
        match sent {
            Ok(_) => debug!(message, "told the service manager's store"),
            Err(error) => warn!(%error, "the service manager's store cannot be reached"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_goes_to_the_store_under_its_endpoints_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let store = Store::new(&[(environment::NOTIFY_SOCKET, path.as_os_str())].into_iter().collect());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        store.keep(&"zai".parse().unwrap(), &listener);
        store.forget(&"zai".parse().unwrap());
        let mut message = [0; 256];
        let length = manager.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"FDSTORE=1\nFDNAME=ep-zai\n");
        let length = manager.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"FDSTOREREMOVE=1\nFDNAME=ep-zai\n");
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        let store = Store::new(&Environment::default());
        assert!(!store.exists());
        store.forget(&"zai".parse().unwrap());
        assert!(inherited().unwrap().endpoints.is_empty());
    }

    #[test]
    fn only_listening_sockets_are_taken_over() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(listening_family(&listener.as_fd().try_clone_to_owned().unwrap()), Some(AddressFamily::INET));
        assert_eq!(listening_family(&std::fs::File::open("/dev/null").unwrap().into()), None);
        let (unconnected, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(listening_family(&unconnected.into()), None);
    }
}
