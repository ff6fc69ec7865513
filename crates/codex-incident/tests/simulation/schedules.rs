//! Random schedules: what was said to an engine, said again, gives the same bytes; and no guard is ever exceeded.
//!
//! `INCIDENT_SCHEDULES` sets how many; `scripts/simulate.sh` runs ten thousand.

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Random;
use codex_control::EndpointId;
use codex_control::incident::{Action, ActionId, Actor, Answer, AttemptState, Millis, Observation, Outcome, Signal};
use codex_control::tables::incident::IncidentTables;
use codex_incident::{
    AI_CALLS_PER_DAY_MAX, AI_INTERVAL_MS, Act, CANCEL_WITHIN_MS, Directive, Engine, Entry, Facts, Input,
    PROMPT_BYTES_MAX, Policy, RESTARTS_MAX, RESTARTS_WINDOW_MS, replay,
};

const START: Millis = 1_795_000_000_000;
const SCHEDULES: u64 = 500;
const STEPS: u64 = 120;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const BUDGET_USD: f64 = 0.02;

/// One run: an engine that is driven, everything said to it, and everything it said.
struct Run {
    random: Random,
    engine: Engine,
    now: Millis,
    log: Vec<Entry>,
    said: Vec<String>,
    acts: Vec<(Millis, Act)>,
    questions: Vec<Millis>,
    /// Actions that were announced, when, and whether a person could cancel them.
    cancelled: BTreeSet<ActionId>,
    planned: BTreeMap<ActionId, Millis>,
    stopped: BTreeSet<EndpointId>,
    restarts: bool,
}

fn endpoints() -> [EndpointId; 3] {
    ["a", "b", "c"].map(|id| id.parse().expect("a good id"))
}

fn policy() -> Policy {
    let ai_model = Some("gpt-4o-mini".to_owned());
    Policy { ai_model, ai_monthly_usd_max: BUDGET_USD, auto_switch_provider: true, ..Policy::default() }
}

impl Run {
    fn new(seed: u64, restarts: bool) -> Self {
        Self {
            random: Random(seed),
            engine: Engine::new(IncidentTables::embedded(), policy()),
            now: START,
            log: Vec::new(),
            said: Vec::new(),
            acts: Vec::new(),
            questions: Vec::new(),
            cancelled: BTreeSet::new(),
            planned: BTreeMap::new(),
            stopped: BTreeSet::new(),
            restarts,
        }
    }

    fn say(&mut self, input: Input) {
        match &input {
            Input::Signal(signal) => {
                match (signal.what, &signal.endpoint) {
                    (Observation::UserStopped, Some(endpoint)) => _ = self.stopped.insert(endpoint.clone()),
                    (Observation::UserStarted, Some(endpoint)) => _ = self.stopped.remove(endpoint),
                    _ => {}
                }
                self.engine.observe(self.now, signal.clone());
            }
            Input::Outcome(id, outcome) => _ = self.engine.outcome(self.now, *id, outcome.clone()),
            Input::Diagnosis(id, answer) => _ = self.engine.diagnosis(self.now, *id, answer.clone()),
            Input::Cancel(id) => {
                if self.engine.cancel(self.now, *id) {
                    self.cancelled.insert(*id);
                }
            }
            Input::Facts(endpoint, facts) => self.engine.know(endpoint, facts.clone()),
            Input::Approve(_) | Input::Policy(_) | Input::Tick => {}
        }
        self.log.push(Entry { at_ms: self.now, input });
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(directive) = self.engine.poll(self.now) {
            self.said.push(format!("{} {}", self.now, serde_json::to_string(&directive).expect("it can be written")));
            self.check(&directive);
        }
    }

