//! The same again, from a log.

use codex_control::EndpointId;
use codex_control::incident::{ActionId, Answer, IncidentId, Millis, Outcome, Signal};
use serde::{Deserialize, Serialize};

use crate::directive::Directive;
use crate::engine::Engine;
use crate::policy::{Facts, Policy};

/// Something that was said to an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// [`Engine::observe`]
    Signal(Signal),
    /// [`Engine::outcome`]
    Outcome(ActionId, Outcome),
    /// [`Engine::diagnosis`]
    Diagnosis(IncidentId, Answer),
    /// [`Engine::cancel`]
    Cancel(ActionId),
    /// [`Engine::approve`]
    Approve(ActionId),
    /// [`Engine::know`]
    Facts(EndpointId, Facts),
    /// [`Engine::set_policy`]
    Policy(Policy),
    /// Nothing: only time goes on.
    Tick,
}

/// One line of a log: what was said, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When.
    pub at_ms: Millis,
    /// What.
    pub input: Input,
}

/// Says all of `log` to `engine`, polling whenever it is due, and gives each directive with its moment to `sink`.
///
/// `respond` says what is to be said to the engine because of a directive, once all directives of that moment are out:
/// for a log of everything that was said it says nothing, for a log of signals alone [`signals_only`] does.
pub fn replay(
    engine: &mut Engine,
    log: impl IntoIterator<Item = Entry>,
    mut respond: impl FnMut(&Directive) -> Option<Input>,
    mut sink: impl FnMut(Millis, Directive),
) {
    let mut drain = |engine: &mut Engine, at: Millis| loop {
        let mut responses = Vec::new();
        while let Some(directive) = engine.poll(at) {
            responses.extend(respond(&directive));
            sink(at, directive);
        }
        if responses.is_empty() {
            break;
        }
        for input in responses {
            say(engine, at, input);
        }
    };
    for entry in log {
        while let Some(due) = engine.deadline().filter(|due| *due < entry.at_ms) {
            drain(engine, due);
        }
        say(engine, entry.at_ms, entry.input);
        drain(engine, entry.at_ms);
    }
    // What is under way comes to its end.
    while let Some(due) = engine.deadline() {
        drain(engine, due);
    }
}

/// For logs without outcomes: each action is carried out at once, and the AI is not there.
pub fn signals_only(directive: &Directive) -> Option<Input> {
    match directive {
        Directive::Act(act) => Some(Input::Outcome(act.id, Outcome::Done)),
        Directive::Diagnose(question) => {
            Some(Input::Diagnosis(question.incident, Answer::None("it is only simulated".to_owned())))
        }
        Directive::Notify(_) | Directive::Record(_) => None,
    }
}

/// Says one thing.
pub(crate) fn say(engine: &mut Engine, now: Millis, input: Input) {
    match input {
        Input::Signal(signal) => engine.observe(now, signal),
        Input::Outcome(id, outcome) => _ = engine.outcome(now, id, outcome),
        Input::Diagnosis(id, answer) => _ = engine.diagnosis(now, id, answer),
        Input::Cancel(id) => _ = engine.cancel(now, id),
        Input::Approve(id) => _ = engine.approve(now, id),
        Input::Facts(endpoint, facts) => engine.know(&endpoint, facts),
        Input::Policy(policy) => engine.set_policy(policy),
        Input::Tick => {}
    }
}
