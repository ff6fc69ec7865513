//! Attempts: from a decision to what was seen of it.

use codex_control::incident::{
    Action, ActionId, Actor, AttemptState, Fault, IncidentState, Level, Millis, Mode, Outcome, Tier,
};

use super::{ASKED_MS, Active, Alert, Engine, HISTORY_MAX, Key, Past, main_action, words};
use crate::CANCEL_WITHIN_MS;
use crate::directive::{Act, Directive};
use crate::guards::{Climb, LADDER_MS, RESTARTS_MAX};
use crate::patterns::Fix;

/// Time for carrying an action out. Replacing a worker that is slow to start is the longest.
const RUNNING_MAX_MS: u64 = 60_000;
/// The cancelled action's failure is left alone for this long.
const CANCELLED_TEXT: &str = "a person cancelled it";

/// What was decided.
pub(super) struct Decision {
    pub(super) actions: Vec<Action>,
    pub(super) tier: Tier,
    pub(super) because: String,
    pub(super) at_once: bool,
    pub(super) mode: Mode,
}

/// What an outcome of these actions is the outcome of, and what comes after it where that is another step.
///
/// What the worker does by itself has had its time when the supervisor acts: it is a step of its own. Two that are
/// carried out together are one. What a person is told mends nothing.
fn fixes(action: Action, then: Option<Action>) -> (Fix, Option<Fix>) {
    match then.map(|then| (then, action.actor(), then.actor())) {
        None | Some((_, _, Actor::Person)) => (action.into(), None),
        Some((then, Actor::Worker, Actor::Supervisor)) => (action.into(), Some(then.into())),
        Some((then, ..)) => (Fix { action, then: Some(then) }, None),
    }
}

/// Who has found a fix, as it is kept.
fn source(tier: Tier) -> &'static str {
    match tier {
        Tier::Rule => "tier1_rule",
        Tier::Pattern => "tier2_pattern",
        Tier::Ai => "tier3_ai",
        Tier::Person => "person",
    }
}

/// When somebody should have said how an action went.
pub(super) fn running_until(active: &Active) -> Millis {
    let started = active.attempt().map_or(0, |attempt| attempt.done_at_ms.unwrap_or(attempt.decided_at_ms));
    started + RUNNING_MAX_MS
}

/// When a question to the person is given up.
pub(super) fn asked_until(active: &Active) -> Millis {
    active.attempt().map_or(0, |attempt| attempt.decided_at_ms) + ASKED_MS
}

impl Engine {
    /// Carries a decision as far as the guards let it.
    pub(super) fn decide(&mut self, key: &Key, decision: &Decision) {
        let main = main_action(&decision.actions);
        match main.actor() {
            Actor::Person => self.advise(key, main, decision),
            Actor::Nobody | Actor::Worker => self.watch_from_now(key, main, decision),
            Actor::Supervisor => self.plan(key, main, decision),
        }
    }

    fn advise(&mut self, key: &Key, action: Action, decision: &Decision) {
        let level = self.row(key).map_or(Level::Important, |row| row.level);
        let why = (decision.tier == Tier::Ai).then(|| decision.because.clone());
        self.alert(key, Alert { level, action: Some(action), why, hint: None, asks: None });
    }

    /// What the worker does by itself, or what passes by itself: there is nothing to carry out, only to see.
    fn watch_from_now(&mut self, key: &Key, main: Action, decision: &Decision) {
        let until_ms = self.now + self.within_ms(key);
        if main == Action::Ignore && decision.tier == Tier::Rule {
            if let Some(active) = self.active.get_mut(key) {
                active.incident.state = IncidentState::Ignored;
                words::step(
                    &mut active.incident,
                    self.now,
                    "left alone: it passes by itself, and is counted".to_owned(),
                );
            }
            self.due = self.due.min(until_ms);
            self.record(key);
            return;
        }
        let state = AttemptState::Watched { until_ms };
        self.new_attempt(key, &decision.actions, decision.tier, decision.because.clone(), state);
        if let Some(active) = self.active.get_mut(key) {
            active.incident.state = IncidentState::Open;
            if let Some(attempt) = active.incident.attempts.last_mut() {
                attempt.done_at_ms = Some(self.now);
            }
            let who = if main == Action::Ignore { "nothing is done" } else { "the worker does it by itself" };
            words::step(
                &mut active.incident,
                self.now,
                format!("{main}: {who}; watched for {} s", (until_ms - self.now) / 1000),
            );
        }
        self.due = self.due.min(until_ms);
        self.record(key);
    }

