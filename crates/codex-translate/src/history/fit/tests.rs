//! Each rule by a row, and any conversation in any window through both encoders.

use std::borrow::Cow;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{Call, anthropic, chat};

fn target(context_window: u64) -> Target {
    Target {
        context_window,
        anthropic: anthropic::Profile { cache: false, ..anthropic::Profile::default() },
        seal_key: [3; 32],
        ..Target::new("p", "m")
    }
}

fn message(role: &str, text: &str) -> Value {
    json!({"type": "message", "role": role, "content": text})
}

fn user(text: &str) -> Value {
    message("user", text)
}

fn call(id: &str) -> Value {
    json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"})
}

fn output(id: &str, output: &Value) -> Value {
    json!({"type": "function_call_output", "call_id": id, "output": output})
}

fn body(input: &[Value]) -> Vec<u8> {
    json!({"model": "m", "input": input}).to_string().into_bytes()
}

/// The conversation as it is encoded, one line for each item: what is said, or the length of a result.
fn fitted(input: &[Value], target: &Target) -> Vec<String> {
    let body = body(input);
    let request = Request::parse(&body).unwrap();
    let definitions = tools::offered(&request);
    let edits = Edits::new(&request, target, &definitions, true);
    let text = |content: Content<'_>| content.texts().map(Str::decode).collect::<Vec<Cow<'_, str>>>().concat();
    let items = edits.apply(&request.input);
    let line = |item: &Item<'_>| match item {
        Item::Message(message) => format!("{:?} {}", message.role, text(message.content)),
        Item::AgentMessage(message) => format!("Agent {}", text(message.content)),
        Item::ToolCall(call) => format!("call {}", call.call_id),
        Item::ToolOutput(output) => match &output.result {
            ToolResult::Content(content) => {
                let images = content.parts().filter(|part| matches!(part, Part::Image { .. })).count();
                let images = if images > 0 { format!(" +{images}") } else { String::new() };
                format!("output {} {}{images}", output.call_id, text(*content).chars().count())
            }
            ToolResult::Tools(found) => format!("output {} found {}", output.call_id, found.len()),
        },
        Item::Reasoning(_) => "reasoning".to_owned(),
        other => format!("{other:?}"),
    };
    items.iter().map(line).map(|line| line.chars().take(SHOWN_CHARS).collect()).collect()
}

/// Most characters of a line that are shown and compared.
const SHOWN_CHARS: usize = 30;

/// The line of the note that stands for what was left out.
fn note() -> String {
    format!("User {}", stand_in::LEFT_OUT_NOTE).chars().take(SHOWN_CHARS).collect()
}

/// Conversations are about this long unless a row says otherwise.
const LONG: usize = 40_000;

fn long() -> Value {
    "x".repeat(LONG).into()
}

#[test]
fn what_fits_is_left_as_it_is() {
    let mut input = vec![user("q")];
    for number in 0..9 {
        input.extend([call(&number.to_string()), output(&number.to_string(), &long())]);
    }
    let whole: Vec<String> = fitted(&input, &target(0));
    assert_eq!(whole[2], format!("output 0 {LONG}"));
    // Nine results of ten thousand tokens each, and some more.
    assert_eq!(fitted(&input, &target(200_000)), whole);
    assert_ne!(fitted(&input, &target(90_000)), whole);
}

#[test]
fn the_answer_has_room() {
    let window_for = |members: Value| {
        let mut request = json!({"model": "m", "input": "hi"});
        request.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        let body = request.to_string();
        tokens_max(200_000, &Request::parse(body.as_bytes()).unwrap())
    };
    assert_eq!(window_for(json!({})), 200_000 - ANSWER_TOKENS);
    assert_eq!(window_for(json!({"max_output_tokens": 500})), 199_500);
    assert_eq!(window_for(json!({"max_output_tokens": 190_000})), 200_000 - 200_000 / ANSWER_SHARE);
    let body = body(&[user("hi")]);
    assert_eq!(tokens_max(16, &Request::parse(&body).unwrap()), 15);
}

