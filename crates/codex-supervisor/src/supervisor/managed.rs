//! One endpoint: its listener, its workers, and what answers in their place.
//!
//! [`Lifecycle`] decides; this carries it out. [`Managed::drive`] brings the endpoint from where it is to where the
//! settings, the person and the circumstances want it, and may be called at any time: it does what is due and no more.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use codex_control::EndpointId;
use codex_control::endpoint::Endpoint;
use codex_control::incident::{self, Observation};
use codex_control::ipc::{self, Assignment, Counters, FromWorker, Problem, RequestOutcome, RequestReport, ToWorker};
use codex_control::process::{Activity, Process};
use codex_control::report;
use codex_control::rpc::{EndpointDetail, EndpointState, EndpointStatus};
use codex_control::settings::Port;
use rustix::net::{AddressFamily, sockopt};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::services::Services;
use crate::backoff::Crashes;
use crate::clock::unix_ms;
use crate::configuration::Planned;
use crate::database::usage;
use crate::event::{Connected, Event, Introduction, WorkerId};
use crate::lifecycle::{Command, End, Fit, HANDOVER_WITHIN, KillReason, Lifecycle, Phase, Wanted};
use crate::memory::{Memory, Trend};
use crate::ports::{self, BindError};
use crate::probe::{self, ProbeError};
use crate::stand_in::StandIn;
use crate::worker::{self, Exit, Launch};
use codex_control::registry::{CrashesEntry, WorkerEntry, fingerprint};

/// Time between two tries at what only somebody else can mend: a port that is taken, a program that is missing.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// The first tries at a taken port come quicker: it may be held by a worker that is just about to end.
const QUICK_TRIES: u32 = 8;
/// Time between two quick tries.
const QUICK_RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Tries at a taken port after which its holder is looked up again; each look walks through all of `/proc`.
const HOLDER_LOOKUP_TRIES: u32 = 20;
/// Time from its start a worker has to look at its key and say if there is a problem, before it counts as working.
const PROBLEM_WITHIN: Duration = Duration::from_secs(2);
/// Time between two replacements because of memory: a new worker needs some time to show what it needs. One that has
/// shown it, by growing at every look to half of its limit, is not waited for.
const RELIEF_PAUSE: Duration = Duration::from_mins(1);
/// While somebody waits for an endpoint's health, a failed probe is repeated after this.
const PROBE_PAUSE: Duration = Duration::from_millis(200);

/// See the module.
pub(super) struct Managed {
    id: EndpointId,
    planned: Planned,
    /// Whether it stands in the settings; if not, it only waits for its workers to end.
    is_listed: bool,
    lifecycle: Lifecycle,
    listener: Option<TcpListener>,
    address: Option<SocketAddr>,
    /// Whether it has got another one and nobody was told.
    has_moved: bool,
    port_trouble: Option<PortTrouble>,
    program_problem: Option<Problem>,
    /// The worker program that turned out to be of another version than we are.
    refused_program: Option<ProgramFile>,
    stand_in: Option<StandIn>,
    workers: BTreeMap<u64, Worker>,
    last_exit: Option<String>,
    /// Since the last one that was answered well.
    n_probes_failed: u64,
    healthy_at_ms: Option<u64>,
    counters: Counters,
    announced: Option<(EndpointState, Option<Problem>)>,
    has_told_tripped: bool,
    /// When a worker was replaced because of its memory.
    relieved_at: Option<Instant>,
    /// What the registry says about its crashes.
    crashes: Crashes,
}

/// A port that cannot be had.
struct PortTrouble {
    problem: Problem,
    retry_at: Instant,
    tries: u32,
}

struct Worker {
    process: Process,
    address: SocketAddr,
    started_at: Instant,
    started_at_ms: u64,
    /// What it is to serve; unknown for the worker of an earlier supervisor.
    endpoint: Option<Endpoint>,
    fingerprint: String,
    connection: Option<Connection>,
    problem: Option<Problem>,
    /// Whether it has said if there is a problem.
    has_settled: bool,
    memory_bytes: Option<u64>,
    trend: Trend,
    known: Known,
    /// Whether it is being moved into a scope of its own.
    is_moving: bool,
    /// Whether it has dialled in and is not told yet what to serve.
    awaits_assignment: bool,
    killed: Option<KillReason>,
    /// What it was doing when it was looked at because it was silent.
    examined: Option<(Instant, Activity)>,
}

impl Worker {
    /// Looks what it is doing; says whether it would do something and has had a processor for less than half of the time
    /// since it was looked at before.
    fn is_starved(&mut self, now: Instant) -> bool {
        let seen = self.process.activity();
        let before = std::mem::replace(&mut self.examined, seen.map(|activity| (now, activity)));
        let (Some(seen), Some((at, before))) = (seen, before) else { return false };
        let (had, elapsed) = (seen.processor_time.saturating_sub(before.processor_time), now - at);
        seen.is_runnable && had < elapsed / 2
    }

    fn is_proven(&self) -> bool {
        self.known != Known::Presumed
    }
}

/// What is known of a worker's process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It looks like one of ours.
    Presumed,
    /// It is ours.
    Ours,
    /// The same, and it speaks another version: when it has dialled in it understands that it is to drain, and nothing
    /// else.
    OursOfOtherVersion,
}

struct Connection {
    number: u64,
    outbox: mpsc::Sender<ToWorker>,
}

impl Managed {
    pub(super) fn new(id: EndpointId, planned: Planned, services: &Services) -> Self {
        let mut seed = [0; 8];
        // Without random numbers all endpoints share their jitter, which is all the jitter is for.
        let _ = getrandom::fill(&mut seed);
        Self {
            lifecycle: Lifecycle::new(services.limits(), u64::from_le_bytes(seed)),
            id,
            planned,
            is_listed: true,
            listener: None,
            address: None,
            has_moved: false,
            port_trouble: None,
            program_problem: None,
            refused_program: None,
            stand_in: None,
            workers: BTreeMap::new(),
            last_exit: None,
            n_probes_failed: 0,
            healthy_at_ms: None,
            counters: Counters::default(),
            announced: None,
            has_told_tripped: false,
            relieved_at: None,
            crashes: Crashes::default(),
        }
    }

    /// Takes a listener that an earlier run of ours had stored with the service manager.
    pub(super) fn inherit(&mut self, listener: TcpListener) {
        match listener.local_addr() {
            Ok(address) => {
                self.address = Some(address);
                self.listener = Some(listener);
            }
            Err(error) => warn!(endpoint = %self.id, %error, "a stored listener cannot be used"),
        }
    }

