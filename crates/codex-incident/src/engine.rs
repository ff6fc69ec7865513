//! The life of an incident.
//!
//! ```text
//!                 a rule fits                                    success seen
//!   (counted) ───────────────► Open ─── attempt ──► watched ───────────────────► Resolved
//!                               ▲  │                   │
//!                               │  │ only a person     │ did not help: the next tier, with what was tried left out
//!                               │  ▼                   ▼
//!                               │ Alerted ◄─── no tier is left, or a guard holds
//!                               │  │
//!                seen again     │  │ nothing more seen
//!                within seconds └──┴───────────► Lapsed, Ignored, Resolved
//! ```
//!
//! An attempt goes Planned (three seconds in which it can be cancelled) or Asked (waits for a yes) → Running (somebody
//! else carries it out) → Watched → Helped, Failed or Unknown. What the worker does by itself within a request starts
//! at Watched. At most one attempt of an incident is under way.
//!
//! Signals of one fault of one endpoint belong to one incident while it is open, so that a storm of them is one
//! incident with a large count.

mod about;
mod attempt;
mod diagnosis;
mod routes;
mod words;

pub use words::rule_of;

use std::collections::{BTreeMap, VecDeque};

use codex_control::EndpointId;
use codex_control::incident::{
    ATTEMPTS_MAX, Action, ActionId, Actor, Attempt, AttemptState, Fault, Incident, IncidentId, IncidentState, Millis,
    Mode, Observation, Signal, Tier, Verify,
};
use codex_control::tables::incident::{FaultRow, Guard, IncidentTables, Rule, Silence};
use serde::{Deserialize, Serialize};

use crate::directive::{Directive, Notice};
use crate::guards::Guards;
use crate::patterns::{Fix, Known, Patterns};
use crate::policy::{Facts, Policy};
use about::About;
use diagnosis::Asked;

/// A closed incident that comes back within this time goes on instead of being a new one.
const REOPEN_WITHIN_MS: u64 = 30_000;
/// A change of an incident's count alone is written down at most this often.
const FLUSH_MS: u64 = 1_000;
/// When the person was told, nothing is decided anew for this long.
const REDECIDE_MS: u64 = 1_000;
/// Incidents at one time; for a further one the one that is quiet for longest is closed.
const ACTIVE_MAX: usize = 256;
/// Endpoints that are known at one time.
const ENDPOINTS_MAX: usize = 256;
/// Directives that wait to be polled; beyond it the oldest record is dropped (a later one says more). Acts and
/// questions are not dropped: each incident has at most one.
const OUT_MAX: usize = 4_096;
/// Outcomes of late that are kept for the AI's report.
const HISTORY_MAX: usize = 100;
/// How long a fault without a name is watched and kept.
const NAMELESS_WITHIN_MS: u64 = 60_000;
/// What shows that a fault without a name is over.
const NAMELESS_SUCCESS: &[Observation] = &[Observation::UpstreamGood];
/// How long an action waits for a person's yes.
const ASKED_MS: u64 = 24 * 60 * 60 * 1000;
/// Version of [`Saved`].
const SAVED_VERSION: u32 = 2;
/// In those before it, what rows of `patterns.toml` had stated was not told apart.
const STATED_SINCE_VERSION: u32 = 2;

/// See the module.
#[derive(Clone, Debug)]
pub struct Engine {
    tables: IncidentTables,
    index: Index,
    policy: Policy,
    now: Millis,
    next_incident: u64,
    next_action: u64,
    guards: Guards,
    patterns: Patterns,
    history: VecDeque<Past>,
    about: BTreeMap<Option<EndpointId>, About>,
    active: BTreeMap<Key, Active>,
    out: VecDeque<Directive>,
    due: Millis,
    revision: u64,
    /// What had numbers of our own making before [`Engine::adopt`].
    renumbered: Option<Renumbered>,
}

/// Numbers that were given before it was known which were free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renumbered {
    /// Actions below this number had one of those.
    actions_below: u64,
    actions_by: u64,
    incidents_by: u64,
}

impl Renumbered {
    /// Gives an incident that was recorded before, and its attempts, the numbers they have now.
    pub fn apply(&self, incident: &mut Incident) {
        incident.id.0 += self.incidents_by;
        incident.attempts.iter_mut().for_each(|attempt| attempt.id.0 += self.actions_by);
    }

    fn action(&self, id: ActionId) -> ActionId {
        if id.0 < self.actions_below { ActionId(id.0 + self.actions_by) } else { id }
    }
}

