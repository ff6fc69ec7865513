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
        let text = if takes_text { fragments.readings().find_map(|text| free_text(&text)) } else { None };
        text.map(|text| json!({ CUSTOM_ARGUMENT: text }).to_string()).ok_or(why)
    })
}

/// The object that `fragments` stand for, as JSON text. Nothing at all is `{}`.
pub(crate) fn arguments(fragments: &Fragments) -> Result<String, Unusable> {
    let mut problem = None;
    for reading in fragments.readings() {
        match object(&reading) {
            Ok(object) => return Ok(object),
            Err(why) => problem = problem.or(Some(why)),
        }
    }
    Err(problem.unwrap_or(Unusable::Garbled))
}

/// Most bytes of fragments that each begin with the one before and are joined all the same. Pieces of one text that
/// happen to be like that, such as white space, are few and short.
const JOINED_BYTES_MAX: usize = 64 << 10;

/// Arguments as they came.
///
/// Most hosts send pieces to be joined; some repeat in each chunk all that came before. Which of the two it is cannot be
/// told from one fragment, so as long as each begins with the one before, only the last is kept, and how long the others
/// were: what is kept grows with what the arguments are, not with how often they are repeated.
#[derive(Clone, Debug)]
pub(crate) struct Fragments {
    /// All fragments joined; the last one alone as long as there are `lengths`.
    text: String,
    /// How long each fragment was, as long as each has begun with the one before.
    lengths: Option<Vec<usize>>,
    /// What can be told of the object in `text`.
    object: Outline,
    /// Too much to be joined: what was meant cannot be known any more.
    is_lost: bool,
}

impl Default for Fragments {
    fn default() -> Self {
        Self { text: String::new(), lengths: Some(Vec::new()), object: Outline::default(), is_lost: false }
    }
}

impl Fragments {
    /// Adds one fragment; an empty one is nothing.
    pub(crate) fn push(&mut self, fragment: &str) {
        if fragment.is_empty() || self.is_lost {
            return;
        }
        let fresh = match &mut self.lengths {
            Some(lengths) => {
                if let Some(fresh) = fragment.strip_prefix(self.text.as_str()) {
                    lengths.push(fragment.len());
                    fresh
                } else {
                    self.join();
                    fragment
                }
            }
            None => fragment,
        };
        if !self.is_lost {
            self.object.follow(&mut self.text, fresh);
        }
    }

    /// The text so far: all fragments joined, or the last one where each begins with the one before.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the text so far is a whole object with something in it.
    pub(crate) fn is_whole(&self) -> bool {
        self.object.is_whole
    }

    /// How much is kept, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.text.len() + self.lengths.as_ref().map_or(0, |lengths| size_of_val(lengths.as_slice()))
    }

    /// What is allocated, for tests of what is held.
    #[cfg(test)]
    pub(crate) fn allocated_bytes(&self) -> usize {
        let Self { text, lengths, object: _, is_lost: _ } = self;
        text.capacity() + lengths.as_ref().map_or(0, |lengths| lengths.capacity() * size_of::<usize>())
    }

    /// What the fragments can mean together, the likeliest first.
    fn readings(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let as_kept = (!self.is_lost).then_some(Cow::Borrowed(self.text.as_str()));
        let is_joined = self.lengths.as_ref().is_none_or(|lengths| lengths.len() < 2);
        let joined = if is_joined { None } else { self.joined() };
        as_kept.into_iter().chain(joined.map(Cow::Owned))
    }

    /// All fragments of which the last is kept, joined.
    fn joined(&self) -> Option<String> {
        let lengths = self.lengths.as_ref()?;
        let n_bytes = lengths.iter().fold(0_usize, |sum, length| sum.saturating_add(*length));
        let is_short = n_bytes <= JOINED_BYTES_MAX || lengths.len() < 2;
        is_short.then(|| lengths.iter().map(|length| &self.text[..*length]).collect())
    }

    /// Goes over to keeping all fragments joined.
    fn join(&mut self) {
        let joined = self.joined();
        self.is_lost = joined.is_none();
        self.lengths = None;
        self.text.clear();
        self.object = Outline::default();
        if let Some(joined) = joined {
            self.object.follow(&mut self.text, &joined);
        }
    }
}

/// The brackets of a JSON text that grows: enough to know when it is worth to be parsed, which is once.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent fact about the text so far")]
struct Outline {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// The first bracket was closed.
    is_closed: bool,
    /// The text is one object with something in it.
    is_whole: bool,
}

