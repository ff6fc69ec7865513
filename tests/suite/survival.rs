//! A worker is killed under a running task: the listener stays, and Codex goes on.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use codex_control::process::Process;
use codex_control::rpc::EndpointState;
use e2e::codex::{self, Run};
use e2e::home::{DEADLINE, PROVIDER_KEY, SandboxHome};
use e2e::http;
use e2e::provider::{End, FakeProvider, Script, Step, When};
use e2e::until::until;
use rustix::process::Signal;
use serde_json::json;

/// Pause between two probes: at this rate the connections of a one-second gap still fit into the listener's backlog.
const PROBE_INTERVAL: Duration = Duration::from_millis(2);

/// What connecting again and again has shown.
#[derive(Debug, Default)]
struct Probes {
    connected: usize,
    failed: Vec<io::Error>,
}

/// Connects to `address` until `stop` is set. A refused connection is one for which nobody listens, so one failure
/// here is one that Codex could have had.
fn probe<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    address: SocketAddr,
    stop: &'scope AtomicBool,
) -> ScopedJoinHandle<'scope, Probes> {
    scope.spawn(move || {
        let mut probes = Probes::default();
        while !stop.load(Ordering::Relaxed) {
            match TcpStream::connect_timeout(&address, DEADLINE) {
                Ok(_) => probes.connected += 1,
                Err(error) => probes.failed.push(error),
            }
            thread::park_timeout(PROBE_INTERVAL);
        }
        probes
    })
}

/// Kills the worker and waits until another one serves.
fn kill_worker(home: &SandboxHome) {
    let before = home.wait_state("scripted", EndpointState::Running);
    let worker = Process::open(before.worker_pid.expect("a running endpoint has a worker")).expect("the worker lives");
    assert!(worker.signal(Signal::KILL).expect("the worker is ours"));
    until("another worker", DEADLINE, || {
        let now = home.endpoint("scripted");
        (now.state == EndpointState::Running && now.worker_pid != before.worker_pid).then_some(())
    });
}