/// What an engine keeps over restarts. Its form is its own business; it is kept and given back whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Saved {
    version: u32,
    next_incident: u64,
    next_action: u64,
    guards: Guards,
    patterns: Option<Vec<Known>>,
    history: Vec<Past>,
    open: Vec<Incident>,
}

impl Saved {
    /// The same, whose engine uses no number up to these, whatever it says itself.
    #[must_use]
    pub fn numbered_after(mut self, last_incident: IncidentId, last_action: ActionId) -> Self {
        self.next_incident = self.next_incident.max(last_incident.0.saturating_add(1));
        self.next_action = self.next_action.max(last_action.0.saturating_add(1));
        self
    }
}

/// An outcome of late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Past {
    at_ms: Millis,
    fingerprint: String,
    action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    then: Option<Action>,
    helped: bool,
}

impl Past {
    fn fix(&self) -> Fix {
        Fix { action: self.action, then: self.then }
    }
}

/// What an incident is about: an endpoint and a fault, or an observation that is none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    endpoint: Option<EndpointId>,
    subject: Subject,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Fault(Fault),
    What(Observation),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let endpoint = self.endpoint.as_ref().map_or("-", EndpointId::as_str);
        match self.subject {
            Subject::Fault(fault) => write!(f, "{endpoint}/{fault}"),
            Subject::What(what) => write!(f, "{endpoint}/{what}"),
        }
    }
}

#[derive(Clone, Debug)]
struct Active {
    incident: Incident,
    /// The latest excerpt as it came; redacted when it is written down.
    detail: String,
    /// What did not help in this run of decisions.
    tried: Vec<Action>,
    /// Whether this run of decisions stands on the ladder of pauses.
    has_climbed: bool,
    /// A question to the AI is under way.
    asked: Option<Asked>,
    /// Whether the AI may be asked when what was decided does not help.
    may_ask: bool,
    /// Success was seen while the action was being carried out.
    good_seen: bool,
    /// What the person was told about it last.
    told: Option<Told>,
    /// When the person's turn came.
    decided_at: Millis,
    /// When it was last seen.
    seen_at: Millis,
    /// When it was last seen, or something was last decided about it: how long it is kept counts from here.
    stirred_at: Millis,
    flush_at: Option<Millis>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    action: Option<Action>,
    text: String,
}

impl Active {
    fn attempt(&self) -> Option<&Attempt> {
        self.incident.attempts.last().filter(|attempt| !attempt.state.is_over())
    }

    fn attempt_mut(&mut self) -> Option<&mut Attempt> {
        self.incident.attempts.last_mut().filter(|attempt| !attempt.state.is_over())
    }
}

/// Which rows concern an observation, looked up once.
#[derive(Clone, Debug)]
struct Index {
    rules_of: Vec<Vec<usize>>,
    reset_by: Vec<Vec<usize>>,
    fault_of: Vec<Option<usize>>,
}

impl Index {
    fn new(tables: &IncidentTables) -> Self {
        let n = Observation::ALL.len();
        let mut index = Self { rules_of: vec![Vec::new(); n], reset_by: vec![Vec::new(); n], fault_of: vec![None; n] };
        for (number, rule) in tables.rules.iter().enumerate() {
            if rule.mode == Mode::Off {
                continue;
            }
            for what in tables.counted(rule) {
                index.rules_of[*what as usize].push(number);
            }
            let success = rule.fault.map_or(NAMELESS_SUCCESS, |fault| &tables.fault(fault).success);
            for what in success {
                index.reset_by[*what as usize].push(number);
            }
        }
        for (number, row) in tables.faults.iter().enumerate() {
            for sign in &row.signs {
                index.fault_of[*sign as usize] = Some(number);
            }
        }
        index
    }
}

impl Engine {
    /// An engine that has seen nothing.
    pub fn new(tables: IncidentTables, policy: Policy) -> Self {
        let patterns = Patterns::seeded(&tables.patterns);
        Self {
            index: Index::new(&tables),
            tables,
            policy,
            now: 0,
            next_incident: 1,
            next_action: 1,
            guards: Guards::default(),
            patterns,
            history: VecDeque::new(),
            about: BTreeMap::new(),
            active: BTreeMap::new(),
            out: VecDeque::new(),
            due: Millis::MAX,
            revision: 0,
            renumbered: None,
        }
    }

