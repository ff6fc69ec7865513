//! A native answer that comes in one piece: because the client wants no stream, or from a provider that makes none.
//!
//! Source: <https://platform.openai.com/docs/api-reference/responses/object>, read 2026-11.

use serde_json::Value;

use super::{States, failure_of, no_answer, usage_in};
use crate::json::{self, Kind, Raw, Str};
use crate::reply::{Outcome, Summary};
use crate::{Failure, FailureClass};

/// See [`Sniffer::whole`](super::Sniffer::whole); `account` is the name of the account that asked.
pub(super) fn read(body: &[u8], wants_events: bool, account: &str) -> Result<(Summary, Vec<u8>), Failure> {
    let text = json::utf8(body).map_or_else(|_| String::from_utf8_lossy(body), Into::into);
    let text = text.trim_start_matches('\u{feff}').trim_ascii();
    let Ok(response) = json::parse(text) else {
        let page = text.starts_with('<').then(|| Failure::from_error_value(&Value::String(text.to_owned())));
        let cut =
            || Failure::new(FailureClass::Truncated, "the provider closed the connection in the middle of the answer");
        return Err(page.map_or_else(cut, |page| Failure { class: FailureClass::Malformed, ..page }));
    };
    let member = |name: &str| response.get(name).filter(|value| !value.is_null());
    let output = member("output").filter(|output| output.kind() == Kind::Array);
    let Some(output) = output else {
        return Err(match ["error", "detail", "message"].iter().find_map(|name| member(name)) {
            None if response.kind() == Kind::Object => {
                Failure::new(FailureClass::Malformed, "the provider answered with something that is no response")
            }
            _ => failure_of(text),
        });
    };
    let outcome = match member("status").and_then(Raw::as_str).map_or("completed", Str::escaped) {
        "completed" if wants_events && output.elements().next().is_none() => return Err(no_answer()),
        "completed" => Outcome::Completed,
        "incomplete" => Outcome::Incomplete,
        "failed" | "cancelled" => return Err(failure_of(text)),
        // It goes on in the background, as such a client has asked for.
        _ if !wants_events => Outcome::Completed,
        other => {
            let message = format!("the provider answered with a response that is not finished (`{other}`)");
            return Err(Failure::new(FailureClass::Malformed, message));
        }
    };
    let mut states = States::default();
    output.elements().for_each(|item| states.add(item, account));
    let bytes = if wants_events { events(response, output, &outcome) } else { body.to_vec() };
    let States { marks, is_compacted } = states;
    Ok((Summary { outcome, usage: usage_in(response), states: marks, is_compacted, ..Summary::default() }, bytes))
}

