//! Tool calls of an answer, put together from fragments whose index, id and name cannot be trusted.
//!
//! Which call a fragment belongs to is decided when it comes; what its arguments are, only when the answer is over. No
//! call is given out before that: a host that sends snapshots can let a half command look whole in between, and what
//! Codex has once seen it has run.

use std::borrow::Cow;

use super::chunk::decoded;
use crate::delta::ToolCall;
use crate::json::{Kind, Raw};
use crate::textcalls::repair::{self, Fragments, Unusable};
use crate::textcalls::tool_name;
use crate::tools::ToolTable;

/// Most calls of one answer. Models make a handful at once; a stream that opens more is broken, or hostile.
pub(super) const CALLS_MAX: usize = 256;

/// Calls in the order in which they first appeared.
#[derive(Debug, Default)]
pub(super) struct Calls {
    slots: Vec<Slot>,
    /// Bytes kept for arguments, names and extra fields.
    held_bytes: usize,
}

#[derive(Debug, Default)]
struct Slot {
    /// As the upstream counts; `None` where it does not.
    index: Option<u64>,
    /// Place in the array in which the call began, for upstreams without an index.
    place: usize,
    id: Option<String>,
    name: String,
    arguments: Fragments,
    extra_content: Option<String>,
}

/// One element of a `tool_calls` array.
#[derive(Debug)]
struct Fragment<'a> {
    index: Option<u64>,
    id: Cow<'a, str>,
    name: Cow<'a, str>,
    arguments: Option<Raw<'a>>,
    extra_content: Option<Raw<'a>>,
}

/// A call that has to be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) name: String,
    pub(super) why: Unusable,
}

/// More than [`CALLS_MAX`] calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Calls {
    /// How much is kept, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Adds the `tool_calls` of one chunk: an array, or a single call.
    pub(super) fn add(&mut self, tool_calls: Raw<'_>) -> Result<(), TooMany> {
        if tool_calls.kind() == Kind::Object {
            return self.add_fragment(&Fragment::read(tool_calls), 0, 1);
        }
        let count = tool_calls.elements().count();
        for (place, element) in tool_calls.elements().enumerate() {
            if element.kind() == Kind::Object {
                self.add_fragment(&Fragment::read(element), place, count)?;
            }
        }
        Ok(())
    }

    /// Adds the `function_call` of one chunk, from before there were several calls in one answer.
    pub(super) fn add_legacy(&mut self, function_call: Raw<'_>) -> Result<(), TooMany> {
        if function_call.kind() != Kind::Object {
            return Ok(());
        }
        let fragment = Fragment { index: Some(0), id: Cow::Borrowed(""), ..Fragment::read(function_call) };
        match self.slots.first() {
            Some(_) => self.append(0, &fragment),
            None => return self.add_fragment(&fragment, 0, 1),
        }
        Ok(())
    }

    fn add_fragment(&mut self, fragment: &Fragment<'_>, place: usize, count: usize) -> Result<(), TooMany> {
        let at = match fragment.index {
            Some(index) => self.slot_at(index, fragment),
            None => self.slot_without_index(fragment, place, count),
        };
        let at = match at {
            Some(at) => at,
            None if self.slots.len() == CALLS_MAX => return Err(TooMany),
            None => {
                self.slots.push(Slot { index: fragment.index, place, ..Slot::default() });
                self.slots.len() - 1
            }
        };
        self.append(at, fragment);
        Ok(())
    }

    /// The call that a fragment with an index belongs to; `None` for a new one.
    fn slot_at(&self, index: u64, fragment: &Fragment<'_>) -> Option<usize> {
        let at_index = || self.slots.iter().enumerate().rev().filter(|(_, slot)| slot.index == Some(index));
        if !fragment.id.is_empty()
            && let Some((at, _)) = at_index().find(|(_, slot)| slot.id.as_deref() == Some(&fragment.id))
        {
            return Some(at);
        }
        let (at, newest) = at_index().next()?;
        // Hosts that give every call the index 0 tell calls apart by id, or only by the next name.
        let has_other_id = !fragment.id.is_empty() && newest.id.is_some();
        (!has_other_id && !newest.is_followed_by(fragment)).then_some(at)
    }

    /// The call that a fragment without an index belongs to; `None` for a new one.
    fn slot_without_index(&self, fragment: &Fragment<'_>, place: usize, count: usize) -> Option<usize> {
        if !fragment.id.is_empty() {
            return self.slots.iter().rposition(|slot| slot.id.as_deref() == Some(&fragment.id));
        }
        // Several at once: the place in the array is all there is to tell them apart.
        let newest = if count > 1 {
            self.slots.iter().rposition(|slot| slot.index.is_none() && slot.place == place)
        } else {
            self.slots.len().checked_sub(1)
        };
        newest.filter(|at| !self.slots[*at].is_followed_by(fragment))
    }

    fn append(&mut self, at: usize, fragment: &Fragment<'_>) {
        let slot = &mut self.slots[at];
        if slot.id.is_none() && !fragment.id.is_empty() {
            slot.id = Some(fragment.id.clone().into_owned());
        }
        if slot.name.is_empty() {
            slot.name = fragment.name.clone().into_owned();
        }
        if let Some(arguments) = fragment.arguments {
            match arguments.kind() {
                Kind::String => slot.arguments.push(&decoded(arguments)),
                Kind::Object => slot.arguments.push(arguments.text()),
                Kind::Null | Kind::Array | Kind::Bool | Kind::Number => {}
            }
        }
        if let Some(extra) = fragment.extra_content.filter(|extra| extra.entries().next().is_some()) {
            slot.extra_content = Some(extra.text().to_owned());
        }
        let added = fragment.arguments.map_or(0, |arguments| arguments.text().len())
            + fragment.extra_content.map_or(0, |extra| extra.text().len());
        self.held_bytes += added;
    }

    /// The whole calls, in order, and the broken ones. Calls without a name are neither: nobody could run them.
    pub(super) fn finish(&mut self, tools: &ToolTable) -> (Vec<ToolCall>, Vec<Broken>) {
        let mut calls = Vec::with_capacity(self.slots.len());
        let mut broken = Vec::new();
        for slot in self.slots.drain(..) {
            let name = tool_name(&slot.name, tools);
            if name.is_empty() {
                continue;
            }
            match repair::arguments_of(tools.resolve(&name), &slot.arguments) {
                Ok(arguments) => {
                    calls.push(ToolCall { upstream_id: slot.id, name, arguments, extra_content: slot.extra_content });
                }
                Err(why) => broken.push(Broken { name, why }),
            }
        }
        self.held_bytes = 0;
        (calls, broken)
    }
}

