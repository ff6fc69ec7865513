//! Clients that mean harm, or do it by mistake: each is refused or bounded, and those who mean well notice nothing.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use codex_control::process::Process;
use codex_control::rpc::EndpointState;
use e2e::codex::{self, Run};
use e2e::home::{DEADLINE, PROVIDER_KEY, SandboxHome};
use e2e::http::{self, Answer};
use e2e::provider::{FakeProvider, Script, Step, When};
use e2e::until::{try_until, until};
use rustix::process::{Resource, Uid};

/// The user `nobody` of every Linux system.
const NOBODY: u32 = 65_534;
/// A request that [`script`] answers.
const HELLO: &[u8] = br#"{"model":"scripted","input":"Say hello.","stream":true}"#;
/// Longest time that most requests may take beside hostile clients, on a machine that runs other tests at the same time.
/// None may take longer than [`DEADLINE`], which is far below the time that those get who say nothing.
const HEALTHY_WITHIN: Duration = Duration::from_secs(2);

fn script() -> Script {
    Script::new().key(PROVIDER_KEY).always(When::user("hello"), [Step::text("Hello.")])
}

/// Sends [`HELLO`] as Codex does, on a connection of its own; gives the time to the end of the answer.
fn healthy(address: SocketAddr, token: &str) -> Duration {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let begin = Instant::now();
    let answer = http::request(address, "POST", "/v1/responses", &headers, HELLO).expect("the worker answers");
    let elapsed = begin.elapsed();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.text().contains("response.completed"), "{}", answer.text());
    elapsed
}

/// The slowest and the median of `count` healthy requests.
fn healthy_times(address: SocketAddr, token: &str, count: usize) -> (Duration, Duration) {
    let mut times: Vec<Duration> = (0..count).map(|_| healthy(address, token)).collect();
    times.sort();
    (times[count - 1], times[count / 2])
}

/// Checks that the endpoint still has the worker it had, and that it is well.
#[track_caller]
fn assert_unharmed(home: &SandboxHome, worker_pid: Option<u32>) {
    let now = home.endpoint("scripted");
    assert_eq!((now.worker_pid, now.restarts_total, now.state), (worker_pid, 0, EndpointState::Running));
}

/// Checks that the worker keeps no more connections than it has room for guests, and a few of ours.
#[track_caller]
fn assert_few_open(home: &SandboxHome) {
    /// Where the worker begins to send guests away, and our own.
    const OPEN_MAX: u64 = 512 + 8;
    // The supervisor hears of it with the next heartbeat.
    let open = || home.endpoint("scripted").counters.connections_open;
    let is_bounded = try_until(DEADLINE, || (1..=OPEN_MAX).contains(&open()).then_some(()));
    assert!(is_bounded.is_some(), "{} connections are open", open());
}

/// What the kernel counts as the most memory a process ever had, in bytes.
fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("it is a number");
    kib * 1024
}

/// Connects to `path` as another user and says `line`; gives what is answered before the connection ends.
fn as_nobody(path: &Path, line: &[u8]) -> io::Result<String> {
    thread::scope(|scope| {
        let stranger = scope.spawn(|| {
            // The kernel keeps the user for each thread; only libc makes all threads of a process change together.
            // The thread ends with this function, so nothing else ever runs as that user.
            let nobody = Uid::from_raw(NOBODY);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody)?;
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            // It may be closed already.
            let _ = stream.write_all(line);
            let mut answer = String::new();
            match stream.read_to_string(&mut answer) {
                Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
                _ => Ok(answer),
            }
        });
        stranger.join().expect("the thread does not panic")
    })
}

#[test]
fn another_user_gets_nothing_from_either_socket() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let provider = FakeProvider::start(script());
    let home = SandboxHome::with_provider(&provider);
    let worker_pid = home.endpoint("scripted").worker_pid;
    let (control, worker) = (home.paths().control_socket(), home.paths().worker_socket());
    let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!((mode(&control), mode(&worker), mode(home.paths().runtime_folder())), (0o600, 0o600, 0o700));
    let call = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.status\"}\n";
    for path in [&control, &worker] {
        let error = as_nobody(path, call).expect_err("its folder is private");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    }
    // Somebody has opened it all to everybody: who asks is looked at all the same.
    let folders: Vec<PathBuf> =
        control.ancestors().skip(1).take_while(|folder| folder.starts_with(home.path(""))).map(Into::into).collect();
    for (path, open) in
        folders.iter().map(|folder| (folder.as_path(), 0o755)).chain([(&*control, 0o666), (&*worker, 0o666)])
    {
        fs::set_permissions(path, fs::Permissions::from_mode(open)).expect("it is ours");
    }
    for path in [&control, &worker] {
        assert_eq!(as_nobody(path, call).expect("it can connect"), "", "it is told nothing");
    }
    home.status();
    healthy(home.address("scripted"), &home.token("scripted"));
    assert_unharmed(&home, worker_pid);
    let logs = home.logs();
    for words in ["a client of another user was sent away", "a process of another user was sent away"] {
        assert!(logs.contains(words), "`{words}` is not in\n{logs}");
    }
}

