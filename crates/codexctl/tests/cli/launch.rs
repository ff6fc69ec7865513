use std::fs;

use codex_control::rpc::{RpcError, code};
use serde_json::json;

use crate::home::Home;
use crate::supervisor::{Supervisor, endpoint};
use crate::worker::Worker;

/// Writes down how it was called and ends like Codex would.
const CODEX: &str = r#"for argument in "$@"; do printf '%s\n' "$argument" >> "$HOME/argv"; done
env > "$HOME/env"
echo "codex ran"
exit 7"#;

struct Called {
    argv: Vec<String>,
    env: Vec<String>,
}

fn called(home: &Home) -> Option<Called> {
    let lines = |name: &str| {
        Some(fs::read_to_string(home.root().join("home").join(name)).ok()?.lines().map(str::to_owned).collect())
    };
    Some(Called { argv: lines("argv")?, env: lines("env")? })
}

#[test]
fn codex_starts_on_a_healthy_endpoint_with_everything_it_needs() {
    let mut home = Home::new();
    home.program("codex", CODEX);
    home.set("NO_PROXY", "internal");
    let folder = home.install_codexctl("with space, \"quotes\" and 'more'");
    let supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    let ended = home.run(&["launch", "cli", "--endpoint", "zai", "--", "exec", "--json", "say \"hi\""]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(7), "codex ran\n", ""), "{ended:#?}");
    assert_eq!(supervisor.calls(), [("endpoint.wake".to_owned(), json!({ "id": "zai", "timeout_ms": 15_000 }))]);
    let Called { argv, env } = called(&home).unwrap();
    let [c1, provider_id, c2, provider, c3, model, c4, search, rest @ ..] = &argv[..] else { panic!("{argv:?}") };
    assert!([c1, c2, c3, c4].iter().all(|flag| *flag == "-c"), "{argv:?}");
    assert_eq!(rest, ["exec", "--json", "say \"hi\""]);
    let told: toml::Table =
        toml::from_str(&[provider_id, provider, model, search].map(String::as_str).join("\n")).unwrap();
    let expected: toml::Table = toml::from_str(&format!(
        r#"
        model_provider = "supervised"
        model = "glm-4.7"
        web_search = "disabled"
        [model_providers.supervised]
        name = "Z.AI (supervised)"
        base_url = "http://127.0.0.1:41017/v1"
        wire_api = "responses"
        model_catalog_url = "http://127.0.0.1:41017/v1/models"
        requires_openai_auth = false
        supports_websockets = false
        request_max_retries = 4
        stream_max_retries = 5
        stream_idle_timeout_ms = 300000
        capabilities = {{ remote_compaction = "unsupported" }}
        auth = {{ command = '''{}''', args = ["token", "zai"], timeout_ms = 7000, refresh_interval_ms = 100 }}
        "#,
        folder.join("codexctl").display()
    ))
    .unwrap();
    assert_eq!(told, expected);
    for line in ["NO_PROXY=internal,127.0.0.1,localhost", "no_proxy=internal,127.0.0.1,localhost"] {
        assert!(env.iter().any(|known| known == line), "{env:#?}");
    }
    assert!(!home.root().join("home/.codex").exists(), "Codex's own folder is not touched");
}

#[test]
fn the_default_endpoint_and_a_chosen_model_are_used() {
    let mut home = Home::new();
    let codex = home.program("my-codex", CODEX);
    home.set("CODEX_SUPERVISOR_CODEX", codex);
    home.set("no_proxy", "internal");
    let models = json!({ "models": [{ "slug": "glm-5" }] });
    let worker = Worker::new(&home.make_token("zai"), 200, &models);
    let zai = endpoint("zai", json!({ "default_model": null, "address": worker.address }));
    let supervisor = Supervisor::with(&home, &[zai]);
    let ended = home.run(&["launch", "cli"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(7), ""));
    let Called { argv, env } = called(&home).unwrap();
    assert!(env.contains(&"NO_PROXY=internal,127.0.0.1,localhost".to_owned()), "{env:#?}");
    assert!(!argv.iter().any(|argument| argument.starts_with("model=")), "{argv:?}");
    assert_eq!(supervisor.calls()[0].1["id"], json!(null));
    fs::remove_file(home.root().join("home/argv")).unwrap();
    assert_eq!(home.run(&["launch", "cli", "-m", "a/\"b\""]).code, Some(7));
    let argv = called(&home).unwrap().argv;
    assert!(argv.contains(&"model=\"a/\\\"b\\\"\"".to_owned()), "{argv:?}");
}

#[test]
fn a_missing_model_is_told_before_codex_complains() {
    let home = Home::new();
    home.program("codex", CODEX);
    let nothing = json!({ "models": [], "problem": "the provider answered HTTP 401" });
    let worker = Worker::new(&home.make_token("zai"), 200, &nothing);
    let zai = endpoint("zai", json!({ "default_model": null, "address": worker.address }));
    let _supervisor = Supervisor::with(&home, &[zai]);
    let ended = home.run(&["launch", "cli"]);
    let expected = "\
warning: endpoint `zai` has no default model and offers none: the provider answered HTTP 401
  hint: name one: `--model MODEL`, or for good `codexctl endpoint set zai default_model MODEL`
";
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(7), expected));
}

#[test]
fn codex_is_not_started_on_an_endpoint_that_is_not_healthy() {
    let home = Home::new();
    home.program("codex", CODEX);
    let _supervisor = Supervisor::answering(&home, &[], |_, _| {
        let message = "endpoint `zai` did not answer within 15 s";
        Some(Err(RpcError::new(code::TIMEOUT, message, Some("`codexctl logs zai` shows why".to_owned()))))
    });
    let ended = home.run(&["launch", "cli", "--endpoint", "zai"]);
    ended.failed(1, "endpoint `zai` did not answer within 15 s", Some("`codexctl logs zai` shows why"));
    assert!(called(&home).is_none());
}

#[test]
fn a_missing_codex_is_told_first() {
    let mut home = Home::new();
    home.set("PATH", home.root().join("bin"));
    let supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    home.run(&["launch", "cli"]).failed(
        1,
        "the Codex CLI was not found on the `PATH`",
        Some("install it with `npm install -g @openai/codex`"),
    );
    home.set("CODEX_SUPERVISOR_CODEX", "/nonexistent/codex");
    home.run(&["launch", "cli"]).failed(
        1,
        "`CODEX_SUPERVISOR_CODEX` names `/nonexistent/codex`, which is no program",
        Some("name the path of Codex there, or unset `CODEX_SUPERVISOR_CODEX`"),
    );
    assert_eq!(supervisor.methods(), Vec::<String>::new());
}
