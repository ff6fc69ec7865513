//! Codex under its launcher: who runs, what it uses, and that all it leaves behind is ended, and nothing else.

#![expect(clippy::unwrap_used, reason = "these functions are the bodies of tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use codex_control::process::Process;
use codex_control::rpc::EndpointState;
use codex_control::session::{Kind, Status};
use e2e::home::{DEADLINE, PROVIDER_KEY, Running, SandboxHome, binary};
use e2e::provider::{FakeProvider, Script, Step, When};
use e2e::strangers::look_alike;
use e2e::until::until;
use e2e::{codex, http, leftovers};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A Codex that starts `$N` helpers, in every way there is to get out of sight: as children, in sessions of their own,
/// with their parent gone, and deaf to TERM. Then it waits to be ended.
const STAND_IN: &str = r#"#!/bin/sh
i=0
while [ "$i" -lt "$N" ]; do
  case $((i % 4)) in
    0) sleep 86400 & ;;
    1) setsid sleep 86400 & ;;
    2) (setsid sh -c 'sleep 86400 & wait' &) ;;
    3) (setsid sh -c 'trap "" TERM; while :; do sleep 86400; done' &) ;;
  esac
  i=$((i + 1))
done
trap 'exit 0' TERM
echo started >&2
while :; do sleep 0.05; done
"#;
/// Helpers in the suite; `scripts/processes.sh` asks for more.
const HELPERS: &str = "CODEX_SUPERVISOR_TEST_HELPERS";
const N_HELPERS: usize = 40;
/// Time to start and to end them all on a busy machine.
const LONG: Duration = Duration::from_mins(2);

fn n_helpers() -> usize {
    std::env::var(HELPERS).ok().and_then(|n| n.parse().ok()).unwrap_or(N_HELPERS)
}

/// A home with a running endpoint whose Codex is `script`.
fn home_with(script: &str, sections: &str) -> (FakeProvider, SandboxHome) {
    let provider = FakeProvider::start(Script::new().key(PROVIDER_KEY));
    let home = SandboxHome::with_provider_and(&provider, "", sections);
    home.write("bin/codex", script);
    fs::set_permissions(home.path("bin/codex"), fs::Permissions::from_mode(0o755)).unwrap();
    (provider, home)
}

fn launch(home: &SandboxHome) -> Running {
    let mut command = home.ctl_command(&["launch", "cli"]);
    command.env("CODEX_SUPERVISOR_CODEX", home.path("bin/codex")).env("N", n_helpers().to_string());
    let running = home.spawn(command);
    until("the helpers to be started", LONG, || running.stderr().contains("started").then_some(()));
    running
}

fn sessions(home: &SandboxHome) -> Vec<Status> {
    serde_json::from_value(home.rpc("session.list", Value::Null).unwrap()).unwrap()
}

/// The one session, once it has what `look` looks for.
fn session(home: &SandboxHome, what: &str, look: impl Fn(&Status) -> bool) -> Status {
    until(what, LONG, || sessions(home).into_iter().find(|session| look(session)))
}

/// The one session of the stand-in, once all its helpers are there and were seen, and has what `look` looks for.
fn session_with_helpers(home: &SandboxHome, look: impl Fn(&Status) -> bool) -> Status {
    // Each helper is a `sleep`, or a shell that has one. It starts as another program.
    let n_asleep = || others(home).iter().filter(|command| command.trim_end() == "sleep 86400").count();
    until("all helpers to be there", LONG, || (n_asleep() == n_helpers()).then_some(()));
    session(home, "all helpers to be seen", |session| session.n_processes >= n_processes() && look(session))
}

/// The stand-in, its helpers, and those of them that are shells which have one. At times the stand-in has a `sleep` of its
/// own besides.
fn n_processes() -> usize {
    1 + n_helpers() + (0..n_helpers()).filter(|i| i % 4 >= 2).count()
}

/// Processes that look like a helper and are none.
struct Bystanders(Vec<Child>);

