//! The incident engine at work: signals go to [`Engine`], what it decides is written down before it is done.
//!
//! ```text
//!  signals ──► observe ──► Engine ──► Record ─────────► state.db, `incident` events
//!                             │   └──► Notify ────────► `incident.notice` events, the desktop
//!                             ▼
//!                       Act, Diagnose ──► state.db ──► "it is kept" ──► carried out ──► outcome ──► Engine
//! ```
//!
//! What guards count (a restart, a question that costs money) stands in the database before the deed, so that no crash
//! gives one for free. A deed whose writing fails or takes too long is done all the same if it mends something, and is
//! not done if it costs money.
//!
//! This module decides nothing and touches no endpoint: it hands [`Deed`]s to the supervisor's task, which carries them
//! out (`supervisor/mending.rs`).

pub(crate) mod ask;
pub(crate) mod desktop;
pub(crate) mod simulate;
pub(crate) mod store;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use codex_control::EndpointId;
use codex_control::incident::{ActionId, Incident, IncidentId, IncidentState, Millis, Signal};
use codex_control::tables::incident::IncidentTables;
use codex_incident::{Act, Diagnose, Directive, Engine, Notice, Policy, Saved};
use tracing::{error, warn};

use crate::clock::unix_ms;
use crate::database::{Database, incidents};
use crate::event::{Event, Queue};

/// Signals that wait while the database is being read; beyond it the oldest are dropped and counted.
const WAITING_SIGNALS_MAX: usize = 4096;
/// Changes that nothing depends on are written together, this often.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Time for what was kept to be read, and for a deed to be written down. A disk that is slower holds up nothing.
const KEEP_WITHIN: Duration = Duration::from_secs(2);

/// Something to be done, written down already.
#[derive(Debug)]
pub(crate) enum Deed {
    /// Carry it out, then tell [`Incidents::engine`].
    Act(Act),
    /// Ask the AI, then tell it.
    Ask(Diagnose),
}

/// What came of writing something down.
#[derive(Debug)]
pub(crate) struct Kept {
    ticket: u64,
    /// Whether it will survive.
    is_kept: bool,
}

/// What the database knows of an earlier run.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What the engine had said to keep; `Err`: it is there, or was, and cannot be read.
    saved: Result<Option<Saved>, String>,
}

/// See the module.
pub(crate) struct Incidents {
    engine: Engine,
    tables: IncidentTables,
    policy: Policy,
    /// The wall clock when we started, and when that was: the engine's time never goes back.
    epoch: (u64, Instant),
    /// Until when to wait for what was kept; `None`: it is there, or was given up.
    loading_until: Option<Instant>,
    /// What was seen meanwhile, and when.
    waiting: VecDeque<(Signal, Instant)>,
    n_signals_dropped: u64,
    /// Deeds that are being written down.
    deeds: BTreeMap<u64, (Deed, Instant)>,
    next_ticket: u64,
    kept_revision: u64,
    keep_at: Option<Instant>,
    changed: BTreeMap<IncidentId, Incident>,
    /// Why questions to the AI cannot be counted.
    uncounted: Option<String>,
}

impl Incidents {
    /// Begins to read what was kept; signals wait meanwhile.
    pub(crate) fn start(
        tables: IncidentTables,
        policy: Policy,
        database: &Database,
        queue: &Queue,
        now: Instant,
    ) -> Self {
        let queue = queue.clone();
        database.load(move |result| {
            // Fails only when the owner has ended.
            let _ = queue.blocking_send(Event::IncidentsLoaded(Box::new(Loaded { saved: result })));
        });
        Self {
            engine: Engine::new(tables.clone(), policy.clone()),
            tables,
            policy,
            epoch: (unix_ms(), now),
            loading_until: Some(now + KEEP_WITHIN),
            waiting: VecDeque::new(),
            n_signals_dropped: 0,
            deeds: BTreeMap::new(),
            next_ticket: 0,
            kept_revision: 0,
            keep_at: None,
            changed: BTreeMap::new(),
            uncounted: None,
        }
    }

    /// The engine's time.
    pub(crate) fn millis(&self, now: Instant) -> Millis {
        let (unix_ms, since) = self.epoch;
        let elapsed = now.saturating_duration_since(since);
        unix_ms.saturating_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }

