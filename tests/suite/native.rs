//! Providers that speak the Responses API themselves: answers in one piece, and state that another provider has made.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use codex_control::tables::Protocol;
use e2e::home::SandboxHome;
use e2e::provider::{Call, FakeProvider, Script, Status, Step, When};
use serde_json::{Value, json};

use crate::standalone::Worker;
use crate::sweep::upstream::{read_request, write_status};

/// A response in one piece, as a provider that indents its JSON writes it.
fn response(id: &str, output: &[Value]) -> String {
    let usage = json!({ "input_tokens": 21, "input_tokens_details": { "cached_tokens": 4 }, "output_tokens": 3, "output_tokens_details": { "reasoning_tokens": 1 }, "total_tokens": 24 });
    let response = json!({ "id": id, "object": "response", "created_at": 1, "status": "completed", "model": "scripted", "error": null, "output": output, "usage": usage });
    serde_json::to_string_pretty(&response).expect("it is JSON")
}

fn message(text: &str) -> Value {
    json!({ "type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [{ "type": "output_text", "text": text, "annotations": [] }] })
}

/// What a provider says: a status and a body, JSON unless it begins with an event.
type Said = (u16, String);

/// Answers each request, by its body; lives as long as this process.
fn provider(answer: impl Fn(&Value) -> Said + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port is to be had");
    let address = listener.local_addr().expect("it is bound");
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            // A client that goes away ends its connection, and that is all.
            thread::spawn(move || _ = serve(stream, &*answer));
        }
    });
    address
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(&Value) -> Said) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut pending = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut pending)? {
        let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        if request.starts_with("GET ") {
            write_status(
                &mut stream,
                200,
                &json!({ "object": "list", "data": [{ "id": "scripted", "object": "model" }] }),
            )?;
            continue;
        }
        let (status, body) = answer(&serde_json::from_str(body).map_err(io::Error::other)?);
        let kind = if body.starts_with("event: ") { "text/event-stream" } else { "application/json" };
        let length = body.len();
        let head = format!("HTTP/1.1 {status} Answer\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all((head + &body).as_bytes())?;
    }
    Ok(())
}

/// A worker of the native protocol at `provider`.
fn worker(home: &SandboxHome, provider: SocketAddr) -> Worker {
    let workers = Worker::start_all(home, provider, "native", "");
    workers.into_iter().find(|worker| worker.protocol == Protocol::Responses).expect("there is one for each protocol")
}

#[test]
fn an_answer_in_one_piece_is_for_who_asked_for_it_so_and_becomes_events_for_who_did_not() {
    let text = "Grüße, \"quoted\"\n🦀";
    let reasoning = json!({ "type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA/b+=" });
    let output = [reasoning, message(text)];
    let whole = response("resp_1", &output);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let provider = {
        let (asked, whole) = (Arc::clone(&asked), whole.clone());
        provider(move |body| {
            asked.lock().unwrap_or_else(PoisonError::into_inner).push(body.clone());
            (200, whole.clone())
        })
    };
    let home = SandboxHome::new();
    let worker = worker(&home, provider);
    for stream in [json!(false), Value::Null] {
        let answer = worker.ask(&json!({ "model": "scripted", "stream": stream, "input": "Go." }).to_string()).unwrap();
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("application/json")),
            "{}",
            answer.text()
        );
        assert_eq!(answer.text(), whole);
    }
    let answer = worker.ask(&json!({ "model": "scripted", "stream": true, "input": "Go." }).to_string()).unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")), "{}", answer.text());
    let events: Vec<Value> = answer
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).expect("an event is JSON"))
        .collect();
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(
        kinds,
        ["response.created", "response.output_item.done", "response.output_item.done", "response.completed"]
    );
    assert_eq!([&events[1]["item"], &events[2]["item"]], [&output[0], &output[1]]);
    assert_eq!(events[3]["response"], serde_json::from_str::<Value>(&whole).unwrap());
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let streams: Vec<&Value> = asked.iter().map(|body| &body["stream"]).collect();
    assert_eq!(streams, [&json!(false), &Value::Null, &json!(true)], "what was asked for is what is sent");
    let metrics = worker.metrics();
    assert!(metrics.contains("worker_input_tokens_total{endpoint=\"responses\"} 63\n"), "{metrics}");
    assert!(metrics.contains("worker_output_tokens_total{endpoint=\"responses\"} 9\n"), "{metrics}");
}

