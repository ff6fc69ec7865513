//! A provider that follows a script, in any of the wire protocols.
//!
//! A real TCP server: it reads real requests, checks them as the strictest provider would ([`validate`]) and answers a
//! malformed one with 400 and the reason, keeps everything it was sent, and writes its answers in odd pieces
//! ([`script::Wire`]). One thread with a runtime of its own, so that tests can be written top to bottom.

pub mod script;
mod serve;
mod speak;
mod thoughts;
pub mod validate;
mod view;

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use codex_control::tables::Protocol;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};

pub use script::{Call, Script, Status, Step, Turn, When, Wire, message_text};

use crate::until::until;

/// A running provider. Dropping it closes its port and its connections.
pub struct FakeProvider {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Request line's path.
    pub path: String,
    /// Lower-case names and values.
    pub headers: Vec<(String, String)>,
    /// The body; null when it is no JSON.
    pub body: Value,
    /// The body in the shape of Chat Completions, whatever the protocol; a tool of a namespace is `NAMESPACE/NAME`.
    pub view: Value,
    /// Size of the body.
    pub body_bytes: usize,
    /// Index of the turn that answered it.
    pub turn: Option<usize>,
    /// How the answer ended, once it has.
    pub end: Option<End>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was sent whole.
    Complete,
    /// It ended as the script says: reset, closed, or a status.
    Scripted,
    /// The client went away first.
    ClientGone,
}

/// What the server and the test share. The lock protects plain data and is never held across an await.
struct Shared {
    script: Script,
    state: Mutex<State>,
    /// Wakes answers that wait at a gate.
    released: Notify,
    /// Told about each request and its answer, one line each.
    log: Box<dyn Fn(&str) + Send + Sync>,
}

#[derive(Default)]
struct State {
    uses: Vec<usize>,
    requests: Vec<Received>,
    complaints: Vec<String>,
    models_asked: usize,
    connections: usize,
    calls: usize,
    thoughts: thoughts::Ledger,
    held: HashSet<String>,
    open_gates: HashSet<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves plain data behind, which is as good as before for telling what went wrong.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeProvider {
    /// Starts a provider on a free port of the loopback interface.
    ///
    /// # Panics
    /// When no port or thread can be had.
    pub fn start(script: Script) -> Self {
        Self::start_at(0, script, |_| {}).expect("a loopback port is to be had")
    }

    /// Starts a provider on `port`, 0 for a free one, that tells `log` about each request.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn start_at(port: u16, script: Script, log: impl Fn(&str) + Send + Sync + 'static) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = State { uses: vec![0; script.turn.len()], ..State::default() };
        let shared = Arc::new(Shared { script, state: Mutex::new(state), released: Notify::new(), log: Box::new(log) });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("fake-provider".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                runtime.block_on(async {
                    let listener = TcpListener::from_std(listener).expect("the listener is non-blocking");
                    tokio::select! {
                        () = serve::accept(&listener, &shared) => {}
                        _ = stopped => {}
                    }
                });
            }
        })?;
        Ok(Self { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it speaks.
    pub fn protocol(&self) -> Protocol {
        self.shared.script.protocol
    }

    /// What a person would put into `base_url`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The requests for an answer so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.state().requests.clone()
    }

    /// How often its list of models was asked for.
    pub fn models_asked(&self) -> usize {
        self.shared.state().models_asked
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Waits until `count` requests have arrived and returns them all.
    pub fn wait_requests(&self, count: usize, deadline: Duration) -> Vec<Received> {
        until(&format!("{count} requests at the provider"), deadline, || {
            let requests = self.requests();
            (requests.len() >= count).then_some(requests)
        })
    }

    /// Waits until every answer so far has ended, which Codex may see before the provider does.
    pub fn wait_ended(&self, deadline: Duration) {
        until("the ends of all answers", deadline, || {
            self.requests().iter().all(|request| request.end.is_some()).then_some(())
        });
    }

    /// Waits until an answer has come to `gate`; everything before it has been written.
    pub fn wait_held(&self, gate: &str, deadline: Duration) {
        until(&format!("the provider's gate `{gate}`"), deadline, || {
            self.shared.state().held.contains(gate).then_some(())
        });
    }

    /// Opens `gate` for all answers that wait there, now and later.
    pub fn release(&self, gate: &str) {
        self.shared.state().open_gates.insert(gate.to_owned());
        self.shared.released.notify_waiters();
    }

    /// What was wrong with the requests: malformed ones and those that no turn expected.
    pub fn complaints(&self) -> Vec<String> {
        self.shared.state().complaints.clone()
    }

    /// Turns that no request has asked for.
    pub fn unused_turns(&self) -> Vec<usize> {
        let state = self.shared.state();
        let turns = self.shared.script.turn.iter().zip(&state.uses).enumerate();
        turns.filter(|(_, (turn, uses))| !turn.repeat && **uses == 0).map(|(index, _)| index).collect()
    }

    /// Checks that every request was sound and that the whole script was played, and returns the requests.
    ///
    /// # Panics
    /// When not.
    pub fn assert_played(&self) -> Vec<Received> {
        let requests = self.requests();
        assert_eq!(self.complaints(), Vec::<String>::new(), "the provider refused requests");
        let unused = self.unused_turns();
        assert!(unused.is_empty(), "turns {unused:?} were never asked for; requests:\n{}", outline(&requests));
        requests
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        // The receiver is gone only when the thread has ended by itself.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the fake provider's thread panicked");
        }
    }
}

impl Received {
    /// The messages.
    pub fn messages(&self) -> &[Value] {
        self.view["messages"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// The last message.
    pub fn last(&self) -> &Value {
        self.messages().last().unwrap_or(&Value::Null)
    }

    /// The results of tools, as `(text of the call, text of the result)`.
    pub fn tool_results(&self) -> Vec<(String, String)> {
        let calls =
            || self.messages().iter().flat_map(|message| message["tool_calls"].as_array().into_iter().flatten());
        let results = self.messages().iter().filter(|message| message["role"] == "tool");
        results
            .map(|result| {
                let call = calls().find(|call| call["id"] == result["tool_call_id"]);
                let text = call.map_or_else(String::new, |call| {
                    format!(
                        "{} {}",
                        call["function"]["name"].as_str().unwrap_or_default(),
                        call["function"]["arguments"].as_str().unwrap_or_default()
                    )
                });
                (text, message_text(result))
            })
            .collect()
    }

    /// Names of the offered functions.
    pub fn tool_names(&self) -> Vec<&str> {
        let tools = self.view["tools"].as_array().into_iter().flatten();
        tools.filter_map(|tool| tool["function"]["name"].as_str()).collect()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Roles and beginnings of the messages of each request, for a person who looks for what went wrong.
pub fn outline(requests: &[Received]) -> String {
    /// Enough of a message to recognise it.
    const SHOWN_CHARS: usize = 160;
    let mut lines = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        lines
            .push(format!("request {index}: turn {:?}, {} bytes, {:?}", request.turn, request.body_bytes, request.end));
        for message in request.messages() {
            let text: String = message_text(message).chars().take(SHOWN_CHARS).collect();
            lines.push(format!("  {}: {}", message["role"].as_str().unwrap_or("?"), text.replace('\n', "⏎")));
        }
    }
    lines.join("\n")
}
