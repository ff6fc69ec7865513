//! What each event means, one row each. Whole answers stand as fixtures, in `crate::reply`.

use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::tools::ToolKind;

/// Short for what the rows are made of.
fn start(index: u64, block: &Value) -> Value {
    json!({"type": "content_block_start", "index": index, "content_block": block})
}

fn step(index: u64, delta: &Value) -> Value {
    json!({"type": "content_block_delta", "index": index, "delta": delta})
}

fn stop(index: u64) -> Value {
    json!({"type": "content_block_stop", "index": index})
}

fn text(index: u64, text: &str) -> Value {
    step(index, &json!({"type": "text_delta", "text": text}))
}

fn think(index: u64, text: &str) -> Value {
    step(index, &json!({"type": "thinking_delta", "thinking": text}))
}

fn sign(index: u64, signature: &str) -> Value {
    step(index, &json!({"type": "signature_delta", "signature": signature}))
}

fn input(index: u64, piece: &str) -> Value {
    step(index, &json!({"type": "input_json_delta", "partial_json": piece}))
}

fn tool(index: u64, id: &str) -> Value {
    start(index, &json!({"type": "tool_use", "id": id, "name": "run", "input": {}}))
}

fn thinking(index: u64) -> Value {
    start(index, &json!({"type": "thinking", "thinking": "", "signature": ""}))
}

fn ends(reason: &str) -> Value {
    json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 5}})
}

fn over() -> Value {
    json!({"type": "message_stop"})
}

fn begins() -> Value {
    json!({"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": [], "usage": {"input_tokens": 3, "output_tokens": 1}}})
}

fn table() -> ToolTable {
    let body =
        r#"{"model":"m","input":[],"tools":[{"type":"function","name":"run"},{"type":"custom","name":"apply_patch"}]}"#;
    ToolTable::from_request(&crate::Request::parse(body.as_bytes()).unwrap())
}

fn read(events: &[Value]) -> Vec<Delta> {
    let mut decoder = Decoder::new(table());
    let mut out = Vec::new();
    for event in events {
        decoder.frame(Frame { event: "", data: &event.to_string() }, &mut out).unwrap();
    }
    decoder.end(&mut out);
    out
}

/// One line a delta.
fn shown(deltas: &[Delta]) -> String {
    let mut lines = String::new();
    for delta in deltas {
        match delta {
            Delta::Started => Ok(()),
            Delta::Text(text) => writeln!(lines, "text {text:?}"),
            Delta::Reasoning(text) => writeln!(lines, "think {text:?}"),
            Delta::Opaque(Part::ThinkingBlocks(blocks)) => writeln!(lines, "state {blocks}"),
            Delta::Opaque(other) => writeln!(lines, "{other:?}"),
            Delta::Call(call) => {
                writeln!(lines, "call {} {} {}", call.upstream_id.as_deref().unwrap_or("-"), call.name, call.arguments)
            }
            Delta::WebSearch { query } => writeln!(lines, "search {query:?}"),
            Delta::Usage(usage) => writeln!(lines, "usage {}+{}", usage.input_tokens, usage.output_tokens),
            Delta::Stop(reason) => writeln!(lines, "{reason:?}"),
            Delta::Failed(failure) => writeln!(lines, "{:?}: {}", failure.class, failure.message),
        }
        .unwrap();
    }
    lines
}

#[track_caller]
fn check(events: &[Value], expected: &[&str]) {
    let found = shown(&read(events));
    assert_eq!(found.lines().collect::<Vec<_>>(), expected, "{events:#?}");
}

/// As [`check`], with a good end behind it.
#[track_caller]
fn check_in(events: &[Value], expected: &[&str]) {
    let all: Vec<Value> = events.iter().cloned().chain([ends("end_turn"), over()]).collect();
    let expected: Vec<&str> = expected.iter().copied().chain(["Done"]).collect();
    check(&all, &expected);
}

const SIGNED: &str = r#"state [{"type":"thinking","thinking":"ab","signature":"S"}]"#;

