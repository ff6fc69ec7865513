use std::fs::{self, File};

use codex_control::rpc::{RpcError, code};
use codex_control::settings::EndpointSettings;
use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use crate::home::{Home, id};
use crate::supervisor::{Supervisor, endpoint};
use crate::worker::Worker;

const KEY: &str = "sk-test-0123456789abcdef";

/// A supervisor whose new endpoint is served by `worker`.
fn supervisor(home: &Home, worker: &Worker) -> Supervisor {
    let address = worker.address;
    Supervisor::answering(home, &[], move |method, params| match method {
        "endpoint.wake" => Some(Ok(endpoint(params["id"].as_str()?, json!({ "address": address })))),
        _ => None,
    })
}

fn catalog() -> Value {
    json!({ "data": [], "models": [{ "slug": "a" }, { "slug": "b" }] })
}

fn added(supervisor: &Supervisor) -> Vec<Value> {
    supervisor.calls().into_iter().filter(|(method, _)| method == "endpoint.add").map(|(_, params)| params).collect()
}

#[test]
fn a_preset_and_a_key_from_a_pipe_are_enough() {
    let home = Home::new();
    let worker = Worker::new(&home.make_token("zai-coding"), 200, &catalog());
    let supervisor = supervisor(&home, &worker);
    let ended = home.run_with_input(&["endpoint", "add", "--preset", "zai-coding"], &format!("{KEY}\n"));
    let credential = home.paths.credential(&id("zai-coding"));
    let (address, credential) = (worker.address, credential.display());
    let lines: Vec<&str> = ended.succeeded().lines().map(|line| line.split(" (").next().unwrap()).collect();
    let expected = [
        "added zai-coding: Z.AI coding plan",
        "  base URL  https://api.z.ai/api/coding/paas/v4",
        &format!("  key       stored in {credential}"),
        &format!("  address   http://{address}/v1"),
        "  worker    healthy",
        "  provider  reachable, key not refused, 2 models",
        "start Codex on it: codexctl launch cli --endpoint zai-coding",
    ];
    assert_eq!(lines, expected);
    assert_eq!(ended.stderr, "");
    assert_eq!(home.credential("zai-coding"), Some((format!("{KEY}\n"), 0o600)));
    assert!(!format!("{ended:?}{:?}", supervisor.calls()).contains(KEY), "the key is shown and sent nowhere");
    assert_eq!(added(&supervisor), [json!({ "id": "zai-coding", "preset": "zai-coding" })]);
    assert_eq!(worker.requests(), ["GET /v1/models?refresh=1 HTTP/1.1"]);
}

#[test]
fn every_source_of_a_key_ends_in_the_store() {
    let mut home = Home::new();
    home.set("SOME_KEY", KEY);
    let file = home.root().join("key.txt");
    fs::write(&file, format!("\n {KEY} \n")).unwrap();
    let worker = Worker::new("other", 200, &catalog());
    let supervisor = supervisor(&home, &worker);
    for (name, source, value) in
        [("from-env", "--key-env", "SOME_KEY"), ("from-file", "--key-file", file.to_str().unwrap())]
    {
        home.run(&["endpoint", "add", name, "--preset", "deepseek", source, value]).succeeded();
        assert_eq!(home.credential(name), Some((format!("{KEY}\n"), 0o600)), "{name}");
    }
    assert_eq!(added(&supervisor).len(), 2);
}

