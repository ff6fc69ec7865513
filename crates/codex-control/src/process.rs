//! Who a process is, proven: a pid alone names whoever has it now.
//!
//! A reused pid can even have the same start tick, so an [`Identity`] also holds the inode of the process's pidfd
//! (unique per process since Linux 6.9) and the boot it belongs to. Open the pidfd first, compare after, and signal
//! only through the pidfd: then nothing can change in between.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// What tells one process from every other that ever had its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// Inode of the process's pidfd; `None` on kernels where it is not unique.
    pub pidfd_inode: Option<u64>,
}

/// A process held by its pidfd: it can be signalled and waited for without a race.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    identity: Identity,
}

/// `PIDFS_MAGIC` of linux/magic.h: a pidfd on this file system has an inode of its own.
const PIDFS_MAGIC: i64 = 0x5049_4446;

impl Process {
    /// Holds the process that has `pid` now.
    ///
    /// # Errors
    /// `NotFound` if there is none (`ESRCH`), or an error of `/proc`.
    pub fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = match rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Err(rustix::io::Errno::SRCH) => return Err(io::ErrorKind::NotFound.into()),
            result => result?,
        };
        let unique_inode = rustix::fs::fstatfs(&pidfd)?.f_type == PIDFS_MAGIC;
        let pidfd_inode = if unique_inode { Some(rustix::fs::fstat(&pidfd)?.st_ino) } else { None };
        // Read after the pidfd was opened: if the pid had been reused before, the pidfd belongs to the new process,
        // and so does what is read here; if it is reused after, the pidfd is dead and signals go nowhere.
        let identity = Identity { boot_id: boot_id()?, pid, start_ticks: start_ticks(pid)?, pidfd_inode };
        Ok(Self { pidfd, identity })
    }

    /// Holds the process described by `identity`, if that very process still lives.
    ///
    /// # Errors
    /// `NotFound` if it does not: its pid is free or belongs to another process now.
    pub fn open_identity(identity: &Identity) -> io::Result<Self> {
        let process = Self::open(identity.pid)?;
        if process.identity == *identity { Ok(process) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Sends `signal` to exactly this process; `Ok(false)` if it has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The identity of the calling process.
pub fn own_identity() -> io::Result<Identity> {
    Process::open(std::process::id()).map(|process| process.identity)
}

fn boot_id() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

/// Position of field 22 (the start time) behind the name, which is field 2.
const START_TIME: usize = 19;

fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may hold anything, `)` included: count from the last.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name
        .split_ascii_whitespace()
        .nth(START_TIME)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "`/proc/PID/stat` has no start time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_recognised_until_it_ends() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        let identity = process.identity().clone();
        assert_eq!(Process::open_identity(&identity).unwrap().identity(), &identity);
        assert!(process.signal(Signal::KILL).unwrap());
        child.wait().unwrap();
        assert!(!process.signal(Signal::KILL).unwrap());
        assert!(Process::open_identity(&identity).is_err());
    }

    #[test]
    fn another_process_at_the_same_pid_is_a_stranger() {
        let own = own_identity().unwrap();
        for stranger in [
            Identity { start_ticks: own.start_ticks + 1, ..own.clone() },
            Identity { boot_id: "another boot".to_owned(), ..own.clone() },
            Identity { pidfd_inode: own.pidfd_inode.map(|inode| inode + 1).or(Some(1)), ..own.clone() },
        ] {
            assert!(Process::open_identity(&stranger).is_err(), "{stranger:?}");
        }
        assert!(Process::open_identity(&own).is_ok());
    }
}
