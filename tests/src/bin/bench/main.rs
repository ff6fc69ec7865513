//! The benchmark behind scripts/bench.sh: prints one table.
//!
//! Measures what a person would notice (how soon the first word comes, how much memory a worker holds, how fast
//! commands answer) and puts two floors beside it in the same run: the provider spoken to directly, and a plain hyper
//! pass-through. Requests take turns between the three, so that a noisy moment hits all of them.
//!
//! | module | what |
//! |---|---|
//! | [`upstream`] | a provider that answers at once |
//! | [`relay`] | the pass-through: hyper on both sides and nothing in between |
//! | [`load`] | requests of the sizes Codex sends, and their timing |
//! | [`process`] | memory and processor time of a process, from `/proc` |
//! | [`table`] | figures into lines |

mod load;
mod process;
mod relay;
mod table;
mod upstream;

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use codex_control::rpc::EndpointState;
use e2e::home::{SandboxHome, binary, scripted_endpoint};
use e2e::http;
use e2e::until::until;

use crate::load::{Route, Shape};
use crate::process::Usage;
use crate::table::{Row, Table};

/// Measures the release build and prints one table.
///
/// Example: bench
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    part: Option<Part>,
}

/// Parts that the benchmark starts as processes of their own.
#[derive(Subcommand)]
enum Part {
    /// A provider that answers at once, on the listener passed as stdin
    Upstream,
    /// A pass-through to this address, on the listener passed as stdin
    Relay {
        /// Where it passes requests to
        to: SocketAddr,
    },
}

/// Starts of a worker that are timed.
const STARTS: usize = 30;
/// Runs of `codexctl status` that are timed.
const STATUS_RUNS: usize = 50;
/// Size of a request and how often it is sent on each route: enough for a steady p99, bounded by the time it takes.
const SIZES: [(usize, u32); 3] = [(2_000, 4_000), (60_000, 2_000), (1_000_000, 300)];
/// Requests sent before any is timed.
const WARM_UP: usize = 50;
/// Longest time for a process to answer.
const DEADLINE: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    match Options::parse().part {
        Some(Part::Upstream) => upstream::run(),
        Some(Part::Relay { to }) => relay::run(to),
        None => measure(),
    }
}

/// A process that is killed when it goes out of scope.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts `command` with a fresh listener as its stdin.
    fn start(mut command: Command) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener))).stdout(Stdio::null());
        let child = command.spawn().with_context(|| format!("{} does not start", command.get_program().display()))?;
        Ok(Self { child, address })
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        process::usage(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may fail when it has ended by itself, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn part(arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

fn measure() -> anyhow::Result<()> {
    let home = SandboxHome::new();
    let upstream = Server::start(part(&["upstream"])?)?;
    let base_url = format!("http://{}/v1", upstream.address);
    home.write_settings(&format!("{}auth = {{ kind = \"none\" }}\n", scripted_endpoint(&base_url)));
    let settings = home.paths().settings();
    let worker_command = || {
        let mut command = home.command(binary("codex-worker"));
        command.arg("--endpoint").arg(&settings).env("CODEX_SUPERVISOR_LOG", "warn");
        command
    };
    let mut table = Table::default();

    eprintln!("timing {STARTS} starts of a worker …");
    let mut starts = Vec::new();
    let mut idle_bytes = 0;
    for _ in 0..STARTS {
        let begin = Instant::now();
        let worker = Server::start(worker_command())?;
        let health = http::request(worker.address, "GET", "/health", &[], b"")?;
        starts.push(begin.elapsed());
        ensure!(health.status == 200, "the worker's health is {}", health.status);
        idle_bytes = worker.usage()?.memory_bytes;
    }
    table.add(Row::new("worker, memory when idle (MiB)").worker(table::mib(idle_bytes)).target("5"));
    table.add(
        Row::new("worker, exec to first 200 on /health, p50 (ms)")
            .worker(table::ms(load::percentile(&mut starts, 50)))
            .target("9"),
    );

    eprintln!("timing {STATUS_RUNS} runs of codexctl status …");
    home.start();
    home.wait_state("scripted", EndpointState::Running);
    let mut runs = Vec::new();
    for _ in 0..STATUS_RUNS {
        let mut command = home.ctl_command(&["status"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let begin = Instant::now();
        let status = command.status()?;
        runs.push(begin.elapsed());
        ensure!(status.success(), "codexctl status failed with {status}");
    }
    table.add(Row::new("codexctl status, p50 (ms)").worker(table::ms(load::percentile(&mut runs, 50))).target("10"));
    let supervisor = process::usage(home.supervisor_pid().context("the supervisor runs")?)?;
    table.add(
        Row::new("supervisor, memory with one endpoint (MiB)").worker(table::mib(supervisor.memory_bytes)).target("15"),
    );
    home.stop();

    let relay = Server::start(part(&["relay", &upstream.address.to_string()])?)?;
    let worker = Server::start(worker_command())?;
    let token = until("the worker's token", DEADLINE, || {
        http::request(worker.address, "GET", "/health", &[], b"").ok()?;
        codex_control::token::read_token(&home.paths().token(&"scripted".parse().ok()?)).ok()?
    });
    for (bytes, count) in SIZES {
        eprintln!("timing {count} requests of {bytes} bytes on each of three routes …");
        let ours = Route::responses(worker.address, token.expose(), &load::body(bytes));
        // The other two carry exactly what the worker sends upstream.
        ours.send(&Shape::Responses)?;
        let sent = http::request(upstream.address, "GET", "/last", &[], b"")?.body;
        let routes = [
            (Route::chat(upstream.address, &sent), Shape::Chat),
            (Route::chat(relay.address, &sent), Shape::Chat),
            (ours, Shape::Responses),
        ];
        for _ in 0..WARM_UP {
            for (route, shape) in &routes {
                route.send(shape)?;
            }
        }
        let before = [relay.usage()?, worker.usage()?];
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..count {
            for ((route, shape), times) in routes.iter().zip(&mut times) {
                times.push(route.send(shape)?);
            }
        }
        let processor_us = [&relay, &worker].into_iter().zip(before).map(|(server, before)| {
            Ok(server.usage()?.processor.saturating_sub(before.processor).as_secs_f64() * 1e6 / f64::from(count))
        });
        let processor_us: Vec<f64> = processor_us.collect::<anyhow::Result<_>>()?;
        let size = format!("{} KB", bytes / 1_000);
        for (percent, target) in [(50, ["150", "220", "1000"]), (99, ["", "450", ""])] {
            let [direct, relayed, translated] = [0, 1, 2].map(|route| load::percentile(&mut times[route], percent));
            let place = SIZES.iter().position(|(known, _)| *known == bytes).unwrap_or_default();
            table.add(
                Row::new(&format!("first delta of a {size} request, p{percent} (µs)"))
                    .direct(table::us(direct))
                    .relay(table::us(relayed))
                    .worker(table::us(translated))
                    .added(direct, relayed, translated)
                    .target(target[place]),
            );
        }
        table.add(
            Row::new(&format!("processor time of a {size} request (µs)"))
                .relay(format!("{:.0}", processor_us[0]))
                .worker(format!("{:.0}", processor_us[1]))
                .target(if bytes == 1_000_000 { "1200" } else { "" }),
        );
    }
    table.add(
        Row::new("worker, memory after all runs (MiB)").worker(table::mib(worker.usage()?.memory_bytes)).target("25"),
    );
    println!("{table}");
    Ok(())
}