    /// An engine that goes on where another one stopped.
    ///
    /// Incidents that were open are closed: what of them still is will be seen again. Nothing that was planned or under
    /// way is carried out or counted as an outcome.
    pub fn restore(tables: IncidentTables, policy: Policy, now: Millis, saved: Saved) -> Self {
        let mut engine = Self::new(tables, policy);
        engine.now = now;
        engine.next_incident = saved.next_incident.max(1);
        engine.next_action = saved.next_action.max(1);
        engine.guards = saved.guards;
        engine.guards.clamp(now);
        if let Some(patterns) = saved.patterns {
            engine.patterns = engine.patterns_of(patterns, saved.version);
        }
        engine.history = saved.history.into_iter().take(HISTORY_MAX).collect();
        engine.close_earlier(saved.open);
        engine
    }

    /// What an earlier engine has learned, and what the tables say beside it.
    fn patterns_of(&self, kept: Vec<Known>, version: u32) -> Patterns {
        let mut patterns: Patterns = kept.into_iter().collect();
        patterns.clamp(self.now);
        if version < STATED_SINCE_VERSION {
            patterns.tell_stated_apart(&IncidentTables::embedded().patterns);
        }
        patterns.take_rows(&self.tables.patterns, self.now);
        patterns
    }

    /// Closes incidents of an engine that is no more.
    fn close_earlier(&mut self, open: Vec<Incident>) {
        let now = self.now;
        for mut incident in open.into_iter().take(ACTIVE_MAX) {
            for attempt in incident.attempts.iter_mut().filter(|attempt| !attempt.state.is_over()) {
                let (state, result) = match attempt.state {
                    AttemptState::Planned { .. } | AttemptState::Asked => {
                        (AttemptState::Superseded, "it was not begun: the supervisor was restarted before")
                    }
                    _ => (AttemptState::Unknown, "the supervisor was restarted before it was seen whether it helped"),
                };
                attempt.state = state;
                attempt.ended_at_ms = Some(now);
                result.clone_into(&mut attempt.result);
            }
            incident.state = IncidentState::Lapsed;
            incident.changed_at_ms = now;
            incident.closed_at_ms = Some(now);
            words::step(
                &mut incident,
                now,
                "the supervisor was restarted; if it is still so, it is a new incident".to_owned(),
            );
            self.push(Directive::Record(Box::new(incident)));
        }
    }

    /// Learns, after it has begun, what an earlier engine has kept: what both have counted holds, what was seen since
    /// the beginning is learned on top of what was known, and what goes on gets numbers that are free. Whoever still
    /// names an action by its former number is understood.
    pub fn adopt(&mut self, now: Millis, earlier: Saved) -> Renumbered {
        self.advance(now);
        // Beyond our own numbers, too, so that a former one is never another's present one.
        let renumbered = Renumbered {
            actions_below: self.next_action,
            actions_by: earlier.next_action.max(self.next_action) - 1,
            incidents_by: earlier.next_incident.max(self.next_incident) - 1,
        };
        self.next_action += renumbered.actions_by;
        self.next_incident += renumbered.incidents_by;
        self.renumbered = Some(renumbered);
        self.active.values_mut().for_each(|active| renumbered.apply(&mut active.incident));
        for waiting in &mut self.out {
            match waiting {
                Directive::Record(incident) => renumbered.apply(incident),
                Directive::Act(act) => {
                    act.id = renumbered.action(act.id);
                    act.incident.0 += renumbered.incidents_by;
                }
                Directive::Diagnose(question) => question.incident.0 += renumbered.incidents_by,
                Directive::Notify(notice) => {
                    notice.incident.0 += renumbered.incidents_by;
                    notice.asks = notice.asks.map(|id| renumbered.action(id));
                }
            }
        }
        let mut guards = earlier.guards;
        guards.clamp(self.now);
        self.guards.add(guards);
        if let Some(patterns) = earlier.patterns {
            let known = self.patterns_of(patterns, earlier.version);
            let seen = std::mem::replace(&mut self.patterns, known);
            for past in &self.history {
                let Some(known) = seen.get(&past.fingerprint, past.fix()) else { continue };
                let (fault, source) = (known.faults.last().copied(), known.source.as_str());
                self.patterns.learn(past.at_ms, &past.fingerprint, fault, past.fix(), source, past.helped);
            }
        }
        let since = std::mem::take(&mut self.history);
        let n_earlier = HISTORY_MAX.saturating_sub(since.len());
        let n_dropped = earlier.history.len().saturating_sub(n_earlier);
        self.history = earlier.history.into_iter().skip(n_dropped).chain(since).collect();
        self.close_earlier(earlier.open);
        self.revision += 1;
        renumbered
    }

