//! Streams without an end: whatever it is that never stops coming, what is kept of it has a bound, and the answer ends.

use super::*;
use crate::chat::decode::HELD_BYTES_MAX;
use crate::responses::emitter::ANSWER_BYTES_MAX;

/// The most that may arrive until an answer is given up that is kept whole: what the decoder may hold, what the emitter
/// may keep, and the frame in which it is noticed.
const ARRIVED_BYTES_MAX: usize = HELD_BYTES_MAX + ANSWER_BYTES_MAX + FRAME_BYTES_MAX;

/// What comes at this place of a stream.
type Next<'n> = Box<dyn Fn(usize) -> Value + 'n>;

/// Feeds what `next` gives for 0, 1, 2, … until the answer is settled, then ends it; gives the failure.
fn endless(what: &str, mut reply: Reply, mut next: impl FnMut(usize) -> Value) -> Failure {
    let mut out = Vec::new();
    let mut n_bytes = 0;
    let mut number = 0;
    while !reply.rest.is_settled() {
        assert!(n_bytes <= ARRIVED_BYTES_MAX, "{what}: {n_bytes} bytes came and the answer goes on");
        let frame = format!("data: {}\n\n", next(number));
        n_bytes += frame.len();
        number += 1;
        out.clear();
        reply.feed(frame.as_bytes(), &mut out);
        assert!(reply.rest.emitter.held_bytes() <= ANSWER_BYTES_MAX + FRAME_BYTES_MAX, "{what}");
    }
    match reply.end(EndCause::Eof, &mut out).outcome {
        Outcome::Failed(failure) => failure,
        outcome => panic!("{what}: {outcome:?}"),
    }
}

/// Long texts that begin alike but for their number.
fn long(number: usize) -> String {
    format!("{number}{}", "x".repeat(200_000))
}

