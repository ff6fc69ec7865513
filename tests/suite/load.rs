//! Many streams at once through one worker, for a while, with each wire protocol in turn: every answer is what was asked
//! for, and the worker holds no more at the end.
//!
//! The scripted answer is made from the request's number, so that an answer that reaches the wrong request, or loses or
//! repeats a part, is noticed. `scripts/load.sh` runs this with more streams and for longer.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use codex_control::tables::Protocol;
use codex_translate::checker;
use e2e::home::{DEADLINE, SandboxHome};
use e2e::until::try_until;
use serde_json::{Value, json};

use crate::standalone::Worker;
use crate::sweep::upstream::{CHUNKED_HEAD, LAST_CHUNK, read_request, write_status};

/// Seconds for each worker, and its streams, where the environment does not say otherwise: what a run of all tests has
/// time for.
const SECONDS: (&str, u64) = ("E2E_LOAD_SECONDS", 10);
const STREAMS: (&str, u64) = ("E2E_LOAD_STREAMS", 20);
/// Of the streams, so many were open at the provider at one moment, at least; the others are between two answers.
const OPEN_PERCENT_MIN: u64 = 75;
/// Texts of an answer.
const TEXTS: usize = 20;
/// Pause of the provider between two of them, in milliseconds; differs by the number of the request.
const PAUSE_MS: [u64; 4] = [1, 20, 50, 120];
/// Filling of a request's history, in bytes; differs likewise.
const FILLING: [usize; 3] = [500, 8_000, 60_000];
/// Time between two looks at a worker's memory.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// How much more memory a worker may hold in the last third of the time than in the second: what the allocator keeps
/// apart differs a little from moment to moment.
const GROWTH_PERCENT_MAX: u64 = 110;
/// The same in bytes, for workers that are small.
const GROWTH_BYTES_MAX: u64 = 2 << 20;
/// Descriptors that a worker may have more at the end than at the beginning: the connections to the provider it keeps.
const DESCRIPTORS_KEPT_MAX: usize = 16;
/// Stands before the number of a request.
const MARK: &str = "load number ";
/// Looks at the memory that are shown.
const SHOWN_SAMPLES: usize = 20;
/// Wrong answers that are shown.
const SHOWN_MAX: usize = 5;

/// A number that the environment may set.
pub(crate) fn from_environment((name, default): (&str, u64)) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Answers that the provider is writing, and the most there were at once since somebody looked; each waits until there
/// were so many, so that a slow machine has as many open as a fast one.
static OPEN: AtomicU64 = AtomicU64::new(0);
static OPEN_MAX: AtomicU64 = AtomicU64::new(0);
static OPEN_WANTED: AtomicU64 = AtomicU64::new(0);

#[test]
fn many_streams_at_once_stay_apart_and_leave_nothing_behind() {
    let (seconds, streams) = (from_environment(SECONDS), from_environment(STREAMS));
    let provider = start_provider().expect("a loopback port is to be had");
    let home = SandboxHome::new();
    let workers = Worker::start_all(&home, provider, "load", "");
    let numbers = AtomicUsize::new(0);
    for worker in &workers {
        press(worker, &numbers, Duration::from_secs(seconds), streams);
    }
}

