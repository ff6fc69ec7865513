//! One chunk of a Chat Completions stream, or one whole answer, read in a single pass.
//!
//! The reader is strict about JSON and curious about everything else: a field of a type nobody expected is as if it
//! were not there, of two fields with one name the one that says something counts, and only choice 0 is read.

use std::borrow::Cow;

use crate::json::{self, Kind, Raw, Reader};

/// What one chunk says.
#[derive(Debug, Default)]
pub(super) struct Chunk<'a> {
    pub(super) choice: Option<Choice<'a>>,
    /// `choices` is there, be it `null`.
    pub(super) has_choices: bool,
    pub(super) usage: Option<Raw<'a>>,
    /// Groq's own object, which may hold the usage.
    pub(super) x_groq: Option<Raw<'a>>,
    pub(super) error: Option<Raw<'a>>,
    pub(super) base_resp: Option<Raw<'a>>,
    /// A whole answer in a wrapper (`{"data": {…}, "success": true}`).
    pub(super) data: Option<Raw<'a>>,
    /// `object` or `type` is `"error"`.
    pub(super) is_error_object: bool,
    /// A `message` or `detail` at the top, where no chunk has one.
    pub(super) has_error_words: bool,
}

/// The part of a chunk that is an answer.
#[derive(Debug, Default)]
pub(super) struct Choice<'a> {
    index: u64,
    pub(super) delta: Option<Said<'a>>,
    pub(super) message: Option<Said<'a>>,
    pub(super) finish_reason: Cow<'a, str>,
    pub(super) usage: Option<Raw<'a>>,
    pub(super) error: Option<Raw<'a>>,
}

/// A `delta` or a `message`.
#[derive(Debug, Default)]
pub(super) struct Said<'a> {
    pub(super) content: Content<'a>,
    pub(super) refusal: Cow<'a, str>,
    pub(super) reasoning_content: Cow<'a, str>,
    pub(super) reasoning: Cow<'a, str>,
    pub(super) reasoning_details: Option<Raw<'a>>,
    pub(super) tool_calls: Option<Raw<'a>>,
    pub(super) function_call: Option<Raw<'a>>,
}

/// Visible text, in either of its forms.
#[derive(Debug)]
pub(super) enum Content<'a> {
    Text(Cow<'a, str>),
    /// Typed parts, which may be reasoning too.
    Parts(Raw<'a>),
}

impl Default for Content<'_> {
    fn default() -> Self {
        Self::Text(Cow::Borrowed(""))
    }
}

impl<'a> Chunk<'a> {
    /// Reads a payload that must be one JSON object.
    pub(super) fn parse(payload: &'a str) -> Result<Self, json::Error> {
        let mut reader = Reader::new(payload);
        let chunk = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(chunk)
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, json::Error> {
        let mut chunk = Self::default();
        reader.enter_object()?;
        while let Some(key) = reader.next_key()? {
            match key.escaped() {
                "choices" => {
                    chunk.has_choices = true;
                    if reader.kind()? != Kind::Array {
                        reader.value()?;
                        continue;
                    }
                    reader.enter_array()?;
                    while reader.next_element()? {
                        if reader.kind()? != Kind::Object {
                            reader.value()?;
                            continue;
                        }
                        let choice = Choice::read(reader)?;
                        if choice.index == 0 && chunk.choice.is_none() {
                            chunk.choice = Some(choice);
                        }
                    }
                }
                "usage" => chunk.usage = something(reader.value()?).or(chunk.usage),
                "x_groq" => chunk.x_groq = something(reader.value()?),
                "error" => chunk.error = something(reader.value()?).or(chunk.error),
                "base_resp" => chunk.base_resp = something(reader.value()?),
                "data" => chunk.data = Some(reader.value()?).filter(|value| value.kind() == Kind::Object),
                "object" | "type" => chunk.is_error_object |= reader.value()?.as_str().is_some_and(|name| name.is("error")),
                "message" | "detail" => {
                    chunk.has_error_words |= matches!(reader.value()?.kind(), Kind::String | Kind::Array);
                }
                _ => {
                    reader.value()?;
                }
            }
        }
        Ok(chunk)
    }
}

impl<'a> Choice<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, json::Error> {
        let mut choice = Self::default();
        reader.enter_object()?;
        while let Some(key) = reader.next_key()? {
            match key.escaped() {
                "index" => choice.index = reader.value()?.as_u64().unwrap_or_default(),
                "delta" => choice.delta = Said::read(reader)?.or(choice.delta),
                "message" => choice.message = Said::read(reader)?.or(choice.message),
                "finish_reason" => {
                    let reason = text(reader)?;
                    if !reason.is_empty() {
                        choice.finish_reason = reason;
                    }
                }
                "usage" => choice.usage = something(reader.value()?),
                "error" => choice.error = something(reader.value()?),
                _ => {
                    reader.value()?;
                }
            }
        }
        Ok(choice)
    }
}

impl<'a> Said<'a> {
    /// `None` for anything but an object.
    fn read(reader: &mut Reader<'a>) -> Result<Option<Self>, json::Error> {
        if reader.kind()? != Kind::Object {
            reader.value()?;
            return Ok(None);
        }
        let mut said = Self::default();
        reader.enter_object()?;
        while let Some(key) = reader.next_key()? {
            let place = match key.escaped() {
                "content" => {
                    let value = reader.value()?;
                    match value.kind() {
                        Kind::Array | Kind::Object => said.content = Content::Parts(value),
                        Kind::String if value.text() != "\"\"" => said.content = Content::Text(decoded(value)),
                        _ => {}
                    }
                    continue;
                }
                "reasoning_content" => &mut said.reasoning_content,
                "reasoning" => &mut said.reasoning,
                "refusal" => &mut said.refusal,
                "reasoning_details" => {
                    said.reasoning_details = something(reader.value()?);
                    continue;
                }
                "tool_calls" => {
                    said.tool_calls = something(reader.value()?);
                    continue;
                }
                "function_call" => {
                    said.function_call = something(reader.value()?);
                    continue;
                }
                _ => {
                    reader.value()?;
                    continue;
                }
            };
            let value = text(reader)?;
            if !value.is_empty() {
                *place = value;
            }
        }
        Ok(Some(said))
    }
}

