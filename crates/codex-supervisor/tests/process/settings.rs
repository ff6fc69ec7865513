//! Settings that change, break and are mended while everything runs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::endpoint;
use crate::home::{FreePort, Home, begin, get, wait_for};

#[test]
fn a_changed_file_is_followed_at_once() {
    const LINES: usize = 60;
    let home = Home::new(&(endpoint("a", "") + &endpoint("b", "")));
    let supervisor = home.start();
    let (a, b) = (supervisor.wake("a"), supervisor.wake("b"));
    let mut stream = BufReader::new(begin(a, &format!("/stream/{LINES}")).unwrap());
    let mut line = String::new();
    while !line.starts_with("0 of generation 1") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0);
    }
    // `a` changes, `b` goes, `c` comes.
    home.write_settings(&(endpoint("a", "default_model = \"m2\"") + &endpoint("c", "")));
    wait_for("`c` to be known", || {
        let list = supervisor.call("endpoint.list", Value::Null);
        let ids: Vec<_> = list.as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap().to_owned()).collect();
        (ids == ["a", "c"]).then_some(())
    });
    supervisor
        .wait_for_endpoint("a", "the next worker", |status| status["generation"] == 2 && status["state"] == "running");
    assert_eq!(supervisor.endpoint("a")["default_model"], "m2");
    assert_eq!(supervisor.wake("a"), a);
    supervisor.wake("c");
    wait_for("`b` to be closed", || TcpStream::connect(b).is_err().then_some(()));
    let rest: Vec<String> = stream.lines().map(Result::unwrap).collect();
    let expected: Vec<String> = (1..LINES).map(|line| format!("{line} of generation 1")).collect();
    assert_eq!(rest, expected, "what ran goes on to its end");
    // Coming back it has the port Codex knows.
    home.write_settings(&(endpoint("a", "default_model = \"m2\"") + &endpoint("b", "")));
    wait_for("`b` to be back", || {
        supervisor.try_call("endpoint.show", json!({ "id": "b" })).unwrap().get("result").map(drop)
    });
    assert_eq!(supervisor.wake("b"), b);
    assert_eq!(supervisor.endpoint("a")["generation"], 2, "what did not change is left alone");
    // A worker has read the tables at its start.
    let models = home.settings_file().with_file_name("models.toml");
    fs::write(models, "[[model]]\nid = \"mine\"\ncontext_window = 1000\n").unwrap();
    supervisor.wait_for_endpoint("a", "a worker with the new table", |status| status["generation"] == 3);
    supervisor.wake("a");
    supervisor.stop();
}

#[test]
fn a_broken_file_keeps_what_runs_and_refuses_changes() {
    let good = endpoint("a", "");
    let home = Home::new(&good);
    let supervisor = home.start();
    supervisor.wake("a");
    home.write_settings(&(good.clone() + "base_ulr = \"x\"\n"));
    let status = wait_for("the problem", || {
        Some(supervisor.call("daemon.status", Value::Null)).filter(|status| !status["settings"]["problem"].is_null())
    });
    let problem = &status["settings"]["problem"];
    let message = problem["message"].as_str().unwrap();
    assert!(message.contains("supervisor.toml:7:1: unknown field `base_ulr`"), "{message}");
    assert_eq!(problem["hint"], "did you mean `base_url`?");
    assert_eq!(
        (&status["endpoints"][0]["state"], &status["endpoints"][0]["generation"]),
        (&json!("running"), &json!(1))
    );
    let before = home.read_settings();
    let (code, message, hint) = supervisor.refusal("endpoint.add", json!({ "id": "b", "preset": "zai-coding" }));
    assert_eq!((code, hint.as_str()), (2, "did you mean `base_url`?"));
    assert!(message.contains("supervisor.toml:7:1"), "{message}");
    assert_eq!(home.read_settings(), before);
    home.write_settings(&(good + "name = \"Mended\"\n"));
    supervisor.wait_for_endpoint("a", "the mended file", |status| status["name"] == "Mended");
    assert_eq!(supervisor.call("daemon.status", Value::Null)["settings"]["problem"], Value::Null);
    supervisor.stop();
}

#[test]
fn a_file_broken_from_the_start_is_told_and_followed_once_it_is_mended() {
    let home = Home::new("[[endpoint]\n");
    let supervisor = home.start();
    let status = supervisor.call("daemon.status", Value::Null);
    assert_eq!(status["endpoints"], json!([]));
    assert!(status["settings"]["problem"]["message"].as_str().unwrap().contains("supervisor.toml:1:"), "{status}");
    home.write_settings(&endpoint("a", ""));
    wait_for("`a`", || supervisor.try_call("endpoint.show", json!({ "id": "a" })).unwrap().get("result").map(drop));
    supervisor.wake("a");
    supervisor.stop();
}

#[test]
fn one_bad_endpoint_does_not_touch_the_others() {
    let home = Home::new(&(endpoint("a", "") + "[[endpoint]]\nid = \"bad\"\npreset = \"zai-codign\"\n"));
    let supervisor = home.start();
    supervisor.wake("a");
    let status = supervisor.endpoint("bad");
    assert_eq!(status["state"], "broken");
    assert_eq!(status["problem"]["message"], "endpoint `bad` names the preset `zai-codign`, which does not exist");
    assert_eq!(status["problem"]["hint"], "did you mean `zai-coding`?");
    let answer = get(crate::home::address(&status), "/v1/responses").unwrap();
    assert!(answer.ends_with("which does not exist; did you mean `zai-coding`?"), "{answer}");
    // Mended in steps: each is allowed, though only the last one makes it work.
    supervisor.call("endpoint.set", json!({ "id": "bad", "key": "preset", "value": null }));
    supervisor.call("endpoint.set", json!({ "id": "bad", "key": "protocol", "value": "responses" }));
    supervisor.call("endpoint.set", json!({ "id": "bad", "key": "base_url", "value": "http://127.0.0.1:9" }));
    supervisor.wake("bad");
    // Broken while it runs: what runs ends, and the sentence takes over.
    home.write_settings(&(endpoint("a", "preset = \"nope\"")));
    supervisor.wait_for_state("a", "broken");
    supervisor.stop();
}