    /// When an action was decided upon.
    pub(crate) fn decided_at(&self, id: ActionId) -> Option<Instant> {
        let attempts = self.engine.incidents().flat_map(|incident| &incident.attempts);
        let decided_at_ms = attempts.into_iter().find(|attempt| attempt.id == id)?.decided_at_ms;
        Some(self.instant(decided_at_ms))
    }

    /// The endpoint that an action is about.
    pub(crate) fn endpoint_of(&self, id: ActionId) -> Option<&EndpointId> {
        let has = |incident: &&Incident| incident.attempts.iter().any(|attempt| attempt.id == id);
        self.engine.incidents().find(has)?.endpoint.as_ref()
    }

    fn instant(&self, at_ms: Millis) -> Instant {
        let (unix_ms, since) = self.epoch;
        since + Duration::from_millis(at_ms.saturating_sub(unix_ms))
    }

    /// The engine, for what is said to it besides signals.
    pub(crate) fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// The same, to look at.
    pub(crate) fn known(&self) -> &Engine {
        &self.engine
    }

    /// Incidents that need the person.
    pub(crate) fn n_alerted(&self) -> u64 {
        self.engine.incidents().filter(|incident| incident.state == IncidentState::Alerted).count() as u64
    }

    /// Why nobody is asked although the person wants it.
    pub(crate) fn uncounted(&self) -> Option<&str> {
        self.uncounted.as_deref()
    }

    /// Signals that nobody has looked at.
    pub(crate) fn n_signals_dropped(&self) -> u64 {
        self.n_signals_dropped
    }

