//! Tool calls that a model wrote into its prose, because its host did not recognize them.
//!
//! A filter from deltas to deltas, between a decoder and the emitter. Markup of a known dialect is taken out of text
//! and reasoning as it streams; only what may be the beginning of a marker is held back. When the answer is over, the
//! calls found in it are given out, unless the host gave calls of its own: then the markup was their echo.
//!
//! ```text
//!             marker                      its closing tag
//!  Searching ────────► Capturing ────────────────────────────► Searching
//!      ▲                   │ cannot be a call: it was prose
//!      └───────────────────┘
//! ```
//!
//! Markup in code is a quotation, and stays. A call whose end was not seen is never given out: the answer fails, so
//! that it is asked for again, unless it was cut by the output limit.
//!
//! A dialect is one file that fills in a `Dialect`.

mod dsml;
mod glm;
mod invoke;
mod kimi;
mod minimax;
pub(crate) mod prose;
pub(crate) mod repair;

use serde_json::Value;

use crate::delta::{Delta, StopReason, ToolCall};
use crate::tools::ToolTable;
use crate::{Failure, FailureClass};

use prose::Prose;

/// Every dialect that is looked for.
const DIALECTS: [&Dialect; 4] = [&dsml::DIALECT, &kimi::DIALECT, &glm::DIALECT, &minimax::DIALECT];

/// Longest tag: the longest name that a tool can have, and its attributes.
const TAG_BYTES_MAX: usize = 512;

/// Longest markup of one group of calls. A patch of a megabyte fits; what is longer was never meant to be run.
const MARKUP_BYTES_MAX: usize = 4 << 20;

/// Most bytes of calls that are kept until the answer is over, and most calls: as many as a host may give itself.
const FOUND_BYTES_MAX: usize = 16 << 20;
const FOUND_CALLS_MAX: usize = 256;

/// Markup is looked at again while it is this short, for whether it still can be a call.
const PLAUSIBLE_BYTES_MAX: usize = 256;

/// One way of writing calls.
struct Dialect {
    /// What a text that begins with `<` may be.
    open: fn(&str) -> Opening,
    /// Whether `tag` (second) ends what was opened by `opener` (first).
    closes: fn(&str, &str) -> bool,
    /// Whether what follows an opener, as far as it is known, can be a call.
    is_plausible: fn(&str) -> bool,
    /// The calls in `markup`, which begins with an opener and ends with its closing tag, or with the answer.
    parse: fn(&str, &ToolTable) -> Found,
}

/// What a text that begins with `<` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    /// Not this dialect.
    No,
    /// The text ends before it can be told.
    Maybe,
    /// A marker of this many bytes, behind which calls stand.
    Opens(usize),
    /// A marker of this many bytes that belongs to nothing: hidden.
    Stray(usize),
}

/// What a piece of markup held.
#[derive(Debug, Default)]
struct Found {
    calls: Vec<ToolCall>,
    /// Bytes of the calls.
    held_bytes: usize,
    /// A call began whose end is missing.
    is_cut: bool,
    /// A call was there whose arguments cannot be read.
    is_garbled: bool,
}

impl Found {
    /// Adds what stood behind it. Beyond the limits the calls are no longer kept, and count as garbled: an answer with so
    /// many was never meant to be run.
    fn add(&mut self, more: Self) {
        self.held_bytes += more.held_bytes;
        self.calls.extend(more.calls);
        self.is_cut |= more.is_cut;
        self.is_garbled |= more.is_garbled;
        if self.held_bytes > FOUND_BYTES_MAX || self.calls.len() > FOUND_CALLS_MAX {
            *self = Self { is_cut: self.is_cut, is_garbled: true, ..Self::default() };
        }
    }
}

/// The filter for one answer.
#[derive(Debug)]
pub struct TextCalls {
    tools: ToolTable,
    text: Channel,
    reasoning: Channel,
    found: Found,
    /// What was found in reasoning, unless text followed that is no markup: then it was only thought of.
    thought: Found,
    has_structured: bool,
}

/// Text and reasoning are searched apart, since they interleave.
#[derive(Debug, Default)]
struct Channel {
    /// What may be the beginning of a marker.
    held: String,
    prose: Prose,
    capture: Option<Capture>,
}

#[derive(Debug)]
struct Capture {
    dialect: &'static Dialect,
    opener_bytes: usize,
    /// White space before the opener, which belongs to the markup if it is some.
    space: String,
    /// From the opener on.
    markup: String,
    /// Bytes of `markup` in which no closing tag ends.
    searched: usize,
}

