//! What the wire protocols demand beyond the work itself: thoughts that come back unchanged, threads that go on at
//! another provider, and failures in each protocol's own words.

use std::time::Duration;

use codex_control::rpc::EndpointState;
use codex_control::tables::Protocol;
use e2e::codex::Run;
use e2e::home::{PROVIDER_KEY, SandboxHome, endpoint_of};
use e2e::http::{self, Answer};
use e2e::provider::{Call, FakeProvider, Script, Step, When, outline};
use serde_json::{Value, json};

/// The lines for an endpoint by which reasoning is asked for and given back.
fn thinking_lines(protocol: Protocol) -> String {
    match protocol {
        Protocol::ChatCompletions => "quirks = [\"replay-reasoning-content\"]\n".to_owned(),
        Protocol::AnthropicMessages => claude_lines("thinking-budget"),
        Protocol::Responses => String::new(),
    }
}

/// A model of Anthropic's that is asked to think in one of its two ways.
fn claude_lines(quirk: &str) -> String {
    format!(
        "quirks = [\"{quirk}\"]\n[[endpoint.model]]\nid = \"scripted\"\nreasoning_levels = [\"low\", \"high\"]\ndefault_reasoning_level = \"high\"\n"
    )
}

/// A script whose provider refuses thoughts that are missing or changed.
fn strict(script: Script) -> Script {
    script.key(PROVIDER_KEY).replaying_reasoning()
}

/// Five turns with tools, in each of them other forms of thought.
fn five_tool_turns(script: Script, lines: &str) {
    let provider = FakeProvider::start(
        strict(script)
            .turn(
                When::user("Work."),
                [Step::reasoning("First, \"look\" – grüße 🦀\n\tat it."), Step::shell("echo step-$((0+1))")],
            )
            .turn(
                When::tool("step-1"),
                [Step::reasoning("Then say so."), Step::text("I go on."), Step::shell("echo step-$((1+1))")],
            )
            .turn(
                When::tool("step-2"),
                [
                    Step::reasoning("Now two at once."),
                    Step::Calls(vec![Call::shell("echo left-$((1+2))"), Call::shell("echo step-$((1+2))")]),
                ],
            )
            .turn(
                When::tool("step-3").and("left-3"),
                [
                    Step::reasoning("A patch next."),
                    Step::Patch("*** Begin Patch\n*** Add File: p.txt\n+p\n*** End Patch\n".to_owned()),
                ],
            )
            .turn(When::tool("Success"), [Step::reasoning("And the last."), Step::shell("echo step-$((1+4))")])
            .turn(When::tool("step-5"), [Step::reasoning("Done."), Step::text("All five are done.")])
            .turn(When::user("More?").and("All five are done."), [Step::reasoning("No."), Step::text("No more.")]),
    );
    let home = SandboxHome::with_provider_and(&provider, lines, "");
    let run = home.exec(&["Work."]);
    run.assert_ended_well();
    assert_eq!(run.answer(), "All five are done.", "{}", outline(&provider.requests()));
    assert_eq!(home.read("work/p.txt"), "p\n");
    let requests = provider.requests();
    assert_eq!(requests.len(), 6, "{}", outline(&requests));
    let thoughts: Vec<&str> =
        requests[5].messages().iter().filter_map(|message| message["reasoning_content"].as_str()).collect();
    assert_eq!(
        thoughts,
        ["First, \"look\" – grüße 🦀\n\tat it.", "Then say so.", "Now two at once.", "A patch next.", "And the last."]
    );
    let run = home.exec(&["resume", "--last", "More?"]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "No more.");
}

#[test]
fn five_tool_turns_keep_their_signatures() {
    five_tool_turns(Script::anthropic(), &claude_lines("thinking-budget"));
}

#[test]
fn five_tool_turns_keep_their_signatures_where_thinking_is_adaptive() {
    five_tool_turns(Script::anthropic(), &claude_lines("thinking-adaptive"));
}

#[test]
fn five_tool_turns_keep_their_reasoning_content() {
    five_tool_turns(Script::new(), &thinking_lines(Protocol::ChatCompletions));
}

#[test]
fn five_tool_turns_keep_their_encrypted_content() {
    five_tool_turns(Script::responses(), "");
}