#[test]
fn an_answer_as_it_should_be() {
    check(
        &[
            begins(),
            json!({"type": "ping"}),
            thinking(0),
            think(0, "a"),
            think(0, "b"),
            sign(0, "S"),
            stop(0),
            start(1, &json!({"type": "text", "text": ""})),
            text(1, "Hi"),
            text(1, ""),
            text(1, "!"),
            stop(1),
            tool(2, "t1"),
            input(2, ""),
            input(2, "{\"x\":"),
            input(2, "1}"),
            stop(2),
            ends("tool_use"),
            over(),
        ],
        &[
            "think \"a\"",
            "think \"b\"",
            SIGNED,
            "text \"Hi\"",
            "text \"!\"",
            r#"call t1 run {"x":1}"#,
            "usage 3+5",
            "Done",
        ],
    );
}

#[test]
fn the_start_is_told_once_and_only_by_what_means_something() {
    let started = |events: &[Value]| read(events).iter().filter(|delta| **delta == Delta::Started).count();
    assert_eq!(started(&[begins(), text(0, "a"), text(0, "b")]), 1);
    assert_eq!(started(&[text(0, "a")]), 1);
    assert_eq!(started(&[json!({"type": "ping"}), json!({"type": "unheard_of"})]), 0);
}

#[test]
fn the_state_of_thinking() {
    let redacted = |data: &str| start(0, &json!({"type": "redacted_thinking", "data": data}));
    check_in(&[redacted("R+/="), stop(0)], &[r#"state [{"type":"redacted_thinking","data":"R+/="}]"#]);
    check_in(&[redacted("")], &[]);
    // Text or signature, or both, with the start.
    let begun = |block: Value| start(0, &block);
    check_in(
        &[begun(json!({"type": "thinking", "thinking": "a", "signature": ""})), think(0, "b"), sign(0, "S"), stop(0)],
        &["think \"a\"", "think \"b\"", SIGNED],
    );
    check_in(
        &[begun(json!({"type": "thinking", "thinking": "ab", "signature": "S"})), stop(0)],
        &["think \"ab\"", SIGNED],
    );
    check_in(
        &[begun(json!({"type": "thinking", "thinking": "ab", "signature": "S"})), sign(0, "S"), sign(0, ""), stop(0)],
        &["think \"ab\"", SIGNED],
    );
    // A signature without text is state too; text without one is kept for those who do not sign.
    check_in(&[thinking(0), sign(0, "S"), stop(0)], &[r#"state [{"type":"thinking","thinking":"","signature":"S"}]"#]);
    check_in(&[thinking(0), think(0, "a"), stop(0)], &["think \"a\"", r#"state [{"type":"thinking","thinking":"a"}]"#]);
    check_in(&[thinking(0), stop(0)], &[]);
    check_in(
        &[thinking(0), think(0, "\"\n"), sign(0, "é"), stop(0)],
        &[r#"think "\"\n""#, r#"state [{"type":"thinking","thinking":"\"\n","signature":"é"}]"#],
    );
}

#[test]
fn calls_wait_for_the_end_and_keep_their_place_before_thoughts_and_texts() {
    let call = |index, id| [tool(index, id), input(index, "{\"x\":1}"), stop(index)];
    let mut decoder = Decoder::new(table());
    let mut out = Vec::new();
    let quiet =
        [thinking(1), sign(1, "S"), stop(1), start(2, &json!({"type": "redacted_thinking", "data": "R"})), stop(2)];
    let parallel = [&[begins()][..], &call(0, "t1"), &quiet, &call(1, "t2"), &[ends("tool_use")]].concat();
    for event in &parallel {
        decoder.frame(Frame { event: "", data: &event.to_string() }, &mut out).unwrap();
    }
    assert_eq!(out, [Delta::Started]);

    let omitted = r#"state [{"type":"thinking","thinking":"","signature":"S"}]"#;
    check(
        &[&parallel[..], &[over()]].concat(),
        &[
            r#"call t1 run {"x":1}"#,
            omitted,
            r#"state [{"type":"redacted_thinking","data":"R"}]"#,
            r#"call t2 run {"x":1}"#,
            "usage 3+5",
            "Done",
        ],
    );
    // Of an answer that fails nothing comes out that was held.
    check(
        &parallel[..parallel.len() - 1],
        &["usage 3+1", "Truncated: the provider closed the stream in the middle of the answer"],
    );
    // What is shown at once must come after the call before it.
    check(
        &[&call(0, "t1")[..], &[thinking(1), sign(1, "S"), stop(1), thinking(2), think(2, "a")]].concat(),
        &[
            r#"call t1 run {"x":1}"#,
            omitted,
            "think \"a\"",
            "Truncated: the provider closed the stream in the middle of the answer",
        ],
    );
    check_in(
        &[&call(0, "t1")[..], &[start(1, &json!({"type": "text", "text": "so"})), stop(1)], &call(2, "t2")].concat(),
        &[r#"call t1 run {"x":1}"#, "text \"so\"", r#"call t2 run {"x":1}"#],
    );
    // Deltas find their call by number also after some were given out.
    check_in(
        &[
            tool(0, "t1"),
            stop(0),
            text(9, "x"),
            tool(1, "t2"),
            tool(2, "t3"),
            input(2, "{\"c\":3}"),
            input(1, "{\"b\":2}"),
            stop(2),
            stop(1),
        ],
        &["call t1 run {}", "text \"x\"", r#"call t2 run {"b":2}"#, r#"call t3 run {"c":3}"#],
    );
}

#[test]
fn the_input_of_a_tool_comes_in_many_ways() {
    let begun = |input: Value| start(0, &json!({"type": "tool_use", "id": "t", "name": "run", "input": input}));
    let rows: [(&[Value], &str); 12] = [
        (&[begun(json!({}))], "{}"),
        (&[begun(json!(null))], "{}"),
        (&[start(0, &json!({"type": "tool_use", "id": "t", "name": "run"})), input(0, "{\"a\":1}")], r#"{"a":1}"#),
        (&[begun(json!({"a": 1}))], r#"{"a":1}"#),
        (&[begun(json!("{\"a\":1}"))], r#"{"a":1}"#),
        (&[begun(json!({"a": 1})), input(0, "")], r#"{"a":1}"#),
        (&[begun(json!({"a": 1})), input(0, "{}")], r#"{"a":1}"#),
        (&[begun(json!({"a": 1})), input(0, "{\"a\":"), input(0, "1}")], r#"{"a":1}"#),
        (&[begun(json!({})), input(0, "{}"), input(0, "{\"a\":1}")], r#"{"a":1}"#),
        (&[begun(json!({})), step(0, &json!({"type": "input_json_delta", "partial_json": {"a": 1}}))], r#"{"a":1}"#),
        (&[begun(json!({})), step(0, &json!({"partial_json": "{\"a\":1}"}))], r#"{"a":1}"#),
        (&[begun(json!({})), input(7, "{\"a\":1}")], r#"{"a":1}"#),
    ];
    for (events, expected) in rows {
        for closed in [true, false] {
            let events: Vec<Value> = events.iter().cloned().chain(closed.then(|| stop(0))).collect();
            check_in(&events, &[&format!("call t run {expected}")]);
        }
    }
    let name = |name: &str| start(0, &json!({"type": "tool_use", "name": name, "input": {}}));
    check_in(&[name("functions.run:0"), stop(0)], &["call - run {}"]);
    check_in(&[name(""), stop(0), text(1, "x")], &["text \"x\""]);
    let patch = start(0, &json!({"type": "tool_use", "id": "t", "name": "apply_patch", "input": {}}));
    assert_eq!(table().resolve("apply_patch").unwrap().kind, ToolKind::Custom);
    check_in(&[patch, input(0, "\"bare text\""), stop(0)], &[r#"call t apply_patch {"input":"bare text"}"#]);
}

#[test]
fn a_call_that_was_cut_is_never_given_out() {
    let cut = [begins(), text(0, "so"), tool(1, "t1"), input(1, "{\"cmd\":\"rm -rf /tmp"), stop(1)];
    let with = |reason: &str| [&cut[..], &[ends(reason), over()]].concat();
    check(&with("max_tokens"), &["text \"so\"", "usage 3+5", "Length"]);
    for reason in ["tool_use", "end_turn", "pause_turn"] {
        let problem = "Truncated: a call of `run` was cut off in the middle of its arguments";
        check(&with(reason), &["text \"so\"", "usage 3+5", problem]);
    }
    check(&with("refusal"), &["text \"so\"", "usage 3+5", "ContentFilter"]);
    // What the provider stopped for its content is not run, whole or not.
    check(&[tool(0, "t1"), input(0, "{\"a\":1}"), stop(0), ends("refusal"), over()], &["ContentFilter"]);

    // At the output limit a block may be closed before its first piece; one that was followed by another was whole.
    check(&[tool(0, "t1"), stop(0), ends("max_tokens"), over()], &["Length"]);
    check(
        &[tool(0, "t1"), stop(0), tool(1, "t2"), input(1, "{\"a\":1}"), stop(1), ends("max_tokens"), over()],
        &["call t1 run {}", r#"call t2 run {"a":1}"#, "Length"],
    );
    check(
        &[tool(0, "t1"), input(0, "7"), stop(0), ends("tool_use"), over()],
        &["Malformed: a call of `run` came with arguments that are no JSON object"],
    );
    // A whole call before a broken one waits with it, since the answer is asked for again.
    check(
        &[tool(0, "t1"), stop(0), tool(1, "t2"), input(1, "{"), stop(1), ends("tool_use"), over()],
        &["Truncated: a call of `run` was cut off in the middle of its arguments"],
    );
    check(
        &[tool(0, "t1"), input(0, "{\"a\":1}"), stop(0)],
        &["Truncated: the provider closed the stream in the middle of the answer"],
    );
}

#[test]
fn blocks_need_not_be_opened_or_closed_or_counted_well() {
    check_in(
        &[text(0, "no start"), think(1, "ab"), sign(1, "S"), stop(1)],
        &["text \"no start\"", "think \"ab\"", SIGNED],
    );
    check_in(
        &[think(0, "a"), think(0, "b"), sign(0, "S"), text(1, "x")],
        &["think \"a\"", "think \"b\"", SIGNED, "text \"x\""],
    );
    check_in(
        &[thinking(0), think(0, "ab"), sign(0, "S"), tool(1, "t1"), input(1, "{\"a\":1}"), tool(2, "t2"), stop(2)],
        &["think \"ab\"", SIGNED, r#"call t1 run {"a":1}"#, "call t2 run {}"],
    );
    // A text in the block of a tool, and the same index for everything.
    check_in(
        &[tool(0, "t1"), text(0, "odd"), input(0, "{\"a\":1}"), stop(0)],
        &["text \"odd\"", r#"call t1 run {"a":1}"#],
    );
    check_in(
        &[
            tool(0, "t1"),
            input(0, "{\"a\":1}"),
            stop(0),
            tool(0, "t2"),
            input(0, "{\"b\":2}"),
            stop(0),
            stop(0),
            stop(5),
        ],
        &[r#"call t1 run {"a":1}"#, r#"call t2 run {"b":2}"#],
    );
    let bare = |event: Value| {
        let mut event = event;
        event.as_object_mut().unwrap().remove("index");
        event
    };
    check_in(
        &[
            tool(0, "t1"),
            input(0, "{\"a\":1}"),
            stop(0),
            thinking(0),
            think(0, "ab"),
            sign(0, "S"),
            stop(0),
            text(0, "x"),
        ]
        .map(bare),
        &[r#"call t1 run {"a":1}"#, "think \"ab\"", SIGNED, "text \"x\""],
    );
    // Two open at once.
    check_in(
        &[
            start(0, &json!({"type": "text", "text": ""})),
            tool(1, "t1"),
            text(0, "a"),
            input(1, "{\"a\":1}"),
            text(0, "b"),
            stop(1),
            stop(0),
        ],
        &["text \"a\"", "text \"b\"", r#"call t1 run {"a":1}"#],
    );
    check_in(&[input(0, "{\"a\":1}"), sign(0, "S"), stop(0)], &[]);
    // Input for a block that takes none is for the newest one that does.
    check_in(
        &[start(0, &json!({"type": "text", "text": "a"})), tool(1, "t1"), input(0, "{\"a\":1}"), stop(1)],
        &["text \"a\"", r#"call t1 run {"a":1}"#],
    );
}

#[test]
fn tools_of_the_server_are_not_calls() {
    let server =
        |name: &str| start(0, &json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": name, "input": {}}));
    let results = start(1, &json!({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}));
    check_in(
        &[
            server("web_search"),
            input(0, "{\"query\":"),
            input(0, "\"axum\"}"),
            stop(0),
            results,
            input(1, "{\"x\":1}"),
            stop(1),
        ],
        &["search \"axum\""],
    );
    let whole = start(0, &json!({"type": "server_tool_use", "name": "web_search", "input": {"query": "axum"}}));
    check_in(&[whole, stop(0)], &["search \"axum\""]);
    check_in(&[server("web_search"), input(0, "{\"query\":"), stop(0)], &[]);
    check_in(&[server("web_search"), input(0, "{\"query\":\" \"}"), stop(0)], &[]);
    check_in(&[server("code_execution"), input(0, "{\"code\":\"1\"}"), stop(0)], &[]);
    // An unknown block swallows what is meant for it, and nothing else.
    check_in(
        &[
            tool(0, "t1"),
            start(1, &json!({"type": "hologram"})),
            input(1, "{\"x\":1}"),
            input(0, "{\"a\":1}"),
            stop(1),
            stop(0),
        ],
        &[r#"call t1 run {"a":1}"#],
    );
    let citation = step(0, &json!({"type": "citations_delta", "citation": {"cited_text": "c", "text": "t"}}));
    check_in(
        &[text(0, "a"), citation, step(0, &json!({"type": "new_delta", "text": "t"})), step(0, &json!(7))],
        &["text \"a\""],
    );
}

#[test]
fn every_stop_reason() {
    for (reason, expected) in [
        ("end_turn", "Done"),
        ("tool_use", "Done"),
        ("stop_sequence", "Done"),
        ("something_new", "Done"),
        ("max_tokens", "Length"),
        ("model_context_window_exceeded", "Length"),
        ("length", "Length"),
        ("refusal", "ContentFilter"),
        ("sensitive", "ContentFilter"),
        ("pause_turn", "Paused"),
        ("network_error", "Network: the provider broke the answer off (`network_error`)"),
        ("abort", "Server: the provider broke the answer off (`abort`)"),
    ] {
        check(&[text(0, "a"), ends(reason), over()], &["text \"a\"", expected]);
    }
    let twice = |first: &str, second: Value| {
        let again = json!({"type": "message_delta", "delta": {"stop_reason": second}, "usage": {"input_tokens": 3}});
        [text(0, "a"), ends(first), again, over()]
    };
    check(&twice("max_tokens", Value::Null), &["text \"a\"", "usage 3+5", "Length"]);
    check(&twice("end_turn", json!("max_tokens")), &["text \"a\"", "usage 3+5", "Length"]);
    check(&twice("max_tokens", json!("end_turn")), &["text \"a\"", "usage 3+5", "Length"]);
    // Without a `message_stop` the reason is enough; without a reason the `message_stop`.
    check(&[text(0, "a"), ends("end_turn")], &["text \"a\"", "Done"]);
    check(&[text(0, "a"), over()], &["text \"a\"", "Done"]);
    check(&[text(0, "a")], &["text \"a\"", "Truncated: the provider closed the stream in the middle of the answer"]);
    check(&[], &["Truncated: the provider closed the stream without an answer"]);
    // Nothing counts after the end.
    check(
        &[text(0, "a"), over(), text(0, "b"), json!({"type": "error", "error": {}}), over()],
        &["text \"a\"", "Done"],
    );
}

#[test]
fn failures_in_the_stream() {
    let error = |kind: &str, message: &str| json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "r"});
    for (kind, message, class) in [
        ("overloaded_error", "Overloaded", "Overloaded"),
        ("api_error", "Internal server error", "Server"),
        ("timeout_error", "Timed out", "Server"),
        ("rate_limit_error", "Slow down", "RateLimit"),
        ("authentication_error", "invalid x-api-key", "Auth"),
        ("permission_error", "no", "Auth"),
        ("billing_error", "Pay", "Quota"),
        ("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", "ContextLength"),
        ("invalid_request_error", "Your credit balance is too low to access the API", "Quota"),
        ("invalid_request_error", "messages.3: no", "InvalidRequest"),
        ("not_found_error", "model: claude-9", "ModelNotFound"),
        ("request_too_large", "Request exceeds the maximum size", "ContextLength"),
    ] {
        check(
            &[begins(), tool(0, "t1"), stop(0), error(kind, message)],
            &["usage 3+1", &format!("{class}: {message}")],
        );
    }
    for event in [
        json!({"error": {"message": "boom"}}),
        json!({"type": "message_delta", "error": "boom"}),
        json!({"code": 500, "msg": "boom", "success": false}),
        json!({"detail": "boom"}),
        json!({"type": "server_error", "message": "boom"}),
    ] {
        let found = shown(&read(std::slice::from_ref(&event)));
        assert!(found.ends_with(": boom\n") && found.lines().count() == 1, "{event}: {found}");
    }
    check_in(
        &[json!({"type": "ping", "error": null}), json!({"type": "unheard_of", "message": {"a": 1}, "error": {}})],
        &[],
    );
}

#[test]
fn payloads_of_every_shape() {
    let read = |frames: &[(&str, &str)]| {
        let mut decoder = Decoder::new(table());
        let mut out = Vec::new();
        let mut unreadable = 0;
        for (event, data) in frames {
            unreadable += u32::from(decoder.frame(Frame { event, data }, &mut out).is_err());
        }
        decoder.end(&mut out);
        format!("{}{unreadable}", shown(&out))
    };
    let a = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}"#;
    let end = r#"{"type":"message_stop"}"#;
    assert_eq!(read(&[("", a), ("", end)]), "text \"a\"\nDone\n0");
    // The name stands in for a type that is missing; a type goes before the name.
    assert_eq!(
        read(&[("content_block_delta", r#"{"delta":{"text":"a"}}"#), ("message_stop", "{}")]),
        "text \"a\"\nDone\n0"
    );
    assert_eq!(read(&[("message_stop", a), ("", end)]), "text \"a\"\nDone\n0");
    // Events that ran together, with the end of another protocol.
    let reason = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
    assert_eq!(read(&[("x", &format!("{a}\n\n {reason}\n[DONE]\n{a}"))]), "text \"a\"\nDone\n0");
    assert_eq!(read(&[("", a), ("", reason), ("", " [DONE] ")]), "text \"a\"\nDone\n0");
    let cut = "Truncated: the provider closed the stream in the middle of the answer\n";
    assert_eq!(read(&[("", a), ("", "[DONE]")]), format!("text \"a\"\n{cut}0"));
    // What cannot be read is counted.
    assert_eq!(read(&[("", "{broken"), ("", a), ("", "what"), ("", ""), ("", end)]), "text \"a\"\nDone\n2");
    assert_eq!(
        read(&[("", r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"\ud83e"}}"#), ("", end)]),
        "text \"\u{fffd}\"\nDone\n0"
    );
    assert_eq!(read(&[("error", "upstream went away")]), "Server: upstream went away\n0");
}

#[test]
fn a_whole_message_instead_of_a_stream() {
    let message = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use",
        "content": [
            {"type": "thinking", "thinking": "ab", "signature": "S"},
            {"type": "text", "text": "so"},
            {"type": "tool_use", "id": "t1", "name": "run", "input": {"a": 1}},
            {"type": "redacted_thinking", "data": "R"},
            {"type": "tool_use", "id": "t2", "name": "run", "input": {}}
        ],
        "usage": {"input_tokens": 3, "output_tokens": 5}
    });
    check(
        &[message],
        &[
            "think \"ab\"",
            SIGNED,
            "text \"so\"",
            r#"call t1 run {"a":1}"#,
            r#"state [{"type":"redacted_thinking","data":"R"}]"#,
            "call t2 run {}",
            "usage 3+5",
            "Done",
        ],
    );
    check(
        &[json!({"type": "message", "content": "plain", "stop_reason": "max_tokens"})],
        &["text \"plain\"", "Length"],
    );
}

#[test]
fn what_is_held_is_bounded() {
    let megabyte = "x".repeat(1 << 20);
    let named = |id: &str, name: &str| start(0, &json!({"type": "tool_use", "id": id, "name": name, "input": {}}));
    let searching = start(0, &json!({"type": "server_tool_use", "name": "web_search", "input": {"query": megabyte}}));
    let signed = start(0, &json!({"type": "thinking", "thinking": "", "signature": megabyte}));
    for (first, more) in [
        (vec![tool(0, "t"), input(0, "{")], input(0, &megabyte)),
        (vec![thinking(0)], think(0, &megabyte)),
        (vec![], named(&megabyte, "n")),
        (vec![], named("t", &megabyte)),
        (vec![], signed),
        (vec![], searching),
        (vec![], start(0, &json!({"type": "redacted_thinking", "data": megabyte}))),
    ] {
        let events: Vec<Value> = first.into_iter().chain(std::iter::repeat_n(more, 17)).collect();
        let Some(Delta::Failed(failure)) = read(&events).pop() else { panic!() };
        assert_eq!(failure.class, FailureClass::Malformed);
    }
    let Some(Delta::Failed(failure)) = read(&vec![tool(0, "t"); BLOCKS_MAX + 1]).pop() else { panic!() };
    assert!(failure.message.contains("more than 1000 blocks"), "{}", failure.message);
    assert_eq!(read(&vec![text(0, "a"); BLOCKS_MAX + 1]).len(), BLOCKS_MAX + 3);
}

/// Everything that is allocated. A new field has to be thought about here.
fn allocated_bytes(decoder: &Decoder) -> usize {
    let Decoder {
        tools: _,
        open,
        held,
        n_given: _,
        n_blocks: _,
        held_bytes: _,
        counts: _,
        ending: _,
        has_started: _,
        is_over: _,
    } = decoder;
    let of_input =
        |Input { start, pieces }: &Input| start.as_ref().map_or(0, String::capacity) + pieces.allocated_bytes();
    let of_open = |open: &Open| match &open.block {
        Block::Thinking { text, signature } => text.capacity() + signature.capacity(),
        Block::Search(input) => of_input(input),
        Block::Text | Block::Call(_) | Block::Ignored => 0,
    };
    let of_held = |held: &Held| match held {
        Held::State(part) => part.bytes(),
        Held::Call(HeldCall { id, name, input, arguments, is_followed: _ }) => {
            let arguments = arguments.as_ref().and_then(|arguments| arguments.as_ref().ok());
            [id.as_ref(), Some(name), arguments].into_iter().flatten().map(String::capacity).sum::<usize>()
                + of_input(input)
        }
    };
    open.capacity() * size_of::<Open>()
        + open.iter().map(of_open).sum::<usize>()
        + held.capacity() * size_of::<Held>()
        + held.iter().map(of_held).sum::<usize>()
}

fn any_large_event() -> impl Strategy<Value = Value> {
    let words = || prop_oneof![Just(String::from("{\"a\":1}")), (0usize..20_000).prop_map(|length| "x".repeat(length))];
    let index = || 0u64..3;
    prop_oneof![
        any_event(),
        (index(), words()).prop_map(|(index, words)| think(index, &words)),
        (index(), words()).prop_map(|(index, words)| sign(index, &words)),
        (index(), words()).prop_map(|(index, words)| input(index, &words)),
        (index(), words(), words()).prop_map(|(index, thinking, signature)| {
            start(index, &json!({"type": "thinking", "thinking": thinking, "signature": signature}))
        }),
        (index(), words(), words(), words()).prop_map(|(index, id, name, input)| {
            start(index, &json!({"type": "tool_use", "id": id, "name": name, "input": {"a": input}}))
        }),
        (index(), words()).prop_map(|(index, input)| {
            start(index, &json!({"type": "server_tool_use", "name": "web_search", "input": {"query": input}}))
        }),
        (index(), words()).prop_map(|(index, data)| start(index, &json!({"type": "redacted_thinking", "data": data}))),
    ]
}

fn any_event() -> impl Strategy<Value = Value> {
    let index = || 0u64..3;
    let words = || prop::sample::select(vec!["", "a", "{", "{\"a\":1}", "}", "\"x\"", "{}"]);
    prop_oneof![
        Just(begins()),
        (index(), words()).prop_map(|(index, words)| text(index, words)),
        (index(), words()).prop_map(|(index, words)| think(index, words)),
        (index(), words()).prop_map(|(index, words)| sign(index, words)),
        (index(), words()).prop_map(|(index, words)| input(index, words)),
        index().prop_map(thinking),
        (index(), words()).prop_map(|(index, id)| tool(index, id)),
        (index(), words()).prop_map(|(index, data)| start(index, &json!({"type": "redacted_thinking", "data": data}))),
        (index(), words()).prop_map(|(index, name)| start(index, &json!({"type": "server_tool_use", "name": name}))),
        index().prop_map(stop),
        prop::sample::select(vec!["end_turn", "tool_use", "max_tokens", "refusal"]).prop_map(ends),
    ]
}

proptest! {
    #[test]
    fn what_is_allocated_is_counted(events in prop::collection::vec(any_large_event(), 0..40)) {
        /// Empty blocks.
        const UNCOUNTED_BYTES_MAX: usize = 64 << 10;
        let mut decoder = Decoder::new(ToolTable::default());
        for event in events {
            let data = event.to_string();
            decoder.frame(Frame { event: "", data: &data }, &mut Vec::new()).unwrap();
            let (allocated, counted) = (allocated_bytes(&decoder), decoder.held_bytes);
            // The arguments of a call are kept beside its input, and state as the JSON that it will be.
            prop_assert!(allocated <= 3 * counted + UNCOUNTED_BYTES_MAX, "{allocated} for {counted} after {data}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_events_give_whole_calls_and_one_end(events in prop::collection::vec(any_event(), 0..20), is_over: bool) {
        let all: Vec<Value> = events.iter().cloned().chain(is_over.then(over)).collect();
        let deltas = read(&all);
        let ends = deltas.iter().filter(|delta| matches!(delta, Delta::Stop(_) | Delta::Failed(_))).count();
        prop_assert_eq!(ends, 1);
        prop_assert!(matches!(deltas.last(), Some(Delta::Stop(_) | Delta::Failed(_))));
        for delta in &deltas {
            match delta {
                Delta::Call(call) => {
                    let arguments = serde_json::from_str::<serde_json::Map<String, Value>>(&call.arguments);
                    prop_assert!(arguments.is_ok() && !call.name.is_empty(), "{call:?}");
                }
                Delta::Text(text) | Delta::Reasoning(text) => prop_assert!(!text.is_empty()),
                _ => {}
            }
        }
        // Each call at most once, and no more than were begun.
        let calls = deltas.iter().filter(|delta| matches!(delta, Delta::Call(_))).count();
        prop_assert!(calls <= events.iter().filter(|event| event["content_block"]["type"] == "tool_use").count());
    }
}
