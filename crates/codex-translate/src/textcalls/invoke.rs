//! Calls written as `invoke` elements with `parameter` elements in them, whatever the tags look like.

use serde_json::{Map, Value};

use super::Found;
use crate::tools::ToolTable;

/// A tag of such a dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag<'t> {
    pub(super) is_closing: bool,
    pub(super) name: &'t str,
    pub(super) attributes: &'t str,
}

/// The calls in `markup`. `tag_at` reads a tag at the beginning of a text and gives its length; `value` makes a value
/// of a parameter's key, attributes and text.
pub(super) fn calls(
    markup: &str,
    tools: &ToolTable,
    tag_at: impl Fn(&str) -> Option<(Tag<'_>, usize)>,
    value: impl Fn(&str, &str, &str) -> Value,
) -> Found {
    let mut found = Found::default();
    let mut current: Option<(&str, Map<String, Value>)> = None;
    let mut at = 0;
    while let Some(next) = markup[at..].find('<') {
        at += next;
        let Some((tag, length)) = tag_at(&markup[at..]) else {
            at += 1;
            continue;
        };
        at += length;
        match (tag.name, tag.is_closing) {
            ("invoke", false) => {
                found.is_cut |= current.is_some();
                current = Some((attribute(tag.attributes, "name").unwrap_or_default(), Map::new()));
            }
            ("invoke", true) => {
                if let Some((name, arguments)) = current.take() {
                    found.push(name, None, Value::Object(arguments).to_string(), tools);
                }
            }
            ("parameter", false) => {
                let Some((end, length)) = closing_parameter(&markup[at..], &tag_at) else {
                    found.is_cut = true;
                    return found;
                };
                let key = attribute(tag.attributes, "name").unwrap_or_default();
                if let Some((_, arguments)) = &mut current {
                    arguments.insert(key.to_owned(), value(key, tag.attributes, &markup[at..at + end]));
                }
                at += end + length;
            }
            _ => {}
        }
    }
    found.is_cut |= current.is_some();
    found
}

/// Where the closing tag of a parameter stands, and its length. Whatever stands before it is the value, markup too.
fn closing_parameter(text: &str, tag_at: impl Fn(&str) -> Option<(Tag<'_>, usize)>) -> Option<(usize, usize)> {
    text.match_indices('<').find_map(|(at, _)| {
        let (tag, length) = tag_at(&text[at..])?;
        (tag.is_closing && tag.name == "parameter").then_some((at, length))
    })
}

/// The value of attribute `name`, with or without quotes.
pub(super) fn attribute<'t>(attributes: &'t str, name: &str) -> Option<&'t str> {
    attributes.match_indices(name).find_map(|(at, _)| {
        let is_start = attributes[..at].ends_with(|before: char| before.is_whitespace()) || at == 0;
        let value = attributes[at + name.len()..].trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|first| matches!(first, '"' | '\''));
        let value = match quote {
            Some(quote) => value[1..].split(quote).next()?,
            None => value.split_whitespace().next()?,
        };
        is_start.then_some(value)
    })
}
