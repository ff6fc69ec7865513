//! Arguments of a tool call as models and their hosts write them, made into the JSON object that they mean.
//!
//! What is repaired is what was garbled on the way: layers of quoting, a stray empty object in front, markup behind,
//! control characters and impossible escapes in strings, values sent twice. What is never repaired is what is missing:
//! a string or object that was cut off means a command of which the end was not seen, and running half a command is
//! worse than running none.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::json::{self, Kind, Raw, Reader};
use crate::tools::{CUSTOM_ARGUMENT, Tool, ToolKind};
use crate::{Failure, FailureClass};

/// Layers of JSON inside a JSON string that are taken off.
const UNWRAP_MAX: usize = 3;

/// Most bytes of a tool's name in a message.
const NAME_BYTES_MAX: usize = 200;

/// Why arguments cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// Their end is missing.
    Cut,
    /// They are no JSON object, and nothing says what was meant.
    Garbled,
}

impl Unusable {
    /// The failure of an answer with a call of `tool` whose arguments are such.
    pub(crate) fn failure(self, tool: &str) -> Failure {
        let (class, problem) = match self {
            Self::Cut => (FailureClass::Truncated, "was cut off in the middle of its arguments"),
            Self::Garbled => (FailureClass::Malformed, "came with arguments that are no JSON object"),
        };
        let tool = &tool[..tool.floor_char_boundary(NAME_BYTES_MAX)];
        Failure::new(class, format!("a call of `{tool}` {problem}"))
    }
}

/// As [`arguments`], for a call of `tool`: one that takes a free text may have been given it bare.
pub(crate) fn arguments_of(tool: Option<&Tool>, fragments: &Fragments) -> Result<String, Unusable> {
    arguments(fragments).or_else(|why| {
        let takes_text = tool.is_some_and(|tool| tool.kind == ToolKind::Custom);
        let text = if takes_text { free_text(fragments.text()) } else { None };
        text.map(|text| json!({ CUSTOM_ARGUMENT: text }).to_string()).ok_or(why)
    })
}

/// The object that `fragments`, joined, stand for, as JSON text. Nothing at all is `{}`.
pub(crate) fn arguments(fragments: &Fragments) -> Result<String, Unusable> {
    let problem = match object(&fragments.text) {
        Ok(object) => return Ok(object),
        Err(problem) => problem,
    };
    // Some hosts repeat in each chunk all that came before.
    match fragments.cumulative() {
        Some(last) => object(last),
        None => Err(problem),
    }
}

/// Arguments as they came, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fragments {
    text: String,
    /// Where each fragment ends in `text`.
    ends: Vec<usize>,
}

impl Fragments {
    /// Adds one fragment; an empty one is nothing.
    pub(crate) fn push(&mut self, fragment: &str) {
        if !fragment.is_empty() {
            self.text.push_str(fragment);
            self.ends.push(self.text.len());
        }
    }

    /// All fragments joined.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The last fragment, if each begins with the one before.
    fn cumulative(&self) -> Option<&str> {
        let mut previous = "";
        let mut start = 0;
        for &end in &self.ends {
            let fragment = &self.text[start..end];
            if !fragment.starts_with(previous) {
                return None;
            }
            previous = fragment;
            start = end;
        }
        (self.ends.len() > 1).then_some(previous)
    }
}

/// Whether `text` is a whole object with something in it.
pub(crate) fn is_whole(text: &str) -> bool {
    // The cheap test first: this is asked for each fragment of long arguments.
    text.trim_end().ends_with('}') && json::parse(text).is_ok_and(|value| value.entries().next().is_some())
}

/// The object that `text` stands for.
pub(crate) fn object(text: &str) -> Result<String, Unusable> {
    let mut text = Cow::Borrowed(text);
    for _ in 0..=UNWRAP_MAX {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Ok("{}".to_owned());
        }
        let repaired = strings_repaired(trimmed);
        let value = match json::parse(&repaired) {
            Ok(value) => value,
            Err(_) => first_value(&repaired)?,
        };
        match value.kind() {
            Kind::Object => return Ok(value.text().to_owned()),
            Kind::Null => return Ok("{}".to_owned()),
            Kind::String => {
                let inner = value.as_str().map(|inner| inner.decode().into_owned()).unwrap_or_default();
                text = Cow::Owned(inner);
            }
            Kind::Array | Kind::Bool | Kind::Number => return Err(Unusable::Garbled),
        }
    }
    Err(Unusable::Garbled)
}

/// The text that a tool without JSON arguments was given bare, instead of inside an object: a JSON string, or a patch
/// that shows by its last line that it is whole.
pub(crate) fn free_text(arguments: &str) -> Option<String> {
    let arguments = arguments.trim();
    if arguments.starts_with("*** Begin Patch") && arguments.ends_with("*** End Patch") {
        return Some(arguments.to_owned());
    }
    let repaired = strings_repaired(arguments);
    let text = json::parse(&repaired).ok()?.as_str()?.decode().into_owned();
    (!text.trim().is_empty()).then_some(text)
}

