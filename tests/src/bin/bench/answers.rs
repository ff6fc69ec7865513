//! Requests through a worker, beside the same requests past it: time, processor time, memory.

use std::net::TcpStream;
use std::time::Duration;

use codex_control::environment::WORKER_ALLOCATOR;
use e2e::home::{SandboxHome, binary, scripted_endpoint};
use e2e::http;
use e2e::until::until;

use crate::load::{self, Route, Times};
use crate::process::Server;
use crate::provider::Script;
use crate::table::{Row, Table, mib, us};
use crate::{Effort, Section, body};

/// Longest time for a worker to be there.
const DEADLINE: Duration = Duration::from_secs(10);
/// Size of a request, how often it is sent on each route, and the targets for the time it adds at p50 and p99.
const SIZES: [(usize, u32, Option<f64>, Option<f64>); 3] = [
    (2_000, 4_000, Some(150.0), None),
    (60_000, 3_000, Some(220.0), Some(450.0)),
    (1_000_000, 600, Some(1_000.0), None),
];
/// Requests of an open loop: size, rate, how many on each route.
const OPEN_LOOP: (usize, u32, u32) = (60_000, 300, 2_400);
/// Slices an open loop is cut into, so that the routes take turns.
const OPEN_LOOP_SLICES: u32 = 4;
/// Requests of a closed loop: size, how many, and the target in streams a second of processor time.
const CLOSED_LOOPS: [(usize, u32, f64); 2] = [(2_000, 12_000, 7_500.0), (60_000, 8_000, 5_000.0)];
/// Clients of a closed loop.
const CLOSED_LOOP_CLIENTS: usize = 8;
/// Answers of twenty thousand events.
const BURSTS: u32 = 60;
/// Answers of half a second.
const PACED_ANSWERS: u32 = 10;
/// Streams held open.
const HELD_STREAMS: u32 = 1_000;
/// Window of the models.
const CONTEXT_WINDOW_TOKENS: u32 = 1_000_000;
/// Requests sent before any is timed.
const WARM_UP: u32 = 50;

/// The three ways of an answer.
struct Routes {
    direct: Route,
    relay: Route,
    ours: Route,
}

struct Stage {
    provider: Server,
    relay: Server,
    worker: Server,
    token: String,
}

pub(crate) fn measure(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let home = SandboxHome::new();
    let provider = Server::part(&["provider"])?;
    let relay = Server::part(&["relay", &provider.address.to_string()])?;
    let base_url = format!("http://{}/v1", provider.address);
    // A megabyte fits the window: what is measured is a history that is carried, not one that is shortened.
    let model = format!("[[endpoint.model]]\nid = \"*\"\ncontext_window = {CONTEXT_WINDOW_TOKENS}\n");
    home.write_settings(&format!("{}auth = {{ kind = \"none\" }}\n{model}", scripted_endpoint(&base_url)));
    let mut command = home.command(binary("codex-worker"));
    // The lines of its log are written as always, to where a supervisor's log goes.
    let log = std::fs::File::create(home.path("logs/worker.err"))?;
    command.arg("--endpoint").arg(home.paths().settings()).envs(WORKER_ALLOCATOR).stderr(log);
    let worker = Server::start(command)?;
    let token = until("the worker's token", DEADLINE, || {
        http::request(worker.address, "GET", "/health", &[], b"").ok()?;
        codex_control::token::read_token(&home.paths().token(&"scripted".parse().ok()?)).ok()?
    });
    let stage = Stage { provider, relay, worker, token: token.expose().to_owned() };

    for (section, size) in [Section::Small, Section::Medium, Section::Large].into_iter().zip(SIZES) {
        if effort.wants(section) {
            stage.first_delta(effort, size, table)?;
        }
    }
    if effort.wants(Section::OpenLoop) {
        stage.open_loop(effort, table)?;
    }
    if effort.wants(Section::Burst) {
        stage.burst(effort, table)?;
    }
    if effort.wants(Section::Paced) {
        stage.paced(effort, table)?;
    }
    if effort.wants(Section::ClosedLoop) {
        for (bytes, count, target) in CLOSED_LOOPS {
            stage.closed_loop(effort, bytes, count, target, table)?;
        }
    }
    if effort.wants(Section::Held) {
        stage.held(effort, table)?;
    }
    let memory = mib(stage.worker.memory_bytes()?);
    table.add(Row::new("worker, memory after all runs (MiB)", 1, memory).at_most(25.0));
    Ok(())
}

