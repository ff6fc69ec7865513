//! Requests as Codex sends them, of a wanted size.
//!
//! They begin as a recorded first turn does: instructions, permissions, environment, the tools of Codex. What makes
//! them long is what makes real ones long: rounds of reasoning, a call of the shell and its output of a few kilobytes
//! of source code and logs, now and then a patch and a word to the user.

use serde_json::{Value, json};

/// A recorded first turn.
const FIRST_TURN: &str = include_str!("../../../fixtures/codex-requests/01_first_turn_full_untouched.json");
/// Requests smaller than this offer the shell alone: Codex's own list of tools takes eight kilobytes.
const ALL_TOOLS_BYTES: usize = 16_000;
/// The outputs of calls lie between these; 4.3 KB on average, as in long sessions.
const OUTPUT_BYTES: std::ops::Range<usize> = 600..8_000;
/// Lines as tools print them: code, quotes, indentation, now and then a letter that is not ASCII.
const LINES: [&str; 8] = [
    "    let reply = client.send(&request).await.context(\"send the request\")?;\n",
    "        \"name\": \"codex\",\n",
    "\n",
    "error[E0502]: cannot borrow `*self` as mutable because it is also borrowed as immutable\n",
    "   --> src/worker/session.rs:214:17\n",
    "    |\n",
    "test sse::tests::split_anywhere ... ok\n",
    "// Größe in Bytes → see `limits.rs`\n",
];

/// A request of about `bytes` for `model`.
pub(crate) fn request(bytes: usize, model: &str) -> Vec<u8> {
    let recorded: Value = serde_json::from_str(FIRST_TURN).expect("the fixture is JSON");
    let mut request = recorded["body"].clone();
    request["model"] = json!(model);
    if bytes < ALL_TOOLS_BYTES {
        request["tools"] = json!([request["tools"][0]]);
    }
    let mut input = request["input"].as_array().cloned().expect("the fixture has a history");
    let mut size = request.to_string().len();
    let mut round = 0;
    while size < bytes {
        let items = items(round, bytes - size);
        size += items.iter().map(|item| item.to_string().len() + 1).sum::<usize>();
        input.extend(items);
        round += 1;
    }
    request["input"] = Value::Array(input);
    request.to_string().into_bytes()
}

/// One step of the model: what it thought, called and got.
fn items(round: usize, bytes_left: usize) -> Vec<Value> {
    let call_id = format!("call_{round:08x}");
    let mut items = vec![json!({
        "type": "reasoning", "id": format!("rs_{round}"), "content": null,
        "summary": [{"type": "summary_text", "text": "**Looking** at what comes next"}],
    })];
    if round % 5 == 4 {
        let patch = format!(
            "*** Begin Patch\n*** Update File: src/module_{round}.rs\n@@\n-    \"old\"\n+    \"new\"\n*** End Patch\n"
        );
        items.push(json!({
            "type": "custom_tool_call", "id": format!("ctc_{round}"), "status": "completed", "call_id": call_id,
            "name": "apply_patch", "input": patch,
        }));
        items.push(json!({
            "type": "custom_tool_call_output", "id": format!("ctco_{round}"), "call_id": call_id,
            "output": format!("Exit code: 0\nWall time: 0 seconds\nOutput:\nSuccess. Updated the following files:\nM src/module_{round}.rs\n"),
        }));
        items.push(json!({
            "type": "message", "id": format!("msg_{round}"), "role": "assistant",
            "content": [{"type": "output_text", "text": "The first part is done, I go on with the next file."}],
        }));
        return items;
    }
    let arguments = json!({"cmd": format!("rg -n \"fn step_{round}\" src | head -40"), "workdir": "/home/dev/project"});
    items.push(json!({
        "type": "function_call", "id": format!("fc_{round}"), "call_id": call_id, "name": "exec_command",
        "arguments": arguments.to_string(),
    }));
    // Spread over the range by a step that shares no factor with its length.
    let wanted = OUTPUT_BYTES.start + round * 3_307 % OUTPUT_BYTES.len();
    items.push(json!({
        "type": "function_call_output", "id": format!("fco_{round}"), "call_id": call_id,
        "output": output(wanted.min(bytes_left), round),
    }));
    items
}

fn output(bytes: usize, seed: usize) -> String {
    let mut text = "Chunk ID: c94b71\nWall time: 0.0000 seconds\nProcess exited with code 0\nOutput:\n".to_owned();
    for line in LINES.iter().cycle().skip(seed % LINES.len()) {
        if text.len() >= bytes {
            break;
        }
        text.push_str(line);
    }
    text
}
