//! The owner: one task that has all the state and takes one [`Event`] after the other.
//!
//! ```text
//!  control socket ─┐
//!  worker socket ──┤
//!  ends, probes ───┼──► queue ──► Supervisor::handle ──► the endpoint concerned is driven
//!  settings files ─┤                                     (bind, spawn, drain, signal, answer)
//!  signals ────────┘     clock ──► Supervisor::tick
//! ```
//!
//! Nothing here waits: what takes time (a probe, a drain, a restart's pause) is begun, and its end is another event or
//! a deadline. Files are small and local and are read and written in place.

mod calls;
mod managed;
mod mending;
mod recovery;
mod services;
mod sessions;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use codex_control::EndpointId;
use codex_control::environment::Environment;
use codex_control::incident::{self, Observation};
use codex_control::paths::Paths;
use codex_control::rpc::{EndpointState, RpcError};
use sd_notify::NotifyState;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info, warn};

use crate::announce::{Announcer, Line};
use crate::codex_config::{Addresses, Tender};
use crate::configuration::{Configuration, Difference, Planned, differences};
use crate::database::Database;
use crate::event::{Call, Event, Farewell, Queue, Signal};
use crate::incidents::Incidents;
use crate::lifecycle::{DRAIN_SLACK, TERMINATE_WITHIN};
use crate::log::{self, LogLimits};
use crate::memory::Memory;
use crate::ports::Ports;
use crate::scope;
use crate::standing::Standing;
use crate::stopped::Stopped;
use crate::supervisor::managed::Managed;
use crate::supervisor::services::Services;
use crate::supervisor::sessions::Sessions;
use crate::systemd::{self, Inherited, Store};
use codex_control::registry::{Registry, SupervisorEntry};

/// Time between two looks at the clock; also how finely our own absence is noticed.
const TICK: Duration = Duration::from_millis(250);
/// A tick that is later than this means that *we* were away: nobody else is to blame for what we did not hear.
const LATE_TICK: Duration = Duration::from_millis(50);
/// An absence that is worth a line in the log.
const LATE_TICK_TOLD: Duration = Duration::from_secs(1);
/// Time between two rounds of what has time: logs, files that may have changed.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(5);
/// Pause after a first change in the settings folder: editors write in several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// Time for workers that are just being moved into their scopes, before we leave without waiting for them.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// Time between two tries to write a registry that could not be written: disks become writable again.
const REGISTRY_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Time for our keys to go out of Codex's configuration, before we end whether they have gone or not. It takes
/// milliseconds; the workers' streams get what is left of the time for a stop.
const CONFIG_OUT_WITHIN: Duration = Duration::from_secs(2);
/// Of that, what is not spent on waiting for another process that works on the file.
const CONFIG_OUT_SLACK: Duration = Duration::from_millis(500);
/// What workers get beyond all their deadlines before we end without them.
const STOP_SLACK: Duration = Duration::from_secs(2);

/// What a supervisor is made from.
pub(crate) struct Start {
    /// Every path.
    pub(crate) paths: Paths,
    /// The environment.
    pub(crate) environment: Environment,
    /// The worker program.
    pub(crate) worker_program: PathBuf,
    /// Who we are.
    pub(crate) own: SupervisorEntry,
    /// What the person has set up.
    pub(crate) configuration: Configuration,
    /// How large logs may grow.
    pub(crate) log_limits: Arc<LogLimits>,
    /// Where events are to be put.
    pub(crate) queue: Queue,
    /// The service manager, if we are a service.
    pub(crate) manager: Option<scope::Manager>,
}

/// See the module.
pub(crate) struct Supervisor {
    services: Services,
    configuration: Configuration,
    plan: Vec<Planned>,
    endpoints: BTreeMap<EndpointId, Managed>,
    waiters: Vec<Waiter>,
    /// Calls about what the incident engine knows, while that is being read; one for each client at most.
    held_calls: Vec<Call>,
    sessions: Sessions,
    memory: Memory,
    tender: Tender,
    incidents: Incidents,
    reload_at: Option<Instant>,
    tick_at: Instant,
    housekeeping_at: Instant,
    /// When the registry is tried again that could not be written.
    registry_retry_at: Option<Instant>,
    watchdog: Option<Watchdog>,
    status_line: String,
    /// Whether the file of sessions that went on over a stop is still there though they are known.
    has_left_sessions: bool,
    /// We are to end, and take our keys out of Codex's configuration before; until then at most.
    config_out_by: Option<Instant>,
    give_up_at: Option<Instant>,
    leave_by: Option<Instant>,
    farewell: Farewell,
}

