//! Each of the 38 faults, in the running system: seen, acted upon, and whether that helped, seen too.
//!
//! Real processes, a scripted provider, a scripted Codex; what shows success happens, too, and is not reported. Where the
//! row says *worker's report*, the typed signals come over the worker socket from a program that stands in for the
//! endpoint's worker: what recognizes them in an answer is tested beside its parsers. *A stand-in* really leaks, or
//! really ends with that exit code.
//!
//! Each row says what is right: that its action helped, that the person was told in an event, that it is left alone, or
//! that it was over before its action was due. An action that failed is right only where the person is to be told.
//!
//! `scripts/faults.sh` prints the table, any number of times.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use codex_control::environment;
use codex_control::incident::{
    Action, Actor, AttemptState, Fault, Incident, IncidentState, Millis, Observation, Signal,
};
use codex_control::process::Process;
use codex_control::rpc::EndpointState;
use e2e::home::{self, PROVIDER_KEY, Running, SandboxHome, binary, endpoint_of};
use e2e::http;
use e2e::provider::{FakeProvider, Script, Status, Step, When};
use e2e::until::until;
use rustix::process::Signal as Kill;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::incidents::web_token;

/// Time for all rows together; the longest of them waits for three windows, and the machine may be busy.
const ALL_WITHIN: Duration = Duration::from_mins(2);

/// How the signals of some rows are injected; see the module.
const WORKERS_REPORT: &str = "worker's report";
/// The same, for what a stand-in does to itself.
const STAND_IN: &str = "a stand-in";

/// What holds for every row: a worker and a Codex may use little memory, and whoever has a backup may be switched to it.
const SETTINGS: &str = "[worker]\nfirst_byte_timeout_s = 3\nconnect_timeout_s = 2\n\n\
    [daemon]\nworker_memory_bytes_max = 67108864\n\n[codex]\nmemory_bytes_max = 33554432\n\n\
    [monitor]\nauto_switch_provider = true\n\n";

const QUESTION: &str = r#"{"model":"scripted","input":"hi","stream":true}"#;

/// Something that happens to the endpoint of a row.
type Happening = Box<dyn Fn(&World, &str)>;

/// One fault: how it is made to happen, what must be done about it, and what then mends it.
struct Row {
    fault: Fault,
    how: &'static str,
    inject: Happening,
    /// What must be decided.
    action: Action,
    /// What must come of it.
    right: Right,
    /// What else the world does once that is done: what the person or the provider would.
    mend: Happening,
    /// Lines for its endpoint.
    endpoint: String,
}

/// What is right for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// The action was carried out, and it was seen that it helped.
    Helped,
    /// The person was told, in an event; an action before that has failed or is theirs.
    Alert,
    /// It was left alone.
    Ignored,
    /// It was over before the time to cancel the action was.
    Passed,
}

/// Where the settings are; locked by whoever changes them.
type Settings = Arc<Mutex<PathBuf>>;

/// Changes the settings as an editor does.
fn edit(settings: &Settings, change: impl FnOnce(&str) -> String) {
    let path = settings.lock().expect("nobody has panicked");
    let text = fs::read_to_string(&*path).expect("the settings are there");
    let changed = path.with_extension("new");
    fs::write(&changed, change(&text)).expect("the home is writable");
    fs::rename(&changed, &*path).expect("the home is writable");
}

/// What the rows act upon.
struct World {
    home: SandboxHome,
    port: RefCell<Option<TcpListener>>,
    held: RefCell<Vec<TcpStream>>,
    launched: RefCell<Vec<Running>>,
    asking: RefCell<Vec<(String, thread::JoinHandle<()>)>>,
    settings: Settings,
    /// What a person reads who follows all incidents.
    followed: Running,
}