    /// Everything that must survive; see [`Engine::restore`].
    pub fn export(&self) -> Saved {
        let is_open = |active: &&Active| active.incident.closed_at_ms.is_none();
        Saved {
            version: SAVED_VERSION,
            next_incident: self.next_incident,
            next_action: self.next_action,
            guards: self.guards.clone(),
            patterns: Some(self.patterns.iter().cloned().collect()),
            history: self.history.iter().cloned().collect(),
            open: self.active.values().filter(is_open).map(|active| active.incident.clone()).collect(),
        }
    }

    /// Grows whenever [`Engine::export`] would give something else, apart from counts of signals.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The person has set something else. What is under way goes on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// The tables have changed. What was counted towards a rule begins anew; what was learned stays.
    pub fn set_tables(&mut self, tables: IncidentTables) {
        self.index = Index::new(&tables);
        self.patterns.take_rows(&tables.patterns, self.now);
        self.revision += 1;
        self.tables = tables;
        self.about.values_mut().for_each(About::forget_counts);
    }

    /// The tables in force.
    pub fn tables(&self) -> &IncidentTables {
        &self.tables
    }

    /// What was learned.
    pub fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    /// Adds what another engine has learned, or what a person brings along.
    pub fn add_pattern(&mut self, known: Known) {
        self.patterns.put(known);
        self.patterns.clamp(self.now);
        self.revision += 1;
    }

    /// What is counted against limits.
    pub fn guards(&self) -> &Guards {
        &self.guards
    }

    /// The incidents of now: open ones, and those closed a moment ago.
    pub fn incidents(&self) -> impl Iterator<Item = &Incident> {
        self.active.values().map(|active| &active.incident)
    }

    /// An attempt of these incidents, and its incident.
    pub fn attempt(&self, id: ActionId) -> Option<(&Incident, &Attempt)> {
        let id = self.present(id);
        self.incidents().find_map(|incident| Some((incident, incident.attempts.iter().find(|one| one.id == id)?)))
    }

    /// The present number of an action.
    fn present(&self, id: ActionId) -> ActionId {
        self.renumbered.map_or(id, |renumbered| renumbered.action(id))
    }

    /// Attempts that can be cancelled or wait for a yes, with their incidents.
    pub fn pending(&self) -> impl Iterator<Item = (&Incident, &Attempt)> {
        self.active.values().filter_map(|active| {
            let attempt = active.attempt()?;
            let is_pending = matches!(attempt.state, AttemptState::Planned { .. } | AttemptState::Asked);
            is_pending.then_some((&active.incident, attempt))
        })
    }

    /// Tells what is known about an endpoint and no signal says.
    pub fn know(&mut self, endpoint: &EndpointId, facts: Facts) {
        self.about_mut(Some(endpoint)).facts = facts;
    }

    /// The endpoint does not exist any more: its incidents are closed, its counts forgotten. Guards stay.
    pub fn forget(&mut self, now: Millis, endpoint: &EndpointId) {
        self.advance(now);
        for key in self.keys_of(Some(endpoint)) {
            self.drop_attempt(&key, AttemptState::Superseded, "the endpoint was removed");
            self.close(&key, IncidentState::Lapsed, "the endpoint was removed");
        }
        self.about.remove(&Some(endpoint.clone()));
    }

    /// Something was seen.
    ///
    /// Takes microseconds, whatever the signal; costly work waits for [`Engine::poll`].
    pub fn observe(&mut self, now: Millis, signal: Signal) {
        self.advance(now);
        let now = self.now;
        let signal = about::tidied(signal);
        let derived = self.about_mut(signal.endpoint.as_ref()).note(now, &signal);
        let of_routes = self.note_route(&signal);
        match signal.what {
            Observation::UserStopped => return self.silence(signal.endpoint.as_ref()),
            Observation::UserStarted => return,
            _ => {}
        }
        if signal.is_good() {
            self.good(&signal);
        } else {
            self.bad(&signal);
        }
        if let Some(derived) = derived {
            self.bad(&derived);
        }
        for derived in of_routes {
            if derived.is_good() {
                self.good(&derived);
            } else {
                self.bad(&derived);
            }
        }
    }

    /// What is to be done, one after the other, until `None`.
    pub fn poll(&mut self, now: Millis) -> Option<Directive> {
        self.advance(now);
        if self.now >= self.due {
            self.sweep();
        }
        self.out.pop_front()
    }

    /// When to poll again, if nothing happens before.
    pub fn deadline(&self) -> Option<Millis> {
        match (self.out.is_empty(), self.due) {
            (false, _) => Some(self.now),
            (true, Millis::MAX) => None,
            (true, due) => Some(due),
        }
    }

