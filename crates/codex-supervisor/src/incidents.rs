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
//! not done if it costs money. What was refused is written again.
//!
//! What an earlier run has kept is never written over before it was read. While the database does not answer, the
//! engine works with what it sees; when it answers after all, both are put together ([`Engine::adopt`]).
//!
//! This module decides nothing and touches no endpoint: it hands [`Deed`]s to the supervisor's task, which carries them
//! out (`supervisor/mending.rs`).

pub(crate) mod ask;
pub(crate) mod desktop;
pub(crate) mod simulate;
pub(crate) mod store;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use codex_control::EndpointId;
use codex_control::incident::{ActionId, Incident, IncidentId, IncidentState, Millis, Signal};
use codex_control::tables::incident::IncidentTables;
use codex_incident::{Act, Diagnose, Directive, Engine, Notice, Policy, Saved};
use tracing::{error, info};

use crate::clock::unix_ms;
use crate::database::{Database, Earlier, Written, incidents};
use crate::event::{Event, Queue};

/// Signals that wait while the database is being read; beyond it the oldest are dropped and counted.
const WAITING_SIGNALS_MAX: usize = 4096;
/// Changes that nothing depends on are written together, this often.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Time for what was kept to be read, and for a deed to be written down. A disk that is slower holds up nothing.
const KEEP_WITHIN: Duration = Duration::from_secs(2);
/// The same for a question to the AI, which is never asked without: its answer takes seconds, too.
const KEEP_QUESTION_WITHIN: Duration = Duration::from_secs(20);
/// What was refused is written again after this time.
const KEEP_AGAIN: Duration = Duration::from_secs(5);
/// Incidents that wait to be written while the database refuses them; of more the oldest are lost, and counted.
const UNKEPT_MAX: usize = 1024;

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
    /// Which write; they are done in the order of their numbers.
    number: u64,
    /// Deeds that wait for it.
    tickets: Vec<u64>,
    written: Written,
    /// What was refused.
    refused: Vec<Incident>,
}

/// What the database knows of an earlier run.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// `Err`: it is not known what is there.
    earlier: Result<Earlier<Saved>, String>,
}

/// What is known of an earlier run, and so of what may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// It is being read; signals wait until then.
    Awaited(Instant),
    /// It could not be read, or not in time: nothing is written, since nobody knows which numbers are free.
    Unknown,
    /// Incidents can be written; what the engine must not forget only where nothing is lost by it.
    Known { is_ours: bool },
}

