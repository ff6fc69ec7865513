//! The text of Codex's `config.toml`: our keys put in, and taken out again. Pure: text in, text out.
//!
//! The text is never written anew from what was parsed. The parser only says where things are; then single values are
//! exchanged and single lines put in or taken out, so that comments, order, spelling, line ends and a byte order mark
//! are after it what they were before. Each result is parsed and compared with what it has to mean before it is
//! believed ([`TextError::Unsure`]).
//!
//! | a key of ours | put in | taken out |
//! |---|---|---|
//! | that the file has at its top level | its value is exchanged in place | the old value is put back |
//! | that it has not | a line with a [`MARK`], behind the last key of the top level | the line goes |
//!
//! Taking out is a three-way merge: a key that somebody else has changed meanwhile stays as they made it. The model is
//! the exception while the provider is still ours: whoever chose it chose among our endpoint's models, and Codex's own
//! provider would refuse it. Lines of our provider's table go in any form, since half a provider keeps Codex from
//! starting; others' comments between them stay.

use std::net::SocketAddr;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use toml_edit::{Document, InlineTable, Item, Table};

use super::redirect::{
    Key, MODEL_KEY, NAME_SUFFIX, PROVIDER_ID, PROVIDER_KEY, PROVIDERS_TABLE, SEARCH_KEY, TOKEN_COMMAND, destination,
};
use crate::EndpointId;
use crate::settings::position;

/// Stands behind each line that we put in.
pub(super) const MARK: &str = "# by codex-supervisor; `codexctl restore` takes it out";
/// A comment of this kind at the very top is an order to editors and has to stay there.
const DIRECTIVE: &str = "#:";

/// What was done to one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    /// The key, dotted.
    pub(super) name: String,
    /// Its value as the person had written it; `None` if there was none.
    pub(super) before: Option<String>,
    /// Ours.
    pub(super) ours: String,
}

/// Why a text stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It cannot be read.
    #[error("line {line}, column {column}: {message}")]
    Broken {
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// Something else stands where our key belongs.
    #[error("`{name}` is {found}")]
    Odd {
        /// The key.
        name: String,
        /// What it is.
        found: String,
    },
    /// The person has a provider of our name.
    #[error("it has a provider `{PROVIDER_ID}` that is not ours")]
    Taken,
    /// The result would not mean what it has to mean.
    #[error("our keys cannot be taken apart from the others in it")]
    Unsure,
}

/// The text of a file.
///
/// # Errors
/// [`TextError::Broken`] where it is not UTF-8.
pub(super) fn decode(bytes: &[u8]) -> Result<&str, TextError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let (line, column) = position(&valid, valid.len());
        TextError::Broken { line, column, message: "it is not UTF-8 text".to_owned() }
    })
}

/// Puts `keys` into `text`, which has none of ours.
///
/// # Errors
/// [`TextError`].
pub(super) fn put(text: &str, keys: &[Key]) -> Result<(String, Vec<Change>), TextError> {
    let document = parse(text)?;
    let root = document.as_table();
    let line_end =
        if text.lines().next().is_some_and(|line| text[line.len()..].starts_with("\r\n")) { "\r\n" } else { "\n" };
    let mut edits = Edits::default();
    let mut lines = String::new();
    let mut changes = Vec::new();
    let mut expected = table(text)?;
    for key in keys {
        let (parent, leaf) =
            key.name.split_once('.').map_or((None, key.name.as_str()), |(table, leaf)| (Some(table), leaf));
        let line = format!("{} = {} {MARK}{line_end}", key.name, key.value);
        let before = match parent {
            None => match root.get(leaf) {
                None => {
                    lines += &line;
                    None
                }
                Some(Item::Value(value)) => {
                    let span = value.span().ok_or(TextError::Unsure)?;
                    edits.replace(span.clone(), key.value.clone());
                    Some(text[span].to_owned())
                }
                Some(other) => return Err(odd(leaf, other)),
            },
            Some(parent) => {
                match root.get(parent) {
                    None => lines += &line,
                    Some(item) if item.as_table_like().is_some_and(|table| table.contains_key(leaf)) => {
                        return Err(TextError::Taken);
                    }
                    Some(Item::Table(table)) if table.is_implicit() || table.is_dotted() => lines += &line,
                    Some(Item::Table(table)) => {
                        let header = table.span().ok_or(TextError::Unsure)?;
                        let at = line_after(text, header.end);
                        let begin = if text[..at].ends_with('\n') { "" } else { line_end };
                        edits.insert(at, format!("{begin}{leaf} = {} {MARK}{line_end}", key.value));
                    }
                    Some(Item::Value(toml_edit::Value::InlineTable(table))) => {
                        let open = table.span().ok_or(TextError::Unsure)?.start + 1;
                        let member = format!("{leaf} = {}", key.value);
                        edits.insert(open, if table.is_empty() { member } else { format!(" {member},") });
                    }
                    Some(other) => return Err(odd(parent, other)),
                }
                None
            }
        };
        set(&mut expected, parent, leaf, toml_value(&key.value)?)?;
        changes.push(Change { name: key.name.clone(), before, ours: key.value.clone() });
    }
    if !lines.is_empty() {
        let at = place_of_lines(text, root);
        let begin = if at == 0 || text[..at].ends_with(['\n', '\u{feff}']) { "" } else { line_end };
        edits.insert(at, format!("{begin}{lines}"));
    }
    let result = edits.apply(text);
    if meaning(&table(&result)?) != meaning(&expected) {
        return Err(TextError::Unsure);
    }
    Ok((result, changes))
}