    fn advance(&mut self, now: Millis) {
        self.now = self.now.max(now);
    }

    fn about_mut(&mut self, endpoint: Option<&EndpointId>) -> &mut About {
        let endpoint = endpoint.cloned();
        if self.about.len() >= ENDPOINTS_MAX && !self.about.contains_key(&endpoint) {
            let oldest =
                self.about.iter().min_by_key(|(_, about)| about.touched_at).map(|(endpoint, _)| endpoint.clone());
            if let Some(oldest) = oldest {
                self.about.remove(&oldest);
            }
        }
        self.about.entry(endpoint).or_default()
    }

    fn keys_of(&self, endpoint: Option<&EndpointId>) -> Vec<Key> {
        let first = Key { endpoint: endpoint.cloned(), subject: Subject::Fault(Fault::ALL[0]) };
        self.active
            .range(first..)
            .map(|(key, _)| key)
            .take_while(|key| key.endpoint.as_ref() == endpoint)
            .cloned()
            .collect()
    }

    fn row(&self, key: &Key) -> Option<&FaultRow> {
        match key.subject {
            Subject::Fault(fault) => Some(self.tables.fault(fault)),
            Subject::What(_) => None,
        }
    }

    fn verify(&self, key: &Key) -> Verify {
        match self.row(key) {
            Some(row) => Verify {
                seen: row.success.clone(),
                within_ms: row.within_s.saturating_mul(1000),
                silence_is_failure: row.silence == Silence::Failure,
            },
            None => {
                Verify { seen: NAMELESS_SUCCESS.to_vec(), within_ms: NAMELESS_WITHIN_MS, silence_is_failure: false }
            }
        }
    }

    fn within_ms(&self, key: &Key) -> u64 {
        self.row(key).map_or(NAMELESS_WITHIN_MS, |row| row.within_s.saturating_mul(1000))
    }

    /// A person has stopped the endpoint: nothing is done and nothing is said about it until it is started again.
    fn silence(&mut self, endpoint: Option<&EndpointId>) {
        for key in self.keys_of(endpoint) {
            self.drop_attempt(&key, AttemptState::Cancelled, "the endpoint was stopped by hand");
            self.close(&key, IncidentState::Ignored, "the endpoint was stopped by hand");
        }
    }

    /// Something works: counts in a row end, attempts are proven, incidents are over.
    fn good(&mut self, signal: &Signal) {
        let Some(about) = self.about.get_mut(&signal.endpoint) else { return };
        for rule in &self.index.reset_by[signal.what as usize] {
            if self.tables.rules[*rule].window_s == 0 {
                about.counts.remove(rule);
            }
        }
        let (is_slow, rises) = (about.latency.is_slow(), about.memory_rises);
        if self.active.is_empty() {
            return;
        }
        for key in self.keys_of(signal.endpoint.as_ref()) {
            let success = self.row(&key).map_or(NAMELESS_SUCCESS, |row| &row.success);
            let Some(active) = self.active.get(&key) else { continue };
            let is_over = active.incident.closed_at_ms.is_some();
            // Answers prove nothing about answers that begin too late, nor a sample about memory that still grows.
            let is_other = match active.incident.what {
                Observation::LatencyRising => is_slow,
                Observation::MemoryRising => rises,
                _ => false,
            };
            if success.contains(&signal.what) && !is_over && !is_other {
                self.proven(&key, signal.what);
            }
        }
    }

    fn proven(&mut self, key: &Key, by: Observation) {
        let Some(active) = self.active.get_mut(key) else { return };
        match active.attempt().map(|attempt| attempt.state) {
            Some(AttemptState::Running) => active.good_seen = true,
            Some(AttemptState::Watched { .. }) => self.finish(key, Some(true), &words::proof(by)),
            Some(AttemptState::Planned { .. } | AttemptState::Asked) => {
                self.not_needed(key);
                self.close(key, IncidentState::Resolved, &words::passed(by));
            }
            _ => self.close(key, IncidentState::Resolved, &words::passed(by)),
        }
    }