/// Keeps `streams` answers of one worker flowing for that time.
fn press(worker: &Worker, numbers: &AtomicUsize, time: Duration, streams: u64) {
    let name = worker.protocol.name();
    let descriptors_before = descriptors(worker);
    let is_over = AtomicBool::new(false);
    let wrong = Mutex::new(Vec::new());
    OPEN_MAX.store(0, Ordering::SeqCst);
    OPEN_WANTED.store((streams * OPEN_PERCENT_MIN).div_ceil(100), Ordering::SeqCst);
    let first = numbers.load(Ordering::SeqCst);
    let begin = Instant::now();
    let samples = thread::scope(|scope| {
        for _ in 0..streams {
            scope.spawn(|| {
                while begin.elapsed() < time {
                    let number = numbers.fetch_add(1, Ordering::SeqCst);
                    if let Err(problem) = ask(worker, number) {
                        let problem = format!("{name} {number}: {problem}");
                        wrong.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
                    }
                }
            });
        }
        let sampler = scope.spawn(|| sample(worker, &is_over));
        while begin.elapsed() < time {
            thread::park_timeout(time.saturating_sub(begin.elapsed()));
        }
        is_over.store(true, Ordering::SeqCst);
        sampler.join().expect("the sampler does not panic")
    });

    let n_answers = numbers.load(Ordering::SeqCst) - first;
    let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    let n_open = OPEN_MAX.load(Ordering::SeqCst);
    let third = samples.len() / 3;
    let largest = |part: &[u64]| part.iter().copied().max().unwrap_or_default();
    let (earlier, later) = (median(&samples[third..2 * third]), median(&samples[2 * third..]));
    let allowed = u64::max(earlier * GROWTH_PERCENT_MAX / 100, earlier + GROWTH_BYTES_MAX);
    let is_back = |now: &usize| *now <= descriptors_before + DESCRIPTORS_KEPT_MAX;
    let now = try_until(DEADLINE, || Some(descriptors(worker)).filter(is_back));
    println!(
        "{name}: {n_answers} answers in {:.1} s by {streams} clients, {n_open} open at once; {} wrong; {:.1} MiB in the second third, {:.1} MiB in the last; descriptors {descriptors_before} before, {now:?} after",
        begin.elapsed().as_secs_f64(),
        wrong.len(),
        to_f64(earlier) / to_f64(1 << 20),
        to_f64(later) / to_f64(1 << 20),
    );
    let shown = samples.chunks(samples.len().div_ceil(SHOWN_SAMPLES).max(1)).map(largest);
    println!("  MiB over time: {}", shown.map(|bytes| (bytes >> 20).to_string()).collect::<Vec<_>>().join(" "));
    assert!(wrong.is_empty(), "{}", wrong[..wrong.len().min(SHOWN_MAX)].join("\n\n"));
    assert!(n_answers as u64 >= streams, "each stream was answered at least once: {n_answers}");
    assert!(n_open * 100 >= streams * OPEN_PERCENT_MIN, "at most {n_open} of {streams} streams were open at once");
    assert!(later <= allowed, "{name} grows: {samples:?}");
    assert!(now.is_some(), "{name} keeps {} descriptors, had {descriptors_before}", descriptors(worker));
}

/// What grows has a larger one later; a moment in which many ask at once does not move it.
fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "memory in bytes is far below 2^52")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

/// Resident memory of the worker, at each look.
fn sample(worker: &Worker, is_over: &AtomicBool) -> Vec<u64> {
    let mut samples = Vec::new();
    while !is_over.load(Ordering::SeqCst) {
        samples.push(resident_bytes(worker));
        thread::park_timeout(SAMPLE_EVERY);
    }
    samples
}

pub(crate) fn resident_bytes(worker: &Worker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.process.id())).expect("the worker lives");
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    kilobytes.map_or(0, |kilobytes: u64| kilobytes * 1_024)
}

fn descriptors(worker: &Worker) -> usize {
    let path = format!("/proc/{}/fd", worker.process.id());
    std::fs::read_dir(Path::new(&path)).expect("the worker lives").count()
}

/// What the answer to request `number` says, and the arguments of its call, if it makes one.
fn expected(number: usize) -> (Vec<String>, Option<Value>) {
    let texts = (0..TEXTS).map(|n| format!("{number}.{n} \"grüße\" 🦀\n")).collect();
    let call = number.is_multiple_of(2).then(|| json!({ "cmd": format!("echo {number}; \\") }));
    (texts, call)
}