/// See the module.
pub(crate) struct Incidents {
    engine: Engine,
    tables: IncidentTables,
    policy: Policy,
    /// The wall clock when we started, and when that was: the engine's time never goes back.
    epoch: (u64, Instant),
    before: Before,
    /// What was seen meanwhile, and when.
    waiting: VecDeque<(Signal, Instant)>,
    n_signals_dropped: u64,
    /// Deeds that are being written down.
    deeds: BTreeMap<u64, (Deed, Instant)>,
    next_ticket: u64,
    /// What of the engine was handed to the database last; `None`: nothing that it has taken.
    kept_revision: Option<u64>,
    keep_at: Option<Instant>,
    changed: BTreeMap<IncidentId, Incident>,
    /// Which incidents are being written, by the number of the write.
    being_written: BTreeMap<u64, Vec<IncidentId>>,
    next_write: u64,
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
            let _ = queue.blocking_send(Event::IncidentsLoaded(Box::new(Loaded { earlier: result })));
        });
        Self {
            engine: Engine::new(tables.clone(), policy.clone()),
            tables,
            policy,
            epoch: (unix_ms(), now),
            before: Before::Awaited(now + KEEP_WITHIN),
            waiting: VecDeque::new(),
            n_signals_dropped: 0,
            deeds: BTreeMap::new(),
            next_ticket: 0,
            kept_revision: Some(0),
            keep_at: None,
            changed: BTreeMap::new(),
            being_written: BTreeMap::new(),
            next_write: 0,
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
        let (_, attempt) = self.engine.attempt(id)?;
        Some(self.instant(attempt.decided_at_ms))
    }

    /// The endpoint that an action is about.
    pub(crate) fn endpoint_of(&self, id: ActionId) -> Option<&EndpointId> {
        self.engine.attempt(id)?.0.endpoint.as_ref()
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

    /// Why what the engine knew is not there, and nobody is asked although the person wants it.
    pub(crate) fn uncounted(&self) -> Option<&str> {
        self.uncounted.as_deref()
    }

    /// Why what an earlier run has kept is left as it is, and this one keeps nothing in its place.
    pub(crate) fn unread(&self) -> Option<&str> {
        self.uncounted().filter(|_| self.before != Before::Known { is_ours: true })
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

    /// What was kept is there, or cannot be read. The engine is another one then: it has to be told the facts, and after
    /// that [`Incidents::catch_up`] is called.
    pub(crate) fn loaded(&mut self, loaded: Loaded, now: Instant) {
        let was_awaited = matches!(self.before, Before::Awaited(_));
        let earlier = match loaded.earlier {
            Ok(earlier) => earlier,
            Err(reason) => {
                self.before = Before::Unknown;
                return self.cannot_count(reason);
            }
        };
        self.before = Before::Known { is_ours: earlier.is_ours };
        self.uncounted = None;
        let is_missing = earlier.problem.is_some();
        if let Some(reason) = earlier.problem {
            self.cannot_count(reason);
        }
        let (last_incident, last_action) = (IncidentId(earlier.last_incident), ActionId(earlier.last_action));
        let saved = earlier.saved.unwrap_or_default().numbered_after(last_incident, last_action);
        if was_awaited {
            // What waits is decided upon as of when it was seen: a worker that is back since is not replaced.
            let now_ms = self.millis(self.waiting.front().map_or(now, |(_, seen_at)| *seen_at));
            self.engine = Engine::restore(self.tables.clone(), self.policy_in_force(), now_ms, saved);
            // What cannot be understood was put aside, and is not found again at the next start.
            self.kept_revision = (!is_missing).then(|| self.engine.revision());
        } else {
            info!("what the incident engine knew is there after all");
            let now_ms = self.millis(now);
            let renumbered = self.engine.adopt(now_ms, saved);
            for (_, mut incident) in std::mem::take(&mut self.changed) {
                renumbered.apply(&mut incident);
                self.changed.insert(incident.id, incident);
            }
            self.engine.set_policy(self.policy_in_force());
        }
    }

    fn cannot_count(&mut self, reason: String) {
        error!(reason, "what the incident engine knew is not there; no AI is asked until it is");
        self.uncounted = Some(reason);
        self.engine.set_policy(self.policy_in_force());
    }

    /// Looks at what waited.
    pub(crate) fn catch_up(&mut self) {
        for (signal, seen_at) in std::mem::take(&mut self.waiting) {
            self.observe(signal, seen_at);
        }
    }

    /// Whether what an earlier run has kept is still being read.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self.before, Before::Awaited(_))
    }

    /// Something was seen.
    pub(crate) fn observe(&mut self, signal: Signal, now: Instant) {
        if !self.is_awaited() {
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
        let awaited_until = if let Before::Awaited(until) = self.before { Some(until) } else { None };
        let of_engine = self.engine.deadline().filter(|_| awaited_until.is_none());
        let of_engine = of_engine.map(|at_ms| self.instant(at_ms));
        let of_deeds = self.deeds.values().map(|(_, until)| *until).min();
        [of_engine, of_deeds, awaited_until, self.keep_at].into_iter().flatten().min()
    }

    /// What has to be told, and, after it was written down, what has to be done.
    pub(crate) fn poll(&mut self, database: &Database, queue: &Queue, now: Instant) -> (Vec<Told>, Vec<Deed>) {
        if matches!(self.before, Before::Awaited(until) if now >= until) {
            self.before = Before::Unknown;
            self.cannot_count("the database does not answer".to_owned());
            self.catch_up();
        }
        let mut told = Vec::new();
        let mut decided = Vec::new();
        if !self.is_awaited() {
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
        let mut due = Vec::new();
        if !decided.is_empty() {
            due = self.write_deeds(decided, database, queue, now);
        } else if self.keep_at.is_some_and(|at| now >= at) {
            self.write(database, queue);
        } else if self.keep_at.is_none() && self.is_unkept() {
            self.keep_at = Some(now + KEEP_INTERVAL);
        }
        while self.changed.len() > UNKEPT_MAX {
            self.changed.pop_first();
            database.lost(1);
        }
        due.extend(self.overdue(now));
        (told, due)
    }

    fn is_unkept(&self) -> bool {
        let is_unkept = !self.changed.is_empty() || self.kept_revision != Some(self.engine.revision());
        is_unkept && matches!(self.before, Before::Known { .. })
    }

    /// Writes what has changed, if anything has.
    pub(crate) fn write(&mut self, database: &Database, queue: &Queue) {
        self.keep_at = None;
        if self.is_unkept() {
            self.hand_over(Vec::new(), database, queue);
        }
    }

    /// Returns those that are to be done although they cannot be written down.
    fn write_deeds(&mut self, decided: Vec<Deed>, database: &Database, queue: &Queue, now: Instant) -> Vec<Deed> {
        self.keep_at = None;
        let mut tickets = Vec::new();
        for deed in decided {
            self.next_ticket += 1;
            let within = if matches!(deed, Deed::Ask(_)) { KEEP_QUESTION_WITHIN } else { KEEP_WITHIN };
            self.deeds.insert(self.next_ticket, (deed, now + within));
            tickets.push(self.next_ticket);
        }
        if self.hand_over(tickets.clone(), database, queue) {
            return Vec::new();
        }
        tickets.into_iter().filter_map(|ticket| self.release(ticket, false, now)).collect()
    }

    /// Hands all that has changed to the database; says whether it has taken it. What becomes of it is an event.
    fn hand_over(&mut self, tickets: Vec<u64>, database: &Database, queue: &Queue) -> bool {
        let Before::Known { is_ours } = self.before else { return false };
        let saved = is_ours.then(|| self.engine.export());
        let changed = std::mem::take(&mut self.changed);
        self.next_write += 1;
        let number = self.next_write;
        self.being_written.insert(number, changed.keys().copied().collect());
        self.kept_revision = Some(self.engine.revision());
        let changed: Arc<Vec<Incident>> = Arc::new(changed.into_values().collect());
        let (written, queue) = (Arc::clone(&changed), queue.clone());
        let is_taken = database.write_then(
            {
                let changed = Arc::clone(&changed);
                move |connection| incidents::keep(connection, saved.as_ref(), &changed)
            },
            move |result| {
                let refused = if result == Written::Refused { Arc::unwrap_or_clone(written) } else { Vec::new() };
                let kept = Kept { number, tickets, written: result, refused };
                // Fails only when the owner has ended.
                let _ = queue.blocking_send(Event::IncidentKept(kept));
            },
        );
        if !is_taken {
            self.put_back(number, Arc::unwrap_or_clone(changed));
        }
        is_taken
    }

    /// What was refused waits again, unless something newer about it is on its way.
    fn put_back(&mut self, number: u64, refused: Vec<Incident>) {
        self.being_written.remove(&number);
        self.kept_revision = None;
        for incident in refused {
            let is_outdated = self.being_written.range(number..).any(|(_, ids)| ids.contains(&incident.id));
            if !is_outdated {
                self.changed.entry(incident.id).or_insert(incident);
            }
        }
    }

    /// Something was written down, or could not be; returns the deeds that are to be done.
    pub(crate) fn kept(&mut self, kept: Kept, now: Instant) -> Vec<Deed> {
        self.being_written = self.being_written.split_off(&kept.number.saturating_add(1));
        if kept.written == Written::Refused {
            self.put_back(kept.number, kept.refused);
            self.keep_at = Some(now + KEEP_AGAIN);
        }
        let is_kept = kept.written == Written::Kept;
        kept.tickets.into_iter().filter_map(|ticket| self.release(ticket, is_kept, now)).collect()
    }

    /// A deed that was waiting to be written down, if it is to be done; given up already, if it is not there.
    fn release(&mut self, ticket: u64, is_kept: bool, now: Instant) -> Option<Deed> {
        let (deed, _) = self.deeds.remove(&ticket)?;
        self.unless_it_costs(deed, is_kept, now)
    }

    /// Deeds whose writing takes too long.
    fn overdue(&mut self, now: Instant) -> Vec<Deed> {
        let late: Vec<u64> =
            self.deeds.iter().filter(|(_, (_, until))| now >= *until).map(|(ticket, _)| *ticket).collect();
        late.into_iter().filter_map(|ticket| self.release(ticket, false, now)).collect()
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