    /// Something does not work.
    fn bad(&mut self, signal: &Signal) {
        let now = self.now;
        let fault = self.index.fault_of[signal.what as usize];
        let subject = fault.map_or(Subject::What(signal.what), |row| Subject::Fault(self.tables.faults[row].id));
        let Some(about) = self.about.get_mut(&signal.endpoint) else { return };
        if about.is_stopped {
            return;
        }
        let key = Key { endpoint: signal.endpoint.clone(), subject };
        self.join(&key, signal);
        let Some(about) = self.about.get_mut(&signal.endpoint) else { return };
        let mut reached = Vec::new();
        for number in &self.index.rules_of[signal.what as usize] {
            let rule = &self.tables.rules[*number];
            if rule.value_min.is_some_and(|least| signal.value.is_none_or(|value| value < least)) {
                continue;
            }
            if let Some(since) = about.count(now, *number, rule) {
                reached.push((*number, since));
            }
        }
        let fits = |(number, since): &(usize, Millis)| {
            let rule = &self.tables.rules[*number];
            let holds = match rule.guard {
                Guard::None => true,
                Guard::NoSuccess => about.good_at.is_none_or(|at| at < *since),
                Guard::WorkerUnhealthy => about.is_unhealthy,
                Guard::NoBytes => signal.value.is_none_or(|bytes| bytes == 0),
            };
            holds && !self.guards.is_resting(now, &rest_key(&key, rule))
        };
        let Some((number, _)) = reached.into_iter().find(fits) else { return };
        about.counts.remove(&number);
        let rule = self.tables.rules[number].clone();
        self.fire(&key, &rule, signal);
    }

    /// Counts the signal for the incident it belongs to, if there is one.
    fn join(&mut self, key: &Key, signal: &Signal) {
        let now = self.now;
        let Some(active) = self.active.get_mut(key) else { return };
        if active.incident.closed_at_ms.is_some() {
            return;
        }
        active.incident.n_signals += 1;
        active.seen_at = now;
        active.stirred_at = now;
        if !signal.detail.is_empty() {
            active.detail.clone_from(&signal.detail);
        }
        if active.flush_at.is_none() {
            active.flush_at = Some(now + FLUSH_MS);
            self.due = self.due.min(now + FLUSH_MS);
        }
    }

    /// A rule fits.
    fn fire(&mut self, key: &Key, rule: &Rule, signal: &Signal) {
        let now = self.now;
        let main = main_action(&rule.actions);
        if let Some(active) = self.active.get(key)
            && active.incident.closed_at_ms.is_none()
        {
            let is_mild = |actor| matches!(actor, Actor::Worker | Actor::Nobody);
            if active.asked.is_some() {
                return;
            }
            match active.attempt().map(|attempt| attempt.action.actor()) {
                Some(actor) if is_mild(actor) && (!is_mild(main.actor()) || main == Action::Diagnose) => {}
                Some(_) => return,
                None if main == Action::Ignore => return,
                None if active.incident.state == IncidentState::Alerted => {
                    // It is the person's turn. Only something that has not been said, or a while, changes that.
                    let is_said = active.told.as_ref().is_some_and(|told| told.action == Some(main));
                    if (is_said && main.actor() == Actor::Person) || now < active.decided_at + REDECIDE_MS {
                        return;
                    }
                }
                None => {}
            }
        }
        let fingerprint = words::fingerprint(self.row(key), signal, rule.count, self.about.get(&key.endpoint));
        let because = words::because(rule);
        self.open(key, signal, fingerprint, &because);
        self.drop_attempt(key, AttemptState::Superseded, "it came again");
        let mode = if self.policy.enabled { rule.mode } else { Mode::Observe };
        if mode == Mode::Observe {
            let attempt = self.new_attempt(key, &rule.actions, Tier::Rule, because, AttemptState::WouldHave);
            self.guards.rest(now, rest_key(key, rule), rule.cooldown_s.saturating_mul(1000));
            if attempt.is_some() {
                self.close(key, IncidentState::Ignored, "nothing was done: only observed");
            }
            return;
        }
        self.guards.rest(now, rest_key(key, rule), rule.cooldown_s.saturating_mul(1000));
        self.revision += 1;
        if let Some(active) = self.active.get_mut(key) {
            active.tried.clear();
            active.has_climbed = false;
            // A person's matter and what the worker does by itself are no riddles.
            active.may_ask = main == Action::Diagnose || main.actor() == Actor::Supervisor;
        }
        if main == Action::Diagnose || !self.policy.tier1_enabled {
            return self.escalate(key);
        }
        self.decide(
            key,
            &attempt::Decision {
                actions: rule.actions.clone(),
                tier: Tier::Rule,
                because,
                at_once: rule.at_once,
                mode,
            },
        );
    }

