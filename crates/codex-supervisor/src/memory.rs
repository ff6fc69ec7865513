//! How much memory processes use.

use std::collections::HashMap;
use std::fmt;

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// The latest samples.
#[derive(Default)]
pub(crate) struct Memory {
    system: System,
    bytes: HashMap<u32, u64>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Memory {
    /// Looks at these processes and forgets all others.
    pub(crate) fn sample(&mut self, pids: &[u32]) {
        let pids: Vec<Pid> = pids.iter().map(|pid| Pid::from_u32(*pid)).collect();
        let kind = ProcessRefreshKind::nothing().with_memory().without_tasks();
        self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, kind);
        let resident = |pid: &Pid| self.system.process(*pid).map(|process| (pid.as_u32(), process.memory()));
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
        let mut memory = Memory::default();
        memory.sample(&[std::process::id()]);
        let bytes = memory.bytes(std::process::id()).unwrap();
        assert!((100_000..10_000_000_000).contains(&bytes), "{bytes}");
        memory.sample(&[]);
        assert_eq!(memory.bytes(std::process::id()), None);
    }
}
