//! What a conversation holds arrives at the provider, whole and unchanged, however long it is; and where Codex asks for
//! its history to be compacted, the summary takes its place.

use codex_control::rpc::EndpointState;
use codex_control::tables::Protocol;
use codex_translate::checker;
use e2e::home::{PROVIDER_KEY, SandboxHome, endpoint_of, workspace};
use e2e::http::{self, Answer};
use e2e::provider::{FakeProvider, Script, Step, When, message_text};
use serde_json::{Value, json};

use crate::standalone::Worker;

/// Results of tools in the long history.
const RESULTS: usize = 230;
/// Size of its body, at least.
const HISTORY_BYTES_MIN: usize = 1_000_000;
/// Size of the text of a long first turn.
const FIRST_TURN_BYTES: usize = 60_000;
/// A window into which all of it fits.
const WINDOW: &str = "[[endpoint.model]]\nid = \"scripted\"\ncontext_window = 2000000\n";

/// The body of a request that was recorded from Codex.
fn recorded(name: &str) -> Value {
    let path = workspace().join("tests/fixtures/codex-requests").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut body = serde_json::from_str::<Value>(&text).expect("a fixture is JSON")["body"].take();
    body["model"] = json!("scripted");
    body
}

/// The items of a recorded request, to be added to.
fn items(body: &mut Value) -> &mut Vec<Value> {
    body["input"].as_array_mut().expect("`input` is a list")
}

/// A text of about `bytes` with everything that is ever written wrongly: quotes, backslashes, control characters, line
/// ends of all kinds, several scripts, characters beyond the basic plane.
fn awkward(seed: usize, bytes: usize) -> String {
    let line = format!(
        "{seed}: \"quoted\" \\back\\slash\\u0041 tab\there\r\nbell\u{7} grüße 你好 🦀 e\u{301} \u{200d}<tag> {{\"a\":[1,2.50]}}\n"
    );
    line.repeat(bytes.div_ceil(line.len()))
}

/// A conversation of [`RESULTS`] results as Codex records it: texts, shell calls one at a time and two at once, patches,
/// tools of a namespace. Returns the body and what must stand in the messages, in the shape of Chat Completions.
fn long_history() -> (Value, Vec<Said>) {
    const RESULT_BYTES: usize = 4_300;
    let mut body = recorded("12_mcp_tools_and_outputs.json");
    let is_message = |item: &Value| item["type"] == "message";
    items(&mut body).retain(is_message);
    let mut said: Vec<Said> = Vec::new();
    let mut n_results = 0;
    let mut turn = 0;
    while n_results < RESULTS {
        turn += 1;
        if turn % 3 == 1 {
            let text = awkward(turn, 200);
            items(&mut body).push(message("assistant", "output_text", &text));
            said.push(Said::Text("assistant", text));
        }
        let n_calls = if turn % 4 == 0 { 2.min(RESULTS - n_results) } else { 1 };
        let mut outputs = Vec::new();
        for call in 0..n_calls {
            let id = format!("call_{turn:04}_{call}");
            let output = awkward(turn * 10 + call, RESULT_BYTES);
            let (kind, name, arguments) = match turn % 5 {
                0 => {
                    let patch =
                        format!("*** Begin Patch\n*** Add File: {turn}.txt\n+{}\n*** End Patch\n", awkward(turn, 90));
                    items(&mut body).push(json!({
                        "type": "custom_tool_call", "status": "completed", "call_id": id, "name": "apply_patch", "input": patch,
                    }));
                    ("custom_tool_call_output", "apply_patch", json!({ "input": patch }))
                }
                1 => {
                    let arguments = json!({ "text": awkward(turn, 90) });
                    items(&mut body).push(json!({
                        "type": "function_call", "call_id": id, "name": "echo_it", "namespace": "mcp__lab",
                        "arguments": arguments.to_string(),
                    }));
                    ("function_call_output", "mcp__lab/echo_it", arguments)
                }
                _ => {
                    let arguments = json!({ "cmd": awkward(turn, 90), "yield_time_ms": 1_000, "tty": false });
                    items(&mut body).push(json!({
                        "type": "function_call", "call_id": id, "name": "exec_command", "arguments": arguments.to_string(),
                    }));
                    ("function_call_output", "exec_command", arguments)
                }
            };
            said.push(Said::Call { id: id.clone(), name: name.to_owned(), arguments });
            let content = if turn % 5 == 1 {
                json!([{ "type": "input_text", "text": "Wall time: 0.1 seconds\nOutput:" }, { "type": "input_text", "text": output }])
            } else {
                json!(output)
            };
            outputs.push((json!({ "type": kind, "call_id": id, "output": content }), Said::result(&id, &content)));
            n_results += 1;
        }
        for (item, result) in outputs {
            items(&mut body).push(item);
            said.push(result);
        }
        if turn % 20 == 0 {
            let text = awkward(turn, 300);
            items(&mut body).push(message("user", "input_text", &text));
            said.push(Said::Text("user", text));
        }
    }
    items(&mut body).push(message("user", "input_text", "And now?"));
    said.push(Said::Text("user", "And now?".to_owned()));
    (body, said)
}

