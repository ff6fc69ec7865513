//! Providers behind a proxy: the real program with `HTTPS_PROXY` in its environment, a proxy that makes tunnels
//! (`CONNECT`), and a provider that speaks TLS. Everything is on loopback, and only the proxy knows where
//! `provider.test` is.
//!
//! `certificate.pem` is signed with `key.der`, which protects nothing else.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

/// Longest wait for anything, on a machine that is busy with other tests.
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest head of a request that is read.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/proxy/certificate.pem");
const KEY: &[u8] = include_bytes!("key.der");

/// A password with a character that has to be written as `%40` in a URL.
const PASSWORD: &str = "open%40sesame";
/// `aladdin:open@sesame`, as a proxy wants it.
const CREDENTIALS: &str = "YWxhZGRpbjpvcGVuQHNlc2FtZQ==";

/// The answer of a provider of Chat Completions.
const ANSWER: &str = concat!(
    r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"Through the tunnel."},"finish_reason":null}]}"#,
    "\n\n",
    r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    "\n\ndata: [DONE]\n\n",
);

/// What somebody was told, in order.
type Heard = Arc<Mutex<Vec<String>>>;

fn heard(by: &Heard) -> Vec<String> {
    by.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Serves each connection on a thread of its own, as long as this process lives.
fn listen(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port is to be had");
    let address = listener.local_addr().expect("it is bound");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            // Who goes away ends its connection, and that is all.
            thread::spawn(move || stream.set_read_timeout(Some(DEADLINE)).and_then(|()| serve(stream)));
        }
    });
    address
}

/// The head of a request, byte by byte: what follows it is for somebody else.
fn read_head(stream: &mut impl Read) -> io::Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX && stream.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).map_err(io::Error::other)
}

/// A provider with TLS, and the heads of the requests it got.
fn provider() -> (SocketAddr, Heard) {
    let certificate = CertificateDer::from_pem_file(CERTIFICATE).expect("a certificate");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(KEY));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("the key is that of the certificate");
    let config = Arc::new(config);
    let requests = Heard::default();
    let noted = Arc::clone(&requests);
    let address = listen(move |stream| {
        let connection = ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        let head = read_head(&mut stream)?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        io::copy(&mut (&mut stream).take(length.unwrap_or(0)), &mut io::sink())?;
        let (kind, body) = if head.starts_with("POST") {
            ("text/event-stream", ANSWER)
        } else {
            ("application/json", r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#)
        };
        noted.lock().unwrap_or_else(PoisonError::into_inner).push(head);
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )?;
        stream.conn.send_close_notify();
        stream.flush()
    });
    (address, requests)
}

/// A proxy that makes tunnels to `provider` for who shows [`CREDENTIALS`], and the heads of the requests it got.
fn proxy(provider: SocketAddr) -> (SocketAddr, Heard) {
    let requests = Heard::default();
    let noted = Arc::clone(&requests);
    let address = listen(move |mut client| {
        let head = read_head(&mut client)?;
        let is_allowed = head.contains(&format!("Basic {CREDENTIALS}\r\n"));
        noted.lock().unwrap_or_else(PoisonError::into_inner).push(head);
        if !is_allowed {
            return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n");
        }
        let mut provider = TcpStream::connect(provider)?;
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        let (mut from_client, mut to_provider) = (client.try_clone()?, provider.try_clone()?);
        let up = thread::spawn(move || {
            let copied = io::copy(&mut from_client, &mut to_provider);
            to_provider.shutdown(Shutdown::Write).and(copied)
        });
        io::copy(&mut provider, &mut client)?;
        client.shutdown(Shutdown::Both)?;
        up.join().map_err(|_| io::Error::other("the other half panicked"))?.map(drop)
    });
    (address, requests)
}

/// A worker that runs alone, for an endpoint at `https://provider.test`; it ends when this is dropped.
struct Worker {
    process: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Worker {
    /// One with `proxy` as `HTTPS_PROXY`. It writes everything it ever writes to its log.
    fn start(proxy: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let settings = "[[endpoint]]\nid = \"far\"\nprotocol = \"chat-completions\"\nbase_url = \"https://provider.test/v1\"\ndefault_model = \"m\"\nauth = { kind = \"none\" }\n";
        let [file, token] = ["far.toml", "far.token"].map(|name| folder.path().join(name));
        fs::write(&file, settings).expect("the folder can be written");
        let mut process = Command::new(env!("CARGO_BIN_EXE_codex-worker"))
            .args(["--listen", "127.0.0.1:0", "--endpoint"])
            .arg(file)
            .arg("--token-file")
            .arg(token)
            .env_clear()
            .env("HOME", folder.path())
            .env("CODEX_SUPERVISOR_LOG", "trace")
            .env("SSL_CERT_FILE", CERTIFICATE)
            .env("HTTPS_PROXY", proxy)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(Self::log_in(folder.path())).expect("the folder can be written"))
            .spawn()
            .expect("the worker starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
        let address = line.trim().strip_prefix("listening on http://").and_then(|line| line.strip_suffix("/v1"));
        let address = address.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("it said: {line}"));
        Self { process, address, folder }
    }

