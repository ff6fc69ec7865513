//! A stand-in for the supervisor: answers JSON-RPC on the control socket and remembers what it was asked.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use codex_control::environment::Environment;
use codex_control::ipc::Counters;
use codex_control::paths::Paths;
use codex_control::rpc::{RpcError, code};
use serde_json::{Value, json};

use crate::home::Home;

/// Decides the answer to a call; `None` leaves it to [`Supervisor`]'s own.
type Answers = dyn Fn(&str, &Value) -> Option<Result<Value, RpcError>> + Send + Sync;

/// A running stand-in; ends with the test.
pub(crate) struct Supervisor {
    calls: Arc<Mutex<Vec<(String, Value)>>>,
}

/// An endpoint's status as the supervisor gives it.
pub(crate) fn endpoint(id: &str, changes: Value) -> Value {
    let mut status = json!({
        "id": id, "name": "Z.AI", "provider": "zai", "protocol": "chat-completions",
        "base_url": "https://api.z.ai/api/paas/v4", "default_model": "glm-4.7", "is_default": true,
        "state": "running", "address": "127.0.0.1:41017", "worker_pid": 5120, "generation": 1, "restarts_total": 0,
        "last_exit": null, "healthy_at_ms": null, "memory_bytes": 4_823_449, "problem": null, "counters": Counters::default(),
    });
    merge(&mut status, changes);
    status
}

/// The supervisor's status.
pub(crate) fn daemon(endpoints: &[Value], changes: Value) -> Value {
    let default =
        endpoints.iter().find(|endpoint| endpoint["is_default"] == true).map(|endpoint| endpoint["id"].clone());
    let mut status = json!({
        "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id(), "started_at_ms": 1_000, "protection": "full",
        "settings": { "path": "/s.toml", "problem": null }, "default_endpoint": default, "endpoints": endpoints,
    });
    merge(&mut status, changes);
    status
}

fn merge(value: &mut Value, changes: Value) {
    match (value, changes) {
        (Value::Object(object), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(object.entry(key).or_insert(Value::Null), change);
            }
        }
        (value, change) => *value = change,
    }
}

impl Supervisor {
    /// Answers every call as a supervisor with these endpoints would.
    pub(crate) fn with(home: &Home, endpoints: &[Value]) -> Self {
        Self::answering(home, endpoints, |_, _| None)
    }

    /// The same, with some answers of the test's own.
    pub(crate) fn answering(
        home: &Home,
        endpoints: &[Value],
        answers: impl Fn(&str, &Value) -> Option<Result<Value, RpcError>> + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(home.paths.control_socket()).unwrap();
        Self::serve(None, listener, endpoints, answers)
    }

    /// The same as [`Self::with`], but that the first connection ends without an answer, as that to a supervisor that
    /// is killed; `reads`: after the call was read.
    pub(crate) fn after_one_that_dies(home: &Home, endpoints: &[Value], reads: bool) -> Self {
        let listener = UnixListener::bind(home.paths.control_socket()).unwrap();
        let first = listener.try_clone().unwrap();
        let dying = std::thread::spawn(move || {
            let (stream, _) = first.accept().unwrap();
            if reads {
                BufReader::new(&stream).read_line(&mut String::new()).unwrap();
            }
        });
        Self::serve(Some(dying), listener, endpoints, |_, _| None)
    }

    fn serve(
        first: Option<JoinHandle<()>>,
        listener: UnixListener,
        endpoints: &[Value],
        answers: impl Fn(&str, &Value) -> Option<Result<Value, RpcError>> + Send + Sync + 'static,
    ) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let shared = (endpoints.to_vec(), calls.clone(), Arc::new(answers) as Arc<Answers>);
        let shared = Arc::new(shared);
        std::thread::spawn(move || {
            if let Some(first) = first {
                first.join().unwrap();
            }
            for stream in listener.incoming() {
                let Ok(stream) = stream else { break };
                let shared = shared.clone();
                std::thread::spawn(move || {
                    let (endpoints, calls, answers) = &*shared;
                    converse(&stream, |method, params| {
                        calls.lock().unwrap().push((method.to_owned(), params.clone()));
                        answers(method, params).unwrap_or_else(|| own_answer(endpoints, method, params))
                    });
                });
            }
        });
        Self { calls }
    }

    /// What it was asked, in order.
    pub(crate) fn calls(&self) -> Vec<(String, Value)> {
        self.calls.lock().unwrap().clone()
    }

    /// The names of the methods it was asked for, in order.
    pub(crate) fn methods(&self) -> Vec<String> {
        self.calls().into_iter().map(|(method, _)| method).collect()
    }
}

