//! Earlier answers that a request may continue by `previous_response_id`, instead of sending the whole conversation.
//!
//! Codex always sends the whole conversation; other clients of the Responses API do not. What is kept for an answer is
//! the conversation up to and with it, as the text of its items, so that a request that continues it becomes one that
//! says everything itself ([`expand`]), and nothing behind it knows of the difference.
//!
//! Bounded in entries, in bytes and in time; what is gone is an error that the client can act on.

use std::collections::{HashMap, VecDeque};

use crate::json::{self, Kind, Raw, Reader};
use crate::responses::ParseError;

/// How long an answer can be continued, in milliseconds.
pub const LIFE_MS: u64 = 600_000;
/// Most answers kept; the oldest goes first.
pub const ANSWERS_MAX: usize = 256;
/// Most bytes of all of them together.
pub const BYTES_MAX: usize = 64 << 20;
/// Longest conversation that is kept.
pub const CONVERSATION_BYTES_MAX: usize = 8 << 20;

/// The conversations of recent answers, by the answers' ids.
#[derive(Debug, Default)]
pub struct Earlier {
    conversations: HashMap<String, Conversation>,
    /// Ids, oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

#[derive(Debug)]
struct Conversation {
    /// Items as JSON, separated by commas.
    items: Vec<u8>,
    kept_at_ms: u64,
}

impl Earlier {
    /// Keeps `items`, the conversation up to and with the answer `response_id`. One that is longer than
    /// [`CONVERSATION_BYTES_MAX`] is not kept.
    ///
    /// Moments are milliseconds of any clock that does not go back.
    pub fn keep(&mut self, now_ms: u64, response_id: &str, items: Vec<u8>) {
        self.forget_old(now_ms);
        if items.len() > CONVERSATION_BYTES_MAX || self.conversations.contains_key(response_id) {
            return;
        }
        self.bytes += items.len();
        self.conversations.insert(response_id.to_owned(), Conversation { items, kept_at_ms: now_ms });
        self.order.push_back(response_id.to_owned());
        while self.bytes > BYTES_MAX || self.order.len() > ANSWERS_MAX {
            self.forget_oldest();
        }
    }

    /// The conversation up to and with the answer `response_id`: items as JSON, separated by commas.
    pub fn get(&mut self, now_ms: u64, response_id: &str) -> Option<&[u8]> {
        self.forget_old(now_ms);
        self.conversations.get(response_id).map(|conversation| &*conversation.items)
    }