    /// The person has set something else.
    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.engine.set_policy(self.policy_in_force());
    }

    /// The tables have changed.
    pub(crate) fn set_tables(&mut self, tables: IncidentTables) {
        if tables != self.tables {
            self.tables = tables.clone();
            self.engine.set_tables(tables);
        }
    }

    /// Without a count nothing is spent.
    fn policy_in_force(&self) -> Policy {
        let ai_model = self.policy.ai_model.clone().filter(|_| self.uncounted.is_none());
        Policy { ai_model, ..self.policy.clone() }
    }

    /// What was kept is there, or cannot be read.
    pub(crate) fn loaded(&mut self, loaded: Loaded, now: Instant) {
        if self.loading_until.take().is_none() {
            warn!("what the incident engine knew came too late, and is not used before the next start");
            return;
        }
        match loaded.saved {
            Ok(saved) => {
                if let Some(saved) = saved {
                    // What waits is decided upon as of when it was seen: a worker that is back since is not replaced.
                    let now_ms = self.millis(self.waiting.front().map_or(now, |(_, seen_at)| *seen_at));
                    self.engine = Engine::restore(self.tables.clone(), self.policy_in_force(), now_ms, saved);
                }
            }
            Err(reason) => self.cannot_count(reason),
        }
        self.catch_up();
    }

    fn cannot_count(&mut self, reason: String) {
        error!(reason, "what the incident engine knew is not there; no AI is asked until the supervisor is restarted");
        self.uncounted = Some(reason);
        self.engine.set_policy(self.policy_in_force());
    }

    fn catch_up(&mut self) {
        for (signal, seen_at) in std::mem::take(&mut self.waiting) {
            self.observe(signal, seen_at);
        }
    }

    /// Something was seen.
    pub(crate) fn observe(&mut self, signal: Signal, now: Instant) {
        if self.loading_until.is_none() {
            let now_ms = self.millis(now);
            return self.engine.observe(now_ms, signal);
        }
        if self.waiting.len() >= WAITING_SIGNALS_MAX {
            self.waiting.pop_front();
            self.n_signals_dropped += 1;
        }
        self.waiting.push_back((signal, now));
    }

    /// When to poll again, if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let of_engine = self.engine.deadline().filter(|_| self.loading_until.is_none());
        let of_engine = of_engine.map(|at_ms| self.instant(at_ms));
        let of_deeds = self.deeds.values().map(|(_, until)| *until).min();
        [of_engine, of_deeds, self.loading_until, self.keep_at].into_iter().flatten().min()
    }

    /// What has to be told, and, after it was written down, what has to be done.
    pub(crate) fn poll(&mut self, database: &Database, queue: &Queue, now: Instant) -> (Vec<Told>, Vec<Deed>) {
        if self.loading_until.is_some_and(|until| now >= until) {
            self.loading_until = None;
            self.cannot_count("the database does not answer".to_owned());
            self.catch_up();
        }
        let mut told = Vec::new();
        let mut decided = Vec::new();
        if self.loading_until.is_none() {
            let now_ms = self.millis(now);
            while let Some(directive) = self.engine.poll(now_ms) {
                match directive {
                    Directive::Act(act) => decided.push(Deed::Act(act)),
                    Directive::Diagnose(question) => decided.push(Deed::Ask(question)),
                    Directive::Notify(notice) => told.push(Told::Notice(notice)),
                    Directive::Record(incident) => {
                        self.changed.insert(incident.id, (*incident).clone());
                        told.push(Told::Changed(incident));
                    }
                }
            }
        }
        if !decided.is_empty() {
            self.write_deeds(decided, database, queue, now);
        } else if self.keep_at.is_some_and(|at| now >= at) {
            self.write(database);
        } else if self.keep_at.is_none() && self.is_unkept() {
            self.keep_at = Some(now + KEEP_INTERVAL);
        }
        (told, self.overdue(now))
    }

    fn is_unkept(&self) -> bool {
        !self.changed.is_empty() || self.engine.revision() != self.kept_revision
    }

    /// Writes what has changed, if anything has.
    pub(crate) fn write(&mut self, database: &Database) {
        self.keep_at = None;
        if self.loading_until.is_some() || !self.is_unkept() {
            return;
        }
        let (saved, changed) = self.take_changes();
        let n_rows = u64::try_from(changed.len()).unwrap_or(u64::MAX);
        database.write(n_rows, move |connection| incidents::keep(connection, &saved, &changed));
    }

    fn write_deeds(&mut self, decided: Vec<Deed>, database: &Database, queue: &Queue, now: Instant) {
        self.keep_at = None;
        let (saved, changed) = self.take_changes();
        let tickets: Vec<u64> = decided
            .into_iter()
            .map(|deed| {
                self.next_ticket += 1;
                self.deeds.insert(self.next_ticket, (deed, now + KEEP_WITHIN));
                self.next_ticket
            })
            .collect();
        let queue = queue.clone();
        database.write_then(
            move |connection| incidents::keep(connection, &saved, &changed),
            move |is_kept| {
                for ticket in tickets {
                    // Fails only when the owner has ended.
                    let _ = queue.blocking_send(Event::IncidentKept(Kept { ticket, is_kept }));
                }
            },
        );
    }

    fn take_changes(&mut self) -> (Saved, Vec<Incident>) {
        self.kept_revision = self.engine.revision();
        (self.engine.export(), std::mem::take(&mut self.changed).into_values().collect())
    }

    /// A deed was written down, or could not be; returns it if it is to be done.
    pub(crate) fn kept(&mut self, kept: &Kept, now: Instant) -> Option<Deed> {
        let (deed, _) = self.deeds.remove(&kept.ticket)?; // given up already, if it is not there
        self.unless_it_costs(deed, kept.is_kept, now)
    }

    /// Deeds whose writing takes too long.
    fn overdue(&mut self, now: Instant) -> Vec<Deed> {
        let late: Vec<u64> =
            self.deeds.iter().filter(|(_, (_, until))| now >= *until).map(|(ticket, _)| *ticket).collect();
        late.into_iter().filter_map(|ticket| self.kept(&Kept { ticket, is_kept: false }, now)).collect()
    }

    fn unless_it_costs(&mut self, deed: Deed, is_kept: bool, now: Instant) -> Option<Deed> {
        match deed {
            Deed::Ask(question) if !is_kept => {
                let why = "what it costs cannot be written down; `codexctl status` tells more".to_owned();
                let now_ms = self.millis(now);
                self.engine.diagnosis(now_ms, question.incident, codex_control::incident::Answer::None(why));
                None
            }
            deed => Some(deed),
        }
    }
}

/// Something that a person or a program may want to know.
#[derive(Debug)]
pub(crate) enum Told {
    /// An incident has changed; all of it.
    Changed(Box<Incident>),
    /// Something a person should know.
    Notice(Notice),
}
