//! A throw-away home with a real supervisor in it.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use codex_control::paths::Paths;
use codex_control::process::Process;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Longest wait for anything; far above what any step takes, so that a busy machine fails no test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A home, and the programs under test in a folder of their own.
pub(crate) struct Home {
    folder: tempfile::TempDir,
    programs: tempfile::TempDir,
}

impl Home {
    /// With the stand-in for the worker program.
    pub(crate) fn new(settings: &str) -> Self {
        let home = Self::without_worker(settings);
        home.install_worker();
        home
    }

    pub(crate) fn without_worker(settings: &str) -> Self {
        let supervisor = Path::new(env!("CARGO_BIN_EXE_codex-supervisor"));
        // Beside the build, so that the program can be linked instead of copied; it looks for its worker in its folder.
        let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::hard_link(supervisor, programs.path().join("codex-supervisor")).unwrap();
        let home = Self { folder: tempfile::tempdir().unwrap(), programs };
        fs::create_dir_all(home.settings_file().parent().unwrap()).unwrap();
        home.write_settings(settings);
        home
    }

    pub(crate) fn install_worker(&self) {
        let programs = Path::new(env!("CARGO_BIN_EXE_codex-supervisor")).parent().unwrap();
        // Built with all of the package's targets, but not by `--test` alone.
        fs::hard_link(programs.join("examples/stand-in-worker"), self.programs.path().join("codex-worker"))
            .expect("the stand-in: `cargo build -p codex-supervisor --examples` builds it");
    }

    /// Puts another file with the same program in the place of the worker's, as an upgrade does.
    pub(crate) fn replace_worker(&self) {
        let (present, new) = (self.programs.path().join("codex-worker"), self.programs.path().join("codex-worker.new"));
        // Another process writes it: what this one writes is open in the children that other threads start at that
        // moment, and cannot be executed as long as it is.
        assert!(Command::new("cp").args([&present, &new]).status().unwrap().success());
        fs::rename(&new, &present).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn paths(&self) -> Paths {
        let environment = [("HOME", self.path().to_owned()), ("XDG_RUNTIME_DIR", self.path().join("run"))];
        Paths::from_environment(&environment.into_iter().collect()).unwrap()
    }

    pub(crate) fn settings_file(&self) -> PathBuf {
        self.path().join(".config/codex-supervisor/supervisor.toml")
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.path().join(".local/state/codex-supervisor").join(name)
    }

    /// The log `NAME.log`: `supervisor`, or the id of an endpoint.
    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.state(&format!("logs/{name}.log"))).unwrap_or_default()
    }

    pub(crate) fn runtime(&self, name: &str) -> PathBuf {
        self.path().join("run/codex-supervisor").join(name)
    }

    /// Replaces the settings as an editor does: a new file, renamed into place.
    pub(crate) fn write_settings(&self, text: &str) {
        let temporary = self.settings_file().with_extension("new");
        fs::write(&temporary, text).unwrap();
        fs::rename(&temporary, self.settings_file()).unwrap();
    }

    pub(crate) fn read_settings(&self) -> String {
        fs::read_to_string(self.settings_file()).unwrap()
    }

    /// The supervisor, not started yet.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.programs.path().join("codex-supervisor"));
        self.prepare(&mut command);
        command
    }

    /// A shell that runs `script`; `$SUPERVISOR` is the program.
    pub(crate) fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        self.prepare(&mut command);
        command.env("SUPERVISOR", self.programs.path().join("codex-supervisor"));
        command
    }

    fn prepare(&self, command: &mut Command) {
        let output = || fs::OpenOptions::new().append(true).create(true).open(self.path().join("output")).unwrap();
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.path())
            .env("XDG_RUNTIME_DIR", self.path().join("run"))
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output());
    }

    /// Starts a supervisor and waits until its control socket answers.
    pub(crate) fn start(&self) -> Supervisor<'_> {
        self.start_with(self.command())
    }

    pub(crate) fn start_with(&self, mut command: Command) -> Supervisor<'_> {
        let child = command.spawn().unwrap();
        let supervisor = Supervisor { home: self, child };
        wait_for("the control socket", || supervisor.try_call("daemon.status", Value::Null).ok());
        supervisor
    }

    /// Processes that were started with this home, the shortest way to see whether something is left.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mark = format!("HOME={}\0", self.path().display()).into_bytes();
        let process = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            environment.windows(mark.len()).any(|window| window == mark).then_some(pid)
        };
        fs::read_dir("/proc").unwrap().filter_map(process).collect()
    }

    /// Names of what is in the runtime folder.
    pub(crate) fn runtime_names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.runtime("")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub(crate) fn assert_nothing_is_left(&self) {
        wait_for("the last process to go", || self.processes().is_empty().then_some(()));
        assert_eq!(self.runtime_names(), Vec::<String>::new());
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- output\n{}", fs::read_to_string(self.path().join("output")).unwrap_or_default());
        }
        for pid in self.processes() {
            if let Ok(process) = Process::open(pid) {
                let _ = process.signal(Signal::KILL);
            }
        }
    }
}

