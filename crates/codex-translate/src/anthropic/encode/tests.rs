//! Every rule of the translation, one row each, and the requests of a real Codex as goldens.
//!
//! Every body that any test here makes is checked by [`validate`], as Anthropic would.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::anthropic::validate;
use crate::failure::Repair;
use crate::history::call_ids::CALL_ID_CHARS_MAX;
use crate::sealed::Part as SealedPart;

const KEY: [u8; 32] = [3; 32];

fn target(anthropic: Profile) -> Target {
    Target { anthropic, seal_key: KEY, ..Target::new("anthropic", "claude-sonnet-4-6") }
}

fn encoded(request: &Value, target: &Target) -> Result<Call, EncodeError> {
    let body = serde_json::to_vec(request).unwrap();
    let request = Request::parse(&body).unwrap_or_else(|error| panic!("{error}: {request}"));
    encode(&request, target)
}

/// Encodes and checks.
fn encode_for(request: &Value, target: &Target) -> Value {
    let call = encoded(request, target).unwrap();
    if let Err(complaint) = validate::check(&call.body) {
        panic!("{complaint}\n{}", String::from_utf8_lossy(&call.body));
    }
    serde_json::from_slice(&call.body).unwrap()
}

fn with_input(input: &Value) -> Value {
    json!({"model": "any", "stream": true, "store": false, "input": input})
}

/// Without marks for the cache, which would stand in every row.
fn unmarked() -> Profile {
    Profile { cache: false, ..Profile::default() }
}

/// The messages that `input` becomes.
fn messages(input: &Value, profile: Profile) -> Value {
    encode_for(&with_input(input), &target(profile))["messages"].take()
}

#[track_caller]
fn check(input: Value, expected: Value) {
    check_with(unmarked(), input, expected);
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

fn reasoning(parts: &[SealedPart], origin: &Origin) -> Value {
    let sealed = sealed::seal(&KEY, origin, parts);
    json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": "shown"}], "encrypted_content": sealed})
}

fn sealed(parts: &[SealedPart]) -> Value {
    reasoning(parts, &target(unmarked()).origin())
}

fn thought(text: &str) -> Value {
    sealed(&[SealedPart::ThinkingBlocks(json!([signed(text)]).to_string())])
}

/// What another model thought.
fn foreign(text: &str) -> Value {
    let origin = Target::new("anthropic", "claude-opus-4-1").origin();
    reasoning(&[SealedPart::ThinkingBlocks(json!([signed(text)]).to_string())], &origin)
}

// What upstream blocks and messages look like.

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn said(words: &str) -> Value {
    json!({"role": "user", "content": [text(words)]})
}

fn answered(words: &str) -> Value {
    json!({"role": "assistant", "content": [text(words)]})
}

fn signed(words: &str) -> Value {
    json!({"type": "thinking", "thinking": words, "signature": format!("sig of {words}")})
}

fn tool_use(id: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": "f", "input": {"a": 1}})
}

fn called(ids: &[&str]) -> Value {
    json!({"role": "assistant", "content": ids.iter().map(|id| tool_use(id)).collect::<Vec<_>>()})
}

fn result(id: &str) -> Value {
    json!({"type": "tool_result", "tool_use_id": id, "content": format!("result of {id}")})
}

fn returned(ids: &[&str]) -> Value {
    json!({"role": "user", "content": ids.iter().map(|id| result(id)).collect::<Vec<_>>()})
}

#[test]
fn instructions_become_system_blocks() {
    let mut request = with_input(&json!([developer("one"), developer(" \n"), developer("two"), user("hi")]));
    request["instructions"] = "zero".into();
    let body = encode_for(&request, &target(unmarked()));
    assert_eq!(body["system"], json!([text("zero"), text("one"), text("two")]));
    assert_eq!(body["messages"], json!([said("hi")]));
    assert_eq!(encode_for(&with_input(&json!([developer(""), user("hi")])), &target(unmarked())).get("system"), None);
}

#[test]
fn later_instructions_are_labelled_user_text() {
    check(
        json!([developer("first"), user("q"), assistant("a"), developer("switch"), developer("\t"), user("q2")]),
        json!([
            said("q"),
            answered("a"),
            {"role": "user", "content": [text(stand_in::DEVELOPER_LABEL), text("switch"), text("q2")]}
        ]),
    );
}

#[test]
fn roles_take_turns_and_blank_texts_are_left_out() {
    check(json!("a plain string"), json!([said("a plain string")]));
    check(
        json!([
            user("a \"b\"\n🦀"),
            user(""),
            user("b"),
            assistant("c"),
            assistant(" \n\t"),
            assistant("d"),
            user("\u{a0}\u{2003}\n"),
            user("e")
        ]),
        json!([
            {"role": "user", "content": [text("a \"b\"\n🦀"), text("b")]},
            {"role": "assistant", "content": [text("c"), text("d")]},
            said("e")
        ]),
    );
    check(
        json!([{"type": "message", "role": "user", "content": [
            {"type": "input_file", "filename": "a \"b\".pdf", "file_data": "x"}, {"type": "input_audio", "input_audio": {}},
            {"type": "input_hologram", "data": "x"}
        ]}]),
        json!([{"role": "user", "content": [
            text("[file `a \"b\".pdf` omitted: this model takes text and images only]"), text(stand_in::AUDIO_NOTE)
        ]}]),
    );
}

#[test]
fn the_user_speaks_first_and_last() {
    check(json!([assistant("a"), user("b")]), json!([said(stand_in::USER_FILLER), answered("a"), said("b")]));
    check(json!([call("c"), output("c")]), json!([said(stand_in::USER_FILLER), called(&["c"]), returned(&["c"])]));
    let ends = json!([user("q"), assistant("half of it \u{2003}\n \t")]);
    check(ends.clone(), json!([said("q"), answered("half of it \u{2003}\n \t"), said(stand_in::USER_FILLER)]));
    // Older models go on with their own words, which must not end in white space.
    let prefill = || Profile { prefill: true, ..unmarked() };
    check_with(prefill(), ends.clone(), json!([said("q"), answered("half of it")]));
    check_with(prefill(), json!([user("q"), assistant("n\"\\n")]), json!([said("q"), answered("n\"\\n")]));
    let mut thinks = with_input(&ends);
    thinks["reasoning"] = json!({"effort": "high"});
    let body = encode_for(&thinks, &target(Profile { thinking: Thinking::Adaptive, ..prefill() }));
    assert_eq!(body["messages"][2], said(stand_in::USER_FILLER), "not with thinking");
}

#[test]
fn images() {
    let content = |url: &str| {
        json!([{"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": url, "detail": "high"}
        ]}])
    };
    let base64 =
        |kind: &str| json!({"type": "image", "source": {"type": "base64", "media_type": kind, "data": "AA/+=="}});
    let large = format!("data:image/png;base64,{}", "A".repeat(IMAGE_BYTES_MAX / 3 * 4 + 8));
    let rows = [
        ("data:image/png;base64,AA/+==", base64("image/png")),
        ("data:image/JPG;charset=utf-8;BASE64,AA/+==", base64("image/jpeg")),
        ("data:image/gif;base64,AA/+==", base64("image/gif")),
        ("data:image/webp;base64,AA/+==", base64("image/webp")),
        ("data:image/tiff;base64,AA/+==", text(IMAGE_TYPE_NOTE)),
        ("data:image/png,AA", text(IMAGE_TYPE_NOTE)),
        ("data:image/png;base64,", text(IMAGE_TYPE_NOTE)),
        ("data:", text(IMAGE_TYPE_NOTE)),
        ("file:///etc/passwd", text(IMAGE_TYPE_NOTE)),
        (&large, text(IMAGE_SIZE_NOTE)),
        (
            "https://example.org/a.png?b=\"c\"",
            json!({"type": "image", "source": {"type": "url", "url": "https://example.org/a.png?b=\"c\""}}),
        ),
    ];
    for (url, expected) in rows {
        let found = messages(&content(url), unmarked());
        assert_eq!(
            found,
            json!([{"role": "user", "content": [text("look"), expected]}]),
            "{}",
            &url[..url.len().min(60)]
        );
    }
    let blind = Target { images: false, ..target(unmarked()) };
    let body = encode_for(&with_input(&content("data:image/png;base64,AA")), &blind);
    assert_eq!(body["messages"][0]["content"][1], text(stand_in::IMAGE_NOTE));

    // Some writers of JSON escape slashes.
    let escaped = br#"{"model":"m","input":[{"role":"user","content":[{"type":"input_image","image_url":"data:image\/png;base64,AA\/+=="}]}]}"#;
    let call = encode(&Request::parse(escaped).unwrap(), &target(unmarked())).unwrap();
    let body: Value = serde_json::from_slice(&call.body).unwrap();
    assert_eq!(body["messages"][0]["content"][0], base64("image/png"));
}