#[test]
fn a_command_is_asked_later_and_a_local_server_needs_no_key() {
    let home = Home::new();
    home.program("vault", &format!("echo {KEY}; echo ran > '{}'", home.root().join("ran").display()));
    let worker = Worker::new("other", 200, &catalog());
    let supervisor = supervisor(&home, &worker);
    let ended = home.run(&[
        "endpoint",
        "add",
        "work",
        "--preset",
        "zai",
        "--model",
        "glm-5",
        "--key-command",
        "vault",
        "-p",
        "zai",
    ]);
    assert!(ended.succeeded().contains("asked from `vault` each time"), "{ended:#?}");
    home.run(&[
        "endpoint",
        "add",
        "local",
        "--base-url",
        "http://127.0.0.1:8000/v1/chat/completions",
        "--protocol",
        "chat-completions",
        "--name",
        "Mine",
        "--port",
        "4101",
        "--no-key",
    ])
    .succeeded();
    home.run(&["endpoint", "add", "--preset", "ollama"]).succeeded();
    home.run_with_input(
        &[
            "endpoint",
            "add",
            "remote-ollama",
            "--preset",
            "ollama",
            "--base-url",
            "http://10.0.0.1:11434/v1",
            "--key-file",
            "/dev/stdin",
        ],
        KEY,
    )
    .succeeded();
    home.run(&["endpoint", "add", "open", "--preset", "openrouter", "--no-key"]).succeeded();
    assert!(!home.root().join("ran").exists());
    let expected = [
        json!({ "id": "work", "preset": "zai", "auth": { "command": ["vault", "-p", "zai"] }, "default_model": "glm-5" }),
        json!({
            "id": "local", "name": "Mine", "protocol": "chat-completions", "base_url": "http://127.0.0.1:8000/v1",
            "auth": { "kind": "none" }, "port": 4101,
        }),
        json!({ "id": "ollama", "preset": "ollama" }),
        json!({ "id": "remote-ollama", "preset": "ollama", "base_url": "http://10.0.0.1:11434/v1", "auth": { "kind": "bearer" } }),
        json!({ "id": "open", "preset": "openrouter", "auth": { "kind": "none" } }),
    ];
    assert_eq!(added(&supervisor), expected);
    for settings in added(&supervisor) {
        serde_json::from_value::<EndpointSettings>(settings).unwrap();
    }
    let stored: Vec<_> =
        fs::read_dir(home.paths.credentials_folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(stored, ["remote-ollama"]);
}

#[test]
fn what_cannot_work_is_told_before_anything_is_written() {
    let home = Home::new();
    let supervisor = Supervisor::with(&home, &[]);
    let add = |more: &[&str], input: &str| home.run_with_input(&[&["endpoint", "add"], more].concat(), input);
    add(&["--preset", "zai-codign"], KEY).failed(
        1,
        "there is no preset `zai-codign`",
        Some("did you mean `zai-coding`?"),
    );
    add(&["--preset", "xyz"], KEY).failed(1, "there is no preset `xyz`", Some("`codexctl presets` lists them"));
    add(&["e", "--base-url", "host/v1", "--protocol", "responses"], KEY).failed(
        1,
        "the base URL cannot be used: it does not begin with `https://` or `http://`",
        Some("write it like `https://HOST/PATH`"),
    );
    let hint = "type or pipe the key, or name its place: `--key-file FILE`, `--key-env ZAI_API_KEY`";
    add(&["--preset", "zai"], "\n").failed(1, "no key can be taken from stdin: the key is empty", Some(hint));
    let message = "no key can be taken from stdin: the key holds characters that cannot be sent in an HTTP header (a line break in the middle, or non-ASCII)";
    add(&["--preset", "zai"], "two\nlines").failed(1, message, Some(hint));
    add(&["--preset", "zai"], &"k".repeat(100_000)).failed(
        1,
        "no key can be taken from stdin: the key is longer than 65536 bytes",
        Some(hint),
    );
    add(&["--preset", "zai", "--key-file", "/nonexistent"], KEY).failed(
        1,
        "the key file `/nonexistent` does not exist",
        None,
    );
    add(&["--preset", "zai", "--key-command", "no-such-program"], KEY).failed(
        1,
        "there is no program `no-such-program` to ask for the key",
        Some("name a program on the `PATH`, or its whole path"),
    );
    home.write_settings("[daemon]\nhealth_intervall_s = 5\n");
    let message = format!(
        "the settings are not valid as they stand, so nothing was changed: {}:2:1: unknown field `health_intervall_s`",
        home.paths.settings().display()
    );
    let ended = add(&["--preset", "zai"], KEY);
    assert!(ended.code == Some(1) && ended.stderr.contains(&message), "{ended:#?}");
    assert!(ended.stderr.contains("hint: did you mean `health_interval_s`?"), "{ended:#?}");
    assert_eq!(supervisor.methods(), Vec::<String>::new());
    assert!(!home.paths.credentials_folder().exists());
}

#[test]
fn an_existing_endpoint_keeps_its_key() {
    let home = Home::new();
    let supervisor = Supervisor::with(&home, &[]);
    home.write_settings("[[endpoint]]\nid = \"zai\"\npreset = \"zai\"\n");
    codex_control::credentials::store(&home.paths, &id("zai"), "old").unwrap();
    home.run_with_input(&["endpoint", "add", "--preset", "zai"], KEY).failed(
        1,
        "there is an endpoint `zai` already",
        Some("choose another id: `codexctl endpoint add ID …`; `codexctl login zai` only changes its key"),
    );
    assert_eq!(home.credential("zai").unwrap().0, "old\n");
    assert_eq!(supervisor.methods(), Vec::<String>::new());
}

#[test]
fn a_refused_endpoint_leaves_the_store_as_it_was() {
    for before in [None, Some("left from earlier")] {
        let home = Home::new();
        if let Some(before) = before {
            codex_control::credentials::store(&home.paths, &id("zai"), before).unwrap();
        }
        let _supervisor = Supervisor::answering(&home, &[], |method, _| {
            let refusal = RpcError::new(code::CONFLICT, "the settings do not load", Some("mend line 3".to_owned()));
            (method == "endpoint.add").then_some(Err(refusal))
        });
        let ended = home.run_with_input(&["endpoint", "add", "--preset", "zai"], KEY);
        ended.failed(1, "the settings do not load", Some("mend line 3"));
        assert_eq!(home.credential("zai").map(|(key, _)| key), before.map(|key| format!("{key}\n")));
    }
}

#[test]
fn two_commands_do_not_add_at_once() {
    let home = Home::new();
    let supervisor = Supervisor::with(&home, &[]);
    codex_control::files::create_private_folder(&home.paths.credentials_folder()).unwrap();
    let other = File::open(home.paths.credentials_folder()).unwrap();
    rustix::fs::flock(&other, FlockOperation::LockShared).unwrap();
    let ended = home.run_with_input(&["endpoint", "add", "--preset", "zai"], KEY);
    let message = format!(
        "the credentials store `{}` is in use by another `codexctl`",
        home.paths.credentials_folder().display()
    );
    ended.failed(1, &message, Some("try again when that has ended"));
    assert_eq!((home.credential("zai"), added(&supervisor).len()), (None, 0));
}

#[test]
fn an_endpoint_that_does_not_work_yet_is_added_and_says_why() {
    let home = Home::new();
    let body =
        json!({ "models": [], "problem": "the provider answered HTTP 401 to the request for its models: bad key" });
    let worker = Worker::new(&home.make_token("zai"), 200, &body);
    let with_problem = supervisor(&home, &worker);
    let ended = home.run_with_input(&["endpoint", "add", "--preset", "zai"], KEY);
    assert!(ended.succeeded().contains("  provider  does not work yet\n"), "{ended:#?}");
    let expected = "warning: the provider answered HTTP 401 to the request for its models: bad key\n  hint: `codexctl login zai` stores another key, `codexctl endpoint show zai` shows the settings\n";
    assert_eq!(ended.stderr, expected);
    assert!(home.credential("zai").is_some() && added(&with_problem).len() == 1);

    let home = Home::new();
    let _asleep = Supervisor::answering(&home, &[], |method, _| {
        let refusal =
            RpcError::new(code::TIMEOUT, "endpoint `zai` did not become healthy", Some("see its log".to_owned()));
        (method == "endpoint.wake").then_some(Err(refusal))
    });
    let ended = home.run_with_input(&["--json", "endpoint", "add", "--preset", "zai"], KEY);
    let problem = json!({ "message": "endpoint `zai` did not become healthy", "hint": "see its log" });
    assert_eq!(ended.json()["probe"]["problem"], problem);
    assert_eq!(ended.json()["probe"]["is_healthy"], false);
    assert_eq!(serde_json::from_str::<Value>(&ended.stderr).unwrap(), json!({ "warning": problem }));
}
