//! A worker that runs alone, without a supervisor, so that a test has its process and its timeouts to itself.

use std::net::{SocketAddr, TcpStream};

use codex_control::tables::Protocol;
use e2e::home::{DEADLINE, Running, SandboxHome, binary};
use e2e::http::{self, Answer};
use e2e::until::until;

/// The wire protocols.
pub(crate) const PROTOCOLS: [Protocol; 3] =
    [Protocol::ChatCompletions, Protocol::AnthropicMessages, Protocol::Responses];

/// A running worker; it ends when it is dropped.
pub(crate) struct Worker {
    pub(crate) protocol: Protocol,
    pub(crate) process: Running,
    address: SocketAddr,
    bearer: String,
}

impl Worker {
    /// One worker for each protocol, all of them at `provider`, with `limits` at the head of their settings, which are
    /// the file `name` in `home`. Their model has a window for any conversation.
    pub(crate) fn start_all(home: &SandboxHome, provider: SocketAddr, name: &str, limits: &str) -> Vec<Self> {
        let endpoints = PROTOCOLS.map(Protocol::name).map(|protocol| {
            format!(
                "[[endpoint]]\nid = \"{protocol}\"\nprotocol = \"{protocol}\"\nbase_url = \"http://{provider}/v1\"\ndefault_model = \"scripted\"\nauth = {{ kind = \"none\" }}\n[[endpoint.model]]\nid = \"scripted\"\ncontext_window = 2000000\n"
            )
        });
        home.write(&format!("{name}.toml"), &format!("{limits}{}", endpoints.concat()));
        PROTOCOLS.map(|protocol| Self::start(home, name, protocol)).into()
    }

    fn start(home: &SandboxHome, settings: &str, protocol: Protocol) -> Self {
        let token = home.path(&format!("{settings}-{}.token", protocol.name()));
        let mut command = home.command(binary("codex-worker"));
        command.env("CODEX_SUPERVISOR_LOG", "warn");
        command.arg("--endpoint").arg(home.path(&format!("{settings}.toml")));
        command.args(["--endpoint-id", protocol.name(), "--listen", "127.0.0.1:0", "--token-file"]).arg(&token);
        let process = home.spawn(command);
        let address = until("the worker", DEADLINE, || {
            let stdout = process.stdout();
            let line = stdout.lines().find_map(|line| line.strip_prefix("listening on http://"));
            line.and_then(|line| line.strip_suffix("/v1")?.parse().ok())
        });
        let token = std::fs::read_to_string(token).expect("the worker has made its token");
        Self { protocol, address, bearer: format!("Bearer {}", token.trim()), process }
    }

    /// Posts a request for an answer, on a connection of its own.
    pub(crate) fn ask(&self, body: &str) -> Result<Answer, String> {
        http::request(self.address, "POST", "/v1/responses", &self.headers(), body.as_bytes())
            .map_err(|error| format!("no answer: {error}"))
    }

    /// The same, with the answer still to be read.
    pub(crate) fn post(&self, body: &str) -> Result<TcpStream, String> {
        let sent = http::send(self.address, "POST", "/v1/responses", &self.headers(), body.as_bytes());
        let (stream, written) = sent.map_err(|error| format!("no connection: {error}"))?;
        written.map_err(|error| format!("not read: {error}"))?;
        Ok(stream)
    }

    /// Its counters, as text.
    pub(crate) fn metrics(&self) -> String {
        http::request(self.address, "GET", "/metrics", &self.headers(), b"").expect("the worker answers").text()
    }

    fn headers(&self) -> [(&str, &str); 2] {
        [("authorization", self.bearer.as_str()), ("content-type", "application/json")]
    }
}