/// Claude's own models think without a word of it shown: the signature alone must come back.
#[test]
fn a_thought_without_words_keeps_its_signature() {
    let provider = FakeProvider::start(
        strict(Script::anthropic())
            .turn(When::user("Work."), [Step::reasoning(""), Step::shell("echo step-$((0+1))")])
            .turn(When::tool("step-1"), [Step::text("Done.")]),
    );
    let home = SandboxHome::with_provider_and(&provider, &thinking_lines(Protocol::AnthropicMessages), "");
    let run = home.exec(&["Work."]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "Done.");
    let block = provider.requests()[1].body["messages"].as_array().and_then(|messages| {
        messages.iter().find(|message| message["role"] == "assistant").map(|message| message["content"][0].clone())
    });
    let block = block.expect("there is a message of the assistant's");
    assert_eq!((&block["type"], &block["thinking"]), (&json!("thinking"), &json!("")));
}

/// One thread: begun at the first provider, continued at the second, and brought back. Nothing of it is refused.
fn there_and_back(first: Script, second: Script) {
    let (a, b, runs) = travel(first, second);
    runs[2].assert_clean(&a);
    runs[1].assert_clean(&b);
    assert_eq!((a.requests().len(), b.requests().len()), (4, 2), "no request was refused or repeated");
}

/// The same, with what the providers were told and the three runs of Codex.
fn travel(first: Script, second: Script) -> (FakeProvider, FakeProvider, [Run; 3]) {
    let a = FakeProvider::start(
        strict(first)
            .turn(
                When::user("Remember 7319."),
                [Step::reasoning("A number."), Step::shell("echo kept-$((7300+19)) | tee -a a.txt")],
            )
            .turn(When::tool("kept-7319"), [Step::reasoning("It is kept."), Step::text("I will.")])
            .turn(
                When::user("Both numbers?").and("I will.").and("It was 7319.").and("seen-7319").and("kept-7319"),
                [Step::reasoning("Both, then."), Step::shell("echo both-$((1+1)) | tee -a a.txt")],
            )
            .turn(When::tool("both-2"), [Step::text("7319 and 7319.")]),
    );
    let b = FakeProvider::start(
        strict(second)
            .turn(
                When::user("Which number?").and("Remember 7319.").and("I will.").and("kept-7319"),
                [Step::reasoning("I look."), Step::shell("echo seen-$((7300+19)) | tee -a b.txt")],
            )
            .turn(When::tool("seen-7319"), [Step::reasoning("That one."), Step::text("It was 7319.")]),
    );
    let home = SandboxHome::new();
    let section = |id: &str, provider: &FakeProvider| {
        format!("{}{}", endpoint_of(id, provider), thinking_lines(provider.protocol()))
    };
    home.write_settings(&format!("{}\n{}", section("a", &a), section("b", &b)));
    for id in ["a", "b"] {
        home.store_key(id, PROVIDER_KEY);
    }
    home.start();
    for id in ["a", "b"] {
        home.wait_state(id, EndpointState::Running);
    }
    let say = |endpoint: &str, arguments: &[&str]| {
        let run = home.exec_at(endpoint, arguments);
        let told = |provider: &FakeProvider| format!("{:?}\n{}", provider.complaints(), outline(&provider.requests()));
        assert!(run.code == 0, "at {endpoint}: {}\na: {}\nb: {}", run.shown(), told(&a), told(&b));
        run
    };
    let runs: [Run; 3] = [
        say("a", &["Remember 7319."]),
        say("b", &["resume", "--last", "Which number?"]),
        say("a", &["resume", "--last", "Both numbers?"]),
    ];
    let answers: Vec<&str> = runs.iter().map(Run::answer).collect();
    assert_eq!(answers, ["I will.", "It was 7319.", "7319 and 7319."]);
    assert_eq!(
        (home.read("work/a.txt").as_str(), home.read("work/b.txt").as_str()),
        ("kept-7319\nboth-2\n", "seen-7319\n")
    );
    let threads: Vec<&Value> = runs
        .iter()
        .filter_map(|run| run.events.iter().find(|event| event["type"] == "thread.started"))
        .map(|event| &event["thread_id"])
        .collect();
    assert!(threads.len() == 3 && threads.iter().all(|id| *id == threads[0]), "it is one session: {threads:?}");
    (a, b, runs)
}

#[test]
fn a_thread_goes_from_chat_to_anthropic_and_back() {
    there_and_back(Script::new(), Script::anthropic());
}