fn message(role: &str, kind: &str, text: &str) -> Value {
    json!({ "type": "message", "role": role, "content": [{ "type": kind, "text": text }] })
}

/// One thing that a conversation holds, whatever the protocol.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Text(&'static str, String),
    Call { id: String, name: String, arguments: Value },
    Result { id: String, text: String },
}

impl Said {
    fn result(id: &str, content: &Value) -> Self {
        let text = message_text(&json!({ "content": content }));
        Self::Result { id: id.to_owned(), text }
    }
}

/// What the messages of a request say, in order, from the first that is in `expected` on.
fn heard(messages: &[Value], first: &Said) -> Vec<Said> {
    let mut heard = Vec::new();
    for message in messages {
        let role = message["role"].as_str().unwrap_or_default();
        if role == "tool" {
            heard.push(Said::result(message["tool_call_id"].as_str().unwrap_or_default(), &message["content"]));
            continue;
        }
        let role = if role == "assistant" { "assistant" } else { "user" };
        let mut texts: Vec<String> = match &message["content"] {
            Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).map(str::to_owned).collect(),
            text => text.as_str().map(str::to_owned).into_iter().collect(),
        };
        heard.extend(texts.drain(..).map(|text| Said::Text(role, text)));
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
            heard.push(Said::Call {
                id: call["id"].as_str().unwrap_or_default().to_owned(),
                name: call["function"]["name"].as_str().unwrap_or_default().to_owned(),
                arguments: serde_json::from_str(arguments).expect("arguments are JSON"),
            });
        }
    }
    let start = heard.iter().position(|said| said == first).expect("the first of it is there");
    heard.split_off(start)
}

/// The tool by the name that Codex knows: upstream a namespace is part of the name.
fn known_name(name: &str) -> String {
    if name.contains("echo_it") { "mcp__lab/echo_it".to_owned() } else { name.to_owned() }
}

fn home_at(provider: &FakeProvider) -> SandboxHome {
    SandboxHome::with_provider_and(provider, WINDOW, "")
}

fn post(home: &SandboxHome, body: &Value) -> Answer {
    post_to(home, "scripted", body)
}