    fn log_in(folder: &Path) -> PathBuf {
        folder.join("log")
    }

    /// Everything it has logged.
    fn log(&self) -> String {
        fs::read_to_string(Self::log_in(self.folder.path())).expect("it has a log")
    }

    /// Asks it, and returns all that it answers.
    fn ask(&self) -> String {
        let token = fs::read_to_string(self.folder.path().join("far.token")).expect("it has made its token");
        let body = r#"{"model":"m","stream":true,"input":"Hello."}"#;
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline is set");
        write!(
            stream,
            "POST /v1/responses HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.address,
            token.trim(),
            body.len(),
        )
        .expect("it reads");
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).expect("it answers in time");
        answer
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A child that is not waited for yet: the number is its own.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Neither the password, as it was written or as it is meant, nor what is made of it.
fn assert_without_password(text: &str) {
    for secret in [PASSWORD, "open@sesame", CREDENTIALS] {
        assert!(!text.contains(secret), "`{secret}` stands in: {text}");
    }
}

#[test]
fn a_provider_is_reached_through_the_proxy() {
    let (provider, asked) = provider();
    let (proxy, tunnels) = proxy(provider);
    let worker = Worker::start(&format!("http://aladdin:{PASSWORD}@{proxy}"));
    let answer = worker.ask();
    assert!(answer.contains("Through the tunnel.") && answer.contains("response.completed"), "{answer}");
    let tunnels = heard(&tunnels);
    assert!(!tunnels.is_empty());
    for tunnel in tunnels {
        assert_eq!(
            tunnel,
            format!(
                "CONNECT provider.test:443 HTTP/1.1\r\nHost: provider.test:443\r\nProxy-Authorization: Basic {CREDENTIALS}\r\n\r\n"
            )
        );
    }
    let asked = heard(&asked);
    let request = asked.iter().find(|head| head.starts_with("POST ")).expect("the provider was asked");
    let request = request.to_ascii_lowercase();
    assert!(request.starts_with("post /v1/chat/completions http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nhost: provider.test\r\n"), "{request}");
    assert!(!request.contains("proxy-"), "what is for the proxy is not for the provider: {request}");
    assert!(worker.log().contains("request ended"), "the log is the worker's");
    assert_without_password(&worker.log());
}

#[test]
fn a_proxy_that_refuses_is_named_without_its_password() {
    let (provider, asked) = provider();
    let (proxy, _) = proxy(provider);
    let worker = Worker::start(&format!("http://aladdin:not-{PASSWORD}@{proxy}"));
    let answer = worker.ask();
    let named = format!("https://provider.test/v1 cannot be reached through the proxy `{proxy}`");
    assert!(answer.contains(&named) && answer.contains("proxy authorization required"), "{answer}");
    assert_eq!(heard(&asked), [""; 0]);
    assert_without_password(&answer);
    assert_without_password(&worker.log());
}

#[test]
fn a_dead_proxy_is_named_without_its_password() {
    // Bound and not listening: nobody else gets the port, and connections to it are refused.
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
    let socket = socket.expect("a socket is to be had");
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a loopback port is to be had");
    let bound: SocketAddr = rustix::net::getsockname(&socket).expect("it is bound").try_into().expect("an IP address");
    let worker = Worker::start(&format!("http://aladdin:{PASSWORD}@{bound}"));
    let answer = worker.ask();
    let named = format!("https://provider.test/v1 cannot be reached through the proxy `{bound}`");
    assert!(answer.contains(&named) && answer.contains("Connection refused"), "{answer}");
    assert_without_password(&answer);
    assert_without_password(&worker.log());
}

/// What speaks no plain HTTP cannot be a proxy of ours, and is not shown a password.
#[test]
fn a_proxy_of_another_kind_is_a_plain_error() {
    for scheme in ["socks5", "https"] {
        let (proxy, tunnels) = proxy(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)));
        let worker = Worker::start(&format!("{scheme}://aladdin:{PASSWORD}@{proxy}"));
        let answer = worker.ask();
        assert!(answer.contains(&format!("HTTPS_PROXY names `{scheme}://{proxy}`")), "{answer}");
        assert!(answer.contains("only http:// proxies"), "{answer}");
        assert_eq!(heard(&tunnels), [""; 0]);
        assert_without_password(&answer);
        assert_without_password(&worker.log());
    }
}

#[test]
fn a_proxy_that_cannot_be_understood_is_a_plain_error() {
    let worker = Worker::start(&format!("http://aladdin:{PASSWORD}@"));
    let answer = worker.ask();
    assert!(answer.contains("HTTPS_PROXY holds no address of a proxy; say `http://HOST:PORT` there"), "{answer}");
    assert_without_password(&answer);
    assert_without_password(&worker.log());
}