    /// What we carry out: guards first.
    fn plan(&mut self, key: &Key, main: Action, decision: &Decision) {
        let now = self.now;
        let endpoint = key.endpoint.as_ref().map_or("-", |endpoint| endpoint.as_str()).to_owned();
        let is_restart = decision.actions.contains(&Action::RestartProxy);
        if is_restart && !self.policy.auto_restart_proxy {
            let hint = "`codexctl monitor set auto_restart_proxy true` lets this happen by itself".to_owned();
            return self.leave_to_person(key, main, "restarts are switched off", Some(hint));
        }
        if decision.actions.contains(&Action::SwitchProvider) {
            let has_backup = self.about.get(&key.endpoint).is_some_and(|about| about.facts.has_backup());
            if !has_backup {
                return self.leave_to_person(key, main, "it has no backup", None);
            }
            if !self.policy.auto_switch_provider {
                let hint = "`codexctl monitor set auto_switch_provider true` lets this happen by itself".to_owned();
                return self.leave_to_person(key, main, "switching to the backup is switched off", Some(hint));
            }
        }
        let fingerprint = self.active.get(key).map(|active| active.incident.fingerprint.clone()).unwrap_or_default();
        // Of two steps the second is ours.
        let (first, second) = fixes(decision.actions[0], decision.actions.get(1).copied());
        let ours = second.unwrap_or(first);
        if decision.tier == Tier::Rule && !decision.at_once && self.patterns.is_demoted(now, &fingerprint, ours) {
            if let Some(active) = self.active.get_mut(key) {
                active.tried.extend(ours.actions());
                words::step(&mut active.incident, now, format!("{main} is passed over: it has not helped of late"));
            }
            return self.escalate(key);
        }
        if is_restart && !self.guards.may_restart(now, &endpoint) {
            let why = format!("{RESTARTS_MAX} restarts within ten minutes did not help");
            return self.leave_to_person(key, main, &why, None);
        }
        // The pauses are between decisions about the same failure; a second tier that is tried at once belongs to the same.
        let is_first = self.active.get(key).is_some_and(|active| !active.has_climbed);
        if !decision.at_once && is_first {
            match self.guards.climb(now, &key.to_string()) {
                Climb::Free => {}
                Climb::Pause => {
                    if let Some(active) = self.active.get_mut(key) {
                        words::step(&mut active.incident, now, format!("{main} waits: it was tried a moment ago"));
                    }
                    self.due = self.due.min(now + self.within_ms(key));
                    return self.record(key);
                }
                Climb::End => {
                    let why = format!("it came back after {} attempts", LADDER_MS.len());
                    return self.leave_to_person(key, main, &why, None);
                }
            }
            self.guards.acted(now, &key.to_string());
            if let Some(active) = self.active.get_mut(key) {
                active.has_climbed = true;
            }
        }
        let (state, text) = if decision.mode == Mode::Ask {
            (AttemptState::Asked, format!("{main} waits for your yes"))
        } else if decision.at_once || !decision.actions.iter().any(|action| action.is_cancellable()) {
            (AttemptState::Planned { at_ms: now }, String::new())
        } else {
            let at_ms = now + CANCEL_WITHIN_MS;
            (
                AttemptState::Planned { at_ms },
                format!("{main} in {} s, unless it is cancelled", CANCEL_WITHIN_MS / 1000),
            )
        };
        let Some(id) = self.new_attempt(key, &decision.actions, decision.tier, decision.because.clone(), state) else {
            return;
        };
        if let Some(active) = self.active.get_mut(key) {
            active.incident.state = IncidentState::Open;
            if !text.is_empty() {
                words::step(&mut active.incident, now, text);
            }
        }
        match state {
            AttemptState::Asked => {
                let hint = Some(format!("`codexctl actions approve {id}` lets it happen"));
                let why = Some(format!("{main} waits for your yes"));
                self.alert(key, Alert { level: Level::Important, action: Some(main), why, hint, asks: Some(id) });
            }
            AttemptState::Planned { at_ms } if at_ms > now => {
                self.due = self.due.min(at_ms);
                self.record(key);
            }
            _ => self.run(key),
        }
    }

