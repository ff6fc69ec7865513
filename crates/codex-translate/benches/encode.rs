//! How long a request takes from its bytes to the bytes of a Chat Completions body.
//!
//! The histories are shaped like Codex's: long instructions, a dozen tools, then calls of a shell with outputs of 1 to
//! 20 KB of source code and logs, which is where a megabyte comes from.
//!
//! `cargo bench -p codex-translate --bench encode`

use std::hint::black_box;

use codex_translate::chat::{Profile, Replay, encode};
use codex_translate::{Request, Target};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::{Value, json};

/// Lines as tools print them: code, quotes, indentation, now and then a word that is not ASCII.
fn output(length: usize, seed: usize) -> String {
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
    let mut text = String::from("Chunk ID: c94b71\nWall time: 0.0000 seconds\nProcess exited with code 0\nOutput:\n");
    for line in LINES.iter().cycle().skip(seed % LINES.len()) {
        if text.len() >= length {
            break;
        }
        text.push_str(line);
    }
    text
}

/// A body of about `size` bytes.
fn body(size: usize) -> Vec<u8> {
    let message = |role: &str, text: &str| json!({"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]});
    let instructions = output(size.min(60_000) / 4, 1);
    let mut input = vec![
        message("developer", &instructions),
        message("developer", "<permissions instructions>\nNone.\n</permissions instructions>"),
        message("user", "<environment_context>\n  <cwd>/home/dev/project</cwd>\n</environment_context>"),
        message("user", "Make the tests pass."),
    ];
    let properties: Value = (0..6)
        .map(|index| {
            let name = format!("property_{index}");
            (name, json!({"type": "string", "description": "What it is, in a sentence that is not too short."}))
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    let tool = |name: &str| {
        let parameters = json!({"type": "object", "properties": properties, "additionalProperties": false});
        json!({"type": "function", "name": name, "description": "Runs.", "strict": false, "parameters": parameters})
    };
    let n_tools = (size / 4_000).clamp(1, 12);
    let mut tools: Vec<Value> = (0..n_tools).map(|index| tool(&format!("tool_{index}"))).collect();
    tools.push(tool("exec_command"));
    tools.push(json!({"type": "namespace", "name": "mcp__lab", "tools": [tool("echo")]}));

    let mut length = json!({"input": input, "tools": tools}).to_string().len();
    for turn in 0.. {
        if length >= size {
            break;
        }
        let call_id = format!("call_{turn:08x}");
        let arguments = json!({"cmd": format!("rg -n \"fn {turn}\" src | head"), "workdir": "/home/dev"}).to_string();
        let output = output((1_000 + turn * 7_919 % 19_000).min(size - length + 200), turn);
        let items = [
            json!({"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "**Looking**"}], "content": null}),
            json!({"type": "function_call", "id": "fc_1", "name": "exec_command", "arguments": arguments, "call_id": call_id}),
            json!({"type": "function_call_output", "id": "fco_1", "call_id": call_id, "output": output}),
        ];
        length += items.iter().map(|item| item.to_string().len()).sum::<usize>();
        input.extend(items);
    }
    let request = json!({
        "model": "m", "stream": true, "input": input, "tools": tools, "tool_choice": "auto", "parallel_tool_calls": true,
        "reasoning": {"effort": "medium", "summary": "auto"}, "store": false, "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k", "client_metadata": {"turn_id": "t"}
    });
    serde_json::to_vec(&request).expect("a Value always has a JSON form")
}

fn benchmarks(criterion: &mut Criterion) {
    let chat = Profile { replay: Replay::ReasoningContent, ..Profile::default() };
    let target = Target { chat, ..Target::new("bench", "bench") };
    let mut group = criterion.benchmark_group("request");
    for (name, size) in [("2KB", 2_000), ("60KB", 60_000), ("1MB", 1_000_000)] {
        let body = body(size);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(BenchmarkId::new("parse", name), &body, |bencher, body| {
            bencher.iter(|| Request::parse(black_box(body)).expect("the body is valid"));
        });
        group.bench_with_input(BenchmarkId::new("parse+encode", name), &body, |bencher, body| {
            bencher.iter(|| {
                let request = Request::parse(black_box(body)).expect("the body is valid");
                encode::encode(&request, &target).expect("there is a message")
            });
        });
    }
    group.finish();
}

criterion_group!(all, benchmarks);
criterion_main!(all);
