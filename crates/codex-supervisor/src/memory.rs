//! How much memory processes use.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tracing::warn;

/// A figure may be this old: nobody sees the difference, and each look costs several system calls a process.
const INTERVAL: Duration = Duration::from_secs(5);

/// The latest samples.
pub(crate) struct Memory {
    /// `None` where the system does not tell.
    system: Option<System>,
    bytes: HashMap<u32, u64>,
    sampled_at: Option<Instant>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Memory {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        let system = System::new().inspect_err(|error| warn!(%error, "no memory figures")).ok();
        Self { system, bytes: HashMap::new(), sampled_at: None }
    }

    /// Whether the latest look was a moment ago and saw all of `pids`.
    pub(crate) fn is_recent(&self, now: Instant, pids: &[u32]) -> bool {
        self.sampled_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL)
            && pids.iter().all(|pid| self.bytes.contains_key(pid))
    }

    /// There is something new to see.
    pub(crate) fn outdate(&mut self) {
        self.sampled_at = None;
    }

    /// Looks at these processes and forgets all others.
    pub(crate) fn sample(&mut self, pids: &[u32], now: Instant) {
        self.sampled_at = Some(now);
        let Some(system) = &mut self.system else { return };
        let pids: Vec<Pid> = pids.iter().map(|pid| Pid::from_u32(*pid)).collect();
        let kind = ProcessRefreshKind::nothing().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, kind);
        let resident = |pid: &Pid| system.process(*pid).map(|process| (pid.as_u32(), process.memory()));
        self.bytes = pids.iter().filter_map(resident).collect();
    }

    /// What is a process's own of its resident bytes, each shared page in equal parts to all who share it.
    ///
    /// The kernel walks through its pages for this, which takes milliseconds: not for every sample.
    pub(crate) fn proportional_bytes(pid: u32) -> Option<u64> {
        const KIB: u64 = 1024;
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let kib =
            text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib * KIB)
    }

    /// Resident bytes of a process at the latest look.
    pub(crate) fn bytes(&self, pid: u32) -> Option<u64> {
        self.bytes.get(&pid).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_some_memory() {
        let mut memory = Memory::new();
        let now = Instant::now();
        memory.sample(&[std::process::id()], now);
        let bytes = memory.bytes(std::process::id()).unwrap();
        assert!((100_000..10_000_000_000).contains(&bytes), "{bytes}");
        let own = [std::process::id()];
        assert!(memory.is_recent(now, &own) && !memory.is_recent(now, &[1]));
        assert!(!memory.is_recent(now + INTERVAL, &own));
        memory.outdate();
        assert!(!memory.is_recent(now, &own));
        memory.sample(&[], now);
        assert_eq!(memory.bytes(std::process::id()), None);
        let own_share = Memory::proportional_bytes(std::process::id()).unwrap();
        assert!((10_000..10_000_000_000).contains(&own_share), "{own_share}");
    }
}