#[test]
fn endpoints_are_added_changed_and_removed_by_call() {
    let home = Home::new("# mine\n");
    fs::remove_file(home.settings_file()).unwrap();
    let supervisor = home.start();
    let new = json!({ "id": "a", "protocol": "chat-completions", "base_url": "http://127.0.0.1:9/v1", "auth": { "kind": "none" } });
    assert_eq!(supervisor.call("endpoint.add", new.clone())["id"], "a");
    let address = supervisor.wake("a");
    home.write_settings(&("# my comment\n".to_owned() + &home.read_settings()));
    let (code, message, _) = supervisor.refusal("endpoint.add", new);
    assert_eq!((code, message.as_str()), (2, "there is an endpoint `a` already"));
    let (code, message, hint) = supervisor.refusal("endpoint.add", json!({ "id": "b", "preset": "zai-codign" }));
    assert_eq!((code, hint.as_str()), (-32_602, "did you mean `zai-coding`?"));
    assert!(message.contains("preset `zai-codign`"), "{message}");
    supervisor.call("endpoint.set", json!({ "id": "a", "key": "default_model", "value": "m" }));
    supervisor.wait_for_endpoint("a", "the change", |status| status["generation"] == 2 && status["state"] == "running");
    assert_eq!((supervisor.wake("a"), &supervisor.endpoint("a")["default_model"]), (address, &json!("m")));
    for (key, value, text) in [
        ("base_ulr", "x", "unknown field `base_ulr`"),
        ("base_url", "nonsense", "`base_url` that cannot be used"),
        ("id", "z", "an endpoint's id cannot be changed"),
    ] {
        let before = home.read_settings();
        let (code, message, hint) =
            supervisor.refusal("endpoint.set", json!({ "id": "a", "key": key, "value": value }));
        assert_eq!(code, -32_602);
        assert!(message.contains(text) && !hint.is_empty(), "{message}: {hint}");
        assert_eq!(home.read_settings(), before);
    }
    supervisor.call("endpoint.default", json!({ "id": "a" }));
    assert_eq!(supervisor.call("daemon.status", Value::Null)["default_endpoint"], "a");
    assert!(home.read_settings().contains("# my comment\n"));
    supervisor.call("endpoint.remove", json!({ "id": "a" }));
    assert_eq!(supervisor.call("endpoint.list", Value::Null), json!([]));
    wait_for("the listener to close", || TcpStream::connect(address).is_err().then_some(()));
    supervisor.stop();
}

#[test]
fn an_endpoint_moves_to_another_port_and_ends_what_runs_at_the_old_one() {
    const LINES: usize = 40;
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    let old = supervisor.wake("a");
    let mut stream = BufReader::new(begin(old, &format!("/stream/{LINES}")).unwrap());
    // Not only connected: it is answered.
    let mut line = String::new();
    while !line.starts_with("0 of generation 1") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0);
    }
    let port = FreePort::new();
    let free = port.address;
    supervisor.call("endpoint.set", json!({ "id": "a", "key": "port", "value": free.port().to_string() }));
    assert_eq!(supervisor.wake("a"), free);
    assert!(get(free, "/health").unwrap().ends_with("generation 2\n"));
    assert_eq!(supervisor.endpoint("a")["restarts_total"], 0, "it moves by itself, not because it is found to be sick");
    let n_lines = stream.lines().map(Result::unwrap).filter(|line| line.ends_with(" of generation 1")).count();
    assert_eq!(n_lines, LINES - 1, "all that are left");
    wait_for("the old port to close", || TcpStream::connect(old).is_err().then_some(()));
    supervisor.stop();
}

#[test]
fn a_link_to_the_settings_is_followed_and_a_signal_reads_them_again() {
    let home = Home::new("");
    let elsewhere = home.path().join("dotfiles.toml");
    fs::write(&elsewhere, "").unwrap();
    fs::remove_file(home.settings_file()).unwrap();
    std::os::unix::fs::symlink(&elsewhere, home.settings_file()).unwrap();
    let supervisor = home.start();
    fs::write(&elsewhere, endpoint("a", "")).unwrap();
    supervisor.signal(Signal::HUP);
    wait_for("`a`", || supervisor.try_call("endpoint.show", json!({ "id": "a" })).unwrap().get("result").map(drop));
    // Nobody says that it has changed; it is found by a look now and then.
    fs::write(&elsewhere, endpoint("b", "")).unwrap();
    wait_for("`b`", || supervisor.try_call("endpoint.show", json!({ "id": "b" })).unwrap().get("result").map(drop));
    supervisor.call("endpoint.set", json!({ "id": "b", "key": "name", "value": "B" }));
    assert!(fs::symlink_metadata(home.settings_file()).unwrap().is_symlink());
    assert!(fs::read_to_string(&elsewhere).unwrap().contains("name = \"B\""));
    supervisor.stop();
}
