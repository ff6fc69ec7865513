//! The same worker under us and under other supervisors: what a kill looks like to who connects, in one table.
//!
//! The others start a program again when it has ended and know nothing of its listener, so the worker binds its own
//! there, as any server under them does.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use codex_control::process::Process;
use codex_control::{credentials, token};
use e2e::home::{PROVIDER_KEY, SandboxHome, binaries, scripted_endpoint};
use e2e::leftovers;

use crate::clients::{Asked, Knocker, Knocks, Load, Streams, healthy, wait};
use crate::drip::Drip;
use crate::rig::{ENDPOINT, Rig, answers_after, kill};
use crate::{HUNG, KILL_INTERVAL, Times, bail_if_missing};

/// Streams that are open when a supervisor is killed.
const STREAMS: usize = 20;
/// Time for a supervisor that was started again to do what it does about the worker it finds.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// Kills the worker under each, then the supervisor itself, and prints what came of it.
pub(crate) fn compare(count: u32) -> anyhow::Result<()> {
    bail_if_missing("s6-supervise")?;
    bail_if_missing("supervisord")?;
    println!("worker killed {count} times under each supervisor, the supervisor itself once");
    let rows = [ours(count)?, s6(count)?, supervisord(count)?];
    println!(
        "  {:<16} {:>9} {:>8} {:>9} {:>8} {:>6} {:>11} {:>11}  {:<18} worker goes on",
        "", "connected", "refused", "answered", "refused", "hung", "kill→ p50", "p99", "supervisor killed"
    );
    for row in rows {
        println!("  {row}");
    }
    println!("  hung: a request that took longer than {HUNG:?}; kill→: kill of the worker to an answer");
    Ok(())
}

/// What a supervisor makes of kills.
struct Row {
    name: &'static str,
    knocks: Knocks,
    asked: Asked,
    times: Times,
    /// Streams that broke when it was killed itself.
    broken: usize,
    /// Whether the worker that it had then is supervised by the next one.
    goes_on: bool,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, knocks, asked, times, broken, goes_on } = self;
        let ms = |percent| format!("{:.1} ms", times.percentile(percent).as_secs_f64() * 1_000.0);
        write!(
            f,
            "{name:<16} {:>9} {:>8} {:>9} {:>8} {:>6} {:>11} {:>11}  {:<18} {}",
            knocks.connected,
            knocks.refused,
            asked.answered,
            asked.refused,
            asked.hung,
            ms(50),
            ms(99),
            format!("{broken} of {STREAMS} broken"),
            if *goes_on { "supervised" } else { "unsupervised" }
        )
    }
}

/// Kills `count` workers while connections are made and requests sent.
fn under_load(
    count: u32,
    address: SocketAddr,
    token: &str,
    worker: impl Fn() -> anyhow::Result<Process>,
) -> anyhow::Result<(Knocks, Asked, Times)> {
    let (knocker, load) = (Knocker::start(address), Load::start(address, token, 2));
    let mut times = Times::default();
    for _ in 0..count {
        times.add(answers_after(address, kill(&worker()?)?)?);
        let next_at = Instant::now() + KILL_INTERVAL;
        wait("the time between two kills to pass", || (Instant::now() >= next_at).then_some(()))?;
    }
    Ok((knocker.finish(), load.finish(), times))
}

/// The worker under our own supervisor.
fn ours(count: u32) -> anyhow::Result<Row> {
    let drip = Drip::start()?;
    let rig = Rig::alone(&scripted_endpoint(&drip.base_url()))?;
    let (address, token) = (rig.address()?, rig.token()?);
    let (knocks, asked, times) = under_load(count, address, &token, || rig.worker())?;
    let mut streams = Streams::new(address, token)?;
    streams.open(STREAMS)?;
    let before = rig.worker()?;
    kill(&rig.supervisor()?)?;
    rig.come_back()?;
    let goes_on = rig.worker()?.identity() == before.identity();
    drip.enough();
    streams.finish()?;
    rig.stop()?;
    Ok(Row { name: "codex-supervisor", knocks, asked, times, broken: streams.broken(), goes_on })
}