/// What a channel makes of a piece of its text.
enum Piece {
    Text(String),
    Markup(Found),
}

impl TextCalls {
    /// A filter for the answer to a request that offered `tools`. Without tools it lets everything pass.
    pub fn new(tools: ToolTable) -> Self {
        Self {
            tools,
            text: Channel::default(),
            reasoning: Channel::default(),
            found: Found::default(),
            thought: Found::default(),
            has_structured: false,
        }
    }

    /// How much is kept, in bytes, for tests of what is held.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        let of_channel = |Channel { held, prose: _, capture }: &Channel| {
            held.len() + capture.as_ref().map_or(0, |capture| capture.space.len() + capture.markup.len())
        };
        let Self { tools: _, text, reasoning, found, thought, has_structured: _ } = self;
        let of_call = |call: &ToolCall| call.name.len() + call.arguments.len();
        let of_found = |found: &Found| found.calls.iter().map(of_call).sum::<usize>();
        of_channel(text) + of_channel(reasoning) + of_found(found) + of_found(thought)
    }

    /// Rewrites `deltas` in place. What one call leaves held back comes out of a later one, at the latest with the stop.
    pub fn apply(&mut self, deltas: &mut Vec<Delta>) {
        if self.tools.tools().is_empty() {
            return;
        }
        let Some(first) = deltas.iter().position(|delta| !self.passes(delta)) else { return };
        for delta in deltas.split_off(first) {
            self.rewrite(delta, deltas);
        }
    }

    /// Whether `delta` stays as it is; if so it is behind us.
    fn passes(&mut self, delta: &Delta) -> bool {
        match delta {
            Delta::Text(text) => {
                let passes = self.reasoning.is_idle() && self.text.passes(text);
                if passes {
                    self.said(text);
                }
                passes
            }
            Delta::Reasoning(text) => self.text.is_idle() && self.reasoning.passes(text),
            Delta::Started | Delta::Opaque(_) | Delta::WebSearch { .. } | Delta::Usage(_) => true,
            Delta::Call(_) | Delta::Stop(_) | Delta::Failed(_) => false,
        }
    }

    fn rewrite(&mut self, delta: Delta, out: &mut Vec<Delta>) {
        match delta {
            Delta::Text(text) => {
                let held = self.reasoning.release();
                out.extend(held.map(Delta::Reasoning));
                let pieces = self.text.push(&text, &self.tools);
                self.add_text(pieces, out);
            }
            Delta::Reasoning(text) => {
                if let Some(held) = self.text.release() {
                    self.said(&held);
                    out.push(Delta::Text(held));
                }
                let pieces = self.reasoning.push(&text, &self.tools);
                self.add_reasoning(pieces, out);
            }
            Delta::Call(mut call) => {
                self.has_structured = true;
                if let Some(arguments) = dsml::without_closing_tags(&call.arguments) {
                    call.arguments = arguments;
                }
                out.push(Delta::Call(call));
            }
            Delta::Stop(reason) => self.stop(reason, out),
            Delta::Started | Delta::Opaque(_) | Delta::WebSearch { .. } | Delta::Usage(_) | Delta::Failed(_) => {
                out.push(delta);
            }
        }
    }

    fn add_text(&mut self, pieces: Vec<Piece>, out: &mut Vec<Delta>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    self.said(&text);
                    out.push(Delta::Text(text));
                }
                Piece::Markup(found) => self.found.add(found),
            }
        }
    }

    fn add_reasoning(&mut self, pieces: Vec<Piece>, out: &mut Vec<Delta>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.push(Delta::Reasoning(text)),
                Piece::Markup(found) => self.thought.add(found),
            }
        }
    }

    fn said(&mut self, text: &str) {
        if !text.trim().is_empty() {
            self.thought = Found::default();
        }
    }

    fn stop(&mut self, reason: StopReason, out: &mut Vec<Delta>) {
        let pieces = self.reasoning.end(&self.tools);
        self.add_reasoning(pieces, out);
        let pieces = self.text.end(&self.tools);
        self.add_text(pieces, out);

        let mut found = std::mem::take(&mut self.thought);
        found.add(std::mem::take(&mut self.found));
        if !self.has_structured && reason != StopReason::ContentFilter {
            let is_by_limit = reason == StopReason::Length;
            if (found.is_cut || found.is_garbled) && !is_by_limit {
                let class = if found.is_garbled { FailureClass::Malformed } else { FailureClass::Truncated };
                let message = "the model wrote a tool call into its text and did not finish it";
                out.push(Delta::Failed(Failure::new(class, message)));
                return;
            }
            out.extend(found.calls.into_iter().map(Delta::Call));
        }
        out.push(Delta::Stop(reason));
    }
}

