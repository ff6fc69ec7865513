//! An answer goes to Codex and comes back with the next request: the model must find it as it said it.

use std::collections::HashSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Anthropic, Profile, Thinking, validate};
use crate::reply::{EndCause, Outcome, Reply, ReplyConfig, ReplySeed};
use crate::tools::ToolTable;
use crate::{Framing, Protocol as _, Request, Target, checker};

fn target(thinking: Thinking) -> Target {
    Target {
        anthropic: Profile { thinking, cache: false, ..Profile::default() },
        seal_key: [3; 32],
        ..Target::new("anthropic", "claude-sonnet-4-6")
    }
}

fn request(input: &[Value]) -> Vec<u8> {
    json!({
        "model": "any", "stream": true, "reasoning": {"effort": "high", "summary": "auto"},
        "tools": [
            {"type": "function", "name": "run"}, {"type": "custom", "name": "apply_patch"},
            {"type": "namespace", "name": "mcp__lab", "tools": [{"type": "function", "name": "echo"}]}
        ],
        "input": input
    })
    .to_string()
    .into_bytes()
}

fn user(text: &str) -> Value {
    json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
}

/// The stream of an answer with these blocks, in small pieces.
fn stream(blocks: &[Value]) -> String {
    let mut events =
        vec![json!({"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}})];
    for (index, block) in blocks.iter().enumerate() {
        let mut begun = block.clone();
        let mut steps = Vec::new();
        let mut pieces = |kind: &str, member: &str, text: &str| {
            for piece in text.chars().collect::<Vec<_>>().chunks(3) {
                steps.push(json!({"type": kind, member: piece.iter().collect::<String>()}));
            }
        };
        match block["type"].as_str().unwrap() {
            "text" => {
                pieces("text_delta", "text", block["text"].as_str().unwrap());
                begun["text"] = "".into();
            }
            "thinking" => {
                pieces("thinking_delta", "thinking", block["thinking"].as_str().unwrap());
                steps.push(json!({"type": "signature_delta", "signature": block["signature"]}));
                begun["thinking"] = "".into();
                begun["signature"] = "".into();
            }
            "tool_use" => {
                pieces("input_json_delta", "partial_json", &block["input"].to_string());
                begun["input"] = json!({});
            }
            _ => {}
        }
        events.push(json!({"type": "content_block_start", "index": index, "content_block": begun}));
        events.extend(steps.iter().map(|delta| json!({"type": "content_block_delta", "index": index, "delta": delta})));
        events.push(json!({"type": "content_block_stop", "index": index}));
    }
    let has_call = blocks.iter().any(|block| block["type"] == "tool_use");
    let reason = if has_call { "tool_use" } else { "end_turn" };
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 5}}));
    events.push(json!({"type": "message_stop"}));
    events.iter().fold(String::new(), |stream, event| {
        stream + &format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())
    })
}

/// Lets Codex answer each of `turns` (the blocks of one answer each), and gives the content of the assistant's messages
/// in the last request.
fn said_again(turns: &[Vec<Value>], thinking: Thinking, show_reasoning: bool) -> Vec<Value> {
    let target = target(thinking);
    let mut input = vec![user("go")];
    for (turn, blocks) in turns.iter().enumerate() {
        let body = request(&input);
        let asked = Request::parse(&body).unwrap();
        let config = ReplyConfig {
            seed: ReplySeed { response_id: format!("resp_{turn:04}"), created_at: 1, model: "m".into() },
            tools: ToolTable::from_request(&asked),
            origin: target.origin(),
            seal_key: target.seal_key,
            known_call_ids: asked.call_ids().map(str::to_owned).collect::<HashSet<_>>(),
            show_reasoning,
            compaction: false,
            keep_output: false,
            continuations_max: 0,
        };
        let mut reply = Reply::new(Anthropic.decoder(&asked, &target), Framing::Sse, config);
        let mut out = Vec::new();
        reply.feed(stream(blocks).as_bytes(), &mut out);
        assert_eq!(reply.end(EndCause::Eof, &mut out).outcome, Outcome::Completed);
        let transcript = checker::check(&out).unwrap();
        input.extend(transcript.items.iter().cloned());
        input.extend(transcript.calls().iter().map(|call| {
            let kind = call["type"].as_str().unwrap();
            json!({"type": format!("{kind}_output"), "call_id": call["call_id"], "output": "ok"})
        }));
        if transcript.calls().is_empty() {
            input.push(user("and on"));
        }
    }
    let body = request(&input);
    let call = Anthropic.encode(&Request::parse(&body).unwrap(), &target).unwrap();
    validate::check(&call.body)
        .unwrap_or_else(|complaint| panic!("{complaint}\n{}", String::from_utf8_lossy(&call.body)));
    let body: Value = serde_json::from_slice(&call.body).unwrap();
    if thinking == Thinking::Budget {
        assert_eq!(body["thinking"]["type"], "enabled");
    }
    let messages = body["messages"].as_array().unwrap();
    messages.iter().filter(|message| message["role"] == "assistant").map(|message| message["content"].clone()).collect()
}