impl Outline {
    /// Adds `fresh` to `text`, which was followed so far.
    fn follow(&mut self, text: &mut String, fresh: &str) {
        text.push_str(fresh);
        let was_closed = self.is_closed;
        for byte in fresh.bytes() {
            if self.is_closed {
                if !byte.is_ascii_whitespace() {
                    self.is_whole = false;
                    return;
                }
            } else if self.in_string {
                self.in_string = byte != b'"' || self.is_escaped;
                self.is_escaped = byte == b'\\' && !self.is_escaped;
            } else {
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => {
                        self.depth = self.depth.saturating_sub(1);
                        self.is_closed = self.depth == 0;
                    }
                    _ => {}
                }
            }
        }
        if self.is_closed && !was_closed {
            self.is_whole = json::parse(text).is_ok_and(|value| value.entries().next().is_some());
        }
    }
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
    fn what_is_repeated_in_each_chunk_is_kept_once() {
        const STEP_BYTES: usize = 7;
        let text = json!({"patch": "+ let x = {\"a\": [1]};\n".repeat(8_000)}).to_string();
        assert!(text.len() > 200_000);
        let mut fragments = Fragments::default();
        let mut n_steps = 0;
        for end in (STEP_BYTES..text.len()).step_by(STEP_BYTES).chain([text.len(), text.len()]) {
            fragments.push(&text[..end]);
            assert_eq!(fragments.is_whole(), end == text.len());
            n_steps += 1;
        }
        assert!(fragments.held_bytes() <= text.len() + n_steps * size_of::<usize>());
        assert_eq!(arguments(&fragments).as_deref(), Ok(text.as_str()));
        // What goes on otherwise after so much repetition means nothing.
        fragments.push("{");
        assert_eq!((arguments(&fragments), fragments.held_bytes()), (Err(Unusable::Garbled), 0));
    }

    #[test]
    fn an_object_is_whole_from_its_last_bracket_to_whatever_follows() {
        let rows: [(&[&str], &[bool]); 8] = [
            (&["{\"a\":\"}", "\"", "} ", "\n", "x"], &[false, false, true, true, false]),
            (&["{", "}"], &[false, false]),
            (&["{\"a\":[{}]", "}"], &[false, true]),
            (&["{\"a\":\"\\\"}\"", "}"], &[false, true]),
            (&["{\"a\":1}{", "}"], &[false, false]),
            (&["{\"a\"}"], &[false]),
            (&["[1]"], &[false]),
            (&["{\"a\"", "{\"a\":1}", "{\"a\":1}"], &[false, true, true]),
        ];
        for (pieces, expected) in rows {
            let mut fragments = Fragments::default();
            let found: Vec<bool> = pieces
                .iter()
                .map(|piece| {
                    fragments.push(piece);
                    fragments.is_whole()
                })
                .collect();
            assert_eq!(found, expected, "{pieces:?}");
        }
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

        /// What is kept instead of all fragments tells as much as they do.
        #[test]
        fn repeated_and_joined_fragments_are_told_apart(
            pieces in proptest::collection::vec("[{}\":a \\\\1]{1,3}", 1..6),
            is_repeated in any::<bool>(),
        ) {
            let mut so_far = String::new();
            let sent: Vec<String> = pieces
                .iter()
                .map(|piece| {
                    so_far.push_str(piece);
                    if is_repeated { so_far.clone() } else { piece.clone() }
                })
                .collect();
            let mut fragments = Fragments::default();
            for fragment in &sent {
                fragments.push(fragment);
            }
            let readings: Vec<String> = fragments.readings().map(Cow::into_owned).collect();
            prop_assert!(readings.contains(&sent.concat()));
            let is_chain = sent.windows(2).all(|pair| pair[1].starts_with(&pair[0]));
            prop_assert_eq!(is_chain, readings[0] == sent[sent.len() - 1]);
            let is_object = |text: &str| json::parse(text).is_ok_and(|value| value.entries().next().is_some());
            prop_assert_eq!(fragments.is_whole(), is_object(&readings[0]));
        }

        #[test]
        fn what_comes_out_is_an_object(text in "[{}\\[\\]\":,a\\\\ \n<`0-9]{0,40}") {
            if let Ok(object) = object(&text) {
                prop_assert!(serde_json::from_str::<serde_json::Map<String, Value>>(&object).is_ok(), "{object}");
            }
        }
    }
}
