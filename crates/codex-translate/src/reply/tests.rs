//! Whole answers through the door that the worker uses.

use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::chat::decode::Decoder;
use crate::checker::{self, Transcript};
use crate::delta::ToolCall;
use crate::sealed::{self, Opened, Part};
use crate::{FailureClass, Request, StopReason, anthropic};

mod bounds;
mod compaction;
mod limit;

const SEAL_KEY: [u8; 32] = [7; 32];

fn origin() -> Origin {
    Origin { provider: "example".into(), model: "m-1".into(), account: "a".into() }
}

fn table(tools: &Value) -> ToolTable {
    let body = json!({"model": "m", "input": [], "tools": tools}).to_string();
    ToolTable::from_request(&Request::parse(body.as_bytes()).unwrap())
}

fn config(tools: ToolTable) -> ReplyConfig {
    ReplyConfig {
        seed: ReplySeed { response_id: "resp_0011".into(), created_at: 1_760_000_000, model: "example/m".into() },
        tools,
        origin: origin(),
        seal_key: SEAL_KEY,
        known_call_ids: HashSet::new(),
        show_reasoning: true,
        compaction: false,
        keep_output: false,
        continuations_max: 0,
    }
}

fn reply(tools: ToolTable) -> Reply {
    CHAT.reply(tools)
}

/// Feeds `chunks` and ends; checks the stream that comes out.
fn run<'c>(mut reply: Reply, chunks: impl IntoIterator<Item = &'c [u8]>, cause: EndCause) -> (Vec<u8>, Summary) {
    let mut out = Vec::new();
    for chunk in chunks {
        let before = reply.progress();
        let length = out.len();
        let after = reply.feed(chunk, &mut out);
        assert!(after.visible >= before.visible && after.finished >= before.finished);
        assert!(!before.finished || out.len() == length, "something after the end");
        assert!(after.visible || after.finished || out.is_empty(), "bytes without anything visible");
        assert!(reply.pending_failure().is_none() || !after.visible);
    }
    let summary = reply.end(cause, &mut out);
    let length = out.len();
    assert_eq!(reply.end(EndCause::Eof, &mut out), summary, "ending twice");
    assert!(reply.feed(b"data: {}\n\n", &mut out).finished);
    assert_eq!(out.len(), length, "something after the end");
    (out, summary)
}

fn checked(out: &[u8]) -> Transcript {
    checker::check(out).unwrap_or_else(|problem| panic!("{problem}\n\nin:\n{}", String::from_utf8_lossy(out)))
}

/// A stream of chunks with these deltas, a finish and `[DONE]`.
fn stream(deltas: &[Value], finish: &str) -> String {
    let chunk = |choice: Value| format!("data: {}\n\n", json!({"choices": [choice]}));
    let mut stream: String = deltas.iter().map(|delta| chunk(json!({"index": 0, "delta": delta}))).collect();
    stream += &chunk(json!({"delta": {}, "finish_reason": finish}));
    stream + "data: [DONE]\n\n"
}

fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"tool_calls": [{"id": id, "function": {"name": name, "arguments": arguments}}]})
}

fn state_parts(transcript: &Transcript) -> Vec<Part> {
    let states = transcript.items.iter().filter_map(|item| item["encrypted_content"].as_str());
    states
        .flat_map(|state| match sealed::open(&SEAL_KEY, &origin(), state) {
            Opened::Ours(parts) => parts,
            other => panic!("{other:?}"),
        })
        .collect()
}

// ---- fixtures

/// A protocol, and the folder with its answers.
struct Suite {
    folder: &'static str,
    count_min: usize,
    decoder: fn(ToolTable) -> Box<dyn Decode + Send>,
    /// Whether this beginning of a stream says that the answer is over.
    has_end: fn(&str) -> bool,
}

static CHAT: Suite = Suite {
    folder: "chat-completions",
    count_min: 96,
    decoder: |tools| Box::new(Decoder::new(tools)),
    has_end: |stream| stream.contains("[DONE]") || has_text_member(stream, "finish_reason"),
};

static ANTHROPIC: Suite = Suite {
    folder: "anthropic-messages",
    count_min: 28,
    decoder: |tools| Box::new(anthropic::decode::Decoder::new(tools)),
    has_end: |stream| has_text_member(stream, "stop_reason"),
};

static SUITES: [&Suite; 2] = [&CHAT, &ANTHROPIC];

/// Whether a member `name` has a string in it that is not empty.
fn has_text_member(text: &str, name: &str) -> bool {
    let member = format!("\"{name}\":");
    let mut values = text.split(&member).skip(1).map(str::trim_start);
    values.any(|value| value.starts_with('"') && !value.starts_with("\"\""))
}

impl Suite {
    fn reply(&self, tools: ToolTable) -> Reply {
        Reply::new((self.decoder)(tools.clone()), Framing::Sse, config(tools))
    }
}

struct Fixture {
    suite: &'static Suite,
    name: String,
    body: Vec<u8>,
    expect: Value,
}

fn fixtures() -> Vec<Fixture> {
    SUITES.into_iter().flat_map(fixtures_of).collect()
}

fn fixtures_of(suite: &'static Suite) -> Vec<Fixture> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(suite.folder);
    let mut fixtures = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some((stem, "sse" | "json")) = name.split_once('.') else { continue };
        let expect = std::fs::read_to_string(folder.join(format!("{stem}.expect.json"))).unwrap();
        let expect = serde_json::from_str(&expect).unwrap();
        fixtures.push(Fixture { suite, name, body: std::fs::read(&path).unwrap(), expect });
    }
    fixtures.sort_by(|one, other| one.name.cmp(&other.name));
    assert!(fixtures.len() >= suite.count_min, "{}: {} fixtures", suite.folder, fixtures.len());
    fixtures
}