impl Channel {
    fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether nothing in `text` can belong to markup; if so it is behind us.
    fn passes(&mut self, text: &str) -> bool {
        let is_plain = self.capture.is_none() && self.held.is_empty() && !text.contains('<');
        if is_plain {
            self.prose.advance(text);
        }
        is_plain
    }

    fn push(&mut self, text: &str, tools: &ToolTable) -> Vec<Piece> {
        let mut out = Vec::new();
        match &mut self.capture {
            Some(capture) => capture.markup.push_str(text),
            None => self.held.push_str(text),
        }
        while if self.capture.is_some() { self.step_capturing(tools, &mut out) } else { self.step_searching(&mut out) }
        {
        }
        out
    }

    /// What is held back, because something else comes first now.
    fn release(&mut self) -> Option<String> {
        let held = std::mem::take(&mut self.held);
        self.prose.advance(&held);
        (!held.is_empty()).then_some(held)
    }

    /// What is left at the end of the answer.
    fn end(&mut self, tools: &ToolTable) -> Vec<Piece> {
        let mut out = Vec::new();
        if let Some(capture) = self.capture.take() {
            out.push(capture.finish(capture.markup.len(), tools));
        }
        out.extend(self.release().map(Piece::Text));
        out
    }

    /// Looks for the next marker in what is held; `false` when more text is needed.
    fn step_searching(&mut self, out: &mut Vec<Piece>) -> bool {
        let mut prose = self.prose.clone();
        let mut from = 0;
        while let Some(found) = self.held[from..].find('<') {
            let at = from + found;
            prose.advance(&self.held[from..at]);
            if !prose.is_code() {
                let text = &self.held[at..];
                let mut may_open = false;
                for dialect in DIALECTS {
                    match (dialect.open)(text) {
                        Opening::No => {}
                        Opening::Maybe => may_open = true,
                        Opening::Opens(opener_bytes) => {
                            let markup = self.held.split_off(at);
                            let space = self.held.split_off(self.held.trim_end().len());
                            self.show(out);
                            self.capture =
                                Some(Capture { dialect, opener_bytes, space, markup, searched: opener_bytes });
                            return true;
                        }
                        Opening::Stray(length) => {
                            let rest = self.held.split_off(at + length);
                            self.held.truncate(at);
                            self.show(out);
                            self.held = rest;
                            return true;
                        }
                    }
                }
                if may_open && text.len() <= TAG_BYTES_MAX {
                    let rest = self.held.split_off(at);
                    self.show(out);
                    self.held = rest;
                    return false;
                }
            }
            prose.advance("<");
            from = at + 1;
        }
        self.show(out);
        false
    }

    /// Looks for the end of the markup; `false` when more text is needed.
    fn step_capturing(&mut self, tools: &ToolTable, out: &mut Vec<Piece>) -> bool {
        let Some(capture) = &mut self.capture else { return false };
        let body = &capture.markup[capture.opener_bytes..];
        if body.len() <= PLAUSIBLE_BYTES_MAX && !(capture.dialect.is_plausible)(body) {
            // It was prose: its first character is shown, and the search goes on behind it.
            let mut shown = std::mem::take(&mut capture.space);
            shown.push('<');
            self.held = capture.markup.split_off(1);
            self.prose.advance(&shown);
            self.capture = None;
            out.push(Piece::Text(shown));
            return true;
        }
        while let Some(found) = capture.markup[capture.searched..].find('>') {
            let end = capture.searched + found + 1;
            capture.searched = end;
            let window = capture.markup.floor_char_boundary(end.saturating_sub(TAG_BYTES_MAX));
            let Some(start) = capture.markup[window..end].rfind('<') else { continue };
            let opener = &capture.markup[..capture.opener_bytes];
            if (capture.dialect.closes)(opener, &capture.markup[window + start..end]) {
                out.push(capture.finish(end, tools));
                self.held = capture.markup.split_off(end);
                self.capture = None;
                return true;
            }
        }
        capture.searched = capture.markup.len();
        if capture.markup.len() > MARKUP_BYTES_MAX {
            self.capture = None;
            out.push(Piece::Markup(Found { is_garbled: true, ..Found::default() }));
        }
        false
    }