#[test]
fn calls_are_answered_in_the_next_message_before_anything_else() {
    check(
        json!([
            user("q"),
            assistant("I look."),
            call("c1"),
            call("c2"),
            output("c1"),
            output("c2"),
            user("steer"),
            assistant("Done."),
            user("next")
        ]),
        json!([
            said("q"),
            {"role": "assistant", "content": [text("I look."), tool_use("c1"), tool_use("c2")]},
            {"role": "user", "content": [result("c1"), result("c2"), text("steer")]},
            answered("Done."),
            said("next")
        ]),
    );
    check(
        json!([user("q"), call("c1"), output("c1"), call("c2"), output("c2")]),
        json!([said("q"), called(&["c1"]), returned(&["c1"]), called(&["c2"]), returned(&["c2"])]),
    );
    // Results that stand elsewhere are moved, and those of one turn are one message.
    check(
        json!([user("q"), call("c1"), call("c2"), output("c2"), user("steer"), output("c1")]),
        json!([
            said("q"), called(&["c1", "c2"]), {"role": "user", "content": [result("c1"), result("c2"), text("steer")]}
        ]),
    );
    check(
        json!([output("c1"), user("q"), call("c1"), user("r")]),
        json!([said("q"), called(&["c1"]), {"role": "user", "content": [result("c1"), text("r")]}]),
    );
}

#[test]
fn a_missing_result_is_filled_in_and_a_lost_one_left_out() {
    check(
        json!([user("q"), call("c1"), user("r")]),
        json!([
            said("q"),
            called(&["c1"]),
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": stand_in::MISSING_RESULT, "is_error": true},
                text("r")
            ]}
        ]),
    );
    check(
        json!([user("q"), output("lost"), assistant("a"), output("lost"), user("r")]),
        json!([said("q"), answered("a"), said("r")]),
    );
    check(
        json!([user("q"), call("c1"), output("c1"), output("c1")]),
        json!([said("q"), called(&["c1"]), returned(&["c1"])]),
    );
}

#[test]
fn ids_are_valid_and_unique() {
    let long = "x".repeat(CALL_ID_CHARS_MAX + 1);
    for (id, is_kept) in [
        ("toolu_01-A", true),
        (&*"y".repeat(CALL_ID_CHARS_MAX), true),
        (&long, false),
        ("functions.f:0", false),
        ("", false),
        ("é", false),
    ] {
        let messages = messages(&json!([user("q"), call(id), output(id)]), unmarked());
        let sent = messages[1]["content"][0]["id"].as_str().unwrap();
        assert_eq!(sent == id, is_kept, "{id}");
        assert!(is_kept || sent.starts_with("toolu_"), "{sent}");
        assert_eq!(messages[2]["content"][0]["tool_use_id"], sent);
    }
    let twice = json!([user("q"), call("c"), call("c"), output("c"), output("c"), call("c"), output("c")]);
    let found = messages(&twice, unmarked());
    let ids: std::collections::HashSet<&str> = [(1, 0), (1, 1), (3, 0)]
        .map(|(message, block)| found[message]["content"][block]["id"].as_str().unwrap())
        .into();
    assert_eq!(ids.len(), 3, "{found}");
    assert_eq!(found, messages(&twice, unmarked()), "derived ids are the same each time");

    // The upstream's own ids come back, as far as it would take them.
    let id = |call_id: &str, upstream: &str| SealedPart::UpstreamId {
        call_id: call_id.into(),
        upstream_id: upstream.into(),
    };
    let own = sealed(&[id("c1", "toolu_1"), id("c2", "functions.f:0")]);
    check(
        json!([user("q"), own, call("c1"), call("c2"), output("c1"), output("c2")]),
        json!([
            said("q"),
            called(&["toolu_1", "c2"]),
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "result of c1"}, result("c2")
            ]}
        ]),
    );
}

