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