    /// A worker of an earlier supervisor lives: it is `entry`, held by `process`.
    ///
    /// `is_proven`: it is known to be ours; else it becomes so when it dials in, and is not signalled before.
    pub(super) fn add_orphan(
        &mut self,
        now: Instant,
        entry: &WorkerEntry,
        process: Process,
        is_proven: bool,
        services: &mut Services,
    ) {
        let worker = WorkerId { endpoint: self.id.clone(), generation: entry.generation };
        if let Err(error) = worker::watch(worker, &process, None, services.queue.clone()) {
            warn!(endpoint = %self.id, worker_pid = entry.identity.pid, %error, "a worker of an earlier supervisor cannot be watched, and is left to itself");
            return;
        }
        info!(endpoint = %self.id, worker_pid = entry.identity.pid, generation = entry.generation, "a worker of an earlier supervisor lives");
        self.lifecycle.orphan(now, entry.generation, entry.leaving);
        self.workers.insert(
            entry.generation,
            Worker {
                process,
                address: entry.address,
                started_at: now,
                started_at_ms: entry.started_at_ms,
                endpoint: None,
                fingerprint: entry.fingerprint.clone(),
                connection: None,
                problem: None,
                has_settled: false,
                memory_bytes: None,
                trend: Trend::default(),
                known: if is_proven { Known::Ours } else { Known::Presumed },
                is_moving: false,
                awaits_assignment: false,
                killed: None,
                examined: None,
            },
        );
        // A supervisor before us may have ended while it was about to be moved.
        if services.manager.as_ref().is_some_and(|manager| manager.is_in_our_group(entry.identity.pid)) {
            self.set_apart(entry.generation, services);
        }
        services.registry_is_outdated = true;
    }

    /// Whether there is a worker of this number.
    pub(super) fn knows(&self, generation: u64) -> bool {
        self.workers.contains_key(&generation)
    }

    /// Whether the worker of this number is the process `pid`, or another that is proven to be ours.
    pub(super) fn expects(&self, generation: u64, pid: u32) -> bool {
        let known = self.workers.get(&generation);
        known.is_some_and(|worker| worker.is_proven() || worker.process.identity().pid == pid)
    }

    /// Has a worker moved into a scope of its own, where there is a service manager.
    fn set_apart(&mut self, generation: u64, services: &mut Services) {
        let (Some(manager), Some(worker)) = (&services.manager, self.workers.get_mut(&generation)) else { return };
        let id = WorkerId { endpoint: self.id.clone(), generation };
        worker.is_moving = manager.set_apart(id, &worker.process, services.memory_limits());
        if !worker.is_moving {
            warn!(endpoint = %self.id, generation, "too many workers wait for their scopes; this one would end with us");
        }
    }

    /// The settings say another limit of memory: the scopes of its workers get it, too.
    pub(super) fn limit_memory(&self, services: &Services) {
        let Some(manager) = &services.manager else { return };
        for (&generation, worker) in &self.workers {
            let id = WorkerId { endpoint: self.id.clone(), generation };
            if !manager.limit(id, worker.process.identity().pid, services.memory_limits()) {
                warn!(endpoint = %self.id, generation, "too many calls wait for the service manager; a worker keeps its former limits");
            }
        }
    }

    /// A worker was to be moved into a scope of its own.
    pub(super) fn scoped(&mut self, generation: u64, result: Result<(), String>, services: &mut Services) {
        let Some(worker) = self.workers.get_mut(&generation) else { return };
        worker.is_moving = false;
        let worker_pid = worker.process.identity().pid;
        match result {
            Ok(()) => {
                debug!(endpoint = %self.id, generation, worker_pid, "a worker has a scope of its own");
                services.scope_problem = None;
            }
            // Nobody has to be moved any more.
            Err(_) if worker.process.has_ended() => {}
            Err(error) => {
                warn!(endpoint = %self.id, generation, worker_pid, error, "a worker has no scope of its own; it would end with us");
                services.scope_problem = Some(error);
            }
        }
    }

    /// Whether a worker is just being moved into its scope.
    pub(super) fn is_moving(&self) -> bool {
        self.workers.values().any(|worker| worker.is_moving)
    }

    /// The settings say something else about it now; `None`: they do not name it any more.
    pub(super) fn replan(&mut self, planned: Option<Planned>, services: &Services) {
        self.lifecycle.set_limits(services.limits());
        self.is_listed = planned.is_some();
        let Some(planned) = planned else { return };
        if (&planned.resolved, &planned.tables) != (&self.planned.resolved, &self.planned.tables) {
            self.lifecycle.change();
        } else if planned.settings != self.planned.settings {
            self.lifecycle.revive();
        }
        if planned.settings.port != self.planned.settings.port {
            self.port_trouble = None; // another port deserves a try at once
        }
        self.planned = planned;
    }

    /// Takes over changed limits.
    pub(super) fn set_limits(&mut self, services: &Services) {
        self.lifecycle.set_limits(services.limits());
    }