    fn leave_to_person(&mut self, key: &Key, action: Action, why: &str, hint: Option<String>) {
        let why = Some(format!("{action} was not done: {why}"));
        self.alert(key, Alert { level: Level::Important, action: Some(action), why, hint, asks: None });
    }

    /// Hands the planned action over to be carried out.
    pub(super) fn run(&mut self, key: &Key) {
        let now = self.now;
        let verify = self.verify(key);
        let Some(active) = self.active.get_mut(key) else { return };
        let incident = active.incident.id;
        let Some(attempt) = active.attempt_mut() else { return };
        let endpoint = key.endpoint.as_ref().map_or("-", |endpoint| endpoint.as_str());
        let is_restart = attempt.action == Action::RestartProxy || attempt.then == Some(Action::RestartProxy);
        if is_restart {
            if !self.guards.may_restart(now, endpoint) {
                // Others have restarted it meanwhile.
                let action = attempt.action;
                self.drop_attempt(key, AttemptState::Superseded, "no restart is left");
                let why = format!("{RESTARTS_MAX} restarts within ten minutes did not help");
                return self.leave_to_person(key, action, &why, None);
            }
            self.guards.restarted(now, endpoint);
        }
        attempt.state = AttemptState::Running;
        // Until it is said how it went, this is when it began.
        attempt.done_at_ms = Some(now);
        let act = Act {
            id: attempt.id,
            incident,
            endpoint: key.endpoint.clone(),
            action: attempt.action,
            then: attempt.then,
            tier: attempt.tier,
            because: attempt.because.clone(),
            verify,
        };
        active.good_seen = false;
        let then = act.then.map_or(String::new(), |then| format!(", then {then}"));
        words::step(&mut active.incident, now, format!("{}{then}: being carried out", act.action));
        self.revision += 1;
        self.due = self.due.min(now + RUNNING_MAX_MS);
        self.record(key);
        self.push(Directive::Act(act));
    }

    /// How carrying out an action went. Says whether anybody waited for it.
    pub fn outcome(&mut self, now: Millis, id: ActionId, outcome: Outcome) -> bool {
        self.advance(now);
        let now = self.now;
        let Some(key) = self.key_of(id) else { return false };
        let within_ms = self.within_ms(&key);
        let Some(active) = self.active.get_mut(&key) else { return false };
        let good_seen = active.good_seen;
        let Some(attempt) = active.attempt_mut() else { return false };
        if !matches!(attempt.state, AttemptState::Running | AttemptState::Watched { .. }) {
            return false;
        }
        match outcome {
            Outcome::Done => {
                let until_ms = now + within_ms;
                attempt.done_at_ms = Some(now);
                attempt.state = AttemptState::Watched { until_ms };
                let action = attempt.action;
                self.revision += 1;
                if good_seen {
                    self.finish(&key, Some(true), "it helped: success was seen while it was carried out");
                    return true;
                }
                words::step(&mut active.incident, now, format!("{action}: done; watched for {} s", within_ms / 1000));
                self.due = self.due.min(until_ms);
                self.record(&key);
            }
            Outcome::Failed(why) => {
                self.finish(&key, Some(false), &format!("it could not be done: {}", words::redacted(&why)));
            }
            Outcome::Helped => self.finish(&key, Some(true), "it helped"),
            Outcome::DidNotHelp(why) => {
                self.finish(&key, Some(false), &format!("it did not help: {}", words::redacted(&why)));
            }
        }
        true
    }