impl Fixture {
    fn is_http_error(&self) -> bool {
        self.expect["meta"]["kind"] == "http_error"
    }

    fn is_stream(&self) -> bool {
        self.expect["meta"]["kind"] == "stream"
    }

    fn tools(&self) -> ToolTable {
        let offered =
            self.expect["request_tools"].as_array().map(|names| names.iter().filter_map(Value::as_str).collect());
        ToolTable::from_names(&offered.unwrap_or_else(|| vec!["exec_command", "update_plan", "get_goal", "write_file"]))
    }

    fn failure(&self) -> Failure {
        let http = &self.expect["meta"]["http"];
        let headers: Vec<(&str, &str)> = http["headers"]
            .as_object()
            .map(|headers| headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect())
            .unwrap_or_default();
        let status = u16::try_from(http["status"].as_u64().unwrap()).unwrap();
        Failure::from_response(status, &headers, &self.body, 1_760_000_000_000)
    }

    fn run_in(&self, sizes: impl Iterator<Item = usize>) -> (Vec<u8>, Summary) {
        if self.is_http_error() {
            return run(self.suite.reply(self.tools()), [], EndCause::Failed(self.failure()));
        }
        let mut chunks = Vec::new();
        let mut rest = self.body.as_slice();
        for size in sizes {
            let (chunk, after) = rest.split_at(size.min(rest.len()));
            chunks.push(chunk);
            rest = after;
        }
        chunks.push(rest);
        run(self.suite.reply(self.tools()), chunks, EndCause::Eof)
    }

    fn check(&self, out: &[u8], summary: &Summary) {
        let name = &self.name;
        let expect = |key: &str| &self.expect[key];
        let list = |one: &Value, many: &Value| -> Vec<String> {
            let many = many.as_array().cloned().unwrap_or_default();
            many.iter().chain([one]).filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let transcript = checked(out);
        let terminal = transcript.terminal.clone().unwrap();

        let finishes = list(expect("finish"), expect("finish_any_of"));
        assert!(finishes.contains(&terminal.status), "{name}: {terminal:?}");
        for (found, key, trim) in
            [(&transcript.text, "text", "text_trim_ok"), (&transcript.reasoning, "reasoning_text", "reasoning_trim_ok")]
        {
            let expected = expect(key).as_str().unwrap();
            if expect(trim) == &Value::Bool(true) {
                assert_eq!(found.trim(), expected.trim(), "{name}: {key}");
            } else {
                assert_eq!(found, expected, "{name}: {key}");
            }
        }
        let calls: Vec<Value> = transcript
            .calls()
            .iter()
            .map(|call| {
                let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
                json!({"name": call["name"], "arguments": arguments})
            })
            .collect();
        assert_eq!(&Value::Array(calls), expect("tool_calls"), "{name}");

        if terminal.status == "incomplete" {
            assert_eq!(&json!(terminal.incomplete_reason), expect("incomplete_reason"), "{name}");
            assert_eq!(summary.outcome, Outcome::Incomplete, "{name}");
        }
        if terminal.status != "failed" {
            self.check_usage(terminal.usage.as_ref(), summary);
        } else if expect("finish") == "failed" {
            let Outcome::Failed(failure) = &summary.outcome else { panic!("{name}: {summary:?}") };
            self.check_failure(failure, &terminal, list(expect("error_code"), expect("error_code_any_of")));
        }
        if let Some(max) = expect("max_items").as_u64() {
            assert!(transcript.items.len() as u64 <= max, "{name}: {:?}", transcript.items);
        }
        let searches: Vec<Value> = transcript
            .items_of("web_search_call")
            .iter()
            .map(|search| json!({"query": search["action"]["query"]}))
            .collect();
        assert_eq!(searches, expect("web_search_calls").as_array().cloned().unwrap_or_default(), "{name}");
        self.check_state(&transcript);
        if !name.starts_with("28-") {
            assert_eq!(summary.unreadable_frames, 0, "{name}: {:?}", summary.first_unreadable);
        }
    }

    fn check_usage(&self, found: Option<&Value>, summary: &Summary) {
        let expected = &self.expect["usage"];
        let found = found.map(|usage| {
            json!({
                "input_tokens": usage["input_tokens"],
                "output_tokens": usage["output_tokens"],
                "total_tokens": usage["total_tokens"],
                "cached_tokens": usage["input_tokens_details"]["cached_tokens"],
                "reasoning_tokens": usage["output_tokens_details"]["reasoning_tokens"],
            })
        });
        assert_eq!(found.as_ref().unwrap_or(&Value::Null), expected, "{}", self.name);
        assert_eq!(summary.usage.is_some(), found.is_some(), "{}", self.name);
    }

    fn check_failure(&self, failure: &Failure, terminal: &checker::Terminal, mut codes: Vec<String>) {
        let name = &self.name;
        if codes.iter().any(|code| code == "insufficient_quota") {
            codes.push("invalid_prompt".to_owned());
            assert_eq!(failure.class, FailureClass::Quota, "{name}");
        }
        assert!(codes.contains(terminal.error_code.as_ref().unwrap()), "{name}: {terminal:?}");
        if let Some(words) = self.expect["message_contains"].as_str() {
            assert!(
                failure.message.contains(words) && terminal.message.as_ref().unwrap().contains(words),
                "{name}: {failure:?}"
            );
        }
        if let Some(expected_ms) = self.expect["retry_after_ms"].as_f64() {
            let tolerance_ms = self.expect["retry_after_ms_tolerance"].as_f64().unwrap_or(0.5);
            let found_ms = failure.retry_after.unwrap_or_else(|| panic!("{name}: {failure:?}")).as_secs_f64() * 1_000.0;
            assert!((found_ms - expected_ms).abs() <= tolerance_ms, "{name}: {found_ms}");
        }
        if let Some(is_retryable) = self.expect["retryable"].as_bool() {
            assert_eq!(failure.class.is_retryable(), is_retryable, "{name}: {failure:?}");
        }
        let repair = failure.repair.as_ref().map(ToString::to_string);
        assert_eq!(json!(repair), self.expect["repair"], "{name}");
    }

    fn check_state(&self, transcript: &Transcript) {
        let name = &self.name;
        let parts = state_parts(transcript);
        for state in self.expect["opaque"].as_array().into_iter().flatten() {
            let value = &state["value"];
            let is_kept = match state["kind"].as_str().unwrap() {
                "reasoning_content" => {
                    parts.iter().any(|part| *part == Part::ReasoningContent(value.as_str().unwrap().into()))
                }
                "reasoning_details" => parts.iter().any(|part| match part {
                    Part::ReasoningDetails(details) => serde_json::from_str::<Value>(details).unwrap() == *value,
                    _ => false,
                }),
                "inline_think" => {
                    parts.iter().any(|part| matches!(part, Part::InlineThink(block) if !block.is_empty()))
                }
                "google.thought_signature" => {
                    let calls = transcript.calls();
                    let owner =
                        calls[usize::try_from(state["call_index"].as_u64().unwrap()).unwrap()]["call_id"].as_str();
                    parts.iter().any(|part| match part {
                        Part::ToolExtra { call_id, extra_content } => {
                            let extra: Value = serde_json::from_str(extra_content).unwrap();
                            Some(call_id.as_str()) == owner && extra["google"]["thought_signature"] == *value
                        }
                        _ => false,
                    })
                }
                "anthropic.thinking" => parts.iter().any(|part| has_block(part, "thinking", value)),
                "anthropic.redacted_thinking" => {
                    parts.iter().any(|part| has_block(part, "redacted_thinking", &json!({"data": value})))
                }
                other => panic!("{name}: unknown kind of state `{other}`"),
            };
            assert!(is_kept, "{name}: {state} is not in {parts:?}");
        }
        for (call, upstream) in
            transcript.calls().iter().zip(self.expect["upstream_call_ids"].as_array().into_iter().flatten())
        {
            let is_carried = parts.iter().any(|part| {
                matches!(part, Part::UpstreamId { call_id, upstream_id } if call["call_id"] == *call_id && upstream == upstream_id)
            });
            assert!(call["call_id"] == *upstream || is_carried, "{name}: {upstream}");
        }
    }
}

/// Whether `part` holds a block of thinking of this type with these members.
fn has_block(part: &Part, kind: &str, members: &Value) -> bool {
    let Part::ThinkingBlocks(blocks) = part else { return false };
    let mut block = members.clone();
    block["type"] = kind.into();
    serde_json::from_str::<Vec<Value>>(blocks).unwrap().contains(&block)
}

/// Sizes of chunks from a small generator, so that a failure names the seed that shows it.
fn random_sizes(seed: u64) -> impl Iterator<Item = usize> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::from_fn(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(1 + usize::try_from(state % 40).unwrap())
    })
    .take(10_000)
}

