//! A throw-away home with the real programs in it.
//!
//! Everything a [`SandboxHome`] starts has its `HOME`, its XDG folders and its `CODEX_HOME` inside one temporary
//! folder, and nothing else of the machine's environment but `PATH`. When it is dropped it stops the supervisor and
//! proves that no process, socket or temporary file is left.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use codex_control::environment::{self, Environment};
use codex_control::paths::Paths;
use codex_control::process::Process;
use codex_control::rpc::{self, DaemonStatus, EndpointState, EndpointStatus, RpcError};
use codex_control::tables::Protocol;
use codex_control::{EndpointId, token};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::codex;
use crate::http;
use crate::leftovers;
use crate::provider::FakeProvider;
use crate::until::{try_until, until};

/// Longest time for anything of ours to start, to stop, or to answer, on a machine that is busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Bytes of each log that are printed when a test fails.
const LOG_BYTES_SHOWN: usize = 16 * 1024;
/// The key of scripted providers.
pub const PROVIDER_KEY: &str = "sk-scripted-0123456789";

/// See the [module](self).
pub struct SandboxHome {
    folder: TempDir,
    supervisor: RefCell<Option<Child>>,
    runs: Cell<u32>,
}

/// What a program did.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Output {
    /// Its exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Checks that it went well and returns its stdout.
    ///
    /// # Panics
    /// When it failed.
    pub fn ok(self) -> String {
        assert!(self.status.success(), "failed with {}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self.stdout
    }
}