    /// What must hold for each directive.
    fn check(&mut self, directive: &Directive) {
        match directive {
            Directive::Act(act) => {
                // A person's is what comes when that has not helped.
                assert!(matches!(act.action.actor(), Actor::Supervisor | Actor::Worker), "{act:?}");
                let mut actors = [Some(act.action), act.then].into_iter().flatten().map(Action::actor);
                assert!(actors.any(|actor| actor == Actor::Supervisor), "{act:?}");
                assert!(!self.cancelled.contains(&act.id), "it was cancelled: {act:?}");
                if let Some(endpoint) = &act.endpoint {
                    assert!(!self.stopped.contains(endpoint), "it was stopped by hand: {act:?}");
                }
                let is_bringing_back = act.action == Action::RestartProxy && act.then.is_none();
                if act.action.is_cancellable() && !is_bringing_back {
                    let planned = self.planned.get(&act.id).unwrap_or_else(|| panic!("never announced: {act:?}"));
                    assert!(self.now - planned >= CANCEL_WITHIN_MS, "no time to cancel: {act:?}");
                }
                self.acts.push((self.now, act.clone()));
            }
            Directive::Diagnose(question) => {
                assert!(question.user.len() <= PROMPT_BYTES_MAX);
                self.questions.push(self.now);
            }
            Directive::Notify(notice) => {
                if let Some(endpoint) = &notice.endpoint {
                    assert!(!self.stopped.contains(endpoint), "it was stopped by hand: {notice:?}");
                }
            }
            Directive::Record(incident) => {
                let under_way = incident.attempts.iter().filter(|attempt| !attempt.state.is_over()).count();
                assert!(under_way <= 1, "{incident:?}");
                if incident.closed_at_ms.is_some() {
                    assert_eq!(under_way, 0, "{incident:?}");
                    assert!(incident.state.is_closed(), "{incident:?}");
                }
                for attempt in &incident.attempts {
                    if matches!(attempt.state, AttemptState::Planned { .. }) {
                        self.planned.entry(attempt.id).or_insert(self.now);
                    }
                }
            }
        }
    }

    /// What must hold over the whole run.
    fn check_guards(&self) {
        let is_restart = |act: &Act| [Some(act.action), act.then].contains(&Some(Action::RestartProxy));
        for endpoint in endpoints().map(Some).iter().chain([&None]) {
            let of_endpoint = |(_, act): &&(Millis, Act)| act.endpoint == *endpoint && is_restart(act);
            let restarts: Vec<Millis> = self.acts.iter().filter(of_endpoint).map(|(at, _)| *at).collect();
            for window in restarts.windows(RESTARTS_MAX + 1) {
                assert!(window[RESTARTS_MAX] - window[0] >= RESTARTS_WINDOW_MS, "{endpoint:?}: {window:?}");
            }
        }
        for pair in self.questions.windows(2) {
            assert!(pair[1] - pair[0] >= AI_INTERVAL_MS);
        }
        for window in self.questions.windows(AI_CALLS_PER_DAY_MAX + 1) {
            assert!(window[AI_CALLS_PER_DAY_MAX] - window[0] >= DAY_MS);
        }
        assert!(self.engine.guards().spending(self.now).usd <= BUDGET_USD);
    }

    fn signal(&mut self) -> Signal {
        let what = *self.random.of(Observation::ALL);
        let endpoint =
            self.random.one_in(8).then_some(()).map_or_else(|| Some(self.random.of(&endpoints()).clone()), |()| None);
        let mut signal = Signal { endpoint, ..Signal::new(what) };
        if self.random.one_in(2) {
            signal.value = Some(self.random.below(1_000));
        }
        if what.is_sample() || self.random.one_in(8) {
            signal = signal.value(self.random.below(2_000) << 20).limit(1 << 30);
        }
        if self.random.one_in(4) {
            signal.tags = vec![(*self.random.of(&["explore_agent", "no_url", "Bad Tag", "no_cmd"])).to_owned()];
        }
        if self.random.one_in(3) {
            signal.detail = "an error {endpoint}\nAuthorization: Bearer sk-abcdefghijklmnop"
                .repeat(*self.random.of(&[0, 1, 2, 5, 11]));
        }
        signal
    }