impl Stage {
    fn routes(&self, bytes: usize, script: Script) -> anyhow::Result<Routes> {
        let ours = Route::responses(self.worker.address, &self.token, script, &body::request(bytes, script.model()));
        // The other two carry exactly what the worker sends upstream.
        http::request(self.provider.address, "GET", "/record", &[], b"")?;
        drop(ours.hold()?);
        let sent = until("the recorded request", DEADLINE, || {
            let answer = http::request(self.provider.address, "GET", "/recorded", &[], b"").ok()?;
            (!answer.body.is_empty()).then_some(answer.body)
        });
        Ok(Routes {
            direct: Route::chat(self.provider.address, script, &sent),
            relay: Route::chat(self.relay.address, script, &sent),
            ours,
        })
    }

    /// One request after the other, on the three routes by turns.
    fn first_delta(
        &self,
        effort: Effort,
        (bytes, count, p50, p99): (usize, u32, Option<f64>, Option<f64>),
        table: &mut Table,
    ) -> anyhow::Result<()> {
        let count = effort.of(count);
        eprintln!("timing {count} requests of {bytes} bytes on each of three routes …");
        let routes = self.routes(bytes, Script::Short)?;
        let routes = [&routes.direct, &routes.relay, &routes.ours];
        for _ in 0..effort.of(WARM_UP) {
            for route in routes {
                route.send()?;
            }
        }
        let mut times: [Times; 3] = Default::default();
        let [relay_us, ours_us] = self.processor_us(count, || {
            for _ in 0..count {
                for (route, times) in routes.iter().zip(&mut times) {
                    times.add(route.send()?);
                }
            }
            Ok(())
        })?;
        let size = format!("{} KB", bytes / 1_000);
        for (percent, target) in [(50, p50), (99, p99)] {
            let row = first_delta_row(format!("first delta of a {size} request, p{percent} (µs)"), &mut times, percent);
            table.add(match target {
                Some(target) => row.at_most(target),
                None => row,
            });
        }
        let row = Row::new(format!("processor time of a {size} request (µs)"), 0, ours_us).beside(relay_us);
        table.add(if bytes == 1_000_000 { row.at_most(1_200.0) } else { row });
        Ok(())
    }

    /// Requests at a fixed rate.
    fn open_loop(&self, effort: Effort, table: &mut Table) -> anyhow::Result<()> {
        let (bytes, rate, count) = OPEN_LOOP;
        let count = effort.of(count);
        eprintln!("sending {count} requests of {bytes} bytes at {rate} a second on each of three routes …");
        let routes = self.routes(bytes, Script::Short)?;
        let mut times: [Times; 3] = Default::default();
        for _ in 0..OPEN_LOOP_SLICES {
            for (route, times) in [&routes.direct, &routes.relay, &routes.ours].into_iter().zip(&mut times) {
                load::open_loop(route, rate, count / OPEN_LOOP_SLICES, times)?;
            }
        }
        for percent in [50, 99] {
            let what = format!("the same at {rate} a second, {} KB, p{percent} (µs)", bytes / 1_000);
            table.add(first_delta_row(what, &mut times, percent));
        }
        Ok(())
    }

    fn burst(&self, effort: Effort, table: &mut Table) -> anyhow::Result<()> {
        let count = effort.of(BURSTS);
        let n_events = Script::Burst.deltas();
        eprintln!("taking {count} answers of {n_events} events at once …");
        let [relay_us, ours_us] = self.processor_us_of_each(count, Script::Burst, 1)?;
        // Microseconds for one are milliseconds for a thousand.
        let per_thousand = |time_us: f64| time_us / to_f64(n_events);
        let [relay, ours] = [relay_us, ours_us].map(per_thousand);
        table.add(Row::new("processor time of 1000 events in a burst (ms)", 2, ours).beside(relay).at_most(1.2));
        let row = Row::new("millions of events in a second of processor time", 2, 1.0 / ours);
        table.add(row.beside(1.0 / relay).at_least(0.8));
        Ok(())
    }