/// The next value if it is a string, the empty string otherwise.
fn text<'a>(reader: &mut Reader<'a>) -> Result<Cow<'a, str>, json::Error> {
    Ok(decoded(reader.value()?))
}

/// The string `value` is, or the empty string.
pub(super) fn decoded(value: Raw<'_>) -> Cow<'_, str> {
    value.as_str().map_or(Cow::Borrowed(""), json::Str::decode)
}

/// The value, unless it is a placeholder: `null`, `""`, `{}`, `[]`, `false`.
fn something(value: Raw<'_>) -> Option<Raw<'_>> {
    let is_placeholder = match value.kind() {
        Kind::Null | Kind::Bool => true,
        Kind::String => value.text() == "\"\"",
        Kind::Object | Kind::Array => value.entries().next().is_none() && value.elements().next().is_none(),
        Kind::Number => false,
    };
    (!is_placeholder).then_some(value)
}

/// The payload with each surrogate that lacks its other half replaced, if it has any.
///
/// Hosts that cut JavaScript strings by length cut pairs in two, and escape the halves: correct JSON by its grammar,
/// but no text.
pub(super) fn without_lone_surrogates(payload: &str) -> Option<String> {
    const REPLACEMENT: &str = "\\ufffd";
    let hex4 = |at: usize| {
        let digits = payload.get(at..at + 4)?;
        digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
    };
    let bytes = payload.as_bytes();
    let mut repaired = String::new();
    let (mut kept, mut at) = (0, 0);
    while let Some(found) = memchr::memchr(b'\\', &bytes[at..]) {
        at += found;
        let unit = if bytes.get(at + 1) == Some(&b'u') { hex4(at + 2) } else { None };
        let Some(unit) = unit else {
            at += 2;
            if at >= bytes.len() {
                break;
            }
            continue;
        };
        let low = (bytes.get(at + 6..at + 8) == Some(br"\u")).then(|| hex4(at + 8)).flatten();
        match unit {
            0xD800..=0xDBFF if matches!(low, Some(0xDC00..=0xDFFF)) => at += 12,
            0xD800..=0xDFFF => {
                repaired.push_str(&payload[kept..at]);
                repaired.push_str(REPLACEMENT);
                at += 6;
                kept = at;
            }
            _ => at += 6,
        }
    }
    if kept == 0 {
        return None;
    }
    repaired.push_str(&payload[kept..]);
    Some(repaired)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(delta: &str) -> String {
        let payload = format!(r#"{{"choices":[{{"delta":{delta}}}]}}"#);
        let chunk = Chunk::parse(&payload).unwrap();
        match chunk.choice.and_then(|choice| choice.delta) {
            Some(said) => format!("{:?} {:?} {:?}", said.content, said.reasoning_content, said.reasoning),
            None => "none".to_owned(),
        }
    }

    #[test]
    fn odd_types_are_as_if_absent() {
        let nothing = r#"Text("") "" """#;
        assert_eq!(said("null"), "none");
        assert_eq!(said("[]"), "none");
        assert_eq!(said("7"), "none");
        assert_eq!(said("{}"), nothing);
        assert_eq!(said(r#"{"content":7,"reasoning_content":{"a":1},"reasoning":[1]}"#), nothing);
        assert_eq!(said(r#"{"content":"a\n","content":null,"content":""}"#), r#"Text("a\n") "" """#);
        assert_eq!(said(r#"{"content":[{"type":"text"}]}"#), r#"Parts([{"type":"text"}]) "" """#);
        assert_eq!(said(r#"{"reasoning":"r","reasoning_content":""}"#), r#"Text("") "" "r""#);
    }

    #[test]
    fn only_choice_zero_counts() {
        let payload = r#"{"choices":[7,{"index":1,"delta":{"content":"b"}},{"index":0,"delta":{"content":"a"}},{"delta":{"content":"c"}}]}"#;
        let chunk = Chunk::parse(payload).unwrap();
        let said = chunk.choice.unwrap().delta.unwrap();
        assert!(matches!(said.content, Content::Text(text) if text == "a"));
    }

    #[test]
    fn placeholders_are_nothing() {
        let chunk = Chunk::parse(r#"{"error":null,"usage":{},"x_groq":[],"base_resp":"","choices":null,"error":false}"#).unwrap();
        assert!(chunk.error.is_none() && chunk.usage.is_none() && chunk.x_groq.is_none() && chunk.base_resp.is_none());
        assert!(chunk.has_choices);
    }

    #[test]
    fn lone_surrogates_are_replaced_and_pairs_kept() {
        let rows = [
            (r#""a\ud83e""#, Some(r#""a\ufffd""#)),
            (r#""\udd80b\u0041""#, Some(r#""\ufffdb\u0041""#)),
            (r#""\ud83e\ud83e\udd80""#, Some(r#""\ufffd\ud83e\udd80""#)),
            (r#""\ud83e\udd80 \\ud83e \n""#, None),
            (r#""plain \"#, None),
            (r#""\u12"#, None),
            (r#""\ud8é""#, None),
        ];
        for (payload, expected) in rows {
            assert_eq!(without_lone_surrogates(payload).as_deref(), expected, "{payload}");
        }
    }
}
