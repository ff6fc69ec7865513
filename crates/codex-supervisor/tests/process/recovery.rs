//! A supervisor that was killed: what it leaves, and what the next one makes of it.

use std::io::{BufRead, BufReader};

use codex_control::process::Process;
use codex_control::registry::{Loaded, Registry};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::endpoint;
use crate::home::{Home, Supervisor, begin, get, wait_for};

#[test]
fn workers_and_their_streams_outlive_a_killed_supervisor() {
    const LINES: usize = 150;
    let home = Home::new(&(endpoint("a", "") + &endpoint("b", "")));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    supervisor.wake("b");
    let pids: Vec<Value> = ["a", "b"].iter().map(|id| supervisor.endpoint(id)["worker_pid"].clone()).collect();
    let mut stream = BufReader::new(begin(address, &format!("/stream/{LINES}")).unwrap());
    let mut line = String::new();
    while !line.starts_with("0 of generation 1") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0);
    }
    let mut supervisor = supervisor;
    for _ in 0..3 {
        supervisor.kill();
        assert!(get(address, "/health").unwrap().ends_with("generation 1\n"), "it serves without a supervisor");
        supervisor = home.start();
        for (id, pid) in ["a", "b"].iter().zip(&pids) {
            supervisor.wake(id);
            assert_eq!(supervisor.endpoint(id)["worker_pid"], *pid);
        }
    }
    assert_eq!(supervisor.wake("a"), address);
    let rest: Vec<String> = stream.lines().map(Result::unwrap).collect();
    let expected: Vec<String> = (1..LINES).map(|line| format!("{line} of generation 1")).collect();
    assert_eq!(rest, expected);
    // An adopted worker is supervised like any other.
    assert!(supervisor.worker("a").signal(Signal::KILL).unwrap());
    supervisor
        .wait_for_endpoint("a", "the next worker", |status| status["generation"] == 2 && status["state"] == "running");
    assert_eq!(supervisor.wake("a"), address);
    supervisor.stop();
}

#[test]
fn a_restart_that_is_asked_for_cuts_nothing_and_changes_to_other_programs() {
    const LINES: usize = 150;
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    let worker_pid = supervisor.endpoint("a")["worker_pid"].clone();
    let mut stream = BufReader::new(begin(address, &format!("/stream/{LINES}")).unwrap());
    let mut line = String::new();
    while !line.starts_with("0 of generation 1") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0);
    }
    let restart = |supervisor: Supervisor<'_>| {
        assert_eq!(supervisor.call("daemon.restart", Value::Null), Value::Null);
        // Another code than 0 makes a service manager start it again.
        assert_eq!(supervisor.wait().code(), Some(75));
    };
    restart(supervisor);
    let supervisor = home.start();
    supervisor.wake("a");
    assert_eq!(supervisor.endpoint("a")["worker_pid"], worker_pid, "the same program with the same settings goes on");
    home.replace_worker();
    restart(supervisor);
    let supervisor = home.start();
    supervisor
        .wait_for_endpoint("a", "the next worker", |status| status["generation"] == 2 && status["state"] == "running");
    assert_eq!(supervisor.wake("a"), address);
    assert_eq!(supervisor.endpoint("a")["restarts_total"], 0);
    let rest: Vec<String> = stream.lines().map(Result::unwrap).collect();
    let expected: Vec<String> = (1..LINES).map(|line| format!("{line} of generation 1")).collect();
    assert_eq!(rest, expected);
    supervisor.stop();
}

