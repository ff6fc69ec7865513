use serde_json::{Value, json};

use crate::home::Home;
use crate::supervisor::{Supervisor, daemon, endpoint};

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

fn status_of(status: &Value, has_codex: bool) -> (Home, Supervisor) {
    let home = Home::new();
    if has_codex {
        home.program("codex", "exit 1");
    }
    let status = status.clone();
    let supervisor =
        Supervisor::answering(&home, &[], move |method, _| (method == "daemon.status").then(|| Ok(status.clone())));
    (home, supervisor)
}

#[test]
fn all_is_told_on_one_screen() {
    let now = now_ms();
    let zai = endpoint(
        "zai",
        json!({
            "healthy_at_ms": now - 3_600_000 * 3, "restarts_total": 2,
            "counters": { "requests_total": 41, "requests_failed_total": 1, "last_success_at_ms": now - 3_600_000 * 2 },
        }),
    );
    let problem = json!({ "message": "port 41018 is held by pid 77 (`python3`)", "hint": "stop that process" });
    let local = endpoint(
        "local",
        json!({ "is_default": false, "state": "broken", "address": null, "memory_bytes": null, "problem": problem, "default_model": null }),
    );
    let settings =
        json!({ "problem": { "message": "s.toml:3:1: unknown field `base_ulr`", "hint": "did you mean `base_url`?" } });
    let status = daemon(
        &[zai, local],
        json!({ "started_at_ms": now - 3_600_000 * 5, "pid": 99, "protection": "reduced", "settings": settings }),
    );
    let (home, _supervisor) = status_of(&status, true);
    let expected = "\
works: Codex → zai → Z.AI (answered 2 h 0 min ago)

ENDPOINT       STATE                          ADDRESS          MODEL    REQUESTS  FAILED  RESTARTS  MEMORY
zai (default)  running, healthy 3 h 0 min ago  127.0.0.1:41017  glm-4.7  41        1       2         4.5 MiB
local          broken                         -                -        0         0       0         -

local: port 41018 is held by pid 77 (`python3`)
  hint: stop that process

settings: s.toml:3:1: unknown field `base_ulr`; the last good ones stay in force
  hint: did you mean `base_url`?

supervisor 0.1.0 (pid 99), up 5 h 0 min, protection reduced: no service manager restarts it
";
    // The table's columns depend on its longest cell; what matters is each cell.
    let squeeze = |text: &str| {
        text.lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join("|"))
            .collect::<Vec<_>>()
    };
    assert_eq!(squeeze(home.run(&["status"]).succeeded()), squeeze(expected));
    let answer = home.run(&["status", "--json"]).json();
    assert_eq!(answer["works"], true);
    assert_eq!(answer["daemon"], status, "programs get every figure");
}

