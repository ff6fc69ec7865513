//! The listeners' ports: chosen once, remembered, and never given to another endpoint.
//!
//! A port stays with its endpoint's id even while the endpoint is not in the settings: a Codex that still runs with
//! the old configuration must never find another provider behind its address.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::Path;

use codex_control::EndpointId;
use codex_control::files::FileError;
use codex_control::settings::{ENDPOINTS_MAX, Port};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::remembered::Remembered;

/// Connections that may wait while no worker accepts: a restart takes milliseconds, a hand-over none.
const BACKLOG: i32 = 1024;
/// Where free ports are looked for: above what servers are known by, below what Linux gives to outgoing connections
/// (32768 and up by default), so that no connection of anybody takes a remembered port while we are not running.
const PORTS: std::ops::Range<u16> = 20_000..32_768;
/// Random ports tried before the kernel may choose one.
const TRIES_MAX: u32 = 64;
/// Ports remembered, those of removed endpoints included.
const REMEMBERED_MAX: usize = 16 * ENDPOINTS_MAX;
/// Largest memory file that is read.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Which port each endpoint has.
#[derive(Debug)]
pub(crate) struct Ports {
    remembered: Remembered<BTreeMap<EndpointId, u16>>,
}

/// Why an endpoint has no listener.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// Somebody else listens there.
    #[error("port {0} is taken")]
    Taken(u16),
    /// The system refuses.
    #[error("port {port} cannot be used")]
    Refused {
        /// The port; 0 where any would have done.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The choice could not be written down; an address that changes with each start would be of no use.
    #[error("the port cannot be remembered")]
    Remember(#[source] FileError),
}

impl Ports {
    /// Reads what was remembered. A file that cannot be used counts as empty: new ports are chosen.
    pub(crate) fn load(path: &Path) -> Self {
        Self { remembered: Remembered::load(path, FILE_BYTES_MAX, "new ports are chosen") }
    }

    /// The port `id` is to have, if that is decided already.
    pub(crate) fn decided(&self, id: &EndpointId, port: Port) -> Option<u16> {
        match port {
            Port::Fixed(number) => Some(number),
            Port::Auto => self.remembered.get(id).copied(),
        }
    }

    /// Binds and listens for `id`, non-blocking, and remembers a port that was free to choose.
    ///
    /// # Errors
    /// [`BindError::Taken`] if the port is decided and somebody has it: Codex knows this address, another is no help.
    pub(crate) fn listen(&mut self, id: &EndpointId, port: Port) -> Result<TcpListener, BindError> {
        if let Some(number) = self.decided(id, port) {
            return listen(number);
        }
        let listener = self.listen_somewhere()?;
        let number = listener.local_addr().map_err(|source| BindError::Refused { port: 0, source })?.port();
        self.remember(id, number).map_err(BindError::Remember)?;
        Ok(listener)
    }

    /// Keeps `number` for `id`, e.g. for a listener that was taken over.
    pub(crate) fn remember(&mut self, id: &EndpointId, number: u16) -> Result<(), FileError> {
        let is_known = self.remembered.value_mut().insert(id.clone(), number) == Some(number);
        if is_known && !self.remembered.is_unwritten() {
            return Ok(());
        }
        let remembered = self.remembered.value_mut();
        while remembered.len() > REMEMBERED_MAX {
            let Some(other) = remembered.keys().find(|other| *other != id).cloned() else {
                break;
            };
            remembered.remove(&other);
        }
        self.remembered.write()
    }

    /// Tries again to write down what could not be.
    pub(crate) fn retry(&mut self) {
        self.remembered.retry();
    }

    fn listen_somewhere(&self) -> Result<TcpListener, BindError> {
        for _ in 0..TRIES_MAX {
            let random =
                getrandom::u32().map_err(|error| BindError::Refused { port: 0, source: io::Error::other(error) })?;
            let offset = random % u32::from(PORTS.end - PORTS.start);
            let number = PORTS.start + u16::try_from(offset).expect("less than the length of a range of ports");
            if self.remembered.values().any(|taken| *taken == number) {
                continue;
            }
            match listen(number) {
                Err(BindError::Taken(_)) => {}
                result => return result,
            }
        }
        listen(0)
    }
}

fn listen(port: u16) -> Result<TcpListener, BindError> {
    let bound = || -> rustix::io::Result<_> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        // Never SO_REUSEPORT: closing one of several such listeners loses the connections queued at it.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    bound().map_err(|error| match error {
        rustix::io::Errno::ADDRINUSE => BindError::Taken(port),
        error => BindError::Refused { port, source: error.into() },
    })
}

