//! Answers that reach the provider's output limit and are gone on with.

use super::*;

fn limited(continuations_max: u32) -> Reply {
    let tools = ToolTable::from_names(&["look"]);
    let decoder = (CHAT.decoder)(tools.clone());
    Reply::new(decoder, Framing::Sse, ReplyConfig { continuations_max, ..config(tools) })
}

fn usage(input: u64, output: u64) -> String {
    let usage = json!({ "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output });
    format!("data: {}\n\n", json!({ "choices": [], "usage": usage }))
}

/// Feeds each part in chunks of `size`, as the provider's answers to one request after the other; gives what comes out
/// and the conversations that the rest was asked for with.
fn answers(parts: &[String], continuations_max: u32, size: usize) -> (Vec<u8>, Summary, Vec<Value>) {
    let mut reply = limited(continuations_max);
    let (mut out, mut asked) = (Vec::new(), Vec::new());
    for (index, part) in parts.iter().enumerate() {
        for chunk in part.as_bytes().chunks(size) {
            reply.feed(chunk, &mut out);
        }
        reply.end_of_body(&mut out);
        if index + 1 < parts.len() {
            assert!(reply.wants_more(), "after part {index}: {}", String::from_utf8_lossy(&out));
            asked.push(serde_json::from_str(&format!("[{}]", String::from_utf8(reply.so_far()).unwrap())).unwrap());
            reply.go_on((CHAT.decoder)(ToolTable::from_names(&["look"])), Framing::Sse);
        }
    }
    let summary = reply.end(EndCause::Eof, &mut out);
    (out, summary, asked)
}

fn part(deltas: &[Value], finish: &str, tokens: (u64, u64)) -> String {
    let stream = stream(deltas, finish);
    stream.replace("data: [DONE]", &format!("{}data: [DONE]", usage(tokens.0, tokens.1)))
}

#[test]
fn the_rest_of_a_text_is_part_of_the_same_message() {
    let parts = [
        part(&[json!({"reasoning_content": "r"}), json!({"content": "One, tw"})], "length", (100, 10)),
        part(&[json!({"reasoning_content": "hidden"}), json!({"content": "o, thr"})], "length", (112, 20)),
        part(&[json!({"content": "ee."}), call("call_abcdefgh", "look", r#"{"at":1}"#)], "tool_calls", (134, 5)),
    ];
    let (whole, summary, asked) = answers(&parts, 3, usize::MAX);
    let transcript = checked(&whole);
    assert_eq!((transcript.text.as_str(), transcript.reasoning.as_str()), ("One, two, three.", "r"));
    let kinds: Vec<&str> = transcript.items.iter().filter_map(|item| item["type"].as_str()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"]);
    assert_eq!(transcript.calls()[0]["arguments"], r#"{"at":1}"#);
    // Codex takes the total for the length of the conversation.
    let terminal = transcript.terminal.unwrap();
    assert_eq!(terminal.status, "completed");
    let told = terminal.usage.unwrap();
    assert_eq!([&told["input_tokens"], &told["output_tokens"], &told["total_tokens"]], [100, 35, 135]);
    let spent = summary.usage.unwrap();
    assert_eq!((spent.input_tokens, spent.output_tokens), (346, 35));
    // The provider is shown what there is, thoughts included, and asked to go on.
    let kinds: Vec<&str> = asked[1].as_array().unwrap().iter().filter_map(|item| item["type"].as_str()).collect();
    assert_eq!(kinds, ["reasoning", "message", "message"]);
    assert_eq!(asked[1][1]["content"][0]["text"], "One, two, thr");
    assert_eq!(asked[1][2]["role"], "user");
    for size in [1, 2, 3, 7, 64] {
        assert_eq!(answers(&parts, 3, size).0, whole, "in chunks of {size}");
    }
}

#[test]
fn what_cannot_be_gone_on_with_ends_as_the_provider_has_ended_it() {
    let text = json!({"content": "Some text."});
    let whole_call = call("call_abcdefgh", "look", "{}");
    let cut_call = call("call_abcdefgh", "look", "{\"a\":");
    let thought = json!({"reasoning_content": "only thought"});
    let rows: [(Vec<Value>, u32, Outcome); 6] = [
        (vec![text.clone()], 0, Outcome::Incomplete),
        (vec![thought], 3, Outcome::Incomplete),
        (vec![cut_call.clone()], 3, Outcome::Incomplete),
        (vec![json!({"content": " \n"})], 3, Outcome::Incomplete),
        // Codex runs the call, and the model goes on with what comes of it.
        (vec![text, whole_call.clone()], 3, Outcome::Completed),
        (vec![whole_call], 0, Outcome::Incomplete),
    ];
    for (deltas, continuations_max, outcome) in rows {
        let (out, summary, _) = answers(&[part(&deltas, "length", (9, 9))], continuations_max, 5);
        assert_eq!(summary.outcome, outcome, "{deltas:?}");
        checked(&out);
    }
    // A call that is cut off is made again, whole, after the text it followed.
    let parts = [
        part(&[json!({"content": "I look."}), cut_call], "length", (9, 9)),
        part(&[call("call_ijklmnop", "look", r#"{"a":1}"#)], "tool_calls", (9, 9)),
    ];
    let transcript = checked(&answers(&parts, 1, 5).0);
    assert_eq!((transcript.text.as_str(), transcript.calls().len()), ("I look.", 1));
    assert_eq!(transcript.calls()[0]["arguments"], r#"{"a":1}"#);
}

#[test]
fn it_is_gone_on_with_so_often_and_no_more() {
    let more = part(&[json!({"content": "more "})], "length", (9, 9));
    let (out, summary, asked) = answers(&[more.clone(), more.clone(), more], 2, 5);
    assert_eq!((summary.outcome, asked.len()), (Outcome::Incomplete, 2));
    assert_eq!(checked(&out).text, "more more more ");
}

/// Codex keeps what there is, and asks for the rest by itself.
#[test]
fn where_the_rest_cannot_be_had_codex_goes_on() {
    let broken = Failure::new(FailureClass::Network, "broken");
    for cause in [EndCause::Eof, EndCause::Failed(broken)] {
        let mut reply = limited(1);
        let mut out = Vec::new();
        reply.feed(part(&[json!({"content": "Half."})], "length", (9, 9)).as_bytes(), &mut out);
        assert!(reply.wants_more());
        assert_eq!(reply.end(cause, &mut out).outcome, Outcome::Completed);
        assert!(String::from_utf8_lossy(&out).contains("\"end_turn\":false"));
        assert_eq!(checked(&out).items_of("message").len(), 1);
    }
}
