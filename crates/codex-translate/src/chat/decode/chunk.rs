//! One chunk of a Chat Completions stream, or one whole answer, read in a single pass.
//!
//! The reader is strict about JSON and curious about everything else: a field of a type nobody expected is as if it
//! were not there, of two fields with one name the one that says something counts, and only choice 0 is read.

use std::borrow::Cow;

use crate::json::{self, Kind, Raw, Reader, Str};

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
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    index: u64,
    pub(super) delta: Option<Said<'a>>,
    pub(super) message: Option<Said<'a>>,
    pub(super) finish_reason: Str<'a>,
    pub(super) usage: Option<Raw<'a>>,
    pub(super) error: Option<Raw<'a>>,
}

/// A `delta` or a `message`. Texts are kept as they were written, and are empty where there is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    pub(super) content: Content<'a>,
    pub(super) refusal: Str<'a>,
    pub(super) reasoning_content: Str<'a>,
    pub(super) reasoning: Str<'a>,
    pub(super) reasoning_details: Option<Raw<'a>>,
    pub(super) tool_calls: Option<Raw<'a>>,
    pub(super) function_call: Option<Raw<'a>>,
}

/// Visible text, in either of its forms.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    Text(Str<'a>),
    /// Typed parts, which may be reasoning too.
    Parts(Raw<'a>),
}

/// The text of a chunk that says nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Only<'a> {
    Content(Str<'a>),
    Reasoning(Str<'a>),
}

impl<'a> Chunk<'a> {
    /// Reads a payload that must be one JSON object.
    pub(super) fn parse(payload: &'a str) -> Result<Self, json::Error> {
        let mut reader = Reader::new(payload);
        let chunk = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(chunk)
    }

    /// The text of the chunk, if that is all there is to it.
    pub(super) fn only(&self) -> Option<Only<'a>> {
        let is_bare = self.usage.is_none()
            && self.x_groq.is_none()
            && self.error.is_none()
            && self.base_resp.is_none()
            && self.data.is_none()
            && !self.is_error_object
            && !self.has_error_words;
        let choice = self.choice.as_ref().filter(|_| is_bare)?;
        if !choice.finish_reason.is_empty()
            || choice.message.is_some()
            || choice.usage.is_some()
            || choice.error.is_some()
        {
            return None;
        }
        let said = choice.delta.as_ref()?;
        let is_text = said.refusal.is_empty()
            && said.reasoning_details.is_none()
            && said.tool_calls.is_none()
            && said.function_call.is_none();
        let Content::Text(content) = said.content else { return None };
        match (content.is_empty(), said.reasoning_content.is_empty(), said.reasoning.is_empty()) {
            (false, true, true) if is_text => Some(Only::Content(content)),
            (true, false, true) if is_text => Some(Only::Reasoning(said.reasoning_content)),
            (true, true, false) if is_text => Some(Only::Reasoning(said.reasoning)),
            _ => None,
        }
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
                "object" | "type" => {
                    chunk.is_error_object |= reader.value()?.as_str().is_some_and(|name| name.is("error"));
                }
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
        let mut choice =
            Self { index: 0, delta: None, message: None, finish_reason: Str::EMPTY, usage: None, error: None };
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
        let mut said = Self {
            content: Content::Text(Str::EMPTY),
            refusal: Str::EMPTY,
            reasoning_content: Str::EMPTY,
            reasoning: Str::EMPTY,
            reasoning_details: None,
            tool_calls: None,
            function_call: None,
        };
        reader.enter_object()?;
        while let Some(key) = reader.next_key()? {
            let place = match key.escaped() {
                "content" => {
                    let value = reader.value()?;
                    match (value.kind(), value.as_str()) {
                        (Kind::Array | Kind::Object, _) => said.content = Content::Parts(value),
                        (_, Some(text)) if !text.is_empty() => said.content = Content::Text(text),
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
fn text<'a>(reader: &mut Reader<'a>) -> Result<Str<'a>, json::Error> {
    Ok(reader.value()?.as_str().unwrap_or(Str::EMPTY))
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
        assert!(matches!(said.content, Content::Text(text) if text.is("a")));
    }

    #[test]
    fn placeholders_are_nothing() {
        let chunk =
            Chunk::parse(r#"{"error":null,"usage":{},"x_groq":[],"base_resp":"","choices":null,"error":false}"#)
                .unwrap();
        assert!(chunk.error.is_none() && chunk.usage.is_none() && chunk.x_groq.is_none() && chunk.base_resp.is_none());
        assert!(chunk.has_choices);
    }
}
