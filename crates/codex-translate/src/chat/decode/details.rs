//! `reasoning_details`: the array that `OpenRouter` and `MiniMax` stream in fragments and want back whole.

use serde_json::{Map, Value};

use crate::json::Raw;

/// Most entries. An answer has a few for each time that the model thinks; a stream that has more is broken, or hostile.
const ENTRIES_MAX: usize = 1_000;

/// Fields whose fragments are joined; any other field is set by the first fragment that has it.
const JOINED: [&str; 2] = ["text", "summary"];

/// The array as merged so far.
#[derive(Debug, Default)]
pub(super) struct Details {
    entries: Vec<Map<String, Value>>,
    held_bytes: usize,
}

impl Details {
    /// Adds the fragments of one chunk and gives their readable text.
    pub(super) fn add(&mut self, fragments: Raw<'_>) -> String {
        let mut text = String::new();
        for fragment in fragments.elements() {
            if self.is_full() {
                break;
            }
            let Ok(Value::Object(fragment)) = serde_json::from_str(fragment.text()) else { continue };
            for name in JOINED {
                text.push_str(fragment.get(name).and_then(Value::as_str).unwrap_or_default());
            }
            if let Some(entry) = self.entries.iter_mut().rev().find(|entry| is_continued(entry, &fragment)) {
                self.held_bytes += merge(entry, fragment);
            } else {
                self.held_bytes += ENTRY_BYTES + fragment.iter().map(member_bytes).sum::<usize>();
                self.entries.push(fragment);
            }
        }
        text
    }

    /// Whether nothing was added.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether there are more entries than an answer can have.
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() > ENTRIES_MAX
    }

    /// How much is kept, in bytes of memory: a value takes more than its text.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The merged array as JSON text, leaving nothing behind; `None` when there was nothing.
    pub(super) fn take(&mut self) -> Option<String> {
        if self.entries.is_empty() {
            return None;
        }
        self.held_bytes = 0;
        let entries = std::mem::take(&mut self.entries).into_iter().map(Value::Object).collect();
        Some(Value::Array(entries).to_string())
    }
}

/// Whether `fragment` goes on with `entry`: the same kind at the same place, and neither is complete by itself.
fn is_continued(entry: &Map<String, Value>, fragment: &Map<String, Value>) -> bool {
    let agree = |name: &str| match (entry.get(name), fragment.get(name)) {
        (Some(Value::Null) | None, _) | (_, Some(Value::Null) | None) => true,
        (Some(one), Some(other)) => one == other,
    };
    // Encrypted entries come whole: two of them at one index are two.
    let is_whole = entry.contains_key("data") && fragment.contains_key("data");
    entry.get("type") == fragment.get("type") && agree("index") && agree("id") && !is_whole
}

/// Adds `fragment` to `entry`; how many bytes more are kept.
fn merge(entry: &mut Map<String, Value>, fragment: Map<String, Value>) -> usize {
    let mut added = 0;
    for (name, value) in fragment {
        match (entry.get_mut(&name), value) {
            (Some(Value::String(text)), Value::String(more)) if JOINED.contains(&name.as_str()) => {
                added += more.len();
                text.push_str(&more);
            }
            (Some(Value::Null) | None, value) => {
                added += member_bytes((&name, &value));
                entry.insert(name, value);
            }
            (Some(_), _) => {}
        }
    }
    added
}

/// What an entry takes beside its members.
const ENTRY_BYTES: usize = size_of::<Map<String, Value>>();

/// What a member takes in memory, as far as it depends on what was sent.
fn member_bytes((name, value): (&String, &Value)) -> usize {
    size_of::<String>() + name.len() + value_bytes(value)
}

fn value_bytes(value: &Value) -> usize {
    /// A container has room for a few from its first one on.
    const ROOM_BYTES: usize = 4 * size_of::<(String, Value)>();
    let inside = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(elements) => ROOM_BYTES + elements.iter().map(value_bytes).sum::<usize>(),
        Value::Object(members) => ROOM_BYTES + members.iter().map(member_bytes).sum::<usize>(),
    };
    size_of::<Value>() + inside
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(chunks: &[&str], text: &str, merged: &str) {
        let mut details = Details::default();
        let read: String = chunks.iter().map(|chunk| details.add(crate::json::parse(chunk).unwrap())).collect();
        assert_eq!(read, text);
        assert_eq!(details.held_bytes() > 0, !merged.is_empty());
        assert_eq!(details.take().as_deref(), Some(merged).filter(|merged| !merged.is_empty()));
        assert_eq!(details.held_bytes(), 0);
        assert_eq!(details.take(), None);
    }

    #[test]
    fn fragments_merge_by_kind_and_place() {
        check(
            &[
                r#"[{"type":"reasoning.text","text":"a","index":0,"signature":null}]"#,
                r#"[{"type":"reasoning.text","text":"b","index":0}]"#,
                r#"[{"type":"reasoning.text","signature":"S","index":0}]"#,
            ],
            "ab",
            r#"[{"type":"reasoning.text","text":"ab","index":0,"signature":"S"}]"#,
        );
        check(
            &[
                r#"[{"type":"reasoning.summary","summary":"s","index":0},{"type":"reasoning.encrypted","data":"x","index":0}]"#,
                r#"[{"type":"reasoning.encrypted","data":"y","index":0},{"type":"reasoning.summary","summary":"t","index":1}]"#,
            ],
            "st",
            concat!(
                r#"[{"type":"reasoning.summary","summary":"s","index":0},{"type":"reasoning.encrypted","data":"x","index":0},"#,
                r#"{"type":"reasoning.encrypted","data":"y","index":0},{"type":"reasoning.summary","summary":"t","index":1}]"#
            ),
        );
        check(&["[7]", "{}", "null"], "", "");
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let entries: Vec<String> = (0..ENTRIES_MAX + 10).map(|type_| format!(r#"{{"type":{type_}}}"#)).collect();
        let mut details = Details::default();
        details.add(crate::json::parse(&format!("[{}]", entries.join(","))).unwrap());
        assert!(details.is_full());
        assert_eq!(details.entries.len(), ENTRIES_MAX + 1);
    }
}