impl World {
    /// What a person was told by now: of which incident, and which action was advised.
    fn notices(&self) -> Vec<(u64, Value)> {
        let told = self.followed.stdout();
        let notices = told.lines().filter(|line| line.contains(r#""kind":"incident.notice""#));
        let notices = notices.filter_map(|line| serde_json::from_str::<Value>(line).ok()); // the last may be half written
        let notices = notices.map(|event| event["detail"].clone());
        notices.filter_map(|notice| Some((notice["incident"].as_u64()?, notice["action"].clone()))).collect()
    }

    /// Asks the stand-in for the worker of `id` for something that it may not live to answer.
    fn ask_stand_in(&self, id: &str, path: &str) {
        let _ = http::request(self.home.address(id), "GET", path, &[], b"");
    }

    /// Who asks `id` at present.
    fn asking_of(&self, id: &str) -> Vec<(String, thread::JoinHandle<()>)> {
        let mut asking = self.asking.borrow_mut();
        let (of_id, others) = asking.drain(..).partition(|(asked, _)| asked == id);
        *asking = others;
        of_id
    }

    /// Lets the stand-in for the worker of `id` report `signal`, `times` times.
    fn worker_reports(&self, id: &str, signal: &Signal, times: usize) {
        let value = signal.value.map_or(String::new(), |value| value.to_string());
        let path = format!("/signal/{}/{value}/{times}", signal.what);
        let answer = http::request(self.home.address(id), "GET", &path, &[], b"").expect("the stand-in answers");
        assert_eq!(answer.status, 200);
    }

    /// Stores a key for `id` that says of itself that it ends at `ends_at_s`.
    fn sign_in(&self, id: &str, ends_at_s: u64) {
        self.home.store_key(id, &web_token(ends_at_s));
    }

    fn kill(&self, id: &str, signal: Kill) {
        let pid = self.home.wait_state(id, EndpointState::Running).worker_pid.expect("a running endpoint has a worker");
        let worker = Process::open(pid).expect("the worker lives");
        assert!(worker.signal(signal).expect("the worker is ours"));
    }

    /// `n` requests one after the other, in the background: some take as long as all attempts of the worker.
    fn ask(&self, id: &str, n: usize) {
        let (address, bearer) = (self.home.address(id), format!("Bearer {}", self.home.token(id)));
        let asking = thread::spawn(move || {
            let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
            for _ in 0..n {
                // What the client gets is other tests' matter.
                let _ = http::request(address, "POST", "/v1/responses", &headers, QUESTION.as_bytes());
            }
        });
        self.asking.borrow_mut().push((id.to_owned(), asking));
    }

    /// The person mends the address of the provider of `id`, and asks until there is an answer: once whoever asks at
    /// present has seen its last failure.
    fn mend_address(&self, id: &str, wrong: &str, right: &str) {
        let (before, settings) = (self.asking_of(id), self.settings.clone());
        let (wrong, right) = (wrong.to_owned(), right.to_owned());
        self.ask_until_answered(id, move || {
            for (_, asking) in before {
                asking.join().expect("a client ends");
            }
            edit(&settings, |text| text.replace(&wrong, &right));
        });
    }

    /// In the background, after `first`: asks until there is an answer. A worker that is about to be replaced may still
    /// accept beside the next one.
    fn ask_until_answered(&self, id: &str, first: impl FnOnce() + Send + 'static) {
        let (address, bearer) = (self.home.address(id), format!("Bearer {}", self.home.token(id)));
        let asking = thread::spawn(move || {
            first();
            let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
            until("an answer", ALL_WITHIN, || {
                let answer = http::request(address, "POST", "/v1/responses", &headers, QUESTION.as_bytes());
                answer.is_ok_and(|answer| answer.text().contains("response.completed")).then_some(())
            });
        });
        self.asking.borrow_mut().push((id.to_owned(), asking));
    }

    /// A request whose client hangs up once the provider has it.
    fn hang_up(&self, id: &str) {
        let mut stream = TcpStream::connect(self.home.address(id)).expect("the endpoint listens");
        let (token, address) = (self.home.token(id), self.home.address(id));
        let length = QUESTION.len();
        write!(
            stream,
            "POST /v1/responses HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{QUESTION}"
        )
        .expect("the worker reads");
        self.held.borrow_mut().push(stream);
    }

    /// A Codex that writes `line` to its stderr and ends with `exit`.
    fn codex(&self, id: &str, line: &str, exit: &str) {
        self.script(id, &format!("cat >/dev/null\nprintf '%s\\n' \"{line}\" >&2\n{exit}"));
    }

    /// A Codex that does this.
    fn script(&self, id: &str, lines: &str) {
        let program = self.home.path(&format!("work/codex-{id}"));
        let text = format!("#!/bin/sh\n{lines}\n");
        fs::write(&program, text).expect("the home is writable");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("the file is ours");
        let mut command = self.home.launch_command(id, &["exec", "x"]);
        command.env(environment::CODEX, program);
        self.launched.borrow_mut().push(self.home.spawn(command));
    }

    /// A Codex that uses much memory until the first file is there, and ends when the second one is.
    fn large_codex(&self, id: &str) {
        let [enough, end] = self.ends_of_large_codex();
        // `tail` keeps what it is to print until its input ends.
        self.script(
            id,
            &format!(
                "(head -c 60000000 /dev/zero; until [ -e '{enough}' ]; do sleep 0.05; done) | tail -c 60000000 > /dev/null &\n\
                 until [ -e '{end}' ]; do sleep 0.05; done"
            ),
        );
    }

    fn ends_of_large_codex(&self) -> [String; 2] {
        ["work/enough", "work/end"].map(|name| self.home.path(name).display().to_string())
    }
}

fn status(code: u16, body: &str) -> Step {
    Step::Status(Status { code, headers: BTreeMap::new(), body: body.to_owned() })
}

/// A provider that answers `failures` one after the other, and then well.
fn provider(failures: Vec<Vec<Step>>) -> FakeProvider {
    let script = Script::new().key(PROVIDER_KEY);
    let script = failures.into_iter().fold(script, |script, steps| script.turn(When::any(), steps));
    FakeProvider::start(script.always(When::any(), [Step::text("fine")]))
}

/// The address of a server that speaks plain HTTP to whoever comes, as often as a request is tried.
fn without_tls() -> SocketAddr {
    const ATTEMPTS_MAX: usize = 5;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is to be had");
    let address = listener.local_addr().expect("it is bound");
    // Ends with the last attempt, or with the test.
    thread::spawn(move || {
        for mut stream in listener.incoming().take(ATTEMPTS_MAX).flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
        }
    });
    address
}

fn times(n: usize, step: &Step) -> Vec<Vec<Step>> {
    vec![vec![step.clone()]; n]
}

struct Rows {
    all: Vec<Row>,
    providers: Vec<FakeProvider>,
    /// Which of them is asked by a client that hangs up.
    hung: usize,
}

impl Rows {
    fn id(fault: Fault) -> String {
        fault.name().to_lowercase()
    }

