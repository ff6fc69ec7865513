//! How much memory processes use.

use std::collections::{HashMap, VecDeque};
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

/// Samples a [`Trend`] looks back on.
const SAMPLES_MAX: usize = 4;
/// Samples that must all grow before a trend is believed.
const SAMPLES_MIN: usize = 3;
/// How far a trend looks ahead: the time of some samples, and of the start of another worker.
const AHEAD: Duration = Duration::from_secs(20);

/// How the memory of one process develops.
#[derive(Debug, Default)]
pub(crate) struct Trend {
    samples: VecDeque<(Instant, u64)>,
}

impl Trend {
    /// Adds a sample.
    pub(crate) fn add(&mut self, now: Instant, bytes: u64) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, bytes));
    }

    /// Whether it comes so near to `limit` that something should be done: three quarters of it are used, or more than
    /// one quarter is and it grows so that the rest will soon be.
    pub(crate) fn nears(&self, limit: u64) -> bool {
        let Some(&(now, bytes)) = self.samples.back() else { return false };
        if bytes >= limit / 4 * 3 {
            return true;
        }
        let Some(&(since, before)) = self.samples.front().filter(|_| self.grows()) else { return false };
        let span_ms = u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX).max(1);
        let ahead_ms = u64::try_from(AHEAD.as_millis()).unwrap_or(u64::MAX);
        bytes >= limit / 4 && bytes.saturating_add((bytes - before).saturating_mul(ahead_ms) / span_ms) >= limit
    }

    /// Whether it has used more at each of the latest looks.
    pub(crate) fn grows(&self) -> bool {
        self.samples.len() >= SAMPLES_MIN
            && self.samples.iter().zip(self.samples.iter().skip(1)).all(|(one, next)| next.1 > one.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_leak_is_seen_before_the_limit_and_a_burst_is_no_leak() {
        let start = Instant::now();
        let nears = |samples: &[u64]| {
            let mut trend = Trend::default();
            for (n, mib) in (0_u32..).zip(samples) {
                trend.add(start + n * INTERVAL, mib * MIB);
            }
            trend.nears(1024 * MIB)
        };
        assert!(!nears(&[]));
        for (samples, expected) in [
            (&[5, 255, 505][..], true), // 50 MiB/s: ten seconds before the limit
            (&[5, 255], false),
            (&[5, 6, 700], true),
            (&[5, 6, 500], true),
            (&[5, 700, 690], false),
            (&[300, 310, 320, 330], false),
            (&[5, 105, 205], false), // soon enough at the next sample
            (&[5, 105, 205, 305], false),
            (&[105, 205, 305, 405, 505, 605], false),
            (&[768], true),
        ] {
            assert_eq!(nears(samples), expected, "{samples:?}");
        }
    }

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
