use codex_control::rpc::{RpcError, code};
use serde_json::{Value, json};

use crate::home::Home;
use crate::supervisor::Supervisor;

#[test]
fn any_method_can_be_called() {
    let home = Home::new();
    let supervisor = Supervisor::answering(&home, &[], |method, _| match method {
        "some.method" => Some(Ok(json!({ "a": [1, "ä"] }))),
        "other.method" => {
            Some(Err(RpcError::new(code::INVALID_PARAMS, "that does not fit", Some("try this".to_owned()))))
        }
        _ => None,
    });
    let ended = home.run(&["rpc", "some.method", "{\"x\": 1}"]);
    assert_eq!(ended.succeeded(), "{\n  \"a\": [\n    1,\n    \"ä\"\n  ]\n}\n");
    assert_eq!(home.run(&["rpc", "some.method", "--json"]).succeeded(), "{\"a\":[1,\"ä\"]}\n");
    home.run(&["rpc", "other.method"]).failed(1, "that does not fit", Some("try this"));
    home.run(&["rpc", "no.method"]).failed(1, "there is no method `no.method`", None);
    assert_eq!(supervisor.calls()[0], ("some.method".to_owned(), json!({ "x": 1 })));
    assert_eq!(supervisor.calls()[1], ("some.method".to_owned(), Value::Null));
}

#[test]
fn parameters_that_are_no_object_are_wrong_usage() {
    let home = Home::new();
    let supervisor = Supervisor::with(&home, &[]);
    home.run(&["rpc", "m", "[1]"]).failed(
        2,
        "the parameters are not a JSON object",
        Some("write e.g. '{\"id\": \"zai\"}'"),
    );
    let ended = home.run(&["rpc", "m", "{"]);
    assert!(ended.code == Some(2) && ended.stderr.starts_with("error: the parameters are not JSON: "), "{ended:#?}");
    assert_eq!(supervisor.methods(), Vec::<String>::new());
}

#[test]
fn a_call_that_meets_a_dying_supervisor_is_made_again_if_that_does_no_harm() {
    let zai = [crate::supervisor::endpoint("zai", json!({}))];
    for (reads, arguments, expected) in [
        // Nobody has read it.
        (false, &["status", "--json"][..], &["daemon.status"][..]),
        (false, &["rpc", "endpoint.default", "{\"id\":\"zai\"}"], &["endpoint.default"]),
        // Somebody may have carried it out.
        (true, &["status", "--json"], &["daemon.status"]),
        (true, &["rpc", "endpoint.stop", "{\"id\":\"zai\"}"], &["endpoint.stop"]),
    ] {
        let home = Home::new();
        let supervisor = Supervisor::after_one_that_dies(&home, &zai, reads);
        home.run(arguments).succeeded();
        assert_eq!(supervisor.methods(), expected, "{arguments:?}");
    }
    let home = Home::new();
    let supervisor = Supervisor::after_one_that_dies(&home, &zai, true);
    home.run(&["rpc", "endpoint.default", "{\"id\":\"zai\"}"]).failed(
        3,
        "the supervisor ended before it answered; nobody knows whether `endpoint.default` was carried out",
        Some("`codexctl status` shows how things are now; `codexctl logs` says why it ended"),
    );
    assert_eq!(supervisor.methods(), [""; 0]);
}

#[test]
fn events_are_printed_as_they_come_until_the_supervisor_ends() {
    let home = Home::new();
    let _supervisor = Supervisor::with(&home, &[]);
    let ended = home.run(&["rpc", "events.subscribe"]);
    let event = |sequence: u64| {
        json!({
            "sequence": sequence, "at_ms": 5, "kind": "endpoint.state", "endpoint": "zai", "message": "zai is running",
            "detail": {},
        })
    };
    let events: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events, [event(1), event(2)]);
    let expected = "error: the supervisor closed the connection\n  hint: `codexctl logs` says why; `codexctl start` starts it again\n";
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(3), expected));
}