    /// The time for seeing success is over.
    pub(super) fn judge(&mut self, key: &Key) {
        let silence_is_failure = self.verify(key).silence_is_failure;
        let Some(active) = self.active.get(key) else { return };
        let Some(attempt) = active.attempt() else { return };
        let seen_again = attempt.done_at_ms.is_some_and(|done_at| active.seen_at > done_at);
        if seen_again {
            self.finish(key, Some(false), "it did not help: it was seen again, and no success");
        } else if silence_is_failure {
            self.finish(key, Some(false), "it did not help: no success was seen");
        } else {
            self.finish(key, None, "nothing was seen that tells whether it helped");
        }
    }

    /// Ends the attempt under way with what was seen of it, and learns that.
    pub(super) fn finish(&mut self, key: &Key, helped: Option<bool>, result: &str) {
        let now = self.now;
        let Some(active) = self.active.get_mut(key) else { return };
        let (fingerprint, fault) = (active.incident.fingerprint.clone(), active.incident.fault);
        let Some(attempt) = active.attempt_mut() else { return };
        attempt.state = match helped {
            Some(true) => AttemptState::Helped,
            Some(false) => AttemptState::Failed,
            None => AttemptState::Unknown,
        };
        attempt.ended_at_ms = Some(now);
        result.clone_into(&mut attempt.result);
        let (action, tier, because) = (attempt.action, attempt.tier, attempt.because.clone());
        let (first, second) = fixes(action, attempt.then);
        let advice = attempt.then.filter(|then| then.actor() == Actor::Person);
        let last = second.unwrap_or(first);
        words::step(&mut active.incident, now, format!("{last}: {result}"));
        active.tried.extend([Some(first), second].into_iter().flatten().flat_map(Fix::actions));
        self.revision += 1;
        let Some(helped) = helped else {
            return self.close(key, IncidentState::Lapsed, "over, as far as anybody can tell");
        };
        let source = source(tier);
        if second.is_some() {
            // It was seen to go on until the second step was done.
            self.learn(&fingerprint, fault, first, source, false);
        }
        self.learn(&fingerprint, fault, last, source, helped);
        if helped {
            if tier == Tier::Rule {
                self.wake_rule(key, &because);
            }
            self.close(key, IncidentState::Resolved, "over");
        } else if let Some(advice) = advice {
            // What comes then is known: nobody else has to be asked.
            let level = self.row(key).map_or(Level::Important, |row| row.level);
            self.alert(key, Alert { level, action: Some(advice), why: None, hint: None, asks: None });
        } else {
            self.escalate(key);
        }
    }

    /// Success was seen before the planned action was begun. Where a step of the worker's came before it, that one has
    /// helped.
    pub(super) fn not_needed(&mut self, key: &Key) {
        let active = self.active.get(key);
        let attempt = active.and_then(|active| Some((active.attempt()?, &active.incident)));
        let first = attempt.and_then(|(attempt, incident)| match fixes(attempt.action, attempt.then) {
            (first, Some(_)) => Some((first, attempt.tier, incident.fingerprint.clone(), incident.fault)),
            _ => None,
        });
        if let Some((first, tier, fingerprint, fault)) = first {
            self.learn(&fingerprint, fault, first, source(tier), true);
        }
        self.drop_attempt(key, AttemptState::Superseded, "it was not needed any more");
    }

    /// Remembers an outcome that was seen.
    fn learn(&mut self, fingerprint: &str, fault: Option<Fault>, fix: Fix, source: &str, helped: bool) {
        let now = self.now;
        self.patterns.learn(now, fingerprint, fault, fix, source, helped);
        if self.history.len() >= HISTORY_MAX {
            self.history.pop_front();
        }
        let fingerprint = fingerprint.to_owned();
        self.history.push_back(Past { at_ms: now, fingerprint, action: fix.action, then: fix.then, helped });
        self.revision += 1;
    }