/// A program that runs in a home.
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours can be waited for").is_some()
    }

    /// Waits for its end; kills it and its process group when `deadline` has passed.
    ///
    /// # Panics
    /// When it did not end in time.
    pub fn finish(mut self, deadline: Duration) -> Output {
        let status = try_until(deadline, || self.child.try_wait().expect("a child of ours can be waited for"));
        let Some(status) = status else {
            self.kill_group();
            panic!("not ended after {deadline:?}\nstdout: {}\nstderr: {}", self.stdout(), self.stderr());
        };
        Output { status, stdout: self.stdout(), stderr: self.stderr() }
    }

    /// Ends it at once, with everything in its process group.
    fn kill_group(&mut self) {
        let group = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            // Not waited for yet, so its number, which is the group's, is still its own.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill_group();
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

impl Default for SandboxHome {
    fn default() -> Self {
        Self::new()
    }
}

impl SandboxHome {
    /// An empty home: no settings, nothing running, a git repository to work in.
    pub fn new() -> Self {
        // Short, because the path of a Unix socket is limited to 108 bytes.
        let folder = tempfile::Builder::new().prefix("cs").tempdir().expect("a temporary folder is to be had");
        let home = Self { folder, supervisor: RefCell::new(None), runs: Cell::new(0) };
        for name in ["home", "config", "state", "cache", "run", "codex", "work", "logs"] {
            let path = home.path(name);
            fs::create_dir(&path).expect("the temporary folder is empty");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("the folder is ours");
        }
        home.write("codex/config.toml", CODEX_CONFIG);
        home.write("home/.gitconfig", "[user]\nname = Test\nemail = test@localhost\n[init]\ndefaultBranch = main\n");
        home.write("work/README.md", "# A small project\n");
        home.git(&["init", "--quiet"]);
        home.git(&["add", "."]);
        home.git(&["commit", "--quiet", "--message", "first"]);
        home
    }

    /// A home with one endpoint, `scripted`, at `provider`, its key stored, and a running supervisor.
    pub fn with_provider(provider: &FakeProvider) -> Self {
        Self::with_provider_and(provider, "", "")
    }

    /// The same, with further lines for the endpoint and further sections for the file.
    pub fn with_provider_and(provider: &FakeProvider, endpoint: &str, sections: &str) -> Self {
        let home = Self::new();
        home.write_settings(&format!("{}{endpoint}\n{sections}", endpoint_of("scripted", provider)));
        home.store_key("scripted", PROVIDER_KEY);
        home.start();
        home.wait_state("scripted", EndpointState::Running);
        home
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file inside.
    pub fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a file inside has a folder")).expect("the folder is ours");
        fs::write(path, content).expect("the folder is ours");
    }

    /// Reads a file inside; an absent one is empty.
    pub fn read(&self, name: &str) -> String {
        read(&self.path(name))
    }

    /// The product's paths inside.
    pub fn paths(&self) -> Paths {
        let environment: Environment = self.environment().into_iter().collect();
        Paths::from_environment(&environment).expect("the paths are short enough")
    }

    /// Writes `supervisor.toml`, as editors do it: a supervisor that looks meanwhile never reads half of it.
    pub fn write_settings(&self, text: &str) {
        const SETTINGS: &str = "config/codex-supervisor/supervisor.toml";
        let written = format!("{SETTINGS}.tmp");
        self.write(&written, text);
        fs::rename(self.path(&written), self.path(SETTINGS)).expect("the folder is ours");
    }

    /// Stores a credential as `codexctl endpoint add` does.
    pub fn store_key(&self, endpoint: &str, key: &str) {
        codex_control::credentials::store(&self.paths(), &id(endpoint), key).expect("the home is writable");
    }

    /// The environment of everything started inside.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let inside = |name| self.path(name).to_str().expect("temporary folders have plain names").to_owned();
        vec![
            ("HOME", inside("home")),
            ("XDG_CONFIG_HOME", inside("config")),
            ("XDG_STATE_HOME", inside("state")),
            ("XDG_CACHE_HOME", inside("cache")),
            ("XDG_RUNTIME_DIR", inside("run")),
            ("CODEX_HOME", inside("codex")),
            ("PATH", std::env::var("PATH").expect("there is a PATH")),
            ("NO_PROXY", "127.0.0.1,localhost".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            ("TERM", "dumb".to_owned()),
            ("RUST_BACKTRACE", "1".to_owned()),
        ]
    }

    /// A command with the home's environment, in its working folder.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_clear().envs(self.environment()).current_dir(self.path("work")).stdin(Stdio::null());
        command
    }

    /// Starts `command` in a process group of its own, its output going to files.
    pub fn spawn(&self, mut command: Command) -> Running {
        let run = self.runs.get();
        self.runs.set(run + 1);
        let (stdout, stderr) = (self.path(&format!("logs/{run}.out")), self.path(&format!("logs/{run}.err")));
        let file = |path: &Path| File::create(path).expect("the home is writable");
        command.stdout(file(&stdout)).stderr(file(&stderr)).process_group(0);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", command.get_program().display()));
        Running { child, stdout, stderr }
    }

    /// Runs `command` to its end.
    pub fn run(&self, command: Command) -> Output {
        self.spawn(command).finish(DEADLINE)
    }

    /// Runs `command` with `input` on its stdin.
    pub fn run_with_input(&self, mut command: Command, input: &str) -> Output {
        command.stdin(Stdio::piped());
        let mut running = self.spawn(command);
        let mut stdin = running.child.stdin.take().expect("stdin is a pipe");
        // A program that does not read all of it may close the pipe.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        running.finish(DEADLINE)
    }

    /// Runs `codexctl`.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.run(self.ctl_command(arguments))
    }

    /// `codexctl` with `arguments`, to be changed before it is run.
    pub fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(binary("codexctl"));
        command.args(arguments).env(environment::CODEX, codex::program());
        command
    }

    /// Runs git in the working folder.
    pub fn git(&self, arguments: &[&str]) -> String {
        let mut command = self.command("git");
        command.args(arguments);
        self.run(command).ok()
    }

    /// Starts the supervisor and waits until it answers.
    ///
    /// # Panics
    /// When it ends or does not answer in time.
    pub fn start(&self) {
        let mut command = self.command(binary("codex-supervisor"));
        command.arg("--foreground");
        self.start_command(command);
    }

    /// Starts the supervisor by a changed command.
    pub fn start_command(&self, mut command: Command) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("logs/supervisor.err"))
            .expect("the home is writable");
        command.stdout(Stdio::null()).stderr(log).process_group(0);
        let mut child = command.spawn().expect("codex-supervisor starts");
        until("the supervisor", DEADLINE, || {
            if let Some(status) = child.try_wait().expect("a child of ours can be waited for") {
                panic!("the supervisor ended with {status}\n{}", self.logs());
            }
            self.rpc("daemon.status", Value::Null).ok()
        });
        *self.supervisor.borrow_mut() = Some(child);
    }

    /// The supervisor's process id, when this home started it.
    pub fn supervisor_pid(&self) -> Option<u32> {
        self.supervisor.borrow().as_ref().map(Child::id)
    }

    /// Ends the supervisor as the kernel does when memory is short. Its workers are not told.
    ///
    /// # Panics
    /// When this home has not started one.
    pub fn kill_supervisor(&self) {
        let mut child = self.supervisor.borrow_mut().take().expect("this home has started a supervisor");
        child.kill().and_then(|()| child.wait()).expect("a child of ours can be killed and waited for");
    }

    /// Stops the supervisor by TERM and waits for its end, and for that of its workers.
    ///
    /// # Panics
    /// When it does not end in time, or not with success, or leaves a worker.
    pub fn stop(&self) {
        let Some(mut child) = self.supervisor.borrow_mut().take() else { return };
        let process = Process::open(child.id()).expect("the supervisor is not waited for, so it has its number");
        let workers = self.workers();
        process.signal(Signal::TERM).expect("the supervisor is ours");
        let status = try_until(DEADLINE, || child.try_wait().expect("a child of ours can be waited for"));
        let Some(status) = status else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the supervisor did not stop\n{}", self.logs());
        };
        assert!(status.success(), "the supervisor ended with {status}\n{}", self.logs());
        for worker in workers {
            assert!(worker.has_ended(), "a worker is left: {:?}\n{}", worker.identity(), self.logs());
        }
    }

    /// The workers that the supervisor has now; none when it does not answer.
    fn workers(&self) -> Vec<Process> {
        let status = self.rpc("daemon.status", Value::Null).ok().and_then(|status| serde_json::from_value(status).ok());
        let endpoints = status.map(|status: DaemonStatus| status.endpoints).unwrap_or_default();
        endpoints.into_iter().filter_map(|endpoint| Process::open(endpoint.worker_pid?).ok()).collect()
    }

    /// Calls a method of the supervisor; see [`call`].
    ///
    /// # Errors
    /// Those of [`call`].
    pub fn rpc(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        call(&self.paths(), method, params)
    }

    /// The supervisor's status.
    pub fn status(&self) -> DaemonStatus {
        let status = self.rpc("daemon.status", Value::Null).unwrap_or_else(|error| panic!("{error}\n{}", self.logs()));
        serde_json::from_value(status).expect("the status has the agreed shape")
    }

    /// The status of one endpoint.
    pub fn endpoint(&self, endpoint: &str) -> EndpointStatus {
        let status = self.status();
        let found = status.endpoints.into_iter().find(|status| status.id.as_str() == endpoint);
        found.unwrap_or_else(|| panic!("no endpoint `{endpoint}`\n{}", self.logs()))
    }

    /// Waits until an endpoint is in `state`.
    pub fn wait_state(&self, endpoint: &str, state: EndpointState) -> EndpointStatus {
        let found = try_until(DEADLINE, || {
            let status = self.endpoint(endpoint);
            (status.state == state).then_some(status)
        });
        found.unwrap_or_else(|| {
            panic!("`{endpoint}` is not {state:?} but {:?}\n{}", self.endpoint(endpoint), self.logs())
        })
    }

    /// Where Codex connects to.
    pub fn address(&self, endpoint: &str) -> SocketAddr {
        self.endpoint(endpoint).address.expect("the endpoint has an address")
    }

    /// The local token of an endpoint.
    pub fn token(&self, endpoint: &str) -> String {
        let token = token::read_token(&self.paths().token(&id(endpoint))).expect("the token can be read");
        token.expect("the endpoint has a token").expose().to_owned()
    }

    /// Posts `body` to the endpoint as Codex does, with its token.
    pub fn post_responses(&self, endpoint: &str, body: &[u8]) -> http::Answer {
        let bearer = format!("Bearer {}", self.token(endpoint));
        let answer = http::request(self.address(endpoint), "POST", "/v1/responses", &as_codex(&bearer), body);
        answer.unwrap_or_else(|error| panic!("{error}\n{}", self.logs()))
    }

    /// The same, for an answer that is read as it comes.
    pub fn send_responses(&self, endpoint: &str, body: &[u8]) -> TcpStream {
        let bearer = format!("Bearer {}", self.token(endpoint));
        let sent = http::send(self.address(endpoint), "POST", "/v1/responses", &as_codex(&bearer), body);
        let (stream, written) = sent.unwrap_or_else(|error| panic!("{error}\n{}", self.logs()));
        written.unwrap_or_else(|error| panic!("{error}\n{}", self.logs()));
        stream
    }

    /// Waits until the worker has told the supervisor that it has passed on all of `count` answers, which is later than
    /// the provider's end of them, and than Codex's.
    pub fn wait_answered(&self, count: usize) {
        let log = self.paths().logs_folder().join("supervisor.log");
        let n_answered = || read(&log).matches("request finished").count();
        until("the end of the answer", crate::codex::DEADLINE, || (n_answered() >= count).then_some(()));
    }

    /// The ends of all logs: the supervisor's, the workers', the programs'.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for folder in [self.path("logs"), self.paths().logs_folder()] {
            let mut paths: Vec<_> =
                fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                let log = read(&path);
                let start = log.ceil_char_boundary(log.len().saturating_sub(LOG_BYTES_SHOWN));
                let _ = writeln!(text, "──── {}\n{}", path.display(), &log[start..]); // writing to a String cannot fail
            }
        }
        text
    }

    /// Waits until no process of this home is left, and checks that it has left no socket and no temporary file.
    ///
    /// # Panics
    /// When something is left; processes are killed before.
    pub fn assert_nothing_left(&self) {
        let home = self.path("home");
        if try_until(DEADLINE, || leftovers::processes(&home).is_empty().then_some(())).is_none() {
            let left = leftovers::processes(&home);
            let names: Vec<String> =
                left.iter().map(|left| format!("{} {}", left.process.identity().pid, left.command)).collect();
            kill(&home);
            panic!("processes are left:\n{}\n{}", names.join("\n"), self.logs());
        }
        let litter: Vec<PathBuf> =
            ["config", "state", "cache", "run"].iter().flat_map(|name| leftovers::files(&self.path(name))).collect();
        assert!(litter.is_empty(), "files are left: {litter:?}");
    }
}

