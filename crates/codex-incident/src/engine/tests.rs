use codex_control::incident::{Answer, Level, Outcome};

use super::*;
use crate::directive::{Act, Diagnose};
use crate::{CANCEL_WITHIN_MS, LADDER_MS};

const START: Millis = 1_795_000_000_000;

/// An engine, a clock, and everything that came out.
struct Bench {
    engine: Engine,
    now: Millis,
    seen: Vec<Directive>,
}

fn endpoint() -> EndpointId {
    "zai".parse().expect("a good id")
}

fn signal(what: Observation) -> Signal {
    Signal::of(what, &endpoint())
}

impl Bench {
    fn new() -> Self {
        Self::with(Policy { ai_model: Some("qwen3-32b".to_owned()), ..Policy::default() })
    }

    fn with(policy: Policy) -> Self {
        Self::of(Engine::new(IncidentTables::embedded(), policy))
    }

    fn of(engine: Engine) -> Self {
        Self { engine, now: START, seen: Vec::new() }
    }

    fn rules(text: &str) -> Self {
        let tables =
            IncidentTables::with_rules(std::path::Path::new("rules.toml"), text.as_bytes()).expect("good rules");
        Self::of(Engine::new(tables, Policy { ai_model: Some("m".to_owned()), ..Policy::default() }))
    }

    fn drain(&mut self) {
        while let Some(directive) = self.engine.poll(self.now) {
            self.seen.push(directive);
        }
    }

    fn see(&mut self, what: Observation) {
        self.signal(signal(what));
    }

    fn signal(&mut self, signal: Signal) {
        self.now += 1;
        self.engine.observe(self.now, signal);
        self.drain();
    }

    /// Lets time go on, polling whenever it is due.
    fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        while let Some(due) = self.engine.deadline().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            self.drain();
        }
        self.now = end;
        self.drain();
    }

    fn acts(&self) -> Vec<Act> {
        self.seen
            .iter()
            .filter_map(|one| if let Directive::Act(act) = one { Some(act.clone()) } else { None })
            .collect()
    }

    fn actions(&self) -> Vec<Action> {
        self.acts().iter().map(|act| act.action).collect()
    }

    fn notices(&self) -> Vec<Notice> {
        self.seen
            .iter()
            .filter_map(|one| if let Directive::Notify(notice) = one { Some(notice.clone()) } else { None })
            .collect()
    }

    fn questions(&self) -> Vec<Diagnose> {
        self.seen
            .iter()
            .filter_map(|one| if let Directive::Diagnose(one) = one { Some(one.clone()) } else { None })
            .collect()
    }

    /// The incident as it was last written down.
    fn incident(&self) -> Incident {
        let last =
            self.seen.iter().rev().find_map(|one| if let Directive::Record(one) = one { Some(one) } else { None });
        last.map(|incident| (**incident).clone()).expect("an incident was written down")
    }

    fn outcome(&mut self, outcome: Outcome) {
        let id = self.acts().last().expect("something was done").id;
        assert!(self.engine.outcome(self.now, id, outcome));
        self.drain();
    }

    fn answer(&mut self, text: &str) {
        let incident = self.questions().last().expect("something was asked").incident;
        let answer = Answer::Text { text: text.to_owned(), input_tokens: Some(700), output_tokens: Some(50) };
        assert!(self.engine.diagnosis(self.now, incident, answer));
        self.drain();
    }

    fn restart(&mut self) {
        let saved = serde_json::to_string(&self.engine.export()).expect("it can be written");
        let saved = serde_json::from_str(&saved).expect("it can be read");
        let (tables, policy) = (self.engine.tables.clone(), self.engine.policy.clone());
        self.engine = Engine::restore(tables, policy, self.now, saved);
        self.drain();
    }
}

#[test]
fn a_dead_worker_is_brought_back_at_once_and_that_it_helped_is_seen() {
    let mut bench = Bench::new();
    bench.signal(signal(Observation::WorkerKilled).value(9).detail("killed by signal 9"));
    let acts = bench.acts();
    assert_eq!(acts.len(), 1);
    assert_eq!((acts[0].action, acts[0].tier, acts[0].then), (Action::RestartProxy, Tier::Rule, None));
    assert_eq!(acts[0].verify.seen, [Observation::WorkerReady, Observation::ProbeGood]);
    assert_eq!(bench.engine.patterns.get("proxy_dead", Action::RestartProxy), None, "started is not helped");
    bench.outcome(Outcome::Done);
    bench.pass(20);
    bench.see(Observation::WorkerReady);
    let incident = bench.incident();
    assert_eq!((incident.fault, incident.state), (Some(Fault::A1), IncidentState::Resolved));
    assert_eq!(incident.attempts[0].state, AttemptState::Helped);
    let known = bench.engine.patterns.get("proxy_dead", Action::RestartProxy).expect("it was learned");
    assert_eq!((known.success_count, known.fail_count), (1, 0));
    assert_eq!(bench.notices(), []);
}

#[test]
fn a_worker_that_is_back_before_anybody_says_so_counts_as_back() {
    let mut bench = Bench::new();
    bench.see(Observation::WorkerCrashed);
    bench.see(Observation::WorkerReady);
    bench.outcome(Outcome::Done);
    assert_eq!(bench.incident().attempts[0].state, AttemptState::Helped);
}