    /// Something happens.
    fn step(&mut self) {
        let pause = match self.random.below(20) {
            0..8 => 0,
            8..14 => self.random.below(1_000),
            14..18 => self.random.below(60_000),
            18 => self.random.below(3_600_000),
            _ => self.random.below(12 * 3_600_000),
        };
        let until = self.now + pause;
        while let Some(due) = self.engine.deadline().filter(|due| *due < until) {
            self.now = due.max(self.now);
            self.drain();
        }
        self.now = until;
        if self.restarts && self.random.one_in(25) {
            // Killed, and started again with what it kept. Inputs under way are lost.
            let saved = serde_json::to_string(&self.engine.export()).expect("it can be written");
            let saved = serde_json::from_str(&saved).expect("it can be read");
            self.engine = Engine::restore(IncidentTables::embedded(), policy(), self.now, saved);
            for endpoint in self.stopped.clone() {
                self.engine.observe(self.now, Signal::of(Observation::UserStopped, &endpoint));
            }
            self.drain();
            return;
        }
        let input = match self.random.below(20) {
            0..11 => Input::Signal(self.signal()),
            // The same again: rows and storms.
            11..14 => {
                let last = self.log.iter().rev().find(|entry| matches!(entry.input, Input::Signal(_)));
                last.map_or(Input::Tick, |entry| entry.input.clone())
            }
            14..17 => match self.acts.last() {
                Some((_, act)) => {
                    let outcomes = [
                        Outcome::Done,
                        Outcome::Done,
                        Outcome::Helped,
                        Outcome::Failed("no".to_owned()),
                        Outcome::DidNotHelp("no".to_owned()),
                    ];
                    Input::Outcome(act.id, self.random.of(&outcomes).clone())
                }
                None => Input::Tick,
            },
            17 => {
                let asked = self.said.iter().rev().find(|line| line.contains("{\"diagnose\""));
                let id = asked.and_then(|line| line.split("\"incident\":").nth(1)?.split(',').next()?.parse().ok());
                let action = self.random.of(Action::ALL).name();
                let confidence = self.random.below(100);
                let text = format!(r#"{{"action":"{action}","reason":"r","confidence":0.{confidence:02}}}"#);
                let text = if self.random.one_in(4) { "rm -rf /".to_owned() } else { text };
                let answer = Answer::Text { text, input_tokens: Some(900), output_tokens: Some(90) };
                id.map_or(Input::Tick, |id| Input::Diagnosis(codex_control::incident::IncidentId(id), answer))
            }
            18 => self.engine.pending().next().map_or(Input::Tick, |(_, attempt)| Input::Cancel(attempt.id)),
            _ => {
                let backup = self.random.one_in(2).then(|| self.random.of(&endpoints()).clone());
                Input::Facts(self.random.of(&endpoints()).clone(), Facts { backup, ..Facts::default() })
            }
        };
        self.say(input);
    }

    fn finish(&mut self) {
        while let Some(due) = self.engine.deadline() {
            self.now = due.max(self.now);
            self.drain();
        }
        assert_eq!(self.engine.incidents().count(), 0, "everything comes to its end");
    }
}

fn n_schedules() -> u64 {
    std::env::var("INCIDENT_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(SCHEDULES)
}

#[test]
fn the_same_log_gives_the_same_bytes() {
    let (mut n_acts, mut n_questions, mut n_directives) = (0, 0, 0);
    for seed in 0..n_schedules() {
        let mut run = Run::new(seed, false);
        (0..STEPS).for_each(|_| run.step());
        run.finish();
        run.check_guards();
        n_acts += run.acts.len();
        n_questions += run.questions.len();
        n_directives += run.said.len();
        // Through text, as a log on disk would be.
        let log: Vec<String> =
            run.log.iter().map(|entry| serde_json::to_string(entry).expect("it can be written")).collect();
        let log = log.iter().map(|line| serde_json::from_str(line).expect("it can be read"));
        let mut again = Vec::new();
        let mut engine = Engine::new(IncidentTables::embedded(), policy());
        replay(
            &mut engine,
            log,
            |_| None,
            |at, directive| {
                again.push(format!("{at} {}", serde_json::to_string(&directive).expect("it can be written")));
            },
        );
        assert_eq!(again, run.said, "seed {seed}");
    }
    println!(
        "{} logs of {STEPS} steps: {n_directives} directives, {n_acts} actions, {n_questions} questions, the same again",
        n_schedules()
    );
}

#[test]
fn no_guard_is_exceeded_over_restarts_of_the_supervisor() {
    let (mut n_acts, mut n_questions) = (0, 0);
    for seed in 0..n_schedules() {
        let mut run = Run::new(seed ^ 0x5eed, true);
        (0..STEPS).for_each(|_| run.step());
        run.finish();
        run.check_guards();
        n_acts += run.acts.len();
        n_questions += run.questions.len();
    }
    println!("{} schedules with restarts: {n_acts} actions, {n_questions} questions, no guard exceeded", n_schedules());
}