fn ask(worker: &Worker, number: usize) -> Result<(), String> {
    let filling = "fn main() { println!(\"{}\", 1); }\n".repeat(FILLING[number % FILLING.len()] / 32);
    let body = json!({
        "model": "scripted",
        "stream": true,
        // As Codex says it. Answers that are kept would fill their own bounded room all the while.
        "store": false,
        "input": [
            { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "Begin." }] },
            { "type": "function_call", "call_id": "call_00000001", "name": "exec_command", "arguments": "{\"cmd\":\"cat a\"}" },
            { "type": "function_call_output", "call_id": "call_00000001", "output": filling },
            { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": format!("{MARK}{number}.") }] },
        ],
        "tools": [{ "type": "function", "name": "exec_command", "description": "runs", "strict": false, "parameters": { "type": "object", "properties": { "cmd": { "type": "string" } } } }],
    });
    let answer = worker.ask(&body.to_string())?;
    let shown = || format!("{} {}", answer.status, answer.text());
    let transcript = checker::check(&answer.body).map_err(|fault| format!("{fault}\n{}", shown()))?;
    let (texts, call) = expected(number);
    let calls: Vec<Value> = transcript
        .calls()
        .into_iter()
        .map(|call| serde_json::from_str(call["arguments"].as_str().unwrap_or_default()).unwrap_or_default())
        .collect();
    let status = transcript.terminal.as_ref().map(|terminal| terminal.status.as_str());
    if transcript.text == texts.concat() && calls == Vec::from_iter(call) && status == Some("completed") {
        Ok(())
    } else {
        Err(shown())
    }
}

/// A provider of all protocols; it lives as long as this process.
fn start_provider() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away ends its connection, and that is all.
            thread::spawn(move || _ = serve(stream));
        }
    });
    Ok(address)
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut pending = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut pending)? {
        let number = request.find(MARK).and_then(|at| request[at + MARK.len()..].split('.').next()?.parse().ok());
        let Some(number) = number else {
            let list = json!({ "object": "list", "data": [{ "id": "scripted", "object": "model" }] });
            write_status(&mut stream, 200, &list)?;
            continue;
        };
        let protocol = if request.starts_with("POST /v1/messages") {
            Protocol::AnthropicMessages
        } else if request.starts_with("POST /v1/responses") {
            Protocol::Responses
        } else {
            Protocol::ChatCompletions
        };
        OPEN_MAX.fetch_max(OPEN.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let are_open = || OPEN_MAX.load(Ordering::SeqCst) >= OPEN_WANTED.load(Ordering::SeqCst);
        try_until(DEADLINE, || are_open().then_some(())); // whoever has waited in vain is told at the end
        let written = answer(&mut stream, protocol, number);
        OPEN.fetch_sub(1, Ordering::SeqCst);
        written?;
    }
    Ok(())
}

fn answer(stream: &mut TcpStream, protocol: Protocol, number: usize) -> io::Result<()> {
    stream.write_all(CHUNKED_HEAD)?;
    let pause = Duration::from_millis(PAUSE_MS[number % PAUSE_MS.len()]);
    for event in events(protocol, number) {
        stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())?;
        // The pace of a model, not a wait for anything.
        thread::park_timeout(pause);
    }
    stream.write_all(LAST_CHUNK)
}

/// The events of the answer to request `number`.
fn events(protocol: Protocol, number: usize) -> Vec<String> {
    let (texts, call) = expected(number);
    let named = |kind: &str, data: Value| format!("event: {kind}\ndata: {data}\n\n");
    let arguments = call.map(|call| call.to_string());
    match protocol {
        Protocol::ChatCompletions => {
            let chunk = |delta: Value, finish: Value| {
                let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
                format!(
                    "data: {}\n\n",
                    json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "scripted", "choices": [choice] })
                )
            };
            let mut events: Vec<String> =
                texts.iter().map(|text| chunk(json!({ "content": text }), Value::Null)).collect();
            let finish = if arguments.is_some() { "tool_calls" } else { "stop" };
            if let Some(arguments) = arguments {
                let (first, rest) = arguments.split_at(arguments.len() / 2);
                let head = json!({ "index": 0, "id": format!("call_{number:08}"), "type": "function", "function": { "name": "exec_command", "arguments": first } });
                events.push(chunk(json!({ "tool_calls": [head] }), Value::Null));
                events.push(chunk(
                    json!({ "tool_calls": [{ "index": 0, "function": { "arguments": rest } }] }),
                    Value::Null,
                ));
            }
            events.push(chunk(json!({}), json!(finish)));
            events.push("data: [DONE]\n\n".to_owned());
            events
        }
        Protocol::AnthropicMessages => {
            let message = json!({ "id": "m", "type": "message", "role": "assistant", "model": "scripted", "content": [], "stop_reason": null, "usage": { "input_tokens": 9, "output_tokens": 1 } });
            let block = |kind: &str, index: usize, more: (&str, Value)| {
                let mut data = json!({ "type": kind, "index": index });
                data[more.0] = more.1;
                named(kind, data)
            };
            let stop =
                |index: usize| named("content_block_stop", json!({ "type": "content_block_stop", "index": index }));
            let mut events = vec![
                named("message_start", json!({ "type": "message_start", "message": message })),
                block("content_block_start", 0, ("content_block", json!({ "type": "text", "text": "" }))),
            ];
            for text in texts {
                events.push(block("content_block_delta", 0, ("delta", json!({ "type": "text_delta", "text": text }))));
            }
            events.push(stop(0));
            let reason = if arguments.is_some() { "tool_use" } else { "end_turn" };
            if let Some(arguments) = arguments {
                let tool = json!({ "type": "tool_use", "id": format!("toolu_{number:08}"), "name": "exec_command", "input": {} });
                let delta = json!({ "type": "input_json_delta", "partial_json": arguments });
                events.push(block("content_block_start", 1, ("content_block", tool)));
                events.push(block("content_block_delta", 1, ("delta", delta)));
                events.push(stop(1));
            }
            let delta =
                json!({ "type": "message_delta", "delta": { "stop_reason": reason }, "usage": { "output_tokens": 9 } });
            events.push(named("message_delta", delta));
            events.push(named("message_stop", json!({ "type": "message_stop" })));
            events
        }
        Protocol::Responses => native_events(number, &texts, arguments.as_deref()),
    }
}