impl Bystanders {
    fn start() -> Self {
        // The second becomes `sleep`, in a session of its own.
        let lines: [&[&str]; 2] = [&["sleep", "86400"], &["setsid", "sleep", "86400"]];
        let start = |line: &&[&str]| Command::new(line[0]).args(&line[1..]).stdin(Stdio::null()).spawn().unwrap();
        Self(lines.iter().map(start).collect())
    }

    /// Ends them, who must all have lived so far.
    fn assert_alive(mut self) {
        for child in &mut self.0 {
            assert!(child.try_wait().unwrap().is_none(), "a bystander was ended");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// What runs in the home beside the supervisor and its worker.
fn others(home: &SandboxHome) -> Vec<String> {
    let ours = ["codex-supervisor", "codex-worker"];
    let all = leftovers::processes(&home.path("home"));
    let other = all.into_iter().filter(|left| !left.process.has_ended());
    other.map(|left| left.command).filter(|command| !ours.iter().any(|name| command.contains(name))).collect()
}

fn pid_of(running: &Running) -> Process {
    Process::open(running.id()).unwrap()
}

#[test]
fn all_that_codex_leaves_is_ended_and_bystanders_are_not() {
    let (_provider, home) = home_with(STAND_IN, "");
    let bystanders = Bystanders::start();
    let running = launch(&home);
    // Their memory and what they say are looked at apart from who they are.
    let session = session_with_helpers(&home, |session| {
        session.last_line.is_some() && session.memory_bytes.is_some_and(|bytes| bytes > 1_000_000)
    });
    assert!(others(&home).len() > n_helpers());
    assert_eq!((session.kind, session.endpoint.as_ref().unwrap().as_str()), (Kind::Cli, "scripted"));
    assert_eq!(session.last_line.as_deref(), Some("started"));
    assert!(pid_of(&running).signal(Signal::TERM).unwrap());
    assert_eq!(running.finish(LONG).code(), 0);
    assert_eq!(others(&home), [""; 0]);
    assert_eq!(sessions(&home), []);
    bystanders.assert_alive();
    home.stop();
    home.assert_nothing_left();
}

#[test]
fn the_supervisor_ends_what_is_left_when_the_launcher_was_killed() {
    let (_provider, home) = home_with(STAND_IN, "");
    let bystanders = Bystanders::start();
    let running = launch(&home);
    let session = session_with_helpers(&home, |_| true);
    let codex = Process::open(session.pid.unwrap()).unwrap();
    assert!(pid_of(&running).signal(Signal::KILL).unwrap());
    running.finish(DEADLINE);
    assert!(!codex.has_ended(), "it goes on without its launcher");
    // Of the helpers most are below nobody of ours now, and are not forgotten when it is looked at the next time: that
    // is when another worker is there, whose memory is not known.
    let generation = home.endpoint("scripted").generation;
    home.rpc("endpoint.restart", json!({ "id": "scripted" })).expect("it can be restarted");
    until("another look", DEADLINE, || {
        let now = home.endpoint("scripted");
        (now.generation > generation && now.memory_bytes.is_some()).then_some(())
    });
    let now = sessions(&home);
    assert!(now.len() == 1 && now[0].n_processes >= n_processes(), "{now:?}");
    assert!(codex.signal(Signal::TERM).unwrap());
    until("the session to be forgotten", LONG, || sessions(&home).is_empty().then_some(()));
    assert_eq!(others(&home), [""; 0]);
    bystanders.assert_alive();
    home.stop();
    home.assert_nothing_left();
}

#[test]
fn a_session_is_known_to_the_next_supervisor() {
    let (_provider, home) = home_with(STAND_IN, "");
    let running = launch(&home);
    let before = session_with_helpers(&home, |_| true);
    home.kill_supervisor();
    home.start();
    let after = session(&home, "the session", |session| session.pid == before.pid);
    assert_eq!((&after.id, &after.endpoint, after.started_at_ms), (&before.id, &before.endpoint, before.started_at_ms));
    // Both end at once: nobody is there to see it but the next supervisor.
    home.wait_state("scripted", EndpointState::Running);
    home.kill_supervisor();
    let codex = Process::open(before.pid.unwrap()).unwrap();
    assert!(pid_of(&running).signal(Signal::KILL).unwrap());
    assert!(codex.signal(Signal::KILL).unwrap());
    running.finish(DEADLINE);
    home.start();
    until("the session to be forgotten", LONG, || sessions(&home).is_empty().then_some(()));
    assert_eq!(others(&home), [""; 0]);
    home.stop();
    home.assert_nothing_left();
}

#[test]
fn a_session_goes_on_while_the_supervisor_is_stopped() {
    let (_provider, home) = home_with(STAND_IN, "");
    let bystanders = Bystanders::start();
    let running = launch(&home);
    let before = session_with_helpers(&home, |_| true);
    home.stop();
    home.start();
    let after = sessions(&home);
    assert_eq!(after.len(), 1, "it is known at once, not when its launcher reports");
    assert_eq!((&after[0].id, after[0].pid, after[0].started_at_ms), (&before.id, before.pid, before.started_at_ms));
    // Both end while there is no supervisor, and leave everything.
    home.stop();
    let codex = Process::open(before.pid.unwrap()).unwrap();
    assert!(pid_of(&running).signal(Signal::KILL).unwrap());
    assert!(codex.signal(Signal::KILL).unwrap());
    running.finish(DEADLINE);
    assert!(others(&home).len() >= n_helpers());
    home.start();
    until("the session to be forgotten", LONG, || sessions(&home).is_empty().then_some(()));
    assert_eq!(others(&home), [""; 0]);
    bystanders.assert_alive();
    home.stop();
    assert!(
        !home.paths().registry().exists() && !home.paths().left_sessions().exists(),
        "nothing has to be remembered"
    );
    home.assert_nothing_left();
}

#[test]
fn codex_over_its_limit_is_told() {
    // `tail` keeps what it is to print until its input ends.
    let script = "#!/bin/sh\n(head -c 60000000 /dev/zero; sleep 86400) | tail -c 60000000 > /dev/null &\n\
                  trap 'exit 0' TERM; echo started >&2; while :; do sleep 0.05; done\n";
    let (_provider, home) = home_with(script, "[codex]\nmemory_bytes_max = 33554432\n");
    let running = launch(&home);
    // It is over its limit before it has all that it is going to use.
    session(&home, "the alert, and all of the memory to be seen", |session| {
        session.problem.is_some() && session.memory_bytes.is_some_and(|bytes| bytes > 60_000_000)
    });
    let shown = home.ctl(&["status"]).ok();
    assert!(shown.contains("more than 32 MiB") && shown.contains("resume --last"), "{shown}");
    assert!(pid_of(&running).signal(Signal::TERM).unwrap());
    assert_eq!(running.finish(LONG).code(), 0);
}

#[test]
fn the_real_codex_is_watched_and_its_words_are_heard() {
    let provider = FakeProvider::start(
        Script::new()
            .key(PROVIDER_KEY)
            .turn(When::user("Say hello."), [Step::text("Hel"), Step::hold("gate"), Step::text("lo")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let running = home.start_exec(&["Say hello."]);
    provider.wait_held("gate", DEADLINE);
    let session = session(&home, "Codex", |session| session.memory_bytes.is_some() && session.n_lines > 0);
    let program = fs::read_link(format!("/proc/{}/exe", session.pid.unwrap())).unwrap();
    assert!(program.ends_with("node") || program.ends_with("codex"), "{}", program.display());
    assert!(home.ctl(&["status"]).ok().contains(session.id.as_str()));
    provider.release("gate");
    codex::Run::finish(running).assert_ended_well();
    until("the session to end", DEADLINE, || sessions(&home).is_empty().then_some(()));
}

/// Numbers that are given to another process; `scripts/processes.sh` asks for more.
const REUSES: &str = "CODEX_SUPERVISOR_TEST_REUSES";
const N_REUSES: u64 = 200;
/// Of those, each of so many is a worker's whose supervisor was killed.
const REUSES_PER_WORKER: u64 = 50;

#[test]
fn a_number_given_to_another_process_means_nobody() {
    let in_namespace = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command
    };
    if !in_namespace().arg("true").output().is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "numbers must be given to other processes in CI");
        eprintln!("skipped: no namespace of processes is to be had");
        return;
    }
    let times = std::env::var(REUSES).ok().and_then(|n| n.parse().ok()).unwrap_or(N_REUSES);
    let workers = times / REUSES_PER_WORKER;
    let mut command = in_namespace();
    command.arg(binary("pid-reuse")).args([times.to_string(), workers.to_string()]).env("E2E_NO_BUILD", "1");
    let output = command.output().unwrap();
    let shown = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {shown}", output.status);
    let counts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&counts["reused"], &counts["workers"]), (&times.into(), &workers.into()));
    assert!(counts["same_tick"].as_u64().unwrap() > 0, "the hard case did not come up: {shown}");
    println!("{shown}");
}

#[test]
fn a_damaged_registry_is_written_anew_and_nothing_is_doubled_or_killed() {
    let (_provider, home) = home_with(STAND_IN, "");
    let path = home.paths().registry();
    let whole = fs::read(&path).unwrap();
    // The bytes themselves are gone through beside the code; this is what follows.
    for damage in [&[][..], &whole[..whole.len() / 2], b"not json", &whole[..whole.len() - 1]] {
        let before = home.wait_state("scripted", EndpointState::Running);
        let worker = Process::open(before.worker_pid.unwrap()).unwrap();
        // A copy that has the same arguments and dials nobody, and is none of ours.
        let mut look_alike = look_alike(&worker).unwrap().spawn().unwrap();
        home.kill_supervisor();
        fs::write(&path, damage).unwrap();
        home.start();
        // Adopted by what it says, and replaced, since nobody knows what it serves.
        let after = until("another worker", LONG, || {
            let now = home.endpoint("scripted");
            (now.state == EndpointState::Running && now.worker_pid != before.worker_pid).then_some(now)
        });
        assert_eq!(after.generation, before.generation + 1, "one was started, not two");
        assert_eq!(after.address, before.address);
        until("the end of the first", LONG, || worker.has_ended().then_some(()));
        assert!(look_alike.try_wait().unwrap().is_none(), "the bystander was ended");
        look_alike.kill().unwrap();
        look_alike.wait().unwrap();
        let registry = fs::read_to_string(&path).unwrap();
        assert!(registry.contains(&format!("\"pid\": {}", after.worker_pid.unwrap())), "{registry}");
    }
    home.stop();
    home.assert_nothing_left();
}

#[test]
fn a_worker_that_uses_much_memory_is_replaced_without_a_dropped_stream() {
    const STREAMS: usize = 12;
    let script = Script::new().key(PROVIDER_KEY).always(When::any(), [Step::hold("gate"), Step::text("whole")]);
    let provider = FakeProvider::start(script);
    let home = SandboxHome::with_provider_and(&provider, "", "[daemon]\nworker_memory_bytes_max = 25165824\n");
    let before = home.endpoint("scripted");
    // As long as an answer has not begun its request is kept, to be made again if need be.
    let body = json!({
        "model": "scripted", "stream": true, "store": false,
        "input": [{ "type": "message", "role": "user",
            "content": [{ "type": "input_text", "text": "x".repeat(1_500_000) }] }],
    });
    let body = serde_json::to_vec(&body).unwrap();
    let (address, bearer) = (home.address("scripted"), format!("Bearer {}", home.token("scripted")));
    let post = || {
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        http::request(address, "POST", "/v1/responses", &headers, &body).unwrap().text()
    };
    std::thread::scope(|scope| {
        // One after the other: all at once they keep an unoptimized worker from showing that it is alive.
        let streams: Vec<_> = (1..=STREAMS)
            .map(|n| {
                let stream = scope.spawn(post);
                until("the provider to be asked", LONG, || (provider.requests().len() >= n).then_some(()));
                stream
            })
            .collect();
        let after = until("another worker", LONG, || {
            let now = home.endpoint("scripted");
            (now.state == EndpointState::Running && now.generation > before.generation).then_some(now)
        });
        assert_eq!(after.restarts_total, before.restarts_total, "that was no crash: {:?}", after.last_exit);
        provider.release("gate");
        for stream in streams {
            let answer = stream.join().unwrap();
            assert!(answer.contains("whole") && answer.contains("response.completed"), "{answer}");
        }
    });
}
