//! Codex's own `config.toml`: what `codexctl use` and `launch desktop` put in is what the real Codex works on, and it
//! goes without a trace.
//!
//! The desktop is a stand-in, a script: like the real one it is told nothing on its command line, reads `config.toml`, runs
//! the real Codex on a task, and stays until it is closed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use codex_control::environment;
use codex_control::process::Process;
use codex_control::rpc::EndpointState;
use codex_control::session::{self, Kind};
use e2e::codex::{self, Run};
use e2e::home::{DEADLINE, PROVIDER_KEY, Running, SandboxHome, listener_apart};
use e2e::leftovers::{self, Leftover};
use e2e::provider::{FakeProvider, Script, Step, When};
use e2e::until::{try_until, until};
use rustix::process::Signal;

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
    let taken_back = home.ctl(&["use", "--none"]);
    assert!(taken_back.stderr.contains("  - model_provider = \"supervised\""), "{taken_back:?}");
    assert_eq!(taken_back.ok(), format!("{path} is as it was before\n"));
    assert_eq!(home.read("codex/config.toml"), format!("{OWN}\n[tui]\ntheme = \"x\"\n"));
}

#[test]
fn an_endpoint_that_moves_takes_codex_with_it() {
    let provider = provider();
    let home = SandboxHome::with_provider(&provider);
    home.write("codex/config.toml", OWN);
    home.ctl(&["use", "scripted", "--yes"]).ok();
    let (ours, before) = (home.read("codex/config.toml"), home.address("scripted").to_string());
    let free = || listener_apart().local_addr().unwrap();
    let first = free();
    home.ctl(&["endpoint", "set", "scripted", "port", &first.port().to_string()]).ok();
    let expected = ours.replace(&before, &first.to_string());
    until("the new address", DEADLINE, || (home.read("codex/config.toml") == expected).then_some(()));
    let run = exec(&home, "Write.");
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "It is there.");
    // The same while nobody looks.
    home.kill_supervisor();
    let second = free();
    let settings = home.read("config/codex-supervisor/supervisor.toml");
    home.write_settings(&settings.replace(&format!("port = {}", first.port()), &format!("port = {}", second.port())));
    home.start();
    let expected = ours.replace(&before, &second.to_string());
    until("the newest address", DEADLINE, || (home.read("codex/config.toml") == expected).then_some(()));
    home.ctl(&["use", "--none"]).ok();
    assert_eq!(home.read("codex/config.toml"), OWN);
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

/// Variable with the number of desktops that are killed, and their number without it; scripts/desktop.sh sets it.
const ROUNDS: (&str, u32) = ("E2E_DESKTOP_ROUNDS", 6);

/// The stand-in: `$DESKTOP_TASK` is Codex's prompt, if there is one; its arguments are in `open` as soon as there is such a
/// file; a file `quit` closes it.
const DESKTOP: &str = r#"#!/bin/sh
cp "$CODEX_HOME/config.toml" "$HOME/seen.toml"
if [ -n "$DESKTOP_TASK" ]; then
  "$CODEX_SUPERVISOR_CODEX" exec --json --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox "$DESKTOP_TASK" \
    < /dev/null > "$HOME/task.out" 2> "$HOME/task.err"
  echo $? > "$HOME/task.code"
fi
echo "$@" > "$HOME/opening"; mv "$HOME/opening" "$HOME/open"
until [ -e "$HOME/quit" ]; do sleep 0.02; done
exit 3
"#;

/// A home with the stand-in, and a person's `config.toml`.
fn desktop_home(provider: &FakeProvider, script: &str) -> SandboxHome {
    let home = SandboxHome::with_provider(provider);
    home.write("codex/config.toml", OWN);
    home.write("home/desktop", script);
    fs::set_permissions(home.path("home/desktop"), fs::Permissions::from_mode(0o755)).expect("the home is writable");
    home
}

/// `codexctl launch desktop`, started.
fn launch(home: &SandboxHome, arguments: &[&str], task: &str) -> Running {
    for name in ["seen.toml", "task.out", "task.code", "open", "quit"] {
        let _ = fs::remove_file(home.path("home").join(name)); // most are not there
    }
    let mut command = home.ctl_command(&["launch", "desktop"]);
    command.args(arguments).env(environment::DESKTOP, home.path("home/desktop")).env("DESKTOP_TASK", task);
    home.spawn(command)
}

/// Waits until the desktop is open, its task done.
fn wait_open(home: &SandboxHome) {
    until("the desktop", codex::DEADLINE, || home.path("home/open").exists().then_some(()));
}

/// Waits until the supervisor knows of the desktop: the launcher tells it once the program runs.
fn wait_session(home: &SandboxHome) -> Vec<session::Status> {
    let sessions = || Some(home.status().sessions).filter(|sessions| !sessions.is_empty());
    until("the session", DEADLINE, sessions)
}

