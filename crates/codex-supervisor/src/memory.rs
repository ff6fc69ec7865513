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

    /// Looks at these processes and forgets all others, unless they were looked at a moment ago.
    pub(crate) fn sample(&mut self, pids: &[u32], now: Instant) {
        let is_recent = self.sampled_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL);
        if is_recent && pids.iter().all(|pid| self.bytes.contains_key(pid)) {
            return;
        }
        self.sampled_at = Some(now);
        let Some(system) = &mut self.system else { return };
        let pids: Vec<Pid> = pids.iter().map(|pid| Pid::from_u32(*pid)).collect();
        let kind = ProcessRefreshKind::nothing().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, kind);
        let resident = |pid: &Pid| system.process(*pid).map(|process| (pid.as_u32(), process.memory()));
        self.bytes = pids.iter().filter_map(resident).collect();
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
        memory.sample(&[], now);
        assert_eq!(memory.bytes(std::process::id()), Some(bytes), "a moment later nothing is looked at");
        memory.sample(&[], now + INTERVAL);
        assert_eq!(memory.bytes(std::process::id()), None);
    }
}
