//! A home of its own for each test, and `codexctl` run in it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use codex_control::EndpointId;
use codex_control::environment::Environment;
use codex_control::paths::Paths;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use serde_json::Value;

/// Longest wait for something that happens within milliseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A throw-away home.
pub(crate) struct Home {
    folder: tempfile::TempDir,
    pub(crate) paths: Paths,
    environment: BTreeMap<String, OsString>,
    codexctl: PathBuf,
}

/// Looks again and again until there is something, or patience ends.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(5)); // leaves the processor to what is waited for
    }
}

/// Tries of what has to be done within a time, see [`shortest`].
const TRIES_MAX: usize = 10;

/// The shortest time in which `attempt` is done, over as many tries as it takes to be below `limit`, at most
/// [`TRIES_MAX`]. A machine that is busy makes some of them longer; what is slow by itself is slow in all of them.
pub(crate) fn shortest(limit: Duration, mut attempt: impl FnMut()) -> Duration {
    let mut shortest = Duration::MAX;
    for _ in 0..TRIES_MAX {
        let begun_at = Instant::now();
        attempt();
        shortest = shortest.min(begun_at.elapsed());
        if shortest < limit {
            break;
        }
    }
    shortest
}

/// How a command ended and what it said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Home {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        for name in ["home", "run", "bin"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let mut environment = BTreeMap::new();
        environment.insert("HOME".to_owned(), root.join("home").into());
        environment.insert("XDG_RUNTIME_DIR".to_owned(), root.join("run").into());
        // The tests' own programs first, then what scripts need.
        let path = format!("{}:/usr/bin:/bin", root.join("bin").display());
        environment.insert("PATH".to_owned(), path.into());
        let paths = Paths::from_environment(&environment.clone().into_iter().collect::<Environment>()).unwrap();
        fs::create_dir_all(paths.runtime_folder()).unwrap();
        Self { folder, paths, environment, codexctl: env!("CARGO_BIN_EXE_codexctl").into() }
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.insert(name.to_owned(), value.into());
    }

    /// Puts a shell script on the `PATH`.
    pub(crate) fn program(&self, name: &str, script: &str) -> PathBuf {
        write_script(&self.root().join("bin").join(name), script)
    }

    /// Runs `codexctl` from a folder of its own, so that it finds only what the test puts beside it. Another process
    /// writes it, see [`write_script`].
    pub(crate) fn install_codexctl(&mut self, folder: &str) -> PathBuf {
        let folder = self.root().join(folder);
        fs::create_dir_all(&folder).unwrap();
        self.codexctl = folder.join("codexctl");
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_codexctl")).arg(&self.codexctl).status();
        assert!(copied.unwrap().success());
        folder
    }

    /// `codexctl ARGUMENTS` in this home, not started yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.codexctl);
        command.args(arguments).env_clear().envs(&self.environment).current_dir(self.root()).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().unwrap().into()
    }

    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &str) -> Ended {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that fails before it reads leaves a broken pipe, which is no concern of the test.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap().into()
    }

    /// Starts `codexctl ARGUMENTS`, to be read line by line.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Running {
        let mut child = self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (lines_tx, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let Ok(line) = line else { break };
                if lines_tx.send(line).is_err() {
                    break;
                }
            }
        });
        Running { child, lines }
    }

    /// Runs `codexctl ARGUMENTS` on a terminal of its own, typing `input`, and returns what the terminal showed.
    pub(crate) fn run_on_terminal(&self, arguments: &[&str], input: &str) -> Ended {
        let mut child = self.start_on_terminal(arguments);
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().into()
    }

    /// The same, but types only when the terminal shows no longer what is typed.
    pub(crate) fn run_on_hiding_terminal(&self, arguments: &[&str], input: &str) -> Ended {
        let mut child = self.start_on_terminal(arguments);
        let deadline = Instant::now() + PATIENCE;
        while !self.hides_input() {
            assert!(Instant::now() < deadline, "the terminal goes on showing what is typed");
            std::thread::yield_now();
        }
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().into()
    }

    /// Starts `codexctl ARGUMENTS` on a terminal of its own, which is closed when what is returned is killed.
    pub(crate) fn start_on_terminal(&self, arguments: &[&str]) -> Child {
        let words: Vec<String> = arguments.iter().map(|argument| format!("'{argument}'")).collect();
        let line = format!("exec '{}' {}", self.codexctl.display(), words.join(" "));
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.env_clear().envs(&self.environment).current_dir(self.root());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Whether `codexctl` of this home runs on a terminal that does not show what is typed.
    fn hides_input(&self) -> bool {
        let home = format!("HOME={}", self.root().join("home").display());
        fs::read_dir("/proc").unwrap().any(|entry| {
            let process = entry.unwrap().path();
            let is_ours = fs::read_link(process.join("exe")).is_ok_and(|exe| exe == self.codexctl)
                && fs::read(process.join("environ"))
                    .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|line| line == home.as_bytes()));
            is_ours
                && fs::File::open(process.join("fd/0"))
                    .ok()
                    .and_then(|terminal| rustix::termios::tcgetattr(terminal).ok())
                    .is_some_and(|modes| !modes.local_modes.contains(rustix::termios::LocalModes::ECHO))
        })
    }

    pub(crate) fn write_settings(&self, text: &str) {
        fs::create_dir_all(self.paths.config_folder()).unwrap();
        fs::write(self.paths.settings(), text).unwrap();
    }

    /// Makes the local token of `endpoint`, as its worker does.
    pub(crate) fn make_token(&self, endpoint: &str) -> String {
        codex_control::token::ensure_token(&self.paths.token(&id(endpoint))).unwrap().expose().clone()
    }

    /// The stored credential of `endpoint` and its mode.
    pub(crate) fn credential(&self, endpoint: &str) -> Option<(String, u32)> {
        let path = self.paths.credential(&id(endpoint));
        let mode = fs::metadata(&path).ok()?.permissions().mode() & 0o777;
        Some((fs::read_to_string(path).unwrap(), mode))
    }
}

