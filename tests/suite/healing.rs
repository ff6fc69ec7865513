//! Everything of ours is killed under a running Codex and nobody is there to start it again: Codex itself brings it
//! back, because its provider's `auth.command` is `codexctl token`, which wakes what sleeps.

use std::time::{Duration, Instant};

use codex_control::process::Process;
use codex_control::rpc::EndpointState;
use e2e::codex::{self, Run};
use e2e::home::{DEADLINE, PROVIDER_KEY, SandboxHome};
use e2e::provider::{End, FakeProvider, Script, Step, When};
use e2e::until::until;
use rustix::process::Signal;

/// Variable with the number of tasks to kill everything under, and their number without it; scripts/heal.sh sets it.
const ROUNDS: (&str, u32) = ("E2E_HEAL_ROUNDS", 2);
/// Longest time from the kill to the next request at the provider. Codex tries again after 0.2 s and asks
/// `codexctl token` first; the rest is for a machine that is busy with other tests.
const HEALED_WITHIN: Duration = Duration::from_secs(10);

fn rounds() -> u32 {
    std::env::var(ROUNDS.0).map_or(ROUNDS.1, |text| text.parse().expect("a number of rounds"))
}

/// Kills the supervisor and its worker in one breath; gives the moment.
fn kill_everything(home: &SandboxHome) -> Instant {
    let worker = home.endpoint("scripted").worker_pid.expect("a running endpoint has a worker");
    let worker = Process::open(worker).expect("the worker lives");
    home.kill_supervisor();
    assert!(worker.signal(Signal::KILL).expect("the worker is ours"));
    let killed_at = Instant::now();
    until("the end of the worker", DEADLINE, || worker.has_ended().then_some(()));
    killed_at
}

/// Checks that the same address is served again by other processes, and ends them: no test program is their parent.
fn end_the_healed(home: &SandboxHome, address: std::net::SocketAddr, killed_pid: Option<u32>) {
    let healed = home.wait_state("scripted", EndpointState::Running);
    assert_eq!(healed.address, Some(address), "Codex knows no other address");
    assert_ne!(Some(home.status().pid), killed_pid);
    home.ctl(&["stop"]).ok();
    home.assert_nothing_left();
}

#[test]
fn codex_brings_us_back_in_the_middle_of_an_answer() {
    let mut times = Vec::new();
    for _ in 0..rounds() {
        let provider = FakeProvider::start(
            Script::new()
                .key(PROVIDER_KEY)
                .turn(When::user("Write."), [Step::text("I will write"), Step::hold("killed")])
                .turn(
                    When::user("Write."),
                    [Step::text("I will write it."), Step::shell("echo written >> file.txt; echo done-one")],
                )
                .turn(When::tool("done-one"), [Step::text("It is written.")]),
        );
        let home = SandboxHome::with_provider(&provider);
        let (address, killed_pid) = (home.address("scripted"), home.supervisor_pid());
        let codex = home.start_exec(&["Write."]);
        provider.wait_held("killed", codex::DEADLINE);
        let killed_at = kill_everything(&home);
        provider.wait_requests(2, codex::DEADLINE);
        times.push(killed_at.elapsed());
        let run = Run::finish(codex);
        assert_eq!(run.code, 0, "{}", run.shown());
        assert_eq!(run.answer(), "It is written.", "{}", run.shown());
        assert!(!run.stdout.contains("waiting for network"), "{}", run.shown());
        assert_eq!(home.read("work/file.txt"), "written\n", "the command ran once");
        provider.wait_ended(codex::DEADLINE);
        let ends: Vec<_> = provider.assert_played().iter().map(|request| request.end).collect();
        assert_eq!(ends, [End::ClientGone, End::Complete, End::Complete].map(Some));
        end_the_healed(&home, address, killed_pid);
    }
    times.sort();
    println!("from the kill to the next request at the provider, {} times: {times:?}", times.len());
    // How long a busy machine keeps six processes waiting says nothing about us; each was waited for at least.
    assert!(times[0] < HEALED_WITHIN, "{times:?}");
}

#[test]
fn codex_brings_us_back_between_two_requests_and_says_nothing() {
    for _ in 0..rounds() {
        let provider = FakeProvider::start(
            Script::new()
                .key(PROVIDER_KEY)
                .turn(When::user("Wait."), [Step::shell("until [ -e go ]; do sleep 0.02; done; echo went")])
                .turn(When::tool("went"), [Step::text("It went.")]),
        );
        let home = SandboxHome::with_provider(&provider);
        let (address, killed_pid) = (home.address("scripted"), home.supervisor_pid());
        let codex = home.start_exec(&["Wait."]);
        home.wait_answered(1);
        kill_everything(&home);
        home.write("work/go", "");
        let run = Run::finish(codex);
        run.assert_clean(&provider);
        assert_eq!(run.answer(), "It went.");
        end_the_healed(&home, address, killed_pid);
    }
}

#[test]
fn a_rotated_token_reaches_a_codex_that_runs() {
    let provider = FakeProvider::start(
        Script::new()
            .key(PROVIDER_KEY)
            .turn(When::user("Wait."), [Step::shell("until [ -e go ]; do sleep 0.02; done; echo went")])
            .turn(When::tool("went"), [Step::text("It went.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let worker_pid = home.endpoint("scripted").worker_pid;
    let (address, before) = (home.address("scripted"), format!("Bearer {}", home.token("scripted")));
    let status = |bearer: &str| {
        e2e::http::request(address, "GET", "/v1/models", &[("authorization", bearer)], b"").expect("it answers").status
    };
    // A Codex that does not ask for the token by itself: only a refusal can tell it.
    let never = "model_providers.supervised.auth.refresh_interval_ms=3600000";
    let codex = home.start_exec(&["-c", never, "Wait."]);
    until("the end of the first answer", codex::DEADLINE, || provider.requests().first()?.end);
    home.ctl(&["token", "--rotate", "scripted"]).ok();
    let between = format!("Bearer {}", home.token("scripted"));
    assert_eq!([&before, &between].map(|bearer| status(bearer)), [200, 200], "both are good for a while");
    home.ctl(&["token", "--rotate", "--now", "scripted"]).ok();
    let now = format!("Bearer {}", home.token("scripted"));
    assert_eq!([&now, &before, &between].map(|bearer| status(bearer)), [200, 401, 401], "only the newest is good");
    home.write("work/go", "");
    let run = Run::finish(codex);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "It went.");
    assert_eq!(home.endpoint("scripted").worker_pid, worker_pid, "nothing was restarted");
}
