//! The chunk that comes a thousand times, read once.
//!
//! Nearly all chunks of an answer differ from the one before only in their piece of text. So the bytes around the text of
//! the last such chunk are kept, and where the next payload has the same around a valid JSON string, its text is all that
//! needs to be read. This is exact, not a guess: the bytes before it leave a JSON parser inside that string, a valid
//! string body brings it to the closing quote, and from there the same bytes mean the same.
//!
//! It saves two thirds of the work of translating a stream.

use super::chunk::Only;
use crate::json::{self, Raw};

/// Longest surroundings that are kept. Those of a chunk are some hundred bytes; longer ones take the long way.
const AROUND_BYTES_MAX: usize = 16 << 10;

/// What stands around the text.
#[derive(Debug, Default)]
pub(super) struct Template {
    kind: Kind,
    /// Up to and with the opening quote.
    before: String,
    /// From the closing quote on.
    after: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    /// Nothing was learned yet.
    #[default]
    None,
    Content,
    Reasoning,
}

impl Template {
    /// Learns from `payload`, all of whose meaning is the text `only`, a part of it.
    pub(super) fn learn(&mut self, payload: &str, only: Only<'_>) {
        let (kind, text) = match only {
            Only::Content(text) => (Kind::Content, text.escaped()),
            Only::Reasoning(text) => (Kind::Reasoning, text.escaped()),
        };
        self.kind = Kind::None;
        let start = text.as_ptr().addr().wrapping_sub(payload.as_ptr().addr());
        let Some((before, rest)) = payload.split_at_checked(start) else { return };
        let Some(after) = rest.strip_prefix(text) else { return };
        let is_short = before.len() + after.len() <= AROUND_BYTES_MAX;
        if is_short && before.ends_with('"') && after.starts_with('"') {
            self.kind = kind;
            self.before.clear();
            self.before.push_str(before);
            self.after.clear();
            self.after.push_str(after);
        }
    }

    /// What is allocated, for tests of what is held.
    #[cfg(test)]
    pub(super) fn allocated_bytes(&self) -> usize {
        let Self { kind: _, before, after } = self;
        before.capacity() + after.capacity()
    }

    /// The text of `payload`, if nothing else of it is new.
    pub(super) fn read<'a>(&self, payload: &'a str) -> Option<Only<'a>> {
        if self.kind == Kind::None {
            return None;
        }
        let text = payload.strip_prefix(self.before.as_str())?.strip_suffix(self.after.as_str())?;
        // An empty text may give way to another field of the same name, so it is no plain matter.
        if text.is_empty() {
            return None;
        }
        let quoted = &payload[self.before.len() - 1..=payload.len() - self.after.len()];
        let text = json::parse(quoted).ok().and_then(Raw::as_str)?;
        Some(if self.kind == Kind::Content { Only::Content(text) } else { Only::Reasoning(text) })
    }
}

impl Only<'_> {
    /// For a reader of tests and logs.
    #[cfg(test)]
    fn text(self) -> String {
        let (Self::Content(text) | Self::Reasoning(text)) = self;
        text.decode().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::chunk::Chunk;
    use super::*;

    fn learned(payload: &str) -> Template {
        let mut template = Template::default();
        template.learn(payload, Chunk::parse(payload).unwrap().only().unwrap());
        template
    }

    #[test]
    fn the_same_around_another_text_is_read() {
        let payload = |text: &str| format!(r#"{{"id":"a","choices":[{{"delta":{{"content":"{text}","x":""}}}}]}}"#);
        let template = learned(&payload("one"));
        assert_eq!(template.read(&payload("two")).unwrap().text(), "two");
        assert_eq!(template.read(&payload(r"line\n\u00e9 \ud83e\udd80")).unwrap().text(), "line\né \u{1f980}");
        for other in ["", r#"","y":""#, "\n", r"\x", r"\", r"\ud83e"] {
            assert_eq!(template.read(&payload(other)), None, "{other}");
        }
        assert_eq!(template.read(&payload("one").replace("\"a\"", "\"b\"")), None);
        assert_eq!(template.read(r#"{"id":"a","choices":[{"delta":{"content":""#), None);
        assert_eq!(Template::default().read("{}"), None);
    }

    #[test]
    fn a_chunk_that_says_more_is_not_learned() {
        for payload in [
            r#"{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"delta":{"content":"a","reasoning":"b"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a","tool_calls":[{}]}}]}"#,
            r#"{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1}}"#,
            r#"{"choices":[{"message":{"content":"a"}}]}"#,
            r#"{"choices":[{"delta":{"content":[{"text":"a"}]}}]}"#,
            r#"{"choices":[{"delta":{"content":""}}]}"#,
            r#"{"choices":[]}"#,
        ] {
            assert_eq!(Chunk::parse(payload).unwrap().only(), None, "{payload}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let payload =
            |padding: usize| format!(r#"{{"x":"{}","choices":[{{"delta":{{"content":"a"}}}}]}}"#, "x".repeat(padding));
        assert!(learned(&payload(AROUND_BYTES_MAX / 2)).read(&payload(AROUND_BYTES_MAX / 2)).is_some());
        let template = learned(&payload(AROUND_BYTES_MAX));
        assert_eq!((template.kind, template.before.len()), (Kind::None, 0));
    }

    proptest! {
        /// Whatever the short way reads, the long way reads too, and alike.
        #[test]
        fn it_reads_what_the_parser_reads(field in "content|reasoning|reasoning_content", text in "[a-z\"\\\\u0-9{}:,\n]{0,12}") {
            let payload = |text: &str| format!(r#"{{"choices":[{{"index":0,"delta":{{"{field}":"{text}"}},"finish_reason":null}}]}}"#);
            let template = learned(&payload("x"));
            let payload = payload(&text);
            let by_parser = Chunk::parse(&payload).ok().and_then(|chunk| chunk.only());
            prop_assert_eq!(template.read(&payload).map(Only::text), by_parser.map(Only::text));
        }
    }
}