/// A process that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its process id.
    pub(crate) pid: u32,
    /// Its program's name, as the kernel knows it.
    pub(crate) program: String,
}

/// Who listens on `port`, if `/proc` tells: other users' processes keep their descriptors to themselves.
pub(crate) fn holder(port: u16) -> Option<Holder> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let holds = fs::read_dir(process.path().join("fd")).ok()?.filter_map(Result::ok).any(|descriptor| {
            fs::read_link(descriptor.path())
                .is_ok_and(|target| target.to_str().is_some_and(|target| inodes.iter().any(|inode| inode == target)))
        });
        let program = || fs::read_to_string(process.path().join("comm")).ok().map(|name| name.trim().to_owned());
        holds.then(program).flatten().map(|program| Holder { pid, program })
    })
}

/// Inodes of the sockets in a table of `/proc/net` that listen on `port`.
///
/// Source: `proc_net_tcp.txt` of the kernel: `sl local_address rem_address st … uid timeout inode`.
fn listening_inodes(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            (local.ends_with(&suffix) && *state == LISTEN).then(|| inode.parse().ok()).flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> EndpointId {
        text.parse().unwrap()
    }

    fn port_of(listener: &TcpListener) -> u16 {
        listener.local_addr().unwrap().port()
    }

    #[test]
    fn a_port_is_chosen_once_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ports.json");
        let mut ports = Ports::load(&path);
        let listener = ports.listen(&id("a"), Port::Auto).unwrap();
        let port = port_of(&listener);
        assert!(PORTS.contains(&port));
        assert_ne!(port_of(&ports.listen(&id("b"), Port::Auto).unwrap()), port);
        drop(listener);
        let mut reloaded = Ports::load(&path);
        assert_eq!(port_of(&reloaded.listen(&id("a"), Port::Auto).unwrap()), port);
        fs::write(&path, "{").unwrap();
        assert_eq!(Ports::load(&path).decided(&id("a"), Port::Auto), None);
    }

    #[test]
    fn a_port_that_cannot_be_written_down_is_kept_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ports.json");
        let mut ports = Ports::load(&path);
        // Nothing can be renamed over a folder that is not empty, whoever tries.
        fs::create_dir_all(path.join("in the way")).unwrap();
        assert!(matches!(ports.listen(&id("a"), Port::Auto), Err(BindError::Remember(_))));
        let port = ports.decided(&id("a"), Port::Auto).unwrap();
        assert_eq!(port_of(&ports.listen(&id("a"), Port::Auto).unwrap()), port, "it serves meanwhile");
        ports.retry();
        fs::remove_dir_all(&path).unwrap();
        ports.retry();
        assert_eq!(Ports::load(&path).decided(&id("a"), Port::Auto), Some(port));
    }

    #[test]
    fn a_decided_port_that_is_taken_is_not_exchanged() {
        let folder = tempfile::tempdir().unwrap();
        let mut ports = Ports::load(&folder.path().join("ports.json"));
        let held = ports.listen(&id("a"), Port::Auto).unwrap();
        let port = port_of(&held);
        assert!(matches!(ports.listen(&id("a"), Port::Auto), Err(BindError::Taken(taken)) if taken == port));
        assert!(matches!(ports.listen(&id("b"), Port::Fixed(port)), Err(BindError::Taken(taken)) if taken == port));
        let own = Holder {
            pid: std::process::id(),
            program: fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned(),
        };
        assert_eq!(holder(port), Some(own));
        drop(held);
        assert_eq!(holder(port), None);
        assert_eq!(ports.decided(&id("b"), Port::Auto), None, "a fixed port is not remembered");
    }

    #[test]
    fn listening_sockets_are_told_from_connections() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:4E20 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 111 1 0\n   \
                     1: 0100007F:4E20 0100007F:C000 01 00000000:00000000 00:00000000 00000000  1000        0 222 1 0\n   \
                     2: 0100007F:4E21 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 333 1 0\n";
        assert_eq!(listening_inodes(table, 20_000), [111]);
        assert_eq!(listening_inodes("garbage\n1 2\n", 20_000), Vec::<u64>::new());
    }
}