    /// Whether it stands in the settings.
    pub(super) fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// Whether nothing is left of it that has to be waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.lifecycle.is_empty()
    }

    /// Whether the settings let it run.
    pub(super) fn is_enabled(&self) -> bool {
        self.planned.settings.enabled
    }

    /// The person wants it to work, now: what failed before is tried again at once.
    pub(super) fn revive(&mut self) {
        self.lifecycle.revive();
        self.port_trouble = None;
    }

    /// The person wants another worker. The present one serves until it is there.
    pub(super) fn replace_worker(&mut self) {
        self.lifecycle.change();
        self.port_trouble = None;
    }

    /// That something was seen about it.
    fn signal_of(&self, what: Observation) -> incident::Signal {
        incident::Signal::of(what, &self.id)
    }

    /// The worker that ran at `seen_at` does not do well and is to be replaced, if it still runs.
    pub(super) fn renew_worker(&mut self, seen_at: Instant) {
        let serving = self.lifecycle.serving().and_then(|generation| self.workers.get(&generation));
        if serving.is_some_and(|worker| worker.started_at < seen_at) {
            self.lifecycle.renew();
        }
    }

    /// The endpoint whose provider and key it uses.
    pub(super) fn route(&self) -> &EndpointId {
        self.planned.route.as_ref().unwrap_or(&self.id)
    }

    /// Where it listens.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Whether it listens somewhere else than when this was asked last.
    pub(super) fn take_move(&mut self) -> bool {
        std::mem::take(&mut self.has_moved)
    }

    /// The port it listens on.
    pub(super) fn port(&self) -> Option<u16> {
        self.address.map(|address| address.port())
    }

    /// Since when the present worker runs, in Unix milliseconds.
    pub(super) fn started_at_ms(&self) -> Option<u64> {
        let worker = self.lifecycle.current().and_then(|generation| self.workers.get(&generation));
        worker.map(|worker| worker.started_at_ms)
    }

    /// The port it should listen on and cannot.
    pub(super) fn missing_port(&self, services: &Services) -> Option<u16> {
        self.port_trouble.as_ref()?;
        services.ports.decided(&self.id, self.planned.settings.port)
    }

    /// Ends the worker `pid` if it is one of ours and nobody's present one. Says whether it was.
    pub(super) fn end_if_stale(&mut self, pid: u32) -> bool {
        let current = self.lifecycle.current();
        let stale = self
            .workers
            .iter()
            .find(|(generation, worker)| Some(**generation) != current && worker.process.identity().pid == pid);
        let Some(generation) = stale.map(|(generation, _)| *generation) else { return false };
        warn!(endpoint = %self.id, generation, worker_pid = pid, "a worker that should be gone is ended");
        self.signal(generation, Signal::TERM);
        true
    }

    /// Gives the present worker an order.
    ///
    /// # Errors
    /// A reason for a person, when there is none who could take it.
    pub(super) fn order(&self, order: ToWorker) -> Result<(), String> {
        let worker = self.lifecycle.current().and_then(|generation| self.workers.get(&generation));
        let connection = worker.and_then(|worker| worker.connection.as_ref());
        let told = connection.is_some_and(|connection| connection.outbox.try_send(order).is_ok());
        if told { Ok(()) } else { Err(format!("no worker of `{}` can be told at present", self.id)) }
    }

    /// Somebody waits for its health.
    pub(super) fn probe_soon(&mut self, now: Instant) {
        self.lifecycle.probe_soon(now);
    }

    /// When to drive it again, if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.lifecycle.deadline(), self.port_trouble.as_ref().map(|trouble| trouble.retry_at)]
            .into_iter()
            .flatten()
            .min()
    }

    /// We ourselves were stopped for `late`.
    pub(super) fn late(&mut self, now: Instant, late: Duration) {
        self.lifecycle.late(now, late);
    }

    /// Does everything that is due.
    pub(super) fn drive(&mut self, services: &mut Services, now: Instant) {
        self.settle_listener(services, now);
        self.lifecycle.want(self.wanted(services));
        while let Some(command) = self.lifecycle.poll(now) {
            self.carry_out(command, services, now);
        }
        self.assign(services);
        self.settle_stand_in(services);
        self.tell_tripped(services);
        self.announce_state(services);
        let crashes = self.lifecycle.crashes();
        if self.crashes != crashes {
            self.crashes = crashes;
            services.registry_is_outdated = true;
        }
    }

    fn should_listen(&self, services: &Services) -> bool {
        self.is_listed && self.is_enabled() && !services.is_stopping
    }

    fn wanted(&self, services: &Services) -> Wanted {
        if !self.should_listen(services) || services.stopped.contains(&self.id) {
            return Wanted::Rest { within: services.stop_within() };
        }
        let can_serve = self.listener.is_some() || self.lifecycle.is_unresolved();
        if self.planned.resolved.is_err() || !can_serve {
            // Nobody has asked for an end: what runs may finish.
            return Wanted::Rest { within: HANDOVER_WITHIN };
        }
        Wanted::Serve
    }

    fn settle_listener(&mut self, services: &mut Services, now: Instant) {
        if !self.should_listen(services) {
            // While we end, a stored listener stays stored: the next start takes it back, with all who wait there.
            if self.listener.take().is_some() && !services.is_stopping {
                services.store.forget(&self.id);
            }
            self.address = None;
            self.port_trouble = None;
            return;
        }
        let port = self.planned.settings.port;
        match (self.address, services.ports.decided(&self.id, port)) {
            (Some(address), Some(decided)) if address.port() == decided => {
                self.port_trouble = None;
                return;
            }
            (Some(address), None) => {
                // It listens already and any port will do: this one.
                if let Err(error) = services.ports.remember(&self.id, address.port()) {
                    warn!(endpoint = %self.id, %error, "the port cannot be remembered");
                }
                self.port_trouble = None;
                return;
            }
            // The worker of an earlier supervisor has the listener and is about to hand it over.
            (None, _) if self.lifecycle.is_unresolved() => return,
            _ => {}
        }
        if self.port_trouble.as_ref().is_some_and(|trouble| now < trouble.retry_at) {
            return;
        }
        let bound = services.ports.listen(&self.id, port).and_then(|listener| match listener.local_addr() {
            Ok(address) => Ok((listener, address)),
            Err(source) => Err(BindError::Refused { port: 0, source }),
        });
        match bound {
            Ok((listener, address)) => {
                info!(endpoint = %self.id, %address, "listening");
                if self.listener.is_some() {
                    self.lifecycle.change(); // the present worker serves the old one
                    self.stand_in = None;
                    services.store.forget(&self.id);
                }
                services.store.keep(&self.id, &listener);
                self.listener = Some(listener);
                self.address = Some(address);
                self.port_trouble = None;
                self.has_moved = true;
            }
            Err(error) => {
                let tries = self.port_trouble.as_ref().map_or(0, |trouble| trouble.tries);
                let problem = match &self.port_trouble {
                    Some(trouble) if !tries.is_multiple_of(HOLDER_LOOKUP_TRIES) => trouble.problem.clone(),
                    _ => self.describe_port(&error, port),
                };
                if tries == 0 {
                    error!(endpoint = %self.id, problem = problem.message, "no listener");
                    services.see(self.signal_of(Observation::PortTaken).detail(&problem.message));
                }
                let pause = if tries < QUICK_TRIES { QUICK_RETRY_INTERVAL } else { RETRY_INTERVAL };
                self.port_trouble = Some(PortTrouble { problem, retry_at: now + pause, tries: tries + 1 });
            }
        }
    }

    fn describe_port(&self, error: &BindError, port: Port) -> Problem {
        let id = &self.id;
        let other_port = match port {
            Port::Fixed(_) => format!("`codexctl endpoint set {id} port auto`"),
            Port::Auto => format!("`codexctl endpoint set {id} port NUMBER`"),
        };
        match error {
            BindError::Taken(number) => {
                let (holder, remedy) = match ports::holder(*number) {
                    Some(holder) => (
                        format!("is held by pid {} (`{}`)", holder.pid, holder.program),
                        "stop that process".to_owned(),
                    ),
                    None => {
                        ("is held by another process".to_owned(), format!("find it with `ss -ltnp sport = :{number}`"))
                    }
                };
                Problem {
                    message: format!("endpoint `{id}` cannot start: port {number} {holder}"),
                    hint: Some(format!("{remedy}, or run {other_port}")),
                }
            }
            BindError::Refused { .. } | BindError::Remember(_) => Problem {
                message: format!("endpoint `{id}` cannot start: {}", report::chain(error)),
                hint: Some(format!("choose another port with {other_port}")),
            },
        }
    }

    fn carry_out(&mut self, command: Command, services: &mut Services, now: Instant) {
        if let Command::Terminate { generation } | Command::Kill { generation, .. } = command
            && self.workers.get(&generation).is_some_and(|worker| !worker.is_proven())
        {
            warn!(endpoint = %self.id, generation, "a process that looked like a worker of ours did not report");
            self.workers.remove(&generation);
            self.lifecycle.ended(now, generation, End::Itself);
            return;
        }
        match command {
            Command::Spawn { generation } => self.spawn(generation, services, now),
            Command::Drain { generation, within } => {
                services.registry_is_outdated = true;
                self.drain(generation, within);
            }
            Command::Terminate { generation } => {
                info!(endpoint = %self.id, generation, "a worker has not ended in time, sending TERM");
                self.signal(generation, Signal::TERM);
            }
            Command::Kill { generation, because } => {
                services.registry_is_outdated = true;
                let worker_pid = self.workers.get(&generation).map(|worker| worker.process.identity().pid);
                warn!(endpoint = %self.id, generation, worker_pid, because = because.text(), "killing a worker");
                let message = format!("the worker of `{}` was killed: {}", self.id, because.text());
                services.announcer.tell(
                    "worker.killed",
                    Some(&self.id),
                    message,
                    json!({ "generation": generation, "pid": worker_pid }),
                );
                if because == KillReason::Stuck {
                    services.see(self.signal_of(Observation::WorkerStuck).detail(because.text()));
                }
                if let Some(worker) = self.workers.get_mut(&generation) {
                    worker.killed = Some(because);
                }
                self.signal(generation, Signal::KILL);
            }
            Command::Examine { generation } => {
                let worker = self.workers.get_mut(&generation);
                let worker_pid = worker.as_ref().map(|worker| worker.process.identity().pid);
                let is_starved = worker.is_some_and(|worker| worker.is_starved(now));
                if self.lifecycle.examined(now, generation, is_starved) {
                    info!(endpoint = %self.id, generation, worker_pid, "a silent worker gets no processor, waiting for it");
                }
            }
            Command::Probe { generation } => {
                let Some(address) = self.address else { return };
                let worker = WorkerId { endpoint: self.id.clone(), generation };
                let timeout = Duration::from_secs(services.settings.health_timeout_s);
                let queue = services.queue.clone();
                // The task ends at `timeout` at the latest.
                tokio::spawn(async move {
                    let result = probe::probe(address, timeout).await;
                    let _ = queue.send(Event::Probed { worker, result }).await; // fails only when the owner has ended
                });
            }
        }
    }

    fn spawn(&mut self, generation: u64, services: &mut Services, now: Instant) {
        let (Some(listener), Some(address), Ok(endpoint)) = (&self.listener, self.address, &self.planned.resolved)
        else {
            // `wanted` asks for a worker only when all three are there.
            return self.lifecycle.unspawned(generation, now + RETRY_INTERVAL);
        };
        if let Err(problem) = check_program(&services.worker_program) {
            if self.program_problem.is_none() {
                error!(endpoint = %self.id, problem = problem.message, "no worker program");
            }
            self.program_problem = Some(problem);
            return self.lifecycle.unspawned(generation, now + RETRY_INTERVAL);
        }
        if self.refused_program.is_some() && self.refused_program == program_of(services) {
            return self.lifecycle.unspawned(generation, now + RETRY_INTERVAL);
        }
        self.refused_program = None;
        self.program_problem = None;
        // Before the worker is there, so that nothing more is taken away from it.
        self.stand_in = None;
        let worker = WorkerId { endpoint: self.id.clone(), generation };
        let started = worker::start(&Launch {
            program: &services.worker_program,
            worker: &worker,
            listener,
            log: &services.paths.worker_log(&self.id),
            socket: &services.paths.worker_socket(),
            environment: &services.environment,
            credential: &endpoint.credential,
        });
        let watched = started.and_then(|(child, process)| {
            worker::watch(worker, &process, Some(child), services.queue.clone()).map(|()| process)
        });
        let process = match watched {
            Ok(process) => process,
            Err(error) => {
                error!(endpoint = %self.id, generation, %error, "a worker cannot be started");
                self.last_exit = Some(format!("it could not be started: {error}"));
                self.lifecycle.ended(now, generation, End::Itself);
                return;
            }
        };
        let worker_pid = process.identity().pid;
        info!(endpoint = %self.id, worker_pid, generation, "worker started");
        self.workers.insert(
            generation,
            Worker {
                process,
                address,
                started_at: now,
                started_at_ms: unix_ms(),
                fingerprint: self.fingerprint_of(endpoint, services),
                endpoint: Some(endpoint.clone()),
                connection: None,
                problem: None,
                has_settled: false,
                memory_bytes: None,
                trend: Trend::default(),
                known: Known::Ours,
                is_moving: false,
                awaits_assignment: false,
                killed: None,
                examined: None,
            },
        );
        self.set_apart(generation, services);
        services.registry_is_outdated = true;
        let message = format!("a worker of `{}` was started", self.id);
        services.announcer.tell(
            "worker.started",
            Some(&self.id),
            message,
            json!({ "generation": generation, "pid": worker_pid }),
        );
    }

    fn fingerprint_of(&self, endpoint: &Endpoint, services: &Services) -> String {
        fingerprint(&(endpoint, &self.planned.tables, &services.own.build, self.address, program_of(services)))
    }

    /// What crashes, if it does: that, wherever it listens.
    fn fingerprint_of_crashes(&self, services: &Services) -> String {
        let endpoint = self.planned.resolved.as_ref().ok();
        fingerprint(&(endpoint, &self.planned.tables, &services.own.build, program_of(services)))
    }

    /// An earlier supervisor has seen workers of it crash.
    pub(super) fn remember_crashes(&mut self, now: Instant, entry: &CrashesEntry, services: &Services) {
        if entry.fingerprint != self.fingerprint_of_crashes(services) {
            return;
        }
        let now_ms = unix_ms();
        // A clock that was put back makes them happen now.
        let at = |at_ms: &u64| now.checked_sub(Duration::from_millis(now_ms.saturating_sub(*at_ms)));
        let crashes = Crashes {
            in_a_row: entry.in_a_row,
            at: entry.at_ms.iter().filter_map(at).collect(),
            is_tripped: entry.is_tripped,
        };
        info!(endpoint = %self.id, in_a_row = crashes.in_a_row, is_tripped = crashes.is_tripped, "its workers crashed under an earlier supervisor");
        self.lifecycle.remember(now, &crashes);
        self.crashes = crashes;
    }

    /// Its part of the registry about crashes, if there were any.
    pub(super) fn crashes_entry(&self, now: Instant, services: &Services) -> Option<CrashesEntry> {
        let Crashes { in_a_row, at, is_tripped } = &self.crashes;
        let ago_ms = |at: &Instant| u64::try_from(now.saturating_duration_since(*at).as_millis()).unwrap_or(u64::MAX);
        (*in_a_row > 0 || !at.is_empty()).then(|| CrashesEntry {
            endpoint: self.id.clone(),
            fingerprint: self.fingerprint_of_crashes(services),
            in_a_row: *in_a_row,
            at_ms: at.iter().map(|at| unix_ms().saturating_sub(ago_ms(at))).collect(),
            is_tripped: *is_tripped,
        })
    }

    fn drain(&mut self, generation: u64, within: Duration) {
        info!(endpoint = %self.id, generation, within_s = within.as_secs(), "a worker is to end");
        let deadline_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let Some(worker) = self.workers.get(&generation) else { return };
        let told = worker
            .connection
            .as_ref()
            .is_some_and(|connection| connection.outbox.try_send(ToWorker::Drain { deadline_ms }).is_ok());
        if !told && worker.known == Known::OursOfOtherVersion {
            // It waits for a first word that it understands, gives up on it now and then, and dials again at once: then
            // it is told. TERM would leave its answers a few seconds.
            debug!(endpoint = %self.id, generation, "a worker of another version is told when it dials in");
        } else if !told {
            // It has not dialled in yet, or does not read: TERM means the same to it.
            self.signal(generation, Signal::TERM);
        }
    }

    fn signal(&self, generation: u64, signal: Signal) {
        let Some(worker) = self.workers.get(&generation) else {
            return;
        };
        if !worker.is_proven() {
            return debug!(endpoint = %self.id, generation, "what is not proven to be ours is not signalled");
        }
        match worker.process.signal(signal) {
            Ok(true) => {}
            Ok(false) => debug!(endpoint = %self.id, generation, "a worker ended before it was signalled"),
            Err(error) => error!(endpoint = %self.id, generation, %error, "a worker cannot be signalled"),
        }
    }

    /// Kills every worker, ready or not.
    pub(super) fn kill_all(&mut self) {
        for worker in self.workers.values().filter(|worker| worker.is_proven()) {
            warn!(endpoint = %self.id, worker_pid = worker.process.identity().pid, "killing a worker: no more time");
            // One that has ended already is what this is for.
            let _ = worker.process.signal(Signal::KILL);
        }
    }

    /// A process says that it is one of our workers.
    pub(super) fn connected(&mut self, connected: Connected, services: &mut Services, now: Instant) {
        let (generation, peer_pid) = (connected.worker.generation, connected.peer_pid);
        let is_ours = self.workers.get(&generation).is_some_and(|worker| {
            let own = worker.process.identity();
            match &connected.hello {
                Introduction::Hello(hello) => *own == hello.identity && peer_pid.is_none_or(|pid| pid == own.pid),
                // As long as it has not ended, its number is nobody else's.
                Introduction::Other { .. } => peer_pid == Some(own.pid) && !worker.process.has_ended(),
            }
        });
        if !is_ours {
            warn!(endpoint = %self.id, worker_pid = peer_pid, generation, "an unknown process says it is a worker");
            return;
        }
        let Connected { hello, listener, connection, outbox, .. } = connected;
        let connection = Connection { number: connection, outbox };
        let hello = match hello {
            Introduction::Hello(hello) => hello,
            Introduction::Other { version } => {
                return self.connected_of_other_version(generation, version, connection, listener, services, now);
            }
        };
        let worker_pid = hello.identity.pid;
        if hello.build != services.own.build {
            info!(endpoint = %self.id, worker_pid, build = hello.build, "a worker of another build");
        }
        let is_leaving = self.lifecycle.is_leaving(generation);
        let is_orphan = self.lifecycle.is_orphan(generation);
        self.lifecycle.heard(now, generation);
        let Some(worker) = self.workers.get_mut(&generation) else {
            return;
        };
        // The kernel says who it is, and it knows what only our worker does: where to report.
        worker.known = Known::Ours;
        worker.connection = Some(connection);
        worker.awaits_assignment = !is_leaving;
        if is_leaving {
            return self.drain(generation, self.lifecycle.time_left(now, generation));
        }
        self.assign(services);
        if is_orphan {
            let fit = if hello.build == services.own.build { Fit::Fits } else { Fit::Outdated };
            self.adopt(generation, listener, hello.serving, fit, services, now);
        } else if hello.serving.is_some() {
            self.lifecycle.ready(now, generation); // it had been told what to serve before its connection broke
        }
    }

    /// Tells workers that wait for it what to serve.
    ///
    /// Until it is in a scope of its own a worker would be ended with us, and whoever it serves be cut. It takes
    /// milliseconds, and is waited for where another worker serves meanwhile.
    fn assign(&mut self, services: &Services) {
        let serving = self.lifecycle.serving();
        let is_due = |generation: u64, worker: &Worker| {
            worker.awaits_assignment && (!worker.is_moving || serving.is_none_or(|serving| serving == generation))
        };
        let due = self.workers.iter().filter(|(generation, worker)| is_due(**generation, worker));
        for generation in due.map(|(generation, _)| *generation).collect::<Vec<u64>>() {
            let route = self.route().clone();
            let Some(worker) = self.workers.get_mut(&generation) else { continue };
            worker.awaits_assignment = false;
            let endpoint = worker.endpoint.clone().or_else(|| self.planned.resolved.clone().ok());
            let (Some(endpoint), Some(connection)) = (endpoint, &worker.connection) else { continue };
            // One that serves already goes on with what it has; to it this says that it is known.
            let assignment = Assignment {
                endpoint,
                token_file: services.paths.token(&self.id),
                credential_file: services.paths.credential(&route),
                seal_key_file: services.paths.seal_key(),
                models_cache_file: services.paths.models_cache(&route),
                learned_file: services.paths.learned(&route),
                config_folder: services.paths.config_folder().to_owned(),
            };
            if connection.outbox.try_send(ToWorker::Assignment(Box::new(assignment))).is_err() {
                warn!(endpoint = %self.id, generation, "a worker went away before it was told what to serve");
            }
        }
    }

    /// A worker of ours that speaks another version has said so. One of an earlier supervisor serves on, until there is
    /// another and it can be told to drain. One that we have started serves nothing, and so does the program it runs.
    fn connected_of_other_version(
        &mut self,
        generation: u64,
        version: u16,
        connection: Connection,
        listener: Option<OwnedFd>,
        services: &mut Services,
        now: Instant,
    ) {
        let is_leaving = self.lifecycle.is_leaving(generation);
        let is_orphan = self.lifecycle.is_orphan(generation);
        let Some(worker) = self.workers.get_mut(&generation) else { return };
        let worker_pid = worker.process.identity().pid;
        worker.known = Known::OursOfOtherVersion;
        worker.connection = Some(connection);
        let is_started_by_us = worker.endpoint.is_some();
        if is_leaving {
            return self.drain(generation, self.lifecycle.time_left(now, generation));
        }
        if is_orphan {
            info!(endpoint = %self.id, worker_pid, generation, version, "a worker of another version is to be replaced");
            // Where it serves is not understood; the listener it has brought tells.
            let serving = listener.as_ref().and_then(|listener| listener.try_clone().ok()).and_then(listening);
            let serving = serving.map_or(worker.address, |(_, address)| address);
            return self.adopt(generation, listener, Some(serving), Fit::Mute, services, now);
        }
        if is_started_by_us {
            self.refuse_program(generation, version, services, now);
        }
    }

    /// What the worker program says is not understood: no start of it will help, and none is a crash.
    fn refuse_program(&mut self, generation: u64, version: u16, services: &Services, now: Instant) {
        let program = services.worker_program.display();
        error!(endpoint = %self.id, generation, version, "the worker program is of another version than the supervisor");
        self.program_problem = Some(Problem {
            message: format!("the worker program `{program}` is of another version than the supervisor that runs"),
            hint: Some("`codexctl restart`; if that does not help, install both programs together".to_owned()),
        });
        self.refused_program = program_of(services);
        self.lifecycle.unspawned(generation, now + RETRY_INTERVAL);
        self.signal(generation, Signal::KILL); // it has nothing to end in order
    }

    /// Whether a worker of an earlier supervisor serves what is to be served now.
    fn serves_what_is_planned(&self, generation: u64, services: &Services) -> bool {
        let Ok(endpoint) = &self.planned.resolved else { return false };
        let fingerprint = self.fingerprint_of(endpoint, services);
        self.workers.get(&generation).is_some_and(|worker| worker.fingerprint == fingerprint)
    }

    /// Takes over a worker of an earlier supervisor, with the listener it serves. `fit`: if it serves the right thing.
    fn adopt(
        &mut self,
        generation: u64,
        listener: Option<OwnedFd>,
        serving: Option<SocketAddr>,
        fit: Fit,
        services: &mut Services,
        now: Instant,
    ) {
        let worker_pid = self.workers.get(&generation).map(|worker| worker.process.identity().pid);
        let brought = listener.and_then(listening).filter(|(_, address)| Some(*address) == serving);
        match (brought, self.address) {
            (_, Some(own)) if Some(own) == serving => {} // we have the listener already
            (Some((listener, address)), None) => {
                services.store.keep(&self.id, &listener);
                self.listener = Some(listener);
                self.address = Some(address);
            }
            _ => {
                warn!(endpoint = %self.id, worker_pid, generation, "a worker serves no listener that can be taken over, ending it");
                self.signal(generation, Signal::TERM);
                return;
            }
        }
        // What it is to serve includes where, which may be known only now.
        let is_outdated = fit == Fit::Fits && !self.serves_what_is_planned(generation, services);
        let fit = if is_outdated { Fit::Outdated } else { fit };
        info!(endpoint = %self.id, worker_pid, generation, ?fit, "adopted a worker");
        self.lifecycle.adopted(now, generation, fit);
        services.registry_is_outdated = true;
        let message = format!("the running worker of `{}` was taken over", self.id);
        services.announcer.tell(
            "worker.adopted",
            Some(&self.id),
            message,
            json!({ "generation": generation, "pid": worker_pid }),
        );
    }

    /// A worker's connection has ended; it dials again by itself, or is missed by its heartbeats.
    pub(super) fn disconnected(&mut self, generation: u64, connection: u64) {
        if let Some(worker) = self.workers.get_mut(&generation)
            && worker.connection.as_ref().is_some_and(|current| current.number == connection)
        {
            debug!(endpoint = %self.id, generation, "a worker's connection has ended");
            worker.connection = None;
        }
    }

    /// A worker has said something.
    pub(super) fn message(
        &mut self,
        generation: u64,
        connection: u64,
        message: FromWorker,
        services: &mut Services,
        now: Instant,
    ) {
        let is_current = self.lifecycle.current() == Some(generation);
        let Some(worker) = self.workers.get_mut(&generation) else {
            return;
        };
        if worker.connection.as_ref().is_none_or(|current| current.number != connection) {
            return; // of a connection that was not accepted
        }
        self.lifecycle.heard(now, generation);
        match message {
            FromWorker::Ready { address } => {
                if address != worker.address {
                    warn!(endpoint = %self.id, %address, "a worker serves another address than it was given");
                }
                if self.lifecycle.ready(now, generation) {
                    let worker_pid = worker.process.identity().pid;
                    let elapsed = now.duration_since(worker.started_at);
                    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
                    info!(endpoint = %self.id, worker_pid, generation, %address, elapsed_ms, "serving");
                    services.see(self.signal_of(Observation::WorkerReady).value(elapsed_ms));
                }
            }
            FromWorker::Heartbeat(counters) => {
                if is_current {
                    self.counters = counters;
                }
            }
            FromWorker::Finished(report) => finished(&self.id, *report, services),
            FromWorker::Problem(problem) => {
                worker.problem = problem;
                worker.has_settled = true;
                self.lifecycle.probe_soon(now); // whoever waits for it need not wait for the next round
            }
            FromWorker::Signals(signals) => {
                // Whatever it says, a worker speaks about its own endpoint alone.
                for signal in signals.into_iter().take(ipc::SIGNALS_MAX) {
                    services.see(incident::Signal { endpoint: Some(self.id.clone()), ..signal });
                }
            }
            FromWorker::CarriedOut { action, outcome } => {
                services.carried_out.push((self.id.clone(), action, outcome));
            }
            FromWorker::Drained => debug!(endpoint = %self.id, generation, "a worker has ended its answers"),
            FromWorker::Hello(_) => warn!(endpoint = %self.id, generation, "a worker says Hello twice"),
        }
    }

    /// A worker's process has ended.
    pub(super) fn ended(&mut self, generation: u64, pid: u32, exit: Exit, services: &mut Services, now: Instant) {
        // Not one that was only taken for it.
        if self.workers.get(&generation).is_none_or(|worker| worker.process.identity().pid != pid) {
            return;
        }
        let Some(worker) = self.workers.remove(&generation) else {
            return;
        };
        services.registry_is_outdated = true;
        let worker_pid = worker.process.identity().pid;
        let unexpected = self.lifecycle.ended(now, generation, exit.end);
        if unexpected {
            let what = if exit.code.is_some() { Observation::WorkerCrashed } else { Observation::WorkerKilled };
            let value = exit.code.and_then(|code| u64::try_from(code).ok());
            services.see(incident::Signal { value, ..self.signal_of(what) }.detail(&exit.text));
        }
        let exit = match worker.killed {
            Some(because) => format!("{}, {}", exit.text, because.text()),
            None => exit.text,
        };
        if unexpected {
            warn!(endpoint = %self.id, worker_pid, generation, exit, "a worker ended unexpectedly");
        } else {
            info!(endpoint = %self.id, worker_pid, generation, exit, "a worker ended");
        }
        let message = format!("a worker of `{}` ended: {exit}", self.id);
        let detail = json!({ "generation": generation, "pid": worker_pid, "exit": exit, "unexpected": unexpected });
        services.announcer.tell("worker.ended", Some(&self.id), message, detail);
        if unexpected || worker.killed.is_some_and(|because| because != KillReason::Lingering) {
            self.last_exit = Some(exit);
        }
    }

    /// Alerts once when it ends too often, until it has been healthy again.
    fn tell_tripped(&mut self, services: &mut Services) {
        if std::mem::replace(&mut self.has_told_tripped, self.lifecycle.is_tripped()) || !self.has_told_tripped {
            return;
        }
        let problem = self.tripped(services);
        error!(endpoint = %self.id, problem = problem.message, "restarts are slow from now on");
        let detail = json!({ "problem": problem, "last_exit": self.last_exit });
        services.announcer.tell("worker.tripped", Some(&self.id), problem.message.clone(), detail);
        services.see(self.signal_of(Observation::WorkerTripped).detail(problem.message));
    }

    /// A probe has an answer. Says whether the endpoint is known to work: a good answer of the worker that serves, and
    /// that worker has had its time to find a problem. `is_awaited`: somebody waits for that.
    pub(super) fn probed(
        &mut self,
        generation: u64,
        result: &Result<(), ProbeError>,
        is_awaited: bool,
        services: &mut Services,
        now: Instant,
    ) -> bool {
        let is_serving = self.lifecycle.serving() == Some(generation);
        let replaces = self.lifecycle.probed(now, generation, result.is_ok());
        match result {
            Ok(()) if is_serving => {
                self.healthy_at_ms = Some(unix_ms());
                self.n_probes_failed = 0;
                services.see(self.signal_of(Observation::ProbeGood));
            }
            Err(error) if is_serving => {
                warn!(endpoint = %self.id, generation, error = report::chain(error), "a health probe failed");
                let message = format!("a health probe of `{}` failed: {}", self.id, report::chain(error));
                let detail = json!({ "generation": generation, "replaces": replaces });
                services.announcer.tell("worker.probe-failed", Some(&self.id), message, detail);
                self.n_probes_failed += 1;
                if replaces {
                    self.last_exit = Some(format!("it failed its health probes: {}", report::chain(error)));
                    let what = match error {
                        ProbeError::Connection(_) => Observation::ProbeRefused,
                        ProbeError::Timeout(_) | ProbeError::Status(_) => Observation::ProbeTimedOut,
                    };
                    services.see(self.signal_of(what).value(self.n_probes_failed).detail(report::chain(error)));
                }
            }
            _ => {}
        }
        let has_settled = self
            .workers
            .get(&generation)
            .is_some_and(|worker| worker.has_settled || now.duration_since(worker.started_at) >= PROBLEM_WITHIN);
        let works = is_serving && has_settled && result.is_ok();
        if is_awaited && !works {
            self.lifecycle.probe_soon(now + PROBE_PAUSE);
        }
        works
    }

    fn settle_stand_in(&mut self, services: &Services) {
        let sentence = match (self.state(services), self.lifecycle.current()) {
            ((EndpointState::Stopped, _), None) => Some(format!(
                "codex-supervisor: the endpoint `{0}` is stopped; start it with `codexctl start {0}`",
                self.id
            )),
            ((EndpointState::Broken, Some(problem)), None) => Some(match problem.hint {
                Some(hint) => format!("codex-supervisor: {}; {hint}", problem.message),
                None => format!("codex-supervisor: {}", problem.message),
            }),
            _ => None,
        };
        let (Some(sentence), Some(listener)) = (sentence, &self.listener) else {
            self.stand_in = None;
            return;
        };
        if self.stand_in.as_ref().is_some_and(|present| present.sentence() == sentence) {
            return;
        }
        match StandIn::start(listener, sentence) {
            Ok(stand_in) => self.stand_in = Some(stand_in),
            Err(error) => warn!(endpoint = %self.id, %error, "nobody can answer in place of a worker"),
        }
    }

    /// What it does, and what keeps it from working.
    pub(super) fn state(&self, services: &Services) -> (EndpointState, Option<Problem>) {
        if !self.is_enabled() {
            return (EndpointState::Disabled, None);
        }
        if services.stopped.contains(&self.id) {
            return (EndpointState::Stopped, None);
        }
        if let Err(problem) = &self.planned.resolved {
            return (EndpointState::Broken, Some(problem.clone()));
        }
        let port_problem = self.port_trouble.as_ref().map(|trouble| trouble.problem.clone());
        let start_problem = port_problem.or_else(|| self.program_problem.clone());
        let phase = self.lifecycle.phase();
        if let Phase::Serving(generation) = phase {
            let problem = self.workers.get(&generation).and_then(|worker| worker.problem.clone());
            return match problem {
                Some(problem) => (EndpointState::Broken, Some(problem)),
                None => (EndpointState::Running, start_problem), // an earlier start serves on
            };
        }
        let ends_too_often = match phase {
            Phase::Exhausted => Some(self.exhausted()),
            Phase::Tripped => Some(self.tripped(services)),
            Phase::Serving(_) | Phase::Starting | Phase::Waiting | Phase::Resting => None,
        };
        if let Some(problem) = start_problem.or(ends_too_often) {
            return (EndpointState::Broken, Some(problem));
        }
        let state = if self.lifecycle.is_recovering() { EndpointState::Restarting } else { EndpointState::Starting };
        (state, None)
    }

    /// It still mends itself if it can, but a person should look.
    fn tripped(&self, services: &Services) -> Problem {
        let pause_s = services.limits().restart_pause_max.as_secs();
        Problem {
            message: format!(
                "the worker of endpoint `{}` keeps ending{}; it is tried again every {pause_s} s",
                self.id,
                self.last_end()
            ),
            hint: Some(format!("`codexctl logs {0}` tells why; `codexctl restart {0}` tries at once", self.id)),
        }
    }

    fn last_end(&self) -> String {
        self.last_exit.as_deref().map(|exit| format!(" (the last one: {exit})")).unwrap_or_default()
    }

    fn exhausted(&self) -> Problem {
        Problem {
            message: format!(
                "the worker of endpoint `{}` keeps ending{}; it is not tried again",
                self.id,
                self.last_end()
            ),
            hint: Some(format!("`codexctl logs {0}` tells why; then `codexctl restart {0}`", self.id)),
        }
    }

    fn announce_state(&mut self, services: &mut Services) {
        if !self.is_listed || services.is_stopping {
            return;
        }
        let (state, problem) = self.state(services);
        if self.announced.as_ref().is_some_and(|announced| (announced.0, &announced.1) == (state, &problem)) {
            return;
        }
        let name = serde_json::to_value(state).unwrap_or_default();
        let mut message = format!("the endpoint `{}` is {}", self.id, name.as_str().unwrap_or_default());
        if let Some(problem) = &problem {
            message = format!("{message}: {}", problem.message);
        }
        let problem_message = problem.as_ref().map(|problem| problem.message.as_str());
        info!(endpoint = %self.id, state = name.as_str(), problem = problem_message, "state");
        let previous = self.announced.as_ref().map(|announced| announced.0);
        let detail = json!({ "state": name, "previous": previous, "problem": problem });
        services.announcer.tell("endpoint.state", Some(&self.id), message, detail);
        self.announced = Some((state, problem));
        services.status_is_outdated = true;
    }

    /// Whether the worker that serves is to be replaced: what it says of itself is no answer to what comes next.
    pub(super) fn is_replacing(&self) -> bool {
        self.lifecycle.is_replacing()
    }

    /// For `daemon.status` and the like.
    pub(super) fn status(&self, services: &Services) -> EndpointStatus {
        let resolved = self.planned.resolved.as_ref().ok();
        let settings = &self.planned.settings;
        let worker = self.lifecycle.current().and_then(|generation| self.workers.get(&generation));
        let (state, problem) = self.state(services);
        EndpointStatus {
            id: self.id.clone(),
            name: resolved
                .map(|endpoint| endpoint.name.clone())
                .or(settings.name.clone())
                .unwrap_or_else(|| self.id.to_string()),
            provider: settings.preset.clone().unwrap_or_else(|| "custom".to_owned()),
            protocol: resolved.map(|endpoint| endpoint.protocol).or(settings.protocol),
            base_url: resolved.map(|endpoint| endpoint.base_url.clone()).or(settings.base_url.clone()),
            default_model: resolved.map_or(settings.default_model.clone(), |endpoint| endpoint.default_model.clone()),
            is_default: services.default_endpoint.as_ref() == Some(&self.id),
            state,
            address: self.address,
            worker_pid: worker.map(|worker| worker.process.identity().pid),
            generation: self.lifecycle.current().unwrap_or(self.lifecycle.generation()),
            restarts_total: self.lifecycle.restarts_total(),
            last_exit: self.last_exit.clone(),
            healthy_at_ms: self.healthy_at_ms,
            memory_bytes: worker.and_then(|worker| worker.memory_bytes),
            problem,
            standing: services.standing.shown(&self.id),
            counters: self.counters.clone(),
        }
    }

    /// For `endpoint.show`.
    pub(super) fn detail(&self, services: &Services) -> EndpointDetail {
        EndpointDetail { status: self.status(services), endpoint: self.planned.resolved.clone().ok() }
    }

    /// Its workers' part of the registry.
    pub(super) fn registry_entries(&self) -> impl Iterator<Item = WorkerEntry> {
        self.workers.iter().map(|(&generation, worker)| WorkerEntry {
            endpoint: self.id.clone(),
            generation,
            identity: worker.process.identity().clone(),
            address: worker.address,
            started_at_ms: worker.started_at_ms,
            leaving: self.lifecycle.is_leaving(generation),
            fingerprint: worker.fingerprint.clone(),
        })
    }

    /// Its workers' processes.
    pub(super) fn worker_pids(&self) -> impl Iterator<Item = u32> {
        self.workers.values().map(|worker| worker.process.identity().pid)
    }

    /// Takes over how much memory its workers use, and replaces the one that serves before it uses too much. Returns
    /// what was seen of that one.
    pub(super) fn set_memory(
        &mut self,
        memory: &Memory,
        services: &mut Services,
        now: Instant,
    ) -> Option<incident::Signal> {
        let limit = services.settings.worker_memory_bytes_max;
        let mut is_beyond = Vec::new();
        for (generation, worker) in &mut self.workers {
            worker.memory_bytes = memory.bytes(worker.process.identity().pid);
            if let Some(bytes) = worker.memory_bytes {
                worker.trend.add(now, bytes);
                if bytes >= services.memory_limits().slowed {
                    is_beyond.push((*generation, bytes));
                }
            }
        }
        for (generation, bytes) in is_beyond {
            if self.lifecycle.hurry(now, generation, services.stop_within()) {
                warn!(endpoint = %self.id, generation, bytes, limit, "a worker that is to end uses much memory and has to end soon");
                self.drain(generation, services.stop_within());
            }
        }
        let generation = self.lifecycle.serving()?;
        let worker = self.workers.get(&generation)?;
        let bytes = worker.memory_bytes?;
        let leaks = worker.trend.grows() && bytes >= limit / 2;
        let is_too_soon = self.relieved_at.is_some_and(|at| now.saturating_duration_since(at) < RELIEF_PAUSE);
        if worker.trend.nears(limit) && (leaks || !is_too_soon) && !self.lifecycle.is_replacing() {
            self.relieved_at = Some(now);
            warn!(endpoint = %self.id, generation, bytes, limit, "a worker uses much memory and is replaced");
            let message = format!("the worker of `{}` uses much memory and is replaced", self.id);
            let detail = json!({ "generation": generation, "bytes": bytes, "limit": limit });
            services.announcer.tell("worker.memory-high", Some(&self.id), message, detail);
            // Not left to the engine, whose deeds wait for the database; it sees what came of it.
            let detail = format!("{} of {} MiB, another worker takes its place", bytes >> 20, limit >> 20);
            services.see(self.signal_of(Observation::MemoryRising).limit(limit).detail(detail));
            self.lifecycle.renew();
            self.drive(services, now);
        }
        Some(incident::Signal::of(Observation::WorkerMemory, &self.id).value(bytes).limit(limit))
    }
}

