//! The same worker under other supervisors: what a kill looks like to who connects.
//!
//! They start a program again when it has ended and know nothing of its listener, so the worker binds its own here,
//! as any server under them does.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use codex_control::process::Process;
use codex_control::{credentials, token};
use e2e::home::{PROVIDER_KEY, SandboxHome, binaries, scripted_endpoint};
use e2e::leftovers;

use crate::clients::{Knocker, Streams, healthy, wait};
use crate::drip::Drip;
use crate::rig::{ENDPOINT, kill};
use crate::{Times, bail_if_missing};

/// Kills the worker under `s6-supervise`, then s6 itself.
pub(crate) fn s6(count: u32) -> anyhow::Result<()> {
    bail_if_missing("s6-supervise")?;
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

/// Kills the worker under `supervisord`, then supervisord itself.
pub(crate) fn supervisord(count: u32) -> anyhow::Result<()> {
    bail_if_missing("supervisord")?;
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
    name: &str,
    count: u32,
    command: impl Fn(&SandboxHome, SocketAddr) -> anyhow::Result<Command>,
) -> anyhow::Result<()> {
    println!("worker killed {count} times under {name}, {name} itself once");
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
    answering(address)?;
    let knocker = Knocker::start(address);
    let mut times = Times::default();
    for _ in 0..count {
        let at = kill(&worker(&home)?)?;
        times.add(answering(address).map(|()| at.elapsed())?);
    }
    let knocks = knocker.finish();
    println!("  connections: {} made, {} refused", knocks.connected, knocks.refused);
    println!("  kill to accepting: {times}");
    let token = token::read_token(&home.paths().token(&id))?.context("the worker has made no token")?;
    let mut streams = Streams::new(address, token.expose().to_owned())?;
    streams.open(20)?;
    let before = worker(&home)?;
    supervisor.kill()?;
    supervisor.wait()?;
    let mut supervisor = start()?;
    let settled = Instant::now() + std::time::Duration::from_secs(5);
    wait("it to settle", || (Instant::now() >= settled).then_some(()))?;
    let is_watched = is_child_of(&before, supervisor.id());
    drip.enough();
    streams.finish()?;
    println!(
        "  {name} killed: {} of 20 streams broken; its worker is supervised afterwards: {is_watched}",
        streams.broken()
    );
    supervisor.kill()?;
    supervisor.wait()?;
    for left in leftovers::processes(&home.path("home")) {
        let _ = left.process.signal(rustix::process::Signal::KILL); // one that has ended already is what this is for
    }
    Ok(())
}

/// Waits until somebody answers; refused connections are made again.
fn answering(address: SocketAddr) -> anyhow::Result<()> {
    healthy(address)
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