#[test]
fn old_results_are_cut_short_and_recent_ones_less() {
    let mut input = vec![user("q")];
    for number in 0..8 {
        input.extend([call(&number.to_string()), output(&number.to_string(), &long())]);
    }
    // One that answers nothing is not sent, and so not counted.
    input.push(output("lost", &long()));
    let mut expected = vec!["User q".to_owned()];
    for number in 0..8 {
        expected.push(format!("call {number}"));
        let limit = if number < 2 { OLD_OUTPUT_CHARS_MAX } else { RECENT_OUTPUT_CHARS_MAX };
        expected.push(format!("output {number} {limit}"));
    }
    expected.push(format!("output lost {LONG}"));
    let mut fitted = fitted(&input, &target(70_000));
    // The number in the marker has five digits here, which leaves some of its room unused.
    for line in &mut fitted {
        for limit in [OLD_OUTPUT_CHARS_MAX, RECENT_OUTPUT_CHARS_MAX] {
            *line = line.replace(&(limit - (MARKER_CHARS_MAX - 33)).to_string(), &limit.to_string());
        }
    }
    assert_eq!(fitted, expected);
}

#[test]
fn a_cut_keeps_beginning_and_end_and_whole_characters() {
    let text: String = ('a'..='z').cycle().take(50).chain("🦀\n\"\\".chars().cycle().take(100)).collect();
    let short = cut(&text, 100).unwrap();
    assert!(short.chars().count() <= 100, "{short}");
    let (head, rest) = short.split_once("\n[… ").unwrap();
    let (left_out, tail) = rest.split_once(" characters left out …]\n").unwrap();
    assert!(text.starts_with(head) && text.ends_with(tail));
    let count = head.chars().count() + tail.chars().count();
    assert_eq!((head.chars().count(), left_out.parse::<usize>().unwrap()), (26, 150 - count));

    assert_eq!(cut(&"🦀".repeat(100), 100), None);
    assert_eq!(cut(&"x".repeat(100), 100), None);
    assert!(cut(&"x".repeat(101), 100).is_some());
    let marker = format!("\n[… {} characters left out …]\n", u64::MAX);
    assert_eq!(marker.chars().count(), MARKER_CHARS_MAX);
}