#[test]
fn every_fixture_is_understood_however_it_arrives() {
    for fixture in fixtures() {
        let (whole, summary) = fixture.run_in(std::iter::empty());
        fixture.check(&whole, &summary);

        let cuts = fixture.expect["meta"]["cuts"].as_array().cloned().unwrap_or_default();
        let cuts: Vec<usize> = cuts.iter().map(|cut| usize::try_from(cut.as_u64().unwrap()).unwrap()).collect();
        let at_cuts = cuts.iter().zip([0].iter().chain(&cuts)).map(|(cut, before)| cut - before);
        let again = [
            ("byte by byte", fixture.run_in(std::iter::repeat_n(1, fixture.body.len()))),
            ("at its cuts", fixture.run_in(at_cuts)),
            ("seed 1", fixture.run_in(random_sizes(1))),
            ("seed 2", fixture.run_in(random_sizes(2))),
            ("seed 3", fixture.run_in(random_sizes(3))),
        ];
        for (how, (out, other)) in again {
            assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&whole), "{}: {how}", fixture.name);
            assert_eq!(other, summary, "{}: {how}", fixture.name);
        }
    }
}

/// A truncated answer is never taken for a whole one: in `PARTS` parts, since every offset of every fixture takes a while.
fn check_truncated(part: usize) {
    const PARTS: usize = 4;
    let reset = || EndCause::Failed(Failure::new(FailureClass::Network, "connection reset"));
    let fixtures = fixtures().into_iter().filter(|fixture| !fixture.is_http_error());
    for fixture in fixtures.skip(part).step_by(PARTS) {
        let name = &fixture.name;
        let all_calls: Vec<Value> = {
            let (out, _) = fixture.run_in(std::iter::empty());
            checked(&out).calls().into_iter().cloned().collect()
        };
        for length in 0..fixture.body.len() {
            let cut = &fixture.body[..length];
            // A reset differs from an end only in what is said about it: every fourth offset will do.
            let causes = [Some(EndCause::Eof), (length % 4 == 0).then(reset)];
            for cause in causes.into_iter().flatten() {
                let (out, summary) = run(fixture.suite.reply(fixture.tools()), [cut], cause.clone());
                let transcript = checked(&out);
                for call in transcript.calls() {
                    assert!(all_calls.contains(call), "{name} at {length}: {call}");
                }
                let text = String::from_utf8_lossy(cut);
                let has_end = (fixture.suite.has_end)(&text);
                let is_whole = !fixture.is_stream() && serde_json::from_str::<Value>(&text).is_ok();
                if matches!(summary.outcome, Outcome::Failed(_)) {
                    let early = fixture.expect["early_calls"].as_u64().unwrap_or(0);
                    let count = transcript.calls().len() as u64;
                    assert!(count <= early, "{name} at {length}: a failed answer must make no call");
                } else {
                    assert!(has_end || is_whole, "{name} at {length} with {cause:?}");
                }
            }
        }
    }
}

