//! What an error body says, gathered from whichever shape it has.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{wait, words};

/// Deepest nesting that is followed. OpenRouter around a gateway around a provider has five levels.
const DEPTH_MAX: u8 = 8;

/// Most elements of an array that are looked at.
const ELEMENTS_MAX: usize = 8;

/// Longest code that is one; longer ones are prose in the wrong place.
const CODE_BYTES_MAX: usize = 80;

/// Messages that say nothing; a better one further inside goes before them.
const EMPTY_WORDS: [&str; 5] = ["provider returned error", "error", "bad request", "upstream error", "internal error"];

/// Everything that was found, in the order in which it counts.
#[derive(Debug, Default)]
pub(super) struct Facts {
    messages: Vec<String>,
    /// Codes, types and statuses, in lower case.
    pub(super) codes: Vec<String>,
    /// Numbers that stood where a code stands.
    pub(super) numbers: Vec<i64>,
    /// `MiniMax`'s own code, whose numbers mean other things than everybody else's.
    pub(super) minimax_code: Option<i64>,
    /// The parameter at fault, where the provider names it apart from its message.
    pub(super) parameter: Option<String>,
    /// Waits by how much they are to be trusted: a field of its own, then Google's details.
    waits: [Option<Duration>; 2],
    /// All messages together, in lower case.
    pub(super) text: String,
}

impl Facts {
    /// Reads a JSON body or error object.
    pub(super) fn read(&mut self, value: &Value) {
        self.gather(value, 0);
        self.text = self.messages.join("\n").to_lowercase();
    }

    /// Reads a body that is not JSON.
    pub(super) fn read_text(&mut self, body: &str) {
        self.messages.push(body.to_owned());
        self.text = body.to_lowercase();
    }

    /// The most telling message, cleaned for a person; `None` when there is none.
    pub(super) fn message(&self) -> Option<String> {
        let cleaned =
            || self.messages.iter().map(|message| words::clean(message)).filter(|message| !message.is_empty());
        cleaned()
            .find(|message| !EMPTY_WORDS.contains(&message.to_lowercase().as_str()))
            .or_else(|| cleaned().next())
            .or_else(|| self.codes.first().map(|code| words::clean(code)).filter(|code| !code.is_empty()))
    }

    /// How long the body asks to wait.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.waits[0].or(self.waits[1]).or_else(|| wait::from_text(&self.text))
    }

    /// Whether any code is one of `codes`.
    pub(super) fn has_code(&self, codes: &[&str]) -> bool {
        self.codes.iter().any(|code| codes.contains(&code.as_str()))
    }

    /// Whether the provider's words contain one of `phrases` (lower case).
    pub(super) fn says(&self, phrases: &[&str]) -> bool {
        phrases.iter().any(|phrase| self.text.contains(phrase))
    }

    fn gather(&mut self, value: &Value, depth: u8) {
        if depth > DEPTH_MAX {
            return;
        }
        match value {
            Value::String(text) => self.gather_text(text, depth),
            Value::Array(elements) => {
                for element in elements.iter().take(ELEMENTS_MAX) {
                    self.gather(element, depth + 1);
                }
            }
            Value::Object(fields) => self.gather_object(fields, depth),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// A message, or JSON that somebody has put into one.
    fn gather_text(&mut self, text: &str, depth: u8) {
        if let Some(start) = text.find(['{', '['])
            && text[..start].len() <= "429 ".len()
            && let Ok(value @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str(&text[start..])
        {
            self.gather(&value, depth + 1);
        } else {
            self.messages.push(text.to_owned());
        }
    }

    fn gather_object(&mut self, fields: &Map<String, Value>, depth: u8) {
        match fields.get("error") {
            // `{"error": "some_code", "message": "…"}`
            Some(Value::String(code)) if is_code(code) => self.add_code(code),
            Some(error) => self.gather(error, depth + 1),
            None => {}
        }
        for name in ["code", "type", "status", "error_code", "error_type", "status_code", "reason"] {
            match fields.get(name) {
                Some(Value::String(code)) => self.add_code(code),
                Some(Value::Number(number)) => self.numbers.extend(number.as_i64()),
                _ => {}
            }
        }
        if let Some(Value::String(parameter)) = fields.get("param") {
            self.parameter.get_or_insert_with(|| parameter.clone());
        }
        if let Some(Value::Object(base)) = fields.get("base_resp") {
            self.minimax_code = base.get("status_code").and_then(Value::as_i64);
            if let Some(text) = base.get("status_msg").and_then(Value::as_str) {
                self.messages.push(text.to_owned());
            }
        }
        self.gather_messages(fields, depth);
        self.gather_waits(fields);
        for name in ["errors", "details", "metadata"] {
            if let Some(inner @ (Value::Object(_) | Value::Array(_))) = fields.get(name) {
                self.gather(inner, depth + 1);
            }
        }
    }

    fn gather_messages(&mut self, fields: &Map<String, Value>, depth: u8) {
        // FastAPI names the field at fault in `loc`, below the part of the request it is in.
        let location = fields.get("loc").and_then(Value::as_array).map(|path| {
            let steps = path.iter().filter(|step| step.as_str() != Some("body")).take(ELEMENTS_MAX);
            steps
                .map(|step| step.as_str().map_or_else(|| step.to_string(), str::to_owned))
                .collect::<Vec<_>>()
                .join(".")
        });
        for name in ["message", "detail", "msg", "status_msg", "error_description", "raw", "title"] {
            match (fields.get(name), &location) {
                (Some(Value::String(text)), Some(location)) if !location.is_empty() => {
                    self.messages.push(format!("{location}: {text}"));
                    self.parameter.get_or_insert_with(|| location.clone());
                }
                (Some(text), _) => self.gather(text, depth + 1),
                (None, _) => {}
            }
        }
    }

    fn gather_waits(&mut self, fields: &Map<String, Value>) {
        let number = |names: &[&str]| names.iter().find_map(|name| fields.get(*name)?.as_f64());
        let ms = number(&["retryAfterMs", "retry_after_ms"]).map(|ms| ms / 1_000.0);
        let seconds = ms.or_else(|| number(&["retry_after", "retryAfter"]));
        if let Some(wait) = seconds.and_then(wait::seconds) {
            self.waits[0].get_or_insert(wait);
        }
        for name in ["retryDelay", "quotaResetDelay"] {
            if let Some(wait) = fields.get(name).and_then(Value::as_str).and_then(wait::span) {
                self.waits[1].get_or_insert(wait);
            }
        }
    }

    fn add_code(&mut self, code: &str) {
        if !code.is_empty() && code.len() <= CODE_BYTES_MAX {
            self.codes.push(code.to_lowercase());
        }
    }
}

/// Whether an error string is a name for programs rather than a sentence.
fn is_code(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}
