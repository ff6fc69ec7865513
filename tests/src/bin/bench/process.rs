//! A server in a process of its own, and what a process uses, from `/proc`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

/// A process that serves a listener of ours; killed when it goes out of scope.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts `command` with a fresh listener as its stdin.
    pub(crate) fn start(mut command: Command) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener))).stdout(Stdio::null());
        let child = command.spawn().with_context(|| format!("{} does not start", command.get_program().display()))?;
        Ok(Self { child, address })
    }

    /// Starts a part of this very program.
    pub(crate) fn part(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments);
        Self::start(command)
    }

    pub(crate) fn memory_bytes(&self) -> anyhow::Result<u64> {
        memory_bytes(self.child.id())
    }

    /// Files and sockets that it has open.
    pub(crate) fn open_files(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    pub(crate) fn processor_time(&self) -> anyhow::Result<ProcessorTime> {
        ProcessorTime::of(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may fail when it has ended by itself, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory, the program's own pages as far as they are in use included.
pub(crate) fn memory_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kilobytes.context("no VmRSS in /proc/PID/status")? * 1024)
}

/// Time that the threads of a process have spent on a processor.
pub(crate) struct ProcessorTime(BTreeMap<OsString, u64>);

impl ProcessorTime {
    /// Reads it for the threads that live now, in nanoseconds: `/proc/PID/stat` counts in hundredths of a second only.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            match fs::read_to_string(task.path().join("schedstat")) {
                Ok(schedstat) => {
                    let first = schedstat.split_ascii_whitespace().next().and_then(|text| text.parse().ok());
                    threads.insert(task.file_name(), first.context("no time in schedstat")?);
                }
                // A thread that has just ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self(threads))
    }

    /// What was spent since `earlier` by the threads that still live.
    pub(crate) fn since(&self, earlier: &Self) -> Duration {
        let spent = |(thread, now): (&OsString, &u64)| now - earlier.0.get(thread).copied().unwrap_or(0);
        Duration::from_nanos(self.0.iter().map(spent).sum())
    }
}