/// Takes what `changes` have put in out of `text`, which somebody may have edited since.
///
/// # Errors
/// [`TextError`].
pub(super) fn take_out(text: &str, changes: &[Change]) -> Result<String, TextError> {
    let document = parse(text)?;
    let root = document.as_table();
    let mut expected = table(text)?;
    let mut edits = Edits::default();
    let is_ours = |name: &str, ours: &str| {
        root.get(name).and_then(Item::as_value).is_some_and(|value| same_value(text, value, ours))
    };
    let provider_is_ours =
        changes.iter().any(|change| change.name == PROVIDER_KEY && is_ours(PROVIDER_KEY, &change.ours));
    for change in changes {
        if let Some((parent, leaf)) = change.name.split_once('.') {
            remove_member(text, root, parent, leaf, &mut edits)?;
            if let Some(toml::Value::Table(parent)) = expected.get_mut(parent) {
                parent.remove(leaf);
            }
            continue;
        }
        let name = change.name.as_str();
        let goes = is_ours(name, &change.ours) || (name == MODEL_KEY && provider_is_ours);
        let Some((key, Item::Value(value))) = root.get_key_value(name).filter(|_| goes) else { continue };
        let span = value.span().ok_or(TextError::Unsure)?;
        if let Some(before) = &change.before {
            edits.replace(span, before.clone());
            expected.insert(name.to_owned(), toml_value(before)?);
        } else {
            let start = key.span().ok_or(TextError::Unsure)?.start;
            edits.remove(statement(text, start..span.end));
            expected.remove(name);
        }
    }
    let result = edits.apply(text);
    if meaning(&table(&result)?) != meaning(&expected) {
        return Err(TextError::Unsure);
    }
    Ok(result)
}

/// What must have been put into `text` by us though nobody remembers it: it was copied, or our state was lost. `None`
/// if there is nothing of ours in it.
///
/// # Errors
/// [`TextError`]; in particular [`TextError::Taken`] if a provider of our name is somebody else's.
pub(super) fn unremembered(text: &str) -> Result<Option<Vec<Change>>, TextError> {
    let document = parse(text)?;
    let root = document.as_table();
    let chosen = root.get(PROVIDER_KEY).and_then(Item::as_str) == Some(PROVIDER_ID);
    let provider = root.get(PROVIDERS_TABLE).and_then(Item::as_table_like).and_then(|table| table.get(PROVIDER_ID));
    if provider.is_some_and(|provider| !is_our_provider(provider)) {
        return Err(TextError::Taken);
    }
    if !chosen && provider.is_none() {
        return Ok(None);
    }
    let own = [(PROVIDER_KEY, chosen), (MODEL_KEY, chosen), (SEARCH_KEY, false)];
    let mut changes = Vec::new();
    for (name, is_ours) in own {
        let Some(span) = root.get(name).and_then(Item::as_value).and_then(toml_edit::Value::span) else { continue };
        let rest = &text[span.end..line_after(text, span.end)];
        if is_ours || rest.trim() == MARK {
            changes.push(Change { name: name.to_owned(), before: None, ours: text[span].to_owned() });
        }
    }
    if provider.is_some() {
        changes.push(Change { name: format!("{PROVIDERS_TABLE}.{PROVIDER_ID}"), before: None, ours: String::new() });
    }
    Ok(Some(changes))
}

