use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use codex_control::process::Process;
use codex_control::rpc::{RpcError, code};
use codex_control::session::Session;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::home::{Home, shortest, wait_for};
use crate::supervisor::{Supervisor, endpoint};
use crate::worker::Worker;

/// Writes down how it was called and ends like Codex would.
const CODEX: &str = r#"for argument in "$@"; do printf '%s\n' "$argument" >> "$HOME/argv"; done
env > "$HOME/env"
echo "codex ran"
exit 7"#;

/// What the stand-in was asked until the session's end: the launcher leaves without a word where that is not answered
/// in time, and the call may be written down a moment later.
fn calls_of_session(supervisor: &Supervisor) -> Vec<(String, Value)> {
    wait_for("the end of the session", || {
        Some(supervisor.calls()).filter(|calls| calls.iter().any(|(method, _)| method == "session.end"))
    })
}

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
    let calls = calls_of_session(&supervisor);
    let methods: Vec<&str> = calls.iter().map(|(method, _)| method.as_str()).collect();
    assert_eq!(methods, ["endpoint.wake", "session.begin", "session.attach", "session.end"]);
    assert_eq!(calls[0].1, json!({ "id": "zai", "timeout_ms": 15_000 }));
    assert_eq!((&calls[1].1["kind"], &calls[1].1["endpoint"]), (&json!("cli"), &json!("zai")));
    let attached: Session = serde_json::from_value(calls[2].1.clone()).unwrap();
    assert_eq!(json!(attached.launcher), calls[1].1["launcher"]);
    let logs = ["stderr.log", "codex-tui.log"].map(|name| std::env::temp_dir().join("nowhere").join(name));
    assert_eq!((attached.id.as_str(), &attached.logs[..]), ("cli-0000002a", &logs[..]));
    assert_eq!(calls[3].1, json!({ "id": "cli-0000002a", "exit": "exit code 7", "n_ended": 0, "n_left": 0 }));
    let Called { argv, env } = called(&home).unwrap();
    let [c1, provider_id, c2, provider, c3, model, c4, search, c5, log, rest @ ..] = &argv[..] else {
        panic!("{argv:?}")
    };
    assert!([c1, c2, c3, c4, c5].iter().all(|flag| *flag == "-c"), "{argv:?}");
    assert_eq!(rest, ["exec", "--json", "say \"hi\""]);
    let told: toml::Table =
        toml::from_str(&[log, provider_id, provider, model, search].map(String::as_str).join("\n")).unwrap();
    let expected: toml::Table = toml::from_str(&format!(
        r#"
        log_dir = "{}"
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
        auth = {{ command = '''{}''', args = ["token", "zai"], timeout_ms = 7000, refresh_interval_ms = 1 }}
        "#,
        std::env::temp_dir().join("nowhere").display(),
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
fn a_log_folder_of_the_persons_own_stays_the_one() {
    let home = Home::new();
    home.program("codex", CODEX);
    fs::create_dir_all(home.root().join("home/.codex")).unwrap();
    fs::write(home.root().join("home/.codex/config.toml"), "log_dir = \"/my/logs\"\n").unwrap();
    let supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    assert_eq!(home.run(&["launch", "cli"]).code, Some(7));
    assert!(!called(&home).unwrap().argv.iter().any(|argument| argument.starts_with("log_dir")));
    assert_eq!(calls_of_session(&supervisor)[2].1["logs"][1], "/my/logs/codex-tui.log");
}

#[test]
fn codex_runs_unwatched_when_the_supervisor_cannot_watch_it() {
    let home = Home::new();
    home.program("codex", CODEX);
    let _supervisor = Supervisor::answering(&home, &[endpoint("zai", json!({}))], |method, _| {
        let unknown = RpcError::new(code::METHOD_NOT_FOUND, format!("there is no method `{method}`"), None);
        method.starts_with("session.").then_some(Err(unknown))
    });
    let ended = home.run(&["launch", "cli"]);
    let expected = "\
warning: Codex runs unwatched: there is no method `session.begin`
  hint: `codexctl restart` may help
";
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(7), expected));
}

#[test]
fn what_codex_writes_to_stderr_arrives_and_the_signal_that_ended_it_is_told() {
    let home = Home::new();
    home.program("codex", "echo one >&2; echo two >&2; kill -KILL $$");
    let supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    let ended = home.run(&["launch", "cli"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(128 + 9), "one\ntwo\n"));
    assert_eq!(calls_of_session(&supervisor)[3].1["exit"], "signal 9");
}

