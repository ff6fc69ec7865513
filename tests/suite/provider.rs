//! The scripted provider itself: a test double that is wrong makes every other test worthless.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use e2e::http::{self, Answer};
use e2e::provider::{Call, End, FakeProvider, Script, Step, When};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(10);

fn body(messages: &Value) -> Value {
    let function = |name: &str, property: &str| {
        json!({ "type": "function", "function": { "name": name, "parameters": {
            "type": "object", "properties": { property: { "type": "string" } }, "required": [property],
        } } })
    };
    json!({
        "model": "scripted", "stream": true, "stream_options": { "include_usage": true }, "messages": messages,
        "tools": [function("exec_command", "cmd"), function("apply_patch", "input")], "tool_choice": "auto",
    })
}

fn post(provider: &FakeProvider, body: &Value) -> Answer {
    let headers = [
        ("content-type", "application/json"),
        ("accept", "text/event-stream"),
        ("user-agent", "test"),
        ("authorization", "Bearer k"),
    ];
    http::request(provider.address(), "POST", "/v1/chat/completions", &headers, body.to_string().as_bytes())
        .expect("the provider answers")
}

/// The chunks of a streamed answer, up to `[DONE]`.
fn chunks(answer: &Answer) -> Vec<Value> {
    let text = answer.text();
    let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.into_iter().map(|data| serde_json::from_str(data).expect("a chunk is JSON")).collect()
}

fn joined(chunks: &[Value], pointer: &str) -> String {
    chunks.iter().filter_map(|chunk| chunk.pointer(pointer)?.as_str()).collect()
}

#[test]
fn an_answer_is_whole_in_every_framing() {
    for (crlf, close_delimited, write_bytes) in
        [(false, false, vec![1, 5, 17]), (true, true, vec![]), (true, false, vec![1])]
    {
        let mut script = Script::new().key("k").turn(
            When::user("go"),
            [
                Step::reasoning("so, so"),
                Step::text("grüße 🦀"),
                Step::Calls(vec![
                    Call { tool: "exec_command".to_owned(), arguments: json!({ "cmd": "one" }) },
                    Call { tool: "exec".to_owned(), arguments: json!({ "cmd": "two" }) },
                ]),
                Step::Patch("*** Begin".to_owned()),
            ],
        );
        script.wire = e2e::provider::Wire { crlf, close_delimited, write_bytes, pause_us: 0 };
        let provider = FakeProvider::start(script);
        let answer = post(&provider, &body(&json!([{ "role": "user", "content": "go" }])));
        let chunks = chunks(&answer);
        assert_eq!(joined(&chunks, "/choices/0/delta/reasoning_content"), "so, so");
        assert_eq!(joined(&chunks, "/choices/0/delta/content"), "grüße 🦀");
        let arguments: Vec<String> = (0..3)
            .map(|index| {
                let calls = chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0"));
                calls
                    .filter(|call| call["index"] == index)
                    .filter_map(|call| call["function"]["arguments"].as_str())
                    .collect()
            })
            .collect();
        assert_eq!(arguments, [r#"{"cmd":"one"}"#, r#"{"cmd":"two"}"#, r#"{"input":"*** Begin"}"#]);
        assert_eq!(joined(&chunks, "/choices/0/finish_reason"), "tool_calls");
        assert!(chunks.last().unwrap()["usage"]["total_tokens"].is_u64());
        assert_eq!(provider.assert_played()[0].end, Some(End::Complete));
    }
}

#[test]
fn a_wrong_request_is_refused_with_the_reason() {
    let provider = FakeProvider::start(Script::new().always(When::user("go"), [Step::text("ok")]));
    let mut wrong = body(&json!([{ "role": "developer", "content": "x" }, { "role": "user", "content": "go" }]));
    wrong["store"] = json!(false);
    let answer = post(&provider, &wrong);
    assert_eq!(answer.status, 400);
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("`developer`") && message.contains("`store`"), "{message}");
    let answer = post(&provider, &body(&json!([{ "role": "user", "content": "stop" }])));
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("no turn of the script expects this"), "{}", answer.text());
    assert_eq!(provider.complaints().len(), 3);
    assert_eq!(provider.requests().len(), 2);
}

#[test]
fn only_the_key_opens_it() {
    let provider = FakeProvider::start(Script::new().key("another"));
    assert_eq!(post(&provider, &body(&json!([{ "role": "user", "content": "go" }]))).status, 401);
    let models =
        |key: &str| http::request(provider.address(), "GET", "/v1/models", &[("authorization", key)], b"").unwrap();
    assert_eq!(models("Bearer k").status, 401);
    assert_eq!(models("Bearer another").json()["data"][0]["id"], "scripted");
}

#[test]
fn a_gate_holds_an_answer_until_it_is_released() {
    let provider = FakeProvider::start(
        Script::new().turn(When::any(), [Step::text("before"), Step::hold("gate"), Step::text("after")]),
    );
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| post(&provider, &body(&json!([{ "role": "user", "content": "go" }]))));
        provider.wait_held("gate", DEADLINE);
        assert_eq!(provider.requests()[0].end, None);
        provider.release("gate");
        assert_eq!(joined(&chunks(&answer.join().unwrap()), "/choices/0/delta/content"), "beforeafter");
    });
}

#[test]
fn failures_happen_as_scripted() {
    let provider = FakeProvider::start(
        Script::new()
            .turn(When::user("status"), [Step::status(429, &json!({ "error": "slow down" }))])
            .turn(When::user("reset"), [Step::text("partial"), Step::Reset])
            .turn(When::user("close"), [Step::text("partial"), Step::Close])
            .turn(When::user("silence"), [Step::text("partial"), Step::Silence]),
    );
    assert_eq!(post(&provider, &body(&json!([{ "role": "user", "content": "status" }]))).status, 429);
    for kind in ["reset", "close"] {
        let request = body(&json!([{ "role": "user", "content": kind }])).to_string();
        let mut stream = TcpStream::connect(provider.address()).unwrap();
        let head = "POST /v1/chat/completions HTTP/1.1\r\naccept: text/event-stream\r\nuser-agent: t\r\ncontent-type: application/json\r\n";
        write!(stream, "{head}content-length: {}\r\n\r\n{request}", request.len()).unwrap();
        let mut text = Vec::new();
        let ended = stream.read_to_end(&mut text);
        assert_eq!(ended.is_err(), kind == "reset", "{ended:?}");
        assert!(!String::from_utf8_lossy(&text).contains("[DONE]"));
    }
    // A client that goes away is noticed.
    let request = body(&json!([{ "role": "user", "content": "silence" }])).to_string();
    let mut stream = TcpStream::connect(provider.address()).unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\naccept: text/event-stream\r\nuser-agent: t\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n{request}", request.len()).unwrap();
    provider.wait_requests(4, DEADLINE);
    drop(stream);
    e2e::until::until("the end of the fourth answer", DEADLINE, || {
        provider.requests()[3].end.map(|end| assert_eq!(end, End::ClientGone))
    });
    provider.assert_played();
}