#[test]
fn a_desktop_works_on_an_endpoint_and_the_file_comes_back() {
    let provider = provider();
    let home = desktop_home(&provider, DESKTOP);
    let launcher = launch(&home, &["--endpoint", "scripted", "--", "--flag", "a b"], "Write.");
    wait_open(&home);
    assert_eq!(home.read("home/open"), "--flag a b\n");
    assert_eq!(home.read("home/task.code"), "0\n", "{}", home.read("home/task.err"));
    assert!(home.read("home/task.out").contains("It is there.") && home.read("work/file.txt") == "written\n");
    provider.assert_played();
    let ours = home.read("codex/config.toml");
    assert_eq!(home.read("home/seen.toml"), ours);
    assert!(ours.contains("model_provider = \"supervised\""), "{ours}");
    let sessions = wait_session(&home);
    assert_eq!((sessions.len(), sessions[0].kind), (1, Kind::Desktop), "{sessions:?}");
    // What is edited while it runs is the person's.
    fs::write(file(&home), ours.replace("# no", "# never") + "[tui]\ntheme = \"x\"\n").unwrap();
    home.write("home/quit", "");
    let output = launcher.finish(DEADLINE);
    assert_eq!(output.code(), 3, "its own exit code: {output:?}");
    assert!(
        output.stderr.contains("as long as Codex Desktop runs:\n")
            && output.stderr.contains("  + model = \"scripted\""),
        "{output:?}"
    );
    assert_eq!(home.read("codex/config.toml"), OWN.replace("# no", "# never") + "[tui]\ntheme = \"x\"\n");
}

#[test]
fn a_desktop_that_goes_on_while_the_supervisor_is_stopped_finds_the_endpoint_again() {
    let provider = FakeProvider::start(Script::new().key(PROVIDER_KEY));
    let home = desktop_home(&provider, DESKTOP);
    let launcher = launch(&home, &[], "");
    wait_open(&home);
    let ours = home.read("codex/config.toml");
    let before = wait_session(&home);
    home.stop();
    assert_eq!(home.read("codex/config.toml"), OWN, "nobody serves it now");
    home.start();
    let after = home.status().sessions;
    assert_eq!((before.len(), after.len(), &after[0].id, after[0].pid), (1, 1, &before[0].id, before[0].pid));
    until("the endpoint in the file", DEADLINE, || (home.read("codex/config.toml") == ours).then_some(()));
    home.write("home/quit", "");
    assert_eq!(launcher.finish(DEADLINE).code(), 3);
    assert_eq!(home.read("codex/config.toml"), OWN);
    // It ends, and its launcher is killed, while the supervisor is stopped: then there is nothing to come back to.
    let launcher = launch(&home, &[], "");
    wait_open(&home);
    wait_session(&home);
    home.stop();
    assert!(Process::open(launcher.id()).unwrap().signal(Signal::KILL).unwrap());
    launcher.finish(DEADLINE);
    home.write("home/quit", "");
    until("its end", DEADLINE, || leftovers::processes(&home.path("home")).is_empty().then_some(()));
    home.start();
    until("the end of the session", DEADLINE, || home.status().sessions.is_empty().then_some(()));
    until("the person's own file", DEADLINE, || (home.read("codex/config.toml") == OWN).then_some(()));
    home.stop();
    assert_eq!(home.read("codex/config.toml"), OWN);
}

#[test]
fn a_desktop_that_is_started_by_a_script_lasts_as_long_as_what_it_has_started() {
    let provider = FakeProvider::start(Script::new().key(PROVIDER_KEY));
    let script = DESKTOP.replace("#!/bin/sh", "#!/bin/sh\nif [ -z \"$IN\" ]; then IN=1 setsid \"$0\" & exit 0; fi");
    let home = desktop_home(&provider, &script);
    let mut launcher = launch(&home, &[], "");
    wait_open(&home);
    assert!(!launcher.has_ended() && home.read("codex/config.toml") != OWN);
    home.write("home/quit", "");
    assert_eq!(launcher.finish(DEADLINE).code(), 0);
    assert_eq!(home.read("codex/config.toml"), OWN);
}

#[test]
fn codexs_own_login_is_free_of_us_while_others_use_an_endpoint() {
    let provider = FakeProvider::start(Script::new().key(PROVIDER_KEY));
    let home = desktop_home(&provider, DESKTOP);
    let launcher = launch(&home, &["--default"], "");
    wait_open(&home);
    assert!(!home.paths().config_transactions_folder().exists(), "nothing of ours was there, so nothing was touched");
    home.write("home/quit", "");
    assert_eq!(launcher.finish(DEADLINE).code(), 3);
    home.ctl(&["use", "scripted", "--yes"]).ok();
    let ours = home.read("codex/config.toml");
    let launcher = launch(&home, &["--default"], "");
    wait_open(&home);
    assert_eq!(home.read("home/seen.toml"), OWN);
    home.write("home/quit", "");
    assert_eq!(launcher.finish(DEADLINE).code(), 3);
    assert_eq!(home.read("codex/config.toml"), ours);
    let mut command = home.ctl_command(&["launch", "cli", "--default", "--"]);
    command.env(environment::CODEX, home.path("home/desktop"));
    home.write("home/quit", "");
    assert_eq!(home.run(command).code(), 3);
    assert_eq!((home.read("home/seen.toml"), home.read("codex/config.toml")), (OWN.to_owned(), ours));
    home.ctl(&["restore"]).ok();
    assert_eq!(home.read("codex/config.toml"), OWN);
}

