//! The control socket, as a careless or hostile client of the same user sees it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;

use codex_control::ipc::{FromWorker, Hello, VERSION, frame};
use codex_control::process::{self, Identity, Process};
use codex_control::session::SESSIONS_MAX;
use serde_json::{Value, json};

use crate::endpoint;
use crate::home::{Home, Supervisor, get, refused, wait_for};

#[test]
fn what_cannot_be_done_is_told_with_its_remedy() {
    let home = Home::new(&(endpoint("zai", "") + &endpoint("off", "enabled = false")));
    let supervisor = home.start();
    for (method, params, code, message, hint) in [
        ("daemon.staus", Value::Null, -32_601, "there is no method `daemon.staus`", "did you mean `daemon.status`?"),
        ("endpoint.show", json!({ "id": "zia" }), 1, "there is no endpoint `zia`", "did you mean `zai`?"),
        (
            "endpoint.stop",
            json!({ "id": "nobody" }),
            1,
            "there is no endpoint `nobody`",
            "known endpoints: `zai`, `off`",
        ),
        ("endpoint.show", json!({}), -32_602, "the parameters do not fit: missing field `id`", ""),
        (
            "endpoint.show",
            json!(["zai"]),
            -32_602,
            "the parameters are not an object",
            r#"name them, e.g. {"id":"zai"}"#,
        ),
        ("daemon.status", json!({ "x": 1 }), -32_602, "this method takes no parameters", "leave them away"),
        (
            "endpoint.start",
            json!({ "id": "off" }),
            2,
            "the endpoint `off` is switched off in the settings",
            "`codexctl endpoint set off enabled true`",
        ),
        (
            "endpoint.wake",
            json!({ "id": "off", "timeout_ms": 1 }),
            4,
            "the endpoint `off` is switched off in the settings",
            "`codexctl endpoint set off enabled true` switches it on",
        ),
        (
            "endpoint.wake",
            json!({ "timeout_ms": 1 }),
            1,
            "there is no default endpoint",
            "name one, or choose it with `codexctl endpoint default ID`",
        ),
        ("endpoint.remove", json!({ "id": "zia" }), 1, "there is no endpoint `zia`", "did you mean `zai`?"),
    ] {
        assert_eq!(supervisor.refusal(method, params), (code, message.to_owned(), hint.to_owned()), "{method}");
    }
    supervisor.stop();
}

#[test]
fn bad_lines_are_answered_and_the_conversation_goes_on() {
    let home = Home::new("");
    let supervisor = home.start();
    let mut client = supervisor.connect();
    for (line, code) in [
        ("{nonsense\n", -32_700),
        ("[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.status\"}]\n", -32_600),
        ("7\n", -32_600),
    ] {
        client.send(line.as_bytes());
        assert_eq!(refused(&client.receive().unwrap().unwrap()).0, code, "{line}");
    }
    // A notification and an empty line get no answer; what comes after them does.
    client.send(b"{\"jsonrpc\":\"2.0\",\"method\":\"daemon.reload\"}\n\n{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"endpoint.list\"}\n");
    assert_eq!(client.receive().unwrap().unwrap(), json!({ "jsonrpc": "2.0", "id": "x", "result": [] }));
    client.send(&vec![b'x'; codex_control::rpc::LINE_BYTES_MAX + 2]);
    assert_eq!(refused(&client.receive().unwrap().unwrap()).1, "a line is longer than 1048576 bytes");
    assert!(matches!(client.receive(), Ok(None) | Err(_)), "there is no telling where the next line begins");
    assert_eq!(supervisor.call("endpoint.list", Value::Null), json!([]));
    supervisor.stop();
}

#[test]
fn one_client_too_many_is_sent_away() {
    let home = Home::new("");
    let supervisor = home.start();
    let mut clients: Vec<_> = (0..64).map(|_| supervisor.connect()).collect();
    for client in &mut clients {
        client.call("events.subscribe", Value::Null);
    }
    let mut late = supervisor.connect();
    assert_eq!(refused(&late.receive().unwrap().unwrap()).1, "64 clients are connected already");
    assert!(matches!(late.receive(), Ok(None) | Err(_)));
    clients.pop();
    crate::home::wait_for("room", || {
        supervisor.try_call("endpoint.list", Value::Null).ok().filter(|answer| answer["error"].is_null())
    });
    supervisor.stop();
}

