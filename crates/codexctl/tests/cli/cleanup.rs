use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command};

use codex_control::process::{self, Identity, Process};
use codex_control::registry::{Registry, SessionEntry, SupervisorEntry, WorkerEntry};
use codex_control::session::{Kind, Session};
use codex_control::single::{self, Holder, Purpose};
use serde_json::json;

use crate::home::{Home, stale_socket, wait_for};

/// A process, its identity, and one that looks the same.
struct Stray {
    child: Child,
    look_alike: Child,
    identity: Identity,
}

impl Stray {
    fn start() -> Self {
        let sleep = || {
            let mut command = Command::new("sleep");
            std::os::unix::process::CommandExt::process_group(command.arg("86400"), 0).spawn().unwrap()
        };
        let (child, look_alike) = (sleep(), sleep());
        let identity = Process::open(child.id()).unwrap().identity().clone();
        Self { child, look_alike, identity }
    }

    /// Whether it was ended; its look-alike must not have been.
    fn was_ended(mut self) -> bool {
        let was_ended = self.child.try_wait().unwrap().is_some();
        assert!(self.look_alike.try_wait().unwrap().is_none(), "a bystander was ended");
        was_ended
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        for child in [&mut self.child, &mut self.look_alike] {
            let _ = child.kill(); // fails when it has ended
            let _ = child.wait();
        }
    }
}

/// A process that was there.
fn gone() -> Identity {
    let mut child = Command::new("true").spawn().unwrap();
    let identity = Process::open(child.id()).unwrap().identity().clone();
    child.wait().unwrap();
    identity
}

fn registry(home: &Home, supervisor: Identity, workers: &[(&str, &Identity)], sessions: Vec<SessionEntry>) {
    let supervisor = SupervisorEntry { identity: supervisor, build: "0".to_owned(), started_at_ms: 1 };
    let entry = |(endpoint, identity): &(&str, &Identity)| WorkerEntry {
        endpoint: endpoint.parse().unwrap(),
        generation: 1,
        identity: (*identity).clone(),
        address: ([127, 0, 0, 1], 1).into(),
        started_at_ms: 1,
        leaving: false,
        fingerprint: String::new(),
    };
    let workers = workers.iter().map(entry).collect();
    Registry::new(supervisor, workers, sessions, Vec::new()).store(&home.paths.registry()).unwrap();
}

fn session(endpoint: &str, launcher: Identity, program: Identity, members: &[&Stray]) -> SessionEntry {
    let session = Session {
        id: "cli-1".parse().unwrap(),
        kind: Kind::Cli,
        endpoint: Some(endpoint.parse().unwrap()),
        started_at_ms: 1,
        launcher,
        program: Some(program),
        scope: None,
        logs: Vec::new(),
        spared: Vec::new(),
    };
    SessionEntry { session, members: members.iter().map(|stray| stray.identity.clone()).collect() }
}

#[test]
fn nothing_is_found_where_nothing_is_left() {
    let home = Home::new();
    assert_eq!(home.run(&["cleanup"]).succeeded(), "nothing is left of earlier runs\n");
    assert_eq!(home.run(&["cleanup", "--json"]).json(), json!({ "dry_run": false, "items": [] }));
}

