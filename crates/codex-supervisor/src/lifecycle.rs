//! The workers of one endpoint over time: decides, touches nothing, and can be replayed.
//!
//! ```text
//!            Spawn           ready              Drain               too long              too long
//!  (nothing) ─────► Starting ─────► Serving ───────────► Draining ───────────► Terminating ───────► Killed
//!      ▲               │ too long      │ silent             │ silent                                  │
//!      │               └───────────────┴────────────────────┴─────────────────────────────────────────┤ Kill
//!      └─────────────────────────────────────── ended ────────────────────────────────────────────────┘
//! ```
//!
//! Somebody else tells what happened (`ready`, `heard`, `ended`, `probed`, …) and then carries out what
//! [`Lifecycle::poll`] returns until it returns nothing. [`Lifecycle::deadline`] says when to poll again.
//!
//! Replacing a worker (other settings, unhealthy, the person's wish) is one rule: what should be served has a
//! *revision*; a serving worker of an older revision goes on until one of the present revision is ready, and only then
//! drains. So the listener is never without a worker, and running answers end in their own time.
//!
//! A worker found alive after a supervisor's end is an *orphan*: nothing is started for its endpoint until it has
//! reported back and is adopted, or has been ended.

use std::collections::BTreeMap;
use std::mem;
use std::time::{Duration, Instant};

use codex_control::ipc::{HEARTBEAT_INTERVAL, HEARTBEATS_MISSED_MAX};

use crate::backoff::{Backoff, Crashes};

/// Time from a worker's start to its `Ready`. It takes milliseconds; a machine that swaps may need seconds.
pub(crate) const START_WITHIN: Duration = Duration::from_secs(15);
/// Silence after which a worker counts as stuck: the missed heartbeats, and a little for a busy machine.
pub(crate) const STUCK_AFTER: Duration =
    HEARTBEAT_INTERVAL.saturating_mul(HEARTBEATS_MISSED_MAX).saturating_add(Duration::from_millis(250));
/// Silence after which it is looked at what the worker does, so that it is known at [`STUCK_AFTER`] what it did since.
const SUSPECT_AFTER: Duration = STUCK_AFTER.saturating_sub(HEARTBEAT_INTERVAL.saturating_mul(2));
/// Time that a worker which gets no processor is given before it is looked at again.
const EXCUSED_FOR: Duration = Duration::from_millis(250);
/// The longest such times of one silence together: whoever gets no processor for so long serves nobody.
const EXCUSED_MAX: Duration = Duration::from_secs(8);
/// Time a replaced worker has for its running answers, which nearly all turns need only a part of. After it, a stream
/// is told to try again, and the next worker is there.
pub(crate) const HANDOVER_WITHIN: Duration = Duration::from_mins(10);
/// What a worker gets beyond its drain deadline to send terminal events and exit, before TERM.
pub(crate) const DRAIN_SLACK: Duration = Duration::from_millis(500);
/// Time from TERM to KILL.
pub(crate) const TERMINATE_WITHIN: Duration = Duration::from_secs(1);
/// Time an orphan has to report back to a new supervisor; it redials several times a second.
pub(crate) const ADOPT_WITHIN: Duration = Duration::from_secs(5);
/// Health without a gap that makes earlier restarts forgotten. A start alone is no health.
pub(crate) const HEALTHY_FOR: Duration = Duration::from_mins(1);

/// What the person's settings say about supervision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Longest pause between two restarts.
    pub(crate) restart_pause_max: Duration,
    /// Time between two health probes.
    pub(crate) health_interval: Duration,
    /// Failed probes in a row after which a worker is replaced.
    pub(crate) health_failures_max: u32,
}

/// What should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A worker of the present revision serves.
    Serve,
    /// No worker; those there are have this long to end their answers.
    Rest {
        /// Time for running answers.
        within: Duration,
    },
}

/// What has to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Start a worker.
    Spawn {
        /// Its number.
        generation: u64,
    },
    /// Ask a worker to stop accepting, end its answers and exit.
    Drain {
        /// Its number.
        generation: u64,
        /// Time for running answers.
        within: Duration,
    },
    /// Send TERM.
    Terminate {
        /// Its number.
        generation: u64,
    },
    /// Send KILL.
    Kill {
        /// Its number.
        generation: u64,
        /// Why.
        because: KillReason,
    },
    /// Look whether a silent worker gets a processor, and say so with [`Lifecycle::examined`].
    Examine {
        /// Its number.
        generation: u64,
    },
    /// Ask the endpoint for its health.
    Probe {
        /// The serving worker's number.
        generation: u64,
    },
}