/// The worker under `s6-supervise`.
fn s6(count: u32) -> anyhow::Result<Row> {
    measure("s6", count, |home, address| {
        let folder = home.path("s6/worker");
        fs::create_dir_all(&folder)?;
        let run = folder.join("run");
        fs::write(&run, format!("#!/bin/sh\nexec {} > /dev/null 2>&1\n", command_line(home, address)))?;
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755))?;
        let mut command = home.command("s6-supervise");
        command.arg(folder);
        Ok(command)
    })
}

/// The worker under `supervisord`.
fn supervisord(count: u32) -> anyhow::Result<Row> {
    measure("supervisord", count, |home, address| {
        let worker = command_line(home, address);
        let text = format!(
            "[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile=%(here)s/supervisord.pid\n\
             [program:worker]\ncommand={worker}\nautorestart=true\nstartsecs=0\nstartretries=1000000\n\
             stdout_logfile=/dev/null\nstderr_logfile=/dev/null\n"
        );
        home.write("supervisord/supervisord.conf", &text);
        let mut command = home.command("supervisord");
        command.arg("--configuration").arg(home.path("supervisord/supervisord.conf"));
        Ok(command)
    })
}

fn command_line(home: &SandboxHome, address: SocketAddr) -> String {
    let file = home.path("endpoint.toml");
    format!("{} --listen {address} --endpoint {}", binaries().join("codex-worker").display(), file.display())
}

fn measure(
    name: &'static str,
    count: u32,
    command: impl Fn(&SandboxHome, SocketAddr) -> anyhow::Result<Command>,
) -> anyhow::Result<Row> {
    let drip = Drip::start()?;
    let home = SandboxHome::new();
    home.write("endpoint.toml", &scripted_endpoint(&drip.base_url()));
    let id = ENDPOINT.parse().expect("the name is a good one");
    credentials::store(&home.paths(), &id, PROVIDER_KEY)?;
    // Free a moment ago: nobody else on this machine is in a hurry to have it.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let start = || -> anyhow::Result<Child> {
        let mut command = command(&home, address)?;
        Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    };
    let mut supervisor = start()?;
    healthy(address)?;
    let token = token::read_token(&home.paths().token(&id))?.context("the worker has made no token")?;
    let (knocks, asked, times) = under_load(count, address, token.expose(), || worker(&home))?;
    let mut streams = Streams::new(address, token.expose().to_owned())?;
    streams.open(STREAMS)?;
    let before = worker(&home)?;
    supervisor.kill()?;
    supervisor.wait()?;
    let mut supervisor = start()?;
    let settled = Instant::now() + SETTLES_WITHIN;
    wait("it to settle", || (Instant::now() >= settled).then_some(()))?;
    let goes_on = is_child_of(&before, supervisor.id());
    drip.enough();
    streams.finish()?;
    supervisor.kill()?;
    supervisor.wait()?;
    for left in leftovers::processes(&home.path("home")) {
        let _ = left.process.signal(rustix::process::Signal::KILL); // one that has ended already is what this is for
    }
    Ok(Row { name, knocks, asked, times, broken: streams.broken(), goes_on })
}

fn worker(home: &SandboxHome) -> anyhow::Result<Process> {
    wait("the worker", || {
        let is_worker =
            |command: &str| command.split(' ').next().is_some_and(|program| program.ends_with("/codex-worker"));
        leftovers::processes(&home.path("home"))
            .into_iter()
            .find(|left| is_worker(&left.command))
            .map(|left| left.process)
    })
}

fn is_child_of(process: &Process, parent: u32) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(process.identity().pid.to_string()).join("status"));
    status.is_ok_and(|status| status.lines().any(|line| line == format!("PPid:\t{parent}")))
}