#[test]
fn five_restarts_in_ten_minutes_then_a_person_even_over_a_restart_of_ours() {
    let mut bench = Bench::new();
    for n in 0..8 {
        if n == 3 {
            bench.restart();
        }
        bench.see(Observation::WorkerKilled);
        if bench.acts().len() > n {
            bench.outcome(Outcome::Done);
        }
        bench.see(Observation::WorkerReady);
        bench.pass(40_000);
    }
    assert_eq!(bench.actions(), [Action::RestartProxy; 5]);
    let notices = bench.notices();
    assert!(notices[0].text.contains("5 restarts within ten minutes"), "{notices:?}");
    assert_eq!(notices[0].level, Level::Important);
    bench.pass(600_000);
    bench.see(Observation::WorkerKilled);
    assert_eq!(bench.acts().len(), 6, "ten minutes later it may again");
}

#[test]
fn a_stop_by_hand_silences_everything_until_it_is_started_again() {
    let mut bench = Bench::new();
    bench.signal(signal(Observation::WorkerMemory).value(2 << 30).limit(1 << 30));
    assert_eq!(bench.engine.pending().count(), 1);
    bench.see(Observation::UserStopped);
    for what in [Observation::WorkerKilled, Observation::ProbeRefused, Observation::UpstreamUnauthorized] {
        bench.see(what);
    }
    bench.pass(60_000);
    assert_eq!((bench.actions(), bench.notices()), (vec![], vec![]));
    assert_eq!(bench.incident().state, IncidentState::Ignored);
    bench.see(Observation::UserStarted);
    bench.see(Observation::WorkerKilled);
    assert_eq!(bench.actions(), [Action::RestartProxy]);
}

#[test]
fn what_changes_something_waits_three_seconds_and_can_be_cancelled() {
    let mut bench = Bench::new();
    let corrupt = signal(Observation::FactsCorrupt);
    bench.signal(corrupt.clone());
    bench.pass(CANCEL_WITHIN_MS - 1);
    assert_eq!(bench.actions(), []);
    let id = bench.engine.pending().next().expect("it is planned").1.id;
    assert!(bench.engine.cancel(bench.now, id));
    assert!(!bench.engine.cancel(bench.now, id), "once is enough");
    bench.pass(10_000);
    assert_eq!(bench.actions(), []);
    assert_eq!(bench.incident().attempts[0].state, AttemptState::Cancelled);
    bench.signal(corrupt.clone());
    bench.pass(250_000);
    assert_eq!(bench.actions(), [], "what a person has cancelled does not come back at once");
    bench.pass(60_000);
    bench.signal(corrupt);
    bench.pass(CANCEL_WITHIN_MS);
    assert_eq!(bench.actions(), [Action::DeleteProviderCaps]);
    assert!(!bench.engine.cancel(bench.now, bench.acts()[0].id), "too late");
}

#[test]
fn the_same_failure_again_pauses_30_60_300_and_then_a_person() {
    let mut bench = Bench::with(Policy { tier3_enabled: false, ..Policy::default() });
    let mut waited = Vec::new();
    for _ in 0..2_000 {
        let before = bench.acts().len();
        bench.signal(signal(Observation::RegistryStale).value(1));
        bench.pass(1_000);
        if bench.acts().len() > before {
            waited.push(bench.now);
            bench.outcome(Outcome::Helped);
        }
        if bench.notices().iter().any(|notice| notice.text.contains("after 3 attempts")) {
            break;
        }
    }
    assert_eq!(bench.actions(), [Action::CleanupPids; 3]);
    for (pair, pause) in waited.windows(2).zip(LADDER_MS) {
        assert!(pair[1] - pair[0] >= pause, "{pair:?}");
    }
}

#[test]
fn upstream_500_three_times_needs_a_backup_and_a_permission() {
    for (has_backup, auto_switch_provider, expected) in
        [(false, true, "it has no backup"), (true, false, "switched off"), (true, true, "")]
    {
        let mut bench = Bench::with(Policy { auto_switch_provider, ..Policy::default() });
        let backup = has_backup.then(|| "backup".parse().expect("a good id"));
        bench.engine.know(&endpoint(), Facts { backup, ..Facts::default() });
        for _ in 0..3 {
            bench.signal(signal(Observation::UpstreamServerError).value(500));
        }
        bench.pass(CANCEL_WITHIN_MS);
        if expected.is_empty() {
            assert_eq!(bench.actions(), [Action::SwitchProvider]);
            assert_eq!(bench.notices(), []);
        } else {
            assert_eq!(bench.actions(), []);
            assert!(bench.notices()[0].text.contains(expected), "{:?}", bench.notices());
        }
    }
}