/// The value at the start of a text with more behind it: what counts is the one value that is not empty.
fn first_value(text: &str) -> Result<Raw<'_>, Unusable> {
    let mut reader = Reader::new(text);
    let start = reader.position();
    let mut value = reader.value().map_err(|error| unusable(text, error))?;
    let mut end = start + value.text().len();
    loop {
        let rest = text[end..].trim_start();
        // Markup that closes what the host had opened: `</tool_call>`, `<|im_end|>`, a code fence.
        if rest.is_empty() || rest.starts_with(['<', '`']) {
            return Ok(value);
        }
        if !rest.starts_with('{') {
            return Err(Unusable::Garbled);
        }
        let mut reader = Reader::new(rest);
        let next = reader.value().map_err(|error| unusable(rest, error))?;
        end = text.len() - rest.len() + next.text().len();
        if value.entries().next().is_none() {
            value = next;
        } else if next.entries().next().is_some() && !is_same(value, next) {
            // Two different calls in one: which one is meant cannot be known.
            return Err(Unusable::Garbled);
        }
    }
}

/// Whether `text` breaks off at the error, be it in the middle of an escape or a word, or is wrong there.
fn unusable(text: &str, error: json::Error) -> Unusable {
    /// Length of the longest escape, a pair of surrogates.
    const ESCAPE_BYTES_MAX: usize = 12;
    let rest = text.get(error.at..).unwrap_or_default();
    let is_cut = rest.starts_with('\\') && rest.len() < ESCAPE_BYTES_MAX
        || ["true", "false", "null"].iter().any(|word| word.starts_with(rest));
    if is_cut { Unusable::Cut } else { Unusable::Garbled }
}

fn is_same(one: Raw<'_>, other: Raw<'_>) -> bool {
    let value = |raw: Raw<'_>| serde_json::from_str::<Value>(raw.text()).ok();
    one == other || value(one).is_some_and(|one| Some(one) == value(other))
}