impl Drop for Home {
    /// Ends a stand-in for the supervisor that a failed test has left running.
    fn drop(&mut self) {
        if let Ok(mut stream) = UnixStream::connect(self.paths.control_socket()) {
            let _ = stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"daemon.stop\"}\n");
        }
    }
}

pub(crate) fn id(text: &str) -> EndpointId {
    text.parse().unwrap()
}

/// Writes a shell script, see [`write_program`].
pub(crate) fn write_script(path: &Path, script: &str) -> PathBuf {
    write_program(path, &format!("#!/bin/sh\n{script}\n"))
}

/// Another process writes it: what this one writes is open in the children that other threads start at that moment,
/// and cannot be executed as long as it is.
pub(crate) fn write_program(path: &Path, content: &str) -> PathBuf {
    let mut install = Command::new("install");
    let mut child = install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    path.to_owned()
}

/// A socket that nobody listens on. Nobody ever did: a child that another thread starts at that moment would still have
/// the listener for a while, and take connections for it.
pub(crate) fn stale_socket(path: &Path) {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ended {
    /// Stdout of a command that succeeded.
    #[track_caller]
    pub(crate) fn succeeded(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:#?}");
        &self.stdout
    }

    /// Stdout of a command that succeeded, as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.succeeded()).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// Checks that the command failed with `code`, printed no data, and said exactly this.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, message: &str, hint: Option<&str>) {
        let hint = hint.map(|hint| format!("  hint: {hint}\n")).unwrap_or_default();
        let expected = Self { code: Some(code), stdout: String::new(), stderr: format!("error: {message}\n{hint}") };
        assert_eq!(self, &expected);
    }
}

/// A command that goes on.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// The next line it prints.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line is printed")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