/// A client that waits until an endpoint answers.
struct Waiter {
    endpoint: EndpointId,
    asked_at: Instant,
    deadline: Instant,
    answer: oneshot::Sender<Result<Value, RpcError>>,
}

struct Watchdog {
    interval: Duration,
    due_at: Instant,
}

impl Supervisor {
    /// Takes over what earlier runs have left and starts every endpoint.
    pub(crate) fn start(start: Start, inherited: Inherited) -> Self {
        let now = Instant::now();
        let Start { paths, environment, worker_program, own, configuration, log_limits, queue, manager } = start;
        let services = Services {
            store: Store::new(&environment),
            ports: Ports::load(&paths.ports()),
            stopped: Stopped::load(&paths.stopped()),
            standing: Standing::load(&paths.standing()),
            settings: configuration.settings.daemon.clone(),
            codex: configuration.settings.codex.clone(),
            default_endpoint: configuration.settings.default_endpoint().cloned(),
            announcer: Announcer::new(),
            database: Database::open(paths.database()),
            paths,
            environment,
            worker_program,
            own,
            queue,
            manager,
            scope_problem: None,
            log_limits,
            signals: VecDeque::new(),
            carried_out: Vec::new(),
            n_signals_dropped: 0,
            is_stopping: false,
            stop_spent: Duration::ZERO,
            status_is_outdated: true,
            registry_is_outdated: true,
        };
        let mut plan = configuration.plan();
        services.standing.apply(&mut plan);
        let policy = mending::policy(&configuration);
        let incidents =
            Incidents::start(configuration.incident_tables.clone(), policy, &services.database, &services.queue, now);
        let mut supervisor = Self {
            plan,
            incidents,
            services,
            configuration,
            endpoints: BTreeMap::new(),
            waiters: Vec::new(),
            held_calls: Vec::new(),
            sessions: Sessions::default(),
            memory: Memory::new(),
            tender: Tender::default(),
            reload_at: None,
            tick_at: now + TICK,
            housekeeping_at: now + HOUSEKEEPING_INTERVAL,
            registry_retry_at: None,
            watchdog: systemd::watchdog_interval().map(|interval| Watchdog { interval, due_at: now }),
            status_line: String::new(),
            has_left_sessions: false,
            config_out_by: None,
            give_up_at: None,
            leave_by: None,
            farewell: Farewell::End,
        };
        supervisor.tell_settings();
        let stopped: Vec<EndpointId> = supervisor.services.stopped.iter().cloned().collect();
        for id in &stopped {
            supervisor.person_wants(id, false); // nothing that is seen of it is news
        }
        for planned in &supervisor.plan {
            let id = planned.settings.id.clone();
            supervisor.endpoints.insert(id.clone(), Managed::new(id, planned.clone(), &supervisor.services));
        }
        supervisor.recover(inherited, now);
        supervisor.tell_facts();
        supervisor.drive_all(now);
        // Before anything else begins a look that resumes nothing.
        supervisor.look_after_codex(true);
        supervisor.settle(now);
        supervisor
    }

    /// Where events can be subscribed to.
    pub(crate) fn event_lines(&self) -> tokio::sync::broadcast::Sender<Line> {
        self.services.announcer.lines()
    }