/// What Codex says of a request.
fn as_codex(bearer: &str) -> [(&'static str, &str); 3] {
    [("authorization", bearer), ("content-type", "application/json"), ("accept", "text/event-stream")]
}

/// A listener at a port that stays free for the test when it is closed: neither the kernel nor a supervisor picks one of
/// these for anybody who asks for any port.
///
/// # Panics
/// When all of many are taken.
pub fn listener_apart() -> TcpListener {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 10_000;
    const TRIES: usize = 100;
    let random = || RandomState::new().build_hasher().finish() % u64::from(COUNT);
    let ports = std::iter::repeat_with(|| FIRST + u16::try_from(random()).expect("it is less than their count"));
    let found = ports.take(TRIES).find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
    found.expect("hardly any of these ports is taken")
}

/// Calls a method of the supervisor whose control socket is in `paths`.
///
/// # Errors
/// The supervisor's error; one of code 0 when it cannot be reached.
pub fn call(paths: &Paths, method: &str, params: Value) -> Result<Value, RpcError> {
    let unreachable = |error: std::io::Error| RpcError::new(0, error.to_string(), None);
    let stream = UnixStream::connect(paths.control_socket()).map_err(unreachable)?;
    stream.set_read_timeout(Some(DEADLINE)).map_err(unreachable)?;
    stream.set_write_timeout(Some(DEADLINE)).map_err(unreachable)?;
    let request =
        rpc::Request { jsonrpc: rpc::JSONRPC.to_owned(), id: Some(json!(1)), method: method.to_owned(), params };
    let line = serde_json::to_string(&request).expect("a request is JSON") + "\n";
    (&stream).write_all(line.as_bytes()).map_err(unreachable)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).map_err(unreachable)?;
    let response: rpc::Response =
        serde_json::from_str(&line).map_err(|error| RpcError::new(0, format!("{error} in {line:?}"), None))?;
    response.error.map_or(Ok(response.result.unwrap_or_default()), Err)
}

