//! What one answer costs: a stream of a thousand small events, in reads of 16 KB, as a burst from a fast provider.

use std::collections::HashSet;
use std::hint::black_box;

use codex_translate::chat::decode::Decoder;
use codex_translate::native::Sniffer;
use codex_translate::sealed::Origin;
use codex_translate::tools::ToolTable;
use codex_translate::{EndCause, Framing, Reply, ReplyConfig, ReplySeed};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Events of one answer.
const EVENTS: u64 = 1_000;

/// Bytes of one read.
const READ_BYTES: usize = 16 * 1024;

/// A stream as `OpenAI` and most others write it, with text that has a line end here and there.
fn stream(field: &str) -> Vec<u8> {
    let words = ["The", " quick", " brown", " fox", " jumps", " over", " the", " lazy", " dog", ".\\n"];
    let event = |word: &&str| {
        format!(
            "data: {{\"id\":\"chatcmpl-8f6b2c1d\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"glm-4.7\",\
             \"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"{field}\":\"{word}\"}},\"finish_reason\":null}}]}}\n\n"
        )
    };
    let mut stream: String =
        words.iter().cycle().take(usize::try_from(EVENTS).expect("a thousand fits")).map(event).collect();
    // A last word of text, so that an answer of reasoning alone is none either.
    stream += "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"!\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    stream.into_bytes()
}

fn reply() -> Reply {
    let tools = ToolTable::from_names(&["exec_command", "write_stdin", "view_image", "update_plan"]);
    let config = ReplyConfig {
        seed: ReplySeed {
            response_id: "resp_0123456789abcdef0123456789abcdef".to_owned(),
            created_at: 1_760_000_000,
            model: "glm-4.7".to_owned(),
        },
        tools: tools.clone(),
        origin: Origin { provider: "zai".to_owned(), model: "glm-4.7".to_owned(), account: String::new() },
        seal_key: [7; 32],
        known_call_ids: HashSet::new(),
        show_reasoning: true,
        compaction: false,
        keep_output: false,
        continuations_max: 0,
    };
    Reply::new(Box::new(Decoder::new(tools)), Framing::Sse, config)
}

fn translate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reply");
    group.throughput(Throughput::Elements(EVENTS));
    for field in ["content", "reasoning_content"] {
        let stream = stream(field);
        group.bench_function(field, |bencher| {
            bencher.iter(|| {
                let mut reply = reply();
                let mut written = 0;
                // As the worker does: one buffer for each read, sent as one chunk.
                for read in stream.chunks(READ_BYTES) {
                    let mut out = Vec::with_capacity(2 * READ_BYTES);
                    reply.feed(black_box(read), &mut out);
                    written += black_box(out).len();
                }
                let mut out = Vec::new();
                black_box(reply.end(EndCause::Eof, &mut out));
                written + out.len()
            });
        });
    }
    let native = {
        let mut out = Vec::new();
        let mut reply = reply();
        reply.feed(&stream("content"), &mut out);
        out
    };
    group.bench_function("native", |bencher| {
        bencher.iter(|| {
            let mut sniffer = Sniffer::default();
            for read in native.chunks(READ_BYTES) {
                black_box(sniffer.feed(black_box(read)));
            }
            sniffer.end(EndCause::Eof)
        });
    });
    group.finish();
}

criterion_group!(benches, translate);
criterion_main!(benches);
