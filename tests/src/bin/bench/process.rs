//! What a process uses, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// Memory and processor time.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    /// Resident memory.
    pub(crate) memory_bytes: u64,
    /// Time on a processor since its start, in user and system mode.
    pub(crate) processor: Duration,
}

/// Position of `utime` (field 14) behind the program's name, which is field 2; `stime` follows.
const USER_TIME: usize = 11;

/// `USER_HZ`, part of the kernel's interface and the same on every machine this runs on.
const TICKS_PER_SECOND: u64 = 100;

pub(crate) fn usage(pid: u32) -> anyhow::Result<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name in /proc/PID/stat")?;
    let ticks: u64 =
        fields.split_ascii_whitespace().skip(USER_TIME).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    Ok(Usage {
        memory_bytes: kilobytes.context("no VmRSS in /proc/PID/status")? * 1024,
        processor: Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND),
    })
}