/// Kills everything that was started with this `HOME`: nobody but the test has it.
fn kill(home: &Path) {
    let end = Instant::now() + DEADLINE;
    loop {
        let left = leftovers::processes(home);
        if left.is_empty() || Instant::now() > end {
            return;
        }
        for left in left {
            // Gone already is as good as killed.
            let _ = left.process.signal(Signal::KILL);
        }
    }
}

impl Drop for SandboxHome {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
            if let Some(mut child) = self.supervisor.borrow_mut().take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            kill(&self.path("home"));
        } else {
            self.stop();
            self.assert_nothing_left();
        }
    }
}

/// Codex's own settings: no traffic but to its provider.
const CODEX_CONFIG: &str = "\
check_for_update_on_startup = false

[analytics]
enabled = false

[features]
plugins = false
apps = false
";

/// The section of an endpoint `scripted` for Chat Completions at `base_url`, without quirks; lines for it can follow.
pub fn scripted_endpoint(base_url: &str) -> String {
    section("scripted", Protocol::ChatCompletions, base_url)
}

/// The section of an endpoint at `provider`, in its protocol; lines for it can follow.
pub fn endpoint_of(id: &str, provider: &FakeProvider) -> String {
    section(id, provider.protocol(), &provider.base_url())
}

fn section(id: &str, protocol: Protocol, base_url: &str) -> String {
    let auth = match protocol {
        Protocol::AnthropicMessages => "auth = { kind = \"x-api-key\" }\n",
        Protocol::ChatCompletions | Protocol::Responses => "",
    };
    let protocol = protocol.name();
    format!(
        "[[endpoint]]\nid = \"{id}\"\nprotocol = \"{protocol}\"\nbase_url = \"{base_url}\"\ndefault_model = \"scripted\"\n{auth}"
    )
}