/// Which file a program is: device, inode, size, time of its last change.
type ProgramFile = (u64, u64, u64, i64, i64);

/// Which file the worker program is. Another one in its place is another program, whatever it says of itself.
fn program_of(services: &Services) -> Option<ProgramFile> {
    let file = std::fs::metadata(&services.worker_program).ok()?;
    Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

/// Whether the worker program can be started at all.
fn check_program(program: &Path) -> Result<(), Problem> {
    let problem = |what: &str, hint: String| Problem {
        message: format!("the worker program `{}` {what}", program.display()),
        hint: Some(hint),
    };
    let reinstall = || "install codex-supervisor again; both programs belong in one folder".to_owned();
    match std::fs::metadata(program) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(problem("is missing", reinstall())),
        Err(error) => Err(problem(&format!("cannot be read: {error}"), reinstall())),
        Ok(metadata) if !metadata.is_file() => Err(problem("is not a file", reinstall())),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => {
            Err(problem("is not executable", format!("`chmod +x {}`", program.display())))
        }
        Ok(_) => Ok(()),
    }
}

/// The descriptor as a listener with its address, if it is a TCP socket that listens.
fn listening(descriptor: OwnedFd) -> Option<(TcpListener, SocketAddr)> {
    let is_tcp = sockopt::socket_domain(&descriptor).ok()? == AddressFamily::INET
        && sockopt::socket_acceptconn(&descriptor).ok()?;
    let listener = is_tcp.then(|| TcpListener::from(descriptor))?;
    let address = listener.local_addr().ok()?;
    Some((listener, address))
}

/// One line in the log, an event and a row for each request.
fn finished(id: &EndpointId, report: RequestReport, services: &mut Services) {
    let RequestReport { request, model, status, attempts, elapsed_ms, .. } = &report;
    let outcome = report.outcome.name();
    let (attempt, fault) = (attempts, report.failure.as_deref());
    match report.outcome {
        RequestOutcome::Completed | RequestOutcome::Cancelled => {
            info!(endpoint = %id, request, model, status, attempt, elapsed_ms, outcome, "request finished");
        }
        RequestOutcome::Incomplete | RequestOutcome::Failed | RequestOutcome::Refused => {
            warn!(endpoint = %id, request, model, status, attempt, elapsed_ms, outcome, fault, "request finished");
        }
    }
    let message = match &report.message {
        Some(message) => format!("a request to `{id}` {outcome}: {message}"),
        None => format!("a request to `{id}` {outcome}"),
    };
    let detail = serde_json::to_value(&report).unwrap_or_default();
    services.announcer.tell("request.finished", Some(id), message, detail);
    services.database.request_ended(usage::Row { endpoint: id.clone(), report });
}