    /// Takes events until it is told to end and all workers have ended, or are safe without us.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>) -> Farewell {
        loop {
            let deadline = tokio::time::Instant::from_std(self.deadline());
            let event = tokio::select! {
                event = events.recv() => event,
                () = tokio::time::sleep_until(deadline) => None,
            };
            let now = Instant::now();
            if now >= self.tick_at {
                // Before anything else: no deadline may be judged while it is not known whether we were there.
                self.tick(now);
            }
            if let Some(event) = event {
                self.handle(event, now);
            }
            if self.leave_by.is_none() {
                self.drive_due(now);
            }
            self.settle(now);
            if self.leave_by.is_some_and(|by| now >= by || !self.endpoints.values().any(Managed::is_moving)) {
                info!("left, the workers go on");
                break;
            }
            if self.services.is_stopping && self.is_at_end(now) {
                break;
            }
        }
        let farewell = self.farewell;
        // Whoever still wants to tell us something is told that nobody listens, instead of waiting.
        drop(events);
        self.clean_up();
        farewell
    }

    fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Call(call) => self.call(call, now),
            Event::WorkerConnected(connected) => {
                let (worker, peer_pid) = (connected.worker.clone(), connected.peer_pid);
                let id = worker.endpoint.clone();
                let is_expected =
                    |pid| self.endpoints.get(&id).is_some_and(|managed| managed.expects(worker.generation, pid));
                if let Some(pid) = peer_pid.filter(|pid| !is_expected(*pid)) {
                    self.presume_one(&worker, pid, now);
                }
                if let Some(managed) = self.endpoints.get_mut(&id) {
                    managed.connected(connected, &mut self.services, now);
                    managed.drive(&mut self.services, now);
                } else {
                    warn!(endpoint = %id, worker_pid = peer_pid, "a worker of an unknown endpoint was sent away");
                }
            }
            Event::WorkerMessage { worker, connection, message } => {
                if let Some(managed) = self.endpoints.get_mut(&worker.endpoint) {
                    managed.message(worker.generation, connection, message, &mut self.services, now);
                    managed.drive(&mut self.services, now);
                }
            }
            Event::WorkerDisconnected { worker, connection } => {
                if let Some(managed) = self.endpoints.get_mut(&worker.endpoint) {
                    managed.disconnected(worker.generation, connection);
                }
            }
            Event::WorkerEnded { worker, pid, exit } => {
                if let Some(managed) = self.endpoints.get_mut(&worker.endpoint) {
                    managed.ended(worker.generation, pid, exit, &mut self.services, now);
                    managed.drive(&mut self.services, now);
                }
            }
            Event::Probed { worker, result } => {
                let is_awaited = self.waiters.iter().any(|waiter| waiter.endpoint == worker.endpoint);
                if let Some(managed) = self.endpoints.get_mut(&worker.endpoint) {
                    let is_healthy = managed.probed(worker.generation, &result, is_awaited, &mut self.services, now);
                    managed.drive(&mut self.services, now);
                    if is_healthy {
                        self.answer_waiters(&worker.endpoint);
                    }
                }
            }
            Event::Scoped { worker, result } => {
                if let Some(managed) = self.endpoints.get_mut(&worker.endpoint) {
                    managed.scoped(worker.generation, result, &mut self.services);
                    managed.drive(&mut self.services, now);
                }
            }
            Event::SessionProcessEnded { session, pid } => self.session_process_ended(&session, pid),
            Event::SessionCleared { session, ended } => {
                self.session_cleared(&session, &ended);
                // Its launcher was killed, and would have done this.
                self.look_after_codex(false);
            }
            Event::SessionWrote { session } => {
                if self.session_wrote(&session) {
                    // Others come first. A full queue loses this one; the regular look goes on reading.
                    let _ = self.services.queue.try_send(Event::SessionWrote { session });
                }
            }
            Event::ConfigTended(tended) => self.config_tended(tended),
            Event::ConfigTakenOut(tended) => {
                self.tender.taken_out(tended, &mut self.services.announcer);
                if self.config_out_by.is_some() {
                    self.end_workers(now);
                }
            }
            Event::CarriedOut { action, outcome } => self.carried_out(action, outcome, now),
            Event::IncidentsLoaded(loaded) => {
                self.incidents.loaded(*loaded, now);
                self.tell_facts();
                self.incidents.catch_up();
            }
            Event::IncidentKept(kept) => {
                for deed in self.incidents.kept(kept, now) {
                    self.carry_out(deed, now);
                }
            }
            Event::Diagnosed { incident, answer } => self.diagnosed(incident, answer, now),
            Event::SettingsTouched => {
                self.reload_at.get_or_insert(now + SETTLE);
            }
            Event::Signal(Signal::Reload) => self.reload(now),
            Event::Signal(Signal::Leave) => self.leave(now),
            Event::Signal(Signal::Stop) => self.stop(now),
        }
    }

    fn tick(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.tick_at);
        self.tick_at = now + TICK;
        if late > LATE_TICK {
            if late > LATE_TICK_TOLD {
                warn!(
                    elapsed_ms = u64::try_from(late.as_millis()).unwrap_or(u64::MAX),
                    "we were stopped for a while; nobody is blamed for the silence"
                );
            }
            self.endpoints.values_mut().for_each(|managed| managed.late(now, late));
        }
        if let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| now >= watchdog.due_at) {
            watchdog.due_at = now + watchdog.interval.saturating_sub(TICK);
            systemd::notify(&[NotifyState::Watchdog]);
        }
        if now >= self.housekeeping_at {
            self.housekeeping_at = now + HOUSEKEEPING_INTERVAL;
            self.keep_house(now);
        }
    }

    fn keep_house(&mut self, now: Instant) {
        self.services.database.flush();
        self.services.ports.retry();
        self.services.stopped.retry();
        self.tell_facts();
        for id in self.endpoints.keys() {
            let path = self.services.paths.worker_log(id);
            if let Err(error) = log::rotate_shared(&path, &self.services.log_limits) {
                warn!(path = %path.display(), %error, "a log cannot be put aside");
            }
        }
        if self.configuration.is_outdated(&self.services.paths) {
            self.reload_at.get_or_insert(now);
        }
        self.look_after_sessions();
        self.sample_memory(now);
        if !self.is_ending() {
            self.look_after_codex(false);
        }
    }

    /// Looks after Codex's own configuration.
    fn look_after_codex(&mut self, resumes: bool) {
        self.tender.look(&self.services.paths, &self.services.queue, resumes, self.addresses());
    }

    /// Where endpoints listen.
    fn addresses(&self) -> Addresses {
        let address_of = |(id, managed): (&EndpointId, &Managed)| Some((id.clone(), managed.address()?));
        self.endpoints.iter().filter_map(address_of).collect()
    }

    /// Looks how much memory the workers and Codex use.
    fn sample_memory(&mut self, now: Instant) {
        let mut pids: Vec<u32> = self.endpoints.values().flat_map(Managed::worker_pids).collect();
        if self.memory.is_recent(now, &pids) {
            return;
        }
        self.look_at_sessions();
        pids.extend(self.sessions.pids());
        self.memory.sample(&pids, now);
        self.set_session_memory();
        let mut samples = Vec::new();
        for managed in self.endpoints.values_mut() {
            samples.extend(managed.set_memory(&self.memory, &mut self.services, now));
        }
        for sample in samples {
            // At the very time at which a worker may have been replaced for it: that one is not to be replaced once more.
            self.incidents.observe(sample, now);
        }
    }

    /// When to wake up, if nothing happens before.
    fn deadline(&self) -> Instant {
        let endpoints = self.endpoints.values().filter_map(Managed::deadline);
        let waiters = self.waiters.iter().map(|waiter| waiter.deadline);
        endpoints
            .chain(waiters)
            .chain(self.reload_at)
            .chain(self.config_out_by)
            .chain(self.give_up_at)
            .chain(self.leave_by)
            .chain(self.registry_retry_at)
            .chain(self.incidents.deadline())
            .fold(self.tick_at, Instant::min)
    }

    fn drive_due(&mut self, now: Instant) {
        for managed in self.endpoints.values_mut() {
            if managed.deadline().is_some_and(|deadline| now >= deadline) {
                managed.drive(&mut self.services, now);
            }
        }
        if self.config_out_by.is_some_and(|by| now >= by) {
            let hint = "`codexctl restore` takes it out, `codexctl start` serves it again";
            error!(hint, "codex's configuration could not be put back in time, it may still point at an endpoint");
            let message = "Codex's configuration could not be put back in time: it may still point at an endpoint";
            self.services.announcer.tell("config.failed", None, message.to_owned(), json!({ "hint": hint }));
            self.end_workers(now);
        }
        if self.reload_at.is_some_and(|at| now >= at) {
            self.reload_at = None;
            if self.configuration.is_outdated(&self.services.paths) {
                self.reload(now);
            }
        }
    }

    fn drive_all(&mut self, now: Instant) {
        for managed in self.endpoints.values_mut() {
            managed.drive(&mut self.services, now);
        }
    }

    /// What follows from whatever has just happened.
    fn settle(&mut self, now: Instant) {
        self.endpoints.retain(|_, managed| managed.is_listed() || !managed.is_idle());
        self.send_waiters_away(now);
        self.take_held_calls(now);
        self.mend(now);
        if self.services.registry_is_outdated && self.registry_retry_at.is_none_or(|at| now >= at) {
            self.write_registry(now);
        }
        if std::mem::take(&mut self.services.status_is_outdated) {
            self.tell_status_line();
        }
        let n_moved = self.endpoints.values_mut().filter_map(|managed| managed.take_move().then_some(())).count();
        if n_moved > 0 && !self.is_ending() {
            self.look_after_codex(false);
        }
    }

    /// No worker is left. Codex may be: the next supervisor is to know it at once, and what it has left if it ends before
    /// there is one.
    fn leave_registry(&self) {
        if let Err(error) = std::fs::remove_file(self.services.paths.registry()) {
            debug!(%error, "no registry to remove");
        }
        let sessions = self.sessions.entries();
        if sessions.is_empty() {
            return;
        }
        let left = Registry::new(self.services.own.clone(), Vec::new(), sessions, Vec::new());
        if let Err(error) = left.store(&self.services.paths.left_sessions()) {
            let reason = codex_control::report::chain(&error);
            error!(
                reason,
                "sessions that go on cannot be written down; they are known again when their launchers report"
            );
        }
    }

    /// Writes the registry, or tries again a little later.
    fn write_registry(&mut self, now: Instant) {
        let workers = self.endpoints.values().flat_map(Managed::registry_entries).collect();
        // Whoever has us restarted, after an upgrade say, wants things to be tried again.
        let crashes = self.endpoints.values().filter(|_| self.leave_by.is_none());
        let crashes = crashes.filter_map(|managed| managed.crashes_entry(now, &self.services)).collect();
        let registry = Registry::new(self.services.own.clone(), workers, self.sessions.entries(), crashes);
        match registry.store(&self.services.paths.registry()) {
            Ok(()) => {
                if self.registry_retry_at.take().is_some() {
                    info!("the registry is written again");
                }
                self.services.registry_is_outdated = false;
                if std::mem::take(&mut self.has_left_sessions) {
                    let _ = std::fs::remove_file(self.services.paths.left_sessions()); // who reads it again knows them
                }
                self.services.see(incident::Signal::new(Observation::RegistrySound));
            }
            Err(error) => {
                if self.registry_retry_at.is_none() {
                    let reason = codex_control::report::chain(&error);
                    error!(reason, "the registry cannot be written, trying again");
                    let message = format!("what the next supervisor should know cannot be written: {reason}");
                    self.services.announcer.tell("registry.failed", None, message, Value::Null);
                }
                self.registry_retry_at = Some(now + REGISTRY_RETRY_INTERVAL);
            }
        }
    }

    /// Reads the settings again and lets every endpoint follow.
    fn reload(&mut self, now: Instant) {
        let problem_before = self.configuration.problem.clone();
        let is_good = self.configuration.reload(&self.services.paths);
        if self.configuration.problem != problem_before || is_good {
            self.tell_settings();
        }
        if !is_good {
            return;
        }
        let settings = &self.configuration.settings;
        let limits = self.services.memory_limits();
        self.services.settings = settings.daemon.clone();
        self.services.codex = settings.codex.clone();
        self.services.log_limits.set(&settings.daemon);
        self.services.default_endpoint = settings.default_endpoint().cloned();
        for managed in self.endpoints.values_mut() {
            managed.set_limits(&self.services);
            if self.services.memory_limits() != limits {
                managed.limit_memory(&self.services);
            }
        }
        self.reread_monitor();
        self.replan(now);
    }

    /// Lets every endpoint follow the settings and what stands over them.
    fn replan(&mut self, now: Instant) {
        let mut plan = self.configuration.plan();
        self.services.standing.keep_only(&plan);
        self.services.standing.apply(&mut plan);
        for difference in differences(&self.plan, &plan) {
            let (id, kind, what) = match &difference {
                Difference::Added(id) => (id, "endpoint.added", "added"),
                Difference::Changed(id) => (id, "endpoint.changed", "changed"),
                Difference::Removed(id) => (id, "endpoint.removed", "removed"),
            };
            info!(endpoint = %id, what, "settings");
            if matches!(difference, Difference::Removed(_)) {
                let now_ms = self.incidents.millis(now);
                self.incidents.engine().forget(now_ms, id);
            }
            self.services.announcer.tell(kind, Some(id), format!("the endpoint `{id}` was {what}"), Value::Null);
            let planned = plan.iter().find(|planned| planned.settings.id == *id);
            match (self.endpoints.get_mut(id), planned) {
                (Some(managed), planned) => managed.replan(planned.cloned(), &self.services),
                (None, Some(planned)) => {
                    let managed = Managed::new(id.clone(), planned.clone(), &self.services);
                    self.endpoints.insert(id.clone(), managed);
                }
                (None, None) => {}
            }
        }
        self.plan = plan;
        self.tell_facts();
        self.drive_all(now);
    }

    fn tell_settings(&mut self) {
        self.services.status_is_outdated = true;
        let path = self.services.paths.settings();
        match &self.configuration.problem {
            None => {
                info!(path = %path.display(), endpoints = self.configuration.settings.endpoint.len(), "settings loaded");
                self.services.announcer.tell(
                    "settings.loaded",
                    None,
                    "the settings were loaded".to_owned(),
                    Value::Null,
                );
            }
            Some(problem) => {
                error!(
                    problem = problem.message,
                    hint = problem.hint,
                    "settings refused, the last good ones stay in force"
                );
                let message = format!("the settings cannot be used: {}", problem.message);
                self.services.announcer.tell("settings.refused", None, message, json!(problem));
            }
        }
    }

    /// Tells the service manager how many endpoints work.
    fn tell_status_line(&mut self) {
        let listed = self.plan.iter().filter_map(|planned| self.endpoints.get(&planned.settings.id));
        let states: Vec<EndpointState> = listed.map(|managed| managed.state(&self.services).0).collect();
        let n_wanted =
            states.iter().filter(|state| !matches!(state, EndpointState::Disabled | EndpointState::Stopped)).count();
        let n_running = states.iter().filter(|state| **state == EndpointState::Running).count();
        let line = match (self.is_ending(), &self.configuration.problem) {
            (true, _) => "stopping".to_owned(),
            (false, None) => format!("{n_running} of {n_wanted} endpoints work"),
            (false, Some(problem)) => {
                format!("{n_running} of {n_wanted} endpoints work; settings: {}", problem.message)
            }
        };
        if line != self.status_line {
            systemd::notify(&[NotifyState::Status(&line)]);
            self.status_line = line;
        }
    }

    /// Ends without the workers: the next supervisor finds them by the registry, and they find it.
    fn leave(&mut self, now: Instant) {
        if self.is_ending() || self.leave_by.is_some() {
            return;
        }
        info!("leaving, the workers go on");
        // What is on its way into a scope would be ended with us.
        self.leave_by = Some(now + LEAVE_WITHIN);
        self.services.registry_is_outdated = true;
        systemd::notify(&[NotifyState::Stopping]);
        self.services.announcer.tell("daemon.restarting", None, "the supervisor restarts".to_owned(), Value::Null);
    }

    /// Whether we have been told to end with all we run.
    fn is_ending(&self) -> bool {
        self.services.is_stopping || self.config_out_by.is_some()
    }

    /// Time for all workers to end.
    fn workers_end_within(&self) -> Duration {
        self.services.stop_within() + DRAIN_SLACK + TERMINATE_WITHIN + STOP_SLACK
    }

    /// Begins to end; told twice, ends at once.
    fn stop(&mut self, now: Instant) {
        if self.is_ending() {
            warn!("told to end again, killing the workers");
            if !self.services.is_stopping {
                self.end_workers(now);
            }
            self.endpoints.values_mut().for_each(Managed::kill_all);
            return;
        }
        let within = CONFIG_OUT_WITHIN + self.workers_end_within();
        info!(within_s = within.as_secs(), "stopping");
        self.services.status_is_outdated = true;
        self.config_out_by = Some(now + CONFIG_OUT_WITHIN);
        let extend_us = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
        systemd::notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(extend_us)]);
        self.services.announcer.tell("daemon.stopping", None, "the supervisor ends".to_owned(), Value::Null);
        let patience = CONFIG_OUT_WITHIN.saturating_sub(CONFIG_OUT_SLACK);
        self.tender.end(&self.services.paths, &self.services.queue, patience);
    }

    /// Nothing leads to the workers any more, as far as that could be had: now they end.
    fn end_workers(&mut self, now: Instant) {
        let left = self.config_out_by.take().map(|by| by.saturating_duration_since(now));
        self.services.stop_spent = CONFIG_OUT_WITHIN.saturating_sub(left.unwrap_or_default());
        self.services.is_stopping = true;
        self.give_up_at = Some(now + self.workers_end_within());
        self.drive_all(now);
    }

    fn is_at_end(&self, now: Instant) -> bool {
        if self.endpoints.values().all(Managed::is_idle) && !self.sessions.is_any_ending() {
            return true;
        }
        let gives_up = self.give_up_at.is_some_and(|at| now >= at);
        if gives_up {
            error!("not all that is to end can be ended, leaving it to the next start");
        }
        gives_up
    }

    fn clean_up(mut self) {
        if self.endpoints.values().all(Managed::is_idle) {
            self.leave_registry();
        }
        self.incidents.write(&self.services.database, &self.services.queue);
        self.services.database.close();
        info!("stopped");
    }
}
