//! A provider fails in every way before its answer begins, and Codex notices nothing; each tool runs once.

use std::io::{BufRead as _, BufReader, Read as _};

use codex_control::rpc::EndpointState;
use e2e::home::{DEADLINE, PROVIDER_KEY, SandboxHome};
use e2e::http;
use e2e::provider::{FakeProvider, Script, Step, When, message_text, outline};
use e2e::until::until;
use serde_json::{Value, json};

fn script() -> Script {
    Script::new().key(PROVIDER_KEY)
}

fn error(message: &str, more: Value) -> Value {
    let mut error = json!({ "message": message, "type": "server_error" });
    if let (Value::Object(error), Value::Object(more)) = (&mut error, more) {
        error.extend(more);
    }
    json!({ "error": error })
}

/// The last failed attempt comes before the tool call and before the final answer: nothing may run or be said twice.
#[test]
fn failures_before_the_answer_are_not_seen() {
    let limited = Step::Status(e2e::provider::Status {
        code: 429,
        headers: [("retry-after".to_owned(), "2".to_owned())].into(),
        body: error("slow down", json!({ "code": "rate_limit_exceeded" })).to_string(),
    });
    let server = || [Step::status(500, &error("the backend is on fire", json!({})))];
    let provider = FakeProvider::start(
        script()
            .turn(When::user("Count."), [limited])
            .turn(When::user("Count."), server())
            .turn(When::user("Count."), server())
            .turn(When::user("Count."), server())
            .turn(When::user("Count."), [Step::shell("echo ran >> ran.txt; echo counted-$((1+1))")])
            .turn(When::tool("counted-2"), [Step::Reset])
            .turn(
                When::tool("counted-2"),
                [Step::Raw(format!("data: {}\n\n", error("upstream hiccup", json!({ "code": 502 })))), Step::Close],
            )
            .turn(When::tool("counted-2"), [Step::text("It ran once.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Count."]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "It ran once.");
    assert_eq!(home.read("work/ran.txt"), "ran\n");
    assert_eq!(provider.requests().len(), 8, "{}", outline(&provider.requests()));
    // The supervisor hears of it with the next heartbeat.
    until("six retries are counted", DEADLINE, || {
        (home.endpoint("scripted").counters.retries_total == 6).then_some(())
    });
}

/// The provider is silent for twenty seconds, in the first turn before a tool call.
fn a_long_wait_does_not_end_the_turn(script: Script) {
    let provider = FakeProvider::start(
        script
            .key(PROVIDER_KEY)
            .turn(
                When::user("Think long."),
                [Step::PauseMs(20_000), Step::shell("echo ran >> ran.txt; echo half-$((1+1))")],
            )
            .turn(When::tool("half-2"), [Step::text("Thought through.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Think long."]);
    run.assert_clean(&provider);
    assert_eq!(run.answer(), "Thought through.");
    assert_eq!(home.read("work/ran.txt"), "ran\n");
    assert_eq!(provider.requests().len(), 2, "{}", outline(&provider.requests()));
}

#[test]
fn a_long_wait_at_chat_completions_does_not_end_the_turn() {
    a_long_wait_does_not_end_the_turn(Script::new());
}

#[test]
fn a_long_wait_at_anthropic_does_not_end_the_turn() {
    a_long_wait_does_not_end_the_turn(Script::anthropic());
}

#[test]
fn a_long_wait_at_a_native_provider_does_not_end_the_turn() {
    a_long_wait_does_not_end_the_turn(Script::responses());
}

/// The provider refuses `parameter` with `refusal`, once; after that it is never sent again.
fn a_refused_parameter_is_left_out_and_remembered(script: Script, refusal: &Value, parameter: &str) {
    let provider = FakeProvider::start(
        script
            .key(PROVIDER_KEY)
            .turn(When::user("First."), [Step::status(400, refusal)])
            .turn(When::user("First."), [Step::shell("echo ran >> ran.txt; echo one-$((1+1))")])
            .turn(When::tool("one-2"), [Step::text("One.")])
            .turn(When::user("Second."), [Step::text("Two.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let first = home.exec(&["First."]);
    let second = home.exec(&["Second."]);
    first.assert_clean(&provider);
    second.assert_clean(&provider);
    assert_eq!((first.answer(), second.answer()), ("One.", "Two."));
    assert_eq!(home.read("work/ran.txt"), "ran\n");
    let member = format!("\"{parameter}\":");
    let has_it: Vec<bool> =
        provider.requests().iter().map(|request| request.body.to_string().contains(&member)).collect();
    assert_eq!(has_it, [true, false, false, false], "what helped once is done at once the next time");
    home.wait_state("scripted", EndpointState::Running);
}

#[test]
fn a_parameter_refused_by_chat_completions_is_left_out_and_remembered() {
    let refusal = error(
        "Unrecognized request argument supplied: stream_options",
        json!({ "param": "stream_options", "type": "invalid_request_error" }),
    );
    a_refused_parameter_is_left_out_and_remembered(Script::new(), &refusal, "stream_options");
}

#[test]
fn a_parameter_refused_by_anthropic_is_left_out_and_remembered() {
    let message = "system.0.cache_control: Extra inputs are not permitted";
    let refusal = json!({ "type": "error", "error": { "type": "invalid_request_error", "message": message } });
    a_refused_parameter_is_left_out_and_remembered(Script::anthropic(), &refusal, "cache_control");
}

#[test]
fn a_parameter_refused_by_a_native_provider_is_left_out_and_remembered() {
    let refusal = error(
        "Unsupported parameter: 'parallel_tool_calls' is not supported with this model.",
        json!({ "param": "parallel_tool_calls", "type": "invalid_request_error", "code": "unsupported_parameter" }),
    );
    a_refused_parameter_is_left_out_and_remembered(Script::responses(), &refusal, "parallel_tool_calls");
}

/// A native provider that sends signs of life without an end: the attempt is given up before it fills the memory.
#[test]
fn a_native_stream_that_never_begins_is_given_up() {
    let sign_of_life = || Step::Raw(format!(": {}\n\n", "x".repeat(1 << 20)));
    let provider = FakeProvider::start(
        Script::responses()
            .key(PROVIDER_KEY)
            .turn(When::user("Go."), std::iter::repeat_with(sign_of_life).take(10).collect::<Vec<_>>())
            .turn(When::user("Go."), [Step::text("Gone.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let input = json!([{ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "Go." }] }]);
    let body = json!({ "model": "scripted", "stream": true, "input": input }).to_string();
    let answer = home.post_responses("scripted", body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("Gone.") && answer.text().len() < 1 << 20, "the attempt before is forgotten");
    assert_eq!(provider.requests().len(), 2, "{}", outline(&provider.requests()));
}

/// A provider whose first answer is `sign_of_life` again and again, as gateways do it that have lost a request: the
/// attempt is given up, and Codex sees nothing of it.
fn signs_of_life_alone_are_not_waited_for(script: Script, sign_of_life: &str) {
    let steps = [Step::Raw(sign_of_life.to_owned()), Step::PauseMs(200)];
    // Far longer than a test may take.
    let steps: Vec<Step> = steps.iter().cycle().take(2_000).cloned().collect();
    let provider = FakeProvider::start(
        script.key(PROVIDER_KEY).turn(When::user("Go."), steps).turn(When::user("Go."), [Step::text("Gone.")]),
    );
    // Far longer than the pauses: on a busy machine a sign of life may come late, but never that late.
    let home = SandboxHome::with_provider_and(&provider, "", "[worker]\nidle_timeout_s = 4\n");
    let input = json!([{ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "Go." }] }]);
    let body = json!({ "model": "scripted", "stream": true, "input": input }).to_string();
    let answer = home.post_responses("scripted", body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("Gone."), "{}", answer.text());
    assert_eq!(provider.requests().len(), 2, "{}", outline(&provider.requests()));
    assert!(home.logs().contains("no more than that it is alive for 8 s"), "{}", home.logs());
}

#[test]
fn comments_alone_are_not_waited_for() {
    signs_of_life_alone_are_not_waited_for(Script::new(), ": OPENROUTER PROCESSING\n\n");
}

#[test]
fn pings_alone_are_not_waited_for() {
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    signs_of_life_alone_are_not_waited_for(Script::anthropic(), ping);
}

#[test]
fn comments_alone_of_a_native_provider_are_not_waited_for() {
    signs_of_life_alone_are_not_waited_for(Script::responses(), ": alive\n\n");
}

/// The provider refuses the first of `change` with `refusal`, once: the request comes back with the second instead, and
/// the next request has that at once.
fn a_refused_value_is_changed_and_remembered(script: Script, quirks: &str, refusal: &(u16, Value), change: [&str; 2]) {
    let provider = FakeProvider::start(
        script
            .key(PROVIDER_KEY)
            .turn(When::user("First."), [Step::status(refusal.0, &refusal.1)])
            .turn(When::user("First."), [Step::text("One.")])
            .turn(When::user("Second."), [Step::text("Two.")]),
    );
    let model = "[[endpoint.model]]\nid = \"scripted\"\ninput = [\"text\", \"image\"]\nreasoning_levels = [\"low\", \"medium\", \"high\", \"xhigh\"]\n";
    let home = SandboxHome::with_provider_and(&provider, &format!("{quirks}\n{model}"), "");
    for (said, expected) in [("First.", "One."), ("Second.", "Two.")] {
        let content = json!([
            { "type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=" },
            { "type": "input_text", "text": said }
        ]);
        let input = json!([{ "type": "message", "role": "user", "content": content }]);
        let body = json!({ "model": "scripted", "stream": true, "reasoning": { "effort": "xhigh" }, "input": input });
        let answer = home.post_responses("scripted", body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().contains(expected), "{}", answer.text());
    }
    let sent: Vec<[bool; 2]> = provider
        .requests()
        .iter()
        .map(|request| change.map(|words| request.body.to_string().contains(words)))
        .collect();
    assert_eq!(sent, [[true, false], [false, true], [false, true]], "what helped once is done at once the next time");
}

const IMAGE_NOTE: &str = "this model does not take images";

#[test]
fn images_that_chat_completions_refuses_become_notes() {
    let refusal = (404, error("No endpoints found that support image input", json!({ "code": 404 })));
    a_refused_value_is_changed_and_remembered(Script::new(), "", &refusal, ["image_url", IMAGE_NOTE]);
}

#[test]
fn images_that_anthropic_refuses_become_notes() {
    let refusal = (400, error("this model does not support image input", json!({ "type": "invalid_request_error" })));
    a_refused_value_is_changed_and_remembered(Script::anthropic(), "", &refusal, ["image/png", IMAGE_NOTE]);
}

#[test]
fn images_that_a_native_provider_refuses_become_notes() {
    let refusal = (500, error("m is not a multimodal model", json!({})));
    a_refused_value_is_changed_and_remembered(Script::responses(), "", &refusal, ["input_image", IMAGE_NOTE]);
}

#[test]
fn an_effort_that_anthropic_refuses_becomes_the_nearest() {
    let message = "output_config.effort: Input should be 'low', 'medium', 'high' or 'max'";
    let refusal = (400, error(message, json!({ "type": "invalid_request_error" })));
    let change = [r#""effort":"xhigh""#, r#""effort":"high""#];
    a_refused_value_is_changed_and_remembered(
        Script::anthropic(),
        "quirks = [\"thinking-adaptive\"]",
        &refusal,
        change,
    );
}

#[test]
fn an_effort_that_a_native_provider_refuses_becomes_the_nearest() {
    let message =
        "Unsupported value: 'xhigh' is not supported with this model. Supported values are: 'low', and 'high'.";
    let refusal = (400, error(message, json!({ "param": "reasoning.effort", "code": "unsupported_value" })));
    let change = [r#""effort":"xhigh""#, r#""effort":"high""#];
    a_refused_value_is_changed_and_remembered(Script::responses(), "", &refusal, change);
}

#[test]
fn an_answer_that_would_be_too_long_for_anthropic_is_asked_for_shorter() {
    let message = "max_tokens: 32000 > 8192, which is the maximum allowed number of output tokens for m";
    let refusal = (400, error(message, json!({ "type": "invalid_request_error" })));
    let change = [r#""max_tokens":32000"#, r#""max_tokens":8192"#];
    a_refused_value_is_changed_and_remembered(Script::anthropic(), "", &refusal, change);
}

#[test]
fn a_conversation_that_is_too_long_for_the_provider_is_shortened_once() {
    let refusal = error(
        "This model's maximum context length is 1000 tokens",
        json!({ "code": "context_length_exceeded", "type": "invalid_request_error" }),
    );
    let provider = FakeProvider::start(
        script()
            .turn(When::user("And now?"), [Step::status(400, &refusal)])
            .turn(When::user("And now?"), [Step::text("Shorter.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let mut input = vec![json!({ "type": "message", "role": "user", "content": "Read all files." })];
    for n in 0..20 {
        let id = format!("call_of_file_{n}");
        let arguments = json!({ "cmd": format!("cat {n}") }).to_string();
        input.push(json!({ "type": "function_call", "call_id": id, "name": "exec_command", "arguments": arguments }));
        input.push(json!({ "type": "function_call_output", "call_id": id, "output": "line of a file\n".repeat(700) }));
    }
    input.push(json!({ "type": "message", "role": "user", "content": "And now?" }));
    let tools = json!([{ "type": "function", "name": "exec_command", "description": "runs", "strict": false, "parameters": { "type": "object", "properties": { "cmd": { "type": "string" } } } }]);
    let body = json!({ "model": "scripted", "stream": true, "input": input, "tools": tools }).to_string();
    let answer = home.post_responses("scripted", body.as_bytes());
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("Shorter."), "{}", answer.text());
    let sizes: Vec<usize> = provider.requests().iter().map(|request| request.body.to_string().len()).collect();
    assert!(sizes[1] < sizes[0] * 4 / 5, "{sizes:?}");
    assert_eq!(message_text(provider.requests()[1].messages().last().unwrap()), "And now?");
}

/// After ten seconds the stream is opened and says what it waits for; the answer then comes in the same stream.
#[test]
fn a_long_wait_says_what_it_waits_for() {
    let limited = Step::Status(e2e::provider::Status {
        code: 429,
        headers: [("retry-after".to_owned(), "13".to_owned())].into(),
        body: error("slow down", json!({ "code": "rate_limit_exceeded" })).to_string(),
    });
    let provider = FakeProvider::start(
        script().turn(When::user("Wait."), [limited]).turn(When::user("Wait."), [Step::text("Waited.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let body = json!({ "model": "scripted", "stream": true, "input": "Wait." }).to_string();
    let answer = home.post_responses("scripted", body.as_bytes());
    assert_eq!(answer.status, 200);
    let text = answer.text();
    let said = text.find("Trying again in 13 s.").unwrap_or_else(|| panic!("it does not say that it waits: {text}"));
    assert!(text[said..].contains("Waited."), "the answer follows in the same stream: {text}");
    assert_eq!(text.matches("event: response.created").count(), 1, "{text}");
    assert_eq!(text.matches("event: response.completed").count(), 1, "{text}");
}

/// The provider's output limit cuts a text, and then a call: the text goes on in the same message, and the call is made
/// again, whole, once.
fn an_answer_at_the_output_limit_is_gone_on_with(script: Script, reason: &str) {
    let limit = || Step::Finish(reason.to_owned());
    let provider = FakeProvider::start(
        script
            .key(PROVIDER_KEY)
            .turn(When::user("Count."), [Step::text("I count: one, tw"), limit()])
            .turn(
                When::user("Write on from exactly where it stops").and("I count: one, tw"),
                [Step::text("o, three."), Step::shell("echo ran >> ran.txt; echo counted-$((1+1))")],
            )
            .turn(When::tool("counted-2").and("I count: one, two, three."), [Step::text("Done, alm"), limit()])
            .turn(When::user("Write on from exactly where it stops").and("Done, alm"), [Step::text("ost.")]),
    );
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Count."]);
    run.assert_clean(&provider);
    let said: Vec<&str> = run.items("agent_message").iter().filter_map(|item| item["text"].as_str()).collect();
    assert_eq!(said, ["I count: one, two, three.", "Done, almost."]);
    assert_eq!(home.read("work/ran.txt"), "ran\n");
}

#[test]
fn an_answer_at_the_output_limit_of_chat_completions_is_gone_on_with() {
    an_answer_at_the_output_limit_is_gone_on_with(Script::new(), "length");
}

#[test]
fn an_answer_at_the_output_limit_of_anthropic_is_gone_on_with() {
    an_answer_at_the_output_limit_is_gone_on_with(Script::anthropic(), "max_tokens");
}

/// Codex asks six times. Our five attempts are for the first of them; each of the others gets one.
#[test]
fn what_codex_repeats_is_not_tried_as_often_again() {
    let error = error("the backend is on fire", json!({}));
    let provider = FakeProvider::start(script().always(When::user("Hello."), [Step::status(500, &error)]));
    let home = SandboxHome::with_provider(&provider);
    let run = home.exec(&["Hello."]);
    assert_eq!(run.code, 1, "{}", run.shown());
    assert!(run.stdout.contains("the backend is on fire"), "{}", run.shown());
    assert_eq!(provider.requests().len(), 5 + 5, "{}", outline(&provider.requests()));
}

fn event(payload: &Value) -> Step {
    Step::Raw(format!("data: {payload}\n\n"))
}

/// An answer whose first visible event comes long after the time for its first byte, while bytes flow.
fn what_is_held_until_it_is_whole_has_time(pieces: Vec<Value>, body: &Value, expected: &str) {
    let mut steps = Vec::new();
    for piece in pieces {
        steps.extend([event(&piece), Step::PauseMs(1_000)]);
    }
    let provider = FakeProvider::start(script().turn(When::user("Go."), steps));
    // With half a second for the one item: the provider takes longer, even if its first piece comes at once.
    let limits = "[worker]\nconnect_timeout_s = 1\nfirst_byte_timeout_s = 4\n";
    let home = SandboxHome::with_provider_and(&provider, "", limits);
    let answer = home.post_responses("scripted", body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains(expected), "{}", answer.text());
    assert_eq!(provider.requests().len(), 1, "{}", outline(&provider.requests()));
}

fn fragment(text: &str) -> Value {
    let call = json!({ "index": 0, "id": "call_1", "function": { "name": "run", "arguments": text } });
    json!({ "choices": [{ "delta": { "tool_calls": [call] } }] })
}

#[test]
fn a_call_that_is_written_slowly_is_not_cut_off() {
    let mut pieces = vec![fragment("{\"x\":\"")];
    pieces.extend(["a", "b", "c", "d", "e"].map(fragment));
    pieces.extend([fragment("\"}"), json!({ "choices": [{ "delta": {}, "finish_reason": "tool_calls" }] })]);
    let body = json!({ "model": "scripted", "stream": true, "input": "Go." });
    what_is_held_until_it_is_whole_has_time(pieces, &body, r#"{\"x\":\"abcde\"}"#);
}

/// Codex hears nothing of a call before it is whole, and gives up after a while in which nothing comes.
#[test]
fn a_stream_is_kept_alive_while_a_call_is_written() {
    let mut steps = vec![Step::text("Wait for it."), event(&fragment("{\"x\":\""))];
    steps.extend((0..34).flat_map(|_| [event(&fragment("a")), Step::PauseMs(500)]));
    steps.extend([Step::hold("the rest"), event(&fragment("\"}"))]);
    let provider = FakeProvider::start(script().turn(When::user("Go."), steps));
    let home = SandboxHome::with_provider(&provider);
    let body = json!({ "model": "scripted", "stream": true, "input": "Go." }).to_string();
    let stream = home.send_responses("scripted", body.as_bytes());
    // Nothing comes for most of the usual time.
    stream.set_read_timeout(Some(2 * DEADLINE)).expect("it is not zero");
    let (mut stream, mut raw) = (BufReader::new(stream), Vec::new());
    while !raw.ends_with(b"event: keepalive\n") {
        let n_bytes = stream.read_until(b'\n', &mut raw).expect("the stream is kept alive");
        assert_ne!(n_bytes, 0, "{}", String::from_utf8_lossy(&raw));
    }
    provider.release("the rest");
    stream.read_to_end(&mut raw).expect("the stream goes on");
    let answer = http::parse(&raw).expect("the answer is whole").text();
    let [said, alive, called] = ["output_text.delta", "event: keepalive", "aaaa"].map(|words| answer.find(words));
    assert!(said.is_some() && said < alive && alive < called, "{answer}");
}

#[test]
fn thinking_that_is_not_shown_is_not_cut_off() {
    let mut pieces = vec![json!({ "choices": [{ "delta": { "reasoning_content": "so " } }] }); 6];
    pieces.push(json!({ "choices": [{ "delta": { "content": "Thought." }, "finish_reason": "stop" }] }));
    let body = json!({ "model": "scripted", "stream": true, "reasoning": { "summary": "none" }, "input": "Go." });
    what_is_held_until_it_is_whole_has_time(pieces, &body, "Thought.");
}

/// The whole answer comes at once, and the provider keeps its connection open: nothing is left to wait for.
#[test]
fn an_answer_that_came_at_once_is_ended_at_once() {
    let whole = [
        json!({ "choices": [{ "delta": { "content": "All of it." }, "finish_reason": "stop" }] }).to_string(),
        json!({ "choices": [], "usage": { "prompt_tokens": 11, "completion_tokens": 3 } }).to_string(),
        "[DONE]".to_owned(),
    ];
    let whole = whole.map(|payload| format!("data: {payload}\n\n")).concat();
    let mut script = script().always(When::user("Go."), [Step::Raw(whole), Step::Silence]);
    script.wire.write_bytes = Vec::new();
    let provider = FakeProvider::start(script);
    let home = SandboxHome::with_provider(&provider);
    for stream in [true, false] {
        let body = json!({ "model": "scripted", "stream": stream, "input": "Go." }).to_string();
        let answer = home.post_responses("scripted", body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.text();
        assert!(text.contains("All of it.") && text.contains(r#""input_tokens":11"#), "stream {stream}: {text}");
    }
}