#[test]
fn inputs_are_objects() {
    let with = |item: Value| messages(&json!([user("q"), item]), unmarked())[1]["content"][0].take();
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
        let item = json!({"type": "function_call", "name": "f", "call_id": "c", "arguments": arguments});
        assert_eq!(with(item)["input"], expected, "{arguments}");
    }
    let patch = "*** Begin Patch\n+\"é\\n\"\t\u{1f}\n*** End Patch";
    for (item, name, input) in [
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
        let block = with(item);
        assert_eq!((block["name"].as_str().unwrap(), &block["input"]), (name, &input));
    }
}

#[test]
fn results() {
    let with = |output: Value| {
        let input = json!([user("q"), call("c"), {"type": "function_call_output", "call_id": "c", "output": output}]);
        messages(&input, unmarked())[2]["content"][0]["content"].take()
    };
    let part = |text: &str| json!({"type": "input_text", "text": text});
    let image = |data: &str| json!({"type": "input_image", "image_url": format!("data:image/png;base64,{data}")});
    let shown =
        |data: &str| json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}});
    for (result, expected) in [
        (json!("line\n\"quoted\"\t\u{1}"), json!("line\n\"quoted\"\t\u{1}")),
        (json!([part("one"), part(""), part("two\n"), part("three")]), json!("one\ntwo\nthree")),
        (json!(""), json!(stand_in::EMPTY_RESULT)),
        (json!(" \n"), json!(stand_in::EMPTY_RESULT)),
        (json!([]), json!(stand_in::EMPTY_RESULT)),
        (json!(null), json!(stand_in::EMPTY_RESULT)),
        (json!([part("")]), json!(stand_in::EMPTY_RESULT)),
        (json!([{"type": "input_image", "file_id": "f"}]), json!(stand_in::IMAGE_NOTE)),
        (json!([part("a"), {"type": "input_audio"}]), json!(format!("a\n{}", stand_in::AUDIO_NOTE))),
        (json!([image("AA")]), json!([shown("AA")])),
        (
            json!([part("a"), image("AA"), part(" "), {"type": "input_audio"}, image("BB"), part("b")]),
            json!([text("a"), shown("AA"), text(stand_in::AUDIO_NOTE), shown("BB"), text("b")]),
        ),
    ] {
        assert_eq!(with(result.clone()), expected, "{result}");
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
        &with_input(&json!([user("q"), search, {"type": "tool_search_output", "call_id": "c", "tools": found}])),
        &target(unmarked()),
    );
    assert_eq!(
        body["messages"][2]["content"][0]["content"],
        "Tools that can be called from now on: agents__spawn, close"
    );
    let names: Vec<&Value> = body["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect();
    assert_eq!(names, ["agents__spawn", "close"]);
}

#[test]
fn what_means_nothing_here_is_left_out() {
    check(
        json!([
            user("q"),
            {"type": "compaction", "encrypted_content": "blob"}, {"type": "compaction_trigger"},
            {"type": "item_reference", "id": "msg_1"}, {"type": "web_search_call", "id": "ws_1"},
            {"type": "image_generation_call", "id": "ig_1", "result": "AAAA"}, {"type": "brand_new", "x": [1]},
            {"type": "reasoning", "summary": [], "encrypted_content": "foreign"}, assistant(""),
            {"type": "agent_message", "author": "/root", "recipient": "/root/one", "content": [
                {"type": "input_text", "text": "Payload:"}, {"type": "encrypted_content", "encrypted_content": "Do \"it\"."}
            ]}
        ]),
        json!([{"role": "user", "content": [text("q"), text("Payload:"), text("Do \"it\".")]}]),
    );
}

#[test]
fn nothing_to_say_is_an_error() {
    for input in [
        json!([]),
        json!([{"type": "compaction_trigger"}]),
        json!([user(" ")]),
        json!([output("lost")]),
        json!([developer("d")]),
        json!([thought("t")]),
    ] {
        let error = encoded(&with_input(&input), &target(unmarked())).unwrap_err();
        let expected = "`input` in the request is not valid: there is no message in it that the provider could answer";
        assert_eq!(error.to_string(), expected);
    }
}

// ---- thinking

/// The `thinking` and `output_config` members, and the limit.
fn asked(profile: Profile, members: &Value) -> Value {
    let mut request = with_input(&json!([user("q")]));
    for (name, value) in members.as_object().unwrap() {
        request[name] = value.clone();
    }
    let body = encode_for(&request, &target(profile));
    json!([body["max_tokens"], body["thinking"], body["output_config"]])
}

#[test]
fn no_longer_answer_is_asked_for_than_the_model_gives() {
    let mut profile = Profile { thinking: Thinking::Budget, ..unmarked() };
    assert!(profile.apply(&Repair::OutputTokens(8_192)));
    let budget = json!({"type": "enabled", "budget_tokens": 4_096});
    let high = json!({"reasoning": {"effort": "high"}});
    assert_eq!(asked(profile.clone(), &high), json!([8_192, budget, null]), "thinking counts too");
    assert_eq!(asked(profile.clone(), &json!({"max_output_tokens": 10_000}))[0], 8_192);
    assert_eq!(asked(profile, &json!({"max_output_tokens": 700}))[0], 700);
}