/// The same in the Responses API's own events.
fn native_events(number: usize, texts: &[String], arguments: Option<&str>) -> Vec<String> {
    let mut events = Vec::new();
    let mut add = |mut data: Value| {
        data["sequence_number"] = json!(events.len());
        events.push(format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap_or_default()));
    };
    let response = |status: &str, output: &[Value]| json!({ "id": format!("resp_{number}"), "object": "response", "created_at": 1, "status": status, "model": "scripted", "output": output });
    add(json!({ "type": "response.created", "response": response("in_progress", &[]) }));
    add(json!({ "type": "response.in_progress", "response": response("in_progress", &[]) }));
    let message = |status: &str, text: &str| {
        let content = if status == "completed" {
            json!([{ "type": "output_text", "text": text, "annotations": [] }])
        } else {
            json!([])
        };
        json!({ "type": "message", "id": "msg_1", "status": status, "role": "assistant", "content": content })
    };
    let text = texts.concat();
    let mut output = vec![message("completed", &text)];
    add(json!({ "type": "response.output_item.added", "output_index": 0, "item": message("in_progress", "") }));
    let part = |text: &str| json!({ "type": "output_text", "text": text, "annotations": [] });
    add(
        json!({ "type": "response.content_part.added", "item_id": "msg_1", "output_index": 0, "content_index": 0, "part": part("") }),
    );
    for delta in texts {
        add(
            json!({ "type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": delta }),
        );
    }
    add(
        json!({ "type": "response.output_text.done", "item_id": "msg_1", "output_index": 0, "content_index": 0, "text": text }),
    );
    add(
        json!({ "type": "response.content_part.done", "item_id": "msg_1", "output_index": 0, "content_index": 0, "part": part(&text) }),
    );
    add(json!({ "type": "response.output_item.done", "output_index": 0, "item": output[0] }));
    if let Some(arguments) = arguments {
        let call = |status: &str, arguments: &str| json!({ "type": "function_call", "id": "fc_1", "status": status, "call_id": format!("call_{number:08}"), "name": "exec_command", "arguments": arguments });
        let done = call("completed", arguments);
        add(json!({ "type": "response.output_item.added", "output_index": 1, "item": call("in_progress", "") }));
        add(
            json!({ "type": "response.function_call_arguments.delta", "item_id": "fc_1", "output_index": 1, "delta": arguments }),
        );
        add(
            json!({ "type": "response.function_call_arguments.done", "item_id": "fc_1", "output_index": 1, "arguments": arguments }),
        );
        add(json!({ "type": "response.output_item.done", "output_index": 1, "item": done }));
        output.push(done);
    }
    add(json!({ "type": "response.completed", "response": response("completed", &output) }));
    events
}
