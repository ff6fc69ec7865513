//! Remote compaction: Codex asks for its history to be compacted, keeps what comes back without looking inside, and
//! sends it in place of the history from then on.
//!
//! ```text
//!  … items … compaction_trigger ──► a request for a summary ──► compaction { our sealed summary }
//!  compaction { our sealed summary } … items … ──► user: the summary … turns …
//! ```
//!
//! The answer's half stands in [`Emitter`](crate::responses::Emitter). The summary is plain words, so that it is taken
//! from whichever provider and model made it; a compacted history that is not ours stays unreadable and is left out.

use super::edits::{Edit, Edits, quoted};
use super::stand_in::{COMPACTION_INSTRUCTION, SUMMARY_LABEL};
use crate::json::{Raw, Str};
use crate::responses::request::Item;
use crate::sealed::{self, Opened, Part};
use crate::{Request, Target};

pub(super) fn edits(request: &Request<'_>, target: &Target) -> Edits {
    let mut edits = Edits::default();
    for (index, item) in request.input.iter().enumerate() {
        if let Item::Compaction(raw) = item
            && let Some(summary) = summary(*raw, target)
        {
            edits.0.insert(index, Edit::Say(quoted(&labelled(&summary))));
        }
    }
    // Of nothing there is no summary.
    if request.is_compaction() && request.input.len() > 1 {
        edits.0.insert(request.input.len() - 1, Edit::Say(quoted(COMPACTION_INSTRUCTION)));
    }
    edits
}

/// A summary as it is said in place of the history.
pub(crate) fn labelled(summary: &str) -> String {
    format!("{SUMMARY_LABEL}\n\n{summary}")
}

/// The summary inside a compacted history that we made.
pub(crate) fn summary(item: Raw<'_>, target: &Target) -> Option<String> {
    let sealed = item.get("encrypted_content").and_then(Raw::as_str).map(Str::decode)?;
    let (Opened::Ours(parts) | Opened::Foreign(parts)) = sealed::open(&target.seal_key, &target.origin(), &sealed)
    else {
        return None;
    };
    parts.into_iter().find_map(|part| match part {
        Part::Summary(text) if !text.trim().is_empty() => Some(text),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{EncodeError, anthropic, chat, tools};

    const KEY: [u8; 32] = [3; 32];

    fn target(context_window: u64) -> Target {
        Target {
            context_window,
            anthropic: anthropic::Profile { cache: false, web_search: true, ..anthropic::Profile::default() },
            seal_key: KEY,
            ..Target::new("p", "m")
        }
    }

    fn user(text: &str) -> Value {
        json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
    }

    fn compaction(key: &[u8; 32], model: &str, parts: &[Part]) -> Value {
        let origin = Target::new("p", model).origin();
        json!({"type": "compaction", "id": "cmp_1", "encrypted_content": sealed::seal(key, &origin, parts)})
    }

    fn request(input: &[Value]) -> Vec<u8> {
        let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
        json!({"model": "m", "input": input, "tools": [tool, {"type": "web_search"}], "tool_choice": "required"})
            .to_string()
            .into_bytes()
    }

    /// The body for each protocol, checked as a provider would.
    fn bodies(input: &[Value], target: &Target) -> Result<[Value; 2], EncodeError> {
        let body = request(input);
        let request = Request::parse(&body).unwrap();
        let chat = chat::encode::encode(&request, target)?.body;
        assert_eq!(chat::validate::check(&chat), Ok(()));
        let anthropic = anthropic::encode::encode(&request, target)?.body;
        assert_eq!(anthropic::validate::check(&anthropic), Ok(()));
        Ok([chat, anthropic].map(|body| serde_json::from_slice(&body).unwrap()))
    }

    /// What the user says, in either protocol.
    fn said(input: &[Value]) -> Vec<Vec<String>> {
        let said = |body: &Value| {
            let messages = body["messages"].as_array().unwrap().iter().filter(|message| message["role"] == "user");
            let texts = messages.flat_map(|message| match &message["content"] {
                Value::Array(blocks) => {
                    blocks.iter().filter_map(|block| block["text"].as_str()).map(str::to_owned).collect()
                }
                text => vec![text.as_str().unwrap().to_owned()],
            });
            texts.collect()
        };
        bodies(input, &target(0)).unwrap().iter().map(said).collect()
    }

    #[test]
    fn a_trigger_asks_for_a_summary_without_tools() {
        let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
        let trigger = json!({"type": "compaction_trigger"});
        let input = [user("q"), call, trigger.clone()];
        for said in said(&input) {
            assert_eq!(said, ["q", COMPACTION_INSTRUCTION]);
        }
        let [chat, anthropic] = bodies(&input, &target(0)).unwrap();
        assert_eq!((chat.get("tools"), chat.get("tool_choice")), (None, None));
        // A history with calls is refused there without tools, so the one that was called is named, and forbidden.
        assert_eq!(anthropic["tools"], json!([{"name": "f", "input_schema": {"type": "object"}}]));
        assert_eq!(anthropic["tool_choice"], json!({"type": "none"}));
        let [_, anthropic] = bodies(&[user("q"), trigger.clone()], &target(0)).unwrap();
        assert_eq!(anthropic.get("tools"), None, "nor is the web searched");

        // Only the last item is one.
        let input = [user("q"), trigger.clone(), user("q2")];
        assert_eq!(said(&input), [["q", "q2"], ["q", "q2"]]);
        let body = request(&input);
        assert_eq!(tools::offered(&Request::parse(&body).unwrap()).len(), 1);
        assert!(bodies(&[trigger], &target(0)).is_err(), "there is nothing to sum up");
    }

    #[test]
    fn a_summary_of_ours_is_unfolded_and_what_is_not_is_left_out() {
        let summary = [Part::Summary("did \"this\"\nand that".into())];
        let shown = format!("{SUMMARY_LABEL}\n\ndid \"this\"\nand that");
        for (item, expected) in [
            (compaction(&KEY, "m", &summary), Some(&shown)),
            // Plain words are good for every model.
            (compaction(&KEY, "another", &summary), Some(&shown)),
            (compaction(&[4; 32], "m", &summary), None),
            (compaction(&KEY, "m", &[Part::ReasoningContent("thought".into())]), None),
            (compaction(&KEY, "m", &[Part::Summary(" ".into())]), None),
            (json!({"type": "compaction", "encrypted_content": "COMPACTED-BLOB"}), None),
            (json!({"type": "compaction"}), None),
            (json!({"type": "compaction", "encrypted_content": 7}), None),
        ] {
            let expected: Vec<&str> = ["q"].into_iter().chain(expected.map(String::as_str)).chain(["q2"]).collect();
            for said in said(&[user("q"), item.clone(), user("q2")]) {
                assert_eq!(said, expected, "{item}");
            }
        }
    }

    #[test]
    fn a_summary_is_never_left_out_of_a_long_conversation() {
        let text = "x".repeat(4_000);
        let summary = compaction(&KEY, "m", &[Part::Summary("did this".into())]);
        let input = [user("environment"), user(&text), summary, user(&text), user("q")];
        let [chat, _] = bodies(&input, &target(500)).unwrap();
        let said: Vec<&Value> =
            chat["messages"].as_array().unwrap().iter().map(|message| &message["content"]).collect();
        let shown = format!("{SUMMARY_LABEL}\n\ndid this");
        assert_eq!(said, ["environment", super::super::stand_in::LEFT_OUT_NOTE, shown.as_str(), "q"]);
    }
}