#[test]
fn a_truncated_answer_is_never_taken_for_a_whole_one_1() {
    check_truncated(0);
}

#[test]
fn a_truncated_answer_is_never_taken_for_a_whole_one_2() {
    check_truncated(1);
}

#[test]
fn a_truncated_answer_is_never_taken_for_a_whole_one_3() {
    check_truncated(2);
}

#[test]
fn a_truncated_answer_is_never_taken_for_a_whole_one_4() {
    check_truncated(3);
}

proptest! {
    #[test]
    fn any_bytes_give_a_well_formed_stream(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..6),
        head in prop_oneof![
            Just(""),
            Just("data: "),
            Just("{\"choices\":[{\"delta\":{"),
            Just("data: {\"type\":\"content_block_delta\",\"delta\":{"),
            Just("<html>"),
        ],
    ) {
        for suite in SUITES {
            let chunks = std::iter::once(head.as_bytes()).chain(chunks.iter().map(Vec::as_slice));
            let (out, _) = run(suite.reply(ToolTable::from_names(&["exec_command"])), chunks, EndCause::Eof);
            checked(&out);
        }
    }

    #[test]
    fn mutated_fixtures_give_a_well_formed_stream(
        which in any::<prop::sample::Index>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..5, any::<u8>(), 1usize..40), 1..6),
        seed in any::<u64>(),
    ) {
        let fixtures = fixtures();
        let fixture = which.get(&fixtures);
        let mut body = fixture.body.clone();
        for (at, kind, byte, length) in edits {
            if body.is_empty() {
                break;
            }
            let at = at.index(body.len());
            let end = (at + length).min(body.len());
            match kind {
                0 => body[at] = byte,
                1 => body[at] ^= 1 << (byte % 8),
                2 => drop(body.drain(at..end)),
                3 => {
                    let piece = body[at..end].to_vec();
                    body.splice(at..at, piece);
                }
                _ => body.insert(at, b"\"\\{}[]:,\n\r<| "[usize::from(byte) % 13]),
            }
        }
        let (whole, summary) = run(fixture.suite.reply(fixture.tools()), [body.as_slice()], EndCause::Eof);
        checked(&whole);
        let mutated = Fixture { suite: fixture.suite, name: fixture.name.clone(), body, expect: json!({"meta": {"kind": "stream"}, "request_tools": fixture.expect["request_tools"]}) };
        let (pieces, other) = mutated.run_in(random_sizes(seed));
        prop_assert_eq!(String::from_utf8_lossy(&pieces), String::from_utf8_lossy(&whole));
        prop_assert_eq!(other, summary);
    }
}

// ---- what Codex sees