#[test]
fn orphans_are_ended_and_what_is_needed_stays() {
    let home = Home::new();
    let (orphan, used, left, codex) = (Stray::start(), Stray::start(), Stray::start(), Stray::start());
    let sessions =
        vec![session("used", gone(), codex.identity.clone(), &[]), session("orphan", gone(), gone(), &[&left])];
    registry(&home, gone(), &[("orphan", &orphan.identity), ("used", &used.identity)], sessions);
    let told = |done: &str| {
        format!(
            "\
{done}worker of `orphan`, pid {}
kept        worker of `used`, pid {}: Codex (pid {1}) uses it; `codexctl start` takes it over
kept        Codex (cli-1), pid {1}: it runs
{done}1 process that Codex (cli-1) has left
",
            orphan.identity.pid, used.identity.pid
        )
        .replacen(&format!("Codex (pid {})", used.identity.pid), &format!("Codex (pid {})", codex.identity.pid), 1)
        .replacen(
            &format!("(cli-1), pid {}", used.identity.pid),
            &format!("(cli-1), pid {}", codex.identity.pid),
            1,
        )
    };
    assert_eq!(home.run(&["cleanup", "--dry-run"]).succeeded(), told("would go    "));
    assert_eq!(home.run(&["cleanup"]).succeeded(), told("cleaned up  "));
    assert!(orphan.was_ended() && left.was_ended());
    assert!(!used.was_ended() && !codex.was_ended());
}

#[test]
fn what_a_stop_has_left_of_sessions_is_looked_at_too() {
    let home = Home::new();
    let (worker, left) = (Stray::start(), Stray::start());
    let leave = |id: &str| {
        let mut entry = session("zai", gone(), gone(), &[&left]);
        entry.session.id = id.parse().unwrap();
        registry(&home, gone(), &[], vec![entry]);
        fs::create_dir_all(home.paths.left_sessions().parent().unwrap()).unwrap();
        fs::rename(home.paths.registry(), home.paths.left_sessions()).unwrap();
    };
    leave("cli-1");
    let expected = |id: &str| format!("would go    1 process that Codex ({id}) has left\n");
    assert_eq!(home.run(&["cleanup", "--dry-run"]).succeeded(), expected("cli-1"));
    // Beside a registry that knows it already, and one that does not.
    registry(&home, gone(), &[("zai", &worker.identity)], vec![session("zai", gone(), gone(), &[&left])]);
    let orphan = format!("would go    worker of `zai`, pid {}\n", worker.identity.pid);
    assert_eq!(home.run(&["cleanup", "--dry-run"]).succeeded(), orphan.clone() + &expected("cli-1"));
    leave("cli-2");
    registry(&home, gone(), &[("zai", &worker.identity)], Vec::new());
    assert_eq!(home.run(&["cleanup", "--dry-run"]).succeeded(), orphan + &expected("cli-2"));
    home.run(&["cleanup"]).succeeded();
    assert!(left.was_ended() && worker.was_ended());
}

#[test]
fn beside_a_supervisor_its_workers_stay_and_a_damaged_registry_ends_nobody() {
    let home = Home::new();
    let worker = Stray::start();
    registry(&home, process::own_identity().unwrap(), &[("zai", &worker.identity)], Vec::new());
    let expected = format!(
        "kept        worker of `zai`, pid {}: the supervisor (pid {}) runs\n",
        worker.identity.pid,
        std::process::id()
    );
    assert_eq!(home.run(&["cleanup"]).succeeded(), expected);
    registry(&home, gone(), &[("zai", &worker.identity)], Vec::new());
    let whole = fs::read_to_string(home.paths.registry()).unwrap();
    fs::write(home.paths.registry(), whole.replacen("\"generation\": 1", "\"generation\": 2", 1)).unwrap();
    let ended = home.run(&["cleanup"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "nothing is left of earlier runs\n"));
    assert!(ended.stderr.contains("the registry is damaged (its checksum does not fit)"), "{}", ended.stderr);
    assert!(!worker.was_ended());
}

#[test]
fn beside_a_supervisor_that_starts_everything_of_ours_is_its_own_business() {
    let home = Home::new();
    let (worker, left) = (Stray::start(), Stray::start());
    registry(&home, gone(), &[("zai", &worker.identity)], vec![session("zai", gone(), gone(), &[&left])]);
    // It has made its socket and does not listen yet.
    stale_socket(&home.paths.control_socket());
    let lock = single::take(&home.paths.lock(), Purpose::Supervise).unwrap();
    let own = std::process::id();
    let expected = format!(
        "kept        worker of `zai`, pid {}: the supervisor (pid {own}) runs\n\
         kept        1 process that Codex (cli-1) has left: the supervisor (pid {own}) runs and ends them\n",
        worker.identity.pid
    );
    assert_eq!(home.run(&["cleanup", "--dry-run"]).succeeded(), expected);
    assert_eq!(home.run(&["cleanup"]).succeeded(), expected);
    assert!(home.paths.control_socket().exists());
    drop(lock);
    assert!(!worker.was_ended() && !left.was_ended());
}