#[test]
fn on_a_terminal_codex_has_one_on_all_three() {
    let home = Home::new();
    home.program("codex", "test -t 0 && test -t 1 && test -t 2 && printf '\\033[1mbold\\n' >&2; stty size <&2; read line; echo \"$line\"; exit 4");
    let _supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    let ended = home.run_on_terminal(&["launch", "cli"], "typed\n");
    assert_eq!(ended.code, Some(4), "{ended:#?}");
    // Its stderr is passed on, and may come after what it wrote to stdout later. What is typed is shown by the terminal.
    let (bold, typed) = (ended.stdout.contains("\u{1b}[1mbold"), ended.stdout.matches("typed\r\n").count());
    assert_eq!((bold, typed), (true, 2), "{ended:#?}");
}

/// Starts what leaves it in every way, says who, and ends when it is asked to.
const LEAVES: &str = r#"
(setsid sh -c 'echo $$ >> "$HOME/left"; exec sleep 1000' &)
(sh -c 'trap "" TERM; (setsid sh -c "echo \$\$ >> $HOME/left; exec sleep 1000" &) ; echo $$ >> "$HOME/left"; while :; do sleep 1000; done' &)
sh -c 'echo $$ >> "$HOME/left"; exec sleep 1000' &
trap 'exit 3' TERM
echo > "$HOME/ready"
while :; do sleep 0.01; done"#;