#[test]
fn a_turn_with_reasoning_text_and_a_call() {
    let stream = stream(
        &[
            json!({"role": "assistant", "content": "", "reasoning_content": "Look "}),
            json!({"reasoning_content": "first."}),
            json!({"content": "\n"}),
            json!({"content": "I will \"look\"."}),
            call("call_8b1d2f", "exec_command", r#"{"cmd":"ls"}"#),
        ],
        "tool_calls",
    );
    let (out, _) = run(reply(ToolTable::from_names(&["exec_command"])), [stream.as_bytes()], EndCause::Eof);
    checked(&out);
    insta::assert_snapshot!(String::from_utf8(out).unwrap());
}

#[test]
fn calls_come_back_in_the_form_in_which_the_tools_were_offered() {
    let tools = table(&json!([
        {"type": "function", "name": "look", "parameters": {"type": "object"}},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "d"}},
        {"type": "namespace", "name": "mcp__lab", "tools": [{"type": "function", "name": "echo_it"}]},
        {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}},
        {"type": "local_shell"},
    ]));
    let alias = |namespace, name| tools.alias_of(namespace, name).unwrap().to_owned();
    let patch = "*** Begin Patch\n*** Delete File: a\n*** End Patch\n";
    let stream = stream(
        &[
            call("id_look_aaaa", &alias(None, "look"), r#"{"a": 1}"#),
            call("id_patch_aaaa", &alias(None, "apply_patch"), &json!({"input": patch}).to_string()),
            call("id_echo_aaaa", &alias(Some("mcp__lab"), "echo_it"), ""),
            call("id_search_aaaa", &alias(None, "tool_search"), r#"{"query":"q"}"#),
            call(
                "id_shell_aaaa",
                &alias(None, "local_shell"),
                r#"{"command":["ls","-l"],"workdir":"/w","timeout_ms":5}"#,
            ),
            call("id_shell_bbbb", &alias(None, "local_shell"), r#"{"command":"ls | wc"}"#),
            call("id_shell_cccc", &alias(None, "local_shell"), r#"{"nonsense":1}"#),
            call("id_other_aaaa", "unheard_of", "{}"),
        ],
        "stop",
    );
    let (out, _) = run(reply(tools), [stream.as_bytes()], EndCause::Eof);
    let mut items = checked(&out).items;
    for item in &mut items {
        let item = item.as_object_mut().unwrap();
        assert!(item.remove("id").is_some() && item.remove("status").is_some());
    }
    assert_eq!(
        Value::Array(items),
        json!([
            {"type": "function_call", "call_id": "id_look_aaaa", "name": "look", "arguments": r#"{"a": 1}"#},
            {"type": "custom_tool_call", "call_id": "id_patch_aaaa", "name": "apply_patch", "input": patch},
            {"type": "function_call", "call_id": "id_echo_aaaa", "name": "echo_it", "namespace": "mcp__lab", "arguments": "{}"},
            {"type": "tool_search_call", "call_id": "id_search_aaaa", "execution": "client", "arguments": {"query": "q"}},
            {"type": "local_shell_call", "call_id": "id_shell_aaaa",
             "action": {"type": "exec", "command": ["ls", "-l"], "env": {}, "timeout_ms": 5, "working_directory": "/w"}},
            {"type": "local_shell_call", "call_id": "id_shell_bbbb",
             "action": {"type": "exec", "command": ["bash", "-lc", "ls | wc"], "env": {}}},
            {"type": "function_call", "call_id": "id_shell_cccc", "name": "local_shell", "arguments": r#"{"nonsense":1}"#},
            {"type": "function_call", "call_id": "id_other_aaaa", "name": "unheard_of", "arguments": "{}"},
        ])
    );
}

#[test]
fn the_input_of_a_custom_tool_is_found_and_unwrapped() {
    let patch = "*** Begin Patch\n*** Add File: a\n+```\n+EOF\n*** End Patch";
    let line = patch.to_owned() + "\n";
    let rows = [
        (json!({"input": line}).to_string(), line.clone()),
        (json!({"patch": line}).to_string(), line.clone()),
        (json!({"content": line}).to_string(), line.clone()),
        (json!({"anything": line}).to_string(), line.clone()),
        (json!({"x": 1, "text": line}).to_string(), line.clone()),
        (json!(line).to_string(), line.clone()),
        (line.clone(), patch.to_owned()),
        (json!({"input": format!("```diff\n{line}```")}).to_string(), line.clone()),
        (json!({"input": format!("apply_patch <<'EOF'\n{line}EOF\n")}).to_string(), line.clone()),
        (json!({"input": format!("```sh\napply_patch <<-\"EOF\"\n{line}EOF\n```")}).to_string(), line.clone()),
        (json!({"input": format!("apply_patch << EOF_PATCH\n{line}")}).to_string(), patch.to_owned()),
        (json!({"input": line.replace('\n', "\\n")}).to_string(), line.clone()),
        (json!({"input": "```\nno patch\n```"}).to_string(), "```\nno patch\n```".to_owned()),
        (json!({"a": "1", "b": "2"}).to_string(), r#"{"a":"1","b":"2"}"#.to_owned()),
        ("{}".to_owned(), "{}".to_owned()),
    ];
    let tools = table(&json!([{"type": "custom", "name": "apply_patch"}]));
    for (arguments, expected) in rows {
        let stream = stream(&[call("id_aaaa_aaaa", "apply_patch", &arguments)], "tool_calls");
        let (out, _) = run(reply(tools.clone()), [stream.as_bytes()], EndCause::Eof);
        assert_eq!(checked(&out).items[0]["input"], json!(expected), "{arguments}");
    }
}

#[test]
fn call_ids_are_unique_in_the_whole_conversation() {
    let tools = ToolTable::from_names(&["look"]);
    let mut config = config(tools.clone());
    config.known_call_ids = HashSet::from(["call_used_before".into(), "call_0011_1".into()]);
    let reply = Reply::new(Box::new(Decoder::new(tools)), Framing::Sse, config);
    let long = "x".repeat(300);
    let ids = [
        "call_used_before",
        "call_0",
        "functions.look:1",
        "call_fresh_xyz",
        "7",
        "with space",
        &long,
        "",
        "toolu_0123456789",
    ];
    let deltas: Vec<Value> = ids.iter().map(|id| call(id, "look", r#"{"a":1}"#)).collect();
    let (out, _) = run(reply, [stream(&deltas, "stop").as_bytes()], EndCause::Eof);
    let transcript = checked(&out);
    let found: Vec<&str> = transcript.calls().iter().map(|call| call["call_id"].as_str().unwrap()).collect();
    // The call without an id continues the one before it, which has all its arguments already.
    assert_eq!(
        found,
        [
            "call_0011_0",
            "call_0011_2",
            "call_0011_3",
            "call_fresh_xyz",
            "call_0011_4",
            "call_0011_5",
            "call_0011_6",
            "toolu_0123456789"
        ]
    );
    let carried: Vec<String> = state_parts(&transcript)
        .into_iter()
        .map(|part| match part {
            Part::UpstreamId { call_id, upstream_id } => {
                format!("{call_id}={}", &upstream_id[..upstream_id.len().min(20)])
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        carried,
        [
            "call_0011_0=call_used_before",
            "call_0011_2=call_0",
            "call_0011_3=functions.look:1",
            "call_0011_4=7",
            "call_0011_5=with space",
            "call_0011_6=xxxxxxxxxxxxxxxxxxxx",
        ]
    );
    // One item carries the state of all calls, before the first of them.
    let kinds: Vec<&str> = transcript.items.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["reasoning", "function_call"]);
    assert_eq!(transcript.items_of("reasoning").len(), 1);
}

#[test]
fn state_rides_with_the_reasoning_it_belongs_to() {
    let stream = stream(
        &[
            json!({"reasoning_content": "one"}),
            json!({"content": "text"}),
            json!({"reasoning_content": "two"}),
            call("call_abcdef", "look", "{}"),
        ],
        "tool_calls",
    );
    let (out, _) = run(reply(ToolTable::from_names(&["look"])), [stream.as_bytes()], EndCause::Eof);
    let transcript = checked(&out);
    let shown: Vec<String> = transcript
        .items
        .iter()
        .map(|item| {
            let parts = item["encrypted_content"].as_str().map(|state| sealed::open(&SEAL_KEY, &origin(), state));
            format!("{} {} {parts:?}", item["type"].as_str().unwrap(), item["summary"][0]["text"])
        })
        .collect();
    assert_eq!(
        shown,
        [
            r#"reasoning "one" Some(Ours([ReasoningContent("one")]))"#,
            "message null None",
            r#"reasoning "two" Some(Ours([ReasoningContent("two")]))"#,
            "function_call null None",
        ]
    );
}

#[test]
fn reasoning_can_be_carried_without_being_shown() {
    let tools = ToolTable::from_names(&["look"]);
    let mut config = config(tools.clone());
    config.show_reasoning = false;
    let reply = Reply::new(Box::new(Decoder::new(tools)), Framing::Sse, config);
    let stream = stream(&[json!({"reasoning_content": "secret"}), json!({"content": "text"})], "stop");
    let (out, _) = run(reply, [stream.as_bytes()], EndCause::Eof);
    let transcript = checked(&out);
    assert_eq!(transcript.reasoning, "");
    assert_eq!(transcript.items[0]["summary"], json!([]));
    assert_eq!(state_parts(&transcript), [Part::ReasoningContent("secret".into())]);
}

#[test]
fn white_space_opens_no_item() {
    let stream = stream(
        &[
            json!({"content": "\n"}),
            json!({"reasoning_content": " "}),
            json!({"reasoning_content": "why"}),
            json!({"content": "\n\n"}),
            json!({"content": "text"}),
            json!({"content": "\n"}),
            json!({"reasoning_content": "\n"}),
            json!({"content": "more"}),
        ],
        "stop",
    );
    let (out, _) = run(reply(ToolTable::default()), [stream.as_bytes()], EndCause::Eof);
    let transcript = checked(&out);
    assert_eq!((transcript.text.as_str(), transcript.items.len()), ("\n\n\ntext\nmore", 2));
}

// ---- turn insurance

#[test]
fn an_early_failure_is_only_noted() {
    let mut reply = reply(ToolTable::from_names(&["look"]));
    let mut out = Vec::new();
    let error = "data: {\"error\":{\"message\":\"no capacity\",\"code\":503}}\n\n";
    reply.feed(b"data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n", &mut out);
    assert_eq!(reply.feed(error.as_bytes(), &mut out), Progress::default());
    assert_eq!((out.len(), reply.pending_failure().unwrap().class), (0, FailureClass::Overloaded));
    // The rest of the failed attempt changes nothing.
    reply.feed(b"data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n", &mut out);
    assert_eq!(out.len(), 0);

    let summary = reply.end(EndCause::Eof, &mut out);
    assert!(matches!(summary.outcome, Outcome::Failed(failure) if failure.class == FailureClass::Overloaded));
    assert_eq!(checked(&out).terminal.unwrap().error_code.as_deref(), Some("server_is_overloaded"));
}

#[test]
fn another_attempt_goes_on_in_the_same_stream() {
    let tools = ToolTable::from_names(&["look"]);
    let mut reply = reply(tools.clone());
    let mut out = Vec::new();
    reply.open(&mut out);
    reply.keepalive(&mut out);
    reply.notice("Waiting for `example`.", &mut out);
    reply.feed(b"data: {\"error\":\"boom\"}\n\n", &mut out);
    assert_eq!(reply.pending_failure().unwrap().message, "boom");

    let elsewhere = Origin { provider: "other".into(), model: "m-2".into(), account: String::new() };
    assert!(reply.restart(Box::new(Decoder::new(tools.clone())), Framing::Sse, elsewhere.clone()));
    assert!(reply.pending_failure().is_none());
    reply.notice("Trying `other`.", &mut out);
    let stream = stream(&[json!({"reasoning_content": "r"}), json!({"content": "answer"})], "stop");
    assert_eq!(reply.feed(stream.as_bytes(), &mut out), Progress { visible: true, finished: true });
    assert!(!reply.restart(Box::new(Decoder::new(tools)), Framing::Sse, elsewhere.clone()));
    reply.keepalive(&mut out);
    reply.notice("too late", &mut out);
    assert_eq!(reply.end(EndCause::Eof, &mut out).outcome, Outcome::Completed);

    let transcript = checked(&out);
    assert_eq!(transcript.text, "answer");
    assert_eq!(transcript.reasoning, "Waiting for `example`.Trying `other`.r");
    assert_eq!(transcript.keepalives, 1);
    let state = transcript.items[2]["encrypted_content"].as_str().unwrap();
    assert!(matches!(sealed::open(&SEAL_KEY, &elsewhere, state), Opened::Ours(_)));
}

#[test]
fn after_something_is_visible_a_failure_ends_the_stream() {
    let tools = ToolTable::from_names(&["look"]);
    let mut reply = reply(tools.clone());
    let mut out = Vec::new();
    reply.feed(b"data: {\"choices\":[{\"delta\":{\"content\":\"half an\"}}]}\n\n", &mut out);
    let progress = reply.feed(b"data: {\"error\":{\"message\":\"overloaded\",\"code\":503}}\n\n", &mut out);
    assert_eq!(progress, Progress { visible: true, finished: true });
    assert!(!reply.restart(Box::new(Decoder::new(tools)), Framing::Sse, origin()));
    let transcript = checked(&out);
    // Not `server_is_overloaded`, which would stop Codex; and the half message is not done, so that Codex drops it.
    assert_eq!(transcript.terminal.unwrap().error_code.as_deref(), Some("server_error"));
    assert_eq!((transcript.text.as_str(), transcript.items.len()), ("half an", 0));
}

#[test]
fn the_cause_of_a_broken_connection_is_told_unless_the_answer_was_complete() {
    let reset = Failure::new(FailureClass::Network, "connection reset");
    let half = "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n";
    let finish = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    for (stream, outcome) in [
        (half.to_owned(), Outcome::Failed(reset.clone())),
        ([half, finish].concat(), Outcome::Completed),
        ([half, finish, half].concat(), Outcome::Failed(reset.clone())),
        ([half, finish, half, finish].concat(), Outcome::Failed(reset.clone())),
        (String::new(), Outcome::Failed(reset.clone())),
        ("data: {\"choices\":[{\"delta\":{\"content\":\"half".to_owned(), Outcome::Failed(reset.clone())),
    ] {
        let (out, summary) = run(reply(ToolTable::default()), [stream.as_bytes()], EndCause::Failed(reset.clone()));
        checked(&out);
        assert_eq!(summary.outcome, outcome, "{stream}");
    }
    // What the caller knows counts for more than what an attempt had noted.
    let (out, summary) = run(
        reply(ToolTable::default()),
        [b"data: {\"error\":\"boom\"}\n\n".as_slice()],
        EndCause::Failed(reset.clone()),
    );
    assert_eq!(summary.outcome, Outcome::Failed(reset));
    assert_eq!(checked(&out).terminal.unwrap().message.as_deref(), Some("connection reset"));
}

#[test]
fn a_rate_limit_tells_codex_how_long_to_wait() {
    use std::time::Duration;
    let rows = [
        ("slow down", Some(12_500), "slow down. Please try again in 12.5s."),
        ("slow down!", Some(1), "slow down! Please try again in 0.001s."),
        (
            "Limit. Please try again in 7m59.56s. Bye.",
            Some(479_560),
            "Limit. Please retry in 7m59.56s. Bye. Please try again in 60s.",
        ),
        ("Try again in 86400s", None, "retry in 86400s"),
        ("now", Some(0), "now"),
    ];
    for (message, wait_ms, expected) in rows {
        let mut failure = Failure::new(FailureClass::RateLimit, message);
        failure.retry_after = wait_ms.map(Duration::from_millis);
        let (out, _) = run(reply(ToolTable::default()), [], EndCause::Failed(failure));
        assert_eq!(checked(&out).terminal.unwrap().message.as_deref(), Some(expected));
    }
}

#[test]
fn bodies_that_are_no_stream() {
    let tools = || ToolTable::from_names(&["look"]);
    let answer =
        json!({"object": "chat.completion", "choices": [{"message": {"content": "hi"}, "finish_reason": null}]});
    let lines = "{\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n{\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}\n";
    let rows = [
        (format!("\u{feff}\n {answer}"), "hi", "completed"),
        (json!({"data": answer, "success": true}).to_string(), "hi", "completed"),
        (lines.to_owned(), "ab", "completed"),
        (json!([answer]).to_string(), "hi", "completed"),
        ("{\"choices\":[{\"message\":{\"content\":\"hi\"".to_owned(), "", "failed"),
        ("{}".to_owned(), "", "failed"),
        ("[]".to_owned(), "", "failed"),
        ("{\"message\":\"model is gone\"}".to_owned(), "", "failed"),
        ("<html><body>Blocked</body></html>".to_owned(), "", "failed"),
        ("data: [DONE]\n\n".to_owned(), "", "failed"),
        (String::new(), "", "failed"),
    ];
    for (body, text, status) in rows {
        let (out, _) = run(reply(tools()), [body.as_bytes()], EndCause::Eof);
        let transcript = checked(&out);
        assert_eq!((transcript.text.as_str(), transcript.terminal.unwrap().status.as_str()), (text, status), "{body}");
    }
}

#[test]
fn limits_end_an_answer_in_an_orderly_way() {
    let long = |delta: Value, count: usize| {
        let chunk = format!("data: {}\n\n", json!({"choices": [{"delta": delta}]}));
        chunk.repeat(count)
    };
    let megabyte = "x".repeat(1 << 20);
    let rows = [
        (long(json!({"content": megabyte}), 18), "the answer is longer than"),
        (
            // Pieces to be joined, as the first shows: the same over and over again would be kept once.
            long(json!({"tool_calls": [{"index": 0, "function": {"name": "look", "arguments": "{"}}]}), 1)
                + &long(json!({"tool_calls": [{"index": 0, "function": {"name": "look", "arguments": megabyte}}]}), 18),
            "the answer holds more than",
        ),
        (format!("data: {}", megabyte.repeat(9)), "an event of the stream is longer than"),
        (format!("{{\"a\":\"{}", megabyte.repeat(9)), "an event of the stream is longer than"),
    ];
    for (stream, message) in rows {
        let (out, summary) =
            run(reply(ToolTable::from_names(&["look"])), stream.as_bytes().chunks(1 << 16), EndCause::Eof);
        checked(&out);
        let Outcome::Failed(failure) = summary.outcome else { panic!("{message}") };
        assert!(failure.message.starts_with(message), "{}", failure.message);
    }
}

#[test]
fn unreadable_frames_are_counted_and_the_rest_is_read() {
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {broken\n\ndata: what\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"\\ud83e b\"},\"finish_reason\":\"stop\"}]}\n\n";
    let (out, summary) = run(reply(ToolTable::default()), [stream.as_bytes()], EndCause::Eof);
    assert_eq!(checked(&out).text, "a\u{fffd} b");
    assert_eq!((summary.unreadable_frames, summary.first_unreadable.as_deref()), (2, Some("{broken")));
}

#[test]
fn a_broken_call_fails_the_answer_and_takes_the_whole_ones_with_it() {
    let deltas = [
        json!({"content": "I will."}),
        call("id_look_aaaa", "look", r#"{"a":1}"#),
        call("id_look_bbbb", "look", r#"{"a":"#),
    ];
    let tools = || ToolTable::from_names(&["look"]);
    let (out, summary) = run(reply(tools()), [stream(&deltas, "tool_calls").as_bytes()], EndCause::Eof);
    assert!(matches!(&summary.outcome, Outcome::Failed(failure) if failure.class == FailureClass::Truncated));
    assert_eq!(checked(&out).calls().len(), 0);

    // The output limit explains what is missing; what is there was meant.
    let (out, summary) = run(reply(tools()), [stream(&deltas, "length").as_bytes()], EndCause::Eof);
    assert_eq!((checked(&out).calls().len(), summary.outcome), (1, Outcome::Incomplete));
}

#[test]
fn a_filtered_answer_makes_no_call() {
    let deltas = [json!({"content": "I will."}), call("id_look_aaaa", "look", "{}")];
    let (out, summary) =
        run(reply(ToolTable::from_names(&["look"])), [stream(&deltas, "content_filter").as_bytes()], EndCause::Eof);
    assert_eq!((checked(&out).calls().len(), summary.outcome), (0, Outcome::Incomplete));
}

#[test]
fn a_message_that_repeats_what_was_said_is_said_once() {
    let chunk = |message: Value| format!("data: {}\n\n", json!({"choices": [{"message": message}]}));
    let stream = [
        chunk(json!({"reasoning_content": "wh"})),
        chunk(json!({"reasoning_content": "why", "content": "one"})),
        chunk(json!({"reasoning_content": "why", "content": "one two"})),
        stream(&[], "stop"),
    ];
    let (out, _) = run(reply(ToolTable::default()), [stream.concat().as_bytes()], EndCause::Eof);
    let transcript = checked(&out);
    assert_eq!((transcript.reasoning.as_str(), transcript.text.as_str()), ("why", "one two"));
}

#[test]
fn nothing_of_a_failed_attempt_comes_out_of_the_next_one() {
    let tools = ToolTable::from_names(&["look"]);
    let mut reply = reply(tools.clone());
    let mut out = Vec::new();
    // Held back: white space, and the beginning of markup.
    let first = stream(&[json!({"content": "\n <｜DSML｜invoke name=\"look\"></｜DSML｜invoke><｜"})], "error");
    reply.feed(first.as_bytes(), &mut out);
    assert_eq!((out.len(), reply.pending_failure().unwrap().class), (0, FailureClass::Server));
    assert_eq!(reply.end_of_attempt(&mut out), None);

    assert!(reply.restart(Box::new(Decoder::new(tools)), Framing::Sse, origin()));
    reply.feed(stream(&[json!({"content": "answer"})], "stop").as_bytes(), &mut out);
    assert_eq!(reply.end_of_attempt(&mut out).unwrap().outcome, Outcome::Completed);
    let transcript = checked(&out);
    assert_eq!((transcript.text.as_str(), transcript.calls().len()), ("answer", 0));
}

#[test]
fn the_end_of_an_attempt_is_only_noted_while_nothing_is_visible() {
    let mut reply = reply(ToolTable::default());
    let mut out = Vec::new();
    assert_eq!(reply.end_of_attempt(&mut out), None);
    assert_eq!((out.len(), reply.pending_failure().unwrap().class), (0, FailureClass::Truncated));

    assert!(reply.restart(Box::new(Decoder::new(ToolTable::default())), Framing::Sse, origin()));
    reply.feed(b"data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n", &mut out);
    let summary = reply.end_of_attempt(&mut out).unwrap();
    assert!(matches!(summary.outcome, Outcome::Failed(_)) && reply.progress().finished);
    assert_eq!(checked(&out).text, "half");
}

// ---- the emitter by itself, for what no decoder of ours says

#[test]
fn state_without_reasoning_waits_for_its_place() {
    let mut emitter = Emitter::new(config(ToolTable::default()));
    let mut out = Vec::new();
    emitter.opaque(Part::ReasoningContent("state".into()));
    emitter.notice("waiting", &mut out);
    assert!(!emitter.is_visible());
    emitter.text("answer", &mut out);
    emitter.stop(StopReason::Done, &mut out);
    let items = checked(&out).items;
    assert_eq!(items[0]["encrypted_content"], Value::Null);
    assert!(items[1]["encrypted_content"].is_string() && items[1]["summary"] == json!([]));
    assert_eq!(items[2]["type"], "message");
}

#[test]
fn white_space_does_not_jump_over_a_call_and_zeros_are_no_usage() {
    let mut emitter = Emitter::new(config(ToolTable::from_names(&["look"])));
    let mut out = Vec::new();
    emitter.text("\n", &mut out);
    let call = ToolCall { upstream_id: None, name: "look".into(), arguments: "{}".into(), extra_content: None };
    emitter.calls(&[call], &mut out);
    emitter.text("after", &mut out);
    emitter.set_usage(Usage::default());
    emitter.stop(StopReason::Done, &mut out);
    let transcript = checked(&out);
    assert_eq!(transcript.text, "after");
    assert_eq!(transcript.terminal.unwrap().usage, None);
}

#[test]
fn a_pause_asks_codex_to_go_on_and_a_search_is_shown() {
    let mut emitter = Emitter::new(config(ToolTable::default()));
    let mut out = Vec::new();
    emitter.web_search("rust sse", &mut out);
    emitter.stop(StopReason::Paused, &mut out);
    emitter.stop(StopReason::Done, &mut out);
    let text = String::from_utf8(out.clone()).unwrap();
    assert!(text.contains("\"end_turn\":false"));
    assert_eq!(checked(&out).items[0]["action"], json!({"type": "search", "query": "rust sse"}));
}
