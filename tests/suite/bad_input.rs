//! Mistakes and misfortunes, one test each: what the person reads, what Codex is told, and that nothing is lost or
//! left running (every [`SandboxHome`] checks the latter when it goes).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use codex_control::rpc::EndpointState;
use e2e::home::{DEADLINE, Output, PROVIDER_KEY, SandboxHome, binary, listener_apart, scripted_endpoint};
use e2e::http::{self, Answer};
use e2e::provider::{FakeProvider, Script, Step, When};
use e2e::until::until;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde_json::json;

fn script() -> Script {
    Script::new().key(PROVIDER_KEY)
}

/// A provider that says hello to anybody with the key.
fn greeter() -> FakeProvider {
    FakeProvider::start(script().always(When::user("hello"), [Step::text("Hello.")]))
}

/// An address at which nobody listens, and nobody else can as long as the socket is kept.
fn deserted() -> (SocketAddr, OwnedFd) {
    let any_port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let bound = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .and_then(|socket| rustix::net::bind(&socket, &any_port).map(|()| socket));
    let socket = bound.expect("a loopback port is to be had");
    let address = rustix::net::getsockname(&socket).and_then(SocketAddr::try_from).expect("it is bound");
    (address, socket)
}

/// The settings file with an endpoint `scripted` at `provider` and further lines.
fn settings(provider: &FakeProvider, more: &str) -> String {
    format!("{}{more}\n", scripted_endpoint(&provider.base_url()))
}

/// Checks that a command failed with this exit code, said all of this on stderr, and nothing on stdout.
#[track_caller]
fn assert_fails(output: &Output, code: i32, says: &[&str]) {
    assert_eq!(output.code(), code, "{output:?}");
    assert!(output.stderr.starts_with("error: ") || output.stderr.contains("\nerror: "), "{}", output.stderr);
    for words in says {
        assert!(output.stderr.contains(words), "`{words}` is not in\n{}", output.stderr);
    }
    assert_eq!(output.stdout, "");
}