    /// A rule that brings dead workers back does not rest when it has worked.
    fn wake_rule(&mut self, key: &Key, because: &str) {
        let rule = self.tables.rules.iter().find(|rule| rule.at_once && words::because(rule) == because);
        if let Some(rule) = rule {
            self.guards.wake(&super::rest_key(key, rule));
        }
    }

    /// The next tier: a fix that has helped before, then the AI, then the person.
    pub(super) fn escalate(&mut self, key: &Key) {
        let now = self.now;
        let Some(active) = self.active.get(key) else { return };
        let (fingerprint, tried) = (active.incident.fingerprint.clone(), active.tried.clone());
        if self.policy.tier2_enabled {
            let rate_min = self.policy.success_rate_min;
            if let Some(known) = self.patterns.best(now, &fingerprint, &tried, rate_min) {
                let percent = (known.rate(now) * 100.0).round();
                let (known_as, fix) = (&known.fingerprint, known.what());
                let because = format!("`{known_as}`: {fix} helped in {percent} % of the latest cases");
                let actions = fix.actions().collect();
                return self.decide(
                    key,
                    &Decision { actions, tier: Tier::Pattern, because, at_once: false, mode: Mode::Auto },
                );
            }
        }
        if active.may_ask && self.policy.tier3_enabled && self.policy.ai_model.is_some() {
            return self.ask(key);
        }
        self.give_up(key, None);
    }

    /// No tier is left.
    pub(super) fn give_up(&mut self, key: &Key, why: Option<String>) {
        let n_tried = self.active.get(key).map_or(0, |active| active.tried.len());
        let why = why.or_else(|| match n_tried {
            0 => Some("no remedy is known".to_owned()),
            1 => Some("what was tried did not help".to_owned()),
            n => Some(format!("{n} things were tried, none helped")),
        });
        self.alert(
            key,
            Alert { level: Level::Important, action: Some(Action::AlertUser), why, hint: None, asks: None },
        );
    }

    /// Ends the attempt under way without an outcome; nothing is learned.
    pub(super) fn drop_attempt(&mut self, key: &Key, state: AttemptState, why: &str) {
        let now = self.now;
        let Some(attempt) = self.active.get_mut(key).and_then(Active::attempt_mut) else { return };
        attempt.state = state;
        attempt.ended_at_ms = Some(now);
        why.clone_into(&mut attempt.result);
        self.revision += 1;
    }

    /// A person cancels an action that has not begun. Says whether that was still possible.
    ///
    /// Nothing else is tried for this incident, and its failure is left alone for the longest pause of the ladder.
    pub fn cancel(&mut self, now: Millis, id: ActionId) -> bool {
        self.advance(now);
        let Some(key) = self.pending_key(id) else { return false };
        self.drop_attempt(&key, AttemptState::Cancelled, CANCELLED_TEXT);
        self.guards.cancelled(self.now, &key.to_string());
        self.close(&key, IncidentState::Ignored, CANCELLED_TEXT);
        true
    }

    /// A person lets an action happen, now. Says whether it waited.
    pub fn approve(&mut self, now: Millis, id: ActionId) -> bool {
        self.advance(now);
        let Some(key) = self.pending_key(id) else { return false };
        if let Some(active) = self.active.get_mut(&key) {
            words::step(&mut active.incident, self.now, "a person said yes".to_owned());
        }
        self.run(&key);
        true
    }

    fn pending_key(&self, id: ActionId) -> Option<Key> {
        let key = self.key_of(id)?;
        let state = self.active.get(&key)?.attempt()?.state;
        matches!(state, AttemptState::Planned { .. } | AttemptState::Asked).then_some(key)
    }

    fn key_of(&self, id: ActionId) -> Option<Key> {
        let id = self.present(id);
        let has = |active: &Active| active.attempt().is_some_and(|attempt| attempt.id == id);
        self.active.iter().find(|(_, active)| has(active)).map(|(key, _)| key.clone())
    }
}
