use codex_control::rpc::{RpcError, code};
use serde_json::json;

use crate::home::Home;
use crate::supervisor::{Supervisor, endpoint};
use crate::worker::Worker;

fn serve(status: u16, body: &serde_json::Value) -> (Home, Worker, Supervisor) {
    let home = Home::new();
    let worker = Worker::new(&home.make_token("zai"), status, body);
    let supervisor = Supervisor::with(&home, &[endpoint("zai", json!({ "address": worker.address }))]);
    (home, worker, supervisor)
}

#[test]
fn models_are_shown_as_codex_sees_them() {
    let body = json!({
        "object": "list",
        "data": [{ "id": "glm-4.7" }],
        "models": [{
            "slug": "glm-4.7", "display_name": "GLM 4.7", "context_window": 200_000, "input_modalities": ["text"],
            "supported_reasoning_levels": [{ "effort": "low" }, { "effort": "high" }],
        }],
    });
    let (home, worker, _supervisor) = serve(200, &body);
    let expected = "\
MODEL              NAME     CONTEXT  INPUT  REASONING
glm-4.7 (default)  GLM 4.7  200 k    text   low, high
";
    assert_eq!(home.run(&["models", "zai"]).succeeded(), expected);
    assert_eq!(home.run(&["models", "zai", "--refresh", "--json"]).json(), body);
    assert_eq!(worker.requests(), ["GET /v1/models HTTP/1.1", "GET /v1/models?refresh=1 HTTP/1.1"]);
}

#[test]
fn models_are_added_to_those_that_are_offered() {
    let (home, _worker, supervisor) = serve(200, &json!({ "models": [{ "slug": "glm-4.7" }, { "slug": "glm-5" }] }));
    home.run(&["models", "zai", "--add", "glm-5, my/\"odd\" one\nlast,,\n"]).succeeded();
    let (_, params) = supervisor.calls().into_iter().find(|(method, _)| method == "endpoint.set").unwrap();
    let value: toml::Table = toml::from_str(&format!("models = {}", params["value"].as_str().unwrap())).unwrap();
    assert_eq!((&params["id"], &params["key"]), (&json!("zai"), &json!("models")));
    assert_eq!(serde_json::to_value(&value["models"]).unwrap(), json!(["glm-4.7", "glm-5", "my/\"odd\" one", "last"]));
    home.run(&["models", "zai", "--add", " , "]).failed(2, "`--add` names no model", None);
}

#[test]
fn an_old_list_and_a_missing_one_say_why() {
    let (home, _worker, _supervisor) =
        serve(200, &json!({ "models": [], "problem": { "message": "no network", "hint": "is there one?" } }));
    let ended = home.run(&["models", "zai"]);
    assert_eq!(ended.succeeded(), "zai offers no models\n");
    assert_eq!(
        ended.stderr,
        "warning: this list is not the provider's present one: no network\n  hint: is there one?\n"
    );

    let (home, worker, _supervisor) = serve(500, &json!({ "error": { "message": "inner trouble" } }));
    let message = format!("endpoint `zai` at http://{} gives no model list: HTTP 500: inner trouble", worker.address);
    home.run(&["models", "zai"]).failed(1, &message, Some("`codexctl logs zai` shows what its worker does"));
}

#[test]
fn an_endpoint_says_whose_key_it_uses() {
    let problem = json!({ "message": "endpoint `zai` has no key", "hint": "store one with `codexctl login zai`" });
    let account = json!({ "account": null, "key_from": { "kind": "store" }, "has_key": false, "expires_at_ms": null, "problem": problem });
    let body = json!({ "accounts": [account] });
    let (home, worker, _supervisor) = serve(200, &body);
    let ended = home.run(&["accounts", "zai"]);
    assert_eq!(ended.succeeded(), "ACCOUNT  KEY                    STATE\nunknown  the credentials store  no key\n");
    assert_eq!(ended.stderr, "warning: endpoint `zai` has no key\n  hint: store one with `codexctl login zai`\n");
    assert_eq!(home.run(&["accounts", "zai", "--json"]).json(), body);
    assert_eq!(worker.requests(), ["GET /v1/accounts HTTP/1.1"; 2]);
    let (home, _worker, _supervisor) = serve(200, &json!({ "accounts": [] }));
    assert_eq!(home.run(&["accounts", "zai"]).succeeded(), "zai needs no key\n");
}

#[test]
fn an_endpoint_that_cannot_run_says_why() {
    let home = Home::new();
    let _supervisor = Supervisor::answering(&home, &[], |_, _| {
        Some(Err(RpcError::new(code::BROKEN, "endpoint `zai` cannot start", Some("do this".to_owned()))))
    });
    home.run(&["models", "zai"]).failed(1, "endpoint `zai` cannot start", Some("do this"));
}