#[test]
fn a_worker_has_the_time_its_streams_need_and_no_supervisor_starts_meanwhile() {
    let home = Home::new();
    // Like a worker that tells its streams what happens: longer than what a session leaves would get.
    let script = "trap 'echo > asked; sleep 2; until [ -e go ]; do sleep 0.01; done; echo > told; exit 0' TERM; \
                  echo > ready; while :; do sleep 0.01; done";
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(home.root());
    let mut child = std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn().unwrap();
    let has = |name: &str| home.root().join(name).exists().then_some(());
    wait_for("the worker to be ready", || has("ready"));
    registry(&home, gone(), &[("zai", Process::open(child.id()).unwrap().identity())], Vec::new());
    let mut cleaning = home.command(&["cleanup"]).spawn().unwrap();
    wait_for("it to be asked to end", || has("asked"));
    let holder = Holder { pid: Some(cleaning.id()), purpose: Purpose::CleanUp };
    assert_eq!(single::holder(&home.paths.lock()), Some(holder));
    fs::write(home.root().join("go"), "").unwrap();
    assert!(cleaning.wait().unwrap().success());
    assert!(has("told").is_some(), "it was killed before its time");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(single::holder(&home.paths.lock()), None);
}

#[test]
fn stale_sockets_and_pid_files_go_and_used_ones_stay() {
    let home = Home::new();
    let inside = |name: &str| home.root().join("home").join(name);
    for folder in [".codex", ".local/share/codex-desktop", ".cache/codex-desktop"] {
        fs::create_dir_all(inside(folder)).unwrap();
    }
    stale_socket(&inside(".codex/.launch-action-socket"));
    let used = UnixListener::bind(inside(".local/share/codex-desktop/.launch-action-socket")).unwrap();
    fs::write(inside(".codex/config.toml"), "a = 1\n").unwrap();
    fs::write(inside(".cache/codex-desktop/.codex-desktop-pid"), format!("{}\n", gone().pid)).unwrap();
    fs::write(inside(".cache/codex-desktop/.webview-pid"), std::process::id().to_string()).unwrap();
    fs::write(inside(".local/share/codex-desktop/.webview-pid"), "nonsense").unwrap();
    stale_socket(&home.paths.control_socket());
    let told = |done: &str| {
        let path = |name: &str| inside(name).display().to_string();
        format!(
            "{done}{}\n{done}{}\nkept        {}: somebody listens on it\n{done}{}\n{done}{}\nkept        {}: there is a process {}\n",
            home.paths.control_socket().display(),
            path(".codex/.launch-action-socket"),
            path(".local/share/codex-desktop/.launch-action-socket"),
            path(".local/share/codex-desktop/.webview-pid"),
            path(".cache/codex-desktop/.codex-desktop-pid"),
            path(".cache/codex-desktop/.webview-pid"),
            std::process::id(),
        )
    };
    assert_eq!(home.run(&["cleanup", "--dry-run"]).succeeded(), told("would go    "));
    assert_eq!(home.run(&["cleanup"]).succeeded(), told("cleaned up  "));
    used.set_nonblocking(true).unwrap();
    assert!(used.accept().is_err(), "a connection would start what a service manager listens for");
    assert!(inside(".codex/config.toml").exists());
    assert!(!inside(".codex/.launch-action-socket").exists() && !home.paths.control_socket().exists());
    assert!(inside(".cache/codex-desktop/.webview-pid").exists());
}