#[test]
fn the_first_line_says_whether_it_works_and_the_second_what_to_do() {
    let now = now_ms();
    let failure = json!({
        "at_ms": now - 120_000, "class": "auth", "status": 401, "message": "invalid api key",
        "hint": "Store a valid key with `codexctl login zai`.",
    });
    let problem = json!({ "message": "endpoint `zai` has no key", "hint": "store one with `codexctl login zai`" });
    for (endpoints, has_codex, works, first, second) in [
        (vec![endpoint("zai", json!({}))], true, json!(null), "ready: Codex → zai → Z.AI (no request yet)", ""),
        (
            vec![endpoint("zai", json!({ "counters": { "last_failure": failure } }))],
            true,
            json!(false),
            "does not work: Codex → zai → Z.AI ✗ (auth, HTTP 401, 2 min ago: invalid api key)",
            "  hint: Store a valid key with `codexctl login zai`.",
        ),
        (
            vec![endpoint("zai", json!({ "problem": problem }))],
            true,
            json!(false),
            "does not work: Codex → zai ✗ (endpoint `zai` has no key)",
            "  hint: store one with `codexctl login zai`",
        ),
        (
            vec![endpoint("zai", json!({ "state": "stopped" }))],
            true,
            json!(false),
            "does not work: Codex → zai ✗ (stopped by you)",
            "  hint: `codexctl start zai`",
        ),
        (
            vec![endpoint("zai", json!({ "state": "disabled" }))],
            true,
            json!(false),
            "does not work: Codex → zai ✗ (disabled)",
            "  hint: `codexctl endpoint set zai enabled true`",
        ),
        (
            vec![endpoint("zai", json!({ "state": "restarting", "last_exit": "signal 9" }))],
            true,
            json!(false),
            "does not work: Codex → zai ✗ (restarts after signal 9, requests wait)",
            "  hint: `codexctl logs zai` shows why",
        ),
        (
            vec![endpoint("zai", json!({ "state": "starting" }))],
            true,
            json!(null),
            "ready: Codex → zai (starts) → Z.AI (no request yet)",
            "",
        ),
        (
            vec![endpoint("zai", json!({}))],
            false,
            json!(false),
            "does not work: Codex ✗ (the Codex CLI was not found on the `PATH`) → zai → Z.AI (no request yet)",
            "  hint: install it with `npm install -g @openai/codex`",
        ),
        (
            vec![],
            true,
            json!(false),
            "does not work: Codex → endpoint ✗ (there is none yet)",
            "  hint: `codexctl endpoint add --preset PRESET` adds one, `codexctl presets` lists the presets",
        ),
        (
            vec![endpoint("own", json!({ "name": "own", "provider": "custom", "base_url": "http://h/v1" }))],
            true,
            json!(null),
            "ready: Codex → own → http://h/v1 (no request yet)",
            "",
        ),
        (
            vec![endpoint("b", json!({ "is_default": false, "state": "stopped" })), endpoint("zai", json!({}))],
            true,
            json!(null),
            "ready: Codex → zai → Z.AI (no request yet)",
            "",
        ),
        (
            // Without a default endpoint the first one stands for all.
            vec![endpoint("b", json!({ "is_default": false })), endpoint("a", json!({ "is_default": false }))],
            true,
            json!(null),
            "ready: Codex → b → Z.AI (no request yet)",
            "",
        ),
    ] {
        let (home, _supervisor) = status_of(&daemon(&endpoints, json!({})), has_codex);
        let ended = home.run(&["status"]);
        let mut lines = ended.succeeded().lines();
        assert_eq!((lines.next(), lines.next()), (Some(first), Some(second)));
        assert_eq!(home.run(&["status", "--json"]).json()["works"], works, "{first}");
    }
}

#[test]
fn two_endpoints_without_a_default_and_another_version_are_told() {
    let endpoints = [endpoint("b", json!({ "is_default": false })), endpoint("a", json!({ "is_default": false }))];
    let (home, _supervisor) = status_of(&daemon(&endpoints, json!({ "version": "9.9.9" })), true);
    let ended = home.run(&["status"]);
    for expected in [
        "no default endpoint is chosen\n  hint: `codexctl endpoint default ENDPOINT` chooses one\n",
        "this program is 0.1.0, the supervisor 9.9.9\n  hint: `codexctl restart` starts the installed version\n",
    ] {
        assert!(ended.succeeded().contains(expected), "{ended:#?}");
    }
}

#[test]
fn a_supervisor_that_does_not_run_is_not_started() {
    let mut home = Home::new();
    home.install_codexctl("own");
    home.run(&["status"]).failed(3, "the supervisor is not running", Some("start it with `codexctl start`"));
    // A socket that was left behind is no supervisor.
    drop(std::os::unix::net::UnixListener::bind(home.paths.control_socket()).unwrap());
    let ended = home.run(&["status", "--json"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(3), ""));
    let expected = json!({ "error": { "message": "the supervisor is not running", "hint": "start it with `codexctl start`", "exit": 3 } });
    assert_eq!(serde_json::from_str::<Value>(&ended.stderr).unwrap(), expected);
}