/// Runs Codex on an endpoint that cannot answer; gives what Codex shows at the end.
#[track_caller]
fn codex_fails(home: &SandboxHome) -> String {
    let run = home.exec(&["Say hello."]);
    assert_eq!(run.code, 1, "{}", run.shown());
    let failed = run.events.iter().find(|event| event["type"] == "turn.failed");
    failed.unwrap_or_else(|| panic!("no failed turn in {}", run.shown()))["error"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Runs Codex and checks that it works.
#[track_caller]
fn codex_works(home: &SandboxHome) {
    let run = home.exec(&["Say hello."]);
    run.assert_ended_well();
    assert_eq!(run.answer(), "Hello.");
}

/// A request that the [`greeter`] answers.
const HELLO: &[u8] = br#"{"model":"scripted","input":"Say hello.","stream":true}"#;

#[test]
fn an_unknown_endpoint() {
    let provider = greeter();
    let home = SandboxHome::with_provider(&provider);
    for arguments in [
        &["launch", "cli", "--endpoint", "scriptde", "--", "exec", "hi"][..],
        &["endpoint", "show", "scriptde"],
        &["token", "scriptde"],
    ] {
        assert_fails(&home.ctl(arguments), 1, &["`scriptde`", "hint: did you mean `scripted`?"]);
    }
    assert!(provider.requests().is_empty());
}

#[test]
fn a_missing_key() {
    let provider = greeter();
    let home = SandboxHome::new();
    home.write_settings(&settings(&provider, ""));
    home.start();
    home.wait_state("scripted", EndpointState::Broken);
    let says = ["endpoint `scripted` has no key", "store one with `codexctl login scripted`"];
    assert_fails(&home.run(home.launch_command("scripted", &["exec", "hi"])), 1, &says);
    let status = home.ctl(&["status"]).stdout;
    assert!(says.iter().all(|words| status.contains(words)), "{status}");
    // A Codex that runs already is told the same.
    let answer = home.post_responses("scripted", HELLO);
    assert_eq!(answer.status, 400);
    assert!(says.iter().all(|words| answer.text().contains(words)), "{}", answer.text());
    assert!(provider.requests().is_empty(), "nothing was sent without a key");
    // An unusable key is refused and not stored; a good one mends it.
    assert_fails(&home.run_with_input(home.ctl_command(&["login", "scripted"]), "two\nlines"), 1, &["HTTP header"]);
    home.run_with_input(home.ctl_command(&["login", "scripted"]), PROVIDER_KEY).ok();
    codex_works(&home);
}

#[test]
fn empty_settings() {
    let home = SandboxHome::new();
    home.write_settings("");
    home.start();
    assert!(home.status().endpoints.is_empty());
    let output = home.ctl(&["launch", "cli", "--", "exec", "hi"]);
    assert_fails(&output, 1, &["endpoint", "codexctl endpoint add"]);
}

#[test]
fn settings_that_do_not_parse() {
    let provider = greeter();
    let home = SandboxHome::new();
    let broken = settings(&provider, "base_ulr = \"http://127.0.0.1:9\"");
    home.write_settings(&broken);
    home.start();
    let status = home.status();
    assert!(status.endpoints.is_empty());
    let problem = status.settings.problem.expect("the file has a problem");
    assert!(problem.message.contains("supervisor.toml:6:1: unknown field `base_ulr`"), "{}", problem.message);
    assert_eq!(problem.hint.as_deref(), Some("did you mean `base_url`?"));
    // A change is refused, and the file stays as the person wrote it.
    let mut add = home.ctl_command(&[
        "endpoint",
        "add",
        "other",
        "--base-url",
        "http://127.0.0.1:9/v1",
        "--protocol",
        "chat-completions",
        "--no-key",
    ]);
    add.arg("--model=m");
    assert_fails(&home.run(add), 1, &["supervisor.toml:6:1", "did you mean `base_url`?"]);
    assert_eq!(home.read("config/codex-supervisor/supervisor.toml"), broken);
    let shown = home.ctl(&["status"]);
    assert!(shown.stdout.contains("base_ulr"), "{shown:?}");

    // Once it is mended it works, without a restart; and when it breaks again the good settings stay in force.
    home.store_key("scripted", PROVIDER_KEY);
    home.write_settings(&settings(&provider, ""));
    let good = home_state(&home, EndpointState::Running);
    home.write_settings(&broken);
    until("the problem", DEADLINE, || home.status().settings.problem);
    let still = home.endpoint("scripted");
    assert_eq!((still.state, still.worker_pid), (EndpointState::Running, good.worker_pid));
    codex_works(&home);
}

/// Waits until `scripted` is there and in `state`.
fn home_state(home: &SandboxHome, state: EndpointState) -> codex_control::rpc::EndpointStatus {
    until(&format!("`scripted` to be {state:?}"), DEADLINE, || {
        home.status()
            .endpoints
            .into_iter()
            .find(|endpoint| endpoint.id.as_str() == "scripted" && endpoint.state == state)
    })
}

#[test]
fn a_port_that_is_taken() {
    let provider = greeter();
    let taken = listener_apart();
    let port = taken.local_addr().expect("it is bound").port();
    let home = SandboxHome::new();
    home.store_key("scripted", PROVIDER_KEY);
    home.write_settings(&settings(&provider, &format!("port = {port}")));
    home.start();
    let broken = home_state(&home, EndpointState::Broken);
    let problem = broken.problem.expect("a broken endpoint has a problem");
    assert!(
        problem.message.contains(&format!("port {port} is held by pid {}", std::process::id())),
        "{}",
        problem.message
    );
    assert!(
        problem.hint.as_deref().unwrap_or_default().contains("`codexctl endpoint set scripted port auto`"),
        "{:?}",
        problem.hint
    );
    let output = home.ctl(&["launch", "cli", "--endpoint", "scripted", "--", "exec", "hi"]);
    assert_fails(&output, 1, &[&format!("port {port}"), "hint: "]);
    drop(taken);
    let running = home_state(&home, EndpointState::Running);
    assert_eq!(running.address.map(|address| address.port()), Some(port));
    codex_works(&home);
}

#[test]
fn a_worker_program_that_is_missing() {
    let provider = greeter();
    let home = SandboxHome::new();
    home.store_key("scripted", PROVIDER_KEY);
    home.write_settings(&settings(&provider, ""));
    // The supervisor looks for the worker beside itself.
    fs::create_dir(home.path("bin")).expect("the home is writable");
    fs::copy(binary("codex-supervisor"), home.path("bin/codex-supervisor")).expect("the home is writable");
    let mut command = home.command(home.path("bin/codex-supervisor"));
    command.arg("--foreground");
    home.start_command(command);
    let broken = home_state(&home, EndpointState::Broken);
    let problem = broken.problem.expect("a broken endpoint has a problem");
    assert!(problem.message.contains("bin/codex-worker"), "{}", problem.message);
    assert!(problem.hint.is_some());
    assert_fails(
        &home.ctl(&["launch", "cli", "--endpoint", "scripted", "--", "exec", "hi"]),
        1,
        &["codex-worker", "hint: "],
    );
    // A Codex that runs already is told in one sentence, and stops.
    let address = broken.address.expect("the listener is bound all the same");
    let answer = http::request(address, "POST", "/v1/responses", &[("content-type", "application/json")], b"{}")
        .expect("somebody answers");
    assert_eq!(
        (answer.status, answer.header("content-type").map(|kind| kind.starts_with("text/plain"))),
        (400, Some(true)),
        "{answer:?}"
    );
    assert!(answer.text().contains("codex-worker"), "{}", answer.text());
    // It is no crash: it works as soon as the program is there.
    // At once: half a program, or one that is being written, cannot be started.
    fs::copy(binary("codex-worker"), home.path("bin/copied"))
        .and_then(|_| fs::rename(home.path("bin/copied"), home.path("bin/codex-worker")))
        .expect("the home is writable");
    home_state(&home, EndpointState::Running);
    codex_works(&home);
}

#[test]
fn requests_that_are_refused() {
    let provider = greeter();
    let home = SandboxHome::with_provider_and(&provider, "", "[worker]\nbody_bytes_max = 1048576\n");
    let (address, token) = (home.address("scripted"), home.token("scripted"));
    let bearer = format!("Bearer {token}");
    let ask = |method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]| -> Answer {
        http::request(address, method, path, headers, body).expect("the worker answers")
    };
    let says = |answer: &Answer, status: u16, words: &str| {
        assert_eq!(answer.status, status, "{answer:?}");
        let message = answer.json()["error"]["message"].as_str().map_or_else(|| answer.text(), str::to_owned);
        assert!(message.contains(words), "`{words}` is not in `{message}`");
    };
    let other_end = if token.ends_with('0') { '1' } else { '0' };
    let wrong = format!("Bearer {}{other_end}", &token[..token.len() - 1]);
    for offered in [None, Some(wrong.as_str()), Some(token.as_str())] {
        let headers: Vec<(&str, &str)> = offered.into_iter().map(|value| ("authorization", value)).collect();
        says(&ask("POST", "/v1/responses", &headers, b"{}"), 401, "`codexctl token scripted`");
    }
    let ours = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let large = json!({ "model": "scripted", "input": "x".repeat(1_100_000), "stream": true }).to_string();
    says(&ask("POST", "/v1/responses", &ours, large.as_bytes()), 413, "1048576 bytes");
    says(&ask("POST", "/v1/responses", &ours, b"{\"model\": \"scripted\", "), 400, "JSON");
    says(&ask("POST", "/v1/responses", &ours, b"{\"model\": 7, \"input\": []}"), 400, "model");
    says(&ask("GET", "/v1/response", &ours, b""), 404, "/v1");
    says(&ask("GET", "/v1/responses", &ours, b""), 405, "POST");
    // A page in the user's browser, and one that has its name point at this machine.
    says(&ask("POST", "/v1/responses", &[ours[0], ("origin", "https://example.com")], b"{}"), 403, "web pages");
    // Health needs no token, and all that has harmed nobody.
    assert_eq!(ask("GET", "/health", &[], b"").status, 200);
    assert!(provider.requests().is_empty());
    codex_works(&home);
    assert_eq!(home.endpoint("scripted").restarts_total, 0);
}

#[test]
fn a_provider_that_refuses_the_key() {
    let provider = FakeProvider::start(Script::new().key("another-key"));
    let home = SandboxHome::with_provider(&provider);
    let shown = codex_fails(&home);
    assert!(
        shown.contains("refused the key of endpoint `scripted`") && shown.contains("Incorrect API key provided"),
        "{shown}"
    );
    assert!(shown.contains("`codexctl login scripted`") && !shown.contains(PROVIDER_KEY), "{shown}");
    until("the reason in the status", DEADLINE, || {
        home.ctl(&["status"]).stdout.contains("codexctl login scripted").then_some(())
    });
    // The key was wrong, the endpoint was not: a right one is enough.
    home.store_key("scripted", "another-key");
    until("the right key", DEADLINE, || {
        let answer = home.post_responses("scripted", HELLO);
        // The script expects nothing, so what comes through with the right key is refused for another reason.
        (!answer.text().contains("refused the key")).then_some(())
    });
}

#[test]
fn a_model_that_the_provider_has_not() {
    let error = json!({ "error": { "message": "The model `scripted` does not exist", "type": "invalid_request_error", "code": "model_not_found" } });
    let provider = FakeProvider::start(script().always(When::any(), [Step::status(404, &error)]));
    let home = SandboxHome::with_provider(&provider);
    let shown = codex_fails(&home);
    assert!(
        shown.contains("The model `scripted` does not exist") && shown.contains("`codexctl models scripted`"),
        "{shown}"
    );
    assert_eq!(provider.requests().len(), 1, "a permanent error is not tried again");
}

#[test]
fn a_provider_with_an_error() {
    let error = json!({ "error": { "message": "the backend is on fire", "type": "server_error" } });
    let provider = FakeProvider::start(script().always(When::any(), [Step::status(500, &error)]));
    let home = SandboxHome::with_provider(&provider);
    let shown = codex_fails(&home);
    assert!(shown.contains("the backend is on fire"), "{shown}");
    // Codex alone asks a provider that answers 500 thirty times before it gives up; with us it is asked no more often.
    assert!((4..=30).contains(&provider.requests().len()), "{} attempts", provider.requests().len());
    let counters = home.endpoint("scripted").counters;
    assert!(counters.last_failure.is_some_and(|failure| failure.status == Some(500)));
}

#[test]
fn a_provider_that_is_not_there() {
    let (address, _socket) = deserted();
    let home = SandboxHome::new();
    home.write_settings(&scripted_endpoint(&format!("http://{address}/v1")));
    home.store_key("scripted", PROVIDER_KEY);
    home.start();
    home.wait_state("scripted", EndpointState::Running);
    let shown = codex_fails(&home);
    assert!(shown.contains("no connection") && shown.contains(&address.to_string()), "{shown}");
    until("the reason in the status", DEADLINE, || {
        home.ctl(&["status"]).stdout.contains(&address.to_string()).then_some(())
    });
}

#[test]
fn a_provider_that_recovers_in_time() {
    let error = json!({ "error": { "message": "try again", "type": "server_error" } });
    let provider = FakeProvider::start(
        script()
            .turn(When::user("hello"), [Step::status(503, &error)])
            .turn(When::user("hello"), [Step::Reset])
            .turn(When::user("hello"), [Step::reasoning(""), Step::Close])
            .turn(When::user("hello"), [Step::text("Hello.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Say hello."]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "Hello.", "three failures, and Codex saw none of them");
    // The supervisor hears of it with the next heartbeat.
    until("three retries are counted", DEADLINE, || {
        (home.endpoint("scripted").counters.retries_total == 3).then_some(())
    });
}

#[test]
fn a_codex_that_is_missing() {
    let provider = greeter();
    let home = SandboxHome::with_provider(&provider);
    let mut command = home.launch_command("scripted", &["exec", "hi"]);
    command.env("CODEX_SUPERVISOR_CODEX", home.path("no-codex"));
    assert_fails(&home.run(command), 1, &["no-codex", "hint: ", "CODEX_SUPERVISOR_CODEX"]);
    let mut command = home.launch_command("scripted", &["exec", "hi"]);
    command.env_remove("CODEX_SUPERVISOR_CODEX").env("PATH", home.path("work"));
    assert_fails(&home.run(command), 1, &["the Codex CLI was not found", "hint: ", "npm install -g @openai/codex"]);
}

#[test]
fn a_supervisor_that_is_not_running() {
    let home = SandboxHome::new();
    let output = home.ctl(&["status"]);
    assert_fails(&output, 3, &["not running", "hint: ", "codexctl start"]);
}

#[test]
fn a_second_supervisor() {
    let home = SandboxHome::new();
    home.start();
    let mut second = home.command(binary("codex-supervisor"));
    second.arg("--foreground");
    let pid = home.supervisor_pid().expect("it runs").to_string();
    assert_fails(&home.run(second), 1, &[&pid]);
    assert_eq!(home.status().pid.to_string(), pid);
}

/// What the doctor's round trip asks for.
fn with_round_trip(script: Script) -> Script {
    script
        .always(When::user("Call the tool `read_checkword`"), [Step::call("read_checkword", json!({}))])
        .always(When::tool("heliotrope"), [Step::text("heliotrope")])
}

#[test]
fn the_doctor_finds_nothing_where_all_is_well() {
    for script in [Script::new(), Script::anthropic(), Script::responses()] {
        let provider = FakeProvider::start(with_round_trip(script.key(PROVIDER_KEY)));
        let home = SandboxHome::with_provider(&provider);
        let tested = home.ctl(&["endpoint", "test", "scripted"]).ok();
        for words in ["ok    worker", "key not refused, 1 model", "`scripted` called a tool and used its result"] {
            assert!(tested.contains(words), "`{words}` is not in\n{tested}");
        }
        let findings = home.ctl(&["doctor", "--json"]).ok();
        let findings: serde_json::Value = serde_json::from_str(&findings).expect("it is JSON");
        assert_eq!(findings["works"], true, "{findings}");
        let states: Vec<&str> = ["worker", "provider", "tool call", "learned"]
            .iter()
            .filter_map(|what| {
                let all = findings["endpoints"]["scripted"].as_array()?;
                all.iter().find(|finding| finding["what"] == **what)?["state"].as_str()
            })
            .collect();
        assert_eq!(states, ["good"; 4], "{findings}");
        assert_eq!(provider.complaints(), Vec::<String>::new());
    }
}

#[test]
fn the_doctor_says_what_is_wrong_and_what_to_do() {
    let provider = FakeProvider::start(with_round_trip(script()));
    let home = SandboxHome::new();
    home.write_settings(&settings(&provider, ""));
    home.store_key("scripted", "sk-of-somebody-else-entirely");
    assert_fails_but_shows(&home.ctl(&["doctor"]), 3, &["BAD   supervisor"], &["codexctl start"]);
    home.start();
    let shown = ["BAD   provider", "-     tool call  the provider does not work"];
    assert_fails_but_shows(&home.ctl(&["doctor"]), 1, &shown, &["error: provider: ", "codexctl login scripted"]);
    assert_fails_but_shows(&home.ctl(&["endpoint", "test", "scripted"]), 1, &shown, &["codexctl login scripted"]);
    // Keys that others can read are found, too.
    let key = home.paths().credential(&"scripted".parse().expect("it is an id"));
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("the file is ours");
    assert_fails_but_shows(
        &home.ctl(&["doctor"]),
        1,
        &["is open to others (mode 644)", "hint: chmod go="],
        &["error: files: "],
    );
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("the file is ours");
    // The right key mends it.
    home.run_with_input(home.ctl_command(&["login", "scripted"]), PROVIDER_KEY).ok();
    assert!(home.ctl(&["doctor", "scripted"]).ok().contains("called a tool and used its result"));
}

/// Checks that a command failed with this exit code, but showed on stdout what it has found, and said this on stderr.
#[track_caller]
fn assert_fails_but_shows(output: &Output, code: i32, shows: &[&str], says: &[&str]) {
    assert_eq!(output.code(), code, "{output:?}");
    for words in shows {
        assert!(output.stdout.contains(words), "`{words}` is not in\n{}", output.stdout);
    }
    for words in says {
        assert!(output.stderr.contains(words), "`{words}` is not in\n{}", output.stderr);
    }
}

#[test]
fn what_was_learned_is_shown_by_the_doctor_and_forgotten_on_demand() {
    let refusal = json!({ "error": {
        "message": "Unrecognized request argument supplied: stream_options", "param": "stream_options", "type": "invalid_request_error",
    } });
    let provider = FakeProvider::start(with_round_trip(
        script().turn(When::user("Call the tool `read_checkword`"), [Step::status(400, &refusal)]),
    ));
    let home = SandboxHome::with_provider(&provider);
    let shown = home.ctl(&["doctor", "scripted"]).ok();
    for words in ["drop:stream_options for `scripted`, ", "\"Unrecognized request argument supplied", "--clear-learned"]
    {
        assert!(shown.contains(words), "`{words}` is not in\n{shown}");
    }
    let cleared = home.ctl(&["doctor", "scripted", "--no-tool-call", "--clear-learned"]).ok();
    assert!(cleared.contains("1 change forgotten"), "{cleared}");
    let shown = home.ctl(&["doctor", "scripted", "--no-tool-call"]).ok();
    assert!(shown.contains("nothing had to be changed"), "{shown}");
    assert_fails(&home.ctl(&["doctor", "scriptde"]), 1, &["there is no endpoint `scriptde`"]);
}