/// A running supervisor.
pub(crate) struct Supervisor<'a> {
    pub(crate) home: &'a Home,
    child: Child,
}

impl Supervisor<'_> {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.home.runtime("control.sock")).unwrap()
    }

    pub(crate) fn try_call(&self, method: &str, params: Value) -> io::Result<Value> {
        Client::connect(&self.home.runtime("control.sock"))?.try_call(method, params)
    }

    /// The result of a call that succeeds.
    pub(crate) fn call(&self, method: &str, params: Value) -> Value {
        self.connect().call(method, params)
    }

    /// The error of a call that fails: code, message, hint.
    pub(crate) fn refusal(&self, method: &str, params: Value) -> (i64, String, String) {
        refused(&self.connect().try_call(method, params).unwrap())
    }

    pub(crate) fn endpoint(&self, id: &str) -> Value {
        self.call("endpoint.show", json!({ "id": id }))["status"].clone()
    }

    /// Waits until the endpoint is in `state`; returns its status.
    pub(crate) fn wait_for_state(&self, id: &str, state: &str) -> Value {
        self.wait_for_endpoint(id, &format!("`{id}` to be {state}"), |status| status["state"] == state)
    }

    pub(crate) fn wait_for_endpoint(&self, id: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || Some(self.endpoint(id)).filter(|status| condition(status)))
    }

    /// Waits until the endpoint answers; returns its address.
    pub(crate) fn wake(&self, id: &str) -> SocketAddr {
        let timeout_ms = u64::try_from(PATIENCE.as_millis()).unwrap();
        let status = self.call("endpoint.wake", json!({ "id": id, "timeout_ms": timeout_ms }));
        address(&status)
    }

    pub(crate) fn worker(&self, id: &str) -> Process {
        let pid = self.wait_for_endpoint(id, "a worker", |status| status["worker_pid"].is_u64())["worker_pid"]
            .as_u64()
            .unwrap();
        Process::open(u32::try_from(pid).unwrap()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        assert!(Process::open(self.pid()).unwrap().signal(signal).unwrap());
    }

    pub(crate) fn wait(mut self) -> ExitStatus {
        wait_for("the supervisor's end", || self.child.try_wait().unwrap())
    }

    /// Ends it as a service manager does, and checks that nothing is left.
    pub(crate) fn stop(self) {
        let home = self.home;
        self.signal(Signal::TERM);
        assert!(self.wait().success());
        home.assert_nothing_is_left();
    }

    /// Ends it as the kernel does when memory is short.
    pub(crate) fn kill(self) {
        self.signal(Signal::KILL);
        self.wait();
    }
}

/// A client of the control socket.
pub(crate) struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(2 * PATIENCE))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    pub(crate) fn send(&mut self, line: &[u8]) {
        // One that was sent away may have been closed already; its answer is there all the same.
        let _ = self.reader.get_mut().write_all(line);
    }

    /// The next line; `None` when the supervisor has closed.
    pub(crate) fn receive(&mut self) -> io::Result<Option<Value>> {
        let mut line = String::new();
        Ok(match self.reader.read_line(&mut line)? {
            0 => None,
            _ => Some(serde_json::from_str(&line)?),
        })
    }

    pub(crate) fn try_call(&mut self, method: &str, params: Value) -> io::Result<Value> {
        self.send(format!("{}\n", json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })).as_bytes());
        self.receive()?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        let mut response = self.try_call(method, params).unwrap();
        assert_eq!(response["error"], Value::Null, "{method}");
        response["result"].take()
    }
}

/// Code, message and hint of an error response.
pub(crate) fn refused(response: &Value) -> (i64, String, String) {
    let error = &response["error"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (
        error["code"].as_i64().unwrap_or_else(|| panic!("{response}")),
        text(&error["message"]),
        text(&error["data"]["hint"]),
    )
}

pub(crate) fn address(status: &Value) -> SocketAddr {
    status["address"].as_str().unwrap_or_else(|| panic!("{status}")).parse().unwrap()
}

/// Asks for `path` and returns the whole answer.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = begin(address, path)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Asks for `path` and returns the connection.
pub(crate) fn begin(address: SocketAddr, path: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes())?;
    Ok(stream)
}

/// A port of this machine that is kept for whoever wants to listen on it: nobody else is given it meanwhile.
pub(crate) struct FreePort {
    _socket: OwnedFd,
    pub(crate) address: SocketAddr,
}

impl FreePort {
    pub(crate) fn new() -> Self {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        // It is bound and does not listen: so others may bind it too, and only if they name it.
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
        Self { _socket: socket, address }
    }
}

/// Looks again and again until there is something, or patience ends.
pub(crate) fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_for_at_most(PATIENCE, what, look)
}

pub(crate) fn wait_for_at_most<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(5)); // leaves the processor to what is waited for
    }
}
