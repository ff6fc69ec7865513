//! A world in which one fix helps, nobody knows which, and once it changes: does learning from what was seen do better
//! than counting every start as a success?

use crate::random::Random;
use codex_control::EndpointId;
use codex_control::incident::{Action, ActionId, Answer, IncidentId, Millis, Observation, Outcome, Signal};
use codex_control::tables::incident::IncidentTables;
use codex_incident::{Directive, Engine, Policy};

const START: Millis = 1_795_000_000_000;
/// Worlds that are tried, each with another seed.
const WORLDS: u64 = 40;
/// Failures in each; the fix changes after half of them.
const FAILURES: usize = 120;
/// Time between two failures: the ladder of the one before is forgotten.
const BETWEEN_MS: u64 = 30 * 60 * 1000;
/// While it is broken, it is seen this often.
const AGAIN_MS: u64 = 5_000;
/// A person mends it after this time, if nothing else does.
const PERSON_MS: u64 = 20 * 60 * 1000;
/// Of its answers the AI gives this share right.
const AI_RIGHT_PERCENT: u64 = 70;

const FIXES: [Action; 4] =
    [Action::RestartProxy, Action::ClearSchemaCache, Action::IncreaseTimeout, Action::RegenerateConfig];

/// How an outcome is told to the engine.
#[derive(Clone, Copy, PartialEq)]
enum Learner {
    /// It was carried out; whether it helped is seen.
    Verified,
    /// What was started has succeeded.
    StartIsSuccess,
}

#[derive(Default)]
struct Score {
    wrong_actions: u64,
    actions: u64,
    to_recover_ms: u64,
    by_person: u64,
    questions: u64,
    failures: u64,
}

fn run(seed: u64, learner: Learner, score: &mut Score) {
    let endpoint: EndpointId = "a".parse().expect("a good id");
    let signal = |what| Signal::of(what, &endpoint);
    let mut random = Random(seed);
    let policy = Policy { ai_model: Some("local".to_owned()), ai_is_local: true, ..Policy::default() };
    let mut engine = Engine::new(IncidentTables::embedded(), policy);
    let first = *random.of(&FIXES);
    let others: Vec<Action> = FIXES.into_iter().filter(|fix| *fix != first).collect();
    let second = *random.of(&others);
    let mut now = START;
    for number in 0..FAILURES {
        let right = if number < FAILURES / 2 { first } else { second };
        let broke_at = now;
        let mut mended_at = None;
        let mut seen_at = now;
        while mended_at.is_none() {
            // The next thing that happens: it is seen again, the engine is due, or the person has mended it.
            now = seen_at.min(engine.deadline().unwrap_or(Millis::MAX)).min(broke_at + PERSON_MS).max(now);
            if now >= broke_at + PERSON_MS {
                score.by_person += 1;
                mended_at = Some(now);
                break;
            }
            if now >= seen_at {
                engine.observe(now, signal(Observation::UpstreamNonsense));
                seen_at = now + AGAIN_MS;
            }
            let (mut acts, mut questions): (Vec<(ActionId, Action)>, Vec<IncidentId>) = (Vec::new(), Vec::new());
            while let Some(directive) = engine.poll(now) {
                match directive {
                    Directive::Act(act) => acts.push((act.id, act.action)),
                    Directive::Diagnose(question) => questions.push(question.incident),
                    Directive::Notify(_) | Directive::Record(_) => {}
                }
            }
            for incident in questions {
                score.questions += 1;
                let is_right = random.below(100) < AI_RIGHT_PERCENT;
                let advice = if is_right { right } else { *random.of(&FIXES) };
                let text = format!(r#"{{"action":"{advice}","reason":"r","confidence":0.9}}"#);
                engine.diagnosis(now, incident, Answer::Text { text, input_tokens: None, output_tokens: None });
            }
            for (id, action) in acts {
                score.actions += 1;
                let outcome = if learner == Learner::Verified { Outcome::Done } else { Outcome::Helped };
                engine.outcome(now, id, outcome);
                if action == right {
                    mended_at = Some(now);
                } else {
                    score.wrong_actions += 1;
                }
            }
        }
        let mended_at = mended_at.unwrap_or(now);
        score.failures += 1;
        score.to_recover_ms += mended_at - broke_at;
        now = mended_at + 2_000;
        engine.observe(now, signal(Observation::UpstreamGood));
        while engine.poll(now).is_some() {}
        let next_at = now + BETWEEN_MS;
        while let Some(due) = engine.deadline().filter(|due| *due <= next_at) {
            now = due.max(now);
            while engine.poll(now).is_some() {}
        }
        now = next_at;
    }
}

#[test]
fn learning_from_what_was_seen_beats_counting_starts() {
    let score = |learner| {
        let mut score = Score::default();
        (0..WORLDS).for_each(|seed| run(seed, learner, &mut score));
        score
    };
    let (verified, naive) = (score(Learner::Verified), score(Learner::StartIsSuccess));
    println!("{WORLDS} worlds, {FAILURES} failures each, the right fix changes once");
    println!(
        "{:<24} {:>13} {:>9} {:>16} {:>10} {:>10}",
        "learning from", "wrong actions", "actions", "s to recover", "by person", "questions"
    );
    for (name, score) in [("what was seen", &verified), ("every start", &naive)] {
        let seconds = score.to_recover_ms / score.failures / 1000;
        println!(
            "{name:<24} {:>13} {:>9} {seconds:>16} {:>10} {:>10}",
            score.wrong_actions, score.actions, score.by_person, score.questions
        );
    }
    assert!(verified.wrong_actions * 5 < naive.wrong_actions, "{} and {}", verified.wrong_actions, naive.wrong_actions);
    assert!(verified.to_recover_ms * 2 < naive.to_recover_ms, "{} and {}", verified.to_recover_ms, naive.to_recover_ms);
    assert!(verified.by_person < naive.by_person);
}
