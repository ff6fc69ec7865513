//! Starts, crashes, commands, and what the supervisor takes for itself.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use codex_control::process::Process;
use codex_control::rpc::EndpointState;
use e2e::home::{SandboxHome, binary, scripted_endpoint};
use e2e::http;
use rustix::process::Signal;

use crate::load::{self, Times};
use crate::process::{self, ProcessorTime, Server};
use crate::table::{Row, Table, mib, ms};
use crate::{Effort, Section};

/// Starts of a worker that are timed.
const STARTS: u32 = 40;
/// Runs of `codexctl status` that are timed.
const STATUS_RUNS: u32 = 100;
/// Endpoints of the supervisor; half of them speak TLS.
const ENDPOINTS: u32 = 10;
/// How long it is watched doing nothing.
const IDLE_S: u32 = 10;
/// An address where nobody is: no request is sent there.
const NOBODY: &str = "127.0.0.1:9/v1";

pub(crate) fn measure(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    if !effort.wants(Section::Control) {
        return Ok(());
    }
    starts(effort, table)?;
    let home = SandboxHome::new();
    let mut settings = String::new();
    for number in 0..ENDPOINTS {
        let scheme = if number < ENDPOINTS / 2 { "http" } else { "https" };
        let section = scripted_endpoint(&format!("{scheme}://{NOBODY}"));
        let id = format!("\"{}\"", name(number));
        writeln!(settings, "{}auth = {{ kind = \"none\" }}\n", section.replacen("\"scripted\"", &id, 1))?;
    }
    home.write_settings(&settings);
    home.start();
    for number in 0..ENDPOINTS {
        home.wait_state(&name(number), EndpointState::Running);
    }
    status(&home, effort, table)?;
    idle(&home, effort, table)?;
    crashes(&home, table)
}

fn name(number: u32) -> String {
    format!("endpoint-{number}")
}

/// A worker alone: how soon it serves, what it holds then.
fn starts(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let count = effort.of(STARTS);
    eprintln!("timing {count} starts of a worker …");
    let home = SandboxHome::new();
    home.write_settings(&format!("{}auth = {{ kind = \"none\" }}\n", scripted_endpoint(&format!("http://{NOBODY}"))));
    let mut times = Times::default();
    let mut memory_bytes = 0;
    for _ in 0..count {
        let mut command = home.command(binary("codex-worker"));
        command.arg("--endpoint").arg(home.paths().settings());
        let begin = Instant::now();
        let worker = Server::start(command)?;
        expect_health(worker.address)?;
        times.add(begin.elapsed());
        memory_bytes = worker.memory_bytes()?;
    }
    table.add(Row::new("worker, memory when idle (MiB)", 1, mib(memory_bytes)).at_most(5.0));
    let what = "worker, exec to the first 200 on /health, p50 (ms)";
    table.add(Row::new(what, 1, ms(times.percentile(50))).at_most(9.0));
    Ok(())
}

fn status(home: &SandboxHome, effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let count = effort.of(STATUS_RUNS);
    eprintln!("timing {count} runs of codexctl status …");
    let mut times = Times::default();
    for _ in 0..count {
        let mut command = home.ctl_command(&["status"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let begin = Instant::now();
        let status = command.status()?;
        times.add(begin.elapsed());
        ensure!(status.success(), "codexctl status failed with {status}");
    }
    let what = format!("codexctl status with {ENDPOINTS} endpoints, p50 (ms)");
    table.add(Row::new(what, 1, ms(times.percentile(50))).at_most(10.0));
    Ok(())
}

/// The supervisor and its workers while nothing happens.
fn idle(home: &SandboxHome, effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let supervisor = home.supervisor_pid().context("the supervisor runs")?;
    let span = Duration::from_secs(effort.of(IDLE_S).into());
    eprintln!("watching a supervisor and its {ENDPOINTS} workers for {} s …", span.as_secs());
    let pids: Vec<u32> = (0..ENDPOINTS)
        .map(|number| home.endpoint(&name(number)).worker_pid.context("the endpoint has a worker"))
        .collect::<anyhow::Result<_>>()?;
    let times =
        || pids.iter().chain([&supervisor]).map(|pid| ProcessorTime::of(*pid)).collect::<anyhow::Result<Vec<_>>>();
    let before = times()?;
    load::sleep_until(Instant::now() + span);
    let percents: Vec<f64> = times()?
        .iter()
        .zip(&before)
        .map(|(after, before)| after.since(before).as_secs_f64() / span.as_secs_f64() * 100.0)
        .collect();
    let (of_supervisor, of_workers) = percents.split_last().context("the supervisor is one of them")?;

    let what = format!("supervisor, memory with {ENDPOINTS} endpoints (MiB)");
    table.add(Row::new(what, 1, mib(process::memory_bytes(supervisor)?)).at_most(15.0));
    let what = format!("supervisor, idle with {ENDPOINTS} endpoints (% of a core)");
    table.add(Row::new(what, 3, *of_supervisor).at_most(0.2));
    let each = of_workers.iter().sum::<f64>() / f64::from(ENDPOINTS);
    table.add(Row::new("worker under a supervisor, idle (% of a core)", 3, each));
    let mean = |pids: &[u32]| -> anyhow::Result<f64> {
        let sum = pids.iter().map(|pid| process::memory_bytes(*pid)).sum::<anyhow::Result<u64>>()?;
        Ok(mib(sum / pids.len() as u64))
    };
    let (plain, tls) = pids.split_at(pids.len() / 2);
    table.add(Row::new("worker under a supervisor, memory when idle (MiB)", 1, mean(plain)?));
    table.add(Row::new("the same for a provider behind TLS, certificates read (MiB)", 1, mean(tls)?));
    Ok(())
}

/// Kills each worker once and waits until the same address answers again.
fn crashes(home: &SandboxHome, table: &mut Table) -> anyhow::Result<()> {
    eprintln!("killing {ENDPOINTS} workers …");
    let mut times = Times::default();
    for number in 0..ENDPOINTS {
        let endpoint = home.endpoint(&name(number));
        let address = endpoint.address.context("the endpoint has an address")?;
        let worker = Process::open(endpoint.worker_pid.context("the endpoint has a worker")?)?;
        let begin = Instant::now();
        worker.signal(Signal::KILL)?;
        expect_health(address)?;
        times.add(begin.elapsed());
    }
    table.add(Row::new("crash of a worker to the next 200, p50 (ms)", 1, ms(times.percentile(50))).at_most(50.0));
    table.add(Row::new("the same, the slowest of ten (ms)", 1, ms(times.percentile(100))).at_most(50.0));
    Ok(())
}

fn expect_health(address: SocketAddr) -> anyhow::Result<()> {
    let health = http::request(address, "GET", "/health", &[], b"")?;
    ensure!(health.status == 200, "the worker's health is {}: {}", health.status, health.text());
    Ok(())
}