#[test]
fn a_worker_of_another_version_is_replaced_and_cuts_nothing() {
    let home = Home::new(&endpoint("a", "name = \"of other version\""));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    let old = supervisor.worker("a");
    let stream = BufReader::new(begin(address, "/outlast/50").unwrap());
    supervisor.kill();
    assert!(get(address, "/health").unwrap().ends_with("generation 1\n"), "it serves without a supervisor");
    let supervisor = home.start();
    supervisor
        .wait_for_endpoint("a", "the next worker", |status| status["generation"] == 2 && status["state"] == "running");
    assert_eq!(supervisor.wake("a"), address);
    // It has been told to drain; another supervisor on top of that changes nothing.
    wait_for("the drain", || home.log("supervisor").contains("a worker is to end").then_some(()));
    supervisor.kill();
    let supervisor = home.start();
    let lines: Vec<String> = stream.lines().map(Result::unwrap).collect();
    assert!(lines.last().unwrap().ends_with("of generation 1, the end"), "{lines:?}");
    wait_for("the end of the first", || old.has_ended().then_some(()));
    // The second speaks another version to its next supervisor, too.
    supervisor
        .wait_for_endpoint("a", "the third worker", |status| status["generation"] == 3 && status["state"] == "running");
    let log = home.log("supervisor");
    assert!(!log.contains("sending TERM") && !log.contains("killing a worker"), "none has to be forced");
    assert_eq!(supervisor.endpoint("a")["restarts_total"], 0);
    supervisor.stop();
}

#[test]
fn a_worker_program_of_another_version_is_no_crash() {
    let home = Home::new(&endpoint("other-version", ""));
    let supervisor = home.start();
    let status = supervisor.wait_for_state("other-version", "broken");
    let message = status["problem"]["message"].as_str().unwrap();
    assert!(message.ends_with("codex-worker` is of another version than the supervisor that runs"), "{message}");
    let n_started = || home.log("other-version").matches("stand-in started").count();
    assert_eq!((n_started(), &status["restarts_total"]), (1, &json!(0)));
    // The program is not tried again, another one in its place is.
    home.replace_worker();
    wait_for("the other program to be tried", || (n_started() == 2).then_some(()));
    supervisor.wait_for_state("other-version", "broken");
    supervisor.stop();
}

#[test]
fn changed_settings_replace_an_adopted_worker_by_hand_over() {
    let home = Home::new(&(endpoint("a", "") + &endpoint("gone", "")));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    supervisor.wake("gone");
    supervisor.kill();
    home.write_settings(&endpoint("a", "default_model = \"m\""));
    let supervisor = home.start();
    supervisor
        .wait_for_endpoint("a", "the next worker", |status| status["generation"] == 2 && status["state"] == "running");
    assert_eq!(supervisor.wake("a"), address);
    wait_for("what nobody wants to end", || (home.processes().len() == 2).then_some(()));
    supervisor.stop();
}

#[test]
fn a_worker_that_cannot_be_adopted_is_ended_before_another_starts() {
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    let worker = supervisor.worker("a");
    supervisor.kill();
    // After its parent's end: the kernel wakes a stopped process whose parent dies.
    assert!(worker.signal(Signal::STOP).unwrap());
    let supervisor = home.start();
    assert_eq!(supervisor.endpoint("a")["state"], "starting");
    assert_eq!(supervisor.wake("a"), address);
    assert_eq!(supervisor.endpoint("a")["generation"], 2);
    assert!(worker.has_ended());
    supervisor.stop();
}

#[test]
fn a_crash_loop_does_not_begin_anew_with_the_next_supervisor() {
    let home = Home::new(&(endpoint("a", "name = \"crash\"") + &endpoint("b", "")));
    let supervisor = home.start();
    supervisor.wait_for_state("a", "broken");
    supervisor.wake("b");
    supervisor.kill();
    let supervisor = home.start();
    supervisor.wake("b");
    let status = supervisor.endpoint("a");
    assert_eq!(
        (&status["state"], &status["worker_pid"], &status["restarts_total"]),
        (&json!("broken"), &Value::Null, &json!(0))
    );
    let message = "the worker of endpoint `a` keeps ending; it is tried again every 30 s";
    assert_eq!(status["problem"]["message"], message);
    let answer = get(crate::home::address(&status), "/v1/responses").unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(message), "{answer}");
    assert_eq!(supervisor.endpoint("b")["generation"], 1, "it is another's loop");
    // Who asks for a restart wants it to be tried.
    supervisor.call("daemon.restart", Value::Null);
    assert_eq!(supervisor.wait().code(), Some(75));
    let supervisor = home.start();
    supervisor.wait_for_endpoint("a", "tries", |status| status["restarts_total"].as_u64() >= Some(2));
    supervisor.wait_for_state("a", "broken");
    supervisor.kill();
    // So does who changes it while nobody looks.
    home.write_settings(&(endpoint("a", "name = \"mended\"") + &endpoint("b", "")));
    let supervisor = home.start();
    supervisor.wake("a");
    supervisor.stop();
}

