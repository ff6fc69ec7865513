use serde_json::{Value, json};

use crate::home::Home;
use crate::supervisor::{Supervisor, endpoint};

fn two_endpoints() -> Vec<Value> {
    let local = json!({ "is_default": false, "provider": "custom", "state": "stopped", "address": null, "default_model": null });
    vec![endpoint("zai", json!({})), endpoint("local", local)]
}

#[test]
fn endpoints_are_listed() {
    let home = Home::new();
    let supervisor = Supervisor::with(&home, &two_endpoints());
    let expected = "\
ENDPOINT       PROVIDER  MODEL    STATE    ADDRESS
zai (default)  zai       glm-4.7  running  127.0.0.1:41017
local          custom    -        stopped  -
";
    assert_eq!(home.run(&["endpoint", "list"]).succeeded(), expected);
    assert_eq!(home.run(&["endpoint", "list", "--json"]).json(), json!(two_endpoints()));
    assert_eq!(supervisor.methods(), ["endpoint.list", "endpoint.list"]);
}

#[test]
fn the_first_step_is_told_when_there_is_no_endpoint() {
    let home = Home::new();
    let _supervisor = Supervisor::with(&home, &[]);
    assert!(home.run(&["endpoint", "list"]).succeeded().contains("codexctl endpoint add --preset"));
}

#[test]
fn settings_are_shown_without_secrets() {
    let home = Home::new();
    let resolved = json!({
        "id": "zai", "name": "Z.AI", "provider": "zai", "protocol": "chat-completions",
        "base_url": "https://api.z.ai/api/paas/v4", "auth": "bearer", "credential": "Store", "default_model": "glm-4.7",
        "models": [], "aliases": [["fast", "glm-4.5-air"]], "headers": [["x-api-key", "topsecret"], ["x-title", "codex"]],
        "quirks": ["thinking-switch"], "model_facts": [],
        "limits": codex_control::settings::WorkerSettings::default(),
    });
    let status = endpoint("zai", json!({ "problem": { "message": "endpoint `zai` has no key", "hint": "store one" } }));
    let detail = json!({ "status": status, "endpoint": resolved });
    let _supervisor = Supervisor::answering(&home, &[], move |_, _| Some(Ok(detail.clone())));
    let expected = "\
id             zai (default)
name           Z.AI
provider       zai
state          running
address        http://127.0.0.1:41017/v1
protocol       chat-completions
base_url       https://api.z.ai/api/paas/v4
key            missing: `codexctl login zai` stores one
default_model  glm-4.7
models         as the provider lists them
aliases        fast = glm-4.5-air
headers        x-api-key: …, x-title: codex
quirks         thinking-switch

problem: endpoint `zai` has no key
  hint: store one
";
    assert_eq!(home.run(&["endpoint", "show", "zai"]).succeeded(), expected);
    let shown = home.run(&["endpoint", "show", "zai", "--json"]);
    assert_eq!(shown.json()["endpoint"]["headers"], json!([["x-api-key", "…"], ["x-title", "codex"]]));
    assert!(!shown.stdout.contains("topsecret"));
}

#[test]
fn a_setting_is_changed_and_removed() {
    let home = Home::new();
    let supervisor = Supervisor::with(&home, &two_endpoints());
    assert_eq!(
        home.run(&["endpoint", "set", "zai", "default_model", "glm-5"]).succeeded(),
        "zai: default_model is now glm-5\n"
    );
    assert_eq!(home.run(&["endpoint", "set", "zai", "--unset", "port"]).succeeded(), "zai: port is at its default\n");
    assert_eq!(home.run(&["endpoint", "set", "zai", "port", "auto", "--json"]).json(), two_endpoints()[0]);
    let expected = [
        json!({ "id": "zai", "key": "default_model", "value": "glm-5" }),
        json!({ "id": "zai", "key": "port", "value": null }),
        json!({ "id": "zai", "key": "port", "value": "auto" }),
    ];
    assert_eq!(supervisor.calls().into_iter().map(|(_, params)| params).collect::<Vec<_>>(), expected);
}

#[test]
fn a_change_that_leaves_an_endpoint_broken_is_told() {
    let home = Home::new();
    let problem = json!({ "message": "port 1 cannot be bound", "hint": "choose another" });
    let _supervisor = Supervisor::with(&home, &[endpoint("zai", json!({ "problem": problem }))]);
    let ended = home.run(&["endpoint", "set", "zai", "port", "1"]);
    assert_eq!(
        (ended.succeeded(), ended.stderr.as_str()),
        ("zai: port is now 1\n", "warning: port 1 cannot be bound\n  hint: choose another\n")
    );
}

