//! Noticing the end of a process, whoever's child it is, within a moment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use codex_control::process::Process;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A pidfd that becomes readable when its process has ended.
///
/// # Errors
/// If the runtime cannot watch it.
pub(crate) fn watched(process: &Process) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(deprecated, reason = "its successor is unsafe; an `OwnedFd` keeps the promise that one asks for")]
    let register = |pidfd| AsyncFd::with_interest(pidfd, Interest::READABLE);
    process.as_fd().try_clone_to_owned().and_then(register)
}
