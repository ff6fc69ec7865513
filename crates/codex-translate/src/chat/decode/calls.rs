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
    /// Bytes kept for all slots.
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
    /// The call that this one may only repeat: a whole one of the same name, with nothing else to tell them apart.
    echo_of: Option<usize>,
}

/// Which call a fragment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// One that is there.
    At(usize),
    /// A new one; it may be an echo of this one.
    New(Option<usize>),
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
            Some(index) => self.place_at(index, fragment),
            None => self.place_without_index(fragment, place, count),
        };
        let at = match at {
            Place::At(at) => at,
            Place::New(_) if self.slots.len() == CALLS_MAX => return Err(TooMany),
            Place::New(echo_of) => {
                self.slots.push(Slot { index: fragment.index, place, echo_of, ..Slot::default() });
                self.slots.len() - 1
            }
        };
        self.append(at, fragment);
        Ok(())
    }

    /// Where a fragment with an index belongs.
    fn place_at(&self, index: u64, fragment: &Fragment<'_>) -> Place {
        let at_index = || (0..self.slots.len()).rev().filter(|at| self.slots[*at].index == Some(index));
        if !fragment.id.is_empty()
            && let Some(at) = at_index().find(|at| self.slots[*at].has_id(&fragment.id))
        {
            return self.at_or_behind(at, fragment);
        }
        match at_index().next() {
            // Hosts that give every call the index 0 tell calls apart by id, or only by the next name.
            Some(newest) if fragment.id.is_empty() || self.slots[newest].id.is_none() => {
                self.at_or_behind(newest, fragment)
            }
            // Without a name it begins nothing: the host counts its chunks, not its calls.
            None if fragment.name.is_empty() => self.newest_with(&fragment.id).map_or(Place::New(None), Place::At),
            Some(_) | None => Place::New(None),
        }
    }

    /// Where a fragment without an index belongs.
    fn place_without_index(&self, fragment: &Fragment<'_>, place: usize, count: usize) -> Place {
        let newest = if !fragment.id.is_empty() {
            self.newest_with(&fragment.id)
        } else if count > 1 {
            // Several at once: the place in the array is all there is to tell them apart.
            self.slots.iter().rposition(|slot| slot.index.is_none() && slot.place == place)
        } else {
            self.slots.len().checked_sub(1)
        };
        newest.map_or(Place::New(None), |at| self.at_or_behind(at, fragment))
    }

    /// Goes on with the call at `at`, unless `fragment` begins the next one. An id says little about that: some hosts
    /// repeat it in each fragment of a call, others give it to each call.
    fn at_or_behind(&self, at: usize, fragment: &Fragment<'_>) -> Place {
        let slot = &self.slots[at];
        if !slot.is_followed_by(fragment) {
            return Place::At(at);
        }
        Place::New((slot.name == fragment.name).then_some(at))
    }

    fn newest_with(&self, id: &str) -> Option<usize> {
        if id.is_empty() { None } else { self.slots.iter().rposition(|slot| slot.has_id(id)) }
    }

    fn append(&mut self, at: usize, fragment: &Fragment<'_>) {
        let slot = &mut self.slots[at];
        self.held_bytes -= slot.held_bytes();
        if slot.id.is_none() && !fragment.id.is_empty() {
            slot.id = Some(fragment.id.clone().into_owned());
        }
        if slot.name.is_empty() {
            slot.name = fragment.name.clone().into_owned();
        }
        if let Some(arguments) = fragment.arguments() {
            slot.arguments.push(&arguments);
        }
        if let Some(extra) = fragment.extra_content.filter(|extra| extra.entries().next().is_some()) {
            slot.extra_content = Some(extra.text().to_owned());
        }
        self.held_bytes += slot.held_bytes();
    }

    /// The whole calls, in order, and the broken ones. Calls without a name are neither: nobody could run them.
    pub(super) fn finish(&mut self, tools: &ToolTable) -> (Vec<ToolCall>, Vec<Broken>) {
        let mut calls = Vec::with_capacity(self.slots.len());
        let mut broken = Vec::new();
        self.held_bytes = 0;
        let slots = std::mem::take(&mut self.slots);
        let is_echo = |slot: &Slot| slot.echo_of.is_some_and(|at| slot.repeats(&slots[at]));
        let is_echo: Vec<bool> = slots.iter().map(is_echo).collect();
        for (slot, _) in slots.into_iter().zip(is_echo).filter(|(_, is_echo)| !is_echo) {
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
        (calls, broken)
    }
}

#[cfg(test)]
impl Calls {
    /// What is allocated, for tests of what is held.
    pub(super) fn allocated_bytes(&self) -> usize {
        let Self { slots, held_bytes: _ } = self;
        let of = |text: &Option<String>| text.as_ref().map_or(0, String::capacity);
        let of_slot = |slot: &Slot| {
            let Slot { index: _, place: _, id, name, arguments, extra_content, echo_of: _ } = slot;
            of(id) + name.capacity() + arguments.allocated_bytes() + of(extra_content)
        };
        slots.capacity() * size_of::<Slot>() + slots.iter().map(of_slot).sum::<usize>()
    }
}

impl Slot {
    /// How much is kept, in bytes.
    fn held_bytes(&self) -> usize {
        let of = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        of(&self.id) + self.name.len() + self.arguments.held_bytes() + of(&self.extra_content)
    }