#[test]
fn an_endpoint_without_a_provider_that_works_is_told_once_and_over_when_one_does() {
    use Observation as O;
    let backup: EndpointId = "backup".parse().expect("a good id");
    let of_backup = |what| Signal::of(what, &backup);
    for (mine, of_its_backup, is_down) in [
        (signal(O::UpstreamRateLimited).value(30_000), vec![of_backup(O::UpstreamRateLimited).value(20_000)], true),
        (signal(O::UpstreamRateLimited).value(30_000), vec![of_backup(O::UpstreamRateLimited).value(2_000)], false),
        (signal(O::UpstreamUnauthorized).value(401), vec![of_backup(O::UpstreamOverloaded).value(529)], true),
        (signal(O::UpstreamRateLimited), vec![of_backup(O::UpstreamReset).value(0); 3], true),
        (signal(O::UpstreamRateLimited), vec![of_backup(O::UpstreamReset).value(0); 2], false),
        (signal(O::ClientGone), vec![of_backup(O::UpstreamRateLimited)], false),
    ] {
        let mut bench = Bench::new();
        bench.engine.know(&endpoint(), Facts { backup: Some(backup.clone()), ..Facts::default() });
        bench.signal(mine.clone());
        for one in of_its_backup {
            bench.signal(one);
        }
        bench.signal(mine.clone());
        let told = |bench: &Bench| {
            let told = bench.notices().into_iter().filter(|notice| notice.action == Some(Action::AlertUserNoProvider));
            told.collect::<Vec<_>>()
        };
        assert_eq!(told(&bench).len(), usize::from(is_down), "{mine:?} {:?}", bench.notices());
        if is_down {
            assert_eq!(told(&bench)[0].endpoint.as_ref(), Some(&endpoint()), "the backup has no backup");
            bench.signal(of_backup(O::UpstreamGood));
            let incidents = bench.engine.incidents().filter(|incident| incident.fault == Some(Fault::E5));
            let states: Vec<IncidentState> = incidents.map(|incident| incident.state).collect();
            assert_eq!(states, [IncidentState::Resolved]);
        }
    }
}

#[test]
fn a_provider_is_the_same_whoever_uses_it() {
    use Observation as O;
    let backup: EndpointId = "backup".parse().expect("a good id");
    let mut bench = Bench::new();
    // Switched: what it sees is of its backup's provider.
    let facts = Facts { backup: Some(backup.clone()), route: Some(backup.clone()), ..Facts::default() };
    bench.engine.know(&endpoint(), facts);
    bench.signal(signal(O::UpstreamRateLimited));
    bench.signal(Signal::of(O::UpstreamRateLimited, &backup));
    let is_down = |bench: &Bench| bench.engine.incidents().any(|incident| incident.fault == Some(Fault::E5));
    assert!(!is_down(&bench), "its own provider is not known to be out");
    bench.engine.know(&endpoint(), Facts { backup: Some(backup), ..Facts::default() });
    bench.signal(signal(O::UpstreamRateLimited));
    assert!(is_down(&bench));
}

#[test]
fn an_action_and_then_the_person() {
    let mut bench = Bench::new();
    bench.see(Observation::SignInExpired);
    bench.pass(CANCEL_WITHIN_MS);
    assert_eq!((bench.actions(), bench.notices()), (vec![Action::RefreshToken], vec![]));
    bench.outcome(Outcome::DidNotHelp("the key that is there has expired".to_owned()));
    let told: Vec<Option<Action>> = bench.notices().iter().map(|notice| notice.action).collect();
    assert_eq!(told, [Some(Action::AlertUserReauth)]);
    assert_eq!(bench.questions(), [], "no AI knows the password");
}

#[test]
fn a_success_between_ends_a_row() {
    let mut bench = Bench::new();
    for _ in 0..5 {
        for _ in 0..2 {
            bench.signal(signal(Observation::UpstreamServerError).value(502));
        }
        bench.see(Observation::UpstreamGood);
    }
    assert_eq!((bench.actions(), bench.notices()), (vec![], vec![]));
    let known =
        bench.engine.patterns.get("server_error", Action::RetryWithBackoff).expect("what the worker did was seen");
    assert_eq!(known.fail_count, 0);
}

#[test]
fn a_client_that_hangs_up_is_no_fault_and_five_without_any_success_are() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        bench.see(Observation::ClientGone);
    }
    bench.see(Observation::UpstreamGood);
    for _ in 0..4 {
        bench.see(Observation::ClientGone);
    }
    bench.pass(10_000);
    assert_eq!(bench.actions(), []);
    assert_eq!(bench.notices(), []);
    bench.see(Observation::ClientGone);
    bench.pass(CANCEL_WITHIN_MS);
    assert_eq!(bench.actions(), [Action::RestartProxy]);
}

#[test]
fn a_reset_or_a_lost_stream_restarts_only_a_sick_worker() {
    for what in [Observation::UpstreamReset, Observation::CodexDisconnected] {
        let mut bench = Bench::new();
        bench.see(Observation::ProbeGood);
        bench.see(what);
        bench.pass(20_000);
        assert_eq!(bench.actions(), [], "{what}");
        let mut bench = Bench::new();
        bench.see(Observation::ProbeTimedOut);
        bench.outcome(Outcome::Failed("no".to_owned()));
        bench.seen.clear();
        bench.see(what);
        bench.pass(CANCEL_WITHIN_MS);
        assert_eq!(bench.actions(), [Action::RestartProxy], "{what}");
    }
}

