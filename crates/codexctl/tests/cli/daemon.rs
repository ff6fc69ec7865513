//! Starting and ending the supervisor itself: as a process of its own, and by systemd.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use codex_control::process::Process;
use codex_control::single;
use serde_json::{Value, json};

use crate::home::{Home, shortest, wait_for, write_program, write_script};
use crate::supervisor::{self, stand_in_script};

/// A home with a `codexctl` that finds a stand-in beside it.
fn home_with_supervisor(script: &str) -> Home {
    let mut home = Home::new();
    let folder = home.install_codexctl("own");
    write_script(&folder.join("codex-supervisor"), script);
    home
}

/// Place of the session id in `/proc/PID/stat`, counted behind the program's name.
const SESSION: usize = 3;

fn stat_field(pid: u64, index: usize) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(index).unwrap().parse().unwrap()
}

fn is_alive(pid: u64) -> bool {
    // A process that nobody has waited for yet still has an entry; it is a zombie.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_supervisor_is_started_apart_and_ended_whole() {
    let home = home_with_supervisor(&stand_in_script());
    let started = home.run(&["start", "--json"]).json();
    assert_eq!(started["running"], true);
    let pid = started["daemon"]["pid"].as_u64().unwrap();
    assert!(is_alive(pid));
    assert_ne!(stat_field(pid, SESSION), stat_field(std::process::id().into(), SESSION), "it has a session of its own");
    for (fd, target) in [(0, "/dev/null"), (1, "/dev/null"), (2, "/dev/null")] {
        assert_eq!(
            fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap(),
            Path::new(target),
            "it keeps no terminal open"
        );
    }
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"), "it keeps no folder busy");
    assert_eq!(home.run(&["start"]).succeeded(), format!("the supervisor runs already (pid {pid})\n"));
    let restarted = home.run(&["restart", "--json"]).json();
    let next_pid = restarted["daemon"]["pid"].as_u64().unwrap();
    assert!(!is_alive(pid) && is_alive(next_pid));
    assert_eq!(home.run(&["stop"]).succeeded(), "the supervisor is stopped\n");
    assert!(!is_alive(next_pid));
    assert_eq!(home.run(&["stop"]).succeeded(), "the supervisor was not running\n");
    assert_eq!(home.run(&["stop", "--json"]).json(), json!({ "running": false, "was_running": false }));
}

#[test]
fn a_command_that_needs_the_supervisor_starts_it_and_says_so() {
    let home = home_with_supervisor(&stand_in_script());
    let ended = home.run(&["endpoint", "list", "--json"]);
    assert_eq!((ended.json(), ended.stderr.as_str()), (json!([]), "the supervisor is not running: starting it\n"));
    home.run(&["stop"]).succeeded();
}

#[test]
fn a_rival_that_was_faster_is_used() {
    // What was started finds the place taken and ends, before the other one answers.
    let home = home_with_supervisor(&format!("({}) &\nexit 1", stand_in_script()));
    home.run(&["start"]).succeeded();
    home.run(&["stop"]).succeeded();
}

#[test]
fn a_rival_that_is_slow_is_waited_for_as_long_as_it_has_the_lock() {
    let rival = format!("flock 9; until [ -e \"$HOME/go\" ]; do sleep 0.02; done\n{}", stand_in_script());
    let lock = "$XDG_RUNTIME_DIR/codex-supervisor/supervisor.lock";
    let home = home_with_supervisor(&format!("({rival}) 9>>\"{lock}\" &\nexit 1"));
    let mut starting = home.command(&["start"]).spawn().unwrap();
    wait_for("the rival", || single::holder(&home.paths.lock()));
    // Longer than for one that nobody seems to have.
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(starting.try_wait().unwrap().is_none(), "it is waited for");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    fs::write(home.root().join("home/go"), "").unwrap();
    assert!(starting.wait().unwrap().success());
    home.run(&["stop"]).succeeded();
}

#[test]
fn a_unit_without_a_service_manager_is_not_used() {
    let home = home_with_supervisor(&stand_in_script());
    let units = home.root().join("home/.config/systemd/user");
    fs::create_dir_all(&units).unwrap();
    fs::write(units.join("codex-supervisor.service"), "[Service]\n").unwrap();
    home.program("systemctl", "exit 1");
    home.run(&["start"]).succeeded();
    home.run(&["stop"]).succeeded();
}

