//! Answers to a request for a compacted history: one item with the sealed summary, or a failure.

use super::*;
use crate::{Protocol as _, Target, chat};

fn reply_of(suite: &Suite) -> Reply {
    let tools = ToolTable::default();
    let config = ReplyConfig { compaction: true, ..config(tools.clone()) };
    Reply::new((suite.decoder)(tools), Framing::Sse, config)
}

fn answer(stream: &str) -> (Transcript, Summary) {
    let (out, summary) = run(reply_of(&CHAT), [stream.as_bytes()], EndCause::Eof);
    (checked(&out), summary)
}

fn text(text: &str) -> Value {
    json!({"content": text})
}

#[test]
fn the_summary_is_the_one_item() {
    let deltas = [
        json!({"reasoning_content": "hm"}),
        text("  What was "),
        text("done: <tool_call>{\"name\": \"exec_command\"}</tool_call>"),
        call("call_abcdefgh", "exec_command", "{}"),
    ];
    let (transcript, summary) = answer(&stream(&deltas, "stop"));
    assert_eq!(summary.outcome, Outcome::Completed);
    let [item] = transcript.items.as_slice() else { panic!("{transcript:?}") };
    assert_eq!(item["type"], "compaction");
    let expected = "  What was done: <tool_call>{\"name\": \"exec_command\"}</tool_call>";
    assert_eq!(state_parts(&transcript), [Part::Summary(expected.into())]);
    assert_eq!((transcript.text.as_str(), transcript.reasoning.as_str()), ("", ""));
}

#[test]
fn without_a_whole_summary_there_is_no_item() {
    let failed = |deltas: &[Value]| {
        let (transcript, summary) = answer(&stream(deltas, "stop"));
        assert!(matches!(summary.outcome, Outcome::Failed(_)), "{summary:?}");
        transcript.items
    };
    assert_eq!(failed(&[text(" \n")]), Vec::<Value>::new());
    assert_eq!(failed(&[json!({"reasoning_content": "hm"})]), Vec::<Value>::new());
    assert_eq!(failed(&[call("call_abcdefgh", "exec_command", "{}")]), Vec::<Value>::new());

    // A pause is an end here: nothing can be added by asking again.
    let paused = "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"pause_turn\"}}\n\n\
        data: {\"type\":\"message_stop\"}\n\n";
    let (out, summary) = run(reply_of(&ANTHROPIC), [paused.as_bytes()], EndCause::Eof);
    assert!(matches!(summary.outcome, Outcome::Failed(_)) && checked(&out).items.is_empty(), "{summary:?}");

    // Cut at the output limit.
    let (transcript, summary) = answer(&stream(&[text("What was")], "length"));
    assert_eq!((summary.outcome, transcript.items.len()), (Outcome::Incomplete, 0));
    // Cut by the network: the attempt can be forgotten.
    let mut reply = reply_of(&CHAT);
    let mut out = Vec::new();
    let whole = stream(&[text("What was")], "stop");
    let progress = reply.feed(&whole.as_bytes()[..whole.find("finish_reason").unwrap()], &mut out);
    assert_eq!((progress, out.len()), (Progress::default(), 0));
    assert!(reply.end_of_attempt(&mut out).is_none() && out.is_empty());
    assert!(reply.restart((CHAT.decoder)(ToolTable::default()), Framing::Sse, origin()));
    reply.feed(stream(&[text("another")], "stop").as_bytes(), &mut out);
    assert_eq!(state_parts(&checked(&out)), [Part::Summary("another".into())]);
}

#[test]
fn a_wait_shows_no_item() {
    let mut reply = reply_of(&CHAT);
    let mut out = Vec::new();
    reply.notice("waiting", &mut out);
    reply.keepalive(&mut out);
    reply.feed(stream(&[text("done")], "stop").as_bytes(), &mut out);
    let transcript = checked(&out);
    assert_eq!((transcript.items.len(), transcript.keepalives, transcript.reasoning.as_str()), (1, 2, ""));
}

#[test]
fn a_summary_that_is_far_too_long_is_cut() {
    let long = "\u{1}🦀".repeat(60_000);
    let (transcript, _) = answer(&stream(&[text(&long)], "stop"));
    let parts = state_parts(&transcript);
    let [Part::Summary(summary)] = parts.as_slice() else { panic!("{} parts", parts.len()) };
    assert!(summary.chars().count() <= 50_000 && summary.contains(" characters left out "));
}

/// Every recorded answer of a provider, as if a summary had been asked for.
#[test]
fn any_answer_becomes_one_item_or_none() {
    for fixture in fixtures().into_iter().filter(|fixture| !fixture.is_http_error()) {
        let name = &fixture.name;
        let (out, summary) = run(reply_of(fixture.suite), [fixture.body.as_slice()], EndCause::Eof);
        let transcript = checked(&out);
        let has_item = summary.outcome == Outcome::Completed;
        assert_eq!(transcript.items.len(), usize::from(has_item), "{name}");
        assert!(transcript.items.iter().all(|item| item["type"] == "compaction"), "{name}");
        let bytes = fixture.body.chunks(1);
        assert_eq!(run(reply_of(fixture.suite), bytes, EndCause::Eof), (out, summary), "{name} in single bytes");
    }
}

/// From the trigger to the turn after it.
#[test]
fn a_conversation_goes_on_from_its_summary() {
    let target = Target { seal_key: SEAL_KEY, ..Target::new(origin().provider, origin().model) };
    let body = json!({"model": "m", "input": [{"role": "user", "content": "q"}, {"type": "compaction_trigger"}]});
    let body = body.to_string();
    let request = Request::parse(body.as_bytes()).unwrap();
    assert!(request.is_compaction());
    let config = ReplyConfig { compaction: request.is_compaction(), ..config(ToolTable::from_request(&request)) };
    let mut reply = Reply::new(chat::Chat.decoder(&request, &target), Framing::Sse, config);
    let mut out = Vec::new();
    reply.feed(stream(&[text("It was \"done\".")], "stop").as_bytes(), &mut out);
    let item = &checked(&out).items[0];

    let body = json!({"model": "m", "input": [{"role": "user", "content": "q"}, item]}).to_string();
    let call = chat::Chat.encode(&Request::parse(body.as_bytes()).unwrap(), &target).unwrap();
    let body: Value = serde_json::from_slice(&call.body).unwrap();
    let said = body["messages"][1]["content"].as_str().unwrap();
    assert!(said.ends_with("\n\nIt was \"done\"."), "{said}");
}