#[test]
fn parts_become_one_text_and_old_images_a_note() {
    let image = json!({"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "high"});
    let text = |text: &str| json!({"type": "input_text", "text": text});
    let check = |parts: Value, chars_max: usize, keeps_images: bool, expected: Option<Value>| {
        let body = body(&[call("c"), output("c", &parts)]);
        let request = Request::parse(&body).unwrap();
        let Item::ToolOutput(output) = &request.input[1] else { panic!("{request:?}") };
        let ToolResult::Content(content) = output.result else { panic!("{request:?}") };
        let short = shortened(content, chars_max, keeps_images);
        assert_eq!(short.map(|short| serde_json::from_str::<Value>(&short).unwrap()), expected, "{parts}");
    };
    check(json!("short"), 100, false, None);
    check(json!([text("short"), text("er")]), 100, false, None);
    check(json!([text("short"), image]), 100, true, None);
    let note = stand_in::IMAGE_LEFT_OUT_NOTE;
    check(json!([text("short"), image]), 100, false, Some(json!(format!("short\n{note}"))));
    let long = "\"\n".repeat(60);
    let parts = json!([text(&long), image, text("end")]);
    let short = cut(&format!("{long}end"), 100).unwrap();
    check(parts, 100, true, Some(json!([text(&short), image])));
    let file = json!({"type": "input_file", "filename": "a.pdf"});
    let short = cut(
        &format!("{long}{}\n{}", stand_in::file_note(None).replace("[file", "[file `a.pdf`"), stand_in::AUDIO_NOTE),
        100,
    );
    check(json!([text(&long), file, {"type": "input_audio"}, {"type": "new"}]), 100, true, short.map(Value::from));
}

/// A conversation of three questions, each with a call, in which only turns can be left out.
fn three_questions() -> Vec<Value> {
    let text = "x".repeat(2_000);
    let mut input = vec![message("developer", "be kind"), user("environment"), user(&format!("one {text}"))];
    for (id, question) in [("a", "two"), ("b", "three"), ("c", "latest")] {
        input.extend([
            json!({"type": "reasoning", "summary": []}),
            call(id),
            output(id, &format!("{id} {text}").into()),
            message("assistant", &text),
            user(question),
        ]);
    }
    input
}

#[test]
fn the_oldest_turns_go_and_a_note_stands_in_their_place() {
    let note = note();
    let mut input = three_questions();
    assert_eq!(fitted(&input, &target(4_000)).len(), input.len(), "all of it fits");
    // 3 × 1000 tokens, and 500 of the first question, less three steps of 375.
    let answer = "Assistant xxxxxxxxxxxxxxxxxxxx";
    assert_eq!(
        fitted(&input, &target(3_000)),
        [
            "Developer be kind",
            "User environment",
            &note,
            "User two",
            "reasoning",
            "call b",
            "output b 2002",
            answer,
            "User three",
            "reasoning",
            "call c",
            "output c 2002",
            answer,
            "User latest"
        ]
    );
    // Where nothing helps, what must stay stays.
    assert_eq!(fitted(&input, &target(10)), ["Developer be kind", "User environment", &note, "User latest"]);
    // The model is in the middle of its turn: what it does now stays, with the question.
    input.extend([call("d"), output("d", &"d".into()), call("e"), output("e", &"e".into())]);
    assert_eq!(
        fitted(&input, &target(10)),
        ["Developer be kind", "User environment", &note, "User latest", "call e", "output e 1"]
    );
    // A thought that came to nothing does not take its place.
    input.push(json!({"type": "reasoning", "summary": []}));
    assert_eq!(fitted(&input, &target(10))[4..], ["call e", "output e 1", "reasoning"]);
    // Another agent's words are somebody's, too.
    input.push(json!({"type": "agent_message", "content": "x"}));
    assert_eq!(fitted(&input, &target(10)), ["Developer be kind", "User environment", &note, "Agent x"]);
}

/// What is said of what was left out would be a question, where there is none.
#[test]
fn a_thought_alone_is_not_left_out() {
    let thought = json!({"type": "reasoning", "summary": []});
    let input = [message("developer", &"x".repeat(LONG)), thought];
    assert_eq!(fitted(&input, &target(1)), fitted(&input, &target(0)));
}

#[test]
fn results_go_with_their_calls_wherever_they_stand() {
    let text: Value = "x".repeat(2_000).into();
    let (note, text) = (note(), &text);
    let mut input = vec![user("environment"), output("b", text), call("a"), user("steer"), output("a", text)];
    input.extend([call("b"), user("latest")]);
    assert_eq!(fitted(&input, &target(10)), ["User environment", &note, "User latest"]);
    let kept = fitted(&input, &target(900));
    assert_eq!(kept, ["User environment", "output b 2000", &note, "User steer", "call b", "User latest"]);

    // The second result answers nothing while the first call is there, and does not answer the second call without it.
    let mut input = vec![user("environment"), output("a", text), output("a", text), call("a"), user("steer")];
    input.extend([call("a"), user("latest")]);
    assert_eq!(fitted(&input, &target(500)), ["User environment", &note, "User steer", "call a", "User latest"]);
}

#[test]
fn turns_are_left_out_in_steps() {
    let step = |extra: usize| {
        let mut input = three_questions();
        input.push(user(&"y".repeat(extra)));
        fitted(&input, &target(3_600)).len()
    };
    assert_eq!(step(0), step(400), "the conversation begins the same while it grows a little");
    assert_ne!(step(0), step(4_000));
}

#[test]
fn the_estimate_never_exceeds_the_length() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/codex-requests");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let fixture: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let body = fixture["body"].to_string();
        let tokens = estimated_tokens(&Request::parse(body.as_bytes()).unwrap());
        let most = body.len() as u64 / TOKEN_BYTES;
        assert!(tokens <= most && tokens * 6 > most, "{}: {tokens} of {most}", path.display());
    }
}

