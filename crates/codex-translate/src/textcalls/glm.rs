//! GLM's `<tool_call>NAME`, then pairs of `<arg_key>` and `<arg_value>`, then `</tool_call>`; and what Hermes and Qwen
//! put between the same tags: a JSON object with `name` and `arguments`.
//!
//! The tag is an ordinary word, so a call counts only with the name of a tool that was offered, or with arguments.

use serde_json::{Map, Value};

use super::{Dialect, Found, Opening, literal, repair, tool_name, untyped_value};
use crate::json::{self, Kind};
use crate::tools::ToolTable;

pub(super) const DIALECT: Dialect = Dialect { open, closes: |_, tag| tag == CLOSE, is_plausible, parse };

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const KEY: (&str, &str) = ("<arg_key>", "</arg_key>");
const VALUE: (&str, &str) = ("<arg_value>", "</arg_value>");

fn open(text: &str) -> Opening {
    literal(text, OPEN, Opening::Opens(OPEN.len()))
}

fn is_plausible(body: &str) -> bool {
    let body = body.trim_start();
    if body.starts_with('{') {
        return true;
    }
    let name_end =
        body.find(|next: char| !next.is_ascii_alphanumeric() && !"_-.:".contains(next)).unwrap_or(body.len());
    let rest = body[name_end..].trim_start();
    let may_be = |tag: &str| rest.starts_with(tag) || tag.starts_with(rest);
    may_be(KEY.0) || may_be(CLOSE)
}

fn parse(markup: &str, tools: &ToolTable) -> Found {
    let body = markup.strip_prefix(OPEN).unwrap_or(markup);
    let (body, is_closed) = body.strip_suffix(CLOSE).map_or((body, false), |body| (body, true));
    let body = body.trim();
    if body.starts_with('{') { parse_json(body, is_closed, tools) } else { parse_pairs(body, is_closed, tools) }
}

fn parse_pairs(body: &str, is_closed: bool, tools: &ToolTable) -> Found {
    let mut found = Found::default();
    let name_end = body.find(['<', '\n']).unwrap_or(body.len());
    let name = body[..name_end].trim();
    let mut rest = &body[name_end..];
    let mut arguments = Map::new();
    while let Some((_, after)) = rest.split_once(KEY.0) {
        let pair = after.split_once(KEY.1).and_then(|(key, after)| {
            let (value, after) = after.split_once(VALUE.0)?.1.split_once(VALUE.1)?;
            Some((key.trim(), value, after))
        });
        let Some((key, value, after)) = pair else {
            found.is_cut = true;
            return found;
        };
        arguments.insert(key.to_owned(), untyped_value(key, value));
        rest = after;
    }
    let is_call = !arguments.is_empty() || tools.resolve(&tool_name(name, tools)).is_some();
    match (is_call, is_closed) {
        (true, true) => found.push(name, None, Value::Object(arguments).to_string(), tools),
        (true, false) => found.is_cut = true,
        (false, _) => {}
    }
    found
}

fn parse_json(body: &str, is_closed: bool, tools: &ToolTable) -> Found {
    let mut found = Found::default();
    let call = repair::object(body);
    let Ok(call) = call else {
        found.is_cut = !is_closed;
        found.is_garbled = is_closed;
        return found;
    };
    let Ok(call) = json::parse(&call) else { return found };
    let name = call.get("name").and_then(json::Raw::as_str).map(json::Str::decode);
    let arguments = call.get("arguments").or_else(|| call.get("parameters")).unwrap_or(json::Raw::NULL);
    let (Some(name), true) = (name, matches!(arguments.kind(), Kind::Object | Kind::String | Kind::Null)) else {
        return found;
    };
    match repair::object(arguments.text()) {
        Ok(arguments) => found.push(&name, None, arguments, tools),
        Err(_) => found.is_garbled = true,
    }
    found
}