/// What comes before a stream begins has a bound of its own, and is none of an answer.
#[test]
fn a_long_answer_in_one_piece_is_no_endless_beginning() {
    let whole = response("resp_1", &[message(&"long ".repeat(2 << 20))]);
    let provider = provider({
        let whole = whole.clone();
        move |_| (200, whole.clone())
    });
    let home = SandboxHome::new();
    let worker = worker(&home, provider);
    let answer = worker.ask(&json!({ "model": "scripted", "stream": false, "input": "Go." }).to_string()).unwrap();
    assert_eq!(answer.status, 200, "{:.500}", answer.text());
    assert!(answer.text() == whole, "{} bytes instead of {}", answer.body.len(), whole.len());
}

#[test]
fn a_failure_in_one_piece_is_not_seen() {
    let n_asked = Mutex::new(0);
    let provider = provider(move |_| {
        let mut n_asked = n_asked.lock().unwrap_or_else(PoisonError::into_inner);
        *n_asked += 1;
        let body = match *n_asked {
            1 => json!({ "error": { "message": "hiccup", "type": "server_error" } }).to_string(),
            2 => response("resp_1", &[message("half of it")])[..300].to_owned(),
            3 => json!({ "id": "r", "object": "response", "status": "failed", "output": [], "error": { "code": "server_error", "message": "hiccup" } }).to_string(),
            4 => "<html><body>502 Bad Gateway</body></html>".to_owned(),
            _ => response("resp_1", &[message("All of it.")]),
        };
        (200, body)
    });
    let home = SandboxHome::new();
    let answer =
        worker(&home, provider).ask(&json!({ "model": "scripted", "stream": true, "input": "Go." }).to_string());
    let text = answer.unwrap().text();
    assert!(text.contains("All of it.") && !text.contains("half") && !text.contains("hiccup"), "{text}");
}

