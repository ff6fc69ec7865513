//! Under a service manager, played by this test: readiness, watchdog, stored listeners, a passed control socket.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::Value;

use crate::endpoint;
use crate::home::{Home, PATIENCE, get, wait_for};

/// Receives one message of `sd_notify`, with the descriptor it brings.
fn told(manager: &UnixDatagram) -> (String, Option<OwnedFd>) {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(manager, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .unwrap();
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    (String::from_utf8(bytes[..received.bytes].to_vec()).unwrap(), descriptor)
}

#[test]
fn the_service_manager_is_told_and_keeps_the_listeners() {
    let home = Home::new(&endpoint("a", ""));
    let notify = home.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = home.command();
    command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "2000000");
    let supervisor = home.start_with(command);
    let address = supervisor.wake("a");
    // This manager keeps listeners, but has no scopes to offer.
    assert_eq!(supervisor.call("daemon.status", Value::Null)["protection"], "partial");
    let mut messages = Vec::new();
    let mut stored = None;
    wait_for("all that the manager is to be told", || {
        let (message, descriptor) = told(&manager);
        stored = stored.take().or(descriptor);
        messages.push(message);
        let count = |wanted: &str| messages.iter().filter(|message| *message == wanted).count();
        (count("WATCHDOG=1\n") >= 2 && count("STATUS=1 of 1 endpoints work\n") > 0).then_some(())
    });
    let position = |wanted: &str| {
        messages.iter().position(|message| message == wanted).unwrap_or_else(|| panic!("{wanted}: {messages:?}"))
    };
    assert!(position("FDSTORE=1\nFDNAME=ep-a\n") < position("READY=1\n"));
    assert!(position("READY=1\n") < position("STATUS=1 of 1 endpoints work\n"));
    let stored = TcpListener::from(stored.expect("a stored listener"));
    assert_eq!(stored.local_addr().unwrap(), address);

    // Both end, as when the machine runs out of memory; the manager starts it again with what it keeps.
    let worker = supervisor.worker("a");
    supervisor.kill();
    assert!(worker.signal(rustix::process::Signal::KILL).unwrap());
    let waiting = std::thread::spawn(move || get(address, "/health"));
    let mut command =
        home.shell("exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_FDNAMES=ep-a LISTEN_PID=$$ exec \"$SUPERVISOR\"");
    command.env("NOTIFY_SOCKET", &notify).stdin(OwnedFd::from(stored));
    let supervisor = home.start_with(command);
    assert!(waiting.join().unwrap().unwrap().contains("generation"), "who came meanwhile is served");
    assert_eq!(supervisor.wake("a"), address);
    supervisor.stop();
    loop {
        let (message, _) = told(&manager);
        assert!(!message.contains("FDSTOREREMOVE"), "a restart is to find it again");
        if message.starts_with("STOPPING=1\n") {
            break;
        }
    }
}

#[test]
fn a_passed_control_socket_is_used_and_left_in_place() {
    let home = Home::new("");
    std::fs::create_dir_all(home.runtime("")).unwrap();
    let path = home.runtime("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut command =
        home.shell("exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_FDNAMES=control LISTEN_PID=$$ exec \"$SUPERVISOR\"");
    command.stdin(OwnedFd::from(listener.try_clone().unwrap()));
    let supervisor = home.start_with(command);
    supervisor.call("daemon.stop", Value::Null);
    assert!(supervisor.wait().success());
    assert_eq!(home.runtime_names(), ["control.sock"], "it is the service manager's");
    drop(listener);
    // Left by somebody who has gone, it is in nobody's way.
    let supervisor = home.start();
    supervisor.stop();
}
