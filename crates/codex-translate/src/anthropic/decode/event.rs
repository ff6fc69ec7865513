//! One event of a stream, read in one pass and borrowed from its payload.

use std::borrow::Cow;

use crate::json::{self, Kind, Raw, Reader, Str};

/// The members of an event that mean something in one type or another.
#[derive(Debug, Default)]
pub(super) struct Event<'a> {
    /// `type`; empty where a gateway leaves it out.
    pub(super) kind: Cow<'a, str>,
    pub(super) index: Option<u64>,
    pub(super) delta: Step<'a>,
    pub(super) content_block: Option<Raw<'a>>,
    pub(super) message: Option<Raw<'a>>,
    pub(super) usage: Option<Raw<'a>>,
    pub(super) error: Option<Raw<'a>>,
    /// Of a whole message, where an event has none.
    pub(super) content: Option<Raw<'a>>,
    pub(super) stop_reason: Option<Raw<'a>>,
    /// A member by which gateways report an error in a form of their own.
    pub(super) has_error_words: bool,
}

/// The `delta` of a `content_block_delta` or a `message_delta`.
#[derive(Debug, Default)]
pub(super) struct Step<'a> {
    pub(super) kind: Cow<'a, str>,
    pub(super) text: Option<Raw<'a>>,
    pub(super) thinking: Option<Raw<'a>>,
    pub(super) signature: Option<Raw<'a>>,
    pub(super) partial_json: Option<Raw<'a>>,
    pub(super) stop_reason: Option<Raw<'a>>,
}

impl<'a> Event<'a> {
    /// Reads a payload that must be one JSON object.
    pub(super) fn parse(payload: &'a str) -> Result<Self, json::Error> {
        let mut reader = Reader::new(payload);
        let mut event = Self::default();
        reader.enter_object()?;
        while let Some(key) = reader.next_key()? {
            match key.escaped() {
                "type" => event.kind = decoded(reader.value()?),
                "index" => event.index = reader.value()?.as_u64(),
                "delta" => event.delta.read(&mut reader)?,
                "content_block" => event.content_block = Some(reader.value()?),
                "message" => {
                    let message = reader.value()?;
                    event.has_error_words |= message.kind() == Kind::String;
                    event.message = Some(message);
                }
                "usage" => event.usage = Some(reader.value()?),
                "error" => {
                    // Placeholders are nothing.
                    let is_error = |error: &Raw<'_>| error.entries().next().is_some() || !decoded(*error).is_empty();
                    event.error = Some(reader.value()?).filter(is_error);
                }
                "content" => event.content = Some(reader.value()?),
                "stop_reason" => event.stop_reason = Some(reader.value()?),
                "detail" | "msg" => event.has_error_words |= !reader.value()?.is_null(),
                "success" => event.has_error_words |= reader.value()?.as_bool() == Some(false),
                _ => {
                    reader.value()?;
                }
            }
        }
        reader.finish()?;
        Ok(event)
    }
}

impl<'a> Step<'a> {
    fn read(&mut self, reader: &mut Reader<'a>) -> Result<(), json::Error> {
        if reader.kind()? != Kind::Object {
            reader.value()?;
            return Ok(());
        }
        reader.enter_object()?;
        while let Some(key) = reader.next_key()? {
            let value = reader.value()?;
            match key.escaped() {
                "type" => self.kind = decoded(value),
                "text" => self.text = Some(value),
                "thinking" => self.thinking = Some(value),
                "signature" => self.signature = Some(value),
                "partial_json" => self.partial_json = Some(value),
                "stop_reason" => self.stop_reason = Some(value),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The string `value` is, or the empty string.
pub(super) fn decoded(value: Raw<'_>) -> Cow<'_, str> {
    value.as_str().map_or(Cow::Borrowed(""), Str::decode)
}