fn check(turns: &[Vec<Value>]) {
    for thinking in [Thinking::Unasked, Thinking::Budget, Thinking::Adaptive] {
        for show_reasoning in [true, false] {
            let found = said_again(turns, thinking, show_reasoning);
            assert_eq!(found, turns.iter().map(|blocks| json!(blocks)).collect::<Vec<_>>(), "{thinking:?}");
        }
    }
}

fn thought(text: &str, signature: &str) -> Value {
    json!({"type": "thinking", "thinking": text, "signature": signature})
}

fn tool(id: &str, name: &str, input: &Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

#[test]
fn a_loop_of_five_calls_keeps_every_thought() {
    let turns: Vec<Vec<Value>> = (0..5)
        .map(|turn| {
            vec![
                thought(&format!("thought {turn} \"ünïcode 🦀\"\n"), &format!("Eq+/{turn}==")),
                json!({"type": "text", "text": format!("Step {turn}.\n\n")}),
                tool(&format!("toolu_01AB{turn:04}"), "run", &json!({"cmd": ["ls", "-l"], "n": turn})),
            ]
        })
        .collect();
    check(&turns);
}

#[test]
fn thoughts_between_calls_stay_there() {
    let redacted = json!({"type": "redacted_thinking", "data": "Em+/=="});
    check(&[
        vec![
            redacted.clone(),
            thought("", "S0"),
            tool("toolu_01ABCDEF", "run", &json!({})),
            thought("shown", "S1"),
            redacted.clone(),
            tool("toolu_02ABCDEF", "apply_patch", &json!({"input": "*** Begin Patch\n*** End Patch\n"})),
            thought("", "S2"),
            tool("toolu_03ABCDEF", "mcp__lab__echo", &json!({"a": {"b": [1.5e3, null, "\u{1}"]}})),
        ],
        vec![thought("a", "S3"), json!({"type": "text", "text": "done"})],
        vec![thought("b", "S4"), tool("toolu_04ABCDEF", "run", &json!({}))],
    ]);
}

/// The state of a thought that is not shown once ended up behind the words that followed it.
#[test]
fn a_thought_between_words_stays_there() {
    let text = |text: &str| json!({"type": "text", "text": text});
    check(&[vec![thought("a", "S0"), text("one"), thought("", "S1"), text("two"), thought("b", "S2"), text("three")]]);
}

#[test]
fn ids_that_codex_must_not_see_come_back() {
    check(&[
        vec![thought("a", "S"), tool("toolu_1", "run", &json!({})), tool("toolu_2", "run", &json!({}))],
        vec![thought("b", "S"), tool("toolu_3", "run", &json!({}))],
    ]);
}

/// Any block but the first and the last of an answer.
fn any_block() -> impl Strategy<Value = Value> {
    let words = "[a-z \"\\\\\n🦀]{0,8}";
    prop_oneof![
        words.prop_map(|text| json!({"type": "text", "text": format!("x{text}")})),
        (words, "[A-Za-z0-9+/=]{1,8}").prop_map(|(text, signature)| thought(&text, &signature)),
        "[A-Za-z0-9+/=]{1,8}".prop_map(|data| json!({"type": "redacted_thinking", "data": data})),
        words.prop_map(|cmd| tool("", "run", &json!({"cmd": cmd}))),
        Just(tool("", "run", &json!({}))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_model_said_goes_back_as_it_was(
        turns in prop::collection::vec((prop::collection::vec(any_block(), 0..6), any::<bool>()), 1..4)
    ) {
        let mut count = 0;
        let turns: Vec<Vec<Value>> = turns
            .into_iter()
            .map(|(middle, ends_in_call)| {
                let last = if ends_in_call { tool("", "run", &json!({"n": 1})) } else { json!({"type": "text", "text": "end"}) };
                let mut blocks: Vec<Value> = Vec::new();
                for mut block in [vec![thought("first", "S")], middle, vec![last]].concat() {
                    if block["type"] == "tool_use" {
                        count += 1;
                        block["id"] = format!("toolu_01ABCD{count:04}").into();
                    }
                    match blocks.last_mut() {
                        // Texts that touch are one to Codex.
                        Some(before) if before["type"] == "text" && block["type"] == "text" => {
                            let joined = format!("{}{}", before["text"].as_str().unwrap(), block["text"].as_str().unwrap());
                            before["text"] = joined.into();
                        }
                        _ => blocks.push(block),
                    }
                }
                blocks
            })
            .collect();
        for (thinking, shown) in [(Thinking::Budget, true), (Thinking::Adaptive, false)] {
            let found = said_again(&turns, thinking, shown);
            prop_assert_eq!(found, turns.iter().map(|blocks| json!(blocks)).collect::<Vec<_>>());
        }
    }
}