/// A connection that is accepted and never answered; tells that it was made.
pub(crate) fn silent(home: &Home) -> Receiver<()> {
    let listener = UnixListener::bind(home.paths.control_socket()).unwrap();
    let (accepted_tx, accepted): (Sender<()>, _) = mpsc::channel();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            held.push(stream);
            let _ = accepted_tx.send(());
        }
    });
    accepted
}

/// Answers one connection line by line until it is closed.
fn converse(stream: &UnixStream, mut answer: impl FnMut(&str, &Value) -> Result<Value, RpcError>) {
    let mut writer = stream;
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let request: Value = serde_json::from_str(&line).unwrap();
        let method = request["method"].as_str().unwrap();
        let response = match answer(method, &request["params"]) {
            Ok(result) => json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }),
            Err(error) => json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }),
        };
        let mut text = format!("{response}\n");
        if method == "events.subscribe" {
            // Two events, then the end: a supervisor that is stopped.
            for sequence in 1..=2 {
                let event = json!({
                    "sequence": sequence, "at_ms": 5, "kind": "endpoint.state", "endpoint": "zai",
                    "message": "zai is running", "detail": {},
                });
                let notification = json!({ "jsonrpc": "2.0", "method": "event", "params": event });
                text.push_str(&notification.to_string());
                text.push('\n');
            }
        }
        if writer.write_all(text.as_bytes()).is_err() || method == "events.subscribe" {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

fn own_answer(endpoints: &[Value], method: &str, params: &Value) -> Result<Value, RpcError> {
    let named = || match params.get("id").filter(|id| !id.is_null()) {
        Some(id) => endpoints.iter().find(|endpoint| endpoint["id"] == *id).cloned().ok_or_else(|| {
            let message = format!("there is no endpoint `{}`", id.as_str().unwrap_or_default());
            RpcError::new(code::NOT_FOUND, message, Some("did you mean `zai`?".to_owned()))
        }),
        None => endpoints.first().cloned().ok_or_else(|| RpcError::new(code::NOT_FOUND, "there is no endpoint", None)),
    };
    match method {
        "daemon.status" | "daemon.reload" => Ok(daemon(endpoints, json!({}))),
        "endpoint.list" => Ok(json!(endpoints)),
        "endpoint.add" => Ok(endpoint(params["id"].as_str().unwrap(), json!({}))),
        "endpoint.show" => Ok(json!({ "status": named()?, "endpoint": null })),
        "endpoint.remove" | "endpoint.default" => named().map(|_| Value::Null),
        "endpoint.set" | "endpoint.start" | "endpoint.stop" | "endpoint.restart" | "endpoint.wake" => named(),
        "session.begin" => Ok(json!({
            "id": "cli-0000002a", "folder": std::env::temp_dir().join("nowhere"), "takes_codex_log": true, "scope": null,
        })),
        "session.attach" | "session.end" | "events.subscribe" => Ok(Value::Null),
        _ => Err(RpcError::new(code::METHOD_NOT_FOUND, format!("there is no method `{method}`"), None)),
    }
}

/// Marks the process that [`stand_in`] is to become.
const STAND_IN: &str = "CODEXCTL_TEST_STAND_IN";

/// A shell script that becomes a supervisor process; for tests of starting and stopping one.
pub(crate) fn stand_in_script() -> String {
    let test = std::env::current_exe().unwrap();
    format!("{STAND_IN}=1 exec '{}' --ignored --exact --nocapture supervisor::stand_in", test.display())
}

/// Not a test: the process that [`stand_in_script`] starts. Serves until it is asked to stop.
#[test]
#[ignore = "becomes a stand-in for the supervisor when another test starts it so"]
fn stand_in() {
    if std::env::var_os(STAND_IN).is_none() {
        return;
    }
    let paths = Paths::from_environment(&Environment::from_process()).unwrap();
    let socket = paths.control_socket();
    std::fs::create_dir_all(paths.runtime_folder()).unwrap();
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    for stream in listener.incoming() {
        let mut stops = false;
        converse(&stream.unwrap(), |method, params| {
            stops = ["daemon.stop", "daemon.restart"].contains(&method);
            if stops { Ok(Value::Null) } else { own_answer(&[], method, params) }
        });
        if stops {
            break;
        }
    }
    std::fs::remove_file(socket).unwrap();
}