#[test]
fn a_thread_goes_from_anthropic_to_chat_and_back() {
    there_and_back(Script::anthropic(), Script::new());
}

/// What one provider has signed is nothing to another, even where protocol and name of the model are the same.
#[test]
fn a_thread_goes_to_another_anthropic_provider_and_back() {
    there_and_back(Script::anthropic(), Script::anthropic());
}

#[test]
fn a_thread_goes_from_chat_to_native_and_back() {
    there_and_back(Script::new(), Script::responses());
}

#[test]
fn a_thread_goes_from_native_to_anthropic_and_back() {
    there_and_back(Script::responses(), Script::anthropic());
}

/// What a native provider has encrypted does not say whose it is: the other one refuses it, once, and Codex sees nothing.
#[test]
fn a_thread_goes_to_another_native_provider_and_back() {
    let (a, b, runs) = travel(Script::responses(), Script::responses());
    for run in &runs {
        run.assert_ended_well();
    }
    for (provider, n_requests) in [(&a, 5), (&b, 3)] {
        let complaints = provider.complaints();
        let requests = provider.requests();
        assert_eq!(requests.len(), n_requests, "one refused request each: {complaints:?}\n{}", outline(&requests));
        assert!(
            complaints.iter().all(|complaint| complaint.contains("could not be verified")),
            "nothing else is refused: {complaints:?}"
        );
    }
}

/// Each failure comes before an answer has begun, in the words of the protocol.
fn failures_are_not_seen(script: Script, error_event: &str) {
    let status = |code: u16, kind: &str| {
        Step::Status(e2e::provider::Status {
            code,
            headers: [("retry-after".to_owned(), "1".to_owned())].into(),
            body: json!({ "type": "error", "error": { "type": kind, "code": kind, "message": "not now" } }).to_string(),
        })
    };
    let overloaded = if script.protocol == Protocol::AnthropicMessages { 529 } else { 503 };
    let provider = FakeProvider::start(
        script
            .key(PROVIDER_KEY)
            .turn(When::user("Count."), [status(429, "rate_limit_error")])
            .turn(When::user("Count."), [status(overloaded, "overloaded_error")])
            .turn(When::user("Count."), [status(500, "api_error")])
            .turn(When::user("Count."), [Step::shell("echo ran >> ran.txt; echo counted-$((1+1))")])
            .turn(When::tool("counted-2"), [Step::Reset])
            .turn(When::tool("counted-2"), [Step::Raw(error_event.to_owned()), Step::Close])
            .turn(When::tool("counted-2"), [Step::Close])
            .turn(When::tool("counted-2"), [Step::text("It ran once.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Count."]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "It ran once.");
    assert_eq!(home.read("work/ran.txt"), "ran\n");
    assert_eq!(provider.requests().len(), 8, "{}", outline(&provider.requests()));
}

#[test]
fn failures_of_anthropic_before_the_answer_are_not_seen() {
    failures_are_not_seen(
        Script::anthropic(),
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n",
    );
}

#[test]
fn failures_of_a_native_provider_before_the_answer_are_not_seen() {
    failures_are_not_seen(
        Script::responses(),
        "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"id\":\"r\",\"error\":{\"code\":\"server_error\",\"message\":\"hiccup\"}}}\n\n",
    );
}

/// Posts to a provider as a client does that knows its protocol.
fn post(provider: &FakeProvider, path: &str, more: &[(&str, &str)], body: &Value) -> Answer {
    let mut headers =
        vec![("content-type", "application/json"), ("accept", "text/event-stream"), ("user-agent", "test")];
    headers.extend(more);
    http::request(provider.address(), "POST", path, &headers, body.to_string().as_bytes())
        .expect("the provider answers")
}

fn events(answer: &Answer) -> Vec<Value> {
    let text = answer.text();
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).expect("an event is JSON"))
        .collect()
}

