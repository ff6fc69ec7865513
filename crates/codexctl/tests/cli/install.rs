//! `scripts/install.sh`: what it puts where, and that it takes the same away again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::home::{Ended, Home, write_script};

const PROGRAMS: [&str; 3] = ["codex-supervisor", "codex-worker", "codexctl"];
const UNITS: [&str; 2] = ["codex-supervisor.service", "codex-supervisor.socket"];

/// A home with programs to install, which write down how they are called, and with a `systemctl` that does the same.
struct Installation {
    home: Home,
    built: PathBuf,
}

impl Installation {
    fn new(systemctl: &str) -> Self {
        let home = Home::new();
        let built = home.root().join("built");
        fs::create_dir(&built).unwrap();
        for program in PROGRAMS {
            write_script(&built.join(program), "echo \"$0 $*\" >> \"$HOME/called\"");
        }
        home.program("systemctl", &format!("echo \"systemctl $*\" >> \"$HOME/called\"\n{systemctl}"));
        Self { home, built }
    }

    fn script(&self, arguments: &[&str]) -> Ended {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/install.sh");
        let mut command = Command::new("bash");
        command.arg(script).args(arguments).env_clear();
        command.env("HOME", self.home.root().join("home")).env("XDG_RUNTIME_DIR", self.home.root().join("run"));
        command.env("PATH", format!("{}:/usr/bin:/bin", self.home.root().join("bin").display()));
        command.current_dir(self.home.root()).output().unwrap().into()
    }

    fn install(&self, more: &[&str]) -> Ended {
        self.script(&[&["--from", self.built.to_str().unwrap()], more].concat())
    }

    /// Every file below the home, without the journal of calls.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, root: &Path, files: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, files);
                } else {
                    files.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        let root = self.home.root().join("home");
        let mut files = Vec::new();
        walk(&root, &root, &mut files);
        files.retain(|file| file != "called");
        files.sort();
        files
    }

    /// What was called since the last look, without the questions.
    fn called(&self) -> Vec<String> {
        let journal = self.home.root().join("home/called");
        let text = fs::read_to_string(&journal).unwrap_or_default();
        let _ = fs::remove_file(journal);
        let home = format!("{}/", self.home.root().join("home").display());
        let lines = text.lines().filter(|line| !line.contains("show-environment") && !line.contains("is-active"));
        lines.map(|line| line.replace(&home, "~/")).collect()
    }
}

#[test]
fn programs_and_units_come_and_go() {
    let installation = Installation::new("[ \"$2\" != is-active ]");
    let expected = [
        ".config/systemd/user/codex-supervisor.service",
        ".config/systemd/user/codex-supervisor.socket",
        ".local/bin/codex-supervisor",
        ".local/bin/codex-worker",
        ".local/bin/codexctl",
    ];
    for _ in 0..2 {
        let ended = installation.install(&[]);
        assert!(ended.succeeded().contains(".local/bin is not on your PATH"), "{ended:#?}");
        assert_eq!(installation.files(), expected);
        assert_eq!(installation.called(), ["systemctl --user daemon-reload"], "nothing is started unasked");
    }
    let home = installation.home.root().join("home");
    for program in PROGRAMS {
        let mode = fs::metadata(home.join(".local/bin").join(program)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{program}");
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../systemd");
    for unit in UNITS {
        let installed = fs::read_to_string(home.join(".config/systemd/user").join(unit)).unwrap();
        assert_eq!(installed, fs::read_to_string(source.join(unit)).unwrap(), "{unit}");
    }

    let config = home.join(".config/codex-supervisor/credentials");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("zai"), "key").unwrap();
    let ended = installation.script(&["--uninstall"]);
    assert!(ended.succeeded().ends_with(&format!("stays: your keys, in {}\n", config.display())), "{ended:#?}");
    assert_eq!(installation.files(), [".config/codex-supervisor/credentials/zai"]);
    let expected = [
        "systemctl --user disable --now codex-supervisor.socket",
        "systemctl --user disable --now codex-supervisor.service",
        "~/.local/bin/codexctl stop",
        "systemctl --user daemon-reload",
    ];
    assert_eq!(installation.called(), expected);
    let ended = installation.script(&["--uninstall"]);
    assert!(ended.succeeded().starts_with("nothing was installed in "), "{ended:#?}");
}

#[test]
fn another_folder_is_named_in_the_unit() {
    let installation = Installation::new("");
    let prefix = installation.home.root().join("home/my programs 100%");
    installation.install(&["--prefix", prefix.to_str().unwrap()]).succeeded();
    assert!(prefix.join("bin/codexctl").exists());
    let unit = installation.home.root().join("home/.config/systemd/user/codex-supervisor.service");
    let unit = fs::read_to_string(unit).unwrap();
    let start = unit.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
    let program = format!("ExecStart=\"{}/bin/codex-supervisor\"", prefix.display().to_string().replace('%', "%%"));
    assert!(start.starts_with(&program), "{start}");
    installation.script(&["--uninstall", "--prefix", prefix.to_str().unwrap()]).succeeded();
    assert_eq!(installation.files(), Vec::<String>::new());
}

#[test]
fn it_is_started_only_when_asked() {
    let installation = Installation::new("[ \"$2\" != is-active ]");
    installation.install(&["--enable"]).succeeded();
    let expected = [
        "systemctl --user daemon-reload",
        "systemctl --user enable codex-supervisor.service codex-supervisor.socket",
        "systemctl --user start codex-supervisor.socket",
        "systemctl --user start codex-supervisor.service",
    ];
    assert_eq!(installation.called(), expected);
    let running = Installation::new("");
    let ended = running.install(&["--enable"]);
    assert!(ended.succeeded().contains("`codexctl restart` changes to this one"), "{ended:#?}");
    assert!(!running.called().contains(&expected[2].to_owned()), "systemd refuses a socket to a running service");
}

#[test]
fn without_a_service_manager_it_says_so() {
    let installation = Installation::new("exit 1");
    assert!(installation.install(&[]).succeeded().contains("there is no service manager"));
    let ended = installation.install(&["--enable"]);
    assert!(ended.code == Some(1) && ended.stderr.contains("`codexctl start` starts it by hand"), "{ended:#?}");
}

#[test]
fn wrong_usage_is_told() {
    let installation = Installation::new("");
    let ended = installation.script(&["--enabel"]);
    assert_eq!((ended.code, ended.stderr.lines().next()), (Some(2), Some("error: `--enabel` is not an option")));
    assert_eq!(installation.script(&["--prefix"]).code, Some(2));
    let ended = installation.script(&["--from", "/nonexistent"]);
    assert!(
        ended.code == Some(1) && ended.stderr.contains("there is no program `/nonexistent/codex-supervisor`"),
        "{ended:#?}"
    );
    assert_eq!(installation.files(), Vec::<String>::new());
    assert!(installation.script(&["--help"]).succeeded().contains("--uninstall"));
}