/// Codex itself, at a provider that was asked for a stream and gives none.
#[test]
fn codex_works_with_a_provider_that_does_not_stream() {
    let whole = |body: String| {
        let headers = [("content-type".to_owned(), "application/json".to_owned())].into();
        Step::Status(Status { code: 200, headers, body })
    };
    let arguments = Call::shell("echo counted-$((1+1))").arguments.to_string();
    let call = json!({ "type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "exec_command", "status": "completed", "arguments": arguments });
    let provider = FakeProvider::start(
        Script::responses()
            .turn(When::user("Count."), [whole(response("resp_1", &[call]))])
            .turn(When::tool("counted-2"), [whole(response("resp_2", &[message("It is two.")]))]),
    );
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Count."]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "It is two.");
}

/// Status of each answer, and the states that came with its request.
type Heard = Arc<Mutex<Vec<(u16, Vec<String>)>>>;

/// A provider that reads no state but its own, and says so in OpenAI's words; counts whom it refuses and keeps what it took.
struct Strict {
    address: SocketAddr,
    heard: Heard,
}

impl Strict {
    fn start(name: &'static str) -> Self {
        let heard = Heard::default();
        let noted = Arc::clone(&heard);
        let n_answers = Mutex::new(0);
        let address = provider(move |body| {
            let mut n_answers = n_answers.lock().unwrap_or_else(PoisonError::into_inner);
            let mut heard = noted.lock().unwrap_or_else(PoisonError::into_inner);
            let items = body["input"].as_array().into_iter().flatten();
            let states: Vec<String> =
                items.filter_map(|item| item["encrypted_content"].as_str()).map(str::to_owned).collect();
            let is_own = |state: &String| state.starts_with(name);
            let last = body["input"].as_array().and_then(|items| items.last()).map(|item| &item["type"]);
            let (code, said) = if states.iter().all(is_own) {
                *n_answers += 1;
                let state = format!("{name}-{n_answers}");
                let output = if last == Some(&json!("compaction_trigger")) {
                    vec![json!({ "type": "compaction", "id": "cmp_1", "encrypted_content": state })]
                } else {
                    let reasoning =
                        json!({ "type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": state });
                    vec![reasoning, message("Yes.")]
                };
                let event = |kind: &str, more: Value| {
                    let mut data = more;
                    data["type"] = json!(kind);
                    format!("event: {kind}\ndata: {data}\n\n")
                };
                let created = event("response.created", json!({ "response": { "id": "r" } }));
                let item = |item: Value| event("response.output_item.done", json!({ "output_index": 0, "item": item }));
                let end = event("response.completed", json!({ "response": { "id": "r", "status": "completed" } }));
                (200, created + &output.into_iter().map(item).collect::<String>() + &end)
            } else {
                let error = json!({ "message": "The encrypted content for item rs_0 could not be verified. Reason: Encrypted content could not be decrypted or parsed.", "type": "invalid_request_error", "code": "invalid_encrypted_content", "param": null });
                (400, json!({ "error": error }).to_string())
            };
            heard.push((code, states));
            (code, said)
        });
        Self { address, heard }
    }

    fn heard(&self) -> Vec<(u16, Vec<String>)> {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Asks with all of `conversation` and one more item, and adds what is answered, as Codex does.
fn say(worker: &Worker, conversation: &mut Vec<Value>, item: Value) {
    conversation.push(item);
    let body = json!({ "model": "scripted", "stream": true, "input": conversation }).to_string();
    let answer = worker.ask(&body).expect("the worker answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = events.map(|data| serde_json::from_str::<Value>(data).expect("an event is JSON"));
    let items: Vec<Value> = events
        .filter(|event| event["type"] == "response.output_item.done")
        .map(|mut event| event["item"].take())
        .collect();
    assert!(!items.is_empty(), "{text}");
    conversation.extend(items);
}

fn user(text: &str) -> Value {
    json!({ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": text }] })
}

#[test]
fn state_of_another_native_provider_is_refused_once_in_a_conversation() {
    let (a, b) = (Strict::start("a"), Strict::start("b"));
    let (home_a, home_b) = (SandboxHome::new(), SandboxHome::new());
    let (at_a, at_b) = (worker(&home_a, a.address), worker(&home_b, b.address));
    // At the first provider a history is compacted, and gone on from.
    let mut conversation = vec![user("one")];
    say(&at_a, &mut conversation, json!({ "type": "compaction_trigger" }));
    conversation.drain(..2);
    say(&at_a, &mut conversation, user("two"));
    say(&at_a, &mut conversation, user("three"));
    let heard = |status: u16, states: &[&str]| (status, states.iter().map(|state| (*state).to_owned()).collect());
    assert_eq!(a.heard(), [heard(200, &[]), heard(200, &["a-1"]), heard(200, &["a-1", "a-2"])]);

    for text in ["four", "five", "six"] {
        say(&at_b, &mut conversation, user(text));
    }
    assert_eq!(
        b.heard(),
        [heard(400, &["a-1", "a-2", "a-3"]), heard(200, &[]), heard(200, &["b-1"]), heard(200, &["b-1", "b-2"]),],
        "what is not its own is refused once, and what is comes back to it"
    );

    // Back at the first one, what it made itself is known to be its own.
    say(&at_a, &mut conversation, user("seven"));
    say(&at_a, &mut conversation, user("eight"));
    let all: Vec<&str> = vec!["a-1", "a-2", "a-3", "b-1", "b-2", "b-3"];
    assert_eq!(a.heard(), [heard(400, &all), heard(200, &all[..3]), heard(200, &["a-1", "a-2", "a-3", "a-4"])]);

    // Another process of it still knows what was refused, and at the other one, of thoughts, whose the histories are.
    drop((at_a, at_b));
    let (at_a, at_b) = (worker(&home_a, a.address), worker(&home_b, b.address));
    say(&at_a, &mut conversation, user("nine"));
    assert_eq!(a.heard(), [heard(200, &["a-1", "a-2", "a-3", "a-4", "a-5"])]);
    say(&at_b, &mut conversation, user("ten"));
    let to_b = b.heard();
    assert_eq!(to_b.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [400, 200], "{to_b:?}");
    say(&at_a, &mut conversation, user("eleven"));
    let to_a = a.heard();
    assert_eq!(to_a.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [400, 200], "{to_a:?}");
    assert!(to_a[1].1.contains(&"a-1".to_owned()), "a history is not taken for another's: {to_a:?}");
}
