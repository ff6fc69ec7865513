//! Processes are killed, replaced, stopped and starved, a few times each; `scripts/reliability.sh` does it in full.
//!
//! Counts are judged here, times are not: this machine may be busy with other tests.

use std::process::Command;

use e2e::home::{binaries, binary, workspace};

fn check(command: &mut Command) {
    let output = command.env("E2E_NO_BUILD", "1").output().expect("it can be run");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\nstdout: {stdout}\nstderr: {stderr}", output.status);
    println!("{stdout}");
}

fn measure(arguments: &str) {
    check(Command::new(binary("reliability")).args(arguments.split(' ')));
}

#[test]
fn the_watch_over_who_accepts_sees_two_that_do() {
    measure("watch");
}

#[test]
fn killed_workers_refuse_nobody_and_codex_goes_on() {
    measure("worker --count 30 --tasks 2");
}

#[test]
fn what_is_replaced_breaks_no_stream() {
    measure("replace --count 2 --streams 40");
}

#[test]
fn killed_supervisors_break_no_stream() {
    measure("supervisor --count 4 --streams 40");
}

#[test]
fn supervisors_killed_while_they_replace_workers_break_no_stream() {
    measure("halfway --count 8 --streams 20");
}

#[test]
fn supervisor_and_worker_may_be_killed_at_once() {
    measure("both --count 4");
}

#[test]
fn a_stop_ends_each_stream_with_its_terminal_event() {
    measure("stop --count 1 --streams 40");
}

#[test]
fn a_worker_that_hangs_is_replaced() {
    measure("stuck --count 1");
}

#[test]
fn nobody_is_killed_for_what_the_machine_did() {
    measure("freeze --count 2 --frozen-s 4 --streams 20");
    measure("busy --count 1 --busy-s 3 --streams 20");
}

#[test]
fn under_systemd_the_same_holds() {
    let script = |name: &str| workspace().join("scripts").join(name);
    let possible = Command::new(script("systemd-sandbox")).arg("--check").output().expect("the script can be run");
    if !possible.status.success() {
        let reason = String::from_utf8_lossy(&possible.stdout).into_owned();
        assert!(std::env::var_os("CI").is_none(), "the systemd test must run in CI: {reason}");
        eprintln!("skipped: no systemd sandbox: {reason}");
        return;
    }
    let mut command = Command::new(script("reliability.sh"));
    command.arg("service").args([
        "supervisor --count 3 --streams 20",
        "halfway --count 10 --streams 20",
        "both --count 3",
        "replace --count 1 --streams 20",
        "stop --count 1 --streams 20",
    ]);
    check(command.env("RELIABILITY_PROGRAMS", binaries()).env("RELIABILITY_STRICT", ""));
}
