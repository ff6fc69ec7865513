//! `DeepSeek`'s markup: `<｜DSML｜tool_calls>` around `<｜DSML｜invoke name="…">` around `<｜DSML｜parameter name="…" string="true">`.
//!
//! The bars come as U+FF5C, U+2016 or ASCII, one or two of them, with or without spaces; the wrapper is called
//! `function_calls` in V3.2, and may be missing. `string="false"` marks a value that is JSON. Hosts that parse it
//! sometimes leave the closing tags at the end of argument strings.

use serde_json::{Map, Value};

use super::invoke::{self, Tag, attribute};
use super::{Dialect, Found, Opening, TAG_BYTES_MAX, untyped_value};
use crate::tools::ToolTable;

pub(super) const DIALECT: Dialect = Dialect { open, closes, is_plausible: |_| true, parse };

/// The most bars in a row.
const BARS_MAX: usize = 2;

/// What a text that begins with `<` is.
enum Scan<'t> {
    No,
    Maybe,
    Tag(Tag<'t>, usize),
}

fn open(text: &str) -> Opening {
    match scan(text) {
        Scan::No => Opening::No,
        Scan::Maybe => Opening::Maybe,
        Scan::Tag(tag, length) => match tag.name {
            "tool_calls" | "function_calls" | "invoke" if !tag.is_closing => Opening::Opens(length),
            "tool_calls" | "function_calls" | "invoke" | "parameter" => Opening::Stray(length),
            _ => Opening::No,
        },
    }
}

fn closes(opener: &str, tag: &str) -> bool {
    let (Some((opener, _)), Some((tag, _))) = (tag_at(opener), tag_at(tag)) else { return false };
    let is_wrapper = |name: &str| matches!(name, "tool_calls" | "function_calls");
    tag.is_closing && (tag.name == opener.name || is_wrapper(tag.name) && is_wrapper(opener.name))
}

fn parse(markup: &str, tools: &ToolTable) -> Found {
    invoke::calls(markup, tools, tag_at, |key, attributes, text| match attribute(attributes, "string") {
        Some("true") => Value::String(text.to_owned()),
        Some("false") => serde_json::from_str(text.trim()).unwrap_or_else(|_| Value::String(text.to_owned())),
        _ => untyped_value(key, text),
    })
}

fn tag_at(text: &str) -> Option<(Tag<'_>, usize)> {
    match scan(text) {
        Scan::Tag(tag, length) => Some((tag, length)),
        Scan::No | Scan::Maybe => None,
    }
}

fn scan(text: &str) -> Scan<'_> {
    /// Takes `<`, bars and the like off the front; `None` when the text ends here.
    fn bars(rest: &str) -> Option<Result<&str, ()>> {
        let mut rest = rest.trim_start_matches(' ');
        let mut count = 0;
        while let Some(after) = rest.strip_prefix(['|', '｜', '‖']) {
            rest = after.trim_start_matches(' ');
            count += 1;
        }
        if rest.is_empty() && count <= BARS_MAX {
            return None;
        }
        Some(if (1..=BARS_MAX).contains(&count) { Ok(rest) } else { Err(()) })
    }
    const WORD: &str = "DSML";

    let Some(rest) = text.strip_prefix('<') else { return Scan::No };
    let (rest, is_closing) = rest.strip_prefix('/').map_or((rest, false), |rest| (rest, true));
    let rest = match bars(rest) {
        None => return Scan::Maybe,
        Some(Err(())) => return Scan::No,
        Some(Ok(rest)) => rest,
    };
    let Some(rest) = rest.strip_prefix(WORD) else {
        return if WORD.starts_with(rest) { Scan::Maybe } else { Scan::No };
    };
    let rest = match bars(rest) {
        None => return Scan::Maybe,
        Some(Err(())) => return Scan::No,
        Some(Ok(rest)) => rest,
    };
    let name_end = rest.find(|next: char| !next.is_ascii_lowercase() && next != '_').unwrap_or(rest.len());
    let Some(tag_end) = rest.find('>') else {
        return if text.len() <= TAG_BYTES_MAX { Scan::Maybe } else { Scan::No };
    };
    if tag_end < name_end || rest[..tag_end].contains('<') {
        return Scan::No;
    }
    let tag = Tag { is_closing, name: &rest[..name_end], attributes: &rest[name_end..tag_end] };
    Scan::Tag(tag, text.len() - rest.len() + tag_end + 1)
}

/// `arguments` without the closing tags at the end of its texts; `None` when there are none.
pub(super) fn without_closing_tags(arguments: &str) -> Option<String> {
    if !arguments.contains("DSML") {
        return None;
    }
    let mut fields: Map<String, Value> = serde_json::from_str(arguments).ok()?;
    let mut has_changed = false;
    for value in fields.values_mut() {
        let Value::String(text) = value else { continue };
        while let Some(start) = text.trim_end().strip_suffix('>').and_then(|tag| tag.rfind('<')) {
            let tag = text[start..].trim_end();
            if !matches!(tag_at(tag), Some((found, length)) if found.is_closing && length == tag.len()) {
                break;
            }
            text.truncate(start);
            has_changed = true;
        }
    }
    has_changed.then(|| Value::Object(fields).to_string())
}
