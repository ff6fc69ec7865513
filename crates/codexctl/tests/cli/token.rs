use std::time::Duration;

use codex_control::rpc::{RpcError, code};
use codex_control::token;
use serde_json::json;

use crate::home::{Home, PATIENCE, shortest};
use crate::supervisor::{self, Supervisor, endpoint};

#[test]
fn the_token_stands_alone_after_the_endpoint_was_woken() {
    let home = Home::new();
    let token = home.make_token("zai");
    let supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    let ended = home.run(&["token", "zai"]);
    assert_eq!((ended.succeeded(), ended.stderr.as_str()), (format!("{token}\n").as_str(), ""));
    assert_eq!(home.run(&["token", "zai", "--json"]).json(), json!({ "endpoint": "zai", "token": token }));
    // What the command has spent before is not given to the supervisor: on a busy machine that may be much of it.
    let mut longest_ms = 0;
    for _ in 0..10 {
        let n_before = supervisor.calls().len();
        home.run(&["token", "zai"]).succeeded();
        let (method, params) = &supervisor.calls()[n_before];
        assert_eq!((method.as_str(), &params["id"]), ("endpoint.wake", &json!("zai")));
        let timeout_ms = params["timeout_ms"].as_u64().unwrap();
        assert!(timeout_ms < 5_000, "the whole command takes 5 s at most, not {timeout_ms} ms and more");
        longest_ms = longest_ms.max(timeout_ms);
        if longest_ms >= 3_000 {
            break;
        }
    }
    assert!(longest_ms >= 3_000, "most of the time is for waking, not {longest_ms} ms");
}

#[test]
fn codex_gets_its_token_even_if_nothing_can_be_woken() {
    let mut home = Home::new();
    home.install_codexctl("own");
    let token = format!("{}\n", home.make_token("zai"));
    let ended = home.run(&["token", "zai"]);
    assert_eq!(ended.succeeded(), token);
    let expected = "\
the supervisor is not running: starting it
warning: the supervisor cannot be started: there is no `codex-supervisor` beside this program or on the `PATH`
  hint: install it beside `codexctl`: `scripts/install.sh` does
";
    assert_eq!(ended.stderr, expected);

    let home = Home::new();
    let token = format!("{}\n", home.make_token("zai"));
    let _supervisor = Supervisor::answering(&home, &[], |_, _| {
        Some(Err(RpcError::new(code::BROKEN, "endpoint `zai` is stopped", Some("`codexctl start zai`".to_owned()))))
    });
    let ended = home.run(&["token", "zai"]);
    assert_eq!(
        (ended.succeeded(), ended.stderr.as_str()),
        (token.as_str(), "warning: endpoint `zai` is stopped\n  hint: `codexctl start zai`\n")
    );
}

#[test]
fn a_supervisor_that_hangs_delays_codex_for_a_known_time() {
    let home = Home::new();
    let token = format!("{}\n", home.make_token("zai"));
    let accepted = supervisor::silent(&home);
    let limit = Duration::from_secs(1);
    let elapsed = shortest(limit, || {
        let ended = home.run(&["token", "zai", "--timeout-ms", "1000"]);
        accepted.recv_timeout(PATIENCE).unwrap();
        assert_eq!(ended.succeeded(), token);
        assert!(ended.stderr.starts_with("warning: the supervisor does not answer in time\n"), "{ended:#?}");
    });
    assert!(elapsed < limit, "{elapsed:?}");
}

#[test]
fn no_token_is_a_failure() {
    let mut home = Home::new();
    home.install_codexctl("own");
    let ended = home.run(&["token", "zai"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(3), ""), "{ended:#?}");

    let home = Home::new();
    let _supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    let path = home.paths.token(&crate::home::id("zai"));
    let message = format!("endpoint `zai` has no token in `{}`", path.display());
    home.run(&["token", "zai"]).failed(1, &message, Some("`codexctl restart zai` makes one"));
}

#[test]
fn a_removed_endpoint_has_no_token_any_more() {
    let home = Home::new();
    home.make_token("zia");
    let _supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    home.run(&["token", "zia"]).failed(1, "there is no endpoint `zia`", Some("did you mean `zai`?"));
}

#[test]
fn a_rotated_token_is_another_one_and_the_old_one_has_its_time() {
    let home = Home::new();
    home.write_settings("[[endpoint]]\nid = \"zai\"\n[[endpoint]]\nid = \"new\"\n");
    let first = home.make_token("zai");
    let path = home.paths.token(&crate::home::id("zai"));
    let printed = home.run(&["token", "--rotate"]);
    let expected = "\
zai has another token; the one before is accepted for another 1 h 0 min
new has another token; the one before is accepted for another 1 h 0 min
";
    assert_eq!((printed.succeeded(), printed.stderr.as_str()), (expected, ""));
    let accepts = |token: &str| {
        let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let tokens = token::read_tokens(&path).unwrap().unwrap();
        [0, 3_000, 3_601].map(|later_s| tokens.accept(token.as_bytes(), now_s + later_s))
    };
    let second = token::read_token(&path).unwrap().unwrap().expose().clone();
    assert_eq!(accepts(&first), [true, true, false]);
    assert_eq!(accepts(&second), [true; 3]);
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap()) & 0o777, 0o600);

    let printed = home.run(&["token", "--rotate", "--now", "zai"]);
    assert_eq!(printed.succeeded(), "zai has another token; the one before is refused from now on\n");
    assert_eq!([accepts(&first), accepts(&second)], [[false; 3]; 2]);
    home.run(&["token", "--rotate", "zia"]).failed(1, "there is no endpoint `zia`", Some("did you mean `zai`?"));
    assert_eq!(home.run(&["token", "--now", "zai"]).code, Some(2));
    assert_eq!(home.run(&["token"]).code, Some(2));
}