    /// The incident of `key`, opened if there is none.
    fn open(&mut self, key: &Key, signal: &Signal, fingerprint: String, because: &str) {
        let now = self.now;
        if let Some(active) = self.active.get_mut(key) {
            let incident = &mut active.incident;
            incident.fingerprint = fingerprint;
            if incident.closed_at_ms.take().is_some() {
                incident.n_signals += 1;
                incident.state = IncidentState::Open;
                active.told = None;
                active.seen_at = now;
                active.stirred_at = now;
                active.detail.clone_from(&signal.detail);
                words::step(incident, now, format!("came back: {because}"));
            } else {
                words::step(incident, now, because.to_owned());
            }
            return;
        }
        if self.active.len() >= ACTIVE_MAX {
            let quietest = self.active.iter().min_by_key(|(_, active)| active.seen_at).map(|(key, _)| key.clone());
            if let Some(quietest) = quietest {
                self.drop_attempt(&quietest, AttemptState::Unknown, "there were too many incidents");
                self.close(&quietest, IncidentState::Lapsed, "there were too many incidents");
                self.active.remove(&quietest);
            }
        }
        let fault = self.row(key).map(|row| row.id);
        let mut incident = Incident {
            id: IncidentId(self.next_incident),
            fault,
            what: signal.what,
            fingerprint,
            endpoint: key.endpoint.clone(),
            model: signal.model.clone(),
            opened_at_ms: now,
            changed_at_ms: now,
            closed_at_ms: None,
            state: IncidentState::Open,
            n_signals: 1,
            detail: words::redacted(&signal.detail),
            attempts: Vec::new(),
            timeline: Vec::new(),
        };
        self.next_incident += 1;
        words::step(&mut incident, now, words::seen(signal));
        words::step(&mut incident, now, because.to_owned());
        let active = Active {
            incident,
            detail: signal.detail.clone(),
            tried: Vec::new(),
            has_climbed: false,
            asked: None,
            may_ask: false,
            good_seen: false,
            told: None,
            decided_at: 0,
            seen_at: now,
            stirred_at: now,
            flush_at: None,
        };
        self.active.insert(key.clone(), active);
    }

    /// Ends the incident.
    fn close(&mut self, key: &Key, state: IncidentState, why: &str) {
        let now = self.now;
        let Some(active) = self.active.get_mut(key) else { return };
        if active.incident.closed_at_ms.is_some() {
            return;
        }
        active.asked = None;
        active.incident.state = state;
        active.incident.closed_at_ms = Some(now);
        words::step(&mut active.incident, now, why.to_owned());
        self.due = self.due.min(now + REOPEN_WITHIN_MS);
        self.record(key);
    }

    /// Writes the incident down as it is now.
    fn record(&mut self, key: &Key) {
        let now = self.now;
        let Some(active) = self.active.get_mut(key) else { return };
        active.flush_at = None;
        active.incident.changed_at_ms = now;
        active.incident.detail = words::redacted(&active.detail);
        self.revision += 1;
        let incident = Box::new(active.incident.clone());
        if let Some(Directive::Record(last)) = self.out.back_mut()
            && last.id == incident.id
        {
            *last = incident;
            return;
        }
        self.push(Directive::Record(incident));
    }

    fn push(&mut self, directive: Directive) {
        if self.out.len() >= OUT_MAX {
            let dropped = self.out.iter().position(|waiting| matches!(waiting, Directive::Record(_)));
            self.out.remove(dropped.unwrap_or(0));
        }
        self.out.push_back(directive);
    }

    /// Tells the person, unless they were told just that.
    fn alert(&mut self, key: &Key, alert: Alert) {
        let now = self.now;
        let row = self.row(key).cloned();
        let Some(active) = self.active.get_mut(key) else { return };
        let (text, hint) = words::message(row.as_ref(), &active.incident, &active.detail);
        let text = match alert.why {
            Some(why) => format!("{text} ({why})"),
            None => text,
        };
        active.incident.state = IncidentState::Alerted;
        active.stirred_at = now;
        active.decided_at = now;
        let told = Told { action: alert.action, text: text.clone() };
        // Another excerpt is no other news; another advice is.
        let is_news = active.told.as_ref().is_none_or(|before| before.action != told.action);
        if is_news {
            active.told = Some(told);
            let advice = alert.action.filter(|action| *action != Action::AlertUser);
            let advice = advice.map_or(String::new(), |action| format!(" ({action})"));
            words::step(&mut active.incident, now, format!("{}{advice}: {text}", Incident::TOLD));
            let notice = Notice {
                incident: active.incident.id,
                endpoint: key.endpoint.clone(),
                level: alert.level,
                text,
                hint: alert.hint.or(hint),
                action: alert.action,
                asks: alert.asks,
            };
            self.push(Directive::Notify(notice));
        }
        self.due = self.due.min(now + self.within_ms(key));
        self.record(key);
    }