#[test]
fn silent_clients_make_room_for_those_who_call() {
    let home = Home::new("");
    let supervisor = home.start();
    let mut subscriber = supervisor.connect();
    subscriber.call("events.subscribe", Value::Null);
    let mut silent: Vec<_> = (0..1_000)
        .map(|number| {
            let mut client = supervisor.connect();
            match number % 3 {
                // A line that never ends, and one that has been answered; the others say nothing at all.
                0 => client.send(b"{\"jsonrpc\":\"2.0\","),
                1 => drop(client.call("endpoint.list", Value::Null)),
                _ => {}
            }
            client
        })
        .collect();
    for _ in 0..100 {
        assert_eq!(supervisor.call("endpoint.list", Value::Null), json!([]));
    }
    assert!(matches!(silent[0].receive(), Ok(None) | Err(_)), "who has been silent longest has gone");
    assert_eq!(subscriber.call("endpoint.list", Value::Null), json!([]), "who waits for events has not");
    supervisor.stop();
}

#[test]
fn events_tell_what_happens() {
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    let mut reader = supervisor.connect();
    assert_eq!(reader.call("events.subscribe", Value::Null), Value::Null);
    let mut seen = Vec::new();
    let mut sequence = None;
    let mut read_until = |kind: &str| {
        while seen.last().map(String::as_str) != Some(kind) {
            let notification = reader.receive().unwrap().unwrap();
            assert_eq!((&notification["method"], &notification["id"]), (&json!("event"), &Value::Null));
            let event = &notification["params"];
            let number = event["sequence"].as_u64().unwrap();
            assert!(sequence.is_none_or(|before| number == before + 1), "nothing is lost");
            sequence = Some(number);
            assert_eq!(event["endpoint"], "a");
            if event["kind"] == "request.finished" {
                let (message, outcome) = (&event["message"], &event["detail"]["outcome"]);
                assert_eq!((message, outcome), (&json!("a request to `a` completed"), &json!("completed")));
            }
            seen.push(event["kind"].as_str().unwrap().to_owned());
        }
    };
    get(address, "/stream/1").unwrap();
    read_until("request.finished");
    supervisor.call("endpoint.stop", json!({ "id": "a" }));
    read_until("worker.ended");
    assert_eq!(seen, ["request.finished", "endpoint.state", "worker.ended"]);
    assert_eq!(reader.call("endpoint.list", Value::Null)[0]["state"], "stopped", "a subscriber may still call");
    supervisor.stop();
}

#[test]
fn a_reader_of_events_that_never_reads_costs_others_nothing() {
    const ROUNDS: usize = 30;
    const EVENTS: usize = 100;
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    let address = supervisor.wake("a");
    let (mut deaf, mut reader) = (supervisor.connect(), supervisor.connect());
    for client in [&mut deaf, &mut reader] {
        client.call("events.subscribe", Value::Null);
    }
    let sequence_of = |event: Option<Value>| event.unwrap()["params"]["sequence"].as_u64().unwrap();
    let mut sequence = None;
    for _ in 0..ROUNDS {
        // At once: whoever does not read is sent away after a while, and all of this is to be over before.
        get(address, &format!("/finish/{EVENTS}")).unwrap();
        for _ in 0..EVENTS {
            let next = sequence_of(reader.receive().unwrap());
            assert!(sequence.is_none_or(|before| next == before + 1), "the other one loses nothing");
            sequence = Some(next);
        }
        assert_eq!(supervisor.endpoint("a")["generation"], 1);
    }
    // What was kept for the deaf one is bounded: it has missed something, and can tell.
    let mut n_received = 0;
    while Some(sequence_of(deaf.receive().unwrap())) != sequence {
        n_received += 1;
    }
    assert!((100..ROUNDS * EVENTS * 3 / 4).contains(&n_received), "{n_received}");
    supervisor.stop();
}