/// Whether Codex is pointed at one of our endpoints by `text`; a text that cannot be read counts as not.
pub(super) fn is_redirected(text: &str) -> bool {
    Document::parse(text)
        .is_ok_and(|document| document.as_table().get(PROVIDER_KEY).and_then(Item::as_str) == Some(PROVIDER_ID))
}

/// Where Codex is pointed at by `text`, if at one of our endpoints.
pub(super) fn points_at(text: &str) -> Option<(EndpointId, SocketAddr)> {
    let root = table(text).ok()?;
    let is_chosen = root.get(PROVIDER_KEY)?.as_str()? == PROVIDER_ID;
    destination(root.get(PROVIDERS_TABLE)?.get(PROVIDER_ID)?).filter(|_| is_chosen)
}

fn is_our_provider(provider: &Item) -> bool {
    let named = provider.get("name").and_then(Item::as_str).is_some_and(|name| name.ends_with(NAME_SUFFIX));
    let asks_us = || {
        let arguments = provider.get("auth")?.get("args")?;
        Some(arguments.get(0)?.as_str()? == TOKEN_COMMAND)
    };
    named || asks_us() == Some(true)
}

fn parse(text: &str) -> Result<Document<&str>, TextError> {
    Document::parse(text).map_err(|error| broken(text, error.message(), error.span()))
}

fn table(text: &str) -> Result<toml::Table, TextError> {
    toml::from_str(text).map_err(|error: toml::de::Error| broken(text, error.message(), error.span()))
}

fn broken(text: &str, message: &str, span: Option<Range<usize>>) -> TextError {
    let (line, column) = position(text, span.map_or(0, |span| span.start));
    TextError::Broken { line, column, message: message.trim().replace('\n', ", ") }
}

fn odd(name: &str, item: &Item) -> TextError {
    TextError::Odd { name: name.to_owned(), found: format!("written as {}", item.type_name()) }
}

fn toml_value(value: &str) -> Result<toml::Value, TextError> {
    table(&format!("value = {value}"))?.remove("value").ok_or(TextError::Unsure)
}

fn same_value(text: &str, value: &toml_edit::Value, ours: &str) -> bool {
    let present = value.span().and_then(|span| toml_value(&text[span]).ok());
    present.is_some() && present == toml_value(ours).ok()
}

fn set(table: &mut toml::Table, parent: Option<&str>, leaf: &str, value: toml::Value) -> Result<(), TextError> {
    let place = match parent {
        None => table,
        Some(parent) => {
            let entry = table.entry(parent).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            entry.as_table_mut().ok_or(TextError::Unsure)?
        }
    };
    place.insert(leaf.to_owned(), value);
    Ok(())
}

/// What a configuration means, comparable. As text, because a number that is none does not equal itself; without an
/// empty table of providers, which means nothing.
fn meaning(table: &toml::Table) -> String {
    let mut table = table.clone();
    if table.get(PROVIDERS_TABLE).and_then(toml::Value::as_table).is_some_and(toml::Table::is_empty) {
        table.remove(PROVIDERS_TABLE);
    }
    format!("{table:?}")
}

/// Where new lines of the top level go: behind its last key, else to the top.
fn place_of_lines(text: &str, root: &Table) -> usize {
    if let Some(end) = last_value(root) {
        return line_after(text, end);
    }
    let mut at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    while text[at..].starts_with(DIRECTIVE) {
        at = line_after(text, at);
    }
    at
}

/// End of the last value in `table`, dotted ones included, those below a header not.
fn last_value(table: &Table) -> Option<usize> {
    let ends = table.iter().filter_map(|(_, item)| match item {
        Item::Value(value) => value.span().map(|span| span.end),
        Item::Table(table) if table.is_dotted() => last_value(table),
        _ => None,
    });
    ends.max()
}

/// The begin of the line behind the one with `at`.
fn line_after(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |end| at + end + 1)
}