impl Slot {
    /// Whether `fragment`, which has no other id, begins the next call: by another name, or by a name where nothing is
    /// missing any more.
    fn is_followed_by(&self, fragment: &Fragment<'_>) -> bool {
        if fragment.name.is_empty() || self.name.is_empty() {
            return false;
        }
        self.name != fragment.name || repair::is_whole(self.arguments.text()) && !self.is_repeated_by(fragment)
    }

    /// Whether `fragment` says again all that this call already has.
    fn is_repeated_by(&self, fragment: &Fragment<'_>) -> bool {
        self.name == fragment.name
            && fragment.arguments.is_some_and(|arguments| match arguments.kind() {
                Kind::String => decoded(arguments) == self.arguments.text(),
                _ => arguments.text() == self.arguments.text(),
            })
    }
}

impl<'a> Fragment<'a> {
    fn read(call: Raw<'a>) -> Self {
        let function = call.get("function").filter(|function| function.kind() == Kind::Object).unwrap_or(call);
        let id = call.get("id").map(decoded).unwrap_or_default();
        Self {
            index: call.get("index").and_then(Raw::as_u64),
            // What some SDKs write where there is no id.
            id: if matches!(&*id, "null" | "None" | "undefined") { Cow::Borrowed("") } else { id },
            name: function.get("name").map(decoded).unwrap_or_default(),
            arguments: function.get("arguments"),
            extra_content: call.get("extra_content").filter(|extra| extra.kind() == Kind::Object),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> ToolTable {
        let request =
            br#"{"model":"m","input":[],"tools":[{"type":"function","name":"run"},{"type":"function","name":"look"},
            {"type":"custom","name":"apply_patch"}]}"#;
        ToolTable::from_request(&crate::Request::parse(request).unwrap())
    }

    /// `id name arguments` of each call, then the names of the broken ones.
    fn check(chunks: &[&str], expected: &[&str]) {
        let mut calls = Calls::default();
        for chunk in chunks {
            calls.add(crate::json::parse(chunk).unwrap()).unwrap();
        }
        let (whole, broken) = calls.finish(&tools());
        let mut found: Vec<String> = whole
            .into_iter()
            .map(|call| format!("{} {} {}", call.upstream_id.as_deref().unwrap_or("-"), call.name, call.arguments))
            .collect();
        found.extend(broken.into_iter().map(|broken| format!("broken {} {:?}", broken.name, broken.why)));
        assert_eq!(found, expected, "{chunks:?}");
    }