    fn has_id(&self, id: &str) -> bool {
        self.id.as_deref() == Some(id)
    }

    /// Whether `fragment`, which has no other id, begins the next call: by another name, or by a name where nothing is
    /// missing any more.
    fn is_followed_by(&self, fragment: &Fragment<'_>) -> bool {
        if fragment.name.is_empty() || self.name.is_empty() {
            return false;
        }
        self.name != fragment.name || self.arguments.is_whole() && !self.is_ended_by(fragment)
    }

    /// Whether `fragment`, of the same name, says again all that this whole call already has, or brings what may stand
    /// behind an object, but begins none.
    fn is_ended_by(&self, fragment: &Fragment<'_>) -> bool {
        let Some(arguments) = fragment.arguments() else { return false };
        let begins = arguments.trim_start();
        !begins.is_empty() && !begins.starts_with(['{', '"']) || arguments == self.arguments.text()
    }

    /// Whether this call, begun behind `other` of the same name, turned out to be no other: it was given nothing, or the
    /// same.
    fn repeats(&self, other: &Self) -> bool {
        let value = |slot: &Self| serde_json::from_str::<serde_json::Value>(slot.arguments.text()).ok();
        self.arguments.text().trim().is_empty()
            || self.arguments.text() == other.arguments.text()
            || self.arguments.is_whole() && value(self) == value(other)
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

    /// The piece of arguments it brings; an object is one that came whole.
    fn arguments(&self) -> Option<Cow<'a, str>> {
        let arguments = self.arguments?;
        match arguments.kind() {
            Kind::String => Some(decoded(arguments)),
            Kind::Object => Some(Cow::Borrowed(arguments.text())),
            Kind::Null | Kind::Array | Kind::Bool | Kind::Number => None,
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
    fn one_id_for_several_calls() {
        let whole = |id: &str, name: &str, arguments: &str| {
            serde_json::json!({"id": id, "function": {"name": name, "arguments": arguments}}).to_string()
        };
        for index in [r#""index":0,"#, ""] {
            let call = |call: &str| format!("[{{{index}{}]", &call[1..]);
            // Whole ones, in chunks of their own, and in one.
            let (one, other) = (whole("call_0", "run", r#"{"x":1}"#), whole("call_0", "run", r#"{"x":2}"#));
            let third = whole("call_0", "look", "{}");
            let expected = &[r#"call_0 run {"x":1}"#, r#"call_0 run {"x":2}"#, "call_0 look {}"];
            check(&[&call(&one), &call(&other), &call(&third)], expected);
            let array = [&one, &other, &third].map(|one| format!("{{{index}{}", &one[1..])).join(",");
            check(&[&format!("[{array}]")], expected);
            // In pieces: with the name once, with id and name in each piece, and with arguments repeated so far.
            let piece = |name: &str, arguments: &str| call(&whole("call_0", name, arguments));
            let expected = &[r#"call_0 run {"x":1}"#, r#"call_0 run {"x":2}"#];
            check(
                &[
                    &piece("run", ""),
                    &piece("", r#"{"x""#),
                    &piece("", ":1}"),
                    &piece("run", ""),
                    &piece("", r#"{"x""#),
                    &piece("", ":2}"),
                ],
                expected,
            );
            check(
                &[
                    &piece("run", r#"{"x""#),
                    &piece("run", ":1}"),
                    &piece("run", r#"{"x":2"#),
                    &piece("run", "}"),
                    &piece("run", ""),
                ],
                expected,
            );
            check(
                &[
                    &piece("run", r#"{"x""#),
                    &piece("run", r#"{"x":1}"#),
                    &piece("run", r#"{"x":1}"#),
                    &piece("run", r#"{"x":"#),
                    &piece("run", r#"{"x":2}"#),
                ],
                expected,
            );
            // One call, however often it is said: an empty piece behind it, a snapshot of it in another form.
            let expected = &[r#"call_0 run {"x":1}"#];
            check(&[&piece("run", r#"{"x""#), &piece("run", ":1}"), &piece("run", ""), &piece("run", "")], expected);
            check(&[&piece("run", r#"{"x""#), &piece("", ":1}"), &piece("run", r#"{ "x": 1 }"#)], expected);
            check(&[&piece("run", r#"{"x":1}"#), &piece("run", "</tool_call>")], expected);
        }
        // One id at two places is two calls, unless the second place has no name: then chunks were counted.
        check(
            &[
                r#"[{"index":0,"id":"a","function":{"name":"run","arguments":"{\"x\""}},{"index":1,"id":"a","function":{"name":"run","arguments":"{\"y\""}}]"#,
                r#"[{"index":0,"id":"a","function":{"arguments":":1}"}},{"index":1,"id":"a","function":{"arguments":":2}"}}]"#,
            ],
            &[r#"a run {"x":1}"#, r#"a run {"y":2}"#],
        );
        check(
            &[
                r#"[{"index":0,"id":"a","function":{"name":"run","arguments":"{\"x\""}}]"#,
                r#"[{"index":1,"id":"a","function":{"arguments":":1}"}}]"#,
            ],
            &[r#"a run {"x":1}"#],
        );
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