    /// Does what has become due.
    fn sweep(&mut self) {
        let now = self.now;
        let keys: Vec<Key> = self.active.keys().cloned().collect();
        for key in keys {
            self.sweep_one(&key, now);
        }
        self.due = self.active.iter().map(|(key, active)| self.due_of(key, active)).min().unwrap_or(Millis::MAX);
    }

    fn sweep_one(&mut self, key: &Key, now: Millis) {
        let Some(active) = self.active.get(key) else { return };
        if let Some(closed_at) = active.incident.closed_at_ms {
            if now >= closed_at + REOPEN_WITHIN_MS {
                if active.flush_at.is_some() {
                    self.record(key);
                }
                self.active.remove(key);
            }
            return;
        }
        if active.asked.as_ref().is_some_and(|asked| now >= asked.until) {
            self.no_diagnosis(key, "it did not answer in time");
        }
        let Some(active) = self.active.get(key) else { return };
        match active.attempt().map(|attempt| attempt.state) {
            Some(AttemptState::Planned { at_ms }) if now >= at_ms => self.run(key),
            Some(AttemptState::Watched { until_ms }) if now >= until_ms => self.judge(key),
            Some(AttemptState::Running) if now >= attempt::running_until(active) => {
                self.finish(key, None, "nobody said whether it was carried out");
            }
            Some(AttemptState::Asked) if now >= attempt::asked_until(active) => {
                self.drop_attempt(key, AttemptState::Cancelled, "nobody said yes");
                self.close(key, IncidentState::Lapsed, "nobody said yes");
            }
            None if active.asked.is_none() && now >= active.stirred_at + self.within_ms(key) => {
                let state = active.incident.state;
                let state = if state == IncidentState::Ignored { state } else { IncidentState::Lapsed };
                self.close(key, state, "it was not seen any more");
            }
            _ => {}
        }
        if self.active.get(key).is_some_and(|active| active.flush_at.is_some_and(|at| now >= at)) {
            self.record(key);
        }
    }

    fn due_of(&self, key: &Key, active: &Active) -> Millis {
        if let Some(closed_at) = active.incident.closed_at_ms {
            return closed_at + REOPEN_WITHIN_MS;
        }
        let of_attempt = match active.attempt().map(|attempt| attempt.state) {
            Some(AttemptState::Planned { at_ms }) => at_ms,
            Some(AttemptState::Watched { until_ms }) => until_ms,
            Some(AttemptState::Running) => attempt::running_until(active),
            Some(AttemptState::Asked) => attempt::asked_until(active),
            Some(_) => Millis::MAX,
            None if active.asked.is_some() => Millis::MAX,
            None => active.stirred_at + self.within_ms(key),
        };
        let of_question = active.asked.as_ref().map_or(Millis::MAX, |asked| asked.until);
        of_attempt.min(of_question).min(active.flush_at.unwrap_or(Millis::MAX))
    }

    fn new_attempt(
        &mut self,
        key: &Key,
        actions: &[Action],
        tier: Tier,
        because: String,
        state: AttemptState,
    ) -> Option<ActionId> {
        let now = self.now;
        let active = self.active.get_mut(key)?;
        let attempts = &mut active.incident.attempts;
        if attempts.len() >= ATTEMPTS_MAX {
            attempts.remove(0);
        }
        let id = ActionId(self.next_action);
        self.next_action += 1;
        self.revision += 1;
        attempts.push(Attempt {
            id,
            action: *actions.first()?,
            then: actions.get(1).copied(),
            tier,
            because,
            decided_at_ms: now,
            state,
            done_at_ms: None,
            ended_at_ms: state.is_over().then_some(now),
            result: String::new(),
        });
        active.good_seen = false;
        Some(id)
    }
}

/// What to tell the person.
struct Alert {
    level: codex_control::incident::Level,
    action: Option<Action>,
    why: Option<String>,
    hint: Option<String>,
    asks: Option<ActionId>,
}

/// The action that says what kind of answer this is: of two, the one somebody has to carry out.
fn main_action(actions: &[Action]) -> Action {
    let by_us = actions.iter().copied().find(|action| action.actor() == Actor::Supervisor);
    by_us.or_else(|| actions.first().copied()).unwrap_or(Action::Ignore)
}

fn rest_key(key: &Key, rule: &Rule) -> String {
    format!("{}/{}", key.endpoint.as_ref().map_or("-", EndpointId::as_str), rule.id)
}

#[cfg(test)]
mod tests;