/// Posts a request and checks that it was answered with a sound stream; a native one is somebody else's.
fn post_to(home: &SandboxHome, endpoint: &str, body: &Value) -> Answer {
    let answer = home.post_responses(endpoint, body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    if home.endpoint(endpoint).protocol != Some(Protocol::Responses) {
        checker::check(&answer.body).unwrap_or_else(|fault| panic!("{fault}\n{}", answer.text()));
    }
    answer
}

fn a_long_history_arrives_unharmed(script: Script) {
    let protocol = script.protocol;
    let provider = FakeProvider::start(script.turn(When::user("And now?"), [Step::text("All of it is here.")]));
    // Without a supervisor: without optimisation, on a machine with much else to do, a megabyte takes a worker longer than
    // a supervisor waits for a sign of life.
    let home = SandboxHome::new();
    let workers = Worker::start_all(&home, provider.address(), "long", "");
    let worker = workers.iter().find(|worker| worker.protocol == protocol).expect("there is one for each protocol");
    let (body, said) = long_history();
    let n_bytes = body.to_string().len();
    assert!(n_bytes >= HISTORY_BYTES_MIN, "{n_bytes} bytes");
    let answer = worker.ask(&body.to_string()).unwrap_or_else(|problem| panic!("{problem}"));
    assert!(answer.text().contains("All of it is here."), "{}", answer.text());
    let requests = provider.assert_played();
    let received = &requests[0];
    if protocol == Protocol::Responses {
        // Byte for byte, but for what is private.
        let mut carried = body;
        carried.as_object_mut().expect("a body is an object").remove("client_metadata");
        assert!(received.body == carried, "the body was changed");
    }
    let mut arrived = heard(received.messages(), &said[0]);
    for said in &mut arrived {
        if let Said::Call { name, .. } = said {
            *name = known_name(name);
        }
    }
    for (index, (arrived, said)) in arrived.iter().zip(&said).enumerate() {
        assert_eq!(arrived, said, "piece {index}");
    }
    assert_eq!(arrived.len(), said.len());
    assert_eq!(said.iter().filter(|said| matches!(said, Said::Result { .. })).count(), RESULTS);
}

#[test]
fn a_long_history_arrives_unharmed_by_chat_completions() {
    a_long_history_arrives_unharmed(Script::new());
}

#[test]
fn a_long_history_arrives_unharmed_by_anthropic_messages() {
    a_long_history_arrives_unharmed(Script::anthropic());
}

#[test]
fn a_long_history_arrives_unharmed_at_a_native_provider() {
    a_long_history_arrives_unharmed(Script::responses());
}

#[test]
fn a_long_first_turn_arrives_unharmed() {
    for script in [Script::new(), Script::anthropic(), Script::responses()] {
        let protocol = script.protocol;
        let provider =
            FakeProvider::start(script.key(PROVIDER_KEY).always(When::any(), [Step::text("All of it is here.")]));
        let home = home_at(&provider);
        let mut body = recorded("02_first_turn_catalog_freeform.json");
        let texts: Vec<String> = items(&mut body)
            .iter()
            .flat_map(|item| item["content"].as_array().cloned().unwrap_or_default())
            .filter_map(|part| part["text"].as_str().map(str::to_owned))
            .collect();
        let long = awkward(1, FIRST_TURN_BYTES);
        items(&mut body).push(message("user", "input_text", &long));
        assert!(post(&home, &body).text().contains("All of it is here."));
        let received = &provider.assert_played()[0];
        let content = &received.last()["content"];
        let last = content.as_array().and_then(|parts| parts.last()).map_or(content, |part| &part["text"]);
        assert!(last.as_str() == Some(&long), "{protocol:?}: {last}");
        let all: Vec<String> = received.messages().iter().map(message_text).collect();
        for text in texts {
            assert!(all.iter().any(|message| message.contains(&text)), "{protocol:?}: {text} is missing");
        }
        let mut expected: Vec<String> = Vec::new();
        for tool in body["tools"].as_array().expect("there are tools") {
            let Some(name) = tool["name"].as_str() else { continue };
            match tool["tools"].as_array() {
                Some(inner) => expected.extend(
                    inner.iter().filter_map(|tool| tool["name"].as_str()).map(|inner| format!("{name}__{inner}")),
                ),
                None => expected.push(name.to_owned()),
            }
        }
        let mut offered: Vec<String> = received.tool_names().into_iter().map(|name| name.replace('/', "__")).collect();
        expected.sort_unstable();
        offered.sort_unstable();
        assert_eq!(offered, expected, "{protocol:?}");
    }
}

/// The one `compaction` item of an answer.
fn compaction_of(answer: &Answer) -> Value {
    let text = answer.text();
    let done: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter_map(|data| serde_json::from_str::<Value>(data).ok())
        .filter(|event| event["type"] == "response.output_item.done")
        .map(|mut event| event["item"].take())
        .collect();
    assert_eq!(done.len(), 1, "Codex accepts exactly one item: {text}");
    assert_eq!(done[0]["type"], "compaction", "{text}");
    done[0].clone()
}

/// Codex asks for its history to be compacted, and goes on with what came back: there, and at a native provider, which
/// cannot read our state and is told in words.
fn a_history_is_compacted(script: Script) {
    let summary = "They said hi; `big` was echoed.";
    let provider = FakeProvider::start(
        script
            .key(PROVIDER_KEY)
            .turn(When::user("handoff summary"), [Step::text(summary)])
            .turn(When::user("Go on.").and(summary), [Step::text("Going on.")]),
    );
    let native = FakeProvider::start(
        Script::responses().key(PROVIDER_KEY).turn(When::user("Go on.").and(summary), [Step::text("Here, too.")]),
    );
    let home = SandboxHome::new();
    home.write_settings(&format!("{}\n{}", endpoint_of("scripted", &provider), endpoint_of("native", &native)));
    for id in ["scripted", "native"] {
        home.store_key(id, PROVIDER_KEY);
    }
    home.start();
    for id in ["scripted", "native"] {
        home.wait_state(id, EndpointState::Running);
    }
    let compaction = compaction_of(&post_to(&home, "scripted", &recorded("22_compaction_v2_request.json")));
    let mut body = recorded("23_compaction_v2_next_turn.json");
    let items = items(&mut body);
    *items.iter_mut().find(|item| item["type"] == "compaction").expect("it has one") = compaction;
    items.push(message("user", "input_text", "Go on."));
    assert!(post_to(&home, "scripted", &body).text().contains("Going on."));
    assert!(post_to(&home, "native", &body).text().contains("Here, too."));
    provider.assert_played();
    let received = &native.assert_played()[0];
    assert!(!received.body.to_string().contains("encrypted_content\":\"cxp"), "state of ours is for nobody else");
}

#[test]
fn a_history_is_compacted_by_chat_completions() {
    a_history_is_compacted(Script::new());
}

#[test]
fn a_history_is_compacted_by_anthropic_messages() {
    a_history_is_compacted(Script::anthropic());
}

/// A native provider compacts by itself: the trigger and what comes back are relayed as they are.
#[test]
fn a_history_is_compacted_by_a_native_provider() {
    let event = |kind: &str, more: Value| {
        let mut event = json!({ "type": kind });
        event.as_object_mut().expect("it is an object").extend(more.as_object().cloned().unwrap_or_default());
        format!("event: {kind}\ndata: {event}\n\n")
    };
    let item = json!({ "type": "compaction", "id": "cmp_1", "encrypted_content": "gAAA-its-own" });
    let answer = [
        event("response.created", json!({ "sequence_number": 0, "response": { "id": "r" } })),
        event("response.output_item.done", json!({ "sequence_number": 1, "output_index": 0, "item": item })),
        event("response.completed", json!({ "sequence_number": 2, "response": { "id": "r", "output": [item] } })),
    ];
    let provider = FakeProvider::start(
        Script::responses().key(PROVIDER_KEY).turn(When::user("Say hi."), [Step::Raw(answer.concat()), Step::Close]),
    );
    let home = home_at(&provider);
    // Which answer fits is decided by the user's turn, so that has to be the last.
    let mut trigger = recorded("22_compaction_v2_request.json");
    items(&mut trigger).retain(|item| !item["type"].as_str().is_some_and(|kind| kind.starts_with("function_call")));
    assert_eq!(compaction_of(&post(&home, &trigger)), item);
    let received = &provider.assert_played()[0];
    let items = received.body["input"].as_array().expect("`input` is a list");
    assert_eq!(items.last().expect("there are items")["type"], "compaction_trigger");
}

/// A client that is not Codex sends only what is new, and the provider gets the whole conversation.
fn an_answer_is_continued(script: Script) {
    let provider = FakeProvider::start(
        script
            .key(PROVIDER_KEY)
            .turn(When::user("Look."), [Step::text("I look."), Step::call("exec_command", json!({ "cmd": "cat a" }))])
            .turn(When::tool("what is in a").and("Look.").and("I look."), [Step::text("It says so.")])
            .turn(When::user("And b?").and("Look.").and("what is in a").and("It says so."), [Step::text("No b.")]),
    );
    let home = home_at(&provider);
    let tools = json!([{ "type": "function", "name": "exec_command", "description": "runs", "strict": false, "parameters": { "type": "object", "properties": { "cmd": { "type": "string" } } } }]);
    let ask = |input: &Value, previous: Option<&Value>, is_stream: bool| {
        let mut body = json!({ "model": "scripted", "input": input, "tools": tools, "stream": is_stream });
        if let Some(previous) = previous {
            body["previous_response_id"] = previous.clone();
        }
        home.post_responses("scripted", body.to_string().as_bytes())
    };
    let first = ask(&json!("Look."), None, false).json();
    let call = first["output"].as_array().and_then(|items| items.last()).expect("it calls a tool").clone();
    let output = json!([{ "type": "function_call_output", "call_id": call["call_id"], "output": "what is in a" }]);
    let second = ask(&output, Some(&first["id"]), false).json();
    let third = ask(&json!("And b?"), Some(&second["id"]), true);
    checker::check(&third.body).unwrap_or_else(|fault| panic!("{fault}\n{}", third.text()));
    assert!(third.text().contains("No b."), "{}", third.text());
    let requests = provider.assert_played();
    assert_eq!(requests[1].tool_results(), [(r#"exec_command {"cmd":"cat a"}"#.to_owned(), "what is in a".to_owned())]);

    // What is not known is refused in a way a client can act on.
    let refused = ask(&json!("And c?"), Some(&json!("resp_of_yesterday")), true);
    assert_eq!(refused.status, 400);
    let error = &refused.json()["error"];
    assert_eq!(
        (&error["code"], &error["param"], &error["type"]),
        (&json!("previous_response_not_found"), &json!("previous_response_id"), &json!("invalid_request_error"))
    );
    assert!(error["message"].as_str().is_some_and(|message| message.contains("'resp_of_yesterday' not found")));
    assert_eq!(provider.requests().len(), 3, "no provider was asked");
}

#[test]
fn an_answer_is_continued_by_chat_completions() {
    an_answer_is_continued(Script::new());
}

#[test]
fn an_answer_is_continued_by_anthropic_messages() {
    an_answer_is_continued(Script::anthropic());
}

/// A native provider keeps its answers itself.
#[test]
fn an_answer_of_a_native_provider_is_continued_there() {
    let provider =
        FakeProvider::start(Script::responses().key(PROVIDER_KEY).turn(When::user("And now?"), [Step::text("Now.")]));
    let home = home_at(&provider);
    let body = json!({
        "model": "scripted", "input": [message("user", "input_text", "And now?")], "stream": true, "previous_response_id": "resp_its_own",
    });
    assert!(post(&home, &body).text().contains("Now."));
    assert_eq!(provider.assert_played()[0].body, body);
}

#[test]
fn only_the_headers_that_were_chosen_are_passed_on() {
    let provider = FakeProvider::start(Script::new().key(PROVIDER_KEY).always(When::any(), [Step::text("Hello.")]));
    let lines = "headers = { x-own = \"ours\" }\nforward_headers = [\"X-Trace\", \"x-own\"]\n";
    let home = SandboxHome::with_provider_and(&provider, lines, "");
    let bearer = format!("Bearer {}", home.token("scripted"));
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("x-trace", "7"),
        ("x-own", "theirs"),
        ("x-other", "1"),
        ("x-codex-turn-metadata", "{}"),
    ];
    let body = json!({ "model": "scripted", "input": "Hi.", "stream": true }).to_string();
    let answer = http::request(home.address("scripted"), "POST", "/v1/responses", &headers, body.as_bytes());
    assert_eq!(answer.expect("the worker answers").status, 200);
    let received = &provider.assert_played()[0];
    let of = |name: &str| received.header(name);
    assert_eq!([of("x-trace"), of("x-own"), of("x-other")], [Some("7"), Some("ours"), None]);
}
