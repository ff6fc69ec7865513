//! Every rule of the translation, one row each, and the requests of a real Codex as goldens.
//!
//! Every body that any test here makes is checked by [`validate`], as a strict provider would.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::chat::validate;
use crate::failure::Repair;
use crate::history::call_ids::CALL_ID_CHARS_MAX;
use crate::sealed::Part as SealedPart;

const KEY: [u8; 32] = [3; 32];

fn target(chat: Profile) -> Target {
    Target { chat, seal_key: KEY, ..Target::new("zai", "glm-4.7") }
}

/// Encodes and checks.
fn encode_for(request: &Value, target: &Target) -> Value {
    let body = serde_json::to_vec(request).unwrap();
    let request = Request::parse(&body).unwrap_or_else(|error| panic!("{error}: {request}"));
    let call = encode(&request, target).unwrap();
    if let Err(complaint) = validate::check(&call.body) {
        panic!("{complaint}\n{}", String::from_utf8_lossy(&call.body));
    }
    if target.chat.strict_alternation
        && let Err(complaint) = validate::check_alternation(&call.body)
    {
        panic!("{complaint}\n{}", String::from_utf8_lossy(&call.body));
    }
    serde_json::from_slice(&call.body).unwrap()
}

fn with_input(input: &Value) -> Value {
    json!({"model": "any", "stream": true, "store": false, "input": input})
}

/// The messages that `input` becomes.
fn messages(input: &Value, profile: Profile) -> Value {
    encode_for(&with_input(input), &target(profile))["messages"].take()
}

#[track_caller]
fn check(input: Value, expected: Value) {
    check_with(Profile::default(), input, expected);
}

#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "rows are written in place")]
fn check_with(profile: Profile, input: Value, expected: Value) {
    assert_eq!(messages(&input, profile), expected, "\n{input:#}");
}

fn user(text: &str) -> Value {
    json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
}

fn assistant(text: &str) -> Value {
    let part = json!({"type": "output_text", "text": text, "annotations": []});
    json!({"type": "message", "role": "assistant", "status": "completed", "content": [part]})
}

fn developer(text: &str) -> Value {
    json!({"type": "message", "role": "developer", "content": [{"type": "input_text", "text": text}]})
}

fn call(id: &str) -> Value {
    json!({"type": "function_call", "name": "f", "arguments": "{\"a\": 1}", "call_id": id})
}

fn output(id: &str) -> Value {
    json!({"type": "function_call_output", "call_id": id, "output": format!("result of {id}")})
}

fn sealed(parts: &[SealedPart]) -> Value {
    let sealed = sealed::seal(&KEY, &target(Profile::default()).origin(), parts);
    json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": "shown"}], "encrypted_content": sealed})
}

// What upstream messages look like.

fn said(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn answered(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

fn called(ids: &[&str]) -> Value {
    let call = |id: &&str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
    json!({"role": "assistant", "content": null, "tool_calls": ids.iter().map(call).collect::<Vec<_>>()})
}

fn returned(id: &str) -> Value {
    json!({"role": "tool", "content": format!("result of {id}"), "tool_call_id": id})
}

fn returned_text(id: &str, text: &str) -> Value {
    json!({"role": "tool", "content": text, "tool_call_id": id})
}

#[test]
fn instructions_become_one_leading_system_message() {
    let mut request = with_input(&json!([developer("one"), developer("two"), user("hi")]));
    request["instructions"] = "zero".into();
    let body = encode_for(&request, &target(Profile::default()));
    assert_eq!(body["messages"], json!([{"role": "system", "content": "zero\n\none\n\ntwo"}, said("hi")]));

    let system = json!({"type": "message", "role": "system", "content": "plain"});
    let tools = json!({"type": "additional_tools", "role": "developer", "tools": []});
    check(
        json!([tools, system, developer(""), developer("more"), user("hi")]),
        json!([{"role": "system", "content": "plain\n\nmore"}, said("hi")]),
    );
}

#[test]
fn later_instructions_are_labelled_user_messages() {
    check(
        json!([developer("first"), user("q"), assistant("a"), developer("switch"), developer(""), user("q2")]),
        json!([
            {"role": "system", "content": "first"},
            said("q"),
            answered("a"),
            said(&format!("{DEVELOPER_LABEL}\n\nswitch")),
            said("q2")
        ]),
    );
}

#[test]
fn user_content() {
    check(json!("a plain string"), json!([said("a plain string")]));
    check(json!([{"role": "user", "content": "no type"}]), json!([said("no type")]));
    check(
        json!([{"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "one\n\"two\" \\ 🦀"}, {"type": "input_text", "text": ""},
            {"type": "input_text", "text": "three"}, {"type": "input_file", "filename": "a \"b\".pdf", "file_data": "x"},
            {"type": "input_file", "file_id": "file-1"}, {"type": "input_audio", "input_audio": {}},
            {"type": "input_hologram", "data": "x"}
        ]}]),
        json!([said(&format!(
            "one\n\"two\" \\ 🦀\n\nthree\n\n[file `a \"b\".pdf` omitted: this model takes text and images only]\n\n\
             [file omitted: this model takes text and images only]\n\n{AUDIO_NOTE}"
        ))]),
    );
}

fn image_message() -> Value {
    json!([{"type": "message", "role": "user", "content": [
        {"type": "input_text", "text": "<image>"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "high"},
        {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "original"},
        {"type": "input_image", "image_url": {"url": "https://example.org/b.png", "detail": "low"}},
        {"type": "input_image", "file_id": "file-1"},
        {"type": "input_text", "text": "what is it?"}
    ]}])
}

#[test]
fn images() {
    let text = |text: &str| json!({"type": "text", "text": text});
    check(
        image_message(),
        json!([{"role": "user", "content": [
            text("<image>"),
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "high"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/b.png", "detail": "low"}},
            text(IMAGE_NOTE),
            text("what is it?")
        ]}]),
    );

    let note = json!([said(&format!("<image>\n\n{}\n\nwhat is it?", [IMAGE_NOTE; 4].join("\n\n")))]);
    let blind = Target { images: false, ..target(Profile::default()) };
    assert_eq!(encode_for(&with_input(&image_message()), &blind)["messages"], note);
    check_with(Profile { string_content: true, ..Profile::default() }, image_message(), note);
}