#[test]
fn a_stall_restarts_only_when_not_one_byte_came() {
    for (bytes, expected) in [(0, vec![Action::RestartProxy]), (17, vec![])] {
        let mut bench = Bench::new();
        bench.signal(signal(Observation::StreamIdle).value(bytes));
        bench.pass(CANCEL_WITHIN_MS);
        assert_eq!(bench.actions(), expected);
    }
}

#[test]
fn a_novel_failure_goes_to_the_ai_once_and_is_known_from_then_on() {
    let mut bench = Bench::new();
    let novel = || signal(Observation::UpstreamNonsense).detail("<html>teapot</html>");
    bench.signal(novel());
    assert_eq!(bench.questions().len(), 1);
    assert!(bench.questions()[0].user.contains("teapot"));
    bench.answer(r#"{"action":"clear_schema_cache","reason":"a wrong schema","confidence":0.9}"#);
    bench.pass(CANCEL_WITHIN_MS);
    assert_eq!(bench.acts()[0].tier, Tier::Ai);
    bench.outcome(Outcome::Done);
    assert_eq!(bench.engine.patterns.get("upstream_nonsense", Action::ClearSchemaCache), None);
    bench.see(Observation::UpstreamGood);
    assert_eq!(bench.incident().state, IncidentState::Resolved);
    for n in 0..10 {
        bench.pass(3_600_000);
        bench.signal(novel());
        bench.pass(CANCEL_WITHIN_MS);
        assert_eq!(bench.acts().len(), n + 2);
        assert_eq!(bench.acts()[n + 1].tier, Tier::Pattern);
        bench.outcome(Outcome::Done);
        bench.see(Observation::UpstreamGood);
    }
    assert_eq!(bench.questions().len(), 1);
    assert_eq!(bench.notices(), []);
}

#[test]
fn the_report_has_what_the_first_systems_had() {
    let mut bench = Bench::new();
    let facts = Facts {
        backend: "chat-completions".to_owned(),
        provider: "zai".to_owned(),
        base_url: "https://api.example.com".to_owned(),
        model: "glm-4.7".to_owned(),
        port: Some(41_017),
        started_at_ms: Some(START - 60_000),
        sessions: (1..=5).map(|n| format!("cli-0000000{n}")).collect(),
        ..Facts::default()
    };
    bench.engine.know(&endpoint(), facts);
    bench.signal(signal(Observation::WorkerMemory).value(64 << 20).limit(1 << 30));
    bench.signal(signal(Observation::UpstreamBadRequest).value(400).detail("expected string"));
    bench.signal(signal(Observation::CommandEmpty));
    bench.signal(signal(Observation::UpstreamNonsense).detail("<html>teapot</html>"));
    let question = bench.questions().pop().expect("it is asked");
    assert_eq!((question.max_tokens, question.timeout_ms), (200, 15_000));
    assert!((question.temperature - 0.1).abs() < 1e-9);
    for line in [
        "Session: cli-00000001, cli-00000002, cli-00000003\n",
        "Incident: - (unknown), upstream_nonsense@chat_completions+zai, seen 1 times\n",
        "Proxy health: alive, port 41017, uptime 60 s, memory 64 MB\n",
        "Upstream: https://api.example.com, model glm-4.7, last HTTP status 400, last error: <html>teapot</html>\n",
        "upstream-bad-request: expected string\n",
        "Parser state: parsed_tool_calls=0: 0, stuck_recovery_count: 0, sanitizer_flags: 1\n",
        "Provider: chat-completions, glm-4.7\n",
        "History: none\n",
    ] {
        assert!(question.user.contains(line), "{line} {}", question.user);
    }
}

#[test]
fn a_bad_answer_is_told_to_a_person_and_nothing_is_done() {
    let megabyte = "x".repeat(1 << 20);
    for answer in [
        "restart it",
        "```json\n{\"action\":\"restart_proxy\",\"reason\":\"\",\"confidence\":1}\n```",
        r#"{"action":"rm -rf /","reason":"","confidence":1}"#,
        r#"{"action":"restart_proxy","reason":"maybe","confidence":0.3}"#,
        r#"{"action":"alert_user","reason":"look at it","confidence":0.9}"#,
        &megabyte,
    ] {
        let mut bench = Bench::new();
        bench.see(Observation::UpstreamNonsense);
        bench.answer(answer);
        bench.pass(120_000);
        assert_eq!(bench.actions(), [], "{}", &answer[..answer.len().min(80)]);
        assert_eq!(bench.notices().len(), 1);
        assert_eq!(bench.notices()[0].level, Level::Important);
    }
    let mut bench = Bench::new();
    bench.see(Observation::UpstreamNonsense);
    bench.pass(120_000);
    assert_eq!((bench.actions().len(), bench.notices().len()), (0, 1), "no answer at all");
}

#[test]
fn questions_are_counted_before_they_are_asked_and_over_a_restart() {
    let mut bench = Bench::new();
    for n in 0..15 {
        bench.see(Observation::UpstreamNonsense);
        if n == 4 {
            bench.see(Observation::UpstreamNonsense);
            assert_eq!(bench.questions().len(), 5, "one a minute");
        }
        bench.restart();
        bench.pass(100_000);
    }
    assert_eq!(bench.questions().len(), 10);
    assert!(bench.notices().last().expect("a person was told").text.contains("ten times today"));
    let spent = bench.engine.guards.spending(bench.now);
    assert!(spent.n_calls == 10 && spent.usd > 0.0, "{spent:?}");
}

#[test]
fn the_months_budget_ends_the_questions() {
    let policy = Policy { ai_model: Some("unheard-of".to_owned()), ai_monthly_usd_max: 0.02, ..Policy::default() };
    let mut bench = Bench::with(policy);
    for _ in 0..5 {
        bench.see(Observation::UpstreamNonsense);
        bench.pass(100_000);
    }
    let spent = bench.engine.guards.spending(bench.now).usd;
    assert!(spent <= 0.02 && bench.questions().len() < 5, "{spent}, {} questions", bench.questions().len());
    assert!(bench.notices().iter().any(|notice| notice.text.contains("budget")));
}

#[test]
fn what_does_not_help_goes_to_the_next_tier() {
    let mut bench = Bench::new();
    bench.see(Observation::FactsCorrupt);
    bench.pass(CANCEL_WITHIN_MS);
    bench.outcome(Outcome::Failed("read-only file system".to_owned()));
    assert_eq!(bench.questions().len(), 1);
    bench.answer(r#"{"action":"restart_proxy","reason":"start anew","confidence":0.8}"#);
    bench.pass(CANCEL_WITHIN_MS);
    bench.outcome(Outcome::Done);
    bench.pass(31_000);
    assert_eq!(bench.actions(), [Action::DeleteProviderCaps, Action::RestartProxy]);
    let incident = bench.incident();
    assert_eq!(incident.state, IncidentState::Alerted);
    assert!(incident.told_at_ms().is_some());
    assert!(incident.attempts.iter().all(|attempt| attempt.state == AttemptState::Failed), "{incident:?}");
    assert!(bench.notices().last().expect("told").text.contains("2 things were tried"));
}

#[test]
fn silence_is_no_outcome_where_there_may_be_nothing_to_see() {
    let mut bench = Bench::new();
    bench.see(Observation::UpstreamTimedOut);
    bench.pass(CANCEL_WITHIN_MS);
    assert_eq!(bench.acts()[0].then, Some(Action::IncreaseTimeout));
    bench.outcome(Outcome::Done);
    bench.pass(200_000);
    assert_eq!(bench.incident().state, IncidentState::Lapsed);
    assert_eq!(bench.incident().attempts[0].state, AttemptState::Unknown);
    assert_eq!(bench.engine.patterns.get("timeout", Action::RetryWithBackoff), None);
}

/// What is known about a fix: successes and failures ever.
fn known(bench: &Bench, fingerprint: &str, fix: impl Into<Fix>) -> Option<(u64, u64)> {
    bench.engine.patterns.get(fingerprint, fix).map(|known| (known.success_count, known.fail_count))
}

#[test]
fn of_two_steps_the_one_that_was_followed_by_success_has_helped() {
    // The worker's own attempt helps, before the supervisor does anything.
    let mut bench = Bench::new();
    bench.see(Observation::UpstreamTimedOut);
    bench.pass(CANCEL_WITHIN_MS - 1);
    bench.see(Observation::UpstreamGood);
    assert_eq!(bench.actions(), []);
    assert_eq!(bench.incident().state, IncidentState::Resolved);
    assert_eq!(known(&bench, "timeout", Action::RetryWithBackoff), Some((1, 0)));
    assert_eq!(known(&bench, "timeout", Action::IncreaseTimeout), None);

    // It does not, and more time does.
    let mut bench = Bench::new();
    bench.see(Observation::UpstreamTimedOut);
    bench.pass(CANCEL_WITHIN_MS);
    bench.outcome(Outcome::Done);
    bench.see(Observation::UpstreamGood);
    assert_eq!(bench.incident().attempts[0].state, AttemptState::Helped);
    assert_eq!(known(&bench, "timeout", Action::RetryWithBackoff), Some((0, 1)));
    assert_eq!(known(&bench, "timeout", Action::IncreaseTimeout), Some((1, 0)));

    // Neither does.
    let mut bench = Bench::new();
    bench.see(Observation::UpstreamTimedOut);
    bench.pass(CANCEL_WITHIN_MS);
    bench.outcome(Outcome::DidNotHelp("no".to_owned()));
    assert_eq!(known(&bench, "timeout", Action::RetryWithBackoff), Some((0, 1)));
    assert_eq!(known(&bench, "timeout", Action::IncreaseTimeout), Some((0, 1)));
}

#[test]
fn a_second_step_that_never_helps_is_passed_over_and_one_that_does_is_not() {
    for helps in [true, false] {
        let mut bench = Bench::with(Policy { tier3_enabled: false, ..Policy::default() });
        for _ in 0..3 {
            bench.see(Observation::UpstreamTimedOut);
            bench.pass(CANCEL_WITHIN_MS);
            if !bench.incident().state.is_closed() && bench.engine.pending().next().is_none() {
                let id = bench.acts().last().expect("something was done").id;
                bench.engine.outcome(bench.now, id, Outcome::Done);
                bench.drain();
            }
            if helps {
                bench.see(Observation::UpstreamGood);
            } else {
                bench.see(Observation::UpstreamTimedOut);
            }
            bench.pass(3_600_000);
        }
        let tiers: Vec<Tier> = bench.acts().iter().map(|act| act.tier).collect();
        assert_eq!(tiers, vec![Tier::Rule; if helps { 3 } else { 2 }], "{:?}", bench.incident());
    }
}

#[test]
fn two_actions_of_one_deed_are_remembered_and_done_as_one() {
    let pair = Fix { action: Action::KillStaleProcesses, then: Some(Action::RestartProxy) };
    let mut bench = Bench::new();
    bench.see(Observation::PortTaken);
    bench.pass(CANCEL_WITHIN_MS);
    bench.outcome(Outcome::Done);
    bench.see(Observation::WorkerReady);
    assert_eq!(known(&bench, "port_conflict", pair), Some((1, 0)));
    assert_eq!(known(&bench, "port_conflict", Action::KillStaleProcesses), None, "alone it was never tried");

    // Found against something else, it is done the same way.
    let mut known = bench.engine.patterns.get("port_conflict", pair).expect("it was learned").clone();
    known.fingerprint = "upstream_nonsense".to_owned();
    bench.engine.add_pattern(known);
    bench.restart();
    bench.pass(3_600_000);
    bench.see(Observation::UpstreamNonsense);
    bench.pass(CANCEL_WITHIN_MS);
    let act = bench.acts().pop().expect("the pair is carried out");
    assert_eq!((act.tier, act.action, act.then), (Tier::Pattern, pair.action, pair.then));
    assert!(act.because.contains("kill_stale_processes+restart_proxy helped in 100 %"), "{}", act.because);
}

#[test]
fn a_fingerprint_has_the_circumstances_and_nothing_that_a_provider_writes() {
    let facts = |backend: &str, provider: &str, route: Option<&str>| Facts {
        backend: backend.to_owned(),
        provider: provider.to_owned(),
        base_url: "https://user-secret.example.com".to_owned(),
        model: "secret-model".to_owned(),
        route: route.map(|id| id.parse().expect("a good id")),
        ..Facts::default()
    };
    let unauthorized = |status| signal(Observation::UpstreamUnauthorized).value(status).detail("key sk-secret refused");
    for (facts, is_well, signal, expected) in [
        (Facts::default(), true, unauthorized(401), "@http_401+upstream_unauthorized"),
        (
            facts("chat-completions", "zai-coding", None),
            true,
            unauthorized(403),
            "@chat_completions+http_403+upstream_unauthorized+zai_coding",
        ),
        (
            facts("anthropic-messages", "custom", Some("b")),
            false,
            unauthorized(418),
            "@anthropic_messages+custom+http_4xx+on_backup+upstream_unauthorized+worker_unhealthy",
        ),
        (facts("", &"long-".repeat(20), None), true, unauthorized(99), "@upstream_unauthorized"),
    ] {
        let mut bench = Bench::new();
        bench.engine.know(&endpoint(), facts);
        if !is_well {
            bench.see(Observation::ProbeTimedOut);
        }
        bench.signal(signal);
        let fingerprint = bench
            .engine
            .incidents()
            .find(|incident| incident.fault == Some(Fault::B3))
            .map(|incident| incident.fingerprint.clone());
        let category = &bench.engine.tables.fault(Fault::B3).category;
        assert_eq!(fingerprint, Some(format!("{category}{expected}")));
    }
    // A provider that makes up statuses makes up no fingerprints.
    let statuses: std::collections::BTreeSet<String> = (0..1_000)
        .map(|status| {
            let signal = signal(Observation::UpstreamServerError).value(status);
            words::fingerprint(Some(Bench::new().engine.tables.fault(Fault::B2)), &signal, 1, None)
        })
        .collect();
    assert!(statuses.len() < 20, "{statuses:?}");
}

#[test]
fn what_helped_with_one_provider_is_tried_with_another_and_judged_apart() {
    let mut bench = Bench::with(Policy { tier3_enabled: false, ..Policy::default() });
    let others: [EndpointId; 2] = ["a".parse().expect("an id"), "b".parse().expect("an id")];
    for (id, backend) in others.iter().zip(["chat-completions", "anthropic-messages"]) {
        bench.engine.know(id, Facts { backend: backend.to_owned(), ..Facts::default() });
    }
    let learned = |fingerprint: &str, helped| {
        let mut patterns = Patterns::default();
        patterns.learn(START, fingerprint, None, Action::ClearSchemaCache, "tier3_ai", helped);
        patterns.iter().cloned().collect::<Vec<_>>()
    };
    for known in learned("upstream_nonsense@chat_completions", true) {
        bench.engine.add_pattern(known);
    }
    let fail = |bench: &mut Bench, id: &EndpointId, helps: bool| {
        let before = bench.acts().len();
        bench.signal(Signal::of(Observation::UpstreamNonsense, id));
        bench.pass(CANCEL_WITHIN_MS);
        if bench.acts().len() > before {
            let outcome = if helps { Outcome::Helped } else { Outcome::DidNotHelp("no".to_owned()) };
            bench.outcome(outcome);
        }
        bench.signal(Signal::of(Observation::UpstreamGood, id));
        bench.pass(3_600_000);
        bench.acts().len() - before
    };
    for _ in 0..4 {
        assert_eq!(fail(&mut bench, &others[0], true), 1);
    }
    assert_eq!(fail(&mut bench, &others[1], false), 1, "the failure alone is known");
    assert_eq!(fail(&mut bench, &others[1], false), 1, "one failure is little");
    assert_eq!(fail(&mut bench, &others[1], false), 0, "here it does not help");
    assert_eq!(fail(&mut bench, &others[0], true), 1, "there it still does");
}

#[test]
fn a_persons_patterns_hold_at_each_start_and_when_the_file_changes() {
    let embedded = IncidentTables::embedded();
    let id = "server_error+repeat_3x";
    let (fix, stated) =
        embedded.patterns.iter().find(|row| row.id == id).map(|row| (row.fix, row.success_count)).expect("it is there");
    let stated = u64::from(stated);
    let with = |success_count, fail_count| {
        let mut tables = embedded.clone();
        for row in tables.patterns.iter_mut().filter(|row| row.id == id) {
            (row.success_count, row.fail_count) = (success_count, fail_count);
        }
        tables
    };
    let mut bench = Bench::new();
    bench.pass(1);
    bench.engine.patterns.learn(START, id, None, fix, "tier1_rule", true);
    assert_eq!(known(&bench, id, fix), Some((stated + 1, 0)));

    // Another supervisor, whose person has written a file meanwhile.
    bench.engine.tables = with(0, 7);
    bench.restart();
    assert_eq!(known(&bench, id, fix), Some((1, 7)));
    bench.restart();
    assert_eq!(known(&bench, id, fix), Some((1, 7)), "once");
    let revision = bench.engine.revision();
    bench.engine.set_tables(with(10, 0));
    assert_eq!(known(&bench, id, fix), Some((11, 0)));
    assert!(bench.engine.revision() > revision, "it is to be kept");
    bench.engine.set_tables(embedded.clone());
    assert_eq!(known(&bench, id, fix), Some((stated + 1, 0)), "what was seen is there");

    // One that learns late what the former one has kept.
    let mut late = Bench::of(Engine::new(with(0, 7), Policy::default()));
    late.engine.adopt(START, bench.engine.export());
    assert_eq!(known(&late, id, fix), Some((1, 7)));

    // What an earlier version has kept has no circumstances, and does not say what was stated.
    let mut text = serde_json::to_value(bench.engine.export()).expect("it can be written");
    text["version"] = 1.into();
    for known in text["patterns"].as_array_mut().expect("a list") {
        known.as_object_mut().expect("an object").remove("stated");
    }
    let saved: Saved = serde_json::from_value(text).expect("it can be read");
    let earlier = Bench::of(Engine::restore(with(0, 7), Policy::default(), START, saved));
    assert_eq!(known(&earlier, id, fix), Some((1, 7)));
}

#[test]
fn a_learned_fix_climbs_the_ladder_also_after_what_the_worker_does_by_itself() {
    let mut bench = Bench::with(Policy { tier3_enabled: false, ..Policy::default() });
    let mut patterns = Patterns::default();
    for _ in 0..9 {
        patterns.learn(START, "connection_reset", None, Action::ClearSchemaCache, "tier3_ai", true);
    }
    let known = patterns.iter().next().expect("one").clone();
    bench.engine.add_pattern(known);
    for _ in 0..360 {
        let before = bench.acts().len();
        bench.signal(signal(Observation::UpstreamReset).value(0));
        bench.pass(10_000);
        if bench.acts().len() > before {
            bench.outcome(Outcome::Helped);
        }
        if bench.notices().iter().any(|notice| notice.text.contains("after 3 attempts")) {
            break;
        }
    }
    assert_eq!(bench.actions(), [Action::ClearSchemaCache; 3]);
    assert!(bench.notices().last().expect("told").text.contains("after 3 attempts"), "{:?}", bench.notices());
}

#[test]
fn modes_observe_and_ask() {
    let mut bench =
        Bench::rules("[[rule]]\nid = 'proxy_health_fail'\nfault = 'A1'\ndo = ['restart_proxy']\nmode = 'observe'\n");
    bench.see(Observation::WorkerKilled);
    bench.pass(60_000);
    assert_eq!((bench.actions(), bench.notices()), (vec![], vec![]));
    assert_eq!(bench.incident().attempts[0].state, AttemptState::WouldHave);

    let mut bench =
        Bench::rules("[[rule]]\nid = 'proxy_health_fail'\nfault = 'A1'\ndo = ['restart_proxy']\nmode = 'ask'\n");
    bench.see(Observation::WorkerKilled);
    bench.pass(60_000);
    assert_eq!(bench.actions(), []);
    let asks = bench.notices()[0].asks.expect("it asks");
    assert!(bench.engine.approve(bench.now, asks));
    bench.drain();
    assert_eq!(bench.actions(), [Action::RestartProxy]);

    let mut bench =
        Bench::rules("[[rule]]\nid = 'proxy_health_fail'\nfault = 'A1'\ndo = ['restart_proxy']\nmode = 'off'\n");
    bench.see(Observation::WorkerKilled);
    bench.pass(60_000);
    assert_eq!(bench.seen, []);
}

#[test]
fn switched_off_it_only_writes_down() {
    let mut bench = Bench::with(Policy { enabled: false, ..Policy::default() });
    for what in Observation::ALL {
        bench.see(*what);
    }
    bench.pass(3_600_000);
    assert!(bench.seen.iter().all(|directive| matches!(directive, Directive::Record(_))), "{:?}", bench.seen);
    assert!(!bench.seen.is_empty());
}

#[test]
fn a_storm_is_one_incident() {
    let mut bench = Bench::new();
    for _ in 0..10_000 {
        bench.signal(
            signal(Observation::UpstreamUnauthorized).value(401).detail("invalid_api_key sk-proj-abcdefghijklmnop"),
        );
        bench.now += 1;
    }
    bench.pass(2_000);
    assert_eq!(bench.notices().len(), 1);
    let notice = &bench.notices()[0];
    assert_eq!(notice.action, Some(Action::AlertUserBadKey));
    assert!(notice.text.contains("[redacted]") && !notice.text.contains("abcdefgh"), "{}", notice.text);
    assert_eq!(bench.incident().n_signals, 10_000);
    assert!(bench.seen.len() < 30, "{}", bench.seen.len());
}

#[test]
fn memory_over_the_limit_and_memory_that_will_be() {
    let mut bench = Bench::new();
    for n in 0..60 {
        bench.signal(signal(Observation::WorkerMemory).value((100 + n * 10) << 20).limit(1 << 30));
        bench.pass(5_000);
        if let Some(act) = bench.acts().first() {
            assert_eq!(act.because, "rule `proxy_memory_rising`");
            break;
        }
    }
    assert_eq!(bench.actions(), [Action::RestartProxy]);
    bench.outcome(Outcome::Done);
    bench.signal(signal(Observation::WorkerMemory).value(700 << 20).limit(1 << 30));
    assert_eq!(bench.incident().state, IncidentState::Open, "the same worker, below its limit still");
    bench.see(Observation::WorkerReady);
    bench.signal(signal(Observation::WorkerMemory).value(50 << 20).limit(1 << 30));
    assert_eq!(bench.incident().state, IncidentState::Resolved);
}

#[test]
fn a_lasting_state_needs_no_new_directive_after_a_restart() {
    let mut bench = Bench::new();
    bench.see(Observation::FactsCorrupt);
    bench.restart();
    let incident = bench.incident();
    assert_eq!((incident.state, incident.attempts[0].state), (IncidentState::Lapsed, AttemptState::Superseded));
    bench.pass(60_000);
    assert_eq!(bench.actions(), [], "what was planned before is not carried out after");
    bench.see(Observation::RegistryStale);
    assert!(bench.incident().id > incident.id, "numbers go on");
}

#[test]
fn what_was_known_is_put_together_with_what_was_seen_before_it_could_be_read() {
    let mut earlier = Bench::new();
    for _ in 0..4 {
        earlier.see(Observation::WorkerKilled);
        earlier.outcome(Outcome::Done);
        earlier.see(Observation::WorkerReady);
    }
    earlier.see(Observation::FactsCorrupt); // planned when it was killed
    let saved = earlier.engine.export();
    let last_known = earlier.engine.next_action - 1;

    let mut bench = Bench::new();
    bench.now = earlier.now + 1_000;
    bench.see(Observation::WorkerKilled);
    let under_way = bench.acts()[0].id;
    bench.see(Observation::RegistryStale);
    let planned = bench.engine.pending().next().expect("it is planned").1.id;
    bench.seen.clear();
    let renumbered = bench.engine.adopt(bench.now, saved);
    bench.drain();

    let closed = bench.incident();
    assert_eq!((closed.id, closed.state), (IncidentId(2), IncidentState::Lapsed), "what was open before is closed");
    assert_eq!(closed.attempts[0].state, AttemptState::Superseded);
    let numbers: Vec<u64> =
        bench.engine.incidents().flat_map(|incident| &incident.attempts).map(|attempt| attempt.id.0).collect();
    assert!(numbers.iter().all(|number| *number > last_known) && numbers.len() == 2, "{numbers:?}");
    assert!(bench.engine.cancel(bench.now, planned), "its former number is understood");
    assert!(bench.engine.outcome(bench.now, under_way, Outcome::Done));
    bench.see(Observation::WorkerReady);
    let known = bench.engine.patterns.get("proxy_dead", Action::RestartProxy).expect("it was learned");
    assert_eq!(known.success_count, 5, "on top of what was known");
    let (incident, attempt) = bench.engine.attempt(under_way).expect("it is there");
    assert_eq!(attempt.state, AttemptState::Helped);
    let mut recorded = Incident { id: IncidentId(1), ..incident.clone() };
    recorded.attempts[0].id = under_way;
    renumbered.apply(&mut recorded);
    assert_eq!(recorded, *incident);

    bench.pass(40_000);
    bench.see(Observation::WorkerKilled);
    assert!(bench.notices().last().expect("told").text.contains("5 restarts"), "both have counted: {:?}", bench.seen);
}
