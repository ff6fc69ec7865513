//! What holds for all commands.

use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::Value;

use crate::home::Home;
use crate::supervisor::Supervisor;

#[test]
fn wrong_usage_is_exit_code_2() {
    let home = Home::new();
    for arguments in [
        &[][..],
        &["statsu"],
        &["endpoint", "add"],
        &["endpoint", "add", "x"],
        &["endpoint", "add", "x", "--base-url", "http://h"],
        &["endpoint", "add", "--preset", "zai", "--key-env", "A", "--key-file", "b"],
        &["endpoint", "add", "--preset", "zai", "--no-key", "--key-env", "A"],
        &["endpoint", "add", "--preset", "zai", "--key-env", "A", "--key-command", "b"],
        &["endpoint", "add", "--preset", "zai", "--port", "0"],
        &["endpoint", "add", "Not-Kebab", "--preset", "zai"],
        &["endpoint", "set", "zai", "port"],
        &["endpoint", "set", "zai", "port", "1", "--unset"],
        &["token", "../../etc/passwd"],
        &["token", "zai", "--timeout-ms", "5"],
        &["launch", "cli", "--model", ""],
        &["completions", "powershell"],
        &["logs", "-n", "x"],
    ] {
        let ended = home.run(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}: {ended:#?}");
    }
    assert!(home.run(&["statsu"]).stderr.contains("'status'"), "a near command is suggested");
}

#[test]
fn a_supervisor_that_talks_nonsense_is_told() {
    for (says, message) in [
        (&b""[..], "the supervisor closed the connection"),
        (b"SSH-2.0\n", "what the supervisor sent cannot be understood"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"version\":3}}\n", "has an unknown form"),
    ] {
        let home = Home::new();
        let listener = UnixListener::bind(home.paths.control_socket()).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // Read first: closing with unread bytes would cut the answer off.
            std::io::BufRead::read_line(&mut std::io::BufReader::new(&stream), &mut String::new()).unwrap();
            std::io::Write::write_all(&mut stream, says).unwrap();
        });
        let ended = home.run(&["status"]);
        server.join().unwrap();
        assert!(matches!(ended.code, Some(1 | 3)) && ended.stderr.contains(message), "{ended:#?}");
        assert!(ended.stderr.contains("  hint: "), "{ended:#?}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let home = Home::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = home.command(&["completions", "bash"]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}

#[test]
fn a_home_is_needed() {
    let home = Home::new();
    let output = home.command(&["presets"]).env_remove("HOME").output().unwrap();
    crate::home::Ended::from(output).failed(
        1,
        "the variable `HOME` is not set, so there is no place for configuration and state",
        None,
    );
}

#[test]
fn presets_are_listed_without_a_supervisor() {
    let home = Home::new();
    let ended = home.run(&["presets"]);
    let row = ended.succeeded().lines().find(|line| line.starts_with("zai-coding ")).unwrap();
    let cells: Vec<&str> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(
        cells,
        ["zai-coding", "Z.AI coding plan", "chat-completions", "$ZAI_API_KEY", "https://api.z.ai/api/coding/paas/v4"]
    );
    assert!(ended.stdout.contains("\nollama: raise the context length"), "{ended:#?}");
    let rows = home.run(&["presets", "--json"]).json();
    assert!(
        rows.as_array().unwrap().iter().any(|row| row["id"] == "zai-coding" && row["auth"]["env"] == "ZAI_API_KEY")
    );
    std::fs::create_dir_all(home.paths.config_folder()).unwrap();
    std::fs::write(home.paths.table_override("providers"), "[[provider]]\nidd = \"x\"\n").unwrap();
    let ended = home.run(&["presets"]);
    assert!(ended.succeeded().contains("zai-coding "), "the embedded rows stay");
    assert!(ended.stderr.contains("providers.toml:2:1: unknown field `idd`"), "{ended:#?}");
}

#[test]
fn completions_know_every_command_but_the_internal_one() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let ended = home.run(&["completions", shell]);
        let script = ended.succeeded();
        assert!(script.contains("codexctl") && script.contains("restart") && script.contains("key-command"), "{shell}");
        assert!(!script.contains("__detach"), "{shell}");
        let answer: Value = home.run(&["completions", shell, "--json"]).json();
        assert_eq!(answer["script"], script);
    }
}

#[test]
fn help_has_an_example_for_each_command() {
    let home = Home::new();
    let _supervisor = Supervisor::with(&home, &[]);
    for command in ["status", "presets", "token", "launch cli", "endpoint add", "rpc"] {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let ended = home.run(&arguments);
        assert!(
            ended.succeeded().contains("Example") && ended.stdout.contains(&format!("codexctl {command}")),
            "{ended:#?}"
        );
    }
}