#[test]
fn what_was_used_outlives_the_supervisor_and_a_damaged_database_stops_nothing() {
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    get(supervisor.wake("a"), "/stream/1").unwrap();
    let used = |supervisor: &Supervisor<'_>| supervisor.call("usage.show", json!({}))["lines"].clone();
    let lines =
        wait_for("the request to be counted", || Some(used(&supervisor)).filter(|lines| lines[0] != Value::Null));
    assert_eq!((&lines[0]["endpoint"], &lines[0]["requests"]), (&json!("a"), &json!(1)));
    supervisor.stop();

    let supervisor = home.start();
    assert_eq!(used(&supervisor), lines);
    supervisor.stop();

    std::fs::write(home.state("state.db"), "not a database, and longer than the head of one, so that it is looked at")
        .unwrap();
    let supervisor = home.start();
    get(supervisor.wake("a"), "/stream/1").unwrap();
    wait_for("the new database", || (used(&supervisor)[0]["requests"] == 1).then_some(()));
    let database = supervisor.call("daemon.status", Value::Null)["database"].clone();
    assert_eq!((&database["problem"], database["put_aside"].as_array().map(Vec::len)), (&Value::Null, Some(1)));
    supervisor.stop();
}

#[test]
fn a_stranger_cannot_pose_as_a_worker() {
    let home = Home::new(&endpoint("a", ""));
    let supervisor = home.start();
    supervisor.wake("a");
    let worker = supervisor.worker("a");
    let claims = [process::own_identity().unwrap(), worker.identity().clone()];
    for identity in claims {
        let hello = FromWorker::Hello(Hello {
            version: VERSION,
            endpoint: "a".parse().unwrap(),
            generation: 1,
            identity,
            build: String::new(),
            serving: None,
        });
        let payload = frame::encode(&hello).unwrap();
        let mut stream = UnixStream::connect(home.runtime("worker.sock")).unwrap();
        stream.set_read_timeout(Some(crate::home::PATIENCE)).unwrap();
        stream.write_all(&[&u32::try_from(payload.len()).unwrap().to_be_bytes()[..], &payload].concat()).unwrap();
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut answer).unwrap();
        assert_eq!(answer, b"", "it is told nothing");
    }
    assert_eq!(supervisor.endpoint("a")["generation"], 1);
    supervisor.wake("a");
    supervisor.stop();
}

#[test]
fn a_session_is_what_its_launcher_has_started() {
    let home = Home::new(&endpoint("zai", ""));
    let supervisor = home.start();
    let mut stranger = Command::new("sleep").arg("100").spawn().unwrap();
    let program = Process::open(stranger.id()).unwrap();
    let session = |n: usize, program: Option<&Process>, launcher: &Identity| {
        json!({
            "id": format!("cli-{n}"), "kind": "cli", "endpoint": null, "started_at_ms": 0, "launcher": launcher,
            "program": program.map(Process::identity),
            "scope": { "unit": "x.scope", "cgroup": "/sys/fs/cgroup" }, "logs": [], "spared": [],
        })
    };
    let own = process::own_identity().unwrap();
    // The launcher it names is not its parent.
    let other = Process::open(supervisor.pid()).unwrap().identity().clone();
    let (code, message, _) = supervisor.refusal("session.attach", session(0, Some(&program), &other));
    assert_eq!((code, message.as_str()), (-32_602, "what runs was not started by the launcher"));
    for n in 0..SESSIONS_MAX {
        supervisor.call("session.attach", session(n, None, &own));
    }
    let (code, message, _) = supervisor.refusal("session.attach", session(SESSIONS_MAX, None, &own));
    assert_eq!((code, message), (2, format!("{SESSIONS_MAX} sessions are watched already")));
    supervisor.call("session.attach", session(0, Some(&program), &own));
    supervisor.stop();
    assert!(!program.has_ended(), "what stands in a scope that is not the session's own is nobody's to end");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}