    #[test]
    fn with_an_index() {
        check(
            &[
                r#"[{"index":0,"id":"a","function":{"name":"run","arguments":""}},{"index":5,"id":"b","function":{"name":"look"}}]"#,
                r#"[{"index":5,"function":{"arguments":"{\"x\":"}}]"#,
                r#"[{"index":0,"function":{"arguments":"{\"y\":1}"}}]"#,
                r#"[{"index":5,"id":"","function":{"name":null,"arguments":"2}"}}]"#,
            ],
            &[r#"a run {"y":1}"#, r#"b look {"x":2}"#],
        );
        // The same index for every call, told apart by id, or only by name.
        check(
            &[
                r#"[{"index":0,"id":"a","function":{"name":"run","arguments":"{\"x\""}}]"#,
                r#"[{"index":0,"id":"b","function":{"name":"run","arguments":"{\"y\":"}}]"#,
                r#"[{"index":0,"id":"a","function":{"name":"run","arguments":":1}"}}]"#,
                r#"[{"index":0,"function":{"arguments":"2}"}}]"#,
            ],
            &[r#"a run {"x":1}"#, r#"b run {"y":2}"#],
        );
        check(
            &[
                r#"[{"index":0,"function":{"name":"run","arguments":"{\"x\":1}"}}]"#,
                r#"[{"index":0,"function":{"name":"run","arguments":"{\"x\":2}"}}]"#,
                r#"[{"index":0,"function":{"name":"look","arguments":{"x":3}}}]"#,
            ],
            &[r#"- run {"x":1}"#, r#"- run {"x":2}"#, r#"- look {"x":3}"#],
        );
        // The name in every fragment, and an id that comes late.
        check(
            &[
                r#"[{"index":0,"function":{"name":"run","arguments":"{\"x\""}}]"#,
                r#"[{"index":0,"function":{"name":"run","arguments":":1"}}]"#,
                r#"[{"index":0,"id":"a","function":{"name":"run","arguments":"}"}}]"#,
            ],
            &[r#"a run {"x":1}"#],
        );
        // A snapshot of the whole call at the end, with and without its id.
        for id in [r#""id":"a","#, ""] {
            let call = format!(r#"[{{"index":0,{id}"function":{{"name":"run","arguments":"{{\"x\":1}}"}}}}]"#);
            let expected = if id.is_empty() { r#"- run {"x":1}"# } else { r#"a run {"x":1}"# };
            check(&[&call, &call], &[expected]);
        }
    }

    #[test]
    fn without_an_index() {
        check(
            &[
                r#"[{"id":"a","function":{"name":"run","arguments":"{\"x\":1}"}}]"#,
                r#"[{"id":"b","function":{"name":"run","arguments":"{\"x\":2"}}]"#,
                r#"[{"function":{"arguments":"}"}}]"#,
            ],
            &[r#"a run {"x":1}"#, r#"b run {"x":2}"#],
        );
        check(
            &[
                r#"[{"function":{"name":"run","arguments":"{\"x\""}},{"function":{"name":"run","arguments":"{\"y\""}}]"#,
                r#"[{"function":{"arguments":":1}"}},{"function":{"arguments":":2}"}}]"#,
            ],
            &[r#"- run {"x":1}"#, r#"- run {"y":2}"#],
        );
        check(
            &[
                r#"[{"function":{"name":"run","arguments":""}}]"#,
                r#"[{"function":{"name":"run","arguments":"{\"x\":1}"}}]"#,
                r#"[{"function":{"name":"look","arguments":""}}]"#,
            ],
            &[r#"- run {"x":1}"#, "- look {}"],
        );
        check(&[r#"{"name":"run","arguments":{"x":1}}"#], &[r#"- run {"x":1}"#]);
    }

    #[test]
    fn odd_and_broken_ones() {
        check(&["[]", "7", r#"[null,{"function":null}]"#], &[]);
        check(&[r#"[{"index":0,"id":"null","type":"","function":{"name":"run","arguments":null}}]"#], &["- run {}"]);
        check(&[r#"[{"index":0,"id":"a","function":{"name":"","arguments":"{\"x\""}}]"#], &[]);
        check(
            &[
                r#"[{"index":0,"id":"a","function":{"name":"run","arguments":"{\"x\""}}]"#,
                r#"[{"index":1,"id":"b","function":{"name":"look","arguments":"{}"}}]"#,
            ],
            &["b look {}", "broken run Cut"],
        );
        check(
            &[r#"[{"index":0,"id":"a","function":{"name":"functions.apply_patch:0","arguments":"\"text\""}}]"#],
            &[r#"a apply_patch {"input":"text"}"#],
        );
    }

    #[test]
    fn legacy_and_extra_fields() {
        let mut calls = Calls::default();
        for chunk in [r#"{"name":"run","arguments":""}"#, r#"{"arguments":"{\"x\":1}"}"#, "null"] {
            calls.add_legacy(crate::json::parse(chunk).unwrap()).unwrap();
        }
        assert_eq!(calls.finish(&tools()).0[0].arguments, r#"{"x":1}"#);

        let call = r#"[{"id":"a","extra_content":{"google":{"thought_signature":"S"}},"function":{"name":"run"}}]"#;
        calls.add(crate::json::parse(call).unwrap()).unwrap();
        assert_eq!(
            calls.finish(&tools()).0[0].extra_content.as_deref(),
            Some(r#"{"google":{"thought_signature":"S"}}"#)
        );
    }

    #[test]
    fn the_number_of_calls_is_bounded() {
        let mut calls = Calls::default();
        let results: Vec<_> = (0..=CALLS_MAX)
            .map(|index| calls.add(crate::json::parse(&format!(r#"[{{"index":{index}}}]"#)).unwrap()))
            .collect();
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
        assert_eq!(calls.finish(&tools()).0, []);
    }
}
