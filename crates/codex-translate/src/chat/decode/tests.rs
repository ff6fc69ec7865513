//! What a decoder holds, whatever it is sent. What it understands is tested with the fixtures (`reply/tests.rs`).

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// What a decoder holds at most beside what it counts: a template, what cannot be told yet, empty slots.
const UNCOUNTED_BYTES_MAX: usize = 64 << 10;

/// Everything that is allocated. A new field has to be thought about here.
fn allocated_bytes(decoder: &Decoder) -> usize {
    let Decoder {
        tools: _,
        template,
        think,
        calls,
        details,
        source: _,
        trace,
        message_text,
        message_reasoning,
        usage: _,
        ending: _,
        is_doubtful: _,
        has_started: _,
        is_over: _,
    } = decoder;
    template.allocated_bytes()
        + think.allocated_bytes()
        + calls.allocated_bytes()
        + details.held_bytes()
        + [trace, message_text, message_reasoning].map(String::capacity).iter().sum::<usize>()
}

fn any_text() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec!["", "a", " ", "{", "{\"a\":1}", "<think>", "</think>", "\n"]);
    prop_oneof![word.prop_map(str::to_owned), (1usize..20_000).prop_map(|length| "x".repeat(length))]
}

fn any_call() -> impl Strategy<Value = Value> {
    let index = prop::option::of(0u64..4);
    (index, any_text(), any_text(), any_text(), any_text()).prop_map(|(index, id, name, arguments, extra)| {
        json!({"index": index, "id": id, "function": {"name": name, "arguments": arguments},
               "extra_content": {"google": {"thought_signature": extra}}})
    })
}

fn any_chunk() -> impl Strategy<Value = Value> {
    let detail = (0u64..3, any_text(), any_text(), 1usize..50).prop_map(|(index, text, data, depth)| {
        let deep = (0..depth).fold(json!(1), |inner, _| json!({ "a": [inner] }));
        json!([{"type": index, "text": text, "data": data, "x": deep}])
    });
    let said = prop_oneof![
        any_text().prop_map(|text| json!({ "content": text })),
        any_text().prop_map(|text| json!({ "reasoning": text })),
        detail.prop_map(|details| json!({ "reasoning_details": details })),
        any_call().prop_map(|call| json!({ "tool_calls": [call] })),
        any_call().prop_map(|call| json!({ "function_call": call["function"] })),
    ];
    (said, any::<bool>()).prop_map(|(said, is_delta)| {
        let choice = if is_delta { json!({ "delta": said }) } else { json!({ "message": said }) };
        json!({ "choices": [choice] })
    })
}

proptest! {
    #[test]
    fn what_is_allocated_is_counted(chunks in prop::collection::vec(any_chunk(), 0..40)) {
        let mut decoder = Decoder::new(ToolTable::from_names(&["a"]));
        let mut out = Vec::new();
        for chunk in chunks {
            let data = chunk.to_string();
            decoder.frame(Frame { event: "", data: &data }, &mut out).unwrap();
            let (allocated, counted) = (allocated_bytes(&decoder), decoder.held_bytes());
            prop_assert!(allocated <= 2 * counted + UNCOUNTED_BYTES_MAX, "{allocated} for {counted} after {data}");
        }
    }
}

#[test]
fn the_answers_of_a_list_end_with_the_first_failure() {
    let data = json!([{"error": "boom"}, {"choices": [{"delta": {"content": "more"}}]}]).to_string();
    let mut out = Vec::new();
    Decoder::default().frame(Frame { event: "", data: &data }, &mut out).unwrap();
    assert!(matches!(out.last(), Some(Delta::Failed(_))), "{out:?}");
}