#[test]
fn images_count_the_same_whatever_their_size() {
    let image = |bytes: usize| {
        let url = format!("data:image/png;base64,{}", "A".repeat(bytes));
        let body = body(&[json!({"role": "user", "content": [{"type": "input_image", "image_url": url}]})]);
        estimated_tokens(&Request::parse(&body).unwrap())
    };
    assert_eq!(image(100_000), image(1_000_000));
    assert_eq!(image(100_000), IMAGE_TOKENS + tokens(ITEM_BYTES));
}

/// Any item of a long conversation, with few ids, so that they meet.
fn any_item() -> impl Strategy<Value = Value> {
    let id = || prop::sample::select(vec!["a", "b", "c", "d"]);
    let text =
        || (prop::sample::select(vec!["x", "\"\\\n\u{1}🦀"]), 0..3_000_usize).prop_map(|(text, n)| text.repeat(n));
    prop_oneof![
        (prop::sample::select(vec!["user", "assistant", "developer"]), text())
            .prop_map(|(role, text)| message(role, &text)),
        id().prop_map(call),
        id().prop_map(call),
        (id(), text()).prop_map(|(id, text)| output(id, &text.into())),
        (id(), text()).prop_map(|(id, text)| output(
            id,
            &json!([
                {"type": "input_text", "text": text}, {"type": "input_image", "image_url": "data:image/png;base64,AA"}
            ])
        )),
        Just(json!({"type": "reasoning", "summary": []})),
        text().prop_map(|text| json!({"type": "agent_message", "content": text})),
    ]
}

/// Calls with a result, and calls without, in a Chat Completions body.
fn answered_and_not(call: &Call) -> (usize, usize) {
    let body: Value = serde_json::from_slice(&call.body).unwrap();
    let results = body["messages"].as_array().unwrap().iter().filter(|message| message["role"] == "tool");
    let (not, answered): (Vec<&Value>, _) = results.partition(|message| message["content"] == stand_in::MISSING_RESULT);
    (answered.len(), not.len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_conversation_fits_any_window(
        items in prop::collection::vec(any_item(), 0..24), window in 1..40_000_u64, ends: bool
    ) {
        let mut items = items;
        if ends || items.is_empty() {
            items.push(user("the last word"));
        }
        let body = body(&items);
        let request = Request::parse(&body).unwrap();
        let whole = chat::encode::encode(&request, &target(0));
        let call = chat::encode::encode(&request, &target(window));
        prop_assert_eq!(whole.is_ok(), call.is_ok());
        let (Ok(whole), Ok(call)) = (whole, call) else { return Ok(()) };
        prop_assert_eq!(chat::validate::check(&call.body), Ok(()));
        let messages = anthropic::encode::encode(&request, &target(window));
        prop_assert_eq!(messages.is_ok(), anthropic::encode::encode(&request, &target(0)).is_ok());
        if let Ok(messages) = messages {
            prop_assert_eq!(anthropic::validate::check(&messages.body), Ok(()));
        }

        // No call has lost its result, and none has found another's.
        let (before, after) = (answered_and_not(&whole), answered_and_not(&call));
        prop_assert!(after.0 <= before.0 && after.1 <= before.1, "{:?}, then {:?}", before, after);
        let edits = Edits::new(&request, &target(window), &[], false);
        let fitted = edits.apply(&request.input);
        let measure = Measure { images: true, reasoning: false };
        let tokens_max = tokens_max(window, &request);
        let fit = Fit::new(&fitted, measure, 0);
        if edits == Edits::default() {
            prop_assert_eq!(&call.body, &whole.body);
        }
        // The first message, the note, the latest message, the last turn.
        let is_sent = |item: &Item<'_>| !matches!(item, Item::Reasoning(_));
        let is_turn = |span: &std::ops::Range<usize>| fitted[span.clone()].iter().any(is_sent);
        let turns = fit.history.spans().filter(is_turn).count();
        prop_assert!(fit.tokens <= tokens_max || turns <= 4, "{} of {} tokens, {} turns", fit.tokens, tokens_max, turns);
        if ends {
            let body: Value = serde_json::from_slice(&call.body).unwrap();
            let last = &body["messages"].as_array().unwrap().last().unwrap();
            prop_assert_eq!((&last["role"], &last["content"]), (&json!("user"), &json!("the last word")));
        }
    }
}