#[test]
fn a_task_completes_though_each_of_its_streams_is_killed_once() {
    let provider = FakeProvider::start(
        Script::new()
            .key(PROVIDER_KEY)
            .turn(When::user("Write."), [Step::text("I will write"), Step::hold("one")])
            .turn(
                When::user("Write."),
                [Step::text("I will write it."), Step::shell("echo written >> file.txt; echo done-one")],
            )
            .turn(When::tool("done-one"), [Step::reasoning("It went"), Step::hold("two")])
            .turn(When::tool("done-one"), [Step::shell("echo again >> file.txt; echo done-two")])
            .turn(When::tool("done-two"), [Step::text("Both lines are"), Step::hold("three")])
            .turn(When::tool("done-two"), [Step::text("Both lines are there.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let probes = probe(scope, home.address("scripted"), &stop);
        let codex = home.start_exec(&["Write."]);
        for gate in ["one", "two", "three"] {
            provider.wait_held(gate, codex::DEADLINE);
            kill_worker(&home);
        }
        let run = Run::finish(codex);
        stop.store(true, Ordering::Relaxed);
        let probes = probes.join().expect("the probe does not panic");
        // Codex says that it reconnects, since a stream was open; it does so without finding a closed port.
        assert_eq!(run.code, 0, "{}", run.shown());
        assert!(!run.stderr.contains("refused") && !run.stdout.contains("waiting for network"), "{}", run.shown());
        assert_eq!(run.answer(), "Both lines are there.", "{}", run.shown());
        assert_eq!(home.read("work/file.txt"), "written\nagain\n", "each command ran once");
        assert!(probes.failed.is_empty() && probes.connected > 100, "{probes:?}");
        println!("{} connections during three kills, none refused", probes.connected);
    });
    provider.wait_ended(DEADLINE);
    let requests = provider.assert_played();
    let ends: Vec<_> = requests.iter().map(|request| request.end).collect();
    assert_eq!(ends, [End::ClientGone, End::Complete].repeat(3).into_iter().map(Some).collect::<Vec<_>>());
    assert_eq!(home.endpoint("scripted").restarts_total, 3);
}

/// The connection waits at the old worker, which has been told to end; its request comes after that.
#[test]
fn who_has_just_connected_to_a_worker_that_is_replaced_is_answered() {
    let provider =
        FakeProvider::start(Script::new().key(PROVIDER_KEY).always(When::user("Late."), [Step::text("Not too late.")]));
    let home = SandboxHome::with_provider(&provider);
    let before = home.wait_state("scripted", EndpointState::Running);
    let mut connection = TcpStream::connect(home.address("scripted")).expect("the endpoint listens");
    until("the worker to accept it", DEADLINE, || {
        (home.endpoint("scripted").counters.connections_open > 0).then_some(())
    });
    // Ready before: whoever is to end waits two seconds for the request, no longer.
    let body = json!({ "model": "scripted", "stream": true, "input": "Late." }).to_string();
    let head = format!(
        "POST /v1/responses HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        home.address("scripted"),
        home.token("scripted"),
        body.len()
    );
    let request = (head + &body).into_bytes();
    home.rpc("endpoint.restart", json!({ "id": "scripted" })).expect("it can be restarted");
    until("the next worker", DEADLINE, || {
        let now = home.endpoint("scripted");
        (now.state == EndpointState::Running && now.generation > before.generation).then_some(())
    });
    connection.write_all(&request).expect("the connection is open");
    connection.set_read_timeout(Some(DEADLINE)).expect("the time is not zero");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("it is answered to the end");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("response.completed"), "{answer}");
}

#[test]
fn a_kill_between_two_requests_is_not_noticed_at_all() {
    let provider = FakeProvider::start(
        Script::new()
            .key(PROVIDER_KEY)
            .turn(When::user("Wait."), [Step::shell("touch begun; until [ -e go ]; do sleep 0.02; done; echo went")])
            .turn(When::tool("went"), [Step::text("It went.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let codex = home.start_exec(&["Wait."]);
    // Codex begins what it is told to do before the answer has ended.
    until("the command", codex::DEADLINE, || home.path("work/begun").exists().then_some(()));
    home.wait_answered(1);
    kill_worker(&home);
    home.write("work/go", "");
    let run = Run::finish(codex);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "It went.");
}

/// A worker that drains does not dial in any more, so a supervisor that comes after its own has only signals for it.
#[test]
fn a_stream_of_a_replaced_worker_is_ended_properly_by_another_supervisor() {
    let script = Script::new().key(PROVIDER_KEY).turn(When::user("Go on."), [Step::text("And on"), Step::hold("on")]);
    let provider = FakeProvider::start(script);
    let home = SandboxHome::with_provider(&provider);
    let before = home.wait_state("scripted", EndpointState::Running);
    let old = Process::open(before.worker_pid.expect("a running endpoint has a worker")).expect("the worker lives");
    let body = json!({ "model": "scripted", "stream": true, "input": "Go on." }).to_string();
    let (address, bearer) = (home.address("scripted"), format!("Bearer {}", home.token("scripted")));
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let answer = thread::scope(|scope| {
        let asking = scope.spawn(|| http::request(address, "POST", "/v1/responses", &headers, body.as_bytes()));
        provider.wait_held("on", DEADLINE);
        home.rpc("endpoint.restart", json!({ "id": "scripted" })).expect("it can be restarted");
        until("the next worker", DEADLINE, || {
            let now = home.endpoint("scripted");
            (now.state == EndpointState::Running && now.generation > before.generation).then_some(())
        });
        until("the drain", DEADLINE, || home.logs().contains("a worker is to end").then_some(()));
        home.kill_supervisor();
        home.start();
        home.wait_state("scripted", EndpointState::Running);
        assert!(!old.has_ended() && !asking.is_finished(), "the stream goes on\n{}", home.logs());
        home.stop();
        asking.join().expect("the client does not panic").expect("the answer is whole")
    });
    assert!(old.has_ended(), "the supervisor waits for it");
    let text = answer.text();
    assert!(text.contains(r#""delta":"on""#) && text.contains("event: response.failed"), "{text}\n{}", home.logs());
    assert!(!home.logs().contains("killing a worker"), "{}", home.logs());
}
