//! Shows that a process whose number was given to another one is never taken for it. Must be the first process of a pid
//! namespace, where it decides who gets which number:
//!
//! `unshare --user --map-root-user --pid --fork --mount-proc pid-reuse TIMES WORKERS`
//!
//! `TIMES` numbers are given to another process that looks the same, and what the product knows of the first is tried on
//! the second. Then `WORKERS` workers are killed with their supervisor, and the next supervisor finds a look-alike with
//! the worker's number; every other time the registry says its start time, too.
//!
//! Prints `{"reused":N,"same_tick":N,"workers":N}`, or ends with a failure that says what was mistaken for what.
//!
//! The kernel gives out the number behind `ns_last_pid`. `clone3` with `set_tid` would say it in one step, but nothing
//! that may be called without `unsafe` offers it; and here nobody but our own children could take a number in between.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use codex_control::process::Process;
use codex_control::registry::{Loaded, Registry};
use codex_control::rpc::EndpointState;
use codex_control::tree::{self, Patience, Spared};
use e2e::home::{PROVIDER_KEY, SandboxHome, scripted_endpoint};
use e2e::strangers::look_alike;
use rustix::process::{Pid, Signal, WaitOptions};

/// The number that is used again and again.
const PID: u32 = 3_000;
/// Tries to get it; a child of ours may start something in between.
const TRIES_MAX: u32 = 100;
const PATIENCE: Patience = Patience { term: Duration::from_millis(1), kill: Duration::from_millis(1) };

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|number| number.parse::<u64>());
    let mut number = || arguments.next().context("how many times, and how many workers?")?.context("a number");
    let (times, workers) = (number()?, number()?);
    let (mut reused, mut same_tick) = (0, 0);
    while reused < times {
        same_tick += u64::from(reuse()?);
        reused += 1;
    }
    reuse_workers(workers)?;
    println!("{{\"reused\":{reused},\"same_tick\":{same_tick},\"workers\":{workers}}}");
    Ok(())
}

/// Gives the number of a process to another one; says whether both have the same start time.
fn reuse() -> anyhow::Result<bool> {
    let mut sleep = Command::new("sleep");
    sleep.arg("86400").stdin(Stdio::null());
    let mut first = start_at(PID, &mut sleep)?;
    let held = Process::open(PID)?;
    let known = held.identity().clone();
    first.kill()?;
    first.wait()?;
    let mut stranger = start_at(PID, &mut sleep)?;
    let present = Process::open(PID)?;
    ensure!(present.identity() != &known, "the stranger has the identity of the first");
    ensure!(Process::open_identity(&known).is_err(), "the stranger was taken for the first");
    ensure!(!held.signal(Signal::KILL)?, "a signal for the first went somewhere");
    ensure!(held.has_ended() && held.parent().is_none(), "the first seems to live");
    ensure!(tree::below(&held, &Spared::default()).is_empty() && tree::in_group(&held).is_empty());
    let ended = tree::end(|| Process::open_identity(&known).into_iter().collect(), PATIENCE);
    ensure!(ended == tree::Ended::default(), "something was ended: {ended:?}");
    ensure!(stranger.try_wait()?.is_none() && !present.has_ended(), "the stranger was ended");
    stranger.kill()?;
    stranger.wait()?;
    Ok(present.identity().start_ticks == known.start_ticks)
}

/// Gives the numbers of workers to look-alikes, and starts the next supervisor.
fn reuse_workers(times: u64) -> anyhow::Result<()> {
    let home = SandboxHome::new();
    home.write_settings(&scripted_endpoint("http://127.0.0.1:9/v1"));
    home.store_key("scripted", PROVIDER_KEY);
    home.start();
    let mut before = home.wait_state("scripted", EndpointState::Running);
    for time in 0..times {
        let pid = before.worker_pid.context("a running endpoint has a worker")?;
        let worker = Process::open(pid)?;
        let mut alike = look_alike(&worker)?;
        home.kill_supervisor();
        ensure!(worker.signal(Signal::KILL)?, "the worker ended with its supervisor");
        // It is our child now that its parent is gone, and its number is its own until somebody has waited for it.
        rustix::process::waitpid(i32::try_from(pid).ok().and_then(Pid::from_raw), WaitOptions::empty())?;
        let mut stranger = start_at(pid, &mut alike)?;
        let present = Process::open(pid)?;
        if time % 2 == 1 {
            let path = home.paths().registry();
            let Loaded::Good(mut registry) = Registry::load(&path) else { bail!("there is no registry") };
            registry.workers[0].identity.start_ticks = present.identity().start_ticks;
            registry.store(&path)?;
        }
        home.start();
        before = home.wait_state("scripted", EndpointState::Running);
        ensure!(before.worker_pid != Some(pid), "the stranger was taken for the worker");
        ensure!(stranger.try_wait()?.is_none() && !present.has_ended(), "the stranger was ended");
        stranger.kill()?;
        stranger.wait()?;
    }
    Ok(())
}

/// Starts `command` with that number.
fn start_at(pid: u32, command: &mut Command) -> anyhow::Result<Child> {
    for _ in 0..TRIES_MAX {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
            .context("this is no pid namespace of its own")?;
        let mut child = command.spawn()?;
        if child.id() == pid {
            return Ok(child);
        }
        child.kill()?;
        child.wait()?;
    }
    bail!("the number {pid} is not to be had")
}