#[test]
fn a_registry_that_names_a_stranger_harms_nobody() {
    let mut bystander = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    supervisor.wake("a");
    supervisor.kill();
    let path = home.runtime("registry.json");
    let Loaded::Good(mut registry) = Registry::load(&path) else { panic!("there is a registry") };
    let worker = Process::open_identity(&registry.workers[0].identity).unwrap();
    assert!(worker.signal(Signal::KILL).unwrap());
    wait_for("the worker to end", || worker.has_ended().then_some(()));
    // The number is somebody else's now, as after a reuse.
    registry.workers[0].identity.pid = bystander.id();
    registry.store(&path).unwrap();
    let supervisor = home.start();
    supervisor.wake("a");
    supervisor.stop();
    assert_eq!(bystander.try_wait().unwrap(), None, "the bystander lives");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn a_worker_that_is_not_written_down_is_found_and_not_doubled() {
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    let first = supervisor.worker("a");
    let path = home.runtime("registry.json");
    let older = std::fs::read(&path).unwrap();
    supervisor.call("endpoint.restart", json!({ "id": "a" }));
    supervisor
        .wait_for_endpoint("a", "the next worker", |status| status["generation"] == 2 && status["state"] == "running");
    wait_for("the end of the first", || first.has_ended().then_some(()));
    let stream = BufReader::new(begin(address, "/outlast/20").unwrap());
    supervisor.kill();
    // As if nothing could be written since.
    std::fs::write(&path, older).unwrap();
    let supervisor = home.start();
    // Nobody knows what it serves, so another one takes its place, and it ends its stream.
    supervisor
        .wait_for_endpoint("a", "the next worker", |status| status["generation"] == 3 && status["state"] == "running");
    assert_eq!(supervisor.wake("a"), address);
    let last = stream.lines().map(Result::unwrap).last().unwrap();
    assert!(last.ends_with("of generation 2, the end"), "{last}");
    wait_for("one worker to be left", || (home.processes().len() == 2).then_some(()));
    supervisor.stop();
}

#[test]
fn a_registry_that_cannot_be_written_is_tried_again() {
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    supervisor.wake("a");
    let first = supervisor.worker("a");
    let path = home.runtime("registry.json");
    std::fs::remove_file(&path).unwrap();
    // Nothing can be renamed over a folder that is not empty, whoever tries.
    std::fs::create_dir_all(path.join("in the way")).unwrap();
    supervisor.call("endpoint.restart", json!({ "id": "a" }));
    wait_for("the failure", || home.log("supervisor").contains("the registry cannot be written").then_some(()));
    supervisor
        .wait_for_endpoint("a", "the next worker", |status| status["generation"] == 2 && status["state"] == "running");
    let pid = supervisor.worker("a").identity().pid;
    // The last change there is.
    wait_for("the end of the first", || first.has_ended().then_some(()));
    wait_for("its end to be known", || home.log("supervisor").contains("a worker ended").then_some(()));
    std::fs::remove_dir_all(&path).unwrap();
    let registry = wait_for("the registry", || match Registry::load(&path) {
        Loaded::Good(registry) => Some(registry),
        Loaded::Absent | Loaded::Damaged(_) => None,
    });
    assert!(registry.workers.iter().any(|worker| worker.identity.pid == pid), "{registry:?}");
    assert_eq!(home.log("supervisor").matches("the registry cannot be written").count(), 1, "told once");
    supervisor.stop();
}

#[test]
fn what_killed_writers_have_left_is_removed() {
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    let in_runtime = home.runtime(".registry.json.0a1b2c3d.tmp");
    let [old, young] = ["1", "2"].map(|n| home.state(&format!(".ports.json.0a1b2c3{n}.tmp")));
    for path in [&in_runtime, &old, &young] {
        std::fs::write(path, "{").unwrap();
    }
    let file = std::fs::File::options().write(true).open(&old).unwrap();
    file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_mins(2)).unwrap();
    supervisor.kill();
    let supervisor = home.start();
    assert!(!in_runtime.exists() && !old.exists());
    assert!(young.exists(), "somebody may be writing it");
    supervisor.stop();
}