#[test]
fn two_commands_may_start_it_at_once() {
    // The second one finds the place taken, as with the real lock, and ends at once.
    let script = format!("mkdir \"$HOME/lock\" 2>/dev/null || exit 1\n{}", stand_in_script());
    let home = home_with_supervisor(&script);
    let ended: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| home.run(&["endpoint", "list", "--json"]))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for ended in ended {
        assert_eq!(ended.json(), json!([]));
    }
    home.run(&["stop"]).succeeded();
}

#[test]
fn a_supervisor_that_ends_at_once_is_told_at_once() {
    let home = home_with_supervisor("exit 1");
    let limit = Duration::from_secs(5);
    let elapsed = shortest(limit, || {
        let ended = home.run(&["start"]);
        assert_eq!(ended.code, Some(3), "{ended:#?}");
        assert!(
            ended.stderr.contains("ended") && ended.stderr.contains("`codex-supervisor --foreground` shows why"),
            "{ended:#?}"
        );
    });
    assert!(elapsed < limit, "{elapsed:?}");
}

#[test]
fn a_missing_supervisor_is_told() {
    let mut home = Home::new();
    let folder = home.install_codexctl("own");
    let hint = Some("install it beside `codexctl`: `scripts/install.sh` does");
    let message =
        "the supervisor cannot be started: there is no `codex-supervisor` beside this program or on the `PATH`";
    home.run(&["start"]).failed(3, message, hint);
    write_program(&folder.join("codex-supervisor"), "#!/nonexistent/interpreter\n");
    let ended = home.run(&["start"]);
    assert!(ended.code == Some(3) && ended.stderr.contains("cannot be started: No such file"), "{ended:#?}");
}

/// A home where systemd is a script that writes down what it is asked and keeps the stand-in running.
struct Systemd {
    home: Home,
    _manager: UnixListener,
}

impl Systemd {
    fn new() -> Self {
        let home = Home::new();
        let units = home.root().join("home/.config/systemd/user");
        fs::create_dir_all(&units).unwrap();
        fs::write(units.join("codex-supervisor.service"), "[Service]\n").unwrap();
        let socket = home.paths.service_manager_socket();
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let manager = UnixListener::bind(socket).unwrap();
        let supervisor = write_script(&home.root().join("supervisor"), &stand_in_script());
        let script = format!(
            r#"echo "$@" >> "$HOME/asked"
case "$2" in
  start) [ -e "$HOME/fails" ] && {{ echo "Job failed." >&2; exit 1; }}
         '{}' > /dev/null 2>&1 < /dev/null & echo $! > "$HOME/pid" ;;
  stop) kill "$(cat "$HOME/pid")"; rm "$HOME/pid" ;;
  is-active) [ -e "$HOME/pid" ] ;;
esac"#,
            supervisor.display()
        );
        home.program("systemctl", &script);
        Self { home, _manager: manager }
    }

    fn asked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.home.root().join("home/asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn an_installed_unit_is_used() {
    let systemd = Systemd::new();
    let started = systemd.home.run(&["start", "--json"]).json();
    let process = Process::open(u32::try_from(started["daemon"]["pid"].as_u64().unwrap()).unwrap()).unwrap();
    assert_eq!(systemd.home.run(&["stop"]).succeeded(), "the supervisor is stopped\n");
    let pidfd = rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN);
    assert_eq!(rustix::event::poll(&mut [pidfd], None), Ok(1), "it ends");
    let asked = [
        "--user start codex-supervisor.service",
        "--user is-active codex-supervisor.service --quiet",
        "--user stop codex-supervisor.service",
    ];
    assert_eq!(systemd.asked(), asked);
}

#[test]
fn a_unit_that_does_not_start_is_told() {
    let systemd = Systemd::new();
    fs::write(systemd.home.root().join("home/fails"), "").unwrap();
    systemd.home.run(&["start"]).failed(
        3,
        "`systemctl --user start codex-supervisor.service` failed: Job failed.",
        Some("`journalctl --user -u codex-supervisor.service` says more"),
    );
}

#[test]
fn status_does_not_wake_a_supervisor_that_sleeps_behind_its_socket() {
    let systemd = Systemd::new();
    let home = &systemd.home;
    fs::write(home.root().join("home/.config/systemd/user/codex-supervisor.socket"), "[Socket]\n").unwrap();
    let accepted = supervisor::silent(home);
    home.run(&["status"]).failed(3, "the supervisor is not running", Some("start it with `codexctl start`"));
    assert_eq!(home.run(&["stop", "--json"]).json()["was_running"], Value::Bool(false));
    assert!(accepted.try_recv().is_err(), "a connection would have started it");
}