/// Why a worker is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// It did not become ready in time.
    NeverReady,
    /// It has missed its heartbeats.
    Stuck,
    /// It did not end in time after TERM.
    Lingering,
}

impl KillReason {
    /// For a log and for a person.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::NeverReady => "it did not become ready",
            Self::Stuck => "it stopped responding",
            Self::Lingering => "it did not end when asked to",
        }
    }
}

/// Where the endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// This worker serves.
    Serving(u64),
    /// A worker is on its way, or is waited for.
    Starting,
    /// The last one ended; the next one starts after a pause.
    Waiting,
    /// It ended too often lately: it is tried again, slowly, and somebody else answers meanwhile.
    Tripped,
    /// It ended too often in a row; only [`Lifecycle::revive`] helps.
    Exhausted,
    /// No worker is wanted.
    Resting,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself: an exit, a fault, for want of memory, or in a way that nobody knows.
    Itself,
    /// Somebody else has killed it.
    Killed,
}

/// What a worker that has reported back is to this supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It serves what is to be served at present.
    Fits,
    /// It serves something else, and is to be replaced.
    Outdated,
    /// The same, and its signs of life are not understood.
    Mute,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    limits: Limits,
    wanted: Wanted,
    revision: u64,
    generation: u64,
    workers: BTreeMap<u64, Worker>,
    backoff: Backoff,
    restart_at: Option<Instant>,
    restarts_total: u64,
    probe: Probe,
}

#[derive(Debug)]
struct Worker {
    revision: u64,
    stage: Stage,
    heard_at: Instant,
    /// Whether its signs of life are not understood: then it is not missed.
    is_mute: bool,
    silence: Silence,
}

/// What is thought of a worker's silence since it was heard last.
#[derive(Clone, Copy, Debug, Default)]
struct Silence {
    /// Whether it was looked at.
    is_examined: bool,
    /// The times it was given because it got no processor.
    excused: Duration,
    is_stuck: bool,
}

impl Worker {
    fn new(revision: u64, stage: Stage, heard_at: Instant) -> Self {
        Self { revision, stage, heard_at, is_mute: false, silence: Silence::default() }
    }

    /// It has given a sign of life, or is first expected to give one from now on.
    fn heard(&mut self, now: Instant) {
        self.heard_at = self.heard_at.max(now);
        self.silence = Silence::default();
    }