    fn push(
        &mut self,
        fault: Fault,
        how: &'static str,
        action: Action,
        endpoint: String,
        inject: impl Fn(&World, &str) + 'static,
        mend: impl Fn(&World, &str) + 'static,
    ) {
        let right = match action.actor() {
            Actor::Person => Right::Alert,
            Actor::Supervisor | Actor::Worker => Right::Helped,
            Actor::Nobody => Right::Ignored,
        };
        self.all.push(Row { fault, how, inject: Box::new(inject), action, right, mend: Box::new(mend), endpoint });
    }

    /// The latest row is right if this comes of it.
    fn is_right_as(&mut self, right: Right) {
        self.all.last_mut().expect("there is a row").right = right;
    }

    /// An endpoint that nobody asks.
    fn idle(fault: Fault) -> String {
        let id = Self::id(fault);
        format!(
            "[[endpoint]]\nid = \"{id}\"\nprotocol = \"chat-completions\"\nbase_url = \"http://127.0.0.1:9/v1\"\ndefault_model = \"scripted\"\nauth = {{ kind = \"none\" }}\n"
        )
    }

    /// A worker or supervisor that is in trouble.
    fn process(
        &mut self,
        fault: Fault,
        how: &'static str,
        action: Action,
        inject: impl Fn(&World, &str) + 'static,
        mend: impl Fn(&World, &str) + 'static,
    ) {
        self.push(fault, how, action, Self::idle(fault), inject, mend);
    }

    /// Signals that a worker reports, `n` of them, and the one that shows success.
    fn of_worker(&mut self, fault: Fault, what: Signal, n: usize, action: Action, success: Observation) {
        let inject = move |world: &World, id: &str| world.worker_reports(id, &what, n);
        let mend = move |world: &World, id: &str| world.worker_reports(id, &Signal::new(success), 1);
        self.push(fault, WORKERS_REPORT, action, Self::idle(fault), inject, mend);
    }