#[test]
fn what_codex_leaves_behind_is_ended_and_bystanders_are_not() {
    let home = Home::new();
    home.program("codex", LEAVES);
    let supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    let mut bystander = std::process::Command::new("setsid").args(["sleep", "1000"]).spawn().unwrap();
    let mut command = home.command(&["launch", "cli"]);
    let mut launcher = command.spawn().unwrap();
    let left = || -> Vec<Process> {
        let text = fs::read_to_string(home.root().join("home/left")).unwrap_or_default();
        text.lines().filter_map(|pid| Process::open(pid.parse().ok()?).ok()).collect()
    };
    let left = wait_for("everything to be started", || {
        let left = left();
        (left.len() == 4 && home.root().join("home/ready").exists()).then_some(left)
    });
    // The launcher passes it on.
    assert!(Process::open(launcher.id()).unwrap().signal(Signal::TERM).unwrap());
    assert_eq!(launcher.wait().unwrap().code(), Some(3));
    assert!(left.iter().all(Process::has_ended));
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    let end = calls_of_session(&supervisor).last().unwrap().1.clone();
    assert_eq!((&end["exit"], &end["n_left"]), (&json!("exit code 3"), &json!(0)));
    assert!(end["n_ended"].as_u64().unwrap() >= 4, "{end}");
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

/// Keeps what its settings say, and ends like Codex Desktop would.
const DESKTOP: &str = r#"cp "$HOME/.codex/config.toml" "$HOME/seen"; echo "$@" > "$HOME/argv"; exit 3"#;

#[test]
fn codex_desktop_finds_the_endpoint_in_its_settings_and_they_come_back() {
    let home = Home::new();
    home.program("codex-desktop", DESKTOP);
    let config = home.root().join("home/.codex/config.toml");
    fs::create_dir(home.root().join("home/.codex")).unwrap();
    let own = "# mine\nmodel = \"gpt\" # good\n[tui]\n";
    fs::write(&config, own).unwrap();
    let seen = || fs::read_to_string(home.root().join("home/seen")).unwrap();
    let supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    let ended = home.run(&["launch", "desktop", "--endpoint", "zai", "--", "--flag"]);
    assert_eq!(ended.code, Some(3), "{ended:#?}");
    assert!(ended.stderr.contains("  - model = \"gpt\" # good\n  + model = \"glm-4.7\" # good\n"), "{ended:#?}");
    assert!(seen().starts_with("# mine\nmodel = \"glm-4.7\" # good\nmodel_provider = \"supervised\" #"), "{}", seen());
    assert_eq!(fs::read_to_string(home.root().join("home/argv")).unwrap(), "--flag\n");
    assert_eq!(fs::read_to_string(&config).unwrap(), own);
    assert_eq!(supervisor.calls()[1].1["kind"], "desktop");
    // On its own login it finds its own settings, whatever others have put in.
    home.run(&["use", "zai", "--yes"]).succeeded();
    let ours = fs::read_to_string(&config).unwrap();
    assert_eq!(home.run(&["launch", "desktop", "--default"]).code, Some(3));
    assert_eq!((seen(), fs::read_to_string(&config).unwrap()), (own.to_owned(), ours));
    home.run(&["restore"]).succeeded();
    assert_eq!(fs::read_to_string(&config).unwrap(), own);
}

#[test]
fn a_starter_of_codex_desktop_is_not_the_end_of_it() {
    let home = Home::new();
    home.program("codex-desktop", "(until [ -e \"$HOME/quit\" ]; do sleep 0.02; done) & echo > \"$HOME/started\"");
    let _supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    let mut launcher = home.command(&["launch", "desktop"]).spawn().unwrap();
    wait_for("the starter", || home.root().join("home/started").exists().then_some(()));
    let config = home.root().join("home/.codex/config.toml");
    assert!(config.exists() && launcher.try_wait().unwrap().is_none());
    fs::write(home.root().join("home/quit"), "").unwrap();
    assert_eq!(launcher.wait().unwrap().code(), Some(0));
    assert!(!config.exists(), "there was none before");
}

/// Waits for its end, writes to both its ends before it, and leaves something behind.
const WINDOW: &str = r#"setsid sleep 1000 & echo $! > "$HOME/left"
trap 'exit 5' INT
echo > "$HOME/started"
until [ -e "$HOME/quit" ]; do sleep 0.02; done
echo out || exit 6; echo err >&2 || exit 7; cp "$HOME/.codex/config.toml" "$HOME/seen"; exit 3"#;

#[test]
fn closing_the_terminal_ends_neither_codex_desktop_nor_its_launcher() {
    let home = Home::new();
    home.program("codex-desktop", WINDOW);
    let inside = |name: &str| home.root().join("home").join(name);
    let supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    let mut terminal = home.start_on_terminal(&["launch", "desktop"]);
    wait_for("Codex Desktop", || inside("started").exists().then_some(()));
    let left = fs::read_to_string(inside("left")).unwrap().trim().parse().unwrap();
    let left = Process::open(left).unwrap();
    terminal.kill().unwrap();
    // The kernel has told everybody who is to be told before it is gone.
    terminal.wait().unwrap();
    assert!(inside(".codex/config.toml").exists());
    fs::write(inside("quit"), "").unwrap();
    let end = calls_of_session(&supervisor).last().unwrap().1.clone();
    assert_eq!((&end["exit"], &end["n_left"]), (&json!("exit code 3"), &json!(0)));
    assert!(inside("seen").exists() && left.has_ended());
    wait_for("the settings to be restored", || (!inside(".codex/config.toml").exists()).then_some(()));
}

#[test]
fn the_keyboard_still_ends_codex_desktop() {
    let home = Home::new();
    home.program("codex-desktop", WINDOW);
    let _supervisor = Supervisor::with(&home, &[endpoint("zai", json!({}))]);
    let mut terminal = home.start_on_terminal(&["launch", "desktop"]);
    wait_for("Codex Desktop", || home.root().join("home/started").exists().then_some(()));
    terminal.stdin.take().unwrap().write_all(b"\x03").unwrap();
    assert_eq!(terminal.wait().unwrap().code(), Some(5));
    assert!(!home.root().join("home/.codex/config.toml").exists());
}

#[test]
fn on_its_own_login_codex_needs_nobody() {
    let home = Home::new();
    home.program("codex", CODEX);
    let socket = home.paths.control_socket();
    let run = || home.run(&["launch", "cli", "--default", "--", "login"]);
    let ended = run();
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(7), "codex ran\n", ""), "{ended:#?}");
    // Nobody can connect to that.
    let useless = UnixDatagram::bind(&socket).unwrap();
    let ended = run();
    let warning =
        format!("warning: Codex runs unwatched: the supervisor's socket `{}` cannot be used: ", socket.display());
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(7), "codex ran\n"), "{ended:#?}");
    assert!(ended.stderr.starts_with(&warning), "{ended:#?}");
    drop(useless);
    fs::remove_file(&socket).unwrap();
    // Nobody answers there.
    let _silent = UnixListener::bind(&socket).unwrap();
    let limit = Duration::from_secs(8);
    let elapsed = shortest(limit, || {
        let ended = run();
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(7), "codex ran\n"), "{ended:#?}");
        assert!(ended.stderr.contains("Codex runs unwatched: the supervisor does not answer in time"), "{ended:#?}");
    });
    assert!(elapsed < limit, "{elapsed:?}");
    fs::remove_file(&socket).unwrap();
}

#[test]
fn a_missing_codex_desktop_is_told() {
    let mut home = Home::new();
    home.run(&["launch", "desktop"]).failed(
        1,
        "Codex Desktop was not found: no `codex-desktop` on the `PATH`, no entry among the applications",
        Some("name its program in `CODEX_SUPERVISOR_DESKTOP`, or use `codexctl launch cli`"),
    );
    home.set("CODEX_SUPERVISOR_DESKTOP", "/nowhere");
    home.run(&["launch", "desktop"]).failed(
        1,
        "`CODEX_SUPERVISOR_DESKTOP` names `/nowhere`, which is no program",
        Some("name the path of Codex Desktop there, or unset `CODEX_SUPERVISOR_DESKTOP`"),
    );
}