fn events(response: Raw<'_>, output: Raw<'_>, outcome: &Outcome) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 * response.text().len());
    let mut n_events = 0;
    let mut event = |kind: &str, members: &[&str]| {
        let head = format!("event: {kind}\ndata: {{\"type\":\"{kind}\",\"sequence_number\":{n_events}");
        out.extend_from_slice(head.as_bytes());
        for member in members {
            // An event is one line, and a line end in JSON stands only between its parts.
            out.extend(member.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')));
        }
        out.extend_from_slice(b"}\n\n");
        n_events += 1;
    };
    let id = response.get("id").map_or("\"\"", Raw::text);
    event("response.created", &[",\"response\":{\"object\":\"response\",\"status\":\"in_progress\",\"id\":", id, "}"]);
    for (index, item) in output.elements().enumerate() {
        let index = index.to_string();
        event("response.output_item.done", &[",\"output_index\":", &index, ",\"item\":", item.text()]);
    }
    let end = if *outcome == Outcome::Incomplete { "response.incomplete" } else { "response.completed" };
    event(end, &[",\"response\":", response.text()]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::Mark;

    const BODY: &str = "{\n  \"id\": \"r1\", \"object\": \"response\", \"status\": \"completed\", \"error\": null,\n  \"output\": [\n    \
        {\"type\": \"reasoning\", \"summary\": [], \"encrypted_content\": \"gA\"},\n    \
        {\"type\": \"message\", \"role\": \"assistant\", \"content\": [{\"type\": \"output_text\", \"text\": \"a\\nb 🦀\"}]}\n  ],\n  \
        \"usage\": {\"input_tokens\": 9, \"output_tokens\": 2, \"total_tokens\": 11}\n}\n";

    fn failure(body: &str) -> (FailureClass, String) {
        let failed = read(body.as_bytes(), true, "").unwrap_err();
        (failed.class, failed.message)
    }

    #[test]
    fn who_wants_no_stream_gets_it_as_it_is() {
        let (summary, bytes) = read(BODY.as_bytes(), false, "me").unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), BODY);
        assert_eq!((&summary.outcome, summary.usage.unwrap().total_tokens), (&Outcome::Completed, 11));
        assert_eq!(summary.states, [Mark::of("me", "gA")]);
        let queued = r#"{"id":"r","object":"response","status":"queued","output":[]}"#;
        assert_eq!(read(queued.as_bytes(), false, "").unwrap().0.outcome, Outcome::Completed);
    }

    #[test]
    fn who_wants_a_stream_gets_its_items_and_its_end() {
        let (summary, bytes) = read(BODY.as_bytes(), true, "me").unwrap();
        assert_eq!((&summary.outcome, summary.usage.unwrap().total_tokens), (&Outcome::Completed, 11));
        let stream = String::from_utf8(bytes).unwrap();
        let events: Vec<(&str, Value)> = stream
            .split_terminator("\n\n")
            .map(|event| {
                let (name, data) = event.split_once("\ndata: ").unwrap();
                (name.strip_prefix("event: ").unwrap(), serde_json::from_str(data).unwrap())
            })
            .collect();
        let whole: Value = serde_json::from_str(BODY).unwrap();
        let kinds: Vec<&str> = events.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(
            kinds,
            ["response.created", "response.output_item.done", "response.output_item.done", "response.completed"]
        );
        for (number, (kind, data)) in events.iter().enumerate() {
            assert_eq!((&data["type"], &data["sequence_number"]), (&Value::from(*kind), &Value::from(number)));
        }
        assert_eq!((&events[1].1["item"], &events[2].1["item"]), (&whole["output"][0], &whole["output"][1]));
        assert_eq!((&events[0].1["response"]["id"], &events[3].1["response"]), (&whole["id"], &whole));
        // What is relayed reads what is made here.
        let mut sniffer = super::super::Sniffer::new("me".to_owned());
        assert!(sniffer.feed(stream.as_bytes()).finished);
        assert_eq!(sniffer.end(crate::EndCause::Eof), summary);

        let incomplete = BODY.replace("completed", "incomplete");
        let (summary, bytes) = read(incomplete.as_bytes(), true, "").unwrap();
        assert_eq!(summary.outcome, Outcome::Incomplete);
        assert!(String::from_utf8(bytes).unwrap().contains("event: response.incomplete\n"));
    }

    #[test]
    fn what_is_no_answer_is_a_failure() {
        use FailureClass as C;
        for (body, class, words) in [
            (r#"{"error":{"message":"boom","type":"server_error"}}"#, C::Server, "boom"),
            (r#"[{"error":{"message":"boom","code":429}}]"#, C::RateLimit, "boom"),
            (r#"{"detail":"Not Found"}"#, C::Server, "Not Found"),
            (
                r#"{"object":"response","status":"failed","output":[],"error":{"code":"server_error","message":"boom"}}"#,
                C::Server,
                "boom",
            ),
            (r#"{"object":"response","status":"in_progress","output":[]}"#, C::Malformed, "not finished"),
            (r#"{"object":"response","status":"completed","output":[]}"#, C::Malformed, "without a text"),
            (r#"{"object":"chat.completion","choices":[]}"#, C::Malformed, "no response"),
            ("<html><body>502 Bad Gateway</body></html>", C::Malformed, "502 Bad Gateway"),
            (&BODY[..BODY.len() / 2], C::Truncated, "in the middle"),
        ] {
            let (found, message) = failure(body);
            assert!(found == class && message.contains(words), "{body}: {found:?} {message}");
        }
    }
}