    fn forget_old(&mut self, now_ms: u64) {
        let is_old = |id: &String| {
            self.conversations.get(id).is_none_or(|found| found.kept_at_ms.saturating_add(LIFE_MS) <= now_ms)
        };
        let n_old = self.order.iter().take_while(|id| is_old(id)).count();
        for _ in 0..n_old {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.order.pop_front().and_then(|id| self.conversations.remove(&id));
        self.bytes -= oldest.map_or(0, |oldest| oldest.items.len());
    }
}

/// The items of a request's `input`, as JSON, separated by commas; a text is a message of the user's.
///
/// # Errors
/// [`ParseError::Json`] for a body that is not a JSON object.
pub fn items(body: &[u8]) -> Result<Vec<u8>, ParseError> {
    let mut reader = Reader::new(json::utf8(body)?);
    let mut items = Vec::new();
    reader.enter_object()?;
    while let Some(name) = reader.next_key()? {
        let value = reader.value()?;
        if name.is("input") {
            write_items(&mut items, value);
        }
    }
    Ok(items)
}

/// Puts `answer`, items as JSON separated by commas, behind `conversation`.
pub fn append(conversation: &mut Vec<u8>, answer: &[u8]) {
    if !conversation.is_empty() && !answer.is_empty() {
        conversation.push(b',');
    }
    conversation.extend_from_slice(answer);
}

/// The request `body` with `conversation` before its own input, and without `previous_response_id`.
///
/// # Errors
/// [`ParseError::Json`] for a body that is not a JSON object.
pub fn expand(body: &[u8], conversation: &[u8]) -> Result<Vec<u8>, ParseError> {
    with_items(body, conversation, b"")
}

/// The request `body` with `items` behind its own input.
///
/// # Errors
/// [`ParseError::Json`] for a body that is not a JSON object.
pub fn extend(body: &[u8], items: &[u8]) -> Result<Vec<u8>, ParseError> {
    with_items(body, b"", items)
}

fn with_items(body: &[u8], conversation: &[u8], behind: &[u8]) -> Result<Vec<u8>, ParseError> {
    let mut reader = Reader::new(json::utf8(body)?);
    let mut out = Vec::with_capacity(body.len() + conversation.len() + behind.len());
    let mut items = conversation.to_vec();
    out.push(b'{');
    reader.enter_object()?;
    while let Some(name) = reader.next_key()? {
        let value = reader.value()?;
        if name.is("input") {
            let mut own = Vec::new();
            write_items(&mut own, value);
            append(&mut items, &own);
        } else if !name.is("previous_response_id") {
            out.push(b'"');
            out.extend_from_slice(name.escaped().as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(value.text().as_bytes());
            out.push(b',');
        }
    }
    append(&mut items, behind);
    out.extend_from_slice(b"\"input\":[");
    out.extend_from_slice(&items);
    out.extend_from_slice(b"]}");
    Ok(out)
}

fn write_items(out: &mut Vec<u8>, input: Raw<'_>) {
    match input.kind() {
        Kind::Array => {
            for item in input.elements() {
                append(out, item.text().as_bytes());
            }
        }
        Kind::String => {
            out.extend_from_slice(br#"{"type":"message","role":"user","content":"#);
            out.extend_from_slice(input.text().as_bytes());
            out.push(b'}');
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Result<Vec<u8>, ParseError>) -> String {
        String::from_utf8(bytes.unwrap()).unwrap()
    }

    #[test]
    fn a_request_becomes_one_that_says_everything_itself() {
        let conversation = br#"{"a":1},{"b":2}"#;
        let rows = [
            (
                r#"{"model":"m","previous_response_id":"r","input":[ {"c":"\u00e9"} , {"d":4} ],"x":[1.50]}"#,
                r#"{"model":"m","x":[1.50],"input":[{"a":1},{"b":2},{"c":"\u00e9"},{"d":4}]}"#,
            ),
            (
                r#"{"input":"hi \"you\""}"#,
                r#"{"input":[{"a":1},{"b":2},{"type":"message","role":"user","content":"hi \"you\""}]}"#,
            ),
            (r#"{"input":[]}"#, r#"{"input":[{"a":1},{"b":2}]}"#),
            (r#"{"model":"m"}"#, r#"{"model":"m","input":[{"a":1},{"b":2}]}"#),
        ];
        for (body, expected) in rows {
            assert_eq!(text(expand(body.as_bytes(), conversation)), expected);
        }
        assert_eq!(
            text(extend(br#"{"input":"hi","x":1}"#, b"{}")),
            r#"{"x":1,"input":[{"type":"message","role":"user","content":"hi"},{}]}"#
        );
        assert_eq!(text(items(br#"{"input":[ {"a":1} , {"b":2} ],"y":0}"#)).as_bytes(), conversation);
        assert_eq!(text(items(b"{}")), "");
        assert!(expand(b"[", conversation).is_err());
    }

    #[test]
    fn a_conversation_goes_on_from_any_of_its_answers() {
        let mut earlier = Earlier::default();
        earlier.keep(0, "r1", b"{}".to_vec());
        let mut longer = earlier.get(1, "r1").unwrap().to_vec();
        append(&mut longer, b"{\"n\":2}");
        earlier.keep(2, "r2", longer);
        earlier.keep(3, "r2", b"another of the same id".to_vec());
        assert_eq!(earlier.get(4, "r1"), Some(&b"{}"[..]));
        assert_eq!(earlier.get(4, "r2"), Some(&br#"{},{"n":2}"#[..]));
        assert_eq!(earlier.get(4, "r3"), None);
    }

    #[test]
    fn what_is_kept_is_bounded_in_time() {
        let mut earlier = Earlier::default();
        earlier.keep(1_000, "r1", vec![b'x'; 10]);
        earlier.keep(2_000, "r2", vec![b'x'; 20]);
        assert!(earlier.get(1_000 + LIFE_MS - 1, "r1").is_some());
        assert!(earlier.get(1_000 + LIFE_MS, "r1").is_none());
        assert!(earlier.get(1_000 + LIFE_MS, "r2").is_some());
        assert_eq!((earlier.bytes, earlier.order.len(), earlier.conversations.len()), (20, 1, 1));
    }

    #[test]
    fn what_is_kept_is_bounded_in_number_and_size() {
        let mut earlier = Earlier::default();
        for n in 0..=ANSWERS_MAX {
            earlier.keep(0, &n.to_string(), vec![b'x']);
        }
        assert!(earlier.get(0, "0").is_none() && earlier.get(0, "1").is_some());
        assert_eq!((earlier.bytes, earlier.conversations.len()), (ANSWERS_MAX, ANSWERS_MAX));
        earlier.keep(0, "too long", vec![b'x'; CONVERSATION_BYTES_MAX + 1]);
        assert!(earlier.get(0, "too long").is_none());
        for n in 0..=BYTES_MAX / CONVERSATION_BYTES_MAX {
            earlier.keep(0, &format!("long {n}"), vec![b'x'; CONVERSATION_BYTES_MAX]);
        }
        assert!(earlier.get(0, "long 0").is_none() && earlier.get(0, "long 1").is_some());
        assert_eq!(earlier.bytes, BYTES_MAX);
    }
}
