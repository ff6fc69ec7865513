//! Codex's own `config.toml`: what `codexctl use` puts in is what the real Codex works on, and it goes without a trace.

use std::fs;
use std::path::PathBuf;

use codex_control::rpc::EndpointState;
use e2e::codex::{self, Run};
use e2e::home::{DEADLINE, PROVIDER_KEY, SandboxHome};
use e2e::provider::{FakeProvider, Script, Step, When};
use e2e::until::until;

/// What a person has in it: comments, a provider and a model of their own, sections.
const OWN: &str = "\
# mine
model = \"gpt-5.6\" # the good one
check_for_update_on_startup = false

[analytics]
enabled = false   # no

[features]
plugins = false
apps = false

[model_providers.other]
name = \"Other\"
base_url = \"http://127.0.0.1:9/v1\"
";

fn provider() -> FakeProvider {
    FakeProvider::start(
        Script::new()
            .key(PROVIDER_KEY)
            .turn(When::user("Write."), [Step::shell("echo written >> file.txt; echo done-one")])
            .turn(When::tool("done-one"), [Step::text("It is there.")]),
    )
}

fn file(home: &SandboxHome) -> PathBuf {
    home.path("codex/config.toml")
}

/// Codex as anybody starts it: nothing tells it of us but its own file.
fn exec(home: &SandboxHome, prompt: &str) -> Run {
    let mut command = home.command(codex::program());
    command.args(["exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]);
    command.args(["--strict-config", prompt]);
    Run::finish(home.spawn(command))
}

#[test]
fn codex_works_on_an_endpoint_by_its_own_file_and_the_file_comes_back() {
    let provider = provider();
    let home = SandboxHome::with_provider(&provider);
    home.write("codex/config.toml", OWN);
    let shown = home.ctl(&["use", "scripted"]);
    assert_eq!(shown.code(), 1, "nobody can be asked: {shown:?}");
    assert!(
        shown.stderr.contains("  - model = \"gpt-5.6\" # the good one\n  + model = \"scripted\" # the good one\n"),
        "{shown:?}"
    );
    assert!(!shown.stderr.contains("9/v1"), "other lines are nobody's business: {shown:?}");
    assert_eq!(home.read("codex/config.toml"), OWN);
    let path = file(&home).display().to_string();
    assert_eq!(home.ctl(&["use", "scripted", "--yes"]).ok(), format!("{path} points Codex at the endpoint scripted\n"));
    let ours = home.read("codex/config.toml");
    assert_ne!(ours, OWN);
    let run = exec(&home, "Write.");
    run.assert_clean(&provider);
    assert_eq!((run.answer(), home.read("work/file.txt")), ("It is there.", "written\n".to_owned()));
    // Codex notes which folders it trusts, say: that is the person's, and stays.
    assert_eq!(home.read("codex/config.toml"), ours);
    home.stop();
    assert_eq!(home.read("codex/config.toml"), OWN, "nobody serves it now");
    home.start();
    home.wait_state("scripted", EndpointState::Running);
    until("the file that was asked for", DEADLINE, || (home.read("codex/config.toml") == ours).then_some(()));
    assert_eq!(
        home.ctl(&["use", "scripted", "--yes"]).ok(),
        format!("{path} goes on pointing Codex at the endpoint scripted\n")
    );
    fs::write(file(&home), ours.clone() + "\n[tui]\ntheme = \"x\"\n").unwrap();
    assert_eq!(home.ctl(&["use", "--none"]).ok(), format!("{path} is as it was before\n"));
    assert_eq!(home.read("codex/config.toml"), format!("{OWN}\n[tui]\ntheme = \"x\"\n"));
}

#[test]
fn the_file_comes_back_without_a_supervisor() {
    let provider = FakeProvider::start(Script::new().key(PROVIDER_KEY));
    let home = SandboxHome::with_provider(&provider);
    home.write("codex/config.toml", OWN);
    home.ctl(&["use", "scripted", "--yes"]).ok();
    let ours = home.read("codex/config.toml");
    home.kill_supervisor();
    assert_eq!(home.read("codex/config.toml"), ours, "the worker goes on");
    let path = file(&home).display().to_string();
    assert_eq!(home.ctl(&["restore"]).ok(), format!("{path} is as it was before\n"));
    assert_eq!(home.read("codex/config.toml"), OWN);
    home.start();
    home.stop();
    assert_eq!(home.read("codex/config.toml"), OWN);
}

#[test]
fn a_file_that_cannot_be_changed_is_told_with_its_remedy() {
    let provider = FakeProvider::start(Script::new().key(PROVIDER_KEY));
    let home = SandboxHome::with_provider(&provider);
    home.write("codex/config.toml", "a = 1\nb = \n");
    let output = home.ctl(&["use", "scripted", "--yes"]);
    let path = file(&home).display().to_string();
    let expected = format!("error: Codex's configuration `{path}` stays as it is: line 2, column 5: ");
    assert!(
        output.stderr.starts_with(&expected) && output.stderr.ends_with("  hint: mend that line, then try again\n"),
        "{output:?}"
    );
    assert_eq!(home.read("codex/config.toml"), "a = 1\nb = \n");
    let output = home.ctl(&["use", "nobody", "--yes"]);
    assert!(output.stderr.starts_with("error: there is no endpoint `nobody`"), "{output:?}");
}