/// The whole statement whose key or header begins and whose value ends at `span`, with its line, unless a comment of
/// somebody else's stands behind it: that stays.
fn statement(text: &str, span: Range<usize>) -> Range<usize> {
    let start = text[..span.start].rfind('\n').map_or(0, |end| end + 1);
    let start = if text[start..].starts_with('\u{feff}') { start + '\u{feff}'.len_utf8() } else { start };
    let end = line_after(text, span.end);
    let rest = &text[span.end..end];
    if rest.trim().is_empty() || rest.trim() == MARK {
        start..end
    } else {
        start..span.end + (rest.len() - rest.trim_start().len())
    }
}

/// Removes the member `leaf` of the table `parent` in whatever form they are written.
fn remove_member(text: &str, root: &Table, parent: &str, leaf: &str, edits: &mut Edits) -> Result<(), TextError> {
    match root.get(parent) {
        Some(Item::Table(table)) => match table.get_key_value(leaf) {
            Some((key, item)) => {
                let start = key.span().ok_or(TextError::Unsure)?.start;
                remove_item(text, start, item, edits)
            }
            None => Ok(()),
        },
        Some(Item::Value(toml_edit::Value::InlineTable(table))) => remove_inline(text, table, leaf, edits),
        _ => Ok(()),
    }
}

/// Removes every statement that `item` is made of; `start` is where its key stands.
fn remove_item(text: &str, start: usize, item: &Item, edits: &mut Edits) -> Result<(), TextError> {
    let table_lines = |table: &Table, edits: &mut Edits| -> Result<(), TextError> {
        if !table.is_implicit() && !table.is_dotted() {
            edits.remove(statement(text, table.span().ok_or(TextError::Unsure)?));
        }
        for (name, item) in table {
            let start = table.key(name).and_then(toml_edit::Key::span).ok_or(TextError::Unsure)?.start;
            remove_item(text, start, item, edits)?;
        }
        Ok(())
    };
    match item {
        Item::None => Ok(()),
        Item::Value(value) => {
            let end = value.span().ok_or(TextError::Unsure)?.end;
            edits.remove(statement(text, start..end));
            Ok(())
        }
        Item::Table(table) => table_lines(table, edits),
        Item::ArrayOfTables(tables) => tables.iter().try_for_each(|table| table_lines(table, edits)),
    }
}

/// Removes a member of a table that is written in braces, with one comma.
fn remove_inline(text: &str, table: &InlineTable, leaf: &str, edits: &mut Edits) -> Result<(), TextError> {
    let Some((key, item)) = table.get_key_value(leaf) else { return Ok(()) };
    let (Some(key), Some(value)) = (key.span(), item.as_value().and_then(toml_edit::Value::span)) else {
        return Err(TextError::Unsure);
    };
    let behind = &text[value.end..];
    let blank = behind.len() - behind.trim_start().len();
    if behind[blank..].starts_with(',') {
        let end = value.end + blank + 1;
        let spaces = text[end..].len() - text[end..].trim_start_matches(' ').len();
        edits.remove(key.start..end + spaces);
    } else {
        let before = text[..key.start].trim_end();
        let start = before.strip_suffix(',').map_or(key.start, str::len);
        edits.remove(start..value.end);
    }
    Ok(())
}

/// Changes of single places of a text.
#[derive(Debug, Default)]
struct Edits(Vec<(Range<usize>, String)>);

impl Edits {
    fn replace(&mut self, range: Range<usize>, with: String) {
        self.0.push((range, with));
    }

    fn insert(&mut self, at: usize, text: String) {
        self.replace(at..at, text);
    }

    fn remove(&mut self, range: Range<usize>) {
        self.replace(range, String::new());
    }

    fn apply(mut self, text: &str) -> String {
        self.0.sort_by_key(|(range, _)| (range.start, range.end));
        let mut changed = String::with_capacity(text.len());
        let mut at = 0;
        for (range, with) in self.0 {
            // Two statements of one line cannot both be there, so ranges meet at most.
            changed.push_str(text.get(at..range.start).unwrap_or_default());
            changed.push_str(&with);
            at = at.max(range.end);
        }
        changed.push_str(&text[at..]);
        changed
    }
}

#[cfg(test)]
mod tests;