#[test]
fn details_of_images_can_be_left_out() {
    let profile = Profile { omit: vec!["detail".into()], ..Profile::default() };
    let messages = messages(&image_message(), profile);
    assert_eq!(messages[0]["content"][1]["image_url"], json!({"url": "data:image/png;base64,AAAA"}));
}

#[test]
fn calls_join_the_text_before_them_and_are_answered_directly() {
    check(
        json!([
            user("q"),
            assistant("I look."),
            call("c1"),
            call("c2"),
            output("c1"),
            output("c2"),
            assistant("Done.")
        ]),
        json!([
            said("q"),
            {"role": "assistant", "content": "I look.", "tool_calls": called(&["c1", "c2"])["tool_calls"]},
            returned("c1"),
            returned("c2"),
            answered("Done.")
        ]),
    );
    check(
        json!([user("q"), call("c1"), output("c1"), call("c2"), output("c2")]),
        json!([said("q"), called(&["c1"]), returned("c1"), called(&["c2"]), returned("c2")]),
    );
    check(
        json!([user("q"), assistant("one"), {"type": "web_search_call", "id": "ws_1"}, assistant(""), assistant("two")]),
        json!([said("q"), answered("one\n\ntwo")]),
    );
}

#[test]
fn results_are_moved_behind_their_calls() {
    check(
        json!([call("c1"), call("c2"), output("c2"), user("steer"), output("c1")]),
        json!([called(&["c1", "c2"]), returned("c1"), returned("c2"), said("steer")]),
    );
    check(json!([output("c1"), call("c1"), user("q")]), json!([called(&["c1"]), returned("c1"), said("q")]));
}

#[test]
fn a_missing_result_is_filled_in_and_a_lost_one_left_out() {
    check(json!([call("c1"), user("q")]), json!([called(&["c1"]), returned_text("c1", MISSING_RESULT), said("q")]));
    check(
        json!([user("q"), output("lost"), assistant("a"), output("lost"), assistant("b"), output("c1"), call("c1")]),
        json!([
            said("q"),
            {"role": "assistant", "content": "a\n\nb", "tool_calls": called(&["c1"])["tool_calls"]},
            returned("c1")
        ]),
    );
    check(
        json!([call("c1"), output("c1"), output("c1"), user("q")]),
        json!([called(&["c1"]), returned("c1"), said("q")]),
    );
}

#[test]
fn calls_that_share_an_id_are_told_apart() {
    let messages = messages(
        &json!([
            call("c"), call("c"), output("c"), {"type": "function_call_output", "call_id": "c", "output": "second"},
            call("c"), {"type": "function_call_output", "call_id": "c", "output": "third"}, call("c"), user("q")
        ]),
        Profile::default(),
    );
    let ids: Vec<&str> = [(0, 0), (0, 1), (3, 0), (5, 0)]
        .map(|(message, call)| messages[message]["tool_calls"][call]["id"].as_str().unwrap())
        .into();
    assert_eq!(ids[0], "c");
    for (index, content, id) in [(1, "result of c", 0), (2, "second", 1), (4, "third", 2), (6, MISSING_RESULT, 3)] {
        assert_eq!(messages[index], returned_text(ids[id], content));
    }
}

#[test]
fn outputs() {
    let with = |output: Value| json!([call("c"), {"type": "function_call_output", "call_id": "c", "output": output}]);
    let text = |text: &str| json!({"type": "input_text", "text": text});
    for (result, expected) in [
        (json!("line\n\"quoted\"\t\u{1}"), "line\n\"quoted\"\t\u{1}"),
        (json!([text("one"), text(""), text("two\n"), text("three")]), "one\ntwo\nthree"),
        (json!(""), EMPTY_RESULT),
        (json!([]), EMPTY_RESULT),
        (json!(null), EMPTY_RESULT),
        (json!([text("")]), EMPTY_RESULT),
        (json!([{"type": "input_image", "file_id": "f"}]), IMAGE_NOTE),
        (json!([text("a"), {"type": "input_audio"}]), &format!("a\n{AUDIO_NOTE}")),
    ] {
        check(with(result), json!([called(&["c"]), returned_text("c", expected)]));
    }
}

#[test]
fn images_of_outputs_follow_all_results_of_the_turn() {
    let image = |data: &str| json!({"type": "input_image", "image_url": format!("data:image/png;base64,{data}")});
    let text = |text: &str| json!({"type": "input_text", "text": text});
    let input = json!([
        user("q"), call("c1"), call("c2"),
        {"type": "function_call_output", "call_id": "c1", "output": [image("AA"), image("BB")]},
        {"type": "function_call_output", "call_id": "c2", "output": [text("a pixel"), image("CC")]},
        user("next")
    ]);
    let shown =
        |data: &str| json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}});
    let label = |id: &str| json!({"type": "text", "text": format!("[image in the output of `f`, call {id}]")});
    check(
        input.clone(),
        json!([
            said("q"),
            called(&["c1", "c2"]),
            returned_text("c1", IMAGE_RESULT),
            returned_text("c2", "a pixel"),
            {"role": "user", "content": [label("c1"), shown("AA"), shown("BB"), label("c2"), shown("CC")]},
            said("next")
        ]),
    );
    let blind = Target { images: false, ..target(Profile::default()) };
    assert_eq!(
        encode_for(&with_input(&input), &blind)["messages"],
        json!([
            said("q"),
            called(&["c1", "c2"]),
            returned_text("c1", &format!("{IMAGE_NOTE}\n{IMAGE_NOTE}")),
            returned_text("c2", &format!("a pixel\n{IMAGE_NOTE}")),
            said("next")
        ])
    );
}