#[test]
fn a_chat_answer_without_an_end_is_given_up() {
    let delta = |delta: Value| json!({"choices": [{ "delta": delta }]});
    let call = |id: &str, name: &str, arguments: &str| {
        delta(json!({"tool_calls": [{"id": id, "function": {"name": name, "arguments": arguments}}]}))
    };
    let markup = |name: &str, input: &str| {
        format!("<tool_call>{name}<arg_key>input</arg_key><arg_value>{input}</arg_value></tool_call>")
    };
    let rows: [(&str, Next<'_>); 8] = [
        ("ids", Box::new(|n| call(&long(n), "look", "{}"))),
        ("names", Box::new(|n| call(&n.to_string(), &long(n), "{}"))),
        ("calls", Box::new(|n| call(&n.to_string(), "look", "{}"))),
        ("arguments", Box::new(|n| call("a", "look", &long(n)))),
        (
            "extra fields",
            Box::new(|n| {
                let function = json!({"name": "look", "arguments": "{}"});
                delta(
                    json!({"tool_calls": [{"id": n.to_string(), "extra_content": {"a": long(n)}, "function": function}]}),
                )
            }),
        ),
        ("details", Box::new(|n| delta(json!({"reasoning_details": [{"type": n, "data": long(n)}]})))),
        ("small details", Box::new(|n| delta(json!({"reasoning_details": [{"type": n}]})))),
        (
            "hidden thoughts between texts",
            Box::new(|n| match n % 2 {
                0 => delta(json!({"reasoning": long(n)})),
                _ => delta(json!({"content": "a"})),
            }),
        ),
    ];
    for (what, next) in rows {
        let tools = ToolTable::from_names(&["look"]);
        let mut config = config(tools.clone());
        config.show_reasoning = !what.starts_with("hidden");
        let reply = Reply::new(Box::new(Decoder::new(tools)), Framing::Sse, config);
        let failure = endless(what, reply, next);
        assert_eq!(failure.class, FailureClass::Malformed, "{what}");
    }

    // Calls in the text are found when the answer is over, so it has to end by itself; what is kept of them is bounded.
    let mut reply = reply(ToolTable::from_names(&["look"]));
    let mut out = Vec::new();
    for number in 0..90 {
        let frame = delta(json!({"content": markup("look", &long(number))}));
        reply.feed(format!("data: {frame}\n\n").as_bytes(), &mut out);
        assert!(reply.rest.textcalls.held_bytes() <= HELD_BYTES_MAX + FRAME_BYTES_MAX);
    }
    reply.feed(stream(&[], "stop").as_bytes(), &mut out);
    assert!(reply.pending_failure().is_some_and(|failure| failure.class == FailureClass::Malformed), "{out:?}");
}

#[test]
fn items_count_with_all_that_is_written_of_them() {
    let mut config = config(ToolTable::from_names(&["look"]));
    config.keep_output = true;
    let mut emitter = Emitter::new(config);
    let mut out = Vec::new();
    for _ in 0..10 {
        emitter.reasoning("a", &mut out);
        emitter.opaque(Part::ReasoningContent("state".into()));
        assert!(emitter.held_bytes() > emitter.kept_output().len());
        emitter.text("b", &mut out);
        emitter.web_search("query", &mut out);
        let call = ToolCall {
            upstream_id: Some("x".repeat(500)),
            name: "look".into(),
            arguments: "{}".into(),
            extra_content: None,
        };
        emitter.calls(&[call], &mut out);
        assert_eq!(emitter.held_bytes(), emitter.kept_output().len());
    }
    assert!(emitter.held_bytes() > 10 * 500);
}

#[test]
fn an_anthropic_answer_without_an_end_is_given_up() {
    let start = |block: Value| json!({"type": "content_block_start", "index": 0, "content_block": block});
    let step = |step: Value| json!({"type": "content_block_delta", "index": 0, "delta": step});
    let rows: [(&str, Next<'_>); 5] = [
        ("ids", Box::new(|n| start(json!({"type": "tool_use", "id": long(n), "name": "look"})))),
        ("names", Box::new(|n| start(json!({"type": "tool_use", "id": "a", "name": long(n)})))),
        ("signatures", Box::new(|n| start(json!({"type": "thinking", "thinking": "", "signature": long(n)})))),
        (
            "searches",
            Box::new(|n| match n % 2 {
                0 => start(json!({"type": "server_tool_use", "name": "web_search", "input": {"query": long(n)}})),
                _ => json!({"type": "content_block_stop", "index": 0}),
            }),
        ),
        (
            "thoughts",
            Box::new(|n| match n {
                0 => start(json!({"type": "thinking", "thinking": ""})),
                _ => step(json!({"type": "thinking_delta", "thinking": long(n)})),
            }),
        ),
    ];
    for (what, next) in rows {
        let failure = endless(what, ANTHROPIC.reply(ToolTable::from_names(&["look"])), next);
        assert_eq!(failure.class, FailureClass::Malformed, "{what}");
    }
}

#[test]
fn arguments_that_are_repeated_in_each_chunk_may_be_long() {
    const STEP_BYTES: usize = 2_000;
    let arguments = json!({"input": "let x = {\"a\": [1]};\n".repeat(9_000)}).to_string();
    assert!(arguments.len() > 200_000);
    let ends = (STEP_BYTES..arguments.len()).step_by(STEP_BYTES).chain([arguments.len()]);
    let chunk = |end: usize| {
        let function = json!({"name": "look", "arguments": arguments[..end]});
        format!(
            "data: {}\n\n",
            json!({"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "call_abcdef", "function": function}]}}]})
        )
    };
    let chunks: Vec<String> = ends.map(chunk).chain([stream(&[], "tool_calls")]).collect();
    let (out, summary) =
        run(reply(ToolTable::from_names(&["look"])), chunks.iter().map(String::as_bytes), EndCause::Eof);
    assert_eq!(summary.outcome, Outcome::Completed);
    let transcript = checked(&out);
    let calls = transcript.calls();
    assert_eq!((calls.len(), calls[0]["arguments"].as_str()), (1, Some(arguments.as_str())));

    let pieces = |end: usize| {
        let step = json!({"type": "input_json_delta", "partial_json": arguments[..end]});
        json!({"type": "content_block_delta", "index": 0, "delta": step})
    };
    let begin = json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "toolu_a", "name": "look", "input": {}}});
    let end = json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}});
    let ends = (STEP_BYTES..arguments.len()).step_by(STEP_BYTES).chain([arguments.len()]);
    let chunks: Vec<String> =
        std::iter::once(begin).chain(ends.map(pieces)).chain([end]).map(|event| format!("data: {event}\n\n")).collect();
    let (out, _) =
        run(ANTHROPIC.reply(ToolTable::from_names(&["look"])), chunks.iter().map(String::as_bytes), EndCause::Eof);
    assert_eq!(checked(&out).calls()[0]["arguments"].as_str(), Some(arguments.as_str()));
}