fn id(text: &str) -> EndpointId {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// The folder with the programs under test: that of the test program itself.
///
/// They are built first, once in a run of the tests, so that no test runs against old ones. With `E2E_NO_BUILD` set
/// they are taken as they are.
pub fn binaries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let own = std::env::current_exe().expect("a program knows its path");
        let folder = own.parent().expect("a program lies in a folder");
        let folder = if folder.ends_with("deps") { folder.parent().expect("`deps` lies in a folder") } else { folder };
        if std::env::var_os("E2E_NO_BUILD").is_some() {
            return folder.to_owned();
        }
        // nextest gives each test a process of its own and tells them that they belong together; without it all tests
        // are one process.
        let Some(run) = std::env::var_os("NEXTEST_RUN_ID") else {
            build(folder);
            return folder.to_owned();
        };
        let mut stamp = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(folder.join(".e2e-built"))
            .expect("the folder is writable");
        rustix::fs::flock(&stamp, rustix::fs::FlockOperation::LockExclusive).expect("a lock is to be had");
        let mut built_for = Vec::new();
        stamp.read_to_end(&mut built_for).expect("the stamp can be read");
        if built_for != run.as_bytes() {
            build(folder);
            stamp
                .set_len(0)
                .and_then(|()| stamp.rewind())
                .and_then(|()| stamp.write_all(run.as_bytes()))
                .expect("the stamp can be written");
        }
        folder.to_owned()
    })
}

fn build(folder: &Path) {
    // Apart from each other: what the tests ask of the product's libraries does not belong into the product.
    for packages in [&["codex-worker", "codex-supervisor", "codexctl"][..], &["e2e"]] {
        build_of(folder, &["--bins"], packages);
    }
}

fn build_of(folder: &Path, targets: &[&str], packages: &[&str]) {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).args(["build", "--quiet"]).args(targets);
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    // What cargo says to a test about its package, build scripts of other packages (`ring`) would take for a change, and
    // everything above them would be built anew.
    let of_package = |name: &str| name == "CARGO_MANIFEST_DIR" || name.starts_with("CARGO_PKG_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        cargo.env_remove(name);
    }
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo can be run");
    assert!(status.success(), "the programs under test do not build");
}

/// The program that plays a worker in the supervisor's own tests; it reports whatever signal it is asked for.
pub fn stand_in_worker() -> PathBuf {
    let folder = binaries();
    if std::env::var_os("E2E_NO_BUILD").is_none() {
        build_of(folder, &["--example", "stand-in-worker"], &["codex-supervisor"]);
    }
    folder.join("examples/stand-in-worker")
}

/// A program under test.
pub fn binary(name: &str) -> PathBuf {
    binaries().join(name)
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}