    fn paced(&self, effort: Effort, table: &mut Table) -> anyhow::Result<()> {
        let count = effort.of(PACED_ANSWERS);
        let n_events = Script::Paced.deltas();
        eprintln!("taking {count} answers of {n_events} events, ten in a millisecond …");
        let [relay_us, ours_us] = self.processor_us_of_each(count, Script::Paced, 1)?;
        let per_thousand = |time_us: f64| time_us / to_f64(n_events);
        let row = Row::new("processor time of 1000 events, ten in a millisecond (ms)", 2, per_thousand(ours_us));
        table.add(row.beside(per_thousand(relay_us)).at_most(12.0));
        Ok(())
    }

    /// As many as there is processor time for.
    fn closed_loop(
        &self,
        effort: Effort,
        bytes: usize,
        count: u32,
        target: f64,
        table: &mut Table,
    ) -> anyhow::Result<()> {
        let count = effort.of(count);
        eprintln!("sending {count} requests of {bytes} bytes from {CLOSED_LOOP_CLIENTS} clients on two routes …");
        let routes = self.routes(bytes, Script::Short)?;
        let [relay_us, _] =
            self.processor_us(count, || load::closed_loop(&routes.relay, CLOSED_LOOP_CLIENTS, count))?;
        let [_, ours_us] = self.processor_us(count, || load::closed_loop(&routes.ours, CLOSED_LOOP_CLIENTS, count))?;
        let what = format!("streams of {} KB requests in a second of processor time", bytes / 1_000);
        table.add(Row::new(what, 0, 1e6 / ours_us).beside(1e6 / relay_us).at_least(target));
        Ok(())
    }

    fn held(&self, effort: Effort, table: &mut Table) -> anyhow::Result<()> {
        let count = effort.of(HELD_STREAMS);
        eprintln!("holding {count} streams open …");
        let routes = self.routes(2_000, Script::Held)?;
        let before = self.worker.memory_bytes()?;
        let n_files = self.worker.open_files()?;
        let streams: Vec<TcpStream> = (0..count).map(|_| routes.ours.hold()).collect::<anyhow::Result<_>>()?;
        let grown = mib(self.worker.memory_bytes()?.saturating_sub(before));
        drop(streams);
        // Seen from outside: a connection that asked the worker would have a place in its memory itself.
        let mut last = 0;
        until("the end of the streams", DEADLINE, || {
            let (files, memory) = (self.worker.open_files().ok()?, self.worker.memory_bytes().ok()?);
            // Each is closed a little before its memory is free.
            (files <= n_files && std::mem::replace(&mut last, memory) == memory).then_some(())
        });
        let what = "worker, memory of 1000 open streams (MiB)";
        table.add(Row::new(what, 1, grown * 1_000.0 / f64::from(count)).at_most(30.0));
        Ok(())
    }

    /// Processor time of the relay and of the worker for each of `count` answers, taken by turns.
    fn processor_us_of_each(&self, count: u32, script: Script, n_clients: usize) -> anyhow::Result<[f64; 2]> {
        let routes = self.routes(2_000, script)?;
        self.processor_us(count, || {
            for _ in 0..count {
                load::closed_loop(&routes.relay, n_clients, 1)?;
                load::closed_loop(&routes.ours, n_clients, 1)?;
            }
            Ok(())
        })
    }

    /// Processor time that the relay and the worker take meanwhile, each divided by `count`.
    fn processor_us(&self, count: u32, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<[f64; 2]> {
        let before = [self.relay.processor_time()?, self.worker.processor_time()?];
        work()?;
        let after = [self.relay.processor_time()?, self.worker.processor_time()?];
        Ok(std::array::from_fn(|which| us(after[which].since(&before[which])) / f64::from(count)))
    }
}

fn first_delta_row(what: String, times: &mut [Times; 3], percent: usize) -> Row {
    let [direct, relay, ours] = times.each_mut().map(|times| us(times.percentile(percent)));
    Row::new(what, 0, ours).above(direct, relay)
}

#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn to_f64(count: usize) -> f64 {
    count as f64
}