#[test]
fn arguments_always_hold_an_object() {
    for (arguments, expected) in [
        (r#"{"cmd": "ls \"x\"\n"}"#, json!({"cmd": "ls \"x\"\n"})),
        ("{}", json!({})),
        ("", json!({})),
        (" \n", json!({})),
        (r#"{"cmd": "#, json!({"invalid_arguments": r#"{"cmd": "#})),
        ("[1]", json!({"invalid_arguments": "[1]"})),
        ("null", json!({"invalid_arguments": "null"})),
        ("say \"hi\" \\ 🦀\n", json!({"invalid_arguments": "say \"hi\" \\ 🦀\n"})),
    ] {
        let input =
            json!([{"type": "function_call", "name": "f", "call_id": "c", "arguments": arguments}, output("c")]);
        let messages = messages(&input, Profile::default());
        let sent = messages[0]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(sent).unwrap(), expected, "{arguments}");
    }
    // What is valid goes as it came, white space and all.
    let messages = messages(&json!([call("c"), output("c")]), Profile::default());
    assert_eq!(messages[0]["tool_calls"][0]["function"]["arguments"], "{\"a\": 1}");
}

#[test]
fn every_kind_of_call_becomes_a_function_call() {
    let patch = "*** Begin Patch\n+\"é\\n\"\t\u{1f}\n*** End Patch";
    for (item, name, arguments) in [
        (
            json!({"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": patch}),
            "apply_patch",
            json!({"input": patch}),
        ),
        (
            json!({"type": "custom_tool_call", "call_id": "c", "name": "run", "namespace": "js", "input": ""}),
            "js__run",
            json!({"input": ""}),
        ),
        (
            json!({"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {"query": "a \"b\""}}),
            "tool_search",
            json!({"query": "a \"b\""}),
        ),
        (json!({"type": "tool_search_call", "call_id": "c", "arguments": null}), "tool_search", json!({})),
        (
            json!({"type": "local_shell_call", "id": "c", "status": "completed",
                "action": {"type": "exec", "command": ["ls", "-l \"x\""], "timeout_ms": 5, "env": {}, "user": null}}),
            "local_shell",
            json!({"command": ["ls", "-l \"x\""], "timeout_ms": 5}),
        ),
        (json!({"type": "local_shell_call", "call_id": "c"}), "local_shell", json!({})),
        (
            json!({"type": "function_call", "call_id": "c", "name": "echo.it", "namespace": "mcp__lab", "arguments": "{}"}),
            "mcp__lab__echo_it",
            json!({}),
        ),
    ] {
        let output = json!({"type": "custom_tool_call_output", "call_id": "c", "output": "ok"});
        let messages = messages(&json!([item, output]), Profile::default());
        let function = &messages[0]["tool_calls"][0]["function"];
        let sent: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        assert_eq!((function["name"].as_str().unwrap(), sent), (name, arguments));
        assert_eq!(messages[1], returned_text("c", "ok"));
    }
}