    /// When to look at it, if nothing is heard of it.
    fn examine_at(&self) -> Option<Instant> {
        let after = if self.silence.is_examined { STUCK_AFTER + self.silence.excused } else { SUSPECT_AFTER };
        (!self.is_mute).then(|| self.heard_at + after)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Orphan {
        until: Instant,
    },
    Starting {
        until: Instant,
    },
    Serving,
    Draining {
        until: Instant,
    },
    /// `unresolved`: an orphan that never reported; it may still hold the port.
    Terminating {
        until: Instant,
        unresolved: bool,
    },
    Killed {
        unresolved: bool,
    },
}

impl Stage {
    fn is_unresolved(self) -> bool {
        matches!(
            self,
            Self::Orphan { .. } | Self::Terminating { unresolved: true, .. } | Self::Killed { unresolved: true }
        )
    }
}

#[derive(Debug, Default)]
struct Probe {
    due_at: Option<Instant>,
    in_flight: Option<u64>,
    failures: u32,
    healthy_since: Option<Instant>,
}

/// Revision of a worker whose settings are not known to be the present ones.
const REVISION_STALE: u64 = 0;

impl Lifecycle {
    /// No workers, none wanted. `seed` spreads restarts of several endpoints.
    pub(crate) fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            wanted: Wanted::Rest { within: Duration::ZERO },
            revision: REVISION_STALE + 1,
            generation: 0,
            workers: BTreeMap::new(),
            backoff: Backoff::new(seed),
            restart_at: None,
            restarts_total: 0,
            probe: Probe::default(),
        }
    }

    /// Where it stands.
    pub(crate) fn phase(&self) -> Phase {
        if matches!(self.wanted, Wanted::Rest { .. }) {
            return Phase::Resting;
        }
        if let Some(generation) = self.serving() {
            return Phase::Serving(generation);
        }
        let on_its_way =
            |worker: &Worker| matches!(worker.stage, Stage::Starting { .. }) || worker.stage.is_unresolved();
        let is_on_its_way = self.workers.values().any(on_its_way);
        if self.backoff.is_exhausted() && !is_on_its_way {
            Phase::Exhausted
        } else if self.backoff.is_tripped() {
            Phase::Tripped
        } else if is_on_its_way {
            Phase::Starting
        } else if self.restart_at.is_some() {
            Phase::Waiting
        } else {
            Phase::Starting
        }
    }

    /// The worker that accepts connections; the newest, while one is being replaced.
    pub(crate) fn serving(&self) -> Option<u64> {
        self.workers.iter().rev().find(|(_, worker)| worker.stage == Stage::Serving).map(|(generation, _)| *generation)
    }

    /// The worker that is serving or, without one, on its way.
    pub(crate) fn current(&self) -> Option<u64> {
        self.serving().or_else(|| {
            let mut newest_first = self.workers.iter().rev();
            newest_first
                .find(|(_, worker)| matches!(worker.stage, Stage::Starting { .. }))
                .map(|(generation, _)| *generation)
        })
    }

    /// Whether the worker that serves is to be replaced by another one.
    pub(crate) fn is_replacing(&self) -> bool {
        let serving = self.serving().and_then(|generation| self.workers.get(&generation));
        self.wanted == Wanted::Serve && serving.is_some_and(|worker| worker.revision != self.revision)
    }

    /// Number of the latest worker.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Restarts after unexpected ends.
    pub(crate) fn restarts_total(&self) -> u64 {
        self.restarts_total
    }

    /// Whether a worker ended unexpectedly and there was no minute of health since.
    pub(crate) fn is_recovering(&self) -> bool {
        self.backoff.is_running()
    }

    /// Whether it ended too often lately and has not been healthy since.
    pub(crate) fn is_tripped(&self) -> bool {
        self.backoff.is_tripped()
    }

    /// Whether no worker is left, wanted or not.
    pub(crate) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Whether a worker of an earlier supervisor may still hold the listener.
    pub(crate) fn is_unresolved(&self) -> bool {
        self.workers.values().any(|worker| worker.stage.is_unresolved())
    }

    /// Whether this worker has been told to stop accepting (or is to be told).
    pub(crate) fn is_leaving(&self, generation: u64) -> bool {
        self.workers.get(&generation).is_none_or(|worker| {
            matches!(worker.stage, Stage::Draining { .. } | Stage::Terminating { .. } | Stage::Killed { .. })
        })
    }

    /// Whether it is the worker of an earlier supervisor and has not reported back yet.
    pub(crate) fn is_orphan(&self, generation: u64) -> bool {
        self.workers.get(&generation).is_some_and(|worker| matches!(worker.stage, Stage::Orphan { .. }))
    }

    /// Time a draining worker still has for its answers.
    pub(crate) fn time_left(&self, now: Instant, generation: u64) -> Duration {
        match self.workers.get(&generation).map(|worker| worker.stage) {
            Some(Stage::Draining { until }) => until.saturating_duration_since(now).saturating_sub(DRAIN_SLACK),
            _ => Duration::ZERO,
        }
    }

    /// When to poll again, if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let stages = self.workers.values().filter_map(|worker| match worker.stage {
            Stage::Orphan { until } | Stage::Starting { until } | Stage::Terminating { until, .. } => Some(until),
            Stage::Serving => worker.examine_at(),
            Stage::Draining { until } => Some(worker.examine_at().map_or(until, |examine_at| until.min(examine_at))),
            Stage::Killed { .. } => None,
        });
        let serving = self.serving().is_some();
        let probe = self.probe.due_at.filter(|_| serving && self.probe.in_flight.is_none());
        let restart =
            self.restart_at.filter(|_| self.wanted == Wanted::Serve && !self.has_fitting() && self.may_spawn());
        stages.chain(probe).chain(restart).min()
    }

    /// Takes over changed limits.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Says what should be.
    pub(crate) fn want(&mut self, wanted: Wanted) {
        self.wanted = wanted;
    }

    /// What is to be served has changed: the next worker replaces the present one.
    pub(crate) fn change(&mut self) {
        self.revision += 1;
        self.revive();
    }

    /// The serving worker is to be replaced by another one of its kind, unless it is being replaced already. Earlier
    /// restarts are not forgotten for that.
    pub(crate) fn renew(&mut self) {
        let serving = self.serving().and_then(|generation| self.workers.get(&generation));
        if serving.is_some_and(|worker| worker.revision == self.revision) {
            self.revision += 1;
        }
    }

    /// The person wants it to work: earlier restarts are forgotten.
    pub(crate) fn revive(&mut self) {
        self.backoff.reset();
        self.restart_at = None;
    }

    /// What of earlier crashes the next supervisor should know.
    pub(crate) fn crashes(&self) -> Crashes {
        self.backoff.remembered()
    }

    /// An earlier supervisor has seen these crashes: nothing starts sooner than under it.
    pub(crate) fn remember(&mut self, now: Instant, crashes: &Crashes) {
        let pause = self.backoff.remember(crashes, self.limits.restart_pause_max);
        self.restart_at = (!pause.is_zero()).then(|| now + pause);
    }

    /// A worker of an earlier supervisor lives. `draining`: it had been told to end.
    pub(crate) fn orphan(&mut self, now: Instant, generation: u64, draining: bool) {
        let stage = if draining {
            Stage::Draining { until: now + HANDOVER_WITHIN + DRAIN_SLACK }
        } else {
            Stage::Orphan { until: now + ADOPT_WITHIN }
        };
        // One that drains does not dial in any more.
        let worker = Worker { is_mute: draining, ..Worker::new(REVISION_STALE, stage, now) };
        self.generation = self.generation.max(generation);
        self.workers.insert(generation, worker);
    }

    /// An orphan has reported back, with its listener.
    pub(crate) fn adopted(&mut self, now: Instant, generation: u64, fit: Fit) {
        let revision = if fit == Fit::Fits { self.revision } else { REVISION_STALE };
        if let Some(worker) = self.workers.get_mut(&generation)
            && matches!(worker.stage, Stage::Orphan { .. })
        {
            *worker = Worker { is_mute: fit == Fit::Mute, ..Worker::new(revision, Stage::Serving, now) };
            self.probe = Probe { due_at: Some(now), ..Probe::default() };
        }
    }

    /// A worker could not be started; the next try is at `retry_at`. This is no crash.
    pub(crate) fn unspawned(&mut self, generation: u64, retry_at: Instant) {
        self.workers.remove(&generation);
        self.restart_at = Some(retry_at);
    }

    /// A worker accepts connections. Says whether that was waited for.
    pub(crate) fn ready(&mut self, now: Instant, generation: u64) -> bool {
        let Some(worker) = self.workers.get_mut(&generation) else { return false };
        if !matches!(worker.stage, Stage::Starting { .. }) {
            return false;
        }
        worker.stage = Stage::Serving;
        worker.heard(now);
        self.restart_at = None;
        self.probe = Probe { due_at: Some(now), ..Probe::default() };
        true
    }

    /// A worker that is to end has at most this long for its answers, from now on. Says whether it had more.
    pub(crate) fn hurry(&mut self, now: Instant, generation: u64, within: Duration) -> bool {
        let latest = now + within + DRAIN_SLACK;
        match self.workers.get_mut(&generation).map(|worker| &mut worker.stage) {
            Some(Stage::Draining { until }) if *until > latest => {
                *until = latest;
                true
            }
            _ => false,
        }
    }

    /// A worker has given a sign of life.
    pub(crate) fn heard(&mut self, now: Instant, generation: u64) {
        if let Some(worker) = self.workers.get_mut(&generation) {
            worker.heard(now);
        }
    }

    /// A silent worker was looked at. `is_starved`: it would do something, and got too little of a processor for it
    /// since it was looked at before. Says whether it is given more time for that, once for a silence.
    pub(crate) fn examined(&mut self, now: Instant, generation: u64, is_starved: bool) -> bool {
        let Some(worker) = self.workers.get_mut(&generation) else { return false };
        let is_first = !mem::replace(&mut worker.silence.is_examined, true);
        if is_first || worker.examine_at().is_none_or(|at| now < at) {
            return false;
        }
        if is_starved && worker.silence.excused < EXCUSED_MAX {
            worker.silence.excused += EXCUSED_FOR;
            return worker.silence.excused == EXCUSED_FOR;
        }
        worker.silence.is_stuck = true;
        false
    }

    /// A worker has ended. Says whether that was unexpected.
    pub(crate) fn ended(&mut self, now: Instant, generation: u64, end: End) -> bool {
        let Some(worker) = self.workers.remove(&generation) else {
            return false;
        };
        match (worker.stage, end) {
            // It did its work: that somebody has killed it tells nothing about the next one.
            (Stage::Serving, End::Killed) => {
                let pause = self.backoff.killed(now, self.limits.restart_pause_max);
                self.restart(now, pause);
            }
            (Stage::Starting { .. } | Stage::Serving, _) => self.crashed(now),
            (Stage::Orphan { .. } | Stage::Draining { .. } | Stage::Terminating { .. } | Stage::Killed { .. }, _) => {
                return false;
            }
        }
        true
    }

    /// A probe has an answer. Says whether the worker is to be replaced because of it.
    pub(crate) fn probed(&mut self, now: Instant, generation: u64, passed: bool) -> bool {
        if self.probe.in_flight == Some(generation) {
            self.probe.in_flight = None;
            self.probe.due_at = Some(now + self.limits.health_interval);
        }
        if self.serving() != Some(generation) {
            return false; // about a worker that is gone by now
        }
        if passed {
            self.probe.failures = 0;
            let since = *self.probe.healthy_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= HEALTHY_FOR {
                self.backoff.healthy();
            }
            return false;
        }
        self.probe.healthy_since = None;
        self.probe.failures += 1;
        let unhealthy = self.probe.failures >= self.limits.health_failures_max;
        if unhealthy {
            self.probe.failures = 0;
            self.revision += 1; // not `change`: an endpoint that is never healthy must not forget its restarts
            let pause = self.backoff.crashed(now, self.limits.restart_pause_max);
            self.restart_at = Some(now + pause);
            self.restarts_total += 1;
        }
        unhealthy
    }

    /// Somebody waits for the health: the next probe is due at once.
    pub(crate) fn probe_soon(&mut self, now: Instant) {
        self.probe.due_at = Some(now);
    }

    /// We ourselves were away for `late` (freeze, no processor): nobody else is to blame for the silence meanwhile.
    pub(crate) fn late(&mut self, now: Instant, late: Duration) {
        let is_long = late >= HEARTBEAT_INTERVAL;
        if is_long {
            self.probe.failures = 0;
        }
        for worker in self.workers.values_mut() {
            // After a long absence everybody starts anew: whoever was away with us may come back a little later.
            let forgiven = if is_long { now } else { now.min(worker.heard_at + late) };
            worker.heard_at = worker.heard_at.max(forgiven);
            match &mut worker.stage {
                Stage::Orphan { until }
                | Stage::Starting { until }
                | Stage::Draining { until }
                | Stage::Terminating { until, .. } => *until += late,
                Stage::Serving | Stage::Killed { .. } => {}
            }
        }
    }

    /// The next thing to do, if any. Carry it out, then poll again.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Command> {
        self.poll_overdue(now).or_else(|| match self.wanted {
            Wanted::Rest { within } => self.poll_rest(now, within),
            Wanted::Serve => self.poll_serve(now),
        })
    }

    fn poll_overdue(&mut self, now: Instant) -> Option<Command> {
        let is_silent = |worker: &Worker| {
            matches!(worker.stage, Stage::Serving | Stage::Draining { .. })
                && !worker.silence.is_stuck
                && worker.examine_at().is_some_and(|at| now >= at)
        };
        if let Some((&generation, _)) = self.workers.iter().find(|(_, worker)| is_silent(worker)) {
            return Some(Command::Examine { generation });
        }
        let (generation, reason) = self.workers.iter_mut().find_map(|(&generation, worker)| {
            let is_stuck = worker.silence.is_stuck;
            match worker.stage {
                Stage::Starting { until } if now >= until => Some((generation, Some(KillReason::NeverReady))),
                Stage::Serving | Stage::Draining { .. } if is_stuck => Some((generation, Some(KillReason::Stuck))),
                Stage::Orphan { until } | Stage::Draining { until } if now >= until => {
                    let unresolved = worker.stage.is_unresolved();
                    worker.stage = Stage::Terminating { until: now + TERMINATE_WITHIN, unresolved };
                    Some((generation, None))
                }
                Stage::Terminating { until, .. } if now >= until => Some((generation, Some(KillReason::Lingering))),
                _ => None,
            }
        })?;
        let Some(because) = reason else {
            return Some(Command::Terminate { generation });
        };
        let worker = self.workers.get_mut(&generation)?;
        let was_wanted = matches!(worker.stage, Stage::Starting { .. } | Stage::Serving);
        worker.stage = Stage::Killed { unresolved: worker.stage.is_unresolved() };
        if was_wanted {
            // Counted now, not when it ends: a process in an uninterruptible sleep must not hold up its successor.
            self.crashed(now);
        }
        Some(Command::Kill { generation, because })
    }

    fn poll_rest(&mut self, now: Instant, within: Duration) -> Option<Command> {
        let latest = now + within + DRAIN_SLACK;
        self.workers.iter_mut().find_map(|(&generation, worker)| {
            let is_due = match worker.stage {
                Stage::Starting { .. } | Stage::Serving => true,
                Stage::Draining { until } => until > latest,
                Stage::Orphan { .. } | Stage::Terminating { .. } | Stage::Killed { .. } => false,
            };
            is_due
                .then(|| worker.stage = Stage::Draining { until: latest })
                .map(|()| Command::Drain { generation, within })
        })
    }

    fn poll_serve(&mut self, now: Instant) -> Option<Command> {
        let revision = self.revision;
        let newest = self.workers.iter().rev();
        let newest = newest
            .filter(|(_, worker)| worker.stage == Stage::Serving && worker.revision == revision)
            .map(|(generation, _)| *generation)
            .next();
        let outdated = self.workers.iter_mut().find(|(generation, worker)| match worker.stage {
            Stage::Starting { .. } => worker.revision != revision,
            // Of the present revision, too: a supervisor that was killed in the middle of a replacement leaves two.
            Stage::Serving => newest.is_some_and(|newest| newest != **generation),
            Stage::Orphan { .. } | Stage::Draining { .. } | Stage::Terminating { .. } | Stage::Killed { .. } => false,
        });
        if let Some((&generation, worker)) = outdated {
            worker.stage = Stage::Draining { until: now + HANDOVER_WITHIN + DRAIN_SLACK };
            worker.heard(now);
            return Some(Command::Drain { generation, within: HANDOVER_WITHIN });
        }
        if !self.has_fitting() && self.may_spawn() && self.restart_at.is_none_or(|at| now >= at) {
            self.generation += 1;
            self.restart_at = None;
            let stage = Stage::Starting { until: now + START_WITHIN };
            self.workers.insert(self.generation, Worker::new(revision, stage, now));
            return Some(Command::Spawn { generation: self.generation });
        }
        let generation = self.serving()?;
        if self.probe.in_flight.is_none() && self.probe.due_at.is_some_and(|at| now >= at) {
            self.probe.in_flight = Some(generation);
            return Some(Command::Probe { generation });
        }
        None
    }

    /// Whether a worker of the present revision serves or is on its way.
    fn has_fitting(&self) -> bool {
        self.workers.values().any(|worker| {
            worker.revision == self.revision && matches!(worker.stage, Stage::Starting { .. } | Stage::Serving)
        })
    }

    fn may_spawn(&self) -> bool {
        !self.is_unresolved() && !self.backoff.is_exhausted()
    }

    fn crashed(&mut self, now: Instant) {
        if self.wanted == Wanted::Serve {
            let pause = self.backoff.crashed(now, self.limits.restart_pause_max);
            self.restart(now, pause);
        }
    }

    fn restart(&mut self, now: Instant, pause: Duration) {
        self.probe.healthy_since = None;
        self.probe.failures = 0;
        if self.wanted == Wanted::Serve {
            self.restarts_total += 1;
            self.restart_at = Some(now + pause);
        }
    }
}

#[cfg(test)]
mod tests;