/// Sends `raw` as it stands and reads what comes; a connection that is reset gives what came before.
fn raw(address: SocketAddr, raw: &[u8]) -> String {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).expect("the worker accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time to wait can be set");
    // It may have been refused before it was read whole.
    let _ = stream.write_all(raw);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut chunk) {
        answer.extend_from_slice(&chunk[..read]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_web_page_gets_nothing_from_a_port() {
    let provider = FakeProvider::start(script());
    let home = SandboxHome::with_provider(&provider);
    let worker_pid = home.endpoint("scripted").worker_pid;
    let (address, token) = (home.address("scripted"), home.token("scripted"));
    let (port, bearer) = (address.port(), format!("Bearer {token}"));
    let ours = format!("127.0.0.1:{port}");
    let own_page = format!("http://{ours}");
    let body = String::from_utf8_lossy(HELLO);
    let request = |line: &str, headers: &[(&str, &str)]| {
        let mut text = format!("{line} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            let _ = write!(text, "{name}: {value}\r\n"); // writing to a String cannot fail
        }
        raw(address, format!("{text}\r\n{body}").as_bytes())
    };
    let with_token = ("authorization", bearer.as_str());
    let turn = "POST /v1/responses";
    let mut refused = Vec::new();
    // A page of another site, of a file, of a sandbox, of our own address: nothing of ours is a page.
    for origin in ["https://example.com", "null", &own_page, "http://localhost", ""] {
        for line in [turn, "GET /v1/models", "GET /health", "OPTIONS /v1/responses"] {
            refused.push((403, request(line, &[("host", &ours), ("origin", origin), with_token])));
        }
    }
    // A page whose name points at this machine (DNS rebinding).
    let rebound =
        ["example.com", "127.0.0.1", "localhost", "127.0.0.1:1", "127.0.0.1.example.com", "127.0.0.1@example.com"];
    for host in rebound.map(str::to_owned).into_iter().chain([
        format!("example.com:{port}"),
        format!("127.0.0.1.example.com:{port}"),
        format!("localhost.example.com:{port}"),
        format!("0.0.0.0:{port}"),
        format!("127.0.0.1:{port}:{port}"),
        format!(" 127.0.0.1:+{port}x"),
        String::new(),
    ]) {
        refused.push((421, request(turn, &[("host", &host), with_token])));
    }
    refused.push((421, request(turn, &[with_token])));
    refused.push((421, request(turn, &[("host", &ours), ("host", "example.com"), with_token])));
    refused.push((421, request(turn, &[("host", "example.com"), ("host", &ours), with_token])));
    // What a page can send without asking first: no header of its own, a plain form, a ping.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json"] {
        refused.push((401, request(turn, &[("host", &ours), ("content-type", kind)])));
    }
    let in_query = format!("POST /v1/responses?token={token}&access_token={token}");
    refused.push((401, request(&in_query, &[("host", &ours)])));
    refused.push((401, request(turn, &[("host", &ours), ("cookie", &format!("token={token}"))])));
    let (cut, long, padded) = (&bearer[..bearer.len() - 1], format!("{bearer}0"), format!("{bearer} x"));
    for offered in [&token, "Bearer", "Bearer ", "Basic Og==", "bearer", cut, &long, &padded] {
        refused.push((401, request(turn, &[("host", &ours), ("authorization", offered)])));
    }
    for line in ["GET /v1/models", "GET /metrics", "GET /monitoring", "DELETE /learned", "GET /v1/accounts", "GET /x"] {
        refused.push((401, request(line, &[("host", &ours)])));
    }
    for (index, (status, answer)) in refused.iter().enumerate() {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{index}: not {status} but\n{answer}");
        let head = answer.to_ascii_lowercase();
        assert!(!head.contains("access-control-"), "{index}: a page could read this:\n{answer}");
        assert!(!answer.contains(&token), "{index}:\n{answer}");
    }
    assert_eq!(provider.requests().len() + provider.complaints().len(), 0, "nothing has reached the provider");

    // An endpoint that is stopped says so to everybody, and nothing more.
    let worker = Process::open(worker_pid.expect("it runs")).expect("it lives");
    home.rpc("endpoint.stop", serde_json::json!({ "id": "scripted" })).expect("it can be stopped");
    home.wait_state("scripted", EndpointState::Stopped);
    until("the worker's end", DEADLINE, || worker.has_ended().then_some(()));
    let answer = request(turn, &[("host", "example.com"), ("origin", "https://example.com")]);
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("`codexctl start scripted`"), "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("access-control-"), "{answer}");
    home.rpc("endpoint.start", serde_json::json!({ "id": "scripted" })).expect("it can be started");
    assert_ne!(home.wait_state("scripted", EndpointState::Running).worker_pid, worker_pid);
    healthy(address, &token);
}

/// What decompresses to `bytes` zeros.
fn bombs(bytes: usize) -> [(&'static str, Vec<u8>); 2] {
    let zeros = vec![0; 1024 * 1024];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).expect("it can be compressed");
    for _ in 0..bytes / zeros.len() {
        gzip.write_all(&zeros).and_then(|()| zstd.write_all(&zeros)).expect("it can be compressed");
    }
    [("gzip", gzip.finish().expect("it can be compressed")), ("zstd", zstd.finish().expect("it can be compressed"))]
}

#[test]
fn bombs_and_endless_bodies_are_stopped_at_the_limit() {
    const MIB: u64 = 1024 * 1024;
    /// The limit of a body, as shipped.
    const BODY_BYTES_MAX: u64 = 64 * MIB;
    let provider = FakeProvider::start(script());
    let home = SandboxHome::with_provider(&provider);
    let (address, token) = (home.address("scripted"), home.token("scripted"));
    let worker_pid = home.endpoint("scripted").worker_pid;
    let pid = worker_pid.expect("it runs");
    let bearer = format!("Bearer {token}");
    let post = |headers: &[(&str, &str)], body: &[u8]| -> Answer {
        http::request(address, "POST", "/v1/responses", headers, body).expect("the worker answers")
    };
    let idle_bytes = peak_bytes(pid);
    for (encoding, bomb) in bombs(256 * 1024 * 1024) {
        let headers = [("content-encoding", encoding), ("content-type", "application/json")];
        // Without the token nobody even looks at it.
        assert_eq!(post(&headers, &bomb).status, 401, "{encoding}");
        let answer = post(&[headers[0], headers[1], ("authorization", &bearer)], &bomb);
        assert_eq!(answer.status, 413, "{encoding}: {answer:?}");
        println!("{} bytes of {encoding} that would be 256 MiB: refused", bomb.len());
    }
    // A length that is a lie, one that is too much, one that is no number, chunks without end.
    let head = format!("POST /v1/responses HTTP/1.1\r\nhost: {address}\r\nauthorization: {bearer}\r\n");
    for (announced, expected) in
        [("99999999999", "413"), ("18446744073709551615", "4"), ("18446744073709551616", "400"), ("-1", "400")]
    {
        let answer = raw(address, format!("{head}content-length: {announced}\r\n\r\n").as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{announced}: {answer}");
    }
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).expect("the worker accepts");
    stream.set_write_timeout(Some(DEADLINE)).expect("a time to wait can be set");
    stream.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).expect("it is read");
    let chunk = [format!("{MIB:x}\r\n").as_bytes(), &vec![b' '; usize::try_from(MIB).unwrap()], b"\r\n"].concat();
    let swallowed = (0..4 * BODY_BYTES_MAX / MIB).take_while(|_| stream.write_all(&chunk).is_ok()).count() as u64;
    assert!(swallowed < BODY_BYTES_MAX / MIB + 16, "{swallowed} MiB were taken");
    // Heads that are too long, have too many lines, or are none.
    for (name, bytes) in [
        ("a long line", format!("{head}x-long: {}\r\n\r\n", "x".repeat(1_000_000))),
        ("many lines", format!("{head}{}\r\n", "x-many: 1\r\n".repeat(500))),
        ("no end", "x".repeat(1_000_000)),
        ("TLS", "\x16\x03\x01\x02".to_owned()),
    ] {
        let answer = raw(address, format!("{bytes}\r\n").as_bytes());
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{name}: {answer}");
    }
    let peak_bytes = peak_bytes(pid);
    println!("memory of the worker: {} KiB before, at most {} KiB", idle_bytes / 1024, peak_bytes / 1024);
    assert!(peak_bytes < idle_bytes + 3 * BODY_BYTES_MAX, "{} MiB", peak_bytes / MIB);
    assert!(provider.requests().is_empty());
    healthy(address, &token);
    assert_unharmed(&home, worker_pid);
}