#[test]
fn found_tools_are_named_and_offered() {
    let search = json!({"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {}});
    let found = json!([
        {"type": "namespace", "name": "agents", "tools": [{"type": "function", "name": "spawn", "defer_loading": true}]},
        {"type": "function", "name": "close"}
    ]);
    let body = encode_for(
        &with_input(&json!([search, {"type": "tool_search_output", "call_id": "c", "tools": found}])),
        &target(Profile::default()),
    );
    assert_eq!(body["messages"][1], returned_text("c", "Tools that can be called from now on: agents__spawn, close"));
    let names: Vec<&Value> = body["tools"].as_array().unwrap().iter().map(|tool| &tool["function"]["name"]).collect();
    assert_eq!(names, ["agents__spawn", "close"]);

    let nothing = json!({"type": "tool_search_output", "call_id": "c", "tools": []});
    assert_eq!(messages(&json!([search, nothing]), Profile::default())[1], returned_text("c", "No tools found."));
}

#[test]
fn messages_between_agents_are_user_text() {
    check(
        json!([{"type": "agent_message", "author": "/root", "recipient": "/root/one", "content": [
            {"type": "input_text", "text": "Payload:\n"}, {"type": "encrypted_content", "encrypted_content": "Do \"it\"."}
        ]}]),
        json!([said("Payload:\nDo \"it\".")]),
    );
}

#[test]
fn what_means_nothing_here_is_left_out() {
    check(
        json!([
            user("q"),
            {"type": "compaction", "encrypted_content": "blob"}, {"type": "compaction_summary", "encrypted_content": "x"},
            {"type": "compaction_trigger"}, {"type": "item_reference", "id": "msg_1"}, {"type": "ghost_snapshot"},
            {"type": "image_generation_call", "id": "ig_1", "result": "AAAA"}, {"type": "brand_new", "x": [1]},
            {"type": "reasoning", "summary": [], "encrypted_content": "foreign"}, assistant(""), user("")
        ]),
        json!([said("q")]),
    );
}

#[test]
fn nothing_to_say_is_an_error() {
    for input in [json!([]), json!([{"type": "compaction_trigger"}]), json!([user("")]), json!([output("lost")])] {
        let body = serde_json::to_vec(&with_input(&input)).unwrap();
        let error = encode(&Request::parse(&body).unwrap(), &target(Profile::default())).unwrap_err();
        let expected = "`input` in the request is not valid: there is no message in it that the provider could answer";
        assert_eq!(error.to_string(), expected);
    }
}

fn thinking(replay: Replay) -> Profile {
    Profile { replay, ..Profile::default() }
}

#[test]
fn reasoning_goes_back_in_the_form_the_provider_wants() {
    let details = r#"[{"type":"reasoning.text","text":"a","signature":"s"},{"type":"reasoning.encrypted","data":"d"}]"#;
    let parts = [
        SealedPart::ReasoningContent("I \"think\".\n".into()),
        SealedPart::ReasoningDetails(details.into()),
        SealedPart::InlineThink("And on.".into()),
        SealedPart::ReasoningDetails(r#"[{"text":"b"}]"#.into()),
    ];
    let input = json!([user("q"), sealed(&parts), assistant("a"), call("c"), output("c"), assistant("b")]);
    let message = |replay| messages(&input, thinking(replay))[1].take();
    let plain = json!({"role": "assistant", "content": "a", "tool_calls": called(&["c"])["tool_calls"]});
    let with = |name: &str, value: Value| {
        let mut message = plain.clone();
        message[name] = value;
        message
    };
    assert_eq!(message(Replay::Never), plain);
    assert_eq!(message(Replay::ReasoningContent), with("reasoning_content", "I \"think\".\nAnd on.".into()));
    assert_eq!(
        message(Replay::ReasoningDetails),
        with(
            "reasoning_details",
            json!([
                {"type": "reasoning.text", "text": "a", "signature": "s"},
                {"type": "reasoning.encrypted", "data": "d"},
                {"text": "b"}
            ])
        )
    );
    assert_eq!(message(Replay::InlineThink), with("content", "<think>I \"think\".\nAnd on.</think>\n\na".into()));

    // A turn of reasoning alone says nothing, whatever is sealed in it.
    check_with(thinking(Replay::InlineThink), json!([user("q"), sealed(&parts)]), json!([said("q")]));
}

#[test]
fn lost_reasoning_has_a_stand_in_only_where_it_is_demanded() {
    let foreign = json!({"type": "reasoning", "summary": [], "content": null, "encrypted_content": "opaque=="});
    let of_another_model = {
        let origin = Target::new("zai", "glm-5").origin();
        let text = sealed::seal(&KEY, &origin, &[SealedPart::ReasoningContent("other".into())]);
        json!({"type": "reasoning", "summary": [], "encrypted_content": text})
    };
    for reasoning in [foreign, of_another_model] {
        let input = json!([user("q"), reasoning, call("c"), output("c"), reasoning, assistant("a")]);
        for replay in [Replay::Never, Replay::ReasoningDetails, Replay::InlineThink] {
            check_with(
                thinking(replay),
                input.clone(),
                json!([said("q"), called(&["c"]), returned("c"), answered("a")]),
            );
        }
        let mut with_space = called(&["c"]);
        with_space["reasoning_content"] = " ".into();
        check_with(
            thinking(Replay::ReasoningContent),
            input,
            json!([said("q"), with_space, returned("c"), answered("a")]),
        );
    }
}

#[test]
fn state_of_calls_comes_back_to_them() {
    let parts = [
        SealedPart::UpstreamId { call_id: "c1".into(), upstream_id: "functions.f:0".into() },
        SealedPart::ToolExtra { call_id: "c2".into(), extra_content: r#"{"google":{"thought_signature":"s"}}"#.into() },
        SealedPart::ToolExtra { call_id: "c1".into(), extra_content: "not JSON".into() },
    ];
    let input = json!([sealed(&parts), call("c1"), call("c2"), call("c3"), output("c3"), output("c2"), output("c1")]);
    let mut expected = called(&["functions.f:0", "c2", "c3"]);
    expected["tool_calls"][1]["extra_content"] = json!({"google": {"thought_signature": "s"}});
    let results = [returned_text("functions.f:0", "result of c1"), returned("c2"), returned("c3")];
    check(input.clone(), [&[expected.clone()], &results[..]].concat().into());

    // The first call of a turn must have a signature at Gemini.
    expected["tool_calls"][0]["extra_content"] = serde_json::from_str(THOUGHT_SIGNATURE_PLACEHOLDER).unwrap();
    let profile = Profile { thought_signatures: true, ..Profile::default() };
    check_with(profile, input, [&[expected], &results[..]].concat().into());
}

#[test]
fn an_upstream_id_that_repeats_is_given_back_once() {
    let turn = |id: &str| {
        let part = SealedPart::UpstreamId { call_id: id.into(), upstream_id: "functions.f:0".into() };
        [sealed(&[part]), call(id), output(id)]
    };
    let input: Vec<Value> = [turn("c1"), turn("c2")].concat();
    let messages = messages(&Value::from(input), Profile::default());
    assert_eq!(messages[0]["tool_calls"][0]["id"], "functions.f:0");
    assert_eq!(messages[2]["tool_calls"][0]["id"], "c2");
}

#[test]
fn call_ids_are_portable() {
    let long = "x".repeat(CALL_ID_CHARS_MAX + 1);
    for (id, is_kept) in [
        ("call_1-A", true),
        (&*"y".repeat(CALL_ID_CHARS_MAX), true),
        (&long, false),
        ("a b", false),
        ("", false),
        ("é", false),
    ] {
        let messages = messages(&json!([call(id), output(id)]), Profile::default());
        let sent = messages[0]["tool_calls"][0]["id"].as_str().unwrap();
        assert_eq!(sent == id, is_kept, "{id}");
        assert!(
            sent.len() <= CALL_ID_CHARS_MAX && sent.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        );
        assert_eq!(messages[1]["tool_call_id"], sent);
    }

    // Mistral.
    let profile = || Profile { short_call_ids: true, ..Profile::default() };
    let input = json!([
        sealed(&[
            SealedPart::UpstreamId { call_id: "call_1".into(), upstream_id: "D681PevKs".into() },
            SealedPart::UpstreamId { call_id: "call_2".into(), upstream_id: "functions.f:0".into() }
        ]),
        call("call_1"),
        call("call_2"),
        call("abcdefgh1"),
        output("call_1"),
        output("call_2"),
        output("abcdefgh1")
    ]);
    let messages = messages(&input, profile());
    let ids: Vec<&str> = (0..3).map(|index| messages[0]["tool_calls"][index]["id"].as_str().unwrap()).collect();
    assert_eq!((ids[0], ids[2]), ("D681PevKs", "abcdefgh1"));
    assert!(ids[1].len() == 9 && ids[1].bytes().all(|byte| byte.is_ascii_alphanumeric()), "{}", ids[1]);
    assert_eq!(messages, self::messages(&input, profile()), "derived ids are the same each time");
}

#[test]
fn strict_alternation() {
    let strict = || Profile { strict_alternation: true, ..Profile::default() };
    check_with(
        strict(),
        json!([developer("s"), user("a"), user("b"), developer("c"), assistant("d"), user("e")]),
        json!([
            {"role": "system", "content": "s"},
            said(&format!("a\n\nb\n\n{DEVELOPER_LABEL}\n\nc")),
            answered("d"),
            said("e")
        ]),
    );
    check_with(
        strict(),
        json!([call("c"), output("c"), user("q")]),
        json!([said(USER_FILLER), called(&["c"]), returned("c"), answered(ASSISTANT_FILLER), said("q")]),
    );
    // Images of a result and the words that follow are one message.
    let image = json!([{"type": "input_image", "image_url": "data:,x"}]);
    check_with(
        strict(),
        json!([user("q"), call("c"), {"type": "function_call_output", "call_id": "c", "output": image}, user("r")]),
        json!([
            said("q"), called(&["c"]), returned_text("c", IMAGE_RESULT), answered(ASSISTANT_FILLER),
            {"role": "user", "content": [
                {"type": "text", "text": "[image in the output of `f`, call c]"},
                {"type": "image_url", "image_url": {"url": "data:,x"}},
                {"type": "text", "text": "r"}
            ]}
        ]),
    );
}

#[test]
fn empty_content_as_the_provider_wants_it() {
    let input = json!([call("c"), output("c")]);
    for (empty_content, expected) in [(EmptyContent::Null, Value::Null), (EmptyContent::EmptyString, "".into())] {
        let messages = messages(&input, Profile { empty_content, ..Profile::default() });
        assert_eq!(messages[0]["content"], expected);
    }
}

/// A request with tools, and its body without the messages.
fn options(members: &Value, profile: Profile) -> Value {
    let mut request = with_input(&json!([user("q")]));
    for (name, value) in members.as_object().unwrap() {
        request[name] = value.clone();
    }
    let mut body = encode_for(&request, &target(profile));
    body.as_object_mut().unwrap().retain(|name, _| !matches!(name.as_str(), "messages" | "model" | "stream"));
    body
}

fn portable() -> Profile {
    Profile { stream_options: false, ..Profile::default() }
}

#[test]
fn only_what_was_asked_for_and_nothing_private() {
    assert_eq!(options(&json!({}), portable()), json!({}));
    assert_eq!(options(&json!({}), Profile::default()), json!({"stream_options": {"include_usage": true}}));
    let everything = json!({
        "client_metadata": {"x": "/home/dev"}, "prompt_cache_key": "k", "store": true, "include": ["x"], "user": "u",
        "service_tier": "flex", "metadata": {"a": "b"}, "truncation": "auto", "background": false, "safety_identifier": "s",
        "previous_response_id": "resp_1", "text": {"verbosity": "low"}, "reasoning": {"effort": "high", "summary": "auto"},
        "tool_choice": "required", "parallel_tool_calls": true, "tools": [], "stream": false
    });
    assert_eq!(options(&everything, portable()), json!({}));
    assert_eq!(
        options(&json!({"max_output_tokens": 100, "temperature": 0.5, "top_p": 1}), portable()),
        json!({"max_tokens": 100, "temperature": 0.5, "top_p": 1})
    );
    assert_eq!(
        options(&json!({"max_output_tokens": 100}), Profile { max_tokens: MaxTokens::Completion, ..portable() }),
        json!({"max_completion_tokens": 100})
    );
    let mut limited = portable();
    assert!(limited.apply(&Repair::OutputTokens(90)) && limited.apply(&Repair::OutputTokens(80)));
    assert!(!limited.apply(&Repair::OutputTokens(90)), "it is less already");
    assert_eq!(options(&json!({"max_output_tokens": 100}), limited.clone()), json!({"max_tokens": 80}));
    assert_eq!(options(&json!({"max_output_tokens": 70}), limited.clone()), json!({"max_tokens": 70}));
    assert_eq!(options(&json!({}), limited), json!({}));
}

#[test]
fn an_effort_is_one_of_those_that_the_provider_has_listed() {
    let rows: [(&str, &[&str], Value); 6] = [
        ("xhigh", &["low", "high", "xhigh"], json!({"reasoning_effort": "xhigh"})),
        ("medium", &["low", "high"], json!({"reasoning_effort": "low"})),
        ("none", &["none", "low"], json!({"reasoning_effort": "none"})),
        ("none", &["minimal", "low"], json!({"reasoning_effort": "minimal"})),
        ("high", &["none", "default"], json!({"reasoning_effort": "default"})),
        ("high", &["none"], json!({})),
    ];
    for (given, listed, expected) in rows {
        let mut profile = Profile { effort: Effort::ReasoningEffort, ..portable() };
        profile.apply(&Repair::Efforts(listed.iter().map(|word| (*word).to_owned()).collect()));
        let sent = options(&json!({"reasoning": {"effort": given}}), profile);
        assert_eq!(sent, expected, "{given} of {listed:?}");
    }
}

#[test]
fn effort() {
    let efforts =
        [None, Some("none"), Some("minimal"), Some("low"), Some("medium"), Some("high"), Some("xhigh"), Some("max")];
    let low_to_high = ["low", "low", "low", "medium", "high", "high", "high"];
    let known =
        |make: &dyn Fn(usize) -> Value| -> Vec<Value> { std::iter::once(json!({})).chain((0..7).map(make)).collect() };
    for (effort, expected) in [
        (Effort::None, vec![json!({}); 8]),
        (Effort::ReasoningEffort, known(&|index| json!({"reasoning_effort": low_to_high[index]}))),
        (
            Effort::ReasoningObject,
            known(&|index| match index {
                0 | 1 => json!({"reasoning": {"enabled": false}}),
                _ => json!({"reasoning": {"effort": low_to_high[index]}}),
            }),
        ),
        (
            Effort::Thinking,
            known(&|index| json!({"thinking": {"type": if index < 2 { "disabled" } else { "enabled" }}})),
        ),
        (
            Effort::ThinkingAndEffort,
            known(&|index| match index {
                0 | 1 => json!({"thinking": {"type": "disabled"}}),
                _ => json!({"thinking": {"type": "enabled"}, "reasoning_effort": low_to_high[index]}),
            }),
        ),
        (Effort::EnableThinking, known(&|index| json!({"enable_thinking": index >= 2}))),
        (Effort::ReasoningSplit, vec![json!({"reasoning_split": true}); 8]),
    ] {
        for (given, expected) in efforts.iter().zip(expected) {
            let sent = options(&json!({"reasoning": {"effort": given}}), Profile { effort, ..portable() });
            assert_eq!(sent, expected, "{effort:?} {given:?}");
        }
        if effort != Effort::ReasoningSplit {
            let sent = options(&json!({"reasoning": {"effort": "banana"}}), Profile { effort, ..portable() });
            assert_eq!(sent, json!({}), "an unknown word is not passed on");
        }
    }
}

#[test]
fn a_model_with_levels_of_its_own_is_asked_for_the_nearest() {
    let profile =
        Profile { effort: Effort::ReasoningEffort, levels: vec![Level::Low, Level::High, Level::Max], ..portable() };
    for (given, sent) in
        [("none", "low"), ("low", "low"), ("medium", "low"), ("high", "high"), ("xhigh", "high"), ("max", "max")]
    {
        let options = options(&json!({"reasoning": {"effort": given}}), profile.clone());
        assert_eq!(options, json!({"reasoning_effort": sent}), "{given}");
    }
}

#[test]
fn tools_beyond_the_limit_are_left_out_the_least_needed_first() {
    let mcp = |name: &str| json!({"type": "function", "name": name, "parameters": {}});
    let mut request = with_input(&json!([
        user("q"),
        {"type": "function_call", "call_id": "call_12345678", "namespace": "mcp__lab", "name": "three", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_12345678", "output": "x"},
    ]));
    request["tools"] = json!([
        {"type": "namespace", "name": "mcp__lab", "tools": [mcp("one"), mcp("two"), mcp("three")]},
        mcp("own"),
    ]);
    for (tools_max, expected) in [
        (None, &["mcp__lab__one", "mcp__lab__two", "mcp__lab__three", "own"][..]),
        (Some(4), &["mcp__lab__one", "mcp__lab__two", "mcp__lab__three", "own"]),
        (Some(3), &["mcp__lab__one", "mcp__lab__three", "own"]),
        (Some(2), &["mcp__lab__three", "own"]),
        (Some(1), &["mcp__lab__three"]),
    ] {
        let body = encode_for(&request, &target(Profile { tools_max, ..portable() }));
        let names: Vec<&str> =
            body["tools"].as_array().unwrap().iter().map(|tool| tool["function"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{tools_max:?}");
    }
}

#[test]
fn form_of_the_answer() {
    let schema = json!({"type": "object", "properties": {"encrypted": {"type": "string", "encrypted": true}}});
    let text = json!({"text": {"format": {"type": "json_schema", "name": "out", "strict": true, "schema": schema}}});
    let clean = json!({"type": "object", "properties": {"encrypted": {"type": "string"}}});
    assert_eq!(
        options(&text, portable()),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "out", "strict": true, "schema": clean}}})
    );
    let any = json!({"text": {"format": {"type": "json_object"}}});
    assert_eq!(options(&any, portable()), json!({"response_format": {"type": "json_object"}}));
    assert_eq!(options(&json!({"text": {"format": {"type": "text"}}}), portable()), json!({}));

    // As an instruction, behind what else is in the system message.
    let mut request = with_input(&json!([developer("d"), user("q")]));
    request["text"] = text["text"].clone();
    let words = Profile { json_schema: false, ..portable() };
    let body = encode_for(&request, &target(words.clone()));
    let system = body["messages"][0]["content"].as_str().unwrap();
    assert!(system.starts_with("d\n\nWhen the work is done, answer with one JSON object"), "{system}");
    let (_, written) = system.rsplit_once('\n').unwrap();
    assert_eq!(serde_json::from_str::<Value>(written).unwrap(), clean);
    assert_eq!(body.get("response_format"), None);
    assert_eq!(options(&any, words), json!({}));
}

fn tools() -> Value {
    json!([
        {"type": "function", "name": "plain", "description": "Does \"it\".\n", "strict": false,
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": false}},
        {"type": "function", "name": "bare", "strict": true},
        {"type": "custom", "name": "apply_patch", "description": "Patches.",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: \"x\"\n"}},
        {"type": "custom", "name": "free"},
        {"type": "namespace", "name": "mcp__lab", "tools": [{"type": "function", "name": "echo", "parameters": {}}]},
        {"type": "tool_search", "execution": "client", "description": "Finds.", "parameters": {"type": "object"}},
        {"type": "local_shell"},
        {"type": "web_search"}
    ])
}

#[test]
fn every_tool_becomes_a_function() {
    let custom = json!({
        "type": "object",
        "properties": {"input": {"type": "string", "description": "The complete text, exactly as the tool expects it."}},
        "required": ["input"]
    });
    let empty = json!({"type": "object", "properties": {}});
    let function = |function: Value| json!({"type": "function", "function": function});
    let one_argument = "Call it with one argument, `input`: a string that holds the complete text.";
    let expected = json!([
        function(json!({"name": "plain", "description": "Does \"it\".\n",
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": false}})),
        function(json!({"name": "bare", "parameters": empty})),
        function(json!({
            "name": "apply_patch",
            "description":
                format!("Patches.\n\n{one_argument} The text must match this lark grammar:\nstart: \"x\"\n"),
            "parameters": custom
        })),
        function(json!({"name": "free", "description": one_argument, "parameters": custom})),
        function(json!({"name": "mcp__lab__echo", "parameters": empty})),
        function(json!({"name": "tool_search", "description": "Finds.", "parameters": empty})),
        function(json!({
            "name": "local_shell",
            "description": "Runs a command on the user's machine.",
            "parameters": serde_json::from_str::<Value>(offer::LOCAL_SHELL_PARAMETERS).unwrap()
        }))
    ]);
    let body = options(&json!({"tools": tools()}), portable());
    assert_eq!(body, json!({"tools": expected, "tool_choice": "auto"}));

    let strict = options(&json!({"tools": tools()}), Profile { strict_tools: true, ..portable() });
    let strict: Vec<&Value> =
        strict["tools"].as_array().unwrap().iter().map(|tool| &tool["function"]["strict"]).collect();
    assert_eq!(strict[..3], [&Value::Null, &json!(true), &Value::Null]);
}

#[test]
fn parallel_calls_are_mentioned_where_that_is_understood() {
    for (profile, given, expected) in [
        (false, json!(true), None),
        (true, json!(true), Some(json!(true))),
        (true, json!(false), Some(json!(false))),
        (true, json!(null), None),
    ] {
        let profile = Profile { parallel_tool_calls: profile, ..portable() };
        let body = options(&json!({"tools": tools(), "parallel_tool_calls": given}), profile);
        assert_eq!(body.get("parallel_tool_calls"), expected.as_ref());
    }
}

#[test]
fn tool_choices() {
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    for (choice, expected) in [
        (json!(null), json!("auto")),
        (json!("auto"), json!("auto")),
        (json!("none"), json!("none")),
        (json!("required"), json!("required")),
        (json!("something"), json!("auto")),
        (json!({"type": "function", "name": "plain"}), named("plain")),
        (json!({"type": "function", "name": "echo", "namespace": "mcp__lab"}), named("mcp__lab__echo")),
        (json!({"type": "custom", "name": "apply_patch"}), named("apply_patch")),
        (json!({"type": "tool_search"}), named("tool_search")),
        (json!({"type": "local_shell"}), named("local_shell")),
        (json!({"type": "function", "name": "unknown"}), json!("auto")),
        (json!({"type": "web_search"}), json!("auto")),
        (json!({"type": "allowed_tools", "mode": "required", "tools": []}), json!("required")),
        (json!({"type": "allowed_tools", "mode": "auto", "tools": []}), json!("auto")),
    ] {
        let members = json!({"tools": tools(), "tool_choice": choice});
        assert_eq!(options(&members, portable())["tool_choice"], expected, "{choice}");
        let auto_only = options(&members, Profile { tool_choice_auto_only: true, ..portable() });
        if choice == "none" {
            assert_eq!(auto_only, json!({}), "not offering any is the way to forbid them");
        } else {
            assert_eq!(auto_only["tool_choice"], "auto");
        }
    }
}

#[test]
fn refusals_are_learned() {
    let everything = json!({
        "tools": tools(), "parallel_tool_calls": true, "max_output_tokens": 9, "temperature": 1, "top_p": 1,
        "reasoning": {"effort": "low"}, "text": {"format": {"type": "json_object"}}
    });
    let full = || Profile {
        strict_tools: true,
        parallel_tool_calls: true,
        effort: Effort::ReasoningEffort,
        ..Profile::default()
    };
    let before = options(&everything, full());
    for (parameter, gone) in [
        ("stream_options", "stream_options"),
        ("body.stream_options.include_usage", "stream_options"),
        ("tool_choice", "tool_choice"),
        ("parallel_tool_calls", "parallel_tool_calls"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("reasoning_effort", "reasoning_effort"),
        ("response_format", "response_format"),
        ("max_tokens", "max_tokens"),
    ] {
        let mut profile = full();
        assert!(profile.apply(&Repair::Drop(parameter.into())), "{parameter}");
        let after = options(&everything, profile.clone());
        assert!(before.get(gone).is_some() && after.get(gone).is_none(), "{parameter}: {after}");
        if parameter == "max_tokens" {
            assert_eq!(after["max_completion_tokens"], 9);
            assert!(profile.apply(&Repair::Drop("max_completion_tokens".into())));
            assert_eq!(options(&everything, profile.clone()).get("max_completion_tokens"), None);
        }
        let again = Repair::Drop(if parameter == "max_tokens" { "max_completion_tokens" } else { parameter }.into());
        assert!(!profile.apply(&again), "{parameter}: asking again changes nothing");
    }

    let changed = |repair: Repair, expected: Profile| {
        let mut profile = full();
        let differs = profile.apply(&repair);
        assert_eq!((differs, &profile), (expected != full(), &expected), "{repair:?}");
    };
    changed(Repair::Drop("tools.0.function.strict".into()), Profile { strict_tools: false, ..full() });
    changed(
        Repair::Drop("body.messages[3].image_url.detail".into()),
        Profile { omit: vec!["detail".into()], ..full() },
    );
    changed(Repair::CleanSchema, Profile { plain_schemas: true, ..full() });
    changed(Repair::StringContent, Profile { string_content: true, ..full() });
    changed(Repair::ReasoningContentRequired, Profile { replay: Replay::ReasoningContent, ..full() });
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    changed(Repair::Efforts(words(&["none", "high"])), Profile { effort_words: words(&["none", "high"]), ..full() });
    changed(Repair::Efforts(Vec::new()), Profile { effort: Effort::None, ..full() });
    for repair in [
        Repair::Drop("messages".into()),
        Repair::Drop("model".into()),
        Repair::Drop(String::new()),
        Repair::MergeSystem,
        Repair::NoImages,
        Repair::ThinkAdaptively,
        Repair::ThinkByBudget,
        Repair::RefreshToken,
        Repair::CreateSession,
        Repair::StartNewRun,
    ] {
        changed(repair, full());
    }
    let mut new_name = Profile { max_tokens: MaxTokens::Completion, ..full() };
    assert!(new_name.apply(&Repair::Drop("max_completion_tokens".into())));
    assert_eq!(options(&everything, new_name.clone())["max_tokens"], 9);
    assert!(new_name.apply(&Repair::Drop("max_tokens".into())), "it knows neither");
    assert_eq!(options(&everything, new_name).get("max_tokens"), None);
    let mut replaying = Profile { replay: Replay::ReasoningContent, ..full() };
    assert!(replaying.apply(&Repair::Drop("messages.2.reasoning_content".into())));
    assert_eq!(replaying, full());
}

#[test]
fn the_call_is_plain_data() {
    let body = serde_json::to_vec(&with_input(&json!("hi"))).unwrap();
    let call = encode(&Request::parse(&body).unwrap(), &target(portable())).unwrap();
    let expected = Call {
        path: "/chat/completions".into(),
        query: None,
        headers: vec![("content-type", "application/json".into()), ("accept", "text/event-stream".into())],
        body: br#"{"model":"glm-4.7","messages":[{"role":"user","content":"hi"}],"stream":true}"#.to_vec(),
        framing: Framing::Sse,
    };
    assert_eq!(call, expected);
}

/// Requests of a real Codex, with what each becomes for a provider of the portable kind.
#[test]
fn recorded_requests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/codex-requests");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder.join("chat"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        count += 1;
        let fixture: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let body = encode_for(&fixture["body"], &target(Profile::default()));
        for secret in ["installation_id", "latest_git_commit_hash", "prompt_cache_key", "encrypted_content"] {
            assert!(!body.to_string().contains(secret), "{secret} in {}", path.display());
        }
        settings.set_description(fixture["about"].as_str().unwrap());
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        settings.bind(|| insta::assert_json_snapshot!(name, body));
        for images in [true, false] {
            let strict = Profile {
                strict_alternation: true,
                short_call_ids: true,
                plain_schemas: true,
                json_schema: false,
                replay: Replay::ReasoningContent,
                ..Profile::default()
            };
            encode_for(&fixture["body"], &Target { images, ..target(strict) });
        }
    }
    assert!(count >= 36, "only {count} recorded requests found");
}

/// Any item, wrong ones included, with few ids, so that they meet.
fn any_item() -> impl Strategy<Value = Value> {
    let id = || prop::sample::select(vec!["a", "b", "c", "functions.f:0", ""]);
    let text = || prop::sample::select(vec!["", "x", "\"\\\n\u{1}🦀", "{}", "{\"a\":", "{\"b\": \"\\\"\"}"]);
    prop_oneof![
        (prop::sample::select(vec!["user", "assistant", "developer", "system"]), text())
            .prop_map(|(role, text)| json!({"type": "message", "role": role, "content": text})),
        (id(), text()).prop_map(|(id, text)| json!({"type": "function_call", "call_id": id, "name": "f.g", "arguments": text})),
        (id(), text()).prop_map(|(id, text)| json!({"type": "custom_tool_call", "call_id": id, "name": "p", "input": text})),
        (id(), text()).prop_map(|(id, text)| json!({"type": "tool_search_call", "call_id": id, "arguments": {"q": text}})),
        id().prop_map(|id| json!({"type": "local_shell_call", "call_id": id, "action": {"command": ["ls"]}})),
        (id(), text()).prop_map(|(id, text)| json!({"type": "function_call_output", "call_id": id, "output": text})),
        (id(), text()).prop_map(|(id, text)| json!({"type": "custom_tool_call_output", "call_id": id, "output": [
            {"type": "input_text", "text": text}, {"type": "input_image", "image_url": "data:,x"}
        ]})),
        (id(), text()).prop_map(|(id, name)| json!({"type": "tool_search_output", "call_id": id, "tools": [
            {"type": "function", "name": name}
        ]})),
        (id(), id(), text()).prop_map(|(id, upstream, text)| sealed(&[
            SealedPart::ReasoningContent(text.into()),
            SealedPart::InlineThink(text.into()),
            SealedPart::ReasoningDetails(text.into()),
            SealedPart::UpstreamId { call_id: id.into(), upstream_id: upstream.into() },
            SealedPart::ToolExtra { call_id: id.into(), extra_content: text.into() },
        ])),
        text().prop_map(|text| json!({"type": "agent_message", "content": [{"type": "encrypted_content", "encrypted_content": text}]})),
        Just(json!({"type": "compaction", "encrypted_content": "x"})),
        Just(json!({"type": "unheard_of"})),
    ]
}

fn any_profile() -> impl Strategy<Value = Profile> {
    let replay = [Replay::Never, Replay::ReasoningContent, Replay::ReasoningDetails, Replay::InlineThink].to_vec();
    (any::<[bool; 7]>(), prop::sample::select(replay)).prop_map(|(flags, replay)| Profile {
        strict_alternation: flags[0],
        short_call_ids: flags[1],
        string_content: flags[2],
        thought_signatures: flags[3],
        tool_choice_auto_only: flags[4],
        plain_schemas: flags[5],
        empty_content: if flags[6] { EmptyContent::Null } else { EmptyContent::EmptyString },
        replay,
        ..Profile::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_conversation_becomes_one_that_strict_providers_take(
        items in prop::collection::vec(any_item(), 0..14), profile in any_profile(), images: bool
    ) {
        let mut items = items;
        items.push(user("the last word"));
        let target = Target { images, ..target(profile) };
        let request = with_input(&items.into());
        let body = encode_for(&request, &target);
        prop_assert_eq!(&body, &encode_for(&request, &target));
        // The user's last word is not buried under repairs.
        let last = body["messages"].as_array().unwrap().last().unwrap();
        prop_assert_eq!(&last["role"], "user");
        let said = match &last["content"] {
            Value::String(text) => text.as_str(),
            parts => parts.as_array().unwrap().last().unwrap()["text"].as_str().unwrap(),
        };
        prop_assert!(said.ends_with("the last word"), "{}", last);
    }
}