#[test]
fn thinking_is_asked_for_as_the_profile_says() {
    let efforts = ["none", "minimal", "low", "medium", "high", "xhigh", "max", "banana"];
    let effort = |word: &str| json!({"reasoning": {"effort": word, "summary": "auto"}});
    let disabled = || json!({"type": "disabled"});
    let with_budget = |tokens: u64| json!({"type": "enabled", "budget_tokens": tokens});

    for word in efforts {
        assert_eq!(asked(unmarked(), &effort(word)), json!([OUTPUT_TOKENS, null, null]), "{word}");
    }
    let budget = || Profile { thinking: Thinking::Budget, ..unmarked() };
    let expected = [
        disabled(),
        disabled(),
        with_budget(4_000),
        with_budget(10_000),
        with_budget(24_000),
        with_budget(24_000),
        with_budget(24_000),
        Value::Null,
    ];
    for (word, expected) in efforts.iter().zip(expected) {
        assert_eq!(asked(budget(), &effort(word)), json!([OUTPUT_TOKENS, expected, null]), "{word}");
    }
    let large = Profile { output_tokens: 64_000, ..budget() };
    assert_eq!(asked(large, &effort("max")), json!([64_000, with_budget(32_000), null]));

    // The limit of the request holds, and thinking has to live with it.
    for (limit, expected) in
        [(20_000, with_budget(12_000)), (4_096, with_budget(2_048)), (2_048, with_budget(1_024)), (2_046, Value::Null)]
    {
        let members = json!({"reasoning": {"effort": "high"}, "max_output_tokens": limit});
        assert_eq!(asked(budget(), &members), json!([limit, expected, null]));
    }
    assert_eq!(asked(budget(), &json!({"max_output_tokens": 0})), json!([OUTPUT_TOKENS, null, null]));

    let adaptive = || Profile { thinking: Thinking::Adaptive, ..unmarked() };
    let freely = || json!({"type": "adaptive", "display": "summarized"});
    for (word, sent) in [("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "high"), ("max", "high")] {
        assert_eq!(asked(adaptive(), &effort(word)), json!([OUTPUT_TOKENS, freely(), {"effort": sent}]), "{word}");
    }
    for word in ["none", "minimal"] {
        assert_eq!(asked(adaptive(), &effort(word)), json!([OUTPUT_TOKENS, disabled(), null]));
    }
    for members in [json!({}), effort("banana")] {
        assert_eq!(asked(adaptive(), &members), json!([OUTPUT_TOKENS, null, null]));
    }
    let with_levels = |efforts: &[Effort]| Profile { efforts: efforts.into(), ..adaptive() };
    for (levels, word, sent) in [
        (&[Effort::Low, Effort::High, Effort::Max][..], "xhigh", json!({"effort": "high"})),
        (&[Effort::Low, Effort::High, Effort::Max], "max", json!({"effort": "max"})),
        (&[Effort::XHigh, Effort::Max], "xhigh", json!({"effort": "xhigh"})),
        (&[Effort::High], "low", json!({"effort": "high"})),
        (&[], "high", Value::Null),
    ] {
        assert_eq!(asked(with_levels(levels), &effort(word))[2], sent, "{levels:?} {word}");
    }
    let quietly = json!({"reasoning": {"effort": "high"}});
    assert_eq!(asked(adaptive(), &quietly)[1], json!({"type": "adaptive", "display": "omitted"}));
    let silent = Profile { omit: vec!["display".into()], ..adaptive() };
    assert_eq!(asked(silent, &quietly)[1], json!({"type": "adaptive"}));
}

const OUTPUT_TOKENS: u64 = crate::anthropic::OUTPUT_TOKENS_DEFAULT;

#[test]
fn thinking_allows_no_temperature_and_no_forced_tool() {
    let members = json!({
        "reasoning": {"effort": "high"}, "temperature": 0.5, "top_p": 0.9, "tool_choice": "required",
        "tools": [{"type": "function", "name": "f"}]
    });
    for (thinking, temperature, choice) in [
        (Thinking::Unasked, json!(0.5), json!({"type": "any"})),
        (Thinking::Budget, Value::Null, Value::Null),
        (Thinking::Adaptive, Value::Null, Value::Null),
    ] {
        let mut request = with_input(&json!([user("q")]));
        for (name, value) in members.as_object().unwrap() {
            request[name] = value.clone();
        }
        let body = encode_for(&request, &target(Profile { thinking, ..unmarked() }));
        assert_eq!((&body["temperature"], &body["tool_choice"], body.get("top_p")), (&temperature, &choice, None));
    }
}

fn thinking(input: &Value, thinking: Thinking) -> Value {
    let mut request = with_input(input);
    request["reasoning"] = json!({"effort": "low"});
    encode_for(&request, &target(Profile { thinking, ..unmarked() }))
}

const ALL: [Thinking; 3] = [Thinking::Unasked, Thinking::Budget, Thinking::Adaptive];

#[test]
fn thoughts_go_back_as_they_came_and_where_they_were() {
    let redacted = json!({"type": "redacted_thinking", "data": "Em+/="});
    let odd = json!({"type": "thinking", "thinking": "a \"b\"\n🦀\u{1}", "signature": "S+/=="});
    let omitted = json!({"type": "thinking", "thinking": "", "signature": "S"});
    let several = sealed(&[
        SealedPart::ThinkingBlocks(json!([odd, redacted]).to_string()),
        SealedPart::UpstreamId { call_id: "c1".into(), upstream_id: "toolu_1".into() },
        SealedPart::ThinkingBlocks(json!([omitted]).to_string()),
    ]);
    let input = json!([
        user("q"),
        several,
        assistant("I look."),
        call("c1"),
        thought("two"),
        call("c2"),
        thought("at the end"),
        output("c1"),
        output("c2"),
        thought("three"),
        call("c3"),
        output("c3")
    ]);
    for mode in ALL {
        let body = thinking(&input, mode);
        assert_eq!(
            body["messages"],
            json!([
                said("q"),
                {"role": "assistant", "content": [
                    odd, redacted, omitted, text("I look."), tool_use("toolu_1"), signed("two"), tool_use("c2")
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "result of c1"}, result("c2")
                ]},
                {"role": "assistant", "content": [signed("three"), tool_use("c3")]},
                returned(&["c3"])
            ]),
            "{mode:?}"
        );
    }
}

#[test]
fn a_thought_alone_is_no_message() {
    for mode in ALL {
        let input = json!([user("q"), thought("t"), user("r"), thought("u"), assistant(" ")]);
        assert_eq!(thinking(&input, mode)["messages"], json!([{"role": "user", "content": [text("q"), text("r")]}]));
    }
}