/// Silent connections to open: as many as asked for, or as this process may have.
fn silent_connections() -> usize {
    /// Connections to open where the system allows it.
    const WANTED: usize = 10_000;
    /// Descriptors for everything else in this process, the provider's sockets included.
    const KEPT: u64 = 200;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let allowed = limit.maximum.unwrap_or(u64::MAX);
    // Other tests of this process are not harmed by a higher limit.
    rustix::process::setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit })
        .expect("a process may raise its limit to the hard one");
    let count = WANTED.min(usize::try_from(allowed.saturating_sub(KEPT)).unwrap_or(WANTED));
    if count < WANTED {
        println!("only {count} silent connections: this process may have {allowed} descriptors");
    }
    count
}

#[test]
fn thousands_of_silent_connections_keep_nobody_out() {
    let provider = FakeProvider::start(
        script().turn(When::user("Wait."), [Step::text("I"), Step::hold("crowd"), Step::text(" waited.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let worker_pid = home.endpoint("scripted").worker_pid;
    let (address, token) = (home.address("scripted"), home.token("scripted"));
    healthy(address, &token);
    let (slowest, median) = healthy_times(address, &token, 50);
    println!("alone: slowest {slowest:?}, median {median:?}");
    // A real Codex in the middle of an answer, over all of it.
    let codex = home.start_exec(&["Wait."]);
    provider.wait_held("crowd", codex::DEADLINE);

    let mut silent = VecDeque::new();
    let mut times = Vec::new();
    let begin = Instant::now();
    for number in 0..silent_connections() {
        silent.push_back(TcpStream::connect_timeout(&address, DEADLINE).expect("a port of ours never refuses"));
        if number % 200 == 0 {
            times.push(healthy(address, &token));
        }
    }
    let elapsed = begin.elapsed();
    times.sort();
    println!(
        "while {} came in {elapsed:?}: slowest {:?}, median {:?}",
        silent.len(),
        times[times.len() - 1],
        times[times.len() / 2]
    );
    assert!(times[times.len() / 2] < HEALTHY_WITHIN, "{times:?}");
    let (slowest, median) = healthy_times(address, &token, 50);
    println!("beside them: slowest {slowest:?}, median {median:?}");
    assert!(median < HEALTHY_WITHIN, "{median:?}");
    assert_eq!(home.ctl(&["models", "scripted"]).code(), 0);
    assert_few_open(&home);

    provider.release("crowd");
    let run = Run::finish(codex);
    run.assert_ended_well();
    assert_eq!(run.answer(), "I waited.");
    assert_unharmed(&home, worker_pid);
}

#[test]
fn clients_that_dawdle_keep_nobody_out() {
    /// More than the worker has room for, of any kind.
    const DAWDLING: usize = 1_600;
    let provider = FakeProvider::start(script());
    let home = SandboxHome::with_provider(&provider);
    let worker_pid = home.endpoint("scripted").worker_pid;
    let (address, token) = (home.address("scripted"), home.token("scripted"));
    let head = format!("POST /v1/responses HTTP/1.1\r\nhost: {address}\r\n");
    // Heads that drip, and bodies that drip without a token.
    let begin = [head.clone(), format!("{head}content-length: 1000000\r\n\r\n")];
    let drips = ["x-slow: 1\r\n", " "];
    let connect = || {
        let stream = TcpStream::connect_timeout(&address, DEADLINE).expect("a port of ours never refuses");
        stream.set_nonblocking(true).expect("it can be set");
        stream
    };
    let mut dawdling: Vec<TcpStream> = (0..DAWDLING).map(|_| connect()).collect();
    for (number, stream) in dawdling.iter_mut().enumerate() {
        // One that was sent away may be closed already.
        let _ = stream.write_all(begin[number % 2].as_bytes());
    }
    // And those who ask what they may ask without end, and read no answer.
    let mut deaf = [connect(), connect()];
    let questions = format!("GET /health HTTP/1.1\r\nhost: {address}\r\n\r\n").repeat(1_000);
    let mut times = Vec::new();
    for _ in 0..30 {
        for (number, stream) in dawdling.iter_mut().enumerate() {
            let _ = stream.write_all(drips[number % 2].as_bytes());
        }
        for stream in &mut deaf {
            let _ = stream.write(questions.as_bytes());
        }
        times.push(healthy(address, &token));
    }
    times.sort();
    let (slowest, median) = (times[times.len() - 1], times[times.len() / 2]);
    println!("beside {DAWDLING} that dawdle: slowest {slowest:?}, median {median:?}");
    assert!(median < HEALTHY_WITHIN, "{times:?}");
    assert_few_open(&home);
    assert_unharmed(&home, worker_pid);
}