    /// Shows what is held.
    fn show(&mut self, out: &mut Vec<Piece>) {
        out.extend(self.release().map(Piece::Text));
    }
}

impl Capture {
    /// The calls in the markup up to `end`; the markup itself if it turns out to hold none.
    fn finish(&self, end: usize, tools: &ToolTable) -> Piece {
        let markup = &self.markup[..end];
        let found = (self.dialect.parse)(markup, tools);
        if found.calls.is_empty() && !found.is_cut && !found.is_garbled {
            return Piece::Text([&self.space, markup].concat());
        }
        Piece::Markup(found)
    }
}

impl std::fmt::Debug for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dialect")
    }
}

impl Found {
    /// Adds a call, by the name that the model gave it.
    fn push(&mut self, name: &str, upstream_id: Option<String>, arguments: String, tools: &ToolTable) {
        let name = tool_name(name, tools);
        if name.is_empty() {
            self.is_garbled = true;
        } else {
            self.held_bytes += name.len() + arguments.len() + upstream_id.as_ref().map_or(0, String::len);
            self.calls.push(ToolCall { upstream_id, name, arguments, extra_content: None });
        }
    }
}

/// The name of a tool without the decorations that chat templates leave on it: `functions.look:0`,
/// `look<|channel|>commentary`.
pub(crate) fn tool_name(decorated: &str, tools: &ToolTable) -> String {
    let mut name = decorated.trim();
    if tools.resolve(name).is_none() {
        name = name.split("<|").next().unwrap_or_default().trim();
        name = name.strip_prefix("functions.").unwrap_or(name);
        if let Some((bare, number)) = name.rsplit_once(':')
            && number.bytes().all(|byte| byte.is_ascii_digit())
        {
            name = bare;
        }
    }
    name.to_owned()
}

/// Keys whose value is a text in every tool that has them, even if it reads like a number.
const TEXT_KEYS: [&str; 7] = ["cmd", "command", "input", "patch", "content", "text", "message"];

/// A value of which the markup does not tell the type: JSON where it is, but for texts, and text otherwise.
fn untyped_value(key: &str, text: &str) -> Value {
    match serde_json::from_str(text.trim()) {
        Ok(value @ (Value::Object(_) | Value::Array(_))) => value,
        Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null)) if !TEXT_KEYS.contains(&key) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// What a text is in view of a marker that is always spelled alike.
fn literal(text: &str, marker: &str, opening: Opening) -> Opening {
    if text.starts_with(marker) {
        opening
    } else if marker.starts_with(text) {
        Opening::Maybe
    } else {
        Opening::No
    }
}