#[test]
fn an_endpoint_that_is_not_healthy_starts_no_desktop() {
    let provider = FakeProvider::start(Script::new().key(PROVIDER_KEY));
    let home = desktop_home(&provider, DESKTOP);
    home.ctl(&["stop", "scripted"]).ok();
    let output = launch(&home, &["--endpoint", "scripted"], "").finish(DEADLINE);
    assert_eq!(output.code(), 1);
    assert_eq!(
        output.stderr,
        "error: the endpoint `scripted` is stopped\n  hint: `codexctl start scripted` starts it\n"
    );
    assert!(!home.path("home/open").exists() && home.read("codex/config.toml") == OWN);
}

/// Whether it is a supervisor or a worker, which outlive a desktop.
fn is_service(left: &Leftover) -> bool {
    let program = left.command.split(' ').next().unwrap_or_default();
    ["/codex-supervisor", "/codex-worker"].iter().any(|name| program.ends_with(name))
}

#[test]
fn whoever_is_killed_the_file_comes_back() {
    let rounds = std::env::var(ROUNDS.0).map_or(ROUNDS.1, |text| text.parse().expect("a number of rounds"));
    let script = Script::new()
        .key(PROVIDER_KEY)
        .always(When::user("Write.").without("done-one"), [Step::shell("echo done-one")])
        .always(When::tool("done-one"), [Step::text("It is there.")]);
    let provider = FakeProvider::start(script);
    let home = desktop_home(&provider, DESKTOP);
    // From here on it belongs to nobody, as one that a killed one's successor is.
    home.stop();
    home.ctl(&["start"]).ok();
    let (mut n_done, mut seed) = (0, 0x2545_f491_u32);
    for round in 0..rounds {
        home.wait_state("scripted", EndpointState::Running);
        let mut launcher = launch(&home, &["--endpoint", "scripted"], "Write.");
        // At any moment, from before the change to after the task: an arbitrary time is what is tested here.
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let pause = Duration::from_millis(u64::from(seed >> 21));
        let _ = try_until(pause, || None::<()>);
        let of_desktop = home.path("home/desktop").display().to_string();
        let victim = match round % 3 {
            0 => Process::open(home.status().pid).ok(),
            1 => {
                let mut processes = leftovers::processes(&home.path("home")).into_iter();
                processes
                    .find(|left| left.command.starts_with("/bin/sh") && left.command.contains(&of_desktop))
                    .map(|left| left.process)
            }
            _ => Process::open(launcher.id()).ok(),
        };
        let was_killed = victim.is_some_and(|victim| victim.signal(Signal::KILL).expect("it is ours"));
        match round % 3 {
            // A desktop that lives finishes its task, served by the worker that nobody has killed. The launcher may
            // still have been waiting for an answer of the supervisor; then it has told so, and there is no desktop.
            0 => {
                let has_ended = |launcher: &mut Running| launcher.has_ended().then_some(false);
                let is_open = || home.path("home/open").exists().then_some(true);
                if until("the desktop", codex::DEADLINE, || is_open().or_else(|| has_ended(&mut launcher))) {
                    assert_eq!(home.read("home/task.code"), "0\n", "round {round}: {}", home.read("home/task.err"));
                    n_done += 1;
                }
                home.write("home/quit", "");
                launcher.finish(DEADLINE);
                home.ctl(&["start"]).ok();
            }
            1 => {
                if !was_killed {
                    wait_open(&home);
                    home.write("home/quit", "");
                }
                launcher.finish(DEADLINE);
            }
            _ => {
                home.write("home/quit", "");
                drop(launcher);
            }
        }
        // One whose launcher was killed goes on with its task. What it writes must not be taken for the next one's.
        until("the end of the desktop", codex::DEADLINE, || {
            leftovers::processes(&home.path("home")).iter().all(is_service).then_some(())
        });
        until("the person's own file", DEADLINE, || (home.read("codex/config.toml") == OWN).then_some(()));
        until("the end of the session", DEADLINE, || home.status().sessions.is_empty().then_some(()));
        // One that is killed in a change may leave its temporary for whoever looks next.
        let beside = || leftovers::files(&home.path("codex"));
        let is_ours = |path: &PathBuf| path.display().to_string().contains("config.toml");
        until("the temporary to go", DEADLINE, || (!beside().iter().any(is_ours)).then_some(()));
    }
    println!("{rounds} desktops, {n_done} tasks done though the supervisor was killed");
    home.ctl(&["stop"]).ok();
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