#[test]
fn the_scripted_anthropic_refuses_what_anthropic_refuses() {
    const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");
    let provider = FakeProvider::start(
        Script::anthropic()
            .turn(When::user("go"), [Step::reasoning("so, so"), Step::call("ls", json!({ "p": "." }))])
            .turn(When::tool("x"), [Step::text("done")]),
    );
    let body = |messages: &Value| {
        json!({
            "model": "scripted", "max_tokens": 9_000, "stream": true, "messages": messages,
            "tools": [{ "name": "ls", "input_schema": { "type": "object", "properties": { "p": { "type": "string" } } } }],
        })
    };
    let question = json!({ "role": "user", "content": [{ "type": "text", "text": "go" }] });
    let first = events(&post(&provider, "/v1/messages", &[VERSION], &body(&json!([question]))));
    let joined = |pointer: &str| first.iter().filter_map(|event| event.pointer(pointer)?.as_str()).collect::<String>();
    assert_eq!(
        (joined("/delta/thinking"), joined("/delta/partial_json")),
        ("so, so".to_owned(), r#"{"p":"."}"#.to_owned())
    );
    assert_eq!(joined("/delta/stop_reason"), "tool_use");
    let thought = json!({ "type": "thinking", "thinking": "so, so", "signature": joined("/delta/signature") });
    let call = json!({ "type": "tool_use", "id": joined("/content_block/id"), "name": "ls", "input": { "p": "." } });
    let result =
        json!({ "role": "user", "content": [{ "type": "tool_result", "tool_use_id": call["id"], "content": "x" }] });
    let history = |blocks: Value| body(&json!([question, { "role": "assistant", "content": blocks }, result]));
    let with = |member: &str, value: Value| {
        let mut thought = thought.clone();
        thought[member] = value;
        history(json!([thought, call]))
    };
    let mut unknown_model = history(json!([thought, call]));
    unknown_model["model"] = json!("other");
    let rows = [
        (history(json!([call])), "Expected `thinking`"),
        (with("signature", json!("c2lnbmVk")), "Invalid `signature`"),
        (with("thinking", json!("so")), "Invalid `signature`"),
        (history(json!([{ "type": "redacted_thinking", "data": "AAAA" }, thought, call])), "Invalid `data`"),
        (body(&json!([question, { "role": "assistant", "content": [thought, call] }])), "without `tool_result`"),
        (unknown_model, "there is no model"),
    ];
    for (body, complaint) in &rows {
        let answer = post(&provider, "/v1/messages", &[VERSION], body);
        assert_eq!(answer.status, 400, "{complaint}");
        assert!(answer.text().contains(complaint), "{complaint}: {}", answer.text());
    }
    assert_eq!(post(&provider, "/v1/messages", &[], &rows[0].0).status, 400);
    assert_eq!(post(&provider, "/v1/chat/completions", &[VERSION], &rows[0].0).status, 404);
    let last = post(&provider, "/v1/messages", &[VERSION], &history(json!([thought, call])));
    assert_eq!(last.status, 200, "{}", last.text());
    assert!(provider.unused_turns().is_empty());
}

#[test]
fn the_scripted_native_provider_keeps_what_is_private_out() {
    let provider = FakeProvider::start(
        Script::responses()
            .turn(When::user("go"), [Step::reasoning("so, so"), Step::text("grüße"), Step::Patch("p".to_owned())]),
    );
    let mut body = json!({
        "model": "scripted", "stream": true, "input": [{ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "go" }] }],
        "tools": [{ "type": "custom", "name": "apply_patch" }],
    });
    body["client_metadata"] = json!({});
    assert!(post(&provider, "/v1/responses", &[], &body).text().contains("`client_metadata`"));
    body.as_object_mut().unwrap().remove("client_metadata");
    let mut foreign = body.clone();
    foreign["input"]
        .as_array_mut()
        .unwrap()
        .insert(0, json!({ "type": "reasoning", "summary": [], "encrypted_content": "x" }));
    assert!(post(&provider, "/v1/responses", &[], &foreign).text().contains("could not be verified"));
    let events = events(&post(&provider, "/v1/responses", &[], &body));
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["sequence_number"].as_u64()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let output = &events.last().unwrap()["response"]["output"];
    let items: Vec<&Value> = events
        .iter()
        .filter(|event| event["type"] == "response.output_item.done")
        .map(|event| &event["item"])
        .collect();
    assert_eq!(output.as_array().unwrap().iter().collect::<Vec<_>>(), items);
    let kinds: Vec<&str> = items.iter().filter_map(|item| item["type"].as_str()).collect();
    assert_eq!(kinds, ["reasoning", "message", "custom_tool_call"]);
    assert_eq!(items[2]["input"], "p");
    provider.wait_requests(3, Duration::from_secs(10));
}