    /// A provider that fails so when it is asked, and then answers.
    fn provider(&mut self, fault: Fault, how: &'static str, action: Action, failures: Vec<Vec<Step>>) {
        let provider = provider(failures);
        let endpoint = endpoint_of(&Self::id(fault), &provider);
        self.providers.push(provider);
        self.push(fault, how, action, endpoint, |world, id| world.ask(id, 1), |world, id| world.ask(id, 1));
    }

    /// A provider that is elsewhere than at `wrong`.
    fn misdirected(&mut self, fault: Fault, how: &'static str, action: Action, wrong: String) {
        let provider = provider(Vec::new());
        let right = provider.base_url();
        let endpoint = endpoint_of(&Self::id(fault), &provider).replace(&right, &wrong);
        self.providers.push(provider);
        let mend = move |world: &World, id: &str| world.mend_address(id, &wrong, &right);
        self.push(fault, how, action, endpoint, |world, id| world.ask(id, 1), mend);
    }

    /// A Codex that says `line`; `mend` is what shows that it is over.
    fn codex(&mut self, fault: Fault, line: &'static str, exit: &'static str, action: Action, mend: fn(&World, &str)) {
        let provider = provider(Vec::new());
        let endpoint = endpoint_of(&Self::id(fault), &provider);
        self.providers.push(provider);
        let inject = move |world: &World, id: &str| world.codex(id, line, exit);
        self.push(fault, "scripted Codex", action, endpoint, inject, mend);
    }
}

fn rows(taken_port: u16) -> Rows {
    use {Action as A, Fault as F, Observation as O};
    let mut rows = Rows { all: Vec::new(), providers: Vec::new(), hung: 0 };
    let nothing = |_: &World, _: &str| {};
    let once: fn(&World, &str) = |world, id| world.ask(id, 1);
    let started: fn(&World, &str) = |world, id| world.codex(id, "", "exit 0");
    // The first: it is seen before D4 is, which is answered by the same action, and all that comes is followed.
    let edited = |world: &World, id: &str| {
        world.home.ctl(&["use", id, "--yes"]).ok();
        let port = world.home.address(id).port();
        let text = world.home.read("codex/config.toml");
        // Nobody listens there, and nobody else is given that port meanwhile.
        world.home.write("codex/config.toml", &text.replace(&format!(":{port}/"), ":9/"));
        until("the port to be seen", ALL_WITHIN, || {
            let asked = json!({ "endpoint": id });
            let incidents = world.home.rpc("incident.list", asked).expect("incidents are listed");
            incidents.as_array().is_some_and(|incidents| !incidents.is_empty()).then_some(())
        });
        until("it to be followed", ALL_WITHIN, || (!world.followed.stdout().is_empty()).then_some(()));
    };
    rows.process(F::E3, "used, port edited", A::RegenerateConfig, edited, nothing);
    rows.process(F::A1, "kill -9", A::RestartProxy, |world, id| world.kill(id, Kill::KILL), nothing);
    rows.push(
        F::A2,
        "port held by another",
        A::KillStaleProcesses,
        String::new(), // added later: what a supervisor sees as it starts may be told before anybody follows it
        move |world, _| edit(&world.settings, |text| format!("{text}{}port = {taken_port}\n", Rows::idle(F::A2))),
        |world, _| drop(world.port.borrow_mut().take()),
    );
    // A stranger's process is not ended: the person is told.
    rows.is_right_as(Right::Alert);
    // From three quarters of the limit to the limit it takes longer than from one look at its memory to the next.
    rows.process(F::A3, STAND_IN, A::RestartProxy, |world, id| world.ask_stand_in(id, "/leak/2"), nothing);
    rows.process(F::A4, "SIGSTOP", A::RestartProxy, |world, id| world.kill(id, Kill::STOP), nothing);
    rows.process(F::A5, STAND_IN, A::RestartProxy, |world, id| world.ask_stand_in(id, "/exit/101"), nothing);
    rows.misdirected(F::A6, "https, no TLS there", A::AlertUser, format!("https://{}/v1", without_tls()));
    // A label longer than DNS allows: no server is asked.
    let nameless = format!("http://{}.invalid/v1", "x".repeat(70));
    rows.misdirected(F::A7, "name that is none", A::RetryWithBackoff, nameless);

    let limited = |retry_after_s: u32| {
        Step::Status(Status {
            code: 429,
            headers: BTreeMap::from([("retry-after".to_owned(), retry_after_s.to_string())]),
            body: r#"{"error":{"message":"slow down"}}"#.to_owned(),
        })
    };
    rows.provider(F::B1, "429, Retry-After 1", A::WaitRetryAfter, times(1, &limited(1)));
    rows.provider(F::B2, "500 once", A::RetryWithBackoff, times(1, &status(500, "{}")));
    rows.provider(F::B3, "401", A::AlertUserBadKey, times(1, &status(401, r#"{"error":"invalid_api_key"}"#)));
    let upgrade = status(403, r#"{"error":"upgrade_required"}"#);
    rows.provider(F::B4, "403 upgrade_required", A::UpdateCcVersion, times(1, &upgrade));
    // No endpoint of this version speaks Command Code: the person is told.
    rows.is_right_as(Right::Alert);
    rows.provider(F::B5, "silent for 4 attempts", A::RetryWithBackoff, times(4, &Step::Silence));
    rows.provider(F::B6, "reset", A::RetryWithBackoff, times(1, &Step::Reset));
    let held = provider(vec![vec![Step::Silence]]);
    let endpoint = endpoint_of(&Rows::id(F::B7), &held);
    rows.hung = rows.providers.len();
    rows.providers.push(held);
    rows.push(F::B7, "client hangs up", A::Ignore, endpoint, World::hang_up, |world, id| world.ask(id, 1));
    let malformed = status(400, r#"{"error":{"message":"Invalid type for content: expected string, got array"}}"#);
    let strict = provider(times(2, &malformed));
    let endpoint = endpoint_of(&Rows::id(F::B8), &strict);
    rows.providers.push(strict);
    let twice = |world: &World, id: &str| world.ask(id, 2);
    rows.push(F::B8, "400 expected string ×2", A::ClearSchemaCache, endpoint, twice, once);
    let full = status(503, r#"{"error":{"message":"No capacity available for model x","status":"UNAVAILABLE"}}"#);
    // Only its backup answers.
    let (always_full, backup) = (provider(times(100, &full)), provider(Vec::new()));
    let endpoint = endpoint_of(&Rows::id(F::B9), &always_full) + "backup = \"b9-backup\"\n";
    let endpoint = format!("{endpoint}\n{}", endpoint_of("b9-backup", &backup));
    rows.providers.extend([always_full, backup]);
    let until_answered = |world: &World, id: &str| world.ask_until_answered(id, || ());
    rows.push(F::B9, "503, with a backup", A::SwitchProvider, endpoint, once, until_answered);
    rows.provider(F::B10, "403 error 1010", A::CheckBrowserUa, times(1, &status(403, "error code: 1010")));

    for (fault, what, n, action) in [
        (F::C1, O::ParserEmpty, 3, A::ClearSchemaCache),
        (F::C2, O::EscalationAsked, 5, A::SuggestSwitchProvider),
        (F::C3, O::FormatUnknown, 5, A::AlertUser),
        (F::C5, O::CommandSuspicious, 3, A::ClearSchemaCache),
        (F::C6, O::CommandEmpty, 3, A::SuggestSwitchModel),
        (F::C7, O::BraceBare, 5, A::AlertUser),
        (F::C8, O::BashWithoutCommand, 3, A::AlertUser),
        (F::C9, O::DsmlNameMismatch, 1, A::Ignore),
        (F::C10, O::StuckRecovery, 5, A::SuggestSwitchModel),
    ] {
        rows.of_worker(fault, Signal::new(what), n, action, O::ToolCallGood);
    }
    rows.of_worker(F::C4, Signal::new(O::CommandWrapped).value(1), 1, A::AlertUser, O::ToolCallGood);

    rows.codex(F::D1, "about to end", "kill -KILL $$", A::AlertUserRestart, started);
    let enough = |world: &World, _: &str| {
        let [enough, _] = world.ends_of_large_codex();
        fs::write(enough, "").expect("the home is writable");
    };
    rows.process(F::D2, "scripted Codex", A::AlertUserMemory, World::large_codex, enough);
    // As codex-cli 0.169 writes them.
    let disconnected = "ERROR: stream disconnected before completion: stream closed before response.completed";
    rows.codex(F::D3, disconnected, "exit 1", A::Ignore, once);
    let database =
        "2026-11-23T07:21:12.099954Z ERROR codex_state::sqlite: SQLite quick check detected corruption database=/x";
    rows.codex(F::D4, database, "exit 0", A::RegenerateConfig, started);
    let context = "ERROR: Codex ran out of room in the model's context window. Start a new thread or clear earlier history before retrying.";
    rows.codex(F::D5, context, "exit 1", A::AlertUserContext, once);
    rows.codex(F::D6, "ERROR: Reconnecting... 1/5", "exit 1", A::CheckProxyHealth, once);

    let corrupt = |world: &World, id: &str| {
        let path = world.home.paths().learned(&id.parse().expect("a good id"));
        fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("the home is writable");
        fs::write(path, r#"{"m":[{"repair":"content_type: array","evidence":"","learned_at_ms":1}]}"#)
            .expect("the home is writable");
        world.home.ctl(&["restart", id]).ok();
    };
    rows.process(F::E1, "damaged file", A::DeleteProviderCaps, corrupt, nothing);
    rows.process(F::E2, "worker ended unseen", A::CleanupPids, nothing, nothing);
    // The registry is written anew anyway, in less than the three seconds.
    rows.is_right_as(Right::Passed);
    let signed_in = Rows::idle(F::E4).replace("auth = { kind = \"none\" }\n", "");
    let expired = |world: &World, id: &str| {
        world.sign_in(id, 1_700_000_000);
        world.home.ctl(&["restart", id]).ok();
    };
    let renewed = |world: &World, id: &str| world.sign_in(id, 4_000_000_000);
    rows.push(F::E4, "token has expired", A::RefreshToken, signed_in, expired, renewed);
    // There is no other key yet: the person is told.
    rows.is_right_as(Right::Alert);
    let cooling = limited(12);
    let (first, backup) = (provider(times(1, &cooling)), provider(times(1, &cooling)));
    let endpoint = endpoint_of(&Rows::id(F::E5), &first) + "backup = \"e5-backup\"\n";
    let endpoint = format!("{endpoint}\n{}", endpoint_of("e5-backup", &backup));
    rows.providers.extend([first, backup]);
    let both = |world: &World, id: &str| {
        world.ask(id, 1);
        world.ask("e5-backup", 1);
    };
    rows.push(F::E5, "429 here and at its backup", A::AlertUserNoProvider, endpoint, both, nothing);
    rows
}

/// A folder with the supervisor in it and, beside it, what it takes for its worker: the real one for most endpoints, the
/// stand-in for those of `stood_in`.
fn programs(stood_in: &[String]) -> TempDir {
    let (supervisor, worker, stand_in) = (binary("codex-supervisor"), binary("codex-worker"), home::stand_in_worker());
    // Beside the build, so that the program can be linked; it looks for its worker in its own folder.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build's folder is writable");
    fs::hard_link(supervisor, folder.path().join("codex-supervisor")).expect("both are on one file system");
    let script = format!(
        "#!/bin/sh\nfor word; do\n  [ \"$last\" = --endpoint-id ] && id=$word\n  last=$word\ndone\n\
         case $id in\n  {}) exec '{}' \"$@\" ;;\n  *) exec '{}' \"$@\" ;;\nesac\n",
        stood_in.join("|"),
        stand_in.display(),
        worker.display(),
    );
    let program = folder.path().join("codex-worker");
    fs::write(&program, script).expect("the folder is writable");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("the file is ours");
    folder
}

/// Whether what is right for `row` was done, as far as it can be without the world's help.
fn is_decided(row: &Row, incident: &Incident, notices: &[(u64, Value)]) -> bool {
    let state = |fits: fn(AttemptState) -> bool| {
        incident.attempts.iter().any(|attempt| attempt.action == row.action && fits(attempt.state))
    };
    let told = |action: Action| notices.contains(&(incident.id.0, json!(action)));
    match row.right {
        Right::Helped => state(|state| matches!(state, AttemptState::Watched { .. } | AttemptState::Helped)),
        // An action that failed, and then the person was told.
        Right::Alert => {
            let is_told = notices.iter().any(|(id, _)| *id == incident.id.0);
            told(row.action) || (is_told && state(|state| state == AttemptState::Failed))
        }
        Right::Ignored => incident.state == IncidentState::Ignored,
        Right::Passed => state(|state| state == AttemptState::Superseded),
    }
}

/// What has come of it in the end, if that is right.
fn outcome(row: &Row, incident: &Incident) -> Option<String> {
    let attempt = incident.attempts.iter().rev().find(|attempt| attempt.action == row.action);
    match (row.right, attempt.map(|attempt| attempt.state)) {
        (Right::Helped, Some(AttemptState::Helped)) => Some("helped".to_owned()),
        (Right::Alert, Some(AttemptState::Failed)) => Some("failed, alert seen".to_owned()),
        (Right::Alert, None) => Some("alert seen".to_owned()),
        (Right::Ignored, None) => Some("counted".to_owned()),
        (Right::Passed, Some(AttemptState::Superseded)) => attempt.map(|attempt| attempt.result.clone()),
        _ => None,
    }
}

/// What was tried besides, that should not have been.
fn wrong(incident: &Incident, action: Action) -> Vec<Action> {
    let supervised = |attempt: &&codex_control::incident::Attempt| {
        attempt.action.actor() == codex_control::incident::Actor::Supervisor && attempt.action != action
    };
    incident.attempts.iter().filter(supervised).map(|attempt| attempt.action).collect()
}

/// A registry that names a worker of `id` which has ended since, and nobody was there to see it.
fn leave_a_registry_behind(home: &SandboxHome, id: &str) {
    home.write_settings(&Rows::idle(Fault::E2));
    home.start();
    let pid = home.wait_state(id, EndpointState::Running).worker_pid.expect("a running endpoint has a worker");
    let worker = Process::open(pid).expect("the worker lives");
    home.kill_supervisor();
    assert!(worker.signal(Kill::KILL).expect("the worker is ours"));
    until("the worker's end", ALL_WITHIN, || worker.has_ended().then_some(()));
}

/// All incidents, newest first.
fn incidents(home: &SandboxHome) -> Vec<Incident> {
    let mut all: Vec<Incident> = Vec::new();
    loop {
        let before = all.last().map(|incident| incident.id);
        let listed =
            home.rpc("incident.list", json!({ "whole": true, "before": before })).expect("incidents are listed");
        let part: Vec<Incident> = serde_json::from_value(listed).expect("incidents have the agreed shape");
        if part.is_empty() {
            return all;
        }
        all.extend(part);
    }
}

struct Seen {
    injected_at: Millis,
    decided: bool,
    done: Option<Incident>,
}

fn now_ms() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[test]
fn each_of_the_38_faults_is_seen_and_answered_rightly() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port is to be had");
    let port = holder.local_addr().expect("it is bound").port();
    let Rows { all: rows, providers, hung } = rows(port);
    let faults: Vec<Fault> = rows.iter().map(|row| row.fault).collect();
    assert_eq!(faults.len(), Fault::ALL.len());
    let home = SandboxHome::new();
    let mut text = SETTINGS.to_owned();
    for row in &rows {
        text += &row.endpoint;
        text.push('\n');
        home.store_key(&Rows::id(row.fault), PROVIDER_KEY);
    }
    for backup in ["b9-backup", "e5-backup"] {
        home.store_key(backup, PROVIDER_KEY);
    }
    leave_a_registry_behind(&home, &Rows::id(Fault::E2));
    home.write_settings(&text);
    let settings = Arc::new(Mutex::new(home.path("config/codex-supervisor/supervisor.toml")));
    let stood_in: Vec<String> = rows
        .iter()
        .filter(|row| [WORKERS_REPORT, STAND_IN].contains(&row.how))
        .map(|row| Rows::id(row.fault))
        .collect();
    let programs = programs(&stood_in);
    let mut supervisor = home.command(programs.path().join("codex-supervisor"));
    supervisor.arg("--foreground");
    let started_at = now_ms();
    home.start_command(supervisor);
    let followed = home.spawn(home.ctl_command(&["incidents", "--follow", "--json"]));
    let world = World {
        home,
        followed,
        settings,
        port: RefCell::new(Some(holder)),
        held: RefCell::default(),
        launched: RefCell::default(),
        asking: RefCell::default(),
    };
    for row in rows.iter().filter(|row| row.fault != Fault::A2) {
        world.home.wait_state(&Rows::id(row.fault), EndpointState::Running);
    }
    let mut seen: Vec<Seen> = Vec::new();
    for row in &rows {
        let injected_at = if row.fault == Fault::E2 { started_at } else { now_ms() };
        (row.inject)(&world, &Rows::id(row.fault));
        if row.fault == Fault::B7 {
            // The client hangs up once the provider has its request.
            until("the provider to be asked", ALL_WITHIN, || (!providers[hung].requests().is_empty()).then_some(()));
            world.held.borrow_mut().clear();
        }
        seen.push(Seen { injected_at, decided: false, done: None });
    }
    let mut latest = BTreeMap::new();
    let finished = e2e::until::try_until(ALL_WITHIN, || {
        let incidents = incidents(&world.home);
        let notices = world.notices();
        for (row, seen) in rows.iter().zip(&mut seen).filter(|(_, seen)| seen.done.is_none()) {
            let id = Rows::id(row.fault);
            // The registry is nobody's endpoint.
            let endpoint = (row.fault != Fault::E2).then_some(id.as_str());
            let of_row = |incident: &&Incident| {
                incident.fault == Some(row.fault)
                    && incident.endpoint.as_ref().map(codex_control::EndpointId::as_str) == endpoint
            };
            let Some(incident) = incidents.iter().find(of_row) else { continue };
            latest.insert(row.fault, incident.clone());
            if !seen.decided && is_decided(row, incident, &notices) {
                seen.decided = true;
                (row.mend)(&world, &id);
            }
            let is_over = incident.state == IncidentState::Resolved;
            if seen.decided && is_over {
                seen.done = Some(incident.clone());
            }
        }
        seen.iter().all(|seen| seen.done.is_some()).then_some(())
    });
    let mut table = String::new();
    let _ = writeln!(
        table,
        "{:<4} {:<22} {:<20} {:<6} {:<24} {:<28} {:>10} {:>11}",
        "", "injected", "detected as", "tier", "action", "outcome", "detect ms", "recover ms"
    );
    let mut n_right = 0;
    let mut in_order: Vec<(&Row, &Seen)> = rows.iter().zip(&seen).collect();
    in_order.sort_by_key(|(row, _)| row.fault);
    for (row, seen) in in_order {
        let Some(incident) = &seen.done else {
            let _ = writeln!(table, "{:<4} {:<22} NOT RIGHT: {:#?}", row.fault, row.how, latest.get(&row.fault));
            continue;
        };
        let attempt = incident.attempts.iter().find(|attempt| attempt.action == row.action);
        let outcome = outcome(row, incident);
        let tier = attempt.map_or(1, |attempt| attempt.tier.number());
        let detect = incident.opened_at_ms.saturating_sub(seen.injected_at);
        let recover = incident.closed_at_ms.unwrap_or_default().saturating_sub(seen.injected_at);
        let others = wrong(incident, row.action);
        if others.is_empty() && outcome.is_some() {
            n_right += 1;
        }
        let outcome = outcome.unwrap_or_else(|| format!("NOT RIGHT: {:?}", attempt.map(|attempt| attempt.state)));
        let _ = writeln!(
            table,
            "{:<4} {:<22} {:<20} {tier:<6} {:<24} {outcome:<28} {detect:>10} {recover:>11}{}",
            row.fault,
            row.how,
            incident.what,
            row.action,
            if others.is_empty() { String::new() } else { format!("  ALSO {others:?}") }
        );
    }
    println!("{table}{n_right} of {} right", rows.len());
    println!("as a person sees them:\n{}", world.home.ctl(&["incidents", "list", "--since", "all"]).ok());
    assert!(finished.is_some() && n_right == rows.len(), "{table}{}", world.home.logs());
    let [_, end] = world.ends_of_large_codex();
    fs::write(end, "").expect("the home is writable");
    for launched in world.launched.take() {
        launched.finish(ALL_WITHIN);
    }
    for (_, asking) in world.asking.take() {
        asking.join().expect("a client ends");
    }
    world.home.stop();
    world.home.assert_nothing_left();
}