#[test]
fn thoughts_of_others_are_left_out() {
    let unsigned = sealed(&[SealedPart::ThinkingBlocks(r#"[{"type":"thinking","thinking":"t"}]"#.into())]);
    let empty = sealed(&[SealedPart::ThinkingBlocks(r#"[{"type":"thinking","thinking":"t","signature":""}]"#.into())]);
    let half = sealed(&[SealedPart::ThinkingBlocks(json!([signed("t"), {"type": "thinking"}]).to_string())]);
    let garbage = sealed(&[SealedPart::ThinkingBlocks("no JSON".into())]);
    let unknown = json!({"type": "reasoning", "summary": [], "content": null, "encrypted_content": "gAAAA"});
    for lost in [foreign("t"), unknown, unsigned.clone(), empty, half, garbage] {
        let input = json!([user("q"), lost, call("c"), output("c")]);
        for mode in ALL {
            let body = thinking(&input, mode);
            assert_eq!(body["messages"], json!([said("q"), called(&["c"]), returned(&["c"])]), "{mode:?} {lost}");
            // The loop began without a thought that could be shown, so it has to end without.
            let expected = match mode {
                Thinking::Unasked => Value::Null,
                Thinking::Budget => json!({"type": "disabled"}),
                Thinking::Adaptive => json!({"type": "adaptive", "display": "omitted"}),
            };
            assert_eq!(body["thinking"], expected, "{lost}");
        }
    }
    // Servers that do not sign take their thoughts back as they are.
    let profile = Profile { unsigned_thinking: true, ..unmarked() };
    let call =
        encoded(&with_input(&json!([user("q"), unsigned, assistant("a"), user("r")])), &target(profile)).unwrap();
    let body: Value = serde_json::from_slice(&call.body).unwrap();
    let block = json!({"type": "thinking", "thinking": "t"});
    assert_eq!(body["messages"][1]["content"], json!([block, text("a")]));
}

#[test]
fn thoughts_can_be_forgotten() {
    let id = SealedPart::UpstreamId { call_id: "c".into(), upstream_id: "toolu_1".into() };
    let thought = sealed(&[SealedPart::ThinkingBlocks(json!([signed("t")]).to_string()), id]);
    let mut request = with_input(&json!([user("q"), thought, call("c"), output("c")]));
    request["reasoning"] = json!({"effort": "low"});
    for (thinking, kind) in
        [(Thinking::Unasked, None), (Thinking::Budget, Some("disabled")), (Thinking::Adaptive, Some("adaptive"))]
    {
        let body = encode_for(&request, &target(Profile { thinking, replay_thinking: false, ..unmarked() }));
        assert_eq!(body["messages"][1], called(&["toolu_1"]), "ids are no thoughts");
        assert_eq!(body["thinking"]["type"].as_str(), kind);
    }
}

#[test]
fn a_loop_that_lost_its_thoughts_goes_on_without_and_the_next_one_with() {
    let notice = json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": "Waiting."}]});
    let on = |input: &Value| thinking(input, Thinking::Budget)["thinking"]["type"] == "enabled";
    let rows = [
        // The first turn, and any after an answer.
        (json!([user("q")]), true),
        (json!([user("q"), foreign("t"), call("c"), output("c"), assistant("a"), user("r")]), true),
        (json!([user("q"), call("c"), output("c"), foreign("t"), assistant("a"), user("r")]), true),
        (json!([user("q"), foreign("t"), call("c"), output("c"), assistant("a")]), true),
        // In a loop.
        (json!([user("q"), thought("t"), call("c"), output("c")]), true),
        (json!([user("q"), thought("t"), call("c"), output("c"), thought("u"), call("d"), output("d")]), true),
        (json!([user("q"), notice, thought("t"), call("c"), output("c")]), false),
        (json!([user("q"), call("c"), output("c")]), false),
        (json!([user("q"), assistant("text first"), thought("t"), call("c"), output("c")]), false),
        (json!([user("q"), assistant(" "), thought("t"), call("c"), output("c")]), true),
        (json!([user("q"), foreign("t"), call("c"), output("c"), thought("u"), call("d"), output("d")]), false),
        // What has nothing between it is one message, which has to begin with the thought.
        (json!([user("q"), assistant("text"), user(" "), thought("t"), call("c"), output("c")]), false),
        (json!([user("q"), thought("t"), assistant("text"), user(" "), call("c"), output("c")]), true),
        (json!([user("q"), assistant("text"), user("r"), thought("t"), call("c"), output("c")]), true),
        // Models that do not think between calls begin a loop with a thought, and that is all.
        (json!([user("q"), thought("t"), call("c"), output("c"), call("d"), output("d")]), true),
        (json!([user("q"), thought("t"), call("c"), output("c"), foreign("u"), call("d"), output("d")]), false),
        // Words of the user between results begin a loop, but may not end the one before.
        (
            json!([user("q"), thought("t"), call("c"), output("c"), user("s"), thought("u"), call("d"), output("d")]),
            true,
        ),
        (json!([user("q"), thought("t"), call("c"), output("c"), user("s"), call("d"), output("d")]), false),
        (json!([user("q"), foreign("t"), call("c"), output("c"), user("s"), user("s")]), false),
        (
            json!([user("q"), foreign("t"), call("c"), output("c"), user(" "), thought("u"), call("d"), output("d")]),
            false,
        ),
        (json!([user("q"), foreign("t"), call("c"), output("c"), thought("alone"), user("s")]), false),
    ];
    for (input, expected) in rows {
        assert_eq!(on(&input), expected, "{input:#}");
    }
}

// ---- options and tools

/// A request, and its body without the messages.
fn options(members: &Value, profile: Profile) -> Value {
    let mut request = with_input(&json!([user("q")]));
    for (name, value) in members.as_object().unwrap() {
        request[name] = value.clone();
    }
    let mut body = encode_for(&request, &target(profile));
    body.as_object_mut()
        .unwrap()
        .retain(|name, _| !matches!(name.as_str(), "messages" | "model" | "stream" | "max_tokens"));
    body
}

#[test]
fn only_what_was_asked_for_and_nothing_private() {
    assert_eq!(options(&json!({}), unmarked()), json!({}));
    let everything = json!({
        "client_metadata": {"x": "/home/dev"}, "prompt_cache_key": "k", "store": true, "include": ["x"], "user": "u",
        "service_tier": "flex", "metadata": {"a": "b"}, "truncation": "auto", "background": false, "safety_identifier": "s",
        "previous_response_id": "resp_1", "text": {"verbosity": "low"}, "reasoning": {"effort": "high", "summary": "auto"},
        "tool_choice": "required", "parallel_tool_calls": false, "tools": [], "stream": false
    });
    assert_eq!(options(&everything, unmarked()), json!({}));
    for (members, expected) in [
        (json!({"temperature": 0.5, "top_p": 1}), json!({"temperature": 0.5})),
        (json!({"temperature": 1.7}), json!({"temperature": 1})),
        (json!({"top_p": 0.5}), json!({"top_p": 0.5})),
    ] {
        assert_eq!(options(&members, unmarked()), expected);
    }
}

#[test]
fn form_of_the_answer() {
    let schema = json!({"type": "object", "properties": {"encrypted": {"type": "string", "encrypted": true}}});
    let members = json!({"text": {"format": {"type": "json_schema", "name": "out", "strict": true, "schema": schema}}});
    let clean = json!({"type": "object", "properties": {"encrypted": {"type": "string"}}});
    let knows = || Profile { json_schema: true, ..unmarked() };
    assert_eq!(
        options(&members, knows()),
        json!({"output_config": {"format": {"type": "json_schema", "schema": clean}}})
    );
    let mut thinks = members.clone();
    thinks["reasoning"] = json!({"effort": "low"});
    let body = options(&thinks, Profile { thinking: Thinking::Adaptive, ..knows() });
    assert_eq!(body["output_config"], json!({"effort": "low", "format": {"type": "json_schema", "schema": clean}}));

    // As an instruction, behind what stays the same.
    let mut request = with_input(&json!([developer("d"), user("q")]));
    request["text"] = members["text"].clone();
    let body = encode_for(&request, &target(Profile::default()));
    assert_eq!(body["system"][0], json!({"type": "text", "text": "d", "cache_control": {"type": "ephemeral"}}));
    let instruction = body["system"][1]["text"].as_str().unwrap();
    let (_, written) = instruction.rsplit_once('\n').unwrap();
    assert_eq!(serde_json::from_str::<Value>(written).unwrap(), clean);
    assert_eq!(body["system"][1].get("cache_control"), None);

    let any = options(&json!({"text": {"format": {"type": "json_object"}}}), knows());
    assert!(any["system"][0]["text"].as_str().unwrap().contains("one JSON object"), "{any}");
    assert_eq!(options(&json!({"text": {"format": {"type": "text"}}}), knows()), json!({}));
}

fn tools() -> Value {
    json!([
        {"type": "function", "name": "plain", "description": "Does \"it\".\n", "strict": false,
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": false}},
        {"type": "function", "name": "bare", "strict": true},
        {"type": "custom", "name": "apply_patch", "description": "Patches.",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: \"x\"\n"}},
        {"type": "namespace", "name": "mcp__lab", "tools": [{"type": "function", "name": "echo", "parameters": {}}]},
        {"type": "tool_search", "execution": "client", "description": "Finds.", "parameters": {"type": "object"}},
        {"type": "local_shell"},
        {"type": "web_search"}
    ])
}

#[test]
fn every_tool_is_offered_by_its_alias() {
    let custom = json!({
        "type": "object",
        "properties": {"input": {"type": "string", "description": "The complete text, exactly as the tool expects it."}},
        "required": ["input"]
    });
    let empty = json!({"type": "object", "properties": {}});
    let expected = json!([
        {"name": "plain", "description": "Does \"it\".\n",
            "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": false}},
        {"name": "bare", "input_schema": empty},
        {"name": "apply_patch",
            "description": "Patches.\n\nCall it with one argument, `input`: a string that holds the complete text. The text must match this lark grammar:\nstart: \"x\"\n",
            "input_schema": custom},
        {"name": "mcp__lab__echo", "input_schema": empty},
        {"name": "tool_search", "description": "Finds.", "input_schema": empty},
        {"name": "local_shell", "description": "Runs a command on the user's machine.",
            "input_schema": serde_json::from_str::<Value>(offer::LOCAL_SHELL_PARAMETERS).unwrap()}
    ]);
    assert_eq!(options(&json!({"tools": tools()}), unmarked()), json!({"tools": expected}));

    let strict = options(&json!({"tools": tools()}), Profile { strict_tools: true, ..unmarked() });
    let strict: Vec<&Value> = strict["tools"].as_array().unwrap().iter().map(|tool| &tool["strict"]).collect();
    assert_eq!(strict[..3], [&Value::Null, &json!(true), &Value::Null]);
}

#[test]
fn the_web_is_searched_where_both_sides_want_it() {
    let hosted = |access: Value| json!([{"type": "web_search", "external_web_access": access}]);
    let able = || Profile { web_search: true, ..unmarked() };
    let search = json!([{"type": "web_search_20250305", "name": "web_search"}]);
    for (tools, profile, expected) in [
        (hosted(json!(true)), able(), search.clone()),
        (json!([{"type": "web_search"}]), able(), search),
        (hosted(json!(false)), able(), Value::Null),
        (hosted(json!(true)), unmarked(), Value::Null),
        (json!([]), able(), Value::Null),
    ] {
        assert_eq!(options(&json!({"tools": tools}), profile)["tools"], expected, "{tools}");
    }
    let body = options(&json!({"tools": tools()}), able());
    assert_eq!((&body["tools"][0]["name"], body["tools"].as_array().unwrap().len()), (&json!("web_search"), 7));
    // A tool of the client's own goes before.
    let own = json!([{"type": "web_search"}, {"type": "function", "name": "web_search"}]);
    let body = options(&json!({"tools": own}), able());
    assert_eq!((body["tools"].as_array().unwrap().len(), body["tools"][0].get("type")), (1, None));
}

#[test]
fn alternatives_at_the_top_of_a_schema_are_refused_and_so_not_sent() {
    let parameters = json!({
        "type": "object",
        "properties": {"anyOf": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "oneOf": [{"required": ["a"]}], "anyOf": [], "allOf": [{}], "required": ["anyOf"]
    });
    let body = options(&json!({"tools": [{"type": "function", "name": "f", "parameters": parameters}]}), unmarked());
    assert_eq!(
        body["tools"][0]["input_schema"],
        json!({
            "type": "object",
            "properties": {"anyOf": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
            "required": ["anyOf"]
        })
    );
}

#[test]
fn tool_choices() {
    let named = |name: &str| json!({"type": "tool", "name": name});
    for (choice, expected) in [
        (json!(null), Value::Null),
        (json!("auto"), Value::Null),
        (json!("none"), json!({"type": "none"})),
        (json!("required"), json!({"type": "any"})),
        (json!("something"), Value::Null),
        (json!({"type": "function", "name": "plain"}), named("plain")),
        (json!({"type": "function", "name": "echo", "namespace": "mcp__lab"}), named("mcp__lab__echo")),
        (json!({"type": "custom", "name": "apply_patch"}), named("apply_patch")),
        (json!({"type": "tool_search"}), named("tool_search")),
        (json!({"type": "function", "name": "unknown"}), Value::Null),
        (json!({"type": "web_search"}), Value::Null),
        (json!({"type": "allowed_tools", "mode": "required", "tools": []}), json!({"type": "any"})),
    ] {
        let mut members = json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": true});
        assert_eq!(options(&members, unmarked())["tool_choice"], expected, "{choice}");
        let forbidden = Profile { omit: vec!["tool_choice".into()], ..unmarked() };
        let without = options(&members, forbidden);
        assert_eq!(without.get("tool_choice"), None);
        assert_eq!(without.get("tools").is_none(), choice == "none", "not offering any is the way to forbid them");

        members["parallel_tool_calls"] = false.into();
        let mut one = if expected.is_null() { json!({"type": "auto"}) } else { expected };
        if choice != "none" {
            one["disable_parallel_tool_use"] = true.into();
        }
        assert_eq!(options(&members, unmarked())["tool_choice"], one, "{choice}");
    }
}

#[test]
fn calls_of_the_past_need_tools() {
    let calls = json!([
        user("q"), call("c1"), call("c2"),
        {"type": "custom_tool_call", "call_id": "c3", "name": "echo", "namespace": "mcp__lab", "input": ""}, user("r")
    ]);
    let body = encode_for(&with_input(&calls), &target(Profile::default()));
    let tool = |name: &str| json!({"name": name, "input_schema": {"type": "object"}});
    assert_eq!(body["tools"], json!([tool("f"), tool("mcp__lab__echo")]));
    assert_eq!(body["tool_choice"], json!({"type": "none"}));
    let plain = encode_for(&with_input(&json!([user("q")])), &target(Profile::default()));
    assert_eq!((plain.get("tools"), plain.get("tool_choice")), (None, None));
}

#[test]
fn what_repeats_is_marked() {
    let mark = json!({"type": "ephemeral"});
    let places = |request: &Value| -> Vec<String> {
        fn walk(value: &Value, path: &str, found: &mut Vec<String>) {
            if value.get("cache_control").is_some() {
                found.push(path.to_owned());
            }
            match value {
                Value::Array(elements) => {
                    for (index, element) in elements.iter().enumerate() {
                        walk(element, &format!("{path}.{index}"), found);
                    }
                }
                Value::Object(members) => {
                    for (name, member) in members {
                        walk(member, &format!("{path}.{name}"), found);
                    }
                }
                _ => {}
            }
        }
        let mut found = Vec::new();
        walk(&encode_for(request, &target(Profile::default())), "", &mut found);
        found
    };
    let mut request = with_input(&json!([
        developer("one"),
        developer("two"),
        user("q"),
        thought("t"),
        call("c"),
        output("c"),
        user("steer"),
        assistant("a"),
        user("b"),
        user("c")
    ]));
    request["tools"] = tools();
    assert_eq!(places(&request), [".system.1", ".messages.2.content.1", ".messages.4.content.1", ".tools.5"]);
    assert_eq!(encode_for(&request, &target(Profile::default()))["tools"][5]["cache_control"], mark);
    assert_eq!(places(&with_input(&json!([user("q")]))), [".messages.0.content.0"]);
    assert_eq!(
        places(&with_input(&json!([user("q"), call("c"), output("c")]))),
        [".messages.0.content.0", ".messages.2.content.0"]
    );
    assert!(places(&with_input(&json!([user("q"), assistant("a")]))).contains(&".messages.2.content.0".to_owned()));
}

/// What was sent stays as it was when the conversation goes on, or nothing could be read from the cache.
#[test]
fn a_longer_conversation_begins_as_the_shorter_one_did() {
    let items = [
        developer("d"),
        user("q"),
        thought("t"),
        call("c1"),
        call("c2"),
        output("c1"),
        output("c2"),
        thought("u"),
        assistant("a"),
        call("c3"),
        output("c3"),
        assistant("b"),
        user("r"),
        call("c4"),
        output("c4"),
    ];
    let mut before: Vec<Value> = Vec::new();
    for length in [2, 7, 11, 13, 15] {
        let profile = Profile { thinking: Thinking::Adaptive, ..unmarked() };
        let mut request = with_input(&json!(items[..length]));
        request["reasoning"] = json!({"effort": "high"});
        let body = encode_for(&request, &target(profile));
        let now = body["messages"].as_array().unwrap();
        assert_eq!(now[..before.len()], before[..], "at {length}");
        before.clone_from(now);
    }
}

#[test]
fn refusals_are_learned() {
    let full = || Profile { thinking: Thinking::Adaptive, json_schema: true, strict_tools: true, ..Profile::default() };
    let changed = |repair: Repair, expected: Profile| {
        let mut profile = full();
        let differs = profile.apply(&repair);
        assert_eq!((differs, &profile), (expected != full(), &expected), "{repair:?}");
        assert!(!profile.apply(&repair), "{repair:?}: asking again changes nothing");
    };
    let omits = |name: &str| Profile { omit: vec![name.into()], ..full() };
    for (parameter, expected) in [
        ("temperature", omits("temperature")),
        ("top_p", omits("top_p")),
        ("tool_choice", omits("tool_choice")),
        ("tool_choice.auto", omits("tool_choice")),
        ("tool_choice.disable_parallel_tool_use", omits("disable_parallel_tool_use")),
        ("thinking.adaptive.display", omits("display")),
        ("thinking.adaptive", Profile { thinking: Thinking::Unasked, ..full() }),
        ("thinking", Profile { thinking: Thinking::Unasked, ..full() }),
        ("output_config.effort", Profile { efforts: vec![], ..full() }),
        ("output_config.format.schema", Profile { json_schema: false, ..full() }),
        ("output_config", Profile { efforts: vec![], json_schema: false, ..full() }),
        ("tools.0.custom.strict", Profile { strict_tools: false, ..full() }),
        ("system.1.cache_control", Profile { cache: false, ..full() }),
        ("messages.0.content.2.text.cache_control.ttl", Profile { cache: false, ..full() }),
        ("messages", full()),
        ("", full()),
    ] {
        changed(Repair::Drop(parameter.into()), expected);
    }
    changed(Repair::CleanSchema, Profile { plain_schemas: true, ..full() });
    changed(Repair::ForgetThinking, Profile { replay_thinking: false, ..full() });
    let efforts = Repair::Efforts(["none", "low", "max"].map(str::to_owned).to_vec());
    changed(efforts, Profile { efforts: vec![Effort::Low, Effort::Max], ..full() });
    changed(Repair::Efforts(Vec::new()), Profile { thinking: Thinking::Unasked, ..full() });
    changed(Repair::ThinkByBudget, Profile { thinking: Thinking::Budget, ..full() });
    changed(Repair::Drop("effort".into()), Profile { efforts: vec![], ..full() });
    let mut by_budget = Profile { thinking: Thinking::Budget, ..full() };
    assert!(by_budget.apply(&Repair::ThinkAdaptively));
    assert_eq!(by_budget, full());
    for repair in [
        Repair::MergeSystem,
        Repair::NoImages,
        Repair::StringContent,
        Repair::ReasoningContentRequired,
        Repair::RefreshToken,
        Repair::CreateSession,
        Repair::StartNewRun,
    ] {
        changed(repair, full());
    }

    // What is left out is really left out.
    let everything = json!({
        "tools": tools(), "parallel_tool_calls": false, "temperature": 1, "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    });
    for parameter in ["thinking", "output_config", "tool_choice", "tools.1.strict", "system.0.cache_control"] {
        let mut profile = full();
        assert!(profile.apply(&Repair::Drop(parameter.into())));
        let body = options(&everything, profile).to_string();
        let last = format!("\"{}\"", parameter.rsplit('.').next().unwrap());
        assert!(
            options(&everything, full()).to_string().contains(&last) && !body.contains(&last),
            "{parameter}: {body}"
        );
    }
}

#[test]
fn the_call_is_plain_data() {
    let call = encoded(&with_input(&json!("hi")), &target(Profile::default())).unwrap();
    let body = r#"{"model":"claude-sonnet-4-6","max_tokens":32000,"messages":[{"role":"user","content":[{"type":"text","text":"hi","cache_control":{"type":"ephemeral"}}]}],"stream":true}"#;
    let expected = Call {
        path: "/messages".into(),
        query: None,
        headers: vec![
            ("content-type", "application/json".into()),
            ("accept", "text/event-stream".into()),
            ("anthropic-version", "2023-06-01".into()),
        ],
        body: body.into(),
        framing: Framing::Sse,
    };
    assert_eq!(call, expected);

    let betas = Profile { betas: vec!["a-1".into(), "b-2".into()], ..Profile::default() };
    let call = encoded(&with_input(&json!("hi")), &target(betas)).unwrap();
    assert_eq!(call.headers[3], ("anthropic-beta", "a-1,b-2".to_owned()));
}

/// Requests of a real Codex, with what each becomes.
#[test]
fn recorded_requests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/codex-requests");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder.join("anthropic"));
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
        let usual = Profile { thinking: Thinking::Adaptive, json_schema: true, ..Profile::default() };
        let body = encode_for(&fixture["body"], &target(usual));
        for secret in ["installation_id", "latest_git_commit_hash", "prompt_cache_key", "encrypted_content"] {
            assert!(!body.to_string().contains(secret), "{secret} in {}", path.display());
        }
        settings.set_description(fixture["about"].as_str().unwrap());
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        settings.bind(|| insta::assert_json_snapshot!(name, body));
        for images in [true, false] {
            let other =
                Profile { thinking: Thinking::Budget, plain_schemas: true, prefill: true, ..Profile::default() };
            encode_for(&fixture["body"], &Target { images, ..target(other) });
        }
    }
    assert!(count >= 36, "only {count} recorded requests found");
}

/// Any item, wrong ones included, with few ids, so that they meet.
fn any_item() -> impl Strategy<Value = Value> {
    let id = || prop::sample::select(vec!["a", "b", "c", "functions.f:0", ""]);
    let text =
        || prop::sample::select(vec!["", " \n", "x", "x \n", "\"\\\n\u{1}🦀", "{}", "{\"a\":", "{\"b\": \"\\\"\"}"]);
    prop_oneof![
        (prop::sample::select(vec!["user", "assistant", "assistant", "developer", "system"]), text())
            .prop_map(|(role, text)| json!({"type": "message", "role": role, "content": text})),
        (id(), text()).prop_map(|(id, text)| json!({"type": "function_call", "call_id": id, "name": "f.g", "arguments": text})),
        (id(), text()).prop_map(|(id, text)| json!({"type": "custom_tool_call", "call_id": id, "name": "p", "input": text})),
        (id(), text()).prop_map(|(id, text)| json!({"type": "tool_search_call", "call_id": id, "arguments": {"q": text}})),
        id().prop_map(|id| json!({"type": "local_shell_call", "call_id": id, "action": {"command": ["ls"]}})),
        (id(), text()).prop_map(|(id, text)| json!({"type": "function_call_output", "call_id": id, "output": text})),
        (id(), text()).prop_map(|(id, text)| json!({"type": "custom_tool_call_output", "call_id": id, "output": [
            {"type": "input_text", "text": text}, {"type": "input_image", "image_url": "data:image/png;base64,AA"}
        ]})),
        (id(), text()).prop_map(|(id, name)| json!({"type": "tool_search_output", "call_id": id, "tools": [
            {"type": "function", "name": name}
        ]})),
        text().prop_map(thought),
        text().prop_map(foreign),
        (id(), id(), text()).prop_map(|(id, upstream, text)| sealed(&[
            SealedPart::ThinkingBlocks(text.into()),
            SealedPart::ReasoningContent(text.into()),
            SealedPart::UpstreamId { call_id: id.into(), upstream_id: upstream.into() },
        ])),
        text().prop_map(|text| json!({"type": "agent_message", "content": [{"type": "encrypted_content", "encrypted_content": text}]})),
        Just(json!({"type": "message", "role": "user", "content": [{"type": "input_hologram"}]})),
        Just(json!({"type": "compaction", "encrypted_content": "x"})),
        Just(json!({"type": "unheard_of"})),
    ]
}

fn any_profile() -> impl Strategy<Value = Profile> {
    (any::<[bool; 4]>(), prop::sample::select(ALL.to_vec())).prop_map(|(flags, thinking)| Profile {
        thinking,
        cache: flags[0],
        prefill: flags[1],
        plain_schemas: flags[2],
        json_schema: flags[3],
        ..Profile::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_conversation_becomes_one_that_anthropic_takes(
        items in prop::collection::vec(any_item(), 0..14),
        profile in any_profile(),
        effort in prop::sample::select(vec!["none", "low", "high", "?"]),
        images: bool,
    ) {
        let target = Target { images, ..target(profile) };
        let mut request = with_input(&items.clone().into());
        request["reasoning"] = json!({"effort": effort});
        // With any end, as long as there is something to answer.
        if encoded(&request, &target).is_ok() {
            encode_for(&request, &target);
        }

        let mut items = items;
        items.push(user("the last word"));
        request["input"] = items.into();
        let body = encode_for(&request, &target);
        prop_assert_eq!(&body, &encode_for(&request, &target));
        // The user's last word is not buried under repairs.
        let last = body["messages"].as_array().unwrap().last().unwrap();
        let block = last["content"].as_array().unwrap().last().unwrap();
        prop_assert_eq!((&last["role"], &block["text"]), (&json!("user"), &json!("the last word")));
    }
}
