//! Time for a decision: a rule's (tier 1), and a look at 500 learned fixes (tier 2).
//!
//! Besides criterion's means, the 99th percentile of single decisions is printed and held against the target.

use std::hint::black_box;
use std::time::{Duration, Instant};

use codex_control::EndpointId;
use codex_control::incident::{Action, Millis, Observation, Outcome, Signal};
use codex_control::tables::incident::IncidentTables;
use codex_incident::{Directive, Engine, Known, PATTERNS_MAX, Policy};
use criterion::{Criterion, criterion_group, criterion_main};

const START: Millis = 1_795_000_000_000;
/// The target of the design for both.
const P99_MAX: Duration = Duration::from_millis(1);
/// Single decisions that are timed.
const DECISIONS: u64 = 5_000;

fn signal(what: Observation) -> Signal {
    let endpoint: EndpointId = "zai".parse().expect("a good id");
    Signal::of(what, &endpoint).detail("the excerpt of an error as a provider words it, of ordinary length")
}

/// Until the first action of this failure, which is then over.
fn decide(engine: &mut Engine, now: Millis, what: Observation) -> Duration {
    let started = Instant::now();
    engine.observe(now, signal(what));
    let mut acts = Vec::new();
    let mut planned = false;
    while let Some(directive) = engine.poll(now) {
        match directive {
            Directive::Act(act) => acts.push(act),
            Directive::Record(incident) => planned |= incident.attempts.iter().any(|attempt| !attempt.state.is_over()),
            Directive::Notify(_) | Directive::Diagnose(_) => {}
        }
    }
    let elapsed = started.elapsed();
    assert!(planned || !acts.is_empty(), "something was decided");
    for act in acts {
        engine.outcome(now, act.id, Outcome::Done);
    }
    engine.observe(now, signal(Observation::WorkerReady));
    engine.observe(now, signal(Observation::UpstreamGood));
    while engine.poll(now).is_some() {}
    elapsed
}

fn engine() -> Engine {
    let mut engine = Engine::new(IncidentTables::embedded(), Policy::default());
    for n in 0..PATTERNS_MAX - 5 {
        engine.add_pattern(known(&format!("upstream_nonsense+tag_{n}"), Action::RetryNow));
    }
    engine.add_pattern(known("upstream_nonsense", Action::ClearSchemaCache));
    assert_eq!(engine.patterns().len(), PATTERNS_MAX);
    engine
}

fn known(fingerprint: &str, fix: Action) -> Known {
    Known {
        fingerprint: fingerprint.to_owned(),
        fix,
        then: None,
        stated: None,
        faults: Vec::new(),
        source: "bench".to_owned(),
        successes: 9.0,
        failures: 1.0,
        success_count: 9,
        fail_count: 1,
        failures_in_a_row: 0,
        seen_at_ms: START,
        used_at_ms: START,
    }
}

fn decisions(c: &mut Criterion) {
    for (name, what) in [("tier 1", Observation::WorkerKilled), ("tier 2", Observation::UpstreamNonsense)] {
        // An hour apart: no ladder, no cap, no cooldown.
        let at = |n: u64| START + n * 3_600_000;
        let mut engine_ = engine();
        let mut times: Vec<Duration> = (0..DECISIONS).map(|n| decide(&mut engine_, at(n), what)).collect();
        times.sort_unstable();
        let percentile = |percent: usize| times[times.len() * percent / 100];
        println!("{name}: p50 {:?}, p99 {:?}, slowest {:?}", percentile(50), percentile(99), times[times.len() - 1]);
        assert!(percentile(99) < P99_MAX, "{name} is too slow");

        let mut engine = engine();
        let mut n = 0;
        c.bench_function(name, |bencher| {
            bencher.iter(|| {
                n += 1;
                black_box(decide(&mut engine, at(n), what))
            });
        });
    }
    let mut engine = engine();
    let mut now = START;
    c.bench_function("a signal that only counts", |bencher| {
        bencher.iter(|| {
            now += 1;
            engine.observe(now, black_box(signal(Observation::UpstreamUnauthorized)));
            while engine.poll(now).is_some() {}
        });
    });
}

criterion_group!(benches, decisions);
criterion_main!(benches);