#[test]
fn the_default_is_chosen() {
    let home = Home::new();
    let supervisor = Supervisor::with(&home, &two_endpoints());
    assert_eq!(home.run(&["endpoint", "default", "local"]).succeeded(), "local is the default endpoint\n");
    assert_eq!(home.run(&["endpoint", "default", "local", "--json"]).json(), json!({ "default_endpoint": "local" }));
    assert_eq!(supervisor.calls()[0], ("endpoint.default".to_owned(), json!({ "id": "local" })));
}

#[test]
fn an_endpoint_goes_with_its_key() {
    let home = Home::new();
    let supervisor = Supervisor::with(&home, &two_endpoints());
    codex_control::credentials::store(&home.paths, &crate::home::id("zai"), "k").unwrap();
    home.run(&["endpoint", "rm", "zai"]).failed(
        1,
        "endpoint `zai` and its stored key would be removed, and nobody can be asked",
        Some("say `--yes` if you mean it"),
    );
    assert!(home.credential("zai").is_some() && !supervisor.methods().contains(&"endpoint.remove".to_owned()));
    assert_eq!(home.run(&["endpoint", "rm", "zai", "--yes"]).succeeded(), "zai and its stored key are removed\n");
    assert_eq!(home.credential("zai"), None);
    let expected = json!({ "endpoint": "local", "removed": true, "key_removed": false });
    assert_eq!(home.run(&["endpoint", "rm", "local", "-y", "--json"]).json(), expected);
}

#[test]
fn a_mistyped_endpoint_is_told_with_the_nearest() {
    let home = Home::new();
    let supervisor = Supervisor::with(&home, &two_endpoints());
    for arguments in [
        &["endpoint", "show", "zia"][..],
        &["endpoint", "rm", "zia", "--yes"],
        &["endpoint", "default", "zia"],
        &["endpoint", "set", "zia", "port", "1"],
        &["models", "zia"],
        &["token", "zia"],
        &["login", "zia"],
        &["start", "zia"],
        &["stop", "zia"],
        &["restart", "zia"],
    ] {
        home.run(arguments).failed(1, "there is no endpoint `zia`", Some("did you mean `zai`?"));
    }
    assert!(!supervisor.methods().contains(&"endpoint.remove".to_owned()));
}

#[test]
fn an_endpoint_is_started_stopped_and_restarted() {
    let home = Home::new();
    let supervisor = Supervisor::with(&home, &two_endpoints());
    assert_eq!(home.run(&["start", "zai"]).succeeded(), "zai runs at http://127.0.0.1:41017\n");
    assert_eq!(home.run(&["restart", "zai"]).succeeded(), "zai runs at http://127.0.0.1:41017\n");
    assert_eq!(home.run(&["stop", "zai"]).succeeded(), "zai is stopped; `codexctl start zai` starts it again\n");
    assert_eq!(home.run(&["stop", "zai", "--json"]).json(), two_endpoints()[0]);
    let expected =
        ["endpoint.start", "endpoint.wake", "endpoint.restart", "endpoint.wake", "endpoint.stop", "endpoint.stop"];
    assert_eq!(supervisor.methods(), expected);
}

#[test]
fn a_key_is_replaced_and_removed() {
    let home = Home::new();
    let supervisor = Supervisor::with(&home, &two_endpoints());
    let ended = home.run_with_input(&["login", "zai"], "new-key\n");
    assert!(ended.succeeded().starts_with("zai has another key\n"), "{ended:#?}");
    assert_eq!(home.credential("zai"), Some(("new-key\n".to_owned(), 0o600)));
    assert!(!format!("{ended:?}{:?}", supervisor.calls()).contains("new-key"), "the key is shown nowhere");
    home.run(&["login", "zai", "--key-env", "UNSET_VARIABLE"]).failed(
        1,
        "the variable `UNSET_VARIABLE` is not set",
        Some("export `UNSET_VARIABLE` first"),
    );
    assert_eq!(home.run(&["logout", "zai"]).succeeded(), "the stored key of zai is removed\n");
    assert_eq!(home.run(&["logout", "zai", "--json"]).json(), json!({ "endpoint": "zai", "removed": false }));
    assert_eq!(home.credential("zai"), None);
}
