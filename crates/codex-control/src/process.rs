//! Who a process is, proven: a pid alone names whoever has it now.
//!
//! A reused pid can even have the same start tick, so an [`Identity`] also holds the inode of the process's pidfd
//! (unique per process since Linux 6.9) and the boot it belongs to. Open the pidfd first, compare after, and signal
//! only through the pidfd: then nothing can change in between.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// What tells one process from every other that ever had its number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
        let start_ticks = Stat::read(pid)?.start_ticks;
        let identity = Identity { boot_id: boot_id()?.to_owned(), pid, start_ticks, pidfd_inode };
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

    /// The same process, held once more.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { pidfd: self.pidfd.try_clone()?, identity: self.identity.clone() })
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

    /// Whether it has ended, be it that nobody has waited for it yet.
    ///
    /// While it says no, the process's number was its own all the time: what was read from `/proc` by that number
    /// before belongs to it.
    pub fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits for its end, at most `timeout`; says whether it has ended. A signal that is caught ends the wait early.
    pub fn ends_within(&self, timeout: Duration) -> bool {
        any_ends_within(std::slice::from_ref(self), timeout)
    }

    /// What its first thread is doing; `None` if it has ended.
    pub fn activity(&self) -> Option<Activity> {
        let pid = self.identity.pid;
        let stat = Stat::read_from(&format!("/proc/{pid}/task/{pid}/stat")).ok()?;
        let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
        let processor_time = Duration::from_millis(stat.processor_ticks.saturating_mul(1000) / ticks_per_second);
        (!self.has_ended()).then_some(Activity { is_runnable: stat.state == b'R', processor_time })
    }

    /// The number of its parent; `None` if it has ended.
    pub fn parent(&self) -> Option<u32> {
        let stat = Stat::read(self.identity.pid).ok()?;
        (!self.has_ended()).then_some(stat.parent)
    }
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Whether it runs, or would if it got a processor. Not: it waits for something, or is stopped.
    pub is_runnable: bool,
    /// Time it has had a processor since it began, to a hundredth of a second.
    pub processor_time: Duration,
}

/// Waits until one of `processes` ends, at most `timeout`; says whether one has.
pub fn any_ends_within(processes: &[Process], timeout: Duration) -> bool {
    let mut watched: Vec<PollFd<'_>> = processes.iter().map(|process| PollFd::new(process, PollFlags::IN)).collect();
    let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
    // An error means a caught signal, since the descriptors are ours and good: nobody has ended as far as is known.
    rustix::event::poll(&mut watched, Some(&timeout)).is_ok_and(|n_ended| n_ended > 0)
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

fn boot_id() -> io::Result<&'static str> {
    // No process outlives its boot.
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT_ID.get() {
        return Ok(known);
    }
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT_ID.get_or_init(|| text.trim().to_owned()))
}

/// What `/proc/PID/stat` says, of whoever has the number now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// State, a letter (field 3).
    pub(crate) state: u8,
    /// Number of the parent (field 4).
    pub(crate) parent: u32,
    /// Number of the process group (field 5).
    pub(crate) group: u32,
    /// Processor time in clock ticks, its own and the kernel's for it (fields 14 and 15).
    pub(crate) processor_ticks: u64,
    /// Start time in clock ticks since boot (field 22).
    pub(crate) start_ticks: u64,
}

impl Stat {
    pub(crate) fn read(pid: u32) -> io::Result<Self> {
        Self::read_from(&format!("/proc/{pid}/stat"))
    }

    fn read_from(path: &str) -> io::Result<Self> {
        // As bytes: a program may have any name.
        let stat = std::fs::read(path)?;
        Self::parse(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "`/proc/PID/stat` is unknown"))
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        // The second field is the program's name in parentheses and may hold anything, `)` included: count from the
        // last. What follows is ASCII; field 3 is the first of it.
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let mut fields = std::str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let user_ticks: u64 = fields.nth(14 - 6)?.parse().ok()?;
        let kernel_ticks: u64 = fields.next()?.parse().ok()?;
        let start_ticks = fields.nth(22 - 16)?.parse().ok()?;
        Some(Self { state, parent, group, processor_ticks: user_ticks.saturating_add(kernel_ticks), start_ticks })
    }
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
    fn the_name_of_a_program_does_not_confuse() {
        let stat = b"7 (a) R 9 (\xff) S 5 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 4711 8 9\n";
        assert_eq!(
            Stat::parse(stat),
            Some(Stat { state: b'S', parent: 5, group: 7, processor_ticks: 3, start_ticks: 4711 })
        );
        assert_eq!(Stat::parse(b"7 (a) S 5"), None);
    }

    #[test]
    fn whoever_waits_is_told_from_whoever_computes() {
        let mut waiting = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let mut computing = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let look = |child: &std::process::Child, is_runnable: bool, least: Duration| {
            let process = Process::open(child.id()).unwrap();
            let deadline = std::time::Instant::now() + Duration::from_mins(1);
            loop {
                let seen = process.activity().unwrap();
                if seen.is_runnable == is_runnable && seen.processor_time >= least {
                    return process;
                }
                assert!(std::time::Instant::now() < deadline, "{seen:?}");
            }
        };
        look(&waiting, false, Duration::ZERO);
        let process = look(&computing, true, Duration::from_millis(20));
        assert!(process.signal(Signal::STOP).unwrap());
        look(&computing, false, Duration::from_millis(20));
        for child in [&mut waiting, &mut computing] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(process.activity(), None);
    }

    #[test]
    fn its_end_is_noticed_and_its_parent_known() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.has_ended());
        assert_eq!(process.parent(), Some(std::process::id()));
        drop(child.stdin.take());
        assert!(process.ends_within(Duration::from_secs(20)));
        assert_eq!(process.parent(), None, "a zombie belongs to nobody any more");
        child.wait().unwrap();
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