/// The first of several answers that is not [`Opening::No`], a certain one before a doubtful one.
fn first_of(openings: impl IntoIterator<Item = Opening>) -> Opening {
    let mut answer = Opening::No;
    for opening in openings {
        match opening {
            Opening::Opens(_) | Opening::Stray(_) => return opening,
            Opening::Maybe => answer = Opening::Maybe,
            Opening::No => {}
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tools() -> ToolTable {
        ToolTable::from_names(&["exec_command", "look"])
    }

    /// What comes out for `text` and a stop: the visible text, then each call.
    fn run(pieces: &[&str], reason: StopReason) -> (String, Vec<String>, Delta) {
        let mut filter = TextCalls::new(tools());
        let mut out = Vec::new();
        for piece in pieces {
            let mut deltas = vec![Delta::Text((*piece).to_owned())];
            filter.apply(&mut deltas);
            out.extend(deltas);
        }
        let mut deltas = vec![Delta::Stop(reason)];
        filter.apply(&mut deltas);
        out.extend(deltas);
        let last = out.pop().unwrap();
        let mut text = String::new();
        let mut calls = Vec::new();
        for delta in out {
            match delta {
                Delta::Text(more) => text.push_str(&more),
                Delta::Call(call) => calls.push(format!("{} {}", call.name, call.arguments)),
                other => panic!("{other:?}"),
            }
        }
        (text, calls, last)
    }

    fn check(input: &str, text: &str, calls: &[&str]) {
        let whole = run(&[input], StopReason::Done);
        assert_eq!(whole.0.trim(), text, "{input:?}");
        assert_eq!(whole.1, calls, "{input:?}");
        assert_eq!(whole.2, Delta::Stop(StopReason::Done), "{input:?}");
        let characters: Vec<String> = input.chars().map(String::from).collect();
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        let by_characters = run(&characters, StopReason::Done);
        assert_eq!(by_characters.0.split_whitespace().collect::<String>(), text.split_whitespace().collect::<String>());
        assert_eq!(by_characters.1, calls, "{input:?}");
    }

    fn check_broken(input: &str) {
        let (_, calls, last) = run(&[input], StopReason::Done);
        assert_eq!(calls, Vec::<String>::new(), "{input:?}");
        assert!(matches!(last, Delta::Failed(_)), "{input:?}");
        let (_, _, last) = run(&[input], StopReason::Length);
        assert_eq!(last, Delta::Stop(StopReason::Length), "{input:?}");
    }

    #[test]
    fn a_call_that_was_only_thought_of_is_not_made() {
        const CALL: &str = "<｜DSML｜invoke name=\"look\"></｜DSML｜invoke></｜DSML｜tool_calls>";
        let n_calls = |deltas: Vec<Delta>| {
            let mut filter = TextCalls::new(tools());
            let mut n = 0;
            for delta in deltas.into_iter().chain([Delta::Stop(StopReason::Done)]) {
                let mut deltas = vec![delta];
                filter.apply(&mut deltas);
                n += deltas.iter().filter(|delta| matches!(delta, Delta::Call(_))).count();
            }
            n
        };
        let (thought, text) = (|| Delta::Reasoning(CALL.to_owned()), |text: &str| Delta::Text(text.to_owned()));
        assert_eq!(n_calls(vec![thought()]), 1);
        assert_eq!(n_calls(vec![thought(), text(" \n")]), 1, "nothing was said");
        assert_eq!(n_calls(vec![thought(), text("It is done.")]), 0);
        assert_eq!(n_calls(vec![thought(), text("Is 1 < 2? "), text("Yes.")]), 0);
        assert_eq!(n_calls(vec![thought(), text("It is done."), text(CALL)]), 1, "said after all");
        assert_eq!(n_calls(vec![text("Let me think."), thought()]), 1);
    }

    #[test]
    fn dsml() {
        for (open, close) in [
            ("<｜DSML｜", "</｜DSML｜"),
            ("<|DSML|", "</|DSML|"),
            ("<||DSML||", "</||DSML||"),
            ("<｜｜DSML｜｜ ", "</ ｜｜DSML｜｜ "),
        ] {
            for wrapper in ["tool_calls", "function_calls"] {
                let markup = format!(
                    "{open}{wrapper}>\n{open}invoke name=\"look\">\n{open}parameter name=\"a\" string=\"true\">1 < 2</b>{close}parameter>\
                     {open}parameter name=\"n\" string=\"false\">2000{close}parameter>\n{close}invoke>\n{open}invoke name='look'>{close}invoke>{close}{wrapper}>"
                );
                check(
                    &format!("Let me see.\n\n{markup}\nDone."),
                    "Let me see.\nDone.",
                    &[r#"look {"a":"1 < 2</b>","n":2000}"#, "look {}"],
                );
            }
            let bare = format!("{open}invoke name=\"look\">{close}invoke>{close}tool_calls>");
            check(&bare, "", &["look {}"]);
            check_broken(&format!(
                "{open}tool_calls>{open}invoke name=\"look\">{open}parameter name=\"a\">rm -rf /tmp"
            ));
            check_broken(&format!("{open}invoke name=\"look\">{open}parameter name=\"a\">x{close}parameter>"));
            check(&format!("{open}tool_calls>{open}invoke name=\"look\">{close}invoke>"), "", &["look {}"]);
        }
        check("a <｜DSM b", "a <｜DSM b", &[]);
        check("bars <| and <|DSML is text", "bars <| and <|DSML is text", &[]);
    }

    #[test]
    fn kimi() {
        check(
            "Go. <|tool_calls_section_begin|><|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|>\
             <|tool_call_begin|>functions.look:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|> End.",
            "Go. End.",
            &[r#"look {"a": 1}"#, "look {}"],
        );
        check("<|tool_call_begin|>look<|tool_call_argument_begin|>{}<|tool_call_end|>", "", &["look {}"]);
        check("<|tool_calls_section_end|>text", "text", &[]);
        check_broken(
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{\"a\": 1",
        );
        check_broken(
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{\"a\": <|tool_call_end|><|tool_calls_section_end|>",
        );
    }

    #[test]
    fn glm_and_hermes() {
        check(
            "Sure.\n<tool_call>look\n<arg_key>a</arg_key>\n<arg_value>x\ny</arg_value>\n<arg_key>n</arg_key><arg_value>3</arg_value>\n</tool_call>",
            "Sure.",
            &[r#"look {"a":"x\ny","n":3}"#],
        );
        check("<tool_call>look</tool_call><tool_call>look\n</tool_call>", "", &["look {}", "look {}"]);
        check(
            "<tool_call>exec_command<arg_key>cmd</arg_key><arg_value>42</arg_value></tool_call>",
            "",
            &[r#"exec_command {"cmd":"42"}"#],
        );
        check("<tool_call>\n{\"name\": \"look\", \"arguments\": {\"a\": 1}}\n</tool_call>", "", &[r#"look {"a": 1}"#]);
        check(
            "The <tool_call> tag, and <tool_call>what</tool_call>.",
            "The <tool_call> tag, and <tool_call>what</tool_call>.",
            &[],
        );
        check_broken("<tool_call>look\n<arg_key>a</arg_key>\n<arg_value>rm -r");
        check_broken("<tool_call>look\n<arg_key>a</arg_key><arg_value>rm</arg_value>\n");
        check_broken("<tool_call>{\"name\": \"look\", \"arguments\": {\"a\": ");
    }

    #[test]
    fn minimax() {
        check(
            "<minimax:tool_call>\n<invoke name=\"look\">\n<parameter name=\"a\">\nb <c>\n</parameter>\n<parameter name=\"l\">[1]</parameter>\n</invoke>\n</minimax:tool_call>",
            "",
            &[r#"look {"a":"b <c>","l":[1]}"#],
        );
        check_broken("<minimax:tool_call><invoke name=\"look\"><parameter name=\"a\">b");
    }

    #[test]
    fn quoted_markup_is_text() {
        for text in [
            "Use `<tool_call>look</tool_call>` here.",
            "```\n<｜DSML｜invoke name=\"look\">\n</｜DSML｜invoke>\n```",
            "`<|tool_calls_section_begin|>`",
            "a < b, <b>bold</b>",
        ] {
            check(text, text, &[]);
        }
    }

    #[test]
    fn without_tools_everything_passes() {
        let mut filter = TextCalls::new(ToolTable::default());
        let mut deltas = vec![Delta::Text("<tool_call>look</tool_call>".into()), Delta::Stop(StopReason::Done)];
        let before = deltas.clone();
        filter.apply(&mut deltas);
        assert_eq!(deltas, before);
    }

    #[test]
    fn calls_of_the_host_go_before_markup() {
        let call = ToolCall {
            upstream_id: None,
            name: "look".into(),
            arguments: r#"{"cmd":"ls</｜DSML｜parameter>\n</｜DSML｜invoke>","n":1}"#.into(),
            extra_content: None,
        };
        let mut deltas =
            vec![Delta::Text("a <tool_call>look</tool_call>".into()), Delta::Call(call), Delta::Stop(StopReason::Done)];
        TextCalls::new(tools()).apply(&mut deltas);
        let Delta::Call(call) = &deltas[1] else { panic!("{deltas:?}") };
        assert_eq!(call.arguments, r#"{"cmd":"ls","n":1}"#);
        assert_eq!(deltas.len(), 3);
    }

    #[test]
    fn text_and_reasoning_keep_their_order() {
        let mut deltas = vec![
            Delta::Reasoning("r <".into()),
            Delta::Text("t <|".into()),
            Delta::Reasoning("s".into()),
            Delta::Stop(StopReason::Done),
        ];
        TextCalls::new(tools()).apply(&mut deltas);
        let joined: String = deltas
            .iter()
            .map(|delta| match delta {
                Delta::Reasoning(text) => format!("R{text};"),
                Delta::Text(text) => format!("T{text};"),
                _ => "stop".to_owned(),
            })
            .collect();
        assert_eq!(joined, "Rr ;R<;Tt ;T<|;Rs;stop");
    }

    proptest! {
        #[test]
        fn text_without_calls_comes_out_as_it_went_in(pieces in proptest::collection::vec("[<>/|｜a`\n DSMLtool_calfunction:{}=\"]{0,12}", 0..12)) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (text, calls, last) = run(&pieces, StopReason::Done);
            if calls.is_empty() && matches!(last, Delta::Stop(_)) && !pieces.concat().contains("DSML") {
                prop_assert_eq!(text, pieces.concat());
            }
        }
    }
}