/// `text` with control characters in its strings escaped, and backslashes that escape nothing doubled.
fn strings_repaired(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut repaired = String::new();
    let mut kept = 0;
    let mut in_string = false;
    let mut at = 0;
    while at < bytes.len() {
        let replacement = match bytes[at] {
            b'"' => {
                in_string = !in_string;
                None
            }
            b'\\' if in_string => {
                let is_escape = match bytes.get(at + 1) {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') | None => true,
                    Some(b'u') => bytes.get(at + 2..at + 6).is_none_or(|hex| hex.iter().all(u8::is_ascii_hexdigit)),
                    Some(_) => false,
                };
                if is_escape {
                    at += 2;
                    continue;
                }
                Some("\\\\".to_owned())
            }
            control @ 0..0x20 if in_string => Some(match control {
                b'\n' => "\\n".to_owned(),
                b'\r' => "\\r".to_owned(),
                b'\t' => "\\t".to_owned(),
                other => format!("\\u{other:04x}"),
            }),
            _ => None,
        };
        if let Some(replacement) = replacement {
            repaired.push_str(&text[kept..at]);
            repaired.push_str(&replacement);
            kept = at + 1;
        }
        at += 1;
    }
    if kept == 0 {
        return Cow::Borrowed(text);
    }
    repaired.push_str(&text[kept..]);
    Cow::Owned(repaired)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(fragments: &[&str]) -> Result<String, Unusable> {
        let mut all = Fragments::default();
        for fragment in fragments {
            all.push(fragment);
        }
        arguments(&all)
    }

    #[test]
    fn what_is_garbled_is_repaired() {
        let rows: [(&[&str], &str); 19] = [
            (&[], "{}"),
            (&["", "  "], "{}"),
            (&["null"], "{}"),
            (&[r#"{"cmd":"#, r#""ls"}"#], r#"{"cmd":"ls"}"#),
            (&[r#" {"cmd": "ls"} "#], r#"{"cmd": "ls"}"#),
            (&[r#""{\"cmd\":\"ls\"}""#], r#"{"cmd":"ls"}"#),
            (&[r#""\"{\\\"a\\\":1}\"""#], r#"{"a":1}"#),
            (&[r#""""#], "{}"),
            (&["{}", r#"{"cmd":"ls"}"#], r#"{"cmd":"ls"}"#),
            (&[r#"{"cmd":"ls"}"#, "{}"], r#"{"cmd":"ls"}"#),
            (&[r#"{"cmd":"ls"}</tool_call>"#], r#"{"cmd":"ls"}"#),
            (&["{\"cmd\":\"ls\"}\n```"], r#"{"cmd":"ls"}"#),
            (&["{\"cmd\":\"a\nb\tc\u{1}\"}"], r#"{"cmd":"a\nb\tc\u0001"}"#),
            (&[r#"{"re":"\d+\("}"#], r#"{"re":"\\d+\\("}"#),
            (&[r#"{"c"#, r#"{"cmd":"#, r#"{"cmd":"ls"}"#], r#"{"cmd":"ls"}"#),
            (&[r#"{"cmd":"ls"}"#, r#"{"cmd":"ls"}"#], r#"{"cmd":"ls"}"#),
            (&[r#"{"c"#, r#"md":"ls"}"#, r#"{"cmd": "ls"}"#], r#"{"cmd":"ls"}"#),
            (&[r#"{"cmd":"seq 1"#, "00", "00", r#""}"#], r#"{"cmd":"seq 10000"}"#),
            (&[r#"{"a":"\ud83e\udd80"}"#], r#"{"a":"\ud83e\udd80"}"#),
        ];
        for (fragments, expected) in rows {
            assert_eq!(joined(fragments).as_deref(), Ok(expected), "{fragments:?}");
        }
    }

    #[test]
    fn what_is_missing_is_not() {
        for cut in [
            r#"{"cmd":"ls"#,
            r#"{"cmd":"ls""#,
            r#"{"cmd":"ls\"#,
            r#"{"cmd""#,
            "{",
            r#""{\"cmd\":\"ls\""#,
            r#"{}{"cmd":"ls""#,
            r#"{"cmd":"ls"}{"cmd":"#,
            "{\"cmd\":\"a\nb",
        ] {
            assert_eq!(joined(&[cut]), Err(Unusable::Cut), "{cut}");
        }
        assert_eq!(joined(&[r#"{"c"#, r#"{"cmd":"#]), Err(Unusable::Cut));
    }

    #[test]
    fn only_a_tool_that_takes_text_can_be_given_it_bare() {
        let tool = |kind| Tool { alias: "t".into(), name: "t".into(), namespace: None, kind };
        let given = |tool: Option<&Tool>, text: &str| {
            let mut fragments = Fragments::default();
            fragments.push(text);
            arguments_of(tool, &fragments)
        };
        assert_eq!(given(Some(&tool(ToolKind::Custom)), "\"a\nb\"").as_deref(), Ok(r#"{"input":"a\nb"}"#));
        assert_eq!(given(Some(&tool(ToolKind::Custom)), r#"{"input":"a"}"#).as_deref(), Ok(r#"{"input":"a"}"#));
        assert_eq!(given(Some(&tool(ToolKind::Custom)), "\"cut"), Err(Unusable::Cut));
        assert_eq!(given(Some(&tool(ToolKind::Function)), "\"a\""), Err(Unusable::Garbled));
        assert_eq!(given(None, "\"a\""), Err(Unusable::Garbled));
    }

    #[test]
    fn bare_texts() {
        let patch = "*** Begin Patch\n*** Delete File: a\n*** End Patch";
        assert_eq!(free_text(patch).as_deref(), Some(patch));
        assert_eq!(free_text("\"a\nb\"").as_deref(), Some("a\nb"));
        assert_eq!(free_text("*** Begin Patch\n*** Delete File: a\n"), None);
        assert_eq!(free_text("\"cut"), None);
        assert_eq!(free_text("\"\""), None);
        assert_eq!(free_text("{}"), None);
    }

    #[test]
    fn what_could_mean_two_things_is_not_used() {
        for garbled in [
            r#"{"cmd":"l"}{"cmd":"ls"}"#,
            r#"{"cmd":"ls"} and then some"#,
            "[1]",
            "7",
            "ls -la",
            r#""ls -la""#,
            r#"{"cmd":}"#,
        ] {
            assert_eq!(joined(&[garbled]), Err(Unusable::Garbled), "{garbled}");
        }
    }

    proptest! {
        #[test]
        fn a_prefix_of_an_object_is_never_an_object(
            values in proptest::collection::btree_map("[a-z\"\\\\]{1,4}", "[ -~\n{}\"\\\\é]{0,12}", 1..4),
            cut in 0usize..200,
        ) {
            let text = serde_json::to_string(&values).unwrap();
            let whole = object(&text);
            prop_assert_eq!(whole.as_deref(), Ok(text.as_str()));
            let cut = text.floor_char_boundary(1 + cut % (text.len() - 1));
            prop_assert!(object(&text[..cut]).is_err(), "{}", &text[..cut]);
        }

        #[test]
        fn what_comes_out_is_an_object(text in "[{}\\[\\]\":,a\\\\ \n<`0-9]{0,40}") {
            if let Ok(object) = object(&text) {
                prop_assert!(serde_json::from_str::<serde_json::Map<String, Value>>(&object).is_ok(), "{object}");
            }
        }
    }
}
